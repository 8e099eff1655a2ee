import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.layout import Layout
from dlf_dynamics.optimizers import (
    is_adaptive,
    learning_rate_schedule,
    make_optimizer,
    preconditioner,
)

NAMES = ("gd", "heavy-ball", "nesterov", "rmsprop", "adam", "adamw")
CONFIG = {
    "learning_rate": 0.03,
    "momentum": 0.8,
    "decay": 0.7,
    "beta1": 0.85,
    "beta2": 0.95,
    "epsilon": 1e-3,
    "weight_decay": 0.2,
}
GRADIENTS = np.random.default_rng(0).normal(size=(6, 3))
START = np.array([0.5, -1.0, 2.0])


def config(name):
    return OptimizerConfig(name=name, **CONFIG)


def textbook(name, gradients, params):
    """Parameters after each update, by the textbook's recurrences in plain Python."""
    rate, beta = CONFIG["learning_rate"], CONFIG["momentum"]
    decay, beta1, beta2 = CONFIG["decay"], CONFIG["beta1"], CONFIG["beta2"]
    params, path = [float(value) for value in params], []
    mean, square = [0.0] * len(params), [0.0] * len(params)
    for t, gradient in enumerate(gradients, 1):
        for k, g in enumerate(gradient):
            if name == "gd":
                update = g
            elif name == "heavy-ball":
                mean[k] = beta * mean[k] + g
                update = mean[k]
            elif name == "nesterov":
                mean[k] = beta * mean[k] + g
                update = g + beta * mean[k]
            elif name == "rmsprop":
                square[k] = decay * square[k] + (1 - decay) * g * g
                update = g / math.sqrt(square[k] + CONFIG["epsilon"])
            else:
                mean[k] = beta1 * mean[k] + (1 - beta1) * g
                square[k] = beta2 * square[k] + (1 - beta2) * g * g
                root = math.sqrt(square[k] / (1 - beta2**t))
                update = mean[k] / (1 - beta1**t) / (root + CONFIG["epsilon"])
                if name == "adamw":
                    update += CONFIG["weight_decay"] * params[k]
            params[k] -= rate * update
        path.append(list(params))
    return np.array(path)


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_follows_its_textbook(name):
    optimizer = make_optimizer(config(name), CONFIG["learning_rate"])
    params = jnp.asarray(START)
    state = optimizer.init(params)
    path = []
    for gradient in GRADIENTS:
        update, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = params + update
        path.append(np.asarray(params))
    np.testing.assert_allclose(path, textbook(name, GRADIENTS, START), rtol=1e-12)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
def test_the_preconditioner_divides_the_very_next_update(name):
    optimizer = make_optimizer(config(name), CONFIG["learning_rate"])
    params = jnp.asarray(START)
    state = optimizer.init(params)
    mean = np.zeros(3)
    for gradient in GRADIENTS:
        found = np.asarray(preconditioner(optimizer.update, state, jnp.asarray(gradient)))
        update, state = optimizer.update(jnp.asarray(gradient), state, params)
        if name == "rmsprop":
            numerator = gradient
        else:
            mean = CONFIG["beta1"] * mean + (1 - CONFIG["beta1"]) * gradient
            numerator = mean
        decay = CONFIG["weight_decay"] * np.asarray(params) if name == "adamw" else 0.0
        expected = -CONFIG["learning_rate"] * (numerator / found + decay)
        np.testing.assert_allclose(update, expected, rtol=1e-12)
        params = params + update


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
def test_a_small_nudge_of_the_gradient_moves_the_update_by_its_share_of_the_preconditioner(name):
    # With P frozen, as the stability analysis has it: only the numerator answers.
    optimizer = make_optimizer(config(name), CONFIG["learning_rate"])
    state = optimizer.init(jnp.asarray(START))
    gradient = jnp.asarray(GRADIENTS[0])
    frozen = preconditioner(optimizer.update, state, gradient)
    share = 1.0 if name == "rmsprop" else 1 - CONFIG["beta1"]

    def response(nudge):
        # Both signs of the gradient give the same root mean square.
        plus, _ = optimizer.update(gradient * nudge, state, jnp.zeros(3))
        return plus

    difference = response(1.0) - response(-1.0)
    expected = -CONFIG["learning_rate"] * share * 2 * gradient / frozen
    np.testing.assert_allclose(difference, expected, rtol=1e-12)


def adam_by_hand(state, gradient, beta1, beta2, epsilon):
    """Adam's preconditioner as its paper has it, both bias corrections kept."""
    t = int(state.count) + 1
    square = beta2 * np.asarray(state.nu) + (1 - beta2) * gradient**2
    return (1 - beta1**t) * (np.sqrt(square / (1 - beta2**t)) + epsilon)


@pytest.mark.parametrize("count", [0, 3, 50])
def test_the_preconditioner_of_a_chain_under_a_schedule_is_that_of_the_adam_inside(count):
    optimizer = optax.chain(
        optax.scale_by_adam(0.8, 0.95, 1e-3),
        optax.add_decayed_weights(0.3),
        optax.scale_by_schedule(lambda step: 0.1 / (1 + step)),
        optax.scale(-0.7),
    )
    params = jnp.asarray(START)
    state = optimizer.init(params)
    for number in range(count):
        _, state = optimizer.update(jnp.sin(number + params), state, params)
    gradient = np.array([0.3, 0.0, -1e-9])  # P is defined where the gradient vanishes, too
    expected = adam_by_hand(state[0], gradient, 0.8, 0.95, 1e-3)
    found = preconditioner(optimizer.update, state, jnp.asarray(gradient))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_preconditioner_does_not_depend_on_the_learning_rate_even_where_it_is_0():
    warm = optax.adam(optax.linear_schedule(0.0, 0.1, 5), 0.8, 0.95, 1e-3)
    state = warm.init(jnp.asarray(START))
    gradient = np.array([0.3, 0.0, -2.0])
    found = preconditioner(warm.update, state, jnp.asarray(gradient))
    expected = adam_by_hand(state[0], gradient, 0.8, 0.95, 1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def rate_from(start, stop=None):
    """A learning rate that is 0 before a step, and again from another one on."""
    parts, ends = [optax.constant_schedule(0.0), optax.constant_schedule(0.1)], [start]
    if stop is not None:
        parts, ends = [*parts, optax.constant_schedule(0.0)], [start, stop]
    return optax.join_schedules(parts, ends)


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("rate", [rate_from(5), rate_from(900, 1800), rate_from(2)])
def test_the_preconditioner_is_known_while_the_learning_rate_is_still_0(rate, count):
    gradient = np.array([0.3, 0.0, -2.0])
    adam = optax.adam(rate, 0.8, 0.95, 1e-3)
    injected = optax.inject_hyperparams(optax.adam)(rate, 0.8, 0.95, 1e-3)
    rmsprop = optax.rmsprop(rate, 0.9, 1e-3)
    params = jnp.asarray(START)
    for optimizer, find in ((adam, lambda s: s[0]), (injected, lambda s: s.inner_state[0])):
        state = optimizer.init(params)
        for number in range(count):
            _, state = optimizer.update(jnp.sin(number + params), state, params)
        expected = adam_by_hand(find(state), gradient, 0.8, 0.95, 1e-3)
        found = preconditioner(optimizer.update, state, jnp.asarray(gradient))
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    state, square = rmsprop.init(params), np.zeros(3)
    for number in range(count):
        slope = np.sin(number + START)
        square = 0.9 * square + 0.1 * slope**2
        _, state = rmsprop.update(jnp.asarray(slope), state, params)
    found = jax.jit(lambda s, g: preconditioner(rmsprop.update, s, g))(state, jnp.asarray(gradient))
    expected = np.sqrt(0.9 * square + 0.1 * gradient**2 + 1e-3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_an_optimizer_that_never_moves_has_no_known_preconditioner():
    still = optax.chain(optax.scale_by_adam(), optax.scale(0.0))
    found = preconditioner(still.update, still.init(jnp.zeros(2)), jnp.ones(2))
    assert np.all(np.isnan(found))


@pytest.mark.parametrize("name", ["gd", "heavy-ball", "nesterov"])
def test_optimizers_without_a_preconditioner_say_so(name):
    optimizer = make_optimizer(config(name), 0.1)
    with pytest.raises(ValueError, match="has no preconditioner; only such as RMSProp and Adam"):
        preconditioner(optimizer.update, optimizer.init(jnp.zeros(2)), jnp.zeros(2))


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_is_adaptive_when_it_keeps_mean_squares(name):
    expected = name in ("rmsprop", "adam", "adamw")
    rate = optax.linear_schedule(0.1, 0.01, 10)
    assert is_adaptive(make_optimizer(config(name), 0.1)) == expected
    assert (
        is_adaptive(optax.chain(optax.identity(), make_optimizer(config(name), rate))) == expected
    )


def rates(steps, at, **options):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, **options), steps)
    return [float(schedule(step)) for step in at]


def test_a_constant_learning_rate_stays():
    assert rates(100, [0, 50, 100, 1000]) == [2.0] * 4


def test_a_linear_learning_rate_reaches_its_end_at_the_last_step():
    found = rates(100, [0, 25, 50, 100], learning_rate_schedule="linear", final_learning_rate=1.0)
    assert found == pytest.approx([2.0, 1.75, 1.5, 1.0], rel=1e-14)


def test_a_cosine_learning_rate_is_half_a_wave():
    found = rates(100, [0, 25, 50, 100], learning_rate_schedule="cosine", final_learning_rate=1.0)
    expected = [1.5 + 0.5 * math.cos(math.pi * s / 100) for s in (0, 25, 50, 100)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_an_exponential_learning_rate_falls_by_equal_factors():
    found = rates(100, [0, 50, 100], learning_rate_schedule="exponential", final_learning_rate=0.02)
    assert found == pytest.approx([2.0, 0.2, 0.02], rel=1e-12)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "exponential"])
def test_a_warm_up_rises_from_0_and_shortens_the_rest(name):
    options = {"learning_rate_schedule": name, "final_learning_rate": 0.5, "warmup_steps": 20}
    assert rates(100, [0, 5, 10, 20], **options) == pytest.approx([0.0, 0.5, 1.0, 2.0])
    late = rates(100, [100], **options)
    assert late == pytest.approx([2.0 if name == "constant" else 0.5])


def test_the_optimizer_uses_the_schedule_step_by_step():
    rate = learning_rate_schedule(
        OptimizerConfig(learning_rate_schedule="linear", final_learning_rate=0.5), 4
    )
    optimizer = make_optimizer(OptimizerConfig(), rate)
    state = optimizer.init(jnp.zeros(1))
    updates = []
    for _ in range(5):
        update, state = optimizer.update(jnp.ones(1), state)
        updates.append(float(update[0]))
    assert updates == pytest.approx([-1.0, -0.875, -0.75, -0.625, -0.5])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_flattened_state_comes_back_to_the_bit(name, dtype, scheduled):
    rate = optax.linear_schedule(0.1, 0.01, 10) if scheduled else 0.1
    optimizer = make_optimizer(config(name), rate)
    params = jnp.asarray(START, dtype)
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        _, state = optimizer.update(jnp.asarray(gradient, dtype), state, params)
    layout = Layout.of(jax.eval_shape(optimizer.init, params))
    assert layout == Layout.of(state)
    vector = layout.flatten(state)
    assert len(vector) == layout.size
    if len(vector) > 1:
        assert vector.dtype == dtype
    back = layout.unflatten(vector)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_counts_survive_float32_below_two_to_the_24():
    state = {"count": jnp.int32(2**24 - 1), "mean": jnp.ones(1, jnp.float32)}
    layout = Layout.of(state)
    back = layout.unflatten(layout.flatten(state))
    assert int(back["count"]) == 2**24 - 1
