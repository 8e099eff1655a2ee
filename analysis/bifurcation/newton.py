"""Newton's method for cycles: damping, convergence and messages.

Callers compute the steps: from matrices in `cycles`, from products with them in `newton_krylov`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.linalg import get_lapack_funcs

Points = Float[np.ndarray, "period n"]

_LEAST_DAMPING = 1 / 128
"""Smallest part of a Newton step that is tried."""

_SINGULAR = 1e-13
"""Reciprocal condition number below which equations are solved by least squares."""

_NEAR = 1e-2
"""Distance of points, relative to their size, above which they belong to different cycles."""


@runtime_checkable  # for type checks at run time
class _CycleGuess(Protocol):
    """A cycle or a guess of one, with the images of its points."""

    @property
    def points(self) -> Points:
        """(period, n) points."""
        ...

    @property
    def parameter(self) -> float:
        """Parameter of the map."""
        ...

    def gap(self, floor: float = 0.0) -> float:
        """See `relative_gap`."""
        ...

    def merit(self, floor: float) -> float:
        """Quantity that each step must decrease."""
        ...


_Guess = TypeVar("_Guess", bound=_CycleGuess)


class Change(NamedTuple):
    """A Newton step.

    Attributes:
        points: changes of all points.
        parameter: change of the parameter.
        note: remark about the linear system, in words; empty without one.
    """

    points: Points
    parameter: float = 0.0
    note: str = ""


def relative_gap(points: Points, images: Points, floor: float) -> float:
    """The largest gap f(x_i) - x_{i+1} relative to the largest of the points.

    Args:
        points: x_i.
        images: f(x_i).
        floor: size that it is relative to, if that is larger.
    """
    gaps = images - np.roll(points, -1, axis=0)
    gap, size = float(np.max(np.abs(gaps))), max(float(np.max(np.abs(points))), floor)
    return 0.0 if gap == 0 else gap / size if size else np.inf


def newton(
    cycle: _Guess,
    evaluate: Callable[[Points, float], _Guess],
    propose: Callable[[_Guess], Change],
    floor: float,
    tol: float,
    max_steps: int,
    *,
    polish: bool = True,
) -> tuple[_Guess, bool, str]:
    """Damped Newton steps: the last guess, whether it is a cycle, and a message.

    Args:
        cycle: the first guess.
        evaluate: makes a guess from points and a parameter.
        propose: computes a Newton step at a guess.
        floor: smallest size of the points that residuals are relative to.
        tol: largest relative residual.
        max_steps: largest number of steps.
        polish: whether steps continue below the tolerance as long as they halve the residual.
    """
    residual, notes, fades, before, steps = cycle.gap(floor), list[str](), False, np.inf, 0
    for steps in range(max_steps + 1):
        if not np.isfinite(residual) or residual == 0 or steps == max_steps:
            break
        if residual <= tol and not polish and not fades:
            break
        change = propose(cycle)
        notes += [change.note] if change.note and change.note not in notes else []
        trial = _damped(cycle, evaluate, change, floor)
        if trial is None or (residual <= tol and trial.gap(floor) > residual / 2):
            break
        move = float(np.max(np.abs(trial.points - cycle.points)))
        large = move > 1e-4 * max(float(np.max(np.abs(trial.points))), floor)
        # Towards a cycle of multiplicity up to 4, each step is shorter by a quarter or more.
        # Below the tolerance a gap is only rounding, and may vanish by chance.
        slow = residual <= tol or trial.gap(floor) > 0.1 * residual
        fades = large and move > 0.8 * before and slow
        before = move if large else before
        cycle, residual = trial, trial.gap(floor)
    note = "".join(f"; {note}" for note in notes)
    if residual <= tol and not fades:
        return cycle, True, f"converged in {steps} Newton steps{note}"
    why = f"after {steps} Newton steps the residual is {residual:.1e}"
    if not np.isfinite(residual):
        why = "the map is not finite at the guess"
    elif residual <= tol:
        why = "the residual fades but the steps do not shrink, as on the way to infinity"
    advice = "start closer to the cycle, or follow it from a parameter where it is stable"
    return cycle, False, f"not converged: {why}{note}; {advice}"


def _damped(
    cycle: _Guess, evaluate: Callable[[Points, float], _Guess], change: Change, floor: float
) -> _Guess | None:
    """The longest of the halved steps that decreases the merit; none if none does."""
    damping, merit = 1.0, cycle.merit(floor)
    while damping >= _LEAST_DAMPING:
        points = cycle.points + damping * change.points
        trial = evaluate(points, cycle.parameter + damping * change.parameter)
        if trial.merit(floor) < merit:
            return trial
        damping /= 2
    return None


def solve(
    matrix: Float[np.ndarray, "n n"], right: Float[np.ndarray, " n"], singular: float = _SINGULAR
) -> tuple[Float[np.ndarray, " n"], bool]:
    """The solution, and whether it is the shortest one of least squares of a singular matrix."""
    if not (np.all(np.isfinite(matrix)) and np.all(np.isfinite(right))):
        return np.full(len(right), np.nan), False
    # Large rows are scaled down; small ones are not scaled up, so that rounding stays small.
    sizes = np.maximum(np.max(np.abs(matrix), axis=1), 1.0)
    matrix, right = matrix / sizes[:, None], right / sizes
    factor, estimate, back = get_lapack_funcs(("getrf", "gecon", "getrs"), (matrix,))
    factors, pivots, _ = factor(matrix)
    condition, _ = estimate(factors, max(np.linalg.norm(matrix, 1), 1.0))
    if condition > singular:
        return back(factors, pivots, right)[0], False
    left, values, basis = np.linalg.svd(matrix)
    kept = values > 10 * singular * max(values[0], 1.0)
    return (basis[kept].T / values[kept]) @ (left[:, kept].T @ right), True


def least_period(
    cycle: _Guess,
    evaluate: Callable[[Points, float], _Guess],
    shorten: Callable[[_Guess], tuple[_Guess, bool]],
    floor: float,
    tol: float,
) -> int:
    """Smallest divisor of the period for which the points cannot be distinguished from a cycle.

    Args:
        cycle: a cycle.
        evaluate: makes a guess from points and a parameter.
        shorten: searches for a cycle from a guess, and returns whether it found one.
        floor: smallest size of the points that residuals are relative to.
        tol: largest relative residual.
    """
    period = len(cycle.points)
    for divisor in range(1, period):
        if period % divisor == 0 and _repeats(cycle, divisor, evaluate, shorten, floor, tol):
            return divisor
    return period


def _repeats(
    cycle: _Guess,
    divisor: int,
    evaluate: Callable[[Points, float], _Guess],
    shorten: Callable[[_Guess], tuple[_Guess, bool]],
    floor: float,
    tol: float,
) -> bool:
    """Whether the points are those of a shorter cycle.

    Beyond a flip the residual rises between the two cycles. At the flip, where they merge, points
    are accurate only to about the cube root of rounding, and it does not rise.
    """
    points, value = cycle.points, cycle.parameter
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
