"""Checkpoints that other programs wrote, as run files: against the arrays that are in them."""

import json
import re
import sys
import textwrap
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.serialization import msgpack_serialize, to_state_dict
from safetensors.numpy import save_file

from dlf_dynamics import Problem, import_checkpoints
from dlf_dynamics.adapters import from_linen
from dlf_dynamics.analysis.report.run_part import run_part
from dlf_dynamics.analysis.spectra.curvature import Curvature, run_threshold
from dlf_dynamics.checkpoint_files import (
    find_checkpoints,
    number_in_name,
    own_step,
    read_checkpoint,
)
from dlf_dynamics.cli import main
from dlf_dynamics.config import ImportConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.losses import cross_entropy
from dlf_dynamics.opening import open_run
from dlf_dynamics.recorder import Recorder
from dlf_dynamics.validation import problems

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = (0, 8, 20, 100)


def apply(params, inputs):
    hidden = jnp.tanh(inputs @ params["first"]["kernel"] + params["first"]["bias"])
    return hidden @ params["last"]["kernel"] + params["last"]["bias"]


def make(seed=0):
    drawn = np.random.default_rng(seed)
    return {
        "first": {"kernel": drawn.standard_normal((2, 5)), "bias": drawn.standard_normal(5)},
        "last": {"kernel": drawn.standard_normal((5, 3)), "bias": drawn.standard_normal(3)},
    }


INPUTS = jnp.asarray(np.random.default_rng(1).standard_normal((12, 2)))
PROBLEM = Problem(apply, cross_entropy, INPUTS, jnp.arange(12) % 3)


def own_problem(apply=apply):
    return Problem(apply, cross_entropy, INPUTS, jnp.arange(12) % 3)


@pytest.fixture(scope="module")
def training():
    """States of a loop with Adam at some steps."""
    optimizer = optax.adam(0.01)
    params = jax.tree.map(jnp.asarray, make())
    state, kept = optimizer.init(params), {}

    @jax.jit
    def update(params, state):
        change, state = optimizer.update(jax.grad(PROBLEM.objective)(params, 0), state, params)
        return optax.apply_updates(params, change), state

    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            kept[step] = jax.tree.map(np.asarray, (params, state))
        params, state = update(params, state)
    return SimpleNamespace(kept=kept, setup=(PROBLEM, optimizer, make()))


def flat(params, joint="."):
    return {f"{a}{joint}{b}": leaf for a, part in params.items() for b, leaf in part.items()}


def write_npz(folder, step, params, state):
    np.savez(folder / f"step_{step}.npz", **flat(params, "/"))


def write_safetensors(folder, step, params, state):
    inside = folder / f"checkpoint-{step}"
    inside.mkdir()
    save_file(
        {f"model.{n}": leaf for n, leaf in flat(params).items()}, inside / "model.safetensors"
    )
    (inside / "training_args.bin").write_bytes(b"not parameters")


def write_msgpack(folder, step, params, state):
    content = {"step": step, "params": params, "opt_state": to_state_dict(state), "ema": params}
    (folder / f"{step}.msgpack").write_bytes(msgpack_serialize(content))


def write_orbax(folder, step, params, state):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        content = {"step": step, "params": params, "opt_state": state}
        writer.save(folder / f"{step}", args=ocp.args.PyTreeSave(content))


def write_orbax_manager(folder, step, params, state):
    with ocp.CheckpointManager(folder) as manager:
        manager.save(step, args=ocp.args.StandardSave({"params": params, "opt_state": state}))


WRITERS = {
    "npz": write_npz,
    "safetensors": write_safetensors,
    "msgpack": write_msgpack,
    "orbax": write_orbax,
    "orbax-manager": write_orbax_manager,
}
WITH_STATE = ("msgpack", "orbax", "orbax-manager")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_run_holds_the_very_numbers_of_the_checkpoints(kind, training, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for step in STEPS:
        WRITERS[kind](folder, step, *training.kept[step])
    found = import_checkpoints([folder], training.setup, tmp_path / "run.h5")
    assert (found.steps, found.num_params) == (list(STEPS), 33)

    run = open_run(tmp_path / "run.h5", training.setup)
    assert run.checkpoint_steps.tolist() == list(STEPS)
    assert (run.status, problems(run.path)) == ("complete", [])
    for step, row in zip(STEPS, run.recorded(np.arange(len(STEPS))), strict=True):
        params, state = training.kept[step]
        for found_leaf, leaf in zip(
            jax.tree.leaves(run.unravel(row.params)), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_array_equal(found_leaf, leaf)
        expected = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state)])
        np.testing.assert_array_equal(row.optimizer, expected if kind in WITH_STATE else [])
    assert len(run.settings["checkpoints"]) == len(STEPS)
    (how_far,) = (line for line in run_part(run).lines if line.startswith("complete: "))
    assert how_far.endswith(" of 33 parameters")  # a checkpoint tells no loss


def folder_of(tmp_path, training, kind="npz", steps=STEPS):
    folder = tmp_path / kind
    folder.mkdir()
    for step in steps:
        WRITERS[kind](folder, step, *training.kept[step])
    return folder


def test_with_the_state_it_is_the_run_that_a_recorder_makes(training, tmp_path):
    config = ImportConfig(full_batch=True)
    folder = folder_of(tmp_path, training, "msgpack")
    import_checkpoints([folder], training.setup, tmp_path / "imported.h5", config)
    problem, optimizer, _ = training.setup
    with Recorder(tmp_path / "own.h5", problem, optimizer=optimizer) as recorder:
        for step, (params, state) in training.kept.items():
            recorder.record(step, params, state)
    runs = [open_run(tmp_path / f"{n}.h5", training.setup) for n in ("imported", "own")]
    assert [run.own_updates for run in runs] == [False, True]
    assert [run_threshold(run).preconditioned for run in runs] == [True, True]
    for points in zip(*(run.recorded(np.arange(4)) for run in runs), strict=True):
        one, other = points
        assert one.step == other.step
        np.testing.assert_array_equal(one.params, other.params)
        np.testing.assert_array_equal(one.optimizer, other.optimizer)


def test_without_its_state_adam_has_spectra_and_no_threshold(training, tmp_path):
    folder = folder_of(tmp_path, training)
    found = import_checkpoints(
        [folder], training.setup, tmp_path / "run.h5", ImportConfig(full_batch=True)
    )
    assert found.notes == [
        "no state of the optimizer was taken from the checkpoints: without its preconditioner "
        "there is no threshold"
    ]
    run = open_run(tmp_path / "run.h5", training.setup)
    threshold = run_threshold(run)
    assert "state, which was not recorded" in threshold.label()
    assert np.all(np.isnan(threshold.at(run.checkpoint_steps)))
    assert not Curvature.from_config(run, SpectrumConfig()).preconditioned
    assert not run.own_updates


@pytest.mark.parametrize(
    ("optimizer", "expected", "notes"),
    [
        (optax.sgd(0.1), 20.0, 0),
        (optax.sgd(lambda step: 0.1 / (1 + step)), 20.0 * 101, 0),
        (optax.sgd(0.1, momentum=0.9), 38.0, 1),
    ],
)
def test_gradient_descent_has_its_threshold_without_a_state(
    optimizer, expected, notes, training, tmp_path
):
    folder = folder_of(tmp_path, training, steps=(0, 100))
    setup = (own_problem(), optimizer, make())
    found = import_checkpoints([folder], setup, tmp_path / "r.h5", ImportConfig(full_batch=True))
    run = open_run(tmp_path / "r.h5", setup)
    assert run_threshold(run).at(np.array([100]))[0] == pytest.approx(expected, rel=1e-6)
    assert (len(found.notes), run.own_updates) == (notes, False)
    batches = import_checkpoints([folder], setup, tmp_path / "batches.h5")
    assert "mini-batches: there is no threshold" in batches.notes[0]


def test_numbers_in_names_may_count_epochs(training, tmp_path):
    for epoch, step in enumerate(STEPS):
        np.savez(tmp_path / f"epoch_{epoch}_lr0.1_seed7.npz", **flat(training.kept[step][0]))
    config = ImportConfig(step_pattern=r"epoch_(\d+)", steps_per_number=391)
    found = import_checkpoints([tmp_path], training.setup, tmp_path / "run.h5", config)
    assert found.steps == [0, 391, 782, 1173]


def test_steps_in_the_checkpoints_come_before_their_names(training, tmp_path):
    for epoch, step in enumerate(STEPS):
        content = {"step": step, "params": training.kept[step][0]}
        (tmp_path / f"{epoch}.msgpack").write_bytes(msgpack_serialize(content))
    assert import_checkpoints([tmp_path], training.setup, tmp_path / "a.h5").steps == list(STEPS)
    for epoch in range(len(STEPS)):
        (tmp_path / f"{epoch}.msgpack").rename(tmp_path / f"{'abcd'[-epoch]}.msgpack")
    assert import_checkpoints([tmp_path], training.setup, tmp_path / "b.h5").steps == list(STEPS)


def test_the_optimizer_counts_where_names_count_epochs(training, tmp_path):
    for epoch, step in enumerate(STEPS):
        params, state = training.kept[step]
        content = {"params": params, "opt_state": to_state_dict(state)}
        (tmp_path / f"{epoch}.msgpack").write_bytes(msgpack_serialize(content))
    assert import_checkpoints([tmp_path], training.setup, tmp_path / "a.h5").steps == list(STEPS)
    config = ImportConfig(steps_per_number=10)
    with pytest.raises(
        ConfigError, match="its step is 10, and its optimizer has counted 8 updates"
    ):
        import_checkpoints([tmp_path], training.setup, tmp_path / "b.h5", config)


def test_the_wider_of_two_trees_is_taken_when_it_is_named(training, tmp_path):
    params, other = training.kept[0][0], training.kept[8][0]
    (tmp_path / "0.msgpack").write_bytes(msgpack_serialize({"ema": other, "params": params}))
    import_checkpoints([tmp_path], training.setup, tmp_path / "a.h5")
    config = ImportConfig(prefix="ema")
    import_checkpoints([tmp_path], training.setup, tmp_path / "b.h5", config)
    for name, expected in (("a", params), ("b", other)):
        (row,) = open_run(tmp_path / f"{name}.h5", training.setup).recorded(np.array([0]))
        np.testing.assert_array_equal(row.params[:5], expected["first"]["bias"])


def test_narrower_numbers_are_taken_as_they_are(tmp_path):
    single = jax.tree.map(np.float32, make())
    np.savez(tmp_path / "1.npz", **flat(single))
    import_checkpoints([tmp_path], (PROBLEM, None, make()), tmp_path / "run.h5")
    (row,) = open_run(tmp_path / "run.h5", (PROBLEM, None, make())).recorded(np.array([0]))
    np.testing.assert_array_equal(row.params[:5], single["first"]["bias"].astype(float))


def test_tied_and_ignored_leaves_are_no_other_parameters(tmp_path):
    leaves = flat(make())
    leaves["head.bias"], leaves["mask"] = leaves["last.bias"], np.ones((2, 2))
    np.savez(tmp_path / "1.npz", **leaves, epoch=3)
    setup = (PROBLEM, None, make())
    with pytest.raises(ConfigError, match=r"it has mask, of shape \(2, 2\), which the problem's"):
        import_checkpoints([tmp_path], setup, tmp_path / "run.h5")
    found = import_checkpoints([tmp_path], setup, tmp_path / "run.h5", ImportConfig(ignore="mask"))
    assert found.steps == [1]


@pytest.fixture(scope="module")
def normed():
    """A model with batch norm, in evaluation."""
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))

    variables = Net().init(jax.random.key(0), INPUTS)
    apply, params = from_linen(Net(), variables)
    return SimpleNamespace(variables=variables, setup=(own_problem(apply), None, params))


def test_statistics_of_batch_norm_must_be_those_of_the_model(normed, tmp_path):
    for step in (1, 2):
        content = to_state_dict(normed.variables)
        (tmp_path / f"{step}.msgpack").write_bytes(msgpack_serialize(content))
    assert import_checkpoints([tmp_path], normed.setup, tmp_path / "a.h5").steps == [1, 2]
    moved = jax.tree.map(lambda leaf: leaf + 0.5, content["batch_stats"])
    content = {"params": content["params"], "batch_stats": moved}
    (tmp_path / "2.msgpack").write_bytes(msgpack_serialize(content))
    with pytest.raises(ConfigError, match="mean is not what the problem's model holds frozen"):
        import_checkpoints([tmp_path], normed.setup, tmp_path / "b.h5")
    for step in (1, 2):
        content = {"params": normed.variables["params"]}
        (tmp_path / f"{step}.msgpack").write_bytes(msgpack_serialize(to_state_dict(content)))
    with pytest.raises(ConfigError, match="the model holds statistics that training changes"):
        import_checkpoints([tmp_path], normed.setup, tmp_path / "c.h5")
    config = ImportConfig(fixed_statistics=True)
    assert import_checkpoints([tmp_path], normed.setup, tmp_path / "c.h5", config).steps == [1, 2]


LEAVES = flat(make())
WITHOUT = {name: leaf for name, leaf in LEAVES.items() if name != "last.bias"}


@pytest.mark.parametrize(
    ("leaves", "complaint"),
    [
        (WITHOUT, "lacks last.bias of the problem's parameters; it has first.kernel, first.bias"),
        (
            {f"net.{name}": leaf for name, leaf in WITHOUT.items()},
            "lacks last.bias of the problem's parameters under net; it has net.first.kernel",
        ),
        (LEAVES | {"third.bias": np.ones(2)}, r"it has third.bias, of shape \(2,\)"),
        (
            LEAVES | {"last.kernel": np.ones((3, 5))},
            r"last.kernel is of shape \(3, 5\); expected \(5, 3\)",
        ),
        (
            LEAVES | {"last.bias": np.ones(3, np.longdouble)},
            "last.bias is of float128 and the problem's of float64, which cannot hold",
        ),
        (
            LEAVES | {"last/bias": np.ones(3)},
            "two of its leaves have the name last.bias; expected names that differ",
        ),
        (
            {f"{net}.{name}": leaf for net in ("a", "b") for name, leaf in LEAVES.items()},
            "it has such parameters under a and b; expected a prefix that says which they are",
        ),
        (
            {f"net.{name}": leaf for name, leaf in LEAVES.items()},
            "it has such parameters under net; expected a prefix that says",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(leaves, complaint, tmp_path):
    np.savez(tmp_path / "1.npz", **leaves)
    with pytest.raises(ConfigError, match=rf"1.npz does not fit the problem: .*{complaint}"):
        import_checkpoints([tmp_path], (PROBLEM, None, make()), tmp_path / "run.h5")
    assert not (tmp_path / "run.h5").exists()


def test_parameters_whose_names_have_the_same_words_are_refused(tmp_path):
    np.savez(tmp_path / "1.npz", **LEAVES)
    params = {"a-b": np.ones(2), "a": {"b": np.ones(2)}}
    with pytest.raises(ConfigError, match=r"two of its leaves have the name a\.b"):
        import_checkpoints([tmp_path], (PROBLEM, None, params), tmp_path / "run.h5")


def test_names_of_nnx_end_with_value_or_without(tmp_path):
    wrapped = {a: {b: {"value": leaf} for b, leaf in part.items()} for a, part in make().items()}
    (tmp_path / "1.msgpack").write_bytes(msgpack_serialize({"params": wrapped}))
    for params, apply_wrapped in (
        (make(), apply),
        (wrapped, lambda p, x: apply(jax.tree.map(lambda v: v["value"], p, is_leaf=is_value), x)),
    ):
        setup = (own_problem(apply_wrapped), None, params)
        import_checkpoints([tmp_path], setup, tmp_path / "run.h5", overwrite=True)
        (row,) = open_run(tmp_path / "run.h5", setup).recorded(np.array([0]))
        np.testing.assert_array_equal(row.params[:5], make()["first"]["bias"])


def is_value(node):
    return isinstance(node, dict) and "value" in node


def test_steps_that_are_not_told_or_told_twice_are_refused(tmp_path):
    setup = (PROBLEM, None, make())
    np.savez(tmp_path / "last.npz", **LEAVES)
    config = ImportConfig(step_pattern=r"step_(\d+)")
    with pytest.raises(ConfigError, match=r"the step of .* is not known; expected a number"):
        import_checkpoints([tmp_path], setup, tmp_path / "run.h5", config)
    for name in ("a_1.npz", "b_1.npz"):
        np.savez(tmp_path / name, **LEAVES)
    (tmp_path / "last.npz").unlink()
    with pytest.raises(ConfigError, match=r"b_1.npz is of step 1, after .*a_1.npz of step 1"):
        import_checkpoints([tmp_path], setup, tmp_path / "run.h5")


def test_a_state_in_some_checkpoints_only_is_refused(training, tmp_path):
    for step in (0, 8):
        content = {"params": training.kept[step][0]}
        if step == 0:
            content["opt_state"] = to_state_dict(training.kept[step][1])
        (tmp_path / f"{step}.msgpack").write_bytes(msgpack_serialize(content))
    with pytest.raises(ConfigError, match=r"8.msgpack holds no state of the optimizer"):
        import_checkpoints([tmp_path], training.setup, tmp_path / "run.h5")


def test_files_that_are_no_checkpoints_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileError, match=r"checkpoint .*missing\.npz does not exist"):
        find_checkpoints([tmp_path / "missing.npz"])
    with pytest.raises(FileError, match=r"has no checkpoint in it; expected \.npz"):
        find_checkpoints([tmp_path])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileError, match=r"notes\.txt is of an unknown kind; expected"):
        read_checkpoint(tmp_path / "notes.txt")
    for suffix in ("npz", "safetensors", "msgpack"):
        (tmp_path / f"1.{suffix}").write_bytes(b"\x93 nothing of the kind")
        with pytest.raises(FileError, match=f"1.{suffix} cannot be read: "):
            read_checkpoint(tmp_path / f"1.{suffix}")
    np.savez(tmp_path / "2.npz", objects=np.array([{}], object))
    with pytest.raises(FileError, match=r"2.npz cannot be read: .*allow_pickle"):
        read_checkpoint(tmp_path / "2.npz")
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "3.pt").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"3\.pt needs torch, which is not installed"):
        read_checkpoint(tmp_path / "3.pt")


def test_patterns_must_be_ones(tmp_path):
    path = tmp_path / "step_7.npz"
    for pattern, complaint in (
        ("step_(", "step_pattern is no regular expression"),
        ("step", "step_pattern has 0 groups; expected one"),
        ("(step)_", "step_pattern finds 'step' in .*; expected a whole number"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            number_in_name(path, pattern)
    with pytest.raises(ConfigError, match="ignore is no regular expression"):
        ImportConfig(ignore="(")
    with pytest.raises(ConfigError, match="steps_per_number is 0; expected at least 1"):
        ImportConfig(steps_per_number=0)
    assert own_step({"step": np.float32(12.0)}) == 12
    assert own_step({"step": 1.5}) is None


MODULE = """
    import jax.numpy as jnp, numpy as np, optax
    from dlf_dynamics import Problem

    def setup():
        inputs = jnp.asarray([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0], [1.0, 4.0]])
        problem = Problem(
            lambda p, x: x @ p["w"], lambda f, y: (f - y) ** 2, inputs, jnp.ones(4)
        )
        return problem, optax.sgd(0.1, momentum=0.5), {"w": jnp.zeros(2)}
"""


def test_the_command_makes_a_run_that_spectrum_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "saved").mkdir()
    for epoch in (1, 2, 3):
        np.savez(tmp_path / f"saved/epoch{epoch}.npz", w=np.array([0.1, 0.2]) * epoch)
    command = ["import", "saved", "--problem", "own.py:setup", "--steps-per-number", "10"]
    opened = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **how: opened.append(path) or load(path, **how))
    assert main([*command, "--full-batch"]) == 0
    assert len(opened) == 3  # each once
    told = capsys.readouterr().err
    assert "wrote run.h5: 3 checkpoints of 2 parameters" in told
    assert "saved/epoch1.npz is of step 10, saved/epoch3.npz of step 30" in told
    assert "no state of the optimizer was taken from the checkpoints" in told
    assert "next: dlf-dynamics spectrum run.h5 --problem own.py:setup" in told
    options = ["--problem", "own.py:setup", "--json", "--no-figures", "--quiet"]
    assert main(["spectrum", "run.h5", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"]["first"] == pytest.approx(30)  # (2 + 2 · 0.5) / 0.1
    assert found["centres"] is False
    assert main(command) == 2
    assert re.search(r"run\.h5 exists; replace it with --overwrite", capsys.readouterr().err)
    assert main(["import", "--problem", "own.py:setup"]) == 2
    assert "no checkpoints are given" in capsys.readouterr().err


def test_every_number_is_of_a_checkpoint_itself(training, tmp_path):
    """Also where updates could be made again, which may have been others."""
    folder = folder_of(tmp_path, training, steps=(0, 8))
    setup = (own_problem(), optax.sgd(0.5), make())
    import_checkpoints([folder], setup, tmp_path / "run.h5", ImportConfig(full_batch=True))
    run = open_run(tmp_path / "run.h5", setup)
    assert run.checkpoint_steps.tolist() == [0, 8]
    for row, step in zip(run.parameters(), (0, 8), strict=True):
        np.testing.assert_array_equal(row[:5], training.kept[step][0]["first"]["bias"])
    assert not run.own_updates


def test_nothing_is_lost_when_an_import_fails(training, tmp_path):
    good = folder_of(tmp_path, training)
    out = tmp_path / "run.h5"
    import_checkpoints([good], training.setup, out)
    before = out.read_bytes()
    np.savez(good / "step_200.npz", **WITHOUT)
    for path, options in ((out, {"overwrite": True}), (tmp_path / "new.h5", {})):
        with pytest.raises(ConfigError, match=r"200\.npz does not fit the problem: it lacks last"):
            import_checkpoints([good], training.setup, path, **options)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["npz", "run.h5"]
    with pytest.raises(ConfigError, match=r"output is .*step_0\.npz, one of the checkpoints"):
        import_checkpoints([good], training.setup, good / "step_0.npz", overwrite=True)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("step_1_of_2", LEAVES, None),
        ("epoch_1_best_1000", LEAVES, "has several numbers in its name; expected a step_pattern"),
        ("3", LEAVES | {"epoch": 3}, "the number of .* is its epoch; expected a number of updates"),
        ("1" + "0" * 20, LEAVES, "the step of .* is 100000000000000000000; expected 0 to"),
        ("1", LEAVES | {"last.bias": np.full(3, np.nan)}, "parameters are not all finite"),
        (
            "1",
            LEAVES | {"last.bias": np.ones(3, np.int8)},
            "last.bias is of int8 and the problem's",
        ),
        ("1", LEAVES | {"other.bias": np.zeros(3)}, r"it has other.bias, of shape \(3,\)"),
        ("1", LEAVES | {"mid.loss": np.float64(1)}, r"it has mid.loss, of shape \(\)"),
    ],
)
def test_what_looks_right_and_is_not_is_refused(name, content, complaint, tmp_path):
    np.savez(tmp_path / f"{name}.npz", **content)
    setup = (PROBLEM, None, make())
    if complaint is None:
        assert import_checkpoints([tmp_path], setup, tmp_path / "run.h5").steps == [1]
        return
    with pytest.raises(ConfigError, match=complaint):
        import_checkpoints([tmp_path], setup, tmp_path / "run.h5")


def test_hyperparameters_in_a_state_are_not_counts(tmp_path):
    np.savez(tmp_path / "step_100.npz", **LEAVES)
    setup = (own_problem(), optax.inject_hyperparams(optax.sgd)(0.5), make())
    found = import_checkpoints(
        [tmp_path], setup, tmp_path / "run.h5", ImportConfig(full_batch=True)
    )
    assert "no state of the optimizer was taken" in found.notes[0]


@pytest.mark.parametrize(
    ("rate", "changed", "refused"),
    [(0.5, None, False), (0.5, 0.05, True), (optax.linear_schedule(0.5, 0.0, 20), None, False)],
)
def test_hyperparameters_in_a_state_must_be_those_of_the_problem(rate, changed, refused, tmp_path):
    rule = optax.inject_hyperparams(optax.sgd)(rate)
    state = rule.init(make())
    for _ in range(5):
        _, state = rule.update(make(), state)
    if changed is not None:  # as a program does that lowers the rate by hand
        state.hyperparams["learning_rate"] = np.float32(changed)
    content = {"step": 5, "params": make(), "opt_state": to_state_dict(state)}
    content = jax.tree.map(np.asarray, content)
    (tmp_path / "5.msgpack").write_bytes(msgpack_serialize(content))
    out, setup = tmp_path / "run.h5", (own_problem(), rule, make())
    if not refused:
        assert import_checkpoints([tmp_path], setup, out).steps == [5]
        return
    words = r"hyperparams.*learning_rate 0\.05\) turns .* -5e-08, and the problem's into -5e-07 for"
    with pytest.raises(ConfigError, match=words):
        import_checkpoints([tmp_path], setup, out)


def test_a_problem_without_parameters_is_told(tmp_path):
    np.savez(tmp_path / "1.npz", **LEAVES)
    with pytest.raises(ConfigError, match="the problem has no parameters; expected some"):
        import_checkpoints([tmp_path], (PROBLEM, None, {}), tmp_path / "run.h5")
