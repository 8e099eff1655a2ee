"""`Problem`: a model, a loss, its weights and the data, from which every operator is derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.losses import output_hessian, steady
from dlf_dynamics.reprs import brief

Step = Int[Array, ""] | int


class Evaluation(NamedTuple):
    """Results of a forward pass in addition to the loss that is minimised.

    Attributes:
        static_loss: loss with all weights 1.
        accuracy: fraction of correct labels; NaN if targets are not class labels.
        outputs: outputs of all examples; None if only a loss is known.
    """

    static_loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    outputs: Float[Array, "examples *outputs"] | None


@dataclass(frozen=True)
class _OfClass:
    """A criterion that is 0 for the examples of all other classes.

    It compares by value, so that functions compiled for a class serve all problems with it.
    """

    criterion: Callable[[Array, Array], Array]
    label: int

    def __call__(self, outputs: Array, targets: Array) -> Array:
        losses = self.criterion(outputs, targets)
        return jnp.where(self._chosen(targets, losses), losses, jnp.zeros_like(losses))

    def steady(self) -> _OfClass:
        """See `losses.steady`."""
        return _OfClass(steady(self.criterion), self.label)

    def output_hessian(
        self, outputs: Array, targets: Array, weights: Array
    ) -> Callable[[Array], Array]:
        """See `losses.output_hessian`."""
        weights = jnp.where(self._chosen(targets, weights), weights, jnp.zeros_like(weights))
        return output_hessian(self.criterion, outputs, targets, weights)

    def _chosen(self, targets: Array, losses: Array) -> Array:
        """Whether each target is of the class; broadcasts against losses or their weights."""
        chosen = targets == self.label
        if targets.shape != losses.shape[: targets.ndim]:
            if targets.size != len(losses):
                raise ConfigError(
                    f"the targets have shape {targets.shape} and the losses {losses.shape}; "
                    "expected one label for each loss, of which the part of a class can be taken"
                )
            chosen = chosen.reshape(-1)
        return chosen.reshape(*chosen.shape, *[1] * (losses.ndim - chosen.ndim))


@dataclass(frozen=True)
class _OfVector:
    """A function of a pytree as a function of its flat vector; it compares by value."""

    function: Callable[..., Array]
    layout: Layout

    def __call__(self, vector: Array, *rest: Any) -> Array:
        return self.function(self.layout.unflatten(vector), *rest)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "targets", "origin"],
    meta_fields=["apply", "criterion", "example_weights", "parameter_loss", "order"],
)
@dataclass(frozen=True)
class Problem:
    """The loss F(θ, t) = (1/N) Σ_n w_n(t) ℓ(f(x_n; θ), y_n) + R(θ, t) of a model on a data set.

    It is a pytree whose leaves are the data, so that `jax.jit` takes it as an argument: data are
    never compiled in, and one compilation serves all parameters and steps.

    Attributes:
        apply: `apply(params, inputs) -> outputs`, deterministic; params any pytree of floats.
        criterion: `criterion(outputs, targets) -> losses`, one loss per example, or one row of
            losses that are summed (`losses.MeanOverPositions` takes the mean). Products with the
            GGN are cheaper if its Hessian is known; see `losses.output_hessian`.
        inputs: shape (examples, ...).
        targets: shape (examples, ...); class labels if accuracy is wanted.
        example_weights: `example_weights(step, targets)`, which broadcasts against the losses; None
            gives the static loss at every step.
        parameter_loss: `parameter_loss(params, step) -> R`, the part of the loss that depends on
            the parameters alone, such as weight decay inside the loss; None for 0.
        origin: parameters about which the model is expanded (see `expanded`); None for the model
            itself.
        order: order of the expansion.

    >>> problem = Problem(
    ...     apply=lambda w, x: x @ w,
    ...     criterion=lambda outputs, targets: (outputs - targets) ** 2,
    ...     inputs=jnp.array([[1.0], [2.0]]),
    ...     targets=jnp.array([1.0, 0.0]),
    ... )
    >>> float(problem.objective(jnp.array([1.0]), step=0))
    2.0
    """

    apply: Callable[[Any, Array], Array]
    criterion: Callable[[Array, Array], Array]
    inputs: Array
    targets: Array
    example_weights: Callable[[Step, Array], Array] | None = None
    parameter_loss: Callable[[Any, Step], Array] | None = None
    origin: PyTree | None = None
    order: int = 0
    __repr__ = brief

    @classmethod
    def from_loss(cls, loss: Callable[[Any, Step], Array]) -> Problem:
        """A problem of which only the loss is known, as a function of parameters and step.

        It has a Hessian and everything derived from it. GGN, NTK and the parts of classes need
        outputs, which it does not have; data inside the function are compiled in.

        Args:
            loss: `loss(params, step)`, a scalar.

        >>> problem = Problem.from_loss(lambda params, step: jnp.sum(params**4))
        >>> float(problem.objective(jnp.array([1.0, 2.0]), step=0))
        17.0
        """
        return cls(_no_outputs, _no_outputs, jnp.zeros((0, 1)), jnp.zeros(0), None, loss)

    @property
    def has_outputs(self) -> bool:
        """Whether there is a model with data, not just a loss."""
        return self.apply is not _no_outputs

    @property
    def num_examples(self) -> int:
        """N; 0 if only a loss is known."""
        return len(self.targets)

    def outputs(self, params: PyTree) -> Float[Array, "examples *outputs"]:
        """f(x_n; θ) for every example.

        Raises:
            ConfigError: for a problem made by `from_loss`.
        """
        return self.predict(params, self.inputs)

    def predict(self, params: PyTree, inputs: Array) -> Array:
        """The outputs of the model, or of its expansion, for some inputs."""
        if self.origin is None:
            return self.apply(params, inputs)
        model = lambda params: self.apply(params, inputs)  # noqa: E731
        return _taylor(model, self.origin, params, self.order)

    def expanded(self, params: PyTree, order: int) -> Problem:
        """The same problem with the model replaced by its Taylor expansion in the parameters.

        Order 1 is the linearised network (Lee and others, 2019, arXiv 1902.06720, §2.3), whose loss
        is convex if the criterion is; order 2 is quadratic in the parameters.

        Args:
            params: parameters about which the model is expanded.
            order: 1 or 2.

        Raises:
            ValueError: for another order.

        >>> problem = Problem(
        ...     lambda w, x: jnp.exp(w * x), jnp.subtract, jnp.ones(1), jnp.zeros(1)
        ... )
        >>> [float(problem.expanded(jnp.zeros(()), order).objective(2.0, 0)) for order in (1, 2)]
        [3.0, 5.0]
        """
        if order not in (1, 2):
            raise ValueError(f"order is {order}; expected 1 or 2")
        return replace(self, origin=params, order=order)

    def weigh(self, losses: Array, step: Step) -> Float[Array, ""]:
        """(1/N) Σ_n w_n(t) ℓ_n from the losses returned by `criterion`."""
        if self.example_weights is not None:
            losses = losses * self.example_weights(step, self.targets).astype(losses.dtype)
        return jnp.sum(losses) / len(losses)

    def loss(self, outputs: Float[Array, "examples *outputs"], step: Step) -> Float[Array, ""]:
        """The loss at this step as a function of the outputs."""
        return self.weigh(self.criterion(outputs, self.targets), step)

    def output_hessian(
        self, outputs: Float[Array, "examples *outputs"], step: Step
    ) -> Callable[[Array], Array]:
        """Products with the Hessian of `loss` with respect to the outputs.

        It is the weighted Hessian of each example's loss; see `losses.output_hessian`.
        """
        weights = loss_weights(self, outputs, step)
        return output_hessian(self.criterion, outputs, self.targets, weights)

    def objective(self, params: PyTree, step: Step) -> Float[Array, ""]:
        """The loss that is minimised at this step, F(θ, t)."""
        if not self.has_outputs:
            return self.penalty(params, step)
        return self._with_penalty(self.loss(self.outputs(params), step), params, step)

    def penalty(self, params: PyTree, step: Step) -> Float[Array, ""]:
        """R(θ, t), the part of the loss that depends on the parameters alone."""
        return jnp.zeros(()) if self.parameter_loss is None else self.parameter_loss(params, step)

    def _with_penalty(self, loss: Array, params: PyTree, step: Step) -> Float[Array, ""]:
        return loss if self.parameter_loss is None else loss + self.penalty(params, step)

    def static_objective(self, params: PyTree, step: Step = 0) -> Float[Array, ""]:
        """The loss with all weights 1; only `parameter_loss` depends on the step."""
        return self.static().objective(params, step)

    def evaluate(self, params: PyTree, step: Step) -> tuple[Float[Array, ""], Evaluation]:
        """The loss at this step with static loss and accuracy, all from one forward pass."""
        if not self.has_outputs:
            loss = self.penalty(params, step)
            return loss, Evaluation(loss, jnp.full_like(loss, jnp.nan), None)
        outputs = self.outputs(params)
        losses = self.criterion(outputs, self.targets)
        accuracy = jnp.full((), jnp.nan, losses.dtype)
        labelled = jnp.issubdtype(self.targets.dtype, jnp.integer)
        if labelled and self.targets.shape == outputs.shape[:-1]:
            hits = jnp.argmax(outputs, axis=-1) == self.targets
            accuracy = jnp.mean(hits, dtype=losses.dtype)
        static = self._with_penalty(jnp.sum(losses) / len(losses), params, step)
        loss = self._with_penalty(self.weigh(losses, step), params, step)
        return loss, Evaluation(static, accuracy, outputs)

    def take(self, indices: Int[Array | np.ndarray, " batch"]) -> Problem:
        """The same problem on some of the examples."""
        inputs, targets = _rows((self.inputs, self.targets), indices)
        return replace(self, inputs=inputs, targets=targets)

    def static(self) -> Problem:
        """The same problem with the static loss as its objective."""
        return replace(self, example_weights=None)

    def steady(self) -> Problem:
        """The same problem with its loss in a form whose derivatives keep their digits.

        It is equal up to rounding; see `losses.steady`.
        """
        return replace(self, criterion=steady(self.criterion))

    def of_class(self, label: int) -> Problem:
        """The same problem with the loss restricted to the examples of one class.

        It is still divided by the number of all examples: the parts of all classes sum to the whole
        loss, except for `parameter_loss`, which belongs to no class.

        >>> problem = Problem(
        ...     apply=lambda w, x: x * w,
        ...     criterion=lambda outputs, targets: outputs**2,
        ...     inputs=jnp.array([1.0, 2.0, 3.0]),
        ...     targets=jnp.array([0, 1, 0]),
        ... )
        >>> [round(float(problem.of_class(c).objective(3.0, step=0)), 3) for c in (0, 1)]
        [30.0, 12.0]
        >>> float(problem.objective(3.0, step=0))
        42.0
        """
        return replace(self, criterion=_OfClass(self.criterion, label), parameter_loss=None)

    def flat(self, layout: Layout) -> Problem:
        """The same problem as a function of one flat vector.

        Equal problems stay equal, so that they share compiled programs.
        """
        loss = self.parameter_loss
        return replace(
            self,
            apply=_OfVector(self.apply, layout) if self.has_outputs else self.apply,
            origin=None if self.origin is None else layout.flatten(self.origin),
            parameter_loss=None if loss is None else _OfVector(loss, layout),
        )

    def ravel(self, params: PyTree) -> tuple[Problem, Float[Array, " params"]]:
        """The same problem as a function of one flat vector, and `params` as that vector."""
        layout = Layout.of(params)
        return self.flat(layout), layout.flatten(params)


def loss_weights(problem: Problem, outputs: Array, step: Step) -> Array:
    """The factor of each loss of `criterion` in the loss of a step, in the shape of the losses."""
    losses = jax.eval_shape(problem.criterion, outputs, problem.targets)
    # The loss of the step is linear in them: the factors are its derivatives.
    return jax.grad(problem.weigh)(jnp.zeros(losses.shape, losses.dtype), step)


@partial(jax.jit, inline=True)
def _rows(
    arrays: tuple[Array, ...], indices: Int[Array | np.ndarray, " batch"]
) -> tuple[Array, ...]:
    """Some rows of arrays, as one compiled function: indexing outside of one compiles ten."""
    return tuple(array[indices] for array in arrays)


def _taylor(function: Callable[[Any], Array], origin: PyTree, params: PyTree, order: int) -> Array:
    """f(θ₀) + f'[d] + ½ f''[d, d], d = θ - θ₀, up to the order."""
    distance = jax.tree.map(jnp.subtract, params, origin)

    def slope(at: PyTree) -> tuple[Array, Array]:
        return jax.jvp(function, (at,), (distance,))

    if order == 1:
        value, first = slope(origin)
        return value + first
    (value, first), (_, second) = jax.jvp(slope, (origin,), (distance,))
    return value + first + second / 2


def _no_outputs(*_: Any) -> Array:
    """Stands for the model of a problem without one."""
    raise ConfigError(
        "the problem was made by Problem.from_loss and has no outputs; GGN, NTK and parts of "
        "classes need Problem(apply, criterion, inputs, targets)"
    )
