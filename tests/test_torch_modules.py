"""What `from_torch` takes of a module, what it refuses, and that it leaves everything as it was."""

import copy
import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import Recorder, torch_checks
from dlf_dynamics.adapters import from_torch, params_of, statistics_of
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import cross_entropy
from dlf_dynamics.problem import Problem

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:  # by itself it may not be imported
    pytest.skip("torchax is not installed", allow_module_level=True)
nn, F = torch.nn, torch.nn.functional

pytestmark = [
    pytest.mark.torch,
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\..*:DeprecationWarning"),
]

RNG = np.random.default_rng(4)
INPUTS = jnp.asarray(RNG.normal(size=(4, 6)))
IMAGES = jnp.asarray(RNG.normal(size=(4, 2, 8, 8)))
TOKENS = jnp.asarray(RNG.integers(0, 7, (4, 5)))
LABELS = jnp.asarray([0, 1, 2, 1])


class Computes(nn.Module):
    """A linear layer and a function of it and the inputs."""

    def __init__(self, function, layer=None, **members):
        super().__init__()
        self.function, self.layer = function, nn.Linear(6, 6) if layer is None else layer
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x):
        return self.function(self, x)


def double(module):
    return module.double()


def pytorch(module, inputs):
    with torch.no_grad():
        return module.eval()(torch.from_numpy(np.array(inputs))).numpy()


def agree(module, inputs):
    """Values by `apply` are PyTorch's; derivatives have been held against PyTorch's, then."""
    apply, params = from_torch(module, inputs)
    found = jax.jit(apply)(params, inputs)
    np.testing.assert_allclose(found, pytorch(module, inputs), rtol=0, atol=1e-10)
    return apply, params


def without_gradients(self, x):
    with torch.no_grad():
        gate = torch.sigmoid(self.layer(x))
    return self.layer(x) * gate


def in_place(self, x):
    y = self.layer(x).clone()
    y[:, 0] = 2 * y[:, 1]
    y[:, 2:4] += 1
    return y.mul_(2).relu_()


def checkpointed(self, x):
    return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)


COMPUTED = {
    "detached": lambda self, x: (
        self.layer(x) * self.layer(x)[:, :1].detach() + self.layer(x).detach()
    ),
    "without gradients": without_gradients,
    "in place": in_place,
    "checkpointed": checkpointed,
    "constants made on the host": lambda self, x: self.layer(x) * torch.arange(6, device="cpu") / 6,
    "attention": lambda self, x: F.scaled_dot_product_attention(
        *[self.layer(x).view(-1, 2, 3)] * 3, is_causal=True
    ),
    "chosen by shape": lambda self, x: self.layer(x) if len(x) > 2 else x,
}


@pytest.mark.parametrize("function", COMPUTED.values(), ids=COMPUTED)
def test_what_a_forward_may_do(function):
    agree(double(Computes(function)), INPUTS)


def test_plain_tensors_of_a_module_are_constants():
    scale = torch.arange(6.0, dtype=torch.float64)
    agree(double(Computes(lambda self, x: self.layer(x) * self.scale, scale=scale)), INPUTS)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, g):
        return g


def changes_views(self, x):
    y = self.layer(x)
    y[:, :3].mul_(2)
    y.view(-1, 2, 3).add_(1)
    return y


DIFFERENT, RANDOM = (
    "computed by JAX, differ from PyTorch's by",
    "two evaluations of the module differ",
)
REFUSED = {
    "custom function": (lambda self, x: StraightThrough.apply(3 * self.layer(x)), DIFFERENT),
    "data": (lambda self, x: self.layer(x) * self.layer(x).data, DIFFERENT),
    "views in place": (changes_views, DIFFERENT),
    "cosine": (lambda self, x: F.cosine_similarity(self.layer(x), x), DIFFERENT),
    "float32 within": (lambda self, x: torch.lgamma(self.layer(x).exp()), DIFFERENT),
    "random": (lambda self, x: self.layer(x) + torch.rand(6), RANDOM),
    "one random number": (lambda self, x: self.layer(x) * torch.rand(()), RANDOM),
    "NumPy's random": (lambda self, x: self.layer(x) * np.random.rand(), RANDOM),  # noqa: NPY002
    "dropout": (lambda self, x: F.dropout(self.layer(x)), RANDOM),
    "seeded": (
        lambda self, x: self.layer(x) + torch.rand(6, generator=torch.Generator().manual_seed(1)),
        "draws random numbers when it is evaluated",
    ),
    "branch": (
        lambda self, x: self.layer(x) if self.layer(x).sum() > 0 else x,
        "depends on values that are not known when it is compiled",
    ),
    "selection": (
        lambda self, x: self.layer(x)[x > 0],
        "__getitem__ of the module Computes depends on values",
    ),
    "tuple": (lambda self, x: (self.layer(x), x), "gives a tuple; expected one tensor"),
    "unknown": (
        lambda self, x: F.adaptive_max_pool2d(self.layer(x).view(-1, 1, 2, 3), 2),
        "torchax 0.0.13 cannot compute adaptive_max_pool2d.default of the module Computes",
    ),
    "wrong shape": (
        lambda self, x: self.layer(x[:, :5]),
        "PyTorch itself fails on inputs of shape",
    ),
}


@pytest.mark.parametrize(("function", "words"), REFUSED.values(), ids=REFUSED)
def test_what_would_be_silently_wrong_is_refused(function, words):
    with pytest.raises(ConfigError, match=words) as refused:
        from_torch(double(Computes(function)), INPUTS)
    assert "\n" not in str(refused.value)


def test_other_windows_are_refused():
    pool = nn.AvgPool2d(3, stride=2, ceil_mode=True)
    average = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Sequential(nn.Tanh(), pool), nn.Flatten())
    with pytest.raises(ConfigError, match=rf"the outputs of AvgPool2d 1\.1, {DIFFERENT}"):
        from_torch(double(average), IMAGES)
    dilated = Computes(lambda self, x: F.max_pool2d(self.layer(x), 2, 1, 0, 2), nn.Conv2d(2, 2, 1))
    with pytest.raises(ConfigError, match="JAX has no derivatives of an operation of the module"):
        from_torch(double(dilated), IMAGES)


def test_inputs_and_states_may_be_of_any_library():
    module = Computes(lambda self, x: self.layer(x.float() / 255)).float()
    images = RNG.integers(0, 256, (4, 6)).astype("uint8")
    apply, params = from_torch(module, torch.from_numpy(images))
    found = jax.jit(apply)(params, jnp.asarray(images))
    np.testing.assert_allclose(found, pytorch(module, images), rtol=1e-5, atol=1e-6)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    for values in (state, {name: jnp.array(value) for name, value in state.items()}):
        jax.tree.map(np.testing.assert_array_equal, params_of(apply, values), params)


def test_the_place_of_what_fails_is_named():
    inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.AdaptiveMaxPool2d(2))
    with pytest.raises(
        ConfigError, match=r"of the module AdaptiveMaxPool2d 0\.1: OperatorNotFound"
    ):
        from_torch(double(nn.Sequential(inner)), IMAGES)


def test_without_inputs_they_are_held_against_pytorch_when_they_are_traced():
    apply, params = from_torch(double(Computes(lambda self, x: self.layer(x))))
    np.testing.assert_allclose(jax.jit(apply)(params, INPUTS), apply(params, INPUTS), rtol=1e-12)
    for name in ("data", "random"):
        apply, params = from_torch(double(Computes(REFUSED[name][0])))
        with pytest.raises(ConfigError, match=REFUSED[name][1]):
            jax.jit(apply)(params, INPUTS)


def test_each_form_of_inputs_is_held_against_pytorch(monkeypatch):
    held = []
    monkeypatch.setattr(torch_checks, "compare", lambda module, inputs: held.append(inputs.shape))
    apply, params = from_torch(double(nn.Linear(6, 2)), INPUTS)
    for inputs in (INPUTS, INPUTS[:2], INPUTS[:, None], INPUTS[:, None]):
        apply(params, inputs)
    assert held == [(4, 6), (4, 1, 6)]


def test_zeros_in_the_last_layer_hide_nothing():
    module = Computes(lambda self, x: self.last(F.dropout(self.layer(x), 0.0).data))
    module.last = nn.Linear(6, 2)
    nn.init.zeros_(module.last.weight)
    with pytest.raises(ConfigError, match=DIFFERENT):
        from_torch(double(module), INPUTS)


def test_it_is_traced_once_for_a_shape():
    calls = []
    module = double(Computes(lambda self, x: (calls.append(1), self.layer(x))[1]))
    apply, params = from_torch(module, INPUTS)
    compiled, before = jax.jit(apply), len(calls)
    for scale in (1.0, 2.0):
        compiled({name: scale * value for name, value in params.items()}, INPUTS)
    assert len(calls) == before + 1


def test_nothing_of_a_trace_outlives_it():
    """A thread of its own has called nothing before."""
    module = double(Computes(lambda self, x: F.relu(self.layer(x))))
    apply, params = from_torch(module, INPUTS)
    with ThreadPoolExecutor(1) as pool:
        traced = pool.submit(jax.make_jaxpr(apply), params, INPUTS).result()
        assert "random" not in str(traced)
        assert "key" not in str(traced)
        with jax.checking_leaks():
            pool.submit(jax.jit(apply), params, INPUTS).result()


def test_an_index_outside_a_table_gives_nan():
    """PyTorch refuses it; JAX would take another row."""
    module = double(nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2)))
    apply, params = from_torch(module, TOKENS)
    for wrong in (7, -1):
        found = np.asarray(apply(params, TOKENS.at[0, 0].set(wrong)))
        assert np.all(np.isnan(found[0, 0]))
        assert np.all(np.isfinite(found[0, 1:]))
        with pytest.raises(ConfigError, match=r"PyTorch itself fails on inputs.*IndexError"):
            from_torch(module, TOKENS.at[0, 0].set(wrong))


def test_padding_is_not_trained():
    module = double(nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Linear(3, 2)))
    apply, params = agree(module, TOKENS)
    slope = jax.grad(lambda p: jnp.sum(apply(p, TOKENS) ** 2))(params)["0.weight"]
    assert np.all(slope[2] == 0)
    assert np.all(
        np.any(slope != 0, axis=1) == (np.isin(np.arange(7), TOKENS) & (np.arange(7) != 2))
    )


def test_the_module_and_its_surroundings_stay_as_they_are():
    module = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    module[2].eval()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    before, flags = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    torch.manual_seed(5)
    random, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    from_torch(module, INPUTS.astype("float32"))
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert flags == [part.training for part in module.modules()]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in module.parameters())
    assert torch.equal(module[0].weight.grad, torch.ones(4, 6))


def test_updates_in_place_change_nothing_that_was_taken():
    module = double(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    apply, params = from_torch(module, INPUTS)
    later = params_of(apply, module.state_dict())
    state = {name: value.clone() for name, value in module.state_dict().items()}
    outputs, expected = np.array(apply(params, INPUTS)), {n: np.array(v) for n, v in params.items()}
    with torch.no_grad():
        for value in module.state_dict().values():
            value.mul_(3)
    for taken in (params, later, params_of(apply, state)):
        jax.tree.map(np.testing.assert_array_equal, taken, expected)
    np.testing.assert_array_equal(apply(params, INPUTS), outputs)


def test_frozen_parameters_are_not_trained():
    module = double(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    module[0].requires_grad_(False)
    apply, params = agree(module, INPUTS)
    assert sorted(params) == ["2.bias", "2.weight"]
    assert statistics_of(apply) == ()
    with torch.no_grad():
        module[2].weight.mul_(2)
    later = params_of(apply, module.state_dict())
    np.testing.assert_allclose(apply(later, INPUTS), pytorch(module, INPUTS), rtol=1e-12)
    with torch.no_grad():
        module[0].weight.mul_(2)
    with pytest.raises(ConfigError, match=r"'0.weight' is not what it was when the module was"):
        params_of(apply, module.state_dict())


def test_tied_parameters_are_one_and_their_derivatives_are_added():
    module = double(
        nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    )
    module[2].weight = module[0].weight
    apply, params = agree(module, INPUTS)
    assert list(params) == ["0.weight"]
    outputs = module(torch.from_numpy(np.array(INPUTS)))
    (expected,) = torch.autograd.grad(torch.sum(outputs**3), module[0].weight)
    slope = jax.grad(lambda p: jnp.sum(apply(p, INPUTS) ** 3))(params)["0.weight"]
    np.testing.assert_allclose(slope, expected, rtol=1e-10, atol=1e-12)
    module[2].weight = nn.Parameter(module[0].weight.data)
    with pytest.raises(ConfigError, match=r"0.weight and 2.weight share memory and are two"):
        from_torch(module, INPUTS)


class Positions(nn.Module):
    """Constants that are saved, such as a mask, and a counter that training moves."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("positions", torch.arange(6.0))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("unsaved", torch.ones(6), persistent=False)

    def forward(self, x):
        if self.training:
            self.scale += 0.1
        return self.layer(x * self.unsaved + self.positions) * self.scale


def test_statistics_are_the_buffers_that_training_changes(tmp_path):
    apply, _ = agree(double(Positions()), INPUTS)
    assert statistics_of(apply) == ("scale",)
    apply, _ = from_torch(double(Positions()))  # nothing is known of the inputs
    assert statistics_of(apply) == ("positions", "scale")
    module = double(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
    names = ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    for inputs in (INPUTS, None):
        assert statistics_of(from_torch(module, inputs)[0]) == names
    problem = Problem(from_torch(module, INPUTS)[0], cross_entropy, INPUTS, LABELS)
    with pytest.raises(ConfigError, match=r"holds statistics that training changes .*running_mean"):
        Recorder(tmp_path / "run.h5", problem, optimizer=None)
    norm = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert statistics_of(from_torch(double(norm))[0]) == ()


def test_a_module_that_cannot_train_on_the_inputs_has_all_buffers_for_statistics():
    module = Positions()
    module.norm = nn.BatchNorm1d(3)
    module.forward = None
    picky = Computes(
        lambda self, x: self.inner(x) if not self.training else 1 / 0, inner=Positions()
    )
    apply, _ = from_torch(double(picky), INPUTS)
    assert statistics_of(apply) == ("inner.positions", "inner.scale")


def test_statistics_that_are_recorded_are_not_differentiated():
    module = double(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)))
    apply, params = from_torch(module, INPUTS, with_statistics=True)
    assert statistics_of(apply) == ()
    assert sorted(set(params) - {n for n, _ in module.named_parameters()}) == [
        "1.running_mean",
        "1.running_var",
    ]
    module.train()(torch.from_numpy(np.array(INPUTS)))
    later = params_of(apply, module.state_dict())
    np.testing.assert_allclose(apply(later, INPUTS), pytorch(module, INPUTS), rtol=1e-12)
    slope = jax.grad(lambda p: jnp.sum(apply(p, INPUTS) ** 2))(later)
    assert not np.any(slope["1.running_mean"])
    assert np.any(slope["0.weight"])


def wrapped(names):
    return lambda state: {names(name): value for name, value in state.items()}


STATES = {
    "prefix": (wrapped(lambda name: f"module.{name}"), "which the adapted module lacks"),
    "missing": (lambda state: {"weight": state["weight"]}, "has nothing for 'bias'"),
    "shape": (lambda state: state | {"bias": torch.ones(3)}, r"has \(3,\) for 'bias'"),
}


@pytest.mark.parametrize(("change", "words"), STATES.values(), ids=STATES)
def test_states_of_other_modules_are_refused(change, words):
    module = double(nn.Linear(6, 2))
    apply, params = from_torch(module, INPUTS)
    with pytest.raises(ConfigError, match=words):
        params_of(apply, change(module.state_dict()))
    with pytest.raises(ConfigError, match="apply has no PyTorch module"):
        params_of(lambda params, inputs: inputs, module.state_dict())
    with pytest.raises(ConfigError, match="params lack 'bias'"):
        apply({"weight": params["weight"]}, INPUTS)
    with pytest.raises(ConfigError, match="params have an unknown 'more'"):
        apply(params | {"more": params["bias"]}, INPUTS)
    with pytest.raises(ConfigError, match="params are a list"):
        apply(list(params.values()), INPUTS)
    with pytest.raises(ConfigError, match="the inputs are float32 and the parameters float64"):
        apply(params, INPUTS.astype("float32"))


def loose():
    module = Computes(lambda self, x: self.others[0](self.layer(x)))
    module.others = [nn.Linear(6, 6).double()]
    return double(module)


def mixed():
    return nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3).double())


def old_norm():
    module = double(nn.Linear(6, 4))
    module.computed = module.weight * 2
    return module


def lacking():
    return nn.Sequential(nn.LazyLinear(3))


MODULES = {
    "function": (lambda: torch.tanh, "is of type .*; expected a torch.nn.Module"),
    "compiled": (lambda: torch.compile(nn.Linear(6, 2)), "the module is compiled"),
    "half": (lambda: nn.Linear(6, 2).bfloat16(), "weight|bias is of bfloat16; expected float32"),
    "short": (lambda: nn.Linear(6, 2).half(), "is of float16; expected float32 or float64"),
    "complex": (lambda: nn.Linear(6, 2, dtype=torch.complex128), "is of complex128; expected"),
    "mixed": (mixed, r"several types \(0.bias of float32 and 1.bias of float64\)"),
    "frozen": (lambda: nn.Linear(6, 2).requires_grad_(False), "no parameters that require"),
    "computed": (old_norm, "cannot be copied to the host"),
    "lazy": (lacking, "0.weight has no values yet"),
    "meta": (lambda: nn.Linear(6, 2, device="meta"), "cannot be copied to the host"),
    "loose": (loose, r"requires gradients and is not among its named_parameters\(\)"),
}


@pytest.mark.parametrize(("make", "words"), MODULES.values(), ids=MODULES)
def test_modules_that_are_refused(make, words):
    with pytest.raises(ConfigError, match=words) as refused:
        from_torch(make(), INPUTS)
    assert "\n" not in str(refused.value)


def test_float64_is_not_cut_down():
    with jax.enable_x64(False):
        with pytest.raises(ConfigError, match=r"is of float64, and JAX computes in float32"):
            from_torch(double(nn.Linear(6, 2)))
        module = nn.Linear(6, 2)
        module.register_buffer("wide", torch.ones(2, dtype=torch.float64))
        with pytest.raises(ConfigError, match=r"wide is of float64, and JAX computes in float32"):
            from_torch(module)
        module.wide = torch.tensor([2**40])
        with pytest.raises(ConfigError, match=r"wide has integers of 64 bits, which JAX would cut"):
            from_torch(module)


LEAKS = """
import os, sys, warnings
warnings.simplefilter("error")
import jax, torch

def state():
    mha, tables = torch.backends.mha, torch._decomp.global_decomposition_table
    return dict(
        environ=dict(os.environ), config=dict(jax.config.values), filters=len(warnings.filters),
        tables={kind: dict(table) for kind, table in tables.items()},
        fast=mha.get_fastpath_enabled(), dtype=torch.get_default_dtype(),
        device=str(torch.get_default_device()), backend=torch._C._get_privateuse1_backend_name(),
        accelerator=torch.accelerator.current_accelerator(),
        available=torch.accelerator.is_available(), grad=torch.is_grad_enabled(),
        modules=[name for name in sys.modules if "privateuse" in name],
        attribute=hasattr(torch, "privateuseone"), seed=torch.initial_seed(),
        overload=hasattr(torch.ops.aten.prod, "dim_Dimname"),
    )

layer = torch.nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
x = torch.randn(3, 4, 6)

def numbers():
    layer.train()
    torch.manual_seed(1)
    y = layer(x)
    y.sum().backward()
    slope = layer.linear1.weight.grad.clone()
    layer.zero_grad()
    with torch.no_grad():
        fast = layer.eval()(x)
    return y, slope, fast, torch.randn(3)

computed, before = numbers(), state()
from dlf_dynamics.adapters import from_torch
apply, params = from_torch(layer, jax.numpy.asarray(x.numpy()))
jax.jit(apply)(params, jax.numpy.asarray(x.numpy()))
after, again = state(), numbers()
assert before == after, [k for k in before if before[k] != after[k]]
assert all(torch.equal(a, b) for a, b in zip(computed, again))
with torch.random.fork_rng():
    y = torch.utils.checkpoint.checkpoint(layer, x.requires_grad_(), use_reentrant=False)
    y.sum().backward()
"""


def test_nothing_is_left_changed_in_pytorch_and_jax():
    done = subprocess.run([sys.executable, "-c", LEAKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
