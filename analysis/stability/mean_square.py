"""The learning rate at which SGD loses stability in mean square, with certificates.

Batches are drawn at random, so a deviation from a minimum may shrink on average and grow in mean
square. With the GGN of each example for its Hessian, H_i = J_iᵀ A_i J_i, the threshold is a
property of the loss and the batch size alone (Mulayoff and Michaeli, 2024, Theorems 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import PyTree

from dlf_dynamics.analysis.stability.mean_square_bounds import Noise, noise_share, rate_bounds
from dlf_dynamics.analysis.stability.mean_square_factors import MAX_RANK, factors_of
from dlf_dynamics.analysis.stability.recursion import HeavyBall
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

Sampling = Literal["independent", "epochs"]


@dataclass(frozen=True)
class MeanSquareThreshold:
    """Learning rates on both sides of the mean-square threshold of SGD.

    Attributes:
        certified_stable: below this learning rate, second moments of a deviation decay in the
            range of the curvature; infinite without curvature, NaN where it could not be shown.
        certified_unstable: from this learning rate on some second moment grows, or does not decay.
        method: how they were found.
        iterations: applications of the operator on second moments.
        rank: order of the matrices on which that operator was taken.
        kept: share of the trace of the curvature that these have.
        sampling: how batches are drawn; the threshold is one of this sampling alone.
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
        problem: with a model and data, convex in its outputs, which must not mix examples.
        params: any pytree of floating-point arrays; computed in float64, whatever their type.
        batch_size: B.
        step: t, for the weights.
        momentum: β of heavy ball, v' = β v + g, θ' = θ - η v'.
        sampling: `independent`.
        tol: width of the interval that is aimed at, relative; a rank cut may make it wider.
        max_rank: eigenvectors of the mean curvature at most on which second moments are taken.

    Raises:
        ConfigError: when an argument is out of range, the problem is not one that it can be told
            of, or it is too large.
        DataError: when the parameters are not arrays of float32 or float64.
    """
    _check(problem, batch_size, momentum, sampling, tol, max_rank)
    factors = factors_of(problem, params, step, max_rank=max_rank)
    noise = Noise(factors, noise_share(problem.num_examples, batch_size))
    stable, unstable, reason = rate_bounds(noise, HeavyBall(momentum), tol)
    return MeanSquareThreshold(
        stable,
        unstable,
        "eigenvalues" if noise.share == 0 else "Lanczos and cone",
        noise.applications,
        factors.rank,
        factors.kept,
        sampling,
        batch_size,
        momentum,
        reason,
    )


def _check(
    problem: Problem, batch_size: int, momentum: float, sampling: str, tol: float, max_rank: int
) -> None:
    number = problem.num_examples
    if not 1 <= batch_size <= number:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 to {number}, the examples")
    if not 0 <= momentum < 1:
        raise ConfigError(f"momentum is {momentum}; expected at least 0 and less than 1")
    if sampling != "independent":
        raise ConfigError(f"sampling is {sampling!r}; expected 'independent'")
    if not 1e-9 <= tol < 1:
        raise ConfigError(f"tol is {tol}; expected at least 1e-9 and less than 1")
    if max_rank < 1:
        raise ConfigError(f"max_rank is {max_rank}; expected at least 1")
