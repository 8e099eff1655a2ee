"""Chooses how many examples go through a model at a time, so that products fit into memory.

XLA reports the memory of a compiled program before it runs. Compiling takes seconds for a large
model, so it is done only if a count of the values in a forward pass shows that memory could be
short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.memory import bytes_in_words
from dlf_dynamics.operators import Matvec
from dlf_dynamics.problem import Problem
from dlf_dynamics.smoothness import programs_in

MakeMatvec = Callable[..., Matvec]
"""`operators.hessian` or one like it."""

_AT_MOST, _USUALLY = 10, 3
"""Memory of a product over that of the values in a forward pass: more than ever seen; typical."""

_MARGIN = 0.9
"""Safety factor of a predicted batch size, so that it fits at the first attempt."""


def kept_vectors(count: int) -> int:
    """Approximate number of vectors that a solve for `count` eigenvalues keeps.

    They are the Krylov basis for a large network and the vectors for the check of the results.
    """
    return max(20, 2 * count + 10) + 4 * count


def choose_batch_size(
    make: MakeMatvec,
    problem: Problem,
    num_params: int,
    dtype: Any,
    limit: int,
    *,
    count: int = 1,
    scale: int = 1,
) -> int | None:
    """The largest number of examples at a time with which products and vectors fit into memory.

    Args:
        make: function that makes an operator, such as `operators.hessian`.
        problem: problem as a function of flat parameters.
        num_params: length of the vectors.
        dtype: type of the vectors.
        limit: memory limit in bytes.
        count: number of eigenvalues.
        scale: factor by which numbers are larger in a part of the products (2 for float64 products
            of a float32 run).

    Returns:
        None for all examples at once; products then share one pass through the model.

    Raises:
        ConfigError: when not even one example fits.
    """
    if not problem.num_examples:
        return None
    leaves, structure = jax.tree.flatten(problem)
    shapes = tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
    kept = kept_vectors(count) * num_params * np.dtype(dtype).itemsize
    return _chosen(make, structure, shapes, num_params, np.dtype(dtype), limit, kept, scale)


@lru_cache
def _chosen(
    make: MakeMatvec,
    structure: Any,
    shapes: tuple[tuple[tuple[int, ...], np.dtype], ...],
    num_params: int,
    dtype: np.dtype,
    limit: int,
    kept: int,
    scale: int,
) -> int | None:
    """The batch size as a function of hashable values, so that each is computed once."""
    problem = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    params = jax.ShapeDtypeStruct((num_params,), dtype)
    count, room = problem.targets.shape[0], limit - kept
    forward = scale * _bytes_of_values(jax.make_jaxpr(Problem.outputs)(problem, params).jaxpr)
    if _AT_MOST * (forward + scale * num_params * dtype.itemsize) <= room:
        return None

    def need(batch_size: int | None) -> int:
        return scale * _bytes_of_products(make, problem, params, batch_size)

    if _USUALLY * forward <= 2 * room and need(None) <= room:
        return None
    first = int(np.clip(count * room / max(_USUALLY * forward, 1), 1, max(count // 2, 1)))
    size, needed = _largest(need, first, max(count // 2, 1), room)
    if needed > room:
        raise ConfigError(_too_little(limit, needed, kept))
    return _evenly(count, size)


def _largest(need: Callable[[int], int], size: int, most: int, room: int) -> tuple[int, int]:
    """The largest size that fits, within a factor of 2, or 1; and the memory it needs."""
    tried = {size: need(size)}
    while tried[size] > room and size > 1:
        size = max(1, min(_fitting(tried, room), 3 * size // 4))
        tried[size] = need(size)
    for _ in range(2):
        # One size alone does not show which part of its memory is per example.
        least = 2 * size if len(tried) == 1 and size < most // 8 else 0
        larger = min(most, max(least, _fitting(tried, room)))
        if tried[size] > room or larger < 2 * size or larger in tried:
            break
        tried[larger] = need(larger)
        if tried[larger] > room:
            break
        size = larger
    return size, tried[size]


def _too_little(limit: int, product: int, kept: int) -> str:
    there, needed, single, rest = map(bytes_in_words, (limit, product + kept, product, kept))
    return (
        f"max_memory is {there}; expected at least {needed}: {single} for a product with one "
        f"example at a time, and {rest} for vectors of the parameters"
    )


def _fitting(tried: dict[int, int], room: int) -> int:
    """The size predicted to fit from the last sizes tried: affine from two, else proportional."""
    (size, needed), *before = [*tried.items()][:-3:-1]
    for other, least in before:
        if (needed - least) * (size - other) > 0:
            return int(_MARGIN * (size + (room - needed) * (size - other) / (needed - least)))
    return int(_MARGIN * size * room / max(needed, 1))


def _evenly(count: int, size: int) -> int:
    """A slightly smaller batch size that leaves over as few examples as possible."""
    divisors = [part for part in range(size, 3 * size // 4, -1) if count % part == 0]
    return divisors[0] if divisors else -(-count // -(-count // size))


def _bytes_of_products(
    make: MakeMatvec, problem: Problem, params: Any, batch_size: int | None
) -> int:
    """Memory of products one after another by XLA, without arguments and results."""

    def products(problem: Problem, params: Any, vectors: Any) -> Any:
        return jax.lax.map(make(problem, params, 0, batch_size=batch_size), vectors)

    vectors = jax.ShapeDtypeStruct((2, *params.shape), params.dtype)
    analysis = jax.jit(products).lower(problem, params, vectors).compile().memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)  # known on CPUs and GPUs


def _bytes_of_values(jaxpr: Any) -> int:
    """Bytes of all values that a traced function computes."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [_bytes_of_values(program) for program in programs_in(equation)]
        if inner:
            total += sum(inner) * equation.params.get("length", 1)
        else:
            total += sum(_bytes(variable.aval) for variable in equation.outvars)
    return total


def _bytes(aval: Any) -> int:
    # JAX's own types, such as those of PRNG keys, have a size, but NumPy does not know them.
    return int(np.prod(aval.shape)) * aval.dtype.itemsize if hasattr(aval, "shape") else 0
