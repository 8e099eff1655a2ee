"""Study files: the outcomes of a study's runs, in the order in which they finish.

A file is laid out in its full length when it is made: it does not grow, so the disk cannot become
full of it later, and a file that was cut off is known by its length. Each row has its run's number
written last; a writer that is killed leaves each row complete or absent.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics import checksums, resultfile, schema
from dlf_dynamics.analysis.studies.outcome import CURVES, NUMBERS, Outcome
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.configfile import to_json
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.errors import counted as counted_words
from dlf_dynamics.hdf5 import (
    ContentError,
    Format,
    attribute,
    dataset_at,
    format_name,
    json_object,
    minor_version,
    reading,
    text,
)
from dlf_dynamics.labels import Axis, descriptions, units_of
from dlf_dynamics.outputs import EXISTS, Output, handed_over
from dlf_dynamics.provenance import provenance
from dlf_dynamics.reprs import brief
from dlf_dynamics.runwriter import new_file, writing
from dlf_dynamics.scales import attach, counted, placed
from dlf_dynamics.shown import Shown

FORMAT = Format("study file", "dlf-dynamics-study", "1.4", "replace it with --overwrite")

_WITH_CHECKSUMS = 1
"""Minor version from which on rows have checksums."""

_SINCE = {
    "preconditioned_sharpness": 1,
    "period_2_steps": 3,
    "period_4_steps": 3,
    "onset_phase": 3,
    "realized_above": 4,
}
"""Minor version from which on there is a column, of those that were not there from the start."""

STATUSES = ("complete", "diverged", "failed")
"""What may become of a run; the file holds the index in this order."""

_MESSAGE_BYTES = 256
_COLUMNS = tuple(f"columns/{name}" for name in NUMBERS)
_Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class StudyResults(Shown):
    """What a study file holds, in the order of the study's runs.

    Attributes:
        path: path of the file.
        study: the study as it was defined.
        provenance: versions, machine, source revision and command.
        created: when, in UTC (ISO 8601).
        configs: configuration of each run, as JSON.
        done: whether a run has a row, shape (runs,).
        statuses: `complete`, `diverged` or `failed`; none for a run that is not done.
        messages: why a run failed; else empty.
        columns: arrays by the names NUMBERS, shape (runs,), NaN where a run is not done.
        curves: values of CURVES at evenly spaced steps, shape (runs, points, 6), NaN where there is
            none; none when the study keeps no curves.
    """

    path: Path
    study: Study
    provenance: Mapping[str, Any]
    created: str
    configs: list[str]
    done: Bool[np.ndarray, " runs"]
    statuses: list[str | None]
    messages: list[str]
    columns: Mapping[str, Float[np.ndarray, " runs"]]
    curves: Float[np.ndarray, "runs points curves"] | None
    told_by = "study"
    __repr__ = brief

    @property
    def counts(self) -> str:
        """How many runs there are, and how many of each status but `complete`, in words."""
        counts = Counter("not done" if status is None else status for status in self.statuses)
        runs = counted_words(len(self.statuses), "run")
        return ", ".join([runs, *(f"{counts[s]} {s}" for s in counts if s != "complete")])

    @property
    def complete(self) -> bool:
        """Whether all runs are done."""
        return bool(self.done.all())


class StudyWriter:
    """Appends the outcomes of runs to a study file. Use it as a context manager.

    Attributes:
        done: numbers of the runs that have an outcome.
    """

    def __init__(self, file: h5py.File, output: Output, study: Study, rows: int, done: set[int]):
        file.swmr_mode = True
        self.done = done
        self._file = file
        self._output = output
        self._path = output.path
        self._study = study
        self._rows = rows

    def __enter__(self) -> StudyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._output, writing(self._file, self._path):
            self._file.close()

    def append(self, index: int, outcome: Outcome) -> None:
        """Appends the outcome of a run; it is on file when this returns.

        Raises:
            ValueError: when the run is done or the study has none of this number, or the outcome's
                status is unknown or its curves have another shape than the study's.
            FileError: when the file cannot be written.
        """
        row = self._checked_row(index, outcome)
        with writing(self._file, self._path):
            for path, value in [*row.items(), ("run", index)]:
                if path not in self._file:  # of an older version
                    continue
                dataset = dataset_at(self._file, path)
                dataset[self._rows] = value
                dataset.flush()
        self._rows += 1
        self.done.add(index)

    def _checked_row(self, index: int, outcome: Outcome) -> dict[str, Any]:
        """Values of a row by path, all but the run's number."""
        if index in self.done or not 0 <= index < len(self._study):
            raise ValueError(f"run {index} is done, or not one of the {len(self._study)}")
        if outcome.status not in STATUSES:
            raise ValueError(f"status is {outcome.status!r}; expected one of {STATUSES}")
        row: dict[str, Any] = {
            "status": STATUSES.index(outcome.status),
            "message": _cut(outcome.message),
        }
        row |= {f"columns/{name}": value for name, value in outcome.numbers().items()}
        if len(outcome.curves):
            shape = (self._study.measures.curve_points, len(CURVES))
            if outcome.curves.shape != shape:
                raise ValueError(f"curves have shape {outcome.curves.shape}; expected {shape}")
            row["curves"] = outcome.curves
        if "checksum" in self._file:
            row["checksum"] = self._checksum(index, row)
        return row

    def _checksum(self, index: int, row: dict[str, Any]) -> int:
        """Checksum of the row as it will be on file."""
        layout = _layout(self._study, 1, minor_version(self._file))
        del layout["checksum"]
        stored = {
            path: np.full(shape, row.get(path, fill), kind)
            for path, (shape, kind, fill) in layout.items()
        }
        stored["run"][:] = index
        return int(_checksums(stored, minor_version(self._file))[0])


def create(path: Path, study: Study, overwrite: bool = False) -> StudyWriter:
    """Creates a study file; it takes its name when all but the outcomes is there.

    Raises:
        ConfigError: when a run of the study is invalid.
        FileError: when the file exists and is not to be overwritten, or cannot be written, or
            another process writes it.
    """
    with handed_over(path, None if overwrite else EXISTS) as output:
        origin = provenance()
        configs = [to_json(config) for config in study.configs]
        with _laid_out(output, study, configs, origin, len(study), version=FORMAT.version) as file:
            file.attrs["created"] = json.loads(origin)["created"]
            return StudyWriter(file, output, study, 0, set())


def reopen(path: Path, study: Study, retry_failed: bool = False) -> StudyWriter:
    """Opens a study file to continue it.

    The complete rows are copied to a new file that then replaces the old one, so that a kill at any
    moment leaves one or the other; they keep their checksums, and a file of an older version stays
    one. A run that failed counts as done, unless it is tried again; then
    its row stays until there is another.

    Raises:
        FileError: when the file cannot be read or written, is of another study, or another process
            writes it.
    """
    with handed_over(path) as output:
        return _continued(output, study, retry_failed=retry_failed)


def _continued(output: Output, study: Study, *, retry_failed: bool) -> StudyWriter:
    path = output.path
    old = read_study(path)
    if old.study != study:
        raise FileError(
            f"{path} is of another study; continue it with the definition that it was made with, "
            "or replace it with --overwrite"
        )
    with _open(path) as file:
        rows, origin = _complete_rows(file), text(file, "provenance")
        version = attribute(file, "format_version")
    kept = np.sort(list(_last_rows(rows["run"]).values())).astype(int)
    done = {
        k
        for k, status in enumerate(old.statuses)
        if status is not None and not (retry_failed and status == "failed")
    }
    length = len(kept) + len(study) - len(done)
    with _laid_out(output, study, old.configs, origin, length, version=version) as new:
        new.attrs["created"] = old.created
        for name, values in rows.items():
            if name in new:  # a file of an older version stays one
                dataset_at(new, name)[: len(kept)] = values[kept]
        return StudyWriter(new, output, study, len(kept), done)


def read_study(path: Path) -> StudyResults:
    """Reads a study file, also while it is written or after its writer was killed.

    Raises:
        FileError: when it is missing, foreign, damaged or of a newer format.
    """
    if not path.is_file():
        raise FileError(
            f"study file {path} does not exist; `dlf-dynamics sweep STUDY.toml -o {path}` makes one"
        )
    with _open(path) as file:
        return _results(path, file)


def _results(path: Path, file: h5py.File) -> StudyResults:
    try:
        study = Study.from_json(text(file, "study"))
        _check_layout(file, study)
    except ConfigError as error:
        raise ContentError(f"its study: {error}") from error
    configs = [config.decode() for config in dataset_at(file, "configs")[()]]
    rows = _complete_rows(file)
    if (rows["run"] >= len(study)).any():
        raise ContentError("its runs are not those of its study")
    if not np.isin(rows["status"], range(len(STATUSES))).all():
        raise ContentError("it has an unknown status")
    if "checksum" in rows:
        changed = rows["run"][_checksums(rows, minor_version(file)) != rows["checksum"]]
        if len(changed):
            raise ContentError(f"its row of run {changed[0]} is not what was written")
    return StudyResults(
        path,
        study,
        json_object(text(file, "provenance"), "its provenance"),
        attribute(file, "created"),
        configs,
        **_in_order(rows, len(study)),
    )


def _check_layout(file: h5py.File, study: Study) -> None:
    """Raises ContentError unless the datasets are those that a file of this study has."""
    runs = dataset_at(file, "run")
    layout = _layout(study, len(runs) if runs.ndim else 0, minor_version(file))
    configs = dataset_at(file, "configs")
    layout["configs"] = ((len(study),), f"S{max(configs.dtype.itemsize, 1)}", b"")
    for path, (shape, kind, _) in layout.items():
        dataset = dataset_at(file, path)
        if (dataset.shape, dataset.dtype) != (shape, np.dtype(kind)):
            stored = f"{dataset.dtype} of shape {dataset.shape}"
            raise ContentError(f"/{path} is {stored}; expected {np.dtype(kind)} of shape {shape}")


def _in_order(rows: _Rows, runs: int) -> dict[str, Any]:
    """Rows in the order of the study, as the fields of `StudyResults`."""
    last = _last_rows(rows["run"])
    numbers, rows_of_runs = list(last.keys()), list(last.values())

    def spread(values: np.ndarray) -> np.ndarray:
        spread = np.full((runs, *values.shape[1:]), np.nan)
        spread[numbers] = values[rows_of_runs]
        return spread

    statuses: list[str | None] = [None] * runs
    messages = [""] * runs
    for number, row in last.items():
        statuses[number] = STATUSES[rows["status"][row]]
        messages[number] = rows["message"][row].decode()
    return {
        "done": np.array([status is not None for status in statuses]),
        "statuses": statuses,
        "messages": messages,
        "columns": {name: spread(rows[f"columns/{name}"]) for name in NUMBERS},
        "curves": spread(rows["curves"]) if "curves" in rows else None,
    }


def _checksums(rows: _Rows, minor: int) -> np.ndarray:
    """Checksums of the rows of a file of this minor version, whatever checksums it holds."""
    names = ["status", "message", *_columns(minor), *(["curves"] if "curves" in rows else [])]
    return checksums.of_joined_rows(rows["run"], [rows[name] for name in names])


def _last_rows(runs: np.ndarray) -> dict[int, int]:
    """The last row of each run that has one."""
    return {run: row for row, run in enumerate(runs.tolist())}


def _complete_rows(file: h5py.File) -> _Rows:
    """All values by path, cut after the last complete row.

    The runs are read first: what they promise was written before.
    """
    runs = dataset_at(file, "run")[()]
    rows = int(np.argmax(runs < 0)) if (runs < 0).any() else len(runs)
    minor = minor_version(file)
    checked = minor >= _WITH_CHECKSUMS
    more = [*(["curves"] if "curves" in file else []), *(["checksum"] if checked else [])]
    known = _columns(minor)
    columns = {path: dataset_at(file, path)[:rows] for path in ["status", "message", *known, *more]}
    missing = {path: np.full(rows, np.nan) for path in _COLUMNS if path not in known}
    return {"run": runs[:rows]} | missing | columns


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    kind = format_name(path)
    for other in (schema.FORMAT, resultfile.FORMAT):
        if kind == other.name:
            raise FileError(f"{path} is a {other.kind}, not a study file")
    with reading(path, FORMAT) as file:
        yield file


@contextmanager
def _laid_out(
    output: Output, study: Study, configs: list[str], origin: str, rows: int, *, version: str
) -> Iterator[h5py.File]:
    """A new file with everything but its rows, for which it has room."""
    points, layout = study.measures.curve_points, _layout(study, rows, int(version.split(".")[1]))
    definition, encoded = study.to_json(), np.array([config.encode() for config in configs])
    size = sum(np.dtype(kind).itemsize * prod(shape) for shape, kind, _ in layout.values())
    with new_file(output, size + encoded.nbytes + len(definition) + 2**20) as file:
        # Texts first: only the two ends of a file are looked through for damaged ones.
        file.attrs.update(format=FORMAT.name, format_version=version)
        file["study"], file["provenance"] = definition, origin
        for name, (shape, kind, fill) in layout.items():
            options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            made = file.create_dataset(name, shape, kind, fillvalue=fill, dcpl=options)
            if name == "status":
                made.attrs["names"] = list(STATUSES)
        file["configs"] = encoded
        if points:
            fractions = np.linspace(0.0, 1.0, points)
            file["curves"].attrs.update(names=list(CURVES), fraction_of_run=fractions)
        _name_axes(file, points)  # whose references are texts, too, at the other end
        yield file


def _name_axes(file: h5py.File, points: int) -> None:
    """Names the axes: rows are known by the numbers of their runs."""
    told = descriptions(Outcome)
    attach(dataset_at(file, "configs"), [counted(file, "runs")])
    scales = [dataset_at(file, "run")]
    scales[0].make_scale("run")
    if points:
        fractions = Axis(points, np.linspace(0.0, 1.0, points), "fraction", "of the run's steps")
        names = Axis(len(CURVES), np.array([name.encode() for name in CURVES]))
        scales += [placed(file, "point", fractions), placed(file, "quantity", names)]
    for path in ("status", "message", "checksum", "curves", *_COLUMNS):
        if path not in file:
            continue
        name, dataset = path.rpartition("/")[2], dataset_at(file, path)
        dataset.attrs.update(units=units_of(Outcome, name), description=told.get(name, "CRC-32"))
        attach(dataset, scales[: dataset.ndim])


def _columns(minor: int) -> tuple[str, ...]:
    """Paths of the columns of numbers in a file of this minor version."""
    return tuple(f"columns/{name}" for name in NUMBERS if _SINCE.get(name, 0) <= minor)


def _layout(study: Study, rows: int, minor: int) -> dict[str, tuple[tuple[int, ...], Any, Any]]:
    """Shape, type and fill value of each dataset of rows."""
    layout: dict[str, tuple[tuple[int, ...], Any, Any]] = {
        "status": ((rows,), np.int8, -1),
        "run": ((rows,), np.int64, -1),
        "message": ((rows,), f"S{_MESSAGE_BYTES}", b""),
        **({"checksum": ((rows,), np.int64, 0)} if minor >= _WITH_CHECKSUMS else {}),
        **dict.fromkeys(_columns(minor), ((rows,), np.float64, np.nan)),
    }
    points = study.measures.curve_points
    if points:
        layout["curves"] = ((rows, points, len(CURVES)), np.float64, np.nan)
    return layout


def _cut(message: str) -> bytes:
    """The message as UTF-8 of limited length, no character cut in two."""
    return message.encode()[:_MESSAGE_BYTES].decode(errors="ignore").encode()
