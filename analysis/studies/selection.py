"""`Selection`: the runs of a study with certain values of its keys, the static ones apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.reprs import brief

SEEDS = ("model.seed", "data.seed", "batch_seed")
"""Keys that are averaged over; no other is."""

AMPLITUDE, PERIOD, SCHEDULE = "schedule.amplitude", "schedule.period", "schedule.name"


@dataclass(frozen=True)
class Selection:
    """The runs with certain values of the fixed keys.

    Attributes:
        values: the distinct values of each key that varies in the study, sorted.
        codes: index of each run's value among them, int (runs,).
        moving: the runs of the cells, bool (runs,).
        static: the static runs to compare them with, bool (runs,).
        fixed: the fixed keys, and their values.
    """

    values: dict[str, np.ndarray]
    codes: dict[str, Int[np.ndarray, " runs"]]
    moving: Bool[np.ndarray, " runs"]
    static: Bool[np.ndarray, " runs"]
    fixed: dict[str, Any]
    __repr__ = brief

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys that vary in the study."""
        return tuple(self.values)

    @property
    def seeds(self) -> tuple[str, ...]:
        """Varying keys that are seeds."""
        return tuple(key for key in self.values if key in SEEDS)

    def indices(self, key: str) -> Int[np.ndarray, " places"]:
        """Codes of the values of a key that occur among the cells' runs."""
        return np.unique(self.codes[key][self.moving])

    def agrees(self, indices: Mapping[str, int]) -> Bool[np.ndarray, " runs"]:
        """The runs of the study with these codes."""
        agreeing = np.ones(len(self.moving), bool)
        for key, index in indices.items():
            agreeing &= self.codes[key] == index
        return agreeing

    def names(self, keys: Sequence[str]) -> Int[np.ndarray, " runs"]:
        """A number for each run: the same for those with the same values of the keys."""
        table = np.stack([np.zeros(len(self.moving), int), *(self.codes[key] for key in keys)], 1)
        return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)

    def codes_of(self, run: int, axes: Sequence[str]) -> dict[str, int]:
        """The codes of a run, those of seeds that are averaged over left out."""
        averaged = [key for key in self.seeds if key not in (*axes, *self.fixed)]
        return {key: int(self.codes[key][run]) for key in self.keys if key not in averaged}

    def static_runs(
        self, cell: Mapping[str, int], usable: Bool[np.ndarray, " runs"]
    ) -> Bool[np.ndarray, " runs"]:
        """The static runs to compare a cell with.

        No key of the schedule has an effect on them: those that share all its other keys, and if
        there are usable ones with its schedule but for the amplitude, only these.

        Args:
            cell: the codes that they have to share, as of `codes_of`.
            usable: the runs with the number that is compared.
        """
        alike = self.static & self.agrees({k: v for k, v in cell.items() if not of_schedule(k)})
        own = alike & self.agrees({k: v for k, v in cell.items() if k not in (AMPLITUDE, SCHEDULE)})
        return own if np.any(own & usable) else alike


def complete_runs(results: StudyResults) -> Bool[np.ndarray, " runs"]:
    """The runs that are made and neither failed nor diverged."""
    complete = np.array([status == "complete" for status in results.statuses], bool)
    return np.asarray(results.done, bool) & complete


def select(results: StudyResults, fixed: Mapping[str, Any] | None = None) -> Selection:
    """The runs with the fixed values, and the static ones, for which the schedule's keys are free.

    Static are runs with amplitude 1 or the schedule `static`, as far as these keys vary. Where
    nothing but static runs are left, as when the amplitude is fixed to 1, they are the cells.

    Args:
        results: results of the study.
        fixed: keys and their values, as numbers or text; widths may be a tuple.

    Raises:
        ConfigError: when a key does not vary, or no run has the value.
    """
    values, codes = {}, {}
    for key in results.study.keys:
        values[key], codes[key] = _encode(results.study.values(key))
    indices = {key: _find(values, key, value) for key, value in (fixed or {}).items()}
    chosen = {key: values[key][index].item() for key, index in indices.items()}
    every = Selection(values, codes, np.ones(len(results.done), bool), _static(results), chosen)
    matching = every.agrees(indices)
    if not np.any(matching):
        named = ", ".join(f"{key} {describe(value)}" for key, value in chosen.items())
        raise ConfigError(f"no run of the study has {named}; fix fewer keys")
    moving = matching & ~every.static
    if not np.any(moving):
        return Selection(values, codes, matching, np.zeros_like(moving), chosen)
    free = every.agrees({key: v for key, v in indices.items() if not of_schedule(key)})
    return Selection(values, codes, moving, every.static & free, chosen)


def choose_axes(
    selection: Selection, x: str | None = None, y: str | None = None
) -> tuple[str, str | None]:
    """Chooses the axes that are not given.

    They are x = period and y = amplitude when both vary in the study, else the first two keys
    that vary and are not seeds, the amplitude upwards; `y` is none when only one does.

    Raises:
        ConfigError: when an axis does not vary, is fixed or is both axes, or nothing varies.
    """
    free = [key for key in selection.keys if key not in selection.fixed]
    for axis in (x, y):
        if axis in selection.fixed:
            raise ConfigError(f"{axis} is an axis and fixed; expected one of the two")
        if axis is not None and axis not in free:
            raise ConfigError(f"axis {axis} does not vary; choices: {', '.join(free)}")
    if x is not None and x == y:
        raise ConfigError(f"both axes are {x}; choose two of {', '.join(free)}")
    if x is None and y is None:
        if {AMPLITUDE, PERIOD} <= set(free):
            return PERIOD, AMPLITUDE
        x, y = _first_two(selection)
    if x is None:
        x = next(iter(further_keys(selection, (y,))), None)
    if x is None:
        x = next((key for key in free if key not in (*SEEDS, y)), None)
    if x is None:
        raise ConfigError("nothing but seeds varies; expected another key for the axis x")
    return x, y or next(iter(further_keys(selection, (x,))), None)


def _first_two(selection: Selection) -> tuple[str | None, str | None]:
    left = further_keys(selection, ())
    first = left[0] if left else None
    second = next(iter(further_keys(selection, (first,))), None) if first else None
    return (second, first) if second and first == AMPLITUDE else (first, second)


def further_keys(selection: Selection, axes: Sequence[str | None]) -> list[str]:
    """Keys that are neither axes nor seeds, and have several values within a cell of the axes.

    A key that follows from the axes, such as a number of steps listed with each period, does not.
    """
    own = [axis for axis in axes if axis is not None]
    cells = len(np.unique(selection.names(own)[selection.moving]))
    return [
        key
        for key in selection.keys
        if key not in (*SEEDS, *own)
        and len(np.unique(selection.names([*own, key])[selection.moving])) > cells
    ]


def require_single(selection: Selection, axes: Sequence[str | None]) -> None:
    """Raises ConfigError when a key that is neither seed nor axis varies within a cell."""
    keys = further_keys(selection, axes)
    if keys:
        advice = "; ".join(
            f"{key} to one of {_listed(selection.values[key][selection.indices(key)])}"
            for key in keys
        )
        verb = "varies" if len(keys) == 1 else "vary"
        raise ConfigError(
            f"{' and '.join(keys)} {verb}, only seeds are averaged over; fix {advice}"
        )


def describe(value: Any) -> str:
    """A value of a key as text: whole numbers without a decimal point.

    >>> describe(300.0), describe(0.05), describe("100-50"), describe(float("nan"))
    ('300', '0.05', '100-50', 'none')
    """
    if isinstance(value, str):
        return value
    if np.isnan(value):
        return "none"
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _encode(values: np.ndarray) -> tuple[np.ndarray, Int[np.ndarray, " runs"]]:
    """The distinct values, sorted, text by the numbers in it, and the index of each run's."""
    distinct, codes = np.unique(values, return_inverse=True)

    def order(index: int) -> tuple[bool, list[int], int]:
        parts = str(distinct[index]).split("-")
        told = all(part.isdigit() for part in parts)
        return not told, [int(part) for part in parts] if told else [], index

    if distinct.dtype.kind == "U":
        order_of_values = sorted(range(len(distinct)), key=order)
        return distinct[order_of_values], np.argsort(order_of_values)[codes]
    return distinct, codes


def _static(results: StudyResults) -> Bool[np.ndarray, " runs"]:
    """Runs whose weights are all 1, judged by the keys that vary."""
    study = results.study
    static = np.zeros(len(results.done), bool)
    if AMPLITUDE in study.keys:
        static |= study.values(AMPLITUDE) == 1
    if SCHEDULE in study.keys:
        static |= study.values(SCHEDULE) == "static"
    return static


def of_schedule(key: str) -> bool:
    """Whether static runs do not depend on this key."""
    return key.startswith("schedule.")


def _find(values: Mapping[str, np.ndarray], key: str, value: Any) -> int:
    """Index of a value among those of the key."""
    if key not in values:
        raise ConfigError(f"{key} does not vary in the study; choices: {', '.join(values)}")
    choices = values[key]
    text = "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if choices.dtype.kind == "U":
        equal = choices == text
    elif text in ("none", "None"):
        equal = np.isnan(choices)
    else:
        try:
            equal = np.isclose(choices, float(text), rtol=1e-9, atol=0)
        except ValueError:
            equal = np.zeros(len(choices), bool)
    if not np.any(equal):
        raise ConfigError(f"no run has {key} {text}; choices: {_listed(choices)}")
    return int(np.argmax(equal))


def _listed(values: np.ndarray) -> str:
    return ", ".join(describe(value) for value in values)
