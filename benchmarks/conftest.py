"""Benchmarks compute as the command line does: in float64, on one thread unless NPROC is set."""

import os
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import pytest

# XLA reads it when it first computes; small problems run fastest on one thread.
os.environ.setdefault("NPROC", "1")
jax.config.update("jax_enable_x64", True)

# Through a shell: a process counts the peak of the one that started it as its own (Linux), and the
# benchmarks' own process is large.
_SHELL = ["sh", "-c", '"$@"; exit $?', "sh"]
_PEAK = """
import resource, sys
unit = 1 if sys.platform == "darwin" else 1024
print(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Process(NamedTuple):
    """What a Python program printed, how long it took, and its peak memory in bytes."""

    output: str
    seconds: float
    peak: int


@pytest.fixture(scope="session")
def python():
    """Runs a Python program with arguments in a process of its own."""

    def run(program: str, *arguments: object, cwd=None) -> Process:
        command = [*_SHELL, sys.executable, "-c", program + _PEAK, *map(str, arguments)]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=cwd)
        seconds = time.perf_counter() - start
        *lines, peak = done.stdout.splitlines()
        return Process("\n".join(lines), seconds, int(peak))

    return run
