"""Ritz pairs, and what the two eigensolvers share: orthogonalisation, steps of a guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]

LEAST_GUARD = 4
"""Steps that the guard is followed for at least."""

GUARD_GROWTH = 10
"""A missed eigenvector with this part of its typical share in the guard still stands out."""


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
    """Ritz pairs, largest first, and what is known of them.

    Attributes:
        values: Rayleigh quotients from fresh products.
        vectors: orthonormal, one per row.
        residual_gram: inner products of the residuals A v - λ v of fresh products.
        guarded: whether the guard was followed far enough to exclude, but for bad luck, that an
            eigenvalue further out was missed.
        orthogonality: largest entry of |V Vᵀ - 1|.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        norm: largest ‖A q‖ of a unit vector that was seen.
        num_matvecs: products that were made, the fresh ones included.
    """

    values: Float[Array, " count"]
    vectors: Float[Array, "count n"]
    residual_gram: Float[Array, "count count"]
    guarded: Bool[Array, " count"]
    orthogonality: Float[Array, ""]
    asymmetry: Float[Array, ""]
    norm: Float[Array, ""]
    num_matvecs: Int[Array, ""]


def rounding(num_params: int, dtype: Any) -> float:
    """Of a product and of inner products of n terms, as it adds up in practice; relative."""
    return float(np.finfo(dtype).eps) * (4 + num_params**0.5)


def is_lost(asymmetry: ArrayLike, norm: Array | np.ndarray) -> Array | np.ndarray:
    """Whether products prove nothing, so that more of them do not help either.

    They are then not those of a symmetric operator, or of one that is smaller than the rounding of
    the terms that cancel in it. `check_operator` has the same limit.
    """
    return asymmetry > np.finfo(norm.dtype).eps ** 0.4 * norm


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


def rayleigh_ritz(vectors: Float[Array, "count n"], products: Float[Array, "count n"]) -> RitzPairs:
    """Ritz pairs in the span of orthonormal vectors whose products with the operator are given."""
    matrix = vectors @ products.T
    precise = ((matrix + matrix.T) / 2).astype(jnp.result_type(float))
    values, rotation = jnp.linalg.eigh(precise, symmetrize_input=False)
    values, rotation = values[::-1].astype(matrix.dtype), rotation[:, ::-1].astype(matrix.dtype)
    vectors, products = rotation.T @ vectors, rotation.T @ products
    residuals = products - values[:, None] * vectors
    return RitzPairs(
        values=values,
        vectors=vectors,
        residual_gram=residuals @ residuals.T,
        guarded=jnp.zeros(len(values), bool),
        orthogonality=jnp.max(jnp.abs(vectors @ vectors.T - jnp.eye(len(values)))),
        asymmetry=jnp.max(jnp.abs(matrix - matrix.T)),
        norm=jnp.max(jnp.linalg.norm(products, axis=1)),
        num_matvecs=jnp.int32(len(values)),
    )


def guard_steps(
    above: Float[Array | np.ndarray, " top"],
    below: Float[Array | np.ndarray, " bottom"],
    rest: Float[Array | np.ndarray, " 2"],
    num_params: int,
) -> Float[Array, " count"]:
    """Steps after which a missed eigenvector of each wanted value would stand out of a guard.

    On the interval of the values that are not wanted the Chebyshev polynomial of degree m stays
    below 1; at the wanted value it must grow to `GUARD_GROWTH` √n, as 1/√n is a typical share and
    one in twelve is less than a tenth of it.

    Args:
        above: wanted values at the top.
        below: wanted values at the bottom.
        rest: least and largest of the others; NaN where there are none.
        num_params: order n.
    """
    low, high = rest
    distance = jnp.concatenate([above - high, low - below]) / (high - low)
    growth = jnp.arccosh(1 + 2 * jnp.nan_to_num(distance, nan=1e30, posinf=1e30))
    return jnp.arccosh(GUARD_GROWTH * jnp.sqrt(1.0 * num_params)) / growth


def in_place(left_alone: Bool[Array, " count"], ends: Ends) -> Bool[Array, " count"]:
    """Which values kept their place: none further out moved, which would shift those within."""
    top, bottom = left_alone[: ends.top], left_alone[ends.top :]
    return jnp.concatenate([jnp.cumprod(top), jnp.cumprod(bottom[::-1])[::-1]]) > 0
