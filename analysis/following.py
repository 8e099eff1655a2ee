"""A run that is still being written, looked at again and again until it ends."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlf_dynamics.errors import FileError, counted
from dlf_dynamics.hdf5 import SIGNATURE
from dlf_dynamics.outputs import is_held
from dlf_dynamics.parts import Remembered
from dlf_dynamics.streams import say

if TYPE_CHECKING:
    from dlf_dynamics.analysis.pipeline import Analysis
    from dlf_dynamics.run import Run

_POLL_SECONDS = 0.2

_ON_ITS_WAY_SECONDS = 5.0
"""How long ago a file was written to at most that somebody may still be creating."""

_SHARE = 1.0
"""How long to wait after a look, as a part of the time that it took: half of a core goes to it."""


def awaited(path: Path, opened: Callable[[], Run]) -> Run:
    """The run, as soon as its file is there; that it is waited for is said.

    A file that cannot be opened is waited for, too, as long as it may be on its way: while it is
    empty or of HDF5, and was written to a moment ago, as by a program that copies it.

    Args:
        path: name of the run file.
        opened: opens it.

    Raises:
        FileError: when there is another file, or no folder for it.
    """
    told = False
    while True:
        try:
            return opened()
        except FileError:
            if not _may_come(path):
                raise
        if not told:
            say(f"waiting for run file {path}; Ctrl-C stops")
        told = True
        time.sleep(_POLL_SECONDS)


def _may_come(path: Path) -> bool:
    """Whether a run file that cannot be opened may be there, and whole, in a moment."""
    try:
        status = path.stat()
        if not path.is_file() or abs(time.time() - status.st_mtime) > _ON_ITS_WAY_SECONDS:
            return False
        with path.open("rb") as raw:
            return SIGNATURE.startswith(raw.read(len(SIGNATURE)))
    except FileNotFoundError:
        return path.parent.is_dir()
    except OSError:
        return False


def states(
    path: Path,
    opened: Callable[[], Run],
    *,
    stop: Callable[[], bool] = lambda: False,
    least: float = 1.0,
) -> Iterator[Run]:
    """The run each time that it has grown, the last time when its writer has ended.

    Args:
        path: name of the run file.
        opened: opens it.
        stop: whether to end after this look, asked while nothing happens.
        least: seconds between two looks at least.
    """
    run, began = opened(), time.monotonic()
    while True:
        ended = run.status != "running" or not is_held(path)
        if ended and run.status == "running":
            run = opened()  # what was written between the two
        yield run
        if ended or stop():
            return
        now = time.monotonic()
        wait = max(least, _SHARE * (now - began))
        while time.monotonic() - now < wait and not stop() and is_held(path):
            time.sleep(_POLL_SECONDS)
        if stop():
            return
        run, began = _grown(run, opened, path, stop), time.monotonic()


def _grown(run: Run, opened: Callable[[], Run], path: Path, stop: Callable[[], bool]) -> Run:
    """The run once it has more rows or another status, or nobody writes it."""
    seen = None  # it may have grown since it was opened
    while not stop():
        now, held = path.stat(), is_held(path)
        if seen != (now.st_mtime_ns, now.st_size) or not held:
            reopened = opened()
            if reopened.source != run.source or not held:
                return reopened
            seen = now.st_mtime_ns, now.st_size
        time.sleep(_POLL_SECONDS)
    return run


def latest(
    path: Path,
    opened: Callable[[], Run],
    analysis: Analysis[Any, Any],
    settings: Any,
    output: Path,
    *,
    stop: Callable[[], bool],
    after: Callable[[Run], None] = lambda run: None,
) -> tuple[Any, Run]:
    """What an analysis finds of a run each time that it has grown, written; the last of it.

    Args:
        path: name of the run file.
        opened: opens it.
        analysis: what to perform.
        settings: configuration of the analysis.
        output: the result file, written anew each time.
        stop: whether to end after the look that is being taken.
        after: called after each look with the run of which the result now is.

    Returns:
        What was found last, none where there was nothing yet; and the run of which it is.
    """
    remembered, result, before = Remembered(), None, None
    run = None
    for run in states(path, opened, stop=stop):
        if len(run.checkpoint_steps) == 0 and is_held(path):
            continue
        anew = before is not None and not goes_on(before, run)
        if anew:
            say(f"{path} was resumed or repaired; looking at all of it anew")
        remembered.next_round(anew=anew)
        result = analysis.performed(
            run,
            settings,
            output,
            work=lambda given, run=run: analysis.compute(
                run, settings, dataclasses.replace(given, parts=remembered)
            ),
        )
        before = run
        after(run)
        if run.status == "running":
            looked = counted(len(run.checkpoint_steps), "checkpoint")
            say(f"step {run.source.last_step:,}, {looked}: {analysis.now(result)}; wrote {output}")
    assert run is not None
    return result, run if before is None else before


def goes_on(before: Run, after: Run) -> bool:
    """Whether a run has what it had before, and perhaps more: not where it was resumed or repaired.

    A run that is resumed goes back to where it stopped; what was known of later steps is void.
    """
    if before.run_id != after.run_id or len(after.steps) < len(before.steps):
        return False
    count, steps = len(before.checkpoint_steps), len(before.steps)
    same = (
        (after.checkpoint_steps[:count] == before.checkpoint_steps).all()
        and (after.steps[:steps] == before.steps).all()
        and after.scalars["loss"][:steps].tobytes() == before.scalars["loss"].tobytes()
    )
    if not same or not count:
        return bool(same)
    last = [run.parameters([count - 1]).tobytes() for run in (before, after)]
    return last[0] == last[1]
