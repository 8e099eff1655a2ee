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
"""Distances up to which they are drawn as 0."""

_THETA, _NNGP, _FIRST, _LAST = COLOURS[5], COLOURS[3], COLOURS[4], COLOURS[0]


def kernel_figure(spectrum: Spectrum) -> Figure:
    """The NTK's eigenvalues, its distances and its alignment along the run, beside the limits'.

    Args:
        spectrum: with `infinite_width`.

    Raises:
        ValueError: when it has none.
    """
    found = spectrum.infinite_width
    if found is None:
        raise ValueError("the spectrum has no kernels at infinite width; compute them")
    with styled():
        if this_paper().columns(2.6, 2) == 2:
            figure = new_figure(7.2, 6.0)
            grid = figure.add_gridspec(3, 2, width_ratios=[1.7, 1], height_ratios=[1.6, 1, 0.8])
            places = grid[0, 0], grid[0, 1], grid[1, 0], grid[2, 0], grid[1:, 1]
        else:
            figure = new_figure(7.2, 9.0)
            places = figure.add_gridspec(5, 1, height_ratios=[1.6, 1.6, 1, 0.8, 1.6])
        along = figure.add_subplot(places[0])
        ranks = figure.add_subplot(places[1], sharey=along)
        distances = figure.add_subplot(places[2], sharex=along)
        alignment = figure.add_subplot(places[3], sharex=along)
        shares = figure.add_subplot(places[4], sharex=ranks)
        draw_eigenvalues(along, found)
        draw_ranks(ranks, found)
        draw_distances(distances, found)
        draw_alignment(alignment, found)
        draw_shares(shares, found)
        for ax in (along, distances, alignment):
            shade_oscillations(ax, spectrum)
        for ax in (along, distances):
            ax.tick_params(labelbottom=False)
        label_steps(alignment)
        set_span(alignment, found.steps[0], found.steps[-1])
        letter_panels(figure.axes)
        for ax in (distances, alignment):
            legend_above(ax)
        label_decades(distances)
        mark_hidden(distances)
        set_title(figure, _title(found))
        return figure


def draw_eigenvalues(ax: Axes, found: InfiniteWidth) -> None:
    """The largest eigenvalues of the run's NTK against the step, and Θ's as dashed lines."""
    count = min(LARGEST, found.num_examples)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, count))
    for rank in reversed(range(count)):
        ax.axhline(found.ntk[rank], color=colours[rank], lw=0.6, ls=(0, (4, 3)))
        draw_points(ax, found.steps, found.eigenvalues[:, rank], colours[rank])
    ax.set_yscale("log")
    top = max(found.ntk[0], _largest(found.eigenvalues[:, 0]))
    ax.set_ylim(_floor(top, found.ntk, found.eigenvalues), 3 * top)
    ax.set_ylabel("eigenvalue")
    set_panel_title(ax, f"the {count} largest of K along the run; dashed: those of Θ")


def draw_ranks(ax: Axes, found: InfiniteWidth) -> None:
    """All eigenvalues of Θ and of the run's first and last NTK by rank."""
    for values, marker, colour, label in _kernels(found):
        _ranked(ax, values, marker, colour, label)
    ax.tick_params(labelleft=False)
    ax.legend(fontsize=scaled(6), frameon=False)
    set_panel_title(ax, f"all {found.num_examples} eigenvalues")


def draw_distances(ax: Axes, found: InfiniteWidth) -> None:
    """Relative distances of the run's NTK from Θ and from where it began."""
    draw_points(ax, found.steps, found.distance, _THETA, r"$\|K-\Theta\|/\|\Theta\|$")
    draw_points(ax, found.steps, found.movement, _LAST, r"$\|K-K_0\|/\|K_0\|$")
    first = found.distance[0]
    if np.isfinite(first) and found.steps[0] == 0:
        label = f"of $K_0$ from Θ: {first:.2g}"
        ax.axhline(first, color=_THETA, lw=0.6, ls=(0, (4, 3)), label=label)
    if _largest(np.concatenate([found.distance, found.movement])) > _ROUNDING:
        ax.set_yscale("log", nonpositive="mask")
    ax.set_ylabel("relative distance")


def draw_alignment(ax: Axes, found: InfiniteWidth) -> None:
    """Cosine of the angle between the run's NTK and Θ."""
    label = r"$\langle K, \Theta\rangle / (\|K\| \|\Theta\|)$"
    draw_points(ax, found.steps, found.alignment, _THETA, label)
    ax.axhline(1, color="#000000", lw=0.5, ls=":")
    ax.set_ylabel("alignment with Θ")


def draw_shares(ax: Axes, found: InfiniteWidth) -> None:
    """The same by rank as parts of their sum, so that the NNGP kernel can be compared too."""
    for values, marker, colour, label in [*_kernels(found), (found.nngp, "s", _NNGP, "NNGP")]:
        _ranked(ax, values / np.sum(values), marker, colour, label)
    ax.set_yscale("log")
    shares = [values / np.sum(values) for values in (found.ntk, found.nngp, found.eigenvalues[-1])]
    ax.set_ylim(_floor(1, *shares), 2)
    ax.set_xlabel("rank of the eigenvalue")
    ax.set_ylabel("part of the kernel's trace")
    ax.legend(fontsize=scaled(6), frameon=False)


def _kernels(found: InfiniteWidth) -> list[tuple[Float[np.ndarray, " examples"], str, str, str]]:
    """Eigenvalues, marker, colour and name."""
    return [
        (found.ntk, "o", _THETA, "infinite width, Θ"),
        (found.eigenvalues[0], "v", _FIRST, f"run, step {found.steps[0]}"),
        (found.eigenvalues[-1], "^", _LAST, f"run, step {found.steps[-1]}"),
    ]


def _ranked(ax: Axes, values: np.ndarray, marker: str, colour: str, label: str) -> None:
    ranks = np.arange(1, len(values) + 1)
    ax.plot(ranks, values, marker, color=colour, ms=2.5, mew=0.5, mfc="none", label=label)


def _floor(top: float, *values: np.ndarray) -> float:
    """Below all values, but at most `DECADES` below the top."""
    least = top / 10**DECADES
    return min([top, *(float(np.min(v, initial=top, where=v > least)) for v in values)]) / 2


def _largest(values: np.ndarray) -> float:
    """Of those that are finite; 0 where none is."""
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))


def _title(found: InfiniteWidth) -> str:
    weights = "" if found.normal_weights else " of normal weights"
    return (
        f"NTK K of {found.num_examples} examples, averaged over the outputs, beside its limit Θ at "
        f"infinite width{weights}; norms are Frobenius norms\n"
        "shaded: oscillations of the run, darker where they are seen in the loss"
    )
