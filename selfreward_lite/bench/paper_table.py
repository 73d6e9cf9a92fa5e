"""The papers' comparisons in miniature: methods from the same M0 (but for those that change it), on the same prompts and as many
judgments, seed by seed.

Knows: the arms, what of a run makes a row, how arms are compared. Does not know: how a run works, how a metric is computed. Every
run is a folder of its own; all arms of a seed go on from a copy of one seed stage, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np

from selfreward_lite.bench.seeds import OpenTools, Say, branch, finish
from selfreward_lite.config.settings import parse
from selfreward_lite.data.records import (
    BASE,
    Battle,
    Judgment,
    ModelId,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.data.tiny import tasks
from selfreward_lite.data.tiny.tasks import MAX_LETTERS
from selfreward_lite.method import metrics
from selfreward_lite.method.judgments import SCORE_TOLERANCE
from selfreward_lite.report import plots, summary
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.context import grouped
from selfreward_lite.run.runtime import Runtime

SEEDS = range(
    420, 428
)  # fresh ones: by what they show only the 7 epochs of an arm below were chosen
ITERATIONS = 3
SIZES = {  # an arm is to take 90 s at most on two cores (LOG.md)
    "gates.mode": "report",
    "prompts.count": "80",
    "evaluation.prompts": "500",
    "seed_stage.eval_prompts": "60",
}


def _all(**wanted: str) -> dict[str, str]:
    """The same in every iteration."""
    return {
        f"schedule.{place}.{name}": value
        for name, value in wanted.items()
        for place in range(ITERATIONS)
    }


@dataclass(frozen=True)
class Arm:
    """A method: what it changes of the tiny preset after the seed stage, and in it (which makes it one of its own); `own_rival`
    says that it is held against the M0 of that, and not of the plain one."""

    name: str
    change: Mapping[str, str]
    seed_stage: Mapping[str, str] = field(default_factory=dict)
    own_rival: bool = False


SELF, NO_CONTROL = _all(judgment_pairs="false"), _all(rho="0")

# In a world whose judge data holds brevity against an answer, with the paper's strength of length control (MR, section 3).
BIASED = {"seed_stage.length_bias": "0.8"}
CONTROL = {"schedule.0.rho": "0", "schedule.1.rho": "0.32", "schedule.2.rho": "0.32"}

# Epochs other than the preset's (DPO 1, SFT 2) make as many training steps as Meta-Rewarding takes, give or take one.
ARMS = (
    Arm("Self-Rewarding", SELF | NO_CONTROL),
    Arm("Self-Rewarding + length control", SELF),
    Arm("Self-Rewarding + length control, 1.5 epochs", SELF | {"dpo.epochs": "1.5"}),
    Arm("Meta-Rewarding", {}),
    Arm("Meta-Rewarding, no length control", NO_CONTROL),
    Arm("Meta-Rewarding, judgment pairs always", _all(judgment_pairs="true")),
    Arm("Meta-Rewarding, no SFT anchor", {"dpo.anchor": "0"}),
    Arm("Meta-Rewarding, expected score", {"judge.score": "expected"}),
    Arm("positive examples only", SELF | _all(train_on="positive")),
    Arm("positive examples only, 7 epochs", SELF | _all(train_on="positive") | {"sft.epochs": "7"}),
    Arm("Meta-Rewarding, no EFT", {}, {"seed_stage.eft": "false"}),
    Arm("biased: Self-Rewarding", SELF | NO_CONTROL, BIASED, own_rival=True),
    Arm("biased: Self-Rewarding + length control", SELF | CONTROL, BIASED, own_rival=True),
    Arm(
        "biased: Self-Rewarding + length control, 1.5 epochs",
        SELF | CONTROL | {"dpo.epochs": "1.5"},
        BIASED,
        own_rival=True,
    ),
    Arm("biased: Meta-Rewarding", CONTROL, BIASED, own_rival=True),
    Arm("biased: Meta-Rewarding, no length control", NO_CONTROL, BIASED, own_rival=True),
)


@dataclass(frozen=True)
class Row:
    """What M<iteration> of an arm was measured to be with one seed."""

    arm: str
    seed: int
    iteration: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """What is to be run: the arms, with which seeds, what is laid over the tiny preset for all of them."""

    seeds: Sequence[int] = SEEDS
    arms: Sequence[Arm] = ARMS
    base: Mapping[str, str] = field(default_factory=lambda: SIZES)


def run_table(
    folder: Path, table: Table, open_runtime: OpenTools, watch: Watch, say: Say
) -> list[Row]:
    """Run, or finish, every arm with every seed. What a gate would refuse is gone on with, and a training that fails ends its
    arm: it has fewer rows then."""
    work, rows = [(seed, arm) for seed in table.seeds for arm in table.arms], []
    spent: list[float] = []
    with open_runtime() as runtime:
        for number, (seed, arm) in enumerate(work, 1):
            stage = {"seed": str(seed), "iterations": "0", **table.base}
            start = _seed_stage(folder / f"seed-{seed}", stage, arm.seed_stage, runtime, watch)
            rival = (
                start
                if arm.own_rival
                else _seed_stage(folder / f"seed-{seed}", stage, {}, runtime, watch)
            )
            left = (
                f", about {fmean(spent) * (len(work) - number + 1) / 3600:.1f} h left"
                if spent
                else ""
            )
            say(f"seed {seed}: {arm.name} ({number} of {len(work)}{left})")
            run, began = folder / f"seed-{seed}" / arm.name, time.monotonic()
            branch(start, run, {**arm.change, "iterations": str(ITERATIONS)})
            with Store.write(run) as store, Store.read(rival) as opponent:
                if not loop.is_finished(store, parse(store.fact("settings"))):
                    settings = prepare.load_or_create_settings(
                        store, {"gates.mode": "report"}, None
                    )
                    stopped = finish(store, settings, runtime, watch).stopped
                    spent.append(time.monotonic() - began)
                    if stopped:
                        say(f"seed {seed}: {arm.name} stopped: {stopped}")
                rows += measured(store, opponent, arm.name, seed)
    return rows


def _seed_stage(
    folder: Path,
    wanted: Mapping[str, str],
    change: Mapping[str, str],
    runtime: Runtime,
    watch: Watch,
) -> Path:
    """The folder of a finished seed stage, which all arms have in common that change the same in it."""
    place = folder / " ".join(
        [
            "seed-stage",
            *(f"{key.removeprefix('seed_stage.')}={value}" for key, value in change.items()),
        ]
    )
    with Store.write(place) as store:
        settings = prepare.load_or_create_settings(
            store, {**wanted, **change}, "tiny"
        )  # refuses one that was begun with others
        if store.newest() is None:
            loop.run(store, settings, runtime, watch)
    return place


def measured(store: Store, rival: Store, arm: str, seed: int) -> Iterator[Row]:
    """Yield what every model of a run is, the base and M0 first; `rival` holds the M0 that it is held against."""
    prompts = store.records(Prompt, origin="held_out")
    hard = {one.id for one in prompts if len(_letters(one)) == MAX_LETTERS}
    biases = {(row["judge"], row["what"]): row["value"] for row in plots.meta_judge_bias(store)}
    opponent = before = _answers(prompts, rival, 0)
    yield Row(arm, seed, BASE, _judging(store, BASE))
    for iteration, row in enumerate(summary.summarize_run(store)["iterations"]):
        mine = _answers(prompts, store, iteration)
        rate, without_length = _against(mine, opponent)
        values = {
            "seconds": row["seconds"],
            "win_rate": rate,
            "length_controlled_win_rate": without_length,
            "win_rate_vs_previous": _against(mine, before)[0],
            "length": fmean(length for _, length in mine.values()),
            "hard_score": fmean(mine[name][0] for name in hard),
            "first_share": biases.get((ModelId(iteration - 1).name, "shown first")),
            "higher_share": biases.get((ModelId(iteration - 1).name, "higher score")),
            **(of_data(store, iteration) if iteration else {}),
            **{
                name: row[name]
                for name in (
                    "exact_score",
                    "answer_right",
                    "pair_yield",
                    "tie_rate",
                    "response_pairs",
                )
            },
            **_judging(store, iteration),
        }
        yield Row(
            arm,
            seed,
            iteration,
            {name: value for name, value in values.items() if value is not None},
        )
        before = mine


def _judging(store: Store, model: int) -> dict[str, float]:
    return {
        name: value
        for name, value in store.metrics(model).items()
        if name.startswith("judge_") and value is not None
    }


def _letters(prompt: Prompt) -> tuple[str, ...]:
    task = tasks.parse_task(prompt.text)
    assert task is not None
    return task.letters


def of_data(store: Store, iteration: int) -> dict[str, float | None]:
    """Return how right the data was that M<iteration> was trained on, as shares, and the steps; None where there is none."""
    worth = _worth(store, iteration)
    return {
        "pair_accuracy": _pair_accuracy(store, iteration, worth),
        "tie_accuracy": _tie_accuracy(store, iteration, worth),
        "meta_accuracy": _meta_accuracy(store, iteration, worth),
        "training_steps": store.metrics(iteration).get("training_steps"),
    }


def _pair_accuracy(store: Store, iteration: int, worth: Mapping[str, int]) -> float | None:
    """Of the response pairs, the share whose chosen response is truly the better one; pairs of the same worth, or to a prompt
    that is no task, are left out."""
    pairs = [
        (worth[one.chosen_id], worth[one.rejected_id])
        for one in store.records(ResponsePair, iteration=iteration)
        if one.chosen_id in worth
    ]
    right = [chosen > rejected for chosen, rejected in pairs if chosen != rejected]
    return fmean(right) if right else None


def _tie_accuracy(store: Store, iteration: int, worth: Mapping[str, int]) -> float | None:
    """Of pairs of responses that the mean of the sampled scores ties, the share that the expected score puts in their true order.

    Pairs of the same true worth, or the same expected score, say nothing and are left out; None where no pair is left.
    """
    judged = grouped(
        store.records(Judgment, iteration=iteration, model=ModelId(iteration - 1).name),
        lambda one: one.response_id,
    )
    found = defaultdict(list)
    for one in store.records(Response, iteration=iteration, model=ModelId(iteration - 1).name):
        read = [
            each
            for each in judged.get(one.id, ())
            if each.score is not None and each.expected_score is not None
        ]
        if read and one.id in worth:
            means = (
                fmean(each.score or 0.0 for each in read),
                fmean(each.expected_score or 0.0 for each in read),
            )
            found[one.prompt_id].append((*means, worth[one.id]))
    right = [
        (a[1] > b[1]) == (a[2] > b[2])
        for scored in found.values()
        for a, b in combinations(scored, 2)
        if abs(a[0] - b[0]) <= SCORE_TOLERANCE and a[2] != b[2] and a[1] != b[1]
    ]
    return fmean(right) if right else None


def _meta_accuracy(store: Store, iteration: int, worth: Mapping[str, int]) -> float | None:
    """Of the decided battles between judgments unequally far from the true score, the share that went to the nearer one."""
    scores = {
        one.id: one.score
        for one in store.records(Judgment, iteration=iteration, model=ModelId(iteration - 1).name)
    }
    right = []
    for one in store.records(Battle, iteration=iteration):
        first, second, true = (
            scores[one.first_id],
            scores[one.second_id],
            worth.get(one.response_id),
        )
        if one.verdict and first is not None and second is not None and true is not None:
            lead = abs(second - true) - abs(first - true)
            right += [(lead > 0) == (one.verdict > 0)] if lead else []
    return fmean(right) if right else None


def _worth(store: Store, iteration: int) -> dict[str, int]:
    """The exact score of each of an iteration's responses, by id; those to prompts that are no task have none."""
    prompts = {one.id: one for one in store.records(Prompt, iteration=iteration)}
    given = store.records(Response, iteration=iteration, model=ModelId(iteration - 1).name)
    exact = ((one.id, metrics.score_exactly([prompts[one.prompt_id]], [one])) for one in given)
    return {name: next(iter(known.score.values())) for name, known in exact if known is not None}


def _answers(prompts: Sequence[Prompt], store: Store, iteration: int) -> dict[str, tuple[int, int]]:
    """The exact score and the characters of each held-out answer, by prompt."""
    given = {
        one.prompt_id: one
        for one in store.records(Response, iteration=iteration, model=ModelId(iteration).name)
    }
    exact = metrics.score_exactly(prompts, list(given.values()))
    assert exact is not None
    return {
        one.id: (exact.score[one.id], len(given[one.id].text) if one.id in given else 0)
        for one in prompts
    }


def _against(
    mine: Mapping[str, tuple[int, int]], theirs: Mapping[str, tuple[int, int]]
) -> tuple[float, float]:
    """The win rate, and what is left of it where both answers are equally long."""
    pairs = [(mine[name], theirs[name]) for name in mine]
    results = np.array([metrics.compare_scores(a[0], b[0]) for a, b in pairs])
    return float(results.mean()), metrics.length_controlled_win_rate(
        results, np.array([float(a[1] - b[1]) for a, b in pairs])
    )
