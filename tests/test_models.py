import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax

from dlf_dynamics.config import ModelConfig
from dlf_dynamics.models import ACTIVATIONS, FullyConnected

SCALAR = {
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
    # JAX's GELU is the approximation by a hyperbolic tangent.
    "gelu": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "identity": lambda x: x,
}


def test_every_activation_has_a_closed_form_here():
    assert SCALAR.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_outputs_are_those_of_a_plain_loop(activation):
    model = FullyConnected((4, 3), activation, "published-updated")
    rng = np.random.default_rng(0)
    sizes = [(2, 4), (4, 3), (3, 5)]
    params = [(rng.normal(size=size), rng.normal(size=size[1])) for size in sizes]
    inputs = rng.normal(size=(6, 2))
    outputs = np.asarray(model.apply(tuple(params), jnp.asarray(inputs)))  # type: ignore[arg-type]
    for x, found in zip(inputs, outputs, strict=True):
        hidden = list(x)
        for depth, (weight, bias) in enumerate(params):
            hidden = [
                sum(hidden[i] * weight[i, j] for i in range(len(hidden))) + bias[j]
                for j in range(len(bias))
            ]
            if depth < 2:
                hidden = [SCALAR[activation](value) for value in hidden]
        assert found == pytest.approx(hidden, rel=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_piecewise_linear_activations_are_those_without_curvature(activation):
    second = jax.grad(jax.grad(ACTIVATIONS[activation]))
    curved = any(abs(float(second(x))) > 1e-3 for x in (-1.3, -0.4, 0.7, 1.9))
    assert curved == (activation not in ("relu", "identity"))


def test_no_hidden_layer_is_a_linear_model():
    model = FullyConnected((), "relu", "he-normal")
    ((weight, bias),) = model.init(jax.random.key(0), 2, 3)
    inputs = jnp.array([[1.0, -2.0]])
    expected = np.asarray(weight)[0] - 2 * np.asarray(weight)[1] + np.asarray(bias)
    np.testing.assert_allclose(model.apply(((weight, bias),), inputs)[0], expected, rtol=1e-14)


def test_images_are_flattened():
    model = FullyConnected((4,), "tanh", "he-normal")
    params = model.init(jax.random.key(0), 6, 2)
    images = jnp.arange(12.0).reshape(2, 3, 2)
    assert np.array_equal(
        model.apply(params, images), model.apply(params, jnp.arange(12.0).reshape(2, 6))
    )


def test_the_configuration_chooses_the_network():
    config = ModelConfig(widths=(3, 2), activation="tanh", init="he-normal")
    assert FullyConnected.from_config(config) == FullyConnected((3, 2), "tanh", "he-normal")


VARIANCES = {
    "published": lambda fan_in, fan_out: 1 / fan_in,
    "published-updated": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot-normal": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "glorot-uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he-normal": lambda fan_in, fan_out: 2 / fan_in,
    "he-uniform": lambda fan_in, fan_out: 2 / fan_in,
    "lecun-normal": lambda fan_in, fan_out: 1 / fan_in,
}


@pytest.mark.parametrize("init", VARIANCES)
def test_initial_weights_have_the_variance_that_their_name_promises(init):
    ((weight, bias),) = FullyConnected((), "relu", init).init(jax.random.key(1), 400, 100)
    expected = VARIANCES[init](400, 100)
    # Five standard errors of the variance of 40,000 normal numbers.
    assert float(jnp.var(weight)) == pytest.approx(expected, rel=5 * math.sqrt(2 / 40_000))
    assert abs(float(jnp.mean(weight))) < 5 * math.sqrt(expected / 40_000)
    if init.endswith("uniform"):
        assert float(jnp.abs(weight).max()) <= math.sqrt(3 * expected)
    if init == "published-updated":
        assert float(jnp.std(bias)) == pytest.approx(1e-2, rel=5 / math.sqrt(2 * 100))
    else:
        assert not np.any(bias)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_updated_initial_parameters_are_bit_by_bit_those_of_stax(legacy):
    init, _ = stax.serial(stax.Dense(100), stax.Relu, stax.Dense(100), stax.Relu, stax.Dense(3))
    with jax.threefry_partitionable(not legacy):
        _, layers = init(jax.random.PRNGKey(7), (-1, 2))
        params = FullyConnected((100, 100), "relu", "published-updated").init(
            jax.random.PRNGKey(7), 2, 3
        )
    dense = [layer for layer in layers if len(layer) == 2]
    for (weight, bias), (stax_weight, stax_bias) in zip(params, dense, strict=True):
        assert np.array_equal(weight, stax_weight)
        assert np.array_equal(bias, stax_bias)


def test_parameters_come_in_the_precision_that_is_asked_for():
    model = FullyConnected((3,), "relu", "published-updated")
    params = model.init(jax.random.key(0), 2, 3, jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
