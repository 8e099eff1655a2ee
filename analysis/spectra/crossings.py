"""Crossings of the threshold along a run, refined where an interval does not clear it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.eigenvalues import Eigenvalues, HessianSpectrum
from dlf_dynamics.analysis.spectra.events import Crossing, find_crossings, sides
from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.segments import solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run

_FINER = 8
"""Steps between two checkpoints that are looked at where that did not help."""


@dataclass(frozen=True)
class Crossings:
    """What is known of the threshold along a run.

    Attributes:
        hessian: the spectrum, with the refined values in place of the first ones.
        found: crossings at iterates and centres, in the order of steps.
        sides: at each checkpoint and point: 1 surely above the threshold, -1 surely below, 0 not
            known.
    """

    hessian: HessianSpectrum
    found: list[Crossing]
    sides: Int[np.ndarray, "checkpoints points"]
    __repr__ = brief


def resolve_crossings(
    run: Run,
    solver: Solver,
    hessian: HessianSpectrum,
    thresholds: Float[np.ndarray, " checkpoints"],
) -> Crossings:
    """Crossings of the threshold, each certain, refined or unresolved.

    Where an interval does not clear the threshold, though the search for a single eigenvalue tries
    to, the checkpoint is solved again to a tighter tolerance; where that leaves a crossing with
    undecided checkpoints in it, steps in between are replayed and looked at.
    """
    before = _sides(hessian, thresholds)
    undecided = np.flatnonzero(np.any((before == 0) & _known(hessian), axis=1))
    tight = solver.tightened(run)
    if len(undecided):
        hessian = _refined(run, tight, hessian, undecided)
    after = _sides(hessian, thresholds)
    found = []
    for place, at in enumerate(POINTS):
        values = getattr(hessian, at).eigenvalues[:, 0]
        crossings = find_crossings(hessian.steps, values, after[:, place], thresholds, at)
        needed = set(hessian.steps[before[:, place] != after[:, place]].tolist())
        found += [_settled(run, tight, crossing, needed) for crossing in crossings]
    found.sort(key=lambda crossing: (crossing.step_after, crossing.at))
    return Crossings(hessian, found, after)


def _sides(
    hessian: HessianSpectrum, thresholds: Float[np.ndarray, " checkpoints"]
) -> Int[np.ndarray, "checkpoints points"]:
    found = [getattr(hessian, at) for at in POINTS]
    return np.stack(
        [sides(f.intervals[:, 0], f.converged[:, 0], thresholds) for f in found], axis=1
    )


def _known(hessian: HessianSpectrum) -> Bool[np.ndarray, "checkpoints points"]:
    """Where there is a value at all: not at the centre of step 0, nor where the loss failed."""
    return np.isfinite(np.stack([getattr(hessian, at).eigenvalues[:, 0] for at in POINTS], axis=1))


def _refined(
    run: Run, solver: Solver, hessian: HessianSpectrum, rows: Int[np.ndarray, " rows"]
) -> HessianSpectrum:
    """The spectrum with some rows solved again, where that narrowed the first interval."""
    indices = np.searchsorted(run.checkpoint_steps, hessian.steps[rows])
    arrays = solve_segment(run, solver, partial(run.points, indices))
    count = solver.ends.total
    changed: dict[str, Eigenvalues] = {}
    for place, at in enumerate(POINTS):
        found: Eigenvalues = getattr(hessian, at)
        columns: dict[str, Any] = {name: np.array(a) for name, a in found._asdict().items()}
        new = {name: arrays[name][:, place] for name in found._fields if name != "modes"}
        with np.errstate(invalid="ignore"):
            widths = np.diff(new["intervals"][:, 0])[:, 0]
            narrower = widths < np.diff(columns["intervals"][rows, 0])[:, 0]
        better = (new["status"][:, 0] == CONVERGED) & (narrower | ~found.converged[rows, 0])
        better &= np.isfinite(found.eigenvalues[rows, 0])
        chosen = rows[better]
        for name, value in new.items():
            if name == "num_matvecs":
                columns[name][rows] += value
            elif columns[name].ndim == 1 or name == "rank_bounds":
                columns[name][chosen] = value[better]
            else:
                columns[name][chosen, :count] = value[better]
        changed[at] = Eigenvalues(**columns)
    return replace(hessian, **changed)


def _settled(run: Run, solver: Solver, crossing: Crossing, needed: set[int]) -> Crossing:
    """The crossing with its state; where checkpoints in between are undecided, looked at closer."""
    if crossing.state == "certain":
        refined = needed & {crossing.step_before, crossing.step_after}
        return replace(crossing, state="refined" if refined else "certain")
    points = states_between(run, crossing.step_before, crossing.step_after)
    steps = np.array([point.step for point in points])
    arrays = solve_segment(run, solver, lambda n: _lists(points, n))
    place = POINTS.index(crossing.at)
    thresholds = run_threshold(run).at(steps)
    certain = arrays["status"][:, place, 0] == CONVERGED
    side = sides(arrays["intervals"][:, place, 0], certain, thresholds)
    values = arrays["eigenvalues"][:, place, 0]
    closer = find_crossings(steps, values, side, thresholds, crossing.at)
    same = [c for c in closer if c.direction == crossing.direction]
    if not same:
        return crossing
    best = min(same, key=lambda c: (c.state != "certain", c.step_after - c.step_before))
    return replace(best, state="refined" if best.state == "certain" else "unresolved")


def states_between(run: Run, start: int, stop: int) -> list[FlatState]:
    """States between two checkpoints, both included, made again from the first one."""
    marks = np.unique(np.linspace(start, stop, _FINER + 2).astype(int)).tolist()
    return [
        stretch.point(step)
        for stretch in Replay(run).stretches(start, stop + 1)
        for step in marks
        if stretch.first <= step < stretch.first + len(stretch)
    ]


def _lists(points: list[FlatState], most: int) -> list[list[FlatState]]:
    return [points[start : start + most] for start in range(0, len(points), most)]
