"""Bifurcations of the training map: cycles, their branches, diagrams, exponents, normal forms."""

from dlf_dynamics.analysis.bifurcation.bifurcations import (
    Bifurcations,
    compute_bifurcations,
    load_bifurcations,
)
from dlf_dynamics.analysis.bifurcation.continuation import Branch, continue_cycle
from dlf_dynamics.analysis.bifurcation.cycles import Cycle, find_cycle
from dlf_dynamics.analysis.bifurcation.diagrams import OrbitDiagram, orbit_diagram
from dlf_dynamics.analysis.bifurcation.flip import FlipCoefficient, flip_coefficient
from dlf_dynamics.analysis.bifurcation.instabilities import Instability
from dlf_dynamics.analysis.bifurcation.lyapunov import LyapunovSpectrum, lyapunov_exponents
from dlf_dynamics.analysis.bifurcation.maps import Map, training_map, training_state
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation, switch_branch
from dlf_dynamics.analysis.bifurcation.rod import Rod, rod_amplitude

__all__ = [
    "Bifurcation",
    "Bifurcations",
    "Branch",
    "Cycle",
    "FlipCoefficient",
    "Instability",
    "LyapunovSpectrum",
    "Map",
    "OrbitDiagram",
    "Rod",
    "compute_bifurcations",
    "continue_cycle",
    "find_cycle",
    "flip_coefficient",
    "load_bifurcations",
    "lyapunov_exponents",
    "orbit_diagram",
    "rod_amplitude",
    "switch_branch",
    "training_map",
    "training_state",
]
