"""`Observed`: what a run did at the steps at which theories are held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.flow.measured import Piece, first_step, measured
from dlf_dynamics.analysis.flow.validity import REASONS, Look, Steps, judged, reach
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.reprs import brief


@dataclass(frozen=True)
class Observed:
    """The run at steps that were looked at, and whether the central flow may be applied there.

    Attributes:
        looks: one for each, in the order of steps.
        steps: numbers of updates made.
        loss: averaged as the centre is, over F(θ_t, t) of three steps.
        energy: |d_t|², d_t being the deviation of the iterate from the centre.
        deviation: largest relative distance of replayed steps from a checkpoint.
    """

    looks: list[Look]
    steps: Int[np.ndarray, " steps"]
    loss: Float[np.ndarray, " steps"]
    energy: Float[np.ndarray, " steps"]
    deviation: float = 0.0
    __repr__ = brief

    def column(self, name: str) -> np.ndarray:
        """A number of all looks, by its name here or in `Look`."""
        if name in ("loss", "energy"):
            return getattr(self, name)
        return np.array([getattr(look, name) for look in self.looks])

    @property
    def valid(self) -> Bool[np.ndarray, " looks"]:
        """Whether the central flow may be applied at each look."""
        return self.column("reason") == ""

    @property
    def outside(self) -> dict[str, int]:
        """Number of looks outside, by the reason."""
        counts = Counter(look.reason for look in self.looks)
        return {reason: counts[reason] for reason in REASONS if counts[reason]}


def observe(
    replay: Replay,
    config: FlowConfig,
    start: int,
    stop: int,
    progress: Callable[[int], None] = lambda step: None,
) -> Observed:
    """Looks at a run, at the first step and every so many after it.

    Args:
        replay: replay of the run.
        config: how often, and with how many products.
        start: first step.
        stop: the step after the last.
        progress: told the step that was reached, between looks, too.
    """
    looks: list[Look] = []
    between, loss, energy = [], [], []
    reached = lambda: progress(int(between[-1].steps[-1]) if between else start)  # noqa: E731
    limits = {"max_matvecs": config.max_matvecs, "seed": config.seed}
    for piece in measured(replay, start, stop, config.every, **limits, between=reached):
        rows = np.array([look.step for look in piece.looks], int) - piece.steps[0]
        looks += piece.looks
        loss.append(piece.loss[rows])
        energy.append(piece.energy[rows])
        between.append(_steps(piece))
        progress(int(piece.steps[-1]))
    looks = _judged(replay, looks, _joined(between))
    return Observed(
        looks=looks,
        steps=np.array([look.step for look in looks]),
        loss=np.concatenate(loss),
        energy=np.concatenate(energy),
        deviation=replay.deviation,
    )


def _judged(replay: Replay, looks: list[Look], between: Steps) -> list[Look]:
    """The looks with verdicts that do not depend on where the requested steps end.

    Otherwise a few steps at a turning point of an oscillation that grows and dies would count.
    """
    first = first_step(replay.run)
    verdicts = judged(looks, between, first)
    start, stop = int(between.steps[0]), int(between.steps[-1]) + 1
    far = [(look.step, reach(look) + 2) for look in verdicts if look.reason == "" and reach(look)]
    before = max(min([start, *(floor(step - away) for step, away in far)]), first + 1)
    after = min(max([stop, *(ceil(step + away) + 1 for step, away in far)]), replay.last)
    if before < start or after > stop:
        sides = [
            [_steps(piece) for piece in measured(replay, begin, end, every=None)]
            for begin, end in ((before, start), (stop, after))
            if begin < end
        ]
        # These steps are not replayed again: a second replay may differ in rounding.
        parts = [between, *(steps for side in sides for steps in side)]
        verdicts = judged(looks, _joined(sorted(parts, key=lambda part: part.steps[0])), first)
    return verdicts


def _steps(piece: Piece) -> Steps:
    return Steps(*(getattr(piece, name) for name in Steps._fields))


def _joined(parts: list[Steps]) -> Steps:
    return Steps(*(np.concatenate(column) for column in zip(*parts, strict=True)))
