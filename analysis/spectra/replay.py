"""`Replay`: the steps of a run made again from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.devices import filled, map_over_devices
from dlf_dynamics.dynamics import Dynamics, Snapshots, State, scalar_columns
from dlf_dynamics.dynamics import stretch as make_steps
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.run import Run

_NUMBERS = 2**20
"""Numbers in the parameters of all states that one call makes, at most."""

_MOST = 1000
"""Steps that one call makes, at most, on all devices together."""

_FAR = 20
"""The overhead of a call is about 1/20 of the time of the most steps that it makes."""

FAITHFUL = 1e-4
"""Relative distance from a checkpoint up to which replayed steps stand for those of the run."""


class Stretch(NamedTuple):
    """States of consecutive steps.

    Attributes:
        first: step of the first row.
        params: θ_t.
        previous_update: θ_t - θ_(t-1).
        optimizer: the optimizer's state as a vector.
        loss: F(θ_t, t), on the examples of the step.
        update_cosine: cosine between the updates θ_(t+1) - θ_t and θ_t - θ_(t-1).
    """

    first: int
    params: Float[np.ndarray, "steps params"]
    previous_update: Float[np.ndarray, "steps params"]
    optimizer: Float[np.ndarray, "steps state"]
    loss: Float[np.ndarray, " steps"]
    update_cosine: Float[np.ndarray, " steps"]

    def point(self, step: int) -> FlatState:
        """The state at a step, as a run file holds it."""
        row = step - self.first
        return FlatState(step, self.params[row], self.previous_update[row], self.optimizer[row])

    def __len__(self) -> int:
        return len(self.params)


class Replay:
    """Makes the steps of a run again, and checks whether they meet the recorded checkpoints.

    Each device starts from a different checkpoint. On the machine that trained, the steps meet the
    checkpoints bit for bit. Elsewhere rounding may differ and grow; then the replay starts anew
    from each checkpoint, and says by how much it was off.

    Attributes:
        run: run whose steps are made.
        deviation: largest relative difference from a checkpoint, among all that were passed.
        exact: whether all of them were met bit for bit.
        last: last step that the run made, as far as known; after the last checkpoint where a run
            was killed or diverged.
    """

    def __init__(self, run: Run) -> None:
        run.require_checkpoints("replay from")
        self.run = run
        self.deviation = 0.0
        self.last = _last_step(run)
        # The same program that trained: what it computes besides may change the rounding of a step.
        self._dynamics = replace(run.dynamics, edge_every=run.edge_every)
        self.length = int(np.clip(_NUMBERS // run.num_params, 4, _MOST))

    @property
    def exact(self) -> bool:
        """Whether all checkpoints that were passed were met bit for bit."""
        return self.deviation == 0.0

    @property
    def note(self) -> str:
        """How closely the replay met the checkpoints, for a report."""
        if self.exact:
            return "replayed steps meet the checkpoints bit for bit"
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
            for following, made, passed in self._made(self._planned(state, stop)):
                if not self._meets(made, following, passed):
                    # Again, only as far as the next checkpoint; then on from the recorded state.
                    again = [(state, passed[0] - made.first)]
                    ((_, made, _),) = self._made(again)
                    following = self.run.state(self._recorded(passed[0]))
                if following.step > start:
                    kept = max(start - made.first, 0)
                    yield Stretch(made.first + kept, *(part[kept:] for part in made[1:]))
                state = following
                if not self.exact:
                    break

    def points(self, steps: Int[np.ndarray, " steps"]) -> Iterator[FlatState]:
        """States of some steps, in increasing order.

        Between steps that are far apart, the replay jumps to the checkpoint before the later one.
        """
        recorded = np.searchsorted(self.run.checkpoint_steps, steps, side="right")
        apart = (np.diff(steps) > self.length // _FAR) & (np.diff(recorded) > 0)
        for group in np.split(steps, np.flatnonzero(apart) + 1):
            for stretch in self.stretches(int(group[0]), int(group[-1]) + 1):
                inside = (group >= stretch.first) & (group < stretch.first + len(stretch))
                yield from map(stretch.point, group[inside].tolist())

    def _planned(self, state: State, stop: int) -> list[tuple[State, int]]:
        """States to continue from in parallel, one on each device, with the number of steps.

        They are this state and checkpoints after it, each about as far from the one before as a
        device gets in a call.
        """
        starts, end = [int(state.step)], min(int(state.step) + self._most, stop)
        passed = self._passed(starts[0], end)
        if not self.exact:
            return [(state, (passed or [end])[0] - starts[0])]
        while end < stop and passed and len(starts) < jax.local_device_count():
            starts.append(passed[-1])
            end = min(starts[-1] + self._most, stop)
            passed = self._passed(starts[-1], end)
        states = [state, *map(self.run.state, self._all_recorded(starts[1:]))]
        return list(zip(states, np.diff([*starts, end]).tolist(), strict=True))

    def _made(self, plan: list[tuple[State, int]]) -> list[tuple[State, Stretch, list[int]]]:
        """For each state: the state after its steps, the states before, the checkpoints passed."""
        begins = filled(plan, jax.local_device_count())
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(state for state, _ in begins))
        counts = np.array([count for _, count in begins], np.int32)
        made_steps = _advance(self._dynamics, states, counts, most=self._most)
        following, snapshots, scalars_of_steps = jax.tree.map(np.asarray, made_steps)
        vectors = snapshots.params, snapshots.previous_update, snapshots.optimizer
        made = []
        for device, (state, count) in enumerate(plan):
            scalars = scalar_columns(scalars_of_steps[device, :, 0])
            columns = *(part[device] for part in vectors), scalars["loss"], scalars["update_cosine"]
            stretch = Stretch(int(state.step), *(column[:count] for column in columns))
            after = jax.tree.map(lambda leaf, device=device: jnp.asarray(leaf[device]), following)
            passed = self._passed(stretch.first, stretch.first + count)
            made.append((after, stretch, passed))
        return made

    @property
    def _most(self) -> int:
        """Largest number of steps that a device makes in one call."""
        return -(-self.length // jax.local_device_count())

    def _before(self, step: int) -> State:
        """The last recorded state at or before a step."""
        index = int(np.searchsorted(self.run.checkpoint_steps, step, side="right")) - 1
        return self.run.state(self._recorded(int(self.run.checkpoint_steps[index])))

    def _recorded(self, step: int) -> FlatState:
        (point,) = self._all_recorded([step])
        return point

    def _all_recorded(self, steps: list[int]) -> list[FlatState]:
        """Checkpoints, read together, as opening the file takes longer than reading one."""
        if not steps:
            return []
        indices = np.searchsorted(self.run.checkpoint_steps, steps)
        return next(iter(self.run.points(indices, len(indices))))

    def _passed(self, step: int, end: int) -> list[int]:
        """Recorded steps after `step`, up to `end`."""
        recorded = self.run.checkpoint_steps
        return recorded[(recorded > step) & (recorded <= end)].tolist()

    def _meets(self, stretch: Stretch, following: State, passed: list[int]) -> bool:
        """Whether the recorded parameters were met bit for bit."""
        missed = 0.0
        for step, point in zip(passed, self._all_recorded(passed), strict=True):
            recorded = point.params
            made = (
                self.run.dynamics.flat(following).params
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
    """The last checkpoint, or a later recorded step, up to the first whose loss failed."""
    last = int(run.checkpoint_steps[-1]) if len(run.checkpoint_steps) else 0
    later = run.steps > last
    if not np.any(later):
        return last
    failed = np.flatnonzero(later & ~np.isfinite(run.scalars["loss"]))
    if not len(failed):
        return int(run.steps[-1])
    # Without recorded losses it is not known at which step a run diverged.
    unknown = not np.any(np.isfinite(run.scalars["loss"]))
    if unknown:
        return last if run.status == "diverged" else int(run.steps[-1])
    return int(run.steps[failed[0]])


@partial(jax.jit, static_argnames="most")
def _advance(
    dynamics: Dynamics, states: State, counts: Int[Array, " devices"], *, most: int
) -> tuple[State, Snapshots, Float[Array, "devices most 1 scalars"]]:
    """`dynamics.stretch` from a state on each device, for a number of steps; no validation."""

    def make(begin: tuple[State, Array]) -> tuple[State, Snapshots, Array]:
        state, count = begin
        one_by_one = (jnp.arange(most) < count).astype(jnp.int32)
        return make_steps(dynamics, state, one_by_one, jnp.zeros(most, bool), capacity=1)

    return map_over_devices(make, (states, counts))
