"""Floquet multipliers: eigenvalues of the map of a closed orbit, by products, with residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import scipy.linalg
from jaxtyping import Complex, Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

from dlf_dynamics.reprs import brief

NEUTRAL = 1e-3
"""Distance from +1 within which a multiplier counts as neutral."""

BEYOND = 1e-3
"""Distance from the unit circle from which on a multiplier is held to be off it: an orbit closes to
some digits only."""

_DENSE = 200
"""Order up to which all multipliers are computed."""

_MORE = 6
"""Eigenvalues that are looked for beside those that are wanted, as some of them are neutral."""

Stability = Literal["stable", "none found", "unstable", "unknown", ""]
Crossing = Literal["flip", "+1", "Neimark-Sacker", ""]


class Products(Protocol):
    """A square matrix M, by products with rows."""

    size: int

    def forward(self, vectors: np.ndarray) -> np.ndarray:
        """Products with M."""
        ...

    def backward(self, vectors: np.ndarray) -> np.ndarray:
        """Products with Mᵀ."""
        ...


class Multipliers(NamedTuple):
    """The multipliers of largest modulus but for the neutral ones, in decreasing order.

    Attributes:
        values: μ.
        residuals: ‖Mx - μx‖ for the eigenvector x of unit length, from products made anew.
        errors: distance of an eigenvalue from μ to first order: the residual times the condition
            number ‖x‖‖y‖/|yᵀx|, with the left eigenvector y. M is not normal, so a small residual
            alone says little.
        neutral: multipliers within `NEUTRAL` of +1 that were found.
        all_known: whether all multipliers were computed, or only those that Arnoldi's method finds.
    """

    values: Complex[np.ndarray, " multipliers"]
    residuals: Float[np.ndarray, " multipliers"]
    errors: Float[np.ndarray, " multipliers"]
    neutral: int
    all_known: bool
    __repr__ = brief

    @property
    def stability(self) -> Stability:
        """What is known of them.

        `unstable`: one is surely outside the unit circle, to first order, and not neutral;
        `stable`: all are known to be inside, none is neutral; `none found`: those that were found
        are inside or neutral, but there may be others; else `unknown`.
        """
        sizes = np.abs(self.values)
        if np.any(sizes - self.errors > 1 + BEYOND):
            return "unstable"
        if not np.all(sizes + self.errors < 1 - BEYOND):  # also where an error is NaN
            return "unknown"
        return "stable" if self.all_known and not self.neutral else "none found"

    @property
    def crossing(self) -> Crossing:
        """Where the largest lies beyond the unit circle; empty unless it surely does."""
        sizes = np.abs(self.values) - self.errors
        if not len(sizes) or not np.max(np.nan_to_num(sizes, nan=0.0)) > 1 + BEYOND:
            return ""
        place = int(np.nanargmax(sizes))
        value, error = complex(self.values.item(place)), float(self.errors.item(place))
        if abs(value.imag) > max(error, 1e-12 * abs(value)):
            return "Neimark-Sacker"
        return "flip" if value.real < 0 else "+1"


def leading_multipliers(
    matrix: Products, k: int, *, max_products: int = 400, seed: int = 0
) -> Multipliers:
    """The k multipliers of largest modulus that are not neutral.

    Args:
        matrix: M, of the orbit's linearised updates.
        k: how many; of a pair both count.
        max_products: products with M, and as many with its transpose, for more than 200 unknowns.
        seed: that of the random start.
    """
    dense = matrix.size <= _DENSE
    found = _all_of(matrix) if dense else _some_of(matrix, k + _MORE, max_products, seed)
    values, vectors, conditions = found
    apart = np.abs(values - 1) > NEUTRAL
    order = [place for place in np.argsort(-np.abs(values)) if apart[place]][:k]
    values, vectors, conditions = values[order], vectors[:, order], conditions[order]
    residuals = np.linalg.norm(_times(matrix, vectors) - values * vectors, axis=0)
    return Multipliers(values, residuals, conditions * residuals, int(np.sum(~apart)), dense)


_Eigenpairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Values, vectors of unit length as columns, condition numbers."""


def _times(matrix: Products, vectors: np.ndarray) -> np.ndarray:
    """Products with complex columns."""
    parts = matrix.forward(np.vstack([np.real(vectors).T, np.imag(vectors).T]))
    return (parts[: vectors.shape[1]] + 1j * parts[vectors.shape[1] :]).T


def _all_of(matrix: Products) -> _Eigenpairs:
    dense = matrix.forward(np.eye(matrix.size)).T
    found: Any = scipy.linalg.eig(dense, left=True, right=True)
    values, left, right = found
    with np.errstate(divide="ignore"):
        conditions = 1 / np.abs(np.sum(left.conj() * right, axis=0))
    return values, right.astype(complex), conditions


def _some_of(matrix: Products, count: int, max_products: int, seed: int) -> _Eigenpairs:
    values, right = _arnoldi(matrix.forward, matrix.size, count, max_products, seed)
    others, left = _arnoldi(matrix.backward, matrix.size, count, max_products, seed)
    conditions = np.full(len(values), np.inf)
    for place in range(len(values) if len(others) else 0):
        near = int(np.argmin(np.abs(others - values[place])))
        overlap = abs(left[:, near] @ right[:, place])
        # The left vector of another eigenvalue is orthogonal, which gives no small number.
        conditions[place] = 1 / overlap if overlap > 0 else np.inf
    return values, right, conditions


def _arnoldi(
    product: Callable[[np.ndarray], np.ndarray], size: int, count: int, max_products: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of largest modulus that converged, with vectors of unit length."""
    space = min(2 * count + 8, size - 1)
    start = np.random.default_rng(seed).standard_normal(size)
    operator: Any = LinearOperator  # its stubs do not know the function
    operator = operator((size, size), lambda vector: product(vector.reshape(1, -1))[0], dtype=float)
    settings: Any = {
        "v0": start,
        "ncv": space,
        "maxiter": max((max_products - space) // (space - count), 1),
        "tol": 1e-12,
    }
    found: Any
    try:
        found = eigs(operator, count, **settings)
    except ArpackNoConvergence as error:
        found = error.eigenvalues, error.eigenvectors
    values, vectors = found
    return np.asarray(values, complex), np.asarray(vectors, complex).reshape(size, -1)
