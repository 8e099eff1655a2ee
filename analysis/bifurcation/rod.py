"""The rod equation: the period-2 oscillation about a centre that is itself moving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator, minres

from dlf_dynamics.analysis.bifurcation.flip import Objective, Vector, as_function
from dlf_dynamics.analysis.linalg.vectors import rounding
from dlf_dynamics.problem import Step
from dlf_dynamics.reprs import brief

_FORCING = 0.1
"""Largest relative residual of the linear equations; near the solution, the rod equation's."""

_HALVINGS = 20
"""Halvings of a correction after which the search gives up."""

_VANISHED = 1e-6
"""Amplitude, relative to the start, below which only the trivial solution is near."""


@dataclass(frozen=True)
class Rod:
    """A solution d ≠ 0 of the rod equation, or the last attempt where none was found.

    Attributes:
        difference: d, half the difference of the two states, oriented along the direction; not an
            orbit unless `converged`.
        amplitude: ‖d‖.
        along: component of d along the given direction.
        residual: ‖½[∇F(w+d) - ∇F(w-d)] - 2d/η‖ / ‖2d/η‖ from fresh gradients.
        error: estimate of the relative error of the amplitude: the residual, or rounding where that
            is larger, over the derivative of the equation along d.
        converged: whether the residual is at most `tol` and the error at most √tol. Where the
            centre is at its flip and every small d nearly solves the equation, it is false.
        num_steps: number of Newton steps.
        num_products: number of products with Hessians, each at two points.
        message: outcome, in words.
    """

    difference: Float[np.ndarray, " params"]
    amplitude: float
    along: float
    residual: float
    error: float
    converged: bool
    num_steps: int
    num_products: int
    message: str
    __repr__ = brief


def rod_amplitude(
    objective: Objective,
    centre: Vector,
    learning_rate: float,
    direction: Vector,
    *,
    step: Step = 0,
    tol: float = 1e-9,
    max_steps: int = 50,
    max_products: int = 1000,
) -> Rod:
    """Solves ½[∇F(w+d) - ∇F(w-d)] = 2d/η for the half-difference d of the states of an oscillation.

    Two states w ± d that gradient descent with step η swaps fulfil this condition. It requires
    nothing of the centre w, which may be moving, as in training without a minimum. On an orbit of
    period 2 it is exact.

    The equation is divided by ‖d‖, which removes the trivial solution d = 0 (deflation: Farrell,
    Birkisson and Funke 2015), and solved by Newton's method with backtracking. The derivative is
    symmetric, and its equations are solved by MINRES; the division only changes the length of the
    correction. The start decides between several solutions; where the curvature at the centre is
    below 2/η, there may be none.

    Args:
        objective: a problem of flat parameters, or a function of them.
        centre: w, for example the mean ¼θ_(t-1) + ½θ_t + ¼θ_(t+1).
        learning_rate: η.
        direction: d to start from: the measured half-difference, or an eigenvector times an
            amplitude.
        step: step of the problem's weights.
        tol: largest relative residual of a converged solution.
        max_steps: largest number of Newton steps.
        max_products: largest number of products with Hessians.

    Raises:
        ValueError: when the learning rate is not positive, or the direction is 0, not finite or has
            another shape.

    >>> rod = rod_amplitude(
    ...     lambda x: jnp.sum(jnp.log(jnp.cosh(x))), jnp.zeros(1), 2.1, jnp.array([0.1])
    ... )
    >>> rod.converged, round(rod.amplitude, 10)
    (True, 0.3892410192)
    """
    centre = jnp.asarray(centre)
    start = np.asarray(direction, float)
    length = float(np.linalg.norm(start))
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}; expected more than 0")
    if start.shape != centre.shape or not 0 < length < np.inf:
        raise ValueError(
            f"the direction has shape {start.shape} and length {length}; expected {centre.shape} "
            "and a finite length of more than 0"
        )
    equation = _Equation(as_function(objective, step), centre, float(learning_rate))
    return _newton(equation, start, tol, max_steps, max_products)


class _Equation:
    """The rod equation about a centre, in float64 outside and in the centre's precision inside."""

    def __init__(self, loss: Partial, centre: Vector, rate: float) -> None:
        self.loss, self.centre, self.stiffness = loss, centre, 2 / rate
        self.num_products = 0

    def residual(self, difference: np.ndarray) -> tuple[np.ndarray, float]:
        """Residual of the equation, and its norm relative to ‖2d/η‖."""
        inside = jnp.asarray(difference, self.centre.dtype)
        force = np.asarray(_force(self.loss, self.centre, inside), float)
        rest = force - self.stiffness * difference
        return rest, float(np.linalg.norm(rest) / (self.stiffness * np.linalg.norm(difference)))

    def product(self, difference: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Product with the derivative of the residual by d, which is symmetric."""
        self.num_products += 1
        inside, moving = (jnp.asarray(part, self.centre.dtype) for part in (difference, vector))
        push = np.asarray(_force_along(self.loss, self.centre, inside, moving), float)
        return push - self.stiffness * vector

    def error(self, difference: np.ndarray, relative: float) -> float:
        """Relative error of the amplitude."""
        size = float(np.linalg.norm(difference))
        if not np.isfinite(relative):
            return float("inf")
        steepness = difference @ self.product(difference, difference) / (self.stiffness * size**2)
        noise = rounding(len(difference), self.centre.dtype)
        noise *= 1 + float(jnp.linalg.norm(self.centre)) / size
        return float(max(relative, noise) / abs(steepness)) if steepness else float("inf")

    def correction(
        self, difference: np.ndarray, rest: np.ndarray, tol: float, most: int
    ) -> np.ndarray:
        """Newton's correction of the equation divided by ‖d‖."""
        size, multiply = len(difference), partial(self.product, difference)
        operator = LinearOperator((size, size), matvec=multiply, dtype=float)  # type: ignore[call-arg]
        plain, _ = minres(operator, rest, rtol=tol, maxiter=max(1, most))
        # By the formula of Sherman and Morrison: the derivative of 1/‖d‖ has rank one.
        return -plain / (1 - plain @ difference / (difference @ difference))


@jax.jit
def _force(loss: Partial, centre: Vector, difference: Vector) -> Vector:
    gradient = jax.grad(loss)
    return (gradient(centre + difference) - gradient(centre - difference)) / 2


@jax.jit
def _force_along(loss: Partial, centre: Vector, difference: Vector, vector: Vector) -> Vector:
    """Derivative of `_force` by the difference, along a vector."""
    return jax.jvp(lambda d: _force(loss, centre, d), (difference,), (vector,))[1]


def _newton(
    equation: _Equation, start: np.ndarray, tol: float, max_steps: int, max_products: int
) -> Rod:
    difference, complaint, num_steps = start, "", 0
    rest, relative = equation.residual(difference)
    while not relative <= tol:
        left = max_products - equation.num_products
        if not np.isfinite(relative):
            complaint = "gradients are not finite"
        elif np.linalg.norm(difference) <= _VANISHED * np.linalg.norm(start):
            complaint = "no orbit found: the amplitude went to 0"
        elif left <= 0:
            complaint = f"not solved with {equation.num_products} products; allow more"
        elif num_steps >= max_steps:
            complaint = f"not solved in {num_steps} steps; allow more, or start closer"
        if complaint:
            break
        accuracy = min(_FORCING, max(relative, tol / 10))
        correction = equation.correction(difference, rest, accuracy, left)
        shorter = _backtrack(equation, difference, correction, relative)
        if shorter is None:
            complaint = "no orbit found: no correction makes the residual smaller"
            break
        difference, rest, relative = shorter
        num_steps += 1
    error = equation.error(difference, relative)
    if not complaint and not error <= tol**0.5:
        complaint = "the amplitude is not determined: the centre is at its flip"
    along = float(difference @ start / np.linalg.norm(start))
    return Rod(
        difference=difference if along >= 0 else -difference,
        amplitude=float(np.linalg.norm(difference)),
        along=abs(along),
        residual=relative,
        error=error,
        converged=not complaint,
        num_steps=num_steps,
        num_products=equation.num_products,
        message=complaint or f"solved in {num_steps} steps",
    )


def _backtrack(
    equation: _Equation, difference: np.ndarray, correction: np.ndarray, relative: float
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """The first of successively halved corrections that reduces the relative residual."""
    if not np.all(np.isfinite(correction)):
        return None
    for halving in range(_HALVINGS):
        tried = difference + correction / 2**halving
        rest, reduced = equation.residual(tried)
        if reduced < relative:
            return tried, rest, reduced
    return None
