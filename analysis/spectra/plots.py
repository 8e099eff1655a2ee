"""Figures of a run: functions that draw on an Axes, and the two figures made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecBase

from dlf_dynamics.analysis.headings import (
    legend_above,
    legend_below,
    letter_panels,
    set_panel_title,
    set_title,
)
from dlf_dynamics.analysis.linalg.certificate import BUDGET, STATUSES, TRACKED, UNRANKED
from dlf_dynamics.analysis.panels import chosen_panels
from dlf_dynamics.analysis.spectra.events import OSCILLATING_COSINE, Oscillation
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.spectra.summary import threshold_line
from dlf_dynamics.analysis.spectra.zoom import TWO_COLUMNS, Span, spans_of
from dlf_dynamics.analysis.style import (
    COLOURS,
    LARGEST,
    OUTLIERS,
    changes,
    class_colours,
    draw_curve,
    draw_points,
    few_steps,
    fit_height,
    label_decades,
    label_steps,
    mark_hidden,
    named_classes,
    new_figure,
    scale_height,
    set_span,
    styled,
)
from dlf_dynamics.dynamics import EDGE
from dlf_dynamics.errors import FileError
from dlf_dynamics.paper import this_paper
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle
from dlf_dynamics.streams import drawable

_SHADE, _THRESHOLD, _MARK = COLOURS[4], COLOURS[5], COLOURS[5]

_WIDE = 1.01
"""Ratio of the ends of an interval above which it can be seen on the panel."""

_MOST_BURSTS = 6
"""Largest number of bursts that have a panel each in the bifurcation figure."""

_CHANGE = 0.25
"""Fraction of the first loss up to which its changes are drawn; the published limits are 0.25."""

_BURST = 1.5
"""Least width of the panel of a burst, in inches."""

Panel = Callable[[Axes, Run, Spectrum | None], None]


def draw_class_weights(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """Γ_i of each class against the step."""
    weights = run.scalars["class_weights"].T
    for label, colour in enumerate(class_colours(len(weights))):
        name = f"class {label}" if label in named_classes(len(weights)) else None
        draw_curve(ax, run.steps, weights[label], color=colour, lw=0.8, label=name)
    ax.set_ylabel(r"$\Gamma_i$")


def draw_loss(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """The weighted loss F, on a log scale where it spans a decade."""
    draw_points(ax, run.steps, run.scalars["loss"])
    scale_height(ax, run.scalars["loss"])
    ax.set_ylabel("$F$")


def draw_loss_change(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """F(t) - F(t-1), scaled so that most changes and an alternation can be seen.

    The limits are a quarter of the first loss, as published, but at least the 98 % quantile of the
    changes, and at most three times that.
    """
    loss = np.asarray(run.scalars["loss"], float)
    change = changes(loss)
    draw_points(ax, run.steps[1:], change)
    sizes, first = np.abs(change[np.isfinite(change)]), np.abs(loss[np.isfinite(loss)])
    if len(sizes):
        most, largest = float(np.quantile(sizes, 1 - OUTLIERS)), 1.2 * float(np.max(sizes))
        limit = float(np.clip(_CHANGE * first[0], most, 3 * most)) or largest
        limit = min(limit, largest, LARGEST) or 1e-12
        ax.set_ylim(-limit, limit)
    ax.set_ylabel("$F(t)-F(t{-}1)$")


def draw_accuracy(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """Accuracy on the training data, and on the examples held out."""
    draw_points(ax, run.steps, run.scalars["accuracy"], label="training")
    if run.validation:
        steps, values = run.checkpoint_steps, run.validation["accuracy"]
        draw_points(ax, steps, values, COLOURS[1], label="held out")
    ax.set_ylabel("accuracy")


def draw_realized_edge(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """ζ of the sampled steps: above 1, a step raised its own loss."""
    draw_points(ax, run.steps, run.scalars[EDGE[0]])
    draw_curve(ax, run.steps, np.ones(len(run.steps)), color=_THRESHOLD, lw=0.8)
    ax.set_ylabel(r"realized $\zeta$")


def draw_sharpness(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """Largest Hessian eigenvalue at iterates and centres, with the threshold where it applies.

    With mini-batches the threshold of full-batch updates is a dashed line.
    """
    if spectrum is None:
        return
    hessian, thresholds = spectrum.hessian, spectrum.thresholds
    applies = hessian.curvature.has_threshold and bool(np.any(np.isfinite(thresholds)))
    reference = spectrum.reference
    limits = np.zeros(0) if reference is None else reference.values
    _draw_eigenvalues(ax, spectrum, 0, r"\max", thresholds if applies else limits)
    if applies:
        draw_curve(ax, hessian.steps, thresholds, color=_THRESHOLD, lw=1, label="threshold")
    if reference is not None:
        style = {"color": _THRESHOLD, "lw": 1, "ls": "--", "label": reference.short_label}
        draw_curve(ax, hessian.steps, reference.values, **style)


def draw_smallest(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """Smallest Hessian eigenvalue at iterates and centres."""
    if spectrum is not None:
        _draw_eigenvalues(ax, spectrum, -1, r"\min", np.zeros(0))


def _draw_eigenvalues(
    ax: Axes, spectrum: Spectrum, column: int, which: str, beside: np.ndarray
) -> None:
    """One of the extreme eigenvalues: dots where it is certified, other marks elsewhere."""
    hessian = spectrum.hessian
    for solved, colour, label in (
        (hessian.iterate, COLOURS[4], "at the iterate"),
        (hessian.centre, COLOURS[0], "at the 1:2:1 centre"),
    ):
        fine = solved.converged[:, column]
        values = np.where(fine, solved.eigenvalues[:, column], np.nan)
        draw_points(ax, hessian.steps, values, colour, label)
        _bands(ax, hessian.steps[fine], solved.intervals[fine, column], colour)
        for status, (marker, meaning) in _UNSURE.items():
            bad = solved.status[:, column] == status
            if np.any(bad & np.isfinite(solved.eigenvalues[:, column])):
                ritz = solved.eigenvalues[bad, column]
                ax.plot(hessian.steps[bad], ritz, marker, color=colour, ms=3, label=meaning)
    points = (hessian.iterate, hessian.centre)
    scale_height(ax, *(solved.eigenvalues[:, column] for solved in points), beside)
    symbol = {"hessian": "H", "ggn": "G", "remainder": "H-G"}[hessian.curvature.operator]
    operator = f"P^{{-1}}{symbol}" if hessian.curvature.preconditioned else symbol
    name = rf"\lambda_{{{which}}}"
    ax.set_ylabel(f"${name}$" if operator == "H" else f"${name}({operator})$")


def _bands(ax: Axes, steps: np.ndarray, intervals: np.ndarray, colour: str) -> None:
    """The intervals as vertical bars, where they are wider than a point."""
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = ~(intervals[:, 1] / intervals[:, 0] < _WIDE) | (intervals[:, 0] <= 0)
    if np.any(wide):
        steps, (lower, upper) = steps[wide], intervals[wide].T
        ax.vlines(steps, lower, upper, color=colour, lw=0.8, alpha=0.4, rasterized=True)


def draw_ntk(ax: Axes, run: Run, spectrum: Spectrum | None) -> None:
    """Largest eigenvalue of the NTK."""
    ax.set_ylabel(r"NTK $\lambda_{\max}$")
    if spectrum is None or spectrum.ntk is None:
        ax.text(0.5, 0.5, "not computed", ha="center", va="center", transform=ax.transAxes)
        return
    draw_points(ax, spectrum.ntk.steps, spectrum.ntk.eigenvalues[:, 0])


_UNSURE = {
    UNRANKED: ("+", STATUSES[UNRANKED]),
    TRACKED: ("1", STATUSES[TRACKED]),
    BUDGET: ("x", "not converged"),
}
"""Marker and name of values that are not certified, by status."""

PANELS: dict[str, Panel] = {
    "class-weights": draw_class_weights,
    "loss": draw_loss,
    "loss-change": draw_loss_change,
    "accuracy": draw_accuracy,
    "sharpness": draw_sharpness,
    "smallest": draw_smallest,
    "ntk": draw_ntk,
    "realized-edge": draw_realized_edge,
}
"""Panels by name, from top to bottom."""

_ROBUST: tuple[Panel, ...] = (
    draw_loss,
    draw_sharpness,
    draw_smallest,
    draw_ntk,
    draw_realized_edge,
)
"""Panels in which a few values far from all others are indicated and not drawn to scale."""


def shade_oscillations(ax: Axes, spectrum: Spectrum) -> None:
    """Windows of oscillation: dark where seen in the loss (bursts), light elsewhere."""
    windows = [(window.onset, window.end) for window in spectrum.oscillations]
    bursts = [(burst.burst_start, burst.burst_end) for burst in spectrum.bursts]
    style: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "color": _SHADE, "lw": 0}
    for spans, alpha in ((windows, 0.13), (bursts, 0.2)):
        boxes = [[(start, 0), (end, 0), (end, 1), (start, 1)] for start, end in spans]
        # One artist for all, as each artist takes time in layout and drawing.
        ax.add_collection(PolyCollection(boxes, alpha=alpha, **style), autolim=False)


def mark_crossings(ax: Axes, spectrum: Spectrum) -> None:
    """The crossings of the centres at the threshold's height: hollow where unresolved."""
    for direction, marker in (("up", "^"), ("down", "v")):
        for sure in (True, False):
            kind = (direction, "centre", sure)
            crossings = [
                c
                for c in spectrum.crossings
                if (c.direction, c.at, c.state != "unresolved") == kind
            ]
            middle = [(c.step_before + c.step_after) / 2 for c in crossings]
            heights = [c.threshold for c in crossings]
            label = f"crossing {direction}" + ("" if sure else ", unresolved")
            face = _MARK if sure else "none"
            if crossings:
                ax.plot(
                    middle, heights, marker, color=_MARK, ms=3.5, mew=0.5, mfc=face, label=label
                )


def run_figure(
    run: Run,
    spectrum: Spectrum | None,
    zoom: Span | None = None,
    panels: Sequence[str] = (),
) -> Figure:
    """The published six panels (arXiv 2102.03793, Fig. 4), and a column that zooms in.

    Panels that have nothing to show are left out. On a narrow page there is one column: the zoom,
    where one is given.

    Args:
        run: the run.
        spectrum: its spectrum; none draws the run file alone.
        zoom: first and last step of the second column; none means around the second burst.
        panels: names of `PANELS`, from top to bottom; none takes all that have something to show.

    Raises:
        ConfigError: when a panel is unknown, has nothing to show or is named twice.
        FileError: when the run has no rows yet.
        StaleError: when the run has changed since the spectrum was computed.
    """
    if len(run.steps) == 0:
        raise FileError(f"{run.path} has no rows; expected at least one to draw; train on or anew")
    if spectrum is not None:
        spectrum.source.require(run, "the spectrum", "compute it anew")
    chosen, spans = _panels(run, spectrum, panels), spans_of(run, spectrum, zoom)
    with styled():
        each = 1.3 if this_paper().columns(TWO_COLUMNS, 2) == 2 else 1.1
        figure = new_figure(7.2, 0.8 + each * len(chosen))
        axes = figure.subplots(
            len(chosen),
            len(spans),
            sharex="col",
            squeeze=False,
            width_ratios=[3, 1.5][: len(spans)],
        )
        letter_panels(axes[:, 0])
        for row, draw in zip(axes, chosen, strict=True):
            for ax, span in zip(row, spans, strict=True):
                _draw_panel(ax, draw, run, spectrum, span)
            for ax in row[1:]:
                ax.set_ylabel("")
                ax.set_yscale("linear")
                fit_height(ax, spans[1], without_outliers=draw is draw_realized_edge)
            if draw is draw_loss_change:
                row[-1].set_ylim(row[0].get_ylim())
            for ax in row:
                mark_hidden(ax)
            legend_above(row[0])
        for ax in axes[-1]:
            label_steps(ax)
        set_title(figure, _title(run, spectrum))
        return figure


def _draw_panel(ax: Axes, draw: Panel, run: Run, spectrum: Spectrum | None, span: Span) -> None:
    draw(ax, run, spectrum)
    if spectrum is not None:
        shade_oscillations(ax, spectrum)
        if draw is draw_sharpness:
            mark_crossings(ax, spectrum)
    set_span(ax, *span)
    if draw in _ROBUST:
        fit_height(ax, span, without_outliers=True)
    label_decades(ax)


def _panels(run: Run, spectrum: Spectrum | None, names: Sequence[str]) -> list[Panel]:
    """The requested panels, or all that have something to show."""
    shown = _with_content(run, spectrum)
    there = [name for name, panel in PANELS.items() if shown[panel]]
    return [PANELS[name] for name in chosen_panels(names, PANELS, there, f" in {run.path}")]


def _with_content(run: Run, spectrum: Spectrum | None) -> dict[Panel, bool]:
    """Which panels have something to show; a recorded run has what its training loop recorded."""
    known = {name: bool(np.any(np.isfinite(v))) for name, v in run.scalars.items()}
    return {
        draw_class_weights: bool(
            np.any(run.scalars["class_weights"] != 1)
        ),  # 1 throughout for the static loss
        draw_loss: known["loss"],
        draw_loss_change: bool(np.any(np.isfinite(changes(run.scalars["loss"])))),
        draw_accuracy: known["accuracy"],
        draw_sharpness: spectrum is not None and spectrum.hessian.ends.top > 0,
        draw_smallest: spectrum is not None and spectrum.hessian.ends.bottom > 0,
        draw_ntk: spectrum is not None and spectrum.ntk is not None,
        draw_realized_edge: known.get(EDGE[0], False),
    }


def bifurcation_figure(run: Run, spectrum: Spectrum) -> Figure:
    """Loss and update cosine against the step inside a pulse, and the bursts one by one.

    Where the iterates oscillate, consecutive steps lie on separate branches: two branches of F for
    period 2, four for period 4, a cloud where the motion is irregular.

    Raises:
        StaleError: when the run has changed since the spectrum was computed.
    """
    spectrum.source.require(run, "the spectrum", "compute it anew")
    length, count = _pulses(run)
    bursts, columns = spectrum.bursts[:_MOST_BURSTS], this_paper().columns(_BURST, 3)
    burst_rows = -(-len(bursts) // columns)
    heights = [3.2, 1.3 * burst_rows][: 1 + bool(bursts)]
    with styled():
        figure = new_figure(7.2, 1.0 + 1.25 * sum(heights))
        # Separate grids, so that the colour bar takes no room beside the bursts.
        grids = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        pulses = grids[0].subgridspec(2, 1, height_ratios=[2.0, 1.2])
        top = figure.add_subplot(pulses[0])
        bottom = figure.add_subplot(pulses[1], sharex=top)
        for ax, name in ((top, "loss"), (bottom, "update_cosine")):
            _draw_pulses(ax, run, name, length, count)
        top.set_ylabel("$F$")
        bottom.set_ylabel("cosine of\nsuccessive updates")
        bottom.axhline(OSCILLATING_COSINE, color="#000000", lw=0.5, ls=":")
        label_steps(bottom, "step inside the pulse" if count > 1 else "step")
        first = 0 if count > 1 else int(run.steps[0])
        _fit_loss(top, run.scalars["loss"], (first, min(length - 1, int(run.steps[-1]))))
        top.tick_params(labelbottom=False)
        if bursts:
            _draw_bursts(figure, grids[1].subgridspec(burst_rows, columns), run, spectrum)
        letter_panels(figure.axes)
        if count > 1:
            colours = ScalarMappable(BoundaryNorm(np.arange(count + 1) + 0.5, 256))
            ticks = range(1, count + 1, -(-count // 14))
            figure.colorbar(colours, ax=[top, bottom], label="pulse", ticks=ticks, aspect=40)
        set_title(figure, _title(run, spectrum))
        return figure


def _draw_bursts(figure: Figure, grid: GridSpecBase, run: Run, spectrum: Spectrum) -> None:
    """The first bursts in the cells of a grid, with the legend below the figure."""
    for number, burst in enumerate(spectrum.bursts[:_MOST_BURSTS]):
        ax = figure.add_subplot(grid[number // grid.ncols, number % grid.ncols])
        _draw_burst(ax, run, spectrum, burst)
        few_steps(ax, 3, grid.ncols)
        of = f" of {len(spectrum.bursts)}" if len(spectrum.bursts) > _MOST_BURSTS else ""
        set_panel_title(ax, f"burst {number + 1}{of}")
        ax.set_ylabel("" if number % grid.ncols else "$F$")
    legend_below(figure, *figure.axes)


def _fit_loss(ax: Axes, loss: np.ndarray, span: Span) -> None:
    """Scale and limits of a panel of the loss."""
    scale_height(ax, loss)
    set_span(ax, *span)
    fit_height(ax, span, without_outliers=True)
    label_decades(ax)
    mark_hidden(ax)


def _draw_pulses(ax: Axes, run: Run, name: str, length: int, count: int) -> None:
    """A recorded scalar against the step inside the pulse, one colour per pulse."""
    colours = mpl.colormaps["viridis"](np.linspace(0, 1, count) if count > 1 else [0.3])
    for pulse in reversed(range(count)):
        inside = (run.steps >= pulse * length) & (run.steps < (pulse + 1) * length)
        phase = run.steps[inside] - pulse * length
        draw_points(ax, phase, run.scalars[name][inside], colours[pulse])


def _draw_burst(ax: Axes, run: Run, spectrum: Spectrum, burst: Oscillation) -> None:
    """The loss around one burst, step by step, and where the centres cross the threshold."""
    margin = (burst.burst_end - burst.burst_start) // 5 + 5
    inside = (run.steps >= burst.burst_start - margin) & (run.steps <= burst.burst_end + margin)
    steps, loss = run.steps[inside], run.scalars["loss"][inside]
    draw_points(ax, steps, loss)
    if burst.crossed >= 0:
        ax.axvline(burst.crossed, color=_THRESHOLD, lw=0.7, label="crossing up")
    _fit_loss(ax, loss, (steps[0], steps[-1]))
    ax.set_xlabel("step")


def _pulses(run: Run) -> tuple[int, int]:
    """Steps of a pulse and the number of pulses; a run without pulses counts as one."""
    schedule, total = run.dynamics.schedule, int(run.steps[-1]) + 1
    if not isinstance(schedule, Triangle) or schedule.pulse_steps >= total:
        return total, 1
    length, static_from = schedule.pulse_steps, schedule.static_from
    end = total if static_from is None else static_from
    return length, int(np.ceil(min(end, total) / length))


def _title(run: Run, spectrum: Spectrum | None) -> str:
    lines = [run.subject]
    if run.status == "diverged":
        lines[0] += f"; diverged at step {run.steps[-1]}"
    if spectrum is not None:
        threshold = threshold_line(spectrum.thresholds, spectrum.label)
        lines.append(f"eigenvalues of the {spectrum.hessian.curvature}; {threshold}")
        if spectrum.not_converged:
            lines.append(f"{spectrum.not_converged} checkpoints not converged")
    return drawable("\n".join(lines))
