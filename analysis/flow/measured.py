"""`Piece`: what a run did in the terms of the central flow: centres, and what oscillates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.flow.forces import Forces, forces, numbers_of
from dlf_dynamics.analysis.flow.validity import LEAST_EFFECT, SILENT, TRACKED, Look
from dlf_dynamics.analysis.instabilities.oscillation import gate_flips
from dlf_dynamics.analysis.instabilities.periods import LAGS, periods_of_iterates
from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import OSCILLATING_COSINE
from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.analysis.spectra.points import CENTRE
from dlf_dynamics.analysis.spectra.replay import Replay, Stretch
from dlf_dynamics.analysis.spectra.segments import solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.analysis.stability.linearised import linear_maps
from dlf_dynamics.codec import Arrays
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.trained import TrainedRun

MODES = 3
"""Eigenvalues that are computed; the last one separates the others from the rest."""

_ROUNDING = 64
"""Spacings of floating-point numbers up to which a deviation is rounding. Below the edge, where the
multiplier is -(1 - ε), it is kept alternating with up to 1/ε of the half spacing of each step."""

_AHEAD = LAGS[-1] + 1
"""Steps after a step from which its period is determined."""


class Piece(NamedTuple):
    """Consecutive steps t of a run, each with the centre that its iterate oscillates about.

    Attributes:
        steps: number of updates made, t.
        centres: c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1).
        deviations: d_t = θ_t - c_t.
        loss: averaged as the centre is, over F(θ_t, t) of the three steps.
        energy: |d_t|².
        period: period of the oscillation by `periods_of_iterates`, from the updates, so that a
            drift does not matter.
        gate_flips: part of the gates that change side from θ_(t-1) to θ_t or from θ_t to θ_(t+1),
            the larger; 0 where the loss is smooth, NaN where it has kinks and no gates are known.
        rounding: rounding error of d_t, relative to |d_t|.
        visible: whether successive updates point against each other, beyond rounding.
        looks: steps of the piece that were looked at closer, not yet `judged`.
    """

    steps: Int[np.ndarray, " steps"]
    centres: Float[np.ndarray, "steps params"]
    deviations: Float[np.ndarray, "steps params"]
    loss: Float[np.ndarray, " steps"]
    energy: Float[np.ndarray, " steps"]
    period: Int[np.ndarray, " steps"]
    gate_flips: Float[np.ndarray, " steps"]
    rounding: Float[np.ndarray, " steps"]
    visible: Bool[np.ndarray, " steps"]
    looks: list[Look]
    __repr__ = brief


def restricted(
    deviation: Float[np.ndarray, " params"], modes: Float[np.ndarray, "k params"]
) -> Float[np.ndarray, "k k"]:
    """Covariance d dᵀ of an oscillation in the space of some modes.

    Args:
        deviation: d, from the centre.
        modes: orthonormal rows.

    >>> restricted(np.array([3.0, 4.0, 5.0]), np.eye(3)[:2]).tolist()
    [[9.0, 12.0], [12.0, 16.0]]
    """
    along = modes @ deviation
    return np.outer(along, along)


def first_step(run: Run) -> int:
    """The first step that is known of a run."""
    return int(min(run.checkpoint_steps[0], *run.steps[:1]))


def measured(
    replay: Replay,
    start: int,
    stop: int,
    every: int | None,
    *,
    max_matvecs: int = 200,
    seed: int = 0,
    between: Callable[[], None] = lambda: None,
) -> Iterator[Piece]:
    """Streams what a run did at the steps `start` to `stop` - 1, with looks at some of them.

    The first step of a run and its last one have no centre, and are left out.

    Args:
        replay: replay of the run.
        start: first step.
        stop: the step after the last.
        every: steps between two looks; the first step and the last are looked at, too. Without a
            number there is no look.
        max_matvecs: products per look at most.
        seed: number from which the random directions of the solver come.
        between: called between looks, so that it can raise an exception to stop the work.

    Raises:
        ConfigError: when the run has mini-batches, or an optimizer without a threshold, or no step
            with a centre there.
    """
    run = replay.run
    require_measurable(run)
    first, last = first_step(run) + 1, replay.last - 1
    start, stop = max(start, first), min(stop, last + 1)
    if start >= stop:
        raise ConfigError(
            f"no step has a centre there; those of {run.path} are {first} to {last}: ask for some "
            "of them"
        )
    settings = SpectrumConfig(
        k=min(MODES, run.num_params), max_matvecs=max_matvecs, seed=seed, ntk_examples=0
    )
    solver = Solver.from_config(run, settings)
    regular = np.arange(start, stop - 1, every or stop)
    sampled_steps = np.append(regular, stop - 1) if every else np.zeros(0, int)
    looks = partial(_looks, run, solver, between)
    return _pieces(replay, looks, start, stop, sampled_steps)


def require_measurable(run: Run) -> None:
    """Raises ConfigError where the central flow has no meaning for a run, with the reason."""
    threshold = run_threshold(run)
    if threshold.reason:
        raise ConfigError(f"{run.path} has no central flow: {threshold.reason}")
    if threshold.preconditioned:
        raise ConfigError(
            f"{run.path} has no central flow here: {threshold.name} divides by a root mean square "
            "of the gradients, which the oscillation changes, too; expected gradient descent, with "
            "momentum or without"
        )


def _pieces(
    replay: Replay,
    looks: Callable[..., list[Look]],
    start: int,
    stop: int,
    sampled_steps: Int[np.ndarray, " looks"],
) -> Iterator[Piece]:
    """Pieces of as many steps as the replay makes in a call, each with some steps after it."""
    known: Stretch | None = None
    end = min(stop + _AHEAD, replay.last + 1)
    for stretch in replay.stretches(start - 1, end):
        known = stretch if known is None else _joined(known, stretch)
        final = known.first + len(known) == end
        while len(known) >= replay.length + _AHEAD + 1 or (final and known.first + 1 < stop):
            count = min(replay.length, stop - known.first - 1)
            steps = np.arange(known.first + 1, known.first + 1 + count)
            sampled = np.intersect1d(sampled_steps, steps)
            yield _piece(replay, looks, known, steps, sampled)
            known = Stretch(known.first + count, *(part[count:] for part in known[1:]))


def _joined(before: Stretch, after: Stretch) -> Stretch:
    columns = zip(before[1:], after[1:], strict=True)
    return Stretch(before.first, *(np.concatenate(pair) for pair in columns))


def _piece(
    replay: Replay,
    looks: Callable[..., list[Look]],
    known: Stretch,
    steps: Int[np.ndarray, " steps"],
    sampled_steps: Int[np.ndarray, " looks"],
) -> Piece:
    """The piece of a stretch that begins a step before the first and goes on after the last."""
    run, count = replay.run, len(steps)
    loss = known.loss.astype(float)
    params, updates = (part.astype(float) for part in known[1:3])
    moved = np.diff(updates, axis=0) / -4
    deviations, cosine = moved[1 : count + 1], known.update_cosine[1 : count + 1]
    with np.errstate(over="ignore", invalid="ignore"):
        energy = np.einsum("ij,ij->i", deviations, deviations)
        recurrence = _recurrence(updates, count)
        turned = np.einsum("ij,ij->i", deviations, moved[:count])
        turned /= np.sqrt(energy) * np.linalg.norm(moved[:count], axis=1)
        size = np.linalg.norm(params[1 : count + 1], axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        rounding = np.finfo(run.dtype).eps * size / np.sqrt(energy)
    beyond = _ROUNDING * rounding < 1
    piece = Piece(
        steps=steps,
        centres=params[1 : count + 1] - deviations,
        deviations=deviations,
        loss=loss[:count] / 4 + loss[1 : count + 1] / 2 + loss[2 : count + 2] / 4,
        energy=energy,
        period=np.where(beyond, periods_of_iterates(cosine, recurrence), 0),
        gate_flips=_flips(replay, known.params, count),
        rounding=rounding,
        visible=(cosine < OSCILLATING_COSINE) & beyond,
        looks=[],
    )
    hidden = np.where(beyond, periods_of_iterates(turned, recurrence), 0)
    return piece._replace(looks=looks(known, piece, hidden, sampled_steps))


def _recurrence(
    updates: Float[np.ndarray, "more params"], count: int
) -> Float[np.ndarray, "count lags"]:
    """How updates recur, beginning with that before each step; a drift does not change it.

    It is NaN where the run ends before; not for the first lag, whose updates have the step between.
    """
    norm = partial(np.linalg.norm, axis=1)
    recurrence, size = np.full((count, len(LAGS)), np.nan), norm(np.diff(updates, axis=0))
    for column, lag in enumerate(LAGS):
        apart = norm(updates[lag:] - updates[:-lag])[:count]
        recurrence[: len(apart), column] = apart / size[: len(apart)]
    return recurrence


def _flips(
    replay: Replay, params: Float[np.ndarray, "more params"], count: int
) -> Float[np.ndarray, " count"]:
    run = replay.run
    if not run.kinks:
        return np.zeros(count)
    if not isinstance(run, TrainedRun):
        return np.full(count, np.nan)
    room = replay.length + 2  # one compilation serves pieces of all lengths
    padded = np.pad(params, ((0, max(room - len(params), 0)), (0, 0)), constant_values=np.nan)
    flips = gate_flips(run, padded[:room])
    return np.maximum(flips[:count], flips[1 : count + 1])


def _looks(
    run: Run,
    solver: Solver,
    between: Callable[[], None],
    known: Stretch,
    piece: Piece,
    hidden: Int[np.ndarray, " steps"],
    sampled_steps: Int[np.ndarray, " looks"],
) -> list[Look]:
    """Looks at some steps of a piece; `hidden` are periods, also where a drift hides them."""
    if len(sampled_steps) == 0:
        return []
    states = [known.point(step) for step in sampled_steps.tolist()]
    spectra = _spectra(run, solver, states, between)
    rule = run_threshold(run)
    thresholds = rule.at(sampled_steps)
    maps = linear_maps(rule.optimizer, sampled_steps, rule.hyperparameters)
    rows = (sampled_steps - piece.steps[0]).tolist()
    at_looks = []
    for row, threshold in zip(rows, thresholds, strict=True):
        between()
        at_looks.append(_forces_at(run, solver, piece, row, threshold))
    numbers = numbers_of(at_looks, maps, thresholds)
    effect = np.fmax(numbers["response"], numbers["odd"]) > LEAST_EFFECT
    oscillating = piece.visible[rows] | ((hidden[rows] != 0) & effect)
    return [
        Look(
            step=int(piece.steps[row]),
            threshold=float(thresholds[index]),
            oscillating=bool(oscillating[index]),
            period=int(hidden[row] if oscillating[index] else 0),
            gate_flips=float(piece.gate_flips[row]),
            silent=_silent(spectra, index, piece.deviations[row]),
            **_modes(spectra, index, float(thresholds[index]), run.num_params),
            **_row(numbers, index),
        )
        for index, row in enumerate(rows)
    ]


def _spectra(
    run: Run, solver: Solver, states: list[FlatState], between: Callable[[], None]
) -> Arrays:
    """The largest eigenvalues and their eigenvectors at the centres."""

    def groups(most: int) -> Iterator[list[FlatState]]:
        for first in range(0, len(states), most):
            between()
            yield states[first : first + most]

    watch = lambda products: between()  # noqa: E731
    return solve_segment(run, solver, groups, points=CENTRE, keep_vectors=True, watch=watch)


def _row(numbers: dict[str, Float[np.ndarray, " looks"]], index: int) -> dict[str, Any]:
    return {name: float(column[index]) for name, column in numbers.items()}


def _silent(spectra: Arrays, index: int, deviation: Float[np.ndarray, " params"]) -> float:
    """Largest eigenvalue, at least, of those whose modes the oscillation does not hold."""
    low, along = _intervals(spectra, index)[0], spectra["eigenvectors"][index, 0] @ deviation
    with np.errstate(over="ignore", invalid="ignore"):
        quiet = low[along**2 < SILENT * (deviation @ deviation)]
    known = quiet[np.isfinite(quiet)]
    return float(np.max(known)) if len(known) else np.nan


def _intervals(spectra: Arrays, index: int) -> Float[np.ndarray, "2 k"]:
    """Lower and upper ends of the largest eigenvalues at a look, NaN where not certified."""
    fine = spectra["status"][index, 0] == CONVERGED
    return np.where(fine, spectra["intervals"][index, 0].T, np.nan)


def _modes(spectra: Arrays, index: int, threshold: float, size: int) -> dict[str, Any]:
    """What the largest eigenvalues at a look tell, by the names that they have in a `Look`."""
    values = spectra["eigenvalues"][index, 0]
    low, high = _intervals(spectra, index)
    below = np.append(high < TRACKED * threshold, True)
    count = int(np.argmax(below))
    beyond = np.append(high, spectra["rank_bounds"][index, 0, 0])
    gap = np.nan
    if 0 < count < size:
        apart = (low[count - 1] - beyond[count]) / threshold
        told = np.all(np.isfinite(low[:count])) and beyond[count] < TRACKED * threshold
        gap = apart if told and apart > 0 else 0.0
    largest = {"sharpness": values[0], "sharpness_low": low[0], "sharpness_high": high[0]}
    return {"modes": count, "gap": float(gap)} | {n: float(v) for n, v in largest.items()}


def _forces_at(run: Run, solver: Solver, piece: Piece, row: int, threshold: float) -> Forces:
    wide = Wide(run, needed=solver.precise)
    dtype, step = solver.dtype(run), np.int32(piece.steps[row])
    at = (part.astype(dtype) for part in (piece.centres[row], piece.deviations[row]))
    with wide.enabled():
        problem, batch_size = wide.dynamics.problem, solver.curvature.batch_size
        values = forces(problem, *at, step, dtype.type(threshold), batch_size=batch_size)
    return Forces(*np.asarray(values, float).tolist())
