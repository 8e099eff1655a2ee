"""Multipliers of a cycle: all of a matrix, or the leading ones by products, and what they show.

There is evidence, if not proof, for a multiplier outside the unit circle: the residual of an
eigenvector shows that a matrix no further away has this eigenvalue, and to first order the
condition number of the eigenvalue gives its error. There is no such evidence that all are inside:
the Jacobian is not symmetric, and no product bounds an eigenvalue that the search has missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Complex, Float

from dlf_dynamics.analysis.linalg.arnoldi import KrylovSpace, Product, Ritz, Vector, random_start
from dlf_dynamics.reprs import brief

Stability = Literal["stable", "none found", "unstable", "unknown"]
Crossing = Literal["flip", "+1", "Neimark-Sacker", ""]

NEUTRAL = 2e-2
"""Distance from +1 within which a multiplier counts as neutral, unless it is surely outside.

Directions in which a loss is nearly flat give thousands of them. Where a centre drifts, they are
only close to +1, on either side of it."""

TOL = 1e-6
"""Residual up to which an eigenvector counts as converged, relative to its multiplier if larger."""

MAX_PRODUCTS = 150
"""Default number of products of Arnoldi's method."""

_SAFETY = 10.0
"""Factor between the assumed error of a multiplier and its estimate to first order."""

_ROUNDING = 1e-13
"""Default part of a product of the largest vectors that is rounding."""

_LEAST_ERROR = 1e-10
"""Smallest error of a multiplier, whatever its residual."""

_LOOKS = 5
"""Number of products between two evaluations of the Ritz values."""


_SYMMETRIC = 1e-14
"""Difference of a matrix from its transpose, relative to its largest entry, that is rounding."""


def multipliers_of(matrix: Float[np.ndarray, "n n"]) -> Complex[np.ndarray, " n"]:
    """Eigenvalues, largest modulus first; NaN for a matrix that is not finite.

    A matrix that is symmetric up to rounding, as that of gradient descent, takes a third of the
    time and has no imaginary parts.
    """
    if not np.all(np.isfinite(matrix)):
        return np.full(len(matrix), complex(np.nan, np.nan))
    rounding = _SYMMETRIC * np.max(np.abs(matrix), initial=0)
    symmetric = np.all(np.abs(matrix - matrix.T) <= rounding)
    solver = np.linalg.eigvalsh if symmetric else np.linalg.eigvals
    values = solver(matrix).astype(complex)
    return values[np.lexsort((-np.imag(values), -np.abs(values)))]


class Leading(NamedTuple):
    """The leading multipliers, and what they show.

    Attributes:
        values: the k multipliers of largest modulus that were found, including only those neutral
            ones that are surely outside the unit circle.
        residuals: ‖Mx - μx‖ for their unit eigenvectors x, from fresh products.
        errors: distance of an eigenvalue from μ, to first order and with a safety factor: ten times
            the residual times the condition number of μ in the space that was searched.
        neutral: number of others within `NEUTRAL` of +1, with residuals up to that, that are not
            listed; with products, a repeated one may be counted once.
        products: number of products.
        stability: `unstable` where one is outside the unit circle by more than its error; `stable`
            where all multipliers were computed and are inside by more than that; `none found` where
            this holds for those listed, but not all were computed, or neutral ones may be outside;
            otherwise `unknown`.
        crossing: where the farthest one outside lies: `flip` (beyond -1), `+1`, or
            `Neimark-Sacker` (a pair); empty unless unstable.
        notes: remarks, in words.
    """

    values: Complex[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    errors: Float[np.ndarray, " k"]
    neutral: int
    products: int
    stability: Stability
    crossing: Crossing
    notes: tuple[str, ...]
    __repr__ = brief

    @property
    def outside(self) -> bool:
        """Whether one is outside the unit circle by more than its error."""
        return self.stability == "unstable"


class _Search(NamedTuple):
    """Eigenpairs of M, or Ritz pairs of a Krylov space.

    Attributes:
        ritz: the pairs.
        basis: vectors to which their coefficients refer, a row each.
        products: number of products.
        whole: whether these are all multipliers.
        margin: distance from the unit circle within which the side is undecided.
    """

    ritz: Ritz
    basis: Float[np.ndarray, "ritz n"]
    products: int
    whole: bool
    margin: float


def dense_multipliers(matrix: Float[np.ndarray, "n n"], k: int, *, margin: float = 0.0) -> Leading:
    """The leading multipliers of a matrix, all of which are computed.

    Args:
        matrix: M.
        k: how many are listed.
        margin: distance from the unit circle within which the side is undecided.
    """
    if not np.all(np.isfinite(matrix)):
        return _not_finite(k, 0)
    solved: Any = scipy.linalg.eig(matrix, left=True, right=True)
    values, left, right = solved
    with np.errstate(divide="ignore"):
        conditions = 1 / np.abs(np.sum(left.conj() * right, axis=0))
    residuals = np.linalg.norm(matrix @ right - right * values, axis=0)
    ritz = Ritz(values.astype(complex), residuals, conditions, right.astype(complex).T)
    search = _Search(ritz, np.eye(len(matrix)), 0, whole=True, margin=margin)
    return _checked(lambda vector: matrix @ vector, search, k)


def leading_multipliers(
    product: Product,
    size: int,
    k: int,
    max_products: int = MAX_PRODUCTS,
    *,
    margin: float = 0.0,
    rounding: float = _ROUNDING,
) -> Leading:
    """The leading multipliers of a cycle, by Arnoldi's method from a random start.

    Neutral multipliers form a cluster, so that others are found first; a restarted method for the
    largest modulus, such as that of ARPACK, would fill its list with the cluster. Therefore the
    space grows until the leading ones outside the cluster have converged. Where it becomes
    invariant, another start reveals multiple ones.

    Args:
        product: multiplies by the Jacobian M of the p-fold map.
        size: order of M.
        k: how many are wanted.
        max_products: largest number of products of the search; up to two for each wanted multiplier
            are added.
        margin: distance from the unit circle within which the side is undecided.
        rounding: part of a product of the largest vectors that is rounding.
    """
    space = KrylovSpace(product, random_start(size), max_products, rounding)
    starts = np.random.default_rng(1)
    while True:
        space.extend()
        if space.exhausted:
            space.renew(starts.standard_normal(size))
        if space.full or (space.count % _LOOKS == 0 and _enough(space.ritz(), k, margin)):
            break
    if not space.finite or not space.count:
        return _not_finite(k, space.count + 1)
    search = _Search(space.ritz(), space.basis, space.count, whole=False, margin=margin)
    return _checked(product, search, k)


def _not_finite(k: int, products: int) -> Leading:
    unknown, notes = np.full(k, complex("nan")), ("multipliers are not finite",)
    nothing = np.full(k, np.nan)
    return Leading(unknown, nothing, nothing, 0, products, "unknown", "", notes)


def _error_of(ritz: Ritz) -> Float[np.ndarray, " ritz"]:
    """Errors of Ritz values, to first order and with a safety factor."""
    return np.maximum(_SAFETY * ritz.conditions * ritz.residuals, _LEAST_ERROR)


def _converged(ritz: Ritz) -> Bool[np.ndarray, " ritz"]:
    return ritz.residuals <= TOL * np.maximum(np.abs(ritz.values), 1.0)


def _beyond(ritz: Ritz, margin: float) -> Bool[np.ndarray, " ritz"]:
    """Which Ritz values are surely outside the unit circle."""
    return _converged(ritz) & (np.abs(ritz.values) - _error_of(ritz) > 1 + margin)


def _order(ritz: Ritz, margin: float) -> list[int]:
    """Indices of the Ritz values that may be listed, largest modulus first."""
    sizes, beyond = np.abs(ritz.values), _beyond(ritz, margin)
    listed = np.flatnonzero(beyond | (np.abs(ritz.values - 1) > NEUTRAL))
    by_size = np.lexsort((-np.imag(ritz.values[listed]), -sizes[listed]))
    return listed[by_size].tolist()


def _enough(ritz: Ritz, k: int, margin: float) -> bool:
    first = _order(ritz, margin)[:k]
    return len(first) == k and bool(np.all(_converged(ritz)[first]))


def _checked(product: Product, search: _Search, k: int) -> Leading:
    """The leading pairs, with residuals from fresh products."""
    ritz, margin = search.ritz, search.margin
    first = _order(ritz, margin)[:k]
    fresh, made = np.array(ritz.residuals), search.products
    for index in first:
        vector = ritz.coefficients[index] @ search.basis
        images = list(_images(product, vector))
        made += len(images)
        image = images[0] + (1j * images[1] if len(images) > 1 else 0.0)
        left = image - ritz.values[index] * vector
        fresh[index] = np.linalg.norm(left) / np.linalg.norm(vector)
    ritz = ritz._replace(residuals=fresh)
    # Individual members of a cluster need not have converged.
    neutral = (ritz.residuals <= NEUTRAL) & (np.abs(ritz.values - 1) <= NEUTRAL)
    neutral[first] = False
    stability, crossing = _shown(ritz, first, search)
    return Leading(
        values=ritz.values[first],
        residuals=fresh[first],
        errors=_error_of(ritz)[first],
        neutral=int(np.sum(neutral)),
        products=made,
        stability=stability,
        crossing=crossing,
        notes=tuple(_notes(ritz, first, min(k, len(ritz.values)), search)),
    )


def _shown(ritz: Ritz, first: list[int], search: _Search) -> tuple[Stability, Crossing]:
    """What is known about stability, and where the farthest multiplier surely outside lies."""
    sizes, errors = np.abs(ritz.values), _error_of(ritz)
    outside = _beyond(ritz, search.margin)
    outside[np.setdiff1d(np.arange(len(sizes)), first)] = False
    if np.any(outside):
        farthest = int(np.argmax(np.where(outside, sizes - errors, -np.inf)))
        return "unstable", _crossing(complex(ritz.values.item(farthest)), errors.item(farthest))
    inside = sizes + errors < 1 - search.margin  # no NaN is
    if not np.all(inside[first]):
        return "unknown", ""
    return ("stable" if search.whole and np.all(inside) else "none found"), ""


def _crossing(value: complex, error: float) -> Crossing:
    if abs(value.imag) > error:
        return "Neimark-Sacker"
    return "flip" if value.real < 0 else "+1"


def _images(product: Product, vector: Complex[np.ndarray, " n"]) -> Iterator[Vector]:
    """Products with the real part and, if there is one, the imaginary part."""
    yield np.asarray(product(np.real(vector)), float)
    if np.any(np.imag(vector)):
        yield np.asarray(product(np.imag(vector)), float)


def _notes(ritz: Ritz, first: list[int], k: int, search: _Search) -> Iterator[str]:
    surely, sizes, errors = _converged(ritz), np.abs(ritz.values), _error_of(ritz)
    count = int(np.sum(surely[first]))
    if count < k and not search.whole:
        made = search.products
        yield f"{count} of {k} multipliers converged to a residual of {TOL:g} in {made} products"
    at_one = surely & (np.abs(ritz.values - 1) <= np.maximum(_SAFETY * ritz.residuals, 1e-7))
    if np.any(at_one):
        yield "a multiplier cannot be distinguished from +1, the cycle may not be isolated"
    listed = np.zeros(len(sizes), bool)
    listed[first] = True
    beside = listed & surely & ~at_one & (np.abs(sizes - 1) <= errors)
    if np.any(beside):
        yield f"{np.sum(beside)} multipliers cannot be distinguished from the unit circle"
