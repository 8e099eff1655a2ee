"""What all commands share: kinds of options, exit codes, lines for the person at the terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from dlf_dynamics.streams import fail as fail
from dlf_dynamics.streams import printable
from dlf_dynamics.streams import say as say

if TYPE_CHECKING:
    from rich.table import Table

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


class _Console(Console):
    """A terminal that shows the text of files and users as it is, and does not obey it."""

    def render_str(self, text: str, **options: Any) -> Text:
        shown = "\n".join(map(printable, text.split("\n")))
        return super().render_str(shown, **options)


def show(*results: str | Table) -> None:
    """Prints results on stdout, each from a new line."""
    console = _Console(markup=False, emoji=False, highlight=False)
    for result in results:
        # A line is a line, also in a pipe; tables keep to the width.
        console.print(result, soft_wrap=isinstance(result, str))


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
