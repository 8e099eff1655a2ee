"""The training map of a run with its loss frozen at a step, as a map with one parameter or two."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.bifurcation.maps import Map, Parameter, Vector
from dlf_dynamics.analysis.instabilities.moving import moving_leaves, num_moving, with_moving
from dlf_dynamics.analysis.stability.linearised import with_counts
from dlf_dynamics.analysis.stability.threshold import instability_threshold
from dlf_dynamics.assembly import UpdateRule
from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.layout import Layout
from dlf_dynamics.losses import ClassWeights
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Schedule, Triangle
from dlf_dynamics.trained import TrainedRun

TrainingParameter = Literal[
    "learning_rate",
    "rate_factor",
    "amplitude",
    "period",
    "momentum",
    "class_weight",
    "time",
]

TrainingParameters = TrainingParameter | tuple[TrainingParameter, TrainingParameter]

_PACES = ("learning_rate", "rate_factor", "time")
"""Parameters whose maps share one compiled program; each of the others has its own."""


def training_map(
    run: Run, step: int, parameter: TrainingParameters = "learning_rate", *, class_label: int = 0
) -> Map:
    """A run's full-batch update with the loss frozen at a step, as a map of the extended state.

    The state is the flat parameters and, for heavy ball and Nesterov, the velocity after them; see
    `training_state`. The loss does not change from step to step. One of these is the parameter:

    * `learning_rate`, where it is known: of runs of `train`, and of recorded ones whose optimizer
      has no state;
    * `rate_factor`, by which each update is multiplied: 1 is the run itself;
    * `amplitude` of the pulse, at the frozen step;
    * `period` of the pulse, in steps; the frozen step is as long after the start of the pulse as in
      the run, and once a pulse is over, all weights are 1;
    * `momentum`, of heavy ball and Nesterov in runs of `train`;
    * `class_weight` of one class, with all others those of the frozen step;
    * `time`: the step itself, a real number; class weights are linear between whole steps.

    Two of them, except the time, make a map whose parameter is an array of both, in their order.

    Args:
        run: a recorded run of gradient descent, with momentum or without.
        step: number of the step at which the loss is frozen.
        parameter: which quantity is the map's parameter, or which two are.
        class_label: the class whose weight is the parameter.

    Raises:
        ValueError: for an adaptive optimizer, whose map changes with its step count and
            preconditioner; for a mini-batch run; for a learning rate that is not known; for an
            amplitude or a period of a schedule that has none, or a momentum of an optimizer that
            has none; or for two parameters that do not go together.
    """
    names = (parameter,) if isinstance(parameter, str) else tuple(parameter)
    _require(run, step, names)
    dynamics = run.dynamics
    layout = dynamics.state_layout(jnp.zeros(run.num_params, run.dtype))
    kinds = tuple("pace" if name in _PACES else name for name in names)
    rate = rate_at(run, step)
    actual = jnp.asarray((rate or 1.0) if "learning_rate" in names else 1.0, run.dtype)
    frozen = _Frozen(jnp.int32(step), actual, jnp.asarray("time" in names))
    rule = (run.config.optimizer, run.config.steps) if "momentum" in names else None
    return Map(Partial(_Update(layout, kinds, class_label, rule), dynamics, frozen))


def _require(run: Run, step: int, names: tuple[str, ...]) -> None:
    """Raises ValueError if there is no such map."""
    dynamics, choices = run.dynamics, get_args(TrainingParameter)
    for name in names:
        if name not in choices:
            raise ValueError(f"parameter is {name!r}; expected one of {', '.join(choices)}")
    together = len(names) == 1 or (
        len(names) == 2 and "time" not in names and len({*names} - {*_PACES}) > 0
    )
    if not together:
        raise ValueError(f"{' and '.join(names)}: no two parameters that go together")
    if len(set(names)) < len(names):
        raise ValueError(f"{' and '.join(names)}: expected two different parameters")
    if dynamics.adaptive:
        raise ValueError(
            f"{run.optimizer_name} has no fixed map: it changes with the step count and the "
            "preconditioner; expected gradient descent, with momentum or without"
        )
    if dynamics.batch_size is not None:
        raise ValueError("mini-batches: each update is another map; expected a full-batch run")
    for name in names:
        if name in ("amplitude", "period") and not isinstance(dynamics.schedule, Triangle):
            raise ValueError(f"the run's schedule has no {name}; expected one of triangular pulses")
    if "class_weight" in names and not isinstance(run.problem.example_weights, ClassWeights):
        raise ValueError("the run's loss has no class weights that could be the parameter")
    if "momentum" in names and not _has_momentum(run):
        raise ValueError(
            f"the momentum of {run.optimizer_name} is not known or there is none; expected a run "
            "of train with the optimizer heavy-ball or nesterov"
        )
    if "learning_rate" in names and rate_at(run, step) is None:
        raise ValueError(
            "the learning rate of a recorded optimizer with momentum is not known; expected the "
            "parameter rate_factor, which multiplies it"
        )


def _has_momentum(run: Run) -> bool:
    """Whether the run's configuration has the momentum of its updates."""
    return isinstance(run, TrainedRun) and run.optimizer_name in ("heavy-ball", "nesterov")


def rate_at(run: Run, step: int) -> float | None:
    """Learning rate at a step; none where it cannot be read off the optimizer.

    For an optimizer without state it is the factor by which a gradient of 1 is multiplied.
    """
    known = float(run.dynamics.learning_rate(step))
    if not np.isnan(known):
        return known
    params = jnp.zeros(run.num_params, run.dtype)
    layout = run.dynamics.state_layout(params)
    if any(dtype.startswith("float") for dtype in layout.dtypes):
        return None
    forms = zip(layout.shapes, layout.dtypes, strict=True)
    counts = [jnp.full(shape, step, dtype) for shape, dtype in forms]
    state = jax.tree.unflatten(layout.structure, counts)
    changes = [
        run.dynamics.update(params + gradient, state, params)[0][0] for gradient in (0.0, 1.0)
    ]
    return float(changes[0] - changes[1])


def equivalent_rate(run: Run, step: int, factor: float = 1.0) -> float:
    """Learning rate of gradient descent that has the same orbits of period 2.

    Args:
        run: run with the optimizer.
        step: number of updates made before.
        factor: number by which each update is multiplied.
    """
    optimizer = run.dynamics.optimizer
    if factor != 1:
        optimizer = optax.chain(optimizer, optax.scale(factor))
    return 2 / float(instability_threshold(optimizer, np.array([step]))[0])


def training_state(state: State) -> Vector:
    """A state of a run as a state of its training map: parameters, then the velocity, if any."""
    return _joined(state.params, state.optimizer_state)


def _joined(params: Array, optimizer_state: Any) -> Vector:
    leaves = moving_leaves(optimizer_state)
    return jnp.concatenate([params, *[leaf.ravel() for _, leaf in leaves]])


class _Frozen(NamedTuple):
    """Where the loss is frozen.

    Attributes:
        step: number of updates made before.
        rate: value of the parameter at which updates are those of the run.
        moves: whether the parameter is the time, which does not scale updates.
    """

    step: Int[Array, ""]
    rate: Float[Array, ""]
    moves: Bool[Array, ""]


@dataclass(frozen=True)
class _Update:
    """One update with the loss frozen; holds the static parts, so that maps share compilations.

    Maps in the learning rate and in the time, both of kind `pace`, are one program.

    Attributes:
        layout: layout of the optimizer's state.
        kinds: kinds of the parameters.
        class_label: the class whose weight may be a parameter.
        rule: settings of the optimizer and number of steps, if its momentum is a parameter.
    """

    layout: Layout
    kinds: tuple[str, ...]
    class_label: int
    rule: tuple[OptimizerConfig, int] | None = None

    def __call__(
        self, dynamics: Dynamics, frozen: _Frozen, state: Vector, value: Parameter
    ) -> Vector:
        values = jnp.asarray(value, state.dtype).reshape(len(self.kinds))
        given = dict(zip(self.kinds, values, strict=True))
        step, num_params = self._time(frozen, given), len(state) - num_moving(self.layout)
        problem = self._frozen(dynamics, frozen, given)
        if self.rule is not None:
            config, steps = self.rule
            rule = UpdateRule.of(replace(config, momentum=given["momentum"]), steps)
            dynamics = replace(dynamics, optimizer=rule.optimizer)
        params = state[:num_params]
        gradient = jax.grad(problem.objective)(params, step)
        # Counts are at the frozen step, hyperparameters those that the optimizer starts with.
        start = with_counts(dynamics.initial_state(params).optimizer_state, frozen.step)
        inner = with_moving(start, state[num_params:])
        change, inner = dynamics.update(gradient, inner, params)
        # A velocity does not depend on the learning rate, which scales the update as a whole.
        if "pace" in given:
            change = jnp.where(frozen.moves, 1.0, given["pace"] / frozen.rate) * change
        return _joined(params + change, inner)

    def _time(self, frozen: _Frozen, given: dict[str, Array]) -> Int[Array, ""]:
        """The step whose class weights the loss has, or the whole step before it."""
        if "pace" not in given:
            return frozen.step
        return jnp.where(frozen.moves, jnp.floor(given["pace"]).astype(jnp.int32), frozen.step)

    def _frozen(self, dynamics: Dynamics, frozen: _Frozen, given: dict[str, Array]) -> Problem:
        """The problem with the class weights of the frozen step, changed by the parameters."""
        problem, weights = dynamics.problem, dynamics.problem.example_weights
        if not isinstance(weights, ClassWeights):
            return problem
        gamma = self._weights(weights.schedule, frozen, given)
        return replace(problem, example_weights=replace(weights, schedule=lambda _: gamma))

    def _weights(
        self, schedule: Schedule, frozen: _Frozen, given: dict[str, Array]
    ) -> Float[Array, " classes"]:
        before = self._time(frozen, given)
        if "period" in given:
            assert isinstance(schedule, Triangle)
            weights = _in_pulse(schedule, before, given["period"], given.get("amplitude"))
        elif "amplitude" in given:
            assert isinstance(schedule, Triangle)
            weights = replace(schedule, amplitude=given["amplitude"])(before)
        elif given.keys() == {"pace"}:
            part = jnp.where(frozen.moves, given["pace"] - jnp.floor(given["pace"]), 0.0)
            weights = (1 - part) * schedule(before) + part * schedule(before + 1)
        else:
            weights = schedule(before)
        if "class_weight" in given:
            weights = weights.at[self.class_label].set(given["class_weight"])
        return weights


def _in_pulse(
    schedule: Triangle, step: Int[Array, ""], period: Array, amplitude: Array | None
) -> Float[Array, " classes"]:
    """Class weights in a pulse of another period, as long after its start as in the run."""
    since, label = step % schedule.pulse_steps, step // schedule.pulse_steps
    changed = replace(schedule, period=period, static_from=None)
    if amplitude is not None:
        changed = replace(changed, amplitude=amplitude)
    # The first pulse emphasises class 0, this one the class `label` further on.
    weights = jnp.roll(changed(jnp.minimum(since, period)), label)
    if schedule.static_from is None:
        return weights
    return jnp.where(step < schedule.static_from, weights, jnp.ones_like(weights))
