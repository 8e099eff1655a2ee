"""Cells of a plane as figures of Bokeh."""

from __future__ import annotations

from typing import Any

import numpy as np
from bokeh.models import (
    BoxZoomTool,
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    PanTool,
    Range1d,
    TapTool,
)
from bokeh.plotting import figure as new_figure

from dlf_dynamics.analysis.report.content import Cells

RUNS = "runs"
"""Column with the numbers of the runs that a choice shows."""

_HEIGHT, _NOTHING = 360, "rgba(128,128,128,0.12)"


def draw_cells(cells: Cells) -> tuple[Any, list[str]]:
    """Cells as a figure, and what is to be said under it."""
    kinds = ["log" if logarithmic else "linear" for logarithmic in cells.logarithmic]
    (left, right), (bottom, top) = ((edges[0], edges[-1]) for edges in cells.edges)
    plot: Any = new_figure(
        height=_HEIGHT,
        sizing_mode="stretch_width",
        x_range=Range1d(start=float(left), end=float(right)),
        y_range=Range1d(start=float(bottom), end=float(top)),
        x_axis_type=kinds[0],  # type: ignore[arg-type]
        y_axis_type=kinds[1],  # type: ignore[arg-type]
        tools="",
        toolbar_location=None,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
    )
    plot.tags = [
        {
            "home": [float(bottom), float(top)],
            "across": [float(left), float(right)],
            "steps": False,
        }
    ]
    plot.grid.grid_line_color = None
    for axis, name, values, edges, logarithmic in zip(
        (plot.xaxis, plot.yaxis),
        cells.axes,
        cells.values,
        cells.edges,
        cells.logarithmic,
        strict=False,
    ):
        places = _middles(edges, logarithmic=logarithmic)
        axis.axis_label = name
        axis.axis_label_text_font_style = "normal"
        axis.ticker = FixedTicker(ticks=places)
        axis.major_label_overrides = dict(zip(places, values, strict=True))
    columns = _columns(cells)
    source = ColumnDataSource(data=columns)
    mapper = (LogColorMapper if cells.logarithmic[2] else LinearColorMapper)(
        palette=list(cells.palette),
        low=cells.limits[0],
        high=cells.limits[1],
        nan_color=_NOTHING,
    )
    quads = plot.quad(
        "left",
        "right",
        "bottom",
        "top",
        source=source,
        fill_color={"field": "number", "transform": mapper},
        line_color=None,
        hatch_pattern={"field": "hatch"},
        hatch_color="#666666",
        hatch_weight=0.7,
        hatch_scale=8,
        nonselection_fill_alpha=0.55,
        nonselection_hatch_alpha=0.55,
    )
    rows = [(name, f"@{name_of}") for name, name_of in zip(cells.axes, ("x", "y"), strict=True)]
    names = [cells.title, *cells.beside]
    numbers = [("number" if k == 0 else f"b{k}") for k in range(len(names))]
    rows += [(name, f"@{column}{{%g}}") for name, column in zip(names, numbers, strict=True)]
    formatters: Any = {f"@{column}": "printf" for column in numbers}
    drag = BoxZoomTool()
    plot.add_tools(
        drag,
        PanTool(),
        TapTool(renderers=[quads]),
        HoverTool(renderers=[quads], tooltips=rows, formatters=formatters),
    )
    plot.toolbar.active_drag = drag
    plot.add_layout(
        ColorBar(color_mapper=mapper, width=12, background_fill_color=None, title=None), "right"
    )
    hatched = "hatched: some runs missing, failed or diverged; numbers are of the others"
    return plot, [cells.note, *([hatched] if np.any(cells.missing > 0) else [])]


def _middles(edges: np.ndarray, *, logarithmic: bool) -> list[float]:
    places = np.sqrt(edges[1:] * edges[:-1]) if logarithmic else (edges[1:] + edges[:-1]) / 2
    return places.tolist()


def _columns(cells: Cells) -> dict[str, Any]:
    """A row for each cell, row by row."""
    ny, nx = cells.numbers.shape
    row, column = np.repeat(np.arange(ny), nx), np.tile(np.arange(nx), ny)
    x_edges, y_edges = cells.edges
    found: dict[str, Any] = {
        "left": x_edges[column],
        "right": x_edges[column + 1],
        "bottom": y_edges[row],
        "top": y_edges[row + 1],
        "number": cells.numbers.ravel(),
        "x": [cells.values[0][k] for k in column.tolist()],
        "y": [cells.values[1][k] for k in row.tolist()],
        "hatch": ["/" if few else " " for few in (cells.missing > 0).ravel()],
        RUNS: [" ".join(map(str, some)) for some in cells.runs],
    }
    beside = {f"b{k}": values.ravel() for k, values in enumerate(cells.beside.values(), start=1)}
    return found | beside
