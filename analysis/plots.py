"""Figures of a run: functions that draw on an Axes, and the two figures made of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from dlf_dynamics.analysis.events import OSCILLATING_COSINE, Oscillation
from dlf_dynamics.analysis.report import threshold_line
from dlf_dynamics.analysis.spectrum import Spectrum
from dlf_dynamics.resultfile import write_whole
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle

# Okabe and Ito's palette, distinct for all common kinds of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_LINE, _POINT, _SHADE, _THRESHOLD, _MARK = "#0072B2", "#0072B2", "#56B4E9", "#D55E00", "#D55E00"

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
}

WIDE = 1.01
"""Ratio of the ends of an interval from which it is seen on the panel."""

Panel = Callable[[Axes, Run, Spectrum], None]


def draw_class_weights(ax: Axes, run: Run, spectrum: Spectrum) -> None:
    """Γ_i of each class against the step."""
    weights = run.scalars["class_weights"]
    for label in range(weights.shape[1]):
        colour = COLOURS[label % len(COLOURS)]
        ax.plot(run.steps, weights[:, label], color=colour, lw=0.8, label=str(label))
    ax.set_ylabel(r"$\Gamma_i$")


def draw_loss(ax: Axes, run: Run, spectrum: Spectrum) -> None:
    """The weighted loss F on a log scale."""
    _points(ax, run.steps, run.scalars["loss"])
    ax.set_yscale("log")
    ax.set_ylabel(r"$\mathcal{F}$")


def draw_loss_change(ax: Axes, run: Run, spectrum: Spectrum) -> None:
    """F(t) - F(t-1), at most within the published limits."""
    change = np.diff(run.scalars["loss"])
    _points(ax, run.steps[1:], change)
    limit = min(1.2 * np.nanmax(np.abs(change[1:]), initial=1e-12), 0.25)
    ax.set_ylim(-limit, limit)
    ax.set_ylabel(r"$\mathcal{F}(t)-\mathcal{F}(t{-}1)$")


def draw_accuracy(ax: Axes, run: Run, spectrum: Spectrum) -> None:
    """Accuracy on the training data, and on the examples held out."""
    _points(ax, run.steps, run.scalars["accuracy"])
    if run.validation:
        steps, values = run.checkpoint_steps, run.validation["accuracy"]
        _points(ax, steps, values, colour=COLOURS[1], label="held out")
    ax.set_ylabel("accuracy")


def draw_sharpness(ax: Axes, run: Run, spectrum: Spectrum) -> None:
    """Largest Hessian eigenvalue at iterates and centres, with the threshold."""
    hessian = spectrum.hessian
    for found, colour, label, size in (
        (hessian.iterate, COLOURS[4], "at the iterate", 0.9),
        (hessian.centre, COLOURS[0], "at the 1:2:1 centre", 1.1),
    ):
        fine = found.converged[:, 0]
        _points(ax, hessian.steps[fine], found.eigenvalues[fine, 0], colour, label, size=size)
        _bands(ax, hessian.steps[fine], found.intervals[fine, 0], colour)
    bad = ~hessian.centre.converged[:, 0] & np.isfinite(hessian.centre.eigenvalues[:, 0])
    if np.any(bad):
        values = hessian.centre.eigenvalues[bad, 0]
        ax.plot(hessian.steps[bad], values, "x", color="#000000", ms=3, label="not converged")
    if np.any(np.isfinite(spectrum.thresholds)):
        ax.plot(hessian.steps, spectrum.thresholds, color=_THRESHOLD, lw=1, label="threshold")
    if np.any(np.concatenate([hessian.iterate.eigenvalues, hessian.centre.eigenvalues])[:, 0] > 0):
        ax.set_yscale("log")
    symbol = {"hessian": "H", "ggn": "G", "remainder": "H-G"}[hessian.curvature.operator]
    which = r"\max" if hessian.ends.top else rf"{len(hessian.iterate.eigenvalues[0])}"
    operator = f"P^{{-1}}{symbol}" if hessian.curvature.preconditioned else symbol
    plain = operator == "H"
    ax.set_ylabel(rf"$\lambda_{{{which}}}$" if plain else rf"$\lambda_{{{which}}}({operator})$")


def _bands(ax: Axes, steps: np.ndarray, intervals: np.ndarray, colour: str) -> None:
    """The intervals as vertical bars, where they are wider than a point."""
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = ~(intervals[:, 1] / intervals[:, 0] < WIDE) | (intervals[:, 0] <= 0)
    if np.any(wide):
        steps, (lower, upper) = steps[wide], intervals[wide].T
        ax.vlines(steps, lower, upper, color=colour, lw=0.8, alpha=0.4, rasterized=True)


def draw_ntk(ax: Axes, run: Run, spectrum: Spectrum) -> None:
    """Largest eigenvalue of the NTK."""
    ax.set_ylabel(r"NTK $\lambda_{\max}$")
    if spectrum.ntk is None:
        ax.text(0.5, 0.5, "not computed", ha="center", va="center", transform=ax.transAxes)
        return
    _points(ax, spectrum.ntk.steps, spectrum.ntk.eigenvalues[:, 0], size=1.1)


PANELS: tuple[Panel, ...] = (
    draw_class_weights,
    draw_loss,
    draw_loss_change,
    draw_accuracy,
    draw_sharpness,
    draw_ntk,
)


def shade_oscillations(ax: Axes, spectrum: Spectrum) -> None:
    """Windows of oscillation: dark where seen in the loss (bursts), light elsewhere."""
    for window in spectrum.oscillations:
        ax.axvspan(window.onset, window.end, color=_SHADE, alpha=0.13, lw=0)
        if window.burst:
            ax.axvspan(window.burst_start, window.burst_end, color=_SHADE, alpha=0.2, lw=0)


def mark_crossings(ax: Axes, spectrum: Spectrum) -> None:
    """The crossings of the centres at the threshold's height: hollow where unresolved."""
    for direction, marker in (("up", "^"), ("down", "v")):
        for sure in (True, False):
            found = [
                c
                for c in spectrum.crossings
                if (c.direction, c.at, c.state != "unresolved") == (direction, "centre", sure)
            ]
            middle = [(c.step_before + c.step_after) / 2 for c in found]
            heights = [c.threshold for c in found]
            label = f"crossing {direction}" + ("" if sure else ", unresolved")
            face = _MARK if sure else "none"
            if found:
                ax.plot(
                    middle, heights, marker, color=_MARK, ms=3.5, mew=0.5, mfc=face, label=label
                )


def run_figure(run: Run, spectrum: Spectrum, zoom: tuple[float, float] | None = None) -> Figure:
    """The published six panels (arXiv 2102.03793, Fig. 4), and a column that zooms in.

    Args:
        run: the run.
        spectrum: its spectrum.
        zoom: first and last step of the second column; none means around the second burst.
    """
    with mpl.rc_context(STYLE):
        panels = _panels(run, spectrum)
        figure = Figure(figsize=(7.2, 0.8 + 1.3 * len(panels)), layout="constrained")
        zoom = default_zoom(run, spectrum) if zoom is None else zoom
        zoom = zoom and (zoom[0], min(zoom[1], run.steps[-1]))
        columns = 1 if zoom is None else 2
        axes = figure.subplots(
            len(panels), columns, sharex="col", squeeze=False, width_ratios=[3, 1.5][:columns]
        )
        for row, draw in zip(axes, panels, strict=True):
            for ax in row:
                draw(ax, run, spectrum)
                shade_oscillations(ax, spectrum)
                if draw is draw_sharpness:
                    mark_crossings(ax, spectrum)
            if zoom is not None:
                _zoom_in(row[1], zoom)
                if draw is draw_loss_change:
                    row[1].set_ylim(row[0].get_ylim())
            if row[0].get_legend_handles_labels()[0] and draw is not draw_ntk:
                _legend(row[0], "class " if draw is draw_class_weights else "")
        _label_steps(axes, run, zoom)
        figure.suptitle(_title(run, spectrum), fontsize=7)
        return figure


def _panels(run: Run, spectrum: Spectrum) -> list[Panel]:
    """Those with something in them; a recording has what its author's loop gave."""
    known = {name: bool(np.any(np.isfinite(v))) for name, v in run.scalars.items()}
    shown: dict[Panel, bool] = {
        draw_class_weights: known["class_weights"],
        draw_loss: known["loss"],
        draw_loss_change: known["loss"],
        draw_accuracy: known["accuracy"],
        draw_ntk: spectrum.ntk is not None,
    }
    return [panel for panel in PANELS if shown.get(panel, True)]


def _legend(ax: Axes, prefix: str = "") -> None:
    """A line of labels above the panel."""
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles,
        [prefix + label for label in labels],
        loc="lower left",
        bbox_to_anchor=(0, 0.94),
        fontsize=6,
        markerscale=1.5,
        ncols=6,
        columnspacing=0.9,
        handlelength=1.4,
        handletextpad=0.2,
        frameon=False,
    )


def default_zoom(run: Run, spectrum: Spectrum) -> tuple[float, float] | None:
    """Half a window's length around the second burst, or the only one; none without bursts."""
    bursts = spectrum.bursts[:2]
    if not bursts:
        return None
    margin = (bursts[-1].burst_end - bursts[-1].burst_start) // 2 + 10
    first, last = bursts[-1].burst_start - margin, bursts[-1].burst_end + margin
    return max(first, int(run.steps[0])), min(last, int(run.steps[-1]))


def _label_steps(axes: np.ndarray, run: Run, zoom: tuple[float, float] | None) -> None:
    for ax in axes[-1]:
        ax.set_xlabel("step")
        ax.xaxis.set_major_formatter(EngFormatter(sep="", places=None))
    axes[0, 0].set_xlim(run.steps[0], max(run.steps[-1], run.steps[0] + 1))
    if zoom is not None:
        axes[0, 1].set_xlim(*zoom)


def _zoom_in(ax: Axes, zoom: tuple[float, float]) -> None:
    ax.set_ylabel("")
    ax.set_yscale("linear")
    fit_height(ax, zoom)


def fit_height(ax: Axes, span: tuple[float, float]) -> None:
    """Sets the y-limits to what lies in the span of steps."""
    seen = []
    for line in ax.get_lines():
        x, y = (np.asarray(values, float) for values in line.get_data())
        seen.append(y[(x >= span[0]) & (x <= span[1]) & np.isfinite(y)])
    values = np.concatenate(seen) if seen else np.zeros(0)
    if len(values):
        low, high = float(values.min()), float(values.max())
        margin = 0.06 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)


def bifurcation_figure(run: Run, spectrum: Spectrum) -> Figure:
    """Loss and update cosine against the step inside a pulse, and the bursts one by one.

    Where the iterates oscillate, consecutive steps lie on separate branches: two branches of F for
    period 2, four for period 4, a cloud where the motion is irregular.
    """
    length, count = _pulses(run)
    bursts = spectrum.bursts[:6]
    rows = [2.0, 1.2] + [1.3] * -(-len(bursts) // 3)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.0 + 1.25 * sum(rows)), layout="constrained")
        grid = figure.add_gridspec(len(rows), 3, height_ratios=rows)
        top = figure.add_subplot(grid[0, :])
        bottom = figure.add_subplot(grid[1, :], sharex=top)
        draw_pulses(top, run, "loss", length, count)
        draw_pulses(bottom, run, "update_cosine", length, count)
        top.set_yscale("log")
        top.set_ylabel(r"$\mathcal{F}$")
        bottom.set_ylabel("cosine of\nsuccessive updates")
        bottom.axhline(OSCILLATING_COSINE, color="#000000", lw=0.5, ls=":")
        bottom.set_xlabel("step inside the pulse" if count > 1 else "step")
        bottom.set_xlim(0, length)
        top.tick_params(labelbottom=False)
        for number, burst in enumerate(bursts):
            ax = figure.add_subplot(grid[2 + number // 3, number % 3])
            draw_burst(ax, run, spectrum, burst)
            ax.set_title(f"burst {number + 1}", fontsize=7)
        if count > 1:
            pulses = ScalarMappable(BoundaryNorm(np.arange(count + 1) + 0.5, 256))
            ticks = range(1, count + 1, -(-count // 14))
            figure.colorbar(pulses, ax=[top, bottom], label="pulse", ticks=ticks, aspect=40)
        figure.suptitle(_title(run, spectrum), fontsize=7)
        return figure


def draw_pulses(ax: Axes, run: Run, name: str, length: int, count: int) -> None:
    """A recorded scalar against the step inside the pulse, one colour per pulse."""
    colours = mpl.colormaps["viridis"](np.linspace(0, 1, count) if count > 1 else [0.3])
    for pulse in reversed(range(count)):
        inside = (run.steps >= pulse * length) & (run.steps < (pulse + 1) * length)
        phase = run.steps[inside] - pulse * length
        _points(ax, phase, run.scalars[name][inside], colours[pulse])


def draw_burst(ax: Axes, run: Run, spectrum: Spectrum, burst: Oscillation) -> None:
    """The loss around one burst, step by step, and where the centres cross the threshold."""
    margin = (burst.burst_end - burst.burst_start) // 5 + 5
    inside = (run.steps >= burst.burst_start - margin) & (run.steps <= burst.burst_end + margin)
    _points(ax, run.steps[inside], run.scalars["loss"][inside], size=0.9)
    if burst.crossed >= 0:
        ax.axvline(burst.crossed, color=_THRESHOLD, lw=0.7)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _pulses(run: Run) -> tuple[int, int]:
    """Steps of a pulse and the number of pulses; a run without pulses counts as one."""
    schedule, total = run.dynamics.schedule, int(run.steps[-1]) + 1
    if not isinstance(schedule, Triangle) or schedule.pulse_steps >= total:
        return total, 1
    length, static_from = schedule.pulse_steps, schedule.static_from
    end = total if static_from is None else static_from
    return length, int(np.ceil(min(end, total) / length))


def _title(run: Run, spectrum: Spectrum) -> str:
    lines = [_subject(run)]
    lines.append(f"eigenvalues of the {spectrum.hessian.curvature}; {threshold_line(spectrum)}")
    if spectrum.not_converged:
        lines.append(f"{spectrum.not_converged} checkpoints not converged")
    return "\n".join(lines)


def _subject(run: Run) -> str:
    """What was trained, and how."""
    if run.recording is not None:
        batches = ", full batch" if run.recording.full_batch else ", mini-batches"
        how = f"{run.optimizer_name}{batches if run.recording.has_optimizer else ''}"
        return f"{run.num_params} parameters; {how}; {run.dtype}"
    c = run.config
    model = "-".join(map(str, c.model.widths)) or "linear"
    optimizer = f"{c.optimizer.name}, learning rate {c.optimizer.learning_rate:g}"
    loss = c.loss.name
    schedule = "own schedule" if run.own_schedule else "static"
    if not run.own_schedule and c.schedule.name == "triangle":
        schedule = f"A = {c.schedule.amplitude:g}, T = {c.schedule.period}"
    network = f"{model} {c.model.activation}"
    return f"{c.data.name}, {network}, {loss}, {schedule}; {optimizer}; {c.dtype}"


def _points(
    ax: Axes,
    x: np.ndarray,
    y: Float[np.ndarray, " points"],
    colour: Any = _POINT,
    label: str | None = None,
    size: float = 0.6,
) -> None:
    # Rasterised, or a vector file would hold every one of the 70,000 points.
    ax.plot(x, y, ".", color=colour, ms=size, mew=0.4, label=label, rasterized=True)


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Writes `stem.png`, `stem.svg`, ...; returns the paths.

    Raises:
        FileError: when one cannot be written.
    """
    paths = []
    engine = figure.get_layout_engine()
    if engine is not None:  # laid out once, for all formats
        with mpl.rc_context(STYLE):
            engine.execute(figure)
        figure.set_layout_engine("none")
    for suffix in formats:
        content = io.BytesIO()
        with mpl.rc_context(STYLE):
            metadata = {"Date": None} if suffix == "svg" else None
            figure.savefig(content, format=suffix, metadata=metadata)
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_whole(paths[-1], content.getvalue())
    return paths
