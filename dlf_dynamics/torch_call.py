"""One call of a PyTorch module by JAX: torchax, on the PyTorch of today.

Both are optional. torchax 0.0.13 names overloads with named dimensions, which PyTorch has since
removed; these names are lent to it while it is imported. Its import registers a device with PyTorch
for good, switches a fast path of attention off and sets an environment variable; here these stay as
they were, so that PyTorch computes afterwards as it did before.
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

from dlf_dynamics.errors import ConfigError

INSTALL = "pip install 'torch>=2.9' torchax==0.0.13"
"""What the extra `torch` asks for."""

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
"""Overloads of operations that PyTorch had until 2.9, by their operations."""

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

    One that was imported before, by somebody else, is taken as it is.

    Raises:
        ConfigError: when torchax or PyTorch is not installed, or they do not go together.
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
    except Exception as error:  # whatever versions that are not known may raise
        raise _refused(error) from error


@contextmanager
def _as_it_was(torch: Any) -> Iterator[None]:
    """Lends PyTorch what torchax asks for, and undoes what its import changes elsewhere."""
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
            setattr(op, name, object())  # a key of tables at which no operation ever looks
        # After the first of these PyTorch takes the device for the machine's accelerator.
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
    """Lets torchax's tensors name a device that PyTorch knows without a registration."""
    device = property(lambda _: torch.device(_DEVICE))
    for module, name in (("torchax.tensor", "Tensor"), ("torchax.view", "View")):
        getattr(importlib.import_module(module), name).device = device


def _refused(error: Exception) -> ConfigError:
    found = " and ".join(f"{name} {_version(name)}" for name in ("torchax", "torch"))
    reason = " ".join(str(error).split())
    return ConfigError(
        f"{found} cannot be imported together ({reason}); expected torchax 0.0.13 with a torch "
        f"from 2.9 to 2.13: {INSTALL}"
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@functools.cache
def _environment() -> Any:
    """The rules of torchax, but for what would be silently wrong here."""
    torchax()
    aten, environment = importlib.import_module("torch").ops.aten, _environment_class()()
    for operation, function in (
        (aten.detach, jax.lax.stop_gradient),  # theirs does not stop it
        (aten.complex, jax.lax.complex),  # theirs is of float32
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
            # Theirs has a random key for each thread, made wherever it is first looked at: within a
            # function that JAX traces it would be a value of that trace, and outlive it.
            self._property = tensor._PropertyHolder(
                lambda: tensor.RuntimeProperty(None, None, None)
            )

        def _should_use_torchax_tensor(self, device: Any) -> bool:
            """Whatever device the module asks for."""
            return True

        def get_and_rotate_prng_key(self, generator: Any = None) -> Any:
            raise ConfigError(
                "the module draws random numbers when it is evaluated; expected a deterministic "
                "function: let noise and dropout depend on self.training"
            )

        def t2j_iso(self, torchtensors: Any) -> Any:
            """Plain tensors of the module are constants."""
            return mapped(torch.Tensor, _array, torchtensors)

        def dispatch(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
            """Nothing is differentiated under `torch.no_grad`."""
            found = super().dispatch(func, types, args, kwargs)
            return found if torch.is_grad_enabled() else mapped(kinds, self._held, found)

        def _held(self, value: Any) -> Any:
            if isinstance(value, view.View):
                return tensor.Tensor(jax.lax.stop_gradient(value.jax()), self)
            value._elem = jax.lax.stop_gradient(value._elem)
            return value

    return Environment


def _array(value: Any) -> Any:
    """The array of a tensor of torchax, or a constant: of neither parameter nor buffer."""
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
    """Rows of a table; NaN where PyTorch would refuse an index, as values cannot be looked at."""
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
    """A tensor of PyTorch as an array of its own.

    Raises:
        ConfigError: when it is sparse, quantized or has no values yet, or JAX would cut it down to
            another type.
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
    """The numbers of a tensor of PyTorch, or of torchax outside of what JAX traces."""
    return np.array(tensor.jax() if hasattr(tensor, "jax") else tensor.detach().numpy())


_ONE_AT_A_TIME = threading.RLock()


def call(module: Any, tensors: Mapping[str, Array | np.ndarray], inputs: Array) -> Array:
    """The output of a module, computed by JAX.

    Args:
        module: in evaluation mode, and changed by nobody else meanwhile.
        tensors: parameters and buffers by all of their names.
        inputs: of all examples.

    Raises:
        ConfigError: when torchax cannot compute it, or the output is not one tensor.
    """  # noqa: DOC501
    environment, torch = _environment(), importlib.import_module("torch")
    with ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(_as_torchax_needs_it(torch))
        stack.enter_context(warnings.catch_warnings())
        # Integers of 64 bits are asked for all the time, and values held against PyTorch's.
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
        except Exception as error:  # whatever the module, PyTorch, torchax or JAX may raise
            raise _complaint(error, module) from error
    if not isinstance(output, torch.Tensor):
        raise ConfigError(
            f"the module {type(module).__name__} gives a {type(output).__name__}; expected one "
            "tensor: wrap it in a module whose forward returns the outputs alone"
        )
    return environment.t2j_iso(output)


@contextmanager
def _as_torchax_needs_it(torch: Any) -> Iterator[None]:
    """Lends PyTorch a module for the device; attention by the operations that it trains with."""
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
    """What PyTorch asks a device for; there are no random numbers."""
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
    place, operation = type(module).__name__, ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if id(owner) in names:
            place = " ".join(filter(None, (type(owner).__name__, names[id(owner)])))
        if frame.f_code.co_name == "dispatch" and "func" in frame.f_locals:
            function = frame.f_locals["func"]
            operation = str(getattr(function, "__name__", function))
            operation = operation if "." in operation else f"torch's {operation}"
    reason = next(iter(str(error).strip().splitlines()), "no message")
    done = f"{operation or 'forward'} of the module {place}"
    if isinstance(error, _CONTROL_FLOW):
        return ConfigError(
            f"{done} depends on values that are not known when it is compiled; expected "
            "operations that depend on shapes alone: torch.where instead of if, masks instead of "
            f"selections ({type(error).__name__})"
        )
    return ConfigError(
        f"torchax {_version('torchax')} cannot compute {done}: {type(error).__name__}: {reason}; "
        "expected operations that it knows: write this one by others, or the module in JAX"
    )
