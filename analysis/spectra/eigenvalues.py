"""Eigenvalues of the curvature along a run, at the iterates and at their centres."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from dlf_dynamics.analysis.linalg.certificate import CONVERGED, NOT_FINITE, STATUSES
from dlf_dynamics.analysis.linalg.modes import follow_modes
from dlf_dynamics.analysis.linalg.ritz import Ends
from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.points import POINTS
from dlf_dynamics.analysis.spectra.segments import (
    Source,
    Watch,
    as_segment,
    below_cut,
    check_deterministic,
    compiled_beside,
    solve_segment,
    unwatched,
)
from dlf_dynamics.analysis.spectra.solver import MOST, Solver
from dlf_dynamics.codec import Arrays
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.labels import ENDS
from dlf_dynamics.parts import Parts
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Checkpoints, Run


class Eigenvalues(NamedTuple):
    """Eigenvalues at each checkpoint, descending, and how they were found; NaN where fewer.

    Attributes:
        eigenvalues: eigenvalues, in descending order.
        residuals: ‖A v - λ v‖ from fresh products.
        intervals: lower and upper ends of the interval of each value.
        status: how certain each value is, an index into `certificate.STATUSES`.
        upper_bound: upper bound on all eigenvalues; infinite where there is none.
        lower_bound: lower bound on all eigenvalues; infinite where there is none.
        rank_bounds: bounds on the next eigenvalues beyond those wanted, at the top and bottom.
        num_matvecs: number of products with the operator.
        modes: number of the mode that each eigenvector continues, or -1 where there is none.
    """

    eigenvalues: Float[np.ndarray, "checkpoints k"]
    residuals: Float[np.ndarray, "checkpoints k"]
    intervals: Float[np.ndarray, "checkpoints k ends=2"]
    status: Int[np.ndarray, "checkpoints k"]
    upper_bound: Float[np.ndarray, " checkpoints"]
    lower_bound: Float[np.ndarray, " checkpoints"]
    rank_bounds: Float[np.ndarray, "checkpoints wanted=2"]
    num_matvecs: Int[np.ndarray, " checkpoints"]
    modes: Int[np.ndarray, "checkpoints k"]
    words = MappingProxyType({"status": STATUSES, "ends": ENDS, "wanted": ("top", "bottom")})
    __repr__ = brief

    @property
    def converged(self) -> Bool[np.ndarray, "checkpoints k"]:
        """Which values are certified from both sides; the others decide nothing."""
        return self.status == CONVERGED


@dataclass(frozen=True)
class HessianSpectrum:
    """Extreme eigenvalues of the curvature along a run.

    Attributes:
        steps: step of each checkpoint.
        iterate: eigenvalues at θ_t.
        centre: eigenvalues at ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1), where an oscillation of period 2
            cancels; NaN and not converged at step 0, which has no step before it, and throughout
            where the updates are not known, as with recorded mini-batches.
        curvature: the operator.
        ends: number of eigenvalues requested from the top and from the bottom.
        tol: relative residual that counts as converged.
        failure_probability: probability that a bound fails, for each checkpoint and point.
        precision: type of numbers in which eigenvalues and residuals were computed.
        incomplete: where eigenvalues above the requested fraction of the threshold may be missing,
            because their number reached its limit or a value above it did not converge; false
            without such a fraction.
    """

    steps: Int[np.ndarray, " checkpoints"]
    iterate: Eigenvalues
    centre: Eigenvalues
    curvature: Curvature
    ends: Ends
    tol: float
    failure_probability: float
    precision: str
    incomplete: Bool[np.ndarray, " checkpoints"]
    __repr__ = brief

    def at_points(self, name: str) -> Shaped[np.ndarray, "checkpoints points *k"]:
        """A field of the eigenvalues, at iterates and centres."""
        return np.stack([getattr(getattr(self, at), name) for at in POINTS], axis=1)

    @property
    def known(self) -> Bool[np.ndarray, "checkpoints points"]:
        """Where there is a value at all: not at the centre of step 0, nor where the loss failed."""
        return np.isfinite(self.at_points("eigenvalues")[..., 0])


def hessian_spectrum(
    run: Run,
    checkpoints: Checkpoints | None = None,
    *,
    config: SpectrumConfig | None = None,
    thresholds: Float[np.ndarray, " checkpoints"] | None = None,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda done: None,
    watch: Watch = unwatched,
    meanwhile: Callable[[], object] = lambda: None,
) -> HessianSpectrum:
    """Extreme eigenvalues of the loss at each checkpoint's step.

    For an adaptive optimizer they are those of the preconditioned Hessian P^-1 H, with the
    preconditioner of the next update, at which the optimizer's threshold applies.

    Args:
        run: a recorded run.
        checkpoints: indices into `run.checkpoint_steps`, in any order; none means all.
        config: operator, number of eigenvalues and precision.
        thresholds: critical eigenvalue at each chosen checkpoint, NaN for none; used by
            `config.above`, and to decide the side of a single eigenvalue, if need be with
            tolerances a thousandth as large.
        parts: storage for finished parts, from which an interrupted analysis resumes.
        progress: called with the number of checkpoints done.
        watch: called with the number of products made so far at a point of a checkpoint; not
            called for small networks, which go through compiled passes.
        meanwhile: called before the passes, while XLA compiles them.

    Raises:
        ConfigError: for a class or a block of parameters that the run does not have, or when the
            loss is not deterministic.
    """
    config = SpectrumConfig() if config is None else config
    solver = Solver.from_config(run, config)
    chosen = range(len(run.checkpoint_steps)) if checkpoints is None else checkpoints
    order, positions = np.unique(np.asarray(chosen), return_inverse=True)
    limits = np.full(len(order), np.nan)
    if thresholds is not None:
        limits[positions] = thresholds
    parts = Parts(None) if parts is None else parts
    starts = range(0, len(order), solver.segment_length)
    complete = all(parts.holds(f"hessian-{number}") for number in range(len(starts)))
    with nullcontext() if complete else compiled_beside(run, solver):
        check_deterministic(run, solver)
        meanwhile()
    segments: list[Arrays] = []
    for start in starts:
        span = slice(start, start + solver.segment_length)
        make = partial(
            _enough, run, solver, order[span], limits[span], segments[-1:], config.above, watch
        )
        parse = partial(as_segment, solver=solver, checkpoints=len(order[span]))
        segments.append(parts.get_or_make(f"hessian-{len(segments)}", make, parse))
        progress(min(span.stop, len(order)))
    return _joined(run, solver, order, positions, segments, _cuts(limits, config.above))


def _enough(
    run: Run,
    solver: Solver,
    indices: Int[np.ndarray, " checkpoints"],
    thresholds: Float[np.ndarray, " checkpoints"],
    before: list[Arrays],
    above: float | None,
    watch: Watch,
) -> Arrays:
    """A segment with enough eigenvalues to hold all above the fraction of the threshold."""
    source: Source = partial(run.points, indices)
    told = thresholds if solver.curvature.has_threshold else None
    while True:
        arrays = solve_segment(run, solver, source, *before, thresholds=told, watch=watch)
        most = max(solver.ends) >= min(MOST, solver.size)
        if most or np.all(below_cut(arrays, _cuts(thresholds, above), solver.size)):
            return arrays
        solver = solver.doubled()


def _cuts(
    thresholds: Float[np.ndarray, " checkpoints"], above: float | None
) -> Float[np.ndarray, " checkpoints"]:
    """Cuts above which every eigenvalue is wanted; infinite where that is not requested."""
    return np.full(len(thresholds), np.inf) if above is None else above * thresholds


def _incomplete(
    solved: Eigenvalues, cuts: Float[np.ndarray, " checkpoints"], size: int
) -> Bool[np.ndarray, " checkpoints"]:
    """Where all values are above the cut, or one above it did not converge."""
    with np.errstate(invalid="ignore"):
        above = solved.eigenvalues > cuts[:, None]
    counts = np.sum(np.isfinite(solved.eigenvalues), axis=1)
    short = (counts > 0) & (counts < size) & (np.sum(above, axis=1) == counts)
    return short | np.any(above & ~solved.converged, axis=1)


def _joined(
    run: Run,
    solver: Solver,
    order: Int[np.ndarray, " sorted"],
    positions: Int[np.ndarray, " checkpoints"],
    segments: list[Arrays],
    cuts: Float[np.ndarray, " sorted"],
) -> HessianSpectrum:
    """The segments one after another, in the requested order of checkpoints."""
    steps = run.checkpoint_steps[order]
    iterate, centre = (_at_point(segments, point, positions) for point in range(len(POINTS)))
    first = steps[positions] == 0
    blank = {name: _without(getattr(centre, name), first, missing) for name, missing in _BLANK}
    centre = centre._replace(**blank)
    return HessianSpectrum(
        steps[positions],
        iterate,
        centre,
        solver.curvature,
        solver.ends,
        solver.goal.tol,
        solver.goal.failure_probability,
        solver.dtype(run).name,
        np.any([_incomplete(at, cuts[positions], solver.size) for at in (iterate, centre)], axis=0),
    )


_BLANK = (
    ("eigenvalues", np.nan),
    ("residuals", np.nan),
    ("intervals", np.nan),
    ("status", NOT_FINITE),
    ("upper_bound", np.inf),
    ("lower_bound", -np.inf),
)
"""Values where nothing was computed."""


def _at_point(segments: list[Arrays], point: int, positions: np.ndarray) -> Eigenvalues:
    count = max(arrays["eigenvalues"].shape[2] for arrays in segments)
    columns = {}
    for name, missing in _BLANK:
        padded = [_padded(arrays[name][:, point], count, missing) for arrays in segments]
        columns[name] = np.concatenate(padded)[positions]
    for name in ("rank_bounds", "num_matvecs"):
        columns[name] = np.concatenate([arrays[name][:, point] for arrays in segments])[positions]
    modes = follow_modes([m[point] for arrays in segments for m in arrays["overlaps"]], count)
    return Eigenvalues(**columns, modes=modes[positions])


def _padded(array: np.ndarray, count: int, missing: float) -> np.ndarray:
    """The array with more columns, where another segment needed more eigenvalues."""
    if array.ndim == 1:
        return array
    widths = [(0, 0), (0, count - array.shape[1]), *[(0, 0)] * (array.ndim - 2)]
    return np.pad(array, widths, constant_values=missing)


def _without(
    array: np.ndarray, blank: Bool[np.ndarray, " checkpoints"], missing: float
) -> np.ndarray:
    """The array with some rows blank."""
    return np.where(
        blank.reshape(-1, *[1] * (array.ndim - 1)), np.asarray(missing, array.dtype), array
    )
