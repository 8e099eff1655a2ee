"""Exports results as CSV, Parquet and netCDF files, which other programs read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.jsontypes import finite
from dlf_dynamics.resultfile import replace_whole, write_whole
from dlf_dynamics.trees import required

if TYPE_CHECKING:
    from pandas import DataFrame
    from xarray import DataTree

    from dlf_dynamics.shown import Shown

_SUFFIXES = (".csv", ".nc", ".parquet")
"""Suffixes of the formats that can be written."""

_BOOLEAN = {"base": "boolean", "format": "True|False"}

_DATATYPES: dict[str, Any] = {"i": "integer", "I": "integer", "f": "double", "b": _BOOLEAN}
"""Types of columns as the metadata of a CSV file name them, by the kind of NumPy or pandas."""


def require_suffix(path: Path) -> None:
    """Refuses the name of a file whose format is not known.

    Raises:
        ConfigError: unless it ends in one of `_SUFFIXES`.
    """
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"output is {path}; expected a name that ends in {', '.join(_SUFFIXES)}")


def metadata_path(path: Path) -> Path:
    """Path of the metadata of a CSV file, named as CSV on the Web (W3C) does."""
    return path.with_name(f"{path.name}-metadata.json")


def export(result: Shown, path: Path, table: str | None = None, **more: Any) -> list[Path]:
    """Writes a result to a file in the format of its suffix; returns the paths that were written.

    A CSV or Parquet file holds one table, a netCDF file everything.

    Args:
        result: result to write.
        path: file to write; its suffix is one of `_SUFFIXES`.
        table: name of the table; None means the main one.
        more: attributes of the file in addition to those of the result.

    Raises:
        ConfigError: for another suffix, an unknown table, a table for a netCDF file, or when a
            package of the extra `export` is not installed.
        FileError: when the file cannot be written; an older one stays as it was.
    """
    require_suffix(path)
    if path.suffix == ".nc":
        if table is not None:
            raise ConfigError(f"table is {table!r}; a netCDF file has all tables: leave it out")
        tree = result.to_xarray()
        tree.attrs |= {name: json.dumps(value) for name, value in more.items()}
        _write_tree(tree, path)
        return [path]
    frame = result.to_dataframe(table)
    frame.attrs |= more
    if path.suffix == ".parquet":
        required("pyarrow")
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        write_whole(path, content.getvalue())
        return [path]
    # 17 digits identify a double exactly.
    text = frame.to_csv(index=False, float_format="%.17g", lineterminator="\n")
    write_whole(path, text.encode())
    write_whole(metadata_path(path), json.dumps(finite(_metadata(frame, path)), indent=1).encode())
    return [path, metadata_path(path)]


def _metadata(frame: DataFrame, path: Path) -> dict[str, Any]:
    """Metadata of a CSV file by CSV on the Web; empty cells are missing values."""
    attributes = dict(frame.attrs)
    labels = attributes.pop("columns", {})
    columns = [_column(frame, name, labels.get(name, {})) for name in frame.columns]
    return {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "url": path.name,
        "dc:source": attributes,
        "tableSchema": {"columns": columns},
    }


def _column(frame: DataFrame, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    texts = (labels.get("description"), labels.get("comment"))
    return {
        "name": name,
        "titles": name,
        "datatype": _DATATYPES.get(frame[name].dtype.kind, "string"),
        "dc:description": "; ".join(text for text in texts if text),
        "schema:unitText": labels.get("units", "1"),
        "null": "",
    }


def _write_tree(tree: DataTree, path: Path) -> None:
    required("h5netcdf")
    tree = tree.map_over_datasets(_without_complex)
    replace_whole(path, lambda partial: tree.to_netcdf(partial, engine="h5netcdf"))


def _without_complex(dataset: Any) -> Any:
    """Splits complex numbers into two arrays, as netCDF has no type for them."""
    for name in [name for name, array in dataset.data_vars.items() if array.dtype.kind == "c"]:
        array = dataset[name]
        dataset = dataset.assign({f"{name}_real": array.real, f"{name}_imag": array.imag})
        for part in ("real", "imag"):
            dataset[f"{name}_{part}"].attrs = array.attrs
        dataset = dataset.drop_vars(name)
    return dataset
