"""Statistics against scipy, and by hand."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from selfreward_lite.method import statistics
from selfreward_lite.method.statistics import Share


def test_paired_interval_matches_scipy():
    rng = random.Random(1)
    before = [rng.random() for _ in range(400)]
    after = [value + rng.gauss(0.1, 0.3) for value in before]
    low, high = statistics.paired_interval(
        [[value] for value in after], [[value] for value in before]
    )
    differences = [a - b for a, b in zip(after, before, strict=True)]
    expected = stats.norm.interval(0.95, loc=sum(differences) / 400, scale=stats.sem(differences))
    assert (low, high) == pytest.approx(expected)
    assert math.isnan(statistics.standard_error([1.0]))


def test_mean_and_error_counts_groups_not_values():
    """Three values a group that are all the same say no more than one."""
    rng = random.Random(2)
    singles = [rng.random() for _ in range(50)]
    mean, error = statistics.mean_and_error([[value] * 3 for value in singles])
    assert (mean, error) == pytest.approx((sum(singles) / 50, stats.sem(singles)))
    # groups of different size, by hand: mean 1/2, sums of deviations +1/2 and -1/2, so
    # sqrt(2 / 1 * 1/2) / 4
    assert statistics.mean_and_error([[1, 1, 0], [], [0]]) == pytest.approx((0.5, 0.25))
    assert all(map(math.isnan, statistics.mean_and_error([[]])))


def test_bootstrap_interval_matches_scipy():
    values = np.random.default_rng(3).choice([0.0, 0.5, 1.0], 120)
    low, high = statistics.bootstrap_interval(
        len(values), lambda drawn: float(values[drawn].mean()), draws=6000
    )
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=6000, rng=1
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.006)
    assert statistics.bootstrap_interval(
        len(values), lambda drawn: float(values[drawn].mean()), draws=6000
    ) == (low, high), "every time"
    assert all(map(math.isnan, statistics.bootstrap_interval(1, lambda drawn: 0.0)))


@given(st.integers(1, 400).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_share_interval_matches_scipy(points_and_count):
    points, count = points_and_count
    share, other = (
        Share.of(points, count),
        stats.binomtest(points, count).proportion_ci(method="wilson"),
    )
    assert (share.value, share.count) == (points / count, count)
    assert (share.low, share.high) == pytest.approx((other.low, other.high), abs=1e-9)


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        ((0.5, 0.01), "0.500 ± 0.010"),
        ((0.5, None), "0.500"),
        ((0.5, math.nan), "0.500"),
        ((math.nan, 0.1), "–"),
        (None, "–"),
        ((25.151, 0.696), "25.15 ± 0.70"),
    ],
)
def test_format_with_error_shows_the_error_if_any(found, cell):
    assert statistics.format_with_error(found) == cell
