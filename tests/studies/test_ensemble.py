"""Runs trained together without a file, against `train`, dense matrices and plain NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import assembly, train
from dlf_dynamics.analysis.studies import ensemble, histories
from dlf_dynamics.analysis.studies.ensemble import Ensemble, History, Stopped
from dlf_dynamics.analysis.studies.histories import measure
from dlf_dynamics.analysis.studies.outcome import CURVES
from dlf_dynamics.analysis.studies.study import Measures
from dlf_dynamics.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.schedules import Static, Triangle

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = RunConfig(
    data=DataConfig(points_per_class=10, validation=40),
    model=ModelConfig(widths=(5,), activation="tanh", init="glorot-normal"),
    schedule=ScheduleConfig(amplitude=8.0, period=12),
    optimizer=OptimizerConfig(name="nesterov", learning_rate=0.2, momentum=0.6),
    steps=93,
    checkpoint_every=10,
)
MEASURES = Measures(curve_points=4, sharpness=True, ntk_examples=6)


def varied(**changes):
    """Runs that differ in each of the numbers that an ensemble lets differ."""
    schedule = ScheduleConfig(amplitude=3.0, period=7)
    optimizer = replace(CONFIG.optimizer, learning_rate=0.1, momentum=0.3)
    other = replace(
        CONFIG, schedule=schedule, optimizer=optimizer, model=replace(CONFIG.model, seed=4)
    )
    return [replace(config, **changes) for config in (CONFIG, other)]


def forward(vector, inputs):
    """The network of CONFIG in plain NumPy."""
    first, bias, last, last_bias = np.split(vector, np.cumsum([10, 5, 15]))
    hidden = np.tanh(inputs @ first.reshape(2, 5) + bias)
    return hidden @ last.reshape(5, 3) + last_bias


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 7, "batch_seed": 3},
        {"linearize": 1},
        {"loss": LossConfig("squared-error-per-output")},
        {"optimizer": OptimizerConfig("adam", 0.05, "cosine", warmup_steps=5)},
        {"optimizer": OptimizerConfig("gd", 0.5, "exponential", 0.1)},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {
            "schedule": ScheduleConfig(amplitude=5.0, period=7, static_from_epoch=12),
            "batch_size": 10,
            "batch_sampling": "independent",
        },
    ],
    ids=[
        "full batch",
        "mini-batches",
        "linearised",
        "per output",
        "cosine",
        "exponential",
        "f32",
        "bf16",
        "static from an epoch",
    ],
)
def test_a_run_alone_is_that_of_train_to_rounding(changes, tmp_path):
    config = replace(CONFIG, **changes)
    run = train(config, tmp_path / "run.h5")
    (history,) = Ensemble([config]).run([0, 50, 90])
    rounded = config.dtype == "float32"
    close = {"rtol": 1e-3, "atol": 1e-3} if rounded else {"rtol": 1e-9, "atol": 0}
    for name, values in run.scalars.items():
        # A cosine near 0 has the rounding of numbers near 1.
        slack = max(close["atol"], 1e-11) if name == "update_cosine" else close["atol"]
        found = history.columns[name]
        np.testing.assert_allclose(found, values, err_msg=name, rtol=close["rtol"], atol=slack)
    np.testing.assert_allclose(history.params, run.parameters()[-1], **close)
    np.testing.assert_allclose(history.kept, run.parameters([0, 5, 9]), **close)
    assert history.validation_steps.tolist() == run.checkpoint_steps.tolist()
    np.testing.assert_allclose(history.validation[:, 0], run.validation["loss"], **close)


def test_runs_together_are_what_each_is_alone_and_nothing_is_compiled_for_them_anew():
    configs = varied(batch_size=9)
    together = Ensemble(configs).run()
    alone = [Ensemble([config]).run()[0] for config in configs]
    for one, other in zip(together, alone, strict=True):
        for name, values in other.columns.items():
            np.testing.assert_allclose(one.columns[name], values, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(one.params, other.params, rtol=1e-9, atol=1e-9)
    before = ensemble._advance._cache_size()
    Ensemble([replace(configs[1], batch_seed=5)]).run()
    assert ensemble._advance._cache_size() == before


def test_runs_that_differ_in_more_than_numbers_are_no_ensemble():
    with pytest.raises(ValueError, match="differ in more than numbers"):
        Ensemble([CONFIG, replace(CONFIG, steps=50)])


def test_runs_together_hold_their_data_once():
    first, second = Ensemble(varied()).dynamics
    assert second.problem.inputs is first.problem.inputs
    assert second.validation.inputs is first.validation.inputs  # type: ignore[union-attr]


def test_a_wish_to_stop_ends_it():
    with pytest.raises(Stopped):
        Ensemble([CONFIG]).run(stop=lambda: True)
    with pytest.raises(Stopped):
        measure([CONFIG], Measures(), lambda: True)


def test_everything_about_a_run_agrees_with_an_independent_calculation(tmp_path):
    run = train(CONFIG, tmp_path / "run.h5")
    (found,) = measure([CONFIG], MEASURES)
    assert (found.status, found.steps) == ("complete", 93)
    assert run.held_out is not None
    params, problem = run.parameters()[-1], run.problem
    outputs = forward(params, run.held_out.inputs)
    labels = run.held_out.labels
    losses = -np.log(np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True))
    assert found.validation_loss == pytest.approx(losses[np.arange(40), labels].mean(), rel=1e-12)
    assert found.validation_accuracy == np.mean(outputs.argmax(1) == labels)
    accuracies = [
        np.mean(forward(p, run.held_out.inputs).argmax(1) == labels) for p in run.parameters()
    ]
    assert found.best_validation_accuracy == pytest.approx(max(accuracies))
    assert found.best_accuracy == run.scalars["accuracy"].max()
    dense = jax.hessian(problem.static_objective)(jnp.asarray(params))
    assert found.sharpness == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-5)
    jacobian = jax.jacobian(problem.outputs)(jnp.asarray(params))[:6]
    kernel = np.einsum("ncp,mcp->nm", jacobian, jacobian) / 3
    assert found.ntk == pytest.approx(np.linalg.eigvalsh(kernel)[-1], rel=1e-10)
    # Nesterov's method on a quadratic: (2 + 2β) / ((1 + 2β) η).
    assert found.threshold == pytest.approx((2 + 2 * 0.6) / ((1 + 2 * 0.6) * 0.2), rel=1e-9)
    assert found.preconditioned_sharpness == found.sharpness


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error-per-output"])
def test_the_last_numbers_of_a_run_of_mini_batches_are_of_all_examples(loss, tmp_path):
    config = replace(CONFIG, loss=LossConfig(loss), batch_size=7)  # 30 examples: 4 batches and 2
    run = train(config, tmp_path / "run.h5")
    (found,) = measure([config], Measures())
    inputs, labels = run.dataset.inputs, run.dataset.labels
    outputs, weights = forward(run.parameters()[-1], inputs), run.scalars["class_weights"][-1]
    assert found.accuracy == pytest.approx(np.mean(outputs.argmax(1) == labels), rel=1e-15)
    targets = np.eye(3)[labels]
    if loss == "cross-entropy":
        logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
        each = -(targets * logs).sum(1)
        expected = np.mean(each), np.mean(weights[labels] * each)
    else:
        each = (outputs - targets) ** 2
        expected = np.mean(each.sum(1)), np.mean((weights * each).sum(1))
    assert (found.static_loss, found.loss) == pytest.approx(expected, rel=1e-12)
    assert found.best_accuracy == run.scalars["accuracy"].max()


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error", "squared-error-per-output"])
def test_curves_hold_the_run_at_checkpoints_and_the_sharpness_of_the_weighted_loss(loss, tmp_path):
    config = replace(CONFIG, loss=LossConfig(loss))
    run = train(config, tmp_path / "run.h5")
    (found,) = measure([config], MEASURES)
    steps = histories.curve_steps(config, 4)
    assert steps.tolist() == [0, 30, 60, 90]
    for name in ("loss", "static_loss", "accuracy"):
        curve = found.curves[:, CURVES.index(name)]
        np.testing.assert_allclose(curve, run.scalars[name][steps], rtol=1e-10)
    checkpoints = steps // 10
    for name in ("loss", "accuracy"):
        curve = found.curves[:, CURVES.index(f"validation_{name}")]
        np.testing.assert_allclose(curve, run.validation[name][checkpoints], rtol=1e-10)
    for step, row in zip(steps, found.curves, strict=True):
        params = jnp.asarray(run.parameters()[step // 10])
        dense = jax.hessian(run.problem.objective)(params, int(step))
        assert row[CURVES.index("sharpness")] == pytest.approx(
            np.linalg.eigvalsh(dense)[-1], rel=1e-5
        )


def test_a_run_that_diverges_ends_there_and_the_others_go_on(tmp_path):
    configs = varied(loss=LossConfig("squared-error"))
    wild = replace(configs[0], optimizer=replace(CONFIG.optimizer, learning_rate=50.0))
    run = train(wild, tmp_path / "run.h5")
    assert run.status == "diverged"
    diverged, fine = measure([wild, configs[1]], Measures(curve_points=4))
    (alone,) = measure([wild], Measures(curve_points=4))
    assert (diverged.status, diverged.steps) == ("diverged", run.steps[-1])
    assert np.isnan([diverged.loss, diverged.accuracy, diverged.validation_accuracy]).all()
    assert diverged.best_accuracy == np.max(run.scalars["accuracy"][:-1])
    beyond = histories.curve_steps(wild, 4) >= run.steps[-1]
    assert beyond.any()
    np.testing.assert_array_equal(np.isnan(diverged.curves[:, 0]), beyond)
    assert (alone.status, alone.steps) == (diverged.status, diverged.steps)
    assert fine.status == "complete"
    assert np.isfinite(fine.loss)


def test_the_kinds_of_instabilities_are_told_by_the_loss():
    steps = np.arange(1000)
    cosine = np.ones(1000)
    loss = 1.0 + 1e-4 * steps
    cosine[100:200] = cosine[400:500] = cosine[700:760] = -0.9
    loss[100:200] += 0.05 * (-1.0) ** steps[100:200]
    loss[400:500] += 0.002 * np.array([0, 1, 0.5, 1.8])[steps[400:500] % 4]
    columns = {"loss": loss, "update_cosine": cosine}
    none = np.zeros(0)
    history = History(columns, none, none, none, none, none, ())
    found = histories._events(loss, history, Static(3))
    assert np.isnan(found.pop("onset_phase"))
    two, four = found.pop("period_2_steps"), found.pop("period_4_steps")
    assert found == {
        "instabilities": 3,
        "bursts": 1,
        "period_2": 1,
        "period_4": 1,
        "irregular": 1,
        "oscillating_steps": 260,
    }
    # Windows of 32 steps speak for their middle: 16 steps at each end may tell another period.
    assert abs(two - 100) <= 32
    assert abs(four - 100) <= 32


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Triangle(3, 4.0, 350), 50 / 350),
        (Triangle(3, 4.0, 349, "published"), 50 / 350),
        (Triangle(3, 4.0, 350, static_from=650), 75 / 350),
        (Triangle(3, 4.0, 80), 60 / 80),  # the windows of 100 steps have no phase
        (Triangle(3, 4.0, 50), np.nan),
        (Triangle(3, 1.0, 350), np.nan),
        (Static(3), np.nan),
    ],
)
def test_the_phase_of_onsets_is_the_median_of_windows_shorter_than_a_pulse(schedule, expected):
    cosine = np.ones(1000)
    cosine[100:200] = cosine[400:500] = cosine[700:760] = -0.9
    none = np.zeros(0)
    columns = {"loss": np.ones(1000), "update_cosine": cosine}
    history = History(columns, none, none, none, none, none, ())
    found = histories._events(columns["loss"], history, schedule)["onset_phase"]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_mini_batches_have_no_threshold():
    (found,) = measure([replace(CONFIG, batch_size=5, steps=20)], Measures(sharpness=True))
    assert np.isnan([found.threshold, found.preconditioned_sharpness]).all()
    assert np.isfinite(found.sharpness)
    # Updates of mini-batches oppose each other without any instability.
    kinds = (found.instabilities, found.bursts, found.irregular, found.oscillating_steps)
    assert np.all(np.isnan(kinds))


def test_the_threshold_of_adam_stands_beside_the_sharpness_that_is_compared_with_it(tmp_path):
    optimizer = OptimizerConfig("adam", 0.01)
    config = replace(CONFIG, optimizer=optimizer, steps=20, checkpoint_every=1)
    run = train(replace(config, steps=21), tmp_path / "run.h5")  # the last checkpoint is at step 20
    (found,) = measure([config], Measures(sharpness=True))
    (point,) = run.recorded(np.array([20]))
    static = run.problem.static_objective
    slope = np.asarray(jax.grad(static)(jnp.asarray(point.params)))
    squares = np.asarray(run.state(point).optimizer_state[0].nu)
    squares = optimizer.beta2 * squares + (1 - optimizer.beta2) * slope**2
    bias1, bias2 = (1 - beta**21 for beta in (optimizer.beta1, optimizer.beta2))
    root = np.sqrt(bias1 * (np.sqrt(squares / bias2) + optimizer.epsilon))
    dense = np.asarray(jax.hessian(static)(jnp.asarray(point.params)))
    assert found.sharpness == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-5)
    scaled = np.linalg.eigvalsh(dense / np.outer(root, root))
    assert found.preconditioned_sharpness == pytest.approx(scaled[-1], rel=1e-5)
    assert found.threshold == pytest.approx(38 / 0.01, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "has"), [(optax.nadam, True), (optax.sign_sgd, False)], ids=["nadam", "sign_sgd"]
)
def test_a_threshold_is_told_of_what_an_optimizer_does_and_not_of_its_name(monkeypatch, make, has):
    monkeypatch.setattr(assembly, "make_optimizer", lambda config, rate: make(rate))
    assembly._known_rule.cache_clear()
    try:
        # Another form for each than anywhere else, so that nothing compiled is taken for it.
        config = replace(CONFIG, optimizer=OptimizerConfig("gd", 0.0123), steps=22 + has)
        (found,) = measure([config], Measures(sharpness=True))
    finally:
        assembly._known_rule.cache_clear()
    assert np.isfinite(found.sharpness)
    if not has:
        assert np.isnan([found.threshold, found.preconditioned_sharpness]).all()
        return
    assert found.threshold == pytest.approx(38 / 2.8 / 0.0123, rel=1e-9)
    assert abs(found.preconditioned_sharpness / found.sharpness - 1) > 0.1


def test_runs_start_from_given_parameters():
    given = jnp.linspace(-1.0, 1.0, len(Ensemble([CONFIG])._params[0]))
    short = replace(CONFIG, steps=1)
    for history in Ensemble([short, replace(short, batch_seed=1)], given).run(keep=[0]):
        np.testing.assert_array_equal(history.kept[0], given)
