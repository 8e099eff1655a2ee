"""The Lanczos method as one compiled pass, to be mapped over the operators of many checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

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

    def pick(self, ascending: Array, axis: int = 0) -> Array:
        """The wanted entries along an axis, largest first."""
        size = ascending.shape[axis]
        order = [size - 1 - i for i in range(self.top)] + list(range(self.bottom))[::-1]
        return ascending.take(np.array(order, int), axis)


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


class _Krylov(NamedTuple):
    """An orthonormal basis of one or more Krylov chains, and the operator in it.

    Attributes:
        basis: rows 0..size are orthonormal (row `size` is the next direction), the others 0.
        matrix: upper triangle of the operator in the basis, as its products gave it.
        outside: norm of the part of each A q that no later row of the chain took up.
        size: rows that were multiplied by the operator.
        length: rows of the last chain so far.
        longest: rows of the longest chain before it.
        ended: whether a chain was exhausted since the guard was begun.
        asymmetry: largest difference of two entries that should be equal.
        norm: largest ‖A q‖ seen, the scale of the operator.
        key: for new directions.
    """

    basis: Float[Array, "capacity_plus_1 n"]
    matrix: Float[Array, "capacity capacity"]
    outside: Float[Array, " capacity"]
    size: Int[Array, ""]
    length: Int[Array, ""]
    longest: Int[Array, ""]
    ended: Bool[Array, ""]
    asymmetry: Float[Array, ""]
    norm: Float[Array, ""]
    key: PRNGKeyArray


class _Look(NamedTuple):
    """What the small matrix tells.

    Attributes:
        values: the wanted Ritz values.
        coefficients: their vectors in the basis.
        radii: bounds of their errors.
        met: whether those are small enough.
        guard_steps: how far a guard must be followed for each.
    """

    values: Float[Array, " count"]
    coefficients: Float[Array, "capacity count"]
    radii: Float[Array, " count"]
    met: Bool[Array, " count"]
    guard_steps: Float[Array, " count"]


class _Progress(NamedTuple):
    """The loop's state.

    Attributes:
        krylov: the basis.
        look: what was seen last.
        known: what was seen when the guard was begun; values NaN before.
        wait: steps before it is worth while to look again.
        looks: place of the next look.
        done: whether to stop.
    """

    krylov: _Krylov
    look: _Look
    known: _Look
    wait: Int[Array, ""]
    looks: Int[Array, ""]
    done: Bool[Array, ""]


def lanczos(
    matvec: Matvec,
    num_params: int,
    ends: Ends,
    *,
    tol: float,
    max_matvecs: int,
    key: PRNGKeyArray,
    dtype: Any = float,
) -> RitzPairs:
    """Extreme eigenvalues of a symmetric operator, in one pass that JAX can trace.

    Every new direction is orthogonalised twice against the whole basis; where a Krylov chain is
    exhausted, a random direction begins another. When the bounds of the wanted values are met, a
    random direction always begins another, the guard: it finds the other copies of a repeated
    eigenvalue, of which a chain sees one. It is followed until an eigenvector of a wanted
    eigenvalue, with a typical share of 1/√n in it, would stand out by the growth of the Chebyshev
    polynomial (Saad, *Numerical Methods for Large Eigenvalue Problems*, §6.6), but no longer than
    the first chain. If it changed a wanted value, a new guard follows.

    Args:
        matvec: product with the operator.
        num_params: order n of the operator.
        ends: how many eigenvalues.
        tol: largest residual aimed at, relative to the operator's norm.
        max_matvecs: products at most, the fresh ones included.
        key: of the random directions.
        dtype: of the vectors.
    """
    capacity = min(num_params, max_matvecs - ends.total)
    sizes = look_sizes(ends.total, capacity)
    looks = [partial(_look, size=size, ends=ends, tol=tol) for size in sizes]

    def extend(progress: _Progress) -> _Progress:
        # While a guard is followed, there is nothing to see before it was followed far enough.
        size = progress.krylov.size
        target = jnp.maximum(size + progress.wait, jnp.array(sizes)[progress.looks])
        place = jnp.minimum(jnp.searchsorted(jnp.array(sizes), target), len(sizes) - 1)
        count = jnp.array(sizes)[place] - size
        krylov = jax.lax.fori_loop(0, count, lambda _, k: _expand(matvec, k), progress.krylov)
        look = jax.lax.switch(place, looks, krylov)
        return _decide(progress, krylov, look, place + 1, capacity, ends)

    krylov = _start(num_params, capacity, key, dtype)
    precise = jnp.result_type(float)
    empty = jnp.zeros(ends.total, precise)
    coefficients = jnp.zeros((capacity, ends.total), precise)
    nothing = _Look(empty, coefficients, empty, empty > 0, empty)
    no = jnp.int32(0)
    unknown = nothing._replace(values=empty + jnp.nan)
    start = _Progress(krylov, nothing, unknown, no, no, jnp.array(False))
    unfinished = lambda progress: (progress.looks < len(sizes)) & ~progress.done  # noqa: E731
    return _certify(matvec, jax.lax.while_loop(unfinished, extend, start), ends)


def look_sizes(count: int, capacity: int) -> list[int]:
    """Sizes of the basis at which the small matrix is looked at.

    Each has its own eigensolve, as one of full capacity would cost as much as several products.
    """
    sizes, size = [], 2 * count + 4
    while size < capacity:
        sizes.append(size)
        size += max(2, size // 12)
    return [*sizes, capacity]


def _start(num_params: int, capacity: int, key: PRNGKeyArray, dtype: Any) -> _Krylov:
    key, start_key = jax.random.split(key)
    direction = jax.random.normal(start_key, (num_params,), dtype)
    basis = jnp.zeros((capacity + 1, num_params), dtype)
    return _Krylov(
        basis=basis.at[0].set(direction / jnp.linalg.norm(direction)),
        matrix=jnp.zeros((capacity, capacity), dtype),
        outside=jnp.zeros(capacity, dtype),
        size=jnp.int32(0),
        length=jnp.int32(0),
        longest=jnp.int32(0),
        ended=jnp.array(False),
        asymmetry=jnp.zeros((), dtype),
        norm=jnp.zeros((), dtype),
        key=key,
    )


def _expand(matvec: Matvec, krylov: _Krylov) -> _Krylov:
    """One Lanczos step: multiplies the next direction and makes the one after it."""
    basis, size = krylov.basis, krylov.size
    product = matvec(basis[size])
    norm = jnp.maximum(krylov.norm, jnp.linalg.norm(product))
    rest, overlaps = orthogonalise(product, basis)
    overlaps = overlaps[:-1]
    remaining = jnp.linalg.norm(rest)
    exhausted = remaining <= rounding(basis.shape[1], basis.dtype) * norm
    key, direction_key = jax.random.split(krylov.key)
    direction = jax.lax.cond(
        exhausted,
        lambda: random_direction(basis, direction_key),
        lambda: rest / jnp.where(exhausted, 1, remaining),
    )
    # What stuck out of the row before was taken up by this one, if it is of the same chain.
    continued = krylov.length > 0
    before = krylov.outside[size - 1]
    outside = krylov.outside.at[size - 1].set(jnp.where(continued, 0, before))
    length = krylov.length + 1
    return krylov._replace(
        basis=basis.at[size + 1].set(direction),
        matrix=krylov.matrix.at[:, size].set(overlaps),
        outside=outside.at[size].set(remaining),
        size=size + 1,
        length=jnp.where(exhausted, 0, length),
        longest=jnp.where(exhausted, jnp.maximum(krylov.longest, length), krylov.longest),
        ended=krylov.ended | exhausted,
        asymmetry=jnp.maximum(
            krylov.asymmetry, _asymmetry(overlaps, outside, size, jnp.where(continued, before, 0))
        ),
        norm=norm,
        key=key,
    )


def _asymmetry(overlaps: Array, outside: Array, size: Array, before: Array) -> Array:
    """Difference of a new column from the row that the earlier products tell of it.

    Rows whose own product sticks out of the basis tell nothing.
    """
    index = jnp.arange(len(overlaps))
    expected = jnp.where(index == size - 1, before, 0)
    told = (index < size) & (outside == 0)
    return jnp.max(jnp.where(told, jnp.abs(overlaps - expected), 0))


def rounding(num_params: int, dtype: Any) -> float:
    """Of a product and of inner products of n terms, as it adds up in practice; relative."""
    return float(np.finfo(dtype).eps) * (4 + num_params**0.5)


def orthogonalise(
    vector: Float[Array, " n"], basis: Float[Array, "m n"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """Two sweeps of Gram-Schmidt; twice is enough (Parlett, §6.9)."""
    first = basis @ vector
    vector = vector - first @ basis
    second = basis @ vector
    return vector - second @ basis, first + second


def random_direction(basis: Float[Array, "m n"], key: PRNGKeyArray) -> Float[Array, " n"]:
    """A unit vector orthogonal to the basis; 0 when the basis fills the space."""
    vector = jax.random.normal(key, basis.shape[1:], basis.dtype)
    vector, _ = orthogonalise(vector / jnp.linalg.norm(vector), basis)
    length = jnp.linalg.norm(vector)
    left = length > rounding(basis.shape[1], basis.dtype)
    vector = jnp.where(left, vector / jnp.where(left, length, 1), 0)
    # What is left of a vector that lay almost in the basis is orthogonal only to rounding.
    vector, _ = orthogonalise(vector, basis)
    return vector / jnp.where(left, jnp.linalg.norm(vector), 1)


def _look(krylov: _Krylov, *, size: int, ends: Ends, tol: float) -> _Look:
    """Ritz pairs of the small matrix, which is treated in the best precision there is.

    The bounds of the recurrence say when to stop, not what to report.
    """
    precise = jnp.result_type(float)
    upper = jnp.triu(krylov.matrix[:size, :size].astype(precise))
    matrix = upper + jnp.triu(upper, 1).T
    ascending, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    values, coefficients = ends.pick(ascending), ends.pick(vectors, axis=1)
    bounds = krylov.outside[:size].astype(precise) @ jnp.abs(vectors)
    noise = rounding(krylov.basis.shape[1], krylov.basis.dtype) * krylov.norm
    return _Look(
        values=values,
        coefficients=jnp.pad(coefficients, ((0, len(krylov.outside) - size), (0, 0))),
        radii=ends.pick(bounds) + noise,
        met=ends.pick(bounds) <= 0.1 * tol * krylov.norm,
        guard_steps=guard_steps(ascending, ends, krylov.basis.shape[1]),
    )


def guard_steps(
    ascending: Float[Array, " size"], ends: Ends, num_params: int
) -> Float[Array, " count"]:
    """Steps after which a missed eigenvector of each wanted value would stand out of a guard.

    On the interval of the values that are not wanted the Chebyshev polynomial of degree m stays
    below 1; at the wanted value it must grow to `GUARD_GROWTH` √n, as 1/√n is a typical share and
    one in twelve is less than a tenth of it.
    """
    low, high = ends.bottom, len(ascending) - 1 - ends.top
    if low > high:
        return jnp.zeros(ends.total)
    above = ends.pick(ascending)[: ends.top] - ascending[high]
    below = ascending[low] - ends.pick(ascending)[ends.top :]
    distance = jnp.concatenate([above, below]) / (ascending[high] - ascending[low])
    growth = jnp.arccosh(1 + 2 * jnp.nan_to_num(distance, posinf=1e30))
    return jnp.arccosh(GUARD_GROWTH * jnp.sqrt(1.0 * num_params)) / growth


def _decide(
    progress: _Progress, krylov: _Krylov, look: _Look, looks: Array, capacity: int, ends: Ends
) -> _Progress:
    """Goes on, begins a guard, or stops."""
    done = jnp.all(look.met & _guarded(krylov, look, progress.known, ends))
    moved = ~_left_alone(look, progress.known)
    # A budget that is nearly spent keeps a rest for the guard of the values that are there.
    late = (
        (krylov.size >= 0.7 * capacity)
        & jnp.any(look.met)
        & jnp.all(jnp.isnan(progress.known.values))
    )
    begin = ~done & ((jnp.all(look.met) & jnp.any(moved)) | late)
    krylov = jax.lax.cond(begin, _begin_guard, lambda krylov: krylov, krylov)
    known = jax.tree.map(lambda new, old: jnp.where(begin, new, old), look, progress.known)
    wait = jnp.where(begin, jnp.max(_steps_enough(krylov, look)), 0).astype(jnp.int32)
    return _Progress(krylov, look, known, wait, looks, done)


def _left_alone(look: _Look, known: _Look) -> Bool[Array, " count"]:
    """Which values are where they were thought to be when the guard was begun."""
    return jnp.abs(look.values - known.values) <= known.radii


def in_place(left_alone: Bool[Array, " count"], ends: Ends) -> Bool[Array, " count"]:
    """Which values kept their place: none further out moved, which would shift those within."""
    top, bottom = left_alone[: ends.top], left_alone[ends.top :]
    return jnp.concatenate([jnp.cumprod(top), jnp.cumprod(bottom[::-1])[::-1]]) > 0


def _guarded(krylov: _Krylov, look: _Look, known: _Look, ends: Ends) -> Bool[Array, " count"]:
    """Whether the guard left a value as it was, and was followed far enough or to its end.

    A random chain that ends by itself has met every eigenvalue outside the basis.
    """
    full = krylov.size == krylov.basis.shape[1]
    followed = krylov.ended | (krylov.length >= _steps_enough(krylov, look))
    return full | (in_place(_left_alone(look, known), ends) & followed)


def _steps_enough(krylov: _Krylov, look: _Look) -> Float[Array, " count"]:
    longest = krylov.longest.astype(look.guard_steps.dtype)
    return jnp.ceil(jnp.maximum(jnp.minimum(look.guard_steps, longest), LEAST_GUARD))


def _begin_guard(krylov: _Krylov) -> _Krylov:
    key, direction_key = jax.random.split(krylov.key)
    basis = krylov.basis.at[krylov.size].set(0)
    return krylov._replace(
        basis=basis.at[krylov.size].set(random_direction(basis, direction_key)),
        length=jnp.int32(0),
        longest=jnp.maximum(krylov.longest, krylov.length),
        ended=jnp.array(False),
        key=key,
    )


def _certify(matvec: Matvec, progress: _Progress, ends: Ends) -> RitzPairs:
    """The Ritz vectors judged by fresh products."""
    krylov, look = progress.krylov, progress.look
    basis = krylov.basis
    vectors = look.coefficients.T.astype(basis.dtype) @ basis[:-1]
    products = jax.lax.map(matvec, vectors)
    pairs = rayleigh_ritz(vectors, products)
    # In a basis of Ritz vectors, a symmetric operator is the diagonal that it was before.
    changed = jnp.max(jnp.abs(vectors @ products.T - jnp.diag(look.values.astype(basis.dtype))))
    asymmetry = jnp.maximum(krylov.asymmetry, changed)
    return pairs._replace(
        guarded=_guarded(krylov, look, progress.known, ends),
        asymmetry=jnp.maximum(pairs.asymmetry, asymmetry),
        norm=jnp.maximum(pairs.norm, krylov.norm),
        num_matvecs=krylov.size + len(vectors),
    )


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
