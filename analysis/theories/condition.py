"""The condition at the edge, which the covariance of the oscillation solves."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.theories.complementarity import Complementarity
from dlf_dynamics.analysis.theories.substep import Local

Matrix = Float[np.ndarray, "k k"]
Operator = Float[np.ndarray, "k k k k"]


def condition(
    local: Local, length: float, drift: float, threshold: float
) -> tuple[Matrix, Operator]:
    """α and β such that Uᵀ (threshold P - H) U is α + β[X] at the end of a substep.

    Args:
        local: derivatives at its start.
        length: length of the substep.
        drift: drift during the substep.
        threshold: threshold at its end.
    """
    count = len(local.hessian)
    along, explicit = (_square(part, count) for part in (local.along, local.explicit))
    hessian = np.asarray(local.hessian, float)
    alpha = threshold * np.eye(count) - hessian + length * (drift * along - explicit)
    beta = length * drift / 2 * _operator(local.inner, count)
    if local.stiffening is not None:
        alpha = alpha + length * _square(local.stiffening.steady, count)
        beta = beta + length * _operator(local.stiffening.answer, count)
    return alpha, beta


def foreseen(local: Local, length: float, threshold: float, solved: Complementarity) -> Matrix:
    """Uᵀ H U at the end of a substep, with U made orthonormal in the metric there."""
    count, slack = len(local.hessian), solved.slack
    if local.stiffening is not None:
        answer = _operator(local.stiffening.answer, count)
        change = _square(local.stiffening.steady, count)
        change = change + np.einsum("ijkl,kl->ij", answer, solved.covariance)
        values, vectors = np.linalg.eigh(np.eye(count) + length / threshold * change)
        if np.all(values > 0):
            root = (vectors / np.sqrt(values)) @ vectors.T
            slack = root @ slack @ root
    return threshold * np.eye(count) - slack


def weights(covariance: Matrix) -> Float[np.ndarray, " pairs"]:
    """Weight of each G_ij with i ≤ j in ½ Σ_ij X_ij G_ij."""
    upper = np.triu_indices(len(covariance))
    return np.where(upper[0] == upper[1], 0.5, 1.0) * covariance[upper]


def _pair_indices(count: int) -> Int[np.ndarray, "k k"]:
    """Index of each pair of modes among the pairs with i ≤ j."""
    indices = np.zeros((count, count), int)
    upper = np.triu_indices(count)
    indices[upper] = np.arange(len(upper[0]))
    return np.maximum(indices, indices.T)


def _square(pairs: Any, count: int) -> Matrix:
    """The symmetric matrix from its entries with i ≤ j."""
    return np.asarray(pairs, float)[_pair_indices(count)]


def _operator(pairs: Any, count: int) -> Operator:
    """The map of symmetric matrices from its entries for pairs of pairs with i ≤ j."""
    indices = _pair_indices(count)
    return np.asarray(pairs, float)[indices[:, :, None, None], indices[None, None]]
