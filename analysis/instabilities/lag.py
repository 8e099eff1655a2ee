"""The lag between a crossing of the threshold and the oscillation that follows.

Above the threshold a deviation along the top eigenvector grows by a factor per step, but it starts
from the noise: the oscillation is seen long after the crossing, the later the less noise there is.
In a deterministic run the noise is the rounding of floating-point numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

VISIBLE_RATIO = np.sqrt(3) / 2
"""Amplitude, in units of the drift, at which the update cosine passes -0.5.

Successive updates are d ± 2a, with a orthogonal to the drift d; their cosine is
(d² - 4a²) / (d² + 4a²)."""

_MEDIAN_RATIO = 0.6744897501960817
"""Median of |x| in standard deviations, for normal x.

A deviation comes from the noise around the crossing alone and then grows by the same factors in all
runs; so half of them are seen once this fraction of the standard deviation is visible."""


def deviations(
    factors: Float[np.ndarray, " steps"], noise: float, start: float | None = None
) -> Float[np.ndarray, " steps"]:
    """Standard deviation of the deviation from the centre at each step.

    Its variance obeys var ← m² var + σ² with the factor m of each step (Baesens 1991 for the ramp).

    Args:
        factors: m at each step.
        noise: σ, standard deviation of what each step adds along the eigenvector.
        start: standard deviation before the first step; none means the stationary one of the first
            factor, or the noise where that factor is not below 1.

    >>> deviations(np.array([2.0, 2.0]), noise=1.0, start=0.0).round(6).tolist()
    [1.0, 2.236068]
    """
    first = float(factors[0])
    stationary = noise / (1 - first**2) ** 0.5 if first < 1 else noise
    variances, variance = np.empty(len(factors)), (stationary if start is None else start) ** 2
    for index, factor in enumerate(factors):
        variance = factor**2 * variance + noise**2
        variances[index] = variance
    return np.sqrt(variances)


def predicted_onset(
    factors: Float[np.ndarray, " steps"], noise: float, visible: Float[np.ndarray, " steps"]
) -> int | None:
    """Index of the step by which half of all runs would be seen to oscillate; none if never.

    Args:
        factors: growth factor of each step; the first ones must be below 1.
        noise: see `deviations`.
        visible: smallest amplitude that is seen, at each step.

    >>> predicted_onset(np.full(100, 2.0), 1e-6, np.full(100, 1.0))
    21
    """
    with np.errstate(over="ignore", invalid="ignore"):
        # The deviation after a step is the one at the next step.
        expected = _MEDIAN_RATIO * deviations(factors, noise)[:-1]
        seen = np.flatnonzero(expected >= visible[1:])
    return int(seen[0]) + 1 if len(seen) else None


def forgotten_from(
    factors: Float[np.ndarray, " steps"], amplitude: Float[np.ndarray, " steps"], noise: float
) -> int | None:
    """Index of the last step whose oscillation has sunk below the noise by the last factor.

    An oscillation grows from the noise only if nothing is left of an earlier one; none where
    something may be left.

    Args:
        factors: growth factor of each step.
        amplitude: amplitude of the oscillation at each step, or an upper bound on it.
        noise: standard deviation of what each step adds.

    >>> forgotten_from(np.full(10, 0.1), np.ones(10), 2e-6)
    4
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        shrunk = np.cumsum(np.log(factors)[::-1])[::-1] + np.log(amplitude)
        sunk = np.flatnonzero(shrunk <= np.log(noise))
    return int(sunk[-1]) if len(sunk) else None


def rounding_noise(
    params: Float[np.ndarray, " params"], direction: Float[np.ndarray, " params"], dtype: Any
) -> float:
    """Standard deviation, along a unit direction, of the rounding error of the parameters per step.

    The sum θ + Δθ is rounded to the spacing of floating-point numbers at each θ_i, an error uniform
    over one spacing; rounding of the gradient itself is not counted.

    >>> noise = rounding_noise(np.array([1.0, 0.25]), np.array([1.0, 0.0]), "float64")
    >>> bool(np.isclose(noise, 2.0**-52 / 12**0.5))
    True
    """
    spacing = np.spacing(np.abs(np.asarray(params, dtype)))
    return float(np.linalg.norm(direction * spacing.astype(float)) / np.sqrt(12))
