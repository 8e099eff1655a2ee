"""Multipliers of the updates that a run made over some steps: of the product of their Jacobians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.multipliers import NEUTRAL
from dlf_dynamics.analysis.instabilities.propagator import Propagator
from dlf_dynamics.analysis.linalg.arnoldi import KrylovSpace, Product, random_start
from dlf_dynamics.analysis.spectra.replay import Replay

_PRODUCTS = 60
"""Products of Arnoldi's method."""

_SHOWN = 3
"""Largest number of multipliers that are kept."""


@dataclass(frozen=True)
class Multiplier:
    """An eigenvalue of the product of the Jacobians.

    Attributes:
        real: its real part.
        imaginary: its imaginary part.
        modulus: its modulus.
        residual: ‖Jx - μx‖ of its unit eigenvector x, from a fresh product.
        overlap: overlap of the parameters' part of x, as a unit vector, with the mode.
    """

    real: float
    imaginary: float
    modulus: float
    residual: float
    overlap: float


class Multipliers(NamedTuple):
    """Leading multipliers of the updates of some steps.

    Attributes:
        steps: number of updates.
        found: multipliers that converged and are not neutral, here within 0.02 of +1 for each of
            the updates, as these need not be a cycle's: the largest
            modulus first, and at last that whose eigenvector overlaps most with the mode.
            Arnoldi's method may miss some.
        along: vᵀJv of the mode v; of a map that is not normal no multiplier.
        stretch: ‖Jv‖, of its part in the parameters.
        reason: why there are none; empty where there are.
    """

    steps: int
    found: list[Multiplier]
    along: float
    stretch: float
    reason: str = ""


NO_MULTIPLIERS = Multipliers(0, [], float("nan"), float("nan"))
"""The record where multipliers are not known."""


def multipliers_over(
    replay: Replay, first: int, stop: int, mode: Float[np.ndarray, " params"]
) -> Multipliers:
    """Leading multipliers of the updates that were made from a step on.

    J is the product of the Jacobians of the whole state: parameters and what the optimizer keeps
    for each of them.

    Args:
        replay: the run's steps, made again.
        first: step of the first update.
        stop: step after the last.
        mode: unit direction in the parameters.
    """
    matrix, updates = Propagator(replay, first, stop), stop - first
    product = lambda vector: matrix.forward(vector[None])[0]  # noqa: E731
    start = np.pad(mode, (0, matrix.size - len(mode)))
    image = product(start)
    if not np.all(np.isfinite(image)):
        reason = "the Jacobian of the update is not finite"
        return Multipliers(updates, [], float("nan"), float("nan"), reason)
    # Slow directions move by about as much at each update.
    multipliers = _leading(product, mode, start, matrix.rounding, updates * NEUTRAL)
    along, stretch = float(start @ image), float(np.linalg.norm(image[: len(mode)]))
    reason = "" if multipliers else "none apart from +1 converged"
    return Multipliers(updates, multipliers, along, stretch, reason)


def _leading(
    product: Product,
    mode: Float[np.ndarray, " params"],
    start: Float[np.ndarray, " n"],
    rounding: float,
    neutral: float,
) -> list[Multiplier]:
    """Converged multipliers apart from +1, by one Arnoldi pass; residuals from fresh products."""
    # A random vector is added to the mode, so that symmetry excludes no direction.
    drawn = random_start(len(start))
    space = KrylovSpace(product, start + drawn / np.linalg.norm(drawn), _PRODUCTS, 10 * rounding)
    while not space.full:
        space.extend()
    ritz = space.ritz()
    vectors = lambda index: ritz.coefficients[index] @ space.basis  # noqa: E731
    # One of each conjugate pair is enough.
    apart = (np.abs(ritz.values - 1) > neutral) & (np.imag(ritz.values) >= 0)
    order = [int(index) for index in np.argsort(-np.abs(ritz.values)) if apart[index]]
    overlaps = {index: _overlap(mode, vectors(index)) for index in order}
    closest = max(order, key=lambda index: overlaps[index], default=None)
    multipliers: list[Multiplier] = []
    for index in [*order, *([] if closest is None else [closest])]:
        if len(multipliers) >= _SHOWN and index != closest:
            continue
        value = complex(ritz.values.item(index))
        residual = _residual(product, value, vectors(index))
        if residual <= rounding**0.4 * max(abs(value), 1.0):
            one = Multiplier(value.real, value.imag, abs(value), residual, overlaps[index])
            multipliers += [] if one in multipliers else [one]
    return multipliers


def _overlap(mode: np.ndarray, vector: np.ndarray) -> float:
    """Overlap of a vector's part in the parameters with the mode."""
    mine = vector[: len(mode)]
    return float(abs(mode @ mine) / max(float(np.linalg.norm(mine)), np.finfo(float).tiny))


def _residual(product: Product, value: complex, vector: np.ndarray) -> float:
    """‖Jx - μx‖ from fresh products."""
    image = product(np.real(vector)) + 1j * product(np.imag(vector))
    return float(np.linalg.norm(image - value * vector))
