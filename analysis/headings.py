"""What stands around the panels of a figure: its heading, letters, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from dlf_dynamics.analysis.style import scaled
from dlf_dynamics.paper import this_paper

_TITLE, _LABEL, _INDENT, _LEFT = 7.0, 6.0, 16.0, 0.75
"""Sizes of letters, and what a letter takes of a line, in points; inches on the left of panels."""


def letter_panels(axes: Iterable[Axes]) -> None:
    """Letters the panels, in this order, if the page has letters: before their titles, else above.

    It comes after titles are set and before legends are put above.
    """
    if not this_paper().letters:
        return
    for number, ax in enumerate(axes):
        letter = f"({ascii_lowercase[number % 26]})"
        title = ax.get_title()
        if title:
            ax.set_title(f"{letter} {title}", fontsize=ax.title.get_fontsize())
        else:
            ax.annotate(
                letter,
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, 3),
                textcoords="offset points",
                fontweight="bold",
                ha="left",
                va="bottom",
            )


def set_title(figure: Figure, text: str) -> None:
    """The heading of a figure, in lines that fit its width; none where the page has none."""
    if this_paper().no_title:
        return
    size = scaled(_TITLE)
    room = 0.93 * 72 * figure.get_figwidth()  # lines are not all of the same mean width
    figure.suptitle(_folded(text, size, room), fontsize=size)


def set_panel_title(ax: Axes, text: str) -> None:
    """The title of a panel, in lines that fit its width with a letter before them."""
    assert isinstance(ax.figure, Figure)
    size = scaled(_TITLE)
    room = 72 * ax.get_position().width * ax.figure.get_figwidth() - scaled(_INDENT)
    ax.set_title(_folded(text, size, room), fontsize=size)


def _folded(text: str, size: float, room: float) -> str:
    """The text in lines that are no wider than so many points, as far as words can be broken."""
    lines = []
    for line in text.splitlines():
        share = room / (_width(line, size) or room)
        lines.append(line if share >= 1 else textwrap.fill(line, max(1, int(len(line) * share))))
    return "\n".join(lines)


def _width(text: str, size: float) -> float:
    """Width of a line of text, in points."""
    return float(TextPath((0, 0), text, size=size).get_extents().width)


def legend_entries(*axes: Axes) -> tuple[list[Any], list[str]]:
    """Handles and labels of what is drawn, each label once."""
    handles: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            y = np.asarray(handle.get_ydata(), float) if isinstance(handle, Line2D) else np.zeros(1)
            if np.any(np.isfinite(y)):
                handles.setdefault(label, handle)
    return list(handles.values()), list(handles)


def legend_above(ax: Axes) -> None:
    """Lines of labels above the panel, as many in a line as it is wide, after its letter."""
    handles, labels = legend_entries(ax)
    if not handles:
        return
    assert isinstance(ax.figure, Figure)
    whole = ax.figure.get_figwidth()
    # The layout, which comes last, makes panels wider by about this, but for what is left of them.
    width = 72 * min(1.2 * ax.get_position().width * whole, whole - scaled(_LEFT))
    indent = scaled(_INDENT) if this_paper().letters and not ax.get_title() else 0.0
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(indent / width, 0.96),
        ncols=_fitting(labels, width - indent),
        **_legend_style(),
    )


def legend_below(figure: Figure, *axes: Axes) -> None:
    """The labels of the panels below all of them, as many in a line as the figure is wide."""
    handles, labels = legend_entries(*axes)
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=_fitting(labels, 72 * figure.get_figwidth()),
            **_legend_style(),
        )


def _fitting(labels: Sequence[str], room: float) -> int:
    """Columns of a legend of these labels that are no wider than so many points."""
    size = scaled(_LABEL)
    widths = [_width(label, size) + 3 * size for label in labels]
    return next(n for n in range(len(labels), 0, -1) if n == 1 or _table(widths, n) <= room)


def _legend_style() -> dict[str, Any]:
    return {
        "fontsize": scaled(_LABEL),
        "markerscale": 1.5,
        "columnspacing": 0.9,
        "handlelength": 1.4,
        "handletextpad": 0.4,
        "frameon": False,
    }


def _table(widths: Sequence[float], columns: int) -> float:
    """Width of a table whose columns are filled one after another, as evenly as may be."""
    return sum(float(np.max(column)) for column in np.array_split(widths, columns))
