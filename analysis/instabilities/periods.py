"""The period of the iterates, from recurrence in parameter space and from the loss alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.analysis.spectra.events import OSCILLATING_COSINE

LAGS = (2, 4, 8)
"""Periods that are looked for."""

IRREGULAR = -1
"""Marks oscillating steps with none of the periods."""

_RECURRENT = 0.25
"""Ratio of ‖θ_(t+k) - θ_t‖ to one step below which the iterates count as having returned."""

_WINDOW = 32
"""Steps in the windows in which the loss is demodulated."""


def periods_of_iterates(
    update_cosine: Float[np.ndarray, " steps"], recurrence: Float[np.ndarray, "steps lags"]
) -> Int[np.ndarray, " steps"]:
    """Period at each step: 2, 4 or 8, `IRREGULAR`, or 0 where the iterates do not oscillate.

    They oscillate where successive updates point against each other, by a cosine below -0.5. The
    period is the smallest after which they return to within a quarter of a step.

    Args:
        update_cosine: cosine between the update from θ_t and the one before, NaN where there is
            none.
        recurrence: `Motion.recurrence`, for the periods in LAGS.

    >>> periods_of_iterates(
    ...     np.array([0.9, -0.9, -0.8, -0.7]),
    ...     np.array([[2.0, 4, 8], [0.1, 0.2, 0.3], [1.5, 0.2, 0.4], [1.5, 1.2, 0.9]]),
    ... ).tolist()
    [0, 2, 4, -1]
    """
    with np.errstate(invalid="ignore"):
        returned = recurrence < _RECURRENT
        oscillating = update_cosine < OSCILLATING_COSINE
    first = np.array(LAGS)[np.argmax(returned, axis=1)]
    periods = np.where(np.any(returned, axis=1), first, IRREGULAR)
    return np.where(oscillating, periods, 0)


def periods_of_loss(loss: Float[np.ndarray, " steps"]) -> Int[np.ndarray, " steps"]:
    """Period at each step judged by the loss alone: 2, 4, or 0 where it shows neither.

    In windows of 32 steps a parabola is taken out, and what remains is demodulated at the
    frequencies ½ and ¼. Where these hold more than half of its variance the period is 4 if a tenth
    of that is at ¼, else 2. On an orbit in a symmetric valley the loss is constant and shows none.

    Args:
        loss: losses at consecutive steps.

    >>> t = np.arange(40)
    >>> np.unique(periods_of_loss(1.0 + 0.1 * t + 0.01 * (-1.0) ** t)).tolist()
    [2]
    """
    count = len(loss)
    if count < _WINDOW:
        return np.zeros(count, int)
    windows = np.lib.stride_tricks.sliding_window_view(loss, _WINDOW)
    time = np.linspace(-1, 1, _WINDOW)
    trend, _ = np.linalg.qr(np.stack([np.ones(_WINDOW), time, time**2], axis=1))
    with np.errstate(invalid="ignore", over="ignore"):
        rest = windows - (windows @ trend) @ trend.T
        variance = np.mean(rest**2, axis=1)
        bins = np.arange(_WINDOW)
        half = np.mean(rest * (-1.0) ** bins, axis=1) ** 2
        quarter = 2 * np.abs(np.mean(rest * 1j**bins, axis=1)) ** 2
        noise = (100 * np.finfo(loss.dtype).eps * np.max(np.abs(windows), axis=1)) ** 2
        seen = (half + quarter > variance / 2) & (variance > noise)
        periods = np.where(seen, np.where(quarter > 0.1 * (half + quarter), 4, 2), 0)
    # A window decides for its middle; the ends of the run have no window centred on them.
    before = _WINDOW // 2
    return np.pad(periods, (before, count - len(periods) - before), mode="edge")
