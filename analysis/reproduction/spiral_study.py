"""The study of the spiral by amplitude and period, which several pages read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.reproduction.grids import Grid
from dlf_dynamics.analysis.reproduction.task import Budget, Task
from dlf_dynamics.analysis.studies.study import Measures, Overrides, Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.presets import PRESETS

STATIC_PART = 14
"""The last one of so many equal parts of a run is static, as in the headline run."""

FRESH_POINTS = 3000
"""Points from the same distribution on which the networks are validated."""

CURVE_POINTS = 15

OTHERS: tuple[tuple[str, float], ...] = (("heavy-ball", 0.1), ("adam", 0.01))
"""Optimizers that train with the static loss as well, and their learning rates."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        grid: amplitudes, periods and seeds.
        steps: of each run.
    """

    grid: Grid
    steps: int


SIZES: dict[Budget, Size] = {
    "tiny": Size(Grid((10.0, 70.0), (100, 500), 1), 1500),
    "small": Size(Grid((3.0, 10.0, 30.0, 70.0), (10, 50, 250, 1000, 5000), 10), 70_000),
    "full": Size(
        Grid(
            tuple(10.0 * k for k in range(1, 16)),
            (30, 53, 94, 166, 294, 521, 923, 1634, 2893, 5123, 9072),
            20,
        ),
        70_000,
    ),
}


def study(size: Size) -> Study:
    """The headline run with other amplitudes and periods, and static with other optimizers."""
    base = PRESETS["published"]
    static_from = size.steps - size.steps // STATIC_PART
    return Study(
        replace(
            base,
            data=replace(base.data, validation=FRESH_POINTS),
            schedule=replace(base.schedule, counting="exact", static_from=static_from),
            steps=size.steps,
            # Odd, or all points of the curves would be on one branch of a period-2 orbit.
            checkpoint_every=501,
        ),
        (("model.seed", tuple(range(size.grid.seeds))),),
        (*size.grid.cells(), *map(_static, OTHERS)),
        measures(),
    )


def measures() -> Measures:
    """Curves, with the sharpness."""
    return Measures(curve_points=CURVE_POINTS, sharpness=True)


def _static(optimizer: tuple[str, float]) -> Overrides:
    name, rate = optimizer
    return (
        ("schedule.amplitude", 1.0),
        ("optimizer.name", name),
        ("optimizer.learning_rate", rate),
    )


PAGES = ("spiral-phase-diagram", "instability-onsets")
"""Folders of the pages that read this study; the first that is made does its runs."""


def swept(task: Task) -> StudyResults:
    """The outcomes; those of a page beside this one are used."""
    return task.swept(study(SIZES[task.budget]), beside=PAGES)


@dataclass(frozen=True)
class SpiralRuns:
    """The runs of the study by what they are of.

    Attributes:
        results: of the study.
    """

    results: StudyResults

    @cached_property
    def amplitudes(self) -> list[float]:
        """Those above 1, sorted."""
        values = self.results.study.values("schedule.amplitude")
        return sorted({value for value in values.tolist() if value > 1})

    @cached_property
    def periods(self) -> list[int]:
        """Of the runs with these amplitudes, sorted."""
        values = self.results.study.values("schedule.period")
        moving = self.results.study.values("schedule.amplitude") > 1
        return sorted(set(values[moving].tolist()))

    @property
    def cells(self) -> list[tuple[float, int]]:
        """Amplitudes and periods."""
        return [(amplitude, period) for amplitude in self.amplitudes for period in self.periods]

    def cell(self, amplitude: float, period: int) -> Bool[np.ndarray, " runs"]:
        """The runs of a cell, in the order of the seeds."""
        values = self.results.study.values
        return (values("schedule.amplitude") == amplitude) & (values("schedule.period") == period)

    def static(self, optimizer: str) -> Bool[np.ndarray, " runs"]:
        """The runs with the static loss and this optimizer, in the order of the seeds."""
        static = self.results.study.values("schedule.amplitude") == 1
        return static & (self.results.study.values("optimizer.name") == optimizer)

    def column(self, name: str) -> Float[np.ndarray, " runs"]:
        """A number of each run; an accuracy of a run that diverged is 0, not left out."""
        return column_of(self.results, name)


def column_of(results: StudyResults, name: str) -> Float[np.ndarray, " runs"]:
    """A number of each run of a study; an accuracy of a run that diverged is 0, not left out.

    NaN stands for runs that failed, or are not done.
    """
    diverged = np.array([status == "diverged" for status in results.statuses])
    values = results.columns[name]
    return np.where(diverged, 0.0, values) if name.endswith("accuracy") else values
