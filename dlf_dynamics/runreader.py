"""Reading of an open run file: its complete rows, each with its checksum, and its head."""

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
from dlf_dynamics.errors import ConfigError, DataError
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
    """Whether its rows have checksums and its head a digest, as those of version 1.3 do."""
    return minor_version(file) >= schema.WITH_CHECKSUMS


def header_sha256(file: h5py.File) -> str:
    """Digest of what a run file holds before the first row; the data have their own."""
    found: dict[str, Any] = {
        path: text(file, path) for path in ("config", "provenance", "recording") if path in file
    }
    found |= {name: attribute(file, name) for name in ("run_id", "created")}
    found["layout"] = attribute(file["parameters"], "layout")
    for name in ("kind", "sha256", "validation_sha256"):
        if name in file["data"].attrs:
            found[name] = attribute(file["data"], name)
    if "scalars/class_weights" in file:
        weights = file["scalars/class_weights"]
        found["own_schedule"] = attribute(weights, "own_schedule", bool)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def require_header(file: h5py.File) -> None:
    """Raises ContentError unless the head of the file is what was written, as far as is known."""
    known = "header_sha256" in file.attrs or has_checksums(file)
    if known and attribute(file, "header_sha256") != header_sha256(file):
        raise ContentError("its configuration, provenance or attributes are not what was written")


def read_rows(
    file: h5py.File, paths: Sequence[str], chosen: Int[np.ndarray, " chosen"]
) -> list[Shaped[np.ndarray, "chosen *row"]]:
    """What some checkpoints, given by index in any order, have of some values.

    Raises:
        ContentError: when a row is not what was written.
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
    """What some steps recorded, by path.

    Raises:
        ContentError: when a row is not what was written.
    """
    paths = [entry.path for entry in schema.growing("steps", schema.entries(file))]
    found = {path: dataset_at(file, path)[rows] for path in paths}
    if has_checksums(file):
        expected = dataset_at(file, CHECKSUM_OF["steps"])
        names, steps = covered(file, "steps"), dataset_at(file, STEP_OF["steps"])[rows]
        if set(names) != set(paths):
            raise ContentError("/scalars has other datasets than checksums are there for")
        sums = checksums.of_joined_rows(steps, [found[name] for name in names])
        _require_unchanged("/scalars", steps[sums != expected[rows]])
    return found


def _require_unchanged(what: str, changed: Int[np.ndarray, " steps"]) -> None:
    if len(changed):
        more = f", nor at {len(changed) - 1} others" if len(changed) > 1 else ""
        raise ContentError(
            f"{what} at step {changed[0]} is not what was written (its checksum differs){more}"
        )


def _taken(dataset: h5py.Dataset, chosen: Int[np.ndarray, " chosen"]) -> np.ndarray:
    """Some rows of a dataset, in any order."""
    if len(chosen) == 0:
        return dataset[:0]
    first, last = np.min(chosen), np.max(chosen)
    if last - first < 2 * len(chosen):  # neighbours are read in one go
        return dataset[first : last + 1][chosen - first]
    return np.stack([dataset[index] for index in chosen])


def resume_state(file: h5py.File) -> FlatState | None:
    """Where an interrupted run stopped; none where that is not on file.

    Raises:
        ContentError: when it is not what was written, or beyond the rows that there are.
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
    """Data from the file, which must have this digest; none where they are not there.

    Raises:
        ContentError: when they do not, or are no data that can be trained on.
    """
    if f"data/{inputs}" not in file:
        return None
    found = [dataset_at(file, f"data/{name}")[...] for name in (inputs, targets)]
    where = f"/data/{inputs} and /data/{targets}"
    if sha256 is not None and digest(found[0], found[1]) != sha256:
        raise ContentError(f"{where} are not what was written (their digest differs)")
    try:
        return check_dataset(found[0], found[1], where)
    except DataError as error:
        raise ContentError(str(error)) from error


def read_held_out(file: h5py.File) -> Dataset | None:
    """The examples held out for validation; none where they are not in the file.

    Raises:
        ContentError: when they are not what was written, or no data.
    """
    sha256 = file["data"].attrs.get("validation_sha256")
    if sha256 is not None:
        dataset_at(file, "data/validation_inputs")
    return read_data(file, "validation_inputs", "validation_targets", sha256)


def read_config(file: h5py.File) -> RunConfig:
    """The configuration in an open file of a run of `train`.

    A file from before 1.5 tells nothing of the realized edge, which was not looked at.

    Raises:
        ContentError: when it cannot be read.
    """
    try:
        config = from_json(text(file, "config"))
        return config if schema.EDGES[0] in file else replace(config, edge_every=0)
    except (ConfigError, ValueError, RecursionError) as error:
        raise ContentError(f"its configuration: {error}") from error


def read_settings(file: h5py.File) -> dict[str, Any]:
    """What the author of a recorded run wanted kept, in an open file.

    Raises:
        ContentError: when it cannot be read.
    """
    return json_object(text(file, "config"), "its configuration")


def width(file: h5py.File, path: str) -> int:
    """Numbers in a row of a dataset; 0 where there is none."""
    return int(dataset_at(file, path).shape[1]) if path in file else 0


def is_sparse(file: h5py.File, steps: Int[np.ndarray, " checkpoints"]) -> bool:
    """Whether the update before some checkpoint was not recorded."""
    if "previous_update/known" not in file:
        return False
    (known,) = read_rows(file, ["previous_update/known"], np.arange(len(steps)))
    return not bool(np.all((known > 0) | (steps == 0)))
