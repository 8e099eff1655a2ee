"""Mutated files before every command that reads them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from mutations import mutate
from originals import BIFURCATIONS, KINDS, SPECTRUM
from worker import Outcome, Worker

ROWS = ("scalars/", "parameters/", "previous_update/", "optimizer/", "objective/", "columns/")
"""What a run or a study recorded."""


def check_file(seed: int, originals: Path, folder: Path, worker: Worker) -> tuple[str, list[str]]:
    """Mutates one file and gives it to all that read it.

    Args:
        seed: decides on file and mutation.
        originals: the good files.
        folder: of its own; it is made and removed.
        worker: executes the commands.

    Returns:
        What was done to which file, and the faults, a line each.
    """
    rng = np.random.default_rng([seed, 0])
    name = list(KINDS)[seed % len(KINDS)]
    shutil.copytree(originals, folder)
    with h5py.File(folder / "elsewhere.h5", "w") as file:
        file["secret"] = np.full(4, 0.5)
    (folder / "elsewhere.bin").write_bytes(bytes(10_000))
    path = folder / name
    told = f"{name}: {mutate(path, rng)}"
    damaged = path.read_bytes()
    faults, ends = [], {}
    for arguments, allowed in _commands(name, KINDS[name], plot=seed % 3 == 0):
        outcome = worker.run(arguments, folder)
        ends[arguments[0]] = outcome
        fault = outcome.fault(allowed)
        if fault:
            faults.append(f"{' '.join(arguments)}: {fault}")
        if (
            arguments[0] in ("info", "validate", "plot", "check", "export")
            and path.read_bytes() != damaged
        ):
            faults.append(f"{' '.join(arguments)}: changed the file")
        # What continues a file changes it, and parts go once their analysis is whole.
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(damaged)
        if outcome.crash == "hang":  # the others would each take as long
            break
    faults += _contradictions(ends)
    if ends["validate"].code == 0:
        faults += _other_rows(path, originals / name)
    shutil.rmtree(folder)
    return told, faults


def _commands(name: str, kind: str, *, plot: bool) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Command lines that read a file, with the exit codes that they may end with."""
    yield ["validate", name], (0, 1, 2)
    yield ["info", name], (0, 2)
    yield ["info", name, "--json"], (0, 2)
    run, problem = name, []
    if kind == "recorded run":
        problem = ["--problem", "own.py:setup"]
    if kind in ("spectrum", "bifurcations"):
        run = "run.h5"
    if kind in ("run", "recorded run"):
        yield ["spectrum", run, *problem, *SPECTRUM, "-o", "new.spectrum.h5"], (0, 2)
        yield ["bifurcations", run, *problem, *BIFURCATIONS, "-o", "new.bifurcations.h5"], (0, 2)
    if kind in ("run", "recorded run", "bifurcations"):
        yield ["check", run, *problem, "--every", "10", "--quiet"], (0, 2)
    if kind == "run":
        yield ["train", "--resume", "-o", run, "--quiet"], (0, 2, 3)
    if kind == "study":
        yield ["sweep", "study.toml", "--resume", "--processes", "1", "--quiet"], (0, 2)
    if kind == "part":
        yield ["spectrum", "part.h5", *SPECTRUM, "--resume"], (0, 2)
    if kind in ("run", "recorded run", "spectrum", "bifurcations", "study"):
        yield ["export", name, "-o", "x.nc"], (0, 2)
        yield ["export", name, "-o", "x.csv"], (0, 2)
    if plot and kind in ("run", "spectrum", "bifurcations", "study"):
        yield ["plot", run], (0, 2)
    yield ["repair", name], (0, 1, 2)


def _contradictions(ends: dict[str, Outcome]) -> list[str]:
    """A file cannot be valid to one command and damaged to another."""
    if ends["validate"].code != 0:
        return []
    return [
        f"validate says valid, {command}: {outcome.stderr.strip()[-200:]}"
        for command, outcome in ends.items()
        if outcome.code == 2 and "is damaged" in outcome.stderr
    ]


def _other_rows(path: Path, original: Path) -> list[str]:
    """Rows of a file that was called valid which are not those that were written."""
    faults = []
    with h5py.File(path, "r") as file, h5py.File(original, "r") as whole:
        names: list[str] = []
        whole.visit(names.append)
        for name in names:
            expected = whole[name]
            if not name.startswith(ROWS) or not isinstance(expected, h5py.Dataset):
                continue
            found = file.get(name)
            if not isinstance(found, h5py.Dataset):
                faults.append(f"validate says valid, but /{name} is not there")
                continue
            if not _agree(np.asarray(found), np.asarray(expected)):
                faults.append(f"validate says valid, but /{name} has other rows")
    return faults


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether the rows that both arrays have are the same, bit for bit."""
    if not found.ndim or not expected.ndim:
        return found.tobytes() == expected.tobytes()
    both = min(len(found), len(expected))
    return found[:both].tobytes() == expected[:both].tobytes()
