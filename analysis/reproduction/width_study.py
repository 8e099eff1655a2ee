"""Cross entropy by width and learning rate, static and dynamical: the study of two pages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.reproduction.spiral_study import column_of
from dlf_dynamics.analysis.reproduction.task import Budget, Task
from dlf_dynamics.analysis.studies.histories import curve_steps
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.config import RunConfig
from dlf_dynamics.presets import PRESETS

AMPLITUDE, PERIOD = 30.0, 2000

STATIC_PART = 5
"""The last one of so many equal parts of a run is static, and tells whether it is at a plateau."""

PLATEAU = 0.01
"""Change of the held-out accuracy between the halves of the static part, at most."""

PLATEAU_SHARE = 0.9
"""Part of the runs that must be at a plateau for something to be said of the end of learning."""

FRESH_POINTS = 3000

PAGES = ("under-parameterised", "width-learning-rate")
"""Folders of the pages that read the study of the cross entropy."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        widths: of the study of the cross entropy.
        rates: its learning rates.
        seeds: of the initial values.
        steps: of each run.
        every: steps between checkpoints, of which the curves are made; odd, or all would be on one
            branch of a period-2 orbit.
        points: of the curves.
    """

    widths: tuple[int, ...]
    rates: tuple[float, float]
    seeds: int
    steps: int
    every: int
    points: int = 35


SIZES: dict[Budget, Size] = {
    "tiny": Size((20, 50, 100), (0.3, 1.0), 2, 500, 39, 13),
    "small": Size((5, 10, 20, 50, 100), (0.3, 1.0), 20, 60_000, 1715),
    "full": Size((3, 5, 10, 20, 50, 100, 200), (0.3, 1.0), 50, 200_000, 5715),
}


def base_of(size: Size) -> RunConfig:
    """What all runs have in common."""
    base = PRESETS["published-updated"]
    schedule = replace(
        base.schedule,
        period=PERIOD,
        counting="exact",
        static_from=size.steps - size.steps // STATIC_PART,
    )
    return replace(
        base,
        data=replace(base.data, validation=FRESH_POINTS),
        schedule=schedule,
        steps=size.steps,
        checkpoint_every=size.every,
    )


def study(size: Size) -> Study:
    """Each width at each learning rate, static and dynamical."""
    return Study(
        base_of(size),
        (
            ("model.widths", tuple((width,) for width in size.widths)),
            ("optimizer.learning_rate", size.rates),
            ("schedule.amplitude", (1.0, AMPLITUDE)),
            ("model.seed", tuple(range(size.seeds))),
        ),
        measures=measures(size),
    )


def measures(size: Size) -> Measures:
    """Curves, with the sharpness."""
    return Measures(curve_points=size.points, sharpness=True)


def swept(task: Task) -> StudyResults:
    """The outcomes; those of a page beside this one are used."""
    return task.swept(study(SIZES[task.budget]), "cross-entropy", PAGES)


@dataclass(frozen=True)
class WidthRuns:
    """Runs of one study of these, by width, rate and amplitude.

    Attributes:
        results: of the study.
    """

    results: StudyResults

    def cell(
        self, width: int, rate: float, amplitude: float, **keys: str
    ) -> Bool[np.ndarray, " runs"]:
        """The runs with these, in the order of the seeds."""
        values = self.results.study.values
        return (
            (values("model.widths") == str(width))
            & (values("optimizer.learning_rate") == rate)
            & (values("schedule.amplitude") == amplitude)
            & np.all([values(k.replace("_", ".")) == v for k, v in keys.items()], axis=0)
        )

    def column(self, name: str) -> Float[np.ndarray, " runs"]:
        """A number of each run; an accuracy of a run that diverged is 0."""
        return column_of(self.results, name)

    def plateau(self) -> Float[np.ndarray, " runs"]:
        """1 for runs at a plateau, 0 for others and those that diverged, NaN for those not done.

        The mean held-out accuracies of the two halves of the static part differ by PLATEAU at most.
        """
        results = self.results
        assert results.curves is not None
        accuracy = results.curves[..., CURVES.index("validation_accuracy")]
        steps = curve_steps(results.study.base, accuracy.shape[1]) / results.study.base.steps
        begin = 1 - 1 / STATIC_PART
        early = (steps >= begin) & (steps < begin + 0.5 / STATIC_PART)
        late = steps >= begin + 0.5 / STATIC_PART
        change = np.mean(accuracy[:, late], axis=1) - np.mean(accuracy[:, early], axis=1)
        known = np.array([status in ("complete", "diverged") for status in results.statuses])
        with np.errstate(invalid="ignore"):
            return np.where(known, (np.abs(change) <= PLATEAU).astype(float), np.nan)


def parameters_of(width: int) -> int:
    """Weights and biases of the network on the spiral: two inputs, three outputs."""
    return 6 * width + 3
