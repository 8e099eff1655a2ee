"""Progress bars on the terminal, and a wish to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int], None]
"""Told how much of the work is done so far."""


@contextmanager
def bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """A progress bar with the time that is left, on stderr when that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, disable=quiet or not console.is_terminal, transient=True
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


class Stop:
    """Becomes true at the first Ctrl-C or SIGTERM; the second Ctrl-C interrupts at once.

    Attributes:
        signal: the number of the signal, 0 before it.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Takes both signals while it is entered."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._wish) for number in numbers]
        try:
            yield self
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
