"""Which bifurcations lie between two points of a branch, told by the multipliers of both."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex, Float

from dlf_dynamics.analysis.bifurcation.cycles import ROUNDING
from dlf_dynamics.analysis.bifurcation.normal_forms import Kind

Multipliers = Complex[np.ndarray, " n"]


def excess(kind: Kind, multipliers: Multipliers, neutral: int = 0) -> Float[np.ndarray, " k"]:
    """How far outside the unit circle the multipliers are that a kind is about, closest first.

    As many of those closest to 1 as are always there, `neutral`, are left out.
    """
    real = np.real(multipliers)[np.abs(np.imag(multipliers)) <= ROUNDING]
    if kind == "neimark-sacker":
        found, neutral = np.log(np.abs(multipliers[np.imag(multipliers) > ROUNDING])), 0
    elif kind == "flip":
        found, neutral = -1 - real, 0
    else:
        found = real - 1
    return found[np.argsort(np.abs(found))][neutral:]


def neutral_count(before: Multipliers, after: Multipliers) -> int:
    """Multipliers that stay at 1: directions in which the map does not move at all."""
    return min(int(np.sum(np.abs(part - 1) < ROUNDING)) for part in (before, after))


def determinant(kind: Kind, multipliers: Multipliers, neutral: int) -> tuple[float, float]:
    """Sign and logarithm of what vanishes at a bifurcation, from all multipliers.

    To rounding the product of the eigenvalues is the determinant of J + 1 or J - 1: eigenvalues are
    exact ones of a matrix that differs from J by rounding. Of J - 1, multipliers that are always at
    1 are left out, and so they are of the pairs.
    """
    rest = multipliers[np.argsort(np.abs(multipliers - 1), kind="stable")[neutral:]]
    if kind == "neimark-sacker":
        first, second = np.triu_indices(len(rest), 1)
        factors = rest[first] * rest[second] - 1
    else:
        factors = multipliers + 1 if kind == "flip" else rest - 1
    sizes = np.abs(factors)
    if not np.all(sizes > 0):  # or NaN
        return 0.0, -np.inf
    return float(np.sign(np.prod(factors / sizes).real)), float(np.sum(np.log(sizes)))


def crossed(before: Multipliers, after: Multipliers, turns: bool) -> list[Kind]:
    """Bifurcations between two points.

    Args:
        before: multipliers at the first point.
        after: at the second.
        turns: whether the parameter turns back between them.
    """
    neutral = neutral_count(before, after)

    def change(kind: Kind) -> int:
        first, second = (excess(kind, part, neutral) > 0 for part in (before, after))
        return int(np.sum(second)) - int(np.sum(first))

    ones, flips, pairs = change("branch point"), change("flip"), change("neimark-sacker")
    if pairs and (ones, flips) in ((-2 * pairs, 0), (0, -2 * pairs)):
        ones = flips = pairs = 0  # a pair outside the circle met on the real axis
    folds = int(turns and ones % 2 == 1)
    points = abs(ones) - folds + int(turns and not folds)
    kinds: tuple[Kind, ...] = ("fold", "branch point", "flip", "neimark-sacker")
    counts = zip(kinds, (folds, points, abs(flips), abs(pairs)), strict=True)
    return [kind for kind, count in counts for _ in range(count)]
