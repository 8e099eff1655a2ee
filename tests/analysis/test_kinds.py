"""Kinds of bifurcations, their degenerate cases, and the branches that leave there."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
from dlf_dynamics.analysis.bifurcation.cycles import find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.switching import switch_branch

LOGISTIC = Map(lambda x, r: r * x * (1 - x))


def descent(loss):
    """Gradient descent, its learning rate being the parameter."""
    return Map(lambda x, rate: x - rate * jax.grad(loss)(x))


def told(branch):
    return [(found.label, found.branching, found.criticality) for found in branch.bifurcations]


def parameters(branch):
    return [found.parameter for found in branch.bifurcations]


def bubble(a):
    """Its multiplier is beyond -1 where p² < a."""
    return Map(jax.tree_util.Partial(lambda a, x, p: -(1 + a - p**2) * x + x**3, jnp.float64(a)))


@pytest.mark.parametrize("a", [1e-2, 1e-5, 1e-9])
def test_a_flip_that_is_undone_within_a_step_is_seen(a):
    branch = continue_cycle(bubble(a), np.zeros(1), -0.503, 1, until=(-1, 1))
    assert told(branch) == [("PD", "", "supercritical")] * 2
    np.testing.assert_allclose(parameters(branch), [-math.sqrt(a), math.sqrt(a)], rtol=1e-5)
    if a >= 1e-5:
        assert np.min(np.diff(branch.parameters)) > 0
        assert len(branch.parameters) < 110


@pytest.mark.parametrize("a", [-1e-5, -1e-2])
def test_a_flip_that_is_not_reached_is_not_told(a):
    branch = continue_cycle(bubble(a), np.zeros(1), -0.503, 1, until=(-1, 1))
    assert branch.bifurcations == ()
    assert branch.status == "range left"


def test_a_bubble_is_seen_though_pairs_meet_on_the_real_axis_around_it():
    # With momentum 0.9 multipliers are real from a curvature of 3.797 on, and one is -1 at 3.8.
    def step(state, p):
        force = (3.8 + 1e-4 - p**2) * state[0] + state[0] ** 3
        velocity = 0.9 * state[1] - force
        return jnp.array([state[0] + velocity, velocity])

    branch = continue_cycle(Map(step), np.zeros(2), -0.48, 1, until=(-0.6, 0.6), step=0.15)
    assert told(branch) == [("PD", "", "subcritical")] * 2
    np.testing.assert_allclose(parameters(branch), [-0.01, 0.01], rtol=1e-7)


def test_folds_branch_points_and_circles_that_are_undone_within_a_step_are_seen():
    a = 1e-4
    # p = x³ - a x has folds where 3 x² = a.
    curve = continue_cycle(
        Map(lambda x, p: x + p - x**3 + a * x), np.full(1, 0.6), 0.2, 1, until=(-0.3, 0.3)
    )
    assert told(curve) == [("LP", "", "")] * 2
    fold = 2 * (a / 3) ** 1.5
    np.testing.assert_allclose(sorted(parameters(curve)), [-fold, fold], atol=1e-12)
    forks = Map(lambda x, p: (1 + a - p**2) * x - x**3)
    branch = continue_cycle(forks, np.zeros(1), -0.503, 1, until=(-1, 1))
    assert told(branch) == [("BP", "pitchfork", "supercritical")] * 2
    np.testing.assert_allclose(parameters(branch), [-0.01, 0.01], rtol=1e-9)

    def spiral(x, p):
        turn = jnp.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
        return turn @ x * (1 + a - p**2 - x @ x)

    branch = continue_cycle(Map(spiral), np.zeros(2), -0.503, 1, until=(-1, 1))
    assert told(branch) == [("NS", "", "supercritical")] * 2
    np.testing.assert_allclose(parameters(branch), [-0.01, 0.01], rtol=1e-7)


def test_of_two_flips_at_once_each_has_its_direction_and_its_doubled_cycle():
    angle = 0.7
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    def loss(x):
        y = turn.T @ x
        return y @ y / 2 + (y[0] ** 4 - y[1] ** 4) / 4

    map_ = descent(loss)
    branch = continue_cycle(map_, np.zeros(2), 1.5, 1, until=(1.4, 2.3))
    assert told(branch) == [("PD", "", "")] * 2
    np.testing.assert_allclose(parameters(branch), 2, rtol=1e-12)
    seen = []
    for flip in branch.bifurcations:
        assert flip.message == "2 multipliers are -1 at once: one direction of 2"
        (axis,) = np.nonzero(np.abs(turn.T @ flip.direction) > 1e-6)[0]
        np.testing.assert_allclose(np.abs(turn[:, axis] @ flip.direction), 1)
        doubled = switch_branch(map_, flip)
        assert doubled.least_period == 2
        other = turn.T @ doubled.points[0]
        # x = η (x ± x³) / 2 on either axis
        sign = -1 if axis == 0 else 1
        np.testing.assert_allclose(other[axis] ** 2, sign * (1 - 2 / doubled.parameter), rtol=1e-9)
        np.testing.assert_allclose(other[1 - axis], 0, atol=1e-12)
        seen.append(axis)
    assert sorted(seen) == [0, 1]


def test_of_two_flips_at_once_that_pass_at_different_speeds_each_has_its_own_direction():
    rng = np.random.default_rng(0)
    mixing, cubic = rng.normal(size=(4, 4)), np.array([1.2, -0.7])

    def step(x, p):
        first, second, *rest = jnp.linalg.solve(mixing, x)
        flipped = (
            -(1 + p) * first + cubic[0] * first**3,
            -(1 + 2 * p) * second + cubic[1] * second**3,
        )
        return mixing @ jnp.array([*flipped, 0.3 * rest[0] + first**2, -0.5 * rest[1]])

    map_ = Map(step)
    branch = continue_cycle(map_, np.zeros(4), -0.33, 1, until=(-0.4, 0.4))
    assert told(branch) == [("PD", "", "")] * 2
    axes = []
    for flip in branch.bifurcations:
        inside = np.linalg.solve(mixing, flip.direction)
        axes.append(int(np.argmax(np.abs(inside))))
        np.testing.assert_allclose(np.delete(inside, axes[-1]), 0, atol=1e-9)
        doubled = switch_branch(map_, flip)
        assert doubled.least_period == 2
        amplitude = np.linalg.solve(mixing, doubled.points[0])[axes[-1]]
        growth = doubled.parameter * (1 + axes[-1])
        np.testing.assert_allclose(amplitude**2, growth / cubic[axes[-1]], rtol=1e-8)
    assert sorted(axes) == [0, 1]


def test_coupled_logistic_maps_flip_in_step_and_against_each_other():
    strength = 0.05

    def coupled(x, r):
        images = r * x * (1 - x)
        return images + strength * (images[::-1] - images)

    map_ = Map(coupled)
    branch = continue_cycle(map_, np.array([0.6, 0.6]), 2.5, 1, until=(2.2, 3.3))
    together, apart = branch.bifurcations
    expected = [3, 2 + 1 / (1 - 2 * strength)]
    np.testing.assert_allclose(parameters(branch), expected, rtol=1e-12)
    np.testing.assert_allclose(together.direction, np.array([1, 1]) / math.sqrt(2))
    np.testing.assert_allclose(np.abs(apart.direction @ [1, -1]), math.sqrt(2))
    assert [found.criticality for found in branch.bifurcations] == ["supercritical", ""]
    assert "another multiplier is on or outside" in apart.message
    # The two change places: (1 - 2ε)(f(x) - f(y)) = y - x, f(x) + f(y) = x + y.
    doubled = switch_branch(map_, apart)
    assert doubled.least_period == 2
    np.testing.assert_allclose(doubled.points[0], doubled.points[1][::-1])
    total = 1 + 1 / (doubled.parameter * (1 - 2 * strength))
    difference = np.sqrt(2 * total - total**2 - 2 * total / doubled.parameter)
    np.testing.assert_allclose(np.sum(doubled.points[0]), total)
    np.testing.assert_allclose(np.abs(np.diff(doubled.points[0])), difference)
    assert not doubled.stable


FACTORS = Map(
    lambda w, d: (
        w
        - 0.1
        * jnp.array([d * w[0] - (1 - w[0] * w[1]) * w[1], d * w[1] - (1 - w[0] * w[1]) * w[0]])
    )
)


@pytest.mark.slow
def test_two_factors_with_weight_decay_have_a_pitchfork():
    branch = continue_cycle(FACTORS, np.zeros(2), 1.5, 1, until=(0.4, 1.6))
    (fork,) = branch.bifurcations
    assert told(branch) == [("BP", "pitchfork", "supercritical")]
    np.testing.assert_allclose([fork.parameter, fork.coefficient], [1, 0], atol=1e-12)
    np.testing.assert_allclose(fork.direction, np.array([1, 1]) / math.sqrt(2))
    # On w1 = w2 = s/√2 the loss is (1 - s²/2)²/2 + d s²/2, so that s ↦ s - 0.1 s³/2 at d = 1.
    np.testing.assert_allclose(fork.cubic, -0.05, rtol=1e-12)
    arms = []
    for amplitude in (0.2, -0.2):
        arm = switch_branch(FACTORS, fork, amplitude=amplitude)
        assert arm.stable
        assert arm.least_period == 1
        expected = np.sign(amplitude) * math.sqrt(1 - arm.parameter)
        np.testing.assert_allclose(arm.points[0], expected, rtol=1e-10)
        arms.append(continue_cycle(FACTORS, arm, until=(0.4, 1.6)))
    # Each follows the other over the fork, and from there the way leads back.
    for arm in arms:
        np.testing.assert_allclose(arm.points[:, 0, 0] ** 2, 1 - arm.parameters, atol=1e-10)
        assert told(arm) == [("BP", "pitchfork", "supercritical")]
        for amplitude in (0.2, -0.2):
            back = switch_branch(FACTORS, arm.bifurcations[0], amplitude=amplitude)
            assert back.converged
            np.testing.assert_allclose(back.points, 0, atol=1e-12)
            assert (back.parameter > 1) == (amplitude > 0) == back.stable


def test_both_branches_of_a_transcritical_point_lead_to_each_other():
    map_ = Map(lambda x, p: x + p * x - x**2)
    for start, slope in ((np.zeros(1), 0), (np.full(1, -0.5), 1)):
        branch = continue_cycle(map_, start, -0.5, 1, until=(-1, 1))
        (found,) = branch.bifurcations
        assert told(branch) == [("BP", "transcritical", "")]
        np.testing.assert_allclose([found.parameter, found.coefficient], [0, -1], atol=1e-12)
        np.testing.assert_allclose(found.tangent / found.tangent[-1], [slope, 1], atol=1e-9)
        for amplitude in (None, 0.1, -0.1):
            other = switch_branch(map_, found, amplitude=amplitude)
            expected = 0 if slope else other.parameter
            np.testing.assert_allclose(other.points[0, 0], expected, atol=1e-12)
            away = (expected - slope * other.parameter) / (amplitude or 0.01)
            np.testing.assert_allclose(away, 1, rtol=1e-9)


def test_a_doubled_cycle_leads_back_to_the_one_it_came_from():
    flip = continue_cycle(LOGISTIC, np.array([0.6]), 2.5, 1, until=(2.2, 3.3)).bifurcations[0]
    doubled = continue_cycle(LOGISTIC, switch_branch(LOGISTIC, flip), until=(2.5, 3.4))
    assert told(doubled) == [("BP", "period halved", "supercritical")]
    assert doubled.status == "period halved"
    (origin,) = doubled.bifurcations
    np.testing.assert_allclose([origin.parameter, origin.state[0]], [3, 2 / 3], rtol=1e-12)
    # Of s ↦ -s + b s³ the second iterate is s ↦ s - 2 b s³.
    np.testing.assert_allclose(origin.cubic, -2 * flip.coefficient, rtol=1e-9)
    for amplitude in (0.1, -0.1):
        single = switch_branch(LOGISTIC, origin, amplitude=amplitude)
        assert single.least_period == single.period == 1
        assert (single.parameter > 3) == (amplitude > 0)
        np.testing.assert_allclose(single.points[0, 0], 1 - 1 / single.parameter)


DEGENERATE = {
    "generalised flip": (lambda x, p: -(1 + p) * x + x**5, 1, "PD", "generalised flip: "),
    "quartic fold": (lambda x, p: x + p - x**4, 1, "LP", "cusp: "),
    "degenerate pitchfork": (lambda x, p: (1 + p) * x - x**5, 1, "BP", "degenerate pitchfork: "),
    "resonance 1:2": (
        lambda x, p: jnp.array([x[1] + x[0] ** 3, -(1 + p / 2) * x[0] - (2 + p) * x[1]]),
        2,
        "PD",
        "strong resonance 1:2: 2 multipliers are -1",
    ),
    "resonance 1:1": (
        lambda x, p: jnp.array([x[1] + x[0] ** 3, -(1 + p / 2) * x[0] + (2 + p) * x[1]]),
        2,
        "BP",
        "strong resonance 1:1: 2 multipliers are +1",
    ),
    "resonance 1:3": (
        lambda x, p: (1 + p) * jnp.array([-x[0] - x[1], x[0]]),
        2,
        "NS",
        "strong resonance 1:3",
    ),
    "resonance 1:4": (
        lambda x, p: (1 + p) * jnp.array([-x[1], x[0]]) - x**3,
        2,
        "NS",
        "strong resonance 1:4",
    ),
    "flip and circle": (
        lambda x, p: (1 + p) * jnp.array([-x[0] + x[0] ** 3, x[1] - x[2], x[1]]),
        3,
        "PD NS",
        "at once",
    ),
}


@pytest.mark.parametrize(("step", "size", "label", "message"), DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_cases_are_named_and_not_judged(step, size, label, message):
    start = np.zeros(size) if label != "LP" else np.full(1, 0.3**0.25)
    at = 0.3 if label == "LP" else -0.3
    branch = continue_cycle(Map(step), start, at, 1, until=(-0.35, 0.35), step=0.05)
    assert sorted(found.label for found in branch.bifurcations) == sorted(label.split())
    for found in branch.bifurcations:
        np.testing.assert_allclose(found.parameter, 0, atol=1e-9)
        assert found.criticality == ""
        assert message in found.message


def test_a_parameter_that_pauses_and_does_not_turn_back_is_no_branch_point():
    pause = Map(lambda x, p: x + p - x**3)
    branch = continue_cycle(pause, np.full(1, 0.5), 0.125, 1, until=(-0.4, 0.4))
    assert branch.status == "range left"
    assert [found for found in branch.bifurcations if found.branching] == []


def test_a_fold_and_a_flip_at_once_are_named():
    def step(x, p):
        return jnp.array([x[0] + p - x[0] ** 2, -(1 + x[0]) * x[1] + x[1] ** 3])

    branch = continue_cycle(Map(step), np.array([0.5, 0]), 0.25, 1, until=(-0.3, 0.3))
    assert sorted(found.label for found in branch.bifurcations) == ["LP", "PD"]
    for found in branch.bifurcations:
        np.testing.assert_allclose(found.parameter, 0, atol=1e-9)
        assert found.message == "fold-flip: multipliers +1 and -1 at once"


@pytest.mark.parametrize("decay", [0.0, 1e-8, 5e-7, 1e-4])
def test_a_slow_direction_is_no_fold(decay):
    slow = jnp.float64(1 - decay)
    step = lambda slow, x, p: jnp.array([-(1 + p) * x[0] + x[0] ** 3, slow * x[1]])  # noqa: E731
    map_ = Map(jax.tree_util.Partial(step, slow))
    branch = continue_cycle(map_, np.zeros(2), -0.2, 1, until=(-0.3, 0.3), step=0.1)
    assert told(branch) == [("PD", "", "supercritical")]
    assert branch.bifurcations[0].message == ""


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_second_flip_of_the_double_well_with_momentum(momentum):
    def step(state, rate):
        velocity = momentum * state[1] - rate * state[0] * (state[0] ** 2 - 1)
        return jnp.array([state[0] + velocity, velocity])

    def doubled(rate):
        """Period 2 is that of gradient descent with η / (1 + β)."""
        own = rate / (1 + momentum)
        return (math.sqrt(1 + 3 / own) + np.array([1, -1]) * math.sqrt(1 - 1 / own)) / 2

    def determinant(rate):
        product = np.eye(2)
        for x in doubled(rate):
            slope = rate * (3 * x**2 - 1)
            product = np.array([[1 - slope, momentum], [-slope, momentum]]) @ product
        return np.linalg.det(product + np.eye(2))

    first = 1 + momentum
    expected = scipy.optimize.brentq(determinant, 1.0001 * first, 2 * first, xtol=1e-14)
    if momentum == 0:
        np.testing.assert_allclose(expected, math.sqrt(5) - 1, rtol=1e-12)
    rate = 1.05 * first
    high, low = doubled(rate)
    start = np.array([[high, high - low], [low, low - high]])
    map_ = Map(step)
    branch = continue_cycle(map_, start, rate, 2, until=(0.9 * first, 1.1 * expected))
    assert told(branch)[0] == ("BP", "period halved", "supercritical")
    flips = [found for found in branch.bifurcations if found.label == "PD"]
    np.testing.assert_allclose([found.parameter for found in flips], [expected], rtol=1e-11)
    again = switch_branch(map_, flips[0])
    assert again.least_period == 4


def ikeda(z, u):
    """In complex numbers, by NumPy."""
    return 1 + u * z * np.exp(1j * (0.4 - 6 / (1 + np.abs(z) ** 2)))


def ikeda_jacobian(z, u):
    columns = []
    for way in (1, 1j):
        size = 1 + np.abs(z) ** 2
        phase = np.exp(1j * (0.4 - 6 / size))
        turned = 6 / size**2 * 2 * np.real(np.conj(z) * way)
        change = u * phase * (way + 1j * z * turned)
        columns.append([change.real, change.imag])
    return np.array(columns).T


def test_the_ikeda_map():
    def step(x, u):
        angle = 0.4 - 6 / (1 + x @ x)
        turned = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        return jnp.array([1.0, 0]) + u * turned @ x

    def fixed(u):
        z = 1.0 + 0j
        for part in np.linspace(0, u, 40):
            for _ in range(30):
                gap = ikeda(z, part) - z
                change = np.linalg.solve(np.eye(2) - ikeda_jacobian(z, part), [gap.real, gap.imag])
                z += complex(*change)
        return z

    def test_function(u):
        return np.linalg.det(ikeda_jacobian(fixed(u), u) + np.eye(2))

    start = fixed(0.2)
    branch = continue_cycle(Map(step), np.array([start.real, start.imag]), 0.2, 1, until=(0.1, 0.6))
    flip = next(found for found in branch.bifurcations if found.label == "PD")
    near = flip.parameter
    expected = scipy.optimize.brentq(test_function, 0.9 * near, 1.1 * near, xtol=1e-13)
    np.testing.assert_allclose(flip.parameter, expected, rtol=1e-10)


def test_a_branch_point_whose_branch_is_unknown_is_not_switched_at():
    (found,) = continue_cycle(
        Map(lambda x, p: x + p * x - x**2), np.zeros(1), -0.5, 1, until=(-1, 1)
    ).bifurcations
    lost = switch_branch(LOGISTIC, replace(found, tangent=np.empty(0)))
    assert not lost.converged


def test_the_symmetry_of_a_cycle_breaks_at_a_pitchfork():
    # x' = -x has x² = p - 1, and the multiplier (2 p - 3)²; beyond 2, x x' = -1 and x² + x'² = p.
    map_ = Map(lambda x, p: -p * x + x**3)
    start = math.sqrt(0.5) * np.array([[1.0], [-1.0]])
    branch = continue_cycle(map_, start, 1.5, 2, until=(1.2, 2.2))
    (fork,) = branch.bifurcations
    assert told(branch) == [("BP", "pitchfork", "supercritical")]
    np.testing.assert_allclose(fork.parameter, 2, rtol=1e-12)
    for amplitude in (0.1, -0.1):
        broken = switch_branch(map_, fork, amplitude=amplitude)
        assert broken.stable
        first, second = broken.points.ravel()
        np.testing.assert_allclose(first * second, -1)
        np.testing.assert_allclose(first**2 + second**2, broken.parameter)
        assert (first > abs(second)) == (amplitude * fork.direction[0] * fork.state[0] > 0)


@pytest.mark.parametrize("size", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_multipliers_along_a_branch_are_those_of_the_dense_product(size):
    rng = np.random.default_rng(1)
    weights = 1.3 * rng.normal(size=(size, size)) / np.sqrt(size) - 0.5 * np.eye(size)
    target = rng.normal(size=size)
    map_ = Map(lambda x, p: jnp.tanh(p * (weights @ (x - target))) + target)
    settings = {"until": (0.3, 0.4), "step": 0.1, "direction": "increasing"}
    branch = continue_cycle(map_, target, 0.3, 1, **settings)
    own = np.linalg.eigvals(weights)
    for parameter, points, found in zip(
        branch.parameters, branch.points, branch.multipliers, strict=True
    ):
        np.testing.assert_allclose(points[0], target, atol=1e-12)
        gap = np.min(np.abs(found[:, None] - parameter * own), axis=1)
        assert np.max(gap) < 1e-9
    assert branch.stable.tolist() == (np.max(np.abs(own)) * branch.parameters < 1).tolist()


@pytest.mark.parametrize(("parameter", "step"), [(-0.4, 0.1), (0.0, None)])
def test_a_branch_may_start_at_a_branch_point_or_step_on_it(parameter, step):
    map_ = Map(lambda x, p: x + p * x - x**2)
    branch = continue_cycle(map_, np.zeros(1), parameter, 1, until=(-1, 1), step=step)
    assert told(branch) == [("BP", "transcritical", "")]
    assert branch.status == "range left"
    assert (branch.parameters[0], branch.parameters[-1]) == (-1, 1)


def test_a_branch_that_grows_takes_longer_steps():
    fork = continue_cycle(FACTORS, np.zeros(2), 1.5, 1, until=(0.4, 1.6)).bifurcations[0]
    arm = switch_branch(FACTORS, fork, amplitude=1e-3)
    branch = continue_cycle(FACTORS, arm, until=(0.4, 1.6), direction="decreasing")
    assert branch.status == "range left"
    assert len(branch.parameters) < 500


@pytest.mark.parametrize(
    ("step", "state"),
    [
        (lambda x, r: x * jnp.exp(r * (1 - x)), [1.0]),
        (
            lambda x, r: jnp.array(
                [
                    x[0] + 0.5 * x[1] - r * x[0] * (x[0] ** 2 - 1),
                    0.5 * x[1] - r * x[0] * (x[0] ** 2 - 1),
                ]
            ),
            [0.0, 0.0],
        ),
    ],
    ids=["Ricker", "double well with momentum"],
)
def test_where_the_map_moves_nothing_rounding_is_no_normal_form(step, state):
    """At 0 all states are fixed: the other branch is a vertical line."""
    branch = continue_cycle(Map(step), np.array(state), 0.5, 1, until=(-0.4, 1.0))
    (found,) = branch.bifurcations
    assert (found.kind, found.criticality) == ("branch point", "")
    assert found.parameter == pytest.approx(0, abs=1e-9)
    assert found.message == "degenerate pitchfork: the coefficient is 0 to rounding"
    other = switch_branch(Map(step), found)
    assert not other.converged
    assert "degenerate pitchfork" in other.message


@pytest.mark.parametrize("rate", [0.7, 1.2])
def test_a_map_that_keeps_areas_has_no_criticality(rate):
    """Gradient descent with momentum 1: its Neimark-Sacker point is a centre."""

    def step(x, momentum):
        push = momentum * x[1] - rate * x[0] * (x[0] ** 2 - 1)
        return jnp.array([x[0] + push, push])

    branch = continue_cycle(Map(step), np.array([1.0, 0.0]), 0.5, 1, until=(0.3, 1.2))
    (found,) = branch.bifurcations
    assert (found.kind, found.criticality) == ("neimark-sacker", "")
    assert found.parameter == pytest.approx(1, abs=1e-9)
    assert found.message == "generalised Neimark-Sacker: the coefficient is 0 to rounding"


def test_a_doubled_cycle_that_shrinks_to_a_line_of_fixed_points_ends_there():
    """That of two factors: where it doubled at η = 1, two of its multipliers are +1."""
    map_ = descent(lambda w: (w[0] * w[1] - 1) ** 2 / 2)
    cycle = find_cycle(map_, np.array([[1.12, 1.12], [0.81, 0.81]]), 1.1, 2)
    branch = continue_cycle(map_, cycle, until=(0.9, 1.6))
    assert branch.status == "period halved"
    halved, flip = branch.bifurcations
    assert (halved.kind, halved.branching, halved.criticality) == (
        "branch point",
        "period halved",
        "",
    )
    assert halved.converged
    np.testing.assert_allclose([halved.parameter, *halved.state], 1, atol=1e-9)
    assert "2 multipliers are +1 at once" in halved.message
    np.testing.assert_allclose(flip.parameter, np.sqrt(5) - 1)
    assert np.all(branch.parameters > 1)
