"""`RecordedRun`: a run that `Recorder` recorded, with the problem provided by the user."""

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
    """Numbers in the recorded states of an optimizer that belong to no parameter.

    Attributes:
        own: initial hyperparameters of the problem's optimizer, by name.
        hyperparameters: recorded hyperparameters at each checkpoint.
        counts: recorded counts of updates.
    """

    own: dict[str, float]
    hyperparameters: dict[str, Float[np.ndarray, " checkpoints"]]
    counts: Int[np.ndarray, "checkpoints counts"]


class RecordedRun(Run):
    """A run of a custom training loop.

    Attributes:
        recording: what `Recorder` was told about the loop.
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
        """Not available: the loop has its own configuration.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{self.path} was recorded in a custom training loop; only a run of `dlf-dynamics "
            "train` can do this"
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """The configuration that the author of the loop recorded."""
        return self._settings

    @property
    def optimizer_name(self) -> str:
        """Name of the optimizer, for labels."""
        return self.recording.optimizer

    @property
    def own_updates(self) -> bool:
        """Whether any update can be replayed.

        It cannot if batches or states are unknown, or the optimizer needs more than these.
        """
        return self.recording.own_updates and self._makes_updates

    @property
    def edge_every(self) -> int:
        """0: replayed steps of a loop evaluate no realized edge."""
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
        """Hyperparameters and counts in the recorded states."""
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
        """Problem, optimizer and parameters, which the file does not contain."""
        if self._setup is None:
            raise ConfigError(
                f"{self.path} was recorded in a custom training loop, and does not hold its model; "
                "give it with --problem module:function "
                "(open_run(path, (problem, optimizer, params)))"
            )
        return self._setup
