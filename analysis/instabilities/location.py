"""Looks at the curvature of single steps: crossings of the threshold located, gaps filled."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.instabilities.oscillation import (
    Curvatures,
    Motion,
    curvatures,
    looked_again,
    looked_further,
)
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import Crossing, find_crossings, sides
from dlf_dynamics.analysis.spectra.points import both_points
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver


class Centre(NamedTuple):
    """The centre of three consecutive iterates, and the largest eigenvalue there.

    Attributes:
        params: ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1).
        vector: top eigenvector, unit.
        value: its eigenvalue.
        converged: whether that is to be relied on.
        offset: of the iterate θ_t from it; on an orbit of period 2 half the difference of the two
            states.
    """

    params: Float[np.ndarray, " params"]
    vector: Float[np.ndarray, " params"]
    value: float
    converged: bool
    offset: Float[np.ndarray, " params"]


def centre_of(replay: Replay, solver: Solver, step: int) -> Centre:
    """The centre of a step, which is replayed."""
    (stretch,) = replay.stretches(step, step + 1)
    found = curvatures(replay.run, solver, [stretch.point(step)])
    iterate, centre = map(
        np.asarray, both_points(replay.run.dynamics, replay.run.state(stretch.point(step)))
    )
    return Centre(
        params=centre,
        vector=found.vectors[0],
        value=float(found.values[0]),
        converged=bool(found.converged[0]),
        offset=iterate - centre,
    )


def look_at(replay: Replay, solver: Solver, steps: Int[np.ndarray, " steps"]) -> Curvatures:
    """The curvature at the centres of some steps, in increasing order, which are replayed.

    Where an interval does not clear the threshold, it is looked at closer. Eigenvectors are left
    out.
    """
    found = _seen(replay, solver, steps)
    limits = run_threshold(replay.run).at(steps)
    undecided = sides(found.intervals, found.converged, limits) == 0
    undecided &= np.isfinite(found.values)
    if not np.any(undecided):
        return found
    closer = _seen(replay, solver.tightened(replay.run), steps[undecided])
    width = lambda looks: np.where(looks.converged, np.diff(looks.intervals)[:, 0], np.inf)  # noqa: E731
    narrower = width(closer) < width(found)[undecided]
    rows = np.flatnonzero(undecided)[narrower]

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        old = np.array(old)
        old[rows] = new[narrower]
        return old

    return Curvatures(*map(put, found, closer))


def _seen(replay: Replay, solver: Solver, steps: Int[np.ndarray, " steps"]) -> Curvatures:
    parts, states = [], replay.points(steps)
    while some := list(itertools.islice(states, replay.length)):
        found = curvatures(replay.run, solver, some)
        parts.append(found._replace(vectors=found.vectors[:, :0]))
    return Curvatures(*map(np.concatenate, zip(*parts, strict=True)))


def thresholds_of(replay: Replay, motion: Motion) -> Float[np.ndarray, " looked"]:
    """Of the run's optimizer at the steps that were looked at."""
    return run_threshold(replay.run).at(motion.looked_at)


def crossings_of(motion: Motion, thresholds: Float[np.ndarray, " looked"]) -> list[Crossing]:
    """Changes of side at the centres, between steps that were looked at.

    What changes side and back between two of them is not seen.
    """
    side = sides(motion.intervals, motion.converged, thresholds)
    return find_crossings(motion.looked_at, motion.values, side, thresholds, "centre")


def locate_crossings(replay: Replay, solver: Solver, motion: Motion) -> Motion:
    """The motion, looked at step by step wherever the centre changes side.

    So each crossing is between two successive steps, where the intervals allow. Steps that were on
    neither side are looked at closer first.

    Args:
        replay: of the run.
        solver: for the largest eigenvalue.
        motion: the curvature at some steps.
    """
    limits = thresholds_of(replay, motion)
    undecided = sides(motion.intervals, motion.converged, limits) == 0
    undecided &= np.isfinite(motion.values)
    if np.any(undecided):
        steps = motion.looked_at[undecided]
        motion = looked_again(motion, steps, look_at(replay, solver, steps))
    between = [np.arange(c.step_before + 1, c.step_after) for c in crossings_of(motion, limits)]
    steps = np.setdiff1d(np.concatenate([np.zeros(0, int), *between]), motion.looked_at)
    if len(steps):
        motion = looked_further(motion, steps, look_at(replay, solver, steps))
    return motion


def not_looked_at(motion: Motion) -> Int[np.ndarray, " steps"]:
    """The steps of the motion whose centres were not looked at; step 0 has none."""
    return np.setdiff1d(motion.steps[motion.steps > 0], motion.looked_at)
