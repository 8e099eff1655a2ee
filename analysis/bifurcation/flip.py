"""The flip of gradient descent at ηλ = 2: is the period-2 orbit that begins there stable?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from dlf_dynamics.analysis.bifurcation.directions import (
    Vector,
    hessian_product,
    second_eigenvalue,
    top_eigenvector,
    unit_vector,
)
from dlf_dynamics.analysis.linalg.vectors import rounding
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

Objective = Problem | Callable[[Vector], Float[Array, ""]]
Criticality = Literal["supercritical", "subcritical", ""]

HORIZON = 100
"""Default number of steps of the response."""


@dataclass(frozen=True)
class FlipCoefficient:
    """c of s ↦ -(1+ε) s + c s³, the motion along the top eigenvector v, with ε = ηλ - 2.

    Where c > 0, a stable orbit of period 2 begins at ε = 0, of half-distance √(ε/c). Where c < 0,
    the orbit is unstable and lies at ε < 0: at the flip the motion jumps away.

    The other parameters respond to the oscillation along v as in N steps of gradient descent.
    `finite_time[N]` is the coefficient with that response. Where all curvatures except that of v
    are between 0 and 2/η it grows with N, and where all are above 0 it has a limit, the coefficient
    of Kuznetsov's theorem.

    Attributes:
        coefficient: c with the response of `horizon` steps.
        error: estimate of its numerical error, from the residual of the eigenvector (as if the
            nearest eigenvalue were 0; closer ones make it larger) and from rounding.
        horizon: N.
        finite_time: c_0, ..., c_N, where c_0 = -η L₄ / 6 is without any response.
        fourth: L₄ = D⁴F[v, v, v, v].
        drift: ‖(I - ηH)^⌊N/2⌋ P g₃‖ with g₃ = D³F[v, v, ·] and the projection P off v: the part of
            the force that N/2 steps do not damp. Its square times η²/2 is the growth of c_N per
            step. It tends to the force within the null space of H.
        eigenvalue: λ = vᵀHv.
        eigenvector: v, of unit length.
        residual: ‖Hv - λv‖ of a fresh product.
        converged: whether the residual is at most `tol` λ, λ > 0, and all is finite.
        learning_rate: η.
        gradient_norm: ‖∇F‖, which is 0 at the fixed points of the theorem.
        multiplier: Rayleigh quotient of I - ηH at M^⌊(N-1)/2⌋ P g₃ with M = P (I - ηH) P; 0 where
            this vanishes. Above 1, another direction has negative curvature, and the response has
            no limit.
        second_eigenvalue: largest eigenvalue of H on the complement of v, which the second largest
            of H does not exceed; -inf in one dimension, NaN where it did not converge.
        second_interval: interval that contains it.
    """

    coefficient: float
    error: float
    horizon: int
    finite_time: Float[np.ndarray, " horizon+1"]
    fourth: float
    drift: float
    eigenvalue: float
    eigenvector: Float[np.ndarray, " params"]
    residual: float
    converged: bool
    learning_rate: float
    gradient_norm: float
    multiplier: float
    second_eigenvalue: float
    second_interval: tuple[float, float]
    __repr__ = brief

    @property
    def excess(self) -> float:
        """ε = ηλ - 2."""
        return self.learning_rate * self.eigenvalue - 2

    @property
    def criticality(self) -> Criticality:
        """`supercritical`, `subcritical`, or empty where it is undecided, see `reason`.

        It refers to the response of N steps.
        """
        if self.reason:
            return ""
        return "supercritical" if self.coefficient > 0 else "subcritical"

    @property
    def reason(self) -> str:
        """Why the criticality is undecided; empty where it is decided.

        It is undecided where the eigenvector has not converged, c is within its error, or a second
        direction is at or beyond its own flip; also where c < 0 and the response is unbounded, or
        would make c positive within N more steps at the rate given by `drift`.
        """
        if not (np.all(np.isfinite(self.finite_time)) and np.isfinite(self.error)):
            return "not finite: derivatives overflow, or another direction is unstable"
        if not self.converged:
            return f"no eigenvector of positive curvature: residual {self.residual:.1e}"
        if abs(self.coefficient) <= self.error:
            return f"the coefficient is 0 within its error of {self.error:.1e}"
        return self._second() or self._growing()

    def _second(self) -> str:
        """A complaint where a second direction oscillates, so that motion is not along v alone."""
        margin = float(np.finfo(self.eigenvector.dtype).eps) ** 0.5
        low, high = (self.learning_rate * end for end in self.second_interval)
        if high < 2 - margin:
            return ""
        if low > 2 + margin:
            return f"a second direction oscillates: ηλ = {low:.6g} or more"
        if np.isnan(high):
            return "the largest eigenvalue of the other directions did not converge"
        return f"a second direction may oscillate: ηλ is between {low:.9g} and {high:.9g}"

    def _growing(self) -> str:
        """A complaint where the response of the other parameters may change a negative sign."""
        if self.coefficient > 0:
            return ""
        if self.multiplier > 1 + float(np.finfo(self.eigenvector.dtype).eps) ** 0.5:
            return (
                "c < 0 for now, but another direction has negative curvature, and the response "
                "grows"
            )
        ahead = self.horizon * (self.learning_rate * self.drift) ** 2 / 2
        return "c < 0 for now, but the drift may turn it" if self.coefficient + ahead >= 0 else ""

    @property
    def message(self) -> str:
        """The outcome, in words."""
        words = f"response of {self.horizon} steps"
        return f"{words}; no criticality: {self.reason}" if self.reason else words

    def amplitude(self, excess: float | None = None) -> float:
        """Half-distance √(ε/c) of the period-2 orbit, to leading order in ε.

        NaN unless the flip is supercritical, as otherwise no stable orbit is known.

        Args:
            excess: ε; none means that of the learning rate.
        """
        excess = self.excess if excess is None else excess
        exists = self.criticality == "supercritical" and excess >= 0
        return float(np.sqrt(excess / self.coefficient)) if exists else float("nan")


def flip_coefficient(
    objective: Objective,
    params: Vector,
    learning_rate: float,
    *,
    eigenvector: Vector | None = None,
    horizon: int | None = None,
    step: Step = 0,
    key: PRNGKeyArray | None = None,
    tol: float | None = None,
) -> FlipCoefficient:
    """First Lyapunov coefficient of gradient descent at a flip, without matrices.

    c = (η/6) (3 g₃ᵀ R g₃ - L₄) with g₃ = D³F[v, v, ·], L₄ = D⁴F[v, v, v, v] and R = H⁻¹ (Kuznetsov,
    Elements of Applied Bifurcation Theory, Section 5.4, Eq. 5.50, for a symmetric Jacobian I - ηH).
    In training H is singular. R is therefore the response in finite time, [I - (I - ηH)^N] H⁻¹ off
    v and 1/λ along v, which never inverts a null direction.

    A second direction at or beyond its flip makes the sign meaningless, whether or not the motion
    along v excites it: a Lanczos pass on the complement of v searches for it.

    Besides that pass it takes ⌈N/2⌉ Hessian products, and derivatives of the gradient along v up to
    the third order, which must exist: they miss the kinks of piecewise linear activations. For
    momentum, use the learning rate of gradient descent with the same period-2 orbits, η/(1+β) for
    heavy ball and η(1+2β)/(1+β) for Nesterov; the orbits with full response are the same, but not
    c_N.

    With N = 20 and a million parameters the coefficient takes the time of 26 gradients, the pass
    for a second direction that of some 95 more, and the eigenvector, where none is given, that of
    some 80 more (benchmarks/README.md).

    Args:
        objective: a problem of flat parameters, or a function of them.
        params: θ, at or near a minimum.
        learning_rate: η.
        eigenvector: v, of any length; none computes the top one.
        horizon: N; none means 100.
        step: step of the problem's weights.
        key: PRNG key for the random vectors of the eigensolver; none means `jax.random.key(0)`.
        tol: largest residual of a converged eigenvector, relative to λ; none means eps^0.4, 5e-7
            in float64.

    Raises:
        ValueError: when the horizon or the learning rate is not positive, or the eigenvector is 0
            or has another shape.

    >>> flip = flip_coefficient(lambda x: (x[0] ** 2 - 1) ** 2 / 4, jnp.ones(1), 1.01)
    >>> round(flip.coefficient, 6), flip.criticality
    (8.08, 'supercritical')
    >>> round(flip.amplitude(), 5)  # of the orbit itself: √(1 - 1/η) / 2
    0.04975
    """
    horizon = HORIZON if horizon is None else horizon
    if horizon < 1 or not learning_rate > 0:
        raise ValueError(
            f"horizon is {horizon} and learning_rate {learning_rate}; expected at least 1 and "
            "more than 0"
        )
    params = jnp.asarray(params)
    accuracy = float(jnp.finfo(params.dtype).eps) ** 0.4 if tol is None else tol
    loss = as_function(objective, step)
    key = jax.random.key(0) if key is None else key
    top = top_eigenvector(loss, params, accuracy, key) if eigenvector is None else eigenvector
    direction = unit_vector(top, params)
    expansion = _expand(loss, params, direction)
    force = expansion.second - jnp.vdot(direction, expansion.second) * direction
    rate = jnp.asarray(learning_rate, params.dtype)
    moments = _moments(loss, params, direction, force, rate, products=-(-horizon // 2))
    summary = _summarise(
        jax.device_get(expansion),
        np.asarray(moments, float)[: horizon + 1],
        np.asarray(direction),
        float(learning_rate),
        accuracy,
    )
    if not summary.converged:
        return summary
    second, interval = second_eigenvalue(
        loss, params, direction, summary.eigenvalue, 2 / summary.learning_rate, accuracy, key
    )
    return replace(summary, second_eigenvalue=second, second_interval=interval)


def as_function(objective: Objective, step: Step) -> Partial:
    """The loss as a function of the parameters alone, and as an argument of compiled functions."""
    if isinstance(objective, Problem):
        return Partial(_loss_at, objective, jnp.asarray(step))
    return objective if isinstance(objective, Partial) else Partial(objective)


def _loss_at(problem: Problem, step: Step, params: Vector) -> Float[Array, ""]:
    return problem.objective(params, step)


class _Expansion(NamedTuple):
    """Derivatives of ∇F(θ + s v) in s at s = 0, and their components along v."""

    gradient: Vector
    first: Vector
    second: Vector
    third: Vector
    along: Float[Array, " 4"]


@jax.jit
def _expand(loss: Partial, params: Vector, direction: Vector) -> _Expansion:
    def derivative(function: Callable[[Array], tuple]) -> Callable[[Array], tuple]:
        def of_all(s: Array) -> tuple:
            values, slopes = jax.jvp(function, (s,), (jnp.ones_like(s),))
            return (*values, slopes[-1])

        return of_all

    def gradient(s: Array) -> tuple:
        return (jax.grad(loss)(params + s * direction),)

    derivatives = derivative(derivative(derivative(gradient)))(jnp.zeros((), params.dtype))
    return _Expansion(
        *derivatives, along=jnp.stack([jnp.vdot(direction, row) for row in derivatives])
    )


@partial(jax.jit, static_argnames="products")
def _moments(
    loss: Partial,
    params: Vector,
    direction: Vector,
    force: Vector,
    rate: Float[Array, ""],
    *,
    products: int,
) -> Float[Array, " moments"]:
    """g·Mᵏg for k = 0, ..., 2 `products`, of the symmetric M = P (I - ηH) P and g = P g₃.

    They are inner products of d_j = Mʲg with d_j or d_(j+1): one product gives two of them.
    """

    # Linearising only once made products no cheaper at 1e6 parameters, and takes more memory.
    def multiply(vector: Vector, _: None) -> tuple[Vector, tuple[Array, Array]]:
        following = vector - rate * hessian_product(loss, params, vector)
        # Rounding leaves a component along v, which would grow where ηλ > 2.
        following = following - jnp.vdot(direction, following) * direction
        return following, (jnp.vdot(vector, vector), jnp.vdot(vector, following))

    last, pairs = jax.lax.scan(multiply, force, length=products)
    return jnp.append(jnp.stack(pairs, axis=1).reshape(-1), jnp.vdot(last, last))


def _summarise(
    expansion: _Expansion,
    moments: Float[np.ndarray, " horizon+1"],
    direction: Float[np.ndarray, " params"],
    rate: float,
    tol: float,
) -> FlipCoefficient:
    """The coefficient, its error and a verdict."""
    horizon = len(moments) - 1
    eigenvalue, fourth = float(expansion.along[1]), float(expansion.along[3])
    with np.errstate(all="ignore"):
        residual = float(np.linalg.norm(expansion.first - eigenvalue * direction))
        finite_time, size = _coefficients(expansion, moments, rate)
        # v occurs four times in each term.
        error = 4 * residual / abs(eigenvalue) + rounding(len(direction), direction.dtype)
        error *= size
    finite = bool(np.all(np.isfinite(finite_time)) and np.isfinite(error))
    converged = finite and eigenvalue > 0 and residual <= tol * eigenvalue
    last = 2 * ((horizon - 1) // 2)
    multiplier = float(moments[last + 1] / moments[last]) if finite and moments[last] > 0 else 0.0
    return FlipCoefficient(
        coefficient=float(finite_time[-1]),
        error=float(error),
        horizon=horizon,
        finite_time=finite_time,
        fourth=fourth,
        drift=float(np.sqrt(moments[2 * (horizon // 2)])),
        eigenvalue=eigenvalue,
        eigenvector=direction,
        residual=residual,
        converged=converged,
        learning_rate=rate,
        gradient_norm=float(np.linalg.norm(expansion.gradient)),
        multiplier=multiplier,
        second_eigenvalue=float("nan"),
        second_interval=(float("nan"), float("nan")),
    )


def _coefficients(
    expansion: _Expansion, moments: Float[np.ndarray, " horizon+1"], rate: float
) -> tuple[Float[np.ndarray, " horizon+1"], float]:
    """c_0, ..., c_N, and the size to which relative errors of their terms apply."""
    _, eigenvalue, own, fourth = expansion.along.astype(float)
    answers = own**2 / eigenvalue + rate * np.cumsum(moments[:-1])
    size = 3 * (own**2 / abs(eigenvalue) + rate * np.sum(np.abs(moments[:-1])))
    size += np.linalg.norm(expansion.third)
    return rate / 6 * (3 * np.append(0.0, answers) - fourth), float(rate / 6 * size)
