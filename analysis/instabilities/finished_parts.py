"""Finished parts of the search for instabilities, read again and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlf_dynamics.analysis.instabilities.instability import Instability, describe
from dlf_dynamics.analysis.instabilities.oscillation import Motion
from dlf_dynamics.analysis.instabilities.periods import LAGS
from dlf_dynamics.analysis.instabilities.unstable import UnstableDirection
from dlf_dynamics.analysis.spectra.events import Oscillation
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.codec import Arrays, Record, decode, typed
from dlf_dynamics.configfile import in_type
from dlf_dynamics.hdf5 import ContentError


def with_deviation(
    kind: type[Record], lengths: Mapping[str, int], arrays: Arrays
) -> tuple[Record, float]:
    """A record of what was looked at, and by how much the replay missed a checkpoint."""
    fields = {name: array for name, array in arrays.items() if name != "deviation"}
    return typed(kind, fields, lengths), in_type(
        np.asarray(arrays["deviation"]).item(), float, "deviation"
    )


def as_piece(
    steps: np.ndarray, looked_at: np.ndarray, size: int, arrays: Arrays
) -> tuple[Motion, float]:
    """The motion at these steps, looked at at some; raises where the arrays are not that."""
    lengths = {"params": size, "followed": len(looked_at), "lags": len(LAGS)}
    found, deviation = with_deviation(Motion, lengths, arrays)
    if not (np.array_equal(found.steps, steps) and np.array_equal(found.looked_at, looked_at)):
        raise ContentError("it is of other steps")
    return found, deviation


def as_located(motion: Motion, arrays: Arrays) -> Motion:
    """The motion, looked at at more steps; raises where the arrays are not that."""
    if set(arrays) != set(motion.looks):
        raise ContentError(f"it has {', '.join(arrays)}; expected {', '.join(motion.looks)}")
    found = typed(Motion, motion._asdict() | arrays)
    looked_at = set(found.looked_at.tolist())
    if not set(motion.looked_at.tolist()) <= looked_at <= set(motion.steps.tolist()):
        raise ContentError("it is of other steps")
    return found


@dataclass(frozen=True)
class Described:
    """The instability of one window with its directions, as a record."""

    instability: list[Instability]
    directions: list[UnstableDirection]

    @classmethod
    def of(cls, replay: Replay, *given: Any) -> Described:
        """What `describe` makes of these."""
        instability, directions = describe(replay, *given)
        return cls([instability], directions)


def as_described(window: Oscillation, arrays: Arrays) -> Described:
    """What is known of a window; raises where the arrays are not that."""
    described = decode(Described, arrays)
    (found,) = described.instability
    if (found.onset, found.end) != (window.onset, window.end):
        raise ContentError("it is of another oscillation")
    return described
