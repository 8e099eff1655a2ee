"""Figures of phase diagrams."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator

from dlf_dynamics.analysis.headings import letter_panels, set_title
from dlf_dynamics.analysis.studies.phase_diagram import PhaseDiagram
from dlf_dynamics.analysis.studies.selection import describe
from dlf_dynamics.analysis.style import COLOURS, new_figure, scaled, styled
from dlf_dynamics.paper import this_paper
from dlf_dynamics.streams import drawable

_MOST_PRINTED = 60
"""Cells of a diagram up to which their values are printed in them."""

_GEOMETRIC_SPAN = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""

_LEAST_MAP = 2.2
"""Least width of a map with its scale of colours, in inches."""

_NAME = 30
"""Largest number of characters of a name."""
_HATCH = "#666666"
_COLOUR_SPAN = 10.0
_INCOMPLETE = "some runs missing, failed or diverged: mean of the others"
_LUMINANCE, _BRIGHT = (0.2126, 0.7152, 0.0722), 0.5
_MOST_DECIMALS = 4

_EVEN = 1.4
"""Ratio of the largest to the smallest logarithmic distance up to which spacing is geometric:
whole numbers are, in spite of their rounding, and so are 1, 2, 5, 10."""

QUANTITIES = {
    "steps": "updates made",
    "loss": "loss F after the last update",
    "static_loss": "static loss after the last update",
    "accuracy": "training accuracy",
    "best_accuracy": "largest training accuracy",
    "validation_loss": "validation loss after the last update",
    "validation_accuracy": "validation accuracy",
    "best_validation_accuracy": "largest validation accuracy",
    "instabilities": "number of instabilities",
    "bursts": "number of bursts",
    "period_2": "number of instabilities of period 2",
    "period_4": "number of instabilities of period 4",
    "irregular": "number of irregular instabilities",
    "oscillating_steps": "steps within instabilities",
    "period_2_steps": "steps of period 2",
    "period_4_steps": "steps of period 4",
    "onset_phase": "phase of the onset in the pulse",
    "realized_above": "share of steps with a realized edge above 1",
    "sharpness": "sharpness of the static loss after the last update",
    "sharpness_error": "residual of the sharpness",
    "threshold": "critical eigenvalue at the last step",
    "preconditioned_sharpness": "preconditioned sharpness of the static loss",
    "ntk": "largest eigenvalue of the NTK",
    "seconds": "seconds of training",
}
"""The numbers of a run in words."""

AXES = {
    "schedule.amplitude": ("amplitude A", "A"),
    "schedule.period": ("period T (steps)", "T"),
    "optimizer.learning_rate": ("learning rate η", "η"),
    "optimizer.momentum": ("momentum β", "β"),
    "model.widths": ("widths of the hidden layers", "widths"),
    "model.seed": ("seed of the parameters", "seed"),
    "data.noise": ("noise of the data", "noise"),
    "data.points_per_class": ("points per class", "points per class"),
    "batch_size": ("batch size (examples)", "batch size"),
    "batch_sampling": ("sampling of mini-batches", "sampling"),
    "steps": ("steps of training", "steps"),
}
"""Keys of a configuration in words, and as symbols in legends."""

Scale = Literal["linear", "log", "category"]


def axis_scale(values: np.ndarray) -> Scale:
    """How the values of an axis are spaced.

    Even differences are linear. Even ratios, or values above 0 of which the largest is at least 30
    times the smallest, are logarithmic. Text, missing values and single ones are categories.
    """
    if values.dtype.kind == "U" or len(values) < 2 or not np.all(np.isfinite(values)):
        return "category"
    differences = np.diff(values)
    if len(values) > 2 and np.allclose(differences, differences[0], rtol=1e-6):
        return "linear"
    if np.all(values > 0):
        ratios = np.diff(np.log(values))
        even = len(values) > 2 and np.max(ratios) < _EVEN * np.min(ratios)
        if even or values[-1] >= _GEOMETRIC_SPAN * values[0]:
            return "log"
    return "linear"


def cell_edges(values: np.ndarray, scale: Scale) -> Float[np.ndarray, " edges"]:
    """Edges of the cells of an axis: arithmetic or geometric means of neighbouring values.

    The outer cells are symmetric about their values. Categories are a unit wide, about 0, 1, ...
    """
    if scale == "category":
        return np.arange(len(values) + 1) - 0.5
    positions = np.log(values) if scale == "log" else values.astype(float)
    middles = (positions[1:] + positions[:-1]) / 2
    edges = np.concatenate(
        [[2 * positions[0] - middles[0]], middles, [2 * positions[-1] - middles[-1]]]
    )
    return np.exp(edges) if scale == "log" else edges


@dataclass(frozen=True)
class DiagramPanel:
    """A map of the cells, with a strip for the static runs."""

    title: str
    label: str
    values: Float[np.ndarray, "ny nx"]
    strip: Float[np.ndarray, " nx"]
    norm: Normalize
    colours: str
    form: Callable[[float], str]


def draw_phase_diagram(diagram: PhaseDiagram) -> Figure:
    """Mean, difference to the static loss and standard error in the plane of the two axes.

    The static runs are the strip underneath. Cells without a run that has the number are blank.
    Those in which runs are missing, failed or diverged are hatched: their means are of the others.
    A panel of which nothing is known is left out. With one row, means with their standard errors
    are drawn against the axis, and those of the static runs as a band.
    """
    with styled():
        figure = _draw_row(diagram) if diagram.y_key is None else _draw_plane(diagram)
        set_title(figure, diagram_title(diagram))
        return figure


def diagram_panels(diagram: PhaseDiagram) -> list[DiagramPanel]:
    """Mean, difference to the static loss and standard error, as far as they are known."""
    words, static = QUANTITIES[diagram.quantity], diagram.static
    everything = np.append(diagram.mean, static)
    norm = _norm(everything)
    form = _number_format(everything, 3, norm)
    panels = [DiagramPanel("mean", words, diagram.mean, static, norm, "viridis", form)]
    difference = diagram.difference
    if np.any(np.isfinite(difference)):
        largest = float(np.nanmax(np.abs(difference))) or 1.0
        norm, label = Normalize(-largest, largest), f"difference in {words}"
        zero = np.where(np.isfinite(static), 0.0, np.nan)
        form = _number_format(difference, 2, norm, "+")
        panels.append(DiagramPanel("mean − static", label, difference, zero, norm, "RdBu_r", form))
    error, static_error = diagram.standard_error, diagram.static_error
    everything = np.append(error, static_error)
    if np.any(np.isfinite(everything)):
        label = f"standard error of {words}"
        if not isinstance(panels[0].norm, LogNorm):
            norm = Normalize(0, float(np.nanmax(everything)) or 1.0)
        else:
            norm = _norm(everything[everything > 0])
        form = _number_format(everything, 2, norm)
        panels.append(
            DiagramPanel("standard error", label, error, static_error, norm, "viridis", form)
        )
    return panels


def _draw_plane(diagram: PhaseDiagram) -> Figure:
    panels = diagram_panels(diagram)
    ny, nx = diagram.mean.shape
    strip = bool(np.any(diagram.static_count + diagram.static_missing))
    printed = (ny + strip) * nx <= _MOST_PRINTED
    width = float(np.clip(nx * (0.4 if printed else 0.2), 1.7, 4.5))
    height = float(np.clip((ny + strip) * (0.26 if printed else 0.16), 1.4, 4.0))
    beside = this_paper().columns(_LEAST_MAP, len(panels))
    groups = -(-len(panels) // beside)
    if this_paper().inches is not None:
        width = this_paper().width_of(0) / beside - 0.95
    figure = new_figure(0.6 + (width + 0.75) * len(panels), (height + 1.25) * groups)
    heights = [ny, 1][: 1 + strip] * groups
    grid = figure.add_gridspec((1 + strip) * groups, beside, height_ratios=heights)
    font = min(scaled(6.5), 72 * width / nx / 3.2) if printed else None
    static, first = np.array(["static (A = 1)"]), []
    for number, panel in enumerate(panels):
        row, column = (1 + strip) * (number // beside), number % beside
        axes = [figure.add_subplot(grid[row, column])]
        first.append(axes[0])
        mesh = _draw_cells(axes[0], (diagram.x, diagram.y), panel.values, panel, font)
        _hatch(axes[0], mesh, diagram.missing)
        if strip:
            axes.append(figure.add_subplot(grid[row + 1, column]))
            below = _draw_cells(axes[1], (diagram.x, static), panel.strip[None], panel, font)
            _hatch(axes[1], below, diagram.static_missing[None])
            axes[0].tick_params(labelbottom=False)
        for ax, values in zip(axes, (diagram.y, static), strict=False):
            _label_values(ax.xaxis, diagram.x, int(width / _label_width(diagram.x)))
            _label_values(ax.yaxis, values, int(height / 0.16))
            ax.tick_params(labelleft=not column)
        axes[0].set_title(panel.title)
        axes[0].set_ylabel("" if column else axis_label(diagram.y_key))
        axes[-1].set_xlabel(axis_label(diagram.x_key))
        label = textwrap.fill(panel.label, max(14, int(height / 0.065)))
        figure.colorbar(mesh, ax=axes, label=label, pad=0.02, aspect=18)
    letter_panels(first)
    if np.any(diagram.missing) or np.any(diagram.static_missing):
        _explain_hatches(figure)
    return figure


def _explain_hatches(figure: Figure) -> None:
    hatch = Patch(fc="none", ec=_HATCH, hatch="////", lw=0.5, label=_INCOMPLETE)
    figure.legend(handles=[hatch], loc="outside lower center", frameon=False)


def _draw_cells(
    ax: Axes,
    axes: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    panel: DiagramPanel,
    font: float | None,
) -> QuadMesh:
    """The cells, with their values printed where there is a size of font."""
    (x_edges, x_middles), (y_edges, y_middles) = map(_cells, axes)
    mesh = ax.pcolormesh(
        x_edges, y_edges, np.ma.masked_invalid(values), norm=panel.norm, cmap=panel.colours
    )
    for set_scale, along in ((ax.set_xscale, axes[0]), (ax.set_yscale, axes[1])):
        set_scale("log" if axis_scale(along) == "log" else "linear")
    ax.spines[:].set_visible(True)
    ax.tick_params(direction="out", length=2)
    colours, ink = _ink(mesh)
    for row, column in np.argwhere(np.isfinite(values)).tolist() if font else ():
        x, y, number = x_middles[column], y_middles[row], panel.form(values[row, column])
        colour = ink[row, column]
        text = ax.text(x, y, number, ha="center", va="center", fontsize=font, color=colour)
        # An outline, so that it can be read on hatches, too.
        text.set_path_effects([withStroke(linewidth=2.5, foreground=colours[row, column])])
    return mesh


def _cells(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the cells of an axis, and their middles on its scale."""
    scale = axis_scale(values)
    edges = cell_edges(values, scale)
    if scale == "log":
        return edges, np.sqrt(edges[1:] * edges[:-1])
    return edges, (edges[1:] + edges[:-1]) / 2


def _hatch(ax: Axes, mesh: QuadMesh, missing: Int[np.ndarray, "y x"]) -> None:
    """Marks the cells in which runs are missing."""
    corners, ink = np.asarray(mesh.get_coordinates()), _ink(mesh)[1]
    for row, column in np.argwhere(missing > 0).tolist():
        (x, y), (right, top) = corners[row, column].tolist(), corners[row + 1, column + 1].tolist()
        patch = Rectangle((x, y), right - x, top - y, fill=False, lw=0, ec=ink[row, column])
        patch.set_hatch("////")
        patch.set_hatch_linewidth(0.5)
        ax.add_patch(patch)


def _ink(mesh: QuadMesh) -> tuple[Float[np.ndarray, "y x 4"], np.ndarray]:
    """The colours of the cells, and what is seen on them: grey where they are blank."""
    values = np.ma.asarray(mesh.get_array())
    colours = np.asarray(mesh.get_cmap()(mesh.norm(values)))
    ink = np.where(colours[..., :3] @ _LUMINANCE > _BRIGHT, "#000000", "#FFFFFF")
    return colours, np.where(np.ma.getmaskarray(values), _HATCH, ink)


def _label_values(axis: Axis, values: np.ndarray, room: int) -> None:
    """Ticks at the values, labelled as many of them as there is room for."""
    positions = np.arange(len(values)) if axis_scale(values) == "category" else values
    texts = [drawable(describe(value), _NAME) for value in values]
    axis.set_major_locator(FixedLocator(positions.tolist()))
    axis.set_minor_locator(NullLocator())
    if len(values) > room and values.dtype.kind == "U":  # every name has to be told
        axis.set_ticklabels(texts, rotation=30, ha="right", rotation_mode="anchor")
        return
    every = -(-len(values) // max(room, 1))
    axis.set_ticklabels([text if k % every == 0 else "" for k, text in enumerate(texts)])


def _label_width(values: np.ndarray) -> float:
    """Inches that the longest label of an axis takes, with a space."""
    return scaled(0.07) * max(len(drawable(describe(value), _NAME)) for value in values) + 0.08


def _norm(values: np.ndarray) -> Normalize:
    """The scale of the colours, logarithmic when positive values span much."""
    finite = values[np.isfinite(values)]
    low, high = (float(np.min(finite)), float(np.max(finite))) if len(finite) else (0.0, 1.0)
    if 0 < _COLOUR_SPAN * low <= high:
        return LogNorm(low, high)
    margin = (0.1 * abs(low) or 1.0) if low == high else 0.0
    return Normalize(low - margin, high + margin)


def _number_format(
    values: np.ndarray, digits: int, norm: Normalize, sign: str = "-"
) -> Callable[[float], str]:
    """Fixed-point numbers: the largest has so many digits, or all where colours are logarithmic."""
    if isinstance(norm, LogNorm):
        return lambda value: np.format_float_positional(value, digits, fractional=False, trim="-")
    largest = np.max(np.abs(values), initial=0.0, where=np.isfinite(values))
    decimals = digits - 1 - int(np.floor(np.log10(largest or 1.0)))
    if decimals > _MOST_DECIMALS:
        return lambda value: f"{value:{sign}.{digits - 1}g}"
    return lambda value: f"{value:{sign}.{max(decimals, 0)}f}" if value else "0"


def _draw_row(diagram: PhaseDiagram) -> Figure:
    """Means with their standard errors against the only axis, and the static runs as a band."""
    figure = new_figure(4.2, 3.2)
    ax = figure.subplots()
    scale, complete = axis_scale(diagram.x), diagram.missing[0] == 0
    positions = np.arange(len(diagram.x)) if scale == "category" else diagram.x
    for shown, face, label in ((complete, COLOURS[0], None), (~complete, "white", _INCOMPLETE)):
        if np.any(shown & (diagram.count[0] > 0)):
            ax.errorbar(
                positions[shown],
                diagram.mean[0, shown],
                diagram.standard_error[0, shown],
                fmt="o",
                color=COLOURS[0],
                mfc=face,
                ms=4,
                lw=1,
                capsize=2,
                label=label or "mean ± standard error",
            )
    _mark_empty_cells(ax, positions, diagram)
    _draw_static_band(ax, positions, diagram)
    ax.set_xscale("log" if scale == "log" else "linear")
    if isinstance(_norm(np.append(diagram.mean, diagram.static)), LogNorm):
        ax.set_yscale("log")
    _label_values(ax.xaxis, diagram.x, int((figure.get_figwidth() - 0.8) / _label_width(diagram.x)))
    ax.set_xlabel(axis_label(diagram.x_key))
    ax.set_ylabel(textwrap.fill(QUANTITIES[diagram.quantity], 40))
    if ax.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", frameon=False, fontsize=scaled(7))
    return figure


def _mark_empty_cells(ax: Axes, positions: np.ndarray, diagram: PhaseDiagram) -> None:
    """Crosses on the axis where there are runs, but none with the number."""
    nothing = (diagram.count[0] == 0) & (diagram.missing[0] > 0)
    if np.any(nothing):
        ax.plot(
            positions[nothing],
            np.zeros(np.sum(nothing)),  # on the axis: not to be taken for a value
            "x",
            color=COLOURS[0],
            ms=5,
            clip_on=False,
            transform=ax.get_xaxis_transform(),
            label="no complete run",
        )


def _draw_static_band(ax: Axes, positions: np.ndarray, diagram: PhaseDiagram) -> None:
    static, error = diagram.static, np.nan_to_num(diagram.static_error)
    known = np.isfinite(static)
    if not np.any(known):
        return
    if np.ptp(static[known]) == 0:  # the same for all, as where only the schedule varies
        static, error = static[known][0], error[known][0]
        ax.axhline(static, color=COLOURS[5], lw=1, ls="--", label="static (A = 1)")
        ax.axhspan(static - error, static + error, color=COLOURS[5], alpha=0.2, lw=0)
        return
    ax.plot(positions, static, "--", marker=".", color=COLOURS[5], lw=1, label="static (A = 1)")
    ax.fill_between(positions, static - error, static + error, color=COLOURS[5], alpha=0.2, lw=0)


def axis_label(key: str | None) -> str:
    """An axis in words."""
    return AXES[key][0] if key in AXES else str(key)


def setting(key: str, value: object) -> str:
    """A key and its value as in a legend.

    >>> setting("schedule.amplitude", 70.0), setting("optimizer.warmup_steps", 10)
    ('A = 70', 'warmup steps = 10')
    """
    symbol = AXES[key][1] if key in AXES else key.split(".")[-1].replace("_", " ")
    return f"{symbol} = {drawable(describe(value), _NAME)}"


def diagram_title(diagram: PhaseDiagram) -> str:
    """The quantity, how many runs are in the means, and what is fixed."""
    counts = diagram.count[diagram.count > 0]
    if len(counts) == 0:
        runs = "no run has it yet"
    elif counts.min() == counts.max():
        runs = f"{counts[0]} run{'s' if counts[0] > 1 else ''} in each cell"
    else:
        runs = f"{counts.min()} to {counts.max()} runs in a cell"
    fixed = [setting(key, value) for key, value in diagram.fixed.items()]
    return "; ".join([QUANTITIES[diagram.quantity], runs, *fixed])
