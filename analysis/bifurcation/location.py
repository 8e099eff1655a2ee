"""Crossings of the threshold, located to the step by replaying the steps around them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.motion import Motion, curvatures
from dlf_dynamics.analysis.events import Crossing, find_crossings, sides
from dlf_dynamics.analysis.replay import Replay
from dlf_dynamics.analysis.stability import instability_threshold
from dlf_dynamics.analysis.trajectory import Solver, both_points


class Centre(NamedTuple):
    """The centre of three consecutive iterates, and the largest eigenvalue there.

    Attributes:
        params: ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1).
        vector: top eigenvector, unit.
        value: its eigenvalue.
        converged: whether that is to be relied on.
    """

    params: Float[np.ndarray, " params"]
    vector: Float[np.ndarray, " params"]
    value: float
    converged: bool


def centre_of(replay: Replay, solver: Solver, step: int) -> Centre:
    """The centre of a step, which is replayed."""
    (stretch,) = replay.stretches(step, step + 1)
    found = curvatures(replay.run, solver, stretch, [step])
    params = both_points(replay.run.dynamics, replay.run.state(stretch.point(step)))[1]
    return Centre(
        np.asarray(params), found.vectors[0], float(found.values[0]), bool(found.converged[0])
    )


def locate_crossings(replay: Replay, solver: Solver, motion: Motion) -> list[Crossing]:
    """Every crossing at the centres, between two successive steps where the intervals allow.

    Between two steps that were looked at on different sides all steps are made again and looked at.
    What changes side and back between two steps that were looked at is not seen.

    Args:
        replay: of the run.
        solver: for the largest eigenvalue.
        motion: the curvature at some steps.
    """
    limits = instability_threshold(replay.run.dynamics.optimizer, motion.looked_at)
    side = sides(motion.intervals, motion.converged, limits)
    rough = find_crossings(motion.looked_at, motion.values, side, limits, "centre")
    found = []
    for crossing in rough:
        finer = _located(replay, solver, crossing)
        found += finer or [crossing]
    return found


def _located(replay: Replay, solver: Solver, crossing: Crossing) -> list[Crossing]:
    """All changes of side from the one step to the other, looked at step by step."""
    steps, parts = np.arange(crossing.step_before, crossing.step_after + 1), []
    for stretch in replay.stretches(crossing.step_before, crossing.step_after + 1):
        inside = list(range(stretch.first, stretch.first + len(stretch)))
        parts.append(curvatures(replay.run, solver, stretch, inside))
    values, intervals, converged = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("values", "intervals", "converged")
    )
    limits = instability_threshold(replay.run.dynamics.optimizer, steps)
    side = sides(intervals, converged, limits)
    return find_crossings(steps, values, side, limits, "centre")
