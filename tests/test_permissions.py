"""What a user without the right to read or write is told; root drops its rights for it."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from dlf_dynamics.config import DataConfig, ModelConfig
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.training import train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")

# Everything is imported while it still may be.
UNPRIVILEGED = """
import os, sys
import filelock, jax, rich.progress
from dlf_dynamics import cli, commandline, opening, training, validation
from dlf_dynamics.analysis.spectra import plots, spectrum, summary
from dlf_dynamics.commands import COMMANDS, command_named
for name in COMMANDS:
    command_named(name)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a run in it that may be read but not written."""
    config = replace(
        PRESETS["digits"],
        data=DataConfig(name="digits", limit=30),
        model=ModelConfig(widths=(3,)),
        steps=12,
        checkpoint_every=4,
    )
    train(config, tmp_path / "run.h5")
    (tmp_path / "run.h5").chmod(0o444)
    tmp_path.chmod(0o555)
    yield tmp_path
    tmp_path.chmod(0o755)


def refused(folder, *arguments):
    """The one line of a command that must end with exit code 2 and leave all as it was."""
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["train", "-o", "new.h5"], "new.h5"),
        (["train", "-o", "run.h5", "--overwrite"], "run.h5"),
        (["train", "-o", "run.h5", "--resume"], "run.h5"),
        (["spectrum", "run.h5"], "run.spectrum.h5"),
    ],
)
def test_a_folder_that_may_not_be_written_is_named_before_any_work(folder, arguments, written):
    line = refused(folder, *arguments)
    assert line == f"dlf-dynamics: {written} cannot be written: no write permission in ."


def test_a_repair_that_may_not_write_says_why(folder):
    line = refused(folder, "repair", "run.h5")
    assert line == "dlf-dynamics: run.h5 cannot be written: Permission denied"


@pytest.mark.parametrize("command", ["info", "validate", "repair", "spectrum", "plot"])
def test_a_file_that_may_not_be_read_is_named(folder, command):
    (folder / "run.h5").chmod(0)
    line = refused(folder, command, "run.h5")
    # Of what kind it is, only a command for one kind can tell.
    kind = "run file" if command == "spectrum" else "file"
    assert line == f"dlf-dynamics: {kind} run.h5 cannot be read; it needs read permission"
