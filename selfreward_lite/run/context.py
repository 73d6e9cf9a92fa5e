"""A run under way: its records, its settings, who speaks in it, and the one engine that is open between two trainings.

Knows: how a step is done once and only once, where a model's files lie. Does not know: steps, stages, or their order.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selfreward_lite.config.settings import Draw, Settings
from selfreward_lite.data import ranked
from selfreward_lite.data.records import BASE, Judgment, ModelId, Outcome, Prompt, Record, Response
from selfreward_lite.data.store import WHOLE, Store
from selfreward_lite.engine.api import Engine, Sampling
from selfreward_lite.method import judgments
from selfreward_lite.method.roles import AskGenerator, Role
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run.ask import Item, Progress, Watch, run_stage
from selfreward_lite.run.runtime import Runtime

R = TypeVar("R", bound=Record)


@dataclass
class RunContext:
    """A run under way: its records, its settings, and the one engine that is open between two trainings."""

    store: Store
    settings: Settings
    chat: ChatFormat
    model_dir: Path
    runtime: Runtime
    watch: Watch
    deadline: float = math.inf  # on the clock of time.monotonic
    _engine: Engine | None = field(default=None, repr=False)

    def engine(self) -> Engine:
        """Return the engine, opened if need be."""
        if self._engine is None:
            self._engine = self.runtime.open_engine(self.base_gguf, self.settings.engine)
        return self._engine

    def release_engine(self) -> None:
        """Close the engine, so that a trainer has the memory to itself."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def base_gguf(self) -> Path:
        """The base as llama.cpp reads it."""
        return self.store.folder / "base" / "base.gguf"

    def role(self, model: int, draw: Draw, iteration: int) -> Role:
        """Return M<model> (or the base) as a speaker whose records belong to `iteration`."""
        bare = model == BASE or (
            model == 0 and not self.settings.seed_stage.trains
        )  # an adapter that does nothing is refused
        return Role(
            model="base" if model == BASE else ModelId(model).name,
            adapter=None if bare else str(self.store.model_dir(model) / "adapter.gguf"),
            chat=self.chat,
            sampling=Sampling(draw.temperature, draw.top_p, draw.max_tokens, draw.top_k),
            templates=self.settings.model.templates,
            id_namespace=self.store.id_namespace,
            seed=self.settings.seed,
            iteration=iteration,
        )

    def ask(
        self,
        iteration: int,
        stage: str,
        items: Iterable[Item],
        go_on: Callable[[float], bool] = lambda share: True,
    ) -> None:
        """Do an ask-stage, unless it is done; see `run_stage` for `go_on`."""
        if not self.store.is_done(iteration, stage):
            run_stage(self.store, self.engine(), (iteration, stage), items, self.watch, go_on)

    def prompts_wanted(self, iteration: int) -> int:
        """Return how many prompts an iteration is to have: as many as are set, or as few as its hours pay for (`budget`)."""
        return self.store.fact(f"prompts M{iteration}") or self.settings.prompts.count

    def once(self, iteration: int, stage: str, work: Callable[[], Outcome]) -> None:
        """Do a step that is one piece, unless it is done, and commit what it comes to."""
        if self.store.is_done(iteration, stage):
            return
        self.store.begin_stage(iteration, stage, 1)
        if self.store.done_items(iteration, stage):  # killed between its commit and its end
            self.store.end_stage(iteration, stage)
            return
        progress, before = Progress(iteration, stage, 1), self.store.seconds(iteration, stage)
        self.watch(progress)
        started = time.monotonic()
        outcome = work()
        self.store.commit(iteration, stage, WHOLE, outcome)
        progress.done, progress.seconds = 1, time.monotonic() - started
        progress.drops.update(outcome.dropped())
        told = (
            self.store.seconds(iteration, stage) - before
        )  # a training says on the way what it spends
        self.store.spend(iteration, stage, progress.seconds - told)
        self.store.end_stage(iteration, stage)
        self.watch(progress)

    def log_training(self, iteration: int, said: Mapping[str, Any], seconds: float) -> None:
        """Keep what a trainer says of a step (`step` of `steps`, `values`), and the seconds since it last did."""
        self.store.log_training(iteration, said["step"], said["values"])
        self.store.measure(iteration, training_steps=said["steps"])
        self.store.spend(iteration, "training", seconds)

    def ranked(self) -> ranked.Split:
        """Return the ranked prompts by what they are for, as the first step stored them."""
        by_prompt = grouped(
            self.store.records(Response, model=ranked.HUMAN), lambda response: response.prompt_id
        )
        found = [
            ranked.RankedPrompt(prompt, tuple(by_prompt[prompt.id]))
            for prompt in self.store.records(Prompt, origin="ranked")
        ]
        return ranked.split_ranked(found, self.settings)

    def held_out(self) -> list[Prompt]:
        """Return the prompts that every model answers for evaluation."""
        own = self.store.records(Prompt, origin="held_out")
        return (
            own
            or [one.prompt for one in self.ranked().evaluation][: self.settings.evaluation.prompts]
        )


def grouped(records: Iterable[R], key: Callable[[R], str]) -> dict[str, list[R]]:
    """Group by `key`; in each group, the order of sample numbers, whatever order they were committed in."""
    groups: dict[str, list[R]] = defaultdict(list)
    for record in sorted(records, key=lambda one: getattr(one, "index", 0)):
        groups[key(record)].append(record)
    return dict(groups)


def bind(ask: Callable[..., AskGenerator], *arguments: object) -> Callable[[], AskGenerator]:
    return lambda: ask(*arguments)


# -- shared by the steps -------------------------------------------------------------------------------------------------


def judging(
    ranked: Sequence[ranked.RankedPrompt], role: Role, count: int
) -> list[tuple[str, Callable[[], AskGenerator]]]:
    return [
        (response.id, bind(judgments.ask_for_judgments, one.prompt, response, role, count))
        for one in ranked
        for response in one.responses
    ]


def prompts_of(run: RunContext, iteration: int) -> list[Prompt]:
    """Return the prompts of an iteration; iteration 0 is that of the ranked and held-out ones."""
    found = run.store.records(Prompt, iteration=iteration)
    return found[: run.prompts_wanted(iteration)]  # of the user's own there may be more


def _secret(run: RunContext) -> list[str]:
    """The texts of all prompts that measure: none may be trained on, nor anything like it."""
    return [prompt.text for prompt in run.held_out()] + [
        one.prompt.text for one in run.ranked().evaluation
    ]


def responses_of(run: RunContext, iteration: int) -> list[Response]:
    """Return what M(t−1) answered to the prompts of iteration t."""
    return run.store.records(Response, iteration=iteration, model=ModelId(iteration - 1).name)


def judgments_of(run: RunContext, iteration: int) -> Mapping[str, list[Judgment]]:
    """Return, by response, what M(t−1) judged of them."""
    drawn = run.store.records(Judgment, iteration=iteration, model=ModelId(iteration - 1).name)
    return grouped(drawn, lambda judgment: judgment.response_id)
