"""Figures of spectral densities: over time as a heat map, and at chosen steps with error bands."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dlf_dynamics.analysis.spectra.density import Density, default_grid, evaluate
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.style import COLOURS, STYLE, label_steps, set_title

DECADES = 6
"""Decades of the density that are drawn."""

CURVES = 4
"""Steps at which the density is drawn as a curve."""

_LINEAR_SHARE = 1 / 40
"""Where the axis turns from linear to logarithmic, as a share of the largest |eigenvalue|: what the
default number of Lanczos steps resolves."""

NAMES = {"hessian": "Hessian", "ggn": "GGN", "ntk": "NTK"}


def density_figure(spectrum: Spectrum) -> Figure:
    """A row for each operator: its density over time, and at some steps.

    Args:
        spectrum: with densities.
    """
    with mpl.rc_context(STYLE):
        count = len(spectrum.densities)
        figure = Figure(figsize=(7.2, 0.6 + 2.3 * count), layout="constrained")
        axes = figure.subplots(count, 2, squeeze=False, width_ratios=[1.25, 1])
        for row, (name, density) in zip(axes, spectrum.densities.items(), strict=True):
            draw_over_time(row[0], density)
            draw_curves(row[1], density, spectrum)
            row[0].set_title(f"{NAMES[name]}, {density.size} eigenvalues", fontsize=7)
            label_steps(row[0], "step" if row[0] is axes[-1, 0] else "")
        axes[-1, 1].set_xlabel("eigenvalue")
        first = next(iter(spectrum.densities.values()))
        set_title(
            figure,
            f"spectral densities, each of integral 1, by stochastic Lanczos quadrature: "
            f"{first.num_probes} probes of {first.num_steps} steps; "
            f"bands: standard error over the probes",
        )
        return figure


def evaluated(density: Density) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Grid, densities and errors at every step that is finite, and where the axis turns linear."""
    nodes = density.nodes[np.isfinite(density.nodes)]
    linear = float(np.max(np.abs(nodes), initial=0.0)) * _LINEAR_SHARE or 1.0
    grid, width = default_grid(density, linear)
    mean, error = evaluate(density.nodes, density.weights, grid, width, linear)
    return grid, mean, error, linear


def _decades(axis: Axis, grid: np.ndarray, linear: float) -> None:
    """Ticks at 0 and at 1 and 3 times the powers of ten beyond the linear part."""
    powers = 10.0 ** np.arange(np.floor(np.log10(linear)), np.log10(linear) + 8)
    beyond = np.sort(np.concatenate([powers, 3 * powers]))
    beyond = beyond[beyond > linear]
    ticks = np.concatenate([-beyond[::-1], [0.0], beyond])
    axis.set_major_locator(FixedLocator(ticks[(ticks >= grid[0]) & (ticks <= grid[-1])].tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def draw_over_time(ax: Axes, density: Density) -> None:
    """The density as a heat map: steps to the right, eigenvalues upwards, colours logarithmic."""
    grid, mean, _, linear = evaluated(density)
    top = float(np.nanmax(mean))
    shades = ax.pcolormesh(
        density.steps,
        grid,
        np.maximum(mean, top / 10**DECADES).T,
        norm=LogNorm(top / 10**DECADES, top),
        cmap="viridis",
        shading="nearest",
        rasterized=True,
    )
    ax.set_yscale("asinh", linear_width=linear)
    _decades(ax.yaxis, grid, linear)
    ax.set_ylabel("eigenvalue")
    assert isinstance(ax.figure, Figure)
    ax.figure.colorbar(shades, ax=ax, label="density")


def draw_curves(ax: Axes, density: Density, spectrum: Spectrum) -> None:
    """The density at a few steps, with bands of one standard error."""
    grid, mean, error, linear = evaluated(density)
    places = np.unique(np.linspace(0, len(density.steps) - 1, CURVES).astype(int))
    floor = float(np.nanmax(mean)) / 10**DECADES
    for place, colour in zip(places, COLOURS, strict=False):
        label = f"step {density.steps[place]}"
        ax.plot(grid, np.maximum(mean[place], floor), color=colour, lw=0.8, label=label)
        low, high = mean[place] - error[place], mean[place] + error[place]
        ax.fill_between(
            grid, np.maximum(low, floor), np.maximum(high, floor), color=colour, alpha=0.25, lw=0
        )
    ax.set_xscale("asinh", linear_width=linear)
    _decades(ax.xaxis, grid, linear)
    ax.set_yscale("log")
    ax.set_ylim(floor, None)
    ax.set_ylabel("density")
    ax.legend(fontsize=6, frameon=False)
