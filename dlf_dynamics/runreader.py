"""Reads an open run file: its header and its complete rows, with their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int, Shaped

from dlf_dynamics import checksums, schema
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import from_json
from dlf_dynamics.datasets import Dataset, check_dataset, digest
from dlf_dynamics.errors import ConfigError, DataError, counted
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.hdf5 import (
    ContentError,
    attribute,
    dataset_at,
    json_object,
    minor_version,
    text,
)
from dlf_dynamics.runwriter import RESUME
from dlf_dynamics.schema import CHECKSUM_OF, RESUME_CHECKSUM, STEP_OF, covered


def grown(file: h5py.File, axis: str) -> list[str]:
    """Paths of the datasets that grow along an axis, their checksums and steps last."""
    entries = (entry.path for entry in schema.growing(axis, schema.entries(file)))
    known = [CHECKSUM_OF[axis]] if has_checksums(file) else []
    return [path for path in (*entries, *known, STEP_OF[axis]) if path in file]


def complete_steps(file: h5py.File, axis: str) -> Int[np.ndarray, " rows"]:
    """Steps along an axis for which all values are there."""
    lengths = [len(dataset_at(file, path)) for path in grown(file, axis)]
    return dataset_at(file, STEP_OF[axis])[: min(lengths)]


def has_checksums(file: h5py.File) -> bool:
    """Whether the rows have checksums and the header a digest, as from version 1.3 on."""
    return minor_version(file) >= schema.WITH_CHECKSUMS


def header_sha256(file: h5py.File) -> str:
    """Digest of the header of a run file; the data have their own."""
    header: dict[str, Any] = {
        path: text(file, path) for path in ("config", "provenance", "recording") if path in file
    }
    header |= {name: attribute(file, name) for name in ("run_id", "created")}
    header["layout"] = attribute(file["parameters"], "layout")
    for name in ("kind", "sha256", "validation_sha256"):
        if name in file["data"].attrs:
            header[name] = attribute(file["data"], name)
    if "scalars/class_weights" in file:
        weights = file["scalars/class_weights"]
        header["own_schedule"] = attribute(weights, "own_schedule", bool)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def require_header(file: h5py.File) -> None:
    """Raises ContentError if the header differs from its digest."""
    known = "header_sha256" in file.attrs or has_checksums(file)
    if known and attribute(file, "header_sha256") != header_sha256(file):
        raise ContentError("its configuration, provenance or attributes are not what was written")


def read_rows(
    file: h5py.File, paths: Sequence[str], chosen: Int[np.ndarray, " chosen"]
) -> list[Shaped[np.ndarray, "chosen *row"]]:
    """Values of some checkpoints, given by index in any order.

    Raises:
        ContentError: when a row does not match its checksum.
    """
    values = [_taken(dataset_at(file, path), chosen) for path in paths]
    if has_checksums(file):
        names = covered(file, "checkpoints")
        expected = _taken(dataset_at(file, CHECKSUM_OF["checkpoints"]), chosen)
        steps = _taken(dataset_at(file, STEP_OF["checkpoints"]), chosen)
        for path, rows in zip(paths, values, strict=True):
            if path not in names:
                raise ContentError(f"/{path} has no checksums")
            changed = checksums.of_rows(steps, rows) != expected[:, names.index(path)]
            _require_unchanged(f"/{path}", steps[changed])
    return values


def read_scalars(file: h5py.File, rows: slice) -> dict[str, np.ndarray]:
    """Recorded scalars of some steps, by path.

    Raises:
        ContentError: when a row does not match its checksum.
    """
    paths = [entry.path for entry in schema.growing("steps", schema.entries(file))]
    columns = {path: dataset_at(file, path)[rows] for path in paths}
    if has_checksums(file):
        expected = dataset_at(file, CHECKSUM_OF["steps"])
        names, steps = covered(file, "steps"), dataset_at(file, STEP_OF["steps"])[rows]
        if set(names) != set(paths):
            raise ContentError("/scalars has other datasets than those with checksums")
        sums = checksums.of_joined_rows(steps, [columns[name] for name in names])
        _require_unchanged("/scalars", steps[sums != expected[rows]])
    return columns


def _require_unchanged(what: str, changed: Int[np.ndarray, " steps"]) -> None:
    if len(changed):
        more = f", like {counted(len(changed) - 1, 'more row')}" if len(changed) > 1 else ""
        raise ContentError(
            f"{what} at step {changed[0]} is not what was written (its checksum differs){more}"
        )


def _taken(dataset: h5py.Dataset, chosen: Int[np.ndarray, " chosen"]) -> np.ndarray:
    """Some rows of a dataset, in any order."""
    if len(chosen) == 0:
        return dataset[:0]
    first, last = np.min(chosen), np.max(chosen)
    if last - first < 2 * len(chosen):  # neighbouring rows are read at once
        return dataset[first : last + 1][chosen - first]
    return np.stack([dataset[index] for index in chosen])


def resume_state(file: h5py.File) -> FlatState | None:
    """The state at which a run was interrupted; None if the file has none.

    Raises:
        ContentError: when it does not match its checksum, or lies beyond the rows.
    """
    if "resume/step" not in file or (step := int(dataset_at(file, "resume/step")[()])) == -1:
        return None
    steps = complete_steps(file, "steps")
    last = steps[-1] if len(steps) else -1
    if not 0 <= step <= last:
        raise ContentError(f"/resume/step is {step}, and the rows end at step {last}")
    stateless = "optimizer/value" not in file
    vectors = [
        np.zeros(0) if stateless and path == "resume/optimizer" else dataset_at(file, path)[()]
        for path in RESUME
    ]
    if has_checksums(file):
        expected = int(dataset_at(file, RESUME_CHECKSUM)[()])
        if checksums.of_vectors(step, vectors) != expected:
            raise ContentError("/resume is not what was written (its checksum differs)")
    return FlatState(step, *vectors)


def read_data(file: h5py.File, inputs: str, targets: str, sha256: str | None) -> Dataset | None:
    """Data from the file; None if they are not stored.

    Raises:
        ContentError: when they do not have this digest, or cannot be trained on.
    """
    if f"data/{inputs}" not in file:
        return None
    arrays = [dataset_at(file, f"data/{name}")[...] for name in (inputs, targets)]
    where = f"/data/{inputs} and /data/{targets}"
    if sha256 is not None and digest(arrays[0], arrays[1]) != sha256:
        raise ContentError(f"{where} are not what was written (their digest differs)")
    try:
        return check_dataset(arrays[0], arrays[1], where)
    except DataError as error:
        raise ContentError(str(error)) from error


def read_held_out(file: h5py.File) -> Dataset | None:
    """The examples held out for validation; None if they are not stored.

    Raises:
        ContentError: when they do not match their digest, or are not valid data.
    """
    sha256 = file["data"].attrs.get("validation_sha256")
    if sha256 is not None:
        dataset_at(file, "data/validation_inputs")
    return read_data(file, "validation_inputs", "validation_targets", sha256)


def read_config(file: h5py.File) -> RunConfig:
    """The configuration in an open file of a run of `train`.

    In a file from before version 1.5, `edge_every` is 0: the realized edge was not evaluated.

    Raises:
        ContentError: when it cannot be read.
    """
    try:
        config = from_json(text(file, "config"))
        return config if schema.EDGES[0] in file else replace(config, edge_every=0)
    except (ConfigError, ValueError, RecursionError) as error:
        raise ContentError(f"its configuration: {error}") from error


def read_settings(file: h5py.File) -> dict[str, Any]:
    """The configuration that the author of a loop stored, in an open file.

    Raises:
        ContentError: when it cannot be read.
    """
    return json_object(text(file, "config"), "its configuration")


def width(file: h5py.File, path: str) -> int:
    """Numbers in a row of a dataset; 0 if the dataset does not exist."""
    return int(dataset_at(file, path).shape[1]) if path in file else 0


def is_sparse(file: h5py.File, steps: Int[np.ndarray, " checkpoints"]) -> bool:
    """Whether the update before some checkpoints is missing."""
    if "previous_update/known" not in file:
        return False
    (known,) = read_rows(file, ["previous_update/known"], np.arange(len(steps)))
    return not bool(np.all((known > 0) | (steps == 0)))
