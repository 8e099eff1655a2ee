"""The realized edge ζ of one step, which shows whether the update raised its own loss.

For an update Δ and the loss L of its step, with the same weights and examples on both sides,

    ζ = 1 + (L(θ + Δ) - L(θ)) / (-gᵀΔ) = ½ ΔᵀH̄Δ / (-gᵀΔ),  H̄ = ∫₀¹ 2(1 - t) H(θ + tΔ) dt,

is above 1 if and only if that step raised its own loss. It applies to any optimizer and any batch,
describes one step, not stability, and is undefined if the update does not go downhill. It is
related to the directional sharpness of Kalra and others (2026, arXiv 2601.16979).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dlf_dynamics.losses import (
    MeanOverPositions,
    cross_entropy,
    squared_error,
    squared_error_per_output,
)
from dlf_dynamics.problem import Problem, Step, loss_weights

_ROUNDINGS = 4.0
"""Rounding error of an output from all its sums, in units of the rounding of the largest one."""

_FAR = 50.0
"""Lead of an output over the label's output up to which its exponential cannot overflow."""


class Edge(NamedTuple):
    """The realized edge of a step.

    Attributes:
        value: ζ; NaN if it is undefined or was not evaluated.
        error: rounding error of ζ; infinite if ζ is undefined, or gᵀΔ may be 0 within rounding; NaN
            if it is unknown, or ζ was not evaluated.
    """

    value: Float[Array, ""]
    error: Float[Array, ""]


class Change(NamedTuple):
    """The change of the loss by an update, with bounds on its rounding error.

    Attributes:
        value: L(θ + Δ) - L(θ).
        error: rounding error of the value, in units of eps; NaN if it is unknown.
        slope_error: rounding error of gᵀΔ, without that of its sum, in the same units.
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
    """The realized edge of an update, at the cost of one evaluation of the model.

    Args:
        problem: problem of flat parameters, on the examples that the update uses.
        step: t, for the weights of both losses.
        params: θ, before the update.
        after: θ + Δ, after rounding.
        gradient: gradient of the loss at θ.
        outputs: outputs of the model at θ; None evaluates it there, too.
        precision: type in which the gradient was computed, if it has fewer bits than the
            parameters.
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
    """The realized edge of an update with this change of the loss; other arguments as above."""
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
    """Rounding error of the sum of this many numbers, in units of eps Σ |x_i|."""
    return _ROUNDINGS + values.size**0.5


def loss_change(
    problem: Problem,
    step: Step,
    params: Float[Array, " params"],
    after: Float[Array, " params"],
    *,
    outputs: Array | None = None,
) -> Change:
    """L(θ + Δ) - L(θ) under the weights of one step, with its rounding error.

    For a loss alone (`Problem.from_loss`) the rounding error is unknown, as cancellation inside of
    the loss cannot be seen.
    """
    penalty = Change(*(jnp.zeros((), params.dtype) for _ in Change._fields))
    if problem.parameter_loss is not None:
        ends = problem.penalty(params, step), problem.penalty(after, step)
        sizes = jnp.abs(ends[0]) + jnp.abs(ends[1])
        penalty = penalty._replace(value=ends[1] - ends[0], error=_of_sum(params) * sizes)
    if not problem.has_outputs:
        return penalty._replace(error=jnp.full_like(penalty.error, jnp.nan))
    outputs = problem.outputs(params) if outputs is None else outputs
    following = problem.outputs(after)
    weights = loss_weights(problem, outputs, step)
    parts = _difference(problem.criterion, outputs, following, problem.targets, weights)
    largest = jnp.max(jnp.maximum(jnp.abs(outputs), jnp.abs(following)))
    return Change(
        penalty.value + parts.value,
        penalty.error + parts.error + _ROUNDINGS * largest * parts.pull,
        penalty.slope_error + parts.own + (1 + 2 * largest) * parts.slopes,
    )


class _Parts(NamedTuple):
    """The difference of the losses of outputs f' and f, and sums that bound rounding errors.

    Attributes:
        value: Σ w (ℓ(f') - ℓ(f)).
        error: rounding error of the value for exact outputs, in units of eps.
        pull: upper bound of Σ |w ∂ℓ/∂f|, of f and f' together.
        slopes: Σ |w ∂ℓ/∂f| |f' - f|, with the derivatives at f.
        own: the same sum for the rounding error of w ∂ℓ/∂f that does not shrink with it.
    """

    value: Array
    error: Array
    pull: Array
    slopes: Array
    own: Array


def _difference(
    criterion: Callable[..., Any], before: Array, after: Array, targets: Array, weights: Array
) -> _Parts:
    """The difference in closed form without cancellation, if there is one; else by subtraction."""
    if isinstance(criterion, MeanOverPositions):
        spread = criterion.spread(before, targets, weights)
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
    """The difference by subtraction.

    Its error allows for losses that, like cross entropy, are small differences of terms as large as
    the outputs.
    """
    pair, pull = jax.vjp(lambda *both: [criterion(f, targets) for f in both], before, after)
    sizes = jnp.abs(weights)
    gradients = [jnp.abs(gradient) for gradient in pull([sizes, sizes])]
    largest = jnp.maximum(jnp.max(jnp.abs(before)), jnp.max(jnp.abs(after)))
    terms = jnp.abs(pair[0]) + jnp.abs(pair[1]) + 4 * (1 + largest)
    return _Parts(
        jnp.sum(weights * (pair[1] - pair[0])),
        jnp.sum(sizes * terms),
        jnp.sum(gradients[0] + gradients[1]),
        jnp.sum(gradients[0] * jnp.abs(after - before)),
        jnp.max(sizes) * (1 + 2 * largest) * jnp.sum(jnp.abs(after - before)),
    )


def _of_softmax(before: Array, after: Array, labels: Array, weights: Array) -> _Parts:
    """log(1 + (a' - a) / (1 + a)), where a = Σ_(k≠y) exp(f_k - f_y) and the loss is log(1 + a).

    If a decreases, it is -log(1 + (a - a') / (1 + a')): the other form would lose digits of a'.
    """
    # Classes come first: sums over a few numbers adjacent in memory take twice as long.
    before, after = jnp.moveaxis(before, -1, 0), jnp.moveaxis(after, -1, 0)
    classes = jnp.arange(len(before)).reshape(-1, *[1] * labels.ndim)
    label = classes == jnp.where(labels < 0, labels + len(before), labels)
    ahead, ahead_after = (f - jnp.sum(jnp.where(label, f, 0), axis=0) for f in (before, after))
    sizes = jnp.abs(weights)

    def closed() -> tuple[Array, Array, Array]:
        odds, odds_after = (jnp.where(label, 0, jnp.exp(f)) for f in (ahead, ahead_after))
        rest, rest_after = jnp.sum(odds, axis=0), jnp.sum(odds_after, axis=0)
        grown = jnp.sum(odds_after - odds, axis=0)
        sizes_of_changes = jnp.log1p(jnp.abs(grown) / (1 + jnp.where(grown > 0, rest, rest_after)))
        changes = jnp.sign(grown) * sizes_of_changes
        shares = jnp.where(label, rest, odds) / (1 + rest)
        return changes, shares, jnp.zeros((), before.dtype)

    def subtracted() -> tuple[Array, Array, Array]:
        losses, losses_after = (
            cross_entropy(jnp.moveaxis(f, 0, -1), labels) for f in (before, after)
        )
        wide = jnp.max(jnp.abs(ahead)) + jnp.max(jnp.abs(ahead_after))
        return losses_after - losses, jnp.ones_like(before), jnp.sum(sizes) * (4 + 2 * wide)

    farthest = jnp.max(jnp.maximum(ahead, ahead_after))
    changes, shares, lost = jax.lax.cond(farthest < _FAR, closed, subtracted)
    gradients = sizes * shares
    of_gradients, of_changes = jnp.sum(gradients), jnp.sum(sizes * jnp.abs(changes))
    # Subtraction loses a part of each loss, at most as much as of its gradients.
    error, pull = lost + 4 * (of_gradients + of_changes), 4 * of_gradients + 2 * of_changes
    # The gradient has the usual form: a derivative p - 1 has an error of eps, however small it is.
    moved = jnp.abs(after - before)
    bent, own = jnp.sum(gradients * moved), jnp.sum(sizes * moved)
    return _Parts(jnp.sum(weights * changes), error, pull, bent, own)


def _of_squares(factor: float, *, summed: bool) -> Callable[..., _Parts]:
    """Σ w c (f' - f) (f' + f - 2Y) for losses c (f - Y)²; `summed`: one weight per row."""

    def parts(before: Array, after: Array, targets: Array, weights: Array) -> _Parts:
        if targets.shape != before.shape:
            targets = jax.nn.one_hot(targets, before.shape[-1], dtype=before.dtype)
        sizes = factor * jnp.abs(weights[..., None] if summed else weights)
        missed, moved = before - targets, after - before
        changes = jnp.sign(weights[..., None] if summed else weights) * sizes * moved
        changes = changes * (2 * missed + moved)
        gradients = 2 * sizes * jnp.abs(missed)
        pull = 2 * jnp.sum(gradients) + 2 * jnp.sum(sizes * jnp.abs(moved))
        own = 2 * sizes * (jnp.abs(before) + jnp.abs(missed))
        error, far = 4 * jnp.sum(jnp.abs(changes)), jnp.abs(moved)
        return _Parts(jnp.sum(changes), error, pull, jnp.sum(gradients * far), jnp.sum(own * far))

    return parts


_CLOSED_FORMS: tuple[tuple[Any, Callable[..., _Parts]], ...] = (
    (cross_entropy, _of_softmax),
    (optax.softmax_cross_entropy_with_integer_labels, _of_softmax),
    (squared_error, _of_squares(1.0, summed=True)),
    (squared_error_per_output, _of_squares(1.0, summed=False)),
    (optax.squared_error, _of_squares(1.0, summed=False)),
    (optax.l2_loss, _of_squares(0.5, summed=False)),
)
