"""Several runs laid over each other, a colour for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.headings import legend_below, letter_panels
from dlf_dynamics.analysis.panels import chosen_panels
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.style import (
    class_colours,
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
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.run import Run
from dlf_dynamics.streams import drawable


class Overlaid(NamedTuple):
    """One of several runs, with its spectrum where there is one."""

    run: Run
    spectrum: Spectrum | None


Curve = Callable[[Axes, Overlaid, str, str], np.ndarray]
"""Draws a run on a panel in a colour and under a name; returns the values that were drawn."""


def _loss(ax: Axes, one: Overlaid, colour: str, name: str) -> np.ndarray:
    draw_points(ax, one.run.steps, one.run.scalars["loss"], colour, name)
    return one.run.scalars["loss"]


def _accuracy(ax: Axes, one: Overlaid, colour: str, name: str) -> np.ndarray:
    draw_points(ax, one.run.steps, one.run.scalars["accuracy"], colour, name)
    return np.zeros(0)  # it needs no logarithmic axis


def _sharpness(ax: Axes, one: Overlaid, colour: str, name: str) -> np.ndarray:
    """Converged values at the centres, or the iterates where there are none; the threshold."""
    if one.spectrum is None or one.spectrum.hessian.ends.top == 0:
        return np.zeros(0)
    hessian = one.spectrum.hessian
    solved = hessian.centre if _has_centres(one.spectrum) else hessian.iterate
    values = np.where(solved.converged[:, 0], solved.eigenvalues[:, 0], np.nan)
    draw_points(ax, hessian.steps, values, colour, name)
    if one.spectrum.comparable:
        draw_curve(ax, hessian.steps, one.spectrum.thresholds, color=colour, lw=0.8, ls="--")
    if one.spectrum.reference is not None:
        reference = one.spectrum.reference.values
        draw_curve(ax, hessian.steps, reference, color=colour, lw=0.8, ls=":")
    return values


def _ntk(ax: Axes, one: Overlaid, colour: str, name: str) -> np.ndarray:
    if one.spectrum is None or one.spectrum.ntk is None:
        return np.zeros(0)
    values = one.spectrum.ntk.eigenvalues[:, 0]
    draw_points(ax, one.spectrum.ntk.steps, values, colour, name)
    return values


OVERLAID: dict[str, tuple[Curve, str]] = {
    "loss": (_loss, "$F$"),
    "accuracy": (_accuracy, "training accuracy"),
    "sharpness": (_sharpness, "$\\lambda_{\\max}$ (dashed: threshold;\ndotted: full batch)"),
    "ntk": (_ntk, r"NTK $\lambda_{\max}$"),
}
"""Panels by name, from top to bottom: how a run is drawn on it, and its label."""

_ROBUST = ("loss", "sharpness", "ntk")
"""Panels in which a few values far from all others are indicated and not drawn to scale."""


def overlay_figure(
    runs: Sequence[Overlaid],
    zoom: tuple[float, float] | None = None,
    panels: Sequence[str] = (),
) -> Figure:
    """Loss, accuracy, sharpness and NTK of several runs on one axis of steps.

    Values that did not converge are left out; the legend says how many. It also has the operator
    where the spectra are of different ones, and says which values are at the iterates because there
    are no centres.

    Args:
        runs: the runs, in the order of their colours.
        zoom: first and last step that are shown; none means all.
        panels: names of `OVERLAID`; none takes those that have something to show.

    Raises:
        ConfigError: when a panel is unknown, has nothing to show or is named twice, or the zoom has
            no steps.
        FileError: when a run has no rows yet.
    """
    for one in runs:
        if len(one.run.steps) == 0:
            raise FileError(f"{one.run.path} has no rows; expected at least one to draw")
    first = min(float(one.run.steps[0]) for one in runs)
    last = max(float(one.run.steps[-1]) for one in runs)
    span = (first, last) if zoom is None else (max(zoom[0], first), min(zoom[1], last))
    if not span[0] < span[1]:
        raise ConfigError(f"zoom holds no steps of the runs, which have {first:.0f} to {last:.0f}")
    with styled():
        chosen = _chosen(runs, panels)
        figure = new_figure(7.2, 0.8 + 1.5 * len(chosen))
        axes = figure.subplots(len(chosen), 1, sharex=True, squeeze=False)[:, 0]
        names = _names(runs)
        for ax, panel in zip(axes, chosen, strict=True):
            curve, label = OVERLAID[panel]
            drawn = [
                curve(ax, one, colour, name)
                for one, colour, name in zip(runs, class_colours(len(runs)), names, strict=True)
            ]
            ax.set_ylabel(label)
            scale_height(ax, *drawn)
            set_span(ax, *span)
            fit_height(ax, span, without_outliers=panel in _ROBUST, apart=True)
            label_decades(ax)
            mark_hidden(ax)
        letter_panels(axes)
        label_steps(axes[-1])
        legend_below(figure, *axes)
    return figure


def _chosen(runs: Sequence[Overlaid], names: Sequence[str]) -> list[str]:
    """The requested panels, or all that have something to show."""
    blank = Figure().subplots()
    there = []
    for name, (curve, _) in OVERLAID.items():
        for one in runs:
            curve(blank, one, "black", "")
        lines = [np.asarray(line.get_ydata(), float) for line in blank.get_lines()]
        if any(np.any(np.isfinite(line)) for line in lines):
            there.append(name)
        blank.clear()
    return chosen_panels(names, OVERLAID, there)


def _has_centres(spectrum: Spectrum) -> bool:
    return bool(np.any(np.isfinite(spectrum.hessian.centre.eigenvalues[:, 0])))


def _names(runs: Sequence[Overlaid]) -> list[str]:
    """Names of the files, as paths where two are equal, with remarks on their spectra."""
    operators = {str(one.spectrum.hessian.curvature) for one in runs if one.spectrum is not None}
    short = [one.run.path.stem for one in runs]
    seen: dict[Path, count[int]] = {}
    names = []
    for one, name in zip(runs, short, strict=True):
        told = str(one.run.path) if short.count(name) > 1 else name
        again = next(seen.setdefault(one.run.path, count(1)))
        told += f" ({again})" if again > 1 else ""
        if one.spectrum is not None and len(operators) > 1:
            told += f", {one.spectrum.hessian.curvature}"
        if one.spectrum is not None and not _has_centres(one.spectrum):
            told += ", at the iterates"
        if one.spectrum is not None and one.spectrum.not_converged:
            told += f", {one.spectrum.not_converged} checkpoints not converged"
        names.append(drawable(told))
    return names
