"""The directions above the threshold when an oscillation begins, each followed onwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.instabilities.location import Centre
from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.linalg.modes import overlaps
from dlf_dynamics.analysis.linalg.ritz import Ends
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import sides
from dlf_dynamics.analysis.spectra.points import CENTRE
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.segments import as_source, solve_segment
from dlf_dynamics.analysis.spectra.solver import MOST, Solver

_FEWEST = 6
"""Eigenvalues at a centre at least; twice as many where all are above the threshold.

Three more take a third more products, and a program for another number takes seconds to compile.
"""

_SAME = 0.5
"""Squared overlap above which two eigenvectors at different steps are the same mode."""


@dataclass(frozen=True)
class UnstableDirection:
    """A direction, followed from the onset of an oscillation to where its size is measured.

    The first of each oscillation is the top eigenvector at the onset, above the threshold or not;
    the others are those that were certainly above it.

    Attributes:
        onset: onset of the oscillation.
        rank: rank of its eigenvalue at the centre of the onset, 1 for the largest.
        sharpness: its eigenvalue there.
        low: lower end of the interval of the eigenvalue.
        high: upper end of the interval of the eigenvalue.
        above: whether it was certainly above the threshold there.
        settled: step at which the size of the oscillation is measured.
        amplitude: |projection| of θ_t - c_t at that step on the eigenvector that the direction has
            become; NaN where it was lost on the way.
        alignment: the amplitude as a fraction of ‖θ_t - c_t‖.
    """

    onset: int
    rank: int
    sharpness: float
    low: float
    high: float
    above: bool
    settled: int
    amplitude: float
    alignment: float


def unstable_directions(
    replay: Replay, solver: Solver, onset: int, settled: Centre, step: int
) -> list[UnstableDirection]:
    """The directions of an oscillation, largest eigenvalue first.

    An eigenvector is followed by its overlap with those of a later step, through steps in between
    where that is not clear; it is lost where it is not clear from one step to the next.

    Args:
        replay: replay of the run.
        solver: solver for the largest eigenvalue.
        onset: onset of the oscillation.
        settled: centre of the step at which its size is measured.
        step: number of that step.
    """
    looks = _Looks(replay, solver)
    at_onset = looks.at(onset)
    if not at_onset.converged[0]:
        return []
    threshold = np.repeat(run_threshold(replay.run).at(np.array([onset])), len(at_onset.values))
    above = sides(at_onset.intervals, at_onset.converged, threshold) > 0
    above = np.logical_and.accumulate(above)  # an undecided one hides those below it
    chosen = np.union1d([0], np.flatnonzero(above))
    while looks.fewest < len(chosen) + 2:
        looks.fewest *= 2
    size = float(np.linalg.norm(settled.offset))
    directions = []
    for rank in chosen.tolist():
        vector = looks.followed(onset, at_onset.vectors[rank], step)
        projection = np.nan if vector is None else abs(float(vector @ settled.offset))
        directions.append(
            UnstableDirection(
                onset=onset,
                rank=rank + 1,
                sharpness=float(at_onset.values[rank]),
                low=float(at_onset.intervals[rank, 0]),
                high=float(at_onset.intervals[rank, 1]),
                above=bool(above[rank]),
                settled=step,
                amplitude=projection,
                alignment=projection / size if size else np.nan,
            )
        )
    return directions


@dataclass(frozen=True)
class _Look:
    """The largest eigenvalues at a centre, and whether each is certified."""

    values: Float[np.ndarray, " k"]
    intervals: Float[np.ndarray, "k 2"]
    converged: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "k params"]


class _Looks:
    """The eigenvalues at centres, each computed once."""

    def __init__(self, replay: Replay, solver: Solver) -> None:
        self.replay, self.solver, self.fewest = replay, solver, _FEWEST
        self.known: dict[int, _Look] = {}

    def at(self, step: int) -> _Look:
        """The largest eigenvalues at a centre, down to one below the threshold if there is one."""
        if step not in self.known:
            threshold = run_threshold(self.replay.run).at(np.array([step]))[0]
            self.known[step] = self._solved(step)
            while (
                self.known[step].values[-1] > threshold
                and len(self.known[step].values) == min(self.fewest, self.solver.size)
                and self.fewest < min(MOST, self.solver.size)
            ):
                self.fewest *= 2
                self.known[step] = self._solved(step)
        return self.known[step]

    def _solved(self, step: int) -> _Look:
        run, size = self.replay.run, self.solver.size
        ends = Ends(min(self.fewest, size), 0)
        products = self.solver.max_matvecs * ends.top
        goal = self.solver.goal._replace(ends=ends)
        solver = self.solver._replace(goal=goal, max_matvecs=products)
        (point,) = self.replay.points(np.array([step]))
        source = as_source([point])
        arrays = solve_segment(run, solver, source, points=CENTRE, keep_vectors=True)
        columns = (arrays[n][0, 0] for n in ("eigenvalues", "intervals", "status", "eigenvectors"))
        values, intervals, status, vectors = columns
        return _Look(values, intervals, status == CONVERGED, vectors)

    def followed(
        self, start: int, vector: Float[np.ndarray, " params"], stop: int
    ) -> Float[np.ndarray, " params"] | None:
        """The eigenvector at a step that one of an earlier step has become; none if it was lost."""
        if start == stop:
            return vector
        there = self.at(stop).vectors
        matched = overlaps(vector[None], there)[:, 0]
        best = int(np.argmax(matched))
        if matched[best] > _SAME:
            return there[best]
        if stop - start == 1:
            return None
        middle = (start + stop) // 2
        between = self.followed(start, vector, middle)
        return None if between is None else self.followed(middle, between, stop)
