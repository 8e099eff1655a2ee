"""Type of what `edge --json` prints; null stands for what is unknown."""

from __future__ import annotations

from typing import Literal, TypedDict

from dlf_dynamics.analysis.edge.batches import Batches
from dlf_dynamics.analysis.edge.edge import EdgeCrossing
from dlf_dynamics.analysis.edge.points import EdgePoint
from dlf_dynamics.config import EdgeConfig
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.source import State


class EdgeDict(TypedDict):
    """All of it; what the keys are stands in `EdgeAnalysis.keys`."""

    run_id: str
    run: State
    config: EdgeConfig
    batches: Batches
    is_threshold: bool
    reference: str
    preconditioned: bool
    full_batch: str
    realized_edge: EdgeCounts
    verdict: Literal["below", "above", "undecided"]
    because: list[str]
    points: list[EdgePoint]
    crossings: list[EdgeCrossing]
