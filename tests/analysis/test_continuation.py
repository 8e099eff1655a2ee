"""Branches of cycles and their bifurcations, against closed forms and the literature."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
from dlf_dynamics.analysis.bifurcation.cycles import find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import normal_form
from dlf_dynamics.analysis.bifurcation.switching import switch_branch

LOGISTIC = Map(lambda x, r: r * x * (1 - x))
HENON = Map(lambda x, a: jnp.array([a - x[0] ** 2 + 0.3 * x[1], x[0]]))
DELAYED_LOGISTIC = Map(lambda x, r: jnp.array([r * x[0] * (1 - x[1]), x[0]]))


def descent(loss):
    """Gradient descent, its learning rate being the parameter."""
    return Map(lambda x, rate: x - rate * jax.grad(loss)(x))


DOUBLE_WELL = descent(lambda x: ((x[0] ** 2 - 1) ** 2) / 4)


def summary(branch):
    return [(found.kind, found.criticality) for found in branch.bifurcations]


def only(branch, kind):
    """The one bifurcation of a kind on a branch, which must be refined."""
    (found,) = (item for item in branch.bifurcations if item.kind == kind)
    assert found.converged
    assert found.residual < 1e-9
    return found


def cascade(map_, state, start, high, count):
    """Parameters of successive flips, each followed from the one before."""
    flips = [only(continue_cycle(map_, state, start, 1, until=(start, high)), "flip")]
    width = high - flips[0].parameter
    while len(flips) < count:
        doubled = switch_branch(map_, flips[-1])
        assert doubled.converged
        assert doubled.least_period == 2 ** len(flips)
        # The next flip is at less than 0.6, and the one after it beyond 0.7, of the first distance.
        until = flips[-1].parameter, flips[-1].parameter + width
        branch = continue_cycle(map_, doubled, until=until, direction="increasing", step=width / 20)
        flips.append(only(branch, "flip"))
        width = 0.3 * (flips[-1].parameter - flips[-2].parameter)
    return np.array([flip.parameter for flip in flips])


def test_the_cascade_of_the_logistic_map():
    flips = cascade(LOGISTIC, np.array([0.6]), 2.5, 3.52, 5)
    published = [3, 1 + math.sqrt(6), 3.544090359552, 3.564407266095, 3.568759419544]
    np.testing.assert_allclose(flips, published, rtol=0, atol=1e-12)
    gaps = np.diff(flips)
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], [4.7514, 4.6562, 4.6682], atol=1e-4)


def test_the_cascade_of_the_double_well():
    flips = cascade(DOUBLE_WELL, np.array([1.0]), 0.5, 1.27, 4)
    published = [1, math.sqrt(5) - 1, 1.2880317545, 1.2992279397]
    np.testing.assert_allclose(flips, published, rtol=0, atol=1e-10)


def test_a_branch_of_the_logistic_map_passes_the_other_one():
    branch = continue_cycle(LOGISTIC, np.array([0.6]), 2.5, 1, until=(0.5, 3.4))
    crossing, flip = only(branch, "branch point"), only(branch, "flip")
    assert summary(branch) == [("branch point", ""), ("flip", "supercritical")]
    np.testing.assert_allclose([crossing.parameter, flip.parameter], [1, 3], rtol=1e-12)
    np.testing.assert_allclose(flip.coefficient, 9, rtol=1e-11)
    np.testing.assert_allclose(crossing.coefficient, -1, rtol=1e-11)  # f'' / 2 = -r
    np.testing.assert_allclose(flip.multiplier, -1, atol=1e-12)
    parameters = branch.parameters
    assert (parameters[0], parameters[-1], branch.status) == (0.5, 3.4, "range left")
    np.testing.assert_allclose(branch.points[:, 0, 0], 1 - 1 / parameters, atol=1e-12)
    np.testing.assert_allclose(branch.multipliers[:, 0], 2 - parameters, atol=1e-11)
    assert np.all(branch.stable == ((parameters > 1) & (parameters < 3)))
    assert np.max(branch.residuals) < 1e-12
    assert np.all(np.diff(parameters) > 0)
    trivial = continue_cycle(
        LOGISTIC, np.zeros(1), 0.9, 1, until=(0.5, 1.5), direction="increasing"
    )
    np.testing.assert_allclose(only(trivial, "branch point").parameter, 1, rtol=1e-12)
    assert trivial.parameters[0] == 0.9


def test_period_three_is_born_in_a_fold_and_turned_around_there():
    start = find_cycle(LOGISTIC, np.array([0.157]), 3.835, 3)
    branch = continue_cycle(LOGISTIC, start, until=(3.8, 3.85))
    fold = only(branch, "fold")
    np.testing.assert_allclose(fold.parameter, 1 + math.sqrt(8), rtol=0, atol=1e-12)
    np.testing.assert_allclose(fold.multiplier, 1, atol=1e-9)
    assert fold.criticality == ""
    assert abs(fold.coefficient) > 1
    assert branch.parameters.min() > fold.parameter
    assert (branch.parameters[0], branch.parameters[-1]) == (3.85, 3.85)
    assert only(branch, "flip").criticality == "supercritical"
    assert sorted(map(len, (branch.parameters, branch.stable))) == [len(branch.points)] * 2


def test_bifurcations_have_short_names_and_directions():
    branch = continue_cycle(HENON, np.array([0.2, 0.2]), 0.2, 1, until=(-0.3, 0.7))
    assert [(found.kind, found.label) for found in branch.bifurcations] == [
        ("fold", "LP"),
        ("flip", "PD"),
    ]
    fold, flip = branch.bifurcations
    # With J (u, v) = (-2 x u + 0.3 v, u) an eigenvector of the multiplier m is (m, 1).
    np.testing.assert_allclose(fold.direction, np.array([1, 1]) / math.sqrt(2), atol=1e-9)
    np.testing.assert_allclose(np.abs(flip.direction @ [1, 1]), 0, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(flip.direction), 1)
    circle = continue_cycle(DELAYED_LOGISTIC, np.array([0.5, 0.5]), 1.8, 1, until=(1.2, 2.3))
    (born,) = circle.bifurcations
    assert born.label == "NS"
    np.testing.assert_allclose(born.direction[0] / born.direction[1], born.multiplier, rtol=1e-9)
    branch = continue_cycle(LOGISTIC, np.array([0.6]), 2.5, 1, until=(0.5, 2.6))
    assert [(found.label, found.direction.tolist()) for found in branch.bifurcations] == [
        ("BP", [1.0])
    ]


def test_henon():
    branch = continue_cycle(HENON, np.array([0.2, 0.2]), 0.2, 1, until=(-0.3, 0.7))
    fold, flip = only(branch, "fold"), only(branch, "flip")
    assert len(branch.bifurcations) == 2
    np.testing.assert_allclose(fold.parameter, -(0.7**2) / 4, rtol=1e-12)
    np.testing.assert_allclose(flip.parameter, 3 * 0.7**2 / 4, rtol=1e-12)
    # On x = y: with q = (1, 1)/√2 and w = (1, b) √2 / (1 + b), <w, B(q,q)> / 2 = -1 / (√2 (1 + b)).
    np.testing.assert_allclose(fold.coefficient, -1 / (math.sqrt(2) * 1.3), rtol=1e-9)
    doubled = switch_branch(HENON, flip)
    further = continue_cycle(HENON, doubled, until=(0.3, 1.1))
    assert further.status == "period halved"
    assert "downwards: came from a flip" in further.message
    np.testing.assert_allclose(only(further, "branch point").parameter, flip.parameter, rtol=1e-9)
    following = only(further, "flip").parameter
    np.testing.assert_allclose(following, 0.7**2 + 1.3**2 / 4, rtol=1e-12)


def test_the_circle_of_the_delayed_logistic_map():
    branch = continue_cycle(DELAYED_LOGISTIC, np.array([0.5, 0.5]), 1.8, 1, until=(1.2, 2.3))
    born = only(branch, "neimark-sacker")
    assert summary(branch) == [("neimark-sacker", "supercritical")]
    np.testing.assert_allclose(born.parameter, 2, rtol=1e-12)
    np.testing.assert_allclose(born.multiplier, np.exp(1j * np.pi / 3), rtol=1e-11)
    # The radius predicted by the coefficient is that of the circle that iteration settles on.
    beyond = 2.002
    fixed = 1 - 1 / beyond
    jacobian = np.array([[1, beyond * -fixed], [1, 0]])
    growth = np.max(np.abs(np.linalg.eigvals(jacobian))) - 1
    settled = DELAYED_LOGISTIC.iterate(jnp.array([fixed + 0.01, fixed]), beyond, 20_000)
    orbit = find_orbit(DELAYED_LOGISTIC, settled, beyond, 6000) - fixed
    values, left = np.linalg.eig(jacobian.T)
    right = np.linalg.inv(left.T)[:, np.argmax(values.imag)]
    amplitude = orbit @ left[:, np.argmax(values.imag)] * np.linalg.norm(right)
    radius = np.sqrt(np.mean(np.abs(amplitude) ** 2))
    np.testing.assert_allclose(radius, np.sqrt(growth / -born.coefficient), rtol=0.02)


def find_orbit(map_, state, parameter, count):
    advance = lambda x, _: (map_(x, parameter),) * 2  # noqa: E731
    return np.asarray(jax.lax.scan(advance, state, None, length=count)[1])


@pytest.mark.parametrize(("angle", "cubic"), [(1.0, -0.7 + 0.3j), (2.5, 0.4 - 2j)])
def test_a_change_of_coordinates_leaves_the_neimark_sacker_coefficient(angle, cubic):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grow = np.array([[cubic.real, -cubic.imag], [cubic.imag, cubic.real]])

    def square(x):
        return jnp.array([x[0] ** 2 - 2 * x[0] * x[1], 3 * x[1] ** 2 + x[0] * x[1]])

    def step(y, p):
        x = y - square(y - square(y))  # to third order the inverse of x + square(x)
        x = turn @ ((1 + p) * x + (grow @ x) * (x @ x))  # z ↦ exp(i angle) (z + cubic z |z|²)
        return x + square(x)

    found = normal_form(
        Map(step), np.zeros((1, 2)), 0.0, "neimark-sacker", complex(np.exp(1j * angle))
    )
    # z = x + i y is √2 times the coordinate along the unit eigenvector (1, -i)/√2.
    np.testing.assert_allclose(found.coefficient, 2 * cubic.real, rtol=1e-9)
    assert found.criticality == ("supercritical" if cubic.real < 0 else "subcritical")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_strong_resonances_have_no_coefficient(order):
    angle = 2 * np.pi / order
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    spin = Map(lambda x, p: (1 + p) * turn @ x - x * (x @ x))
    found = normal_form(spin, np.zeros((1, 2)), 0.0, "neimark-sacker", complex(np.exp(1j * angle)))
    assert math.isnan(found.coefficient)
    assert found.criticality == ""
    assert found.message == f"strong resonance 1:{order}"


LOSSES = {
    "valley": (lambda x: x[0] ** 2 / 2 + x[1] ** 2 / 8 + x[0] ** 2 * x[1] / 2 + x[0] ** 4 / 4, 2),
    "quartic": (lambda x: x[0] ** 2 / 2 + x[0] ** 4 / 4, -2),
    "log cosh": (lambda x: jnp.log(jnp.cosh(x[0])), 2 / 3),
    "double well": (lambda x: ((x[0] + 1) ** 2 - 1) ** 2 / 4, 8),
    **{
        f"power {k}": (lambda x, k=k: (1 - (x[0] + 1) ** k) ** 2 / 2, (k - 1) * (20 * k - 16) / 3)
        for k in (2, 3, 4)
    },
    "factors": (lambda x: (1 - (x[0] + 1) * (x[1] + 1)) ** 2 / 2, 32 / 2**3),
}


@pytest.mark.parametrize(("loss", "expected"), LOSSES.values(), ids=LOSSES)
def test_the_flip_coefficient_is_that_of_gradient_descent(loss, expected):
    map_, size = descent(loss), 2 if loss in (LOSSES["valley"][0], LOSSES["factors"][0]) else 1
    critical = 2 / np.linalg.eigvalsh(jax.hessian(loss)(jnp.zeros(size)))[-1]
    until = 0.6 * critical, 1.4 * critical
    branch = continue_cycle(map_, np.zeros(size), 0.7 * critical, 1, until=until)
    flip = only(branch, "flip")
    np.testing.assert_allclose(flip.parameter, critical, rtol=1e-12)
    np.testing.assert_allclose(flip.coefficient, expected, rtol=1e-10)
    assert flip.criticality == ("supercritical" if expected > 0 else "subcritical")
    # Half the distance of the doubled cycle is √(ε/c), its multiplier 1 - 4ε, to leading order.
    doubled = switch_branch(map_, flip, amplitude=0.02)
    half = np.linalg.norm(doubled.points[0] - doubled.points[1]) / 2
    growth = 2 * (doubled.parameter / critical - 1)
    assert doubled.converged
    assert doubled.least_period == 2
    np.testing.assert_allclose(half, math.sqrt(growth / expected), rtol=0.01)
    multipliers = doubled.multipliers.real
    closest = multipliers[np.argmin(np.abs(multipliers - (1 - 4 * growth)))]
    np.testing.assert_allclose(closest, 1 - 4 * growth, atol=abs(growth) / 10)


def test_a_subcritical_flip_leads_to_an_unstable_cycle_before_it():
    loss, _ = LOSSES["quartic"]
    flip = only(continue_cycle(descent(loss), np.zeros(1), 1.5, 1, until=(1.0, 2.5)), "flip")
    doubled = switch_branch(descent(loss), flip)
    assert doubled.parameter < flip.parameter
    assert not doubled.stable
    branch = continue_cycle(descent(loss), doubled, until=(1.9, 1.999), step=0.01)
    assert branch.parameters[0] == 1.9
    np.testing.assert_allclose(np.abs(branch.points[0]), 0.2294157, atol=1e-7)
    np.testing.assert_allclose(branch.points[:, 0, 0] ** 2, 2 / branch.parameters - 1, rtol=1e-10)
    assert not np.any(branch.stable)


def test_heavy_ball_flips_at_its_own_threshold():
    momentum, curvature = 0.4, 1.3

    def step(state, rate):
        force = curvature * state[0] + state[0] ** 3
        velocity = momentum * state[1] - rate * force
        return jnp.array([state[0] + velocity, velocity])

    branch = continue_cycle(Map(step), np.zeros(2), 0.5, 1, until=(0.3, 3))
    flip = only(branch, "flip")
    np.testing.assert_allclose(flip.parameter, (2 + 2 * momentum) / curvature, rtol=1e-12)
    assert flip.criticality == "subcritical"
    # Its period-2 orbits are those of gradient descent with the step E = η / (1 + β).
    doubled = switch_branch(Map(step), flip)
    rate = doubled.parameter / (1 + momentum)
    np.testing.assert_allclose(doubled.points[:, 0] ** 2, 2 / rate - curvature, rtol=1e-9)


def heavy_ball(gradient, momentum):
    """Of a loss of the positions, whose parameter is the learning rate or one of the gradient."""

    def step(state, parameter):
        position, velocity = jnp.split(state, 2)
        rate, force = gradient(position, parameter)
        velocity = momentum * velocity - rate * force
        return jnp.concatenate([position + velocity, velocity])

    return Map(step)


@pytest.mark.parametrize("momentum", [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99])
def test_a_flip_is_located_though_a_complex_pair_met_within_the_step(momentum):
    # On the double well multipliers are complex up to η = (1 + √β)² / 2, just before 1 + β.
    map_ = heavy_ball(lambda x, rate: (rate, x * (x**2 - 1)), momentum)
    branch = continue_cycle(map_, np.array([1.0, 0]), 0.5, 1, until=(0.1, 3))
    flip = only(branch, "flip")
    assert summary(branch) == [("flip", "supercritical")]
    np.testing.assert_allclose(flip.parameter, 1 + momentum, rtol=1e-12)
    np.testing.assert_allclose(flip.multiplier, -1, atol=1e-10)
    # Period 2 is that of gradient descent with η / (1 + β), which flips at 1 with c = 8.
    doubled = switch_branch(map_, flip)
    assert doubled.stable
    rate = doubled.parameter / (1 + momentum)
    half = np.abs(doubled.points[0, 0] - doubled.points[1, 0]) / 2
    np.testing.assert_allclose(half, np.sqrt(1 - 1 / rate) / 2, rtol=1e-9)


@pytest.mark.parametrize(
    "b", [0.3, -0.5, -0.99, *(pytest.param(b, marks=pytest.mark.slow) for b in (0.7, -0.9))]
)
def test_the_curves_of_the_henon_map(b):
    henon = Map(lambda x, a: jnp.array([1 - a * x[0] ** 2 + x[1], b * x[0]]))
    fold, flip, second = -((1 - b) ** 2) / 4, 3 * (1 - b) ** 2 / 4, (1 - b) ** 2 + (1 + b) ** 2 / 4
    middle = 0.5 * flip
    fixed = (b - 1 + np.sqrt((1 - b) ** 2 + 4 * middle)) / (2 * middle)
    until = 1.5 * fold, 1.2 * flip
    branch = continue_cycle(henon, np.array([fixed, b * fixed]), middle, 1, until=until)
    np.testing.assert_allclose(only(branch, "fold").parameter, fold, rtol=1e-12)
    np.testing.assert_allclose(only(branch, "flip").parameter, flip, rtol=1e-12)
    assert len(branch.bifurcations) == 2
    doubled = switch_branch(henon, only(branch, "flip"))
    until = flip, flip + 1.5 * (second - flip)
    further = continue_cycle(henon, doubled, until=until, direction="increasing")
    np.testing.assert_allclose(only(further, "flip").parameter, second, rtol=1e-12)


def test_a_transcritical_point_is_located_though_a_complex_pair_met_within_the_step():
    # The curvature at 0 is -p: multipliers are complex up to p = -(1 - √β)² / η = -0.0013.
    map_ = heavy_ball(lambda x, p: (2.0, x**2 - p * x), 0.9)
    branch = continue_cycle(map_, np.zeros(2), -0.5, 1, until=(-1, 0.33))
    found = only(branch, "branch point")
    assert summary(branch) == [("branch point", "")]
    np.testing.assert_allclose(found.parameter, 0, atol=1e-10)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_circle_is_born_though_the_pair_was_real_at_the_start_of_the_step(copies):
    # Multipliers of trace 1.45 are real up to the determinant 1.45²/4 = 0.526, complex at 1.
    def step(x, p):
        first, second = jnp.split(x, 2)
        pulled = first * (first**2 + second**2)
        return jnp.concatenate([second - pulled, 1.45 * second - p * first])

    settings = {"until": (0.4, 1.3), "step": 0.8, "direction": "increasing"}
    branch = continue_cycle(Map(step), np.zeros(2 * copies), 0.5, 1, **settings)
    assert [found.kind for found in branch.bifurcations] == ["neimark-sacker"] * copies
    for born in branch.bifurcations:
        np.testing.assert_allclose(born.parameter, 1, rtol=1e-12)
        np.testing.assert_allclose(born.multiplier, np.exp(1j * np.arccos(1.45 / 2)), rtol=1e-9)
        assert born.residual < 1e-9
        assert born.converged
        assert bool(born.criticality) == (copies == 1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_multipliers_that_cross_together_are_both_told(momentum):
    map_ = heavy_ball(lambda x, rate: (rate, x * (x**2 - 1)), momentum)
    start = np.array([1.0, 1, 0, 0])
    branch = continue_cycle(map_, start, 0.5, 1, until=(0.1, 3))
    assert summary(branch) == [("flip", ""), ("flip", "")]
    for flip in branch.bifurcations:
        np.testing.assert_allclose(flip.parameter, 1 + momentum, rtol=1e-9)
        assert flip.message


@pytest.mark.parametrize("curvatures", [(1.0, 3.0), (3.0, 3.0), (3.0, 0.0)])
def test_a_quadratic_flips_into_nothing(curvatures):
    bowl = descent(lambda x: jnp.sum(jnp.array(curvatures) * x**2) / 2)
    branch = continue_cycle(bowl, np.zeros(2), 0.3, 1, until=(0.1, 2.5))
    expected = sorted(2 / c for c in curvatures if c)
    assert {found.kind for found in branch.bifurcations} == {"flip"}
    np.testing.assert_allclose(
        [found.parameter for found in branch.bifurcations], expected, rtol=1e-12
    )
    for found in branch.bifurcations:
        assert found.criticality == ""
        assert found.message
        doubled = switch_branch(bowl, found)
        assert not doubled.converged
        assert doubled.message == "generalised flip: the coefficient is 0 to rounding"


def test_a_flip_beside_an_unstable_direction_has_a_coefficient_and_no_label():
    # x flips at 2/1.2; at the flip of y, at 2/1.1, x is unstable, whatever happens to y.
    loss = lambda x: 0.6 * x[0] ** 2 + 0.55 * x[1] ** 2 - x[0] ** 4 / 4 + x[1] ** 4 / 4  # noqa: E731
    branch = continue_cycle(descent(loss), np.zeros(2), 1.5, 1, until=(1.4, 2))
    first, second = branch.bifurcations
    np.testing.assert_allclose([first.parameter, second.parameter], [2 / 1.2, 2 / 1.1], rtol=1e-12)
    np.testing.assert_allclose([first.coefficient, second.coefficient], [2 / 1.2, -2 / 1.1])
    assert (first.criticality, second.criticality) == ("supercritical", "")
    assert second.message == (
        "another multiplier is on or outside the unit circle: its modulus is 1.18182"
    )
    # The doubled cycle is there all the same.
    doubled = switch_branch(descent(loss), second)
    assert doubled.converged
    assert not doubled.stable
    # Two at once are told apart by no coefficient.
    together = descent(lambda x: x @ x / 2 + x[0] ** 4 / 4 - x[1] ** 4 / 4)
    flips = continue_cycle(together, np.zeros(2), 1.5, 1, until=(1.4, 2.3)).bifurcations
    assert [found.criticality for found in flips] == ["", ""]


def test_a_flip_on_a_line_of_fixed_points_is_not_judged_where_it_drifts_along():
    factors = descent(lambda x: (1 - x[0] * x[1]) ** 2 / 2)
    branch = continue_cycle(factors, np.array([2.0, 0.5]), 0.3, 1, until=(0.1, 1))
    flip = only(branch, "flip")
    np.testing.assert_allclose(flip.parameter, 2 / 4.25, rtol=1e-12)
    assert math.isnan(flip.coefficient)
    assert flip.criticality == ""
    assert "a multiplier is +1 as well" in flip.message
    assert not switch_branch(factors, flip).converged


def test_a_branch_can_start_at_a_fold_or_at_the_end_of_its_range():
    parabola = Map(lambda x, p: x + p - x**2)
    branch = continue_cycle(parabola, np.zeros(1), 0.0, 1, until=(-1, 1))
    assert (branch.parameters[0], branch.parameters[-1]) == (1, 1)
    np.testing.assert_allclose(branch.points[:, 0, 0] ** 2, branch.parameters, atol=1e-10)
    branch = continue_cycle(parabola, np.ones(1), 1.0, 1, until=(-1, 1))
    fold = only(branch, "fold")
    np.testing.assert_allclose([fold.parameter, fold.state[0]], 0, atol=1e-10)
    np.testing.assert_allclose([branch.points[0, 0, 0], branch.points[-1, 0, 0]], [-1, 1])


def test_a_pitchfork_is_seen_from_both_branches():
    pitchfork = Map(lambda x, p: x + p * x - x**3)
    for start in (0.0, math.sqrt(0.5)):
        branch = continue_cycle(pitchfork, np.array([start]), 0.5, 1, until=(-0.5, 0.8))
        found = only(branch, "branch point")
        np.testing.assert_allclose([found.parameter, found.coefficient], 0, atol=1e-9)
        assert branch.status == "range left"
    assert (branch.parameters[0], branch.parameters[-1]) == (0.8, 0.8)


def wall(x, p):
    """Not a number from the parameter 2 on."""
    return x / 2 + jnp.sqrt(2 - p)


def test_branches_that_end_say_why():
    branch = continue_cycle(Map(wall), np.ones(1), 1.0, 1, until=(0.0, 3.0))
    assert branch.status in ("not converged", "step too small")
    assert "a smaller step may help" in branch.message
    assert 1.9 < branch.parameters[-1] < 2
    branch = continue_cycle(LOGISTIC, np.array([0.6]), 2.5, 1, until=(2, 3), max_points=3)
    assert branch.status == "max points"
    assert len(branch.parameters) == 3 + 1 + 3
    assert re.fullmatch(r"downwards: 3 points made at 2.4\d*; upwards: 3 points .*", branch.message)


@pytest.mark.parametrize(
    ("map_", "state", "period", "message"),
    [
        (Map(lambda x, p: x + x**2 + p), np.ones(1), 1, "not converged"),
        (LOGISTIC, np.array([np.nan]), 1, "the map is not finite at the guess"),
        (LOGISTIC, np.array([0.59]), 2, "found a cycle of period 1, not 2"),
        (Map(lambda x, p: x / 2 + jnp.sqrt(p - 2.5)), np.zeros(1), 1, "derivatives not finite"),
    ],
)
def test_without_a_cycle_there_is_no_branch(map_, state, period, message):
    branch = continue_cycle(map_, state, 2.5, period, until=(2, 3))
    assert branch.status == "not converged"
    assert message in branch.message
    assert branch.points.shape == (0, period, 1)
    assert branch.multipliers.shape == (0, 1)
    assert branch.bifurcations == ()


def test_a_multiplier_that_jumps_with_the_parameter_makes_no_flip():
    def jumps(x, p):
        """A fixed point at 0 whose multiplier jumps over -1 at p = 1."""
        return -x * jnp.where(p < 1, 0.9, 1.1) + x**3

    branch = continue_cycle(Map(jumps), np.zeros(1), 0.505, 1, until=(0, 2))
    (found,) = branch.bifurcations
    assert found.kind == "border collision"
    assert found.criticality == ""
    assert math.isnan(found.coefficient)
    np.testing.assert_allclose(found.parameter, 1)
    assert "derivatives jump with the parameter alone" in found.message
    assert "twice the period" not in found.message  # there is one, √0.1 away
    unrefined = replace(found, kind="flip", converged=False)
    doubled = switch_branch(Map(jumps), unrefined)
    assert not doubled.converged
    assert doubled.least_period is None
    assert doubled.message == "the flip itself is not converged"


def test_a_doubled_cycle_must_be_the_one_that_was_predicted():
    flip = only(continue_cycle(LOGISTIC, np.array([0.6]), 2.5, 1, until=(2, 3.4)), "flip")
    far = switch_branch(LOGISTIC, flip, amplitude=40.0)
    assert not far.converged
    assert not far.stable
    assert far.least_period is None
    assert far.message
    with pytest.raises(ValueError, match="leaves at a fold; expected a flip or a branch"):
        switch_branch(LOGISTIC, replace(flip, kind="fold"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": (3, 2)}, "no range from 3 to 2 with the start 2.5 in it"),
        ({"until": (2.6, 3)}, "no range from 2.6 to 3 with the start 2.5 in it"),
        ({"step": 0.0}, r"step is 0.0; expected more than 0"),
        ({"direction": "sideways"}, "direction is 'sideways'; expected one of .*increasing"),
        ({"period": None}, "a state alone is no start; expected its parameter and period"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    settings = {"parameter": 2.5, "period": 1, "until": (2, 3)} | changes
    with pytest.raises(ValueError, match=message):
        continue_cycle(LOGISTIC, np.array([0.6]), **settings)


def test_a_branch_compiles_the_map_once():
    traced = []

    def counted(x, r):
        traced.append(1)
        return r * x * (1 - x)

    map_ = Map(counted)
    continue_cycle(map_, np.array([0.6]), 2.5, 1, until=(2, 2.9), step=0.1)
    before = len(traced)
    continue_cycle(map_, np.array([0.6]), 2.5, 1, until=(2, 2.95), step=0.005)
    assert len(traced) == before
