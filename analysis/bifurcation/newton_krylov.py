"""Cycles of large maps: Newton's method without matrices, by GMRES with deflation.

The equations are those of `cycles`: all points are unknowns, and the linear systems are condensed
to the first of them, (1 - M) dx_0 = offset with the product M = J_p ... J_1 of the Jacobians. Only
products M v are made, by forward differentiation of the map.

GMRES is slow because of slow and unstable modes, whose multipliers are close to +1 or large.
Their approximate invariant subspace is taken from the Krylov spaces of earlier steps, without
further products, and removed by a preconditioner (Erhel, Burrage and Pohl 1996; with Picard
iterations in place of GMRES this is the recursive projection of Shroff and Keller 1993).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.newton import Change, Points, relative_gap
from dlf_dynamics.analysis.linalg.arnoldi import KrylovSpace, Product, Vector

_MAX_PRODUCTS = 100
"""Largest number of products of GMRES for one Newton step."""

_DEFLATED = 20
"""Largest number of deflated modes."""

_LOOSEST, _TIGHTEST = 0.1, 1e-6
"""Relative residuals of a linear system at which GMRES ends, far from and close to the cycle."""

_STAGNANT = 0.5
"""Relative residual above which a linear system counts as not solved."""

_NOT_SOLVED = f"GMRES left more than half of a linear system ({_MAX_PRODUCTS} products at most)"

_ROUNDING = 1e-14
"""Part of a product of large vectors that is rounding."""

_DEPENDENT = 1e-10
"""Eigenvalue of the overlaps of unit vectors below which a direction is not independent."""

_CLOSEST = 1e-8
"""Distance from +1 within which a multiplier is not deflated, as its system is singular."""


class _Shots(NamedTuple):
    """A cycle or a guess of one, with the images of its points."""

    points: Points
    parameter: float
    images: Points

    def gap(self, floor: float = 0.0) -> float:
        """See `newton.relative_gap`."""
        return relative_gap(self.points, self.images, floor)

    def merit(self, floor: float) -> float:
        """Quantity that each Newton step must decrease: GMRES decreases no other norm."""
        return float(np.linalg.norm(self.gaps))

    @property
    def gaps(self) -> Points:
        """f(x_i) - x_{i+1}."""
        return self.images - np.roll(self.points, -1, axis=0)


class Subspace(NamedTuple):
    """Approximate modes with the largest multipliers: M Wᵀ ≈ Wᵀ T.

    Attributes:
        basis: orthonormal W, a row each.
        images: products of M with them, from an earlier step.
        matrix: T.
    """

    basis: Float[np.ndarray, "k n"]
    images: Float[np.ndarray, "k n"]
    matrix: Float[np.ndarray, "k k"]

    def moved(self, vectors: np.ndarray) -> np.ndarray:
        """Preconditions one or several vectors: on the subspace 1 - M becomes nearly 1."""
        parts = vectors @ self.basis.T
        inverse = scipy.linalg.pinv(np.eye(len(self.matrix)) - self.matrix, rtol=_CLOSEST)
        return vectors + (parts @ np.transpose(inverse) - parts) @ self.basis


class _Solution(NamedTuple):
    """Solution of a linear system by GMRES.

    Attributes:
        vector: (n,) solution.
        residual: relative residual, from the recurrence.
        directions: vectors that span the space of the search, a row each.
        images: products of 1 - M with them.
    """

    vector: Vector
    residual: float
    directions: Float[np.ndarray, "m n"]
    images: Float[np.ndarray, "m n"]


@dataclass
class Solver:
    """Computes Newton steps for one cycle, remembers its slow modes and counts operations.

    Attributes:
        map_: the map.
        tol: largest relative residual of the cycle.
        floor: smallest size of the points that it is relative to.
        evaluations: number of evaluations of the map.
        products: number of products of a Jacobian of the map, not the p-fold one, with a vector.
    """

    map_: Map
    tol: float
    floor: float = 0.0
    evaluations: int = 0
    products: int = 0
    _slow: Subspace | None = field(default=None, repr=False)
    _residual: float = np.inf

    def evaluate(self, points: Points, parameter: float) -> _Shots:
        """Images of all points."""
        self.evaluations += len(points)
        images = _images(self.map_, jnp.asarray(points), jnp.float64(parameter))
        return _Shots(points, float(parameter), np.asarray(images))

    def product(self, cycle: _Shots) -> Product:
        """Function that multiplies by M at a cycle."""
        gaps = jnp.zeros(cycle.points.shape)
        return lambda vector: self._carried(cycle, vector, gaps)[-1]

    def propose(self, cycle: _Shots) -> Change:
        """A Newton step, as accurate as the distance from the cycle requires."""
        gaps = jnp.asarray(cycle.gaps)
        first = np.zeros(cycle.points.shape[1])
        offset = self._carried(cycle, first, gaps)[-1] if len(gaps) > 1 else np.asarray(gaps[0])
        if not np.all(np.isfinite(offset)) or not np.any(offset):
            return Change(np.full(cycle.points.shape, np.nan), note="the step is not finite")
        multiplied = self.product(cycle)
        solution = gmres(
            lambda vector: vector - multiplied(vector), offset, self._wanted(cycle), self._slow
        )
        self._slow = slow_modes(solution, self._slow)
        after = self._carried(cycle, solution.vector, gaps)
        left = np.linalg.norm(after[-1] - solution.vector) / np.linalg.norm(offset)
        note = "" if left <= _STAGNANT else _NOT_SOLVED
        return Change(np.concatenate([solution.vector[None], after[:-1]]), note=note)

    def _wanted(self, cycle: _Shots) -> float:
        """Relative residual of the linear system, not smaller than the next step can use."""
        now, before = cycle.gap(self.floor), self._residual
        self._residual = now
        quadratic = (now / before) ** 2 if np.isfinite(before) else _LOOSEST
        last = 0.1 * self.tol / now
        return float(np.clip(max(quadratic, last), _TIGHTEST, _LOOSEST))

    def _carried(self, cycle: _Shots, vector: Vector, gaps: Array) -> Points:
        """Changes of all points from that of the first, with all gaps added."""
        self.products += len(cycle.points)
        points, parameter = jnp.asarray(cycle.points), jnp.float64(cycle.parameter)
        return np.asarray(_carry(self.map_, points, parameter, jnp.asarray(vector), gaps))


def gmres(
    product: Product,
    right: Vector,
    tol: float,
    slow: Subspace | None,
) -> _Solution:
    """Solves A x = right by GMRES with a preconditioner on the right, without restarts.

    Unlike SciPy's method, it gives access to its basis, which yields slow modes without products.

    Args:
        product: multiplies by A.
        right: right-hand side, not 0.
        tol: largest ‖right - A x‖ / ‖right‖.
        slow: modes to deflate; none for the plain method.
    """
    moved = slow.moved if slow else lambda vectors: vectors
    space = KrylovSpace(lambda vector: product(moved(vector)), right, _MAX_PRODUCTS, _ROUNDING)
    weights, residual = np.zeros(0), 1.0
    while residual > tol and not space.full:
        space.extend()
        if space.count > len(weights):
            unit = np.eye(1, space.count + 1)[0]
            weights = np.linalg.lstsq(space.hessenberg, unit, rcond=1e-14)[0]
            residual = float(np.linalg.norm(unit - space.hessenberg @ weights))
    directions, hessenberg = moved(space.basis), space.hessenberg
    images = hessenberg[:-1].T @ space.basis
    if space.count and not space.exhausted:
        images[-1] += hessenberg[-1, -1] * space.next
    vector = np.linalg.norm(right) * (weights @ directions)
    return _Solution(vector, residual, directions, images)


def slow_modes(solution: _Solution, before: Subspace | None) -> Subspace | None:
    """Modes with the largest multipliers in the space of a solution and of earlier modes."""
    vectors, images = solution.directions, solution.directions - solution.images
    if before is not None:
        vectors, images = np.vstack([vectors, before.basis]), np.vstack([images, before.images])
    if not len(vectors):
        return before
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors, images = vectors / sizes, images / sizes
    overlaps, turn = np.linalg.eigh(vectors @ vectors.T)
    kept = overlaps > _DEPENDENT * overlaps[-1]
    weights = (turn[:, kept] / np.sqrt(overlaps[kept])).T
    vectors, images = weights @ vectors, weights @ images
    matrix = vectors @ images.T
    if not np.all(np.isfinite(matrix)):
        return before
    values, modes = np.linalg.eig(matrix)
    modes = modes[:, np.argsort(-np.abs(values), kind="stable")[:_DEFLATED]]
    left, sizes, _ = np.linalg.svd(np.hstack([np.real(modes), np.imag(modes)]), full_matrices=False)
    mix = left[:, sizes > 1e-6].T  # a mode and its conjugate are one pair of directions
    return Subspace(mix @ vectors, mix @ images, mix @ matrix @ mix.T)


@jax.jit
def _images(map_: Map, points: Array, parameter: Array) -> Array:
    return jax.lax.map(lambda point: map_(point, parameter).astype(point.dtype), points)


@jax.jit
def _carry(map_: Map, points: Array, parameter: Array, vector: Array, gaps: Array) -> Array:
    def along(change: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        point, gap = at
        step = lambda x: map_(x, parameter).astype(point.dtype)  # noqa: E731
        change = jax.jvp(step, (point,), (change,))[1] + gap
        return change, change

    return jax.lax.scan(along, vector, (points, gaps))[1]
