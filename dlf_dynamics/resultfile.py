"""Result files of analyses: arrays and tables, written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import h5py
import numpy as np
from jaxtyping import Shaped, jaxtyped

from dlf_dynamics.configfile import in_type
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import (
    ContentError,
    Format,
    attribute,
    dataset_at,
    format_name,
    json_object,
    reading,
    require_replaceable,
    text,
    write_error,
)
from dlf_dynamics.outputs import partial_path
from dlf_dynamics.reprs import brief
from dlf_dynamics.source import Source

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

FORMAT = Format("result file", "dlf-dynamics-result", "3.0", "compute it anew")

_TEXTS = ("config", "provenance")

Record = TypeVar("Record")

Arrays = dict[str, Any]
"""Arrays by path within a file."""


@dataclass(frozen=True)
class Result:
    """What an analysis found.

    Attributes:
        analysis: its name.
        source: state of the run that was analysed.
        config: settings of the analysis, JSON-ready.
        provenance: as JSON.
        arrays: by path within the file.
    """

    analysis: str
    source: Source
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
            run_id=result.source.run_id,
            source=json.dumps(vars(result.source)),
        )
        file["config"] = json.dumps(result.config)
        file["provenance"] = result.provenance
        for name, array in result.arrays.items():
            file[name] = np.asarray(array)
        file.attrs["sha256"] = _sha256(file)
    write_whole(path, content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and then gives it its own.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """  # noqa: DOC501
    require_replaceable(path)
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read(path: Path, analysis: str, run: Run | None) -> Result:
    """Reads a result file.

    Args:
        path: of the file.
        analysis: its name.
        run: that it must be of, in the state that it is in now; none takes the result of any.

    Raises:
        FileError: when it is missing, foreign, damaged, newer or of another analysis.
        StaleError: when it is of another run or another state of it, or of an older format.
    """
    if not path.is_file():
        raise FileError(f"result file {path} does not exist; `dlf-dynamics {analysis}` makes one")
    with reading(path, FORMAT) as file:
        found = attribute(file, "analysis")
        if found != analysis:
            raise FileError(f"{path} is a result of {found}; expected one of {analysis}")
        result = _content(file, analysis)
    if run is not None:
        result.source.require(run, str(path), f"`{_command(path, analysis, run)}` computes it anew")
    return result


def analysis_of(path: Path) -> str:
    """The analysis that a result file says it is of.

    Raises:
        FileError: when it cannot be read.
    """
    with reading(path, FORMAT) as file:
        return attribute(file, "analysis")


def _content(file: h5py.File, analysis: str) -> Result:
    if attribute(file, "sha256") != _sha256(file):
        raise ContentError("it is not what was written (its digest differs)")
    names = [name for name in _datasets(file) if name not in _TEXTS]
    json_object(text(file, "provenance"), "/provenance")
    return Result(
        analysis,
        typed(Source, json_object(attribute(file, "source"), "its source")),
        json_object(text(file, "config"), "/config"),
        text(file, "provenance"),
        {name: dataset_at(file, name)[()] for name in names},
    )


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(
        lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return sorted(found)


def _sha256(file: h5py.File) -> str:
    """Digest of the attributes of the root, but for itself and the version, and of all datasets."""
    found = hashlib.sha256()
    for name in sorted(set(file.attrs) - {"sha256", "format_version"}):
        found.update(repr((name, str(file.attrs[name]))).encode())
    for name in _datasets(file):
        if name in _TEXTS:
            found.update(repr((name, text(file, name))).encode())
            continue
        array = np.asarray(dataset_at(file, name)[()])
        found.update(repr((name, array.dtype.str, array.shape)).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def require_result(path: Path, analysis: str, run: Run) -> None:
    """Refuses to write over something else than a result of this analysis.

    A result is replaced without asking, as it can be computed anew; other files are not. One that
    cannot be read is taken for a damaged result if it has the usual name of one.

    Raises:
        FileError: when the file is something else.
    """
    if not path.exists():
        return
    kind, found = None, None
    with suppress(FileError):
        kind = format_name(path)
    if kind == FORMAT.name:
        try:
            found = analysis_of(path)
        except FileError:  # damaged, or of an older version
            found = analysis
    if found != analysis and not (kind is None and path == _usual_path(analysis, run)):
        raise FileError(
            f"{path} exists and is not a result of {analysis}; write elsewhere with -o, or "
            "remove it"
        )


def _usual_path(analysis: str, run: Run) -> Path:
    return run.path.with_suffix(f".{analysis}.h5")


def _command(path: Path, analysis: str, run: Run) -> str:
    """What writes the result of an analysis to this file."""
    usual = path == _usual_path(analysis, run)
    return f"dlf-dynamics {analysis} {run.path}" + ("" if usual else f" -o {path}")


def pack(record: Any) -> Arrays:
    """A dataclass of arrays and settings as arrays alone, the settings as JSON."""
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    settings = {name: value for name, value in fields.items() if name not in arrays}
    return arrays | {"settings": np.bytes_(json.dumps(settings))}


def unpack(
    kind: type[Record], arrays: Mapping[str, Any], lengths: Mapping[str, int] | None = None
) -> Record:
    """The inverse of `pack`.

    Raises:
        ContentError: when a field is missing or is not what its annotation says; see `typed`.
    """
    columns = {name: value for name, value in arrays.items() if name != "settings"}
    settings = arrays.get("settings", b"{}")
    if not isinstance(settings, bytes):
        raise ContentError("settings is not a text")
    return typed(kind, columns | json_object(settings.decode(), "settings"), lengths)


def typed(
    kind: type[Record], values: Mapping[str, Any], lengths: Mapping[str, int] | None = None
) -> Record:
    """A dataclass or named tuple of these fields, each of which is what its annotation says.

    Args:
        kind: its type.
        values: of the fields, by name.
        lengths: of axes of arrays, by name, as far as they are known.

    Raises:
        ContentError: when a field is missing, unknown, or something else.
    """
    fields, checked = hints(kind), dict(values)
    for name in checked:
        if name not in fields:
            raise ContentError(f"{name} is not a field of {kind.__name__}")
    arrays = {name for name in fields if _is_array(fields[name])} & checked.keys()
    require_shapes({name: (checked[name], fields[name]) for name in sorted(arrays)}, lengths)
    for name in sorted(checked.keys() - arrays):  # the same complaint each time
        if fields[name] is not np.ndarray or not isinstance(checked[name], np.ndarray):
            checked[name] = _in_type(checked[name], fields[name], name)
    try:
        return kind(**checked)
    except TypeError as error:
        raise ContentError(str(error)) from error


def require_shapes(
    arrays: Mapping[str, tuple[Any, Any]], lengths: Mapping[str, int] | None = None
) -> None:
    """Requires that arrays, by name, are what their annotations say.

    Axes of one name have one length in all of them, that in `lengths` if it is known.

    Raises:
        ContentError: unless they are.
    """
    known = lengths or {}
    with jaxtyped("context"):
        for axis, length in known.items():
            isinstance(np.broadcast_to(False, length), Shaped[np.ndarray, axis])  # type: ignore[arg-type]
        for name, (value, hint) in arrays.items():
            if not isinstance(value, hint):
                shape = " ".join(str(known.get(axis, axis)) for axis in hint.dim_str.split())
                expected = f"{hint.dtype.__name__} of ({shape})"
                raise ContentError(f"{name} is {_described(value)}; expected {expected}")


hints = cache(get_type_hints)
"""Evaluated annotations of the fields of a dataclass or named tuple, by name."""


def _is_array(hint: Any) -> bool:
    return hasattr(hint, "dim_str")


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if hasattr(value, "dtype") else repr(value)[:50]


def _in_type(value: Any, hint: Any, name: str) -> Any:
    try:
        return in_type(value, hint, name)
    except ConfigError as error:
        raise ContentError(str(error)) from error


def inside(arrays: Mapping[str, Any], group: str) -> Arrays:
    """The arrays of a group, by their path within it."""
    start = f"{group}/"
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


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
    """The inverse of `pack_table`.

    Raises:
        ContentError: when a column is missing, longer than others, or of another type.
    """
    kinds, columns = hints(kind), []
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        column = np.asarray(arrays.get(field.name))
        expected = "S" if kinds[field.name] is str else np.dtype(kinds[field.name]).kind
        if column.ndim != 1 or (len(column) and column.dtype.kind != expected):
            raise ContentError(f"{field.name} is {_described(column)}; expected a column")
        columns.append([v.decode() if isinstance(v, bytes) else v for v in column.tolist()])
    if len({len(column) for column in columns}) > 1:
        raise ContentError(f"the columns of {kind.__name__} are not of one length")
    return [kind(*row) for row in zip(*columns, strict=True)]
