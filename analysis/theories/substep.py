"""Derivatives of a loss at one point for a substep of the central flow, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.theories.blended import Moment, Vector
from dlf_dynamics.analysis.theories.metric import (
    Metric,
    Stiffening,
    scaled,
    stiffening,
    unscaled,
)
from dlf_dynamics.analysis.theories.tracking import track

_AT_ONCE = 200_000
"""Number of parameters up to which products with several vectors are computed at once."""


class Local(NamedTuple):
    """Derivatives of a loss at one point, in the space of the critical modes u_1, ..., u_k.

    Where there is a metric P, vectors in rows are P^(1/2) u, and the u orthonormal in P.

    Attributes:
        loss: F.
        gradient: ∇F.
        finite: whether both are finite.
        values: leading Ritz values of P⁻¹ H, including those of the guards behind the modes.
        residuals: residuals of the Ritz pairs.
        vectors: an orthonormal basis of the space of the first k Ritz vectors, the one closest to
            the given basis, and the vectors of the guards.
        hessian: u_iᵀ H u_j in this basis.
        thirds: G_ij = D³F[u_i, u_j, ·] for i ≤ j, row by row.
        along: G_ij · P⁻¹ ∇F.
        inner: G_ij · P⁻¹ G_kl.
        explicit: ∂_t u_iᵀ H u_j, from the explicit time dependence of the loss.
        num_products: number of Hessian products.
        stiffening: how the metric changes; none without a metric.
    """

    loss: Float[Array, ""]
    gradient: Vector
    finite: Bool[Array, ""]
    values: Float[Array, " rows"]
    residuals: Float[Array, " rows"]
    vectors: Float[Array, "rows params"]
    hessian: Float[Array, "k k"]
    thirds: Float[Array, "pairs params"]
    along: Float[Array, " pairs"]
    inner: Float[Array, "pairs pairs"]
    explicit: Float[Array, " pairs"]
    num_products: Int[Array, ""]
    stiffening: Stiffening | None

    def on_host(self) -> Local:
        """The same with everything but the vectors of parameters in the memory of the host."""
        long = ("gradient", "vectors", "thirds")
        short = {name: part for name, part in self._asdict().items() if name not in long}
        del short["stiffening"]
        return self._replace(**jax.device_get(short))


@partial(jax.jit, static_argnames="count")
def local(
    loss: Partial,
    params: Vector,
    moment: Moment,
    start: Float[Array, "rows params"],
    before: Float[Array, "rows params"],
    basis: Float[Array, "k params"],
    tol: Float[Array, ""] | np.ndarray,
    metric: Metric | None = None,
    *,
    count: int,
) -> Local:
    """Computes the derivatives.

    Args:
        loss: loss made by `blended`.
        params: θ.
        moment: the time.
        start: vectors close to the leading eigenvectors, more than there are modes if possible.
        before: the same vectors a substep earlier; the first k are extrapolated.
        basis: previous basis of the modes, with which the new one is aligned.
        tol: largest residual of the leading pairs, of which there is at least one.
        metric: P; none means 1.
        count: k.
    """
    of_params = partial(loss, moment=moment)
    (value, gradient), push = jax.linearize(jax.value_and_grad(of_params), params)
    start = start.at[:count].add(start[:count] - before[:count])
    product = partial(_product, push, metric)
    ritz = track(partial(_each, product), start, max(count, 1), jnp.asarray(tol))
    rotation = _aligning(basis @ ritz.vectors[:count].T)
    modes = rotation @ ritz.vectors[:count]
    directions = scaled(modes, metric)
    images = unscaled(rotation @ ritz.products[:count], metric)
    thirds, explicit = _third_derivatives(loss, params, moment, directions)
    forces = scaled(thirds, metric)
    return Local(
        loss=value,
        gradient=gradient,
        finite=jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)),
        values=ritz.values,
        residuals=ritz.residuals,
        vectors=jnp.concatenate([modes, ritz.vectors[count:]]),
        hessian=(rotation * ritz.values[:count]) @ rotation.T,
        thirds=thirds,
        along=forces @ scaled(gradient, metric),
        inner=forces @ forces.T,
        explicit=explicit,
        num_products=ritz.num_products,
        stiffening=stiffening(metric, gradient, directions, images),
    )


def _product(push: Callable[..., Any], metric: Metric | None, vector: Vector) -> Vector:
    return scaled(push(scaled(vector, metric))[1], metric)


def _each(function: Callable[..., Any], *vectors: Array) -> Any:
    """A function of each vector, of all at once where they are short."""
    if vectors[0].shape[1] <= _AT_ONCE:
        return jax.vmap(function)(*vectors)
    return jax.lax.map(lambda vector: function(*vector), vectors)


def _third_derivatives(
    loss: Partial, params: Vector, moment: Moment, modes: Float[Array, "k params"]
) -> tuple[Float[Array, "pairs params"], Float[Array, " pairs"]]:
    """Gradient and rate of change of u_iᵀ H u_j for i ≤ j."""
    if not len(modes):
        return jnp.zeros((0, params.size), params.dtype), jnp.zeros(0, params.dtype)

    def curvature(params: Vector, fraction: Array, first: Vector, second: Vector) -> Array:
        of_params = partial(loss, moment=moment._replace(fraction=fraction))

        def first_derivative(params: Vector) -> Array:
            return jax.jvp(of_params, (params,), (first,))[1]

        return jax.jvp(first_derivative, (params,), (second,))[1]

    upper = np.triu_indices(len(modes))
    third_derivatives = partial(jax.grad(curvature, (0, 1)), params, moment.fraction)
    return _each(third_derivatives, modes[upper[0]], modes[upper[1]])


def _aligning(overlaps: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The rotation that brings vectors closest to the previous ones (Procrustes)."""
    if not len(overlaps):
        return overlaps
    left, _, right = jnp.linalg.svd(overlaps)
    return left @ right


@jax.jit
def moved(
    params: Vector,
    gradient: Vector,
    thirds: Float[Array, "pairs params"],
    weights: Float[Array | np.ndarray, " pairs"],
    step: Float[Array, ""] | float,
    metric: Metric | None = None,
) -> Vector:
    """θ - step P⁻¹ (∇F + Σ_p weights_p G_p)."""
    force = gradient + jnp.asarray(weights, params.dtype) @ thirds
    force = scaled(scaled(force, metric), metric)
    return params - jnp.asarray(step, params.dtype) * force
