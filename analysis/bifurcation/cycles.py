"""Cycles of a map: Newton's method with multiple shooting, multipliers and the least period."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float
from scipy.linalg import get_lapack_funcs

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.reprs import brief

Points = Float[np.ndarray, "period n"]

MAX_UNKNOWNS = 2000
"""Components of the largest state whose Jacobian is formed."""

MARGIN = 1e-10
"""Multipliers within this distance of the unit circle count as being on it."""

ROUNDING = 1e-7
"""Of double multipliers: two that are no further apart may be equal."""

_LEAST_DAMPING = 1 / 128
"""Part of a Newton step below which no decrease of the residual is looked for."""

_SINGULAR = 1e-13
"""Reciprocal condition number below which a matrix is solved by least squares."""

_SYMMETRIC = 1e-14
"""Difference of a matrix from its transpose, relative to its largest entry, that is rounding."""

NEAR = 1e-2
"""Points further apart than this part of their size belong to different cycles in any case."""


@dataclass(frozen=True)
class Cycle:
    """Points x_0, ..., x_{p-1} with f(x_i) = x_{i+1} and f(x_{p-1}) = x_0, or an attempt at them.

    Attributes:
        points: (period, n); the last attempt when not converged.
        parameter: of the map.
        period: p, as asked for; see `least_period`.
        multipliers: (n,) eigenvalues of the Jacobian of the p-fold map, largest modulus first;
            NaN where it is not finite.
        residual: largest component of f(x_i) - x_{i+1} by a fresh evaluation, relative to the
            largest of the points.
        converged: whether the residual is below the tolerance.
        least_period: the period of the cycle found, a divisor of `period`; none when not converged.
        message: how the search ended, and what to try when it failed.
    """

    points: Points
    parameter: float
    period: int
    multipliers: Complex[np.ndarray, " n"]
    residual: float
    converged: bool
    least_period: int | None
    message: str
    __repr__ = brief

    @property
    def stable(self) -> bool:
        """Whether all multipliers are inside the unit circle; never when not converged."""
        return self.converged and is_stable(self.multipliers)


@np.errstate(all="ignore")  # what overflows is not finite, which is found and told
def find_cycle(
    map_: Map,
    state: Float[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "period n"],
    parameter: float,
    period: int,
    *,
    tol: float = 1e-12,
    max_steps: int = 50,
) -> Cycle:
    """Finds a cycle by a damped Newton method with multiple shooting.

    All points are unknowns; the linear systems are condensed to the first of them (Ascher, Mattheij
    and Russell 1995, *Numerical Solution of Boundary Value Problems*, §4.3), of order n. After the
    tolerance is met steps go on for as long as they halve the residual. Where the Newton matrix is
    singular, as with directions in which the map does not move, the shortest step is taken.

    Not converging is a result, not an exception: see `Cycle.message`.

    Args:
        map_: the map f.
        state: a guess of the first point, shape (n,), from which the map makes the others, or of
            all of them, shape (period, n).
        parameter: at which f is evaluated.
        period: p.
        tol: for the residual relative to the largest of the points. For a cycle at or close to 0
            it is relative to the guess instead (to its image if it is 0), or to 1 if that is less.
        max_steps: Newton steps at most.

    Raises:
        ValueError: without float64, for a guess of another shape, a period below 1, or more than
            `MAX_UNKNOWNS` components.

    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> cycle = find_cycle(logistic, jnp.array([0.5]), 3.2, 2)
    >>> cycle.points.ravel().round(6).tolist(), cycle.multipliers.real.round(6).tolist()
    ([0.513045, 0.799455], [0.16])
    >>> cycle.stable, cycle.least_period
    (True, 2)
    """
    guess = linearise(map_, first_points(map_, state, parameter, period), parameter)
    largest = float(np.max(np.abs(np.asarray(state))) or np.max(np.abs(guess.images)))
    floor = min(largest, 1.0) if np.isfinite(largest) else 1.0
    found = correct(guess, map_, floor, tol, max_steps)
    multipliers = multipliers_of(found.place.condensed().matrix)
    message, least = found.message, None
    if found.converged:
        least = _least_period(map_, found.place, floor, tol)
        on_circle = int(np.sum(np.abs(np.abs(multipliers) - 1) <= MARGIN))
        message += f"; {on_circle} multipliers on the unit circle" if on_circle else ""
        message += f"; found a cycle of period {least}, not {period}" if least < period else ""
    return Cycle(
        points=found.place.points,
        parameter=float(parameter),
        period=period,
        multipliers=multipliers,
        residual=found.place.gap(),
        converged=found.converged,
        least_period=least,
        message=message,
    )


def first_points(
    map_: Map, state: Array | np.ndarray, parameter: float, period: int
) -> Float[np.ndarray, "period n"]:
    """The guess of all points, checked.

    Raises:
        ValueError: as `find_cycle`.
    """
    if jnp.result_type(float).name != "float64":
        raise ValueError(
            "cycles are computed in float64; switch it on: "
            'jax.config.update("jax_enable_x64", True) first'
        )
    if period < 1:
        raise ValueError(f"period is {period}; expected at least 1")
    guess = np.asarray(state, float)
    if guess.ndim not in (1, 2) or guess.size == 0 or (guess.ndim == 2 and len(guess) != period):
        raise ValueError(
            f"state has shape {guess.shape}; expected (n,), or ({period}, n) for all points"
        )
    if guess.shape[-1] > MAX_UNKNOWNS:
        raise ValueError(
            f"the state has {guess.shape[-1]} components; Jacobians are formed up to "
            f"{MAX_UNKNOWNS}: use a smaller model, or iterate the map to find its stable cycles"
        )
    if guess.ndim == 2:
        return guess
    return np.asarray(_orbit(map_, jnp.asarray(guess), jnp.float64(parameter), period))


class Condensed(NamedTuple):
    """The p-fold map linearised: dx_p = matrix dx_0 + offset + df_dparameter dp."""

    matrix: Float[np.ndarray, "n n"]
    offset: Float[np.ndarray, " n"]
    df_dparameter: Float[np.ndarray, " n"]

    def bordered(
        self, row: Float[np.ndarray, " n+1"], weight: float
    ) -> Float[np.ndarray, "n+1 n+1"]:
        """Matrix of the equations for (weight · dx_0, dp), with a constraint as the last row."""
        left = np.eye(len(self.matrix)) - self.matrix
        return np.vstack([np.column_stack([left, -weight * self.df_dparameter]), row])


class Linearisation(NamedTuple):
    """A cycle, or a guess of one, with the map and its derivatives at all points."""

    points: Points
    parameter: float
    images: Points
    jacobians: Float[np.ndarray, "period n n"]
    df_dparameters: Points

    @property
    def gaps(self) -> Points:
        """f(x_i) - x_{i+1}."""
        return self.images - np.roll(self.points, -1, axis=0)

    def gap(self, floor: float = 0.0) -> float:
        """The largest gap relative to the largest of the points, or to `floor` if larger."""
        gap, size = float(np.max(np.abs(self.gaps))), float(np.max(np.abs(self.points)))
        size = max(size, floor)
        return 0.0 if gap == 0 else gap / size if size else np.inf

    def condensed(self) -> Condensed:
        """The linearised equations after all points but the first are eliminated."""
        size = self.points.shape[1]
        matrix, offset, df_dparameter = np.eye(size), np.zeros(size), np.zeros(size)
        for jacobian, gap, rate in zip(self.jacobians, self.gaps, self.df_dparameters, strict=True):
            matrix, offset, df_dparameter = (
                jacobian @ matrix,
                jacobian @ offset + gap,
                jacobian @ df_dparameter + rate,
            )
        return Condensed(matrix, offset, df_dparameter)

    def spread(
        self, first: Float[np.ndarray, " n"], change: float, *, closing: bool = False
    ) -> Points:
        """Changes of all points with those of the first and of the parameter.

        Args:
            first: change of the first point.
            change: of the parameter.
            closing: whether they are to close the gaps, too.
        """
        changes = [first]
        for i in range(len(self.points) - 1):
            following = self.jacobians[i] @ changes[-1] + self.df_dparameters[i] * change
            changes.append(following + self.gaps[i] if closing else following)
        return np.stack(changes)


class Corrected(NamedTuple):
    """How Newton's method ended."""

    place: Linearisation
    converged: bool
    message: str


def linearise(map_: Map, points: Points, parameter: float) -> Linearisation:
    """The map and its derivatives at all points of a cycle."""
    found = _linearise(map_, jnp.asarray(points), jnp.float64(parameter))
    return Linearisation(points, float(parameter), *(np.asarray(part) for part in found))


def solve(
    matrix: Float[np.ndarray, "n n"], right: Float[np.ndarray, " n"], least: float = _SINGULAR
) -> tuple[Float[np.ndarray, " n"], bool]:
    """The solution, and whether it is the shortest one of least squares of a singular matrix."""
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(right))):
        return np.full(len(right), np.nan), False
    # Large rows are scaled down; small ones are not blown up, so that rounding stays small.
    rows = np.maximum(np.max(np.abs(matrix), axis=1), 1.0)
    matrix, right = matrix / rows[:, None], right / rows
    factor, estimate, back = get_lapack_funcs(("getrf", "gecon", "getrs"), (matrix,))
    factors, pivots, _ = factor(matrix)
    condition, _ = estimate(factors, max(np.linalg.norm(matrix, 1), 1.0))
    if condition > least:
        return back(factors, pivots, right)[0], False
    left, values, basis = np.linalg.svd(matrix)
    kept = values > 10 * least * max(values[0], 1.0)
    return (basis[kept].T / values[kept]) @ (left[:, kept].T @ right), True


def correct(
    place: Linearisation,
    map_: Map,
    floor: float,
    tol: float,
    max_steps: int,
    row: Float[np.ndarray, " n+1"] | None = None,
    weight: float = 1.0,
) -> Corrected:
    """Newton's method for a cycle, the parameter being given, or free on a hyperplane.

    Args:
        place: the guess.
        map_: the map.
        floor: least size of the points that residuals are relative to.
        tol: for the relative residual.
        max_steps: at most.
        row: normal of the hyperplane through the guess, in (weight · x_0, parameter).
        weight: of the states.
    """
    residual, singular, fades, before, steps = place.gap(floor), False, False, np.inf, 0
    for steps in range(max_steps + 1):
        if not np.isfinite(residual) or residual == 0 or steps == max_steps:
            break
        change, flat = _newton_change(place.condensed(), row, weight)
        singular |= flat
        trial = _damped(map_, place, change, residual, floor)
        if trial is None or (residual <= tol and trial.gap(floor) > residual / 2):
            break
        move = float(np.max(np.abs(trial.points - place.points)))
        if move > 1e-4 * max(float(np.max(np.abs(trial.points))), floor):
            # To a cycle of any multiplicity up to 4 steps get shorter by a quarter or more.
            fades = move > 0.8 * before and trial.gap(floor) > 0.1 * residual
            before = move
        place, residual = trial, trial.gap(floor)
    note = "; the Newton matrix was singular, the cycle may not be isolated" if singular else ""
    if residual <= tol and not fades:
        return Corrected(place, True, f"converged in {steps} Newton steps{note}")
    why = f"after {steps} Newton steps the residual is {residual:.1e}"
    if not np.isfinite(residual):
        why = "the map is not finite at the guess"
    elif residual <= tol:
        why = "the residual fades but the steps do not shrink, as on the way to infinity"
    advice = "start closer to the cycle, or follow it from a parameter where it is stable"
    return Corrected(place, False, f"not converged: {why}{note}; {advice}")


def multipliers_of(matrix: Float[np.ndarray, "n n"]) -> Complex[np.ndarray, " n"]:
    """Eigenvalues, largest modulus first; NaN for a matrix that is not finite.

    A matrix that is symmetric but for rounding, as that of gradient descent, takes a third of the
    time and has no imaginary parts.
    """
    if not np.all(np.isfinite(matrix)):
        return np.full(len(matrix), complex(np.nan, np.nan))
    rounding = _SYMMETRIC * np.max(np.abs(matrix), initial=0)
    symmetric = np.all(np.abs(matrix - matrix.T) <= rounding)
    solver = np.linalg.eigvalsh if symmetric else np.linalg.eigvals
    values = solver(matrix).astype(complex)
    return values[np.lexsort((-np.imag(values), -np.abs(values)))]


def is_stable(multipliers: Complex[np.ndarray, " n"]) -> bool:
    """Whether all multipliers are inside the unit circle, by more than `MARGIN`."""
    return bool(np.all(np.abs(multipliers) < 1 - MARGIN))


def _newton_change(
    condensed: Condensed, row: Float[np.ndarray, " n+1"] | None, weight: float
) -> tuple[Float[np.ndarray, " n+1"], bool]:
    """Change of the first point and of the parameter, and whether the system was singular."""
    if row is None:
        change, singular = solve(np.eye(len(condensed.matrix)) - condensed.matrix, condensed.offset)
        return np.append(change, 0.0), singular
    right = np.append(weight * condensed.offset, 0.0)
    change, singular = solve(condensed.bordered(row, weight), right)
    change[:-1] /= weight
    return change, singular


def _damped(
    map_: Map,
    place: Linearisation,
    change: Float[np.ndarray, " n+1"],
    residual: float,
    floor: float,
) -> Linearisation | None:
    """The longest of the halved steps that decreases the residual; none when none does."""
    move, damping = place.spread(change[:-1], change[-1], closing=True), 1.0
    while damping >= _LEAST_DAMPING:
        points, parameter = place.points + damping * move, place.parameter + damping * change[-1]
        trial = linearise(map_, points, parameter)
        if trial.gap(floor) < residual:
            return trial
        damping /= 2
    return None


def _least_period(map_: Map, place: Linearisation, floor: float, tol: float) -> int:
    """Least divisor of the period whose cycle these points cannot be told from."""
    period = len(place.points)
    for divisor in range(1, period):
        if period % divisor == 0 and _repeats(map_, place, divisor, floor, tol):
            return divisor
    return period


def _repeats(map_: Map, place: Linearisation, divisor: int, floor: float, tol: float) -> bool:
    """Whether the points are those of a shorter cycle.

    Beyond a flip the residual rises between the two cycles; at the flip, where they merge, points
    are found only to about the cube root of rounding, and it does not.
    """
    points, value = place.points, place.parameter
    repeats, size = len(points) // divisor, max(float(np.max(np.abs(points))), floor)
    folded = points.reshape(repeats, divisor, -1).mean(axis=0)
    distance = float(np.max(np.abs(points - np.tile(folded, (repeats, 1)))))
    if distance <= 1e-9 * size or distance > NEAR * size:
        return distance <= 1e-9 * size
    shorter = correct(linearise(map_, folded, value), map_, floor, tol, 20)
    tiled = np.tile(shorter.place.points, (repeats, 1))
    between = [(1 - t) * tiled + t * points for t in (0.25, 0.5, 0.75)]
    rise = max(linearise(map_, part, value).gap(floor) for part in between)
    return shorter.converged and rise <= 10 * tol


@jax.jit
def _linearise(map_: Map, points: Array, parameter: Array) -> tuple[Array, Array, Array]:
    def at(point: Array) -> tuple[Array, Array, Array]:
        step = lambda x, p: map_(x, p).astype(point.dtype)  # noqa: E731
        image, df_dparameter = jax.jvp(
            lambda p: step(point, p), (parameter,), (jnp.ones_like(parameter),)
        )
        return image, map_.jacobian(point, parameter), df_dparameter

    return jax.lax.map(at, points)


@partial(jax.jit, static_argnames="period")
def _orbit(map_: Map, state: Array, parameter: Array, period: int) -> Array:
    def advance(now: Array, _: None) -> tuple[Array, Array]:
        return map_(now, parameter).astype(now.dtype), now

    return jax.lax.scan(advance, state, None, length=period)[1]
