"""Ritz pairs, and what the eigensolvers share: ends of a spectrum, rounding, orthogonalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]


class Ends(NamedTuple):
    """How many eigenvalues are wanted from the top and from the bottom of the spectrum."""

    top: int
    bottom: int

    @property
    def total(self) -> int:
        """How many in all."""
        return self.top + self.bottom

    def places(self, first: Array | int, size: int) -> Array:
        """Of the wanted ones, largest first, in an ascending array used from `first` on."""
        top = size - 1 - np.arange(self.top)
        bottom = first + np.arange(self.bottom)[::-1]
        return jnp.concatenate([jnp.asarray(part, jnp.int32) for part in (top, bottom)])


class RitzPairs(NamedTuple):
    """Ritz pairs in float64, largest first; leading axes are those of the operators.

    Attributes:
        values: Rayleigh quotients.
        vectors: orthonormal, one per row.
        residual_gram: inner products of the residuals A v - λ v.
        orthogonality: largest entry of |V Vᵀ - 1|.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        norm: largest ‖A v‖.
    """

    values: Float[np.ndarray, "*batch count"]
    vectors: Float[np.ndarray, "*batch count n"]
    residual_gram: Float[np.ndarray, "*batch count count"]
    orthogonality: Float[np.ndarray, "*batch"]
    asymmetry: Float[np.ndarray, "*batch"]
    norm: Float[np.ndarray, "*batch"]


def rounding(num_params: int, dtype: Any) -> float:
    """Of a product and of inner products of n terms, as it adds up in practice; relative."""
    return float(np.finfo(dtype).eps) * (4 + num_params**0.5)


def is_lost(asymmetry: ArrayLike, norm: ArrayLike, dtype: Any) -> Any:
    """Whether products prove nothing, so that more of them do not help either.

    They are then not those of a symmetric operator, or of one that is smaller than the rounding of
    the terms that cancel in it. `check_operator` has the same limit.
    """
    return asymmetry > float(np.finfo(dtype).eps) ** 0.4 * norm


def orthogonalise(
    vector: Float[Array, " n"], basis: Float[Array, "m n"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Two sweeps of Gram-Schmidt; twice is enough (Parlett, §6.9)."""
    first = basis @ vector
    vector = vector - first @ basis
    second = basis @ vector
    return vector - second @ basis, first + second


def unit_outside(vector: Float[Array, " n"], basis: Float[Array, "m n"]) -> Float[Array, " n"]:
    """What of a vector is orthogonal to the basis, at unit length; 0 when that is only rounding."""
    vector, _ = orthogonalise(vector / jnp.linalg.norm(vector), basis)
    length = jnp.linalg.norm(vector)
    left = length > rounding(basis.shape[1], basis.dtype)
    vector = jnp.where(left, vector / jnp.where(left, length, 1), 0)
    # What is left of a vector that lay almost in the basis is orthogonal only to rounding.
    vector, _ = orthogonalise(vector, basis)
    return vector / jnp.where(left, jnp.linalg.norm(vector), 1)


def rayleigh_ritz(
    vectors: Float[Array | np.ndarray, "*batch count n"],
    products: Float[Array | np.ndarray, "*batch count n"],
) -> RitzPairs:
    """Ritz pairs, in float64, in the span of vectors whose products with the operator are given.

    The vectors are orthonormal to the rounding of their own type; what is left of that is taken out
    of them and of their products alike. NaN where one of them is not finite.
    """
    vectors, products = np.asarray(vectors, float), np.asarray(products, float)
    gram = vectors @ np.swapaxes(vectors, -1, -2)
    bad = ~np.all(np.isfinite(vectors) & np.isfinite(products), axis=(-1, -2), keepdims=True)
    independent = _departure(gram)[..., None, None] < 0.5
    inverse = np.linalg.inv(np.linalg.cholesky(np.where(independent, gram, np.eye(gram.shape[-1]))))
    vectors, products = inverse @ vectors, inverse @ np.where(bad, 0.0, products)
    matrix = vectors @ np.swapaxes(products, -1, -2)
    turned = np.swapaxes(matrix, -1, -2)
    values, rotation = np.linalg.eigh(np.where(independent, (matrix + turned) / 2, 0.0))
    values, rotation = values[..., ::-1], np.swapaxes(rotation[..., ::-1], -1, -2)
    vectors, products = rotation @ vectors, rotation @ products
    residuals = products - values[..., None] * vectors
    nothing = np.where(bad | ~independent, np.nan, 0.0)
    return RitzPairs(
        values + nothing[..., 0],
        vectors,
        residuals @ np.swapaxes(residuals, -1, -2) + nothing,
        _departure(vectors @ np.swapaxes(vectors, -1, -2)),
        np.max(np.abs(matrix - turned), axis=(-1, -2), initial=0.0),
        np.max(np.linalg.norm(products, axis=-1), axis=-1, initial=0.0) + nothing[..., 0, 0],
    )


def _departure(gram: Float[np.ndarray, "*batch count count"]) -> Float[np.ndarray, "*batch"]:
    """Largest entry of |G - 1|."""
    return np.max(np.abs(gram - np.eye(gram.shape[-1])), axis=(-1, -2), initial=0.0)
