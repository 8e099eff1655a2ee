"""Intervals for what runs of several seeds show: of means, of paired differences, of shares."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit
from scipy.stats import binomtest

_LEVEL = 0.95

Direction = Literal["higher", "lower", "not told apart", "too few runs"]


class Interval(NamedTuple):
    """An estimate with its interval.

    Attributes:
        value: mean, or share.
        low: lower end; NaN where there are too few runs for one.
        high: upper end.
        size: runs, or pairs of runs, that it is from.
    """

    value: float
    low: float
    high: float
    size: int

    @property
    def direction(self) -> Direction:
        """Whether the interval of a difference lies above 0, below it, or contains it.

        >>> [Interval(2.0, low, 3.0, 9).direction for low in (1.0, -1.0)]
        ['higher', 'not told apart']
        """
        if not np.isfinite(self.low):
            return "too few runs"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "not told apart"

    def told(self, digits: int = 3, *, sign: bool = False) -> str:
        """The estimate with its interval, to so many decimals.

        >>> Interval(0.25, -0.5, 1.0, 9).told(2, sign=True)
        '+0.25 [-0.50, +1.00]'
        """
        form = f"{'+' if sign else ''}.{digits}f"
        if not np.isfinite(self.low):
            return f"{self.value:{form}}" if np.isfinite(self.value) else "no run"
        return f"{self.value:{form}} [{self.low:{form}}, {self.high:{form}}]"


def mean_interval(values: Float[np.ndarray, " runs"], *, comparisons: int = 1) -> Interval:
    """Student's interval of a mean; of several, each wide enough that all hold together.

    With m comparisons each interval has the level 1 - 0.05/m, so that the probability that
    all of them hold is at least 0.95, whatever their dependence (O. J. Dunn, Multiple
    comparisons among means, Journal of the American Statistical Association 56, 1961, 52).
    Student's interval is exact for values of a normal distribution; of accuracies, which are not,
    it holds approximately.

    Args:
        values: a number of each independent run or pair of runs; NaN is left out.
        comparisons: m.

    >>> mean_interval(np.array([1.0, 2.0, 3.0])).told(2)
    '2.00 [-0.48, 4.48]'
    """
    known = values[np.isfinite(values)]
    count = len(known)
    mean = float(np.mean(known)) if count else np.nan
    if count < 2:
        return Interval(mean, np.nan, np.nan, count)
    error = float(np.std(known, ddof=1)) / count**0.5
    half = float(stdtrit(count - 1, 1 - (1 - _LEVEL) / (2 * comparisons))) * error
    return Interval(mean, mean - half, mean + half, count)


def share_interval(successes: int, count: int) -> Interval:
    """The exact interval of a share (Clopper & Pearson, Biometrika 26, 1934, 404).

    >>> share_interval(0, 10).told(2)
    '0.00 [0.00, 0.31]'
    """
    if not count:
        return Interval(np.nan, np.nan, np.nan, 0)
    ends = binomtest(successes, count).proportion_ci(_LEVEL, method="exact")
    return Interval(successes / count, float(ends.low), float(ends.high), count)
