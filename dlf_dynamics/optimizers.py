"""Optimizers by name, all from optax, and what the stability analysis needs of their state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dlf_dynamics.config import OptimizerConfig

ADAPTIVE = ("rmsprop", "adam", "adamw")
"""Optimizers that divide each update by a running root mean square of the gradient."""


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


def preconditioner(
    config: OptimizerConfig, state: Any, gradient: Float[Array, " params"]
) -> Float[Array, " params"]:
    """The diagonal P that divides the *next* update of an adaptive optimizer.

    Adam's two bias corrections are both kept: the update is (m / b₁) / (√(n / b₂) + ε), with m and
    n the running means of the gradient and of its square and b₁, b₂ their corrections, so
    P = b₁ (√(n / b₂) + ε). RMSProp divides by √(n + ε) or √n + ε as optax does.

    Args:
        config: of an optimizer in ADAPTIVE.
        state: its state before the next update, of flat parameters.
        gradient: that the next update uses.

    Raises:
        ValueError: for an optimizer that has no preconditioner.
    """
    if config.name == "rmsprop":
        found = _find(state, optax.ScaleByRmsState)
        mean_square = config.decay * found.nu + (1 - config.decay) * gradient**2
        return jnp.sqrt(mean_square + config.epsilon)
    if config.name in ("adam", "adamw"):
        found = _find(state, optax.ScaleByAdamState)
        count = found.count + 1
        mean_square = config.beta2 * found.nu + (1 - config.beta2) * gradient**2
        root = jnp.sqrt(mean_square / (1 - config.beta2**count)) + config.epsilon
        return (1 - config.beta1**count) * root
    raise ValueError(f"{config.name} has no preconditioner; only {', '.join(ADAPTIVE)} have one")


def _find(state: Any, kind: type) -> Any:
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kind))
    return next(leaf for leaf in leaves if isinstance(leaf, kind))


def flatten_state(state: Any) -> Float[Array, " state"]:
    """All numbers of an optimizer's state in one vector; counts are exact below 2^24."""
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(state)]
    dtype = jnp.result_type(float) if not leaves else jnp.result_type(*leaves)
    return jnp.concatenate([jnp.zeros(0, dtype), *[leaf.astype(dtype) for leaf in leaves]])


def unflatten_state(vector: Float[Array, " state"], like: Any) -> Any:
    """The inverse of `flatten_state`, in the structure and types of `like`."""
    leaves, structure = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        part = vector[start : start + leaf.size]
        parts.append(part.reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, parts)
