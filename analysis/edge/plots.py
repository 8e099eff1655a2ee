"""The figure of the edge: η over its threshold, curvatures, realized edges, the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.edge.batches import FULL
from dlf_dynamics.analysis.edge.edge import Edge
from dlf_dynamics.analysis.headings import legend_above, letter_panels, set_title
from dlf_dynamics.analysis.spectra.plots import draw_loss, draw_realized_edge
from dlf_dynamics.analysis.style import (
    COLOURS,
    draw_curve,
    draw_points,
    fit_height,
    label_decades,
    label_steps,
    mark_hidden,
    new_figure,
    scale_height,
    set_span,
    styled,
)
from dlf_dynamics.errors import FileError
from dlf_dynamics.run import Run
from dlf_dynamics.streams import drawable

_THRESHOLD = COLOURS[5]

_WIDTH, _HEIGHT = 6.0, 1.5
"""Inches of the figure, and of a panel."""


def edge_figure(run: Run, edge: Edge) -> Figure:
    """Loss, η over its threshold, curvatures and realized edges against the step.

    Lines that are references, and no thresholds of the run, are dashed.

    Args:
        run: run that was analysed.
        edge: the edge of the run.

    Raises:
        FileError: when the run has no rows yet.
        StaleError: when the run is no longer in the state that was analysed.
    """
    if len(run.steps) == 0:
        raise FileError(f"{run.path} has no rows; expected at least one to draw; train on or anew")
    edge.source.require(run, "the edge", "compute it anew")
    panels: list[Callable[[Axes, Run, Edge], None]] = [_draw_loss]
    if np.any(np.isfinite(edge.ratio)):
        panels.append(_draw_ratio)
    panels.append(_draw_curvature)
    if run.edges.evaluated:
        panels.append(_draw_realized)
    with styled():
        figure = new_figure(_WIDTH, 0.7 + _HEIGHT * len(panels))
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        span = float(run.steps[0]), float(run.steps[-1])
        letter_panels(axes)
        for ax, draw in zip(axes, panels, strict=True):
            draw(ax, run, edge)
            set_span(ax, *span)
            robust = draw in (_draw_loss, _draw_realized)
            fit_height(ax, span, without_outliers=robust)
            label_decades(ax)
            mark_hidden(ax)
            legend_above(ax)
        label_steps(axes[-1])
        set_title(figure, drawable(_title(edge)))
    return figure


def _title(edge: Edge) -> str:
    batches = edge.batches
    told = "mean-square threshold" if batches.is_threshold else "mean-square reference (dashed)"
    return "\n".join(filter(None, [edge.subject, f"{told}, {batches}", batches.why_reference]))


def _draw_loss(ax: Axes, run: Run, edge: Edge) -> None:
    draw_loss(ax, run, None)


def _draw_realized(ax: Axes, run: Run, edge: Edge) -> None:
    draw_realized_edge(ax, run, None)


def _draw_ratio(ax: Axes, run: Run, edge: Edge) -> None:
    """Certified intervals as bars, filled where they are on one side, with the line at 1."""
    steps, (low, high), sides = edge.steps, edge.ratio.T, edge.column("side")
    middle = np.where(np.isfinite(high), (low + high) / 2, low)
    scale_height(ax, middle)
    ends = np.nan_to_num(high, nan=np.nan, posinf=np.nan)
    ax.vlines(steps, low, ends, color=COLOURS[0], lw=1.2)
    for chosen, fill, words in (
        (sides != 0, COLOURS[0], r"$\eta/\eta_{ms}$, certified"),
        (sides == 0, "none", r"$\eta/\eta_{ms}$, undecided"),
    ):
        shown = np.where(chosen, middle, np.nan)
        if np.any(np.isfinite(shown)):
            ax.plot(steps, shown, "o", color=COLOURS[0], mfc=fill, ms=3, label=words)
    reference = not edge.batches.is_threshold
    words, dashes = ("reference", "--") if reference else ("threshold", "-")
    span = np.array([run.steps[0], run.steps[-1]], float)
    ax.plot(span, np.ones(2), color=_THRESHOLD, lw=1, ls=dashes, label=words)
    for crossing in edge.crossings:
        ends = crossing.step_before, crossing.step_after
        ax.axvspan(*ends, color=_THRESHOLD, alpha=0.15, lw=0, label="crossing")
    ax.set_ylabel(r"$\eta/\eta_{ms}$")


def _draw_curvature(ax: Axes, run: Run, edge: Edge) -> None:
    """Largest eigenvalues of Hessian and GGN, the full-batch threshold, batch sharpness."""
    steps, operator = edge.steps, "P^{-1}" if edge.preconditioned else ""
    shown, limits = [], edge.column("full_batch")
    for name, colour, symbol in (("sharpness", COLOURS[4], "H"), ("ggn", COLOURS[2], "G")):
        values, low, high = (edge.column(f"{name}{end}") for end in ("", "_low", "_high"))
        shown.append(values)
        sure = np.where(np.isfinite(low), values, np.nan)
        draw_points(ax, steps, sure, colour, rf"$\lambda_{{\max}}({operator}{symbol})$")
        ax.vlines(steps, low, high, color=colour, lw=0.8, alpha=0.5)
        unsure = np.where(np.isfinite(low), np.nan, values)
        if np.any(np.isfinite(unsure)):
            ax.plot(steps, unsure, "x", color=colour, ms=3, label="not converged")
    measured, errors = edge.column("batch_sharpness"), edge.column("batch_sharpness_error")
    if np.any(np.isfinite(measured)):
        words = "batch sharpness (measurement)"
        ax.errorbar(steps, measured, errors, fmt="+", color=COLOURS[1], ms=4, lw=0.6, label=words)
    scale_height(ax, *shown, limits, measured)
    if np.any(np.isfinite(limits)):
        own = edge.batches.sampling == FULL
        words = "threshold" if own else "full batch" + ", P frozen" * edge.preconditioned
        style = {"color": _THRESHOLD, "lw": 1, "ls": "-" if own else "--", "label": words}
        draw_curve(ax, steps, limits, **style)
    ax.set_ylabel("curvature")
