"""Numbers in an optimizer's state that belong to no parameter, such as hyperparameters.

`optax.inject_hyperparams` stores hyperparameters in the state, where a training loop may change
them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.leaves import Name, named, words

_INJECTED = "hyperparams"
"""Name of the hyperparameters in an optax state."""


class _Leaf(NamedTuple):
    """A leaf of a state.

    Attributes:
        path: name of the leaf.
        number: index of the leaf among all leaves.
        start: index of its first number in the vector of the state.
        form: shape and type.
    """

    path: Name
    number: int
    start: int
    form: Any

    def numbered(self, name: str) -> list[str]:
        """A name for each number in the leaf."""
        count = prod(self.form.shape)
        return [name] if count == 1 else [f"{name}.{index}" for index in range(count)]


def hyperparameter_places(init: Callable[[Any], Any], params: PyTree) -> dict[str, int]:
    """Indices of the hyperparameters in the vector of an optimizer's state, by name.

    Hyperparameters are the leaves that optax names so, and other floating-point leaves whose shape
    does not depend on the parameters: it stays the same when all parameters grow.

    Args:
        init: initialisation of the optimizer.
        params: parameters; only their form matters.
    """
    positions: dict[str, int] = {}
    for leaf in _hyperparameters(init, params):
        path = leaf.path
        name = named(path[path.index(_INJECTED) + 1 :] if is_injected(path) else path)
        name = named(path) if positions.keys() & leaf.numbered(name) else name
        positions |= {each: leaf.start + n for n, each in enumerate(leaf.numbered(name))}
    return positions


def hyperparameters_in(
    init: Callable[[Any], Any], params: PyTree, state: PyTree
) -> tuple[float, ...]:
    """The hyperparameters in a state, in the order of their indices."""
    leaves = jax.tree.leaves(state)
    chosen = [np.ravel(leaves[leaf.number]) for leaf in _hyperparameters(init, params)]
    return tuple(float(number) for numbers in chosen for number in numbers)


def with_hyperparameters(
    init: Callable[[Any], Any], params: PyTree, state: PyTree, values: Float[Array, " numbers"]
) -> PyTree:
    """A state with other hyperparameters, in the order of their indices."""
    leaves, structure = jax.tree.flatten(state)
    start = 0
    for leaf in _hyperparameters(init, params):
        count, old = prod(leaf.form.shape), leaves[leaf.number]
        leaves[leaf.number] = values[start : start + count].reshape(old.shape).astype(old.dtype)
        start += count
    return jax.tree.unflatten(structure, leaves)


def count_places(init: Callable[[Any], Any], params: PyTree) -> list[int]:
    """Indices of the counts of updates in the vector of an optimizer's state."""
    return [leaf.start for leaf in _counts(init, params)]


def counts_in(init: Callable[[Any], Any], params: PyTree, state: PyTree) -> list[int]:
    """The counts of updates in a state."""
    leaves = jax.tree.leaves(state)
    return [int(leaves[leaf.number]) for leaf in _counts(init, params)]


def require_form(init: Callable[[Any], Any], params: PyTree, state: PyTree) -> None:
    """Requires that a state has the form of an optimizer's own state.

    Raises:
        ConfigError: when its leaves differ.
    """
    given, expected = Layout.of(state), Layout.of(jax.eval_shape(init, params))
    if given.shapes != expected.shapes:
        raise ConfigError(
            f"opt_state has {given.size} numbers in {len(given.shapes)} leaves; the optimizer's "
            f"own state has {expected.size} in {len(expected.shapes)}"
        )


def is_injected(path: Name) -> bool:
    """Whether the leaf of a state with this name is a hyperparameter stored by optax."""
    return _INJECTED in path


def _counts(init: Callable[[Any], Any], params: PyTree) -> list[_Leaf]:
    leaves = _leaves(jax.eval_shape(init, params))
    return [leaf for leaf in leaves if leaf.path[-1:] == ("count",) and leaf.form.shape == ()]


def _hyperparameters(init: Callable[[Any], Any], params: PyTree) -> list[_Leaf]:
    leaves, structure = jax.tree.flatten(params)
    blank = [_like(leaf, np.shape(leaf)) for leaf in leaves]
    grown = [_like(leaf, tuple(n + 1 for n in leaf.shape) or (1,)) for leaf in blank]
    one, other = (
        _leaves(jax.eval_shape(init, jax.tree.unflatten(structure, form)))
        for form in (blank, grown)
    )
    return [
        leaf
        for leaf, same in zip(one, other, strict=True)
        if is_injected(leaf.path)
        or (leaf.form.shape == same.form.shape and jnp.issubdtype(leaf.form.dtype, jnp.floating))
    ]


def _like(leaf: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))


def _leaves(state: PyTree) -> list[_Leaf]:
    leaves, start = [], 0
    for index, (path, form) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        leaves.append(_Leaf(words(jax.tree_util.keystr(path)), index, start, form))
        start += prod(form.shape)
    return leaves


def require_state(
    optimizer: optax.GradientTransformation, params: PyTree, opt_state: Any, step: int
) -> None:
    """Requires that a state can be the optimizer's after so many updates.

    Args:
        optimizer: an optax transformation.
        params: a pytree of the parameters.
        opt_state: the state to check.
        step: number of updates made.

    Raises:
        ConfigError: when its form or its counts differ.
    """
    require_form(optimizer.init, params, opt_state)
    counts = [
        int(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        and jnp.ndim(leaf) == 0
        and not is_injected(words(jax.tree_util.keystr(path)))
    ]
    if unlike := set(counts) - {step}:
        raise ConfigError(
            f"step is {step} but the optimizer has counted {min(unlike)} updates; record before "
            "each update, with the number of updates made"
        )
