"""Neural-network training as a dynamical system.

Train with dynamical loss functions, record the trajectory, and compute certified Hessian and NTK
spectra, thresholds and bifurcations along it. Names are loaded on first use, so that importing the
package (and `dlf-dynamics --help`) does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlf_dynamics.analysis.spectra.oneshot import ntk_spectrum as ntk_spectrum
    from dlf_dynamics.analysis.spectra.oneshot import sharpness as sharpness
    from dlf_dynamics.analysis.spectra.oneshot import stability as stability
    from dlf_dynamics.analysis.spectra.oneshot import top_hessian as top_hessian
    from dlf_dynamics.analysis.spectra.oneshot_edge import realized_edge as realized_edge
    from dlf_dynamics.checks import check_problem as check_problem
    from dlf_dynamics.config import DataConfig as DataConfig
    from dlf_dynamics.config import LossConfig as LossConfig
    from dlf_dynamics.config import ModelConfig as ModelConfig
    from dlf_dynamics.config import OptimizerConfig as OptimizerConfig
    from dlf_dynamics.config import RunConfig as RunConfig
    from dlf_dynamics.config import ScheduleConfig as ScheduleConfig
    from dlf_dynamics.config import SpectrumConfig as SpectrumConfig
    from dlf_dynamics.importing import import_checkpoints as import_checkpoints
    from dlf_dynamics.opening import open_run as open_run
    from dlf_dynamics.presets import PRESETS as PRESETS
    from dlf_dynamics.problem import Problem as Problem
    from dlf_dynamics.recorder import Recorder as Recorder
    from dlf_dynamics.run import Run as Run
    from dlf_dynamics.training import train as train

__version__ = "0.1.0"

_MODULES = {
    "PRESETS": "presets",
    "DataConfig": "config",
    "LossConfig": "config",
    "ModelConfig": "config",
    "OptimizerConfig": "config",
    "RunConfig": "config",
    "ScheduleConfig": "config",
    "SpectrumConfig": "config",
    "Problem": "problem",
    "Recorder": "recorder",
    "Run": "run",
    "check_problem": "checks",
    "import_checkpoints": "importing",
    "ntk_spectrum": "analysis.spectra.oneshot",
    "open_run": "opening",
    "realized_edge": "analysis.spectra.oneshot_edge",
    "sharpness": "analysis.spectra.oneshot",
    "stability": "analysis.spectra.oneshot",
    "top_hessian": "analysis.spectra.oneshot",
    "train": "training",
}

__all__ = [
    "PRESETS",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Problem",
    "Recorder",
    "Run",
    "RunConfig",
    "ScheduleConfig",
    "SpectrumConfig",
    "__version__",
    "check_problem",
    "import_checkpoints",
    "ntk_spectrum",
    "open_run",
    "realized_edge",
    "sharpness",
    "stability",
    "top_hessian",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"dlf_dynamics.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dlf_dynamics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
