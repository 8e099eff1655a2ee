"""Arnoldi's iteration, for matrices that are not symmetric.

Products say less about such a matrix than about a symmetric one: the distance of a Ritz value from
an eigenvalue is bounded by the residual only times a condition number, and nothing bounds the
eigenvalues that were not found.
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
            matrices, large where eigenvectors nearly coincide. To first order an eigenvalue is off
            by the residual times this.
        coefficients: (ritz, ritz) coefficients of the vectors in the basis, a row each.
    """

    values: Complex[np.ndarray, " ritz"]
    residuals: Float[np.ndarray, " ritz"]
    conditions: Float[np.ndarray, " ritz"]
    coefficients: Complex[np.ndarray, "ritz ritz"]


class KrylovSpace:
    """The space of start, A start, A² start, ..., which grows by one product at a time.

    With the rows of the basis as V, A Vᵀ = Vᵀ H + h v eᵀ holds to rounding.

    Attributes:
        count: number of products, which is the dimension.
        exhausted: whether the last product lay in the space, which is then invariant.
        finite: whether all products were finite; one that is not leaves the space unchanged.
    """

    def __init__(self, product: Product, start: Vector, max_products: int, rounding: float) -> None:
        """Begins with a start vector.

        Args:
            product: multiplies by the matrix.
            start: start vector, of any length.
            max_products: largest dimension of the space.
            rounding: norm of a remainder, relative to the product, that counts as rounding.
        """
        self._product, self._rounding = product, rounding
        self._max_products = min(max_products, len(start))
        # The operating system only provides memory for rows that are written.
        self._vectors = np.empty((self._max_products + 1, len(start)))
        self._vectors[0] = start / np.linalg.norm(start)
        self._hessenberg = np.zeros((self._max_products + 1, self._max_products))
        self.count, self.exhausted, self.finite = 0, False, True

    @property
    def full(self) -> bool:
        """Whether the space cannot grow any more."""
        return self.exhausted or not self.finite or self.count >= self._max_products

    @property
    def hessenberg(self) -> Float[np.ndarray, "_rows count"]:
        """The matrix H, with h in its last row."""
        return self._hessenberg[: self.count + 1, : self.count]

    @property
    def basis(self) -> Float[np.ndarray, "count n"]:
        """Orthonormal basis vectors, a row each."""
        return self._vectors[: self.count]

    @property
    def next(self) -> Vector:
        """Unit vector v of the new part h v of the last product; only when not exhausted."""
        return self._vectors[self.count]

    def extend(self) -> None:
        """Adds one product, unless the space is full."""
        if self.full:
            return
        last, basis = self.count, self._vectors[: self.count + 1]
        vector = np.asarray(self._product(basis[last]), float)
        scale = float(np.linalg.norm(vector))
        if not np.isfinite(scale):
            self.finite = False
            return
        for _ in range(2):  # the first sweep leaves the rounding of what it subtracts
            overlaps = basis @ vector
            vector = vector - overlaps @ basis
            self._hessenberg[: last + 1, last] += overlaps
        remaining = self._hessenberg[last + 1, last] = float(np.linalg.norm(vector))
        self.count, self.exhausted = last + 1, remaining <= self._rounding * scale
        if not self.exhausted:
            self._vectors[last + 1] = vector / remaining

    def renew(self, start: Vector) -> None:
        """Continues from a new start once the space is exhausted.

        One start vector shows only one eigenvector of a multiple eigenvalue.
        """
        if not self.exhausted or self.count >= self._max_products:
            return
        for _ in range(2):
            start = start - (self.basis @ start) @ self.basis
        self._hessenberg[self.count, self.count - 1] = 0.0
        self._vectors[self.count], self.exhausted = start / np.linalg.norm(start), False

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
    """A random start vector, the same in each call."""
    return np.random.default_rng(0).standard_normal(size)
