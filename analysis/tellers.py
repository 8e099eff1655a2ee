"""Text, figures and tables of results that no analysis of the registry has made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dlf_dynamics.errors import ConfigError, shown
from dlf_dynamics.labels import Axis, Field, Group, descriptions, units_of
from dlf_dynamics.shown import Teller

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.table import Table

    from dlf_dynamics.analysis.studies.studyfile import StudyResults
    from dlf_dynamics.run import Run

_RANGES = (
    *("accuracy", "validation_accuracy", "instabilities", "realized_above"),
    *("sharpness", "ntk"),
)
"""Columns of a study whose least and largest values the summary gives."""


_FEW = 10
"""Eigenvalues that a summary lists."""


def _refuse(options: dict[str, Any]) -> None:
    """Raises ConfigError where there are any."""
    for name in options:
        raise ConfigError(f"option {shown(name)} is not known; expected none")


class RunTeller(Teller):
    """Describes a run by its file alone."""

    def lines(self, run: Run | None, found: Run) -> list[str | Table]:
        """Its file, its outcome, and what was trained."""
        return [
            f"{found.path}: {found.status}, {found.outcome}",
            found.subject,
            *found.source.caution,
        ]

    def drawn(self, run: Run | None, found: Run, **options: Any) -> Iterator[tuple[str, Figure]]:
        """The run, with `zoom` into some steps."""
        from dlf_dynamics.analysis.spectra.analysis import SpectrumAnalysis, SpectrumView

        zoom = options.pop("zoom", None)
        _refuse(options)
        yield from SpectrumAnalysis().without(found, SpectrumView(zoom=zoom))

    def groups(self, found: Run) -> list[Group]:
        """The scalars, and what was evaluated at the checkpoints."""
        from dlf_dynamics.run_table import groups_of_run

        return groups_of_run(found)


class StudyTeller(Teller):
    """Describes a study by the outcomes of its runs."""

    def lines(self, run: Run | None, found: StudyResults) -> list[str | Table]:
        """How many runs there are, over what, and how far their results reach."""
        keys = [
            f"{key} ({len(np.unique(found.study.values(key)))} values)" for key in found.study.keys
        ]
        lines: list[str | Table] = [f"{found.path}: {found.counts}", f"over {', '.join(keys)}"]
        for name in _RANGES:
            known = found.columns[name][np.isfinite(found.columns[name])]
            if len(known):
                lines.append(f"{name} {known.min():.4g} to {known.max():.4g} in {len(known)} runs")
        return lines

    def drawn(
        self, run: Run | None, found: StudyResults, **options: Any
    ) -> Iterator[tuple[str, Figure]]:
        """Phase diagrams and curves of the requested `quantities`."""
        from dlf_dynamics.analysis.studies.study_plots import draw_study

        quantities = options.pop("quantities", None)
        _refuse(options)
        yield from draw_study(found, quantities).items()

    def attributes(self, found: StudyResults) -> dict[str, Any]:
        """When it was made, and by what."""
        return {"created": found.created, "provenance": dict(found.provenance)}

    def groups(self, found: StudyResults) -> list[Group]:
        """A row for each run: its configuration, what became of it, and what was measured."""
        from dlf_dynamics.analysis.studies.outcome import CURVES, Outcome

        told = descriptions(Outcome)
        keys = {key: Field(_texts(found.study.values(key)), ("runs",)) for key in found.study.keys}
        statuses = np.array([status or "not done" for status in found.statuses])
        fields = keys | {
            "status": Field(statuses, ("runs",), "1", told["status"]),
            "message": Field(np.array(found.messages), ("runs",), "1", told["message"]),
        }
        fields |= {
            name: Field(values, ("runs",), units_of(Outcome, name), told[name])
            for name, values in found.columns.items()
        }
        axes = {"runs": Axis(len(statuses), np.arange(len(statuses)), "1", "number of the run")}
        groups = [Group("", axes, fields, {"study": found.study.to_json()})]
        if found.curves is not None:
            fractions = np.linspace(0.0, 1.0, found.curves.shape[1])
            inner = {
                "points": Axis(len(fractions), fractions, "fraction", "of the run's steps"),
                "quantities": Axis(len(CURVES), np.array(CURVES)),
            }
            curves = Field(found.curves, ("runs", "points", "quantities"), "1", told["curves"])
            groups.append(Group("along/", inner, {"curves": curves}, {}))
        return groups

    def frames(self, found: StudyResults) -> dict[str, DataFrame]:
        """Runs first, then their curves."""
        names = {"runs": "runs", "along": "curves"}
        return {names[name]: frame for name, frame in super().frames(found).items()}


def _texts(values: np.ndarray) -> np.ndarray:
    """Texts of a fixed length, as they are written."""
    return values if values.dtype.kind in "iufb" else values.astype(str)


class MeasurementTeller(Teller):
    """Describes what was measured at one point."""

    def lines(self, run: Run | None, found: Any) -> list[str | Table]:
        """Each eigenvalue with what is certain of it, the first ones of many."""
        from dlf_dynamics.analysis.spectra.oneshot_results import Measurement

        if isinstance(found, Measurement):
            return [str(found)]
        lines: list[str | Table] = []
        for row in _rows(found)[:_FEW]:
            name, end = ("eigenvalue", "") if row["converged"] else ("Ritz value", "not ")
            low, high = row["interval_lower"], row["interval_upper"]
            lines.append(f"{name} {row['value']:g} in [{low:g}, {high:g}], {end}converged")
        more = len(found.eigenvalues) - _FEW
        return [*lines, f"and {more} more"] if more > 0 else lines

    def drawn(self, run: Run | None, found: Any, **options: Any) -> Iterator[tuple[str, Figure]]:
        """Eigenvalues with their intervals, beside the threshold where there is one."""
        from dlf_dynamics.analysis.spectra.measurement_plots import measurement_figure

        _refuse(options)
        yield "", measurement_figure(found)

    def groups(self, found: Any) -> list[Group]:
        """All but eigenvectors, which have the form of the parameters."""
        (group,) = super().groups(found)
        left_out = ("eigenvectors", "layout")
        rest = {name: v for name, v in group.settings.items() if name not in left_out}
        return [dataclasses.replace(group, settings=rest)]

    def frames(self, found: Any) -> dict[str, DataFrame]:
        """The eigenvalues, a row each."""
        from dlf_dynamics.trees import required

        return {"eigenvalues": required("pandas").DataFrame(_rows(found))}


def _rows(found: Any) -> list[dict[str, Any]]:
    """What is known of each eigenvalue."""
    from dlf_dynamics.analysis.spectra.oneshot_results import Measurement, Stability

    if isinstance(found, Measurement):
        row = dataclasses.asdict(found)
        row["interval_lower"], row["interval_upper"] = row.pop("interval")
        return [row | ({"verdict": found.verdict} if isinstance(found, Stability) else {})]
    names = ("value", "residual", "converged")
    columns = (found.eigenvalues.tolist(), found.residuals.tolist(), found.converged.tolist())
    ends = [{"interval_lower": low, "interval_upper": high} for low, high in found.intervals]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return [row | end for row, end in zip(rows, ends, strict=True)]
