"""`TrainedRun`: a run of `train`, rebuilt from its file alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dlf_dynamics import schema
from dlf_dynamics.assembly import build, parameter_layout
from dlf_dynamics.config import RunConfig
from dlf_dynamics.datasets import Dataset, load_dataset
from dlf_dynamics.dynamics import Dynamics
from dlf_dynamics.errors import FileError
from dlf_dynamics.hdf5 import damaged
from dlf_dynamics.layout import Layout
from dlf_dynamics.run import Run
from dlf_dynamics.runreader import read_config, read_data, read_held_out
from dlf_dynamics.schedules import Schedule, Tabulated
from dlf_dynamics.schema import VALIDATION


class TrainedRun(Run):
    """A run whose file holds the configuration that its problem is built from."""

    def _told(self, file: h5py.File) -> None:
        self._config = read_config(file)

    @property
    def config(self) -> RunConfig:
        """As trained."""
        return self._config

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as a dictionary."""
        return dataclasses.asdict(self._config)

    @property
    def optimizer_name(self) -> str:
        """For labels."""
        return self._config.optimizer.name

    @property
    def own_updates(self) -> bool:
        """True: any update can be made again."""
        return True

    @property
    def edge_every(self) -> int:
        """As trained."""
        return self._config.edge_every

    @property
    def subject(self) -> str:
        """Data, network, loss, schedule and optimizer."""
        c = self._config
        model = "-".join(map(str, c.model.widths)) or "linear"
        independent = "independent " if c.batch_sampling == "independent" else ""
        batches = "" if c.batch_size is None else f", {independent}batches of {c.batch_size}"
        optimizer = f"{c.optimizer.name}, learning rate {c.optimizer.learning_rate:g}{batches}"
        schedule = "own schedule" if self.own_schedule else "static"
        if not self.own_schedule and c.schedule.name == "triangle":
            schedule = f"A = {c.schedule.amplitude:g}, T = {c.schedule.period}"
        network = f"{model} {c.model.activation}"
        return f"{c.data.name}, {network}, {c.loss.name}, {schedule}; {optimizer}; {c.dtype}"

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

    @property
    def origin(self) -> Float[np.ndarray, " params"] | None:
        """The initial parameters, where the network was expanded about them; none elsewhere."""
        if not self._config.linearize:
            return None
        self.require_checkpoints("take the initial parameters from")
        (point,) = self.recorded(np.array([0]))
        return point.params

    @property
    def layout(self) -> Layout:
        """The form of the parameters."""
        return self._layout

    @cached_property
    def _layout(self) -> Layout:
        return parameter_layout(self._config, self.dataset)

    def _dynamics(self, layout: Layout) -> Dynamics:
        found = build(self._config, self.dataset, self._schedule(), self.origin, layout)
        self._require_fit(found)
        return found

    def _schedule(self) -> Schedule | None:
        """The user's own schedule, from the weights that were recorded."""
        if not self.own_schedule:
            return None
        return Tabulated(jnp.asarray(self.scalars["class_weights"]))

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
