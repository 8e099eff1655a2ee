"""Curves of bifurcations in two parameters, against closed forms and NumPy's eigenvalues."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.tree_util import Partial

from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
from dlf_dynamics.analysis.bifurcation.curves import continue_curve
from dlf_dynamics.analysis.bifurcation.cycles import MAX_UNKNOWNS, find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.switching import switch_branch

MOST_TERMS, MOST_FACTORS = 6, 5


def polynomial(*rows):
    """A map of three components from the terms of each, such as (-1, "axx"); parameters are a, b.

    All of them are one compiled program. Components without terms are always 0.
    """
    numbers = np.zeros((3, MOST_TERMS))
    factors = np.zeros((3, MOST_TERMS, MOST_FACTORS), int)
    for i, terms in enumerate(rows):
        for j, (number, letters) in enumerate(terms):
            numbers[i, j] = number
            factors[i, j, : len(letters)] = [" xyzab".index(letter) for letter in letters]
    return Map(Partial(_polynomial, jnp.asarray(numbers), jnp.asarray(factors)))


def _polynomial(numbers, factors, x, p):
    terms = jnp.concatenate([jnp.ones(1), x, p])[factors]
    for _ in range(MOST_FACTORS - 1):
        terms = jnp.concatenate([terms[..., :1] * terms[..., 1:2], terms[..., 2:]], axis=-1)
    return jnp.sum(numbers * terms[..., 0], axis=1)


HENON = polynomial([(1, ""), (-1, "axx"), (1, "y")], [(1, "bx")])
PLANE = ((-1.0, 2.0), (-0.5, 0.7))


def found_on(map_, state, values, index, until):
    """Bifurcations of a cycle in one of two parameters, the first of each kind."""
    values = np.array(values, float)
    start = np.array(state, float)
    if map_.step.func is _polynomial:
        start = np.pad(start, (0, 3 - len(start)))
    branch = continue_cycle(map_.along(values, index), start, values[index], 1, until=until)
    return {found.kind: found for found in branch.bifurcations[::-1]}


def curve_of(map_, kind, state, values, index, span, until, step=0.05):
    """The curve from the bifurcation of a kind in one parameter."""
    start = np.array(values, float)
    found = found_on(map_, state, values, index, span)[kind]
    start[index] = found.parameter
    return continue_curve(map_, found, start, until=until, step=step)


def labels(curve):
    """Labels of the special points, all of which must be located."""
    assert all(point.converged and point.residual < 1e-9 for point in curve.special), curve.special
    return [point.label for point in curve.special]


def is_good(curve, *, inside=PLANE):
    """Whether residuals are those of fresh products, and the multipliers are where they must be."""
    assert np.all(curve.residuals <= 1e-11)
    np.testing.assert_allclose(curve.critical, np.exp(1j * curve.angles), atol=1e-6)
    for values, (low, high) in zip(curve.parameters.T, inside, strict=True):
        assert low <= np.min(values)
        assert np.max(values) <= high
    return True


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("fold", lambda b: -((1 - b) ** 2) / 4), ("flip", lambda b: 3 * (1 - b) ** 2 / 4)],
)
def test_fold_and_flip_of_the_henon_map(kind, expected):
    curve = curve_of(HENON, kind, [0.7, 0.2], (0.1, 0.3), 0, (-0.5, 0.5), PLANE)
    assert is_good(curve)
    a, b = curve.parameters.T
    assert curve.status == "range left"
    np.testing.assert_allclose(a, expected(b), rtol=0, atol=1e-9)
    assert labels(curve) == []
    # It ends at both bounds of b, or where a = 2, exactly.
    assert all(np.any(point == np.array(PLANE).T) for point in curve.parameters[[0, -1]])
    other = HENON.along(curve.parameters[5], 1)
    again = find_cycle(other, curve.points[5], float(b[5]), 1)
    assert np.max(np.abs(again.points - curve.points[5])) < 1e-6  # a fold doubles what is lost


@pytest.mark.slow
def test_flip_of_the_doubled_cycle_of_the_henon_map():
    line = HENON.along((0.0, 0.3), 0)
    flip = found_on(HENON, [0.7, 0.2], (0.1, 0.3), 0, (0.1, 0.5))["flip"]
    branch = continue_cycle(line, switch_branch(line, flip), until=(0.37, 1.2))
    second = next(point for point in branch.bifurcations if point.kind == "flip")
    curve = continue_curve(HENON, second, (second.parameter, 0.3), until=PLANE, step=0.05)
    assert is_good(curve)
    a, b = curve.parameters.T
    np.testing.assert_allclose(a, (1 - b) ** 2 + (1 + b) ** 2 / 4, rtol=0, atol=1e-9)
    assert curve.points.shape == (len(a), 2, 3)
    images = np.array([HENON(x, p) for x, p in zip(curve.points[:, 0], curve.parameters)])  # noqa: B905
    np.testing.assert_allclose(images, curve.points[:, 1], rtol=0, atol=1e-9)


def test_flip_of_the_heavy_ball():
    ball = polynomial(
        [(1, "x"), (-1, "aby"), (-1, "axxx"), (1, "ax")], [(1, "by"), (1, "xxx"), (-1, "x")]
    )
    until = ((0.2, 1.95), (0.0, 0.95))
    curve = curve_of(ball, "flip", [1.0, 0.0], (0.5, 0.3), 0, (0.5, 1.9), until)
    assert is_good(curve, inside=until)
    rate, momentum = curve.parameters.T
    np.testing.assert_allclose(rate, 1 + momentum, rtol=0, atol=1e-9)
    # Without momentum it is that of descent, 8 at η = 1, but for the length of (1, -2).
    assert curve.coefficients[0] == pytest.approx(8 / 5, rel=1e-9)


@pytest.mark.slow
def test_scales_of_parameters_do_not_matter():
    scaled = polynomial([(1, ""), (-1e3, "axx"), (1, "y")], [(1 / 5000, "bx")])
    until = ((-1e-3, 2e-3), (-2500.0, 3500.0))
    settings = ("flip", [0.7, 0.2], (1e-4, 1500.0), 0, (1e-4, 5e-4), until)
    curve = curve_of(scaled, *settings)
    a, b = curve.parameters[:, 0] * 1e3, curve.parameters[:, 1] / 5000
    np.testing.assert_allclose(a, 3 * (1 - b) ** 2 / 4, rtol=0, atol=1e-9)
    plain = curve_of(HENON, "flip", [0.7, 0.2], (0.1, 0.3), 0, (-0.5, 0.5), PLANE)
    assert len(plain.parameters) == len(curve.parameters)


def test_cusp():
    cubic = polynomial([(1, "a"), (1, "x"), (1, "bx"), (-1, "xxx")])
    until = ((-1.0, 1.0), (-0.5, 1.0))
    curve = curve_of(cubic, "fold", [-0.9], (0.0, 0.5), 0, (-1, 1), until)
    assert is_good(curve, inside=until)
    x = curve.points[:, 0, 0]
    np.testing.assert_allclose(curve.parameters[:, 0], -2 * x**3, rtol=0, atol=1e-9)
    np.testing.assert_allclose(curve.parameters[:, 1], 3 * x**2, rtol=0, atol=1e-9)
    # The curve folds in both parameters where it passes the cusp.
    assert np.sum(np.diff(np.sign(np.diff(curve.parameters[:, 1]))) != 0) == 1
    np.testing.assert_allclose(np.abs(curve.coefficients), np.abs(3 * x), rtol=0, atol=1e-9)
    assert labels(curve) == ["CP"]
    assert curve.special[0].kind == "cusp"
    np.testing.assert_allclose(curve.special[0].parameters, 0, atol=1e-9)


def test_generalised_flip():
    quintic = polynomial([(-1, "x"), (-1, "ax"), (1, "bxxx"), (-1, "xxxxx")])
    until = ((-0.5, 0.5), (-1.0, 1.0))
    curve = curve_of(quintic, "flip", [0.0], (-0.5, 0.3), 0, (-0.5, 0.5), until)
    assert is_good(curve, inside=until)
    np.testing.assert_allclose(curve.parameters[:, 0], 0, atol=1e-9)
    np.testing.assert_allclose(curve.coefficients, curve.parameters[:, 1], atol=1e-9)
    assert labels(curve) == ["GPD"]
    np.testing.assert_allclose(curve.special[0].parameters, 0, atol=1e-9)


def test_generalised_flip_of_a_valley_that_gives_way():
    """At η = 2 that of x²/2 + κy²/2 + αx²y + qx⁴/4 is 4α²/κ - 2q: here 0 at q = 2."""
    valley = polynomial(
        [(1, "x"), (-1, "ax"), (-1, "axy"), (-1, "abxxx")],
        [(1, "y"), (-1 / 4, "ay"), (-1 / 2, "axx")],
    )
    until = ((1.0, 3.0), (0.0, 4.0))
    curve = curve_of(valley, "flip", [0.0, 0.0], (1.9, 0.2), 0, (1.9, 2.1), until)
    expected = 4 - 2 * curve.parameters[:, 1]
    np.testing.assert_allclose(curve.coefficients, expected, atol=1e-9)
    assert labels(curve) == ["GPD"]
    np.testing.assert_allclose(curve.special[0].parameters, 2, atol=1e-9)


BOGDANOV = polynomial([(1, "x"), (1, "y")], [(1, "y"), (1, "a"), (1, "by"), (1, "xx"), (1, "xy")])
"""Fixed points have y = 0 and x² = -p₀; the trace is 2 + p₁ + x, the determinant 1 + p₁ - x."""


def test_a_neimark_sacker_curve_with_all_four_resonances():
    until = ((-5.0, 1.0), (-3.0, 1.0))
    settings = ("neimark-sacker", [-0.8, 0.0], (-0.64, -0.7), 0, (-0.64, -0.4), until)
    curve = curve_of(BOGDANOV, *settings)
    np.testing.assert_allclose(curve.parameters[:, 0], -(curve.parameters[:, 1] ** 2), atol=1e-9)
    np.testing.assert_allclose(np.cos(curve.angles), 1 + curve.parameters[:, 1], atol=1e-9)
    assert np.all(curve.residuals <= 1e-11)
    assert curve.status == "resonance"
    found = dict(zip(labels(curve), curve.special, strict=True))
    expected = {"R2": (-4, -2), "R3": (-2.25, -1.5), "R4": (-1, -1), "R1": (0, 0)}
    assert set(found) == set(expected)
    for label, parameters in expected.items():
        np.testing.assert_allclose(found[label].parameters, parameters, atol=1e-9, err_msg=label)
    inside = slice(1, -1)  # at the ends two multipliers meet, which are known to half of the digits
    np.testing.assert_allclose(np.abs(curve.critical[inside]), 1, atol=1e-7)


def test_a_fold_curve_with_a_resonance_and_a_fold_flip():
    until = ((-5.0, 1.0), (-3.0, 1.0))
    curve = curve_of(BOGDANOV, "fold", [0.5, 0.0], (-0.25, 0.3), 0, (-0.25, 0.1), until)
    np.testing.assert_allclose(curve.parameters[:, 0], 0, atol=1e-9)
    assert sorted(labels(curve)) == ["LPPD", "R1"]
    for point in curve.special:
        expected = (0, -2 if point.label == "LPPD" else 0)
        np.testing.assert_allclose(point.parameters, expected, atol=1e-9)


def test_a_flip_curve_with_a_resonance():
    map_ = polynomial([(-1, "x"), (1, "y")], [(-1, "y"), (1, "ax"), (1, "by"), (1, "xxx")])
    until = ((-1.0, 1.0), (-1.0, 1.0))
    curve = curve_of(map_, "flip", [0.0, 0.0], (-0.1, 0.2), 0, (-0.1, 0.1), until)
    np.testing.assert_allclose(curve.parameters[:, 0], 0, atol=1e-9)
    assert labels(curve) == ["R2"]
    np.testing.assert_allclose(curve.special[0].parameters, 0, atol=1e-9)


PAIR = [(1, "y")], [(-1, "ax"), (1 / 2, "y"), (-1, "xxx"), (1, "xz")]
"""A pair of multipliers of modulus √a, and a third direction that bifurcates at b = 0."""

FLIPPING = polynomial(*PAIR, [(-1, "z"), (-1, "bz"), (0.1, "xy"), (1, "zzz")])
FOLDING = polynomial(*PAIR, [(1, "z"), (1, "b"), (-1, "zz")])
UNTIL = ((0.2, 2.5), (-0.5, 0.5))


@pytest.mark.parametrize(
    ("map_", "kind", "settings", "label"),
    [
        (FLIPPING, "neimark-sacker", ([0, 0, 0], (0.8, -0.3), 0, (0.8, 1.1)), "PDNS"),
        (FLIPPING, "flip", ([0, 0, 0], (0.8, -0.3), 1, (-0.3, 0.3)), "PDNS"),
        (FOLDING, "neimark-sacker", ([0, 0, 0.5], (0.8, 0.25), 0, (0.8, 2.1)), "LPNS"),
        (FOLDING, "fold", ([0, 0, 0.5], (0.8, 0.25), 1, (-0.1, 0.25)), "LPNS"),
    ],
)
def test_a_second_bifurcation_on_the_way(map_, kind, settings, label):
    curve = curve_of(map_, kind, *settings, UNTIL)
    assert labels(curve) == [label]
    np.testing.assert_allclose(curve.special[0].parameters, (1, 0), atol=1e-9)


def test_real_multipliers_whose_product_is_one_are_no_bifurcation():
    """1/2 and 2 at p₁ = 0, while the first direction flips at p₀ = 0."""
    map_ = polynomial(
        [(-1, "x"), (-1, "ax"), (1, "xxx")], [(2, "y")], [(1 / 2, "z"), (1 / 2, "bz")]
    )
    until = ((-0.5, 0.5), (-0.5, 0.5))
    curve = curve_of(map_, "flip", [0.0, 0.0, 0.0], (-0.3, 0.2), 0, (-0.3, 0.3), until)
    assert np.min(curve.multipliers[:, 2].real) < 0.5 < np.max(curve.multipliers[:, 2].real)
    assert labels(curve) == []


def test_two_multipliers_that_flip_independently():
    """The bordered system is singular where they meet: the curves go on, and the point is told."""
    map_ = polynomial(
        [(-1, "x"), (-1, "ax"), (1, "xxx")], [(-1, "y"), (-1, "ay"), (1, "by"), (1, "yyy")]
    )
    until = ((-0.5, 0.5), (-1.0, 1.0))
    curve = curve_of(map_, "flip", [0.0, 0.0], (-0.5, 0.2), 0, (-0.5, 0.1), until)
    assert curve.status == "range left"
    np.testing.assert_allclose(curve.parameters[:, 0], 0, atol=1e-9)
    assert labels(curve) == ["PDPD"]
    np.testing.assert_allclose(curve.special[0].parameters, 0, atol=1e-9)


def test_a_closed_curve_ends_where_it_began():
    map_ = polynomial([(-1, "aax"), (-1 / 9, "bbx"), (1, "xxx")])
    until = ((-2.0, 2.0), (-6.0, 6.0))
    curve = curve_of(map_, "flip", [0.0], (0.1, 0.5), 0, (0.1, 1.9), until)
    assert curve.status == "closed"
    np.testing.assert_allclose(np.hypot(curve.parameters[:, 0], curve.parameters[:, 1] / 3), 1)
    np.testing.assert_array_equal(curve.parameters[0], curve.parameters[-1])
    turns = np.unwrap(np.arctan2(curve.parameters[:, 1] / 3, curve.parameters[:, 0]))
    assert abs(turns[-1] - turns[0]) == pytest.approx(2 * np.pi)


def test_what_cannot_be_followed_says_so():
    flip = found_on(HENON, [0.7, 0.2], (0.1, 0.3), 0, (0.1, 0.5))["flip"]
    unsure = replace(flip, converged=False, message="not located")
    curve = continue_curve(HENON, unsure, (flip.parameter, 0.3), until=PLANE)
    assert (curve.status, len(curve.parameters)) == ("not converged", 0)
    assert curve.message == "no start: the flip itself is not converged: not located"
    off = continue_curve(HENON, replace(flip, parameter=0.3), (0.3, 0.3), until=PLANE)
    assert off.status == "not converged"
    assert "the closest flip is at" in off.message
    few = continue_curve(HENON, flip, (flip.parameter, 0.3), until=PLANE, max_points=3)
    assert (few.status, len(few.parameters)) == ("max points", 7)
    for changes, values, message in (
        ({"kind": "branch point"}, (0.5, 0.3), "a branch point has no curve here; expected a fold"),
        ({}, (0.5, 0.3), "the bifurcation is at .*; expected it among the values"),
        ({}, (3.0, 0.3), "first: no range from -1.0 to 2.0 with the start 3.0 in it"),
        ({}, (0.5, 0.3, 0.1), "expected two parameters"),
    ):
        with pytest.raises(ValueError, match=message):
            continue_curve(HENON, replace(flip, **changes), values, until=PLANE)
    with pytest.raises(ValueError, match="step is 0; expected more than 0"):
        continue_curve(HENON, flip, (flip.parameter, 0.3), until=PLANE, step=0)


def test_a_state_that_is_too_large_is_refused_with_its_size():
    flip = found_on(HENON, [0.7, 0.2], (0.1, 0.3), 0, (0.1, 0.5))["flip"]
    large = replace(flip, state=np.zeros(MAX_UNKNOWNS + 1))
    with pytest.raises(ValueError, match="the state has 2001 components"):
        continue_curve(HENON, large, (flip.parameter, 0.3), until=PLANE)


X = np.linspace(-1, 1, 6)
Y = np.sin(2.5 * X)
DECAY = 0.05


def loss(theta, heavy):
    """Squared error of a network with two tanh units, one point weighing more, and decay."""
    into, bias, out, last = theta[:2], theta[2:4], theta[4:6], theta[6]
    outputs = jnp.tanh(X[:, None] * into + bias) @ out + last
    weights = jnp.ones(len(X)).at[1].set(heavy)
    return jnp.mean(weights * (outputs - Y) ** 2) + DECAY / 2 * jnp.sum(theta**2)


def gradient(theta, heavy):
    """The same by hand, in NumPy."""
    into, bias, out, last = theta[:2], theta[2:4], theta[4:6], theta[6]
    hidden = np.tanh(X[:, None] * into + bias)
    weights = np.where(np.arange(len(X)) == 1, heavy, 1.0)
    errors = 2 * weights * (hidden @ out + last - Y) / len(X)
    back = errors[:, None] * out * (1 - hidden**2)
    parts = X @ back, np.sum(back, axis=0), errors @ hidden, [np.sum(errors)]
    return np.concatenate(parts) + DECAY * theta


def largest_eigenvalue(theta, heavy):
    """Of the Hessian, by central differences of fourth order."""
    columns = []
    for unit in np.eye(len(theta)):
        near, far = (
            gradient(theta + h * unit, heavy) - gradient(theta - h * unit, heavy)
            for h in (1e-3, 2e-3)
        )
        columns.append((8 * near - far) / 12e-3)
    return np.linalg.eigvalsh((np.array(columns) + np.array(columns).T) / 2)[-1]


@pytest.mark.slow
def test_the_flip_curve_of_a_network():
    map_ = Map(lambda x, p: x - p[0] * jax.grad(loss)(x, p[1]))
    guess = np.array([1.0, 0.5, 0.1, -0.2, 0.8, 0.7, 0.0])
    minimum = scipy.optimize.minimize(gradient_and_loss, guess, args=(3.0,), jac=True, tol=1e-12).x
    until = ((0.05, 3.0), (0.5, 12.0))
    curve = curve_of(map_, "flip", minimum, (0.2, 3.0), 0, (0.2, 2.9), until, step=0.1)
    assert len(curve.parameters) > 10
    assert curve.status == "range left"
    for (rate, heavy), points in zip(curve.parameters, curve.points, strict=True):
        theta = scipy.optimize.root(gradient, points[0], args=(heavy,), tol=1e-13).x
        assert np.max(np.abs(theta - points[0])) < 1e-8
        assert rate * largest_eigenvalue(theta, heavy) == pytest.approx(2, abs=1e-8)


def gradient_and_loss(theta, heavy):
    return float(loss(jnp.asarray(theta), heavy)), gradient(theta, heavy)
