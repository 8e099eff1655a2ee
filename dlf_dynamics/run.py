"""`Run`: the content of a run file, as analyses use it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.config import RunConfig
from dlf_dynamics.dynamics import EDGE, SCALARS, Dynamics, State
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.errors import FileError, counted
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.hdf5 import ContentError, attribute, dataset_at, json_object, text
from dlf_dynamics.layout import Layout
from dlf_dynamics.precision import widened
from dlf_dynamics.problem import Problem
from dlf_dynamics.runfile import open_file
from dlf_dynamics.runreader import (
    complete_steps,
    is_sparse,
    read_rows,
    read_scalars,
    require_header,
    resume_state,
    width,
)
from dlf_dynamics.schema import UPDATE, VALIDATION
from dlf_dynamics.shown import Shown
from dlf_dynamics.smoothness import kinks
from dlf_dynamics.source import source_of, still_in

_READ = 2**24
"""Numbers that are read at a time when only a few of them are kept."""

if TYPE_CHECKING:
    from xarray import DataTree

Checkpoints = Sequence[int] | Int[np.ndarray, " chosen"]
"""Indices of checkpoints."""


class Run(Shown, ABC):
    """A snapshot of a run file: everything that was complete when it was opened.

    The problem is built from the file alone for a `TrainedRun`, and provided by the user for a
    `RecordedRun`.

    Arrays are read on demand; `parameters` alone reads the parameters of many checkpoints at once.

    Attributes:
        path: path of the file.
        run_id: unique identifier of the run, which stays when it is continued or repaired.
        status: `running`, `complete`, `interrupted` or `diverged`.
        source: state of the run when it was opened; results refer to it.
        dtype: name of the type of parameters and scalars.
        provenance: versions, machine and command.
        steps: steps of the recorded scalars, shape (steps,).
        checkpoint_steps: steps of the recorded parameters, shape (checkpoints,).
        num_params: length of the parameter vector.
        data_sha256: digest of the data.
        own_schedule: whether class weights came from the user and not from the configuration.
    """

    told_by = "run"

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path) as file:
            self.run_id = attribute(file, "run_id")
            self.status = text(file, "status")
            self._told(file)
            self.dtype = dataset_at(file, "parameters/value").dtype.name
            self.provenance: Mapping[str, Any] = json_object(
                text(file, "provenance"), "its provenance"
            )
            # The writer appends rows before checkpoints. Read in reverse, no checkpoint lacks one.
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
            # Without the update before it, a checkpoint is replaced by the state one update later.
            self.checkpoint_steps = self.checkpoint_steps + self._rebuilt
            self.own_schedule = False
            if "scalars/class_weights" in file:
                weights = file["scalars/class_weights"]
                self.own_schedule = attribute(weights, "own_schedule", bool)
            require_header(file)

    @abstractmethod
    def _told(self, file: h5py.File) -> None:
        """Reads what the file says about the problem."""

    @property
    @abstractmethod
    def config(self) -> RunConfig:
        """The configuration of the training.

        Raises:
            ConfigError: for a run of `Recorder`, which has none.
        """

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """The configuration as a dictionary; for a recorded run, the one that its author stored."""

    @property
    @abstractmethod
    def optimizer_name(self) -> str:
        """Name of the optimizer, for labels."""

    @property
    @abstractmethod
    def own_updates(self) -> bool:
        """Whether any update can be replayed."""

    @property
    @abstractmethod
    def edge_every(self) -> int:
        """Steps between evaluations of the realized edge in training; 0 if there were none."""

    @property
    @abstractmethod
    def subject(self) -> str:
        """What was trained, and how, in one line for figures."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """The form of the parameters."""

    @abstractmethod
    def _dynamics(self, layout: Layout) -> Dynamics:
        """The dynamics in flat parameters of this layout, which may have other types."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({str(self.path)!r}, {self.status}, {len(self.steps)} rows, "
            f"{len(self.checkpoint_steps)} checkpoints of {self.num_params} parameters)"
        )

    def _outline(self) -> dict[str, str]:
        names = ("run_id", "status", "dtype", "num_params", "optimizer_name", "data_sha256")
        identity = {"path": str(self.path)} | {name: str(getattr(self, name)) for name in names}
        return identity | {
            "steps": f"{len(self.steps)} rows",
            "checkpoint_steps": f"{len(self.checkpoint_steps)} checkpoints",
        }

    @property
    def outcome(self) -> str:
        """The outcome of the run in one line."""
        formats = {"loss": ".6g", "accuracy": ".4g"}
        last = {name: self.scalars[name][-1] for name in formats if len(self.steps)}
        if self.validation and len(self.checkpoint_steps):
            last["validation accuracy"] = self.validation["accuracy"][-1]
        values = [
            f"{name} {value:{formats.get(name, '.4g')}}"
            for name, value in last.items()
            if not np.isnan(value)
        ]
        updates = counted(int(self.steps[-1]) if len(self.steps) else 0, "update")
        checkpoints = counted(len(self.checkpoint_steps), "checkpoint")
        sizes = f"{updates}, {checkpoints} of {counted(self.num_params, 'parameter')}"
        parts = [sizes, ", ".join(values), str(self.edges)]
        return "; ".join(part for part in parts if part)

    def to_xarray(self, *, parameters: bool = False) -> DataTree:
        """The recorded arrays as a tree with named axes; see `Shown.to_xarray`.

        Args:
            parameters: whether to include the parameters of all checkpoints.

        Raises:
            ConfigError: when xarray is not installed (the extra `export`).
        """
        from dlf_dynamics.run_table import groups_of_run
        from dlf_dynamics.trees import tree_of

        return tree_of(groups_of_run(self, parameters=parameters), self._attributes())

    @contextmanager
    def _file(self) -> Iterator[h5py.File]:
        """Opens the file again, which must still contain what it did at first.

        Raises:
            FileError: when another run or other checkpoints have replaced it.
        """
        with open_file(self.path) as file:
            if not still_in(file, self.run_id, self.steps, self.recorded_steps):
                raise FileError(f"{self.path} was replaced or continued meanwhile; open it again")
            yield file

    @cached_property
    def scalars(self) -> Mapping[str, np.ndarray]:
        """Recorded scalars of all steps by name (`loss`, `update_cosine`, `class_weights`, ...)."""
        count = len(self.steps)
        with self._file() as file:
            recorded = read_scalars(file, slice(count))
        columns = {path.split("/")[1]: values for path, values in recorded.items()}
        missing = {name: np.full(count, np.nan) for name in SCALARS if name not in columns}
        return {"class_weights": np.zeros((count, 0))} | columns | missing

    @cached_property
    def edges(self) -> EdgeCounts:
        """How many of the evaluated steps raised their own loss."""
        return EdgeCounts.of(*(np.asarray(self.scalars[name], float) for name in EDGE))

    @cached_property
    def kinks(self) -> list[str]:
        """Operations in the loss whose derivative jumps, such as relu; empty if it is smooth."""
        params = jax.ShapeDtypeStruct((self.num_params,), self.dtype)
        step = jax.ShapeDtypeStruct((), "int32")
        return kinks(self.problem.objective, params, step)

    @cached_property
    def num_classes(self) -> int:
        """One more than the largest label; 0 if targets are not one label per example."""
        targets = np.asarray(self.problem.targets)
        labels = np.issubdtype(targets.dtype, np.integer) and targets.ndim == 1 and targets.size
        return int(targets.max()) + 1 if labels else 0

    def parameters(
        self, checkpoints: slice | Checkpoints = slice(None)
    ) -> Float[np.ndarray, "checkpoints params"]:
        """Recorded parameters of some checkpoints, given by a slice or by increasing indices."""
        chosen = np.arange(len(self.checkpoint_steps))[checkpoints]
        if self._rebuilt:
            return np.stack([point.params for (point,) in self.points(chosen, 1)])
        with self._file() as file:
            (values,) = read_rows(file, ["parameters/value"], chosen)
            return values

    def points(self, checkpoints: Checkpoints, chunk: int) -> Iterator[list[FlatState]]:
        """Streams checkpoints, given by index, in lists of at most `chunk`."""
        for points in self._streamed(checkpoints, chunk):
            if self._rebuilt:
                yield [self.dynamics.flat(_following(self.dynamics, self.state(p))) for p in points]
            else:
                yield points

    def _streamed(self, checkpoints: Checkpoints, chunk: int) -> Iterator[list[FlatState]]:
        with self._file() as file:
            for start in range(0, len(checkpoints), chunk):
                yield self._recorded(file, np.asarray(checkpoints[start : start + chunk]))

    def recorded(self, chosen: Int[np.ndarray, " chosen"]) -> list[FlatState]:
        """Checkpoints as stored in the file, even if the update before them is not known."""
        with self._file() as file:
            return self._recorded(file, chosen)

    def _recorded(self, file: Any, chosen: Int[np.ndarray, " chosen"]) -> list[FlatState]:
        names = ("parameters/value", UPDATE, "optimizer/value")
        stored = [name for name in names if name in file]
        rows = dict(zip(stored, read_rows(file, stored, chosen), strict=True))
        if not self.own_updates:  # the update before is mostly not stored, and cannot be replayed
            rows[UPDATE] = np.full((len(chosen), self.num_params), np.nan, self.dtype)
        columns = [rows.get(name, np.zeros((len(chosen), 0))) for name in names]
        steps = self.recorded_steps[chosen].tolist()
        return [FlatState(*row) for row in zip(steps, *columns, strict=True)]

    @property
    def recorded_steps(self) -> Int[np.ndarray, " checkpoints"]:
        """Steps of the checkpoints in the file, even if the update before them is not known."""
        return self.checkpoint_steps - self._rebuilt

    def _optimizer_columns(
        self, positions: Sequence[int]
    ) -> Float[np.ndarray, "checkpoints positions"]:
        """Some numbers of all recorded optimizer states, which are read in pieces."""
        count = max(1, _READ // max(self._state_size, 1))
        total = len(self.checkpoint_steps)
        pieces = [np.zeros((0, len(positions)))]
        with self._file() as file:
            for start in range(0, total, count):
                chosen = np.arange(start, min(start + count, total))
                (rows,) = read_rows(file, ["optimizer/value"], chosen)
                pieces.append(rows[:, list(positions)].astype(float))
        return np.concatenate(pieces)

    def require_checkpoints(self, purpose: str) -> None:
        """Raises FileError if the run stopped before it recorded any parameters."""
        if len(self.checkpoint_steps) == 0:
            raise FileError(f"{self.path} has no checkpoint to {purpose}; train anew")

    def resume_point(self) -> FlatState:
        """The state from which the run continues: at its interruption, else the last checkpoint.

        Raises:
            FileError: when nothing was recorded, or the state at the interruption is damaged.
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
    def validation(self) -> Mapping[str, Float[np.ndarray, " checkpoints"]]:
        """`loss` (static) and `accuracy` on the examples held out; empty if there are none."""
        with self._file() as file:
            count = len(self.checkpoint_steps)
            stored = [path for path in VALIDATION if path in file]
            columns = read_rows(file, stored, np.arange(count))
        return dict(zip(("loss", "accuracy"), columns, strict=False))

    @cached_property
    def dynamics(self) -> Dynamics:
        """Problem, optimizer and schedule, as they were trained."""
        # It is cached, and so must not hold tracers if a traced function is the first to use it.
        with jax.ensure_compile_time_eval():
            return self._dynamics(self.layout)

    @cached_property
    def precise(self) -> Dynamics:
        """The same functions of the same numbers in float64, for a run of any type.

        Use it where JAX computes in float64.
        """
        with jax.enable_x64(True), jax.ensure_compile_time_eval():
            return widened(self._dynamics(self.layout.widened()))

    @property
    def problem(self) -> Problem:
        """The problem, as a function of flat parameters."""
        return self.dynamics.problem

    def unravel(self, vector: Float[np.ndarray, " params"]) -> Any:
        """A parameter vector as the pytree of the model."""
        return self.layout.unflatten(jnp.asarray(vector))

    def state(self, point: FlatState) -> State:
        """A recorded point as a state of the dynamics."""
        return self.dynamics.restored(point)


@jax.jit
def _following(dynamics: Dynamics, state: State) -> State:
    return dynamics.step(state)[0]
