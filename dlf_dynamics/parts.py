"""`Parts`: finished parts of a long analysis, kept so that it can continue after a kill."""

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
    """Finished parts of a long analysis, each a result file in a folder beside the final file.

    A killed analysis leaves its finished parts. They are reused if they belong to the same run in
    the same state and to the same settings, and their content is what the analysis makes.
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
        """Parts of an analysis of a run.

        Args:
            folder: folder of the parts; None makes each part anew and keeps none.
            analysis: name of the analysis.
            run: the run.
            config: settings of the analysis, JSON-ready.
            kept: whether to write new parts; if another process does, only the parts that exist now
                are used.
        """
        self._folder = folder
        self._there = None if kept or folder is None else set(folder.glob("*.h5"))
        self._analysis = f"{analysis} part"
        self._run = run
        self._config = json.loads(json.dumps(config))

    def outdated(self) -> str | None:
        """Why the existing parts do not fit the present state of the run; None if they do.

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
        """Whether some existing parts were made with other settings."""
        if self._folder is None:
            return False
        paths = self._folder.glob("*.h5")
        return any(self._read(path).config != self._config for path in paths)

    def _read(self, path: Path) -> Result:
        part = read(path, self._analysis, None)
        if self._run is not None:
            part.source.require(self._run, f"what is in {self._folder}", _ANEW)
        return part

    def get_or_make(
        self, name: str, make: Callable[[], Arrays], parse: Callable[[Arrays], Part]
    ) -> Part:
        """The part with this name, from its file, or else made now and kept.

        Args:
            name: name of the part.
            make: function that computes the arrays of the part.
            parse: function that converts the arrays to the part; it raises for arrays that `make`
                cannot have returned. (A digest shows only that nothing changed since some program
                wrote them.)

        Raises:
            FileError: when the file has other settings, or does not hold this part.
            StaleError: when it belongs to another run, or another state of it.
        """  # noqa: DOC501
        if self._folder is None or self._run is None:
            return parse(make())
        path = self._folder / f"{name}.h5"
        if self.holds(name):
            part = self._read(path)
            if part.config != self._config:
                raise FileError(f"{self._folder} holds parts of other settings; {_ANEW}")
            with content_of(path, _FORMAT):
                return parse(part.arrays)
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
                self._folder.rmdir()  # fails unless it is empty because no part was written
        return parse(arrays)

    def holds(self, name: str) -> bool:
        """Whether a part of this name is on file, with any settings."""
        if self._folder is None:
            return False
        path = self._folder / f"{name}.h5"
        return path.exists() if self._there is None else path in self._there

    def clear(self) -> None:
        """Deletes the parts."""
        if self._folder is not None and self._folder.is_dir():
            for path in self._folder.glob("*.h5*"):
                path.unlink()
            self._folder.rmdir()


class Remembered(Parts):
    """Parts in memory for a growing run: known parts are reused, new ones are made.

    A part is identified by its name and length, so all parts of a round but the last are the same
    in the next round.
    """

    def __init__(self) -> None:
        super().__init__(None)
        self._known: dict[str, Arrays] = {}
        self._used: dict[str, Arrays] = {}

    def next_round(self, *, anew: bool) -> None:
        """Forgets the parts that the last round did not use; with `anew`, all parts."""
        self._known, self._used = ({} if anew else self._used), {}

    def get_or_make(
        self, name: str, make: Callable[[], Arrays], parse: Callable[[Arrays], Part]
    ) -> Part:
        """The part with this name as made before, if it still fits; otherwise made anew."""
        if name in self._known:
            with suppress(ContentError):
                part = parse(self._known[name])
                self._used[name] = self._known[name]
                return part
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
    """The record that `compute` returns for all checkpoints, made and kept part by part.

    Args:
        kind: type of the record; its arrays have a row for each checkpoint.
        compute: function that makes the record of some checkpoints.
        chosen: indices of the checkpoints.
        length: number of checkpoints in a part.
        name: name of the parts.
        parts: where parts are kept.
        progress: called with the number of checkpoints done.
        axis: name of the axis of checkpoints in the arrays.
    """
    finished: list[Record] = []
    for start in range(0, len(chosen), length):
        some = np.asarray(chosen[start : start + length])

        def parse(arrays: Arrays, count: int = len(some)) -> Record:
            return _like(decode(kind, arrays, {axis: count}), finished)

        make = lambda some=some: encode(compute(some))  # noqa: E731
        finished.append(parts.get_or_make(f"{name}-{len(finished)}", make, parse))
        progress(start + len(some))
    return concatenate(finished)


def _like(record: Record, others: Sequence[Record]) -> Record:
    """The record, after checking that shapes of rows and settings equal those of the others.

    Raises:
        ContentError: when they differ.
    """
    for other in others[:1]:
        for name, value in vars(other).items():
            own = getattr(record, name)
            one = (own.shape[1:], value.shape[1:]) if isinstance(value, np.ndarray) else ()
            if (one and one[0] != one[1]) or (not one and own != value):
                raise ContentError(f"{name} is not of one form with that of the other parts")
    return record


def concatenate(records: Sequence[Record]) -> Record:
    """Joins dataclasses with equal settings: arrays are concatenated along the first axis."""
    first: Any = records[0]
    names = [name for name, value in vars(first).items() if isinstance(value, np.ndarray)]
    joined = {name: np.concatenate([getattr(r, name) for r in records]) for name in names}
    return dataclasses.replace(first, **joined)
