"""`Run`: a recorded run as analyses see it, rebuilt from its file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float, Int

from dlf_dynamics import schema
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import from_json
from dlf_dynamics.datasets import Dataset, load_dataset
from dlf_dynamics.dynamics import Dynamics, State, blank_parameters, build
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import dataset_at, text
from dlf_dynamics.optimizers import flatten_state, unflatten_state
from dlf_dynamics.problem import Problem
from dlf_dynamics.runfile import Point, complete_steps, open_file
from dlf_dynamics.schedules import Schedule, Tabulated

Checkpoints = Sequence[int] | Int[np.ndarray, " chosen"]
"""Indices of checkpoints."""


def open_run(path: str | Path) -> Run:
    """Opens a run file for reading; it may still be written to.

    Raises:
        FileError: when it is missing, foreign, damaged or of a newer format.
    """
    return Run(Path(path))


class Run:
    """A snapshot of a run file: what was complete when it was opened.

    Arrays are read when they are asked for; parameters are never read all at once unless asked for.

    Attributes:
        path: of the file.
        run_id: unique to the run; result files name it.
        status: `running`, `complete`, `interrupted` or `diverged`.
        config: as trained.
        provenance: versions, machine and command.
        steps: of the recorded scalars, shape (steps,).
        checkpoint_steps: of the recorded parameters, shape (checkpoints,).
        num_params: length of the parameter vector.
        data_sha256: digest of the data.
        own_schedule: whether class weights came from the user and not from the configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path) as file:
            self.run_id = str(file.attrs["run_id"])
            self.status = text(file, "status")
            try:
                self.config: RunConfig = from_json(text(file, "config"))
            except (ConfigError, json.JSONDecodeError) as error:
                raise FileError(f"{path} is damaged: its configuration: {error}") from error
            self.provenance: Mapping[str, Any] = json.loads(text(file, "provenance"))
            # Rows are written first, so they are read last: no checkpoint is without its row.
            self.checkpoint_steps: Int[np.ndarray, " checkpoints"] = complete_steps(
                file, "checkpoints"
            )
            self.steps: Int[np.ndarray, " steps"] = complete_steps(file, "steps")
            self.num_params = int(dataset_at(file, "parameters/value").shape[1])
            self.data_sha256 = str(file["data"].attrs["sha256"])
            weights = file["scalars/class_weights"]
            self.own_schedule = bool(weights.attrs["own_schedule"])

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}, {self.status}, {len(self.steps)} steps, "
            f"{len(self.checkpoint_steps)} checkpoints of {self.num_params} parameters)"
        )

    @cached_property
    def scalars(self) -> Mapping[str, np.ndarray]:
        """What each step recorded, by name (`loss`, `update_cosine`, `class_weights`, ...)."""
        names = {entry.path.split("/")[1]: entry.path for entry in schema.growing("steps")}
        with open_file(self.path) as file:
            count = len(self.steps)
            return {name: dataset_at(file, path)[:count] for name, path in names.items()}

    def parameters(
        self, checkpoints: slice | Checkpoints = slice(None)
    ) -> Float[np.ndarray, "checkpoints params"]:
        """Recorded parameters of some checkpoints, given by a slice or by increasing index."""
        chosen = np.arange(len(self.checkpoint_steps))[checkpoints]
        with open_file(self.path) as file:
            recorded = dataset_at(file, "parameters/value")
            if isinstance(checkpoints, slice) and len(chosen):
                return recorded[chosen.min() : chosen.max() + 1][chosen - chosen.min()]
            return recorded[chosen]

    def points(self, checkpoints: Checkpoints, chunk: int) -> Iterator[list[Point]]:
        """Streams checkpoints, given by index, in lists of at most `chunk`."""
        with open_file(self.path) as file:
            for start in range(0, len(checkpoints), chunk):
                yield self._points(file, np.asarray(checkpoints[start : start + chunk]))

    def _points(self, file: h5py.File, chosen: Int[np.ndarray, " chosen"]) -> list[Point]:
        names = ("parameters/value", "previous_update/value", "optimizer/value")
        columns = [_rows(file, name, chosen) for name in names]
        steps = self.checkpoint_steps[chosen].tolist()
        return [Point(*row) for row in zip(steps, *columns, strict=True)]

    def resume_point(self) -> Point:
        """Where the run continues: the interrupted step if it was recorded, else a checkpoint.

        Raises:
            FileError: when nothing was recorded yet.
        """
        if len(self.checkpoint_steps) == 0:
            raise FileError(f"{self.path} has no checkpoint to continue from; train anew")
        last = len(self.checkpoint_steps) - 1
        with open_file(self.path) as file:
            (point,) = self._points(file, np.array([last]))
            step = int(_row(file, "resume/step", ())) if "resume/step" in file else -1
            if step <= point.step:
                return point
            names = ("resume/parameters", "resume/previous_update", "resume/optimizer")
            return Point(step, *(_row(file, name, ...) for name in names))

    @cached_property
    def dataset(self) -> Dataset:
        """Inputs and labels, from the file or, when they are large, from their recipe.

        Raises:
            FileError: when the recipe no longer gives the data that the run was trained on.
        """
        with open_file(self.path) as file:
            if "data/inputs" in file:
                return Dataset(_row(file, "data/inputs", ...), _row(file, "data/targets", ...))
        dataset = load_dataset(self.config.data)
        if dataset.sha256() != self.data_sha256:
            raise FileError(f"{self.path}: the data are not those that the run was trained on")
        return dataset

    @cached_property
    def dynamics(self) -> Dynamics:
        """Problem, optimizer and schedule, as they were trained."""
        # Kept, so it must not hold tracers when it is first asked for in a traced function.
        with jax.ensure_compile_time_eval():
            return build(self.config, self.dataset, self._recorded_schedule())

    @property
    def problem(self) -> Problem:
        """The problem, as a function of flat parameters."""
        return self.dynamics.problem

    def unravel(self, vector: Float[np.ndarray, " params"]) -> Any:
        """A parameter vector as the pytree of the model."""
        blank = blank_parameters(self.config, self.dataset)
        return ravel_pytree(blank)[1](jnp.asarray(vector))

    def state(self, point: Point) -> State:
        """A recorded point as the state that the dynamics continue from."""
        params = jnp.asarray(point.params)
        like = jax.eval_shape(self.dynamics.optimizer.init, params)
        return State(
            params,
            jnp.asarray(point.previous_update),
            unflatten_state(jnp.asarray(point.optimizer), like),
            jnp.int32(point.step),
        )

    def _recorded_schedule(self) -> Schedule | None:
        """The user's own schedule, from the weights that were recorded."""
        if not self.own_schedule:
            return None
        return Tabulated(jnp.asarray(self.scalars["class_weights"]))


def _rows(file: h5py.File, path: str, chosen: Int[np.ndarray, " chosen"]) -> np.ndarray:
    """Some rows of a dataset, in any order."""
    if path not in file:
        return np.zeros((len(chosen), 0))
    dataset, first, last = dataset_at(file, path), np.min(chosen), np.max(chosen)
    if last - first < 2 * len(chosen):  # neighbours are read in one go
        return dataset[first : last + 1][chosen - first]
    return np.stack([dataset[index] for index in chosen])


def _row(file: h5py.File, path: str, index: Any) -> np.ndarray:
    """Part of a dataset; nothing where the run has no such dataset (no optimizer state)."""
    return dataset_at(file, path)[index] if path in file else np.zeros(0)


def point_of(state: State) -> Point:
    """A state as the vectors that the run file stores."""
    return Point(
        int(state.step),
        np.asarray(state.params),
        np.asarray(state.previous_update),
        np.asarray(flatten_state(state.optimizer_state)),
    )


def stack_points(run: Run, points: Sequence[Point]) -> State:
    """Recorded points as one batched state, for `jax.lax.map` over checkpoints."""
    params = np.stack([p.params for p in points])
    optimizer = np.stack([p.optimizer for p in points])
    like = jax.eval_shape(run.dynamics.optimizer.init, jnp.asarray(params[0]))
    return State(
        jnp.asarray(params),
        jnp.stack([p.previous_update for p in points]),
        jax.vmap(lambda vector: unflatten_state(vector, like))(jnp.asarray(optimizer)),
        jnp.array([p.step for p in points], jnp.int32),
    )
