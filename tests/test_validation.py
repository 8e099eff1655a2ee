import shutil
from dataclasses import replace

import h5py
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Problem,
    Recorder,
    RunConfig,
    schema,
    train,
)
from dlf_dynamics.configfile import to_json
from dlf_dynamics.errors import FileError
from dlf_dynamics.validation import problems


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    config = RunConfig(
        data=DataConfig(name="blobs", points_per_class=5),
        model=ModelConfig(widths=(3,)),
        optimizer=OptimizerConfig(name="heavy-ball", learning_rate=0.1),
        steps=20,
        checkpoint_every=5,
    )
    return train(config, tmp_path_factory.mktemp("valid") / "run.h5").path


@pytest.fixture
def path(valid, tmp_path):
    return shutil.copy(valid, tmp_path / "run.h5")


def replace_dataset(file: h5py.File, name: str, content) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = content
    file[name].attrs.update(attributes)


def resize(file: h5py.File, name: str, rows: int) -> None:
    dataset = file[name]
    assert isinstance(dataset, h5py.Dataset)
    dataset.resize(rows, axis=0)


def set_item(file: h5py.File, name: str, place, value) -> None:
    dataset = file[name]
    assert isinstance(dataset, h5py.Dataset)
    dataset[place] = value


def as_group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def test_a_file_that_training_wrote_has_no_problems(path):
    assert problems(path) == []


LOSS = "scalars/loss/value"

FAULTS = {
    "axes": (
        lambda file: replace_dataset(file, "scalars/loss/value", np.zeros((21, 1))),
        "/scalars/loss/value has 2 axes; expected 1",
    ),
    "float": (
        lambda file: replace_dataset(file, "scalars/accuracy/value", np.zeros(21, int)),
        "/scalars/accuracy/value is of type int64; expected float",
    ),
    "integer": (
        lambda file: replace_dataset(file, "parameters/step", np.arange(0.0, 25.0, 5.0)),
        "/parameters/step is of type float64; expected int",
    ),
    "status": (
        lambda file: set_item(file, "status", (), b"finished"),
        "/status is 'finished'; expected one of running, complete, interrupted, diverged",
    ),
    "running": (
        lambda file: set_item(file, "status", (), b"running"),
        "/status is 'running': still being written, or its writer was killed (repair it)",
    ),
    "key": (
        lambda file: replace_dataset(file, "config", '{"stepz": 3}'),
        "its configuration: stepz is not a key; did you mean steps?",
    ),
    "JSON": (
        lambda file: replace_dataset(file, "config", "{"),
        "its configuration: the configuration is not JSON: Expecting",
    ),
    "order": (
        lambda file: set_item(file, "scalars/step", 3, 2),
        "/scalars/step does not increase",
    ),
    "negative": (
        lambda file: set_item(file, "parameters/step", 0, -5),
        "/parameters/step does not increase",
    ),
    "rows": (
        lambda file: resize(file, "parameters/value", 4),
        "/parameters/value has 4 rows; expected 5, as /parameters/step",
    ),
    "scalar rows": (
        lambda file: resize(file, "scalars/loss/value", 30),
        "/scalars/loss/value has 30 rows; expected 21, as /scalars/step",
    ),
    "targets": (
        lambda file: replace_dataset(file, "data/targets", np.zeros(4, int)),
        "/data/targets has 4 examples; expected 15, as /data/inputs",
    ),
    "hash": (
        lambda file: set_item(file, "data/inputs", (0, 0), 0.0),
        "/data/inputs and /data/targets are not what was written (their digest differs)",
    ),
    "data held out": (
        lambda file: set_item(file, "data/validation_inputs", (0, 0), 0.0),
        "/data/validation_inputs and /data/validation_targets are not what was written",
    ),
    "a group": (
        lambda file: (file.move("scalars/loss/value", "x"), file.create_group(LOSS)),
        "/scalars/loss/value is a group, or has no values; expected a dataset",
    ),
    "missing": (
        lambda file: file.move("previous_update/value", "x"),
        "/previous_update/value is missing",
    ),
    "precision": (
        lambda file: replace_dataset(file, "scalars/accuracy/value", np.zeros(21, np.float32)),
        "/scalars/accuracy/value is of type float32; expected float64, as /parameters/value",
    ),
    "byte order": (
        lambda file: replace_dataset(file, "scalars/accuracy/value", np.zeros(21, ">f8")),
        "/scalars/accuracy/value is of type >f8; expected float",
    ),
    "columns": (
        lambda file: replace_dataset(file, "previous_update/value", np.zeros((5, 7))),
        "/previous_update/value has 7 params; expected ",
    ),
    "a parameter": (
        lambda file: set_item(file, "parameters/value", (3, 2), 0.125),
        "/parameters/value at step 15 is not what was written (its checksum differs)",
    ),
    "a state of the optimizer": (
        lambda file: set_item(file, "optimizer/value", (3, 0), 0.125),
        "/optimizer/value at step 15 is not what was written (its checksum differs)",
    ),
    "two rows exchanged": (
        lambda file: set_item(file, "validation_loss/value", [1, 2], [2.0, 1.0]),
        "/validation_loss/value at step 5 is not what was written (its checksum differs), like 1",
    ),
    "a loss": (
        lambda file: set_item(file, "scalars/loss/value", 7, 0.5),
        "/scalars at step 7 is not what was written (its checksum differs)",
    ),
    "a checksum": (
        lambda file: set_item(file, "checksums/steps", 4, 0),
        "/scalars at step 4 is not what was written (its checksum differs)",
    ),
    "a configuration of another run": (
        lambda file: replace_dataset(file, "config", to_json(RunConfig())),
        "its configuration, provenance or attributes are not what was written",
    ),
    "provenance": (
        lambda file: replace_dataset(file, "provenance", "[1]"),
        "/provenance: found list; expected a JSON object",
    ),
    "an attribute": (
        lambda file: file.attrs.update(created="today"),
        "its configuration, provenance or attributes are not what was written",
    ),
    "data held out that are gone": (
        lambda file: [file.pop(f"data/validation_{name}") for name in ("inputs", "targets")],
        "/data/validation_inputs is missing",
    ),
    "steps beside a value": (
        lambda file: replace_dataset(file, "scalars/accuracy/step", np.arange(21)),
        "/scalars/accuracy/step is not the dataset /scalars/step; expected another name of it",
    ),
    "columns of checksums": (
        lambda file: file["checksums/checkpoints"].attrs.update(values=["parameters/value"]),
        "attribute values of /checksums/checkpoints does not name its values",
    ),
    "resume beyond the run": (
        lambda file: set_item(file, "resume/step", (), 150),
        "/resume/step is 150, and the rows end at step 20",
    ),
    "resume of a complete run": (
        lambda file: set_item(file, "resume/step", (), 15),
        "/resume/step is 15 in a run that is complete",
    ),
    "resume": (
        lambda file: set_item(file, "resume/step", (), 15),
        "/resume is not what was written (its checksum differs)",
    ),
}

OLD_FAULTS = {
    "finite": (
        lambda file: set_item(file, "parameters/value", (2, 1), np.nan),
        "/parameters/value[2] is not finite",
    ),
    "a loss that is not finite": (
        lambda file: set_item(file, "scalars/loss/value", 7, np.nan),
        "/scalars/loss/value[7] is not finite in a run that is complete",
    ),
    "rows of a complete run": (
        lambda file: cut(file, 18),
        "/scalars/step ends at 17 in a run of 20 steps that is complete",
    ),
    "diverged": (
        lambda file: set_item(file, "status", (), b"diverged"),
        "/scalars/loss/value is finite at the last step of a run that is diverged",
    ),
    "a step left out": (
        lambda file: set_item(file, "scalars/step", slice(10, None), np.arange(11, 22)),
        "/scalars/step leaves out steps",
    ),
    "a checkpoint elsewhere": (
        lambda file: set_item(file, "parameters/step", 2, 11),
        "/parameters/step has step 11; expected every 5 of 20 steps",
    ),
}
"""Of files of version 1.2, whose rows have no checksums."""


def cut(file: h5py.File, rows: int) -> None:
    for entry in schema.growing("steps", schema.entries(file)):
        resize(file, entry.path, rows)
    resize(file, "scalars/step", rows)


def make_old(path) -> None:
    """Takes from a file what is new in version 1.3."""
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.2"
        del file["checksums"], file.attrs["header_sha256"]
        del file["data"].attrs["validation_sha256"]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_one_line(fault, path):
    spoil, line = FAULTS[fault]
    with h5py.File(path, "a") as file:
        spoil(file)
    assert any(found.startswith(line) for found in problems(path))


@pytest.mark.parametrize("fault", OLD_FAULTS)
def test_what_does_not_fit_the_status_is_told_of_files_without_checksums(fault, path):
    make_old(path)
    assert problems(path) == []
    spoil, line = OLD_FAULTS[fault]
    with h5py.File(path, "a") as file:
        spoil(file)
    assert any(found.startswith(line) for found in problems(path))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of `Recorder`, with a scalar of its own and an optimizer that has a state."""
    path = tmp_path_factory.mktemp("recorded") / "run.h5"
    params, optimizer = jnp.ones(3), optax.sgd(0.1, momentum=0.5)
    problem = Problem.from_loss(lambda params, step: jnp.sum(params**2))
    with Recorder(path, problem, optimizer=optimizer, every=2) as run:
        for step in range(6):
            run.record(step, params, optimizer.init(params), loss=1.0, own=2.0)
    return path


@pytest.mark.parametrize("kind", ["valid", "recorded"])
@pytest.mark.parametrize("make", [h5py.Group.__delitem__, as_group], ids=["gone", "a group"])
def test_each_part_of_a_file_is_missed(kind, make, request, tmp_path):
    whole = request.getfixturevalue(kind)
    assert problems(whole) == []
    with h5py.File(whole) as file:
        values = [entry.path for entry in schema.entries(file) if entry.path in file]
        steps = {f"{path.rpartition('/')[0]}/step" for path in values}
        parts = {*values, *(path for path in steps if path in file)}
    assert {"previous_update/known", "scalars/own/step"} <= parts or kind == "valid"
    for part in sorted(parts):
        path = shutil.copy(whole, tmp_path / "run.h5")
        with h5py.File(path, "a") as file:
            make(file, part)
        assert problems(path), part


def test_all_faults_are_told(path):
    with h5py.File(path, "a") as file:
        for fault in ("status", "a parameter", "hash"):
            FAULTS[fault][0](file)
    assert len(problems(path)) == 3


def test_a_run_that_stopped_before_its_end_is_valid(valid, tmp_path):
    config = replace(
        RunConfig(), data=DataConfig(name="blobs"), model=ModelConfig(widths=()), steps=10
    )
    path = train(config, tmp_path / "interrupted.h5", stop=lambda: True).path
    assert problems(path) == []


def test_what_is_no_run_file_cannot_be_validated(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("notes")
    with pytest.raises(FileError, match="is not a dlf-dynamics run file"):
        problems(path)
    with pytest.raises(FileError, match="does not exist"):
        problems(tmp_path / "none.h5")
