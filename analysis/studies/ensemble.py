"""`Ensemble`: runs that differ in numbers only, trained together without a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.assembly import assemble, initial_parameters, num_outputs, parameter_layout
from dlf_dynamics.config import RunConfig
from dlf_dynamics.datasets import Dataset, load_dataset
from dlf_dynamics.dynamics import (
    Dynamics,
    Snapshots,
    State,
    epoch_steps,
    scalar_columns,
    stretch,
)
from dlf_dynamics.layout import Layout
from dlf_dynamics.pace import Made, Pace
from dlf_dynamics.schedules import make_schedule

_BLANK = RunConfig()


class Stopped(Exception):
    """Training ended before its last step because `stop` said so."""


class Numbers(NamedTuple):
    """What may differ within an ensemble besides the initial parameters, an entry per run."""

    amplitude: Float[Array, " runs"]
    period: Int[Array, " runs"]
    learning_rate: Float[Array, " runs"]
    momentum: Float[Array, " runs"]
    batch_seed: Int[Array, " runs"]

    @classmethod
    def of(cls, configs: Sequence[RunConfig]) -> Numbers:
        """The numbers of some configurations, in the types in which a single run uses them."""
        schedules, optimizers = [c.schedule for c in configs], [c.optimizer for c in configs]
        dtype = configs[0].vector_dtype
        return cls(
            jnp.array([s.amplitude for s in schedules], float),
            jnp.array([s.period for s in schedules], int),
            jnp.array([o.learning_rate for o in optimizers], dtype),
            jnp.array([o.momentum for o in optimizers], dtype),
            jnp.array([c.batch_seed for c in configs], jnp.uint32),
        )


def common_form(config: RunConfig) -> RunConfig:
    """The configuration with all that may differ within an ensemble set to the default.

    Runs of equal forms can be trained together, by one compiled program. An exponentially falling
    learning rate stays, as optax looks at it while it is traced.
    """
    optimizer = replace(config.optimizer, momentum=_BLANK.optimizer.momentum)
    if optimizer.learning_rate_schedule != "exponential":
        optimizer = replace(optimizer, learning_rate=_BLANK.optimizer.learning_rate)
    return replace(
        config,
        model=replace(config.model, seed=0),
        schedule=replace(config.schedule, amplitude=1.0, period=1),
        optimizer=optimizer,
        batch_seed=0,
    )


@dataclass(frozen=True)
class _Form:
    """What the compiled program depends on."""

    config: RunConfig
    layout: Layout
    num_classes: int
    epoch_steps: int

    def dynamics(self, numbers: Numbers, data: _Data, origin: Array | None) -> Dynamics:
        """Dynamics of one run, whose numbers may be traced."""
        schedule = replace(self.config.schedule, amplitude=numbers.amplitude, period=numbers.period)
        optimizer = replace(self.config.optimizer, momentum=numbers.momentum)
        if optimizer.learning_rate_schedule != "exponential":
            optimizer = replace(optimizer, learning_rate=numbers.learning_rate)
        made = assemble(
            self.config,
            self.layout,
            data.dataset(),
            make_schedule(schedule, self.num_classes, self.epoch_steps),
            optimizer,
            origin,
        )
        return replace(made, batch_seed=numbers.batch_seed, edge_every=self.config.edge_every)


class _Data(NamedTuple):
    """A data set as arrays."""

    inputs: Array
    labels: Array
    held_out: tuple[Array, Array] | None

    @classmethod
    def of(cls, dataset: Dataset, dtype: str) -> _Data:
        held_out = dataset.validation
        return cls(
            jnp.asarray(dataset.inputs, dtype),
            jnp.asarray(dataset.labels),
            None
            if held_out is None
            else (jnp.asarray(held_out.inputs, dtype), jnp.asarray(held_out.labels)),
        )

    def dataset(self) -> Dataset:
        """The data set, of arrays that may be traced."""
        held_out = None if self.held_out is None else Dataset(*self.held_out)  # type: ignore[arg-type]
        return Dataset(self.inputs, self.labels, held_out)  # type: ignore[arg-type]


@partial(jax.jit, static_argnames=("form", "capacity"))
def _advance(
    form: _Form,
    numbers: Numbers,
    data: _Data,
    origins: Array | None,
    states: State,
    counts: Array,
    due: Array,
    *,
    capacity: int,
) -> tuple[State, Snapshots, Array]:
    """`stretch` for all runs; a single one is not batched, which is faster on a CPU."""

    def one(numbers: Numbers, origin: Array | None, state: State):
        dynamics = form.dynamics(numbers, data, origin)
        return stretch(dynamics, state, counts, due, capacity=capacity)

    if len(states.params) > 1:
        return jax.vmap(one)(numbers, origins, states)
    single = jax.tree.map(lambda leaf: leaf[0], (numbers, origins, states))
    return jax.tree.map(lambda leaf: leaf[None], one(*single))


@dataclass(frozen=True)
class History:
    """The history of a run.

    Attributes:
        columns: what each step recorded, by name; the last row is that of the last parameters.
        validation_steps: steps of the evaluations of held-out examples: checkpoints and the last.
        validation: static loss and accuracy there, shape (evaluations, 2), or (evaluations, 0).
        kept_steps: steps whose parameters were to be kept.
        kept: their parameters, shape (kept, params).
        params: parameters after the last update.
        optimizer_state: state of the optimizer after the last update.
    """

    columns: dict[str, np.ndarray]
    validation_steps: Int[np.ndarray, " evaluations"]
    validation: Float[np.ndarray, "evaluations measures"]
    kept_steps: Int[np.ndarray, " kept"]
    kept: Float[np.ndarray, "kept params"]
    params: Float[np.ndarray, " params"]
    optimizer_state: Any


class Ensemble:
    """Runs of equal forms (`common_form`) that share their data and number of steps.

    Attributes:
        configs: configurations of the runs.
        dataset: data set of all of them.
    """

    def __init__(
        self,
        configs: Sequence[RunConfig],
        params: Float[Array | np.ndarray, " params"] | None = None,
    ) -> None:
        """Loads the data and draws the initial parameters.

        Args:
            configs: one for each run.
            params: initial parameters of all runs, flat, instead of drawn ones.

        Raises:
            ConfigError: when a configuration does not fit its data.
            DataError: when the data cannot be read.
            ValueError: when the runs are not of one form.
        """
        self.configs = tuple(configs)
        if len({common_form(config) for config in configs}) != 1:
            raise ValueError("the runs of an ensemble differ in more than numbers")
        self.config = configs[0]
        self.dataset = load_dataset(self.config.data)
        if params is None:
            trees = [initial_parameters(config, self.dataset) for config in configs]
            layout = Layout.of(trees[0])
            self._params = jnp.stack([layout.flatten(tree) for tree in trees])
        else:
            layout = parameter_layout(self.config, self.dataset)
            self._params = jnp.broadcast_to(params, (len(configs), len(params)))
        classes = num_outputs(self.config, self.dataset)
        epoch = epoch_steps(len(self.dataset.labels), self.config.batch_size)
        self._form = _Form(common_form(self.config), layout, classes, epoch)
        self._numbers = Numbers.of(configs)
        self._data = _Data.of(self.dataset, self.config.vector_dtype)

    @cached_property
    def dynamics(self) -> list[Dynamics]:
        """Dynamics of each run, with its numbers; all of them share the same arrays of data."""
        form, data = self._form, self._data.dataset()
        return [
            assemble(
                config,
                form.layout,
                data,
                make_schedule(config.schedule, form.num_classes, form.epoch_steps),
                config.optimizer,
                origin,
            )
            for config, origin in zip(self.configs, self._params, strict=True)
        ]

    def run(
        self, keep: Sequence[int] = (), stop: Callable[[], bool] = lambda: False
    ) -> list[History]:
        """Trains the runs.

        Args:
            keep: steps, multiples of `checkpoint_every`, whose parameters are kept.
            stop: asked between calls of the compiled program.

        Raises:
            Stopped: when `stop` said so.
        """
        states = self._initial_states()
        single = jax.tree.map(lambda leaf: leaf[0], states)
        pace = Pace(self.config, single, len(self.configs))
        log, step = _Log(self.config.checkpoint_every, set(keep)), 0
        for made in pace.stretches(self._advance, states, 0, stop):
            log.add(made)
            states, step = made.state, made.end
            if not np.any(np.isfinite(log.rows[-1][:, -1, 0])):
                break  # no run is left
        else:
            if step < self.config.steps:
                raise Stopped
        log.add(pace.last(self._advance, states, step), last=True)
        return log.histories(states)

    def _initial_states(self) -> State:
        blank = self.dynamics[0].initial_state(self._params[0])
        count = len(self.configs)
        states = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), blank)
        return states._replace(params=self._params)

    def _advance(
        self, states: State, counts: np.ndarray, due: np.ndarray, capacity: int
    ) -> tuple[State, Snapshots, Array]:
        origins = self._params if self.config.linearize else None
        args = (self._numbers, self._data, origins, states, counts, due)
        return _advance(self._form, *args, capacity=capacity)


class _Log:
    """Collects what the calls of the compiled program return."""

    def __init__(self, every: int, keep: set[int]) -> None:
        self._every, self._keep = every, keep
        self.rows: list[np.ndarray] = []
        self._steps: list[int] = []
        self._validation: list[np.ndarray] = []
        self._kept: list[tuple[int, np.ndarray]] = []

    def add(self, made: Made, *, last: bool = False) -> None:
        """Takes rows of all runs, and what was evaluated at checkpoints and after the last step."""
        step, validation = made.step, np.asarray(made.snapshots.validation)
        for index in np.flatnonzero(made.counts):
            self.rows.append(made.rows[:, index, : made.counts[index]])
            if step % self._every == 0 or last:
                self._steps.append(step)
                self._validation.append(validation[:, index])
            if step in self._keep:
                self._kept.append((step, np.asarray(made.snapshots.params[:, index])))
            step += int(made.counts[index])

    def histories(self, states: State) -> list[History]:
        """Run by run, with the states after the last update."""
        params = np.asarray(states.params)
        rows, validation = np.concatenate(self.rows, axis=1), np.stack(self._validation, axis=1)
        kept_steps = np.array([step for step, _ in self._kept], int)
        return [
            History(
                scalar_columns(rows[run]),
                np.array(self._steps),
                validation[run],
                kept_steps,
                np.array([vectors[run] for _, vectors in self._kept]),
                params[run],
                jax.tree.map(lambda leaf, run=run: leaf[run], states.optimizer_state),
            )
            for run in range(len(params))
        ]
