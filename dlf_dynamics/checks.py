"""`check_problem`: checks whether the user's own problem can be analysed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.adapters import statistics_of
from dlf_dynamics.errors import ConfigError, DataError, UserError, first_line
from dlf_dynamics.problem import Problem, Step

_KEEP_FLOATS = (
    "keep only floating-point arrays as parameters, for example with "
    "equinox.partition(model, equinox.is_inexact_array)"
)
_CONVERT = "convert with jax.tree.map(lambda leaf: leaf.astype(...), params)"
_DETERMINISTIC = (
    "expected a deterministic model: switch dropout and augmentation off and freeze random keys, "
    "for example with train=False"
)


def check_problem(
    problem: Problem, params: PyTree, step: Step = 0, *, independent: bool = True
) -> None:
    """Checks that a problem and its parameters are what the analyses expect.

    The loss is computed twice uncompiled and once compiled, with its gradient, which exposes
    functions that draw random numbers or keep a counter. Relative to the largest value, repeated
    values may differ by eps^0.75, others by eps^0.4: 5e-7 in float64 and 2e-3 in float32.

    Args:
        problem: problem with a model and data, or with a loss alone.
        params: any pytree of floating-point arrays.
        step: t, for the weights of the examples.
        independent: whether to require that the outputs of an example do not depend on the other
            examples, as they do under batch norm in training mode. If they do, the Hessian of the
            whole batch is still well defined; the NTK and everything computed in batches is not.

    Raises:
        DataError: when parameters are not floating-point arrays of one type, when outputs, losses,
            weights or loss have the wrong shape, or when loss or gradient are not finite.
        ConfigError: when a function fails, cannot be hashed or traced by JAX, returns a different
            value the second time, or mixes examples.

    >>> inputs, targets = jnp.ones((4, 2)), jnp.zeros(4)
    >>> problem = Problem(lambda w, x: x @ w, lambda f, y: (f - y) ** 2, inputs, targets)
    >>> check_problem(problem, jnp.ones(2))
    >>> check_problem(problem, jnp.ones((2, 1)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dlf_dynamics.errors.DataError: criterion gives losses of shape (4, 4) for outputs ...
    """
    check_parameters(params)
    _check_hashable(problem)
    outputs, loss = _evaluate(problem, params, step)
    _check_loss(loss, step)
    eps = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)
    for old, new in zip((outputs, loss), _evaluate(problem, params, step), strict=True):
        if not _equal(old, new, eps**0.75):
            raise ConfigError(f"two evaluations at the same parameters differ; {_DETERMINISTIC}")
    compiled = _call("the loss, compiled by JAX,", _compiled, problem, params, jnp.asarray(step))
    for old, new in zip((outputs, loss), compiled[:2], strict=True):
        if not _equal(old, new, eps**0.4):
            raise ConfigError(f"the model gives other values once it is compiled; {_DETERMINISTIC}")
    for path, leaf in _leaves(compiled[2]):
        if not np.all(np.isfinite(leaf)):
            raise DataError(
                f"the gradient with respect to {path} is not finite; expected a loss that is "
                "differentiable here: look for square roots, norms and divisions by 0"
            )
    if independent and outputs is not None and len(outputs) > 1:
        _check_independent(problem, params, outputs, eps**0.4)


def _leaves(tree: PyTree) -> Iterator[tuple[str, Any]]:
    """The leaves of parameters and their names."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"params{jax.tree_util.keystr(path)}", leaf


def check_parameters(params: PyTree) -> None:
    """Checks that all parameters are arrays of float32, or all of float64.

    Raises:
        DataError: when they are not; it names the first leaf that differs.

    >>> check_parameters({"weight": jnp.ones((2, 3)), "bias": jnp.zeros(3)})
    >>> check_parameters({"count": 3})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dlf_dynamics.errors.DataError: params['count'] is of type int; keep only ...
    """
    first = None
    for path, leaf in _leaves(params):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            raise DataError(f"{path} is of type {type(leaf).__name__}; {_KEEP_FLOATS}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise DataError(f"{path} is an array of {leaf.dtype}; {_KEEP_FLOATS}")
        first = first or (path, leaf.dtype)
        if leaf.dtype != first[1]:
            raise DataError(
                f"{first[0]} is an array of {first[1]} and {path} one of {leaf.dtype}; expected "
                f"one type: {_CONVERT}"
            )
    if first is None:
        raise DataError(f"params have no leaves; expected floating-point arrays: {_KEEP_FLOATS}")
    if first[1] not in (np.float32, np.float64):
        raise DataError(f"params are arrays of {first[1]}; expected float32 or float64: {_CONVERT}")


def check_statistics(problem: Problem) -> None:
    """Checks that training changes nothing of a model but its parameters.

    Raises:
        ConfigError: when the model was adapted with frozen running statistics.
    """
    names = statistics_of(problem.apply)
    if names:
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ConfigError(
            f"the model holds statistics that training changes and parameters do not tell "
            f"({listed}); expected them among what is recorded, or fixed_statistics=True where the "
            "loop leaves them as they are: see docs/own/models.md"
        )


def _check_hashable(problem: Problem) -> None:
    for name in ("apply", "criterion", "example_weights", "parameter_loss"):
        function = getattr(problem, name)
        try:
            hash(function)
        except TypeError as error:
            raise ConfigError(
                f"{name} is a {type(function).__name__} that cannot be hashed; expected a plain "
                "function (see dlf_dynamics.adapters for models that are objects)"
            ) from error


def _evaluate(problem: Problem, params: PyTree, step: Step) -> tuple[Array | None, Array]:
    """Outputs, if there are any, and the loss, after checking their shapes."""
    outputs = None
    if problem.has_outputs:
        outputs = _call("apply(params, inputs)", problem.outputs, params)
        _check_outputs(outputs, problem.num_examples)
        losses = _call("criterion(outputs, targets)", problem.criterion, outputs, problem.targets)
        _check_losses(losses, outputs, jnp.shape(problem.targets))
        if problem.example_weights is not None:
            weights = _call(
                "example_weights(step, targets)", problem.example_weights, step, problem.targets
            )
            _check_weights(weights, losses)
    return outputs, _call("the loss", problem.objective, params, step)


def _check_outputs(outputs: Any, num_examples: int) -> None:
    if not isinstance(outputs, jax.Array | np.ndarray):
        raise DataError(
            f"apply gives a {type(outputs).__name__}; expected one array: return the outputs "
            "alone, without states"
        )
    if outputs.shape[:1] != (num_examples,):
        raise DataError(
            f"apply gives outputs of shape {outputs.shape} for {num_examples} examples; expected "
            f"({num_examples}, ...): one row for each example"
        )


def _check_losses(losses: Any, outputs: Array, targets: tuple[int, ...]) -> None:
    shape, count = jnp.shape(losses), len(outputs)
    if shape[:1] != (count,):
        raise DataError(
            f"criterion gives losses of shape {shape} for {count} examples; expected ({count},): "
            "one loss for each example, not their mean"
        )
    # Outputs (n, 1) minus targets (n,) broadcast to (n, n), which would go unnoticed.
    if count > 1 and shape == (count, count) and shape not in (outputs.shape, targets):
        raise DataError(
            f"criterion gives losses of shape {shape} for outputs of shape {outputs.shape}; "
            "expected outputs and targets of one shape: drop the last axis of one or add it to "
            "the other"
        )


def _check_weights(weights: Array, losses: Array) -> None:
    try:
        shape = np.broadcast_shapes(jnp.shape(weights), losses.shape)
    except ValueError:
        shape = None
    if shape != losses.shape:
        raise DataError(
            f"example_weights gives weights of shape {jnp.shape(weights)} for losses of shape "
            f"{losses.shape}; expected weights that broadcast to the shape of the losses"
        )


def _check_loss(loss: Any, step: Step) -> None:
    if jnp.shape(loss) != ():
        raise DataError(
            f"the loss has shape {jnp.shape(loss)}; expected a scalar: take a mean or a sum"
        )
    if not np.isfinite(loss):
        raise DataError(
            f"the loss at step {step} is {float(loss)}; expected a finite number: look at "
            "parameters, inputs and weights"
        )


def _check_independent(problem: Problem, params: PyTree, outputs: Array, tolerance: float) -> None:
    one = problem.take(jnp.array([0]))
    alone = _call("apply(params, inputs) of one example", _outputs, one, params)
    _check_outputs(alone, 1)
    if not _equal(outputs[:1], alone, tolerance):
        raise ConfigError(
            "outputs of an example change with the other examples, as under batch norm in training "
            "mode; expected running statistics, for example with train=False, or "
            "independent=False, and then no NTK and no batches"
        )


@jax.jit
def _outputs(problem: Problem, params: PyTree) -> Any:
    return problem.outputs(params)


@jax.jit
def _compiled(
    problem: Problem, params: PyTree, step: Array
) -> tuple[Array | None, Float[Array, ""], PyTree]:
    """Outputs, loss and its gradient."""
    outputs = problem.outputs(params) if problem.has_outputs else None
    return outputs, *jax.value_and_grad(problem.objective)(params, step)


def _call(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls the user's function; its errors become one line."""
    try:
        return function(*args)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(f"{name} fails: {type(error).__name__}: {first_line(error)}") from error


def _equal(old: Array | None, new: Array | None, tolerance: float) -> bool:
    """Whether values are equal up to rounding; values near 0 count as rounding."""
    if old is None or new is None:
        return True
    before, after = (
        np.nan_to_num(np.asarray(values, complex), posinf=0, neginf=0) for values in (old, new)
    )
    if before.shape != after.shape:
        return False
    largest = np.max(np.abs([before, after]), initial=0.0)
    return bool(np.max(np.abs(before - after), initial=0.0) <= tolerance * largest + tolerance**2)
