"""The realized edge of one update, and its quadratic approximations, without a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.checks import check_parameters
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.operators import hessian
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.realized import edge_of, loss_change


@dataclass(frozen=True)
class RealizedEdge:
    """Effect of one update Δ on the loss L that it was made for, and the curvature before it.

    It describes this step alone and is not a threshold: `value` above 1 means that the step raised
    its own loss, not that training is unstable.

    Attributes:
        value: ζ = 1 + (L(θ + Δ) - L(θ)) / (-gᵀΔ) = ½ ΔᵀH̄Δ / (-gᵀΔ), with H̄ the mean of the Hessian
            along the update, weighted by 2(1 - t); NaN where `reason` says why it is undefined.
        error: bound on its rounding error; infinite where ζ is undefined, or where the slope is 0
            within rounding; NaN where it is not known, as for `Problem.from_loss`, in which large
            terms may cancel. Rounding of derivatives inside the network is not included, so that
            where tanh units saturate in float32, ζ - 1 is off by up to a few percent.
        loss_before: L(θ).
        loss_after: L(θ + Δ), with the same weights and examples.
        slope: gᵀΔ, g the gradient of L at θ.
        update_sharpness: ΔᵀHΔ / ΔᵀΔ at θ, the directional sharpness along the update.
        gradient_sharpness: gᵀHg / gᵀg at θ, the directional sharpness along the gradient.
        quadratic: ½ ΔᵀHΔ / (-gᵀΔ), the value of ζ if the loss were quadratic; NaN where ζ is.
        reason: why ζ is undefined; else empty.
    """

    value: float
    error: float
    loss_before: float
    loss_after: float
    slope: float
    update_sharpness: float
    gradient_sharpness: float
    quadratic: float
    reason: str = ""

    def gradient_quadratic(self, learning_rate: float) -> float:
        """η gᵀHg / (2 gᵀg): ζ of a step of gradient descent if the loss were quadratic."""
        return learning_rate * self.gradient_sharpness / 2

    def __str__(self) -> str:
        """The realized edge with its error, and on which side of 1 it is."""
        if self.reason:
            return f"realized edge undefined: {self.reason}"
        away = self.value - 1
        told = "the step raised its own loss" if away > 0 else "the step lowered its own loss"
        if np.isnan(self.error):
            return (
                f"realized edge {self.value:.6g}: {told}, unless rounding did, which is not known"
            )
        if abs(away) <= self.error:
            told = "rounding hides whether the step raised its own loss"
        return f"realized edge {self.value:.6g} ± {self.error:.1g}: {told}"


def realized_edge(problem: Problem, params: PyTree, update: PyTree, step: Step = 0) -> RealizedEdge:
    """The realized edge of one update of any optimizer, with the curvature along it.

    It costs a gradient, a loss and two products with the Hessian. After Lee & Lee (2026, The Road
    Taken) and Kalra and others (2026, arXiv 2601.16979).

    Args:
        problem: problem whose loss the update is made for; `problem.take(batch)` for a mini-batch.
        params: θ, any pytree of floating-point arrays.
        update: Δ, in the form of the parameters, as an optax transformation gives it.
        step: t, for the weights of the loss on both sides.

    Raises:
        ConfigError: when the update has another form than the parameters.
        DataError: when the parameters are not arrays of float32 or float64.

    >>> problem = Problem.from_loss(lambda x, step: jnp.sum(jnp.array([3.0, 1.0, 0.2]) * x**2) / 2)
    >>> x = jnp.array([1.0, -2.0, 0.5])
    >>> found = realized_edge(problem, x, -0.5 * jax.grad(problem.objective)(x, 0))
    >>> round(found.value, 6), round(found.gradient_quadratic(0.5), 6)
    (0.595734, 0.595734)
    """
    check_parameters(params)
    layout = Layout.of(params)
    if (form := Layout.of(update)) != layout:
        raise ConfigError(
            f"the update has {form.size} numbers in {len(form.shapes)} leaves; expected the form "
            f"and the types of the parameters, {layout.size} in {len(layout.shapes)}"
        )
    vector = layout.flatten(params)
    after = vector + layout.flatten(update)
    numbers = _measured(problem.flat(layout), vector, after, jnp.int32(step))
    measured: dict[str, float] = {name: float(value) for name, value in numbers.items()}
    reason = ""
    if np.isnan(measured["value"]):
        measured["quadratic"] = float("nan")
        derivative = measured["slope"]
        downhill = f"-gᵀΔ is {-derivative:.3g}, and the update does not go downhill"
        reason = downhill if not derivative < 0 else "the losses are not finite"
    return RealizedEdge(**measured, reason=reason)


@jax.jit
def _measured(
    problem: Problem, params: Float[Array, " params"], after: Float[Array, " params"], step: Array
) -> dict[str, Any]:
    loss, gradient = jax.value_and_grad(problem.objective)(params, step)
    edge = edge_of(loss_change(problem, step, params, after), params, after, gradient)
    update = after - params
    multiply = hessian(problem, params, step)
    along = {"update": update, "gradient": gradient}
    bent = {name: jnp.vdot(v, multiply(v)) for name, v in along.items()}
    derivative = jnp.vdot(gradient, update)
    return {
        "value": edge.value,
        "error": edge.error,
        "loss_before": loss,
        "loss_after": problem.objective(after, step),
        "slope": derivative,
        "update_sharpness": bent["update"] / jnp.vdot(update, update),
        "gradient_sharpness": bent["gradient"] / jnp.vdot(gradient, gradient),
        "quadratic": bent["update"] / (-2 * derivative),
    }
