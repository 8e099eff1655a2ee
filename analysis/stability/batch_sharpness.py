"""Batch sharpness: the curvature of mini-batch losses along their own gradients, a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb, sqrt
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dlf_dynamics.analysis.stability.mean_square_factors import require_batches
from dlf_dynamics.checks import check_parameters
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.precision import widened
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

Definition = Literal["mean-of-ratios", "ratio-of-means"]

_MOST_BATCHES = 2_000
"""Number of batches up to which all are enumerated."""

_MOST_PRODUCTS = 2_000
"""Examples up to which the ratio of means is exact: it takes a Hessian product for each."""

_MOST_NUMBERS = 2**26
"""Numbers in all gradients together, up to which it is exact: 512 MiB."""


@dataclass(frozen=True)
class BatchSharpness:
    """The curvature of the losses of batches along their gradients.

    This is a measurement, not a quantity with a threshold: it can exceed 2 / η where SGD is stable
    in mean square.

    Attributes:
        value: the mean over batches, in the units of a curvature.
        standard_error: standard error, from the drawn batches; 0 where the value is exact.
        definition: `mean-of-ratios` for E[gᵀHg / gᵀg], `ratio-of-means` for E[gᵀHg] / E[gᵀg], with
            gradient and Hessian of one batch.
        samples: number of batches that were drawn; 0 where the value is exact.
        batch_size: examples in a batch.
    """

    value: float
    standard_error: float
    definition: Definition
    samples: int
    batch_size: int
    __repr__ = brief

    @property
    def exact(self) -> bool:
        """Whether the value covers all batches, rather than a sample."""
        return self.samples == 0


def batch_sharpness(
    problem: Problem,
    params: PyTree,
    batch_size: int,
    *,
    definition: Definition = "mean-of-ratios",
    step: Step = 0,
    samples: int = 1_000,
    seed: int = 0,
) -> BatchSharpness:
    """The mean curvature of batch losses along their gradients, with the exact Hessian.

    Both definitions are in use, and they differ. Up to 2,000 batches are enumerated. The ratio of
    means is exact up to 2,000 examples: its two means over batches are sums over examples. Beyond
    that, batches are drawn at random. Each batch has distinct examples, and all are equally likely.

    Args:
        problem: problem with a model and data, whose outputs do not mix examples.
        params: any pytree of floating-point arrays; computed in float64, whatever their type.
        batch_size: B.
        definition: `mean-of-ratios` or `ratio-of-means`.
        step: t, for the weights.
        samples: number of batches to draw where the value is not exact.
        seed: seed of the draw.

    Raises:
        ConfigError: when an argument is out of range, the problem has no examples, or the gradient
            of a batch is 0, along which there is no curvature.
        DataError: when the parameters are not arrays of float32 or float64.

    >>> squares = lambda outputs, targets: (outputs - targets) ** 2 / 2
    >>> inputs = jnp.sqrt(jnp.array([1.0, 3.0]))
    >>> problem = Problem(lambda w, x: w * x, squares, inputs=inputs, targets=jnp.zeros(2))
    >>> for definition in ("mean-of-ratios", "ratio-of-means"):
    ...     found = batch_sharpness(problem, jnp.ones(()), 1, definition=definition)
    ...     print(round(found.value, 6), found.exact)
    2.0 True
    2.8 True
    """
    _check(problem, batch_size, definition, samples)
    check_parameters(params)
    number = problem.num_examples
    with jax.enable_x64(True):
        flat, vector = Problem.ravel(*widened((problem, jax.tree.map(jnp.asarray, params))))
        time = jnp.asarray(step)
        if definition == "ratio-of-means" and _is_small(number, vector.size):
            value = _ratio_of_means(_sums(flat, vector, time), number, batch_size)
            return BatchSharpness(_defined(value), 0.0, definition, 0, batch_size)
        exact = comb(number, batch_size) <= _MOST_BATCHES
        batches = _all(number, batch_size) if exact else _drawn(number, batch_size, samples, seed)
        products, squares = map(np.asarray, _along(flat, vector, time, jnp.asarray(batches)))
    count = len(batches)
    with np.errstate(divide="ignore", invalid="ignore"):
        if definition == "mean-of-ratios":
            ratios = products / squares
            value, error = np.mean(ratios), np.std(ratios, ddof=min(1, count - 1))
        else:
            value = np.mean(products) / np.mean(squares)
            spread = np.std(products - value * squares, ddof=min(1, count - 1))
            error = spread / np.mean(squares)
    error = 0.0 if exact else float(error) / sqrt(count)
    return BatchSharpness(_defined(value), error, definition, 0 if exact else count, batch_size)


def _check(problem: Problem, batch_size: int, definition: str, samples: int) -> None:
    require_batches(problem, batch_size)
    if definition not in ("mean-of-ratios", "ratio-of-means"):
        raise ConfigError(
            f"definition is {definition!r}; expected 'mean-of-ratios' or 'ratio-of-means'"
        )
    if samples < 2:
        raise ConfigError(f"samples is {samples}; expected at least 2, for a standard error")


def _is_small(number: int, num_params: int) -> bool:
    return number <= _MOST_PRODUCTS and number * num_params <= _MOST_NUMBERS


def _defined(value: float | np.floating) -> float:
    if not np.isfinite(value):
        raise ConfigError(
            "the gradient of a batch is 0 or not finite, and there is no curvature along it; "
            "expected parameters that are not a minimum of each example"
        )
    return float(value)


def _all(number: int, batch_size: int) -> Int[np.ndarray, "batches batch"]:
    return np.array(list(combinations(range(number), batch_size)))


def _drawn(
    number: int, batch_size: int, samples: int, seed: int
) -> Int[np.ndarray, "batches batch"]:
    drawn = np.random.default_rng(seed)
    return np.stack([drawn.choice(number, batch_size, replace=False) for _ in range(samples)])


@jax.jit
def _along(
    problem: Problem, vector: Array, step: Array, batches: Int[Array, "batches batch"]
) -> tuple[Float[Array, " batches"], Float[Array, " batches"]]:
    """gᵀHg and gᵀg of each batch."""

    def of_batch(indices: Array) -> tuple[Array, Array]:
        gradient_at = partial(_gradient, problem.take(indices), step)
        gradient = gradient_at(vector)
        product = jax.jvp(gradient_at, (vector,), (gradient,))[1]
        return gradient @ product, gradient @ gradient

    return jax.lax.map(of_batch, batches)


def _gradient(problem: Problem, step: Array, vector: Array) -> Array:
    return jax.grad(problem.steady().objective)(vector, step)


class _Sums(NamedTuple):
    """Sums over the examples i, with G and ℋ the sums of gradients g_i and Hessians H_i."""

    own: Float[Array, ""]
    """Σ g_iᵀ H_i g_i."""
    crossed: Float[Array, ""]
    """Σ g_iᵀ H_i G."""
    others: Float[Array, ""]
    """Σ g_iᵀ ℋ g_i."""
    whole: Float[Array, ""]
    """Gᵀ ℋ G."""
    squares: Float[Array, ""]
    """Σ |g_i|²."""
    square: Float[Array, ""]
    """|G|²."""


@jax.jit
def _sums(problem: Problem, vector: Array, step: Array) -> _Sums:
    number = problem.num_examples
    indices = jnp.arange(number)

    def single(index: Array) -> partial[Array]:
        return partial(_gradient, problem.take(index[None]), step)

    gradients = jax.lax.map(lambda index: single(index)(vector), indices)
    total = jnp.sum(gradients, axis=0)

    def of_example(index: Array) -> tuple[Array, Array]:
        product = jax.linearize(single(index), vector)[1]
        mine = gradients[index]
        return mine @ product(mine), mine @ product(total)

    own, crossed = jax.lax.map(of_example, indices)
    mean = jax.linearize(partial(_gradient, problem, step), vector)[1]
    others = jax.lax.map(lambda mine: number * (mine @ mean(mine)), gradients)
    return _Sums(
        jnp.sum(own),
        jnp.sum(crossed),
        jnp.sum(others),
        number * (total @ mean(total)),
        jnp.sum(gradients**2),
        total @ total,
    )


def _ratio_of_means(sums: _Sums, number: int, batch_size: int) -> float:
    """E[gᵀHg] / E[gᵀg] by how often one, two and three different examples are in a batch."""
    own, crossed, others, whole, squares, square = map(float, sums)
    two, three = others - own, crossed - own
    rest = whole - two - 2 * three - own
    one = batch_size / number
    pairs = one * (batch_size - 1) / (number - 1) if batch_size > 1 else 0.0
    triples = pairs * (batch_size - 2) / (number - 2) if batch_size > 2 else 0.0
    above = (one * own + pairs * (two + 2 * three) + triples * rest) / batch_size**3
    below = (one * squares + pairs * (square - squares)) / batch_size**2
    return above / below if below else float("nan")
