"""The central flow against closed forms, gradient descent's own averages and gradient flow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.integrate import solve_ivp

from dlf_dynamics.analysis import central_flow
from dlf_dynamics.analysis.theories import central_flow as flow_module
from dlf_dynamics.analysis.theories.blended import Moment, blended
from dlf_dynamics.analysis.theories.critical_modes import CriticalModes
from dlf_dynamics.analysis.theories.rules import Averaged, averaged
from dlf_dynamics.problem import Problem

RATE = 0.5
RAMP = 0.002


def _terms(params, coefficients):
    """Of each example Σ c_ij x^i y^j and ½ zᵀ (Σ_m w_m M_m) z - ε · w, with z = (x, y)."""

    def of_example(row):
        polynomial, matrices, forces = jnp.split(row, [25, 37])
        z, slow = params[:2], params[2:]
        powers = jnp.stack([z**k for k in range(5)])
        hessian = jnp.einsum("m,mij->ij", slow, matrices.reshape(3, 2, 2))
        valleys = z @ hessian @ z / 2 - forces @ slow
        return powers[:, 0] @ polynomial.reshape(5, 5) @ powers[:, 1] + valleys

    return jax.vmap(of_example)(coefficients)


def _weights(step, labels):
    """1, and three functions of the step."""
    rise = jnp.where(step < 500, 0.05 * jnp.sin(step / 7.0), RAMP * step)
    flattening = -jnp.minimum(0.04 * jnp.maximum(step - 10, 0), 0.6)
    return jnp.stack([jnp.ones(()), rise, flattening, 0.02 * step])[labels]


def _outputs_themselves(outputs, _):
    return outputs


RISE, FLATTENING, STEEPENING = 1, 2, 3


def problem(*parts) -> Problem:
    """A sum of terms, each with the label of its weight; one program serves all of them."""
    rows, labels = np.zeros((3, 40)), np.zeros(3, int)
    for place, (row, label) in enumerate(parts):
        rows[place], labels[place] = 3 * row, label
    return Problem(_terms, _outputs_themselves, jnp.asarray(rows), jnp.asarray(labels), _weights)


def polynomial(terms: dict[tuple[int, int], float], label: int = 0):
    """Σ c x^i y^j."""
    row = np.zeros(40)
    for (i, j), value in terms.items():
        row[5 * i + j] = value
    return row, label


def valleys(matrices, forces):
    """½ zᵀ (Σ_m w_m M_m) z - ε · w."""
    return np.concatenate([np.zeros(25), np.ravel(matrices), forces]), 0


def at(*coordinates: float):
    """Of x, y and the three w, 0 where none are given."""
    return jnp.zeros(5).at[: len(coordinates)].set(jnp.asarray(coordinates))


DOUBLE_WELL = problem(polynomial({(4, 0): 0.25, (2, 0): -0.5, (0, 0): 0.25}))
PRODUCT = problem(polynomial({(0, 0): 0.5, (1, 1): -1, (2, 2): 0.5}))


def bent_valley(epsilon: float) -> Problem:
    """½ (y + x) x² - ε (x + y)."""
    return problem(polynomial({(2, 1): 0.5, (3, 0): 0.5, (1, 0): -epsilon, (0, 1): -epsilon}))


MATRICES = np.array([[[1, 0.3], [0.3, 0.2]], [[0.1, 0.5], [0.5, 0.3]], [[0.2, -0.3], [-0.3, 1]]])
"""M_m, a basis of the symmetric matrices: D³F[u_i, u_j, ·] of pairs have inner products."""

COVARIANCE = np.array([[0.02, 0.006], [0.006, 0.01]])
"""What ⟨X, M_m⟩ = 2 ε_m has for its solution."""


def coupled_valleys() -> Problem:
    """Valleys in which the motion along the edge stops at COVARIANCE."""
    return problem(valleys(MATRICES, np.einsum("ij,mij->m", COVARIANCE, MATRICES) / 2))


def slow_part(hessian: np.ndarray) -> np.ndarray:
    """The y with Σ_m y_m M_m = H."""
    upper = np.triu_indices(2)
    return np.linalg.solve(MATRICES[:, *upper].T, hessian[upper])


CRITICAL = 2 / RATE * np.eye(2)
"""The Hessian in x at which both modes are at the edge."""

BEFORE = at(0, 0, *slow_part(CRITICAL - np.array([[0.02, 0.004], [0.004, 0.05]])))
"""From where one mode comes to the edge before the other."""


def test_the_fixed_point_in_a_double_well():
    found = central_flow(DOUBLE_WELL, at(0.95), 1.2, 60)
    assert found.states[-1, 0] ** 2 == pytest.approx(8 / 9, abs=1e-9)
    assert found.energy[-1] == pytest.approx(1 / 27, abs=1e-9)
    assert found.sharpness[-1] == pytest.approx(2 / 1.2, abs=1e-9)
    # The time average of the loss: F + λ σ² / 2.
    loss = (8 / 9 - 1) ** 2 / 4
    assert found.loss[-1] == pytest.approx(loss, abs=1e-9)
    assert found.predicted_loss[-1] == pytest.approx(loss + 1 / 1.2 / 27, abs=1e-9)
    assert found.stopped == ""
    assert np.all(found.converged)


def test_the_fixed_point_of_a_balanced_product():
    found = central_flow(PRODUCT, at(1, 1), 1.2, 60)
    np.testing.assert_allclose(found.states[-1, :2], np.sqrt(8 / 9), rtol=0, atol=1e-9)
    assert found.energy[-1] == pytest.approx(2 / 27, abs=1e-9)
    # The oscillation is that of x + y.
    np.testing.assert_allclose(found.modes[-1, 0, :2] ** 2, 0.5, rtol=0, atol=1e-9)


def test_there_are_enough_substeps_to_be_stable():
    # Drift times threshold is 19: with four substeps Euler's method would run away at the edge.
    rule, epsilon = averaged(optax.sgd(0.3, momentum=0.9), range(80)), 0.01
    found = central_flow(bent_valley(epsilon), at(0.02, 12.6), rule, 60)
    assert found.sharpness[-1] == pytest.approx(2 * 1.9 / 0.3, rel=1e-6)
    assert found.energy[-1] == pytest.approx(2 * epsilon, rel=1e-3)
    # And with one, gradient descent's would jump from wall to wall as gradient descent does.
    found = central_flow(DOUBLE_WELL, at(0.9), 1.2, 60, substeps=1)
    np.testing.assert_allclose(found.states[-3:, 0] ** 2, 8 / 9, rtol=0, atol=1e-6)


def test_a_bent_valley_is_followed_to_the_edge_and_along_it():
    rate, epsilon = 0.3, 0.01
    found = central_flow(bent_valley(epsilon), at(0, 4), rate, 960, substeps=1, certify_every=60)
    at_edge = np.flatnonzero(found.energy > 0)[0]
    assert abs(at_edge - (2 / rate - 4) / (rate * epsilon)) <= 2  # 888.9
    assert np.all(found.sharpness[:at_edge] < 2 / rate)
    np.testing.assert_allclose(found.sharpness[at_edge + 2 :], 2 / rate, rtol=1e-7)
    # y' = 0 with the shift of x that the oscillation makes: x²/2 - ε + σ²/2 = 0.
    assert found.energy[-1] == pytest.approx(2 * epsilon - found.states[-1, 0] ** 2, abs=1e-6)
    assert found.energy[-1] == pytest.approx(2 * epsilon, rel=1e-3)
    # Nothing is followed before an eigenvalue comes near the threshold.
    assert found.covariance.shape == (961, 1, 1)
    np.testing.assert_array_equal(np.isnan(found.covariance[:, 0, 0]), found.sharpness < 6)


def descended_covariance(rate: float, starts: int, steps: int, skipped: int) -> np.ndarray:
    """Mean of x xᵀ of gradient descent itself in the coupled valleys, in NumPy."""
    rng = np.random.default_rng(0)
    forces = np.einsum("ij,mij->m", COVARIANCE, MATRICES) / 2
    oscillating = 0.03 * rng.normal(size=(starts, 2))
    slow = slow_part(CRITICAL) + 0.01 * rng.normal(size=(starts, 3))
    total = np.zeros((2, 2))
    for step in range(steps):
        if step >= skipped:
            total += oscillating.T @ oscillating
        slopes = np.einsum("sm,mij,sj->si", slow, MATRICES, oscillating)
        pushes = np.einsum("si,mij,sj->sm", oscillating, MATRICES, oscillating) / 2 - forces
        oscillating, slow = oscillating - rate * slopes, slow - rate * pushes
    return total / starts / (steps - skipped)


def test_two_critical_modes_with_coupled_third_derivatives():
    found = central_flow(coupled_valleys(), BEFORE, RATE, 60)
    assert np.all(found.converged)
    assert found.stopped == ""
    covariance = in_parameters(found.points[-1])[:2, :2]
    np.testing.assert_allclose(covariance, COVARIANCE, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.eigenvalues[-1], 2 / RATE, rtol=1e-9)
    np.testing.assert_allclose(found.states[-1, 2:], slow_part(CRITICAL), atol=1e-8)
    # One mode becomes critical before the other.
    energies = np.array([np.linalg.eigvalsh(point.covariance) for point in found.points])
    alone = (energies[:, 1] > 1e-6) & (energies[:, 0] < 1e-4 * energies[:, 1])
    assert np.sum(alone) > 5
    descended = descended_covariance(RATE, 200, 4000, 1000)
    np.testing.assert_allclose(descended, covariance, rtol=0.02)


def in_parameters(point) -> np.ndarray:
    """Σ."""
    return point.modes.T @ point.covariance @ point.modes


def test_the_conditions_hold_at_every_substep(monkeypatch):
    solve, seen = flow_module.solve_complementarity, []

    def watched(alpha, beta):
        found = solve(alpha, beta)
        slack = alpha + np.einsum("ijkl,kl->ij", beta, found.covariance)
        size = np.linalg.norm(alpha)
        seen.append(
            (
                np.linalg.eigvalsh(found.covariance)[0],
                np.linalg.eigvalsh(slack)[0] / size,
                np.sum(slack * found.covariance) / size,
            )
        )
        return found

    monkeypatch.setattr(flow_module, "solve_complementarity", watched)
    found = central_flow(coupled_valleys(), BEFORE, RATE, 60)
    least, slack, gap = np.array(seen).T
    assert len(seen) == 4 * 61
    assert np.min(least) >= -1e-15
    assert np.min(slack) >= -1e-12
    assert np.max(np.abs(gap)) <= 1e-12
    assert np.max(found.column("violation")) <= 1e-12


def gradient_of(terms: dict[tuple[int, int], float]) -> Callable:
    def gradient(_, state):
        x, y = state
        return -np.array(
            [
                sum(c * i * x ** max(i - 1, 0) * y**j for (i, j), c in terms.items()),
                sum(c * j * x**i * y ** max(j - 1, 0) for (i, j), c in terms.items()),
            ]
        )

    return gradient


def test_below_the_edge_it_is_gradient_flow():
    terms = {(0, 0): 0.5, (1, 1): -1, (2, 2): 0.5, (1, 0): 0.3}
    start, rate, steps = np.array([0.4, 1.3]), 0.1, 40
    exact = solve_ivp(
        gradient_of(terms), (0, rate * steps), start, rtol=1e-11, atol=1e-12, method="DOP853"
    ).y[:, -1]
    errors = []
    for substeps in (4, 8, 16):
        found = central_flow(problem(polynomial(terms)), at(*start), rate, steps, substeps=substeps)
        assert not np.any(found.energy)
        errors.append(np.linalg.norm(found.states[-1, :2] - exact))
    assert errors[0] < 1e-2
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.05)


def test_halving_the_substep_halves_the_error_at_the_edge():
    found = [
        central_flow(bent_valley(0.05), at(0, 6.5), 0.3, 40, substeps=substeps, tol=1e-10)
        for substeps in (2, 4, 8, 16)
    ]
    states = np.array([one.states[-1] for one in found])
    assert all(one.energy[-1] > 0.05 for one in found)
    changes = np.linalg.norm(np.diff(states, axis=0), axis=1)
    np.testing.assert_allclose(changes[:-1] / changes[1:], 2, rtol=0.1)
    mismatches = np.array([np.max(one.column("mismatch")[10:]) for one in found])
    np.testing.assert_allclose(mismatches[:-1] / mismatches[1:], 4, rtol=0.2)


def rising() -> Problem:
    """½ (y + s(t)) x² - 1.25 x⁴ - ε y, with ε = 0.01."""
    static = polynomial({(2, 1): 0.5, (4, 0): -1.25, (0, 1): -0.01})
    return problem(static, polynomial({(2, 0): 0.5}, RISE))


def test_a_loss_that_depends_on_the_step():
    # ½ (y + s(t)) x² - ε y: y' = -η (x²/2 - ε) holds y + s at 2/η.
    rate, start = 0.3, 40
    rise, loss = 0.05 * np.sin(np.arange(202) / 7.0), rising()
    found = central_flow(loss, at(0, 2 / rate - rise[start]), rate, 100, start=start)
    sharpness, energy = held_at_the_edge(2 / rate, np.diff(rise)[found.steps], rate, 0.01)
    np.testing.assert_allclose(found.energy, energy, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sharpness, sharpness, rtol=1e-9)
    assert np.sum(energy == 0) > 10
    assert np.sum(sharpness == 2 / rate) > 50
    losses = [
        float(loss.objective(*place)) for place in zip(found.states, found.steps, strict=True)
    ]
    np.testing.assert_allclose(found.loss, losses, rtol=0, atol=1e-12)


def held_at_the_edge(threshold, slopes, rate, epsilon, start=None) -> tuple[np.ndarray, np.ndarray]:
    """Sharpness and mean energy of each step where λ' = η (ε - X / 2) + slope, in four substeps."""
    value, sharpness, energy = threshold if start is None else start, [], []
    for slope in slopes:
        sharpness.append(value)
        used = []
        for _ in range(4):
            free = value + (rate * epsilon + slope) / 4
            used.append(max(free - threshold, 0) / (rate / 8))
            value = min(free, threshold)
        energy.append(np.mean(used))
    return np.array(sharpness), np.array(energy)


def test_a_learning_rate_that_depends_on_the_step():
    # The threshold 2/η falls: y has to fall with it.
    epsilon = 0.01
    rates = 0.3 + 1e-4 * np.arange(101)
    rule = Averaged(0, rates, rates)
    valley = problem(polynomial({(2, 1): 0.5, (0, 1): -epsilon}))
    found = central_flow(valley, at(0, 2 / 0.3), rule, 80)
    np.testing.assert_allclose(found.sharpness, 2 / rates[:81], rtol=1e-9)
    expected = 2 * (epsilon - np.diff(2 / rates)[:81] / ((rates[:-1] + rates[1:])[:81] / 2))
    np.testing.assert_allclose(found.energy, expected, rtol=1e-3)


def descended_with_momentum(rate: float, beta: float, *, nesterov: bool) -> tuple[float, float]:
    """Means of x² and of y + s(t) under the ramp, by the update itself, in NumPy."""
    rng = np.random.default_rng(0)
    steps, skipped, starts = np.arange(1000, 3000), 1000, 50
    threshold = (2 + 2 * beta) / rate / (1 + 2 * beta if nesterov else 1)
    state = np.stack([0.1 + 0.1 * rng.random(starts), np.full(starts, threshold - 2.0)])
    velocity, squares, sharpness = np.zeros_like(state), [], []
    for step in steps:
        x, y = state
        squares.append(np.mean(x**2))
        sharpness.append(np.mean(y + RAMP * step))
        gradient = np.stack([(y + RAMP * step) * x - 5 * x**3, x**2 / 2 - 0.01])
        velocity = beta * velocity + gradient
        state = state - rate * (gradient + beta * velocity if nesterov else velocity)
    return float(np.mean(squares[skipped:])), float(np.mean(sharpness[skipped:]))


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_against_its_own_average(nesterov):
    rate, beta = 0.3, 0.5
    rule = averaged(optax.sgd(rate, momentum=beta, nesterov=nesterov), range(1))
    drift, threshold = rule.at(0)
    start = 1000
    begin = at(0, threshold - RAMP * start - 0.2)
    found = central_flow(rising(), begin, rule, 40, start=start)
    # How fast it comes to the edge and how large the oscillation is tell the drift.
    speed = drift * 0.01 + RAMP
    np.testing.assert_allclose(found.sharpness[:10], threshold - 0.2 + speed * np.arange(10))
    energy, sharpness = descended_with_momentum(rate, beta, nesterov=nesterov)
    assert found.energy[-1] == pytest.approx(energy, rel=1e-3)
    # The quartic term, which the theory does not have, shifts the centre.
    assert sharpness - 5 * energy == pytest.approx(threshold, rel=1e-3)
    assert found.sharpness[-1] == pytest.approx(threshold, rel=1e-9)


def test_modes_that_come_cross_and_go():
    # Two valleys: the first flattens from step 10 on, the second gets steeper all the time.
    apart = np.array([np.diag([1.0, 0]), np.diag([0, 1.0]), np.zeros((2, 2))])
    loss = problem(
        valleys(apart, [0.02, 0.02, 0]),
        polynomial({(2, 0): 0.5}, FLATTENING),
        polynomial({(0, 2): 0.5}, STEEPENING),
    )
    found = central_flow(loss, at(0, 0, 1.98, 1.5), 1.0, 40, certify_every=8)
    steps = np.arange(42)
    flattening = -np.minimum(0.04 * np.maximum(steps - 10, 0), 0.6)
    alone = [
        held_at_the_edge(2.0, np.diff(part), 1.0, 0.02, start)
        for part, start in ((flattening, 1.98), (0.02 * steps, 1.5))
    ]
    (first, energy_first), (second, energy_second) = alone
    np.testing.assert_allclose(found.sharpness, np.maximum(first, second), rtol=1e-9)
    np.testing.assert_allclose(found.energy, energy_first + energy_second, rtol=0, atol=1e-8)
    assert {len(point.eigenvalues) for point in found.points} == {1, 2}
    assert np.all(found.converged)
    looked_at, complete = found.column("looked_at"), found.column("complete")
    np.testing.assert_array_equal(looked_at, found.steps % 8 == 0)
    np.testing.assert_array_equal(complete, looked_at)


def test_a_quadratic_above_the_edge_has_no_flow():
    found = central_flow(problem(polynomial({(2, 0): 2, (0, 2): 0.5})), at(1, 0.5), 0.7, 5)
    assert found.stopped.startswith("no oscillation holds the curvature at the threshold")
    assert len(found.points) == 1
    assert not found.converged[0]
    assert np.isnan(found.energy[0])
    assert np.isnan(found.predicted_loss[0])


def test_what_is_not_finite_stops_it():
    found = central_flow(problem(polynomial({(4, 0): -1.0})), at(1), 0.5, 60)
    assert found.stopped == "the loss or its gradient is not finite"
    assert len(found.points) < 61
    assert not found.converged[-1]


def test_a_start_far_above_the_edge_is_told():
    found = central_flow(DOUBLE_WELL, at(2), 1.2, 60)
    assert not found.converged[0]
    assert "off its prediction by a substep" in found.points[0].message
    assert found.converged[-1]
    assert found.energy[-1] == pytest.approx(1 / 27, abs=1e-9)


def test_more_modes_than_may_be_followed():
    found = central_flow(coupled_valleys(), BEFORE, RATE, 40, modes=1)
    assert found.stopped == "more modes reach the threshold than are followed (modes = 1)"
    assert found.eigenvalues.shape[1] == 1
    assert not found.points[-1].converged


def test_a_covariance_that_theory_leaves_open_is_told():
    # The curvatures of both depend on the sum of the slow parts alone: X_12 is open.
    only = np.stack([np.eye(2)] * 3) / 3
    found = central_flow(problem(valleys(only, np.full(3, 0.02))), at(0, 0, 4, 4, 4), RATE, 3)
    assert found.points[-1].message == "the conditions leave a part of X undetermined"
    assert found.energy[-1] == pytest.approx(0.12, abs=1e-9)


def test_a_learning_rate_of_zero():
    found = central_flow(DOUBLE_WELL, at(0.95), 0.0, 3)
    np.testing.assert_array_equal(found.states, np.tile(at(0.95), (4, 1)))
    assert np.all(np.isinf(found.threshold))
    assert not np.any(found.energy)


def test_a_learning_rate_that_jumps():
    rates = np.where(np.arange(40) < 10, 1.2, 1.4)
    found = central_flow(DOUBLE_WELL, at(0.95), Averaged(0, rates, rates), 30)
    np.testing.assert_allclose(found.sharpness[[9, -1]], 2 / rates[[9, -1]], rtol=1e-9)
    # x² = (1 + λ) / 3, σ² = (1 - x²) / 3.
    assert found.energy[8] == pytest.approx(1 / 27, abs=1e-6)
    assert found.energy[-1] == pytest.approx((1 - (1 + 2 / 1.4) / 3) / 3, abs=1e-9)
    assert np.all(found.converged)


def test_float32():
    found = central_flow(jax.tree.map(as_float32, DOUBLE_WELL), as_float32(at(0.95)), 1.2, 20)
    assert found.states.dtype == np.float32
    assert np.all(found.converged)
    assert found.energy[-1] == pytest.approx(1 / 27, rel=1e-5)


def as_float32(leaf):
    return leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def test_a_loss_between_two_steps():
    params, moment = at(0.3, 1.2), Moment(jnp.int32(40), jnp.asarray(0.25))
    for loss in (rising(), Problem.from_loss(lambda params, step: step * params @ params)):
        before, after = (loss.objective(params, step) for step in (40, 41))
        assert blended(loss)(params, moment) == pytest.approx(0.75 * before + 0.25 * after)


@pytest.mark.parametrize(
    ("params", "settings"),
    [
        (jnp.ones((2, 2)), {}),
        (jnp.ones(2, int), {}),
        (jnp.ones(2, jnp.bfloat16), {}),
        (jnp.ones(2), {"substeps": 0}),
        (jnp.ones(2), {"fraction": 1.0}),
        (jnp.ones(2), {"steps": -1}),
    ],
)
def test_what_cannot_be_integrated(params, settings):
    with pytest.raises(ValueError, match="expected"):
        central_flow(DOUBLE_WELL, params, 1.0, **{"steps": 1, **settings})


@pytest.mark.parametrize("rate", [-1.0, np.nan, np.inf])
def test_learning_rates_that_are_none(rate):
    with pytest.raises(ValueError, match="finite and at least 0"):
        central_flow(DOUBLE_WELL, jnp.ones(2), rate, 1)


@pytest.mark.parametrize(
    ("optimizer", "drift", "threshold"),
    [
        (0.3, 0.3, 2 / 0.3),
        (optax.sgd(0.3), 0.3, 2 / 0.3),
        (optax.sgd(0.1, momentum=0.9), 1.0, 38.0),
        (optax.sgd(0.1, momentum=0.9, nesterov=True), 1.0, 3.8 / 2.8 / 0.1),
        (optax.sgd(0.0), 0.0, np.inf),
    ],
)
def test_averages_of_optimizers(optimizer, drift, threshold):
    assert averaged(optimizer, range(3)).at(1) == pytest.approx((drift, threshold), rel=1e-9)


def test_an_average_between_steps():
    rule = averaged(optax.sgd(optax.linear_schedule(0.0, 0.4, 4)), range(2, 6))
    assert rule.at(2, 0.5) == pytest.approx((0.25, 8), rel=1e-6)
    assert rule.at(9) == pytest.approx((0.4, 5), rel=1e-6)
    assert rule.at(0) == pytest.approx((0.2, 10), rel=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (optax.adam(0.1), "root mean square"),
        (optax.rmsprop(0.1), "root mean square"),
        (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)), "into the loss"),
        (optax.sign_sgd(0.1), "signs"),
    ],
)
def test_optimizers_without_a_known_average(optimizer, reason):
    with pytest.raises(ValueError, match=reason):
        averaged(optimizer, range(1))


def test_a_mode_that_appears_out_of_sight_is_told(monkeypatch):
    # The guard is blinded: the second valley rises to the edge without being seen.
    seen = CriticalModes._guarded

    def blind(self, rows):
        rows = seen(self, rows)
        return rows.at[self.count :, 1].set(0) if self.count else rows

    monkeypatch.setattr(CriticalModes, "_guarded", blind)
    apart = np.array([np.diag([1.0, 0]), np.diag([0, 1.0]), np.zeros((2, 2))])
    loss = problem(valleys(apart, [0.02, 0.02, 0]), polynomial({(0, 2): 0.5}, STEEPENING))
    found = central_flow(loss, at(0, 0, 2, 1.3), 1.0, 31, certify_every=30)
    late = found.points[30]
    assert late.looked_at
    assert "an eigenvalue above the threshold had not been followed" in late.message
    assert not late.converged


def _bowls(rotation, rates, params):
    oscillating, slow, rest = jnp.split(rotation @ params, [3, 6])
    bulk = jnp.linspace(0.1, 1.9, len(rest))
    return oscillating**2 @ slow / 2 - rates @ slow + bulk @ rest**2 / 2


def test_several_modes_that_are_critical_at_once():
    # In rotated axes no start vector is an eigenvector, nor half of one. Mode i is held at the
    # threshold by half its mean square being what raises its curvature.
    rng = np.random.default_rng(0)
    rotation, rates = np.linalg.qr(rng.normal(size=(12, 12)))[0], np.array([0.004, 0.006, 0.01])
    begin = np.array([0.0, 0, 0, 3.99, 3.991, 3.992, *np.full(6, 0.1)])
    loss = Partial(_bowls, jnp.asarray(rotation), jnp.asarray(rates))
    found = central_flow(loss, jnp.asarray(rotation.T @ begin), RATE, 12)
    assert [point.complete for point in found.points if point.looked_at] == [True] * 2
    for point in found.points:
        curvatures = (rotation @ point.params)[3:6]
        np.testing.assert_allclose(point.eigenvalues, np.sort(curvatures)[::-1], rtol=1e-6)
        assert np.max(curvatures) <= 4 * (1 + 1e-6)
    within = rotation @ found.points[-1].modes.T @ found.points[-1].covariance
    within = within @ found.points[-1].modes @ rotation.T
    np.testing.assert_allclose(np.diagonal(within)[:3], 2 * rates, rtol=1e-4)


def test_heavy_ball_below_the_edge_and_at_it_is_no_more_stiff_than_gradient_descent():
    # Drift times curvature is 19 times that of gradient descent at the same threshold; what lies
    # in the bulk, and along the mode, decays all the same.
    rule = averaged(optax.sgd(0.1, momentum=0.9), range(1))
    drift, threshold = rule.at(0)
    loss = problem(polynomial({(2, 0): threshold / 4, (0, 2): threshold * 0.4}))
    found = central_flow(loss, at(1e-3, 1e-3), rule, 3, fraction=0.75)
    exact = 1e-3 * np.exp(-drift * threshold * np.outer(np.arange(4), [0.5, 0.8]))
    np.testing.assert_allclose(found.states[:, :2], exact, atol=2e-6)
    assert np.all(found.converged)
