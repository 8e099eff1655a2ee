"""Loss and curvature along training by width, learning rate and loss (arXiv 2410.10690)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, titled, unfinished
from dlf_dynamics.analysis.reproduction.published import Published
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task, counted
from dlf_dynamics.analysis.reproduction.width_study import (
    AMPLITUDE,
    PERIOD,
    PLATEAU_SHARE,
    SIZES,
    Size,
    WidthRuns,
    base_of,
    conditions,
    measures,
    swept,
)
from dlf_dynamics.analysis.studies.histories import curve_steps
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.style import COLOURS, styled
from dlf_dynamics.config import LossName

NAME = "width-learning-rate"

RATES: dict[LossName, tuple[float, float]] = {
    "cross-entropy": (0.3, 1.0),
    "squared-error": (0.05, 0.2),
    "squared-error-per-output": (0.05, 0.2),
}
"""The lower and the higher learning rate of each loss."""

WIDTHS = (20, 50, 100)

_IMPROVEMENT = Published("improves", "text")
"""What the dynamical losses do to the validation accuracy."""

_MOST = Published("the smallest", "inferred")
"""The network that benefits most."""

_RATE_NAMES = ("lower", "higher")
_COMPARISONS = len(RATES) * len(WIDTHS) * len(_RATE_NAMES)


def study(size: Size) -> Study:
    """The squared errors at both rates; static they are one and the same."""
    runs = (
        ("squared-error", 1.0),
        ("squared-error", AMPLITUDE),
        ("squared-error-per-output", AMPLITUDE),
    )
    return Study(
        base_of(size),
        (
            ("model.widths", tuple((width,) for width in WIDTHS)),
            ("optimizer.learning_rate", RATES["squared-error"]),
            ("model.seed", tuple(range(size.seeds))),
        ),
        tuple((("loss.name", loss), ("schedule.amplitude", a)) for loss, a in runs),
        measures(size),
    )


@dataclass(frozen=True)
class Losses:
    """The runs of all losses.

    Attributes:
        cross_entropy: runs with the cross entropy.
        squared: runs with the squared errors.
    """

    cross_entropy: WidthRuns
    squared: WidthRuns

    def runs(self, loss: str) -> WidthRuns:
        """The study that a loss is part of."""
        return self.cross_entropy if loss == "cross-entropy" else self.squared

    def values(
        self, name: str, loss: str, width: int, rate: float, amplitude: float
    ) -> Float[np.ndarray, " seeds"]:
        """A number of each run of a cell, or `plateau`, in the order of the seeds."""
        runs = self.runs(loss)
        if amplitude == 1 and loss != "cross-entropy":
            loss = "squared-error"  # static they are one and the same, and trained once
        column = runs.plateau() if name == "plateau" else runs.column(name)
        return column[runs.cell(width, rate, amplitude, loss)]

    def curves(
        self, name: str, loss: str, width: int, rate: float, amplitude: float
    ) -> Float[np.ndarray, "seeds points"]:
        """A curve of each run of a cell."""
        runs = self.runs(loss)
        curves = runs.results.curves
        assert curves is not None
        return curves[runs.cell(width, rate, amplitude, loss)][..., CURVES.index(name)]

    def gain(self, loss: str, width: int, rate: float) -> Interval:
        """Held-out accuracy, dynamical minus static, for the same initial values."""
        moving, static = (
            self.values("validation_accuracy", loss, width, rate, a) for a in (AMPLITUDE, 1.0)
        )
        return mean_interval(moving - static, comparisons=_COMPARISONS)

    def settled(self, loss: str, width: int, rate: float) -> tuple[float, float]:
        """Fractions of the static and of the dynamical runs that are at a plateau."""
        plateaus = [self.values("plateau", loss, width, rate, a) for a in (1.0, AMPLITUDE)]
        known = [values[np.isfinite(values)] for values in plateaus]
        static, moving = (float(np.mean(v)) if len(v) else np.nan for v in known)
        return static, moving


def compare(losses: Losses) -> Iterator[Comparison]:
    """The held-out accuracy of each width, rate and loss, dynamical against static."""
    for loss, rates in RATES.items():
        for rate in rates:
            gains = {width: losses.gain(loss, width, rate) for width in WIDTHS}
            for width, difference in gains.items():
                static, moving = losses.settled(loss, width, rate)
                yield Comparison(
                    f"{loss}, width {width}, rate {rate:g}: held-out accuracy, dynamical minus "
                    "static",
                    _IMPROVEMENT,
                    f"{difference.told(sign=True)} ({_level(losses, loss, width, rate)})",
                    _verdict(difference, static, moving),
                )
            yield Comparison(
                f"{loss}, rate {rate:g}: width that improves most",
                _MOST,
                *most_improved(gains),
            )


def _level(losses: Losses, loss: str, width: int, rate: float) -> str:
    means = [
        mean_interval(losses.values("validation_accuracy", loss, width, rate, a)).value
        for a in (1.0, AMPLITUDE)
    ]
    return f"{means[0]:.3f} to {means[1]:.3f}"


def _verdict(difference: Interval, static: float, moving: float) -> str:
    """The direction, and whether the runs are at a plateau."""
    told = f"{difference.direction}; at a plateau: static {static:.0%}, dynamical {moving:.0%}"
    if min(static, moving) >= PLATEAU_SHARE:
        return told
    return f"{told}, so that this is no statement on the end of learning"


def most_improved(gains: dict[int, Interval]) -> tuple[str, str]:
    """The width with the largest gain, and whether it is told apart from the others.

    Two widths are told apart by simultaneous intervals that do not overlap.
    """
    known = {width: each for width, each in gains.items() if np.isfinite(each.low)}
    if len(known) < len(gains):
        return "too few runs", ""
    best = max(known, key=lambda width: known[width].value)
    others = [each for width, each in known.items() if width != best]
    if known[best].low <= 0:
        return "none is known to improve", ""
    if known[best].low <= max(each.high for each in others):
        return f"{best}, not told apart from all others", ""
    return str(best), "agrees" if best == min(gains) else "differs"


def draw(losses: Losses, curve: str, label: str, *, threshold: bool) -> Figure:
    """Means over the seeds along training with bands, a panel for each width and rate."""
    with styled():
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        shape = len(WIDTHS), len(_RATE_NAMES)
        axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
        for row, width in zip(axes, WIDTHS, strict=True):
            for column, ax in enumerate(row):
                _draw_panel(ax, losses, curve, (width, column), threshold=threshold)
                ax.set_title(f"width {width}, {_RATE_NAMES[column]} learning rate", fontsize=8)
            row[0].set_ylabel(label)
        for ax in axes[-1]:
            ax.set_xlabel("step")
            ax.xaxis.set_major_formatter(EngFormatter(sep="", places=None))
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=6.5
        )
        return figure


def _draw_panel(
    ax: Axes, losses: Losses, curve: str, panel: tuple[int, int], *, threshold: bool
) -> None:
    width, column = panel
    for (loss, rates), colour in zip(RATES.items(), COLOURS, strict=False):
        for amplitude, style in ((1.0, "--"), (AMPLITUDE, "-")):
            if loss == "squared-error-per-output" and amplitude == 1:
                continue  # the same runs as with the other squared error
            values = losses.curves(curve, loss, width, rates[column], amplitude)
            steps = curve_steps(losses.runs(loss).results.study.base, values.shape[1])
            name = "static" if amplitude == 1 else "dynamical"
            low, middle, high = _band(values)
            ax.plot(steps, middle, style, color=colour, lw=0.9, label=f"{loss}, {name}")
            ax.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    for rate in sorted({rates[column] for rates in RATES.values()}) if threshold else ():
        ax.axhline(2 / rate, color="black", lw=0.7, ls=":")
        ax.text(0, 2 / rate, f"2/{rate:g}", ha="left", va="bottom", fontsize=6)
    ax.set_yscale("log")


def _band(values: Float[np.ndarray, "seeds points"]) -> Float[np.ndarray, "3 points"]:
    """Quartiles and median over the runs that have a value; NaN where none has."""
    quartiles = np.full((3, values.shape[1]), np.nan)
    for point, column in enumerate(values.T):
        known = column[np.isfinite(column)]
        if len(known):
            quartiles[:, point] = np.quantile(known, (0.25, 0.5, 0.75))
    return quartiles


def make(task: Task) -> Page:
    """Trains and measures what is missing, draws, and compares."""
    size = SIZES[task.budget]
    results = [swept(task), task.swept(study(size), "squared-errors")]
    losses = Losses(*map(WidthRuns, results))
    rates = "; ".join(f"{name} {low:g} and {high:g}" for name, (low, high) in RATES.items())
    statuses = [status for each in results for status in each.statuses]
    return Page(
        name=NAME,
        title=titled("Loss and curvature by width and learning rate", *results),
        source="E. Lavin Pallero, M. Ruiz-Garcia, *Dynamical loss functions shape landscape "
        "topography and improve learning in artificial neural networks*, 2024, "
        "[arXiv 2410.10690](https://arxiv.org/abs/2410.10690).",
        published="Loss and largest Hessian eigenvalue, averaged over 20 simulations, for three "
        "widths and two learning rates; a dynamical cross-entropy and two dynamical mean squared "
        "errors, which keep the global minima. The abstract says that they improve the validation "
        "accuracy for networks of varying sizes. We had no access to the rest of the text, but for "
        "its beginning and the caption of its Fig. 1, and know no number of it.",
        comparisons=tuple(compare(losses)),
        differs=_differs(size, all(each.complete for each in results)),
        pictures=_pictures(task, losses),
        made=task.made(
            NAME,
            results[1].provenance,
            {
                "widths": ", ".join(map(str, WIDTHS)),
                "learning rates": rates,
                "schedule": f"A = 1 and {AMPLITUDE:g}, T = {PERIOD}",
                "seeds": str(size.seeds),
                "runs": f"{counted(statuses)}; those of the cross entropy have other widths, too, "
                "and are shared with the page `under-parameterised`",
                "steps of each": f"{size.steps:,}",
                "eigenvalues": "Hessian of the loss as weighted at the step, converged ones only",
                "precision": results[1].study.base.dtype,
                "what would need more": "`--budget full`: 50 seeds and 200,000 steps are about ten "
                "times this cost.",
            },
            *results,
        ),
    )


def _pictures(task: Task, losses: Losses) -> tuple[Picture, Picture]:
    """Writes the figures."""
    loss = draw(losses, "loss", "loss F", threshold=False)
    curvature = draw(losses, "sharpness", "λ_max (weighted loss)", threshold=True)
    return (
        Picture(
            task.drawn(loss, NAME),
            "Loss along training, median and quartiles over the seeds: dynamical (solid) and "
            "static (dashed). The two squared errors are the same when they are static",
        ),
        Picture(
            task.drawn(curvature, f"{NAME}.sharpness"),
            "Largest Hessian eigenvalue along training, and the thresholds 2/η (dotted)",
        ),
    )


def _differs(size: Size, complete: bool) -> tuple[str, ...]:
    return (
        *unfinished(complete),
        "**We had no access to the paper's formulas for the squared errors.** Both definitions "
        "are ours: `squared-error` weighs examples, "
        "(1/N) Σ_n Γ_(y_n) Σ_i (f_i − Y_ni)²; `squared-error-per-output` weighs outputs, "
        "(1/N) Σ_n Σ_i Γ_i (f_i − Y_ni)². Nothing here says that the paper's behave like them.",
        "Data (the spiral), widths, learning rates, amplitude and period are ours, too. A "
        "learning rate that is right for cross-entropy lets the squared errors diverge, so "
        "that each loss has two of its own.",
        *conditions(_COMPARISONS),
        f"Where fewer than {PLATEAU_SHARE:.0%} of the runs are at a plateau, the difference is "
        f"that after {size.steps:,} steps, and not that of the end of learning.",
        "λ_max is that at the iterate. Where the iterates oscillate, that is not the centre of the "
        f"oscillation, and may lie above 2/η. Curves have {size.points} points.",
        "That small networks profit most stands in a summary of the paper by others.",
    )


REPRODUCTION = Reproduction(
    NAME,
    "loss and curvature by width, learning rate and loss, 20 seeds",
    make,
    "about 2 h; 1 h beside under-parameterised",
)
