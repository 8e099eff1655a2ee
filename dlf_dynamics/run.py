"""`Run`: a recorded run as analyses see it, rebuilt from its file alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics import schema
from dlf_dynamics.assembly import build, parameter_layout
from dlf_dynamics.config import RunConfig
from dlf_dynamics.datasets import Dataset, load_dataset
from dlf_dynamics.dynamics import SCALARS, Dynamics, State
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import ContentError, attribute, damaged, dataset_at, json_object, text
from dlf_dynamics.layout import Layout
from dlf_dynamics.matching import require_match
from dlf_dynamics.precision import widened
from dlf_dynamics.problem import Problem
from dlf_dynamics.recording import Recording, Setup
from dlf_dynamics.runfile import open_file
from dlf_dynamics.runreader import (
    complete_steps,
    is_sparse,
    read_config,
    read_data,
    read_held_out,
    read_rows,
    read_scalars,
    require_header,
    resume_state,
    width,
)
from dlf_dynamics.runwriter import Point
from dlf_dynamics.schedules import Schedule, Tabulated
from dlf_dynamics.schema import VALIDATION
from dlf_dynamics.smoothness import kinks
from dlf_dynamics.source import source_of, still_in

Checkpoints = Sequence[int] | Int[np.ndarray, " chosen"]
"""Indices of checkpoints."""


def open_run(path: str | Path, setup: Setup | tuple[Any, Any, Any] | None = None) -> Run:
    """Opens a run file for reading; it may still be written to.

    Args:
        path: of the file.
        setup: problem, optimizer and parameters of a loop of one's own that `Recorder` recorded;
            none for a run of `train`, whose file has all of them.

    Raises:
        ConfigError: when the problem is not that of the file.
        FileError: when it is missing, foreign, damaged or of a newer format.
    """
    if setup is None:
        return Run(Path(path))
    chosen = Setup(*setup)
    run = Run(Path(path), chosen)
    require_match(run, chosen)
    return run


class Run:
    """A snapshot of a run file: what was complete when it was opened.

    Arrays are read when they are asked for; parameters are never read all at once unless asked for.

    Attributes:
        path: of the file.
        run_id: unique to the run, which keeps it when it is continued or repaired.
        status: `running`, `complete`, `interrupted` or `diverged`.
        source: the state that the run was in when it was opened, which results name.
        recording: what `Recorder` was told; none for a run of `train`.
        dtype: of parameters and scalars, by name.
        provenance: versions, machine and command.
        steps: of the recorded scalars, shape (steps,).
        checkpoint_steps: of the recorded parameters, shape (checkpoints,).
        num_params: length of the parameter vector.
        data_sha256: digest of the data.
        own_schedule: whether class weights came from the user and not from the configuration.
    """

    def __init__(self, path: Path, setup: Setup | None = None) -> None:
        self.path = path
        with open_file(path) as file:
            self.run_id = attribute(file, "run_id")
            self.status = text(file, "status")
            self.recording = None
            if "recording" in file:
                self.recording = Recording.from_json(text(file, "recording"))
            self._config = read_config(file)
            self.dtype = dataset_at(file, "parameters/value").dtype.name
            self.provenance: Mapping[str, Any] = json_object(
                text(file, "provenance"), "its provenance"
            )
            # Rows are written first, so they are read last: no checkpoint is without its row.
            self.checkpoint_steps: Int[np.ndarray, " checkpoints"] = complete_steps(
                file, "checkpoints"
            )
            self.steps: Int[np.ndarray, " steps"] = complete_steps(file, "steps")
            self.source = source_of(file, self.status, self.steps, self.checkpoint_steps)
            self.num_params = int(dataset_at(file, "parameters/value").shape[1])
            self._state_size = width(file, "optimizer/value")
            self._num_weights = width(file, "scalars/class_weights/value")
            self.data_sha256 = attribute(file["data"], "sha256")
            self._rebuilt = self.own_updates and is_sparse(file, self.checkpoint_steps)
            # What an analysis needs of the step before is known one step later, once that is made.
            self.checkpoint_steps = self.checkpoint_steps + self._rebuilt
            self.own_schedule = False
            if "scalars/class_weights" in file:
                weights = file["scalars/class_weights"]
                self.own_schedule = attribute(weights, "own_schedule", bool)
            require_header(file)
        if setup is not None and self.recording is None:
            raise ConfigError(f"{path} is a run of `dlf-dynamics train`; it needs no problem")
        self._setup = setup

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}, {self.status}, {len(self.steps)} rows, "
            f"{len(self.checkpoint_steps)} checkpoints of {self.num_params} parameters)"
        )

    @contextmanager
    def _file(self) -> Iterator[h5py.File]:
        """The file, in which what was there when it was opened must still be.

        Raises:
            FileError: when another run has taken its place, or other checkpoints theirs.
        """
        with open_file(self.path) as file:
            if not still_in(file, self.run_id, self.steps, self.checkpoint_steps - self._rebuilt):
                raise FileError(f"{self.path} was replaced or continued meanwhile; open it again")
            yield file

    @cached_property
    def scalars(self) -> Mapping[str, np.ndarray]:
        """What each step recorded, by name (`loss`, `update_cosine`, `class_weights`, ...)."""
        count = len(self.steps)
        with self._file() as file:
            recorded = read_scalars(file, slice(count))
        found = {path.split("/")[1]: values for path, values in recorded.items()}
        missing = {name: np.full(count, np.nan) for name in SCALARS if name not in found}
        return {"class_weights": np.zeros((count, 0))} | found | missing

    @property
    def config(self) -> RunConfig:
        """As trained.

        Raises:
            ConfigError: for a run of `Recorder`, which has none.
        """
        if isinstance(self._config, RunConfig):
            return self._config
        raise ConfigError(
            f"{self.path} was recorded in a loop of one's own; only a run of `dlf-dynamics train` "
            "can do this"
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as a dictionary; of a recorded run, what its author wanted kept."""
        if isinstance(self._config, RunConfig):
            return dataclasses.asdict(self._config)
        return self._config

    @property
    def optimizer_name(self) -> str:
        """For labels."""
        return self.recording.optimizer if self.recording else self.config.optimizer.name

    @property
    def own_updates(self) -> bool:
        """Whether any update can be made again."""
        return self.recording is None or self.recording.full_batch

    @cached_property
    def kinks(self) -> list[str]:
        """Operations in the loss whose derivative jumps, such as relu; empty when it is smooth."""
        params = jax.ShapeDtypeStruct((self.num_params,), self.dtype)
        step = jax.ShapeDtypeStruct((), "int32")
        return kinks(self.problem.objective, params, step)

    @cached_property
    def num_classes(self) -> int:
        """One more than the largest label; 0 where targets are not the labels of examples."""
        targets = np.asarray(self.problem.targets)
        labels = np.issubdtype(targets.dtype, np.integer) and targets.ndim == 1 and targets.size
        return int(targets.max()) + 1 if labels else 0

    def parameters(
        self, checkpoints: slice | Checkpoints = slice(None)
    ) -> Float[np.ndarray, "checkpoints params"]:
        """Recorded parameters of some checkpoints, given by a slice or by increasing index."""
        chosen = np.arange(len(self.checkpoint_steps))[checkpoints]
        if self._rebuilt:
            return np.stack([point.params for (point,) in self.points(chosen, 1)])
        with self._file() as file:
            (values,) = read_rows(file, ["parameters/value"], chosen)
            return values

    def points(self, checkpoints: Checkpoints, chunk: int) -> Iterator[list[Point]]:
        """Streams checkpoints, given by index, in lists of at most `chunk`."""
        for points in self._streamed(checkpoints, chunk):
            if self._rebuilt:
                yield [point_of(_following(self.dynamics, self.state(p))) for p in points]
            else:
                yield points

    def _streamed(self, checkpoints: Checkpoints, chunk: int) -> Iterator[list[Point]]:
        with self._file() as file:
            for start in range(0, len(checkpoints), chunk):
                yield self._recorded(file, np.asarray(checkpoints[start : start + chunk]))

    def recorded(self, chosen: Int[np.ndarray, " chosen"]) -> list[Point]:
        """Checkpoints as they are in the file, also where the update before them is not known."""
        with self._file() as file:
            return self._recorded(file, chosen)

    def _recorded(self, file: Any, chosen: Int[np.ndarray, " chosen"]) -> list[Point]:
        names = ("parameters/value", "previous_update/value", "optimizer/value")
        there = [name for name in names if name in file]
        found = dict(zip(there, read_rows(file, there, chosen), strict=True))
        columns = [found.get(name, np.zeros((len(chosen), 0))) for name in names]
        steps = (self.checkpoint_steps[chosen] - self._rebuilt).tolist()
        return [Point(*row) for row in zip(steps, *columns, strict=True)]

    def require_checkpoints(self, purpose: str) -> None:
        """Raises FileError where the run stopped before it recorded any parameters."""
        if len(self.checkpoint_steps) == 0:
            raise FileError(f"{self.path} has no checkpoint to {purpose}; train anew")

    def resume_point(self) -> Point:
        """Where the run continues: the interrupted step if it was recorded, else a checkpoint.

        Raises:
            FileError: when nothing was recorded yet, or where it stopped is damaged.
        """
        self.require_checkpoints("continue from")
        ((point,),) = self.points([len(self.checkpoint_steps) - 1], 1)
        with self._file() as file:
            try:
                stopped = resume_state(file)
            except ContentError as error:
                raise FileError(
                    f"{self.path} is damaged: {error}; `dlf-dynamics repair {self.path}` leaves "
                    "that out, and the run goes on from its last checkpoint"
                ) from error
        if stopped is not None and stopped.step > point.step:
            point = stopped
        last = int(self.steps[-1]) if len(self.steps) else -1
        if last < point.step:
            raise FileError(
                f"{self.path} is damaged: its rows end at step {last}, and its state is of step "
                f"{point.step}; train anew"
            )
        return point

    @cached_property
    def dataset(self) -> Dataset:
        """Inputs and labels, from the file or, when they are large, from their recipe.

        Raises:
            FileError: when the recipe no longer gives the data that the run was trained on.
        """
        with self._file() as file:
            stored = read_data(file, "inputs", "targets", self.data_sha256)
        if stored is not None:
            return stored
        dataset = dataclasses.replace(load_dataset(self.config.data), validation=None)
        if dataset.sha256() != self.data_sha256:
            raise FileError(f"{self.path}: the data are not those that the run was trained on")
        return dataset

    @cached_property
    def held_out(self) -> Dataset | None:
        """The examples held out for validation, which analyses do not need; none without them."""
        with self._file() as file:
            stored = read_held_out(file)
            without = VALIDATION[0] not in file or "data/inputs" in file
        if stored is not None or without:
            return stored
        return load_dataset(self.config.data).validation

    @cached_property
    def validation(self) -> Mapping[str, Float[np.ndarray, " checkpoints"]]:
        """`loss` (static) and `accuracy` on the examples held out; empty without them."""
        with self._file() as file:
            count = len(self.checkpoint_steps)
            there = [path for path in VALIDATION if path in file]
            found = read_rows(file, there, np.arange(count))
        return dict(zip(("loss", "accuracy"), found, strict=False))

    @cached_property
    def dynamics(self) -> Dynamics:
        """Problem, optimizer and schedule, as they were trained."""
        found = self._dynamics(lambda layout: layout)
        if self.recording is None:
            self._require_fit(found)
        return found

    @cached_property
    def precise(self) -> Dynamics:
        """The same functions of the same numbers in float64, for a run of any type.

        It is to be used where JAX computes in float64.
        """
        with jax.enable_x64(True):
            return widened(self._dynamics(Layout.widened))

    def _dynamics(self, form: Callable[[Layout], Layout]) -> Dynamics:
        # Kept, so it must not hold tracers when it is first asked for in a traced function.
        with jax.ensure_compile_time_eval():
            if self.recording is None:
                schedule = self._recorded_schedule()
                layout = form(self.layout)
                return build(self.config, self.dataset, schedule, self.origin, layout)
            if self._setup is not None:
                return self._setup.dynamics(self.recording, form(self.layout))
        raise ConfigError(
            f"{self.path} was recorded in a loop of one's own, and does not hold its model; give "
            "it with --problem module:function (open_run(path, (problem, optimizer, params)))"
        )

    def _require_fit(self, dynamics: Dynamics) -> None:
        """Raises FileError unless what was recorded has the form that the configuration gives."""
        state = dynamics.state_layout(jnp.zeros(self.layout.size, self.dtype))
        classes = len(jax.eval_shape(dynamics.schedule, jnp.int32(0)))
        for path, found, expected in (
            ("parameters/value", self.num_params, self.layout.size),
            ("optimizer/value", self._state_size, state.size),
            ("scalars/class_weights/value", self._num_weights, classes),
        ):
            if found != expected:
                reason = f"/{path} has {found} columns, its configuration gives {expected}"
                raise damaged(self.path, schema.FORMAT, reason)

    @property
    def origin(self) -> Float[np.ndarray, " params"] | None:
        """The initial parameters, where the network was expanded about them; none elsewhere."""
        if self.recording is not None or not self.config.linearize:
            return None
        self.require_checkpoints("take the initial parameters from")
        (point,) = self.recorded(np.array([0]))
        return point.params

    @cached_property
    def layout(self) -> Layout:
        """The form of the parameters."""
        if self._setup is not None:
            return self._setup.layout
        return parameter_layout(self.config, self.dataset)

    @property
    def problem(self) -> Problem:
        """The problem, as a function of flat parameters."""
        return self.dynamics.problem

    def unravel(self, vector: Float[np.ndarray, " params"]) -> Any:
        """A parameter vector as the pytree of the model."""
        return self.layout.unflatten(jnp.asarray(vector))

    def state(self, point: Point) -> State:
        """A recorded point as the state that the dynamics continue from."""
        params = jnp.asarray(point.params)
        layout = self.dynamics.state_layout(params)
        return State(
            params,
            jnp.asarray(point.previous_update),
            layout.unflatten(jnp.asarray(point.optimizer)),
            jnp.int32(point.step),
        )

    def _recorded_schedule(self) -> Schedule | None:
        """The user's own schedule, from the weights that were recorded."""
        if not self.own_schedule:
            return None
        return Tabulated(jnp.asarray(self.scalars["class_weights"]))


@jax.jit
def _following(dynamics: Dynamics, state: State) -> State:
    return dynamics.step(state)[0]


def point_of(state: State) -> Point:
    """A state as the vectors that the run file stores."""
    return Point(
        int(state.step),
        np.asarray(state.params),
        np.asarray(state.previous_update),
        np.asarray(Layout.of(state.optimizer_state).flatten(state.optimizer_state)),
    )


def stack_points(run: Run, points: Sequence[Point]) -> State:
    """Recorded points as one batched state of NumPy arrays, for `jax.lax.map` over checkpoints."""
    names = ("params", "previous_update", "optimizer")
    columns: list[Any] = [np.stack([getattr(point, name) for point in points]) for name in names]
    params, updates, optimizer = columns
    steps: Any = np.array([point.step for point in points], np.int32)
    layout = run.dynamics.state_layout(params[0])
    return State(params, updates, layout.unflatten(optimizer), steps)
