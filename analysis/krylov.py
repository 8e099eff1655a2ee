"""Thick-restart Lanczos: a host loop over compiled products, for operators of any order.

The Krylov basis grows by one product at a time. When it is full, the Ritz vectors at the wanted
ends are kept together with the next direction, whose products with them are known (Wu and Simon,
SIAM J. Matrix Anal. Appl. 22, 2000, 602; Stewart's Krylov-Schur method). Memory is that of one
basis; residuals come from the recurrence until the end, and from fresh products then.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.bounds import Recurrence
from dlf_dynamics.analysis.chain import Goal
from dlf_dynamics.analysis.ritz import Matvec, is_lost, rounding, unit_outside

Operator = Callable[[], Matvec]
"""Makes the matvec while it is traced, so that what products share is computed once a call. A
`jax.tree_util.Partial`: what it holds are arguments of the compiled programs."""

LEAST_BASIS = 20
"""Vectors of the basis at least, where the space has as many dimensions."""

SMALL, SMALL_BASIS = 10_000, 60
"""Up to this order, more of them cost little."""

_COLUMNS = 2**16
"""Columns of the basis that are treated at a time, so that they stay in the cache."""

_QUICK = 50_000
"""Orders up to which a product takes no longer than a look at the small matrix."""


class Space(NamedTuple):
    """What a search found.

    Attributes:
        vectors: Ritz vectors of the wanted values, one per row, orthonormal to rounding.
        values: their Ritz values, largest first.
        recurrence: coefficients of the search; those of a warm start prove nothing.
        extent: least and largest Ritz value.
        norm: largest ‖A q‖ seen.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        num_matvecs: products that were made.
        whole: whether the basis fills the space.
        done: whether residuals and bound are as small as was asked for.
    """

    vectors: Float[Array, "count n"]
    values: Float[np.ndarray, " count"]
    recurrence: Recurrence
    extent: tuple[float, float]
    norm: float
    asymmetry: float
    num_matvecs: int
    whole: bool
    done: bool


def search(
    operator: Operator,
    num_params: int,
    goal: Goal,
    *,
    max_matvecs: int,
    key: PRNGKeyArray,
    start: Float[Array, " n"] | None = None,
    dtype: Any = float,
    progress: Callable[[int], None] = lambda matvecs: None,
) -> Space:
    """Ritz vectors at the ends of the spectrum of a symmetric operator.

    Args:
        operator: makes the matvec.
        num_params: order n of the operator.
        goal: what is asked for. From a random start the search goes on until its own coefficients
            bound what may be further out.
        max_matvecs: products at most.
        key: of the random vectors.
        start: to begin with; none is a random vector.
        dtype: of the vectors.
        progress: told the number of products so far.
    """
    krylov = _Krylov(operator, num_params, goal, key, start, dtype)
    while True:
        progress(krylov.made)
        look = krylov.look()
        left = max_matvecs - krylov.made
        if look.done or look.hopeless or left <= 0 or krylov.size == num_params:
            return krylov.space(look)
        if krylov.size == krylov.capacity:
            krylov.restart(look)
        krylov.extend(min(look.wait, left))


class _Look(NamedTuple):
    """What the small matrix tells.

    Attributes:
        ascending: all Ritz values.
        rotation: their vectors in the basis, one per column.
        wanted: places of the wanted ones, largest first.
        done: whether residuals and bound are as small as was asked for.
        hopeless: whether more products do not help.
        wait: steps before it is worth while to look again.
    """

    ascending: Float[np.ndarray, " size"]
    rotation: Float[np.ndarray, "size size"]
    wanted: Int[np.ndarray, " wanted"]
    done: bool
    hopeless: bool
    wait: int


class _Krylov:
    """The basis on the device, and on the host the operator in it.

    Rows 0..size-1 of the basis were multiplied, row `size` is the next direction. The matrix holds
    the products of the former with each other, and with the next direction, as they must be.
    """

    def __init__(
        self,
        operator: Operator,
        num_params: int,
        goal: Goal,
        key: PRNGKeyArray,
        start: Array | None,
        dtype: Any,
    ) -> None:
        self.operator, self.num_params, self.goal = operator, num_params, goal
        self.key, self.dtype, self.random = key, dtype, start is None
        least = SMALL_BASIS if num_params <= SMALL else LEAST_BASIS
        self.capacity = min(num_params, max(least, 2 * goal.ends.total + 10))
        self.matrix = np.zeros((self.capacity + 1,) * 2)
        self.size = self.made = self.drawn = 0
        self.norm = self.asymmetry = 0.0
        self.steps: list[tuple[float, float, bool]] = []
        self.restarts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.basis = jnp.zeros((self.capacity + 1, num_params), dtype)
        self.begins = True
        if start is None:
            self._draw()
        else:
            self.basis = self.basis.at[0].set(jnp.asarray(start, dtype) / jnp.linalg.norm(start))

    @property
    def floor(self) -> float:
        """What rounding leaves of a product."""
        return rounding(self.num_params, self.dtype) * self.norm

    @property
    def recurrence(self) -> Recurrence:
        """The coefficients so far."""
        columns = zip(*self.steps, strict=True) if self.steps else ((), (), ())
        alphas, betas, started = map(np.array, columns)
        return Recurrence(alphas, betas, started.astype(bool), self.restarts)

    def _draw(self) -> None:
        """Begins a chain with a random direction outside of the basis."""
        key = jax.random.fold_in(self.key, self.drawn)
        self.basis = _with_random_row(self.basis, self.size, key)
        self.drawn += 1
        self.begins = True

    def extend(self, steps: int) -> None:
        """Lanczos steps, until the basis is full or the chain exhausted."""
        steps = min(steps, self.capacity - self.size)
        scale = jnp.asarray(self.norm, self.dtype)
        self.basis, found = _extended(self.operator, self.basis, self.size, steps, scale)
        overlaps, remaining, norm, made = jax.device_get(found)
        self.norm = float(norm)
        for row, left in zip(overlaps[:made].astype(float), remaining[:made].tolist(), strict=True):
            place = self.size
            expected = self.matrix[place, :place]
            differences = np.abs(row[:place] - expected)
            self.asymmetry = max(self.asymmetry, np.max(differences, initial=0.0))
            self.matrix[place, place] = row[place]
            exhausted = left <= self.floor
            coupling = 0.0 if exhausted else left
            self.matrix[place + 1, place] = self.matrix[place, place + 1] = coupling
            self.steps.append((row[place], max(left, self.floor), self.begins))
            self.begins = exhausted
            self.size += 1
        self.made += int(made)
        if self.begins and self.size < self.num_params and np.isfinite(self.norm):
            self._draw()

    def look(self) -> _Look:
        """Ritz pairs of the small matrix, and whether they are good enough."""
        size, ends = self.size, self.goal.ends
        matrix = self.matrix[:size, :size]
        hopeless = not np.isfinite(self.norm) or not np.all(np.isfinite(matrix))
        hopeless |= bool(is_lost(self.asymmetry, self.norm, self.dtype))
        matrix = np.where(np.isfinite(matrix), matrix, 0.0)
        ascending, rotation = np.linalg.eigh(matrix)
        wait = max(1, min(2 * ends.total + 4 - size, self.capacity - size))
        if size < min(ends.total + 1, self.num_params):
            return _Look(ascending, rotation, np.zeros(0, int), False, hopeless, wait)
        wanted = np.asarray(ends.places(0, size))
        radii = np.abs(self.matrix[size, size - 1] * rotation[-1, wanted])
        met = bool(np.all(radii <= 0.9 * self.goal.tol * self.norm))
        done = met and self._bounded(ascending)
        wait = 1 if self.num_params > _QUICK else max(1, min(size // 6, self.capacity - size))
        return _Look(ascending, rotation, wanted, done, hopeless, wait)

    def _bounded(self, ascending: Float[np.ndarray, " size"]) -> bool:
        """Whether nothing can be further out, or a chain will tell."""
        goal = self.goal
        left_out = not (goal.ranked and goal.alone and self.random)
        if left_out or self.size == self.num_params or self.norm == 0:
            return True
        room = goal.room(ascending[[0, -1]], self.norm)
        limit = -np.log(goal.failure_probability)
        sides = [self.recurrence] * goal.ends.top + [self.recurrence.reflected()] * goal.ends.bottom
        places = [ascending[-1]] * goal.ends.top + [-ascending[0]] * goal.ends.bottom
        return all(
            side.certainty(np.asarray(place + room), self.num_params) >= limit
            for side, place in zip(sides, places, strict=True)
        )

    def restart(self, look: _Look) -> None:
        """Keeps the Ritz vectors at the wanted ends, and the next direction."""
        ends = self.goal.ends
        kept = ends.total + (self.capacity - ends.total) // 2 - 1
        bottom = round(kept * ends.bottom / ends.total)
        places = np.r_[0:bottom, self.size - kept + bottom : self.size]
        rotation = np.zeros((self.capacity + 1,) * 2)
        rotation[:kept, : self.size] = look.rotation[:, places].T
        rotation[kept, self.size] = 1.0
        self.basis = _rotated(self.basis, jnp.asarray(rotation, self.dtype))
        couplings = self.matrix[self.size, self.size - 1] * look.rotation[-1, places]
        values = look.ascending[places]
        self.matrix[:] = 0.0
        self.matrix[range(kept), range(kept)] = values
        self.matrix[kept, :kept] = self.matrix[:kept, kept] = couplings
        if not self.begins:
            self.restarts[len(self.steps)] = (values, couplings)
        self.size = kept

    def space(self, look: _Look) -> Space:
        """What was found."""
        rotation = np.zeros((self.goal.ends.total, self.capacity + 1))
        rotation[: len(look.wanted), : self.size] = look.rotation[:, look.wanted].T
        return Space(
            _combined(self.basis, jnp.asarray(rotation, self.dtype)),
            look.ascending[look.wanted],
            self.recurrence,
            (float(look.ascending[0]), float(look.ascending[-1])),
            self.norm,
            self.asymmetry,
            self.made,
            self.size == self.num_params,
            look.done,
        )


@partial(jax.jit, donate_argnames="basis")
def _with_random_row(basis: Float[Array, "rows n"], row: Array, key: PRNGKeyArray) -> Array:
    drawn = jax.random.normal(key, basis.shape[1:], basis.dtype)
    earlier = jnp.where(jnp.arange(len(basis))[:, None] < row, basis, 0)
    return basis.at[row].set(unit_outside(drawn, earlier))


@partial(jax.jit, donate_argnames="basis")
def _extended(
    operator: Operator,
    basis: Float[Array, "rows n"],
    size: Int[Array, ""],
    steps: Int[Array, ""],
    norm: Float[Array, ""],
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """The basis with more rows; overlaps and norms of what was left, step by step; the norm."""
    matvec = operator()
    rows, num_params = basis.shape
    overlaps, remaining = jnp.zeros((rows, rows), basis.dtype), jnp.zeros(rows, basis.dtype)

    def step(carry: tuple) -> tuple:
        made, going, basis, overlaps, remaining, norm = carry
        place = size + made
        product = matvec(basis[place])
        norm = jnp.maximum(norm, jnp.linalg.norm(product))
        rest, taken, left = _outside(basis, product, place)
        basis = basis.at[place + 1].set(rest / jnp.where(left > 0, left, 1))
        going = left > rounding(num_params, basis.dtype) * norm
        overlaps, remaining = overlaps.at[made].set(taken), remaining.at[made].set(left)
        return made + 1, going, basis, overlaps, remaining, norm

    start = (jnp.int32(0), jnp.array(True), basis, overlaps, remaining, norm)
    unfinished = lambda carry: (carry[0] < steps) & carry[1]  # noqa: E731
    made, _, basis, overlaps, remaining, norm = jax.lax.while_loop(unfinished, step, start)
    return basis, (overlaps, remaining, norm, made)


def _outside(basis: Array, vector: Array, place: Array) -> tuple[Array, Array, Array]:
    """What of a vector is outside of the rows up to a place, its overlaps with them, its norm."""
    used = jnp.arange(len(basis)) <= place
    first = jnp.where(used, basis @ vector, 0)
    vector = vector - first @ basis
    second = jnp.where(used, basis @ vector, 0)
    vector = vector - second @ basis
    return vector, first + second, jnp.linalg.norm(vector)


@partial(jax.jit, donate_argnames="basis")
def _rotated(basis: Float[Array, "rows n"], rotation: Float[Array, "rows rows"]) -> Array:
    """Rotated in place, some columns at a time, so that a restart needs no second basis."""
    whole = basis.shape[1] // _COLUMNS

    def some(i: Array, basis: Array) -> Array:
        columns = jax.lax.dynamic_slice_in_dim(basis, i * _COLUMNS, _COLUMNS, axis=1)
        return jax.lax.dynamic_update_slice(basis, rotation @ columns, (0, i * _COLUMNS))

    if whole:
        basis = jax.lax.fori_loop(0, whole, some, basis)
    return basis.at[:, whole * _COLUMNS :].set(rotation @ basis[:, whole * _COLUMNS :])


@jax.jit
def _combined(basis: Float[Array, "rows n"], rotation: Float[Array, "count rows"]) -> Array:
    return rotation @ basis
