"""Figures of spectral densities: over time as a heat map, and at chosen steps with error bands."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dlf_dynamics.analysis.headings import letter_panels, set_panel_title, set_title
from dlf_dynamics.analysis.spectra.density import Density, default_grid, evaluate
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.style import COLOURS, label_steps, new_figure, scaled, styled
from dlf_dynamics.paper import this_paper

DECADES = 6
"""Decades of the density that are drawn."""

_CURVES = 4
"""Steps at which the density is drawn as a curve."""

_LINEAR_SHARE = 1 / 40
"""Where the axis turns from linear to logarithmic, as a fraction of the largest |eigenvalue|: the
resolution of the default number of Lanczos steps."""

NAMES = {"hessian": "Hessian", "ggn": "GGN", "ntk": "NTK"}


def density_figure(spectrum: Spectrum) -> Figure:
    """A row for each operator: its density over time, and at some steps.

    Args:
        spectrum: spectrum with densities.
    """
    with styled():
        count, columns = len(spectrum.densities), this_paper().columns(2.6, 2)
        figure = new_figure(7.2, 0.6 + 2.3 * count * (3 - columns))
        grid = figure.subplots(
            count * (3 - columns), columns, squeeze=False, width_ratios=[1.25, 1][:columns]
        )
        axes = grid.reshape(count, 2)
        for row, (name, density) in zip(axes, spectrum.densities.items(), strict=True):
            _draw_over_time(row[0], density)
            draw_curves(row[1], density, spectrum)
            set_panel_title(row[0], f"{NAMES[name]}, {density.size} eigenvalues")
            last = columns == 1 or row[0] is axes[-1, 0]
            label_steps(row[0], "step" if last else "")
            row[1].set_xlabel("eigenvalue" if last else "")
        letter_panels(axes.ravel())
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


def decade_ticks(grid: np.ndarray, linear: float) -> np.ndarray:
    """0, and 1 and 3 times the powers of ten beyond the linear part, within the grid."""
    powers = 10.0 ** np.arange(np.floor(np.log10(linear)), np.log10(linear) + 8)
    beyond = np.sort(np.concatenate([powers, 3 * powers]))
    beyond = beyond[beyond > linear]
    ticks = np.concatenate([-beyond[::-1], [0.0], beyond])
    return ticks[(ticks >= grid[0]) & (ticks <= grid[-1])]


def drawn_as_curves(density: Density) -> Int[np.ndarray, " curves"]:
    """Indices of the steps at which the density is drawn as a curve, evenly spaced."""
    return np.unique(np.linspace(0, len(density.steps) - 1, _CURVES).astype(int))


def _decades(axis: Axis, grid: np.ndarray, linear: float, apart: float) -> None:
    """Labels the ticks of `decade_ticks` that are far enough apart.

    Args:
        axis: axis to be labelled.
        grid: increasing eigenvalues.
        linear: where the axis turns logarithmic.
        apart: least distance of two ticks, as a fraction of the axis.
    """
    ticks = decade_ticks(grid, linear)
    ends = np.arcsinh(grid[[0, -1]] / linear)
    kept = [0.0]
    for side in (ticks[ticks > 0], ticks[ticks < 0][::-1]):
        last = 0.0
        for tick in side.tolist():
            position = np.arcsinh(tick / linear) / (ends[1] - ends[0])
            if abs(position - last) >= apart:
                kept.append(tick)
                last = position
    axis.set_major_locator(FixedLocator(sorted(kept)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _draw_over_time(ax: Axes, density: Density) -> None:
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
    _decades(ax.yaxis, grid, linear, apart=0.1)
    ax.set_ylabel("eigenvalue")
    assert isinstance(ax.figure, Figure)
    ax.figure.colorbar(shades, ax=ax, label="density")


def draw_curves(ax: Axes, density: Density, spectrum: Spectrum) -> None:
    """The density at a few steps, with bands of one standard error."""
    grid, mean, error, linear = evaluated(density)
    floor = float(np.nanmax(mean)) / 10**DECADES
    for index, colour in zip(drawn_as_curves(density), COLOURS, strict=False):
        label = f"step {density.steps[index]}"
        ax.plot(grid, np.maximum(mean[index], floor), color=colour, lw=0.8, label=label)
        low, high = mean[index] - error[index], mean[index] + error[index]
        ax.fill_between(
            grid, np.maximum(low, floor), np.maximum(high, floor), color=colour, alpha=0.25, lw=0
        )
    ax.set_xscale("asinh", linear_width=linear)
    _decades(ax.xaxis, grid, linear, apart=0.13)
    ax.set_yscale("log")
    ax.set_ylim(floor, None)
    ax.set_ylabel("density")
    ax.legend(fontsize=scaled(6), frameon=False)
