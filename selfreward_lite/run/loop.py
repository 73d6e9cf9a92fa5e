"""The order of the steps, written once; and what a run is: a folder that can be gone on with at any time.

Knows: which step follows which, when a run is new, unfinished or finished. Does not know: what a step does. Every step does
only what is missing, so going on after a kill is the same as starting: all of them are called again, in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub
from selfreward_lite.data.store import Store
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.hf_folder import read_config
from selfreward_lite.run import budget, plan
from selfreward_lite.run.ask import Watch
from selfreward_lite.run.context import RunContext
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.run.steps import export, iteration, measure, promotion, seed_stage, training
from selfreward_lite.system.errors import ConfigError
from selfreward_lite.system.files import MANIFEST, check_disk
from selfreward_lite.system.gpu import list_gpus

Step = Callable[[RunContext, int], None]

# base → M0: the judge learns from judgments that agree with ranked human data.
SEED_STAGE: tuple[Step, ...] = (
    seed_stage.read_ranked,
    seed_stage.read_prompts,
    seed_stage.lay_canaries,
    export.export_base,
    export.check_models,
    measure.measure_base,
    seed_stage.lay_decoys,
    seed_stage.judge_ranked,
    training.train_seed,
    export.export,
    measure.measure,
    promotion.pass_gates,
    promotion.promote,
)

# M(t−1) → M(t): the model answers, judges its answers, judges its judgments, and learns from both.
ITERATION: tuple[Step, ...] = (
    export.export_base,
    export.check_models,
    budget.fit,
    iteration.new_prompts,
    iteration.respond,
    iteration.judge,
    iteration.pair_responses,
    iteration.battle,
    iteration.rate,
    iteration.pair_judgments,
    promotion.pass_data_gates,
    training.train,
    export.export,
    measure.measure,
    promotion.pass_gates,
    promotion.promote,
)


def run(
    store: Store, settings: Settings, runtime: Runtime, watch: Watch, deadline: float = math.inf
) -> None:
    """Do whatever is missing of the seed stage and of `settings.iterations` iterations, those so large that they are done by
    `deadline` (on the clock of time.monotonic).

    Raises GateStop where a gate refuses a model; the run can be gone on with after it, as after a kill.
    """
    model_dir = hub.find_model_folder(settings.model.base)
    chat = ChatFormat.load(model_dir)
    if settings.judge.score == "expected" and any(
        len(chat.text_ids(digit)) != 1 for digit in "012345"
    ):
        raise ConfigError(
            f"{model_dir}: a digit is not one token here, so there is no expected score; use judge.score=mean"
        )
    newest = store.newest()
    left, whole = max(0, settings.iterations - (newest or 0)), newest is None
    base_written, llama = (store.folder / "base" / MANIFEST).exists(), read_config(model_dir)
    check_disk(
        store.folder, plan.disk(settings, llama, left, seed_stage=whole, base_written=base_written)
    )
    if store.fact("plan") is None:
        there = list_gpus()
        store.state("plan", plan.predicted(settings, llama, there[0].name if there else None))
    work = RunContext(store, settings, chat, model_dir, runtime, watch, deadline)
    try:
        for iteration in range(settings.iterations + 1):
            newest = store.newest()
            if newest is not None and newest >= iteration:
                continue
            for step in ITERATION if iteration else SEED_STAGE:
                step(work, iteration)
    finally:
        work.release_engine()


def finished(store: Store, settings: Settings) -> bool:
    """Whether nothing is left to do."""
    newest = store.newest()
    return newest is not None and newest >= settings.iterations
