"""What is seen of a panel before anyone zooms in: its limits, and distinguishable points.

Nothing is hidden in silence: what lies outside the limits or cannot be drawn is counted in a note.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.report.content import Panel
from dlf_dynamics.analysis.style import LARGEST, core_range
from dlf_dynamics.errors import counted

_MARGIN = 0.06
"""Share of the range that stays free above and below."""

_FARTHEST = 345.0
"""Natural logarithm of the largest number that the arithmetic of the axes of a page can bear."""

_WIDTH, _HEIGHT = 1600, 160
"""Pixels of a panel on a wide screen, before the page knows its own."""


class Heights(NamedTuple):
    """The vertical axis of a panel.

    Attributes:
        low: lower limit.
        high: upper limit.
        notes: what is not seen between them, in words.
    """

    low: float
    high: float
    notes: list[str]


def heights(panel: Panel) -> Heights:
    """Limits within which the series are seen, but for few points that would squash the rest."""
    shown = [_heights_of(series.y, panel) for series in panel.series]
    inside, always = (
        np.concatenate([np.zeros(0), *(shown[k] for k in np.flatnonzero(chosen))])
        for chosen in (_are_points(panel), ~_are_points(panel))
    )
    if panel.x_label:  # its limits stay as they are, so all is to be within them
        bars = [s.intervals.ravel() for s in panel.series if s.intervals is not None]
        always = np.concatenate([inside, always, *(_heights_of(bar, panel) for bar in bars)])
        inside = np.zeros(0)
    low, high = core_range(inside, always)
    margin = _MARGIN * (high - low) or (0.1 if panel.logarithmic else 0.1 * abs(low) or 0.5)
    ends = np.array([low - margin, high + margin])
    if panel.logarithmic:
        ends = np.exp(np.clip(ends, -_FARTHEST, _FARTHEST))
    notes = [*_beyond(inside, (low, high), panel), *_not_drawn(panel)]
    return Heights(float(ends[0]), float(ends[1]), notes)


def _are_points(panel: Panel) -> Bool[np.ndarray, " series"]:
    """Whether a few values of a series may be out of sight."""
    return np.array([series.style in ("points", "cloud") for series in panel.series], bool)


def _heights_of(y: np.ndarray, panel: Panel) -> Float[np.ndarray, " shown"]:
    """The values that can be drawn, on the scale of the panel."""
    values = np.asarray(y, float)
    values = values[np.abs(values) < LARGEST]
    return np.log(values[values > 0]) if panel.logarithmic else values


def _beyond(
    inside: Float[np.ndarray, " shown"], limits: tuple[float, float], panel: Panel
) -> list[str]:
    """Notes on points that lie outside the limits, and how far."""
    parts = []
    for beyond, word, extreme in (
        (inside > limits[1], "above, up to", np.max),
        (inside < limits[0], "below, down to", np.min),
    ):
        if np.any(beyond):
            value = float(extreme(inside[beyond]))
            value = np.exp(value) if panel.logarithmic else value
            parts.append(f"{counted(int(beyond.sum()), 'point')} {word} {value:.4g}")
    told = "; ".join(parts)
    return [f"not seen in the view of the whole run: {told}; zoom in to see them"] if parts else []


def _not_drawn(panel: Panel) -> list[str]:
    """Notes on values that no axis, or no logarithmic one, can show."""
    values = [np.asarray(series.y, float) for series in panel.series if series.style != "marks"]
    together = np.concatenate([np.zeros(0), *values])
    beyond, negative = int((np.abs(together) >= LARGEST).sum()), int((together <= 0).sum())
    notes = []
    if beyond:
        notes.append(f"{counted(beyond, 'value')} of {LARGEST:.0e} or more cannot be drawn")
    if panel.logarithmic and negative:
        notes.append(f"{counted(negative, 'value')} ≤ 0 cannot be drawn on a logarithmic axis")
    return notes


def distinct(
    x: np.ndarray, y: np.ndarray, limits: tuple[float, float], *, logarithmic: bool
) -> Int[np.ndarray, " kept"]:
    """The first of all points that fall into the same pixel, and so look like one.

    Args:
        x: x values of the points, in increasing order over the whole axis.
        y: y values of the points.
        limits: limits of the vertical axis.
        logarithmic: whether the vertical axis is logarithmic.
    """
    values = np.asarray(y, float)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        heights_on_axis = np.log(values) if logarithmic else values
        low, high = np.log(limits) if logarithmic else limits
        there = np.isfinite(heights_on_axis) & (heights_on_axis >= low) & (heights_on_axis <= high)
        across = (np.asarray(x, float) - x[0]) / max(float(x[-1] - x[0]), 1.0) * (_WIDTH - 1)
        up = (heights_on_axis - low) / (high - low) * (_HEIGHT - 1)
    kept = np.flatnonzero(there)
    cells = across[kept].astype(int) * _HEIGHT + up[kept].astype(int)
    return np.sort(kept[np.unique(cells, return_index=True)[1]])
