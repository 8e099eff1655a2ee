"""Panels as figures of Bokeh, which stand on one axis of steps where they are of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CrosshairTool,
    FixedTicker,
    NumeralTickFormatter,
    Range1d,
    Span,
)

from dlf_dynamics.analysis.report.content import Panel, Window
from dlf_dynamics.analysis.report.frame import Sources, frame
from dlf_dynamics.analysis.report.series import Drawn, add_hover, draw_series
from dlf_dynamics.analysis.report.view import heights

STEPS = "steps"
"""Name of the range that all panels of steps share."""

_HEIGHT, _OWN_HEIGHT, _LEFT = 170, 300, 68
"""Pixels of a panel of steps, of one with a separate axis, and beside it for numbers."""

_SHADE, _SHADES = "#888888", {False: 0.12, True: 0.22}
_LINE = "#D55E00"


class StepAxis:
    """The axis of steps of a page, and what its panels share.

    Attributes:
        range: range of the axis.
    """

    def __init__(self, first: float, last: float, windows: Sequence[Window]) -> None:
        margin = 0.01 * (last - first) or 0.5
        ends = first - margin, last + margin
        self.range: Any = Range1d(start=ends[0], end=ends[1], bounds=ends, name=STEPS)
        self.range.tags = [list(ends), [first, last]]
        self._cross = Span(dimension="height", line_color=_SHADE, line_dash="dotted")
        self._windows = {
            strong: ColumnDataSource(
                data={
                    "first": np.array([w.first - 0.5 for w in windows if w.strong == strong]),
                    "last": np.array([w.last + 0.5 for w in windows if w.strong == strong]),
                }
            )
            for strong in (False, True)
        }

    def furnish(self, plot: Any) -> None:
        """Adds the windows, and the line under the pointer that all panels show."""
        for strong, source in self._windows.items():
            if len(source.data["first"]):
                alpha = _SHADES[strong]
                plot.vstrip(
                    "first",
                    "last",
                    source=source,
                    fill_color=_SHADE,
                    fill_alpha=alpha,
                    line_color=None,
                )
        plot.add_tools(CrosshairTool(overlay=self._cross))


def draw(panel: Panel, sources: Sources, steps: StepAxis | None) -> tuple[Any, list[str]]:
    """A panel as a figure, and the notes below it.

    Args:
        panel: panel with at least one series.
        sources: sources of the page.
        steps: the axis of steps; none where the panel has a separate axis.
    """
    low, high, notes = heights(panel)
    of_steps = steps is not None
    plot = frame(
        _HEIGHT if of_steps else _OWN_HEIGHT,
        steps.range if of_steps else _own_range(panel),
        (low, high),
        logarithmic=(panel.logarithmic_x, panel.logarithmic),
        of_steps=of_steps,
    )
    plot.min_border_left, plot.min_border_right = _LEFT, 14
    if of_steps:
        steps.furnish(plot)
    groups: dict[int, list[Drawn]] = {}
    for number, series in enumerate(panel.series):
        drawn = draw_series(plot, panel, number, sources, (low, high))
        groups.setdefault(id(series.x), []).append(drawn)
    for name, x in panel.lines.items():
        plot.add_layout(Span(location=x, dimension="height", line_color=_LINE, line_dash="dashed"))
        notes.append(f"dashed line: {name}")
    # On an axis with its own ticks, labels do not show the numerical position.
    x_name = "step" if of_steps else panel.x_label if panel.ticks is None else ""
    for group in groups.values():
        add_hover(plot, x_name, group)
    _label_axes(plot, panel, of_steps=of_steps)
    return plot, [note for note in [panel.note, *notes] if note]


def _own_range(panel: Panel) -> Range1d:
    """Range from the least to the largest x of all series."""
    positions = np.concatenate([np.asarray(series.x, float) for series in panel.series])
    positions = positions[np.isfinite(positions)]
    first, last = (float(positions.min()), float(positions.max())) if len(positions) else (0.0, 1.0)
    if panel.logarithmic_x:
        margin = max((last / first) ** 0.03, 1.05)
        return Range1d(start=first / margin, end=last * margin)
    margin = 0.02 * (last - first) or 0.5
    return Range1d(start=first - margin, end=last + margin)


def _label_axes(plot: Any, panel: Panel, *, of_steps: bool) -> None:
    """Steps are whole numbers without powers of ten; an own axis has its name and its ticks."""
    plot.yaxis.ticker.desired_num_ticks = 4 if of_steps else 6
    if of_steps:
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.xaxis.ticker.min_interval = 1
        return
    plot.xaxis.axis_label = panel.x_label
    if panel.ticks is not None:
        plot.xaxis.ticker = FixedTicker(ticks=list(panel.ticks))
        plot.xaxis.major_label_overrides = dict(panel.ticks)
