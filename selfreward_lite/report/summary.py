"""Run folder → the numbers and words that people see. Pure: reads a store, writes nothing, decides nothing.

Knows: which record or metric answers which question. Does not know: terminals, pages. The command line shows what this returns.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from selfreward_lite.config.settings import parse
from selfreward_lite.data.ranked import HUMAN, RankedPrompt, split
from selfreward_lite.data.records import (
    BASE,
    Judgment,
    JudgmentPair,
    ModelId,
    Prompt,
    Response,
    ResponsePair,
)
from selfreward_lite.data.store import Store
from selfreward_lite.method.response_pairs import TOLERANCE
from selfreward_lite.models.memory import DRIVER
from selfreward_lite.system.errors import UserError

MEASURED = (
    "exact_score",
    "exact_score_error",
    "answer_right",
    "answer_right_error",
    "win_rate_vs_seed",
    "win_rate_vs_seed_error",
    "judge_pair_accuracy",
    "judge_pair_accuracy_error",
    "mean_response_tokens",
    "self_score",
    "outside_score",
    "canary_score",
    "honest_bad_score",
    "greedy_agreement",
)

# … and, where there is room: the other metrics of a judge (arXiv 2401.10020, section 3.2), and of the data.
MORE = (
    "judge_pair_accuracy_without_ties",
    "judge_five_best",
    "judge_exact_match",
    "judge_spearman",
    "judge_kendall",
    "judge_tie_rate",
    "judge_top_share",
    "judge_read_share",
)
OF_DATA = ("pair_yield", "tie_rate", "unread_rate", "response_pairs", "judgment_pairs")


def summary(store: Store) -> dict[str, Any]:
    """Return the run as one JSON document; iteration 0 is M0, the model after the seed stage."""
    settings = store.fact("settings")
    if settings is None:
        raise UserError(
            f"{store.folder} holds no run yet; start it with `run --name {store.folder.name}`"
        )
    newest = store.newest()
    rows = [
        iteration_row(store, iteration)
        for iteration in range((-1 if newest is None else newest) + 1)
    ]
    return {
        "run": store.folder.name,
        "preset": settings["preset"],
        "seconds": round(sum(stage[4] for stage in store.stages()), 1),
        "base": {
            name: _rounded(value)
            for name in MEASURED
            if (value := store.metrics(BASE).get(name)) is not None
        },
        "iterations": rows,
        "refused": refusals(store),
    }


def iteration_row(store: Store, iteration: int) -> dict[str, Any]:
    """Return the counts and measurements of one iteration: the data M(t) was trained on, and what M(t) is worth."""
    author = ModelId(iteration - 1).name if iteration else "base"
    trained_on = training_judgments(store, iteration)
    prompts = (
        store.count(Prompt, iteration=iteration)
        if iteration
        else store.count(Prompt, origin="ranked")
    )
    pairs = store.count(ResponsePair, iteration=iteration)
    unread = sum(judgment.score is None for judgment in trained_on)
    metrics = store.metrics(iteration)
    return {
        "iteration": iteration,
        "prompts": prompts,
        "responses": store.count(
            Response, iteration=iteration, model=author if iteration else HUMAN
        ),
        "judgments": len(trained_on),
        "judgments_unread": unread,
        "response_pairs": pairs,
        "judgment_pairs": store.count(JudgmentPair, iteration=iteration),
        "pair_yield": _rounded(pairs / prompts) if iteration and prompts else None,
        "tie_rate": _rounded(tie_rate(store, iteration, trained_on)) if iteration else None,
        "unread_rate": _rounded(unread / len(trained_on)) if trained_on else None,
        **{name: _rounded(metrics.get(name)) for name in MEASURED},
        "seconds": round(
            sum(seconds for t, _, _, _, seconds, _ in store.stages() if t == iteration), 1
        ),
    }


def measured(store: Store) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of what every model was measured to be, with standard errors."""
    found = summary(store)
    columns = [("base", found["base"] | _more(store, BASE))] if found["base"] else []
    columns += [
        (ModelId(row["iteration"]).name, row | _more(store, row["iteration"]))
        for row in found["iterations"]
    ]
    names = [
        name
        for name in (*MEASURED, *MORE, *OF_DATA)
        if not name.endswith("_error") and any(row.get(name) is not None for _, row in columns)
    ]
    rows = [[name.replace("_", " "), *(_cell(row, name) for _, row in columns)] for name in names]
    return ["", *(name for name, _ in columns)], rows


def gates(store: Store) -> list[list[str]]:
    """Return what every gate said of every model."""
    iterations = sorted({iteration for iteration, *_ in store.stages()})
    return [
        [ModelId(iteration).name, gate.replace("_", " "), "passed" if passed else "refused", reason]
        for iteration in iterations
        for gate, (passed, reason) in store.gates(iteration).items()
    ]


def _more(store: Store, model: int) -> dict[str, Any]:
    return {name: value for name, value in store.metrics(model).items() if name in MORE}


def _cell(row: dict[str, Any], name: str) -> str:
    value, error = row.get(name), row.get(f"{name}_error")
    if value is None:
        return "–"
    return f"{value:.3f} ± {error:.3f}" if error else f"{value:,.3f}".rstrip("0").rstrip(".")


def tie_rate(store: Store, iteration: int, judged: Sequence[Judgment]) -> float | None:
    """Return the share of pairs of responses to one prompt whose scores are equal, as this run scores; None for no pair."""
    expected = parse(store.fact("settings")).judge.score == "expected"
    scores: dict[str, list[float]] = defaultdict(list)
    for judgment in judged:
        value = judgment.expected_score if expected else judgment.score
        if judgment.score is not None and value is not None:
            scores[judgment.response_id].append(value)
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for response in store.records(Response, iteration=iteration, model=ModelId(iteration - 1).name):
        if response.id in scores:
            by_prompt[response.prompt_id].append(fmean(scores[response.id]))
    pairs = [
        abs(a - b) <= TOLERANCE for means in by_prompt.values() for a, b in combinations(means, 2)
    ]
    return fmean(pairs) if pairs else None


@dataclass(frozen=True)
class Count:
    """How many of something the seed stage has, and how many the papers had (None where they do not say)."""

    what: str
    here: int
    paper: str | None


# What M0 was trained on is counted as its training begins.
TRAINED = (("eft_examples", "EFT examples", "1,630"), ("ift_examples", "IFT examples", "3,200"))


def seed_counts(store: Store) -> list[Count]:
    """Return the sizes of the seed data beside those of arXiv 2401.10020 (its third version, section 3.1)."""
    if not store.is_done(0, "ranked"):
        return []
    settings, metrics = parse(store.fact("settings")), store.metrics(0)
    by_prompt = Counter(one.prompt_id for one in store.records(Response, model=HUMAN))
    evaluation = split(
        [RankedPrompt(one, ()) for one in store.records(Prompt, origin="ranked")], settings
    ).evaluation
    return [
        Count("first-turn prompts with two ranked answers", len(by_prompt), None),
        Count("evaluation prompts", len(evaluation), "about 190"),
        Count("ranked answers to them", sum(by_prompt[one.prompt.id] for one in evaluation), "541"),
        *(
            Count(what, int(metrics[name] or 0), paper)
            for name, what, paper in TRAINED
            if name in metrics
        ),
    ]


def refusals(store: Store) -> dict[str, dict[str, str]]:
    """Return, for every model that a gate refused, the gates and their reasons."""
    answers = {iteration: store.gates(iteration) for iteration, *_ in store.stages()}
    refused = {
        ModelId(iteration).name: {
            gate: reason for gate, (passed, reason) in found.items() if not passed
        }
        for iteration, found in sorted(answers.items())
    }
    return {model: reasons for model, reasons in refused.items() if reasons}


def seconds_by_stage(store: Store) -> dict[str, float]:
    """Return the working seconds of each stage, all iterations together, the longest first."""
    spent: dict[str, float] = defaultdict(float)
    for _, stage, _, _, seconds, _ in store.stages():
        spent[stage] += seconds
    return dict(sorted(spent.items(), key=lambda entry: -entry[1]))


def predictions(store: Store) -> list[tuple[str, float, float]]:
    """Return (stage, predicted, spent), in seconds, of every stage that is done and was predicted before the run began."""
    expected = (store.fact("plan") or {}).get("seconds", {})
    spent = {
        f"M{iteration} {stage}": seconds
        for iteration, stage, _, _, seconds, ended in store.stages()
        if ended
    }
    return [(name, expected[name], seconds) for name, seconds in spent.items() if name in expected]


def memory(store: Store) -> list[tuple[str, int, int | None]]:
    """Return (stage, predicted, largest so far), in bytes of the card, of every stage that was predicted to use it.

    Without what the driver holds, which torch does not count. Only trainings say what they took; nothing is returned of a run
    that was begun without a card.
    """
    held = {
        "SFT": DRIVER["training"],
        "DPO": DRIVER["training"],
        "asking (llama.cpp)": DRIVER["engine"],
    }
    expected = {
        stage: size - int(held[stage])
        for stage, size in (store.fact("plan") or {}).get("memory", {}).items()
    }
    peaks = {
        t: store.metrics(t).get("training_peak_bytes") for t in range((store.newest() or 0) + 2)
    }
    taken = {
        "SFT": peaks.get(0),
        "DPO": max((peak for t, peak in peaks.items() if t and peak), default=None),
    }
    return [
        (stage, size, int(peak) if (peak := taken.get(stage)) else None)
        for stage, size in expected.items()
    ]


def quoted(text: str) -> str:
    """Return a text of anybody's as an indented block of Markdown, in which nothing is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())


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
        {
            one.prompt_id: one.text
            for one in store.records(Response, iteration=model, model=ModelId(model).name)
        }
        for model in (0, newest)
    ]
    prompts = store.records(Prompt, origin="held_out") or store.records(Prompt, origin="ranked")
    examples = [
        Example(prompt.text, answers[0][prompt.id], answers[1][prompt.id])
        for prompt in prompts
        if prompt.id in answers[0]
        and prompt.id in answers[1]
        and answers[0][prompt.id] != answers[1][prompt.id]
    ]
    return examples[:count]


def training_judgments(store: Store, iteration: int) -> list[Judgment]:
    """Return the judgments that training saw, those of the evaluation left out."""
    stage = "judgments" if iteration else "eft_judgments"
    items = set(store.done_items(iteration, stage))
    if not iteration:  # there an item is a prompt
        items = {one.id for one in store.records(Response, iteration=0) if one.prompt_id in items}
    author = ModelId(iteration - 1).name if iteration else "base"
    return [
        one
        for one in store.records(Judgment, iteration=iteration, model=author)
        if one.response_id in items
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
