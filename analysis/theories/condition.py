"""The condition at the edge, of which the covariance of the oscillation is the solution."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.theories.complementarity import Complementarity
from dlf_dynamics.analysis.theories.substep import Local

Matrix = Float[np.ndarray, "k k"]
Operator = Float[np.ndarray, "k k k k"]


def condition(
    found: Local, length: float, drift: float, threshold: float
) -> tuple[Matrix, Operator]:
    """α and β, with which Uᵀ (threshold P - H) U is α + β[X] at the end of a substep.

    Args:
        found: derivatives where it begins.
        length: of the substep.
        drift: in it.
        threshold: at its end.
    """
    count = len(found.hessian)
    along, explicit = (_square(part, count) for part in (found.along, found.explicit))
    hessian = np.asarray(found.hessian, float)
    alpha = threshold * np.eye(count) - hessian + length * (drift * along - explicit)
    beta = length * drift / 2 * _operator(found.inner, count)
    if found.stiffening is not None:
        alpha = alpha + length * _square(found.stiffening.steady, count)
        beta = beta + length * _operator(found.stiffening.answer, count)
    return alpha, beta


def foreseen(found: Local, length: float, threshold: float, solved: Complementarity) -> Matrix:
    """Uᵀ H U at the end of a substep, with U made orthonormal in the metric there."""
    count, slack = len(found.hessian), solved.slack
    if found.stiffening is not None:
        answer = _operator(found.stiffening.answer, count)
        change = _square(found.stiffening.steady, count)
        change = change + np.einsum("ijkl,kl->ij", answer, solved.covariance)
        values, vectors = np.linalg.eigh(np.eye(count) + length / threshold * change)
        if np.all(values > 0):
            root = (vectors / np.sqrt(values)) @ vectors.T
            slack = root @ slack @ root
    return threshold * np.eye(count) - slack


def weights(covariance: Matrix) -> Float[np.ndarray, " pairs"]:
    """What each G_ij with i ≤ j counts in ½ Σ_ij X_ij G_ij."""
    upper = np.triu_indices(len(covariance))
    return np.where(upper[0] == upper[1], 0.5, 1.0) * covariance[upper]


def _places(count: int) -> Int[np.ndarray, "k k"]:
    """Where each pair of modes is among those with i ≤ j."""
    places = np.zeros((count, count), int)
    upper = np.triu_indices(count)
    places[upper] = np.arange(len(upper[0]))
    return np.maximum(places, places.T)


def _square(pairs: Any, count: int) -> Matrix:
    """Of the pairs with i ≤ j, the symmetric matrix."""
    return np.asarray(pairs, float)[_places(count)]


def _operator(pairs: Any, count: int) -> Operator:
    """Of the pairs of pairs, what takes a symmetric matrix to one."""
    places = _places(count)
    return np.asarray(pairs, float)[places[:, :, None, None], places[None, None]]
