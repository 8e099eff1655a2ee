"""Block Rayleigh-Ritz with thick restarts: a host loop over compiled products, for large operators.

The space grows by the residuals of the Ritz vectors that have not converged (the generalized
Davidson method without a preconditioner; Stathopoulos and McCombs, PRIMME, 2010). From a single
start vector all residuals are parallel, one direction is left of them, and it is the Lanczos
method; from the eigenvectors of a nearby operator it converges after a few products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.lanczos import (
    LEAST_GUARD,
    Ends,
    Matvec,
    RitzPairs,
    guard_steps,
    in_place,
    orthogonalise,
    rayleigh_ritz,
    rounding,
)

Operator = Callable[[], Matvec]
"""Makes the matvec while it is traced, so that what products share is computed once a call. A
`jax.tree_util.Partial`: what it holds are arguments of the compiled programs."""

NEW_SHARE = 0.1
"""A direction of which less than this is left after orthogonalisation is put off."""

GUARD_RATIO = 10
"""The guard's residual may be larger than the wanted ones' by this."""

_COLUMNS = 2**16
"""Columns of the basis that are rotated at a time, so that a restart needs no second basis."""


class _Basis(NamedTuple):
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


@dataclass(frozen=True)
class _Ritz:
    """Ritz pairs of a basis, on the host in float64.

    Attributes:
        ascending: all Ritz values.
        rotation: their vectors in the basis, one per column.
        followed: places of the wanted ones, largest first, and of the next at each end, the guards.
        norms: of the residuals of those.
        count: how many of them are wanted.
        norm: of the operator, as far as it was seen.
        rounding: of the values.
    """

    ascending: Float[np.ndarray, " size"]
    rotation: Float[np.ndarray, "size size"]
    followed: Int[np.ndarray, " followed"]
    norms: Float[np.ndarray, " followed"]
    count: int
    norm: float
    rounding: float

    @property
    def values(self) -> Float[np.ndarray, " followed"]:
        """Of the pairs that are followed."""
        return self.ascending[self.followed]

    def met(self, tol: float) -> Bool[np.ndarray, " wanted"]:
        """Which wanted pairs have converged."""
        return self.norms[: self.count] <= tol * self.norm


@dataclass(frozen=True)
class _Guard:
    """The random chain that follows convergence.

    Attributes:
        known: what was known when it was begun; none before.
        length: its steps so far.
        longest: products made before it.
        ended: whether it was exhausted.
    """

    known: _Ritz | None = None
    length: int = 0
    longest: int = 0
    ended: bool = False

    def left_alone(self, ritz: _Ritz) -> Bool[np.ndarray, " wanted"]:
        """Which wanted values are where they were thought to be when the guard was begun."""
        if self.known is None:
            return np.zeros(ritz.count, bool)
        wanted = slice(ritz.count)
        moved = np.abs(ritz.values[wanted] - self.known.values[wanted])
        return moved <= self.known.norms[wanted] + ritz.rounding

    def passed(
        self, ritz: _Ritz, extent: Float[np.ndarray, "2"], num_params: int, ends: Ends
    ) -> Bool[np.ndarray, " wanted"]:
        """Which wanted values it left as they were, having been followed far enough.

        Restarts lose the other end of the spectrum, so `extent` tells its least and largest value.
        """
        if self.known is None:
            return np.zeros(ends.total, bool)
        ascending = ritz.ascending.copy()
        ascending[[0, -1]] = extent
        steps = np.asarray(guard_steps(jnp.asarray(ascending), ends, num_params))
        enough = np.maximum(np.minimum(steps, self.longest), LEAST_GUARD)
        kept = np.asarray(in_place(jnp.asarray(self.left_alone(ritz)), ends))
        return kept & (self.ended | (self.length >= enough))


class _Rows(NamedTuple):
    """Directions to add to a basis: each `coefficients · (products - shift vectors)`, or random.

    One of which `share` or less is left after orthogonalisation is put off.
    """

    coefficients: Float[np.ndarray, "rows size"]
    shifts: Float[np.ndarray, " rows"]
    random: bool = False
    share: float = NEW_SHARE


class Solution(NamedTuple):
    """Ritz pairs, and vectors to start from for a nearby operator: the Ritz and guard vectors."""

    pairs: RitzPairs
    subspace: Float[Array, "followed n"]


def solve(
    operator: Operator,
    num_params: int,
    ends: Ends,
    *,
    tol: float,
    max_matvecs: int,
    key: PRNGKeyArray,
    initial_vectors: Float[Array, "start n"] | None = None,
    dtype: Any = float,
    progress: Callable[[int], None] = lambda matvecs: None,
) -> Solution:
    """Extreme eigenvalues of a symmetric operator of any order, in bounded memory.

    A cold start is guarded as in `lanczos`: when the wanted pairs have converged, a random chain
    follows. A warm start has one random vector beside the initial ones, and follows the next Ritz
    vector at each end; it should be audited by a cold one now and then.

    Args:
        operator: makes the matvec.
        num_params: order n of the operator.
        ends: how many eigenvalues.
        tol: largest residual aimed at, relative to the operator's norm.
        max_matvecs: products at most, the fresh ones included.
        key: of the random directions.
        initial_vectors: to start from; none is a cold start.
        dtype: of the vectors.
        progress: told the number of products so far.
    """
    cold = initial_vectors is None
    checks = ends.total if cold else 1
    # The random vector and the check are products, too.
    initial = None if cold else initial_vectors[: max_matvecs - 2]
    basis = _start(operator, num_params, ends, initial, key, dtype)
    made, guard, stalled = int(basis.size), _Guard(), False
    extent = np.array([np.inf, -np.inf])
    while True:
        progress(made)
        ritz = _ritz(basis, ends)
        met = ritz.count == ends.total and bool(np.all(ritz.met(tol)))
        extent[:] = min(extent[0], ritz.ascending[0]), max(extent[1], ritz.ascending[-1])
        guarded = guard.passed(ritz, extent, num_params, ends) if cold else _settled(ritz, tol)
        guarded = np.broadcast_to(guarded | (len(ritz.ascending) == num_params), ends.total)
        finite, left = np.all(np.isfinite(ritz.norms)), max_matvecs - made - checks
        if not finite or left <= 0 or (met and np.all(guarded)):
            break
        if cold and met and not np.all(guard.left_alone(ritz)):
            guard = _Guard(ritz, longest=max(guard.longest, made))
        basis, ritz = _restarted(basis, ritz, ends)
        rows = _directions(ritz, guard, tol, follow=cold and met, stalled=stalled)
        basis, added = _grow(operator, basis, rows, left, jax.random.fold_in(key, made))
        if added == 0 and rows.random:
            break  # the basis fills the space
        made, stalled = made + added, added == 0
        if cold and met:
            guard = replace(guard, length=guard.length + added, ended=guard.ended or stalled)
    pairs = _certified(operator, basis, ritz, ends, key, fresh=cold)
    asymmetry = jnp.maximum(pairs.asymmetry, _asymmetry(basis))
    seen = {"guarded": guarded, "asymmetry": asymmetry, "norm": basis.norm}
    seen |= {"num_matvecs": made + checks}
    return Solution(
        pairs._replace(**seen), _combine(basis.vectors, _padded(ritz, len(basis.vectors)))
    )


def _start(
    operator: Operator,
    num_params: int,
    ends: Ends,
    initial_vectors: Array | None,
    key: PRNGKeyArray,
    dtype: Any,
) -> _Basis:
    """A basis of the initial vectors and a random one, with their products."""
    capacity = min(num_params, max(20, 4 * ends.total + 4))
    zeros = jnp.zeros((capacity, num_params), dtype)
    small = jnp.zeros((capacity, capacity), dtype)
    basis = _Basis(zeros, jnp.zeros_like(zeros), jnp.int32(0), small, jnp.zeros((), dtype))
    if initial_vectors is not None:
        block = jnp.asarray(initial_vectors, dtype)[: capacity - 1]
        basis = _grow_by_block(operator, basis, block)
    drawn = _Rows(np.zeros((1, 0)), np.zeros(1), random=True, share=0.0)
    return _grow(operator, basis, drawn, 1, key)[0]


def _grow(
    operator: Operator, basis: _Basis, rows: _Rows, most: int, key: PRNGKeyArray
) -> tuple[_Basis, int]:
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
    basis: _Basis,
    coefficients: Float[Array, "capacity capacity"],
    shifts: Float[Array, " capacity"],
    count: Int[Array, ""],
    random: Bool[Array, ""],
    share: Float[Array, ""],
    key: PRNGKeyArray,
) -> _Basis:
    matvec = operator()

    def add(i: Array, basis: _Basis) -> _Basis:
        of_products = coefficients[i] @ basis.products
        candidate = of_products - shifts[i] * (coefficients[i] @ basis.vectors)
        drawn = lambda: jax.random.normal(key, candidate.shape, candidate.dtype)  # noqa: E731
        length = jnp.where(random, jnp.sqrt(1.0 * candidate.size), basis.norm)
        floor = rounding(candidate.size, candidate.dtype) * length
        return _insert(matvec, basis, jax.lax.cond(random, drawn, lambda: candidate), floor, share)

    return jax.lax.fori_loop(0, count, add, basis)


@partial(jax.jit, donate_argnames="basis")
def _grow_by_block(operator: Operator, basis: _Basis, block: Float[Array, "rows n"]) -> _Basis:
    matvec = operator()
    add = lambda i, basis: _insert(matvec, basis, block[i], 0, NEW_SHARE)  # noqa: E731
    return jax.lax.fori_loop(0, len(block), add, basis)


def _insert(
    matvec: Matvec,
    basis: _Basis,
    candidate: Float[Array, " n"],
    floor: Array | float,
    share: Array | float,
) -> _Basis:
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


def _ritz(basis: _Basis, ends: Ends) -> _Ritz:
    """Ritz pairs from the small matrix in float64, with the norms of their residuals."""
    size = int(basis.size)
    matrix = np.asarray(basis.matrix, np.float64)[:size, :size]
    matrix = (matrix + matrix.T) / 2
    if np.all(np.isfinite(matrix)):
        ascending, rotation = np.linalg.eigh(matrix)
    else:
        ascending, rotation = np.full(size, np.nan), np.eye(size)
    top, bottom = min(ends.top, size), min(ends.bottom, max(size - ends.top, 0))
    wanted = [*range(size - 1, size - 1 - top, -1), *range(bottom - 1, -1, -1)]
    guards = ([size - 1 - top] if ends.top else []) + ([bottom] if ends.bottom else [])
    guards = [place for place in dict.fromkeys(guards) if 0 <= place < size and place not in wanted]
    followed = np.array(wanted + guards, int)
    capacity, num_params = basis.vectors.shape
    norm = float(basis.norm)
    noise = rounding(num_params, basis.vectors.dtype) * norm
    ritz = _Ritz(ascending, rotation, followed, np.zeros(0), len(wanted), norm, noise)
    coefficients = _padded(ritz, capacity)
    norms = _residual_norms(basis, coefficients, jnp.asarray(ritz.values, basis.vectors.dtype))
    return replace(ritz, norms=np.asarray(norms, np.float64))


def _padded(ritz: _Ritz, capacity: int) -> Float[np.ndarray, "followed capacity"]:
    """Coefficients of the Ritz vectors that are followed, in the whole basis."""
    chosen = ritz.rotation[:, ritz.followed].T
    return np.pad(chosen, ((0, 0), (0, capacity - chosen.shape[1])))


@jax.jit
def _residual_norms(
    basis: _Basis,
    coefficients: Float[Array, "followed capacity"],
    values: Float[Array, " followed"],
) -> Float[Array, " followed"]:
    def norm(pair: tuple[Array, Array]) -> Array:
        row, value = pair
        return jnp.linalg.norm(row @ basis.products - value * (row @ basis.vectors))

    return jax.lax.map(norm, (coefficients.astype(basis.vectors.dtype), values))


def _settled(ritz: _Ritz, tol: float) -> np.bool:
    """Whether the guards of a warm start are known well enough not to be wanted themselves."""
    values, norms, count = ritz.values, ritz.norms, ritz.count
    rough = GUARD_RATIO * tol * ritz.norm
    gaps = np.abs(values[count:, None] - values[None, :count])
    apart = np.all(gaps > norms[count:, None] + norms[None, :count], axis=1)
    return np.all(apart | (norms[count:] <= rough))


def _directions(ritz: _Ritz, guard: _Guard, tol: float, *, follow: bool, stalled: bool) -> _Rows:
    """What to add: a random direction, the next one of its chain, or residuals."""
    size = len(ritz.rotation)
    # Single directions end, unlike residuals that may be parallel, only where noise is left.
    if stalled or (follow and guard.length == 0):
        return _Rows(np.zeros((1, size)), np.zeros(1), random=True, share=0.0)
    if follow:
        return _Rows(np.eye(size)[-1:], np.zeros(1), share=0.0)
    # The guards of a cold start are the random chains; only a warm one has these to settle.
    unmet = np.flatnonzero(~ritz.met(tol))
    order = unmet[np.argsort(-ritz.norms[unmet])]
    if len(order) == 0:
        order = np.arange(ritz.count, len(ritz.norms))
    return _Rows(ritz.rotation[:, ritz.followed[order]].T, ritz.values[order])


def _restarted(basis: _Basis, ritz: _Ritz, ends: Ends) -> tuple[_Basis, _Ritz]:
    """The basis, rotated to its best half when it is nearly full, and the Ritz pairs in it."""
    capacity, num_params = basis.vectors.shape
    size = len(ritz.ascending)
    if capacity == num_params or size + ends.total + 2 <= capacity:
        return basis, ritz
    kept = capacity // 2
    bottom = round(kept * ends.bottom / ends.total)
    chosen = ritz.rotation[:, [*range(size - kept + bottom, size), *range(bottom)]]
    # With the last row a chain can be gone on with.
    last = np.eye(size)[:, -1:]
    rotation, _ = np.linalg.qr(np.concatenate([chosen, last], axis=1))
    padded = np.zeros((capacity, capacity))
    padded[: kept + 1, :size] = rotation.T
    basis = _rotate(basis, jnp.asarray(padded, basis.vectors.dtype))
    basis = basis._replace(size=jnp.int32(kept + 1))
    return basis, replace(ritz, rotation=rotation.T @ ritz.rotation)


@partial(jax.jit, donate_argnames="basis")
def _rotate(basis: _Basis, rotation: Float[Array, "capacity capacity"]) -> _Basis:
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
def _combine(vectors: Float[Array, "capacity n"], coefficients: Array) -> Float[Array, "rows n"]:
    return coefficients.astype(vectors.dtype) @ vectors


def _certified(
    operator: Operator, basis: _Basis, ritz: _Ritz, ends: Ends, key: PRNGKeyArray, *, fresh: bool
) -> RitzPairs:
    """The wanted pairs judged by fresh products: of each, or of one random combination of them."""
    coefficients = np.zeros((ends.total, len(basis.vectors)))
    coefficients[: ritz.count] = _padded(ritz, len(basis.vectors))[: ritz.count]
    before = np.zeros(ends.total)
    before[: ritz.count] = ritz.values[: ritz.count]
    pairs = _judge(operator, basis, coefficients, before, key, fresh=fresh)
    if ritz.count < ends.total or not np.all(np.isfinite(ritz.norms)):
        return pairs._replace(
            values=pairs.values * np.nan, residual_gram=pairs.residual_gram * np.nan
        )
    return pairs


@partial(jax.jit, static_argnames="fresh")
def _judge(
    operator: Operator,
    basis: _Basis,
    coefficients: Array,
    before: Array,
    key: PRNGKeyArray,
    *,
    fresh: bool,
) -> RitzPairs:
    matvec = operator()
    vectors = _combine(basis.vectors, coefficients)
    if fresh:
        products = jax.lax.map(matvec, vectors)
        # In a basis of Ritz vectors, a symmetric operator is the diagonal that it was before.
        changed = jnp.max(jnp.abs(vectors @ products.T - jnp.diag(before.astype(vectors.dtype))))
        return rayleigh_ritz(vectors, products)._replace(asymmetry=changed)
    # The products of the basis are this very operator's; rounding, or an operator that is not
    # linear, would show in a random combination, and are added to the residuals.
    products = _combine(basis.products, coefficients)
    mix = jax.random.normal(key, (len(vectors),), vectors.dtype)
    mix = mix / jnp.linalg.norm(mix)
    drift = jnp.linalg.norm(matvec(mix @ vectors) - mix @ products)
    pairs = rayleigh_ritz(vectors, products)
    allowance = 4 * len(vectors) * drift**2 * jnp.eye(len(vectors), dtype=vectors.dtype)
    return pairs._replace(residual_gram=pairs.residual_gram + allowance, asymmetry=drift)


def _asymmetry(basis: _Basis) -> float:
    matrix = np.asarray(basis.matrix, np.float64)
    return float(np.max(np.abs(matrix - matrix.T)))
