"""The figure of a plane of two parameters."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.headings import legend_below
from dlf_dynamics.analysis.instabilities.plane import Plane, PlaneCurve
from dlf_dynamics.analysis.style import COLOURS, new_figure, styled
from dlf_dynamics.streams import drawable

_NAMES = {
    "learning_rate": "learning rate",
    "rate_factor": "learning rate / the run's own",
    "amplitude": "amplitude of the pulse",
    "period": "period of the pulse (steps)",
    "momentum": "momentum",
}

_COLOURS = {"flip": COLOURS[1], "fold": COLOURS[0], "neimark-sacker": COLOURS[2]}


def plane_figure(plane: Plane) -> Figure:
    """Curves of bifurcations, points of codimension two, and the run's own values.

    A curve is solid where no other multiplier is outside the unit circle, so that stability ends
    there, and dotted elsewhere. Flips are dashed where their coefficient is negative, as the orbit
    that branches off is then unstable.
    """
    with styled():
        figure = new_figure(4.2, 3.4)
        ax = figure.add_subplot()
        named: set[str] = set()
        for curve in plane.curves:
            _draw_curve(ax, curve, named)
        _draw_run(ax, plane)
        for span, set_limits in zip(plane.ranges, (ax.set_xlim, ax.set_ylim), strict=True):
            set_limits(*span)
        ax.set_xlabel(_name(plane, 0))
        ax.set_ylabel(_name(plane, 1))
        ax.set_title(f"loss of step {plane.step}")
        legend_below(figure, ax)
    return figure


def _draw_curve(ax: Axes, curve: PlaneCurve, named: set[str]) -> None:
    changes = curve.unstable == 0
    subcritical = (curve.kind == "flip") & (curve.coefficients < 0)
    for shown, style, words in (
        (changes & ~subcritical, "-", ""),
        (changes & subcritical, "--", ", subcritical"),
        (~changes, ":", ", of an unstable point"),
    ):
        near = shown | np.append(shown[1:], False)  # so that pieces join
        line = np.where(near[:, None], curve.parameters, np.nan)
        label = f"{curve.kind}{words}"
        if not np.any(shown):
            continue
        ax.plot(
            *line.T,
            style,
            color=_COLOURS[curve.kind],
            lw=1.2,
            label=None if label in named else label,
        )
        named.add(label)
    for point in curve.special:
        fill = "black" if point.converged else "none"
        ax.plot(point.first, point.second, "o", ms=3.5, color="black", mfc=fill)
        ax.annotate(
            point.label, (point.first, point.second), (3, 3), textcoords="offset points", size=7
        )


def _draw_run(ax: Axes, plane: Plane) -> None:
    """The path of the run, and where it is at the step of the frozen loss."""
    if len(plane.path) > 1:
        ax.plot(*plane.path.T, color=COLOURS[7], lw=0.8, label="path of the run", zorder=1)
    ax.plot(*plane.actual, "*", color=COLOURS[5], ms=8, label=f"the run at step {plane.step}")


def _name(plane: Plane, index: int) -> str:
    name = plane.names[index]
    if name == "class_weight":
        return f"weight of class {plane.class_label}"
    return drawable(_NAMES.get(name, name))
