"""HDF5 files as run files and result files share them: opening, checking, errors in one line."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py

from dlf_dynamics.errors import FileError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        kind: in words.
        name: what its attribute `format` must be.
        version: that is written; files of the same major version are read.
        remedy: what to do about a damaged one.
    """

    kind: str
    name: str
    version: str
    remedy: str


def open_for_reading(path: Path, expected: Format) -> h5py.File:
    """Opens a file that exists, also while it is written or after its writer was killed.

    Raises:
        FileError: when it may not be read, is foreign or damaged.
    """
    if not os.access(path, os.R_OK):
        raise FileError(f"{expected.kind} {path} cannot be read; it needs read permission")
    with path.open("rb") as raw:
        header = raw.read(36)
    if header[:8] != _SIGNATURE:
        raise FileError(f"{path} is not a dlf-dynamics {expected.kind} (not HDF5)")
    with suppress(OSError):
        return h5py.File(path, "r")
    # The superblock flags a file that a writer has open, or had when it was killed, and knows the
    # length it then had. Any other file, or one cut shorter, makes HDF5 wait for ever in SWMR mode.
    was_left = len(header) == 36 and bool(header[11] & 4)
    laid_out = int.from_bytes(header[28:36], "little") <= path.stat().st_size
    try:
        return h5py.File(path, "r", swmr=was_left and laid_out)
    except OSError as error:
        raise damaged(path, expected, error) from error


def format_name(path: Path) -> str | None:
    """What the file says it is; none where it cannot be read or does not say."""
    with suppress(OSError), h5py.File(path, "r") as file:
        found = file.attrs.get("format")
        return None if found is None else str(found)
    return None


def check_format(file: h5py.File, path: Path, expected: Format) -> None:
    """Raises FileError unless the file names this format, in the same major version."""
    found = file.attrs.get("format")
    if found != expected.name:
        raise FileError(
            f"{path} is not a dlf-dynamics {expected.kind} (format {found!r}, "
            f"not {expected.name!r})"
        )
    major = expected.version.split(".")[0]
    stored = str(file.attrs.get("format_version"))
    if stored.split(".")[0] != major:
        raise FileError(
            f"{path} has format version {stored}; this program reads {major}.x: "
            "use a newer dlf-dynamics"
        )


def damaged(path: Path, expected: Format, error: Exception | str) -> FileError:
    """A line that says what is wrong, as HDF5 or in our words, and what to do."""
    reason = str(error).splitlines()[0].rsplit("(", 1)[-1].rstrip(")")
    return FileError(f"{path} is damaged: {reason}; {expected.remedy}")


def errno(error: Exception) -> int | None:
    """The system's number of an error, which h5py may tell in its text only."""
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if told else getattr(error, "errno", None)


def require_replaceable(path: Path) -> None:
    """Refuses to put a file in the place of a folder, a device or a pipe, which that would remove.

    Raises:
        FileError: when there is something at the path that is not a file.
    """
    if path.is_dir():
        raise FileError(f"{path} is a directory; expected the name of a file")
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is a device or a pipe; expected the name of a file")


def write_error(path: Path, error: Exception) -> FileError:
    """A line that says why a file could not be written."""
    if not path.parent.is_dir():
        return FileError(f"{path} cannot be written: directory {path.parent} does not exist")
    number = errno(error)
    reason = os.strerror(number) if number else str(error).splitlines()[0]
    return FileError(f"{path} cannot be written: {reason}")


def dataset_at(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset at a path, which must not be a group."""
    return cast(h5py.Dataset, file[path])


def own_chunks(columns: int) -> dict[str, Any]:
    """Options of a dataset whose rows have a chunk each, with its place in the file from the start.

    So a row can be written to the file without HDF5, where the system has a call for it.
    """
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if hasattr(os, "pwrite"):
        options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return {"chunks": (1, columns), "dcpl": options}


def has_own_chunks(dataset: h5py.Dataset) -> bool:
    """Whether it was made with `own_chunks`, on a system where that has an effect."""
    options = dataset.id.get_create_plist()
    return bool(options.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY)


def text(file: h5py.File, path: str) -> str:
    """A string stored in the file."""
    return cast(bytes, dataset_at(file, path)[()]).decode()
