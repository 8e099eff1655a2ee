"""Events of a run: crossings of the threshold, and windows in which the iterates oscillate.

The two are kept apart: a crossing of the threshold is not yet a bifurcation, and an oscillation
may begin long after it, or before it where the loss is not smooth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

OSCILLATING_COSINE = -0.5
"""Successive updates whose cosine is below this count as oscillating."""

_THRESHOLD_ROUNDING = 1e-12
"""Relative error of a threshold, which is the root of a function."""

_MERGE_STEPS = 50
"""Oscillating steps closer than this belong to one window."""

_MIN_STEPS = 16
"""Windows shorter than this are not reported."""

BATCH_NOISE = (
    "with mini-batches successive updates point against each other by the noise of the batches "
    "alone, which is no instability"
)
"""Why no oscillations are reported for a run with mini-batches."""

_BURST_LOSS = 0.01
"""Second difference of the loss above which an oscillation is a burst, seen in the loss."""


@dataclass(frozen=True)
class Crossing:
    """The largest eigenvalue passes the threshold between two steps.

    The intervals of both values clear the threshold.

    Attributes:
        direction: `up` or `down`.
        step_before: last sampled step that is certainly on the old side.
        step_after: first sampled step that is certainly on the new side.
        value_before: largest eigenvalue at `step_before`.
        value_after: largest eigenvalue at `step_after`.
        threshold: threshold at `step_after`.
        at: the points whose eigenvalues were compared, `iterate` or `centre`.
        state: `certain`; `refined`, if a tighter tolerance or finer steps were needed; or
            `unresolved`, if sampled steps between the two are on neither side.
    """

    direction: str
    step_before: int
    step_after: int
    value_before: float
    value_after: float
    threshold: float
    at: str
    state: str = "certain"


@dataclass(frozen=True)
class Oscillation:
    """A window of steps in which successive updates point against each other.

    Attributes:
        onset: first oscillating step.
        end: last oscillating step.
        burst: whether the oscillation is seen in the loss.
        burst_start: first step at which it is seen in the loss, or -1.
        burst_end: last step at which it is seen in the loss, or -1.
        max_change: largest |F(t) - F(t-1)| in the window.
        crossed: first sampled step that is certainly above the threshold after the upward crossing
            at the centres that belongs to the window: the one before the onset if the threshold was
            still exceeded at the onset, else the first in the window; -1 without either.
    """

    onset: int
    end: int
    burst: bool
    burst_start: int
    burst_end: int
    max_change: float
    crossed: int = -1


def sides(
    intervals: Float[np.ndarray, "checkpoints 2"],
    converged: Bool[np.ndarray, " checkpoints"],
    thresholds: Float[np.ndarray, " checkpoints"],
) -> Int[np.ndarray, " checkpoints"]:
    """1 certainly above the threshold, -1 certainly below, 0 unresolved or not converged."""
    with np.errstate(invalid="ignore"):
        rounding = _THRESHOLD_ROUNDING * np.nan_to_num(np.abs(thresholds), posinf=0.0)
        above = converged & (intervals[:, 0] > thresholds + rounding)
        below = converged & (intervals[:, 1] < thresholds - rounding)
    return above.astype(int) - below.astype(int)


def find_crossings(
    steps: Int[np.ndarray, " checkpoints"],
    values: Float[np.ndarray, " checkpoints"],
    side: Int[np.ndarray, " checkpoints"],
    thresholds: Float[np.ndarray, " checkpoints"],
    at: str,
) -> list[Crossing]:
    """Changes of side between steps that are certainly on one side.

    Args:
        steps: sampled steps, increasing.
        values: largest eigenvalue at each step.
        side: side of the threshold at each step, from `sides`.
        thresholds: threshold at each step.
        at: which points the values belong to, `iterate` or `centre`.

    >>> found = find_crossings(
    ...     np.array([0, 25, 50]), np.array([1.0, 1.9, 2.5]), np.array([-1, 0, 1]),
    ...     np.full(3, 2.0), "iterate"
    ... )
    >>> [(c.direction, c.step_before, c.step_after, c.state) for c in found]
    [('up', 0, 50, 'unresolved')]
    """
    sure = np.flatnonzero(side)
    turns = np.flatnonzero(np.diff(side[sure]))
    return [
        Crossing(
            direction="up" if side[after] > 0 else "down",
            step_before=int(steps[before]),
            step_after=int(steps[after]),
            value_before=float(values[before]),
            value_after=float(values[after]),
            threshold=float(thresholds[after]),
            at=at,
            state="certain" if after == before + 1 else "unresolved",
        )
        for before, after in zip(sure[turns], sure[turns + 1], strict=True)
    ]


def why_unwatched(
    batch_size: int | None, update_cosine: Float[np.ndarray, " steps"], *, replayed: bool
) -> str:
    """Why a run's update cosines do not show oscillations; empty where they do.

    Args:
        batch_size: examples per update; none means all.
        update_cosine: recorded cosines, NaN where there are none.
        replayed: whether the steps of the run can be replayed.
    """
    if batch_size is not None:
        return BATCH_NOISE
    if np.any(np.isfinite(update_cosine)):
        return ""
    again = " (`dlf-dynamics bifurcations` makes the steps again and tells them)"
    return f"no update cosines were recorded{again if replayed else ''}"


def find_oscillations(
    steps: Int[np.ndarray, " steps"],
    loss: Float[np.ndarray, " steps"],
    update_cosine: Float[np.ndarray, " steps"],
    *,
    burst_loss: float = _BURST_LOSS,
) -> list[Oscillation]:
    """Windows of oscillation from the recorded update cosine, with those seen in the loss marked.

    Args:
        steps: consecutive steps.
        loss: F(θ_t, t) at each step.
        update_cosine: cosine of successive updates; NaN where an update is 0.
        burst_loss: second difference of the loss above which a window is a burst.
    """
    bending, change = np.zeros(len(loss)), np.zeros(len(loss))
    with np.errstate(invalid="ignore"):  # a run that diverged ends with an infinite loss
        bending[1:-1] = np.abs(np.diff(loss, 2))
        change[1:] = np.abs(np.diff(loss))
    windows = []
    for first, last in _windows(update_cosine < OSCILLATING_COSINE):
        seen = first + np.flatnonzero(bending[first : last + 1] > burst_loss)
        windows.append(
            Oscillation(
                onset=int(steps[first]),
                end=int(steps[last]),
                burst=len(seen) > 0,
                burst_start=int(steps[seen[0]]) if len(seen) else -1,
                burst_end=int(steps[seen[-1]]) if len(seen) else -1,
                max_change=float(np.max(change[first : last + 1])),
            )
        )
    return windows


def join_crossings(windows: list[Oscillation], crossings: list[Crossing]) -> list[Oscillation]:
    """The windows with the upward crossing at the centres that belongs to each."""
    centre = sorted((c for c in crossings if c.at == "centre"), key=lambda c: c.step_after)
    joined, previous_end = [], -1
    for window in windows:
        near = [c for c in centre if previous_end < c.step_before <= window.end]
        before = [c for c in near if c.step_after <= window.onset]
        candidates = before[-1:] if before and before[-1].direction == "up" else near[len(before) :]
        ups = [c.step_after for c in candidates if c.direction == "up"]
        joined.append(replace(window, crossed=ups[0] if ups else -1))
        previous_end = window.end
    return joined


def _windows(mask: Bool[np.ndarray, " steps"]) -> list[tuple[int, int]]:
    """First and last index of each group of true entries; merges near groups, drops short ones."""
    indices = np.flatnonzero(mask)
    groups = np.split(indices, np.flatnonzero(np.diff(indices) > _MERGE_STEPS) + 1)
    return [
        (int(group[0]), int(group[-1]))
        for group in groups
        if len(group) and group[-1] - group[0] + 1 >= _MIN_STEPS
    ]
