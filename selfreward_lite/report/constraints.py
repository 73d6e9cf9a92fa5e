"""Which kinds of checkable constraints a model keeps: what training taught, and what it did not."""

from collections import defaultdict
from statistics import fmean

from selfreward_lite.data.checkable.kinds import TOPIC, UNSEEN, read_constraints
from selfreward_lite.data.checkable.score import score_answer
from selfreward_lite.data.records import BASE, ModelId, Prompt, Response
from selfreward_lite.data.store import Store
from selfreward_lite.report.summary import Table


def build_constraint_table(store: Store) -> Table:
    """Return the share of held-out answers that keep each kind of constraint, a column a model.

    What is no answer (see `score`) keeps none. The trained kinds stand first, those that the newest
    model keeps most at the top. No rows where no prompt has constraints that a program checks.
    """
    prompts = {one.id: one for one in store.records(Prompt) if read_constraints(one)}
    kept: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    models = [ModelId(BASE), *map(ModelId, store.models())] if prompts else []
    for model in models:
        for answer in store.made_by(Response, model):
            prompt = prompts.get(answer.prompt_id)
            points = prompt and score_answer(prompt, answer.text, answer.finish)
            if not prompt or not points:
                continue
            kinds = [one.kind for one in read_constraints(prompt) if one.kind != TOPIC]
            for kind, is_kept in zip(kinds, points.kept, strict=True):
                kept[kind][model.name].append(is_kept and points.fault is None)
    shown = [model.name for model in models if any(model.name in by for by in kept.values())]
    rows = []
    for kind, by_model in kept.items():
        shares = [fmean(by_model[name]) if by_model[name] else None for name in shown]
        count = max(map(len, by_model.values()))
        rows.append((kind in UNSEEN, -(shares[-1] or 0), kind, count, shares))
    return Table(
        ["constraint kept", "trained", "answers", *shown],
        [
            [
                kind.replace("_", " "),
                "no" if unseen else "yes",
                str(count),
                *("–" if share is None else f"{share:.2f}" for share in shares),
            ]
            for unseen, _, kind, count, shares in sorted(rows, key=lambda row: row[:3])
        ],
    )
