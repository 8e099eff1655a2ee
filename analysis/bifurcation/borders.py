"""Border collisions: where the cycles of a branch meet a kink of their map, and the branch beyond.

On either side the map is smooth, and so is the branch; at the border multipliers jump, and the
branch has a corner. It continues (persistence) or turns back (a nonsmooth fold; di Bernardo, Budd,
Champneys and Kowalczyk 2008, *Piecewise-smooth Dynamical Systems*, §3.1). Test functions and normal
forms of smooth bifurcations do not apply there.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from dlf_dynamics.analysis.bifurcation.arclength import Course, Node
from dlf_dynamics.analysis.bifurcation.cycles import Linearisation, linearise
from dlf_dynamics.analysis.bifurcation.kinks import JUMP, jumps_along, on_kink
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation

_REACH = 1e-5
"""Part of the largest step over which a branch is extrapolated to a kink, and beyond it."""

_AHEAD = 60
"""Number of bisections that locate a kink."""

_ONE_KINK = 1e-6
"""Second singular value of a jump of the Jacobian, relative to the first, up to which the jump
comes from a single kink."""

_CLOSES = 1e-7
"""Relative gap of a cycle at a border up to which the map itself does not jump."""

_SAME = 1e-9
"""Distance of points of a cycle, relative to their size, up to which they coincide."""

_UPRIGHT = 1e-6
"""Component of a tangent along the parameter up to which a branch is vertical; distance of a
multiplier from -1 within which it is on neither side."""

_LISTED = 3
"""Number of multipliers listed for each side."""


class _Border(NamedTuple):
    """A border collision on a branch.

    Attributes:
        before: the last point before it.
        after: the first point beyond it; none where the branch ends.
        shorter: period of the cycle to which it shrinks there, if it does.
        bifurcation: description of the border collision.
    """

    before: Node
    after: Node | None
    shorter: int | None
    bifurcation: Bifurcation


def border_ahead(course: Course, now: Node, after: Node | None) -> _Border | None:
    """The first border between a point and the next, or right ahead if there is no next one.

    Args:
        course: course of the branch.
        now: a point.
        after: the next point; none where no step succeeded.
    """
    before = now if after is None else _last_before(course, now, after)
    return None if before is None else _border(course, before)


def _last_before(course: Course, now: Node, after: Node) -> Node | None:
    """The last point before a kink that lies between two points, if one does."""
    ends = now.flat(), after.flat()

    def cycle_at(part: float) -> Linearisation:
        flat = (1 - part) * ends[0] + part * ends[1]
        return linearise(course.map_, _points(flat, now), float(flat[-1]))

    change = after.cycle.points - now.cycle.points, after.parameter - now.parameter
    predicted = [node.cycle.followed(*change) for node in (now, after)]
    if not jumps_along(cycle_at, (predicted[0] + predicted[1]) / 2):
        return None
    low, low_node, high, beyond = 0.0, now, course.between(now, after).length, after
    while high - low > 0.1 * _REACH * course.step:
        middle = (low + high) / 2
        node = course.at(now, middle)
        # The point in the middle is on the side of the end from which it differs less.
        if node is not None and _differ(low_node, node) <= _differ(beyond, node):
            low, low_node = middle, node
        else:
            high, beyond = middle, node or beyond
    return low_node


def _points(flat: np.ndarray, like: Node) -> np.ndarray:
    return flat[:-1].reshape(like.cycle.points.shape)


def _apart(one: Node, other: Node) -> float:
    return float(np.max(np.abs(one.cycle.jacobians - other.cycle.jacobians)))


def _differ(one: Node, other: Node) -> float:
    """Relative difference of Jacobians and points: if a map jumps, its Jacobian may not."""
    steepest = max(float(np.max(np.abs(node.cycle.jacobians))) for node in (one, other))
    size = max(float(np.max(np.abs(node.cycle.points))) for node in (one, other))
    moved = float(np.max(np.abs(one.cycle.points - other.cycle.points)))
    return _apart(one, other) / (steepest or 1.0) + moved / (size or 1.0)


def _border(course: Course, before: Node) -> _Border | None:
    """The border right ahead of a point, where the straight continuation of the branch jumps."""
    tangent, start = before.flat_tangent(course.weight), before.flat()
    steepest = float(np.max(np.abs(before.cycle.jacobians)))

    def at(distance: float) -> Linearisation:
        flat = start + distance * tangent
        return linearise(course.map_, _points(flat, before), float(flat[-1]))

    def beyond(here: Linearisation) -> bool:
        bend = np.max(np.abs(here.jacobians - before.cycle.jacobians))
        bent = bend > JUMP * max(1.0, steepest)  # near a superstable cycle nothing is steep
        return bool(bent or here.gap(course.floor) > JUMP)

    low, high = 0.0, _REACH * course.step
    if not beyond(at(high)):
        return None
    for _ in range(_AHEAD):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(at(middle)) else (middle, high)
    here, beyond_it = at(low), at(high)
    if not (beyond(beyond_it) and not beyond(here)):
        return None
    shorter = _shorter(here.points, course.floor)
    if shorter or beyond_it.gap(course.floor) > _CLOSES:
        note = (
            f"the cycle shrinks to one of period {shorter}" if shorter else "the map itself jumps"
        )
        return _Border(before, None, shorter, _bifurcation(course, before, here, None, note))
    past = at(high + _REACH * course.step)  # on the kink itself derivatives are neither side's
    sided = {"jacobians": past.jacobians, "df_dparameters": past.df_dparameters}
    other = course.node(here._replace(**sided), before.tangent)
    after = None if other is None else _beyond(course, before, other)
    note = "no cycle of this period was found beyond the kink"
    if after is not None:
        turns = before.rises != after.rises
        note = "the branch turns back there (a nonsmooth fold)" if turns else "the branch goes on"
        if abs(after.tangent[-1]) < _UPRIGHT:
            note = "beyond it cycles of one parameter form a line"
    return _Border(before, after, None, _bifurcation(course, before, here, after, note))


def _shorter(points: Float[np.ndarray, "period n"], floor: float) -> int | None:
    """The shorter period with which the points of a cycle repeat, if they do."""
    period, size = len(points), max(float(np.max(np.abs(points))), floor)
    for divisor in range(1, period):
        apart = np.max(np.abs(points - np.roll(points, divisor, axis=0)))
        if period % divisor == 0 and apart <= _SAME * size:
            return divisor
    return None


def _beyond(course: Course, before: Node, border: Node) -> Node | None:
    """The branch on the other side of a border, whichever way it continues there."""
    flat, tangent = border.flat(), border.flat_tangent(course.weight)
    for sense in (1, -1):
        row = sense * border.tangent
        guess = flat + sense * _REACH * course.step * tangent
        cycle = course.corrected(_points(guess, before), float(guess[-1]), row)
        node = None if cycle is None else course.node(cycle, row)
        if node is not None and _apart(border, node) < 0.5 * _apart(before, node):
            return node
    return None


def _bifurcation(
    course: Course, before: Node, cycle: Linearisation, after: Node | None, message: str
) -> Bifurcation:
    """The border collision as a bifurcation, without a normal form."""
    residual = cycle.gap(course.floor)
    bends = on_kink(course.map_, cycle, partial(linearise, course.map_), course.floor)
    if after is not None and not bends:
        message += "; derivatives jump with the parameter alone"
    parts = [message, f"multipliers before it are {_listed(before.multipliers)}"]
    if after is not None:
        parts[1] += f", and beyond {_listed(after.multipliers)}"
        if bends and _one_kink(before, after) and _odd_flips(before, after):
            parts.append("a cycle of twice the period meets it there")
    tangent = np.append(before.tangent[:-1] / course.weight, before.tangent[-1])
    return Bifurcation(
        kind="border collision",
        parameter=cycle.parameter,
        state=cycle.points[0],
        period=len(cycle.points),
        multiplier=complex("nan"),
        coefficient=float("nan"),
        criticality="",
        residual=residual,
        converged=bool(residual <= _CLOSES),
        message="; ".join(parts),
        tangent=tangent / np.linalg.norm(tangent),
    )


def _listed(multipliers: Complex[np.ndarray, " n"]) -> str:
    def shown(value: complex) -> str:
        return f"{value:.4g}" if value.imag else f"{value.real:.4g}"

    listed = ", ".join(shown(complex(value)) for value in multipliers[:_LISTED])
    return listed + ", ..." * (len(multipliers) > _LISTED)


def _odd_flips(before: Node, after: Node) -> bool:
    """Feigin's condition: the number of multipliers below -1 on both sides together is odd."""
    both = np.concatenate([before.multipliers, after.multipliers])
    real = np.real(both[np.imag(both) == 0])
    surely = not np.any(np.abs(real + 1) < _UPRIGHT)
    return bool(surely and np.sum(real < -1) % 2 == 1)


def _one_kink(before: Node, after: Node) -> bool:
    """Whether one point of the cycle crosses one kink of a map that is continuous there."""
    jump: Float[np.ndarray, "period n n"] = after.cycle.jacobians - before.cycle.jacobians
    sizes = np.linalg.svd(jump, compute_uv=False)
    return int(np.sum(sizes > _ONE_KINK * np.max(sizes))) == 1
