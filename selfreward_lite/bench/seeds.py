"""Does the loop learn? The tiny run over several seeds: what every model is worth, with standard errors, failures included.

Knows: which runs make the table, how seeds are averaged. Does not know: how a run works or a number is measured. Every seed
is a run folder of its own, so an interrupted bench goes on where it was.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from selfreward_lite import config
from selfreward_lite.config.settings import Settings
from selfreward_lite.data.records import Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.method import metrics
from selfreward_lite.method.statistics import standard_error
from selfreward_lite.report import summary
from selfreward_lite.run import loop, prepare
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system.errors import GateStop, TrainingError, UserError

SEEDS = range(100, 105)  # the published ones: no setting is chosen by what they show
HELD_OUT = 1000
COLUMNS = (
    "exact_score",
    "answer_right",
    "win_rate_vs_seed",
    "judge_pair_accuracy",
    "pair_yield",
    "tie_rate",
    "unread_rate",
    "mean_response_tokens",
    "self_score",
    "outside_score",
    "canary_score",
    "honest_bad_score",
)
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
OpenTools = Callable[[], AbstractContextManager[Runtime]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """One seed's run: its summary (see `report.summary`), and why it stopped early, if it did: a gate, a training that failed."""

    seed: int
    document: Mapping[str, Any]
    stopped: str | None
    win_rate_limit: float | None  # what no model can pass against this seed's M0

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The base, then M0, M1, …"""
        return [self.document["base"], *self.document["iterations"]]


def run_seeds(
    folder: Path,
    seeds: Iterable[int],
    wanted: Mapping[str, str],
    open_runtime: OpenTools,
    watch: Watch,
    say: Say,
) -> list[Result]:
    """Run, or finish, the tiny preset with every seed, and return what came of each. A failure ends its seed's run, not ours."""
    seeds = list(seeds)
    results = []
    with open_runtime() as runtime:
        for number, seed in enumerate(seeds, 1):
            say(f"seed {seed} ({number} of {len(seeds)})")
            results.append(run_seed(folder / f"seed-{seed}", seed, wanted, runtime, watch))
    return results


def run_seed(
    folder: Path, seed: int, wanted: Mapping[str, str], runtime: Runtime, watch: Watch
) -> Result:
    """Run, or finish, one seed."""
    with Store.write(folder) as store:
        settings = prepare.load_or_create_settings(store, {**wanted, "seed": str(seed)}, "tiny")
        return finish(store, settings, runtime, watch)


def finish(store: Store, settings: Settings, runtime: Runtime, watch: Watch) -> Result:
    """Run what is missing of a run; a model that is refused, or cannot be trained, is a result as well."""
    stopped = None
    try:
        loop.run(store, settings, runtime, watch)
    except (GateStop, TrainingError) as stop:
        stopped = str(stop)
    return Result(settings.seed, summary.summarize_run(store), stopped, _limit(store))


def _limit(store: Store) -> float | None:
    held_out = store.records(Prompt, origin="held_out")
    answered = store.records(Response, iteration=0, model="M0")
    scores = metrics.score_exactly(held_out, answered) if answered else None
    return None if scores is None else scores.win_rate_limit()


def win_rate_limit(results: Sequence[Result]) -> tuple[float, float] | None:
    """Return the mean, and its standard error over seeds, of the highest win rate against M0 that there can be; None for none."""
    found = [one.win_rate_limit for one in results if one.win_rate_limit is not None]
    return (fmean(found), standard_error(found)) if found else None


def reached(results: Sequence[Result]) -> list[int]:
    """Return how many seeds have the base, M0, M1, …"""
    return [
        sum(len(result.rows) > place for result in results)
        for place in range(max(len(one.rows) for one in results))
    ]


def averages(results: Sequence[Result]) -> list[dict[str, tuple[float, float]]]:
    """Return, for the base, M0, M1, …, the mean and the standard error over the seeds that got there, by column."""
    longest = max(len(result.rows) for result in results)
    found = []
    for place in range(longest):
        rows = [result.rows[place] for result in results if place < len(result.rows)]
        columns = {
            name: [row[name] for row in rows if row.get(name) is not None] for name in COLUMNS
        }
        found.append(
            {
                name: (fmean(values), standard_error(values))
                for name, values in columns.items()
                if values
            }
        )
    return found


def verdicts(results: Sequence[Result]) -> dict[str, bool]:
    """Return what is claimed of the loop, and whether these results bear it out. With a seed that stopped early, none does."""
    complete = all(
        len(result.rows) == len(results[0].rows) > 2 and result.stopped is None
        for result in results
    )
    if not complete:
        return dict.fromkeys(CLAIMS, False)
    base, *means = averages(results)
    last = [result.rows[-1] for result in results]
    held = (
        complete,
        all(row["win_rate_vs_seed"] > 0.5 for row in last),
        means[-1]["win_rate_vs_seed"][0] >= 0.85,
        _rises([mean["exact_score"][0] for mean in means]),
        means[-1]["answer_right"][0] > means[0]["answer_right"][0],
        _never_falls(results),
        means[-1]["judge_pair_accuracy"][0] >= means[0]["judge_pair_accuracy"][0] - 0.02,
        means[0]["judge_pair_accuracy"][0] >= base["judge_pair_accuracy"][0] + 0.05,
    )
    return dict(zip(CLAIMS, held, strict=True))


def _rises(values: Sequence[float]) -> bool:
    return all(after > before for before, after in zip(values, values[1:], strict=False))


def _never_falls(results: Sequence[Result]) -> bool:
    """Seed by seed and step by step, with the standard error of the difference of two shares of the same prompts' number."""
    for result in results:
        for before, after in zip(result.rows[1:], result.rows[2:], strict=False):
            old, new = before["answer_right"], after["answer_right"]
            error = math.hypot(before["answer_right_error"], after["answer_right_error"])
            if new < old - 2 * error:
                return False
    return True


def branch(start: Path, folder: Path, change: Mapping[str, str]) -> None:
    """Copy a run that has ended its seed stage, with other settings for what follows; nothing if it is there already.

    Raises UserError where what is there was begun with others.
    """
    if folder.exists():
        with Store.read(start) as store, Store.read(folder) as there:
            # Parsed, since a setting that a later version has was not written down then: it has its default.
            if config.parse(there.fact("settings")) != config.override(
                store.fact("settings"), dict(change)
            ):
                raise UserError(
                    f"{folder} was begun with other settings; move it away, or give another --runs-dir"
                )
        return
    half = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(start, half)
    with Store.write(half) as store:
        begun: dict[str, Any] = store.fact("settings")
        store.state("settings", config.override(begun, dict(change)).model_dump(mode="json"))
    half.rename(folder)
