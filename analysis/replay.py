"""`Replay`: the steps of a run made again from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.dynamics import State, advance, scalar_columns
from dlf_dynamics.run import Run, point_of
from dlf_dynamics.runwriter import Point

_NUMBERS = 2**20
"""Parameters of the states that one call makes, at most."""

_MOST = 1000
"""Steps that one call makes, at most."""

_FAR = 20
"""A new call takes as long as this part of the steps that one call makes at most, roughly."""

FAITHFUL = 1e-4
"""Relative distance from a checkpoint up to which replayed steps speak for those of the run."""


class Stretch(NamedTuple):
    """States of consecutive steps.

    Attributes:
        first: step of the first row.
        params: θ_t.
        previous_update: θ_t - θ_(t-1).
        optimizer: the optimizer's state as a vector.
        loss: F(θ_t, t), on the examples of the step.
        update_cosine: of the updates θ_(t+1) - θ_t and θ_t - θ_(t-1).
    """

    first: int
    params: Float[np.ndarray, "steps params"]
    previous_update: Float[np.ndarray, "steps params"]
    optimizer: Float[np.ndarray, "steps state"]
    loss: Float[np.ndarray, " steps"]
    update_cosine: Float[np.ndarray, " steps"]

    def point(self, step: int) -> Point:
        """The state at a step, as a run file holds it."""
        row = step - self.first
        return Point(step, self.params[row], self.previous_update[row], self.optimizer[row])

    def __len__(self) -> int:
        return len(self.params)


class Replay:
    """Makes recorded steps again, and looks whether they land on the recorded checkpoints.

    On the machine that trained they do bit by bit. Elsewhere rounding may differ and grow; then the
    replay starts anew from each checkpoint, and tells by how much it was off.

    Attributes:
        run: whose steps are made.
        deviation: largest relative difference from a checkpoint, of all that were passed.
        exact: whether all of them were met bit by bit.
        last: last step that the run made, as far as it is known: also one after the last
            checkpoint, where a run was killed or diverged.
    """

    def __init__(self, run: Run) -> None:
        run.require_checkpoints("replay from")
        self.run = run
        self.deviation = 0.0
        self.last = _last_step(run)
        self.length = int(np.clip(_NUMBERS // run.num_params, 4, _MOST))

    @property
    def exact(self) -> bool:
        """Whether all checkpoints that were passed were met bit by bit."""
        return self.deviation == 0.0

    @property
    def note(self) -> str:
        """What is to be known of it, for a report."""
        if self.exact:
            return "replayed steps meet the checkpoints bit by bit"
        return (
            "replayed steps miss the checkpoints by up to "
            f"{self.deviation:.1e} (another machine or version); each starts anew from the last"
        )

    def stretches(self, start: int, stop: int) -> Iterator[Stretch]:
        """States of the steps `start` to `stop` - 1, one stretch after the other.

        Args:
            start: first step.
            stop: the step after the last, at most `last` + 1.
        """
        state = self._before(start)
        while int(state.step) < stop:
            step = int(state.step)
            end = min(step + self.length, stop)
            passed = self._passed(step, end)
            if passed and not self.exact:
                end, passed = passed[0], passed[:1]
            following, stretch = self._made(state, end - step)
            if not self._meets(stretch, following, passed):
                # Once more, only as far as the next checkpoint, and on from what was recorded.
                _, stretch = self._made(state, passed[0] - step)
                following = self.run.state(self._recorded(passed[0]))
            if following.step > start:
                kept = max(start - step, 0)
                yield Stretch(step + kept, *(part[kept:] for part in stretch[1:]))
            state = following

    def points(self, steps: Int[np.ndarray, " steps"]) -> Iterator[Point]:
        """States of some steps, in increasing order.

        Between two that are far apart nothing is made where a checkpoint is.
        """
        recorded = np.searchsorted(self.run.checkpoint_steps, steps, side="right")
        apart = (np.diff(steps) > self.length // _FAR) & (np.diff(recorded) > 0)
        for group in np.split(steps, np.flatnonzero(apart) + 1):
            for stretch in self.stretches(int(group[0]), int(group[-1]) + 1):
                inside = (group >= stretch.first) & (group < stretch.first + len(stretch))
                yield from map(stretch.point, group[inside].tolist())

    def _made(self, state: State, count: int) -> tuple[State, Stretch]:
        counts = (np.arange(self.length) < count).astype(np.int32)
        following, snapshots, rows = advance(self.run.dynamics, state, counts, capacity=1)
        scalars = scalar_columns(np.asarray(rows)[:, 0])
        vectors = snapshots.params, snapshots.previous_update, snapshots.optimizer
        parts = (*vectors, scalars["loss"], scalars["update_cosine"])
        return following, Stretch(int(state.step), *(np.asarray(part)[:count] for part in parts))

    def _before(self, step: int) -> State:
        """The last recorded state at or before a step."""
        index = int(np.searchsorted(self.run.checkpoint_steps, step, side="right")) - 1
        return self.run.state(self._recorded(int(self.run.checkpoint_steps[index])))

    def _recorded(self, step: int) -> Point:
        (point,) = self._all_recorded([step])
        return point

    def _all_recorded(self, steps: list[int]) -> list[Point]:
        """Checkpoints, which are read together: to open the file takes longer than to read one."""
        if not steps:
            return []
        indices = np.searchsorted(self.run.checkpoint_steps, steps)
        return next(iter(self.run.points(indices, len(indices))))

    def _passed(self, step: int, end: int) -> list[int]:
        """Recorded steps after `step`, up to `end`."""
        recorded = self.run.checkpoint_steps
        return recorded[(recorded > step) & (recorded <= end)].tolist()

    def _meets(self, stretch: Stretch, following: State, passed: list[int]) -> bool:
        """Whether the recorded parameters were met, as far as they should be."""
        missed = 0.0
        for step, point in zip(passed, self._all_recorded(passed), strict=True):
            recorded = point.params
            made = (
                point_of(following).params
                if step == stretch.first + len(stretch)
                else stretch.point(step).params
            )
            if made.tobytes() != recorded.tobytes():
                norm = float(np.linalg.norm(recorded)) or 1.0
                missed = float(np.linalg.norm(made - recorded)) / norm
                missed = missed if np.isfinite(missed) else float("inf")
                self.deviation = max(self.deviation, missed)
                break
        return missed == 0.0


def _last_step(run: Run) -> int:
    """The last checkpoint, or a later step whose row was recorded; none beyond a failed loss."""
    last = int(run.checkpoint_steps[-1]) if len(run.checkpoint_steps) else 0
    later = run.steps > last
    if not np.any(later):
        return last
    failed = np.flatnonzero(later & ~np.isfinite(run.scalars["loss"]))
    if not len(failed):
        return int(run.steps[-1])
    # Without any recorded loss it is not known where a run that diverged failed.
    unknown = not np.any(np.isfinite(run.scalars["loss"]))
    if unknown:
        return last if run.status == "diverged" else int(run.steps[-1])
    return int(run.steps[failed[0]])
