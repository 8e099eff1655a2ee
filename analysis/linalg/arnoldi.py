"""Arnoldi's iteration, for matrices that are not symmetric.

Products tell less of it than of a symmetric one: the residual of a Ritz pair bounds the distance to
an eigenvalue only times a condition number, and nothing bounds what was not found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

Vector = Float[np.ndarray, " n"]
Product = Callable[[Vector], Vector]


class Ritz(NamedTuple):
    """Ritz pairs of a Krylov space.

    Attributes:
        values: the Ritz values, in the order of LAPACK.
        residuals: ‖Ax - μx‖ of unit vectors x, by the recurrence.
        conditions: 1/|yᴴx| of the left and right eigenvectors y, x within the space: 1 for normal
            matrices, large where eigenvectors nearly coincide. To first order a residual moves an
            eigenvalue by this times as much.
        coefficients: (ritz, ritz) of the vectors in the basis, a row each.
    """

    values: Complex[np.ndarray, " ritz"]
    residuals: Float[np.ndarray, " ritz"]
    conditions: Float[np.ndarray, " ritz"]
    coefficients: Complex[np.ndarray, "ritz ritz"]


class KrylovSpace:
    """The space of start, A start, A² start, ..., which grows by a product at a time.

    With the rows of the basis as V, A Vᵀ = Vᵀ H + h v eᵀ holds to rounding.

    Attributes:
        count: products made, which is the dimension.
        exhausted: whether the last product lay in the space, which then is invariant.
        finite: whether all products were; one that is not leaves the space as it was.
    """

    def __init__(self, product: Product, start: Vector, most: int, rounding: float) -> None:
        """Takes a start, the largest dimension, and which part of a product is rounding."""
        self._product, self._rounding = product, rounding
        self._most = min(most, len(start))
        # The system gives memory to the rows that are written.
        self._rows = np.empty((self._most + 1, len(start)))
        self._rows[0] = start / np.linalg.norm(start)
        self._hessenberg = np.zeros((self._most + 1, self._most))
        self.count, self.exhausted, self.finite = 0, False, True

    @property
    def full(self) -> bool:
        """Whether it cannot grow any more."""
        return self.exhausted or not self.finite or self.count >= self._most

    @property
    def hessenberg(self) -> Float[np.ndarray, "_rows count"]:
        """The matrix H, with h in its last row."""
        return self._hessenberg[: self.count + 1, : self.count]

    @property
    def basis(self) -> Float[np.ndarray, "count n"]:
        """Orthonormal vectors, a row each."""
        return self._rows[: self.count]

    @property
    def next(self) -> Vector:
        """Unit vector of the part h v of the last product that is new; only when not exhausted."""
        return self._rows[self.count]

    def extend(self) -> None:
        """Makes one product, unless the space is full."""
        if self.full:
            return
        last, basis = self.count, self._rows[: self.count + 1]
        vector = np.asarray(self._product(basis[last]), float)
        scale = float(np.linalg.norm(vector))
        if not np.isfinite(scale):
            self.finite = False
            return
        for _ in range(2):  # the first sweep leaves rounding of what it subtracts
            overlaps = basis @ vector
            vector = vector - overlaps @ basis
            self._hessenberg[: last + 1, last] += overlaps
        left = self._hessenberg[last + 1, last] = float(np.linalg.norm(vector))
        self.count, self.exhausted = last + 1, left <= self._rounding * scale
        if not self.exhausted:
            self._rows[last + 1] = vector / left

    def renew(self, start: Vector) -> None:
        """Goes on from a new start once it is exhausted, as of a multiple eigenvalue it has one."""
        if not self.exhausted or self.count >= self._most:
            return
        for _ in range(2):
            start = start - (self.basis @ start) @ self.basis
        self._hessenberg[self.count, self.count - 1] = 0.0
        self._rows[self.count], self.exhausted = start / np.linalg.norm(start), False

    def ritz(self) -> Ritz:
        """The Ritz pairs of the space."""
        matrix, count = self.hessenberg, self.count
        values, vectors = np.linalg.eig(matrix[:count])
        vectors = vectors.astype(complex) / np.linalg.norm(vectors, axis=0)
        try:
            conditions = np.linalg.norm(np.linalg.inv(vectors), axis=1)
        except np.linalg.LinAlgError:  # eigenvectors that coincide
            conditions = np.full(count, np.inf)
        residuals = np.abs(matrix[count, count - 1] * vectors[-1])
        return Ritz(values.astype(complex), residuals, conditions, vectors.T)


def random_start(size: int) -> Vector:
    """The same vector each time, with a part in each direction."""
    return np.random.default_rng(0).standard_normal(size)
