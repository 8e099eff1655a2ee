"""The metric in which an optimizer descends that divides by mean squares of the gradients."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.theories.blended import Vector


class State(NamedTuple):
    """State of a flow.

    Attributes:
        params: the centre w.
        mean_squares: ν; empty where there is no metric.
    """

    params: Vector
    mean_squares: Vector


class Metric(NamedTuple):
    """P(ν), diagonal; an update is -P⁻¹ ∇F.

    Attributes:
        mean_squares: ν.
        scale: P^(-1/2).
        sensitivity: dP/dt where ∇F² exceeds ν by 1.
        filling: dν/dt where ∇F² exceeds ν by 1.
    """

    mean_squares: Vector
    scale: Vector
    sensitivity: Vector
    filling: Float[Array, ""]


class Stiffening(NamedTuple):
    """How P changes with time, seen along directions u_1, ..., u_k.

    Attributes:
        squares: Hu_i ⊙ Hu_j for i ≤ j, by which an oscillation raises the mean squares.
        steady: 2 u_iᵀ dP/dt u_j for i ≤ j, without an oscillation.
        answer: 2 u_iᵀ dP/dt u_j for i ≤ j, from an oscillation with X_kl = 1 alone.
    """

    squares: Float[Array, "pairs params"]
    steady: Float[Array, " pairs"]
    answer: Float[Array, "pairs pairs"]


def scaled(vectors: Array, metric: Metric | None) -> Array:
    """P^(-1/2) times one or several vectors."""
    return vectors if metric is None else metric.scale * vectors


def unscaled(vectors: Array, metric: Metric | None) -> Array:
    """P^(1/2) times one or several vectors."""
    return vectors if metric is None else vectors / metric.scale


def stiffening(
    metric: Metric | None,
    gradient: Vector,
    directions: Float[Array, "k params"],
    images: Float[Array, "k params"],
) -> Stiffening | None:
    """How the metric changes; none without a metric.

    Args:
        metric: metric at the point.
        gradient: ∇F.
        directions: u_i.
        images: H u_i.
    """
    if metric is None:
        return None
    first, second = np.triu_indices(len(directions))
    squares = images[first] * images[second]
    sensitive = 2 * metric.sensitivity * directions[first] * directions[second]
    steady = sensitive @ (gradient**2 - metric.mean_squares)
    return Stiffening(squares, steady, sensitive @ squares.T)


@jax.jit
def filled(
    metric: Metric,
    gradient: Vector,
    squares: Float[Array, "pairs params"],
    weights: Float[Array | np.ndarray, " pairs"],
    step: Float[Array, ""] | float,
) -> Vector:
    """ν + step filling (∇F² + 2 Σ_p weights_p squares_p - ν)."""
    excess = gradient**2 + 2 * jnp.asarray(weights, gradient.dtype) @ squares - metric.mean_squares
    return metric.mean_squares + jnp.asarray(step, gradient.dtype) * metric.filling * excess
