import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dlf_dynamics import train
from dlf_dynamics.assembly import build, initial_parameters
from dlf_dynamics.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.dynamics import SCALARS, advance
from dlf_dynamics.layout import Layout
from dlf_dynamics.models import make_model
from dlf_dynamics.precision import InPrecision, rounded
from dlf_dynamics.schedules import Static

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
HALVES = pytest.mark.parametrize("precision", KINDS)
CONFIG = RunConfig(
    data=DataConfig(name="blobs", points_per_class=10),
    model=ModelConfig(widths=(), init="glorot-normal"),
    optimizer=OptimizerConfig(learning_rate=0.1),
    steps=20,
    checkpoint_every=5,
)
DATASET = load_dataset(CONFIG.data)


def halved(values, precision):
    """What NumPy makes of numbers in a shorter type."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, np.float32).astype(KINDS[precision]).astype(np.float32)


def every_number(precision):
    """All normal and, of float16, subnormal numbers, and 0, infinities and NaN, as float32."""
    bits = np.arange(2**16, dtype=np.uint16).view(KINDS[precision])
    values = bits.astype(np.float32)
    # XLA takes the subnormal numbers of float32, which bfloat16 shares, for 0.
    tiny = (values != 0) & (np.abs(values) < np.finfo(np.float32).smallest_normal)
    return values[~tiny]


@HALVES
def test_rounding_is_that_of_numpy(precision):
    numbers = every_number(precision)
    ordered = np.unique(numbers[np.isfinite(numbers)])
    middles = ((ordered[1:].astype(float) + ordered[:-1]) / 2).astype(np.float32)
    around = [np.nextafter(middles, side) for side in (np.float32(-np.inf), np.float32(np.inf))]
    drawn = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    values = np.concatenate([numbers, middles, *around, drawn])
    values = values[(values == 0) | ~(np.abs(values) < np.finfo(np.float32).smallest_normal)]
    found = np.asarray(jax.jit(rounded, static_argnums=1)(jnp.asarray(values), precision))
    np.testing.assert_array_equal(found, halved(values, precision))
    assert np.array_equal(np.signbit(found), np.signbit(halved(values, precision)))


@HALVES
def test_a_network_computes_in_the_shorter_type_between_float32(precision):
    seen = []

    def apply(params, inputs):
        seen.append((params["w"].dtype.name, inputs.dtype.name))
        return inputs @ params["w"]

    network = InPrecision(apply, precision)
    params, inputs = {"w": jnp.full((1, 1), 1.001, jnp.float32)}, jnp.full((1, 1), 3.003, "float32")
    found = network(params, inputs)
    assert seen == [(precision, precision)]
    assert found.dtype == jnp.float32
    product = halved(1.001, precision) * halved(3.003, precision)
    assert found.tolist() == [[float(halved(product, precision))]]
    assert network == InPrecision(apply, precision)


def exact_gradient(params):
    """Of the softmax regression of CONFIG with all weights 1, by hand in float64."""
    weights, bias = params[:6].reshape(2, 3), params[6:]
    scores = DATASET.inputs @ weights + bias
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    slopes = (chances - np.eye(3)[DATASET.labels]) / len(DATASET.labels)
    return np.concatenate([(DATASET.inputs.T @ slopes).ravel(), slopes.sum(axis=0)])


def started(config):
    dynamics = build(config, DATASET, Static(3))
    tree = initial_parameters(config, DATASET)
    return dynamics, dynamics.initial_state(Layout.of(tree).flatten(tree))


@HALVES
def test_parameters_are_rounded_after_each_update(precision):
    dynamics, state = started(replace(CONFIG, dtype=precision))
    counts = np.ones(CONFIG.steps, np.int32)
    last, snapshots, rows = advance(dynamics, state, counts, capacity=1)
    params = np.concatenate([snapshots.params, last.params[None]])
    updates = np.concatenate([snapshots.previous_update, last.previous_update[None]])[1:]
    assert {params.dtype, updates.dtype, rows.dtype} == {np.dtype(np.float32)}
    assert np.array_equal(params, halved(params, precision))
    assert np.array_equal(updates, np.diff(params, axis=0))
    assert np.any(updates)
    spacing = float(ml_dtypes.finfo(KINDS[precision]).eps)
    for before, after in itertools.pairwise(params):
        step = 0.1 * exact_gradient(before.astype(float))
        # Half a spacing of the numbers, and what the gradient's own rounding makes.
        allowed = spacing * (np.abs(after) / 2 + 3 * np.abs(step).max())
        assert np.all(np.abs(after - (before - step)) <= allowed)


@HALVES
def test_updates_below_half_a_spacing_move_nothing(precision):
    optimizer = OptimizerConfig(learning_rate=1e-4)
    # Such as both types have; what is 0 would move however small the update is.
    start = jnp.arange(9, dtype=jnp.float32) / 64 + 0.5
    ends = {}
    for dtype in (precision, "float32"):
        config = replace(CONFIG, optimizer=optimizer, dtype=dtype)
        dynamics, state = started(config)
        state = state._replace(params=start)
        last, _, rows = advance(dynamics, state, np.array([5], np.int32), capacity=5)
        ends[dtype] = np.asarray(last.params), np.asarray(rows)[0, :, SCALARS.index("loss")]
    assert np.array_equal(ends[precision][0], start)
    assert len(set(ends[precision][1].tolist())) == 1
    assert np.count_nonzero(ends["float32"][0] != start) >= 6


@HALVES
def test_the_first_parameters_are_those_of_float32_rounded(precision):
    single, half = (
        jax.tree.leaves(initial_parameters(replace(CONFIG, dtype=dtype), DATASET))
        for dtype in ("float32", precision)
    )
    for one, other in zip(single, half, strict=True):
        assert np.array_equal(halved(one, precision), other)
    assert not all(np.array_equal(one, other) for one, other in zip(single, half, strict=True))


@HALVES
def test_a_run_file_holds_the_rounded_parameters_and_the_loss_of_the_rounded_network(
    precision, tmp_path
):
    config = replace(
        CONFIG,
        data=replace(CONFIG.data, validation=12),
        model=ModelConfig(widths=(5,), activation="tanh"),
        dtype=precision,
    )
    run = train(config, tmp_path / "run.h5")
    assert (run.status, run.dtype, run.config.dtype) == ("complete", "float32", precision)
    params = run.parameters()
    assert np.array_equal(params, halved(params, precision))
    spacing = float(ml_dtypes.finfo(KINDS[precision]).eps)
    model = make_model(config.model)
    held_out = run.held_out
    assert held_out is not None
    for row, vector in enumerate(params):
        step = run.checkpoint_steps[row]
        exact = float(run.problem.objective(vector.astype(float), step))
        recorded = run.scalars["loss"][step]
        assert recorded == pytest.approx(exact, rel=4 * spacing)
        assert recorded != np.float32(exact)
        outputs = model.apply(run.unravel(vector.astype(float)), held_out.inputs)
        chances = jax.nn.log_softmax(outputs)[np.arange(12), held_out.labels]
        assert run.validation["loss"][row] == pytest.approx(-float(chances.mean()), rel=8 * spacing)


def test_an_epoch_is_a_pass_in_whole_batches():
    schedule = replace(CONFIG.schedule, static_from_epoch=2)
    for batch_size, expected in ((7, 8), (30, 2), (None, 2)):
        config = replace(CONFIG, schedule=schedule, batch_size=batch_size)
        assert build(config, DATASET).schedule.static_from == expected  # type: ignore[attr-defined]
