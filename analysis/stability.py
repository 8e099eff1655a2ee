"""The curvature at which an optimizer's training map loses stability."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.linearised import critical_curvatures, linear_maps, spectral_radii
from dlf_dynamics.analysis.linearity import NotTried, require_confirmed, require_linear
from dlf_dynamics.optimizers import has_mean_squares, hold_mean_squares
from dlf_dynamics.recording import NO_OPTIMIZER
from dlf_dynamics.run import Run

Update = Callable[[Array, Any, Array], tuple[Array, Any]]

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
        ValueError: when the update is not one that this can be told of (see
            `instability_threshold`), or changes with the step, as under a schedule.

    >>> round(critical_eigenvalue(optax.sgd(0.1, momentum=0.9)), 9)
    38.0
    >>> round(critical_eigenvalue(optax.adam(0.1)), 6)
    380.0
    """
    steps = np.array([0, 10])
    thresholds = instability_threshold(optimizer, steps)
    if not all(np.allclose(*part, atol=0) for part in linear_maps(optimizer, steps)):
        raise ValueError(
            "the optimizer's update changes with the step; expected a constant learning rate "
            "(instability_threshold tells the critical eigenvalue of each step)"
        )
    return float(thresholds[0])


def instability_threshold(
    optimizer: optax.GradientTransformation, steps: Int[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps"]:
    """Critical eigenvalue at each step, by what the optimizer does once so many updates were made.

    For an adaptive optimizer it applies to the eigenvalues of P^-1 H, with the preconditioner P of
    the next update frozen (Cohen et al. 2022, arXiv 2207.14484, §3). Infinite where the learning
    rate is 0.

    Nothing is told of an update that was not tried: it is run on quadratics on both sides of the
    threshold, and must do there what the linear map says (`analysis.linearity`).

    Args:
        optimizer: an optax transformation; its counts are set to the step.
        steps: numbers of updates made before.

    Raises:
        ValueError: when the update is not linear in the gradients, even with P frozen, not the same
            for all parameters, or depends on more than gradient, parameters and step.

    >>> halved = optax.sgd(lambda step: 0.1 / (1 + step))
    >>> instability_threshold(halved, np.array([0, 1, 4])).round(6).tolist()
    [20.0, 40.0, 100.0]
    """
    require_linear(optimizer)
    maps = linear_maps(optimizer, steps)
    thresholds = critical_curvatures(maps)
    # Those that differ most, and the first.
    order = np.argsort(thresholds, kind="stable")
    chosen = np.unique([0, order[0], order[len(order) // 2], order[-1]]) if len(steps) else order
    constant, slope = maps
    require_confirmed(
        optimizer, steps[chosen], (constant[chosen], slope[chosen]), thresholds[chosen]
    )
    return thresholds


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
    known = np.isfinite(eigenvalues)
    radii = spectral_radii(linear_maps(optimizer, steps), np.where(known, eigenvalues, 0.0))
    return np.where(known, radii, np.nan)


def refusal(run: Run) -> str | None:
    """Why no threshold may be drawn into this run's spectrum; none when it may."""
    dynamics = run.dynamics
    if dynamics.optimizer is NO_OPTIMIZER:
        return "no threshold: the run was recorded without its optimizer"
    if dynamics.batch_size is not None:
        return (
            "mini-batches: the threshold holds for the full-batch update only; the noise of "
            "mini-batches lowers it by an amount that is not computed"
        )
    try:
        _require_one_rule(run)
    except _REFUSALS as error:
        return f"no threshold: {' '.join(str(error).split())}"
    return None


def has_preconditioner(run: Run) -> bool:
    """Whether the threshold is one of P^-1 H: the optimizer divides by a root mean square."""
    if not run.dynamics.adaptive:
        return False
    try:
        _require_one_rule(run)
    except _REFUSALS:
        return False
    return True


_REFUSALS = (ValueError, TypeError, KeyError, AttributeError)
"""What optimizers raise that cannot do with one parameter, or with gradients alone."""


def _require_one_rule(run: Run) -> None:
    """Raises one of `_REFUSALS` unless the optimizer has a threshold."""
    dynamics = run.dynamics
    state = dynamics.initial_state(jnp.zeros(run.num_params, run.dtype)).optimizer_state
    with reason_in_full(dynamics.update, state, run.num_params, run.dtype):
        instability_threshold(dynamics.optimizer, np.array([0, 10]))


@contextmanager
def reason_in_full(update: Update, state: Any, num_params: int, dtype: Any) -> Iterator[None]:
    """Where a threshold is asked for: requires one rule for all parameters, too.

    A rule for each layer cannot be tried on other parameters; then that is the reason.

    Args:
        update: see `require_alike`, like the rest.
        state: of the optimizer, at the start.
        num_params: length of the vectors.
        dtype: of the vectors.

    Raises:
        NotTried: when the block does, unless the rules differ.
        ValueError: when they do.
    """
    try:
        yield
    except NotTried as error:
        with suppress(TypeError, KeyError, AttributeError):
            require_alike(update, state, num_params, dtype)
        raise error
    require_alike(update, state, num_params, dtype)


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


def require_alike(
    update: Update,
    initial_state: Any,
    num_params: int,
    dtype: Any,
) -> None:
    """Requires that an update is a number times the gradient plus one times θ.

    So it is not where groups of parameters have learning rates of their own, or where the update of
    one depends on the others. The numbers may differ between parameters by 1e-3: of the first, and
    of 1 for the second, as a step that is unstable moves a parameter by more than its own size. So
    a little decay of some of the parameters may pass.

    Args:
        update: of an optax transformation, on flat vectors.
        initial_state: of the optimizer.
        num_params: length of the vectors.
        dtype: of the vectors.

    Raises:
        ValueError: unless it is.
    """
    # All but the updates by NumPy: JAX would compile every operation on its own.
    size = _LARGE_SLOPE if has_mean_squares(initial_state) else 1.0
    drawn = np.random.default_rng(0).standard_normal((2, num_params))
    slope, params = jnp.asarray(size * drawn[0], dtype), jnp.asarray(drawn[1], dtype)
    zero = jnp.asarray(np.zeros(num_params), dtype)
    # The first update may have the learning rate 0.
    _, state = update(zero, hold_mean_squares(initial_state), zero)
    of_slope, of_params, of_both = (
        np.asarray(update(gradient, hold_mean_squares(state), point)[0], float)
        for gradient, point in ((slope, zero), (zero, params), (slope, params))
    )
    slope, params = np.asarray(slope, float), np.asarray(params, float)
    allowed = 1e-3 * np.linalg.norm(of_slope)
    for rest, most in (
        (_across(of_slope, slope), allowed),
        (_across(of_params, params), 1e-3 * np.linalg.norm(params)),
        (of_both - of_slope - of_params, allowed),
    ):
        if np.linalg.norm(rest) > most:
            raise ValueError(
                "the optimizer's update is not the same for all parameters; expected one learning "
                "rate and one rule for all of them"
            )


def _across(vector: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What of a vector is not along another one."""
    return vector - vector @ other / (other @ other) * other
