import json
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import time
import zlib
from contextlib import suppress

import h5py
import numpy as np
import pytest

from dlf_dynamics import runfile, runwriter
from dlf_dynamics.analysis.studies.outcome import CURVES, NUMBERS, Outcome
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import create, read_study, reopen
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import from_json
from dlf_dynamics.errors import FileError

STUDY = Study(
    RunConfig(steps=9),
    (("schedule.amplitude", (1.0, 70.0)), ("model.seed", (0, 1))),
    measures=Measures(curve_points=3),
)
RUNS, POINTS = 150, 200
LONG = Study(
    RunConfig(steps=9),
    (("model.seed", tuple(range(RUNS))),),
    measures=Measures(curve_points=POINTS),
)

# Its children find JAX imported but not yet started, which saves seconds for each.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["dlf_dynamics.analysis.studies.studyfile"])


def child(function, *args):
    """A process that calls a function of this file, which is no module that can be imported."""
    call = {"CALL": (function.__name__, args)}
    return SERVER.Process(target=runpy.run_path, args=(__file__, call, "child"))


def outcome_of(index, points):
    """Made up, with a value of its own in every place."""
    numbers = {name: 1000.0 * index + k for k, name in enumerate(NUMBERS)}
    curves = index + np.arange(points * len(CURVES)).reshape(points, len(CURVES)) / 1024
    return Outcome("complete", **numbers, curves=curves)


def assert_rows(results, indices, points):
    """Exactly these runs are done, and each has the values that were made up for it."""
    assert np.flatnonzero(results.done).tolist() == sorted(indices)
    numbers = np.arange(len(results.study), dtype=float)[:, None]
    expected = np.where(results.done[:, None], 1000 * numbers + np.arange(len(NUMBERS)), np.nan)
    for name, column in zip(NUMBERS, expected.T, strict=True):
        np.testing.assert_array_equal(results.columns[name], column)
    curves = numbers + np.arange(points * len(CURVES)) / 1024
    curves = np.where(results.done[:, None], curves, np.nan).reshape(-1, points, len(CURVES))
    np.testing.assert_array_equal(results.curves, curves)
    assert [s is not None for s in results.statuses] == results.done.tolist()


@pytest.fixture
def path(tmp_path):
    """A study of which the last run, the first and the second are done, in this order."""
    path = tmp_path / "study.h5"
    with create(path, STUDY) as writer:
        writer.append(3, Outcome("complete", steps=9, loss=0.25, ntk=7.0, curves=np.ones((3, 6))))
        writer.append(0, Outcome("failed", "out of memory"))
        writer.append(1, Outcome("diverged", steps=4, loss=np.inf, seconds=1.5))
    return path


@pytest.mark.parametrize("version", ["1.0", "1.2"])
def test_a_file_of_an_older_version_is_read_and_continued_without_the_later_columns(path, version):
    later = ["period_2_steps", "period_4_steps", "onset_phase", "realized_above"]
    later += ["preconditioned_sharpness"] if version == "1.0" else []
    with h5py.File(path, "a") as file:
        for name in later:
            del file[f"columns/{name}"]
        file.attrs["format_version"] = version
        if version == "1.0":
            del file["checksum"]
        else:
            file["checksum"][:3] = [_older_checksum(file, row) for row in range(3)]
    with reopen(path, STUDY) as writer:
        writer.append(2, Outcome("complete", steps=9, threshold=4.0, curves=np.ones((3, 6))))
    results = read_study(path)
    assert results.complete
    assert results.columns["threshold"][2] == 4
    for name in later:
        assert np.isnan(results.columns[name]).all()


def _older_checksum(file, row):
    """As version 1.2 wrote it: of the bytes of a row, field by field."""
    since = ("period_2_steps", "period_4_steps", "onset_phase", "realized_above")
    columns = [f"columns/{name}" for name in NUMBERS if name not in since]
    paths = ("run", "status", "message", *columns, "curves")
    return zlib.crc32(b"".join(file[path][row : row + 1].tobytes() for path in paths))


def test_what_was_appended_is_read_in_the_order_of_the_study(path):
    results = read_study(path)
    assert (results.path, results.study) == (path, STUDY)
    assert results.done.tolist() == [True, True, False, True]
    assert results.statuses == ["failed", "diverged", None, "complete"]
    assert results.messages == ["out of memory", "", "", ""]
    assert not results.complete
    nan = np.nan
    expected = {
        "steps": [0, 4, nan, 9],
        "loss": [nan, np.inf, nan, 0.25],
        "ntk": [nan, nan, nan, 7],
        "seconds": [nan, 1.5, nan, nan],
        "accuracy": [nan] * 4,
    }
    for name, values in expected.items():
        assert results.columns[name].dtype == np.float64
        np.testing.assert_array_equal(results.columns[name], values)
    assert tuple(results.columns) == NUMBERS
    assert results.curves is not None
    np.testing.assert_array_equal(results.curves[3], np.ones((3, 6)))
    assert results.curves.shape == (4, 3, 6)
    assert np.isnan(results.curves[:3]).all()
    assert [from_json(config) for config in results.configs] == STUDY.configs
    assert results.provenance["packages"]["h5py"] == h5py.__version__
    assert results.created == results.provenance["created"]


def test_the_file_explains_itself(path):
    with h5py.File(path) as file:
        assert file.attrs["format"] == "dlf-dynamics-study"
        assert file.attrs["format_version"] == "1.4"
        assert file["run"][()].tolist() == [3, 0, 1, -1]
        names = np.asarray(file["status"].attrs["names"])
        assert names[file["status"][:3]].tolist() == ["complete", "failed", "diverged"]
        assert file["curves"].attrs["fraction_of_run"].tolist() == [0, 0.5, 1]
        assert tuple(file["curves"].attrs["names"]) == CURVES
        assert json.loads(file["configs"][2])["schedule"]["amplitude"] == 70
        assert json.loads(file["study"][()])["axes"][1] == ["model.seed", [0, 1]]


def test_axes_have_their_names_and_runs_their_numbers(path):
    with h5py.File(path) as file:
        for name in ("status", "message", "checksum", *(f"columns/{name}" for name in NUMBERS)):
            assert file[name].dims[0].values() == [file["run"]]
        scales = [dim[0] for dim in file["curves"].dims]
        assert [scale.name for scale in scales] == ["/run", "/point", "/quantity"]
        assert scales[1][()].tolist() == [0, 0.5, 1]
        assert tuple(name.decode() for name in scales[2][()]) == CURVES
        assert file["columns/seconds"].attrs["units"] == "s"
        assert file["columns/loss"].attrs["description"].startswith("F(θ, t) after the last")


def test_a_study_without_curves_has_none(tmp_path):
    study = Study(RunConfig(), (("model.seed", (0, 1)),))
    with create(tmp_path / "study.h5", study) as writer:
        writer.append(1, Outcome("complete", loss=2.0))
    results = read_study(tmp_path / "study.h5")
    assert results.curves is None
    np.testing.assert_array_equal(results.columns["loss"], [np.nan, 2.0])
    with reopen(tmp_path / "study.h5", study) as writer:
        assert writer.done == {1}
        writer.append(0, Outcome("complete", loss=3.0))
    assert read_study(tmp_path / "study.h5").complete


def test_a_long_message_is_cut_between_characters(tmp_path):
    with create(tmp_path / "study.h5", STUDY) as writer:
        writer.append(0, Outcome("failed", "x" * 255 + "λ"))
        writer.append(1, Outcome("failed", "λ" * 300))
    assert read_study(tmp_path / "study.h5").messages[:2] == ["x" * 255, "λ" * 128]


def test_the_file_is_read_while_it_is_open_for_writing(tmp_path):
    path = tmp_path / "study.h5"
    with create(path, STUDY) as writer:
        assert_rows(read_study(path), [], 3)
        written = []
        for index in (2, 0, 3):
            writer.append(index, outcome_of(index, 3))
            written.append(index)
            assert_rows(read_study(path), written, 3)
        assert writer.done == {0, 2, 3}


@pytest.mark.parametrize(
    ("index", "outcome", "message"),
    [
        (4, Outcome("complete"), "run 4 is done, or not one of the 4"),
        (-1, Outcome("complete"), "run -1 is done, or not one of the 4"),
        (1, Outcome("complete"), "run 1 is done"),
        (0, Outcome("finished"), "status is 'finished'; expected one of"),
        (
            0,
            Outcome("complete", curves=np.zeros((2, 6))),
            r"curves have shape \(2, 6\); expected \(3, 6\)",
        ),
    ],
)
def test_an_outcome_that_does_not_fit_is_refused_and_leaves_no_trace(
    tmp_path, index, outcome, message
):
    with create(tmp_path / "study.h5", STUDY) as writer:
        writer.append(1, outcome_of(1, 3))
        with pytest.raises(ValueError, match=message):
            writer.append(index, outcome)
        writer.append(2, outcome_of(2, 3))
    assert_rows(read_study(tmp_path / "study.h5"), [1, 2], 3)


def test_a_file_that_exists_is_replaced_only_on_request(path):
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"study\.h5 exists; continue it with --resume, replace"):
        create(path, STUDY)
    assert path.read_bytes() == before
    with create(path, STUDY, overwrite=True):
        pass
    assert not read_study(path).done.any()


def test_a_reopened_study_is_finished_as_if_it_had_not_been_left(tmp_path):
    path = tmp_path / "study.h5"
    with create(path, STUDY) as writer:
        for index in (3, 1):
            writer.append(index, outcome_of(index, 3))
    created = read_study(path).created
    with reopen(path, STUDY) as writer:
        assert writer.done == {1, 3}
        assert_rows(read_study(path), [1, 3], 3)
        for index in (2, 0):
            writer.append(index, outcome_of(index, 3))
    results = read_study(path)
    assert_rows(results, range(4), 3)
    assert results.complete
    assert results.created == created
    with h5py.File(path) as file:
        assert file["run"][()].tolist() == [3, 1, 2, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["study.h5"]


def test_failed_runs_are_done_again_only_on_request_and_count_with_their_last_row(path):
    with reopen(path, STUDY) as writer:
        assert writer.done == {0, 1, 3}
    with reopen(path, STUDY, retry_failed=True) as writer:
        assert writer.done == {1, 3}
        # Until there is another outcome, the failure stands.
        assert read_study(path).messages[0] == "out of memory"
        writer.append(2, Outcome("failed", "out of disk"))
        writer.append(0, Outcome("complete", loss=5.0))
        assert read_study(path).statuses == ["complete", "diverged", "failed", "complete"]
    with h5py.File(path) as file:
        assert file["run"][()].tolist() == [3, 0, 1, 2, 0]
    results = read_study(path)
    np.testing.assert_array_equal(results.columns["loss"], [5.0, np.inf, np.nan, 0.25])
    assert results.messages == ["", "", "out of disk", ""]
    with reopen(path, STUDY, retry_failed=True) as writer:
        assert writer.done == {0, 1, 3}
        writer.append(2, Outcome("complete", loss=6.0))
    np.testing.assert_array_equal(read_study(path).columns["loss"], [5.0, np.inf, 6.0, 0.25])
    with h5py.File(path) as file:
        # The row that another had replaced is gone.
        assert file["run"][()].tolist() == [3, 1, 2, 0, 2]


def test_a_file_of_another_study_is_not_continued(path):
    before = path.read_bytes()
    other = Study(STUDY.base, STUDY.axes, measures=Measures(curve_points=4))
    with pytest.raises(FileError, match=r"is of another study; .* replace it with --overwrite$"):
        reopen(path, other)
    assert path.read_bytes() == before


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileError, match=r"study file .*no\.h5 does not exist; `dlf-dynamics sweep"):
        read_study(tmp_path / "no.h5")
    with pytest.raises(FileError, match="does not exist"):
        reopen(tmp_path / "no.h5", STUDY)
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    with pytest.raises(FileError, match=r"is not a dlf-dynamics study file \(not HDF5\)"):
        read_study(text)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(FileError, match=r"is not a dlf-dynamics study file \(format None"):
        read_study(tmp_path / "other.h5")


def test_files_of_runs_and_results_are_told_apart(tmp_path):
    header = runfile.Header(
        config="{}",
        data_kind="spiral",
        data_sha256="0",
        inputs=None,
        targets=None,
        dtype="float64",
        layout="",
        provenance='{"created": ""}',
    )
    with runfile.create(tmp_path / "run.h5", header, runfile.Sizes(2, 0, 3)):
        pass
    with pytest.raises(FileError, match=r"run\.h5 is a run file, not a study file$"):
        read_study(tmp_path / "run.h5")
    with h5py.File(tmp_path / "result.h5", "w") as file:
        file.attrs["format"] = "dlf-dynamics-result"
    with pytest.raises(FileError, match=r"result\.h5 is a result file, not a study file$"):
        read_study(tmp_path / "result.h5")


def test_a_newer_format_is_refused_by_its_version(path):
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = "2.0"
    with pytest.raises(FileError, match=r"format version 2\.0; this program reads 1\.x"):
        read_study(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = "1.7"
        file["colours/red"] = 1
    assert read_study(path).study == STUDY


@pytest.mark.parametrize("name", ["run", "status", "columns/ntk", "configs", "study", "provenance"])
def test_a_missing_dataset_is_damage(path, name):
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(FileError, match=r"is damaged: .*; replace it with --overwrite$"):
        read_study(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("run", 4, "is damaged: its runs are not those of its study"),
        ("status", 3, "is damaged: it has an unknown status"),
        ("study", "{", "is damaged: its study: not a study: "),
        ("provenance", "{", "is damaged: "),
    ],
)
def test_values_that_cannot_be_are_damage(path, name, value, message):
    with h5py.File(path, "r+") as file:
        if isinstance(value, str):
            file[name][()] = value
        else:
            file[name][0] = value
    with pytest.raises(FileError, match=message):
        read_study(path)


def test_a_file_that_cannot_be_written_says_why(tmp_path):
    with pytest.raises(FileError, match=r"cannot be written: directory .*no does not exist"):
        create(tmp_path / "no" / "study.h5", STUDY)
    assert not list(tmp_path.iterdir())


def read_at(path, sizes, whole, failures):
    """Writes down the lengths at which a file that was cut off is read as anything but itself."""
    content = path.read_bytes()
    for size in sizes:
        path.write_bytes(content[:size])
        try:
            assert_rows(read_study(path), whole, POINTS)
            outcome = "read"
        except FileError as error:
            outcome = "" if "\n" not in str(error) else "lines"
        except AssertionError:
            outcome = "wrong"
        if outcome:
            failures.write_text(f"{size}: {outcome}\n")
            raise SystemExit(1)
    failures.write_text("none")


def write_forever(path, log, order):
    """Appends the runs of the long study in this order, says so, and waits for its end."""
    with create(path, LONG) as writer, log.open("w", buffering=1) as told:
        for index in order:
            writer.append(index, outcome_of(index, POINTS))
            print(index, file=told)
        time.sleep(60)


def finish(path):
    with reopen(path, LONG) as writer:
        for index in set(range(RUNS)) - writer.done:
            writer.append(index, outcome_of(index, POINTS))


def kill_after(folder, rows, rng):
    """A file whose writer was killed after so many rows; and what it had said was written."""
    path, log = folder / "study.h5", folder / "log"
    order = rng.permutation(RUNS).tolist()
    process = child(write_forever, path, log, order)
    process.start()
    try:
        end = time.monotonic() + 60
        while not log.exists() or len(log.read_text().splitlines()) < rows:
            assert process.is_alive()
            assert time.monotonic() < end
            if path.exists():
                # Read while it is written, by another process.
                results = read_study(path)
                assert_rows(results, order[: int(results.done.sum())], POINTS)
        time.sleep(rng.uniform(0, 0.02))
    finally:
        process.kill()
        process.join()
    return path, order, [int(line) for line in log.read_text().splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_a_killed_study_keeps_its_complete_rows_and_is_finished(kills, tmp_path):
    rng = np.random.default_rng(kills)
    counts = []
    for k in range(kills):
        folder = tmp_path / str(k)
        folder.mkdir()
        path, order, said = kill_after(folder, rng.integers(0, 120), rng)
        results = read_study(path)
        count = int(results.done.sum())
        # What was said to be written is there, and at most the row after.
        assert len(said) <= count <= len(said) + 1
        assert_rows(results, order[:count], POINTS)
        counts.append(count)
        if k % 4 == 0:
            finish(path)
            assert_rows(read_study(path), range(RUNS), POINTS)
            assert read_study(path).complete
    assert len(set(counts)) > kills // 2


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
@pytest.mark.parametrize("killed", [True, False])
def test_a_file_that_was_cut_off_is_refused_at_any_length(killed, tmp_path):
    rng = np.random.default_rng(0)
    path, order, _ = kill_after(tmp_path, 20, rng)
    if not killed:
        finish(path)
        order = list(range(RUNS))
    results = read_study(path)
    size = path.stat().st_size
    assert size > 10**6
    sizes = [size - 1, size - 8, *range(0, 3000, 97), *rng.integers(3000, size, 60).tolist()]
    # In a process of its own: HDF5 might wait for ever for what is missing.
    failures = tmp_path / "failures"
    done = order[: int(results.done.sum())]
    reader = child(read_at, path, sizes, done, failures)
    reader.start()
    reader.join(60)
    exitcode = reader.exitcode
    reader.kill()
    assert (exitcode, failures.read_text()) == (0, "none")


def half_written(path, monkeypatch):
    """Appends a row and is stopped between its columns and its number."""
    write = h5py.Dataset.__setitem__
    with suppress(KeyboardInterrupt), reopen(path, STUDY) as writer:

        def until_run(dataset, *arguments):
            if dataset.name == "/run":
                raise KeyboardInterrupt
            write(dataset, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(h5py.Dataset, "__setitem__", until_run)
            writer.append(2, outcome_of(2, 3))
        raise AssertionError("not reached")


def test_a_row_without_its_number_is_not_there(path, monkeypatch):
    half_written(path, monkeypatch)
    with h5py.File(path, "r", swmr=True) as file:
        assert 2000 in file["columns/steps"][()]
    results = read_study(path)
    assert results.done.tolist() == [True, True, False, True]
    assert np.isnan(results.columns["loss"][2])
    with reopen(path, STUDY) as writer:
        writer.append(2, Outcome("complete", loss=1.0))
    results = read_study(path)
    np.testing.assert_array_equal(results.columns["loss"], [np.nan, np.inf, 1.0, 0.25])
    # Nothing of the half-written row is left.
    assert np.isnan(results.columns["accuracy"]).all()


@pytest.mark.parametrize("failing", [create, reopen])
def test_a_study_that_cannot_be_begun_leaves_the_old_file(path, tmp_path, monkeypatch, failing):
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runwriter.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        failing(path, STUDY, **({"overwrite": True} if failing is create else {}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["study.h5"]


FULL = """
import resource, runpy, sys
from pathlib import Path
from dlf_dynamics.analysis.studies.studyfile import create, reopen
from dlf_dynamics.errors import FileError

tests = runpy.run_path(sys.argv[1])
path, limit, task = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

try:
    if task == "append":
        with create(path, tests["LONG"]) as writer:
            fill()
            for index in range(tests["RUNS"]):
                writer.append(index, tests["outcome_of"](index, tests["POINTS"]))
                print(index, flush=True)
    else:
        fill()
        {"create": create, "reopen": reopen}[task](path, tests["LONG"])
except FileError as error:
    print(error, flush=True)
    sys.exit(2)
"""


def with_full_disk(path, limit, task):
    """What a process prints that meets a limit of the size of files, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, __file__, str(path), str(limit), task],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # A crash of HDF5 at exit would show here as a signal.
    assert done.stderr == ""
    return done.stdout.splitlines(), done.returncode


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX's")
def test_a_study_that_the_disk_could_never_hold_is_refused_before_it_is_full(tmp_path):
    study = Study(STUDY.base, STUDY.axes, measures=Measures(curve_points=2**31 - 2))
    with pytest.raises(FileError, match=r"it would take [\d,]+ GB, and .* GB are free"):
        create(tmp_path / "study.h5", study)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_the_making_of_a_file_in_one_line(tmp_path):
    path = tmp_path / "study.h5"
    message = f"{path} cannot be written: File too large"
    assert with_full_disk(path, 1_500_000, "create") == ([message], 2)
    assert not list(tmp_path.iterdir())
    with create(path, LONG) as writer:
        writer.append(7, outcome_of(7, POINTS))
    before = path.read_bytes()
    assert with_full_disk(path, len(before) - 1, "reopen") == ([message], 2)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["study.h5"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are POSIX's")
def test_a_disk_that_refuses_rows_ends_the_study_in_one_line_and_keeps_those_before(
    tmp_path, monkeypatch
):
    path = tmp_path / "study.h5"
    # The command is in the file, and would make it longer or shorter.
    told = "-c", __file__, str(path.with_name("b.h5")), "654321", "append"
    monkeypatch.setattr(sys, "argv", list(told))
    with create(path, LONG):
        pass
    with h5py.File(path) as file:
        start, size = file["curves"].id.get_offset(), path.stat().st_size
    assert len(str(start + 300_000)) == len("654321")
    *said, message = with_full_disk(path.with_name("b.h5"), start + 300_000, "append")[0]
    path = path.with_name("b.h5")
    assert message == f"{path} cannot be written: File too large"
    assert 10 < len(said) < RUNS
    assert_rows(read_study(path), map(int, said), POINTS)
    finish(path)
    assert_rows(read_study(path), range(RUNS), POINTS)
    # The room for all rows is taken before the first.
    assert path.stat().st_size == size


if __name__ == "child":
    name, args = globals()["CALL"]
    globals()[name](*args)


@pytest.mark.parametrize(("runs", "points"), [(4, 100_000), (3000, 10)])
def test_the_texts_of_a_study_file_are_where_damaged_ones_are_looked_for(runs, points, tmp_path):
    measures = Measures(curve_points=points)
    study = Study(RunConfig(steps=9), (("model.seed", tuple(range(runs))),), measures=measures)
    path = tmp_path / "study.h5"
    with create(path, study):
        pass
    content = path.read_bytes()
    heaps = [found.start() for found in re.finditer(b"GCOL", content)]
    assert heaps
    ends = 2**20, len(content) - 2**20
    assert not [heap for heap in heaps if ends[0] < heap < ends[1]]
    assert ends[1] > 2**20
