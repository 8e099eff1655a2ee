"""A page: parts with words, tables and panels as one HTML file that fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.resources import INLINE
from jinja2 import Environment, Template

from dlf_dynamics import __version__
from dlf_dynamics.analysis.report.cells import draw_cells
from dlf_dynamics.analysis.report.citation import CITATIONS
from dlf_dynamics.analysis.report.content import Panel, Part
from dlf_dynamics.analysis.report.figures import StepAxis, draw
from dlf_dynamics.analysis.report.frame import Sources


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        title: heading.
        parts: parts from top to bottom; their panels of steps stand together, and so do the others.
        first: step at which the axis of steps begins.
        last: step at which it ends.
        subtitle: lines below the title.
        own_title: heading of the panels with separate axes.
        runs: runs of a study, as the script reads them: `common` and `runs`; none without them.
    """

    title: str
    parts: Sequence[Part]
    first: float = 0.0
    last: float = 1.0
    subtitle: Sequence[str] = ()
    own_title: str = "Spectra and diagrams"
    runs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Shown:
    """A panel as the template sees it."""

    number: int
    title: str
    notes: Sequence[str]
    legend: Sequence[Any] = field(default_factory=list)
    always_named: bool = False


@cache
def _text(name: str) -> str:
    return files("dlf_dynamics.analysis.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    """The template, which escapes all that is put into it, unless marked as safe."""
    return Environment(autoescape=True, trim_blocks=True).from_string(_text("page.html"))


def render(page: Page, *, several: bool = False) -> str:
    """The page as HTML.

    Args:
        page: what is on it.
        several: whether it shows several runs, so that single series are named as well.
    """
    windows = list(dict.fromkeys(window for part in page.parts for window in part.windows))
    steps, sources = StepAxis(page.first, page.last, windows), Sources()
    figures: list[Any] = []
    shown: dict[bool, list[_Shown]] = {True: [], False: []}
    for panel in (panel for part in page.parts for panel in part.panels):
        of_steps = not panel.x_label
        figure, notes = draw(panel, sources, steps if of_steps else None)
        named = several and of_steps
        shown[of_steps].append(_Shown(len(figures), panel.title, notes, _legend(panel), named))
        figures.append(figure)
    for cells in (cells for part in page.parts for cells in part.cells):
        figure, notes = draw_cells(cells)
        shown[False].append(_Shown(len(figures), cells.title, notes))
        figures.append(figure)
    variables = {
        "page": _content(page, shown) | {"windows": windows},
        "version": __version__,
        "style": _text("page.css"),
        "script": _text("page.js"),
    }
    return _filled(figures, page.title, variables)


def _content(page: Page, shown: Mapping[bool, Sequence[_Shown]]) -> dict[str, Any]:
    """The values that the template needs, except the figures themselves."""
    return {
        "title": page.title,
        "subtitle": page.subtitle,
        "parts": [part for part in page.parts if part.lines or part.tables],
        "step_panels": shown[True],
        "own_panels": shown[False],
        "own_title": page.own_title,
        "facts": {part.title: part.facts for part in page.parts if part.facts},
        "runs": page.runs,
        "num_runs": len(page.runs["runs"]) if page.runs else 0,
        "citations": CITATIONS,
    }


def _filled(figures: Sequence[Any], title: str, variables: Mapping[str, Any]) -> str:
    """The template with the figures, and Bokeh's script if there are any."""
    if not figures:
        return _template().render(variables)
    document = Document()
    with document.models.freeze():  # or all models were looked through for each figure
        for figure in figures:
            document.add_root(figure)
    return file_html(
        document, INLINE, title, template=_template(), template_variables=dict(variables)
    )


_GLYPHS = {
    "triangle": "▲△",
    "inverted_triangle": "▼▽",
    "diamond": "◆◇",
    "circle": "●○",
    "square": "■□",
    "x": "××",
    "cross": "++",
    "y": "⅄⅄",
    "dash": "––",
}
"""Characters for markers in a legend: filled, and hollow."""

_LINES = {"solid": "━", "dashed": "╍", "dotted": "┅", "dotdash": "┉"}


def _legend(panel: Panel) -> list[dict[str, Any]]:
    """An entry for each name, with the numbers of the series that have it."""
    legend: dict[str, dict[str, Any]] = {}
    for number, series in enumerate(panel.series):
        sign = _GLYPHS[series.marker][not series.filled]
        if series.style == "line":
            sign = _LINES[series.dash]
        entry = {"name": series.name, "colour": series.colour, "sign": sign, "series": []}
        legend.setdefault(series.name, entry)["series"].append(number)
    return list(legend.values())
