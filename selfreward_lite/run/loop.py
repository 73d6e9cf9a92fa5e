"""THE ORDER OF THE STEPS. Read this first.

Every step does only what is missing, so resuming after a kill is the same as starting: all steps
are called again, in order.
"""

import math
import time
from collections.abc import Callable

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.store import TIME_IS_UP, Store
from selfreward_lite.run import budget, prepare
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.run.steps import (
    export,
    iteration,
    judge_set,
    measure,
    promotion,
    seed_stage,
    tasks,
    training,
)
from selfreward_lite.system.errors import OutOfTime

Step = Callable[[RunContext, int], None]

# base → M0: the judge learns from judgments that agree with ranked human data.
SEED_STAGE: tuple[Step, ...] = (
    seed_stage.read_ranked,
    seed_stage.import_prompts,
    seed_stage.add_canaries,
    export.export_base,
    export.check_models,
    seed_stage.look_at_judge,
    measure.measure_base,
    tasks.answer_base,
    seed_stage.add_decoys,
    seed_stage.judge_ranked,
    training.train_seed,
    export.export_adapter,
    measure.measure_model,
    tasks.answer_tasks,
    judge_set.judge_pairs,
    promotion.pass_gates,
    promotion.promote,
)

# M(t−1) → M(t): the model answers, judges its answers, judges its judgments, and learns from both.
ITERATION: tuple[Step, ...] = (
    export.export_base,
    export.check_models,
    budget.fit_prompts,
    iteration.write_prompts,
    iteration.answer_prompts,
    iteration.judge_responses,
    iteration.pair_responses,
    iteration.run_battles,
    iteration.pair_judgments,
    promotion.pass_data_gates,
    training.train_model,
    export.export_adapter,
    measure.measure_model,
    tasks.answer_tasks,
    judge_set.judge_pairs,
    promotion.pass_gates,
    promotion.promote,
)


def run(
    store: Store, settings: Settings, runtime: Runtime, watch: Watch, deadline: float = math.inf
) -> None:
    """Do what is missing of the seed stage and of `settings.iterations` iterations.

    Iterations are cut to be done by `deadline` (on the clock of time.monotonic). Raises GateStop
    where a gate refuses a model, and OutOfTime where too little is left for the next step. The run
    can be resumed after both.
    """
    context = prepare.open_run(store, settings, runtime, watch, deadline)
    if store.fact(TIME_IS_UP):
        store.state(TIME_IS_UP, None)  # of an earlier command
    try:
        if is_finished(store, settings):  # its models answer on the base, which a copy has not
            export.export_base(context, 0)
        for number in range(store.next_model(), settings.iterations + 1):
            for step in ITERATION if number else SEED_STAGE:
                step(context, number)
    except OutOfTime as end:
        store.state(TIME_IS_UP, str(end))
        raise
    except KeyboardInterrupt:
        if time.monotonic() >= deadline:
            store.state(TIME_IS_UP, "the hours ended in the middle of a step; its items are kept")
        raise
    finally:
        context.release_engine()


def is_finished(store: Store, settings: Settings) -> bool:
    """Whether nothing is left to do."""
    return store.next_model() > settings.iterations
