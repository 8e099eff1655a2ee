"""Multipliers of a cycle: all of a matrix, or the leading ones by products, and what these show.

A multiplier outside the unit circle can be shown, if not beyond doubt: the residual of an
eigenvector says that a matrix no further away has this eigenvalue, and to first order the condition
number of the eigenvalue says how far off it is. That all are inside can never be shown so: the
Jacobian is not symmetric, and an eigenvalue that no vector has met is not bounded by any product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float

from dlf_dynamics.analysis.linalg.arnoldi import KrylovSpace, Product, Ritz, Vector, random_start

NEUTRAL = 2e-2
"""Distance from +1 within which a multiplier counts as neutral.

Directions in which a loss is nearly flat have thousands of them. Where a centre drifts, they are at
+1 only nearly, and on either side of it."""

TOL = 1e-6
"""Residual up to which an eigenvector counts as converged, relative to its multiplier if larger."""

MAX_PRODUCTS = 150
"""Of Arnoldi's method."""

_SAFETY = 10.0
"""What the error of a multiplier is taken to be, over its estimate to first order."""

_ROUNDING = 1e-13
"""Part of a product of the largest vectors that is rounding."""

_LEAST_ERROR = 1e-10
"""Of a multiplier, whatever its residual."""

_LOOKS = 5
"""Products between two looks at the Ritz values."""


_SYMMETRIC = 1e-14
"""Difference of a matrix from its transpose, relative to its largest entry, that is rounding."""


def multipliers_of(matrix: Float[np.ndarray, "n n"]) -> Complex[np.ndarray, " n"]:
    """Eigenvalues, largest modulus first; NaN for a matrix that is not finite.

    A matrix that is symmetric but for rounding, as that of gradient descent, takes a third of the
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
    """What Arnoldi's method found.

    Attributes:
        values: the k multipliers of largest modulus that were found; of the neutral ones only those
            that are surely outside the unit circle.
        residuals: ‖Mx - μx‖ for their unit eigenvectors x, from fresh products.
        neutral: Ritz values within `NEUTRAL` of +1, with residuals up to that, that are not listed.
        products: that were made.
        outside: whether one was found to be outside the unit circle by more than its error.
        notes: what is to be known of them, in words.
    """

    values: Complex[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    neutral: int
    products: int
    outside: bool
    notes: tuple[str, ...]


def leading_multipliers(
    product: Product, size: int, k: int, max_products: int = MAX_PRODUCTS
) -> Leading:
    """The leading multipliers of a cycle, by Arnoldi's method from a random start.

    Neutral multipliers lie together, so that those apart from them are found first; a restarted
    method that looks for the largest modulus, as that of ARPACK, would fill its list with them. So
    the space grows until the leading ones apart from them have converged. Where it is invariant,
    another start shows multiple ones.

    Args:
        product: multiplies by the Jacobian M of the p-fold map.
        size: order of M.
        k: how many are wanted.
        max_products: most that the search makes; up to two for each one wanted come on top.
    """
    space = KrylovSpace(product, random_start(size), max_products, _ROUNDING)
    starts = np.random.default_rng(1)
    while True:
        space.extend()
        if space.exhausted:
            space.renew(starts.standard_normal(size))
        if space.full or (space.count % _LOOKS == 0 and _enough(space.ritz(), k)):
            break
    if not space.finite or not space.count:
        unknown = np.full(k, complex("nan"))
        notes = ("multipliers are not finite",)
        return Leading(unknown, np.full(k, np.nan), 0, space.count + 1, False, notes)
    return _checked(product, space, k)


def error_of(ritz: Ritz) -> Float[np.ndarray, " ritz"]:
    """How far off Ritz values may be, to first order and with some safety."""
    return np.maximum(_SAFETY * ritz.conditions * ritz.residuals, _LEAST_ERROR)


def _converged(ritz: Ritz) -> Bool[np.ndarray, " ritz"]:
    return ritz.residuals <= TOL * np.maximum(np.abs(ritz.values), 1.0)


def _order(ritz: Ritz) -> list[int]:
    """Indices of those that may be listed, largest modulus first."""
    sizes, surely = np.abs(ritz.values), _converged(ritz)
    beyond = surely & (sizes > 1 + error_of(ritz))
    listed = np.flatnonzero(beyond | (np.abs(ritz.values - 1) > NEUTRAL))
    by_size = np.lexsort((-np.imag(ritz.values[listed]), -sizes[listed]))
    return listed[by_size].tolist()


def _enough(ritz: Ritz, k: int) -> bool:
    first = _order(ritz)[:k]
    return len(first) == k and bool(np.all(_converged(ritz)[first]))


def _checked(product: Product, space: KrylovSpace, k: int) -> Leading:
    """The leading Ritz pairs, with residuals from fresh products."""
    ritz = space.ritz()
    first = _order(ritz)[:k]
    fresh, made = np.array(ritz.residuals), space.count
    for index in first:
        vector = ritz.coefficients[index] @ space.basis
        images = list(_images(product, vector))
        made += len(images)
        image = images[0] + (1j * images[1] if len(images) > 1 else 0.0)
        left = image - ritz.values[index] * vector
        fresh[index] = np.linalg.norm(left) / np.linalg.norm(vector)
    ritz = ritz._replace(residuals=fresh)
    values, errors = ritz.values[first], error_of(ritz)[first]
    surely = _converged(ritz)
    # Those of a cluster need not have converged each by itself.
    neutral = (ritz.residuals <= NEUTRAL) & (np.abs(ritz.values - 1) <= NEUTRAL)
    neutral[first] = False
    outside = bool(np.any(surely[first] & (np.abs(values) > 1 + errors)))
    notes = tuple(_notes(ritz, first, k, space.count))
    return Leading(values, fresh[first], int(np.sum(neutral)), made, outside, notes)


def _images(product: Product, vector: Complex[np.ndarray, " n"]) -> Iterator[Vector]:
    """Products with the real and the imaginary part, if there is one."""
    yield np.asarray(product(np.real(vector)), float)
    if np.any(np.imag(vector)):
        yield np.asarray(product(np.imag(vector)), float)


def _notes(ritz: Ritz, first: list[int], k: int, products: int) -> Iterator[str]:
    surely, sizes, errors = _converged(ritz), np.abs(ritz.values), error_of(ritz)
    found = int(np.sum(surely[first]))
    if found < k:
        yield (
            f"{found} of {k} multipliers converged to a residual of {TOL:g} in {products} products"
        )
    at_one = surely & (np.abs(ritz.values - 1) <= np.maximum(_SAFETY * ritz.residuals, 1e-7))
    if np.any(at_one):
        yield "a multiplier cannot be told from +1, the cycle may not be isolated"
    listed = np.zeros(len(sizes), bool)
    listed[first] = True
    beside = listed & surely & ~at_one & (np.abs(sizes - 1) <= errors)
    if np.any(beside):
        yield f"{np.sum(beside)} multipliers cannot be told from the unit circle"
