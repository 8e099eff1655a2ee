"""Branches of cycles in one parameter, and the bifurcations on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy.optimize
from jaxtyping import Array, Bool, Complex, Float
from scipy.interpolate import BarycentricInterpolator, CubicHermiteSpline

from dlf_dynamics.analysis.bifurcation.cycles import (
    Cycle,
    Linearisation,
    correct,
    find_cycle,
    first_points,
    is_stable,
    linearise,
    multipliers_of,
    require_matrices,
    solve,
)
from dlf_dynamics.analysis.bifurcation.detection import crossed, determinant, excess, neutral_count
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation, Kind, classify
from dlf_dynamics.reprs import brief

Direction = Literal["both", "increasing", "decreasing"]
Status = Literal["range left", "max points", "step too small", "not converged", "period halved"]

_SHARPEST_TURN = 0.3
"""Angle between the tangents of neighbouring points, in radians, above which a step is halved."""

_LEAST_STEP = 1e-7
"""Part of the largest step below which a continuation gives up."""


@dataclass(frozen=True)
class Branch:
    """Cycles along a curve, in the order in which it passes through them.

    Attributes:
        parameters: (k,) at which the cycles are.
        points: (k, period, n) of the cycles.
        multipliers: (k, n), largest modulus first.
        stable: (k,) whether all multipliers are inside the unit circle.
        residuals: (k,) as that of `Cycle`.
        bifurcations: in the same order.
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
    counts as much as one of the parameter through the whole range (Kuznetsov 2004, §10.2). Steps
    are halved where Newton's method fails, the branch turns sharply, or two bifurcations fall into
    one step. Folds are where the parameter turns back; other bifurcations where the number of
    multipliers outside the unit circle changes: out and back within a step is not seen. Each is
    refined on the branch itself, where a determinant vanishes (Kuznetsov 2004, §10.3): those of
    J + 1 and J - 1, and the product of μ_i μ_j - 1 over all pairs of multipliers. Unlike a
    multiplier these are smooth where a pair of multipliers meets on the real axis.

    Args:
        map_: the map.
        start: a cycle, or a guess of one as for `find_cycle`.
        parameter: at the start; that of the cycle when not given.
        period: of the cycle; the cycle's own when not given.
        until: lowest and highest parameter of interest; a branch ends at them exactly.
        step: largest arclength between points, by default 1/50 of the range.
        max_points: in each direction, besides the start.
        tol: relative residual of each cycle.
        direction: in which the parameter first moves.

    Raises:
        ValueError: for a start outside the range, a step that is not positive, an unknown
            direction, a guess without parameter and period, and as `find_cycle`.

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
    walk = _Walk(map_, until, step or span / 50, max_points, tol, floor, weight)
    vertical = np.append(np.zeros(len(cycle.points[0])), 1.0)
    origin = walk.node(linearise(map_, cycle.points, cycle.parameter), vertical)
    if origin is None:
        return _branch([], cycle.points.shape, "no tangent at the start: derivatives not finite")
    senses = {"both": (-1, 1), "increasing": (1,), "decreasing": (-1,)}[direction]
    return _branch([walk.follow(origin.facing(sense)) for sense in senses], cycle.points.shape)


class _Node(NamedTuple):
    """A cycle on a branch; the tangent is a unit vector in (weight · x_0, parameter)."""

    place: Linearisation
    tangent: Float[np.ndarray, " n+1"]
    multipliers: Complex[np.ndarray, " n"]

    @property
    def parameter(self) -> float:
        """Of the map."""
        return self.place.parameter

    @property
    def rises(self) -> bool:
        """Whether the parameter increases along the tangent."""
        return bool(self.tangent[-1] >= 0)

    def facing(self, sense: int) -> _Node:
        """The same with the parameter moving in this sense along the tangent."""
        return self._replace(tangent=self.tangent * (sense if self.rises else -sense))

    def flat(self) -> Float[np.ndarray, " m"]:
        """All points and the parameter in one vector."""
        return np.append(self.place.points.ravel(), self.parameter)

    def flat_tangent(self, weight: float) -> Float[np.ndarray, " m"]:
        """How they change along the tangent."""
        first, change = self.tangent[:-1] / weight, self.tangent[-1]
        return np.append(self.place.spread(first, change).ravel(), change)


class _Part(NamedTuple):
    """One end of a branch, from the start outwards."""

    nodes: list[_Node]
    bifurcations: list[Bifurcation]
    status: Status
    message: str


@dataclass(frozen=True)
class _Walk:
    """What stays the same along a branch; states are weighted for the arclength."""

    map_: Map
    until: tuple[float, float]
    step: float
    max_points: int
    tol: float
    floor: float
    weight: float

    def node(self, place: Linearisation, row: Float[np.ndarray, " n+1"]) -> _Node | None:
        """A point with the tangent that has a component along `row`, if it can be had."""
        condensed, last = place.condensed(), np.append(np.zeros(len(row) - 1), 1.0)
        system = condensed.bordered(row, self.weight)
        tangent, _ = solve(system, last)
        if not np.all(np.isfinite(tangent)):
            return None
        if np.linalg.norm(system @ tangent - last) > 1e-6:  # the tangent is normal to the row
            tangent = np.linalg.svd(system[:-1])[2][-1]
        tangent = tangent / np.linalg.norm(tangent)
        return _Node(place, tangent, multipliers_of(condensed.matrix))

    def at(self, node: _Node, length: float, guess: np.ndarray | None = None) -> _Node | None:
        """The branch at a distance along the tangent, or none where Newton's method fails."""
        if guess is None:
            guess = node.flat() + length * node.flat_tangent(self.weight)
        place = linearise(self.map_, guess[:-1].reshape(node.place.points.shape), guess[-1])
        found = correct(place, self.map_, self.floor, self.tol, 10, node.tangent, self.weight)
        return self.node(found.place, node.tangent) if found.converged else None

    def follow(self, start: _Node) -> _Part:
        """The branch from its start onwards, until it ends."""
        nodes, bifurcations, length = [start], list[Bifurcation](), self.step
        way = "upwards" if start.rises else "downwards"

        def ended(status: Status, why: str) -> _Part:
            return _Part(nodes, bifurcations, status, f"{way}: {why} at {nodes[-1].parameter:.9g}")

        while True:
            now = nodes[-1]
            if now.parameter == self.until[now.rises]:
                return ended("range left", "left the range")
            if len(nodes) > self.max_points:
                return ended("max points", f"{self.max_points} points made")
            found = self._advance(now, length)
            if isinstance(found, str):
                return ended(found, f"{found}; a smaller step may help")
            after, length, kinds = found
            stretch = _Stretch(self, now, after, length)
            bifurcations += [stretch.locate(kind) for kind in kinds]
            if kinds and stretch.halves(bifurcations[-1]):
                return ended("period halved", "came from a flip of half the period")
            nodes.append(after)
            length = min(1.5 * length, self.step)

    def _advance(self, now: _Node, length: float) -> tuple[_Node, float, list[Kind]] | Status:
        """The next point, its distance and what lies between, with as small a step as it takes."""
        status: Status = "step too small"
        while length > _LEAST_STEP * self.step:
            after, used = self.at(now, length), length
            if after is not None and not self.until[0] <= after.parameter <= self.until[1]:
                after, used = self._to_end(now, after, length)
            status = "not converged" if after is None else "step too small"
            if after is not None and now.tangent @ after.tangent > np.cos(_SHARPEST_TURN):
                turns = now.rises != after.rises
                kinds = crossed(now.multipliers, after.multipliers, turns)
                if len(kinds) < 2 or used < 1e-3 * self.step:
                    return after, used, kinds
            length /= 2
        return status

    def _to_end(self, now: _Node, after: _Node, length: float) -> tuple[_Node | None, float]:
        """The point at the end of the range that a step passed."""
        bound = self.until[1 if after.parameter > self.until[1] else 0]
        stretch = _Stretch(self, now, after, length)
        root = stretch.root(lambda node: node.parameter - bound) or 0.0
        node = stretch.at(root) if root > _LEAST_STEP * self.step else None
        return node and node._replace(place=node.place._replace(parameter=bound)), root


class _Stretch(NamedTuple):
    """A branch between two of its points, by the distance along the tangent of the first."""

    walk: _Walk
    now: _Node
    after: _Node
    length: float

    def at(self, distance: float) -> _Node | None:
        """The branch at a distance, or none where Newton's method fails.

        Close to a branch point only guesses as good as this, from both ends, lead to the branch.
        """
        now, after, weight = self.now, self.after, self.walk.weight
        if distance == 0:
            return now
        ends = now.flat_tangent(weight), after.flat_tangent(weight) / (now.tangent @ after.tangent)
        curve = CubicHermiteSpline([0.0, self.length], [now.flat(), after.flat()], ends)
        return self.walk.at(now, distance, curve(distance))

    def root(self, test: Callable[[_Node], float], precision: float = 1e-14) -> float | None:
        """Distance at which a function of the points vanishes that has different signs at both."""

        def along(distance: float) -> float:
            node = self.at(distance)
            return np.nan if node is None else test(node)

        try:
            found = scipy.optimize.brentq(along, 0, self.length, xtol=precision * self.length)
        except ValueError:  # a point in between was not found, or the sign does not change
            return None
        return float(found)  # type: ignore[arg-type]

    def locate(self, kind: Kind) -> Bifurcation:
        """The bifurcation of a kind between the two points, refined."""
        test, walk = self._test(kind), self.walk
        refine = self._interpolated if kind == "branch point" else self._refined
        node, error = refine(test) or (self.after, np.inf)
        error /= max(abs(node.parameter), walk.until[1] - walk.until[0])
        left = abs(node.tangent[-1]) if kind == "fold" else self._distance(kind, node)
        residual = max(node.place.gap(walk.floor), left) if np.isfinite(error) else np.inf
        return classify(walk.map_, node.place, kind, node.multipliers, residual, error)

    def halves(self, bifurcation: Bifurcation) -> bool:
        """Whether a doubled cycle has shrunk to the one that it came from."""
        half, value = bifurcation.period // 2, bifurcation.parameter
        if bifurcation.kind != "branch point" or bifurcation.period % 2:
            return False
        points = first_points(self.walk.map_, bifurcation.state, value, 2 * half)
        cycles = points, self.now.place.points, self.after.place.points
        apart, *nearby = (float(np.max(np.abs(part[:half] - part[half:]))) for part in cycles)
        return apart < 0.1 * max(nearby)

    def _test(self, kind: Kind) -> Callable[[_Node], float]:
        """A function that changes sign at the bifurcation, and is 0 there."""
        if kind in ("fold", "branch point") and self.now.rises != self.after.rises:
            return lambda node: float(node.tangent[-1])
        neutral = neutral_count(self.now.multipliers, self.after.multipliers)
        ends = [determinant(kind, node.multipliers, neutral) for node in (self.now, self.after)]
        scale = max(log for _, log in ends)
        before = np.sum(excess(kind, self.now.multipliers, neutral) > 0)

        def vanishing(node: _Node) -> float:
            sign, log = determinant(kind, node.multipliers, neutral)
            return sign * float(np.exp(log - scale))

        def counted(node: _Node) -> float:
            found = excess(kind, node.multipliers, neutral)
            least = abs(found[0]) if len(found) else 1.0
            return float(least if np.sum(found > 0) == before else -least)

        # Where two multipliers cross together the determinant keeps its sign.
        return vanishing if ends[0][0] * ends[1][0] < 0 else counted

    def _distance(self, kind: Kind, node: _Node) -> float:
        """Of the closest multiplier that a kind is about from the unit circle."""
        found = excess(
            kind, node.multipliers, neutral_count(self.now.multipliers, self.after.multipliers)
        )
        return float(np.min(np.abs(found), initial=np.inf))

    def _refined(self, test: Callable[[_Node], float]) -> tuple[_Node, float] | None:
        """Where a test function vanishes, and the error of the parameter."""
        root = self.root(test)
        places = () if root is None else (root, *(root + 1e-3 * self.length * np.array([-1, 1])))
        nodes = [node for place in places if (node := self.at(place)) is not None]
        if len(nodes) < 3:
            return None
        left, low, high = (test(node) for node in nodes)
        slope = abs(high - low) / (2e-3 * self.length)
        return nodes[0], (abs(left) + 1e-15) / slope if slope else np.inf

    def _interpolated(self, test: Callable[[_Node], float]) -> tuple[_Node, float] | None:
        """The same at a branch point, where the corrector is singular, from its neighbourhood."""
        root, at_zero, error = self.root(test, precision=1e-2), np.empty(0), np.inf
        for _ in range(2):
            if root is None:
                return None
            places = [root + 0.03 * self.length * side for side in (-3, -2, -1, 1, 2, 3)]
            found = [(node, place) for place in places if (node := self.at(place)) is not None]
            if len(found) < 5:
                return None
            values = np.array([test(node) for node, _ in found])
            states = np.stack([np.append(place, node.flat()) for node, place in found])
            at_zero = BarycentricInterpolator(values, states)(0.0)
            coarser = BarycentricInterpolator(values[1:-1], states[1:-1])(0.0)
            root, error = float(at_zero[0]), float(abs(at_zero[-1] - coarser[-1]))
        points = at_zero[1:-1].reshape(self.now.place.points.shape)
        place = linearise(self.walk.map_, points, at_zero[-1])
        multipliers = multipliers_of(place.condensed().matrix)
        return self.now._replace(place=place, multipliers=multipliers), error


def _branch(parts: list[_Part], shape: tuple[int, ...], message: str = "") -> Branch:
    """Both ends of a branch in one order; without any it did not start."""
    nodes, bifurcations = list[_Node](), list[Bifurcation]()
    for part in parts:  # all that was found before is turned around, its start left out
        nodes = nodes[:0:-1] + part.nodes
        bifurcations = bifurcations[::-1] + part.bifurcations
    ends: list[Status] = [part.status for part in parts] or ["not converged"]
    multipliers = np.array([node.multipliers for node in nodes], complex)
    return Branch(
        parameters=np.array([node.parameter for node in nodes]),
        points=np.array([node.place.points for node in nodes]).reshape(-1, *shape),
        multipliers=multipliers.reshape(-1, shape[1]),
        stable=np.array([is_stable(row) for row in multipliers], bool),
        residuals=np.array([node.place.gap() for node in nodes]),
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
