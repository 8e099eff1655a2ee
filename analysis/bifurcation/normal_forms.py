"""Bifurcations of cycles and their normal forms, by exact derivatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from dlf_dynamics.analysis.bifurcation.expansion import (
    CLOSE,
    DEGENERATE,
    Eigenspace,
    Expansion,
    Vector,
)
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import multipliers_of
from dlf_dynamics.reprs import brief

Kind = Literal["fold", "flip", "neimark-sacker", "branch point", "border collision"]
Criticality = Literal["supercritical", "subcritical", ""]
Branching = Literal["transcritical", "pitchfork", "period halved", ""]

_LABELS: dict[Kind, str] = {
    "fold": "LP",
    "flip": "PD",
    "neimark-sacker": "NS",
    "branch point": "BP",
    "border collision": "BC",
}

_RESONANCE = 1e-3
"""Distance of a power of a multiplier from 1 below which it counts as resonant."""

_SYMMETRIC = 1e-7
"""Quadratic coefficient at a fold or branch point below which it is 0 within its error, relative to
its terms and the root of the cubic coefficient, which has the same unit."""

_KNOWN = 1e-9
"""Error of a branch point's parameter, in units of the change that moves the multiplier by 1."""


@dataclass(frozen=True)
class Bifurcation:
    """A point of a branch where a multiplier crosses the unit circle, or the cycle meets a kink.

    Attributes:
        kind: fold (the parameter turns back), flip, neimark-sacker, branch point (+1 without a
            fold: two branches cross), or border collision (the cycle meets a kink of the map, where
            multipliers jump: no normal form).
        parameter: parameter at the bifurcation.
        state: (n,) first point of the cycle.
        period: period of the cycle.
        multiplier: the critical one, as computed; NaN at a border collision, which has none.
        coefficient: coefficient of the normal form, see `normal_form`; NaN where there is none.
        criticality: empty for kinds that have none, for a coefficient that is 0 to rounding, where
            another multiplier, except those at +1, is on or outside the unit circle, and where
            `converged` is false.
        residual: larger one of the cycle's residual and the remaining value of the test function.
        converged: whether the parameter is known to 1e-9.
        message: why it is not converged, why no coefficient or criticality is given, and the name
            of such a degenerate case; for a border collision, whether the branch turns back there,
            and how multipliers jump.
        direction: (n,) critical eigenvector at the first point, of unit length, with its largest
            component positive; complex at a Neimark-Sacker point, empty where there is none. Each
            of several simultaneous flips has its own direction.
        cubic: coefficient of third order at folds and branch points, see `normal_form`; else NaN.
        branching: kind of a branch point: transcritical, pitchfork, or the flip that a cycle of
            twice the period comes from; empty for other kinds, and where it is unknown.
        tangent: (n+1,) unit vector of the changes of the first point and, last, the parameter along
            the branch on which it was found; empty where it is unknown.
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
    cubic: float = np.nan
    branching: Branching = ""
    tangent: Float[np.ndarray, " n+1"] = field(default_factory=lambda: np.empty(0))
    __repr__ = brief

    @property
    def label(self) -> str:
        """Short name of the kind: LP, PD, NS or BP, as in MatContM and AUTO, or BC."""
        return _LABELS[self.kind]


class NormalForm(NamedTuple):
    """Coefficient of the leading term on the centre manifold.

    Attributes:
        coefficient: NaN where there is none.
        criticality: empty where the kind has none, the coefficient is 0 to rounding or unknown, or
            another multiplier, except those at +1, is on or outside the unit circle.
        message: why a coefficient or a criticality is missing, or how the case is degenerate;
            empty otherwise.
        cubic: coefficient of third order of folds and branch points, else NaN.
        branching: whether two branches cross (transcritical) or one is vertical (pitchfork).
    """

    coefficient: float
    criticality: Criticality
    message: str
    cubic: float = np.nan
    branching: Branching = ""


def normal_form(
    map_: Map,
    points: Float[np.ndarray, "period n"],
    parameter: float,
    kind: Kind,
    multiplier: complex,
) -> NormalForm:
    """Normal-form coefficient of a cycle at a bifurcation (Kuznetsov 2004, §§5.4, 7.4 and 9.5).

    Derivatives J, B, C of the p-fold map g are exact. With J q = μ q, Jᵀ w = μ w, q of unit length
    and its largest component positive, and ⟨w, q⟩ = 1, the coefficient is

    * flip, μ = -1: b = ⟨w, C(q,q,q) + 3 B(q, (1-J)^-1 B(q,q))⟩ / 6, on the centre manifold
      s ↦ -(1+ε) s + b s³; positive is supercritical: a stable cycle of twice the period. For
      gradient descent it is (η/6)(3 g₃ᵀ H^-1 g₃ - L₄). Where b is 0 to rounding: generalised flip;
    * fold and branch point, μ = 1: a = ⟨w, B(q,q)⟩ / 2, in s ↦ s + a s² + c s³, and as `cubic`
      c = ⟨w, C(q,q,q) + 3 B(q, h)⟩ / 6 with (1-J) h = B(q,q) - 2 a q and ⟨w, h⟩ = 0. A fold has no
      criticality; where a is 0 to rounding it is a cusp. A branch point is a pitchfork where a is 0
      to rounding, supercritical for negative c: its outer branches are stable then; else it is
      transcritical and has no criticality (Golubitsky and Schaeffer 1985, §II.9);
    * Neimark-Sacker, μ = exp(iθ), 0 < θ < π, complex q: d = ½ Re exp(-iθ) ⟨p, C(q,q,q̄) +
      2 B(q, (1-J)^-1 B(q,q̄)) + B(q̄, (μ²-J)^-1 B(q,q))⟩, with p = w̄; negative is supercritical: a
      stable invariant circle. None at strong resonances, μ^k = 1 for k up to 4.

    Where another multiplier is on or outside the unit circle, what is born there is unstable or its
    stability is unknown, whatever the sign: then there is no criticality. Multipliers at +1, from
    directions in which the map does not move, do not matter.

    Args:
        map_: the map f.
        points: points of the cycle.
        parameter: parameter at the bifurcation.
        kind: kind of bifurcation.
        multiplier: the critical one, as computed.

    >>> import jax
    >>> jax.config.update("jax_enable_x64", True)
    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> form = normal_form(logistic, np.array([[2 / 3]]), 3.0, "flip", -1 + 0j)
    >>> round(form.coefficient, 9), form.criticality
    (9.0, 'supercritical')
    """
    system = Expansion(map_, points, parameter)
    if kind == "neimark-sacker":
        return _alone(_neimark_sacker(system, multiplier), system.jacobian, multiplier)
    sign = -1 if kind == "flip" else 1
    space = system.eigenspace(sign)
    vectors = None if space and space.coupled else system.eigenvectors(sign)
    if vectors is None:
        return NormalForm(np.nan, "", _multiple(sign, space))
    right, left = vectors
    if kind == "flip":
        return _alone(flip_form(system, right, left), system.jacobian, -1)
    form = _at_one(system, np.real(right), np.real(left), kind)
    return _alone(form, system.jacobian, 1)


def _multiple(sign: int, space: Eigenspace | None) -> str:
    """Why there is no normal form where the critical multiplier is not simple."""
    if space is None or len(space.left) < 2:
        return "the critical multiplier is not a simple one"
    count = len(space.left)
    if space.coupled:
        order = 1 if sign == 1 else 2
        return (
            f"strong resonance 1:{order}: {count} multipliers are {sign:+d} with fewer eigenvectors"
        )
    return f"{count} multipliers are {sign:+d} at once: the critical one is not simple"


def flip_form(system: Expansion, right: Vector, left: Vector) -> NormalForm:
    """The normal form of a flip with given eigenvectors, regardless of other multipliers."""
    bend = system.derivative(right, right)
    response = system.inverse(bend)
    if response is None:
        return NormalForm(np.nan, "", "a multiplier is +1 as well, and the flip moves along it")
    cubic = system.derivative(right, right, right), 3 * system.derivative(right, response)
    terms = [float(np.real(left @ term)) / 6 for term in cubic]
    return _judged(sum(terms), _size(left, *cubic) / 6, "supercritical", "generalised flip")


def _at_one(
    system: Expansion, right: Float[np.ndarray, " n"], left: Float[np.ndarray, " n"], kind: Kind
) -> NormalForm:
    """The normal form of a fold or a branch point."""
    quadratic, cubic, size, cubic_size = _terms_at_one(system, right, left)
    if not (np.isfinite(quadratic) and np.isfinite(cubic)):
        return NormalForm(np.nan, "", "the derivatives of the map are not finite")
    slack = [0.0, 0.0]
    rate = float(np.real(left @ system.derivative(right, np.append(0 * right, 1.0))))
    if kind == "branch point" and rate:
        # For a map that is the identity at some parameter, coefficients are determined by the error
        # of the parameter.
        beside = _terms_at_one(system.beside(_KNOWN / abs(rate)), right, left)
        slack = [abs(beside[0] - quadratic), abs(beside[1] - cubic)]
    if abs(quadratic) > _SYMMETRIC * (size + np.sqrt(abs(cubic))) + slack[0]:
        return NormalForm(quadratic, "", "", cubic, "" if kind == "fold" else "transcritical")
    if kind == "fold":
        return NormalForm(quadratic, "", "cusp: the coefficient is 0 to rounding", cubic)
    cubic_size += slack[1] / DEGENERATE
    judged = _judged(cubic, cubic_size, "subcritical", "degenerate pitchfork")
    return judged._replace(coefficient=quadratic, cubic=cubic, branching="pitchfork")


def _terms_at_one(
    system: Expansion, right: Float[np.ndarray, " n"], left: Float[np.ndarray, " n"]
) -> tuple[float, float, float, float]:
    """Coefficients of second and third order, and the sizes to which rounding is relative."""
    bend = np.real(system.derivative(right, right))
    quadratic = float(left @ bend) / 2
    response = system.response(right, left, bend - 2 * quadratic * right)
    terms = system.derivative(right, right, right), 3 * system.derivative(right, response)
    cubic = float(np.real(left @ sum(terms))) / 6
    return quadratic, cubic, _size(left, bend) / 2, _size(left, *terms) / 6


def _size(left: Vector, *terms: Vector) -> float:
    """Size to which the rounding of ⟨w, ...⟩ is relative."""
    return float(np.linalg.norm(left) * sum(np.linalg.norm(term) for term in terms))


def _neimark_sacker(system: Expansion, multiplier: complex) -> NormalForm:
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
    total = float(np.real(sum(terms) / unit)) / 2
    size = float(sum(map(abs, terms))) / 2  # for area-preserving maps, terms are imaginary
    return _judged(total, size, "subcritical", "generalised Neimark-Sacker")


def _alone(form: NormalForm, jacobian: Float[np.ndarray, "n n"], multiplier: complex) -> NormalForm:
    """The normal form, without criticality where others are on or outside the unit circle."""
    if not form.criticality:
        return form
    others = multipliers_of(jacobian)
    for critical in {complex(multiplier), complex(multiplier).conjugate()}:
        others = np.delete(others, np.argmin(np.abs(others - critical)))
    others = others[np.abs(others - 1) > CLOSE]
    largest = float(np.max(np.abs(others), initial=0))
    if largest < 1 - CLOSE:
        return form
    why = f"another multiplier is on or outside the unit circle: its modulus is {largest:.6g}"
    return form._replace(criticality="", message=why)


def _judged(coefficient: float, size: float, positive: Criticality, otherwise: str) -> NormalForm:
    """The normal form with the criticality from a coefficient's sign, if it is above rounding.

    Args:
        coefficient: coefficient of third order.
        size: size of its terms.
        positive: criticality of a positive coefficient.
        otherwise: name of the degenerate case that it is 0.
    """
    if not np.isfinite(coefficient):
        return NormalForm(np.nan, "", "the derivatives of the map are not finite")
    if abs(coefficient) <= DEGENERATE * size:
        return NormalForm(coefficient, "", f"{otherwise}: the coefficient is 0 to rounding")
    negative: Criticality = "subcritical" if positive == "supercritical" else "supercritical"
    return NormalForm(coefficient, positive if coefficient > 0 else negative, "")
