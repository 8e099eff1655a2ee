import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dlf_dynamics import DataConfig, ModelConfig, OptimizerConfig, RunConfig, train
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


def test_a_file_that_training_wrote_has_no_problems(path):
    assert problems(path) == []


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
        "/config: stepz is not a key; did you mean steps?",
    ),
    "JSON": (lambda file: replace_dataset(file, "config", "{"), "/config: Expecting"),
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
    "finite": (
        lambda file: set_item(file, "parameters/value", (2, 1), np.nan),
        "/parameters/value[2] is not finite",
    ),
    "targets": (
        lambda file: replace_dataset(file, "data/targets", np.zeros(4, int)),
        "/data/targets has 4 rows; expected 15, as /data/inputs",
    ),
    "hash": (
        lambda file: set_item(file, "data/inputs", (0, 0), 0.0),
        "/data does not have the hash that was recorded when training began",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_its_one_line(fault, path):
    spoil, line = FAULTS[fault]
    with h5py.File(path, "a") as file:
        spoil(file)
    (found,) = problems(path)
    assert found.startswith(line)


def test_all_faults_are_told(path):
    with h5py.File(path, "a") as file:
        for fault in ("status", "finite", "hash"):
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
