"""What all figures of a report share: their frame, its tools, and the columns they draw from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    PanTool,
    Range1d,
    WheelZoomTool,
)
from bokeh.plotting import figure as new_figure

from dlf_dynamics.analysis.report.content import Column

RUNS = "runs"
"""Column with the numbers of the runs that a choice shows."""

_FONT = "12px"


def frame(
    height: int,
    x_range: Any,
    limits: tuple[float, float],
    *,
    logarithmic: tuple[bool, bool],
    of_steps: bool = False,
) -> Any:
    """A figure without anything in it, which the script of the page knows.

    Args:
        height: height in pixels; it is as wide as the page allows.
        x_range: range of the horizontal axis.
        limits: limits of the vertical axis.
        logarithmic: whether the horizontal and the vertical axis are.
        of_steps: whether the horizontal axis is that of the steps.
    """
    kinds = ["log" if one else "linear" for one in logarithmic]
    plot: Any = new_figure(
        height=height,
        sizing_mode="stretch_width",
        x_range=x_range,
        y_range=Range1d(start=limits[0], end=limits[1]),
        x_axis_type=kinds[0],  # type: ignore[arg-type]
        y_axis_type=kinds[1],  # type: ignore[arg-type]
        tools="",
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        lod_threshold=None,
    )
    across = [x_range.start, x_range.end]
    plot.tags = [{"home": list(limits), "across": across, "steps": of_steps}]
    plot.axis.minor_tick_line_color = None
    plot.axis.major_label_text_font_size = _FONT
    plot.axis.axis_label_text_font_size = _FONT
    plot.axis.axis_label_text_font_style = "normal"
    dimensions: Any = "width" if of_steps else "both"
    drag = BoxZoomTool(dimensions=dimensions)
    plot.add_tools(drag, PanTool(dimensions=dimensions))
    plot.add_tools(WheelZoomTool(dimensions=dimensions, modifiers="ctrl"))
    plot.toolbar.active_drag = drag
    return plot


@dataclass
class Sources:
    """Columns of numbers that figures draw from; series with the same x values share theirs.

    Attributes:
        known: x values and their columns, by the identity of the array of x values.
    """

    known: dict[int, tuple[np.ndarray, Any]] = field(default_factory=dict)

    def source(self, x: np.ndarray) -> Any:
        """The columns for these x values."""
        if id(x) not in self.known:  # the array is kept, so that no other has its identity
            self.known[id(x)] = (x, ColumnDataSource(data={"x": _column(x)}))
        return self.known[id(x)][1]

    def add(self, source: Any, content: Column) -> str:
        """Adds a column; returns its name."""
        name = f"c{len(source.data)}"
        source.data[name] = _column(content)
        return name


def _column(content: Column) -> Any:
    """The values as the page gets them: bit for bit, integers as far as they fit into 32 bits."""
    if not isinstance(content, np.ndarray):
        return list(content)
    if content.dtype.kind == "b":
        return content.astype(np.uint8)
    if content.dtype.kind in "iu":
        fits = np.all(np.abs(content) < 2**31)
        return content.astype(np.int32 if fits else np.float64)
    return np.ascontiguousarray(content)


def listed(runs: Any) -> list[str]:
    """Numbers of runs as the column `RUNS` has them."""
    return [" ".join(map(str, some)) for some in runs]
