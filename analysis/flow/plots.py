"""The figures of the central flow: measured and predicted against the step, errors ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dlf_dynamics.analysis.flow.beside import (
    EXPANSIONS,
    FLIP,
    GRADIENT_FLOW,
    QUASI_STATIC,
    ROD,
    SELF_STABILIZATION,
)
from dlf_dynamics.analysis.flow.errors import QUANTITIES, TheoryError
from dlf_dynamics.analysis.flow.flow import Flow
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW, Segment
from dlf_dynamics.analysis.flow.windows import (
    COUNTS,
    along,
    counting_looks,
    drawable_energy,
    near_threshold,
    rules_of,
    windows_of,
)
from dlf_dynamics.analysis.headings import legend_below, letter_panels, set_title
from dlf_dynamics.analysis.style import (
    COLOURS,
    LARGEST,
    Points,
    label_decades,
    label_steps,
    mark_hidden,
    new_figure,
    scale_height,
    scaled,
    set_span,
    styled,
)
from dlf_dynamics.errors import counted
from dlf_dynamics.streams import drawable

_WIDTH, _HEIGHT, _LOW, _ROW = 6.0, 1.35, 0.85, 0.15
"""Inches of the figure, of a panel, of a low one, and of a row of the strip."""

_WAY = "how far the run went since the start"

GREY, _PALE, MEASURED, THRESHOLD = "#8a8a8a", "#c4c4c4", COLOURS[7], COLOURS[5]

_STYLES: dict[str, dict[str, Any]] = {
    CENTRAL_FLOW: {"color": COLOURS[0], "lw": 1.6},
    ROD: {"color": COLOURS[2], "lw": 0.9},
    FLIP: {"color": COLOURS[2], "lw": 0.9, "ls": "--"},
    GRADIENT_FLOW: {"color": COLOURS[4], "lw": 0.9},
    QUASI_STATIC: {"color": COLOURS[4], "lw": 0.9, "ls": "--"},
    SELF_STABILIZATION: {"color": COLOURS[1], "lw": 0.9},
    EXPANSIONS[0]: {"color": COLOURS[3], "lw": 0.9, "ls": ":"},
    EXPANSIONS[1]: {"color": COLOURS[3], "lw": 0.9, "ls": "--"},
}
_OTHER: dict[str, Any] = {"color": COLOURS[0], "lw": 0.9, "ls": "--"}
"""How the lines of theories are drawn."""


_RELATIVE = {
    "loss": "measured",
    "sharpness": "threshold",
    "energy": "larger one",
    "distance": "the way",
}
"""What errors are relative to, in short; `QUANTITIES` says it in full."""


class _Curve(Points):
    """A line, of which what lies beyond the limits is marked as that of points is."""

    draw = Line2D.draw


def style_of(theory: str) -> dict[str, Any]:
    """How a line of it is drawn; dashed in the colour of the central flow where it is not known."""
    return _STYLES.get(theory, _OTHER)


class _Panel(NamedTuple):
    """What is drawn, how high it is in inches, and whether looks that do not count are shaded."""

    draw: Callable[[Axes, Flow], None]
    height: float
    shaded: bool = True


def flow_figure(flow: Flow) -> Figure:
    """Loss, sharpness, oscillation and distance, measured and predicted, and what counts.

    Looks that do not count are grey, and their spans shaded; the strip at the bottom says by which
    rule. Thin vertical lines mark where the theories start again.

    Args:
        flow: the compared flow.
    """
    some = bool(np.any(counting_looks(flow)))
    oscillates = counting_looks(flow) & flow.observed.column("oscillating")
    rows = some + len(rules_of(flow))
    panels = [
        _Panel(_draw_loss, _HEIGHT),
        *[_Panel(_draw_loss_error, _LOW)] * some,
        _Panel(_draw_sharpness, _HEIGHT),
        _Panel(_draw_energy, _HEIGHT),
        *[_Panel(_draw_energy_error, _LOW)] * (some and bool(np.any(oscillates))),
        _Panel(_draw_distance, _HEIGHT),
        _Panel(_draw_strip, 0.1 + _ROW * rows, shaded=False),
    ]
    heights = [panel.height for panel in panels]
    with styled():
        figure = new_figure(_WIDTH, 1.0 + sum(heights))
        axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
        letter_panels(axes[:-1])
        for ax, panel in zip(axes, panels, strict=True):
            panel.draw(ax, flow)
            set_span(ax, *flow.span)
            if panel.shaded:
                _shade(ax, flow)
                label_decades(ax)
                mark_hidden(ax)
        label_steps(axes[-1])
        legend_below(figure, *axes)
        told = f"{_heading(flow)}; grey: does not count"
        set_title(figure, drawable(f"{flow.subject}\n{told}"))
    return figure


def _heading(flow: Flow) -> str:
    starts = [segment.start for segment in flow.segments]
    begun = f"at step {starts[0]}"
    if flow.config.restart_every:
        begun += f", anew every {flow.config.restart_every} steps"
    elif len(starts) > 1:
        begun += f", anew after {counted(len(starts) - 1, 'break')}"
    counts = counting_looks(flow)
    told = f"{np.sum(counts)} of {counted(len(counts), 'look')} count"
    return f"theories start {begun}; {told}"


def _shade(ax: Axes, flow: Flow) -> None:
    """Spans of looks that do not count, and where theories start again."""
    for first, last in windows_of(flow, ~counting_looks(flow)):
        ax.axvspan(first, last, color=GREY, alpha=0.15, lw=0, zorder=0)
    for segment in flow.segments[1:]:
        ax.axvline(segment.start, color="black", lw=0.4, ls=(0, (1, 2)), zorder=0)


class _Measured(NamedTuple):
    """What was measured at all looks, what it is called, and which of it counts."""

    values: Float[np.ndarray, " looks"]
    name: str
    counts: Bool[np.ndarray, " looks"]


def _draw_measured(ax: Axes, flow: Flow, measured: _Measured) -> None:
    """Points, those that do not count in grey."""
    values, name, counts = measured
    for chosen, colour, label in ((counts, MEASURED, name), (~counts, GREY, f"{name}, outside")):
        shown = np.where(chosen, values, np.nan)
        style: dict[str, Any] = {
            "marker": ".",
            "ls": "none",
            "color": colour,
            "ms": 4,
            "mew": 0,
            "zorder": 4,
        }
        ax.add_line(_Curve(flow.observed.steps, shown, label=label, **style))


def _draw_theory(
    ax: Axes, flow: Flow, theory: str, column: Callable[[Segment], np.ndarray]
) -> None:
    """A line for each start, in grey where looks do not count."""
    own = theory == CENTRAL_FLOW
    style = style_of(theory)
    grey: dict[str, Any] = (
        {"color": GREY, "lw": 0.9} if own else {"color": _PALE, "lw": 0.6, "ls": "-"}
    )
    outside = f"{theory}, outside" if own else "other theories, outside"
    for segment in flow.segments:
        values, steps = column(segment), flow.measured(segment, "step")
        until = int(np.sum(flow.counts(segment)))
        # The line goes on from the last look that counts, which both parts have in common.
        for part, look, label, kind in (
            (slice(until), style, theory, _Curve),
            (slice(max(until - 1, 0), None), style | grey, outside, _Curve if own else Line2D),
        ):
            if len(steps[part]) > 1:
                ax.add_line(kind(steps[part], values[part], label=label, zorder=2 + own, **look))
        if own and segment.stopped and np.any(np.isfinite(values)):
            last = np.flatnonzero(np.isfinite(values))[-1]
            end = steps[last], values[last]
            ax.plot(*end, "x", color=MEASURED, ms=4, mew=1, zorder=5, label=f"{theory} ends")


def _fit(ax: Axes, always: Sequence[np.ndarray], others: Iterable[np.ndarray] = ()) -> None:
    """Limits that show some values, and of others what is not far from them."""
    logarithmic = ax.get_yscale() == "log"

    def known(values: Iterable[np.ndarray]) -> np.ndarray:
        joined = np.concatenate([np.zeros(0), *(np.ravel(v).astype(float) for v in values)])
        joined = joined[np.isfinite(joined) & ((joined > 0) | (not logarithmic))]
        joined = np.clip(joined, -LARGEST, LARGEST)  # ticks beyond would overflow
        return np.log(joined) if logarithmic else joined

    certain, possible = known(always), known(others)
    if not len(certain):
        certain = possible
    if not len(certain):
        return
    around = (np.max(certain) - np.min(certain)) / 2
    near = np.abs(possible - np.mean([np.min(certain), np.max(certain)])) <= 2 * around
    seen = np.concatenate([certain, possible[near]])
    low, high = float(np.min(seen)), float(np.max(seen))
    margin = 0.08 * (high - low) or (0.1 if logarithmic else 0.1 * abs(low) or 0.5)
    ends = np.array([low - margin, high + margin])
    if logarithmic:
        ends = np.exp(np.clip(ends, *np.log([1 / LARGEST, LARGEST])))
    ax.set_ylim(*ends)


def _draw_quantity(
    ax: Axes,
    flow: Flow,
    name: str,
    measured: Float[np.ndarray, " looks"],
    beside: Sequence[np.ndarray] = (),
) -> None:
    """Measured and predicted, on a scale that suits both."""
    column = lambda segment, theory: segment.column(theory, name)  # noqa: E731
    points = _Measured(measured, "measured", counting_looks(flow))
    _draw_compared(ax, flow, points, column, beside)


Column = Callable[[Segment, str], np.ndarray]
"""A number of a theory, at the looks of a segment."""


def _of(column: Column, theory: str) -> Callable[[Segment], np.ndarray]:
    """The number of one theory."""
    return lambda segment: column(segment, theory)


def _draw_compared(
    ax: Axes,
    flow: Flow,
    measured: _Measured,
    column: Column,
    beside: Sequence[np.ndarray] = (),
) -> None:
    """Dots and lines, with limits that show what counts; all that was measured where nothing does.

    Args:
        ax: axes to draw on.
        flow: the compared flow.
        measured: points at all looks.
        column: number that a theory predicts.
        beside: other values that the limits must include.
    """
    values, counts = measured.values, measured.counts
    certain = np.where(counts, values, np.nan) if np.any(counts) else values
    scale_height(ax, certain, along(flow, lambda s: column(s, CENTRAL_FLOW), counted=True))
    _draw_measured(ax, flow, measured)
    for theory in flow.theories:
        _draw_theory(ax, flow, theory, _of(column, theory))
    _draw_limits(ax, flow, [certain, *beside], column, [values])


def _draw_limits(
    ax: Axes,
    flow: Flow,
    always: Sequence[np.ndarray],
    column: Column,
    others: Sequence[np.ndarray] = (),
) -> None:
    """Limits that show some values, and the central flow where it counts; see `_fit`."""
    shown = {theory: along(flow, _of(column, theory), counted=True) for theory in flow.theories}
    _fit(ax, [*always, shown[CENTRAL_FLOW]], [*others, *shown.values()])


def _draw_loss(ax: Axes, flow: Flow) -> None:
    """The loss, and that of the central flow's centre, without what the oscillation adds."""
    _draw_quantity(ax, flow, "loss", flow.observed.loss)
    for segment in flow.segments:
        steps, counts = flow.measured(segment, "step"), flow.counts(segment)
        shown = np.where(counts, segment.centre_loss, np.nan)
        style: dict[str, Any] = {"color": COLOURS[0], "lw": 0.9, "ls": ":"}
        ax.add_line(_Curve(steps, shown, label=f"{CENTRAL_FLOW}, loss of its centre", **style))
    ax.set_ylabel("loss")


def _draw_energy(ax: Axes, flow: Flow) -> None:
    """Measured only where something oscillates."""
    _draw_quantity(ax, flow, "energy", drawable_energy(flow))
    ax.set_ylabel("oscillation\n" + r"$|d|^2$, tr $X$")


def _draw_sharpness(ax: Axes, flow: Flow) -> None:
    """Sharpness at the centres with its intervals, and the threshold."""
    steps, threshold = flow.observed.steps, flow.observed.column("threshold")
    ax.plot(steps, threshold, color=THRESHOLD, lw=3, alpha=0.5, label="threshold", zorder=1)
    low, high = (flow.observed.column(f"sharpness_{end}") for end in ("low", "high"))
    colours = np.where(counting_looks(flow), MEASURED, GREY)
    ax.vlines(steps, low, high, colors=list(colours), lw=0.6, alpha=0.6, zorder=1)
    sharpness = flow.observed.column("sharpness")
    _draw_quantity(ax, flow, "sharpness", sharpness, [near_threshold(flow)])
    ax.set_ylabel("sharpness\nat centres")


def _draw_distance(ax: Axes, flow: Flow) -> None:
    """Distance of the theories' centres from the run's, and how far the run's moved."""

    def column(segment: Segment, theory: str) -> np.ndarray:
        return _later(flow, segment, segment.column(theory, "distance"))

    def way(segment: Segment) -> np.ndarray:
        return _later(flow, segment, segment.travelled)

    travelled, counts = along(flow, way), np.isfinite(along(flow, way, counted=True))
    _draw_compared(ax, flow, _Measured(travelled, _WAY, counts), column)
    ax.set_ylabel("distance\nof centres")


def _later(flow: Flow, segment: Segment, values: np.ndarray) -> np.ndarray:
    """The values after the start of a segment, at which nothing is predicted."""
    return np.where(flow.ahead(segment) > 0, values, np.nan)


def _draw_loss_error(ax: Axes, flow: Flow) -> None:
    _draw_error(ax, flow, "loss", lambda predicted, measured: np.abs(measured))


def _draw_energy_error(ax: Axes, flow: Flow) -> None:
    _draw_error(ax, flow, "energy", np.fmax)


def _draw_error(
    ax: Axes, flow: Flow, name: str, scale: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    """Predicted minus measured, in per cent of the measured or the larger one."""
    ax.axhline(0, color=MEASURED, lw=0.5, zorder=1)

    def error(segment: Segment, theory: str) -> np.ndarray:
        predicted, measured = segment.column(theory, name), flow.measured(segment, name)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (predicted - measured) / scale(predicted, measured)
        known = np.isfinite(share)
        if name == "energy":  # without an oscillation |d|² is that of a curved path
            known &= flow.measured(segment, "oscillating")
        return _later(flow, segment, 100 * np.where(known, share, np.nan))

    for theory in flow.theories:
        _draw_theory(ax, flow, theory, _of(error, theory))
    _draw_limits(ax, flow, [np.zeros(1)], error)
    ax.set_ylabel("predicted −\nmeasured, %")


def ahead_figure(flow: Flow) -> Figure:
    """Errors of the theories against the steps since they were started, a panel for a quantity.

    A line spans the steps that it is of, at the median of the looks that count; a bar leads to the
    largest.

    Args:
        flow: the compared flow, with errors.
    """
    names = [name for name in QUANTITIES if any(e.quantity == name for e in flow.errors)]
    with styled():
        figure = new_figure(_WIDTH, 0.9 + 1.5 * max(len(names), 1))
        axes = figure.subplots(max(len(names), 1), 1, sharex=True, squeeze=False)[:, 0]
        letter_panels(axes)
        for ax, name in zip(axes, names, strict=False):
            _draw_ahead(ax, [e for e in flow.errors if e.quantity == name])
            ax.set_ylabel(f"error of {name},\n% of {_RELATIVE[name]}")
            label_decades(ax)
        legend_below(figure, *axes)
        label_steps(axes[-1], "steps since the start of the theory")
        set_title(figure, drawable(f"{flow.subject}\n{_heading(flow)}"))
    return figure


def _draw_ahead(ax: Axes, errors: Sequence[TheoryError]) -> None:
    """Medians and largest of each theory over spans of steps ahead, not those over all steps."""
    last = max(error.ahead_to for error in errors)
    spans = {(e.ahead_from, e.ahead_to) for e in errors}
    parts = [e for e in errors if len(spans) == 1 or (e.ahead_from, e.ahead_to) != (1, last)]
    scale_height(ax, *(np.array([_percent(e, x) for e in parts]) for x in ("median", "largest")))
    theories = list(dict.fromkeys(e.theory for e in parts))
    for number, theory in enumerate(theories):
        own = [e for e in parts if e.theory == theory]
        style = style_of(theory)
        shift = (number + 1) / (len(theories) + 1)
        begin, end = (np.array([getattr(e, f"ahead_{x}") for e in own]) for x in ("from", "to"))
        at = begin + shift * (end - begin)
        median, largest = (np.array([_percent(e, x) for e in own]) for x in ("median", "largest"))
        ax.hlines(median, begin, end, **style, label=theory)
        thin: dict[str, Any] = style | {"lw": 0.7, "ls": "-"}
        ax.vlines(at, median, largest, **thin)
        ax.plot(at, largest, "_", color=style["color"], ms=4)


def _percent(error: TheoryError, name: str) -> float:
    return 100 * getattr(error, name)


def _draw_strip(ax: Axes, flow: Flow) -> None:
    """Looks that count, and those excluded by each rule, a row for each."""
    rows: dict[str, Bool[np.ndarray, " looks"]] = {}
    counts = counting_looks(flow)
    if np.any(counts):
        rows[COUNTS] = counts
    rows |= rules_of(flow)
    for height, (name, chosen) in enumerate(rows.items()):
        bars = [(first, last - first) for first, last in windows_of(flow, chosen)]
        colour = COLOURS[0] if name == COUNTS else GREY
        ax.broken_barh(bars, (height - 0.35, 0.7), color=colour, lw=0)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=scaled(6))
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    for segment in flow.segments[1:]:
        ax.axvline(segment.start, color="black", lw=0.4, ls=(0, (1, 2)), zorder=0)
