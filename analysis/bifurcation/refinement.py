"""Bifurcations between two points of a branch: location, and detection where two cancel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.interpolate import BarycentricInterpolator

from dlf_dynamics.analysis.bifurcation.arclength import Node, Stretch
from dlf_dynamics.analysis.bifurcation.branch_points import find_crossing
from dlf_dynamics.analysis.bifurcation.classification import Located, classify
from dlf_dynamics.analysis.bifurcation.cycles import first_points, linearise
from dlf_dynamics.analysis.bifurcation.detection import (
    Crossed,
    determinant,
    dip,
    excess,
    neutral_count,
    watched,
)
from dlf_dynamics.analysis.bifurcation.expansion import CLOSE
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation

_Refined = tuple[Node, float]
"""A point of the branch, and the error of its parameter."""

_MOST_LOOKS = 8
"""Largest number of points computed to see whether a multiplier leaves and returns."""


def locate(stretch: Stretch) -> list[Bifurcation]:
    """The bifurcations by which the two ends of a stretch differ, in the order of the branch."""
    located = [_located(stretch, crossed) for crossed in stretch.crossed()]

    def distance(one: Located) -> float:
        return _distance(stretch, np.append(one.cycle.points.ravel(), one.cycle.parameter))

    return [classify(stretch.course.map_, one) for one in sorted(located, key=distance)]


def halves(stretch: Stretch, bifurcation: Bifurcation) -> bool:
    """Whether a doubled cycle has shrunk to the cycle it came from, at a bifurcation."""
    half, value = bifurcation.period // 2, bifurcation.parameter
    if bifurcation.kind != "branch point" or bifurcation.period % 2 or not stretch.crossed():
        return False
    return _shrunk(stretch, first_points(stretch.course.map_, bifurcation.state, value, 2 * half))


def undone(before: Node | None, stretch: Stretch, beyond: Node | None) -> Node | None:
    """A point within a stretch from which an end differs by a bifurcation that the other undoes.

    A parabola through the values of a function at three points, the third being a neighbour, may
    have an extremum of the other sign in between: there the branch is evaluated, and again with the
    new point, until a bifurcation is found or none is expected any more.

    Args:
        before: the point before the stretch, if any.
        stretch: the branch between two of its points.
        beyond: the point after it, if any.
    """
    known = [(0.0, stretch.now), (stretch.length, stretch.after)]
    if before is None and (middle := stretch.at(stretch.length / 2)) is not None:
        if stretch.course.between(stretch.now, middle).crossed():
            return middle
        known.insert(1, (stretch.length / 2, middle))
    elif before is not None:
        known.insert(0, (-stretch.course.between(before, stretch.now).length, before))
    if beyond is not None:
        further = stretch.course.between(stretch.after, beyond).length
        known.append((stretch.length + further, beyond))
    for _ in range(_MOST_LOOKS):
        distance = _expected(known, stretch.length)
        node = None if distance is None else stretch.at(distance)
        if distance is None or node is None:
            return None
        if stretch.course.between(stretch.now, node).crossed():
            return node
        known = sorted([*known, (distance, node)], key=lambda item: item[0])
        index = next(i for i, (other, _) in enumerate(known) if other == distance)
        known = known[max(index - 1, 0) : index + 2]
    return None


def _expected(known: list[tuple[float, Node]], length: float) -> float | None:
    """A distance within the stretch at which some function is expected to have another sign."""
    for i in range(len(known) - 2):
        distances, nodes = zip(*known[i : i + 3], strict=True)
        turning = tuple(float(node.tangent[-1]) for node in nodes)
        for values in watched(tuple(node.multipliers for node in nodes), turning):
            distance = dip(np.array(distances), values)
            inside = distance is not None and 1e-6 * length < distance < (1 - 1e-6) * length
            if inside and min(abs(distance - p) for p in distances) > 1e-9 * length:
                return distance
    return None


def _located(stretch: Stretch, crossed: Crossed) -> Located:
    """One of the bifurcations of a stretch, refined on the branch."""
    refine = _crossing if crossed.kind == "branch point" else _refined
    node, error = refine(stretch, _test(stretch, crossed)) or (stretch.after, np.inf)
    course = stretch.course
    error /= max(abs(node.parameter), course.until[1] - course.until[0])
    neutral = neutral_count(stretch.now.multipliers, stretch.after.multipliers)
    left = np.min(np.abs(excess(crossed.kind, node.multipliers, neutral)), initial=np.inf)
    left = abs(node.tangent[-1]) if crossed.kind == "fold" else float(left)
    tangent = np.append(node.tangent[:-1] / course.weight, node.tangent[-1])
    return Located(
        crossed,
        node.cycle,
        node.multipliers,
        tangent=tangent / np.linalg.norm(tangent),
        residual=max(node.cycle.gap(course.floor), left) if np.isfinite(error) else np.inf,
        error=error,
        neutral=neutral_count(*(n.multipliers for n in (stretch.now, stretch.after)), within=CLOSE),
        halved=crossed.kind == "branch point" and _shrunk(stretch, node.cycle.points),
    )


def _shrunk(stretch: Stretch, points: Float[np.ndarray, "period n"]) -> bool:
    """Whether the points of a cycle repeat after half of it, unlike those of its neighbours."""
    half = len(points) // 2
    if len(points) % 2:
        return False
    cycles = points, stretch.now.cycle.points, stretch.after.cycle.points
    apart, *nearby = (float(np.max(np.abs(part[:half] - part[half:]))) for part in cycles)
    return apart < 0.1 * max(nearby)


def _swaps(stretch: Stretch) -> bool:
    """Whether both halves of a cycle swap along a stretch, so that its period halves in between."""
    half = len(stretch.now.cycle.points) // 2
    if half == 0 or len(stretch.now.cycle.points) % 2:
        return False
    ends = (node.cycle.points for node in (stretch.now, stretch.after))
    first, last = (points[:half] - points[half:] for points in ends)
    return bool(np.sum(first * last) < 0)


def _test(stretch: Stretch, crossed: Crossed) -> Callable[[Node], float]:
    """A function that changes sign at the bifurcation, and is 0 there."""
    kind, now, after = crossed.kind, stretch.now, stretch.after
    if kind in ("fold", "branch point") and now.rises != after.rises:
        return lambda node: float(node.tangent[-1])
    neutral = neutral_count(now.multipliers, after.multipliers)
    ends = [determinant(kind, node.multipliers, neutral) for node in (now, after)]
    scale = max(log for _, log in ends)

    def vanishing(node: Node) -> float:
        sign, log = determinant(kind, node.multipliers, neutral)
        return sign * float(np.exp(log - scale))

    def ranked(node: Node) -> float:
        farthest = excess(kind, node.multipliers, neutral)
        return float(farthest[crossed.rank]) if len(farthest) > crossed.rank else -1.0

    # Where several multipliers cross, perhaps together, each is followed by its rank.
    several = sum(other.kind == kind for other in stretch.crossed()) > 1
    return ranked if several or not ends[0][0] * ends[1][0] < 0 else vanishing


def _refined(stretch: Stretch, test: Callable[[Node], float]) -> _Refined | None:
    """Zero of a test function; at a fold that is the tangent's component along the parameter."""
    root = stretch.root(test)
    distances = () if root is None else (root, *(root + 1e-3 * stretch.length * np.array([-1, 1])))
    nodes = [node for distance in distances if (node := stretch.at(distance)) is not None]
    if len(nodes) < 3:
        return None
    left, low, high = (test(node) for node in nodes)
    steepness = abs(high - low) / (2e-3 * stretch.length)
    change = max(abs(node.tangent[-1]) for node in nodes)  # of the parameter with the distance
    return nodes[0], (abs(left) + 1e-15) / steepness * change if steepness else np.inf


def _crossing(stretch: Stretch, test: Callable[[Node], float]) -> _Refined | None:
    """Zero of a test function at a branch point, where the corrector is singular.

    It is computed as the crossing of two branches. Where more than one multiplier is 1 that fails,
    and it is interpolated from its neighbourhood.
    """
    root = stretch.root(test, precision=1e-2)
    if root is None:
        return None
    guess, course, period = stretch.guess(root), stretch.course, len(stretch.now.cycle.points)
    state = guess[: stretch.now.cycle.points.shape[1]]
    crossing = find_crossing(course.map_, state, float(guess[-1]), period)
    if crossing is None:
        several = len(stretch.crossed()) > 1 or neutral_count(stretch.now.multipliers) > 0
        return _interpolated(stretch, test, root) if several or _swaps(stretch) else None
    cycle = linearise(course.map_, crossing.points, crossing.parameter)
    distance = _distance(stretch, np.append(crossing.points.ravel(), crossing.parameter))
    if not -0.1 < distance / stretch.length < 1.1:
        return None
    node = Node(cycle, _between(stretch, distance))
    scale = max(abs(node.parameter), abs(1 / crossing.quadratic[1]))
    return node, crossing.error * scale


def _interpolated(stretch: Stretch, test: Callable[[Node], float], root: float) -> _Refined | None:
    """Zero of a test function, interpolated from values that are not too close to it."""
    at_zero, error = np.empty(0), np.inf
    for _ in range(2):
        offsets = 0.03 * stretch.length * np.array([-3, -2, -1, 1, 2, 3])
        nearby = [(node, at) for at in root + offsets if (node := stretch.at(at)) is not None]
        if len(nearby) < 5:
            return None
        values = np.array([test(node) for node, _ in nearby])
        states = np.stack([np.append(distance, node.flat()) for node, distance in nearby])
        at_zero = BarycentricInterpolator(values, states)(0.0)
        coarser = BarycentricInterpolator(values[1:-1], states[1:-1])(0.0)
        root, error = float(at_zero[0]), float(abs(at_zero[-1] - coarser[-1]))
    points = at_zero[1:-1].reshape(stretch.now.cycle.points.shape)
    cycle = linearise(stretch.course.map_, points, at_zero[-1])
    return Node(cycle, _between(stretch, root)), error


def _distance(stretch: Stretch, flat: Float[np.ndarray, " m"]) -> float:
    """Distance of points and a parameter, along the tangent at the start."""
    size, weight = stretch.now.cycle.points.shape[1], stretch.course.weight
    change = flat - stretch.now.flat()
    return float(stretch.now.tangent @ np.append(weight * change[:size], change[-1]))


def _between(stretch: Stretch, distance: float) -> Float[np.ndarray, " n+1"]:
    """The tangent at a distance, interpolated; at a branch point no equation determines it."""
    part = distance / stretch.length
    tangent = (1 - part) * stretch.now.tangent + part * stretch.after.tangent
    return tangent / np.linalg.norm(tangent)
