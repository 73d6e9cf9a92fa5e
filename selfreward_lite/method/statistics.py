"""Means with their standard errors and intervals: how far a measured figure can be trusted."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Self

import numpy as np

Verdict = Literal["better", "worse", "no difference seen"]
Z = 1.959963984540054  # the normal distribution's two-sided 95 % quantile
Z_POWER = 0.8416212335729143  # its 80 % quantile: the power of `smallest_change`
FEWEST_CHANGED = 6  # with fewer, even all in one direction, a sign test cannot reach 5 %: 2 / 2⁶
DRAWS = 2000


@dataclass(frozen=True)
class Share:
    """A share of `count`, with its 95 % interval by Wilson's score (1927); NaN for a count of 0."""

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, points: float, count: int) -> Self:
        """Return the share that `points` are of `count`; a tie is half a point."""
        if not count:
            return cls(math.nan, math.nan, math.nan, 0)
        share, weight = points / count, Z * Z / count
        middle = (share + weight / 2) / (1 + weight)
        reach = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
        return cls(share, max(0.0, middle - reach), min(1.0, middle + reach), count)


def mean_or_nan(values: Sequence[float]) -> float:
    """Return the mean; NaN for no value."""
    return fmean(values) if values else math.nan


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None for no such value."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def ratio_or_nan(part: float, whole: float) -> float:
    """Return part / whole; NaN where the whole is 0."""
    return part / whole if whole else math.nan


def mean_and_error(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean of all values and its standard error.

    Groups are drawn independently, not single values. The error is the square root of G/(G−1) · Σ
    (sum of a group's deviations)² over the number of values, for G groups (the sandwich estimator
    of a mean, Liang and Zeger 1986); with one value per group it is the usual one. NaN for fewer
    than two groups; the mean is NaN for no value.
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


def paired_interval(
    after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of after − before, value by value.

    Normal approximation. Values of one prompt form one group; see `mean_and_error`.
    """
    differences = [
        [a - b for a, b in zip(*group, strict=True)] for group in zip(after, before, strict=True)
    ]
    mean, error = mean_and_error(differences)
    return mean - Z * error, mean + Z * error


@dataclass(frozen=True)
class Change:
    """The mean change from one model to another over `prompts`, of which `changed` differ.

    `low` and `high` are its 95 % interval over prompts, NaN where fewer than FEWEST_CHANGED differ;
    `smallest` is the smallest true change that would have been seen with a power of 80 %, NaN for
    fewer than FEWEST_CHANGED prompts.
    """

    mean: float
    low: float
    high: float
    smallest: float
    prompts: int
    changed: int

    @property
    def direction(self) -> int:
        """1 for better, −1 for worse, 0 where no difference was seen."""
        if math.isnan(self.low) or self.low <= 0 <= self.high:
            return 0
        return 1 if self.low > 0 else -1

    @property
    def verdict(self) -> Verdict:
        """What the interval says, in words."""
        names: dict[int, Verdict] = {1: "better", 0: "no difference seen", -1: "worse"}
        return names[self.direction]


def paired_change(after: Sequence[Sequence[float]], before: Sequence[Sequence[float]]) -> Change:
    """Return the change of the mean value; the values of one prompt form one group.

    The interval is that of `paired_interval`. The smallest change is (z₀.₉₇₅ + z₀.₈) standard
    errors, but at least the share d at which n prompts that change all in one direction have that
    many standard errors: d = (z₀.₉₇₅ + z₀.₈)² / (n + (z₀.₉₇₅ + z₀.₈)²).
    """
    differences = [
        [a - b for a, b in zip(*group, strict=True)] for group in zip(after, before, strict=True)
    ]
    count = len(differences)
    mean, error = mean_and_error(differences)
    reach = (Z + Z_POWER) ** 2
    smallest = max((Z + Z_POWER) * error, reach / (count + reach))
    if count < FEWEST_CHANGED:
        smallest = math.nan
    changed = sum(bool(math.fsum(group)) for group in differences)
    low, high = math.nan, math.nan  # of so few changes the normal approximation says too much
    if changed >= FEWEST_CHANGED:
        low, high = paired_interval(after, before)
    return Change(mean, low, high, smallest, count, changed)


def bootstrap_interval(
    count: int, statistic: Callable[[np.ndarray], float], draws: int = DRAWS
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a statistic of `count` independent items.

    It is the percentile interval (Efron 1979), always the same. `statistic` receives the indices, 0
    to count − 1, of the items drawn with replacement [count]. NaN for fewer than two.
    """
    if count < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(0, count, count)) for _ in range(draws)]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of independent values and its 95 % interval by Student's t.

    No interval (NaN) for fewer than two.
    """
    from scipy import stats  # takes a second, which not every start should cost

    mean, error = mean_and_error([[value] for value in values])
    reach = error * float(stats.t.ppf(0.975, len(values) - 1)) if len(values) > 1 else math.nan
    return mean, mean - reach, mean + reach


def nan_to_none(value: float) -> float | None:
    """Return a figure as JSON can hold it, which has no NaN."""
    return None if math.isnan(value) else value


def format_with_error(found: Sequence[float | None] | None) -> str:
    """Return a mean and its standard error as a table cell; "–" without a mean.

    Three digits after the point, two from 10 on. A single value has no error (None or NaN).
    """
    mean, error = found or (None, None)
    if mean is None or math.isnan(mean):
        return "–"
    digits = 3 if abs(mean) < 10 else 2
    if error is None or math.isnan(error):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {error:.{digits}f}"
