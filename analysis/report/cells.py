"""Cells of a plane as figures of Bokeh."""

from __future__ import annotations

from typing import Any

import numpy as np
from bokeh.models import (
    ColorBar,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    Range1d,
    TapTool,
)

from dlf_dynamics.analysis.report.content import Cells
from dlf_dynamics.analysis.report.frame import RUNS, frame, listed

_HEIGHT = 360
_NOTHING, _HATCH = "rgba(128,128,128,0.12)", "#666666"
_FADED = 0.55


def draw_cells(cells: Cells) -> tuple[Any, list[str]]:
    """Cells as a figure, and the notes below it."""
    (left, right), (bottom, top) = ((float(e[0]), float(e[-1])) for e in cells.edges)
    across = Range1d(start=left, end=right)
    plot = frame(_HEIGHT, across, (bottom, top), logarithmic=cells.logarithmic[:2])
    plot.grid.grid_line_color = None
    for axis, name, values, edges, logarithmic in zip(
        (plot.xaxis, plot.yaxis),
        cells.axes,
        cells.values,
        cells.edges,
        cells.logarithmic,
        strict=False,
    ):
        middles = _middles(edges, logarithmic=logarithmic)
        axis.axis_label = name
        axis.ticker = FixedTicker(ticks=middles)
        axis.major_label_overrides = dict(zip(middles, values, strict=True))
    mapper = (LogColorMapper if cells.logarithmic[2] else LinearColorMapper)(
        palette=list(cells.palette),
        low=cells.limits[0],
        high=cells.limits[1],
        nan_color=_NOTHING,
    )
    quads = _draw_quads(plot, cells, mapper)
    plot.add_tools(TapTool(renderers=[quads]), _hover(cells, quads))
    plot.add_layout(ColorBar(color_mapper=mapper, width=12, background_fill_color=None), "right")
    hatched = "hatched: some runs missing, failed or diverged; numbers are of the others"
    return plot, [cells.note, *([hatched] if np.any(cells.missing > 0) else [])]


def _draw_quads(plot: Any, cells: Cells, mapper: Any) -> Any:
    return plot.quad(
        "left",
        "right",
        "bottom",
        "top",
        source=ColumnDataSource(data=_columns(cells)),
        fill_color={"field": "number", "transform": mapper},
        line_color=None,
        hatch_pattern={"field": "hatch"},
        hatch_color=_HATCH,
        hatch_weight=0.7,
        hatch_scale=8,
        nonselection_fill_alpha=_FADED,
        nonselection_hatch_alpha=_FADED,
    )


def _hover(cells: Cells, quads: Any) -> HoverTool:
    """Values of the axes, and all numbers of the cell."""
    tooltips = [(name, f"@{column}") for name, column in zip(cells.axes, ("x", "y"), strict=True)]
    names = {"number": cells.title} | {f"b{k}": name for k, name in enumerate(cells.beside)}
    tooltips += [(name, f"@{column}{{%g}}") for column, name in names.items()]
    formatters: Any = {f"@{column}": "printf" for column in names}
    return HoverTool(renderers=[quads], tooltips=tooltips, formatters=formatters)


def _middles(edges: np.ndarray, *, logarithmic: bool) -> list[float]:
    middles = np.sqrt(edges[1:] * edges[:-1]) if logarithmic else (edges[1:] + edges[:-1]) / 2
    return middles.tolist()


def _columns(cells: Cells) -> dict[str, Any]:
    """A row for each cell, row by row."""
    ny, nx = cells.numbers.shape
    row, column = np.repeat(np.arange(ny), nx), np.tile(np.arange(nx), ny)
    x_edges, y_edges = cells.edges
    columns: dict[str, Any] = {
        "left": x_edges[column],
        "right": x_edges[column + 1],
        "bottom": y_edges[row],
        "top": y_edges[row + 1],
        "number": cells.numbers.ravel(),
        "x": [cells.values[0][k] for k in column.tolist()],
        "y": [cells.values[1][k] for k in row.tolist()],
        "hatch": ["/" if few else " " for few in (cells.missing > 0).ravel()],
        RUNS: listed(cells.runs),
    }
    return columns | {f"b{k}": values.ravel() for k, values in enumerate(cells.beside.values())}
