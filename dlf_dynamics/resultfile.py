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
from dlf_dynamics.hdf5 import Format, check_format, damaged, open_for_reading, text, write_error

FORMAT = Format("result file", "dlf-dynamics-result", "1.0", "compute it anew")


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
                json.loads(text(file, "config")),
                text(file, "provenance"),
                arrays,
            )
    except (OSError, KeyError, ValueError) as error:
        raise damaged(path, FORMAT, error) from error


def _check(file: h5py.File, path: Path, analysis: str) -> None:
    check_format(file, path, FORMAT)
    found = file.attrs.get("analysis")
    if found != analysis:
        raise FileError(f"{path} is a result of {found}; expected one of {analysis}")
