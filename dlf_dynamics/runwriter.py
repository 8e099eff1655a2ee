"""`RunWriter`: appends rows to a run file so that a kill leaves each row complete or absent.

The module also creates new files and handles errors of writing, for study files as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import h5py
import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics import checksums
from dlf_dynamics.errors import FileError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.hdf5 import (
    dataset_at,
    errno,
    has_own_chunks,
    require_replaceable,
    write_error,
)
from dlf_dynamics.memory import bytes_in_words
from dlf_dynamics.outputs import Output, partial_path
from dlf_dynamics.schema import CHECKSUM_OF, RESUME_CHECKSUM, STEP_OF, UPDATE, VALIDATION, covered

RESUME = ("resume/parameters", "resume/previous_update", "resume/optimizer")
"""The vectors of the state at which a run was interrupted."""

_ON_THE_WAY = 2
"""Number of rows before the last that may not be on disk yet."""

_LAID_OUT_BYTES = 2**20


class RunWriter:
    """Appends rows to a run file. Use it as a context manager."""

    def __init__(self, file: h5py.File, output: Output) -> None:
        file.swmr_mode = True
        self._file = file
        self._output = output
        self._path = output.path
        self._columns: dict[str, _Column] = {}
        self._covered: dict[str, list[str]] = {}

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._output, writing(self._file, self._path):
            self._file.close()

    def append_scalars(
        self, steps: Int[np.ndarray, " rows"], values: Mapping[str, np.ndarray]
    ) -> None:
        """Appends the scalars of these steps, by name: all scalars that the file has."""
        columns = {f"scalars/{name}/value": rows for name, rows in values.items()}
        self._append("steps", steps, columns)

    def append_checkpoints(
        self, points: list[FlatState], objectives: Float[np.ndarray, " points"] | None = None
    ) -> None:
        """Appends checkpoints in the order of their steps; `Recorder` adds the loss at each."""
        if not points:
            return
        values = {"parameters/value": _rows([p.params for p in points])}
        if UPDATE in self._file:
            values[UPDATE] = _rows([p.previous_update for p in points])
        if "optimizer/value" in self._file:
            values["optimizer/value"] = _rows([p.optimizer for p in points])
        if VALIDATION[0] in self._file:
            measures = np.array([p.validation for p in points])
            values |= dict(zip(VALIDATION, measures.T, strict=True))
        if objectives is not None:
            values["objective/value"] = objectives
            if UPDATE in values:
                known = [np.isfinite(update[0]) for update in values[UPDATE]]
                values["previous_update/known"] = np.array(known)
        self._append("checkpoints", np.array([p.step for p in points]), values)

    def set_resume(self, point: FlatState) -> None:
        """Records the state at which a run is interrupted, from which it will continue."""
        vectors = (point.params, point.previous_update, point.optimizer)
        with writing(self._file, self._path):
            stored = []
            for path, vector in zip(RESUME, vectors, strict=True):
                if path in self._file:
                    dataset = dataset_at(self._file, path)
                    stored.append(np.asarray(vector, dataset.dtype))
                    dataset[...] = stored[-1]
            if RESUME_CHECKSUM in self._file:
                checksum = checksums.of_vectors(point.step, stored)
                dataset_at(self._file, RESUME_CHECKSUM)[()] = checksum
            self._file.flush()
            dataset_at(self._file, "resume/step")[()] = point.step
            self._file.flush()

    def set_status(self, status: str) -> None:
        """Records the status of the run."""
        with writing(self._file, self._path):
            dataset_at(self._file, "status")[()] = status.encode()
            self._file.flush()

    def _append(
        self, axis: str, steps: Int[np.ndarray, " rows"], values: Mapping[str, np.ndarray]
    ) -> None:
        """Appends values first, steps last: a row exists once its step does."""
        with writing(self._file, self._path):
            steps = np.asarray(steps, np.int64)
            rows = {path: self._column(path).in_type(value) for path, value in values.items()}
            if CHECKSUM_OF[axis] in self._file:
                rows[CHECKSUM_OF[axis]] = self._checksums(axis, steps, rows)
            for path, value in [*rows.items(), (STEP_OF[axis], steps)]:
                self._column(path).append(value)

    def _column(self, path: str) -> _Column:
        if path not in self._columns:
            self._columns[path] = _Column(dataset_at(self._file, path))
        return self._columns[path]

    def _checksums(
        self, axis: str, steps: Int[np.ndarray, " rows"], rows: Mapping[str, np.ndarray]
    ) -> Int[np.ndarray, "rows ..."]:
        """Checksums of rows, in the types in which they are stored."""
        if axis not in self._covered:
            self._covered[axis] = covered(self._file, axis)
        values = [rows[path] for path in self._covered[axis]]
        if axis == "steps":
            return checksums.of_joined_rows(steps, values)
        return np.stack([checksums.of_rows(steps, value) for value in values], axis=1)


def _rows(vectors: list[np.ndarray]) -> np.ndarray:
    """Vectors as rows of a matrix; a single vector is not copied."""
    return vectors[0][None] if len(vectors) == 1 else np.stack(vectors)


class _Column:
    """A growing dataset; it remembers properties that HDF5 would look up for each row.

    Rows with their own chunks are written directly to the file: HDF5 holds Python's lock while it
    writes, and a loop that is being recorded would have to wait.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self._dtype = dataset, dataset.dtype
        self._length, *self._row = dataset.shape
        self._file = None
        if has_own_chunks(dataset):
            self._file = cast(int, dataset.file.id.get_vfd_handle())

    def in_type(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the type in which they are stored."""
        return np.ascontiguousarray(rows, self._dtype)

    def append(self, rows: np.ndarray) -> None:
        """Appends rows."""
        first, self._length = self._length, self._length + len(rows)
        self._dataset.id.set_extent((self._length, *self._row))
        if self._file is None:
            self._dataset[first:] = rows
        else:
            for number, row in enumerate(rows, start=first):
                _write(self._file, row, self._place(number))
            self._let_go(self._file, first)
        self._dataset.flush()

    def _place(self, row: int) -> int:
        """Offset of a row in the file."""
        return self._dataset.id.get_chunk_info_by_coord((row, 0)).byte_offset

    def _let_go(self, file: int, first: int) -> None:
        """Tells the system that it need not keep the rows in memory.

        The first call for a row starts writing it to disk; a later call frees its memory for new
        rows, as fresh memory on a virtual machine costs ten times as much time as writing.
        """
        if hasattr(os, "posix_fadvise"):  # not on macOS
            size = self._dtype.itemsize * self._row[0]
            for number in range(max(first - _ON_THE_WAY, 0), self._length):
                os.posix_fadvise(file, self._place(number), size, os.POSIX_FADV_DONTNEED)


def _write(file: int, row: np.ndarray, offset: int) -> None:
    """Writes a row at an offset of a file, without holding Python's lock."""
    left = row.data.cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


@contextmanager
def new_file(output: Output, size: int = _LAID_OUT_BYTES) -> Iterator[h5py.File]:
    """A file that gets its name if the block succeeds, and otherwise leaves no trace.

    Args:
        output: file to write, held by this process.
        size: upper bound of its initial size, in bytes.

    Raises:
        FileError: when it cannot be written, or a file that must not be replaced exists by now.
    """  # noqa: DOC501
    path, partial = output.path, partial_path(output.target)
    require_replaceable(path)
    try:
        try:
            require_space(path, size)
            # HDF5 crashes if the disk fills up while it creates a file: reserve the space first.
            _occupy(partial, size)
            file = h5py.File(partial, "w", libver="latest")
        except OSError as error:
            raise write_error(path, error) from error
        with writing(file, path):
            yield file
            output.place(partial)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def require_space(path: Path, size: int, advice: str = "") -> None:
    """Refuses a file that does not fit on the disk, before the disk is full.

    Args:
        path: path of the file.
        size: number of additional bytes that it needs.
        advice: what to do instead.

    Raises:
        FileError: when the disk has less space.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        reason = f"it would take {bytes_in_words(size)}, and {bytes_in_words(free)} are free"
        raise FileError(f"{path} cannot be written: {reason}{advice}")


def _occupy(path: Path, size: int) -> None:
    """Writes a file of zeros of at least this size."""
    with path.open("wb") as file:
        for _ in range(0, size, _LAID_OUT_BYTES):
            file.write(bytes(_LAID_OUT_BYTES))


@contextmanager
def writing(file: h5py.File, path: Path) -> Iterator[None]:
    """Turns an error of writing into one line and leaves the file as a kill would.

    HDF5 keeps data that it could not write, tries again when the file is closed, and crashes at
    exit. Therefore its file descriptor is redirected to the null device, which discards the rest.

    Raises:
        FileError: with the reason in one line.
    """  # noqa: DOC501
    try:
        yield
    except BaseException as error:
        if file:
            sink = os.open(os.devnull, os.O_RDWR)
            os.dup2(sink, cast(int, file.id.get_vfd_handle()))
            os.close(sink)
            with suppress(OSError, RuntimeError):
                file.close()
        if isinstance(error, OSError | RuntimeError) and errno(error):
            raise write_error(path, error) from error
        raise
