"""Texts of a configuration that name steps, pulses or a plane of two parameters."""

from __future__ import annotations

import math
import re

from dlf_dynamics.errors import ConfigError, shown


def span_of(text: str, key: str) -> tuple[float, float]:
    """First step and the one after the last of `a:b`; where one is left out, there is no bound.

    Raises:
        ConfigError: when it is not of that form, or empty.

    >>> span_of("8000:", "steps")
    (8000, inf)
    """
    found = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", text) if isinstance(text, str) else None
    if found:
        start, stop = int(found[1] or 0), int(found[2]) if found[2] else math.inf
        if start < stop:
            return start, stop
    raise ConfigError(f"{key} is {shown(text)}; expected a:b with a < b, for example 8000:10500")


def require_whole(text: str, key: str) -> None:
    """Refuses what is no a:b, where auto and none are choices, too.

    Raises:
        ConfigError: unless it is.
    """
    try:
        span_of(text, key)
    except ConfigError:
        raise ConfigError(
            f"{key} is {shown(text)}; expected auto, none, or a:b with a < b"
        ) from None


def plane_of(text: str) -> list[tuple[str, tuple[float, float] | None]]:
    """Names of two parameters with their ranges; none where it is left out.

    Raises:
        ConfigError: when it is not of that form.

    >>> plane_of("learning_rate:0.1:2,amplitude")
    [('learning_rate', (0.1, 2.0)), ('amplitude', None)]
    """
    found: list[tuple[str, tuple[float, float] | None]] = []
    for part in text.split(","):
        name, *ends = part.strip().split(":")
        try:
            low, high = map(float, ends) if ends else (0.0, 1.0)
        except ValueError:
            low, high = 1.0, 0.0
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or not name:
            break
        found.append((name, (low, high) if ends else None))
    if len(found) != 2 or len(found) != len(text.split(",")):
        raise ConfigError(
            f"plane is {shown(text)}; expected none, or two parameters such as "
            "learning_rate,amplitude or learning_rate:0.1:2,amplitude:1:100"
        )
    return found
