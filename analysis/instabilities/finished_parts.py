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
    """A record, and by how much the replay missed a checkpoint while it was made."""
    fields = {name: array for name, array in arrays.items() if name != "deviation"}
    return typed(kind, fields, lengths), in_type(
        np.asarray(arrays["deviation"]).item(), float, "deviation"
    )


def as_piece(
    steps: np.ndarray, sampled_steps: np.ndarray, size: int, arrays: Arrays
) -> tuple[Motion, float]:
    """The motion at these steps, with the curvature at some; raises for any other arrays."""
    lengths = {"params": size, "followed": len(sampled_steps), "lags": len(LAGS)}
    motion, deviation = with_deviation(Motion, lengths, arrays)
    if not (
        np.array_equal(motion.steps, steps) and np.array_equal(motion.looked_at, sampled_steps)
    ):
        raise ContentError("it is of other steps")
    return motion, deviation


def as_located(motion: Motion, arrays: Arrays) -> Motion:
    """The motion with the curvature at more steps; raises for any other arrays."""
    if set(arrays) != set(motion.looks):
        raise ContentError(f"it has {', '.join(arrays)}; expected {', '.join(motion.looks)}")
    located = typed(Motion, motion._asdict() | arrays)
    sampled_steps = set(located.looked_at.tolist())
    if not set(motion.looked_at.tolist()) <= sampled_steps <= set(motion.steps.tolist()):
        raise ContentError("it is of other steps")
    return located


@dataclass(frozen=True)
class Described:
    """The instability of one window with its directions, as a record."""

    instability: list[Instability]
    directions: list[UnstableDirection]

    @classmethod
    def of(cls, replay: Replay, *given: Any) -> Described:
        """The result of `describe` for these arguments."""
        instability, directions = describe(replay, *given)
        return cls([instability], directions)


def as_described(window: Oscillation, arrays: Arrays) -> Described:
    """The description of a window; raises for any other arrays."""
    described = decode(Described, arrays)
    (instability,) = described.instability
    if (instability.onset, instability.end) != (window.onset, window.end):
        raise ContentError("it is of another oscillation")
    return described
