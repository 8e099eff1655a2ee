"""`Segment`: what theories predict from one step of a run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.flow.beside import Predicted, predicted_beside
from dlf_dynamics.analysis.flow.measured import measured, restricted
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.theories.central_flow import FlowPoint, flow_points
from dlf_dynamics.analysis.theories.rules import averaged
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.reprs import brief

CENTRAL_FLOW = "central flow"
"""Name of the theory, among the others."""


@dataclass(frozen=True)
class Segment:
    """What theories predict from one step on, at the looks that follow.

    The last of them is the one at which the next segment starts, if there is one.

    Attributes:
        start: step at whose centre the theories start.
        first: index of its look among all looks of the run.
        stopped: why the central flow ended early; empty where it did not.
        travelled: distance of the run's centre from the one at the start.
        centre_loss: loss of the central flow's centre, without what the oscillation adds to it.
        tracked: directions that the central flow follows; 0 where it has ended.
        covariance_error: ‖UᵀddᵀU - X‖ / |d|² in these directions U, X being the predicted
            covariance and d the measured deviation, with X as it is at the look.
        converged: whether all equations of the central flow were solved since the look before.
        complete: whether the last certified solve until there showed that no eigenvalue above the
            threshold was left out; between two of them nothing is claimed.
        num_products: Hessian products that the central flow made since the look before.
        predictions: predictions of the central flow, and of the other theories.
    """

    start: int
    first: int
    stopped: str
    travelled: Float[np.ndarray, " places"]
    centre_loss: Float[np.ndarray, " places"]
    tracked: Int[np.ndarray, " places"]
    covariance_error: Float[np.ndarray, " places"]
    converged: Bool[np.ndarray, " places"]
    complete: Bool[np.ndarray, " places"]
    num_products: Int[np.ndarray, " places"]
    predictions: list[Predicted]
    __repr__ = brief

    @property
    def rows(self) -> slice:
        """Its looks, among all of the run."""
        return slice(self.first, self.first + len(self.travelled))

    def column(self, theory: str, name: str) -> Float[np.ndarray, " places"]:
        """What a theory predicts; NaN where it says nothing."""
        for predicted in self.predictions:
            if predicted.name == theory:
                return getattr(predicted, name)
        return np.full(len(self.travelled), np.nan)


class At(NamedTuple):
    """The run at the looks of a segment.

    Attributes:
        steps: steps of the looks.
        centres: c_t.
        deviations: d_t = θ_t - c_t.
        oscillating: whether successive updates point against each other, beyond rounding.
    """

    steps: Int[np.ndarray, " looks"]
    centres: Float[np.ndarray, "looks params"]
    deviations: Float[np.ndarray, "looks params"]
    oscillating: Bool[np.ndarray, " looks"]


def segment_of(
    replay: Replay,
    config: FlowConfig,
    steps: Int[np.ndarray, " looks"],
    first: int,
    progress: Callable[[int], None] = lambda step: None,
) -> Segment:
    """What the theories predict, from the first of some looks on.

    Args:
        replay: replay of the run.
        config: how the flow is integrated.
        steps: steps of the looks.
        first: index of the first of them among all looks of the run.
        progress: told the step that was reached, also while the other theories are at work.
    """
    run, at = replay.run, _at(replay, steps)
    rows = list(_central(replay, config, at, progress))
    columns = [np.array(column) for column in zip(*(row for row, _ in rows), strict=True)]
    own_columns = dict(zip(_Row._fields, columns, strict=True))
    predicted = {
        name: own_columns.pop(name) for name in ("loss", "sharpness", "energy", "distance")
    }
    stopped = next((stopped for _, stopped in rows if stopped), "")
    flow = Predicted(name=CENTRAL_FLOW, steps=steps, **predicted, message=stopped)
    (state,) = replay.points(steps[:1])
    beside: list[Predicted] = []
    if config.theories:
        beside = predicted_beside(
            run,
            state,
            *at[:3],
            oscillating=at.oscillating,
            between=lambda: progress(int(steps[-1])),
        )
    return Segment(
        start=int(steps[0]),
        first=first,
        stopped=stopped,
        travelled=np.linalg.norm(at.centres - at.centres[0], axis=1),
        predictions=[flow, *beside],
        **own_columns,
    )


def _at(replay: Replay, steps: Int[np.ndarray, " looks"]) -> At:
    """The run at some steps, without looks."""
    pieces = []
    start, stop = int(steps[0]), int(steps[-1]) + 1
    for piece in measured(replay, start, stop, every=None):
        sampled = np.flatnonzero(np.isin(piece.steps, steps))
        pieces.append((piece.centres[sampled], piece.deviations[sampled], piece.visible[sampled]))
    return At(steps, *(np.concatenate(column) for column in zip(*pieces, strict=True)))


class _Row(NamedTuple):
    """The central flow at a look, by the names of `Segment` and `Predicted`."""

    loss: float
    sharpness: float
    energy: float
    distance: float
    centre_loss: float
    tracked: int
    covariance_error: float
    converged: bool
    complete: bool
    num_products: int


_ENDED = _Row(
    loss=np.nan,
    sharpness=np.nan,
    energy=np.nan,
    distance=np.nan,
    centre_loss=np.nan,
    tracked=0,
    covariance_error=np.nan,
    converged=False,
    complete=False,
    num_products=0,
)


def _central(
    replay: Replay, config: FlowConfig, at: At, progress: Callable[[int], None]
) -> Iterator[tuple[_Row, str]]:
    """A row for each look, and why there is nothing in it."""
    wide, flow, stopped = Wide(replay.run, needed=True), _flow(replay, config, at), ""
    converged, complete, num_products = True, False, 0
    for step, centre, deviation in zip(*at[:3], strict=True):
        point = None
        while not stopped:
            with wide.enabled():
                point = next(flow)
            stopped = point.stopped
            converged &= point.converged
            complete = point.complete if point.looked_at else complete
            num_products += point.num_products
            if point.step == step:
                break
        progress(int(step))
        if stopped or point is None:
            yield _ENDED, stopped
            continue
        row = _row(point, centre, deviation)
        told = {"converged": converged, "complete": complete, "num_products": num_products}
        yield row._replace(**told), ""
        converged, num_products = True, 0


def _flow(replay: Replay, config: FlowConfig, at: At) -> Iterator[FlowPoint]:
    """The points of the central flow, to be made in float64 whatever the type of the run.

    Raises:
        ConfigError: when no equations are known for the average of the run's optimizer.
    """
    run, threshold = replay.run, run_threshold(replay.run)
    start, stop = int(at.steps[0]), int(at.steps[-1])
    told = threshold.hyperparameters
    try:
        rule = averaged(threshold.optimizer, range(start, stop + 2), hyperparameters=told)
    except ValueError as error:
        raise ConfigError(f"{run.path} has no central flow: {error}") from error
    wide = Wide(run, needed=True)
    return flow_points(
        wide.dynamics.problem,
        at.centres[0],
        rule,
        stop - start,
        start=start,
        modes=config.modes,
        fraction=config.fraction,
        substeps=config.substeps,
        seed=config.seed,
    )


def _row(point: FlowPoint, centre: np.ndarray, deviation: np.ndarray) -> _Row:
    """The flow at a look, compared with the run there."""
    within = restricted(deviation, np.asarray(point.modes, float))
    energy = float(deviation @ deviation)
    apart = np.linalg.norm(within - point.covariance)
    return _Row(
        loss=point.predicted_loss,
        sharpness=point.sharpness,
        energy=point.energy,
        distance=float(np.linalg.norm(centre - np.asarray(point.params, float))),
        centre_loss=point.loss,
        tracked=len(point.eigenvalues),
        covariance_error=float(apart / energy) if energy > 0 else np.nan,
        converged=point.converged,
        complete=point.complete,
        num_products=point.num_products,
    )
