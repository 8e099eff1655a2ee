"""Phase diagrams of a study: means over the seeds on two axes, compared with the static loss."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.studies.outcome import NUMBERS
from dlf_dynamics.analysis.studies.selection import (
    AMPLITUDE,
    SCHEDULE,
    Selection,
    choose_axes,
    complete_runs,
    require_single,
    select,
)
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.reprs import brief


@dataclass(frozen=True)
class PhaseDiagram:
    """One number of each run, averaged over the seeds in each cell of two axes.

    Only complete runs in which the number is finite enter a mean. A run that diverged has no
    accuracy, and leaving it out flatters the cell: `missing` counts it, and figures mark the cell.

    Attributes:
        quantity: name of the number, one of `NUMBERS`.
        x_key: dotted key of the columns.
        y_key: dotted key of the rows; none where there is one row only.
        x: values of the columns, sorted, shape (nx,): numbers, or text such as "100-50".
        y: values of the rows, sorted, shape (ny,); one NaN without `y_key`.
        fixed: the keys that were fixed, and their values.
        mean: shape (ny, nx); NaN where no run entered.
        standard_error: standard error of the mean, s/√n with s² of n - 1; NaN for n < 2.
        count: n, the runs that entered.
        missing: the cell's other runs: not made yet, failed, diverged or without this number.
        reference: mean of the static runs that each cell is compared with, shape (ny, nx).
        reference_error: its standard error.
        static: the same for each column, shape (nx,); NaN where it depends on the row as well, that
            is for rows of anything but the amplitude.
        static_error: its standard error.
        static_count: independent static runs that entered; 0 where `static` is NaN.
        static_missing: static runs that did not.
    """

    quantity: str
    x_key: str
    y_key: str | None
    x: np.ndarray
    y: np.ndarray
    fixed: dict[str, Any]
    mean: Float[np.ndarray, "ny nx"]
    standard_error: Float[np.ndarray, "ny nx"]
    count: Int[np.ndarray, "ny nx"]
    missing: Int[np.ndarray, "ny nx"]
    reference: Float[np.ndarray, "ny nx"]
    reference_error: Float[np.ndarray, "ny nx"]
    static: Float[np.ndarray, " nx"]
    static_error: Float[np.ndarray, " nx"]
    static_count: Int[np.ndarray, " nx"]
    static_missing: Int[np.ndarray, " nx"]
    __repr__ = brief

    @property
    def difference(self) -> Float[np.ndarray, "ny nx"]:
        """The mean minus that of the static runs, `mean` - `reference`."""
        return self.mean - self.reference

    @property
    def difference_error(self) -> Float[np.ndarray, "ny nx"]:
        """The errors of both, added in quadrature as those of independent runs."""
        return np.hypot(self.standard_error, self.reference_error)

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary for each cell, row by row: the table to print or to write as CSV.

        Its keys are those of the axes and `fixed`, then `quantity`, `mean`, `standard_error`,
        `runs`, `missing`, `static`, `static_error`, `difference` and `difference_error`.
        """
        numbers = {
            "mean": self.mean,
            "standard_error": self.standard_error,
            "runs": self.count,
            "missing": self.missing,
            "static": self.reference,
            "static_error": self.reference_error,
            "difference": self.difference,
            "difference_error": self.difference_error,
        }
        table = []
        for row, column in np.ndindex(*self.mean.shape):
            labels = {} if self.y_key is None else {self.y_key: self.y[row].item()}
            labels |= {self.x_key: self.x[column].item(), **self.fixed, "quantity": self.quantity}
            cell = {name: array[row, column].item() for name, array in numbers.items()}
            table.append(labels | cell)
        return table


def phase_diagram(
    results: StudyResults,
    quantity: str,
    *,
    x: str | None = None,
    y: str | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> PhaseDiagram:
    """Averages a number over the seeds, on the axes x and y.

    Runs with amplitude 1, or the schedule `static`, are no cells but what the cells are compared
    with. No key of the schedule has an effect on them. A cell is compared with the static runs that
    share all its other keys: with those that have its own period, if there are such, else with all
    of them. Runs that differ in nothing that matters to them, as static
    ones with different periods do, count as one.

    Args:
        results: results of the study.
        quantity: a name of `NUMBERS`.
        x: key of the columns. By default the axes are x = period and y = amplitude when both vary,
            else the first two keys that vary and are not seeds; one row, when only one does.
        y: key of the rows.
        fixed: values of the keys that are neither axes nor seeds.

    Raises:
        ConfigError: when quantity, an axis or a fixed key or value is not in the study, or a
            further key varies.
    """
    usable = usable_runs(results, quantity)
    selection = select(results, fixed)
    x, y = choose_axes(selection, x, y)
    require_single(selection, (x, y))
    seeds = selection.names(selection.seeds)
    columns, rows = selection.indices(x), selection.indices(y) if y else [0]
    means, references = np.full((2, len(rows), len(columns), 4), np.nan)
    for row, column in np.ndindex(*means.shape[:2]):
        indices = {x: int(columns[column])} | ({y: int(rows[row])} if y else {})
        cell = selection.moving & selection.agrees(indices)
        means[row, column] = _average(results.columns[quantity], usable, cell, seeds)
        compared = _static_runs(selection, usable, x, indices)
        references[row, column] = _average(results.columns[quantity], usable, compared, seeds)
    static = _by_column(references, y)
    return PhaseDiagram(
        quantity=quantity,
        x_key=x,
        y_key=y,
        x=selection.values[x][columns],
        y=selection.values[y][rows] if y else np.full(1, np.nan),
        fixed=selection.fixed,
        mean=means[..., 0],
        standard_error=means[..., 1],
        count=means[..., 2].astype(int),
        missing=means[..., 3].astype(int),
        reference=references[..., 0],
        reference_error=references[..., 1],
        static=static[:, 0],
        static_error=static[:, 1],
        static_count=static[:, 2].astype(int),
        static_missing=static[:, 3].astype(int),
    )


def usable_runs(results: StudyResults, quantity: str) -> Bool[np.ndarray, " runs"]:
    """The runs that are made, complete, and have this number.

    Raises:
        ConfigError: when it is not one of `NUMBERS`.
    """
    if quantity not in NUMBERS:
        close = difflib.get_close_matches(quantity, NUMBERS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ";"
        raise ConfigError(f"quantity {quantity!r} is unknown{hint} choices: {', '.join(NUMBERS)}")
    return complete_runs(results) & np.isfinite(results.columns[quantity])


def _average(
    values: Float[np.ndarray, " runs"],
    usable: Bool[np.ndarray, " runs"],
    runs: Bool[np.ndarray, " runs"],
    seeds: Int[np.ndarray, " runs"],
) -> tuple[float, float, int, int]:
    """Mean, standard error, number of runs and of missing ones; copies of a run count as one."""
    distinct = np.unique(seeds[runs])
    copies = [values[runs & usable & (seeds == seed)] for seed in distinct]
    of_seeds = np.array([np.mean(each) for each in copies if len(each)])
    count = len(of_seeds)
    mean = float(np.mean(of_seeds)) if count else np.nan
    error = float(np.std(of_seeds, ddof=1) / np.sqrt(count)) if count > 1 else np.nan
    return mean, error, count, len(distinct) - count


def _static_runs(
    selection: Selection, usable: Bool[np.ndarray, " runs"], x: str, indices: Mapping[str, int]
) -> Bool[np.ndarray, " runs"]:
    """The static runs to compare a cell with."""
    cell = selection.moving & selection.agrees(indices)
    if not np.any(cell):  # keys that are no axes are taken from the column, which has runs
        cell = selection.moving & selection.agrees({x: indices[x]})
    codes = selection.codes_of(int(np.argmax(cell)), tuple(indices))
    return selection.static_runs(codes | dict(indices), usable)


def _by_column(
    references: Float[np.ndarray, "ny nx 4"], y: str | None
) -> Float[np.ndarray, "nx 4"]:
    """References of any row, where the rows agree: static runs have no amplitude."""
    static = references[0]
    if y in (None, AMPLITUDE, SCHEDULE) and np.array_equal(
        references, np.broadcast_to(static, references.shape), equal_nan=True
    ):
        return static
    return np.tile([np.nan, np.nan, 0, 0], (len(static), 1))
