"""Command lines in a process of their own, which may hang or die without harm to the harness."""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

HANG_SECONDS = 60
MEMORY = 12 * 2**30
FILE_SIZE = 2**30
"""A command that wants more of either gets an error of the system."""

LONGEST_LINE = 1000
"""Characters of an error that a person would still read."""

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What came of a command line.

    Attributes:
        code: its exit code; none when it did not end by itself.
        stdout: what it printed.
        stderr: what it said.
        crash: the traceback, `hang` or how the process died; empty where there was none of it.
        seconds: that it took.
    """

    code: int | None
    stdout: str
    stderr: str
    crash: str
    seconds: float

    def fault(self, allowed: Sequence[int]) -> str | None:
        """What is wrong with it, in words; none when it ended as a command should."""
        if self.crash:
            return self.crash
        if self.code not in allowed:
            return f"exit code {self.code}; expected one of {list(allowed)}: {self.stderr[-300:]!r}"
        if any(ord(c) < 32 and c not in "\n\t" for c in self.stdout + self.stderr):
            return "control characters are printed"
        errors = [line for line in self.stderr.splitlines() if line.startswith("dlf-dynamics: ")]
        if self.code == 2 and (
            len(errors) != 1 or self.stderr.rstrip().splitlines()[-1:] != errors
        ):
            return f"not one line: {self.stderr[-300:]!r}"
        if any(len(line) > LONGEST_LINE for line in errors):
            return f"a line of {max(map(len, errors))} characters: {errors[0][:100]!r}"
        return None


class Worker:
    """A process that executes one command line after another, imports and programs kept."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, arguments: Sequence[str], folder: Path) -> Outcome:
        """Executes `dlf-dynamics ARGUMENTS` in a folder."""
        process = self._started()
        start = time.monotonic()
        pipe: Any = process.stdin
        reply = ""
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps({"arguments": list(arguments), "folder": str(folder)}) + "\n")
            pipe.flush()
            reply = self._reply(process.stdout)
        seconds = time.monotonic() - start
        if reply:
            return Outcome(**json.loads(reply), seconds=seconds)
        hung = process.poll() is None and seconds >= HANG_SECONDS
        self.close()
        crash = "hang" if hung else f"the process died with {process.returncode}"
        return Outcome(None, "", "", crash, seconds)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment(),
            )
            ready = self._reply(self._process.stdout)  # imports are not of the command's time
            assert ready, "the worker did not start"
        return self._process

    def _reply(self, pipe: IO[str] | None) -> str:
        """A line of the worker; empty when none came in time."""
        assert pipe is not None
        ready, _, _ = select.select([pipe], [], [], HANG_SECONDS)
        return pipe.readline() if ready else ""


def environment() -> dict[str, str]:
    """Of the programs under test: this checkout, one thread, programs compiled quickly."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "NPROC": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "MPLBACKEND": "agg",
        "COLUMNS": "200",
    }


def _execute(arguments: list[str], folder: str) -> dict[str, Any]:
    from dlf_dynamics.cli import main

    os.chdir(folder)
    out, err, code, crash = io.StringIO(), io.StringIO(), None, ""
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            crash = traceback.format_exc(limit=-3)
    return {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue(), "crash": crash}


def _serve() -> None:
    # Replies go by the stream as it was; whatever else is printed goes nowhere.
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import jax

    import dlf_dynamics.training

    jax.config.update("jax_num_cpu_devices", 1)
    assert dlf_dynamics.training
    print("ready", file=replies)
    for count, line in enumerate(sys.stdin, start=1):
        print(json.dumps(_execute(**json.loads(line))), file=replies)
        if count % 200 == 0:
            jax.clear_caches()  # Linux allows a process so many memory mappings


if __name__ == "__main__":
    _serve()
