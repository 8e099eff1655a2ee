"""`Source`: the state of a run to which a result belongs."""

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
    """The state of a run when it was analysed.

    Attributes:
        status: `running`, `complete`, `interrupted` or `diverged`.
        last_step: last recorded step; -1 before the first.
        checkpoints: number of checkpoints.
    """

    status: str
    last_step: int
    checkpoints: int


@dataclass(frozen=True)
class Source:
    """A run at one moment; equal at two moments if nothing was recorded or changed in between.

    A run keeps its `run_id` when it is resumed or repaired.

    Attributes:
        run_id: unique identifier of the run.
        status: `running`, `complete`, `interrupted` or `diverged`.
        last_step: last recorded step; -1 before the first.
        checkpoints: number of checkpoints.
        digest: digest of steps, losses, the checkpoints' steps and the last parameters. It tells
            apart copies of a run that two computers have continued to the same step.
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
        """Warnings about results of a run that was not finished, a line each."""
        if self.status != "running":
            return []
        return [
            f"the run was still being written, or its writer was killed: all of this is of steps 0 "
            f"to {self.last_step}"
        ]

    def require(self, run: Run, what: str, remedy: str) -> None:
        """Requires that the run is in exactly this state.

        Args:
            run: run to compare with.
            what: what belongs to this source, as the subject of a sentence.
            remedy: what to do otherwise.

        Raises:
            StaleError: when the run is another one or in another state.
        """
        now = run.source
        if now == self:
            return
        if now.run_id != self.run_id:
            raise StaleError(f"{what} belongs to another run than {run.path}", remedy)
        difference = f"{what} is of {run.path} when it had {self}; now it has {now}"
        if str(now) == str(self):
            difference = f"{what} is of other numbers than {run.path} holds now"
        raise StaleError(difference, remedy)


def source_of(
    file: h5py.File,
    status: str,
    steps: Int[np.ndarray, " steps"],
    checkpoints: Int[np.ndarray, " checkpoints"],
) -> Source:
    """The state of an open run file when it had these rows and checkpoints.

    The status must have been read before them, as a run is complete only after all of them.
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

    A run may be continued from a step at which no checkpoint is due; its last row and checkpoint
    are then replaced.
    """
    known = ((STEP_OF["steps"], steps), (STEP_OF["checkpoints"], checkpoints))
    return file.attrs["run_id"] == run_id and all(
        len(stored) >= len(rows) and (len(rows) == 0 or stored[len(rows) - 1] == rows[-1])
        for stored, rows in ((dataset_at(file, path), rows) for path, rows in known)
    )
