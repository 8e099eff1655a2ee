import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.example_libraries import stax
from scipy.signal import correlate2d

from dlf_dynamics import train
from dlf_dynamics.analysis.spectra.infinite_width import check_network
from dlf_dynamics.config import DataConfig, ModelConfig, RunConfig
from dlf_dynamics.errors import ConfigError, DataError
from dlf_dynamics.layout import Layout
from dlf_dynamics.models import ACTIVATIONS, Convolutional, FullyConnected, make_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

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


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig(widths=(7, 5)), (4, 3)),
        (ModelConfig(widths=()), (3,)),
        (ModelConfig("convolutional", (3, 4)), (7, 6, 2)),
        (ModelConfig("myrtle5", (4,)), (32, 64, 3)),
    ],
)
def test_the_sizes_of_layers_are_those_of_what_they_hold_and_give(config, shape):
    model = make_model(config)
    key, inputs = jax.random.key(0), jnp.ones((2, *shape))
    params = jax.eval_shape(lambda: model.init(key, shape, 5))
    outputs = jax.eval_shape(lambda p: model._layers(p, inputs), params)
    expected = [
        (sum(leaf.size for leaf in p), o.size // 2) for p, o in zip(params, outputs, strict=True)
    ]
    assert model.layer_sizes(shape, 5) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(widths=(10**9,) * 2)}, r"training 1\d+ parameters takes at least"),
        ({"model": ModelConfig(outputs=10**9)}, r"training 1010\d+ parameters .* model.outputs sm"),
        (
            {"data": DataConfig(points_per_class=10**6), "model": ModelConfig(widths=(10**6,))},
            "a gradient of 3000000 examples in a network of 1000003 units takes at least 24,000 GB",
        ),
    ],
)
def test_a_network_that_memory_cannot_hold_is_refused_at_once(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(RunConfig(**changes), tmp_path / "run.h5")
    assert list(tmp_path.iterdir()) == []


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
    ((weight, bias),) = model.init(jax.random.key(0), (2,), 3)
    inputs = jnp.array([[1.0, -2.0]])
    expected = np.asarray(weight)[0] - 2 * np.asarray(weight)[1] + np.asarray(bias)
    np.testing.assert_allclose(model.apply(((weight, bias),), inputs)[0], expected, rtol=1e-14)


def test_images_are_flattened():
    model = FullyConnected((4,), "tanh", "he-normal")
    params = model.init(jax.random.key(0), (3, 2), 2)
    assert [weight.shape for weight, _ in params] == [(6, 4), (4, 2)]
    images = jnp.arange(12.0).reshape(2, 3, 2)
    assert np.array_equal(
        model.apply(params, images), model.apply(params, jnp.arange(12.0).reshape(2, 6))
    )


def test_the_configuration_chooses_the_network():
    config = ModelConfig(widths=(3, 2), activation="tanh", init="he-normal")
    assert make_model(config) == FullyConnected((3, 2), "tanh", "he-normal")
    images = replace(config, name="convolutional")
    assert make_model(images) == Convolutional((3, 2), (1, 1), "tanh", "he-normal")
    myrtle = replace(config, name="myrtle5", widths=(6,))
    expected = Convolutional((6, 6, 6, 6), (0, 1, 1, 3), "tanh", "he-normal", 32)
    assert make_model(myrtle) == expected


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
    ((weight, bias),) = FullyConnected((), "relu", init).init(jax.random.key(1), (400,), 100)
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
            jax.random.PRNGKey(7), (2,), 3
        )
    dense = [layer for layer in layers if len(layer) == 2]
    for (weight, bias), (stax_weight, stax_bias) in zip(params, dense, strict=True):
        assert np.array_equal(weight, stax_weight)
        assert np.array_equal(bias, stax_bias)


def test_parameters_come_in_the_precision_that_is_asked_for():
    model = FullyConnected((3,), "relu", "published-updated")
    params = model.init(jax.random.key(0), (2,), 3, jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def pooled(images):
    """Means of 2x2 squares, written out; a last odd row or column is left out."""
    count, height, width, channels = images.shape
    found = np.empty((count, height // 2, width // 2, channels))
    for i in range(height // 2):
        for j in range(width // 2):
            square = images[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            found[:, i, j] = square.mean(axis=(1, 2))
    return found


def convolved(images, kernel, bias):
    """By SciPy, channel by channel."""
    planes = [
        [
            sum(
                correlate2d(image[..., i], kernel[..., i, o], mode="same", boundary="fill")
                for i in range(kernel.shape[2])
            )
            + bias[o]
            for o in range(kernel.shape[3])
        ]
        for image in images
    ]
    return np.moveaxis(np.array(planes), 1, -1)


def convolutional(config, input_shape, num_outputs, num_images=2):
    """A network with random weights and biases, and images."""
    rng = np.random.default_rng(0)
    model = make_model(config)
    shapes = jax.eval_shape(lambda k: model.init(k, input_shape, num_outputs), jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 3, shapes)
    return model, params, rng.normal(size=(num_images, *input_shape))


@pytest.mark.parametrize(
    ("name", "widths", "pools", "shape"),
    [
        ("convolutional", (3, 2), (1, 1), (6, 9, 2)),  # 3 x 4 and 1 x 2 after the poolings
        ("convolutional", (2, 3), (1, 0), (3, 2, 1)),  # 1 x 1 after the first: no second pooling
        ("convolutional", (), (), (2, 3, 2)),
        ("myrtle5", (2,), (0, 1, 1, 3), (32, 64, 1)),
    ],
)
@pytest.mark.parametrize(("activation", "backend"), [("relu", "cpu"), ("tanh", "gpu")])
def test_convolutions_and_poolings_are_those_written_out(
    name, widths, pools, shape, activation, backend, monkeypatch
):
    # How convolutions are computed is chosen by what JAX runs on.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = ModelConfig(name=name, widths=widths, activation=activation)
    model, params, images = convolutional(config, shape, 4)
    hidden, expected_gates = images, [np.zeros((len(images), 0), bool)]
    for (kernel, bias), count in zip(params[:-1], pools, strict=True):
        hidden = convolved(hidden, kernel, bias)
        expected_gates.append((hidden > 0).reshape(len(images), -1))
        hidden = np.maximum(hidden, 0) if activation == "relu" else np.tanh(hidden)
        for _ in range(count):
            hidden = pooled(hidden)
    weight, bias = params[-1]
    expected = hidden.reshape(len(images), -1) @ weight + bias
    found = jax.jit(model.apply)(params, images)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    gates = np.asarray(jax.jit(model.gates)(params, images))
    assert np.array_equal(gates, np.concatenate(expected_gates, axis=1))


def test_the_gates_are_all_hidden_units():
    config = ModelConfig(name="convolutional", widths=(3, 2))
    model, params, images = convolutional(config, (6, 4, 1), 2)
    # 3 channels of 6 x 4 pixels, and 2 channels of 3 x 2.
    assert model.gates(params, images).shape == (2, 3 * 24 + 2 * 6)


def test_the_gradient_of_a_convolutional_network_is_that_of_differences():
    config = ModelConfig(name="convolutional", widths=(2, 2), activation="tanh")
    model, params, images = convolutional(config, (5, 4, 2), 3)
    layout = Layout.of(params)
    theta = layout.flatten(params)

    @jax.jit
    def loss(theta):
        return jnp.sum(jnp.sin(model.apply(layout.unflatten(theta), jnp.asarray(images))))

    gradient, size = jax.jit(jax.grad(loss))(theta), 1e-5
    for index in range(theta.size):
        step = jnp.zeros(theta.size).at[index].set(size)
        slope = (loss(theta + step) - loss(theta - step)) / (2 * size)
        assert float(gradient[index]) == pytest.approx(float(slope), rel=1e-6, abs=1e-8)


def test_myrtle5_of_width_64_has_the_published_layers_and_113226_parameters():
    model = make_model(ModelConfig(name="myrtle5", widths=(64,)))
    params = jax.eval_shape(lambda key: model.init(key, (32, 32, 3), 10), jax.random.key(0))
    kernels = [(3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 64), (3, 3, 64, 64), (64, 10)]
    assert [weight.shape for weight, _ in params] == kernels
    assert [bias.shape for _, bias in params] == [(64,), (64,), (64,), (64,), (10,)]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 113_226
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), float)
    assert jax.eval_shape(model.apply, params, images).shape == (2, 10)
    # Two layers of 32 x 32 pixels, one of 16 x 16 and one of 8 x 8.
    units = 64 * (2 * 1024 + 256 + 64)
    assert jax.eval_shape(model.gates, params, images).shape == (2, units)


@pytest.mark.parametrize("init", VARIANCES)
def test_initial_kernels_have_the_variance_that_their_name_promises(init):
    model = Convolutional((40, 60), (0, 1), "relu", init)
    params = model.init(jax.random.key(1), (2, 3, 20), 5)
    for (kernel, bias), fans in zip(params, [(180, 360), (360, 540), (60, 5)], strict=True):
        expected, error = VARIANCES[init](*fans), math.sqrt(2 / kernel.size)
        assert float(jnp.var(kernel)) == pytest.approx(expected, rel=5 * error)
        assert abs(float(jnp.mean(kernel))) < 5 * math.sqrt(expected / kernel.size)
        if init == "published-updated":
            assert float(jnp.std(bias)) == pytest.approx(1e-2, rel=5 / math.sqrt(2 * bias.size))
        else:
            assert not np.any(bias)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_updated_kernels_and_the_outputs_are_those_of_stax(legacy):
    def convolution():
        form = ("NHWC", "HWIO", "NHWC")
        return stax.GeneralConv(form, 4, (3, 3), padding="SAME", b_init=stax.randn(1e-2))

    pool = stax.AvgPool((2, 2), strides=(2, 2))
    init, apply = stax.serial(
        *(convolution(), stax.Relu, convolution(), stax.Relu, pool),
        *(convolution(), stax.Relu, pool, convolution(), stax.Relu, pool, pool, pool),
        *(stax.Flatten, stax.Dense(3)),
    )
    model = make_model(ModelConfig(name="myrtle5", widths=(4,), init="published-updated"))
    with jax.threefry_partitionable(not legacy):
        _, layers = init(jax.random.PRNGKey(7), (-1, 32, 32, 2))
        params = model.init(jax.random.PRNGKey(7), (32, 32, 2), 3)
    own = [layer for layer in layers if len(layer) == 2]
    for (weight, bias), (stax_weight, stax_bias) in zip(params, own, strict=True):
        assert np.array_equal(weight, stax_weight)
        assert np.array_equal(bias, np.ravel(stax_bias))
    images = jax.random.normal(jax.random.key(0), (3, 32, 32, 2))
    expected = apply(layers, images)
    np.testing.assert_allclose(model.apply(params, images), expected, rtol=1e-12, atol=1e-14)


def test_kernels_come_in_the_precision_that_is_asked_for():
    model = make_model(ModelConfig(name="convolutional", widths=(2,)))
    params = model.init(jax.random.key(0), (4, 4, 1), 2, jnp.float32)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert model.apply(params, jnp.ones((3, 4, 4, 1), jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(2,), (28, 28), (28, 28, 0), (2, 28, 28, 1)])
def test_a_convolutional_network_takes_images_only(shape):
    model = make_model(ModelConfig(name="convolutional", widths=(2,)))
    with pytest.raises(DataError, match=r"each input has shape \(.*; expected \(height, width, ch"):
        model.init(jax.random.key(0), shape, 10)


@pytest.mark.parametrize("sides", [(28, 28), (32, 48), (8, 32)])
def test_myrtle5_takes_sides_that_its_poolings_can_halve(sides):
    model = make_model(ModelConfig(name="myrtle5", widths=(2,)))
    message = rf"images have {sides[0]} x {sides[1]} pixels; expected multiples of 32"
    with pytest.raises(DataError, match=message):
        model.init(jax.random.key(0), (*sides, 3), 10)


def test_a_run_of_a_convolutional_network_has_no_kernels_at_infinite_width(tmp_path):
    images = np.random.default_rng(0).integers(256, size=(6, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", inputs=images, labels=np.arange(6) % 2)
    config = RunConfig(
        data=DataConfig(name="npz", path=str(tmp_path / "images.npz")),
        model=ModelConfig(name="convolutional", widths=(2,), activation="tanh"),
        steps=2,
        checkpoint_every=1,
    )
    run = train(config, tmp_path / "run.h5")
    kernel, weight = 9 * 2 + 2, 2 * 2 * 2 * 2 + 2
    assert (run.status, run.num_params) == ("complete", kernel + weight)
    assert run.problem.inputs.shape == images.shape
    message = (
        r"infinite_width: the run's model\.name is 'convolutional'; expected 'fully-connected'"
    )
    with pytest.raises(ConfigError, match=message):
        check_network(run, 2)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (ModelConfig(widths=(5, 4), init="he-normal"), (3,)),
        (ModelConfig(name="convolutional", widths=(3, 2), init="he-normal"), (5, 4, 2)),
    ],
    ids=["fully-connected", "convolutional"],
)
def test_with_its_own_gates_held_a_network_is_itself_and_with_others_it_is_linear_in_a_layer(
    config, shape
):
    model = make_model(config)
    first, second = (model.init(jax.random.key(seed), shape, 3) for seed in (0, 1))
    inputs = jax.random.normal(jax.random.key(2), (6, *shape))
    gates = model.gates(first, inputs)
    own = model.apply_piece(first, inputs, gates)
    np.testing.assert_allclose(own, model.apply(first, inputs), atol=1e-12)
    held = lambda layer: model.apply_piece((layer, *second[1:]), inputs, gates)  # noqa: E731
    middle = jax.tree.map(lambda a, b: (a + b) / 2, first[0], second[0])
    np.testing.assert_allclose(held(middle), (held(first[0]) + held(second[0])) / 2, atol=1e-12)
    closed = model.apply_piece(first, inputs, jnp.zeros_like(gates))
    np.testing.assert_allclose(closed, np.broadcast_to(first[-1][1], closed.shape), atol=1e-12)
