"""What several benchmarks of the eigensolver share: networks, their products, and ARPACK."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse.linalg import LinearOperator, eigsh

from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.operators import hessian
from dlf_dynamics.problem import Problem

TOL = 1e-2
COUNT = 5

HUNDRED_THOUSAND = (784, 128, 10)
MILLION = (784, 1024, 256, 10)


def random_problem(widths: tuple[int, ...], count: int):
    """A tanh network in float32 on random inputs with random labels, and its parameters."""
    rng = np.random.default_rng(0)
    drawn = [
        (rng.standard_normal((before, after)) * np.sqrt(2 / (before + after)), np.zeros(after))
        for before, after in itertools.pairwise(widths)
    ]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)
    inputs = jnp.asarray(rng.standard_normal((count, widths[0])), jnp.float32)
    labels = jnp.asarray(rng.integers(0, widths[-1], count))

    def apply(params, inputs):
        for weight, bias in params[:-1]:
            inputs = jnp.tanh(inputs @ weight + bias)
        weight, bias = params[-1]
        return inputs @ weight + bias

    return Problem(apply, optax.softmax_cross_entropy_with_integer_labels, inputs, labels).ravel(
        params
    )


def hessian_product(problem, params, vector):
    return hessian(problem, params, 0)(vector)


def top_of(matvec, num_params: int, rank_tolerance: float | None, seed: int):
    return top_eigenpairs(
        matvec,
        num_params,
        COUNT,
        tol=TOL,
        max_matvecs=400,
        key=jax.random.key(seed),
        rank_tolerance=rank_tolerance,
        dtype=jnp.float32,
    )


def arpack(matvec, num_params: int, dtype=np.float32, tol: float = TOL, seed: int = 0):
    operator = LinearOperator((num_params, num_params), matvec=matvec, dtype=dtype)
    start = np.random.default_rng(seed).normal(size=num_params).astype(dtype)
    values, vectors = eigsh(operator, COUNT, which="LA", tol=tol, v0=start)
    order = np.argsort(-values)
    return values[order], vectors.T[order]
