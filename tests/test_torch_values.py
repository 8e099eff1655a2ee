"""Adapted PyTorch modules against PyTorch's own derivatives: double backward, dense Jacobians.

The derivatives here are PyTorch's alone, taken one row at a time.
"""

import importlib.util
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import operators
from dlf_dynamics.adapters import from_torch, params_of
from dlf_dynamics.analysis.linalg import eigensolver
from dlf_dynamics.analysis.spectra.gram import gram_matrix
from dlf_dynamics.analysis.spectra.oneshot import ntk_spectrum, sharpness, top_hessian
from dlf_dynamics.checks import check_problem
from dlf_dynamics.losses import MeanOverPositions, cross_entropy
from dlf_dynamics.problem import Problem

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchax") is None:  # by itself it may not be imported
    pytest.skip("torchax is not installed", allow_module_level=True)
nn, F = torch.nn, torch.nn.functional

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("quick_compilation", "host_loop")]

TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def host_loop():
    """The eigensolver that is compiled sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigensolver, "PASS_SIZE", 0)
        yield


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = F.max_pool2d(F.gelu(self.norm(self.conv(x))), 2)
        return self.head(F.dropout(x.flatten(1), 0.5, self.training))


class Block(nn.Module):
    def __init__(self, width, length):
        super().__init__()
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 6), nn.GELU(approximate="tanh"), nn.Linear(6, width)
        )
        self.register_buffer("mask", torch.triu(torch.ones(length, length, dtype=torch.bool), 1))

    def forward(self, x):
        y = self.before(x)
        x = x + self.attention(y, y, y, attn_mask=self.mask, need_weights=False)[0]
        return x + self.mlp(self.after(x))


class Transformer(nn.Module):
    """Two blocks, one by torch's attention and one by PyTorch's whole layer; a tied head."""

    def __init__(self, letters=5, width=4, length=4):
        super().__init__()
        self.tokens, self.places = nn.Embedding(letters, width), nn.Embedding(length, width)
        self.block = Block(width, length)
        self.layer = nn.TransformerEncoderLayer(width, 2, 6, dropout=0.2, batch_first=True)
        self.head = nn.Linear(width, letters, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        length = tokens.shape[1]
        x = self.tokens(tokens) * math.sqrt(4) + self.places(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.layer(self.block(x), src_mask=mask.to(x.dtype), is_causal=True))


def perceptron():
    layers = (
        nn.Linear(4, 8),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(8, 6),
        nn.SiLU(),
        nn.Linear(6, 3),
    )
    return nn.Sequential(*layers), RNG.normal(size=(10, 4)), RNG.integers(0, 3, 10)


def convolutional():
    module, images = Convolutional(), RNG.normal(size=(6, 2, 4, 4))
    for _ in range(3):  # statistics of their own
        module(torch.tensor(3 * images + 1, dtype=torch.float32))
    return module, images, RNG.integers(0, 3, 6)


def transformer():
    return Transformer(), RNG.integers(0, 5, (3, 4)), RNG.integers(0, 5, (3, 4))


MODELS = {"perceptron": perceptron, "convolutional": convolutional, "transformer": transformer}


class Pair(NamedTuple):
    """One network here and there."""

    module: Any
    problem: Problem
    params: Any
    data: tuple[Any, Any]

    @property
    def tolerance(self):
        return TOLERANCE[self.problem.outputs(self.params).dtype.name]

    def leaves(self):
        """PyTorch's parameters, in the order of ours."""
        named = dict(self.module.named_parameters())
        return [named[name] for name in sorted(self.params)]


@pytest.fixture(scope="module", params=[(m, t) for m in MODELS for t in TOLERANCE], ids=str)
def pair(request):
    name, dtype = request.param
    torch.manual_seed(1)
    module, inputs, targets = MODELS[name]()
    module = module.to(getattr(torch, dtype))
    given = jnp.asarray(inputs if inputs.dtype.kind == "i" else inputs.astype(dtype))
    apply, params = from_torch(module, given)
    criterion = MeanOverPositions(cross_entropy) if name == "transformer" else cross_entropy
    problem = Problem(apply, criterion, given, jnp.asarray(targets))
    module.eval()
    data = torch.from_numpy(np.array(given)), torch.from_numpy(targets)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield Pair(module, problem, params, data)


def loss_of(pair):
    outputs = pair.module(pair.data[0])
    return F.cross_entropy(outputs.flatten(0, -2), pair.data[1].flatten())


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts])


def rows(vector, leaves):
    """The derivative of each of its numbers."""
    size = sum(leaf.numel() for leaf in leaves)
    found = []
    for value in vector:
        parts = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        found.append(flat(parts).detach().numpy())
    return np.array(found).reshape(-1, size)


@pytest.fixture(scope="module")
def gradient(pair):
    return flat(torch.autograd.grad(loss_of(pair), pair.leaves(), create_graph=True))


@pytest.fixture(scope="module")
def hessian(pair, gradient):
    return rows(gradient, pair.leaves())


@pytest.fixture(scope="module")
def jacobian(pair):
    """Of all outputs in all parameters."""
    outputs = pair.module(pair.data[0])
    return rows(outputs.reshape(-1), pair.leaves()), outputs.detach()


def close(found, expected, tolerance):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))


def test_values_and_gradient(pair, gradient):
    problem, vector = pair.problem.ravel(pair.params)
    with torch.no_grad():
        close(problem.outputs(vector), pair.module(pair.data[0]), pair.tolerance)
        close(problem.objective(vector, 0), loss_of(pair), pair.tolerance)
    close(operators.gradient(problem, vector, 0), gradient.detach(), pair.tolerance)
    check_problem(pair.problem, pair.params)


def test_hessian_and_its_ends(pair, hessian):
    problem, vector = pair.problem.ravel(pair.params)
    directions = RNG.normal(size=(3, len(vector))).astype(vector.dtype)
    products = jax.jit(jax.vmap(operators.hessian(problem, vector, 0)))(directions)
    close(products, directions @ hessian, 3 * pair.tolerance)
    values = np.linalg.eigvalsh(hessian.astype(float))
    tol = 1e-8 if vector.dtype == jnp.float64 else 1e-5
    found = sharpness(pair.problem, pair.params, tol=tol)
    assert found.converged
    close(found.value, values[-1], pair.tolerance)
    ends = top_hessian(pair.problem, pair.params, 2, which="both", tol=tol)
    close(np.sort(ends.eigenvalues), values[[0, 1, -2, -1]], pair.tolerance)


def test_ggn(pair, jacobian):
    problem, vector = pair.problem.ravel(pair.params)
    dense, outputs = jacobian
    classes = outputs.shape[-1]
    odds = torch.softmax(outputs, -1).reshape(-1, classes).double().numpy()
    each = dense.astype(float).reshape(-1, classes, dense.shape[-1])
    mean = np.einsum("na,nap->np", odds, each)
    expected = np.einsum("nap,na,naq->pq", each, odds, each) - mean.T @ mean
    found = jax.jit(jax.vmap(operators.ggn(problem, vector, 0)))(
        jnp.eye(len(vector), dtype=vector.dtype)
    )
    close(found, expected / len(odds), pair.tolerance)


def test_ntk(pair, jacobian):
    """By Jacobians of one example at a time, mapped by `vmap`."""
    dense = jacobian[0].astype(float).reshape(len(pair.data[0]), -1, jacobian[0].shape[-1])
    expected = np.einsum("nap,map->nm", dense, dense) / dense.shape[1]
    problem, vector = pair.problem.ravel(pair.params)
    close(jax.jit(gram_matrix)(problem, vector), expected, pair.tolerance)
    found = ntk_spectrum(pair.problem, pair.params, num_examples=None)
    close(found.eigenvalues, np.linalg.eigvalsh(expected)[::-1], pair.tolerance)


def test_a_tied_parameter_is_one(pair):
    names = {name for name, _ in pair.module.named_parameters()}
    assert set(pair.params) == names
    state = pair.module.state_dict()
    if "tokens.weight" in names:
        assert "head.weight" in state.keys() - names
    again = params_of(pair.problem.apply, state)
    jax.tree.map(np.testing.assert_array_equal, again, pair.params)


def test_they_run_in_float32_where_jax_has_no_float64():
    torch.manual_seed(0)
    module, inputs, targets = transformer()
    with jax.enable_x64(False):
        given = jnp.asarray(inputs)
        apply, params = from_torch(module, given)
        problem = Problem(apply, MeanOverPositions(cross_entropy), given, jnp.asarray(targets))
        check_problem(problem, params)
        assert problem.outputs(params).dtype == jnp.float32
        close(problem.outputs(params), module.eval()(torch.from_numpy(inputs)).detach(), 1e-5)
