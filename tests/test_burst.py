"""The page "A burst in one dimension": models against closed forms, numbers, figures."""

import runpy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.optimize import brentq

from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.bifurcation import find_cycle

pytestmark = pytest.mark.usefixtures("quick_compilation")

DOCS = Path(__file__).parents[1] / "docs"
PAGE = " ".join((DOCS / "concepts" / "one-dimension.md").read_text("utf-8").split())
RATE, LARGE_AMPLITUDE, OUTER = 1.0, 70.0, 7.5


@pytest.fixture(scope="module")
def burst():
    return SimpleNamespace(**runpy.run_path(str(DOCS / "burst.py")))


def require_said(*texts):
    for text in texts:
        assert text in PAGE, text


def descended(loss, x, rate):
    return x - rate * jax.grad(loss)(x)


@pytest.mark.parametrize("step_size", [0.5, 1.0, 1.5, 2.0, 2.1])
def test_the_parabola_is_multiplied(burst, step_size):
    rate, x = 0.1, 0.7
    curvature = step_size / rate
    by_hand = descended(lambda x: curvature * x**2 / 2, x, rate)
    map_ = burst.parabola()
    np.testing.assert_allclose(map_(jnp.array([x]), step_size)[0], by_hand, rtol=1e-12, atol=1e-15)
    after = float(map_.iterate(jnp.array([x]), step_size, 9)[0])
    np.testing.assert_allclose(after, (1 - step_size) ** 9 * x, atol=1e-14)


@pytest.mark.parametrize("c", [2.0, -0.5])
def test_the_quartic_is_the_map_of_its_loss(burst, c):
    rate, curvature, x = 0.1, 21.0, 0.3
    by_hand = descended(lambda x: curvature * x**2 / 2 - c / (4 * rate) * x**4, x, rate)
    found = burst.quartic(c)(jnp.array([x]), rate * curvature)[0]
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    epsilon = rate * curvature - 2
    np.testing.assert_allclose(found, -(1 + epsilon) * x + c * x**3, rtol=1e-12)


@pytest.mark.parametrize("c", [1.0, -1.0])
def test_the_branch_of_period_2_is_the_closed_form(burst, c):
    found = burst.diagram(c)
    (flip,) = found.minimum.bifurcations
    assert flip.criticality == ("supercritical" if c > 0 else "subcritical")
    np.testing.assert_allclose([flip.parameter, flip.coefficient], [2.0, c], rtol=1e-9)
    epsilon = found.doubled.parameters - 2
    assert np.ptp(epsilon) > 0.25
    assert np.all(epsilon * c > -1e-9)
    np.testing.assert_allclose(found.doubled.points[:, 0, 0] ** 2, epsilon / c, atol=1e-9)
    np.testing.assert_allclose(found.doubled.points.sum(axis=1), 0, atol=1e-6)
    away = np.abs(epsilon) > 1e-3
    multipliers = found.doubled.multipliers[away, 0]
    np.testing.assert_allclose(multipliers, (1 - 2 * epsilon[away]) ** 2, atol=1e-7)
    assert np.all(found.doubled.stable[away] == (c > 0))
    require_said("x² = ε/c", "(1 − 2ε)²", "as long as ε < 1")


def test_iterates_end_up_where_the_page_says(burst):
    for c in (1.0, -1.0):
        orbits = burst.diagram(c).orbits
        epsilon = orbits.parameters - 2
        before, beyond = epsilon < 0, epsilon > 0
        np.testing.assert_allclose(orbits.up[before], 0, atol=1e-6)
        assert np.all(orbits.diverged_up[beyond] == (c < 0))
        if c > 0:
            expected = np.sqrt(epsilon[beyond])[:, None] * np.ones(orbits.up.shape[1])
            np.testing.assert_allclose(np.abs(orbits.up[beyond]), expected, rtol=1e-6)
    require_said("2,000 steps from 0.1")


def test_the_orbit_is_stable_below_one_only(burst):
    map_ = burst.quartic(1.0)
    for epsilon in (0.95, 1.05):
        orbit = find_cycle(map_, np.array([epsilon**0.5]), 2 + epsilon, 2)
        assert orbit.stable == (epsilon < 1)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 0.95])
def test_almost_every_start_between_the_hilltops_comes_to_the_orbit(epsilon):
    hilltop = np.sqrt(2 + epsilon)
    slope = (2 + epsilon) * hilltop - hilltop**3
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    x = hilltop * np.random.default_rng(0).uniform(-1, 1, 500)
    for _ in range(1500):
        x = -(1 + epsilon) * x + x**3
    np.testing.assert_allclose(np.abs(x), epsilon**0.5, rtol=1e-5)


def test_the_unstable_orbit_is_the_border():
    epsilon = -0.1
    x = np.sqrt(-epsilon) * np.array([0.99, 1.01])
    for _ in range(200):
        x = np.where(np.abs(x) < 1e3, -(1 + epsilon) * x - x**3, x)
    assert abs(x[0]) < 1e-6
    assert abs(x[1]) > 1e3


def seen_after(steps, noise, runs=400):
    """Median steps from the crossing to 0.01, of the linear motion with noise: no recursion."""
    step_sizes, random = np.linspace(1.5, 2.5, steps), np.random.default_rng(1)
    x, seen = np.zeros(runs), np.full(runs, -1)
    for step, step_size in enumerate(step_sizes):
        seen = np.where((seen < 0) & (np.abs(x) >= 0.01), step, seen)
        x = (1 - step_size) * x + noise * random.normal(size=runs)
    return np.median(seen) - np.argmax(step_sizes > 2)


def test_the_lag_of_the_ramp(burst):
    crossing, onset = burst.ramp_events()
    lags = [int(np.argmax(np.abs(burst.ramp(seed)) >= 0.01)) - crossing for seed in range(200)]
    assert (crossing, onset - crossing) == (500, 258)
    assert (min(lags), np.median(lags), max(lags)) == (251, 258, 275)
    rate = burst.RAMP[1] - burst.RAMP[0]
    effective = burst.NOISE * (np.pi / rate) ** 0.25
    lag = np.sqrt(2 * np.log(burst.VISIBLE / effective) / rate)  # Baesens 1991, leading order
    np.testing.assert_allclose(onset - crossing, lag, rtol=0.06)
    assert round(np.log(np.prod(np.abs(1 - burst.RAMP[crossing:onset])))) == 31
    assert abs(seen_after(1000, 1e-8) - 161) <= 2
    assert abs(seen_after(4000, 1e-16) - 503) <= 3
    assert np.round([258 / 999, 503 / 3999], 3).tolist() == [0.258, 0.126]
    require_said("258 steps later", "251 to 275, its median 258", "it is 161", "503", "e³¹")


def test_the_ramp_jumps_onto_the_stable_orbit(burst):
    _, onset = burst.ramp_events()
    x, epsilon = np.abs(burst.ramp()), burst.RAMP - 2
    orbit = np.sqrt(epsilon[onset:])
    assert round(orbit[0], 2) == 0.51
    assert round(epsilon[onset], 3) == 0.259
    near = np.abs(x[onset:] / orbit - 1) <= 0.02
    assert np.argmax(near) == 21
    assert np.all(near[21:])
    require_said("±0.51, and 21 steps later x is within 2 %", "0.126, not 0.259")


def test_the_valley_is_gradient_descent_on_its_loss(burst):
    x, y = burst.valley(400, force=1e-3, start=0.01, noise=0.0)

    def loss(p):
        return p[1] * p[0] ** 2 / 2 - 1e-3 * p[1]

    for step in (0, 100, 398):
        after = descended(loss, jnp.array([x[step], y[step]]), 1.0)
        np.testing.assert_allclose([x[step + 1], y[step + 1]], after, rtol=1e-12, atol=1e-14)
    curvature = jax.hessian(loss)(jnp.array([0.0, y[5]]))
    np.testing.assert_allclose(jnp.linalg.eigvalsh(curvature)[-1], y[5])


def test_the_overshoot_and_the_collapse_are_equal_while_they_are_small(burst):
    """With u = ln|x|, du/dt = ε and dε/dt = g - e^(2u)/2 keep ε²/2 - gu + e^(2u)/4."""
    force, start = 1e-6, 1e-4
    x, y = burst.valley(8000, force, start, noise=0.0)
    peak = np.sqrt(2 * (force * (np.log(np.sqrt(2 * force) / start) - 0.5) + start**2 / 4))
    np.testing.assert_allclose([y.max() - 2, 2 - y.min()], [peak, peak], rtol=5e-3)
    largest = brentq(lambda x: x**2 / 4 - force * np.log(x / start) - start**2 / 4, 1e-3, 1)
    np.testing.assert_allclose(np.abs(x).max(), largest, rtol=5e-3)


def test_the_bursts_of_the_valley(burst):
    x, y = burst.valley(2000)
    up = np.flatnonzero((y[1:] > 2) & (y[:-1] <= 2)) + 1
    seen = np.flatnonzero((np.abs(x[1:]) >= 0.01) & (np.abs(x[:-1]) < 0.01)) + 1
    seen = seen[np.diff(seen, prepend=-1000) > 100]
    assert (seen - up[:3]).tolist() == [256, 258, 255]
    assert np.diff(seen).tolist() == [650, 649]
    peaks = [np.argmax(y[a:b]) + a for a, b in pairwise(up)]
    lows = [np.argmin(y[a:b]) + a for a, b in pairwise(up)]
    assert np.all(np.subtract(lows, peaks) <= 20)
    np.testing.assert_allclose(y[peaks], 2.26, atol=0.005)
    np.testing.assert_allclose(y[lows], 1.64, atol=0.007)
    np.testing.assert_allclose(np.abs(x).max(), 0.44, atol=0.01)
    between = slice(lows[0] + 200, up[1])
    assert np.max(np.abs(x[between])) < 1e-14
    require_said("2 and on to 2.26", "256, 258 and 255", "to 1.64; |x| reaches 0.44", "about 650")


def test_any_coupling_lets_the_oscillation_lower_the_curvature():
    curvature, rate, x, y = (lambda y: jnp.cosh(y - 1) + jnp.sin(3 * y)), 1e-4, 0.3, 0.7
    after = descended(lambda y: curvature(y) * x**2 / 2, y, rate)
    change = curvature(after) - curvature(y)
    assert change < 0
    expected = -rate / 2 * jax.grad(curvature)(y) ** 2 * x**2
    np.testing.assert_allclose(change, expected, rtol=1e-3)
    require_said("−½η λ′(y)² x²")


def two_classes(parameters, weights):
    """F as on the page, of (w, v)."""
    output = parameters[0] * parameters[1]
    return (weights[0] * jnp.log1p(jnp.exp(-output)) + weights[1] * jnp.log1p(jnp.exp(output))) / 2


@pytest.fixture(scope="module")
def held(burst):
    return burst.pulse(trained=False)


@pytest.fixture(scope="module")
def trained(burst):
    return burst.pulse(pulses=3)


def test_the_pulses_are_gradient_descent_on_the_loss_of_the_page(held, trained):
    for found, moves in ((held, 0.0), (trained, 1.0)):
        for step in (0, 1800, 2400, 2499, 2600):
            here = jnp.array([found.outer[step], found.output[step] / found.outer[step]])
            slope = jax.grad(two_classes)(here, found.weights[step])
            w, v = here - RATE * slope * jnp.array([moves, 1.0])
            np.testing.assert_allclose(found.output[step + 1], w * v, rtol=1e-9)
            np.testing.assert_allclose(found.outer[step + 1], w, rtol=1e-12)


def test_the_curvature_at_the_bottom_is_the_closed_form(held, trained):
    for found, all_of_it in ((held, False), (trained, True)):
        for step in (0, 2500, 3000):
            weights, w = found.weights[step], found.outer[step]
            bottom = jnp.array([w, np.log(weights[0] / weights[1]) / w])
            np.testing.assert_allclose(jax.grad(two_classes)(bottom, weights), 0, atol=1e-12)
            hessian = jax.hessian(two_classes)(bottom, weights)
            expected = jnp.linalg.eigvalsh(hessian)[-1] if all_of_it else hessian[1, 1]
            np.testing.assert_allclose(found.sharpness[step], expected, rtol=1e-9)


def test_with_w_held_the_class_weights_do_not_occur_in_the_curvature():
    found = [
        jax.hessian(two_classes)(jnp.array([7.5, 0.3]), jnp.array([first, 2 - first]))[1, 1]
        for first in (0.1, 1.0, 1.9)
    ]
    probability = 1 / (1 + np.exp(-7.5 * 0.3))
    np.testing.assert_allclose(found, 7.5**2 * probability * (1 - probability), rtol=1e-9)


def test_the_burst_with_w_held(burst, held):
    amplitude = LARGE_AMPLITUDE
    assert round((1 + amplitude) ** 2 / (4 * amplitude)) == 18
    middle, equal = OUTER**2 * amplitude / (1 + amplitude) ** 2, OUTER**2 / 4
    np.testing.assert_allclose(held.sharpness[[0, 2500]], [middle, equal], rtol=1e-9)
    assert (round(middle, 2), round(equal, 1)) == (0.78, 14.1)
    # (1 + g)²/g = ηw²/2 at the threshold, g the weight before it is normalised
    unscaled = max(np.roots([1, 2 - RATE * OUTER**2 / 2, 1]))
    phase = 1 - (unscaled - 1) / (2 * (amplitude - 1))
    above = held.phase[held.sharpness > 2]
    np.testing.assert_allclose([above[0], above[-1]], [phase, 2 - phase], atol=2e-4)
    assert np.round([above[0], above[-1]], 3).tolist() == [0.818, 1.182]
    seen = oscillating(held)
    np.testing.assert_allclose(seen[0], 0.853, atol=1.5e-3)  # it grows from rounding
    np.testing.assert_allclose(seen[-1], 1.191, atol=5e-4)
    shares = np.array([1, amplitude]) / (1 + amplitude)
    np.testing.assert_allclose(np.sort(held.weights[0] / 2), shares)
    assert np.round(shares, 3).tolist() == [0.014, 0.986]
    require_said(
        "0.014 or 0.986",
        "rises by a factor of (1 + A)²/4A = 18",
        "λ = 0.78",
        "w²/4 = 14.1",
        "at 0.818",
    )
    require_said("from about 0.853 on", "again at 1.182, and the burst is over at 1.191")


def oscillating(found):
    """Phases at which the output alternates by more than 0.02."""
    output = found.output
    size = np.abs(output[2:] - 2 * output[1:-1] + output[:-2]) / 4
    return found.phase[1:-1][size > 0.02]


def test_the_burst_with_w_trained_ends_itself(trained):
    seen = oscillating(trained)
    after = round((seen[-1] - 1) * 5000)
    assert 2.45 < trained.sharpness.max() < 2.5
    assert (round(seen[-1], 3), after) == (1.004, 22)
    switch, *later = np.flatnonzero((trained.phase % 1) == 0)
    assert (round(trained.outer[switch], 1), round(trained.sharpness[switch], 2)) == (2.8, 1.97)
    assert np.all(trained.sharpness[later] < trained.sharpness[switch])
    assert np.max(trained.sharpness[trained.phase > seen[-1]]) < 2
    require_said("no higher than 2.5", "1.004, 22 steps after", "w = 2.8", "w²/4 = 1.97")


def test_each_step_takes_that_part_of_the_difference_of_squares_away(trained):
    w, output = trained.outer, trained.output
    difference = w**2 - (output / w) ** 2
    probability = 1 / (1 + np.exp(-output))
    slope = (trained.weights[:, 1] * probability - trained.weights[:, 0] * (1 - probability)) / 2
    expected = difference[:-1] * (1 - RATE**2 * slope[:-1] ** 2)
    np.testing.assert_allclose(difference[1:], expected, rtol=1e-10)
    assert difference[-1] < 0.15 * difference[0]


@pytest.mark.slow
def test_the_kept_figures_are_of_these_models(burst, tmp_path):
    folder = DOCS / "concepts"
    assert {path.stem for path in folder.glob("burst-*.png")} == set(burst.FIGURES)
    for name, drawn in burst.FIGURES.items():
        require_said(f"({name}.png)")
        with style.styled():
            figure = drawn()
        style.save(figure, tmp_path / name, ["png"])
        kept, again = (
            np.asarray(Image.open(path / f"{name}.png").convert("L"), float)
            for path in (folder, tmp_path)
        )
        assert kept.shape == again.shape
        assert np.mean(np.abs(kept - again)) < 0.5, name
