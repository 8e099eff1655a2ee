"""Moving parts of an optimizer's state: velocities and means, not counts or hyperparameters."""

from __future__ import annotations

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dlf_dynamics.hyperparameters import is_injected
from dlf_dynamics.layout import Layout
from dlf_dynamics.leaves import words


def moving_leaves(state: PyTree) -> list[tuple[str, Any]]:
    """Names and leaves of the moving parts of an optimizer's state.

    >>> import optax
    >>> state = optax.adam(0.1).init(jnp.zeros(2))
    >>> [name for name, _ in moving_leaves(state)]
    ['mu', 'nu']
    >>> [name for name, _ in moving_leaves(jnp.zeros(1))]
    ['state']
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = [(words(jax.tree_util.keystr(path)), path, x) for path, x in leaves]
    # A state that is a single array has no name.
    return [(name[-1] if name else "state", x) for name, path, x in named if _moves(path, x)]


def moving_forms(layout: Layout) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the moving parts of the states of a layout."""
    return [(name, leaf.shape) for name, leaf in moving_leaves(_forms(layout))]


def num_moving(layout: Layout) -> int:
    """Number of moving components of the states of a layout."""
    return sum(prod(shape) for _, shape in moving_forms(layout))


def moving_numbers(layout: Layout) -> Bool[np.ndarray, " state"]:
    """Which components of a state's vector move."""
    leaves = jax.tree_util.tree_leaves_with_path(_forms(layout))
    return np.concatenate(
        [np.zeros(0, bool), *[np.full(prod(x.shape), _moves(path, x)) for path, x in leaves]]
    )


def with_moving(state: PyTree, vector: Float[Array, " moving"]) -> PyTree:
    """The state with its moving parts taken from a vector."""
    leaves, start = [], 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if _moves(path, leaf):
            stop = start + prod(leaf.shape)
            leaf, start = vector[start:stop].reshape(leaf.shape), stop
        leaves.append(leaf)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _forms(layout: Layout) -> PyTree:
    """A state of the layout, with shapes and types in place of arrays."""
    forms = map(jax.ShapeDtypeStruct, layout.shapes, layout.dtypes)
    return jax.tree.unflatten(layout.structure, forms)


def _moves(path: Any, leaf: Any) -> bool:
    kept = is_injected(words(jax.tree_util.keystr(path)))
    return jnp.issubdtype(leaf.dtype, jnp.floating) and not kept
