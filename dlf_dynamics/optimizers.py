"""Optimizers by name, all from optax, and what stability analysis needs of their state."""

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
"""Stands for an unknown optimizer; it updates nothing."""


@dataclass(frozen=True)
class Unmade:
    """Stands for an optimizer whose updates cannot be replayed; it updates nothing.

    Attributes:
        rule: the optimizer.
        stateful: whether its state was recorded, but updates need more than the state.
    """

    rule: optax.GradientTransformation
    stateful: bool = False

    def init(self, params: Any) -> Any:
        """A state of the recorded form."""
        return (self.rule if self.stateful else NO_OPTIMIZER).init(params)

    def update(self, updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """Updates nothing."""
        return NO_OPTIMIZER.update(updates, state, params)


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """The learning rate of each step."""
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
    # optax would compute in float32 with an integer step.
    return lambda step: after(jnp.asarray(step, float))


def make_optimizer(
    config: OptimizerConfig, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    """The optax transformation that the configuration names, with a learning rate or schedule."""
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
"""Root mean square beside which gradients and the epsilon of a division are negligible."""

_LAST_COUNT = 2**30
"""Largest count of updates at which a schedule is evaluated."""


def is_adaptive(optimizer: optax.GradientTransformation) -> bool:
    """Whether an optimizer divides by a root mean square of the gradients, as RMSProp and Adam do.

    >>> is_adaptive(optax.adamw(0.1)), is_adaptive(optax.sgd(0.1, momentum=0.9))
    (True, False)
    """
    return has_mean_squares(jax.eval_shape(optimizer.init, jnp.zeros(1)))


def has_mean_squares(state: Any) -> bool:
    """Whether an optimizer's state has the mean squares of Adam or RMSProp."""
    return bool(_mean_squares(state))


def hold_mean_squares(state: Any, size: float = _LARGE) -> Any:
    """The state long after the start, with mean squares too large for updates to change."""

    def held(node: Any) -> Any:
        if not isinstance(node, _MEAN_SQUARES):
            return node
        large = jax.tree.map(lambda leaf: jnp.full_like(leaf, size**2), node.nu)
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(nu=large, count=jnp.full_like(node.count, 10**6))
        return node._replace(nu=large)

    return jax.tree.map(held, state, is_leaf=lambda node: isinstance(node, _MEAN_SQUARES))


def held_preconditioner(after: Any) -> Any:
    """P of an update with mean squares held, from the state after it; 1 without mean squares."""
    return math.prod(jnp.sqrt(ravel_pytree(node.nu)[0]) for node in _mean_squares(after))


def preconditioner(
    update: Callable[[Any, Any, Any], tuple[Any, Any]],
    state: Any,
    gradient: Float[Array, " params"],
) -> Float[Array, " params"]:
    """The diagonal P that divides the *next* update of an adaptive optimizer.

    Both of Adam's bias corrections are included: the update is (m / b₁) / (√(n / b₂) + ε), with m
    and n the running means of the gradient and of its square and b₁, b₂ their corrections, so
    P = b₁ (√(n / b₂) + ε). RMSProp divides by √(n + ε) or √n + ε as optax does.

    P is obtained from the optimizer itself: its response to the gradient, from rest, is compared
    with its response while the mean squares are held at a known value. P does not depend on the
    learning rate, but the responses vanish where it is 0; schedules are therefore evaluated at the
    counts 1, 2, 4, ... until the optimizer responds.

    Args:
        update: update of an elementwise optax transformation with the mean squares of Adam or
            RMSProp: `update(gradient, state, params) -> (change, state)` of flat vectors.
        state: state before the next update.
        gradient: gradient that the next update uses.

    Returns:
        P, or NaN for an optimizer whose learning rate is 0 at all of these counts.

    Raises:
        ValueError: for an optimizer that has no preconditioner.
    """
    if not has_mean_squares(state):
        raise ValueError("the optimizer has no preconditioner; only such as RMSProp and Adam do")
    # The response is proportional to the gradient, which therefore must not be 0.
    tiny = jnp.finfo(gradient.dtype).tiny ** 0.25
    gradient = jnp.where(jnp.abs(gradient) < tiny, tiny, gradient)
    origin = jnp.zeros_like(gradient)

    def at(count: Array) -> Array:
        resting = _at_rest(state, count)
        response, _ = update(gradient, resting, origin)
        held, after = update(gradient, hold_mean_squares(resting), origin)
        return held_preconditioner(after) * held / response

    def silent(attempt: tuple[Array, Array]) -> Array:
        count, diagonal = attempt
        return (count < _LAST_COUNT) & jnp.any(jnp.isnan(diagonal))

    def later(attempt: tuple[Array, Array]) -> tuple[Array, Array]:
        count = 2 * attempt[0]
        return count, at(count)

    first = jnp.int32(1)
    return jax.lax.while_loop(silent, later, (first, at(first)))[1]


def _at_rest(state: Any, count: Array) -> Any:
    """The state with everything set to 0 but mean squares, their counts and hyperparameters.

    The counts of schedules become `count`. A learning rate in the state becomes 1: its value does
    not matter here, but it must not be 0.
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
        return jnp.full_like(node, count) if whole else jnp.zeros_like(node)

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
        layout: layout of the parameters that it sees.
    """

    optimizer: optax.GradientTransformation
    layout: Layout

    def __call__(self, gradient: Array, state: Any, params: Array) -> tuple[Array, Any]:
        """θ_(t+1) - θ_t, and the optimizer's next state."""
        gradients, tree = self.layout.unflatten(gradient), self.layout.unflatten(params)
        change, state = self.optimizer.update(gradients, state, tree)
        return self.layout.flatten(change), state
