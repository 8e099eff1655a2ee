"""Points of codimension two on curves of bifurcations: which there are, and where they vanish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from dlf_dynamics.analysis.bifurcation.bordered import CurveKind, PlaneCycle, Singularity
from dlf_dynamics.analysis.bifurcation.cycles import ROUNDING, solve
from dlf_dynamics.analysis.bifurcation.detection import determinant, neutral_count
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import Kind
from dlf_dynamics.reprs import brief

Label = Literal["CP", "GPD", "R1", "R2", "R3", "R4", "LPPD", "PDNS", "LPNS", "NSNS", "LPLP", "PDPD"]

NAMES: dict[Label, str] = {
    "CP": "cusp",
    "GPD": "generalised flip",
    "R1": "1:1 resonance",
    "R2": "1:2 resonance",
    "R3": "1:3 resonance",
    "R4": "1:4 resonance",
    "LPPD": "fold-flip",
    "PDNS": "flip-Neimark-Sacker",
    "LPNS": "fold-Neimark-Sacker",
    "NSNS": "double Neimark-Sacker",
    "LPLP": "double fold",
    "PDPD": "double flip",
}
"""Names by label. Labels are those of MatContM except the last two: two multipliers that meet
without a Jordan block, as they do where directions are independent or J is symmetric."""

_COSINES: dict[Label, float] = {"R1": 1.0, "R2": -1.0, "R3": -0.5, "R4": 0.0}

_SECOND: dict[CurveKind, dict[Kind, Label]] = {
    "fold": {"branch point": "LPLP", "flip": "LPPD", "neimark-sacker": "LPNS"},
    "flip": {"branch point": "LPPD", "flip": "PDPD", "neimark-sacker": "PDNS"},
    "neimark-sacker": {"branch point": "LPNS", "flip": "PDNS", "neimark-sacker": "NSNS"},
}
"""Labels of points where a second multiplier, or pair, crosses the unit circle, by both kinds."""

_ON_CIRCLE = 1e-5
"""Distance of a located multiplier from the unit circle; double ones lose half the digits."""


_ROUNDING = 1e-8
"""Changes of a coefficient, relative to its terms, below which they are rounding."""


@dataclass(frozen=True)
class SpecialPoint:
    """A point of codimension two on a curve of bifurcations.

    Attributes:
        kind: name, such as cusp.
        label: short name, as in MatContM.
        parameters: values of both parameters.
        state: (n,) first point of the cycle.
        period: period of the cycle.
        multipliers: (n,) largest modulus first.
        residual: largest of the residuals of the cycle and of the critical multiplier, and the
            error of the position along the curve, as a part of the ranges.
        converged: whether all of these are small: 1e-9 along the curve.
        message: why it is not converged; otherwise empty.
    """

    kind: str
    label: Label
    parameters: Float[np.ndarray, "2"]
    state: Float[np.ndarray, " n"]
    period: int
    multipliers: Complex[np.ndarray, " n"]
    residual: float
    converged: bool
    message: str
    __repr__ = brief


class CentreManifold(NamedTuple):
    """The map along its critical eigenvector, on the centre manifold.

    It uses unit null vectors q and w of A and Aᵀ, whose orientation is continuous along a curve.

    Attributes:
        overlap: ⟨w, q⟩, which is 0 where the critical multiplier is double with a Jordan block.
        quadratic: ⟨w, B(q,q)⟩.
        cubic: ⟨w, C(q,q,q) + 3 B(q, (1-J)^-1 B(q,q))⟩; it has a pole where J has a multiplier 1.
        size: size of the terms of the last coefficient, or of the vector that is projected.
    """

    overlap: float
    quadratic: float
    cubic: float
    size: float


class Node(NamedTuple):
    """A bifurcation on a curve.

    Attributes:
        cycle: the cycle and both parameters.
        singularity: the equations of the critical multiplier.
        tangent: unit vector in scaled coordinates: first point, parameters, and for a pair κ.
        multipliers: multipliers of the cycle.
        manifold: the map on the centre manifold of the critical eigenvector.
        residual: residual of the cycle and of the critical multiplier.
    """

    cycle: PlaneCycle
    singularity: Singularity
    tangent: Float[np.ndarray, " m"]
    multipliers: Complex[np.ndarray, " n"]
    manifold: CentreManifold
    residual: float

    def backwards(self) -> Node:
        """The node with its tangent reversed."""
        return self._replace(tangent=-self.tangent)

    def flat(self) -> Float[np.ndarray, " m"]:
        """All points, the parameters and κ in one vector."""
        cycle = self.cycle
        return np.concatenate([cycle.points.ravel(), cycle.parameters, [cycle.cosine]])


def coefficient(kind: CurveKind, manifold: CentreManifold) -> float:
    """Coefficient of the normal form: a of a fold or b of a flip, see `normal_form`; else NaN."""
    if kind == "neimark-sacker" or manifold.overlap == 0:
        return float("nan")
    value = manifold.quadratic / 2 if kind == "fold" else manifold.cubic / 6
    return value / manifold.overlap


def centre_manifold(
    map_: Map, kind: CurveKind, cycle: PlaneCycle, singularity: Singularity
) -> CentreManifold:
    """Exact derivatives along parabolas tangent to the eigenvector; NaN for pairs."""
    if kind == "neimark-sacker":
        return CentreManifold(*[float("nan")] * 4)
    nulls = singularity.left[:, 0], singularity.right[:, 0]
    left, right = (null / np.linalg.norm(null) for null in nulls)
    at = jnp.asarray(cycle.points[0]), jnp.asarray(cycle.parameters)
    along = partial(_along_parabola, map_, *at, jnp.asarray(right), period=len(cycle.points))
    second, third = (np.asarray(part) for part in along(jnp.zeros(len(right))))
    overlap, quadratic, cubic = float(left @ right), float(left @ second), float("nan")
    size = float(np.linalg.norm(second))
    if kind == "flip":
        matrix = np.eye(len(right)) - cycle.jacobian()
        response, singular = solve(matrix, second, ROUNDING)
        gap = np.linalg.norm(matrix @ response - second)
        if not singular or gap <= ROUNDING * np.linalg.norm(second):
            cubic = float(left @ np.asarray(along(jnp.asarray(response))[1]))
        size = abs(float(left @ third)) + abs(cubic - float(left @ third))
    return CentreManifold(overlap, quadratic, cubic, size)


@partial(jax.jit, static_argnames="period")
def _along_parabola(
    map_: Map, state: Array, parameters: Array, right: Array, bend: Array, *, period: int
) -> tuple[Array, Array]:
    """B(q,q) and C(q,q,q) + 3 B(q,h), the derivatives along x + t q + t² h/2 without J h."""

    def image(t: Array) -> Array:
        return map_.iterate(state + t * right + t**2 / 2 * bend, parameters, period)

    def derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda t: jax.jvp(function, (t,), (jnp.ones_like(t),))[1]

    second = derivative(derivative(image))
    zero = jnp.zeros((), state.dtype)
    straight = (
        second(zero) - jax.jvp(lambda x: map_.iterate(x, parameters, period), (state,), (bend,))[1]
    )
    return straight, derivative(second)(zero)


class TestFunction(NamedTuple):
    """A function of the points of a curve that vanishes at points of codimension two.

    Attributes:
        label: label of these points.
        value: the function.
        least: change between two points below which it is rounding.
        second: kind of bifurcation of a second multiplier there, if it is one.
    """

    label: Label
    value: Callable[[Node], float]
    least: float = 0.0
    second: Kind | None = None


def _test_functions(kind: CurveKind, before: Node, after: Node) -> list[TestFunction]:
    """All functions whose signs are compared at two neighbouring points of a curve."""
    functions: list[TestFunction] = []
    if kind == "neimark-sacker":
        for label, cosine in _COSINES.items():
            functions.append(TestFunction(label, lambda node, at=cosine: node.cycle.cosine - at))
    else:
        double: Label = "R1" if kind == "fold" else "R2"
        functions.append(TestFunction(double, lambda node: node.manifold.overlap))
    least = _ROUNDING * max(before.manifold.size, after.manifold.size)
    if kind == "fold":
        functions.append(TestFunction("CP", lambda node: node.manifold.quadratic, least))
    neutral = neutral_count(*(rest(kind, node) for node in (before, after)))
    if kind == "flip":
        # The cubic term changes sign through a pole where a multiplier passes +1.
        side = lambda node: determinant("fold", rest(kind, node), neutral)[0]  # noqa: E731
        functions.append(TestFunction("GPD", lambda node: node.manifold.cubic * side(node), least))
    return functions + [_second(kind, second, before, after, neutral) for second in _SECOND[kind]]


def _second(kind: CurveKind, second: Kind, before: Node, after: Node, neutral: int) -> TestFunction:
    """The determinant of all multipliers but the critical ones."""
    scale = max(determinant(second, rest(kind, node), neutral)[1] for node in (before, after))

    def value(node: Node) -> float:
        sign, log = determinant(second, rest(kind, node), neutral)
        return sign * float(np.exp(log - scale))

    return TestFunction(_SECOND[kind][second], value, second=second)


def changes(kind: CurveKind, before: Node, after: Node) -> list[TestFunction]:
    """The functions whose sign differs at the two points."""
    differing = [
        test
        for test in _test_functions(kind, before, after)
        if _changes_sign(test, test.value(before), test.value(after))
    ]
    labels = {test.label for test in differing}
    # A second multiplier at ±1 with a Jordan block is the resonance, not a double flip or fold.
    same: dict[Label, Label] = {"LPLP": "R1", "PDPD": "R2"}
    return [test for test in differing if same.get(test.label) not in labels]


def _changes_sign(test: TestFunction, before: float, after: float) -> bool:
    """Whether a function vanishes between two points, or at the second; not if it always does."""
    vanishes = before * after < 0 or (after == 0 and before != 0)
    return vanishes and not abs(after - before) <= test.least


def is_there(kind: CurveKind, test: TestFunction, node: Node) -> bool:
    """Whether a node is a bifurcation: two real multipliers whose product is 1 are none."""
    if test.second is None:
        return True
    left = rest(kind, node)
    if test.second == "neimark-sacker":
        left = left[np.imag(left) > ROUNDING]
        distance = np.abs(np.abs(left) - 1)
    else:
        distance = np.abs(left - (-1 if test.second == "flip" else 1))
    return bool(np.min(distance, initial=np.inf) < _ON_CIRCLE)


def critical(kind: CurveKind, node: Node) -> complex:
    """The multiplier on the unit circle; for a pair the one above the real axis."""
    return complex(node.multipliers[_critical(kind, node)[0]])


def rest(kind: CurveKind, node: Node) -> Complex[np.ndarray, " others"]:
    """All multipliers but the critical ones."""
    return np.delete(node.multipliers, _critical(kind, node))


def _critical(kind: CurveKind, node: Node) -> list[int]:
    if kind != "neimark-sacker":
        return [int(np.argmin(np.abs(node.multipliers - (-1 if kind == "flip" else 1))))]
    turn = np.exp(1j * np.arccos(np.clip(node.cycle.cosine, -1, 1)))
    first = int(np.argmin(np.abs(node.multipliers - turn)))
    others = np.abs(node.multipliers - np.conj(turn))
    others[first] = np.inf
    return [first, int(np.argmin(others))]
