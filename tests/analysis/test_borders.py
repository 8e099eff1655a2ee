"""Border collisions against closed forms of maps that are linear in pieces, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation.branch_plots import MARKERS
from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
from dlf_dynamics.analysis.bifurcation.curves import continue_curve
from dlf_dynamics.analysis.bifurcation.cycles import find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.switching import switch_branch


def skew(low, high):
    """Slopes on either side of 0; both are moved by the parameter."""
    return Map(lambda x, p: p + low * jnp.minimum(x, 0) + high * jnp.maximum(x, 0))


def only_border(branch):
    (found,) = branch.bifurcations
    assert (found.kind, found.label, found.converged) == ("border collision", "BC", True)
    assert (found.criticality, found.branching) == ("", "")
    assert np.isnan(found.coefficient)
    return found


@pytest.mark.parametrize(
    ("low", "high"), [(-0.5, -1.2), (0.5, -2.0), (0.4, -0.6), (0.5, 0.8), (-0.5, 1.5), (0.5, 3.0)]
)
def test_a_fixed_point_at_a_border_goes_on_or_turns_back_as_it_must(low, high):
    """On each side x = p / (1 - slope), where that has the sign of the side."""
    branch = continue_cycle(
        skew(low, high), np.array([-1 / (1 - low)]), -1.0, 1, until=(-1, 1), step=0.2
    )
    found = only_border(branch)
    np.testing.assert_allclose([found.parameter, *found.state], 0, atol=1e-12)
    x, p = branch.points[:, 0, 0], branch.parameters
    np.testing.assert_allclose(x, p / (1 - np.where(x < 0, low, high)), atol=1e-12)
    np.testing.assert_allclose(branch.multipliers[:, 0], np.where(x < 0, low, high))
    np.testing.assert_array_equal(branch.stable, np.where(x < 0, abs(low) < 1, abs(high) < 1))
    assert (branch.status, x[-1] > 0) == ("range left", True)
    folds = (1 - low) * (1 - high) < 0
    assert ("nonsmooth fold" in found.message) == folds
    assert ("the branch goes on" in found.message) != folds
    assert p[-1] == (-1 if folds else 1)
    # The cycle x = p + high y, y = p + low x has points on the sides that it takes them to have
    # for one sign of p only, if at all.
    one, other = (np.array([1 + high, 1 + low]) / (1 - low * high) * p for p in (1, -1))
    exists = any(pair[0] < 0 < pair[1] for pair in (one, other))
    assert ("a cycle of twice the period meets it there" in found.message) == exists
    with pytest.raises(ValueError, match="no branch of cycles leaves at a border collision"):
        switch_branch(skew(low, high), found)


@pytest.mark.parametrize(
    ("left", "right"),
    [((0.3, 0.4), (-1.6, 0.4)), ((0.3, 0.4), (1.9, 0.4)), ((0.5, 0.3), (-0.5, 1.4))],
)
def test_the_normal_form_of_two_dimensions_has_the_multipliers_of_its_sides(left, right):
    """By traces and determinants (Nusse and Yorke 1992): to a saddle, at a fold, to a spiral."""
    sides = [np.array([[trace, 1.0], [-det, 0.0]]) for trace, det in (left, right)]
    offset = jnp.array([1.0, 0.0])
    map_ = Map(lambda x, p: jnp.where(x[0] < 0, sides[0] @ x, sides[1] @ x) + p * offset)
    start = np.linalg.solve(np.eye(2) - sides[0], [-1.0, 0.0])
    branch = continue_cycle(map_, start, -1.0, 1, until=(-1.0, 1.0), step=0.2)
    found = only_border(branch)
    np.testing.assert_allclose([found.parameter, *found.state], 0, atol=1e-12)
    for point, values, stable in zip(branch.points, branch.multipliers, branch.stable, strict=True):
        expected = np.linalg.eigvals(sides[int(point[0, 0] >= 0)])
        np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(expected))
        assert stable == (np.max(np.abs(expected)) < 1)
    assert np.any(branch.points[:, 0, 0] > 0)
    folds = np.prod([np.linalg.det(np.eye(2) - side) for side in sides]) < 0
    assert ("nonsmooth fold" in found.message) == folds


def test_a_doubled_cycle_ends_where_it_shrinks_to_the_border():
    map_ = skew(-0.5, -1.5)
    doubled = find_cycle(map_, np.array([[-0.4], [0.7]]), 0.5, 2)
    branch = continue_cycle(map_, doubled, until=(-1.0, 1.0), step=0.2)
    found = only_border(branch)
    assert branch.status == "period halved"
    assert "the cycle shrinks to one of period 1" in found.message
    np.testing.assert_allclose(found.parameter, 0, atol=1e-12)
    np.testing.assert_allclose(branch.multipliers, 0.75)
    assert np.all(branch.parameters > 0)


def test_a_branch_does_not_leap_over_a_jump_of_its_map():
    """For p > 0 there is a fixed point with the same multiplier, elsewhere."""
    leaping = Map(lambda x, p: jnp.where(x < 0, x / 2, x / 2 + 1) + p)
    branch = continue_cycle(leaping, np.array([-2.0]), -1.0, 1, until=(-1.0, 1.0), step=0.2)
    found = only_border(branch)
    assert branch.status == "border collision"
    assert "the map itself jumps" in found.message
    np.testing.assert_allclose(branch.points[:, 0, 0], 2 * branch.parameters, atol=1e-12)


def test_at_the_top_of_a_tent_fixed_points_form_a_line():
    tent = Map(lambda x, p: p * jnp.minimum(x, 1 - x))
    branch = continue_cycle(
        tent, np.array([0.6]), 1.5, 1, until=(0.2, 1.9), max_points=30, direction="decreasing"
    )
    found = next(one for one in branch.bifurcations if one.kind == "border collision")
    np.testing.assert_allclose([found.parameter, *found.state], [1, 0.5])
    assert "cycles of one parameter form a line" in found.message
    assert "twice the period" not in found.message  # a multiplier is -1 itself


def bent(x, q):
    """The logistic map up to a kink, and a line beyond."""
    inside = jnp.minimum(x, q[1])
    return q[0] * inside * (1 - inside) + 0.3 * jnp.maximum(x - q[1], 0)


def test_a_flip_on_a_smooth_piece_is_one_and_the_border_is_where_the_cycle_meets_it():
    branch = continue_cycle(
        Map(bent).along((0.0, 0.68), 0), np.array([0.6]), 2.5, 1, until=(2.0, 3.4), step=0.1
    )
    flip, border = branch.bifurcations
    assert (flip.kind, flip.criticality) == ("flip", "supercritical")
    np.testing.assert_allclose(flip.parameter, 3)
    assert border.kind == "border collision"
    np.testing.assert_allclose([border.parameter, *border.state], [1 / 0.32, 0.68])
    beyond = branch.points[:, 0, 0] > 0.68
    np.testing.assert_allclose(branch.multipliers[beyond, 0], 0.3)


def test_a_curve_ends_where_its_cycle_meets_a_kink():
    branch = continue_cycle(
        Map(bent).along((0.0, 0.8), 0), np.array([0.6]), 2.5, 1, until=(2.0, 3.4), step=0.1
    )
    (flip,) = branch.bifurcations
    curve = continue_curve(
        Map(bent), flip, (flip.parameter, 0.8), until=((2, 3.4), (0.5, 1)), step=0.1
    )
    assert curve.status == "border collision"
    assert "the cycle meets a kink, where test functions jump" in curve.message
    assert "the map has kinks (min, max)" in curve.message
    np.testing.assert_allclose(curve.parameters[:, 0], 3)
    np.testing.assert_allclose(np.min(curve.parameters[:, 1]), 2 / 3, atol=1e-6)


def test_a_map_that_is_smooth_in_one_piece_has_no_borders():
    """Even where its derivative vanishes, and its program chooses."""
    chosen = Map(lambda x, r: jnp.where(x < 0.5, r * x * (1 - x), r * (x - x**2)))
    branch = continue_cycle(chosen, np.array([0.6]), 2.5, 1, until=(1.5, 3.4), step=0.1)
    assert [found.kind for found in branch.bifurcations] == ["flip"]


def test_borders_of_a_one_sided_regression_are_where_examples_begin_to_count():
    """Its gradient has kinks and does not jump; each minimum is that of some examples, by NumPy."""
    rng = np.random.default_rng(0)
    features, targets = rng.uniform(0, 1, (12, 3)), rng.uniform(0.2, 1.5, 12)

    def short(x, offset):
        return targets + offset - features @ x

    def loss(x, offset):
        return jnp.mean(jax.nn.relu(short(x, offset)) ** 2) + 0.1 * x @ x

    def minimum(offset, x):
        """By Newton steps with the examples of the step before."""
        for _ in range(50):
            counts = short(x, offset) > 0
            rows = features[counts]
            right = rows.T @ (targets[counts] + offset) / 12
            x = np.linalg.solve(rows.T @ rows / 12 + 0.1 * np.eye(3), right)
        return x

    start = minimum(1.0, np.zeros(3))
    map_ = Map(lambda x, offset: x - 0.3 * jax.grad(loss)(x, offset))
    branch = continue_cycle(map_, start, 1.0, 1, until=(-0.5, 1.0), direction="decreasing")
    assert branch.status == "range left"
    pairs = zip(branch.points[:, 0], branch.parameters, strict=True)
    counts = np.array([short(point, offset) > 0 for point, offset in pairs])
    begun = int(np.sum(counts[1:] != counts[:-1]))
    assert begun >= 3
    assert [found.kind for found in branch.bifurcations] == ["border collision"] * begun
    for found in branch.bifurcations:
        assert np.min(np.abs(short(found.state, found.parameter))) < 1e-12
        assert "the branch goes on" in found.message
    for point, offset in zip(branch.points[:, 0], branch.parameters, strict=True):
        np.testing.assert_allclose(point, minimum(offset, point), atol=1e-10)


@pytest.mark.parametrize("term", [lambda x: x * jnp.abs(x), lambda x: jnp.abs(x) ** 3])
def test_a_flip_whose_higher_derivatives_jump_has_no_normal_form(term):
    """Both are averages of two sides, from which no coefficient follows."""
    map_ = Map(lambda x, p: -(1 + p) * x + term(x))
    branch = continue_cycle(map_, np.zeros(1), -0.5, 1, until=(-0.5, 0.5), step=0.1)
    (found,) = branch.bifurcations
    assert (found.kind, found.criticality) == ("flip", "")
    assert np.isnan(found.coefficient)
    assert "jumps at the cycle: it has no normal form" in found.message


def test_a_kink_elsewhere_does_not_take_the_normal_form_of_a_flip():
    """Its third derivative vanishes at the fixed point and rises through it."""
    map_ = Map(lambda x, p: -(1 + p) * x + x**2 + x**4 + jnp.maximum(x - 1, 0))
    branch = continue_cycle(map_, np.zeros(1), -0.5, 1, until=(-0.5, 0.5), step=0.1)
    flip = next(found for found in branch.bifurcations if found.kind == "flip")
    np.testing.assert_allclose(flip.coefficient, 1)  # 3 B² / (1 - J) / 6 with B = 2, J = -1
    assert flip.criticality == "supercritical"


def test_a_branch_that_lies_on_a_kink_is_not_said_to_be_stable():
    map_ = Map(lambda x, p: p * jnp.abs(x) - 0.1 * x)
    branch = continue_cycle(map_, np.zeros(1), 0.2, 1, until=(-0.5, 0.8), step=0.2)
    assert not np.any(branch.stable)
    assert "whether it is stable is not known" in branch.message


def test_a_border_has_a_mark_of_its_own():
    assert len(set(MARKERS.values())) == len(MARKERS)
    assert "BC" in MARKERS
