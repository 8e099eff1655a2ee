"""Certified eigenvalues against dense matrices of chosen spectra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from dlf_dynamics.analysis.eigensolver import top_eigenpairs


@partial(jax.jit, static_argnames=("k", "max_matvecs"))
def solve(matrix, seed, tol, *, k, max_matvecs=40):
    return top_eigenpairs(
        lambda vector: matrix @ vector,
        len(matrix),
        k,
        tol=tol,
        max_matvecs=max_matvecs,
        key=jax.random.key(seed),
        dtype=matrix.dtype,
    )


def make_matrix(eigenvalues, seed, dtype=np.float64):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    normal = np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2)
    vectors, _ = np.linalg.qr(normal)
    matrix = (vectors * eigenvalues @ vectors.T).astype(dtype)
    return (matrix + matrix.T) / 2


def spectrum(name, n):
    """A spectrum of n eigenvalues."""
    rest = np.random.default_rng(n).uniform(0, 0.3, max(n - 3, 0))
    return {
        "geometric": 0.7 ** np.arange(n),
        "linear": np.linspace(1, 0.1, n),
        "alternating": np.where(np.arange(n) % 2, 0.9, -1) * np.linspace(1, 0.01, n),
        "negative": -np.linspace(0.1, 3, n),
        "cluster below": np.concatenate([[1, 0.5, 0.2], 0.1 + 1e-6 * rest])[:n],
        "cluster on top": np.concatenate([[1, 0.997, 0.993], rest])[:n],
        "tight pair": np.concatenate([[1, 1 - 1e-3, 0.5], rest])[:n],
        "large negative": np.concatenate([[1, 0.8, 0.5], -20 * rest])[:n],
        "rank 3": np.concatenate([[3, 2, 1], 0 * rest])[:n],
        "rank 2": np.concatenate([[3, -2, 0], 0 * rest])[:n],
        "far apart": np.concatenate([[1e6, 1, 1e-3], 1e-3 * rest])[:n],
        "identity": np.ones(n),
        "zero": np.zeros(n),
    }[name]


# Nothing that is asked for is repeated.
DISTINCT = (
    "geometric",
    "linear",
    "alternating",
    "negative",
    "cluster below",
    "cluster on top",
    "tight pair",
    "large negative",
    "rank 3",
    "rank 2",
    "far apart",
)
PRECISIONS = [(np.float64, 1e-6), (np.float32, 1e-3)]


def check(matrix, found, tol, *, all_copies=True):
    """All that the solver promises, recomputed with LAPACK in float64.

    The k largest values are met to `tol` times the largest, where none of them is repeated.
    """
    matrix = matrix.astype(np.float64)
    exact = np.linalg.eigvalsh(matrix)[::-1]
    found = jax.device_get(found)
    values, vectors = found.eigenvalues.astype(float), found.eigenvectors.astype(float)
    eps = np.finfo(found.eigenvalues.dtype).eps
    # Rounding of a product with the matrix, entry by entry at most n eps, in practice like √n.
    rounding = 4 * eps * np.sqrt(len(matrix)) * np.max(np.abs(exact))
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, atol=rounding)
    np.testing.assert_allclose(
        vectors @ vectors.T, np.eye(len(values)), atol=20 * eps * np.sqrt(len(matrix))
    )
    assert np.all(np.diff(values) <= 0)
    distance = np.min(np.abs(exact[None] - values[:, None]), axis=1)
    assert np.all(distance <= residuals + rounding)
    largest = np.max(np.abs(values))
    np.testing.assert_array_equal(found.converged, found.residuals <= tol * np.float64(largest))
    if all_copies and np.all(found.converged):
        assert np.all(np.abs(values - exact[: len(values)]) <= tol * largest + rounding)


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
@pytest.mark.parametrize(("n", "max_matvecs"), [(1, 6), (3, 6), (8, 16), (30, 33), (120, 24)])
@pytest.mark.parametrize(("seed", "scale"), [(0, 1.0), (1, 1e8), (2, 1e-8), (3, 1.0)])
def test_what_is_marked_converged_is_right_for_every_spectrum_and_scale(
    n, max_matvecs, dtype, tol, seed, scale
):
    for name in DISTINCT:
        matrix = make_matrix(scale * spectrum(name, n), seed, dtype)
        found = solve(matrix, seed, tol, k=min(3, n), max_matvecs=max_matvecs)
        check(matrix, found, tol)


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
@pytest.mark.parametrize("name", ["identity", "zero", "rank 3", "rank 2"])
def test_breakdown_gives_converged_and_exact_values(name, dtype, tol):
    for n in (1, 2, 8, 60):
        matrix = make_matrix(spectrum(name, n), 0, dtype)
        found = solve(matrix, 1, tol, k=min(n, 3), max_matvecs=16)
        check(matrix, found, tol)
        assert np.all(found.converged)


def test_a_matrix_of_order_2000_has_the_values_of_scipys_eigsh():
    matrix = make_matrix(spectrum("geometric", 2000), 0)
    found = solve(matrix, 0, 1e-6, k=2, max_matvecs=24)
    exact = np.sort(eigsh(matrix, 2, which="LA", return_eigenvectors=False, tol=1e-12))[::-1]
    assert np.all(found.converged)
    np.testing.assert_allclose(found.eigenvalues, exact, atol=1e-10)


@pytest.mark.parametrize("n", [1, 4, 12])
def test_all_eigenvalues_come_where_k_is_the_order(n):
    matrix = make_matrix(np.linspace(-1, 2, n), 0)
    found = solve(matrix, 0, 1e-10, k=n)
    assert np.all(found.converged)
    np.testing.assert_allclose(found.eigenvalues, np.linspace(-1, 2, n)[::-1], atol=1e-13)


def test_of_an_eigenvalue_repeated_on_top_each_value_told_is_an_eigenvalue():
    matrix = make_matrix(np.concatenate([[2, 2, 1.5], np.linspace(1, 0, 27)]), 0)
    for seed in range(10):
        found = solve(matrix, seed, 1e-6, k=3, max_matvecs=33)
        check(matrix, found, 1e-6, all_copies=False)


def test_too_few_products_leave_values_not_converged():
    matrix = make_matrix(np.linspace(1, 0, 300), 0)
    for seed in range(10):
        found = solve(matrix, seed, 1e-6, k=3, max_matvecs=10)
        assert not np.any(found.converged)
        assert found.num_matvecs == 10
        check(matrix, found, 1e-6)


def test_a_matrix_that_is_not_finite_gives_nothing_converged():
    for bad in (np.nan, np.inf):
        found = solve(np.full((20, 20), bad), 0, 1e-6, k=2, max_matvecs=16)
        assert not np.any(found.converged)
        matrix = np.eye(20)
        matrix[3, 4] = matrix[4, 3] = bad
        assert not np.any(solve(matrix, 0, 1e-6, k=2, max_matvecs=16).converged)


def test_a_tolerance_below_the_precision_is_not_claimed_to_be_met():
    matrix = make_matrix(spectrum("linear", 30), 0, np.float32)
    found = solve(matrix, 0, 1e-12, k=3, max_matvecs=33)
    assert not np.any(found.converged)


@pytest.mark.parametrize("max_matvecs", [6, 13, 24])
def test_num_matvecs_counts_the_products_that_are_made(max_matvecs):
    matrix = make_matrix(spectrum("geometric", 60), 0)
    made = []

    def product(vector):
        made.append(1)
        return matrix @ vector

    def matvec(vector):
        return jax.pure_callback(product, jax.ShapeDtypeStruct((60,), np.float64), vector)

    found = top_eigenpairs(matvec, 60, 3, tol=1e-3, max_matvecs=max_matvecs, key=jax.random.key(0))
    assert int(found.num_matvecs) == len(made) <= max_matvecs


def test_it_maps_over_matrices_under_jit():
    matrices = np.stack([make_matrix(spectrum("geometric", 30), seed) for seed in range(3)])
    mapped = jax.jit(
        lambda stack: jax.lax.map(lambda matrix: solve(matrix, 0, 1e-6, k=2, max_matvecs=24), stack)
    )(jnp.asarray(matrices))
    assert np.all(mapped.converged)
    np.testing.assert_allclose(mapped.eigenvalues, [[1, 0.7]] * 3, atol=1e-10)


@pytest.mark.parametrize("k", [0, 6])
def test_k_outside_1_to_n_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; expected 1 to 5, the order of the operator"):
        solve(np.eye(5), 0, 1e-6, k=k)


def test_fewer_products_than_two_for_each_value_are_refused():
    with pytest.raises(ValueError, match="max_matvecs is 5; expected at least 2 k = 6"):
        solve(np.eye(5), 0, 1e-6, k=3, max_matvecs=5)
