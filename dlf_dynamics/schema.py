"""The layout of the run file as one table, by which it is written, checked and documented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np

from dlf_dynamics.hdf5 import ContentError, Format, dataset_at, minor_version

FORMAT = Format("run file", "dlf-dynamics-run", "1.5", "it cannot be repaired")

WITH_CHECKSUMS = 3
"""Minor version from which on run files have checksums."""


@dataclass(frozen=True)
class Entry:
    """One dataset of the run file.

    Attributes:
        path: path within the file.
        dims: names of the axes; `checkpoints` and `steps` grow during the run.
        kind: `float` (of the run's precision), `int` (int64), `number` (either) or `text`.
        units: units of the values.
        description: one line.
        optional: whether a valid file may lack it.
        beside: path of another dataset; a file with that one must have this one, too.
    """

    path: str
    dims: tuple[str, ...]
    kind: str
    units: str
    description: str
    optional: bool = False
    beside: str = ""

    def axes(self, ndim: int) -> tuple[str, ...]:
        """Names of the `ndim` axes of a dataset; axes that `...` stands for are numbered.

        >>> Entry("data/inputs", ("examples", "..."), "number", "", "").axes(3)
        ('examples', 'feature_0', 'feature_1')
        """
        known = [name for name in self.dims if name != "..."]
        return (*known, *(f"feature_{index}" for index in range(ndim - len(known))))

    @property
    def growing(self) -> bool:
        """Whether rows are appended during the run."""
        return bool(self.dims) and self.dims[0] in ("checkpoints", "steps")


def _scalar(name: str, units: str, description: str, *more: str, beside: str = "") -> Entry:
    path, optional = f"scalars/{name}/value", bool(beside)
    return Entry(path, ("steps", *more), "float", units, description, optional, beside)


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
        beside="data/targets",
    ),
    Entry("data/targets", ("examples",), "int", "", "class labels", True, beside="data/inputs"),
    Entry(
        "data/validation_inputs",
        ("held_out", "..."),
        "number",
        "",
        "inputs of the examples held out; absent as those above",
        True,
        beside="data/validation_targets",
    ),
    Entry(
        "data/validation_targets",
        ("held_out",),
        "int",
        "",
        "their class labels",
        True,
        beside="data/validation_inputs",
    ),
    Entry("parameters/value", ("checkpoints", "params"), "float", "", "parameters θ_t, flat"),
    Entry("parameters/step", ("checkpoints",), "int", "updates", "t of each checkpoint"),
    Entry(
        "previous_update/value",
        ("checkpoints", "params"),
        "float",
        "",
        "θ_t - θ_(t-1); 0 at step 0; absent where no update can be made again",
        True,
        beside="previous_update/known",
    ),
    Entry(
        "previous_update/known",
        ("checkpoints",),
        "int",
        "",
        "of a run of `Recorder`: 1 where the step before was seen, 0 where the update is NaN",
        True,
        beside="previous_update/value",
    ),
    Entry(
        "optimizer/value",
        ("checkpoints", "state"),
        "float",
        "",
        "optimizer state before the update of step t, flat",
        True,
        beside="resume/optimizer",
    ),
    Entry(
        "objective/value",
        ("checkpoints",),
        "float",
        "",
        "of a run of `Recorder`: F(θ_t, t) of its problem; NaN where it was not evaluated",
        True,
        beside="recording",
    ),
    Entry(
        "validation_loss/value",
        ("checkpoints",),
        "float",
        "nats or squared outputs",
        "static loss of θ_t on the examples held out; absent where there are none",
        True,
        beside="validation_accuracy/value",
    ),
    Entry(
        "validation_accuracy/value",
        ("checkpoints",),
        "float",
        "fraction",
        "of the examples held out, those whose largest output is their label's",
        True,
        beside="validation_loss/value",
    ),
    _scalar("loss", "nats or squared outputs", "F(θ_t, t), weighted, on the examples of step t"),
    _scalar("static_loss", "nats or squared outputs", "the same with all weights 1"),
    _scalar("accuracy", "fraction", "examples whose largest output is their label's"),
    _scalar(
        "learning_rate",
        "squared parameter per loss (preconditioned: parameter)",
        "of the update from θ_t to θ_(t+1)",
    ),
    _scalar(
        "gradient_norm",
        "loss per parameter",
        "Euclidean norm of the gradient of F(·, t) at θ_t",
    ),
    _scalar("update_cosine", "", "cosine of the updates θ_(t+1) - θ_t and θ_t - θ_(t-1)"),
    _scalar(
        "realized_edge",
        "",
        "realized edge ζ of the update θ_(t+1) - θ_t; above 1, the step raised its own loss. NaN "
        "where it is undefined or was not evaluated, and in the last row, after which no update "
        "was made; absent if it was never evaluated",
        beside="scalars/realized_edge_error/value",
    ),
    _scalar(
        "realized_edge_error",
        "",
        "rounding error of ζ; infinite where ζ is undefined, NaN where it was not evaluated or the "
        "loss has no outputs (the error is then unknown). Rounding of derivatives inside of the "
        "network is not included: where tanh units saturate in float32, ζ - 1 is off by up to some "
        "percent, but its sign is right",
        beside="scalars/realized_edge/value",
    ),
    _scalar("class_weights", "", "Γ_i(t), summing to the number of classes", "classes"),
    Entry("scalars/step", ("steps",), "int", "updates", "t of each row"),
    Entry("resume/parameters", ("params",), "float", "", "where an interrupted run stopped"),
    Entry("resume/previous_update", ("params",), "float", "", "as at a checkpoint"),
    Entry(
        "resume/optimizer",
        ("state",),
        "float",
        "",
        "as at a checkpoint",
        True,
        beside="optimizer/value",
    ),
    Entry("resume/step", (), "int", "updates", "-1 unless the run was interrupted"),
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
    Entry("checksums/resume", (), "int", "CRC-32", "of the vectors in `/resume`, after the step"),
)
"""Every dataset of a run file. Values are written before the step that makes them valid."""

STEP_OF = {"checkpoints": "parameters/step", "steps": "scalars/step"}
"""Paths of the steps along a growing axis; `<group>/step` beside each value is a link to them."""

CHECKSUM_OF = {"checkpoints": "checksums/checkpoints", "steps": "checksums/steps"}
"""Paths of the checksums of rows; their attribute `values` names the datasets that they cover."""

RESUME_CHECKSUM = "checksums/resume"

UPDATE = "previous_update/value"

VALIDATION = ("validation_loss/value", "validation_accuracy/value")
"""What is evaluated on the examples held out, in the order of `Dynamics.validate`."""

EDGES = ("scalars/realized_edge/value", "scalars/realized_edge_error/value")
"""The realized edge of the steps, and its rounding error."""


def _own_scalar(name: str) -> Entry:
    """A scalar with a name chosen by the author of a loop."""
    return Entry(f"scalars/{name}/value", ("steps",), "float", "", "the author's own", True)


_OF_RECORDER = ("recording", "objective/", "previous_update/known")


def trained(*, validation: bool = False, edges: bool = False) -> tuple[Entry, ...]:
    """The entries of a run of `train`.

    Args:
        validation: whether there are examples held out.
        edges: whether the realized edge is evaluated.
    """
    absent = _OF_RECORDER + (() if validation else VALIDATION) + (() if edges else EDGES)
    chosen = (e for e in SCHEMA if not e.path.startswith(absent))
    return tuple(replace(e, optional=False) if e.path == UPDATE else e for e in chosen)


def recorded(scalars: Sequence[str], *, updates: bool = True) -> tuple[Entry, ...]:
    """The entries of a run of `Recorder`.

    Args:
        scalars: names of the scalars of its steps.
        updates: whether the update before each checkpoint is stored.
    """
    known = {entry.path: entry for entry in SCHEMA}
    paths = [_own_scalar(name) for name in scalars]
    columns = [known.get(entry.path, entry) for entry in paths]
    absent = ("resume/", RESUME_CHECKSUM, *VALIDATION)
    absent = absent if updates else (*absent, "previous_update/")
    rest = [e for e in SCHEMA if not e.path.startswith(absent) and not _is_scalar(e.path)]
    return (*rest, *columns)


def entries(file: h5py.File) -> tuple[Entry, ...]:
    """The entries of an open run file, by its kind, its version, and the values with checksums.

    Raises:
        ContentError: when the file does not tell them.
    """
    checked = minor_version(file) >= WITH_CHECKSUMS
    summed = {axis: covered(file, axis) if checked else [] for axis in CHECKSUM_OF}
    if "recording" not in file:
        named = [*summed["checkpoints"], *summed["steps"]]
        held_out, edges = (
            any(path in file or path in named for path in paths) for paths in (VALIDATION, EDGES)
        )
        expected = trained(validation=held_out, edges=edges)
    else:
        names = [path.split("/")[1] for path in summed["steps"] if _is_scalar(path)]
        scalars = file.get("scalars")
        if not isinstance(scalars, h5py.Group):
            raise ContentError("/scalars is missing")
        names += [str(name) for name in scalars if name not in ("step", *names)]
        expected = recorded(names, updates=UPDATE in file or UPDATE in summed["checkpoints"])
    if not checked:
        return tuple(entry for entry in expected if not entry.path.startswith("checksums/"))
    required = {path for paths in summed.values() for path in paths}
    return tuple(replace(e, optional=e.optional and e.path not in required) for e in expected)


def covered(file: h5py.File, axis: str) -> list[str]:
    """Paths of the values that the checksums along an axis cover, in their order.

    Raises:
        ContentError: when the checksums do not name them.
    """
    sums = dataset_at(file, CHECKSUM_OF[axis])
    names = np.asarray(sums.attrs.get("values"))
    named = names.ndim == 1 and all(isinstance(name, str) for name in names)
    if not named or sums.shape[1:] not in ((), names.shape):
        raise ContentError(f"attribute values of /{CHECKSUM_OF[axis]} does not name its values")
    return names.tolist()


_KINDS: dict[str, tuple[Any, ...]] = {
    "float": (np.float64, np.float32),
    "int": (np.signedinteger,),
    "number": (np.floating, np.integer),
    "text": (np.bytes_, np.object_),
}


def faults(file: h5py.File) -> Iterator[str]:
    """How the datasets of an open run file differ from the schema, a line each.

    It compares presence, number of axes, type and the lengths of shared axes. Growing axes are not
    compared, since some datasets of a file that is being written may lack the last row.
    """
    try:
        expected = entries(file)
    except ContentError as error:
        yield str(error)
    else:
        yield from _differences(file, expected)


def _differences(file: h5py.File, expected: Sequence[Entry]) -> Iterator[str]:
    lengths: dict[str, tuple[int, str]] = {}
    types: dict[str, tuple[Any, str]] = {}
    for entry in expected:
        dataset = file.get(entry.path)
        if dataset is None and (not entry.optional or entry.beside in file):
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
        other, first = types.setdefault(entry.kind, (dataset.dtype, entry.path))
        if not native or (entry.kind == "float" and dataset.dtype != other):
            wanted = entry.kind if not native else f"{other}, as /{first}"
            yield f"/{entry.path} is of type {dataset.dtype}; expected {wanted}"
        fixed = zip(entry.dims[entry.growing :], dataset.shape[entry.growing :], strict=False)
        for axis, length in fixed:
            same, first = lengths.setdefault(axis, (length, entry.path))
            if length != same and axis != "...":
                yield f"/{entry.path} has {length} {axis}; expected {same}, as /{first}"


def _is_scalar(path: str) -> bool:
    return path.startswith("scalars/") and path.endswith("/value")


def step_beside(path: str) -> str:
    """Path beside a growing value that is another name of the steps along its axis."""
    return f"{path.rpartition('/')[0]}/step"


_ROWS_OF = {"checkpoints": "checkpoint_rows", "steps": "step_rows"}
"""Names of the growing axes of checksums, which have no steps beside them."""


def scale_of(entry: Entry, index: int, name: str) -> str:
    """Path of the dataset that names an axis of a dataset and holds its coordinates, if any.

    Args:
        entry: the dataset.
        index: index of the axis in its shape.
        name: name of the axis.
    """
    if index or not entry.growing:
        return name
    return _ROWS_OF[name] if entry.path.startswith("checksums/") else STEP_OF[name]


def growing(axis: str, of: Sequence[Entry] = SCHEMA) -> Iterator[Entry]:
    """The entries that grow along this axis, without its own steps and checksums."""
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
