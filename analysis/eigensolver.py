"""Largest eigenvalues of a symmetric operator, each with a residual from a fresh product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]

CHECK_EVERY = 2
"""Lanczos steps between two looks at the small matrix."""

FRESH_STEPS = 4
"""Steps that a new random direction is followed for before convergence is believed again."""


class Eigenpairs(NamedTuple):
    """The k largest eigenvalues, in descending order, and how far each can be trusted.

    Some eigenvalue of the operator lies within `residuals[i]` of `eigenvalues[i]` (Parlett, *The
    Symmetric Eigenvalue Problem*, Theorem 4.5.1). That none larger was missed is not proven: a
    start vector with hardly any share in an eigenvector cannot find it, and of eigenvalues closer
    together than about 100 `tol`, relative to the largest, one may be missed.

    Attributes:
        eigenvalues: Rayleigh quotients from fresh products; where not converged, Ritz values.
        eigenvectors: unit vectors, one per row.
        residuals: ‖A v - λ v‖ from fresh products.
        converged: whether the residual is at most `tol` times the largest |λ|.
        num_matvecs: products that were made, the fresh ones included.
    """

    eigenvalues: Float[Array, " k"]
    eigenvectors: Float[Array, "k n"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    num_matvecs: Int[Array, ""]


class _Krylov(NamedTuple):
    """An orthonormal basis and the tridiagonal matrix of the operator in it.

    Attributes:
        basis: rows 0..size are orthonormal (row `size` is the next direction), the others 0.
        diagonal: of the tridiagonal matrix; entries from `size` on are 0.
        off_diagonal: entry j couples rows j and j + 1; 0 where a new direction was begun.
        size: rows that were multiplied by the operator.
        fresh: steps since the last new direction.
        norm: largest ‖A q‖ seen, the scale of the operator.
        key: for new directions.
    """

    basis: Float[Array, "capacity_plus_1 n"]
    diagonal: Float[Array, " capacity"]
    off_diagonal: Float[Array, " capacity"]
    size: Int[Array, ""]
    fresh: Int[Array, ""]
    norm: Float[Array, ""]
    key: PRNGKeyArray


class _Progress(NamedTuple):
    """The loop's state: the basis, the Ritz vectors in it, whether to stop, and looks so far."""

    krylov: _Krylov
    coefficients: Float[Array, "capacity k"]
    converged: Bool[Array, ""]
    looks: Int[Array, ""]


def top_eigenpairs(
    matvec: Matvec,
    num_params: int,
    k: int,
    *,
    tol: float,
    max_matvecs: int,
    key: PRNGKeyArray,
    dtype: Any = float,
) -> Eigenpairs:
    """The k largest eigenvalues of a symmetric operator by the Lanczos method.

    Every new direction is orthogonalised twice against the whole basis; where the space of the
    start vector is exhausted, a random direction takes over. It stops when the bounds from the
    recurrence are met, and then judges by residuals from k fresh products. Traceable by JAX.

    Args:
        matvec: product with the operator.
        num_params: order n of the operator.
        k: number of eigenvalues.
        tol: largest residual that counts as converged, relative to the largest |λ| found.
        max_matvecs: products at most, the k fresh ones included.
        key: of the random start.
        dtype: of the vectors.

    Raises:
        ValueError: when k is not between 1 and n, or the products are too few.

    >>> matrix = jnp.diag(jnp.arange(50.0))
    >>> found = top_eigenpairs(
    ...     lambda v: matrix @ v, 50, 2, tol=1e-3, max_matvecs=60, key=jax.random.key(0)
    ... )
    >>> [round(float(value), 2) for value in found.eigenvalues], found.converged.tolist()
    ([49.0, 48.0], [True, True])
    """
    if not 1 <= k <= num_params:
        raise ValueError(f"k is {k}; expected 1 to {num_params}, the order of the operator")
    if max_matvecs < 2 * k:
        raise ValueError(f"max_matvecs is {max_matvecs}; expected at least 2 k = {2 * k}")
    capacity = min(num_params, max_matvecs - k)
    # The small matrix is looked at in these sizes; each has its own eigensolve, as one of full
    # capacity would cost as much as several products.
    sizes = [*range(2 * k + 4, capacity, CHECK_EVERY), capacity]
    looks = [partial(_look, size=size, k=k, tol=tol) for size in sizes]

    def unfinished(progress: _Progress) -> Bool[Array, ""]:
        return (progress.looks < len(sizes)) & ~progress.converged

    def extend(progress: _Progress) -> _Progress:
        count = jnp.array(sizes)[progress.looks] - progress.krylov.size
        krylov = jax.lax.fori_loop(0, count, lambda _, k: _expand(matvec, k), progress.krylov)
        coefficients, converged = jax.lax.switch(progress.looks, looks, krylov)
        return _Progress(krylov, coefficients, converged, progress.looks + 1)

    krylov = _start(num_params, capacity, key, dtype)
    nothing = jnp.zeros((capacity, k), jnp.result_type(krylov.basis, float))
    start = _Progress(krylov, nothing, jnp.array(False), jnp.int32(0))
    return _certify(matvec, jax.lax.while_loop(unfinished, extend, start), tol)


def _start(num_params: int, capacity: int, key: PRNGKeyArray, dtype: Any) -> _Krylov:
    key, start_key = jax.random.split(key)
    direction = jax.random.normal(start_key, (num_params,), dtype)
    basis = jnp.zeros((capacity + 1, num_params), dtype)
    zeros = jnp.zeros(capacity, dtype)
    return _Krylov(
        basis=basis.at[0].set(direction / jnp.linalg.norm(direction)),
        diagonal=zeros,
        off_diagonal=zeros,
        size=jnp.int32(0),
        fresh=jnp.int32(0),
        norm=jnp.zeros((), dtype),
        key=key,
    )


def _expand(matvec: Matvec, krylov: _Krylov) -> _Krylov:
    """One Lanczos step: multiplies the next direction and makes the one after it."""
    basis, size = krylov.basis, krylov.size
    product = matvec(basis[size])
    norm = jnp.maximum(krylov.norm, jnp.linalg.norm(product))
    rest, overlaps = _orthogonalise(product, basis)
    length = jnp.linalg.norm(rest)
    exhausted = length <= basis.shape[1] * jnp.finfo(basis.dtype).eps * norm
    key, direction_key = jax.random.split(krylov.key)
    direction = jax.lax.cond(
        exhausted,
        lambda: _random_direction(basis, direction_key),
        lambda: rest / jnp.where(exhausted, 1, length),
    )
    return _Krylov(
        basis=basis.at[size + 1].set(direction),
        diagonal=krylov.diagonal.at[size].set(overlaps[size]),
        off_diagonal=krylov.off_diagonal.at[size].set(jnp.where(exhausted, 0, length)),
        size=size + 1,
        fresh=jnp.where(exhausted, 0, krylov.fresh + 1),
        norm=norm,
        key=key,
    )


def _orthogonalise(
    vector: Float[Array, " n"], basis: Float[Array, "m n"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Two sweeps of Gram-Schmidt; twice is enough (Parlett, §6.9)."""
    first = basis @ vector
    vector = vector - first @ basis
    second = basis @ vector
    return vector - second @ basis, first + second


def _random_direction(basis: Float[Array, "m n"], key: PRNGKeyArray) -> Float[Array, " n"]:
    """A unit vector orthogonal to the basis; 0 when the basis fills the space."""
    vector = jax.random.normal(key, basis.shape[1:], basis.dtype)
    before = jnp.linalg.norm(vector)
    vector, _ = _orthogonalise(vector / before, basis)
    length = jnp.linalg.norm(vector)
    left = length > basis.shape[1] * jnp.finfo(basis.dtype).eps
    return jnp.where(left, vector / jnp.where(left, length, 1), 0)


def _look(
    krylov: _Krylov, *, size: int, k: int, tol: float
) -> tuple[Float[Array, "capacity k"], Bool[Array, ""]]:
    """The k largest Ritz vectors, in the basis, and whether their bounds |β s| are met.

    The bounds of the recurrence say when to stop, not what to report. The small matrix is treated
    in the best precision there is.
    """
    precise = jnp.result_type(krylov.basis, float)
    diagonal = krylov.diagonal[:size].astype(precise)
    inner = krylov.off_diagonal[: size - 1].astype(precise)
    matrix = jnp.diag(diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    bounds = jnp.abs(krylov.off_diagonal[size - 1] * vectors[-1])
    close = jnp.all(bounds <= 0.1 * tol * jnp.max(jnp.abs(values)))
    padding = ((0, len(krylov.diagonal) - size), (0, 0))
    return jnp.pad(vectors, padding), close & (krylov.fresh >= FRESH_STEPS)


def _certify(matvec: Matvec, progress: _Progress, tol: float) -> Eigenpairs:
    """Rayleigh quotients and residuals of the Ritz vectors, from fresh products."""
    basis = progress.krylov.basis
    vectors = progress.coefficients.T.astype(basis.dtype) @ basis[:-1]
    vectors = vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)
    products = jax.lax.map(matvec, vectors)
    values = jnp.sum(vectors * products, axis=1)
    residuals = jnp.linalg.norm(products - values[:, None] * vectors, axis=1)
    order = jnp.argsort(-values)
    values, vectors, residuals = values[order], vectors[order], residuals[order]
    return Eigenpairs(
        eigenvalues=values,
        eigenvectors=vectors,
        residuals=residuals,
        converged=residuals <= tol * jnp.max(jnp.abs(values)),
        num_matvecs=progress.krylov.size + len(values),
    )
