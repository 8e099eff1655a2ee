"""Type of what `bifurcations --json` and `check --json` print; null stands for what is unknown."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypedDict

from dlf_dynamics.analysis.edge.jsontypes import EdgeDict
from dlf_dynamics.analysis.instabilities.instability import Instability
from dlf_dynamics.analysis.instabilities.plane import PlanePoint
from dlf_dynamics.analysis.instabilities.unstable import UnstableDirection
from dlf_dynamics.analysis.spectra.events import Crossing
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.source import State


@dataclasses.dataclass(frozen=True)
class LaggedInstability(Instability):
    """An instability as it is printed.

    Attributes:
        lag: onset minus crossing, in steps; null without a crossing.
    """

    lag: int | None  # type: ignore[reportIncompatibleMethodOverride]


class PulseMapDict(TypedDict):
    """The map of a pulse or a cycle; see `PulseMap`."""

    kind: Literal["pulse", "cycle"]
    number: int
    first_step: int
    last_step: int
    class_label: int
    num_params: int
    singular_values: list[float | None]
    decades: list[float | None]
    residuals: list[float | None]
    converged: list[bool]
    parameter_share: list[float | None]
    closed: bool
    reason: str
    distance: float | None
    tolerance: float
    multipliers: list[list[float | None]]
    multiplier_residuals: list[float | None]
    multiplier_errors: list[float | None]
    neutral: int
    stability: Literal["stable", "none found", "unstable", "unknown", ""]
    crossing: Literal["flip", "+1", "Neimark-Sacker", ""]
    products: int
    note: str
    deviation: float
    kinks: str


class PlaneCurveDict(TypedDict):
    """A curve of bifurcations; see `PlaneCurve`."""

    kind: Literal["fold", "flip", "neimark-sacker"]
    parameters: list[list[float]]
    critical: list[list[float | None]]
    angles: list[float]
    coefficients: list[float | None]
    unstable: list[int]
    residuals: list[float]
    special: list[PlanePoint]
    status: str
    message: str


class PlaneDict(TypedDict):
    """A plane of two parameters; see `Plane`."""

    step: int
    names: list[str]
    class_label: int
    ranges: list[list[float]]
    actual: list[float]
    path_steps: list[int]
    path: list[list[float]]
    reason: str
    largest: float | None
    distance: float | None
    curves: list[PlaneCurveDict]
    left_out: int


class BifurcationsDict(TypedDict):
    """What `bifurcations --json` prints.

    Attributes:
        run_id: id of the run
        run: its status, last step and number of checkpoints when it was analysed
        config: settings
        threshold: what it is, or why there is none
        replay: how closely the replayed steps meet the checkpoints
        steps: first and last step
        looked_at: number of steps at which the sharpness was computed
        not_looked_at: number of the other steps
        not_converged: number of steps whose sharpness did not converge
        verdict: `below`, `above` or `undecided`, as `check` tells it
        because: lines that say why
        instabilities_known: false for mini-batches, whose noise alone alternates
        crossings: crossings at the centres, a list of `Crossing`, field by field
        instabilities: a list of `Instability`, field by field, with `lag`, onset minus crossing
        directions: a list of `UnstableDirection`, those of each onset, field by field
        pulse_maps: a list of `PulseMap`, field by field without `directions`, multipliers as pairs
            of real and imaginary part; empty without --pulses and --cycles
        plane: a `Plane`, field by field, critical multipliers as pairs of real and imaginary part;
            null without --plane
        edge: output of `edge --json` for mini-batches; null for full batches
    """

    run_id: str
    run: State
    config: BifurcationConfig
    threshold: str
    replay: str
    steps: list[int]
    looked_at: int
    not_looked_at: int
    not_converged: int
    verdict: Literal["below", "above", "undecided"]
    because: list[str]
    instabilities_known: bool
    crossings: list[Crossing]
    instabilities: list[LaggedInstability]
    directions: list[UnstableDirection]
    pulse_maps: list[PulseMapDict]
    plane: PlaneDict | None
    edge: EdgeDict | None
