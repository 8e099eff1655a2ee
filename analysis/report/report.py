"""`write_report`: runs, or a study, with what is on file of them, as one page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.report.content import Panel, Part, Series, flat
from dlf_dynamics.analysis.report.page import Page, render
from dlf_dynamics.analysis.report.run_part import run_part
from dlf_dynamics.analysis.style import COLOURS
from dlf_dynamics.errors import FileError
from dlf_dynamics.registry import ANALYSES
from dlf_dynamics.resultfile import write_whole
from dlf_dynamics.run import Run

_DASHES = ("solid", "dashed", "dotted", "dotdash")
_MARKERS = ("square", "circle", "triangle", "diamond")


def write_report(runs: Sequence[Run], output: Path) -> list[FileError]:
    """Writes the report of a run, or of several beside each other.

    It may be called again while a run is still being written, with the run reopened: the file is
    replaced by a whole one each time.

    Args:
        runs: opened runs; their results are those beside their files.
        output: name of the HTML file.

    Returns:
        What is wrong with results that could not be shown, such as those of an earlier state of the
        run; the report names them, too.

    Raises:
        FileError: when a run has no rows yet, or the file cannot be written.
    """
    for run in runs:
        if len(run.steps) == 0:
            raise FileError(
                f"{run.path} has no rows; expected at least one to report; train on or anew"
            )
    parts, refused = [], []
    names = _names([run.path for run in runs])
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        of_run, wrong = run_parts(run)
        parts.append(of_run if len(runs) == 1 else [_of_run(p, name, number) for p in of_run])
        refused += wrong
    page = Page(
        title=" · ".join(names),
        parts=parts[0] if len(runs) == 1 else overlaid(parts),
        first=float(min(run.steps[0] for run in runs)),
        last=float(max(run.steps[-1] for run in runs)),
    )
    write_whole(output, render(page, several=len(runs) > 1).encode())
    return refused


def run_parts(run: Run) -> tuple[list[Part], list[FileError]]:
    """What a run has to show, then each of its analyses; and what is wrong with their files."""
    parts, refused, missing = [run_part(run)], [], []
    for name in ANALYSES:
        analysis = analysis_named(name)
        path = analysis.path(run.path)
        if not path.exists():
            missing.append(f"no {path.name}, which `dlf-dynamics {name} {run.path.name}` makes")
            continue
        try:
            result = analysis.load(path, run)
        except FileError as error:  # the rest of the report does not depend on it
            refused.append(error)
            missing.append(f"not shown: {error}")
            continue
        part = analysis.report(run, result)
        origin = json.loads(resultfile.read(path, name, None).provenance)
        settings = dataclasses.asdict(result.config)
        facts = flat({"settings": settings, "provenance": origin})
        parts.append(replace(part, facts={**part.facts, **facts}))
    first = parts[0]
    facts = flat({"provenance": dict(run.provenance)})
    parts[0] = replace(first, lines=[*first.lines, *missing], facts={**first.facts, **facts})
    return parts, refused


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of the files, each once: the whole path where two have the same name."""
    short = [path.name for path in paths]
    names = [str(p) if short.count(p.name) > 1 else p.name for p in paths]
    seen: dict[str, count[int]] = {}
    return [f"{n} ({k})" if (k := next(seen.setdefault(n, count(1)))) > 1 else n for n in names]


def _of_run(part: Part, name: str, number: int) -> Part:
    """The part of one of several runs: named after it, and in its colour."""
    return replace(
        part,
        title=f"{name}: {part.title}",
        panels=[_recoloured(panel, name, COLOURS[number % len(COLOURS)]) for panel in part.panels],
    )


def _recoloured(panel: Panel, name: str, colour: str) -> Panel:
    """Distinguishes the series of runs by dashes and marks in panels of steps, else by colour."""
    if panel.x_label:
        return replace(panel, title=f"{name}: {panel.title}")
    series = [
        replace(
            each,
            name=f"{name}: {each.name}",
            colour=colour,
            dash=_DASHES[number % len(_DASHES)],
            marker=_MARKERS[number % len(_MARKERS)] if each.marker == "square" else each.marker,
        )
        for number, each in enumerate(panel.series)
    ]
    return replace(panel, series=series)


def overlaid(runs: Sequence[Sequence[Part]]) -> list[Part]:
    """The parts of several runs, their panels of steps laid over each other by title."""
    panels: dict[str, Panel] = {}
    parts: list[Part] = []
    for part in (part for run in runs for part in run):
        own = []
        for panel in part.panels:
            if panel.x_label:
                own.append(panel)
            elif panel.title in panels:
                panels[panel.title] = _joined(panels[panel.title], panel)
            else:
                panels[panel.title] = panel
        parts.append(replace(part, panels=own))
    return [replace(parts[0], panels=[*panels.values(), *parts[0].panels]), *parts[1:]]


def _joined(below: Panel, above: Panel) -> Panel:
    notes = dict.fromkeys(note for note in (below.note, above.note) if note)
    series: list[Series] = [*below.series, *above.series]
    return replace(
        below,
        series=series,
        logarithmic=below.logarithmic and above.logarithmic,
        note="; ".join(notes),
    )
