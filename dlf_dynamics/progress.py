"""Progress bars on the terminal, and signals that stop the work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType

from dlf_dynamics.streams import say


class Advance:
    """Shows how much of the work is done (call it) and what is going on, in words (`note`)."""

    def __init__(self, done: Callable[[int], None], note: Callable[[str], None]) -> None:
        self._done, self.note = done, note

    def __call__(self, done: int) -> None:
        """Shows that this much is done."""
        self._done(done)


_LONG = 2.0
"""Seconds after which an eigenvalue solve reports its progress."""

_PATIENCE = 1.0
"""Seconds that the main thread has to react to a signal."""


@contextmanager
def bar(what: str, total: int, *, quiet: bool = False) -> Iterator[Advance]:
    """A progress bar with the remaining time, on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True, markup=False)
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
        yield Advance(
            lambda done: progress.update(task, completed=done),
            lambda words: progress.update(task, description=f"{what}{words}"),
        )


class ProductMeter:
    """Describes the progress of long eigenvalue solves: products per second and remaining time.

    Call it with the number of products that the current solve has made.

    >>> clock = iter([0.0, 5.0, 10.0, 10.0, 20.0]).__next__
    >>> meter = ProductMeter(solves=2, most=100, clock=clock)
    >>> meter(0), meter(10)
    ('', ', 2 products/s, at most 0:01:35 left')
    >>> meter(20), meter(0), meter(5)
    (', 2 products/s, at most 0:01:30 left', ', 2 products/s, about 0:00:10 left', ...)
    """

    def __init__(
        self, solves: int, most: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._solves, self._most, self._clock = solves, most, clock
        self._finished: list[int] = []
        self._made = self._offset = 0
        self._start = self._solve_start = -1.0
        self._long = False

    def expect(self, solves: int) -> None:
        """Sets how many solves remain after the current one."""
        self._solves = solves + len(self._finished) + (self._start >= 0)

    def __call__(self, made: int) -> str:
        """The progress in words; empty as long as solves are short."""
        now = self._clock()
        if self._start < 0:
            self._start = self._solve_start = now
            self._offset = made
        elif made < self._made:
            self._finished.append(self._made)
            self._solve_start = now
        self._made = made
        self._long = self._long or now - self._solve_start >= _LONG
        total = sum(self._finished) + made - self._offset
        if not self._long or total <= 0:
            return ""
        rate = total / (now - self._start)
        known = bool(self._finished)
        usual = sum(self._finished) / len(self._finished) if known else self._most
        later = max(self._solves - len(self._finished) - 1, 0)
        seconds = (max(usual - made, 0) + later * usual) / rate
        left = timedelta(seconds=round(seconds))
        return f", {rate:.2g} products/s, {'about' if known else 'at most'} {left} left"


class Stop:
    """Becomes true at the first Ctrl-C or SIGTERM; the second interrupts at once.

    Python runs its handlers only between operations, so a thread also watches for signals while
    compiled code runs: it acknowledges the first one, and ends the process at the second one if the
    main thread does not react within a second. The third one ends the process in any case.

    Attributes:
        signal: number of the signal; 0 before it.
    """

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, what: str = "stopping after the current chunk") -> None:
        """Does not listen yet; see `listening`.

        Args:
            what: what the program does after the first signal, in words.
        """
        self.signal = 0
        self._what = what
        self._heard = 0
        self._over = threading.Event()

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.signal != 0

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Handles the signals within the block; only the main thread may enter it."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        watcher = threading.Thread(target=self._watch, args=(reading,), daemon=True)
        before = [signal.signal(number, self._handle) for number in self.numbers]
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        watcher.start()
        try:
            yield self
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(self.numbers, before, strict=True):
                signal.signal(number, handler)
            self._over.set()
            os.close(writing)
            watcher.join()
            os.close(reading)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal in the main thread, between two operations of Python."""
        again, self.signal = self.signal, number
        self._heard += 1
        if again:
            _interrupt(number, frame)

    def _watch(self, reading: int) -> None:
        """Watches for signals in another thread, whatever the main thread does."""
        seen = 0
        while number := os.read(reading, 1):
            if number[0] not in self.numbers:
                continue
            seen += 1
            if seen == 1:
                self._acknowledge()
                continue
            heard = self._heard_within(_PATIENCE, seen)
            if not heard or (seen > 2 and not self._over.wait(_PATIENCE)):
                _leave(number[0])

    def _acknowledge(self) -> None:
        say(f"dlf-dynamics: {self._what}; press Ctrl-C again to stop immediately")

    def _heard_within(self, seconds: float, signals: int) -> bool:
        """Whether the main thread handles this many signals within the given time."""
        end = time.monotonic() + seconds
        while self._heard < signals and time.monotonic() < end and not self._over.wait(0.02):
            pass
        return self._heard >= signals or self._over.is_set()


class Interruption(Stop):
    """Ctrl-C while there is nothing to finish: the first one interrupts at once."""

    numbers = (signal.SIGINT,)

    def __init__(self) -> None:
        super().__init__("stopping")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._heard += 1
        _interrupt(number, frame)

    def _acknowledge(self) -> None:
        if not self._heard_within(_PATIENCE, 1):
            super()._acknowledge()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, or ends the process during an import.

    A module that is being imported may swallow the exception: some print it and go on.

    Raises:
        KeyboardInterrupt: unless a module is being imported.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _leave(number)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(number: int) -> None:
    """Ends the process as a kill would; files are made to survive that."""
    with suppress(OSError):  # not to sys.stderr, which may have been redirected
        os.write(2, b"dlf-dynamics: interrupted; what was recorded or finished before is kept\n")
    os._exit(128 + number)
