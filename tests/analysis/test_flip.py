"""The flip coefficient against closed forms, dense derivatives and the orbits themselves."""

import functools
import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dlf_dynamics.analysis.bifurcation import directions
from dlf_dynamics.analysis.bifurcation.flip import flip_coefficient
from dlf_dynamics.problem import Problem

STANDARD = (0, 5, 20, 100)


def double_well(x):
    return (x[0] ** 2 - 1) ** 2 / 4


def quartic(x):
    return x[0] ** 2 / 2 + x[0] ** 4 / 4


def log_cosh(x):
    return jnp.log(jnp.cosh(x[0]))


def product(x):
    return (1 - x[0] * x[1]) ** 2 / 2


def power(k, x):
    return (1 - x[0] ** k) ** 2 / 2


def coupled(x):
    return x[0] ** 2 / 2 + x[1] ** 2 / 8 + x[0] ** 2 * x[1] / 2 + x[0] ** 4 / 4


@pytest.mark.parametrize(
    ("loss", "at", "rate", "expected", "criticality"),
    [
        (double_well, [1.0], 1.0, 8.0, "supercritical"),
        (quartic, [0.0], 2.0, -2.0, "subcritical"),
        (log_cosh, [0.0], 2.0, 2 / 3, "supercritical"),
        (coupled, [0.0, 0.0], 2.0, 2.0, "supercritical"),
        (product, [1.0, 1.0], 1.0, 4.0, "supercritical"),
        *(
            (
                Partial(power, float(k)),
                [1.0],
                2 / k**2,
                (k - 1) * (20 * k - 16) / 3,
                "supercritical",
            )
            for k in (2, 3, 4)
        ),
    ],
)
def test_closed_forms(loss, at, rate, expected, criticality):
    found = flip_coefficient(loss, jnp.array(at), rate)
    assert found.coefficient == pytest.approx(expected, abs=1e-8)
    assert abs(found.coefficient - expected) <= max(found.error, 1e-13)
    assert found.criticality == criticality
    assert found.converged
    assert found.excess == pytest.approx(0, abs=1e-12)
    assert found.finite_time[0] == pytest.approx(-rate * found.fourth / 6, abs=1e-12)
    assert found.drift == pytest.approx(0, abs=1e-12)
    assert found.gradient_norm == pytest.approx(0, abs=1e-12)


def test_without_the_rest_of_the_parameters_the_sign_would_be_wrong():
    found = flip_coefficient(coupled, jnp.zeros(2), 2.0)
    # (I - ηH) halves the force y = 1 at each step, and its response tends to 4.
    expected = [-2 + 4 * (1 - 0.5**n) for n in range(101)]
    np.testing.assert_allclose(found.finite_time, expected, rtol=0, atol=1e-12)
    assert flip_coefficient(coupled, jnp.zeros(2), 2.0, horizon=1).criticality == ""
    assert flip_coefficient(coupled, jnp.zeros(2), 2.0, horizon=2).coefficient == 1.0


@pytest.mark.parametrize("x", [1.3, 0.6])
@pytest.mark.parametrize("horizon", [1, 7, 100])
def test_a_flat_direction_drifts_and_is_not_inverted(x, horizon):
    y = 1 / x
    s = x**2 + y**2
    found = flip_coefficient(product, jnp.array([x, y]), 2 / s, horizon=horizon)
    drift = 2 * abs(x**2 - y**2) / s**0.5
    assert found.eigenvalue == pytest.approx(s, abs=1e-10)
    assert found.drift == pytest.approx(drift, abs=1e-8)
    growth = (found.learning_rate * drift) ** 2 / 2
    steps = np.arange(1, horizon + 1)
    np.testing.assert_allclose(found.finite_time[1:], 32 / s**3 + growth * steps, rtol=0, atol=1e-8)
    assert found.horizon == horizon
    assert found.criticality == "supercritical"


def network(sizes, activation=jnp.tanh):
    """A fully connected net of flat parameters, and their number."""
    shapes = [shape for pair in itertools.pairwise(sizes) for shape in (pair, pair[1:])]
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])

    def apply(params, inputs):
        parts = [
            params[a:b].reshape(shape)
            for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)
        ]
        for layer in range(0, len(parts), 2):
            inputs = (activation(inputs) if layer else inputs) @ parts[layer] + parts[layer + 1]
        return inputs

    return apply, int(ends[-1])


@functools.cache
def regression():
    """A small tanh net with weight decay, and a strict minimum of it, found by Newton's method."""
    apply, size = network((1, 2, 1))
    inputs = jnp.linspace(-1, 1, 7)[:, None]
    targets = jnp.sin(2 * inputs) + 0.3
    problem = Problem(apply, lambda f, y: jnp.sum((f - y) ** 2, axis=-1), inputs, targets)

    def loss(problem, params):
        return problem.objective(params, 0) + 0.01 * jnp.sum(params**2)

    loss = Partial(loss, problem)
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    params = jax.random.normal(jax.random.key(3), (size,))
    for _ in range(500):
        params = params - 0.2 * gradient(params)
    for _ in range(10):
        params = params - jnp.linalg.solve(hessian(params), gradient(params))
    assert np.linalg.norm(gradient(params)) < 1e-13
    assert np.linalg.eigvalsh(hessian(params))[0] > 0.01
    return problem, loss, params, np.asarray(hessian(params))


def dense(loss, params, hessian, rate, direction):
    """The coefficients of the definition, with all derivatives as arrays and H inverted."""
    third = jax.jit(jax.jacfwd(jax.hessian(loss)))
    force = np.einsum("ijk,j,k", np.asarray(third(params)), direction, direction)
    slope = jax.jvp(third, (params,), (jnp.asarray(direction),))[1]
    fourth = np.einsum("ijk,i,j,k", np.asarray(slope), direction, direction, direction)
    values, vectors = np.linalg.eigh(hessian)
    parts, along = (vectors.T @ force)[:-1], vectors[:, -1] @ force

    def coefficient(steps):
        answers = (1 - (1 - rate * values[:-1]) ** steps) / values[:-1]
        return rate / 6 * (3 * (parts**2 @ answers + along**2 / values[-1]) - fourth)

    drift = lambda steps: np.linalg.norm((1 - rate * values[:-1]) ** (steps // 2) * parts)  # noqa: E731
    return coefficient, drift, fourth


def test_a_networks_coefficients_are_those_of_dense_derivatives():
    _, loss, params, hessian = regression()
    values, vectors = np.linalg.eigh(hessian)
    rate = 2.0 / values[-1]
    coefficient, drift, fourth = dense(loss, params, hessian, rate, vectors[:, -1])
    found = flip_coefficient(loss, params, rate, tol=1e-9)
    assert found.eigenvalue == pytest.approx(values[-1], rel=1e-10)
    assert found.fourth == pytest.approx(fourth, rel=1e-8)
    assert found.finite_time[0] == pytest.approx(-rate * fourth / 6, rel=1e-8)
    for steps in range(1, 101):
        assert found.finite_time[steps] == pytest.approx(coefficient(steps), rel=1e-8)
    for horizon in (4, 21):
        short = flip_coefficient(loss, params, rate, horizon=horizon, tol=1e-9)
        assert short.drift == pytest.approx(drift(horizon), rel=1e-8)
        np.testing.assert_allclose(short.finite_time, found.finite_time[: horizon + 1], rtol=1e-12)
    assert found.drift == pytest.approx(drift(100), rel=1e-8)
    # The response of all parameters is what counts.
    assert abs(found.finite_time[0]) < 0.2 * found.coefficient
    long = flip_coefficient(loss, params, rate, horizon=5000, tol=1e-9)
    assert long.coefficient == pytest.approx(coefficient(np.inf), rel=1e-8)


def test_the_orbit_of_a_network_has_the_predicted_amplitude():
    _, loss, params, hessian = regression()
    values, vectors = np.linalg.eigh(hessian)
    rate = (2 + 1e-3) / values[-1]
    found = flip_coefficient(loss, params, rate, horizon=5000, tol=1e-9)
    assert found.criticality == "supercritical"
    assert found.excess == pytest.approx(1e-3, rel=1e-9)
    predicted = found.amplitude()
    assert predicted == found.amplitude(found.excess)
    gradient = jax.grad(loss)

    @jax.jit
    def settle(state):
        return jax.lax.fori_loop(0, 20_000, lambda _, x: x - rate * gradient(x), state)

    state = settle(params + 0.5 * predicted * vectors[:, -1])
    following = state - rate * gradient(state)
    returned = following - rate * gradient(following)
    assert np.linalg.norm(returned - state) < 1e-10
    assert np.linalg.norm(following - state) / 2 == pytest.approx(predicted, rel=0.01)


def test_a_problem_is_taken_at_its_step_and_given_its_eigenvector():
    problem, _, params, _ = regression()
    problem = replace(problem, example_weights=lambda step, targets: 1 + step * targets[:, 0] ** 2)
    step = jnp.int32(2)
    hessian = np.asarray(jax.jit(jax.hessian(problem.objective))(params, step))
    direction = np.linalg.eigh(hessian)[1][:, -1]
    found = flip_coefficient(problem, params, 0.3, step=step, horizon=20, tol=1e-9)
    given = flip_coefficient(
        lambda x: problem.objective(x, step),
        params,
        0.3,
        eigenvector=jnp.asarray(-3 * direction),
        horizon=20,
    )
    np.testing.assert_allclose(given.finite_time, found.finite_time, rtol=1e-7)
    gradient = jax.grad(problem.objective)(params, step)
    assert given.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
    other = flip_coefficient(problem, params, 0.3, step=0, horizon=20, eigenvector=direction)
    assert abs(other.eigenvalue - given.eigenvalue) > 1e-2
    single = jax.tree.map(lambda leaf: leaf.astype(np.float32), problem)
    single = flip_coefficient(
        single,
        params.astype(np.float32),
        0.3,
        step=step,
        horizon=20,
        eigenvector=jnp.asarray(direction),
    )
    assert single.converged
    assert single.coefficient == pytest.approx(given.coefficient, rel=1e-3)
    assert abs(single.coefficient - given.coefficient) <= single.error


def test_what_is_not_certain_has_no_label():
    wrong = flip_coefficient(coupled, jnp.zeros(2), 2.0, eigenvector=jnp.array([1.0, 0.1]))
    assert not wrong.converged
    assert wrong.criticality == ""
    assert np.isnan(wrong.amplitude(0.1))
    assert "no eigenvector of positive curvature: residual 7" in wrong.message
    hill = flip_coefficient(
        lambda x: -(x[0] ** 2) + x[0] ** 4, jnp.zeros(1), 1.0, eigenvector=jnp.ones(1)
    )
    assert (hill.converged, hill.criticality) == (False, "")
    overflow = flip_coefficient(
        lambda x: jnp.exp(x[0]), jnp.array([800.0]), 1.0, eigenvector=jnp.ones(1)
    )
    assert (overflow.converged, overflow.criticality) == (False, "")
    assert "not finite" in overflow.message
    level = flip_coefficient(
        lambda x: x[0] ** 2 / 2 + 0 * x[0] ** 4, jnp.zeros(1), 2.0, eigenvector=jnp.ones(1)
    )
    assert (level.converged, level.criticality) == (True, "")


def test_two_unstable_directions_or_a_drift_that_goes_on_have_no_label():
    def both(x):
        return (x[0] ** 2 + 0.95 * x[1] ** 2) / 2 + 0.1 * x[0] ** 2 * x[1] + x[0] ** 4 / 4

    along = jnp.array([1.0, 0.0])
    found = flip_coefficient(both, jnp.zeros(2), 2.5, eigenvector=along)
    assert found.multiplier == pytest.approx(1 - 2.5 * 0.95, abs=1e-8)
    assert found.criticality == ""
    assert found.reason == "a second direction oscillates: ηλ = 2.375 or more"
    assert found.message.endswith(f"no criticality: {found.reason}")

    def flat(slope, x):
        return x[0] ** 2 / 2 + slope * x[0] ** 2 * x[1] + x[0] ** 4 / 4

    # c_N = 8 slope² N - 2
    for slope, criticality in ((0.03, "subcritical"), (0.04, ""), (0.06, "supercritical")):
        found = flip_coefficient(Partial(flat, slope), jnp.zeros(2), 2.0, eigenvector=along)
        assert found.coefficient == pytest.approx(800 * slope**2 - 2, abs=1e-10)
        assert found.criticality == criticality


def two_flips(x):
    """Supercritical along y, subcritical along x, at the same learning rate."""
    return x @ x / 2 + x[0] ** 4 / 4 - x[1] ** 4 / 4


def second_beyond(x):
    """Beyond the flip of x that of y, which nothing on the x-axis excites."""
    return 0.6 * x[0] ** 2 + 0.55 * x[1] ** 2 - x[0] ** 4 / 4 + x[1] ** 4 / 4


@pytest.mark.parametrize(
    ("loss", "rate", "second"), [(two_flips, 2.02, 1.0), (second_beyond, 2 / 1.05, 1.1)]
)
@pytest.mark.parametrize("given", [False, True])
def test_a_second_direction_beyond_its_flip_leaves_no_label(loss, rate, second, given):
    along = jnp.array([1.0, 0.0]) if given else None
    found = flip_coefficient(loss, jnp.zeros(2), rate, eigenvector=along)
    assert found.converged
    assert found.multiplier == 0  # the motion along v does not excite the other direction
    assert found.second_eigenvalue == pytest.approx(second, abs=1e-12)
    assert found.criticality == ""
    assert f"a second direction oscillates: ηλ = {rate * second:.6g} or more" in found.message
    assert np.isnan(found.amplitude(0.01))


def pair(second, x):
    return (x[0] ** 2 + second * x[1] ** 2) / 2 - x[0] ** 4 / 4


def test_a_second_direction_is_told_from_its_flip_as_far_as_numbers_go():
    along = jnp.array([1.0, 0.0])
    for gap, criticality in ((0.5, "supercritical"), (1e-6, "supercritical"), (0, ""), (1e-9, "")):
        found = flip_coefficient(Partial(pair, 1 - gap), jnp.zeros(2), 2.0, eigenvector=along)
        assert found.criticality == criticality
        low, high = found.second_interval
        assert low <= 1 - gap <= high
    assert found.reason.startswith("a second direction may oscillate: ηλ is between")
    # The eigenvector that was given need not be the top one.
    lower = flip_coefficient(Partial(pair, 3.0), jnp.zeros(2), 1.9, eigenvector=along)
    assert lower.reason == "a second direction oscillates: ηλ = 5.7 or more"
    alone = flip_coefficient(double_well, jnp.ones(1), 1.0)
    assert alone.second_eigenvalue == -np.inf
    valley = flip_coefficient(Partial(pair, -0.3), jnp.zeros(2), 2.0, eigenvector=along)
    assert valley.second_eigenvalue == pytest.approx(-0.3, abs=1e-12)
    assert valley.criticality == "supercritical"


def test_a_second_eigenvalue_that_does_not_converge_leaves_no_label(monkeypatch):
    monkeypatch.setattr(directions, "_MOST_MATVECS", 4)
    curvatures = jnp.linspace(0.1, 1.0, 300)

    def many(x):
        return jnp.sum(curvatures * x**2) / 2 - x[-1] ** 4 / 4

    found = flip_coefficient(many, jnp.zeros(300), 2.0, eigenvector=jnp.eye(300)[-1])
    assert found.converged
    assert np.isnan(found.second_eigenvalue)
    assert found.reason == "the largest eigenvalue of the other directions did not converge"
    assert found.criticality == ""


def test_a_predicted_amplitude_is_that_of_a_stable_orbit():
    found = flip_coefficient(double_well, jnp.ones(1), 1.0)
    assert found.amplitude(0.02) == pytest.approx(0.05)
    assert np.isnan(found.amplitude(-0.02))
    assert np.isnan(flip_coefficient(quartic, jnp.zeros(1), 1.9).amplitude())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon is 0 and learning_rate 1.0; expected at least 1 and more than 0"),
        ({"learning_rate": 0.0}, "horizon is 100 and learning_rate 0.0"),
        ({"eigenvector": jnp.zeros(1)}, r"the eigenvector has shape \(1,\) and length 0.0"),
        ({"eigenvector": jnp.ones(2)}, r"the eigenvector has shape \(2,\) .* expected \(1,\)"),
    ],
)
def test_what_makes_no_coefficient_is_refused(changes, message):
    arguments = {"learning_rate": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        flip_coefficient(double_well, jnp.ones(1), **arguments)
