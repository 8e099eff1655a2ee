"""Gradient flow: what an optimizer would do if nothing oscillated."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.bifurcation.flip import Objective
from dlf_dynamics.analysis.theories.blended import Moment, Vector, blended
from dlf_dynamics.analysis.theories.rules import Averaged

_STABLE = 2.0
"""Largest drift times curvature over a substep; the method is stable up to 2.78."""


def gradient_flow(
    objective: Objective,
    params: Vector,
    learning_rate: float | Averaged,
    steps: int,
    *,
    start: int = 0,
    sharpness: float = 0.0,
) -> Vector:
    """Integrates θ' = -drift ∇F(θ, t) for so many steps, by the classical Runge-Kutta method.

    Between two steps, loss and drift are interpolated linearly.

    Args:
        objective: a problem of flat parameters, or a function of them.
        params: parameters at the start.
        learning_rate: learning rate of gradient descent, or the drift of another optimizer.
        steps: number of updates that the flow replaces.
        start: number of updates made before.
        sharpness: approximate largest curvature along the way, which limits the length of substeps;
            a step has at least two.

    Raises:
        ValueError: when the number of steps is negative.

    >>> end = gradient_flow(lambda x: jnp.sum(x**2) / 2, jnp.ones(1), 0.5, 4)
    >>> round(float(end[0] * jnp.exp(2.0)), 3)
    1.0
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected at least 0")
    rule = learning_rate
    if not isinstance(rule, Averaged):
        rule = Averaged.constant(rule)
    loss, state = blended(objective), jnp.asarray(params)
    for step in range(start, start + steps):
        (before, _), (after, _) = rule.at(step), rule.at(step, 1.0)
        substeps = max(2, -int(-max(before, after) * max(sharpness, 0.0) // _STABLE))
        drifts = jnp.asarray([before, after], state.dtype)
        state = _advanced(loss, state, jnp.int32(step), drifts, jnp.int32(substeps))
    return state


@jax.jit
def _advanced(
    loss: Partial,
    params: Vector,
    step: Int[Array, ""],
    drifts: Float[Array, " 2"],
    substeps: Int[Array, ""],
) -> Vector:
    """The flow over one step."""
    length = 1 / substeps.astype(params.dtype)

    def velocity(params: Vector, fraction: Array) -> Vector:
        drift = drifts[0] + fraction * (drifts[1] - drifts[0])
        return -drift * jax.grad(loss)(params, Moment(step, fraction))

    def substep(number: Array, params: Vector) -> Vector:
        begin = number.astype(params.dtype) * length
        first = velocity(params, begin)
        second = velocity(params + length / 2 * first, begin + length / 2)
        third = velocity(params + length / 2 * second, begin + length / 2)
        fourth = velocity(params + length * third, begin + length)
        return params + length / 6 * (first + 2 * second + 2 * third + fourth)

    return jax.lax.fori_loop(0, substeps, substep, params)
