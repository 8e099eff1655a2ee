"""Builds the dynamics of a run from its configuration and its data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.config import OptimizerConfig, RunConfig
from dlf_dynamics.datasets import Dataset
from dlf_dynamics.dynamics import Dynamics, epoch_steps
from dlf_dynamics.errors import ConfigError, DataError, shown
from dlf_dynamics.layout import Layout
from dlf_dynamics.losses import (
    ClassWeights,
    make_criterion,
    make_penalty,
    make_weights,
)
from dlf_dynamics.memory import require_memory
from dlf_dynamics.models import make_model
from dlf_dynamics.optimizers import learning_rate_schedule, make_optimizer
from dlf_dynamics.precision import rounded
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Schedule, make_schedule


def initial_parameters(config: RunConfig, dataset: Dataset, key: Array | None = None) -> PyTree:
    """The parameters at step 0; in bfloat16 and float16, those of float32, rounded.

    Args:
        config: configuration of the run.
        dataset: inputs and labels.
        key: legacy PRNG key (two numbers) to use instead of the one made from the run's seed.

    Raises:
        ConfigError: when float64 is requested but not enabled in JAX, or when there is less memory
            than the network needs.
        DataError: when the labels do not fit the network's outputs.
    """
    require_precision(config)
    model = make_model(config.model)
    _require_fit(config, dataset)
    with random_stream(config):
        drawn = model.init(
            jax.random.PRNGKey(config.model.seed) if key is None else key,
            dataset.inputs.shape[1:],
            num_outputs(config, dataset),
            jnp.dtype(config.vector_dtype),
        )
    if config.dtype == config.vector_dtype:
        return drawn
    return jax.tree.map(lambda leaf: rounded(leaf, config.dtype), drawn)


def _require_fit(config: RunConfig, dataset: Dataset) -> None:
    """Refuses a network whose parameters, update and gradient, or one batch, exceed memory."""
    outputs = num_outputs(config, dataset)
    layers = make_model(config.model).layer_sizes(dataset.inputs.shape[1:], outputs)
    params, units = (sum(column) for column in zip(*layers, strict=True))
    examples = config.batch_size or len(dataset.labels)
    number = jnp.dtype(config.vector_dtype).itemsize
    require_memory(
        number * 3 * params,
        f"training {shown(params)} parameters",
        "make model.widths or model.outputs smaller",
    )
    require_memory(
        number * examples * units,
        f"a gradient of {shown(examples)} examples in a network of {shown(units)} units",
        "make model.widths smaller, or batch_size",
    )


def parameter_layout(config: RunConfig, dataset: Dataset) -> Layout:
    """The form of the parameters, without drawing them, which would take seconds to compile."""
    # With a concrete key they would be drawn where constants are folded (`Run.dynamics`).
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return Layout.of(jax.eval_shape(lambda key: initial_parameters(config, dataset, key), key))


def build(
    config: RunConfig,
    dataset: Dataset,
    schedule: Schedule | None = None,
    origin: Float[Array | np.ndarray, " params"] | None = None,
    layout: Layout | None = None,
) -> Dynamics:
    """The dynamics of a run.

    Args:
        config: configuration of the run.
        dataset: inputs and labels.
        schedule: class weights to use instead of those of the configuration.
        origin: the run's initial parameters, flat, where the network is expanded about them.
        layout: layout of the parameters, if the caller has it; finding it takes half a second.

    Raises:
        ConfigError: when float64 is requested but not enabled in JAX.
        DataError: when the labels do not fit the network's outputs.
    """
    require_precision(config)
    classes = num_outputs(config, dataset)
    epoch = epoch_steps(len(dataset.labels), config.batch_size)
    schedule = schedule or make_schedule(config.schedule, classes, epoch)
    layout = layout or parameter_layout(config, dataset)
    return assemble(config, layout, dataset, schedule, config.optimizer, origin)


class UpdateRule(NamedTuple):
    """The optimizer of a run and its learning rate.

    Attributes:
        optimizer: an optax transformation.
        learning_rate: function that gives the learning rate of a step.
    """

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule

    @classmethod
    def of(cls, update: OptimizerConfig, steps: int) -> UpdateRule:
        """The rule of a run of `steps` updates; the same object for equal configurations.

        optax transformations are functions, which compare by identity. Sharing them lets compiled
        programs serve all runs with equal rules, and thresholds are confirmed only once.
        """
        scheduled = update.learning_rate_schedule != "constant" or update.warmup_steps > 0
        count = steps if scheduled else None
        try:
            return _known_rule(update, count)
        except TypeError:  # traced numbers have no hash
            return _rule(update, count)


def _rule(update: OptimizerConfig, steps: int | None) -> UpdateRule:
    """The rule of a run of `steps` updates; None if the learning rate is constant."""
    rate = learning_rate_schedule(update, steps or 1)
    # With a number instead of a constant schedule, the optimizer needs no counter in its state.
    optimizer = make_optimizer(update, update.learning_rate if steps is None else rate)
    return UpdateRule(optimizer, rate)


_known_rule = lru_cache(maxsize=1024)(_rule)


def assemble(
    config: RunConfig,
    layout: Layout,
    dataset: Dataset,
    schedule: Schedule,
    update: OptimizerConfig,
    origin: Float[Array | np.ndarray, " params"] | None = None,
) -> Dynamics:
    """The dynamics for parameters of a known layout.

    The data, and the numbers in the schedule and in the update rule, may be traced.
    """
    weights = make_weights(config.loss, schedule)
    problem = _problem(config, layout, dataset, weights)
    if config.linearize:
        assert origin is not None
        problem = problem.expanded(jnp.asarray(origin), config.linearize)
    validation = None
    if dataset.validation is not None:
        held_out = _problem(config, layout, dataset.validation, None)
        validation = replace(held_out, origin=problem.origin, order=problem.order)
    rule = UpdateRule.of(update, config.steps)
    return Dynamics(
        problem,
        rule.optimizer,
        rule.learning_rate,
        schedule,
        config.batch_size,
        config.batch_seed,
        config.batch_sampling,
        validation=validation,
        precision=None if config.dtype == config.vector_dtype else config.dtype,
    )


@dataclass(frozen=True)
class _Outputs:
    """The outputs of a network as a function that, unlike a bound method, compares by value.

    Programs compiled for one run therefore serve all runs of the same network.
    """

    model: Any

    def __call__(self, params: PyTree, inputs: Array) -> Array:
        return self.model.apply(params, inputs)


def _problem(
    config: RunConfig, layout: Layout, dataset: Dataset, weights: ClassWeights | None
) -> Problem:
    """The problem on a data set, as a function of flat parameters."""
    problem = Problem(
        _Outputs(make_model(config.model)),
        make_criterion(config.loss),
        jnp.asarray(dataset.inputs, config.vector_dtype),
        jnp.asarray(dataset.labels),
        weights,
        make_penalty(config.loss),
    )
    return problem.flat(layout)


def num_outputs(config: RunConfig, dataset: Dataset) -> int:
    """Number of outputs of the network, after checking that labels and batches fit.

    Raises:
        ConfigError: when a batch is larger than the data.
        DataError: when there are more labels than outputs.
    """
    num_outputs = config.model.outputs or dataset.num_classes
    held_out = 0 if dataset.validation is None else dataset.validation.num_classes
    for name, classes in (("labels", dataset.num_classes), ("validation labels", held_out)):
        if classes > num_outputs:
            raise DataError(
                f"{name} go up to {classes - 1} but the network has {num_outputs} outputs; "
                f"set model.outputs to at least {classes}"
            )
    if config.batch_size is not None and config.batch_size > len(dataset.labels):
        raise ConfigError(
            f"batch_size is {config.batch_size}; expected at most the number of examples, "
            f"{len(dataset.labels)}"
        )
    return num_outputs


def require_precision(config: RunConfig) -> None:
    """Raises ConfigError when JAX is not set up for the precision of the configuration."""
    if config.dtype == "float64" and jnp.result_type(float).name != "float64":
        raise ConfigError(
            "dtype is 'float64' but JAX computes in float32; call "
            'jax.config.update("jax_enable_x64", True) first, or choose dtype float32'
        )


def random_stream(config: RunConfig):
    """Context that selects the random stream of JAX that the configuration names."""
    return jax.threefry_partitionable(config.prng == "modern")
