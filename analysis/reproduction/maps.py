"""Values by amplitude and period as coloured maps, and means with bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.studies.selection import describe
from dlf_dynamics.analysis.studies.statistics import Interval
from dlf_dynamics.analysis.style import COLOURS, styled

_COLUMNS = 3
_DARK = 0.55
"""Fraction of the colour scale below which numbers are written in white."""


@dataclass(frozen=True)
class ValueMap:
    """A number for each cell.

    Attributes:
        title: what it is.
        values: the number of each cell, NaN where there is none.
        limits: ends of the colour scale; none takes the least and the largest value.
    """

    title: str
    values: Float[np.ndarray, "amplitudes periods"]
    limits: tuple[float, float] | None = (0.0, 1.0)


def draw_maps(
    maps: Sequence[ValueMap], amplitudes: Sequence[float], periods: Sequence[float]
) -> Figure:
    """A panel for each number, with the numbers written into the cells."""
    with styled():
        width = min(len(maps), _COLUMNS)
        height = -(-len(maps) // width)
        size = (0.6 + 2.4 * width, 0.5 + 2.0 * height)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(height, width, squeeze=False, sharex=True, sharey=True)
        for ax, each in zip(axes.flat, maps, strict=False):
            _draw_map(ax, each, amplitudes, periods)
        for ax in axes.flat[len(maps) :]:
            ax.set_axis_off()
        figure.supylabel("amplitude A", fontsize=8)
        figure.supxlabel("period T (steps)", fontsize=8)
        return figure


def _draw_map(
    ax: Axes, each: ValueMap, amplitudes: Sequence[float], periods: Sequence[float]
) -> None:
    known = each.values[np.isfinite(each.values)]
    low, high = each.limits or (min(known, default=0.0), max(known, default=1.0))
    ax.imshow(each.values, vmin=low, vmax=high, cmap="cividis", aspect="auto", origin="lower")
    for (row, column), value in np.ndenumerate(each.values):
        if np.isfinite(value):
            dark = (value - low) < _DARK * (high - low)
            ax.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=6,
                color="white" if dark else "black",
            )
    ax.set_xticks(range(len(periods)), [describe(value) for value in periods])
    ax.set_yticks(range(len(amplitudes)), [describe(value) for value in amplitudes])
    ax.set_title(each.title, fontsize=8)


def draw_bands(
    ax: Axes,
    x: Sequence[float],
    intervals: Sequence[Interval],
    label: str,
    colour: int,
    style: str = ".-",
) -> None:
    """Means against x, with a band for their intervals."""
    shade = COLOURS[colour % len(COLOURS)]
    ax.plot(x, [each.value for each in intervals], style, color=shade, lw=1, ms=4, label=label)
    ax.fill_between(
        x,
        [each.low for each in intervals],
        [each.high for each in intervals],
        color=shade,
        alpha=0.18,
        lw=0,
    )
