import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.stability.threshold import (
    critical_eigenvalue,
    instability_threshold,
    threshold_of,
)
from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.optimizers import FlatUpdate, make_optimizer

RATES = (1e-4, 0.02, 1.0, 30.0)


def published(config: OptimizerConfig, rate: float) -> float:
    """The closed forms of the linearised updates at multiplier -1."""
    beta, beta1 = config.momentum, config.beta1
    adam = (1 + beta1) / (1 - beta1) / rate
    return {
        "gd": 2 / rate,
        "heavy-ball": (2 + 2 * beta) / rate,
        "nesterov": (2 + 2 * beta) / (1 + 2 * beta) / rate,
        "rmsprop": 2 / rate,
        "adam": 2 * adam,
        "adamw": adam * (2 - rate * config.weight_decay),
    }[config.name]


@pytest.mark.parametrize(
    "beta", [0.0, 0.9, *(pytest.param(beta, marks=pytest.mark.slow) for beta in (0.5, 0.99))]
)
@pytest.mark.parametrize("name", ["gd", "heavy-ball", "nesterov", "rmsprop", "adam", "adamw"])
def test_thresholds_are_the_closed_forms(name, beta):
    config = OptimizerConfig(name=name, momentum=beta, beta1=beta, weight_decay=0.03)
    for rate in RATES:
        found = instability_threshold(make_optimizer(config, rate), np.array([0, 5]))
        np.testing.assert_allclose(found, [published(config, rate)] * 2, rtol=1e-9)


def test_adamw_at_the_default_beta_is_38_over_the_rate_less_19_times_the_weight_decay():
    rates = optax.piecewise_constant_schedule(0.01, {1: 10.0})
    optimizer = make_optimizer(OptimizerConfig(name="adamw", weight_decay=0.5), rates)
    found = instability_threshold(optimizer, np.array([0, 7]))
    np.testing.assert_allclose(found, [3800 - 9.5, 380 - 9.5], rtol=1e-6)  # optax rounds the rate


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("beta", [0.3, 0.9])
def test_critical_eigenvalues_of_optax_transformations_are_the_closed_forms(rate, beta):
    gd, heavy_ball, nesterov = (
        critical_eigenvalue(optimizer)
        for optimizer in (
            optax.sgd(rate),
            optax.sgd(rate, momentum=beta),
            optax.sgd(rate, momentum=beta, nesterov=True),
        )
    )
    np.testing.assert_allclose(gd, 2 / rate, rtol=1e-9)
    np.testing.assert_allclose(heavy_ball, (2 + 2 * beta) / rate, rtol=1e-9)
    np.testing.assert_allclose(nesterov, (2 + 2 * beta) / (1 + 2 * beta) / rate, rtol=1e-9)


@pytest.mark.parametrize(
    "rate", [RATES[0], *(pytest.param(r, marks=pytest.mark.slow) for r in RATES[1:3]), RATES[3]]
)
@pytest.mark.parametrize("beta", [0.3, 0.9])
def test_adaptive_transformations_are_taken_with_their_preconditioner_frozen(rate, beta):
    adam = (2 + 2 * beta) / (1 - beta) / rate
    decay = 0.5 / rate
    for optimizer, expected in (
        (optax.rmsprop(rate), 2 / rate),
        (optax.rmsprop(rate, decay=0.5, eps_in_sqrt=False), 2 / rate),
        (optax.rmsprop(rate, momentum=beta), (2 + 2 * beta) / rate),
        (optax.adam(rate, beta), adam),
        (optax.adam(rate, beta, b2=0.9, eps_root=1e-8), adam),
        (optax.nadam(rate, beta), adam / (1 + 2 * beta)),
        (optax.adamw(rate, beta, weight_decay=decay), adam - (1 + beta) / (1 - beta) * decay),
    ):
        np.testing.assert_allclose(critical_eigenvalue(optimizer), expected, rtol=1e-9)


def test_nadam_at_the_default_beta_is_13_571_over_the_rate():
    np.testing.assert_allclose(critical_eigenvalue(optax.nadam(1.0)), 38 / 2.8, rtol=1e-9)


def test_l2_inside_the_loss_lowers_the_threshold_on_the_data_hessian_by_its_weight():
    optimizer = optax.chain(optax.add_decayed_weights(0.7), optax.sgd(0.1))
    np.testing.assert_allclose(critical_eigenvalue(optimizer), 2 / 0.1 - 0.7, rtol=1e-9)


@pytest.mark.parametrize("name", ["gd", "heavy-ball", "nesterov"])
@pytest.mark.parametrize(("factor", "grows"), [(0.99, False), (1.01, True)])
def test_the_update_itself_contracts_below_and_grows_above_the_threshold(name, factor, grows):
    config = OptimizerConfig(name=name, learning_rate=0.2, momentum=0.6)
    curvature = factor * critical_eigenvalue(make_optimizer(config, 0.2))
    optimizer = make_optimizer(config, 0.2)
    x = jnp.ones(1)
    state = optimizer.init(x)
    visited = []
    for _ in range(600):
        change, state = optimizer.update(curvature * x, state, x)
        x = x + change
        visited.append(float(x[0]))
    early, late = np.max(np.abs(visited[:20])), np.max(np.abs(visited[-20:]))
    assert late > 10 * early if grows else late < early / 10
    assert np.sign(visited[-1]) == -np.sign(visited[-2])


def test_each_step_of_a_learning_rate_schedule_has_its_own_threshold():
    rates = jnp.array([0.0, 0.1, 0.5, 0.1, 0.0])
    for make, factor in ((optax.sgd, 1), (optax.adam, 19)):
        optimizer = make(lambda step: rates[step])
        found = instability_threshold(optimizer, np.array([4, 0, 1, 2, 3, 2]))
        expected = factor * np.array([np.inf, np.inf, 20, 4, 20, 4])
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_learning_rate_of_0_never_becomes_unstable():
    assert critical_eigenvalue(optax.sgd(0.0)) == np.inf
    assert instability_threshold(optax.adam(0.0), np.arange(2)).tolist() == [np.inf] * 2


def test_no_threshold_is_told_where_larger_curvatures_are_stable_again():
    with pytest.raises(ValueError, match="stable again at curvatures above the first unstable"):
        critical_eigenvalue(two_momenta())


def own(answer):
    """A transformation whose updates are this function of a gradient."""
    return optax.stateless_with_tree_map(lambda gradient, _: answer(gradient))


def two_momenta():
    """Two velocities of opposite signs: stable up to 1.2, and from 5.2 to 8.8 once more."""

    def update(gradients, velocities, params=None):
        del params
        first, second = (
            jax.tree.map(lambda v, g, b=b: b * v + g, velocity, gradients)
            for b, velocity in zip((0.8, 0.2), velocities, strict=True)
        )
        change = jax.tree.map(
            lambda g, a, b: -(0.3 * g + 0.6 * a - 0.5 * b), gradients, first, second
        )
        return change, (first, second)

    zeros = partial(jax.tree.map, jnp.zeros_like)
    return optax.GradientTransformation(lambda params: (zeros(params), zeros(params)), update)


REFUSED = {
    "not linear in the gradients": own(lambda g: -0.1 * g / (1 + g * g) - 0.01 * g),
    "clips large gradients": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "of one parameter depends on the others": optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(0.1)
    ),
    "takes the signs": optax.chain(optax.scale_by_sign(), optax.sgd(0.1)),
    "moves parameters whose gradient is 0": optax.chain(
        optax.add_noise(0.01, 0.55, key=0), optax.sgd(0.1)
    ),
    "grows at every curvature": optax.trace(0.9),
    "divides by something other than": optax.chain(optax.scale_by_adamax(), optax.scale(-0.1)),
    "gathers the gradients of several steps": optax.MultiSteps(
        optax.sgd(0.1), 4
    ).gradient_transformation(),
    "cannot be made from gradients": optax.polyak_sgd(),
}


@pytest.mark.parametrize("words", REFUSED)
def test_no_threshold_is_told_of_another_update_but_the_reason(words):
    for find in (critical_eigenvalue, lambda o: instability_threshold(o, np.array([3]))):
        with pytest.raises(ValueError, match=words):
            find(REFUSED[words])
    assert words in reason(REFUSED[words], TREE)


CHANGING = {
    "bias correction": optax.chain(optax.ema(0.9), optax.scale(-0.1)),
    "schedule": optax.sgd(optax.linear_schedule(0.1, 0.01, 10)),
    "adam under a schedule": optax.adam(optax.linear_schedule(0.1, 0.01, 10)),
}


@pytest.mark.parametrize("optimizer", CHANGING.values(), ids=CHANGING)
def test_no_single_critical_eigenvalue_is_told_of_an_update_that_changes(optimizer):
    with pytest.raises(ValueError, match="changes with the step; expected a constant learning"):
        critical_eigenvalue(optimizer)
    assert np.all(instability_threshold(optimizer, np.array([3, 9])) > 0)


def reason(optimizer, params):
    return threshold_of(FlatUpdate(optimizer, Layout.of(params))).reason


TREE = {"a": jnp.ones((2, 3)), "b": jnp.ones(4)}


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.1, momentum=0.9, nesterov=True),
        optax.adamw(optax.linear_schedule(0.0, 0.1, 5), weight_decay=0.1),
        optax.chain(optax.add_decayed_weights(0.1), optax.rmsprop(0.1)),
    ],
    ids=["nesterov", "adamw under a schedule", "rmsprop"],
)
def test_a_threshold_is_drawn_for_one_rule_for_all_parameters(optimizer):
    assert reason(optimizer, TREE) == ""


LABELS = {"a": "slow", "b": "fast"}
DIFFERING = {
    "two learning rates": optax.multi_transform(
        {"slow": optax.sgd(0.1), "fast": optax.sgd(0.2)}, LABELS
    ),
    "decay of some": optax.chain(
        optax.add_decayed_weights(0.5, mask={"a": True, "b": False}), optax.sgd(0.1)
    ),
    "trust ratio": optax.lars(0.1),
    "gradients normalised": optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1)),
}


@pytest.mark.parametrize("optimizer", DIFFERING.values(), ids=DIFFERING)
def test_no_threshold_is_drawn_where_parameters_move_by_rules_of_their_own(optimizer):
    assert "update" in reason(optimizer, TREE)


def test_only_mini_batch_runs_are_refused_a_threshold(small, trained):
    steps = np.array([0, 3])
    np.testing.assert_allclose(run_threshold(trained(small)).at(steps), 2 / 0.3)
    found = run_threshold(trained(dataclasses.replace(small, batch_size=10)))
    assert "mini-batches" in found.reason
    assert found.label() == found.reason
    assert np.all(np.isnan(found.at(steps)))
    with pytest.raises(ConfigError, match="the optimizer has no threshold: mini-batches"):
        found.required_at(0)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "adamw"])
def test_the_label_of_an_adaptive_optimizer_names_the_frozen_preconditioner(name, small, trained):
    run = trained(dataclasses.replace(small, optimizer=OptimizerConfig(name, learning_rate=0.01)))
    assert run_threshold(run).label() == f"critical eigenvalue of {name}, frozen preconditioner"


@pytest.mark.parametrize("name", ["gd", "heavy-ball", "nesterov"])
def test_the_label_of_another_optimizer_names_it_alone(name, small, trained):
    run = trained(dataclasses.replace(small, optimizer=OptimizerConfig(name, learning_rate=0.01)))
    assert run_threshold(run).label() == f"critical eigenvalue of {name}"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_label_says_that_rounding_is_not_in_the_threshold(dtype, small, trained):
    run = trained(dataclasses.replace(small, dtype=dtype))
    expected = f"critical eigenvalue of gd; the rounding to {dtype} is not in it"
    assert run_threshold(run).label() == expected


def test_the_label_of_a_static_spectrum_says_that_the_threshold_is_of_the_weighted_loss(
    small, trained
):
    assert "not to what is shown" in run_threshold(trained(small)).label(applies=False)


def failing(error):
    """An optimizer whose state cannot be made."""

    def init(params):
        raise error

    return optax.GradientTransformation(init, optax.sgd(0.1).update)


def test_what_is_wrong_with_the_machine_is_no_reason_to_have_no_threshold():
    assert reason(failing(ZeroDivisionError("by zero")), TREE) == "by zero"
    with pytest.raises(MemoryError, match="too little"):
        reason(failing(MemoryError("too little")), TREE)
