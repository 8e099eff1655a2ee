"""SIGKILL at any moment: what is on disk is a prefix, and `--resume` ends bit for bit the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from originals import STUDY, TRAIN
from worker import ROOT, Worker, environment

PROGRAM = [sys.executable, "-m", "dlf_dynamics.cli"]
VARYING = ("provenance", "columns/seconds", "checksum", "checksums/resume")
"""What is not the same in two runs of one program."""

LONG_RUN = [*TRAIN]
LONG_RUN[LONG_RUN.index("--steps") + 1] = "30000"


@dataclass(frozen=True)
class Work:
    """A command that takes some seconds.

    Attributes:
        command: as it is started.
        resume: goes on with it after a kill; none where nothing can.
        output: the file that it writes.
        inputs: files of a folder of good ones that it needs.
    """

    command: list[str]
    resume: list[str] | None
    output: str
    inputs: tuple[str, ...] = ()


WORK = {
    "train": Work(
        [*PROGRAM, "train", "-o", "new.h5", *LONG_RUN],
        [*PROGRAM, "train", "--resume", "-o", "new.h5", "--quiet"],
        "new.h5",
    ),
    "spectrum": Work(
        [*PROGRAM, "spectrum", "long.h5", "--no-figures", "--quiet"],
        [*PROGRAM, "spectrum", "long.h5", "--no-figures", "--quiet", "--resume"],
        "long.spectrum.h5",
        ("long.h5",),
    ),
    "bifurcations": Work(
        [*PROGRAM, "bifurcations", "long.h5", "--no-figures", "--quiet"],
        [*PROGRAM, "bifurcations", "long.h5", "--no-figures", "--quiet", "--resume"],
        "long.bifurcations.h5",
        ("long.h5",),
    ),
    "sweep": Work(
        [*PROGRAM, "sweep", "many.toml", "--processes", "1", "--quiet"],
        [*PROGRAM, "sweep", "many.toml", "--processes", "1", "--quiet", "--resume"],
        "many.h5",
        ("many.toml",),
    ),
    "record": Work([sys.executable, "own.py", "new.h5", "6000", "3"], None, "new.h5", ("own.py",)),
}
_LOCK = threading.Lock()
_references: dict[str, tuple[Path, float]] = {}


def check_kill(seed: int, originals: Path, folder: Path, worker: Worker) -> tuple[str, list[str]]:
    """Kills one command at a random moment, looks at what it left, and resumes it.

    Args:
        seed: decides on command and moment.
        originals: good files; what all kills share is made there the first time.
        folder: of its own; it is made and removed.
        worker: executes the commands that look.

    Returns:
        What was killed and when, and the faults, a line each.
    """
    rng = np.random.default_rng([seed, 2])
    name = list(WORK)[seed % len(WORK)]
    work = WORK[name]
    reference, seconds = _reference(name, originals)
    _prepare(folder, originals, work)
    moment = rng.uniform(0.15, 1.0) * seconds
    process = _start(work.command, folder)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
    _, errors = process.communicate()
    told = f"{name}: killed after {moment:.2f} of about {seconds:.1f} s"
    faults = []
    if process.returncode not in (0, -9):
        faults.append(f"ended with {process.returncode}: {errors[-500:]}")
    output = folder / work.output
    if output.exists():
        faults += _prefix(output, reference)
        faults += _looked_at(work.output, folder, worker)
    if work.resume is not None and not faults:
        faults += _resumed(work, output, reference, folder)
    shutil.rmtree(folder)
    return told, faults


def _reference(name: str, originals: Path) -> tuple[Path, float]:
    """The output of a command that was not killed, and how long it took."""
    with _LOCK:
        if name not in _references:
            for compiled in (False, True):  # the second time, programs are
                folder = originals.parent / f"reference-{name}-{compiled}"
                _prepare(folder, originals, WORK[name])
                start = time.monotonic()
                process = _start(WORK[name].command, folder)
                _, errors = process.communicate()
                assert process.returncode == 0, errors
                _references[name] = folder / WORK[name].output, time.monotonic() - start
        return _references[name]


def _prepare(folder: Path, originals: Path, work: Work) -> None:
    """A folder with what a command needs; it is made the first time."""
    folder.mkdir()
    for name in work.inputs:
        if name == "long.h5" and not (originals / name).exists():
            command = [*PROGRAM, "train", "-o", str(originals / name), *LONG_RUN]
            environment = _environment(originals.parent)
            subprocess.run(command, check=True, env=environment, capture_output=True)
        if name == "many.toml":
            many = STUDY.replace("to = 1}", "to = 40}").replace("steps = 20", "steps = 1000")
            (folder / name).write_text(many)
        else:
            shutil.copy(originals / name, folder)


def _environment(scratch: Path) -> dict[str, str]:
    """Programs are compiled once for all, so that kills come while there is something to lose."""
    return environment() | {
        "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=_environment(folder.parent) | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _looked_at(name: str, folder: Path, worker: Worker) -> list[str]:
    """What `info`, `validate` and `repair` say of it."""
    faults = []
    for arguments, allowed in (
        (["info", name], (0,)),
        (["validate", name], (0, 1)),
    ):
        fault = worker.run(arguments, folder).fault(allowed)
        if fault:
            faults.append(f"{' '.join(arguments)}: {fault}")
    shutil.copy(folder / name, folder / "copy.h5")
    for arguments in (["repair", "copy.h5"], ["validate", "copy.h5"]):
        fault = worker.run(arguments, folder).fault((0,))
        if fault:
            faults.append(f"{' '.join(arguments)}: {fault}")
    return faults


def _prefix(path: Path, reference: Path) -> list[str]:
    """Rows that are not the first ones of the reference."""
    return _compared(path, reference, lambda found, whole: found == whole[: len(found)])


def _resumed(work: Work, output: Path, reference: Path, folder: Path) -> list[str]:
    command = work.resume
    if not output.exists() and output.suffixes == [".h5"]:
        command = work.command  # killed before there was anything to go on with
    assert command is not None
    process = _start(command, folder)
    _, errors = process.communicate()
    if process.returncode != 0:
        return [f"resuming ended with {process.returncode}: {errors[-500:]}"]
    return _compared(output, reference, lambda found, whole: found == whole)


def _compared(path: Path, reference: Path, equal: Callable[[bytes, bytes], bool]) -> list[str]:
    """Datasets of numbers that differ between two files."""
    faults: list[str] = []
    with h5py.File(reference, "r") as whole, _open(path) as file:

        def compare(name: str, expected: object) -> None:
            if (
                not isinstance(expected, h5py.Dataset)
                or name in VARYING
                or name.startswith("resume")
            ):
                return
            if expected.dtype.kind == "O" or name == "status":
                return
            found = file.get(name)
            if not isinstance(found, h5py.Dataset):
                faults.append(f"/{name} is not there")
            elif not equal(_rows(found, file).tobytes(), expected[()].tobytes()):
                faults.append(f"/{name} has other rows")

        whole.visititems(compare)
    return faults


def _rows(dataset: h5py.Dataset, file: h5py.File) -> np.ndarray:
    """The rows that are complete: those whose step, or run of a study, is on file."""
    name = (dataset.name or "").strip("/")
    if "run" in file and name != "configs" and dataset.ndim:
        return dataset[: int(np.sum(file["run"][()] >= 0))]
    if not _grows(dataset):
        return dataset[()]
    of_steps = name.startswith("scalars/") or name == "checksums/steps"
    axis = "scalars/step" if of_steps else "parameters/step"
    if axis not in file:  # a result, in which only axes without places could grow
        return dataset[()]
    return dataset[: min(len(dataset), len(file[axis]))]


def _grows(dataset: h5py.Dataset) -> bool:
    return (dataset.maxshape or ())[:1] == (None,)


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError:
        return h5py.File(path, "r", swmr=True)


assert os.name == "posix", "SIGKILL is POSIX's"
