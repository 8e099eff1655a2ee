"""The rod equation against orbits of period 2, in closed form and of networks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dlf_dynamics.analysis.bifurcation.rod import rod_amplitude
from dlf_dynamics.analysis.instabilities.training_map import training_map, training_state
from dlf_dynamics.problem import Problem


def log_cosh(x):
    return jnp.sum(jnp.log(jnp.cosh(x)))


def double_well(x):
    return jnp.sum((x**2 - 1) ** 2) / 4


def product(x):
    return (1 - x[0] * x[1]) ** 2 / 2


def coupled(x):
    return x[0] ** 2 / 2 + x[1] ** 2 / 8 + x[0] ** 2 * x[1] / 2 + x[0] ** 4 / 4


@pytest.mark.parametrize("start", [1e-3, 0.1, 1.0, 30.0, -1.0])
def test_a_symmetric_valley(start):
    found = rod_amplitude(log_cosh, jnp.zeros(1), 2.1, np.array([start]))
    assert found.converged, found.message
    assert found.amplitude == pytest.approx(0.3892410192, abs=1e-9)
    assert found.along == pytest.approx(found.amplitude, rel=1e-12)
    assert np.sign(found.difference[0]) == np.sign(start)
    assert found.residual <= 1e-9
    assert found.error <= 1e-6
    state = found.difference[0]
    assert state - 2.1 * np.tanh(state) == pytest.approx(-state, abs=1e-9)


@pytest.mark.parametrize("rate", [1.001, 1.1, 1.2, 1.5])
def test_the_two_states_of_gradient_descent_in_a_double_well(rate):
    centre, half = np.sqrt(1 + 3 / rate) / 2, np.sqrt(1 - 1 / rate) / 2
    for start in (half / 10, 10 * half):
        found = rod_amplitude(double_well, jnp.array([centre]), rate, np.array([start]), tol=1e-11)
        assert found.converged, found.message
        assert found.amplitude == pytest.approx(half, abs=1e-8)


@pytest.mark.parametrize("rate", [2.1, 2.3])
def test_an_orbit_that_bends(rate):
    # The states (±x, y) with x² = 1 - 2/η and y = -2x² have the mean (0, y).
    x2 = 1 - 2 / rate
    found = rod_amplitude(coupled, jnp.array([0.0, -2 * x2]), rate, np.array([0.5, 0.3]))
    assert found.converged, found.message
    np.testing.assert_allclose(found.difference, [np.sqrt(x2), 0], rtol=0, atol=1e-9)
    assert found.along == pytest.approx(np.sqrt(x2) * 0.5 / np.hypot(0.5, 0.3), abs=1e-9)


def test_flat_directions_of_the_centre_do_no_harm():
    found = rod_amplitude(product, jnp.array([1.1, 1.1]), 1.0, np.array([0.1, 0.1]))
    # On the diagonal, with d = (a, a) and w = (z, z): 3 z² a + a³ - a = 2 a / η.
    assert found.converged is False  # 3 z² - 1 > 2: the curvature is too high for any amplitude
    found = rod_amplitude(product, jnp.array([0.9, 0.9]), 1.0, np.array([0.1, 0.1]))
    assert found.converged, found.message
    np.testing.assert_allclose(found.difference, np.sqrt(3 - 3 * 0.81), rtol=0, atol=1e-9)


def top_direction(gradient, centre):
    values, vectors = np.linalg.eigh(np.asarray(jax.jit(jax.jacfwd(gradient))(centre)))
    return values[-1], vectors[:, -1]


def check(gradient, found, centre, rate):
    """It solves the equation, by gradients of its own."""
    force = gradient(centre + found.difference) - gradient(centre - found.difference)
    np.testing.assert_allclose(
        force / 2, 2 * found.difference / rate, rtol=0, atol=1e-8 * found.amplitude / rate
    )


def test_the_orbit_of_a_network_at_a_minimum():
    inputs = jnp.linspace(-1, 1, 12)
    targets = jnp.sin(3 * inputs)

    def apply(params, inputs):
        return jnp.tanh(inputs[:, None] * params[:5] + params[5:10]) @ params[10:15] + params[15]

    def loss(problem, params):
        return problem.objective(params, 0) + 0.01 * jnp.sum(params**2)

    problem = Problem(apply, lambda outputs, targets: (outputs - targets) ** 2, inputs, targets)
    loss = Partial(loss, problem)
    gradient = jax.jit(jax.grad(loss))

    @jax.jit
    def settle(params, rate):
        return jax.lax.fori_loop(0, 50_000, lambda _, x: x - rate * jax.grad(loss)(x), params)

    minimum = settle(jax.random.normal(jax.random.key(1), (16,)), 0.1)
    value, top = top_direction(gradient, minimum)
    rate = 2.1 / value
    one = settle(minimum + 0.01 * top, rate)
    other = one - rate * gradient(one)
    assert np.linalg.norm(other - rate * gradient(other) - one) < 1e-13
    centre, half = (one + other) / 2, (one - other) / 2
    size = float(np.linalg.norm(half))
    assert size > 0.01
    for start in (half, 2 * size * top, -0.5 * size * top):
        found = rod_amplitude(loss, centre, rate, start, tol=1e-11)
        assert found.converged, found.message
        sign = np.sign(found.difference @ half)
        np.testing.assert_allclose(sign * found.difference, half, rtol=0, atol=1e-8)
        check(gradient, found, centre, rate)


def test_a_network_in_training_whose_centre_moves(eventful, trained):
    run = trained(replace(eventful, steps=10))
    map_, rate = training_map(run, 5), 3.0
    ((point,),) = run.points([5], 1)
    step = jax.jit(lambda x: jax.lax.scan(lambda x, _: (map_(x, rate), x), x, length=3000)[1])
    states = np.asarray(step(training_state(run.state(point))))
    before, now, after = states[:-2], states[1:-1], states[2:]
    centres, halves = (before + 2 * now + after) / 4, (before - 2 * now + after) / 4
    sizes, moves = np.linalg.norm(halves, axis=1), np.linalg.norm(after - before, axis=1)
    gradient = jax.jit(lambda x: jax.grad(run.problem.objective)(x, 5))
    settled = [
        at
        for at in range(500, 2990, 125)
        if sizes[at] > 0.1 and np.ptp(sizes[at - 20 : at + 1]) < 0.01 * sizes[at]
    ]
    assert len(settled) >= 3
    for at in settled:
        assert moves[at] > 0.01 * sizes[at]  # it is no orbit of period 2 that returns
        found = rod_amplitude(run.problem, centres[at], rate, 1.3 * halves[at], step=5)
        assert found.converged, found.message
        assert found.amplitude == pytest.approx(sizes[at], rel=0.02)
        check(gradient, found, centres[at], rate)


def test_where_there_is_no_orbit_none_is_reported():
    below = rod_amplitude(log_cosh, jnp.zeros(2), 1.9, np.array([0.3, 0.1]))
    assert not below.converged
    assert "no orbit found" in below.message
    # Each d solves the equation of a quadratic at its threshold.
    for rate in (2.0, 2.0 + 1e-12):
        level = rod_amplitude(lambda x: jnp.sum(x**2) / 2, jnp.zeros(1), rate, np.array([0.3]))
        assert not level.converged
        assert "the amplitude is not determined" in level.message
    # So nearly does a small d about a centre at its flip.
    small = rod_amplitude(log_cosh, jnp.zeros(1), 2.0, np.array([1e-6]))
    assert not small.converged
    infinite = rod_amplitude(lambda x: jnp.exp(x[0] ** 2), jnp.zeros(1), 1.0, np.array([100.0]))
    assert not infinite.converged
    assert infinite.message == "gradients are not finite"


def test_what_it_may_not_spend_it_does_not_spend():
    start = np.array([1.0, 0.2])
    arguments = (coupled, jnp.array([0.0, -0.2]), 2.1, start)
    whole = rod_amplitude(*arguments)
    assert whole.converged
    steps = rod_amplitude(*arguments, max_steps=1)
    assert not steps.converged
    assert steps.num_steps == 1
    assert "not solved in 1 steps; allow more, or start closer" in steps.message
    products = rod_amplitude(*arguments, max_products=2)
    assert not products.converged
    assert "products; allow more" in products.message
    assert products.num_products < whole.num_products


def test_a_loss_with_arrays_and_single_precision():
    loss = Partial(lambda scale, x: jnp.sum(scale * jnp.log(jnp.cosh(x))), jnp.float32(2.0))
    found = rod_amplitude(loss, jnp.zeros(1, jnp.float32), 1.05, np.array([0.2]), tol=1e-5)
    assert found.converged, found.message
    assert found.amplitude == pytest.approx(0.3892410192, abs=5e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"direction": np.zeros(1)}, r"the direction has shape \(1,\) and length 0.0"),
        ({"direction": np.ones(2)}, r"the direction has shape \(2,\) .* expected \(1,\)"),
        ({"direction": np.array([np.nan])}, "and length nan"),
    ],
)
def test_what_makes_no_equation_is_refused(changes, message):
    arguments = {"learning_rate": 2.1, "direction": np.ones(1), **changes}
    with pytest.raises(ValueError, match=message):
        rod_amplitude(log_cosh, jnp.zeros(1), **arguments)
