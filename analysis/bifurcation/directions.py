"""The directions that matter at a flip: the top eigenvector of a Hessian, and the second one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs

Vector = Float[Array, " params"]

_MOST_MATVECS = 200
"""Largest number of Hessian products for the first eigenvector, and for the second eigenvalue."""

_ROUGH = 1e-2
"""Relative residual of the first search for the second eigenvalue."""


def unit_vector(vector: Vector | Float[np.ndarray, " params"], params: Vector) -> Vector:
    """An eigenvector that a user gave, of unit length and in the type of the parameters.

    Raises:
        ValueError: when it is 0 or its shape is not that of the parameters.
    """
    vector = jnp.asarray(vector, params.dtype)
    length = jnp.linalg.norm(vector)
    if vector.shape != params.shape or length == 0:
        raise ValueError(
            f"the eigenvector has shape {vector.shape} and length {float(length)}; "
            f"expected {params.shape} and more than 0"
        )
    return vector / length


def hessian_product(loss: Partial, params: Vector, vector: Vector) -> Vector:
    """Product of the Hessian of a loss with a vector."""
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]


def top_eigenvector(
    loss: Partial, params: Vector, tol: float, key: PRNGKeyArray
) -> Float[np.ndarray, " params"]:
    """The top eigenvector of the Hessian of a loss."""
    none = jnp.zeros_like(params), jnp.zeros((), params.dtype)
    pairs = top_eigenpairs(
        Partial(_off, loss, params, *none),  # so that one program also serves the second one
        params.size,
        1,
        tol=tol / 2,  # so that a differently computed product confirms it
        max_matvecs=_MOST_MATVECS,
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

    The second largest of the whole Hessian does not exceed it (Courant and Fischer), whether or not
    the direction is an eigenvector.

    Args:
        loss: function of the parameters.
        params: parameters at which its Hessian is evaluated.
        direction: unit vector.
        eigenvalue: Rayleigh quotient of the direction.
        threshold: critical value; the precision is raised to `tol` only to find out the side of it.
        tol: smallest relative residual to aim at.
        key: PRNG key for the random vectors.

    Returns:
        The eigenvalue and its interval: -inf in one dimension, NaN where nothing converged.
    """
    if params.size == 1:
        return -np.inf, (-np.inf, -np.inf)
    second, interval = float("nan"), (float("nan"), float("nan"))
    value = jnp.asarray(eigenvalue, params.dtype)
    for accuracy in (max(_ROUGH, tol), tol):
        pairs = top_eigenpairs(
            Partial(_off, loss, params, direction, value),
            params.size,
            1,
            tol=accuracy,
            max_matvecs=_MOST_MATVECS,
            key=jax.random.fold_in(key, 1),  # not the key used for the direction
            dtype=params.dtype,
        )
        if not pairs.converged[0]:
            continue
        low, high = map(float, pairs.intervals[0])
        second, interval = float(pairs.eigenvalues[0]), (low, high)
        if not low < threshold < high:
            break
    return second, interval


def _off(loss: Partial, params: Vector, direction: Vector, value: Array, vector: Vector) -> Vector:
    """Product with P H P - |λ| v vᵀ, whose top eigenvector is not v."""
    along = jnp.vdot(direction, vector)
    product = hessian_product(loss, params, vector - along * direction)
    product = product - jnp.vdot(direction, product) * direction
    return product - along * jnp.abs(value) * direction
