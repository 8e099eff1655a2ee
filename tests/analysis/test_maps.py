"""Maps, and the training map against the run's own updates."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import OptimizerConfig, Problem, Recorder, ScheduleConfig, open_run
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.instabilities import frozen, plane
from dlf_dynamics.analysis.instabilities.moving import moving_leaves, moving_numbers, with_moving
from dlf_dynamics.analysis.instabilities.plots import diagram_figure
from dlf_dynamics.analysis.instabilities.training_map import rate_at, training_map, training_state
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.config import SpectrumConfig


def states(run, first, count):
    """States of the run itself, made by its own dynamics."""
    ((point,),) = run.points([first], 1)
    found = [run.state(point)]
    for _ in range(count):
        found.append(run.dynamics.step(found[-1])[0])
    return found


OPTIMIZERS = {
    "gd": OptimizerConfig(learning_rate=0.3),
    "heavy-ball": OptimizerConfig("heavy-ball", learning_rate=0.1, momentum=0.5),
    "nesterov": OptimizerConfig("nesterov", learning_rate=0.1, momentum=0.5),
    "scheduled": OptimizerConfig(
        "heavy-ball",
        learning_rate=0.1,
        momentum=0.5,
        learning_rate_schedule="linear",
        final_learning_rate=0.05,
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_at_the_runs_own_parameter_it_is_the_runs_update(optimizer, small, trained):
    run = trained(replace(small, optimizer=optimizer))
    now, following = states(run, 3, 1)
    step = int(now.step)
    rate = float(run.dynamics.learning_rate(step))
    weights = np.asarray(run.dynamics.schedule(step))
    assert weights[1] != 1  # the step is inside a pulse
    for parameter, value in (
        ("learning_rate", rate),
        ("rate_factor", 1.0),
        ("amplitude", small.schedule.amplitude),
        ("time", float(step)),
        ("class_weight", float(weights[1])),
    ):
        found = training_map(run, step, parameter, class_label=1)(training_state(now), value)
        np.testing.assert_allclose(found, training_state(following), rtol=0, atol=1e-15)


def test_the_parameter_moves_what_it_is_named_after(small, trained):
    run = trained(small)
    (now,) = states(run, 3, 0)
    step, theta = int(now.step), training_state(now)
    rate = small.optimizer.learning_rate

    def expected(weights, rate=rate):
        problem = run.problem
        assert problem.example_weights is not None
        losses = problem.criterion(problem.outputs(theta), problem.targets)
        assert losses.ndim == 1
        loss = lambda p: jnp.mean(  # noqa: E731
            jnp.asarray(weights)[problem.targets]
            * problem.criterion(problem.outputs(p), problem.targets)
        )
        return theta - rate * jax.grad(loss)(theta)

    weights = np.asarray(run.dynamics.schedule(step))
    other = replace(run.dynamics.schedule, amplitude=5.5)
    between = 0.75 * np.asarray(run.dynamics.schedule(step)) + 0.25 * np.asarray(
        run.dynamics.schedule(step + 1)
    )
    heavier = weights.copy()
    heavier[2] = 3.5
    for parameter, value, theta_after in (
        ("learning_rate", 0.7, expected(weights, 0.7)),
        ("rate_factor", 0.7, expected(weights, 0.7 * rate)),
        ("amplitude", 5.5, expected(other(step))),
        ("time", step + 0.25, expected(between)),
        ("class_weight", 3.5, expected(heavier)),
    ):
        found = training_map(run, step, parameter, class_label=2)(theta, value)
        np.testing.assert_allclose(found, theta_after, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov"])
def test_two_parameters_together(name, small, trained):
    run = trained(replace(small, optimizer=OPTIMIZERS[name]))
    now, following = states(run, 3, 1)
    step, amplitude = int(now.step), small.schedule.amplitude
    own = {"learning_rate": 0.1, "momentum": 0.5, "amplitude": amplitude, "period": 20.0}
    for first, second in itertools.permutations(own, 2):
        found = training_map(run, step, (first, second))(
            training_state(now), jnp.array([own[first], own[second]])
        )
        expected = training_state(following)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15, err_msg=f"{first} {second}")


def test_what_two_parameters_move(small, trained):
    run = trained(replace(small, optimizer=OPTIMIZERS["heavy-ball"]))
    (now,) = states(run, 3, 0)
    schedule, step, state = run.dynamics.schedule, int(now.step), training_state(now)
    theta, velocity = np.split(np.asarray(state), 2)
    since, label = step % schedule.pulse_steps, step // schedule.pulse_steps
    assert 0 < since < 8
    assert label == 1

    def pulse(amplitude, period):
        weights = np.ones(3)
        weights[label] = 1 + 2 * (amplitude - 1) * min(since, period - since) / period
        return 3 * weights / np.sum(weights)

    def moved(weights, rate, momentum):
        losses = lambda p: run.problem.criterion(run.problem.outputs(p), run.problem.targets)  # noqa: E731
        loss = lambda p: jnp.mean(jnp.asarray(weights)[run.problem.targets] * losses(p))  # noqa: E731
        after = momentum * velocity + jax.grad(loss)(jnp.asarray(theta))
        return np.concatenate([theta - rate * after, after])

    for names, values, expected in (
        (("learning_rate", "momentum"), (0.3, 0.8), moved(pulse(10, 20), 0.3, 0.8)),
        (("momentum", "rate_factor"), (0.8, 3.0), moved(pulse(10, 20), 0.3, 0.8)),
        (("period", "learning_rate"), (33.5, 0.3), moved(pulse(10, 33.5), 0.3, 0.5)),
        (("amplitude", "period"), (4.5, 8.5), moved(pulse(4.5, 8.5), 0.1, 0.5)),
        (("period", "amplitude"), (since / 2, 4.5), moved(np.ones(3), 0.1, 0.5)),
    ):
        found = training_map(run, step, names)(state, jnp.array(values))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14, err_msg=str(names))


def recorded(path, optimizer, steps=8):
    """A recorded loop on a curve with a valley of curvature 3, and the run that it leaves."""
    problem = Problem(
        lambda theta, inputs: inputs * theta,
        lambda outputs, targets: 1.5 * jnp.sum(outputs**2, axis=-1) + jnp.sum(outputs**4, axis=-1),
        jnp.ones((1, 2)),
        jnp.zeros(1),
    )
    params = jnp.array([0.3, -0.2])
    state = optimizer.init(params)
    with Recorder(path, problem, optimizer=optimizer) as run:
        for step in range(steps + 1):
            run.record(step, params, state)
            change, state = optimizer.update(jax.grad(problem.objective)(params, 0), state, params)
            params = params + change
    return open_run(path, (problem, optimizer, jnp.zeros(2)))


def test_a_recorded_run_with_momentum_has_a_factor_in_place_of_its_learning_rate(tmp_path):
    run = recorded(tmp_path / "own.h5", optax.sgd(0.2, momentum=0.5))
    with pytest.raises(
        ValueError, match=r"optimizer with momentum is not known; expected .*rate_fact"
    ):
        training_map(run, 3)
    now, following = states(run, 3, 1)
    map_, step = training_map(run, 3, "rate_factor"), int(now.step)
    np.testing.assert_allclose(
        map_(training_state(now), 1.0), training_state(following), rtol=1e-14
    )
    moved = map_(training_state(now), 2.0)[:2] - now.params
    np.testing.assert_allclose(moved, 2 * (following.params - now.params), rtol=1e-14)
    # Along the diagrams' axis, too, 1 is the run: the flip is at (2 + 2β) / (0.2 · 3) = 5.
    found = frozen.frozen_diagrams(Replay(run), solver(run), step)
    (diagram,) = found
    assert (diagram.parameter, diagram.actual) == ("rate_factor", 1.0)
    assert 1.0 in diagram.values
    assert 1.0 in diagram.exponent_values
    rates = (1 - diagram.branch_centre) / 3  # at rest the top eigenvalue is 3
    np.testing.assert_allclose(rates, 0.2 * diagram.exponent_values / 1.5, rtol=1e-6)
    figure = diagram_figure(SimpleNamespace(diagrams=found))
    assert figure.axes[1].get_xlabel() == "learning rate / the run's own (dashed: of the run)"


def test_hyperparameters_in_the_optimizers_state_are_none_of_the_maps_numbers(tmp_path):
    optimizer = optax.inject_hyperparams(optax.sgd)(0.2, momentum=0.5)
    run = recorded(tmp_path / "own.h5", optimizer)
    now, following = states(run, 3, 1)
    state = training_state(now)
    np.testing.assert_array_equal(state, [*now.params, *now.optimizer_state.inner_state[0].trace])
    moved = training_map(run, 3, "rate_factor")(state, 1.0)
    np.testing.assert_allclose(moved, training_state(following), rtol=1e-14)
    assert [name for name, _ in moving_leaves(now.optimizer_state)] == ["trace"]
    assert plane._num_moving(run) == len(state) - run.num_params == 2
    layout = run.dynamics.state_layout(now.params)
    vector = layout.flatten(now.optimizer_state)
    np.testing.assert_array_equal(vector[moving_numbers(layout)], state[2:])
    again = with_moving(now.optimizer_state, jnp.array([7.0, 8.0]))
    assert again.inner_state[0].trace.tolist() == [7.0, 8.0]
    assert again.hyperparams == now.optimizer_state.hyperparams


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_a_recorded_run_of_plain_descent_has_its_learning_rate(decay, tmp_path):
    optimizer = optax.chain(
        optax.add_decayed_weights(decay), optax.sgd(lambda step: 0.2 + 0 * step)
    )
    run = recorded(tmp_path / "own.h5", optimizer)
    assert rate_at(run, 3) == pytest.approx(0.2, rel=1e-14)
    now, following = states(run, 3, 1)
    found = training_map(run, 3)(training_state(now), 0.2)
    np.testing.assert_allclose(found, training_state(following), rtol=1e-14)
    # Twice the rate has the threshold 2/(2η) - w, and E is 2 over it.
    places = frozen._as_frozen(run, 3, "learning_rate", np.array([0.1, 0.4]), 0.2)
    np.testing.assert_allclose(
        [place.rate for place in places], [2 / (20 - decay), 2 / (5 - decay)], rtol=1e-9
    )


def solver(run):
    return Solver.from_config(run, SpectrumConfig(k=1, tol=1e-8))


def test_a_map_is_iterated_and_is_an_argument_of_compiled_functions():
    doubling = Map(lambda x, p: p * x)
    found = jax.jit(lambda m, x: m.iterate(x, 2.0, 5))(doubling, jnp.array([1.0, 3.0]))
    assert found.tolist() == [32.0, 96.0]


@pytest.mark.parametrize(
    ("changes", "parameter", "message"),
    [
        (
            {"optimizer": OptimizerConfig("adam", learning_rate=0.01)},
            "time",
            "adam has no fixed map",
        ),
        ({"batch_size": 5}, "time", "mini-batches: each update is another map"),
        ({"schedule": ScheduleConfig("static")}, "amplitude", "schedule has no amplitude"),
        ({"schedule": ScheduleConfig("static")}, ("learning_rate", "period"), "has no period"),
        ({}, "momentum", "the momentum of gd is not known or there is none; expected a run of tr"),
        ({}, ("time", "amplitude"), "time and amplitude: no two parameters that go together"),
        ({}, ("learning_rate", "rate_factor"), "no two parameters that go together"),
        ({}, ("amplitude", "amplitude"), "amplitude and amplitude: expected two different"),
        ({}, "temperature", "parameter is 'temperature'; expected one of learning_rate, rate_fact"),
    ],
)
def test_what_has_no_such_map_is_refused(changes, parameter, message, small, trained):
    run = trained(replace(small, **changes))
    with pytest.raises(ValueError, match=message):
        training_map(run, 7, parameter)
