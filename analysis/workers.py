"""Processes and threads that work beside this one, leave Ctrl-C to it and end with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import wait
from threading import Thread
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Submit = Callable[..., Future[Any]]


@contextmanager
def deaf() -> Iterator[None]:
    """This thread, and processes that it starts, hear signals only afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_deaf() -> None:
    """Begins a process of a pool. Ctrl-C reaches it, too; the parent decides what it means.

    One whose parent was killed would wait for more work for ever; it ends with it.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def workers(count: int) -> Iterator[Submit]:
    """A function that hands work to so many processes, as `Executor.submit` does.

    What is not finished at the end of the block is given up.
    """
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), begin_deaf)
    others, futures = set(multiprocessing.active_children()), list[Future[Any]]()

    def submit(function: Callable[..., Any], *given: Any) -> Future[Any]:
        with deaf():  # a process that begins now is born so
            futures.append(pool.submit(function, *given))
        return futures[-1]

    try:
        yield submit
    finally:
        if not all(future.done() for future in futures):
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
        pool.shutdown(cancel_futures=True)


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Does the work in a thread of its own while the block lasts, and waits for it at the end.

    It gains time if the work leaves the interpreter alone, as XLA does while it compiles. What it
    raises is raised at the end of the block. Where the block itself fails, as by Ctrl-C, nothing
    waits for the work, which goes on to its end.
    """
    pool = ThreadPoolExecutor(1)
    done = pool.submit(work)
    try:
        yield
        done.result()
    finally:
        pool.shutdown(wait=False)
