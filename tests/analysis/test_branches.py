"""Branches of frozen-loss diagrams on losses whose orbits are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.instabilities import branches as module
from dlf_dynamics.analysis.instabilities.branches import Frozen, follow_branches
from dlf_dynamics.problem import Problem


def system(loss, size):
    """A problem that is a function of its parameters, and gradient descent on it."""
    problem = Problem(
        apply=lambda theta, inputs: inputs * theta,
        criterion=lambda outputs, targets: jax.vmap(loss)(outputs) + 0 * targets,
        inputs=jnp.ones((1, size)),
        targets=jnp.zeros(1),
    )
    return problem, Map(lambda x, rate: x - rate * jax.grad(loss)(x))


def double_well(x):
    """(x² - 1)² / 4 beside a stable direction y²/4, and flat ones."""
    return (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 4


def coupled(x):
    """The two-step multipliers of its orbit are no products of curvatures along it."""
    return x[0] ** 2 / 2 + x[1] ** 2 / 8 + x[0] ** 2 * x[1] / 2 + x[0] ** 4 / 4


def branches(loss, rates, start=(0.9, 0.3), direction=(1.0, 0.0), settle=3000, **settings):
    problem, descent = system(loss, len(start))
    places = [Frozen(rate, rate, 0) for rate in rates]
    at, along = jnp.array(start), jnp.array(direction)
    largest = sharpness_of(problem)
    return follow_branches(descent, problem, at, along, places, settle, largest, **settings)


def sharpness_of(problem):
    """By dense matrices."""

    def largest(centres, places):
        at = zip(centres, places, strict=True)
        matrices = [jax.hessian(problem.objective)(theta, place.step) for theta, place in at]
        return np.array([np.max(np.linalg.eigvalsh(matrix) + 0 * matrix) for matrix in matrices])

    return largest


def padded(vector, size):
    return (*vector, *np.zeros(size - len(vector)))


def test_the_centre_and_the_orbit_of_the_double_well_are_found_with_their_multipliers():
    rates = np.array([0.8, 1.1, 1.2, 1.23])
    found = branches(double_well, rates)
    np.testing.assert_array_equal(found.values, rates)
    # Below the flip at 1 the centre is the minimum, of curvature 2; above it is between the points.
    points = [np.sqrt(1 + 3 / rates[1:]) + s * np.sqrt(1 - 1 / rates[1:]) for s in (1, -1)]
    middle = (points[0] + points[1]) / 4
    np.testing.assert_allclose(found.centre[0], 1 - 0.8 * 2, atol=1e-9)
    np.testing.assert_allclose(found.centre[1:], 1 - rates[1:] * (3 * middle**2 - 1), atol=1e-6)
    assert found.opposed.tolist() == [0, 1, 1, 1]
    assert np.isnan(found.amplitude[0])
    assert np.isnan(found.multiplier[0])
    np.testing.assert_allclose(found.amplitude[1:], np.sqrt(1 - 1 / rates[1:]) / 2, rtol=1e-7)
    assert np.all(found.residual[1:] <= 1e-9)
    both = np.array([9 - 2 * (1 + rates[1:]) ** 2, (1 - rates[1:] / 2) ** 2])
    largest = both[np.argmax(np.abs(both), axis=0), range(3)]
    np.testing.assert_allclose(found.multiplier[1:], largest, atol=1e-6)
    assert found.stability.tolist() == [b"", b"stable", b"stable", b"stable"]
    assert found.neutral.tolist() == [-1, 0, 0, 0]


RATES = np.array([2.01, 2.1, 2.15])
PUBLISHED = [0.957, 0.78, 0.924]


def orbit_multipliers(rate):
    """All of the orbit x² = 1 - 2/η, y = -2x² of the coupled valley, and its Rayleigh quotients."""
    x = np.sqrt(1 - 2 / rate)
    hessians = [np.array([[1 - 2 * x**2 + 3 * x**2, s * x], [s * x, 0.25]]) for s in (1, -1)]
    jacobians = [np.eye(2) - rate * hessian for hessian in hessians]
    values = np.linalg.eigvals(jacobians[1] @ jacobians[0])
    return values, jacobians[0][0, 0] * jacobians[1][0, 0]


def test_an_orbit_is_stable_where_the_product_of_its_rayleigh_quotients_is_beyond_1():
    found = branches(coupled, RATES, start=(0.2, -0.05))
    for row, rate in enumerate(RATES):
        values, product = orbit_multipliers(rate)
        assert product > 1.03
        np.testing.assert_allclose(np.max(np.abs(values)), PUBLISHED[row], atol=6e-4)
        np.testing.assert_allclose(abs(found.multiplier[row]), np.max(np.abs(values)), atol=1e-7)
    assert found.stability.tolist() == [b"stable"] * 3
    np.testing.assert_allclose(found.amplitude, np.sqrt(1 - 2 / RATES), rtol=1e-7)


def test_of_many_parameters_arnoldis_method_finds_the_multipliers_that_are_not_neutral():
    size = 150
    curvatures = np.concatenate([np.linspace(0.1, 0.45, 30), np.zeros(size - 32)])
    loss = lambda x: coupled(x) + curvatures @ x[2:] ** 2 / 2  # noqa: E731
    start, along = padded((0.2, -0.05), size), padded((1.0,), size)
    found = branches(loss, RATES, start=start, direction=along)
    expected = [
        np.max(np.abs(np.append(orbit_multipliers(rate)[0], (1 - rate * curvatures[:30]) ** 2)))
        for rate in RATES
    ]
    np.testing.assert_allclose(np.abs(found.multiplier), expected, atol=1e-6)
    assert np.all(found.multiplier_residual < 1e-5)
    assert found.stability.tolist() == [b"none found"] * 3
    assert found.neutral.tolist() == [-1] * 3


def test_neutral_multipliers_are_counted_apart():
    curvatures = np.zeros(7)
    loss = lambda x: coupled(x) + curvatures @ x[2:] ** 2  # noqa: E731
    start, along = padded((0.2, -0.05), 9), padded((1.0,), 9)
    found = branches(loss, RATES[1:2], start=start, direction=along)
    assert found.neutral.tolist() == [7]
    assert found.stability.tolist() == [b"none found"]
    np.testing.assert_allclose(abs(found.multiplier), 0.78, atol=6e-4)


@pytest.mark.parametrize("size", [2, 150])
def test_beyond_the_second_flip_the_orbit_is_still_there_and_unstable(size):
    start, along = padded((0.9, 0.3), size), padded((1.0,), size)
    rates = np.array([1.25, 1.28])  # the iterates have period 4
    found = branches(double_well, rates, start=start, direction=along)
    np.testing.assert_allclose(found.amplitude, np.sqrt(1 - 1 / rates) / 2, rtol=1e-7)
    np.testing.assert_allclose(found.multiplier, 9 - 2 * (1 + rates) ** 2, atol=1e-6)
    assert found.stability.tolist() == [b"unstable"] * 2
    assert np.all(found.multiplier_residual < 1e-6)


def test_a_ritz_value_outside_that_has_not_converged_leaves_it_open():
    values = np.array([1.2, 0.5, 1.0 + 0j])
    told = module._told(values, np.array([np.inf, 0, 0]), module.BEYOND, False)
    assert told == (0.5, 0.0, -1, "unknown")
    assert module._told(values, np.zeros(3), module.BEYOND, False)[3] == "unstable"
    on_it = module._told(np.array([-1 + 1e-9j]), np.zeros(1), 1e-8, True)
    assert on_it.stability == "unknown"
    nothing = module._told(np.array([np.nan + 0j]), np.zeros(1), 1e-8, True)
    assert nothing.stability == "unknown"


def test_with_kinks_an_orbit_has_no_stability():
    found = branches(double_well, [1.1], smooth=False)
    np.testing.assert_allclose(found.amplitude, np.sqrt(1 - 1 / 1.1) / 2, rtol=1e-7)
    assert found.stability.tolist() == [b"unknown"]
    assert np.isnan(found.multiplier[0])


def test_an_orbit_across_the_direction_is_not_drawn_on_the_zero_line():
    found = branches(double_well, [1.1], direction=(0.0, 1.0))
    assert found.opposed.tolist() == [1]
    assert np.isnan(found.amplitude[0])
    assert found.stability.tolist() == [b""]


def test_with_momentum_the_orbit_is_that_of_gradient_descent_and_the_multipliers_its_own():
    momentum, rates = 0.5, np.array([1.05, 1.1]) * 1.5
    problem, _ = system(double_well, 2)

    def step(state, rate):
        velocity = momentum * state[2:] - rate * jax.grad(double_well)(state[:2])
        return jnp.concatenate([state[:2] + velocity, velocity])

    places = [Frozen(rate, rate / (1 + momentum), 0) for rate in rates]
    start, along = jnp.array([1.15, 0.1, 0.4, 0]), jnp.array([1.0, 0])
    found = follow_branches(Map(step), problem, start, along, places, 3000, sharpness_of(problem))
    equivalent = rates / (1 + momentum)
    np.testing.assert_allclose(found.amplitude, np.sqrt(1 - 1 / equivalent) / 2, rtol=1e-7)
    for row, (rate, plain) in enumerate(zip(rates, equivalent, strict=True)):
        points = [(np.sqrt(1 + 3 / plain) + s * np.sqrt(1 - 1 / plain)) / 2 for s in (1, -1)]
        whole = np.eye(2)
        for x in points:
            push = -rate * (3 * x**2 - 1)
            whole = np.array([[1 + push, momentum], [push, momentum]]) @ whole
        beside = np.array([[1 - rate / 2, momentum], [-rate / 2, momentum]])
        values = np.append(np.linalg.eigvals(whole), np.linalg.eigvals(beside) ** 2)
        np.testing.assert_allclose(abs(found.multiplier[row]), np.max(np.abs(values)), atol=1e-6)
    assert found.stability.tolist() == [b"stable"] * 2


def test_an_orbit_that_escapes_has_no_branch_and_chaos_no_centre():
    found = branches(double_well, [2.5, 1.9])
    assert np.isnan([found.centre[0], found.amplitude[0], found.opposed[0]]).all()
    assert 0 < found.opposed[1] < 1
