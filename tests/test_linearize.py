"""Runs of a network's Taylor expansion about its initial parameters."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from dlf_dynamics import DataConfig, LossConfig, ModelConfig, OptimizerConfig, RunConfig, train
from dlf_dynamics.config import ScheduleConfig
from dlf_dynamics.training import resume

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPANDED = RunConfig(
    data=DataConfig(points_per_class=8),
    model=ModelConfig(widths=(6,), activation="tanh", init="published-updated"),
    loss=LossConfig(name="squared-error"),
    schedule=ScheduleConfig(name="static"),
    optimizer=OptimizerConfig(learning_rate=0.05),
)


def test_the_linearised_network_trains_as_its_closed_form_says(tmp_path):
    run = train(replace(EXPANDED, linearize=1, steps=40, checkpoint_every=20), tmp_path / "run.h5")
    network = train(replace(EXPANDED, steps=1), tmp_path / "network.h5")
    origin = run.parameters([0])[0]
    assert np.array_equal(origin, network.parameters([0])[0])
    outputs = np.asarray(network.problem.outputs(origin)).ravel()
    jac = np.asarray(jax.jacobian(network.problem.outputs)(origin)).reshape(outputs.size, -1)
    targets = np.eye(3)[np.asarray(network.problem.targets)].ravel()
    rate = 2 * EXPANDED.optimizer.learning_rate / len(network.problem.targets)
    # f_t - y = (1 - 2η/N K)^t (f_0 - y) with the kernel K = J Jᵀ of the first step.
    decay = np.linalg.matrix_power(np.eye(len(jac)) - rate * jac @ jac.T, 40)
    expected = targets + decay @ (outputs - targets)
    found = np.asarray(run.problem.outputs(run.parameters([2])[0])).ravel()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    moved = np.asarray(network.problem.outputs(run.parameters([2])[0])).ravel()
    assert np.max(np.abs(moved - expected)) > 1e-4  # the network itself is another


@pytest.mark.parametrize("order", [1, 2])
def test_an_expanded_run_resumes_bit_by_bit_about_the_same_origin(order, tmp_path):
    config = replace(EXPANDED, linearize=order, steps=30, checkpoint_every=10)
    whole = train(config, tmp_path / "whole.h5")
    train(replace(config, steps=10), tmp_path / "run.h5")
    resumed = resume(tmp_path / "run.h5", steps=30)
    assert np.array_equal(resumed.parameters(), whole.parameters())
    assert np.array_equal(resumed.origin, whole.parameters([0])[0])
    assert whole.problem.order == order
    assert train(replace(config, linearize=0), tmp_path / "network.h5").origin is None
