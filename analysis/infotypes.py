"""Types of what `info --json` prints of each kind of file."""

from __future__ import annotations

from typing import Any, TypedDict

from dlf_dynamics.analysis.studies.study import Measures
from dlf_dynamics.config import RunConfig
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.loop import Recording
from dlf_dynamics.source import Source


class RunInfo(TypedDict):
    """What `info` tells of a run.

    Attributes:
        path: name of the file.
        run_id: id of the run.
        status: `running`, `complete`, `interrupted` or `diverged`.
        updates: step of the last row.
        rows: steps that were recorded.
        checkpoints: number of them.
        num_params: length of the parameter vector.
        last: what the last step recorded, and the last checkpoint of the examples held out.
        realized_edge: how many steps raised their own loss, as far as it was looked.
        data_sha256: digest of the data.
        recording: what `Recorder` was given of a custom training loop; null for runs of `train`.
        config: configuration, or what the author of the loop wanted to be kept.
        provenance: versions, machine and command.
    """

    path: str
    run_id: str
    status: str
    updates: int
    rows: int
    checkpoints: int
    num_params: int
    last: dict[str, float | list[float]]
    realized_edge: EdgeCounts
    data_sha256: str
    recording: Recording | None
    config: RunConfig | dict[str, Any]
    provenance: dict[str, Any]


class ResultInfo(TypedDict):
    """What `info` tells of a result.

    Attributes:
        path: name of the file.
        analysis: its name.
        run: state of the run that was analysed.
        arrays: types and shapes of the arrays, by path.
        config: settings of the analysis, and all else that is no array.
        provenance: versions, machine and command.
    """

    path: str
    analysis: str
    run: Source
    arrays: dict[str, str]
    config: dict[str, Any]
    provenance: dict[str, Any]


class StudyInfo(TypedDict):
    """What `info` tells of a study.

    Attributes:
        path: name of the file.
        runs: number of them.
        statuses: number of runs by what became of them.
        keys: entries of the configuration in which the runs differ.
        measures: what is measured.
        base: what the runs have in common.
        created: when, in UTC.
        provenance: versions, machine and command.
    """

    path: str
    runs: int
    statuses: dict[str, int]
    keys: list[str]
    measures: Measures
    base: RunConfig
    created: str
    provenance: dict[str, Any]


INFO = {"run": RunInfo, "result": ResultInfo, "study": StudyInfo}
"""The types by the kind of file."""
