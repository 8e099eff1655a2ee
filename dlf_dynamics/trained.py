"""`TrainedRun`: a run of `train`, which is rebuilt from its file alone."""

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
    """A run whose file contains the configuration from which its problem is built."""

    def _told(self, file: h5py.File) -> None:
        self._config = read_config(file)

    @property
    def config(self) -> RunConfig:
        """The configuration of the training."""
        return self._config

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration as a dictionary."""
        return dataclasses.asdict(self._config)

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer, for labels."""
        return self._config.optimizer.name

    @property
    def own_updates(self) -> bool:
        """True: any update can be replayed."""
        return True

    @property
    def edge_every(self) -> int:
        """Steps between evaluations of the realized edge in training; 0 if there were none."""
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
        """Inputs and labels, from the file or, if they are large, from their configuration.

        Raises:
            FileError: when the configuration no longer gives the data of the training.
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
        """The examples held out for validation, unused by analyses; None if there are none."""
        with self._file() as file:
            stored = read_held_out(file)
            without = VALIDATION[0] not in file or "data/inputs" in file
        if stored is not None or without:
            return stored
        return load_dataset(self.config.data).validation

    @property
    def origin(self) -> Float[np.ndarray, " params"] | None:
        """The initial parameters, if the network was expanded about them; else None."""
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
        dynamics = build(self._config, self.dataset, self._schedule(), self.origin, layout)
        self._require_fit(dynamics)
        return dynamics

    def _schedule(self) -> Schedule | None:
        """The user's own schedule, from the recorded weights."""
        if not self.own_schedule:
            return None
        return Tabulated(jnp.asarray(self.scalars["class_weights"]))

    def _require_fit(self, dynamics: Dynamics) -> None:
        """Raises FileError unless the recorded arrays have the form given by the configuration."""
        state = dynamics.state_layout(jnp.zeros(self.layout.size, self.dtype))
        classes = len(jax.eval_shape(dynamics.schedule, jnp.int32(0)))
        for path, columns, expected in (
            ("parameters/value", self.num_params, self.layout.size),
            ("optimizer/value", self._state_size, state.size),
            ("scalars/class_weights/value", self._num_weights, classes),
        ):
            if columns != expected:
                reason = f"/{path} has {columns} columns, its configuration gives {expected}"
                raise damaged(self.path, schema.FORMAT, reason)
