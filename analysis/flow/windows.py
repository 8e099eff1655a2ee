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
"""Of looks at which the theory may be applied, but not at all looks since its start."""


def counting_looks(found: Flow) -> Bool[np.ndarray, " looks"]:
    """Looks that count for the theories of one start at least."""
    counts = np.zeros(len(found.observed.looks), bool)
    for segment in found.segments:
        counts[segment.rows] |= found.counts(segment)
    return counts


def rules_of(found: Flow) -> dict[str, Bool[np.ndarray, " looks"]]:
    """The looks that do not count, by the rule that says so."""
    reasons = found.observed.column("reason")
    rules = {name: reasons == name for name in REASONS}
    rules[LATER] = found.observed.valid & ~counting_looks(found)
    return {name: chosen for name, chosen in rules.items() if np.any(chosen)}


def along(
    found: Flow, column: Callable[[Segment], np.ndarray], *, counted: bool = False
) -> Float[np.ndarray, " looks"]:
    """What theories predict at all looks of the run; NaN where they say nothing.

    At a look at which they start anew it is what was predicted before that.

    Args:
        found: what was found.
        column: of a segment.
        counted: whether looks that do not count are left out.
    """
    values = np.full(len(found.observed.looks), np.nan)
    for segment in reversed(found.segments):
        told = column(segment)
        values[segment.rows] = np.where(found.counts(segment), told, np.nan) if counted else told
    return values


def windows_of(found: Flow, chosen: Bool[np.ndarray, " looks"]) -> list[tuple[float, float]]:
    """Windows of consecutive looks, each from half way to the look before to half way to the next.

    Args:
        found: what was found.
        chosen: which looks.
    """
    steps = found.observed.steps.astype(float)
    middle = (steps[1:] + steps[:-1]) / 2
    begin = np.concatenate([steps[:1], middle])
    end = np.concatenate([middle, steps[-1:]])
    return [(float(begin[i]), float(end[j])) for i, j in stretches(chosen)]


def stretches(chosen: Bool[np.ndarray, " looks"]) -> list[tuple[int, int]]:
    """First and last place of each stretch that is true.

    >>> stretches(np.array([True, True, False, True]))
    [(0, 1), (3, 3)]
    """
    edges = np.diff(np.concatenate([[0], np.asarray(chosen, int), [0]]))
    firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return [(int(first), int(end) - 1) for first, end in zip(firsts, ends, strict=True)]
