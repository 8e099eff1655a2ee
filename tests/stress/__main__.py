"""Stress: mutated files, odd options and data, kills. `make stress` runs all of it.

  python tests/stress files --count 400     mutated files before every command that reads them
  python tests/stress cases --count 500     options, TOML files and data that nobody should give
  python tests/stress kills --count 100     SIGKILL at any moment, then --resume, bit for bit

Each number is reproduced by its seed: `--seed N --count 1`. The exit code is 1 where anything was
found: a traceback, a hang, a wrong row, a verdict of "valid" on a file that others call damaged; or
where the harness itself failed, which does not end the run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import files
import kills
from worker import Worker, environment

Check = Callable[[int, Path, Path, Worker], tuple[str, list[str]]]

CHECKS: dict[str, tuple[Check, int]] = {
    "files": (files.check_file, 420),
    "cases": (cases.check_case, 520),
    "kills": (kills.check_kill, 100),
}


def main() -> int:
    """Runs what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*CHECKS, "all"], nargs="?", default="all")
    parser.add_argument("--count", type=int, help="how many; none means the number above")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    parser.add_argument("--originals", type=Path, help="keep the good files there for a next time")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        originals = options.originals or Path(scratch) / "originals"
        if not originals.exists():
            originals.mkdir()
            made = [sys.executable, str(Path(__file__).with_name("originals.py")), str(originals)]
            subprocess.run(made, check=True, env=environment(), capture_output=True)
        for name in CHECKS if options.what == "all" else [options.what]:
            check, usual = CHECKS[name]
            seeds = range(options.seed, options.seed + (options.count or usual))
            failed |= _run(name, check, seeds, originals, Path(scratch), options.jobs)
    return int(failed)


def _run(name: str, check: Check, seeds: range, originals: Path, scratch: Path, jobs: int) -> bool:
    """Does one kind of check for all seeds; whether any found a fault."""
    local, workers = threading.local(), []

    def one(seed: int) -> tuple[int, str, list[str]]:
        if not hasattr(local, "worker"):
            local.worker = Worker()
            workers.append(local.worker)
        try:
            return seed, *check(seed, originals, scratch / f"{name}-{seed}", local.worker)
        except Exception:
            return seed, "not checked", [f"the harness failed: {traceback.format_exc(limit=-3)}"]

    bad, kinds = 0, Counter()
    with ThreadPoolExecutor(jobs) as pool:
        for count, (seed, told, faults) in enumerate(pool.map(one, seeds), start=1):
            bad += bool(faults)
            for fault in faults:
                kinds[_kind(fault)] += 1
                lines = [line[:200] for line in fault.splitlines()]
                print(f"{name} {seed}: {told}", *lines, sep="\n    ", flush=True)
            if count % 50 == 0:
                print(f"{name}: {count} of {len(seeds)}, {bad} with faults", flush=True)
    for worker in workers:
        worker.close()
    found = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "no fault"
    print(f"{name}: {len(seeds)} done, {bad} with faults: {found}", flush=True)
    return bad > 0


def _kind(fault: str) -> str:
    kinds = {
        "the harness failed": "errors of the harness",
        "Traceback": "tracebacks",
        "hang": "hangs",
        "process died": "dead processes",
        "other rows": "wrong rows",
        "says valid": "false verdicts",
    }
    return next((kind for word, kind in kinds.items() if word in fault), "others")


if __name__ == "__main__":
    sys.exit(main())
