"""float64 for the analysis of runs of another type, at their recorded numbers."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import jax
from jaxtyping import Array

from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.precision import widened
from dlf_dynamics.run import Run
from dlf_dynamics.trained import TrainedRun


class Wide:
    """Computes in float64 for a run of another type, if needed."""

    def __init__(self, run: Run, *, needed: bool) -> None:
        self.run, self.needed = run, needed and run.dtype != "float64"

    def enabled(self) -> Any:
        """The context in which JAX computes in float64."""
        return jax.enable_x64(True) if self.needed else nullcontext()

    @property
    def dynamics(self) -> Dynamics:
        """Dynamics of the run, in float64 if needed."""
        return self.run.precise if self.needed else self.run.dynamics

    def __call__(self, tree: Any) -> Any:
        """A pytree with its numbers in float64."""
        if not self.needed:
            return tree
        with self.enabled():
            return widened(tree)


def computes_in_float64(run: Run, curvature: Curvature) -> bool:
    """Whether a model computes in float64 when its inputs are float64; user models may cast.

    Conversions of scalars, such as steps, do not matter.
    """
    if run.dtype == "float64" or isinstance(run, TrainedRun):
        return True
    ((point,),) = run.points([0], 1)
    state = run.state(point)

    def product(dynamics: Dynamics, state: State, vector: Array) -> Array:
        return curvature(dynamics, state, state.params)(vector)

    with jax.enable_x64(True):
        state = widened(state)
        traced = jax.make_jaxpr(product)(run.precise, state, state.params)
    return not re.search(r":(f32|bf16|f16)\[\d", str(traced))
