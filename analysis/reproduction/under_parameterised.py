"""Networks with few parameters, dynamical against static (arXiv 2102.03793)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from dlf_dynamics.analysis.reproduction.maps import draw_bands
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, titled, unfinished
from dlf_dynamics.analysis.reproduction.published import PAPER, Published
from dlf_dynamics.analysis.reproduction.spiral_study import EXAMPLES
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task, counted
from dlf_dynamics.analysis.reproduction.width_study import (
    AMPLITUDE,
    PERIOD,
    SIZES,
    Size,
    WidthRuns,
    conditions,
    parameters_of,
    swept,
)
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval, share_interval
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.analysis.style import styled

NAME = "under-parameterised"

LEARNED = 0.95
"""Training accuracy above which a run has learned."""

CLAIM = Published("can lead to successful training where the static loss fails", "text")

_NAMES = {1.0: "static", AMPLITUDE: "dynamical"}


def learned(runs: WidthRuns, width: int, rate: float, amplitude: float) -> Interval:
    """Fraction of the runs that learn, with its exact interval."""
    accuracy = runs.column("accuracy")[runs.cell(width, rate, amplitude)]
    known = accuracy[np.isfinite(accuracy)]
    return share_interval(int(np.sum(known > LEARNED)), len(known))


def gain(runs: WidthRuns, size: Size, width: int, rate: float) -> Interval:
    """Training accuracy, dynamical minus static, for the same initial values."""
    column = runs.column("accuracy")
    moving, static = (column[runs.cell(width, rate, a)] for a in (AMPLITUDE, 1.0))
    return mean_interval(moving - static, comparisons=len(size.widths) * len(size.rates))


def compare(runs: WidthRuns, size: Size) -> Iterator[Comparison]:
    """Training accuracy and fractions that learn, for each width at each rate."""
    plateau = runs.plateau()
    for width in size.widths:
        for rate in size.rates:
            difference = gain(runs, size, width, rate)
            static, moving = (learned(runs, width, rate, a) for a in (1.0, AMPLITUDE))
            settled = [
                np.nansum(plateau[runs.cell(width, rate, amplitude)])
                for amplitude in (1.0, AMPLITUDE)
            ]
            yield Comparison(
                f"width {width} ({parameters_of(width)} parameters), rate {rate:g}: training "
                "accuracy, dynamical minus static",
                CLAIM if parameters_of(width) < EXAMPLES else None,
                f"{difference.told(sign=True)}: {difference.direction}",
                f"learned: static {static.told(2)}, dynamical {moving.told(2)}; at a plateau: "
                f"{settled[0]:.0f} and {settled[1]:.0f} of {difference.size}",
            )


def draw(runs: WidthRuns, size: Size) -> Figure:
    """Mean training accuracies and fractions that learn, against the width."""
    with styled():
        figure = Figure(figsize=(7.0, 4.6), layout="constrained")
        axes = figure.subplots(2, len(size.rates), sharex=True, sharey="row", squeeze=False)
        column = runs.column("accuracy")
        for (upper, lower), rate in zip(axes.T, size.rates, strict=True):
            for number, (amplitude, name) in enumerate(_NAMES.items()):
                cells = [runs.cell(width, rate, amplitude) for width in size.widths]
                shares = [learned(runs, width, rate, amplitude) for width in size.widths]
                means = [mean_interval(column[cell]) for cell in cells]
                draw_bands(upper, size.widths, means, name, 5 * number)
                draw_bands(lower, size.widths, shares, name, 5 * number)
            upper.set(title=f"learning rate {rate:g}", xscale="log")
            lower.set(xlabel="width", ylim=(-0.02, 1.02))
            lower.set_xticks(size.widths, map(str, size.widths))
        axes[0, 0].set_ylabel("training accuracy")
        axes[1, 0].set_ylabel(f"part of the runs above {LEARNED:g}")
        axes[0, 0].legend(frameon=False)
        return figure


def verdict(runs: WidthRuns, size: Size) -> Comparison:
    """The verdict on networks with fewer parameters than examples, by a rule.

    The claim holds where the interval of the gain is above 0 and more runs learn; it is
    contradicted where the interval is below 0.
    """
    small = [width for width in size.widths if parameters_of(width) < EXAMPLES]
    gains = {(w, r): gain(runs, size, w, r) for w in small for r in size.rates}
    directions = [each.direction for each in gains.values()]
    succeeds = [
        cell
        for cell, each in gains.items()
        if each.direction == "higher"
        and learned(runs, *cell, AMPLITUDE).value > learned(runs, *cell, 1.0).value
    ]
    told = ", ".join(f"width {width} at rate {rate:g}" for width, rate in succeeds)
    return Comparison(
        f"fewer parameters than the {EXAMPLES} examples: cells in which the dynamical loss trains "
        "better and more runs learn",
        CLAIM,
        f"{len(succeeds)} of {len(gains)}" + (f": {told}" if told else ""),
        f"training accuracy higher in {directions.count('higher')}, lower in "
        f"{directions.count('lower')}, not told apart in {directions.count('not told apart')}"
        + (
            f", too few runs in {directions.count('too few runs')}"
            if "too few runs" in directions
            else ""
        ),
    )


def make(task: Task) -> Page:
    """Trains what is missing, draws, and compares."""
    size, results = SIZES[task.budget], swept(task)
    runs = WidthRuns(results)
    return Page(
        name=NAME,
        title=titled("Networks with few parameters", results),
        source=PAPER,
        published="The abstract says that in under-parameterised networks dynamical loss functions "
        "can lead to successful training for networks that fail to find a deep minimum of the "
        "standard cross entropy. We had no access to the text, and know neither widths nor "
        "numbers.",
        comparisons=(verdict(runs, size), *compare(runs, size)),
        differs=(
            *unfinished(results.complete),
            "Widths, learning rates, amplitude and period are ours. A network of width W has 6 W "
            f"+ 3 parameters for {EXAMPLES} examples; those with fewer parameters than examples "
            "are called under-parameterised here.",
            f"A run has learned with a training accuracy above {LEARNED:g}; shares have exact 95 % "
            "intervals (Clopper and Pearson), one by one.",
            *conditions(len(size.widths) * len(size.rates)),
        ),
        pictures=(
            Picture(
                task.drawn(draw(runs, size), NAME),
                "Training accuracy and part of the runs that learn, with 95 % intervals over the "
                "seeds",
            ),
        ),
        made=task.made(NAME, results.provenance, _facts(size, results), results),
    )


def _facts(size: Size, results: StudyResults) -> dict[str, str]:
    return {
        "widths": ", ".join(map(str, size.widths)),
        "learning rates": ", ".join(f"{rate:g}" for rate in size.rates),
        "schedule": f"A = 1 and {AMPLITUDE:g}, T = {PERIOD}",
        "seeds": str(size.seeds),
        "runs": counted(results.statuses),
        "steps of each": f"{size.steps:,}",
        "initial values": f"`{results.study.base.model.init}`",
        "precision": results.study.base.dtype,
        "what would need more": "`--budget full`: seven widths, 50 seeds and 200,000 steps "
        "are about twelve times this cost. A GPU trains many such networks at a time (not "
        "measured).",
    }


REPRODUCTION = Reproduction(
    NAME,
    "who learns with few parameters, by width and learning rate, 20 seeds",
    make,
    "about 30 min",
)
