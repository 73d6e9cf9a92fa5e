"""What a model's answers and judgments are worth.

In order: answers alone, win rates between two models, judge quality, votes. Nothing computed by the
tiny world's exact scorer may reach a stage, a gate or a trainer, but for the ranks in the seed
data. The exact score of constraints may decide pairs (pairs.verify), but reaches no gate.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean

import numpy as np

from selfreward_lite.data.checkable import score as checkable_score
from selfreward_lite.data.checkable.kinds import read_constraints
from selfreward_lite.data.checkable.requests import asks_unseen_kind
from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Judgment, Prompt, Response
from selfreward_lite.data.tiny import score, tasks
from selfreward_lite.data.votes import Vote
from selfreward_lite.method.judgments import SCORE_TOLERANCE, TOP_SCORE, Scores
from selfreward_lite.method.statistics import (
    Share,
    bootstrap_interval,
    mean_and_error,
    mean_or_nan,
    mean_or_none,
    ratio_or_nan,
    standard_error,
)

RIDGE = 0.01  # keeps the fit finite if one side wins everything, or if length alone decides
LENGTH_DRAWS = 500  # bootstrap draws of the length-controlled win rate; each is a fit

# -- one model's answers -------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactScores:
    """The exact score of each held-out answer, by prompt id (a missing answer scores 0).

    `right`: the right letters, or every constraint kept. `unseen` has the prompts whose constraints
    are of kinds that training never shows.
    """

    score: dict[str, float]
    right: dict[str, bool]
    unseen: frozenset[str] = frozenset()

    def win_rate_limit(self) -> float:
        """Return the highest possible win rate: a perfect answer can only be tied (½)."""
        return 1 - fmean(value == score.BEST for value in self.score.values()) / 2


def score_exactly(prompts: Sequence[Prompt], responses: Sequence[Response]) -> ExactScores | None:
    """Score answers exactly: to tasks of the tiny world, or to prompts that all have constraints.

    None for other prompts.
    """
    if prompts and all(prompt.constraints for prompt in prompts):
        return score_constraints(prompts, responses)
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


def score_constraints(prompts: Sequence[Prompt], responses: Sequence[Response]) -> ExactScores:
    """Score answers by the share of the constraints kept; prompts without any are left out."""
    answers = {response.prompt_id: response for response in responses}
    scores, right, unseen = {}, {}, set()
    for prompt in prompts:
        given = answers.get(prompt.id)
        text, finish = (given.text, given.finish) if given else ("", "stop")
        points = checkable_score.score_answer(prompt, text, finish)
        if points is None:
            continue
        scores[prompt.id], right[prompt.id] = points.score, points.share == 1.0
        if asks_unseen_kind(read_constraints(prompt)):
            unseen.add(prompt.id)
    return ExactScores(scores, right, frozenset(unseen))


def measure_kinds(scores: ExactScores) -> dict[str, float]:
    """Return the mean exact score of trained and of unseen kinds of constraints, with its error.

    Nothing for a group without prompts.
    """
    found: dict[str, float] = {}
    for name, wanted in (("trained_kinds", False), ("unseen_kinds", True)):
        values = [score for key, score in scores.score.items() if (key in scores.unseen) == wanted]
        if values:
            found |= {
                f"exact_score_{name}": fmean(values),
                f"exact_score_{name}_error": standard_error(values),
            }
    return found


def share_read(judgments: Sequence[Judgment]) -> float:
    """Return the share of judgments that could be read; NaN for none."""
    return mean_or_nan([judgment.score is not None for judgment in judgments])


def share_written(judgments: Sequence[Judgment]) -> float:
    """Return the share of judgments whose score the judge wrote itself; NaN for none."""
    return mean_or_nan([one.score is not None and one.source != "forced" for one in judgments])


def share_first(judgments: Sequence[Judgment]) -> float:
    """Return the share of judgments whose score stands before its reasons; NaN for none."""
    return mean_or_nan([one.score is not None and one.source == "first" for one in judgments])


def measure_sources(judgments: Sequence[Judgment]) -> dict[str, float]:
    """Return the shares of judgments by who wrote their score, by name; NaN for none.

    A forced score was read, but not written by the judge.
    """
    read, written = share_read(judgments), share_written(judgments)
    return {
        "read_share": read,
        "written_share": written,
        "first_share": share_first(judgments),
        "forced_share": read - written,
    }


def share_repetitive(responses: Sequence[Response]) -> float:
    """Return the share of responses that mostly repeat themselves.

    zlib compresses them to less than a fifth. Running text shrinks to a half or a third. Texts
    under 64 bytes are too short to tell, and count as not repetitive.
    """
    texts = [response.text.encode() for response in responses]
    shrinks = (len(text) >= 64 and len(zlib.compress(text)) < len(text) / 5 for text in texts)
    return mean_or_none(shrinks) or 0.0


@dataclass(frozen=True)
class AnswerMetrics:
    """Metrics of a model's held-out answers and judgments, by their names in run.sqlite.

    A score that was read, but not written by the judge, was forced.
    """

    judge_read_share: float
    judge_written_share: float
    judge_first_share: float
    mean_response_tokens: float | None
    cut_share: float
    repetitive_share: float
    distinct_share: float


def measure_answers(
    prompts: Sequence[Prompt], answers: Sequence[Response], judgments: Sequence[Judgment]
) -> AnswerMetrics:
    """Return the metrics of a model's answers to `prompts`, and of its judgments."""
    return AnswerMetrics(
        judge_read_share=share_read(judgments),
        judge_written_share=share_written(judgments),
        judge_first_share=share_first(judgments),
        mean_response_tokens=mean_or_none([one.tokens for one in answers]),
        # Without a finished answer: cut by the length limit, empty, or not answered at all.
        cut_share=1 - sum(one.finish == "stop" for one in answers) / len(prompts),
        repetitive_share=share_repetitive(answers),
        distinct_share=len({one.text for one in answers}) / max(1, len(answers)),
    )


# -- two models' answers to the same prompts -----------------------------------------------------


def compare_scores(mine: float, theirs: float) -> float:
    """Return 1 if mine is higher, 0 if it is lower, ½ for a tie.

    >>> compare_scores(4, 3), compare_scores(3, 4), compare_scores(3, 3)
    (1.0, 0.0, 0.5)
    """
    return 0.5 + 0.5 * ((mine > theirs) - (mine < theirs))


def exact_win_rate(mine: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float]:
    """Return the share of prompts won and its standard error; keys are prompt ids."""
    results = [compare_scores(mine[name], theirs[name]) for name in mine]
    return fmean(results), standard_error(results)


@dataclass(frozen=True)
class PairResult:
    """Two answers to one prompt: who won, and their lengths in characters.

    `result` is 1 if mine won, 0 if it lost, ½ for a tie. `orders` is what a judge named in both
    orders (see `comparisons.read_verdicts`), None if none was asked.
    """

    result: float
    mine_length: int
    their_length: int
    orders: tuple[str | None, str | None] | None = None


def win_rates(pairs: Sequence[PairResult]) -> dict[str, float]:
    """Return figures of one model against another by name; NaN where there is no data.

    `win_rate` counts ties as half, with its standard error and the 95 % bootstrap interval over
    prompts. Of the judge: `flip_rate`, the share of prompts on which both verdicts could be read
    and named the same place; `first_share`, the share of readable verdicts that named the answer
    shown first (½ is unbiased); `unread_share`, of all verdicts.
    """
    points = [pair.result for pair in pairs]
    results = np.array(points, dtype=float)
    gaps = np.array([pair.mine_length - pair.their_length for pair in pairs], dtype=float)
    low, high = bootstrap_interval(len(pairs), lambda drawn: float(results[drawn].mean()))
    controlled_low, controlled_high = bootstrap_interval(
        len(pairs),
        lambda drawn: length_controlled_win_rate(results[drawn], gaps[drawn]),
        LENGTH_DRAWS,
    )
    asked = [pair.orders for pair in pairs if pair.orders is not None]
    read = [verdict for orders in asked for verdict in orders if verdict is not None]
    return {
        "prompts": len(pairs),
        "won": points.count(1),
        "tied": points.count(0.5),
        "lost": points.count(0),
        "win_rate": mean_or_nan(points),
        "win_rate_error": standard_error(points),
        "win_rate_low": low,
        "win_rate_high": high,
        "length_controlled_win_rate": length_controlled_win_rate(results, gaps),
        "length_controlled_low": controlled_low,
        "length_controlled_high": controlled_high,
        "flip_rate": mean_or_nan([a is not None and a == b for a, b in asked]),
        "first_share": ratio_or_nan(read.count("A"), len(read)),
        "unread_share": 1 - ratio_or_nan(len(read), 2 * len(asked)),
        "mine_length": mean_or_nan([pair.mine_length for pair in pairs]),
        "their_length": mean_or_nan([pair.their_length for pair in pairs]),
    }


def length_controlled_win_rate(results: np.ndarray, gaps: np.ndarray) -> float:
    """Return the win rate if both answers were equally long.

    It is σ(θ) of the fit P(mine wins) = σ(θ + φ·tanh(Δ/s)). `results` [prompts] are 1, ½ or 0,
    `gaps` [prompts] are Δ, mine less theirs, in characters; s is their standard deviation.
    AlpacaEval 2's length-controlled win rate (arXiv 2404.04475, section 3) is the mean of σ(θ + φ·0
    + ψ·γ_x), with a difficulty γ_x of every prompt that was fitted on many models' answers. Such
    difficulties exist for its own prompts only, so this is the form without them, fitted by maximum
    likelihood with a ridge of RIDGE/2·(θ² + φ²). Compare it with itself only, never with
    AlpacaEval's figures. Swapping the two sides gives one minus it. NaN for no prompt.
    """
    from scipy import optimize, special  # takes half a second, which a chat need not wait for

    if not len(results):
        return math.nan
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


# -- a judge's scores and human ranks ------------------------------------------------------------


@dataclass(frozen=True)
class JudgeAgreement:
    """A judge's scores of ranked answers, compared with the humans' order.

    The metrics are those of arXiv 2401.10020, section 3.2. Where the paper leaves something open
    (ties, unread scores, prompts whose scores are all equal), the stricter reading is taken, and
    what it concerns is counted.

    `scores` holds, for each prompt, the scores of its answers from the humans' best to their worst;
    None is unread.
    """

    scores: tuple[tuple[float | None, ...], ...]

    @property
    def answers(self) -> int:
        """The number of answers, scored or not."""
        return sum(map(len, self.scores))

    @cached_property
    def gaps(self) -> list[list[float]]:
        """For each prompt, the score of the better answer minus that of the worse one, by pair.

        NaN if one of the two is unread.
        """
        return [
            [
                math.nan if better is None or worse is None else better - worse
                for better, worse in combinations(scores, 2)
            ]
            for scores in self.scores
        ]

    @cached_property
    def outcomes(self) -> list[list[int]]:
        """For each prompt, 1 for each pair in the human order, 0 for any other (tied, unread)."""
        return [[int(gap > SCORE_TOLERANCE) for gap in gaps] for gaps in self.gaps]

    @cached_property
    def read(self) -> list[list[tuple[int, float]]]:
        """For each prompt, (−rank, score) of every answer whose score could be read."""
        return [
            [(-rank, round(one, 9)) for rank, one in enumerate(scores) if one is not None]
            for scores in self.scores
        ]

    @cached_property
    def correlations(self) -> list[tuple[float, float] | None]:
        """For each prompt, Spearman's rho and Kendall's tau-b of its scores with the human order.

        None if the scores are all equal, or fewer than two could be read.
        """
        return [correlation(*zip(*read, strict=True)) if read else None for read in self.read]

    def metrics(self) -> dict[str, float]:
        """Return every metric by name; NaN where there is nothing to divide by.

        The error of the accuracy draws prompts, not pairs, since the pairs of one prompt share
        answers. A correlation that does not exist counts as 0, and as `undefined`.
        """
        accuracy, error = mean_and_error(self.outcomes)
        gaps = [gap for gaps in self.gaps for gap in gaps if not math.isnan(gap)]
        ties = sum(abs(gap) <= SCORE_TOLERANCE for gap in gaps)
        read = [one for answers in self.read for one in answers]
        top = [rank for rank, score in read if score >= TOP_SCORE]
        known = [both or (0.0, 0.0) for both in self.correlations]
        return {
            "pair_accuracy": accuracy,
            "pair_accuracy_error": error,
            "pair_accuracy_without_ties": ratio_or_nan(
                sum(map(sum, self.outcomes)), len(gaps) - ties
            ),
            "five_best": ratio_or_nan(top.count(0), len(top)),
            "exact_match": mean_or_nan([bool(pairs) and all(pairs) for pairs in self.outcomes]),
            "spearman": mean_or_nan([rho for rho, _ in known]),
            "kendall": mean_or_nan([tau for _, tau in known]),
            "tie_rate": ratio_or_nan(ties, len(gaps)),
            "top_share": ratio_or_nan(len(top), len(read)),
            "scored_share": ratio_or_nan(len(read), self.answers),
            "undefined": float(self.correlations.count(None)),
        }


def judge_agreement(ranked: Sequence[RankedPrompt], scores: Scores) -> JudgeAgreement:
    """Compare `scores` (by response id) with the human ranks of each prompt's responses."""
    return JudgeAgreement(
        tuple(tuple(scores.get(one.id) for one in prompt.responses) for prompt in ranked)
    )


def longer_agreement(ranked: Sequence[RankedPrompt]) -> JudgeAgreement:
    """Compare the rule "pick the longer answer" (in characters) with the human ranks.

    A judge should agree more often than this rule, which reads nothing. As with a judge's
    scores, a tie counts as wrong.
    """
    lengths = {answer.id: len(answer.text) for one in ranked for answer in one.responses}
    return judge_agreement(ranked, lengths)


def measure_longer(ranked: Sequence[RankedPrompt]) -> dict[str, float]:
    """Return how "pick the longer answer" agrees with the ranks, by the names in run.sqlite.

    It stands beside what a judge reaches on the same answers; it gives no full marks, which
    `five_best` would need. NaN where there are no pairs.
    """
    known = longer_agreement(ranked).metrics()
    names = (
        "pair_accuracy",
        "pair_accuracy_error",
        "pair_accuracy_without_ties",
        "exact_match",
        "spearman",
        "kendall",
    )
    return {f"longer_{name}": known[name] for name in names}


def correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Return Spearman's rho and Kendall's tau-b; None if one of the two does not vary."""
    from scipy import stats  # takes a second, which not every start should cost

    if any(len(set(values)) < 2 for values in (first, second)):
        return None
    rho, tau = stats.spearmanr(first, second), stats.kendalltau(first, second)
    return float(rho.statistic), float(tau.statistic)


# -- people's votes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class VoteTally:
    """How one model fared against another in people's votes.

    `win_rate` counts a tie as half; `open` counts votes given with the names shown. `agreement` is
    the share of votes for one side in which `judge`, where it decided too, decided the same;
    `longer` that in which the longer answer was preferred, of the same votes.
    """

    won: int
    tied: int
    lost: int
    win_rate: Share
    open: int
    agreement: Share
    longer: Share


def tally_votes(votes: Sequence[Vote], model: str, rival: str, judge: str) -> VoteTally:
    """Return how `model` fared against `rival`, on whichever side, and how often `judge` agreed."""
    met = [vote for vote in votes if {vote.model_a, vote.model_b} == {model, rival} != {model}]
    points = [
        0.5 if vote.choice == "tie" else float((vote.choice == "a") == (vote.model_a == model))
        for vote in met
    ]
    decided = [
        vote
        for vote in met
        if vote.judge == judge and vote.choice != "tie" and vote.verdict in ("a", "b")
    ]
    agreed = [vote.verdict == vote.choice for vote in decided]
    lengths = [(len(vote.text_a), len(vote.text_b)) for vote in decided]
    by_length = [
        compare_scores(*(pair if vote.choice == "a" else pair[::-1]))
        for vote, pair in zip(decided, lengths, strict=True)
    ]
    won, tied, lost = (points.count(value) for value in (1.0, 0.5, 0.0))
    return VoteTally(
        won,
        tied,
        lost,
        Share.of(sum(points), len(points)),
        sum(not vote.blind for vote in met),
        Share.of(sum(agreed), len(agreed)),
        Share.of(sum(by_length), len(by_length)),
    )
