"""`brief`: a short `__repr__` for results of any size."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dlf_dynamics.errors import shown

_FEW = 4
"""Largest number of elements that are shown; larger arrays are shown by type and shape."""


def brief(self: Any) -> str:
    """The `__repr__` of a dataclass or a named tuple of arrays, in a few lines.

    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> class Point(NamedTuple):
    ...     params: np.ndarray
    ...     steps: list[int]
    ...     __repr__ = brief
    >>> Point(np.zeros((603, 3)), [1] * 100)
    Point(params=float64[603, 3], steps=list of 100 int)
    """
    fields = ",\0".join(f"{name}={value}" for name, value in outline(self).items())
    text = f"{type(self).__name__}({fields})"
    # Lines break between fields and not within them.
    lines = textwrap.wrap(
        text.replace(" ", "\1").replace("\0", " "),
        88,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\1", " ")


def outline(self: Any) -> dict[str, str]:
    """Short texts of the fields of a dataclass or named tuple, by name."""
    if isinstance(self, tuple):
        names = getattr(self, "_fields", ())
    else:
        names = [field.name for field in dataclasses.fields(self) if field.repr]
    return {name: _value(getattr(self, name)) for name in names}


def _value(value: Any) -> str:
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        return value.__name__ if isinstance(value, type) else f"{type(value).__name__}(...)"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        if value.size <= _FEW:
            with suppress(TypeError):  # traced arrays have no values
                return shown(value.tolist())
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {', '.join(map(shown, list(value)[:_FEW]))}" + (
            f" and {len(value) - _FEW} more" if len(value) > _FEW else ""
        )
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > _FEW:
        kinds = {type(item).__name__ for item in value}
        return (
            f"{type(value).__name__} of {len(value)} {kinds.pop() if len(kinds) == 1 else 'values'}"
        )
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_value, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return shown(value)
