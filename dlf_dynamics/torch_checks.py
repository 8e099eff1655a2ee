"""Compares values and derivatives of an adapted PyTorch module with PyTorch's own."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dlf_dynamics import torch_call
from dlf_dynamics.errors import ConfigError, UserError, first_line

if TYPE_CHECKING:
    from dlf_dynamics.torch_modules import TorchModule

EXAMPLES = 4
"""Largest number of examples that are compared."""

_TOLERANCES = {
    ("float64", "float64"): 1e-9,
    ("float32", "float64"): 1e-6,
    ("float32", "float32"): 1e-5,
}
"""Relative differences that count as rounding, by types of the module and of the computation.

Float64 comes first, as it tells apart the approximations of GELU, which differ by 1e-4; but some
parts of a float32 module may not work in float64.
"""

_FLOOR = 1e-3
"""Smallest scale of a gradient, relative to the largest: many are 0 up to rounding."""


class _Derivatives(NamedTuple):
    """Outputs, and the gradient of their inner product with a fixed vector."""

    outputs: np.ndarray
    gradient: dict[str, np.ndarray]


def compare(module: TorchModule, inputs: Any) -> None:
    """Compares outputs and gradient with PyTorch's, at parameters near those of the module.

    The parameters are perturbed, as zeros in the last layer, with which many networks begin, would
    hide all other layers. The comparison is made in float64 if the module can, whatever its type,
    and in another thread, outside of any function that JAX is tracing.

    Args:
        module: the adapted module.
        inputs: examples; if JAX traces them, only their form is known, and others are made up.

    Raises:
        ConfigError: when they differ, PyTorch or torchax fails, or PyTorch returns different values
            in two evaluations.
    """
    examples = _examples(inputs)
    x64 = jax.config.read("jax_enable_x64")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_compare, module, examples, x64).result()


def as_tensor(torch: Any, inputs: Any) -> Any:
    """Inputs as a PyTorch tensor, with 64-bit integers, which JAX does not have by default."""
    array = np.array(inputs)
    return torch.from_numpy(array.astype(np.int64) if array.dtype == np.int32 else array)


def _examples(inputs: Any) -> np.ndarray:
    if not isinstance(inputs, Tracer):
        return np.asarray(inputs[:EXAMPLES])
    shape = (EXAMPLES, *inputs.shape[1:])
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        return np.random.default_rng(0).normal(size=shape).astype(inputs.dtype)
    return (np.arange(int(np.prod(shape))) % 2).reshape(shape).astype(inputs.dtype)


def _compare(module: TorchModule, inputs: np.ndarray, x64: bool) -> None:
    failure: Exception | None = None
    for own, dtype in _TOLERANCES:
        if own != module.dtype.name:
            continue
        try:
            with jax.enable_x64(x64 or dtype == "float64"):
                complaint = _difference(module, inputs, np.dtype(dtype), _TOLERANCES[own, dtype])
        except UserError as error:
            failure = error
            continue
        if complaint is None:
            return
        failure = ConfigError(complaint)
    if failure is not None:
        raise failure


def _difference(
    module: TorchModule, inputs: np.ndarray, dtype: np.dtype, tolerance: float
) -> str | None:
    inputs = inputs.astype(dtype) if inputs.dtype.kind == "f" else inputs
    theirs = params = None
    for params in _points(module, dtype):
        theirs = _by_pytorch(module, params, inputs)
        if all(np.all(np.isfinite(part)) for part in (theirs.outputs, *theirs.gradient.values())):
            break
    assert theirs is not None
    assert params is not None
    ours = _by_jax(module, params, inputs, theirs.outputs.shape)
    worst = _relative(ours.outputs, theirs.outputs, 0)
    if not worst <= tolerance:
        return _words(f"the outputs{_place(module, params, inputs, tolerance)}", worst)
    largest = max(np.max(np.abs(part), initial=0) for part in theirs.gradient.values())
    for name, part in theirs.gradient.items():
        worst = _relative(ours.gradient[name], part, _FLOOR * largest)
        if not worst <= tolerance:
            return _words(f"the derivatives with respect to {name}", worst)
    return None


def _place(
    module: TorchModule, params: Mapping[str, np.ndarray], inputs: np.ndarray, tolerance: float
) -> str:
    """The first part of the module whose output differs, in words."""
    theirs, ours = [], []
    try:
        _evaluated(importlib.import_module("torch"), _watched(module, theirs), params, inputs)
        arrays = {name: jnp.asarray(value) for name, value in params.items()}
        _watched(module, ours).outputs(arrays, jnp.asarray(inputs))
    except Exception:  # the message can do without it
        return ""
    for (name, expected), (_, output) in zip(theirs, ours, strict=False):
        if expected.shape != output.shape or not _relative(output, expected, 0) <= tolerance:
            return f" of {name}"
    return ""


def _watched(module: TorchModule, seen: list[tuple[str, np.ndarray]]) -> TorchModule:
    """The module, which stores the output of each of its parts in `seen`."""
    skeleton = copy.deepcopy(module.skeleton)
    for name, part in skeleton.named_modules():
        label = f"{type(part).__name__} {name}".strip()

        def store(_part: Any, _inputs: Any, output: Any, label: str = label) -> None:
            if hasattr(output, "detach"):
                seen.append((label, torch_call.values(output)))

        part.register_forward_hook(store)
    return replace(module, skeleton=skeleton)


def _words(what: str, worst: float) -> str:
    return (
        f"{what}, computed by JAX, differ from PyTorch's by {worst:.1e} of the largest; expected "
        "the same function: look for torch.autograd.Function, .data, operations in place, and "
        "operations that torchax computes otherwise, or write the module in JAX"
    )


def _points(module: TorchModule, dtype: np.dtype) -> Iterator[dict[str, np.ndarray]]:
    """Parameters near those of the module, and then these, in case the first give no numbers."""
    rng = np.random.default_rng(1)
    values = {**module.params, **{name: module.frozen[name] for name in module.recorded}}
    near = {}
    for name, value in module.params.items():
        size = np.linalg.norm(value) / np.sqrt(max(value.size, 1)) or 0.1
        near[name] = value + 0.1 * size * rng.normal(size=value.shape)
    for point in (values | near, values):
        yield {name: np.asarray(value, dtype) for name, value in point.items()}


def _cotangent(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.random.default_rng(2).normal(size=shape).astype(dtype)


def _by_pytorch(
    module: TorchModule, params: Mapping[str, np.ndarray], inputs: np.ndarray
) -> _Derivatives:
    torch = importlib.import_module("torch")
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            first, _ = _evaluated(torch, module, params, inputs)
            second, leaves = _evaluated(torch, module, params, inputs)
            if not isinstance(second, torch.Tensor):
                return _Derivatives(np.zeros(0), {})  # `torch_call.call` reports it
            cotangent = torch.tensor(_cotangent(tuple(second.shape), _dtype(params)))
            scalar = torch.sum(second * cotangent)
            parts = [torch.zeros_like(leaf) for leaf in leaves]
            if scalar.requires_grad:
                parts = torch.autograd.grad(scalar, leaves, materialize_grads=True)
    except Exception as error:  # the module may raise anything
        raise ConfigError(
            f"PyTorch itself fails on inputs of shape {inputs.shape} and type {inputs.dtype}: "
            f"{type(error).__name__}: {first_line(error)}; expected inputs that the module takes: "
            "hand some over with from_torch(module, inputs)"
        ) from error
    before, after = (output.detach().numpy() for output in (first, second))
    if not np.array_equal(before, after, equal_nan=True):
        raise ConfigError(
            "two evaluations of the module differ in PyTorch itself; expected a deterministic "
            "function: let noise and dropout depend on self.training"
        )
    gradient = dict(zip(module.params, (part.detach().numpy() for part in parts), strict=True))
    return _Derivatives(after, gradient)


def _evaluated(
    torch: Any, module: TorchModule, params: Mapping[str, np.ndarray], inputs: np.ndarray
) -> tuple[Any, list[Any]]:
    """The module's output, and the tensors with respect to which it can be differentiated."""
    tensors = {
        name: torch.tensor(value.astype(_dtype(params)) if value.dtype == module.dtype else value)
        for name, value in {**module.frozen, **params}.items()
    }
    leaves = [tensors[name].requires_grad_() for name in module.params]
    named = {name: tensors[of] for name, of in module.names.items()}
    copied, arguments = copy.deepcopy(module.skeleton), (as_tensor(torch, inputs),)
    return torch.func.functional_call(copied, named, arguments, tie_weights=False), leaves


def _dtype(params: Mapping[str, np.ndarray]) -> np.dtype:
    return next(iter(params.values())).dtype


def _by_jax(
    module: TorchModule,
    params: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    shape: tuple[int, ...],
) -> _Derivatives:
    @jax.jit
    def derivatives(params: Any, inputs: Any) -> Any:
        outputs, pullback = jax.vjp(lambda params: module.outputs(params, inputs), params)
        return outputs, pullback(jnp.asarray(_cotangent(outputs.shape, outputs.dtype)))

    arrays = {name: jnp.asarray(value) for name, value in params.items()}
    try:
        outputs, (gradient,) = derivatives(arrays, jnp.asarray(inputs))
    except NotImplementedError as error:
        raise ConfigError(
            f"JAX has no derivatives of an operation of the module ({error}); expected operations "
            "that it can differentiate: write this one by others"
        ) from error
    if outputs.shape != shape:
        raise ConfigError(
            f"torchax gives outputs of shape {outputs.shape} where PyTorch gives {shape}; expected "
            "the same: write the module in JAX"
        )
    return _Derivatives(np.asarray(outputs), {n: np.asarray(g) for n, g in gradient.items()})


def _relative(ours: np.ndarray, theirs: np.ndarray, floor: float) -> float:
    """The largest difference, relative to the largest value; NaN must be NaN in both."""
    if not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return np.inf
    scale = max(float(np.nanmax(np.abs(theirs), initial=0)), floor)
    difference = float(np.nanmax(np.abs(np.nan_to_num(ours) - np.nan_to_num(theirs)), initial=0))
    return difference / scale if difference else 0.0
