"""Points of a checkpoint at which the curvature is taken: the iterate, and the centre about it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.devices import map_over_devices
from dlf_dynamics.dynamics import Dynamics, State

POINTS = ("iterate", "centre")
"""Where the curvature is taken at each checkpoint, in the order of the arrays' second axis."""

CENTRE = ("centre",)
"""The centre alone, at half the price."""


@partial(jax.jit, static_argnames="points")
def points_of(
    dynamics: Dynamics, states: State, *, points: tuple[str, ...]
) -> Float[Array, "states points params"]:
    """Some points of each state of a batch."""
    chosen = np.array([POINTS.index(point) for point in points])
    return map_over_devices(lambda state: both_points(dynamics, state)[chosen], states)


@jax.jit
def both_points(dynamics: Dynamics, state: State) -> Float[Array, "points params"]:
    """The iterate, and the centre ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1).

    The centre is NaN where the update before is not known; at step 0 that update is 0.
    """
    following, _ = dynamics.step(state)
    centre = state.params + (following.previous_update - state.previous_update) / 4
    return jnp.stack([state.params, centre])
