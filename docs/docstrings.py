"""Prepares docstrings and shapes, as written for Python, for the reference pages."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.MULTILINE)


class Markdown(griffe.Extension):
    """Docstrings with examples as blocks of code; shapes without their leading blank.

    The blank is needed because linters take a single word in a string for a name.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = ready(obj.docstring.value)
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                parameter.annotation = trimmed(parameter.annotation)
            obj.returns = trimmed(obj.returns)
        if isinstance(obj, griffe.Attribute):
            obj.annotation = trimmed(obj.annotation)


def trimmed(part: Any) -> Any:
    """An annotation with " steps" as "steps" in it."""
    if isinstance(part, str):
        return re.sub(r"^(['\"]) +(.+)\1$", r"\1\2\1", part)
    if isinstance(part, list):
        return [trimmed(item) for item in part]
    if isinstance(part, griffe.Expr):
        names = [field.name for field in dataclasses.fields(part) if field.name != "parent"]
        for name in names:
            setattr(part, name, trimmed(getattr(part, name)))
    return part


def ready(docstring: str) -> str:
    """The docstring with examples as blocks of code, without doctest directives."""
    parts, end = [], 0
    for example in _EXAMPLE.finditer(docstring):
        parts.append(_escaped(docstring[end : example.start()]))
        code = re.sub(r"\s*# doctest: .*", "", example[0])
        parts.append(f"```pycon\n{code}\n```")
        end = example.end()
    return "".join([*parts, _escaped(docstring[end:])])


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)
