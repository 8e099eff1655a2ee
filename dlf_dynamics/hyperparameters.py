"""The numbers of an optimizer's state that belong to no parameter, such as its hyperparameters.

`optax.inject_hyperparams` keeps these in the state, where a training loop may change them.
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
"""What optax calls them in a state."""


class _Leaf(NamedTuple):
    """A leaf of a state.

    Attributes:
        path: its name.
        place: its place among the leaves.
        start: place of its first number in the vector of the state.
        form: shape and type.
    """

    path: Name
    place: int
    start: int
    form: Any

    def numbered(self, name: str) -> list[str]:
        """A name for each of its numbers."""
        count = prod(self.form.shape)
        return [name] if count == 1 else [f"{name}.{index}" for index in range(count)]


def hyperparameter_places(init: Callable[[Any], Any], params: PyTree) -> dict[str, int]:
    """Where hyperparameters are in the vector of an optimizer's state, by name.

    They are what optax says they are, and other floating-point leaves whose shape is not that of
    any parameter: those that stay as they are when all parameters grow.

    Args:
        init: of the optimizer.
        params: whose form counts, not the values.
    """
    found: dict[str, int] = {}
    for leaf in _hyperparameters(init, params):
        path = leaf.path
        name = named(path[path.index(_INJECTED) + 1 :] if is_injected(path) else path)
        name = named(path) if found.keys() & leaf.numbered(name) else name
        found |= {each: leaf.start + n for n, each in enumerate(leaf.numbered(name))}
    return found


def hyperparameters_in(
    init: Callable[[Any], Any], params: PyTree, state: PyTree
) -> tuple[float, ...]:
    """Those in a state, in the order of their places."""
    leaves = jax.tree.leaves(state)
    chosen = [np.ravel(leaves[leaf.place]) for leaf in _hyperparameters(init, params)]
    return tuple(float(number) for numbers in chosen for number in numbers)


def with_hyperparameters(
    init: Callable[[Any], Any], params: PyTree, state: PyTree, values: Float[Array, " numbers"]
) -> PyTree:
    """A state with other hyperparameters, in the order of their places."""
    leaves, structure = jax.tree.flatten(state)
    start = 0
    for leaf in _hyperparameters(init, params):
        count, old = prod(leaf.form.shape), leaves[leaf.place]
        leaves[leaf.place] = values[start : start + count].reshape(old.shape).astype(old.dtype)
        start += count
    return jax.tree.unflatten(structure, leaves)


def count_places(init: Callable[[Any], Any], params: PyTree) -> list[int]:
    """Where the counts of updates are in the vector of an optimizer's state."""
    return [leaf.start for leaf in _counts(init, params)]


def counts_in(init: Callable[[Any], Any], params: PyTree, state: PyTree) -> list[int]:
    """The counts of updates in a state."""
    leaves = jax.tree.leaves(state)
    return [int(leaves[leaf.place]) for leaf in _counts(init, params)]


def require_form(init: Callable[[Any], Any], params: PyTree, state: PyTree) -> None:
    """Requires that a state is of the form that an optimizer's has.

    Raises:
        ConfigError: when it has other leaves.
    """
    found, wanted = Layout.of(state), Layout.of(jax.eval_shape(init, params))
    if found.shapes != wanted.shapes:
        raise ConfigError(
            f"opt_state has {found.size} numbers in {len(found.shapes)} leaves; the optimizer's "
            f"own state has {wanted.size} in {len(wanted.shapes)}"
        )


def is_injected(path: Name) -> bool:
    """Whether the leaf of a state that has this name is a hyperparameter of optax."""
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
    found, start = [], 0
    for place, (path, form) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        found.append(_Leaf(words(jax.tree_util.keystr(path)), place, start, form))
        start += prod(form.shape)
    return found


def require_state(
    optimizer: optax.GradientTransformation, params: PyTree, opt_state: Any, step: int
) -> None:
    """Refuses a state that is none of the optimizer's after so many updates.

    Args:
        optimizer: an optax transformation.
        params: a pytree of the parameters.
        opt_state: the optimizer's state to be looked at.
        step: number of updates made.

    Raises:
        ConfigError: when it is not.
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
