"""The plane of two parameters of a run, against minima and curvatures found by SciPy and NumPy."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from dlf_dynamics import LossConfig, OptimizerConfig, resultfile
from dlf_dynamics.analysis.instabilities.analysis import BifurcationAnalysis
from dlf_dynamics.analysis.instabilities.bifurcations import (
    compute_bifurcations,
    load_bifurcations,
)
from dlf_dynamics.analysis.instabilities.plane import plane, require_plane
from dlf_dynamics.analysis.instabilities.plane_summary import plane_lines
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.spans import plane_of

STEP = 25
CONFIG = BifurcationConfig(
    every=20, steps="0:40", diagrams=str(STEP), plane="learning_rate:0.1:3,amplitude"
)


@pytest.fixture(scope="module")
def squared(small, trained):
    """A small smooth network whose minima are isolated."""
    return trained(replace(small, loss=LossConfig("squared-error", l2=0.03)))


@pytest.fixture(scope="module")
def made(squared):
    return compute_bifurcations(squared, CONFIG)


@pytest.fixture(scope="module")
def found(made):
    return made.plane


def frozen_gradient(run, amplitude):
    """Gradient of the loss of the step, with the weights of a pulse of another amplitude."""
    schedule = run.dynamics.schedule
    since, label = STEP % schedule.pulse_steps, STEP // schedule.pulse_steps
    weights = np.ones(3)
    weights[label] = 1 + 2 * (amplitude - 1) * min(since, 20 - since) / 20
    weights *= 3 / np.sum(weights)

    def loss(theta):
        errors = run.problem.outputs(theta) - jax.nn.one_hot(run.problem.targets, 3)
        weighted = jnp.asarray(weights)[run.problem.targets] * jnp.sum(errors**2, axis=1)
        return jnp.mean(weighted) + 0.03 / 2 * jnp.sum(theta**2)

    return jax.jit(jax.grad(loss))


def largest_curvature(gradient, theta):
    """By central differences of fourth order."""
    columns = []
    for unit in np.eye(len(theta)):
        near, far = (
            np.asarray(gradient(theta + h * unit) - gradient(theta - h * unit))
            for h in (1e-3, 2e-3)
        )
        columns.append((8 * near - far) / 12e-3)
    return np.linalg.eigvalsh((np.array(columns) + np.array(columns).T) / 2)[-1]


@pytest.mark.slow
def test_the_first_curve_is_where_the_largest_curvature_is_the_threshold(squared, found):
    assert found.reason == ""
    assert (found.step, found.names) == (STEP, ("learning_rate", "amplitude"))
    np.testing.assert_array_equal(found.ranges, [[0.1, 3], [1, 20]])
    np.testing.assert_array_equal(found.actual, [0.3, 10])
    # The run's own values do not change: its path is a point.
    np.testing.assert_array_equal(found.path, [[0.3, 10]])
    ((point,),) = squared.points([0], 1)
    start = np.asarray(point.params)
    curve = next(curve for curve in found.curves if np.all(curve.unstable == 0))
    assert curve.kind == "flip"
    assert np.max(curve.residuals) <= 1e-11
    amplitudes = curve.parameters[:, 1]
    assert np.ptp(amplitudes) > 15
    theta = start
    gradient = frozen_gradient(squared, 10.0)
    for _ in range(5000):
        theta = theta - 0.2 * np.asarray(gradient(theta))
    far_enough = np.linspace(0, len(curve.parameters) - 1, 8).astype(int)
    order = sorted(far_enough, key=lambda i: abs(amplitudes[i] - 10))
    solutions = {10.0: theta}
    for i in order:
        closest = solutions[min(solutions, key=lambda known: abs(known - amplitudes[i]))]
        gradient = frozen_gradient(squared, amplitudes[i])
        solved = scipy.optimize.root(lambda x, g=gradient: np.asarray(g(x)), closest, tol=1e-13)
        solutions[amplitudes[i]] = solved.x
        product = curve.parameters[i, 0] * largest_curvature(gradient, solved.x)
        assert product == pytest.approx(2, abs=1e-7)


@pytest.mark.slow
def test_it_is_told_kept_and_drawn(squared, made, tmp_path):
    path = tmp_path / "run.bifurcations.h5"
    resultfile.save(path, "bifurcations", made)
    again = load_bifurcations(path, squared)
    assert again.plane is not None
    assert made.plane is not None
    np.testing.assert_array_equal(again.plane.path, made.plane.path)
    assert len(again.plane.curves) == len(made.plane.curves) > 0
    for one, other in zip(again.plane.curves, made.plane.curves, strict=True):
        np.testing.assert_array_equal(one.parameters, other.parameters)
        assert one.special == other.special
    analysis = BifurcationAnalysis()
    text = analysis.as_dict(again)
    json.dumps(text, allow_nan=False)
    assert set(text) == set(analysis.schema()["properties"])
    assert len(text["plane"]["curves"]) == len(again.plane.curves)
    figures = dict(analysis.drawn(squared, again))
    (ax, *_) = figures["plane"].axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("learning rate", "amplitude of the pulse")
    assert ax.get_xlim() == (0.1, 3.0)
    lines = plane_lines(again.plane)
    assert lines[0].startswith("plane of learning_rate and amplitude, loss of step 25: ")
    assert len(lines) == 1 + len(again.plane.curves)
    assert analysis.lines(squared, again)[-len(lines) :] == lines


def test_without_an_isolated_minimum_there_are_no_curves(small, trained):
    """Cross entropy on data that can be separated: the loss goes down for ever."""
    found = plane(Replay(trained(small)), CONFIG, STEP)
    assert found.curves == []
    assert found.reason.startswith("no fixed point to continue from: ")
    assert "cross entropy has no minimum on data that can be separated" in found.reason
    assert plane_lines(found) == [
        f"plane of learning_rate and amplitude, loss of step 25: {found.reason}"
    ]


def test_with_kinks_there_are_no_curves(small, trained):
    model = replace(small.model, activation="relu")
    run = trained(replace(small, model=model, loss=LossConfig("squared-error", l2=0.03)))
    found = plane(Replay(run), CONFIG, STEP)
    assert (found.curves, found.left_out) == ([], 0)
    assert "smooth in pieces only" in found.reason


@pytest.mark.parametrize(
    ("changes", "wanted", "message"),
    [
        (
            {"optimizer": OptimizerConfig("adam")},
            "learning_rate,amplitude",
            "adam has no fixed map",
        ),
        ({}, "learning_rate,momentum", "plane: the momentum of gd is not known"),
        ({}, "learning_rate,heat", "parameter is 'heat'; expected one of"),
        ({}, "learning_rate,time", "no two parameters that go together"),
        ({"dtype": "float32"}, "learning_rate,amplitude", "expected one of dtype float64"),
    ],
)
def test_what_has_no_plane_is_refused_at_once(changes, wanted, message, small, trained):
    run = trained(replace(small, **changes))
    with pytest.raises(ConfigError, match=message):
        require_plane(run, BifurcationConfig(plane=wanted))


def test_a_network_that_is_too_large_is_refused_with_its_size(small, trained):
    run = trained(replace(small, steps=1, model=replace(small.model, widths=(400,))))
    with pytest.raises(ConfigError, match=r"the state has 2403 components; .* up to 2000"):
        require_plane(run, BifurcationConfig(plane="learning_rate,amplitude"))


def test_the_range_must_hold_the_runs_own_value(squared):
    config = replace(CONFIG, plane="learning_rate:1:3,amplitude")
    with pytest.raises(
        ConfigError, match=r"own learning_rate at step 25 is 0\.3; expected a range"
    ):
        plane(Replay(squared), config, STEP)


@pytest.mark.parametrize(
    "text", ["learning_rate", "a,b,c", "a:1,b", "a:2:1,b", "a:x:1,b", ",b", "a:nan:1,b"]
)
def test_a_plane_of_another_form_is_refused(text):
    with pytest.raises(ConfigError, match="expected none, or two parameters"):
        BifurcationConfig(plane=text)
    assert plane_of("a:1:2,b") == [("a", (1.0, 2.0)), ("b", None)]
