"""Sweeps over amplitude and period with the static loss beside them, and their comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.reproduction.page import Comparison, Picture, with_error
from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.analysis.studies.diagram_plots import draw_phase_diagram
from dlf_dynamics.analysis.studies.phase_diagram import PhaseDiagram, phase_diagram
from dlf_dynamics.analysis.studies.study import Overrides
from dlf_dynamics.analysis.studies.studyfile import StudyResults

_SIGNIFICANT = 2.0
"""Combined standard errors by which a cell must differ from the static loss."""


_QUANTITIES = {"accuracy": "training accuracy", "validation_accuracy": "validation accuracy"}


@dataclass(frozen=True)
class Grid:
    """Amplitudes, periods and seeds.

    Attributes:
        amplitudes: amplitudes above 1; the static loss is added.
        periods: periods, in steps of a pulse.
        seeds: number of seeds of the initial parameters.
    """

    amplitudes: tuple[float, ...]
    periods: tuple[int, ...]
    seeds: int

    def cells(self) -> tuple[Overrides, ...]:
        """The keys of each cell. The static loss is a single cell, as it has no period."""
        cells = [(1.0, self.periods[0])]
        cells += [(amplitude, period) for amplitude in self.amplitudes for period in self.periods]
        return tuple(
            (("schedule.amplitude", amplitude), ("schedule.period", period))
            for amplitude, period in cells
        )

    @property
    def told(self) -> str:
        """The grid in words."""
        amplitudes = ", ".join(f"{a:g}" for a in (1, *self.amplitudes))
        periods = ", ".join(map(str, self.periods))
        return f"A in {{{amplitudes}}}, T in {{{periods}}}, seeds: {self.seeds}"


def diagrams_of(results: StudyResults) -> list[tuple[str, PhaseDiagram]]:
    """Training and validation accuracy by amplitude and period, each with its name in words."""
    return [(words, phase_diagram(results, name)) for name, words in _QUANTITIES.items()]


def pictures_of(
    diagrams: Sequence[tuple[str, PhaseDiagram]], task: Task, name: str
) -> tuple[Picture, ...]:
    """Draws the diagrams; validation, whose file has the name of the page, comes first."""
    files = (f"{name}.training", name)
    pictures = [
        Picture(task.drawn(draw_phase_diagram(diagram), file), f"{words} by amplitude and period")
        for file, (words, diagram) in zip(files, diagrams, strict=True)
    ]
    return tuple(pictures[::-1])


def above_static(diagram: PhaseDiagram) -> Bool[np.ndarray, "ny nx"]:
    """Whether a cell's mean is above that of the static runs by more than _SIGNIFICANT errors."""
    with np.errstate(invalid="ignore"):
        return diagram.difference > _SIGNIFICANT * diagram.difference_error


def compare(diagrams: Sequence[tuple[str, PhaseDiagram]]) -> Iterator[Comparison]:
    """Rows on the static loss, on the best cell, and on how many cells are better.

    Args:
        diagrams: each with the name of its quantity in words.
    """
    for what, diagram in diagrams:
        first = np.flatnonzero(diagram.static_count > 0)[0]
        static, error = float(diagram.static[first]), float(diagram.static_error[first])
        yield Comparison(
            f"{what}: static loss (A = 1)",
            None,
            _told(static, error),
            f"runs: {diagram.static_count[first]}",
        )
        yield _best(what, diagram)
        known = int(np.sum(np.isfinite(diagram.difference_error)))
        count = int(np.sum(above_static(diagram)))
        yield Comparison(
            f"{what}: cells with A > 1 above the static loss",
            None,
            f"{count} of {known} ({count / known:.0%})" if known else "no errors, one run a cell",
            f"by more than {_SIGNIFICANT:g} combined standard errors",
        )


def _best(what: str, diagram: PhaseDiagram) -> Comparison:
    mean: Float[np.ndarray, "ny nx"] = np.where(np.isfinite(diagram.mean), diagram.mean, -np.inf)
    row, column = np.unravel_index(int(np.argmax(mean)), mean.shape)
    value, error, more, combined = (
        float(values[row, column])
        for values in (
            diagram.mean,
            diagram.standard_error,
            diagram.difference,
            diagram.difference_error,
        )
    )
    difference = f"{more:+.3f} from the static loss"
    if np.isfinite(combined):
        difference += f", combined standard error {combined:.3f}"
    return Comparison(
        f"{what}: best cell, A = {diagram.y[row]:g}, T = {diagram.x[column]:g}",
        None,
        _told(value, error),
        difference,
    )


def _told(value: float, error: float) -> str:
    return with_error(value, error) if np.isfinite(error) else f"{value:.3f}"
