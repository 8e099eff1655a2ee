"""Types of what `flow --json` prints; null stands for what is unknown."""

from __future__ import annotations

from typing import TypedDict

from dlf_dynamics.analysis.flow.errors import TheoryError
from dlf_dynamics.analysis.flow.validity import Look
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.source import State


class PredictedDict(TypedDict):
    """What a theory predicts at each look, as `Predicted` has it."""

    name: str
    steps: list[int]
    loss: list[float]
    sharpness: list[float]
    energy: list[float]
    distance: list[float]
    message: str


class ObservedDict(TypedDict):
    """The run at each look, as `Observed` has it."""

    looks: list[Look]
    steps: list[int]
    loss: list[float]
    energy: list[float]
    deviation: float


class SegmentDict(TypedDict):
    """The theories from one start on, as `Segment` has them.

    Attributes:
        counts: whether a look counts.
    """

    start: int
    first: int
    stopped: str
    travelled: list[float]
    centre_loss: list[float]
    tracked: list[int]
    covariance_error: list[float]
    converged: list[bool]
    complete: list[bool]
    num_products: list[int]
    predictions: list[PredictedDict]
    counts: list[bool]


class FlowDict(TypedDict):
    """What `flow --json` prints.

    Attributes:
        run_id: id of the run
        run: its status, last step and number of checkpoints when it was analysed
        config: settings
        threshold: what it is
        replay: how closely the replayed steps meet the checkpoints
        steps: the first and the last
        looks: number of steps at which run and theories were compared
        counted: number of them that count: the theory may be applied there, and at all looks since
            its start
        outside: number of looks outside of it by the rule that says so
        errors: a list of `TheoryError`, field by field
        observed: the run at each look, field by field
        segments: a list, one for each start of the theories, with what they predict at the looks
            from `first` on
    """

    run_id: str
    run: State
    config: FlowConfig
    threshold: str
    replay: str
    steps: list[int]
    looks: int
    counted: int
    outside: dict[str, int]
    errors: list[TheoryError]
    observed: ObservedDict
    segments: list[SegmentDict]
