"""The whole published headline run through the command line: wall time and peak memory."""

from __future__ import annotations

import resource
import subprocess
import sys
import time

LONGEST_SECONDS = 60
MOST_MEBIBYTES = 1500


def command(*arguments, cwd) -> float:
    """Seconds that a command takes, start-up and compilation included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dlf_dynamics.cli", *arguments], cwd=cwd, check=True)
    return time.perf_counter() - start


def test_train_and_spectrum_take_a_minute(benchmark, tmp_path, capsys):
    seconds: dict[str, float] = {}

    def both():
        for arguments in (["train", "--quiet"], ["spectrum", "run.h5", "--quiet"]):
            seconds[arguments[0]] = command(*arguments, cwd=tmp_path)

    benchmark.pedantic(both, rounds=1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    total = sum(seconds.values())
    benchmark.extra_info.update(seconds, peak_mebibytes=round(peak))
    with capsys.disabled():
        print(
            f"\nheadline run: {total:.1f} s of {LONGEST_SECONDS} (train {seconds['train']:.1f}, "
            f"spectrum and figures {seconds['spectrum']:.1f}); peak memory {peak:.0f} MiB"
        )
    assert total <= LONGEST_SECONDS
    assert peak <= MOST_MEBIBYTES
