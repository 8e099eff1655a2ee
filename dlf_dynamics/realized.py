"""The realized edge ζ of one step: whether the update raised the loss that it was made for.

For an update Δ and the loss L of its step, with the same weights and examples on both sides,

    ζ = 1 + (L(θ + Δ) - L(θ)) / (-gᵀΔ) = ½ ΔᵀH̄Δ / (-gᵀΔ),  H̄ = ∫₀¹ 2(1 - t) H(θ + tΔ) dt,

is above 1 if and only if that step raised its own loss. It holds for any optimizer and any batch,
speaks of one step and not of stability, and is undefined where the update does not go downhill.
Related to the directional sharpness of Kalra and others (2026, arXiv 2601.16979).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dlf_dynamics.losses import (
    MeanOverPositions,
    cross_entropy,
    squared_error,
    squared_error_per_output,
)
from dlf_dynamics.problem import Problem, Step

_ROUNDINGS = 4.0
"""Rounding of an output, in units of that of the largest one: of all the sums behind it."""

_FAR = 50.0
"""Lead of an output over that of the label up to which its exponential is surely a number."""


class Edge(NamedTuple):
    """The realized edge of a step.

    Attributes:
        value: ζ; NaN where it is undefined or was not looked at.
        error: what rounding can do to it; infinite where ζ is undefined, or the slope may be 0 but
            for rounding; NaN where that is not known, or it was not looked at.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]


class Change(NamedTuple):
    """What an update did to the loss, and what rounding can have done.

    Attributes:
        value: L(θ + Δ) - L(θ).
        error: error of it, in units of the rounding of a number; NaN where it is not known.
        slope_error: slope error of gᵀΔ, beyond that of its sum, in the same units.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]
    slope_error: Float[Array, ""]


def realized(
    problem: Problem,
    step: Step,
    params: Float[Array, " params"],
    after: Float[Array, " params"],
    gradient: Float[Array, " params"],
    *,
    outputs: Array | None = None,
    precision: str | None = None,
) -> Edge:
    """The realized edge of an update, for one evaluation of the model.

    Args:
        problem: problem of flat parameters, on the examples that the update is of.
        step: t, for the weights of both losses.
        params: θ, before the update.
        after: θ + Δ, as it is once it is rounded.
        gradient: gradient of the loss at θ.
        outputs: outputs of the model at θ; none evaluates it there, too.
        precision: type in which the gradient was computed, where it has fewer bits than its own.
    """
    change = loss_change(problem, step, params, after, outputs=outputs)
    return edge_of(change, params, after, gradient, precision=precision)


def edge_of(
    change: Change,
    params: Float[Array, " params"],
    after: Float[Array, " params"],
    gradient: Float[Array, " params"],
    *,
    precision: str | None = None,
) -> Edge:
    """The realized edge of an update that changed the loss so; arguments as of `realized`."""
    eps = float(jnp.finfo(params.dtype).eps)
    slope_eps = eps if precision is None else float(jnp.finfo(precision).eps)
    terms = gradient * (after - params)
    downhill = -jnp.sum(terms)
    slope_error = slope_eps * (_of_sum(params) * jnp.sum(jnp.abs(terms)) + change.slope_error)
    ratio = change.value / downhill
    known = (downhill > 0) & jnp.isfinite(ratio)
    error = eps + (eps * change.error + jnp.abs(ratio) * slope_error) / (downhill - slope_error)
    sure = known & (downhill > slope_error) & ~jnp.isinf(error)
    return Edge(jnp.where(known, 1 + ratio, jnp.nan), jnp.where(sure, error, jnp.inf))


def _of_sum(values: Array) -> float:
    """What rounding makes of the sum of so many numbers, in units of the sum of their sizes."""
    return _ROUNDINGS + values.size**0.5


def loss_change(
    problem: Problem,
    step: Step,
    params: Float[Array, " params"],
    after: Float[Array, " params"],
    *,
    outputs: Array | None = None,
) -> Change:
    """L(θ + Δ) - L(θ) under the weights of one step, with what rounding can have done.

    Of a loss alone (`Problem.from_loss`) the rounding is not known, as what cancels inside is not
    seen.
    """
    found = Change(*(jnp.zeros((), params.dtype) for _ in Change._fields))
    if problem.parameter_loss is not None:
        ends = problem.penalty(params, step), problem.penalty(after, step)
        sizes = jnp.abs(ends[0]) + jnp.abs(ends[1])
        found = found._replace(value=ends[1] - ends[0], error=_of_sum(params) * sizes)
    if not problem.has_outputs:
        return found._replace(error=jnp.full_like(found.error, jnp.nan))
    outputs = problem.outputs(params) if outputs is None else outputs
    following = problem.outputs(after)
    losses = jax.eval_shape(problem.criterion, outputs, problem.targets)
    # The loss is linear in the losses: its derivatives are what each of them counts.
    weights = jax.grad(problem.weigh)(jnp.zeros(losses.shape, losses.dtype), step)
    parts = _difference(problem.criterion, outputs, following, problem.targets, weights)
    largest = jnp.max(jnp.maximum(jnp.abs(outputs), jnp.abs(following)))
    return Change(
        found.value + parts.value,
        found.error + parts.error + _ROUNDINGS * largest * parts.pull,
        found.slope_error + parts.own + (1 + 2 * largest) * parts.slopes,
    )


class _Parts(NamedTuple):
    """Of the difference of the losses of two outputs, and of derivatives in the first ones.

    Attributes:
        value: Σ w (ℓ(f') - ℓ(f)).
        error: error of it for outputs that are exact, in units of the rounding of a number.
        pull: a number that is at least Σ |w ∂ℓ/∂f|, of f and f' together.
        slopes: Σ |w ∂ℓ/∂f| |f' - f| of f.
        own: the same of the rounding of w ∂ℓ/∂f that does not become smaller with it.
    """

    value: Array
    error: Array
    pull: Array
    slopes: Array
    own: Array


def _difference(
    criterion: Callable[..., Any], before: Array, after: Array, targets: Array, weights: Array
) -> _Parts:
    """In closed form where there is one, with nothing lost by subtraction; else subtracted."""
    if isinstance(criterion, MeanOverPositions):
        inner = jax.eval_shape(criterion.criterion, before, targets)
        each = weights.reshape(-1, *[1] * (len(inner.shape) - 1)) / np.prod(inner.shape[1:])
        spread = jnp.broadcast_to(each, inner.shape)
        return _difference(criterion.criterion, before, after, targets, spread)
    labelled = targets.ndim < before.ndim
    known = (form for function, form in _CLOSED_FORMS if function is criterion)
    form = next(known, None)
    if form is None or (form is _of_softmax and not labelled):
        return _subtracted(criterion, before, after, targets, weights)
    return form(before, after, targets, weights)


def _subtracted(
    criterion: Callable[..., Any], before: Array, after: Array, targets: Array, weights: Array
) -> _Parts:
    """As for cross entropy, a loss may be a small difference of terms as large as the outputs."""
    pair, pull = jax.vjp(lambda *both: [criterion(f, targets) for f in both], before, after)
    sizes = jnp.abs(weights)
    slopes = [jnp.abs(slope) for slope in pull([sizes, sizes])]
    largest = jnp.maximum(jnp.max(jnp.abs(before)), jnp.max(jnp.abs(after)))
    terms = jnp.abs(pair[0]) + jnp.abs(pair[1]) + 4 * (1 + largest)
    return _Parts(
        jnp.sum(weights * (pair[1] - pair[0])),
        jnp.sum(sizes * terms),
        jnp.sum(slopes[0] + slopes[1]),
        jnp.sum(slopes[0] * jnp.abs(after - before)),
        jnp.max(sizes) * (1 + 2 * largest) * jnp.sum(jnp.abs(after - before)),
    )


def _of_softmax(before: Array, after: Array, labels: Array, weights: Array) -> _Parts:
    """log(1 + (a' - a) / (1 + a)), where a = Σ_(k≠y) exp(f_k - f_y) and the loss is log(1 + a).

    Where a falls it is -log(1 + (a - a') / (1 + a')): the other form would lose the digits of a'.
    """
    # Classes come first: sums over a few of them, side by side in memory, take twice as long.
    before, after = jnp.moveaxis(before, -1, 0), jnp.moveaxis(after, -1, 0)
    places = jnp.arange(len(before)).reshape(-1, *[1] * labels.ndim)
    mine = places == jnp.where(labels < 0, labels + len(before), labels)
    ahead, ahead_after = (f - jnp.sum(jnp.where(mine, f, 0), axis=0) for f in (before, after))
    sizes = jnp.abs(weights)

    def closed() -> tuple[Array, Array, Array]:
        odds, odds_after = (jnp.where(mine, 0, jnp.exp(f)) for f in (ahead, ahead_after))
        rest, rest_after = jnp.sum(odds, axis=0), jnp.sum(odds_after, axis=0)
        grown = jnp.sum(odds_after - odds, axis=0)
        sizes_of_changes = jnp.log1p(jnp.abs(grown) / (1 + jnp.where(grown > 0, rest, rest_after)))
        changes = jnp.sign(grown) * sizes_of_changes
        shares = jnp.where(mine, rest, odds) / (1 + rest)
        return changes, shares, jnp.zeros((), before.dtype)

    def subtracted() -> tuple[Array, Array, Array]:
        losses, losses_after = (
            cross_entropy(jnp.moveaxis(f, 0, -1), labels) for f in (before, after)
        )
        wide = jnp.max(jnp.abs(ahead)) + jnp.max(jnp.abs(ahead_after))
        return losses_after - losses, jnp.ones_like(before), jnp.sum(sizes) * (4 + 2 * wide)

    farthest = jnp.max(jnp.maximum(ahead, ahead_after))
    changes, shares, lost = jax.lax.cond(farthest < _FAR, closed, subtracted)
    slopes = sizes * shares
    of_slopes, of_changes = jnp.sum(slopes), jnp.sum(sizes * jnp.abs(changes))
    # Of what was subtracted, a part of each loss is lost: as much as that of its slopes, or less.
    error, pull = lost + 4 * (of_slopes + of_changes), 4 * of_slopes + 2 * of_changes
    # The gradient is that of the usual form: of a derivative p - 1 it has the digits that 1 leaves.
    moved = jnp.abs(after - before)
    bent, own = jnp.sum(slopes * moved), jnp.sum(sizes * moved)
    return _Parts(jnp.sum(weights * changes), error, pull, bent, own)


def _of_squares(factor: float, *, summed: bool) -> Callable[..., _Parts]:
    """Σ factor (f' - f) (f' + f - 2Y) for losses factor (f - Y)²; with one weight for each sum."""

    def parts(before: Array, after: Array, targets: Array, weights: Array) -> _Parts:
        if targets.shape != before.shape:
            targets = jax.nn.one_hot(targets, before.shape[-1], dtype=before.dtype)
        sizes = factor * jnp.abs(weights[..., None] if summed else weights)
        missed, moved = before - targets, after - before
        changes = jnp.sign(weights[..., None] if summed else weights) * sizes * moved
        changes = changes * (2 * missed + moved)
        slopes = 2 * sizes * jnp.abs(missed)
        pull = 2 * jnp.sum(slopes) + 2 * jnp.sum(sizes * jnp.abs(moved))
        own = 2 * sizes * (jnp.abs(before) + jnp.abs(missed))
        error, far = 4 * jnp.sum(jnp.abs(changes)), jnp.abs(moved)
        return _Parts(jnp.sum(changes), error, pull, jnp.sum(slopes * far), jnp.sum(own * far))

    return parts


_CLOSED_FORMS: tuple[tuple[Any, Callable[..., _Parts]], ...] = (
    (cross_entropy, _of_softmax),
    (optax.softmax_cross_entropy_with_integer_labels, _of_softmax),
    (squared_error, _of_squares(1.0, summed=True)),
    (squared_error_per_output, _of_squares(1.0, summed=False)),
    (optax.squared_error, _of_squares(1.0, summed=False)),
    (optax.l2_loss, _of_squares(0.5, summed=False)),
)
