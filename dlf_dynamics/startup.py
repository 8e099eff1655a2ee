"""What a command does before JAX starts: checks files, chooses threads and precision."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import ConfigError, FileError, one_line
from dlf_dynamics.hdf5 import dataset_at, require_replaceable
from dlf_dynamics.runfile import open_file

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

_ONE_THREAD_SIZE = 5_000_000
"""Examples times parameters up to which one thread is faster than two (see architecture.md)."""


def problem_size(config: RunConfig) -> float:
    """Approximate number of examples times parameters; infinite if it is not known yet."""
    if config.data.name in ("npz", "mnist", "cifar10") or config.model.name != "fully-connected":
        return float("inf")
    examples = config.data.points_per_class * config.data.num_classes
    examples = 1797 if config.data.name == "digits" else examples
    inputs = 64 if config.data.name == "digits" else 3
    outputs = 10 if config.data.name == "digits" else config.data.num_classes
    sizes = (inputs, *config.model.widths, config.model.outputs or outputs)
    weights = sum(a * b for a, b in itertools.pairwise(sizes))
    return min(examples, config.batch_size or examples) * weights


_MOST_DEVICES = 16
"""Largest number of cores that become devices, unless the user gives a number."""


_MOST_THREADS = 4096
"""More than any machine has; XLA would try to start any number of threads."""


def start_jax(
    dtype: str, threads: int, size: float, *, many: bool = False, devices: int = 0
) -> None:
    """Sets everything that must be set before JAX starts: threads, devices and precision.

    Matrix products use the full precision of their type, also on GPUs, which round float32
    otherwise.

    Args:
        dtype: type of the computation.
        threads: number of CPU threads, at most `_MOST_THREADS`; 0 chooses one for small problems
            and all cores for others.
        size: size of the problem, examples times parameters.
        many: whether there is independent work at many checkpoints; for small problems, each core
            is then a device.
        devices: number of devices; 0 uses all GPUs, or the parts of a CPU that suit the problem.

    Raises:
        ConfigError: when the number of threads or devices is out of range.
    """
    if not 0 <= devices <= _MOST_THREADS:
        raise ConfigError(f"devices is {devices}; expected at least 0 and at most {_MOST_THREADS}")
    if not 0 <= threads <= _MOST_THREADS:
        raise ConfigError(f"threads is {threads}; expected at least 0 and at most {_MOST_THREADS}")
    import jax

    if devices:
        _use_devices(devices)
        threads = threads or max(1, _num_cores() // devices)
    chosen = cast(Any, jax.config).jax_num_cpu_devices  # not in the stubs of every version
    if many and size <= _ONE_THREAD_SIZE and chosen < 1:
        cores = threads or _num_cores()
        with suppress(RuntimeError):  # JAX has started already, as the caller is a Python program
            jax.config.update("jax_num_cpu_devices", min(cores, _MOST_DEVICES))
        threads = 1
    # XLA's CPU client reads NPROC; only --threads overrides a value in the user's environment.
    if threads:
        os.environ["NPROC"] = str(threads)
    elif size <= _ONE_THREAD_SIZE:
        os.environ.setdefault("NPROC", "1")
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_default_matmul_precision", "highest")


def _use_devices(count: int) -> None:
    """Gives JAX this many devices: GPUs if there are any, else parts of the CPU."""
    import jax

    with suppress(RuntimeError):  # JAX has started already, as the caller is a Python program
        jax.config.update("jax_num_cpu_devices", count)
        for flag in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(flag, ",".join(map(str, range(count))))


def _require_devices(count: int) -> None:
    import jax

    known = jax.local_device_count()
    if known < count:
        raise ConfigError(f"devices is {count}; expected at most {known}, as many as JAX has here")


def _join_processes() -> None:
    """Makes this process one of several whose devices are used together.

    Raises:
        ConfigError: when the other processes are not known or cannot be reached.
    """
    import jax

    numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    try:
        count, process_id = (None if number is None else int(number) for number in numbers)
        jax.distributed.initialize(num_processes=count, process_id=process_id)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes did not meet ({one_line(error)}); expected them to be started by "
            "Slurm, Open MPI or Kubernetes, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
            "JAX_PROCESS_ID in the environment"
        ) from error


def leads() -> bool:
    """Whether this process writes and prints; a single process does."""
    import jax

    return jax.process_index() == 0


def wait_for_others(where: str) -> None:
    """Waits until all processes have reached this point."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(where)


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # on Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_recorded(
    path: Path,
    threads: int,
    problem: str | None = None,
    *,
    devices: int = 0,
    distributed: bool = False,
) -> Run:
    """Opens a run after starting JAX with the settings that suit it.

    Args:
        path: path of the run file.
        threads: number of threads; see `start_jax`.
        problem: `module:function` for a run that a custom training loop recorded.
        devices: number of devices; see `start_jax`.
        distributed: whether this is one of several processes; see `_join_processes`.
    """
    with open_file(path) as file:
        parameters = dataset_at(file, "parameters/value")
        dtype, num_params = parameters.dtype.name, parameters.shape[1]
        targets = file.get("data/targets")
        examples = float("inf") if targets is None else len(targets)  # type: ignore[arg-type]
    start_jax(dtype, threads, num_params * examples, many=True, devices=devices)
    if distributed:
        _join_processes()
    _require_devices(devices)
    from dlf_dynamics.loop import load_setup
    from dlf_dynamics.opening import open_run

    return open_run(path, None if problem is None else load_setup(problem))


def recorded_config(path: Path) -> RunConfig:
    """The configuration in a run file.

    Raises:
        FileError: when the file or its configuration cannot be read.
    """
    from dlf_dynamics.opening import open_run

    return open_run(path).config


def require_distinct(paths: Sequence[Path]) -> None:
    """Refuses a file that is named twice, even by another path or a link.

    Raises:
        ConfigError: when a file is.
    """
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # reported when the file is opened
            continue
        first = seen.setdefault((status.st_dev, status.st_ino), path)
        if first is not path:
            other = "" if str(first) == str(path) else f", also as {first}"
            raise ConfigError(f"{path} is named twice{other}; expected each file once")


def check_writable(path: Path) -> None:
    """Refuses an output that could not be written, before any work is done.

    Raises:
        FileError: when the directory does not exist, or write permission is missing.
    """
    require_replaceable(path)
    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: directory {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path} cannot be written: no write permission in {path.parent}")
