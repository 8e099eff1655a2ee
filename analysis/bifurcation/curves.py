"""Curves of bifurcations in the plane of two parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from dlf_dynamics.analysis.bifurcation.bordered import (
    CurveKind,
    first_borders,
    plane_cycle,
)
from dlf_dynamics.analysis.bifurcation.codimension import (
    Node,
    SpecialPoint,
    coefficient,
    critical,
)
from dlf_dynamics.analysis.bifurcation.curve_walk import CurveStatus, End, Range, Walk
from dlf_dynamics.analysis.bifurcation.cycles import first_points
from dlf_dynamics.analysis.bifurcation.kinks import kinks_note, may_jump
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation
from dlf_dynamics.reprs import brief


@dataclass(frozen=True)
class Curve:
    """Bifurcations of one kind along a curve in the plane, in the order in which it is followed.

    Attributes:
        kind: kind of bifurcation.
        names: names of the two parameters.
        parameters: (k, 2) parameters of the cycles.
        points: (k, period, n) points of the cycles.
        multipliers: (k, n), largest modulus first.
        critical: (k,) the multiplier on the unit circle, as an eigenvalue of the Jacobian; for a
            pair, the one above the real axis.
        angles: (k,) angles of the critical multipliers, in radians: 0 for folds, π for flips.
        coefficients: (k,) coefficients of the normal form, a for folds and b for flips, see
            `normal_form`; NaN for Neimark-Sacker points, and where they cannot be computed.
        residuals: (k,) larger one of the cycle's residual and the remaining bordered determinant,
            relative to the matrix, from fresh evaluations.
        special: points of codimension two, in the same order.
        status: `range left` if both ends left the range, `closed` if the curve came back to its
            start, else why an end did not.
        message: how each end came about.
    """

    kind: CurveKind
    names: tuple[str, str]
    parameters: Float[np.ndarray, "k 2"]
    points: Float[np.ndarray, "k period n"]
    multipliers: Complex[np.ndarray, "k n"]
    critical: Complex[np.ndarray, " k"]
    angles: Float[np.ndarray, " k"]
    coefficients: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    special: tuple[SpecialPoint, ...]
    status: CurveStatus
    message: str
    __repr__ = brief


@np.errstate(all="ignore")  # what overflows is not finite, and no point of a curve
def continue_curve(
    map_: Map,
    bifurcation: Bifurcation,
    values: Float[Array | np.ndarray, "2"] | tuple[float, float],
    *,
    until: tuple[Range, Range],
    parameters: tuple[str, str] = ("first", "second"),
    step: float = 0.02,
    max_points: int = 500,
    tol: float = 1e-11,
) -> Curve:
    """Follows a flip, a fold or a Neimark-Sacker bifurcation in the plane of two parameters.

    The cycle and the condition that it bifurcates, a bordered determinant, are one system of
    equations in the cycle and both parameters (see `bordered`), followed by pseudo-arclength
    continuation in both directions. Arclength is that of both parameters, each as a part of its
    range, and of the first point, as a part of its size; for a pair of multipliers also of the
    cosine of their angle. Steps are halved where Newton's method fails or the curve turns sharply.

    Points of codimension two are located as zeros of test functions whose signs differ between
    neighbouring points: a coefficient of the normal form (CP, GPD), the overlap of both
    eigenvectors (R1 and R2, where the critical multiplier is double), the angle of a pair (R1 to
    R4), and determinants of all other multipliers, where a second one is on the unit circle (LPPD,
    LPNS, PDNS, NSNS). A function that vanishes twice within a step is missed. Not computed are
    points where the coefficient of a Neimark-Sacker bifurcation vanishes (Chenciner), the
    coefficients of special points themselves, and the cycles that branch off there. A
    Neimark-Sacker curve ends at R1 and R2; beyond, two real multipliers have the product 1, which
    is no bifurcation.

    For a map with kinks a curve is followed on one smooth piece: it ends where the cycle meets a
    kink, a border collision, at which all of these functions jump.

    Args:
        map_: the map, whose parameter is an array of two.
        bifurcation: the start, as found on `map_.along(values, index)`.
        values: values of both parameters at the bifurcation.
        until: lowest and highest value of each parameter; a curve ends at them exactly.
        parameters: names of the two.
        step: largest arclength between points.
        max_points: number of points in each direction, besides the start.
        tol: largest residual of each point.

    Raises:
        ValueError: when the bifurcation is of another kind, the start is outside the ranges, the
            step is not positive, or the state is too large for its Jacobian, and as in
            `find_cycle`.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> jax.config.update("jax_enable_x64", True)
    >>> from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
    >>> henon = Map(lambda x, p: jnp.array([1 - p[0] * x[0] ** 2 + x[1], p[1] * x[0]]))
    >>> b = 0.3
    >>> line = henon.along((0.0, b), 0)
    >>> branch = continue_cycle(line, np.array([0.7, 0.2]), 0.1, 1, until=(0.1, 0.5))
    >>> (flip,) = branch.bifurcations
    >>> curve = continue_curve(henon, flip, (flip.parameter, b), until=((0.0, 2.0), (0.0, 0.9)))
    >>> a, b = curve.parameters.T
    >>> curve.status, bool(np.max(np.abs(a - 3 * (1 - b) ** 2 / 4)) < 1e-9)
    ('range left', True)
    """
    start = np.asarray(values, float)
    kind = _require(bifurcation, start, until, parameters, step)
    guess = first_points(
        map_.along(start, 0), bifurcation.state, float(start[0]), bifurcation.period
    )
    shape = guess.shape

    def ended(why: str) -> Curve:
        return _curve(kind, parameters, [], shape, f"no start: {why}")

    if not bifurcation.converged:
        return ended(f"the {kind} itself is not converged: {bifurcation.message}")
    cosine = np.cos(np.angle(bifurcation.multiplier)) if kind == "neimark-sacker" else np.nan
    cycle = plane_cycle(map_, guess, start, float(cosine))
    if not np.all(np.isfinite(cycle.jacobians)):
        return ended("the derivatives of the map are not finite there")
    size = float(np.linalg.norm(guess[0]))
    floor = float(np.max(np.abs(guess))) or 1.0
    kinked, weight = may_jump(map_, guess[0], jnp.asarray(start)), 1 / size if size > 1e-8 else 1.0
    walk = Walk(map_, kind, until, step, max_points, tol, floor, weight, kinked)
    origin = walk.origin(cycle, first_borders(kind, cycle))
    if isinstance(origin, str):
        return ended(origin)
    ends = [walk.follow(origin.backwards())]
    if ends[0].status != "closed":
        ends.append(walk.follow(origin))
    curve = _curve(kind, parameters, ends, shape)
    return replace(curve, message=curve.message + kinks_note(map_, guess[0], jnp.asarray(start)))


def _curve(
    kind: CurveKind,
    names: tuple[str, str],
    ends: list[End],
    shape: tuple[int, ...],
    message: str = "",
) -> Curve:
    """Both ends of a curve in one order; without any it did not start."""
    nodes, special = list[Node](), list[SpecialPoint]()
    for end in ends:  # earlier ends are reversed, without their start
        nodes = nodes[:0:-1] + end.nodes
        special = special[::-1] + end.special
    statuses: list[CurveStatus] = [end.status for end in ends] or ["not converged"]
    count = len(nodes)
    cosines = {"fold": 1.0, "flip": -1.0}
    angles = [np.arccos(np.clip(cosines.get(kind, n.cycle.cosine), -1, 1)) for n in nodes]
    return Curve(
        kind=kind,
        names=names,
        parameters=np.array([node.cycle.parameters for node in nodes]).reshape(count, 2),
        points=np.array([node.cycle.points for node in nodes]).reshape(count, *shape),
        multipliers=np.array([n.multipliers for n in nodes], complex).reshape(count, shape[1]),
        critical=np.array([critical(kind, node) for node in nodes], complex),
        angles=np.array(angles, float),
        coefficients=np.array([coefficient(kind, node.manifold) for node in nodes], float),
        residuals=np.array([node.residual for node in nodes], float),
        special=tuple(special),
        status=max(statuses, key=lambda status: status not in ("range left", "closed")),
        message="; ".join(end.message for end in ends) or message,
    )


def _require(
    bifurcation: Bifurcation,
    values: Float[np.ndarray, "2"],
    until: tuple[Range, Range],
    names: tuple[str, str],
    step: float,
) -> CurveKind:
    """The kind of the curve, after checking all arguments."""
    kind = next((kind for kind in get_args(CurveKind) if kind == bifurcation.kind), None)
    if kind is None:
        raise ValueError(
            f"a {bifurcation.kind} has no curve here; expected a fold, flip or neimark-sacker"
        )
    if values.shape != (2,) or len(until) != 2 or len(names) != 2:
        raise ValueError("expected two parameters: two values, two ranges and two names")
    for value, (low, high), name in zip(values, until, names, strict=True):
        if not low < high or not low <= value <= high:
            raise ValueError(f"{name}: no range from {low} to {high} with the start {value} in it")
    if not np.any(np.isclose(values, bifurcation.parameter, rtol=1e-6, atol=0)):
        raise ValueError(
            f"the bifurcation is at {bifurcation.parameter}; expected it among the values "
            f"{values.tolist()}"
        )
    if not step > 0:
        raise ValueError(f"step is {step}; expected more than 0")
    return kind
