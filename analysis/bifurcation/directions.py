"""The directions that matter at a flip: the top eigenvector of a Hessian, and what comes next."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs

Vector = Float[Array, " params"]

MOST_MATVECS = 200
"""Hessian products at most, for the eigenvector where none is given and for the second one."""

_ROUGH = 1e-2
"""Relative residual with which the second eigenvalue is looked for at first."""


def hessian_product(loss: Partial, params: Vector, vector: Vector) -> Vector:
    """With the Hessian of a loss."""
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def top_eigenvector(
    loss: Partial, params: Vector, tol: float, key: PRNGKeyArray
) -> Float[np.ndarray, " params"]:
    """Of the Hessian of a loss."""
    none = jnp.zeros_like(params), jnp.zeros((), params.dtype)
    pairs = top_eigenpairs(
        Partial(_off, loss, params, *none),  # so that one program serves the second one, too
        params.size,
        1,
        tol=tol / 2,  # so that a product made otherwise confirms it
        max_matvecs=MOST_MATVECS,
        key=key,
        dtype=params.dtype,
    )
    return pairs.eigenvectors[0]


def second_eigenvalue(
    loss: Partial,
    params: Vector,
    direction: Vector,
    eigenvalue: float,
    threshold: float,
    tol: float,
    key: PRNGKeyArray,
) -> tuple[float, tuple[float, float]]:
    """Largest eigenvalue of a Hessian on the complement of a direction, with its interval.

    The second largest of the whole Hessian does not exceed it (Courant and Fischer), be the
    direction an eigenvector or not.

    Args:
        loss: function of the parameters.
        params: where its Hessian is taken.
        direction: of unit length.
        eigenvalue: Rayleigh quotient of the direction.
        threshold: whose side is to be told; for that alone it is computed to `tol`.
        tol: smallest relative residual that is aimed at.
        key: for the random vectors.

    Returns:
        -inf where the direction is all there is, NaN where nothing converged.
    """
    if params.size == 1:
        return -np.inf, (-np.inf, -np.inf)
    found, interval = float("nan"), (float("nan"), float("nan"))
    value = jnp.asarray(eigenvalue, params.dtype)
    for accuracy in (max(_ROUGH, tol), tol):
        pairs = top_eigenpairs(
            Partial(_off, loss, params, direction, value),
            params.size,
            1,
            tol=accuracy,
            max_matvecs=MOST_MATVECS,
            key=jax.random.fold_in(key, 1),  # not that by which the direction was found
            dtype=params.dtype,
        )
        if not pairs.converged[0]:
            continue
        low, high = map(float, pairs.intervals[0])
        found, interval = float(pairs.eigenvalues[0]), (low, high)
        if not low < threshold < high:
            break
    return found, interval


def _off(loss: Partial, params: Vector, direction: Vector, value: Array, vector: Vector) -> Vector:
    """P H P - |λ| v vᵀ, of which v is no top eigenvector."""
    along = jnp.vdot(direction, vector)
    product = hessian_product(loss, params, vector - along * direction)
    product = product - jnp.vdot(direction, product) * direction
    return product - along * jnp.abs(value) * direction
