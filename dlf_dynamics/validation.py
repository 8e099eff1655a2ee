"""Checks a run file against its schema."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dlf_dynamics import schema
from dlf_dynamics.config import RunConfig
from dlf_dynamics.hdf5 import ContentError, attribute, dataset_at, json_object, text
from dlf_dynamics.loop import Recording
from dlf_dynamics.runfile import is_cut_off, open_file
from dlf_dynamics.runreader import (
    complete_steps,
    grown,
    read_config,
    read_data,
    read_held_out,
    read_rows,
    read_scalars,
    read_settings,
    require_header,
    resume_state,
)
from dlf_dynamics.schema import STEP_OF

STATUSES = ("running", "complete", "interrupted", "diverged")

_BLOCK_BYTES = 2**24


def problems(path: Path) -> list[str]:
    """The faults of a run file, a line each; empty if it is valid.

    Raises:
        FileError: when it cannot be opened as a run file at all.
    """
    with open_file(path, check=_nothing) as file:
        faults = list(schema.faults(file))
        if not faults and file.swmr_mode and is_cut_off(file):
            faults = ["its end was cut off"]
        if not faults:
            faults = [*_texts(file), *_axes(file), *_data(file)]
            faults += [*_checkpoints(file), *_scalars(file), *_resume(file), *_progress(file)]
        return faults


def _nothing(file: h5py.File) -> None:
    """Replaces the check of `open_file`, whose faults are all listed here."""


def _fault(read: Any, *arguments: Any) -> Iterator[str]:
    """The fault that a reader reports, if any."""
    try:
        read(*arguments)
    except ContentError as error:
        yield str(error)


def _texts(file: h5py.File) -> Iterator[str]:
    status = text(file, "status")
    if status not in STATUSES:
        yield f"/status is {status!r}; expected one of {', '.join(STATUSES)}"
    if status == "running":
        yield "/status is 'running': still being written, or its writer was killed (repair it)"
    own = "recording" in file
    faults = [*_fault(read_settings if own else read_config, file)]
    faults += _fault(lambda: json_object(text(file, "provenance"), "/provenance"))
    if own:
        faults += _fault(lambda: Recording.from_json(text(file, "recording")))
    yield from faults or _fault(require_header, file)


def _axes(file: h5py.File) -> Iterator[str]:
    for axis, path in STEP_OF.items():
        steps = dataset_at(file, path)[:]
        if len(steps) and (steps[0] < 0 or np.any(np.diff(steps) <= 0)):
            yield f"/{path} does not increase"
        for other in grown(file, axis):
            length = len(dataset_at(file, other))
            if length != len(steps):
                yield f"/{other} has {length} rows; expected {len(steps)}, as /{path}"
        values = (entry.path for entry in schema.growing(axis, schema.entries(file)))
        for name in sorted({schema.step_beside(value) for value in values if value in file}):
            if file.get(name) != file[path]:
                yield f"/{name} is not the dataset /{path}; expected another name of it (repair it)"


def _data(file: h5py.File) -> Iterator[str]:
    yield from _fault(read_data, file, "inputs", "targets", attribute(file["data"], "sha256"))
    yield from _fault(read_held_out, file)


def _checkpoints(file: h5py.File) -> Iterator[str]:
    """Faults in the values of checkpoints, the first of each dataset."""
    rows = np.arange(len(complete_steps(file, "checkpoints")))
    for entry in schema.growing("checkpoints", schema.entries(file)):
        if entry.path not in file:
            continue
        row = dataset_at(file, entry.path)[:1].nbytes
        for block in _blocks(rows, row):
            faults = list(_fault(read_rows, file, [entry.path], block))
            if not faults and entry.path == "parameters/value":
                faults = list(
                    _not_finite(dataset_at(file, entry.path)[block[0] : block[-1] + 1], block[0])
                )
            yield from faults
            if faults:
                break


def _not_finite(parameters: np.ndarray, first: int) -> Iterator[str]:
    finite = np.all(np.isfinite(parameters), axis=1)
    if not np.all(finite):
        yield f"/parameters/value[{first + int(np.argmin(finite))}] is not finite"


def _scalars(file: h5py.File) -> Iterator[str]:
    for block in _blocks(np.arange(len(complete_steps(file, "steps"))), 256):
        faults = list(_fault(read_scalars, file, slice(block[0], block[-1] + 1)))
        yield from faults
        if faults:
            return


def _blocks(rows: np.ndarray, row_bytes: int) -> Iterator[np.ndarray]:
    length = max(_BLOCK_BYTES // max(row_bytes, 1), 1)
    for start in range(0, len(rows), length):
        yield rows[start : start + length]


def _resume(file: h5py.File) -> Iterator[str]:
    yield from _fault(resume_state, file)
    if text(file, "status") in ("complete", "diverged") and "resume/step" in file:
        step = int(dataset_at(file, "resume/step")[()])
        if step != -1:
            yield f"/resume/step is {step} in a run that is {text(file, 'status')}"


def _progress(file: h5py.File) -> Iterator[str]:
    """Faults of the rows of a run of `train`, given its status and configuration."""
    if "recording" in file:
        return
    status = text(file, "status")
    try:
        config = read_config(file)
    except ContentError:
        return
    steps = complete_steps(file, "steps")
    last = int(steps[-1]) if len(steps) else -1
    if not np.array_equal(steps, np.arange(len(steps))):
        yield "/scalars/step leaves out steps"
    if last > config.steps or (status == "complete" and last < config.steps):
        yield f"/scalars/step ends at {last} in a run of {config.steps} steps that is {status}"
    bad = np.flatnonzero(~np.isfinite(dataset_at(file, "scalars/loss/value")[: len(steps)]))
    if status == "diverged" and bad[-1:].tolist() == [len(steps) - 1]:
        bad = bad[:-1]
    elif status == "diverged":
        yield f"/scalars/loss/value is finite at the last step of a run that is {status}"
    if len(bad):
        yield f"/scalars/loss/value[{bad[0]}] is not finite in a run that is {status}"
    yield from _places(file, config, status, last)


def _places(file: h5py.File, config: RunConfig, status: str, last: int) -> Iterator[str]:
    """Faults of the steps of the checkpoints."""
    steps = complete_steps(file, "checkpoints").tolist()
    end = last - 1 if status == "diverged" else last
    expected = [*range(0, end + 1, config.checkpoint_every)]
    if status != "diverged" and last == config.steps and last not in expected:
        expected.append(last)
    if status not in ("complete", "diverged"):  # the last checkpoints may not have been written
        expected = expected[: len(steps)]
    if steps != expected:
        wrong = next((a for a, b in zip(steps, expected, strict=False) if a != b), None)
        there = f"step {wrong}" if wrong is not None else f"{len(steps)} of {len(expected)}"
        yield (
            f"/parameters/step has {there}; expected every {config.checkpoint_every} of {end} steps"
        )
