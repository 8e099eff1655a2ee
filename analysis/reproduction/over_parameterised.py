"""Held-out accuracy of networks with many parameters, dynamical against static (2102.03793)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from dlf_dynamics.analysis.reproduction.grids import Grid
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, titled, unfinished
from dlf_dynamics.analysis.reproduction.published import PAPER, Published
from dlf_dynamics.analysis.reproduction.spiral_study import (
    EXAMPLES,
    FRESH_POINTS,
    SpiralRuns,
    config_of,
)
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task, counted
from dlf_dynamics.analysis.reproduction.width_study import parameters_of
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.analysis.style import COLOURS, styled

NAME = "over-parameterised"

_FITTED = 0.98
"""Training accuracy from which a run has fitted its data."""

STATIC_PART = 5

CLAIM = Published("can lead to better generalisation", "text")


@dataclass(frozen=True)
class _Size:
    width: int
    grid: Grid
    steps: int


_SIZES: dict[Budget, _Size] = {
    "tiny": _Size(20, Grid((3.0, 30.0), (100,), 2), 500),
    "small": _Size(500, Grid((3.0, 30.0), (100, 2000), 10), 20_000),
    "full": _Size(5000, Grid((3.0, 10.0, 30.0, 70.0), (100, 500, 2000, 5000), 20), 70_000),
}


def study(size: _Size) -> Study:
    """A wide network, static and with some amplitudes and periods."""
    config = config_of("published-updated", size.steps, STATIC_PART)
    return Study(
        replace(config, model=replace(config.model, widths=(size.width,))),
        (("model.seed", tuple(range(size.grid.seeds))),),
        size.grid.cells(),
        Measures(sharpness=True),
    )


def gain(runs: SpiralRuns, cell: tuple[float, int], *, fitted: bool) -> Interval:
    """Held-out accuracy minus that with the static loss, for the same initial values.

    Args:
        runs: runs of the study.
        cell: amplitude and period.
        fitted: whether to take only pairs in which both runs have fitted their data.
    """
    held_out, training = map(runs.column, ("validation_accuracy", "accuracy"))
    moving, static = runs.cell(*cell), runs.static("gd")
    change = held_out[moving] - held_out[static]
    if fitted:
        both = (training[moving] >= _FITTED) & (training[static] >= _FITTED)
        change = change[both]
    return mean_interval(change, comparisons=len(runs.cells))


def compare(runs: SpiralRuns) -> Iterator[Comparison]:
    """The verdict on the claim by a rule, then each cell."""
    for fitted in (True, False):
        gains = [gain(runs, cell, fitted=fitted) for cell in runs.cells]
        counts = Counter(each.direction for each in gains)
        pairs = "pairs of which both have fitted" if fitted else "all pairs"
        yield Comparison(
            f"cells by held-out accuracy, dynamical minus static, {pairs}",
            CLAIM if fitted else None,
            ", ".join(f"{direction} in {count}" for direction, count in counts.most_common()),
            f"of {len(gains)} cells",
        )
    held_out, training = map(runs.column, ("validation_accuracy", "accuracy"))
    for cell, of_cell in _cells(runs):
        known = training[of_cell][np.isfinite(training[of_cell])]
        yield Comparison(
            f"{cell}: held-out accuracy",
            None,
            mean_interval(held_out[of_cell]).told(),
            f"{int(np.sum(known >= _FITTED))} of {len(known)} have fitted; training accuracy "
            f"{mean_interval(known).told()}",
        )
    for amplitude, period in runs.cells:
        every, both = (gain(runs, (amplitude, period), fitted=f) for f in (False, True))
        yield Comparison(
            f"A = {amplitude:g}, T = {period}: held-out accuracy, dynamical minus static",
            CLAIM,
            f"{both.told(sign=True)}: {both.direction} ({both.size} pairs that have fitted)",
            f"all {every.size} pairs: {every.told(sign=True)}: {every.direction}",
        )


def _cells(runs: SpiralRuns) -> Iterator[tuple[str, np.ndarray]]:
    yield "static loss", runs.static("gd")
    for amplitude, period in runs.cells:
        yield f"A = {amplitude:g}, T = {period}", runs.cell(amplitude, period)


def draw(runs: SpiralRuns) -> Figure:
    """Held-out accuracies of all runs, those that have fitted their data filled."""
    held_out, training = map(runs.column, ("validation_accuracy", "accuracy"))
    with styled():
        figure = Figure(figsize=(6.4, 3.0), layout="constrained")
        ax = figure.subplots()
        labels = []
        for position, (name, of_cell) in enumerate(_cells(runs)):
            values, fitted = held_out[of_cell], training[of_cell] >= _FITTED
            beside = position + np.linspace(-0.22, 0.22, len(values))
            colour = COLOURS[0] if position == 0 else COLOURS[5]
            ax.plot(beside[fitted], values[fitted], "o", color=colour, ms=4)
            ax.plot(beside[~fitted], values[~fitted], "o", color=colour, ms=4, mfc="none")
            mean = mean_interval(values)
            ax.errorbar(
                [position + 0.35],
                [mean.value],
                [[mean.value - mean.low], [mean.high - mean.value]],
                fmt="_",
                color="black",
                lw=1,
            )
            labels.append(name.replace(", ", "\n"))
        ax.set_xticks(range(len(labels)), labels)
        ax.set_ylabel("held-out accuracy")
        return figure


def make(task: Task) -> Page:
    """Trains what is missing, draws, and compares."""
    size = _SIZES[task.budget]
    results = task.swept(study(size))
    runs = SpiralRuns(results)
    return Page(
        name=NAME,
        title=titled("Generalisation of networks with many parameters", results),
        source=PAPER,
        published="The abstract says that in over-parameterised networks dynamical loss functions "
        "can lead to better generalisation. We had no access to the text, and know no number. The "
        "paper's networks for images are not trained on this page.",
        comparisons=tuple(compare(runs)),
        differs=(
            *unfinished(results.complete),
            f"The data are the spiral, {EXAMPLES} examples, not images; the network has width "
            f"{size.width} and {parameters_of(size.width):,} parameters. Amplitudes, periods and "
            "steps are ours.",
            f"A run has fitted with a training accuracy of at least {_FITTED:g}. To generalise "
            "better is a statement on runs that have fitted: pairs of which one has not are told "
            "apart, as there the difference is one of training. Choosing pairs by how they were "
            "trained is a selection; the rows on all pairs are without it.",
            "Differences are paired by the initial values; intervals are Student's, widened for "
            "the number of cells (Bonferroni), so that all cells hold together with 95 %. "
            "Accuracies are not normal, so that this is approximate. A run that diverged has "
            "accuracy 0.",
            f"The last 1/{STATIC_PART} of each run is static.",
        ),
        pictures=(
            Picture(
                task.drawn(draw(runs), NAME),
                "Held-out accuracies: a point for each seed, filled where the data are fitted; "
                "means with 95 % intervals",
            ),
        ),
        made=task.made(NAME, results.provenance, _facts(size, results), results),
    )


def _facts(size: _Size, results: StudyResults) -> dict[str, str]:
    return {
        "schedules": "A = 1; A in "
        + ", ".join(f"{a:g}" for a in size.grid.amplitudes)
        + " with T in "
        + ", ".join(map(str, size.grid.periods)),
        "runs": counted(results.statuses),
        "steps of each": f"{size.steps:,}",
        "held out": f"{FRESH_POINTS:,} fresh points",
        "initial values": f"`{results.study.base.model.init}`",
        "precision": results.study.base.dtype,
        "what would need more": "images and the published network: `cifar10-myrtle5` on a "
        "GPU. `--budget full` here is width 5,000 on the spiral, 340 runs of 70,000 "
        "steps: a GPU, too (not measured).",
    }


REPRODUCTION = Reproduction(
    NAME,
    "held-out accuracy of a wide network on the spiral, dynamical and static",
    make,
    "about 25 min",
)
