"""Strict loading of configurations from TOML files and from the JSON of run files."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import ConfigError, shortened, shown
from dlf_dynamics.presets import PRESETS

Config = TypeVar("Config")


def preset(name: str) -> RunConfig:
    """The preset of this name.

    Raises:
        ConfigError: when there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {shown(name)} is unknown{_closest(name, PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class _Unchecked(RunConfig):
    """Everything that a training run depends on."""

    def __post_init__(self) -> None:
        pass


def unchecked(config: RunConfig) -> RunConfig:
    """The same configuration, copies of which with other values are not checked."""
    return _Unchecked(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})


def load_toml(path: Path, base: RunConfig | None = None) -> RunConfig:
    """Reads a TOML file whose keys override those of `base`.

    Without `base`, the file's own top-level key `preset` names it; without that key it is
    `RunConfig()`.

    Raises:
        ConfigError: when the file is missing or not TOML, or a key or value is wrong.
    """
    values = read_toml(path)
    named = values.pop("preset", None)
    if base is None:
        base = RunConfig() if named is None else preset(in_type(named, str, "preset"))
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
        return tomllib.loads(_text(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"configuration {path} cannot be read: {reason}") from error
    except RecursionError as error:
        raise ConfigError(f"configuration {path} is nested too deep to be read") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {path} is not valid TOML: {error}") from error
    except ValueError as error:  # a number with more digits than Python reads
        reason = str(error).split(";")[0]
        raise ConfigError(f"configuration {path} has a number too long: {reason}") from error


_MOST_BYTES = 2**24
"""Size limit of a configuration file, which is text typed by a person."""


def _text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"configuration {path} has more than {_MOST_BYTES:,} bytes")
    return content.decode()


def to_json(config: RunConfig) -> str:
    """The configuration as JSON, enough to train again; `from_json` is its inverse.

    >>> from_json(to_json(RunConfig())) == RunConfig()
    True
    """
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_json(text: str) -> RunConfig:
    """Reads what `to_json` wrote.

    Raises:
        ConfigError: when it is not JSON, or a key or value is unknown.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration is not JSON: {error}") from error
    return override(RunConfig(), require_table(values, "the configuration"))


def override(base: Config, values: Mapping[str, Any], prefix: str = "") -> Config:
    """A copy of the dataclass `base` with `values`, checked key by key against its type hints.

    Raises:
        ConfigError: for an unknown key (it names the closest valid one), type or choice.
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
    """Type hint of a field of a dataclass; the hint of a table is a dataclass again.

    Raises:
        ConfigError: for an unknown key; it names the closest valid one, both after `prefix`.
    """
    hints = _hints(kind)
    if key not in hints:
        closest = _closest(prefix + key, [prefix + name for name in hints])
        raise ConfigError(f"{shortened(prefix + key, 80)} is not a key{closest}")
    return hints[key]


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Evaluated type hints of a dataclass, cached as they take most of the time of `override`."""
    return get_type_hints(kind)


def require_table(value: Any, key: str) -> Mapping[str, Any]:
    """The value, which must be a table.

    Raises:
        ConfigError: when it is not.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {shown(value)}; expected a table [{key}]")
    return value


def in_type(value: Any, hint: Any, key: str) -> Any:
    """The value in the type of the hint; an integer serves as a float, a list as a tuple.

    Raises:
        ConfigError: for a wrong type or a wrong choice.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        close = _closest(value if isinstance(value, str) else "", arguments)
        raise ConfigError(f"{key} is {shown(value)}{close}")
    if origin in (types.UnionType, Union):
        if value is None:
            return None
        return in_type(value, next(a for a in arguments if a is not type(None)), key)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(in_type(item, arguments[0], key) for item in value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    if hint in (int, str) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    if hint is bool and isinstance(value, bool):
        return value
    kinds = {float: "a number", int: "a whole number", str: "a string", bool: "true or false"}
    expected = kinds.get(hint, "a list")
    raise ConfigError(f"{key} is {shown(value)}; expected {expected}")


def _closest(given: str, choices: Any) -> str:
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(given[:80], names, n=1)
    suggestion = f"; did you mean {close[0]}?" if close else ";"
    return f"{suggestion} choices: {', '.join(names)}"
