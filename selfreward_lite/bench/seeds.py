"""Experiments on the method: a run for every arm and seed. `bench tiny` has one arm.

An interrupted experiment resumes: what is finished is only read again.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from selfreward_lite.bench import Say
from selfreward_lite.data.records import BASE, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import standard_error
from selfreward_lite.report import summary
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.runtime import Runtime, open_runtime
from selfreward_lite.system.errors import GateStop, TrainingError

COLUMNS = [name for name in (*summary.MEASURED, *summary.OF_DATA) if not name.endswith("_error")]
LIMIT = "win_rate_limit"
CLAIMS = (
    "every seed ran to the end",
    "the last model beats M0 on every seed",
    "mean win rate of the last model is at least 0.85",
    "the mean exact score rises at every step",
    "right answers rise from M0 to the last model",
    "right answers never fall by more than two standard errors",
    "judge pair accuracy of the last model is at least M0's less 0.02",
    "the seed stage raises judge pair accuracy by at least 0.05",
)
Means = dict[str, tuple[float, float]]  # mean and standard error, by column


@dataclass(frozen=True)
class Arm:
    """A method: what it changes after the seed stage, and in the seed stage.

    With `own_m0`, its models are compared with M0 of its own seed stage, else of the plain one.
    """

    name: str
    change: Mapping[str, str]
    seed_stage: Mapping[str, str] = field(default_factory=dict)
    own_m0: bool = False


@dataclass(frozen=True)
class ModelRow:
    """The measurements of one model (-1 is the base) of one arm with one seed."""

    arm: str
    seed: int
    iteration: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One arm with one seed: a row a model, the base first, and why it ended early, if it did."""

    seed: int
    rows: list[ModelRow]
    seconds: float
    stopped: str | None


@dataclass(frozen=True)
class Start:
    """How the run of an arm is started or resumed; `m0` is the run whose M0 it is compared with."""

    folder: Path
    m0: Path
    settings: dict[str, str]


def run_arms(
    arms: Sequence[Arm],
    seeds: Iterable[int],
    start: Callable[[Arm, int, Runtime], Start],
    measure: Callable[[Store, Path], Iterable[summary.ModelFigures]],
    watch: Watch,
    say: Say,
) -> list[Trial]:
    """Run or resume every arm with every seed; `measure` returns the figures of each model.

    The base comes first. `measure` receives the run and the folder of the run with its M0.
    A refused model or a failed training ends its own run only: that is a result too.
    """
    work = [(seed, arm) for seed in seeds for arm in arms]
    trials: list[Trial] = []
    spent: list[float] = []
    with open_runtime() as runtime:
        for number, (seed, arm) in enumerate(work, 1):
            remaining = len(work) - number + 1
            left = f", about {fmean(spent) * remaining / 3600:.1f} h left" if spent else ""
            say(f"seed {seed}: {arm.name} ({number} of {len(work)}{left})")
            begin = start(arm, seed, runtime)
            began, stopped = time.monotonic(), None
            with Store.write(begin.folder) as store:
                settings = prepare.load_or_create_settings(store, begin.settings, "tiny")
                if not loop.is_finished(store, settings):
                    try:
                        loop.run(store, settings, runtime, watch)
                    except (GateStop, TrainingError) as stop:
                        stopped = str(stop)
                        say(f"seed {seed}: {arm.name} stopped: {stopped}")
                    spent.append(time.monotonic() - began)
                rows = []
                for iteration, values in enumerate(measure(store, begin.m0), BASE):
                    known = {name: value for name, value in values.items() if value is not None}
                    rows.append(ModelRow(arm.name, seed, iteration, known))
                seconds = round(sum(row.seconds for row in store.stages()), 1)
            trials.append(Trial(seed, rows, seconds, stopped))
    return trials


def average(rows: Sequence[ModelRow], columns: Iterable[str]) -> dict[str, dict[int, Means]]:
    """The means over seeds, by arm and iteration."""
    values: dict[str, dict[int, list[Mapping[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        values[row.arm][row.iteration].append(row.values)
    return {
        arm: {number: average_values(found, columns) for number, found in models.items()}
        for arm, models in values.items()
    }


def average_values(values: Sequence[Mapping[str, float]], columns: Iterable[str]) -> Means:
    """The mean and standard error of each column, over those that have it; none where none has."""
    known = {name: [one[name] for one in values if name in one] for name in columns}
    return {name: (fmean(one), standard_error(one)) for name, one in known.items() if one}


# -- bench tiny: does the loop learn? --------------------------------------------------------------


def run_tiny(
    folder: Path, seeds: Iterable[int], settings: Mapping[str, str], watch: Watch, say: Say
) -> list[Trial]:
    """Run or resume the tiny preset with every seed, changed by `settings`."""

    def start(arm: Arm, seed: int, runtime: Runtime) -> Start:
        place = folder / f"seed-{seed}"
        return Start(place, place, {**settings, "seed": str(seed)})

    return run_arms([Arm("tiny", {})], seeds, start, _measure, watch, say)


def _measure(store: Store, m0: Path) -> list[summary.ModelFigures]:
    """The rows of a run's summary; the base's also has the highest possible win rate against M0."""
    document = summary.summarize_run(store)
    base, answered = document["base"], store.records(Response, iteration=0, model="M0")
    scores = metrics.score_exactly(store.records(Prompt, origin="held_out"), answered)
    if answered and scores:
        base[LIMIT] = scores.win_rate_limit()
    return [base, *document["iterations"]]


def average_models(trials: Sequence[Trial]) -> dict[int, Means]:
    """The means over seeds, by model; the base's have `win_rate_limit`."""
    (found,) = average([row for one in trials for row in one.rows], (*COLUMNS, LIMIT)).values()
    return found


def check_claims(trials: Sequence[Trial]) -> dict[str, bool]:
    """Whether each claim about the loop holds; none does if a run ended early."""
    if not all(len(one.rows) == len(trials[0].rows) > 2 and one.stopped is None for one in trials):
        return dict.fromkeys(CLAIMS, False)
    base, *models = (
        {name: mean for name, (mean, _) in means.items()}
        for means in average_models(trials).values()
    )
    first, last = models[0], models[-1]
    held = (
        True,  # every seed ran to the end
        all(one.rows[-1].values["win_rate_vs_seed"] > 0.5 for one in trials),
        last["win_rate_vs_seed"] >= 0.85,
        all(after["exact_score"] > before["exact_score"] for before, after in pairwise(models)),
        last["answer_right"] > first["answer_right"],
        not any(
            after["answer_right"]
            < before["answer_right"]
            - 2 * math.hypot(before["answer_right_error"], after["answer_right_error"])
            for trial in trials
            for before, after in pairwise(row.values for row in trial.rows[1:])
        ),
        last["judge_pair_accuracy"] >= first["judge_pair_accuracy"] - 0.02,
        first["judge_pair_accuracy"] >= base["judge_pair_accuracy"] + 0.05,
    )
    return dict(zip(CLAIMS, held, strict=True))
