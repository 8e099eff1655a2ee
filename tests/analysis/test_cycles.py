"""Cycles against closed forms, and what a search that fails says."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import OptimizerConfig, ScheduleConfig
from dlf_dynamics.analysis.bifurcation.cycles import find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.instabilities.training_map import training_map, training_state
from dlf_dynamics.config import LossConfig

LOGISTIC = Map(lambda x, r: r * x * (1 - x))
NOWHERE_FIXED = Map(lambda x, p: x + x**2 + p)


def descent(loss):
    """Gradient descent, its learning rate being the parameter."""
    return Map(lambda x, rate: x - rate * jax.grad(loss)(x))


LOG_COSH = descent(lambda x: jnp.sum(jnp.log(jnp.cosh(x))))
QUARTIC = descent(lambda x: x[0] ** 2 / 2 + x[0] ** 4 / 4)
DOUBLE_WELL = descent(lambda x: (x[0] ** 2 - 1) ** 2 / 4)
VALLEY = descent(lambda x: x[0] ** 2 / 2 + x[1] ** 2 / 8 + x[0] ** 2 * x[1] / 2 + x[0] ** 4 / 4)


@pytest.mark.parametrize("rate", [1.05, 1.2, 1.25])
def test_period_two_of_the_double_well(rate):
    found = find_cycle(DOUBLE_WELL, np.array([1.1]), rate, 2)
    sides = np.sqrt(1 + 3 / rate) + np.array([1, -1]) * np.sqrt(1 - 1 / rate)
    np.testing.assert_allclose(np.sort(found.points.ravel()), np.sort(sides / 2), rtol=1e-13)
    np.testing.assert_allclose(found.multipliers, [9 - 2 * (1 + rate) ** 2], atol=1e-12)
    assert found.converged
    assert found.residual < 1e-14
    assert (found.least_period, found.period, found.parameter) == (2, 2, rate)
    assert found.stable == (rate < np.sqrt(5) - 1)


def test_period_two_of_a_valley_that_bends():
    found = find_cycle(VALLEY, np.array([0.3, -0.1]), 2.1, 2)
    x = np.sqrt(1 - 2 / 2.1)
    expected = np.array([[x, -2 * x**2], [-x, -2 * x**2]])
    np.testing.assert_allclose(found.points * np.sign(found.points[0, 0]) ** [1, 0], expected)
    assert found.stable
    assert np.all(np.diff(np.abs(found.multipliers)) <= 0)


def test_symmetric_orbits():
    found = find_cycle(LOG_COSH, np.array([0.5]), 2.1, 2)
    np.testing.assert_allclose(np.abs(found.points), 0.3892410192, atol=1e-10)
    found = find_cycle(QUARTIC, np.array([0.25]), 1.9, 2)
    np.testing.assert_allclose(np.abs(found.points), 0.2294157, atol=1e-7)
    np.testing.assert_allclose(np.abs(found.points), np.sqrt(2 / 1.9 - 1), rtol=1e-13)
    assert found.converged
    assert not found.stable


def test_all_points_may_be_given():
    guess = np.array([[0.157], [0.505], [0.957]])
    found = find_cycle(LOGISTIC, guess, 3.83, 3)
    assert found.least_period == 3
    assert found.stable
    np.testing.assert_allclose(found.points, guess, atol=1e-3)


def test_complex_multipliers_come_in_pairs():
    turn = np.array([[0.6, -0.8], [0.8, 0.6]]) * 0.9
    found = find_cycle(Map(lambda x, p: turn @ x + p), np.ones(2), 0.5, 1)
    np.testing.assert_allclose(found.points[0], np.linalg.solve(np.eye(2) - turn, [0.5, 0.5]))
    np.testing.assert_allclose(found.multipliers, [0.54 + 0.72j, 0.54 - 0.72j])
    assert found.stable


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_units_of_the_state_do_not_matter(scale):
    scaled = Map(lambda x, r: r * x * (1 - x / scale))
    found = find_cycle(scaled, np.array([0.5 * scale]), 3.2, 2)
    expected = find_cycle(LOGISTIC, np.array([0.5]), 3.2, 2)
    np.testing.assert_allclose(found.points, scale * expected.points, rtol=1e-13)
    assert found.converged


def test_a_search_may_start_at_zero():
    found = find_cycle(Map(lambda x, p: p - x**2), np.zeros(2), 0.3, 1)
    assert found.converged
    np.testing.assert_allclose(found.points, (math.sqrt(1 + 4 * 0.3) - 1) / 2, rtol=1e-13)


@pytest.mark.parametrize("period", [2, 4])
def test_landing_on_a_shorter_cycle_is_told(period):
    found = find_cycle(LOGISTIC, np.array([0.68]), 3.2, period)
    assert found.converged
    assert found.least_period == 1
    assert f"found a cycle of period 1, not {period}" in found.message
    np.testing.assert_allclose(found.points, 1 - 1 / 3.2)


@pytest.mark.parametrize(("map_", "critical"), [(LOGISTIC, 3.0), (LOG_COSH, 2.0)])
def test_at_the_flip_itself_there_is_no_period_two(map_, critical):
    found = find_cycle(map_, np.array([0.5]), critical, 2)
    assert found.converged
    assert found.least_period == 1
    assert "1 multipliers on the unit circle" in found.message
    assert not found.stable
    beyond = find_cycle(map_, np.array([0.5]), critical + 1e-4, 2)
    assert beyond.least_period == 2
    assert beyond.stable


def test_a_direction_that_does_not_move_is_left_alone():
    factors = descent(lambda x: (1 - x[0] * x[1]) ** 2 / 2)
    found = find_cycle(factors, np.array([1.1, 1.2]), 0.5, 1)
    assert found.converged
    assert not found.stable
    np.testing.assert_allclose(np.prod(found.points), 1)
    np.testing.assert_allclose(np.abs(found.multipliers - 1).min(), 0, atol=1e-12)
    assert "multipliers on the unit circle" in found.message


def flat(x, p):
    """Moves on by exp(-x): fixed at infinity alone."""
    return x + p * jnp.exp(-x)


@pytest.mark.parametrize(
    ("map_", "start", "parameter", "message"),
    [
        (NOWHERE_FIXED, 0.1, 1.0, "the residual is .*start closer to the cycle"),
        (NOWHERE_FIXED, 1e13, 1.0, "not converged"),
        (LOG_COSH, 50.0, 1.9, "not converged"),
        (LOGISTIC, np.nan, 3.0, "not finite at the guess"),
        (LOGISTIC, np.inf, 3.0, "not finite at the guess"),
        (Map(lambda x, p: jnp.log(x)), -1.0, 3.0, "not finite at the guess"),
        (Map(lambda x, p: x + p), 1.0, 1.0, "singular, the cycle may not be isolated; start"),
        (Map(flat), 1.0, 1.0, "the residual fades but the steps do not shrink, as .* infinity"),
    ],
)
@pytest.mark.parametrize("period", [1, 2])
def test_a_search_that_fails_says_so(map_, start, parameter, message, period):
    found = find_cycle(map_, np.array([start]), parameter, period)
    assert not found.converged
    assert not found.stable
    assert found.least_period is None
    assert found.period == period
    assert re.search(message, found.message)


def test_too_few_steps_are_no_cycle():
    found = find_cycle(LOGISTIC, np.array([0.5]), 3.2, 2, max_steps=1)
    assert not found.converged
    assert "after 1 Newton steps the residual is" in found.message
    assert np.all(np.abs(found.multipliers) < 1)
    assert not found.stable


def test_what_cannot_be_searched_is_refused():
    for state, period, message in (
        (np.zeros(2), 0, "period is 0; expected at least 1"),
        (np.zeros((3, 1)), 2, r"state has shape \(3, 1\); expected \(n,\), or \(2, n\)"),
        (np.float64(1.0), 1, r"state has shape \(\)"),
        (np.zeros(0), 1, r"state has shape \(0,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            find_cycle(LOGISTIC, state, 3.0, period)
    with jax.enable_x64(False), pytest.raises(ValueError, match="computed in float64; switch it"):
        find_cycle(LOGISTIC, np.zeros(1), 3.0, 1)


@pytest.fixture
def oscillating(small, trained):
    """A run with squared error and a static loss, and a state that is close to period 2."""
    run = trained(
        replace(
            small,
            loss=LossConfig("squared-error"),
            schedule=ScheduleConfig("static"),
            optimizer=OptimizerConfig(learning_rate=0.85),
        )
    )
    ((point,),) = run.points([3], 1)
    return run, run.state(point)


def test_a_cycle_of_a_run_is_one_of_its_own_dynamics(oscillating):
    run, state = oscillating
    map_ = training_map(run, int(state.step))
    rate = float(run.dynamics.learning_rate(0))
    settled = jax.jit(lambda m, x: m.iterate(x, rate, 3000))(map_, training_state(state))
    found = find_cycle(map_, settled, rate, 2)
    assert found.converged
    assert found.least_period == 2
    now = state._replace(params=jnp.asarray(found.points[0]))
    after, _ = run.dynamics.step(now)
    twice, _ = run.dynamics.step(after)
    np.testing.assert_allclose(after.params, found.points[1], atol=1e-14)
    np.testing.assert_allclose(twice.params, found.points[0], atol=1e-14)
    assert np.max(np.abs(after.params - now.params)) > 1e-3


TENT = Map(lambda x, p: p * jnp.minimum(x, 1 - x))


def test_kinks_are_named_and_beside_them_stability_is_that_of_the_piece():
    found = find_cycle(TENT, np.array([0.55]), 1.5, 1)
    np.testing.assert_allclose(found.points, [[0.6]])
    np.testing.assert_allclose(found.multipliers, [-1.5])
    assert found.stable is False
    assert not found.on_kink
    assert "the map has kinks (min)" in found.message
    assert "border collision" in found.message
    assert "kinks" not in find_cycle(LOGISTIC, np.array([0.5]), 2.5, 1).message


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (lambda x, p: p * jnp.minimum(x, 1 - x) + (1 - p) / 2, 0.5),
        (lambda x, p: p * jnp.abs(x), 0.0),
        (lambda x, p: jnp.where(x < 0, p * x, -2 * x), 0.0),  # stable: two steps shrink
        (lambda x, p: jnp.where(x <= 0, x / 2, x / 2 + p), 0.0),  # a jump to p
        (lambda x, p: jnp.floor(x) + 0 * p, 3.0),
    ],
    ids=["min", "abs", "where", "jump", "floor"],
)
def test_of_a_cycle_on_a_kink_stability_is_not_known(step, state):
    found = find_cycle(Map(step), np.array([state]), 0.25, 1)
    assert found.converged
    np.testing.assert_allclose(found.points, [[state]])
    assert found.on_kink
    assert found.stable is None
    assert "a point lies on a kink or a jump" in found.message


def test_one_kink_among_many_directions_is_seen_and_none_beside_it():
    rng = np.random.default_rng(3)
    weights, shift = rng.standard_normal((20, 8)), np.zeros(20)
    shift[1:] = rng.standard_normal(19)  # the first unit's kink passes through 0
    loss = lambda x: jnp.sum(jax.nn.relu(weights @ x + shift))  # noqa: E731
    pull = jax.grad(loss)(jnp.zeros(8))
    map_ = Map(lambda x, rate: x / 2 - rate * (jax.grad(loss)(x) - pull))
    found = find_cycle(map_, np.zeros(8), 0.01, 1)
    assert found.on_kink
    assert found.stable is None
    shift[0] = 1e-3
    apart = find_cycle(descent(lambda x: jnp.sum(x**2) / 2 + loss(x) * 1e-6), np.zeros(8), 0.5, 1)
    assert apart.converged
    assert apart.stable
    assert not apart.on_kink
