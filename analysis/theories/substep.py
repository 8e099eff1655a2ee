"""What a substep of the central flow needs of a loss at one point, in one compiled call."""

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
"""Parameters up to which products with several vectors are made at once."""


class Local(NamedTuple):
    """Derivatives of a loss at one point, in the space of the critical modes u_1, ..., u_k.

    Where there is a metric P, vectors in rows are P^(1/2) u, and the u orthonormal in P.

    Attributes:
        loss: F.
        gradient: ∇F.
        finite: whether both are finite.
        values: leading Ritz values of P⁻¹ H, also of the guards behind the modes.
        residuals: of the pairs.
        rows: an orthonormal basis of the space of the first k Ritz vectors, that which is closest
            to the basis that was given, and the vectors of the guards.
        hessian: u_iᵀ H u_j in this basis.
        thirds: G_ij = D³F[u_i, u_j, ·] for i ≤ j, row by row.
        along: G_ij · P⁻¹ ∇F.
        inner: G_ij · P⁻¹ G_kl.
        explicit: ∂_t u_iᵀ H u_j, of what depends on time in the loss.
        num_products: Hessian products that were made.
        stiffening: how the metric changes; none where there is no metric.
    """

    loss: Float[Array, ""]
    gradient: Vector
    finite: Bool[Array, ""]
    values: Float[Array, " rows"]
    residuals: Float[Array, " rows"]
    rows: Float[Array, "rows params"]
    hessian: Float[Array, "k k"]
    thirds: Float[Array, "pairs params"]
    along: Float[Array, " pairs"]
    inner: Float[Array, "pairs pairs"]
    explicit: Float[Array, " pairs"]
    num_products: Int[Array, ""]
    stiffening: Stiffening | None

    def on_host(self) -> Local:
        """With all that is not as long as the parameters in the memory of the host."""
        long = ("gradient", "rows", "thirds")
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
    """The derivatives.

    Args:
        loss: of `blended`.
        params: θ.
        moment: the time.
        start: vectors close to the leading eigenvectors, more than there are modes if possible.
        before: what they were a substep before; the first k are extrapolated.
        basis: that of the modes before, to which the new one is aligned.
        tol: largest residual of the leading pairs, one of them at least.
        metric: P; none is 1.
        count: k.
    """
    of_params = partial(loss, moment=moment)
    (value, gradient), push = jax.linearize(jax.value_and_grad(of_params), params)
    start = start.at[:count].add(start[:count] - before[:count])
    product = partial(_product, push, metric)
    found = track(partial(_each, product), start, max(count, 1), jnp.asarray(tol))
    rotation = _aligning(basis @ found.vectors[:count].T)
    modes = rotation @ found.vectors[:count]
    directions = scaled(modes, metric)
    images = unscaled(rotation @ found.products[:count], metric)
    thirds, explicit = _third_derivatives(loss, params, moment, directions)
    forces = scaled(thirds, metric)
    return Local(
        loss=value,
        gradient=gradient,
        finite=jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient)),
        values=found.values,
        residuals=found.residuals,
        rows=jnp.concatenate([modes, found.vectors[count:]]),
        hessian=(rotation * found.values[:count]) @ rotation.T,
        thirds=thirds,
        along=forces @ scaled(gradient, metric),
        inner=forces @ forces.T,
        explicit=explicit,
        num_products=found.num_products,
        stiffening=stiffening(metric, gradient, directions, images),
    )


def _product(push: Callable[..., Any], metric: Metric | None, row: Vector) -> Vector:
    return scaled(push(scaled(row, metric))[1], metric)


def _each(function: Callable[..., Any], *rows: Array) -> Any:
    """Of each row, all at once where they are short."""
    if rows[0].shape[1] <= _AT_ONCE:
        return jax.vmap(function)(*rows)
    return jax.lax.map(lambda row: function(*row), rows)


def _third_derivatives(
    loss: Partial, params: Vector, moment: Moment, modes: Float[Array, "k params"]
) -> tuple[Float[Array, "pairs params"], Float[Array, " pairs"]]:
    """Gradient and rate of change of u_iᵀ H u_j for i ≤ j."""
    if not len(modes):
        return jnp.zeros((0, params.size), params.dtype), jnp.zeros(0, params.dtype)

    def curvature(params: Vector, fraction: Array, first: Vector, second: Vector) -> Array:
        of_params = partial(loss, moment=moment._replace(fraction=fraction))

        def slope(params: Vector) -> Array:
            return jax.jvp(of_params, (params,), (first,))[1]

        return jax.jvp(slope, (params,), (second,))[1]

    upper = np.triu_indices(len(modes))
    slopes = partial(jax.grad(curvature, (0, 1)), params, moment.fraction)
    return _each(slopes, modes[upper[0]], modes[upper[1]])


def _aligning(overlaps: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The rotation that brings vectors closest to those before (Procrustes)."""
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
