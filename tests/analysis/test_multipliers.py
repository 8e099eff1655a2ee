"""Leading multipliers by products against dense eigenvalues, and what is said of hard ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation.cycles import find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import (
    NEUTRAL,
    TOL,
    dense_multipliers,
    leading_multipliers,
)
from dlf_dynamics.analysis.linalg.arnoldi import KrylovSpace, random_start


def with_eigenvalues(blocks, seed=0, skew=0.3):
    """A matrix that is not normal, of real eigenvalues and 2 x 2 blocks on its diagonal."""
    rng = np.random.default_rng(seed)
    size = sum(np.atleast_2d(block).shape[0] for block in blocks)
    matrix, at = np.zeros((size, size)), 0
    for block in map(np.atleast_2d, blocks):
        matrix[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    stretch = np.exp(skew * rng.standard_normal(size))
    basis = turn * stretch
    return basis @ matrix @ np.linalg.inv(basis)


def turning(modulus, angle):
    c, s = modulus * np.cos(angle), modulus * np.sin(angle)
    return np.array([[c, -s], [s, c]])


def leading(matrix, k=5, **settings):
    return leading_multipliers(lambda vector: matrix @ vector, len(matrix), k, **settings)


def shifted_jordan(value, size):
    return value * np.eye(size) + np.eye(size, k=1)


@pytest.mark.parametrize(
    ("size", "seed"), [(200, 1), pytest.param(1000, 2, marks=pytest.mark.slow)]
)
def test_they_are_those_of_the_dense_product_of_two_jacobians(size, seed):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((size, size)))[0]
    # Those of gradient descent at two points whose Hessians do not commute.
    curvatures = 10 ** rng.uniform(-3, -0.4, size)
    curvatures[:4] = 2.3, 1.9, 1.6, 1.4
    hessian, other = (turn * curvatures) @ turn.T, rng.standard_normal((size, size)) / size**0.5
    jacobians = [np.eye(size) - hessian - sign * 0.02 * (other + other.T) for sign in (1, -1)]
    dense = np.linalg.eigvals(jacobians[1] @ jacobians[0])
    dense = dense[np.argsort(-np.abs(dense))]
    dense = dense[(np.abs(dense - 1) > NEUTRAL) | (np.abs(dense) > 1 + 1e-3)]
    product = lambda vector: jacobians[1] @ (jacobians[0] @ vector)  # noqa: E731
    found = leading_multipliers(product, size, 1)
    np.testing.assert_allclose(found.values, dense[:1], rtol=1e-9)
    assert found.residuals[0] <= TOL
    assert found.outside == (abs(dense[0]) > 1)
    assert found.products <= 160


def lattice(size, seed=3):
    """Coupled logistic maps of different rates, as a map and as NumPy's Jacobian at a point."""
    rng = np.random.default_rng(seed)
    rates, coupling = 1 + 0.02 * rng.uniform(-1, 1, size), rng.uniform(0, 1, (size, size))
    coupling = 0.9 * np.eye(size) + 0.1 * coupling / np.sum(coupling, axis=1, keepdims=True)
    # Twelve sites are coupled to a neighbour alone, so that their multipliers stand apart.
    coupling[:12] = 0.0
    for site in range(12):
        coupling[site, [site, 12 + site]] = 1 - 0.004 * site, 0.004 * site
    rates[:12] = 1 - 0.03 * np.arange(12)

    def step(x, rate):
        return jnp.asarray(coupling) @ (rate * jnp.asarray(rates) * x * (1 - x))

    return Map(step), lambda x, rate: coupling * (rate * rates * (1 - 2 * x))


@pytest.mark.parametrize("period", [2, 4])
@pytest.mark.parametrize("size", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_five_leading_ones_of_a_cycle_are_those_of_the_dense_product(size, period):
    """Of cycles that are found without a matrix; one of period 4 is beyond its own flips."""
    map_, jacobian = lattice(size)
    rate = {2: 3.3, 4: 3.52}[period]
    state = np.random.default_rng(0).uniform(0.3, 0.6, size)
    state = np.asarray(map_.iterate(jnp.asarray(state), rate, 4000))
    cycle = find_cycle(map_, state, rate, period, matrix_free=True)
    assert (cycle.converged, cycle.least_period) == (True, period)
    product = np.eye(size)
    for point in cycle.points:
        product = jacobian(point, rate) @ product
    dense = np.linalg.eigvals(product)
    dense = dense[np.abs(dense - 1) > NEUTRAL]
    dense = dense[np.lexsort((-np.imag(dense), -np.abs(dense)))][:5]
    np.testing.assert_allclose(cycle.multipliers, dense, atol=1e-6)
    assert cycle.multiplier_residuals is not None
    assert np.max(cycle.multiplier_residuals) <= TOL
    assert bool(cycle.outside) == bool(np.abs(dense[0]) > 1)


def test_complex_pairs_and_unstable_ones_come_in_order_with_fresh_residuals():
    blocks = [turning(1.2, 1.0), -1.1, turning(0.9, 2.0), *np.linspace(-0.5, 0.6, 194)]
    matrix, made = with_eigenvalues(blocks), []
    found = leading_multipliers(lambda v: made.append(1) or matrix @ v, len(matrix), 5)
    expected = [1.2 * np.exp(1j), 1.2 * np.exp(-1j), -1.1, 0.9 * np.exp(2j), 0.9 * np.exp(-2j)]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.products == len(made)
    assert found.outside
    # No vector has a smaller residual than the least singular value.
    for value, residual in zip(found.values, found.residuals, strict=True):
        least = np.linalg.svd(matrix - value * np.eye(len(matrix)), compute_uv=False)[-1]
        assert least * (1 - 1e-6) - 1e-13 <= residual <= TOL


def test_five_hundred_neutral_ones_do_not_fill_the_list():
    rng = np.random.default_rng(0)
    neutral = 1 + 1e-3 * rng.uniform(-1, 0.0, 500)
    apart = [-0.9, 0.8, -0.7, 0.65, 0.6]
    found = leading(with_eigenvalues([*neutral, *apart, *rng.uniform(-0.3, 0.3, 495)]))
    np.testing.assert_allclose(found.values, apart, atol=1e-8)
    assert not found.outside
    assert 0 < found.neutral < 500  # of a cluster a few are seen


def test_a_slightly_unstable_neutral_one_is_listed():
    found = leading(with_eigenvalues([1.004, *np.linspace(-0.5, 0.5, 99)]), k=1)
    np.testing.assert_allclose(found.values, [1.004], atol=1e-9)
    assert found.outside
    assert not found.notes


@pytest.mark.parametrize(("value", "outside"), [(-1.0005, True), (-0.9995, False)])
def test_the_side_of_the_circle_is_told_to_the_residual(value, outside):
    found = leading(with_eigenvalues([value, *np.linspace(-0.8, 0.8, 299)]))
    np.testing.assert_allclose(found.values[0], value, atol=1e-8)
    assert found.outside == outside
    assert not any("unit circle" in note for note in found.notes)


@pytest.mark.parametrize("value", [-1 - 1e-12, -1 + 1e-12])
def test_on_the_circle_nothing_is_told(value):
    found = leading(with_eigenvalues([value, *np.linspace(-0.8, 0.8, 99)]))
    assert not found.outside
    assert "1 multipliers cannot be distinguished from the unit circle" in found.notes


@pytest.mark.parametrize(("value", "order"), [(-1 + 1e-9, 2), (-0.999, 5), (0.9 + 0.09, 8)])
def test_the_eigenvalues_of_a_jordan_block_are_not_held_to_be_outside(value, order):
    matrix = np.zeros((120, 120))
    matrix[:order, :order] = shifted_jordan(value, order)
    matrix[order:, order:] = np.diag(np.linspace(-0.5, 0.5, 120 - order))
    turn = np.linalg.qr(np.random.default_rng(5).standard_normal((120, 120)))[0]
    found = leading(turn @ matrix @ turn.T)
    # LAPACK's own are outside: of an order of 5 they are off by the fifth root of rounding.
    assert np.max(np.abs(np.linalg.eigvals(turn @ matrix @ turn.T))) > abs(value)
    assert not found.outside


def test_pseudo_eigenvalues_of_a_matrix_far_from_normal_are_not_held_to_be_outside():
    matrix = shifted_jordan(-0.5, 200)  # norm 1.5, all eigenvalues -0.5
    assert np.max(np.abs(np.linalg.eigvals(matrix))) < 1
    found = leading(matrix)
    assert not found.outside


def test_multiple_ones_are_found_where_the_space_is_exhausted():
    found = leading(np.diag([-0.9, -0.9, -0.9, *[0.3] * 60]))
    np.testing.assert_allclose(found.values, [-0.9] * 3 + [0.3] * 2, atol=1e-9)
    assert found.products <= 20


def test_what_does_not_converge_says_so():
    found = leading(np.roll(np.eye(500), 1, axis=0) * 0.95)  # all moduli are the same
    assert found.notes[0].startswith("0 of 5 multipliers converged to a residual of 1e-06 in 150")
    assert not found.outside
    assert np.all(found.residuals > TOL)


def test_products_that_are_not_finite_are_told():
    found = leading(np.full((10, 10), np.nan))
    assert found.notes == ("multipliers are not finite",)
    assert np.all(np.isnan(found.values))


def test_a_multiplier_at_one_is_told():
    found = leading(np.diag([1.0, 1.0, *np.linspace(-0.6, 0.6, 50)]), k=2)
    assert (
        "a multiplier cannot be distinguished from +1, the cycle may not be isolated" in found.notes
    )
    near = leading(np.diag([1 - 1e-4, 1 - 1e-4, *np.linspace(-0.6, 0.6, 50)]), k=2)
    assert near.notes == ()


def test_the_relation_of_arnoldi_holds():
    matrix = np.random.default_rng(1).standard_normal((60, 60))
    space = KrylovSpace(lambda vector: matrix @ vector, random_start(60), 20, 1e-13)
    while not space.full:
        space.extend()
    basis, hessenberg = space.basis, space.hessenberg
    np.testing.assert_allclose(basis @ basis.T, np.eye(20), atol=1e-13)
    left = matrix @ basis.T - basis.T @ hessenberg[:-1]
    np.testing.assert_allclose(left[:, :-1], 0, atol=1e-12)
    np.testing.assert_allclose(left[:, -1], hessenberg[-1, -1] * space.next, atol=1e-12)
    # Ritz vectors have the residuals that the recurrence tells.
    ritz = space.ritz()
    vectors = ritz.coefficients @ basis
    residuals = np.linalg.norm(vectors @ matrix.T - ritz.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, ritz.residuals, atol=1e-12)


def similar(values, seed=0, skew=0.05):
    """A matrix with these eigenvalues, conjugate ones next to each other, that is not normal."""
    blocks, place = np.zeros((len(values), len(values))), 0
    while place < len(values):
        value = complex(values[place])
        if value.imag:
            block = [[value.real, value.imag], [-value.imag, value.real]]
            blocks[place : place + 2, place : place + 2] = block
            place += 2
        else:
            blocks[place, place] = value.real
            place += 1
    basis = np.eye(len(values)) + skew * np.random.default_rng(seed).normal(size=blocks.shape)
    return basis @ blocks @ np.linalg.inv(basis)


@pytest.mark.parametrize("size", [10, 300])  # all of them, and by Arnoldi's method
@pytest.mark.parametrize(
    ("first", "stability", "crossing"),
    [
        ([-1.2, 0.5], "unstable", "flip"),
        ([1.2, 0.5], "unstable", "+1"),
        ([0.9 + 0.9j, 0.9 - 0.9j, 0.5], "unstable", "Neimark-Sacker"),
        ([-0.9, 0.5], "stable", ""),
        ([-1.0, 0.5], "unknown", ""),
        ([0.99, 0.5], "stable", ""),  # neutral, and surely inside
        ([1.01, 0.5], "unstable", "+1"),
        ([1.0, 1.0, -0.9, 0.5], "none found", ""),
        ([1.0, 1.0, -1.1, 0.5], "unstable", "flip"),
    ],
)
def test_kinds_of_crossings(size, first, stability, crossing):
    rest = np.linspace(0.3, 0.0, size - len(first))
    matrix = similar([*first, *rest], skew=0.3 / np.sqrt(size))
    found = dense_multipliers(matrix, 2, margin=1e-3) if size == 10 else leading(matrix, 2)
    assert found.crossing == crossing
    if size == 300 and stability == "stable":
        stability = "none found"  # there may be others
    assert found.stability == stability
    neutral = sum(value in (1.0, 0.99) for value in first)
    # Krylov vectors from one start see a repeated one once, but for rounding.
    assert found.neutral in ((neutral,) if size == 10 else {min(neutral, 1), neutral})
    expected = [value for value in first if value not in (1.0, 0.99)]
    expected = [*expected, 0.3][:2]
    assert np.all(np.abs(found.values - expected) <= found.errors)
    assert np.all(found.errors < 1e-4)


def test_a_residual_of_a_matrix_that_is_far_from_normal_is_no_error():
    """A Jordan block, perturbed by 1e-12: its eigenvalues have moved by 1e-3."""
    block = 0.9 * np.eye(4) + np.eye(4, k=1)
    block[3, 0] = 1e-12
    found = dense_multipliers(block, 4)
    np.testing.assert_allclose(np.max(np.abs(found.values)), 0.901, atol=1e-5)
    assert np.max(found.residuals) < 1e-14
    assert np.max(found.errors) > 1e6 * np.max(found.residuals)
