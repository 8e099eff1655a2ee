"""`Parts`: what is finished of a long analysis, kept so that it can go on after a kill."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dlf_dynamics.codec import Arrays, Record, decode, encode
from dlf_dynamics.errors import FileError, StaleError
from dlf_dynamics.hdf5 import ContentError, content_of, write_error
from dlf_dynamics.resultfile import FORMAT, Result, read, write

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

_ANEW = "leave --resume out to start anew"
_FORMAT = dataclasses.replace(FORMAT, remedy=_ANEW)

Part = TypeVar("Part")


class Parts:
    """Finished parts of a long analysis, each a result file, in a folder beside what they become.

    A killed analysis leaves the parts that were finished. They are used again if they are of the
    same run in the same state, and of the same settings, and hold what the analysis makes.
    """

    def __init__(
        self,
        folder: Path | None,
        analysis: str = "",
        run: Run | None = None,
        config: Any = None,
        *,
        kept: bool = True,
    ):
        """Parts of an analysis of a run; without a folder, they are made each time.

        Where they are not kept, as another process keeps them, those that are there now are used.
        """
        self._folder = folder
        self._there = None if kept or folder is None else set(folder.glob("*.h5"))
        self._analysis = f"{analysis} part"
        self._run = run
        self._config = json.loads(json.dumps(config))

    def outdated(self) -> str | None:
        """Why the parts that are there cannot be used for the run as it is now; none if they can.

        Raises:
            FileError: when they cannot be read.
        """
        if self._folder is None:
            return None
        for path in sorted(self._folder.glob("*.h5")):
            try:
                self._read(path)
            except StaleError as error:
                return error.found
        return None

    def of_other_settings(self) -> bool:
        """Whether there are parts that were made with other settings."""
        if self._folder is None:
            return False
        paths = self._folder.glob("*.h5")
        return any(self._read(path).config != self._config for path in paths)

    def _read(self, path: Path) -> Result:
        found = read(path, self._analysis, None)
        if self._run is not None:
            found.source.require(self._run, f"what is in {self._folder}", _ANEW)
        return found

    def get_or_make(
        self, name: str, make: Callable[[], Arrays], parse: Callable[[Arrays], Part]
    ) -> Part:
        """The part of this name, from its file or made now and kept.

        Args:
            name: of the part.
            make: computes its arrays.
            parse: what they are; raises where they cannot be what `make` gives. A digest tells
                only that nothing changed since some program wrote them.

        Raises:
            FileError: when the file is of other settings, or does not hold this part.
            StaleError: when it is of another run, or another state of it.
        """  # noqa: DOC501
        if self._folder is None or self._run is None:
            return parse(make())
        path = self._folder / f"{name}.h5"
        if path.exists() if self._there is None else path in self._there:
            found = self._read(path)
            if found.config != self._config:
                raise FileError(f"{self._folder} holds parts of other settings; {_ANEW}")
            with content_of(path, _FORMAT):
                return parse(found.arrays)
        arrays = make()
        if self._there is not None:
            return parse(arrays)
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(self._folder, error) from error
        try:
            write(path, Result(self._analysis, self._run.source, self._config, "{}", arrays))
        finally:
            with suppress(OSError):
                self._folder.rmdir()  # it stays unless it is empty, no part having been written
        return parse(arrays)

    def clear(self) -> None:
        """Deletes the parts."""
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.glob("*.h5*"):
                path.unlink()
            self._folder.rmdir()


class Remembered(Parts):
    """Parts in memory, of a run that grows: what it was is used again, what was added is made.

    The name of a part and its length tell what it is of, so those of a round are those of the next
    but for the last one.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._known: dict[str, Arrays] = {}
        self._used: dict[str, Arrays] = {}

    def next_round(self, *, anew: bool) -> None:
        """Forgets what the last round did not use; or, anew, everything."""
        self._known, self._used = ({} if anew else self._used), {}

    def get_or_make(
        self, name: str, make: Callable[[], Arrays], parse: Callable[[Arrays], Part]
    ) -> Part:
        """The part of this name as it was made before, if it is what is asked for; else anew."""
        if name in self._known:
            with suppress(ContentError):
                found = parse(self._known[name])
                self._used[name] = self._known[name]
                return found
        arrays = make()
        self._used[name] = arrays
        return parse(arrays)


def in_parts(
    kind: type[Record],
    compute: Callable[[np.ndarray], Record],
    chosen: Sequence[int] | np.ndarray,
    length: int,
    name: str,
    parts: Parts,
    progress: Callable[[int], None],
    axis: str = "checkpoints",
) -> Record:
    """What `compute` gives for all checkpoints, some at a time, each part kept when it is done.

    The arrays of the record have a row for each checkpoint, along an axis of that name.
    """
    found: list[Record] = []
    for start in range(0, len(chosen), length):
        some = np.asarray(chosen[start : start + length])

        def parse(arrays: Arrays, count: int = len(some)) -> Record:
            return _like(decode(kind, arrays, {axis: count}), found)

        make = lambda some=some: encode(compute(some))  # noqa: E731
        found.append(parts.get_or_make(f"{name}-{len(found)}", make, parse))
        progress(start + len(some))
    return concatenate(found)


def _like(record: Record, others: Sequence[Record]) -> Record:
    """The record, if its rows and settings are of one form with those of the first of the others.

    Raises:
        ContentError: when they are not.
    """
    for other in others[:1]:
        for name, value in vars(other).items():
            mine = getattr(record, name)
            one = (mine.shape[1:], value.shape[1:]) if isinstance(value, np.ndarray) else ()
            if (one and one[0] != one[1]) or (not one and mine != value):
                raise ContentError(f"{name} is not of one form with that of the other parts")
    return record


def concatenate(records: Sequence[Record]) -> Record:
    """Dataclasses of equal settings as one, their arrays joined along the first axis."""
    first: Any = records[0]
    names = [name for name, value in vars(first).items() if isinstance(value, np.ndarray)]
    joined = {name: np.concatenate([getattr(r, name) for r in records]) for name in names}
    return dataclasses.replace(first, **joined)
