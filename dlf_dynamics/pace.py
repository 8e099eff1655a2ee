"""`Pace`: the loop of training, and how many updates to make in one call of its program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from dlf_dynamics.config import RunConfig
from dlf_dynamics.dynamics import Snapshots, State

_MAX_STRETCH = 1000
"""Updates per call of the compiled program at most."""

MAX_BYTES = 64 * 2**20
"""Size of the states that one call returns at most, where an interval fits in it."""

_STRETCH_SECONDS = 0.25
"""Length of a call that is aimed at."""

_PATIENCE = 2.0
"""Seconds that a call may take where most of them are its own, whatever it makes: else wide
ensembles, whose calls copy the states of all runs, would make one update at a time."""


class Made(NamedTuple):
    """What one call made.

    Attributes:
        step: number of updates made before it.
        counts: updates of each of its intervals.
        state: after the last update.
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
        """Number of updates made after it."""
        return self.step + int(self.counts.sum())

    @property
    def last_row(self) -> np.ndarray:
        """Scalars of the last update."""
        interval = int(np.flatnonzero(self.counts)[-1])
        return self.rows[interval, self.counts[interval] - 1]


Advance = Callable[[State, np.ndarray, np.ndarray, int], tuple[State, Snapshots, jax.Array]]
"""The compiled program, given state, counts, where to validate, and `capacity`."""


class Pace:
    """How many updates to make in one call: few when they are slow, so that Ctrl-C is heard.

    Attributes:
        capacity: updates of an interval at most, which ends at a checkpoint.
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
        """Makes the updates from a step on to the last, as many as fit in one call at a time.

        Args:
            advance: the program.
            state: the state to begin with.
            step: number of updates made before.
            stop: asked before each call.
        """
        while step < self._steps and not stop():
            counts = self.counts(step)
            state, snapshots, rows = advance(state, counts, self.due(step, counts), self.capacity)
            made = Made(step, counts, state, snapshots, np.asarray(rows))
            self.update(made.end)
            yield made
            step = made.end

    def last(self, advance: Advance, state: State, step: int) -> Made:
        """One update beyond the last state, for what it records of that state."""
        counts = self._padded([1])
        _, snapshots, rows = advance(state, counts, counts > 0, self.capacity)
        return Made(step, counts, state, snapshots, np.asarray(rows))

    def counts(self, step: int) -> np.ndarray:
        """Updates of each interval from this step on; none goes past a checkpoint or the end."""
        counts: list[int] = []
        left = min(self._count, self._steps - step)
        while left > 0 and len(counts) < self._intervals:
            counts.append(min(left, self._every - step % self._every, self.capacity))
            step, left = step + counts[-1], left - counts[-1]
        return self._padded(counts)

    def due(self, step: int, counts: np.ndarray) -> np.ndarray:
        """Which of the intervals from this step on begin at a checkpoint."""
        starts = step + np.cumsum(counts) - counts
        return (counts > 0) & (starts % self._every == 0)

    def _padded(self, counts: list[int]) -> np.ndarray:
        return np.array(counts + [0] * (self._intervals - len(counts)), np.int32)

    def update(self, step: int) -> None:
        """Learns from the time since the last call, compilation left out."""
        now = time.monotonic()
        if self._last is not None:
            before, then = self._last
            taken = max(now - then, 1e-6)
            self._shortest = min(self._shortest, taken)
            # Twice what a call of one update takes: half of the time goes into updates.
            aim = max(_STRETCH_SECONDS, min(2 * self._shortest, _PATIENCE))
            fitting = int((step - before) * aim / taken)
            self._count = min(max(fitting, 1), 2 * self._count)
        self._last = step, now
