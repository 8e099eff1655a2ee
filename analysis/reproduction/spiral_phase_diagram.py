"""Accuracies on the spiral by amplitude and period of the oscillations (arXiv 2102.03793)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from dlf_dynamics.analysis.reproduction.maps import ValueMap, draw_bands, draw_maps
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, titled, unfinished
from dlf_dynamics.analysis.reproduction.published import PAPER, Published
from dlf_dynamics.analysis.reproduction.spiral_study import (
    FRESH_POINTS,
    OTHERS,
    SIZES,
    STATIC_PART,
    SpiralRuns,
    swept,
)
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task, counted
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval
from dlf_dynamics.analysis.style import styled

NAME = "spiral-phase-diagram"

CLAIM = Published("above the static loss", "text")
"""What the abstract says of the accuracy, at the right amplitude and period."""

QUANTITIES = {"accuracy": "training", "validation_accuracy": "held-out"}

OPTIMIZERS = {
    "gd": "gradient descent",
    **{name: f"{name} {rate:g}" for name, rate in OTHERS},
}
"""Optimizers that train with the static loss, in words."""


def gains(runs: SpiralRuns, name: str, optimizer: str) -> dict[tuple[float, int], Interval]:
    """Accuracy of each cell minus that of the static loss from the same initial values.

    The intervals of all cells hold together.
    """
    column = runs.column(name)
    static = column[runs.static(optimizer)]
    return {
        cell: mean_interval(column[runs.cell(*cell)] - static, comparisons=len(runs.cells))
        for cell in runs.cells
    }


def compare(runs: SpiralRuns) -> Iterator[Comparison]:
    """Rows on the static loss with each optimizer, on the best cell, and on all cells."""
    so_far = "" if runs.results.complete else " so far"
    for name, words in QUANTITIES.items():
        column = runs.column(name)
        for optimizer, told in OPTIMIZERS.items():
            mean = mean_interval(column[runs.static(optimizer)])
            yield Comparison(
                f"{words} accuracy, static loss, {told}", None, mean.told(), f"{mean.size} seeds"
            )
        means = runs.means(column)
        if not np.any(np.isfinite(means)):
            continue
        best = runs.cells[int(np.nanargmax(means))]
        yield Comparison(
            f"{words} accuracy, best cell{so_far}: A = {best[0]:g}, T = {best[1]}",
            None,
            mean_interval(column[runs.cell(*best)]).told(),
            "the best of many, chosen after the fact",
        )
        for optimizer, told in OPTIMIZERS.items():
            yield _against(runs, name, optimizer, best, f"{words} accuracy", told)


def _against(
    runs: SpiralRuns, name: str, optimizer: str, best: tuple[float, int], what: str, told: str
) -> Comparison:
    by_cell = gains(runs, name, optimizer)
    counts = Counter(interval.direction for interval in by_cell.values())
    words = ", ".join(f"{direction} in {count}" for direction, count in counts.most_common())
    gain = by_cell[best]
    verdict = {
        "higher": "agrees: ",
        "lower": "contradicts: ",
        "not told apart": "does not show it: ",
        "too few runs": "",
    }[gain.direction]
    return Comparison(
        f"{what} of the {len(by_cell)} cells, against static {told}",
        CLAIM if optimizer == "gd" else None,
        words,
        f"{verdict if optimizer == 'gd' else ''}best cell {gain.told(sign=True)}",
    )


def share(runs: SpiralRuns) -> Float[np.ndarray, " runs"]:
    """Fraction of each run's steps that are within instabilities."""
    return runs.column("oscillating_steps") / runs.column("steps")


def draw(runs: SpiralRuns) -> Figure:
    """Means with bands against the period, static runs as horizontal lines."""
    with styled():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots(1, len(QUANTITIES), sharey=True)
        for ax, (name, words) in zip(axes, QUANTITIES.items(), strict=True):
            column = runs.column(name)
            for number, amplitude in enumerate(runs.amplitudes):
                cells = [mean_interval(column[runs.cell(amplitude, t)]) for t in runs.periods]
                draw_bands(ax, runs.periods, cells, f"A = {amplitude:g}", number)
            for number, (optimizer, told) in enumerate(OPTIMIZERS.items()):
                across = [mean_interval(column[runs.static(optimizer)])] * len(runs.periods)
                draw_bands(ax, runs.periods, across, f"static, {told}", number + 4, "--")
            ax.set(xscale="log", xlabel="period T (steps)", title=f"{words} accuracy")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return figure


def _maps(runs: SpiralRuns) -> Figure:
    return draw_maps(
        [
            *(
                ValueMap(f"{words} accuracy", runs.means(runs.column(name)))
                for name, words in QUANTITIES.items()
            ),
            ValueMap("oscillating part of the steps", runs.means(share(runs))),
        ],
        runs.amplitudes,
        runs.periods,
    )


def make(task: Task) -> Page:
    """Trains what is missing, draws, and compares."""
    results = swept(task)
    runs = SpiralRuns(results)
    return Page(
        name=NAME,
        title=titled("Accuracy on the spiral by amplitude and period", results),
        source=PAPER,
        published="With the right amplitude A and period T, networks that are trained with the "
        "dynamical loss reach accuracies, in training and in validation, that the static loss "
        "(A = 1) does not reach. This is what the abstract says; we had no access to the text, and "
        "know no number of its phase diagrams. What is checked is the claim: in which cells the "
        "accuracy of the same initial values differs from that with the static loss, by intervals "
        "that hold together for all cells (95 %).",
        comparisons=tuple(compare(runs)),
        differs=differs(results.complete),
        pictures=(
            Picture(task.drawn(draw(runs), NAME), "Means with 95 % intervals over the seeds"),
            Picture(
                task.drawn(_maps(runs), f"{NAME}.maps"),
                "Means by amplitude and period; right, the oscillating part of the steps",
            ),
        ),
        made=task.made(NAME, results.provenance, facts(task.budget, runs), results),
    )


def facts(budget: Budget, runs: SpiralRuns) -> dict[str, str]:
    """Facts of the study, for the pages that read it."""
    size, results = SIZES[budget], runs.results
    return {
        "grid": size.grid.told,
        "static loss": ", ".join(OPTIMIZERS.values()),
        "runs": counted(results.statuses),
        "steps of each": f"{size.steps:,}",
        "initial values": f"`{results.study.base.model.init}`",
        "held out": f"{FRESH_POINTS:,} fresh points",
        "precision": results.study.base.dtype,
        "what would need more": "`--budget full`: 16 amplitudes, 11 periods and 20 seeds are 3,360 "
        "runs; on one core, fifteen times this cost, or 32 runs at a time on a GPU (not measured).",
    }


def differs(complete: bool) -> tuple[str, ...]:
    """Caveats of the study, for the pages that read it."""
    return (
        *unfinished(complete),
        "Grid, number of steps and number of seeds are ours: we had no access to the text, and "
        "know no diagram of the spiral.",
        "Runs are as long as the headline run, and end with its static part: pulses last exactly T "
        f"steps, and the last 1/{STATIC_PART} is static.",
        "Intervals in brackets are Student's, of means over the seeds; those of differences are "
        "paired by the initial values and widened for the number of cells (Bonferroni), so that "
        "all hold together with 95 %. Accuracies are not normal, so that this is approximate.",
        "A run that diverged has accuracy 0, and is not left out.",
        "Heavy ball (momentum 0.9) and Adam have one learning rate each, which was not searched "
        "for; nothing is said of the dynamical loss with them.",
    )


REPRODUCTION = Reproduction(
    NAME,
    "accuracies on the spiral by amplitude and period, 10 seeds, beside static optimizers",
    make,
    "about 1 h; nothing beside instability-onsets",
)
