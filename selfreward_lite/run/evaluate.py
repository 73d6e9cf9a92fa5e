"""Models of a run asked again: compared, judging ranked data, answering prompts or task sets.

    RUN/evaluation/<settings>/run.sqlite     answers and judgments, one for each settings

The run itself is only read. Asked again, only what is missing is generated.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from selfreward_lite.config.settings import Settings
from selfreward_lite.data import hub, ranked, votes
from selfreward_lite.data.download import Show
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import (
    BASE,
    Comparison,
    Judgment,
    ModelId,
    Prompt,
    R,
    Response,
    TaskAnswer,
)
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Engine
from selfreward_lite.method import comparisons, judgments, metrics, responses
from selfreward_lite.method.metrics import JudgeAgreement, PairResult, judge_agreement
from selfreward_lite.method.roles import Role
from selfreward_lite.method.task_answers import ask_for_task_answers
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_folder import find_base, load_chat
from selfreward_lite.run.ask import Item, Watch, run_stage
from selfreward_lite.run.context import RunContext, RunReader
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.run.steps.tasks import AskedTasks
from selfreward_lite.system.errors import UserError

EXACT = "exact"  # the judge that is no model: an exact scorer
Answers = dict[str, Response]  # by prompt id
# By prompt id: 1, 0 or ½ as in a `PairResult`, and its `orders`.
Results = dict[str, tuple[float, tuple[str | None, str | None] | None]]


@dataclass
class Evaluation:
    """A run that is only read, and the store for what its models are asked now."""

    run: RunContext
    notes: Store

    def compare_answers(self, model: str, against: str, judge: str) -> list[PairResult]:
        """Compare two models' answers to the held-out prompts; a missing answer loses.

        `against` may be a model of another run of the folder, as other/M3: then prompts count that
        both runs held out. `judge` is EXACT, a model of this run, or the path of a GGUF file.
        Raises UserError where one of them does not exist.
        """
        prompts, theirs = self._rival_answers(against)
        number = self.run.find_model(model)
        mine = self.run.held_out_answers(number)
        if judge == EXACT:
            results = _compare_exactly(prompts, mine, theirs)
        else:
            both = [one for one in prompts if one.id in mine and one.id in theirs]
            # With a digest: another run of the same name may hold other answers later.
            digest = _digest([known[one.id].id for known in (mine, theirs) for one in both])
            with self._judge(judge, number.iteration) as (engine, role):
                stage = f"against {against} by {role.model} {digest}"
                ask = comparisons.ask_for_comparison
                items = [(one.id, ask(one, mine[one.id], theirs[one.id], role)) for one in both]
                compared = self._ask(Comparison, engine, role, number, stage, items)
            ids = {(mine[one.id].id, theirs[one.id].id) for one in both}
            results = {
                one.prompt_id: (one.result, comparisons.read_verdicts(one))
                for one in compared
                if (one.mine_id, one.theirs_id) in ids
            }
        pairs = []
        for one in prompts:
            own, other = mine.get(one.id), theirs.get(one.id)
            missing = metrics.compare_scores(own is not None, other is not None), None
            result, orders = results.get(one.id, missing)
            mine_length = len(own.text) if own else 0
            pairs.append(PairResult(result, mine_length, len(other.text) if other else 0, orders))
        return pairs

    def measure_judge(
        self, model: str, ranked: Sequence[RankedPrompt], count: int
    ) -> tuple[JudgeAgreement, list[Judgment]]:
        """How a model, judging ranked answers `count` times each, agrees with the ranks.

        Also returns its judgments of them.
        """
        number = self.run.find_model(model)
        role = self.run.judge_role(number, number.iteration)
        items = [
            (answer.id, judgments.ask_for_judgments(one.prompt, [answer], role, count))
            for one in ranked
            for answer in one.responses
        ]
        stage = f"judges {_digest([one.prompt.id for one in ranked])}, {count} times"
        drawn = self._ask(Judgment, self.run.engine(), role, number, stage, items)
        ids = {answer.id for one in ranked for answer in one.responses}
        drawn = [one for one in drawn if one.response_id in ids and one.index < count]
        return judge_agreement(ranked, self.run.score(drawn, count)), drawn

    def answer_prompts(self, model: str, texts: Sequence[str]) -> list[Response]:
        """A model's answers to prompts, in order; raises UserError where one is missing."""
        number, digest = self.run.find_model(model), _digest(texts)
        role = self.run.role(number, self.run.settings.evaluation.draw, number.iteration)
        prompts = [
            Prompt.make(digest, 0, "imported", index, text) for index, text in enumerate(texts)
        ]
        items = [(one.id, responses.ask_for_responses(one, role, 1)) for one in prompts]
        given = self._ask(Response, self.run.engine(), role, number, f"answers {digest}", items)
        found = {one.prompt_id: one for one in given}
        if missing := [one.text for one in prompts if one.id not in found]:
            raise UserError(
                f"{len(missing)} prompts were not answered, the first of them {missing[0][:60]!r}: "
                "they do not fit the context; give a larger one with --set engine.context=…"
            )
        return [found[one.id] for one in prompts]

    def answer_tasks(self, models: Sequence[str], asked: AskedTasks) -> list[TaskAnswer]:
        """The answers of models to task sets, each scored by a program."""
        draw = self.run.settings.evaluation.draw
        asked.keep(self.notes, draw)
        wanted = {(task.set, task.key) for task in asked.tasks}
        found: list[TaskAnswer] = []
        for model in models:
            number = self.run.find_model(model)
            role = self.run.role(number, draw, number.iteration)
            for name in asked.left_out:  # every set, also one with nothing left out
                items = [
                    (task.key, ask_for_task_answers(task, role, asked.samples))
                    for task in asked.tasks
                    if task.set == name
                ]
                stage = f"{name}, {asked.samples} answers each"
                self._ask(TaskAnswer, self.run.engine(), role, number, stage, items)
            made = self.notes.made_by(TaskAnswer, number)
            found += [one for one in made if (one.task_set, one.task) in wanted]
        return [one for one in found if one.index < asked.samples]

    def export_answers(
        self, models: Sequence[str], texts: Sequence[str] | None
    ) -> dict[str, list[dict[str, str]]]:
        """Each model's answers to `texts`, or to the held-out prompts that all of them answered.

        As AlpacaEval reads them: https://github.com/tatsu-lab/alpaca_eval, "Evaluating a model".
        """
        answered: dict[str, list[tuple[str, Response]]] = {}
        for model in models:
            if texts is None:
                given = self.run.held_out_answers(self.run.find_model(model))
                held_out = self.run.held_out()
                answered[model] = [(one.text, given[one.id]) for one in held_out if one.id in given]
            else:
                answered[model] = [*zip(texts, self.answer_prompts(model, texts), strict=True)]
        common = set.intersection(*({text for text, _ in rows} for rows in answered.values()))
        run = self.run.store.folder.name
        return {
            model: [
                {"instruction": text, "output": answer.text, "generator": f"{run}-{model}"}
                for text, answer in rows
                if text in common
            ]
            for model, rows in answered.items()
        }

    def load_ranked(
        self, source: str | None, show: Show
    ) -> tuple[list[RankedPrompt], dict[str, int]]:
        """Ranked prompts that M0 was not trained on, and what was left out and why.

        `source` is ranked data as in seed_stage.ranked, "votes" of the app, or None: the run's own
        evaluation prompts.
        """
        own, store = self.run.ranked(), self.run.store
        if source is None:
            return own.evaluation, {}
        if source == "votes":
            rows, _ = votes.build_ranked_rows(votes.load_votes(store.folder))
        else:
            place = str(hub.fetch_dataset(source, show))
            settings = self.run.settings.with_values("seed_stage", ranked=place)
            rows, _ = ranked.load_ranked_rows(settings)
        content = json.dumps(rows, sort_keys=True, default=str).encode()
        digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        found, outcome = ranked.build_ranked_prompts(rows, f"{store.id_namespace}, {digest}")
        seen = {one.prompt.text for one in (*own.eft, *own.ift)}
        kept = [one for one in found if one.prompt.text not in seen]
        left_out = dict(outcome.drops)
        if len(kept) < len(found):
            left_out["prompts that M0 was trained on, or could have been"] = len(found) - len(kept)
        return kept, left_out

    def _ask(
        self,
        kind: type[R],
        engine: Engine,
        role: Role,
        model: ModelId,
        stage: str,
        items: Iterable[Item],
    ) -> list[R]:
        """Do an asking stage in the notes; returns all notes of a kind by the role's model."""
        if model.is_base:  # its stages must have other names than those of M0
            stage = f"base {stage}"
        run_stage(self.notes, engine, model.iteration, stage, items, self.run.watch)
        return self.notes.records(kind, iteration=model.iteration, model=role.model)

    def _rival_answers(self, name: str) -> tuple[list[Prompt], Answers]:
        """The prompts that both runs held out, and a model's answers."""
        folder, _, model = name.rpartition("/")
        held_out = self.run.held_out()
        if not folder:
            return held_out, self.run.held_out_answers(self.run.find_model(model))
        with Store.read(self.run.store.folder.parent / folder) as store:
            other = RunReader(store, store.settings())
            given = other.held_out_answers(other.find_model(model))
            ids = {one.text: one.id for one in other.held_out()}
        prompts = [one for one in held_out if one.text in ids]
        if not prompts:
            raise UserError(
                f"{folder} held out none of the prompts that {self.run.store.folder.name} did; "
                "compare runs of the same data"
            )
        # Two runs may have the same ids, as resumed copies have.
        return prompts, {
            one.id: replace(answer, id=_digest([answer.id, answer.text]), prompt_id=one.id)
            for one in prompts
            if (answer := given.get(ids[one.text]))
        }

    @contextmanager
    def _judge(self, judge: str, iteration: int) -> Iterator[tuple[Engine, Role]]:
        """The engine and the role of a judge: a model of the run, or another in a GGUF file."""
        path = Path(judge)
        if path.suffix != ".gguf":
            yield self.run.engine(), self.run.judge_role(self.run.find_model(judge), iteration)
            return
        if not path.exists():
            raise UserError(
                f"{path} does not exist; name a GGUF file, or a model of the run, as --judge"
            )
        stat = path.stat()
        digest = _digest([str(path.absolute()), str(stat.st_size), str(stat.st_mtime_ns)])
        own = self.run.judge_role(BASE, iteration)
        role = replace(own, model=f"{path.name} {digest}", chat=load_chat(path))
        self.run.release_engine()
        engine = self.run.runtime.open_engine(path, self.run.settings.engine)
        try:
            yield engine, role
        finally:
            engine.close()


@contextmanager
def open_evaluation(
    store: Store, settings: Settings, runtime: Runtime, watch: Watch
) -> Iterator[Evaluation]:
    """A run's models, open for questions; `settings` may differ from the run's own."""
    model_dir = find_base(settings.model.base)
    asked = (settings.evaluation, settings.judge, settings.model.templates, settings.engine.context)
    with Store.write(store.folder / "evaluation" / _digest([repr(one) for one in asked])) as notes:
        run = RunContext(store, settings, ChatFormat.load(model_dir), model_dir, runtime, watch)
        notes.state("run", store.id_namespace)
        try:
            yield Evaluation(run, notes)
        finally:
            run.release_engine()


def _compare_exactly(prompts: Sequence[Prompt], mine: Answers, theirs: Answers) -> Results:
    ours, others = (metrics.score_exactly(prompts, [*known.values()]) for known in (mine, theirs))
    if ours is None or others is None:
        raise UserError(
            "only answers to tasks of the tiny world and to checkable requests can be scored "
            "exactly; name a model as --judge, as M0"
        )
    return {
        name: (metrics.compare_scores(score, others.score[name]), None)
        for name, score in ours.score.items()
    }


def _digest(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()
