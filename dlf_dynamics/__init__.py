"""Neural-network training as a dynamical system.

Train with dynamical loss functions, record the trajectory, and compute certified Hessian and NTK
spectra, thresholds and bifurcations along it. Names are loaded on first use, so that importing the
package (and `dlf-dynamics --help`) does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlf_dynamics.config import PRESETS as PRESETS
    from dlf_dynamics.config import DataConfig as DataConfig
    from dlf_dynamics.config import LossConfig as LossConfig
    from dlf_dynamics.config import ModelConfig as ModelConfig
    from dlf_dynamics.config import OptimizerConfig as OptimizerConfig
    from dlf_dynamics.config import RunConfig as RunConfig
    from dlf_dynamics.config import ScheduleConfig as ScheduleConfig
    from dlf_dynamics.config import SpectrumConfig as SpectrumConfig
    from dlf_dynamics.problem import Problem as Problem
    from dlf_dynamics.run import Run as Run
    from dlf_dynamics.run import open_run as open_run
    from dlf_dynamics.training import train as train

__version__ = "0.1.0"

_MODULES = {
    "PRESETS": "config",
    "DataConfig": "config",
    "LossConfig": "config",
    "ModelConfig": "config",
    "OptimizerConfig": "config",
    "RunConfig": "config",
    "ScheduleConfig": "config",
    "SpectrumConfig": "config",
    "Problem": "problem",
    "Run": "run",
    "open_run": "run",
    "train": "training",
}

__all__ = [
    "PRESETS",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Problem",
    "Run",
    "RunConfig",
    "ScheduleConfig",
    "SpectrumConfig",
    "__version__",
    "open_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"dlf_dynamics.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dlf_dynamics' has no attribute {name!r}")
