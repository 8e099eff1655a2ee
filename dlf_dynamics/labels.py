"""Labels of the arrays of a record: axes with their coordinates, units, descriptions, words.

Each label has one source: names of axes are in the annotations, descriptions in the docstrings,
units in a table here, and words for numbers in the attribute `words` of a class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, is_typeddict

import numpy as np
from docstring_parser import DocstringStyle, parse_from_object

from dlf_dynamics.codec import encode_table, hints, is_array, is_grouped, is_table, member_type

UPDATES = "updates"
"""Units of a step, and of a number of steps."""

LOSS = "nats or squared outputs"
"""Units of a loss."""

CURVATURE = "loss per squared parameter (preconditioned: per parameter)"
"""Units of a Hessian's eigenvalues and of what they are compared with."""

RATE = "squared parameters per loss (preconditioned: parameters)"
"""Units of a learning rate."""

KERNEL = "squared outputs per squared parameter"
"""Units of the eigenvalues of a tangent kernel."""

ENDS = ("lower", "upper")
"""The ends of an interval."""

NONE = -1
"""Number that stands for a missing step."""

ROWS = "rows"
"""The axis of a table."""

_UNITS = {
    UPDATES: (
        *("steps", "step", "looked_at", "step_before", "step_after", "onset", "end"),
        *("burst_start", "burst_end", "crossed", "returned", "predicted_lag", "settled"),
        "oscillating_steps",
        "period_2_steps",
        "period_4_steps",
    ),
    LOSS: ("loss", "static_loss", "validation_loss", "max_change"),
    "fraction": (
        *("captured", "accuracy", "best_accuracy", "validation_accuracy"),
        *("best_validation_accuracy", "gate_flips", "seen_in_loss", "realized_above"),
        *("Instability.period_2", "Instability.period_4", "Instability.period_8"),
        *("Instability.irregular", "Instability.alignment", "UnstableDirection.alignment"),
        *("ClassShare.share", "LayerShare.share", "GradientChange.linear", "GradientChange.within"),
        *("GradientChange.pieces", "GradientChange.left"),
        "EdgePoint.kept",
    ),
    CURVATURE: (
        *("EdgePoint.sharpness", "EdgePoint.sharpness_low", "EdgePoint.sharpness_high"),
        *("EdgePoint.ggn", "EdgePoint.ggn_low", "EdgePoint.ggn_high", "EdgePoint.full_batch"),
        *("EdgePoint.batch_sharpness", "EdgePoint.batch_sharpness_error"),
        *(
            "thresholds",
            "FullBatchReference.values",
            "Motion.values",
            "Motion.intervals",
            "Motion.iterate_intervals",
        ),
        *("Eigenvalues.eigenvalues", "Eigenvalues.residuals", "Eigenvalues.intervals"),
        *("UnstableDirection.sharpness", "UnstableDirection.low", "UnstableDirection.high"),
        *("Eigenvalues.upper_bound", "Eigenvalues.lower_bound", "Eigenvalues.rank_bounds"),
        *("Crossing.value_before", "Crossing.value_after", "Crossing.threshold"),
        *("Direction.value", "Direction.lower", "Direction.upper", "Direction.residual"),
        *("Around.values", "ClassShare.curvature", "Pieces.phases", "GradientChange.secant"),
        *("GradientChange.linear_curvature", "GradientChange.within_curvature"),
        "GradientChange.pieces_curvature",
    ),
    RATE: (
        *("EdgePoint.learning_rate", "EdgePoint.threshold_low", "EdgePoint.threshold_high"),
        *("EdgePoint.epochs_low", "EdgePoint.epochs_high"),
    ),
    KERNEL: (
        *("NTKSpectrum.eigenvalues", "NTKSpectrum.residuals", "NTKSpectrum.intervals"),
        *("NTKSpectrum.trace", "NTKSpectrum.class_blocks"),
        *("InfiniteWidth.eigenvalues", "InfiniteWidth.ntk"),
    ),
    "those of its operator": (
        *("Density.nodes", "Density.trace", "Density.trace_radius"),
        *("Density.frobenius", "Density.frobenius_radius"),
    ),
    "products": ("num_matvecs",),
    "s": ("seconds",),
}
"""Fields by their units (Class.field if only of one class); all others are plain numbers."""

_UNIT_OF = {name: units for units, names in _UNITS.items() for name in names}

_PLACES = {"checkpoints": "steps", "sampled": "steps", "looked": "looked_at"}
"""Fields that hold the coordinates of an axis with another name."""

Words = Mapping[int, str] | Sequence[str] | Sequence[int]
"""What numbers, or positions on an axis, stand for."""


@dataclass(frozen=True)
class Field:
    """An array with its labels.

    Attributes:
        values: the array.
        axes: names of the axes.
        units: units of the values; `1` for plain numbers.
        description: one line.
        words: what the numbers stand for; empty if they are plain numbers.
        missing: number that stands for a missing value; None if there is no such number.
    """

    values: Any
    axes: tuple[str, ...]
    units: str = "1"
    description: str = ""
    words: Mapping[int, str] = field(default_factory=dict)
    missing: int | None = None

    @property
    def lacks_some(self) -> bool:
        """Whether some values are missing."""
        return self.missing is not None and bool(np.any(self.values == self.missing))


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        length: length of the axis.
        places: coordinate of each position, such as its step; None if they are only counted.
        units: units of the coordinates.
        description: one line.
    """

    length: int
    places: np.ndarray | None = None
    units: str = "1"
    description: str = ""


@dataclass(frozen=True)
class Group:
    """The arrays of a record, without those of the records in it.

    Attributes:
        path: path of the group, empty or with a slash at its end.
        axes: axes that first occur here, by name; groups within this one share them.
        fields: arrays by name.
        settings: all other fields by name.
    """

    path: str
    axes: dict[str, Axis]
    fields: dict[str, Field]
    settings: dict[str, Any]


@cache
def descriptions(kind: Any) -> dict[str, str]:
    """Descriptions of the fields of a class by name, from its docstring and those of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(getattr(kind, "__mro__", (kind,))):
        record = dataclasses.is_dataclass(base) or hasattr(base, "_fields") or is_typeddict(base)
        if record and base.__doc__:
            for entry in parse_from_object(base, DocstringStyle.GOOGLE).params:
                texts[entry.arg_name] = " ".join((entry.description or "").split())
    return texts


def units_of(kind: Any, name: str) -> str:
    """Units of a field of a class."""
    return _UNIT_OF.get(f"{kind.__name__}.{name}", _UNIT_OF.get(name, "1"))


def axis_names(hint: Any, ndim: int) -> tuple[str, ...]:
    """Names of the axes of an array by its annotation; axes without a name are numbered.

    >>> from jaxtyping import Float
    >>> axis_names(Float[np.ndarray, "checkpoints k ends=2"], 3)
    ('checkpoints', 'k', 'ends')
    """
    names = [name.partition("=")[0] for name in getattr(hint, "dim_str", "").split()]
    names = names if len(names) == ndim else [""] * ndim
    return tuple(
        name if name.isidentifier() else f"axis_{index}" for index, name in enumerate(names)
    )


def groups_of(record: Any, path: str = "", known: Mapping[str, Axis] | None = None) -> list[Group]:
    """The groups of a record and of the records in it, each with its own arrays.

    As in the codec, a record that is a field shares the axes of the record around it; members of
    lists and dictionaries have their own axes.

    Args:
        record: a dataclass or named tuple.
        path: path of its group, empty or with a slash at its end.
        known: axes of the record around it.
    """
    own = _own_group(record, path, known or {})
    groups, inherited = [own], dict(known or {}) | own.axes
    for name, hint in hints(type(record)).items():
        value, inside = getattr(record, name), f"{path}{name}/"
        if not is_grouped(hint) or value is None:
            continue
        if is_table(hint):
            groups.append(_table(value, hint, inside))
        elif isinstance(value, list | dict):
            members = enumerate(value) if isinstance(value, list) else value.items()
            for key, one in members:
                groups += groups_of(one, f"{inside}{key}/")
        else:
            groups += groups_of(value, inside, inherited)
    return groups


def _own_group(record: Any, path: str, known: Mapping[str, Axis]) -> Group:
    kind, fields = type(record), dict(_own_fields(record))
    lengths = {
        name: length
        for field in fields.values()
        for name, length in zip(field.axes, np.shape(field.values), strict=True)
    }
    axes = {
        name: _axis(record, name, length) for name, length in lengths.items() if name not in known
    }
    rest = [name for name, hint in hints(kind).items() if not (is_array(hint) or is_grouped(hint))]
    return Group(path, axes, fields, {name: getattr(record, name) for name in rest})


def _own_fields(record: Any) -> Iterator[tuple[str, Field]]:
    kind = type(record)
    for name, hint in hints(kind).items():
        if is_array(hint):
            values = np.asarray(getattr(record, name))
            yield name, _field(kind, name, values, axis_names(hint, values.ndim))


def _field(kind: Any, name: str, values: np.ndarray, axes: tuple[str, ...]) -> Field:
    units, words = units_of(kind, name), getattr(kind, "words", {}).get(name, {})
    of_table = axes == (ROWS,) and units == UPDATES and values.dtype.kind == "i"
    return Field(
        values,
        axes,
        units,
        descriptions(kind).get(name, ""),
        words if isinstance(words, Mapping) else dict(enumerate(words)),
        NONE if of_table or name == "modes" else None,
    )


def _table(rows: list[Any], hint: Any, path: str) -> Group:
    kind = member_type(hint)
    columns = encode_table(kind, rows)
    fields = {name: _field(kind, name, column, (ROWS,)) for name, column in columns.items()}
    return Group(path, {ROWS: Axis(len(rows))}, fields, {})


def _axis(record: Any, name: str, length: int) -> Axis:
    """An axis, with its coordinates if the record, or a record in it, holds them."""
    words = getattr(type(record), "words", {}).get(name)
    if words is not None and len(words) == length:
        coordinates = np.array([w.encode() if isinstance(w, str) else w for w in words])
        return Axis(length, coordinates)
    inner = [
        getattr(record, other)
        for other, hint in hints(type(record)).items()
        if is_grouped(hint) and not isinstance(getattr(record, other), list | dict | None)
    ]
    for where in (record, *inner):
        field = dict(_own_fields(where)).get(_PLACES.get(name, name))
        if field is not None and field.axes == (name,):
            return Axis(length, field.values, field.units, field.description)
    return Axis(length)
