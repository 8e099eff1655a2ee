"""The Lanczos method as one compiled pass, to be mapped over the operators of many checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.ritz import (
    LEAST_GUARD,
    Ends,
    Matvec,
    RitzPairs,
    guard_steps,
    in_place,
    is_lost,
    orthogonalise,
    rayleigh_ritz,
    rounding,
    unit_outside,
)

DRAWS = 4
"""Random vectors that are drawn before the pass begins."""

NEAR = 100
"""Bounds of less than this times what is allowed are looked at after every few steps."""


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
        draws: random vectors, to begin chains with.
        drawn: how many were begun.
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
    draws: Float[Array, "draws n"]
    drawn: Int[Array, ""]

    def random_direction(self) -> Float[Array, " n"]:
        """The next random unit vector orthogonal to the basis; 0 when that fills the space."""
        # Drawing in the loop would take longer to compile than all else. A shifted vector is new.
        vector = jnp.roll(self.draws[self.drawn % DRAWS], self.drawn)
        return unit_outside(vector, self.basis)


class _Look(NamedTuple):
    """What the small matrix tells.

    Attributes:
        values: the wanted Ritz values.
        coefficients: their vectors in the basis.
        radii: bounds of their errors.
        excess: by how much those are too large, 0 if they are not.
        guard_steps: how far a guard must be followed for each.
    """

    values: Float[Array, " count"]
    coefficients: Float[Array, "capacity count"]
    radii: Float[Array, " count"]
    excess: Float[Array, " count"]
    guard_steps: Float[Array, " count"]

    @property
    def met(self) -> Bool[Array, " count"]:
        """Whether the bounds are small enough."""
        return self.excess == 0


class _Progress(NamedTuple):
    """The loop's state.

    Attributes:
        krylov: the basis.
        look: what was seen last.
        known: what was seen when the guard was begun; values NaN before.
        wait: steps before it is worth while to look again.
        done: whether to stop.
    """

    krylov: _Krylov
    look: _Look
    known: _Look
    wait: Int[Array, ""]
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
    eigenvalue, with a tenth of the typical share 1/√n, would stand out by the growth of the
    Chebyshev polynomial (Saad, *Numerical Methods for Large Eigenvalue Problems*, §6.6), but no
    longer than the first chain. If it changed a wanted value, a new guard follows.

    Products that are not finite, or not those of a symmetric operator, end it at once.

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
    looks = [partial(_look, padded=size, ends=ends, tol=tol) for size in sizes]

    def extend(progress: _Progress) -> _Progress:
        size = progress.krylov.size
        steps = jnp.clip(progress.wait, 1, capacity - size)
        krylov = jax.lax.fori_loop(0, steps, lambda _, k: _expand(matvec, k), progress.krylov)
        look = jax.lax.switch(jnp.searchsorted(jnp.array(sizes), size + steps), looks, krylov)
        return _decide(progress, krylov, look, capacity, ends)

    krylov = _start(num_params, capacity, key, dtype)
    empty = jnp.zeros(ends.total, float)
    coefficients = jnp.zeros((capacity, ends.total), float)
    nothing = _Look(empty, coefficients, empty, jnp.inf + empty, empty)
    unknown = nothing._replace(values=empty + jnp.nan)
    first = jnp.int32(min(2 * ends.total + 4, capacity))
    start = _Progress(krylov, nothing, unknown, first, jnp.array(False))
    unfinished = lambda progress: (progress.krylov.size < capacity) & ~progress.done  # noqa: E731
    return _certify(matvec, jax.lax.while_loop(unfinished, extend, start), ends)


def look_sizes(count: int, capacity: int) -> list[int]:
    """Sizes to which the small matrix is filled up when it is looked at.

    Each has its own eigensolve: one of full capacity would cost as much as several products, and
    one for every size would take long to compile.
    """
    sizes, size = [], 2 * count + 10
    while size < capacity:
        sizes.append(size)
        size += max(8, size // 2)
    return [*sizes, capacity]


def _start(num_params: int, capacity: int, key: PRNGKeyArray, dtype: Any) -> _Krylov:
    draws = jax.random.normal(key, (DRAWS, num_params), dtype)
    basis = jnp.zeros((capacity + 1, num_params), dtype)
    return _Krylov(
        basis=basis.at[0].set(draws[0] / jnp.linalg.norm(draws[0])),
        matrix=jnp.zeros((capacity, capacity), dtype),
        outside=jnp.zeros(capacity, dtype),
        size=jnp.int32(0),
        length=jnp.int32(0),
        longest=jnp.int32(0),
        ended=jnp.array(False),
        asymmetry=jnp.zeros((), dtype),
        norm=jnp.zeros((), dtype),
        draws=draws,
        drawn=jnp.int32(1),
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
    direction = jax.lax.cond(
        exhausted, krylov.random_direction, lambda: rest / jnp.where(exhausted, 1, remaining)
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
        drawn=krylov.drawn + exhausted,
    )


def _asymmetry(overlaps: Array, outside: Array, size: Array, before: Array) -> Array:
    """Difference of a new column from the row that the earlier products tell of it.

    Rows whose own product sticks out of the basis tell nothing.
    """
    index = jnp.arange(len(overlaps))
    expected = jnp.where(index == size - 1, before, 0)
    told = (index < size) & (outside == 0)
    return jnp.max(jnp.where(told, jnp.abs(overlaps - expected), 0))


def _look(krylov: _Krylov, *, padded: int, ends: Ends, tol: float) -> _Look:
    """Ritz pairs of the small matrix, which is treated in the best precision there is.

    Rows beyond the basis get a value below all others, so that their pairs come first. The bounds
    of the recurrence say when to stop, not what to report.
    """
    precise = jnp.result_type(float)
    upper = jnp.triu(krylov.matrix[:padded, :padded].astype(precise))
    filling = jnp.where(jnp.arange(padded) < krylov.size, 0, -3 * (krylov.norm + 1))
    matrix = upper + jnp.triu(upper, 1).T + jnp.diag(filling.astype(precise))
    ascending, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    first = padded - krylov.size
    bounds = krylov.outside[:padded].astype(precise) @ jnp.abs(vectors)
    wanted = ends.places(first, padded)
    values, radii = ascending[wanted], bounds[wanted]
    low, high = first + ends.bottom, padded - 1 - ends.top
    rest = jnp.where(low <= high, ascending[jnp.array([low, high])], jnp.nan)
    noise = rounding(krylov.basis.shape[1], krylov.basis.dtype) * krylov.norm
    # The fresh residuals are to come out below the tolerance, too.
    allowed = 0.9 * tol * krylov.norm
    return _Look(
        values=values,
        coefficients=jnp.pad(vectors[:, wanted], ((0, len(krylov.outside) - padded), (0, 0))),
        radii=radii + noise,
        excess=jnp.where(radii <= allowed, 0, radii / allowed),
        guard_steps=guard_steps(
            values[: ends.top], values[ends.top :], rest, krylov.basis.shape[1]
        ),
    )


def _decide(
    progress: _Progress, krylov: _Krylov, look: _Look, capacity: int, ends: Ends
) -> _Progress:
    """Goes on, begins a guard, or stops."""
    hopeless = ~jnp.isfinite(krylov.norm) | is_lost(krylov.asymmetry, krylov.norm)
    done = hopeless | jnp.all(look.met & _guarded(krylov, look, progress.known, ends))
    moved = ~_left_alone(look, progress.known)
    # A budget that is nearly spent keeps a rest for the guard of the values that are there.
    unknown = jnp.all(jnp.isnan(progress.known.values))
    late = (krylov.size >= 0.7 * capacity) & jnp.any(look.met) & unknown
    begin = ~done & ((jnp.all(look.met) & jnp.any(moved)) | late)
    krylov = jax.lax.cond(begin, _begin_guard, lambda krylov: krylov, krylov)
    known = jax.tree.map(lambda new, old: jnp.where(begin, new, old), look, progress.known)
    # While a guard is followed, there is nothing to see before it was followed far enough.
    following = jnp.max(_steps_enough(krylov, look)).astype(jnp.int32)
    near = jnp.max(look.excess) < NEAR
    # In a large basis the eigensolve of a look costs as much as several products.
    wait = jnp.where(near, jnp.maximum(1, krylov.size // 24), jnp.maximum(2, krylov.size // 12))
    return _Progress(krylov, look, known, jnp.where(begin, following, wait), done)


def _left_alone(look: _Look, known: _Look) -> Bool[Array, " count"]:
    """Which values are where they were thought to be when the guard was begun."""
    return jnp.abs(look.values - known.values) <= known.radii


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
    krylov = krylov._replace(basis=krylov.basis.at[krylov.size].set(0))
    return krylov._replace(
        basis=krylov.basis.at[krylov.size].set(krylov.random_direction()),
        length=jnp.int32(0),
        longest=jnp.maximum(krylov.longest, krylov.length),
        ended=jnp.array(False),
        drawn=krylov.drawn + 1,
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
