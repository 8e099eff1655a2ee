"""Run files: created in one piece, then only appended to, in HDF5's single-writer mode.

A killed writer leaves a file that opens, in which each row is complete or absent.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dlf_dynamics import schema
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import to_json
from dlf_dynamics.datasets import digest
from dlf_dynamics.errors import FileError
from dlf_dynamics.hdf5 import (
    ContentError,
    dataset_at,
    own_chunks,
    reading,
    text,
)
from dlf_dynamics.outputs import Output, handed_over, hold
from dlf_dynamics.runreader import (
    complete_steps,
    grown,
    has_checksums,
    header_sha256,
    require_header,
    resume_state,
)
from dlf_dynamics.runwriter import RESUME, RunWriter, new_file
from dlf_dynamics.scales import attach, counted
from dlf_dynamics.schema import CHECKSUM_OF, FORMAT, RESUME_CHECKSUM, STEP_OF, Entry

INLINE_DATA_BYTES = 64 * 2**20
"""Data sets up to this size are stored in the run file; larger ones by recipe and hash only."""

_CHUNK_BYTES = 2**20
_STATUS_TYPE = h5py.string_dtype("ascii", 16)
_WEIGHTS = "scalars/class_weights"
_DATA = ("inputs", "targets", "validation_inputs", "validation_targets")


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes of a run file that do not grow."""

    params: int
    state: int
    classes: int


@dataclass(frozen=True)
class Header:
    """The content of a run file before the first row.

    Attributes:
        config: configuration as JSON; for a custom training loop, what its author wants to store.
        data_kind: name of the data set.
        data_sha256: digest of the data set.
        inputs: inputs of the data, stored unless they are large; None stores no data.
        targets: targets of the data.
        dtype: type of parameters and scalars.
        layout: layout of the parameter vector, as text.
        provenance: provenance as JSON.
        recording: what `Recorder` was told, as JSON; None for runs of `train`.
        validation: inputs and targets of the examples held out.
        own_schedule: whether class weights come from the user and not from the configuration.
        scalars: names of the scalars of each step of a recording.
        updates: whether the update before each checkpoint of a recording is stored.
        edges: whether the realized edge of steps is stored.
    """

    config: str
    data_kind: str
    data_sha256: str
    inputs: np.ndarray | None
    targets: np.ndarray | None
    dtype: str
    layout: str
    provenance: str
    recording: str | None = None
    validation: tuple[np.ndarray, np.ndarray] | None = None
    own_schedule: bool = False
    scalars: tuple[str, ...] = ()
    updates: bool = True
    edges: bool = False


def create(path: Path | Output, header: Header, sizes: Sizes) -> RunWriter:
    """Creates a run file for appending; it gets its name when all but the rows is written.

    Args:
        path: path of the file, or the file held for writing; it is held until the writer closes.
        header: content before the first row.
        sizes: lengths of the axes that do not grow.

    Raises:
        FileError: when the file cannot be written, or another process writes it.
    """
    with handed_over(path) as output, new_file(output) as file:
        own = header.recording is not None
        entries = _of_loop(header) if own else _of_train(header)
        _declare(file, header.dtype, sizes, entries)
        file.attrs.update(
            format=FORMAT.name,
            format_version=FORMAT.version,
            run_id=uuid.uuid4().hex,
            created=json.loads(header.provenance)["created"],
        )
        file["config"] = header.config
        file["provenance"] = header.provenance
        if header.recording is not None:
            file["recording"] = header.recording
        file["parameters"].attrs["layout"] = header.layout
        if _WEIGHTS in file:
            file[_WEIGHTS].attrs["own_schedule"] = header.own_schedule
        group = file.create_group("data")
        group.attrs.update(kind=header.data_kind, sha256=header.data_sha256)
        data = _stored_data(header)
        if "validation_inputs" in data:
            held_out = data["validation_inputs"], data["validation_targets"]
            group.attrs["validation_sha256"] = digest(*held_out)
        file.attrs["header_sha256"] = header_sha256(file)
        _store(file, data)  # after all texts, which are checked at the ends of the file
        file.flush()
        return RunWriter(file, output)


def _stored_data(header: Header) -> dict[str, Any]:
    """The data to store in the file, by name."""
    if header.inputs is None or header.inputs.nbytes > INLINE_DATA_BYTES:
        return {}
    values = (header.inputs, header.targets, *(header.validation or ()))
    return dict(zip(_DATA, values, strict=False))


def _of_loop(header: Header) -> tuple[Entry, ...]:
    return schema.recorded(header.scalars, updates=header.updates)


def _of_train(header: Header) -> tuple[Entry, ...]:
    return schema.trained(validation=header.validation is not None, edges=header.edges)


def reopen(path: Path | Output, config: RunConfig, upto: int) -> RunWriter:
    """Opens a run file to continue it; rows from step `upto` on are dropped.

    The rows are copied to a new file that then replaces the old one, so that a kill at any moment
    leaves one or the other.
    """
    with handed_over(path) as output:
        copy(output.target, output, upto=upto, config=config)
        return RunWriter(h5py.File(output.target, "r+", libver="latest"), output)


def copy(
    source: Path, target: Path | Output, upto: int | None = None, config: RunConfig | None = None
) -> None:
    """Copies the complete rows of a run file, those before step `upto`, by way of a new file.

    Rows keep their checksums, so that damaged rows are still recognised. A file of an older version
    keeps its version.

    Raises:
        FileError: when the source cannot be read, the target cannot be written, or another process
            writes it.
    """
    with open_file(source):  # faults of the file are reported before those of its folder
        pass
    with ExitStack() as stack:
        output = target if isinstance(target, Output) else stack.enter_context(hold(target))
        old = stack.enter_context(open_file(source))
        new = stack.enter_context(new_file(output))
        dtype = dataset_at(old, "parameters/value").dtype.name
        _declare(new, dtype, _sizes(old), schema.entries(old))
        new.attrs.update(dict(old.attrs))
        for group in ("parameters", _WEIGHTS):
            if group in old:
                new[group].attrs.update(dict(old[group].attrs))
        new["config"] = text(old, "config") if config is None else to_json(config)
        new["provenance"] = text(old, "provenance")
        if "recording" in old:
            old.copy("recording", new)
        new.create_group("data").attrs.update(dict(old["data"].attrs))
        _store(new, {n: dataset_at(old, f"data/{n}")[...] for n in _DATA if f"data/{n}" in old})
        if config is not None and has_checksums(old):
            require_header(old)
            new.attrs["header_sha256"] = header_sha256(new)
        for axis in STEP_OF:
            _copy_rows(old, new, axis, upto)
        if upto is None:
            status = text(old, "status").replace("running", "interrupted")
            dataset_at(new, "status")[()] = status.encode()
            _copy_resume(old, new)
        new.close()


def _copy_resume(old: h5py.File, new: h5py.File) -> None:
    """Copies the state at the interruption; if it is damaged, the run continues at a checkpoint."""
    with suppress(ContentError):
        if resume_state(old) is not None:
            for path in (*RESUME, RESUME_CHECKSUM, "resume/step"):
                if path in new:
                    dataset_at(new, path)[...] = dataset_at(old, path)[...]


def _copy_rows(old: h5py.File, new: h5py.File, axis: str, upto: int | None) -> None:
    steps = complete_steps(old, axis)
    length = len(steps) if upto is None else int(np.searchsorted(steps, upto))
    for path in grown(old, axis):
        source, target = dataset_at(old, path), dataset_at(new, path)
        target.resize(length, axis=0)
        block = (target.chunks or (1,))[0]
        for start in range(0, length, block):
            stop = min(start + block, length)
            target[start:stop] = source[start:stop]
        target.flush()


@contextmanager
def open_file(path: Path, check: Callable[[h5py.File], None] | None = None) -> Iterator[h5py.File]:
    """Opens a run file for reading, also while it is written or after its writer was killed.

    Args:
        path: path of the file.
        check: check as in `hdf5.reading`; None checks that all datasets exist and fit together.

    Raises:
        FileError: when it is missing, foreign, damaged or of a newer format.
    """
    if not path.is_file():
        raise FileError(f"run file {path} does not exist; `dlf-dynamics train -o {path}` makes one")
    with reading(path, FORMAT, check or _check) as file:
        yield file


def _check(file: h5py.File) -> None:
    for fault in schema.faults(file):
        raise ContentError(fault)
    if file.swmr_mode and is_cut_off(file):
        raise ContentError("its end was cut off")


def is_cut_off(file: h5py.File) -> bool:
    """Whether rows of recorded steps lie beyond the end of a file that was not closed.

    HDF5 does not notice this: it searches for a missing index for ever, and reads missing rows as
    zeros. Therefore the bytes of all rows (chunks are written completely) are counted before any
    index is read, and then the position of each chunk is looked up.
    """
    lengths = [(name, len(dataset_at(file, steps))) for name, steps in STEP_OF.items()]
    datasets = [
        (dataset_at(file, path), rows) for name, rows in lengths for path in grown(file, name)
    ]
    size, ends = Path(file.filename).stat().st_size, [0]
    for dataset, rows in datasets:
        chunk = dataset.chunks or (1,)
        pieces = prod(-(-n // c) for n, c in zip((rows, *dataset.shape[1:]), chunk, strict=True))
        ends[0] += pieces * prod(chunk) * dataset.dtype.itemsize
    if ends[0] > size:
        return True
    for dataset, rows in datasets:
        dataset.id.chunk_iter(
            lambda chunk, rows=rows: ends.append(
                chunk.byte_offset + chunk.size if chunk.chunk_offset[0] < rows else 0
            )
        )
    return max(ends) > size


def _declare(file: h5py.File, dtype: str, sizes: Sizes, entries: tuple[Entry, ...]) -> None:
    """Creates all datasets for the writer, without rows, and the scales of their axes."""
    status = file.create_dataset("status", data=b"running", dtype=_STATUS_TYPE)
    status.attrs["_Encoding"] = "utf-8"
    lengths = vars(sizes) | {"checkpoints": 0, "steps": 0}
    for entry in entries:  # checksums come last, when the number of values is known
        if entry.kind == "text" or entry.path.startswith("data/"):
            continue
        lengths["values"] = len(_declared(file, "checkpoints", entries))
        shape = tuple(lengths[name] for name in entry.dims)
        if 0 in shape[entry.growing :]:
            continue
        options: dict[str, Any] = {}
        if entry.growing:
            options = {"maxshape": (None, *shape[1:]), **_chunks(shape)}
        kind = np.int64 if entry.kind == "int" else np.dtype(dtype)
        fill = -1 if entry.path == "resume/step" else 0
        dataset = file.create_dataset(entry.path, shape, kind, fillvalue=fill, **options)
        dataset.attrs.update(
            units=entry.units, dims=list(entry.dims), description=entry.description
        )
    _name_axes(file, entries)
    for axis, steps in STEP_OF.items():
        values = _declared(file, axis, entries)
        for path in values:
            link = schema.step_beside(path)
            if link not in file:
                file[link] = file[steps]
        if CHECKSUM_OF[axis] in file:
            file[CHECKSUM_OF[axis]].attrs["values"] = values


def _store(file: h5py.File, data: Mapping[str, np.ndarray]) -> None:
    """Writes the data into their group, by name."""
    made = {name: file.create_dataset(f"data/{name}", v.shape, v.dtype) for name, v in data.items()}
    # Scales first: they contain texts, which are checked only at the ends of a file.
    _name_axes(file, [entry for entry in schema.SCHEMA if entry.path.startswith("data/")])
    for name, values in data.items():
        made[name][...] = values


def _name_axes(file: h5py.File, entries: Iterable[Entry]) -> None:
    """Makes a scale for each axis (steps if it grows) and attaches it to its datasets."""
    existing = [(entry, dataset_at(file, entry.path)) for entry in entries if entry.path in file]
    for entry, dataset in existing:
        if entry.path in STEP_OF.values():
            dataset.make_scale("step")
            continue
        axes = enumerate(entry.axes(dataset.ndim))
        paths = [schema.scale_of(entry, index, name) for index, name in axes]
        attach(dataset, [counted(file, path) for path in paths])


def _declared(file: h5py.File, axis: str, entries: tuple[Entry, ...]) -> list[str]:
    """Paths of the values along an axis that exist in the file."""
    return [entry.path for entry in schema.growing(axis, entries) if entry.path in file]


def _chunks(shape: tuple[int, ...]) -> dict[str, Any]:
    row = 8 * int(np.prod(shape[1:], dtype=int))
    rows = int(np.clip(_CHUNK_BYTES // 4 // row, 1, 4096))
    if rows == 1 and len(shape) == 2 and row < 2**32:  # HDF5's limit of a chunk
        return own_chunks(shape[1])
    return {"chunks": (rows, *shape[1:])}


def _sizes(file: h5py.File) -> Sizes:
    state = dataset_at(file, "optimizer/value").shape[1] if "optimizer/value" in file else 0
    classes = dataset_at(file, f"{_WEIGHTS}/value").shape[1] if _WEIGHTS in file else 0
    return Sizes(dataset_at(file, "parameters/value").shape[1], state, classes)
