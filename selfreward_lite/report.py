"""Run folder → the numbers and words that people see. Pure: reads a store, writes nothing, decides nothing.

Knows: which record or metric answers which question. Does not know: terminals, pages. The command line shows what this returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfreward_lite.errors import UserError
from selfreward_lite.records import BASE, Judgment, JudgmentPair, Prompt, Response, ResponsePair
from selfreward_lite.seed import HUMAN
from selfreward_lite.store import Store

MEASURED = (
    "exact_score", "answer_right", "win_rate_vs_seed", "judge_pair_accuracy", "mean_response_tokens",
)


def summary(store: Store) -> dict[str, Any]:
    """Return the run as one JSON document; iteration 0 is M0, the model after the seed stage."""
    settings = store.fact("settings")
    if settings is None:
        raise UserError(f"{store.folder} holds no run yet; start it with `run --name {store.folder.name}`")
    newest = store.newest()
    rows = [iteration_row(store, iteration) for iteration in range((-1 if newest is None else newest) + 1)]
    return {
        "run": store.folder.name,
        "preset": settings["preset"],
        "seconds": round(sum(stage[4] for stage in store.stages()), 1),
        "base": {name: _rounded(store.metrics(BASE).get(name)) for name in MEASURED if name != "win_rate_vs_seed"},
        "iterations": rows,
    }


def iteration_row(store: Store, iteration: int) -> dict[str, Any]:
    """Return the counts and measurements of one iteration: the data M(t) was trained on, and what M(t) is worth."""
    author = f"M{iteration - 1}" if iteration else "base"
    trained_on = _judged(store, iteration)
    metrics = store.metrics(iteration)
    return {
        "iteration": iteration,
        "prompts": store.count(Prompt, iteration=iteration, origin="generated" if iteration else "ranked"),
        "responses": store.count(Response, iteration=iteration, model=author if iteration else HUMAN),
        "judgments": len(trained_on),
        "judgments_unread": sum(judgment.score is None for judgment in trained_on),
        "response_pairs": store.count(ResponsePair, iteration=iteration),
        "judgment_pairs": store.count(JudgmentPair, iteration=iteration),
        **{name: _rounded(metrics.get(name)) for name in MEASURED},
        "seconds": round(sum(seconds for t, _, _, _, seconds, _ in store.stages() if t == iteration), 1),
    }


@dataclass(frozen=True)
class Example:
    """One held-out prompt and what two models answered."""

    prompt: str
    before: str
    after: str


def before_after(store: Store, count: int) -> list[Example]:
    """Return the first held-out prompts that M0 and the newest model answer differently, in a fixed order."""
    newest = store.newest() or 0
    answers = [
        {one.prompt_id: one.text for one in store.records(Response, iteration=model, model=f"M{model}")} for model in (0, newest)
    ]
    prompts = store.records(Prompt, origin="held_out") or store.records(Prompt, origin="ranked")
    examples = [
        Example(prompt.text, answers[0][prompt.id], answers[1][prompt.id])
        for prompt in prompts
        if prompt.id in answers[0] and prompt.id in answers[1] and answers[0][prompt.id] != answers[1][prompt.id]
    ]
    return examples[:count]


def _judged(store: Store, iteration: int) -> list[Judgment]:
    """The judgments that training saw, those of the evaluation left out."""
    stage = "judgments" if iteration else "eft_judgments"
    items = store.done_items(iteration, stage)
    author = f"M{iteration - 1}" if iteration else "base"
    return [one for one in store.records(Judgment, iteration=iteration, model=author) if one.response_id in items]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
