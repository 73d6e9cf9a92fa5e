"""Optional: a new model judges a set of ranked answers, for the gate `judge` and the passport.

Nothing is trained on the set.
"""

import time
from collections.abc import Iterable

from selfreward_lite.data.judge_sets import JudgeSet
from selfreward_lite.data.records import Judgment, ModelId
from selfreward_lite.method.passport import (
    JudgedPair,
    build_passport,
    compare_judges,
    make_document,
    read_scores,
)
from selfreward_lite.method.statistics import Change
from selfreward_lite.run import judge_sets
from selfreward_lite.run.ask import Progress
from selfreward_lite.run.context import RunContext


def judge_pairs(run: RunContext, iteration: int) -> None:
    """M(t) scores the answers of the set, if one is set, and the passport is kept.

    A set that is changed later is asked by the models after that.
    """
    if not run.settings.gates.judge_set or run.store.is_done(iteration, "gates"):
        return
    whole, asked = _load(run)
    count = run.settings.evaluation.judgments
    items = judge_sets.list_judgments(asked, run.judge_role(iteration, iteration), count)
    done = run.store.done_items(iteration, "judge_set")
    if any(name not in done for name, _ in items):
        for note in whole.notes:
            run.watch(Progress(iteration, "judge_set", len(items), message=note))
        run.ask_round(iteration, "judge_set", items)
    models = [model for model in range(iteration + 1) if _has_judged(run, asked, model)]
    judged = {ModelId(model).name: _read(run, asked, model) for model in models}
    how = judge_sets.describe(run.settings, asked, whole, "scores", count)
    document = make_document(build_passport("scores", judged), how, time.time())
    judge_sets.keep_passports(run.store, [document])


def compare_with_before(run: RunContext, iteration: int) -> tuple[str, Change | None] | None:
    """The title of the set, and the change of accuracy on it from M(t−1) to M(t).

    The change is None if M(t−1) did not judge this set. None for M0, and where none is set.
    """
    if not iteration or not run.settings.gates.judge_set:
        return None
    _, asked = _load(run)
    if not _has_judged(run, asked, iteration - 1):
        return asked.title, None
    now, before = (_read(run, asked, model) for model in (iteration, iteration - 1))
    return asked.title, compare_judges(now, before)


def _load(run: RunContext) -> tuple[JudgeSet, JudgeSet]:
    """The whole set, and what is asked of it."""
    gates = run.settings.gates
    # What is missing was downloaded, with its progress shown, before the first stage.
    whole = judge_sets.load_judge_set(run, gates.judge_set, lambda file, done, total: None)
    return whole, whole.first(gates.judge_set_prompts)


def _has_judged(run: RunContext, asked: JudgeSet, model: int) -> bool:
    return _ids(asked) <= run.store.done_items(model, "judge_set")


def _read(run: RunContext, asked: JudgeSet, model: int) -> list[JudgedPair]:
    ids, count = _ids(asked), run.settings.evaluation.judgments
    drawn: Iterable[Judgment] = run.store.made_by(Judgment, model)
    drawn = [one for one in drawn if one.response_id in ids]
    return read_scores(asked, run.score(drawn, count))


def _ids(asked: JudgeSet) -> set[str]:
    return {answer.id for _, answer in asked.answers()}
