"""Figures of a study: its phase diagrams, and its curves averaged over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.headings import legend_below, letter_panels, set_title
from dlf_dynamics.analysis.studies.diagram_plots import draw_phase_diagram, setting
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.phase_diagram import phase_diagram, usable_runs
from dlf_dynamics.analysis.studies.selection import (
    SEEDS,
    Selection,
    choose_axes,
    complete_runs,
    describe,
    further_keys,
    of_schedule,
    require_single,
    select,
)
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.analysis.style import (
    COLOURS,
    draw_curve,
    label_decades,
    label_steps,
    new_figure,
    scaled,
    styled,
)
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.paper import this_paper

__all__ = ["draw_curves", "draw_phase_diagram", "draw_study"]

_MOST_COMBINATIONS = 12
"""Combinations of the values of further keys up to which `draw_study` draws each."""

_MOST_LINES = 10
"""Cells of a diagram up to which `draw_study` draws the curves of each."""

_MOST_COLOURS = 6
"""Lines up to which they have distinct colours; beyond, they have shades."""

_ALWAYS = ("accuracy", "instabilities")
_IF_MEASURED = ("validation_accuracy", "sharpness", "ntk")

CURVE_NAMES = {
    "loss": "loss F",
    "static_loss": "static loss",
    "accuracy": "training accuracy",
    "validation_loss": "validation loss",
    "validation_accuracy": "validation accuracy",
    "sharpness": "sharpness of the weighted loss",
}
LOGARITHMIC = ("loss", "static_loss", "validation_loss", "sharpness")


def draw_study(results: StudyResults, quantities: Sequence[str] | None = None) -> dict[str, Figure]:
    """Draws all figures of a study.

    Args:
        results: results of the study.
        quantities: names of `NUMBERS`; by default validation accuracy, where there is one,
            accuracy, instabilities, and sharpness and NTK where they were measured.

    Returns:
        The phase diagram of each quantity by its name, on the axes that `phase_diagram` chooses,
        and `curves`, where there are some: of all cells where they are few, else of the cells of
        the middle column. Where further keys vary, there is each figure for each combination of
        their values, named in the key, as in `accuracy, optimizer.learning_rate 0.1`.

    Raises:
        ConfigError: when a quantity is unknown, nothing but seeds varies and there are no curves,
            or there are more than `_MOST_COMBINATIONS` combinations.
    """
    everything = select(results)
    curves = results.curves is not None and bool(np.any(np.isfinite(results.curves)))
    if curves and all(key in SEEDS for key in everything.keys):
        return {"curves": draw_curves(results, kept_curves(results), by=())}
    axes = choose_axes(everything)
    figures = {}
    for named, fixed in combinations(everything, axes).items():
        for quantity in measured(results) if quantities is None else quantities:
            diagram = phase_diagram(results, quantity, x=axes[0], y=axes[1], fixed=fixed)
            figures[quantity + named] = draw_phase_diagram(diagram)
        if curves:
            by, at = curves_by(select(results, fixed), axes)
            figures["curves" + named] = draw_curves(
                results, kept_curves(results), by=by, fixed=fixed | at
            )
    return figures


def measured(results: StudyResults) -> list[str]:
    """Quantities of general interest, as far as there are values."""
    first, *others = _IF_MEASURED
    known = {name: bool(np.any(usable_runs(results, name))) for name in _IF_MEASURED}
    names = [first, *_ALWAYS, *others]
    return [name for name in names if known.get(name, True)]


def kept_curves(results: StudyResults) -> list[str]:
    """Names of the curves that were measured."""
    assert results.curves is not None
    kept = np.any(np.isfinite(results.curves), axis=(0, 1))
    return [name for name, known in zip(CURVES, kept, strict=True) if known]


def combinations(selection: Selection, axes: tuple[str, str | None]) -> dict[str, dict[str, Any]]:
    """Values of the keys that are neither axes nor seeds, as they occur together, by name.

    Args:
        selection: selection of runs.
        axes: keys of the columns and of the rows.

    Raises:
        ConfigError: when there are more than `_MOST_COMBINATIONS`.
    """
    keys = further_keys(selection, axes)
    rows = _rows(selection, keys, selection.moving)
    if len(rows) > _MOST_COMBINATIONS:
        require_single(selection, axes)
    combinations = {}
    for row in rows:
        fixed = {k: selection.values[k][index].item() for k, index in zip(keys, row, strict=True)}
        combinations["".join(f", {key} {describe(value)}" for key, value in fixed.items())] = fixed
    return combinations


def _rows(selection: Selection, keys: Sequence[str], runs: np.ndarray) -> list[list[int]]:
    """The distinct codes of the keys among the runs, sorted."""
    table = [selection.codes[key][runs].tolist() for key in keys]
    return [list(row) for row in sorted(set(zip(*table, strict=True)))] if keys else [[]]


def curves_by(
    selection: Selection, axes: tuple[str, str | None]
) -> tuple[list[str], dict[str, Any]]:
    """The keys that distinguish the curves, and the column that they belong to, if not to all."""
    keys = [axis for axis in reversed(axes) if axis is not None]
    if len(keys) == 1 or len(_rows(selection, keys, selection.moving)) <= _MOST_LINES:
        return keys, {}
    y, x = keys
    indices = selection.indices(x)
    return [y], {x: selection.values[x][indices[len(indices) // 2]].item()}


@dataclass(frozen=True)
class CurveGroup:
    """Runs that are averaged, one for each combination of seeds, and how many there are in all."""

    label: str
    runs: np.ndarray
    planned: int
    static: bool


def draw_curves(
    results: StudyResults,
    names: Sequence[str],
    *,
    by: Sequence[str],
    fixed: Mapping[str, Any] | None = None,
) -> Figure:
    """Means over the seeds along the run with bands of one standard error, a panel for each name.

    Means and bands are those of the values themselves, also on logarithmic axes. They are of the
    complete runs, and where a value of one of them is not finite, of the others.

    Args:
        results: results of the study.
        names: names from `CURVES`.
        by: keys whose values distinguish the curves. Static runs are distinguished by those of
            them that are not of the schedule.
        fixed: values of the keys that are neither in `by` nor seeds.

    Raises:
        ConfigError: when there are no curves, a name or a key is unknown, or a further key varies.
    """
    if results.curves is None:
        raise ConfigError("the study has no curves; expected measures.curve_points above 0")
    for name in names:
        if name not in CURVES:
            raise ConfigError(f"curve {name!r} is unknown; choices: {', '.join(CURVES)}")
    selection = select(results, fixed)
    for key in by:
        if key not in selection.keys:
            raise ConfigError(f"{key} does not vary; choices: {', '.join(selection.keys)}")
    require_single(selection, by)
    groups = curve_groups(results, selection, by)
    with styled():
        columns = this_paper().columns(2.2, min(3, len(names)))
        rows = -(-len(names) // columns)
        figure = new_figure(1.4 + 2.5 * columns, 0.7 + 2.1 * rows)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, name in zip(axes, names, strict=False):
            _draw_means(ax, results, groups, name)
        for ax in axes[len(names) :]:
            ax.remove()
        letter_panels(axes[: len(names)])
        if this_paper().inches is not None:
            legend_below(figure, axes[0])
        else:
            handles, labels = axes[0].get_legend_handles_labels()
            where = "outside right upper"
            figure.legend(handles, labels, loc=where, frameon=False, fontsize=scaled(7))
        set_title(figure, _title(selection, groups))
        return figure


def curve_groups(
    results: StudyResults, selection: Selection, by: Sequence[str]
) -> list[CurveGroup]:
    """The static runs, and the others in the order of their values."""
    usable = complete_runs(results)
    seeds = selection.names(selection.seeds)
    static: dict[bytes, CurveGroup] = {}
    moving = []
    for row in _rows(selection, by, selection.moving):
        runs = selection.moving & selection.agrees(dict(zip(by, row, strict=True)))
        label = ", ".join(_settings(selection, by, row)) or "mean"
        moving.append(_group(label, runs, usable, seeds, False))
        codes = selection.codes_of(int(np.argmax(runs)), by)
        alike = selection.static_runs(
            {k: c for k, c in codes.items() if not of_schedule(k)}, usable
        )
        others = [(k, c) for k, c in zip(by, row, strict=True) if not of_schedule(k)]
        told = _settings(selection, [k for k, _ in others], [c for _, c in others])
        label = ", ".join(["static (A = 1)", *told])
        if np.any(alike):
            static.setdefault(alike.tobytes(), _group(label, alike, usable, seeds, True))
    return [*static.values(), *moving]


def _settings(selection: Selection, keys: Sequence[str], row: Sequence[int]) -> list[str]:
    return [setting(k, selection.values[k][index]) for k, index in zip(keys, row, strict=True)]


def _group(
    label: str, runs: np.ndarray, usable: np.ndarray, seeds: np.ndarray, static: bool
) -> CurveGroup:
    """Runs with the same seeds are copies, as static ones with different periods are."""
    planned = len(np.unique(seeds[runs]))
    chosen = np.flatnonzero(runs & usable)
    first = np.unique(seeds[chosen], return_index=True)[1]
    return CurveGroup(label, chosen[first], planned, static)


def _draw_means(ax: Axes, results: StudyResults, groups: Sequence[CurveGroup], name: str) -> None:
    assert results.curves is not None
    values = results.curves[:, :, CURVES.index(name)]
    drawn = np.unique(results.columns["steps"][np.concatenate([g.runs for g in groups])])
    fractions = np.linspace(0, 1, values.shape[1])
    x = fractions * drawn[0] if len(drawn) == 1 else fractions
    least = np.inf
    for group, colour in zip(groups, group_colours(groups), strict=True):
        mean, error = moments(values[group.runs])
        known = np.isfinite(mean)
        missing = f" ({len(group.runs)} of {group.planned} runs)"
        label = group.label + (missing if len(group.runs) < group.planned else "")
        style = "--" if group.static else "-"
        draw_curve(ax, x[known], mean[known], ls=style, color=colour, lw=1, label=label)
        ax.fill_between(x[known], *_band(mean, error, known), color=colour, alpha=0.2, lw=0)
        least = min(least, np.min(mean, initial=np.inf, where=known & (mean > 0)))
    if name in LOGARITHMIC and np.isfinite(least):
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(ax.get_ylim()[0], least / 2))
        label_decades(ax)
    ax.set_ylabel(CURVE_NAMES[name])
    if len(drawn) == 1:
        label_steps(ax)
    else:
        ax.set_xlabel("fraction of the run")
    ax.margins(x=0.015)
    if not np.any(np.isfinite(values)):
        ax.text(0.5, 0.5, "not measured", ha="center", va="center", transform=ax.transAxes)


def moments(
    values: Float[np.ndarray, "runs points"],
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Mean and standard error of the finite values at each point; NaN where there are too few."""
    finite = np.isfinite(values)
    count = np.sum(finite, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.sum(values, axis=0, where=finite) / count
        squares = np.sum((values - mean) ** 2, axis=0, where=finite)
        error = np.sqrt(squares / (count - 1) / count)
    return mean, np.where(count > 1, error, np.nan)


def _band(mean: np.ndarray, error: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    error = np.nan_to_num(error[known])
    return mean[known] - error, mean[known] + error


def group_colours(groups: Sequence[CurveGroup]) -> list[Any]:
    """Black for static runs; else distinct colours for a few groups, shades in order for many."""
    moving = sum(not group.static for group in groups)
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(moving, 1)))
    palette = iter(COLOURS if moving <= _MOST_COLOURS else shades)
    return ["black" if group.static else next(palette) for group in groups]


def _title(selection: Selection, groups: Sequence[CurveGroup]) -> str:
    counts = sorted({len(group.runs) for group in groups if len(group.runs)})
    number = " to ".join(str(n) for n in dict.fromkeys(counts[:1] + counts[-1:])) or "no"
    runs = "run" if counts == [1] else "runs"
    fixed = [setting(key, value) for key, value in selection.fixed.items()]
    return "; ".join([f"mean of {number} {runs}, band: ± 1 standard error", *fixed])
