"""Matrix-free linear operators of a problem in flat parameters."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from dlf_dynamics.problem import Problem, Step

Vector = Float[Array, " params"]
Matvec = Callable[[Vector], Vector]


def gradient(problem: Problem, params: Vector, step: Step) -> Vector:
    """∇F(θ, t)."""
    return jax.grad(problem.objective)(params, step)


def hessian(problem: Problem, params: Vector, step: Step) -> Matvec:
    """Products with the Hessian of F(·, t) at θ, linearised once and then cheap.

    Forward over reverse (Pearlmutter 1994); the pass at θ is shared by all products.
    """
    _, matvec = jax.linearize(lambda params: gradient(problem, params, step), params)
    return matvec


def preconditioned(matvec: Matvec, preconditioner: Vector) -> Matvec:
    """Products with P^-1/2 A P^-1/2 for a diagonal P > 0; its eigenvalues are those of P^-1 A."""
    scale = jax.lax.rsqrt(preconditioner)
    return lambda vector: scale * matvec(scale * vector)


def jacobian(problem: Problem, params: Vector) -> Float[Array, "examples outputs params"]:
    """df_i(x_n)/dθ, example by example: outputs must not depend on the other examples."""

    def of_example(example: Array) -> Float[Array, "outputs params"]:
        return jax.jacrev(lambda params: problem.apply(params, example[None])[0])(params)

    return jax.vmap(of_example)(problem.inputs)
