"""Per-example losses, their Hessians in the outputs, and the weights that a schedule gives them.

Outputs have any axes before the last, which holds the classes: (examples, classes) of a classifier,
(examples, positions, classes) of a language model. Targets are labels, with one axis less, or one
number for each output, such as probabilities or one-hot rows. Losses have the axes before the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from dlf_dynamics.config import LossConfig
from dlf_dynamics.schedules import Schedule

Outputs = Float[Array, "*examples outputs"]
Labels = Int[Array, "*examples"]
Targets = Labels | Outputs
Losses = Float[Array, "*examples"]
Criterion = Callable[[Outputs, Targets], Array]
OutputProduct = Callable[[Outputs], Outputs]
"""Product of a matrix with a vector that has the shape of the outputs."""


def cross_entropy(outputs: Outputs, targets: Targets) -> Losses:
    """-log softmax(f)_y for each example (in nats), or -Σ_i Y_i log softmax(f)_i.

    >>> outputs = jnp.array([[0.0, 0.0], [0.0, 1.0]])
    >>> cross_entropy(outputs, jnp.array([0, 1])).round(4).tolist()
    [0.6931, 0.3133]
    """
    log_probabilities = jax.nn.log_softmax(outputs)
    if targets.shape == outputs.shape:
        return -jnp.sum(targets * log_probabilities, axis=-1)
    return -jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]


def squared_error(outputs: Outputs, targets: Targets) -> Losses:
    """Σ_i (f_i - Y_i)² for each example, Y the one-hot label."""
    return jnp.sum(squared_error_per_output(outputs, targets), axis=-1)


def squared_error_per_output(outputs: Outputs, targets: Targets) -> Outputs:
    """(f_i - Y_i)² for each example and output, Y the one-hot label."""
    if targets.shape != outputs.shape:
        targets = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    return (outputs - targets) ** 2


CRITERIA: dict[str, Criterion] = {
    "cross-entropy": cross_entropy,
    "squared-error": squared_error,
    "squared-error-per-output": squared_error_per_output,
}


@dataclass(frozen=True)
class MeanOverPositions:
    """One loss per example from a criterion with one per example and position: their mean.

    Attributes:
        criterion: losses of shape (examples, positions, ...).

    >>> criterion = MeanOverPositions(cross_entropy)
    >>> criterion(jnp.zeros((3, 5, 2)), jnp.zeros((3, 5), int)).round(4).tolist()
    [0.6931, 0.6931, 0.6931]
    """

    criterion: Criterion

    def __call__(self, outputs: Outputs, targets: Targets) -> Float[Array, " examples"]:
        """The mean over all axes but the first."""
        losses = self.criterion(outputs, targets)
        return jnp.mean(losses.reshape(len(losses), -1), axis=1)

    def steady(self) -> MeanOverPositions:
        """See `steady`."""
        return MeanOverPositions(steady(self.criterion))

    def output_hessian(
        self, outputs: Outputs, targets: Targets, weights: Float[Array, " examples"]
    ) -> OutputProduct:
        """See `output_hessian`."""
        return output_hessian(
            self.criterion, outputs, targets, self.spread(outputs, targets, weights)
        )

    def spread(
        self, outputs: Outputs, targets: Targets, weights: Float[Array, " examples"]
    ) -> Float[Array, "examples ..."]:
        """Weights of the losses of `criterion` that give their means these weights."""
        losses = jax.eval_shape(self.criterion, outputs, targets)
        positions = int(np.prod(losses.shape[1:]))
        each = weights.reshape(-1, *[1] * (len(losses.shape) - 1)) / positions
        return jnp.broadcast_to(each, losses.shape)


def steady(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """The same loss in a form whose derivatives keep their digits where the softmax saturates.

    The usual form of cross entropy has the derivative p_y - 1 in the output of its label: if that
    is 1e-8, float32 loses all digits and float64 half of them. The form log(1 + Σ_(i≠y) exp(f_i -
    f_y)) loses none. It replaces our cross entropy and that of optax with integer labels. An object
    with a method `steady()` provides its own form; any other loss is returned unchanged.

    >>> outputs, label = jnp.array([[40.0, 0.0]]), jnp.array([0])
    >>> derivative = lambda loss: jax.grad(lambda f: jnp.sum(loss(f, label)))(outputs)[0, 0]
    >>> float(derivative(cross_entropy)), float(derivative(steady(cross_entropy))) < -4e-18
    (0.0, True)
    """
    own = getattr(criterion, "steady", None)
    if own is not None:
        return own()
    usual = (cross_entropy, optax.softmax_cross_entropy_with_integer_labels)
    return _steady_cross_entropy if any(criterion is form for form in usual) else criterion


def _steady_cross_entropy(outputs: Outputs, targets: Targets) -> Losses:
    if targets.ndim == outputs.ndim:
        return cross_entropy(outputs, targets)
    classes = jnp.arange(outputs.shape[-1])
    label = classes == jnp.where(targets < 0, targets + len(classes), targets)[..., None]
    of_label = jnp.take_along_axis(outputs, targets[..., None], axis=-1)[..., 0]
    # If all other outputs are -inf, the loss is 0, and so are its derivatives.
    rest = ~label & (outputs > -jnp.inf)
    some = jnp.any(rest, axis=-1)
    kept = jnp.where(some[..., None], rest, label)
    others = jax.nn.logsumexp(jnp.where(kept, outputs, -jnp.inf), axis=-1)
    return jnp.where(some, jax.nn.softplus(others - of_label), jnp.zeros_like(of_label))


def output_hessian(
    criterion: Callable[..., Any], outputs: Array, targets: Array, weights: Array
) -> OutputProduct:
    """Products with the Hessian of Σ w ℓ(f, y) with respect to the outputs f.

    For cross entropy and squared errors, ours and those of optax, it is known in closed form: it
    takes as much memory as the outputs and no pass through the loss. An object with a method
    `output_hessian(outputs, targets, weights)` provides its own; for any other criterion products
    are obtained by differentiation.

    Args:
        criterion: ℓ, whose rows do not depend on each other.
        outputs: f.
        targets: y.
        weights: w, in the shape of the losses.

    >>> outputs, targets = jnp.array([[0.0, 0.0]]), jnp.array([0])
    >>> product = output_hessian(cross_entropy, outputs, targets, jnp.array([2.0]))
    >>> product(jnp.array([[1.0, 0.0]])).tolist()
    [[0.5, -0.5]]
    """
    known = (form for function, form in _CLOSED_FORMS if function is criterion)
    own = getattr(criterion, "output_hessian", None) or next(known, None)
    if own is not None:
        return own(outputs, targets, weights)
    total = lambda outputs: jnp.sum(weights * criterion(outputs, targets))  # noqa: E731
    return jax.linearize(jax.grad(total), outputs)[1]


def _of_softmax(outputs: Outputs, targets: Targets, weights: Losses) -> OutputProduct:
    """Products with w (diag(p) - p pᵀ) for each row, p the softmax (times ΣY of the targets)."""
    probabilities = jax.nn.softmax(outputs)
    if targets.ndim == outputs.ndim:
        weights = weights * jnp.sum(targets, axis=-1)
    likeliest = jnp.argmax(outputs, axis=-1)[..., None]

    def product(vector: Outputs) -> Outputs:
        # Adding a constant to a row changes nothing. With 0 at the likeliest class, the digits of a
        # softmax of nearly 0 and 1 are kept: 1 - p would have lost them.
        vector = vector - jnp.take_along_axis(vector, likeliest, axis=-1)
        mean = jnp.sum(probabilities * vector, axis=-1, keepdims=True)
        return weights[..., None] * probabilities * (vector - mean)

    return product


def _of_squares(factor: float, *, summed: bool) -> Callable[..., OutputProduct]:
    """Products with a multiple of the identity, times the weights."""

    def hessian(outputs: Outputs, targets: Targets, weights: Array) -> OutputProduct:
        scale = factor * (weights[..., None] if summed else weights)
        return lambda vector: scale * vector

    return hessian


_CLOSED_FORMS: tuple[tuple[Criterion, Callable[..., OutputProduct]], ...] = (
    (cross_entropy, _of_softmax),
    (squared_error, _of_squares(2.0, summed=True)),
    (squared_error_per_output, _of_squares(2.0, summed=False)),
    (optax.softmax_cross_entropy, _of_softmax),
    (optax.softmax_cross_entropy_with_integer_labels, _of_softmax),
    (optax.squared_error, _of_squares(2.0, summed=False)),
    (optax.l2_loss, _of_squares(1.0, summed=False)),
)


@dataclass(frozen=True)
class ClassWeights:
    """Weights of the losses from class weights.

    Each example is weighted by the weight of its class, or with `per_output` each output by the
    weight of its own class. The two weighted squared errors are this project's definitions: the
    formulas of the follow-up paper (arXiv 2410.10690) are not known to us.

    Attributes:
        schedule: class weights of a step.
        per_output: whether the losses have one column per output.
    """

    schedule: Schedule
    per_output: bool = False

    def __call__(self, step: Int[Array, ""] | int, labels: Labels) -> Array:
        """Weights that broadcast against the losses."""
        weights = self.schedule(jnp.asarray(step))
        return weights[None, :] if self.per_output else weights[labels]


@dataclass(frozen=True)
class WeightDecay:
    """½ λ ‖θ‖², the weight decay inside a loss; it compares by value.

    Attributes:
        strength: λ.

    >>> WeightDecay(0.1)({"w": jnp.array([3.0, 4.0])}, 0).tolist()
    1.25
    """

    strength: float

    def __call__(self, params: PyTree, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Its value, which is the same at each step."""
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)]
        return self.strength / 2 * sum(squares, start=jnp.zeros((), squares[0].dtype))


def make_penalty(config: LossConfig) -> WeightDecay | None:
    """The term of the loss that depends on the parameters alone; None if there is none."""
    return WeightDecay(config.l2) if config.l2 else None


def make_criterion(config: LossConfig) -> Criterion:
    """The loss that the configuration names."""
    return CRITERIA[config.name]


def make_weights(config: LossConfig, schedule: Schedule) -> ClassWeights:
    """The weights of that loss under a schedule."""
    return ClassWeights(schedule, per_output=config.name == "squared-error-per-output")
