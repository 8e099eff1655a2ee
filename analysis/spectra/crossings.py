"""Crossings of the threshold along a run, refined where an interval does not clear it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.eigenvalues import Eigenvalues, HessianSpectrum
from dlf_dynamics.analysis.spectra.events import Crossing, find_crossings, sides
from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.segments import as_source, solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run

_FINER = 8
"""Steps between two checkpoints that are replayed where a tighter tolerance did not help."""


@dataclass(frozen=True)
class Crossings:
    """Crossings of the threshold along a run, with the refined spectrum.

    Attributes:
        hessian: the spectrum, with refined values in place of the first ones.
        found: crossings at iterates and centres, in the order of steps.
        sides: side of the threshold at each checkpoint and point: 1 certainly above, -1 certainly
            below, 0 not known.
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
    to, the checkpoint is solved again to a tighter tolerance. If undecided checkpoints remain
    within a crossing, steps in between are replayed and solved.
    """
    before = _sides(hessian, thresholds)
    undecided = np.flatnonzero(np.any((before == 0) & hessian.known, axis=1))
    tight = solver.tightened(run)
    if len(undecided):
        hessian = _refined(run, tight, hessian, undecided)
    after = _sides(hessian, thresholds)
    crossings = []
    for index, at in enumerate(POINTS):
        values = getattr(hessian, at).eigenvalues[:, 0]
        at_point = find_crossings(hessian.steps, values, after[:, index], thresholds, at)
        needed = set(hessian.steps[before[:, index] != after[:, index]].tolist())
        crossings += [_settled(run, tight, crossing, needed) for crossing in at_point]
    crossings.sort(key=lambda crossing: (crossing.step_after, crossing.at))
    return Crossings(hessian, crossings, after)


def _sides(
    hessian: HessianSpectrum, thresholds: Float[np.ndarray, " checkpoints"]
) -> Int[np.ndarray, "checkpoints points"]:
    solved = [getattr(hessian, at) for at in POINTS]
    return np.stack(
        [sides(f.intervals[:, 0], f.converged[:, 0], thresholds) for f in solved], axis=1
    )


def _refined(
    run: Run, solver: Solver, hessian: HessianSpectrum, checkpoints: Int[np.ndarray, " some"]
) -> HessianSpectrum:
    """The spectrum with some checkpoints solved again, where that narrowed the first interval."""
    indices = np.searchsorted(run.checkpoint_steps, hessian.steps[checkpoints])
    arrays = solve_segment(run, solver, partial(run.points, indices))
    count = solver.ends.total
    changed: dict[str, Eigenvalues] = {}
    for index, at in enumerate(POINTS):
        first: Eigenvalues = getattr(hessian, at)
        columns: dict[str, Any] = {name: np.array(a) for name, a in first._asdict().items()}
        new = {name: arrays[name][:, index] for name in first._fields if name != "modes"}
        with np.errstate(invalid="ignore"):
            widths = np.diff(new["intervals"][:, 0])[:, 0]
            narrower = widths < np.diff(columns["intervals"][checkpoints, 0])[:, 0]
        better = (new["status"][:, 0] == CONVERGED) & (narrower | ~first.converged[checkpoints, 0])
        better &= np.isfinite(first.eigenvalues[checkpoints, 0])
        chosen = checkpoints[better]
        for name, value in new.items():
            if name == "num_matvecs":
                columns[name][checkpoints] += value
            elif columns[name].ndim == 1 or name == "rank_bounds":
                columns[name][chosen] = value[better]
            else:
                columns[name][chosen, :count] = value[better]
        changed[at] = Eigenvalues(**columns)
    return replace(hessian, **changed)


def _settled(run: Run, solver: Solver, crossing: Crossing, needed: set[int]) -> Crossing:
    """The crossing with its state; replays steps where checkpoints in between are undecided."""
    if crossing.state == "certain":
        refined = needed & {crossing.step_before, crossing.step_after}
        return replace(crossing, state="refined" if refined else "certain")
    points = states_between(run, crossing.step_before, crossing.step_after)
    steps = np.array([point.step for point in points])
    arrays = solve_segment(run, solver, as_source(points))
    index = POINTS.index(crossing.at)
    thresholds = run_threshold(run).at(steps)
    certain = arrays["status"][:, index, 0] == CONVERGED
    side = sides(arrays["intervals"][:, index, 0], certain, thresholds)
    values = arrays["eigenvalues"][:, index, 0]
    closer = find_crossings(steps, values, side, thresholds, crossing.at)
    same = [c for c in closer if c.direction == crossing.direction]
    if not same:
        return crossing
    best = min(same, key=lambda c: (c.state != "certain", c.step_after - c.step_before))
    return replace(best, state="refined" if best.state == "certain" else "unresolved")


def states_between(run: Run, start: int, stop: int) -> list[FlatState]:
    """States between two checkpoints, both included, replayed from the first one."""
    marks = np.unique(np.linspace(start, stop, _FINER + 2).astype(int)).tolist()
    return [
        stretch.point(step)
        for stretch in Replay(run).stretches(start, stop + 1)
        for step in marks
        if stretch.first <= step < stretch.first + len(stretch)
    ]
