"""A few seeds of `make stress`: mutated files and odd input, before every command."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("stress")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Where the first of these tests leaves its good files to the others, which copy them."""
    return tmp_path_factory.mktemp("stress") / "originals"


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ("files", 7),
        ("cases", 9),
        pytest.param("cases", 26, marks=pytest.mark.slow),
        pytest.param("kills", 5, marks=pytest.mark.slow),
    ],
)
def test_no_traceback_no_hang_no_wrong_row_and_no_false_verdict(what, count, originals):
    options = ["--count", str(count), "--jobs", "1", "--originals", str(originals)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), what, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"{what}: {count} done, 0 with faults: no fault"
