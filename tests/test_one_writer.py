"""Every command that writes refuses a file that another writer has; reading goes on meanwhile."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem, Recorder
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import create
from dlf_dynamics.cli import main
from dlf_dynamics.config import DataConfig, ModelConfig
from dlf_dynamics.errors import FileError
from dlf_dynamics.opening import open_run
from dlf_dynamics.outputs import hold
from dlf_dynamics.parts import Parts
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.training import train

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = replace(
    PRESETS["digits"],
    data=DataConfig(name="digits", limit=30),
    model=ModelConfig(widths=(3,)),
    steps=60,
    checkpoint_every=7,
)
OPTIONS = ["--preset", "digits", "--data.limit", "30", "--model.widths", "3"]
OPTIONS += ["--checkpoint-every", "7", "--quiet"]


def line_of(capsys, *arguments):
    """What a command that must be refused says."""
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "run.h5"
    train(CONFIG, path)
    return path


@pytest.fixture
def path(tmp_path, recorded):
    (tmp_path / "run.h5").write_bytes(recorded.read_bytes())
    return tmp_path / "run.h5"


@pytest.mark.parametrize(
    "command",
    [
        ["train", *OPTIONS, "--steps", "60", "-o"],
        ["train", *OPTIONS, "--steps", "60", "--overwrite", "-o"],
        ["train", "--resume", "--steps", "90", "-o"],
        ["repair"],
    ],
    ids=" ".join,
)
def test_a_run_file_that_is_being_written_is_left_alone(command, path, capsys):
    before = path.read_bytes()
    with hold(path):
        line = line_of(capsys, *command, path)
    assert line == (
        f"dlf-dynamics: {path} is being written by this process; wait until it has ended, or "
        "write elsewhere"
    )
    assert path.read_bytes() == before


def test_a_study_that_is_being_written_is_left_alone(tmp_path, capsys):
    (tmp_path / "study.toml").write_text("steps = 10\n[grid]\nmodel.seed = [1, 2]\n")
    with create(tmp_path / "study.h5", Study(CONFIG, (("model.seed", (1, 2)),))):
        for options in (["--resume"], ["--overwrite"], []):
            line = line_of(capsys, "sweep", tmp_path / "study.toml", *options)
            assert "study.h5 is being written by this process; wait until" in line


@pytest.mark.parametrize("analysis", ["spectrum", "bifurcations", "check"])
def test_a_result_that_is_being_computed_is_left_alone(analysis, path, capsys):
    result = "bifurcations" if analysis == "check" else analysis
    output = path.with_suffix(f".{result}.h5")
    parts = Parts(path.with_suffix(f".{result}.parts"), result, open_run(path), {})
    with hold(output):
        parts.get_or_make("first", lambda: {"x": np.ones(1)}, dict)
        line = line_of(capsys, analysis, path, "--quiet")
        assert line.startswith(f"dlf-dynamics: {output} is being written by this process; wait")
        assert parts.get_or_make("first", dict, dict).keys() == {"x"}
    with hold(path.with_suffix(f".{result}.parts")):
        line = line_of(capsys, analysis, path, "--quiet")
        assert ".parts is being written by this process; wait until" in line


def problem():
    return Problem.from_loss(lambda params, step: jnp.sum(params**2))


def test_two_recorders_do_not_share_a_file(tmp_path):
    path, optimizer = tmp_path / "run.h5", optax.sgd(0.1)
    params = jnp.ones(2)
    with Recorder(path, problem(), optimizer=optimizer) as first:
        # Neither has begun: whoever records first has the file.
        second = Recorder(path, problem(), optimizer=optimizer, overwrite=True)
        first.record(0, params, optimizer.init(params))
        with pytest.raises(FileError, match="is being written by this process"):
            second.record(0, params, optimizer.init(params))
        with pytest.raises(FileError, match="is being written by this process"):
            Recorder(path, problem(), optimizer=optimizer, overwrite=True)
    assert open_run(path).status == "complete"
    with pytest.raises(FileError, match=r"run\.h5 exists; pass overwrite=True"):
        Recorder(path, problem(), optimizer=optimizer)


def test_a_file_that_another_recorder_made_meanwhile_is_not_replaced(tmp_path):
    path, optimizer = tmp_path / "run.h5", optax.sgd(0.1)
    params = jnp.ones(2)
    late = Recorder(path, problem(), optimizer=optimizer)
    with Recorder(path, problem(), optimizer=optimizer) as first:
        first.record(0, params, optimizer.init(params))
    before = path.read_bytes()
    with pytest.raises(FileError, match=r"run\.h5 exists; pass overwrite=True"):
        late.record(0, params, optimizer.init(params))
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_run_in_training_is_read_but_not_written_by_others_until_its_process_is_killed(
    tmp_path, capsys
):
    path = tmp_path / "run.h5"
    # More steps than the test waits for. A run whose file would not fit on the disk is refused, and
    # 2 GB fit on most, though far less is written until the kill.
    command = ["train", *OPTIONS, "--steps", "3000000", "-o", str(path)]
    program = [sys.executable, "-m", "dlf_dynamics.cli", *command]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: path.exists() and len(open_run(path).checkpoint_steps) > 3, process)
            for writing in (command, ["train", "--resume", "-o", path], ["repair", path]):
                line = line_of(capsys, *writing)
                assert f"is being written by process {process.pid}; wait until" in line
            assert main(["info", str(path)]) == 0
            assert "status: running" in capsys.readouterr().out
            reached = open_run(path).checkpoint_steps[-1]
            wait_for(lambda: open_run(path).checkpoint_steps[-1] > reached, process)
        finally:
            process.kill()
    assert (tmp_path / ".run.h5.lock").exists()
    killed = open_run(path)
    assert main(["repair", str(path)]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.h5"]
    repaired = open_run(path)
    assert repaired.status == "interrupted"
    count = len(killed.checkpoint_steps)
    np.testing.assert_array_equal(repaired.parameters()[:count], killed.parameters())


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"the writer ended by itself: {process.stderr.read()}"
        assert time.monotonic() < end, "the writer did not come this far"
        time.sleep(0.01)
