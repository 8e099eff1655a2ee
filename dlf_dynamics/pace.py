"""`Pace`: the training loop, and how many updates to make in one call of its compiled program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from dlf_dynamics.config import RunConfig
from dlf_dynamics.dynamics import Snapshots, State

_MAX_STRETCH = 1000
"""Largest number of updates per call of the compiled program."""

MAX_BYTES = 64 * 2**20
"""Largest size of the states returned by one call, if at least one interval fits into it."""

_STRETCH_SECONDS = 0.25
"""Target duration of a call."""

_PATIENCE = 2.0
"""Largest target duration of a call, in seconds, used if most of the time is overhead: otherwise
wide ensembles, whose calls copy the states of all runs, would make one update at a time."""


class Made(NamedTuple):
    """The result of one call.

    Attributes:
        step: number of updates made before the call.
        counts: number of updates in each interval.
        state: state after the last update.
        snapshots: states before each interval; see `dynamics.stretch`.
        rows: scalars of each update.
    """

    step: int
    counts: np.ndarray
    state: State
    snapshots: Snapshots
    rows: np.ndarray

    @property
    def end(self) -> int:
        """Number of updates made after the call."""
        return self.step + int(self.counts.sum())

    @property
    def last_row(self) -> np.ndarray:
        """Scalars of the last update."""
        interval = int(np.flatnonzero(self.counts)[-1])
        return self.rows[interval, self.counts[interval] - 1]


Advance = Callable[[State, np.ndarray, np.ndarray, int], tuple[State, Snapshots, jax.Array]]
"""The compiled program, a function of state, counts, intervals to validate, and capacity."""


class Pace:
    """Chooses the number of updates per call: few if they are slow, so that Ctrl-C takes effect.

    Attributes:
        capacity: largest number of updates in an interval; intervals end at checkpoints.
    """

    def __init__(self, config: RunConfig, state: State, runs: int = 1) -> None:
        self.capacity = min(config.checkpoint_every, _MAX_STRETCH)
        self._every, self._steps = config.checkpoint_every, config.steps
        state_bytes = runs * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        fitting = min(_MAX_STRETCH // self.capacity, MAX_BYTES // state_bytes)
        self._intervals = max(fitting, 1)
        self._count = 1
        self._last: tuple[int, float] | None = None
        self._shortest = float("inf")

    def stretches(
        self, advance: Advance, state: State, step: int, stop: Callable[[], bool]
    ) -> Iterator[Made]:
        """Makes the updates from a step to the last, as many per call as fit.

        Args:
            advance: the compiled program.
            state: initial state.
            step: number of updates made before.
            stop: called before each call; returns whether to stop.
        """
        while step < self._steps and not stop():
            counts = self.counts(step)
            state, snapshots, rows = advance(state, counts, self.due(step, counts), self.capacity)
            made = Made(step, counts, state, snapshots, np.asarray(rows))
            self.update(made.end)
            yield made
            step = made.end

    def last(self, advance: Advance, state: State, step: int) -> Made:
        """One more update after the last state, whose row describes that state."""
        counts = self._padded([1])
        _, snapshots, rows = advance(state, counts, counts > 0, self.capacity)
        return Made(step, counts, state, snapshots, np.asarray(rows))

    def counts(self, step: int) -> np.ndarray:
        """Updates of each interval from this step on; none passes a checkpoint or the end."""
        counts: list[int] = []
        left = min(self._count, self._steps - step)
        while left > 0 and len(counts) < self._intervals:
            counts.append(min(left, self._every - step % self._every, self.capacity))
            step, left = step + counts[-1], left - counts[-1]
        return self._padded(counts)

    def due(self, step: int, counts: np.ndarray) -> np.ndarray:
        """Whether each interval from this step on begins at a checkpoint."""
        starts = step + np.cumsum(counts) - counts
        return (counts > 0) & (starts % self._every == 0)

    def _padded(self, counts: list[int]) -> np.ndarray:
        return np.array(counts + [0] * (self._intervals - len(counts)), np.int32)

    def update(self, step: int) -> None:
        """Adapts to the time since the last call; the first call, which compiles, is ignored."""
        now = time.monotonic()
        if self._last is not None:
            before, then = self._last
            taken = max(now - then, 1e-6)
            self._shortest = min(self._shortest, taken)
            # Twice the duration of a call with one update: half of the time goes into updates.
            aim = max(_STRETCH_SECONDS, min(2 * self._shortest, _PATIENCE))
            fitting = int((step - before) * aim / taken)
            self._count = min(max(fitting, 1), 2 * self._count)
        self._last = step, now
