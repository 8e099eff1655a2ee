"""Pseudo-arclength continuation of bifurcations in the plane of two parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.bordered import (
    Borders,
    CurveKind,
    PlaneCycle,
    Singularity,
    plane_cycle,
    singularity,
)
from dlf_dynamics.analysis.bifurcation.codimension import (
    NAMES,
    Node,
    SpecialPoint,
    TestFunction,
    centre_manifold,
    changes,
    is_there,
)
from dlf_dynamics.analysis.bifurcation.cycles import solve
from dlf_dynamics.analysis.bifurcation.kinks import jumps_along
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import multipliers_of
from dlf_dynamics.analysis.bifurcation.paths import (
    LEAST_STEP,
    SHARPEST_TURN,
    root_along,
    unit_tangent,
)

CurveStatus = Literal[
    "range left",
    "closed",
    "resonance",
    "max points",
    "step too small",
    "not converged",
    "border collision",
]

Range = tuple[float, float]

_BESIDE = 1e-3
"""Distance of points for finite differences, as a part of a step."""

_CORRECTIONS = 10
"""Newton steps at most."""

_AHEAD = 1e-3
"""Part of a step over which a curve that ends is extrapolated, to detect a kink there."""

_COLLIDES = "the cycle meets a kink, where test functions jump (a border collision), right beyond"

_PRECISION = 1e-9
"""Error along a curve, relative to the ranges, up to which a special point counts as located."""


class End(NamedTuple):
    """One end of a curve, from the start outwards."""

    nodes: list[Node]
    special: list[SpecialPoint]
    status: CurveStatus
    message: str


class _Corrected(NamedTuple):
    """Where Newton's method ended, with the equations there."""

    cycle: PlaneCycle
    singularity: Singularity
    system: Float[np.ndarray, "equations unknowns"]
    residual: float


@dataclass(frozen=True)
class Walk:
    """What is constant along a curve, with the weight of states in the arclength."""

    map_: Map
    kind: CurveKind
    until: tuple[Range, Range]
    step: float
    max_points: int
    tol: float
    floor: float
    weight: float
    kinked: bool

    @property
    def spans(self) -> Float[np.ndarray, "2"]:
        """Widths of the ranges, the units of the parameters."""
        return np.array([high - low for low, high in self.until])

    def scaled(self, cycle: PlaneCycle) -> Float[np.ndarray, " m"]:
        """Coordinates in which the arclength is measured."""
        parts = [self.weight * cycle.points[0], cycle.parameters / self.spans]
        return np.concatenate(parts + ([[cycle.cosine]] if self.kind == "neimark-sacker" else []))

    def linearised(self, cycle: PlaneCycle, borders: Borders) -> _Corrected:
        """The equations at a cycle, as a matrix in scaled coordinates without the last row."""
        equations = singularity(self.map_, self.kind, cycle, borders)
        parts = [cycle.closing(), equations.gradient]
        columns = [
            np.vstack([part.first for part in parts]) / self.weight,
            np.vstack([part.parameters for part in parts]) * self.spans,
        ]
        if self.kind == "neimark-sacker":
            zeros = np.zeros(len(parts[0].first))
            columns.append(np.append(zeros, equations.by_cosine)[:, None])
        residual = max(cycle.gap(self.floor), equations.size)
        return _Corrected(cycle, equations, np.column_stack(columns), residual)

    def correct(
        self, guess: PlaneCycle, borders: Borders, row: Float[np.ndarray, " m"] | None
    ) -> _Corrected | None:
        """The curve in the hyperplane through a guess, or none where Newton's method fails.

        Without a given normal, the hyperplane is normal to the direction of the curve at the guess.
        """
        now = self.linearised(guess, borders)
        for _ in range(_CORRECTIONS):
            if not np.isfinite(now.residual) or not np.all(np.isfinite(now.system)):
                return None
            if now.residual <= self.tol:
                return now
            normal = np.linalg.svd(now.system)[2][-1] if row is None else row
            closing = now.cycle.closing().constant
            values = now.singularity.values + now.singularity.gradient.constant
            right = np.concatenate([-closing, -values, [0.0]])
            change, _ = solve(np.vstack([now.system, normal]), right)
            now = self.linearised(self._moved(now.cycle, change), borders)
        return now if now.residual <= self.tol else None

    def _moved(self, cycle: PlaneCycle, change: Float[np.ndarray, " m"]) -> PlaneCycle:
        size = cycle.points.shape[1]
        first, parameters = change[:size] / self.weight, change[size : size + 2] * self.spans
        cosine = cycle.cosine + (change[-1] if self.kind == "neimark-sacker" else 0.0)
        points = cycle.points + cycle.moved(first, parameters, closing=True)
        return plane_cycle(self.map_, points, cycle.parameters + parameters, cosine)

    def node(self, corrected: _Corrected, row: Float[np.ndarray, " m"]) -> Node | None:
        """The node of a cycle, whose tangent has a positive component along `row`, if possible."""
        tangent = unit_tangent(np.vstack([corrected.system, row]))
        if tangent is None:
            return None
        return Node(
            corrected.cycle,
            corrected.singularity,
            tangent,
            multipliers_of(corrected.cycle.jacobian()),
            centre_manifold(self.map_, self.kind, corrected.cycle, corrected.singularity),
            corrected.residual,
        )

    def origin(self, guess: PlaneCycle, borders: Borders) -> Node | str:
        """The start of the curve, or why there is none."""
        corrected = self.correct(guess, borders, None)
        if corrected is None:
            return "Newton's method did not converge to it: is the multiplier a simple one?"
        moved = np.linalg.norm((corrected.cycle.parameters - guess.parameters) / self.spans)
        if moved > self.step:
            return f"the closest {self.kind} is at {words(corrected.cycle)}; are the values right?"
        row = np.linalg.svd(corrected.system)[2][-1]
        return self.node(corrected, row) or "no tangent: derivatives are not finite"

    def at(self, now: Node, guess: Float[np.ndarray, " m"]) -> Node | None:
        """The curve in the hyperplane through a guess that is normal to a point's tangent."""
        corrected = self.correct(self._cycle_at(now, guess), now.singularity.borders(), now.tangent)
        return None if corrected is None else self.node(corrected, now.tangent)

    def between(self, before: Node, after: Node) -> Node:
        """The middle of two points close together."""
        one, other = before.cycle, after.cycle
        points = (one.points + other.points) / 2
        parameters = (one.parameters + other.parameters) / 2
        middle = plane_cycle(self.map_, points, parameters, (one.cosine + other.cosine) / 2)
        residual = max(middle.gap(self.floor), before.residual, after.residual)
        values = multipliers_of(middle.jacobian())
        return before._replace(cycle=middle, multipliers=values, residual=residual)

    def straight(self, now: Node, length: float) -> Float[np.ndarray, " m"]:
        """A guess at a distance along the tangent."""
        size = now.cycle.points.shape[1]
        first = length * now.tangent[:size] / self.weight
        change = length * now.tangent[size : size + 2] * self.spans
        cosine = length * now.tangent[-1]
        points = now.cycle.moved(first, change, closing=False)
        return now.flat() + np.concatenate([points.ravel(), change, [cosine]])

    def _collides(self, now: Node, after: Node | None) -> bool:
        """Whether the cycle meets a kink before the next point, or right ahead if there is none."""
        if not self.kinked:
            return False
        start = now.flat()
        end = self.straight(now, _AHEAD * self.step) if after is None else after.flat()
        cycle_at = lambda part: self._cycle_at(now, (1 - part) * start + part * end)  # noqa: E731
        change = (
            cycle_at(1).points - cycle_at(0).points,
            cycle_at(1).parameters - cycle_at(0).parameters,
        )
        ends = [cycle_at(part).followed(*change) for part in (0, 1)]
        return jumps_along(cycle_at, (ends[0] + ends[1]) / 2)

    def _cycle_at(self, like: Node, flat: Float[np.ndarray, " m"]) -> PlaneCycle:
        """The map at a point, or a guess of one, as one vector."""
        points, parameters, cosine = np.split(flat, [-3, -1])
        shape = like.cycle.points.shape
        return plane_cycle(self.map_, points.reshape(shape), parameters, float(cosine[0]))

    def follow(self, start: Node) -> End:
        """The curve from its start onwards, until it ends."""
        nodes, special, length = [start], list[SpecialPoint](), self.step

        def ended(status: CurveStatus, why: str) -> End:
            return End(nodes, special, status, f"{why} at {words(nodes[-1].cycle)}")

        while True:
            now = nodes[-1]
            if self._leaves(now):
                return ended("range left", "left the range")
            if self.kind == "neimark-sacker" and abs(now.cycle.cosine) == 1 and len(nodes) > 1:
                return ended("resonance", "ended with a double multiplier")
            if len(nodes) > self.max_points:
                return ended("max points", f"{self.max_points} points made")
            advanced = self._advance(now, length)
            if self._collides(now, None if isinstance(advanced, str) else advanced[0]):
                return ended("border collision", _COLLIDES)
            if isinstance(advanced, str):
                return ended(advanced, f"{advanced}; a smaller step may help")
            after, length = advanced
            stretch = _Stretch(self, now, after)
            closed = len(nodes) > 2 and stretch.meets(start)
            after = start if closed else after
            stretch = stretch._replace(after=after)
            special += stretch.special()
            nodes.append(after)
            if closed:
                return ended("closed", "came back to its start")
            length = min(1.5 * length, self.step)

    def _advance(self, now: Node, length: float) -> tuple[Node, float] | CurveStatus:
        """The next point and its distance, with as small a step as necessary."""
        status: CurveStatus = "step too small"
        while length > LEAST_STEP * self.step:
            after = self.at(now, self.straight(now, length))
            status = "not converged" if after is None else "step too small"
            if after is not None:
                chord = self.scaled(after.cycle) - self.scaled(now.cycle)
                turns = now.tangent @ after.tangent, now.tangent @ chord / np.linalg.norm(chord)
                if min(turns) > np.cos(SHARPEST_TURN):
                    cut = _Stretch(self, now, after).cut()
                    if cut is not None:
                        return cut, length
            length /= 2
        return status

    def _leaves(self, node: Node) -> bool:
        """Whether a point is at an end of a range and the curve continues beyond it."""
        size = node.cycle.points.shape[1]
        rising = node.tangent[size : size + 2] >= 0
        ends = [bounds[int(up)] for bounds, up in zip(self.until, rising, strict=True)]
        return bool(np.any(node.cycle.parameters == ends))

    def passed(self, node: Node) -> list[tuple[int, float]]:
        """Bounds that a point exceeds: 0 and 1 stand for the parameters, -1 for κ."""
        cycle = node.cycle
        bounds = [
            (i, bound)
            for i, (low, high) in enumerate(self.until)
            for bound, beyond in (
                (low, cycle.parameters[i] < low),
                (high, cycle.parameters[i] > high),
            )
            if beyond
        ]
        if self.kind == "neimark-sacker" and abs(cycle.cosine) > 1:
            bounds.append((-1, float(np.sign(cycle.cosine))))
        return bounds


class _Stretch(NamedTuple):
    """A curve between two of its points, by the distance along the tangent of the first."""

    walk: Walk
    now: Node
    after: Node

    @property
    def chord(self) -> Float[np.ndarray, " m"]:
        """Vector from the first to the second point, in scaled coordinates."""
        return self.walk.scaled(self.after.cycle) - self.walk.scaled(self.now.cycle)

    @property
    def length(self) -> float:
        """Distance of the second point."""
        return float(self.now.tangent @ self.chord)

    def at(self, distance: float) -> Node | None:
        """The curve at a distance, or none where Newton's method fails."""
        if distance == 0:
            return self.now
        part = distance / self.length
        return self.walk.at(self.now, (1 - part) * self.now.flat() + part * self.after.flat())

    def around(self, distance: float) -> list[Node]:
        """The curve at a distance, or on either side of it where the equations are singular.

        They are singular where two multipliers without a Jordan block are critical.
        """
        node = self.at(distance)
        if node is not None:
            return [node]
        sides = [self.at(distance + part * _BESIDE * self.length) for part in (-1, 1)]
        return [node for node in sides if node is not None] if None not in sides else []

    def root(self, test: Callable[[Node], float]) -> float | None:
        """Distance at which a function of the points vanishes, if it changes sign."""
        if test(self.after) == 0:
            return self.length

        def along(distance: float) -> float:
            nodes = self.around(distance)
            return float(np.mean([test(node) for node in nodes])) if nodes else np.nan

        return root_along(along, self.length, 1e-13)

    def cut(self) -> Node | None:
        """The second point, or the point at the first bound on the way to it."""
        nearest, node = self.length, self.after
        for index, bound in self.walk.passed(self.after):
            value = _coordinate(index)
            root = self.root(lambda node, value=value, bound=bound: value(node) - bound)
            there = None if root is None else self.at(root)
            if root is None or there is None:
                return None
            if root <= nearest:
                nearest, node = root, _at_bound(there, index, bound)
        return node

    def meets(self, start: Node) -> bool:
        """Whether the start of the curve lies on this stretch."""
        towards = self.walk.scaled(start.cycle) - self.walk.scaled(self.now.cycle)
        distance = float(self.now.tangent @ towards)
        aside = np.linalg.norm(towards - distance / self.length * self.chord)
        facing = self.after.tangent @ start.tangent > np.cos(2 * SHARPEST_TURN)
        if not (0 < distance <= self.length and aside < 0.3 * self.length and facing):
            return False
        node = self.at(distance)
        if node is None:
            return False
        apart = self.walk.scaled(node.cycle) - self.walk.scaled(start.cycle)
        return bool(np.linalg.norm(apart) < 1e-6)

    def special(self) -> list[SpecialPoint]:
        """Points of codimension two between the two, in their order."""
        located = []
        for test in changes(self.walk.kind, self.now, self.after):
            root, node, error = self._refined(test)
            if not np.isfinite(error) or is_there(self.walk.kind, test, node):
                located.append((root, self._special_point(test, node, max(error, node.residual))))
        return [point for _, point in sorted(located, key=lambda pair: pair[0])]

    def _refined(self, test: TestFunction) -> tuple[float, Node, float]:
        """Zero of a test function with its node and uncertainty; otherwise the second point."""
        root, step = self.root(test.value), _BESIDE * self.length
        if root is None:
            return self.length, self.after, np.inf
        here = [self.after] if root == self.length else self.around(root)
        sides = [self.at(root + part) for part in (-step, step)]
        before, after = (np.nan if node is None else test.value(node) for node in sides)
        left = np.mean([test.value(node) for node in here])
        error = (abs(left) + 1e-15) / abs(after - before) * 2 * step
        node = here[0] if len(here) == 1 else self.walk.between(*here)
        return root, node, float(error) if np.isfinite(error) else np.inf

    def _special_point(self, test: TestFunction, node: Node, residual: float) -> SpecialPoint:
        converged = bool(residual <= _PRECISION)
        why = "" if converged else f"located to {residual:.1e} of the ranges only"
        if not np.isfinite(residual):
            why = "not located: the function does not vanish smoothly; a smaller step may help"
        return SpecialPoint(
            kind=NAMES[test.label],
            label=test.label,
            parameters=node.cycle.parameters,
            state=node.cycle.points[0],
            period=len(node.cycle.points),
            multipliers=node.multipliers,
            residual=residual,
            converged=converged,
            message=why,
        )


def _coordinate(index: int) -> Callable[[Node], float]:
    """One of the parameters, or κ."""
    if index < 0:
        return lambda node: node.cycle.cosine
    return lambda node: float(node.cycle.parameters[index])


def _at_bound(node: Node, index: int, bound: float) -> Node:
    """The node with a coordinate set exactly to its bound."""
    if index < 0:
        return node._replace(cycle=node.cycle._replace(cosine=bound))
    parameters = node.cycle.parameters.copy()
    parameters[index] = bound
    return node._replace(cycle=node.cycle._replace(parameters=parameters))


def words(cycle: PlaneCycle) -> str:
    """The parameters of a cycle, in words."""
    return f"({cycle.parameters[0]:.9g}, {cycle.parameters[1]:.9g})"
