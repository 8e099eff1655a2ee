"""The study of the spiral by amplitude and period, which several pages read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.reproduction.grids import Grid
from dlf_dynamics.analysis.reproduction.task import Budget, Task
from dlf_dynamics.analysis.studies.statistics import mean_interval
from dlf_dynamics.analysis.studies.study import Measures, Overrides, Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.config import RunConfig
from dlf_dynamics.presets import PRESETS

STATIC_PART = 14
"""The last 1/14 of a run is static, as in the headline run."""

EXAMPLES = PRESETS["published"].data.points_per_class * PRESETS["published"].data.num_classes
"""Points of the spiral that the networks are trained on."""

FRESH_POINTS = 3000
"""Points from the same distribution on which the networks are validated."""

CURVE_POINTS = 15

OTHERS: tuple[tuple[str, float], ...] = (("heavy-ball", 0.1), ("adam", 0.01))
"""Other optimizers that train with the static loss, and their learning rates."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        grid: amplitudes, periods and seeds.
        steps: steps of each run.
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


def config_of(preset: str, steps: int, static_part: int, checkpoint_every: int = 501) -> RunConfig:
    """A preset with fresh points for validation, and pulses of exactly T steps.

    Args:
        preset: name of the preset.
        steps: number of updates.
        static_part: the last 1/static_part of the run is static.
        checkpoint_every: steps between two checkpoints, from which curves are made; odd, or all
            points would be on one branch of a period-2 orbit.
    """
    base = PRESETS[preset]
    static_from = steps - steps // static_part
    return replace(
        base,
        data=replace(base.data, validation=FRESH_POINTS),
        schedule=replace(base.schedule, counting="exact", static_from=static_from),
        steps=steps,
        checkpoint_every=checkpoint_every,
    )


def study(size: Size) -> Study:
    """The headline run with other amplitudes and periods, and static with other optimizers."""
    return Study(
        config_of("published", size.steps, STATIC_PART),
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
"""Folders of the pages that share this study; the page that is made first does its runs."""


def swept(task: Task) -> StudyResults:
    """The outcomes of the study, from the folder of another page where they are there."""
    return task.swept(study(SIZES[task.budget]), beside=PAGES)


@dataclass(frozen=True)
class SpiralRuns:
    """The runs of the study, by amplitude and period or by optimizer.

    Attributes:
        results: outcomes of the study.
    """

    results: StudyResults

    @cached_property
    def amplitudes(self) -> list[float]:
        """Amplitudes above 1, sorted."""
        values = self.results.study.values("schedule.amplitude")
        return sorted({value for value in values.tolist() if value > 1})

    @cached_property
    def periods(self) -> list[int]:
        """Periods of the runs with these amplitudes, sorted."""
        values = self.results.study.values("schedule.period")
        moving = self.results.study.values("schedule.amplitude") > 1
        return sorted(set(values[moving].tolist()))

    @property
    def cells(self) -> list[tuple[float, int]]:
        """All pairs of amplitude and period."""
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

    def means(self, values: Float[np.ndarray, " runs"]) -> Float[np.ndarray, "amplitudes periods"]:
        """The mean over the seeds in each cell of a number of each run."""
        means = [mean_interval(values[self.cell(*cell)]).value for cell in self.cells]
        return np.array(means).reshape(len(self.amplitudes), len(self.periods))


def column_of(results: StudyResults, name: str) -> Float[np.ndarray, " runs"]:
    """A number of each run of a study; an accuracy of a run that diverged is 0, not left out.

    Runs that failed or are not done have NaN.
    """
    diverged = np.array([status == "diverged" for status in results.statuses])
    values = results.columns[name]
    return np.where(diverged, 0.0, values) if name.endswith("accuracy") else values
