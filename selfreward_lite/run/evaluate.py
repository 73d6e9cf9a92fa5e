"""Models of a run asked again: compared, judging ranked data, answering prompts or task sets.

    RUN/evaluation/<settings>/run.sqlite     answers and judgments, one for each settings

The run itself is only read. Asked again, only what is missing is generated.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from selfreward_lite.config.settings import Settings
from selfreward_lite.data.judge_sets import JudgeSet
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
from selfreward_lite.data.rows import describe_counts
from selfreward_lite.data.store import Store
from selfreward_lite.engine.api import Engine
from selfreward_lite.method import comparisons, metrics, responses
from selfreward_lite.method.metrics import PairResult
from selfreward_lite.method.passport import (
    Passport,
    Way,
    build_passport,
    read_comparisons,
    read_scores,
)
from selfreward_lite.method.roles import NO_TEXT_REASONS, Role
from selfreward_lite.method.task_answers import ask_for_task_answers
from selfreward_lite.models.chat_format import ChatFormat
from selfreward_lite.models.gguf_folder import find_base, load_chat
from selfreward_lite.models.hf_folder import find_longest, read_config
from selfreward_lite.run import judge_sets
from selfreward_lite.run.ask import Item, Watch, run_stage
from selfreward_lite.run.context import RunContext, RunReader
from selfreward_lite.run.runtime import Runtime
from selfreward_lite.run.steps.tasks import AskedTasks
from selfreward_lite.system.errors import UserError
from selfreward_lite.system.files import Json

NO_REASON = "not answered"
EXACT = "exact"  # the judge that is no model: an exact scorer
Answers = dict[str, Response]  # by prompt id
# By prompt id: 1, 0 or ½ as in a `PairResult`, and its `orders`.
Results = dict[str, tuple[float, tuple[str | None, str | None] | None]]


@dataclass(frozen=True)
class Answered:
    """A model's answer to a prompt: its text, or why there is none.

    An answer that ended at once has the text "".
    """

    prompt: str
    text: str = ""
    missing: str | None = None


@dataclass(frozen=True)
class Export:
    """Answers as AlpacaEval reads them, by model; how many are empty, and prompts left out."""

    rows: dict[str, list[dict[str, str]]]
    empty: dict[str, int]
    left_out: dict[str, int]


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

    def score_answers(self, model: str, asked: JudgeSet, whole: str, count: int) -> list[Judgment]:
        """A model's judgments of a set's answers, `count` times each.

        `whole` is the digest of the set without a limit: what was asked with a lower one is kept.
        """
        number = self.run.find_model(model)
        role = self.run.judge_role(number, number.iteration)
        items = judge_sets.list_judgments(asked, role, count)
        stage = f"judges {whole}, {count} times"
        drawn = self._ask(Judgment, self.run.engine(), role, number, stage, items)
        ids = {name for name, _ in items}
        return [one for one in drawn if one.response_id in ids and one.index < count]

    def compare_pairs(self, model: str, asked: JudgeSet, whole: str) -> list[Comparison]:
        """A model's comparisons of a set's better with its worse answers, in both orders.

        `whole` as in `score_answers`.
        """
        number = self.run.find_model(model)
        role = self.run.judge_role(number, number.iteration)
        items = judge_sets.list_comparisons(asked, role)
        stage = f"compares {whole}"
        return self._ask(Comparison, self.run.engine(), role, number, stage, items)

    def judge_pairs(
        self, models: Sequence[str], asked: JudgeSet, way: Way, count: int, whole: str
    ) -> Passport:
        """The passport of models as judges of a set, asked in one way."""
        judged = {}
        for model in models:
            if way == "scores":
                drawn = self.score_answers(model, asked, whole, count)
                judged[model] = read_scores(asked, self.run.score(drawn, count))
            else:
                compared = self.compare_pairs(model, asked, whole)
                judged[model] = read_comparisons(asked, compared)
        return build_passport(way, judged)

    def describe_judge(self, asked: JudgeSet, whole: JudgeSet, way: Way, count: int) -> Json:
        """How a passport was asked for, as it is kept with it; `whole` is the set without limit."""
        return judge_sets.describe(self.run.settings, asked, whole, way, count)

    def keep_passports(self, documents: Sequence[Json]) -> None:
        """Keep passports beside the run, each in place of an earlier one of its set and way."""
        judge_sets.keep_passports(self.notes, documents)

    def answer_prompts(self, model: str, texts: Sequence[str]) -> list[Answered]:
        """A model's answers to prompts, in order."""
        number, digest = self.run.find_model(model), _digest(texts)
        role = self.run.role(number, self.run.settings.evaluation.draw, number.iteration)
        prompts = [
            Prompt.make(digest, 0, "imported", index, text) for index, text in enumerate(texts)
        ]
        items = [(one.id, responses.ask_for_responses(one, role, 1)) for one in prompts]
        stage = f"answers {digest}"
        given = self._ask(Response, self.run.engine(), role, number, stage, items)
        reasons = self.notes.why_dropped(number.iteration, self._name_stage(number, stage))
        return _answer_all(prompts, {one.prompt_id: one for one in given}, reasons)

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

    def export_answers(self, models: Sequence[str], texts: Sequence[str] | None) -> Export:
        """Each model's answers to `texts`, or to the held-out prompts.

        As AlpacaEval reads them: https://github.com/tatsu-lab/alpaca_eval, "Evaluating a model". It
        compares the prompts that are in both files, so a model would gain if its empty answers were
        left out: each is an empty output. Left out are prompts that a model could not be asked.
        Raises UserError where no prompt is left.
        """
        answered = {
            model: self._held_out(model) if texts is None else self.answer_prompts(model, texts)
            for model in models
        }
        reasons: dict[str, str] = {}  # by prompt
        for given in answered.values():
            reasons |= {one.prompt: one.missing for one in given if one.missing is not None}
        left_out = Counter(reasons.values())
        if all(one.prompt in reasons for one in answered[models[0]]):
            raise UserError(
                f"no answer to write: {describe_counts(left_out)}; {self._advise(left_out)}"
            )
        run = self.run.store.folder.name
        rows = {
            model: [
                {"instruction": one.prompt, "output": one.text, "generator": f"{run}-{model}"}
                for one in given
                if one.prompt not in reasons
            ]
            for model, given in answered.items()
        }
        empty = {model: sum(not row["output"] for row in given) for model, given in rows.items()}
        return Export(rows, empty, dict(left_out))

    def _held_out(self, model: str) -> list[Answered]:
        """What a model answered to the held-out prompts."""
        number = self.run.find_model(model)
        given, reasons = self.run.held_out_answers(number), self.run.why_unanswered(number)
        return _answer_all(self.run.held_out(), given, reasons)

    def _advise(self, left_out: Collection[str]) -> str:
        """What to do about prompts without an answer, by the reasons."""
        engine, draw = self.run.settings.engine, self.run.settings.evaluation.draw
        if NO_TEXT_REASONS["refused"] in left_out:
            advice = f"shorten the prompts, or lower evaluation.draw.max_tokens ({draw.max_tokens})"
            if engine.kind == "server":
                return advice
            limit = find_longest(engine, read_config(self.run.model_dir))
            return f"a sequence has {limit:,} tokens, prompt and answer: {advice}"
        return "resume the run with `run`, or choose another --model"

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
        named = self._name_stage(model, stage)
        run_stage(self.notes, engine, model.iteration, named, items, self.run.watch)
        return self.notes.records(kind, iteration=model.iteration, model=role.model)

    def _name_stage(self, model: ModelId, stage: str) -> str:
        """The name of a stage in the notes: the base's differ from those of M0."""
        return f"base {stage}" if model.is_base else stage

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
        if self.run.settings.engine.kind == "server":
            raise UserError(
                f"{path} is on no server of this run; ask it here, with --set engine.kind=llama"
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


def _answer_all(
    prompts: Sequence[Prompt], given: Answers, reasons: Mapping[str, str]
) -> list[Answered]:
    """What was answered to each prompt, or why it was not; `reasons` by the prompt's id."""
    found = []
    for one in prompts:
        if one.id in given:
            found.append(Answered(one.text, given[one.id].text))
        elif (reason := reasons.get(one.id, NO_REASON)) == responses.EMPTY:
            found.append(Answered(one.text))
        else:
            found.append(Answered(one.text, missing=reason))
    return found


def can_score_exactly(store: Store) -> bool:
    """Return whether a program can score the answers to each of a run's held-out prompts."""
    held_out = store.records(Prompt, origin="held_out")
    return bool(held_out) and metrics.score_exactly(held_out, []) is not None


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
