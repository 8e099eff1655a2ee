"""The learning rate at which SGD loses stability in mean square, with certificates.

Batches are drawn at random, so a deviation from a minimum may shrink on average and grow in mean
square. With the GGN of each example for its Hessian, H_i = J_iᵀ A_i J_i, the threshold is a
property of the loss and the batch size alone (Mulayoff and Michaeli, 2024, Theorems 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PyTree

from dlf_dynamics.analysis.stability.changed import required_threshold
from dlf_dynamics.analysis.stability.mean_square_bounds import (
    Noise,
    Verdict,
    judged,
    noise_share,
    rate_bounds,
)
from dlf_dynamics.analysis.stability.mean_square_factors import (
    MAX_RANK,
    factors_of,
    require_batches,
)
from dlf_dynamics.analysis.stability.preconditioner import next_preconditioner
from dlf_dynamics.analysis.stability.recursion import HeavyBall
from dlf_dynamics.analysis.stability.second_order import recursion_of
from dlf_dynamics.analysis.stability.shuffled_epochs import EpochMap, epoch_rate_bounds
from dlf_dynamics.checks import check_parameters
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hyperparameters import hyperparameters_in
from dlf_dynamics.layout import Layout
from dlf_dynamics.optimizers import FlatUpdate, is_adaptive
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

Sampling = Literal["independent", "epochs"]


@dataclass(frozen=True)
class MeanSquareThreshold:
    """Learning rates on both sides of the mean-square threshold of SGD.

    Attributes:
        certified_stable: learning rate below which (for epochs: at which) second moments of a
            deviation decay in the range of the curvature; infinite without curvature, NaN where
            that could not be shown.
        certified_unstable: learning rate from which on (for epochs: at which) some second moment
            grows, or does not decay.
        method: how both were computed.
        iterations: applications of the operator on second moments.
        rank: order of the matrices on which that operator acts.
        kept: share of the trace of the curvature that these matrices keep.
        sampling: how batches are drawn; the threshold holds for this sampling only.
        batch_size: examples in a batch.
        momentum: β of heavy ball; 0 for plain SGD.
        reason: why an end is NaN, or what is not shown; empty otherwise.
    """

    certified_stable: float
    certified_unstable: float
    method: str
    iterations: int
    rank: int
    kept: float
    sampling: Sampling
    batch_size: int
    momentum: float = 0.0
    reason: str = ""
    __repr__ = brief

    @property
    def width(self) -> float:
        """Width of the interval, relative to its upper end; 0 where there is no curvature."""
        if self.certified_stable == self.certified_unstable:
            return 0.0
        return 1 - self.certified_stable / self.certified_unstable


def mean_square_threshold(
    problem: Problem,
    params: PyTree,
    batch_size: int,
    *,
    step: Step = 0,
    momentum: float = 0.0,
    sampling: Sampling = "independent",
    tol: float = 1e-3,
    max_rank: int = MAX_RANK,
) -> MeanSquareThreshold:
    """The learning rate at which SGD loses stability in mean square, between two certified ones.

    Batches are drawn uniformly without replacement, independently at each step, and weights are
    those of this step. The Hessian of each example is its GGN, which is the Hessian at a minimum
    that fits the data. For the full batch it is gradient descent's threshold, 2 / λ_max of the GGN,
    or 2 (1 + β) / λ_max with momentum.

    Args:
        problem: problem with a model and data, convex in its outputs, which must not mix examples.
        params: any pytree of floating-point arrays; computed in float64, whatever their type.
        batch_size: B.
        step: t, for the weights.
        momentum: β of heavy ball, v' = β v + g, θ' = θ - η v'.
        sampling: `independent`, or `epochs` for shuffled epochs of a few examples, all of whose
            orders are enumerated. Each end of the interval then holds only at its learning rate.
        tol: relative width of the interval to aim at; a rank cut may make it wider.
        max_rank: eigenvectors of the mean curvature at most on which second moments are taken.

    Raises:
        ConfigError: when an argument is out of range, or the problem has no such threshold or is
            too large.
        DataError: when the parameters are not arrays of float32 or float64.

    >>> squares = lambda outputs, targets: (outputs - targets) ** 2 / 2
    >>> inputs = jnp.sqrt(jnp.array([1.0, 3.0]))
    >>> problem = Problem(lambda w, x: w * x, squares, inputs=inputs, targets=jnp.zeros(2))
    >>> found = mean_square_threshold(problem, jnp.ones(()), batch_size=1)
    >>> round(found.certified_stable, 4), round(found.certified_unstable, 4)
    (0.7998, 0.8)
    """
    _check(problem, batch_size, momentum, sampling, tol, max_rank)
    factors = factors_of(problem, params, step, max_rank=max_rank)
    if sampling == "epochs":
        epoch = EpochMap(factors, batch_size)
        stable, unstable, reason = epoch_rate_bounds(epoch, tol)
        method, iterations = "enumeration of epochs", epoch.applications
    else:
        noise = Noise(factors, noise_share(problem.num_examples, batch_size))
        stable, unstable, reason = rate_bounds(noise, HeavyBall(momentum), tol)
        method, iterations = _method(noise), noise.applications
    return MeanSquareThreshold(
        certified_stable=stable,
        certified_unstable=unstable,
        method=method,
        iterations=iterations,
        rank=factors.rank,
        kept=factors.kept,
        sampling=sampling,
        batch_size=batch_size,
        momentum=momentum,
        reason=reason,
    )


@dataclass(frozen=True)
class MeanSquareStability:
    """Whether an optimizer is stable in mean square at its own learning rate.

    Attributes:
        verdict: `undecided` where neither certificate was found.
        stable_below: multiples of the optimizer's learning rate below which it is stable; NaN where
            none is shown.
        unstable_from: multiples from which on it is not stable; NaN where none is shown.
        method: how both were computed.
        iterations: applications of the operator on second moments.
        rank: order of the matrices on which that operator acts.
        kept: share of the trace of the curvature that these matrices keep.
        batch_size: examples in a batch.
        label: which matrices are the curvature.
        reason: what is not shown, and why; empty otherwise.
    """

    verdict: Verdict
    stable_below: float
    unstable_from: float
    method: str
    iterations: int
    rank: int
    kept: float
    batch_size: int
    label: str
    reason: str = ""
    __repr__ = brief


def mean_square_stability(
    problem: Problem,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    *,
    opt_state: PyTree = None,
    step: Step = 0,
    tol: float = 1e-3,
    max_rank: int = MAX_RANK,
) -> MeanSquareStability:
    """Whether an optimizer is stable in mean square under independent batches.

    The update is linearised as for `critical_eigenvalue` and read as a recursion. The curvature of
    each example is preconditioned, P^-1/2 H_i P^-1/2, for an optimizer that divides by a root mean
    square of the gradients, with the preconditioner P of the next update (made with the full-batch
    gradient) frozen. Decoupled weight decay is a curvature without noise.

    Args:
        problem: see `mean_square_threshold`, as for all that is not explained here.
        params: parameters before the update of this step.
        optimizer: an optax transformation that has a threshold (see `stability`) and no more state
            than the momentum of heavy ball or Adam.
        batch_size: B.
        opt_state: its state before that update; needed where the optimizer has a preconditioner,
            or hyperparameters in its state.
        step: t, the number of updates made: for weights, and for learning rates that change.
        tol: relative width to aim at.
        max_rank: largest number of eigenvectors.

    Raises:
        ConfigError: when the optimizer has no such threshold or is no such recursion, `opt_state`
            is missing, or the problem is not supported.
        DataError: when the parameters are not arrays of float32 or float64.

    >>> squares = lambda outputs, targets: (outputs - targets) ** 2 / 2
    >>> inputs = jnp.sqrt(jnp.array([1.0, 3.0]))
    >>> problem = Problem(lambda w, x: w * x, squares, inputs=inputs, targets=jnp.zeros(2))
    >>> found = mean_square_stability(problem, jnp.ones(()), optax.sgd(0.4), batch_size=1)
    >>> found.verdict, round(found.stable_below, 3), round(found.unstable_from, 3)
    ('stable', 2.0, 2.0)
    """
    _check(problem, batch_size, 0.0, "independent", tol, max_rank)
    check_parameters(params)
    update = FlatUpdate(optimizer, Layout.of(params))
    required_threshold(update, params, opt_state, int(step))
    hyperparameters = None
    if opt_state is not None:
        hyperparameters = hyperparameters_in(optimizer.init, params, opt_state) or None
    recursion = recursion_of(optimizer, int(step), hyperparameters)
    scale, label = None, "GGN of the weighted loss"
    if is_adaptive(optimizer):
        scale = _scale(problem, params, update, opt_state, step)
        label = "preconditioned GGN of the weighted loss, frozen preconditioner"
    factors = factors_of(problem, params, step, scale=scale, max_rank=max_rank)
    noise = Noise(factors, noise_share(problem.num_examples, batch_size))
    verdict, bounds, reason = judged(noise, recursion, tol)
    return MeanSquareStability(
        verdict=verdict,
        stable_below=bounds[0],
        unstable_from=bounds[1],
        method=_method(noise),
        iterations=noise.applications,
        rank=factors.rank,
        kept=factors.kept,
        batch_size=batch_size,
        label=label,
        reason=reason,
    )


def _scale(
    problem: Problem, params: PyTree, update: FlatUpdate, opt_state: PyTree, step: Step
) -> Float[np.ndarray, " params"]:
    """P^-1/2 of the next update."""
    if opt_state is None:
        raise ConfigError(
            "opt_state is missing; expected the state of this adaptive optimizer before the "
            "update, as its preconditioner is in it (optimizer.init(params) at the start)"
        )
    layout = update.layout
    flat, vector = problem.flat(layout), layout.flatten(params)
    preconditioner = next_preconditioner(flat, vector, jnp.int32(step), opt_state, update=update)
    return 1 / np.sqrt(np.asarray(preconditioner, float))


def _method(noise: Noise) -> str:
    return "eigenvalues" if noise.share == 0 else "Lanczos and cone"


def _check(
    problem: Problem, batch_size: int, momentum: float, sampling: str, tol: float, max_rank: int
) -> None:
    require_batches(problem, batch_size)
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum is {momentum}; expected at least 0 and less than 1")
    if sampling not in ("independent", "epochs"):
        raise ConfigError(f"sampling is {sampling!r}; expected 'independent' or 'epochs'")
    if sampling == "epochs" and momentum:
        raise ConfigError(
            f"momentum is {momentum} with sampling 'epochs'; expected 0, or independent batches"
        )
    if not 1e-9 <= tol < 1:
        raise ConfigError(f"tol is {tol}; expected at least 1e-9 and less than 1")
    if max_rank < 1:
        raise ConfigError(f"max_rank is {max_rank}; expected at least 1")
