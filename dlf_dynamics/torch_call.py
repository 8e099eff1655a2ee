"""Calls a PyTorch module in JAX: torchax on current PyTorch.

Both packages are optional. torchax 0.0.13 refers to overloads with named dimensions, which PyTorch
has since removed; these names exist while it is imported. Its import would also register a device
with PyTorch permanently, disable a fast path of attention and set an environment variable; here all
of this is undone, so that PyTorch then computes as it did before.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from importlib import metadata
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from dlf_dynamics.errors import ConfigError, first_line, one_line

INSTALL = "pip install 'torch>=2.9' torchax==0.0.13"
"""How to install the extra `torch`."""

_REMOVED = {
    "all": ("dimname", "dimname_out"),
    "index_add": ("dimname",),
    "index_copy": ("dimname",),
    "index_copy_": ("dimname",),
    "index_fill": ("Dimname_Scalar", "Dimname_Tensor"),
    "index_fill_": ("Dimname_Scalar", "Dimname_Tensor"),
    "norm": ("names_ScalarOpt_dim", "names_ScalarOpt_dim_dtype", "names_dtype_out", "names_out"),
    "prod": ("dim_Dimname",),
    "std": ("correction_names", "correction_names_out", "names_dim", "names_out"),
    "std_mean": ("correction_names", "names_dim"),
    "unbind": ("Dimname",),
}
"""Overloads that PyTorch removed after 2.9, by their operations."""

_DEVICE = "privateuseone:0"
"""PyTorch's own name of a device that no backend has claimed."""

_CONTROL_FLOW = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@functools.cache
def torchax() -> ModuleType:
    """The package `torchax`.

    If another program has imported it already, it is used as it is.

    Raises:
        ConfigError: when torchax or PyTorch is not installed, or their versions do not fit.
    """  # noqa: DOC501
    try:
        torch = importlib.import_module("torch")
        theirs = "torchax" in sys.modules
        with _as_it_was(torch), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            package = importlib.import_module("torchax")
            importlib.import_module("torchax.tensor").Environment()  # loads the operations
        if not theirs:
            _name_device(torch)
            logging.getLogger("torchax").setLevel(logging.ERROR)  # its warnings are about TPUs
        return package
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "torchax"):
            raise _refused(error) from error
        raise ConfigError(
            f"the package {error.name} is not installed; expected it for models of PyTorch: "
            f"{INSTALL}"
        ) from None
    except Exception as error:  # unknown versions may raise anything
        raise _refused(error) from error


@contextmanager
def _as_it_was(torch: Any) -> Iterator[None]:
    """Adds removed names to PyTorch temporarily, and undoes the other effects of the import."""
    named = [
        (getattr(torch.ops.aten, op), name) for op, names in _REMOVED.items() for name in names
    ]
    lent: list[tuple[Any, str]] = [(op, name) for op, name in named if not hasattr(op, name)]
    fast, variable = torch.backends.mha.get_fastpath_enabled(), "ENABLE_RUNTIME_UPTIME_TELEMETRY"
    unset, options = variable not in os.environ, jax.config.values["jax_pjrt_client_create_options"]
    register = torch.utils.rename_privateuse1_backend, torch._register_device_module
    tables = torch._decomp.global_decomposition_table
    rules = {kind: dict(table) for kind, table in tables.items()}
    try:
        for op, name in lent:
            setattr(op, name, object())  # a key of tables that no operation uses
        # The first of these would make the device the machine's accelerator for PyTorch.
        torch.utils.rename_privateuse1_backend = torch._register_device_module = _nothing
        yield
    finally:
        torch.utils.rename_privateuse1_backend, torch._register_device_module = register
        for op, name in lent:
            delattr(op, name)
        for kind, table in tables.items():
            table.clear()
            table.update(rules[kind])
        torch.backends.mha.set_fastpath_enabled(fast)
        if unset:
            os.environ.pop(variable, None)
        if jax.config.values["jax_pjrt_client_create_options"] != options:
            jax.config.update("jax_pjrt_client_create_options", options)


def _nothing(*_: Any) -> None:
    """Registers nothing."""


def _name_device(torch: Any) -> None:
    """Gives torchax's tensors a device that PyTorch knows without a registration."""
    device = property(lambda _: torch.device(_DEVICE))
    for module, name in (("torchax.tensor", "Tensor"), ("torchax.view", "View")):
        getattr(importlib.import_module(module), name).device = device


def _refused(error: Exception) -> ConfigError:
    versions = " and ".join(f"{name} {_version(name)}" for name in ("torchax", "torch"))
    return ConfigError(
        f"{versions} cannot be imported together ({one_line(error)}); expected torchax 0.0.13 with "
        f"a torch from 2.9 to 2.13: {INSTALL}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@functools.cache
def _environment() -> Any:
    """The rules of torchax, with those replaced that would be silently wrong here."""
    torchax()
    aten, environment = importlib.import_module("torch").ops.aten, _environment_class()()
    for operation, function in (
        (aten.detach, jax.lax.stop_gradient),  # torchax's does not stop the gradient
        (aten.complex, jax.lax.complex),  # torchax's is float32
        (aten.embedding, _embedding),
    ):
        for key in (operation, operation.default):
            old = environment._get_op_or_decomp(operation)
            environment._ops[key] = type(old)(operation, function, True, True, False, False)
    return environment


def _environment_class() -> Any:
    torch, tensor, view = map(importlib.import_module, ("torch", "torchax.tensor", "torchax.view"))
    kinds, mapped = (tensor.Tensor, view.View), torch.utils._pytree.tree_map_only

    class Environment(tensor.Environment):
        def __init__(self) -> None:
            super().__init__()
            # torchax makes a random key for each thread when it is first used: in a function that
            # JAX traces, it would be a value of that trace, and outlive it.
            self._property = tensor._PropertyHolder(
                lambda: tensor.RuntimeProperty(None, None, None)
            )

        def _should_use_torchax_tensor(self, device: Any) -> bool:
            """True, whatever device the module requests."""
            return True

        def get_and_rotate_prng_key(self, generator: Any = None) -> Any:
            raise ConfigError(
                "the module draws random numbers when it is evaluated; expected a deterministic "
                "function: let noise and dropout depend on self.training"
            )

        def t2j_iso(self, torchtensors: Any) -> Any:
            """Converts plain tensors of the module to constants."""
            return mapped(torch.Tensor, _array, torchtensors)

        def dispatch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            """Stops gradients under `torch.no_grad`."""
            result = super().dispatch(func, types, args, kwargs)
            return result if torch.is_grad_enabled() else mapped(kinds, self._held, result)

        def _held(self, value: Any) -> Any:
            if isinstance(value, view.View):
                return tensor.Tensor(jax.lax.stop_gradient(value.jax()), self)
            value._elem = jax.lax.stop_gradient(value._elem)
            return value

    return Environment


def _array(value: Any) -> Any:
    """The array of a torchax tensor, or of a constant, which is neither parameter nor buffer."""
    if hasattr(value, "jax"):
        return value.jax()
    if value.requires_grad:
        raise ConfigError(
            f"the module computes with a tensor of shape {tuple(value.shape)} that requires "
            "gradients and is not among its named_parameters(); expected all that is trained "
            "there: make it a torch.nn.Parameter, and put modules into a ModuleList"
        )
    array = as_numpy(value, "a tensor of the module")
    return jax.numpy.asarray(array) if value.ndim else array.item()  # as weak a type as PyTorch's


def _embedding(
    weight: Array,
    indices: Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    """Rows of a table; NaN for an index that PyTorch would refuse, as traced values are unknown."""
    if scale_grad_by_freq:
        raise ConfigError(
            "the module has an embedding with scale_grad_by_freq; expected one without it, as its "
            "gradients are not those of a loss"
        )
    rows = jax.numpy.take(weight, jax.numpy.where(indices < 0, len(weight), indices), axis=0)
    if padding_idx < 0:
        return rows
    padding = (indices == padding_idx)[..., None]
    return jax.numpy.where(padding, jax.lax.stop_gradient(rows), rows)


def as_numpy(value: Any, name: str) -> np.ndarray:
    """A copy of a PyTorch tensor as an array.

    Raises:
        ConfigError: when it is sparse, quantized or has no values yet, or JAX would reduce its
            precision.
    """
    torch = importlib.import_module("torch")
    if not isinstance(value, torch.Tensor) or isinstance(
        value, torch.nn.parameter.UninitializedTensorMixin
    ):
        raise ConfigError(f"{name} has no values yet; expected a module that has been called once")
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        kind = "meta" if value.is_meta else f"{value.layout} {value.dtype}".replace("torch.", "")
        raise ConfigError(f"{name} is a tensor of {kind}; expected a dense one of numbers")
    value = value.detach().cpu()
    half = value.dtype in (torch.bfloat16, torch.float16)
    array = np.array((value.float() if half else value).numpy())
    if jax.config.read("jax_enable_x64") or array.dtype.itemsize < 8:
        return array
    if array.dtype in (np.float64, np.complex128):
        raise ConfigError(
            f"{name} is of {array.dtype}, and JAX computes in float32; expected one type: set "
            'jax.config.update("jax_enable_x64", True) first, or take module.float()'
        )
    if array.dtype.kind in "iu" and np.any(array != array.astype(np.int32)):
        raise ConfigError(
            f"{name} has integers of 64 bits, which JAX would cut; expected "
            'jax.config.update("jax_enable_x64", True) first'
        )
    return array


def values(tensor: Any) -> np.ndarray:
    """The values of a tensor of PyTorch, or of torchax if it is not traced."""
    return np.array(tensor.jax() if hasattr(tensor, "jax") else tensor.detach().numpy())


_ONE_AT_A_TIME = threading.RLock()


def call(module: Any, tensors: Mapping[str, Array | np.ndarray], inputs: Array) -> Array:
    """The output of a module, computed by JAX.

    Args:
        module: module in evaluation mode, which nobody else changes meanwhile.
        tensors: parameters and buffers by all of their names.
        inputs: inputs of all examples.

    Raises:
        ConfigError: when torchax cannot compute it, or the output is not one tensor.
    """  # noqa: DOC501
    environment, torch = _environment(), importlib.import_module("torch")
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(_as_torchax_needs_it(torch))
        stack.enter_context(warnings.catch_warnings())
        # torchax requests 64-bit integers throughout; the values are compared with PyTorch's.
        warnings.filterwarnings("ignore", "Explicitly requested dtype")
        stack.enter_context(torch.enable_grad())
        stack.enter_context(environment)
        wrapped = environment.j2t_iso(
            {name: jax.numpy.asarray(value) for name, value in tensors.items()}
        )
        arguments = (environment.j2t_iso(inputs),)
        try:
            output = torch.func.functional_call(module, wrapped, arguments, tie_weights=False)
        except (ConfigError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # the module, PyTorch, torchax and JAX may raise anything
            raise _complaint(error, module) from error
    if not isinstance(output, torch.Tensor):
        raise ConfigError(
            f"the module {type(module).__name__} gives a {type(output).__name__}; expected one "
            "tensor: wrap it in a module whose forward returns the outputs alone"
        )
    return environment.t2j_iso(output)


@contextmanager
def _as_torchax_needs_it(torch: Any) -> Iterator[None]:
    """Adds a module for the device to PyTorch, and uses the attention operations of training."""
    before, name = torch.backends.mha.get_fastpath_enabled(), _DEVICE.partition(":")[0]
    lent = name not in sys.modules and not hasattr(torch, name)
    torch.backends.mha.set_fastpath_enabled(False)
    if lent:
        sys.modules[f"torch.{name}"] = torch.privateuseone = _device_module()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        if lent:
            del sys.modules[f"torch.{name}"], torch.privateuseone


@functools.cache
def _device_module() -> ModuleType:
    """The functions that PyTorch requires of a device; there are no random numbers."""
    module = ModuleType(f"torch.{_DEVICE.partition(':')[0]}")
    module.device = lambda _: nullcontext()  # type: ignore[attr-defined]
    module.is_available = lambda: True  # type: ignore[attr-defined]
    module.device_count = lambda: 1  # type: ignore[attr-defined]
    module.current_device = lambda: 0  # type: ignore[attr-defined]
    module.get_rng_state = lambda *_: None  # type: ignore[attr-defined]
    module.set_rng_state = _nothing  # type: ignore[attr-defined]
    return module


def _complaint(error: Exception, module: Any) -> ConfigError:
    """What failed, and where, in one line."""
    names = {id(part): name for name, part in module.named_modules()}
    part, operation = type(module).__name__, ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if id(owner) in names:
            part = " ".join(filter(None, (type(owner).__name__, names[id(owner)])))
        if frame.f_code.co_name == "dispatch" and "func" in frame.f_locals:
            function = frame.f_locals["func"]
            operation = str(getattr(function, "__name__", function))
            operation = operation if "." in operation else f"torch's {operation}"
    done = f"{operation or 'forward'} of the module {part}"
    if isinstance(error, _CONTROL_FLOW):
        return ConfigError(
            f"{done} depends on values that are not known when it is compiled; expected "
            "operations that depend on shapes alone: torch.where instead of if, masks instead of "
            f"selections ({type(error).__name__})"
        )
    return ConfigError(
        f"torchax {_version('torchax')} cannot compute {done}: {type(error).__name__}: "
        f"{first_line(error)}; expected operations that it knows: write this one by others, or "
        "the module in JAX"
    )
