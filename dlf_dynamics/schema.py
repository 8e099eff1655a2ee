"""The run file's layout as one table, from which it is written, checked and documented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from dlf_dynamics.hdf5 import ContentError, Format, minor_version

FORMAT = Format("run file", "dlf-dynamics-run", "1.3", "it cannot be repaired")

WITH_CHECKSUMS = 3
"""Minor version from which on run files have checksums."""


@dataclass(frozen=True)
class Entry:
    """One dataset of the run file.

    Attributes:
        path: within the file.
        dims: names of its axes; `checkpoints` and `steps` grow while the run goes on.
        kind: `float` (of the run's precision), `int` (int64), `number` (either) or `text`.
        units: of the values.
        description: one line.
        optional: whether a valid file may lack it.
    """

    path: str
    dims: tuple[str, ...]
    kind: str
    units: str
    description: str
    optional: bool = False

    @property
    def growing(self) -> bool:
        """Whether rows are appended during training."""
        return bool(self.dims) and self.dims[0] in ("checkpoints", "steps")


def _scalar(name: str, units: str, description: str, *more: str) -> Entry:
    return Entry(f"scalars/{name}/value", ("steps", *more), "float", units, description)


SCHEMA: tuple[Entry, ...] = (
    Entry("status", (), "text", "", "running, complete, interrupted or diverged"),
    Entry("config", (), "text", "JSON", "configuration, enough to train again"),
    Entry("recording", (), "text", "JSON", "of a run of `Recorder`: optimizer and batches", True),
    Entry("provenance", (), "text", "JSON", "versions, machine, source revision and command"),
    Entry(
        "data/inputs",
        ("examples", "..."),
        "number",
        "",
        "inputs; absent when over 64 MiB, and where the data are the user's own",
        True,
    ),
    Entry("data/targets", ("examples",), "int", "", "class labels", True),
    Entry(
        "data/validation_inputs",
        ("held out", "..."),
        "number",
        "",
        "inputs of the examples held out; absent as those above",
        True,
    ),
    Entry("data/validation_targets", ("held out",), "int", "", "their class labels", True),
    Entry("parameters/value", ("checkpoints", "params"), "float", "", "parameters θ_t, flat"),
    Entry("parameters/step", ("checkpoints",), "int", "updates", "t of each checkpoint"),
    Entry(
        "previous_update/value",
        ("checkpoints", "params"),
        "float",
        "",
        "θ_t - θ_(t-1); 0 at step 0",
    ),
    Entry(
        "previous_update/known",
        ("checkpoints",),
        "int",
        "",
        "of a run of `Recorder`: 1 where the step before was seen, 0 where the update is NaN",
        True,
    ),
    Entry(
        "optimizer/value",
        ("checkpoints", "state"),
        "float",
        "",
        "optimizer state before the update of step t, flat",
        True,
    ),
    Entry(
        "objective/value",
        ("checkpoints",),
        "float",
        "",
        "of a run of `Recorder`: F(θ_t, t) of its problem; NaN where it was not evaluated",
        True,
    ),
    Entry(
        "validation_loss/value",
        ("checkpoints",),
        "float",
        "nats or squared outputs",
        "static loss of θ_t on the examples held out; absent where there are none",
        True,
    ),
    Entry(
        "validation_accuracy/value",
        ("checkpoints",),
        "float",
        "fraction",
        "of the examples held out, those whose largest output is their label's",
        True,
    ),
    _scalar("loss", "nats or squared outputs", "F(θ_t, t), weighted, on the examples of step t"),
    _scalar("static_loss", "nats or squared outputs", "the same with all weights 1"),
    _scalar("accuracy", "fraction", "examples whose largest output is their label's"),
    _scalar("learning_rate", "", "of the update from θ_t to θ_(t+1)"),
    _scalar("gradient_norm", "", "Euclidean norm of the gradient of F(·, t) at θ_t"),
    _scalar("update_cosine", "", "cosine of the updates θ_(t+1) - θ_t and θ_t - θ_(t-1)"),
    _scalar("class_weights", "", "Γ_i(t), summing to the number of classes", "classes"),
    Entry("scalars/step", ("steps",), "int", "updates", "t of each row"),
    Entry("resume/parameters", ("params",), "float", "", "where an interrupted run stopped", True),
    Entry("resume/previous_update", ("params",), "float", "", "as at a checkpoint", True),
    Entry("resume/optimizer", ("state",), "float", "", "as at a checkpoint", True),
    Entry("resume/step", (), "int", "updates", "-1 unless the run was interrupted", True),
    Entry(
        "checksums/checkpoints",
        ("checkpoints", "values"),
        "int",
        "CRC-32",
        "of each value of a checkpoint, after its step",
    ),
    Entry(
        "checksums/steps", ("steps",), "int", "CRC-32", "of all scalars of a row, after its step"
    ),
    Entry(
        "checksums/resume", (), "int", "CRC-32", "of the vectors in `/resume`, after the step", True
    ),
)
"""Every dataset of a run file. Values are written before the step that makes them valid."""

STEP_OF = {"checkpoints": "parameters/step", "steps": "scalars/step"}
"""Where the steps of a growing axis are kept; `<group>/step` beside each value links to it."""

CHECKSUM_OF = {"checkpoints": "checksums/checkpoints", "steps": "checksums/steps"}
"""Where the checksums of rows are kept; attribute `values` there says what they are of."""

RESUME_CHECKSUM = "checksums/resume"

VALIDATION = ("validation_loss/value", "validation_accuracy/value")
"""What is evaluated on the examples held out, in the order of `Dynamics.validate`."""


def own_scalar(name: str) -> Entry:
    """A scalar that the author of a loop recorded beside those that have a meaning here."""
    return Entry(f"scalars/{name}/value", ("steps",), "float", "", "the author's own", True)


_OF_RECORDER = ("recording", "objective/", "previous_update/known")


def trained(*, validation: bool = False) -> tuple[Entry, ...]:
    """The entries of a run of `train`, with examples held out or without."""
    absent = _OF_RECORDER if validation else (*_OF_RECORDER, *VALIDATION)
    return tuple(e for e in SCHEMA if not e.path.startswith(absent))


def recorded(scalars: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of a run of `Recorder` whose steps have these scalars."""
    known = {entry.path: entry for entry in SCHEMA}
    paths = [own_scalar(name) for name in scalars]
    columns = [known.get(entry.path, entry) for entry in paths]
    absent = ("resume/", RESUME_CHECKSUM, *VALIDATION)
    rest = [e for e in SCHEMA if not e.path.startswith(absent) and not _is_scalar(e)]
    return (*rest, *columns)


def entries(file: h5py.File) -> tuple[Entry, ...]:
    """The entries of an open run file, by what it is and its version."""
    if "recording" not in file:
        found = trained(validation=VALIDATION[0] in file)
    else:
        scalars = file.get("scalars")
        if not isinstance(scalars, h5py.Group):
            raise ContentError("/scalars is missing")
        found = recorded([str(name) for name in scalars if name != "step"])
    if minor_version(file) >= WITH_CHECKSUMS:
        return found
    return tuple(entry for entry in found if not entry.path.startswith("checksums/"))


_KINDS: dict[str, tuple[Any, ...]] = {
    "float": (np.float64, np.float32),
    "int": (np.signedinteger,),
    "number": (np.floating, np.integer),
    "text": (np.bytes_, np.object_),
}


def faults(file: h5py.File, entries: Sequence[Entry]) -> Iterator[str]:
    """How the datasets of an open file differ from what they should be, a line each.

    Compared are presence, number of axes, type and the lengths of shared axes. Axes that grow are
    left out: the last row of some may not be there yet.
    """
    lengths: dict[str, tuple[int, str]] = {}
    types: dict[str, tuple[Any, str]] = {}
    for entry in entries:
        dataset = file.get(entry.path)
        if dataset is None and not entry.optional:
            yield f"/{entry.path} is missing"
        if dataset is None:
            continue
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            yield f"/{entry.path} is a group, or has no values; expected a dataset"
            continue
        if "..." not in entry.dims and dataset.ndim != len(entry.dims):
            yield f"/{entry.path} has {dataset.ndim} axes; expected {len(entry.dims)}"
        elif dataset.ndim < len(entry.dims):
            yield f"/{entry.path} has {dataset.ndim} axes; expected at least {len(entry.dims)}"
        kinds = _KINDS[entry.kind]
        native = dataset.dtype.isnative and any(np.issubdtype(dataset.dtype, k) for k in kinds)
        expected, first = types.setdefault(entry.kind, (dataset.dtype, entry.path))
        if not native or (entry.kind == "float" and dataset.dtype != expected):
            told = entry.kind if not native else f"{expected}, as /{first}"
            yield f"/{entry.path} is of type {dataset.dtype}; expected {told}"
        fixed = zip(entry.dims[entry.growing :], dataset.shape[entry.growing :], strict=False)
        for axis, length in fixed:
            other, first = lengths.setdefault(axis, (length, entry.path))
            if length != other and axis != "...":
                yield f"/{entry.path} has {length} {axis}; expected {other}, as /{first}"


def _is_scalar(entry: Entry) -> bool:
    return entry.path.startswith("scalars/") and entry.path.endswith("/value")


def growing(axis: str, of: Sequence[Entry] = SCHEMA) -> Iterator[Entry]:
    """The entries that grow along this axis, its own steps and checksums left out."""
    for entry in of:
        if entry.dims[:1] == (axis,) and entry.path not in (STEP_OF[axis], CHECKSUM_OF[axis]):
            yield entry


def table() -> str:
    """The schema as a Markdown table (docs/file-format.md holds it, checked by a test)."""
    lines = ["| dataset | axes | type | units | content |", "| --- | --- | --- | --- | --- |"]
    for entry in SCHEMA:
        axes = ", ".join(entry.dims) or "-"
        kind = entry.kind + (" (optional)" if entry.optional else "")
        lines.append(
            f"| `/{entry.path}` | {axes} | {kind} | {entry.units or '-'} | {entry.description} |"
        )
    return "\n".join(lines)
