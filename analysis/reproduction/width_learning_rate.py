"""Loss and curvature along training by width, learning rate and loss (arXiv 2410.10690)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, with_error
from dlf_dynamics.analysis.reproduction.published import Published
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task, counted
from dlf_dynamics.analysis.studies.histories import curve_steps
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.analysis.style import COLOURS, styled
from dlf_dynamics.config import LossName
from dlf_dynamics.presets import PRESETS

NAME = "width-learning-rate"

RATES: dict[LossName, tuple[float, float]] = {
    "cross-entropy": (0.3, 1.0),
    "squared-error": (0.05, 0.2),
    "squared-error-per-output": (0.05, 0.2),
}
"""The lower and the higher learning rate of each loss."""

WIDTHS = (20, 50, 100)
AMPLITUDE, PERIOD, STATIC_PART = 30.0, 2000, 10

_IMPROVEMENT = Published("improves", "text")
"""Of the validation accuracy, by the dynamical losses."""

_MOST = Published("the smallest", "inferred")
"""The network that profits most."""

FRESH_POINTS = 3000

_RATE_NAMES = ("lower", "higher")


@dataclass(frozen=True)
class _Size:
    seeds: int
    steps: int
    every: int

    @property
    def points(self) -> int:
        """Of the curves: the checkpoints, all of them."""
        return (self.steps - 1) // self.every + 1


# The distance of the checkpoints is odd, or all would be on one branch of a period-2 orbit.
_SIZES = {
    "tiny": _Size(1, 1000, 333),
    "small": _Size(3, 20_000, 263),
    "full": _Size(20, 20_000, 129),
}


def study(size: _Size) -> Study:
    """Each width with each loss at both of its learning rates, static and dynamical."""
    base = PRESETS["published-updated"]
    schedule = replace(
        base.schedule,
        period=PERIOD,
        counting="exact",
        static_from=size.steps - size.steps // STATIC_PART,
    )
    return Study(
        replace(
            base,
            data=replace(base.data, validation=FRESH_POINTS),
            schedule=schedule,
            steps=size.steps,
            checkpoint_every=size.every,
        ),
        (
            ("model.widths", tuple((width,) for width in WIDTHS)),
            ("schedule.amplitude", (1.0, AMPLITUDE)),
            ("model.seed", tuple(range(size.seeds))),
        ),
        tuple(
            (("loss.name", name), ("optimizer.learning_rate", rate))
            for name, rates in RATES.items()
            for rate in rates
        ),
        Measures(curve_points=size.points, sharpness=True),
    )


@dataclass(frozen=True)
class Selected:
    """Runs of a study by what they are of.

    Attributes:
        results: of the study.
    """

    results: StudyResults

    def runs(
        self,
        width: int | None = None,
        loss: str | None = None,
        rate: float | None = None,
        amplitude: float | None = None,
    ) -> Bool[np.ndarray, " runs"]:
        """Whether each run is one of these; what is not named is free."""
        asked = {
            "model.widths": None if width is None else str(width),
            "loss.name": loss,
            "optimizer.learning_rate": rate,
            "schedule.amplitude": amplitude,
        }
        every = np.ones(len(self.results.done), bool)
        chosen = [self.results.study.values(k) == v for k, v in asked.items() if v is not None]
        return reduce(np.logical_and, chosen, every)

    def difference(self, width: int, loss: str) -> tuple[float, float, int]:
        """Mean of dynamical minus static validation accuracy of the same seed, error, and number.

        Pairs of which one run diverged are left out.
        """
        accuracy = self.results.columns["validation_accuracy"]
        pairs = []
        for rate in RATES[loss]:  # type: ignore[index]
            static, moving = (
                accuracy[self.runs(width, loss, rate, amplitude)] for amplitude in (1.0, AMPLITUDE)
            )
            pairs.append(moving - static)
        gained = np.concatenate(pairs)
        gained = gained[np.isfinite(gained)]
        if len(gained) < 2:
            return float(np.mean(gained)) if len(gained) else np.nan, np.nan, len(gained)
        return (
            float(np.mean(gained)),
            float(np.std(gained, ddof=1) / len(gained) ** 0.5),
            len(gained),
        )

    def level(self, width: int, loss: str, amplitude: float) -> float:
        """Mean validation accuracy of the runs that did not diverge."""
        values = self.results.columns["validation_accuracy"][
            self.runs(width, loss, amplitude=amplitude)
        ]
        values = values[np.isfinite(values)]
        return float(np.mean(values)) if len(values) else np.nan


def compare(selected: Selected) -> Iterator[Comparison]:
    """The validation accuracy of each width and loss, dynamical against static."""
    for loss in RATES:
        gains = []
        for width in WIDTHS:
            gain, error, pairs = selected.difference(width, loss)
            gains.append(gain)
            static, moving = (selected.level(width, loss, a) for a in (1.0, AMPLITUDE))
            verdict = "one pair has no standard error"
            if np.isfinite(error):
                verdict = (
                    "improves" if gain > error else "gets worse" if gain < -error else "no change"
                )
                verdict += f", by the standard error of {pairs} pairs"
            yield Comparison(
                f"{loss}, width {width}: validation accuracy, dynamical minus static",
                _IMPROVEMENT,
                f"{with_error(gain, error) if np.isfinite(error) else f'{gain:.3f}'} "
                f"({static:.3f} to {moving:.3f})",
                verdict,
            )
        best = max((gain for gain in gains if gain > 0), default=None)
        most = "none improves" if best is None else str(WIDTHS[gains.index(best)])
        yield Comparison(
            f"{loss}: width that improves most",
            _MOST,
            most,
            "agrees" if most == str(WIDTHS[0]) else "differs",
        )


def draw(selected: Selected, curve: str, label: str, *, threshold: bool) -> Figure:
    """Means over the seeds along training, a panel for each width and learning rate."""
    with styled():
        figure = Figure(figsize=(6.0, 5.3), layout="constrained")
        shape = len(WIDTHS), len(_RATE_NAMES)
        axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
        for row, width in zip(axes, WIDTHS, strict=True):
            for place, ax in enumerate(row):
                _draw_panel(ax, selected, curve, (width, place), threshold=threshold)
                ax.set_title(f"width {width}, {_RATE_NAMES[place]} learning rate", fontsize=8)
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
    ax: Axes, selected: Selected, curve: str, place: tuple[int, int], *, threshold: bool
) -> None:
    results, (width, column) = selected.results, place
    assert results.curves is not None
    values = results.curves[..., CURVES.index(curve)]
    steps = curve_steps(results.study.base, values.shape[1])
    for (loss, rates), colour in zip(RATES.items(), COLOURS, strict=False):
        for amplitude, style in ((1.0, "--"), (AMPLITUDE, "-")):
            mean = _mean(values[selected.runs(width, loss, rates[column], amplitude)])
            name = "static" if amplitude == 1 else "dynamical"
            ax.plot(steps, mean, style, color=colour, lw=0.9, label=f"{loss}, {name}")
    for rate in sorted({rates[column] for rates in RATES.values()}) if threshold else ():
        ax.axhline(2 / rate, color="black", lw=0.7, ls=":")
        ax.text(0, 2 / rate, f"2/{rate:g}", ha="left", va="bottom", fontsize=6)
    ax.set_yscale("log")


def _mean(values: Float[np.ndarray, "runs points"]) -> Float[np.ndarray, " points"]:
    """Over the runs that have a value; NaN where none has."""
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.sum(values, axis=0, where=finite) / np.sum(finite, axis=0)


def make(task: Task) -> Page:
    """Trains and measures what is missing, draws, and compares."""
    size = _SIZES[task.budget]
    results = task.swept(study(size))
    selected = Selected(results)
    rates = "; ".join(f"{name} {low:g} and {high:g}" for name, (low, high) in RATES.items())
    return Page(
        name=NAME,
        title="Loss and curvature by width and learning rate",
        source="E. Lavin Pallero, M. Ruiz-Garcia, *Dynamical loss functions shape landscape "
        "topography and improve learning in artificial neural networks*, 2024, "
        "[arXiv 2410.10690](https://arxiv.org/abs/2410.10690).",
        published="Loss and largest Hessian eigenvalue, averaged over 20 simulations, for three "
        "widths and two learning rates; a dynamical cross-entropy and two dynamical mean squared "
        "errors, which keep the global minima. The abstract says that they improve the validation "
        "accuracy for networks of varying sizes. We had no access to the rest of the text, but for "
        "its beginning and the caption of its Fig. 1, and know no number of it.",
        comparisons=tuple(compare(selected)),
        differs=_differs(size),
        pictures=_pictures(task, selected),
        made=task.made(
            NAME,
            results.provenance,
            {
                "widths": ", ".join(map(str, WIDTHS)),
                "learning rates": rates,
                "schedule": f"A = 1 and {AMPLITUDE:g}, T = {PERIOD}",
                "runs": counted(results.statuses),
                "steps of each": f"{size.steps:,}",
                "eigenvalues": "Hessian of the loss as weighted at the step, converged ones only",
                "precision": results.study.base.dtype,
            },
        ),
    )


def _pictures(task: Task, selected: Selected) -> tuple[Picture, Picture]:
    """The figures, written."""
    loss = draw(selected, "loss", "loss F", threshold=False)
    curvature = draw(selected, "sharpness", "λ_max (weighted loss)", threshold=True)
    return (
        Picture(
            task.drawn(loss, NAME),
            "Loss along training: dynamical (solid) and static (dashed). The two squared errors "
            "are the same when they are static",
        ),
        Picture(
            task.drawn(curvature, f"{NAME}.sharpness"),
            "Largest Hessian eigenvalue along training, and the thresholds 2/η (dotted)",
        ),
    )


def _differs(size: _Size) -> tuple[str, ...]:
    return (
        "**We had no access to the paper's formulas for the squared errors.** Both definitions "
        "are ours: `squared-error` weighs examples, "
        "(1/N) Σ_n Γ_(y_n) Σ_i (f_i − Y_ni)²; `squared-error-per-output` weighs outputs, "
        "(1/N) Σ_n Σ_i Γ_i (f_i − Y_ni)². Nothing here says that the paper's behave like them.",
        "Data (the spiral), widths, learning rates, amplitude and period are ours, too. A "
        "learning rate that is right for cross-entropy lets the squared errors diverge, so "
        "that each loss has two of its own.",
        "Differences are those of pairs of runs with the same seed, at both learning rates. "
        "Pairs of which one run diverged are left out, which flatters that loss.",
        "λ_max is that at the iterate. Where the iterates oscillate, that is not the centre of the "
        "oscillation, and may lie above 2/η.",
        f"The last 1/{STATIC_PART} of each run is static. Curves have {size.points} points, "
        f"{PERIOD / size.every:.1f} in a pulse.",
        "That small networks profit most stands in a summary of the paper by others.",
    )


REPRODUCTION = Reproduction(NAME, "loss and curvature by width, learning rate and loss", make)
