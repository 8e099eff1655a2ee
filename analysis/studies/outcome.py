"""`Outcome`: what a study keeps of one run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from dlf_dynamics.reprs import brief

CURVES = (
    "loss",
    "static_loss",
    "accuracy",
    "validation_loss",
    "validation_accuracy",
    "sharpness",
)
"""What is kept along a run, in the order of the arrays."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run of a study.

    Numbers that were not measured, or that a run which diverged or failed does not have, are NaN.

    Attributes:
        status: `complete`, `diverged` (the loss is not finite) or `failed` (with a message).
        message: why it failed.
        steps: updates made.
        loss: F(θ, t) after the last update, weighted; of all training data, as the next two.
        static_loss: the same with all weights 1.
        accuracy: accuracy on the training data after the last update.
        best_accuracy: the largest at any step, of what the step was made with: all training data,
            or a mini-batch.
        validation_loss: static loss of the held-out examples after the last update.
        validation_accuracy: accuracy on the held-out examples after the last update.
        best_validation_accuracy: the largest at any of the checkpoints, `checkpoint_every` apart.
        instabilities: windows in which successive updates point against each other
            (`dlf_dynamics.analysis.spectra.events`); NaN for mini-batches, as the next eight.
        bursts: windows that are seen in the loss.
        period_2: windows that are mostly of period 2, by the loss.
        period_4: windows that are mostly of period 4.
        irregular: windows in which the loss mostly shows neither (in a symmetric valley, it never
            does).
        oscillating_steps: steps within the windows.
        period_2_steps: oscillating steps at which the loss shows period 2.
        period_4_steps: oscillating steps at which it shows period 4.
        onset_phase: median position within a pulse of the class weights, from 0 to 1, at which the
            windows shorter than a pulse begin; those after the last pulse left out. NaN where there
            is none, as with the static loss.
        realized_above: share of the evaluated steps (`edge_every`) that raised their own loss:
            realized edge above 1 by more than rounding can do.
        sharpness: largest eigenvalue of the Hessian of the static loss after the last update.
        sharpness_error: its residual; NaN where it did not converge, then `sharpness` is NaN, too.
        threshold: critical eigenvalue of the optimizer at the last step, with which
            `preconditioned_sharpness` is to be compared; NaN for mini-batches, and for an optimizer
            that has none.
        preconditioned_sharpness: largest eigenvalue of P^-1/2 H P^-1/2 after the last update, H the
            Hessian of the static loss and P the preconditioner of the next update, frozen. Where
            the optimizer has none, P is 1, and it is `sharpness`. NaN where it did not converge or
            there is no threshold.
        ntk: largest eigenvalue of the NTK after the last update.
        seconds: duration of the run, compilation included; for runs trained together, its share.
        curves: values of CURVES at evenly spaced steps; the first three are of what the step was
            made with, and `sharpness` of the loss as weighted at the step. Shape (points, 6).
    """

    status: str
    message: str = ""
    steps: int = 0
    loss: float = np.nan
    static_loss: float = np.nan
    accuracy: float = np.nan
    best_accuracy: float = np.nan
    validation_loss: float = np.nan
    validation_accuracy: float = np.nan
    best_validation_accuracy: float = np.nan
    instabilities: float = np.nan
    bursts: float = np.nan
    period_2: float = np.nan
    period_4: float = np.nan
    irregular: float = np.nan
    oscillating_steps: float = np.nan
    period_2_steps: float = np.nan
    period_4_steps: float = np.nan
    onset_phase: float = np.nan
    realized_above: float = np.nan
    sharpness: float = np.nan
    sharpness_error: float = np.nan
    threshold: float = np.nan
    preconditioned_sharpness: float = np.nan
    ntk: float = np.nan
    seconds: float = np.nan
    curves: Float[np.ndarray, "points curves"] = field(
        default_factory=lambda: np.zeros((0, len(CURVES)))
    )
    __repr__ = brief

    def numbers(self) -> dict[str, Any]:
        """The columns of a study's table, by name: all but status, message and curves."""
        return {name: getattr(self, name) for name in NUMBERS}


NUMBERS = tuple(
    field.name for field in fields(Outcome) if field.name not in ("status", "message", "curves")
)
"""Names of the columns of a study's table."""
