"""The training map of a run with its loss frozen at a step, as a map with one parameter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.bifurcation.maps import Map, Parameter, Vector
from dlf_dynamics.analysis.stability.linearised import with_counts
from dlf_dynamics.analysis.stability.threshold import instability_threshold
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.hyperparameters import is_injected
from dlf_dynamics.layout import Layout
from dlf_dynamics.leaves import words
from dlf_dynamics.losses import ClassWeights
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Schedule, Triangle

TrainingParameter = Literal["learning_rate", "rate_factor", "amplitude", "class_weight", "time"]


def training_map(
    run: Run, step: int, parameter: TrainingParameter = "learning_rate", *, class_label: int = 0
) -> Map:
    """A run's full-batch update with the loss frozen at a step, as a map of the extended state.

    The state is the flat parameters and, for heavy ball and Nesterov, the velocity after them; see
    `training_state`. The loss does not change from step to step. One of these is the parameter:

    * `learning_rate`, where it is known: of runs of `train`, and of recorded ones whose optimizer
      has no state;
    * `rate_factor`, by which each update is multiplied: 1 is the run itself, and the learning rate
      is that of the run times this;
    * `amplitude` of the pulse, at the frozen step;
    * `class_weight` of one class, all others being those of the frozen step;
    * `time`: the step itself, a real number; class weights are linear between whole steps.

    Args:
        run: a recorded run of gradient descent, with momentum or without.
        step: number of the step at which the loss is frozen.
        parameter: which quantity is the map's parameter.
        class_label: the class whose weight is the parameter.

    Raises:
        ValueError: for an adaptive optimizer, whose map changes with its step count and
            preconditioner; for a mini-batch run; for a learning rate that is not known; or for an
            amplitude of a schedule that has none.
    """
    dynamics = run.dynamics
    if parameter not in get_args(TrainingParameter):
        choices = ", ".join(get_args(TrainingParameter))
        raise ValueError(f"parameter is {parameter!r}; expected one of {choices}")
    if dynamics.adaptive:
        raise ValueError(
            f"{run.optimizer_name} has no map that stays the same: it changes with the step count "
            "and the preconditioner; expected gradient descent, with momentum or without"
        )
    if dynamics.batch_size is not None:
        raise ValueError("mini-batches: each update is another map; expected a full-batch run")
    if parameter == "amplitude" and not isinstance(dynamics.schedule, Triangle):
        raise ValueError("the run's schedule has no amplitude; expected one of triangular pulses")
    if parameter == "class_weight" and not isinstance(run.problem.example_weights, ClassWeights):
        raise ValueError("the run's loss has no class weights that could be the parameter")
    rate = rate_at(run, step)
    if parameter == "learning_rate" and rate is None:
        raise ValueError(
            "the optimizer of a recorded run with momentum keeps its learning rate to itself; "
            "expected the parameter rate_factor, which multiplies it"
        )
    layout = dynamics.state_layout(jnp.zeros(run.num_params, run.dtype))
    kind = parameter if parameter in ("amplitude", "class_weight") else "pace"
    actual = jnp.asarray((rate or 1.0) if parameter == "learning_rate" else 1.0, run.dtype)
    frozen = _Frozen(jnp.int32(step), actual, jnp.asarray(parameter == "time"))
    return Map(Partial(_Update(layout, kind, class_label), dynamics, frozen))


def rate_at(run: Run, step: int) -> float | None:
    """Learning rate at a step; none where the optimizer keeps it to itself.

    Of an optimizer without state it is what a gradient of 1 is multiplied by.
    """
    known = float(run.dynamics.learning_rate(step))
    if not np.isnan(known):
        return known
    params = jnp.zeros(run.num_params, run.dtype)
    layout = run.dynamics.state_layout(params)
    if any(dtype.startswith("float") for dtype in layout.dtypes):
        return None
    counts = [jnp.full(shape, step, dtype) for shape, dtype in _leaves(layout)]
    state = jax.tree.unflatten(layout.structure, counts)
    changes = [run.dynamics.update(params + slope, state, params)[0][0] for slope in (0.0, 1.0)]
    return float(changes[0] - changes[1])


def equivalent_rate(run: Run, step: int, factor: float = 1.0) -> float:
    """Learning rate of gradient descent that has the same orbits of period 2.

    Args:
        run: whose optimizer it is.
        step: number of updates made before.
        factor: number by which each update is multiplied.
    """
    optimizer = run.dynamics.optimizer
    if factor != 1:
        optimizer = optax.chain(optimizer, optax.scale(factor))
    return 2 / float(instability_threshold(optimizer, np.array([step]))[0])


def training_state(state: State) -> Vector:
    """A state of a run as a state of its training map: parameters, then the velocity if any."""
    return jnp.concatenate([state.params, *_moving_leaves(state.optimizer_state)])


def _moving_leaves(state: Any) -> list[Array]:
    """What an optimizer's state has beside counts and hyperparameters."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [leaf.ravel() for path, leaf in leaves if _moves(path, leaf)]


def _moves(path: Any, leaf: Any) -> bool:
    kept = is_injected(words(jax.tree_util.keystr(path)))
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not kept


def _leaves(layout: Layout) -> Iterable[tuple[tuple[int, ...], str]]:
    """Shape and type of each leaf of an optimizer's state."""
    return zip(layout.shapes, layout.dtypes, strict=True)


class _Frozen(NamedTuple):
    """Where the loss is frozen.

    Attributes:
        step: number of updates made before.
        rate: value of the parameter with which updates are those of the run.
        moves: whether the parameter is the time, and does not scale updates.
    """

    step: Int[Array, ""]
    rate: Float[Array, ""]
    moves: Bool[Array, ""]


@dataclass(frozen=True)
class _Update:
    """One update with the loss frozen; what is static of it, so that compilations are shared.

    Maps in the learning rate and in the time, of the kind `pace`, are one program.
    """

    layout: Layout
    kind: str
    class_label: int

    def __call__(
        self, dynamics: Dynamics, frozen: _Frozen, state: Vector, value: Parameter
    ) -> Vector:
        value = jnp.asarray(value, state.dtype)
        step, num_params = self._time(frozen, value), len(state) - self._moving
        problem = self._frozen(dynamics, frozen, value)
        params = state[:num_params]
        gradient = jax.grad(problem.objective)(params, step)
        start = dynamics.initial_state(params).optimizer_state
        inner = self._inner(start, state[num_params:], frozen.step)
        change, inner = dynamics.update(gradient, inner, params)
        # A velocity does not depend on the learning rate, which scales the update as a whole.
        if self.kind == "pace":
            change = jnp.where(frozen.moves, 1.0, value / frozen.rate) * change
        return jnp.concatenate([params + change, *_moving_leaves(inner)])

    @property
    def _moving(self) -> int:
        """Numbers of the optimizer's state that are part of the map's state."""
        blank = [jax.ShapeDtypeStruct(*form) for form in _leaves(self.layout)]
        tree = jax.tree.unflatten(self.layout.structure, blank)
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return sum(prod(leaf.shape) for path, leaf in leaves if _moves(path, leaf))

    def _inner(self, initial: Any, velocity: Array, step: Array) -> Any:
        """The optimizer's state, with its counts at the frozen step.

        Hyperparameters are those that it starts with.
        """
        leaves, start = [], 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(with_counts(initial, step)):
            if _moves(path, leaf):
                count = prod(leaf.shape)
                leaves.append(velocity[start : start + count].reshape(leaf.shape))
                start += count
            else:
                leaves.append(leaf)
        return jax.tree.unflatten(self.layout.structure, leaves)

    def _time(self, frozen: _Frozen, value: Array) -> Int[Array, ""]:
        """The step whose loss it is, or the one before."""
        return jnp.where(frozen.moves, jnp.floor(value).astype(jnp.int32), frozen.step)

    def _frozen(self, dynamics: Dynamics, frozen: _Frozen, value: Array) -> Problem:
        """The problem with the class weights of the frozen step, or as the parameter has them."""
        problem, weights = dynamics.problem, dynamics.problem.example_weights
        if not isinstance(weights, ClassWeights):
            return problem
        gamma = self._weights(weights.schedule, frozen, value)
        return replace(problem, example_weights=replace(weights, schedule=lambda _: gamma))

    def _weights(
        self, schedule: Schedule, frozen: _Frozen, value: Array
    ) -> Float[Array, " classes"]:
        if self.kind == "amplitude":
            assert isinstance(schedule, Triangle)
            return replace(schedule, amplitude=value)(frozen.step)
        if self.kind == "class_weight":
            return schedule(frozen.step).at[self.class_label].set(value)
        before = self._time(frozen, value)
        part = jnp.where(frozen.moves, value - jnp.floor(value), 0.0)
        return (1 - part) * schedule(before) + part * schedule(before + 1)
