"""The curvature at which an optimizer's training map loses stability."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from dlf_dynamics.optimizers import (
    has_mean_squares,
    held_preconditioner,
    hold_mean_squares,
)
from dlf_dynamics.run import Run

_LARGE_SLOPE = 1e5
"""Of a gradient: divided by mean squares that are held it is far above the rounding of what is
added to it, and it is far below them."""


def critical_eigenvalue(optimizer: optax.GradientTransformation) -> float:
    """Smallest Hessian eigenvalue at which the optimizer stops contracting on a quadratic.

    The update is linearised on the scalar quadratic λx²/2, in x and the optimizer's state together,
    and λ is increased until the spectral radius of that map exceeds 1. For gradient descent it is
    2/η, for heavy ball (2 + 2β)/η; there a multiplier leaves the unit circle at -1 (a flip).

    Of an optimizer that divides by a root mean square of the gradients (RMSProp, Adam, NAdam,
    AdamW) it is that of the preconditioned Hessian P^-1 H, with the preconditioner P frozen.

    Args:
        optimizer: at a constant learning rate; see `instability_threshold` for schedules.

    Raises:
        ValueError: when the update is not linear in the gradients, even with P frozen, or changes
            with the step, as under a schedule.

    >>> round(critical_eigenvalue(optax.sgd(0.1, momentum=0.9)), 9)
    38.0
    >>> round(critical_eigenvalue(optax.adam(0.1)), 6)
    380.0
    """
    first, later = instability_threshold(optimizer, np.array([0, 10]))
    with jax.enable_x64(True):
        responses = [_responses(optimizer, step, 1.0) for step in (0, 10)]
    if first != later or not np.allclose(*responses, atol=0):
        raise ValueError(
            "the optimizer's update changes with the step; expected a constant learning rate "
            "(instability_threshold tells the critical eigenvalue of each step)"
        )
    return float(first)


def instability_threshold(
    optimizer: optax.GradientTransformation, steps: Int[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps"]:
    """Critical eigenvalue at each step, by what the optimizer does once so many updates were made.

    For an adaptive optimizer it applies to the eigenvalues of P^-1 H, with the preconditioner P of
    the next update frozen (Cohen et al. 2022, arXiv 2207.14484, §3). Infinite where the learning
    rate is 0.

    Args:
        optimizer: an optax transformation; its counts are set to the step.
        steps: numbers of updates made before.

    Raises:
        ValueError: when the update is not linear in the gradients, even with P frozen.

    >>> halved = optax.sgd(lambda step: 0.1 / (1 + step))
    >>> instability_threshold(halved, np.array([0, 1, 4])).round(6).tolist()
    [20.0, 40.0, 100.0]
    """
    _require_linear(optimizer)
    constant, slope = _linear_maps(optimizer, steps)
    maps = np.concatenate([constant, slope], axis=1)
    distinct, place = np.unique(maps, axis=0, return_inverse=True)
    size = constant.shape[1]
    return _critical(distinct[:, :size], distinct[:, size:])[place.reshape(-1)]


def growth_factors(
    optimizer: optax.GradientTransformation,
    steps: Int[np.ndarray, " steps"],
    eigenvalues: Float[np.ndarray, " steps"],
) -> Float[np.ndarray, " steps"]:
    """Factor per step by which a deviation along an eigenvector grows or shrinks.

    The spectral radius of the optimizer's linearised update at that curvature, |1 - ηλ| for
    gradient descent; of an adaptive one with P frozen. NaN where the eigenvalue is.

    >>> growth_factors(optax.sgd(1.0), np.array([7]), np.array([2.5])).tolist()
    [1.5]
    """
    constant, slope = _linear_maps(optimizer, steps)
    known = np.isfinite(eigenvalues)
    matrices = constant + np.where(known, eigenvalues, 0.0)[:, None, None] * slope
    return np.where(known, np.max(np.abs(np.linalg.eigvals(matrices)), axis=1), np.nan)


def refusal(run: Run) -> str | None:
    """Why no threshold may be drawn into this run's spectrum; none when it may."""
    dynamics = run.dynamics
    if dynamics.batch_size is not None:
        return (
            "mini-batches: the threshold holds for the full-batch update only; the noise of "
            "mini-batches lowers it by an amount that is not computed"
        )
    try:
        _require_alike_in(run)
        _require_linear(dynamics.optimizer)
    except _REFUSALS as error:
        return f"no threshold: {' '.join(str(error).split())}"
    return None


def has_preconditioner(run: Run) -> bool:
    """Whether the optimizer divides the updates of all parameters by a root mean square."""
    if not run.dynamics.adaptive:
        return False
    try:
        _require_alike_in(run)
    except _REFUSALS:
        return False
    return True


_REFUSALS = (ValueError, TypeError, KeyError, AttributeError)
"""What optimizers raise that cannot do with one parameter, or with gradients alone."""


def _require_alike_in(run: Run) -> None:
    dynamics = run.dynamics
    state = dynamics.initial_state(jnp.zeros(run.num_params, run.dtype)).optimizer_state
    require_alike(dynamics.update, state, run.num_params, run.dtype)


def threshold_label(run: Run, *, applies: bool = True) -> str:
    """What the threshold is, in words that go with every output."""
    label = f"critical eigenvalue of {run.optimizer_name}"
    if has_preconditioner(run):
        label += ", frozen preconditioner"
    if run.dynamics.precision is not None:
        label += f"; the rounding to {run.dynamics.precision} is not in it"
    if not applies:
        label += "; it applies to the Hessian of the weighted loss, not to what is shown"
    return label


@lru_cache
def _require_linear(optimizer: optax.GradientTransformation) -> None:
    """Raises ValueError unless updates scale with the gradients, P being frozen."""
    start = jax.eval_shape(optimizer.init, jnp.zeros(1))
    nodes = jax.tree.leaves(start, is_leaf=lambda node: isinstance(node, optax.MultiStepsState))
    if any(isinstance(node, optax.MultiStepsState) for node in nodes):
        raise ValueError(
            "the optimizer gathers the gradients of several steps; expected an update at each step"
        )
    with jax.enable_x64(True):
        for step in (0, 10):
            answers = [_responses(optimizer, step, scale) / scale for scale in (1.0, 1e3, 1e-3)]
            if not all(np.allclose(answers[0], other, atol=0) for other in answers[1:]):
                raise ValueError(
                    "the optimizer's update is not linear in the gradients; expected one that is "
                    "linear but for the preconditioner of RMSProp or Adam"
                )


def _responses(
    optimizer: optax.GradientTransformation, step: int, scale: float
) -> Float[np.ndarray, " updates"]:
    """Updates on a few gradients from a step on, with the mean squares held."""
    state, answers = _state_at(optimizer, jnp.int32(step)), []
    for slope in (1.0, -0.5, 0.25):
        position = jnp.full(1, scale * slope)
        change, state = optimizer.update(position, hold_mean_squares(state), position)
        answers.append(np.asarray(change))
    return np.concatenate(answers)


def require_alike(
    update: Callable[[Array, Any, Array], tuple[Array, Any]],
    initial_state: Any,
    num_params: int,
    dtype: Any,
) -> None:
    """Raises ValueError unless an update is a number times the gradient plus one times θ.

    So it is not where groups of parameters have learning rates of their own, or where the update of
    one depends on the others. The numbers may differ between parameters by 1e-3: of the first, and
    of 1 for the second, as a step that is unstable moves a parameter by more than its own size. So
    a little decay of some of the parameters may pass.

    Args:
        update: of an optax transformation, on flat vectors.
        initial_state: of the optimizer.
        num_params: length of the vectors.
        dtype: of the vectors.
    """
    keys = jax.random.split(jax.random.key(0))
    slope, params = (jax.random.normal(key, (num_params,), dtype) for key in keys)
    slope *= _LARGE_SLOPE if has_mean_squares(initial_state) else 1.0
    zero = jnp.zeros_like(params)
    # The first update may have the learning rate 0.
    _, state = update(zero, hold_mean_squares(initial_state), zero)
    answers = [
        update(gradient, hold_mean_squares(state), point)[0]
        for gradient, point in ((slope, zero), (zero, params), (slope, params))
    ]
    of_slope, of_params, of_both = answers
    allowed = 1e-3 * jnp.linalg.norm(of_slope)
    for rest, most in (
        (_across(of_slope, slope), allowed),
        (_across(of_params, params), 1e-3 * jnp.linalg.norm(params)),
        (of_both - of_slope - of_params, allowed),
    ):
        if jnp.linalg.norm(rest) > most:
            raise ValueError(
                "the optimizer's update is not the same for all parameters; expected one learning "
                "rate and one rule for all of them"
            )


def _across(vector: Array, other: Array) -> Array:
    """What of a vector is not along another one."""
    return vector - jnp.vdot(vector, other) / jnp.vdot(other, other) * other


def _unit(optimizer: optax.GradientTransformation) -> float:
    """P of a parameter while the mean squares are held."""
    nothing = jnp.zeros(1)
    state = hold_mean_squares(optimizer.init(nothing))
    return float(jnp.squeeze(held_preconditioner(optimizer.update(nothing, state, nothing)[1])))


def _with_counts(state: Any, step: Any) -> Any:
    """The state with every whole number in it set to the step."""
    return jax.tree.map(
        lambda leaf: jnp.full_like(leaf, step) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf,
        state,
    )


def _state_at(optimizer: optax.GradientTransformation, step: Int[Array, ""]) -> Any:
    """The state of one parameter after so many updates in which nothing happened."""
    return _with_counts(optimizer.init(jnp.zeros(1)), step)


def _linear_maps(
    optimizer: optax.GradientTransformation, steps: Int[np.ndarray, " steps"]
) -> tuple[Float[np.ndarray, "steps n n"], Float[np.ndarray, "steps n n"]]:
    """A and B such that the update of each step on the curvature λ is z ↦ (A + λB) z."""
    distinct, place = np.unique(steps, return_inverse=True)
    if not _counts(optimizer):
        distinct, place = distinct[:1], np.zeros(len(steps), int)
    with jax.enable_x64(True):
        found = _jacobians(optimizer, jnp.asarray(distinct, jnp.int32))
    at_zero, at_one = map(np.asarray, found)
    return at_zero[place], (at_one - at_zero)[place]


def _counts(optimizer: optax.GradientTransformation) -> bool:
    """Whether anything in its state counts the steps."""
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, jnp.zeros(1)))
    return any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves)


def _jacobians(
    optimizer: optax.GradientTransformation, steps: Int[Array, " steps"]
) -> tuple[Array, Array]:
    """Of the update at each step, at curvatures 0 and 1 in units of the held preconditioner."""
    unit = _unit(optimizer)

    def jacobian(step: Array, curvature: float) -> Array:
        start = (jnp.zeros(1), hold_mean_squares(_state_at(optimizer, step)))
        floats, constants = _split(start)
        vector, unravel = ravel_pytree(floats)

        def update(vector: Array) -> Array:
            position, state = _join(unravel(vector), constants)
            state = hold_mean_squares(state)
            change, state = optimizer.update(curvature * position, state, position)
            return ravel_pytree(_split((position + change, state))[0])[0]

        return jax.jacfwd(update)(vector)

    return jax.vmap(lambda s: jacobian(s, 0.0))(steps), jax.vmap(lambda s: jacobian(s, unit))(steps)


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
    while not np.all(ever := unstable(high)) and np.max(high) < 1e30:
        low, high = np.where(ever, low, high), np.where(ever, high, 2 * high)
    for _ in range(100):
        middle = (low + high) / 2
        beyond = unstable(middle)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    # To the digits that are right, so that 2 is 2.
    found = [float(f"{value:.13g}") for value in (low + high) / 2]
    return np.where(ever, found, np.inf)
