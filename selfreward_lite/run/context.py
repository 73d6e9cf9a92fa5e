"""A run under way: its records, settings and roles, and its one engine between two trainings."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import queries, ranked
from selfreward_lite.data.records import (
    BASE,
    Judgment,
    ModelId,
    Outcome,
    Prompt,
    R,
    Response,
    TaskAnswer,
    derive_id,
    index_records,
)
from selfreward_lite.data.store import WHOLE, Store
from selfreward_lite.engine.api import Engine, Sampling
from selfreward_lite.engine.reference import REFERENCE
from selfreward_lite.method import judgments
from selfreward_lite.method.judgments import Scores
from selfreward_lite.method.roles import AskGenerator, Role
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.parity import CONVERSATIONS, make_conversation
from selfreward_lite.run import stages
from selfreward_lite.run.ask import Item, MayStart, Progress, Watch, always, run_stage
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system.errors import UserError

Made = Response | Judgment | TaskAnswer


def make_role(
    store: Store, settings: Settings, chat: ChatFormat, model: int, draw: Sampling, iteration: int
) -> Role:
    """A model of a run as a role whose records belong to `iteration`."""
    # llama.cpp refuses an adapter that does nothing, as an untrained M0 has.
    raw = model == BASE or (model == 0 and not settings.seed_stage.trains)
    return Role(
        model=ModelId(model).name,
        adapter=None if raw else str(store.model_dir(model) / "adapter.gguf"),
        chat=chat,
        sampling=draw,
        templates=settings.model.templates,
        id_namespace=store.id_namespace,
        seed=settings.seed,
        iteration=iteration,
        forces=settings.judge.close == "force",
    )


@dataclass
class RunReader:
    """Reads the records of a run by what they are for; writes nothing."""

    store: Store
    settings: Settings

    def ranked(self) -> ranked.Split:
        """The ranked prompts by what they are for, as the first step stored them."""
        return queries.load_split(self.store, self.settings)

    def held_out(self) -> list[Prompt]:
        """The prompts that every model answers for evaluation."""
        if own := self.store.records(Prompt, origin="held_out"):
            return own
        return [one.prompt for one in self.ranked().evaluation][: self.settings.evaluation.prompts]

    def held_out_texts(self) -> list[str]:
        """The texts of all prompts used for evaluation; no similar prompt may be trained on."""
        prompts = [*self.held_out(), *(one.prompt for one in self.ranked().evaluation)]
        return [prompt.text for prompt in prompts]

    def held_out_answers(self, model: int) -> dict[str, Response]:
        """The answers of a model to the held-out prompts, by prompt id."""
        given = {answer.prompt_id: answer for answer in self.store.made_by(Response, model)}
        return {one.id: given[one.id] for one in self.held_out() if one.id in given}

    def why_unanswered(self, model: ModelId) -> dict[str, str]:
        """Why held-out prompts have no answer of a model, by prompt id; see `steps/measure.py`."""
        is_raw = model.is_base or (model == 0 and not self.settings.seed_stage.trains)
        stage = "base_eval_responses" if is_raw else "eval_responses"
        return self.store.why_dropped(model.iteration, stage)

    def find_model(self, name: str) -> ModelId:
        """A model by its name; raises UserError where the run has no such model."""
        models = {model.name: model for model in map(ModelId, range(BASE, self.store.next_model()))}
        if name not in models:
            run = self.store.folder.name
            raise UserError(f"{run} has no model {name!r}; it has {', '.join(models)}")
        return models[name]

    def prompts_wanted(self, iteration: int) -> int:
        """How many prompts an iteration has: those set, or what its hours allow (see `budget`)."""
        return self.store.fact(f"prompts M{iteration}") or self.settings.prompts.count

    def prompts(self, iteration: int) -> list[Prompt]:
        """The prompts of an iteration."""
        found = self.store.records(Prompt, iteration=iteration)
        return found[: self.prompts_wanted(iteration)]  # a user's own file may hold more

    def responses(self, iteration: int) -> list[Response]:
        """The answers of M(t−1) to the prompts of iteration t."""
        return self.store.made_by(Response, iteration - 1, iteration)

    def judgments(self, iteration: int) -> list[Judgment]:
        """The judgments of M(t−1) in iteration t."""
        return self.store.made_by(Judgment, iteration - 1, iteration)

    def judged_scores(self, iteration: int) -> Scores | None:
        """The judge's scores of an iteration's responses; None where no judge was asked."""
        if not self.settings.judge.count:
            return None
        return judgments.score_responses(self.judgments(iteration), self.settings)

    def copy_as_m0(self, records: Iterable[Made]) -> list[Made]:
        """What the base made, as made by an M0 that is the base: it would say the same again."""
        namespace, copies = self.store.id_namespace, []
        for one in records:
            copy = replace(one, model=ModelId(0).name)
            copies.append(replace(copy, id=derive_id(namespace, copy)))
        return copies

    def score(self, drawn: Iterable[Judgment], count: int, first: int = 0) -> Scores:
        """Scores of responses from `count` judgments each, those numbered from `first`."""
        settings = self.settings.with_values("judge", count=count)
        counted = (one for one in drawn if first <= one.index < first + count)
        return judgments.score_responses(counted, settings)


@dataclass
class RunContext(RunReader):
    """A run under way, as every step receives it."""

    chat: ChatFormat
    model_dir: Path
    runtime: Runtime
    watch: Watch
    deadline: float = math.inf  # on the clock of time.monotonic
    _engine: Engine | None = None

    def engine(self) -> Engine:
        """The engine, opened on the first call."""
        if self._engine is None:
            if self.settings.engine.kind == "server":
                self.write_references()
            self._engine = self.runtime.open_engine(self.base_gguf, self.settings.engine)
        return self._engine

    def write_references(self) -> None:
        """Write the references that servers need and that are missing, of the base and all models.

        Those of models that were exported for the engine here are made from their adapters.
        """
        models = [self.store.model_dir(number) for number in range(self.store.next_model() + 1)]
        for folder in (self.base_gguf.parent, *models):
            self.write_reference(folder)

    def write_reference(self, folder: Path) -> None:
        """Write the reference of the base's folder or of a model's, unless there is one."""
        adapter = None if folder == self.base_gguf.parent else folder / "adapter"
        if (folder / REFERENCE).exists() or not (adapter or folder).exists():
            return
        lists = [self.chat.prompt_ids(make_conversation(texts)) for texts in CONVERSATIONS]
        self.runtime.write_reference(
            self.model_dir, adapter, folder / REFERENCE, lists, self.settings.model
        )

    def release_engine(self) -> None:
        """Close the engine, so that a trainer has all memory."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    @property
    def base_gguf(self) -> Path:
        """The base as llama.cpp reads it."""
        return self.store.folder / "base" / "base.gguf"

    def role(self, model: int, draw: Sampling, iteration: int) -> Role:
        """A model of the run as a role whose records belong to `iteration`."""
        return make_role(self.store, self.settings, self.chat, model, draw, iteration)

    def judge_role(self, model: int, iteration: int) -> Role:
        """A model of the run as judge."""
        return self.role(model, self.settings.judge.draw, iteration)

    def ask(
        self,
        iteration: int,
        stage: str,
        records: Iterable[R],
        start: Callable[[R], AskGenerator],
        may_start: MayStart = always,
    ) -> None:
        """Ask what `start` asks about every record, unless the stage is done.

        `may_start` as in `run_stage`.
        """
        if not self.store.is_done(iteration, stage):
            items = ((record.id, start(record)) for record in records)
            self.ask_round(iteration, stage, items, may_start)

    def ask_judge(
        self,
        iteration: int,
        stage: str,
        model: int,
        answers: Iterable[Response],
        count: int,
        first: int = 0,
        may_start: MayStart = always,
    ) -> None:
        """M<model> judges answers, `count` times each, numbered from `first`."""
        role = self.judge_role(model, iteration)
        prompts = index_records(self.store.records(Prompt))
        self.ask(
            iteration,
            stage,
            answers,
            lambda answer: judgments.ask_for_judgments(
                prompts[answer.prompt_id], [answer], role, count, first
            ),
            may_start,
        )

    def ask_round(
        self, iteration: int, stage: str, items: Iterable[Item], may_start: MayStart = always
    ) -> None:
        """Ask for missing items, also of a stage that is done: it may grow in rounds."""
        self._check_stage(iteration, stage)
        run_stage(self.store, self.engine(), iteration, stage, items, self.watch, may_start)

    def once(self, iteration: int, stage: str, work: Callable[[], Outcome]) -> None:
        """Do a stage that is one piece, unless it is done, and commit its outcome."""
        self._check_stage(iteration, stage)
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
        seconds = time.monotonic() - started
        booked = self.store.seconds(iteration, stage) - before  # a training books as it goes
        self.store.spend(iteration, stage, seconds - booked)
        self.store.end_stage(iteration, stage)
        self.watch(replace(progress, done=1, seconds=seconds, drops=outcome.drops))

    def _check_stage(self, iteration: int, name: str) -> None:
        """Raise LookupError for a stage not in the table: plan and budget would not count it."""
        if name not in stages.list_stages(self.settings, iteration):
            raise LookupError(f"stage {name!r} of iteration {iteration} is not in run/stages.py")
