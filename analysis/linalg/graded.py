"""The largest singular values of a long product of matrices, however far apart, with residuals.

A block version of the method of Golub and Kahan: a space is extended by the residuals of its best
vectors. Vectors are orthogonalised again after each link of the product, so that the fastest growth
does not cover the rest: singular values are found even where their ratios exceed the precision of
the numbers, and products do not overflow.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg.lapack import dgejsv  # type: ignore[reportAttributeAccessIssue]

from dlf_dynamics.reprs import brief

_NOTHING = 1e-10
"""Length of the part of a unit vector outside a space that is rounding alone."""


class Chain(Protocol):
    """A product M = A_l ... A_2 A_1 of square matrices, its links, which multiply rows."""

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
        logarithms: ln σ, also where σ itself overflows; NaN where products within a link are not
            finite.
        right: v, one unit vector per row: the directions that grow by σ.
        residuals: ‖Mᵀu - σv‖/σ with u = Mv/σ, from fresh products, without the components along
            larger ones but with the residuals of these.
        converged: whether the residual is at most the tolerance. That no larger one was missed
            relies on the random start.
        products: number of products of M and Mᵀ with single vectors.
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
        max_products: largest number of products; checking takes two more for each value.
        seed: seed of the random start.
    """
    block = min(k + 1, chain.size)
    new = np.random.default_rng(seed).standard_normal((chain.size, block))
    new, images, products = np.linalg.qr(new)[0].T, _Images(chain), 0
    try:
        while len(new):
            images.widen(new)
            triplets = images.triplets(block)
            returned = _returned(chain, triplets)
            products += len(new) + block
            missed = _missed(triplets, returned)
            if np.all(_summed(missed)[:k] <= tol) or products + 2 * block > max_products:
                break
            # Residuals of converged values are rounding, not directions to search in.
            new = _beside(images.space, returned[1][missed > tol / 10])
        checked = _Images(chain)
        checked.widen(images.triplets(k).right)
        triplets = checked.triplets(k)
        residuals = _summed(_missed(triplets, _returned(chain, triplets)))
    except FloatingPointError:
        lost = np.full(k, np.nan)
        return SingularTriplets(
            lost, np.full((k, chain.size), np.nan), lost, np.zeros(k, bool), products
        )
    return SingularTriplets(
        triplets.logarithms, triplets.right, residuals, residuals <= tol, products + 2 * k
    )


class _Triplets(NamedTuple):
    """Singular values of M on a space, with the vectors on both sides, a row each."""

    logarithms: Float[np.ndarray, " m"]
    right: Float[np.ndarray, "m n"]
    left: Float[np.ndarray, "m n"]


class _Images:
    """Images of a space under the first links, each as an orthonormal basis and a triangle.

    M V = Q T with T = R_l ... R_1, whose rows are as far apart in size as the singular values, and
    are never added to each other.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.space = np.zeros((0, chain.size))
        self._bases = [self.space] * len(chain)
        self._triangles = [np.zeros((0, 0))] * len(chain)
        self._scales = np.zeros(len(chain))
        self._factor = np.zeros((0, 0))

    def widen(self, new: Float[np.ndarray, "b n"]) -> None:
        """Adds orthonormal rows, which are orthogonal to the space, to it."""
        first, count, images = not len(self.space), len(self.space), new
        above, own = np.zeros((count, len(new))), np.eye(len(new))
        for link, basis in enumerate(self._bases):
            images = _finite(self._chain.through(link, images))
            if first:
                self._scales[link] = np.max(np.abs(images)) or 1.0
            images, old = images / self._scales[link], self._triangles[link]
            beside, added = _split(images, basis)
            images, triangle = _triangular(beside)
            above, own = old @ above + added @ own, triangle @ own
            self._bases[link] = np.vstack([basis, images])
            self._triangles[link] = _corner(old, added, triangle)
        self._factor = _corner(self._factor, above, own)
        self.space = np.vstack([self.space, new])

    def triplets(self, count: int) -> _Triplets:
        """The largest singular values of M on the space."""
        values, left, right = _svd(self._factor)
        with np.errstate(divide="ignore"):
            logarithms = np.log(values[:count]) + np.sum(np.log(self._scales))
        return _Triplets(
            logarithms, right[:, :count].T @ self.space, left[:, :count].T @ self._bases[-1]
        )


def _svd(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values and vectors of a triangle with rows of any size, by Jacobi's method.

    The usual methods lose values below the rounding of the largest one.
    """  # noqa: DOC501
    values, left, right, work, _, info = dgejsv(factor, joba=2, jobu=0, jobv=0, jobr=0)
    if info != 0:
        raise FloatingPointError("the singular values of a triangle were not found")
    return values * (work[1] / work[0]), left, right


def _split(vectors: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors without their part in a space, and their overlaps with it, a column for each."""
    overlaps = np.zeros((len(vectors), len(basis)))
    for _ in range(2):  # the first sweep leaves the rounding of what it subtracts
        more = vectors @ basis.T
        vectors, overlaps = vectors - more @ basis, overlaps + more
    return vectors, overlaps.T


def _triangular(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis, a row each, and the triangle with a positive diagonal."""
    basis, triangle = np.linalg.qr(vectors.T)
    signs = np.where(np.diag(triangle) < 0, -1.0, 1.0)
    return (basis * signs).T, triangle * signs[:, None]


def _corner(old: np.ndarray, above: np.ndarray, new: np.ndarray) -> np.ndarray:
    return np.block([[old, above], [np.zeros((len(new), len(old))), new]])


def _returned(chain: Chain, triplets: _Triplets) -> tuple[np.ndarray, np.ndarray]:
    """Mᵀu of each left vector, without its part along those before: ln of the length, direction."""
    images, logarithms = triplets.left, np.zeros(len(triplets.left))
    for link in reversed(range(len(chain))):
        images, triangle = _triangular(_finite(chain.back(link, images)))
        with np.errstate(divide="ignore"):
            logarithms += np.log(np.diag(triangle))
    return logarithms, images


def _summed(missed: np.ndarray) -> np.ndarray:
    """Residuals including those of the larger singular values."""
    return np.sqrt(np.cumsum(missed**2))


def _missed(triplets: _Triplets, returned: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """‖Mᵀu - σv‖/σ of each singular value, without the part along larger ones."""
    logarithms, images = returned
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.linalg.norm(
            images * np.exp(logarithms - triplets.logarithms)[:, None] - triplets.right, axis=1
        )
    # A value of 0 has no relative residual.
    return np.where(np.isfinite(sizes), sizes, np.inf)


def _beside(space: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the parts of some unit vectors outside a space."""
    extended = space
    for vector in vectors:
        beside = _split(vector[None], extended)[0][0]
        length = np.linalg.norm(beside)
        if length > _NOTHING and len(extended) < space.shape[1]:
            (vector,) = _split(beside[None] / length, extended)[0]
            extended = np.vstack([extended, vector / np.linalg.norm(vector)])
    return extended[len(space) :]


def _finite(vectors: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(vectors)):
        raise FloatingPointError("a product is not finite")
    return vectors
