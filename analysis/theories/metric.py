"""The metric in which an optimizer descends, where mean squares of the gradients make it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.theories.blended import Vector


class State(NamedTuple):
    """What a flow moves.

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
        slope: dP/dt for a ∇F² that is above ν by 1.
        filling: dν/dt for the same.
    """

    mean_squares: Vector
    scale: Vector
    slope: Vector
    filling: Float[Array, ""]


class Stiffening(NamedTuple):
    """How P changes with time, seen along directions u_1, ..., u_k.

    Attributes:
        squares: Hu_i ⊙ Hu_j for i ≤ j, by which an oscillation raises the mean squares.
        steady: 2 u_iᵀ dP/dt u_j for i ≤ j, without an oscillation.
        answer: 2 u_iᵀ dP/dt u_j for i ≤ j, by an oscillation of which only X_kl is 1.
    """

    squares: Float[Array, "pairs params"]
    steady: Float[Array, " pairs"]
    answer: Float[Array, "pairs pairs"]


def scaled(rows: Array, metric: Metric | None) -> Array:
    """P^(-1/2) times a vector, or each of several."""
    return rows if metric is None else metric.scale * rows


def unscaled(rows: Array, metric: Metric | None) -> Array:
    """P^(1/2) times a vector, or each of several."""
    return rows if metric is None else rows / metric.scale


def stiffening(
    metric: Metric | None,
    gradient: Vector,
    directions: Float[Array, "k params"],
    images: Float[Array, "k params"],
) -> Stiffening | None:
    """How the metric changes; nothing where there is none.

    Args:
        metric: at the point.
        gradient: ∇F.
        directions: u_i.
        images: H u_i.
    """
    if metric is None:
        return None
    first, second = np.triu_indices(len(directions))
    squares = images[first] * images[second]
    sensitive = 2 * metric.slope * directions[first] * directions[second]
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
