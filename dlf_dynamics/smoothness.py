"""Detects whether a function has kinks, by its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

_KINKED = ("max", "min", "abs", "sign", "clamp", "reduce_window_max", "reduce_window_min", "sort")
"""Operations whose first derivative jumps. The maximum of an array is not among them: softmax
subtracts it and adds it again."""

_KINKED_RULES = ("relu", "relu6", "leaky_relu", "hard_tanh")
"""Functions with custom derivatives that jump; custom derivatives of others count as smooth."""


def kinks(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """Names of the operations in a function whose derivative jumps, each once; empty if smooth.

    Only operations count that depend on the first argument and affect the derivative of the result.
    For a JAX function with a custom derivative, such as `jax.nn.relu` and `jax.nn.softplus`, its
    name decides, not its implementation.

    Args:
        function: function that JAX can trace.
        arguments: arrays, or pytrees of them; only shapes and types matter.

    >>> kinks(lambda x: jax.nn.relu(x).sum(), jax.numpy.ones(3))
    ['relu']
    >>> kinks(lambda x: jax.nn.softplus(x).sum(), jax.numpy.ones(3))
    []
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    count = len(jax.tree.leaves(arguments[0]))
    return list(dict.fromkeys(_found(jaxpr, jaxpr.invars[:count])))


def _found(jaxpr: Any, moving: list[Any]) -> Iterator[str]:
    """Kinks of a program of which some input variables change."""
    moved = set(map(id, moving))
    reaching = _reaching(jaxpr)
    for equation in jaxpr.eqns:
        active = [id(variable) in moved for variable in equation.invars]
        if not any(active):
            continue
        moved |= set(map(id, equation.outvars))
        if any(id(variable) in reaching for variable in equation.outvars):
            yield from _of_equation(equation, active, jaxpr)


def _of_equation(equation: Any, active: list[bool], jaxpr: Any) -> Iterator[str]:
    primitive, name = equation.primitive.name, str(equation.params.get("name", ""))
    programs = programs_in(equation)
    if primitive.startswith(("custom_jvp", "custom_vjp")):
        names = [str(e.params.get("name", "")) for program in programs for e in program.eqns]
        yield from (name for name in names if name in _KINKED_RULES)
    elif name in _KINKED_RULES:
        yield name
    elif primitive in _KINKED:
        if not _of_logarithm(equation, jaxpr):
            yield primitive
    else:
        for program in programs:
            # A call passes its variables on one by one; in a loop all of them may change.
            called = len(programs) == 1 and len(program.invars) == len(active)
            loop = primitive in ("scan", "while")
            moves = active if called and not loop else [True] * len(program.invars)
            pairs = zip(program.invars, moves, strict=True)
            yield from _found(program, [variable for variable, move in pairs if move])


def _reaching(jaxpr: Any) -> set[int]:
    """The variables on which the derivative of the result depends."""
    reaching = set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        stops = equation.primitive.name == "stop_gradient"
        if not stops and any(id(variable) in reaching for variable in equation.outvars):
            reaching |= set(map(id, equation.invars))
    return reaching


def programs_in(equation: Any) -> list[Any]:
    """The programs in an equation, such as the body of a loop."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns"))
    return [getattr(leaf, "jaxpr", leaf) for leaf in leaves if hasattr(leaf, "eqns")]


def _of_logarithm(equation: Any, jaxpr: Any) -> bool:
    """Whether an `abs` is used only in a logarithm, as in `logsumexp`, whose sum is positive."""
    if equation.primitive.name != "abs":  # others, such as sort, may have several results
        return False
    (result,) = equation.outvars
    users = [e for e in jaxpr.eqns if any(variable is result for variable in e.invars)]
    return all(e.primitive.name == "log" for e in users)
