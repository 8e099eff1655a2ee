"""Matrix-free linear operators of a problem, in flat parameters or in a pytree of them.

Each operator is a function that multiplies a vector. Without `batch_size` the network is linearised
once, when the operator is made, and all products share that pass. With it, each product repeats the
pass batch by batch and holds the intermediate values of one batch at a time; the outputs of an
example must then not depend on the other examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.problem import Problem, Step

Vector = Float[Array, " params"]
Outputs = Float[Array, "examples *outputs"]
Matvec = Callable[[Float[Array, " n"]], Float[Array, " n"]]


def gradient(
    problem: Problem, params: Vector, step: Step, *, batch_size: int | None = None
) -> Vector:
    """∇F(θ, t), with all examples in one pass or `batch_size` at a time."""
    of_batch = lambda batch: jax.grad(batch.steady().objective)(params, step)  # noqa: E731
    return _mean(of_batch, problem, _piece(problem, batch_size), params)


def hessian(
    problem: Problem, params: Vector, step: Step, *, batch_size: int | None = None
) -> Matvec:
    """Products with the Hessian of F(·, t) at θ, forward over reverse (Pearlmutter 1994).

    Args:
        problem: problem as a function of flat parameters.
        params: θ.
        step: t, for the weights of the examples.
        batch_size: largest number of examples in a pass; None means all.

    Raises:
        ValueError: when `batch_size` is less than 1.
    """

    def of_batch(batch: Problem) -> Matvec:
        return jax.linearize(lambda params: gradient(batch, params, step), params)[1]

    return _mean_over_batches(of_batch, problem, batch_size)


def ggn(problem: Problem, params: Vector, step: Step, *, batch_size: int | None = None) -> Matvec:
    """Products with the generalized Gauss-Newton matrix Jᵀ H_ℓ J (Schraudolph 2002).

    J is the Jacobian of all outputs at θ, H_ℓ the Hessian of the weighted loss F(·, t) with
    respect to the outputs, in closed form if that is known (`Problem.output_hessian`). It is the
    Hessian of the loss of the linearised network; the Hessian of `parameter_loss` is added in full.

    Arguments and errors are those of `hessian`.

    >>> problem = Problem(
    ...     apply=lambda w, x: jnp.exp(w * x),
    ...     criterion=lambda outputs, targets: (outputs - targets) ** 2,
    ...     inputs=jnp.array([[1.0]]),
    ...     targets=jnp.array([[3.0]]),
    ... )
    >>> theta, vector = jnp.array([0.0]), jnp.array([1.0])
    >>> [float(a(problem, theta, 0)(vector)[0]) for a in (ggn, remainder, hessian)]
    [2.0, -4.0, -2.0]
    """

    def of_batch(batch: Problem) -> Matvec:
        outputs, push, pull = _derivative(batch, params)
        curve = batch.output_hessian(outputs, step)
        matvec = lambda vector: pull(curve(push(vector)))  # noqa: E731
        if batch.parameter_loss is None:
            return matvec
        penalty_gradient = lambda params: jax.grad(batch.penalty)(params, step)  # noqa: E731
        _, penalty = jax.linearize(penalty_gradient, params)
        return lambda vector: jax.tree.map(jnp.add, matvec(vector), penalty(vector))

    return _mean_over_batches(of_batch, problem, batch_size)


def remainder(
    problem: Problem, params: Vector, step: Step, *, batch_size: int | None = None
) -> Matvec:
    """Products with the Hessian minus `ggn`: Σ_ni ∂F/∂f_ni ∇²f_ni, the network's own curvature.

    Arguments and errors are those of `hessian`.
    """

    # Computed as the sum: in the difference of the two operators all digits could cancel.
    def of_batch(batch: Problem) -> Matvec:
        loss_gradient = jax.grad(batch.steady().loss)(batch.outputs(params), step)
        pulled = jax.grad(lambda params: jnp.sum(loss_gradient * batch.outputs(params)))
        return jax.linearize(pulled, params)[1]

    return _mean_over_batches(of_batch, problem, batch_size)


def ntk(problem: Problem, params: Vector, *, batch_size: int | None = None) -> Matvec:
    """Products with the empirical NTK Θ = J Jᵀ (Jacot, Gabriel and Hongler, 2018, Eq. 4).

    Vectors have one entry per example and output: all outputs of the first example, then those of
    the second, and so on, as in the full Gram matrix.

    Args:
        problem: problem as a function of flat parameters.
        params: θ.
        batch_size: largest number of examples in a pass; None means all.

    Raises:
        ValueError: when `batch_size` is less than 1.

    >>> inputs = jnp.array([[1.0, 0.0], [2.0, 1.0]])
    >>> problem = Problem(lambda w, x: x @ w, jnp.subtract, inputs, jnp.zeros(2))
    >>> ntk(problem, jnp.zeros(2))(jnp.array([1.0, 0.0])).tolist()
    [1.0, 2.0]
    """
    num_examples = problem.num_examples
    size = _piece(problem, batch_size)
    if size == num_examples:
        outputs, push, pull = _derivative(problem, params)
        return lambda vector: push(pull(vector.reshape(outputs.shape))).reshape(-1)

    def pulled(piece: tuple[Problem, Outputs]) -> Vector:
        outputs, _, pull = _derivative(piece[0], params)
        return pull(piece[1].reshape(outputs.shape))

    def matvec(vector: Float[Array, " rows"]) -> Float[Array, " rows"]:
        rows = vector.reshape(num_examples, -1)
        total = _sum_over_batches(pulled, (problem, rows), size, jnp.zeros_like(params))

        def pushed(batch: Problem) -> Array:
            return jax.jvp(batch.outputs, (params,), (total,))[1]

        full, rest = _split(problem, size)
        parts = [jax.lax.map(pushed, full), *map(pushed, rest)]
        return jnp.concatenate([part.reshape(-1) for part in parts])

    return matvec


def preconditioned(matvec: Matvec, preconditioner: Vector) -> Matvec:
    """Products with P^-1/2 A P^-1/2 for a diagonal P > 0, which has the eigenvalues of P^-1 A."""
    scale = jax.tree.map(jax.lax.rsqrt, preconditioner)
    scaled = partial(jax.tree.map, jnp.multiply, scale)
    return lambda vector: scaled(matvec(scaled(vector)))


def block(matvec: Matvec, indices: Int[Array | np.ndarray, " block"], num_params: int) -> Matvec:
    """Products with the block of an operator that belongs to some parameters.

    Args:
        matvec: product with the whole operator.
        indices: distinct indices into the flat parameters, from `block_indices`.
        num_params: order of the whole operator.

    >>> matrix = jnp.arange(9.0).reshape(3, 3)
    >>> block(lambda v: matrix @ v, jnp.array([2, 0]), 3)(jnp.array([1.0, 0.0])).tolist()
    [8.0, 2.0]
    """

    def of_block(vector: Float[Array, " block"]) -> Float[Array, " block"]:
        whole = jnp.zeros(num_params, vector.dtype).at[indices].set(vector)
        return matvec(whole)[indices]

    return of_block


def block_indices(params: PyTree, path: str) -> Int[np.ndarray, " block"]:
    """Indices of some leaves of a pytree in the vector that `Problem.ravel` makes of it.

    Args:
        params: pytree that is given to `Problem.ravel`.
        path: path of a leaf, or of a branch with all its leaves, with "/" between the keys ("0" is
            the first layer of `FullyConnected`, "0/1" its bias); empty for all parameters.

    Raises:
        ConfigError: when there is nothing at that path.

    >>> params = {"bias": jnp.zeros(2), "layers": [jnp.zeros((2, 2)), jnp.zeros(1)]}
    >>> block_indices(params, "layers/0").tolist(), block_indices(params, "layers").tolist()
    ([2, 3, 4, 5], [2, 3, 4, 5, 6])
    """
    leaves = [
        (_prefixes(keys), np.size(leaf))
        for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    valid = dict.fromkeys(prefix for prefixes, _ in leaves for prefix in prefixes)
    if path not in valid:
        listed = ", ".join(map(repr, valid))
        raise ConfigError(f"no parameters at path {path!r}; expected one of {listed}")
    return np.flatnonzero(
        np.concatenate([np.full(size, path in prefixes) for prefixes, size in leaves])
    )


def jacobian(problem: Problem, params: Vector) -> Float[Array, "examples outputs params"]:
    """df_i(x_n)/dθ, example by example: outputs must not depend on the other examples.

    All outputs of an example are flattened to one axis.
    """

    def of_example(example: Array) -> Float[Array, "outputs params"]:
        return jax.jacrev(lambda params: jnp.ravel(problem.predict(params, example[None])))(params)

    return jax.vmap(of_example)(problem.inputs)


def check_operator(matvec: Matvec, num_params: int, key: PRNGKeyArray, dtype: Any = float) -> None:
    """Checks by four products that an operator is a finite symmetric matrix.

    Relative differences up to eps^0.4 pass, about 5e-7 in float64 and 2e-3 in float32. Call it
    outside of `jax.jit`, so that a product which changes from call to call is detected.

    Args:
        matvec: product with the operator.
        num_params: order n of the operator.
        key: PRNG key for the random vectors.
        dtype: type of the vectors.

    Raises:
        ValueError: when a product has another shape or dtype or is not finite, or when products
            are not deterministic, not linear or not symmetric.

    >>> check_operator(lambda v: 2 * v, 3, jax.random.key(0))
    >>> check_operator(lambda v: v + 1, 3, jax.random.key(0))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: products are not linear: A(u + v) is not Au + Av (relative difference ...)
    """
    # Drawn by NumPy, as compiling the draw in JAX would take longer than the four products.
    drawn = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    kind = jax.dtypes.canonicalize_dtype(dtype)
    u, v = drawn.standard_normal((2, num_params)).astype(kind)
    tolerance = float(jnp.finfo(kind).eps) ** 0.4
    vectors = map(jnp.asarray, (u, u, v, u + v))
    products = np.stack([_checked_product(matvec, vector) for vector in vectors])
    # Squares of very large or very small numbers would leave the range of float64.
    au, again, av, whole = products / (np.max(np.abs(products)) or 1)
    scale = np.sum(np.linalg.norm([au, again, av, whole], axis=1))
    # For a normal vector u, an error e in A v changes u·Av by about ‖e‖, not ‖u‖ ‖e‖.
    skew = u.astype(float) @ av - v.astype(float) @ au
    differences = {
        "products are not deterministic: two equal ones differ, usually by dropout, batch-norm "
        "or random augmentation": np.linalg.norm(again - au),
        "products are not linear: A(u + v) is not Au + Av": np.linalg.norm(whole - au - av),
        "products are not symmetric: u·Av is not v·Au": np.abs(skew),
    }
    for complaint, difference in differences.items():
        if difference > tolerance * scale:
            raise ValueError(f"{complaint} (relative difference {difference / scale:.0e})")


def _checked_product(matvec: Matvec, vector: Float[Array, " n"]) -> Float[np.ndarray, " n"]:
    """A product in float64, after checking its shape, dtype and values."""
    product = np.asarray(matvec(vector))
    if product.shape != vector.shape:
        raise ValueError(f"a product has shape {product.shape}; expected {vector.shape}")
    if product.dtype != vector.dtype:
        raise ValueError(f"a product has dtype {product.dtype}; expected {vector.dtype}")
    if not np.all(np.isfinite(product)):
        raise ValueError("a product is not finite: the parameters or the derivatives overflow")
    return product.astype(float)


def _derivative(
    problem: Problem, params: Vector
) -> tuple[Outputs, Callable[[Vector], Outputs], Callable[[Outputs], Vector]]:
    """The outputs at θ, and products with their Jacobian J and with Jᵀ."""
    outputs, push = jax.linearize(problem.outputs, params)
    transposed = jax.linear_transpose(push, params)
    return outputs, push, lambda cotangent: transposed(cotangent)[0]


def _mean_over_batches(
    of_batch: Callable[[Problem], Matvec], problem: Problem, batch_size: int | None
) -> Matvec:
    """Σ_b (N_b / N) A_b: the operator of all data from those of batches, which are means."""
    size = _piece(problem, batch_size)
    if size == problem.num_examples:
        return of_batch(problem)
    return lambda vector: _mean(lambda batch: of_batch(batch)(vector), problem, size, vector)


def _mean(
    of_batch: Callable[[Problem], Vector], problem: Problem, size: int, like: Vector
) -> Vector:
    """Σ_b (N_b / N) v_b over batches; a single batch with all examples needs no sum."""
    num_examples = problem.num_examples
    if size == num_examples:
        return of_batch(problem)

    def share(batch: Problem) -> Vector:
        weight = batch.num_examples / num_examples
        return jax.tree.map(lambda leaf: weight * leaf, of_batch(batch))

    return _sum_over_batches(share, problem, size, jax.tree.map(jnp.zeros_like, like))


def _sum_over_batches(
    term: Callable[[Any], Vector], data: PyTree, size: int, start: Vector
) -> Vector:
    """Sum of the terms of all batches of `size` examples and of the examples left over."""
    full, rest = _split(data, size)
    add = partial(jax.tree.map, jnp.add)
    total, _ = jax.lax.scan(lambda total, batch: (add(total, term(batch)), None), start, full)
    return reduce(add, map(term, rest), total)


def _split(data: PyTree, size: int) -> tuple[PyTree, list[PyTree]]:
    """Full batches, stacked along a new leading axis, and a list with any examples left over.

    Every leaf has the examples in its leading axis.
    """
    num_examples = len(jax.tree.leaves(data)[0])
    end = num_examples - num_examples % size
    full = jax.tree.map(lambda leaf: leaf[:end].reshape(-1, size, *leaf.shape[1:]), data)
    rest = jax.tree.map(lambda leaf: leaf[end:], data)
    return full, [rest] if end < num_examples else []


def _piece(problem: Problem, batch_size: int | None) -> int:
    """Number of examples in a pass."""
    num_examples = problem.num_examples
    if batch_size is None:
        return num_examples
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1")
    return min(batch_size, num_examples)


def _prefixes(keys: tuple[Any, ...]) -> list[str]:
    """The paths from the root of a pytree down to a leaf."""
    return [
        jax.tree_util.keystr(keys[:depth], simple=True, separator="/")
        for depth in range(len(keys) + 1)
    ]
