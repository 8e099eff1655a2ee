"""Maps, and the training map against the run's own updates."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import OptimizerConfig, ScheduleConfig
from dlf_dynamics.analysis.bifurcation.maps import Map, training_map, training_state


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
        ("amplitude", 5.5, expected(other(step))),
        ("time", step + 0.25, expected(between)),
        ("class_weight", 3.5, expected(heavier)),
    ):
        found = training_map(run, step, parameter, class_label=2)(theta, value)
        np.testing.assert_allclose(found, theta_after, rtol=0, atol=1e-14)


def test_a_map_is_iterated_and_is_an_argument_of_compiled_functions():
    doubling = Map(lambda x, p: p * x)
    found = jax.jit(lambda m, x: m.iterate(x, 2.0, 5))(doubling, jnp.array([1.0, 3.0]))
    assert found.tolist() == [32.0, 96.0]


@pytest.mark.parametrize(
    ("changes", "parameter", "message"),
    [
        ({"optimizer": OptimizerConfig("adam", learning_rate=0.01)}, "time", "adam has no map"),
        ({"batch_size": 5}, "time", "mini-batches: each update is another map"),
        ({"schedule": ScheduleConfig("static")}, "amplitude", "schedule has no amplitude"),
        ({}, "temperature", "parameter is 'temperature'; expected one of learning_rate, amplitude"),
    ],
)
def test_what_has_no_such_map_is_refused(changes, parameter, message, small, trained):
    run = trained(replace(small, **changes))
    with pytest.raises(ValueError, match=message):
        training_map(run, 7, parameter)
