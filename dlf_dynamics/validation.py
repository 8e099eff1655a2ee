"""Whether a run file keeps what its schema promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import h5py
import numpy as np

from dlf_dynamics import schema
from dlf_dynamics.configfile import from_json
from dlf_dynamics.datasets import digest
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import text
from dlf_dynamics.runfile import open_file
from dlf_dynamics.schema import STEP_OF

STATUSES = ("running", "complete", "interrupted", "diverged")


def problems(path: Path) -> list[str]:
    """What is wrong with a run file, a line each; empty when it is valid.

    Raises:
        FileError: when it cannot even be opened as a run file.
    """
    with open_file(path) as file:
        return [
            *_entries(file),
            *_texts(file),
            *_axes(file),
            *_values(file),
            *_data(file),
        ]


def _entries(file: h5py.File) -> Iterator[str]:
    for entry in schema.entries(file):
        if entry.path not in file:
            continue
        dataset = cast(h5py.Dataset, file[entry.path])
        if "..." not in entry.dims and dataset.ndim != len(entry.dims):
            yield f"/{entry.path} has {dataset.ndim} axes; expected {len(entry.dims)}"
        kind = {"float": np.floating, "int": np.integer}.get(entry.kind)
        if kind is not None and not np.issubdtype(dataset.dtype, kind):
            yield f"/{entry.path} is of type {dataset.dtype}; expected {entry.kind}"


def _texts(file: h5py.File) -> Iterator[str]:
    status = text(file, "status")
    if status not in STATUSES:
        yield f"/status is {status!r}; expected one of {', '.join(STATUSES)}"
    if status == "running":
        yield "/status is 'running': still being written, or its writer was killed (repair it)"
    if "recording" in file:
        return
    try:
        from_json(text(file, "config"))
    except (ConfigError, ValueError) as error:
        yield f"/config: {error}"


def _axes(file: h5py.File) -> Iterator[str]:
    for axis, path in STEP_OF.items():
        steps = cast(h5py.Dataset, file[path])[:]
        if len(steps) and (steps[0] < 0 or np.any(np.diff(steps) <= 0)):
            yield f"/{path} does not increase"
        for entry in schema.growing(axis, schema.entries(file)):
            if entry.path in file:
                length = len(cast(h5py.Dataset, file[entry.path]))
                if length != len(steps):
                    yield f"/{entry.path} has {length} rows; expected {len(steps)}, as /{path}"


def _values(file: h5py.File) -> Iterator[str]:
    parameters = cast(h5py.Dataset, file["parameters/value"])
    for index in range(len(parameters)):
        if not np.all(np.isfinite(parameters[index])):
            yield f"/parameters/value[{index}] is not finite"
            return


def _data(file: h5py.File) -> Iterator[str]:
    if "data/inputs" not in file:
        return
    inputs, targets = (
        cast(h5py.Dataset, file[f"data/{name}"])[...] for name in ("inputs", "targets")
    )
    if len(inputs) != len(targets):
        yield f"/data/targets has {len(targets)} rows; expected {len(inputs)}, as /data/inputs"
    elif digest(inputs, targets) != file["data"].attrs["sha256"]:
        yield "/data does not have the hash that was recorded when training began"
