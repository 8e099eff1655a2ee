"""An optimizer's update on a quadratic, linearised in one parameter and the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from dlf_dynamics.hyperparameters import is_injected, with_hyperparameters
from dlf_dynamics.leaves import words
from dlf_dynamics.optimizers import held_preconditioner, hold_mean_squares

Maps = tuple[Float[np.ndarray, "steps n n"], Float[np.ndarray, "steps n n"]]
"""A and B of each step: on the curvature λ the update is z ↦ (A + λB) z."""

Hyperparameters = tuple[float, ...] | None
"""Hyperparameters in an optimizer's state, in the order of its leaves; none: the initial ones."""

_Rest = tuple[list[Array], list[bool], Any]

_WARM = 2
"""Updates without a gradient, after which nothing is special about the first update any more."""


def linear_maps(
    optimizer: optax.GradientTransformation,
    steps: Int[np.ndarray, " steps"],
    hyperparameters: Hyperparameters = None,
) -> Maps:
    """The update of each step as a matrix on z: a parameter, then the state that belongs to it.

    The curvature is in units of the preconditioner, which is kept fixed.

    Args:
        optimizer: an optax transformation.
        steps: numbers of updates made before.
        hyperparameters: hyperparameters in its state.
    """
    distinct, inverse = np.unique(steps, return_inverse=True)
    if not counts_updates(optimizer):
        distinct, inverse = distinct[:1], np.zeros(len(steps), int)
    # Only a few different lengths, so that few programs are compiled.
    count = max(16, 1 << (len(distinct) - 1).bit_length())
    with jax.enable_x64(True):
        counted = jnp.asarray(np.resize(distinct, count), jnp.int32)
        jacobians = _jacobians(optimizer)(counted, as_array(hyperparameters))
    at_zero, at_one = map(np.asarray, jacobians)
    return at_zero[inverse], (at_one - at_zero)[inverse]


def spectral_radii(maps: Maps, curvatures: Float[np.ndarray, " steps"]) -> np.ndarray:
    """Spectral radius of each map, each at its own curvature."""
    matrices = maps[0] + curvatures[:, None, None] * maps[1]
    return np.max(np.abs(np.linalg.eigvals(matrices)), axis=1)


def critical_curvatures(maps: Maps) -> Float[np.ndarray, " steps"]:
    """The λ > 0 at which the spectral radius of each map exceeds 1, by bisection; or infinity."""
    size = maps[0].shape[1]
    matrices, inverse = np.unique(np.concatenate(maps, axis=1), axis=0, return_inverse=True)
    distinct = matrices[:, :size], matrices[:, size:]

    def unstable(curvature: np.ndarray) -> np.ndarray:
        return spectral_radii(distinct, curvature) > 1 + 1e-13

    low, high = np.zeros(len(matrices)), np.full(len(matrices), 1e-12)
    while not np.all(ever := unstable(high)) and np.max(high) < 1e30:
        low, high = np.where(ever, low, high), np.where(ever, high, 2 * high)
    for _ in range(100):
        middle = (low + high) / 2
        beyond = unstable(middle)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    # Rounded to the digits that are certain, so that 2 is 2.
    critical = np.array([float(f"{value:.13g}") for value in (low + high) / 2])
    return np.where(ever, critical, np.inf)[inverse.reshape(-1)]


def state_at(
    optimizer: optax.GradientTransformation,
    params: PyTree,
    step: Any,
    counting: Any = False,
    hyperparameters: Float[Array, " numbers"] | None = None,
) -> Any:
    """The optimizer's state at a step before which all gradients were 0, at parameters of 0.

    Args:
        optimizer: an optax transformation.
        params: parameters, of which only the form matters.
        step: value to which the counts in the state are set.
        counting: whether the counts are left as they are instead, after the two updates made here.
        hyperparameters: hyperparameters in the state.
    """
    zero = jax.tree.map(jnp.zeros_like, params)
    state = optimizer.init(zero)
    if hyperparameters is not None:
        state = with_hyperparameters(optimizer.init, zero, state, hyperparameters)
    state = with_counts(state, step, counting)
    for _ in range(_WARM):
        _, after = optimizer.update(zero, hold_mean_squares(state), zero)
        state = with_counts(as_before(state, after), step, counting)
    return state


def with_counts(state: Any, step: Any, counting: Any = False) -> Any:
    """The state with every count in it set to the step, unless it counts by itself.

    All whole numbers count as such, except hyperparameters.
    """

    def counted(path: Any, leaf: Array) -> Array:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        whole = whole and not is_injected(words(jax.tree_util.keystr(path)))
        return jnp.where(counting, leaf, jnp.asarray(step).astype(leaf.dtype)) if whole else leaf

    return jax.tree_util.tree_map_with_path(counted, state)


def as_before(state: Any, after: Any) -> Any:
    """The state after an update, in the types of the one before it."""
    return jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state, after)


def as_array(hyperparameters: Hyperparameters) -> Float[Array, " numbers"] | None:
    """Hyperparameters in the form that compiled functions take."""
    return None if hyperparameters is None else jnp.asarray(hyperparameters, float)


def curvature_unit(
    optimizer: optax.GradientTransformation, hyperparameters: Float[Array, " numbers"] | None
) -> Array:
    """The preconditioner of a parameter while the mean squares are kept fixed."""
    nothing = jnp.zeros(1)
    state = optimizer.init(nothing)
    if hyperparameters is not None:
        state = with_hyperparameters(optimizer.init, nothing, state, hyperparameters)
    after = optimizer.update(nothing, hold_mean_squares(state), nothing)[1]
    return jnp.squeeze(held_preconditioner(after))


def counts_updates(optimizer: optax.GradientTransformation) -> bool:
    """Whether anything in its state counts the steps."""
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, jnp.zeros(1)))
    return any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves)


@lru_cache(maxsize=64)
def _jacobians(
    optimizer: optax.GradientTransformation,
) -> Callable[[Int[Array, " steps"], Float[Array, " numbers"] | None], tuple[Array, Array]]:
    """Compiled: Jacobians of the update at curvatures 0 and 1, in units of the preconditioner."""

    def jacobian(step: Array, numbers: Array | None, curvature: Any) -> Array:
        position = jnp.zeros(1)
        state = state_at(optimizer, position, step, hyperparameters=numbers)
        start = position, hold_mean_squares(state)
        moving, constants = _split(start)
        vector, unravel = ravel_pytree(moving)

        def update(vector: Array) -> Array:
            position, state = _join(unravel(vector), constants)
            change, state = optimizer.update(
                curvature * position, hold_mean_squares(state), position
            )
            return ravel_pytree(_split((position + change, state))[0])[0]

        return jax.jacfwd(update)(vector)

    def both(step: Array, numbers: Array | None) -> tuple[Array, Array]:
        unit = curvature_unit(optimizer, numbers)
        return jacobian(step, numbers, 0.0), jacobian(step, numbers, unit)

    return jax.jit(jax.vmap(both, in_axes=(0, None)))


def _split(tree: PyTree) -> tuple[list[Array], _Rest]:
    """The floating-point leaves that belong to the parameter, and the rest.

    Numbers shared by all parameters, such as a learning rate, do not move.
    """
    leaves, structure = jax.tree.flatten(tree)
    moves = [jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 0 for leaf in leaves]
    return [leaf for leaf, own in zip(leaves, moves, strict=True) if own], (
        leaves,
        moves,
        structure,
    )


def _join(moving: list[Array], constants: _Rest) -> Any:
    leaves, moves, structure = constants
    remaining = iter(moving)
    joined = [next(remaining) if own else leaf for leaf, own in zip(leaves, moves, strict=True)]
    return jax.tree.unflatten(structure, joined)
