"""How the time average of an optimizer moves, and at which curvature it begins to oscillate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dlf_dynamics.analysis.stability.linearised import Hyperparameters, linear_maps
from dlf_dynamics.analysis.stability.threshold import instability_threshold
from dlf_dynamics.analysis.theories.metric import Metric, State
from dlf_dynamics.optimizers import has_mean_squares, is_adaptive
from dlf_dynamics.reprs import brief

_NOT_RMSPROP = (
    "the optimizer's updates are not those of optax.rmsprop at a constant learning rate, without "
    "momentum, centring, bias correction, clipping and weight decay; no equations are known for "
    "others"
)


@dataclass(frozen=True)
class Averaged:
    """An averaged update rule, θ' = -drift ∇F, stable up to the curvature 2 / critical_step.

    Between two steps both are interpolated linearly.

    Attributes:
        first: step of the first entry, which also holds before it, as the last one does after it.
        drift: -θ' for a gradient of 1, per step: η for gradient descent, η/(1 - β) with momentum.
        critical_step: 2 over the critical eigenvalue: the learning rate of gradient descent that
            becomes unstable at the same curvature.

    >>> Averaged.constant(0.5).at(3, 0.25)
    (0.5, 4.0)
    """

    first: int
    drift: Float[np.ndarray, " steps"]
    critical_step: Float[np.ndarray, " steps"]
    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuses invalid numbers.

        Raises:
            ValueError: unless both have the same length, and all are finite and at least 0.
        """
        numbers = np.stack([self.drift, self.critical_step])
        if not (numbers.size and np.all(np.isfinite(numbers)) and np.all(numbers >= 0)):
            raise ValueError(
                f"the drift is {self.drift} and the critical step {self.critical_step}; expected "
                "learning rates that are finite and at least 0"
            )

    @classmethod
    def constant(cls, learning_rate: float) -> Averaged:
        """Gradient descent with a constant learning rate."""
        rate = np.array([float(learning_rate)])
        return cls(0, rate, rate)

    def at(self, step: int, fraction: float = 0.0) -> tuple[float, float]:
        """Drift and critical eigenvalue; infinite where the learning rate is 0."""
        indices = np.clip(step - self.first + np.array([0, 1]), 0, len(self.drift) - 1)
        weights = np.array([1 - fraction, fraction])
        drift, critical = (
            float(weights @ column[indices]) for column in (self.drift, self.critical_step)
        )
        return drift, 2 / critical if critical > 0 else float("inf")

    def speed(self, step: int) -> float:
        """How much faster it moves than gradient descent with the same threshold.

        This is (1 + β)/(1 - β) for heavy ball, 0 at rest; the larger of a step and the next one.

        >>> round(Averaged(0, np.array([1.0]), 2 / np.array([38.0])).speed(0), 9)
        19.0
        """
        ends = [self.at(step), self.at(step, 1.0)]
        return max(drift * min(critical, 1e300) / 2 for drift, critical in ends)

    def lowest(self, step: int) -> float:
        """Lowest critical eigenvalue until the next step."""
        return min(self.at(step)[1], self.at(step, 1.0)[1])

    def metric(self, mean_squares: Array) -> None:
        """None: the rule has no metric."""

    def begin(self, params: Array) -> State:
        """The state at the first step."""
        return State(params, params[:0])


@dataclass(frozen=True)
class RMSProp:
    """Averaged RMSProp, θ' = -P(ν)⁻¹ ∇F, stable up to the eigenvalue 2 of P⁻¹ H.

    ν' = (1 - β)/β (∇F² - ν) where nothing oscillates, with P = (√ν + ε)/η, or √(ν + ε)/η. The
    learning rate is constant.

    Attributes:
        learning_rate: η.
        decay: β of the mean squares.
        epsilon: ε.
        mean_squares: ν by which the update of the first step divides, including its gradient; in
            optax it is found in the state after this update.
        in_root: whether ε is added within the root, as optax does by default.
    """

    learning_rate: float
    decay: float
    epsilon: float
    mean_squares: Float[np.ndarray, " params"]
    in_root: bool = True
    __repr__ = brief

    def __post_init__(self) -> None:
        """Refuses numbers for which the metric is not defined.

        Raises:
            ValueError: unless P and its derivative are finite and positive.
        """
        numbers = self.learning_rate, self.decay, self.epsilon
        within = 0 < self.learning_rate < np.inf and 0 < self.decay < 1 and self.epsilon >= 0
        if not (within and self.epsilon < np.inf):
            raise ValueError(
                f"learning rate, decay and ε are {numbers}; expected a learning rate above 0, a "
                "decay between 0 and 1 and an ε of 0 or more"
            )
        squares = np.asarray(self.mean_squares, float)
        least = np.min(squares) if squares.size else 0.0
        smooth = least + self.epsilon * self.in_root > 0
        if not (np.all(np.isfinite(squares)) and least >= 0 and smooth):
            raise ValueError(
                f"the mean squares are {squares}; expected finite ones above 0 (start some steps "
                "later), or of 0 with ε in the root"
            )

    @classmethod
    def of(
        cls, optimizer: optax.GradientTransformation, mean_squares: Float[np.ndarray, " params"]
    ) -> RMSProp:
        """The rule of `optax.rmsprop` with a constant learning rate, read off its updates.

        Args:
            optimizer: an optax transformation.
            mean_squares: ν, as above.

        Raises:
            ValueError: when its updates are different: with momentum, centred, with bias
                correction, a schedule, clipping, or weight decay.

        >>> rule = RMSProp.of(optax.rmsprop(0.01, decay=0.99, eps=1e-6), np.ones(2))
        >>> rule.learning_rate, rule.decay, rule.epsilon
        (0.01, 0.99, 1e-06)
        """
        return cls(mean_squares=mean_squares, **_rmsprop_numbers(optimizer))

    @property
    def filling(self) -> float:
        """(1 - β)/β: how fast ν approaches ∇F²."""
        return (1 - self.decay) / self.decay

    def at(self, step: int, fraction: float = 0.0) -> tuple[float, float]:
        """Drift and critical eigenvalue, in the metric."""
        return 1.0, 2.0

    def speed(self, step: int) -> float:
        """How much faster w or ν moves than gradient descent with the same threshold."""
        return max(1.0, self.filling)

    def lowest(self, step: int) -> float:
        """Eigenvalue that the decay of ν may raise to the critical one until the next step."""
        return 2 * float(np.exp(-self.filling / 2))

    def begin(self, params: Array) -> State:
        """The state at the first step.

        Raises:
            ValueError: when there is not a mean square for each parameter.
        """
        if self.mean_squares.shape != params.shape:
            raise ValueError(
                f"mean squares have shape {self.mean_squares.shape}; expected that of the "
                f"parameters, {params.shape}"
            )
        return State(params, jnp.asarray(self.mean_squares, params.dtype))

    def metric(self, mean_squares: Array) -> Metric:
        """P at these mean squares."""
        return _metric(
            mean_squares, self.learning_rate, self.epsilon, self.filling, in_root=self.in_root
        )


@partial(jax.jit, static_argnames="in_root")
def _metric(
    mean_squares: Array, rate: float, epsilon: float, filling: float, *, in_root: bool
) -> Metric:
    root = jnp.sqrt(mean_squares + (epsilon if in_root else 0))
    divisor = root if in_root else root + epsilon
    # A parameter with ν = 0 has no gradient, and its P does not change.
    sensitivity = jnp.where(root > 0, filling / (2 * rate * root), 0)
    pace = jnp.asarray(filling, root.dtype)
    return Metric(mean_squares, jnp.sqrt(rate / divisor), sensitivity, pace)


def averaged(
    optimizer: optax.GradientTransformation | float,
    steps: range,
    *,
    hyperparameters: Hyperparameters = None,
) -> Averaged:
    """The average motion of an optimizer at consecutive steps.

    Where the update is linear in the gradients, its velocity under a constant gradient and its
    critical eigenvalue determine the average motion: heavy ball and Nesterov drift with η/(1 - β).
    The delay of a momentum behind a schedule or the gradient is not included.

    Args:
        optimizer: an optax transformation, or the learning rate of gradient descent.
        steps: the consecutive steps.
        hyperparameters: hyperparameters in its state, see `instability_threshold`.

    Raises:
        ValueError: when no equations for the average of this optimizer are known.

    >>> rule = averaged(optax.sgd(0.1, momentum=0.9), range(2))
    >>> tuple(round(number, 9) for number in rule.at(0))
    (1.0, 38.0)
    """
    if isinstance(optimizer, float | int):
        return Averaged.constant(optimizer)
    if is_adaptive(optimizer):
        raise ValueError(
            "the optimizer divides by a root mean square of the gradients; expected gradient "
            "descent, heavy ball or Nesterov (the function central_flow also takes rules.RMSProp)"
        )
    numbers = np.arange(steps.start, max(steps.stop, steps.start + 1))
    thresholds = instability_threshold(optimizer, numbers, hyperparameters=hyperparameters)
    constant, linear = linear_maps(optimizer, numbers, hyperparameters)
    drift = np.array([_drift(*pair) for pair in zip(constant, linear, strict=True)])
    return Averaged(steps.start, drift, 2 / thresholds)


def _drift(constant: Float[np.ndarray, "n n"], linear: Float[np.ndarray, "n n"]) -> float:
    """Velocity against a gradient of 1, once the state is at rest.

    Raises:
        ValueError: when the parameter moves without a gradient, or the state never rests.
    """
    if abs(constant[0, 0] - 1) > 1e-12 or np.any(np.abs(constant[1:, 0]) > 1e-12):
        raise ValueError(
            "the update moves parameters without a gradient (weight decay outside of the loss), "
            "which the averaged equations do not include; put the decay into the loss"
        )
    memory, kick = constant[1:, 1:], linear[:, 0]
    if len(memory) and np.max(np.abs(np.linalg.eigvals(memory))) > 1 - 1e-9:
        raise ValueError("the optimizer never forgets a gradient: it has no average velocity")
    rest = np.linalg.solve(np.eye(len(memory)) - memory, kick[1:])
    return abs(float(kick[0] + constant[0, 1:] @ rest))


def _rmsprop_numbers(optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Learning rate, decay and ε of updates that are RMSProp's at all sizes of the gradient.

    Raises:
        ValueError: when they are not.
    """
    (change,), (after,) = _updated(optimizer, np.array([1.0]), np.array([1e60]))
    decay, rate = float(after / 1e60), float(-change * after**0.5)
    (change,), _ = _updated(optimizer, np.array([1e-100]), np.zeros(1))
    at_rest = float(-rate * 1e-100 / change) if change else np.nan
    at_rest = at_rest if at_rest > 1e-90 else 0.0
    rng = np.random.default_rng(0)
    sizes, roots = 10 ** rng.uniform(-12, 12, (2, 60))
    # ε matters where both are as small as it is.
    sizes[:20], roots[:20] = (1e-12 * (at_rest or 1) * part[:20] for part in (sizes, roots))
    roots[::7] = 0
    gradients, squares = sizes * rng.choice([-1, 1], 60), roots**2
    changes, afters = _updated(optimizer, gradients, squares)
    filled = decay * squares + (1 - decay) * gradients**2
    for in_root, epsilon in ((True, at_rest**2), (False, at_rest)):
        divisor = np.sqrt(filled + epsilon) if in_root else np.sqrt(filled) + epsilon
        expected = np.stack([-rate * gradients / divisor, filled])
        if np.allclose(np.stack([changes, afters]), expected, rtol=1e-9, atol=0):
            # Rounded to the digits that are certain, so that 0.01 is 0.01.
            names = ("learning_rate", "decay", "epsilon")
            numbers = (float(f"{number:.13g}") for number in (rate, decay, epsilon))
            return {**dict(zip(names, numbers, strict=True)), "in_root": in_root}
    raise ValueError(_NOT_RMSPROP)


def _updated(
    optimizer: optax.GradientTransformation,
    gradients: Float[np.ndarray, " n"],
    squares: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Changes of parameters, and mean squares, after an update from given mean squares.

    Raises:
        ValueError: when the optimizer has more state than a mean square of each parameter, or
            treats a vector differently from a matrix.
    """
    with jax.enable_x64(True):

        def form(numbers: np.ndarray) -> dict[str, Array]:
            return {"vector": jnp.asarray(numbers), "matrix": jnp.asarray(numbers)[:, None]}

        params = form(1 + np.arange(len(gradients)) / 7)
        state = optimizer.init(params)
        leaves, structure = jax.tree.flatten(state)
        if len(leaves) != 2 or not has_mean_squares(state):
            raise ValueError(_NOT_RMSPROP)
        state = jax.tree.unflatten(structure, jax.tree.leaves(form(squares)))
        changes, after = optimizer.update(form(gradients), state, params)
        arrays = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves((changes, after))]
    if len(arrays) != 4 or not all(map(np.array_equal, arrays[::2], arrays[1::2])):
        raise ValueError(_NOT_RMSPROP)
    return arrays[0], arrays[2]
