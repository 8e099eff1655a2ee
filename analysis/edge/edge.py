"""`Edge`: mean-square stability of mini-batches along a run, beside what its steps realized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.edge.batches import EPOCHS, Batches, batches_of
from dlf_dynamics.analysis.edge.points import EdgePoint, Rule, mean_square_at
from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.checkpoints import checkpoints_within, evenly
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import find_crossings
from dlf_dynamics.analysis.spectra.segments import check_deterministic, solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.codec import Arrays, decode, encode, typed
from dlf_dynamics.config import EdgeConfig, SpectrumConfig
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.parts import Parts
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Checkpoints, Run
from dlf_dynamics.shown import Shown
from dlf_dynamics.source import Source
from dlf_dynamics.spans import span_of

EVENT = "mean-square (independent batches)"
"""What a crossing of 1 by η over its threshold is called."""

_OPERATORS = ("hessian", "ggn")


@dataclass(frozen=True)
class EdgeCrossing:
    """The learning rate passes the mean-square threshold between two checkpoints.

    Both are certified to be on their sides; where in between it passes is not known.

    Attributes:
        name: which threshold it is.
        direction: `up`, from stable to unstable, or `down`.
        step_before: last checkpoint that is certified to be on the old side.
        step_after: first checkpoint that is certified to be on the new side.
        ratio_before: η over the threshold there, the end of its interval next to 1.
        ratio_after: the same at the other one.
        state: `certain`, or `unresolved` where between the two lie checkpoints on neither side.
    """

    name: str
    direction: str
    step_before: int
    step_after: int
    ratio_before: float
    ratio_after: float
    state: str


@dataclass(frozen=True)
class Edge(Shown):
    """What `dlf-dynamics edge` found.

    Attributes:
        source: state of the run that was analysed.
        config: settings of the analysis.
        batches: batches whose stability is analysed.
        subject: what was trained, in a line.
        label: what the full-batch threshold is, or why there is none.
        preconditioned: whether all curvatures are those of P^-1 H, with the preconditioner P of the
            optimizer frozen.
        span: first and last step that could be looked at.
        points: the checkpoints, in the order of steps.
        crossings: crossings of the mean-square threshold, between these.
        realized: steps of the run by their realized edge.
    """

    source: Source
    config: EdgeConfig
    batches: Batches
    subject: str
    label: str
    preconditioned: bool
    span: tuple[int, ...]
    points: list[EdgePoint]
    crossings: list[EdgeCrossing]
    realized: EdgeCounts
    told_by = "edge"
    __repr__ = brief

    def column(self, name: str) -> np.ndarray:
        """A field of all checkpoints."""
        return np.array([getattr(point, name) for point in self.points])

    @property
    def steps(self) -> Int[np.ndarray, " points"]:
        """Steps of the checkpoints."""
        return self.column("step")

    @property
    def ratio(self) -> Float[np.ndarray, "points 2"]:
        """η over the mean-square threshold: at least, and at most."""
        return np.stack([self.column("ratio_low"), self.column("ratio_high")], axis=1)

    @property
    def deciding_sides(self) -> Int[np.ndarray, " points"]:
        """Sides of the threshold of the run's own batches; 0 where only a reference is known."""
        if self.batches.is_threshold:
            return self.column("side")
        if self.batches.own and self.batches.sampling == EPOCHS:
            return self.column("epochs_side")
        return np.zeros(len(self.points), int)


def _chosen_checkpoints(run: Run, config: EdgeConfig) -> Checkpoints:
    """Indices of the checkpoints that are looked at.

    Raises:
        ConfigError: when none are within the steps.
    """
    return evenly(checkpoints_within(run, config.steps), config.checkpoints)


def units(run: Run, config: EdgeConfig) -> int:
    """Units of progress of `compute_edge`: each checkpoint once per operator, and once more.

    Raises:
        ConfigError: when no checkpoint is within the steps, or the batches are not known.
    """
    batches_of(run, config)
    return (len(_OPERATORS) + 1) * len(_chosen_checkpoints(run, config))


def compute_edge(
    run: Run,
    config: EdgeConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Edge:
    """Mean-square stability, sharpness and batch sharpness at some checkpoints of a run.

    Args:
        run: a run of `train` or `Recorder`.
        config: which checkpoints and batches to analyse.
        parts: where finished parts are kept, so that an interrupted analysis goes on.
        progress: told how many units are done: checkpoints, three times.

    Raises:
        ConfigError: when no checkpoint is within the steps, or the batches are not known.
    """
    config = EdgeConfig() if config is None else config
    parts = Parts(None) if parts is None else parts
    chosen, batches, rule = _chosen_checkpoints(run, config), batches_of(run, config), Rule.of(run)
    threshold, steps = run_threshold(run), run.checkpoint_steps[np.asarray(chosen)]
    columns = {"full_batch": threshold.of_full_batch_at(steps)}
    for number, operator in enumerate(_OPERATORS):
        columns |= _largest(run, operator, chosen, config, parts)
        progress((number + 1) * len(chosen))
    points: list[EdgePoint] = []
    for (point,) in run.points(chosen, 1):
        row = {name: float(values[len(points)]) for name, values in columns.items()}

        def make(point=point, row=row) -> Arrays:
            stability = mean_square_at(run, rule, batches, point, config)
            return encode(_Row([EdgePoint(step=point.step, **row, **stability)]))

        points += parts.get_or_make(f"point-{point.step}", make, partial(decode, _Row)).points
        progress(len(_OPERATORS) * len(chosen) + len(points))
    return Edge(
        source=run.source,
        config=config,
        batches=batches,
        subject=run.subject,
        label=threshold.full_batch_label(steps) if not rule.reason else threshold.label(),
        preconditioned=rule.preconditioned,
        span=_span(run, config),
        points=points,
        crossings=_crossings(points),
        realized=run.edges,
    )


@dataclass(frozen=True)
class _Row:
    """A checkpoint as a record."""

    points: list[EdgePoint]


def _span(run: Run, config: EdgeConfig) -> tuple[int, int]:
    """First and last step of the run within the requested span."""
    start, stop = span_of(config.steps, "steps")
    last = int(run.steps[-1]) if len(run.steps) else int(run.checkpoint_steps[-1])
    return int(start), int(min(stop - 1, last))


class _Values(NamedTuple):
    """Largest eigenvalues at checkpoints, with their intervals."""

    eigenvalues: Float[np.ndarray, " checkpoints"]
    intervals: Float[np.ndarray, "checkpoints ends=2"]


def _largest(
    run: Run, operator: str, chosen: Checkpoints, config: EdgeConfig, parts: Parts
) -> dict[str, np.ndarray]:
    """Value and interval at the iterates, by the names that they have in an `EdgePoint`."""
    settings = SpectrumConfig(
        operator=operator,  # type: ignore[arg-type]
        max_matvecs=config.max_matvecs,
        seed=config.seed,
        ntk_examples=0,
    )
    solver = Solver.from_config(run, settings)

    def make() -> Arrays:
        check_deterministic(run, solver)
        solved = solve_segment(run, solver, partial(run.points, chosen), points=("iterate",))
        fine = solved["status"][:, 0, 0] == CONVERGED
        ends = np.where(fine[:, None], solved["intervals"][:, 0, 0], np.nan)
        return _Values(solved["eigenvalues"][:, 0, 0], ends)._asdict()

    parse = partial(typed, _Values, lengths={"checkpoints": len(chosen)})
    values, ends = parts.get_or_make(operator, make, parse)
    name = {"hessian": "sharpness", "ggn": "ggn"}[operator]
    return {name: values, f"{name}_low": ends[:, 0], f"{name}_high": ends[:, 1]}


def _crossings(points: Sequence[EdgePoint]) -> list[EdgeCrossing]:
    """Changes of side between checkpoints that are certified to be on one."""
    sides = np.array([point.side for point in points])
    steps = np.array([point.step for point in points])
    nearest = np.array([p.ratio_high if p.side < 0 else p.ratio_low for p in points])
    crossings = find_crossings(steps, nearest, sides, np.ones(len(points)), "iterate")
    return [
        EdgeCrossing(
            name=EVENT,
            direction=crossing.direction,
            step_before=crossing.step_before,
            step_after=crossing.step_after,
            ratio_before=crossing.value_before,
            ratio_after=crossing.value_after,
            state=crossing.state,
        )
        for crossing in crossings
    ]


def load_edge(path: str | Path, run: Run | None = None) -> Edge:
    """Reads a result file of `dlf-dynamics edge`; parameters as of `load_spectrum`."""
    return resultfile.load(path, "edge", Edge, run)
