"""What a user without the right to read or write is told; root drops its rights for it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from dlf_dynamics.config import DataConfig, ModelConfig
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.training import train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")

# Everything is imported while it still may be, and once for all commands.
UNPRIVILEGED = """
import json, os, sys, tempfile
import filelock, jax, rich.progress
from dlf_dynamics import cli, commandline, opening, training, validation
from dlf_dynamics.analysis.spectra import plots, spectrum, summary
from dlf_dynamics.commands import COMMANDS, command_named
for name in COMMANDS:
    command_named(name)
for line in sys.stdin:
    folder, arguments = json.loads(line)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(folder)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            sys.exit(cli.main(arguments))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = [file.seek(0) or file.read() for file in (out, err)]
        print(json.dumps([code, *told]), flush=True)
"""


@pytest.fixture(scope="module")
def unprivileged():
    """A process that executes a command in a folder: exit code, output, errors."""
    # JAX warns of every fork, as it would have threads if it had started.
    program = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", UNPRIVILEGED]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True) as process:
        commands, replies = process.stdin, process.stdout
        assert commands
        assert replies

        def execute(folder, arguments):
            print(json.dumps([str(folder), arguments]), file=commands, flush=True)
            return json.loads(replies.readline())

        yield execute
        commands.close()


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


@pytest.fixture
def refused(folder, unprivileged):
    """The one line of a command that must end with exit code 2 and leave all as it was."""

    def command(*arguments):
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        code, output, errors = unprivileged(folder, arguments)
        assert (code, output) == (2, "")
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        (line,) = errors.splitlines()
        return line

    return command


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["train", "-o", "new.h5"], "new.h5"),
        (["train", "-o", "run.h5", "--overwrite"], "run.h5"),
        (["train", "-o", "run.h5", "--resume"], "run.h5"),
        (["spectrum", "run.h5"], "run.spectrum.h5"),
    ],
)
def test_a_folder_that_may_not_be_written_is_named_before_any_work(refused, arguments, written):
    line = refused(*arguments)
    assert line == f"dlf-dynamics: {written} cannot be written: no write permission in ."


def test_a_repair_that_may_not_write_says_why(refused):
    line = refused("repair", "run.h5")
    assert line == "dlf-dynamics: run.h5 cannot be written: Permission denied"


@pytest.mark.parametrize("command", ["info", "validate", "repair", "spectrum", "plot"])
def test_a_file_that_may_not_be_read_is_named(folder, refused, command):
    (folder / "run.h5").chmod(0)
    line = refused(command, "run.h5")
    # Of what kind it is, only a command for one kind can tell.
    kind = "run file" if command == "spectrum" else "file"
    assert line == f"dlf-dynamics: {kind} run.h5 cannot be read; it needs read permission"
