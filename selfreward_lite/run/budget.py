"""The hours that a command was given: how many prompts they pay for, and what must be left for training and measuring.

    fit         before an iteration: the number of prompts whose whole iteration fits, by the speed measured so far
    going_on    while it asks: whether there is time for more, with all that follows for it
    until       when its training must end

Knows: costs, the deadline. Does not know: stages' insides. What was decided is a fact of the run, so that a resumed command keeps
to it; a command without hours leaves everything as it is set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from selfreward_lite.run import plan
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.context import RunContext
from selfreward_lite.system.errors import OutOfTime

KEPT = 0.9  # of the time left is planned with; the rest is for what turns out slower
ASKED = ("candidates", "responses", "judgments", "battles")


def fit(run: RunContext, iteration: int) -> None:
    """Decide how many prompts the iteration has. Raises OutOfTime where not even one batch of pairs would come of them."""
    fact = f"prompts M{iteration}"
    if run.deadline == math.inf or run.store.is_done(iteration, "training"):
        return
    costs = plan.measured(run.store, run.settings)
    left = run.deadline - time.monotonic()
    if run.store.fact(fact) is not None:
        _refuse_too_little(run, iteration, costs, left)
        return
    count = plan.affordable(run.settings, iteration, costs, KEPT * left)
    least = math.ceil(run.settings.dpo.batch / (2 * plan.PAIR_SHARE))
    if count < min(least, run.settings.prompts.count):
        raise OutOfTime(
            f"{left / 3600:.2f} hours are left, too few for an iteration of {least} prompts, with its training; the same command "
            f"goes on with M{iteration}"
        )
    run.store.state(fact, count)
    if count < run.settings.prompts.count:
        words = (
            f"{count} of {run.settings.prompts.count} prompts, so that M{iteration} is trained and measured in the "
            f"{left / 3600:.2f} hours left, at the speed of this run so far"
        )
        run.watch(Progress(iteration, "prompts", 1, words=words))


def _refuse_too_little(
    run: RunContext, iteration: int, costs: plan.StageCosts, left: float
) -> None:
    """An iteration that is under way is not cut down to what a short command pays for: better to stop than to waste its night."""
    later = _later(run, iteration, costs, ASKED[-1])
    needed = (sum(later.values()) - later["training"] / 2) / KEPT
    if left < needed:
        raise OutOfTime(
            f"{left / 3600:.2f} hours are left, and M{iteration} needs {needed / 3600:.2f} to be trained and measured; the same "
            "command goes on with it"
        )


def going_on(run: RunContext, iteration: int, stage: str) -> Callable[[float], bool]:
    """Return what says, for the share of a stage that is begun, whether to begin more.

    It does not if what follows for that share, and the measuring after it, would take all the time that is left.
    """
    if run.deadline == math.inf:
        return lambda share: True
    costs = plan.measured(run.store, run.settings)
    later = _later(run, iteration, costs, stage)
    measuring = sum(spent for name, spent in later.items() if name not in (*ASKED, "training"))
    following = sum(later.values()) - measuring
    return lambda share: run.deadline - time.monotonic() > (share * following + measuring) / KEPT


def until(run: RunContext, iteration: int) -> float | None:
    """Return the time of day (seconds since 1970) at which a training must end, None for never."""
    if run.deadline == math.inf:
        return None
    measuring = sum(
        _later(run, iteration, plan.measured(run.store, run.settings), "training").values()
    )
    return time.time() + run.deadline - time.monotonic() - measuring / KEPT


def _later(run: RunContext, iteration: int, costs: plan.StageCosts, stage: str) -> dict[str, float]:
    """Seconds of each stage that comes after this one."""
    wanted = run.settings.prompts.model_copy(update={"count": run.prompts_wanted(iteration)})
    counts = plan.counts(
        run.settings.model_copy(update={"prompts": wanted}),
        range(iteration, iteration + 1),
        seed_stage=False,
    )
    spent = [(name.split(" ", 1)[1], value) for name, value in plan.seconds(counts, costs).items()]
    place = next(place for place, (name, _) in enumerate(spent) if name == stage)
    return dict(spent[place + 1 :])
