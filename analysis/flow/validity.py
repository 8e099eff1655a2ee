"""`Look`: whether the central flow can hold at a step, and the numbers that decide it.

The rule is fixed: the same for all runs, and decided by the run alone. Nothing that the flow
predicts enters, so that agreement cannot make a step count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FIRST_STEPS = 150
"""Steps from the start of a run in which the network is not yet on a slow path."""

LARGEST_CHANGE = 0.05
"""Change of the oscillation per step, relative to its size, from which on it is not settled."""

LARGEST_GROWTH = 0.1
"""Growth per step, in units of the rate at which the oscillation acts back on the sharpness, from
which on it is not settled. An oscillation that overshoots and comes back with that rate has an
amplitude that is off by this part."""

LEAST_GROWTH = 1e-4
"""Growth per step that is never taken for growth: 1 % of the energy in 50 steps."""

_ROUNDINGS = 4
"""Relative roundings of d that the change of its growth may have from that alone."""

LEAST_EFFECT = 0.01
"""Rate of that, and part of its own force that is not linear, below which an oscillation that a
drift hides does nothing yet: at that rate the sharpness changes by half a percent in 100 steps."""

LARGEST_REST = 0.1
"""Part of a force of the oscillation that third derivatives do not explain, from which on the
oscillation is not small."""

SILENT = 0.01
"""Part of the energy below which a mode does not oscillate."""

TRACKED = 0.9
"""Part of the threshold from which on a mode counts as one that may oscillate."""

REASONS = (
    "first steps",
    "not finite",
    "period",
    "kinks",
    "lag",
    "not settled",
    "not small",
    "unresolved",
)
"""Why the central flow cannot hold at a step, in the order in which they are tried."""


@dataclass(frozen=True)
class Look:
    """One step, about whose centre c the iterate oscillates by d; NaN stands for what is not known.

    All is of the loss of that step. E is 2 over the threshold, the learning rate of gradient
    descent that has the same orbits of period 2; the odd force is ½[∇F(c+d) - ∇F(c-d)], the even
    one ½[∇F(c+d) + ∇F(c-d)] - ∇F(c).

    Attributes:
        step: number of updates made.
        threshold: critical eigenvalue of the optimizer.
        sharpness: largest eigenvalue of the Hessian at c.
        sharpness_low: lower end of its interval, NaN where it did not converge.
        sharpness_high: upper end of its interval.
        modes: eigenvalues that may be above 0.9 of the threshold, of the three that are looked at.
        gap: certified distance of these from the next eigenvalue, in units of the threshold; 0
            where none is certified or that may be above 0.9, too; NaN where there are no such modes
            or no others.
        silent: largest lower end of an eigenvalue whose mode has less than a hundredth of the
            energy, of those looked at; NaN where there is none.
        oscillating: whether successive updates point against each other; or successive d do, where
            a faster drift hides that, and have an effect.
        secant: dᵀ (odd force) / |d|², the curvature that the oscillation itself sees.
        growth: relative growth of the oscillation per step at that curvature, negative where it
            dies.
        swing: largest growth or decay per step that the energy shows in the steps around the look,
            once it is `judged`.
        bend: largest change per step of that growth in the same steps, beyond rounding; the
            oscillation that would hold the sharpness at once is off from the one that is there by
            this over the square of `response`, as a part of it.
        change: part of itself by which d changes in a step, turns included.
        response: rate per step at which the oscillation acts back on the sharpness.
        odd: part of the odd force that is not Hd.
        even: part of the even force that is not ½D³F[d, d]; or of what is orthogonal to d in both,
            which is what moves the centre slowly, if that is larger.
        rest: what of the odd force is not Hd, as a part of Hd or of ∇F(c), whichever is larger. It
            is asked for where nothing oscillates, as iterates may jump about without any order.
        period: period of the oscillation; once it is `judged`, the deciding one of the steps around
            the look.
        gate_flips: part of the gates that change side in a step; around the look, once it is
            `judged`, the largest. NaN where the loss has kinks and the gates are not known.
        reason: one of `REASONS`; empty where the flow can hold.
    """

    step: int
    threshold: float
    sharpness: float
    sharpness_low: float
    sharpness_high: float
    modes: int
    gap: float
    silent: float
    oscillating: bool
    secant: float
    growth: float
    change: float
    response: float
    odd: float
    even: float
    rest: float
    period: int
    gate_flips: float
    swing: float = 0.0
    bend: float = 0.0
    reason: str = ""


class Steps(NamedTuple):
    """What is known of every step between looks.

    Attributes:
        steps: consecutive steps.
        energy: |d|².
        period: period of the oscillation.
        gate_flips: part of the gates that change side in the step.
        rounding: rounding error of d, relative to |d|.
    """

    steps: Int[np.ndarray, " steps"]
    energy: Float[np.ndarray, " steps"]
    period: Int[np.ndarray, " steps"]
    gate_flips: Float[np.ndarray, " steps"]
    rounding: Float[np.ndarray, " steps"]


def judged(looks: Sequence[Look], between: Steps, first: int) -> list[Look]:
    """The looks with their verdicts, which the steps around them take part in.

    These go from the look before to the look after, and for growth as far as the oscillation takes
    to act back on the sharpness.

    Args:
        looks: looks in the order of steps.
        between: the steps from the first look to the last, and as far beyond as they `reach`.
        first: first step of the run.
    """
    at = [look.step for look in looks]
    growth, bend = np.abs(_growth(between.energy)), _bend(between)
    row = partial(np.searchsorted, between.steps)
    verdicts = []
    for look, before, after in zip(looks, at[:1] + at[:-1], at[1:] + at[-1:], strict=True):
        near = slice(row(before), row(after, side="right"))
        start, stop = min(before, look.step - reach(look)), max(after, look.step + reach(look))
        far = slice(row(start), row(stop, side="right"))
        whole = replace(
            look,
            period=_deciding(np.append(between.period[near], look.period)),
            gate_flips=float(np.max(between.gate_flips[near])),
            swing=float(np.max(growth[far])),
            bend=float(np.max(bend[far])),
        )
        verdicts.append(replace(whole, reason=reason_of(whole, first)))
    return verdicts


def reach(look: Look) -> float:
    """Steps before and after a look in which its oscillation must not grow or die."""
    slow = LARGEST_GROWTH * look.response <= LEAST_GROWTH
    return 1 / look.response if look.oscillating and not slow else 0.0


def _growth(energy: Float[np.ndarray, " steps"]) -> Float[np.ndarray, " steps"]:
    """Growth of the amplitude per step, over two steps; 0 where a neighbour is not known."""
    growth = np.zeros(len(energy))
    with np.errstate(divide="ignore", invalid="ignore"):
        growth[1:-1] = np.log(energy[2:] / energy[:-2]) / 4
    return growth


def _bend(between: Steps) -> Float[np.ndarray, " steps"]:
    """Change of the growth per step, over four steps, beyond rounding; 0 where it is not known."""
    bend = np.zeros(len(between.steps))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.log(between.energy) / 2
        curved = np.abs(size[4:] - 2 * size[2:-2] + size[:-4]) / 4
        bend[2:-2] = np.fmax(curved - _ROUNDINGS * between.rounding[2:-2], 0)
    return bend


def _deciding(periods: Int[np.ndarray, " steps"]) -> int:
    """Irregular where one step is, else the longest."""
    return int(np.min(periods) if np.any(periods < 0) else np.max(periods, initial=0))


def reason_of(look: Look, first: int) -> str:
    """The first of `REASONS` that applies to a look; empty where none does.

    Args:
        look: look with all of its numbers.
        first: first step of the run.
    """
    told = (look.sharpness, look.secant, look.growth, look.change, look.response)
    applies = (
        look.step - first < FIRST_STEPS,
        not np.all(np.isfinite(told)),
        look.period not in (0, 2),
        not look.gate_flips <= 0,
        _late(look),
        look.oscillating and _unsettled(look),
        not (max(look.odd, look.even) if look.oscillating else look.rest) <= LARGEST_REST,
        look.gap == 0,
    )
    return next((r for r, it_applies in zip(REASONS, applies, strict=True) if it_applies), "")


def _late(look: Look) -> bool:
    """Whether a mode is above the threshold and does not oscillate, or not yet.

    Where there is an oscillation, the largest eigenvalue may be above it by what the oscillation
    itself explains.
    """
    explained = (LARGEST_CHANGE + 2 * look.odd) / 2 if look.oscillating else 0.0
    return look.silent > look.threshold or look.sharpness_low > (1 + explained) * look.threshold


def _unsettled(look: Look) -> bool:
    """Whether the oscillation still grows or dies."""
    allowed = min(LARGEST_CHANGE, max(LEAST_GROWTH, LARGEST_GROWTH * look.response))
    growth = max(abs(look.growth), look.swing)
    immediate = reach(look) == 0 or look.bend <= LARGEST_GROWTH * look.response**2
    return not (look.change <= LARGEST_CHANGE and growth <= allowed and immediate)
