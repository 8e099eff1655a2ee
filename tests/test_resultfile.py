from dataclasses import dataclass

import h5py
import numpy as np
import pytest

from dlf_dynamics import resultfile
from dlf_dynamics.errors import FileError
from dlf_dynamics.resultfile import Parts, Result, concatenate, pack, unpack


@pytest.fixture
def result() -> Result:
    arrays = {
        "step": np.array([0, 25, 50]),
        "deep/in/groups": np.array([[1.5, np.nan], [np.inf, -0.0]]),
        "empty": np.zeros((0, 3)),
        "single": np.float32([0.1]),
        "flags": np.array([True, False]),
        "names": np.array(["up", "down"], dtype="S8"),
    }
    config = {"k": 3, "label": "Γ ≥ 1, η λ", "tol": None, "steps": ":", "nested": [1, 2.5]}
    return Result("spectrum", "abc", config, '{"device": "µ"}', arrays)


@pytest.fixture
def path(tmp_path, result):
    path = tmp_path / "run.spectrum.h5"
    resultfile.write(path, result)
    return path


def test_what_is_written_is_read_bit_by_bit_and_in_its_type(path, result):
    found = resultfile.read(path, "spectrum")
    assert (found.analysis, found.run_id) == ("spectrum", "abc")
    assert found.config == result.config
    assert found.provenance == result.provenance
    assert set(found.arrays) == set(result.arrays)
    for name, array in result.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()


def test_an_older_file_is_replaced_and_nothing_else_is_left(path, result):
    resultfile.write(path, Result("spectrum", "new", {}, "{}", {}))
    assert resultfile.read(path, "spectrum").run_id == "new"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_missing_directory_is_named_and_nothing_is_left(tmp_path, result):
    with pytest.raises(FileError, match=r"cannot be written: directory .*none does not exist"):
        resultfile.write(tmp_path / "none" / "file.h5", result)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_directory_is_refused_and_the_partial_file_removed(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileError, match="is a directory; expected the name of a file"):
        resultfile.write_whole(tmp_path / "taken", b"content")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_an_older_file_survives_a_failure_of_writing(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        resultfile.write_whole(path, b"new")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_missing_file_is_told_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(FileError, match=r"does not exist; `dlf-dynamics spectrum` makes one"):
        resultfile.read(tmp_path / "none.h5", "spectrum")


def test_the_result_of_another_analysis_is_refused(path):
    with pytest.raises(FileError, match="is a result of spectrum; expected one of density"):
        resultfile.read(path, "density")


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["config"] = 1
    with pytest.raises(FileError, match=r"is not a dlf-dynamics result file \(format None"):
        resultfile.read(tmp_path / "foreign.h5", "spectrum")


def test_a_newer_version_is_refused_by_its_number(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "2.0"
    with pytest.raises(FileError, match=r"format version 2\.0; this program reads 1\.x"):
        resultfile.read(path, "spectrum")


def test_a_newer_minor_version_is_read(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.7"
    assert resultfile.read(path, "spectrum").run_id == "abc"


def test_a_file_without_its_settings_is_damaged(path):
    with h5py.File(path, "a") as file:
        del file["config"]
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum")


@pytest.mark.parametrize("length", [8, 100, 1000])
def test_a_truncated_file_is_damaged(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum")


def test_settings_that_are_not_json_are_damage(path):
    with h5py.File(path, "a") as file:
        del file["config"]
        file["config"] = "{not json"
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum")


def make_parts(folder, *, run_id="abc", config=None):
    return Parts(folder / "parts", "spectrum", run_id, {"k": 3} if config is None else config)


def test_a_part_is_made_once_and_then_read(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"values": np.arange(3.0)}

    first = make_parts(tmp_path).get_or_make("hessian-0", make)
    again = make_parts(tmp_path).get_or_make("hessian-0", make)
    assert made == [1]
    np.testing.assert_array_equal(first["values"], again["values"])
    parts = make_parts(tmp_path)
    parts.clear()
    parts.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"run_id": "other"}, {"config": {"k": 4}}])
def test_parts_of_another_run_or_of_other_settings_are_refused(changes, tmp_path):
    make_parts(tmp_path).get_or_make("hessian-0", lambda: {"x": np.zeros(1)})
    with pytest.raises(FileError, match="holds parts of another run or of other settings; leave"):
        make_parts(tmp_path, **changes).get_or_make("hessian-0", dict)


def test_parts_without_a_folder_are_made_each_time(tmp_path):
    assert Parts(None).get_or_make("x", lambda: {"x": np.ones(1)})["x"].tolist() == [1.0]
    Parts(None).clear()


def test_a_folder_of_parts_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(FileError, match=r"cannot be written: directory .*none does not exist"):
        make_parts(tmp_path / "none").get_or_make("x", dict)


@dataclass(frozen=True)
class Measured:
    steps: np.ndarray
    values: np.ndarray
    name: str
    traced: bool


def test_records_are_packed_unpacked_and_joined():
    one = Measured(np.arange(2), np.array([[1.0, np.nan], [3.0, 4.0]]), "ä", True)
    two = Measured(np.arange(2, 3), np.ones((1, 2)), "ä", True)
    back = unpack(Measured, pack(one))
    assert (back.name, back.traced) == ("ä", True)
    np.testing.assert_array_equal(back.values, one.values)
    joined = concatenate([one, two])
    assert joined.steps.tolist() == [0, 1, 2]
    assert joined.values.shape == (3, 2)
    assert joined.name == "ä"
