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


def test_paired_change_by_hand():
    """Of 400 prompts, 30 get better and 10 worse: ±1 each, so the mean is 20 / 400."""
    before = [[0.0]] * 30 + [[1.0]] * 10 + [[1.0]] * 360
    after = [[1.0]] * 30 + [[0.0]] * 10 + [[1.0]] * 360
    change = statistics.paired_change(after, before)
    assert (change.mean, change.prompts, change.changed, change.direction) == (0.05, 400, 40, 1)
    differences = [1.0] * 30 + [-1.0] * 10 + [0.0] * 360
    low, high = stats.norm.interval(0.95, loc=0.05, scale=stats.sem(differences))
    assert (change.low, change.high) == pytest.approx((low, high))
    assert change.smallest == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * stats.sem(differences)
    )
    back = statistics.paired_change(before, after)
    assert (back.mean, back.direction) == (-0.05, -1)


@pytest.mark.slow
def test_the_smallest_change_is_seen_in_four_of_five_trials():
    rng, seen, trials = np.random.default_rng(5), 0, 2000
    count, noise = 500, 0.4
    smallest = statistics.paired_change(
        rng.normal(0, noise, (count, 1)).tolist(), [[0.0]] * count
    ).smallest
    for _ in range(trials):
        drawn = rng.normal(smallest, noise, (count, 1)).tolist()
        seen += statistics.paired_change(drawn, [[0.0]] * count).direction
    assert seen / trials == pytest.approx(0.8, abs=0.05)


def test_too_few_prompts_show_no_difference():
    """Five prompts of five get better: 2 / 2⁵ of a sign test is more than 5 %."""
    five = statistics.paired_change([[1.0]] * 5, [[0.0]] * 5)
    assert (five.mean, five.direction) == (1.0, 0)
    assert all(map(math.isnan, (five.low, five.high, five.smallest)))
    six = statistics.paired_change([[1.0]] * 6, [[0.0]] * 6)
    assert six.direction == 1
    # nothing changed: the error is 0, but a change of under 7.85 / (100 + 7.85) could be missed
    same = statistics.paired_change([[1.0]] * 100, [[1.0]] * 100)
    assert (same.changed, same.direction) == (0, 0)
    assert math.isnan(same.low) and math.isnan(same.high), "not an interval of length 0"
    assert same.smallest == pytest.approx(7.849 / 107.849, abs=1e-4)
    assert math.isnan(statistics.paired_change([], []).smallest)
