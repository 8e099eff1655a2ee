"""Jobs of a study, and where they are done: in this process, in several, or on a Dask cluster."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, NamedTuple, cast

from dlf_dynamics.analysis.studies.outcome import Outcome
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.workers import begin_deaf, deaf
from dlf_dynamics.configfile import from_json, to_json
from dlf_dynamics.errors import ConfigError, UserError
from dlf_dynamics.startup import start_jax

_ASK_SECONDS = 0.2
"""Seconds between two checks whether to stop."""

_GRACE_SECONDS = 1.0
"""Seconds for jobs to end once asked to stop; unfinished ones are repeated when resumed. Compiling
may take much longer, and cannot be stopped."""

Stop = Callable[[], bool]


class Job(NamedTuple):
    """Runs that are trained together.

    Attributes:
        indices: numbers of the runs in the study.
        configs: configurations of the runs, as JSON.
        dtype: type of the numbers of the runs.
    """

    indices: tuple[int, ...]
    configs: tuple[str, ...]
    dtype: str


Done = tuple[Job, list[Outcome]]


def jobs_of(study: Study, left: Sequence[int], batch: int) -> list[Job]:
    """Runs of one form and of the same data next to each other, at most `batch` in a job."""
    from dlf_dynamics.analysis.studies.ensemble import common_form

    configs = study.configs
    forms: dict[Any, list[int]] = {}
    for index in left:
        forms.setdefault(common_form(configs[index]), []).append(index)
    groups = [
        tuple(same[start : start + batch])
        for same in forms.values()
        for start in range(0, len(same), batch)
    ]
    return [
        Job(group, tuple(to_json(configs[i]) for i in group), configs[group[0]].dtype)
        for group in groups
    ]


def work(job: Job, measures: Measures, stop: Stop = lambda: False) -> list[Outcome] | None:
    """Does a job in this process; none when it was stopped.

    After an error the runs are done again one by one, and an error of a single run is its outcome.
    """
    from dlf_dynamics.analysis.studies.ensemble import Stopped
    from dlf_dynamics.analysis.studies.histories import measure

    start_jax(job.dtype, 1, 0)
    try:
        return measure([from_json(config) for config in job.configs], measures, stop)
    except Stopped:
        return None
    except Exception as error:
        if len(job.configs) == 1:
            return [failed(error)]
    singles = [
        work(Job((i,), (c,), job.dtype), measures, stop)
        for i, c in zip(job.indices, job.configs, strict=True)
    ]
    done = [outcomes[0] for outcomes in singles if outcomes is not None]
    return done if len(done) == len(singles) else None


def failed(error: BaseException | str) -> Outcome:
    """The outcome of a run that ended with an error."""
    if isinstance(error, UserError | str):
        return Outcome("failed", str(error))
    lines = str(error).strip().splitlines() or [""]
    return Outcome("failed", f"{type(error).__name__}: {lines[0]}")


def in_this_process(jobs: Sequence[Job], measures: Measures, stop: Stop) -> Iterator[Done]:
    """Does one job after the other, in a thread that is abandoned if it does not stop in time."""
    thread = ThreadPoolExecutor(1)
    try:
        for job in jobs:
            outcomes = None if stop() else _in_time(thread.submit(work, job, measures, stop), stop)
            if outcomes is None:
                return
            yield job, outcomes
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


def _in_time(future: Future[Any], stop: Stop) -> list[Outcome] | None:
    """The outcomes of a job; none when they are not there soon after the request to stop."""
    while not stop():
        with suppress(TimeoutError):
            return future.result(_ASK_SECONDS)
    with suppress(TimeoutError):
        return future.result(_GRACE_SECONDS)
    return None


def in_processes(
    jobs: Sequence[Job], measures: Measures, processes: int, stop: Stop
) -> Iterator[Done]:
    """Does jobs in processes of this machine, each with one thread.

    When a process is killed, for example by the system when memory runs out, the jobs in work are
    repeated one by one; a job whose process is killed again has failed.
    """
    left, width = deque(jobs), processes
    suspects: deque[Job] = deque()
    while (left or suspects) and not stop():
        queue, width = (suspects, 1) if suspects else (left, processes)
        in_work: list[Job] = []
        try:
            yield from _pooled(queue, in_work, measures, width, stop)
        except BrokenProcessPool:
            if width == 1 and queue is suspects:
                lost = in_work.pop()
                yield lost, [failed("its process was killed, twice") for _ in lost.indices]
            suspects.extend(in_work)


def _pooled(
    queue: deque[Job], in_work: list[Job], measures: Measures, width: int, stop: Stop
) -> Iterator[Done]:
    """Takes jobs from the queue, `width` at a time; `in_work` are those that were begun."""
    context = multiprocessing.get_context("spawn")
    wish, end = context.Event(), math.inf
    pool = ProcessPoolExecutor(width, context, _listen_to, (wish,))
    futures: dict[Future[Any], Job] = {}
    others = set(multiprocessing.active_children())
    try:
        while (queue or futures) and time.monotonic() < end:
            while queue and len(futures) < width and not wish.is_set():
                job = queue.popleft()
                in_work.append(job)
                with deaf():  # a process that begins now is born so
                    futures[pool.submit(_work_until_wish, job, measures)] = job
            done, _ = wait(futures, _ASK_SECONDS, FIRST_COMPLETED)
            for future in done:
                outcomes, job = future.result(), futures.pop(future)
                in_work.remove(job)
                if outcomes is not None:
                    yield job, outcomes
            if stop() and not wish.is_set():
                wish.set()
                queue.clear()
                end = time.monotonic() + _GRACE_SECONDS
    finally:
        wish.set()
        if futures:  # a second Ctrl-C, or the grace is over
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(cancel_futures=True)


_wish: Any = None


def _listen_to(wish: Any) -> None:
    """Begins a process of the pool, which hears of a wish to stop from its parent."""
    global _wish
    _wish = wish
    begin_deaf()


def _work_until_wish(job: Job, measures: Measures) -> list[Outcome] | None:
    return work(job, measures, _wish.is_set)


def on_cluster(jobs: Sequence[Job], measures: Measures, address: str, stop: Stop) -> Iterator[Done]:
    """Does jobs on the workers of a Dask cluster, which need this package, too.

    Dask gives the jobs of a lost worker to others; a job that loses several workers has failed.

    Raises:
        ConfigError: when Dask is not installed or the scheduler cannot be reached.
    """
    try:
        from distributed import Client, wait
    except ImportError as error:
        raise ConfigError(
            "--scheduler needs dask.distributed; install it with pip install 'dlf-dynamics[dask]'"
        ) from error
    try:
        client = Client(address, timeout=10)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigError(
            f"the Dask scheduler at {address!r} cannot be reached; expected an address such as "
            "tcp://host:8786"
        ) from error
    with client:
        futures = {client.submit(work, job, measures, pure=False): job for job in jobs}
        while futures and not stop():
            try:
                done, _ = cast(Any, wait(list(futures), _ASK_SECONDS, "FIRST_COMPLETED"))
            except TimeoutError:
                continue
            for future in done:
                job, error = futures.pop(future), future.exception()
                yield job, [failed(error)] * len(job.indices) if error else future.result()
        client.cancel(list(futures))
