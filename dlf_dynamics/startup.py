"""What a command does before JAX starts: looks at files, chooses threads and precision."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.hdf5 import dataset_at, require_replaceable
from dlf_dynamics.runfile import open_file

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

ONE_THREAD_SIZE = 5_000_000
"""Examples times parameters up to which one thread is faster than two (measured: architecture)."""


def problem_size(config: RunConfig) -> float:
    """Examples times parameters, roughly; infinite when it cannot be told yet."""
    if config.data.name in ("npz", "mnist", "cifar10") or config.model.name != "fully-connected":
        return float("inf")
    examples = config.data.points_per_class * config.data.num_classes
    examples = 1797 if config.data.name == "digits" else examples
    inputs = 64 if config.data.name == "digits" else 3
    outputs = 10 if config.data.name == "digits" else config.data.num_classes
    sizes = (inputs, *config.model.widths, config.model.outputs or outputs)
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    return min(examples, config.batch_size or examples) * weights


MOST_DEVICES = 16
"""Cores that are used at most as devices of their own."""


MOST_THREADS = 4096
"""More than any machine has; XLA would try to start as many as it is told."""


def start_jax(dtype: str, threads: int, size: float, *, many: bool = False) -> None:
    """Sets what must be set before JAX starts: threads, devices and precision.

    Args:
        dtype: of the computation.
        threads: of the CPU, at most `MOST_THREADS`; 0 chooses one for small problems and all for
            others.
        size: of the problem.
        many: whether there is independent work at many checkpoints. Small problems then have each
            core as a device of its own.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise ConfigError(f"threads is {threads}; expected at least 0 and at most {MOST_THREADS}")
    import jax

    chosen = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    if many and size <= ONE_THREAD_SIZE and chosen < 1:
        cores = threads or _num_cores()
        with suppress(RuntimeError):  # JAX has started: it is not the command line that calls
            jax.config.update("jax_num_cpu_devices", min(cores, MOST_DEVICES))
        threads = 1
    # XLA's CPU client reads it; a value in the user's environment gives way to --threads only.
    if threads:
        os.environ["NPROC"] = str(threads)
    elif size <= ONE_THREAD_SIZE:
        os.environ.setdefault("NPROC", "1")
    jax.config.update("jax_enable_x64", dtype == "float64")


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone tells
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_recorded(path: Path, threads: int, problem: str | None = None) -> Run:
    """The run, with JAX started as it needs it.

    Args:
        path: of the run file.
        threads: as in `start_jax`.
        problem: `module:function` of a run that a loop of one's own recorded.
    """
    with open_file(path) as file:
        parameters = dataset_at(file, "parameters/value")
        dtype, num_params = parameters.dtype.name, parameters.shape[1]
        targets = file.get("data/targets")
        examples = float("inf") if targets is None else len(targets)  # type: ignore[arg-type]
    start_jax(dtype, threads, num_params * examples, many=True)
    from dlf_dynamics.recording import load_setup
    from dlf_dynamics.run import open_run

    return open_run(path, None if problem is None else load_setup(problem))


def recorded_config(path: Path) -> RunConfig:
    """The configuration in a run file.

    Raises:
        FileError: when the file or its configuration cannot be read, or it has none.
    """
    from dlf_dynamics.run import open_run

    return open_run(path).config


def check_writable(path: Path) -> None:
    """Refuses an output that could not be written, before any work is done."""
    require_replaceable(path)
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: directory {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path} cannot be written: no write permission in {path.parent}")
