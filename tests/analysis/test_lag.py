"""The lag of an oscillation behind its crossing, against maps with noise put in."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics.analysis.instabilities.lag import (
    VISIBLE_RATIO,
    deviations,
    forgotten_from,
    predicted_onset,
    rounding_noise,
)
from dlf_dynamics.analysis.stability.threshold import growth_factors

RATES = {"slow": 1e-3, "fast": 5e-3}


def onsets(noise, ramp, drift, seeds=60):
    """First steps at which the update cosine of many noisy runs is below -0.5.

    The runs follow x ↦ (1 - ηλ) x + 8 x³ with ηλ from 1.9 upwards, beside a steady drift.
    """
    rng = np.random.default_rng(1)
    x, updates, found = np.zeros(seeds), np.zeros(seeds), np.full(seeds, -1)
    step = 0
    while np.any(found < 0):
        following = (1 - (1.9 + ramp * step)) * x + 8 * x**3 + noise * rng.normal(size=seeds)
        change = following - x
        cosine = (change * updates + drift**2) / np.hypot(change, drift) / np.hypot(updates, drift)
        found[(found < 0) & (cosine < -0.5) & (step > 0)] = step
        x, updates, step = following, change, step + 1
    return found


@pytest.mark.parametrize("ramp", RATES.values(), ids=RATES)
@pytest.mark.parametrize("noise", [1e-10, 1e-6])
def test_the_predicted_lag_is_the_median_of_noisy_runs(noise, ramp):
    drift = 1e-2
    crossing = 0.1 / ramp
    measured = np.median(onsets(noise, ramp, drift, seeds=2001)) - crossing
    factors = np.abs(1 - (1.9 + ramp * np.arange(2000)))
    predicted = predicted_onset(factors, noise, np.full(2000, VISIBLE_RATIO * drift))
    assert predicted is not None
    assert abs(predicted - crossing - measured) <= 1
    # The closed form for a linear ramp (Baesens 1991).
    effective = noise * (np.pi / ramp) ** 0.25
    baesens = np.sqrt(2 * np.log(VISIBLE_RATIO * drift / effective) / ramp)
    assert predicted - crossing == pytest.approx(baesens, rel=0.1)


def test_an_oscillation_is_forgotten_once_it_has_sunk_below_the_noise():
    factors, amplitude = np.full(20, 0.1), np.full(20, 1e-3)
    # 10⁻³ shrinks to 10⁻¹⁰ by seven factors, those of the rows 13 to 19.
    assert forgotten_from(factors, amplitude, 1.001e-10) == 13
    assert forgotten_from(factors, amplitude, 1e-30) is None
    amplitude[5:] = np.nan  # not known, as at step 0
    assert forgotten_from(factors, amplitude, 1.001e-10) == 4
    assert forgotten_from(factors[:0], amplitude[:0], 1e-10) is None


def test_without_noise_or_without_growth_nothing_is_ever_seen():
    assert predicted_onset(np.full(50, 1.5), 0.0, np.ones(50)) is None
    assert predicted_onset(np.full(50, 0.5), 1e-3, np.ones(50)) is None


def test_a_stable_deviation_has_its_stationary_size():
    found = deviations(np.full(400, 0.8), noise=1.0)
    np.testing.assert_allclose(found, 1 / np.sqrt(1 - 0.64), rtol=1e-12)
    assert deviations(np.array([0.5]), 0.0, start=2.0).tolist() == [1.0]


def test_the_noise_is_that_of_rounded_sums():
    rng = np.random.default_rng(0)
    theta, direction = rng.normal(size=200), rng.normal(size=200)
    direction /= np.linalg.norm(direction)
    steps = rng.normal(size=(4000, 200)) * 1e-3
    for dtype in ("float32", "float16"):
        rounded = (theta + steps).astype(dtype).astype(float) - (theta + steps)
        assert rounding_noise(theta, direction, dtype) == pytest.approx(
            np.std(rounded @ direction), rel=0.1
        )


def test_growth_factors_are_the_spectral_radii_of_the_updates():
    rates, values = np.array([0.5, 0.5, 0.1, 0.1]), np.array([1.0, 5.0, 21.0, np.nan])
    table, steps = jnp.asarray(rates), np.arange(4)
    gd = growth_factors(optax.sgd(lambda step: table[step]), steps, values)
    np.testing.assert_allclose(gd, [0.5, 1.5, 1.1, np.nan], atol=1e-14)
    beta = 0.9
    heavy_ball = optax.sgd(lambda step: table[step], momentum=beta)
    found = growth_factors(heavy_ball, steps[:3], values[:3])
    for factor, rate, value in zip(found, rates, values, strict=False):
        matrix = [[1 - rate * value + beta, -beta], [1, 0]]
        assert factor == pytest.approx(np.max(np.abs(np.linalg.eigvals(matrix))), abs=1e-9)
