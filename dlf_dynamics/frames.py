"""Converts labelled arrays to pandas data frames (the extra `export`).

Each row stands for one position on the axes of the frame. Short axes, such as the two ends of an
interval, become columns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from dlf_dynamics.labels import ROWS, UPDATES, Axis, Field, Group
from dlf_dynamics.trees import decoded, plain, required

if TYPE_CHECKING:
    from pandas import DataFrame

_ACROSS = ("ends", "wanted", "classes", "lags", "quantities")
"""Axes whose positions become columns."""


def frames_of(groups: Sequence[Group], leave_out: Collection[str] = ()) -> dict[str, DataFrame]:
    """Groups of labelled arrays as data frames, by the names of the groups.

    A group whose arrays have different axes has a frame for each set of axes, with the axes in its
    name. A frame holds all arrays of its group that have its axes, or some of them.

    Args:
        groups: groups, each outer group before those in it.
        leave_out: paths of groups that get no frame.

    Raises:
        ConfigError: when pandas is not installed.
    """
    frames: dict[str, DataFrame] = {}
    for group in groups:
        if group.path in leave_out:
            continue
        scope = scope_of(groups, group.path)
        every = list(dict.fromkeys(_row_axes(field) for field in group.fields.values()))
        largest = [axes for axes in every if not any(set(axes) < set(more) for more in every)]
        prefix = group.path.rstrip("/").replace("/", ".")
        for axes in largest:
            name = prefix if len(largest) == 1 else ".".join([*([prefix] if prefix else []), *axes])
            frame = frame_of(group.fields, scope, axes)
            frame.attrs["settings"] = {key: plain(value) for key, value in group.settings.items()}
            frames[name or ".".join(axes)] = frame
    return frames


def scope_of(groups: Sequence[Group], path: str) -> dict[str, Axis]:
    """The axes of a group: its own and those of the groups around it."""
    scope: dict[str, Axis] = {}
    for outer in groups:
        if path.startswith(outer.path):
            scope |= outer.axes
    return scope


def frame_of(
    fields: Mapping[str, Field], scope: Mapping[str, Axis], axes: tuple[str, ...]
) -> DataFrame:
    """A data frame with a row for each position on some axes.

    Its attribute `attrs` has the units and descriptions of the columns by name.

    Args:
        fields: arrays by name; those with other axes are left out.
        scope: all axes by name.
        axes: axes of the rows; the last one varies fastest.

    Raises:
        ConfigError: when pandas is not installed.
    """
    pandas = required("pandas")
    columns: dict[str, Any] = {}
    labels: dict[str, dict[str, str]] = {}
    for name, field in _columns(fields, scope, axes):
        columns[name] = _column(pandas, field)
        labels[name] = {"units": field.units, "description": field.description}
        if field.missing is not None:
            labels[name]["comment"] = (
                f"missing where there is none, which is {field.missing} in files"
            )
    frame = pandas.DataFrame(columns)
    frame.attrs["columns"] = labels
    return frame


def _row_axes(field: Field) -> tuple[str, ...]:
    return tuple(name for name in field.axes if name not in _ACROSS)


def _columns(
    fields: Mapping[str, Field], scope: Mapping[str, Axis], axes: tuple[str, ...]
) -> Iterator[tuple[str, Field]]:
    """Columns, each as long as the frame; those with the coordinates come first."""
    shape = tuple(scope[name].length for name in axes)
    for position, name in enumerate(axes):
        if name == ROWS:
            continue
        axis = scope[name]
        values = np.arange(axis.length) if axis.places is None else np.asarray(axis.places)
        spread = np.expand_dims(values, tuple(range(1, len(axes) - position)))
        column = "step" if axis.units == UPDATES else name.removesuffix("s")
        description = axis.description or f"place on the axis {name}"
        yield column, Field(_rows(spread, shape), axes, axis.units, description)
    for name, field in fields.items():
        if set(_row_axes(field)) <= set(axes) and not _tells_place(field, scope):
            yield from _spread(name, field, scope, axes, shape)


def _tells_place(field: Field, scope: Mapping[str, Axis]) -> bool:
    """Whether a field holds the coordinates of its axis, which are a column already."""
    if len(field.axes) != 1 or field.axes == (ROWS,):
        return False
    axis = scope[field.axes[0]]
    coordinates = np.asarray(axis.places)
    same = axis.units == field.units and coordinates.dtype == field.values.dtype
    return same and np.array_equal(coordinates, field.values)


def _spread(
    name: str,
    field: Field,
    scope: Mapping[str, Axis],
    axes: tuple[str, ...],
    shape: tuple[int, ...],
) -> Iterator[tuple[str, Field]]:
    """The columns of a field: one for each position on its short axes."""
    short = [other for other in field.axes if other in _ACROSS]
    order = [field.axes.index(other) for other in (*axes, *short) if other in field.axes]
    values = np.transpose(field.values, order)
    missing = tuple(index for index, other in enumerate(axes) if other not in field.axes)
    values = np.expand_dims(values, missing)
    for index in product(*(range(scope[other].length) for other in short)):
        words = [_word(scope[other], number) for other, number in zip(short, index, strict=True)]
        part = _rows(values[(..., *index)], shape)
        column = "_".join([name, *words])
        if part.dtype.kind == "c":
            yield f"{column}_real", replace(field, values=np.real(part), axes=axes)
            yield f"{column}_imag", replace(field, values=np.imag(part), axes=axes)
        else:
            yield column, replace(field, values=part, axes=axes)


def _word(axis: Axis, index: int) -> str:
    if axis.places is None:
        return str(index)
    word = axis.places[index]
    return word.decode() if isinstance(word, bytes) else str(word)


def _rows(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(values, shape).reshape(-1)


def _column(pandas: Any, field: Field) -> Any:
    """The values as a column: words for numbers, texts for bytes, NA for missing values."""
    if field.words:
        return [field.words.get(number, str(number)) for number in field.values.tolist()]
    if field.missing is not None:
        none = field.values == field.missing
        return pandas.arrays.IntegerArray(field.values.astype(np.int64), none)
    return decoded(field)
