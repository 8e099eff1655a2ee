"""How many examples go through a model at a time, so that a product fits into memory.

XLA tells what a compiled program needs before it runs. Compiling takes seconds for a large model,
so it is done only where a count of the values in a forward pass says that memory could be short.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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

VECTORS = 32
"""Vectors of the parameters' size that an eigenvalue solve keeps beside its products, roughly."""

_AT_MOST, _USUALLY = 10, 3
"""A product's bytes over those of the values in a forward pass: more than any had; typical ones."""

_MARGIN = 0.9
"""Of the share that a proportion predicts, so that the prediction is met at the first try."""


def choose_batch_size(
    make: MakeMatvec, problem: Problem, num_params: int, dtype: Any, limit: int, *, scale: int = 1
) -> int | None:
    """The most examples at a time with which products and vectors fit into a limit.

    Args:
        make: makes the operator's products, like `operators.hessian`.
        problem: of flat parameters.
        num_params: length of the vectors.
        dtype: of the vectors.
        limit: bytes that all together may take.
        scale: how many times as large the numbers are in which products are really made.

    Returns:
        None for all at once, whose products share one pass through the model.

    Raises:
        ConfigError: when not even one example fits.
    """
    if not problem.num_examples:
        return None
    leaves, structure = jax.tree.flatten(problem)
    shapes = tuple((np.shape(leaf), np.dtype(leaf.dtype)) for leaf in leaves)
    return _chosen(make, structure, shapes, num_params, np.dtype(dtype), limit, scale)


@cache
def _chosen(
    make: MakeMatvec,
    structure: Any,
    shapes: tuple[tuple[tuple[int, ...], np.dtype], ...],
    num_params: int,
    dtype: np.dtype,
    limit: int,
    scale: int,
) -> int | None:
    """Everything by value, so that it is found out once."""
    problem = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    params = jax.ShapeDtypeStruct((num_params,), dtype)
    count, vector = problem.targets.shape[0], num_params * dtype.itemsize * scale
    room = limit - VECTORS * vector
    forward = scale * _bytes_of_values(jax.make_jaxpr(Problem.outputs)(problem, params).jaxpr)
    if _AT_MOST * (forward + vector) <= room:
        return None

    def need(batch_size: int | None) -> int:
        return scale * _bytes_of_products(make, problem, params, batch_size)

    usual = _USUALLY * forward
    if usual <= 2 * room and need(None) <= room:
        return None
    most = max(count // 2, 1)
    size = int(np.clip(count * room / max(usual, 1), 1, most))
    tried = {size: need(size)}
    while tried[size] > room:
        if size == 1:
            raise ConfigError(_too_little(limit, tried[1], VECTORS * vector))
        size = max(1, min(_fitting(tried, room), 3 * size // 4))
        tried[size] = need(size)
    larger = min(most, _fitting(tried, room))
    if larger >= 2 * size and larger not in tried and need(larger) <= room:
        size = larger
    return _evenly(count, size)


def _too_little(limit: int, product: int, vectors: int) -> str:
    there, needed, alone = map(bytes_in_words, (limit, product + vectors, product))
    return (
        f"max_memory is {there}; expected at least {needed}: {alone} for a product with one "
        f"example at a time, the rest for {VECTORS} vectors of the parameters"
    )


def _fitting(tried: dict[int, int], room: int) -> int:
    """The size that fits, from what those needed that were tried last: in proportion, or affine."""
    (size, needed), *before = [*tried.items()][:-3:-1]
    for other, least in before:
        if (needed - least) * (size - other) > 0:
            return int(_MARGIN * (size + (room - needed) * (size - other) / (needed - least)))
    return int(_MARGIN * size * room / max(needed, 1))


def _evenly(count: int, size: int) -> int:
    """A size of batches, hardly smaller, with as few examples left over as may be."""
    divisors = [part for part in range(size, 3 * size // 4, -1) if count % part == 0]
    return divisors[0] if divisors else -(-count // -(-count // size))


def _bytes_of_products(
    make: MakeMatvec, problem: Problem, params: Any, batch_size: int | None
) -> int:
    """What XLA says that products take in one after another, beside arguments and results."""

    def products(problem: Problem, params: Any, vectors: Any) -> Any:
        return jax.lax.map(make(problem, params, 0, batch_size=batch_size), vectors)

    vectors = jax.ShapeDtypeStruct((2, *params.shape), params.dtype)
    told = jax.jit(products).lower(problem, params, vectors).compile().memory_analysis()
    return 0 if told is None else int(told.temp_size_in_bytes)  # of CPUs and GPUs it is known


def _bytes_of_values(jaxpr: Any) -> int:
    """Bytes of everything that a traced function computes on its way."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [_bytes_of_values(program) for program in programs_in(equation)]
        if inner:
            total += sum(inner) * equation.params.get("length", 1)
        else:
            total += sum(_bytes(variable.aval) for variable in equation.outvars)
    return total


def _bytes(aval: Any) -> int:
    return int(np.prod(aval.shape)) * np.dtype(aval.dtype).itemsize if hasattr(aval, "shape") else 0
