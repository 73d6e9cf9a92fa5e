"""What a model's answers to held-out prompts are worth.

Knows: the exact scorer of the tiny world, where that is the world; what can be said of answers without one. Does not know:
gates, training, judges (`judge_quality`, `pairwise`). Nothing computed from the exact scorer may leave for a stage, gate or
trainer; those see only what does not need it.
"""

# How well a judge judges: its scores of ranked answers beside the ranks that people gave.
#
# Knows: the five metrics of Self-Rewarding (arXiv 2401.10020, section 3.2). Does not know: where ranks or scores come from. Where
# the paper leaves something open (ties, scores that could not be read, prompts whose scores are all equal), the stricter reading
# is taken, and what it concerns is counted.

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import numpy as np

from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Judgment, Prompt, Response
from selfreward_lite.data.tiny import score, tasks
from selfreward_lite.data.votes import Vote
from selfreward_lite.method.judgments import SCORE_TOLERANCE, TOP_SCORE
from selfreward_lite.method.statistics import (
    Share,
    bootstrap_interval,
    mean_and_error,
    standard_error,
)

RIDGE = 0.01  # keeps the fit finite where one side wins everything, or length alone decides
LENGTH_DRAWS = 500  # each of the bootstrap is a fit


def compare_scores(mine: float, theirs: float) -> float:
    """Return 1 where mine is more, 0 where it is less, ½ for a tie.

    >>> compare_scores(4, 3), compare_scores(3, 4), compare_scores(3, 3)
    (1.0, 0.0, 0.5)
    """
    return 0.5 + 0.5 * ((mine > theirs) - (mine < theirs))


@dataclass(frozen=True)
class PairResult:
    """Two answers to one prompt: 1 if mine won, 0 if it lost, ½ for a tie; their characters; what a judge said of both orders
    (see `verdicts`), None where none was asked."""

    result: float
    mine_length: int
    their_length: int
    orders: tuple[str | None, str | None] | None = None


def win_rates(met: Sequence[PairResult]) -> dict[str, float]:
    """Return how a model fared against another over many prompts, by name; NaN for what there is nothing of.

    `win_rate` counts ties as half, with its standard error and the 95 % bootstrap interval over prompts. Of the judge:
    `flip_rate`, the share of prompts on which both verdicts could be read and named the same place; `first_share`, the share of
    verdicts read that named the answer shown first (½ is unbiased); `unread_share`, of all verdicts.
    """
    results = np.array([one.result for one in met], dtype=float)
    gaps = np.array([one.mine_length - one.their_length for one in met], dtype=float)
    low, high = bootstrap_interval(len(met), lambda drawn: float(results[drawn].mean()))
    lc_low, lc_high = bootstrap_interval(
        len(met),
        lambda drawn: length_controlled_win_rate(results[drawn], gaps[drawn]),
        LENGTH_DRAWS,
    )
    asked = [one.orders for one in met if one.orders is not None]
    read = [verdict for orders in asked for verdict in orders if verdict is not None]
    return {
        "prompts": len(met),
        "won": int((results == 1).sum()),
        "tied": int((results == 0.5).sum()),
        "lost": int((results == 0).sum()),
        "win_rate": float(results.mean()) if len(met) else math.nan,
        "win_rate_error": standard_error(results.tolist()),
        "win_rate_low": low,
        "win_rate_high": high,
        "length_controlled_win_rate": length_controlled_win_rate(results, gaps)
        if len(met)
        else math.nan,
        "length_controlled_low": lc_low,
        "length_controlled_high": lc_high,
        "flip_rate": fmean(orders[0] is not None and orders[0] == orders[1] for orders in asked)
        if asked
        else math.nan,
        "first_share": read.count("A") / len(read) if read else math.nan,
        "unread_share": 1 - len(read) / (2 * len(asked)) if asked else math.nan,
        "mine_length": fmean(one.mine_length for one in met) if met else math.nan,
        "their_length": fmean(one.their_length for one in met) if met else math.nan,
    }


def length_controlled_win_rate(results: np.ndarray, gaps: np.ndarray) -> float:
    """Return the win rate that is left when both answers are equally long: σ(θ) of the fit P(mine wins) = σ(θ + φ·tanh(Δ/s)).

    `results` [prompts] are 1, ½ or 0, `gaps` [prompts] are Δ, mine less theirs, in characters; s is their standard deviation.
    AlpacaEval 2's length-controlled win rate (arXiv 2404.04475, section 3) is the mean of σ(θ + φ·0 + ψ·γ_x), with a
    difficulty γ_x of every prompt that was fitted on many models' answers. Such difficulties exist for its own prompts alone,
    so this is the form without them, fitted by maximum likelihood with a ridge of RIDGE/2·(θ² + φ²): to be compared with
    itself only, never with AlpacaEval's figures. Swapping the two sides gives one minus it.
    """
    from scipy import optimize, special  # half a second that a chat need not wait for

    spread = gaps.std(ddof=1) if len(gaps) > 1 else 0.0
    length = np.tanh(gaps / spread) if spread > 0 else np.zeros_like(gaps)
    features = np.stack([np.ones_like(length), length])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = weights @ features
        wrong = special.expit(scores) - results
        value = -(
            results * special.log_expit(scores) + (1 - results) * special.log_expit(-scores)
        ).sum()
        return value + RIDGE / 2 * weights @ weights, features @ wrong + RIDGE * weights

    return float(special.expit(optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x[0]))


@dataclass(frozen=True)
class VoteTally:
    """How one model fared against another: won, tied, lost by the people's votes; the share won, a tie as half; how many of
    them were `open`, given with the names shown; and in which share of those that `judge` decided too it decided as they did."""

    model: str
    rival: str
    won: int
    tied: int
    lost: int
    win_rate: Share
    open: int
    judge: str
    agreement: Share


def tally_votes(votes: Sequence[Vote], model: str, rival: str, judge: str) -> VoteTally:
    """Return how `model` fared against `rival`, whichever stood on which side, and how often `judge` agreed."""
    points, agreed, judged, shown = [], 0, 0, 0
    for vote in votes:
        if {vote.model_a, vote.model_b} != {model, rival} or model == rival:
            continue
        mine = "a" if vote.model_a == model else "b"
        points.append(0.5 if vote.choice == "tie" else float(vote.choice == mine))
        shown += not vote.blind
        if vote.judge == judge and vote.choice != "tie" and vote.verdict in ("a", "b"):
            judged += 1
            agreed += vote.verdict == vote.choice
    won, tied, lost = (points.count(value) for value in (1.0, 0.5, 0.0))
    return VoteTally(
        model,
        rival,
        won,
        tied,
        lost,
        Share.of(sum(points), len(points)),
        shown,
        judge,
        Share.of(agreed, judged),
    )


@dataclass(frozen=True)
class JudgeAgreement:
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
            "tie_rate": self.ties / (self.pairs - self.unread)
            if self.pairs > self.unread
            else math.nan,
            "top_share": self.top / self.scored if self.scored else math.nan,
            "scored_share": self.scored / self.answers if self.answers else math.nan,
            "undefined": float(self.undefined),
        }


def judge_agreement(
    ranked: Sequence[RankedPrompt], scores: Mapping[str, float | None]
) -> JudgeAgreement:
    """Compare `scores` (by response id) with the human ranks of each prompt's responses, which are given best first."""
    outcomes, exact, correlations = [], [], []
    ties = unread = undefined = top = top_best = scored = 0
    for one in ranked:
        found = [scores.get(answer.id) for answer in one.responses]
        gaps = [
            math.nan if high is None or low is None else high - low
            for high, low in combinations(found, 2)
        ]
        ties += sum(abs(gap) <= SCORE_TOLERANCE for gap in gaps)
        unread += sum(map(math.isnan, gaps))
        outcomes.append(tuple(int(gap > SCORE_TOLERANCE) for gap in gaps))
        exact.append(
            int(bool(gaps) and all(gap > SCORE_TOLERANCE for gap in gaps))
        )  # every pair in order, none tied or unread
        read = [(-rank, round(score, 9)) for rank, score in enumerate(found) if score is not None]
        both = correlation(*zip(*read, strict=True)) if read else None
        undefined += both is None
        correlations.append(both or (0.0, 0.0))
        scored += len(read)
        top += sum(score >= TOP_SCORE for _, score in read)
        top_best += sum(score >= TOP_SCORE and rank == 0 for rank, score in read)
    spearman, kendall = zip(*correlations, strict=True) if correlations else ((), ())
    answers = sum(len(one.responses) for one in ranked)
    return JudgeAgreement(
        tuple(outcomes),
        ties,
        unread,
        tuple(exact),
        spearman,
        kendall,
        undefined,
        top,
        top_best,
        scored,
        answers,
    )


def correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Return Spearman's rho and Kendall's tau-b; None where one of the two does not vary."""
    from scipy import stats  # a second that is not to be spent at every start

    if any(len(set(values)) < 2 for values in (first, second)):
        return None
    return float(stats.spearmanr(first, second).statistic), float(
        stats.kendalltau(first, second).statistic
    )


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


@dataclass(frozen=True)
class ExactScores:
    """The exact score of each held-out answer, by prompt id (an answer that never came scores 0)."""

    score: dict[str, int]
    right: dict[str, bool]

    def win_rate_limit(self) -> float:
        """Return the highest win rate against these answers that there can be: a tie, which counts ½, where one is perfect."""
        return 1 - fmean(value == score.BEST for value in self.score.values()) / 2


def score_exactly(prompts: Sequence[Prompt], responses: Sequence[Response]) -> ExactScores | None:
    """Score answers to tasks of the tiny world exactly; None where the prompts are not of that world."""
    if any(tasks.parse_task(prompt.text) is None for prompt in prompts):
        return None
    answers = {response.prompt_id: response.text for response in responses}
    found = {
        prompt.id: score.score_answer(prompt.text, answers.get(prompt.id, "")) for prompt in prompts
    }
    return ExactScores(
        {name: one.score for name, one in found.items()},
        {name: one.right for name, one in found.items()},
    )


def exact_win_rate(mine: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """Return the share of prompts won and its standard error; a tie counts ½. Keys are prompt ids, the same in both."""
    results = [compare_scores(mine[name], theirs[name]) for name in mine]
    return fmean(results), standard_error(results)


def share_read(judgments: Sequence[Judgment]) -> float:
    """Return the share of judgments that could be read; NaN for none."""
    return fmean(judgment.score is not None for judgment in judgments) if judgments else math.nan


def share_repetitive(responses: Sequence[Response]) -> float:
    """Return the share of responses that shrink to less than a fifth when packed (zlib): they mostly repeat themselves.

    Running text shrinks to a half or a third. Texts under 64 bytes are too short to tell, and count as not repetitive.
    """
    texts = [response.text.encode() for response in responses]
    return (
        fmean(len(text) >= 64 and len(zlib.compress(text)) < len(text) / 5 for text in texts)
        if texts
        else 0.0
    )
