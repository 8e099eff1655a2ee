"""Result files of analyses: arrays and tables, written completely or not at all."""

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
    """The content of a result file.

    Attributes:
        analysis: name of the analysis.
        source: state of the run that was analysed.
        config: settings of the analysis, JSON-ready.
        provenance: provenance as JSON.
        arrays: arrays by path within the file.
    """

    analysis: str
    source: Source
    config: Mapping[str, Any]
    provenance: str
    arrays: Arrays
    __repr__ = brief


def save(path: Path, analysis: str, record: Any) -> None:
    """Writes the result of an analysis.

    Args:
        path: name of the file.
        analysis: name of the analysis.
        record: dataclass whose field `source` is the state of the run that was analysed.

    Raises:
        FileError: when it cannot be written; an existing file stays as it was.
    """
    from dlf_dynamics.provenance import provenance  # imports JAX, which readers do not need

    arrays = encode(record, ("source",))
    settings = json.loads(arrays.pop("settings"))
    result = Result(analysis, record.source, settings, provenance(), arrays)
    write(path, result, groups_of(record))


def load(path: str | Path, analysis: str, kind: type[Record], run: Run | None = None) -> Record:
    """Reads the result of an analysis.

    Args:
        path: name of the file.
        analysis: name of the analysis.
        kind: type of the dataclass that was saved.
        run: run that the result must belong to, in its present state; None accepts any run.

    Raises:
        FileError: when it is missing, foreign, damaged, newer or of another analysis.
        StaleError: when it belongs to another run or another state of it, or has an older format.
    """
    result = read(Path(path), analysis, run)
    with content_of(Path(path), FORMAT):
        settings = json.dumps(dict(result.config)).encode()
        return decode(kind, result.arrays | {"settings": settings}, given={"source": result.source})


def write(path: Path, result: Result, groups: Sequence[Group] = ()) -> None:
    """Writes a result file by way of a temporary one.

    Args:
        path: name of the file.
        result: content of the file.
        groups: labels of the arrays; without them the axes have no names.

    Raises:
        FileError: when it cannot be written; an existing file stays as it was.
    """
    # Built in memory: HDF5 cannot discard unwritten data after a failed write, plain files can.
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
    """Writes a file under a temporary name and then renames it.

    Raises:
        FileError: when it cannot be written; an existing file stays as it was.
    """
    replace_whole(path, lambda partial: partial.write_bytes(content))


def replace_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` write a file under a temporary name and then renames it.

    Args:
        path: name of the file.
        write: function that writes the file with the name it is given.

    Raises:
        FileError: when it cannot be written; an existing file stays as it was.
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
        analysis: name of the analysis.
        run: run that the result must belong to, in its present state; None accepts any run.

    Raises:
        FileError: when it is missing, foreign, damaged, newer or of another analysis.
        StaleError: when it belongs to another run or another state of it, or has an older format.
    """
    if not path.is_file():
        raise FileError(f"result file {path} does not exist; `dlf-dynamics {analysis}` makes one")
    with reading(path, FORMAT) as file:
        stored = attribute(file, "analysis")
        if stored != analysis:
            raise FileError(f"{path} is a result of {stored}; expected one of {analysis}")
        result = _content(file, analysis)
    if run is not None:
        result.source.require(run, str(path), f"`{_command(path, analysis, run)}` computes it anew")
    return result


def analysis_of(path: Path) -> str:
    """The name of the analysis in a result file.

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
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return sorted(names)


def _sha256(file: h5py.File) -> str:
    """Digest of all datasets and of the root's attributes, except itself and the version."""
    digest = hashlib.sha256()
    for name in sorted(set(file.attrs) - {"sha256", "format_version"}):
        digest.update(repr((name, str(file.attrs[name]))).encode())
    for name in _datasets(file):
        if name in _TEXTS:
            digest.update(repr((name, text(file, name))).encode())
            continue
        array = np.asarray(dataset_at(file, name)[()])
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def require_result(path: Path, analysis: str, run: Run) -> None:
    """Refuses to replace anything but a result of this analysis.

    A result is replaced without asking for confirmation, as it can be computed anew; other files
    are not. An unreadable file with the usual name of the result is taken for a damaged one.

    Raises:
        FileError: when the file is something else.
    """
    if not path.exists():
        return
    kind, stored = None, None
    with suppress(FileError):
        kind = format_name(path)
    if kind == FORMAT.name:
        try:
            stored = analysis_of(path)
        except FileError:  # damaged, or of an older version
            stored = analysis
    if stored != analysis and not (kind is None and path == _usual_path(analysis, run)):
        raise FileError(
            f"{path} exists and is not a result of {analysis}; write elsewhere with -o, or "
            "remove it"
        )


def _usual_path(analysis: str, run: Run) -> Path:
    return beside(run.path, f".{analysis}.h5")


def _command(path: Path, analysis: str, run: Run) -> str:
    """The command that writes the result of an analysis to this file."""
    usual = path == _usual_path(analysis, run)
    return f"dlf-dynamics {analysis} {run.path}" + ("" if usual else f" -o {path}")
