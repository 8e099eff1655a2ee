"""The whole published headline run through the command line: wall time and peak memory."""

from __future__ import annotations

LONGEST_SECONDS, LONGEST_BIFURCATIONS = 60, 180
MOST_MEBIBYTES = 1500


COMMAND = """
import sys
from dlf_dynamics.cli import main
assert main(sys.argv[1:]) == 0
"""


def test_train_and_spectrum_take_a_minute(benchmark, python, tmp_path, capsys):
    seconds: dict[str, float] = {}
    peaks = []

    def both():
        for arguments in (
            ["train", "--quiet"],
            ["spectrum", "run.h5", "--quiet"],
            ["bifurcations", "run.h5", "--quiet"],
        ):
            done = python(COMMAND, *arguments, cwd=tmp_path)
            seconds[arguments[0]] = done.seconds
            peaks.append(done.peak / 2**20)

    benchmark.pedantic(both, rounds=1)
    total, peak = seconds["train"] + seconds["spectrum"], max(peaks)
    benchmark.extra_info.update(seconds, peak_mebibytes=round(peak))
    with capsys.disabled():
        print(
            f"\nheadline run: {total:.1f} s of {LONGEST_SECONDS} (train {seconds['train']:.1f}, "
            f"spectrum and figures {seconds['spectrum']:.1f}); bifurcations "
            f"{seconds['bifurcations']:.1f} s of {LONGEST_BIFURCATIONS}; peak memory {peak:.0f} MiB"
        )
    assert total <= LONGEST_SECONDS
    assert seconds["bifurcations"] <= LONGEST_BIFURCATIONS
    assert peak <= MOST_MEBIBYTES
