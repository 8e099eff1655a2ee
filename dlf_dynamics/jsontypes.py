"""What is printed with `--json`: its numbers, and its schemas from the types that it is made of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from dlf_dynamics.labels import descriptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    # Numbers that are not finite are not in JSON.
    float: {"type": ["number", "null"]},
    str: {"type": "string"},
    NoneType: {"type": "null"},
    Any: {},
}


def finite(value: Any) -> Any:
    """The same with None for every number that is not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def document(kind: Any, title: str, told: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The schema of what is printed, as a document of its own.

    Args:
        kind: its type, such as a TypedDict.
        title: what it is.
        told: descriptions of its keys; none takes those of the docstring.
    """
    found = schema_of(kind)
    for name, text in (told or {}).items():
        found["properties"][name] = {"description": text, **found["properties"][name]}
    return {"$schema": DIALECT, "title": title, **found}


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type: of values, lists, dictionaries, dataclasses and TypedDicts.

    Args:
        kind: the type; a float may be null, which stands for a number that is not finite.

    Raises:
        TypeError: for a type that has none.

    >>> schema_of(list[float])
    {'type': 'array', 'items': {'type': ['number', 'null']}}
    """
    origin, inside = get_origin(kind), get_args(kind)
    if kind in _SIMPLE:
        return dict(_SIMPLE[kind])
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (Union, UnionType):
        return {"anyOf": [schema_of(one) for one in inside]}
    if origin in (list, Sequence) or (origin is tuple and inside[-1] is Ellipsis):
        return {"type": "array", "items": schema_of(inside[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(inside[1])}
    if dataclasses.is_dataclass(kind) or is_typeddict(kind):
        return _object(kind)
    raise TypeError(f"{kind} has no JSON schema")


def _object(kind: Any) -> dict[str, Any]:
    """Of a dataclass or a TypedDict: its keys and no others, each with its description."""
    told = descriptions(kind)
    properties = {
        name: ({"description": told[name]} if name in told else {}) | schema_of(hint)
        for name, hint in get_type_hints(kind).items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
