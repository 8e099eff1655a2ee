"""Points of a branch, and the branch between two of them, by pseudo-arclength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Complex, Float
from scipy.interpolate import CubicHermiteSpline

from dlf_dynamics.analysis.bifurcation.cycles import (
    Linearisation,
    correct,
    linearise,
    solve,
)
from dlf_dynamics.analysis.bifurcation.detection import Crossed, crossed
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import multipliers_of

_PAUSE = 1e-13
"""Parameter's part of a tangent below which its sign is rounding."""


@dataclass(frozen=True)
class Node:
    """A cycle on a branch; the tangent is a unit vector in (weight · x_0, parameter)."""

    place: Linearisation
    tangent: Float[np.ndarray, " n+1"]

    @cached_property
    def multipliers(self) -> Complex[np.ndarray, " n"]:
        """Of the cycle; most points that are only looked at need none."""
        return multipliers_of(self.place.condensed().matrix)

    @property
    def parameter(self) -> float:
        """Of the map."""
        return self.place.parameter

    @property
    def rises(self) -> bool:
        """Whether the parameter increases along the tangent."""
        return bool(self.tangent[-1] >= 0)

    def facing(self, sense: int) -> Node:
        """The same with the parameter moving in this sense along the tangent."""
        return replace(self, tangent=self.tangent * (sense if self.rises else -sense))

    def after(self, before: Node) -> Node:
        """The same, with a parameter that pauses here going on as it did at the point before."""
        if abs(self.tangent[-1]) > _PAUSE:
            return self
        part = np.copysign(_PAUSE, before.tangent[-1])
        return replace(self, tangent=np.append(self.tangent[:-1], part))

    def flat(self) -> Float[np.ndarray, " m"]:
        """All points and the parameter in one vector."""
        return np.append(self.place.points.ravel(), self.parameter)

    def flat_tangent(self, weight: float) -> Float[np.ndarray, " m"]:
        """How they change along the tangent."""
        first, change = self.tangent[:-1] / weight, self.tangent[-1]
        return np.append(self.place.spread(first, change).ravel(), change)


@dataclass(frozen=True)
class Course:
    """What stays the same along a branch; states are weighted for the arclength."""

    map_: Map
    until: tuple[float, float]
    step: float
    max_points: int
    tol: float
    floor: float
    weight: float

    def node(self, place: Linearisation, row: Float[np.ndarray, " n+1"]) -> Node | None:
        """A point with the tangent that has a component along `row`, if it can be had."""
        system = place.condensed().bordered(row, self.weight)
        last = np.append(np.zeros(len(row) - 1), 1.0)
        tangent, _ = solve(system, last)
        if not np.all(np.isfinite(tangent)):
            return None
        if np.linalg.norm(system @ tangent - last) > 1e-6:  # the tangent is normal to the row
            tangent = np.linalg.svd(system[:-1])[2][-1]
        return Node(place, tangent / np.linalg.norm(tangent))

    def at(self, node: Node, length: float, guess: np.ndarray | None = None) -> Node | None:
        """The branch at a distance along the tangent, or none where Newton's method fails."""
        if guess is None:
            guess = node.flat() + length * node.flat_tangent(self.weight)
        place = linearise(self.map_, guess[:-1].reshape(node.place.points.shape), guess[-1])
        found = correct(place, self.map_, self.floor, self.tol, 10, node.tangent, self.weight)
        return self.node(found.place, node.tangent) if found.converged else None

    def moved(self, node: Node, parameter: float) -> Node | None:
        """The cycle at a parameter next to that of a point, or none where it cannot be had."""
        place = linearise(self.map_, node.place.points, parameter)
        found = correct(place, self.map_, self.floor, self.tol, 10)
        return self.node(found.place, node.tangent) if found.converged else None

    def rescaled(self, nodes: list[Node]) -> tuple[Course, list[Node]]:
        """The same with states weighted by the size of the last, once it has grown by a tenth."""
        span, size = self.until[1] - self.until[0], float(np.linalg.norm(nodes[-1].place.points[0]))
        if size * self.weight < 1.1 * span:
            return self, nodes
        course = replace(self, weight=span / size)
        turned = [
            np.append(course.weight / self.weight * node.tangent[:-1], node.tangent[-1])
            for node in nodes
        ]
        pairs = zip(nodes, turned, strict=True)
        return course, [replace(node, tangent=t / np.linalg.norm(t)) for node, t in pairs]

    def between(self, now: Node, after: Node) -> Stretch:
        """The branch from one point to another."""
        ahead = np.append(self.weight * now.place.points[0], now.parameter)
        there = np.append(self.weight * after.place.points[0], after.parameter)
        return Stretch(self, now, after, float(now.tangent @ (there - ahead)))


class Stretch(NamedTuple):
    """A branch between two of its points, by the distance along the tangent of the first."""

    course: Course
    now: Node
    after: Node
    length: float

    def at(self, distance: float) -> Node | None:
        """The branch at a distance, or none where Newton's method fails.

        Close to a branch point only guesses as good as this, from both ends, lead to the branch.
        """
        return (
            self.now if distance == 0 else self.course.at(self.now, distance, self.guess(distance))
        )

    def guess(self, distance: float) -> Float[np.ndarray, " m"]:
        """All points and the parameter at a distance, from those and the tangents of both ends."""
        now, after, weight = self.now, self.after, self.course.weight
        ends = now.flat_tangent(weight), after.flat_tangent(weight) / (now.tangent @ after.tangent)
        return CubicHermiteSpline([0.0, self.length], [now.flat(), after.flat()], ends)(distance)

    def crossed(self) -> list[Crossed]:
        """Bifurcations that its two ends differ by."""
        now, after = self.now, self.after
        return crossed(now.multipliers, after.multipliers, now.rises != after.rises)

    def root(self, test: Callable[[Node], float], precision: float = 1e-14) -> float | None:
        """Distance at which a function of the points vanishes that has different signs at both."""

        def along(distance: float) -> float:
            node = self.at(distance)
            return np.nan if node is None else test(node)

        try:
            found = scipy.optimize.brentq(along, 0, self.length, xtol=precision * self.length)
        except ValueError:  # a point in between was not found, or the sign does not change
            return None
        return float(found)  # type: ignore[arg-type]
