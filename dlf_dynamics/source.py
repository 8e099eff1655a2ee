"""`Source`: the state of a run, by which a result knows what it is of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import h5py
from jaxtyping import Int

from dlf_dynamics.errors import StaleError
from dlf_dynamics.hdf5 import dataset_at
from dlf_dynamics.schema import STEP_OF

if TYPE_CHECKING:
    import numpy as np

    from dlf_dynamics.run import Run


class State(TypedDict):
    """How a run stood when it was analysed.

    Attributes:
        status: `running`, `complete`, `interrupted` or `diverged`.
        last_step: that was recorded; -1 before the first.
        checkpoints: number of them.
    """

    status: str
    last_step: int
    checkpoints: int


@dataclass(frozen=True)
class Source:
    """A run at one moment; equal for two moments between which nothing was recorded or changed.

    A run keeps its `run_id` when it is resumed or repaired.

    Attributes:
        run_id: unique to the run.
        status: `running`, `complete`, `interrupted` or `diverged`.
        last_step: that was recorded; -1 before the first.
        checkpoints: number of them.
        digest: of steps, losses, the checkpoints' steps and the last parameters. Two computers that
            continue copies of a run to the same step come to different numbers.
    """

    run_id: str
    status: str
    last_step: int
    checkpoints: int
    digest: str

    def __str__(self) -> str:
        return f"steps 0 to {self.last_step}, {self.checkpoints} checkpoints, {self.status}"

    @property
    def state(self) -> dict[str, str | int]:
        """Status, last step and number of checkpoints, JSON-ready."""
        return {name: getattr(self, name) for name in State.__annotations__}

    @property
    def caution(self) -> list[str]:
        """What is to be said of results of a run that was not finished, a line each."""
        if self.status != "running":
            return []
        return [
            f"the run was still being written, or its writer was killed: all of this is of steps 0 "
            f"to {self.last_step}"
        ]

    def require(self, run: Run, what: str, remedy: str) -> None:
        """Requires that the run is in this very state.

        Args:
            run: that is looked at now.
            what: is of this source, at the beginning of a sentence.
            remedy: what to do about it.

        Raises:
            StaleError: unless it is.
        """
        now = run.source
        if now == self:
            return
        if now.run_id != self.run_id:
            raise StaleError(f"{what} belongs to another run than {run.path}", remedy)
        found = f"{what} is of {run.path} when it had {self}; now it has {now}"
        if str(now) == str(self):
            found = f"{what} is of other numbers than {run.path} holds now"
        raise StaleError(found, remedy)


def source_of(
    file: h5py.File,
    status: str,
    steps: Int[np.ndarray, " steps"],
    checkpoints: Int[np.ndarray, " checkpoints"],
) -> Source:
    """The state of an open run file when it had these rows and checkpoints.

    The status must have been read before them: a run is complete when all of them are there.
    """
    digest = hashlib.sha256(steps.tobytes() + checkpoints.tobytes())
    if "scalars/loss/value" in file:
        digest.update(dataset_at(file, "scalars/loss/value")[: len(steps)].tobytes())
    if len(checkpoints):
        digest.update(dataset_at(file, "parameters/value")[len(checkpoints) - 1].tobytes())
    last = max((int(each[-1]) for each in (steps, checkpoints) if len(each)), default=-1)
    return Source(
        run_id=str(file.attrs["run_id"]),
        status=status,
        last_step=last,
        checkpoints=len(checkpoints),
        digest=digest.hexdigest(),
    )


def still_in(
    file: h5py.File,
    run_id: str,
    steps: Int[np.ndarray, " steps"],
    checkpoints: Int[np.ndarray, " checkpoints"],
) -> bool:
    """Whether an open run file has these rows and checkpoints of the run, and perhaps more.

    A run that is continued goes on where it stopped, which need not be where a checkpoint would
    have been; its last row and checkpoint give way then.
    """
    known = ((STEP_OF["steps"], steps), (STEP_OF["checkpoints"], checkpoints))
    return file.attrs["run_id"] == run_id and all(
        len(found) >= len(rows) and (len(rows) == 0 or found[len(rows) - 1] == rows[-1])
        for found, rows in ((dataset_at(file, path), rows) for path, rows in known)
    )
