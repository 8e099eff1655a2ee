"""Intervals against SciPy's own, a closed form and a simulation."""

import numpy as np
import pytest
from scipy import stats

from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval, share_interval


@pytest.mark.parametrize("comparisons", [1, 18])
def test_the_interval_of_a_mean_is_that_of_scipy(comparisons):
    values = np.random.default_rng(0).gamma(2.0, size=20)
    found = mean_interval(values, comparisons=comparisons)
    expected = stats.t.interval(
        1 - 0.05 / comparisons, 19, loc=values.mean(), scale=stats.sem(values)
    )
    assert found.size == 20
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)
    np.testing.assert_allclose(found.value, values.mean())


def test_intervals_of_dependent_means_hold_together():
    rng, comparisons, runs = np.random.default_rng(1), 6, 8
    lost = 0
    for _ in range(1000):
        common = rng.normal(size=(runs, 1))
        values = 0.6 * common + 0.8 * rng.normal(size=(runs, comparisons))
        found = [mean_interval(column, comparisons=comparisons) for column in values.T]
        lost += any(each.low > 0 or each.high < 0 for each in found)
    assert lost <= 50 + 2.6 * np.sqrt(1000 * 0.05 * 0.95)  # 99.5 % of all seeds
    assert lost > 10  # they are not wider than they need to be


def test_what_is_missing_is_left_out_and_one_value_has_no_interval():
    assert mean_interval(np.array([1.0, np.nan, 3.0])).size == 2
    single = mean_interval(np.array([0.25, np.nan]))
    assert single.told() == "0.250"
    assert single.direction == "too few runs"
    assert mean_interval(np.array([np.nan])).told() == "no run"


@pytest.mark.parametrize(("successes", "count"), [(0, 20), (7, 20), (20, 20)])
def test_the_interval_of_a_share_is_the_exact_one(successes, count):
    found = share_interval(successes, count)
    low = stats.beta.ppf(0.025, successes, count - successes + 1) if successes else 0.0
    high = stats.beta.ppf(0.975, successes + 1, count - successes) if successes < count else 1.0
    np.testing.assert_allclose(found, (successes / count, low, high, count), atol=1e-9)


def test_a_share_of_nothing_is_not_known():
    assert share_interval(0, 0).told() == "no run"


def test_a_direction_needs_the_whole_interval_on_one_side():
    assert Interval(-1.0, -2.0, -0.1, 5).direction == "lower"
    assert Interval(0.0, 0.0, 0.0, 5).direction == "not told apart"
    assert Interval(1.0, 0.5, 1.5, 5).told(1, sign=True) == "+1.0 [+0.5, +1.5]"
