"""Cycles without matrices: against closed forms and the dense method, and searches that fail."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation import newton_krylov
from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
from dlf_dynamics.analysis.bifurcation.cycles import MAX_UNKNOWNS, find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.newton_krylov import Subspace, gmres, slow_modes

LARGE = MAX_UNKNOWNS + 500
RATE = 2.1


def descent(loss):
    return Map(lambda x, rate: x - rate * jax.grad(loss)(x))


def reflected(size, seed=7):
    """X ↦ x - 2 v (v·x), which mixes all directions and is its own inverse."""
    vector = np.random.default_rng(seed).standard_normal(size)
    vector /= np.linalg.norm(vector)
    return lambda x: x - 2 * vector * (vector @ x)


def valley(curvatures, mixed):
    """The coupled valley, whose orbit of period 2 is known, beside quadratic directions."""

    def loss(x):
        y = mixed(x)
        bent = y[0] ** 2 / 2 + y[1] ** 2 / 8 + y[0] ** 2 * y[1] / 2 + y[0] ** 4 / 4
        return bent + jnp.sum(curvatures * y[2:] ** 2) / 2

    return descent(loss)


def orbit_of_the_valley(size, mixed, rate=RATE):
    x = np.sqrt(1 - 2 / rate)
    points = np.zeros((2, size))
    points[:, 0], points[:, 1] = (x, -x), -2 * x**2
    jacobians = [np.eye(2) - rate * np.array([[1 + x**2, s * x], [s * x, 0.25]]) for s in (1, -1)]
    return np.stack([mixed(row) for row in points]), np.linalg.eigvals(jacobians[1] @ jacobians[0])


def curvatures_of(size, unstable=()):
    """Some hundreds close to 0, which are slow, many of them together, and some apart."""
    slow = 10 ** np.random.default_rng(0).uniform(-4, -2.5, (size - 2) // 2)
    others = np.linspace(0.3, 0.7, size - 2 - len(slow) - len(unstable))
    return np.concatenate([slow, others, unstable])


@pytest.mark.parametrize("unstable", [(), (-0.05,)])
def test_an_orbit_with_slow_and_unstable_directions_is_that_of_the_closed_form(unstable):
    mixed, curvatures = reflected(LARGE), curvatures_of(LARGE, unstable)
    expected, multipliers = orbit_of_the_valley(LARGE, mixed)
    rng = np.random.default_rng(1)
    guess = expected + 0.02 * rng.standard_normal(expected.shape) / LARGE**0.5
    found = find_cycle(valley(curvatures, mixed), guess, RATE, 2)
    assert found.converged, found.message
    assert found.residual <= 1e-12
    assert found.least_period == 2
    sign = np.sign(found.points[0] @ expected[0])
    np.testing.assert_allclose(found.points, expected if sign > 0 else expected[::-1], atol=1e-8)
    dense = np.concatenate([multipliers, (1 - RATE * curvatures) ** 2])
    largest = dense[np.lexsort((-dense.imag, -np.abs(dense).round(9)))]
    apart = largest[(np.abs(largest - 1) > 0.02) | (largest.real > 1)]
    np.testing.assert_allclose(found.multipliers[:1], apart[:1], atol=1e-6)
    assert found.multiplier_residuals is not None
    assert found.multiplier_residuals[0] <= 1e-6
    assert found.outside is (True if unstable else None)
    assert found.stable is (False if unstable else None)
    assert found.neutral_found


def mixed_network(size, inputs=40):
    """Gradient descent of a tanh network with two layers of weights, pulled to where it starts."""
    rng = np.random.default_rng(3)
    width = size // (inputs + 1)
    start = rng.standard_normal(width * (inputs + 1))
    data, targets = rng.standard_normal((20, inputs)), rng.standard_normal(20)

    def loss(x):
        weights, outputs = x[: width * inputs].reshape(inputs, width), x[width * inputs :]
        hidden = jnp.tanh(data @ weights / inputs**0.5)
        misfit = hidden @ outputs / width**0.5 - targets
        return jnp.mean(misfit**2) / 2 + 0.025 * jnp.sum((x - start) ** 2)

    return loss, start


@pytest.mark.parametrize("size", [164, pytest.param(1025, marks=pytest.mark.slow)])
def test_it_finds_what_the_dense_method_finds(size):
    loss, start = mixed_network(size)
    map_ = descent(loss)
    centre = find_cycle(map_, start, 1.0, 1, matrix_free=True)
    assert centre.converged, centre.message
    curvatures, vectors = np.linalg.eigh(jax.hessian(loss)(jnp.asarray(centre.points[0])))
    rate = 2.01 / curvatures[-1]
    guess = centre.points[0] + np.outer([1, -1], vectors[:, -1]) * 0.18 * (size / 164) ** 0.5
    dense = find_cycle(map_, guess, rate, 2)
    assert dense.converged
    assert dense.least_period == 2
    found = find_cycle(map_, guess, rate, 2, matrix_free=True)
    assert found.converged, found.message
    assert found.least_period == 2
    np.testing.assert_allclose(found.points, dense.points, atol=1e-9)
    apart = dense.multipliers[np.abs(dense.multipliers - 1) > 0.02]
    np.testing.assert_allclose(found.multipliers[:2], apart[:2], atol=1e-6)
    assert found.stable is None or not dense.stable


def test_what_it_costs_is_counted(monkeypatch):
    calls = {"_carry": 0, "_images": 0}
    for name in calls:
        function = getattr(newton_krylov, name)

        def counted(*arguments, name=name, function=function):
            calls[name] += len(arguments[1])  # a product, or an evaluation, for each point
            return function(*arguments)

        monkeypatch.setattr(newton_krylov, name, counted)
    mixed = reflected(120)
    guess = orbit_of_the_valley(120, mixed)[0] + 1e-3
    found = find_cycle(valley(curvatures_of(120), mixed), guess, RATE, 2, matrix_free=True)
    assert found.converged
    assert found.jacobian_products == calls["_carry"] > 20
    assert found.map_evaluations == calls["_images"] > 4
    dense = find_cycle(valley(curvatures_of(120), mixed), guess, RATE, 2)
    assert dense.jacobian_products is dense.map_evaluations is dense.multiplier_residuals is None


def test_a_guess_on_another_orbit_is_told():
    mixed = reflected(300)
    found = find_cycle(
        valley(curvatures_of(300), mixed), np.full(300, 1e-4), RATE, 2, matrix_free=True
    )
    assert found.converged
    assert found.least_period == 1
    assert "found a cycle of period 1, not 2" in found.message
    assert found.stable is False  # beyond its flip


def test_an_orbit_that_is_not_isolated_is_told():
    sphere = descent(lambda x: (1 - jnp.sum(x**2)) ** 2 / 4)
    found = find_cycle(sphere, np.full(LARGE, 1.05 / LARGE**0.5), 0.3, 1)
    assert found.converged
    np.testing.assert_allclose(np.linalg.norm(found.points), 1, atol=1e-12)
    assert "cannot be distinguished from +1, the cycle may not be isolated" in found.message
    assert found.stable is None


def turned(x, p):
    """1 - M is a turn of the components, of which GMRES sees nothing until it has made them all."""
    return x + p * jnp.roll(x, 1) + jnp.eye(1, len(x))[0]


@pytest.mark.parametrize(
    ("step", "start", "message"),
    [
        (turned, 0.0, "GMRES left more than half of a linear system"),
        (lambda x, p: x + p, 1.0, "GMRES left more than half"),
        (lambda x, p: x * p / 0, 1.0, "not finite at the guess"),
        (lambda x, p: x, np.nan, "not finite at the guess"),
        (lambda x, p: x + p * jnp.exp(-x), 1.0, "the steps do not shrink, as on the way to inf"),
        (lambda x, p: x + x**2 + p, 0.1, "the residual is .*start closer"),
    ],
)
def test_a_search_that_fails_says_so(step, start, message):
    found = find_cycle(Map(step), np.full(400, start), 1.0, 1, matrix_free=True)
    assert not found.converged
    assert found.stable is False
    assert found.least_period is None
    assert not np.any(np.isnan(found.points)) or np.isnan(start)
    assert re.search(message, found.message), found.message


def test_too_few_steps_are_no_cycle():
    mixed = reflected(200)
    found = find_cycle(
        valley(curvatures_of(200), mixed), np.full(200, 0.1), RATE, 2, max_steps=1, matrix_free=True
    )
    assert not found.converged
    assert "after 1 Newton steps" in found.message


def test_kinks_are_told_and_no_stability_of_them():
    tent = Map(lambda x, p: p * (0.5 - jnp.abs(x - 0.5)))
    found = find_cycle(tent, np.full(LARGE, 0.45), 1.5, 2)
    assert found.converged
    np.testing.assert_allclose(found.points[0], 1.5 / 3.25, rtol=1e-12)
    np.testing.assert_allclose(found.points[1], 2.25 / 3.25, rtol=1e-12)
    np.testing.assert_allclose(found.multipliers, [-2.25] * 5)
    assert "the map has kinks (abs): multipliers say nothing about a finite" in found.message
    assert "border collision" in found.message
    assert found.stable is None
    assert found.outside is None


def test_of_a_network_of_relus_kinks_are_told():
    data = np.random.default_rng(0).standard_normal((5, 4))
    loss = lambda x: jnp.mean(jax.nn.relu(data @ x.reshape(4, 10)).sum(axis=1) ** 2)  # noqa: E731
    found = find_cycle(descent(loss), np.full(40, 0.1), 0.01, 1, matrix_free=True)
    assert "the map has kinks (" in found.message


def test_slow_modes_are_moved_to_where_gmres_does_not_see_them():
    size, rng = 300, np.random.default_rng(2)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    multipliers = np.concatenate([1 - np.logspace(-4, -2, 12), rng.uniform(-0.3, 0.3, size - 12)])
    matrix = (turn * multipliers) @ turn.T
    product = lambda vector: vector - matrix @ vector  # noqa: E731
    right = rng.standard_normal(size)
    plain = gmres(product, right, 1e-10, None)
    known = slow_modes(plain, None)
    assert known is not None
    np.testing.assert_allclose(known.basis @ known.basis.T, np.eye(len(known.basis)), atol=1e-5)
    deflated = gmres(product, rng.standard_normal(size), 1e-10, known)
    assert len(deflated.directions) < 0.7 * len(plain.directions)
    exact = Subspace(
        turn[:, :12].T, turn[:, :12].T * multipliers[:12, None], np.diag(multipliers[:12])
    )
    best = gmres(product, right, 1e-10, exact)
    assert len(best.directions) < 0.5 * len(plain.directions)
    for solution in (plain, best):
        expected = np.linalg.solve(np.eye(size) - matrix, right)
        np.testing.assert_allclose(solution.vector, expected, rtol=1e-4, atol=1e-4)
        images = solution.directions - solution.directions @ matrix.T
        np.testing.assert_allclose(solution.images, images, atol=1e-9)


def test_the_size_is_refused_where_jacobians_are_needed():
    map_ = Map(lambda x, p: p * x)
    with pytest.raises(ValueError, match="the state has 2500 components; Jacobians are formed up"):
        continue_cycle(map_, np.zeros(LARGE), 0.5, 1, until=(0.1, 0.9))
    with pytest.raises(ValueError, match="the state has 2500 components; Jacobians are formed up"):
        find_cycle(map_, np.zeros(LARGE), 0.5, 1, matrix_free=False)
    with pytest.raises(ValueError, match="k is 0; expected at least 1 multiplier"):
        find_cycle(map_, np.zeros(3), 0.5, 1, k=0)
