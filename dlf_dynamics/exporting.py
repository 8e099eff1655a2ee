"""Results as CSV, Parquet and netCDF files, which other programs read."""

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

SUFFIXES = (".csv", ".nc", ".parquet")
"""Of files that are written."""

_BOOLEAN = {"base": "boolean", "format": "True|False"}

_DATATYPES: dict[str, Any] = {"i": "integer", "I": "integer", "f": "double", "b": _BOOLEAN}
"""Types of columns as the metadata of a CSV file name them, by the kind of NumPy or pandas."""


def metadata_path(path: Path) -> Path:
    """The file beside a CSV file that tells what it holds, as CSV on the Web (W3C) names it."""
    return path.with_name(f"{path.name}-metadata.json")


def export(found: Shown, path: Path, table: str | None = None, **more: Any) -> list[Path]:
    """Writes a result to a file of the format of its suffix; returns what was written.

    A CSV or Parquet file holds one table, a netCDF file everything.

    Args:
        found: what is written.
        path: ends in one of `SUFFIXES`.
        table: name of the table; none means the main one.
        more: attributes that the file is to have beside those of the result.

    Raises:
        ConfigError: for another suffix, an unknown table, a table for a netCDF file, or when what
            is needed is not installed (the extra `export`).
        FileError: when the file cannot be written; an older one stays as it was.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"output is {path}; expected a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix == ".nc":
        if table is not None:
            raise ConfigError(f"table is {table!r}; a netCDF file has all tables: leave it out")
        tree = found.to_xarray()
        tree.attrs |= {name: json.dumps(value) for name, value in more.items()}
        _write_tree(tree, path)
        return [path]
    frame = found.to_dataframe(table)
    frame.attrs |= more
    if path.suffix == ".parquet":
        required("pyarrow")
        content = io.BytesIO()
        frame.to_parquet(content, index=False)
        write_whole(path, content.getvalue())
        return [path]
    # 17 digits tell any double from its neighbours.
    text = frame.to_csv(index=False, float_format="%.17g", lineterminator="\n")
    write_whole(path, text.encode())
    write_whole(metadata_path(path), json.dumps(finite(_metadata(frame, path)), indent=1).encode())
    return [path, metadata_path(path)]


def _metadata(frame: DataFrame, path: Path) -> dict[str, Any]:
    """What a CSV file holds, in the words of CSV on the Web; empty cells are missing values."""
    attributes = dict(frame.attrs)
    told = attributes.pop("columns", {})
    columns = [_column(frame, name, told.get(name, {})) for name in frame.columns]
    return {
        "@context": ["http://www.w3.org/ns/csvw", {"@language": "en"}],
        "url": path.name,
        "dc:source": attributes,
        "tableSchema": {"columns": columns},
    }


def _column(frame: DataFrame, name: str, told: Mapping[str, str]) -> dict[str, Any]:
    texts = (told.get("description"), told.get("comment"))
    return {
        "name": name,
        "titles": name,
        "datatype": _DATATYPES.get(frame[name].dtype.kind, "string"),
        "dc:description": "; ".join(text for text in texts if text),
        "schema:unitText": told.get("units", "1"),
        "null": "",
    }


def _write_tree(tree: DataTree, path: Path) -> None:
    required("h5netcdf")
    tree = tree.map_over_datasets(_without_complex)
    replace_whole(path, lambda partial: tree.to_netcdf(partial, engine="h5netcdf"))


def _without_complex(dataset: Any) -> Any:
    """Complex numbers as two arrays: netCDF has no type for them."""
    for name in [name for name, array in dataset.data_vars.items() if array.dtype.kind == "c"]:
        array = dataset[name]
        dataset = dataset.assign({f"{name}_real": array.real, f"{name}_imag": array.imag})
        for part in ("real", "imag"):
            dataset[f"{name}_{part}"].attrs = array.attrs
        dataset = dataset.drop_vars(name)
    return dataset
