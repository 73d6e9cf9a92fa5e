"""Metrics, by hand and against scipy and scikit-learn."""

import math
import warnings
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from selfreward_lite.data.ranked import RankedPrompt
from selfreward_lite.data.records import Judgment, Prompt, Response
from selfreward_lite.method import comparisons, metrics
from selfreward_lite.method.metrics import PairResult, correlation, judge_agreement

# -- judges ----------


def ranked(name: str, count: int = 3) -> RankedPrompt:
    answers = tuple(
        Response(f"{name}{rank}", 0, "human", name, rank, "t", "stop", 0, rank)
        for rank in range(count)
    )
    return RankedPrompt(Prompt(name, 0, "ranked", 0, name), answers)


A, B = ranked("a"), ranked("b")
SCORES = {"a0": 5.0, "a1": 3.5, "a2": 2.0, "b0": 3.0, "b1": 5.0, "b2": 5.0}


def test_judge_agreement_matches_a_worked_example():
    """Worked example: A is in order, of B two pairs are inverted and one is tied."""
    found = judge_agreement([A, B], SCORES)
    assert found.outcomes == [[1, 1, 1], [0, 0, 0]]
    known = found.metrics()
    assert known["pair_accuracy"] == pytest.approx(3 / 6)
    assert known["pair_accuracy_without_ties"] == pytest.approx(3 / 5)
    assert known["five_best"] == pytest.approx(1 / 3)
    assert known["exact_match"] == pytest.approx(1 / 2)
    assert known["spearman"] == pytest.approx(0.066987, abs=1e-6)
    assert known["kendall"] == pytest.approx(0.091752, abs=1e-6)
    assert known["tie_rate"] == pytest.approx(1 / 6)
    assert known["top_share"] == pytest.approx(3 / 6)
    assert (known["scored_share"], known["undefined"]) == (1.0, 0.0)


def test_judge_agreement_counts_unread_scores_as_wrong():
    found = judge_agreement([A], {**SCORES, "a0": None})
    assert [math.isnan(gap) for gap in found.gaps[0]] == [True, True, False]
    assert found.outcomes == [[0, 0, 1]]
    known = found.metrics()
    assert (known["pair_accuracy"], known["exact_match"]) == (pytest.approx(1 / 3), 0)
    assert (known["scored_share"], known["tie_rate"]) == (pytest.approx(2 / 3), 0.0)
    assert known["pair_accuracy_without_ties"] == 1.0, "of the pair that was read"
    assert math.isnan(judge_agreement([A], dict.fromkeys(SCORES)).metrics()["tie_rate"]), (
        "nothing was read, so nothing tied"
    )
    assert known["spearman"] == pytest.approx(1.0), "of the two that were read"


def test_judge_agreement_counts_undefined_correlations():
    known = judge_agreement([A, ranked("c")], {**SCORES, "c0": 4.0, "c1": 4.0, "c2": 4.0}).metrics()
    assert (known["undefined"], known["spearman"], known["kendall"]) == (1.0, 0.5, 0.5)
    assert known["exact_match"] == 0.5, "a tie is no match"
    nothing = judge_agreement([], {}).metrics()
    assert all(math.isnan(value) for name, value in nothing.items() if name != "undefined")
    assert math.isnan(
        judge_agreement([A], {"a0": 4.0, "a1": 3.0, "a2": 2.0}).metrics()["five_best"]
    ), "no fives"


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, 4.0, 4.0 + 1e-12, 5.0]), min_size=2, max_size=7))
def test_judge_agreement_matches_other_definitions(scores):
    one = ranked("p", len(scores))
    found = judge_agreement(
        [one], {answer.id: score for answer, score in zip(one.responses, scores, strict=True)}
    )
    pairs = [high - low for high, low in combinations(np.round(scores, 9), 2)]
    known = found.metrics()
    assert known["pair_accuracy"] == pytest.approx(sum(gap > 0 for gap in pairs) / len(pairs))
    if len(scores) == 2 and scores[0] != pytest.approx(scores[1]):
        # for two answers it is the same question
        assert known["pair_accuracy"] == roc_auc_score([1, 0], scores)
    # tau-b, as Kendall (1945) writes it, and rho as the correlation of mean ranks
    order = -np.arange(len(scores))
    signs = [
        (np.sign(b - a), np.sign(y - x))
        for (a, x), (b, y) in combinations(zip(order, np.round(scores, 9), strict=True), 2)
    ]
    varied = sum(y != 0 for _, y in signs)
    if not varied:
        assert found.correlations == [None]
        assert (known["undefined"], known["kendall"], known["spearman"]) == (1, 0, 0)
    else:
        tau = sum(x * y for x, y in signs) / math.sqrt(len(signs) * varied)
        assert known["kendall"] == pytest.approx(tau)
        mean_ranks = stats.rankdata(np.round(scores, 9))
        assert known["spearman"] == pytest.approx(
            np.corrcoef(stats.rankdata(order), mean_ranks)[0, 1]
        )


def with_lengths(name: str, *lengths: int) -> RankedPrompt:
    """A prompt with answers of these lengths, the best first."""
    one = ranked(name, len(lengths))
    answers = zip(one.responses, lengths, strict=True)
    return replace(one, responses=tuple(replace(answer, text="x" * n) for answer, n in answers))


def test_picking_the_longer_answer_matches_a_worked_example():
    """Of p all three pairs are in order; of q one is tied, one wrong, one in order."""
    found = [with_lengths("p", 9, 5, 2), with_lengths("q", 4, 4, 3), with_lengths("r", 1, 8)]
    assert metrics.longer_agreement(found).outcomes == [[1, 1, 1], [0, 1, 1], [0]]
    known = metrics.measure_longer(found)
    assert known["longer_pair_accuracy"] == pytest.approx(5 / 7)
    assert known["longer_pair_accuracy_without_ties"] == pytest.approx(5 / 6)
    judged = judge_agreement(found, {one.id: len(one.text) for p in found for one in p.responses})
    assert known["longer_pair_accuracy_error"] == judged.metrics()["pair_accuracy_error"]
    assert all(math.isnan(value) for value in metrics.measure_longer([]).values())


def test_shares_say_who_wrote_the_scores():
    given = [(4.0, "written"), (3.0, "first"), (2.0, "forced"), (1.0, "forced"), (None, "written")]
    judgments = [
        Judgment(f"j{n}", 0, "M0", "r", n, "t", "stop", 1, score, None, source)
        for n, (score, source) in enumerate(given)
    ]
    assert metrics.measure_sources(judgments) == pytest.approx(
        {"read_share": 0.8, "written_share": 0.4, "first_share": 0.2, "forced_share": 0.4}
    )
    found = metrics.measure_answers([A.prompt], A.responses, judgments)
    assert (found.judge_read_share, found.judge_written_share, found.judge_first_share) == (
        pytest.approx((0.8, 0.4, 0.2))
    )
    assert all(math.isnan(value) for value in metrics.measure_sources([]).values())


def test_correlation_needs_values_that_vary():
    assert correlation([1.0, 2.0], [3.0, 3.0]) is None
    assert correlation([1.0], [3.0]) is None
    assert correlation([1.0, 2.0, 3.0], [2.0, 3.0, 9.0]) == pytest.approx((1.0, 1.0))


# -- two models ----------


def test_exact_win_rate_counts_ties_as_half():
    rate, error = metrics.exact_win_rate(
        {"a": 5, "b": 3, "c": 1, "d": 4}, {"a": 4, "b": 3, "c": 2, "d": 1}
    )
    assert rate == pytest.approx(2.5 / 4)
    assert error == pytest.approx(stats.sem([1, 0.5, 0, 1]))
    assert metrics.exact_win_rate({"a": 1}, {"a": 1})[0] == 0.5


def test_win_rates_count_flipped_verdicts_as_ties():
    orders = [("A", "B"), ("B", "A"), ("A", "A"), ("A", None), (None, None)]
    met = [PairResult(comparisons.combine_verdicts(*one), 10, 20, one) for one in orders]
    known = metrics.win_rates(met)
    assert (known["won"], known["tied"], known["lost"], known["prompts"]) == (1, 3, 1, 5)
    assert known["win_rate"] == 0.5
    assert known["flip_rate"] == pytest.approx(1 / 5)
    assert known["first_share"] == pytest.approx(5 / 7), "A is the answer shown first"
    assert known["unread_share"] == pytest.approx(3 / 10)
    assert (known["mine_length"], known["their_length"]) == (10, 20)


def test_win_rates_without_a_judge_have_no_judge_figures():
    known = metrics.win_rates([PairResult(1.0, 3, 4), PairResult(0.5, 4, 4)])
    assert all(math.isnan(known[name]) for name in ("flip_rate", "first_share", "unread_share"))
    assert math.isnan(metrics.win_rates([])["win_rate"])


def by_scikit_learn(results: np.ndarray, gaps: np.ndarray) -> float:
    """Half a win is one of each, at half the weight."""
    length = np.tanh(gaps / gaps.std(ddof=1))
    rows = np.concatenate([np.stack([np.ones_like(length), length], 1)] * 2)
    weights = np.concatenate([results, 1 - results])
    labels = np.concatenate([np.ones(len(results)), np.zeros(len(results))])
    used = weights > 0
    model = LogisticRegression(C=1 / metrics.RIDGE, fit_intercept=False, tol=1e-10)
    fitted = model.fit(rows[used], labels[used], weights[used])
    return fitted.predict_proba([[1.0, 0.0]])[0, 1]


@pytest.mark.parametrize("number", range(5))
def test_length_controlled_win_rate_matches_scikit_learn(number):
    rng = np.random.default_rng(number)
    gaps = rng.normal(100 * number, 300, 200).round()
    results = rng.choice([0.0, 0.5, 1.0], 200, p=[0.3, 0.2, 0.5])
    found = metrics.length_controlled_win_rate(results, gaps)
    assert found == pytest.approx(by_scikit_learn(results, gaps), abs=1e-4)
    assert metrics.length_controlled_win_rate(1 - results, -gaps) == pytest.approx(
        1 - found, abs=1e-5
    ), "the other way round"


def test_length_controlled_win_rate_removes_length():
    rng = np.random.default_rng(7)
    gaps = rng.normal(150, 200, 2000).round()
    longer = (rng.random(2000) < 1 / (1 + np.exp(-3 * np.tanh(gaps / gaps.std())))).astype(float)
    assert longer.mean() > 0.65
    assert metrics.length_controlled_win_rate(longer, gaps) == pytest.approx(0.5, abs=0.05)
    better = (rng.random(2000) < 0.7).astype(float)
    assert metrics.length_controlled_win_rate(better, gaps) == pytest.approx(0.7, abs=0.05), (
        "and what is no matter of length stays"
    )


def test_length_controlled_win_rate_of_extreme_cases():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0.9 < metrics.length_controlled_win_rate(np.ones(50), np.zeros(50)) < 1
        assert metrics.length_controlled_win_rate(np.full(50, 0.5), np.zeros(50)) == pytest.approx(
            0.5
        )


def test_score_exactly_gives_a_missing_answer_zero():
    prompts = [
        Prompt("p", 0, "held_out", 0, "Sort the letters c a b."),
        Prompt("q", 0, "held_out", 1, "Rotate the letters c a b."),
    ]
    answers = [Response("r", 0, "M0", "p", 0, "The answer is a b c.", "stop", 7)]
    exact = metrics.score_exactly(prompts, answers)
    assert exact.score == {"p": 5, "q": 0}
    assert exact.right == {"p": True, "q": False}
    assert (
        metrics.score_exactly([Prompt("x", 0, "held_out", 0, "Why is the sky blue?")], []) is None
    )
