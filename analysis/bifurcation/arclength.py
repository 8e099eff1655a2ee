"""Points of a branch, and the branch between two of them, by pseudo-arclength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float
from scipy.interpolate import CubicHermiteSpline

from dlf_dynamics.analysis.bifurcation.cycles import (
    Linearisation,
    correct,
    linearise,
)
from dlf_dynamics.analysis.bifurcation.detection import Crossed, crossed
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import multipliers_of
from dlf_dynamics.analysis.bifurcation.newton import Points
from dlf_dynamics.analysis.bifurcation.paths import root_along, unit_tangent

_PAUSE = 1e-13
"""Component of a tangent along the parameter below which its sign is rounding."""


@dataclass(frozen=True)
class Node:
    """A cycle on a branch; the tangent is a unit vector in (weight · x_0, parameter)."""

    cycle: Linearisation
    tangent: Float[np.ndarray, " n+1"]

    @cached_property
    def multipliers(self) -> Complex[np.ndarray, " n"]:
        """Multipliers of the cycle, computed on demand: most intermediate points need none."""
        return multipliers_of(self.cycle.condensed().matrix)

    @property
    def parameter(self) -> float:
        """Parameter of the map."""
        return self.cycle.parameter

    @property
    def rises(self) -> bool:
        """Whether the parameter increases along the tangent."""
        return bool(self.tangent[-1] >= 0)

    def facing(self, sense: int) -> Node:
        """The node with its tangent oriented so that the parameter moves in this sense."""
        return replace(self, tangent=self.tangent * (sense if self.rises else -sense))

    def after(self, before: Node) -> Node:
        """The node, where a parameter that pauses here continues as at the point before."""
        if abs(self.tangent[-1]) > _PAUSE:
            return self
        part = np.copysign(_PAUSE, before.tangent[-1])
        return replace(self, tangent=np.append(self.tangent[:-1], part))

    def flat(self) -> Float[np.ndarray, " m"]:
        """All points and the parameter in one vector."""
        return np.append(self.cycle.points.ravel(), self.parameter)

    def flat_tangent(self, weight: float) -> Float[np.ndarray, " m"]:
        """How they change along the tangent."""
        first, change = self.tangent[:-1] / weight, self.tangent[-1]
        return np.append(self.cycle.spread(first, change).ravel(), change)


@dataclass(frozen=True)
class Course:
    """What is constant along a branch, with the weight of states in the arclength."""

    map_: Map
    until: tuple[float, float]
    step: float
    max_points: int
    tol: float
    floor: float
    weight: float

    def node(self, cycle: Linearisation, row: Float[np.ndarray, " n+1"]) -> Node | None:
        """The node of a cycle, whose tangent has a positive component along `row`, if possible."""
        tangent = unit_tangent(cycle.condensed().bordered(row, self.weight))
        return None if tangent is None else Node(cycle, tangent)

    def corrected(
        self, points: Points, parameter: float, row: Float[np.ndarray, " n+1"] | None = None
    ) -> Linearisation | None:
        """The cycle from a guess, in the hyperplane across `row` if given; none if Newton fails."""
        guess = linearise(self.map_, points, parameter)
        cycle, converged, _ = correct(guess, self.map_, self.floor, self.tol, 10, row, self.weight)
        return cycle if converged else None

    def at(self, node: Node, length: float, guess: np.ndarray | None = None) -> Node | None:
        """The branch at a distance along the tangent, or none where Newton's method fails."""
        if guess is None:
            guess = node.flat() + length * node.flat_tangent(self.weight)
        points = guess[:-1].reshape(node.cycle.points.shape)
        cycle = self.corrected(points, guess[-1], node.tangent)
        return None if cycle is None else self.node(cycle, node.tangent)

    def moved(self, node: Node, parameter: float) -> Node | None:
        """The cycle at a parameter close to that of a node, or none where Newton's method fails."""
        cycle = self.corrected(node.cycle.points, parameter)
        return None if cycle is None else self.node(cycle, node.tangent)

    def rescaled(self, nodes: list[Node]) -> tuple[Course, list[Node]]:
        """The course with states weighted by the size of the last, once it has grown by a tenth."""
        span, size = self.until[1] - self.until[0], float(np.linalg.norm(nodes[-1].cycle.points[0]))
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
        here = np.append(self.weight * now.cycle.points[0], now.parameter)
        there = np.append(self.weight * after.cycle.points[0], after.parameter)
        return Stretch(self, now, after, float(now.tangent @ (there - here)))


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
        """All points and the parameter at a distance, by cubic interpolation between both ends."""
        now, after, weight = self.now, self.after, self.course.weight
        ends = now.flat_tangent(weight), after.flat_tangent(weight) / (now.tangent @ after.tangent)
        return CubicHermiteSpline([0.0, self.length], [now.flat(), after.flat()], ends)(distance)

    def crossed(self) -> list[Crossed]:
        """Bifurcations by which its two ends differ."""
        now, after = self.now, self.after
        return crossed(now.multipliers, after.multipliers, now.rises != after.rises)

    def root(self, test: Callable[[Node], float], precision: float = 1e-14) -> float | None:
        """Distance at which a function vanishes that has different signs at both ends."""

        def along(distance: float) -> float:
            node = self.at(distance)
            return np.nan if node is None else test(node)

        return root_along(along, self.length, precision)
