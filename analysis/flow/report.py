"""What the report of a run shows of its central flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from rich.table import Table as RichTable

from dlf_dynamics.analysis.flow.flow import Flow
from dlf_dynamics.analysis.flow.plots import GREY, MEASURED, THRESHOLD, style_of
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW
from dlf_dynamics.analysis.flow.windows import (
    COUNTS,
    REACH,
    along,
    counting_looks,
    drawable_energy,
    near_threshold,
    rules_of,
    stretches,
)
from dlf_dynamics.analysis.report.content import Panel, Part, Series, Table, around, told
from dlf_dynamics.analysis.style import spans_decades

_TITLES = {
    "loss": "loss, averaged over three steps",
    "sharpness": "sharpness at centres",
    "energy": "energy of the oscillation",
    "distance": "distance of centres from the run's",
}


def flow_part(flow: Flow, results: Sequence[str | RichTable]) -> Part:
    """Words and tables, which looks count, and the panels of measured and predicted.

    Args:
        flow: the compared flow.
        results: what a person reads of it.
    """
    part = told("Central flow", results)
    panels = [_panel(flow, name) for name in _TITLES]
    shown = [panel for panel in panels if panel.series]
    return replace(part, tables=[*part.tables, _windows(flow)], panels=shown)


def _windows(flow: Flow) -> Table:
    """Stretches of looks that count, and those that do not by the rule that says so."""
    rows, spans = [], []
    chosen = {COUNTS: counting_looks(flow)} | rules_of(flow)
    windows = [(first, last, name) for name in chosen for first, last in stretches(chosen[name])]
    for first, last, name in sorted(windows):
        begin, end = flow.observed.steps[[first, last]].tolist()
        rows.append([f"{begin}-{end}", str(last - first + 1), name])
        spans.append(around(begin, end))
    return Table("Where the theories may be applied", ["steps", "looks", "rule"], rows, spans=spans)


def _panel(flow: Flow, name: str) -> Panel:
    """Measured where there is such a thing, and all theories; grey where nothing counts."""
    series: list[Series] = []
    shown, steps = [], flow.observed.steps
    if name != "distance":
        shown.append(flow.observed.column(name))
        series += _measured(flow, name)
    for theory in flow.theories:
        column = lambda segment, of=theory: segment.column(of, name)  # noqa: E731
        values, inside = along(flow, column), along(flow, column, counted=True)
        if not np.any(np.isfinite(values)):
            continue
        own = theory == CENTRAL_FLOW
        if own:
            shown.append(values)
            outside = np.where(np.isfinite(inside), np.nan, values)
            series.append(Series(f"{theory}, outside", steps, outside, GREY))
        if np.any(np.isfinite(inside)):
            colour = style_of(theory)["color"]
            marker = "circle" if own else "diamond"
            series.append(Series(theory, steps, inside, colour, marker=marker))
    note = "grey: outside, where nothing counts as agreement"
    if name == "sharpness" and np.any(np.isnan(near_threshold(flow))):
        note += f"; the threshold only up to {REACH} times its least value or the largest sharpness"
    return Panel(_TITLES[name], series, bool(shown) and spans_decades(*shown), note=note)


def _measured(flow: Flow, name: str) -> list[Series]:
    """The looks that count and those that do not, with the threshold of the sharpness."""
    observed, counts, series = flow.observed, counting_looks(flow), []
    ends: Float[np.ndarray, "looks 2"] | None = None
    if name == "sharpness":
        series.append(Series("threshold", observed.steps, near_threshold(flow), THRESHOLD, "line"))
        ends = np.stack([observed.column(f"sharpness_{end}") for end in ("low", "high")], axis=1)
    measured = drawable_energy(flow) if name == "energy" else observed.column(name)
    for chosen, colour, words in (
        (counts, MEASURED, "measured"),
        (~counts, GREY, "measured, outside"),
    ):
        if np.any(chosen):
            shown = np.where(chosen, measured, np.nan)
            own = None if ends is None else np.where(chosen[:, None], ends, np.nan)
            series.append(Series(words, observed.steps, shown, colour, "cloud", intervals=own))
    return series
