"""Branches of cycles in one parameter, and the bifurcations on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from dlf_dynamics.analysis.bifurcation.arclength import Course, Node, Stretch
from dlf_dynamics.analysis.bifurcation.borders import border_ahead
from dlf_dynamics.analysis.bifurcation.cycles import (
    Cycle,
    find_cycle,
    is_stable,
    linearise,
    require_matrices,
)
from dlf_dynamics.analysis.bifurcation.kinks import kinks_note, may_jump, on_kink
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation
from dlf_dynamics.analysis.bifurcation.paths import LEAST_STEP, SHARPEST_TURN
from dlf_dynamics.analysis.bifurcation.refinement import halves, locate, undone
from dlf_dynamics.reprs import brief

Direction = Literal["both", "increasing", "decreasing"]
Status = Literal[
    "range left",
    "max points",
    "step too small",
    "not converged",
    "period halved",
    "border collision",
]


@dataclass(frozen=True)
class Branch:
    """Cycles along a curve, in the order in which it passes through them.

    Attributes:
        parameters: (k,) parameters of the cycles.
        points: (k, period, n) points of the cycles.
        multipliers: (k, n), largest modulus first.
        stable: (k,) whether all multipliers are inside the unit circle; false where the branch lies
            on a kink of the map from end to end, where stability is unknown, as the message says.
        residuals: (k,) residuals, as in `Cycle`.
        bifurcations: bifurcations in the same order.
        status: "range left" if both ends left the range of the parameter, else why an end did not.
        message: how each end came about.
    """

    parameters: Float[np.ndarray, " k"]
    points: Float[np.ndarray, "k period n"]
    multipliers: Complex[np.ndarray, "k n"]
    stable: Bool[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    bifurcations: tuple[Bifurcation, ...]
    status: Status
    message: str
    __repr__ = brief


@np.errstate(all="ignore")  # what overflows is not finite, and no point of a branch
def continue_cycle(
    map_: Map,
    start: Cycle | Float[Array | np.ndarray, "..."],
    parameter: float | None = None,
    period: int | None = None,
    *,
    until: tuple[float, float],
    step: float | None = None,
    max_points: int = 500,
    tol: float = 1e-12,
    direction: Direction = "both",
) -> Branch:
    """Follows a cycle in the parameter, past folds, by pseudo-arclength continuation.

    Arclength is that of (parameter, first point), where a change of the point by its own size
    counts as much as one of the parameter through the whole range (Kuznetsov 2004, §10.2); its
    size is the largest so far. Steps are halved where Newton's method fails, the branch turns
    sharply, or two bifurcations fall into one step. Folds are where the parameter turns back, other
    bifurcations where the number of multipliers outside the unit circle changes. Each is refined on
    the branch itself as the zero of a determinant (Kuznetsov 2004, §10.3): of J + 1 or J - 1, or
    the product of μ_i μ_j - 1 over all pairs of multipliers. Unlike multipliers, these are smooth
    where a pair of multipliers meets on the real axis. Where several cross together, so that a
    determinant keeps its sign, each multiplier is followed instead.

    A multiplier that leaves the unit circle and returns within a step does not change their number.
    It is detected where a parabola predicts it, through its values, or those of a determinant, at
    three neighbouring points. Excursions too narrow for a parabola through points a step apart are
    missed, as is a multiplier that touches the circle; a smaller step may show the former.

    A map with kinks is followed through smooth pieces, and the message names the kinks. Where a
    cycle meets one its multipliers jump: a border collision, at which the branch goes on, turns
    back or ends, as its message says. It is detected where the Jacobian jumps by more than a
    sixtieth of its change within a step; a smaller step may show more of them. Test functions are
    compared on smooth pieces only.

    Args:
        map_: the map.
        start: a cycle, or a guess of one as for `find_cycle`.
        parameter: parameter at the start; that of the cycle when not given.
        period: period of the cycle; the cycle's own when not given.
        until: lowest and highest parameter of interest; a branch ends at them exactly.
        step: largest arclength between points, by default 1/50 of the range.
        max_points: number of points in each direction, besides the start.
        tol: relative residual of each cycle.
        direction: direction in which the parameter first moves.

    Raises:
        ValueError: when the start is outside the range, the step is not positive, the direction is
            unknown, or a guess has no parameter and period, and as in `find_cycle`.

    >>> import jax
    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> branch = continue_cycle(logistic, np.array([0.6]), 2.5, 1, until=(2.0, 3.4))
    >>> [(b.kind, round(b.parameter, 9), b.criticality) for b in branch.bifurcations]
    [('flip', 3.0, 'supercritical')]
    """
    guess = start.points if isinstance(start, Cycle) else start
    if isinstance(start, Cycle):
        parameter = start.parameter if parameter is None else parameter
        period = start.period if period is None else period
    if parameter is None or period is None:
        raise ValueError("a state alone is no start; expected its parameter and period as well")
    _require_range(until, parameter, step, direction)
    require_matrices(np.shape(guess)[-1:])
    cycle = find_cycle(map_, guess, parameter, period, tol=tol)
    if cycle.least_period != period:
        return _branch([], cycle.points.shape, f"no cycle to start from: {cycle.message}")
    span, size = until[1] - until[0], float(np.linalg.norm(cycle.points[0]))
    floor, weight = float(np.max(np.abs(cycle.points))), span / (size if size > 1e-8 else 1.0)
    course = Course(map_, until, step or span / 50, max_points, tol, floor, weight)
    vertical = np.append(np.zeros(len(cycle.points[0])), 1.0)
    origin = course.node(linearise(map_, cycle.points, cycle.parameter), vertical)
    if origin is None:
        return _branch([], cycle.points.shape, "no tangent at the start: derivatives not finite")
    senses = {"both": (-1, 1), "increasing": (1,), "decreasing": (-1,)}[direction]
    kinked = may_jump(map_, cycle.points[0], parameter)
    parts = [_follow(course, origin.facing(sense), kinked=kinked) for sense in senses]
    branch = _branch(parts, cycle.points.shape)
    lies = kinked and _lies_on_kink(course, parts)
    note = kinks_note(map_, cycle.points[0], parameter, on_one=lies)
    stable = branch.stable & (not lies)
    return replace(branch, message=branch.message + note, stable=stable)


def _lies_on_kink(course: Course, parts: list[_Part]) -> bool:
    """Whether a branch lies on a kink from end to end, as at an orbit of dead units."""
    nodes = [node for part in parts for node in part.nodes]
    some = nodes[0], nodes[len(nodes) // 2], nodes[-1], parts[0].nodes[-1]
    evaluate = partial(linearise, course.map_)
    return all(on_kink(course.map_, node.cycle, evaluate, course.floor) for node in some)


class _Part(NamedTuple):
    """One end of a branch, from the start outwards."""

    nodes: list[Node]
    bifurcations: list[Bifurcation]
    status: Status
    message: str


def _follow(course: Course, start: Node, *, kinked: bool) -> _Part:
    """The branch from its start onwards, until it ends."""
    nodes, bifurcations, length, smooth = [start], list[Bifurcation](), course.step, 0
    heading = "upwards" if start.rises else "downwards"

    def ended(status: Status, why: str) -> _Part:
        return _Part(nodes, bifurcations, status, f"{heading}: {why} at {nodes[-1].parameter:.9g}")

    while True:
        bound = course.until[nodes[-1].rises]
        if abs(nodes[-1].parameter - bound) <= LEAST_STEP * course.step:
            nodes[-1] = course.moved(nodes[-1], bound) or nodes[-1]
            return ended("range left", "left the range")
        if len(nodes) > course.max_points:
            return ended("max points", f"{course.max_points} points made")
        advanced = _advance(course, nodes[-1], length)
        status, (after, length) = (
            (advanced, (None, course.step)) if isinstance(advanced, str) else ("", advanced)
        )
        border = border_ahead(course, nodes[-1], after) if kinked else None
        after = after if border is None else border.before
        if after is None:
            return ended(status or "not converged", f"{status}; a smaller step may help")
        if after is not nodes[-1] and _passed(course, nodes, smooth, after, bifurcations):
            return ended("period halved", "came from a flip of half the period")
        if border is not None:
            bifurcations.append(border.bifurcation)
            if border.after is None:
                halved: Status = "period halved" if border.shorter else "border collision"
                return ended(halved, "ended at a border collision")
            smooth = len(nodes)
            nodes.append(border.after)
        course, nodes[-3:] = course.rescaled(nodes[-3:])
        length = min(1.5 * length, course.step)


def _passed(
    course: Course, nodes: list[Node], smooth: int, after: Node, bifurcations: list[Bifurcation]
) -> bool:
    """Adds the next point with the bifurcations before it; whether the branch ends at one.

    Args:
        course: course of the branch.
        nodes: its points so far.
        smooth: index of the first of them since a kink.
        after: the next point.
        bifurcations: bifurcations so far.
    """
    if len(nodes) - smooth > 1:  # a bifurcation between the last two may show only now
        before, last = nodes[-3] if len(nodes) - smooth > 2 else None, nodes.pop()
        pieces = _pieces(before, course.between(nodes[-1], last), after)
        nodes += [piece.after for piece in pieces]
        if len(pieces) > 1:
            bifurcations += [bifurcation for piece in pieces for bifurcation in locate(piece)]
    before = nodes[-2] if len(nodes) - smooth > 1 else None
    for piece in _pieces(before, course.between(nodes[-1], after), None):
        bifurcations += locate(piece)
        if bifurcations and halves(piece, bifurcations[-1]):
            return True
        nodes.append(piece.after)
    return False


def _pieces(before: Node | None, stretch: Stretch, beyond: Node | None) -> list[Stretch]:
    """A stretch, split in two where a bifurcation in it is undone before its end."""
    middle = None if stretch.crossed() else undone(before, stretch, beyond)
    if middle is None:
        return [stretch]
    course = stretch.course
    return [course.between(stretch.now, middle), course.between(middle, stretch.after)]


def _advance(course: Course, now: Node, length: float) -> tuple[Node, float] | Status:
    """The next point and its distance, with as small a step as necessary."""
    status: Status = "step too small"
    while length > LEAST_STEP * course.step:
        after, used = course.at(now, length), length
        if after is not None and not course.until[0] <= after.parameter <= course.until[1]:
            after, used = _to_end(course, now, after)
        status = "not converged" if after is None else "step too small"
        after = after and after.after(now)
        if after is not None and now.tangent @ after.tangent > np.cos(SHARPEST_TURN):
            few = len(course.between(now, after).crossed()) < 2
            if few or used < 1e-3 * course.step:
                return after, used
        length /= 2
    return status


def _to_end(course: Course, now: Node, after: Node) -> tuple[Node | None, float]:
    """The point at the end of the range that a step passed, and its distance."""
    bound = course.until[1 if after.parameter > course.until[1] else 0]
    stretch = course.between(now, after)
    root = stretch.root(lambda node: node.parameter - bound) or 0.0
    node = stretch.at(root) if root > LEAST_STEP * course.step else None
    return node and replace(node, cycle=node.cycle._replace(parameter=bound)), root


def _branch(parts: list[_Part], shape: tuple[int, ...], message: str = "") -> Branch:
    """Both ends of a branch in one order; without any it did not start."""
    nodes, bifurcations = list[Node](), list[Bifurcation]()
    for part in parts:  # earlier parts are reversed, without their start
        nodes = nodes[:0:-1] + part.nodes
        bifurcations = bifurcations[::-1] + part.bifurcations
    ends: list[Status] = [part.status for part in parts] or ["not converged"]
    multipliers = np.array([node.multipliers for node in nodes], complex)
    return Branch(
        parameters=np.array([node.parameter for node in nodes]),
        points=np.array([node.cycle.points for node in nodes]).reshape(-1, *shape),
        multipliers=multipliers.reshape(-1, shape[1]),
        stable=np.array([is_stable(row) for row in multipliers], bool),
        residuals=np.array([node.cycle.gap() for node in nodes]),
        bifurcations=tuple(bifurcations),
        status=max(ends, key=lambda status: status != "range left"),
        message="; ".join(part.message for part in parts) or message,
    )


def _require_range(
    until: tuple[float, float], parameter: float, step: float | None, direction: str
) -> None:
    if not (until[0] < until[1] and until[0] <= parameter <= until[1]):
        raise ValueError(f"no range from {until[0]} to {until[1]} with the start {parameter} in it")
    if step is not None and not step > 0:
        raise ValueError(f"step is {step}; expected more than 0")
    if direction not in get_args(Direction):
        raise ValueError(f"direction is {direction!r}; expected one of {get_args(Direction)}")
