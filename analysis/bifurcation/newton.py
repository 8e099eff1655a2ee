"""Newton's method for cycles: how far steps go, where they end, and what is said of it.

What a step is, and how it is computed, is the business of those who use it: from matrices in
`cycles`, from products with them in `newton_krylov`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs

Points = Float[np.ndarray, "period n"]

_LEAST_DAMPING = 1 / 128
"""Part of a Newton step below which no decrease of the residual is looked for."""

_SINGULAR = 1e-13
"""Reciprocal condition number below which a matrix is solved by least squares."""

_NEAR = 1e-2
"""Points further apart than this part of their size belong to different cycles in any case."""


@runtime_checkable  # for those who check types while they run
class Place(Protocol):
    """A cycle or a guess of one, with the images of its points."""

    @property
    def points(self) -> Points:
        """(period, n)."""
        ...

    @property
    def parameter(self) -> float:
        """Of the map."""
        ...

    def gap(self, floor: float = 0.0) -> float:
        """See `relative_gap`."""
        ...

    def merit(self, floor: float) -> float:
        """What each step is to decrease."""
        ...


P = TypeVar("P", bound=Place)


class Change(NamedTuple):
    """A Newton step.

    Attributes:
        points: changes of all points.
        parameter: change of the parameter.
        note: what is to be known of the linear system, in words; empty for nothing.
    """

    points: Points
    parameter: float = 0.0
    note: str = ""


def relative_gap(points: Points, images: Points, floor: float = 0.0) -> float:
    """The largest gap f(x_i) - x_{i+1} relative to the largest of the points.

    Args:
        points: x_i.
        images: f(x_i).
        floor: what it is relative to, if that is larger.
    """
    gaps = images - np.roll(points, -1, axis=0)
    gap, size = float(np.max(np.abs(gaps))), max(float(np.max(np.abs(points))), floor)
    return 0.0 if gap == 0 else gap / size if size else np.inf


def newton(
    place: P,
    evaluate: Callable[[Points, float], P],
    propose: Callable[[P], Change],
    floor: float,
    tol: float,
    max_steps: int,
    *,
    polish: bool = True,
) -> tuple[P, bool, str]:
    """Damped Newton steps: the last place, whether it is a cycle, and how that came about.

    Args:
        place: the guess.
        evaluate: makes a place of points and a parameter.
        propose: makes a Newton step from a place.
        floor: least size of the points that residuals are relative to.
        tol: largest relative residual.
        max_steps: number of steps at most.
        polish: whether steps go on below the tolerance for as long as they halve the residual.
    """
    residual, notes, fades, before, steps = place.gap(floor), list[str](), False, np.inf, 0
    for steps in range(max_steps + 1):
        if not np.isfinite(residual) or residual == 0 or steps == max_steps:
            break
        if residual <= tol and not polish and not fades:
            break
        change = propose(place)
        notes += [change.note] if change.note and change.note not in notes else []
        trial = _damped(place, evaluate, change, floor)
        if trial is None or (residual <= tol and trial.gap(floor) > residual / 2):
            break
        move = float(np.max(np.abs(trial.points - place.points)))
        large = move > 1e-4 * max(float(np.max(np.abs(trial.points))), floor)
        # To a cycle of any multiplicity up to 4 steps get shorter by a quarter or more.
        # Below the tolerance a gap is that of a few roundings, and may vanish by chance.
        slow = residual <= tol or trial.gap(floor) > 0.1 * residual
        fades = large and move > 0.8 * before and slow
        before = move if large else before
        place, residual = trial, trial.gap(floor)
    note = "".join(f"; {note}" for note in notes)
    if residual <= tol and not fades:
        return place, True, f"converged in {steps} Newton steps{note}"
    why = f"after {steps} Newton steps the residual is {residual:.1e}"
    if not np.isfinite(residual):
        why = "the map is not finite at the guess"
    elif residual <= tol:
        why = "the residual fades but the steps do not shrink, as on the way to infinity"
    advice = "start closer to the cycle, or follow it from a parameter where it is stable"
    return place, False, f"not converged: {why}{note}; {advice}"


def _damped(
    place: P, evaluate: Callable[[Points, float], P], change: Change, floor: float
) -> P | None:
    """The longest of the halved steps that decreases the merit; none when none does."""
    damping, merit = 1.0, place.merit(floor)
    while damping >= _LEAST_DAMPING:
        points = place.points + damping * change.points
        trial = evaluate(points, place.parameter + damping * change.parameter)
        if trial.merit(floor) < merit:
            return trial
        damping /= 2
    return None


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


def least_period(
    place: P,
    evaluate: Callable[[Points, float], P],
    shorten: Callable[[P], tuple[P, bool]],
    floor: float,
    tol: float,
) -> int:
    """Least divisor of the period whose cycle these points cannot be told from.

    Args:
        place: a cycle.
        evaluate: makes a place of points and a parameter.
        shorten: searches a cycle from a guess of it, and tells whether it is one.
        floor: least size of the points that residuals are relative to.
        tol: largest relative residual.
    """
    period = len(place.points)
    for divisor in range(1, period):
        if period % divisor == 0 and _repeats(place, divisor, evaluate, shorten, floor, tol):
            return divisor
    return period


def _repeats(
    place: P,
    divisor: int,
    evaluate: Callable[[Points, float], P],
    shorten: Callable[[P], tuple[P, bool]],
    floor: float,
    tol: float,
) -> bool:
    """Whether the points are those of a shorter cycle.

    Beyond a flip the residual rises between the two cycles; at the flip, where they merge, points
    are found only to about the cube root of rounding, and it does not.
    """
    points, value = place.points, place.parameter
    repeats, size = len(points) // divisor, max(float(np.max(np.abs(points))), floor)
    folded = points.reshape(repeats, divisor, -1).mean(axis=0)
    distance = float(np.max(np.abs(points - np.tile(folded, (repeats, 1)))))
    if distance <= 1e-9 * size or distance > _NEAR * size:
        return distance <= 1e-9 * size
    shorter, converged = shorten(evaluate(folded, value))
    tiled = np.tile(shorter.points, (repeats, 1))
    between = [(1 - t) * tiled + t * points for t in (0.25, 0.5, 0.75)]
    rise = max(evaluate(part, value).gap(floor) for part in between)
    return converged and rise <= 10 * tol
