"""Panels as figures of Bokeh, which stand on one axis of steps where they are of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.models import (
    BoxZoomTool,
    CDSView,
    ColumnDataSource,
    CrosshairTool,
    FixedTicker,
    HoverTool,
    IndexFilter,
    NumeralTickFormatter,
    PanTool,
    Range1d,
    Span,
    TapTool,
    WheelZoomTool,
)
from bokeh.plotting import figure as new_figure

from dlf_dynamics.analysis.report.cells import RUNS
from dlf_dynamics.analysis.report.content import Column, Panel, Series, Window
from dlf_dynamics.analysis.report.view import distinct, heights

STEPS = "steps"
"""Name of the range that all panels of steps share."""

_HEIGHT, _OWN_HEIGHT, _LEFT = 170, 300, 68
"""Pixels of a panel of steps, of one with an axis of its own, and beside it for numbers."""

_DENSE, _FEW = 2000, 300
"""Points from which they are drawn small, and up to which they are joined, before the page knows
how many there are to a pixel."""

_SHADE = "#888888"

_STROKES = ("cross", "dash", "x", "y")
"""Markers that have no inside."""


@dataclass
class Sources:
    """Columns of numbers that figures draw from; series of the same steps share theirs.

    Attributes:
        of: the columns by the identity of the array of steps.
    """

    of: dict[int, tuple[np.ndarray, Any]] = field(default_factory=dict)

    def source(self, x: np.ndarray) -> Any:
        """That of these steps."""
        known, source = self.of.get(id(x), (None, None))
        if known is not x or source is None:
            source = ColumnDataSource(data={"x": _column(x)})
            self.of[id(x)] = (x, source)
        return source

    def add(self, source: Any, content: Column) -> str:
        """Adds a column; returns its name."""
        name = f"c{len(source.data)}"
        source.data[name] = _column(content)
        return name


def _column(content: Column) -> Any:
    """As the page gets it: numbers bit for bit, whole ones as far as they fit into 32 bits."""
    if not isinstance(content, np.ndarray):
        return list(content)
    if content.dtype.kind == "b":
        return content.astype(np.uint8)
    if content.dtype.kind in "iu":
        fits = np.all(np.abs(content) < 2**31)
        return content.astype(np.int32 if fits else np.float64)
    return np.ascontiguousarray(content)


class StepAxis:
    """The axis of steps of a page, and what its panels share.

    Attributes:
        range: of the axis.
    """

    def __init__(self, first: float, last: float, windows: Sequence[Window]) -> None:
        margin = 0.01 * (last - first) or 0.5
        self.range: Any = Range1d(start=first - margin, end=last + margin, name=STEPS)
        self.range.tags = [[first - margin, last + margin], [first, last]]
        self._cross = Span(dimension="height", line_color="#888888", line_dash="dotted")
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
                plot.vstrip(
                    "first",
                    "last",
                    source=source,
                    fill_color=_SHADE,
                    fill_alpha=0.22 if strong else 0.12,
                    line_color=None,
                )
        plot.add_tools(CrosshairTool(overlay=self._cross))


def draw(panel: Panel, sources: Sources, steps: StepAxis | None) -> tuple[Any, list[str]]:
    """A panel as a figure, and what is to be said under it.

    Args:
        panel: with at least one series.
        sources: of the page.
        steps: the axis of steps; none where the panel has an axis of its own.
    """
    low, high, notes = heights(panel)
    kind = "log" if panel.logarithmic else "linear"
    plot: Any = new_figure(
        height=_OWN_HEIGHT if steps is None else _HEIGHT,
        sizing_mode="stretch_width",
        x_range=_own_range(panel) if steps is None else steps.range,
        y_range=Range1d(start=low, end=high),
        x_axis_type="log" if panel.logarithmic_x else "linear",
        y_axis_type=kind,
        tools="",
        toolbar_location=None,
        min_border_left=_LEFT,
        min_border_right=14,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        lod_threshold=None,
    )
    plot.tags = [
        {
            "home": [low, high],
            "across": [plot.x_range.start, plot.x_range.end],
            "steps": steps is not None,
        }
    ]
    if steps is not None:
        steps.furnish(plot)
    groups: dict[str, list[tuple[Series, Any, list[tuple[str, str]]]]] = {}
    for number, series in enumerate(panel.series):
        source = sources.source(series.x)
        line, rows = _draw_series(plot, panel, series, number, sources, (low, high))
        groups.setdefault(source.id, []).append((series, line, rows))
    for name, place in panel.lines.items():
        plot.add_layout(
            Span(location=place, dimension="height", line_color="#D55E00", line_dash="dashed")
        )
        notes.append(f"dashed line: {name}")
    _add_tools(plot, panel, list(groups.values()), of_steps=steps is not None)
    _label_axes(plot, panel, steps)
    return plot, [note for note in [panel.note, *notes] if note]


def _own_range(panel: Panel) -> Range1d:
    """From the first to the last place of all series."""
    places = np.concatenate([np.asarray(series.x, float) for series in panel.series])
    places = places[np.isfinite(places)]
    first, last = (float(places.min()), float(places.max())) if len(places) else (0.0, 1.0)
    if panel.logarithmic_x:
        return Range1d(start=first / 1.05, end=last * 1.05)
    margin = 0.02 * (last - first) or 0.5
    return Range1d(start=first - margin, end=last + margin)


def _draw_series(
    plot: Any,
    panel: Panel,
    series: Series,
    number: int,
    sources: Sources,
    limits: tuple[float, float],
) -> tuple[Any, list[tuple[str, str]]]:
    """Draws it; returns the line under the pointer, and the rows of what is told there."""
    source = sources.source(series.x)
    y = sources.add(source, series.y)
    rows = [(series.name, y)]
    name = f"series-{number}"
    common = {"source": source, "name": name}
    if series.intervals is not None:
        rows += _draw_intervals(plot, series, sources, common)
    few = len(series.x) <= _FEW
    alpha = {"line": 1.0, "marks": 0.0}.get(series.style, 0.5 if few else 0.0)
    width = 1.4 if series.style == "line" else 0.7
    line = plot.line(
        "x",
        y,
        line_color=series.colour,
        line_width=width,
        line_alpha=alpha,
        line_dash=series.dash,
        tags=[series.style],
        **common,
    )
    if series.style != "line":
        kept = distinct(series.x, series.y, limits, logarithmic=panel.logarithmic)
        kept = kept if series.style == "points" else np.arange(len(series.x))
        view = (
            {}
            if series.style == "marks"
            else {"view": CDSView(filter=IndexFilter(indices=kept.tolist()))}
        )
        small = 2.0 if len(series.x) > _DENSE else 4.0
        plot.scatter(
            "x",
            y,
            marker=series.marker,
            size=value(8.0 if series.style == "marks" else small),
            fill_color=series.colour if series.filled else None,
            line_color=series.colour
            if series.style == "marks" or series.marker in _STROKES
            else None,
            tags=[series.style],
            **common,
            **view,
        )
    if series.runs:
        source.data[RUNS] = [" ".join(map(str, some)) for some in series.runs]
        plot.add_tools(TapTool(renderers=[plot.renderers[-1]]))
    rows += [(label, sources.add(source, column)) for label, column in series.beside.items()]
    return line, rows


def _draw_intervals(
    plot: Any, series: Series, sources: Sources, common: dict[str, Any]
) -> list[tuple[str, str]]:
    assert series.intervals is not None
    source = common["source"]
    low, high = (sources.add(source, np.ascontiguousarray(end)) for end in series.intervals.T)
    if series.band:
        plot.varea("x", low, high, fill_color=series.colour, fill_alpha=0.25, **common)
    else:
        plot.segment(
            "x", low, "x", high, line_color=series.colour, line_alpha=0.35, line_width=1, **common
        )
    return [("from", low), ("to", high)]


def _add_tools(
    plot: Any,
    panel: Panel,
    groups: list[list[tuple[Series, Any, list[tuple[str, str]]]]],
    *,
    of_steps: bool,
) -> None:
    """Zoom by dragging and by the wheel with a key, and what is told under the pointer."""
    dimensions: Any = "width" if of_steps else "both"
    drag = BoxZoomTool(dimensions=dimensions)
    plot.add_tools(drag, PanTool(dimensions=dimensions))
    plot.add_tools(WheelZoomTool(dimensions=dimensions, modifiers="ctrl"))
    plot.toolbar.active_drag = drag
    for group in groups:
        # One text for all series of the same steps, at the one that has most values.
        at = max(group, key=lambda entry: int(np.isfinite(np.asarray(entry[0].y, float)).sum()))
        place = "step" if of_steps else panel.x_label
        # The places on an axis with ticks of its own are not those that their labels tell.
        rows = [] if panel.ticks is not None else [(place, "@x{%g}")]
        formatters = {"@x": "printf"}
        for series, _, columns in group:
            for label, column in columns:
                numbers = _is_number(series, label)
                rows.append((label, f"@{column}{{%g}}" if numbers else f"@{column}"))
                if numbers:
                    formatters[f"@{column}"] = "printf"
        plot.add_tools(
            HoverTool(
                renderers=[at[1]],
                mode="vline",
                line_policy="nearest",
                tooltips=rows,
                formatters=formatters,  # type: ignore[arg-type]
            )
        )


def _is_number(series: Series, label: str) -> bool:
    column = series.beside.get(label)
    return column is None or isinstance(column, np.ndarray)


def _label_axes(plot: Any, panel: Panel, steps: StepAxis | None) -> None:
    """Steps are whole numbers without powers of ten; an own axis has its name and its ticks."""
    plot.axis.axis_line_width = 1
    plot.yaxis.ticker.desired_num_ticks = 4 if steps is not None else 6
    plot.axis.minor_tick_line_color = None
    plot.axis.major_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_size = "12px"
    plot.axis.axis_label_text_font_style = "normal"
    if steps is not None:
        plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
        plot.xaxis.ticker.min_interval = 1
        return
    plot.xaxis.axis_label = panel.x_label
    if panel.ticks is not None:
        plot.xaxis.ticker = FixedTicker(ticks=list(panel.ticks))
        plot.xaxis.major_label_overrides = dict(panel.ticks)
