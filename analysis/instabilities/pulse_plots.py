"""The figure of the maps of pulses: growth of perturbations along a run, and multipliers."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dlf_dynamics.analysis.headings import legend_below, letter_panels
from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap
from dlf_dynamics.analysis.style import COLOURS, label_steps, new_figure, set_span, styled

_MARKERS = "os^Dv"
"""Markers of the singular values, in their order; further ones share the last."""


def pulse_figure(bifurcations: Bifurcations) -> Figure:
    """Growth over each pulse, each cycle, and the multipliers of those whose orbit closes.

    A bar spans the steps of a pulse, hollow marks have not converged; instabilities are shaded.
    """
    groups = {
        kind: [each for each in bifurcations.pulse_maps if each.kind == kind]
        for kind in ("pulse", "cycle")
    }
    groups = {kind: maps for kind, maps in groups.items() if maps}
    closed = [each for each in bifurcations.pulse_maps if each.closed and len(each.multipliers)]
    count = len(groups) + bool(closed)
    with styled():
        figure = new_figure(6.4, 1.2 + 1.9 * count)
        axes = np.atleast_1d(figure.subplots(count, 1, sharex=True))
        for ax, (kind, maps) in zip(axes, groups.items(), strict=False):
            _draw_growth(ax, maps)
            ax.set_ylabel(f"growth over\na {kind}")
        if closed:
            _draw_multipliers(axes[-1], closed)
        for ax in axes:
            _mark_instabilities(ax, bifurcations)
            first = min(each.first_step for each in bifurcations.pulse_maps)
            set_span(ax, first, max(each.last_step for each in bifurcations.pulse_maps))
        label_steps(axes[-1])
        letter_panels(axes)
        legend_below(figure, *axes)
    return figure


def _draw_growth(ax: Axes, maps: list[PulseMap]) -> None:
    """The singular values of each map, in decades, as they may exceed the largest number."""
    ax.axhline(0, color="#999999", lw=0.6)
    for mode in range(max(len(pulse.decades) for pulse in maps)):
        colour, marker = COLOURS[mode % len(COLOURS)], _MARKERS[min(mode, len(_MARKERS) - 1)]
        there = [pulse for pulse in maps if len(pulse.decades) > mode]
        heights = np.array([pulse.decades[mode] for pulse in there])
        heights[~np.isfinite(heights)] = np.nan
        for pulse, height in zip(there, heights, strict=True):
            ax.plot([pulse.first_step, pulse.last_step], [height] * 2, color=colour, lw=0.8)
        fine = np.array([pulse.converged[mode] for pulse in there])
        for chosen, fill, words in ((fine, colour, ""), (~fine, "none", ", not converged")):
            if np.any(chosen & np.isfinite(heights)):
                ax.plot(
                    _middles(there)[chosen],
                    heights[chosen],
                    marker,
                    ms=4,
                    color=colour,
                    mfc=fill,
                    label=f"singular value {mode + 1}{words}",
                )
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{value:.0f}}}$"))


def _draw_multipliers(ax: Axes, maps: list[PulseMap]) -> None:
    """Moduli of the multipliers of closed orbits, coloured by stability."""
    ax.axhline(1, color="#999999", lw=0.6)
    for stability, colour in (
        ("stable", COLOURS[2]),
        ("none found", COLOURS[0]),
        ("unknown", COLOURS[7]),
        ("unstable", COLOURS[5]),
    ):
        chosen = [pulse for pulse in maps if pulse.stability == stability]
        if not chosen:
            continue
        steps = np.repeat(_middles(chosen), [len(pulse.multipliers) for pulse in chosen])
        sizes = np.abs(np.concatenate([pulse.multipliers for pulse in chosen]))
        words = {"none found": "no unstable found", "unknown": "not told"}.get(stability, stability)
        ax.plot(steps, sizes, "x", ms=4, color=colour, label=f"multipliers: {words}")
    ax.set_ylabel("modulus of\nmultipliers")


def _middles(maps: list[PulseMap]) -> np.ndarray:
    return np.array([(pulse.first_step + pulse.last_step) / 2 for pulse in maps])


def _mark_instabilities(ax: Axes, bifurcations: Bifurcations) -> None:
    for number, event in enumerate(bifurcations.instabilities):
        name = None if number else "instabilities"
        ax.axvspan(event.onset, event.end, color=COLOURS[4], alpha=0.2, lw=0, label=name)
