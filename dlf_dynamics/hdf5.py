"""HDF5 files as all kinds of this program share them: opening, checking, errors in one line.

A file may come from anybody, and may have been damaged or made to harm. `reading` is the one way
in: it refuses what leads out of the file and what promises more than the file can hold, and turns
all that HDF5 and NumPy find wrong with the content into one line.
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
"""Bytes of the longest text that is read; what this program writes has some thousands."""

_READ_ATTEMPTS = 27
"""Of a piece of a file that is being written: 0.1 s."""

_TEXTS_BYTES = 2**20
"""At the beginning and at the end of a file, within which this program writes its texts."""

_HEAP = re.compile(rb"GCOL\x01\0\0\0(.{8})", re.DOTALL)
"""The beginning of a heap of texts, with its length."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ContentError(FileError):
    """What is wrong with the content of a file; `reading` adds which one, and what to do."""


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
"""What reading a damaged file may raise, in HDF5, h5py, NumPy or json."""

_LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}

_OF_HDF5 = re.compile(r".*?(?:Unable to|Can't) [a-z ]+ \(([A-Za-z].*?)\)?[\"']?")
"""A complaint of HDF5: what could not be done, and why."""

_checked: deque[tuple[Any, ...]] = deque(maxlen=32)
"""Checks of files as they are now that found nothing: an analysis opens its run many times."""

Value = TypeVar("Value")


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


_ANY = Format("file", "", "1.0", "it cannot be read")


@contextmanager
def reading(
    path: Path, expected: Format, check: Callable[[h5py.File], None] = lambda file: None
) -> Iterator[h5py.File]:
    """Opens a file that exists, also while it is written or after its writer was killed.

    The block is for reading only: whatever goes wrong there is taken for damage of the file.

    Args:
        path: of the file.
        expected: what it must be.
        check: looks through the file, unless it has done so and the file has not changed since;
            raises ContentError.

    Raises:
        FileError: when it may not be read, is foreign, newer or damaged, or leads out of itself.
    """
    with _opened(path, expected) as file:
        state = _state(path, check)
        check_format(file, path, expected)
        if state not in _checked:
            _check_storage(file, path)
            check(file)
            _checked.append(state)
        yield file


def _state(path: Path, check: Callable[..., None]) -> tuple[Any, ...]:
    """What a check has found good, for as long as it stays the same."""
    found = path.stat()
    return check, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def format_name(path: Path) -> str | None:
    """What a file says it is; none where it is not HDF5, or does not say.

    Raises:
        FileError: when it may not be read or is damaged.
    """  # noqa: DOC501
    if not path.is_file():
        return None
    if not os.access(path, os.R_OK):
        raise _unreadable(path, _ANY)
    with path.open("rb") as raw:
        if raw.read(8) != SIGNATURE:
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
    """Takes whatever goes wrong in the block for damage of a file.

    Raises:
        FileError: a line that says so.
    """  # noqa: DOC501
    try:
        yield
    except _FAULTS as error:
        raise damaged(path, expected, error) from error


def _open(path: Path, expected: Format) -> h5py.File:
    if not os.access(path, os.R_OK):
        raise _unreadable(path, expected)
    with path.open("rb") as raw:
        header = raw.read(36)
    if header[:8] != SIGNATURE:
        raise FileError(f"{path} is not a dlf-dynamics {expected.kind} (not HDF5)")
    state = _state(path, _require_ends)
    if state not in _checked:
        _require_ends(path)
        _checked.append(state)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        # The superblock flags a file that a writer has open, or had when it was killed, and knows
        # the length it then had. No other file is for SWMR mode.
        was_left = len(header) == 36 and bool(header[11] & 4)
        laid_out = int.from_bytes(header[28:36], "little") <= path.stat().st_size
        if not was_left or not laid_out or "checksum" in str(error):
            raise
    return _open_while_written(path)


def _require_ends(path: Path) -> None:
    """Refuses a file in which HDF5 would go through a heap of texts for ever.

    A heap is a chain of objects of 16 bytes and what they hold, each of which has its length. HDF5
    does not ask whether the room that is left, which has the number 0, has a length at all.

    Raises:
        ContentError: when there is such a heap.
    """
    with path.open("rb") as raw:
        head = raw.read(_TEXTS_BYTES)
        raw.seek(max(path.stat().st_size - _TEXTS_BYTES, len(head)))
        tail = raw.read(_TEXTS_BYTES)
    for content in (head, tail):
        for heap in _HEAP.finditer(content):
            place, end = heap.end(), heap.start() + int.from_bytes(heap[1], "little")
            while place + 16 <= min(end, len(content)):
                number = int.from_bytes(content[place : place + 2], "little")
                length = int.from_bytes(content[place + 8 : place + 16], "little")
                place += 16 + -(-length // 8) * 8 if number else length
                if place > end or (number, length) == (0, 0):
                    raise ContentError("its texts have no end")


def _open_while_written(path: Path) -> h5py.File:
    """Opens a file in SWMR mode, in which HDF5 tries again where it meets a piece half written.

    It waits longer each time, 2^n ns before attempt n, and makes 100 attempts: on a damaged piece
    it would wait for ever. h5py does not have the function that sets their number, its library has.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    library = ctypes.CDLL(h5py.h5p.__file__)
    if not hasattr(library, "H5Pset_metadata_read_attempts"):  # Windows looks in one library only
        return h5py.File(path, "r", swmr=True)
    attempts = ctypes.c_uint(_READ_ATTEMPTS)
    library.H5Pset_metadata_read_attempts(ctypes.c_int64(access.id), attempts)
    flags = h5py.h5f.ACC_RDONLY | h5py.h5f.ACC_SWMR_READ
    return h5py.File(h5py.h5f.open(os.fsencode(path), flags, access))


def _unreadable(path: Path, expected: Format) -> FileError:
    return FileError(f"{expected.kind} {path} cannot be read; it needs read permission")


def _format_of(file: h5py.File) -> str | None:
    found = file.attrs.get("format")
    return None if found is None else str(found)[:100]


def check_format(file: h5py.File, path: Path, expected: Format) -> None:
    """Requires that the file names this format, in the same major version.

    Raises:
        ContentError: when its version is none.
        FileError: when it is of another format or a newer version.
        StaleError: when it is of an older version.
    """
    found = _format_of(file)
    if found != expected.name:
        raise FileError(
            f"{path} is not a dlf-dynamics {expected.kind} (format {found!r}, "
            f"not {expected.name!r})"
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
    """Of the file's format version."""
    return int(attribute(file, "format_version").split(".")[1])


def _check_storage(file: h5py.File, path: Path) -> None:
    """Refuses what is not in the file itself, and what cannot all be in a file of its size."""
    links: list[tuple[bytes, int]] = []
    # Nothing is opened on the way: h5py loses errors of functions that HDF5 calls.
    file.id.links.visit(lambda name, link: links.append((name, link.type)), info=True)
    datasets: list[h5py.h5d.DatasetID] = []
    for name, kind in links:
        where = _printable(name)
        if kind != h5l.TYPE_HARD:
            told = _LINKS.get(kind, "a link of a foreign kind")
            raise ContentError(f"/{where} is {told}, which this program neither writes nor follows")
        item = h5o.open(file.id, name)
        if isinstance(item, h5py.h5d.DatasetID):
            _require_inside(item, where)
            datasets.append(item)
    # Asked for last: a file that is being written has the bytes of a row before it has the row.
    size = path.stat().st_size
    for dataset in datasets:
        promised = prod(dataset.shape or (0,)) * dataset.get_type().get_size()
        if promised > size:
            raise ContentError(
                f"{_printable(h5i.get_name(dataset))} promises {promised:,} bytes in a file "
                f"of {size:,}"
            )


def _require_inside(dataset: h5py.h5d.DatasetID, where: str) -> None:
    """Raises ContentError where the values of a dataset are kept elsewhere, or packed."""
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
    """A line that says what is wrong, as HDF5 or in our words, and what to do."""
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
    """The dataset at a path, with its values.

    Raises:
        ContentError: when there is none, a group, or one without values.
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
    """A string stored in the file.

    Raises:
        ContentError: when there is none, or not one of reasonable length in UTF-8.
    """
    dataset = dataset_at(file, path)
    if dataset.shape != () or h5py.check_string_dtype(dataset.dtype) is None:
        raise ContentError(f"/{path} is not a text")
    return _decoded(dataset[()], f"/{path}")


def attribute(item: h5py.HLObject, name: str, kind: type[Value] = str) -> Value:
    """An attribute of a file, group or dataset.

    Raises:
        ContentError: when it is missing or of another type.
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
    """A text as JSON, which must be an object.

    Raises:
        ContentError: when it is not.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ContentError(f"{where}: {reason}") from error
    if not isinstance(found, dict):
        raise ContentError(f"{where}: found {type(found).__name__}; expected an object of JSON")
    return found


def _decoded(content: bytes, where: str) -> str:
    if len(content) > _MOST_TEXT:
        raise ContentError(f"{where} has {len(content):,} bytes; expected at most {_MOST_TEXT:,}")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ContentError(f"{where} is not UTF-8 text") from error
