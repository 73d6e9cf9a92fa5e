"""Which kinds of checkable constraints a model keeps: what training taught, and what it did not."""

from collections import Counter
from collections.abc import Sequence

from selfreward_lite.data.checkable.kinds import UNSEEN
from selfreward_lite.data.checkable.score import Points, score_answer
from selfreward_lite.data.records import BASE, ModelId, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.report.summary import Table


def build_constraint_table(store: Store) -> Table:
    """Return the share of held-out answers that keep each kind of constraint, a column a model.

    As in the exact score, a text that is no answer keeps none, and a missing answer neither. The
    trained kinds stand first, those that the newest model keeps most at the top. There are rows
    for constraints of held-out prompts alone, and columns for models that are measured.
    """
    prompts = [one for one in store.records(Prompt, origin="held_out") if one.constraints]
    measured = [ModelId(BASE)] if store.is_done(0, "base_evaluation") else []
    measured += [
        model
        for model in map(ModelId, store.models())
        if store.is_done(model.iteration, "evaluation")
    ]
    points = {model.name: _score_answers(store, model, prompts) for model in measured}
    kept = {
        name: Counter(
            kind
            for one in found
            for kind, is_kept in zip(one.kinds, one.kept, strict=True)
            if is_kept and one.fault is None
        )
        for name, found in points.items()
    }
    found = [*points.values()][-1] if points else []
    asked = Counter(kind for one in found for kind in one.kinds)  # the same for every model
    newest = [*kept.values()][-1] if kept else Counter()
    return Table(
        ["constraint kept", "trained", "answers", *kept],
        [
            [
                kind.replace("_", " "),
                "no" if kind in UNSEEN else "yes",
                str(asked[kind]),
                *(f"{counts[kind] / asked[kind]:.2f}" for counts in kept.values()),
            ]
            for kind in sorted(
                asked, key=lambda kind: (kind in UNSEEN, -newest[kind] / asked[kind], kind)
            )
        ],
    )


def _score_answers(store: Store, model: ModelId, prompts: Sequence[Prompt]) -> list[Points]:
    answers = {one.prompt_id: one for one in store.made_by(Response, model)}
    found = []
    for prompt in prompts:
        answer = answers.get(prompt.id)
        text, finish = (answer.text, answer.finish) if answer else ("", "stop")
        if points := score_answer(prompt, text, finish):
            found.append(points)
    return found
