"""Dimension scales: names and coordinates of axes in HDF5 files, in the form of netCDF.

An axis is a dataset that is a dimension scale, attached to all datasets with that axis. An axis
without coordinates is an empty dataset of unlimited length: netCDF then takes its length from the
datasets, and the file does not declare more bytes than it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import h5py
import numpy as np

from dlf_dynamics.labels import Axis, Field, Group

_COUNTED = "This is a netCDF dimension but not a netCDF variable.          0"
"""Name by which netCDF marks a scale without values."""

_ROLE = "role"


def is_axis(item: h5py.HLObject) -> bool:
    """Whether a dataset only serves as an axis of other datasets."""
    return item.attrs.get(_ROLE) == "axis"


def counted(file: h5py.File, name: str) -> h5py.Dataset:
    """Makes the scale of an axis without coordinates, unless it exists."""
    if name in file:
        return file[name]  # type: ignore[return-value]
    made = file.create_dataset(name, (0,), np.int8, maxshape=(None,), chunks=(4096,))
    made.make_scale(_COUNTED)
    made.attrs[_ROLE] = "axis"
    return made


def placed(file: h5py.File, name: str, axis: Axis) -> h5py.Dataset:
    """Makes the scale of an axis with coordinates."""
    made = file.create_dataset(name, data=axis.places)
    made.make_scale(name.rpartition("/")[2])
    made.attrs.update({_ROLE: "axis", "units": axis.units, "description": axis.description})
    if made.dtype.kind == "S":
        made.attrs["_Encoding"] = "utf-8"
    return made


def attach(dataset: h5py.Dataset, scales: Iterable[h5py.Dataset]) -> None:
    """Names all axes of a dataset, as readers use all names or none."""
    for index, scale in enumerate(scales):
        dataset.dims[index].attach_scale(scale)


def label(file: h5py.File, groups: Sequence[Group]) -> None:
    """Labels the arrays of some groups: axes, units, descriptions, meanings of numbers."""
    scales: dict[str, h5py.Dataset] = {}
    for group in groups:
        for name, axis in group.axes.items():
            path = f"{group.path}{name}"
            if name in group.fields:  # the field holds the coordinates itself
                file[path].make_scale(name)  # type: ignore[union-attr]
                scales[path] = file[path]  # type: ignore[assignment]
            elif axis.places is None:
                scales[path] = counted(file, path)
            else:
                scales[path] = placed(file, path, axis)
        if (settings := f"{group.path}settings") in file:
            file[settings].attrs["_Encoding"] = "utf-8"
        for name, field in group.fields.items():
            dataset = file[f"{group.path}{name}"]
            assert isinstance(dataset, h5py.Dataset)
            _describe(dataset, field)
            if name not in group.axes:
                attach(dataset, [scales[_nearest(scales, group.path, n)] for n in field.axes])


def _nearest(scales: dict[str, h5py.Dataset], group: str, axis: str) -> str:
    """Path of the scale of an axis in this group or in one around it."""
    while group and f"{group}{axis}" not in scales:
        group = group.rstrip("/").rpartition("/")[0]
        group = group and f"{group}/"
    return f"{group}{axis}"


def _describe(dataset: h5py.Dataset, field: Field) -> None:
    dataset.attrs.update(units=field.units, description=field.description)
    if dataset.dtype.kind == "S":
        dataset.attrs["_Encoding"] = "utf-8"
    if field.lacks_some:
        dataset.attrs["missing_value"] = dataset.dtype.type(field.missing)
    if field.words:
        dataset.attrs["flag_values"] = np.array(list(field.words), dataset.dtype)
        dataset.attrs["flag_meanings"] = meanings(field)


def meanings(field: Field) -> str:
    """What the numbers stand for, in the format of the CF conventions.

    >>> meanings(Field(None, (), words={0: "converged", 4: "not finite"}))
    'converged not_finite'
    """
    return " ".join(word.replace(" ", "_") for word in field.words.values())
