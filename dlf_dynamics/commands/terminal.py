"""What all commands share: kinds of options, exit codes, lines for the person at the terminal."""

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
        help="Of a run that Recorder made: the function that returns its problem, optimizer and "
        "parameters, as module:function or file.py:function.",
        metavar="MODULE:FUNCTION",
    ),
]


def without(refused: Iterable[UserError]) -> int:
    """Says what is wrong with files without which all else was done; returns the exit code."""
    return max((fail(str(error), USER_ERROR) for error in refused), default=0)


def interruptible(work: Callable[[Stop], Any], again: str, *what: str) -> Any:
    """What the work returns; when it was interrupted, the exit code, once that was said.

    Args:
        work: given what tells whether to stop; it raises KeyboardInterrupt then.
        again: the command that goes on.
        what: the work does when it is to stop, if that is not to end the current chunk.
    """
    from dlf_dynamics.progress import Stop

    stop = Stop(*what)
    try:
        with stop.listening():
            return work(stop)
    except KeyboardInterrupt:
        code = 128 + (stop.signal or signal.SIGINT)
        return fail(f"interrupted; continue with `{again}` and the same options", code)
