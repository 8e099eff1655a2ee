"""Several multipliers that pass -1 together: the directions in which cycles are doubled."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.bifurcation.expansion import Eigenspace, Expansion, oriented

_REAL = 1e-6
"""Imaginary part of a root, relative to its modulus, that is rounding."""


def doubling_directions(system: Expansion, space: Eigenspace) -> Float[np.ndarray, "m n"]:
    """Independent unit vectors, as many as multipliers pass -1 together.

    On the subspace, s ↦ -s + δ M s + N(s), with the change δ of the parameter and N of third
    order. Doubled cycles s ↦ -s leave where N(s) is parallel to M s. For two multipliers these
    directions are the roots of a polynomial of fourth order: the eigenvectors of M if they are
    roots, else the two roots that differ most. Where it has fewer roots or vanishes, or more than
    two multipliers pass together, the result is the eigenvectors of M, which are those of J before
    and after: whether cycles leave along them is unknown.

    Args:
        system: the p-fold map at the flip.
        space: space of the multiplier -1, which has as many eigenvectors as multipliers.
    """
    rate = _change_of_multipliers(system, space)
    own = _eigenbasis(rate)
    directions = own if len(own) != 2 else _leaving(system, space, rate, own)
    return np.array([oriented(space.right @ direction) for direction in directions])


def _change_of_multipliers(system: Expansion, space: Eigenspace) -> Float[np.ndarray, "m m"]:
    """M: derivative of J by the parameter along the branch, on the subspace; NaN if unknown."""
    count, drift = len(space.left), system.inverse(system.condensed.df_dparameter.astype(complex))
    if drift is None:
        return np.full((count, count), np.nan)
    moved = np.append(np.real(drift), 1.0)
    turned = [np.real(system.derivative(column, moved)) for column in space.right.T]
    return space.left @ np.array(turned).T


def _cubic_terms(
    system: Expansion, space: Eigenspace, direction: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """N(s) for a direction s of the subspace; NaN where a multiplier +1 prevents it."""
    right = space.right @ direction
    response = system.inverse(system.derivative(right, right))
    if response is None:
        return np.full(len(direction), np.nan)
    total = system.derivative(right, right, right) + 3 * system.derivative(right, response)
    return space.left @ np.real(total) / 6


def _eigenbasis(rate: Float[np.ndarray, "m m"]) -> Float[np.ndarray, "m m"]:
    """Real eigenvectors of M as rows, or the axes where these are too few or not distinct."""
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
    """Two directions with N(s) parallel to M s; the given ones if they are, or if no two are."""
    angles = np.arange(5) * np.pi / 5
    directions = np.array([np.cos(angles), np.sin(angles)]).T
    cubic = np.array([_cubic_terms(system, space, direction) for direction in directions])
    linear = directions @ rate.T
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
