"""The curvature at which an optimizer's training map loses stability."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from dlf_dynamics.analysis.stability.linearised import (
    Hyperparameters,
    critical_curvatures,
    linear_maps,
    spectral_radii,
)
from dlf_dynamics.analysis.stability.linearity import NotTried, require_confirmed, require_linear
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hyperparameters import with_hyperparameters
from dlf_dynamics.optimizers import FlatUpdate, has_mean_squares, hold_mean_squares

_MINI_BATCHES = (
    "mini-batches: each update is another map, and the threshold is one of the full-batch update "
    "only; `dlf-dynamics edge` gives that of independent batches in mean square"
)
"""Why mini-batches have no threshold."""

_LARGE_SLOPE = 1e5
"""Size of a gradient that lies far above the rounding of what is added to it once it is divided by
the fixed mean squares, and far below these."""


def critical_eigenvalue(optimizer: optax.GradientTransformation) -> float:
    """Smallest Hessian eigenvalue at which the optimizer stops contracting on a quadratic.

    The update is linearised on the scalar quadratic λx²/2, in x and the optimizer's state together,
    and λ is increased until the spectral radius of that map exceeds 1. For gradient descent it is
    2/η, for heavy ball (2 + 2β)/η; there a multiplier leaves the unit circle at -1 (a flip).

    Of an optimizer that divides by a root mean square of the gradients (RMSProp, Adam, NAdam,
    AdamW) it is that of the preconditioned Hessian P^-1 H, with the preconditioner P frozen.

    Args:
        optimizer: optax transformation with a constant learning rate; see `instability_threshold`
            for schedules.

    Raises:
        ValueError: when the update has no such threshold (see `instability_threshold`), or changes
            with the step, as under a schedule.

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
            "(instability_threshold gives the critical eigenvalue of each step)"
        )
    return float(thresholds[0])


def instability_threshold(
    optimizer: optax.GradientTransformation,
    steps: Int[np.ndarray, " steps"],
    *,
    hyperparameters: Hyperparameters = None,
) -> Float[np.ndarray, " steps"]:
    """Critical eigenvalue at each step, from what the optimizer does after so many updates.

    For an adaptive optimizer it applies to the eigenvalues of P^-1 H, with the preconditioner P of
    the next update frozen (Cohen et al. 2022, arXiv 2207.14484, §3). Infinite where the learning
    rate is 0.

    The update is also run on quadratics on both sides of the threshold, and refused unless it does
    there what the linear map says (`stability.linearity`).

    Args:
        optimizer: an optax transformation; its counts are set to the step.
        steps: numbers of updates made before.
        hyperparameters: hyperparameters in its state, by `optax.inject_hyperparams`, in the order
            of its leaves; none means the initial ones.

    Raises:
        ValueError: when the update is not linear in the gradients, even with P frozen, not the same
            for all parameters, or depends on more than gradient, parameters and step.

    >>> halved = optax.sgd(lambda step: 0.1 / (1 + step))
    >>> instability_threshold(halved, np.array([0, 1, 4])).round(6).tolist()
    [20.0, 40.0, 100.0]
    """
    require_linear(optimizer)
    maps = linear_maps(optimizer, steps, hyperparameters)
    thresholds = critical_curvatures(maps)
    # The steps whose thresholds differ most, and the first.
    order = np.argsort(thresholds, kind="stable")
    chosen = np.unique([0, order[0], order[len(order) // 2], order[-1]]) if len(steps) else order
    constant, linear = maps
    tried = constant[chosen], linear[chosen]
    require_confirmed(optimizer, steps[chosen], tried, thresholds[chosen], hyperparameters)
    return thresholds


def growth_factors(
    optimizer: optax.GradientTransformation,
    steps: Int[np.ndarray, " steps"],
    eigenvalues: Float[np.ndarray, " steps"],
) -> Float[np.ndarray, " steps"]:
    """Factor per step by which a deviation along an eigenvector grows or shrinks.

    This is the spectral radius of the linearised update at that curvature: |1 - ηλ| for gradient
    descent; for an adaptive optimizer with P frozen. NaN where the eigenvalue is NaN.

    >>> growth_factors(optax.sgd(1.0), np.array([7]), np.array([2.5])).tolist()
    [1.5]
    """
    known = np.isfinite(eigenvalues)
    radii = spectral_radii(linear_maps(optimizer, steps), np.where(known, eigenvalues, 0.0))
    return np.where(known, radii, np.nan)


@dataclass(frozen=True)
class Threshold:
    """The eigenvalue above which the full-batch update of an optimizer is unstable, if known.

    Attributes:
        optimizer: the optax transformation that makes the updates.
        name: its name, for labels.
        preconditioned: whether the threshold applies to the eigenvalues of P^-1 H, with the
            preconditioner P of the optimizer frozen.
        reason: why there is no threshold; empty where there is one.
        precision: type that parameters are rounded to after each update, which the threshold leaves
            out; none where they are not.
        hyperparameters: hyperparameters in the optimizer's state; none means the initial ones.
    """

    optimizer: optax.GradientTransformation
    name: str = "the optimizer"
    preconditioned: bool = False
    reason: str = ""
    precision: str | None = None
    hyperparameters: Hyperparameters = None

    def at(self, steps: Int[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
        """Critical eigenvalue at each step (`instability_threshold`); NaN where there is none."""
        if self.reason:
            return np.full(len(steps), np.nan)
        numbers = self.hyperparameters
        return instability_threshold(self.optimizer, steps, hyperparameters=numbers)

    @property
    def of_full_batch(self) -> bool:
        """Whether only mini-batches prevent a threshold, so that the full-batch update has one."""
        return self.reason == _MINI_BATCHES

    def of_full_batch_at(self, steps: Int[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
        """Critical eigenvalue of the full-batch update at each step of a run with mini-batches.

        It is a reference that decides nothing; NaN where there is none.
        """
        return replace(self, reason="" if self.of_full_batch else self.reason).at(steps)

    def required_at(self, step: int) -> float:
        """Critical eigenvalue at a step.

        Raises:
            ConfigError: when there is none.
        """
        if self.reason:
            raise ConfigError(f"the optimizer has no threshold: {self.reason}")
        return float(self.at(np.array([step]))[0])

    def label(self, *, applies: bool = True) -> str:
        """What the threshold is, or why there is none, in words for every output.

        Args:
            applies: whether it is a threshold of the eigenvalues shown with it.
        """
        if self.reason:
            return self.reason if self.of_full_batch else f"no threshold: {self.reason}"
        words = f"critical eigenvalue of {self.name}"
        if self.preconditioned:
            words += ", frozen preconditioner"
        if self.precision is not None:
            words += f"; the rounding to {self.precision} is not in it"
        if not applies:
            words += "; it applies to the Hessian of the weighted loss, not to what is shown"
        return words

    def full_batch_label(self, steps: Int[np.ndarray, " steps"]) -> str:
        """What the values of `of_full_batch_at` are, in words for every output."""
        words = f"critical eigenvalue of {self.name} with full batches"
        if self.preconditioned:
            words += ", P frozen"
        at_zero, _ = linear_maps(self.optimizer, steps, self.hyperparameters)
        if np.any(at_zero[:, 0, 0] < 1):
            words += "; its weight decay is in it"
        if self.precision is not None:
            words += f"; the rounding to {self.precision} is not in it"
        return words


@lru_cache(maxsize=256)
def threshold_of(
    update: FlatUpdate,
    name: str = "the optimizer",
    *,
    batch_size: int | None = None,
    precision: str | None = None,
    steps: tuple[int, ...] = (0, 10),
    hyperparameters: Hyperparameters = None,
) -> Threshold:
    """The threshold of an optimizer, after trying its update on quadratics at some steps.

    Args:
        update: the optimizer, with the form of its parameters.
        name: name of the optimizer, for labels.
        batch_size: examples per update; none means all.
        precision: type that parameters are rounded to after each update.
        steps: numbers of updates made before, at which the update is tried.
        hyperparameters: hyperparameters in the optimizer's state; none means the initial ones.

    Raises:
        MemoryError: when there is not enough memory to try it.
        JaxRuntimeError: when XLA fails.
    """
    try:
        zero = jnp.zeros(update.layout.size, update.layout.dtypes[0])
        init, params = update.optimizer.init, update.layout.unflatten(zero)
        state, numbers = init(params), hyperparameters
        if numbers is not None:
            state = with_hyperparameters(init, params, state, jnp.asarray(numbers))
        with _reason_in_full(update, state):
            instability_threshold(update.optimizer, np.array(steps), hyperparameters=numbers)
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # this says nothing about the optimizer
    except Exception as error:
        reason, adaptive = " ".join(str(error).split()), False
    else:
        reason, adaptive = "", has_mean_squares(state)
    if batch_size is not None:
        reason = reason or _MINI_BATCHES
    return Threshold(update.optimizer, name, adaptive, reason, precision, hyperparameters)


@contextmanager
def _reason_in_full(update: FlatUpdate, state: Any) -> Iterator[None]:
    """Also requires one rule for all parameters where a threshold is wanted.

    A rule for each layer cannot be tried on other parameters; then that is the reason.

    Raises:
        NotTried: when the block does, unless the rules differ.
    """
    try:
        yield
    except NotTried as error:
        with suppress(TypeError, KeyError, AttributeError):
            _require_alike(update, state)
        raise error
    _require_alike(update, state)


def _require_alike(update: FlatUpdate, initial_state: Any) -> None:
    """Requires that an update is a number times the gradient plus one times θ.

    That fails where groups of parameters have different learning rates, or where the update of one
    parameter depends on others. The first number may vary between parameters by 1e-3 of itself, the
    second by 1e-3 of 1, as an unstable step moves a parameter by more than its own size. A little
    decay of some of the parameters may therefore pass.

    Raises:
        ValueError: unless it is.
    """
    num_params, dtype = update.layout.size, jnp.result_type(*update.layout.dtypes)
    # All but the updates by NumPy: JAX would compile every operation on its own.
    size = _LARGE_SLOPE if has_mean_squares(initial_state) else 1.0
    drawn = np.random.default_rng(0).standard_normal((2, num_params))
    force, params = jnp.asarray(size * drawn[0], dtype), jnp.asarray(drawn[1], dtype)
    zero = jnp.asarray(np.zeros(num_params), dtype)
    # The first update may have the learning rate 0.
    _, state = update(zero, hold_mean_squares(initial_state), zero)
    of_force, of_params, of_both = (
        np.asarray(update(gradient, hold_mean_squares(state), point)[0], float)
        for gradient, point in ((force, zero), (zero, params), (force, params))
    )
    force, params = np.asarray(force, float), np.asarray(params, float)
    allowed = 1e-3 * np.linalg.norm(of_force)
    for rest, most in (
        (_across(of_force, force), allowed),
        (_across(of_params, params), 1e-3 * np.linalg.norm(params)),
        (of_both - of_force - of_params, allowed),
    ):
        if np.linalg.norm(rest) > most:
            raise ValueError(
                "the optimizer's update is not the same for all parameters; expected one learning "
                "rate and one rule for all of them"
            )


def _across(vector: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The part of a vector that is orthogonal to another one."""
    return vector - vector @ other / (other @ other) * other
