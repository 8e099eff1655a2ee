"""The update of any optimizer as a function of flat vectors, and what its stability depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from dlf_dynamics.analysis.stability import instability_threshold
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.operators import gradient
from dlf_dynamics.optimizers import hold_mean_squares, is_adaptive, preconditioner
from dlf_dynamics.problem import Problem

_LARGE_SLOPE = 1e5
"""Of a gradient that is divided by mean squares which are held: far above rounding of what is
added to it, far below the mean squares."""


@dataclass(frozen=True)
class FlatUpdate:
    """The update of an optimizer as a function of flat vectors; it compares by value.

    Attributes:
        optimizer: an optax transformation.
        layout: of the parameters that it sees.
    """

    optimizer: optax.GradientTransformation
    layout: Layout

    def __call__(self, gradient: Array, state: Any, params: Array) -> tuple[Array, Any]:
        """θ_(t+1) - θ_t, and the optimizer's next state."""
        slope, tree = self.layout.unflatten(gradient), self.layout.unflatten(params)
        change, state = self.optimizer.update(slope, state, tree)
        return self.layout.flatten(change), state


@partial(jax.jit, static_argnames="update")
def next_preconditioner(
    problem: Problem, params: Array, step: Array, state: Any, *, update: FlatUpdate
) -> Array:
    """The preconditioner of the next update of a flat problem."""
    return preconditioner(update, state, gradient(problem, params, step))


@lru_cache
def threshold_at(update: FlatUpdate, step: int) -> float:
    """Critical eigenvalue of the optimizer at a step.

    Raises:
        ConfigError: when there is none.
    """
    try:
        _require_alike(update)
        return float(instability_threshold(update.optimizer, np.array([step]))[0])
    except Exception as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"the optimizer has no threshold: {words}") from error


def _require_alike(update: FlatUpdate) -> None:
    """Raises ValueError unless an update is a number times the gradient plus one times θ.

    The numbers may differ between parameters by 1e-3: of the first, and of 1 for the second, as a
    step that is unstable moves a parameter by more than its own size. So decay of some of the
    parameters may pass.
    """
    keys = jax.random.split(jax.random.key(0))
    slope, params = (jax.random.normal(key, (update.layout.size,)) for key in keys)
    slope *= _LARGE_SLOPE if is_adaptive(update.optimizer) else 1.0
    zero = jnp.zeros_like(params)
    state = hold_mean_squares(update.optimizer.init(update.layout.unflatten(zero)))
    # The first update may have the learning rate 0.
    _, state = update(zero, state, zero)
    answers = [
        update(gradient, hold_mean_squares(state), point)[0]
        for gradient, point in ((slope, zero), (zero, params), (slope, params))
    ]
    of_slope, of_params, of_both = answers
    allowed = 1e-3 * jnp.linalg.norm(of_slope)
    for rest, most in (
        (_across(of_slope, slope), allowed),
        (_across(of_params, params), 1e-3 * jnp.linalg.norm(params)),
        (of_both - of_slope - of_params, allowed),
    ):
        if jnp.linalg.norm(rest) > most:
            raise ValueError(
                "its update is not the same for all parameters; expected one learning rate and "
                "one rule for all of them"
            )


def _across(vector: Array, other: Array) -> Array:
    """What of a vector is not along another one."""
    return vector - jnp.vdot(vector, other) / jnp.vdot(other, other) * other
