"""Optimizers by name, all from optax, and what the stability analysis needs of their state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.hyperparameters import is_injected
from dlf_dynamics.layout import Layout
from dlf_dynamics.leaves import words

NO_OPTIMIZER = optax.set_to_zero()
"""In the place of an optimizer that is not known; nothing is updated by it."""


@dataclass(frozen=True)
class Unmade:
    """In the place of an optimizer whose updates cannot be made; nothing is updated by it.

    Attributes:
        rule: the optimizer.
        stateful: whether its state was recorded, and it is the updates that want more than that.
    """

    rule: optax.GradientTransformation
    stateful: bool = False

    def init(self, params: Any) -> Any:
        """Of the form that was recorded."""
        return (self.rule if self.stateful else NO_OPTIMIZER).init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """None is made."""
        return NO_OPTIMIZER.update(updates, state, params)


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of each step."""
    peak, final = config.learning_rate, config.final_learning_rate
    warmup = config.warmup_steps
    decay_steps = max(num_steps - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, final / peak),
        "exponential": lambda: optax.exponential_decay(peak, decay_steps, final / peak),
    }[config.learning_rate_schedule]()
    if warmup > 0:
        rise = optax.linear_schedule(0.0, peak, warmup)
        after = optax.join_schedules([rise, after], [warmup])
    # optax would compute with an integer step in float32.
    return lambda step: after(jnp.asarray(step, float))


def make_optimizer(
    config: OptimizerConfig, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optax transformation that the configuration names, at a learning rate or schedule."""
    c = config
    return {
        "gd": lambda: optax.sgd(learning_rate),
        "heavy-ball": lambda: optax.sgd(learning_rate, momentum=c.momentum),
        "nesterov": lambda: optax.sgd(learning_rate, momentum=c.momentum, nesterov=True),
        "rmsprop": lambda: optax.rmsprop(learning_rate, decay=c.decay, eps=c.epsilon),
        "adam": lambda: optax.adam(learning_rate, c.beta1, c.beta2, c.epsilon),
        "adamw": lambda: optax.adamw(
            learning_rate, c.beta1, c.beta2, c.epsilon, weight_decay=c.weight_decay
        ),
    }[config.name]()


_MEAN_SQUARES = (optax.ScaleByAdamState, optax.ScaleByRmsState)

_LARGE = 1e10
"""Root mean square at which neither gradients nor the terms that guard a division count."""


def is_adaptive(optimizer: optax.GradientTransformation) -> bool:
    """Whether it divides by a root mean square of the gradients, as RMSProp and Adam do.

    >>> is_adaptive(optax.adamw(0.1)), is_adaptive(optax.sgd(0.1, momentum=0.9))
    (True, False)
    """
    return has_mean_squares(jax.eval_shape(optimizer.init, jnp.zeros(1)))


def has_mean_squares(state: Any) -> bool:
    """Whether a state of an optimizer has the mean squares of Adam or RMSProp."""
    return bool(_mean_squares(state))


def hold_mean_squares(state: Any, size: float = _LARGE) -> Any:
    """The state long after the start, with mean squares so large that they stay what they are."""

    def held(node: Any) -> Any:
        if not isinstance(node, _MEAN_SQUARES):
            return node
        large = jax.tree.map(lambda leaf: jnp.full_like(leaf, size**2), node.nu)
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(nu=large, count=jnp.full_like(node.count, 10**6))
        return node._replace(nu=large)

    return jax.tree.map(held, state, is_leaf=lambda node: isinstance(node, _MEAN_SQUARES))


def held_preconditioner(after: Any) -> Any:
    """P of an update that was made with the mean squares held, from the state after it.

    It is 1 for an optimizer without them.
    """
    return math.prod(jnp.sqrt(ravel_pytree(node.nu)[0]) for node in _mean_squares(after))


def preconditioner(
    update: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: Any,
    gradient: Float[Array, " params"],
) -> Float[Array, " params"]:
    """The diagonal P that divides the *next* update of an adaptive optimizer.

    Adam's two bias corrections are both kept: the update is (m / b₁) / (√(n / b₂) + ε), with m and
    n the running means of the gradient and of its square and b₁, b₂ their corrections, so
    P = b₁ (√(n / b₂) + ε). RMSProp divides by √(n + ε) or √n + ε as optax does.

    It is read off the optimizer itself: its response to the gradient, from rest, is compared with
    that while the mean squares are held at a known value.

    Args:
        update: of an optax transformation, elementwise, with the mean squares of Adam or RMSProp:
            `update(gradient, state, params) -> (change, state)` of flat vectors.
        state: before the next update.
        gradient: that the next update uses.

    Raises:
        ValueError: for an optimizer that has no preconditioner.
    """
    if not has_mean_squares(state):
        raise ValueError("the optimizer has no preconditioner; only such as RMSProp and Adam do")
    # The mean square takes in the gradient, and the response is a part of it: it must not be 0.
    tiny = jnp.finfo(gradient.dtype).tiny ** 0.25
    gradient = jnp.where(jnp.abs(gradient) < tiny, tiny, gradient)
    at_rest = jnp.zeros_like(gradient)
    response, _ = update(gradient, _at_rest(state), at_rest)
    held, after = update(gradient, hold_mean_squares(_at_rest(state)), at_rest)
    return held_preconditioner(after) * held / response


def _at_rest(state: Any) -> Any:
    """The state with nothing in it but mean squares with their counts, and hyperparameters.

    The counts of schedules are 1, and so is a learning rate in the state: it does not matter here,
    but must not be 0.
    """

    def stopped(path: Any, node: Any) -> Any:
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(mu=jax.tree.map(jnp.zeros_like, node.mu))
        if isinstance(node, optax.ScaleByRmsState):
            return node
        name = words(jax.tree_util.keystr(path))
        if is_injected(name):
            return jnp.ones_like(node) if name[-1] == "learning_rate" else node
        whole = jnp.issubdtype(node.dtype, jnp.integer)
        return jnp.ones_like(node) if whole else jnp.zeros_like(node)

    kept = lambda node: isinstance(node, _MEAN_SQUARES)  # noqa: E731
    return jax.tree_util.tree_map_with_path(stopped, state, is_leaf=kept)


def _mean_squares(state: Any) -> list[Any]:
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _MEAN_SQUARES))
    return [node for node in nodes if isinstance(node, _MEAN_SQUARES)]


@dataclass(frozen=True)
class FlatUpdate:
    """The update of an optimizer as a function of flat vectors; it compares by value.

    Attributes:
        optimizer: an optax transformation.
        layout: of the parameters that it sees.
    """

    optimizer: optax.GradientTransformation
    layout: Layout

    def __call__(self, gradient: Array, state: Any, params: Array) -> tuple[Array, Any]:
        """θ_(t+1) - θ_t, and the optimizer's next state."""
        gradients, tree = self.layout.unflatten(gradient), self.layout.unflatten(params)
        change, state = self.optimizer.update(gradients, state, tree)
        return self.layout.flatten(change), state
