"""Which looks count and which do not, by rules and in windows of steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from dlf_dynamics.analysis.flow.flow import Flow
from dlf_dynamics.analysis.flow.segments import Segment
from dlf_dynamics.analysis.flow.validity import REASONS

COUNTS = "counts"

LATER = "after a break"
"""The rule for looks at which the theory may be applied, but not at all looks since its start."""


def counting_looks(flow: Flow) -> Bool[np.ndarray, " looks"]:
    """Looks that count for the theories of one start at least."""
    counts = np.zeros(len(flow.observed.looks), bool)
    for segment in flow.segments:
        counts[segment.rows] |= flow.counts(segment)
    return counts


def rules_of(flow: Flow) -> dict[str, Bool[np.ndarray, " looks"]]:
    """The looks that do not count, by the rule that excludes them."""
    reasons = flow.observed.column("reason")
    rules = {name: reasons == name for name in REASONS}
    rules[LATER] = flow.observed.valid & ~counting_looks(flow)
    return {name: chosen for name, chosen in rules.items() if np.any(chosen)}


def drawable_energy(flow: Flow) -> Float[np.ndarray, " looks"]:
    """The energy of the oscillation, NaN where nothing oscillates.

    There |d|² is not 0, since the path is curved, and no theory of an oscillation is about that.
    """
    return np.where(flow.observed.column("oscillating"), flow.observed.energy, np.nan)


REACH = 3
"""Multiples of the largest sharpness, or of the least threshold, up to which that is in sight."""


def near_threshold(flow: Flow) -> Float[np.ndarray, " looks"]:
    """The threshold, NaN where it is far above its least value and all that was measured.

    It goes to infinity where a schedule takes the learning rate to 0.
    """
    threshold, sharpness = (flow.observed.column(name) for name in ("threshold", "sharpness"))
    most = np.max(sharpness, initial=np.min(threshold), where=np.isfinite(sharpness))
    return np.where(threshold <= REACH * most, threshold, np.nan)


def along(
    flow: Flow, column: Callable[[Segment], np.ndarray], *, counted: bool = False
) -> Float[np.ndarray, " looks"]:
    """What theories predict at all looks of the run; NaN where they predict nothing.

    At a look at which they start again it is what was predicted until then.

    Args:
        flow: the compared flow.
        column: number of a segment at its looks.
        counted: whether looks that do not count are left out.
    """
    values = np.full(len(flow.observed.looks), np.nan)
    for segment in reversed(flow.segments):
        told = column(segment)
        values[segment.rows] = np.where(flow.counts(segment), told, np.nan) if counted else told
    return values


def windows_of(flow: Flow, chosen: Bool[np.ndarray, " looks"]) -> list[tuple[float, float]]:
    """Windows of consecutive looks, extended half way to the looks before and after.

    Args:
        flow: the compared flow.
        chosen: which looks.
    """
    steps = flow.observed.steps.astype(float)
    middle = (steps[1:] + steps[:-1]) / 2
    begin = np.concatenate([steps[:1], middle])
    end = np.concatenate([middle, steps[-1:]])
    return [(float(begin[i]), float(end[j])) for i, j in stretches(chosen)]


def stretches(chosen: Bool[np.ndarray, " looks"]) -> list[tuple[int, int]]:
    """First and last index of each stretch that is true.

    >>> stretches(np.array([True, True, False, True]))
    [(0, 1), (3, 3)]
    """
    edges = np.diff(np.concatenate([[0], np.asarray(chosen, int), [0]]))
    firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(first), int(end) - 1) for first, end in zip(firsts, ends, strict=True)]
