"""The central flow of RMSProp against closed forms, RMSProp's own averages and its stable flow."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy.integrate import solve_ivp

from dlf_dynamics.analysis import central_flow
from dlf_dynamics.analysis.theories import central_flow as flow_module
from dlf_dynamics.analysis.theories.rules import RMSProp
from dlf_dynamics.problem import Problem

NAMES = ("xx", "xxy", "xv", "vv", "vvyy", "xxxx", "xxv", "y", "sin")


def _terms(coefficients, z):
    x, v, y = z
    a, b, c, d, e, f, g, h, k = coefficients
    curved = (a + b * y) * x**2 / 2 + c * x * v + (d + e * y**2) * v**2 / 2
    return curved + f * x**4 + g * x**2 * v - h * y - k * jnp.sin(y)


def valley(**terms: float) -> Partial:
    """Of x, v and y; one program serves all of them."""
    return Partial(_terms, jnp.asarray([terms.get(name, 0.0) for name in NAMES]))


def slopes_of(z, terms: dict[str, float]) -> np.ndarray:
    """The gradient, by hand."""
    (x, v, y), t = z, {name: terms.get(name, 0.0) for name in NAMES}
    return np.array(
        [
            (t["xx"] + t["xxy"] * y) * x
            + t["xv"] * v
            + 4 * t["xxxx"] * x**3
            + 2 * t["xxv"] * x * v,
            t["xv"] * x + (t["vv"] + t["vvyy"] * y**2) * v + t["xxv"] * x**2,
            t["xxy"] * x**2 / 2 + t["vvyy"] * y * v**2 - t["y"] - t["sin"] * np.cos(y),
        ]
    )


def at_start(*mean_squares: float, rate=0.1, decay=0.9, epsilon=0.0, in_root=True) -> RMSProp:
    return RMSProp(rate, decay, epsilon, np.array(mean_squares), in_root)


def in_parameters(point) -> np.ndarray:
    """Σ."""
    return point.modes.T @ point.covariance @ point.modes


def held_conditions(monkeypatch) -> list[tuple[float, float, float]]:
    """Of each substep the least eigenvalues of X and S, and ⟨X, S⟩, made by hand."""
    solve, seen = flow_module.solve_complementarity, []

    def watched(alpha, beta):
        found = solve(alpha, beta)
        covariance, size = found.covariance, np.linalg.norm(alpha)
        slack = alpha + np.einsum("ijkl,kl->ij", beta, covariance)
        slack = (slack + slack.T) / 2
        least, smallest = (np.linalg.eigvalsh(part)[0] for part in (covariance, slack))
        seen.append((least, smallest / size, np.sum(slack * covariance) / size))
        return found

    monkeypatch.setattr(flow_module, "solve_complementarity", watched)
    return seen


@pytest.mark.parametrize(("x", "mean_square"), [(1.0, 4.0), (0.3, 0.01), (0.001, 1.0), (2.0, 0.5)])
def test_a_quadratic_has_the_oscillation_of_half_the_learning_rate(x, mean_square):
    # x goes from η/2 to -η/2, and the gradient aη/2 is its own root mean square.
    curvature, rate = 3.0, 0.1
    rule = at_start(mean_square, 1.0, 1.0, rate=rate)
    found = central_flow(valley(xx=curvature), jnp.array([x, 0, 0]), rule, 80, certify_every=40)
    last = found.points[-1]
    assert found.stopped == ""
    assert last.mean_squares[0] == pytest.approx(curvature**2 * rate**2 / 4, rel=1e-9)
    assert last.energy == pytest.approx(rate**2 / 4, rel=1e-9)
    assert in_parameters(last)[0, 0] == pytest.approx(rate**2 / 4, rel=1e-9)
    assert last.predicted_loss == pytest.approx(curvature * rate**2 / 8, rel=1e-9)
    assert last.sharpness == pytest.approx(2, rel=1e-9)
    assert last.converged


def test_valleys_apart_come_to_the_edge_each_at_its_own_time():
    # Without a gradient ν falls by 1/9 a step, until it is a²η²/4.
    curvatures, rate, steps = np.array([3.0, 1.0]), 0.1, 80
    rule = at_start(0.5, 0.5, 1.0, rate=rate)
    found = central_flow(valley(xx=3.0, vv=1.0), jnp.zeros(3), rule, steps, certify_every=20)
    falling = 0.5 * (1 - 1 / 9 / 4) ** (4 * np.arange(steps + 1))[:, None]
    held = curvatures**2 * rate**2 / 4
    squares = np.array([point.mean_squares for point in found.points])
    np.testing.assert_allclose(squares[:, :2], np.maximum(falling, held), rtol=1e-9)
    # X_12 has no effect on P, and theory leaves it open.
    energies = np.array([np.diag(in_parameters(point))[:2] for point in found.points])
    at_edge = falling < held
    assert np.sum(at_edge, axis=0).tolist() == [53, 33]
    np.testing.assert_allclose(energies[at_edge], rate**2 / 4, rtol=1e-7)
    np.testing.assert_allclose(energies[:-2][~at_edge[2:]], 0, atol=1e-15)
    assert found.points[-1].message == "the conditions leave a part of X undetermined"


def test_coupled_valleys_of_which_both_parameters_jump_together(monkeypatch):
    # With s = (1, 1) and P = diag(Hs)/2, s is the critical mode: ν = η² (Hs)²/4, Σ = η²/4 s sᵀ.
    seen, rate = held_conditions(monkeypatch), 0.1
    start = jnp.array([0.3, -0.2, 0])
    rule = at_start(0.5, 0.5, 1.0, rate=rate)
    found = central_flow(valley(xx=2, xv=0.5, vv=1), start, rule, 160, certify_every=40)
    last = found.points[-1]
    np.testing.assert_allclose(
        last.mean_squares[:2], np.square([2.5, 1.5]) * rate**2 / 4, rtol=1e-8
    )
    np.testing.assert_allclose(in_parameters(last)[:2, :2], rate**2 / 4, rtol=1e-8)
    assert last.energy == pytest.approx(rate**2 / 2, rel=1e-8)
    assert last.eigenvalues == pytest.approx([2], rel=1e-9)
    # uᵀ P u = 1.
    assert last.modes[0] ** 2 @ np.sqrt(last.mean_squares) / rate == pytest.approx(1, rel=1e-9)
    assert np.all(found.converged)
    least, slack, gap = np.array(seen).T
    assert min(np.min(least), np.min(slack)) >= -1e-12
    assert np.max(np.abs(gap)) <= 1e-12


@pytest.mark.parametrize("in_root", [True, False])
def test_an_oscillation_that_holds_a_valley_back(in_root):
    # ½ y x² - κ y rests where σ² = 2κ, ν = y² σ² and y = 2P: x = ±σ is RMSProp's own orbit.
    force, epsilon = 0.025, 1.0 if in_root else 0.5
    energy = 2 * force
    curvature = np.sqrt(epsilon / (0.25 - energy)) if in_root else epsilon / (0.5 - np.sqrt(energy))
    rule = at_start(0.3, 0.01, 0.001, rate=1.0, epsilon=epsilon, in_root=in_root)
    start = jnp.array([0, 0, 0.9 * curvature])
    found = central_flow(valley(xxy=1, y=force), start, rule, 400, certify_every=100)
    last = found.points[-1]
    assert found.stopped == ""
    assert last.params[2] == pytest.approx(curvature, rel=1e-6)
    assert last.energy == pytest.approx(energy, rel=1e-6)
    assert last.mean_squares[0] == pytest.approx(curvature**2 * energy, rel=1e-6)
    np.testing.assert_allclose(found.sharpness[-100:], 2, rtol=1e-8)


CURVED = {"xx": 2, "xxy": 1, "xv": 0.5, "vv": 1, "vvyy": 0.5, "xxxx": 0.075, "xxv": 0.3, "sin": 0.4}


def held_at(rate: float, y: float) -> np.ndarray:
    """Mean squares of the oscillation of CURVED where it begins."""
    hessian = np.array([[2 + y, 0.5], [0.5, 1 + 0.5 * y**2]])
    return np.array([*(rate / 2 * hessian @ [1, 1]) ** 2, (0.4 * np.cos(y)) ** 2])


def descended(rate: float, decay: float, steps: int) -> dict[str, np.ndarray]:
    """Averages of RMSProp itself from 16 starts in CURVED, in NumPy."""
    rng = np.random.default_rng(0)
    jumps = rate / 2 * rng.uniform(0.9, 1.1, 16) * rng.choice([-1, 1], 16)
    z = np.stack([jumps, jumps, np.full(16, -0.5)])
    squares = np.tile(held_at(rate, -0.5)[:, None], 16)
    states, means = [], []
    for _ in range(steps + 2):
        slopes = slopes_of(z, CURVED)
        squares = decay * squares + (1 - decay) * slopes**2
        states.append(z)
        means.append(squares)
        z = z - rate * slopes / np.sqrt(squares)
    states = np.array(states)
    centres = (states[:-2] + 2 * states[1:-1] + states[2:]) / 4
    jumps = states[1:-1] - centres
    return {
        "centres": np.mean(centres, axis=2),
        "mean squares": np.mean(means[1:-1], axis=2),
        "covariance": np.einsum("tim,tjm->tij", jumps, jumps) / 16,
    }


def differences(rate: float, decay: float = 0.9) -> np.ndarray:
    """Of y, the mean squares and the covariance, the last two relative, on the way to y = 0.8."""
    steps = round(1.6 / rate)
    rule = RMSProp(rate, decay, 0.0, held_at(rate, -0.5))
    start = jnp.array([0, 0, -0.5])
    found = central_flow(valley(**CURVED), start, rule, steps, certify_every=50)
    assert np.all(found.converged)
    told = descended(rate, decay, steps)
    late = slice(round(0.3 * steps), round(0.9 * steps))
    points = found.points[1 : steps + 1][late]
    centres = np.array([point.params for point in points])
    assert centres[-1, 2] - centres[0, 2] > 0.6
    squares = np.mean([point.mean_squares for point in points], axis=0)
    covariance = np.mean([in_parameters(point) for point in points], axis=0)
    own = np.mean(told["covariance"][late], axis=0)
    return np.array(
        [
            np.max(np.abs(told["centres"][late, 2] - centres[:, 2])),
            np.max(np.abs(np.mean(told["mean squares"][late], axis=0) / squares - 1)),
            np.linalg.norm(own - covariance) / np.linalg.norm(covariance),
        ]
    )


def test_rmsprop_against_its_own_average_the_closer_the_smaller_its_steps():
    errors = np.array([differences(rate) for rate in (0.04, 0.02, 0.01)])
    assert np.all(errors[-1] < [1e-3, 2e-3, 3e-3])
    assert np.all(errors[:-1] / errors[1:] > 1.9)


@pytest.mark.parametrize("in_root", [True, False])
def test_below_the_edge_it_is_the_stable_flow(in_root):
    terms, rate, decay, epsilon = {**CURVED, "y": 0.2}, 0.02, 0.8, 0.01
    start, squares, steps = np.array([0.4, 0.3, -0.2]), np.array([0.7, 0.5, 0.9]), 20

    def moving(_, state):
        slopes, nu = slopes_of(state[:3], terms), state[3:]
        divisor = np.sqrt(nu + epsilon) if in_root else np.sqrt(nu) + epsilon
        return np.concatenate([-rate * slopes / divisor, (1 - decay) / decay * (slopes**2 - nu)])

    begin = np.concatenate([start, squares])
    exact = solve_ivp(moving, (0, steps), begin, rtol=1e-11, atol=1e-12, method="DOP853").y[:, -1]
    rule = at_start(*squares, rate=rate, decay=decay, epsilon=epsilon, in_root=in_root)
    errors = []
    for substeps in (4, 8, 16):
        found = central_flow(valley(**terms), start, rule, steps, substeps=substeps)
        assert not np.any(found.energy)
        last = found.points[-1]
        errors.append(np.linalg.norm(np.concatenate([last.params, last.mean_squares]) - exact))
    assert errors[0] < 5e-3
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.05)


def test_halving_the_substep_halves_the_error_at_the_edge():
    rule = RMSProp(0.1, 0.9, 0.004, held_at(0.1, -0.5))
    found = [
        central_flow(
            valley(**CURVED), jnp.array([0.02, 0, -0.5]), rule, 12, substeps=substeps, tol=1e-10
        )
        for substeps in (4, 8, 16, 32)
    ]
    assert all(one.energy[-1] > 1e-3 for one in found)
    states = np.array([[*one.states[-1], *one.points[-1].mean_squares] for one in found])
    changes = np.linalg.norm(np.diff(states, axis=0), axis=1)
    np.testing.assert_allclose(changes[:-1] / changes[1:], 2, rtol=0.1)
    # P and H at the end of a substep are what it foresaw.
    mismatches = np.array([np.max(one.column("mismatch")) for one in found])
    np.testing.assert_allclose(mismatches[:-1] / mismatches[1:], 4, rtol=0.2)


def test_a_curvature_that_rises_with_the_step():
    # ½ a(t) x²: P = a/2 asks for ν = η²a²/4, and ν' = (a²σ² - ν)/9 for the energy.
    rate, slope = 0.1, 0.01
    loss = Problem.from_loss(lambda params, step: (2 + slope * step) * params[0] ** 2 / 2)
    found = central_flow(loss, jnp.zeros(1), at_start(0.01, rate=rate), 40)
    curvatures = 2 + slope * found.steps
    squares = np.array([point.mean_squares[0] for point in found.points])
    np.testing.assert_allclose(squares[5:], rate**2 * curvatures[5:] ** 2 / 4, rtol=1e-4)
    expected = rate**2 / 4 * (1 + 9 * 2 * slope / curvatures)
    np.testing.assert_allclose(found.energy[5:], expected[5:], rtol=3e-3)


def test_float32():
    rule = at_start(0.5, 0.5, 1.0)
    start = jnp.zeros(3, jnp.float32)
    loss = Partial(_terms, valley(xx=2, xv=0.5, vv=1).args[0].astype(jnp.float32))
    found = central_flow(loss, start, rule, 100)
    last = found.points[-1]
    assert last.params.dtype == last.mean_squares.dtype == last.modes.dtype == np.float32
    assert np.all(found.converged)
    assert last.energy == pytest.approx(0.005, rel=1e-4)


def test_a_parameter_without_a_gradient_whose_mean_square_vanishes():
    rule = RMSProp(0.1, 0.9, 1e-6, np.array([0.5, 1e-37, 1.0]), in_root=False)
    loss = Partial(_terms, valley(xx=2).args[0].astype(jnp.float32))
    found = central_flow(loss, jnp.zeros(3, jnp.float32), rule, 120)
    last = found.points[-1]
    assert last.energy == pytest.approx((0.05 - 0.5e-6) ** 2, rel=1e-4)
    assert np.all(found.converged)
    assert rule.metric(jnp.zeros(1)).sensitivity.tolist() == [0]


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [
        (optax.rmsprop(0.01), (0.01, 0.9, 1e-8, True)),
        (optax.rmsprop(0.3, decay=0.99, eps=1e-3, eps_in_sqrt=False), (0.3, 0.99, 1e-3, False)),
        (optax.rmsprop(0.3, eps=0.5), (0.3, 0.9, 0.5, True)),
        (optax.rmsprop(2.0, eps=0.0, initial_scale=1.0), (2.0, 0.9, 0.0, True)),
    ],
)
def test_numbers_are_read_off_an_optimizer(optimizer, numbers):
    rule = RMSProp.of(optimizer, np.ones(1))
    assert (rule.learning_rate, rule.decay, rule.epsilon, rule.in_root) == numbers


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.rmsprop(0.1, momentum=0.9),
        optax.rmsprop(0.1, centered=True),
        optax.rmsprop(0.1, bias_correction=True),
        optax.rmsprop(optax.linear_schedule(0.1, 0.2, 9)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.rmsprop(0.1)),
        optax.chain(optax.rmsprop(0.1), optax.clip(0.05)),
        optax.chain(optax.add_decayed_weights(1e-4), optax.rmsprop(0.1)),
        optax.chain(optax.scale_by_rms(), optax.add_decayed_weights(1e-4), optax.scale(-0.1)),
        optax.chain(optax.scale_by_rms(), optax.scale_by_rms(), optax.scale(-0.1)),
        optax.adam(0.1, b1=0.0),
        optax.sgd(0.1),
        optax.sign_sgd(0.1),
    ],
)
def test_other_updates_are_not_taken_for_rmsprop(optimizer):
    with pytest.raises(ValueError, match=r"are not those of optax\.rmsprop"):
        RMSProp.of(optimizer, np.ones(1))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rate": 0.0}, "learning rate above 0"),
        ({"decay": 1.0}, "decay between 0 and 1"),
        ({"epsilon": -1.0}, "ε of 0 or more"),
        ({"epsilon": 0.1, "in_root": False}, "mean squares are"),
        ({}, "mean squares are"),
    ],
)
def test_numbers_that_make_no_metric(changed, reason):
    with pytest.raises(ValueError, match=reason):
        at_start(0.0, 1.0, **changed)


def test_mean_squares_of_other_parameters():
    with pytest.raises(ValueError, match=r"shape \(2,\); expected that of the parameters, \(3,\)"):
        central_flow(valley(xx=1), jnp.zeros(3), at_start(1.0, 1.0), 1)


def test_mean_squares_that_forget_faster_than_a_step():
    # 9 (∇F² - ν) in each step.
    found = central_flow(valley(xx=1), jnp.zeros(3), at_start(1, 1, 1, decay=0.1), 3, substeps=64)
    squares = np.array([point.mean_squares[0] for point in found.points])
    np.testing.assert_allclose(squares[1:], 0.0025, rtol=1e-9)
    assert found.energy[-1] == pytest.approx(0.0025, rel=1e-9)
