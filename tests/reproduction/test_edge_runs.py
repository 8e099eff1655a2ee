"""The runs that central flows are held against are those that the page names."""

import jax
import numpy as np
import pytest

from dlf_dynamics.analysis.reproduction.edge_runs import RUNS, chebyshev_setup, parity_setup
from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.cli import main
from dlf_dynamics.config import DataConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.errors import FileError
from dlf_dynamics.layout import Layout
from dlf_dynamics.opening import open_run

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_headline_run_is_that_of_the_command(tmp_path):
    path = tmp_path / "run.h5"
    options = ["--model.activation", "tanh", "--steps", "2", "--quiet", "-o", str(path)]
    assert main(["train", *options]) == 0
    found = RUNS["headline-tanh"](Task(tmp_path), 2)
    assert found.run.config == open_run(path).config
    assert "603 parameters" in found.about
    assert found.rate == found.run.config.optimizer.learning_rate == 1


def mean_square(problem, params, wanted):
    outputs = np.asarray(problem.outputs(params))[:, 0]
    np.testing.assert_allclose(problem.targets, wanted, atol=1e-14)
    np.testing.assert_allclose(problem.objective(params, 0), np.mean((outputs - wanted) ** 2) / 2)


def test_the_digits_are_odd_against_even_ones():
    problem, _, params = parity_setup()
    dataset = load_dataset(DataConfig("digits", limit=200, validation=0))
    assert Layout.of(params).size == 64 * 100 + 100 * 101 + 101 + 100
    np.testing.assert_array_equal(problem.inputs, dataset.inputs.reshape(200, 64))
    mean_square(problem, params, 2.0 * (dataset.labels % 2) - 1)


def test_the_regression_is_that_of_chebyshevs_polynomial():
    problem, _, params = chebyshev_setup()
    points = np.asarray(problem.inputs)[:, 0]
    np.testing.assert_array_equal(points, np.linspace(-1, 1, 20))
    mean_square(problem, params, np.cos(4 * np.arccos(points)))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    return Task(folder), RUNS["chebyshev"](Task(folder), 60)


def test_a_recorded_loop_is_gradient_descent(fitted):
    (_, found), (problem, _, params) = fitted, chebyshev_setup()
    assert found.run.status == "complete"
    assert found.run.checkpoint_steps.tolist() == [0, 50]
    assert "10,401 parameters" in found.about
    gradient = jax.jit(jax.grad(problem.objective))
    for _ in range(50):
        moved = lambda p, g: p - found.rate * g  # noqa: E731
        params = jax.tree.map(moved, params, gradient(params, 0))
    ((point, *_),) = found.run.points([1], 1)
    by_hand = Layout.of(params).flatten(params)
    np.testing.assert_allclose(point.params, by_hand, rtol=0, atol=1e-13)


def test_steps_between_checkpoints_can_be_made_again(fitted):
    replay = Replay(fitted[1].run)
    assert sum(len(stretch) for stretch in replay.stretches(0, 61)) == 61
    assert replay.deviation < 1e-13


def test_a_recorded_loop_is_found_again_and_one_of_another_length_refused(fitted):
    task, found = fitted
    before = found.run.path.read_bytes()
    assert RUNS["chebyshev"](task, 60).run.path.read_bytes() == before
    with pytest.raises(FileError, match="is of another budget or version; write elsewhere"):
        RUNS["chebyshev"](task, 70)


def test_a_recorded_loop_that_was_stopped_is_made_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        RUNS["chebyshev"](Task(tmp_path, stop=lambda: True), 10)
    assert open_run(tmp_path / "chebyshev.h5").status == "interrupted"
    assert RUNS["chebyshev"](Task(tmp_path), 10).run.status == "complete"
