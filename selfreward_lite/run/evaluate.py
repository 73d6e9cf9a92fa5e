"""The models of a run, asked again after it: two against each other, one as judge of ranked data, one to answer prompts.

    RUN/evaluation/<settings>/run.sqlite     what was asked for this, apart from the run, which stays as it was, and apart from
                                             what was asked with other settings; asked again, only what is missing is

Knows: whose answers and judgments are needed. Does not know: how a metric is computed (`pairwise`, `judge_quality`), arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from selfreward_lite.config.settings import Settings, parse
from selfreward_lite.data import hub
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import (
    BASE,
    Comparison,
    Judgment,
    ModelId,
    Prompt,
    Response,
    make_id,
)
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Engine
from selfreward_lite.method import comparisons, judgments, metrics, responses
from selfreward_lite.method.metrics import JudgeAgreement, PairResult, judge_agreement
from selfreward_lite.method.roles import Role
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.run.ask import Watch, run_stage
from selfreward_lite.run.context import RunContext, bind, grouped, judging
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.system.errors import UserError

EXACT = "exact"  # the judge that is no model: the exact scorer of the tiny world


@dataclass
class Evaluation:
    """A run that is only read, and the file for what is asked of its models now."""

    run: RunContext
    notes: Store

    def number(self, name: str) -> int:
        """Return the number of a model by its name: base, M0, M1, …; raises UserError where the run has none of that name."""
        return _number(self.run.store, name)

    def against(self, mine: str, theirs: str, judge: str) -> list[PairResult]:
        """Hold two models' answers to the held-out prompts against each other; an answer that never came loses to one that did.

        `theirs` may be a model of another run of the folder, as other/M3: prompts that both runs held out count then. `judge` is
        EXACT, a model of this run, or the path of a GGUF file. Raises UserError where one of them is not there.
        """
        prompts, rivals = self._rivals(theirs)
        answers = (_answers(self.run, mine), rivals)
        if judge == EXACT:
            return _exactly(prompts, *answers)
        both = [one for one in prompts if all(one.id in known for known in answers)]
        iteration = max(0, self.number(mine))
        with self._judge(judge, iteration) as (engine, role):
            # With a digest: another run of the same name may come to hold other answers.
            compared = _digest([known[one.id].id for known in answers for one in both])
            stage = f"{_of_base(self.number(mine))}against {theirs} by {role.model} {compared}"
            items = [
                (
                    one.id,
                    bind(
                        comparisons.ask_for_comparison,
                        one,
                        answers[0][one.id],
                        answers[1][one.id],
                        role,
                    ),
                )
                for one in both
            ]
            run_stage(self.notes, engine, (iteration, stage), items, self.run.watch)
            name = role.model
        ids = {(answers[0][one.id].id, answers[1][one.id].id) for one in both}
        said = {
            one.prompt_id: one
            for one in self.notes.records(Comparison, iteration=iteration, model=name)
            if (one.mine_id, one.theirs_id) in ids
        }
        return [
            _met(*(known.get(one.id) for known in answers), said.get(one.id)) for one in prompts
        ]

    def judged(self, model: str, ranked: Sequence[RankedPrompt], count: int) -> JudgeAgreement:
        """Have a model judge ranked answers, `count` times each, and return how it agrees with the ranks."""
        number = self.number(model)
        role = self.run.role(number, self.run.settings.judge.draw, max(0, number))
        stage = (
            f"{_of_base(number)}judges {_digest([one.prompt.id for one in ranked])}, {count} times"
        )
        run_stage(
            self.notes,
            self.run.engine(),
            (role.iteration, stage),
            judging(ranked, role, count),
            self.run.watch,
        )
        drawn = self.notes.records(Judgment, iteration=role.iteration, model=model)
        settings = self.run.settings.judge.model_copy(update={"count": count})
        by_response = grouped(
            (one for one in drawn if one.index < count), lambda one: one.response_id
        )
        return judge_agreement(
            ranked,
            {
                name: judgments.score_response(found, settings)
                for name, found in by_response.items()
            },
        )

    def answers(self, model: str, texts: Sequence[str]) -> list[Response]:
        """Have a model answer prompts, once each; returns its answers in their order. Raises UserError where one never came."""
        number, digest = self.number(model), _digest(texts)
        role = self.run.role(number, self.run.settings.evaluation.draw, max(0, number))
        prompts = [
            Prompt(make_id(digest, Prompt, 0, "imported", index), 0, "imported", index, text)
            for index, text in enumerate(texts)
        ]
        items = [(one.id, bind(responses.ask_for_responses, one, role, 1)) for one in prompts]
        run_stage(
            self.notes,
            self.run.engine(),
            (role.iteration, f"{_of_base(number)}answers {digest}"),
            items,
            self.run.watch,
        )
        found = {
            one.prompt_id: one
            for one in self.notes.records(Response, iteration=role.iteration, model=model)
        }
        if missing := [one.text for one in prompts if one.id not in found]:
            raise UserError(
                f"{len(missing)} prompts were not answered, the first of them {missing[0][:60]!r}: they do not fit the context; "
                "give a larger one with --set engine.context=…"
            )
        return [found[one.id] for one in prompts]

    def held_out_answers(self, model: str) -> list[tuple[Prompt, Response]]:
        """Return the held-out prompts that a model answered in the run, with its answers."""
        given = _answers(self.run, model)
        return [(one, given[one.id]) for one in self.run.held_out() if one.id in given]

    def _rivals(self, name: str) -> tuple[list[Prompt], dict[str, Response]]:
        """A model's answers by prompt, and the prompts to compare on: of another run's model those that both runs held out."""
        folder, _, model = name.rpartition("/")
        if not folder:
            return self.run.held_out(), _answers(self.run, model)
        with Store.read(self.run.store.folder.parent / folder) as store:
            begun = store.fact("settings")
            if begun is None:
                raise UserError(
                    f"{folder} has only just begun; compare with it when it has a model"
                )
            other = RunContext(
                store,
                parse(begun),
                self.run.chat,
                self.run.model_dir,
                self.run.runtime,
                self.run.watch,
            )
            given, ids = _answers(other, model), {one.text: one.id for one in other.held_out()}
        prompts = [one for one in self.run.held_out() if one.text in ids]
        if not prompts:
            raise UserError(
                f"{folder} held out none of the prompts that {self.run.store.folder.name} did; compare runs of the same data"
            )
        there = {one.id: given[ids[one.text]] for one in prompts if ids[one.text] in given}
        # Two runs may have the same ids, as copies that were gone on with have.
        return prompts, {
            name: replace(one, id=_digest([one.id, one.text]), prompt_id=name)
            for name, one in there.items()
        }

    @contextmanager
    def _judge(self, judge: str, iteration: int) -> Iterator[tuple[Engine, Role]]:
        """The engine and the role of a judge: a model of the run, or another in a GGUF file."""
        draw, path = self.run.settings.judge.draw, Path(judge)
        if path.suffix != ".gguf":
            yield self.run.engine(), self.run.role(self.number(judge), draw, iteration)
            return
        if not path.exists():
            raise UserError(
                f"{path} is not there; name a GGUF file, or a model of the run, as --judge"
            )
        own = self.run.role(BASE, draw, iteration)
        name = f"{path.name} {_digest([str(path.absolute()), str(path.stat().st_size), str(path.stat().st_mtime_ns)])}"
        role = replace(own, model=name, adapter=None, chat=ChatFormat.of_gguf(path))
        self.run.release_engine()
        engine = self.run.runtime.open_engine(path, self.run.settings.engine)
        try:
            yield engine, role
        finally:
            engine.close()


@contextmanager
def examined(
    store: Store, settings: Settings, runtime: Runtime, watch: Watch
) -> Iterator[Evaluation]:
    """Open a run's models for questions. `settings` are the run's, perhaps with other ones of evaluation and engine laid over."""
    model_dir = hub.find_model_folder(settings.model.base)
    told = (settings.evaluation, settings.judge, settings.model.templates, settings.engine.context)
    with Store.write(store.folder / "evaluation" / _digest([repr(one) for one in told])) as notes:
        run = RunContext(store, settings, ChatFormat.load(model_dir), model_dir, runtime, watch)
        notes.state("run", store.id_namespace)
        try:
            yield Evaluation(run, notes)
        finally:
            run.release_engine()


def _number(store: Store, name: str) -> int:
    newest = store.newest()
    there = [
        ModelId(number).name for number in range(BASE, (BASE if newest is None else newest) + 1)
    ]
    if name not in there:
        raise UserError(f"{store.folder.name} has no model {name!r}; it has {', '.join(there)}")
    return there.index(name) + BASE


def _answers(run: RunContext, model: str) -> dict[str, Response]:
    """A model's answers to the prompts that its run held out, by prompt."""
    prompts = {one.id for one in run.held_out()}
    given = run.store.records(Response, iteration=max(0, _number(run.store, model)), model=model)
    return {one.prompt_id: one for one in given if one.prompt_id in prompts}


def _exactly(
    prompts: Sequence[Prompt], mine: dict[str, Response], theirs: dict[str, Response]
) -> list[PairResult]:
    scores = [
        metrics.score_exactly(prompts, [known[one.id] for one in prompts if one.id in known])
        for known in (mine, theirs)
    ]
    if scores[0] is None or scores[1] is None:
        raise UserError(
            "only answers to tasks of the tiny world can be scored exactly; name a model as --judge, as M0"
        )
    a, b = scores[0].score, scores[1].score
    return [
        PairResult(
            metrics.compare_scores(a[one.id], b[one.id]),
            _length(mine.get(one.id)),
            _length(theirs.get(one.id)),
        )
        for one in prompts
    ]


def _met(mine: Response | None, theirs: Response | None, said: Comparison | None) -> PairResult:
    result = (
        metrics.compare_scores(mine is not None, theirs is not None)
        if said is None
        else said.result
    )
    orders = (
        None
        if said is None
        else comparisons.read_verdicts(said.mine_first_text, said.theirs_first_text)
    )
    return PairResult(result, _length(mine), _length(theirs), orders)


def _of_base(number: int) -> str:
    """What tells the base's stages from M0's: both are of iteration 0."""
    return "base " if number == BASE else ""


def _length(answer: Response | None) -> int:
    return 0 if answer is None else len(answer.text)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()
