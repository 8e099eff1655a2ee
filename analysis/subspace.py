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

from dlf_dynamics.analysis.basis import (
    Basis,
    Operator,
    Rows,
    asymmetry,
    combine,
    grow,
    rotate,
    start_basis,
)
from dlf_dynamics.analysis.ritz import (
    LEAST_GUARD,
    Ends,
    RitzPairs,
    guard_steps,
    in_place,
    is_lost,
    rayleigh_ritz,
    rounding,
)

GUARD_RATIO = 10
"""The guard's residual may be larger than the wanted ones' by this."""


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
        lost: whether more products do not help; see `ritz.is_lost`.
    """

    ascending: Float[np.ndarray, " size"]
    rotation: Float[np.ndarray, "size size"]
    followed: Int[np.ndarray, " followed"]
    norms: Float[np.ndarray, " followed"]
    count: int
    norm: float
    rounding: float
    lost: bool

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
        self, ritz: _Ritz, extent: tuple[float, float], num_params: int, ends: Ends
    ) -> Bool[np.ndarray, " wanted"]:
        """Which wanted values it left as they were, having been followed far enough.

        Restarts lose the other end of the spectrum, so `extent` tells its least and largest value.
        """
        if self.known is None:
            return np.zeros(ends.total, bool)
        ascending = ritz.ascending.copy()
        ascending[[0, -1]] = extent
        low, high = ends.bottom, len(ascending) - 1 - ends.top
        rest = ascending[[low, high]] if low <= high else np.full(2, np.nan)
        wanted = ascending[np.asarray(ends.places(0, len(ascending)))]
        steps = np.asarray(guard_steps(wanted[: ends.top], wanted[ends.top :], rest, num_params))
        enough = np.maximum(np.minimum(steps, self.longest), LEAST_GUARD)
        kept = np.asarray(in_place(jnp.asarray(self.left_alone(ritz)), ends))
        return kept & (self.ended | (self.length >= enough))


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
    capacity = min(num_params, max(20, 4 * ends.total + 4))
    basis = start_basis(operator, num_params, capacity, initial, key, dtype)
    state = _State(basis, int(basis.size))
    while True:
        progress(state.made)
        ritz = _ritz(state.basis, ends)
        state = state.seen(ritz)
        guarded = state.guarded(ritz, ends, tol, cold=cold)
        whole = ritz.count == ends.total
        met = whole and bool(np.all(ritz.met(tol)))
        hopeless = not np.all(np.isfinite(ritz.norms)) or (whole and ritz.lost)
        left = max_matvecs - state.made - checks
        if hopeless or left <= 0 or state.full or (met and np.all(guarded)):
            break
        state = _extended(operator, state, ritz, ends, tol, left, key, follow=cold and met)
    basis = state.basis
    pairs = _certified(operator, basis, ritz, ends, key, fresh=cold)
    seen = {"guarded": guarded, "norm": basis.norm, "num_matvecs": state.made + checks}
    seen |= {"asymmetry": jnp.maximum(pairs.asymmetry, asymmetry(basis))}
    return Solution(pairs._replace(**seen), combine(basis.vectors, _padded(ritz, capacity)))


class _State(NamedTuple):
    """Where the loop stands.

    Attributes:
        basis: the space.
        made: products made.
        guard: the random chain of a cold start.
        extent: least and largest Ritz value that was ever seen.
        stalled: whether nothing new came of the last directions.
        full: whether the basis fills the space.
    """

    basis: Basis
    made: int
    guard: _Guard = _Guard()
    extent: tuple[float, float] = (np.inf, -np.inf)
    stalled: bool = False
    full: bool = False

    def seen(self, ritz: _Ritz) -> _State:
        """With the ends of the spectrum that the Ritz values show."""
        low, high = min(self.extent[0], ritz.ascending[0]), max(self.extent[1], ritz.ascending[-1])
        return self._replace(extent=(low, high))

    def guarded(
        self, ritz: _Ritz, ends: Ends, tol: float, *, cold: bool
    ) -> Bool[np.ndarray, " wanted"]:
        """Which wanted values no missed one is thought to be beyond."""
        num_params = self.basis.vectors.shape[1]
        if self.full or len(ritz.ascending) == num_params:
            return np.ones(ends.total, bool)
        if cold:
            return self.guard.passed(ritz, self.extent, num_params, ends)
        return np.full(ends.total, _settled(ritz, tol))


def _extended(
    operator: Operator,
    state: _State,
    ritz: _Ritz,
    ends: Ends,
    tol: float,
    most: int,
    key: PRNGKeyArray,
    *,
    follow: bool,
) -> _State:
    """The space with more directions: residuals or, to follow the guard, the next of its chain."""
    guard = state.guard
    if follow and not np.all(guard.left_alone(ritz)):
        guard = _Guard(ritz, longest=max(guard.longest, state.made))
    basis, ritz = _restarted(state.basis, ritz, ends)
    rows = _directions(ritz, guard, tol, follow=follow, stalled=state.stalled)
    basis, added = grow(operator, basis, rows, most, jax.random.fold_in(key, state.made))
    if follow:
        ended = guard.ended or added == 0
        guard = replace(guard, length=guard.length + added, ended=ended)
    return state._replace(
        basis=basis,
        made=state.made + added,
        guard=guard,
        stalled=added == 0,
        full=added == 0 and rows.random,
    )


def _ritz(basis: Basis, ends: Ends) -> _Ritz:
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
    lost = bool(is_lost(asymmetry(basis), basis.norm))
    ritz = _Ritz(ascending, rotation, followed, np.zeros(0), len(wanted), norm, noise, lost)
    # Filled up, so that one compilation serves any number of pairs.
    missing = ends.total + 2 - len(followed)
    coefficients = np.pad(_padded(ritz, capacity), ((0, missing), (0, 0)))
    values = np.pad(ritz.values, (0, missing)).astype(basis.vectors.dtype)
    norms = np.asarray(_residual_norms(basis, coefficients, values), np.float64)
    return replace(ritz, norms=norms[: len(followed)])


def _padded(ritz: _Ritz, capacity: int) -> Float[np.ndarray, "followed capacity"]:
    """Coefficients of the Ritz vectors that are followed, in the whole basis."""
    chosen = ritz.rotation[:, ritz.followed].T
    return np.pad(chosen, ((0, 0), (0, capacity - chosen.shape[1])))


@jax.jit
def _residual_norms(
    basis: Basis,
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


def _directions(ritz: _Ritz, guard: _Guard, tol: float, *, follow: bool, stalled: bool) -> Rows:
    """What to add: a random direction, the next one of its chain, or residuals."""
    size = len(ritz.rotation)
    # Single directions end, unlike residuals that may be parallel, only where noise is left.
    if stalled or (follow and guard.length == 0):
        return Rows(np.zeros((1, size)), np.zeros(1), random=True, share=0.0)
    if follow:
        return Rows(np.eye(size)[-1:], np.zeros(1), share=0.0)
    # The guards of a cold start are the random chains; only a warm one has these to settle.
    unmet = np.flatnonzero(~ritz.met(tol))
    order = unmet[np.argsort(-ritz.norms[unmet])]
    if len(order) == 0:
        order = np.arange(ritz.count, len(ritz.norms))
    return Rows(ritz.rotation[:, ritz.followed[order]].T, ritz.values[order])


def _restarted(basis: Basis, ritz: _Ritz, ends: Ends) -> tuple[Basis, _Ritz]:
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
    basis = rotate(basis, jnp.asarray(padded, basis.vectors.dtype))
    basis = basis._replace(size=jnp.int32(kept + 1))
    return basis, replace(ritz, rotation=rotation.T @ ritz.rotation)


def _certified(
    operator: Operator, basis: Basis, ritz: _Ritz, ends: Ends, key: PRNGKeyArray, *, fresh: bool
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
    basis: Basis,
    coefficients: Array,
    before: Array,
    key: PRNGKeyArray,
    *,
    fresh: bool,
) -> RitzPairs:
    matvec = operator()
    vectors = combine(basis.vectors, coefficients)
    if fresh:
        products = jax.lax.map(matvec, vectors)
        # In a basis of Ritz vectors, a symmetric operator is the diagonal that it was before.
        changed = jnp.max(jnp.abs(vectors @ products.T - jnp.diag(before.astype(vectors.dtype))))
        return rayleigh_ritz(vectors, products)._replace(asymmetry=changed)
    # The products of the basis are this very operator's; rounding, or an operator that is not
    # linear, would show in a random combination, and are added to the residuals.
    products = combine(basis.products, coefficients)
    mix = jax.random.normal(key, (len(vectors),), vectors.dtype)
    mix = mix / jnp.linalg.norm(mix)
    drift = jnp.linalg.norm(matvec(mix @ vectors) - mix @ products)
    pairs = rayleigh_ritz(vectors, products)
    allowance = 4 * len(vectors) * drift**2 * jnp.eye(len(vectors), dtype=vectors.dtype)
    return pairs._replace(residual_gram=pairs.residual_gram + allowance, asymmetry=drift)
