"""Type of what `explain --json` prints; null stands for what is unknown."""

from __future__ import annotations

from typing import TypedDict

from dlf_dynamics.analysis.explanations.mode import ClassShare, Direction, LayerShare
from dlf_dynamics.analysis.explanations.multipliers import Multiplier
from dlf_dynamics.analysis.explanations.pieces import GateFlips, GradientChange
from dlf_dynamics.analysis.explanations.surroundings import Event
from dlf_dynamics.analysis.spectra.events import Crossing
from dlf_dynamics.config import ExplainConfig
from dlf_dynamics.source import State


class ExplanationDict(TypedDict):
    """One step; steps are -1 where there is none.

    Attributes:
        step: the explained one.
        paragraph: what is known of it, in words.
        config: settings.
        threshold: critical eigenvalue at the step.
        label: what it is, or why there is none.
        failure_probability: failure probability of each upper bound on an eigenvalue.
        growth: factor per step of a deviation along the top eigenvector at the centre.
        directions: largest eigenvalues at the iterate and at the centre.
        above: directions surely above the threshold at the centre.
        more_above: whether more may be.
        curvature: curvature along the mode.
        layers: shares of the mode by parameters.
        classes: parts of that curvature by class.
        period: 2, 4 or 8; -1 irregular; 0 not oscillating, or not known.
        update_cosine: cosine of the updates after and before the step.
        amplitude: distance of the iterate from its centre.
        projection: what of it is along the mode.
        drift: step of the motion that does not alternate.
        origin: source of crossings and oscillations.
        looked: first and last step in which was looked for these.
        unwatched: why oscillations were not looked for; empty where they were.
        crossings: crossings of the centres, the last one before the step and the next one.
        events: the oscillation that the step lies in, else the last one before it and the next.
        kinks: operations in the loss whose derivative jumps.
        gates: that flip, by layer.
        changes: changes of the gradient to the next step.
        gate_curvatures: curvatures along the mode at the centre, with the gates of θ_t and θ_(t+1).
        phases: curvature along the mode at the iterates of the period, and one after.
        multiplied: number of updates whose Jacobians are multiplied.
        multipliers: multipliers of their product, apart from +1.
        along: vᵀJv of that product J and the mode v.
        stretch: ‖Jv‖, of its part in the parameters.
        not_told: what could not be told, and why.
        replay: how closely the replayed steps meet the checkpoints.
    """

    step: int
    paragraph: str
    config: ExplainConfig
    threshold: float
    label: str
    failure_probability: float
    growth: float
    directions: list[Direction]
    above: int
    more_above: bool
    curvature: float
    layers: list[LayerShare]
    classes: list[ClassShare]
    period: int
    update_cosine: float
    amplitude: float
    projection: float
    drift: float
    origin: str
    looked: list[int]
    unwatched: str
    crossings: list[Crossing]
    events: list[Event]
    kinks: list[str]
    gates: list[GateFlips]
    changes: list[GradientChange]
    gate_curvatures: list[float]
    phases: list[float]
    multiplied: int
    multipliers: list[Multiplier]
    along: float
    stretch: float
    not_told: list[str]
    replay: str


class ExplanationsDict(TypedDict):
    """What `explain --json` prints.

    Attributes:
        run_id: id of the run
        run: its status, last step and number of checkpoints when it was analysed
        explanations: a list of steps: the requested one for the command, all steps of a file
    """

    run_id: str
    run: State
    explanations: list[ExplanationDict]
