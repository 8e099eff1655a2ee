"""Self-stabilization: two numbers in place of all parameters, for one mode at the edge.

The oscillation along the top eigenvector lowers the sharpness, which drift raises (Damian, Nichani
and Lee 2022, arXiv 2209.15594).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.bifurcation.directions import (
    Vector,
    hessian_product,
    second_eigenvalue,
    top_eigenvector,
    unit_vector,
)
from dlf_dynamics.analysis.bifurcation.flip import Objective, as_function
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

_CHUNK = 32
"""Steps of a changing loss that one compiled call evaluates."""


@dataclass(frozen=True)
class SelfStabilization:
    """x_(t+1) = -(1 + η y_t) x_t, y_(t+1) = y_t + η (α - β x_t²/2), and what follows from it.

    Row 0 is the start, and row k the state k updates later. All columns are NaN where the
    prediction is refused, and from the step on at which it left the edge; `message` says why.

    Attributes:
        steps: t.
        displacement: x_t, along the eigenvector, of the iterate from the centre.
        sharpness: 2/η + y_t, the curvature along the eigenvector at the centre.
        loss: loss at the centre, to first order in its displacement: F(w, t) + ∇F·(w_t - w).
        push: Σ_(s<t) x_s²/2; the centre is w_t = w - η (k g + push n) with g and n below.
        centre: w, about which the loss was expanded.
        eigenvector: u, of unit length, at the start.
        gradient: g, the part of ∇F(w) that is orthogonal to u.
        sharpness_gradient: n, the part of ∇S = D³F[u, u, ·] that is orthogonal to u.
        learning_rate: η.
        eigenvalue: uᵀHu at the start.
        residual: ‖Hu - λu‖ of a fresh product.
        second_eigenvalue: largest eigenvalue on the complement of u.
        converged: whether the eigenvector converged and is the only one at or beyond 2/η.
        message: outcome, in words.
    """

    steps: Int[np.ndarray, " rows"]
    displacement: Float[np.ndarray, " rows"]
    sharpness: Float[np.ndarray, " rows"]
    loss: Float[np.ndarray, " rows"]
    push: Float[np.ndarray, " rows"]
    centre: Float[np.ndarray, " params"]
    eigenvector: Float[np.ndarray, " params"]
    gradient: Float[np.ndarray, " params"]
    sharpness_gradient: Float[np.ndarray, " params"]
    learning_rate: float
    eigenvalue: float
    residual: float
    second_eigenvalue: float
    converged: bool
    message: str
    __repr__ = brief

    @property
    def alpha(self) -> float:
        """α = -∇F·n, the rate at which drift alone raises the sharpness."""
        return float(-self.gradient @ self.sharpness_gradient)

    @property
    def beta(self) -> float:
        """β = ‖n‖²; an oscillation x lowers the sharpness at the rate β x²/2."""
        return float(self.sharpness_gradient @ self.sharpness_gradient)

    @property
    def balance(self) -> float:
        """δ = √(2α/β), the |x| at which sharpening and stabilization balance; NaN unless α > 0."""
        balanced = self.alpha > 0 and self.beta > 0
        return float(np.sqrt(2 * self.alpha / self.beta)) if balanced else float("nan")

    @property
    def energy(self) -> Float[np.ndarray, " rows"]:
        """x_t²."""
        return self.displacement**2

    @property
    def predicted_loss(self) -> Float[np.ndarray, " rows"]:
        """The loss averaged over the oscillation: the loss at the centre plus ½ S_t x_t²."""
        return self.loss + self.sharpness * self.energy / 2

    def centres(self, rows: Int[np.ndarray, " some"]) -> Float[np.ndarray, "some params"]:
        """w_t at some rows; NaN where nothing is predicted."""
        known = np.where(np.isfinite(self.displacement[rows]), rows, np.nan)
        moved = np.outer(known, self.gradient)
        moved += np.outer(self.push[rows], self.sharpness_gradient)
        return self.centre - self.learning_rate * moved


def self_stabilization(
    objective: Objective,
    params: Vector,
    learning_rate: float,
    steps: int,
    *,
    step: Step = 0,
    displacement: float | Vector | Float[np.ndarray, " params"] | None = None,
    eigenvector: Vector | Float[np.ndarray, " params"] | None = None,
    key: PRNGKeyArray | None = None,
    tol: float | None = None,
) -> SelfStabilization:
    """Gradient descent at the edge by the cubic expansion of its loss (Eq. 3 of the paper).

    y is the sharpness minus 2/η at the centre, n = ∇S - (u·∇S) u with ∇S = D³F[u, u, ·], α = -∇F·n
    and β = ‖n‖². All are evaluated at the start and then kept fixed. If the loss changes with the
    step, the loss and the sharpness at the start are followed exactly, unlike in the paper: y also
    changes by uᵀ(H(w, t+1) - H(w, t))u, whereas α and β remain those of the first step.

    It assumes one mode at the edge, a gap between it and the rest of the spectrum, small η y, small
    x, and that the gradient and n lie where the Hessian is nearly 0, so that nothing relaxes along
    the way. It applies to gradient descent with a constant learning rate: momentum, adaptive and
    mini-batch updates are different maps.

    The result is NaN instead of numbers where the eigenvector does not converge or its eigenvalue
    is not positive, and where a second direction is at or beyond 2/η, or not surely below. The
    prediction ends where |η y| reaches 1: there is no oscillation of period 2 any more (below), or
    the sharpness is half as much again as 2/η (above).

    Args:
        objective: a problem of flat parameters, or a function of them.
        params: w, the centre, for example the mean ¼θ_(t-1) + ½θ_t + ¼θ_(t+1); the iterate itself
            where no displacement is given.
        learning_rate: η.
        steps: number of updates.
        step: step of the problem's weights at the start.
        displacement: x at the start, or a vector whose part along u it is, such as the deviation of
            the iterate from the centre. None computes both: x = u·∇F/λ, and the centre is the
            iterate without it.
        eigenvector: u, of any length; none computes the top one.
        key: PRNG key for the random vectors of the eigensolver; none means `jax.random.key(0)`.
        tol: largest residual of a converged eigenvector, relative to λ; none means eps^0.4.

    Raises:
        ValueError: when the learning rate is not positive, the number of steps is negative, or a
            vector has another shape.

    >>> loss = lambda p: p[1] * p[0] ** 2 / 2 - 0.01 * p[1]
    >>> theory = self_stabilization(loss, jnp.array([0.0, 6.5]), 0.3, 200, displacement=0.1)
    >>> round(theory.alpha, 9), round(theory.beta, 9), round(theory.balance, 6)
    (0.01, 1.0, 0.141421)
    """
    params = jnp.asarray(params)
    if not learning_rate > 0 or steps < 0:
        raise ValueError(
            f"learning_rate is {learning_rate} and steps {steps}; expected more than 0 and at "
            "least 0"
        )
    accuracy = float(jnp.finfo(params.dtype).eps) ** 0.4 if tol is None else tol
    key = jax.random.key(0) if key is None else key
    loss = as_function(objective, step)
    start = _started(loss, params, displacement, eigenvector, accuracy, key)
    second, high = float("nan"), float("nan")
    complaint = start.complaint(accuracy)
    if not complaint:
        threshold = 2 / learning_rate
        second, (_, high) = second_eigenvalue(
            loss, start.centre, start.direction, start.eigenvalue, threshold, accuracy, key
        )
        if not high < threshold:
            complaint = (
                f"a second direction may be at or beyond 2/η = {threshold:.6g}: its eigenvalue is "
                f"{second:.6g}, at most {high:.6g}; this is a theory of one mode"
            )
    return _followed(objective, start, float(learning_rate), steps, step, second, complaint)


class _Start(NamedTuple):
    """Where the loss is expanded, and its derivatives there.

    Attributes:
        centre: w.
        direction: u.
        displacement: x at the start.
        gradient: ∇F.
        product: Hu.
        bend: ∇S = D³F[u, u, ·].
    """

    centre: Vector
    direction: Vector
    displacement: float
    gradient: np.ndarray
    product: np.ndarray
    bend: np.ndarray

    @property
    def eigenvalue(self) -> float:
        """uᵀHu."""
        return float(np.asarray(self.direction, float) @ self.product)

    @property
    def residual(self) -> float:
        """‖Hu - λu‖."""
        rest = self.product - self.eigenvalue * np.asarray(self.direction, float)
        return float(np.linalg.norm(rest))

    def complaint(self, tol: float) -> str:
        """Why nothing is predicted; empty where there is a prediction."""
        parts = (self.gradient, self.product, self.bend, np.asarray(self.displacement))
        if not all(np.all(np.isfinite(part)) for part in parts):
            return "derivatives or displacement are not finite"
        if not (self.eigenvalue > 0 and self.residual <= tol * self.eigenvalue):
            return (
                f"no eigenvector of positive curvature: eigenvalue {self.eigenvalue:.6g}, residual "
                f"{self.residual:.1e}"
            )
        return ""

    def across(self, vector: np.ndarray) -> np.ndarray:
        """The part of a vector that is orthogonal to u."""
        direction = np.asarray(self.direction, float)
        return vector - (direction @ vector) * direction


def _started(
    loss: Partial,
    params: Vector,
    displacement: float | Vector | np.ndarray | None,
    eigenvector: Vector | np.ndarray | None,
    tol: float,
    key: PRNGKeyArray,
) -> _Start:
    top = _top(loss, params, tol, key) if eigenvector is None else eigenvector
    direction = unit_vector(top, params)
    derivatives = _derivatives(loss, params, direction)
    gradient, product, bend = (np.asarray(part, float) for part in derivatives)
    if displacement is not None:
        given = np.asarray(displacement, float)
        if given.shape not in ((), params.shape):
            raise ValueError(
                f"the displacement has shape {given.shape}; expected a number or {params.shape}"
            )
        along = float(given if given.ndim == 0 else np.asarray(direction, float) @ given)
        return _Start(params, direction, along, gradient, product, bend)
    # A step of Newton's method along u, to where the gradient has no part along it.
    along = float(np.asarray(direction, float) @ gradient)
    along /= float(np.asarray(direction, float) @ product)
    centre = params - jnp.asarray(along, params.dtype) * direction
    if not np.isfinite(along):
        return _Start(params, direction, along, gradient, product, bend)
    return _started(loss, centre, along, eigenvector, tol, key)


def _top(loss: Partial, params: Vector, tol: float, key: PRNGKeyArray) -> Vector:
    """The top eigenvector, with the sign that makes its largest entry positive."""
    vector = np.asarray(top_eigenvector(loss, params, tol, key))
    return jnp.asarray(vector * np.sign(vector[np.argmax(np.abs(vector))]))


@jax.jit
def _derivatives(loss: Partial, params: Vector, direction: Vector) -> tuple[Vector, Vector, Vector]:
    """∇F, Hu and D³F[u, u, ·]."""

    def gradient(s: Array) -> Vector:
        return jax.grad(loss)(params + s * direction)

    def along(s: Array) -> tuple[Vector, Vector]:
        return jax.jvp(gradient, (s,), (jnp.ones_like(s),))

    zero = jnp.zeros((), params.dtype)
    (at, product), (_, bend) = jax.jvp(along, (zero,), (jnp.ones_like(zero),))
    return at, product, bend


def _followed(
    objective: Objective,
    start: _Start,
    rate: float,
    count: int,
    step: Step,
    second: float,
    complaint: str,
) -> SelfStabilization:
    """The map of x and y, iterated."""
    steps = int(step) + np.arange(count + 1)
    gradient, bend = start.across(start.gradient), start.across(start.bend)
    columns = np.full((4, count + 1), np.nan)
    message = complaint
    if not complaint:
        losses, curvatures = _at_rest(objective, start, steps)
        forces = -float(gradient @ bend), float(bend @ bend)
        columns, left = _iterated(start.displacement, curvatures, rate, forces)
        gone = -rate * (np.arange(count + 1) * (gradient @ gradient) + columns[2] * -forces[0])
        columns[3] = losses + gone
        message = f"left the edge at step {steps[left]}" if left <= count else "to the end"
    displacement, sharpness, push, loss = columns
    return SelfStabilization(
        steps=steps,
        displacement=displacement,
        sharpness=sharpness,
        loss=loss,
        push=push,
        centre=np.asarray(start.centre),
        eigenvector=np.asarray(start.direction),
        gradient=gradient,
        sharpness_gradient=bend,
        learning_rate=rate,
        eigenvalue=start.eigenvalue,
        residual=start.residual,
        second_eigenvalue=second,
        converged=not complaint,
        message=message,
    )


def _iterated(
    displacement: float,
    curvatures: Float[np.ndarray, " rows"],
    rate: float,
    forces: tuple[float, float],
) -> tuple[Float[np.ndarray, "4 rows"], int]:
    """x, sharpness and Σ x²/2 of each row, an empty column, and the row at which it ends."""
    alpha, beta = forces
    columns = np.full((4, len(curvatures)), np.nan)
    moved, push = displacement, 0.0
    for row, curvature in enumerate(curvatures):
        sharpness = curvature + rate * (alpha * row - beta * push)
        factor = rate * sharpness - 1  # 1 + η y
        if not (0 < factor < 2 and np.isfinite(moved)):
            return columns, row
        columns[:3, row] = moved, sharpness, push
        push += moved**2 / 2
        moved *= -factor
    return columns, len(curvatures)


def _at_rest(
    objective: Objective, start: _Start, steps: Int[np.ndarray, " rows"]
) -> tuple[np.ndarray, np.ndarray]:
    """Loss and curvature along u at the start, by the loss of each step."""
    if not (
        isinstance(objective, Problem) and (objective.example_weights or objective.parameter_loss)
    ):
        loss = float(as_function(objective, 0)(start.centre))
        return np.full(len(steps), loss), np.full(len(steps), start.eigenvalue)
    columns = []
    for first in range(0, len(steps), _CHUNK):
        chunk = steps[first : first + _CHUNK]
        padded = np.pad(chunk, (0, _CHUNK - len(chunk)), mode="edge").astype(np.int32)
        column = _in_time(objective, start.centre, start.direction, jnp.asarray(padded))
        columns.append(np.asarray(column, float)[:, : len(chunk)])
    losses, curvatures = np.concatenate(columns, axis=1)
    return losses, curvatures


@jax.jit
def _in_time(
    problem: Problem, centre: Vector, direction: Vector, steps: Int[Array, " steps"]
) -> Float[Array, "2 steps"]:
    def at(step: Int[Array, ""]) -> Float[Array, " 2"]:
        loss = as_function(problem, step)
        product = hessian_product(loss, centre, direction)
        return jnp.stack([loss(centre), jnp.vdot(direction, product)])

    return jax.lax.map(at, steps).T
