from dataclasses import dataclass, replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import training
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.dynamics import EDGE, advance
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.opening import open_run
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.training import resume, train

CONFIG = RunConfig(
    data=DataConfig(points_per_class=8),
    model=ModelConfig(widths=(6,), activation="tanh", init="published-updated"),
    schedule=ScheduleConfig(amplitude=5.0, period=8),
    optimizer=OptimizerConfig(learning_rate=0.05),
    steps=60,
    checkpoint_every=1000,
    edge_every=3,
)


# The published runs: arXiv 2102.03793, Fig. 4; see tests/test_headline.py, too.


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "run.h5"
    return train(replace(PRESETS["published"], steps=10_000), path)


@pytest.fixture(scope="module")
def published_updated(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "run.h5"
    return train(replace(PRESETS["published-updated"], steps=10_000), path)


def bursts(run):
    """First step, and largest |F(t + 1) - F(t)|, of the instability in each of two pulses.

    A burst starts where the second difference of F first passes 0.01. The search leaves out the
    first steps of the run and the first half of the second pulse, where the first burst dies down.
    """
    loss = run.scalars["loss"]
    change, curvature = np.abs(np.diff(loss)), np.abs(np.diff(loss, 2))
    found = []
    for start, stop in ((10, 5001), (7502, 10_000)):
        first = start + int(np.argmax(curvature[start:stop] > 0.01))
        found.append((first, float(change[start:stop].max())))
    return found


def test_the_updated_run_has_the_first_two_bursts_of_a_port_of_the_authors_program(
    published_updated,
):
    (first, small), (second, large) = bursts(published_updated)
    assert first == pytest.approx(4374, abs=5)
    assert small == pytest.approx(0.0347, abs=0.0005)
    # By then round-off has grown: the exact numbers depend on the machine.
    assert second == pytest.approx(9149, abs=30)
    assert large == pytest.approx(0.178, abs=0.005)


def test_the_loss_floor_and_the_accuracy_ceiling_of_the_three_points_at_the_origin(published):
    # Three equal inputs with three labels: cost at least 3 ln 3 / 300, one of them right.
    assert published.scalars["static_loss"].min() > 3 * np.log(3) / 300
    assert published.scalars["accuracy"].max() <= 298 / 300 + 1e-12


def headline_in_numpy(params, inputs, labels, num_steps):
    """Loss of each step of the headline run: forward and backward passes written out."""
    (weight1, bias1), (weight2, bias2) = ([np.array(leaf) for leaf in layer] for layer in params)
    targets, losses = np.eye(3)[labels], []
    for t in range(num_steps):
        # The first 2,500 steps raise the weight of class 0.
        gamma = np.array([1 + 2 * 69 / 5000 * t, 1.0, 1.0])
        gamma *= 3 / gamma.sum()
        before = inputs @ weight1 + bias1
        hidden = np.maximum(before, 0)
        outputs = hidden @ weight2 + bias2
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        losses.append(-np.mean(gamma[labels] * np.log((probabilities * targets).sum(axis=1))))
        error = gamma[labels, None] * (probabilities - targets) / len(labels)
        error1 = (error @ weight2.T) * (before > 0)
        weight2 -= hidden.T @ error
        bias2 -= error.sum(axis=0)
        weight1 -= inputs.T @ error1
        bias1 -= error1.sum(axis=0)
    return np.array(losses)


def test_the_headline_run_follows_an_implementation_in_plain_numpy(published):
    params = published.unravel(published.parameters([0])[0])
    dataset = load_dataset(DataConfig())
    expected = headline_in_numpy(params, dataset.inputs, dataset.labels, 200)
    np.testing.assert_allclose(published.scalars["loss"][:200], expected, rtol=1e-12)


# Where a run is cut leaves no trace.


class FixedPace(training.Pace):
    """Stretches of 13 updates, so that a run can be stopped at a known step."""

    def __init__(self, config, state):
        super().__init__(config, state)
        self._count = 13

    def update(self, step):
        pass


def stop_after(num_stretches):
    """Asked before each stretch; true after this many."""
    calls = iter(range(num_stretches))
    return lambda: next(calls, None) is None


def contents(path):
    """Every dataset that the training fills, bit for bit."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and name != "provenance":
            value = item[()]
            found[name] = value if isinstance(value, bytes) else (item.shape, value.tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def assert_same_run(path, reference):
    """Equal, but for what is kept to continue an interrupted run."""
    one, other = contents(path), contents(reference)
    names = {name for name in other if not name.startswith("resume/")}
    assert names == {name for name in one if not name.startswith("resume/")}
    assert {name for name in names if one[name] != other[name]} == set()
    assert one["resume/step"] == other["resume/step"]


CASES = {
    name: replace(CONFIG, optimizer=OptimizerConfig(name=name, learning_rate=0.05))
    for name in ("gd", "heavy-ball", "nesterov", "rmsprop", "adam", "adamw")
}
CASES["mini-batches"] = replace(CASES["adam"], batch_size=7, prng="legacy")
CASES["independent mini-batches"] = replace(
    CASES["heavy-ball"], batch_size=7, batch_sampling="independent"
)
CASES["scheduled"] = replace(
    CONFIG,
    optimizer=OptimizerConfig(
        name="adam",
        learning_rate=0.1,
        learning_rate_schedule="cosine",
        final_learning_rate=0.01,
        warmup_steps=20,
    ),
)
CASES["float32"] = replace(CASES["adamw"], dtype="float32")
CASES["bfloat16"] = replace(CASES["nesterov"], dtype="bfloat16")
CASES["float16"] = replace(CASES["adam"], dtype="float16")
CASES["checkpoints"] = replace(CASES["heavy-ball"], checkpoint_every=7)


# Other cases have these optimizers too.
ALIKE = {"heavy-ball", "nesterov", "adamw"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in ALIKE else c for c in CASES]
)
def test_a_resumed_run_is_bit_by_bit_the_uninterrupted_one(tmp_path, monkeypatch, case):
    config = CASES[case]
    train(config, tmp_path / "whole.h5")
    monkeypatch.setattr(training, "Pace", FixedPace)
    path = tmp_path / "parts.h5"
    run = train(config, path, stop=stop_after(3))
    stopped = int(run.steps[-1])
    assert run.status == "interrupted"
    assert stopped == 39
    assert run.resume_point().step == stopped
    if "mini-batches" in case:
        run = resume(path, stop=stop_after(1))
        assert (run.status, run.resume_point().step) == ("interrupted", 52)
    assert resume(path).status == "complete"
    assert_same_run(path, tmp_path / "whole.h5")


def test_a_run_that_was_killed_continues_from_its_last_checkpoint(tmp_path):
    config = replace(CASES["adam"], checkpoint_every=7)
    path = tmp_path / "run.h5"
    train(config, path)
    before = contents(path)
    with h5py.File(path, "r+") as file:
        # As a kill leaves it: the last checkpoints, and one more row than they need, are missing.
        for name, length in (("parameters/step", 5), ("scalars/step", 30)):
            dataset = file[name]
            assert isinstance(dataset, h5py.Dataset)
            dataset.resize(length, axis=0)
        del file["status"]
        file.create_dataset("status", data=b"running", dtype=h5py.string_dtype("ascii", 16))
    run = open_run(path)
    assert run.resume_point().step == 28
    assert resume(path).status == "complete"
    assert contents(path) == before


@pytest.mark.parametrize("case", ["mini-batches", "checkpoints"])
def test_an_extended_run_is_bit_by_bit_one_of_that_length(tmp_path, case):
    train(CASES[case], tmp_path / "whole.h5")
    path = tmp_path / "parts.h5"
    short = train(replace(CASES[case], steps=31), path)
    assert (short.status, short.checkpoint_steps[-1]) == ("complete", 31)
    run = resume(path, steps=60)
    assert run.config == CASES[case]
    assert 31 not in run.checkpoint_steps
    assert_same_run(path, tmp_path / "whole.h5")


def test_a_complete_run_is_left_alone(tmp_path):
    path = tmp_path / "run.h5"
    train(CONFIG, path)
    before = path.read_bytes()
    assert resume(path).status == "complete"
    assert resume(path, steps=60).status == "complete"
    assert path.read_bytes() == before


def test_a_run_that_is_stopped_at_once_can_be_continued(tmp_path):
    train(CONFIG, tmp_path / "whole.h5")
    run = train(CONFIG, tmp_path / "run.h5", stop=lambda: True)
    assert (run.status, run.steps.tolist()) == ("interrupted", [0])
    assert resume(tmp_path / "run.h5").status == "complete"
    assert_same_run(tmp_path / "run.h5", tmp_path / "whole.h5")


def test_the_same_configuration_gives_the_same_bits(tmp_path):
    for name in ("one.h5", "two.h5"):
        train(CASES["mini-batches"], tmp_path / name)
    assert contents(tmp_path / "one.h5") == contents(tmp_path / "two.h5")


def test_progress_counts_the_updates_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_RECORD_SECONDS", 0.0)
    told = []
    train(replace(CONFIG, checkpoint_every=9), tmp_path / "run.h5", progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 60
    assert len(set(told)) > 6


def test_large_records_are_written_before_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_RECORD_SECONDS", 1e9)
    monkeypatch.setattr(training, "MAX_BYTES", 1000)
    told = []
    train(replace(CONFIG, checkpoint_every=1), tmp_path / "run.h5", progress=told.append)
    assert len(told) > 5


# Refusals.


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    path = tmp_path / "run.h5"
    first = train(CONFIG, path)
    with pytest.raises(FileError, match=r"run\.h5 exists; continue it with --resume"):
        train(CONFIG, path)
    assert open_run(path).run_id == first.run_id
    assert train(CONFIG, path, overwrite=True).run_id != first.run_id


def test_a_run_cannot_be_shortened(tmp_path):
    train(CONFIG, tmp_path / "run.h5")
    with pytest.raises(ConfigError, match="steps is 59; expected at least 60, already made"):
        resume(tmp_path / "run.h5", steps=59)


def test_a_scheduled_run_cannot_be_extended(tmp_path):
    train(CASES["scheduled"], tmp_path / "run.h5")
    with pytest.raises(ConfigError, match=r"steps is 70; expected 60, as the learning-rate"):
        resume(tmp_path / "run.h5", steps=70)


# Divergence.

EXPLOSIVE = replace(
    CONFIG,
    loss=LossConfig("squared-error"),
    model=ModelConfig(widths=(6,), activation="identity"),
    optimizer=OptimizerConfig(learning_rate=100.0),
)


@pytest.mark.parametrize("checkpoint_every", [1, 1000])
def test_a_run_that_diverges_keeps_all_that_was_finite(tmp_path, checkpoint_every):
    config = replace(EXPLOSIVE, checkpoint_every=checkpoint_every)
    run = train(config, tmp_path / "run.h5")
    assert run.status == "diverged"
    finite = np.isfinite(run.scalars["loss"])
    # The row of the first loss that is not finite is the last one.
    assert finite[:-1].all()
    assert not finite[-1]
    assert run.steps.tolist() == list(range(len(finite)))
    # All checkpoints before it are there and are finite, and none after them.
    assert run.checkpoint_steps.tolist() == list(range(0, len(finite) - 1, checkpoint_every))
    assert np.isfinite(run.parameters()).all()
    with pytest.raises(FileError, match="diverged and cannot be continued; train anew"):
        resume(tmp_path / "run.h5")


def test_a_run_that_diverges_at_its_very_end_says_so(tmp_path):
    first_bad = int(train(EXPLOSIVE, tmp_path / "long.h5").steps[-1])
    run = train(replace(EXPLOSIVE, steps=first_bad), tmp_path / "run.h5")
    assert run.status == "diverged"
    assert run.steps[-1] == first_bad
    assert run.checkpoint_steps.tolist() == [0]


# A user's own class weights.


@dataclass(frozen=True)
class Wave:
    """Smooth class weights that no configuration describes."""

    speed: float

    def __call__(self, step):
        return 1 + 0.9 * jnp.sin(self.speed * step + jnp.arange(3.0))


def test_a_schedule_of_ones_own_is_rebuilt_from_the_file(tmp_path):
    config = replace(CONFIG, checkpoint_every=7)
    run = train(config, tmp_path / "run.h5", schedule=Wave(0.3))
    assert run.own_schedule
    expected = 1 + 0.9 * np.sin(0.3 * np.arange(61)[:, None] + np.arange(3.0))
    np.testing.assert_allclose(run.scalars["class_weights"], expected, rtol=1e-13)
    for step, params in zip(run.checkpoint_steps, run.parameters(), strict=True):
        found = float(open_run(run.path).problem.objective(jnp.asarray(params), int(step)))
        assert found == pytest.approx(run.scalars["loss"][step], rel=1e-12)
    configured = train(config, tmp_path / "other.h5")
    assert abs(configured.scalars["loss"] - run.scalars["loss"]).max() > 0.01


def test_an_interrupted_run_knows_the_class_weights_of_its_last_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Pace", FixedPace)
    config = replace(CONFIG, checkpoint_every=13)
    run = train(config, tmp_path / "run.h5", schedule=Wave(0.3), stop=stop_after(2))
    assert run.checkpoint_steps[-1] == run.resume_point().step == 26
    weights = run.dynamics.schedule(jnp.int32(26))
    assert np.asarray(weights) == pytest.approx(np.asarray(Wave(0.3)(26)), rel=1e-13)


def test_a_run_with_a_schedule_of_ones_own_is_continued_with_it(tmp_path):
    train(CONFIG, tmp_path / "whole.h5", schedule=Wave(0.3))
    path = tmp_path / "run.h5"
    train(CONFIG, path, schedule=Wave(0.3), stop=stop_after(4))
    with pytest.raises(ConfigError, match="was trained with a custom schedule; pass it again"):
        resume(path)
    assert resume(path, schedule=Wave(0.3)).status == "complete"
    assert_same_run(path, tmp_path / "whole.h5")


def test_a_data_set_of_ones_own_is_kept_in_the_file(tmp_path):
    dataset = load_dataset(DataConfig(name="blobs", points_per_class=5, seed=9))
    run = train(CONFIG, tmp_path / "run.h5", dataset=dataset)
    assert np.array_equal(run.dataset.inputs, dataset.inputs)
    found = float(run.problem.objective(jnp.asarray(run.parameters()[0]), 0))
    assert found == pytest.approx(run.scalars["loss"][0], rel=1e-12)


# Compilation.


def test_runs_of_any_length_are_compiled_once(tmp_path):
    # A learning rate of its own, so that it was not compiled before.
    config = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=0.0317), checkpoint_every=20)
    before = advance._cache_size()  # type: ignore[attr-defined]
    for steps in (3, 230):
        train(replace(config, steps=steps), tmp_path / f"{steps}.h5")
        assert advance._cache_size() == before + 1  # type: ignore[attr-defined]


def test_the_number_of_traces_does_not_grow_with_the_steps(tmp_path):
    traces = []

    def counting(step):
        traces.append(isinstance(step, jax.core.Tracer))
        return jnp.ones(3)

    counts = []
    for steps in (3, 230):
        traces.clear()
        config = replace(CONFIG, steps=steps, checkpoint_every=20)
        train(config, tmp_path / f"{steps}.h5", schedule=counting)
        counts.append(sum(traces))
    assert counts[0] > 0
    assert counts[1] == 0  # the program of the first training serves the second one


@pytest.mark.parametrize("prng", ["modern", "legacy"])
def test_a_mini_batch_step_is_replayed_from_the_file_whatever_jax_is_set_to(tmp_path, prng):
    sampling = {"modern": "epochs", "legacy": "independent"}[prng]
    batches = {"batch_size": 7, "batch_sampling": sampling}
    config = replace(CONFIG, prng=prng, **batches, steps=30, checkpoint_every=10)
    run = train(config, tmp_path / "run.h5")
    point = next(run.points([1], 1))[0]
    for partitionable in (True, False):
        with jax.threefry_partitionable(partitionable):
            _, row = run.dynamics.step(run.state(point))
        assert float(row[0]) == pytest.approx(run.scalars["loss"][10], rel=1e-13)


@pytest.mark.parametrize("case", ["heavy-ball", "adam"])
def test_looking_at_realized_edges_leaves_the_run_what_it_is(tmp_path, case):
    looked, plain = (
        train(replace(CASES[case], checkpoint_every=7, edge_every=every), tmp_path / f"{every}.h5")
        for every in (1, 0)
    )
    same = np.array_equal if case == "heavy-ball" else np.allclose  # Adam but for the last bits
    assert same(looked.parameters(), plain.parameters())
    # From the parameters after the last update none is made, so there is none to look at.
    assert looked.edges.evaluated == 60
    assert np.isnan([looked.scalars[name][-1] for name in EDGE]).all()
    for run in (looked, plain):
        replay = Replay(run)
        for _ in replay.stretches(0, 61):
            pass
        assert replay.exact


def test_where_a_run_diverges_no_update_is_told_to_be_undefined_but_the_one_that_blew_up(tmp_path):
    config = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e308), edge_every=1)
    run = train(replace(config, loss=LossConfig("squared-error")), tmp_path / "run.h5")
    assert run.status == "diverged"
    assert run.edges.evaluated == len(run.steps) - 1
    assert run.edges.undefined <= 1
