"""Files that were damaged, or made to harm: one line each, and nothing of another file is read."""

import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dlf_dynamics import DataConfig, ModelConfig, OptimizerConfig, RunConfig, open_run, train
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import Outcome, create, read_study, reopen
from dlf_dynamics.cli import main
from dlf_dynamics.errors import FileError
from dlf_dynamics.hdf5 import damaged, format_name
from dlf_dynamics.resultfile import Result, write
from dlf_dynamics.schema import FORMAT
from dlf_dynamics.training import resume

CONFIG = RunConfig(
    data=DataConfig(name="blobs", points_per_class=5),
    model=ModelConfig(widths=(3,)),
    optimizer=OptimizerConfig(name="heavy-ball", learning_rate=0.1),
    steps=20,
    checkpoint_every=5,
)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    run = train(CONFIG, folder / "run.h5")
    calls = iter([False, True])
    train(replace(CONFIG, steps=400), folder / "stopped.h5", stop=lambda: next(calls))
    with create(folder / "study.h5", Study(CONFIG, (("model.seed", (0, 1, 2)),))) as writer:
        writer.append(1, Outcome("complete", loss=0.5))
    arrays = {"values": np.arange(5.0), "names": np.array([b"a", b"b"])}
    write(folder / "part.h5", Result("spectrum part", run.source, {"k": 1}, "{}", arrays))
    return folder


@pytest.fixture
def folder(originals, tmp_path):
    return shutil.copytree(originals, tmp_path / "copy")


KINDS = {"run.h5": "status", "part.h5": "values", "study.h5": "columns/loss"}


def replaced_by(make):
    """Puts something else in the place of a dataset."""

    def spoil(file, name, secret):
        shape = file[name].shape
        del file[name]
        make(file, name, secret, shape)

    return spoil


def virtual(file, name, secret, shape):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[...] = h5py.VirtualSource(secret, "secret", (4,))
    file.create_virtual_dataset(name, layout)


def external(file, name, secret, shape):
    file.create_dataset(name, (4,), "f8", external=[(str(secret), 0, 32)])


LEADING_OUT = {
    "external link": (
        replaced_by(lambda f, n, secret, _: f.__setitem__(n, h5py.ExternalLink(secret, "/secret"))),
        "is a link to another file, which this program neither writes nor follows",
    ),
    "soft link": (
        replaced_by(lambda f, n, *_: f.__setitem__(n, h5py.SoftLink("/elsewhere"))),
        "is a soft link, which this program neither writes nor follows",
    ),
    "virtual dataset": (replaced_by(virtual), "is a view of other files, which are not followed"),
    "external storage": (
        replaced_by(external),
        "has its values in other files, which are not followed",
    ),
    "link nobody asks for": (
        lambda f, n, secret: f.__setitem__("data/more", h5py.ExternalLink(secret, "/secret")),
        "/data/more is a link to another file",
    ),
    "compression": (
        lambda f, n, _: f.create_dataset("more", data=np.zeros(8), chunks=(8,), compression=1),
        "/more is compressed, which this program never does; h5repack -f NONE unpacks it",
    ),
    "absurd shape": (
        lambda f, n, _: f.create_dataset("more", (10**12,), "f8", chunks=(1024,)),
        "/more promises 8,000,000,000,000 bytes in a file of",
    ),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", LEADING_OUT)
def test_what_leads_out_of_a_file_is_refused_by_all_commands(name, how, folder, capsys):
    secret = folder / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["secret"] = np.full(4, 4242.0)
    spoil, line = LEADING_OUT[how]
    with h5py.File(folder / name, "a") as file:
        spoil(file, KINDS[name], secret)
    before = (folder / name).read_bytes()
    for command in ("info", "validate", "repair"):
        assert main([command, str(folder / name)]) in (1, 2)
        told = "".join(capsys.readouterr())
        assert told.count("\n") == 1
        assert line in told
        assert "damaged: " in told
    assert (folder / name).read_bytes() == before


def set_text(file, name, content):
    del file[name]
    file[name] = content


FAULTS = {
    "text of several": (lambda f, n: set_text(f, n, [b"a", b"b"]), "/{} is not a text"),
    "text that is a number": (lambda f, n: set_text(f, n, 3.5), "/{} is not a text"),
    "no text": (lambda f, n: set_text(f, n, h5py.Empty("S8")), "/{} has no values"),
    "a group": (lambda f, n: set_text_by_group(f, n), "/{} is a group; expected a dataset"),
    "other characters": (lambda f, n: set_text(f, n, np.bytes_(b"\xff{}")), "/{} is not UTF-8"),
    "long text": (
        lambda f, n: set_text(f, n, "x" * (2**24 + 1)),
        "/{} has 16,777,217 bytes; expected at most 16,777,216",
    ),
    "deep text": (lambda f, n: set_text(f, n, "[" * 100_000), "nested too deeply"),
    "other JSON": (lambda f, n: set_text(f, n, "[1, 2]"), "found list; expected a JSON object"),
    "broken JSON": (lambda f, n: set_text(f, n, '{"a": '), "Expecting value"),
    "long number": (lambda f, n: set_text(f, n, '{"a": ' + "9" * 5000 + "}"), "limit"),
    "number for a text": (lambda f, n: f.attrs.update(format_version=3), "no str"),
    "version": (lambda f, n: f.attrs.update(format_version="1.x"), "its format version is '1.x'"),
}


def set_text_by_group(file, name):
    del file[name]
    file.create_group(name)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_texts_that_are_none_are_told_in_a_line(name, fault, folder, capsys):
    spoil, line = FAULTS[fault]
    with h5py.File(folder / name, "a") as file:
        spoil(file, "provenance")
    for command in ("info", "validate", "repair"):
        assert main([command, str(folder / name)]) in (1, 2)
        told = "".join(capsys.readouterr())
        assert "Traceback" not in told
        if command == "info":
            assert told.count("\n") == 1
            assert "is damaged: " in told
            if name == "study.h5":  # the others have tables and digests that are looked at before
                assert line.format("provenance") in told


@pytest.mark.parametrize("name", KINDS)
def test_all_kinds_are_shown_validated_and_need_no_repair(name, folder, capsys):
    path = str(folder / name)
    assert main(["info", path, "--json"]) == 0
    assert main(["validate", path]) == 0
    assert f"{path}: valid\n" in capsys.readouterr().out
    before = (folder / name).read_bytes()
    assert main(["repair", path]) == 0
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    if name != "run.h5":
        assert told.startswith("nothing to repair: ")
        assert (folder / name).read_bytes() == before


def test_a_foreign_file_is_no_kind(tmp_path, capsys):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    assert main(["validate", str(path)]) == 2
    assert "is not a dlf-dynamics run file, result file or study file" in (capsys.readouterr().err)


def spoil_row(path, name, place):
    with h5py.File(path, "a") as file:
        file[name][place] = 0.125


def test_a_changed_row_is_refused_where_it_is_read_and_stays_known(folder, capsys):
    path = folder / "run.h5"
    spoil_row(path, "parameters/value", (3, 2))
    run = open_run(path)
    assert len(run.parameters([0, 1, 2, 4])) == 4
    for read in (lambda: run.parameters(), lambda: next(run.points([3], 1))):
        with pytest.raises(FileError, match=r"/parameters/value at step 15 is not what was"):
            read()
    # A copy keeps the checksum that the row had.
    assert main(["repair", str(path)]) == 1
    assert "/parameters/value at step 15 is not what was written" in capsys.readouterr().out
    resume(path, steps=30)
    assert main(["validate", str(path)]) == 1
    assert "/parameters/value at step 15 is not what was written" in capsys.readouterr().out


def test_changed_scalars_are_refused(folder):
    spoil_row(folder / "run.h5", "scalars/loss/value", 4)
    with pytest.raises(FileError, match=r"/scalars at step 4 is not what was written"):
        _ = open_run(folder / "run.h5").scalars


def test_a_value_without_checksums_is_refused(folder):
    path = folder / "run.h5"
    with h5py.File(path, "a") as file:
        file["checksums/checkpoints"].attrs["values"] = ["optimizer/value"] * 5
    with pytest.raises(FileError, match="/parameters/value has no checksums"):
        open_run(path).parameters()
    with h5py.File(path, "a") as file:
        file["checksums/steps"].attrs["values"] = ["scalars/loss/value"]
    with pytest.raises(FileError, match="/scalars has other datasets than those with checksums"):
        _ = open_run(path).scalars
    with h5py.File(path, "a") as file:
        file["checksums/checkpoints"].attrs["values"] = 3
    with pytest.raises(FileError, match="attribute values of /checksums/checkpoints does not"):
        open_run(path).parameters()


@pytest.mark.parametrize("step", [5000, -7])
def test_a_damaged_resume_state_is_refused_and_left_out_by_repair(step, folder, capsys):
    path = folder / "stopped.h5"
    assert open_run(path).status == "interrupted"
    with h5py.File(path, "a") as file:
        file["resume/step"][()] = step
    with pytest.raises(FileError, match=rf"/resume/step is {step}, and the rows end at step"):
        resume(path)
    assert main(["repair", str(path)]) == 0
    assert f"left out: /resume/step is {step}" in capsys.readouterr().out
    whole = train(replace(CONFIG, steps=400), folder / "whole.h5")
    resumed = resume(path)
    assert resumed.status == "complete"
    assert resumed.parameters().tobytes() == whole.parameters().tobytes()
    assert main(["validate", str(path)]) == 0


def test_a_changed_resume_state_is_refused(folder):
    path = folder / "stopped.h5"
    spoil_row(path, "resume/parameters", 1)
    with pytest.raises(FileError, match=r"/resume is not what was written .*repair"):
        resume(path)


def test_a_configuration_that_does_not_fit_the_rows_is_damage(folder):
    path = folder / "run.h5"
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.2"
        del file["checksums"], file.attrs["header_sha256"]
        set_text(file, "config", file["config"][()].decode().replace("\n   3\n", "\n   4\n"))
    with pytest.raises(
        FileError, match=r"/parameters/value has 21 columns, its configuration gives 27"
    ):
        _ = open_run(path).dynamics


def test_a_file_of_version_1_2_is_read_continued_and_stays_one(folder, capsys):
    path = folder / "run.h5"
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.2"
        del file["checksums"], file.attrs["header_sha256"]
        del file["data"].attrs["validation_sha256"]
    resume(path, steps=30)
    assert main(["validate", str(path)]) == 0
    told = capsys.readouterr().out
    assert "valid (format 1.2, whose rows have no checksums)" in told
    whole = train(replace(CONFIG, steps=30), folder / "whole.h5")
    assert open_run(path).parameters().tobytes() == whole.parameters().tobytes()


def test_a_changed_result_is_refused(folder, capsys):
    path = folder / "part.h5"
    with h5py.File(path, "a") as file:
        file["values"][2] = 7.0
    assert main(["validate", str(path)]) == 1
    assert "damaged: it is not what was written (its digest differs)" in capsys.readouterr().out


def test_a_changed_row_of_a_study_is_refused(folder):
    path = folder / "study.h5"
    study = read_study(path).study
    spoil_row(path, "columns/loss", 0)
    for read in (lambda: read_study(path), lambda: reopen(path, study)):
        with pytest.raises(FileError, match="its row of run 1 is not what was written"):
            read()


def test_a_study_whose_configurations_are_others_is_not_valid(folder, capsys):
    path = folder / "study.h5"
    with h5py.File(path, "a") as file:
        configs = file["configs"][()]
        file["configs"][...] = configs[::-1]
    assert main(["validate", str(path)]) == 1
    assert "/configs are not the configurations of /study" in capsys.readouterr().out


def test_a_study_file_of_version_1_0_stays_one(folder):
    path = folder / "study.h5"
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "1.0"
        del file["checksum"]
    study = read_study(path).study
    with reopen(path, study) as writer:
        writer.append(0, Outcome("complete", loss=1.5))
    with h5py.File(path) as file:
        assert "checksum" not in file
        assert file.attrs["format_version"] == "1.0"
    assert read_study(path).columns["loss"][:2].tolist() == [1.5, 0.5]


@pytest.mark.parametrize("name", ["run.h5", "part.h5", "study.h5"])
@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 24])
def test_texts_that_hdf5_would_read_for_ever_are_told_at_once(name, length, folder):
    path = folder / name
    content = bytearray(path.read_bytes())
    first = content.index(b"GCOL") + 16
    content[first : first + 16] = bytes(8) + length.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged: its texts have no end"):
        format_name(path)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("Unable to synchronously open object (object 'x' doesn't exist)"), "object 'x' "),
        (OSError("Can't read data (file read failed: time = now\n, size = 3)"), "file read failed"),
        (TypeError("Can't broadcast (10, 1) -> (10, 2)"), "Can't broadcast (10, 1) -> (10, 2);"),
        (ValueError("no JSON: line 1 (char 0)"), "no JSON: line 1 (char 0);"),
    ],
)
def test_a_complaint_of_hdf5_is_cut_to_its_reason_and_others_are_told_whole(error, told):
    assert f"run.h5 is damaged: {told}" in str(damaged(Path("run.h5"), FORMAT, error))


def test_a_wrong_superblock_is_told_at_once(folder):
    path = folder / "run.h5"
    content = bytearray(path.read_bytes())
    content[11] |= 5  # as a writer leaves it that was killed, but for the checksum
    path.write_bytes(content)
    with pytest.raises(FileError, match="is damaged: incorrect metadata checksum"):
        open_run(path)
