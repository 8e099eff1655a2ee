"""Class weights Γ(t) as functions of the step.

A schedule is any hashable callable `schedule(step) -> (classes,)` that JAX can trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlf_dynamics.config import ScheduleConfig
from dlf_dynamics.ranges import MOST_STEPS

Schedule = Callable[[Int[Array, ""]], Float[Array, " classes"]]


@dataclass(frozen=True)
class Static:
    """All class weights are 1: the ordinary loss.

    >>> Static(3)(7).tolist()
    [1.0, 1.0, 1.0]
    """

    num_classes: int

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, " classes"]:
        """Class weights at this step."""
        return jnp.ones(self.num_classes)


@dataclass(frozen=True)
class Triangle:
    """The published triangular pulses, class after class (arXiv 2102.03793, Eq. 2 and 3).

    The weight of the emphasised class rises linearly from 1 to `amplitude` and falls back within
    `period` steps; then all weights are scaled to sum to the number of classes.

    Attributes:
        num_classes: number of classes C.
        amplitude: peak weight A >= 1 before scaling; 1 is the static loss.
        period: steps T of one pulse.
        counting: `exact` pulses last T steps; `published` pulses last T + 1, as the authors'
            program counts 0, 1, ..., T before it resets.
        static_from: first step from which all weights stay 1; None if there is none.

    >>> Triangle(3, amplitude=4.0, period=4)(2).tolist()
    [2.0, 0.5, 0.5]
    """

    num_classes: int
    amplitude: float
    period: int
    counting: Literal["exact", "published"] = "exact"
    static_from: int | None = None

    @property
    def pulse_steps(self) -> int:
        """Steps from the start of one pulse to the start of the next."""
        return self.period + (self.counting == "published")

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, " classes"]:
        """Class weights at this step."""
        phase = step % self.pulse_steps
        emphasised = (step // self.pulse_steps) % self.num_classes
        rise = 2 * (self.amplitude - 1) / self.period
        rising = phase < self.period / 2
        weight = jnp.where(rising, 1 + phase * rise, 2 * self.amplitude - phase * rise - 1)
        if self.static_from is not None:
            weight = jnp.where(step < self.static_from, weight, 1.0)
        weights = jnp.where(jnp.arange(self.num_classes) == emphasised, weight, 1.0)
        return weights / jnp.sum(weights) * self.num_classes


@dataclass(frozen=True, eq=False)
class Tabulated:
    """Class weights from a table, one row per step; after its end the last row stays.

    It replaces a user's own schedule when a problem is rebuilt from a run file.
    """

    table: Float[Array, "steps classes"]

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, " classes"]:
        """Class weights at this step."""
        return self.table[jnp.clip(step, 0, len(self.table) - 1)]


def make_schedule(
    config: ScheduleConfig, num_classes: int, epoch_steps: int = 1
) -> Static | Triangle:
    """The schedule that the configuration describes.

    Args:
        config: configuration of the schedule.
        num_classes: number of classes C.
        epoch_steps: steps of one pass through the training data.
    """
    if config.name == "static":
        return Static(num_classes)
    static_from = config.static_from
    if config.static_from_epoch is not None:
        static_from = min(config.static_from_epoch * epoch_steps, MOST_STEPS)
    return Triangle(num_classes, config.amplitude, config.period, config.counting, static_from)
