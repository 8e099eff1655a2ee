"""`Map`: a discrete dynamical system with one parameter, and the training map at a frozen step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.dynamics import State as TrainingState
from dlf_dynamics.losses import ClassWeights
from dlf_dynamics.optimizers import ADAPTIVE, flatten_state, make_optimizer, unflatten_state
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Schedule, Triangle

State = Float[Array, " n"]
Parameter = Float[Array, ""] | float
TrainingParameter = Literal["learning_rate", "amplitude", "class_weight", "time"]


@partial(jax.tree_util.register_dataclass, data_fields=["step"], meta_fields=[])
@dataclass(frozen=True)
class Map:
    """x ↦ step(x, p), with a state in R^n and a real parameter.

    It is a pytree, to be passed to compiled functions as an argument. A `step` that holds large
    arrays should be a `jax.tree_util.Partial` of them, so that they are not compiled in.

    Attributes:
        step: `step(state, parameter) -> state` on vectors of shape (n,), which JAX can trace.

    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> logistic(jnp.array([0.5]), 3.2).tolist()
    [0.8]
    """

    step: Callable[[State, Parameter], State]

    def __post_init__(self) -> None:
        if callable(self.step) and not isinstance(self.step, Partial):
            object.__setattr__(self, "step", Partial(self.step))

    def __call__(self, state: State, parameter: Parameter) -> State:
        """The next state."""
        return self.step(state, parameter)

    def iterate(self, state: State, parameter: Parameter, count: int) -> State:
        """The state after so many steps."""
        return jax.lax.fori_loop(0, count, lambda _, x: self.step(x, parameter), state)


def training_map(
    run: Run, step: int, parameter: TrainingParameter = "learning_rate", *, class_label: int = 0
) -> Map:
    """A run's full-batch update with the loss frozen at a step, as a map of the extended state.

    The state is the flat parameters and, for heavy ball and Nesterov, the velocity after them; see
    `training_state`. The loss does not change from step to step. One of these is the parameter:

    * `learning_rate`;
    * `amplitude` of the pulse, at the frozen step;
    * `class_weight` of one class, all others being those of the frozen step;
    * `time`: the step itself, a real number; class weights are linear between whole steps.

    Args:
        run: a recorded run of gradient descent, with momentum or without.
        step: at which the loss is frozen.
        parameter: which quantity is the map's parameter.
        class_label: the class whose weight is the parameter.

    Raises:
        ValueError: for an adaptive optimizer, whose map changes with its step count and
            preconditioner; for a mini-batch run; or for an amplitude of a schedule that has none.
    """
    optimizer = run.config.optimizer
    if parameter not in get_args(TrainingParameter):
        choices = ", ".join(get_args(TrainingParameter))
        raise ValueError(f"parameter is {parameter!r}; expected one of {choices}")
    if optimizer.name in ADAPTIVE:
        raise ValueError(
            f"{optimizer.name} has no map that stays the same: it changes with the step count and "
            "the preconditioner; expected gd, heavy-ball or nesterov"
        )
    if run.config.batch_size is not None:
        raise ValueError("mini-batches: each update is another map; expected a full-batch run")
    schedule = run.dynamics.schedule
    if parameter == "amplitude" and not isinstance(schedule, Triangle):
        raise ValueError("the run's schedule has no amplitude; expected one of triangular pulses")
    update = _Update(optimizer, schedule, parameter, class_label)
    rate = jnp.asarray(run.dynamics.learning_rate(step), run.config.dtype)
    return Map(Partial(update, run.problem, jnp.int32(step), rate))


def training_state(state: TrainingState) -> State:
    """A state of a run as a state of its training map: parameters, then the velocity if any."""
    leaves = jax.tree.leaves(state.optimizer_state)
    moving = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.concatenate([state.params, *moving])


@dataclass(frozen=True)
class _Update:
    """One update with the loss frozen; what is static of it, so that compilations are shared."""

    optimizer: OptimizerConfig
    schedule: Schedule
    parameter: TrainingParameter
    class_label: int

    def __call__(
        self, problem: Problem, step: Array, rate: Array, state: State, value: Parameter
    ) -> State:
        weights = partial(self._weights, step, jnp.asarray(value))
        assert isinstance(problem.example_weights, ClassWeights)
        frozen = replace(problem.example_weights, schedule=lambda _: weights())
        problem = replace(problem, example_weights=frozen)
        rate = jnp.asarray(value) if self.parameter == "learning_rate" else rate
        optimizer = make_optimizer(self.optimizer, rate)
        num_params = len(state) // (1 if self.optimizer.name == "gd" else 2)
        params = state[:num_params]
        inner = unflatten_state(state[num_params:], optimizer.init(params))
        gradient = jax.grad(problem.objective)(params, step)
        change, inner = optimizer.update(gradient, inner, params)
        after = params + cast(Array, change)
        return jnp.concatenate([after, flatten_state(inner).astype(state.dtype)])

    def _weights(self, step: Array, value: Array) -> Float[Array, " classes"]:
        if self.parameter == "amplitude":
            assert isinstance(self.schedule, Triangle)
            return replace(self.schedule, amplitude=value)(step)
        if self.parameter == "class_weight":
            return self.schedule(step).at[self.class_label].set(value)
        if self.parameter == "time":
            before = jnp.floor(value).astype(jnp.int32)
            part = value - before
            return (1 - part) * self.schedule(before) + part * self.schedule(before + 1)
        return self.schedule(step)
