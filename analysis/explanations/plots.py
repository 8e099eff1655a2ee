"""The figure of an explained step: what happens in the steps around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.explanations.explanation import Explanation
from dlf_dynamics.analysis.explanations.words import headline
from dlf_dynamics.analysis.headings import legend_below, letter_panels, set_title
from dlf_dynamics.analysis.instabilities.plots import PERIOD_COLOURS, PERIOD_NAMES
from dlf_dynamics.analysis.style import (
    COLOURS,
    draw_points,
    label_decades,
    label_steps,
    limit_height,
    new_figure,
    scale_height,
    set_span,
    styled,
)
from dlf_dynamics.streams import drawable

_WIDTH, _HEIGHT = 6.0, 1.35
"""Inches of the figure, and of a panel."""


def explanation_figure(explanation: Explanation) -> Figure:
    """Loss, projection on the mode, sharpness at the centres and gates that flip around a step.

    The step itself is marked in each panel, the oscillations are shaded, and dashed lines mark the
    crossings of the threshold that belong to them.
    """
    drawn = [(_draw_loss, "F"), (_draw_projection, "projection\non the mode")]
    if np.any(np.isfinite(explanation.around.values)):
        drawn.append((_draw_sharpness, "sharpness\nat centres"))
    if np.any(np.isfinite(explanation.around.gate_flips)):
        drawn.append((_draw_gates, "gates that\nflip (%)"))
    with styled():
        figure = new_figure(_WIDTH, 0.7 + _HEIGHT * len(drawn))
        axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        _fill(explanation, list(axes), drawn)
        set_title(figure, drawable(headline(explanation)))
        letter_panels(axes)
        legend_below(figure, *axes)
    return figure


_LARGEST = 1e300
"""Projection whose limits are numbers."""

Drawn = list[tuple[Callable[[Axes, Explanation], None], str]]


def _fill(explanation: Explanation, axes: list[Axes], drawn: Drawn) -> None:
    steps = explanation.around.steps
    for ax, (draw, name) in zip(axes, drawn, strict=True):
        draw(ax, explanation)
        ax.set_ylabel(name)
        _mark(ax, explanation)
        set_span(ax, int(steps[0]), int(steps[-1]))
        limit_height(ax)  # of a run that diverged
        label_decades(ax)
    label_steps(axes[-1])
    # Abbreviated thousands would give neighbouring ticks of a short window the same label.
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")


def _draw_loss(ax: Axes, explanation: Explanation) -> None:
    _coloured(ax, explanation, explanation.around.loss)
    scale_height(ax, explanation.around.loss)


def _draw_projection(ax: Axes, explanation: Explanation) -> None:
    projection = explanation.around.projection
    _coloured(ax, explanation, projection)
    finite = np.abs(projection[np.isfinite(projection)])
    limit = 1.15 * min(np.max(finite, initial=1e-300), _LARGEST)
    ax.set_ylim(-limit, limit)


def _draw_sharpness(ax: Axes, explanation: Explanation) -> None:
    around = explanation.around
    for fine, fill, words in (
        (around.converged, COLOURS[0], "sharpness"),
        (~around.converged, "none", "sharpness, not converged"),
    ):
        chosen = fine & np.isfinite(around.values)
        if np.any(chosen):
            style = ".-" if fill != "none" else "o"
            ax.plot(
                around.looked_at[chosen],
                around.values[chosen],
                style,
                color=COLOURS[0],
                mfc=fill,
                ms=3,
                lw=0.6,
                label=words,
            )
    centre = explanation.mode.first()
    if np.isfinite(centre.value):
        fill = COLOURS[7] if centre.converged else "none"
        words = "at the step" if centre.converged else "at the step, not converged"
        ax.plot(
            [explanation.step], [centre.value], "D", color=COLOURS[7], mfc=fill, ms=4, label=words
        )
    if np.any(np.isfinite(around.thresholds)):
        ax.plot(around.looked_at, around.thresholds, color=COLOURS[5], lw=1, label="threshold")


def _draw_gates(ax: Axes, explanation: Explanation) -> None:
    _coloured(ax, explanation, 100 * explanation.around.gate_flips)
    ax.set_ylim(bottom=0)


def _coloured(ax: Axes, explanation: Explanation, values: np.ndarray) -> None:
    """Points at each step, coloured by the period."""
    steps, periods = explanation.around.steps, explanation.around.periods
    if explanation.unwatched:
        draw_points(ax, steps, values, PERIOD_COLOURS[0], "iterates")
        return
    known = steps[np.isfinite(values)]
    for period, name in PERIOD_NAMES.items():
        shown = np.where(periods == period, values, np.nan)
        if np.any(np.isfinite(shown)):
            draw_points(ax, steps, shown, PERIOD_COLOURS[period], name, among=known)


def _mark(ax: Axes, explanation: Explanation) -> None:
    first, last = explanation.around.steps[[0, -1]]
    for event in explanation.events:
        if event.onset <= last and event.end >= first:
            style: dict[str, Any] = {
                "color": COLOURS[4],
                "alpha": 0.15,
                "lw": 0,
                "label": "oscillation",
            }
            ax.axvspan(max(event.onset, first), min(event.end, last), **style)
        if first <= event.crossed <= last:
            label = "crossing of the threshold"
            ax.axvline(event.crossed, color=COLOURS[5], lw=0.8, ls="--", label=label)
    ax.axvline(
        explanation.step, color=COLOURS[7], lw=0.8, label=f"step {explanation.step:,}", zorder=0
    )
