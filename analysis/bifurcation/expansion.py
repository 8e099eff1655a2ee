"""Taylor expansion of the p-fold map at a point of a cycle: eigenvectors and derivatives."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Complex, Float

from dlf_dynamics.analysis.bifurcation.cycles import ROUNDING, linearise, solve
from dlf_dynamics.analysis.bifurcation.maps import Map

Vector = Complex[np.ndarray, " n"]

CLOSE = 1e-6
"""Distance of multipliers below which they, and their eigenvectors, are not distinguished."""

DEGENERATE = 1e-8
"""Size of a sum, relative to its terms, below which it is rounding."""

_NEIGHBOURS = 1e-4
"""Distance within which multipliers may be a double one without two eigenvectors: errors of the
parameter move such multipliers apart by their square root."""

_COUPLED = 1e-2
"""Norm of the Jacobian minus the multiplier, on its subspace, where eigenvectors are missing."""


_ASIDE, _LEAST_JUMP = 1e-6, 1e-9
"""Distance at which both sides of a cycle are compared, and the smallest jump of a derivative."""


class Eigenspace(NamedTuple):
    """Space of a real multiplier: J right = right · (μ + block), left J = (μ + block) · left.

    Attributes:
        right: (n, m) basis.
        left: (m, n) with left · right = 1.
        block: (m, m) matrix, 0 where there are m eigenvectors.
    """

    right: Float[np.ndarray, "n m"]
    left: Float[np.ndarray, "m n"]
    block: Float[np.ndarray, "m m"]

    @property
    def coupled(self) -> bool:
        """Whether there are fewer eigenvectors than equal multipliers."""
        return bool(np.linalg.norm(self.block) > _COUPLED)


class Expansion:
    """The p-fold map at a point of a cycle: its Jacobian, and derivatives along directions."""

    def __init__(self, map_: Map, points: Float[np.ndarray, "period n"], parameter: float) -> None:
        self.map_, self.period = map_, len(points)
        self.at = jnp.asarray(points[0]), jnp.float64(parameter)
        self.condensed = linearise(map_, points, parameter).condensed()
        self.jacobian = self.condensed.matrix

    def eigenvectors(self, multiplier: complex) -> tuple[Vector, Vector] | None:
        """Right and left eigenvector, ⟨w, q⟩ = 1 without conjugation; none if not simple."""
        if not np.all(np.isfinite(self.jacobian)):
            return None
        solved: Any = scipy.linalg.eig(self.jacobian, left=True)  # two or three arrays
        values, lefts, rights = solved
        (close,) = np.nonzero(np.abs(values - multiplier) < CLOSE)
        if len(close) != 1:
            return None
        right, left = oriented(rights[:, close[0]].astype(complex)), lefts[:, close[0]].conj()
        overlap = left @ right
        return (right, left / overlap) if np.abs(overlap) > CLOSE else None

    def eigenspace(self, multiplier: float) -> Eigenspace | None:
        """The space of all multipliers equal to this one; none without any, or derivatives.

        Multipliers a little further away belong to it where they share a single eigenvector.
        """
        if not np.all(np.isfinite(self.jacobian)):
            return None
        wide = self._subspace(multiplier, _NEIGHBOURS)
        return wide if wide and wide.coupled else self._subspace(multiplier, CLOSE)

    def _subspace(self, multiplier: float, distance: float) -> Eigenspace | None:
        """Invariant subspace of the multipliers within a distance, from ordered Schur forms."""

        def leading(matrix: np.ndarray) -> np.ndarray:
            close = lambda re, im: np.hypot(re - multiplier, im) < distance  # noqa: E731
            ordered: Any = scipy.linalg.schur(matrix, sort=close)
            return ordered[1][:, : ordered[2]]

        right, left = leading(self.jacobian), leading(self.jacobian.T).T
        if right.shape[1] == 0 or right.T.shape != left.shape:
            return None
        right = _basis(right)
        left = np.linalg.solve(left @ right, left)
        block = left @ self.jacobian @ right - multiplier * np.eye(len(left))
        return Eigenspace(right, left, block)

    def derivative(self, *vectors: np.ndarray) -> Vector:
        """The derivative of as many orders as there are vectors, linear in each.

        Args:
            vectors: (n,) directions of the state, complex ones too, or (n+1,), the last of which
                is a change of the parameter.
        """
        size = len(self.jacobian)
        padded = [np.append(v, np.zeros(size + 1 - len(v))) for v in vectors]
        total: Vector = np.zeros(size, complex)
        for choice in np.ndindex(*(2,) * len(vectors)):
            parts = [np.imag(v) if i else np.real(v) for i, v in zip(choice, padded, strict=True)]
            if all(np.any(part) for part in parts):
                term = _derivative(self.map_, *self.at, np.stack(parts), period=self.period)
                total += 1j ** sum(choice) * np.asarray(term)
        return total

    def beside(self, change: float) -> Expansion:
        """The expansion with higher derivatives evaluated at a slightly different parameter."""
        other = copy(self)
        other.at = self.at[0], self.at[1] + change
        return other

    def jumps(self, direction: Vector) -> bool:
        """Whether a derivative of second or third order jumps at the cycle, along a direction.

        The difference of a smooth one between two sides shrinks with their distance.
        """
        size = _ASIDE * max(1.0, float(np.max(np.abs(self.at[0]))))
        parts = [part for part in (np.real(direction), np.imag(direction)) if np.any(part)]
        for vector in parts:
            for order in (2, 3):
                far, close = (self._bend([vector] * order, part * size) for part in (1, 1 / 16))
                if close > _LEAST_JUMP and close > far / 2:
                    return True
        return False

    def _bend(self, vectors: list[np.ndarray], size: float) -> float:
        """Difference of a derivative on both sides of the point, along the first direction."""
        sides = copy(self), copy(self)
        for side, sign in zip(sides, (1, -1), strict=True):
            side.at = self.at[0] + sign * size * vectors[0], self.at[1]
        one, other = (side.derivative(*vectors) for side in sides)
        return float(np.max(np.abs(one - other)))

    def inverse(self, right: Vector) -> Vector | None:
        """(1-J)^-1 times a vector; none where the vector excites multipliers 1 of J."""
        matrix = np.eye(len(self.jacobian)) - self.jacobian
        real, singular = solve(matrix, np.real(right), ROUNDING)
        imaginary, _ = solve(matrix, np.imag(right), ROUNDING)
        solution = real + 1j * imaginary
        gap = np.linalg.norm(matrix @ solution - right)
        return None if singular and gap > DEGENERATE * np.linalg.norm(right) else solution

    def response(
        self, right: Float[np.ndarray, " n"], left: Float[np.ndarray, " n"], push: np.ndarray
    ) -> Float[np.ndarray, " n"]:
        """(1-J)^-1 times a vector, on the complement of the given eigenvectors to multiplier 1."""
        matrix = np.block([[np.eye(len(right)) - self.jacobian, right[:, None]], [left, 0.0]])
        return solve(matrix, np.append(push, 0.0))[0][:-1]


def _basis(vectors: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
    """Orthonormal basis of the span, stable against rounding, unlike that of Schur forms.

    It is made from the axes closest to the span, the first of equally close ones.
    """
    projector, columns = vectors @ vectors.T, []
    for _ in range(vectors.shape[1]):
        within = np.diag(projector)
        axis = int(np.argmax(within > np.max(within) - CLOSE))
        columns.append(projector[:, axis] / np.sqrt(within[axis]))
        projector = projector - np.outer(columns[-1], columns[-1])
    return np.array(columns).T


def oriented(vector: np.ndarray) -> np.ndarray:
    """The vector at unit length, with its largest component positive."""
    largest = vector[np.argmax(np.abs(vector))]
    return vector * (np.abs(largest) / largest / np.linalg.norm(vector))


def _along(function: Callable[[Array, Array], Array], direction: Array) -> Callable:
    """Derivative of a function of state and parameter, as a function of them."""
    change = direction[:-1], direction[-1]
    return lambda *point: jax.jvp(function, point, change)[1]


@partial(jax.jit, static_argnames="period")
def _derivative(
    map_: Map, state: Array, parameter: Array, directions: Array, *, period: int
) -> Array:
    derivative = lambda x, p: map_.iterate(x, p, period)  # noqa: E731
    for direction in directions:
        derivative = _along(derivative, direction)
    return derivative(state, parameter)
