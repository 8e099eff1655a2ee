"""What happens around a step: crossings, oscillations, and the motion, from a file or replayed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.instability import Instability, describe
from dlf_dynamics.analysis.instabilities.location import (
    crossings_of,
    locate_crossings,
    thresholds_of,
)
from dlf_dynamics.analysis.instabilities.oscillation import Motion, follow, joined
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import (
    BATCH_NOISE,
    Crossing,
    Oscillation,
    find_oscillations,
    join_crossings,
)
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.codec import Arrays, decode_table, encode_table, typed
from dlf_dynamics.config import BifurcationConfig, ExplainConfig
from dlf_dynamics.errors import FileError
from dlf_dynamics.parts import Parts
from dlf_dynamics.run import Run


@dataclass(frozen=True)
class Event:
    """An oscillation near the step; -1 and NaN stand for what does not exist or is not known.

    Attributes:
        onset: first oscillating step.
        end: last oscillating step.
        onset_known: whether it begins there; else the steps that were looked at begin within it.
        end_known: likewise, of its end.
        begin_seen: whether crossings were looked for where it begins, and before.
        crossed: first step after the crossing up at the centres that belongs to it.
        returned: first step after the last crossing down in it, or else after it.
        predicted_lag: steps from `crossed` to the onset, by the growth of rounding errors.
        settled: step at which its size was measured.
        amplitude: that size, along the top eigenvector there.
        flip_amplitude: predicted from the flip coefficient.
        rod_amplitude: predicted by the rod equation.
    """

    onset: int
    end: int
    onset_known: bool = True
    end_known: bool = True
    begin_seen: bool = False
    crossed: int = -1
    returned: int = -1
    predicted_lag: int = -1
    settled: int = -1
    amplitude: float = float("nan")
    flip_amplitude: float = float("nan")
    rod_amplitude: float = float("nan")


@dataclass(frozen=True)
class Around:
    """The steps around the explained one.

    Attributes:
        steps: consecutive steps.
        loss: F(θ_t, t), on the examples of the step.
        update_cosine: cosine of the updates θ_(t+1) - θ_t and θ_t - θ_(t-1).
        periods: periods of the oscillation at each; see `periods_of_iterates`.
        projection: projection of θ_t - c_t on the mode of the explained step.
        gate_flips: hidden units times examples that change side to the next step, as a part of all;
            NaN for smooth activations, and for the networks of recorded runs.
        looked_at: steps at which the curvature was computed.
        values: largest eigenvalue at the centres of these.
        converged: whether these are certified.
        thresholds: thresholds at these; NaN where there is none.
    """

    steps: Int[np.ndarray, " steps"]
    loss: Float[np.ndarray, " steps"]
    update_cosine: Float[np.ndarray, " steps"]
    periods: Int[np.ndarray, " steps"]
    projection: Float[np.ndarray, " steps"]
    gate_flips: Float[np.ndarray, " steps"]
    looked_at: Int[np.ndarray, " looked"]
    values: Float[np.ndarray, " looked"]
    converged: Bool[np.ndarray, " looked"]
    thresholds: Float[np.ndarray, " looked"]


class Surroundings(NamedTuple):
    """What is known around a step.

    Attributes:
        origin: source of it, in words.
        motion: what the run does at the steps that were looked at.
        thresholds: thresholds at the steps whose curvature was.
        crossings: crossings at the centres, the last one before the step and the next one.
        events: the oscillation that the step lies in, else the last one before it and the next.
        unwatched: why oscillations were not looked for; empty where they were.
    """

    origin: str
    motion: Motion
    thresholds: Float[np.ndarray, " looked"]
    crossings: list[Crossing]
    events: list[Event]
    unwatched: str


def _span_around(replay: Replay, step: int, reach: int) -> tuple[int, int]:
    """First step around one, and the step after the last; within those that have a centre."""
    first = max(int(replay.run.checkpoint_steps[0]), step - reach)
    return first, min(step + reach + 1, replay.last)


def known_around(run: Run, step: int, config: ExplainConfig) -> Surroundings | None:
    """Reads RUN.bifurcations.h5, if it matches the run as it is now and covers the steps shown."""
    analysis = analysis_named("bifurcations")
    path = analysis.path(run.path)
    if not path.exists():
        return None
    try:
        bifurcations: Bifurcations = analysis.load(path, run)
    except FileError:  # of an earlier state, damaged, or of another format: computed instead
        return None
    first, stop = _span_around(Replay(run), step, config.window)
    steps = bifurcations.motion.steps
    if steps[0] > first or steps[-1] < stop - 1:
        return None
    events = [
        _event(each, _cut(bifurcations.motion, each.onset, each.end))
        for each in _nearest(bifurcations.instabilities, step)
    ]
    near = _passed(bifurcations.crossings, step)
    return Surroundings(
        path.name,
        bifurcations.motion,
        bifurcations.thresholds,
        near,
        events,
        bifurcations.unwatched,
    )


def look_around(
    replay: Replay, solver: Solver, step: int, config: ExplainConfig, parts: Parts
) -> Surroundings:
    """Replays the steps around one, in parts, and describes them.

    Args:
        replay: the run's steps, made again.
        solver: how the largest eigenvalues are found.
        step: step in the middle.
        config: how far to look, and at which steps.
        parts: where finished parts are kept.
    """
    run = replay.run
    start, stop = _span_around(replay, step, max(config.reach, config.window))
    length = max(int(0.95 * replay.length) // config.every, 1) * config.every
    sampled_steps = np.arange(-(-max(start, 1) // config.every) * config.every, stop, config.every)
    sampled_steps = np.union1d(sampled_steps, [max(start, 1), stop - 1])
    edges = [start, *range(start + length - config.every // 2, stop - 1, length), stop]
    pieces = []
    for first, last in pairwise(edges):
        within = (sampled_steps >= first) & (sampled_steps < last)
        inside = sampled_steps[within].tolist() or [last - 1]

        def piece(first: int = first, last: int = last, inside: list[int] = inside) -> Arrays:
            made = follow(replay, solver, first, last, inside)._asdict()
            return made | {"deviation": replay.deviation}

        def parse(arrays: Arrays) -> Motion:
            rest = dict(arrays)
            replay.deviation = max(replay.deviation, float(rest.pop("deviation")))
            return typed(Motion, rest)

        pieces.append(parts.get_or_make(f"around-{step}-{first}", piece, parse))
    motion = joined(pieces)
    if not run_threshold(run).reason:
        looks = lambda: locate_crossings(replay, solver, motion).looks  # noqa: E731
        put = lambda arrays: typed(Motion, motion._asdict() | arrays)  # noqa: E731
        motion = parts.get_or_make(f"around-{step}-located", looks, put)
    return _told(replay, solver, config, motion, step, parts)


def _told(
    replay: Replay,
    solver: Solver,
    config: ExplainConfig,
    motion: Motion,
    step: int,
    parts: Parts,
) -> Surroundings:
    """Crossings and oscillations of the motion, with those that recorded rows tell beyond it."""
    run, limits = replay.run, thresholds_of(replay, motion)
    origin = f"steps {motion.steps[0]:,} to {motion.steps[-1]:,} replayed"
    crossings = crossings_of(motion, limits)
    near = _passed(crossings, step)
    if run.dynamics.batch_size is not None:
        return Surroundings(origin, motion, limits, near, [], BATCH_NOISE)
    windows = find_oscillations(motion.steps, motion.loss, motion.update_cosine)
    events, whole = [], _recorded_oscillations(run)
    for window in _nearest(join_crossings(windows, crossings), step):
        cut = _cut(motion, window.onset, window.end)
        event = Event(window.onset, window.end, *cut, crossed=window.crossed)
        if not run.kinks:  # the rest is theory of smooth maps
            how = BifurcationConfig(seed=config.seed, tol=config.tol)
            make = lambda w=window, how=how: encode_table(  # noqa: E731
                Instability, [describe(replay, solver, how, motion, w, crossings)[0]]
            )
            parse = partial(decode_table, Instability)
            (known,) = parts.get_or_make(f"event-{step}-{window.onset}", make, parse)
            event = _event(known, cut)
        events.append(_completed(event, whole))
    shown = _nearest(_beyond(events, whole, motion), step)
    if whole:
        origin += ", beyond them recorded rows"
    return Surroundings(origin, motion, limits, near, shown, "")


def _recorded_oscillations(run: Run) -> list[Oscillation]:
    """Oscillations of the whole run by its recorded rows; none without recorded cosines."""
    if run.dynamics.batch_size is not None or not len(run.steps):
        return []
    cosine = run.scalars["update_cosine"]
    if not np.any(np.isfinite(cosine)) or np.any(np.diff(run.steps) != 1):
        return []
    return find_oscillations(run.steps, run.scalars["loss"], cosine)


def _event(instability: Instability, cut: tuple[bool, bool, bool]) -> Event:
    names = ("crossed", "returned", "predicted_lag", "settled")
    sizes = ("amplitude", "flip_amplitude", "rod_amplitude")
    told = {name: getattr(instability, name) for name in (*names, *sizes)}
    return Event(instability.onset, instability.end, *cut, **told)


def _cut(motion: Motion, onset: int, end: int) -> tuple[bool, bool, bool]:
    """Whether onset and end of a window are known, and its beginning was looked at."""
    first, last = int(motion.steps[0]), int(motion.steps[-1])
    # Windows that are close to each other are one.
    begins = first <= 1 or onset > first + _CLOSE
    return begins, end < last - _CLOSE, begins


_CLOSE = 50
"""Steps without oscillation that a window may have; see `events.find_oscillations`."""


def _completed(event: Event, whole: list[Oscillation]) -> Event:
    """Takes onset and end from the recorded rows where they lie beyond the steps looked at."""
    mine = [w for w in whole if w.onset <= event.end and w.end >= event.onset]
    if len(mine) != 1:
        return event
    if not event.onset_known:
        event = replace(event, onset=mine[0].onset, onset_known=True)
    if not event.end_known:
        event = replace(event, end=mine[0].end, end_known=True)
    return event


def _beyond(events: list[Event], whole: list[Oscillation], motion: Motion) -> list[Event]:
    """Adds the oscillations of the recorded rows before and after the steps looked at."""
    first, last = int(motion.steps[0]), int(motion.steps[-1])
    before = [Event(w.onset, w.end) for w in whole if w.end < first][-1:]
    after = [Event(w.onset, w.end) for w in whole if w.onset > last][:1]
    return [*before, *events, *after]


Window = TypeVar("Window", Oscillation, Instability, Event)


def _passed(crossings: list[Crossing], step: int) -> list[Crossing]:
    """The last crossing before a step, and the next one."""
    before = [c for c in crossings if c.step_after <= step][-1:]
    return before + [c for c in crossings if c.step_after > step][:1]


def _nearest(windows: list[Window], step: int) -> list[Window]:
    """The window that a step lies in, else the last one before it and the next one."""
    inside = [w for w in windows if w.onset <= step <= w.end]
    before = [w for w in windows if w.end < step][-1:]
    after = [w for w in windows if w.onset > step][:1]
    return inside or before + after


def around_of(
    replay: Replay,
    surroundings: Surroundings,
    step: int,
    window: int,
    direction: Float[np.ndarray, " params"],
) -> Around:
    """The steps around one, with the projection on its mode.

    Args:
        replay: the run's steps, made again.
        surroundings: what is known around the step.
        step: the explained one.
        window: steps before and after it.
        direction: unit mode.
    """
    start, stop = _span_around(replay, step, window)
    motion = surroundings.motion
    shown = slice(start - int(motion.steps[0]), stop - int(motion.steps[0]))
    sampled = (motion.looked_at >= start) & (motion.looked_at < stop)
    updates = [part.previous_update @ direction for part in replay.stretches(start, stop + 1)]
    along = np.concatenate(updates).astype(float)
    projection = (along[:-1] - along[1:]) / 4
    if start == 0:
        projection[0] = np.nan  # there is no step before it
    return Around(
        motion.steps[shown],
        motion.loss[shown],
        motion.update_cosine[shown],
        motion.periods[shown],
        projection,
        motion.gate_flips[shown],
        motion.looked_at[sampled],
        motion.values[sampled],
        motion.converged[sampled],
        surroundings.thresholds[sampled],
    )
