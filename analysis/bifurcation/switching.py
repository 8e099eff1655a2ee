"""From a bifurcation to the other branch of cycles: a doubled one, or one that crosses."""

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
"""Change of the critical multiplier from the bifurcation to the cycle that is looked for first."""

_FACTORS = (1.0, 0.5, 2.0, 0.25, 4.0)
"""Amplitudes that are tried, by the one asked for."""


@np.errstate(all="ignore")
def switch_branch(
    map_: Map,
    bifurcation: Bifurcation,
    period: int | None = None,
    *,
    amplitude: float | None = None,
    tol: float = 1e-12,
) -> Cycle:
    """Finds a cycle on the branch that leaves at a flip or a branch point, to be continued from.

    At a flip it has twice the period. Its points are predicted on the centre manifold to second
    order, at ±s along the direction of the bifurcation and at the parameter where ε = b s² (see
    `normal_form`): beyond a supercritical flip, before a subcritical one. Of flips that happen
    together each has a direction of its own.

    At a branch point it is on the other branch, in the direction that the algebraic branching
    equation gives (Kuznetsov 2004, §10.2), or along the critical eigenvector, s to either side, at
    the parameter that the cubic coefficient gives where a branch of a pitchfork is upright. Where a
    cycle came from a flip of half its period it is the cycle of that half.

    What Newton's method makes of the prediction counts only if it has the period that it should and
    a distance from the old branch within a factor of 2 of s. Other amplitudes are tried, up to
    four times smaller and larger, before it is given up.

    Args:
        map_: the map.
        bifurcation: a flip or a branch point, with the tangent of the branch it was found on.
        period: period of the cycle that bifurcates; the bifurcation's own when not given.
        amplitude: s in units of the state, half the distance of neighbouring points of a doubled
            cycle, or at a branch point the distance of the branches at the parameter of the cycle,
            along the direction of the bifurcation. A negative one leads to the other side; from the
            upright branch of a pitchfork to the other, or to a cycle of half the period, a positive
            one is a higher parameter. By default that at which a multiplier has moved by 0.01.
        tol: the same as that of `find_cycle`.

    Returns:
        The cycle, or what was found instead with `converged` false and why.

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
        way: _Departure | str = f"the {bifurcation.kind} itself is not converged"
    elif at_flip:
        way = _doubling(map_, old.points, bifurcation)
    else:
        way = _crossing_over(map_, bifurcation, period)
    if isinstance(way, str):
        points = np.tile(old.points, (2, 1)) if at_flip else old.points
        multipliers = old.multipliers**2 if at_flip else old.multipliers
        return Cycle(points, value, len(points), multipliers, old.residual, False, None, way)
    size, arrived = way.usual if amplitude is None else amplitude, old
    for factor in _FACTORS:
        arrived = _arrived(map_, way, factor * size, tol)
        if arrived.converged:
            break
    return arrived


class _Departure(NamedTuple):
    """How to leave a bifurcation.

    Attributes:
        period: period of the cycle that is looked for.
        usual: amplitude that is tried when none is asked for.
        guess: parameter and points at an amplitude.
        distance: how far from the old branch, measured as the amplitude is.
    """

    period: int
    usual: float
    guess: Callable[[float], tuple[float, Float[np.ndarray, "period n"]]]
    distance: Callable[[Float[np.ndarray, "period n"], float], float]


def _arrived(map_: Map, way: _Departure, size: float, tol: float) -> Cycle:
    """The cycle at an amplitude; not converged if it is another one."""
    value, points = way.guess(size)
    found = find_cycle(map_, points, value, way.period, tol=tol)
    apart, message = way.distance(found.points, value), found.message
    if found.converged and not 0.5 < apart / size < 2:
        message += f"; its amplitude is {apart:.2e} where {size:.2e} was predicted"
    elif found.least_period == found.period:
        return found
    return replace(found, converged=False, least_period=None, message=message)


def _doubling(
    map_: Map, points: Float[np.ndarray, "period n"], flip: Bifurcation
) -> _Departure | str:
    """Along the cycle of twice the period, x(p) ± s q + s² h / 2, or why it cannot be had."""
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

    def distance(found: Float[np.ndarray, "period n"], value: float) -> float:
        return float(left @ (found[0] - found[period])) / 2

    return _Departure(2 * period, np.sqrt(_GROWTH / abs(form.coefficient)), guess, distance)


def _along(space: Eigenspace, flip: Bifurcation) -> tuple[np.ndarray, np.ndarray]:
    """Right and left eigenvector of the flip's own direction."""
    own = space.left @ flip.direction if flip.direction.size else np.ones(1)
    right = space.right @ own
    size = np.linalg.norm(right)
    return right / size, own @ space.left / (own @ own) * size


def _crossing_over(map_: Map, point: Bifurcation, period: int) -> _Departure | str:
    """Along the branch that crosses the one on which a branch point was found."""
    crossing = find_crossing(map_, point.state, point.parameter, period)
    if crossing is None:
        return "two branches do not cross here, or more than one multiplier is +1"
    if not point.tangent.size:
        return "which branch it was found on is not known: its tangent is missing"
    form = normal_form(map_, crossing.points, crossing.parameter, "branch point", 1)
    slopes = crossing.slopes(symmetric=form.branching == "pitchfork")
    if not form.branching or not slopes or form.message.startswith("degenerate"):
        return form.message or "the branching equation has no two real solutions"
    if form.branching == "transcritical":
        return _transcritical(map_, crossing, form, point.tangent, slopes)
    along, rises = crossing.coordinates(point.tangent)
    aside = np.sqrt(abs(form.cubic)) * abs(along - slopes[0] * rises)
    if aside < abs(crossing.quadratic[1] * rises):
        return _outwards(map_, crossing, form, slopes[0])
    halved = point.branching == "period halved"
    return _inwards(map_, crossing, form, slopes[0], period // 2 if halved else period)


def _transcritical(
    map_: Map,
    crossing: Crossing,
    form: NormalForm,
    tangent: Float[np.ndarray, " n+1"],
    slopes: list[float],
) -> _Departure:
    """To the other of two branches that both go on in the parameter."""
    along, rises = crossing.coordinates(tangent)
    old, new = sorted(slopes, key=lambda slope: abs(along - slope * rises) / np.hypot(1, slope))

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        change = size / (new - old)
        return crossing.at(map_, change, new * change)

    def distance(found: Float[np.ndarray, "period n"], value: float) -> float:
        change = value - crossing.parameter
        return _aside(map_, crossing, found, change, old * change)

    return _Departure(len(crossing.points), _GROWTH / abs(form.coefficient), guess, distance)


def _outwards(map_: Map, crossing: Crossing, form: NormalForm, slope: float) -> _Departure:
    """From the branch that goes on through a pitchfork, along the upright one."""
    system = Expansion(map_, crossing.points, crossing.parameter)
    bend = np.real(system.derivative(crossing.right, crossing.right))
    off = bend - 2 * form.coefficient * crossing.right
    response = system.response(crossing.right, crossing.left, off)
    rate = crossing.quadratic[1]

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        change = -form.cubic * size**2 / rate
        return crossing.at(map_, change, size + slope * change, size**2 / 2 * response)

    def distance(found: Float[np.ndarray, "period n"], value: float) -> float:
        change = value - crossing.parameter
        return _aside(map_, crossing, found, change, slope * change)

    return _Departure(len(crossing.points), np.sqrt(_GROWTH / abs(form.cubic)), guess, distance)


def _inwards(
    map_: Map, crossing: Crossing, form: NormalForm, slope: float, period: int
) -> _Departure:
    """From the upright branch of a pitchfork to the one that goes on, or to half the period."""
    ratio = abs(form.cubic / crossing.quadratic[1])

    def guess(size: float) -> tuple[float, Float[np.ndarray, "period n"]]:
        change = np.sign(size) * ratio * size**2
        return crossing.at(map_, change, slope * change, period=period)

    def distance(found: Float[np.ndarray, "period n"], value: float) -> float:
        change = value - crossing.parameter
        outer, size = np.sqrt(abs(change) / ratio), float(np.sign(change))
        shift = found[0] - crossing.points[0] - change * crossing.drift
        return size * (outer - abs(float(crossing.left @ shift) - slope * change))

    return _Departure(period, np.sqrt(_GROWTH / abs(form.cubic)), guess, distance)


def _aside(
    map_: Map,
    crossing: Crossing,
    found: Float[np.ndarray, "period n"],
    change: float,
    along: float,
) -> float:
    """Distance of a cycle from the old branch, along the critical eigenvector.

    Args:
        map_: the map.
        crossing: where the two branches cross.
        found: the cycle.
        change: change of the parameter.
        along: where the old branch is expected, along the eigenvector.
    """
    value, points = crossing.at(map_, change, along)
    old = find_cycle(map_, points, value, len(points))
    return float(crossing.left @ (found[0] - (old.points if old.converged else points)[0]))
