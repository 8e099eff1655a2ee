"""`RecordedRun`: a run that `Recorder` recorded, with the problem that the user gives again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.config import RunConfig
from dlf_dynamics.dynamics import Dynamics
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import text
from dlf_dynamics.hyperparameters import (
    count_places,
    hyperparameter_places,
    hyperparameters_in,
)
from dlf_dynamics.layout import Layout
from dlf_dynamics.loop import Recording, Setup
from dlf_dynamics.run import Run
from dlf_dynamics.runreader import read_settings


class OptimizerNumbers(NamedTuple):
    """What the recorded states of an optimizer have that belongs to no parameter.

    Attributes:
        own: hyperparameters that the optimizer of the problem starts with, by name.
        hyperparameters: those recorded, at each checkpoint.
        counts: of updates.
    """

    own: dict[str, float]
    hyperparameters: dict[str, Float[np.ndarray, " checkpoints"]]
    counts: Int[np.ndarray, "checkpoints counts"]


class RecordedRun(Run):
    """A run of a custom training loop.

    Attributes:
        recording: what `Recorder` was told of the loop.
    """

    def __init__(self, path: Path, setup: Setup | None = None) -> None:
        self._setup = setup
        self._makes_updates = setup is None or setup.makes_updates
        super().__init__(path)

    def _told(self, file: h5py.File) -> None:
        self.recording = Recording.from_json(text(file, "recording"))
        self._settings = read_settings(file)

    @property
    def config(self) -> RunConfig:
        """There is none.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{self.path} was recorded in a custom training loop; only a run of `dlf-dynamics "
            "train` can do this"
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its author wanted kept."""
        return self._settings

    @property
    def optimizer_name(self) -> str:
        """For labels."""
        return self.recording.optimizer

    @property
    def own_updates(self) -> bool:
        """Whether any update can be made again.

        Not where batches or states are not known, nor where the optimizer wants more than these.
        """
        return self.recording.own_updates and self._makes_updates

    @property
    def edge_every(self) -> int:
        """None is evaluated where the loop's steps are made."""
        return 0

    @property
    def subject(self) -> str:
        """Number of parameters and optimizer."""
        batches = ", full batch" if self.recording.full_batch else ", mini-batches"
        how = f"{self.optimizer_name}{batches if self.recording.has_optimizer else ''}"
        return f"{self.num_params} parameters; {how}; {self.dtype}"

    @property
    def layout(self) -> Layout:
        """The form of the parameters."""
        return self._required().layout

    @cached_property
    def optimizer_numbers(self) -> OptimizerNumbers:
        """Hyperparameters and counts in the states that were recorded."""
        setup = self._required()
        assert setup.optimizer is not None
        init, blank = setup.optimizer.init, jax.tree.map(jnp.zeros_like, setup.params)
        names, counts = hyperparameter_places(init, blank), count_places(init, blank)
        columns = self._optimizer_columns([*names.values(), *counts])
        own = hyperparameters_in(init, blank, init(blank))
        return OptimizerNumbers(
            dict(zip(names, own, strict=True)),
            dict(zip(names, columns.T, strict=False)),
            columns[:, len(names) :].astype(int),
        )

    def _dynamics(self, layout: Layout) -> Dynamics:
        return self._required().dynamics(self.recording, layout)

    def _required(self) -> Setup:
        """Problem, optimizer and parameters, which the file does not hold."""
        if self._setup is None:
            raise ConfigError(
                f"{self.path} was recorded in a custom training loop, and does not hold its model; "
                "give it with --problem module:function "
                "(open_run(path, (problem, optimizer, params)))"
            )
        return self._setup
