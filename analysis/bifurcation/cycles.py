"""Cycles of a map: Newton's method with multiple shooting, multipliers and the least period.

Up to `MAX_UNKNOWNS` components Jacobians are formed; above, `newton_krylov` needs only products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from dlf_dynamics.analysis.bifurcation.kinks import kinks_note, on_kink
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import leading_multipliers, multipliers_of
from dlf_dynamics.analysis.bifurcation.newton import (
    Change,
    Points,
    least_period,
    newton,
    relative_gap,
    solve,
)
from dlf_dynamics.analysis.bifurcation.newton_krylov import Solver
from dlf_dynamics.reprs import brief

MAX_UNKNOWNS = 2000
"""Number of components of the largest state whose Jacobian is formed."""

LEADING = 5
"""Default number of multipliers computed where no Jacobian is formed."""

MARGIN = 1e-10
"""Distance from the unit circle within which multipliers count as being on it."""

ROUNDING = 1e-7
"""Rounding of double multipliers: two that are no further apart may be equal."""


@dataclass(frozen=True)
class Cycle:
    """Points x_0, ..., x_{p-1} with f(x_i) = x_{i+1} and f(x_{p-1}) = x_0, or an attempt at them.

    Attributes:
        points: (period, n) points; the last attempt when not converged.
        parameter: parameter of the map.
        period: p, as requested; see `least_period`.
        multipliers: eigenvalues of the Jacobian of the p-fold map, largest modulus first: (n,) all
            of them, or (k,) the leading ones where no Jacobian was formed; NaN where it is not
            finite.
        residual: largest component of f(x_i) - x_{i+1} from a fresh evaluation, relative to the
            largest of the points.
        converged: whether the residual is below the tolerance.
        least_period: the period of the cycle found, a divisor of `period`; none when not converged.
        message: how the search ended, and what to try when it failed.
        multiplier_residuals: (k,) residuals of their unit eigenvectors, from fresh products; none
            where all multipliers were computed from the Jacobian.
        neutral_found: number of multipliers within 0.02 of +1 that were found but not listed, as
            flat directions have; there may be many more. None where all were computed.
        outside: whether a multiplier is outside the unit circle by more than its error; none where
            that is unknown.
        map_evaluations: number of evaluations of f; none where Jacobians were formed.
        jacobian_products: number of products of a Jacobian of f with a vector, likewise.
        on_kink: whether a point lies on a kink or a jump of f, where the Jacobian is one of several
            and multipliers are meaningless; not checked where no Jacobian was formed.
    """

    points: Points
    parameter: float
    period: int
    multipliers: Complex[np.ndarray, " k"]
    residual: float
    converged: bool
    least_period: int | None
    message: str
    multiplier_residuals: Float[np.ndarray, " k"] | None = None
    neutral_found: int | None = None
    outside: bool | None = None
    map_evaluations: int | None = None
    jacobian_products: int | None = None
    on_kink: bool = False
    __repr__ = brief

    @property
    def stable(self) -> bool | None:
        """Whether all multipliers are inside the unit circle; false when not converged.

        Where no Jacobian was formed it is unknown (none) unless one is outside, as multipliers that
        were not found may be outside. It is also unknown for a cycle on a kink.
        """
        if self.on_kink:
            return None if self.converged else False
        if self.multiplier_residuals is None or not self.converged:
            return self.converged and is_stable(self.multipliers)
        return False if self.outside else None


@np.errstate(all="ignore")  # overflow gives numbers that are not finite, which is reported
def find_cycle(
    map_: Map,
    state: Float[Array | np.ndarray, " n"] | Float[Array | np.ndarray, "period n"],
    parameter: float,
    period: int,
    *,
    tol: float = 1e-12,
    max_steps: int = 50,
    matrix_free: bool | None = None,
    k: int = LEADING,
) -> Cycle:
    """Finds a cycle by a damped Newton method with multiple shooting.

    All points are unknowns; the linear systems are condensed to the first of them (Ascher, Mattheij
    and Russell 1995, *Numerical Solution of Boundary Value Problems*, §4.3), of order n. Below the
    tolerance, steps continue as long as they halve the residual. Where the Newton matrix is
    singular, as with directions in which the map does not move, the shortest step is taken.

    Above `MAX_UNKNOWNS` components no Jacobian is formed. The linear systems are solved by GMRES
    with deflation of slow and unstable modes, as accurately as the distance from the cycle
    requires, and steps end at the tolerance. The leading multipliers come from Arnoldi's method,
    each with the residual of its eigenvector. One counts as outside the unit circle where it is so
    by more than ten times its error to first order, which is the residual times the condition
    number of the eigenvalue in the space that was searched. That none is outside is never certain:
    see `Cycle.stable`.

    If the map has kinks, such as gradient descent of a network of ReLUs, the message names them:
    multipliers are those of the smooth pieces in which the points lie, and stability is that of a
    neighbourhood that may be small. For a cycle on a kink stability is unknown; where no Jacobian
    is formed this is not checked, and stability is unknown for any map with kinks.

    Not converging is a result, not an exception: see `Cycle.message`.

    Args:
        map_: the map f.
        state: a guess of the first point, shape (n,), from which the map makes the others, or of
            all of them, shape (period, n).
        parameter: parameter at which f is evaluated.
        period: p.
        tol: tolerance of the residual relative to the largest of the points. For a cycle at or
            close to 0 it is relative to the guess instead (to its image if it is 0), or to 1 if
            that is less.
        max_steps: largest number of Newton steps.
        matrix_free: whether to do without Jacobians; by default above `MAX_UNKNOWNS` components.
        k: number of multipliers computed then.

    Raises:
        ValueError: without float64, or when the guess has another shape, the period or k is below
            1, or there are more than `MAX_UNKNOWNS` components and Jacobians are requested.

    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> cycle = find_cycle(logistic, jnp.array([0.5]), 3.2, 2)
    >>> cycle.points.ravel().round(6).tolist(), cycle.multipliers.real.round(6).tolist()
    ([0.513045, 0.799455], [0.16])
    >>> cycle.stable, cycle.least_period
    (True, 2)
    """
    if matrix_free is None:
        matrix_free = np.shape(state)[-1:] > (MAX_UNKNOWNS,)
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 multiplier to look for")
    points = first_points(map_, state, parameter, period, matrix_free=matrix_free)
    if matrix_free:
        return _without_matrices(map_, state, points, float(parameter), tol, max_steps, k)
    guess = linearise(map_, points, parameter)
    floor = _floor(state, guess.images)
    cycle, converged, message = correct(guess, map_, floor, tol, max_steps)
    multipliers = multipliers_of(cycle.condensed().matrix)
    shortest, kinked = None, False
    if converged:
        shorten = lambda folded: correct(folded, map_, floor, tol, 20)[:2]  # noqa: E731
        shortest = least_period(cycle, partial(linearise, map_), shorten, floor, tol)
        message += _on_circle(multipliers) + _shorter(shortest, period)
        kinked = on_kink(map_, cycle, partial(linearise, map_), floor)
    message += kinks_note(map_, points[0], parameter, on_one=kinked)
    return Cycle(
        points=cycle.points,
        parameter=float(parameter),
        period=period,
        multipliers=multipliers,
        residual=cycle.gap(),
        converged=converged,
        least_period=shortest,
        message=message,
        on_kink=kinked,
    )


def _without_matrices(
    map_: Map,
    state: Array | np.ndarray,
    points: Points,
    parameter: float,
    tol: float,
    max_steps: int,
    k: int,
) -> Cycle:
    """Finds a cycle using only products with Jacobians."""
    solver = Solver(map_, tol)
    start = solver.evaluate(points, parameter)
    floor = solver.floor = _floor(state, start.images)
    last, converged, message = newton(
        start, solver.evaluate, solver.propose, floor, tol, max_steps, polish=False
    )
    shortest = None
    if converged:
        # The residual between the points and the folded ones shows whether these are a cycle.
        alike = lambda folded: (folded, True)  # noqa: E731
        shortest = least_period(last, solver.evaluate, alike, floor, tol)
        message += _shorter(shortest, len(points))
    kinked = kinks_note(map_, points[0], parameter)
    leading = leading_multipliers(solver.product(last), points.shape[1], k)
    return Cycle(
        points=last.points,
        parameter=parameter,
        period=len(points),
        multipliers=leading.values,
        residual=last.gap(),
        converged=converged,
        least_period=shortest,
        message="".join((message, *(f"; {note}" for note in leading.notes), kinked)),
        multiplier_residuals=leading.residuals,
        neutral_found=leading.neutral,
        outside=True if leading.outside and not kinked else None,
        map_evaluations=solver.evaluations,
        jacobian_products=solver.products,
    )


def _floor(state: Array | np.ndarray, images: Points) -> float:
    """Smallest size of the points that residuals are relative to."""
    largest = float(np.max(np.abs(np.asarray(state))) or np.max(np.abs(images)))
    return min(largest, 1.0) if np.isfinite(largest) else 1.0


def _on_circle(multipliers: Complex[np.ndarray, " n"]) -> str:
    count = int(np.sum(np.abs(np.abs(multipliers) - 1) <= MARGIN))
    return f"; {count} multipliers on the unit circle" if count else ""


def _shorter(least: int, period: int) -> str:
    return f"; found a cycle of period {least}, not {period}" if least < period else ""


def first_points(
    map_: Map,
    state: Array | np.ndarray,
    parameter: float,
    period: int,
    *,
    matrix_free: bool = False,
) -> Float[np.ndarray, "period n"]:
    """Checks the guess and completes it to all points of the cycle.

    Raises:
        ValueError: as in `find_cycle`.
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
    if not matrix_free:
        require_matrices(guess.shape)
    if guess.ndim == 2:
        return guess
    return np.asarray(_orbit(map_, jnp.asarray(guess), jnp.float64(parameter), period))


def require_matrices(shape: tuple[int, ...]) -> None:
    """Refuses states that are too large for a Jacobian.

    Raises:
        ValueError: when there are more than `MAX_UNKNOWNS` components.
    """
    if shape[-1:] > (MAX_UNKNOWNS,):
        raise ValueError(
            f"the state has {shape[-1]} components; Jacobians are formed up to {MAX_UNKNOWNS}: "
            "use a smaller model, or find_cycle at one parameter, which needs none"
        )


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
        """The largest gap relative to the largest point, or to `floor` if that is larger."""
        return relative_gap(self.points, self.images, floor)

    def merit(self, floor: float) -> float:
        """Quantity that each Newton step must decrease."""
        return self.gap(floor)

    def condensed(self) -> Condensed:
        """The linearised equations after elimination of all points but the first."""
        size = self.points.shape[1]
        matrix, offset, df_dparameter = np.eye(size), np.zeros(size), np.zeros(size)
        for jacobian, gap, rate in zip(self.jacobians, self.gaps, self.df_dparameters, strict=True):
            matrix, offset, df_dparameter = (
                jacobian @ matrix,
                jacobian @ offset + gap,
                jacobian @ df_dparameter + rate,
            )
        return Condensed(matrix, offset, df_dparameter)

    def followed(self, change: Points, parameter: float) -> Points:
        """Changes of the images with those of the points and of the parameter."""
        return np.einsum("pij,pj->pi", self.jacobians, change) + self.df_dparameters * parameter

    def spread(
        self, first: Float[np.ndarray, " n"], change: float, *, closing: bool = False
    ) -> Points:
        """Changes of all points with those of the first and of the parameter.

        Args:
            first: change of the first point.
            change: change of the parameter.
            closing: whether they also close the gaps.
        """
        changes = [first]
        for i in range(len(self.points) - 1):
            following = self.jacobians[i] @ changes[-1] + self.df_dparameters[i] * change
            changes.append(following + self.gaps[i] if closing else following)
        return np.stack(changes)


def linearise(map_: Map, points: Points, parameter: float) -> Linearisation:
    """The map and its derivatives at all points of a cycle."""
    derivatives = _linearise(map_, jnp.asarray(points), jnp.float64(parameter))
    return Linearisation(points, float(parameter), *(np.asarray(part) for part in derivatives))


def correct(
    guess: Linearisation,
    map_: Map,
    floor: float,
    tol: float,
    max_steps: int,
    row: Float[np.ndarray, " n+1"] | None = None,
    weight: float = 1.0,
) -> tuple[Linearisation, bool, str]:
    """Newton's method for a cycle, with a fixed parameter, or a free one on a hyperplane.

    Args:
        guess: the guess.
        map_: the map.
        floor: smallest size of the points that residuals are relative to.
        tol: tolerance of the relative residual.
        max_steps: largest number of steps.
        row: normal of the hyperplane through the guess, in (weight · x_0, parameter).
        weight: weight of the states.
    """
    evaluate = partial(linearise, map_)
    propose = partial(_newton_change, row=row, weight=weight)
    return newton(guess, evaluate, propose, floor, tol, max_steps)


def is_stable(multipliers: Complex[np.ndarray, " n"]) -> bool:
    """Whether all multipliers are inside the unit circle, by more than `MARGIN`."""
    return bool(np.all(np.abs(multipliers) < 1 - MARGIN))


def _newton_change(
    cycle: Linearisation, row: Float[np.ndarray, " n+1"] | None, weight: float
) -> Change:
    """Changes of all points and of the parameter."""
    condensed = cycle.condensed()
    if row is None:
        first, singular = solve(np.eye(len(condensed.matrix)) - condensed.matrix, condensed.offset)
        change = 0.0
    else:
        right = np.append(weight * condensed.offset, 0.0)
        solution, singular = solve(condensed.bordered(row, weight), right)
        first, change = solution[:-1] / weight, float(solution[-1])
    note = "the Newton matrix was singular, the cycle may not be isolated" if singular else ""
    return Change(cycle.spread(first, change, closing=True), change, note)


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
