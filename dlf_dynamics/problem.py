"""`Problem`: a model, a loss, its weights and the data, from which every operator is derived."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

Step = Int[Array, ""] | int


class Evaluation(NamedTuple):
    """What one forward pass tells beside the loss that is minimised."""

    static_loss: Float[Array, ""]
    accuracy: Float[Array, ""]


@dataclass(frozen=True)
class _OfClass:
    """A criterion that is 0 for the examples of all other classes.

    It compares by value, so that functions compiled for a class serve every problem of it.
    """

    criterion: Callable[[Array, Array], Array]
    label: int

    def __call__(self, outputs: Array, targets: Array) -> Array:
        losses = self.criterion(outputs, targets)
        chosen = (targets == self.label).reshape(-1, *[1] * (losses.ndim - 1))
        return jnp.where(chosen, losses, jnp.zeros_like(losses))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "targets"],
    meta_fields=["apply", "criterion", "example_weights"],
)
@dataclass(frozen=True)
class Problem:
    """The loss F(θ, t) = (1/N) Σ_n w_n(t) ℓ(f(x_n; θ), y_n) of a model on a data set.

    It is a pytree whose leaves are the data, so that it goes through `jax.jit` as an argument:
    data are never compiled in, and one compilation serves all parameters and steps.

    Attributes:
        apply: `apply(params, inputs) -> outputs`, deterministic; params any pytree of floats.
        criterion: `criterion(outputs, targets) -> losses`, one loss per example, or one row.
        inputs: shape (examples, ...).
        targets: shape (examples, ...); class labels where accuracy is wanted.
        example_weights: `example_weights(step, targets)`, to broadcast against the losses; none
            gives the static loss at every step.

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

    def outputs(self, params: PyTree) -> Float[Array, "examples outputs"]:
        """f(x_n; θ) for every example."""
        return self.apply(params, self.inputs)

    def weigh(self, losses: Array, step: Step) -> Float[Array, ""]:
        """(1/N) Σ_n w_n(t) ℓ_n of the losses that `criterion` gave."""
        if self.example_weights is not None:
            losses = losses * self.example_weights(step, self.targets).astype(losses.dtype)
        return jnp.sum(losses) / len(losses)

    def loss(self, outputs: Float[Array, "examples outputs"], step: Step) -> Float[Array, ""]:
        """The loss at this step as a function of the outputs."""
        return self.weigh(self.criterion(outputs, self.targets), step)

    def objective(self, params: PyTree, step: Step) -> Float[Array, ""]:
        """The loss that is minimised at this step, F(θ, t)."""
        return self.loss(self.outputs(params), step)

    def static_objective(self, params: PyTree, step: Step = 0) -> Float[Array, ""]:
        """The loss with all weights 1; `step` is accepted and ignored."""
        losses = self.criterion(self.outputs(params), self.targets)
        return jnp.sum(losses) / len(losses)

    def evaluate(self, params: PyTree, step: Step) -> tuple[Float[Array, ""], Evaluation]:
        """The loss at this step with static loss and accuracy, all of one forward pass."""
        outputs = self.outputs(params)
        losses = self.criterion(outputs, self.targets)
        hits = jnp.argmax(outputs, axis=-1) == self.targets
        evaluation = Evaluation(
            static_loss=jnp.sum(losses) / len(losses),
            accuracy=jnp.mean(hits, dtype=losses.dtype),
        )
        return self.weigh(losses, step), evaluation

    def take(self, indices: Int[Array, " batch"]) -> Problem:
        """The same problem on some of the examples."""
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def static(self) -> Problem:
        """The same problem with the static loss as its objective."""
        return replace(self, example_weights=None)

    def of_class(self, label: int) -> Problem:
        """The same problem whose loss is the part due to the examples of one class.

        It stays divided by the number of all examples: the parts of all classes sum to the whole.

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
        return replace(self, criterion=_OfClass(self.criterion, label))

    def ravel(self, params: PyTree) -> tuple[Problem, Float[Array, " params"]]:
        """The same problem as a function of one flat vector, and `params` as that vector."""
        vector, unravel = ravel_pytree(params)
        apply = self.apply
        flat = replace(self, apply=lambda vector, inputs: apply(unravel(vector), inputs))
        return flat, vector
