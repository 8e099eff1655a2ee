"""Records as arrays by path, and back: how dataclasses are kept in HDF5.

A field that is an array is a dataset. A record, that is a dataclass or named tuple that holds
arrays, is a group. A list of plain dataclasses is a table: a group with a column for each field. A
list of records is a group of numbered groups, and a dictionary of records a group by their names.
All else, such as numbers, texts and configurations, stands as JSON in the dataset `settings` of its
group; so a record that is not there is null in it.
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
"""Evaluated annotations of the fields of a dataclass or named tuple, by name."""


def encode(record: Any, leave_out: Collection[str] = ()) -> Arrays:
    """The arrays of a record, by path, with its settings as JSON.

    Args:
        record: a dataclass or named tuple.
        leave_out: names of fields that are kept elsewhere.

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
    """The inverse of `encode`; nothing is taken for what its annotation does not say.

    A list for which a dataclass has a default may be missing, as it is in files of older versions.
    Axes of one name have one length in a record and in the records that are fields of it.

    Args:
        kind: type of the record.
        arrays: all arrays of the record, by path.
        lengths: known lengths of axes, by name.
        given: fields that are kept elsewhere.

    Raises:
        ContentError: when a field is missing, unknown or something else.
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
            if name not in values and name in _later(kind):
                continue
            values[name] = _from_group(hint, inside(arrays, name), known, name, values.get(name))
    return typed(kind, values | dict(given or {}), lengths)


@cache
def _later(kind: Any) -> frozenset[str]:
    """Fields of a dataclass that have a default, which older files may lack."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return frozenset(
        field.name for field in fields if field.default_factory is not dataclasses.MISSING
    )


def inside(arrays: Mapping[str, Any], group: str) -> Arrays:
    """The arrays of a group, by their path within it."""
    start = f"{group}/"
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


def encode_table(kind: type, rows: Sequence[Any]) -> Arrays:
    """A list of dataclasses as one array for each field."""
    table: Arrays = {}
    for name, hint in hints(kind).items():
        column = [getattr(row, name) for row in rows]
        if hint is str:
            table[name] = np.array([text.encode() for text in column], "S" if rows else "S1")
        else:
            dtype = np.dtype(hint if hint in (int, bool) else float)
            # A fraction in a column of whole numbers is a mistake, and not to be cut off.
            table[name] = np.array(column or np.zeros(0, dtype)).astype(dtype, casting="same_kind")
    return table


def decode_table(kind: type[Record], arrays: Mapping[str, Any]) -> list[Record]:
    """The inverse of `encode_table`.

    Raises:
        ContentError: when a column is missing, longer than others, or of another type.
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
    """A dataclass or named tuple of these fields, each of which is what its annotation says.

    Args:
        kind: its type.
        values: what each field holds, by name; records are taken as they are.
        lengths: known lengths of axes, by name.

    Raises:
        ContentError: when a field is missing, unknown, or something else.
    """
    fields, checked = hints(kind), dict(values)
    for name in checked:
        if name not in fields:
            raise ContentError(f"{name} is not a field of {kind.__name__}")
    arrays = sorted(name for name in fields if is_array(fields[name]) and name in checked)
    require_shapes({name: (checked[name], fields[name]) for name in arrays}, lengths)
    for name in sorted(checked.keys() - set(arrays)):  # the same complaint each time
        if not is_grouped(fields[name]):
            checked[name] = _in_setting(checked[name], fields[name], name)
    try:
        return kind(**checked)
    except (TypeError, ConfigError) as error:
        raise ContentError(str(error)) from error


def require_shapes(
    arrays: Mapping[str, tuple[Any, Any]], lengths: Mapping[str, int] | None = None
) -> None:
    """Requires that arrays, by name, are what their annotations say.

    Axes of one name have one length in all of them, that in `lengths` if it is known.

    Raises:
        ContentError: unless they are.
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
    found: dict[str, int] = {}
    for name, hint in hints(kind).items():
        shape = getattr(values.get(name), "shape", ())
        axes = getattr(hint, "dim_str", "").split()
        if len(axes) == len(shape):
            found |= {axis: n for axis, n in zip(axes, shape, strict=True) if axis.isidentifier()}
    return found


def is_array(hint: Any) -> bool:
    """Whether a field is a dataset."""
    return hint is np.ndarray or hasattr(hint, "dim_str")


def member_type(hint: Any) -> Any:
    """The type of what a list, a dictionary or an optional field holds."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return kinds[-1] if kinds else hint


@cache
def _is_record(kind: Any) -> bool:
    """Whether it is a dataclass or a named tuple that holds arrays, itself or in a record."""
    if not (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        return False
    return any(is_array(hint) or is_grouped(hint) for hint in hints(kind).values())


def is_table(hint: Any) -> bool:
    """Whether it is a list of dataclasses without arrays."""
    kind = member_type(hint)
    return get_origin(hint) is list and dataclasses.is_dataclass(kind) and not _is_record(kind)


def is_grouped(hint: Any) -> bool:
    """Whether a field is kept in a group of its own."""
    return not is_array(hint) and (is_table(hint) or _is_record(member_type(hint)))


def _several(hint: Any) -> bool:
    """Whether it is a list or a dictionary of records."""
    return get_origin(hint) in (list, dict) and not is_table(hint)


def _grouped(value: Any, hint: Any) -> Arrays:
    """The arrays of a field that is kept in a group."""
    if is_table(hint):
        return encode_table(member_type(hint), value)
    if not _several(hint):
        return encode(value)
    members = enumerate(value) if isinstance(value, list) else value.items()
    return {f"{key}/{at}": array for key, one in members for at, array in encode(one).items()}


def _from_group(hint: Any, arrays: Arrays, lengths: Mapping[str, int], name: str, told: Any) -> Any:
    """The field that these arrays of its group are, by what its record's settings tell of it."""
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
    """A record of a list or a dictionary."""
    part = inside(arrays, key)
    if not part:
        raise ContentError(f"{name}/{key} is missing")
    return decode(kind, part)


def _plain(value: Any) -> Any:
    """A setting, JSON-ready."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    named = getattr(value, "_asdict", None)  # of a named tuple
    return value if named is None else named()


def _in_setting(value: Any, hint: Any, name: str) -> Any:
    """A setting in the type of its annotation.

    Raises:
        ContentError: when it is of another.
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
