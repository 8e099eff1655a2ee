"""Classification of a located bifurcation: normal form, direction and degeneracies."""

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
"""Error of a bifurcation's parameter, relative to it or the range, that counts as refined."""


_JUMPS = "a derivative of second or third order jumps at the cycle: it has no normal form"


class Located(NamedTuple):
    """A located bifurcation on a branch, before its classification.

    Attributes:
        crossed: kind, and rank of its multiplier among those of this kind.
        cycle: the cycle.
        multipliers: multipliers of the cycle.
        tangent: tangent of the branch, in (first point, parameter).
        residual: larger one of the cycle's residual and the remaining value of the test function.
        error: error of the parameter, relative to itself or to the range.
        neutral: number of multipliers that stay at 1, or close to it, along the stretch.
        halved: whether the cycle has shrunk to one of half its period.
    """

    crossed: Crossed
    cycle: Linearisation
    multipliers: Complex[np.ndarray, " n"]
    tangent: Float[np.ndarray, " n+1"]
    residual: float
    error: float
    neutral: int
    halved: bool


def classify(map_: Map, located: Located) -> Bifurcation:
    """The bifurcation, with its normal form if it is refined well enough."""
    kind, cycle, error = located.crossed.kind, located.cycle, located.error
    converged = bool(error <= _PRECISION and located.residual <= 1e-7)
    multiplier = _critical(kind, located.multipliers)
    form, direction = NormalForm(np.nan, "", "not located; a smaller step may help"), np.empty(0)
    if np.isfinite(error):
        form = form._replace(message=f"error of the parameter {error:.1e}: not refined enough")
    if converged:
        form = normal_form(map_, cycle.points, cycle.parameter, kind, multiplier)
        form, direction = _completed(map_, located, form, multiplier)
        form = form if _is_smooth(map_, cycle, direction) else NormalForm(np.nan, "", _JUMPS)
    if located.halved and converged:
        form = form._replace(branching="period halved")
    return Bifurcation(
        kind=kind,
        parameter=cycle.parameter,
        state=cycle.points[0],
        period=len(cycle.points),
        multiplier=multiplier,
        residual=located.residual,
        converged=converged,
        direction=direction,
        tangent=located.tangent,
        **form._asdict(),
    )


def _is_smooth(map_: Map, cycle: Linearisation, direction: np.ndarray) -> bool:
    """Whether the derivatives of higher order in the normal form do not jump there."""
    point, parameter = cycle.points[0], cycle.parameter
    if not direction.size or not may_jump(map_, point, parameter):
        return True
    return not Expansion(map_, cycle.points, parameter).jumps(direction)


def _critical(kind: Kind, multipliers: Complex[np.ndarray, " n"]) -> complex:
    """The multiplier closest to the critical value of a kind of bifurcation."""
    distance = np.abs(multipliers - (-1 if kind == "flip" else 1))
    if kind == "neimark-sacker":
        outside = np.abs(np.abs(multipliers) - 1)
        distance = np.where(np.imag(multipliers) > ROUNDING, outside, np.inf)
    return complex(multipliers[np.argmin(distance)])


def _completed(
    map_: Map, located: Located, form: NormalForm, multiplier: complex
) -> tuple[NormalForm, np.ndarray]:
    """The normal form, including what else happens at the same parameter, and the direction."""
    kind = located.crossed.kind
    system = Expansion(map_, located.cycle.points, located.cycle.parameter)
    vectors = system.eigenvectors(multiplier)
    direction = np.empty(0)
    if vectors is not None:
        direction = vectors[0] if kind == "neimark-sacker" else np.real(vectors[0])
    elif kind == "flip":
        direction, note = _one_of_several(system, located.crossed.rank)
        form = form._replace(message=note or form.message)
    if company := _company(kind, located.multipliers, located.neutral):
        form = form._replace(criticality="", message=company)
    return form, direction


def _one_of_several(system: Expansion, rank: int) -> tuple[np.ndarray, str]:
    """Direction of one of several simultaneous flips, and a note on these."""
    space = system.eigenspace(-1)
    if space is None or space.coupled or len(space.left) < 2:
        return np.empty(0), ""
    directions = doubling_directions(system, space)
    count = len(space.left)
    direction = directions[rank % count]
    note = f"{count} multipliers are -1 at once: one direction of {count}"
    return direction, note


def _company(kind: Kind, multipliers: Complex[np.ndarray, " n"], neutral: int) -> str:
    """Bifurcations of other kinds at the same parameter, apart from permanent multipliers at 1."""
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
