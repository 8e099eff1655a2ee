"""Bifurcations of cycles: normal forms by exact derivatives, and the way to a doubled cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Complex, Float

from dlf_dynamics.analysis.bifurcation.cycles import (
    ROUNDING,
    Cycle,
    Linearisation,
    find_cycle,
    first_points,
    linearise,
    multipliers_of,
    solve,
)
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.reprs import brief

Kind = Literal["fold", "flip", "neimark-sacker", "branch point"]
Criticality = Literal["supercritical", "subcritical", ""]
Vector = Complex[np.ndarray, " n"]

_LABELS: dict[Kind, str] = {
    "fold": "LP",
    "flip": "PD",
    "neimark-sacker": "NS",
    "branch point": "BP",
}

_CLOSE = 1e-6
"""Multipliers closer to each other than this are not told apart, nor is their eigenvector."""

_DEGENERATE = 1e-8
"""A coefficient below this part of the terms that it is the sum of is rounding."""

_RESONANCE = 1e-3
"""Distance of a multiplier's power from 1 within which a resonance is too close."""

_PRECISION = 1e-9
"""Error of a bifurcation's parameter, relative to it and to the range, that counts as refined."""


@dataclass(frozen=True)
class Bifurcation:
    """A point of a branch where a multiplier passes the unit circle.

    Attributes:
        kind: fold (the parameter turns back), flip, neimark-sacker, or branch point (+1 without a
            fold: transcritical, pitchfork, or the flip that a doubled cycle comes from).
        parameter: at the bifurcation.
        state: (n,) first point of the cycle.
        period: of the cycle.
        multiplier: the critical one, as computed.
        coefficient: of the normal form, see `normal_form`; NaN when it cannot be had.
        criticality: empty for kinds that have none, for a coefficient that is 0 to rounding, where
            another multiplier is on or outside the unit circle but for those at +1, and whenever
            `converged` is false.
        residual: largest of the cycle's own and of what is left of the test function.
        converged: whether the parameter is known to 1e-9.
        message: why it is not converged, or why no coefficient or criticality is given.
        direction: (n,) critical eigenvector at the first point, of unit length, its largest
            component positive; complex at a Neimark-Sacker point, empty where it cannot be had.
    """

    kind: Kind
    parameter: float
    state: Float[np.ndarray, " n"]
    period: int
    multiplier: complex
    coefficient: float
    criticality: Criticality
    residual: float
    converged: bool
    message: str
    direction: Float[np.ndarray, " n"] | Complex[np.ndarray, " n"] = field(
        default_factory=lambda: np.empty(0)
    )
    __repr__ = brief

    @property
    def label(self) -> str:
        """Name of the kind in figures, as MatContM and AUTO have it: LP, PD, NS or BP."""
        return _LABELS[self.kind]


class NormalForm(NamedTuple):
    """Coefficient of the leading term on the centre manifold.

    Attributes:
        coefficient: NaN when it cannot be had.
        criticality: empty where the kind has none, the coefficient is 0 to rounding or unknown, or
            another multiplier is on or outside the unit circle but for those at +1.
        message: why a coefficient or a criticality is missing; empty otherwise.
    """

    coefficient: float
    criticality: Criticality
    message: str


def normal_form(
    map_: Map,
    points: Float[np.ndarray, "period n"],
    parameter: float,
    kind: Kind,
    multiplier: complex,
) -> NormalForm:
    """Normal-form coefficient of a cycle at a bifurcation (Kuznetsov 2004, §§5.4 and 9.5).

    Derivatives J, B, C of the p-fold map g are exact. With J q = μ q, Jᵀ w = μ w, q of unit length
    and its largest component positive, and ⟨w, q⟩ = 1, the coefficient is

    * flip, μ = -1: b = ⟨w, C(q,q,q) + 3 B(q, (1-J)^-1 B(q,q))⟩ / 6, on the centre manifold
      s ↦ -(1+ε) s + b s³; positive is supercritical: a stable cycle of twice the period. For
      gradient descent it is (η/6)(3 g₃ᵀ H^-1 g₃ - L₄);
    * fold and branch point, μ = 1: a = ⟨w, B(q,q)⟩ / 2, in s ↦ s + a s²; there is no criticality;
    * Neimark-Sacker, μ = exp(iθ), 0 < θ < π, complex q: d = ½ Re exp(-iθ) ⟨p, C(q,q,q̄) +
      2 B(q, (1-J)^-1 B(q,q̄)) + B(q̄, (μ²-J)^-1 B(q,q))⟩, with p = w̄; negative is supercritical: a
      stable invariant circle. None at strong resonances, μ^k = 1 for k up to 4.

    Where another multiplier is on or outside the unit circle, what is born there is not stable, or
    it cannot be told, whatever the sign: then there is no criticality. Multipliers at +1, of
    directions in which the map does not move, are no obstacle.

    Args:
        map_: the map f.
        points: of the cycle.
        parameter: at the bifurcation.
        kind: of bifurcation.
        multiplier: the critical one, as computed.

    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> found = normal_form(logistic, np.array([[2 / 3]]), 3.0, "flip", -1 + 0j)
    >>> round(found.coefficient, 9), found.criticality
    (9.0, 'supercritical')
    """
    system = _System(map_, points, parameter)
    if kind == "neimark-sacker":
        return _alone(_neimark_sacker(system, multiplier), system.jacobian, multiplier)
    if (vectors := system.eigenvectors(-1 if kind == "flip" else 1)) is None:
        return NormalForm(np.nan, "", "the critical multiplier is not a simple one")
    right, left = vectors
    if kind == "flip":
        return _alone(_flip(system, right, left), system.jacobian, -1)
    quadratic = float(np.real(left @ system.derivative(right, right))) / 2
    return NormalForm(quadratic, "", "")


def classify(
    map_: Map,
    place: Linearisation,
    kind: Kind,
    multipliers: Complex[np.ndarray, " n"],
    residual: float,
    error: float,
) -> Bifurcation:
    """What is told of a bifurcation whose parameter has this relative error."""
    converged = bool(error <= _PRECISION and residual <= 1e-7)
    imaginary, distance = np.imag(multipliers), np.abs(multipliers - (-1 if kind == "flip" else 1))
    if kind == "neimark-sacker":
        distance = np.where(imaginary > ROUNDING, np.abs(np.abs(multipliers) - 1), np.inf)
    multiplier = complex(multipliers[np.argmin(distance)])
    form, direction = NormalForm(np.nan, "", "not located; a smaller step may help"), np.empty(0)
    if np.isfinite(error):
        form = form._replace(message=f"error of the parameter {error:.1e}: not refined enough")
    if converged:
        form = normal_form(map_, place.points, place.parameter, kind, multiplier)
        vectors = _System(map_, place.points, place.parameter).eigenvectors(multiplier)
        if vectors is not None:
            direction = vectors[0] if kind == "neimark-sacker" else np.real(vectors[0])
    return Bifurcation(
        kind=kind,
        parameter=place.parameter,
        state=place.points[0],
        period=len(place.points),
        multiplier=multiplier,
        residual=residual,
        converged=converged,
        direction=direction,
        **form._asdict(),
    )


@np.errstate(all="ignore")
def switch_branch(
    map_: Map,
    bifurcation: Bifurcation,
    period: int | None = None,
    *,
    amplitude: float | None = None,
    tol: float = 1e-12,
) -> Cycle:
    """Finds the cycle of twice the period close to a flip, to be continued from there.

    Its points are predicted on the centre manifold to second order, at ±s along the critical
    eigenvector and at the parameter where ε = b s² (see `normal_form`): beyond a supercritical
    flip, before a subcritical one. What Newton's method makes of them counts only if its least
    period is twice that of the flipping cycle, and its amplitude within a factor of 2 of s. Other
    amplitudes are tried, up to four times smaller and larger, before it is given up.

    Args:
        map_: the map.
        bifurcation: a flip.
        period: of the cycle that flips; the bifurcation's own when not given.
        amplitude: s, half the distance of neighbouring points, in units of the state; by default
            that at which ε is ±0.01.
        tol: as for `find_cycle`.

    Returns:
        The cycle, or what was found instead with `converged` false and why.

    Raises:
        ValueError: when the bifurcation is not a flip.

    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> flip = Bifurcation("flip", 3.0, np.array([2 / 3]), 1, -1, 9, "supercritical", 0, True, "")
    >>> doubled = switch_branch(logistic, flip)
    >>> doubled.least_period, doubled.stable, round(doubled.parameter, 4)
    (2, True, 3.01)
    """
    if bifurcation.kind != "flip":
        raise ValueError(f"a {bifurcation.kind} leads to no doubled cycle; expected a flip")
    period = bifurcation.period if period is None else period
    value = bifurcation.parameter
    flipping = find_cycle(map_, bifurcation.state, value, period, tol=tol)
    way = _departure(map_, flipping.points, value)
    if not (bifurcation.converged and flipping.converged):
        way = "the flip itself is not converged"
    if isinstance(way, str):
        points, multipliers = np.tile(flipping.points, (2, 1)), flipping.multipliers**2
        return Cycle(points, value, 2 * period, multipliers, flipping.residual, False, None, way)
    doubled = flipping
    size = np.sqrt(0.01 / abs(way.coefficient)) if amplitude is None else amplitude
    for factor in (1.0, 0.5, 2.0, 0.25, 4.0):
        doubled = _doubled(map_, flipping, way, factor * size, tol)
        if doubled.converged:
            break
    return doubled


class _Departure(NamedTuple):
    """The doubled cycle x(p) ± s q + s² h / 2, with dx/dp, dμ/dp along x(p), and b."""

    right: Float[np.ndarray, " n"]
    curvature: Float[np.ndarray, " n"]
    drift: Float[np.ndarray, " n"]
    rate: float
    coefficient: float


def _departure(
    map_: Map, points: Float[np.ndarray, "period n"], parameter: float
) -> _Departure | str:
    """What is needed to leave a flip along the cycle of twice the period, or why it is not had."""
    system = _System(map_, points, parameter)
    if (vectors := system.eigenvectors(-1)) is None:
        return "the critical multiplier is not a simple one"
    form = _flip(system, *vectors)
    if not form.criticality:
        return form.message
    right, left = vectors
    drift = system.inverse(system.condensed.df_dparameter.astype(complex))
    response = system.inverse(system.derivative(right, right))
    if drift is None or response is None:
        return "a multiplier is +1 as well"
    turn = _turn(map_, *system.at, np.real(right), np.real(drift), period=system.period)
    rate = float(np.real(left) @ np.asarray(turn))
    return _Departure(np.real(right), np.real(response), np.real(drift), rate, form.coefficient)


def _doubled(map_: Map, flipping: Cycle, way: _Departure, size: float, tol: float) -> Cycle:
    """The cycle of twice the period at an amplitude; not converged if it is another one."""
    value = flipping.parameter - way.coefficient * size**2 / way.rate
    middle = flipping.points[0] + way.drift * (value - flipping.parameter)
    middle = middle + size**2 / 2 * way.curvature
    starts, period = (middle + size * way.right, middle - size * way.right), flipping.period
    points = np.concatenate([first_points(map_, start, value, period) for start in starts])
    found = find_cycle(map_, points, value, 2 * period, tol=tol)
    apart = abs(float((found.points[0] - found.points[period]) @ way.right)) / 2
    message = found.message
    if found.converged and not size / 2 < apart < 2 * size:
        message += f"; its amplitude is {apart:.2e} where {size:.2e} was predicted"
    elif found.least_period == found.period:
        return found
    return replace(found, converged=False, least_period=None, message=message)


class _System:
    """The p-fold map at a point of a cycle: its Jacobian, B and C."""

    def __init__(self, map_: Map, points: Float[np.ndarray, "period n"], parameter: float) -> None:
        self.map_, self.period = map_, len(points)
        self.at = jnp.asarray(points[0]), jnp.float64(parameter)
        self.condensed = linearise(map_, points, parameter).condensed()
        self.jacobian = self.condensed.matrix

    def eigenvectors(self, multiplier: complex) -> tuple[Vector, Vector] | None:
        """Right and left one, ⟨w, q⟩ = 1 without conjugation; none when it is not simple."""
        if not np.all(np.isfinite(self.jacobian)):
            return None
        solved: Any = scipy.linalg.eig(self.jacobian, left=True)  # two or three arrays
        values, lefts, rights = solved
        (found,) = np.nonzero(np.abs(values - multiplier) < _CLOSE)
        if len(found) != 1:
            return None
        right, left = rights[:, found[0]].astype(complex), lefts[:, found[0]].conj()
        largest = right[np.argmax(np.abs(right))]
        right *= np.abs(largest) / largest / np.linalg.norm(right)
        overlap = left @ right
        return (right, left / overlap) if np.abs(overlap) > _CLOSE else None

    def derivative(self, *vectors: Vector) -> Vector:
        """B or C of two or three complex vectors, which is linear in each."""
        total: Vector = np.zeros(len(self.jacobian), complex)
        for choice in np.ndindex(*(2,) * len(vectors)):
            parts = [np.imag(v) if i else np.real(v) for i, v in zip(choice, vectors, strict=True)]
            if all(np.any(part) for part in parts):
                found = _derivative(self.map_, *self.at, tuple(parts), period=self.period)
                total += 1j ** sum(choice) * np.asarray(found)
        return total

    def inverse(self, right: Vector) -> Vector | None:
        """(1-J)^-1 of a vector; where J has multipliers 1, none unless it does not excite them."""
        matrix = np.eye(len(self.jacobian)) - self.jacobian
        real, singular = solve(matrix, np.real(right), ROUNDING)
        imaginary, _ = solve(matrix, np.imag(right), ROUNDING)
        found = real + 1j * imaginary
        gap = np.linalg.norm(matrix @ found - right)
        return None if singular and gap > _DEGENERATE * np.linalg.norm(right) else found


def _flip(system: _System, right: Vector, left: Vector) -> NormalForm:
    response = system.inverse(system.derivative(right, right))
    if response is None:
        return NormalForm(np.nan, "", "a multiplier is +1 as well, and the flip moves along it")
    cubic = float(np.real(left @ system.derivative(right, right, right))) / 6
    through = float(np.real(left @ system.derivative(right, response))) / 2
    return _judged(cubic + through, abs(cubic) + abs(through), positive="supercritical")


def _neimark_sacker(system: _System, multiplier: complex) -> NormalForm:
    unit = multiplier / abs(multiplier)
    for order in (1, 2, 3, 4):
        if abs(unit**order - 1) < _RESONANCE:
            return NormalForm(np.nan, "", f"strong resonance 1:{order}")
    if (vectors := system.eigenvectors(multiplier)) is None:
        return NormalForm(np.nan, "", "the critical multiplier is not a simple one")
    right, left = vectors
    mean = system.inverse(system.derivative(right, right.conj()))
    if mean is None:
        return NormalForm(np.nan, "", "a multiplier is +1 as well, and the circle moves along it")
    matrix = unit**2 * np.eye(len(right)) - system.jacobian
    double = np.linalg.solve(matrix, system.derivative(right, right))
    terms = (
        left @ system.derivative(right, right, right.conj()),
        left @ system.derivative(right, mean) * 2,
        left @ system.derivative(right.conj(), double),
    )
    real = [float(np.real(term / unit)) / 2 for term in terms]
    return _judged(sum(real), sum(map(abs, real)), positive="subcritical")


def _alone(form: NormalForm, jacobian: Float[np.ndarray, "n n"], multiplier: complex) -> NormalForm:
    """The same without its criticality where other multipliers are on or outside the circle."""
    if not form.criticality:
        return form
    others = multipliers_of(jacobian)
    for critical in {complex(multiplier), complex(multiplier).conjugate()}:
        others = np.delete(others, np.argmin(np.abs(others - critical)))
    others = others[np.abs(others - 1) > _CLOSE]
    largest = float(np.max(np.abs(others), initial=0))
    if largest < 1 - _CLOSE:
        return form
    why = f"another multiplier is on or outside the unit circle: its modulus is {largest:.6g}"
    return form._replace(criticality="", message=why)


def _judged(coefficient: float, size: float, *, positive: Criticality) -> NormalForm:
    """The criticality that a coefficient's sign tells, if it is more than rounding."""
    if not np.isfinite(coefficient):
        return NormalForm(np.nan, "", "the derivatives of the map are not finite")
    if abs(coefficient) <= _DEGENERATE * size:
        return NormalForm(coefficient, "", "degenerate: the coefficient is 0 to rounding")
    negative: Criticality = "subcritical" if positive == "supercritical" else "supercritical"
    return NormalForm(coefficient, positive if coefficient > 0 else negative, "")


def _along(function: Callable[[Array], Array], direction: Array) -> Callable[[Array], Array]:
    """Derivative of a function along a direction, as a function of the place."""
    return lambda place: jax.jvp(function, (place,), (direction,))[1]


@partial(jax.jit, static_argnames="period")
def _derivative(
    map_: Map, state: Array, parameter: Array, directions: tuple[Array, ...], *, period: int
) -> Array:
    derivative = lambda x: map_.iterate(x, parameter, period)  # noqa: E731
    for direction in directions:
        derivative = _along(derivative, direction)
    return derivative(state)


@partial(jax.jit, static_argnames="period")
def _turn(
    map_: Map, state: Array, parameter: Array, right: Array, drift: Array, *, period: int
) -> Array:
    """Change of J q with the parameter, q being fixed and the cycle moving by `drift`."""

    def turned(state: Array, parameter: Array) -> Array:
        return _along(lambda x: map_.iterate(x, parameter, period), right)(state)

    return jax.jvp(turned, (state, parameter), (drift, jnp.ones_like(parameter)))[1]
