"""Ritz pairs, and what the eigensolvers share: ends of a spectrum, signs of lost symmetry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Matvec = Callable[[Any], Any]


class Ends(NamedTuple):
    """How many eigenvalues are wanted from the top and from the bottom of the spectrum."""

    top: int
    bottom: int

    @property
    def total(self) -> int:
        """How many in all."""
        return self.top + self.bottom

    def indices(self, first: Array | int, size: int) -> Any:
        """Indices of the wanted values, largest first, in an array that ascends from `first` on."""
        indices = np.r_[size - 1 - np.arange(self.top), np.arange(self.bottom)[::-1]]
        return indices + (np.arange(self.total) >= self.top) * first


class RitzPairs(NamedTuple):
    """Ritz pairs, largest first; leading axes are those of the operators.

    Attributes:
        values: Rayleigh quotients.
        vectors: orthonormal, one per row: an array, or a pytree on the devices.
        residual_gram: inner products of the residuals A v - λ v.
        orthogonality: largest entry of |V Vᵀ - 1|.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        norm: largest ‖A v‖.
    """

    values: Float[np.ndarray, "*batch count"]
    vectors: Any
    residual_gram: Float[np.ndarray, "*batch count count"]
    orthogonality: Float[np.ndarray, "*batch"]
    asymmetry: Float[np.ndarray, "*batch"]
    norm: Float[np.ndarray, "*batch"]


def is_lost(asymmetry: ArrayLike, norm: ArrayLike, dtype: Any) -> Any:
    """Whether products prove nothing, so that more of them do not help either.

    The operator is then not symmetric, or smaller than the rounding of terms that cancel in it.
    `check_operator` has the same limit.
    """
    return asymmetry > float(np.finfo(dtype).eps) ** 0.4 * norm


class Algebra(NamedTuple):
    """Operations on whole vectors; all else works with small matrices on the host.

    Attributes:
        inner: inner products of rows with rows.
        combined: linear combinations of rows, by a matrix.
        residuals: rows minus as many others, each times a number.
        finite: whether all rows are finite.
    """

    inner: Callable[[Any, Any], np.ndarray]
    combined: Callable[[np.ndarray, Any], Any]
    residuals: Callable[[Any, np.ndarray, Any], Any]
    finite: Callable[[Any], np.ndarray]


_HOST = Algebra(
    lambda some, others: some @ np.swapaxes(others, -1, -2),
    np.matmul,
    lambda products, values, vectors: products - values[..., None] * vectors,
    lambda rows: np.all(np.isfinite(rows), axis=(-1, -2)),
)
"""NumPy arrays, one vector in each row; leading axes are those of the operators."""


def rayleigh_ritz(vectors: Any, products: Any, algebra: Algebra = _HOST) -> RitzPairs:
    """Ritz pairs in the span of vectors whose products with the operator are given.

    The vectors are orthonormal to the rounding of their type; the remaining overlaps are removed
    from them and from their products alike. NaN where one of them is not finite.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        gram = algebra.inner(vectors, vectors)
        finite = algebra.finite(vectors) & algebra.finite(products)
        independent = (_departure(gram) < 0.5) & finite
        usable = independent[..., None, None]
        unit = np.where(usable, gram, np.eye(gram.shape[-1]))
        inverse = np.linalg.inv(np.linalg.cholesky(unit))
        matrix = inverse @ algebra.inner(vectors, products) @ np.swapaxes(inverse, -1, -2)
        turned = np.swapaxes(matrix, -1, -2)
        values, rotation = np.linalg.eigh(np.where(usable, (matrix + turned) / 2, 0.0))
        values = values[..., ::-1]
        rotation = np.swapaxes(rotation[..., ::-1], -1, -2) @ inverse
        vectors, products = (algebra.combined(rotation, rows) for rows in (vectors, products))
        lengths = np.sqrt(np.diagonal(algebra.inner(products, products), axis1=-2, axis2=-1))
        residuals = algebra.residuals(products, values, vectors)
        nothing = np.where(independent, 0.0, np.nan)
        return RitzPairs(
            values + nothing[..., None],
            vectors,
            algebra.inner(residuals, residuals) + nothing[..., None, None],
            _departure(algebra.inner(vectors, vectors)),
            np.max(np.abs(np.where(usable, matrix - turned, 0.0)), axis=(-1, -2), initial=0.0),
            np.max(lengths, axis=-1, initial=0.0) + nothing,
        )


def _departure(gram: Float[np.ndarray, "*batch count count"]) -> Float[np.ndarray, "*batch"]:
    """Largest entry of |G - 1|."""
    return np.max(np.abs(gram - np.eye(gram.shape[-1])), axis=(-1, -2), initial=0.0)
