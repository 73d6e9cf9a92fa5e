"""`--hours`: how many prompts the time allows, and what must be left for training and measuring.

    fit_prompts         before an iteration: how many prompts fit, at the speed measured so far
    may_start           while it asks: whether there is time for more, and for what follows from it
    training_deadline   when its training must end

The decision is stored with the run, so that a resumed command keeps to it. Without --hours, nothing
changes. All of it is on the clock of time.monotonic: setting the time of day changes nothing, and
while a machine is suspended no hours pass.
"""

import math
import time

from selfreward_lite.run import plan, stages
from selfreward_lite.run.ask import MayStart, Progress, always
from selfreward_lite.run.context import RunContext
from selfreward_lite.system.errors import OutOfTime

KEPT = 0.9  # share of the time left that is planned with; the rest is for what turns out slower
NOT_MEASURING = ("candidates", "responses", "judgments", "battles", "training")


def fit_prompts(run: RunContext, iteration: int) -> None:
    """Decide how many prompts the iteration has.

    Raises OutOfTime where they would not give one batch of pairs.
    """
    fact = f"prompts M{iteration}"
    if run.deadline == math.inf or run.store.is_done(iteration, "training"):
        return
    left = run.deadline - time.monotonic()
    if run.store.fact(fact) is not None:  # under way: not cut to a short command, but stopped
        later = _seconds_left(run, iteration)
        needed = (_measuring(later) + later["training"] / 2) / KEPT
        if left < needed:
            raise OutOfTime(
                f"{left / 3600:.2f} hours are left, and M{iteration} needs {needed / 3600:.2f} to "
                "be trained and measured; give the same command again to resume it"
            )
        return
    wanted = run.settings.prompts.count
    costs = plan.measure_costs(run.store, run.settings)
    count = plan.affordable_prompts(run.settings, iteration, costs, KEPT * left)
    least = math.ceil(run.settings.dpo.batch / (2 * stages.PAIR_SHARE))
    if count < min(least, wanted):
        raise OutOfTime(
            f"{left / 3600:.2f} hours are left, too few for an iteration of {least} prompts with "
            f"its training; give the same command again to resume with M{iteration}"
        )
    run.store.state(fact, count)
    if count < wanted:
        message = (
            f"{count} of {wanted} prompts, so that M{iteration} is trained and measured in the "
            f"{left / 3600:.2f} hours left, at the speed of this run so far"
        )
        run.watch(Progress(iteration, "prompts", 1, message=message))


def may_start(run: RunContext, iteration: int, stage: str) -> MayStart:
    """A function of the share of `stage` that was started: whether to start more.

    It returns False once what follows for that share, and measuring, would take all the time left.
    """
    if run.deadline == math.inf:
        return always
    later = _seconds_left(run, iteration, stage)
    measuring = _measuring(later)
    following = sum(later.values()) - measuring
    return lambda share: run.deadline - time.monotonic() > (share * following + measuring) / KEPT


def training_deadline(run: RunContext, iteration: int) -> float | None:
    """When a training must end, on the clock of time.monotonic; None for never."""
    if run.deadline == math.inf:
        return None
    measuring = _measuring(_seconds_left(run, iteration, "training"))
    return run.deadline - measuring / KEPT


def _seconds_left(run: RunContext, iteration: int, after: str | None = None) -> dict[str, float]:
    """Seconds of each stage of an iteration; of those behind stage `after` if given."""
    costs = plan.measure_costs(run.store, run.settings)
    settings = run.settings.with_values("prompts", count=run.prompts_wanted(iteration))
    return stages.seconds_by_stage(settings, iteration, costs, after)


def _measuring(later: dict[str, float]) -> float:
    return sum(seconds for name, seconds in later.items() if name not in NOT_MEASURING)
