"""Per-example losses, and the weights that a schedule gives to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlf_dynamics.config import LossConfig
from dlf_dynamics.schedules import Schedule

Outputs = Float[Array, "examples outputs"]
Labels = Int[Array, " examples"]


def cross_entropy(outputs: Outputs, labels: Labels) -> Float[Array, " examples"]:
    """-log softmax(f)_y for each example (in nats)."""
    log_probabilities = jax.nn.log_softmax(outputs)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]


def squared_error(outputs: Outputs, labels: Labels) -> Float[Array, " examples"]:
    """Σ_i (f_i - Y_i)² for each example, Y the one-hot label."""
    return jnp.sum(squared_error_per_output(outputs, labels), axis=1)


def squared_error_per_output(outputs: Outputs, labels: Labels) -> Outputs:
    """(f_i - Y_i)² for each example and output, Y the one-hot label."""
    return (outputs - jax.nn.one_hot(labels, outputs.shape[1], dtype=outputs.dtype)) ** 2


CRITERIA: dict[str, Callable[[Outputs, Labels], Array]] = {
    "cross-entropy": cross_entropy,
    "squared-error": squared_error,
    "squared-error-per-output": squared_error_per_output,
}


@dataclass(frozen=True)
class ClassWeights:
    """Weights of the losses from class weights.

    Each example is weighted by its class's weight, or, `per_output`, each output by its own. The
    two weighted squared errors are this project's definitions: the formulas of the follow-up paper
    (arXiv 2410.10690) could not be recovered.

    Attributes:
        schedule: class weights of a step.
        per_output: whether the losses have one column per output.
    """

    schedule: Schedule
    per_output: bool = False

    def __call__(self, step: Int[Array, ""] | int, labels: Labels) -> Array:
        """Weights that broadcast against the losses."""
        weights = self.schedule(jnp.asarray(step))
        return weights[None, :] if self.per_output else weights[labels]


def make_criterion(config: LossConfig) -> Callable[[Outputs, Labels], Array]:
    """The loss that the configuration names."""
    return CRITERIA[config.name]


def make_weights(config: LossConfig, schedule: Schedule) -> ClassWeights:
    """The weights of that loss under a schedule."""
    return ClassWeights(schedule, per_output=config.name == "squared-error-per-output")
