"""Figure of a run's NTK beside the kernels of infinitely wide networks."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.headings import legend_above, letter_panels, set_panel_title, set_title
from dlf_dynamics.analysis.spectra.infinite_width import InfiniteWidth
from dlf_dynamics.analysis.spectra.plots import shade_oscillations
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.analysis.style import (
    COLOURS,
    draw_points,
    label_decades,
    label_steps,
    mark_hidden,
    new_figure,
    scaled,
    set_span,
    styled,
)
from dlf_dynamics.paper import this_paper

LARGEST = 6
"""Eigenvalues that are drawn along the run."""

DECADES = 6
"""Decades below the largest eigenvalue that are drawn."""

_ROUNDING = 1e-9
"""Distances below this are drawn as 0."""

_THETA, _NNGP, _FIRST, _LAST = COLOURS[5], COLOURS[3], COLOURS[4], COLOURS[0]


def kernel_figure(spectrum: Spectrum) -> Figure:
    """The NTK's eigenvalues, its distances and its alignment along the run, beside the limits'.

    Args:
        spectrum: spectrum with `infinite_width`.

    Raises:
        ValueError: when it has no kernels at infinite width.
    """
    kernels = spectrum.infinite_width
    if kernels is None:
        raise ValueError("the spectrum has no kernels at infinite width; compute them")
    with styled():
        if this_paper().columns(2.6, 2) == 2:
            figure = new_figure(7.2, 6.0)
            grid = figure.add_gridspec(3, 2, width_ratios=[1.7, 1], height_ratios=[1.6, 1, 0.8])
            cells = grid[0, 0], grid[0, 1], grid[1, 0], grid[2, 0], grid[1:, 1]
        else:
            figure = new_figure(7.2, 9.0)
            cells = figure.add_gridspec(5, 1, height_ratios=[1.6, 1.6, 1, 0.8, 1.6])
        along = figure.add_subplot(cells[0])
        ranks = figure.add_subplot(cells[1], sharey=along)
        distances = figure.add_subplot(cells[2], sharex=along)
        alignment = figure.add_subplot(cells[3], sharex=along)
        shares = figure.add_subplot(cells[4], sharex=ranks)
        _draw_eigenvalues(along, kernels)
        _draw_ranks(ranks, kernels)
        _draw_distances(distances, kernels)
        _draw_alignment(alignment, kernels)
        _draw_shares(shares, kernels)
        for ax in (along, distances, alignment):
            shade_oscillations(ax, spectrum)
        for ax in (along, distances):
            ax.tick_params(labelbottom=False)
        label_steps(alignment)
        set_span(alignment, kernels.steps[0], kernels.steps[-1])
        letter_panels(figure.axes)
        for ax in (distances, alignment):
            legend_above(ax)
        label_decades(distances)
        mark_hidden(distances)
        set_title(figure, _title(kernels))
        return figure


def _draw_eigenvalues(ax: Axes, kernels: InfiniteWidth) -> None:
    """The largest eigenvalues of the run's NTK against the step, and Θ's as dashed lines."""
    count = min(LARGEST, kernels.num_examples)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, count))
    for rank in reversed(range(count)):
        ax.axhline(kernels.ntk[rank], color=colours[rank], lw=0.6, ls=(0, (4, 3)))
        draw_points(ax, kernels.steps, kernels.eigenvalues[:, rank], colours[rank])
    ax.set_yscale("log")
    top = max(kernels.ntk[0], _largest(kernels.eigenvalues[:, 0]))
    ax.set_ylim(_floor(top, kernels.ntk, kernels.eigenvalues), 3 * top)
    ax.set_ylabel("eigenvalue")
    set_panel_title(ax, f"the {count} largest of K along the run; dashed: those of Θ")


def _draw_ranks(ax: Axes, kernels: InfiniteWidth) -> None:
    """All eigenvalues of Θ and of the run's first and last NTK by rank."""
    for values, marker, colour, label in _shown(kernels):
        _ranked(ax, values, marker, colour, label)
    ax.tick_params(labelleft=False)
    ax.legend(fontsize=scaled(6), frameon=False)
    set_panel_title(ax, f"all {kernels.num_examples} eigenvalues")


def _draw_distances(ax: Axes, kernels: InfiniteWidth) -> None:
    """Relative distances of the run's NTK from Θ and from where it began."""
    draw_points(ax, kernels.steps, kernels.distance, _THETA, r"$\|K-\Theta\|/\|\Theta\|$")
    draw_points(ax, kernels.steps, kernels.movement, _LAST, r"$\|K-K_0\|/\|K_0\|$")
    first = kernels.distance[0]
    if np.isfinite(first) and kernels.steps[0] == 0:
        label = f"of $K_0$ from Θ: {first:.2g}"
        ax.axhline(first, color=_THETA, lw=0.6, ls=(0, (4, 3)), label=label)
    if _largest(np.concatenate([kernels.distance, kernels.movement])) > _ROUNDING:
        ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel("relative distance")


def _draw_alignment(ax: Axes, kernels: InfiniteWidth) -> None:
    """Cosine of the angle between the run's NTK and Θ."""
    label = r"$\langle K, \Theta\rangle / (\|K\| \|\Theta\|)$"
    draw_points(ax, kernels.steps, kernels.alignment, _THETA, label)
    ax.axhline(1, color="#000000", lw=0.5, ls=":")
    ax.set_ylabel("alignment with Θ")


def _draw_shares(ax: Axes, kernels: InfiniteWidth) -> None:
    """The same by rank as fractions of their sum, so that the NNGP kernel can be compared, too."""
    for values, marker, colour, label in [*_shown(kernels), (kernels.nngp, "s", _NNGP, "NNGP")]:
        _ranked(ax, values / np.sum(values), marker, colour, label)
    ax.set_yscale("log")
    shares = [
        values / np.sum(values) for values in (kernels.ntk, kernels.nngp, kernels.eigenvalues[-1])
    ]
    ax.set_ylim(_floor(1, *shares), 2)
    ax.set_xlabel("rank of the eigenvalue")
    ax.set_ylabel("part of the kernel's trace")
    ax.legend(fontsize=scaled(6), frameon=False)


def _shown(kernels: InfiniteWidth) -> list[tuple[Float[np.ndarray, " examples"], str, str, str]]:
    """Eigenvalues, marker, colour and name of each kernel."""
    return [
        (kernels.ntk, "o", _THETA, "infinite width, Θ"),
        (kernels.eigenvalues[0], "v", _FIRST, f"run, step {kernels.steps[0]}"),
        (kernels.eigenvalues[-1], "^", _LAST, f"run, step {kernels.steps[-1]}"),
    ]


def _ranked(ax: Axes, values: np.ndarray, marker: str, colour: str, label: str) -> None:
    ranks = np.arange(1, len(values) + 1)
    ax.plot(ranks, values, marker, color=colour, ms=2.5, mew=0.5, mfc="none", label=label)


def _floor(top: float, *values: np.ndarray) -> float:
    """A limit below all values, but at most `DECADES` below the top."""
    least = top / 10**DECADES
    return min([top, *(float(np.min(v, initial=top, where=v > least)) for v in values)]) / 2


def _largest(values: np.ndarray) -> float:
    """The largest finite value; 0 where none is finite."""
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))


def _title(kernels: InfiniteWidth) -> str:
    weights = "" if kernels.normal_weights else " of normal weights"
    return (
        f"NTK K of {kernels.num_examples} examples, averaged over the outputs, beside its limit Θ "
        f"at infinite width{weights}; norms are Frobenius norms\n"
        "shaded: oscillations of the run, darker where they are seen in the loss"
    )
