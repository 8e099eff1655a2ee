import itertools
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from packaging.requirements import Requirement

from dlf_dynamics.assembly import build, initial_parameters, require_precision
from dlf_dynamics.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from dlf_dynamics.datasets import Dataset, load_dataset
from dlf_dynamics.dynamics import SCALARS, Dynamics, advance
from dlf_dynamics.errors import ConfigError, DataError
from dlf_dynamics.models import make_model
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Static

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = RunConfig(
    data=DataConfig(name="blobs", points_per_class=10),
    model=ModelConfig(widths=(5,), activation="tanh"),
    schedule=ScheduleConfig(amplitude=5.0, period=8),
    optimizer=OptimizerConfig(name="heavy-ball", learning_rate=0.1, momentum=0.5),
    steps=20,
)
DATASET = load_dataset(CONFIG.data)


def start(config, dataset=DATASET):
    dynamics = build(config, dataset)
    return dynamics, dynamics.initial_state(ravel_pytree(initial_parameters(config, dataset))[0])


def rows(config, count):
    """States and rows of the first steps, one call per step."""
    dynamics, state = start(config)
    states, found = [], []
    step = jax.jit(lambda dynamics, state: dynamics.step(state))
    for _ in range(count):
        states.append(state)
        state, row = step(dynamics, state)
        found.append(dict(zip((*SCALARS, *"abc"), np.asarray(row).tolist(), strict=True)))
    return dynamics, [*states, state], found


def test_a_row_describes_the_parameters_before_their_update():
    dynamics, states, found = rows(CONFIG, 4)
    for t, row in enumerate(found):
        params = states[t].params
        loss, gradient = jax.value_and_grad(dynamics.problem.objective)(params, t)
        assert row["loss"] == pytest.approx(float(loss), rel=1e-13)
        static = dynamics.problem.static_objective(params)
        assert row["static_loss"] == pytest.approx(float(static), rel=1e-13)
        assert row["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-13)
        assert row["learning_rate"] == 0.1
        assert [row[c] for c in "abc"] == pytest.approx(dynamics.schedule(t).tolist(), rel=1e-15)
        assert int(states[t].step) == t


def test_the_cosine_is_that_of_successive_updates():
    _, states, found = rows(CONFIG, 5)
    params = [np.asarray(state.params) for state in states]
    updates = [after - before for before, after in itertools.pairwise(params)]
    assert np.isnan(found[0]["update_cosine"])
    for t in range(1, 5):
        a, b = updates[t], updates[t - 1]
        expected = a @ b / np.sqrt(a @ a * (b @ b))
        assert found[t]["update_cosine"] == pytest.approx(expected, rel=1e-9)


def test_heavy_ball_follows_its_recurrence_through_the_whole_map():
    dynamics, states, _ = rows(CONFIG, 6)
    params = np.asarray(states[0].params)
    velocity = np.zeros_like(params)
    gradient = jax.jit(jax.grad(dynamics.problem.objective))
    for t in range(6):
        velocity = 0.5 * velocity + np.asarray(gradient(params, t))
        params = params - 0.1 * velocity
        np.testing.assert_allclose(states[t + 1].params, params, rtol=0, atol=1e-13)


def test_a_scheduled_learning_rate_is_the_one_that_moves_the_parameters():
    optimizer = OptimizerConfig(learning_rate=0.4, warmup_steps=2, learning_rate_schedule="linear")
    dynamics, states, found = rows(replace(CONFIG, optimizer=optimizer), 5)
    expected = [0.0, 0.2, 0.4, 0.4 * 17 / 18, 0.4 * 16 / 18]
    assert [row["learning_rate"] for row in found] == pytest.approx(expected, rel=1e-12)
    for t, rate in enumerate(expected):
        update = np.asarray(states[t + 1].params - states[t].params)
        gradient = jax.grad(dynamics.problem.objective)(states[t].params, t)
        np.testing.assert_allclose(update, -rate * gradient, rtol=0, atol=1e-14)


def batches(config, steps):
    dynamics = build(config, DATASET)
    inputs = jax.jit(lambda dynamics, step: dynamics.problem_at(step).inputs)
    known = {tuple(x): n for n, x in enumerate(DATASET.inputs.tolist())}
    return [[known[tuple(x)] for x in inputs(dynamics, t).tolist()] for t in range(steps)]


def test_each_epoch_visits_every_example_at_most_once_in_a_new_order():
    found = batches(replace(CONFIG, batch_size=7), 12)
    assert {len(batch) for batch in found} == {7}
    epochs = [[n for batch in found[k : k + 4] for n in batch] for k in (0, 4, 8)]
    for epoch in epochs:
        assert len(set(epoch)) == 28
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert epochs[0] != sorted(epochs[0])


def test_batches_depend_on_seed_and_step_alone():
    config = replace(CONFIG, batch_size=10)
    assert batches(config, 5) == batches(config, 5)
    assert batches(config, 5) != batches(replace(config, batch_seed=1), 5)


def test_independent_batches_are_functions_of_seed_and_step_alone():
    config = replace(CONFIG, batch_size=7, batch_sampling="independent")
    found = batches(config, 12)
    assert {len(set(batch)) for batch in found} == {7}
    assert len({tuple(batch) for batch in found}) == 12
    assert batches(replace(config, steps=9), 12) == found
    assert batches(replace(config, batch_seed=1), 12) != found
    assert len(set(itertools.chain(*found[:4]))) < 28  # an epoch of four has no example twice


def drawn(num_examples, batch_size, steps):
    """The subsets that independent batches take at some steps, as sets of bits."""
    problem = Problem(
        jnp.multiply, jnp.subtract, jnp.arange(num_examples), jnp.zeros(num_examples, int)
    )
    optimizer = optax.sgd(1.0)
    batched = {"batch_size": batch_size, "batch_seed": 2, "batch_sampling": "independent"}
    dynamics = Dynamics(problem, optimizer, jnp.ones_like, Static(0), **batched)
    found = jax.lax.map(lambda step: dynamics.problem_at(step).inputs, jnp.arange(steps))
    return np.sum(2 ** np.asarray(found), axis=1)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_independent_batches_are_uniform_and_independent_of_the_step_before(batch_size):
    subsets = math.comb(5, batch_size)
    found = drawn(5, batch_size, 5000)
    pairs = 32 * found[1:] + found[:-1]
    for values, choices in ((found, subsets), (pairs[::2], subsets**2)):
        counts = np.unique(values, return_counts=True)[1]
        assert len(counts) == choices
        expected = len(values) / choices
        # Five standard deviations of a binomial count.
        assert np.max(np.abs(counts - expected)) < 5 * np.sqrt(expected * (1 - 1 / choices))


def test_an_independent_batch_of_all_examples_is_the_full_batch():
    assert drawn(5, 5, 20).tolist() == [31] * 20


def test_a_batch_of_all_examples_is_the_full_batch_up_to_its_order():
    full = rows(CONFIG, 3)[2]
    shuffled = rows(replace(CONFIG, batch_size=30), 3)[2]
    for one, other in zip(full, shuffled, strict=True):
        assert list(one.values()) == pytest.approx(list(other.values()), rel=1e-12, nan_ok=True)


def test_a_mini_batch_step_uses_its_batch_alone():
    config = replace(CONFIG, batch_size=7)
    order = batches(config, 1)[0]
    taken = Dataset(DATASET.inputs[order], DATASET.labels[order])
    dynamics, state = start(CONFIG, taken)
    found = rows(config, 1)[2][0]["loss"]
    assert found == pytest.approx(float(dynamics.problem.objective(state.params, 0)), rel=1e-13)


def test_a_stretch_is_the_same_as_its_steps_one_by_one():
    dynamics, states, found = rows(CONFIG, 6)
    counts = np.array([2, 0, 4], np.int32)
    state, snapshots, table = advance(dynamics, states[0], counts, capacity=5)
    expected = np.array([list(row.values()) for row in found])
    np.testing.assert_allclose(np.concatenate([table[0, :2], table[2, :4]]), expected, rtol=1e-12)
    assert not np.any(table[0, 2:])
    assert not np.any(table[1])
    for place, step in ((0, 0), (1, 2), (2, 2)):
        np.testing.assert_allclose(snapshots.params[place], states[step].params, atol=1e-14)
    np.testing.assert_allclose(
        snapshots.previous_update[2], states[2].params - states[1].params, atol=1e-14
    )
    np.testing.assert_allclose(state.params, states[6].params, rtol=0, atol=1e-14)
    assert int(state.step) == 6


def test_held_out_examples_are_evaluated_where_that_is_due_and_nowhere_else():
    held_out = load_dataset(replace(CONFIG.data, seed=1, validation=0))
    dynamics, state = start(CONFIG, replace(DATASET, validation=held_out))
    counts, due = np.array([2, 3, 1, 0], np.int32), np.array([True, False, True, False])
    _, snapshots, _ = advance(dynamics, state, counts, due, capacity=3)
    assert np.array_equal(np.any(np.asarray(snapshots.validation), axis=1), due)
    problem = replace(dynamics.problem, inputs=held_out.inputs, targets=held_out.labels)
    for row in (0, 2):
        expected = float(problem.static_objective(snapshots.params[row]))
        assert snapshots.validation[row, 0] == pytest.approx(expected, rel=1e-13)
    _, snapshots, _ = advance(dynamics, state, counts, capacity=3)
    assert np.array_equal(np.any(np.asarray(snapshots.validation), axis=1), counts > 0)


def test_stretches_of_any_length_give_the_same_bits_from_one_compilation():
    dynamics, first = start(replace(CONFIG, batch_size=7))
    before = advance._cache_size()  # type: ignore[attr-defined]
    whole, _, table = advance(dynamics, first, np.array([8, 0], np.int32), capacity=8)
    for cuts in (((3, 5),), ((1, 0), (6, 1)), ((7, 0), (0, 1))):
        state, parts = first, []
        for counts in cuts:
            state, _, part = advance(dynamics, state, np.array(counts, np.int32), capacity=8)
            parts += [np.asarray(part)[j, :count] for j, count in enumerate(counts)]
        for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
            assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()
        assert np.concatenate(parts).tobytes() == np.asarray(table)[0].tobytes()
    assert advance._cache_size() == before + 1  # type: ignore[attr-defined]


def test_the_network_needs_an_output_for_every_label():
    config = replace(CONFIG, model=ModelConfig(outputs=2))
    with pytest.raises(DataError, match=r"labels go up to 2 but the network has 2 outputs; set"):
        build(config, DATASET)
    config = replace(CONFIG, model=ModelConfig(widths=(), outputs=5))
    params = initial_parameters(config, DATASET)
    assert params[0][0].shape == (2, 5)


def test_a_batch_cannot_be_larger_than_the_data():
    with pytest.raises(ConfigError, match=r"batch_size is 31; expected at most .* examples, 30"):
        build(replace(CONFIG, batch_size=31), DATASET)


def test_float64_must_be_switched_on():
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ConfigError, match="dtype is 'float64' but JAX computes in float32"):
            require_precision(CONFIG)
        require_precision(replace(CONFIG, dtype="float32"))
    finally:
        jax.config.update("jax_enable_x64", True)
    require_precision(CONFIG)


def test_a_float32_run_computes_in_float32():
    dynamics, first = start(replace(CONFIG, dtype="float32"))
    state, row = dynamics.step(first)
    assert {first.params.dtype.name, row.dtype.name, state.params.dtype.name} == {"float32"}


def test_the_random_stream_is_the_one_that_is_asked_for():
    # Whatever the caller's own setting is.
    for outside in (False, True):
        with jax.threefry_partitionable(outside):
            configs = [replace(CONFIG, prng=stream) for stream in ("legacy", "modern")]
            drawn = [ravel_pytree(initial_parameters(c, DATASET))[0] for c in configs]
        for partitionable, params in zip((False, True), drawn, strict=True):
            with jax.threefry_partitionable(partitionable):
                model = make_model(CONFIG.model)
                expected = model.init(jax.random.PRNGKey(0), (2,), 3)
            assert np.array_equal(params, ravel_pytree(expected)[0])
        assert not np.array_equal(*drawn)


@pytest.mark.parametrize(("dtype", "num_rows"), [(jnp.float64, 40_000), (jnp.float32, 33_000)])
def test_compiled_sums_over_products_of_many_rows_are_right(dtype, num_rows):
    # JAX 0.10.2 gets these silently wrong (jax-ml/jax issue 39103). All numbers are whole and
    # small enough to be exact.
    table = np.random.default_rng(0).integers(-9, 10, size=(num_rows, 3))
    matrix = np.array([[1, 2, 0], [0, 1, -1], [3, 0, 1]])

    def squares(table, matrix):
        return jax.vmap(lambda row: jnp.sum((matrix @ row) ** 2))(table)

    arguments = jnp.asarray(table, dtype), jnp.asarray(matrix, dtype)
    exact = ((table @ matrix.T) ** 2).sum(axis=1)
    assert np.array_equal(squares(*arguments), exact)
    assert np.array_equal(jax.jit(squares)(*arguments), exact)
    closed_over = jax.jit(lambda table: squares(table, jnp.asarray(matrix, dtype)))
    assert np.array_equal(closed_over(arguments[0]), exact)


def test_the_miscompiling_jax_is_excluded():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    by_name = [r for r in requirements if r.name in ("jax", "jaxlib")]
    assert {r.name for r in by_name} == {"jax", "jaxlib"}
    for requirement in by_name:
        assert not requirement.specifier.contains("0.10.2")
        assert requirement.specifier.contains("0.10.1")
