"""Thresholds beside hyperparameters that a training loop changes in the optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.analysis.bifurcation import compute_bifurcations, training_map, training_state
from dlf_dynamics.analysis.instabilities.summary import verdict
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.oneshot import stability
from dlf_dynamics.analysis.stability.changed import deciding
from dlf_dynamics.analysis.stability.threshold import critical_eigenvalue, instability_threshold
from dlf_dynamics.config import BifurcationConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hyperparameters import hyperparameter_places
from dlf_dynamics.opening import open_run
from dlf_dynamics.recorder import Recorder

pytestmark = pytest.mark.usefixtures("quick_compilation")

CURVATURES = np.array([30.0, 1.0, 2.0])
START = np.array([1e-3, 0.5, -0.2])
PROBLEM = Problem.from_loss(lambda p, step: jnp.sum(jnp.asarray(CURVATURES) * p["a"] ** 2) / 2)


def injected(rate, rule=optax.sgd, **options):
    return optax.inject_hyperparams(rule)(rate, **options)


def recorded(path, optimizer, change=lambda state, step: None, *, steps=40, **options):
    """The run of a loop that may change the optimizer's state before it records a step."""
    params = {"a": jnp.asarray(START)}
    setup, state = (PROBLEM, optimizer, params), optimizer.init(params)
    update = jax.jit(optimizer.update)
    with Recorder(path, PROBLEM, optimizer=optimizer, overwrite=True, **options) as run:
        for step in range(steps):
            change(state, step)
            run.record(step, params, state if options.get("stateful", True) else ())
            slope = {"a": CURVATURES * params["a"]}
            moved, state = update(slope, state, params)
            params = optax.apply_updates(params, moved)
    return open_run(path, setup)


def told(run):
    """Label and thresholds of the checkpoints."""
    threshold = run_threshold(run)
    return threshold.label(), threshold.at(run.checkpoint_steps)


def grows(rate):
    """Whether gradient descent on the quadratic does, by its formula alone."""
    sizes = [abs((1 - rate * CURVATURES[0]) ** step * START[0]) for step in (20, 40)]
    return bool(sizes[1] > sizes[0])


@pytest.mark.parametrize(("setup", "loop"), [(0.1, 0.05), (0.05, 0.1), (0.1, 0.1)])
def test_no_verdict_contradicts_what_gradient_descent_does(setup, loop, tmp_path):
    def change(state, step):
        if step == 0:
            state.hyperparams["learning_rate"] = jnp.asarray(loop)

    run = recorded(tmp_path / "run.h5", injected(setup), change, every=10)
    found = compute_spectrum(run, SpectrumConfig(k=1, ntk_examples=0))
    label, thresholds, sides = found.label, found.thresholds, found.sides[:, 0]
    size = np.abs(np.asarray(run.parameters())[:, 0])
    assert (size[-1] > size[0]) == grows(loop)  # the loop is what it is said to be
    if setup == loop:
        np.testing.assert_allclose(thresholds, 2 / loop, rtol=1e-12)
        assert np.all(sides == (1 if grows(loop) else -1))
        return
    assert np.all(np.isnan(thresholds))
    assert not np.any(sides)
    assert label == (
        f"no threshold: learning_rate is {loop:g} in the optimizer's state of step 0 and {setup:g} "
        "in the problem's optimizer; expected the same, by a schedule where it changes"
    )


def test_a_rate_that_drops_in_the_loop_leaves_check_undecided(tmp_path):
    def change(state, step):
        if step == 25:
            state.hyperparams["learning_rate"] = jnp.asarray(0.05)

    run = recorded(tmp_path / "run.h5", injected(0.06), change, every=10)
    found = compute_bifurcations(run, BifurcationConfig(diagrams="none"))
    assert found.label.startswith("no threshold: learning_rate is 0.05 in the optimizer's state of")
    assert "step 30 and 0.06" in found.label
    assert found.crossings == []
    assert verdict(found)[0] == "undecided"


def test_states_that_are_recorded_now_and_then_are_looked_at_as_recorded(tmp_path):
    params, optimizer = {"a": jnp.asarray(START)}, injected(0.06)
    state = optimizer.init(params)
    with Recorder(tmp_path / "run.h5", PROBLEM, optimizer=optimizer) as run:
        for step in range(31):
            if step == 30:
                state.hyperparams["learning_rate"] = jnp.asarray(0.05)
            if step % 10 == 0:
                run.record(step, params, state)
            moved, state = optimizer.update({"a": CURVATURES * params["a"]}, state, params)
            params = optax.apply_updates(params, moved)
    run = open_run(tmp_path / "run.h5", (PROBLEM, optimizer, params))
    assert "0.05 in the optimizer's state of step 30" in told(run)[0]


@pytest.mark.parametrize(
    ("name", "value", "alike"), [("b1", 0.5, False), ("b2", 0.9, True), ("eps", 1e-3, True)]
)
def test_what_of_adam_is_in_its_preconditioner_may_change(name, value, alike, tmp_path):
    def change(state, step):
        if step == 10:
            state[1].hyperparams[name] = jnp.asarray(value)

    optimizer = optax.chain(optax.identity(), injected(0.01, optax.adam))
    run = recorded(tmp_path / "run.h5", optimizer, change, every=10)
    label, thresholds = told(run)
    if alike:
        np.testing.assert_allclose(thresholds, 2 * 1.9 / 0.1 / 0.01, rtol=1e-9)
    else:
        assert label.startswith(f"no threshold: {name} is {value:g} in the optimizer's state of")


def test_hyperparameters_that_a_schedule_sets_are_those_of_the_schedule(tmp_path):
    def change(state, step):
        state.hyperparams["learning_rate"] = jnp.asarray(7.0)  # without effect

    rate = optax.linear_schedule(0.05, 0.01, 40)
    run = recorded(tmp_path / "run.h5", injected(rate), change, every=10)
    expected = [2 / (0.05 - 0.04 * step / 40) for step in run.checkpoint_steps]
    np.testing.assert_allclose(told(run)[1], expected, rtol=1e-6)


def test_a_state_that_starts_anew_has_other_rates_than_its_step_says(tmp_path):
    rate = optax.linear_schedule(0.05, 0.01, 40)
    for optimizer, alike in ((optax.sgd(rate), False), (optax.adam(0.05), True)):
        fresh = optimizer.init({"a": jnp.asarray(START)})
        params, state = {"a": jnp.asarray(START)}, fresh
        with Recorder(tmp_path / "run.h5", PROBLEM, optimizer=optimizer, overwrite=True) as run:
            for step in range(30):
                state = fresh if step == 15 else state
                run.record(step, params, state)
                moved, state = optimizer.update({"a": CURVATURES * params["a"]}, state, params)
                params = optax.apply_updates(params, moved)
        label = told(open_run(tmp_path / "run.h5", (PROBLEM, optimizer, params)))[0]
        complaint = "no threshold: the optimizer has counted 0 updates at step 15"
        assert label.startswith(complaint) != alike


def test_hyperparameters_in_a_state_that_was_not_recorded_are_not_known(tmp_path):
    run = recorded(tmp_path / "run.h5", injected(0.05), every=10, stateful=False)
    label, thresholds = told(run)
    assert label.startswith("no threshold: learning_rate may change in the optimizer's state, wh")
    assert np.all(np.isnan(thresholds))
    plain = recorded(tmp_path / "run.h5", optax.sgd(0.05), every=10, stateful=False)
    np.testing.assert_allclose(told(plain)[1], 40)


@pytest.mark.parametrize("loop", [0.05, 0.1])
def test_the_stability_of_a_point_is_that_of_the_state_that_is_given(loop):
    optimizer, params = injected(0.1 if loop == 0.05 else 0.05), {"a": jnp.asarray(START)}
    state = optimizer.init(params)
    state.hyperparams["learning_rate"] = jnp.asarray(loop)
    found = stability(PROBLEM, params, optimizer, opt_state=state)
    assert found.threshold == pytest.approx(2 / loop, rel=1e-12)
    assert found.verdict == ("unstable" if grows(loop) else "stable")
    with pytest.raises(ConfigError, match=r"opt_state is missing; .* as learning_rate may change"):
        stability(PROBLEM, params, optimizer)


def test_the_threshold_of_adam_is_that_of_the_betas_in_its_state():
    optimizer, params = injected(0.1, optax.adam), {"a": jnp.asarray(START)}
    state = optimizer.init(params)
    state.hyperparams.update(b1=jnp.asarray(0.8), learning_rate=jnp.asarray(0.2))
    found = stability(PROBLEM, params, optimizer, opt_state=state)
    own = optax.adam(0.2, b1=0.8)
    expected = stability(PROBLEM, params, own, opt_state=own.init(params))
    assert found.threshold == pytest.approx(2 * 1.8 / 0.2 / 0.2, rel=1e-9)
    assert found.value == pytest.approx(expected.value, rel=1e-9)


def test_the_trajectory_of_momentum_decides_at_hyperparameters_of_the_state():
    optimizer, params = injected(0.01, momentum=0.9), {"a": jnp.zeros(1)}
    names = list(hyperparameter_places(optimizer.init, params))
    assert deciding(optimizer) == ("learning_rate", "momentum")
    values = {"learning_rate": 0.1, "momentum": 0.5}
    order = tuple(values.get(name, 0.0) for name in names)
    (found,) = instability_threshold(optimizer, np.array([3]), hyperparameters=order)
    for factor in (0.99, 1.01):
        position, velocity, sizes = 1.0, 0.0, []
        for _ in range(2000):
            velocity = 0.5 * velocity + factor * found * position
            position -= 0.1 * velocity
            sizes.append(abs(position))
        assert (max(sizes[-10:]) > max(sizes[100:110])) == (factor > 1)


def test_a_whole_number_as_learning_rate_is_no_count():
    assert critical_eigenvalue(injected(1)) == 2.0


def test_hyperparameters_are_no_part_of_what_moves_in_the_training_map(tmp_path):
    run = recorded(tmp_path / "run.h5", injected(0.05), every=10)
    ((point,),) = run.points([1], 1)
    state = training_state(run.state(point))
    assert np.array_equal(state, point.params)
    moved = training_map(run, 10, "rate_factor")(state, 0.5)
    np.testing.assert_allclose(moved, (1 - 0.5 * 0.05 * CURVATURES) * point.params, rtol=1e-12)


def test_a_rate_is_watched_whatever_it_is():
    """Half a number is another one, and a number that is moved and halved may not be."""
    for rate in (0.0, 0.02, 1.0):
        assert deciding(injected(rate)) == ("learning_rate",)


def test_a_rate_is_watched_where_a_schedule_lets_it_count_later_only():
    gate = optax.scale_by_schedule(lambda count: jnp.where(count < 5, 0.0, 1.0))
    assert deciding(optax.chain(injected(0.05), gate)) == ("learning_rate",)
    later = optax.scale_by_schedule(lambda count: jnp.where(count == 12_345, 1.0, 0.0))
    assert deciding(optax.chain(injected(0.05), later)) == ()
    assert deciding(optax.chain(injected(0.05), later), (12_345,)) == ("learning_rate",)


def test_counts_matter_though_the_schedule_is_flat_over_the_recorded_steps(tmp_path):
    """The loop goes on at the rate of 2,000 updates, 0.1, where its steps have 0.05."""
    optimizer = optax.sgd(optax.piecewise_constant_schedule(0.05, {1000: 2.0}))
    params = {"a": jnp.asarray(START)}
    setup, state = (PROBLEM, optimizer, params), optimizer.init(params)
    path = tmp_path / "run.h5"
    with Recorder(path, PROBLEM, optimizer=optimizer, every=10, overwrite=True) as run:
        for step in range(40):
            if step == 11:
                state = optax.tree_utils.tree_set(state, count=jnp.asarray(2000, jnp.int32))
            run.record(step, params, state)
            moved, state = optimizer.update({"a": CURVATURES * params["a"]}, state, params)
            params = optax.apply_updates(params, moved)
    assert abs(params["a"][0]) > abs(START[0])  # 30 is above 2/0.1 = 20, and below 2/0.05
    label, thresholds = told(open_run(path, setup))
    assert "has counted 2,009 updates at step 20" in label
    assert np.all(np.isnan(thresholds))


def test_the_stability_of_a_point_wants_a_state_of_the_optimizer_and_of_the_step():
    schedule, params = optax.sgd(optax.linear_schedule(0.1, 0.01, 100)), {"a": jnp.asarray(START)}
    state = optax.tree_utils.tree_set(schedule.init(params), count=100)
    with pytest.raises(ConfigError, match=r"has counted 100 updates at step 0.*or another step"):
        stability(PROBLEM, params, schedule, opt_state=state)
    found = stability(PROBLEM, params, schedule, opt_state=state, step=100)
    assert found.threshold == pytest.approx(2 / 0.01)
    plain = optax.sgd(0.1)
    with pytest.raises(ConfigError, match="opt_state has 0 numbers in 0 leaves"):
        stability(PROBLEM, params, optax.sgd(0.1, momentum=0.9), opt_state=plain.init(params))


def test_numbers_of_a_state_for_each_array_are_looked_at_by_all_their_names(tmp_path):
    def init(params):
        return jax.tree.map(lambda leaf: jnp.asarray(0.05), params)

    def update(slope, state, params=None):
        return jax.tree.map(lambda each, rate: -rate * each, slope, state), state

    run = recorded(tmp_path / "run.h5", optax.GradientTransformation(init, update), every=10)
    np.testing.assert_allclose(told(run)[1], 40, rtol=1e-9)
