"""Strict loading of configurations from TOML files and from the JSON of run files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.presets import PRESETS

Config = TypeVar("Config")


def preset(name: str) -> RunConfig:
    """The preset of this name.

    Raises:
        ConfigError: when there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown{_closest(name, PRESETS)}")
    return PRESETS[name]


def load_toml(path: Path, base: RunConfig | None = None) -> RunConfig:
    """Reads a TOML file whose keys override those of `base`.

    Without `base` the file's own top-level key `preset` names it, and without that key it is
    `RunConfig()`.

    Raises:
        ConfigError: when the file is missing or not TOML, or a key or value is wrong.
    """
    values = read_toml(path)
    named = values.pop("preset", None)
    if base is None:
        base = RunConfig() if named is None else preset(str(named))
    try:
        return override(base, values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and tables of a TOML file, unchecked.

    Raises:
        ConfigError: when the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"configuration {path} cannot be read: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from error


def to_json(config: RunConfig) -> str:
    """The configuration as JSON, enough to train again; `from_json` is its inverse.

    >>> from_json(to_json(RunConfig())) == RunConfig()
    True
    """
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_json(text: str) -> RunConfig:
    """Reads what `to_json` wrote.

    Raises:
        ConfigError: when a key or a value is not known here.
    """
    return override(RunConfig(), require_table(json.loads(text), "the configuration"))


def override(base: Config, values: Mapping[str, Any], prefix: str = "") -> Config:
    """A copy of the dataclass `base` with `values`, checked key by key against its type hints.

    Raises:
        ConfigError: for an unknown key, with the closest valid one, a wrong type or a wrong choice.
    """
    changes = {}
    for key, value in values.items():
        hint = type_of(type(base), key, prefix)
        if dataclasses.is_dataclass(hint):
            table = require_table(value, prefix + key)
            changes[key] = override(getattr(base, key), table, f"{prefix}{key}.")
        else:
            changes[key] = in_type(value, hint, prefix + key)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def type_of(kind: type, key: str, prefix: str = "") -> Any:
    """Type hint of a field of a dataclass; that of a table is a dataclass again.

    Raises:
        ConfigError: for an unknown key, with the closest valid one; `prefix` is put before both.
    """
    hints = _hints(kind)
    if key not in hints:
        closest = _closest(prefix + key, [prefix + name for name in hints])
        raise ConfigError(f"{prefix + key} is not a key{closest}")
    return hints[key]


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Evaluated type hints of a dataclass, which takes longer than all else in `override`."""
    return get_type_hints(kind)


def require_table(value: Any, key: str) -> Mapping[str, Any]:
    """The value, which must be a table.

    Raises:
        ConfigError: when it is not.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {value!r}; expected a table [{key}]")
    return value


def in_type(value: Any, hint: Any, key: str) -> Any:
    """The value in the type of the hint; an integer serves as a float, a list as a tuple.

    Raises:
        ConfigError: for a wrong type or a wrong choice.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{key} is {value!r}{_closest(str(value), arguments)}")
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return in_type(value, next(a for a in arguments if a is not type(None)), key)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(in_type(item, arguments[0], key) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    kinds = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    expected = kinds.get(hint, "a list")
    raise ConfigError(f"{key} is {value!r}; expected {expected}")


def _closest(found: str, choices: Any) -> str:
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(found, names, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else ";"
    return f"{suggestion} choices: {', '.join(names)}"
