"""The output of `--json`: its numbers, and its JSON schemas, made from types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from dlf_dynamics.labels import descriptions

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SIMPLE: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    # JSON has no numbers that are not finite.
    float: {"type": ["number", "null"]},
    str: {"type": "string"},
    NoneType: {"type": "null"},
    Any: {},
}


def finite(value: Any) -> Any:
    """Replaces numbers that are not finite, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def document(kind: Any, title: str) -> dict[str, Any]:
    """The schema of an output as a complete document.

    Args:
        kind: type of the output, such as a TypedDict.
        title: title of the document.
    """
    return {"$schema": _DIALECT, "title": title, **schema_of(kind)}


def schema_of(kind: Any) -> dict[str, Any]:
    """The JSON schema of a type made of values, lists, dictionaries, dataclasses and TypedDicts.

    Args:
        kind: the type; a float may be null, which stands for a number that is not finite.

    Raises:
        TypeError: for a type without a schema.

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
    """Schema of a dataclass or TypedDict: exactly its keys, each with its description."""
    texts = descriptions(kind)
    properties = {
        name: ({"description": texts[name]} if name in texts else {}) | schema_of(hint)
        for name, hint in get_type_hints(kind).items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
