"""What the arrays of a record are: names of axes and their places, units, descriptions, words.

Nothing is told twice: names of axes are those of the annotations, descriptions those of the
docstrings. Units have a table here; words for numbers are the attribute `words` of a class.
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
"""What stands for a step that there is not."""

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
"""Fields by their units, those of one class alone as Class.field; all others are plain numbers."""

_UNIT_OF = {name: units for units, names in _UNITS.items() for name in names}

_PLACES = {"checkpoints": "steps", "sampled": "steps", "looked": "looked_at"}
"""Fields that tell the places of an axis of another name."""

Words = Mapping[int, str] | Sequence[str] | Sequence[int]
"""What numbers, or places on an axis, stand for."""


@dataclass(frozen=True)
class Field:
    """An array and what it is.

    Attributes:
        values: the array.
        axes: their names.
        units: of the values; `1` for plain numbers.
        description: one line.
        words: what the numbers stand for; empty where they are numbers.
        missing: the number that stands for none, if there is one.
    """

    values: Any
    axes: tuple[str, ...]
    units: str = "1"
    description: str = ""
    words: Mapping[int, str] = field(default_factory=dict)
    missing: int | None = None

    @property
    def lacks_some(self) -> bool:
        """Whether the number that stands for none is among the values."""
        return self.missing is not None and bool(np.any(self.values == self.missing))


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        length: number of places on it.
        places: what is at each, such as its step; none where they are only counted.
        units: of the places.
        description: one line.
    """

    length: int
    places: np.ndarray | None = None
    units: str = "1"
    description: str = ""


@dataclass(frozen=True)
class Group:
    """The arrays of a record that are no arrays of a record in it.

    Attributes:
        path: of the group, empty or with a slash at its end.
        axes: that begin here, by name; groups within know them, too.
        fields: by name.
        settings: all other fields, by name.
    """

    path: str
    axes: dict[str, Axis]
    fields: dict[str, Field]
    settings: dict[str, Any]


@cache
def descriptions(kind: Any) -> dict[str, str]:
    """Descriptions of the fields of a class, by name, from its docstring and those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(getattr(kind, "__mro__", (kind,))):
        record = dataclasses.is_dataclass(base) or hasattr(base, "_fields") or is_typeddict(base)
        if record and base.__doc__:
            for entry in parse_from_object(base, DocstringStyle.GOOGLE).params:
                found[entry.arg_name] = " ".join((entry.description or "").split())
    return found


def units_of(kind: Any, name: str) -> str:
    """Units of a field of a class."""
    return _UNIT_OF.get(f"{kind.__name__}.{name}", _UNIT_OF.get(name, "1"))


def axis_names(hint: Any, ndim: int) -> tuple[str, ...]:
    """Names of the axes of an array, by its annotation; those without are numbered.

    >>> from jaxtyping import Float
    >>> axis_names(Float[np.ndarray, "checkpoints k ends=2"], 3)
    ('checkpoints', 'k', 'ends')
    """
    told = [name.partition("=")[0] for name in getattr(hint, "dim_str", "").split()]
    told = told if len(told) == ndim else [""] * ndim
    return tuple(
        name if name.isidentifier() else f"axis_{place}" for place, name in enumerate(told)
    )


def groups_of(record: Any, path: str = "", known: Mapping[str, Axis] | None = None) -> list[Group]:
    """A record and the records in it, each with its own arrays.

    As for the codec, records that are fields have the axes of the record that they are in; members
    of lists and dictionaries have their own.

    Args:
        record: a dataclass or named tuple.
        path: of its group, empty or with a slash at its end.
        known: axes of the record that it is a field of.
    """
    own = _own_group(record, path, known or {})
    found, inherited = [own], dict(known or {}) | own.axes
    for name, hint in hints(type(record)).items():
        value, inside = getattr(record, name), f"{path}{name}/"
        if not is_grouped(hint) or value is None:
            continue
        if is_table(hint):
            found.append(_table(value, hint, inside))
        elif isinstance(value, list | dict):
            members = enumerate(value) if isinstance(value, list) else value.items()
            for key, one in members:
                found += groups_of(one, f"{inside}{key}/")
        else:
            found += groups_of(value, inside, inherited)
    return found


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
    """An axis, with its places where the record, or a record in it, tells them."""
    words = getattr(type(record), "words", {}).get(name)
    if words is not None and len(words) == length:
        places = np.array([w.encode() if isinstance(w, str) else w for w in words])
        return Axis(length, places)
    inner = [
        getattr(record, other)
        for other, hint in hints(type(record)).items()
        if is_grouped(hint) and not isinstance(getattr(record, other), list | dict | None)
    ]
    for where in (record, *inner):
        found = dict(_own_fields(where)).get(_PLACES.get(name, name))
        if found is not None and found.axes == (name,):
            return Axis(length, found.values, found.units, found.description)
    return Axis(length)
