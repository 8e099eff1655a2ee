"""The realized edge against closed forms, and against NumPy's own network in float64."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics.assembly import build, initial_parameters
from dlf_dynamics.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.dynamics import SCALARS, advance
from dlf_dynamics.layout import Layout

pytestmark = pytest.mark.usefixtures("quick_compilation")

UNITS, CLASSES = 12, 3
CONFIG = RunConfig(
    data=DataConfig(points_per_class=20),
    model=ModelConfig(widths=(UNITS,), activation="tanh"),
    schedule=ScheduleConfig(amplitude=8.0, period=30),
    optimizer=OptimizerConfig(learning_rate=0.8),
    steps=90,
    edge_every=1,
)
DATASET = load_dataset(CONFIG.data)
COLUMNS = {name: place for place, name in enumerate(SCALARS)}


def made(config, optimizer=None, dataset=DATASET):
    """Parameters before each step, rows, and the examples that each step took."""
    tree = initial_parameters(config, dataset)
    layout = Layout.of(tree)
    dynamics = replace(build(config, dataset), edge_every=config.edge_every)
    if optimizer is not None:
        dynamics = replace(dynamics, optimizer=optimizer)
    state = dynamics.initial_state(layout.flatten(tree))
    counts = np.ones(config.steps, int)
    _, snapshots, rows = advance(dynamics, state, counts, counts < 0, capacity=1)
    numbered = replace(dynamics.problem, inputs=jnp.arange(dynamics.problem.num_examples))
    numbered = replace(dynamics, problem=numbered)
    taken = jax.vmap(lambda t: numbered.problem_at(t).inputs)(jnp.arange(config.steps))
    return layout, np.asarray(snapshots.params), np.asarray(rows)[:, 0], np.asarray(taken)


class Network:
    """Loss and gradient of the network in NumPy, in float64."""

    def __init__(self, layout, config, dataset=DATASET):
        self.layout, self.loss, self.dataset = layout, config.loss, dataset

    def __call__(self, vector, weights, taken):
        vector = np.asarray(vector, float)
        inputs = np.asarray(self.dataset.inputs, float)[taken]
        labels = np.asarray(self.dataset.labels)[taken]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.layout.unflatten(vector))]
        (b1, w1), (b2, w2) = [sorted(pair, key=np.ndim) for pair in (leaves[:2], leaves[2:])]
        hidden = np.tanh(inputs @ w1 + b1)
        outputs = hidden @ w2 + b2
        rows, count = np.arange(len(labels)), len(labels)
        one_hot = np.eye(CLASSES)[labels]
        if self.loss.name == "cross-entropy":
            ahead = outputs - outputs[rows, labels][:, None]
            top = ahead.max(axis=1)
            # log1p of the others' share: this is exact where the softmax saturates.
            others = np.where(one_hot > 0, 0, np.exp(ahead - top[:, None])).sum(axis=1)
            losses = np.where(top == 0, np.log1p(others), top + np.log(others + np.exp(-top)))
            odds = np.exp(ahead - top[:, None])
            shares = odds / odds.sum(axis=1, keepdims=True)
            slope = np.where(one_hot > 0, 0, shares)
            slope -= one_hot * slope.sum(axis=1, keepdims=True)
            slope, each = weights[labels][:, None] * slope, weights[labels] * losses
        elif self.loss.name == "squared-error":
            missed = outputs - one_hot
            each = weights[labels] * (missed**2).sum(axis=1)
            slope = weights[labels][:, None] * 2 * missed
        else:
            missed = outputs - one_hot
            each = ((missed**2) * weights).sum(axis=1)
            slope = 2 * missed * weights
        slope = slope / count
        back = (slope @ w2.T) * (1 - hidden**2)
        found = {"b1": back.sum(axis=0), "w1": inputs.T @ back}
        found |= {"b2": slope.sum(axis=0), "w2": hidden.T @ slope}
        gradient = self.flat(leaves, (b1, w1, b2, w2), found)
        return (
            float(np.sum(each) / count + self.loss.l2 / 2 * vector @ vector),
            gradient + self.loss.l2 * vector,
        )

    @staticmethod
    def flat(leaves, parts, found):
        """In the order of the leaves."""
        names = dict(zip(map(id, parts), ("b1", "w1", "b2", "w2"), strict=True))
        return np.concatenate([found[names[id(leaf)]].ravel() for leaf in leaves])


def expected(config, layout, params, rows, taken, dataset=DATASET):
    """ζ of all steps but the last from two losses in NumPy; NaN where it does not go downhill."""
    network, found = Network(layout, config, dataset), []
    for t in range(len(params) - 1):
        weights = np.asarray(rows[t, len(SCALARS) :], float)
        before, gradient = network(params[t], weights, taken[t])
        after, _ = network(params[t + 1], weights, taken[t])
        slope = gradient @ (np.asarray(params[t + 1], float) - np.asarray(params[t], float))
        found.append((1 + (after - before) / -slope if slope < 0 else np.nan, slope, before))
    return np.array(found)


CASES = {
    "full batch": (CONFIG, None),
    "mini-batches": (replace(CONFIG, batch_size=7), None),
    "heavy ball": (
        replace(CONFIG, optimizer=OptimizerConfig("heavy-ball", 0.2), batch_size=25),
        None,
    ),
    "adam": (replace(CONFIG, optimizer=OptimizerConfig("adam", 0.05)), None),
    "adamw on batches": (
        replace(CONFIG, optimizer=OptimizerConfig("adamw", 0.05, weight_decay=0.1), batch_size=10),
        None,
    ),
    "lion": (CONFIG, optax.lion(0.01)),
    "squared error with l2": (
        replace(
            CONFIG, loss=LossConfig("squared-error", 0.01), optimizer=OptimizerConfig("gd", 0.1)
        ),
        None,
    ),
    "squared error per output": (
        replace(
            CONFIG,
            loss=LossConfig("squared-error-per-output"),
            optimizer=OptimizerConfig("gd", 0.1),
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_numpy_finds_from_the_iterates(case):
    config, optimizer = CASES[case]
    layout, params, rows, taken = made(config, optimizer)
    found = rows[:-1, COLUMNS["realized_edge"]]
    error = rows[:-1, COLUMNS["realized_edge_error"]]
    wanted = expected(config, layout, params, rows, taken)[:, 0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_array_equal(np.isposinf(error) & np.isnan(found), np.isnan(wanted))
    known = np.isfinite(wanted)
    assert known.sum() > 50
    assert np.nanstd(wanted) > 1e-3
    np.testing.assert_allclose(found[known], wanted[known], rtol=0, atol=1e-9)
    assert np.all(error[known] < 1e-8)
