"""`Pace`: how many updates to make in one call of the compiled program."""

from __future__ import annotations

import time

import jax
import numpy as np

from dlf_dynamics.config import RunConfig
from dlf_dynamics.dynamics import State

MAX_STRETCH = 1000
"""Updates per call of the compiled program at most."""

MAX_BYTES = 64 * 2**20
"""Size of the states that one call returns at most, where an interval fits in it."""

_STRETCH_SECONDS = 0.25


class Pace:
    """How many updates to make in one call: few when they are slow, so that Ctrl-C is heard.

    Attributes:
        capacity: updates of an interval at most, which ends at a checkpoint.
    """

    def __init__(self, config: RunConfig, state: State, runs: int = 1) -> None:
        self.capacity = min(config.checkpoint_every, MAX_STRETCH)
        self._every, self._steps = config.checkpoint_every, config.steps
        state_bytes = runs * sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        fitting = min(MAX_STRETCH // self.capacity, MAX_BYTES // state_bytes)
        self._intervals = max(fitting, 1)
        self._count = 1
        self._last: tuple[int, float] | None = None

    def single(self) -> np.ndarray:
        """Counts of one update."""
        return self._padded([1])

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
            fitting = int((step - before) * _STRETCH_SECONDS / max(now - then, 1e-6))
            self._count = min(max(fitting, 1), 2 * self._count)
        self._last = step, now
