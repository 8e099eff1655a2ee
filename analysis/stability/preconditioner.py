"""The preconditioner of an adaptive optimizer's next update, compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jaxtyping import Array

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
    full_gradient = gradient(problem, params, step, batch_size=batch_size)
    return preconditioner(update, state, full_gradient)
