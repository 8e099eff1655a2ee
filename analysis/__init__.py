"""Spectra, thresholds and events along a recorded run.

Analyses read run files and write result files of their own; a run file is never changed. Names are
loaded on first use: what an analysis declares can be read without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap as PulseMap
    from dlf_dynamics.analysis.instabilities.pulse_map import pulse_map as pulse_map
    from dlf_dynamics.analysis.linalg.eigensolver import Eigenpairs as Eigenpairs
    from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs as top_eigenpairs
    from dlf_dynamics.analysis.spectra.curvature import Curvature as Curvature
    from dlf_dynamics.analysis.spectra.density import Density as Density
    from dlf_dynamics.analysis.spectra.eigenvalues import HessianSpectrum as HessianSpectrum
    from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum as hessian_spectrum
    from dlf_dynamics.analysis.spectra.events import Crossing as Crossing
    from dlf_dynamics.analysis.spectra.events import Oscillation as Oscillation
    from dlf_dynamics.analysis.spectra.events import find_crossings as find_crossings
    from dlf_dynamics.analysis.spectra.events import find_oscillations as find_oscillations
    from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum as NTKSpectrum
    from dlf_dynamics.analysis.spectra.ntk import ntk_spectrum as ntk_spectrum
    from dlf_dynamics.analysis.spectra.spectrum import Spectrum as Spectrum
    from dlf_dynamics.analysis.spectra.spectrum import compute_spectrum as compute_spectrum
    from dlf_dynamics.analysis.spectra.spectrum import load_spectrum as load_spectrum
    from dlf_dynamics.analysis.stability.batch_sharpness import BatchSharpness as BatchSharpness
    from dlf_dynamics.analysis.stability.batch_sharpness import batch_sharpness as batch_sharpness
    from dlf_dynamics.analysis.stability.mean_square import (
        MeanSquareStability as MeanSquareStability,
    )
    from dlf_dynamics.analysis.stability.mean_square import (
        MeanSquareThreshold as MeanSquareThreshold,
    )
    from dlf_dynamics.analysis.stability.mean_square import (
        mean_square_stability as mean_square_stability,
    )
    from dlf_dynamics.analysis.stability.mean_square import (
        mean_square_threshold as mean_square_threshold,
    )
    from dlf_dynamics.analysis.stability.threshold import Threshold as Threshold
    from dlf_dynamics.analysis.stability.threshold import critical_eigenvalue as critical_eigenvalue
    from dlf_dynamics.analysis.stability.threshold import (
        instability_threshold as instability_threshold,
    )
    from dlf_dynamics.analysis.theories.central_flow import CentralFlow as CentralFlow
    from dlf_dynamics.analysis.theories.central_flow import central_flow as central_flow

_MODULES = {
    "BatchSharpness": "stability.batch_sharpness",
    "CentralFlow": "theories.central_flow",
    "Crossing": "spectra.events",
    "Curvature": "spectra.curvature",
    "Density": "spectra.density",
    "Eigenpairs": "linalg.eigensolver",
    "HessianSpectrum": "spectra.eigenvalues",
    "MeanSquareStability": "stability.mean_square",
    "MeanSquareThreshold": "stability.mean_square",
    "NTKSpectrum": "spectra.ntk",
    "Oscillation": "spectra.events",
    "PulseMap": "instabilities.pulse_map",
    "Spectrum": "spectra.spectrum",
    "Threshold": "stability.threshold",
    "batch_sharpness": "stability.batch_sharpness",
    "central_flow": "theories.central_flow",
    "compute_spectrum": "spectra.spectrum",
    "critical_eigenvalue": "stability.threshold",
    "find_crossings": "spectra.events",
    "find_oscillations": "spectra.events",
    "hessian_spectrum": "spectra.eigenvalues",
    "instability_threshold": "stability.threshold",
    "load_spectrum": "spectra.spectrum",
    "mean_square_stability": "stability.mean_square",
    "mean_square_threshold": "stability.mean_square",
    "ntk_spectrum": "spectra.ntk",
    "pulse_map": "instabilities.pulse_map",
    "top_eigenpairs": "linalg.eigensolver",
}

__all__ = [
    "BatchSharpness",
    "CentralFlow",
    "Crossing",
    "Curvature",
    "Density",
    "Eigenpairs",
    "HessianSpectrum",
    "MeanSquareStability",
    "MeanSquareThreshold",
    "NTKSpectrum",
    "Oscillation",
    "PulseMap",
    "Spectrum",
    "Threshold",
    "batch_sharpness",
    "central_flow",
    "compute_spectrum",
    "critical_eigenvalue",
    "find_crossings",
    "find_oscillations",
    "hessian_spectrum",
    "instability_threshold",
    "load_spectrum",
    "mean_square_stability",
    "mean_square_threshold",
    "ntk_spectrum",
    "pulse_map",
    "top_eigenpairs",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
