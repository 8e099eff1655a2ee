"""What all commands share: kinds of options, exit codes, lines for the person at the terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    from dlf_dynamics.parts import Parts
    from dlf_dynamics.progress import Stop
    from dlf_dynamics.run import Run

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


@contextmanager
def kept_parts(
    output: Path, analysis: str, run: Run, settings: Any, *, resume: bool
) -> Iterator[Parts]:
    """The finished parts of an analysis, in a folder beside its output; none without `resume`.

    Output and parts are this process's to write while the block lasts.
    """
    from dlf_dynamics.outputs import hold
    from dlf_dynamics.parts import Parts
    from dlf_dynamics.resultfile import require_result
    from dlf_dynamics.startup import leads, wait_for_others

    folder = output.with_suffix(".parts")
    if not leads():
        wait_for_others("parts are cleared")
        parts = Parts(folder, analysis, run, settings, kept=False)
        wait_for_others("parts are known")
        yield parts
        return
    with hold(output), hold(folder):  # outputs that differ in their suffix share the folder
        require_result(output, analysis, run)
        parts = Parts(folder, analysis, run, settings)
        if resume and not folder.is_dir():
            say(f"nothing to resume in {folder}; starting anew")
        outdated = parts.outdated() if resume else None
        if outdated is not None:
            say(f"{outdated}; starting anew")
        if not resume or outdated is not None:
            parts.clear()
        wait_for_others("parts are cleared")
        wait_for_others("parts are known")
        yield parts
