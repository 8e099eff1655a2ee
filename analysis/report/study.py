"""The report of a study: its phase diagrams, and the configuration of each run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm, to_hex

from dlf_dynamics.analysis.report.content import Cells, Panel, Part, Series, Table, flat
from dlf_dynamics.analysis.report.page import Page, render
from dlf_dynamics.analysis.studies.diagram_plots import (
    DiagramPanel,
    axis_label,
    axis_scale,
    cell_edges,
    diagram_panels,
    diagram_title,
    setting,
)
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.phase_diagram import PhaseDiagram, phase_diagram
from dlf_dynamics.analysis.studies.selection import (
    SEEDS,
    Selection,
    choose_axes,
    describe,
    select,
)
from dlf_dynamics.analysis.studies.study_plots import (
    CURVE_NAMES,
    LOGARITHMIC,
    CurveGroup,
    combinations,
    curve_groups,
    curves_by,
    group_colours,
    kept_curves,
    measured,
    moments,
)
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.analysis.style import COLOURS
from dlf_dynamics.errors import counted
from dlf_dynamics.jsontypes import finite
from dlf_dynamics.resultfile import write_whole

_COLOURS = 64
"""Colours of a palette."""


def study_diagrams(
    results: StudyResults, quantities: Sequence[str] | None = None
) -> dict[str, PhaseDiagram]:
    """The diagrams of a study, as `draw_study` chooses them; none where nothing but seeds varies.

    Args:
        results: results of the study.
        quantities: names of `NUMBERS`; none means those of general interest.

    Raises:
        ConfigError: when a quantity is unknown, or there are too many combinations of keys.
    """
    everything = select(results)
    if all(key in SEEDS for key in everything.keys):
        return {}
    axes = choose_axes(everything)
    return {
        quantity + named: phase_diagram(results, quantity, x=axes[0], y=axes[1], fixed=fixed)
        for named, fixed in combinations(everything, axes).items()
        for quantity in (measured(results) if quantities is None else quantities)
    }


def write_study_report(
    results: StudyResults, diagrams: Mapping[str, PhaseDiagram], output: Path
) -> None:
    """Writes the report of a study.

    Args:
        results: results of the study.
        diagrams: diagrams to show, by name.
        output: name of the HTML file.

    Raises:
        FileError: when the file cannot be written.
    """
    panels, cells = [], []
    for diagram in diagrams.values():
        if diagram.y_key is None:
            panels.append(_row(results, diagram))
        else:
            cells += [_cells(results, diagram, panel) for panel in diagram_panels(diagram)]
    empty = [panel.title for panel in panels if not panel.series]
    panels = [*(panel for panel in panels if panel.series), *_all_curves(results)]
    study = results.study
    facts = flat({"provenance": dict(results.provenance), "created": results.created})
    part = Part(
        "The study",
        [*_lines(results), *empty],
        tables=_static({name: d for name, d in diagrams.items() if d.y_key is not None}),
        panels=panels,
        cells=cells,
        facts=flat(json.loads(results.configs[0])) | facts if results.configs else facts,
    )
    subtitle = [f"{counted(len(study), 'run')}; {', '.join(study.keys)} vary"]
    page = Page(
        results.path.name,
        [part],
        subtitle=subtitle,
        own_title="Phase diagrams and curves",
        runs=_runs(results),
    )
    write_whole(output, render(page).encode())


def _all_curves(results: StudyResults) -> list[Panel]:
    """Means over the seeds along the run, of the runs that `draw_study` shows."""
    if results.curves is None or not np.any(np.isfinite(results.curves)):
        return []
    everything = select(results)
    if all(key in SEEDS for key in everything.keys):
        return _curves(results, everything, ())
    axes, panels = choose_axes(everything), []
    for fixed in combinations(everything, axes).values():
        by, at = curves_by(select(results, fixed), axes)
        panels += _curves(results, select(results, fixed | at), by)
    return panels


def _curves(results: StudyResults, selection: Selection, by: Sequence[str]) -> list[Panel]:
    """A panel for each curve that was kept, with bands of one standard error."""
    assert results.curves is not None
    groups = curve_groups(results, selection, by)
    drawn = np.unique(results.columns["steps"][np.concatenate([g.runs for g in groups])])
    fractions = np.linspace(0, 1, results.curves.shape[1])
    x, label = (fractions * drawn[0], "step of training") if len(drawn) == 1 else (fractions, "")
    fixed = [setting(key, value) for key, value in selection.fixed.items()]
    panels = []
    for name in kept_curves(results):
        values = results.curves[:, :, CURVES.index(name)]
        series = [
            _mean_curve(group, x, values, to_hex(colour).upper(), floored=name in LOGARITHMIC)
            for group, colour in zip(groups, group_colours(groups), strict=True)
        ]
        positive = name in LOGARITHMIC and any(np.any(one.y > 0) for one in series)
        title = "; ".join([f"mean {CURVE_NAMES[name]}", *fixed])
        panels.append(Panel(title, series, positive, x_label=label or "fraction of the run"))
    return panels


def _mean_curve(
    group: CurveGroup, x: np.ndarray, values: np.ndarray, colour: str, *, floored: bool
) -> Series:
    """The mean of a group with its band, which on a logarithmic axis does not go below 0."""
    mean, error = moments(values[group.runs])
    band = np.stack([mean - error, mean + error], axis=1)
    if floored:
        band = np.maximum(band, mean[:, None] / 10)
    missing = f" ({len(group.runs)} of {group.planned} runs)"
    return Series(
        group.label + (missing if len(group.runs) < group.planned else ""),
        x,
        mean,
        colour,
        "line",
        dash="dashed" if group.static else "solid",
        intervals=band,
        band=True,
    )


def _lines(results: StudyResults) -> list[str]:
    statuses = Counter("not done" if status is None else status for status in results.statuses)
    lines = [", ".join(f"{number:,} {status}" for status, number in statuses.items())]
    for key in results.study.keys:
        values = np.unique(results.study.values(key))
        shown = [describe(value) for value in values]
        more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
        lines.append(f"{key}: {', '.join(shown[:12])}{more}")
    failed = [m for m in dict.fromkeys(results.messages) if m]
    return [*lines, *(f"failed: {message}" for message in failed[:5])]


def _runs(results: StudyResults) -> dict[str, Any]:
    """What all runs share, and for each run what differs, with its numbers."""
    configs = [flat(json.loads(config)) for config in results.configs]
    common = configs[0] if configs else {}
    runs = [
        {
            "own": {key: value for key, value in config.items() if common.get(key) != value},
            "without": [key for key in common if key not in config],
            "status": status or "not done",
            "message": message,
            "numbers": finite({k: float(v[number]) for k, v in results.columns.items()}),
        }
        for number, (config, status, message) in enumerate(
            zip(configs, results.statuses, results.messages, strict=True)
        )
    ]
    return {"common": common, "keys": list(results.study.keys), "runs": runs}


def _members(results: StudyResults, diagram: PhaseDiagram) -> list[list[int]]:
    """Numbers of the runs of each cell, row by row."""
    selection = select(results, diagram.fixed)
    columns = selection.indices(diagram.x_key)
    indices_of_y = [None] if diagram.y_key is None else selection.indices(diagram.y_key)
    runs = []
    for row in indices_of_y:
        for column in columns:
            cell = {diagram.x_key: int(column)}
            if diagram.y_key is not None and row is not None:
                cell[diagram.y_key] = int(row)
            runs.append(np.flatnonzero(selection.moving & selection.agrees(cell)).tolist())
    return runs


def _cells(results: StudyResults, diagram: PhaseDiagram, panel: DiagramPanel) -> Cells:
    """One of the maps of a diagram."""
    scales = axis_scale(diagram.x), axis_scale(diagram.y)
    named = "" if not diagram.fixed else f"; {_fixed(diagram)}"
    shades = mpl.colormaps[panel.colours](np.linspace(0, 1, _COLOURS))
    return Cells(
        title=f"{panel.label}{named}",
        axes=(axis_label(diagram.x_key), axis_label(diagram.y_key)),
        values=([describe(v) for v in diagram.x], [describe(v) for v in diagram.y]),
        edges=(cell_edges(diagram.x, scales[0]), cell_edges(diagram.y, scales[1])),
        numbers=panel.values,
        palette=[to_hex(colour) for colour in shades],
        limits=(float(panel.norm.vmin or 0.0), float(panel.norm.vmax or 1.0)),
        logarithmic=(scales[0] == "log", scales[1] == "log", isinstance(panel.norm, LogNorm)),
        missing=diagram.missing,
        beside=_told(diagram),
        runs=_members(results, diagram),
        note=diagram_title(diagram),
    )


def _fixed(diagram: PhaseDiagram) -> str:
    return ", ".join(setting(key, value) for key, value in diagram.fixed.items())


def _told(diagram: PhaseDiagram) -> dict[str, np.ndarray]:
    """The numbers of each cell."""
    return {
        "mean": diagram.mean,
        "standard error": diagram.standard_error,
        "runs": diagram.count,
        "missing": diagram.missing,
        "static (A = 1)": diagram.reference,
        "difference": diagram.difference,
        "its error": diagram.difference_error,
    }


def _row(results: StudyResults, diagram: PhaseDiagram) -> Panel:
    """Means with their standard errors against the only axis, and those of the static runs."""
    scale = axis_scale(diagram.x)
    positions = np.arange(len(diagram.x), dtype=float) if scale == "category" else diagram.x
    told, values = _told(diagram), [describe(value) for value in diagram.x]
    beside = {axis_label(diagram.x_key): values}
    beside |= {name: told[name][0] for name in ("runs", "missing")}

    def means(name: str, mean: np.ndarray, error: np.ndarray, colour: str, **more: Any) -> Series:
        ends = np.stack([mean - error, mean + error], axis=1)
        return Series(
            name, positions, mean, colour, "marks", marker="circle", intervals=ends, **more
        )

    static = means("static (A = 1)", diagram.static, diagram.static_error, COLOURS[5])
    mean, error = diagram.mean[0], diagram.standard_error[0]
    runs = _members(results, diagram)
    series = [static, means("mean", mean, error, COLOURS[0], beside=beside, runs=runs)]
    ticks = {float(p): text for p, text in zip(positions, values, strict=True)}
    return Panel(
        diagram_title(diagram),
        [one for one in series if np.any(np.isfinite(one.y))],
        x_label=axis_label(diagram.x_key),
        ticks=ticks,
        logarithmic_x=scale == "log",
    )


def _static(diagrams: Mapping[str, PhaseDiagram]) -> list[Table]:
    """The static runs of each column, where they do not depend on the row."""
    rows = [
        [
            name,
            axis_label(diagram.x_key),
            describe(diagram.x[k]),
            f"{diagram.static[k]:.6g}",
            f"{diagram.static_error[k]:.2g}",
            str(diagram.static_count[k]),
            str(diagram.static_missing[k]),
        ]
        for name, diagram in diagrams.items()
        for k in np.flatnonzero(diagram.static_count + diagram.static_missing)
    ]
    heading = ["quantity", "at", "", "mean", "standard error", "runs", "missing"]
    return [Table("Static runs (A = 1)", heading, rows)] if rows else []
