"""Leading eigenvectors of an operator that changes a little from call to call, compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.linalg.vectors import rounding

Rows = Float[Array, "rows n"]

_SWEEPS = 6
"""Largest number of times that the residuals of all vectors join the basis."""


class Tracked(NamedTuple):
    """Ritz pairs, largest value first.

    Attributes:
        values: Ritz values.
        vectors: orthonormal, one per row.
        products: products of the operator with them.
        residuals: ‖A v - λ v‖.
        num_products: number of products.
    """

    values: Float[Array, " rows"]
    vectors: Rows
    products: Rows
    residuals: Float[Array, " rows"]
    num_products: Int[Array, ""]


class _Basis(NamedTuple):
    """An orthonormal basis, its unused rows being 0, with products and the best Ritz pairs.

    Attributes:
        vectors: the basis.
        products: products of the operator with it.
        matrix: inner products of both.
        best: Ritz pairs.
        size: number of rows in use.
    """

    vectors: Rows
    products: Rows
    matrix: Float[Array, "rows rows"]
    best: Tracked
    size: Int[Array, ""]


def track(
    multiply: Callable[[Rows], Rows],
    start: Rows,
    wanted: int,
    tol: Float[Array | np.ndarray, ""],
) -> Tracked:
    """Ritz pairs in the block Krylov space of some approximate eigenvectors.

    The residuals of all rows join the basis until those of the wanted ones are small (the
    generalised Davidson method without a preconditioner; Morgan and Scott, SIAM J. Sci. Stat.
    Comput. 7, 1986, 817). Nothing proves that no larger eigenvalue was missed: the rows behind the
    wanted ones are there to detect it.

    Args:
        multiply: product of the operator with all rows.
        start: the vectors, linearly independent.
        wanted: how many of the largest must have small residuals.
        tol: largest residual of these.
    """
    count, size = start.shape
    sweeps = min(_SWEEPS, -(-size // count) - 1)
    capacity = count * (sweeps + 1)
    first = _orthonormal(start, jnp.zeros((0, size), start.dtype), jnp.zeros((), start.dtype))
    empty = jnp.zeros((capacity, size), start.dtype)
    matrix = jnp.zeros((capacity, capacity), start.dtype)
    begin = _joined(empty, empty, matrix, first, multiply(first), jnp.asarray(0))

    def unfinished(basis: _Basis) -> Bool[Array, ""]:
        left = jnp.any(basis.best.residuals[:wanted] > tol)
        return left & (basis.size < capacity)

    def grown(basis: _Basis) -> _Basis:
        best = basis.best
        rest = best.products - best.values[:, None] * best.vectors
        floor = rounding(size, rest.dtype) * jnp.max(jnp.linalg.norm(best.products, axis=1))
        added = _orthonormal(rest, basis.vectors, floor)
        return _joined(*basis[:3], added, multiply(added), basis.size)

    return jax.lax.while_loop(unfinished, grown, begin).best


def _joined(
    vectors: Rows, products: Rows, matrix: Array, added: Rows, images: Rows, size: Int[Array, ""]
) -> _Basis:
    """A basis with some more rows."""
    vectors = jax.lax.dynamic_update_slice(vectors, added, (size, 0))
    products = jax.lax.dynamic_update_slice(products, images, (size, 0))
    columns = vectors @ images.T
    matrix = jax.lax.dynamic_update_slice(matrix, columns, (0, size))
    matrix = jax.lax.dynamic_update_slice(matrix, columns.T, (size, 0))
    size = size + len(added)
    best = _best(vectors, products, matrix, len(added), size)
    return _Basis(vectors, products, matrix, best, size)


def _orthonormal(vectors: Rows, basis: Rows, floor: Array) -> Rows:
    """The rows made orthonormal to the basis and each other; 0 where nothing is left."""
    cleaned = vectors
    for _ in range(2):
        cleaned = cleaned - (cleaned @ basis.T) @ basis
    done: list[Array] = []
    for index in range(len(vectors)):
        vector = cleaned[index]
        for _ in range(2):
            for other in done:
                vector = vector - (other @ vector) * other
        length = jnp.linalg.norm(vector)
        good = length > floor
        done.append(jnp.where(good, vector / jnp.where(good, length, 1), 0))
    return jnp.stack(done)


def _best(basis: Rows, products: Rows, matrix: Array, count: int, size: Int[Array, ""]) -> Tracked:
    """The Rayleigh-Ritz method in the basis, whose zero rows get values below all others."""
    matrix = matrix.astype(jnp.result_type(float))
    scale = jnp.max(jnp.abs(matrix)) + jnp.finfo(matrix.dtype).tiny
    empty = jnp.sum(basis * basis, axis=1) < 0.5
    matrix = (matrix + matrix.T) / 2 - jnp.diag(jnp.where(empty, 3 * len(basis) * scale, 0))
    ascending, rotation = jnp.linalg.eigh(matrix)
    chosen = rotation[:, ::-1][:, :count].T.astype(basis.dtype)
    vectors, images = chosen @ basis, chosen @ products
    values = ascending[::-1][:count].astype(basis.dtype)
    residuals = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    return Tracked(values, vectors, images, residuals, size)
