"""Thick-restart Lanczos: a host loop over compiled products, for operators of any order.

The Krylov basis grows by one product at a time. When it is full, the Ritz vectors at the wanted
ends are kept together with the next direction, whose couplings to them are known (Wu and Simon,
SIAM J. Matrix Anal. Appl. 22, 2000, 602; Stewart's Krylov-Schur method). It takes the memory of one
basis. Residuals come from the recurrence during the search, and from fresh products at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.linalg.bounds import Recurrence
from dlf_dynamics.analysis.linalg.chain import Goal
from dlf_dynamics.analysis.linalg.ritz import is_lost
from dlf_dynamics.analysis.linalg.vectors import ALLOWANCE, Form, Operator, Rows, Vector, rounding

_LEAST_BASIS = 20
"""Smallest number of basis vectors, where the space has as many dimensions."""

_SMALL, _SMALL_BASIS = 10_000, 60
"""Order up to which more basis vectors cost little, and how many there are."""


class Space(NamedTuple):
    """Result of a search.

    Attributes:
        vectors: Ritz vectors of the wanted values, one per row, orthonormal to rounding.
        values: their Ritz values, largest first.
        recurrence: coefficients of the search; those of a warm start prove nothing.
        extent: smallest and largest Ritz value.
        norm: largest ‖A q‖ so far.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        num_matvecs: number of products.
        whole: whether the basis fills the space.
        done: whether residuals and bound are as small as wanted.
    """

    vectors: Rows
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
    form: Form,
    goal: Goal,
    *,
    max_matvecs: int,
    key: PRNGKeyArray,
    start: Vector | None = None,
    progress: Callable[[int], None] = lambda matvecs: None,
) -> Space:
    """Ritz vectors at the ends of the spectrum of a symmetric operator.

    Args:
        operator: makes the matvec.
        form: shape, type and location of the vectors.
        goal: what is wanted. From a random start the search continues until its own coefficients
            bound the eigenvalues further out.
        max_matvecs: largest number of products.
        key: PRNG key for the random vectors.
        start: start vector; none means a random one.
        progress: called with the number of products so far.
    """
    krylov = _Krylov(operator, form, goal, key, start)
    while True:
        progress(krylov.made)
        look = krylov.look()
        left = max_matvecs - krylov.made
        if look.done or look.hopeless or left <= 0 or krylov.size == form.num_params:
            return krylov.space(look)
        if krylov.size == krylov.capacity:
            krylov.restart(look)
        krylov.extend(min(look.wait, left))


class _Look(NamedTuple):
    """What follows from the small matrix.

    Attributes:
        ascending: all Ritz values.
        rotation: their vectors in the basis, one per column.
        wanted: indices of the wanted ones, largest first.
        done: whether residuals and bound are as small as wanted.
        hopeless: whether more products do not help.
        wait: number of steps before it is worthwhile to look again.
    """

    ascending: Float[np.ndarray, " size"]
    rotation: Float[np.ndarray, "size size"]
    wanted: Int[np.ndarray, " wanted"]
    done: bool
    hopeless: bool
    wait: int


class _Krylov:
    """The basis, on the device, and the matrix of the operator in it, on the host.

    Rows 0..size-1 of the basis were multiplied, row `size` is the next direction. The matrix holds
    the couplings of the former with each other and with the next direction.
    """

    def __init__(
        self,
        operator: Operator,
        form: Form,
        goal: Goal,
        key: PRNGKeyArray,
        start: Vector | None,
    ) -> None:
        self.operator, self.form, self.goal = operator, form, goal
        self.key, self.random = key, start is None
        self.num_params, self.dtype = form.num_params, form.dtype
        least = _SMALL_BASIS if self.num_params <= _SMALL else _LEAST_BASIS
        self.capacity = min(self.num_params, max(least, 2 * goal.ends.total + 10))
        self.matrix = np.zeros((self.capacity + 1,) * 2)
        self.size = self.made = self.drawn = 0
        self.norm = self.asymmetry = 0.0
        self.steps: list[tuple[float, float, bool]] = []
        self.seen = [(0, -np.log(goal.tol))]
        self.restarts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.basis = _blank(form, self.capacity + 1)
        self.begins = True
        if start is None:
            self._draw()
        else:
            self.basis = _with_first_row(self.basis, start, form=form)

    @property
    def floor(self) -> float:
        """Norm of a remainder that is rounding of a product."""
        return rounding(self.num_params, self.dtype) * self.norm

    @property
    def recurrence(self) -> Recurrence:
        """The coefficients so far."""
        columns = zip(*self.steps, strict=True) if self.steps else ((), (), ())
        alphas, betas, started = map(np.array, columns)
        return Recurrence(alphas, betas, started.astype(bool), self.restarts)

    def _draw(self) -> None:
        """Begins a chain with a random direction orthogonal to the basis."""
        key = jax.random.fold_in(self.key, self.drawn)
        self.basis = _with_random_row(self.basis, self.size, key, form=self.form)
        self.drawn += 1
        self.begins = True

    def extend(self, steps: int) -> None:
        """Makes Lanczos steps until the basis is full or the chain exhausted."""
        steps = min(steps, self.capacity - self.size)
        scale = jnp.asarray(self.norm, self.dtype)
        arguments = self.operator, self.basis, self.size, steps, scale
        self.basis, measured = _extended(*arguments, form=self.form)
        overlaps, remaining, norm, made = jax.device_get(measured)
        self.norm = float(norm)
        for row, left in zip(overlaps[:made].astype(float), remaining[:made].tolist(), strict=True):
            index = self.size
            expected = self.matrix[index, :index]
            differences = np.abs(row[:index] - expected)
            self.asymmetry = max(self.asymmetry, np.max(differences, initial=0.0))
            self.matrix[index, index] = row[index]
            exhausted = left <= self.floor
            coupling = 0.0 if exhausted else left
            self.matrix[index + 1, index] = self.matrix[index, index + 1] = coupling
            self.steps.append((row[index], max(left, self.floor), self.begins))
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
        wanted = np.asarray(ends.indices(0, size))
        radii = np.abs(self.matrix[size, size - 1] * rotation[-1, wanted])
        excess = np.max(radii) / max(0.9 * self.goal.tol * self.norm, np.finfo(float).tiny)
        done = bool(excess <= 1) and self._bounded(ascending) and self._decided(ascending, radii[0])
        return _Look(ascending, rotation, wanted, done, hopeless, self._wait(excess))

    def _wait(self, excess: float) -> int:
        """Half of the steps after which, at its mean rate, the residual would be small enough.

        A few steps where it already is, but a bound is not.
        """
        to_go, made = np.log(np.clip(excess, 1, 1 / np.finfo(float).tiny)), self.made
        rates = [(before - to_go) / (made - steps) for steps, before in self.seen if made > steps]
        self.seen = [(0, -np.log(self.goal.tol)), (made, to_go)]
        rate = max([*rates, np.finfo(float).tiny])
        most = self.capacity - self.size
        wait = to_go / rate / 2 if excess > 1 else max(2, self.size // 6)
        return int(np.clip(wait, 1, max(most, 1)))

    @property
    def _proves(self) -> bool:
        """Whether the coefficients of the search itself bound the eigenvalues further out."""
        goal = self.goal
        of_use = goal.ranked and goal.alone and self.random
        return of_use and self.size < self.num_params and self.norm > 0

    def _free(self, value: float, recurrence: Recurrence) -> bool:
        """Whether no eigenvalue is above a value, except with the failure probability."""
        certainty = recurrence.certainty(np.asarray(value), self.num_params)
        return bool(certainty >= -np.log(self.goal.failure_probability))

    def _bounded(self, ascending: Float[np.ndarray, " size"]) -> bool:
        """Whether nothing can be further out, or a chain will show that later."""
        if not self._proves:
            return True
        room, (top, bottom) = self.goal.room(ascending[[0, -1]], self.norm), self.goal.ends
        below = not bottom or self._free(room - ascending[0], self.recurrence.reflected())
        return below and (not top or self._free(ascending[-1] + room, self.recurrence))

    def _decided(self, ascending: Float[np.ndarray, " size"], radius: float) -> bool:
        """Whether it is known on which side of the threshold the largest one is, or too close."""
        threshold, margin = self.goal.threshold, 2 * ALLOWANCE * self.floor
        relevant = self._proves and self.goal.ends.top and np.isfinite(threshold)
        if not relevant or ascending[-1] - margin > threshold:
            return True
        fine = self.goal.tightened(self.dtype)
        close = ascending[-1] + fine.room(ascending[[0, -1]], self.norm)
        if radius <= 0.9 * fine.tol * self.norm and self._free(close, self.recurrence):
            return True
        return self._free(threshold - margin, self.recurrence)

    def restart(self, look: _Look) -> None:
        """Keeps the Ritz vectors at the wanted ends, and the next direction."""
        ends = self.goal.ends
        kept = ends.total + (self.capacity - ends.total) // 2 - 1
        bottom = round(kept * ends.bottom / ends.total)
        indices = np.r_[0:bottom, self.size - kept + bottom : self.size]
        rotation = np.zeros((self.capacity + 1,) * 2)
        rotation[:kept, : self.size] = look.rotation[:, indices].T
        rotation[kept, self.size] = 1.0
        self.basis = _rotated(self.basis, jnp.asarray(rotation, self.dtype), form=self.form)
        couplings = self.matrix[self.size, self.size - 1] * look.rotation[-1, indices]
        values = look.ascending[indices]
        self.matrix[:] = 0.0
        self.matrix[range(kept), range(kept)] = values
        self.matrix[kept, :kept] = self.matrix[:kept, kept] = couplings
        if not self.begins:
            self.restarts[len(self.steps)] = (values, couplings)
        self.size = kept

    def space(self, look: _Look) -> Space:
        """The result of the search."""
        rotation = np.zeros((self.goal.ends.total, self.capacity + 1))
        rotation[: len(look.wanted), : self.size] = look.rotation[:, look.wanted].T
        return Space(
            combined(self.basis, jnp.asarray(rotation, self.dtype), form=self.form),
            look.ascending[look.wanted],
            self.recurrence,
            (float(look.ascending[0]), float(look.ascending[-1])),
            self.norm,
            self.asymmetry,
            self.made,
            self.size == self.num_params,
            look.done,
        )


@partial(jax.jit, static_argnames=("form", "rows"))
def _blank(form: Form, rows: int) -> Rows:
    return form.zeros(rows)


@partial(jax.jit, static_argnames="form", donate_argnames="basis")
def _with_first_row(basis: Rows, row: Vector, *, form: Form) -> Rows:
    return form.with_row(basis, 0, form.placed(form.scaled(row, 1 / form.norm(row))))


@partial(jax.jit, static_argnames="form", donate_argnames="basis")
def _with_random_row(basis: Rows, index: Array, key: PRNGKeyArray, *, form: Form) -> Rows:
    earlier = jnp.arange(len(jax.tree.leaves(basis)[0])) < index
    return form.with_row(basis, index, form.unit_outside(form.random(key), basis, earlier))


@partial(jax.jit, static_argnames="form", donate_argnames="basis")
def _extended(
    operator: Operator,
    basis: Rows,
    size: Int[Array, ""],
    steps: Int[Array, ""],
    norm: Float[Array, ""],
    *,
    form: Form,
) -> tuple[Rows, tuple[Array, Array, Array, Array]]:
    """The basis with more rows; overlaps, norms of remainders, norm of the operator, and steps."""
    matvec = form.matvec(operator)
    rows = len(jax.tree.leaves(basis)[0])
    floor = rounding(form.num_params, form.dtype)
    overlaps, remaining = jnp.zeros((rows, rows), form.dtype), jnp.zeros(rows, form.dtype)

    def step(carry: tuple) -> tuple:
        made, _, basis, overlaps, remaining, norm = carry
        index = size + made
        product = matvec(form.row(basis, index))
        norm = jnp.maximum(norm, form.norm(product))
        rest, taken, left = form.continued(product, basis, index, jnp.arange(rows) <= index)
        basis = form.with_row(basis, index + 1, form.scaled(rest, 1 / jnp.where(left > 0, left, 1)))
        overlaps, remaining = overlaps.at[made].set(taken), remaining.at[made].set(left)
        return made + 1, left > floor * norm, form.placed(basis), overlaps, remaining, norm

    start = (jnp.int32(0), jnp.array(True), basis, overlaps, remaining, norm)
    unfinished = lambda carry: (carry[0] < steps) & carry[1]  # noqa: E731
    made, _, basis, overlaps, remaining, norm = jax.lax.while_loop(unfinished, step, start)
    return basis, (overlaps, remaining, norm, made)


@partial(jax.jit, static_argnames="form", donate_argnames="basis")
def _rotated(basis: Rows, rotation: Float[Array, "rows rows"], *, form: Form) -> Rows:
    return form.rotated(rotation, basis)


@partial(jax.jit, static_argnames="form")
def combined(rows: Rows, coefficients: Float[Array, "count rows"], *, form: Form) -> Rows:
    """Linear combinations of rows."""
    return form.placed(form.combined(coefficients, rows))
