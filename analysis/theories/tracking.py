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

SWEEPS = 6
"""Times at most that the residuals of all vectors join the basis."""


class Tracked(NamedTuple):
    """Ritz pairs, largest value first.

    Attributes:
        values: Ritz values.
        vectors: orthonormal, one per row.
        products: of the operator with them.
        residuals: ‖A v - λ v‖.
        num_products: that were made.
    """

    values: Float[Array, " rows"]
    vectors: Rows
    products: Rows
    residuals: Float[Array, " rows"]
    num_products: Int[Array, ""]


class _Basis(NamedTuple):
    """Orthonormal rows, those not yet used 0, with their products, and the best pairs in them.

    Attributes:
        rows: the basis.
        products: of the operator with it.
        matrix: their inner products.
        best: Ritz pairs.
        size: rows that are used.
    """

    rows: Rows
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
    """Ritz pairs in the block Krylov space of some vectors that nearly are eigenvectors.

    The residuals of all rows join the basis until those of the wanted ones are small (the
    generalised Davidson method without a preconditioner; Morgan and Scott, SIAM J. Sci. Stat.
    Comput. 7, 1986, 817). Nothing shows that no larger eigenvalue was missed: the rows behind the
    wanted ones are there to meet it.

    Args:
        multiply: product with the operator, of all rows.
        start: the vectors, linearly independent.
        wanted: how many of the largest must have small residuals.
        tol: largest residual of these.
    """
    count, size = start.shape
    sweeps = min(SWEEPS, -(-size // count) - 1)
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
        added = _orthonormal(rest, basis.rows, floor)
        return _joined(*basis[:3], added, multiply(added), basis.size)

    return jax.lax.while_loop(unfinished, grown, begin).best


def _joined(
    rows: Rows, products: Rows, matrix: Array, added: Rows, images: Rows, size: Int[Array, ""]
) -> _Basis:
    """A basis with some more rows."""
    rows = jax.lax.dynamic_update_slice(rows, added, (size, 0))
    products = jax.lax.dynamic_update_slice(products, images, (size, 0))
    columns = rows @ images.T
    matrix = jax.lax.dynamic_update_slice(matrix, columns, (0, size))
    matrix = jax.lax.dynamic_update_slice(matrix, columns.T, (size, 0))
    made = size + len(added)
    return _Basis(rows, products, matrix, _best(rows, products, matrix, len(added), made), made)


def _orthonormal(rows: Rows, basis: Rows, floor: Array) -> Rows:
    """The rows made orthonormal to the basis and each other; 0 where nothing is left."""
    cleaned = rows
    for _ in range(2):
        cleaned = cleaned - (cleaned @ basis.T) @ basis
    done: list[Array] = []
    for index in range(len(rows)):
        row = cleaned[index]
        for _ in range(2):
            for other in done:
                row = row - (other @ row) * other
        length = jnp.linalg.norm(row)
        good = length > floor
        done.append(jnp.where(good, row / jnp.where(good, length, 1), 0))
    return jnp.stack(done)


def _best(rows: Rows, products: Rows, matrix: Array, count: int, made: Int[Array, ""]) -> Tracked:
    """Rayleigh and Ritz in the rows, of which those that are 0 get values below all others."""
    matrix = matrix.astype(jnp.result_type(float))
    scale = jnp.max(jnp.abs(matrix)) + jnp.finfo(matrix.dtype).tiny
    empty = jnp.sum(rows * rows, axis=1) < 0.5
    matrix = (matrix + matrix.T) / 2 - jnp.diag(jnp.where(empty, 3 * len(rows) * scale, 0))
    ascending, rotation = jnp.linalg.eigh(matrix)
    chosen = rotation[:, ::-1][:, :count].T.astype(rows.dtype)
    vectors, images = chosen @ rows, chosen @ products
    values = ascending[::-1][:count].astype(rows.dtype)
    residuals = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    return Tracked(values, vectors, images, residuals, made)
