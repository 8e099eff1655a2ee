"""Parses settings that name steps, pulses or a plane of two parameters."""

from __future__ import annotations

import math
import re

from dlf_dynamics.errors import ConfigError, shown


def span_of(text: str, key: str) -> tuple[float, float]:
    """The first step and the step after the last of `a:b`; a missing number means no bound.

    Raises:
        ConfigError: when the text does not have this form, or the range is empty.

    >>> span_of("8000:", "steps")
    (8000, inf)
    """
    match = re.fullmatch(r"([0-9]{0,18}):([0-9]{0,18})", text) if isinstance(text, str) else None
    if match:
        start, stop = int(match[1] or 0), int(match[2]) if match[2] else math.inf
        if start < stop:
            return start, stop
    raise ConfigError(f"{key} is {shown(text)}; expected a:b with a < b, for example 8000:10500")


def require_whole(text: str, key: str) -> None:
    """Requires a range a:b, for a setting that may also be auto or none.

    Raises:
        ConfigError: when the text is not one.
    """
    try:
        span_of(text, key)
    except ConfigError:
        raise ConfigError(
            f"{key} is {shown(text)}; expected auto, none, or a:b with a < b"
        ) from None


def plane_of(text: str) -> list[tuple[str, tuple[float, float] | None]]:
    """Names of two parameters with their ranges; None if a range is left out.

    Raises:
        ConfigError: when the text does not have this form.

    >>> plane_of("learning_rate:0.1:2,amplitude")
    [('learning_rate', (0.1, 2.0)), ('amplitude', None)]
    """
    parameters: list[tuple[str, tuple[float, float] | None]] = []
    for part in text.split(","):
        name, *ends = part.strip().split(":")
        try:
            low, high = map(float, ends) if ends else (0.0, 1.0)
        except ValueError:
            low, high = 1.0, 0.0
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or not name:
            break
        parameters.append((name, (low, high) if ends else None))
    if len(parameters) != 2 or len(parameters) != len(text.split(",")):
        raise ConfigError(
            f"plane is {shown(text)}; expected none, or two parameters such as "
            "learning_rate,amplitude or learning_rate:0.1:2,amplitude:1:100"
        )
    return parameters
