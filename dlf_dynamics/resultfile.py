"""Result files of analyses: arrays and tables, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dlf_dynamics.errors import FileError
from dlf_dynamics.runfile import write_error

FORMAT = "dlf-dynamics-result"
FORMAT_VERSION = "1.0"


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
    arrays: Mapping[str, np.ndarray]


def write(path: Path, result: Result) -> None:
    """Writes a result file by way of a temporary one.

    Raises:
        FileError: when it cannot be written; an older file stays as it was.
    """
    # Built in memory: HDF5 cannot be left in peace after an error of writing, plain files can.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs.update(
            format=FORMAT,
            format_version=FORMAT_VERSION,
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
        with h5py.File(path, "r") as file:
            _check(file, path, analysis)
            arrays: dict[str, np.ndarray] = {}
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
                json.loads(file["config"][()]),  # type: ignore[index]
                file["provenance"][()].decode(),  # type: ignore[index]
                arrays,
            )
    except (OSError, KeyError, ValueError) as error:
        raise FileError(f"{path} is damaged; compute it anew ({error})") from error


def _check(file: h5py.File, path: Path, analysis: str) -> None:
    found = (file.attrs.get("format"), file.attrs.get("analysis"))
    if found != (FORMAT, analysis):
        raise FileError(f"{path} is not a {analysis} result (format {found[0]!r}, {found[1]!r})")
    version = str(file.attrs.get("format_version"))
    if version.split(".")[0] != FORMAT_VERSION.split(".")[0]:
        raise FileError(
            f"{path} has format version {version}; this program reads "
            f"{FORMAT_VERSION.split('.')[0]}.x: use a newer dlf-dynamics"
        )
