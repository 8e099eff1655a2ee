"""Series as glyphs of Bokeh, with their tooltips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import CDSView, HoverTool, IndexFilter, TapTool

from dlf_dynamics.analysis.report.content import Panel, Series
from dlf_dynamics.analysis.report.frame import RUNS, Sources, listed
from dlf_dynamics.analysis.report.view import distinct

_DENSE, _FEW = 2000, 300
"""Points from which they are drawn small, and up to which they are joined, before the page knows
how many there are to a pixel."""

_SMALL, _PLAIN, _MARK = 2.0, 4.0, 8.0
"""Sizes in pixels."""

_STROKES = ("cross", "dash", "x", "y")
"""Markers that have no inside."""


@dataclass(frozen=True)
class Drawn:
    """A series that is drawn.

    Attributes:
        series: which one.
        line: line through its points, from which the script takes values and the pointer positions.
        tooltips: values of a point under the pointer: name, column, and whether it is a number.
    """

    series: Series
    line: Any
    tooltips: list[tuple[str, str, bool]]

    @property
    def num_values(self) -> int:
        """Points that can be pointed at."""
        return int(np.isfinite(np.asarray(self.series.y, float)).sum())


def draw_series(
    plot: Any,
    panel: Panel,
    number: int,
    sources: Sources,
    limits: tuple[float, float],
) -> Drawn:
    """Draws a series.

    Args:
        plot: plot to draw on.
        panel: panel of the series.
        number: its index there.
        sources: sources of the page.
        limits: limits of the vertical axis.
    """
    series = panel.series[number]
    source = sources.source(series.x)
    y = sources.add(source, series.y)
    tooltips = [(series.name, y, True)]
    common = {"source": source, "name": f"series-{number}"}
    if series.intervals is not None:
        low, high = (sources.add(source, np.ascontiguousarray(e)) for e in series.intervals.T)
        tooltips += [("from", low, True), ("to", high, True)]
        _draw_intervals(plot, series, (low, high), common)
    line = _draw_line(plot, series, y, common)
    if series.style != "line":
        _draw_markers(plot, panel, series, y, limits, common)
    for name, column in series.beside.items():
        tooltips.append((name, sources.add(source, column), isinstance(column, np.ndarray)))
    return Drawn(series, line, tooltips)


def _draw_line(plot: Any, series: Series, y: str, common: dict[str, Any]) -> Any:
    few = len(series.x) <= _FEW
    alpha = {"line": 1.0, "points": 0.5 if few else 0.0}.get(series.style, 0.0)
    return plot.line(
        "x",
        y,
        line_color=series.colour,
        line_width=1.4 if series.style == "line" else 0.7,
        line_alpha=alpha,
        line_dash=series.dash,
        tags=[series.style],
        **common,
    )


def _draw_markers(
    plot: Any,
    panel: Panel,
    series: Series,
    y: str,
    limits: tuple[float, float],
    common: dict[str, Any],
) -> None:
    """All marks; of points only distinguishable ones, which the script chooses again on zoom."""
    size, view = _MARK, {}
    if series.style != "marks":
        size = _SMALL if len(series.x) > _DENSE else _PLAIN
        kept = distinct(series.x, series.y, limits, logarithmic=panel.logarithmic)
        view = {"view": CDSView(filter=IndexFilter(indices=kept.tolist()))}
    outlined = series.style == "marks" or series.marker in _STROKES
    markers = plot.scatter(
        "x",
        y,
        marker=series.marker,
        size=value(size),
        fill_color=series.colour if series.filled else None,
        line_color=series.colour if outlined else None,
        tags=[series.style],
        **common,
        **view,
    )
    if series.runs:
        common["source"].data[RUNS] = listed(series.runs)
        plot.add_tools(TapTool(renderers=[markers]))


def _draw_intervals(
    plot: Any, series: Series, ends: tuple[str, str], common: dict[str, Any]
) -> None:
    low, high = ends
    if series.band:
        plot.varea("x", low, high, fill_color=series.colour, fill_alpha=0.25, **common)
    else:
        colour = series.colour
        alpha, width = (1.0, 1.5) if series.style == "marks" else (0.35, 1.0)
        plot.segment(
            "x", low, "x", high, line_color=colour, line_alpha=alpha, line_width=width, **common
        )


def add_hover(plot: Any, x_name: str, drawn: list[Drawn]) -> None:
    """One tooltip for all series with the same x values, at the one that has most values.

    Args:
        plot: plot on which they are drawn.
        x_name: name of the values of x; empty where tooltips leave them out.
        drawn: the series, which share their values of x.
    """
    at = max(drawn, key=lambda one: one.num_values)
    tooltips, formatters = ([(x_name, "@x{%g}")] if x_name else []), {"@x": "printf"}
    for one in drawn:
        for name, column, is_number in one.tooltips:
            tooltips.append((name, f"@{column}{{%g}}" if is_number else f"@{column}"))
            if is_number:  # all digits that it takes to tell the number from its neighbours
                formatters[f"@{column}"] = "printf"
    plot.add_tools(
        HoverTool(
            renderers=[at.line],
            mode="vline",
            line_policy="nearest",
            tooltips=tooltips,
            formatters=formatters,  # type: ignore[arg-type]
        )
    )
