"""Result files of analyses: arrays and tables, written whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from dlf_dynamics.codec import Arrays, Record, decode, encode, typed
from dlf_dynamics.errors import FileError
from dlf_dynamics.hdf5 import (
    ContentError,
    Format,
    attribute,
    content_of,
    dataset_at,
    format_name,
    json_object,
    reading,
    require_replaceable,
    text,
    write_error,
)
from dlf_dynamics.labels import Group, groups_of
from dlf_dynamics.outputs import beside, partial_path
from dlf_dynamics.reprs import brief
from dlf_dynamics.scales import is_axis, label
from dlf_dynamics.source import Source

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

FORMAT = Format("result file", "dlf-dynamics-result", "4.2", "compute it anew")

_TEXTS = ("config", "provenance")


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


def save(path: Path, analysis: str, found: Any) -> None:
    """Writes what an analysis found.

    Args:
        path: name of the file.
        analysis: its name.
        found: a dataclass whose field `source` is the state of the run that was analysed.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """
    from dlf_dynamics.provenance import provenance  # it imports JAX, which readers do without

    arrays = encode(found, ("source",))
    settings = json.loads(arrays.pop("settings"))
    result = Result(analysis, found.source, settings, provenance(), arrays)
    write(path, result, groups_of(found))


def load(path: str | Path, analysis: str, kind: type[Record], run: Run | None = None) -> Record:
    """Reads what an analysis found.

    Args:
        path: name of the file.
        analysis: its name.
        kind: type of the dataclass that `save` was given.
        run: that it must be of, in the state that it is in now; none takes the result of any.

    Raises:
        FileError: when it is missing, foreign, damaged, newer or of another analysis.
        StaleError: when it is of another run or another state of it, or of an older format.
    """
    result = read(Path(path), analysis, run)
    with content_of(Path(path), FORMAT):
        settings = json.dumps(dict(result.config)).encode()
        return decode(kind, result.arrays | {"settings": settings}, given={"source": result.source})


def write(path: Path, result: Result, groups: Sequence[Group] = ()) -> None:
    """Writes a result file by way of a temporary one.

    Args:
        path: name of the file.
        result: what it is to hold.
        groups: what its arrays are; without them they have no names of axes.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """
    # Built in memory: after an error of writing HDF5 cannot discard what is left, plain files can.
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
        label(file, groups)
        file.attrs["sha256"] = _sha256(file)
    write_whole(path, content.getvalue())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and then gives it its own.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """
    replace_whole(path, lambda partial: partial.write_bytes(content))


def replace_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Has a file written under a temporary name and then gives it its own.

    Args:
        path: name of the file.
        write: writes a file of another name.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """  # noqa: DOC501
    require_replaceable(path)
    partial = partial_path(path)
    try:
        write(partial)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read(path: Path, analysis: str, run: Run | None) -> Result:
    """Reads a result file.

    Args:
        path: name of the file.
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
    names = [name for name in _datasets(file) if name not in _TEXTS and not is_axis(file[name])]
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
    return beside(run.path, f".{analysis}.h5")


def _command(path: Path, analysis: str, run: Run) -> str:
    """What writes the result of an analysis to this file."""
    usual = path == _usual_path(analysis, run)
    return f"dlf-dynamics {analysis} {run.path}" + ("" if usual else f" -o {path}")
