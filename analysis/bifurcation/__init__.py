"""Bifurcations of maps: cycles, branches, curves, diagrams, exponents, normal forms.

The names that need a run live in `dlf_dynamics.analysis.instabilities`, and are loaded on first
use: nothing in this package knows runs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dlf_dynamics.analysis.bifurcation.codimension import SpecialPoint
from dlf_dynamics.analysis.bifurcation.continuation import Branch, continue_cycle
from dlf_dynamics.analysis.bifurcation.curves import Curve, continue_curve
from dlf_dynamics.analysis.bifurcation.cycles import Cycle, find_cycle
from dlf_dynamics.analysis.bifurcation.doublings import period_doublings
from dlf_dynamics.analysis.bifurcation.flip import FlipCoefficient, flip_coefficient
from dlf_dynamics.analysis.bifurcation.lyapunov import LyapunovSpectrum, lyapunov_exponents
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation
from dlf_dynamics.analysis.bifurcation.orbits import OrbitDiagram, orbit_diagram
from dlf_dynamics.analysis.bifurcation.rod import Rod, rod_amplitude
from dlf_dynamics.analysis.bifurcation.switching import switch_branch

if TYPE_CHECKING:
    from dlf_dynamics.analysis.bifurcation.branch_plots import plot_branches as plot_branches
    from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations as Bifurcations
    from dlf_dynamics.analysis.instabilities.bifurcations import (
        compute_bifurcations as compute_bifurcations,
    )
    from dlf_dynamics.analysis.instabilities.bifurcations import (
        load_bifurcations as load_bifurcations,
    )
    from dlf_dynamics.analysis.instabilities.instability import Instability as Instability
    from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap as PulseMap
    from dlf_dynamics.analysis.instabilities.pulse_map import pulse_map as pulse_map
    from dlf_dynamics.analysis.instabilities.training_map import training_map as training_map
    from dlf_dynamics.analysis.instabilities.training_map import training_state as training_state

_OF_RUNS = {
    "Bifurcations": "bifurcations",
    "Instability": "instability",
    "PulseMap": "pulse_map",
    "compute_bifurcations": "bifurcations",
    "load_bifurcations": "bifurcations",
    "pulse_map": "pulse_map",
    "training_map": "training_map",
    "training_state": "training_map",
}

__all__ = [
    "Bifurcation",
    "Bifurcations",
    "Branch",
    "Curve",
    "Cycle",
    "FlipCoefficient",
    "Instability",
    "LyapunovSpectrum",
    "Map",
    "OrbitDiagram",
    "PulseMap",
    "Rod",
    "SpecialPoint",
    "compute_bifurcations",
    "continue_curve",
    "continue_cycle",
    "find_cycle",
    "flip_coefficient",
    "load_bifurcations",
    "lyapunov_exponents",
    "orbit_diagram",
    "period_doublings",
    "plot_branches",
    "pulse_map",
    "rod_amplitude",
    "switch_branch",
    "training_map",
    "training_state",
]


def __getattr__(name: str) -> Any:
    if name == "plot_branches":  # it loads matplotlib
        from dlf_dynamics.analysis.bifurcation.branch_plots import plot_branches

        return plot_branches
    if name not in _OF_RUNS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = f"dlf_dynamics.analysis.instabilities.{_OF_RUNS[name]}"
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
