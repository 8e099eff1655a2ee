"""Curvature against two PyTorch libraries, on the same network, data and class weights.

They share nothing with this project but the mathematics: the derivatives are PyTorch's, the
eigenvalues ARPACK's (of curvlinops' products) and those of hessian-eigenthings' own Lanczos method.
`make test-torch` installs them and runs this file.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.sparse.linalg import eigsh

from dlf_dynamics import operators
from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

torch = pytest.importorskip("torch")
curvlinops = pytest.importorskip("curvlinops")
eigenthings = pytest.importorskip("hessian_eigenthings")

pytestmark = [
    pytest.mark.torch,
    # PyTorch's own forward mode compiles with it.
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script` is:DeprecationWarning:torch\.jit"),
]

EXAMPLES, BATCH, K = 200, 64, 5
SCHEDULE = Triangle(10, 20.0, 12)
STEPS = {"rising": 4, "peak": 42}  # of the pulses of the digits 0 and 3
CURVLINOPS = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}


class Network(NamedTuple):
    """One network here and there; `order[i]` is our position of PyTorch's parameter i."""

    problem: Problem
    params: jax.Array
    module: Any
    data: tuple[Any, Any]
    order: np.ndarray


def torch_layout(params):
    """PyTorch's flat parameters: its weights are the transposes of ours."""
    return np.concatenate([np.ravel(part) for w, b in params for part in (w.T, b)])


def torch_module(params):
    """The same tanh network with copies of the parameters."""
    layers = []
    for weight, bias in params:
        layer = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(weight.T)))
            layer.bias.copy_(torch.tensor(np.asarray(bias)))
        layers += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def network():
    """64-16-10 with random weights and biases on 200 digits."""
    inputs, labels = digits().inputs[:EXAMPLES], digits().labels[:EXAMPLES]
    model = FullyConnected((16,), "tanh", "glorot-normal")
    rng = np.random.default_rng(0)
    params = [
        (weight, jnp.asarray(0.5 * rng.standard_normal(bias.shape)))
        for weight, bias in model.init(jax.random.key(0), (64,), 10)
    ]
    weights = ClassWeights(SCHEDULE)
    problem = Problem(model.apply, cross_entropy, jnp.asarray(inputs), jnp.asarray(labels), weights)
    problem, vector = problem.ravel(params)
    positions = ravel_pytree(params)[1](jnp.arange(len(vector), dtype=float))
    data = torch.tensor(inputs), torch.tensor(labels)
    order = torch_layout(positions).astype(int)
    return Network(problem, vector, torch_module(params), data, order)


@pytest.fixture(params=STEPS.values(), ids=STEPS)
def step(request):
    return request.param


def criterion(step):
    """F(·, t) of the outputs. PyTorch's weighted mean divides by the sum of weights, not by N."""
    gamma = torch.tensor(np.asarray(SCHEDULE(step)))
    return torch.nn.CrossEntropyLoss(weight=gamma / EXAMPLES, reduction="sum")


def curvlinops_operator(name, network, step):
    """Theirs from batches, whose sums it adds."""
    batches = zip(*(array.split(BATCH) for array in network.data), strict=True)
    kind = getattr(curvlinops, CURVLINOPS[name])
    params = list(network.module.parameters())
    return kind(network.module, criterion(step), params, list(batches))


def eigenthings_operator(name, network, step):
    """Theirs from one batch; of several it would take the mean."""
    module, batches = network.module, [network.data]
    if name == "hessian":
        loss = eigenthings.supervised_loss(criterion(step))
        return eigenthings.HessianOperator(module, batches, loss)
    loss = eigenthings.supervised_loss_of_output(criterion(step))
    return eigenthings.GGNOperator(module, batches, eigenthings.supervised_forward, loss)


def hessian_product(problem, params, step, vector):
    return operators.hessian(problem, params, step)(vector)


def ggn_product(problem, params, step, vector):
    return operators.ggn(problem, params, step)(vector)


OURS = {"hessian": hessian_product, "ggn": ggn_product}


def our_eigenpairs(name, network, step, which):
    found = top_eigenpairs(
        Partial(OURS[name], network.problem, network.params, step),
        len(network.params),
        K,
        which=which,
        tol=1e-9,
        max_matvecs=200,
        key=jax.random.key(1),
    )
    assert set(found.status) == {"converged"}, found.message
    return found


def test_the_loss_and_its_gradient_are_the_same(network, step):
    problem, params = network.problem, network.params
    inputs, labels = network.data
    loss = criterion(step)(network.module(inputs), labels)
    np.testing.assert_allclose(loss.item(), problem.objective(params, step), rtol=1e-13)
    parts = torch.autograd.grad(loss, list(network.module.parameters()))
    theirs = np.concatenate([part.numpy().ravel() for part in parts])
    ours = np.asarray(operators.gradient(problem, params, step))[network.order]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13 * np.abs(theirs).max())


def test_class_weights_and_the_remainder_matter_here(network, step):
    """Else the comparisons would pass without them."""
    problem, params = network.problem, network.params
    vector = jax.random.normal(jax.random.key(2), params.shape)
    hessian = hessian_product(problem, params, step, vector)
    for other in (
        hessian_product(problem.static(), params, step, vector),
        ggn_product(problem, params, step, vector),
    ):
        assert jnp.linalg.norm(other - hessian) > 0.1 * jnp.linalg.norm(hessian)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("make", [curvlinops_operator, eigenthings_operator])
def test_products_agree(network, step, make, name):
    theirs = make(name, network, step)
    multiply = jax.jit(OURS[name])
    for vector in np.random.default_rng(3).standard_normal((3, len(network.params))):
        permuted = torch.tensor(vector[network.order])
        product = theirs @ permuted if make is curvlinops_operator else theirs.matvec(permuted)
        product = product.detach().numpy()
        ours = np.asarray(multiply(network.problem, network.params, step, vector))[network.order]
        assert np.linalg.norm(ours - product) < 1e-10 * np.linalg.norm(product)


@pytest.mark.parametrize(("name", "which"), [("hessian", "both"), ("ggn", "largest")])
def test_eigenvalues_agree_with_those_of_arpack_and_curvlinops(network, step, name, which):
    ours = our_eigenpairs(name, network, step, which)
    matrix = curvlinops_operator(name, network, step).to_scipy(dtype=np.float64)
    ends, count = {"both": ("BE", 2 * K), "largest": ("LA", K)}[which]
    start = np.random.default_rng(4).standard_normal(len(network.params))
    theirs = eigsh(matrix, k=count, which=ends, v0=start, return_eigenvectors=False)
    np.testing.assert_allclose(ours.eigenvalues, np.sort(theirs)[::-1], rtol=1e-8)


@pytest.mark.parametrize("name", OURS)
def test_eigenvalues_agree_with_the_lanczos_method_of_hessian_eigenthings(network, step, name):
    ours = our_eigenpairs(name, network, step, "largest")
    theirs = eigenthings.lanczos(
        eigenthings_operator(name, network, step), k=K, max_iter=50, tol=1e-10, which="LA", seed=5
    )
    assert theirs.converged.all()
    values = theirs.eigenvalues.detach().numpy()
    np.testing.assert_allclose(ours.eigenvalues, values, rtol=1e-10)
    # Their bound takes no account of rounding, our intervals do.
    bound = theirs.residuals.detach().numpy()
    assert np.all(values + bound >= ours.intervals[:, 0])
    assert np.all(values - bound <= ours.intervals[:, 1])
