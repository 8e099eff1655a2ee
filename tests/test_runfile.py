import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import runfile, schema
from dlf_dynamics.cli import main
from dlf_dynamics.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.errors import FileError
from dlf_dynamics.opening import open_run
from dlf_dynamics.provenance import provenance
from dlf_dynamics.runreader import header_sha256
from dlf_dynamics.training import resume, train
from dlf_dynamics.validation import problems

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]

CONFIG = RunConfig(
    data=DataConfig(points_per_class=8),
    model=ModelConfig(widths=(6,), activation="tanh"),
    schedule=ScheduleConfig(amplitude=5.0, period=8),
    optimizer=OptimizerConfig(name="adam", learning_rate=0.05),
    steps=33,
    checkpoint_every=5,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "run.h5"
    train(CONFIG, path)
    return path


@pytest.fixture
def path(original, tmp_path):
    """A copy of a complete run file, to be harmed."""
    copied = tmp_path / "run.h5"
    copied.write_bytes(original.read_bytes())
    return copied


def contents(path):
    """Every dataset of a file as bytes, and the attributes of all objects."""
    found = {}

    def visit(name, item):
        found[name] = {key: np.asarray(value).tolist() for key, value in item.attrs.items()}
        found[name].pop("REFERENCE_LIST", None)  # of the same, told from the other side
        if "DIMENSION_LIST" in found[name]:  # references are places in the file
            found[name]["DIMENSION_LIST"] = [dim[0].name for dim in item.dims]
        if isinstance(item, h5py.Dataset):
            value = item[()]
            found[name]["value"] = (
                value if isinstance(value, bytes) else np.asarray(value).tobytes()
            )
            found[name]["shape"] = item.shape

    with h5py.File(path) as file:
        file.visititems(visit)
        found["/"] = dict(file.attrs)
    return found


def test_the_file_holds_every_dataset_of_the_schema_and_no_other(original):
    with h5py.File(original) as file:
        names = []
        file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Dataset) else None)
        for entry in schema.trained(validation=True, edges=True):
            dataset = file[entry.path]
            assert isinstance(dataset, h5py.Dataset)
            assert dataset.ndim == len(entry.dims)
            if entry.kind in ("float", "int") and not entry.path.startswith("data/"):
                assert dataset.dtype == {"float": np.float64, "int": np.int64}[entry.kind]
                assert dataset.attrs["units"] == entry.units
                assert list(dataset.attrs["dims"]) == list(entry.dims)
    # Steps are one dataset under several names, of which a visit reports one.
    known = {entry.path for entry in schema.trained(validation=True, edges=True)}
    steps = {name for name in names if name.endswith("/step")}
    axes = {"params", "state", "classes", "values", "checkpoint_rows", "step_rows", "examples"}
    axes |= {"held_out", "feature_0"}
    found = set(names) - steps - axes
    assert found == {name for name in known if not name.endswith("/step")}


def test_every_axis_has_its_name_and_rows_have_their_steps(original):
    with h5py.File(original) as file:
        for entry in schema.trained(validation=True, edges=True):
            dataset = file[entry.path]
            if entry.kind == "text" or entry.path in schema.STEP_OF.values():
                continue
            for place, name in enumerate(entry.axes(dataset.ndim)):
                (scale,) = dataset.dims[place].values()
                assert scale.is_scale
                steps = entry.growing and place == 0 and not entry.path.startswith("checksums/")
                if steps:
                    assert scale == file[schema.STEP_OF[name]]
                elif not (entry.growing and place == 0):
                    assert (scale.name, len(scale)) == (f"/{name}", 0)


def test_each_value_has_its_steps_beside_it(original):
    with h5py.File(original) as file:
        for entry in schema.trained(validation=True, edges=True):
            if entry.growing and entry.path.endswith("/value"):
                step = file[entry.path.replace("/value", "/step")]
                assert step == file[schema.STEP_OF[entry.dims[0]]]
                assert len(step) == len(file[entry.path])  # type: ignore[arg-type]


def test_axes_of_many_places_take_no_room_and_promise_none(tmp_path):
    path = tmp_path / "run.h5"
    told = {"recording": '{"optimizer": "sgd", "full_batch": true}', "scalars": ("loss",)}
    header = runfile.Header("{}", "own", "0" * 64, None, None, "float64", "", provenance(), **told)
    with runfile.create(path, header, runfile.Sizes(10**7, 2 * 10**7, 0)):
        pass
    assert path.stat().st_size < 10**5
    with runfile.open_file(path) as file:  # it is refused where it promises what it has not
        assert file["parameters/value"].dims[1][0].name == "/params"


def test_the_table_of_the_schema_names_every_dataset_once():
    lines = schema.table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == [f"/{e.path}" for e in schema.SCHEMA]
    assert all(line.count("|") == 6 for line in lines)


def test_a_run_reads_what_was_recorded(original):
    run = open_run(original)
    assert (run.status, run.config, run.num_params) == ("complete", CONFIG, 39)
    assert run.steps.tolist() == list(range(34))
    assert run.checkpoint_steps.tolist() == [0, 5, 10, 15, 20, 25, 30, 33]
    assert run.parameters().shape == (8, 39)
    assert np.array_equal(run.parameters([2, 4]), run.parameters()[[2, 4]])
    assert run.scalars["class_weights"].shape == (34, 3)
    assert run.provenance["packages"]["h5py"] == h5py.__version__
    told = "complete, 34 rows, 8 checkpoints of 39 parameters"
    assert repr(run) == f"TrainedRun({str(original)!r}, {told})"


def test_a_run_that_is_opened_again_compiles_nothing_anew(original):
    first, second = open_run(original), open_run(original)
    states = [run.state(next(run.points([3], 1))[0]) for run in (first, second)]
    step = jax.jit(lambda dynamics, state: dynamics.step(state))
    step(first.dynamics, states[0])
    step(second.dynamics, states[1])
    assert first.dynamics is not second.dynamics
    assert step._cache_size() == 1


def test_checkpoints_are_streamed_in_lists(original):
    run = open_run(original)
    chunks = list(run.points([1, 2, 4, 7], chunk=3))
    assert [len(chunk) for chunk in chunks] == [3, 1]
    assert [point.step for chunk in chunks for point in chunk] == [5, 10, 20, 33]
    assert np.array_equal(chunks[1][0].params, run.parameters()[7])


def test_stacked_points_are_the_states_one_by_one(original):
    run = open_run(original)
    points = next(run.points([1, 3], chunk=2))
    batched = run.dynamics.restored_all(points)
    for k, point in enumerate(points):
        single = run.state(point)
        assert np.array_equal(batched.params[k], single.params)
        assert int(batched.step[k]) == int(single.step) == point.step
        assert int(batched.optimizer_state[0].count[k]) == point.step
        assert np.array_equal(batched.optimizer_state[0].nu[k], single.optimizer_state[0].nu)


def test_a_replayed_step_gives_the_recorded_row_and_the_next_update(original):
    run = open_run(original)
    point = next(run.points([3], chunk=1))[0]
    state, row = run.dynamics.step(run.state(point))
    recorded = [run.scalars[name][15] for name in ("loss", "static_loss", "accuracy")]
    np.testing.assert_allclose(row[:3], recorded, rtol=1e-12)
    for _ in range(4):
        state, _ = run.dynamics.step(state)
    np.testing.assert_allclose(state.params, run.parameters()[4], rtol=0, atol=1e-12)
    update = run.parameters()[4] - np.asarray(next(run.points([4], chunk=1))[0].params)
    assert not np.any(update)


@pytest.mark.parametrize(
    ("loss", "init"),
    [
        ("cross-entropy", "published"),
        ("cross-entropy", "published-updated"),
        ("squared-error", "glorot-normal"),
        ("squared-error", "glorot-uniform"),
        ("squared-error-per-output", "he-normal"),
        ("squared-error-per-output", "he-uniform"),
        ("cross-entropy", "lecun-normal"),
    ],
)
def test_the_file_alone_gives_the_problem_back(tmp_path, loss, init):
    config = replace(
        CONFIG,
        model=ModelConfig(widths=(4,), init=init),
        loss=LossConfig(loss),
        prng="legacy",
        steps=12,
        checkpoint_every=3,
    )
    train(config, tmp_path / "run.h5")
    run = open_run(tmp_path / "run.h5")
    for step, params in zip(run.checkpoint_steps, run.parameters(), strict=True):
        found = float(run.problem.objective(jnp.asarray(params), int(step)))
        assert found == pytest.approx(run.scalars["loss"][step], rel=1e-12)
    tree = run.unravel(run.parameters()[-1])
    assert [leaf.shape for layer in tree for leaf in layer] == [(2, 4), (4,), (4, 3), (3,)]
    assert np.array_equal(tree[0][0].ravel(), run.parameters()[-1][:8])


def test_large_data_are_stored_by_recipe_and_checked_by_digest(tmp_path, monkeypatch, original):
    monkeypatch.setattr(runfile, "INLINE_DATA_BYTES", 0)
    path = tmp_path / "run.h5"
    train(CONFIG, path)
    with h5py.File(path) as file:
        assert "data/inputs" not in file
    assert np.array_equal(open_run(path).dataset.inputs, open_run(original).dataset.inputs)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["sha256"] = "0" * 64
        file.attrs["header_sha256"] = header_sha256(file)
    with pytest.raises(FileError, match=r"the data are not those that the run was trained on"):
        _ = open_run(path).dataset


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileError, match=r"run file .*no\.h5 does not exist; `dlf-dynamics train"):
        open_run(tmp_path / "no.h5")
    with pytest.raises(FileError, match="does not exist"):
        open_run(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    with pytest.raises(FileError, match=r"text\.h5 is not a dlf-dynamics run file \(not HDF5\)"):
        open_run(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(FileError, match=r"is not a dlf-dynamics run file \(format None"):
        open_run(tmp_path / "other.h5")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FileError, match=r"is damaged: .*; it cannot be repaired"):
        open_run(path)


def test_a_file_of_a_newer_format_is_refused_by_its_version(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = "2.3"
    with pytest.raises(
        FileError, match=r"format version 2\.3; this program reads 1\.x: use a newer"
    ):
        open_run(path)


def test_a_newer_minor_version_and_unknown_groups_are_read(path, original):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = "1.9"
        file["colours/red"] = np.ones(3)
    run = open_run(path)
    assert np.array_equal(run.parameters(), open_run(original).parameters())


def test_a_file_of_format_1_2_is_read_checked_and_carried_on(tmp_path):
    # Written by revision 22fb809, before rows had checksums.
    path = tmp_path / "run.h5"
    shutil.copy(ROOT / "data" / "run-format-1.2.h5", path)
    before = open_run(path)
    assert main(["validate", str(path)]) == 0
    again = train(before.config, tmp_path / "again.h5")
    for name, values in again.scalars.items():
        np.testing.assert_allclose(before.scalars[name], values, rtol=1e-10, atol=1e-12)
    carried = resume(path, steps=90)
    whole = train(replace(before.config, steps=90), tmp_path / "whole.h5")
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == "1.2"
    np.testing.assert_allclose(carried.parameters()[-1], whole.parameters()[-1], rtol=1e-9)
    np.testing.assert_allclose(carried.scalars["loss"], whole.scalars["loss"], rtol=1e-10)


def test_a_file_of_format_1_4_has_no_realized_edges_and_is_carried_on_without(tmp_path):
    # Written by revision 9041d44, before realized edges.
    path = tmp_path / "run.h5"
    shutil.copy(ROOT / "data" / "run-format-1.4.h5", path)
    assert main(["validate", str(path)]) == 0
    before = open_run(path)
    assert before.config.edge_every == 0
    assert np.all(np.isnan(before.scalars["realized_edge"]))
    assert before.edges.evaluated == 0
    assert "realized" not in before.outcome
    assert main(["repair", str(path)]) == 0
    carried = resume(path, steps=90)
    whole = train(replace(before.config, steps=90, edge_every=4), tmp_path / "whole.h5")
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == "1.4"
        assert "scalars/realized_edge" not in file
    assert main(["validate", str(path)]) == 0
    np.testing.assert_allclose(carried.parameters()[-1], whole.parameters()[-1], rtol=1e-9)
    assert whole.edges.evaluated == 23


def test_a_run_without_realized_edges_has_no_column_for_them(tmp_path):
    run = train(replace(CONFIG, edge_every=0), tmp_path / "run.h5")
    assert problems(run.path) == []
    with h5py.File(run.path) as file:
        assert "realized_edge" not in cast(h5py.Group, file["scalars"])
    assert np.all(np.isnan(run.scalars["realized_edge"]))


def test_realized_edges_are_under_the_checksum_of_their_row(path):
    with h5py.File(path, "r+") as file:
        column = cast(h5py.Dataset, file["scalars/realized_edge/value"])
        column[11] = 2.0
    assert any("/scalars at step 11 is not what was written" in line for line in problems(path))


@pytest.mark.parametrize("name", schema.EDGES)
def test_one_column_of_realized_edges_without_the_other_is_damage(path, name):
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(FileError, match=f"is damaged: /{name} is missing"):
        open_run(path)


@pytest.mark.parametrize("name", [e.path for e in schema.SCHEMA if not e.optional])
def test_a_missing_dataset_is_named(path, name):
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(FileError, match=f"is damaged: /{name} is missing"):
        open_run(path)


def test_a_missing_attribute_is_damage(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["run_id"]
    with pytest.raises(FileError, match=r"is damaged: .*run_id"):
        open_run(path)


def test_a_configuration_that_cannot_be_read_is_damage(path):
    for text, message in (("{", "its configuration: "), ('{"a": 1}', "a is not a key")):
        with h5py.File(path, "r+") as file:
            del file["config"]
            file["config"] = text
        with pytest.raises(FileError, match=f"is damaged: .*{message}"):
            open_run(path)


def test_flipped_bits_are_found_by_their_checksum(path):
    with h5py.File(path) as file:
        group = file["scalars/class_weights"].id
        address = h5py.h5o.get_info(group).addr
    data = bytearray(path.read_bytes())
    data[address + 30] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FileError, match="is damaged: "):
        open_run(path)


def test_a_file_that_cannot_be_written_says_why(tmp_path, path):
    nowhere = tmp_path / "no" / "run.h5"
    with pytest.raises(FileError, match=r"cannot be written: directory .*no does not exist"):
        train(CONFIG, nowhere)
    with pytest.raises(FileError, match=r"cannot be written: directory .*run\.h5 does not exist"):
        train(CONFIG, path / "under.h5")
    with pytest.raises(FileError, match=r"cannot be written: directory .*no does not exist"):
        runfile.copy(path, nowhere)
    with pytest.raises(FileError, match=r"cannot be written: directory .*run\.h5 does not exist"):
        runfile.copy(path, path / "under.h5")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileError, match="is a directory; expected the name of a file"):
        runfile.copy(path, tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "run.h5"]


def test_a_copy_is_the_same_file(path, tmp_path):
    target = tmp_path / "copy.h5"
    runfile.copy(path, target)
    assert contents(target) == contents(path)


def test_a_copy_may_end_before_a_step(path, tmp_path, original):
    target = tmp_path / "copy.h5"
    runfile.copy(path, target, upto=20)
    run, whole = open_run(target), open_run(original)
    assert run.status == "running"
    assert run.steps.tolist() == list(range(20))
    assert run.checkpoint_steps.tolist() == [0, 5, 10, 15]
    assert np.array_equal(run.parameters(), whole.parameters()[:4])
    for name, values in run.scalars.items():
        assert values.tobytes() == whole.scalars[name][:20].tobytes()


def test_a_copy_keeps_only_complete_rows(path, tmp_path):
    # A kill between two values of a row leaves some of them longer than their steps.
    with h5py.File(path, "r+") as file:
        for name, extra in (("scalars/loss/value", 3), ("parameters/value", 1)):
            dataset = file[name]
            assert isinstance(dataset, h5py.Dataset)
            dataset.resize(len(dataset) + extra, axis=0)
        shorter = file["scalars/accuracy/value"]
        assert isinstance(shorter, h5py.Dataset)
        shorter.resize(30, axis=0)
    run = open_run(path)
    assert (len(run.steps), len(run.checkpoint_steps)) == (30, 8)
    runfile.copy(path, path)
    with h5py.File(path) as file:
        entries = schema.trained(validation=True, edges=True)
        lengths = {e.path: len(file[e.path]) for e in entries if e.growing}
    assert {lengths[e.path] for e in schema.growing("steps", entries)} == {30}
    assert {lengths[e.path] for e in schema.growing("checkpoints", entries)} == {8}


@pytest.mark.parametrize("cause", [OSError(28, "No space"), RuntimeError("errno = 28, error")])
def test_a_copy_that_fails_leaves_the_source_as_it_was(path, tmp_path, monkeypatch, cause):
    before = path.read_bytes()

    def fail(*_):
        raise cause

    monkeypatch.setattr(runfile, "_copy_rows", fail)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        runfile.copy(path, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_an_interrupted_copy_leaves_the_source_as_it_was(path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runfile.copy(path, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_without_checkpoints_cannot_be_continued(path):
    runfile.copy(path, path, upto=0)
    with pytest.raises(FileError, match="has no checkpoint to continue from; train anew"):
        open_run(path).resume_point()
    with pytest.raises(FileError, match="has no checkpoint to continue from; train anew"):
        resume(path)


@pytest.mark.parametrize("command", ["bifurcations", "check"])
def test_a_run_without_checkpoints_cannot_be_replayed(command, path, capsys):
    with h5py.File(path, "a") as file:
        file["optimizer/value"].resize(0, axis=0)
    assert main([command, str(path), "--quiet"]) == 2
    expected = f"{path} has no checkpoint to replay from; train anew\n"
    assert capsys.readouterr().err == f"dlf-dynamics: {expected}"


def test_an_expanded_network_without_its_first_checkpoint_is_told_of(tmp_path):
    path = train(replace(CONFIG, linearize=1), tmp_path / "run.h5").path
    with h5py.File(path, "a") as file:
        file["parameters/step"].resize(0, axis=0)
    with pytest.raises(FileError, match="has no checkpoint to take the initial parameters from"):
        _ = open_run(path).dynamics


def test_a_run_without_rows_is_not_drawn(path, capsys):
    runfile.copy(path, path, upto=0)
    assert main(["plot", str(path)]) == 2
    told = f"{path} has no rows; expected at least one to draw; train on or anew\n"
    assert capsys.readouterr().err.endswith(f"\ndlf-dynamics: {told}")


@pytest.mark.parametrize("rows", [0, 20])
def test_a_run_whose_rows_end_before_its_state_is_not_continued(rows, path, capsys):
    with h5py.File(path, "a") as file:
        file["scalars/loss/value"].resize(rows, axis=0)
    assert main(["train", "--resume", "-o", str(path), "--quiet"]) == 2
    told = f"its rows end at step {rows - 1}, and its state is of step 33; train anew\n"
    assert capsys.readouterr().err == f"dlf-dynamics: {path} is damaged: {told}"


FULL_COPY = """
import resource, sys
from pathlib import Path
from dlf_dynamics import runfile
from dlf_dynamics.errors import FileError

source, limit = Path(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    runfile.copy(source, source)
except FileError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX's")
def test_a_full_disk_ends_a_copy_in_one_line_and_leaves_the_source(tmp_path):
    path = tmp_path / "run.h5"
    train(replace(CONFIG, model=ModelConfig(widths=(500,)), checkpoint_every=1), path)
    before = path.read_bytes()
    for limit in (10_000, len(before) // 2, len(before) - 300_000):
        done = subprocess.run(
            [sys.executable, "-c", FULL_COPY, str(path), str(limit)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode, done.stderr) == (2, "")
        assert done.stdout == f"{path} cannot be written: File too large\n"
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_a_run_that_the_disk_cannot_hold_is_refused_before_it_begins(path, tmp_path, monkeypatch):
    taken = path.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    many = replace(CONFIG, steps=50_000, checkpoint_every=10)
    line = r"it would take 0\.\d+ GB, and 0\.002 GB are free; make fewer --steps, record with a"
    for name in ("new.h5", "run.h5"):
        with pytest.raises(FileError, match=rf"{name} cannot be written: {line}"):
            train(many, tmp_path / name, overwrite=True)
    with pytest.raises(FileError, match=line):
        resume(path, steps=1_000_000)
    assert path.stat().st_size == taken
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


FULL = """
import resource, sys
import jax
jax.config.update("jax_enable_x64", True)
from dlf_dynamics import training
from dlf_dynamics.config import DataConfig, ModelConfig, RunConfig
from dlf_dynamics.errors import FileError

training._RECORD_SECONDS = 0.0
path, limit = sys.argv[1], int(sys.argv[2])
config = RunConfig(
    data=DataConfig(points_per_class=10), model=ModelConfig(widths=(200,)), steps=100_000,
    checkpoint_every=2,
)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    training.train(config, path, progress=lambda step: print(step, flush=True))
except FileError as error:
    print(error, flush=True)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX's")
@pytest.mark.parametrize("limit", [10_000, 4_000_000])
def test_a_full_disk_ends_training_in_one_line_and_keeps_what_was_recorded(tmp_path, limit):
    path = tmp_path / "run.h5"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # A crash of HDF5 at exit would show here as a signal.
    assert (done.returncode, done.stderr) == (2, "")
    *steps, message = done.stdout.splitlines()
    assert message == f"{path} cannot be written: File too large"
    if limit == 10_000:
        assert not list(tmp_path.iterdir())
        return
    run = open_run(path)
    assert run.status == "running"
    assert len(run.steps) >= int(steps[-1]) > 0
    assert len(run.checkpoint_steps) > 10
    for step, params in list(zip(run.checkpoint_steps, run.parameters(), strict=True))[::50]:
        found = float(run.problem.objective(jnp.asarray(params), int(step)))
        assert found == pytest.approx(run.scalars["loss"][step], rel=1e-12)
    runfile.copy(path, tmp_path / "repaired.h5")
    repaired = open_run(tmp_path / "repaired.h5")
    assert repaired.status == "interrupted"
    assert repaired.parameters().tobytes() == run.parameters().tobytes()
