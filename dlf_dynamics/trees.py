"""Converts labelled arrays to trees of xarray (the extra `export`)."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.labels import Axis, Field, Group
from dlf_dynamics.scales import meanings

if TYPE_CHECKING:
    from xarray import DataTree, Variable


_NUL = r"\x00"
"""Replacement for the null character, which ends texts in netCDF."""


def required(name: str) -> Any:
    """A module of the extra `export`.

    Raises:
        ConfigError: when it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f'{name} is needed for this and is not installed: pip install "dlf-dynamics[export]"'
        ) from error


def tree_of(groups: Sequence[Group], attributes: Mapping[str, Any]) -> DataTree:
    """Groups of labelled arrays as a tree, with the same values.

    Integers that stand for missing values become NaN, and their array one of floating-point
    numbers.

    Args:
        groups: groups, each outer group before those in it.
        attributes: attributes of the root.

    Raises:
        ConfigError: when xarray is not installed.
    """
    xarray = required("xarray")
    datasets: dict[str, Any] = {"/": xarray.Dataset()}
    for group in groups:
        coordinates = {
            name: _coordinate(xarray, name, axis)
            for name, axis in group.axes.items()
            if axis.places is not None
        }
        arrays = {
            name: xarray.Variable(field.axes, decoded(field), _attributes(field))
            for name, field in group.fields.items()
            if name not in coordinates
        }
        attrs = {name: plain(value) for name, value in group.settings.items()}
        datasets[f"/{group.path.rstrip('/')}"] = xarray.Dataset(arrays, coordinates, attrs)
    datasets["/"].attrs.update({name: plain(value) for name, value in attributes.items()})
    return xarray.DataTree.from_dict(datasets)


def decoded(field: Field) -> np.ndarray:
    """The values with bytes decoded to texts, and missing values as NaN."""
    values = np.asarray(field.values)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "U":
        texts = values.ravel().tolist()
        if any("\0" in text for text in texts):
            return np.array([text.replace("\0", _NUL) for text in texts]).reshape(values.shape)
    elif field.lacks_some:
        return np.where(values == field.missing, np.nan, values)
    return values


def _coordinate(xarray: Any, name: str, axis: Axis) -> Variable:
    attributes = {"units": axis.units, "description": axis.description}
    return xarray.Variable((name,), decoded(Field(axis.places, (name,))), attributes)


def _attributes(field: Field) -> dict[str, Any]:
    attributes: dict[str, Any] = {"units": field.units, "description": field.description}
    if field.lacks_some:
        attributes["comment"] = "NaN where there is none"
    if field.words:
        attributes["flag_values"] = np.array(list(field.words), np.asarray(field.values).dtype)
        attributes["flag_meanings"] = meanings(field)
    return attributes


def plain(value: Any) -> Any:
    """A value as an attribute: numbers and texts as they are, everything else as JSON."""
    if isinstance(value, str):
        return value.replace("\0", _NUL)
    if isinstance(value, Number) and not isinstance(value, bool):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value, default=str, ensure_ascii=False)
