"""Spectra, thresholds and events along a recorded run.

Analyses read run files and write result files of their own; a run file is never changed.
"""

from dlf_dynamics.analysis.linalg.eigensolver import Eigenpairs, top_eigenpairs
from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.density import Density
from dlf_dynamics.analysis.spectra.eigenvalues import HessianSpectrum, hessian_spectrum
from dlf_dynamics.analysis.spectra.events import (
    Crossing,
    Oscillation,
    find_crossings,
    find_oscillations,
)
from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum, ntk_spectrum
from dlf_dynamics.analysis.spectra.spectrum import Spectrum, compute_spectrum, load_spectrum
from dlf_dynamics.analysis.stability.threshold import critical_eigenvalue, instability_threshold

__all__ = [
    "Crossing",
    "Curvature",
    "Density",
    "Eigenpairs",
    "HessianSpectrum",
    "NTKSpectrum",
    "Oscillation",
    "Spectrum",
    "compute_spectrum",
    "critical_eigenvalue",
    "find_crossings",
    "find_oscillations",
    "hessian_spectrum",
    "instability_threshold",
    "load_spectrum",
    "ntk_spectrum",
    "top_eigenpairs",
]
