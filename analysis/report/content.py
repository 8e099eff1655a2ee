"""What a report shows, independent of any library: words, tables, panels.

A run, each of its analyses and a study give a `Part` of it; pages and figures are made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from rich.table import Table as RichTable

Column = np.ndarray | Sequence[str]
"""Numbers or texts, one for each point."""

Style = Literal["points", "cloud", "line", "marks"]


@dataclass(frozen=True)
class Series:
    """Values against the steps, or against another axis of the panel.

    Attributes:
        name: what the legend calls it.
        x: increasing, shape (points,).
        y: shape (points,); what is not finite is left out and counted.
        colour: such as #0072B2.
        style: `points`, which are joined where they are far apart; a `cloud` of points that never
            are; a `line`, for what has a value in between; or `marks`, which are few and large.
        dash: pattern of lines.
        marker: shape of points, by its name in Bokeh.
        filled: whether markers are.
        beside: further values of each point for its tooltip, by name.
        intervals: lower and upper ends, shape (points, 2); none where there are none.
        band: whether the intervals are drawn as a band, not as a bar at each point.
        runs: numbers of the runs of each point, in a study.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    style: Style = "points"
    dash: str = "solid"
    marker: str = "square"
    filled: bool = True
    beside: Mapping[str, Column] = field(default_factory=dict)
    intervals: np.ndarray | None = None
    band: bool = False
    runs: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Panel:
    """Series on two axes.

    Attributes:
        title: what is on the vertical axis.
        series: what is drawn, from back to front.
        logarithmic: whether the vertical axis is logarithmic.
        note: note below it.
        x_label: name of a separate axis; empty for the axis of steps, which panels share.
        ticks: positions and labels of the ticks of a separate axis; none chooses them.
        logarithmic_x: whether a separate axis is logarithmic.
        lines: positions of vertical lines, by their names in the legend.
    """

    title: str
    series: Sequence[Series]
    logarithmic: bool = False
    note: str = ""
    x_label: str = ""
    ticks: Mapping[float, str] | None = None
    logarithmic_x: bool = False
    lines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cells:
    """Numbers in the plane of two axes, a colour for each.

    Attributes:
        title: what the numbers are.
        axes: names of the horizontal and the vertical axis.
        values: labels of the horizontal and the vertical axis.
        edges: ends of the cells on both axes.
        numbers: shape (rows, columns); NaN where there is none.
        palette: colours from the least to the largest.
        limits: numbers at both ends of the palette.
        logarithmic: whether the horizontal axis, the vertical one, and the colours are.
        missing: what is hatched, as numbers are not of all that belongs there, (rows, columns).
        beside: further values of each cell for its tooltip, by name, (rows, columns).
        runs: numbers of the runs of each cell, row by row.
        note: note below it.
    """

    title: str
    axes: tuple[str, str]
    values: tuple[Sequence[str], Sequence[str]]
    edges: tuple[np.ndarray, np.ndarray]
    numbers: np.ndarray
    palette: Sequence[str]
    limits: tuple[float, float]
    logarithmic: tuple[bool, bool, bool]
    missing: np.ndarray
    beside: Mapping[str, np.ndarray]
    runs: Sequence[Sequence[int]]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        title: text above it.
        columns: headings.
        rows: cells of each row.
        caption: text below it.
        spans: first and last step that the panels show when a row is chosen, one for each row;
            empty for a table whose rows lead nowhere.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    spans: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Window:
    """A stretch of steps that is shaded in the panels.

    Attributes:
        first: step.
        last: step.
        strong: whether it is shaded darker.
    """

    first: int
    last: int
    strong: bool = False


@dataclass(frozen=True)
class Part:
    """What a run, or an analysis of it, has to show.

    Attributes:
        title: heading.
        lines: sentences, a line each.
        tables: tables below the lines.
        panels: figures; those on the axis of steps stand with those of all other parts.
        cells: figures of a plane.
        windows: windows that are shaded in all panels on the axis of steps.
        facts: names and values, such as settings, to be looked up.
    """

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    panels: Sequence[Panel] = ()
    cells: Sequence[Cells] = ()
    windows: Sequence[Window] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def told(title: str, results: Iterable[str | RichTable]) -> Part:
    """The lines and tables of the terminal as a part of a report.

    Args:
        title: heading.
        results: lines and tables, as `Analysis.lines` gives them.
    """
    lines = [result for result in results if isinstance(result, str)]
    tables = [table_of(result) for result in results if isinstance(result, RichTable)]
    return Part(title, lines, tables)


def table_of(table: RichTable, spans: Sequence[tuple[float, float]] = ()) -> Table:
    """A table of the terminal as one of a report.

    Args:
        table: table whose cells are text.
        spans: see `Table`.
    """
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    return Table(
        title=str(table.title or ""),
        columns=[str(column.header) for column in table.columns],
        rows=[list(row) for row in zip(*cells, strict=True)],
        caption=str(table.caption or ""),
        spans=spans,
    )


def around(
    first: float, last: float, share: float = 0.25, least: float = 10
) -> tuple[float, float]:
    """The span of steps that shows an event with something before and after it.

    >>> around(100, 200), around(7, 8)
    ((75.0, 225.0), (-3.0, 18.0))
    """
    margin = max(share * (last - first), least)
    return float(first - margin), float(last + margin)


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as names and values.

    >>> flat({"optimizer": {"name": "sgd"}, "steps": 10})
    {'optimizer.name': 'sgd', 'steps': '10'}
    """
    texts: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            texts |= flat(value, f"{prefix}{key}.")
        else:
            texts[f"{prefix}{key}"] = str(value)
    return texts
