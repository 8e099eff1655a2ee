"""Converts dataclasses to arrays by path, as HDF5 files hold them, and back.

A field that is an array becomes a dataset. A record (a dataclass or named tuple that holds arrays)
becomes a group. A list of plain dataclasses is a table: a group with a column for each field. A
list of records is a group of numbered groups, a dictionary of records a group of named groups. All
other fields, such as numbers, texts and configurations, are stored as JSON in the dataset
`settings` of their group; a record that is None is null there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from jaxtyping import Shaped, jaxtyped

from dlf_dynamics.configfile import in_type
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import ContentError, json_object

Record = TypeVar("Record")

Arrays = dict[str, Any]
"""Arrays by path within a file."""

hints = cache(get_type_hints)
"""Evaluated annotations of the fields of a dataclass or named tuple by name."""


def encode(record: Any, leave_out: Collection[str] = ()) -> Arrays:
    """The arrays of a record, by path, with its settings as JSON.

    Args:
        record: a dataclass or named tuple.
        leave_out: names of fields that are stored elsewhere.

    >>> from typing import NamedTuple
    >>> class Point(NamedTuple):
    ...     values: np.ndarray
    ...     label: str
    >>> encode(Point(np.arange(2), "first"))
    {'values': array([0, 1]), 'settings': np.bytes_(b'{"label": "first"}')}
    """
    arrays: Arrays = {}
    settings: dict[str, Any] = {}
    for name, hint in hints(type(record)).items():
        value = getattr(record, name)
        if name in leave_out:
            continue
        if is_array(hint):
            arrays[name] = value
        elif is_grouped(hint) and value is not None:
            arrays |= {f"{name}/{key}": array for key, array in _grouped(value, hint).items()}
            if _several(hint):
                settings[name] = len(value) if isinstance(value, list) else list(value)
        else:
            settings[name] = _plain(value)
    return arrays | {"settings": np.bytes_(json.dumps(settings).encode())}


def decode(
    kind: type[Record],
    arrays: Mapping[str, Any],
    lengths: Mapping[str, int] | None = None,
    *,
    given: Mapping[str, Any] | None = None,
) -> Record:
    """The inverse of `encode`; every value is checked against the annotation of its field.

    A missing list takes the default of its field, if there is one: files of older versions do not
    have it. Axes with the same name have the same length in a record and in its fields.

    Args:
        kind: type of the record.
        arrays: all arrays of the record by path.
        lengths: known lengths of axes by name.
        given: fields that are stored elsewhere.

    Raises:
        ContentError: when a field is missing, unknown or of another type or shape.
    """
    settings = arrays.get("settings", b"{}")
    if not isinstance(settings, bytes):
        raise ContentError("settings is not a text")
    values: dict[str, Any] = json_object(settings.decode(), "settings")
    values |= {name: arrays.get(name) for name, hint in hints(kind).items() if is_array(hint)}
    for path in arrays:
        if path != "settings" and path.split("/")[0] not in hints(kind):
            raise ContentError(f"{path} is not of a field of {kind.__name__}")
    known = dict(lengths or {}) | _axes_of(kind, values)
    for name, hint in hints(kind).items():
        if is_grouped(hint) and not (given and name in given):
            if _optional(kind, name) and not inside(arrays, name) and name not in values:
                continue
            values[name] = _from_group(hint, inside(arrays, name), known, name, values.get(name))
    return typed(kind, values | dict(given or {}), lengths)


def _optional(kind: type, name: str) -> bool:
    """Whether a field has a default, as those have that files of older versions lack."""
    if not dataclasses.is_dataclass(kind):
        return False
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    return field.default_factory is not dataclasses.MISSING


def inside(arrays: Mapping[str, Any], group: str) -> Arrays:
    """The arrays of a group by their path within the group."""
    start = f"{group}/"
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


def encode_table(kind: type, rows: Sequence[Any]) -> Arrays:
    """Converts a list of dataclasses to one array for each field."""
    table: Arrays = {}
    for name, hint in hints(kind).items():
        column = [getattr(row, name) for row in rows]
        if hint is str:
            table[name] = np.array([text.encode() for text in column], "S" if rows else "S1")
        else:
            dtype = np.dtype(hint if hint in (int, bool) else float)
            # A fraction in a column of whole numbers is a mistake and must not be truncated.
            table[name] = np.array(column or np.zeros(0, dtype)).astype(dtype, casting="same_kind")
    return table


def decode_table(kind: type[Record], arrays: Mapping[str, Any]) -> list[Record]:
    """The inverse of `encode_table`.

    Raises:
        ContentError: when a column is missing, of another type or not as long as the others.
    """
    columns = []
    for name, hint in hints(kind).items():
        column = np.asarray(arrays.get(name))
        expected = "S" if hint is str else np.dtype(hint).kind
        if column.ndim != 1 or column.dtype.kind != expected:
            raise ContentError(f"{name} is {_described(column)}; expected a column")
        columns.append([v.decode() if isinstance(v, bytes) else v for v in column.tolist()])
    if len({len(column) for column in columns}) > 1:
        raise ContentError(f"the columns of {kind.__name__} are not of one length")
    return [kind(*row) for row in zip(*columns, strict=True)]


def typed(
    kind: type[Record], values: Mapping[str, Any], lengths: Mapping[str, int] | None = None
) -> Record:
    """A dataclass or named tuple with these fields, each checked against its annotation.

    Args:
        kind: type of the record.
        values: values of the fields by name; records are taken as they are.
        lengths: known lengths of axes by name.

    Raises:
        ContentError: when a field is missing, unknown or of another type or shape.
    """
    fields, checked = hints(kind), dict(values)
    for name in checked:
        if name not in fields:
            raise ContentError(f"{name} is not a field of {kind.__name__}")
    arrays = sorted(name for name in fields if is_array(fields[name]) and name in checked)
    _require_shapes({name: (checked[name], fields[name]) for name in arrays}, lengths)
    for name in sorted(checked.keys() - set(arrays)):  # sorted: the message must not vary
        if not is_grouped(fields[name]):
            checked[name] = _in_setting(checked[name], fields[name], name)
    try:
        return kind(**checked)
    except (TypeError, ConfigError) as error:
        raise ContentError(str(error)) from error


def _require_shapes(
    arrays: Mapping[str, tuple[Any, Any]], lengths: Mapping[str, int] | None = None
) -> None:
    """Requires that arrays, by name, have the types and shapes of their annotations.

    Axes with the same name must have the same length in all of them, the one in `lengths` if given.

    Raises:
        ContentError: when an array does not.
    """
    known = lengths or {}
    with jaxtyped("context"):
        for axis, length in known.items():
            isinstance(np.broadcast_to(False, length), Shaped[np.ndarray, axis])  # type: ignore[arg-type]
        for name, (value, hint) in arrays.items():
            if isinstance(value, hint):
                continue
            if hint is np.ndarray:
                raise ContentError(f"{name} is {_described(value)}; expected an array")
            shape = " ".join(str(known.get(axis, axis)) for axis in hint.dim_str.split())
            expected = f"{hint.dtype.__name__} of ({shape})"
            raise ContentError(f"{name} is {_described(value)}; expected {expected}")


def _axes_of(kind: type, values: Mapping[str, Any]) -> dict[str, int]:
    """Lengths of the named axes of the arrays among the fields of a record."""
    lengths: dict[str, int] = {}
    for name, hint in hints(kind).items():
        shape = getattr(values.get(name), "shape", ())
        axes = getattr(hint, "dim_str", "").split()
        if len(axes) == len(shape):
            lengths |= {axis: n for axis, n in zip(axes, shape, strict=True) if axis.isidentifier()}
    return lengths


def is_array(hint: Any) -> bool:
    """Whether a field is stored as a dataset."""
    return hint is np.ndarray or hasattr(hint, "dim_str")


def member_type(hint: Any) -> Any:
    """The type of the members of a list or dictionary, or of an optional field."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[-1] if kinds else hint


@cache
def _is_record(kind: Any) -> bool:
    """Whether a type is a dataclass or named tuple that holds arrays, directly or in a record."""
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        return False
    return any(is_array(hint) or is_grouped(hint) for hint in hints(kind).values())


def is_table(hint: Any) -> bool:
    """Whether a type is a list of dataclasses without arrays."""
    kind = member_type(hint)
    return get_origin(hint) is list and dataclasses.is_dataclass(kind) and not _is_record(kind)


def is_grouped(hint: Any) -> bool:
    """Whether a field is stored in its own group."""
    return not is_array(hint) and (is_table(hint) or _is_record(member_type(hint)))


def _several(hint: Any) -> bool:
    """Whether a type is a list or dictionary of records."""
    return get_origin(hint) in (list, dict) and not is_table(hint)


def _grouped(value: Any, hint: Any) -> Arrays:
    """The arrays of a field that is stored in a group."""
    if is_table(hint):
        return encode_table(member_type(hint), value)
    if not _several(hint):
        return encode(value)
    members = enumerate(value) if isinstance(value, list) else value.items()
    return {f"{key}/{at}": array for key, one in members for at, array in encode(one).items()}


def _from_group(hint: Any, arrays: Arrays, lengths: Mapping[str, int], name: str, told: Any) -> Any:
    """A field from the arrays of its group and its entry in the settings of the record."""
    kind = member_type(hint)
    if is_table(hint):
        return decode_table(kind, arrays)
    if get_origin(hint) is list:
        count = _in_setting(told, int, name)
        return [_member(kind, arrays, str(number), name) for number in range(count)]
    if get_origin(hint) is dict:
        keys = _in_setting(told, tuple[str, ...], name)
        return {key: _member(kind, arrays, key, name) for key in keys}
    if not arrays and NoneType in get_args(hint) and told is None:
        return None
    if not arrays:
        raise ContentError(f"{name} is missing")
    return decode(kind, arrays, lengths)


def _member(kind: type[Record], arrays: Arrays, key: str, name: str) -> Record:
    """A record in a list or dictionary."""
    part = inside(arrays, key)
    if not part:
        raise ContentError(f"{name}/{key} is missing")
    return decode(kind, part)


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    named = getattr(value, "_asdict", None)  # of a named tuple
    return value if named is None else named()


def _in_setting(value: Any, hint: Any, name: str) -> Any:
    """A setting, checked against its annotation.

    Raises:
        ContentError: when it has another type.
    """
    if dataclasses.is_dataclass(hint) or hasattr(hint, "_fields"):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        if not isinstance(value, Mapping):
            raise ContentError(f"{name} is {_described(value)}; expected a table")
        return typed(hint, value)  # type: ignore[arg-type]
    try:
        return in_type(value, hint, name)
    except ConfigError as error:
        raise ContentError(str(error)) from error


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if hasattr(value, "dtype") else repr(value)[:50]
