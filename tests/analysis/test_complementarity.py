"""Complementarity of matrices: solutions made beforehand, another minimiser, and no solution."""

import numpy as np
import pytest
from scipy.optimize import minimize

from dlf_dynamics.analysis.theories.complementarity import solve_complementarity


def gram(thirds):
    """β = (G_ij · G_kl) of vectors G_ij = G_ji."""
    return np.einsum("ijn,kln->ijkl", thirds, thirds)


def applied(beta, matrix):
    return np.einsum("ijkl,kl->ij", beta, matrix)


def made_problem(rng, size, *, scaled=False, degenerate=False):
    """α and β of a known solution X, S."""
    thirds = rng.normal(size=(size, size, size * size + 5))
    thirds = thirds + thirds.transpose(1, 0, 2)
    if scaled:
        scales = 10 ** rng.uniform(-1.5, 1.5, size)
        thirds *= scales[:, None, None] * scales[None, :, None] * 10 ** rng.uniform(-3, 3)
    beta = gram(thirds)
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    rank = int(rng.integers(1, size + 1))
    spread = np.where(np.arange(size) < rank, 10 ** rng.uniform(-3, 0, size), 0)
    left = np.where(np.arange(size) < rank, 0, 10 ** rng.uniform(-3, 0, size))
    if degenerate:
        left[-1] = 0
    covariance = 10 ** rng.uniform(-3, 3) * (vectors * spread) @ vectors.T
    response = applied(beta, covariance)
    slack = np.linalg.norm(response) * (vectors * left) @ vectors.T
    return slack - response, beta, covariance, slack


def violations(alpha, beta, covariance):
    """Of X ⪰ 0, S ⪰ 0 and ⟨X, S⟩ = 0, relative."""
    slack = alpha + applied(beta, covariance)
    spread, force = np.linalg.norm(covariance), np.linalg.norm(alpha)
    return (
        max(-np.linalg.eigvalsh(covariance)[0], 0) / (spread or 1),
        max(-np.linalg.eigvalsh(slack)[0], 0) / force,
        abs(np.sum(covariance * slack)) / (spread * force or 1),
    )


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_solutions_that_were_made(size):
    rng = np.random.default_rng(size)
    for _ in range(20):
        alpha, beta, covariance, slack = made_problem(rng, size)
        found = solve_complementarity(alpha, beta)
        assert found.converged, found.message
        assert max(violations(alpha, beta, found.covariance)) < 1e-12
        error = np.linalg.norm(found.covariance - covariance)
        assert error <= 1e-5 * np.linalg.norm(covariance)
        assert np.linalg.norm(found.slack - slack) <= 1e-6 * np.linalg.norm(alpha)


@pytest.mark.parametrize("degenerate", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_modes_far_apart_and_modes_just_about_to_become_critical(size, degenerate):
    rng = np.random.default_rng(size)
    for _ in range(20):
        made = made_problem(rng, size, scaled=True, degenerate=degenerate)
        alpha, beta, _, slack = made
        found = solve_complementarity(alpha, beta)
        assert found.converged, found.message
        assert max(violations(alpha, beta, found.covariance)) < 1e-12
        # β[X] is the same for all solutions; near a degenerate one to the root of the accuracy.
        error = np.linalg.norm(found.slack - slack) / np.linalg.norm(alpha)
        assert error <= 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_of_the_convex_function(seed):
    # min ½⟨X, β[X]⟩ + ⟨α, X⟩ over X = R Rᵀ, by another method.
    rng = np.random.default_rng(seed)
    thirds = rng.normal(size=(3, 3, 12))
    beta = gram(thirds + thirds.transpose(1, 0, 2))
    alpha = rng.normal(size=(3, 3))
    alpha = alpha + alpha.T - 2 * np.eye(3)

    def value(flat):
        root = flat.reshape(3, 3)
        matrix = root @ root.T
        slope = applied(beta, matrix) + alpha
        return np.sum(matrix * (slope + alpha)) / 2, (2 * slope @ root).reshape(-1)

    best = minimize(value, np.eye(3).reshape(-1), jac=True, method="BFGS", tol=1e-12)
    root = best.x.reshape(3, 3)
    found = solve_complementarity(alpha, beta)
    np.testing.assert_allclose(found.covariance, root @ root.T, rtol=0, atol=1e-6)


def test_operators_that_are_not_symmetric():
    rng = np.random.default_rng(0)
    skew = rng.normal(size=(9, 9))
    basis = np.array([[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])  # of symmetric 2 by 2 matrices
    for _ in range(20):
        root, skew = rng.normal(size=(2, 3, 3))
        operator = root @ root.T + skew - skew.T
        beta = (basis.T @ operator @ basis).reshape(2, 2, 2, 2)
        alpha = rng.normal(size=(2, 2))
        found = solve_complementarity(alpha, beta)
        assert found.converged, found.message
        assert max(violations((alpha + alpha.T) / 2, beta, found.covariance)) < 1e-11


def test_off_diagonal_entries_count_twice():
    # α and β of three vectors by hand: S = 0 wherever X is not.
    beta = gram(np.array([[[1.0, 0, 0], [0, 1.0, 0]], [[0, 1.0, 0], [0, 0, 1.0]]]))
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    # β[X]_12 = G_12 · (X_11 G_11 + 2 X_12 G_12 + X_22 G_22) = 2 X_12.
    alpha = -np.array([[2.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(solve_complementarity(alpha, beta).covariance, covariance, atol=1e-9)


def test_nothing_to_hold():
    found = solve_complementarity(np.diag([1.0, 0.0]), np.zeros((2, 2, 2, 2)))
    assert found.converged
    assert found.unique
    assert not np.any(found.covariance)
    np.testing.assert_array_equal(found.slack, np.diag([1.0, 0.0]))
    empty = solve_complementarity(np.zeros((0, 0)), np.zeros((0, 0, 0, 0)))
    assert empty.converged
    assert empty.covariance.shape == (0, 0)


@pytest.mark.parametrize("negative", [np.array([[-1.0]]), np.diag([-1.0, 1.0])])
def test_no_solution(negative):
    size = len(negative)
    found = solve_complementarity(negative, np.zeros((size,) * 4))
    assert not found.converged
    assert found.message == "no X ⪰ 0 makes α + β[X] ⪰ 0"
    assert np.all(np.isnan(found.covariance))


def test_a_direction_that_nothing_holds():
    beta = np.zeros((2, 2, 2, 2))
    beta[1, 1, 1, 1] = 1
    assert not solve_complementarity(np.diag([-1.0, -1.0]), beta).converged
    assert solve_complementarity(np.diag([1.0, -1.0]), beta).converged
    assert not solve_complementarity(np.array([[-1.0]]), np.array([[[[-1.0]]]])).converged


def test_a_covariance_that_is_not_unique():
    same = np.zeros((2, 2, 1))
    same[0, 0] = same[1, 1] = 1  # only the trace of X counts
    found = solve_complementarity(-np.eye(2), gram(same))
    assert found.converged
    assert not found.unique
    assert np.trace(found.covariance) == pytest.approx(1, abs=1e-9)
    assert found.message == "the conditions leave a part of X undetermined"
    assert solve_complementarity(np.diag([-1.0, -0.5]), gram(same)).unique


def test_what_is_not_finite():
    found = solve_complementarity(np.array([[np.nan]]), np.ones((1, 1, 1, 1)))
    assert not found.converged
    assert found.message == "α or β is not finite"
