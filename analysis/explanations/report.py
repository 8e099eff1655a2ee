"""What the report of a run shows of its explained steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table as RichTable

from dlf_dynamics.analysis.explanations.explanation import Explanation, Explanations
from dlf_dynamics.analysis.explanations.words import headline
from dlf_dynamics.analysis.report.content import Panel, Part, Series, Table, told
from dlf_dynamics.analysis.style import COLOURS


def explanation_part(explanations: Explanations, results: Sequence[str | RichTable]) -> Part:
    """The paragraphs, a table whose rows lead to the steps, and the projections around them.

    Args:
        explanations: the explained steps.
        results: what a person reads of it.
    """
    steps = explanations.explanations
    table = Table(
        title="Explained steps",
        columns=["step", "in short"],
        rows=[[str(one.step), headline(one).partition(": ")[2]] for one in steps],
        spans=[(float(one.around.steps[0]), float(one.around.steps[-1])) for one in steps],
    )
    panels = [_projection(one) for one in steps]
    return replace(
        told("Explained steps", results),
        tables=[table],
        panels=[panel for panel in panels if panel.series],
    )


def _projection(one: Explanation) -> Panel:
    known = np.isfinite(one.around.projection)
    steps, values = one.around.steps[known], one.around.projection[known]
    series = [Series("iterates", steps, values, COLOURS[0])] if len(steps) else []
    return Panel(f"projection on the mode of step {one.step}", series)
