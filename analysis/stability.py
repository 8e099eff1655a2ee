"""The curvature at which an optimizer's training map loses stability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.optimizers import ADAPTIVE, make_optimizer
from dlf_dynamics.run import Run

_MEAN_SQUARES = (optax.ScaleByAdamState, optax.ScaleByRmsState)

_LARGE = 1e10


def critical_eigenvalue(optimizer: optax.GradientTransformation) -> float:
    """Smallest Hessian eigenvalue at which the optimizer stops contracting on a quadratic.

    The update is linearised on the scalar quadratic λx²/2, in x and the optimizer's state together,
    and λ is increased until the spectral radius of that map exceeds 1. For gradient descent it is
    2/η, for heavy ball (2 + 2β)/η; there a multiplier leaves the unit circle at -1 (a flip).

    Of an optimizer that divides by a root mean square of the gradients (RMSProp, Adam, NAdam,
    AdamW) it is that of the preconditioned Hessian P^-1 H, with the preconditioner P frozen.

    Args:
        optimizer: at a constant learning rate.

    Raises:
        ValueError: when the update is not linear in the gradients, even with P frozen, or changes
            with the step, as under a schedule.

    >>> round(critical_eigenvalue(optax.sgd(0.1, momentum=0.9)), 9)
    38.0
    >>> round(critical_eigenvalue(optax.adam(0.1)), 6)
    380.0
    """
    with jax.enable_x64(True):
        frozen, preconditioner = _with_frozen_preconditioner(optimizer)
        _require_linear(frozen)
        maps = _linear_map(lambda _: frozen, jnp.ones(1), unit=preconditioner)
    return float(_critical(*maps)[0])


def instability_threshold(
    config: OptimizerConfig, learning_rates: Float[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps"]:
    """Critical eigenvalue of the configured optimizer at each learning rate.

    For an adaptive optimizer it applies to the eigenvalues of P^-1 H, with the preconditioner P of
    the next update frozen (Cohen et al. 2022, arXiv 2207.14484, §3). Infinite where the learning
    rate is 0.

    >>> instability_threshold(OptimizerConfig(name="adam"), np.array([0.01])).round(6).tolist()
    [3800.0]
    """
    distinct, place = np.unique(learning_rates, return_inverse=True)
    thresholds = np.full(distinct.shape, np.inf)
    positive = distinct > 0
    if np.any(positive):
        with jax.enable_x64(True):
            rates = jnp.asarray(distinct[positive], jnp.float64)
            maps = _linear_map(lambda rate: _frozen(config, rate), rates)
        thresholds[positive] = _critical(*maps)
    return thresholds[place]


def growth_factors(
    config: OptimizerConfig,
    learning_rates: Float[np.ndarray, " steps"],
    eigenvalues: Float[np.ndarray, " steps"],
) -> Float[np.ndarray, " steps"]:
    """Factor per step by which a deviation along an eigenvector grows or shrinks.

    The spectral radius of the optimizer's linearised update at that curvature, |1 - ηλ| for
    gradient descent; of an adaptive one with P frozen. NaN where the eigenvalue is.

    >>> growth_factors(OptimizerConfig(), np.array([1.0]), np.array([2.5])).tolist()
    [1.5]
    """
    distinct, place = np.unique(learning_rates, return_inverse=True)
    with jax.enable_x64(True):
        constant, slope = _linear_map(
            lambda rate: _frozen(config, rate), jnp.asarray(distinct, jnp.float64)
        )
    known = np.isfinite(eigenvalues)
    curvatures = np.where(known, eigenvalues, 0.0)[:, None, None]
    matrices = constant[place] + curvatures * slope[place]
    return np.where(known, np.max(np.abs(np.linalg.eigvals(matrices)), axis=1), np.nan)


def refusal(run: Run) -> str | None:
    """Why no threshold may be drawn into this run's spectrum; none when it may."""
    if run.config.batch_size is not None:
        return (
            "mini-batches: the threshold holds for the full-batch update only, and full-batch "
            "eigenvalues of a mini-batch run stay below it"
        )
    return None


def threshold_label(config: OptimizerConfig, *, applies: bool = True) -> str:
    """What the threshold is, in words that go with every output."""
    label = f"critical eigenvalue of {config.name}"
    if config.name in ADAPTIVE:
        label += ", frozen preconditioner"
    if not applies:
        label += "; it applies to the Hessian of the weighted loss, not to what is shown"
    return label


def _frozen(config: OptimizerConfig, rate: Array) -> optax.GradientTransformation:
    """The optimizer as it acts while its preconditioner stays 1."""
    if config.name not in ADAPTIVE:
        return make_optimizer(config, rate)
    parts = [] if config.name == "rmsprop" else [optax.ema(config.beta1, debias=False)]
    if config.name == "adamw":
        parts.append(optax.add_decayed_weights(config.weight_decay))
    return optax.chain(*parts, optax.scale_by_learning_rate(rate))


def _with_frozen_preconditioner(
    optimizer: optax.GradientTransformation,
) -> tuple[optax.GradientTransformation, float]:
    """The optimizer with its mean squares held at one value, long after its start, and its P.

    The value is so large that neither the gradients nor the terms that guard the division count.
    """

    def held(node: Any) -> Any:
        if not isinstance(node, _MEAN_SQUARES):
            return node
        large = jax.tree.map(lambda leaf: jnp.full_like(leaf, _LARGE**2), node.nu)
        if isinstance(node, optax.ScaleByAdamState):
            return node._replace(nu=large, count=jnp.full_like(node.count, 10**6))
        return node._replace(nu=large)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        state = jax.tree.map(held, state, is_leaf=lambda node: isinstance(node, _MEAN_SQUARES))
        return optimizer.update(updates, state, params)

    frozen = optax.GradientTransformation(optimizer.init, update)
    zero = jnp.zeros(1)
    _, state = frozen.update(zero, optimizer.init(zero), zero)
    nodes: list[Any] = jax.tree.leaves(state, is_leaf=lambda n: isinstance(n, _MEAN_SQUARES))
    squares = [float(n.nu[0]) for n in nodes if isinstance(n, _MEAN_SQUARES)]  # type: ignore[index]
    return frozen, float(np.prod(np.sqrt(squares)))


def _require_linear(optimizer: optax.GradientTransformation) -> None:
    """Raises ValueError unless updates scale with the gradients and do not depend on the step."""

    def response(scale: float, wait: int) -> np.ndarray:
        state, changes = optimizer.init(jnp.zeros(1)), []
        for slope in (*[0.0] * wait, 1.0, -0.5, 0.25):
            position = jnp.full(1, scale * slope)
            change, state = optimizer.update(position, state, position)
            changes.append(np.asarray(change))
        return np.concatenate(changes[wait:])

    once, twice, later = response(1.0, 0), response(2.0, 0), response(1.0, 10)
    if not (np.allclose(2 * once, twice, atol=0) and np.allclose(once, later, atol=0)):
        raise ValueError(
            "the optimizer's update is not linear in the gradients, or changes with the step; "
            "expected one that is linear but for the preconditioner of RMSProp or Adam"
        )


def _linear_map(
    make: Callable[[Array], optax.GradientTransformation],
    rates: Float[Array, " rates"],
    unit: float = 1.0,
) -> tuple[Float[np.ndarray, "rates n n"], Float[np.ndarray, "rates n n"]]:
    """A and B such that the update on the curvature λ, in this unit, is z ↦ (A + λB) z."""

    def jacobian(rate: Array, curvature: float) -> Array:
        optimizer = make(rate)
        start = (jnp.zeros(1), optimizer.init(jnp.zeros(1)))
        floats, constants = _split(start)
        vector, unravel = ravel_pytree(floats)

        def update(vector: Array) -> Array:
            position, state = _join(unravel(vector), constants)
            change, state = optimizer.update(curvature * position, state, position)
            return ravel_pytree(_split((position + change, state))[0])[0]

        return jax.jacfwd(update)(vector)

    at_zero, at_one = (jax.vmap(lambda r, c=c: jacobian(r, c))(rates) for c in (0.0, unit))
    return np.asarray(at_zero), np.asarray(at_one) - np.asarray(at_zero)


def _split(tree):
    """The floating-point leaves of a pytree as a list, and a function's worth of the rest."""
    leaves, structure = jax.tree.flatten(tree)
    moving = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    floats = [leaf for leaf, moves in zip(leaves, moving, strict=True) if moves]
    return floats, (leaves, moving, structure)


def _join(floats, constants):
    leaves, moving, structure = constants
    remaining = iter(floats)
    joined = [
        next(remaining) if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)
    ]
    return jax.tree.unflatten(structure, joined)


def _critical(
    constant: Float[np.ndarray, "rates n n"], slope: Float[np.ndarray, "rates n n"]
) -> Float[np.ndarray, " rates"]:
    """For each map A + λB the λ > 0 at which its spectral radius exceeds 1, by bisection."""

    def unstable(curvature: np.ndarray) -> np.ndarray:
        matrices = constant + curvature[:, None, None] * slope
        return np.max(np.abs(np.linalg.eigvals(matrices)), axis=1) > 1 + 1e-13

    low, high = np.zeros(len(slope)), np.full(len(slope), 1e-12)
    while not np.all(beyond := unstable(high)):
        if np.max(high) > 1e30:
            return np.full(len(slope), np.inf)
        low, high = np.where(beyond, low, high), np.where(beyond, high, 2 * high)
    for _ in range(100):
        middle = (low + high) / 2
        beyond = unstable(middle)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return (low + high) / 2
