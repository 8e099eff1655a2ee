"""Switching at a bifurcation to the other branch of cycles: a doubled one, or a crossing one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.branch_points import Crossing, find_crossing
from dlf_dynamics.analysis.bifurcation.cycles import Cycle, find_cycle, first_points
from dlf_dynamics.analysis.bifurcation.expansion import Eigenspace, Expansion
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import (
    Bifurcation,
    NormalForm,
    flip_form,
    normal_form,
)

_GROWTH = 0.01
"""Change of the critical multiplier from the bifurcation to the first cycle that is tried."""

_FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)
"""Amplitudes that are tried, relative to the requested one."""


@np.errstate(all="ignore")
def switch_branch(
    map_: Map,
    bifurcation: Bifurcation,
    period: int | None = None,
    *,
    amplitude: float | None = None,
    tol: float = 1e-12,
) -> Cycle:
    """Finds a cycle on the branch that leaves at a flip or a branch point, to continue from.

    At a flip it has twice the period. Its points are predicted on the centre manifold to second
    order, at ±s along the direction of the bifurcation and at the parameter where ε = b s² (see
    `normal_form`): beyond a supercritical flip, before a subcritical one. Each of several
    simultaneous flips has its own direction.

    At a branch point it is on the other branch, in the direction that the algebraic branching
    equation gives (Kuznetsov 2004, §10.2). Where the branch of a pitchfork is vertical, it is at ±s
    along the critical eigenvector, at the parameter that the cubic coefficient gives. Where a cycle
    came from a flip of half its period it is the cycle of that half.

    The result of Newton's method counts only if it has the expected period and a distance from the
    old branch within a factor of 2 of s. Amplitudes up to four times smaller and larger are tried
    before the search gives up.

    Args:
        map_: the map.
        bifurcation: a flip or a branch point, with the tangent of the branch on which it was found.
        period: period of the cycle that bifurcates; the bifurcation's own when not given.
        amplitude: s in units of the state, half the distance of neighbouring points of a doubled
            cycle, or at a branch point the distance of the branches at the parameter of the cycle,
            along the direction of the bifurcation. A negative one leads to the other side. From the
            vertical branch of a pitchfork to the other, or to a cycle of half the period, a
            positive one means a higher parameter. By default a multiplier moves by 0.01.
        tol: tolerance, as in `find_cycle`.

    Returns:
        The cycle, or what was found instead, with `converged` false and a message why.

    Raises:
        ValueError: when the bifurcation is a fold or a Neimark-Sacker point.

    >>> import jax
    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> flip = Bifurcation("flip", 3.0, np.array([2 / 3]), 1, -1, 9, "supercritical", 0, True, "")
    >>> doubled = switch_branch(logistic, flip)
    >>> doubled.least_period, doubled.stable, round(doubled.parameter, 4)
    (2, True, 3.01)
    """
    if bifurcation.kind not in ("flip", "branch point"):
        raise ValueError(
            f"no branch of cycles leaves at a {bifurcation.kind}; expected a flip or a branch point"
        )
    period = bifurcation.period if period is None else period
    value, at_flip = bifurcation.parameter, bifurcation.kind == "flip"
    old = find_cycle(map_, bifurcation.state, value, period, tol=tol)
    if not bifurcation.converged or (at_flip and not old.converged):
        departure: _Departure | str = f"the {bifurcation.kind} itself is not converged"
    elif at_flip:
        departure = _doubling(map_, old.points, bifurcation)
    else:
        departure = _crossing_over(map_, bifurcation, period)
    if isinstance(departure, str):
        points = np.tile(old.points, (2, 1)) if at_flip else old.points
        multipliers = old.multipliers**2 if at_flip else old.multipliers
        return Cycle(points, value, len(points), multipliers, old.residual, False, None, departure)
    size, arrived = departure.usual if amplitude is None else amplitude, old
    for factor in _FACTORS:
        arrived = _arrived(map_, departure, factor * size, tol)
        if arrived.converged:
            break
    return arrived


class _Departure(NamedTuple):
    """How to leave a bifurcation.

    Attributes:
        period: period of the cycle to be found.
        usual: default amplitude.
        guess: gives parameter and points at an amplitude.
        distance: gives the distance from the old branch, measured like the amplitude.
    """

    period: int
    usual: float
    guess: Callable[[float], tuple[float, Float[np.ndarray, "period n"]]]
    distance: Callable[[Float[np.ndarray, "period n"], float], float]


def _arrived(map_: Map, departure: _Departure, size: float, tol: float) -> Cycle:
    """The cycle at an amplitude; not converged if it is a different one."""
    value, points = departure.guess(size)
    cycle = find_cycle(map_, points, value, departure.period, tol=tol)
    distance, message = departure.distance(cycle.points, value), cycle.message
    if cycle.converged and not 0.5 < distance / size < 2:
        message += f"; its amplitude is {distance:.2e} where {size:.2e} was predicted"
    elif cycle.least_period == cycle.period:
        return cycle
    return replace(cycle, converged=False, least_period=None, message=message)


def _doubling(
    map_: Map, points: Float[np.ndarray, "period n"], flip: Bifurcation
) -> _Departure | str:
    """Departure to the cycle of twice the period, x(p) ± s q + s² h / 2, or why there is none."""
    system = Expansion(map_, points, flip.parameter)
    space = system.eigenspace(-1)
    if space is None or space.coupled or (len(space.left) > 1 and not flip.direction.size):
        return "the critical multiplier is not a simple one"
    right, left = _along(space, flip)
    form = flip_form(system, right, left)
    if not form.criticality:
        return form.message
    drift = system.inverse(system.condensed.df_dparameter.astype(complex))
    response = system.inverse(system.derivative(right, right))
    if drift is None or response is None:
        return "a multiplier is +1 as well"
    drift, response = np.real(drift), np.real(response)
    rate = float(left @ np.real(system.derivative(right, np.append(drift, 1.0))))
    period, start, critical = len(points), points[0], flip.parameter

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        value = critical - form.coefficient * size**2 / rate
        middle = start + drift * (value - critical) + size**2 / 2 * response
        starts = middle + size * right, middle - size * right
        return value, np.concatenate([first_points(map_, s, value, period) for s in starts])

    def distance(reached: Float[np.ndarray, "period n"], value: float) -> float:
        return float(left @ (reached[0] - reached[period])) / 2

    return _Departure(2 * period, np.sqrt(_GROWTH / abs(form.coefficient)), guess, distance)


def _along(space: Eigenspace, flip: Bifurcation) -> tuple[np.ndarray, np.ndarray]:
    """Right and left eigenvector in the direction of the flip."""
    share = space.left @ flip.direction if flip.direction.size else np.ones(1)
    right = space.right @ share
    size = np.linalg.norm(right)
    return right / size, share @ space.left / (share @ share) * size


def _crossing_over(map_: Map, point: Bifurcation, period: int) -> _Departure | str:
    """Departure to the branch that crosses the one on which a branch point was found."""
    crossing = find_crossing(map_, point.state, point.parameter, period)
    if crossing is None:
        return "two branches do not cross here, or more than one multiplier is +1"
    if not point.tangent.size:
        return "the branch on which it was found is unknown: its tangent is missing"
    form = normal_form(map_, crossing.points, crossing.parameter, "branch point", 1)
    ratios = crossing.ratios(symmetric=form.branching == "pitchfork")
    if not form.branching or not ratios or form.message.startswith("degenerate"):
        return form.message or "the branching equation has no two real solutions"
    if form.branching == "transcritical":
        return _transcritical(map_, crossing, form, point.tangent, ratios)
    along, rises = crossing.coordinates(point.tangent)
    aside = np.sqrt(abs(form.cubic)) * abs(along - ratios[0] * rises)
    if aside < abs(crossing.quadratic[1] * rises):
        return _outwards(map_, crossing, form, ratios[0])
    halved = point.branching == "period halved"
    return _inwards(map_, crossing, form, ratios[0], period // 2 if halved else period)


def _transcritical(
    map_: Map,
    crossing: Crossing,
    form: NormalForm,
    tangent: Float[np.ndarray, " n+1"],
    ratios: list[float],
) -> _Departure:
    """Departure to the other of two branches that both continue in the parameter."""
    along, rises = crossing.coordinates(tangent)
    old, new = sorted(ratios, key=lambda ratio: abs(along - ratio * rises) / np.hypot(1, ratio))

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        change = size / (new - old)
        return crossing.at(map_, change, new * change)

    def distance(reached: Float[np.ndarray, "period n"], value: float) -> float:
        change = value - crossing.parameter
        return _aside(map_, crossing, reached, change, old * change)

    return _Departure(len(crossing.points), _GROWTH / abs(form.coefficient), guess, distance)


def _outwards(map_: Map, crossing: Crossing, form: NormalForm, ratio: float) -> _Departure:
    """Departure from the branch that continues through a pitchfork, to the vertical one."""
    system = Expansion(map_, crossing.points, crossing.parameter)
    bend = np.real(system.derivative(crossing.right, crossing.right))
    off = bend - 2 * form.coefficient * crossing.right
    response = system.response(crossing.right, crossing.left, off)
    rate = crossing.quadratic[1]

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        change = -form.cubic * size**2 / rate
        return crossing.at(map_, change, size + ratio * change, size**2 / 2 * response)

    def distance(reached: Float[np.ndarray, "period n"], value: float) -> float:
        change = value - crossing.parameter
        return _aside(map_, crossing, reached, change, ratio * change)

    return _Departure(len(crossing.points), np.sqrt(_GROWTH / abs(form.cubic)), guess, distance)


def _inwards(
    map_: Map, crossing: Crossing, form: NormalForm, ratio: float, period: int
) -> _Departure:
    """Departure from the vertical branch of a pitchfork to the other, or to half the period."""
    opening = abs(form.cubic / crossing.quadratic[1])

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        change = np.sign(size) * opening * size**2
        return crossing.at(map_, change, ratio * change, period=period)

    def distance(reached: Float[np.ndarray, "period n"], value: float) -> float:
        change = value - crossing.parameter
        outer, size = np.sqrt(abs(change) / opening), float(np.sign(change))
        shift = reached[0] - crossing.points[0] - change * crossing.drift
        return size * (outer - abs(float(crossing.left @ shift) - ratio * change))

    return _Departure(period, np.sqrt(_GROWTH / abs(form.cubic)), guess, distance)


def _aside(
    map_: Map,
    crossing: Crossing,
    points: Float[np.ndarray, "period n"],
    change: float,
    along: float,
) -> float:
    """Distance of a cycle from the old branch, along the critical eigenvector.

    Args:
        map_: the map.
        crossing: where the two branches cross.
        points: points of the cycle.
        change: change of the parameter.
        along: expected position of the old branch along the eigenvector.
    """
    value, expected = crossing.at(map_, change, along)
    old = find_cycle(map_, expected, value, len(expected))
    return float(crossing.left @ (points[0] - (old.points if old.converged else expected)[0]))
