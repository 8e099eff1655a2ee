"""The last model of `burst.py` as an interactive page, computed in the browser.

Bokeh draws it; its script is part of the page, as in reports, so that nothing is fetched.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.models import ColumnDataSource, Range1d
from bokeh.resources import INLINE
from jinja2 import Environment

from dlf_dynamics.analysis.report.frame import frame

TITLE = "A burst to play with"

PANELS = {
    "Class weights": ((0.0, 2.1), False, {"first": "#009E73", "second": "#CC79A7"}),
    "λ at the bottom of the valley": ((0.1, 20.0), True, {"sharpness": "", "threshold": "#D55E00"}),
    "Output f": ((-5.0, 5.0), False, {"output": "", "bottom": "#D55E00"}),
}
"""Limits, whether logarithmic, and columns with their colours, for each panel."""

BLUE = "#2A8FD0"
"""Visible on white and on black."""


def page() -> str:
    """The page as HTML; its numbers are computed when it is opened."""
    columns = [name for _, _, drawn in PANELS.values() for name in drawn]
    source = ColumnDataSource({name: [] for name in ["phase", *columns]}, name="steps")
    x_range, document = Range1d(start=0.5, end=3.5), Document()
    for limits, logarithmic, drawn in PANELS.values():
        plot: Any = frame(190, x_range, limits, logarithmic=(False, logarithmic))
        plot.min_border_left = 56  # aligns the left edges of the panels
        for name, colour in drawn.items():
            if name == "output":
                plot.scatter("phase", name, source=source, color=BLUE, size=2)
            else:
                plot.line("phase", name, source=source, color=colour or BLUE, line_width=1.5)
        document.add_root(plot)
    style = files("dlf_dynamics.analysis.report").joinpath("page.css").read_text("utf-8")
    text = Path(__file__).with_name("burst.html").read_text("utf-8")
    return file_html(
        document,
        INLINE,
        TITLE,
        template=Environment(autoescape=True, trim_blocks=True).from_string(text),
        template_variables={"style": style, "names": list(PANELS)},
    )
