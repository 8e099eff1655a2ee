"""What all commands share: types of options, exit codes, messages to the user."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dlf_dynamics.cli import USER_ERROR
from dlf_dynamics.console import show as show
from dlf_dynamics.streams import fail as fail
from dlf_dynamics.streams import say as say

if TYPE_CHECKING:
    from dlf_dynamics.errors import UserError
    from dlf_dynamics.progress import Stop

DIVERGED, INVALID, CROSSED, UNDECIDED = 3, 1, 1, 4

Flattened = tyro.conf.arg(name="")
RunPath = tyro.conf.Positional[Path]
ProblemName = Annotated[
    str | None,
    tyro.conf.arg(
        help="For a run made by Recorder: the function that returns its problem, optimizer and "
        "parameters, as module:function or file.py:function.",
        metavar="MODULE:FUNCTION",
    ),
]


def without(refused: Iterable[UserError]) -> int:
    """Prints the errors of files that were left out; returns the exit code."""
    return max((fail(str(error), USER_ERROR) for error in refused), default=0)


def interruptible(work: Callable[[Stop], Any], again: str, *what: str) -> Any:
    """The result of some work; after an interruption, prints a message and returns the exit code.

    Args:
        work: function of `stop`, which tells whether to stop; it then raises KeyboardInterrupt.
        again: command that continues the work.
        what: what the work does when it stops, in words, if not finishing the current chunk.
    """
    from dlf_dynamics.progress import Stop

    stop = Stop(*what)
    try:
        with stop.listening():
            return work(stop)
    except KeyboardInterrupt:
        code = 128 + (stop.signal or signal.SIGINT)
        return fail(f"interrupted; continue with `{again}` and the same options", code)
