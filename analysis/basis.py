"""`Basis`: an orthonormal basis and its products with an operator, grown and rotated in place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.ritz import Matvec, orthogonalise, rounding

Operator = Callable[[], Matvec]
"""Makes the matvec while it is traced, so that what products share is computed once a call. A
`jax.tree_util.Partial`: what it holds are arguments of the compiled programs."""

NEW_SHARE = 0.1
"""A direction of which less than this is left after orthogonalisation is put off."""

_COLUMNS = 2**16
"""Columns of the basis that are rotated at a time, so that a restart needs no second basis."""


class Basis(NamedTuple):
    """Orthonormal vectors and their products, on the device. It is given up where it grows.

    Attributes:
        vectors: rows 0..size-1 are orthonormal, the others 0.
        products: the operator times each row.
        size: rows in use.
        matrix: the operator in the basis, vectors · productsᵀ.
        norm: largest ‖A q‖ seen.
    """

    vectors: Float[Array, "capacity n"]
    products: Float[Array, "capacity n"]
    size: Int[Array, ""]
    matrix: Float[Array, "capacity capacity"]
    norm: Float[Array, ""]


class Rows(NamedTuple):
    """Directions to add to a basis: each `coefficients · (products - shift vectors)`, or random.

    One of which `share` or less is left after orthogonalisation is put off.
    """

    coefficients: Float[np.ndarray, "rows size"]
    shifts: Float[np.ndarray, " rows"]
    random: bool = False
    share: float = NEW_SHARE


def start_basis(
    operator: Operator,
    num_params: int,
    capacity: int,
    initial_vectors: Array | None,
    key: PRNGKeyArray,
    dtype: Any,
) -> Basis:
    """A basis of the initial vectors and a random one, with their products."""
    zeros = jnp.zeros((capacity, num_params), dtype)
    small = jnp.zeros((capacity, capacity), dtype)
    basis = Basis(zeros, jnp.zeros_like(zeros), jnp.int32(0), small, jnp.zeros((), dtype))
    if initial_vectors is not None:
        block = jnp.asarray(initial_vectors, dtype)[: capacity - 1]
        basis = _grow_by_block(operator, basis, block)
    drawn = Rows(np.zeros((1, 0)), np.zeros(1), random=True, share=0.0)
    return grow(operator, basis, drawn, 1, key)[0]


def grow(
    operator: Operator, basis: Basis, rows: Rows, most: int, key: PRNGKeyArray
) -> tuple[Basis, int]:
    """The basis with the directions added that are new to it, and how many: `most` at most."""
    capacity, before = len(basis.vectors), int(basis.size)
    wanted, size = rows.coefficients.shape
    dtype = basis.vectors.dtype
    # Padded, so that one compilation serves every number of directions.
    coefficients, shifts = np.zeros((capacity, capacity), dtype), np.zeros(capacity, dtype)
    coefficients[:wanted, :size] = rows.coefficients
    shifts[:wanted] = rows.shifts
    count = min(wanted, most)
    drawn = (rows.random, rows.share, key)
    basis = _grow_by_rows(operator, basis, coefficients, shifts, count, *drawn)
    return basis, int(basis.size) - before


@partial(jax.jit, donate_argnames="basis")
def _grow_by_rows(
    operator: Operator,
    basis: Basis,
    coefficients: Float[Array, "capacity capacity"],
    shifts: Float[Array, " capacity"],
    count: Int[Array, ""],
    random: Bool[Array, ""],
    share: Float[Array, ""],
    key: PRNGKeyArray,
) -> Basis:
    matvec = operator()

    def add(i: Array, basis: Basis) -> Basis:
        of_products = coefficients[i] @ basis.products
        candidate = of_products - shifts[i] * (coefficients[i] @ basis.vectors)
        drawn = lambda: jax.random.normal(key, candidate.shape, candidate.dtype)  # noqa: E731
        length = jnp.where(random, jnp.sqrt(1.0 * candidate.size), basis.norm)
        floor = rounding(candidate.size, candidate.dtype) * length
        return _insert(matvec, basis, jax.lax.cond(random, drawn, lambda: candidate), floor, share)

    return jax.lax.fori_loop(0, count, add, basis)


@partial(jax.jit, donate_argnames="basis")
def _grow_by_block(operator: Operator, basis: Basis, block: Float[Array, "rows n"]) -> Basis:
    matvec = operator()
    add = lambda i, basis: _insert(matvec, basis, block[i], 0, NEW_SHARE)  # noqa: E731
    return jax.lax.fori_loop(0, len(block), add, basis)


def _insert(
    matvec: Matvec,
    basis: Basis,
    candidate: Float[Array, " n"],
    floor: Array | float,
    share: Array | float,
) -> Basis:
    """Adds a direction and its product, unless what is new of it is noise or too small a share."""
    length = jnp.linalg.norm(candidate)
    rest, _ = orthogonalise(candidate / jnp.where(length > 0, length, 1), basis.vectors)
    left = jnp.linalg.norm(rest)
    new = (left > share) & (left * length > floor) & (basis.size < len(basis.vectors))
    direction = jnp.where(new, rest / jnp.where(new, left, 1), 0)
    product = jax.lax.cond(new, matvec, jnp.zeros_like, direction)
    # A row of zeros is written where nothing is added, over zeros.
    vectors = basis.vectors.at[basis.size].set(direction, mode="drop")
    products = basis.products.at[basis.size].set(product, mode="drop")
    # One column and one row: measuring the whole matrix anew costs as much as a product.
    matrix = basis.matrix.at[:, basis.size].set(vectors @ product, mode="drop")
    return basis._replace(
        vectors=vectors,
        products=products,
        size=basis.size + new,
        matrix=matrix.at[basis.size].set(products @ direction, mode="drop"),
        norm=jnp.maximum(basis.norm, jnp.linalg.norm(product)),
    )


@partial(jax.jit, donate_argnames="basis")
def rotate(basis: Basis, rotation: Float[Array, "capacity capacity"]) -> Basis:
    """Both arrays rotated in place, some columns at a time."""
    num_params = basis.vectors.shape[1]
    whole = num_params // _COLUMNS

    def rotate(array: Float[Array, "capacity n"]) -> Float[Array, "capacity n"]:
        def some(i: Array, array: Array) -> Array:
            columns = jax.lax.dynamic_slice_in_dim(array, i * _COLUMNS, _COLUMNS, axis=1)
            return jax.lax.dynamic_update_slice(array, rotation @ columns, (0, i * _COLUMNS))

        if whole:
            array = jax.lax.fori_loop(0, whole, some, array)
        return array.at[:, whole * _COLUMNS :].set(rotation @ array[:, whole * _COLUMNS :])

    vectors, products = rotate(basis.vectors), rotate(basis.products)
    return basis._replace(vectors=vectors, products=products, matrix=vectors @ products.T)


@jax.jit
def combine(vectors: Float[Array, "capacity n"], coefficients: Array) -> Float[Array, "rows n"]:
    """Linear combinations of the vectors."""
    return coefficients.astype(vectors.dtype) @ vectors


def asymmetry(basis: Basis) -> float:
    """Largest difference of two entries that are equal for a symmetric operator."""
    matrix = np.asarray(basis.matrix, np.float64)
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(matrix - matrix.T)))
