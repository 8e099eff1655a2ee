"""Figures of the instabilities of a run, from its result file alone."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.bifurcation.branch_plots import DOWN, MARKERS, UP, name_mark
from dlf_dynamics.analysis.bifurcation.multipliers import NEUTRAL
from dlf_dynamics.analysis.headings import legend_below, letter_panels
from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.frozen import FrozenDiagram
from dlf_dynamics.analysis.instabilities.instability import Instability
from dlf_dynamics.analysis.style import (
    COLOURS,
    draw_points,
    few_steps,
    label_decades,
    limit_height,
    new_figure,
    scale_height,
    scaled,
    set_span,
    styled,
)
from dlf_dynamics.paper import this_paper
from dlf_dynamics.streams import drawable

_OVERLAP = 0.5
"""Mean squared overlap above which an exponent is drawn as one of the oscillating direction."""

_LEAST, _LEAST_DIAGRAM = 1.5, 2.4
"""Least width of a column of panels, in inches: of an instability, of a diagram."""

MOST = 4
"""Largest number of instabilities that are drawn, the longest ones."""

PERIOD_COLOURS = {2: COLOURS[0], 4: COLOURS[1], 8: COLOURS[2], -1: COLOURS[3], 0: "#999999"}
PARAMETERS = {
    "learning_rate": "learning rate",
    "rate_factor": "learning rate / the run's own",
    "time": "step whose class weights are used",
}
STABILITIES = {
    "stable": ("-", "stable"),
    "none found": ("-.", f"no multiplier beyond {1 + NEUTRAL:g} found"),
    "unstable": ("--", "unstable"),
    "unknown": (":", "stability not told"),
}
PERIOD_NAMES = {0: "not oscillating", 2: "period 2", 4: "period 4", 8: "period 8", -1: "irregular"}


def instability_figure(bifurcations: Bifurcations) -> Figure:
    """A column for each of the longest instabilities: loss, projection, sharpness at the centres.

    Crossing of the threshold, onset and end are marked, as are the amplitudes that the flip
    coefficient and the rod equation predict.
    """
    longest = sorted(bifurcations.instabilities, key=lambda event: event.onset - event.end)[:MOST]
    shown = sorted(longest, key=lambda event: event.onset)
    with styled():
        figure, axes = _columns_of(3, len(shown), usual=(1.2, 2.3, 6.0), least=_LEAST)
        beside = this_paper().columns(_LEAST, len(shown))
        for column, event in zip(axes, shown, strict=True):
            _draw_loss(column[0], bifurcations, event)
            _draw_projection(column[1], bifurcations, event)
            _draw_sharpness(column[2], bifurcations, event)
            kind = event.criticality or "kind not told"
            column[0].set_title(drawable(f"onset {event.onset}\n{kind}"))
            column[-1].set_xlabel("step")
            few_steps(column[-1], 4, beside)
            steps = bifurcations.motion.steps[_around(bifurcations, event)]
            for ax in column:
                _mark(ax, event)
                set_span(ax, int(steps[0]), int(steps[-1]))
            limit_height(column[0])  # of a run that diverged
            limit_height(column[1])
            label_decades(column[0])
            label_decades(column[2])
        names = "F", "projection on the\ntop eigenvector", "sharpness at centres"
        _name_heights(axes, names)
        letter_panels(ax for column in axes for ax in column)
        legend_below(figure, *(column[1] for column in axes))
    return figure


def _columns_of(
    rows: int, count: int, usual: tuple[float, float, float], least: float
) -> tuple[Figure, list[np.ndarray]]:
    """A figure of columns of panels that share their horizontal axis, and the columns.

    Columns for which the page is too narrow go below the others.

    Args:
        rows: panels of a column, the first one twice as high where there are two.
        count: number of columns.
        usual: width of the margin, width of a column, and height, in inches.
        least: least width of a column, in inches.
    """
    margin, width, height = usual
    beside = this_paper().columns(least, count)
    groups = -(-count // beside)
    figure = new_figure(margin + width * count, height * groups)
    heights = ([2, 1] if rows == 2 else [1] * rows) * groups
    grid = figure.add_gridspec(rows * groups, beside, height_ratios=heights)
    columns = []
    for number in range(count):
        start, column = rows * (number // beside), number % beside
        first = figure.add_subplot(grid[start, column])
        below = [figure.add_subplot(grid[start + r, column], sharex=first) for r in range(1, rows)]
        for ax in (first, *below[:-1]):
            ax.tick_params(labelbottom=False)
        columns.append(np.array([first, *below]))
    return figure, columns


def _name_heights(columns: list[np.ndarray], names: tuple[str, ...]) -> None:
    """Names the vertical axes of the panels that are first in their rows."""
    for column in columns:
        for ax, name in zip(column, names, strict=True):
            if ax.get_subplotspec().is_first_col():
                ax.set_ylabel(name)


def diagram_figure(bifurcations: Bifurcations) -> Figure:
    """Orbit diagrams with the loss frozen, with the largest Lyapunov exponent underneath."""
    with styled():
        figure, axes = _columns_of(
            2, len(bifurcations.diagrams), usual=(1, 3.2, 4.6), least=_LEAST_DIAGRAM
        )
        beside = this_paper().columns(_LEAST_DIAGRAM, len(bifurcations.diagrams))
        for (above, below), diagram in zip(axes, bifurcations.diagrams, strict=True):
            _draw_orbits(above, diagram)
            _draw_exponents(below, diagram)
            _mark_changes(above, diagram)
            above.set_title(f"loss of step {diagram.step}")
            name = drawable(PARAMETERS.get(diagram.parameter, diagram.parameter))
            label = f"{name} (dashed: of the run)"
            room = 72 * figure.get_figwidth() / beside / scaled(6)  # in characters
            below.set_xlabel(textwrap.fill(label, int(room)))
            for ax in (above, below):
                ax.axvline(diagram.actual, color=COLOURS[5], lw=0.8, ls="--")
        names = "projection on the\ntop eigenvector", "largest Lyapunov\nexponent per step"
        _name_heights(axes, names)
        letter_panels(ax for column in axes for ax in column)
        legend_below(figure, *(ax for column in axes for ax in column))
    return figure


def _draw_orbits(ax: Axes, diagram: FrozenDiagram) -> None:
    """The oscillation of each orbit about its moving centre, with centre and orbit of period 2."""
    swept = [(diagram.orbits, UP, "orbits from near the centre")]
    if diagram.apart is not None:
        swept.insert(0, (diagram.apart.projections, DOWN, "orbits from apart"))
    for points, colour, name in swept:
        draw_points(ax, np.repeat(diagram.values, points.shape[1]), points.ravel(), colour, name)
    centre, flat = diagram.branch_centre, np.zeros(len(diagram.branch_centre))
    for opposed, colour, name in (  # in between the motion is irregular, and has no centre
        (0, COLOURS[7], "nothing oscillates"),
        (1, "#999999", "centre of an oscillation"),
    ):
        for beyond, style, side in ((False, "-", ""), (True, "--", ", beyond its flip")):
            shown = (diagram.branch_opposed == opposed) & (
                (centre < -1) if beyond else (centre >= -1)
            )
            _draw_branch(ax, diagram, shown, [flat], style, colour, name + side)
    sizes = diagram.branch_amplitude
    for stability, (style, words) in STABILITIES.items():
        shown = np.isfinite(sizes) & (diagram.branch_stability == stability.encode())
        name = f"period 2, {words}"
        _draw_branch(ax, diagram, shown, [sizes, -sizes], style, COLOURS[1], name)
    set_span(ax, float(diagram.values[0]), float(diagram.values[-1]))


def _mark_changes(ax: Axes, diagram: FrozenDiagram) -> None:
    """Names and ranges of the bifurcations that lie between two values of the parameter."""
    named = list[tuple[float, float]]()
    for change in diagram.changes:
        middle = (change.low + change.high) / 2
        ax.plot(
            [change.low, change.high], [change.height] * 2, "-", color=COLOURS[5], lw=2, alpha=0.5
        )
        ax.plot(
            middle,
            change.height,
            MARKERS[change.label.split("/")[0]],
            ms=3.5,
            mec=COLOURS[5],
            mfc="none",
        )
        text = f"{change.label} {change.low:.4g} to {change.high:.4g}"
        named.append(name_mark(ax, text, (middle, change.height), named))


def _draw_branch(
    ax: Axes,
    diagram: FrozenDiagram,
    shown: np.ndarray,
    heights: list[np.ndarray],
    style: str,
    colour: str,
    name: str,
) -> None:
    """A branch where it is shown, with dots, so that single values can be seen."""
    for number, height in enumerate(heights if np.any(shown) else ()):
        line = np.where(shown, height, np.nan)
        label = name if number == 0 else None
        ax.plot(diagram.exponent_values, line, f".{style}", color=colour, lw=1, ms=3, label=label)


def _draw_exponents(ax: Axes, diagram: FrozenDiagram) -> None:
    """Exponents, hollow where not converged; coloured if the tangent vector oscillates."""
    ax.axhline(0, color="#999999", lw=0.6)
    oscillating = diagram.overlap > _OVERLAP
    for mask, colour, name in (
        (oscillating, COLOURS[5], "exponent along the top eigenvector"),
        (~oscillating, COLOURS[7], "exponent of another direction"),
    ):
        for fine, fill, words in (
            (diagram.converged, colour, ""),
            (~diagram.converged, "none", ", not converged"),
        ):
            chosen = mask & fine & np.isfinite(diagram.exponents)
            if np.any(chosen):
                values, exponents = diagram.exponent_values[chosen], diagram.exponents[chosen]
                label = name + words
                ax.plot(
                    values, exponents, "o", ms=3, mec=colour, mfc=fill, color=colour, label=label
                )


def _around(bifurcations: Bifurcations, event: Instability) -> slice:
    """Indices of the window, a fifth of its length on either side, and the crossing before."""
    steps = bifurcations.motion.steps
    around = max((event.end - event.onset) // 5, 50)
    begin = min(event.onset - around, event.crossed if event.crossed >= 0 else event.onset)
    first, last = np.searchsorted(steps, [begin - 20, event.end + around])
    return slice(int(first), int(last))


def _draw_loss(ax: Axes, bifurcations: Bifurcations, event: Instability) -> None:
    """The loss at each step, coloured by the period."""
    around = _around(bifurcations, event)
    steps = bifurcations.motion.steps[around]
    loss = bifurcations.motion.loss[around]
    _coloured(ax, steps, loss, bifurcations.motion.periods[around])
    scale_height(ax, loss)


def _draw_projection(ax: Axes, bifurcations: Bifurcations, event: Instability) -> None:
    """Both branches of the oscillation, with the predicted amplitudes."""
    around = _around(bifurcations, event)
    motion = bifurcations.motion
    projection = motion.projection[around]
    _coloured(ax, motion.steps[around], projection, motion.periods[around])
    predictions = {
        "flip coefficient": (event.flip_amplitude, event.onset, "v", COLOURS[5]),
        "rod equation": (event.rod_amplitude, event.settled, "D", COLOURS[7]),
    }
    for name, (size, step, marker, colour) in predictions.items():
        ax.plot([step, step], [size, -size], marker, color=colour, ms=4, mfc="none", label=name)
    limit = 1.15 * min(np.nanmax(np.abs(projection), initial=1e-12), 1e300)
    ax.set_ylim(-limit, limit)


def _draw_sharpness(ax: Axes, bifurcations: Bifurcations, event: Instability) -> None:
    """The sharpness at the sampled centres, with the threshold."""
    motion, steps = bifurcations.motion, bifurcations.motion.steps[_around(bifurcations, event)]
    inside = (motion.looked_at >= steps[0]) & (motion.looked_at <= steps[-1]) & motion.converged
    values, thresholds = motion.values[inside], bifurcations.thresholds[inside]
    scale_height(ax, values, thresholds)
    ax.plot(motion.looked_at[inside], values, ".-", color=COLOURS[0], ms=2, lw=0.6)
    ax.plot(motion.looked_at[inside], thresholds, color=COLOURS[5], lw=1)


def _coloured(ax: Axes, steps: np.ndarray, values: np.ndarray, periods: np.ndarray) -> None:
    known = steps[np.isfinite(values)]
    for period, name in PERIOD_NAMES.items():
        shown = np.where(periods == period, values, np.nan)
        draw_points(ax, steps, shown, PERIOD_COLOURS[period], name, among=known)


def _mark(ax: Axes, event: Instability) -> None:
    ax.axvspan(event.onset, event.end, color=COLOURS[4], alpha=0.15, lw=0)
    if event.crossed >= 0:
        ax.axvline(event.crossed, color=COLOURS[5], lw=0.8, ls="--")
