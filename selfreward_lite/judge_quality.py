"""How well a judge judges: its scores of ranked answers beside the ranks that people gave.

Knows: the five metrics of Self-Rewarding (arXiv 2401.10020, section 3.2). Does not know: where ranks or scores come from. Where
the paper leaves something open (ties, scores that could not be read, prompts whose scores are all equal), the stricter reading
is taken, and what it concerns is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from selfreward_lite.intervals import mean_and_error
from selfreward_lite.seed import RankedPrompt

TOLERANCE = 1e-9
TOP = 5.0


@dataclass(frozen=True)
class JudgeQuality:
    """How a judge's scores of ranked answers agree with the humans' order.

    `outcomes` holds, prompt by prompt and pair by pair in a fixed order, 1 for agreement, 0 for disagreement, a tie or an
    unread score. `exact`, `spearman` and `kendall` hold one value a prompt; a correlation that does not exist, since all scores
    are equal or fewer than two could be read, is 0 and counted as `undefined`. `ties` counts pairs of two equal scores, `unread`
    pairs with a score that could not be read. `top` counts answers with the highest score, and
    `top_best` those of them that people ranked first; `scored` of `answers` have a score.
    """

    outcomes: tuple[tuple[int, ...], ...]
    ties: int
    unread: int
    exact: tuple[int, ...]
    spearman: tuple[float, ...]
    kendall: tuple[float, ...]
    undefined: int
    top: int
    top_best: int
    scored: int
    answers: int

    @property
    def pairs(self) -> int:
        """Pairs of answers to one prompt."""
        return sum(map(len, self.outcomes))

    @property
    def accuracy(self) -> float:
        """Share of pairs in the human order; ties and unread scores count as wrong."""
        return mean_and_error(self.outcomes)[0]

    @property
    def error(self) -> float:
        """Standard error of the accuracy. The pairs of one prompt share answers, so prompts are what is drawn."""
        return mean_and_error(self.outcomes)[1]

    @property
    def accuracy_without_ties(self) -> float:
        """Share of the pairs with two different scores that are in the human order."""
        decided = self.pairs - self.unread - self.ties
        return sum(map(sum, self.outcomes)) / decided if decided else math.nan

    def metrics(self) -> dict[str, float]:
        """Return every metric by name; NaN where there is nothing to divide by."""
        return {
            "pair_accuracy": self.accuracy,
            "pair_accuracy_error": self.error,
            "pair_accuracy_without_ties": self.accuracy_without_ties,
            "five_best": self.top_best / self.top if self.top else math.nan,
            "exact_match": _mean(self.exact),
            "spearman": _mean(self.spearman),
            "kendall": _mean(self.kendall),
            "tie_rate": self.ties / (self.pairs - self.unread) if self.pairs > self.unread else math.nan,
            "top_share": self.top / self.scored if self.scored else math.nan,
            "scored_share": self.scored / self.answers if self.answers else math.nan,
            "undefined": float(self.undefined),
        }


def judge_quality(ranked: Sequence[RankedPrompt], scores: Mapping[str, float | None]) -> JudgeQuality:
    """Compare `scores` (by response id) with the human ranks of each prompt's responses, which are given best first."""
    outcomes, exact, correlations = [], [], []
    ties = unread = undefined = top = top_best = scored = 0
    for one in ranked:
        found = [scores.get(answer.id) for answer in one.responses]
        gaps = [math.nan if high is None or low is None else high - low for high, low in combinations(found, 2)]
        ties += sum(abs(gap) <= TOLERANCE for gap in gaps)
        unread += sum(map(math.isnan, gaps))
        outcomes.append(tuple(int(gap > TOLERANCE) for gap in gaps))
        exact.append(int(bool(gaps) and all(gap > TOLERANCE for gap in gaps)))  # every pair in order, none tied or unread
        read = [(-rank, round(score, 9)) for rank, score in enumerate(found) if score is not None]
        both = correlation(*zip(*read, strict=True)) if read else None
        undefined += both is None
        correlations.append(both or (0.0, 0.0))
        scored += len(read)
        top += sum(score >= TOP for _, score in read)
        top_best += sum(score >= TOP and rank == 0 for rank, score in read)
    spearman, kendall = zip(*correlations, strict=True) if correlations else ((), ())
    answers = sum(len(one.responses) for one in ranked)
    return JudgeQuality(
        tuple(outcomes), ties, unread, tuple(exact), spearman, kendall, undefined, top, top_best, scored, answers
    )


def correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Return Spearman's rho and Kendall's tau-b; None where one of the two does not vary."""
    from scipy import stats  # a second that is not to be spent at every start

    if any(len(set(values)) < 2 for values in (first, second)):
        return None
    return float(stats.spearmanr(first, second).statistic), float(stats.kendalltau(first, second).statistic)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
