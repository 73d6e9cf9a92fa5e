"""What answers to task sets say of models: accuracies, and whether one is better than another.

Prompts are what is drawn, so every error and interval is over prompts: the answers to one prompt
form one group. Two models are compared on the prompts that both answered.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

from selfreward_lite.data.records import TaskAnswer, group_records
from selfreward_lite.method.statistics import Change, Verdict, mean_and_error, paired_change

Metric = Literal["strict", "loose", "instructions_strict", "instructions_loose", "right"]
# Points and parts of an answer: by prompt all parts must be done, by instruction each counts.
Points = Callable[[TaskAnswer], tuple[float, int]]
POINTS: dict[Metric, Points] = {
    "strict": lambda one: (float(one.strict == one.parts), 1),
    "loose": lambda one: (float(one.loose == one.parts), 1),
    "instructions_strict": lambda one: (float(one.strict), one.parts),
    "instructions_loose": lambda one: (float(one.loose), one.parts),
    "right": lambda one: (float(one.strict == one.parts), 1),
}
FOLLOWED: tuple[Metric, ...] = ("strict", "loose", "instructions_strict", "instructions_loose")
# The metrics of each set; the first decides. IFEval's paper puts the strict accuracy by prompt
# first, IFBench's the loose one.
METRICS: dict[str, tuple[Metric, ...]] = {
    "ifeval": FOLLOWED,
    "ifbench": ("loose", "strict", "instructions_strict", "instructions_loose"),
    "gsm8k": ("right",),
}


@dataclass(frozen=True)
class SetScore:
    """A model on a set: each accuracy with its standard error, and what it was asked and said.

    `cut` is the share of answers that reached the length limit; `faults` counts checks that ended
    with an error.
    """

    set: str
    model: str
    prompts: int
    answers: int
    accuracies: Mapping[Metric, tuple[float, float]]
    cut: float
    faults: int


@dataclass(frozen=True)
class SetChange:
    """A model against another on a set, on the prompts that both answered, by every metric."""

    set: str
    model: str
    against: str
    changes: Mapping[Metric, Change]

    @property
    def first(self) -> Change:
        """The change by the metric that decides."""
        return self.changes[METRICS[self.set][0]]

    @property
    def verdict(self) -> Verdict:
        """What the interval of the deciding metric says."""
        return self.first.verdict


@dataclass(frozen=True)
class TaskCard:
    """Models on task sets; `changes` compares each with the first, and with the one before it."""

    scores: Sequence[SetScore]
    changes: Sequence[SetChange]


def build_card(answers: Sequence[TaskAnswer], models: Sequence[str]) -> TaskCard:
    """Return the card of models, in their order; one that answered nothing of a set has no row."""
    scores: list[SetScore] = []
    changes: list[SetChange] = []
    for name in METRICS:
        by_model = {}
        for model in models:
            given = [one for one in answers if (one.task_set, one.model) == (name, model)]
            by_model[model] = group_records(given, lambda one: one.task)
        known = [model for model in models if by_model[model]]
        scores += [_score(name, model, by_model[model]) for model in known]
        changes += [
            _compare(name, model, rival, by_model[model], by_model[rival])
            for before, model in pairwise(known)
            for rival in dict.fromkeys((known[0], before))
        ]
    return TaskCard(scores, changes)


def _score(name: str, model: str, by_task: Mapping[str, Sequence[TaskAnswer]]) -> SetScore:
    answers = [one for group in by_task.values() for one in group]
    return SetScore(
        name,
        model,
        len(by_task),
        len(answers),
        {
            metric: mean_and_error([_values(group, metric) for group in by_task.values()])
            for metric in METRICS[name]
        },
        fmean(one.finish == "length" for one in answers),
        sum(one.faults for one in answers),
    )


def _compare(
    name: str,
    model: str,
    rival: str,
    mine: Mapping[str, Sequence[TaskAnswer]],
    theirs: Mapping[str, Sequence[TaskAnswer]],
) -> SetChange:
    both = [task for task in mine if task in theirs]
    changes = {
        metric: paired_change(
            *([_values(known[task], metric) for task in both] for known in (mine, theirs))
        )
        for metric in METRICS[name]
    }
    return SetChange(name, model, rival, changes)


def _values(group: Sequence[TaskAnswer], metric: Metric) -> list[float]:
    """A prompt's accuracy as a group: as many values as it has parts, each the mean of all."""
    scored = [POINTS[metric](one) for one in group]
    parts = scored[0][1]
    return [fmean(points for points, _ in scored) / parts] * parts
