"""Which bifurcations lie between two points of a branch, from the multipliers of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from dlf_dynamics.analysis.bifurcation.cycles import ROUNDING
from dlf_dynamics.analysis.bifurcation.normal_forms import Kind

Multipliers = Complex[np.ndarray, " n"]

KINDS: tuple[Kind, ...] = ("fold", "branch point", "flip", "neimark-sacker")
"""Kinds in the order in which bifurcations of one step are listed."""


class Crossed(NamedTuple):
    """A bifurcation between two points: its kind, and the rank of its multiplier from outside."""

    kind: Kind
    rank: int


def excess(kind: Kind, multipliers: Multipliers, neutral: int) -> Float[np.ndarray, " k"]:
    """How far outside the unit circle the multipliers of a kind are, farthest first.

    The `neutral` ones closest to 1, which are always there, are left out.
    """
    real = np.real(multipliers)[np.abs(np.imag(multipliers)) <= ROUNDING]
    if kind == "neimark-sacker":
        distances, neutral = np.log(np.abs(multipliers[np.imag(multipliers) > ROUNDING])), 0
    elif kind == "flip":
        distances, neutral = -1 - real, 0
    else:
        distances = real - 1
    return np.sort(distances[np.argsort(np.abs(distances), kind="stable")][neutral:])[::-1]


def neutral_count(*several: Multipliers, within: float = ROUNDING) -> int:
    """Number of multipliers that stay at 1: directions in which the map does not move at all."""
    return min(int(np.sum(np.abs(part - 1) < within)) for part in several)


def determinant(kind: Kind, multipliers: Multipliers, neutral: int) -> tuple[float, float]:
    """Sign and logarithm of the determinant that vanishes at a bifurcation, from all multipliers.

    Up to rounding, the determinant of J + 1 or J - 1 is the product of the eigenvalues, which are
    exact for a matrix that differs from J by rounding. Multipliers that are always at 1 are left
    out of J - 1 and of the pairs.
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


def crossed(before: Multipliers, after: Multipliers, turns: bool) -> list[Crossed]:
    """Bifurcations between two points.

    Args:
        before: multipliers at the first point.
        after: multipliers at the second point.
        turns: whether the parameter turns back between them.
    """
    neutral = neutral_count(before, after)

    def outside(kind: Kind, multipliers: Multipliers) -> int:
        return int(np.sum(excess(kind, multipliers, neutral) > 0))

    counts = {kind: (outside(kind, before), outside(kind, after)) for kind in KINDS}
    ones, flips, pairs = (counts[kind][1] - counts[kind][0] for kind in KINDS[1:])
    if pairs and (ones, flips) in ((-2 * pairs, 0), (0, -2 * pairs)):
        ones = flips = pairs = 0  # a pair outside the circle met on the real axis
    folds = int(turns and ones % 2 == 1)
    points = abs(ones) - folds + int(turns and not folds)
    numbers = zip(KINDS, (folds, points, abs(flips), abs(pairs)), strict=True)
    return [Crossed(kind, min(counts[kind]) + i) for kind, number in numbers for i in range(number)]


def watched(
    several: tuple[Multipliers, ...], turning: tuple[float, ...]
) -> Iterator[Float[np.ndarray, " k"]]:
    """Values of functions at neighbouring points of a branch that do not change sign between them.

    These are the multipliers of each kind that are next to leave or enter the unit circle, factors
    of the determinants, and the component of the tangent along the parameter. Where one of them
    changes its sign twice between two points, a bifurcation happens and is undone.

    Args:
        several: multipliers at the points.
        turning: components of the tangents along the parameter.
    """
    neutral = neutral_count(*several)
    yield np.array(turning)
    for kind in KINDS[1:]:
        lists = [excess(kind, part, neutral) for part in several]
        outside = {int(np.sum(part > 0)) for part in lists}
        for rank in (min(outside) - 1, min(outside)):
            if len(outside) == 1 and 0 <= rank < min(map(len, lists)):
                yield np.array([part[rank] for part in lists])
        if kind != "neimark-sacker":
            yield np.array([_closest_two(kind, part, neutral) for part in several])


def _closest_two(kind: Kind, multipliers: Multipliers, neutral: int) -> float:
    """Product of the two smallest factors of det(J + 1) or det(J - 1).

    It is smooth where a pair meets on the real axis. The full determinant, with all multipliers,
    varies too fast for a parabola.
    """
    factors = multipliers - (-1 if kind == "flip" else 1)
    factors = factors[np.argsort(np.abs(factors), kind="stable")]
    return float(np.prod((factors if kind == "flip" else factors[neutral:])[:2]).real)


def dip(positions: Float[np.ndarray, " 3"], values: Float[np.ndarray, " 3"]) -> float | None:
    """Position where a parabola through three values of one sign has an extremum of the other."""
    sign = np.sign(values[0])
    if sign == 0 or np.any(np.sign(values) != sign):
        return None
    (first, middle, last), (low, centre, high) = positions, np.abs(values)
    first_slope, second_slope = (centre - low) / (middle - first), (high - centre) / (last - middle)
    bend = (second_slope - first_slope) / (last - first)
    if not bend > 0:
        return None
    lowest = (first + middle - first_slope / bend) / 2
    reached = low + first_slope * (lowest - first) + bend * (lowest - first) * (lowest - middle)
    return float(lowest) if reached < 0 else None
