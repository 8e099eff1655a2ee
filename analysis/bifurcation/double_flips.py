"""Several multipliers that pass -1 at once: the directions in which cycles are doubled."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.expansion import Eigenspace, Expansion, oriented

_REAL = 1e-6
"""Imaginary part of a root, relative to its modulus, that is rounding."""


def doubling_directions(system: Expansion, space: Eigenspace) -> Float[np.ndarray, "m n"]:
    """As many independent directions of unit length as multipliers pass -1 together.

    On the subspace, s ↦ -s + δ M s + N(s), with the change δ of the parameter and N of third
    order. Doubled cycles s ↦ -s leave where N(s) is along M s. Of two multipliers these are the
    roots of a polynomial of fourth order, of which those are taken that are eigenvectors of M, or
    else the two that differ most. Where it has fewer, vanishes, or more than two multipliers pass
    together, eigenvectors of M are given, which are those before and after: whether a cycle leaves
    along them is not known.

    Args:
        system: the p-fold map at the flip.
        space: space of the multiplier -1, which has as many eigenvectors as multipliers.
    """
    rate = change_of_multipliers(system, space)
    own = _eigenbasis(rate)
    ways = own if len(own) != 2 else _leaving(system, space, rate, own)
    return np.array([oriented(space.right @ way) for way in ways])


def change_of_multipliers(system: Expansion, space: Eigenspace) -> Float[np.ndarray, "m m"]:
    """M: how J changes with the parameter along the branch, on the subspace; NaN if unknown."""
    count, drift = len(space.left), system.inverse(system.condensed.df_dparameter.astype(complex))
    if drift is None:
        return np.full((count, count), np.nan)
    moved = np.append(np.real(drift), 1.0)
    turned = [np.real(system.derivative(column, moved)) for column in space.right.T]
    return space.left @ np.array(turned).T


def cubic_terms(
    system: Expansion, space: Eigenspace, way: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """N(s) for a direction s of the subspace; NaN where a multiplier +1 forbids it."""
    right = space.right @ way
    response = system.inverse(system.derivative(right, right))
    if response is None:
        return np.full(len(way), np.nan)
    total = system.derivative(right, right, right) + 3 * system.derivative(right, response)
    return space.left @ np.real(total) / 6


def _eigenbasis(rate: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """Real eigenvectors of M as rows, or the axes where it has not as many or tells none apart."""
    count = len(rate)
    if not np.all(np.isfinite(rate)):
        return np.eye(count)
    values, vectors = np.linalg.eig(rate)
    apart = np.abs(values[:, None] - values)[~np.eye(count, dtype=bool)]
    if np.any(np.imag(values) != 0) or np.min(apart, initial=np.inf) < _REAL * np.max(
        np.abs(values)
    ):
        return np.eye(count)
    return np.real(vectors).T[np.argsort(-np.real(values))]


def _leaving(
    system: Expansion, space: Eigenspace, rate: np.ndarray, own: np.ndarray
) -> Float[np.ndarray, "2 2"]:
    """Two directions in which N(s) is along M s, the given ones if they are, or if no two are."""
    angles = np.arange(5) * np.pi / 5
    ways = np.array([np.cos(angles), np.sin(angles)]).T
    cubic = np.array([cubic_terms(system, space, way) for way in ways])
    linear = ways @ rate.T
    across = cubic[:, 0] * linear[:, 1] - cubic[:, 1] * linear[:, 0]
    if not np.max(np.abs(across)) > _REAL * np.max(np.abs(cubic)) * np.max(np.abs(linear)):
        return own  # or NaN
    roots = _angles(across)
    pairs = [(a, b) for a in roots for b in roots if np.abs(np.sin(a - b)) > 1e-3]
    natural = np.arctan2(own[:, 1], own[:, 0])
    if not pairs or all(np.min(np.abs(np.sin(a - roots))) < 1e-4 for a in natural):
        return own
    best = max(pairs, key=lambda pair: round(abs(float(np.sin(pair[0] - pair[1]))), 6))
    return np.array([[np.cos(a), np.sin(a)] for a in best])


def _angles(values: Float[np.ndarray, " 5"]) -> Float[np.ndarray, " k"]:
    """Zeros φ of a form of fourth order of (cos φ, sin φ), from its values at multiples of π/5.

    It has the harmonics 0, ±2 and ±4: it is a polynomial of exp(2iφ), whatever the coordinates.
    """
    harmonics = np.roll(np.fft.fft(values), 2)[::-1]
    kept = harmonics if abs(harmonics[0]) > 1e-10 * np.max(np.abs(harmonics)) else harmonics[1:-1]
    roots = np.roots(kept)
    angles = np.angle(roots[np.abs(np.abs(roots) - 1) < _REAL]) / 2
    return np.sort(np.mod(angles + _REAL, np.pi)) - _REAL  # 0 and π are one direction
