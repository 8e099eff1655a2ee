"""`open_run`: a run file as a `TrainedRun` or a `RecordedRun`, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.loop import Setup
from dlf_dynamics.matching import require_match
from dlf_dynamics.recorded import RecordedRun
from dlf_dynamics.run import Run
from dlf_dynamics.runfile import open_file
from dlf_dynamics.trained import TrainedRun


def open_run(path: str | Path, setup: Setup | tuple[Any, Any, Any] | None = None) -> Run:
    """Opens a run file for reading, also while it is written.

    Args:
        path: name of the run file.
        setup: problem, optimizer and parameters of a custom training loop that `Recorder` recorded;
            None for a run of `train`, whose file contains them.

    Raises:
        ConfigError: when the problem is not the one of the file.
        FileError: when the file is missing, foreign, damaged or of a newer format.
    """
    path = Path(path)
    with open_file(path) as file:
        recorded = "recording" in file
    if not recorded:
        if setup is not None:
            raise ConfigError(f"{path} is a run of `dlf-dynamics train`; it needs no problem")
        return TrainedRun(path)
    if setup is None:
        return RecordedRun(path)
    chosen = Setup(*setup)
    run = RecordedRun(path, chosen)
    require_match(run, chosen)
    return run


def open_trained(path: str | Path) -> TrainedRun:
    """Opens a run of `train`.

    Raises:
        ConfigError: when it is a run of `Recorder`.
        FileError: when the file is missing, foreign, damaged or of a newer format.
    """
    run = open_run(path)
    if not isinstance(run, TrainedRun):
        raise ConfigError(
            f"{path} was recorded in a custom training loop; only a run of `dlf-dynamics train` "
            "can do this"
        )
    return run
