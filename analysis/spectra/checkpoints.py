"""Which checkpoints of a run an analysis looks at."""

from __future__ import annotations

import numpy as np

from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.run import Checkpoints, Run
from dlf_dynamics.spans import span_of


def select_checkpoints(run: Run, config: SpectrumConfig) -> Checkpoints:
    """Indices of the checkpoints that the configuration selects.

    Raises:
        ConfigError: when `steps` is not a:b, or nothing is left.
    """
    return checkpoints_within(run, config.steps)[:: config.every]


def checkpoints_within(run: Run, span: str) -> Checkpoints:
    """Indices of the checkpoints within some steps.

    Raises:
        ConfigError: when `span` is not a:b, or holds no checkpoint.
    """
    start, stop = span_of(span, "steps")
    steps = run.checkpoint_steps
    within = np.flatnonzero((steps >= start) & (steps < stop))
    if len(within) == 0:
        there = f"{steps[0]} to {steps[-1]}" if len(steps) else "none"
        raise ConfigError(f"steps {span} holds no checkpoint; the run's are {there}")
    return within


def density_checkpoints(config: SpectrumConfig, chosen: Checkpoints) -> Checkpoints:
    """The chosen checkpoints at which densities are computed."""
    return evenly(chosen, config.density_checkpoints)


def evenly(chosen: Checkpoints, most: int) -> Checkpoints:
    """Some of the checkpoints, evenly spaced, the last among them."""
    count = min(most, len(chosen))
    first = 0 if count > 1 else len(chosen) - 1
    return np.asarray(chosen)[np.linspace(first, len(chosen) - 1, count).astype(int)]
