from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from dlf_dynamics import resultfile
from dlf_dynamics.codec import decode, encode
from dlf_dynamics.errors import FileError, StaleError
from dlf_dynamics.parts import Parts, concatenate
from dlf_dynamics.resultfile import Result, require_result
from dlf_dynamics.source import Source

SOURCE = Source("abc", "complete", 100, 15, "0123")
GROWN = replace(SOURCE, last_step=3000, checkpoints=429)


def run_in(source, path="run.h5"):
    """What a result looks at in a run."""
    return SimpleNamespace(path=Path(path), source=source)


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
    return Result("spectrum", SOURCE, config, '{"device": "µ"}', arrays)


@pytest.fixture
def path(tmp_path, result):
    path = tmp_path / "run.spectrum.h5"
    resultfile.write(path, result)
    return path


def test_what_is_written_is_read_bit_by_bit_and_in_its_type(path, result):
    found = resultfile.read(path, "spectrum", run_in(SOURCE))
    assert (found.analysis, found.source) == ("spectrum", SOURCE)
    assert found.config == result.config
    assert found.provenance == result.provenance
    assert set(found.arrays) == set(result.arrays)
    for name, array in result.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        assert found.arrays[name].shape == array.shape
        assert found.arrays[name].tobytes() == array.tobytes()


def test_an_older_file_is_replaced_and_nothing_else_is_left(path, result):
    resultfile.write(path, Result("spectrum", GROWN, {}, "{}", {}))
    assert resultfile.read(path, "spectrum", None).source == GROWN
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
        resultfile.read(tmp_path / "none.h5", "spectrum", None)


def test_the_result_of_another_analysis_is_refused(path):
    with pytest.raises(FileError, match="is a result of spectrum; expected one of density"):
        resultfile.read(path, "density", None)


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["config"] = 1
    with pytest.raises(FileError, match=r"is not a dlf-dynamics result file \(format None"):
        resultfile.read(tmp_path / "foreign.h5", "spectrum", None)


def test_a_newer_version_is_refused_by_its_number(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "5.0"
    with pytest.raises(FileError, match=r"format version 5\.0; this program reads 4\.x"):
        resultfile.read(path, "spectrum", None)


def test_a_newer_minor_version_is_read(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "4.7"
    assert resultfile.read(path, "spectrum", None).source == SOURCE


def test_a_file_without_its_settings_is_damaged(path):
    with h5py.File(path, "a") as file:
        del file["config"]
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum", None)


@pytest.mark.parametrize("source", [None, "{not json", "[]", '{"run_id": "abc"}'])
def test_a_file_that_does_not_tell_its_source_is_damaged(source, path):
    with h5py.File(path, "a") as file:
        del file.attrs["source"]
        if source is not None:
            file.attrs["source"] = source
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum", None)


@pytest.mark.parametrize("length", [8, 100, 1000])
def test_a_truncated_file_is_damaged(path, length):
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum", None)


def test_settings_that_are_not_json_are_damage(path):
    with h5py.File(path, "a") as file:
        del file["config"]
        file["config"] = "{not json"
    with pytest.raises(FileError, match=r"is damaged: .*; compute it anew"):
        resultfile.read(path, "spectrum", None)


def test_a_file_of_an_older_format_does_not_know_what_it_is_of(path):
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.0"
    line = r"was made by an older version \(format 1\.0; this program reads 4\.x\); compute it anew"
    with pytest.raises(StaleError, match=line):
        resultfile.read(path, "spectrum", run_in(SOURCE))


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (
            GROWN,
            "is of run.h5 when it had steps 0 to 100, 15 checkpoints, complete; now it has steps 0 "
            "to 3000, 429 checkpoints, complete; `dlf-dynamics spectrum run.h5` computes it anew",
        ),
        (
            replace(SOURCE, status="interrupted"),
            "is of run.h5 when it had steps 0 to 100, 15 checkpoints, complete; now it has steps 0 "
            "to 100, 15 checkpoints, interrupted; `dlf-dynamics spectrum run.h5` computes it anew",
        ),
        (
            replace(SOURCE, digest="4567"),
            "is of other numbers than run.h5 holds now; `dlf-dynamics spectrum run.h5` computes it "
            "anew",
        ),
        (
            replace(SOURCE, run_id="def"),
            "belongs to another run than run.h5; `dlf-dynamics spectrum run.h5` computes it anew",
        ),
    ],
)
def test_a_result_of_another_state_of_the_run_is_refused(now, line, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(StaleError) as error:
        resultfile.read(Path("run.spectrum.h5"), "spectrum", run_in(now))
    assert str(error.value) == f"run.spectrum.h5 {line}"


def test_the_command_that_computes_a_result_anew_names_its_file(path):
    with pytest.raises(
        StaleError, match=r"`dlf-dynamics spectrum other\.h5 -o .*spectrum\.h5` comp"
    ):
        resultfile.read(path, "spectrum", run_in(GROWN, "other.h5"))


def test_only_results_of_the_same_analysis_are_replaced_without_asking(path):
    usual, other = (run_in(SOURCE, path.with_name(name)) for name in ("run.h5", "other.h5"))
    for run in (usual, other):
        require_result(path, "spectrum", run)
        require_result(path.with_name("none.h5"), "spectrum", run)
    with pytest.raises(FileError, match=r"exists and is not a result of bifurcations; write els"):
        require_result(path, "bifurcations", usual)
    for content in (b"notes", path.read_bytes()[:1000]):
        path.write_bytes(content)
        require_result(path, "spectrum", usual)
        with pytest.raises(FileError, match=r"exists and is not a result of spectrum; write els"):
            require_result(path, "spectrum", other)


def make_parts(folder, *, source=SOURCE, config=None):
    return Parts(folder / "parts", "spectrum", run_in(source), {"k": 3, **(config or {})})


def test_a_part_is_made_once_and_then_read(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"values": np.arange(3.0)}

    first = make_parts(tmp_path).get_or_make("hessian-0", make, dict)
    again = make_parts(tmp_path).get_or_make("hessian-0", make, dict)
    assert made == [1]
    np.testing.assert_array_equal(first["values"], again["values"])
    parts = make_parts(tmp_path)
    parts.clear()
    parts.clear()
    assert list(tmp_path.iterdir()) == []


def test_parts_of_other_settings_are_refused(tmp_path):
    settings = {"widths": (3, 4)}
    make_parts(tmp_path, config=settings).get_or_make("x", lambda: {"x": np.zeros(1)}, dict)
    same, other = make_parts(tmp_path, config=settings), make_parts(tmp_path, config={"k": 4})
    assert same.get_or_make("x", dict, dict).keys() == {"x"}
    assert [parts.of_other_settings() for parts in (same, other)] == [False, True]
    assert other.outdated() is None
    with pytest.raises(FileError, match="holds parts of other settings; leave --resume out"):
        other.get_or_make("x", dict, dict)


@pytest.mark.parametrize("now", [GROWN, replace(SOURCE, run_id="other")])
def test_parts_of_another_state_of_the_run_are_refused(now, tmp_path):
    make_parts(tmp_path).get_or_make("x", lambda: {"x": np.zeros(1)}, dict)
    assert make_parts(tmp_path).outdated() is None
    parts = make_parts(tmp_path, source=now)
    line = r"what is in .*parts (is of run\.h5 when it had steps 0 to 100|belongs to another run)"
    with pytest.raises(StaleError, match=rf"{line}.*; leave --resume out to start anew"):
        parts.get_or_make("x", dict, dict)
    assert str(parts.outdated()).startswith(f"what is in {tmp_path / 'parts'} ")
    parts.clear()
    assert parts.outdated() is None


def test_parts_without_a_folder_are_made_each_time(tmp_path):
    assert Parts(None).get_or_make("x", lambda: {"x": np.ones(1)}, dict)["x"].tolist() == [1.0]
    parts = Parts(None)
    parts.clear()
    assert (parts.outdated(), parts.of_other_settings()) == (None, False)


def test_a_folder_of_parts_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(FileError, match=r"cannot be written: directory .*none does not exist"):
        make_parts(tmp_path / "none").get_or_make("x", dict, dict)


@dataclass(frozen=True)
class Measured:
    steps: np.ndarray
    values: np.ndarray
    name: str
    traced: bool


def test_records_are_packed_unpacked_and_joined():
    one = Measured(np.arange(2), np.array([[1.0, np.nan], [3.0, 4.0]]), "ä", True)
    two = Measured(np.arange(2, 3), np.ones((1, 2)), "ä", True)
    back = decode(Measured, encode(one))
    assert (back.name, back.traced) == ("ä", True)
    np.testing.assert_array_equal(back.values, one.values)
    joined = concatenate([one, two])
    assert joined.steps.tolist() == [0, 1, 2]
    assert joined.values.shape == (3, 2)
    assert joined.name == "ä"
