"""Pseudo-arclength continuation of bifurcations in the plane of two parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy.optimize
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.bordered import (
    Borders,
    CurveKind,
    Place,
    Singularity,
    placed,
    singularity,
)
from dlf_dynamics.analysis.bifurcation.codimension import (
    NAMES,
    Node,
    SpecialPoint,
    Test,
    changes,
    expansion,
    is_there,
)
from dlf_dynamics.analysis.bifurcation.cycles import solve
from dlf_dynamics.analysis.bifurcation.kinks import jumps_along
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import multipliers_of

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

_SHARPEST_TURN = 0.3
"""Angle between the tangents of neighbouring points, in radians, above which a step is halved."""

_LEAST_STEP = 1e-7
"""Part of the largest step below which a continuation gives up."""

_BESIDE = 1e-3
"""Part of a step by which points are beside one another whose differences are taken."""

_CORRECTIONS = 10
"""Newton steps at most."""

_AHEAD = 1e-3
"""Part of a step by which a curve that ends is followed straight, to see a kink there."""

_COLLIDES = "the cycle meets a kink, where test functions jump (a border collision), right beyond"

_PRECISION = 1e-9
"""Error along a curve, as a part of the ranges, up to which a special point counts as located."""


class End(NamedTuple):
    """One end of a curve, from the start outwards."""

    nodes: list[Node]
    special: list[SpecialPoint]
    status: CurveStatus
    message: str


class _Corrected(NamedTuple):
    """Where Newton's method ended, with the equations there."""

    place: Place
    found: Singularity
    system: Float[np.ndarray, "equations unknowns"]
    residual: float


@dataclass(frozen=True)
class Walk:
    """What stays the same along a curve; states are weighted for the arclength."""

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

    def scaled(self, place: Place) -> Float[np.ndarray, " m"]:
        """Coordinates in which the arclength is measured."""
        parts = [self.weight * place.points[0], place.parameters / self.spans]
        return np.concatenate(parts + ([[place.cosine]] if self.kind == "neimark-sacker" else []))

    def linearised(self, place: Place, borders: Borders) -> _Corrected:
        """The equations at a place, as a matrix in scaled coordinates with one row to spare."""
        found = singularity(self.map_, self.kind, place, borders)
        rows = [place.closing(), found.gradient]
        columns = [
            np.vstack([part.first for part in rows]) / self.weight,
            np.vstack([part.parameters for part in rows]) * self.spans,
        ]
        if self.kind == "neimark-sacker":
            zeros = np.zeros(len(rows[0].first))
            columns.append(np.append(zeros, found.by_cosine)[:, None])
        residual = max(place.gap(self.floor), found.size)
        return _Corrected(place, found, np.column_stack(columns), residual)

    def correct(
        self, place: Place, borders: Borders, row: Float[np.ndarray, " m"] | None
    ) -> _Corrected | None:
        """The curve in the hyperplane through a guess, or none where Newton's method fails.

        Without its normal, it is the one across the curve's direction at the guess.
        """
        now = self.linearised(place, borders)
        for _ in range(_CORRECTIONS):
            if not np.isfinite(now.residual) or not np.all(np.isfinite(now.system)):
                return None
            if now.residual <= self.tol:
                return now
            normal = np.linalg.svd(now.system)[2][-1] if row is None else row
            closing = now.place.closing().constant
            values = now.found.values + now.found.gradient.constant
            right = np.concatenate([-closing, -values, [0.0]])
            change, _ = solve(np.vstack([now.system, normal]), right)
            now = self.linearised(self._moved(now.place, change), borders)
        return now if now.residual <= self.tol else None

    def _moved(self, place: Place, change: Float[np.ndarray, " m"]) -> Place:
        size = place.points.shape[1]
        first, parameters = change[:size] / self.weight, change[size : size + 2] * self.spans
        cosine = place.cosine + (change[-1] if self.kind == "neimark-sacker" else 0.0)
        points = place.points + place.moved(first, parameters, closing=True)
        return placed(self.map_, points, place.parameters + parameters, cosine)

    def node(self, corrected: _Corrected, row: Float[np.ndarray, " m"]) -> Node | None:
        """A point with the tangent that has a component along `row`, if it can be had."""
        system, last = np.vstack([corrected.system, row]), np.append(np.zeros(len(row) - 1), 1.0)
        tangent, _ = solve(system, last)
        if not np.all(np.isfinite(tangent)):
            return None
        if np.linalg.norm(system @ tangent - last) > 1e-6:  # the tangent is normal to the row
            tangent = np.linalg.svd(corrected.system)[2][-1]
        return Node(
            corrected.place,
            corrected.found,
            tangent / np.linalg.norm(tangent),
            multipliers_of(corrected.place.jacobian()),
            expansion(self.map_, self.kind, corrected.place, corrected.found),
            corrected.residual,
        )

    def origin(self, place: Place, borders: Borders) -> Node | str:
        """The start of the curve, or why there is none."""
        corrected = self.correct(place, borders, None)
        if corrected is None:
            return "Newton's method did not converge to it: is the multiplier a simple one?"
        moved = np.linalg.norm((corrected.place.parameters - place.parameters) / self.spans)
        if moved > self.step:
            return f"the closest {self.kind} is at {words(corrected.place)}; are the values right?"
        row = np.linalg.svd(corrected.system)[2][-1]
        return self.node(corrected, row) or "no tangent: derivatives are not finite"

    def at(self, now: Node, guess: Float[np.ndarray, " m"]) -> Node | None:
        """The curve in the hyperplane through a guess that is normal to a point's tangent."""
        corrected = self.correct(self._placed(now, guess), now.found.borders(), now.tangent)
        return None if corrected is None else self.node(corrected, now.tangent)

    def between(self, before: Node, after: Node) -> Node:
        """The middle of two points close together."""
        one, other = before.place, after.place
        points = (one.points + other.points) / 2
        parameters = (one.parameters + other.parameters) / 2
        place = placed(self.map_, points, parameters, (one.cosine + other.cosine) / 2)
        residual = max(place.gap(self.floor), before.residual, after.residual)
        values = multipliers_of(place.jacobian())
        return before._replace(place=place, multipliers=values, residual=residual)

    def ahead(self, now: Node, length: float) -> Node | None:
        """The next point, at a distance along the tangent."""
        return self.at(now, self.straight(now, length))

    def straight(self, now: Node, length: float) -> Float[np.ndarray, " m"]:
        """A guess at a distance along the tangent."""
        size = now.place.points.shape[1]
        first = length * now.tangent[:size] / self.weight
        change = length * now.tangent[size : size + 2] * self.spans
        cosine = length * now.tangent[-1]
        points = now.place.moved(first, change, closing=False)
        return now.flat() + np.concatenate([points.ravel(), change, [cosine]])

    def _collides(self, now: Node, after: Node | None) -> bool:
        """Whether the cycle meets a kink before the next point, or right ahead without one."""
        if not self.kinked:
            return False
        start = now.flat()
        end = self.straight(now, _AHEAD * self.step) if after is None else after.flat()
        place = lambda part: self._placed(now, (1 - part) * start + part * end)  # noqa: E731
        change = place(1).points - place(0).points, place(1).parameters - place(0).parameters
        ends = [place(part).followed(*change) for part in (0, 1)]
        return jumps_along(place, (ends[0] + ends[1]) / 2)

    def _placed(self, like: Node, flat: Float[np.ndarray, " m"]) -> Place:
        """The map at a point, or a guess of one, as one vector."""
        points, parameters, cosine = np.split(flat, [-3, -1])
        shape = like.place.points.shape
        return placed(self.map_, points.reshape(shape), parameters, float(cosine[0]))

    def follow(self, start: Node) -> End:
        """The curve from its start onwards, until it ends."""
        nodes, special, length = [start], list[SpecialPoint](), self.step

        def ended(status: CurveStatus, why: str) -> End:
            return End(nodes, special, status, f"{why} at {words(nodes[-1].place)}")

        while True:
            now = nodes[-1]
            if self._leaves(now):
                return ended("range left", "left the range")
            if self.kind == "neimark-sacker" and abs(now.place.cosine) == 1 and len(nodes) > 1:
                return ended("resonance", "ended with a double multiplier")
            if len(nodes) > self.max_points:
                return ended("max points", f"{self.max_points} points made")
            found = self._advance(now, length)
            if self._collides(now, None if isinstance(found, str) else found[0]):
                return ended("border collision", _COLLIDES)
            if isinstance(found, str):
                return ended(found, f"{found}; a smaller step may help")
            after, length = found
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
        """The next point and its distance, with as small a step as it takes."""
        status: CurveStatus = "step too small"
        while length > _LEAST_STEP * self.step:
            after = self.ahead(now, length)
            status = "not converged" if after is None else "step too small"
            if after is not None:
                chord = self.scaled(after.place) - self.scaled(now.place)
                turns = now.tangent @ after.tangent, now.tangent @ chord / np.linalg.norm(chord)
                if min(turns) > np.cos(_SHARPEST_TURN):
                    cut = _Stretch(self, now, after).cut()
                    if cut is not None:
                        return cut, length
            length /= 2
        return status

    def _leaves(self, node: Node) -> bool:
        """Whether a point is at an end of a range and the curve goes on beyond it."""
        size = node.place.points.shape[1]
        rising = node.tangent[size : size + 2] >= 0
        ends = [bounds[int(up)] for bounds, up in zip(self.until, rising, strict=True)]
        return bool(np.any(node.place.parameters == ends))

    def passed(self, node: Node) -> list[tuple[int, float]]:
        """Bounds that a point is beyond: 0 and 1 are those of the parameters, -1 is of κ."""
        place = node.place
        found = [
            (i, bound)
            for i, (low, high) in enumerate(self.until)
            for bound, beyond in (
                (low, place.parameters[i] < low),
                (high, place.parameters[i] > high),
            )
            if beyond
        ]
        if self.kind == "neimark-sacker" and abs(place.cosine) > 1:
            found.append((-1, float(np.sign(place.cosine))))
        return found


class _Stretch(NamedTuple):
    """A curve between two of its points, by the distance along the tangent of the first."""

    walk: Walk
    now: Node
    after: Node

    @property
    def chord(self) -> Float[np.ndarray, " m"]:
        """From the first to the second, in scaled coordinates."""
        return self.walk.scaled(self.after.place) - self.walk.scaled(self.now.place)

    @property
    def length(self) -> float:
        """Distance of the second."""
        return float(self.now.tangent @ self.chord)

    def at(self, distance: float) -> Node | None:
        """The curve at a distance, or none where Newton's method fails."""
        if distance == 0:
            return self.now
        part = distance / self.length
        return self.walk.at(self.now, (1 - part) * self.now.flat() + part * self.after.flat())

    def around(self, distance: float) -> list[Node]:
        """The curve at a distance, or its points at either side where the equations are singular.

        They are so where two multipliers without a Jordan block are critical.
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

        try:
            found = scipy.optimize.brentq(along, 0, self.length, xtol=1e-13 * self.length)
        except ValueError:  # a point in between was not found, or the sign does not change
            return None
        return float(found)  # type: ignore[arg-type]

    def cut(self) -> Node | None:
        """The second point, or the first bound that is passed on the way to it."""
        nearest, node = self.length, self.after
        for index, bound in self.walk.passed(self.after):
            value = _coordinate(index)
            root = self.root(lambda node, value=value, bound=bound: value(node) - bound)
            found = None if root is None else self.at(root)
            if root is None or found is None:
                return None
            if root <= nearest:
                nearest, node = root, _at_bound(found, index, bound)
        return node

    def meets(self, start: Node) -> bool:
        """Whether the start of the curve lies on it here."""
        towards = self.walk.scaled(start.place) - self.walk.scaled(self.now.place)
        distance = float(self.now.tangent @ towards)
        aside = np.linalg.norm(towards - distance / self.length * self.chord)
        facing = self.after.tangent @ start.tangent > np.cos(2 * _SHARPEST_TURN)
        if not (0 < distance <= self.length and aside < 0.3 * self.length and facing):
            return False
        node = self.at(distance)
        if node is None:
            return False
        apart = self.walk.scaled(node.place) - self.walk.scaled(start.place)
        return bool(np.linalg.norm(apart) < 1e-6)

    def special(self) -> list[SpecialPoint]:
        """Points of codimension two between the two, in their order."""
        found = []
        for test in changes(self.walk.kind, self.now, self.after):
            root, node, error = self._refined(test)
            if not np.isfinite(error) or is_there(self.walk.kind, test, node):
                found.append((root, self._told(test, node, max(error, node.residual))))
        return [point for _, point in sorted(found, key=lambda pair: pair[0])]

    def _refined(self, test: Test) -> tuple[float, Node, float]:
        """Where a test function vanishes, and how uncertain that is; else the second point."""
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

    def _told(self, test: Test, node: Node, residual: float) -> SpecialPoint:
        converged = bool(residual <= _PRECISION)
        why = "" if converged else f"located to {residual:.1e} of the ranges only"
        if not np.isfinite(residual):
            why = "not located: the function does not vanish smoothly; a smaller step may help"
        return SpecialPoint(
            kind=NAMES[test.label],
            label=test.label,
            parameters=node.place.parameters,
            state=node.place.points[0],
            period=len(node.place.points),
            multipliers=node.multipliers,
            residual=residual,
            converged=converged,
            message=why,
        )


def _coordinate(index: int) -> Callable[[Node], float]:
    """One of the parameters, or κ."""
    if index < 0:
        return lambda node: node.place.cosine
    return lambda node: float(node.place.parameters[index])


def _at_bound(node: Node, index: int, bound: float) -> Node:
    """The same with a coordinate that is at a bound exactly there."""
    if index < 0:
        return node._replace(place=node.place._replace(cosine=bound))
    parameters = node.place.parameters.copy()
    parameters[index] = bound
    return node._replace(place=node.place._replace(parameters=parameters))


def words(place: Place) -> str:
    """The parameters of a place."""
    return f"({place.parameters[0]:.9g}, {place.parameters[1]:.9g})"
