"""Against the gradient and the dense Hessian of each batch, all batches one by one."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dlf_dynamics.analysis import batch_sharpness
from dlf_dynamics.analysis.stability import batch_sharpness as module
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import WeightDecay, cross_entropy
from dlf_dynamics.problem import Problem

pytestmark = pytest.mark.usefixtures("quick_compilation")
DEFINITIONS = ("mean-of-ratios", "ratio-of-means")


def half_square(outputs, targets):
    return (outputs - targets) ** 2 / 2


def scalar_problem(*curvatures):
    inputs = jnp.sqrt(jnp.asarray(curvatures, float))
    return Problem(lambda w, x: w * x, half_square, inputs, jnp.zeros(len(curvatures)))


def rising(step, targets):
    return 1.0 + step * targets


def tanh_network(params, inputs):
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


@pytest.fixture(scope="module")
def network(quick_compilation):
    drawn = np.random.default_rng(0)
    params = {
        "in": jnp.asarray(drawn.standard_normal((2, 3))),
        "out": jnp.asarray(drawn.standard_normal((3, 2))),
    }
    inputs = jnp.asarray(drawn.standard_normal((6, 2)))
    labels = jnp.array([0, 1, 1, 0, 1, 0])
    penalty = WeightDecay(0.1)
    problem = Problem(tanh_network, cross_entropy, inputs, labels, rising, penalty)
    return problem, params


@pytest.fixture(scope="module")
def parts(network):
    """Gradients and Hessians of single examples; the mean of those of a batch is its own."""
    problem, params = network
    vector, unravel = ravel_pytree(params)
    weights = 1.0 + 2 * problem.targets

    def loss(vector, index):
        outputs = tanh_network(unravel(vector), problem.inputs[index])
        surprise = jax.nn.logsumexp(outputs) - outputs[problem.targets[index]]
        return weights[index] * surprise + 0.05 * jnp.sum(vector**2)

    indices = jnp.arange(6)
    gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0))(vector, indices)
    return np.asarray(gradients), np.asarray(
        jax.vmap(jax.hessian(loss), in_axes=(None, 0))(vector, indices)
    )


def all_batches(parts, batch_size):
    """gᵀHg and gᵀg of all batches."""
    gradients, hessians = parts
    pairs = []
    for batch in map(list, combinations(range(len(gradients)), batch_size)):
        gradient, hessian = np.mean(gradients[batch], axis=0), np.mean(hessians[batch], axis=0)
        pairs.append((gradient @ hessian @ gradient, gradient @ gradient))
    return np.array(pairs).T


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_both_definitions_over_all_batches(network, parts, batch_size):
    problem, params = network
    products, squares = all_batches(parts, batch_size)
    expected = np.mean(products / squares), np.mean(products) / np.mean(squares)
    for definition, value in zip(DEFINITIONS, expected, strict=True):
        found = batch_sharpness(problem, params, batch_size, definition=definition, step=2)
        assert found.value == pytest.approx(value, rel=1e-11)
        assert (found.exact, found.standard_error, found.samples) == (True, 0.0, 0)
    if batch_size < 6:
        assert abs(expected[0] / expected[1] - 1) > 1e-3  # they are two numbers


@pytest.mark.parametrize("number", [1, 2])
def test_few_examples(number):
    problem = scalar_problem(*[1, 3][:number])
    for batch_size in range(1, number + 1):
        for definition in DEFINITIONS:
            found = batch_sharpness(problem, jnp.ones(()), batch_size, definition=definition)
            single = definition == "ratio-of-means" and (number, batch_size) == (2, 1)
            # Gradients are 1 and 3: (1 + 27) / (1 + 9) = 2.8.
            assert found.value == pytest.approx(2.8 if single else number, rel=1e-12)


def test_it_is_no_threshold():
    """It is above 2 / η where second moments shrink: (1 - 0.75)² and (1 - 2.25)², mean 0.8125."""
    found = batch_sharpness(scalar_problem(1, 3), jnp.ones(()), 1, definition="ratio-of-means")
    assert found.value > 2 / 0.75
    assert np.mean((1 - 0.75 * np.array([1, 3])) ** 2) == 0.8125


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_drawn_batches_agree_within_their_standard_error(network, parts, definition, monkeypatch):
    problem, params = network
    monkeypatch.setattr(module, "_MOST_BATCHES", 1)
    monkeypatch.setattr(module, "_MOST_PRODUCTS", 1)
    products, squares = all_batches(parts, 2)
    exact = np.mean(products / squares)
    if definition == "ratio-of-means":
        exact = np.mean(products) / np.mean(squares)
    measure = partial(batch_sharpness, problem, params, 2, definition=definition, step=2)
    found = [measure(samples=400, seed=seed) for seed in range(20)]
    scores = np.array([(each.value - exact) / each.standard_error for each in found])
    assert all(each.samples == 400 and not each.exact for each in found)
    assert abs(np.mean(scores)) < 1
    assert 0.5 < np.std(scores) < 1.6
    assert np.max(np.abs(scores)) < 4


def test_float32_parameters_are_computed_in_float64(network):
    problem, params = network
    narrow = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == float else leaf, (problem, params)
    )
    wide = jax.tree.map(
        lambda leaf: leaf.astype(float) if leaf.dtype == jnp.float32 else leaf, narrow
    )
    for definition in DEFINITIONS:
        one, other = (batch_sharpness(*pair, 2, definition=definition) for pair in (narrow, wide))
        assert one.value == pytest.approx(other.value, rel=1e-13)


def test_what_is_refused():
    problem, params = scalar_problem(1, 3), jnp.ones(())
    measure = partial(batch_sharpness, problem, params)
    with pytest.raises(ConfigError, match="batch_size is 3; expected 1 to 2"):
        measure(3)
    with pytest.raises(ConfigError, match="definition is 'ratio'; expected"):
        measure(1, definition="ratio")
    with pytest.raises(ConfigError, match="samples is 1; expected at least 2"):
        measure(1, samples=1)
    for definition in DEFINITIONS:
        with pytest.raises(ConfigError, match="no curvature along it"):
            batch_sharpness(problem, jnp.zeros(()), 1, definition=definition)
    with pytest.raises(ConfigError, match="the problem has no examples"):
        batch_sharpness(Problem.from_loss(lambda p, step: p**2), params, 1)
