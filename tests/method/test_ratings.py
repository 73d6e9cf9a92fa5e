"""Ratings against worked examples, scipy and choix."""

import choix
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from method_records import RUN
from scipy.optimize import minimize

from selfreward_lite.data.records import (
    Battle,
    Judgment,
    make_id,
)
from selfreward_lite.method import (
    ratings,
)

CYCLE = [(0, 1, 1), (1, 0, -1), (1, 2, 1), (2, 1, 1), (2, 0, 1), (0, 2, 0)]

ONE_SIDED = [(0, 1, 1), (1, 0, -1), (0, 2, 1), (2, 0, 1), (1, 2, 0), (2, 1, 1)]


def strengths(verdicts, ridge):
    weights = ratings.compute_position_weights([verdict for _, _, verdict in verdicts])
    return ratings.fit_strengths(ratings.build_battle_matrix(verdicts, 3, *weights), ridge)


@pytest.mark.parametrize(
    ("verdicts", "ridge", "expected"),
    [
        (CYCLE, 0.01, (0.790644, -1.094838, 0.304194)),
        (CYCLE, 0.1, (0.634734, -0.855555, 0.220821)),
        (ONE_SIDED, 0.01, (1.308572, -2.539127, 1.230556)),
        (ONE_SIDED, 0.1, (0.798420, -1.331113, 0.532694)),
    ],
)
def test_strengths_match_worked_examples(verdicts, ridge, expected):
    assert strengths(verdicts, ridge) == pytest.approx(expected, abs=1e-5)


def test_position_weights_and_battle_matrix():
    assert ratings.compute_position_weights([verdict for _, _, verdict in CYCLE]) == (0.2, 0.8)
    wins = ratings.build_battle_matrix(CYCLE, 3, 0.2, 0.8)
    assert wins == pytest.approx(np.array([[0, 1.0, 0], [0, 0, 0.2], [0.2, 0.2, 0]]))


@given(st.lists(st.integers(-1, 1), min_size=20, max_size=20), st.sampled_from([0.01, 0.1, 1.0]))
def test_strengths_match_scipys_maximum(outcomes, ridge):
    pairs = [(m, n) for m in range(5) for n in range(5) if m != n]
    wins = ratings.build_battle_matrix(
        [(*pair, verdict) for pair, verdict in zip(pairs, outcomes, strict=True)], 5, 0.4, 0.6
    )

    def loss(eps):
        gap = eps[:, None] - eps[None, :]
        return (wins * np.logaddexp(0, -gap)).sum() + ridge / 2 * (eps**2).sum()

    ours = ratings.fit_strengths(wins, ridge)
    assert loss(ours) <= minimize(loss, np.zeros(5), tol=1e-10).fun + 1e-7
    assert ours.sum() == pytest.approx(0, abs=1e-6)


def make_battles(verdicts, response="r"):
    names = [make_id(RUN, Judgment, 1, "M0", response, index) for index in range(3)]
    return [
        Battle(
            make_id(RUN, Battle, 1, "M0", names[m], names[n]),
            1,
            "M0",
            response,
            names[m],
            names[n],
            verdict,
            "",
        )
        for m, n, verdict in verdicts
    ]


@given(st.permutations(CYCLE))
def test_ratings_ignore_the_order_of_battles(shuffled):
    one = ratings.rate_judgments(make_battles(CYCLE), 0.01, id_namespace=RUN, iteration=1)
    other = ratings.rate_judgments(make_battles(shuffled), 0.01, id_namespace=RUN, iteration=1)
    assert {r.judgment_id: r.strength for r in one.records} == pytest.approx(
        {r.judgment_id: r.strength for r in other.records}
    )


def test_ratings_need_decided_battles():
    always_first = [(m, n, 1) for m in range(3) for n in range(3) if m != n]
    outcome = ratings.rate_judgments(
        make_battles(always_first), 0.01, id_namespace=RUN, iteration=1
    )
    assert outcome.records == []
    assert set(outcome.drops) == {"no battle decided"}
    undecided = ratings.rate_judgments(
        make_battles([(m, n, 0) for m, n, _ in always_first]), 0.01, id_namespace=RUN, iteration=1
    )
    assert undecided.records == []


@pytest.mark.parametrize("number", range(4))
def test_strengths_match_choix(number):
    """Wins are whole numbers, as choix needs them; its ridge has no factor ½."""
    rng = np.random.default_rng(number)
    wins = rng.integers(0, 4, (5, 5)).astype(float)
    np.fill_diagonal(wins, 0)
    battles = [(i, j) for i in range(5) for j in range(5) for _ in range(int(wins[i, j]))]
    assert ratings.fit_strengths(wins, 0.05) == pytest.approx(
        choix.opt_pairwise(5, battles, alpha=0.025), abs=1e-4
    )
