"""Certified eigenvalues against dense matrices of chosen spectra, for both methods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy.sparse.linalg import LinearOperator, eigsh

from dlf_dynamics.analysis import eigensolver
from dlf_dynamics.analysis.eigensolver import certify, make_ends, top_eigenpairs
from dlf_dynamics.analysis.lanczos import Ends, lanczos

METHODS = ("lanczos", "block")
WHICH = ("largest", "smallest", "both")
PRECISIONS = [(np.float64, 1e-6), (np.float32, 1e-3)]


def product(matrix, vector):
    return matrix @ vector


def reflected_product(operands, vector):
    """Product with a diagonal matrix in the basis of three reflections, without a matrix."""
    diagonal, mirrors = operands
    for mirror in mirrors:
        vector = vector - 2 * (mirror @ vector) * mirror
    vector = diagonal * vector
    for mirror in mirrors[::-1]:
        vector = vector - 2 * (mirror @ vector) * mirror
    return vector


def make_reflected(eigenvalues, seed):
    mirrors = np.random.default_rng(seed).standard_normal((3, len(eigenvalues)))
    return np.asarray(eigenvalues), mirrors / np.linalg.norm(mirrors, axis=1, keepdims=True)


def make_matrix(eigenvalues, seed, dtype=np.float64):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    normal = np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2)
    vectors, _ = np.linalg.qr(normal)
    matrix = (vectors * eigenvalues @ vectors.T).astype(dtype)
    return (matrix + matrix.T) / 2


def regression_hessian(n, seed):
    """Squared loss of a linear model with 3 live inputs: rank 3, and rows of exact zeros."""
    inputs = np.zeros((20, n))
    inputs[:, :3] = np.random.default_rng(seed).standard_normal((20, 3))
    return inputs.T @ inputs / 20


def spectrum(name, n, seed=0):
    """A spectrum of n eigenvalues; the clusters are those of k = 3."""
    rest = np.random.default_rng([n, seed]).uniform(0, 0.3, max(n - 3, 0))
    return {
        "geometric": 0.7 ** np.arange(n),
        "linear": np.linspace(1, 0.1, n),
        "alternating": np.where(np.arange(n) % 2, 0.9, -1) * np.linspace(1, 0.01, n),
        "negative": -np.linspace(0.1, 3, n),
        "cluster below": np.concatenate([[1, 0.5, 0.2], 0.1 + 1e-6 * rest])[:n],
        "cluster of 1": np.concatenate([[1, 0.6, 0.5], 0.5 * rest])[:n],
        "cluster of 2": np.concatenate([[1, 0.998, 0.5], rest])[:n],
        "cluster of 3": np.concatenate([[1, 0.997, 0.993], rest])[:n],
        "tight pair": np.concatenate([[1, 1 - 1e-3, 0.5], rest])[:n],
        "tight triple": np.concatenate([[1, 1 - 1e-5, 1 - 2e-5], rest])[:n],
        "double": np.concatenate([[1, 1, 0.5], rest])[:n],
        "lower double": np.concatenate([[1, 0.5, 0.5], rest])[:n],
        "triple": np.concatenate([[1, 1, 1], rest])[:n],
        "fivefold": np.concatenate([[1, 1, 1, 1, 1], rest])[:n],
        "triple on a line": np.concatenate([[1, 1, 1], np.linspace(0.95, 0, max(n - 3, 0))])[:n],
        "double on both ends": np.concatenate([[1, 1, -1, -1], rest])[:n],
        "indefinite": np.concatenate([[1, 0.8, 0.5], -20 * rest])[:n],
        "rank 3": np.concatenate([[3, 2, 1], 0 * rest])[:n],
        "rank 2": np.concatenate([[3, -2, 0], 0 * rest])[:n],
        "two values": np.where(np.arange(n) < n / 3, 1.0, -0.5),
        "far apart": np.concatenate([[1e6, 1, 1e-3], 1e-3 * rest])[:n],
        "identity": np.ones(n),
        "zero": np.zeros(n),
    }[name]


SPECTRA = (
    "geometric",
    "linear",
    "alternating",
    "negative",
    "cluster below",
    "cluster of 1",
    "cluster of 2",
    "cluster of 3",
    "tight pair",
    "tight triple",
    "double",
    "lower double",
    "triple",
    "fivefold",
    "triple on a line",
    "double on both ends",
    "indefinite",
    "rank 3",
    "rank 2",
    "two values",
    "far apart",
    "identity",
    "zero",
)


def solve_operator(matvec, n, k, *, method="lanczos", seed=0, dtype=np.float64, **settings):
    """`top_eigenpairs` by one of the methods."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigensolver, "PASS_SIZE", 10**6 if method == "lanczos" else 0)
        found = top_eigenpairs(matvec, n, k, key=jax.random.key(seed), dtype=dtype, **settings)
    assert found.method == method
    return found


def solve(matrix, k, **settings):
    matvec = Partial(product, jnp.asarray(matrix))
    return solve_operator(matvec, len(matrix), k, dtype=matrix.dtype, **settings)


def pick(descending, k, which):
    ends = make_ends(k, len(descending), which)
    return np.concatenate([descending[: ends.top], descending[len(descending) - ends.bottom :]])


def wrong(found, exact):
    """Values marked converged whose interval does not contain the eigenvalue of their place."""
    lower, upper = found.intervals.T
    return found.converged & ~((lower <= exact) & (exact <= upper))


def check(matrix, found, k, which, *, tol, max_matvecs):
    """All that the solver promises, recomputed with LAPACK in float64."""
    precision = float(np.finfo(found.eigenvalues.dtype).eps)
    matrix = matrix.astype(np.float64)
    descending = np.linalg.eigvalsh(matrix)[::-1]
    exact, norm = pick(descending, k, which), np.max(np.abs(descending))
    values, vectors = found.eigenvalues.astype(float), found.eigenvectors.astype(float)
    # Rounding of a product with the matrix, entry by entry at most n eps, in practice like √n.
    rounding = 4 * precision * np.sqrt(len(matrix)) * norm
    residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)

    assert not np.any(wrong(found, exact))
    np.testing.assert_allclose(found.residuals, residuals, atol=rounding, rtol=0)
    assert np.all(residuals[found.converged] <= tol * norm + rounding)
    difference = np.abs(vectors @ vectors.T - np.eye(len(values)))
    assert np.max(difference) <= 20 * precision * np.sqrt(len(matrix))
    assert np.max(difference) == pytest.approx(found.orthogonality, abs=20 * precision)
    assert np.all(np.diff(values) <= 0)
    assert found.num_matvecs <= max_matvecs
    assert (found.status == "converged") == np.all(found.converged)

    # Whether converged or not, each interval contains an eigenvalue: none is a phantom.
    lower, upper = found.intervals.T
    inside = (lower[:, None] <= descending) & (descending <= upper[:, None])
    assert np.all(np.any(inside, axis=1))
    sharper = found.gap_intervals
    known = np.isfinite(sharper[:, 0])
    assert np.all((sharper >= lower[:, None]) & (sharper <= upper[:, None]) | ~known[:, None])
    if np.all(found.converged):
        assert np.all((sharper[known, 0] <= exact[known]) & (exact[known] <= sharper[known, 1]))
    return exact


@pytest.mark.parametrize(("dtype", "tol"), PRECISIONS)
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_marked_converged_is_right_for_every_spectrum(method, which, dtype, tol):
    budget = {"tol": tol, "max_matvecs": 40}
    solved = set()
    for seed in range(4):
        matrices = {name: make_matrix(spectrum(name, 50, seed), seed, dtype) for name in SPECTRA}
        matrices["regression"] = regression_hessian(50, seed).astype(dtype)
        for name, matrix in matrices.items():
            found = solve(matrix, 3, method=method, which=which, seed=seed, **budget)
            check(matrix, found, 3, which, **budget)
            if found.status == "converged":
                solved.add(name)
    # The easy ones are solved indeed.
    assert solved >= {"rank 3", "rank 2", "two values", "identity", "zero", "regression"}
