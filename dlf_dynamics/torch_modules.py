"""Converts a PyTorch module to parameters and a function of them, checked against PyTorch."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dlf_dynamics import torch_call, torch_checks
from dlf_dynamics.errors import ConfigError

_COUNTER = "num_batches_tracked"
"""Counter of batch norm, on which evaluation does not depend."""


@dataclass(frozen=True)
class TorchModule:
    """The content of a module when it was adapted.

    Attributes:
        skeleton: module in evaluation mode, its tensors without values.
        names: names of all parameters and buffers, each with the name under which it is stored
            here; tied parameters have several names.
        params: values of the trained parameters.
        frozen: values of the other parameters and of all buffers.
        recorded: names of frozen values that are passed with the parameters, not differentiated.
        statistics: names of frozen values that training changes.
        verified: forms of inputs for which values and derivatives were compared with PyTorch's.
    """

    skeleton: Any
    names: Mapping[str, str]
    params: Mapping[str, np.ndarray]
    frozen: Mapping[str, np.ndarray]
    recorded: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    verified: set[Any] = field(default_factory=set)

    @property
    def dtype(self) -> np.dtype:
        """Type of the parameters."""
        return next(iter(self.params.values())).dtype

    def outputs(self, params: Mapping[str, Array], inputs: Array) -> Array:
        """Outputs of all examples, in the type of the parameters.

        Raises:
            ConfigError: when the parameters have other names or another type than the inputs, or
                torchax cannot compute the outputs.
        """
        _check_names(params, {*self.params, *self.recorded})
        dtype = jnp.result_type(*params.values())
        inputs = jnp.asarray(inputs)
        if jnp.issubdtype(inputs.dtype, jnp.floating) and inputs.dtype != dtype:
            raise ConfigError(
                f"the inputs are {inputs.dtype} and the parameters {dtype}; expected one type, as "
                f"PyTorch does: inputs.astype({str(dtype)!r})"
            )
        frozen = {
            name: value.astype(dtype) if value.dtype == self.dtype else value
            for name, value in self.frozen.items()
        }
        held = {name: jax.lax.stop_gradient(params[name]) for name in self.recorded}
        tensors = {**frozen, **params, **held}
        named = {name: tensors[of] for name, of in self.names.items()}
        outputs = torch_call.call(copy.deepcopy(self.skeleton), named, inputs)
        return outputs.astype(dtype) if jnp.issubdtype(outputs.dtype, jnp.floating) else outputs

    def verify(self, inputs: Any) -> None:
        """Compares values and derivatives with PyTorch's, once for each form of the inputs.

        Raises:
            ConfigError: when they differ, or one of the two fails.
        """
        form = (jnp.shape(inputs)[1:], np.dtype(inputs.dtype).kind)
        if form not in self.verified:
            torch_checks.compare(self, inputs)
            self.verified.add(form)


def adapted(
    module: Any, inputs: Any, *, with_statistics: bool
) -> tuple[Callable[[Any, Array], Array], dict[str, Array]]:
    """See `adapters.from_torch`."""
    if hasattr(inputs, "detach"):
        inputs = torch_call.values(inputs.cpu())
    taken = _taken(module, inputs, with_statistics)

    def apply(params: Mapping[str, Array], inputs: Array) -> Array:
        taken.verify(inputs)
        return taken.outputs(params, inputs)

    left = set(taken.statistics) - set(taken.recorded)
    if with_statistics:
        left = {name for name in left if not name.endswith(_COUNTER)}
    apply.statistics = tuple(name for name in taken.statistics if name in left)  # type: ignore[attr-defined]
    apply.frozen = {  # type: ignore[attr-defined]
        name: None if name.endswith(_COUNTER) else value
        for name, value in taken.frozen.items()
        if name not in taken.recorded
    }
    apply.torch_module = taken  # type: ignore[attr-defined]
    if inputs is not None:
        taken.verify(inputs)
    params = {**taken.params, **{name: taken.frozen[name] for name in taken.recorded}}
    return apply, {name: jnp.array(value) for name, value in params.items()}


def _taken(module: Any, inputs: Any, with_statistics: bool) -> TorchModule:
    torch_call.torchax()
    torch = importlib.import_module("torch")
    evaluated = _copied(torch, module)
    _check_trained(torch, module)  # not on the copy, which shares no memory
    everything = [
        *evaluated.named_parameters(remove_duplicate=False),
        *evaluated.named_buffers(remove_duplicate=False),
    ]
    first = {id(tensor): name for name, tensor in reversed(everything)}
    names = {name: first[id(tensor)] for name, tensor in everything}
    tensors = {name: tensor for name, tensor in everything if names[name] == name}
    arrays = {name: torch_call.as_numpy(tensor, name) for name, tensor in tensors.items()}
    trained = [name for name, tensor in tensors.items() if tensor.requires_grad]
    changed = _statistics(torch, evaluated, inputs, names)
    dtype = arrays[trained[0]].dtype
    recorded = [name for name in changed if with_statistics and arrays[name].dtype == dtype]
    return TorchModule(
        evaluated.to("meta"),
        names,
        {name: arrays[name] for name in trained},
        {name: value for name, value in arrays.items() if name not in trained},
        tuple(recorded),
        tuple(changed),
    )


def _copied(torch: Any, module: Any) -> Any:
    """A copy of the module on the host in evaluation mode; the module itself is unchanged."""
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"the module is of type {type(module).__name__}; expected a torch.nn.Module"
        )
    original = getattr(module, "_orig_mod", None)
    if original is not None or isinstance(module, torch.jit.ScriptModule):
        raise ConfigError(
            f"the module is compiled ({type(module).__name__}); expected the one before "
            "torch.compile or torch.jit.script, such as module._orig_mod"
        )
    try:
        return copy.deepcopy(module).cpu().eval()
    except Exception as error:  # members of the module may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"the module {type(module).__name__} cannot be copied to the host ({reason}); expected "
            "one that copy.deepcopy takes: keep no computed tensors in it, and use "
            "torch.nn.utils.parametrizations for weight_norm and spectral_norm"
        ) from error


def _check_trained(torch: Any, module: Any) -> None:
    """Raises ConfigError unless parameters have one type, and each has its own memory."""
    params = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not params:
        raise ConfigError(
            "the module has no parameters that require gradients; expected some: frozen ones are "
            "not trained, so there is nothing to analyse"
        )
    dtypes = {tensor.dtype: name for name, tensor in params.items()}
    for dtype, name in dtypes.items():
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"the parameter {name} is of {dtype}; expected float32 or float64: adapt "
                "copy.deepcopy(module).float()".replace("torch.", "", 1)
            )
    if len(dtypes) > 1:
        listed = " and ".join(f"{name} of {dtype}" for dtype, name in dtypes.items())
        raise ConfigError(
            f"the parameters have several types ({listed}); expected one: adapt "
            "copy.deepcopy(module).double()".replace("torch.", "")
        )
    owners: dict[Any, str] = {}
    for name, tensor in params.items():
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta or not tensor.numel():
            continue
        other = owners.setdefault((tensor.device, tensor.data_ptr()), name)
        if other != name:
            raise ConfigError(
                f"the parameters {other} and {name} share memory and are two; expected one "
                "torch.nn.Parameter under both names, so that its derivatives are added"
            )


def _statistics(torch: Any, evaluated: Any, inputs: Any, names: Mapping[str, str]) -> list[str]:
    """Names of values that a pass in training mode changes; all saved ones if it cannot be run."""
    known = {
        f"{name}.{part}".removeprefix(".")
        for name, layer in evaluated.named_modules()
        if isinstance(layer, torch.nn.modules.batchnorm._NormBase) and layer.track_running_stats
        for part in ("running_mean", "running_var", _COUNTER)
    }
    saved = set(evaluated.state_dict())
    if inputs is None:
        changed = saved
    else:
        trial = copy.deepcopy(evaluated).train()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                trial(torch_checks.as_tensor(torch, inputs[: torch_checks.EXAMPLES]))
        except Exception:  # it may need inputs that only training has
            changed = saved
        else:
            before, after = (_frozen(part) for part in (evaluated, trial))
            same = {n for n in before if n in after and torch.equal(before[n], after[n])}
            changed = before.keys() - same
    frozen = _frozen(evaluated)
    return [name for name in frozen if names[name] == name and name in changed | known]


def _frozen(module: Any) -> dict[str, Any]:
    """All values that are not trained, by name."""
    parameters = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    return parameters | dict(module.named_buffers())


def _check_names(params: Mapping[str, Any], expected: set[str]) -> None:
    if not isinstance(params, Mapping):
        raise ConfigError(
            f"params are a {type(params).__name__}; expected the dictionary that from_torch gave"
        )
    for name in sorted(params.keys() ^ expected):
        odd = "lack" if name in expected else "have an unknown"
        raise ConfigError(
            f"params {odd} {name!r}; expected the names that from_torch gave: params_of takes them "
            "out of a state_dict"
        )


def params_of(taken: TorchModule, state: Mapping[str, Any]) -> dict[str, Array]:
    """See `adapters.params_of`."""
    params: dict[str, Array] = {}
    torch = importlib.import_module("torch")
    values = {
        name: torch_call.as_numpy(value, name)
        if isinstance(value, torch.Tensor)
        else np.array(value)
        for name, value in state.items()
        if isinstance(value, torch.Tensor | np.ndarray | jax.Array)
    }
    for name in values.keys() - taken.names.keys():
        raise ConfigError(
            f"the state_dict has {name!r}, which the adapted module lacks; expected the names of "
            f"{type(taken.skeleton).__name__}: take prefixes of wrappers such as 'module.' away"
        )
    recorded = {name: taken.frozen[name] for name in taken.recorded}
    for name, expected in {**taken.params, **recorded}.items():
        if name not in values or values[name].shape != expected.shape:
            shape = values[name].shape if name in values else "nothing"
            raise ConfigError(
                f"the state_dict has {shape} for {name!r}; expected an array of shape "
                f"{expected.shape}, as in the module that was adapted"
            )
        params[name] = jnp.array(values[name], expected.dtype)
    for name, value in taken.frozen.items():
        if name in params or name not in values or name.endswith(_COUNTER):
            continue
        if not np.array_equal(values[name], value):
            raise ConfigError(
                f"{name!r} is not what it was when the module was adapted, and is frozen; expected "
                "it unchanged: adapt the module at this state, or with_statistics=True"
            )
    return params
