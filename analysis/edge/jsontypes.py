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
    """What `edge --json` prints.

    Attributes:
        run_id: id of the run
        run: its status, last step and number of checkpoints when it was analysed
        config: settings
        batches: the batches whose stability is analysed
        is_threshold: whether the run draws its batches independently, or each holds all examples,
            which makes the threshold its own
        reference: why it is a reference and no threshold of the run; empty where it is one
        preconditioned: whether curvatures are those of P^-1 H, with P frozen
        full_batch: what the threshold of full-batch updates is, or why there is none
        realized_edge: steps of the run by their realized edge
        verdict: `below`, `above` or `undecided`, as `check` tells it
        because: lines that say why
        points: a list of `EdgePoint`, field by field
        crossings: a list of `EdgeCrossing`, field by field
    """

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
