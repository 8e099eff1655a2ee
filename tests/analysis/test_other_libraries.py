"""Curvature against two PyTorch libraries, on the same network, data and class weights.

They share nothing with this project but the mathematics: the derivatives are PyTorch's, the
eigenvalues ARPACK's (on the products of curvlinops) and hessian-eigenthings' own Lanczos method's.
`make test-torch` installs them and runs this file.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from scipy.sparse.linalg import eigsh

from dlf_dynamics import operators
from dlf_dynamics.analysis.eigensolver import top_eigenpairs
from dlf_dynamics.datasets import digits
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

torch = pytest.importorskip("torch")
curvlinops = pytest.importorskip("curvlinops")
eigenthings = pytest.importorskip("hessian_eigenthings")

pytestmark = pytest.mark.torch

EXAMPLES, BATCH, K = 200, 64, 5
SCHEDULE = Triangle(10, 20.0, 12)
STEPS = {"rising": 4, "peak": 42}  # the weight of class 0 is 7.3 / 16.3 * 10, that of 3 the highest
NAMES = ("hessian", "ggn")
OURS = {name: partial(getattr(operators, name)) for name in NAMES}


class Case(NamedTuple):
    """One network here and there; `order[i]` is our position of PyTorch's parameter i."""

    problem: Problem
    params: jax.Array
    step: int
    module: Any
    criterion: Any
    inputs: Any
    labels: Any
    order: np.ndarray


def torch_layout(params):
    """PyTorch's flat vector of parameters: its weights are the transposes of ours."""
    return np.concatenate([np.ravel(a) for w, b in params for a in (w.T, b)])


def torch_module(params):
    """The same tanh network; the parameters are copies."""
    layers = []
    for weight, bias in params:
        layer = torch.nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(weight.T)))
            layer.bias.copy_(torch.tensor(np.asarray(bias)))
        layers += [layer, torch.nn.Tanh()]
    return torch.nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module", params=STEPS.values(), ids=STEPS)
def case(request):
    """64-16-10 on 200 digits, with biases, in the middle of a pulse."""
    data = digits()
    inputs, labels = data.inputs[:EXAMPLES], data.labels[:EXAMPLES]
    model = FullyConnected((16,), "tanh", "glorot-normal")
    params = model.init(jax.random.key(0), 64, 10)
    rng = np.random.default_rng(0)
    params = [(w, jnp.asarray(0.5 * rng.standard_normal(b.shape))) for w, b in params]
    weights = ClassWeights(SCHEDULE)
    problem = Problem(model.apply, cross_entropy, jnp.asarray(inputs), jnp.asarray(labels), weights)
    flat, vector = problem.ravel(params)
    positions = ravel_pytree(params)[1](jnp.arange(len(vector), dtype=float))
    gamma = torch.tensor(np.asarray(SCHEDULE(request.param)))
    return Case(
        flat,
        vector,
        request.param,
        torch_module(params),
        # A sum, as PyTorch's weighted mean divides by the sum of the weights, not by N.
        torch.nn.CrossEntropyLoss(weight=gamma / EXAMPLES, reduction="sum"),
        torch.tensor(inputs),
        torch.tensor(labels),
        torch_layout(positions).astype(int),
    )


def product(name, case_problem, params, step, vector):
    return OURS[name](case_problem, params, step)(vector)


def our_matvec(name, case):
    return Partial(partial(product, name), case.problem, case.params, case.step)


def our_eigenpairs(name, case, which):
    found = top_eigenpairs(
        our_matvec(name, case),
        len(case.params),
        K,
        which=which,
        tol=1e-9,
        max_matvecs=200,
        key=jax.random.key(1),
    )
    assert found.status == "converged", found.message
    return found


def curvlinops_operator(name, case):
    """Theirs from batches, whose sums they add."""
    kind = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}[name]
    data = list(zip(case.inputs.split(BATCH), case.labels.split(BATCH), strict=True))
    return getattr(curvlinops, kind)(
        case.module, case.criterion, list(case.module.parameters()), data
    )


def eigenthings_operator(name, case):
    """Theirs from one batch; of several they would take the mean."""
    data = [(case.inputs, case.labels)]
    if name == "hessian":
        loss = eigenthings.supervised_loss(case.criterion)
        return eigenthings.HessianOperator(case.module, data, loss)
    loss = eigenthings.supervised_loss_of_output(case.criterion)
    return eigenthings.GGNOperator(case.module, data, eigenthings.supervised_forward, loss)


def test_the_loss_and_its_gradient_are_the_same(case):
    loss = case.criterion(case.module(case.inputs), case.labels)
    ours = case.problem.objective(case.params, case.step)
    np.testing.assert_allclose(loss.item(), ours, rtol=1e-13)
    parts = torch.autograd.grad(loss, list(case.module.parameters()))
    theirs = np.concatenate([part.numpy().ravel() for part in parts])
    ours = np.asarray(operators.gradient(case.problem, case.params, case.step))[case.order]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-13 * np.abs(ours).max())
    # Else the class weights would not be tested.
    static = np.asarray(operators.gradient(case.problem.static(), case.params, case.step))
    assert np.linalg.norm(static[case.order] - ours) > 0.1 * np.linalg.norm(ours)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [curvlinops_operator, eigenthings_operator])
def test_products_agree(case, make, name):
    theirs = make(name, case)
    multiply = jax.jit(our_matvec(name, case))
    for vector in np.random.default_rng(2).standard_normal((3, len(case.params))):
        permuted = torch.tensor(vector[case.order])
        found = theirs @ permuted if make is curvlinops_operator else theirs.matvec(permuted)
        expected = np.asarray(multiply(jnp.asarray(vector)))[case.order]
        error = np.linalg.norm(found.detach().numpy() - expected)
        print(make.__name__, name, case.step, error / np.linalg.norm(expected))
        assert error < 1e-10 * np.linalg.norm(expected)


@pytest.mark.parametrize(("name", "which"), [("hessian", "both"), ("ggn", "largest")])
def test_eigenvalues_agree_with_arpack_on_curvlinops(case, name, which):
    ours = our_eigenpairs(name, case, which)
    matrix = curvlinops_operator(name, case).to_scipy(dtype=np.float64)
    ends, count = {"both": ("BE", 2 * K), "largest": ("LA", K)}[which]
    start = np.random.default_rng(3).standard_normal(len(matrix.shape and case.params))
    values = eigsh(matrix, k=count, which=ends, v0=start, return_eigenvectors=False)
    print(np.sort(values)[::-1], ours.eigenvalues, ours.num_matvecs)
    print(np.abs(np.sort(values)[::-1]/ours.eigenvalues-1).max(), ours.residuals.max())
    np.testing.assert_allclose(np.sort(values)[::-1], ours.eigenvalues, rtol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_agree_with_the_lanczos_method_of_hessian_eigenthings(case, name):
    ours = our_eigenpairs(name, case, "largest")
    theirs = eigenthings.lanczos(
        eigenthings_operator(name, case),
        k=K,
        max_iter=60,
        tol=1e-6,
        reorthogonalize=True,
        which="LA",
        seed=4,
    )
    print(theirs, ours.intervals[:,1]-ours.eigenvalues)
    print(np.abs(theirs.eigenvalues.numpy()/ours.eigenvalues-1))
