"""What all figures share: colours, points sized by their number, limits, files."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.artist import allow_rasterization
from matplotlib.axes import Axes
from matplotlib.backend_bases import get_registered_canvas_class
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dlf_dynamics.paper import this_paper
from dlf_dynamics.resultfile import write_whole

# Okabe and Ito's palette, distinct for all common kinds of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "savefig.dpi": 200,
    "svg.hashsalt": "dlf-dynamics",
    # Letters stay letters: to be searched, and set in the fonts of a paper.
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}

_JOINED = 15
"""Points per inch of the axis up to which a thin line joins them, to guide the eye."""

OUTLIERS = 1 / 50
"""Share of the values that may be out of sight, so that the others are not squashed."""

_SQUASHED = 3.0
"""Ratio of the whole range to that without outliers from which they are put out of sight."""

_SIZE, _SMALLEST, _LARGEST = 24.0, 0.6, 5.0
_FEWEST, _VECTORS, _NAMED_CLASSES, _DECADE, _FEW_DECADES = 10, 2000, 10, 10.0, 1e3
# Ticks beyond the limits are numbers, too: those of a loss that diverges would overflow.
LARGEST, _LOG_LIMITS = 1e150, (-345.0, 345.0)
_NOTE, _STEP = 5.5, 0.62
"""Size of notes in points; inches of a panel for each step that is named below it."""
_FONT = 8.0
"""Size of labels to which the other sizes are given."""

_UNDATED: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""So that the same figure gives the same bytes."""


@contextmanager
def styled() -> Iterator[None]:
    """Within the block figures are in this style, for the page that they are drawn for."""
    page = this_paper()
    own: dict[Any, Any] = {
        "font.size": page.font_size,
        "axes.titlesize": 9 / _FONT * page.font_size,
        "savefig.dpi": page.dpi,
    }
    with mpl.rc_context(STYLE | own):
        yield


def scaled(points: float) -> float:
    """A size of letters, given for labels of 8 points."""
    return points / _FONT * this_paper().font_size


def new_figure(width: float, height: float) -> Figure:
    """A figure of the width of the page, or of its usual one, in inches."""
    return Figure(figsize=(this_paper().width_of(width), height), layout="constrained")


class Points(Line2D):
    """Points as large as their number in sight lets them be, and joined where there are few.

    Both are chosen when they are drawn, since limits and layout are final only then.

    Attributes:
        among: x values of the points that have one size with these; none means their own.
    """

    among: np.ndarray | None = None

    @allow_rasterization
    def draw(self, renderer: Any) -> None:
        """Sizes the points, then draws them."""
        if self.axes is not None and isinstance(self.axes.figure, Figure):
            width = self.axes.get_window_extent(renderer).width / self.axes.figure.dpi
            first, last = self.axes.get_xlim()
            own = _in_sight(self, (first, last))
            seen = own if self.among is None else (self.among >= first) & (self.among <= last)
            density = max(int(np.sum(seen)), 1) / max(width, 0.1)
            self.set_markersize(float(np.clip(_SIZE / np.sqrt(density), _SMALLEST, _LARGEST)))
            self.set_linestyle("-" if density <= _JOINED else "none")
        super().draw(renderer)


def draw_points(
    ax: Axes,
    x: np.ndarray,
    y: Float[np.ndarray, " points"],
    colour: Any = COLOURS[0],
    label: str | None = None,
    among: np.ndarray | None = None,
) -> None:
    """Draws points whose size follows from their number; NaN interrupts the line that joins few.

    Args:
        ax: axes to draw on.
        x: values on the horizontal axis.
        y: values on the vertical axis.
        colour: colour of the points.
        label: name in the legend; none leaves the points out of it.
        among: x values of all points of which these are some, to have the same size.
    """
    line = Points(x, y, marker=".", ls="none", lw=0.5, color=colour, ms=4, mew=0.4)
    line.among = among
    if label is not None:
        line.set_label(label)
    # Or a vector file would hold every one of 70,000 points.
    line.set_rasterized(len(x) > _VECTORS)
    ax.add_line(line)
    heights = np.asarray(y, float)
    if not np.any(np.abs(heights[np.isfinite(heights)]) > LARGEST):  # else it would overflow
        ax.autoscale_view()


def draw_curve(ax: Axes, x: np.ndarray, y: Float[np.ndarray, " points"], **style: Any) -> None:
    """A line that is seen where a point has no finite neighbour, too, as a short dash."""
    finite = np.concatenate([[False], np.isfinite(np.asarray(y, float)), [False]])
    alone = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    (line,) = ax.plot(x, y, **style)
    if np.any(alone):
        colour, width = line.get_color(), line.get_linewidth()
        ax.plot(x[alone], y[alone], "_", color=colour, ms=10, mew=width)


def _in_sight(line: Line2D, span: tuple[float, float]) -> np.ndarray:
    """Which points of a line are finite and lie in a span of the horizontal axis."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    return np.isfinite(y) & (x >= span[0]) & (x <= span[1])


def class_colours(count: int) -> Sequence[Any]:
    """A colour for each class, none twice: a palette for few, shades in their order for many."""
    if count <= len(COLOURS):
        return COLOURS[:count]
    if count <= _NAMED_CLASSES:
        return mpl.color_sequences["petroff10"][:count]
    return list(mpl.colormaps["viridis"](np.linspace(0, 0.95, count)))


def named_classes(count: int) -> list[int]:
    """Classes that a legend names: all of a few, a few of many."""
    if count <= _NAMED_CLASSES:
        return list(range(count))
    return np.unique(np.linspace(0, count - 1, 6).astype(int)).tolist()


def set_span(ax: Axes, first: float, last: float) -> None:
    """Limits of the horizontal axis with a margin, so that no point lies on a frame."""
    margin = 0.015 * (last - first) or 0.5
    ax.set_xlim(first - margin, last + margin)


def label_steps(ax: Axes, label: str = "step") -> None:
    """Names the horizontal axis, with ticks at whole steps only."""
    ax.set_xlabel(label)
    steps = [1, 2, 2.5, 5, 10]
    locator = MaxNLocator("auto", steps=steps, integer=True, min_n_ticks=1)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(EngFormatter(sep="", places=None))


def few_steps(ax: Axes, most: int, columns: int) -> None:
    """Ticks at a few whole steps, as many as have room in one of these columns.

    Args:
        ax: whose horizontal axis is of steps.
        most: ticks where there is room.
        columns: panels beside each other.
    """
    assert isinstance(ax.figure, Figure)
    room = int(ax.figure.get_figwidth() / columns / scaled(_STEP))
    ax.xaxis.set_major_locator(MaxNLocator(max(min(most, room), 1), integer=True))


def changes(values: np.ndarray) -> Float[np.ndarray, " between"]:
    """Differences of values that follow each other, not finite where one of the two is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.diff(np.asarray(values, float))


def core_range(values: np.ndarray, always: np.ndarray | None = None) -> tuple[float, float]:
    """Least and largest of the finite values, without outliers where these would squash the rest.

    Outliers are at most the share `OUTLIERS` of ten values or more, and only where the range of
    the others is less than 1/`_SQUASHED` of the whole. What is within half of that range of the
    others is none.

    Args:
        values: values to show if possible.
        always: values to show in any case, and so in both ranges.
    """
    values = np.asarray(values, float)  # a range of float32 may overflow
    ordered = np.sort(values[np.isfinite(values)])
    fixed = np.zeros(0) if always is None else always[np.isfinite(always)]
    count = len(ordered)
    if count + len(fixed) == 0:
        return 0.0, 1.0
    most = max(1, int(count * OUTLIERS)) if count >= _FEWEST else 0
    lows, highs = ordered[: most + 1], ordered[count - 1 - most :]
    with np.errstate(over="ignore"):
        best = int(np.argmin(highs - lows)) if most else 0
    inner = ordered[best : count - most + best]
    low, high = _ends(inner, fixed)
    least, largest = _ends(ordered, fixed)
    if largest - least <= _SQUASHED * (high - low):
        return least, largest
    around = (high - low) / 2
    return _ends(ordered[(ordered >= low - around) & (ordered <= high + around)], fixed)


def _ends(*values: np.ndarray) -> tuple[float, float]:
    together = np.concatenate(values)
    return float(np.min(together)), float(np.max(together))


def spans_decades(*values: np.ndarray) -> bool:
    """Whether a logarithmic axis suits: values above 0 that span a decade, outliers apart."""
    known = np.concatenate([np.ravel(np.asarray(v, float)) for v in values])
    known = known[np.isfinite(known)]
    positive = known[known > 0]
    if len(positive) < max((1 - OUTLIERS) * len(known), 1):
        return False
    low, high = np.exp(core_range(np.log(positive)))
    return bool(high >= _DECADE * low)


def scale_height(ax: Axes, *values: np.ndarray) -> None:
    """A logarithmic vertical axis where `spans_decades` says so."""
    if not spans_decades(*values):
        return
    known = [np.asarray(v, float) for v in values]
    if any(np.max(v, initial=0.0, where=np.isfinite(v)) > LARGEST for v in known):
        ax.margins(y=0)  # they would overflow
    ax.set_yscale("log", nonpositive="mask")


def label_decades(ax: Axes) -> None:
    """Plain numbers, also between the powers of ten, on a logarithmic axis of few decades."""
    bottom, top = ax.get_ylim()
    if ax.get_yscale() != "log":
        return
    if top < _FEW_DECADES * bottom:
        subs = (1, 2, 5) if top < _FEW_DECADES / _DECADE * bottom else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def fit_height(
    ax: Axes, span: tuple[float, float], *, without_outliers: bool = False, apart: bool = False
) -> None:
    """Sets the limits of the vertical axis to what lies in the span of steps.

    Args:
        ax: axes with lines on them.
        span: first and last step.
        without_outliers: leave out those `Points` that `core_range` leaves out; to be told by
            `mark_hidden`. Other lines stay in sight.
        apart: whether each of the `Points` has its own outliers: of several runs a short one would
            be one as a whole.
    """
    logarithmic = ax.get_yscale() == "log"
    points, lines = [], [np.zeros(0)]
    for line in ax.get_lines():
        if line.get_transform() == ax.transData:
            y = np.asarray(line.get_ydata(), float)[_in_sight(line, span)]
            y = np.log(y[y > 0]) if logarithmic else y
            (points if isinstance(line, Points) else lines).append(y)
    always = np.concatenate(lines)
    clouds = points if apart else [np.concatenate([np.zeros(0), *points])]
    judged = core_range if without_outliers else _ends
    ranges = [judged(cloud, always) for cloud in clouds if len(cloud) + len(always)]
    if not ranges:
        return
    low, high = _ends(np.array(ranges).ravel())
    margin = 0.06 * (high - low) or (0.1 if logarithmic else 0.1 * abs(low) or 0.5)
    ends = np.clip(
        [low - margin, high + margin], *(_LOG_LIMITS if logarithmic else (-LARGEST, LARGEST))
    )
    ax.set_ylim(*(np.exp(ends) if logarithmic else ends))


def limit_height(ax: Axes) -> None:
    """Limits within `LARGEST`, beyond which ticks overflow; what is hidden is marked."""
    low, high = ax.get_ylim()
    least = 1 / LARGEST if ax.get_yscale() == "log" else -LARGEST
    if low < least or high > LARGEST:
        ax.set_ylim(max(low, least), min(high, LARGEST))
        mark_hidden(ax)


def mark_hidden(ax: Axes) -> None:
    """Carets on the frame where points lie beyond the limits, with their number and the extreme.

    Nothing is hidden in silence.
    """
    low, high = ax.get_ylim()
    lines = [line for line in ax.get_lines() if isinstance(line, Points)]
    for above, marker in ((True, "^"), (False, "v")):
        x_values, values = [np.zeros(0)], [np.zeros(0)]
        for line in lines:
            x, y = (np.asarray(v, float) for v in line.get_data())
            beyond = _in_sight(line, ax.get_xlim()) & ((y > high) if above else (y < low))
            if np.any(beyond):
                x_values.append(x[beyond])
                values.append(y[beyond])
                caret = Line2D(
                    x[beyond],
                    np.full(int(beyond.sum()), float(above)),
                    marker=marker,
                    ls="none",
                    color=line.get_color(),
                    ms=3,
                    mew=0,
                    transform=ax.get_xaxis_transform(),
                    clip_on=False,
                )
                caret.set_rasterized(len(x) > _VECTORS)
                ax.add_artist(caret)
        _tell_hidden(ax, np.concatenate(x_values), np.concatenate(values), above=above)


def _tell_hidden(ax: Axes, x_values: np.ndarray, values: np.ndarray, *, above: bool) -> None:
    if len(values) == 0:
        return
    extreme = int(np.argmax(values) if above else np.argmin(values))
    number = _number(float(values[extreme]))
    beyond = f"{len(values):,} {'above' if above else 'below'}, {'up' if above else 'down'} to "
    left, right = ax.get_xlim()
    on_the_left = x_values[extreme] < (left + right) / 2
    ax.annotate(
        number if len(values) == 1 else beyond + number,
        (float(x_values[extreme]), float(above)),
        xycoords=ax.get_xaxis_transform(),
        xytext=(3 if on_the_left else -3, -1 if above else 1),
        textcoords="offset points",
        ha="left" if on_the_left else "right",
        va="top" if above else "bottom",
        fontsize=scaled(_NOTE),
        bbox={"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.5},
    )


def _number(value: float) -> str:
    """Three digits, or all of a number of thousands."""
    return f"{value:{',.0f' if 1e3 <= abs(value) < 1e6 else '.3g'}}".replace("-", "−")


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Writes `stem.png`, `stem.svg`, ...; returns the paths.

    Raises:
        FileError: when one cannot be written.
    """
    paths = []
    engine = figure.get_layout_engine()
    if engine is not None:  # laid out once, for all formats
        with styled():
            engine.execute(figure)
        figure.set_layout_engine("none")
    for suffix in formats:
        with styled():
            content = _drawn(figure, suffix)
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_whole(paths[-1], content)
    return paths


def _drawn(figure: Figure, suffix: str) -> bytes:
    """The figure's file. `savefig` would draw it twice, to lay it out first."""
    content, dpi = io.BytesIO(), figure.dpi
    canvas = figure.canvas
    figure.dpi = mpl.rcParams["savefig.dpi"]
    try:
        kind = get_registered_canvas_class(suffix)
        getattr(kind(figure), f"print_{suffix}")(content, metadata=_UNDATED.get(suffix))
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
    return content.getvalue()


class Figures(dict[str, Figure]):
    """Figures by name, which a notebook shows one below the other."""

    def _repr_html_(self) -> str:
        parts = []
        for name, figure in self.items():
            content = io.BytesIO()
            with mpl.rc_context(STYLE):
                figure.savefig(content, format="png")
            data = base64.b64encode(content.getvalue()).decode()
            label = html.escape(name, quote=True)
            parts.append(
                f'<img alt="{label}" style="max-width:100%" src="data:image/png;base64,{data}">'
            )
        return "\n".join(parts)
