"""What is told of a bifurcation that was located: its normal form, direction and degeneracies."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from dlf_dynamics.analysis.bifurcation.cycles import ROUNDING, Linearisation
from dlf_dynamics.analysis.bifurcation.detection import Crossed
from dlf_dynamics.analysis.bifurcation.double_flips import doubling_directions
from dlf_dynamics.analysis.bifurcation.expansion import CLOSE, Expansion
from dlf_dynamics.analysis.bifurcation.kinks import may_jump
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import (
    Bifurcation,
    Kind,
    NormalForm,
    normal_form,
)

_PRECISION = 1e-9
"""Error of a bifurcation's parameter, relative to it and to the range, that counts as refined."""


_JUMPS = "a derivative of second or third order jumps at the cycle: it has no normal form"


class Located(NamedTuple):
    """A bifurcation on a branch before anything is told of it.

    Attributes:
        found: its kind, and the rank of its multiplier among those of this kind.
        place: the cycle.
        multipliers: multipliers of the cycle.
        tangent: tangent of the branch, in (first point, parameter).
        residual: largest of the cycle's own and of what is left of the test function.
        error: error of the parameter, relative to it and to the range.
        neutral: number of multipliers that are at 1, or next to it, all along.
        halved: whether the cycle has shrunk to one of half its period.
    """

    found: Crossed
    place: Linearisation
    multipliers: Complex[np.ndarray, " n"]
    tangent: Float[np.ndarray, " n+1"]
    residual: float
    error: float
    neutral: int
    halved: bool


def classify(map_: Map, located: Located) -> Bifurcation:
    """The bifurcation, with its normal form if it is refined well enough."""
    kind, place, error = located.found.kind, located.place, located.error
    converged = bool(error <= _PRECISION and located.residual <= 1e-7)
    multiplier = _critical(kind, located.multipliers)
    form, direction = NormalForm(np.nan, "", "not located; a smaller step may help"), np.empty(0)
    if np.isfinite(error):
        form = form._replace(message=f"error of the parameter {error:.1e}: not refined enough")
    if converged:
        form = normal_form(map_, place.points, place.parameter, kind, multiplier)
        form, direction = _completed(map_, located, form, multiplier)
        form = form if _is_smooth(map_, place, direction) else NormalForm(np.nan, "", _JUMPS)
    if located.halved and converged:
        form = form._replace(branching="period halved")
    return Bifurcation(
        kind=kind,
        parameter=place.parameter,
        state=place.points[0],
        period=len(place.points),
        multiplier=multiplier,
        residual=located.residual,
        converged=converged,
        direction=direction,
        tangent=located.tangent,
        **form._asdict(),
    )


def _is_smooth(map_: Map, place: Linearisation, direction: np.ndarray) -> bool:
    """Whether derivatives of higher order, which a normal form is made of, do not jump there."""
    point, parameter = place.points[0], place.parameter
    if not direction.size or not may_jump(map_, point, parameter):
        return True
    return not Expansion(map_, place.points, parameter).jumps(direction)


def _critical(kind: Kind, multipliers: Complex[np.ndarray, " n"]) -> complex:
    """The multiplier closest to where one is at a bifurcation of a kind."""
    distance = np.abs(multipliers - (-1 if kind == "flip" else 1))
    if kind == "neimark-sacker":
        outside = np.abs(np.abs(multipliers) - 1)
        distance = np.where(np.imag(multipliers) > ROUNDING, outside, np.inf)
    return complex(multipliers[np.argmin(distance)])


def _completed(
    map_: Map, located: Located, form: NormalForm, multiplier: complex
) -> tuple[NormalForm, np.ndarray]:
    """The normal form with what else happens at the same parameter, and the direction."""
    kind = located.found.kind
    system = Expansion(map_, located.place.points, located.place.parameter)
    vectors = system.eigenvectors(multiplier)
    direction = np.empty(0)
    if vectors is not None:
        direction = vectors[0] if kind == "neimark-sacker" else np.real(vectors[0])
    elif kind == "flip":
        direction, told = _one_of_several(system, located.found.rank)
        form = form._replace(message=told or form.message)
    if company := _company(kind, located.multipliers, located.neutral):
        form = form._replace(criticality="", message=company)
    return form, direction


def _one_of_several(system: Expansion, rank: int) -> tuple[np.ndarray, str]:
    """Direction of one of the flips that happen together, and what they are."""
    space = system.eigenspace(-1)
    if space is None or space.coupled or len(space.left) < 2:
        return np.empty(0), ""
    ways = doubling_directions(system, space)
    count = len(space.left)
    direction = ways[rank % count]
    told = f"{count} multipliers are -1 at once: one direction of {count}"
    return direction, told


def _company(kind: Kind, multipliers: Complex[np.ndarray, " n"], neutral: int) -> str:
    """What of another kind happens at the same parameter; multipliers always at 1 do not."""
    on_circle = (np.abs(np.abs(multipliers) - 1) < CLOSE) & (np.imag(multipliers) > ROUNDING)
    near = {
        1: int(np.sum(np.abs(multipliers - 1) < CLOSE)) - neutral,
        -1: int(np.sum(np.abs(multipliers + 1) < CLOSE)),
    }
    pairs = int(np.sum(on_circle & (np.abs(np.imag(multipliers)) > CLOSE)))
    if kind == "neimark-sacker":
        also = {"flip": near[-1], "fold": near[1], "another pair": pairs - 1}
        names = " and ".join(name for name, count in also.items() if count > 0)
        return f"Neimark-Sacker and {names} at once" if names else ""
    if near[1 if kind == "flip" else -1] > 0:
        return "fold-flip: multipliers +1 and -1 at once"
    return f"{kind} and Neimark-Sacker at once" if pairs else ""
