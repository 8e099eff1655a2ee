"""`Instability`: an oscillation of a run: when it became possible, began and ended, and its kind.

The facts are kept apart: the crossing of the threshold, the onset of the oscillation, its period,
its size as measured and as predicted, and its end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.bifurcation.flip import FlipCoefficient, flip_coefficient
from dlf_dynamics.analysis.bifurcation.rod import rod_amplitude
from dlf_dynamics.analysis.instabilities.lag import (
    VISIBLE_RATIO,
    forgotten_from,
    predicted_onset,
    rounding_noise,
)
from dlf_dynamics.analysis.instabilities.location import Centre, centre_of
from dlf_dynamics.analysis.instabilities.oscillation import Motion
from dlf_dynamics.analysis.instabilities.periods import IRREGULAR, periods_of_loss
from dlf_dynamics.analysis.instabilities.training_map import equivalent_rate
from dlf_dynamics.analysis.instabilities.unstable import UnstableDirection, unstable_directions
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import Crossing, Oscillation
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.analysis.stability.threshold import growth_factors
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.run import Run

_GROWTH_STEPS = 30
"""Steps before the onset over which the growth is measured."""

_SETTLING_STEPS = 200
"""Steps after the onset within which the size of the oscillation is measured."""

_SYMMETRIC = 1e-6
"""Change of the loss from step to step, relative to its size, below which an orbit of period 2
counts as one in a symmetric valley."""

NON_SMOOTH = "non-smooth"


@dataclass(frozen=True)
class Instability:
    """A window of oscillation; -1 and NaN where something does not exist or is not known.

    Attributes:
        onset: first oscillating step.
        end: last oscillating step.
        crossed: first step after the crossing at which the centre is surely above the threshold.
        returned: first step after the last crossing down in the window, or else after it.
        predicted_lag: steps from `crossed` to the onset, by the growth of rounding errors; -1 where
            they would not be seen before the next crossing down or the end of the window, and where
            some of an earlier oscillation may be left at the crossing.
        log_growth: Σ ln |m_t| from the crossing to the onset, the logarithm of the factor by which
            a deviation has grown.
        growth: measured growth factor per step of the oscillation before the onset.
        predicted_growth: |m_t|, |1 - ηλ| for gradient descent, over the same steps.
        period_2: fraction of the oscillating steps at which the period is 2.
        period_4: fraction at which it is 4.
        period_8: fraction at which it is 8.
        irregular: fraction at which it is none of these.
        seen_in_loss: fraction of the oscillating steps at which the loss alone shows period 2 or 4.
        symmetric: whether an orbit of period 2 leaves the loss constant.
        gate_flips: fraction of the hidden units times examples that change side from one step to
            the next, mean over the oscillating steps; NaN for smooth activations.
        sharpness: largest eigenvalue at the centre of the onset.
        settled: step at which the size is measured, that of the largest ‖θ_t - c_t‖ soon after the
            onset.
        amplitude: largest |projection| of θ_t - c_t there on the eigenvectors that were above the
            threshold at the centre of the onset, as they have become since, or on the top one; NaN
            where they were lost, see `UnstableDirection`. In files before version 4.2, the
            projection on the top eigenvector at the centre of `settled` itself.
        alignment: the amplitude as a fraction of ‖θ_t - c_t‖.
        flip_amplitude: √(ε/c) predicted from the flip coefficient c at the onset.
        coefficient: c at the configured horizon.
        c_0: flip coefficient without the response of the other parameters.
        c_5: flip coefficient with their response after 5 steps.
        c_20: flip coefficient with their response after 20 steps.
        drift: drift of the flip coefficient.
        criticality: `supercritical`, `subcritical`, `non-smooth` for a piecewise-linear activation,
            or empty where it is not known.
        criticality_reason: why it is not known; empty where it is.
        rod_amplitude: amplitude by the rod equation at the centre of `settled`, if the period is 2.
        rod_residual: relative residual of the rod equation.
    """

    onset: int
    end: int
    crossed: int
    returned: int
    predicted_lag: int
    log_growth: float
    growth: float
    predicted_growth: float
    period_2: float
    period_4: float
    period_8: float
    irregular: float
    seen_in_loss: float
    symmetric: bool
    gate_flips: float
    sharpness: float
    settled: int
    amplitude: float
    alignment: float
    flip_amplitude: float
    coefficient: float
    c_0: float
    c_5: float
    c_20: float
    drift: float
    criticality: str
    criticality_reason: str
    rod_amplitude: float
    rod_residual: float

    @property
    def lag(self) -> int | None:
        """Onset minus crossing, in steps; none without a crossing."""
        return None if self.crossed < 0 else self.onset - self.crossed


def describe(
    replay: Replay,
    solver: Solver,
    config: BifurcationConfig,
    motion: Motion,
    window: Oscillation,
    crossings: list[Crossing],
) -> tuple[Instability, list[UnstableDirection]]:
    """All that is known of one window, and the directions that are unstable at its onset.

    Args:
        replay: replay of the run.
        solver: solver for the largest eigenvalue.
        config: settings of the analysis.
        motion: motion over the whole run.
        window: window of oscillation, with the crossing that belongs to it.
        crossings: located crossings at the centres.
    """
    facts: dict[str, object] = {"onset": window.onset, "end": window.end}
    facts |= _crossed(window, crossings)
    facts |= _periods(motion, window)
    if 0 <= window.crossed < window.onset:
        facts |= _growth(replay.run, motion, window)
        if not replay.run.kinks:  # the theory is one of smooth maps
            facts |= _predicted(replay, solver, motion, window, crossings)
    settled = _settled(motion, window)
    there = centre_of(replay, solver, settled)
    directions = unstable_directions(replay, solver, window.onset, there, settled)
    facts["settled"] = settled
    if directions:
        largest = max(directions, key=lambda one: np.nan_to_num(one.amplitude, nan=-1.0))
        facts |= {"amplitude": largest.amplitude, "alignment": largest.alignment}
    facts |= _kind(replay, solver, config, window.onset)
    if "coefficient" in facts and motion.periods[settled - int(motion.steps[0])] == 2:
        facts |= _rod(replay.run, there, settled)  # the equation holds for orbits of that period
    missing = {f.name: _MISSING[str(f.type)] for f in fields(Instability) if f.name not in facts}
    return Instability(**(missing | facts)), directions  # type: ignore[arg-type]


_MISSING = {"int": -1, "float": float("nan"), "bool": False, "str": ""}


def _crossed(window: Oscillation, crossings: list[Crossing]) -> dict[str, object]:
    downs = [c.step_after for c in crossings if c.direction == "down"]
    within = [step for step in downs if window.onset < step <= window.end]
    if window.crossed >= 0 and not within:
        within = [step for step in downs if step > window.end][:1]
    return {"crossed": window.crossed, "returned": within[-1] if within else -1}


def _periods(motion: Motion, window: Oscillation) -> dict[str, object]:
    first = int(motion.steps[0])
    in_window = slice(window.onset - first, window.end + 1 - first)
    loss, period = motion.loss, motion.periods[in_window]
    shown = periods_of_loss(loss)[in_window]
    oscillating = period != 0
    share = lambda mask: float(np.mean(mask[oscillating]))  # noqa: E731
    change = np.abs(np.diff(loss[in_window], prepend=np.nan)) / np.abs(loss[in_window])
    two = period == 2
    return {
        "period_2": share(two),
        "period_4": share(period == 4),
        "period_8": share(period == 8),
        "irregular": share(period == IRREGULAR),
        "seen_in_loss": share(shown > 0),
        "symmetric": bool(np.any(two) and np.nanmedian(change[two]) < _SYMMETRIC),
        "gate_flips": float(np.mean(motion.gate_flips[in_window][oscillating])),
    }


def _factors(run: Run, motion: Motion, steps: Int[np.ndarray, " steps"]) -> Float[np.ndarray, " s"]:
    """Growth factors at steps; between sampled centres the curvature is interpolated linearly."""
    good = motion.converged
    if not np.any(good):
        return np.full(len(steps), np.nan)
    values = np.interp(steps, motion.looked_at[good], motion.values[good])
    return growth_factors(run.dynamics.optimizer, steps, values)


def _growth(run: Run, motion: Motion, window: Oscillation) -> dict[str, object]:
    """Growth from the crossing to the onset, measured and predicted."""
    first, crossed, onset = int(motion.steps[0]), window.crossed, window.onset
    logs = np.log(_factors(run, motion, np.arange(crossed, onset)))
    facts: dict[str, object] = {"log_growth": float(np.sum(logs))}
    if onset - crossed > _GROWTH_STEPS:
        last = slice(onset - _GROWTH_STEPS - first, onset - first)
        signed = motion.projection[last] * (-1.0) ** np.arange(_GROWTH_STEPS)
        if np.all(signed > 0) or np.all(signed < 0):
            rate = np.polyfit(np.arange(_GROWTH_STEPS), np.log(np.abs(signed)), 1)[0]
            facts["growth"] = float(np.exp(rate))
            facts["predicted_growth"] = float(np.exp(np.mean(logs[-_GROWTH_STEPS:])))
    return facts


def _predicted(
    replay: Replay,
    solver: Solver,
    motion: Motion,
    window: Oscillation,
    crossings: list[Crossing],
) -> dict[str, object]:
    """The predicted lag; only this window counts, as later ones say nothing about it."""
    first, crossed = int(motion.steps[0]), window.crossed
    downs = [c.step_after for c in crossings if c.direction == "down" and c.step_after > crossed]
    stop = min([*downs[:1], window.end]) + 1
    steps = np.arange(max(first, 1), stop)
    factors = _factors(replay.run, motion, steps)
    centre = centre_of(replay, solver, crossed)
    if not (centre.converged and np.all(np.isfinite(factors))):
        return {}
    noise = rounding_noise(centre.params, centre.vector, centre.params.dtype)
    before = crossed - steps[0]
    amplitude = motion.amplitude[steps - first]
    begin = forgotten_from(factors[:before], amplitude[:before], noise)
    if begin is None:
        return {}
    visible = VISIBLE_RATIO * motion.drift[steps - first]
    expected = predicted_onset(factors[begin:], noise, visible[begin:])
    if expected is None or begin + expected < before:
        return {}
    return {"predicted_lag": int(begin + expected - before)}


def _settled(motion: Motion, window: Oscillation) -> int:
    """The step of the largest distance from the centre, soon after the onset."""
    first = int(motion.steps[0])
    stop = min(window.onset + _SETTLING_STEPS, window.end) + 1 - first
    sizes = motion.amplitude[window.onset - first : stop]
    return window.onset + int(np.argmax(np.where(np.isfinite(sizes), sizes, -np.inf)))


def _kind(
    replay: Replay, solver: Solver, config: BifurcationConfig, onset: int
) -> dict[str, object]:
    """The flip coefficient at the onset, or why it is not known."""
    run, threshold = replay.run, run_threshold(replay.run)
    if threshold.reason or run.dynamics.adaptive:
        reason = threshold.reason and threshold.label()
        return {"criticality_reason": reason or "the preconditioner changes from step to step"}
    centre = centre_of(replay, solver, onset)
    if not centre.converged:
        reason = "the top eigenvector at the centre of the onset did not converge"
        return {"criticality_reason": reason}
    flip = flip_coefficient(
        run.problem,
        jnp.asarray(centre.params),
        equivalent_rate(run, onset),
        eigenvector=jnp.asarray(centre.vector),
        step=onset,
        horizon=config.horizon,
    )
    return {"sharpness": centre.value, **_normal_form(run, flip)}


def _normal_form(run: Run, flip: FlipCoefficient) -> dict[str, object]:
    if not flip.converged:
        return {"criticality_reason": flip.reason}
    facts: dict[str, object] = {
        "coefficient": flip.coefficient,
        **{f"c_{n}": float(flip.finite_time[n]) for n in (0, 5, 20)},
        "drift": flip.drift,
        "criticality": flip.criticality,
        "criticality_reason": flip.reason,
        "flip_amplitude": flip.amplitude(),
    }
    if run.kinks:
        # The derivatives miss the kinks that the oscillation crosses.
        facts |= {"criticality": NON_SMOOTH, "criticality_reason": ""}
        facts["flip_amplitude"] = float("nan")
    return facts


def _rod(run: Run, centre: Centre, step: int) -> dict[str, object]:
    if not (np.all(np.isfinite(centre.offset)) and np.any(centre.offset)):
        return {}
    rod = rod_amplitude(
        run.problem,
        jnp.asarray(centre.params),
        equivalent_rate(run, step),
        jnp.asarray(centre.offset),
        step=step,
    )
    return {"rod_amplitude": rod.amplitude, "rod_residual": rod.residual} if rod.converged else {}
