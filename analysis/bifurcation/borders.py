"""Border collisions: where the cycles of a branch meet a kink of their map, and the branch beyond.

On either side the map is smooth, and so is the branch; at the border multipliers jump, and the
branch has a corner. It goes on (persistence) or turns back (a nonsmooth fold; di Bernardo, Budd,
Champneys and Kowalczyk 2008, *Piecewise-smooth Dynamical Systems*, §3.1). No test function and no
normal form of a smooth bifurcation says anything there.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from dlf_dynamics.analysis.bifurcation.arclength import Course, Node
from dlf_dynamics.analysis.bifurcation.cycles import Linearisation, correct, linearise
from dlf_dynamics.analysis.bifurcation.kinks import JUMP, jumps_along, on_kink
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation

_REACH = 1e-5
"""Part of the largest step by which a branch is followed straight to a kink, and beyond it."""

_AHEAD = 60
"""Distances at which a kink is looked for, each half of the one before."""

_ONE_KINK = 1e-6
"""Second singular value of a jump of the Jacobian, relative to the first, up to which it is of one
kink only."""

_CLOSES = 1e-7
"""Relative gap of a cycle at a border up to which its map does not jump there."""

_SAME = 1e-9
"""Distance of points of a cycle, relative to their size, up to which they are the same."""

_UPRIGHT = 1e-6
"""Parameter's part of a tangent up to which a branch stands upright; distance of a multiplier from
-1 within which it is on no side."""

_LISTED = 3
"""Multipliers that are told of each side."""


class Border(NamedTuple):
    """A border collision on a branch.

    Attributes:
        before: the last point before it.
        after: the first beyond it; none where the branch ends.
        shorter: period of the cycle that it shrinks to there; none where it does not.
        found: what is told of it.
    """

    before: Node
    after: Node | None
    shorter: int | None
    found: Bifurcation


def border_ahead(course: Course, now: Node, after: Node | None) -> Border | None:
    """The first border between a point and the next, or where there is no next one; if any.

    Args:
        course: the branch's.
        now: a point.
        after: the next; none where no step leads on.
    """
    before = now if after is None else _last_before(course, now, after)
    return None if before is None else _border(course, before)


def _last_before(course: Course, now: Node, after: Node) -> Node | None:
    """The last point before a kink that lies between two points, if one does."""
    ends = now.flat(), after.flat()

    def place(part: float) -> Linearisation:
        flat = (1 - part) * ends[0] + part * ends[1]
        return linearise(course.map_, _points(flat, now), float(flat[-1]))

    change = after.place.points - now.place.points, after.parameter - now.parameter
    predicted = [node.place.followed(*change) for node in (now, after)]
    if not jumps_along(place, (predicted[0] + predicted[1]) / 2):
        return None
    low, low_node, high, beyond = 0.0, now, course.between(now, after).length, after
    while high - low > 0.1 * _REACH * course.step:
        middle = (low + high) / 2
        node = course.at(now, middle)
        # The point in the middle is on the side of the end that it differs less from.
        if node is not None and _differ(low_node, node) <= _differ(beyond, node):
            low, low_node = middle, node
        else:
            high, beyond = middle, node or beyond
    return low_node


def _points(flat: np.ndarray, like: Node) -> np.ndarray:
    return flat[:-1].reshape(like.place.points.shape)


def _apart(one: Node, other: Node) -> float:
    return float(np.max(np.abs(one.place.jacobians - other.place.jacobians)))


def _differ(one: Node, other: Node) -> float:
    """Relative difference of Jacobians and points: of a map that jumps, the former may not."""
    steepest = max(float(np.max(np.abs(node.place.jacobians))) for node in (one, other))
    size = max(float(np.max(np.abs(node.place.points))) for node in (one, other))
    moved = float(np.max(np.abs(one.place.points - other.place.points)))
    return _apart(one, other) / (steepest or 1.0) + moved / (size or 1.0)


def _border(course: Course, before: Node) -> Border | None:
    """The border right ahead of a point, in which its straight continuation jumps."""
    tangent, start = before.flat_tangent(course.weight), before.flat()
    steepest = float(np.max(np.abs(before.place.jacobians)))

    def at(distance: float) -> Linearisation:
        flat = start + distance * tangent
        return linearise(course.map_, _points(flat, before), float(flat[-1]))

    def beyond(place: Linearisation) -> bool:
        bend = np.max(np.abs(place.jacobians - before.place.jacobians))
        bent = bend > JUMP * max(1.0, steepest)  # near a superstable cycle nothing is steep
        return bool(bent or place.gap(course.floor) > JUMP)

    low, high = 0.0, _REACH * course.step
    if not beyond(at(high)):
        return None
    for _ in range(_AHEAD):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(at(middle)) else (middle, high)
    place, other_side = at(low), at(high)
    if not (beyond(other_side) and not beyond(place)):
        return None
    shorter = _shorter(place.points, course.floor)
    if shorter or other_side.gap(course.floor) > _CLOSES:
        told = (
            f"the cycle shrinks to one of period {shorter}" if shorter else "the map itself jumps"
        )
        return Border(before, None, shorter, _told(course, before, place, None, told))
    further = at(high + _REACH * course.step)  # on the kink itself derivatives are neither side's
    sided = {"jacobians": further.jacobians, "df_dparameters": further.df_dparameters}
    other = course.node(place._replace(**sided), before.tangent)
    after = None if other is None else _beyond(course, before, other)
    way = "no cycle of this period was found beyond the kink"
    if after is not None:
        turns = before.rises != after.rises
        way = "the branch turns back there (a nonsmooth fold)" if turns else "the branch goes on"
        if abs(after.tangent[-1]) < _UPRIGHT:
            way = "beyond it cycles of one parameter form a line"
    return Border(before, after, None, _told(course, before, place, after, way))


def _shorter(points: Float[np.ndarray, "period n"], floor: float) -> int | None:
    """The period with which the points of a cycle repeat before its end, if they do."""
    period, size = len(points), max(float(np.max(np.abs(points))), floor)
    for least in range(1, period):
        apart = np.max(np.abs(points - np.roll(points, least, axis=0)))
        if period % least == 0 and apart <= _SAME * size:
            return least
    return None


def _beyond(course: Course, before: Node, border: Node) -> Node | None:
    """The branch on the other side of a border, whichever way it goes there."""
    flat, tangent = border.flat(), border.flat_tangent(course.weight)
    for sense in (1, -1):
        row = sense * border.tangent
        guess = flat + sense * _REACH * course.step * tangent
        place = linearise(course.map_, _points(guess, before), float(guess[-1]))
        found = correct(place, course.map_, course.floor, course.tol, 10, row, course.weight)
        node = course.node(found.place, row) if found.converged else None
        if node is not None and _apart(border, node) < 0.5 * _apart(before, node):
            return node
    return None


def _told(
    course: Course, before: Node, place: Linearisation, after: Node | None, way: str
) -> Bifurcation:
    """The border collision as a bifurcation, without a normal form."""
    residual, bends = place.gap(course.floor), _bends(course, place)
    if after is not None and not bends:
        way += "; derivatives jump with the parameter alone"
    parts = [way, f"multipliers before it are {_listed(before.multipliers)}"]
    if after is not None:
        parts[1] += f", and beyond {_listed(after.multipliers)}"
        if bends and _one_kink(before, after) and _odd_flips(before, after):
            parts.append("a cycle of twice the period meets it there")
    tangent = np.append(before.tangent[:-1] / course.weight, before.tangent[-1])
    return Bifurcation(
        kind="border collision",
        parameter=place.parameter,
        state=place.points[0],
        period=len(place.points),
        multiplier=complex("nan"),
        coefficient=float("nan"),
        criticality="",
        residual=residual,
        converged=bool(residual <= _CLOSES),
        message="; ".join(parts),
        tangent=tangent / np.linalg.norm(tangent),
    )


def _bends(course: Course, place: Linearisation) -> bool:
    """Whether the map has the kink in its state."""
    return on_kink(course.map_, place, partial(linearise, course.map_), course.floor)


def _listed(multipliers: Complex[np.ndarray, " n"]) -> str:
    def shown(value: complex) -> str:
        return f"{value:.4g}" if value.imag else f"{value.real:.4g}"

    listed = ", ".join(shown(complex(value)) for value in multipliers[:_LISTED])
    return listed + ", ..." * (len(multipliers) > _LISTED)


def _odd_flips(before: Node, after: Node) -> bool:
    """Feigin's condition: multipliers below -1 on both sides together are odd in number."""
    both = np.concatenate([before.multipliers, after.multipliers])
    real = np.real(both[np.imag(both) == 0])
    surely = not np.any(np.abs(real + 1) < _UPRIGHT)
    return bool(surely and np.sum(real < -1) % 2 == 1)


def _one_kink(before: Node, after: Node) -> bool:
    """Whether one point of the cycle passes one kink, of a map that is continuous there."""
    jump: Float[np.ndarray, "period n n"] = after.place.jacobians - before.place.jacobians
    sizes = np.linalg.svd(jump, compute_uv=False)
    return int(np.sum(sizes > _ONE_KINK * np.max(sizes))) == 1
