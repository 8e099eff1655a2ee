"""What all HDF5 files of this program share: opening, checking, errors in one line.

A file may come from anywhere, and may be damaged or malicious. All reading goes through `reading`,
which refuses links out of the file and datasets larger than the file, and turns whatever HDF5 and
NumPy find wrong with the content into one line.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from h5py import h5i, h5l, h5o  # type: ignore[reportAttributeAccessIssue]

from dlf_dynamics.errors import ConfigError, FileError, StaleError, UserError

_MOST_TEXT = 2**24
"""Bytes of the longest text that is read; this program writes some thousands at most."""

_READ_ATTEMPTS = 27
"""Attempts to read a piece of a file that is being written; they take 0.1 s."""

_TEXTS_BYTES = 2**20
"""Bytes at either end of a file that contain the texts written by this program."""

_HEAP = re.compile(rb"GCOL\x01\0\0\0(.{8})", re.DOTALL)
"""Start of a heap of texts (a global heap collection of HDF5), with its length."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ContentError(FileError):
    """A fault in the content of a file; `reading` adds the file and what to do."""


_FAULTS = (
    ContentError,
    ConfigError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SystemError,
)
"""Exceptions that HDF5, h5py, NumPy or json may raise for a damaged file."""

_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}

_OF_HDF5 = re.compile(r".*?(?:Unable to|Can't) [a-z ]+ \(([A-Za-z].*?)\)?[\"']?")
"""An error message of HDF5: what could not be done, and why."""

_checked: deque[tuple[Any, ...]] = deque(maxlen=32)
"""Checks that passed, with the state of the file: an analysis opens its run many times."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        kind: kind of file, in words.
        name: required value of the attribute `format`.
        version: version that is written; files with the same major version are read.
        remedy: what to do about a damaged file.
    """

    kind: str
    name: str
    version: str
    remedy: str


_ANY = Format("file", "", "1.0", "it cannot be read")


@contextmanager
def reading(
    path: Path, expected: Format, check: Callable[[h5py.File], None] = lambda file: None
) -> Iterator[h5py.File]:
    """Opens an existing file, also while it is written or after its writer was killed.

    The block must only read: any error in it is reported as damage of the file.

    Args:
        path: path of the file.
        expected: required kind of the file.
        check: check of the content that raises ContentError; skipped if it passed before and the
            file has not changed since.

    Raises:
        FileError: when the file may not be read, is foreign, newer or damaged, or has links out of
            itself.
    """
    with _opened(path, expected) as file:
        state = _state(path, check)
        _check_format(file, path, expected)
        if state not in _checked:
            _check_storage(file, path)
            check(file)
            _checked.append(state)
        yield file


def _state(path: Path, check: Callable[..., None]) -> tuple[Any, ...]:
    """A check and the state of a file; while it is the same, the check need not be repeated."""
    status = path.stat()
    return check, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def format_name(path: Path) -> str | None:
    """The format that a file declares; None if it is not HDF5 or declares none.

    Raises:
        FileError: when the file may not be read or is damaged.
    """
    if not path.is_file():
        return None
    if _superblock(path, _ANY)[:8] != SIGNATURE:
        return None
    with _opened(path, _ANY) as file:
        return _format_of(file)


@contextmanager
def _opened(path: Path, expected: Format) -> Iterator[h5py.File]:
    file = None
    try:
        with content_of(path, expected):
            file = _open(path, expected)
            yield file
    finally:
        with suppress(*_FAULTS):
            if file is not None:
                file.close()


@contextmanager
def content_of(path: Path, expected: Format) -> Iterator[None]:
    """Reports any error in the block as damage of a file.

    Raises:
        FileError: with one line that says so.
    """  # noqa: DOC501
    try:
        yield
    except _FAULTS as error:
        raise damaged(path, expected, error) from error


def _open(path: Path, expected: Format) -> h5py.File:
    header = _superblock(path, expected)
    if header[:8] != SIGNATURE:
        raise FileError(f"{path} is not a dlf-dynamics {expected.kind} (not HDF5)")
    state = _state(path, _require_ends)
    if state not in _checked:
        _require_ends(path)
        _checked.append(state)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        # The superblock flags a file whose writer has it open or was killed, with its length at the
        # time. Only such files are opened in SWMR mode.
        was_left = len(header) == 36 and bool(header[11] & 4)
        laid_out = int.from_bytes(header[28:36], "little") <= path.stat().st_size
        if not was_left or not laid_out or "checksum" in str(error):
            raise
    return _open_while_written(path)


def _require_ends(path: Path) -> None:
    """Refuses a file in which HDF5 would loop for ever over a heap of texts.

    A heap is a sequence of objects, each with a header of 16 bytes that contains its length. HDF5
    does not check that the remaining free space, object 0, has a length other than 0.

    Raises:
        ContentError: when there is such a heap.
    """
    with path.open("rb") as raw:
        head = raw.read(_TEXTS_BYTES)
        raw.seek(max(path.stat().st_size - _TEXTS_BYTES, len(head)))
        tail = raw.read(_TEXTS_BYTES)
    for content in (head, tail):
        for heap in _HEAP.finditer(content):
            position, end = heap.end(), heap.start() + int.from_bytes(heap[1], "little")
            while position + 16 <= min(end, len(content)):
                number = int.from_bytes(content[position : position + 2], "little")
                length = int.from_bytes(content[position + 8 : position + 16], "little")
                position += 16 + -(-length // 8) * 8 if number else length
                if position > end or (number, length) == (0, 0):
                    raise ContentError("its texts have no end")


def _open_while_written(path: Path) -> h5py.File:
    """Opens a file in SWMR mode, in which HDF5 retries when it reads a half-written piece.

    Before attempt n it waits for 2^n ns, and it makes 100 attempts, so that it would never return
    from a damaged piece. The number of attempts is set in the HDF5 library, as h5py has no function
    for it.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    library = ctypes.CDLL(h5py.h5p.__file__)
    if not hasattr(library, "H5Pset_metadata_read_attempts"):  # not found on Windows
        return h5py.File(path, "r", swmr=True)
    attempts = ctypes.c_uint(_READ_ATTEMPTS)
    library.H5Pset_metadata_read_attempts(ctypes.c_int64(access.id), attempts)
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


def _superblock(path: Path, expected: Format) -> bytes:
    """The first bytes of a file: of an HDF5 file, signature, flags and length."""
    if not os.access(path, os.R_OK):
        raise FileError(f"{expected.kind} {path} cannot be read; it needs read permission")
    with path.open("rb") as raw:
        return raw.read(36)


def _format_of(file: h5py.File) -> str | None:
    name = file.attrs.get("format")
    return None if name is None else str(name)[:100]


def _check_format(file: h5py.File, path: Path, expected: Format) -> None:
    """Requires that the file declares this format, in the same major version.

    Raises:
        ContentError: when the version is malformed.
        FileError: when the format is another one or the version newer.
        StaleError: when the version is older.
    """
    name = _format_of(file)
    if name != expected.name:
        raise FileError(
            f"{path} is not a dlf-dynamics {expected.kind} (format {name!r}, not {expected.name!r})"
        )
    stored = attribute(file, "format_version")
    if not re.fullmatch(r"[0-9]{1,4}\.[0-9]{1,4}", stored):
        raise ContentError(f"its format version is {stored[:100]!r}")
    major, found_major = (version.split(".")[0] for version in (expected.version, stored))
    if int(found_major) < int(major):
        raise StaleError(
            f"{path} was made by an older version (format {stored[:100]}; this program reads "
            f"{major}.x)",
            expected.remedy,
        )
    if found_major != major:
        raise FileError(
            f"{path} has format version {stored[:100]}; this program reads {major}.x: "
            "use a newer dlf-dynamics"
        )


def minor_version(file: h5py.File) -> int:
    """Minor number of the file's format version."""
    return int(attribute(file, "format_version").split(".")[1])


def _check_storage(file: h5py.File, path: Path) -> None:
    """Refuses content outside of the file, and more content than fits into its size."""
    links: list[tuple[bytes, int]] = []
    # Objects are opened later: h5py loses errors in functions that HDF5 calls.
    file.id.links.visit(lambda name, link: links.append((name, link.type)), info=True)
    datasets: list[h5py.h5d.DatasetID] = []
    for name, kind in links:
        where = _printable(name)
        if kind != h5l.TYPE_HARD:
            link = _LINKS.get(kind, "a link of a foreign kind")
            raise ContentError(f"/{where} is {link}, which this program neither writes nor follows")
        item = h5o.open(file.id, name)
        if isinstance(item, h5py.h5d.DatasetID):
            _require_inside(item, where)
            datasets.append(item)
    # Read last: in a file that is being written, the bytes of a row come before the row.
    size = path.stat().st_size
    for dataset in datasets:
        promised = prod(dataset.shape or (0,)) * dataset.get_type().get_size()
        if promised > size:
            raise ContentError(
                f"{_printable(h5i.get_name(dataset))} promises {promised:,} bytes in a file "
                f"of {size:,}"
            )


def _require_inside(dataset: h5py.h5d.DatasetID, where: str) -> None:
    """Raises ContentError if the values of a dataset are stored elsewhere or compressed."""
    options = dataset.get_create_plist()
    if options.get_layout() == h5py.h5d.VIRTUAL:
        raise ContentError(f"/{where} is a view of other files, which are not followed")
    if options.get_layout() == h5py.h5d.CONTIGUOUS and options.get_external_count():
        raise ContentError(f"/{where} has its values in other files, which are not followed")
    if options.get_nfilters():
        raise ContentError(
            f"/{where} is compressed, which this program never does; h5repack -f NONE unpacks it"
        )


def _printable(name: bytes | None) -> str:
    return ascii((name or b"?").decode(errors="replace"))[1:-1][:100]


def damaged(path: Path, expected: Format, error: BaseException | str) -> FileError:
    """An error of one line: what is wrong, in the words of HDF5 or ours, and what to do."""
    if isinstance(error, MemoryError):
        reason = "it asks for more memory than there is"
    elif isinstance(error, RecursionError):
        reason = "its texts are nested too deeply"
    else:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        by_hdf5 = None if isinstance(error, UserError | str) else _OF_HDF5.fullmatch(reason)
        reason = by_hdf5[1] if by_hdf5 else reason
    return FileError(f"{path} is damaged: {reason[:300]}; {expected.remedy}")


def errno(error: Exception) -> int | None:
    """The system's error number, which h5py may give only in its message."""
    match = re.search(r"errno = (\d+)", str(error))
    return int(match[1]) if match else getattr(error, "errno", None)


def require_replaceable(path: Path) -> None:
    """Refuses to replace a folder, a device or a pipe by a file.

    Raises:
        FileError: when the path exists and is not a file.
    """
    if path.is_dir():
        raise FileError(f"{path} is a directory; expected the name of a file")
    if path.exists() and not path.is_file():
        raise FileError(f"{path} is a device or a pipe; expected the name of a file")


def write_error(path: Path, error: Exception) -> FileError:
    """An error of one line that says why a file could not be written."""
    if not path.parent.is_dir():
        return FileError(f"{path} cannot be written: directory {path.parent} does not exist")
    number = errno(error)
    reason = os.strerror(number) if number else str(error).splitlines()[0]
    return FileError(f"{path} cannot be written: {reason}")


def dataset_at(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset at a path.

    Raises:
        ContentError: when it is missing, a group, or a dataset without values.
    """
    item = file.get(path)
    if item is None:
        raise ContentError(f"/{path} is missing")
    if not isinstance(item, h5py.Dataset):
        raise ContentError(f"/{path} is a group; expected a dataset")
    if item.shape is None:
        raise ContentError(f"/{path} has no values")
    return item


def own_chunks(columns: int) -> dict[str, Any]:
    """Options of a dataset with one chunk per row, allocated in the file from the start.

    Rows can then be written without HDF5, on systems that have `pwrite`.
    """
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if hasattr(os, "pwrite"):
        options.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        options.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return {"chunks": (1, columns), "dcpl": options}


def has_own_chunks(dataset: h5py.Dataset) -> bool:
    """Whether a dataset was made with `own_chunks`, on a system where that has an effect."""
    options = dataset.id.get_create_plist()
    return bool(options.get_alloc_time() == h5py.h5d.ALLOC_TIME_EARLY)


def text(file: h5py.File, path: str) -> str:
    """A string stored in the file.

    Raises:
        ContentError: when there is none, or it is too long or not UTF-8.
    """
    dataset = dataset_at(file, path)
    if dataset.shape != () or h5py.check_string_dtype(dataset.dtype) is None:
        raise ContentError(f"/{path} is not a text")
    return _decoded(dataset[()], f"/{path}")


def attribute(item: h5py.HLObject, name: str, kind: type[Value] = str) -> Value:
    """An attribute of a file, group or dataset.

    Raises:
        ContentError: when it is missing or has another type.
    """
    where = f"attribute {name} of {_printable((item.name or '').encode())}"
    if name not in item.attrs:
        raise ContentError(f"{where} is missing")
    value = item.attrs[name]
    if kind is bool and isinstance(value, np.bool_):
        return kind(value)
    if not isinstance(value, kind):
        raise ContentError(f"{where} is no {kind.__name__}")
    return _decoded(value.encode(), where) if isinstance(value, str) else value  # type: ignore[return-value]


def json_object(content: str, where: str) -> dict[str, Any]:
    """Parses a text that must be a JSON object.

    Raises:
        ContentError: when it is not one.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ContentError(f"{where}: {reason}") from error
    if not isinstance(value, dict):
        raise ContentError(f"{where}: found {type(value).__name__}; expected a JSON object")
    return value


def _decoded(content: bytes, where: str) -> str:
    if len(content) > _MOST_TEXT:
        raise ContentError(f"{where} has {len(content):,} bytes; expected at most {_MOST_TEXT:,}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ContentError(f"{where} is not UTF-8 text") from error
