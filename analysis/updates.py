"""What the stability of an optimizer depends on at one point: its threshold and preconditioner."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlf_dynamics.analysis.stability import instability_threshold, reason_in_full
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.operators import gradient
from dlf_dynamics.optimizers import FlatUpdate, preconditioner
from dlf_dynamics.problem import Problem


@partial(jax.jit, static_argnames=("update", "batch_size"))
def next_preconditioner(
    problem: Problem,
    params: Array,
    step: Array,
    state: Any,
    *,
    update: FlatUpdate,
    batch_size: int | None = None,
) -> Array:
    """The preconditioner of the next update of a flat problem."""
    slope = gradient(problem, params, step, batch_size=batch_size)
    return preconditioner(update, state, slope)


@lru_cache
def threshold_at(update: FlatUpdate, step: int) -> float:
    """Critical eigenvalue of the optimizer at a step.

    Raises:
        ConfigError: when there is none.
    """
    try:
        zero = jnp.zeros(update.layout.size, update.layout.dtypes[0])
        state = update.optimizer.init(update.layout.unflatten(zero))
        with reason_in_full(update, state, zero.size, zero.dtype):
            threshold = instability_threshold(update.optimizer, np.array([step]))
        return float(threshold[0])
    except Exception as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"the optimizer has no threshold: {words}") from error
