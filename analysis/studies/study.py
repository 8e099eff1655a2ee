"""`Study`: many configurations, as a grid over keys, a list, or each run of a list times a grid."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Shaped

from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import in_type, override, preset, read_toml, require_table, type_of
from dlf_dynamics.errors import ConfigError, shortened, shown
from dlf_dynamics.ranges import MOST_STEPS
from dlf_dynamics.reprs import brief

_MAX_RUNS = 1000
"""Number of runs above which a study has to be confirmed."""

_MOST_RUNS = 1_000_000
"""Largest number of runs of a study."""

Overrides = tuple[tuple[str, Any], ...]
"""Dotted keys of a configuration and their values."""

_MAX_VALUES = 100_000
_SHORTHANDS = "a list, {from = 0, to = 9} or {logspace = [1, 100, 5]}"


@dataclass(frozen=True)
class Measures:
    """What is measured in each run besides its recorded scalars."""

    curve_points: int = 0
    """Evenly spaced steps at which the curves are kept; 0 keeps none."""
    sharpness: bool = False
    """Compute the largest Hessian eigenvalue: of the static loss after the last update, and of the
    loss as it is weighted at the step along the curves."""
    ntk_examples: int = 0
    """Compute the largest NTK eigenvalue on the first examples, this many, after the last update; 0
    leaves it out."""

    def __post_init__(self) -> None:
        for key in ("curve_points", "ntk_examples"):
            value = getattr(self, key)
            if not 0 <= value <= MOST_STEPS:
                raise ConfigError(
                    f"measures.{key} is {shown(value)}; expected at least 0 and at most "
                    f"{MOST_STEPS:,}"
                )


@dataclass(frozen=True)
class Study:
    """Configurations that differ from a base: each listed run times the grid of the axes.

    Values are converted to the types of their keys. Runs are counted from 0, the last axis fastest.

    Attributes:
        base: what the runs have in common.
        axes: dotted keys and their values; empty for a list.
        runs: dotted keys and values of each listed run; empty for a grid.
        measures: what is measured.

    Raises:
        ConfigError: for an unknown key, a wrong type, no runs at all, an axis that is empty or
            repeats a value, or a key that is an axis and listed, too.
    """

    base: RunConfig
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    runs: tuple[Overrides, ...] = ()
    measures: Measures = field(default_factory=Measures)
    __repr__ = brief

    def __post_init__(self) -> None:
        axes = tuple(
            (key, tuple(_typed(key, value, "grid.") for value in values))
            for key, values in self.axes
        )
        runs = tuple(
            tuple((key, _typed(key, value, f"list[{k}].")) for key, value in run)
            for k, run in enumerate(self.runs)
        )
        _check_axes(axes, runs)
        count = max(1, len(runs)) * prod(len(values) for _, values in axes)
        if count > sys.maxsize:
            raise ConfigError(f"{shown(count)} runs; expected at most {_MOST_RUNS:,}")
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "runs", runs)

    def __len__(self) -> int:
        """Number of runs."""
        return max(1, len(self.runs)) * prod(len(values) for _, values in self.axes)

    def overrides(self) -> Iterator[Overrides]:
        """Dotted keys and values of each run, the listed ones before the axes."""
        keys = [key for key, _ in self.axes]
        for listed in self.runs or ((),):
            for values in product(*(values for _, values in self.axes)):
                yield (*listed, *zip(keys, values, strict=True))

    @cached_property
    def configs(self) -> list[RunConfig]:
        """The configuration of each run.

        Raises:
            ConfigError: when one of them is invalid; it names the run.
        """
        return [self._config(k, changes) for k, changes in enumerate(self.overrides())]

    def _config(self, number: int, changes: Overrides) -> RunConfig:
        try:
            return override(self.base, _nested(changes))
        except ConfigError as error:
            told = ", ".join(f"{key} = {_toml(value)}" for key, value in changes)
            raise ConfigError(f"run {number} ({told}): {error}") from error

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Dotted keys whose values differ between runs, listed ones before axes."""
        listed = [key for run in self.runs for key, _ in run]
        named = dict.fromkeys([*listed, *(key for key, _ in self.axes)])
        return tuple(key for key in named if len({_value(c, key) for c in self.configs}) > 1)

    def values(self, key: str) -> Shaped[np.ndarray, " runs"]:
        """The value of a dotted key in each run.

        Numbers are int64 or float64, NaN in runs that have none. All else is text, a list as
        `100-50`, `none` where it is empty or there is no value.

        Raises:
            ConfigError: when the key is unknown.
        """
        _type_at(key)
        values = [_value(config, key) for config in self.configs]
        kinds = {type(value) for value in values}
        if kinds == {int}:
            return np.array(values, np.int64)
        if kinds & {int, float}:
            return np.array([np.nan if value is None else value for value in values], float)
        return np.array([_label(value) for value in values])

    def to_json(self) -> str:
        """The study as JSON; `from_json` is its inverse."""
        content = {name: getattr(self, name) for name in ("axes", "runs")}
        content |= {name: dataclasses.asdict(getattr(self, name)) for name in ("base", "measures")}
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Study:
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: when it is not a study, or a key or a value is not known here.
        """
        try:
            content = json.loads(text)
            base = override(RunConfig(), content["base"])
            measures = override(Measures(), content["measures"], "measures.")
            axes = tuple((key, tuple(values)) for key, values in content["axes"])
            return cls(base, axes, tuple(tuple(map(tuple, r)) for r in content["runs"]), measures)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a study: {error}") from error


def load_study(path: Path) -> Study:
    """Reads a study from a TOML file.

    Configuration keys as in a CONFIG.toml, `preset` among them, are the base. In `[grid]` each key
    has a list of values, `{from = 0, to = 9}` or `{logspace = [1, 100, 5]}`; each `[[list]]` is
    the keys of one run; `[measures]` are those of `Measures`.

    The configurations of a study of more than `_MAX_RUNS` runs are checked by `Study.configs` only.

    Raises:
        ConfigError: when the file is missing or not TOML, or a key, a value or a run is wrong.
    """
    table = read_toml(path)
    try:
        study = _study(table)
        if len(study) <= _MAX_RUNS:
            _ = study.configs
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return study


def require_size(study: Study, limit: int = _MAX_RUNS, yes: bool = False) -> None:
    """Refuses a study of very many runs.

    Raises:
        ConfigError: when there are more than the limit, unless the user said yes; when there are
            more than `_MOST_RUNS`, in any case.
    """
    if len(study) > limit and not yes:
        raise ConfigError(f"{len(study):,} runs; expected at most {limit:,} without --yes")
    if len(study) > _MOST_RUNS:
        raise ConfigError(
            f"{len(study):,} runs; expected at most {_MOST_RUNS:,}, as the configuration of each "
            "is kept in memory: make several studies"
        )


def _study(table: dict[str, Any]) -> Study:
    grid = require_table(table.pop("grid", {}), "grid")
    listed = table.pop("list", [])
    measures = require_table(table.pop("measures", {}), "measures")
    named = table.pop("preset", None)
    base = override(RunConfig() if named is None else preset(in_type(named, str, "preset")), table)
    if not isinstance(listed, list) or not all(isinstance(run, Mapping) for run in listed):
        raise ConfigError(f"list is {shown(listed)}; expected tables [[list]], one for each run")
    return Study(
        base,
        tuple((key, _axis(key, leaf)) for key, leaf in _leaves(grid, "grid.")),
        tuple(tuple(_leaves(run, f"list[{k}].")) for k, run in enumerate(listed)),
        override(Measures(), measures, "measures."),
    )


def _leaves(
    table: Mapping[str, Any], origin: str, kind: type = RunConfig, inside: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of the tables of a configuration."""
    for name, value in table.items():
        key = inside + name
        inner = _table_type(kind, name, origin + inside)
        if inner is None:
            yield key, value
        else:
            yield from _leaves(require_table(value, origin + key), origin, inner, f"{key}.")


def _axis(key: str, leaf: Any) -> tuple[Any, ...]:
    """The values of an axis, its shorthands written out."""
    if isinstance(leaf, list):
        return tuple(leaf)
    if not isinstance(leaf, Mapping):
        raise ConfigError(f"grid.{key} is {_toml(leaf)}; expected a list: write [{_toml(leaf)}]")
    if leaf.keys() == {"from", "to"}:
        return _range(key, leaf["from"], leaf["to"])
    if leaf.keys() == {"logspace"}:
        return _logspace(key, leaf["logspace"])
    raise ConfigError(f"grid.{key} is {_toml(leaf)}; expected {_SHORTHANDS}")


def _range(key: str, first: Any, last: Any) -> tuple[int, ...]:
    whole = type(first) is int and type(last) is int
    if not (whole and 0 <= last - first < _MAX_VALUES):
        raise ConfigError(
            f"grid.{key} is {{from = {_toml(first)}, to = {_toml(last)}}}; expected whole numbers, "
            f"to at least from, and at most {_MAX_VALUES:,} values"
        )
    return tuple(range(first, last + 1))


def _logspace(key: str, arguments: Any) -> tuple[float, ...]:
    """Geometrically spaced values, rounded where the key is a whole number."""
    numbers = isinstance(arguments, list) and [type(a) in (int, float) for a in arguments]
    if not (
        numbers == [True] * 3
        and 0 < min(arguments) <= max(arguments) <= sys.float_info.max
        and type(arguments[2]) is int
        and 2 <= arguments[2] <= _MAX_VALUES
    ):
        raise ConfigError(
            f"grid.{key} is {{logspace = {_toml(arguments)}}}; expected first and last value, both "
            f"above 0, and a whole number of values from 2 to {_MAX_VALUES:,}"
        )
    values = tuple(np.geomspace(*arguments).tolist())
    hint = _type_at(key)
    return tuple(map(round, values)) if int in (hint, *get_args(hint)) else values


def _check_axes(axes: tuple[tuple[str, tuple[Any, ...]], ...], runs: tuple[Overrides, ...]) -> None:
    if not axes and not runs:
        raise ConfigError(
            "neither [grid] nor [[list]] has runs; expected axes such as schedule.amplitude = "
            "[1, 10, 70] under [grid], or a table [[list]] for each run"
        )
    listed = {key for run in runs for key, _ in run}
    axis_keys = [key for key, _ in axes]
    for key, values in axes:
        if axis_keys.count(key) > 1:
            raise ConfigError(f"grid.{key} is there twice; expected once")
        if not values:
            raise ConfigError(f"grid.{key} is empty; expected at least one value")
        seen: set[Any] = set()
        for value in values:
            if value in seen:
                raise ConfigError(f"grid.{key} repeats {_toml(value)}; expected each value once")
            seen.add(value)
        if key in listed:
            raise ConfigError(f"{key} is in [grid] and in [[list]]; expected in one of them")


def _typed(key: str, value: Any, origin: str) -> Any:
    return in_type(value, _type_at(key, origin), origin + key)


def _type_at(key: str, origin: str = "") -> Any:
    """Type hint of a dotted key of a configuration, which must not be a table."""
    kind: Any = RunConfig
    *tables, name = key.split(".")
    for table in tables:
        kind = _table_type(kind, table, origin)
        origin += f"{table}."
        if kind is None:
            raise ConfigError(f"{origin}{name} is not a key; {origin[:-1]} is no table")
    if _table_type(kind, name, origin) is not None:
        raise ConfigError(f"{origin}{name} is a table; expected one of its keys")
    return type_of(kind, name, origin)


def _table_type(kind: type, key: str, origin: str) -> Any:
    """The dataclass of a key that is a table; none for other keys."""
    hint = type_of(kind, key, origin)
    return hint if dataclasses.is_dataclass(hint) else None


def _nested(changes: Overrides) -> dict[str, Any]:
    """Dotted keys as nested tables."""
    tables: dict[str, Any] = {}
    for key, value in changes:
        *path, name = key.split(".")
        table = tables
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
    return tables


def _value(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        value = "-".join(map(str, value)) or None
    return "none" if value is None else str(value)


def _toml(value: Any) -> str:
    """A value as it is written in TOML, shortened for messages."""
    try:
        return shortened(_written(value), 80)
    except (ValueError, RecursionError):
        return shown(value)


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=False, default=str)
