from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest

from dlf_dynamics import DataConfig, ModelConfig, RunConfig, ScheduleConfig, train
from dlf_dynamics.models import ACTIVATIONS
from dlf_dynamics.smoothness import kinks

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.array([0.3, -0.7, 1.1])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_of_the_activations_relu_alone_has_a_kink(name):
    activation = ACTIVATIONS[name]
    expected = ["relu"] if name == "relu" else []
    for function in (
        lambda x: activation(x).sum(),
        lambda x: jax.lax.map(activation, x).sum(),
        lambda x: jax.vmap(jax.jit(activation))(x).sum(),
        lambda x: jax.lax.scan(lambda carry, y: (carry + activation(y), None), 0.0, x)[0],
    ):
        assert kinks(function, X) == expected


SMOOTH = {
    "logsumexp": jax.nn.logsumexp,
    "log_softmax": lambda x: jax.nn.log_softmax(x)[0],
    "softmax": lambda x: jax.nn.softmax(x)[0],
    "cross entropy": lambda x: optax.softmax_cross_entropy_with_integer_labels(x, 1),
    "binary cross entropy": lambda x: optax.sigmoid_binary_cross_entropy(x, jnp.ones(3)).sum(),
    "layer norm": lambda x: jnp.sum((x - x.mean()) / jnp.sqrt(x.var() + 1e-5) ** 3),
    "a kink that is not differentiated": lambda x: jnp.sum(x * jax.lax.stop_gradient(jnp.abs(x))),
}
KINKED = {
    "relu": lambda x: jax.nn.relu(x).sum(),
    "relu6": lambda x: jax.nn.relu6(x).sum(),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x).sum(),
    "max": lambda x: jnp.maximum(x, 0).sum(),
    "abs": lambda x: jnp.abs(x).sum(),
    "reduce_window_max": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (2,), (1,), "VALID"
    ).sum(),
}


def test_the_step_and_other_arguments_may_have_kinks():
    def loss(params, step, inputs):
        weight = jnp.maximum(1.0, jnp.abs(10.0 - step)) + jnp.sign(step % 7)
        return weight * jnp.sum(jnp.tanh(params * jax.nn.relu(inputs)))

    assert kinks(loss, X, jnp.int32(3), X) == []
    assert kinks(lambda inputs, params: loss(params, 3, inputs), X, X) == ["relu"]


@pytest.mark.parametrize(
    ("activation", "pulses"), [("relu", True), ("tanh", True), ("tanh", False)]
)
def test_the_loss_of_a_run_has_the_kinks_of_its_activation(activation, pulses, tmp_path):
    config = RunConfig(
        data=DataConfig(points_per_class=4),
        model=ModelConfig(widths=(3,), activation=activation),
        schedule=ScheduleConfig(name="triangle" if pulses else "static"),
        steps=1,
    )
    run = train(config, tmp_path / "run.h5")
    assert run.kinks == (["relu"] if activation == "relu" else [])
    expanded = train(replace(config, linearize=1), tmp_path / "linear.h5")
    assert expanded.kinks == []  # a polynomial in the parameters, whatever the activation


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_functions_have_none(name):
    assert kinks(SMOOTH[name], X) == []


@pytest.mark.parametrize("name", KINKED)
def test_a_kink_is_called_by_the_name_of_its_operation(name):
    assert kinks(KINKED[name], X) == [name]


def test_a_sort_of_several_arrays_is_a_kink():
    assert kinks(lambda x: jax.lax.sort((x, 2 * x))[1], X) == ["sort"]
