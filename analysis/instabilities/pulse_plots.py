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
"""Of the singular values, in their order; more than that share the last one."""


def pulse_figure(found: Bifurcations) -> Figure:
    """Growth over each pulse, each cycle, and the multipliers of those whose orbit closes.

    A bar spans the steps of a pulse, open marks have not converged; instabilities are shaded.
    """
    groups = {
        kind: [each for each in found.pulse_maps if each.kind == kind]
        for kind in ("pulse", "cycle")
    }
    groups = {kind: maps for kind, maps in groups.items() if maps}
    closed = [each for each in found.pulse_maps if each.closed and len(each.multipliers)]
    rows = len(groups) + bool(closed)
    with styled():
        figure = new_figure(6.4, 1.2 + 1.9 * rows)
        axes = np.atleast_1d(figure.subplots(rows, 1, sharex=True))
        for ax, (kind, maps) in zip(axes, groups.items(), strict=False):
            _draw_growth(ax, maps)
            ax.set_ylabel(f"growth over\na {kind}")
        if closed:
            _draw_multipliers(axes[-1], closed)
        for ax in axes:
            _mark_instabilities(ax, found)
            first = min(each.first_step for each in found.pulse_maps)
            set_span(ax, first, max(each.last_step for each in found.pulse_maps))
        label_steps(axes[-1])
        letter_panels(axes)
        legend_below(figure, *axes)
    return figure


def _draw_growth(ax: Axes, maps: list[PulseMap]) -> None:
    """The singular values of each map, in decades, as they may be beyond the largest number."""
    ax.axhline(0, color="#999999", lw=0.6)
    for mode in range(max(len(found.decades) for found in maps)):
        colour, marker = COLOURS[mode % len(COLOURS)], _MARKERS[min(mode, len(_MARKERS) - 1)]
        there = [found for found in maps if len(found.decades) > mode]
        heights = np.array([found.decades[mode] for found in there])
        heights[~np.isfinite(heights)] = np.nan
        for found, height in zip(there, heights, strict=True):
            ax.plot([found.first_step, found.last_step], [height] * 2, color=colour, lw=0.8)
        fine = np.array([found.converged[mode] for found in there])
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
    """Moduli of the multipliers of closed orbits, a colour for what is known of the orbit."""
    ax.axhline(1, color="#999999", lw=0.6)
    for stability, colour in (
        ("stable", COLOURS[2]),
        ("none found", COLOURS[0]),
        ("unknown", COLOURS[7]),
        ("unstable", COLOURS[5]),
    ):
        chosen = [found for found in maps if found.stability == stability]
        if not chosen:
            continue
        places = np.repeat(_middles(chosen), [len(found.multipliers) for found in chosen])
        sizes = np.abs(np.concatenate([found.multipliers for found in chosen]))
        words = {"none found": "no unstable found", "unknown": "not told"}.get(stability, stability)
        ax.plot(places, sizes, "x", ms=4, color=colour, label=f"multipliers: {words}")
    ax.set_ylabel("modulus of\nmultipliers")


def _middles(maps: list[PulseMap]) -> np.ndarray:
    return np.array([(found.first_step + found.last_step) / 2 for found in maps])


def _mark_instabilities(ax: Axes, found: Bifurcations) -> None:
    for number, event in enumerate(found.instabilities):
        name = None if number else "instabilities"
        ax.axvspan(event.onset, event.end, color=COLOURS[4], alpha=0.2, lw=0, label=name)
