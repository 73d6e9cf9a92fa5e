"""What a model's answers to held-out prompts are worth.

Knows: the exact scorer of the tiny world, where that is the world; what can be said of answers without one. Does not know:
gates, training, judges (`judge_quality`, `pairwise`). Nothing computed from the exact scorer may leave for a stage, gate or
trainer; those see only what does not need it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from selfreward_lite.intervals import standard_error
from selfreward_lite.pairwise import points
from selfreward_lite.records import Judgment, Prompt, Response
from selfreward_lite.tiny import score as tiny_score
from selfreward_lite.tiny import tasks as tiny_tasks


@dataclass(frozen=True)
class ExactScores:
    """The exact score of each held-out answer, by prompt id (an answer that never came scores 0)."""

    score: dict[str, int]
    right: dict[str, bool]

    def win_rate_limit(self) -> float:
        """Return the highest win rate against these answers that there can be: a tie, which counts ½, where one is perfect."""
        return 1 - fmean(value == tiny_score.BEST for value in self.score.values()) / 2


def exact_scores(prompts: Sequence[Prompt], responses: Sequence[Response]) -> ExactScores | None:
    """Score answers to tasks of the tiny world exactly; None where the prompts are not of that world."""
    if any(tiny_tasks.read(prompt.text) is None for prompt in prompts):
        return None
    answers = {response.prompt_id: response.text for response in responses}
    found = {prompt.id: tiny_score.score(prompt.text, answers.get(prompt.id, "")) for prompt in prompts}
    return ExactScores({name: one.score for name, one in found.items()}, {name: one.right for name, one in found.items()})


def win_rate(mine: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """Return the share of prompts won and its standard error; a tie counts ½. Keys are prompt ids, the same in both."""
    results = [points(mine[name], theirs[name]) for name in mine]
    return fmean(results), standard_error(results)


def share_read(judgments: Sequence[Judgment]) -> float:
    """Return the share of judgments that could be read; NaN for none."""
    return fmean(judgment.score is not None for judgment in judgments) if judgments else math.nan


def share_repetitive(responses: Sequence[Response]) -> float:
    """Return the share of responses that shrink to less than a fifth when packed (zlib): they mostly repeat themselves.

    Running text shrinks to a half or a third. Texts under 64 bytes are too short to tell, and count as not repetitive.
    """
    texts = [response.text.encode() for response in responses]
    return fmean(len(text) >= 64 and len(zlib.compress(text)) < len(text) / 5 for text in texts) if texts else 0.0
