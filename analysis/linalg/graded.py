"""The largest singular values of a long product of matrices, however far apart, with residuals.

Golub and Kahan's search, by blocks: a space is widened by the residuals of the vectors that it
gives. Between the links of the product vectors are made orthogonal again, so that what grows most
does not cover the others: singular values that differ by more than the rounding of a number are all
found, and products do not overflow.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg.lapack import dgejsv  # type: ignore[reportAttributeAccessIssue]

from dlf_dynamics.reprs import brief

_NOTHING = 1e-10
"""Part of a vector of length 1 that is left outside a space by rounding alone."""


class Chain(Protocol):
    """A product M = A_l ... A_2 A_1 of square matrices, its links, by products with rows."""

    size: int

    def __len__(self) -> int:
        """Number of links."""
        ...

    def through(self, link: int, vectors: np.ndarray) -> np.ndarray:
        """Products of the rows with a link."""
        ...

    def back(self, link: int, vectors: np.ndarray) -> np.ndarray:
        """Products of the rows with the transpose of a link."""
        ...


class SingularTriplets(NamedTuple):
    """The largest singular values that were found, in decreasing order.

    Attributes:
        logarithms: ln σ, also where σ itself is beyond the largest number; NaN where products
            within a link are not finite.
        right: v, a unit vector a row: the directions that grow by σ.
        residuals: ‖Mᵀu - σv‖/σ with u = Mv/σ, of products made anew, without what lies along
            larger ones, and those of the larger ones with it.
        converged: whether the residual is at most the tolerance. That no larger one was missed
            rests on the random start.
        products: number of products with M and Mᵀ that were made, of single vectors.
    """

    logarithms: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "k n"]
    residuals: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    products: int
    __repr__ = brief


def top_singular(
    chain: Chain, k: int, *, tol: float = 1e-6, max_products: int = 100, seed: int = 0
) -> SingularTriplets:
    """The k largest singular values of a product of matrices.

    Args:
        chain: the product.
        k: how many; at most the order of the matrices.
        tol: residual that counts as converged, relative to each singular value.
        max_products: products at most; two for each value come on top, by which it is checked.
        seed: seed of the random start.
    """
    block = min(k + 1, chain.size)
    new = np.random.default_rng(seed).standard_normal((chain.size, block))
    new, images, made = np.linalg.qr(new)[0].T, _Images(chain), 0
    try:
        while len(new):
            images.widen(new)
            found = images.triplets(block)
            returned = _returned(chain, found)
            made += len(new) + block
            missed = _missed(found, returned)
            if np.all(_summed(missed)[:k] <= tol) or made + 2 * block > max_products:
                break
            # What those that are found have left is rounding, and no direction to look in.
            new = _beside(images.space, returned[1][missed > tol / 10])
        checked = _Images(chain)
        checked.widen(images.triplets(k).right)
        found = checked.triplets(k)
        residuals = _summed(_missed(found, _returned(chain, found)))
    except FloatingPointError:
        lost = np.full(k, np.nan)
        return SingularTriplets(
            lost, np.full((k, chain.size), np.nan), lost, np.zeros(k, bool), made
        )
    return SingularTriplets(
        found.logarithms, found.right, residuals, residuals <= tol, made + 2 * k
    )


class _Ritz(NamedTuple):
    """Singular values of M on a space, with the vectors on both sides, a row each."""

    logarithms: Float[np.ndarray, " m"]
    right: Float[np.ndarray, "m n"]
    left: Float[np.ndarray, "m n"]


class _Images:
    """The images of a space under the first links, each as an orthonormal basis and a triangle.

    M V = Q T, T = R_l ... R_1: its rows are as far apart as the singular values, and are never
    added to each other.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.space = np.zeros((0, chain.size))
        self._bases = [self.space] * len(chain)
        self._triangles = [np.zeros((0, 0))] * len(chain)
        self._scales = np.zeros(len(chain))
        self._factor = np.zeros((0, 0))

    def widen(self, new: Float[np.ndarray, "b n"]) -> None:
        """Takes orthonormal rows, which are orthogonal to the space, to it."""
        first, count, rows = not len(self.space), len(self.space), new
        above, own = np.zeros((count, len(new))), np.eye(len(new))
        for link, basis in enumerate(self._bases):
            rows = _finite(self._chain.through(link, rows))
            if first:
                self._scales[link] = np.max(np.abs(rows)) or 1.0
            rows, old = rows / self._scales[link], self._triangles[link]
            beside, added = _split(rows, basis)
            rows, triangle = _triangular(beside)
            above, own = old @ above + added @ own, triangle @ own
            self._bases[link] = np.vstack([basis, rows])
            self._triangles[link] = _corner(old, added, triangle)
        self._factor = _corner(self._factor, above, own)
        self.space = np.vstack([self.space, new])

    def triplets(self, count: int) -> _Ritz:
        """The largest singular values of M on the space."""
        values, left, right = _svd(self._factor)
        with np.errstate(divide="ignore"):
            logarithms = np.log(values[:count]) + np.sum(np.log(self._scales))
        return _Ritz(
            logarithms, right[:, :count].T @ self.space, left[:, :count].T @ self._bases[-1]
        )


def _svd(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values and vectors of a triangle whose rows may be of any size, by Jacobi's method.

    The usual methods lose what is below the rounding of the largest.
    """  # noqa: DOC501
    values, left, right, work, _, info = dgejsv(factor, joba=2, jobu=0, jobv=0, jobr=0)
    if info != 0:
        raise FloatingPointError("the singular values of a triangle were not found")
    return values * (work[1] / work[0]), left, right


def _split(rows: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows without what lies in a space, and what does, a column for each of them."""
    overlaps = np.zeros((len(rows), len(basis)))
    for _ in range(2):  # the first sweep leaves rounding of what it subtracts
        more = rows @ basis.T
        rows, overlaps = rows - more @ basis, overlaps + more
    return rows, overlaps.T


def _triangular(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis, a row each, and the triangle with a positive diagonal."""
    basis, triangle = np.linalg.qr(rows.T)
    signs = np.where(np.diag(triangle) < 0, -1.0, 1.0)
    return (basis * signs).T, triangle * signs[:, None]


def _corner(old: np.ndarray, above: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.block([[old, above], [np.zeros((len(new), len(old))), new]])


def _returned(chain: Chain, found: _Ritz) -> tuple[np.ndarray, np.ndarray]:
    """Mᵀu of each left vector, without what lies along those before: ln of the length, the rest."""
    rows, logarithms = found.left, np.zeros(len(found.left))
    for link in reversed(range(len(chain))):
        rows, triangle = _triangular(_finite(chain.back(link, rows)))
        with np.errstate(divide="ignore"):
            logarithms += np.log(np.diag(triangle))
    return logarithms, rows


def _summed(missed: np.ndarray) -> np.ndarray:
    """Residuals with those of the larger singular values."""
    return np.sqrt(np.cumsum(missed**2))


def _missed(found: _Ritz, returned: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """‖Mᵀu - σv‖/σ of each singular value, without what lies along larger ones."""
    logarithms, rows = returned
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.linalg.norm(
            rows * np.exp(logarithms - found.logarithms)[:, None] - found.right, axis=1
        )
    # A value of 0 has no relative residual.
    return np.where(np.isfinite(sizes), sizes, np.inf)


def _beside(space: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what some rows of length 1 have outside a space."""
    found = space
    for row in rows:
        beside = _split(row[None], found)[0][0]
        length = np.linalg.norm(beside)
        if length > _NOTHING and len(found) < space.shape[1]:
            (row,) = _split(beside[None] / length, found)[0]
            found = np.vstack([found, row / np.linalg.norm(row)])
    return found[len(space) :]


def _finite(rows: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(rows)):
        raise FloatingPointError("a product is not finite")
    return rows
