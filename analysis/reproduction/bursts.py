"""`Burst`: periods of the iterates about one change of the emphasised class, and their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from dlf_dynamics.analysis.instabilities.periods import IRREGULAR, LAGS

KINDS = (*LAGS, IRREGULAR)
"""Periods that are distinguished, and motion that has none of them."""

WINDOW = 32
"""Successive steps from which a period is established."""

_MAJORITY = 0.75
"""Fraction of these steps that must have the period."""


@dataclass(frozen=True)
class Burst:
    """What the iterates do from the peak of one pulse of the class weights to that of the next.

    Oscillations begin as a class loses its weight and may outlast the end of its pulse, so that a
    span from peak to peak has all of one, and the pulse itself parts of two.

    Attributes:
        first: first step of the span.
        length: number of steps in the span.
        counts: number of steps of each of KINDS.
        stretches: first and last step of each stretch, by kind; in every window of 32 steps within
            a stretch at least 24 are of its kind. Kinds without a stretch are left out.
    """

    first: int
    length: int
    counts: Mapping[int, int]
    stretches: Mapping[int, tuple[tuple[int, int], ...]]

    @property
    def oscillates(self) -> bool:
        """Whether any kind is reached."""
        return bool(self.stretches)

    @property
    def reached(self) -> dict[int, int]:
        """The first step of the first stretch of each kind."""
        return {kind: spans[0][0] for kind, spans in self.stretches.items()}

    def middle(self, kind: int) -> int:
        """The middle of the longest stretch of a kind."""
        begin, end = max(self.stretches[kind], key=lambda stretch: stretch[1] - stretch[0])
        return (begin + end) // 2

    @property
    def doubles(self) -> bool:
        """Whether period 4 is reached, and period 2 before it."""
        reached = self.reached
        return {2, 4} <= reached.keys() and reached[2] < reached[4]

    @property
    def cascades(self) -> bool:
        """Whether it doubles, and a stretch of period 8 or of none begins after period 4."""
        later = [*self.stretches.get(8, ()), *self.stretches.get(IRREGULAR, ())]
        return self.doubles and any(begin > self.reached[4] for begin, _ in later)


def bursts_of(
    steps: Int[np.ndarray, " steps"], periods: Int[np.ndarray, " steps"], length: int, end: int
) -> Iterator[Burst]:
    """The spans from peak to peak of the pulses of a run; the last one ends half a pulse later.

    Args:
        steps: consecutive steps.
        periods: period of the iterates at each step, from `periods_of_iterates`.
        length: steps of a pulse.
        end: first step that is in no pulse.

    >>> periods = np.repeat([0, 2, 4, -1, 0], 200)
    >>> (burst,) = bursts_of(np.arange(1000), periods, 600, 600)
    >>> burst.first, burst.length, burst.counts[4], burst.reached[4], burst.doubles, burst.cascades
    (300, 600, 200, 392, True, True)
    """
    for first in range(length // 2, end, length):
        inside = (steps >= first) & (steps < first + length)
        kinds, own_steps = periods[inside], steps[inside]
        counts, stretches = {}, {}
        for kind in KINDS:
            here = kinds == kind
            counts[kind] = int(np.count_nonzero(here))
            spans = _stretches(here)
            if spans:
                stretches[kind] = tuple((int(own_steps[a]), int(own_steps[b])) for a, b in spans)
        yield Burst(first, int(np.count_nonzero(inside)), counts, stretches)


def _stretches(here: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each stretch whose windows all have the majority."""
    if len(here) < WINDOW:
        return []
    share = np.convolve(here, np.ones(WINDOW), "valid") / WINDOW
    full = np.concatenate([[False], share >= _MAJORITY, [False]]).astype(int)
    begins, ends = np.flatnonzero(np.diff(full) == 1), np.flatnonzero(np.diff(full) == -1)
    return list(zip(begins.tolist(), (ends + WINDOW - 2).tolist(), strict=True))
