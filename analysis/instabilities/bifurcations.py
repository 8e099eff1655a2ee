"""`Bifurcations`: the instabilities of a run with the motion that shows them, and its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics import resultfile
from dlf_dynamics.analysis.edge.edge import Edge, compute_edge
from dlf_dynamics.analysis.instabilities.finished_parts import (
    Described,
    as_described,
    as_located,
    as_piece,
    with_deviation,
)
from dlf_dynamics.analysis.instabilities.frozen import FrozenDiagram, frozen_diagrams
from dlf_dynamics.analysis.instabilities.instability import Instability
from dlf_dynamics.analysis.instabilities.location import (
    crossings_of,
    locate_crossings,
    look_at,
    not_looked_at,
    thresholds_of,
)
from dlf_dynamics.analysis.instabilities.oscillation import (
    Curvatures,
    Motion,
    follow,
    joined,
    looked_further,
)
from dlf_dynamics.analysis.instabilities.plane import Plane, plane, require_plane
from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap
from dlf_dynamics.analysis.instabilities.pulse_maps import chosen_pulses, pulse_maps
from dlf_dynamics.analysis.instabilities.unstable import UnstableDirection
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import (
    BATCH_NOISE,
    Crossing,
    find_oscillations,
    join_crossings,
    sides,
)
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.codec import (
    Arrays,
    decode,
    encode,
)
from dlf_dynamics.config import BifurcationConfig, EdgeConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.shown import Shown
from dlf_dynamics.source import Source
from dlf_dynamics.spans import span_of

_Record = TypeVar("_Record", Motion, Curvatures)


@dataclass(frozen=True)
class Bifurcations(Shown):
    """Result of `dlf-dynamics bifurcations`.

    Attributes:
        source: state of the run that was analysed.
        config: settings of the analysis.
        label: description of the threshold, or why none is used.
        note: how closely the replay met the checkpoints.
        deviation: largest relative distance by which it missed one.
        unwatched: why no instabilities are reported; empty where they are.
        motion: motion at every step, with the curvature at some.
        thresholds: thresholds at the sampled steps; NaN where none may be used.
        crossings: located crossings of the threshold at the centres.
        instabilities: instabilities, in the order of steps.
        diagrams: diagrams with the loss frozen at some steps.
        directions: directions that were unstable at the onset of each instability; none in files
            before version 4.2.
        pulse_maps: maps of perturbations, over pulses and then over cycles.
        plane: curves of bifurcations in two parameters, with the loss frozen; none if not
            requested.
        edge: stability of mini-batches in mean square; none for a run without them, or where no
            checkpoint is within the steps.
    """

    source: Source
    config: BifurcationConfig
    label: str
    note: str
    deviation: float
    unwatched: str
    motion: Motion
    thresholds: Float[np.ndarray, " looked"]
    crossings: list[Crossing]
    instabilities: list[Instability]
    diagrams: list[FrozenDiagram]
    directions: list[UnstableDirection] = dataclasses.field(default_factory=list)
    pulse_maps: list[PulseMap] = dataclasses.field(default_factory=list)
    plane: Plane | None = None
    edge: Edge | None = None
    told_by = "bifurcations"
    __repr__ = brief

    @property
    def not_converged(self) -> int:
        """Number of sampled steps whose largest eigenvalue did not converge."""
        return int(np.sum(~self.motion.converged))

    @property
    def sides(self) -> Int[np.ndarray, " looked"]:
        """Side of each sampled step: 1 certainly above the threshold, -1 certainly below, or 0."""
        return sides(self.motion.intervals, self.motion.converged, self.thresholds)


def span_of_steps(run: Run, config: BifurcationConfig) -> tuple[int, int]:
    """First step to analyse, and the step after the last.

    The last step of the run is left out, as a centre needs the step after it.

    Raises:
        ConfigError: when `steps` is not a:b, or holds no step that has a centre.
    """
    recorded, last = run.checkpoint_steps, Replay(run).last
    first = int(recorded[0]) if len(recorded) else 0
    start, stop = span_of(config.steps, "steps")
    start, stop = max(int(start), first), min(stop, last)
    if stop <= max(start, 1):
        raise ConfigError(
            f"steps {config.steps} holds no step with one before and one after it; the run's are "
            f"{first} to {last}"
        )
    return start, int(stop)


def compute_bifurcations(
    run: Run,
    config: BifurcationConfig | None = None,
    *,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Bifurcations:
    """Crossings, onsets, periods, sizes and kinds of the instabilities of a run.

    Args:
        run: a recorded run.
        config: settings of the analysis.
        parts: storage for finished parts, from which an interrupted analysis resumes.
        progress: called with the number of steps done.

    Raises:
        ConfigError: when the settings select no recorded step.
    """
    config = BifurcationConfig() if config is None else config
    _require(run, config)
    parts = Parts(None) if parts is None else parts
    start, stop = span_of_steps(run, config)
    chosen = chosen_pulses(run, config)
    replay, length = Replay(run), _piece(run, config)
    solver = _solver(run, config, length // config.every)
    sampled_steps = _steps_to_sample(start, stop, config.every)
    # Halfway between multiples of `every`, so that the nearest eigenvector is one of the piece.
    edges = np.arange(0, stop, length) - config.every // 2
    edges = [start, *edges[(edges > start) & (edges < stop)].tolist(), stop]
    pieces = []
    for first, last in pairwise(edges):
        inside = sampled_steps[(sampled_steps >= first) & (sampled_steps < last)].tolist()

        make = partial(follow, replay, solver, first, last, inside)
        parse = partial(as_piece, np.arange(first, last), np.array(inside), solver.size)
        pieces.append(_replayed(replay, parts, f"motion-{first}", make, parse))
        progress(last - start)
    motion = joined(pieces)
    if not run_threshold(run).reason:
        located = lambda: locate_crossings(replay, solver, motion).looks  # noqa: E731
        motion = parts.get_or_make("located", located, partial(as_located, motion))
    result = _with_events(run, config, replay, solver, motion, parts)
    after = lambda steps: progress(stop - start + steps)  # noqa: E731
    return dataclasses.replace(result, pulse_maps=pulse_maps(run, config, chosen, parts, after))


def _require(run: Run, config: BifurcationConfig) -> None:
    """Raises, before anything is computed, for a run that cannot be analysed in this way."""
    if not run.own_updates:
        raise ConfigError(
            f"{run.path} was recorded with unknown mini-batches, or without its optimizer or the "
            "optimizer's state, or was imported, or its optimizer needs more than gradients; its "
            "steps cannot be replayed, and nothing is known between checkpoints (`dlf-dynamics "
            "edge` analyses mini-batches at checkpoints)"
        )
    require_plane(run, config)


def look_at_each_step(
    run: Run,
    result: Bifurcations,
    *,
    parts: Parts | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> Bifurcations:
    """The result with the curvature at the centre of each step, up to the first that is above.

    Only steps that were not sampled are solved; the events are found again if there are new
    crossings.

    Args:
        run: the run that was analysed.
        result: the result of `compute_bifurcations`.
        parts: storage for finished parts, from which an interrupted analysis resumes.
        progress: called with the number of steps done.
    """
    parts = Parts(None) if parts is None else parts
    replay, motion, length = Replay(run), result.motion, _piece(run, result.config)
    replay.deviation = result.deviation
    solver, missing, done = _solver(run, result.config, length), not_looked_at(motion), 0
    for first in range(int(motion.steps[0]), int(motion.steps[-1]) + 1, length):
        steps = missing[(missing >= first) & (missing < first + length)]
        if not len(steps):
            continue

        make = partial(look_at, replay, solver, steps)
        lengths = {"looked": len(steps), "params": 0}
        parse = partial(with_deviation, Curvatures, lengths)
        looks = _replayed(replay, parts, f"each-{first}", make, parse)
        motion = looked_further(motion, steps, looks)
        done += len(steps)
        progress(done)
        limits = thresholds_of(replay, motion)
        if np.any(sides(motion.intervals, motion.converged, limits) > 0):
            break
    return _looked_closer(run, result, replay, solver, motion)


def _replayed(
    replay: Replay,
    parts: Parts,
    name: str,
    make: Callable[[], Any],
    parse: Callable[[Arrays], tuple[_Record, float]],
) -> _Record:
    """A record made by a replay, or read as a finished part with the replay's deviation."""
    arrays = lambda: make()._asdict() | {"deviation": replay.deviation}  # noqa: E731
    record, deviation = parts.get_or_make(name, arrays, parse)
    replay.deviation = max(replay.deviation, deviation)
    return record


def _looked_closer(
    run: Run, result: Bifurcations, replay: Replay, solver: Solver, motion: Motion
) -> Bifurcations:
    """The result with the curvature at more steps."""
    limits = thresholds_of(replay, motion)
    if crossings_of(motion, limits) != result.crossings:
        config = dataclasses.replace(result.config, diagrams="none", plane="none")
        again = _with_events(run, config, replay, solver, motion, Parts(None))
        apart = ("config", "diagrams", "pulse_maps", "plane")  # these do not depend on crossings
        kept: dict[str, Any] = {name: getattr(result, name) for name in apart}
        return dataclasses.replace(again, **kept)
    return dataclasses.replace(
        result, motion=motion, thresholds=limits, note=replay.note, deviation=replay.deviation
    )


def _steps_to_sample(start: int, stop: int, every: int) -> Int[np.ndarray, " looked"]:
    """Multiples of `every`, the first step that has a centre, and the last."""
    first = max(start, 1)
    regular = np.arange(-(-first // every) * every, stop, every)
    return np.union1d(regular, [first, stop - 1])


def _piece(run: Run, config: BifurcationConfig) -> int:
    """Steps that are analysed together, a multiple of `every`.

    They are a few less than one call makes, which starts at the checkpoint before the piece and
    continues beyond its end.
    """
    return max(int(0.95 * Replay(run).length) // config.every, 1) * config.every


def _solver(run: Run, config: BifurcationConfig, looks: int) -> Solver:
    """Solver for the largest eigenvalue, at this many steps of a piece."""
    settings = SpectrumConfig(k=1, tol=config.tol, max_matvecs=config.max_matvecs, seed=config.seed)
    # Not tracked, as `check` says "below" for each sampled step.
    return Solver.from_config(run, settings)._replace(segment_length=looks)


def _with_events(
    run: Run,
    config: BifurcationConfig,
    replay: Replay,
    solver: Solver,
    motion: Motion,
    parts: Parts,
) -> Bifurcations:
    thresholds = thresholds_of(replay, motion)
    crossings = crossings_of(motion, thresholds)
    unwatched = "" if run.dynamics.batch_size is None else BATCH_NOISE
    series = motion.steps, motion.loss, motion.update_cosine
    windows = [] if unwatched else find_oscillations(*series)
    instabilities, directions = list[Instability](), list[UnstableDirection]()
    for window in join_crossings(windows, crossings):
        made = parts.get_or_make(
            f"instability-{window.onset}",
            lambda window=window: encode(
                Described.of(replay, solver, config, motion, window, crossings)
            ),
            partial(as_described, window),
        )
        instabilities += made.instability
        directions += made.directions
    return Bifurcations(
        source=run.source,
        config=config,
        label=run_threshold(run).label(),
        note=replay.note,
        deviation=replay.deviation,
        unwatched=unwatched,
        motion=motion,
        thresholds=thresholds,
        crossings=crossings,
        instabilities=instabilities,
        diagrams=_diagrams(replay, solver, config, instabilities, parts),
        directions=directions,
        plane=_plane(replay, config, instabilities, parts),
        edge=_edge(run, config, parts),
    )


def _edge(run: Run, config: BifurcationConfig, parts: Parts) -> Edge | None:
    """Stability of mini-batches at checkpoints, which is all that is known of such runs."""
    if run.dynamics.batch_size is None:
        return None
    settings = EdgeConfig(steps=config.steps, max_matvecs=config.max_matvecs, seed=config.seed)
    try:
        return compute_edge(run, settings, parts=parts)
    except ConfigError:  # no checkpoint is within the steps
        return None


def _diagrams(
    replay: Replay,
    solver: Solver,
    config: BifurcationConfig,
    events: list[Instability],
    parts: Parts,
) -> list[FrozenDiagram]:
    """Diagrams at the requested steps; none for a run whose map changes from step to step."""
    run = replay.run
    if config.diagrams == "none" or run_threshold(run).reason or run.dynamics.adaptive:
        return []
    diagrams: list[FrozenDiagram] = []
    for step in _frozen_steps(replay, config, events):
        make = lambda step=step: encode(_Diagrams(frozen_diagrams(replay, solver, step)))  # noqa: E731
        diagrams += parts.get_or_make(f"diagrams-{step}", make, partial(decode, _Diagrams)).diagrams
    return diagrams


def _frozen_steps(
    replay: Replay, config: BifurcationConfig, events: list[Instability]
) -> list[int]:
    """Steps at which the loss is frozen."""
    if config.diagrams in ("auto", "none"):
        # The longest oscillation: in its middle the orbit has had time to settle.
        longest = max(events, key=lambda event: event.end - event.onset, default=None)
        return [] if longest is None else [(longest.onset + longest.end) // 2]
    steps = [int(step) for step in config.diagrams.split(",")]
    if max(steps) > replay.last:
        raise ConfigError(f"diagrams has step {max(steps)}; the run's are 0 to {replay.last}")
    return steps


def _plane(
    replay: Replay, config: BifurcationConfig, events: list[Instability], parts: Parts
) -> Plane | None:
    """The plane at the first step that has diagrams, or else at the last step of the run."""
    if config.plane == "none":
        return None
    step = next(iter(_frozen_steps(replay, config, events)), replay.last)
    return parts.get_or_make(
        f"plane-{step}",
        lambda: encode(plane(replay, config, step)),
        partial(decode, Plane),
    )


@dataclass(frozen=True)
class _Diagrams:
    """Diagrams of one step, as a record."""

    diagrams: list[FrozenDiagram]


def load_bifurcations(path: str | Path, run: Run | None = None) -> Bifurcations:
    """Reads a result file of `dlf-dynamics bifurcations`; for parameters see `load_spectrum`."""
    return resultfile.load(path, "bifurcations", Bifurcations, run)
