"""The papers' comparisons in miniature: every method from the same M0, on the same prompts and as many judgments, seed by seed.

Knows: the arms, what of a run makes a row, how arms are compared. Does not know: how a run works, how a metric is computed. Every
run is a folder of its own; all arms of a seed go on from a copy of one seed stage, so an interrupted table goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from selfreward_lite import evaluate, loop, pairwise, report, series
from selfreward_lite.bench.settings import branch
from selfreward_lite.bench.tiny import OpenTools, Say, finish
from selfreward_lite.config import parse
from selfreward_lite.records import Prompt, Response
from selfreward_lite.runner import Watch
from selfreward_lite.store import Store
from selfreward_lite.tools import Tools

SEEDS = range(400, 408)  # fresh ones: no setting was chosen by what they show
ITERATIONS = 3
BASE = {"gates.mode": "report", "prompts.count": "150", "evaluation.prompts": "500"}


def _all(**wanted: str) -> dict[str, str]:
    """The same in every iteration."""
    return {f"schedule.{place}.{name}": value for name, value in wanted.items() for place in range(ITERATIONS)}


@dataclass(frozen=True)
class Arm:
    """A method: what it changes of the tiny preset, in the seed stage (which makes it one of its own) and after it."""

    name: str
    change: Mapping[str, str]
    seed_stage: Mapping[str, str]


SELF = _all(judgment_pairs="false")
ARMS = (
    Arm("Self-Rewarding", SELF | _all(rho="0"), {}),
    Arm("Self-Rewarding + length control", SELF, {}),
    Arm("Meta-Rewarding", {}, {}),
    Arm("Meta-Rewarding, no length control", _all(rho="0"), {}),
    Arm("Meta-Rewarding, judgment pairs always", _all(judgment_pairs="true"), {}),
    Arm("Meta-Rewarding, no SFT anchor", {"dpo.anchor": "0"}, {}),
    Arm("Meta-Rewarding, expected score", {"judge.score": "expected"}, {}),
    Arm("positive examples only", SELF | _all(train_on="positive"), {}),
    Arm("Meta-Rewarding, no EFT", {}, {"seed_stage.eft": "false"}),
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
    base: Mapping[str, str] = field(default_factory=lambda: BASE)


def run_table(folder: Path, table: Table, open_tools: OpenTools, watch: Watch, say: Say) -> list[Row]:
    """Run, or finish, every arm with every seed. What a gate would refuse is gone on with, and a training that fails ends its
    arm: it has fewer rows then."""
    work, rows = [(seed, arm) for seed in table.seeds for arm in table.arms], []
    spent: list[float] = []
    with open_tools() as tools:
        for number, (seed, arm) in enumerate(work, 1):
            stage = {"seed": str(seed), "iterations": "0", **table.base}
            start, shared = (_seed_stage(folder / f"seed-{seed}", stage, one, tools, watch) for one in (arm, table.arms[0]))
            left = f", about {fmean(spent) * (len(work) - number + 1) / 3600:.1f} h left" if spent else ""
            say(f"seed {seed}: {arm.name} ({number} of {len(work)}{left})")
            run, began = folder / f"seed-{seed}" / arm.name, time.monotonic()
            branch(start, run, {**arm.change, "iterations": str(ITERATIONS)})
            with Store.write(run) as store, Store.read(shared) as rival:
                if not loop.finished(store, parse(store.fact("settings"))):
                    settings = loop.settle(store, {"gates.mode": "report"}, None)
                    stopped = finish(store, settings, tools, watch).stopped
                    spent.append(time.monotonic() - began)
                    if stopped:
                        say(f"seed {seed}: {arm.name} stopped: {stopped}")
                rows += measured(store, rival, arm.name, seed)
    return rows


def _seed_stage(folder: Path, wanted: Mapping[str, str], arm: Arm, tools: Tools, watch: Watch) -> Path:
    """The folder of a finished seed stage, which all arms have in common that change nothing in it."""
    name = " ".join(["seed-stage", *(f"{key}={value}" for key, value in arm.seed_stage.items())])
    with Store.write(folder / name) as store:
        if store.newest() is None:
            settings = loop.settle(store, {**wanted, **arm.seed_stage}, "tiny")
            loop.run(store, settings, tools, watch)
    return folder / name


def measured(store: Store, rival: Store, arm: str, seed: int) -> Iterator[Row]:
    """Yield what every model of a run is, M0 first; `rival` holds the M0 that all arms are held against."""
    prompts = store.records(Prompt, origin="held_out")
    opponent = _answers(prompts, rival, 0)
    biases = {(row["judge"], row["what"]): row["value"] for row in series.biases(store)}
    before = opponent
    for row in report.summary(store)["iterations"]:
        iteration, known = row["iteration"], store.metrics(row["iteration"])
        mine = _answers(prompts, store, iteration)
        rate, without_length = _against(mine, opponent)
        values = {
            "win_rate": rate, "length_controlled_win_rate": without_length, "win_rate_vs_previous": _against(mine, before)[0],
            "length": fmean(length for _, length in mine.values()),
            "first_share": biases.get((f"M{iteration - 1}", "shown first")),
            "higher_share": biases.get((f"M{iteration - 1}", "higher score")),
            **{name: row[name] for name in ("exact_score", "answer_right", "pair_yield", "tie_rate", "response_pairs")},
            **{name: value for name, value in known.items() if name.startswith("judge_")},
        }
        yield Row(arm, seed, iteration, {name: value for name, value in values.items() if value is not None})
        before = mine


def _answers(prompts: Sequence[Prompt], store: Store, iteration: int) -> dict[str, tuple[int, int]]:
    """The exact score and the characters of each held-out answer, by prompt."""
    given = {one.prompt_id: one for one in store.records(Response, iteration=iteration, model=f"M{iteration}")}
    exact = evaluate.exact_scores(prompts, list(given.values()))
    assert exact is not None
    return {one.id: (exact.score[one.id], len(given[one.id].text) if one.id in given else 0) for one in prompts}


def _against(mine: Mapping[str, tuple[int, int]], theirs: Mapping[str, tuple[int, int]]) -> tuple[float, float]:
    """The win rate, and what is left of it where both answers are equally long."""
    pairs = [(mine[name], theirs[name]) for name in mine]
    results = np.array([0.5 + 0.5 * ((a[0] > b[0]) - (a[0] < b[0])) for a, b in pairs])
    return float(results.mean()), pairwise.length_controlled(results, np.array([float(a[1] - b[1]) for a, b in pairs]))
