"""`Explanation`: what is known of one step of a run, and of the steps around it; its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.explanations.mode import (
    Mode,
    mode_of,
    unit,
)
from dlf_dynamics.analysis.explanations.multipliers import (
    NO_MULTIPLIERS,
    Multipliers,
    multipliers_over,
)
from dlf_dynamics.analysis.explanations.pieces import (
    NO_PIECES,
    Pieces,
    gated_model,
    pieces_between,
)
from dlf_dynamics.analysis.explanations.surroundings import (
    Around,
    Event,
    Surroundings,
    around_of,
    known_around,
    look_around,
)
from dlf_dynamics.analysis.instabilities.periods import IRREGULAR
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import Crossing
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.analysis.stability.threshold import growth_factors
from dlf_dynamics.codec import decode, encode
from dlf_dynamics.config import ExplainConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.parts import Parts
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.shown import Shown
from dlf_dynamics.source import Source

_STAGES = 4
"""Stages of an explanation, for the progress bar: mode, surroundings, pieces, multipliers."""

_SEGMENT = 25
"""Steps that go through the compiled eigensolver in one call, so that there is one program."""

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Explanation:
    """One step; -1 and NaN stand for what does not exist or is not known.

    Attributes:
        step: the explained one, t.
        config: settings.
        label: what the threshold is, or why none is used.
        threshold: critical eigenvalue at the step.
        failure_probability: failure probability of each upper bound on an eigenvalue.
        growth: factor per step of a deviation along the mode, by the linearised update at the
            centre.
        kinks: operations in the loss whose derivative jumps.
        batch_size: examples per update; none means all.
        mode: the largest eigenvalues and the top eigenvector.
        update_cosine: cosine of the updates after and before the step.
        period: period of the oscillation at the step; see `periods_of_iterates`.
        amplitude: ‖θ_t - c_t‖, the distance from the centre.
        drift: ‖θ_(t+1) - θ_(t-1)‖ / 2.
        projection: projection of θ_t - c_t on the mode, without its sign.
        origin: source of crossings and oscillations, in words.
        first_looked: first step at which these were looked for.
        last_looked: last such step.
        unwatched: why oscillations were not looked for; empty where they were.
        crossings: where the centres crossed the threshold.
        events: oscillations.
        pieces: gates that flip, and what they do.
        multipliers: multipliers of the updates from the step on.
        not_told: what is not known, and why, a line each.
        note: how closely the replay met the checkpoints.
        around: the steps around it.
    """

    step: int
    config: ExplainConfig
    label: str
    threshold: float
    failure_probability: float
    growth: float
    kinks: tuple[str, ...]
    batch_size: int | None
    mode: Mode
    update_cosine: float
    period: int
    amplitude: float
    drift: float
    projection: float
    origin: str
    first_looked: int
    last_looked: int
    unwatched: str
    crossings: list[Crossing]
    events: list[Event]
    pieces: Pieces
    multipliers: Multipliers
    not_told: tuple[str, ...]
    note: str
    around: Around
    __repr__ = brief

    @property
    def paragraph(self) -> str:
        """What is known of it, in plain words."""
        from dlf_dynamics.analysis.explanations.words import paragraph

        return paragraph(self)


@dataclass(frozen=True)
class Explanations(Shown):
    """What `dlf-dynamics explain` found, of one step or of several.

    Attributes:
        source: state of the run.
        config: settings of the step that was explained last.
        explanations: one for each step, in their order, each with its own settings.
    """

    source: Source
    config: ExplainConfig
    explanations: list[Explanation]
    told_by = "explain"
    __repr__ = brief

    def of_step(self, step: int) -> Explanation:
        """The explanation of a step.

        Raises:
            ConfigError: when it is not among them.
        """
        for one in self.explanations:
            if one.step == step:
                return one
        known = ", ".join(str(one.step) for one in self.explanations) or "none"
        raise ConfigError(f"step {step} is not explained; expected one of {known}")


def _step_of(run: Run, config: ExplainConfig) -> int:
    """The step that is explained.

    Raises:
        ConfigError: when the steps of the run cannot be made again, or this one has no step before
            or after it.
    """
    if not run.own_updates:
        raise ConfigError(
            f"{run.path} was recorded of mini-batches that are not known, or without its optimizer "
            "or that one's state, or imported, or its optimizer wants more than gradients; its "
            "steps cannot be made again, and no step can be explained"
        )
    last = Replay(run).last - 1
    first = max(int(run.checkpoint_steps[0]), 1)
    if last < first:
        raise ConfigError(f"{run.path} has no step with one before and one after it to explain")
    step = last if config.step is None else config.step
    if not first <= step <= last:
        raise ConfigError(
            f"step is {step}; expected {first} to {last}, which have a step before and one after"
        )
    return step


def units(run: Run, config: ExplainConfig) -> int:
    """Units of progress of `explain`: its stages."""
    _step_of(run, config)
    return _STAGES


def explain(
    run: Run,
    config: ExplainConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda stage: None,
) -> Explanations:
    """Explains why a run did what it did at one step, from its file and a replay of some steps.

    Args:
        run: a recorded run.
        config: which step, and how.
        parts: where finished parts are kept, so that an interrupted analysis goes on.
        progress: told how many of the four stages are done.

    Raises:
        ConfigError: when the run has no such step, or its steps cannot be made again.
    """
    config = ExplainConfig() if config is None else config
    parts = Parts(None) if parts is None else parts
    step, replay, solver = _step_of(run, config), Replay(run), _solver(run, config)
    (here,) = replay.points(np.array([step]))
    mode = _kept(parts, f"mode-{step}", Mode, lambda: mode_of(run, solver, here))
    progress(1)
    surroundings = known_around(run, step, config)
    surroundings = surroundings or look_around(replay, solver, step, config, parts)
    progress(2)
    period = 0
    if not surroundings.unwatched:
        period = int(surroundings.motion.periods[step - int(surroundings.motion.steps[0])])
    told = _of_updates(replay, solver, mode, step, period, parts, progress)
    one = Explanation(
        step=step,
        config=config,
        failure_probability=solver.goal.failure_probability,
        kinks=tuple(run.kinks),
        batch_size=run.dynamics.batch_size,
        mode=mode,
        period=period,
        **told,
        **_of_threshold(run, step, mode),
        **_of_motion(surroundings, step),
        projection=abs(float((here.params - mode.centre) @ unit(mode))),
        around=around_of(replay, surroundings, step, config.window, unit(mode)),
        note=replay.note,
    )
    progress(_STAGES)
    return Explanations(run.source, config, [one])


def _kept(parts: Parts, name: str, kind: type[Kept], make: Callable[[], Kept]) -> Kept:
    """A record, from a finished part or made now."""
    return parts.get_or_make(name, lambda: encode(make()), partial(decode, kind))


def _solver(run: Run, config: ExplainConfig) -> Solver:
    """The solver for the largest eigenvalues, one compiled program for all steps."""
    settings = SpectrumConfig(
        k=config.k, tol=config.tol, max_matvecs=config.max_matvecs, seed=config.seed
    )
    return Solver.from_config(run, settings)._replace(segment_length=_SEGMENT)


def _of_updates(
    replay: Replay,
    solver: Solver,
    mode: Mode,
    step: int,
    period: int,
    parts: Parts,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Pieces and multipliers of the updates from the step on, and why something is missing."""
    run = replay.run
    missing = _why_not(run, solver, mode)
    pieces, multipliers = NO_PIECES, NO_MULTIPLIERS
    if not missing:
        stop = step + _updates(period, replay.last - step)
        points = list(replay.points(np.arange(step, stop + 1)))
        pieces = _kept(parts, f"pieces-{step}", Pieces, lambda: _pieces(run, solver, mode, points))
        progress(3)
        made = partial(multipliers_over, replay, step, stop, unit(mode))
        multipliers = _kept(parts, f"multipliers-{step}", Multipliers, made)
        missing = _left_out(run, multipliers)
    return {"pieces": pieces, "multipliers": multipliers, "not_told": tuple(missing)}


def _updates(period: int, most: int) -> int:
    """Updates that are multiplied: those of the period, one where nothing oscillates.

    Where the motion is irregular there are two of them.
    """
    return max(1, min({0: 1, IRREGULAR: 2}.get(period, period), most))


def _of_threshold(run: Run, step: int, mode: Mode) -> dict[str, Any]:
    """The threshold, and what the linearised update at the centre does."""
    threshold, centre = run_threshold(run), mode.first()
    growth = float("nan")
    if not threshold.reason and centre.converged:
        values = np.array([centre.value])
        growth = float(growth_factors(run.dynamics.optimizer, np.array([step]), values)[0])
    limit = float(threshold.at(np.array([step]))[0])
    return {"label": threshold.label(), "threshold": limit, "growth": growth}


def _of_motion(surroundings: Surroundings, step: int) -> dict[str, Any]:
    """What the motion shows of the step, and where that comes from."""
    motion, row = surroundings.motion, step - int(surroundings.motion.steps[0])
    names = ("update_cosine", "amplitude", "drift")
    return {
        **{name: float(getattr(motion, name)[row]) for name in names},
        **{
            name: getattr(surroundings, name)
            for name in ("origin", "unwatched", "crossings", "events")
        },
        "first_looked": int(motion.steps[0]),
        "last_looked": int(motion.steps[-1]),
    }


def _why_not(run: Run, solver: Solver, mode: Mode) -> list[str]:
    """Why pieces and multipliers cannot be computed; empty where they can."""
    if not np.all(np.isfinite(mode.vector)):
        return ["pieces and multipliers: the mode is not known"]
    if run.dynamics.batch_size is not None:
        return ["pieces and multipliers: each update is that of other examples"]
    if solver.curvature.batch_size not in (None, run.problem.num_examples):
        return ["pieces and multipliers: memory does not hold a pass with all examples"]
    return []


def _left_out(run: Run, multipliers: Multipliers) -> list[str]:
    """What is missing from them nevertheless, and why."""
    missing = [f"multipliers: {multipliers.reason}"] if multipliers.reason else []
    if run.kinks and gated_model(run) is None:
        missing.append("gates that flip: of the network of a recorded run they are not known")
    if run.dynamics.precision is not None:
        missing.append(f"what the rounding to {run.dynamics.precision} does after each update")
    return missing


def _pieces(run: Run, solver: Solver, mode: Mode, points: list[FlatState]) -> Pieces:
    iterates = np.stack([point.params for point in points])
    return pieces_between(
        run, points[0].step, iterates, mode.centre, mode.vector, precise=solver.precise
    )


def added(before: Explanations | None, explanations: Explanations) -> Explanations:
    """The explanations together with those on file of other steps of the same state."""
    if before is None or before.source != explanations.source:
        return explanations
    new = {one.step for one in explanations.explanations}
    kept = [one for one in before.explanations if one.step not in new]
    whole = sorted([*kept, *explanations.explanations], key=lambda one: one.step)
    return dataclasses.replace(explanations, explanations=whole)


def load_explanations(path: str | Path, run: Run | None = None) -> Explanations:
    """Reads a result file of `dlf-dynamics explain`; parameters as of `load_spectrum`."""
    return resultfile.load(path, "explain", Explanations, run)
