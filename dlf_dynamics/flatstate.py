"""`FlatState`: a state of a run as vectors, as files hold it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from dlf_dynamics.reprs import brief


@dataclass(frozen=True)
class FlatState:
    """Everything that the next update depends on, as vectors; see `dynamics.State`.

    Attributes:
        step: number of updates made.
        params: θ_t.
        previous_update: θ_t - θ_(t-1).
        optimizer: all numbers in the optimizer's state.
        validation: static loss and accuracy on the examples held out; empty if not evaluated.
    """

    step: int
    params: Float[np.ndarray, " params"]
    previous_update: Float[np.ndarray, " params"]
    optimizer: Float[np.ndarray, " state"]
    validation: Float[np.ndarray, " measures"] = field(default_factory=lambda: np.zeros(0))
    __repr__ = brief
