"""Gates: what a new model must show before it becomes the newest one.

Knows: measured numbers and their limits. Does not know: how they were measured, exact scores. A gate that fails names
the number, the limit, and what to try; the candidate stays beside the last good model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from selfreward_lite.config import Gates
from selfreward_lite.training_job import FIRST_MARGIN_LIMIT


@dataclass(frozen=True)
class Evidence:
    """What is known about a candidate M(t). Intervals and ratios compare it with M(t−1); None where there is none."""

    rows: int
    moved_share: float
    first_margin: float
    logit_difference: float
    logit_change: float
    cut_share: float
    read_share: float
    length_ratio: float | None
    judge_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Answer:
    """A gate's answer: passed or not, and the reason in words."""

    gate: str
    passed: bool
    reason: str


def check(evidence: Evidence, limits: Gates) -> Iterator[Answer]:
    """Yield the answer of every gate."""
    yield _at_least("rows", evidence.rows, limits.min_rows, "rows to train on", "raise prompts.count or responses.count")
    yield _at_least(
        "moved", evidence.moved_share, limits.min_moved_share, "of the adapter's weights moved", "raise the learning rate"
    )
    yield _at_most(
        "reference", abs(evidence.first_margin), FIRST_MARGIN_LIMIT, "reward margin at the first step", "report this as a bug"
    )
    yield _at_most(
        "export", evidence.logit_difference, limits.max_logit_difference, "largest logit difference between PEFT and llama.cpp",
        "use model.gguf f16 or f32",
    )
    yield _at_least("effect", evidence.logit_change, 1e-6, "change of the logits by the adapter", "raise the learning rate")
    yield _at_most(
        "stopping", evidence.cut_share, limits.max_cut_share, "of the responses cut by the length limit",
        "raise dpo.anchor or the schedule's rho, or lower the learning rate",
    )
    yield _at_least(
        "reading", evidence.read_share, limits.min_read_share, "of the judgments could be read",
        "raise dpo.anchor, train on judgment pairs, or lower the learning rate",
    )
    if evidence.length_ratio is not None:
        yield _at_most(
            "length", evidence.length_ratio, limits.max_length_ratio, "times the response length of the model before",
            "raise the schedule's rho",
        )
    if evidence.judge_interval is not None:
        low, high = evidence.judge_interval
        reason = f"judge accuracy changed by {low:+.3f} to {high:+.3f} (95 %), allowed is a loss of {limits.max_judge_loss}"
        yield Answer("judge", high >= -limits.max_judge_loss, reason)


def _at_least(gate: str, value: float, limit: float, what: str, advice: str) -> Answer:
    passed = value >= limit
    return Answer(gate, passed, _reason(value, what, "at least", limit, "" if passed else advice))


def _at_most(gate: str, value: float, limit: float, what: str, advice: str) -> Answer:
    passed = value <= limit
    return Answer(gate, passed, _reason(value, what, "at most", limit, "" if passed else advice))


def _reason(value: float, what: str, bound: str, limit: float, advice: str) -> str:
    shown = "not a number" if math.isnan(value) else f"{value:.4g}"
    return f"{shown} {what}, {bound} {limit:.4g}" + (f"; {advice}" if advice else "")
