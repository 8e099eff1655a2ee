"""`TheoryError`: how far theories are off, over the looks at which they may be applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.flow.observed import Observed
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW, Segment

_NEGLIGIBLE = 1e-3
"""Part of the largest energy of the looks that count below which there is no oscillation to be
right about."""

_AHEAD = (20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Ends of the spans of steps since the start for which errors are given separately."""

QUANTITIES = MappingProxyType(
    {
        "loss": "relative to the one measured",
        "sharpness": "relative to the threshold",
        "energy": "of an oscillation that is there or predicted, relative to the larger of the two",
        "distance": "of the centres, relative to how far the run's went since the start",
    }
)
"""What is compared, and what the error is relative to."""


@dataclass(frozen=True)
class TheoryError:
    """How far a theory is off, over looks that count.

    Attributes:
        theory: its name.
        quantity: what is compared, of `QUANTITIES`.
        ahead_from: least number of steps since the start of the theory.
        ahead_to: largest number of them.
        looks: how many looks count and have a prediction.
        missing: how many count and have none.
        median: median error, relative as `QUANTITIES` says.
        largest: largest error.
    """

    theory: str
    quantity: str
    ahead_from: int
    ahead_to: int
    looks: int
    missing: int
    median: float
    largest: float


def counting(observed: Observed, segment: Segment) -> Bool[np.ndarray, " places"]:
    """Which looks of a segment count: the central flow may be applied at all since its start."""
    return np.logical_and.accumulate(observed.valid[segment.rows])


def errors_of(observed: Observed, segments: Sequence[Segment]) -> list[TheoryError]:
    """Errors over all looks that count, and by the steps since the start of a theory.

    Looks at the start itself are left out: there nothing is predicted.
    """
    if not segments:
        return []
    ahead = [observed.steps[segment.rows] - segment.start for segment in segments]
    counts = [counting(observed, segment) for segment in segments]
    whole = _Looks(observed, segments, np.concatenate(counts), np.concatenate(ahead))
    theories = dict.fromkeys(p.name for segment in segments for p in segment.predictions)
    return [
        error
        for theory in theories
        for quantity in QUANTITIES
        for error in _told(whole, theory, quantity)
    ]


class _Looks(NamedTuple):
    """Looks of all segments, one after the other."""

    observed: Observed
    segments: Sequence[Segment]
    counts: Bool[np.ndarray, " looks"]
    ahead: Int[np.ndarray, " looks"]

    def measured(self, name: str) -> np.ndarray:
        """A number of the run."""
        column = self.observed.column(name)
        return np.concatenate([column[segment.rows] for segment in self.segments])

    def predicted(self, theory: str, name: str) -> np.ndarray:
        """A number of a theory."""
        return np.concatenate([segment.column(theory, name) for segment in self.segments])


def _told(looks: _Looks, theory: str, quantity: str) -> list[TheoryError]:
    """The whole first, then each span in which something counts."""
    error, used = _relative(looks, theory, quantity), looks.counts & (looks.ahead > 0)
    if quantity == "energy":  # where nothing oscillates, |d|² is that of a curved path
        larger = looks.predicted(theory, quantity) > looks.measured(quantity)
        used &= looks.measured("oscillating").astype(bool) | larger
    silent = theory != CENTRAL_FLOW and np.all(np.isnan(error))  # it does not speak of that at all
    if silent or not np.any(used):
        return []
    last = int(looks.ahead[used].max())
    ends = [0, *(end for end in _AHEAD if end < last), last]
    spans = [(1, last), *((begin + 1, end) for begin, end in pairwise(ends))]
    errors = []
    for begin, end in dict.fromkeys(spans):
        chosen = error[used & (looks.ahead >= begin) & (looks.ahead <= end)]
        known = chosen[~np.isnan(chosen)]
        if len(chosen) == 0:
            continue
        errors.append(
            TheoryError(
                theory=theory,
                quantity=quantity,
                ahead_from=begin,
                ahead_to=end,
                looks=len(known),
                missing=len(chosen) - len(known),
                median=float(np.median(known)) if len(known) else float("nan"),
                largest=float(np.max(known)) if len(known) else float("nan"),
            )
        )
    return errors


def _relative(looks: _Looks, theory: str, quantity: str) -> Float[np.ndarray, " looks"]:
    """The error at each look; NaN where the theory says nothing."""
    predicted = looks.predicted(theory, quantity)
    if quantity == "distance":
        travelled = np.concatenate([segment.travelled for segment in looks.segments])
        return _ratio(predicted, travelled)
    measured = looks.measured(quantity)
    scale = np.abs(measured)
    if quantity == "sharpness":
        scale = looks.measured("threshold")
    if quantity == "energy":
        largest = np.max(measured[looks.counts], initial=0.0)
        scale = np.maximum(np.maximum(measured, predicted), _NEGLIGIBLE * largest)
    return _ratio(np.abs(predicted - measured), scale)


def _ratio(difference: np.ndarray, scale: np.ndarray) -> Float[np.ndarray, " looks"]:
    """0 where there is no difference, even of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / scale)
