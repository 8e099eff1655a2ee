"""The instabilities of a run in its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.table import Table as RichTable

from dlf_dynamics.analysis.bifurcation.branch_plots import DOWN, UP
from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.frozen import FrozenDiagram
from dlf_dynamics.analysis.instabilities.plots import (
    PARAMETERS,
    PERIOD_COLOURS,
    PERIOD_NAMES,
    STABILITIES,
)
from dlf_dynamics.analysis.report.content import (
    Panel,
    Part,
    Series,
    Window,
    around,
    table_of,
    told,
)
from dlf_dynamics.analysis.spectra.report import not_converged
from dlf_dynamics.analysis.style import COLOURS, spans_decades


def bifurcation_part(bifurcations: Bifurcations, results: Sequence[str | RichTable]) -> Part:
    """Words and tables, the motion along the run, and the diagrams with the loss frozen.

    Args:
        bifurcations: result of the analysis.
        results: its lines and tables, first the table of the instabilities, then that of the maps
            of pulses if there are any.
    """
    part = told("Instabilities", results)
    events = bifurcations.instabilities
    spans = [around(min(e.onset, e.crossed if e.crossed >= 0 else e.onset), e.end) for e in events]
    of_maps = [around(each.first_step, each.last_step) for each in bifurcations.pulse_maps]
    told_tables = [each for each in results if isinstance(each, RichTable)]
    tables = [
        table_of(table, linked if table.row_count == len(linked) else ())
        for table, linked in zip(told_tables, (spans, of_maps), strict=False)
    ]
    panels = [_projection(bifurcations), _sharpness(bifurcations)]
    panels += [_growth(bifurcations, kind) for kind in ("pulse", "cycle")]
    for diagram in bifurcations.diagrams:
        panels += [_orbits(diagram), _exponents(diagram)]
    return replace(
        part,
        tables=tables,
        panels=[panel for panel in panels if panel.series],
        windows=[Window(event.onset, event.end) for event in events],
    )


def _projection(bifurcations: Bifurcations) -> Panel:
    """The oscillation at each step, a colour for each period, with the predicted sizes."""
    motion, periods = bifurcations.motion, bifurcations.motion.periods
    series = []
    for period, name in PERIOD_NAMES.items():
        chosen = (periods == period) & np.isfinite(motion.projection)
        if np.any(chosen):
            steps, values = motion.steps[chosen], motion.projection[chosen]
            series.append(Series(name, steps, values, PERIOD_COLOURS[period]))
    for name, step, size, marker, colour in (
        ("flip coefficient", "onset", "flip_amplitude", "inverted_triangle", COLOURS[5]),
        ("rod equation", "settled", "rod_amplitude", "diamond", COLOURS[7]),
    ):
        known = [e for e in bifurcations.instabilities if np.isfinite(getattr(e, size))]
        known.sort(key=lambda event: getattr(event, step))
        steps = np.array([getattr(event, step) for event in known])
        sizes = np.array([getattr(event, size) for event in known])
        if known:
            series += [
                Series(
                    f"size by the {name}",
                    steps,
                    heights,
                    colour,
                    "marks",
                    marker=marker,
                    filled=False,
                )
                for heights in (sizes, -sizes)
            ]
    return Panel("projection of the oscillation on the top eigenvector", series)


def _sharpness(bifurcations: Bifurcations) -> Panel:
    """The sharpness at the sampled centres, with the threshold."""
    motion = bifurcations.motion
    fine, steps = motion.converged, motion.looked_at
    values = np.where(fine, motion.values, np.nan)
    intervals = np.where(fine[:, None], motion.intervals, np.nan)
    series = []
    if np.any(np.isfinite(values)):
        series.append(Series("at the centre", steps, values, COLOURS[0], intervals=intervals))
    series += not_converged(steps, motion.values, fine)
    if np.any(np.isfinite(bifurcations.thresholds)):
        series.append(Series("threshold", steps, bifurcations.thresholds, COLOURS[5], "line"))
    title = "sharpness at the replayed centres"
    return Panel(title, series, spans_decades(motion.values, bifurcations.thresholds))


def _growth(bifurcations: Bifurcations, kind: str) -> Panel:
    """Singular values of the map of each pulse or cycle, at its middle; hollow where not converged.

    They are logarithms, as the values may exceed the largest number.
    """
    maps = [each for each in bifurcations.pulse_maps if each.kind == kind]
    series = []
    for mode in range(max((len(each.decades) for each in maps), default=0)):
        for fine in (True, False):
            chosen = [each for each in maps if each.converged[mode : mode + 1] == [fine]]
            heights = np.array([each.decades[mode] for each in chosen])
            if np.any(np.isfinite(heights)):
                series.append(
                    Series(
                        f"singular value {mode + 1}" + ", not converged" * (not fine),
                        np.array([(each.first_step + each.last_step) / 2 for each in chosen]),
                        heights,
                        COLOURS[mode % len(COLOURS)],
                        "marks",
                        marker="circle",
                        filled=fine,
                        beside={"residual": np.array([each.residuals[mode] for each in chosen])},
                    )
                )
    return Panel(f"growth of perturbations over each {kind}, log10", series)


def _name(diagram: FrozenDiagram) -> str:
    return PARAMETERS.get(diagram.parameter, diagram.parameter)


def _orbits(diagram: FrozenDiagram) -> Panel:
    """The oscillations about a moving centre, with the orbit of period 2."""
    swept = [("orbits from near the centre", diagram.orbits, UP)]
    if diagram.apart is not None:
        swept.insert(0, ("orbits from apart", diagram.apart.projections, DOWN))
    series = [
        Series(name, np.repeat(diagram.values, points.shape[1]), points.ravel(), colour, "cloud")
        for name, points, colour in swept
    ]
    for stability, (style, words) in STABILITIES.items():
        sizes = diagram.branch_amplitude
        shown = np.isfinite(sizes) & (diagram.branch_stability == stability.encode())
        dash = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "dotdash"}[style]
        if np.any(shown):
            series += [
                Series(
                    f"period 2, {words}",
                    diagram.exponent_values,
                    np.where(shown, sign * sizes, np.nan),
                    COLOURS[1],
                    "line",
                    dash=dash,
                )
                for sign in (1, -1)
            ]
    return Panel(
        f"orbits with the loss of step {diagram.step}: projection on the top eigenvector",
        series,
        x_label=_name(diagram),
        lines={"of the run": diagram.actual},
    )


def _exponents(diagram: FrozenDiagram) -> Panel:
    """Lyapunov exponents, hollow where not converged."""
    series = []
    for fine, words in ((diagram.converged, ""), (~diagram.converged, ", not converged")):
        chosen = fine & np.isfinite(diagram.exponents)
        if np.any(chosen):
            series.append(
                Series(
                    f"largest exponent{words}",
                    diagram.exponent_values[chosen],
                    diagram.exponents[chosen],
                    COLOURS[5],
                    "marks",
                    marker="circle",
                    filled=not words,
                    beside={"overlap with the top eigenvector": diagram.overlap[chosen]},
                )
            )
    return Panel(
        f"Lyapunov exponent per step with the loss of step {diagram.step}",
        series,
        x_label=_name(diagram),
        lines={"of the run": diagram.actual},
    )
