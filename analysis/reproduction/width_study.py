"""Cross entropy by width and learning rate, static and dynamical: a study for two pages."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.reproduction.spiral_study import FRESH_POINTS, column_of, config_of
from dlf_dynamics.analysis.reproduction.task import Budget, Task
from dlf_dynamics.analysis.studies.histories import curve_steps
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.config import RunConfig

AMPLITUDE, PERIOD = 30.0, 2000

STATIC_PART = 5
"""The last 1/5 of a run is static, and shows whether the run is at a plateau."""

PLATEAU = 0.01
"""Largest change of the held-out accuracy between the halves of the static part at a plateau."""

PLATEAU_SHARE = 0.9
"""Fraction of runs at a plateau from which a difference is one at the end of learning."""

PAGES = ("under-parameterised", "width-learning-rate")
"""Folders of the pages that read the study of the cross entropy."""


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        widths: widths in the study of the cross entropy.
        rates: learning rates in it.
        seeds: number of seeds of the initial values.
        steps: steps of each run.
        every: steps between checkpoints, from which the curves are made; odd, or all points would
            be on one branch of a period-2 orbit.
        points: points of each curve.
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
    """The configuration that all runs have in common."""
    config = config_of("published-updated", size.steps, STATIC_PART, size.every)
    return replace(config, schedule=replace(config.schedule, period=PERIOD))


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
    """The outcomes of the study, from the folder of another page where they are there."""
    return task.swept(study(SIZES[task.budget]), "cross-entropy", PAGES)


@dataclass(frozen=True)
class WidthRuns:
    """The runs of a study, by width, rate and amplitude.

    Attributes:
        results: outcomes of the study.
    """

    results: StudyResults

    def cell(
        self, width: int, rate: float, amplitude: float, loss: str = "cross-entropy"
    ) -> Bool[np.ndarray, " runs"]:
        """The runs with these, in the order of the seeds."""
        values = self.results.study.values
        return (
            (values("model.widths") == str(width))
            & (values("optimizer.learning_rate") == rate)
            & (values("schedule.amplitude") == amplitude)
            & (values("loss.name") == loss)
        )

    def column(self, name: str) -> Float[np.ndarray, " runs"]:
        """A number of each run; an accuracy of a run that diverged is 0."""
        return column_of(self.results, name)

    def plateau(self) -> Float[np.ndarray, " runs"]:
        """1 for runs at a plateau, 0 for others and those that diverged, else NaN.

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


def conditions(comparisons: int) -> tuple[str, ...]:
    """Caveats on intervals and plateaus."""
    return (
        "Differences are those of pairs of runs with the same initial values and data; pairs at "
        "different rates are never put together. Their intervals are Student's, widened for "
        f"{comparisons} comparisons (Bonferroni), so that all hold together with 95 %. Accuracies "
        "are not normal, so that this is approximate.",
        f"The last 1/{STATIC_PART} of each run is static. A run is at a plateau where the mean "
        f"held-out accuracies ({FRESH_POINTS:,} fresh points) of the halves of this part differ by "
        f"{PLATEAU:g} at most.",
        "A run that diverged has accuracy 0, is at no plateau, and is not left out.",
    )
