"""Bifurcation diagrams: branches by their stability, special points, and orbits behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from dlf_dynamics.analysis.bifurcation.continuation import Branch
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation
from dlf_dynamics.analysis.bifurcation.orbits import OrbitDiagram
from dlf_dynamics.analysis.headings import legend_entries
from dlf_dynamics.analysis.style import COLOURS, draw_points, scaled, set_span

Observable = Callable[[Float[np.ndarray, " n"]], float]

UP, DOWN = "#999999", COLOURS[4]
"""Colours of orbits swept up and down."""

MARKERS = {"PD": "s", "LP": "o", "NS": "D", "BP": "^", "BC": "v"}
"""Markers of period doublings, limit points, Neimark-Sacker, branch points, border collisions."""

_PERIODS = {1: COLOURS[7], 2: COLOURS[0], 4: COLOURS[1], 8: COLOURS[2], 16: COLOURS[3]}
"""Colours of cycles by period; other periods get the last one."""

_LABEL = 5.5
"""Size of labels, in points."""

_RIGHT = 0.75
"""Part of the panel's width beyond which names are written to the left of their marks."""

_CLOSE = 0.15, 0.1
"""Parts of the panel's width and height within which the names of two marks would overlap."""


_SQUASHED = 4.0
"""Largest height of a panel, relative to the range of what is stable or marked."""

_ROOM, _MOST_ROOM, _CLEAR = 0.05, 0.6, 0.01
"""Parts of a panel's height: the gap below a legend at the top, the most it may take with that gap,
and the margin around a legend."""


class Line(NamedTuple):
    """A part of a branch on which stability does not change.

    Attributes:
        parameters: parameters of its points.
        values: the observable at each point of the cycles.
        stable: whether all multipliers are inside the unit circle.
    """

    parameters: Float[np.ndarray, " k"]
    values: Float[np.ndarray, "k period"]
    stable: bool


def plot_branches(
    ax: Axes,
    branches: Branch | Sequence[Branch],
    observable: Observable | int = 0,
    *,
    orbits: OrbitDiagram | None = None,
    label: bool = True,
) -> None:
    """Draws a bifurcation diagram: branches, their bifurcations, and orbits behind them.

    Stable cycles are solid lines, unstable ones dashed, with a line for each point of a cycle,
    coloured by the period. Bifurcations are marked by their short names and the parameter: period
    doublings (PD), limit points (LP), Neimark-Sacker (NS), branch points (BP) and border collisions
    (BC); open marks are not converged. The upward sweep of orbits is grey. The sweep back lies
    behind it in blue with larger points, so that it shows where the two differ: there attractors
    coexist, or transients had not decayed.

    Args:
        ax: axes to draw in.
        branches: one or several branches of one map, such as those of `period_doublings`.
        observable: what is shown of a state: a function of it, or the number of a component.
        orbits: a diagram of the same map, recorded with the same observable.
        label: whether to write names and parameters beside the marks, and a legend.

    A branch that extends far beyond all others, bifurcations and orbits, as one to infinity does,
    leaves the panel, and a note says how far it extends.

    Raises:
        ValueError: for orbits that were recorded with an observable that is not a number.
    """
    every = [branches] if isinstance(branches, Branch) else list(branches)
    observed = _component(observable) if isinstance(observable, int) else observable
    if orbits is not None:
        _draw_orbits(ax, orbits)
    for branch in every:
        period = branch.points.shape[1]
        colour = _PERIODS.get(period, _PERIODS[16])
        for line in lines_of(branch, observed):
            words = f"period {period}, {'stable' if line.stable else 'unstable'}"
            style = "-" if line.stable else "--"
            for column in line.values.T:
                ax.plot(line.parameters, column, style, color=colour, lw=1, label=words)
    bifurcations = _distinct(one for branch in every for one in branch.bifurcations)
    heights = [observed(bifurcation.state) for bifurcation in bifurcations]
    for bifurcation, height in zip(bifurcations, heights, strict=True):
        _mark(ax, bifurcation, height)
    parameters = np.concatenate([np.zeros(0), *(branch.parameters for branch in every)])
    if orbits is not None:
        parameters = np.append(parameters, orbits.parameters)
    if len(parameters):
        set_span(ax, float(np.min(parameters)), float(np.max(parameters)))
    _limit_height(ax, every, observed, heights, orbits)
    if label:
        _add_legend(ax)
        _name(ax, bifurcations, heights)


def _draw_orbits(ax: Axes, orbits: OrbitDiagram) -> None:
    """Both sweeps of an orbit diagram, the upward one on top.

    Raises:
        ValueError: where what was recorded at each step is not a number.
    """
    sweeps = [(orbits.up, UP, "orbits, swept up")]
    if orbits.down is not None:
        sweeps.insert(0, (orbits.down, DOWN, "orbits, swept down"))
    for values, colour, name in sweeps:
        if values.ndim != 2:
            raise ValueError(
                f"orbits have shape {values.shape}; expected one number per step: record them with "
                "an observable that is a scalar"
            )
        parameters = np.repeat(orbits.parameters, values.shape[1])
        draw_points(ax, parameters, values.ravel(), colour, name)


def _limit_height(
    ax: Axes,
    branches: Sequence[Branch],
    observable: Observable,
    heights: Sequence[float],
    orbits: OrbitDiagram | None,
) -> None:
    """Limits around what is stable or marked, where a distant branch would squash it."""
    lines = [line for branch in branches for line in lines_of(branch, observable)]
    parts = [line.values.ravel() for line in lines]
    seen = [*map(_core, (line for line in lines if line.stable)), np.array(heights)]
    if orbits is not None:
        swept = [part.ravel() for part in (orbits.up, orbits.down) if part is not None]
        parts, seen = parts + swept, seen + swept
    values, inner = (_finite(np.concatenate([np.zeros(0), *some])) for some in (parts, seen))
    if not len(values):
        return
    inner = inner if len(inner) > 1 else np.quantile(values, [0.25, 0.75])
    low, high, least, largest = np.min(inner), np.max(inner), np.min(values), np.max(values)
    span = float(high - low)
    if span == 0 or largest - least <= _SQUASHED * span:
        return
    ends = max(least, low - span / 2), min(largest, high + span / 2)
    ax.set_ylim(ends[0] - 0.05 * span, ends[1] + 0.05 * span)
    notes = [f"up to {largest:.3g}"] * bool(largest > ends[1])
    notes += [f"down to {least:.3g}"] * bool(least < ends[0])
    ax.text(
        0.02,
        0.02,
        f"branches go on {' and '.join(notes)}",
        transform=ax.transAxes,
        fontsize=scaled(_LABEL),
    )


def _core(line: Line) -> Float[np.ndarray, " ends"]:
    """Smallest and largest value of a line, except those on less than a tenth of its parameters."""
    widths = np.abs(np.gradient(line.parameters)) if len(line.parameters) > 1 else np.ones(1)
    values = line.values.ravel()
    weights = np.repeat(widths, line.values.shape[1])
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / max(float(np.sum(weights)), np.finfo(float).tiny)
    ends = values[order][np.minimum(np.searchsorted(share, [0.05, 0.95]), len(values) - 1)]
    whole = np.array([np.min(values), np.max(values)])
    return ends if np.ptp(whole) > _SQUASHED * np.ptp(ends) > 0 else whole


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _add_legend(ax: Axes) -> None:
    """Adds a legend to the panel, with room above the lines where it would cover some of them."""
    handles, names = legend_entries(ax)
    legend = ax.legend(handles, names, fontsize=scaled(_LABEL), frameon=False)
    box = ax.transAxes.inverted().transform_bbox(legend.get_window_extent())
    if not _covers(ax, box):
        return
    legend.set_loc("upper right")
    low, high = ax.get_ylim()
    share = min(box.height + _ROOM, _MOST_ROOM)
    ax.set_ylim(low, low + (high - low) / (1 - share))


def _covers(ax: Axes, box: Bbox) -> bool:
    """Whether a part of the panel has a line or a point in it."""
    into = ax.transData + ax.transAxes.inverted()
    for line in ax.get_lines():
        points = into.transform(line.get_xydata())
        if line.get_linestyle() not in ("None", "none", "", " ") and len(points) > 1:
            part = np.linspace(0, 1, 20)[:, None, None]
            points = ((1 - part) * points[:-1] + part * points[1:]).reshape(-1, 2)
        if np.any(
            np.all(
                (points >= np.array(box.min) - _CLEAR) & (points <= np.array(box.max) + _CLEAR),
                axis=1,
            )
        ):
            return True
    return False


def lines_of(branch: Branch, observable: Observable) -> list[Line]:
    """A branch in parts of equal stability, which meet at its bifurcations."""
    if not len(branch.parameters):
        return []
    parameters, stable = branch.parameters, branch.stable
    values = np.array([[observable(point) for point in cycle] for cycle in branch.points])
    lines, first = list[Line](), 0
    changes = np.flatnonzero(np.diff(stable.astype(int))) + 1
    joints = {int(change): _joint(branch, values, int(change), observable) for change in changes}
    for last in (*changes.tolist(), len(parameters)):
        parts = [(parameters[first:last], values[first:last])]
        if first in joints:
            parts.insert(0, joints[first])
        if last in joints:
            parts.append(joints[last])
        positions, heights = (np.concatenate(column) for column in zip(*parts, strict=True))
        lines.append(Line(positions, heights, bool(stable[first])))
        first = last
    return lines


def _joint(
    branch: Branch, values: Float[np.ndarray, "k period"], after: int, observable: Observable
) -> tuple[np.ndarray, np.ndarray]:
    """Where stability changes between a point and the one before: at a bifurcation, or midway."""
    ends = branch.points[after - 1, 0], branch.points[after, 0]
    span = branch.parameters[after - 1 : after + 1]
    reach = np.linalg.norm(ends[1] - ends[0]) + abs(span[1] - span[0])

    def detour(bifurcation: Bifurcation) -> float:
        """How much longer the way from one end to the other is via the bifurcation."""
        by_way = sum(
            np.linalg.norm(bifurcation.state - end) + abs(bifurcation.parameter - value)
            for end, value in zip(ends, span, strict=True)
        )
        return float(by_way - reach)

    nearest = min(branch.bifurcations, key=detour, default=None)
    part = 0.5
    if nearest is not None and detour(nearest) < 0.5 * reach:
        there = np.linalg.norm(nearest.state - ends[0]) + abs(nearest.parameter - span[0])
        part = float(np.clip(there / (reach + detour(nearest)), 0, 1))
        parameter = nearest.parameter
    else:
        parameter = float(np.mean(span))
    row = (1 - part) * values[after - 1] + part * values[after]
    if nearest is not None and parameter == nearest.parameter:
        row[0] = observable(nearest.state)
    return np.array([parameter]), row[None]


def _distinct(bifurcations: Iterable[Bifurcation]) -> list[Bifurcation]:
    """Each bifurcation once: a flip is drawn for the branch itself, not for the doubled one."""
    distinct = list[Bifurcation]()
    for one in sorted(bifurcations, key=lambda one: one.period):
        size = 1 + float(np.linalg.norm(one.state))
        same = [
            other
            for other in distinct
            if abs(other.parameter - one.parameter) <= 1e-6 * (1 + abs(one.parameter))
            and np.linalg.norm(other.state - one.state) <= 1e-3 * size
            and other.label != "LP"
        ]
        if not same:
            distinct.append(one)
    return distinct


def _mark(ax: Axes, bifurcation: Bifurcation, height: float) -> None:
    """Draws a mark, open where the bifurcation is not converged."""
    inside = COLOURS[5] if bifurcation.converged else "none"
    marker = MARKERS[bifurcation.label]
    ax.plot(bifurcation.parameter, height, marker, ms=3.5, mec=COLOURS[5], mfc=inside, zorder=5)


def _name(ax: Axes, bifurcations: list[Bifurcation], heights: list[float]) -> None:
    """Writes short names and parameters beside marks, one above the other where these are close."""
    decimals = _decimals(*ax.get_xlim())
    marks = list[tuple[float, float]]()
    pairs = sorted(zip(bifurcations, heights, strict=True), key=lambda pair: pair[0].parameter)
    for one, height in pairs:
        doubt = "" if one.converged else "?"
        text = f"{one.label}{doubt} {round(one.parameter, decimals) + 0.0:g}"
        marks.append(name_mark(ax, text, (one.parameter, height), marks))


def name_mark(
    ax: Axes, text: str, mark: tuple[float, float], others: Sequence[tuple[float, float]]
) -> tuple[float, float]:
    """Writes a name beside a mark, higher where other names are close, or below at the top.

    Args:
        ax: axes to write in, with their final limits.
        text: the name.
        mark: position of the mark, in the units of the axes.
        others: positions of the marks that have a name already, as returned by this function.

    Returns:
        The position as parts of the panel's width and height.
    """
    left, low = ax.transAxes.inverted().transform(ax.transData.transform(mark))
    close = sum(abs(left - x) < _CLOSE[0] and abs(low - y) < _CLOSE[1] for x, y in others)
    before, up = left > _RIGHT, 3 + (scaled(_LABEL) + 1) * close
    height = ax.bbox.height * 72 / ax.figure.dpi
    below = low * height + up + scaled(_LABEL) > height  # it would extend beyond the panel
    ax.annotate(
        text,
        mark,
        xytext=(-3 if before else 3, -up if below else up),
        textcoords="offset points",
        ha="right" if before else "left",
        va="top" if below else "baseline",
        fontsize=scaled(_LABEL),
    )
    return float(left), float(low)


def _decimals(low: float, high: float) -> int:
    """Number of decimals with which names resolve a ten-thousandth of the range."""
    return 4 - int(np.floor(np.log10(high - low)))


def _component(number: int) -> Observable:
    return lambda state: float(state[number])
