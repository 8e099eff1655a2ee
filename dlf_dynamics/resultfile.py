"""Result files of analyses: arrays and tables, written whole or not at all."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from dlf_dynamics.errors import FileError
from dlf_dynamics.hdf5 import (
    Format,
    check_format,
    damaged,
    open_for_reading,
    require_replaceable,
    text,
    write_error,
)
from dlf_dynamics.reprs import brief

FORMAT = Format("result file", "dlf-dynamics-result", "1.0", "compute it anew")


Record = TypeVar("Record")

Arrays = dict[str, Any]
"""Arrays by path within a file."""


@dataclass(frozen=True)
class Result:
    """What an analysis found.

    Attributes:
        analysis: its name.
        run_id: of the run that was analysed.
        config: settings of the analysis, JSON-ready.
        provenance: as JSON.
        arrays: by path within the file.
    """

    analysis: str
    run_id: str
    config: Mapping[str, Any]
    provenance: str
    arrays: Arrays
    __repr__ = brief


def write(path: Path, result: Result) -> None:
    """Writes a result file by way of a temporary one.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """
    # Built in memory: HDF5 cannot be left in peace after an error of writing, plain files can.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(
            format=FORMAT.name,
            format_version=FORMAT.version,
            analysis=result.analysis,
            run_id=result.run_id,
        )
        file["config"] = json.dumps(result.config)
        file["provenance"] = result.provenance
        for name, array in result.arrays.items():
            file[name] = np.asarray(array)
    write_whole(path, content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and then gives it its own.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """
    require_replaceable(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read(path: Path, analysis: str) -> Result:
    """Reads a result file.

    Raises:
        FileError: when it is missing, foreign, damaged, newer or of another analysis.
    """
    if not path.is_file():
        raise FileError(f"result file {path} does not exist; `dlf-dynamics {analysis}` makes one")
    try:
        with open_for_reading(path, FORMAT) as file:
            _check(file, path, analysis)
            arrays: Arrays = {}
            file.visititems(
                lambda name, item: (
                    arrays.update({name: item[()]})
                    if isinstance(item, h5py.Dataset) and name not in ("config", "provenance")
                    else None
                )
            )
            return Result(
                analysis,
                str(file.attrs["run_id"]),
                json.loads(text(file, "config")),
                text(file, "provenance"),
                arrays,
            )
    except (OSError, KeyError, ValueError) as error:
        raise damaged(path, FORMAT, error) from error


def require_run(path: Path, result: Result, run_path: Path, run_id: str) -> None:
    """Raises FileError unless the result belongs to the run."""
    if result.run_id != run_id:
        raise FileError(
            f"{path} belongs to another run than {run_path}; "
            f"`dlf-dynamics {result.analysis} {run_path}` computes it anew"
        )


def _check(file: h5py.File, path: Path, analysis: str) -> None:
    check_format(file, path, FORMAT)
    found = file.attrs.get("analysis")
    if found != analysis:
        raise FileError(f"{path} is a result of {found}; expected one of {analysis}")


def pack(record: Any) -> Arrays:
    """A dataclass of arrays and settings as arrays alone, the settings as JSON."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    settings = {name: value for name, value in fields.items() if name not in arrays}
    return arrays | {"settings": np.bytes_(json.dumps(settings))}


def unpack(kind: type[Record], arrays: Mapping[str, Any]) -> Record:
    """The inverse of `pack`."""
    columns = {name: value for name, value in arrays.items() if name != "settings"}
    return kind(**columns, **json.loads(bytes(arrays["settings"])))


def inside(arrays: Mapping[str, Any], group: str) -> Arrays:
    """The arrays of a group, by their path within it."""
    start = f"{group}/"
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


def concatenate(records: Sequence[Record]) -> Record:
    """Dataclasses of equal settings as one, their arrays joined along the first axis."""
    first: Any = records[0]
    names = [name for name, value in vars(first).items() if isinstance(value, np.ndarray)]
    joined = {name: np.concatenate([getattr(r, name) for r in records]) for name in names}
    return dataclasses.replace(first, **joined)


def pack_table(kind: type, rows: Sequence[Any]) -> Arrays:
    """A list of dataclasses as one array for each field."""
    table = {}
    for field in dataclasses.fields(kind):
        column = [getattr(row, field.name) for row in rows]
        text = field.type in ("str", str)
        table[field.name] = np.array([v.encode() for v in column], "S") if text else column
        if not rows:
            table[field.name] = np.zeros(0, "S1" if text else float)
    return {name: np.asarray(column) for name, column in table.items()}


def unpack_table(kind: type[Record], arrays: Mapping[str, Any]) -> list[Record]:
    """The inverse of `pack_table`."""
    columns = [np.asarray(arrays[field.name]).tolist() for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    decoded = [[v.decode() if isinstance(v, bytes) else v for v in c] for c in columns]
    return [kind(*row) for row in zip(*decoded, strict=True)]


class Parts:
    """Finished parts of a long analysis, each a result file, in a folder beside what they become.

    A killed analysis leaves the parts that were finished. They are used again if they are of the
    same run and settings.
    """

    def __init__(
        self, folder: Path | None, analysis: str = "", run_id: str = "", config: Any = None
    ):
        self._folder = folder
        self._analysis = f"{analysis} part"
        self._run_id = run_id
        self._config = config

    def get_or_make(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """The part of this name, from its file or made now and kept.

        Raises:
            FileError: when the file is of another run or of other settings.
        """
        if self._folder is None:
            return make()
        path = self._folder / f"{name}.h5"
        if path.exists():
            found = read(path, self._analysis)
            if (found.run_id, found.config) != (self._run_id, self._config):
                raise FileError(
                    f"{self._folder} holds parts of another run or of other settings; "
                    "leave --resume out to start anew"
                )
            return found.arrays
        arrays = make()
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self._folder, error) from error
        try:
            write(path, Result(self._analysis, self._run_id, self._config, "{}", arrays))
        finally:
            with suppress(OSError):
                self._folder.rmdir()  # it stays unless it is empty, no part having been written
        return arrays

    def clear(self) -> None:
        """Deletes the parts."""
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.glob("*.h5*"):
                path.unlink()
            self._folder.rmdir()
