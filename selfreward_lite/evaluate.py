"""What a model is worth: its answers to held-out prompts, and its judgments of held-out ranked answers.

Knows: the exact scorer of the tiny world, where that is the world; pairwise and judge-quality metrics (arXiv 2401.10020,
section 3.2). Does not know: gates, training. Nothing computed from the exact scorer may leave for a stage, gate or trainer;
those see only what does not need it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from selfreward_lite.parsing import parse_verdict
from selfreward_lite.prompts import fill, nonce_for
from selfreward_lite.records import Comparison, Judgment, Outcome, Prompt, Response, make_id
from selfreward_lite.seed import RankedPrompt
from selfreward_lite.stages.voice import Asking, Voice
from selfreward_lite.tiny import score as tiny_score
from selfreward_lite.tiny import tasks as tiny_tasks


@dataclass(frozen=True)
class JudgeQuality:
    """How a judge's order of ranked answers agrees with the humans', over all pairs of answers to one prompt.

    `outcomes` holds, prompt by prompt and pair by pair in a fixed order, 1 for agreement, 0 for disagreement, a tie or an
    unread score.
    """

    outcomes: tuple[tuple[int, ...], ...]
    ties: int

    @property
    def accuracy(self) -> float:
        """Share of pairs in the human order; ties count as wrong."""
        return mean_and_error(self.outcomes)[0]

    @property
    def error(self) -> float:
        """Standard error of the accuracy. The pairs of one prompt share answers, so prompts are what is drawn."""
        return mean_and_error(self.outcomes)[1]

    @property
    def accuracy_without_ties(self) -> float:
        """Share of the pairs with two different scores that are in the human order."""
        decided = sum(map(len, self.outcomes)) - self.ties
        return sum(map(sum, self.outcomes)) / decided if decided else math.nan


def judge_quality(ranked: Sequence[RankedPrompt], scores: Mapping[str, float | None]) -> JudgeQuality:
    """Compare `scores` (by response id) with the human ranks of each prompt's responses."""
    outcomes, ties = [], 0
    for one in ranked:
        differences = []
        for better, worse in combinations(one.responses, 2):
            high, low = scores.get(better.id), scores.get(worse.id)
            differences.append(0.0 if high is None or low is None else high - low)
        ties += sum(abs(difference) <= 1e-9 for difference in differences)
        outcomes.append(tuple(int(difference > 1e-9) for difference in differences))
    return JudgeQuality(tuple(outcomes), ties)


def paired_interval(after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of after − before, value by value (normal approximation).

    Values that belong to one prompt stand in one group; see `mean_and_error`.
    """
    differences = [[a - b for a, b in zip(*group, strict=True)] for group in zip(after, before, strict=True)]
    mean, error = mean_and_error(differences)
    return mean - 1.96 * error, mean + 1.96 * error


def mean_and_error(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean of all values and its standard error where whole groups are drawn, not single values.

    The error is the square root of G/(G−1) · Σ (sum of a group's deviations)² over the number of values, for G groups (the
    sandwich estimator of a mean, Liang and Zeger 1986); with one value a group it is the usual one. NaN for fewer than two
    groups; the mean is NaN for no value.
    """
    groups = [group for group in groups if group]
    count = sum(map(len, groups))
    if not count:
        return math.nan, math.nan
    mean = math.fsum(value for group in groups for value in group) / count
    if len(groups) < 2:
        return mean, math.nan
    spread = math.fsum(math.fsum(value - mean for value in group) ** 2 for group in groups)
    return mean, math.sqrt(len(groups) / (len(groups) - 1) * spread) / count


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of independent values; NaN for fewer than two."""
    return mean_and_error([[value] for value in values])[1]


@dataclass(frozen=True)
class ExactScores:
    """The exact score of each held-out answer, by prompt id (an answer that never came scores 0)."""

    score: dict[str, int]
    right: dict[str, bool]


def exact_scores(prompts: Sequence[Prompt], responses: Sequence[Response]) -> ExactScores | None:
    """Score answers to tasks of the tiny world exactly; None where the prompts are not of that world."""
    if any(tiny_tasks.read(prompt.text) is None for prompt in prompts):
        return None
    answers = {response.prompt_id: response.text for response in responses}
    points = {prompt.id: tiny_score.score(prompt.text, answers.get(prompt.id, "")) for prompt in prompts}
    return ExactScores(
        {name: one.score for name, one in points.items()}, {name: one.right for name, one in points.items()}
    )


def win_rate(mine: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """Return the share of prompts won and its standard error; a tie counts ½. Keys are prompt ids, the same in both."""
    results = [0.5 + 0.5 * ((mine[name] > theirs[name]) - (mine[name] < theirs[name])) for name in mine]
    return fmean(results), standard_error(results)


def ask_comparison(prompt: Prompt, mine: Response, theirs: Response, voice: Voice) -> Asking:
    """Have a frozen judge compare two answers in both orders.

    A verdict that flips with the order, or cannot be read, is a tie (arXiv 2401.10020, section 3.2).
    """
    record_id = make_id(voice.run, Comparison, voice.iteration, voice.model, mine.id, theirs.id)
    nonce = nonce_for(prompt.id, voice.templates)
    orders = [(mine.text, theirs.text), (theirs.text, mine.text)]
    requests = [
        voice.ask(
            fill(voice.templates, "compare", prompt=prompt.text, response_a=a, response_b=b, nonce=nonce),
            f"{record_id}:{order}", [f"{mine.id}:{theirs.id}:{order}"],
        )
        for order, (a, b) in enumerate(orders)
    ]
    (first,), (second,) = yield requests
    verdicts = tuple(parse_verdict(one.text, "Response") if one.finish == "stop" else None for one in (first, second))
    result = 1.0 if verdicts == ("A", "B") else 0.0 if verdicts == ("B", "A") else 0.5
    return Outcome((Comparison(
        record_id, voice.iteration, voice.model, prompt.id, mine.id, theirs.id, result, first.text.strip(), second.text.strip()
    ),))


def share_read(judgments: Sequence[Judgment]) -> float:
    """Return the share of judgments that could be read; NaN for none."""
    return fmean(judgment.score is not None for judgment in judgments) if judgments else math.nan


def share_repetitive(responses: Sequence[Response]) -> float:
    """Return the share of responses that shrink to less than a fifth when packed (zlib): they mostly repeat themselves.

    Running text shrinks to a half or a third. Texts under 64 bytes are too short to tell, and count as not repetitive.
    """
    texts = [response.text.encode() for response in responses]
    return fmean(len(text) >= 64 and len(zlib.compress(text)) < len(text) / 5 for text in texts) if texts else 0.0
