"""What the report of a run shows of its edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table as RichTable

from dlf_dynamics.analysis.edge.batches import FULL
from dlf_dynamics.analysis.edge.edge import Edge
from dlf_dynamics.analysis.report.content import Panel, Part, Series, Table, around, told
from dlf_dynamics.analysis.style import COLOURS, spans_decades

_THRESHOLD = COLOURS[5]


def edge_part(edge: Edge, results: Sequence[str | RichTable]) -> Part:
    """Words and tables, and the two panels of the checkpoints.

    Args:
        edge: the edge of the run.
        results: what a person reads of it.
    """
    part = told("Mean-square stability", results)
    panels = [panel for panel in (_ratio(edge), _curvature(edge)) if panel.series]
    crossings = [_crossings(edge)] if edge.crossings else []
    return replace(part, tables=[*part.tables, *crossings], panels=panels)


def _crossings(edge: Edge) -> Table:
    rows = [
        [
            c.name,
            c.direction,
            f"{c.step_before}-{c.step_after}",
            f"{c.ratio_before:.4g}",
            f"{c.ratio_after:.4g}",
            c.state,
        ]
        for c in edge.crossings
    ]
    columns = ["threshold", "direction", "between steps", "before", "after", "state"]
    spans = [around(c.step_before, c.step_after, 3.0, 100) for c in edge.crossings]
    return Table("Crossings of 1 by η over its threshold", columns, rows, spans=spans)


def _ratio(edge: Edge) -> Panel:
    """Intervals of η over its threshold, with the line that is one, or a reference."""
    steps, ratio, sides = edge.steps, edge.ratio, edge.column("side")
    middle = np.mean(ratio, axis=1)
    if not np.any(np.isfinite(middle)):
        return Panel("η / η_ms", [])
    series = [Series("η / η_ms", steps, middle, COLOURS[0], intervals=ratio)]
    undecided = (sides == 0) & np.isfinite(middle)
    if np.any(undecided):
        at = steps[undecided], middle[undecided]
        series.append(Series("undecided", *at, COLOURS[0], "marks", marker="circle", filled=False))
    why = edge.batches.why_reference
    name, dash = ("1, a reference", "dashed") if why else ("1", "solid")
    series.append(Series(name, steps, np.ones(len(steps)), _THRESHOLD, "line", dash=dash))
    return Panel("η / η_ms, independent batches", series, spans_decades(middle), note=why)


def _curvature(edge: Edge) -> Panel:
    """Largest eigenvalues, the full-batch threshold, and what was measured."""
    steps, series = edge.steps, []
    operator = "P⁻¹" if edge.preconditioned else ""
    for name, colour, words in (
        ("sharpness", COLOURS[4], f"{operator}H"),
        ("ggn", COLOURS[2], f"{operator}GGN"),
    ):
        values = edge.column(name)
        ends = np.stack([edge.column(f"{name}_{end}") for end in ("low", "high")], axis=1)
        if np.any(np.isfinite(values)):
            series.append(Series(words, steps, values, colour, intervals=ends))
    measured = edge.column("batch_sharpness")
    if np.any(np.isfinite(measured)):
        marks = Series(
            "batch sharpness (measured)", steps, measured, COLOURS[1], "marks", marker="x"
        )
        series.append(marks)
    limits = edge.column("full_batch")
    if np.any(np.isfinite(limits)):
        dash = "solid" if edge.batches.sampling == FULL else "dashed"
        series.append(Series("full batch", steps, limits, _THRESHOLD, "line", dash=dash))
    shown = [s.y for s in series]
    return Panel("curvature of all examples", series, bool(shown) and spans_decades(*shown))
