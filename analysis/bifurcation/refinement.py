"""Bifurcations between two points of a branch: located, and seen where they undo each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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

_MOST_LOOKS = 8
"""Points of the branch at most that are made to see whether a multiplier goes out and back."""


def locate(stretch: Stretch) -> list[Bifurcation]:
    """The bifurcations that the two ends of a stretch differ by, in the order of the branch."""
    located = [_located(stretch, found) for found in stretch.crossed()]

    def distance(one: Located) -> float:
        return _distance(stretch, np.append(one.place.points.ravel(), one.place.parameter))

    return [classify(stretch.course.map_, one) for one in sorted(located, key=distance)]


def halves(stretch: Stretch, found: Bifurcation) -> bool:
    """Whether a doubled cycle has shrunk to the one that it came from, at a point in a stretch."""
    half, value = found.period // 2, found.parameter
    if found.kind != "branch point" or found.period % 2 or not stretch.crossed():
        return False
    return _shrunk(stretch, first_points(stretch.course.map_, found.state, value, 2 * half))


def undone(before: Node | None, stretch: Stretch, beyond: Node | None) -> Node | None:
    """A point between the ends of a stretch from which one of them differs by a bifurcation.

    Its ends themselves do not. A parabola through functions of three points, of which the third is
    a neighbour, may have an extremum of the other sign in between: there the branch is looked at,
    and again with what was found, until one is seen or none is expected any more.

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
        place = _expected(known, stretch.length)
        node = None if place is None else stretch.at(place)
        if place is None or node is None:
            return None
        if stretch.course.between(stretch.now, node).crossed():
            return node
        known = sorted([*known, (place, node)], key=lambda item: item[0])
        index = next(i for i, (distance, _) in enumerate(known) if distance == place)
        known = known[max(index - 1, 0) : index + 2]
    return None


def _expected(known: list[tuple[float, Node]], length: float) -> float | None:
    """A distance inside the stretch at which some function is expected to have changed its sign."""
    for i in range(len(known) - 2):
        places, nodes = zip(*known[i : i + 3], strict=True)
        turning = tuple(float(node.tangent[-1]) for node in nodes)
        for values in watched(tuple(node.multipliers for node in nodes), turning):
            place = dip(np.array(places), values)
            inside = place is not None and 1e-6 * length < place < (1 - 1e-6) * length
            if inside and min(abs(place - p) for p in places) > 1e-9 * length:
                return place
    return None


def _located(stretch: Stretch, found: Crossed) -> Located:
    """One of the bifurcations, refined on the branch."""
    refine = _crossing if found.kind == "branch point" else _refined
    node, error = refine(stretch, _test(stretch, found)) or (stretch.after, np.inf)
    course = stretch.course
    error /= max(abs(node.parameter), course.until[1] - course.until[0])
    neutral = neutral_count(stretch.now.multipliers, stretch.after.multipliers)
    left = np.min(np.abs(excess(found.kind, node.multipliers, neutral)), initial=np.inf)
    left = abs(node.tangent[-1]) if found.kind == "fold" else float(left)
    tangent = np.append(node.tangent[:-1] / course.weight, node.tangent[-1])
    return Located(
        found,
        node.place,
        node.multipliers,
        tangent=tangent / np.linalg.norm(tangent),
        residual=max(node.place.gap(course.floor), left) if np.isfinite(error) else np.inf,
        error=error,
        neutral=neutral_count(*(n.multipliers for n in (stretch.now, stretch.after)), within=CLOSE),
        halved=found.kind == "branch point" and _shrunk(stretch, node.place.points),
    )


def _shrunk(stretch: Stretch, points: Float[np.ndarray, "period n"]) -> bool:
    """Whether the points of a cycle repeat themselves after half of it, as those around do not."""
    half = len(points) // 2
    if len(points) % 2:
        return False
    cycles = points, stretch.now.place.points, stretch.after.place.points
    apart, *nearby = (float(np.max(np.abs(part[:half] - part[half:]))) for part in cycles)
    return apart < 0.1 * max(nearby)


def _swaps(stretch: Stretch) -> bool:
    """Whether both halves of a cycle change places, so that it has half the period in between."""
    half = len(stretch.now.place.points) // 2
    if half == 0 or len(stretch.now.place.points) % 2:
        return False
    ends = (node.place.points for node in (stretch.now, stretch.after))
    first, last = (points[:half] - points[half:] for points in ends)
    return bool(np.sum(first * last) < 0)


def _test(stretch: Stretch, found: Crossed) -> Callable[[Node], float]:
    """A function that changes sign at the bifurcation, and is 0 there."""
    kind, now, after = found.kind, stretch.now, stretch.after
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
        return float(farthest[found.rank]) if len(farthest) > found.rank else -1.0

    # Where several multipliers cross, and perhaps together, each is followed by its rank.
    several = sum(other.kind == kind for other in stretch.crossed()) > 1
    return ranked if several or not ends[0][0] * ends[1][0] < 0 else vanishing


class _Refined(NamedTuple):
    """A point of the branch, and the error of its parameter."""

    node: Node
    error: float


def _refined(stretch: Stretch, test: Callable[[Node], float]) -> _Refined | None:
    """Where a test function vanishes; at a fold that is the parameter's part of the tangent."""
    root = stretch.root(test)
    places = () if root is None else (root, *(root + 1e-3 * stretch.length * np.array([-1, 1])))
    nodes = [node for place in places if (node := stretch.at(place)) is not None]
    if len(nodes) < 3:
        return None
    left, low, high = (test(node) for node in nodes)
    slope = abs(high - low) / (2e-3 * stretch.length)
    change = max(abs(node.tangent[-1]) for node in nodes)  # of the parameter with the distance
    return _Refined(nodes[0], (abs(left) + 1e-15) / slope * change if slope else np.inf)


def _crossing(stretch: Stretch, test: Callable[[Node], float]) -> _Refined | None:
    """The same at a branch point, where the corrector is singular.

    It is where two branches cross. Where more than one multiplier is 1 that cannot be solved for,
    and it is interpolated from its neighbourhood.
    """
    root = stretch.root(test, precision=1e-2)
    if root is None:
        return None
    guess, course, period = stretch.guess(root), stretch.course, len(stretch.now.place.points)
    state = guess[: stretch.now.place.points.shape[1]]
    crossing = find_crossing(course.map_, state, float(guess[-1]), period)
    if crossing is None:
        several = len(stretch.crossed()) > 1 or neutral_count(stretch.now.multipliers) > 0
        return _interpolated(stretch, test, root) if several or _swaps(stretch) else None
    place = linearise(course.map_, crossing.points, crossing.parameter)
    distance = _distance(stretch, np.append(crossing.points.ravel(), crossing.parameter))
    if not -0.1 < distance / stretch.length < 1.1:
        return None
    node = Node(place, _between(stretch, distance))
    scale = max(abs(node.parameter), abs(1 / crossing.quadratic[1]))
    return _Refined(node, crossing.error * scale)


def _interpolated(stretch: Stretch, test: Callable[[Node], float], root: float) -> _Refined | None:
    """Where a test function vanishes, by those of its values that are not too close to it."""
    at_zero, error = np.empty(0), np.inf
    for _ in range(2):
        places = [root + 0.03 * stretch.length * side for side in (-3, -2, -1, 1, 2, 3)]
        found = [(node, place) for place in places if (node := stretch.at(place)) is not None]
        if len(found) < 5:
            return None
        values = np.array([test(node) for node, _ in found])
        states = np.stack([np.append(place, node.flat()) for node, place in found])
        at_zero = BarycentricInterpolator(values, states)(0.0)
        coarser = BarycentricInterpolator(values[1:-1], states[1:-1])(0.0)
        root, error = float(at_zero[0]), float(abs(at_zero[-1] - coarser[-1]))
    points = at_zero[1:-1].reshape(stretch.now.place.points.shape)
    place = linearise(stretch.course.map_, points, at_zero[-1])
    return _Refined(Node(place, _between(stretch, root)), error)


def _distance(stretch: Stretch, flat: Float[np.ndarray, " m"]) -> float:
    """Of points and a parameter, along the tangent at the start."""
    size, weight = stretch.now.place.points.shape[1], stretch.course.weight
    change = flat - stretch.now.flat()
    return float(stretch.now.tangent @ np.append(weight * change[:size], change[-1]))


def _between(stretch: Stretch, distance: float) -> Float[np.ndarray, " n+1"]:
    """The tangent at a distance, to first order; at a branch point it has no equation."""
    part = distance / stretch.length
    tangent = (1 - part) * stretch.now.tangent + part * stretch.after.tangent
    return tangent / np.linalg.norm(tangent)
