"""`sweep`: does all runs of a study and keeps their outcomes in its file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from dlf_dynamics.analysis.studies import jobs
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults, create, read_study, reopen
from dlf_dynamics.datasets import load_dataset, require_trainable
from dlf_dynamics.errors import ConfigError

_BATCH_ON_ACCELERATOR = 32
"""Runs that are trained together on a GPU; on a CPU that gains nothing (docs/architecture.md)."""


def sweep(
    study: Study,
    path: str | Path,
    *,
    processes: int = 0,
    batch: int = 0,
    scheduler: str | None = None,
    resume: bool = False,
    retry_failed: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> StudyResults:
    """Does the remaining runs of a study.

    Outcomes do not depend on where and in which order runs are done; only `seconds` does.

    Args:
        study: its runs and measures.
        path: path of the study file.
        processes: how many on this machine; 0 chooses one per core, one if JAX computes on a GPU.
        batch: runs that are trained together; 0 chooses 1 on a CPU, 32 on a GPU.
        scheduler: address of a Dask scheduler, whose workers do the runs instead.
        resume: whether to go on with a file that was begun.
        retry_failed: whether to do again what failed there.
        overwrite: whether to replace a file.
        progress: told the number of runs done.
        stop: called from time to time; when it returns true, the rest is left to be resumed.

    Raises:
        ConfigError: for wrong options, or when the scheduler cannot be reached.
        DataError: when the data of a run cannot be read.
        FileError: when the file exists, is of another study or cannot be written, or another
            process writes it.
    """
    for name, value in (("processes", processes), ("batch", batch)):
        if value < 0:
            raise ConfigError(f"{name} is {value}; expected at least 0")
    for data in {config.data for config in study.configs}:
        dataset = load_dataset(data)  # an error in a file is reported before anything starts
        for needs in {(c.model.outputs, c.dtype) for c in study.configs if c.data == data}:
            require_trainable(dataset, *needs)
    path = Path(path)
    if resume and path.exists():
        writer = reopen(path, study, retry_failed=retry_failed)
    else:
        writer = create(path, study, overwrite=overwrite)
    with writer:
        left = [index for index in range(len(study.configs)) if index not in writer.done]
        progress(len(writer.done))
        for job, outcomes in _done(study, left, processes, batch, scheduler, stop):
            for index, outcome in zip(job.indices, outcomes, strict=True):
                writer.append(index, outcome)
            progress(len(writer.done))
    return read_study(path)


def _done(
    study: Study,
    left: list[int],
    processes: int,
    batch: int,
    scheduler: str | None,
    stop: Callable[[], bool],
) -> Iterator[jobs.Done]:
    """The remaining runs, as they are finished."""
    if not left:
        return iter(())
    if scheduler is not None:
        made = jobs.jobs_of(study, left, batch or 1)
        return jobs.on_cluster(made, study.measures, scheduler, stop)
    accelerated = _has_accelerator()
    made = jobs.jobs_of(study, left, batch or (_BATCH_ON_ACCELERATOR if accelerated else 1))
    width = min(processes or (1 if accelerated else os.cpu_count() or 1), len(made))
    if width == 1:
        return jobs.in_this_process(made, study.measures, stop)
    return jobs.in_processes(made, study.measures, width, stop)


def _has_accelerator() -> bool:
    import jax

    return jax.default_backend() != "cpu"
