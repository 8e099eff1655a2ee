"""The curvature at single steps: locates crossings of the threshold, fills gaps."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

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
        vector: top eigenvector, of unit length.
        value: its eigenvalue.
        converged: whether the eigenvalue is certified.
        offset: θ_t minus the centre; on an orbit of period 2 half the difference of the two states.
    """

    params: Float[np.ndarray, " params"]
    vector: Float[np.ndarray, " params"]
    value: float
    converged: bool
    offset: Float[np.ndarray, " params"]


def centre_of(replay: Replay, solver: Solver, step: int) -> Centre:
    """The centre of a step, from the replayed run."""
    (stretch,) = replay.stretches(step, step + 1)
    curvature = curvatures(replay.run, solver, [stretch.point(step)])
    iterate, centre = map(
        np.asarray, both_points(replay.run.dynamics, replay.run.state(stretch.point(step)))
    )
    return Centre(
        params=centre,
        vector=curvature.vectors[0],
        value=float(curvature.values[0]),
        converged=bool(curvature.converged[0]),
        offset=iterate - centre,
    )


def look_at(replay: Replay, solver: Solver, steps: Int[np.ndarray, " steps"]) -> Curvatures:
    """The curvature at the centres of some replayed steps, in increasing order.

    Where an interval does not clear the threshold, a tighter tolerance is tried. Eigenvectors are
    left out.
    """
    looks = _seen(replay, solver, steps)
    undecided = _undecided(looks, run_threshold(replay.run).at(steps))
    if not np.any(undecided):
        return looks
    closer = _seen(replay, solver.tightened(replay.run), steps[undecided])
    width = lambda each: np.where(each.converged, np.diff(each.intervals)[:, 0], np.inf)  # noqa: E731
    narrower = width(closer) < width(looks)[undecided]
    indices = np.flatnonzero(undecided)[narrower]

    def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        old = np.array(old)
        old[indices] = new[narrower]
        return old

    return Curvatures(*map(put, looks, closer))


def _undecided(
    looks: Curvatures | Motion, thresholds: Float[np.ndarray, " looked"]
) -> Bool[np.ndarray, " looked"]:
    """Whether a value is known, but not on which side of the threshold it is."""
    side = sides(looks.intervals, looks.converged, thresholds)
    return (side == 0) & np.isfinite(looks.values)


def _seen(replay: Replay, solver: Solver, steps: Int[np.ndarray, " steps"]) -> Curvatures:
    parts, states = [], replay.points(steps)
    while some := list(itertools.islice(states, replay.length)):
        curvature = curvatures(replay.run, solver, some)
        parts.append(curvature._replace(vectors=curvature.vectors[:, :0]))
    return Curvatures(*map(np.concatenate, zip(*parts, strict=True)))


def thresholds_of(replay: Replay, motion: Motion) -> Float[np.ndarray, " looked"]:
    """Thresholds of the run's optimizer at the sampled steps."""
    return run_threshold(replay.run).at(motion.looked_at)


def crossings_of(motion: Motion, thresholds: Float[np.ndarray, " looked"]) -> list[Crossing]:
    """Crossings of the threshold at the centres, between sampled steps.

    Two crossings between neighbouring sampled steps are not seen.
    """
    side = sides(motion.intervals, motion.converged, thresholds)
    return find_crossings(motion.looked_at, motion.values, side, thresholds, "centre")


def locate_crossings(replay: Replay, solver: Solver, motion: Motion) -> Motion:
    """The motion with the curvature at every step between sampled steps on different sides.

    So each crossing is located between two successive steps, where the intervals allow it. Sampled
    steps on neither side are first solved to a tighter tolerance.

    Args:
        replay: replay of the run.
        solver: solver for the largest eigenvalue.
        motion: motion with the curvature at some steps.
    """
    limits = thresholds_of(replay, motion)
    undecided = _undecided(motion, limits)
    if np.any(undecided):
        steps = motion.looked_at[undecided]
        motion = looked_again(motion, steps, look_at(replay, solver, steps))
    between = [np.arange(c.step_before + 1, c.step_after) for c in crossings_of(motion, limits)]
    steps = np.setdiff1d(np.concatenate([np.zeros(0, int), *between]), motion.looked_at)
    if len(steps):
        motion = looked_further(motion, steps, look_at(replay, solver, steps))
    return motion


def not_looked_at(motion: Motion) -> Int[np.ndarray, " steps"]:
    """The steps of the motion whose centres were not sampled; step 0 has no centre."""
    return np.setdiff1d(motion.steps[motion.steps > 0], motion.looked_at)
