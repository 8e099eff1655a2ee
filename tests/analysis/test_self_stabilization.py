"""Self-stabilization against gradient descent in NumPy, closed forms and dense eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dlf_dynamics.analysis.theories.self_stabilization import self_stabilization
from dlf_dynamics.problem import Problem

RATE, EPSILON = 0.3, 0.01
EDGE = 2 / RATE


def general(numbers, p):
    """½ (y + κx) x² - ε y - πx + ½ ωyz² - λz², one program for all numbers."""
    slope, cubic, pull, other, lower = numbers
    x, y, z = p
    first, second = (y + cubic * x) * x**2 / 2, other * y * z**2 / 2
    return first - slope * y - pull * x + second - lower * z**2


def lossy(slope, cubic=0.0, pull=0.0, other=0.0, lower=0.0):
    return Partial(general, jnp.array([slope, cubic, pull, other, lower]))


valley = lossy(EPSILON)
"""½ y x² - ε y, of which the theory is exact."""


def descended(x, y, steps, slope=EPSILON, cubic=0.0, pull=0.0, grows=0.0):
    """Gradient descent on ½ (y + κx + ct) x² - ε y - πx, written out."""
    states = [(x, y, 0.0)]
    for t in range(steps):
        slope_x = (y + grows * t) * x + 1.5 * cubic * x**2 - pull
        x, y = x - RATE * slope_x, y - RATE * (x**2 / 2 - slope)
        states.append((x, y, 0.0))
    return np.array(states)


def test_gradient_descent_where_the_theory_is_exact():
    states = descended(0.2, 6.5, 3000)
    found = self_stabilization(valley, jnp.array([0.0, 6.5, 0.0]), RATE, 3000, displacement=0.2)
    assert found.converged
    assert found.message == "to the end"
    np.testing.assert_array_equal(found.steps, np.arange(3001))
    np.testing.assert_allclose(found.displacement, states[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.energy, states[:, 0] ** 2, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.sharpness, states[:, 1], rtol=1e-10)
    np.testing.assert_allclose(found.loss, -EPSILON * states[:, 1], rtol=1e-10)
    losses = states[:, 1] * states[:, 0] ** 2 / 2 - EPSILON * states[:, 1]
    np.testing.assert_allclose(found.predicted_loss, losses, rtol=1e-8)
    rows = np.array([0, 7, 3000])
    np.testing.assert_allclose(found.centres(rows)[:, 1], states[rows, 1], rtol=1e-10)
    np.testing.assert_allclose(found.centres(rows)[:, 0], 0, atol=1e-12)
    assert np.std(found.sharpness) > 0.05  # and it is the cycle that was compared


def test_the_iterate_alone_tells_centre_and_displacement():
    given = self_stabilization(valley, jnp.array([0.0, 6.5, 0.0]), RATE, 50, displacement=0.2)
    found = self_stabilization(valley, jnp.array([0.2, 6.5, 0.0]), RATE, 50)
    # At the iterate u is turned by x/y, so that the centre is off by x²/y.
    assert found.centre == pytest.approx([0, 6.5 - 0.2**2 / 6.5, 0], abs=1e-3)
    assert abs(found.displacement[0]) == pytest.approx(0.2, rel=1e-2)
    np.testing.assert_allclose(found.sharpness, given.sharpness, rtol=2e-3)


def test_a_deviation_counts_by_its_part_along_the_eigenvector():
    params = jnp.array([0.0, 6.5, 0.0])
    given = self_stabilization(valley, params, RATE, 50, displacement=0.2)
    found = self_stabilization(valley, params, RATE, 50, displacement=np.array([0.2, 5.0, 0.0]))
    np.testing.assert_allclose(found.displacement, given.displacement, rtol=1e-12)
    turned = self_stabilization(
        valley,
        params,
        RATE,
        50,
        displacement=np.array([0.2, 5.0, 0.0]),
        eigenvector=[-3.0, 0.0, 0.0],
    )
    np.testing.assert_allclose(turned.displacement, -given.displacement, rtol=1e-12)


def test_to_leading_order_on_a_loss_that_has_more_terms():
    """½ (y + x) x² - ε (x + y): the error relative to the cycle falls as √ε, which x goes with."""
    errors = []
    for slope in (EPSILON, EPSILON / 16, EPSILON / 256):
        steps = int(2 * np.pi / (RATE * np.sqrt(2 * slope)))  # of one cycle
        states = descended(
            1.5 * np.sqrt(2 * slope), EDGE, steps + 2, slope=slope, cubic=1.0, pull=slope
        )
        centres = (states[:-2] + 2 * states[1:-1] + states[2:]) / 4
        deviations = states[1:-1] - centres
        energy = np.sum(deviations**2, axis=1)
        found = self_stabilization(
            lossy(slope, 1.0, slope),
            jnp.asarray(centres[0]),
            RATE,
            steps,
            displacement=deviations[0],
        )
        assert found.alpha == pytest.approx(slope, rel=20 * np.sqrt(slope))
        assert found.beta == pytest.approx(1, rel=20 * np.sqrt(slope))
        errors.append(np.max(np.abs(found.energy - energy)) / np.max(energy))
    errors = np.array(errors)
    assert errors[0] < 0.5
    assert errors[1:] / errors[:-1] == pytest.approx(1 / 4, rel=0.35)


def test_the_balanced_oscillation_stays():
    found = self_stabilization(
        valley, jnp.array([0.0, EDGE, 0.0]), RATE, 500, displacement=np.sqrt(2 * EPSILON)
    )
    assert found.balance == pytest.approx(np.sqrt(2 * EPSILON))
    np.testing.assert_allclose(found.energy, 2 * EPSILON, rtol=1e-9)
    np.testing.assert_allclose(found.displacement[1:], -found.displacement[:-1], rtol=1e-9)


def test_small_cycles_have_the_period_of_the_linearised_equations():
    slope = 1e-4
    found = self_stabilization(
        lossy(slope),
        jnp.array([0.0, EDGE, 0.0]),
        RATE,
        6000,
        displacement=1.02 * np.sqrt(2 * slope),
    )
    offset = found.sharpness - EDGE
    rises = np.flatnonzero((offset[:-1] < 0) & (offset[1:] >= 0))
    assert len(rises) >= 3
    period = (rises[-1] - rises[0]) / (len(rises) - 1)
    assert period == pytest.approx(2 * np.pi / (RATE * np.sqrt(2 * slope)), rel=2e-3)


def test_the_invariant_of_the_equations_grows_as_the_map_lets_it():
    """E = y²/2 + βx²/4 - α ln|x| is constant in continuous time; the map adds 2(ηy)²α a step.

    That is the mean over a cycle, to leading order, by the method of multiple scales.
    """
    slope = 1e-6
    found = self_stabilization(
        lossy(slope),
        jnp.array([0.0, EDGE, 0.0]),
        RATE,
        80000,
        displacement=2 * np.sqrt(2 * slope),
    )
    offset = found.sharpness - EDGE
    energy = offset**2 / 2 + found.energy / 4 - slope / 2 * np.log(found.energy)
    rises = np.flatnonzero((offset[:-1] < 0) & (offset[1:] >= 0))
    first, last = rises[0], rises[-1]
    assert len(rises) >= 5
    growth = 2 * RATE**2 * slope * np.mean(offset[first:last] ** 2) * (last - first)
    assert energy[last] - energy[first] == pytest.approx(growth, rel=0.05)


def test_a_loss_that_changes_with_the_step():
    grows = 1e-3
    problem = Problem.from_loss(lambda p, t: valley(p) + grows * t * p[0] ** 2 / 2)
    states = descended(0.1, 6.4, 400, grows=grows)
    found = self_stabilization(problem, jnp.array([0.0, 6.4, 0.0]), RATE, 400, displacement=0.1)
    np.testing.assert_allclose(found.displacement, states[:, 0], rtol=1e-9, atol=1e-12)
    now = states[:, 1] + grows * np.arange(401)
    np.testing.assert_allclose(found.sharpness, now, rtol=1e-12)
    losses = now * states[:, 0] ** 2 / 2 - EPSILON * states[:, 1]
    np.testing.assert_allclose(found.predicted_loss, losses, rtol=1e-9)
    # From a step in the middle, by the loss of the steps that follow.
    later = self_stabilization(
        problem,
        jnp.array([0.0, states[300, 1], 0.0]),
        RATE,
        100,
        step=300,
        displacement=states[300, 0],
    )
    np.testing.assert_array_equal(later.steps, np.arange(300, 401))
    np.testing.assert_allclose(later.energy, found.energy[300:], rtol=1e-8, atol=1e-15)


def network(params):
    """A small network with a dense Hessian, at no minimum."""
    inputs = jnp.linspace(-1, 1, 7)
    outputs = jnp.tanh(jnp.outer(inputs, params[:3]) + params[3:6]) @ params[6:]
    return jnp.mean((outputs - jnp.sin(3 * inputs)) ** 2)


def test_the_coefficients_of_a_network_are_derivatives_of_its_sharpness():
    params = np.random.default_rng(0).standard_normal(9)
    hessian = jax.jit(jax.hessian(network))

    def sharpness(at):
        return np.linalg.eigvalsh(np.asarray(hessian(at)))[-1]

    values, vectors = np.linalg.eigh(np.asarray(hessian(params)))
    change = 1e-5
    slope = np.array(
        [
            (sharpness(params + change * unit) - sharpness(params - change * unit)) / (2 * change)
            for unit in np.eye(9)
        ]
    )
    top = vectors[:, -1]
    across = slope - (top @ slope) * top
    gradient = np.asarray(jax.grad(network)(params))
    found = self_stabilization(network, jnp.asarray(params), 1.9 / values[-1], 0, displacement=0.1)
    assert found.converged, found.message
    assert found.sharpness[0] == pytest.approx(values[-1], rel=1e-9)
    assert found.second_eigenvalue == pytest.approx(values[-2], rel=1e-3)
    assert found.alpha == pytest.approx(-gradient @ across, rel=1e-5)
    assert found.beta == pytest.approx(across @ across, rel=1e-5)
    assert abs(found.alpha - -gradient @ slope) > 1e-2 * abs(found.alpha)  # the parts differ


def test_a_second_direction_at_the_edge_is_refused():
    found = self_stabilization(
        lossy(EPSILON, other=1.0), jnp.array([0.0, EDGE, 0.0]), RATE, 5, displacement=[0.1, 0, 0]
    )
    assert not found.converged
    assert "a second direction may be at or beyond 2/η" in found.message
    for column in (found.energy, found.sharpness, found.loss, found.predicted_loss, found.push):
        assert np.all(np.isnan(column))
        assert len(column) == 6
    assert np.all(np.isnan(found.centres(np.arange(6))))
    below = self_stabilization(
        lossy(EPSILON, other=1.0, lower=1.0), jnp.array([0.0, EDGE, 0.0]), RATE, 5, displacement=0.1
    )
    assert below.converged
    assert np.all(np.isfinite(below.energy))


@pytest.mark.parametrize(
    ("curvature", "displacement", "complaint"),
    [(-1.0, 0.1, "no eigenvector of positive curvature"), (EDGE, np.nan, "are not finite")],
)
def test_no_start_no_prediction(curvature, displacement, complaint):
    start = jnp.array([0.0, curvature, 0.0])
    found = self_stabilization(valley, start, RATE, 3, displacement=displacement)
    assert not found.converged
    assert np.all(np.isnan(found.sharpness))
    assert complaint in found.message


def test_an_eigenvector_that_is_none_is_refused():
    params = jnp.array([0.0, EDGE, 0.0])
    found = self_stabilization(
        valley, params, RATE, 3, displacement=0.1, eigenvector=[1.0, 0.1, 0.0]
    )
    assert not found.converged
    assert "no eigenvector" in found.message


def test_it_ends_where_there_is_no_edge_any_more():
    """Without an oscillation the sharpness rises by ηα a step, up to 1.5 times 2/η."""
    found = self_stabilization(valley, jnp.array([0.0, EDGE, 0.0]), RATE, 2000, displacement=0.0)
    last = int(np.floor(EDGE / 2 / (RATE * EPSILON)))
    np.testing.assert_allclose(
        found.sharpness[: last + 1], EDGE + RATE * EPSILON * np.arange(last + 1), rtol=1e-12
    )
    assert np.all(np.isnan(found.sharpness[last + 1 :]))
    assert found.message == f"left the edge at step {last + 1}"
    assert np.isnan(found.centres(np.array([last + 1]))).all()
    low = self_stabilization(valley, jnp.array([0.0, EDGE / 2.01, 0.0]), RATE, 3, displacement=0.1)
    assert np.all(np.isnan(low.energy))
    assert low.message == "left the edge at step 0"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"steps": -1}, "steps -1"),
        ({"displacement": np.ones(2)}, "the displacement has shape"),
        ({"eigenvector": np.zeros(3)}, "the eigenvector has shape"),
    ],
)
def test_what_is_not_meant_is_refused(arguments, complaint):
    given = {"learning_rate": RATE, "steps": 3, "displacement": 0.1} | arguments
    with pytest.raises(ValueError, match=complaint):
        self_stabilization(valley, jnp.array([0.0, EDGE, 0.0]), **given)


def test_float32():
    start = jnp.array([0.0, 6.5, 0.0], jnp.float32)
    found = self_stabilization(valley, start, RATE, 100, displacement=0.2)
    precise = self_stabilization(valley, jnp.array([0.0, 6.5, 0.0]), RATE, 100, displacement=0.2)
    np.testing.assert_allclose(found.sharpness, precise.sharpness, rtol=1e-4)
