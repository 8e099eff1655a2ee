"""Cycles with a multiplier on the unit circle, as equations in two parameters.

The multiplier is where a bordered determinant vanishes (Kuznetsov 2004, §§10.2 and 10.3; Govaerts
2000, *Numerical Methods for Bifurcations of Dynamical Equilibria*, ch. 4). With borders W and V,

    [A W; Vᵀ 0] [Q; G] = [0; 1],   A = J - 1 (fold), J + 1 (flip), J² - 2κJ + 1 (Neimark-Sacker),

G vanishes with A's determinant, but has derivatives where that has none that can be computed. J is
the Jacobian of the p-fold map, κ the cosine of the multipliers' angle, one unknown more.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import get_lapack_funcs

from dlf_dynamics.analysis.bifurcation.maps import Map

CurveKind = Literal["fold", "flip", "neimark-sacker"]

Rows = Float[np.ndarray, "rows n"]


class Pulled(NamedTuple):
    """Linear functions of all points as functions of the first one and of the parameters.

    The other points close their gaps.

    Attributes:
        first: coefficients of the change of the first point.
        parameters: coefficients of the changes of the parameters.
        constant: what closing the gaps adds.
    """

    first: Rows
    parameters: Float[np.ndarray, "rows 2"]
    constant: Float[np.ndarray, " rows"]


class Place(NamedTuple):
    """A cycle in the plane of two parameters, or a guess of one, with all derivatives.

    Attributes:
        points: points of the cycle.
        parameters: both.
        cosine: κ, the cosine of the critical multipliers' angle; it is unknown of a pair only.
        images: f of the points.
        jacobians: derivatives in the state, at each point.
        rates: derivatives in the parameters, at each point.
    """

    points: Float[np.ndarray, "period n"]
    parameters: Float[np.ndarray, "2"]
    cosine: float
    images: Float[np.ndarray, "period n"]
    jacobians: Float[np.ndarray, "period n n"]
    rates: Float[np.ndarray, "period n 2"]

    @property
    def gaps(self) -> Float[np.ndarray, "period n"]:
        """f(x_i) - x_{i+1}."""
        return self.images - np.roll(self.points, -1, axis=0)

    def gap(self, floor: float) -> float:
        """The largest gap relative to the largest of the points, or to `floor` if larger."""
        return float(np.max(np.abs(self.gaps)) / max(np.max(np.abs(self.points)), floor))

    def followed(
        self, change: Float[np.ndarray, "period n"], parameters: Float[np.ndarray, "2"]
    ) -> Float[np.ndarray, "period n"]:
        """Changes of the images with those of the points and of the parameters."""
        return np.einsum("pij,pj->pi", self.jacobians, change) + self.rates @ parameters

    def jacobian(self) -> Float[np.ndarray, "n n"]:
        """Of the p-fold map."""
        matrix = self.jacobians[0]
        for following in self.jacobians[1:]:
            matrix = following @ matrix
        return matrix

    def closing(self) -> Pulled:
        """The last image less the first point, all other gaps being closed."""
        first, parameters = self.jacobians[0], self.rates[0]
        offset = self.gaps[0]
        rest = zip(self.jacobians[1:], self.rates[1:], self.gaps[1:], strict=True)
        for jacobian, rate, gap in rest:
            first, parameters = jacobian @ first, jacobian @ parameters + rate
            offset = jacobian @ offset + gap
        return Pulled(first - np.eye(len(first)), parameters, offset)

    def pulled(
        self, points: Float[np.ndarray, "rows period n"], parameters: Float[np.ndarray, "rows 2"]
    ) -> Pulled:
        """Linear functions of all points and of the parameters, by those of the first point."""
        constant, row = np.zeros(len(points)), points[:, -1]
        for i in range(len(self.points) - 1, 0, -1):
            constant = constant + row @ self.gaps[i - 1]
            parameters = parameters + row @ self.rates[i - 1]
            row = row @ self.jacobians[i - 1] + points[:, i - 1]
        return Pulled(row, parameters, constant)

    def moved(
        self, first: Float[np.ndarray, " n"], change: Float[np.ndarray, "2"], *, closing: bool
    ) -> Float[np.ndarray, "period n"]:
        """Changes of all points with those of the first and of the parameters.

        Args:
            first: change of the first point.
            change: change of the parameters.
            closing: whether they are to close the gaps, too.
        """
        changes = [first]
        for i in range(len(self.points) - 1):
            following = self.jacobians[i] @ changes[-1] + self.rates[i] @ change
            changes.append(following + self.gaps[i] if closing else following)
        return np.stack(changes)


def placed(
    map_: Map,
    points: Float[np.ndarray, "period n"],
    parameters: Float[np.ndarray, "2"],
    cosine: float,
) -> Place:
    """The map and its derivatives at all points."""
    found = _linearise(map_, jnp.asarray(points), jnp.asarray(parameters))
    return Place(points, parameters, cosine, *(np.asarray(part) for part in found))


class Borders(NamedTuple):
    """W and V: one column each, or two for a pair of multipliers; orthonormal."""

    left: Float[np.ndarray, "n count"]
    right: Float[np.ndarray, "n count"]


class Singularity(NamedTuple):
    """Equations of the critical multiplier at a place, linearised.

    Attributes:
        values: what vanishes where there is such a multiplier.
        gradient: derivatives of the values in the first point and the parameters.
        by_cosine: derivative of the values in κ.
        size: largest entry of G, relative to A's norm or to 1 if that is less.
        left: null vectors of Aᵀ, once the values vanish.
        right: null vectors of A.
    """

    values: Float[np.ndarray, " rows"]
    gradient: Pulled
    by_cosine: Float[np.ndarray, " rows"]
    size: float
    left: Float[np.ndarray, "n count"]
    right: Float[np.ndarray, "n count"]

    def borders(self) -> Borders:
        """Those that suit this place best, facing as the old ones."""
        return Borders(_orthonormal(self.left), _orthonormal(self.right))


def critical_matrix(
    kind: CurveKind, jacobian: Float[np.ndarray, "n n"], cosine: float
) -> Float[np.ndarray, "n n"]:
    """A, which is singular at the bifurcation."""
    one = np.eye(len(jacobian))
    if kind == "neimark-sacker":
        return jacobian @ jacobian - 2 * cosine * jacobian + one
    return jacobian + one if kind == "flip" else jacobian - one


def first_borders(kind: CurveKind, place: Place) -> Borders:
    """The singular vectors that belong to the least singular values of A.

    The largest component of a right one is positive, and so is its product with the left one.
    """
    count = 2 if kind == "neimark-sacker" else 1
    left, _, right = np.linalg.svd(critical_matrix(kind, place.jacobian(), place.cosine))
    left, right = left[:, -count:], right[-count:].T
    right = right * np.sign(right[np.argmax(np.abs(right), axis=0), range(count)])
    towards = np.sign(np.sum(left * right, axis=0))
    return Borders(left * np.where(towards == 0, 1, towards), right)


def singularity(map_: Map, kind: CurveKind, place: Place, borders: Borders) -> Singularity:
    """The equations of the critical multiplier; NaN where the bordered matrix is singular."""
    jacobian, count = place.jacobian(), borders.left.shape[1]
    matrix = critical_matrix(kind, jacobian, place.cosine)
    corner = np.zeros((count, count))
    system = np.block([[matrix, borders.left], [borders.right.T, corner]])
    factor, back = get_lapack_funcs(("getrf", "getrs"), (system,))
    factors, pivots, _ = factor(system)
    one = np.vstack([np.zeros((len(matrix), count)), np.eye(count)])
    right, found = np.split(back(factors, pivots, one)[0], [len(matrix)])
    left = back(factors, pivots, one, trans=1)[0][: len(matrix)]
    size = float(np.max(np.abs(found))) / max(float(np.linalg.norm(matrix, 1)), 1.0)
    # dG_ij = -left_i · dA right_j; for a pair dA = dJ J + J dJ - 2κ dJ - 2 dκ J.
    lefts, rights = (part.T for part in (left, right))
    if kind != "neimark-sacker":
        gradient = place.pulled(*_slopes(map_, place, lefts, rights))
        negative = Pulled(*(-part for part in gradient))
        return Singularity(found.ravel(), negative, np.zeros(1), size, left, right)
    turned = (jacobian @ right - 2 * place.cosine * right).T
    pairs = np.repeat(lefts, count, axis=0), np.tile(turned, (count, 1))
    more = np.repeat((jacobian.T @ left).T, count, axis=0), np.tile(rights, (count, 1))
    points, parameters = (
        np.sum(part.reshape(2, count**2, *part.shape[1:]), axis=0)
        for part in _slopes(map_, place, *map(np.vstack, zip(pairs, more, strict=True)))
    )
    gradient = Pulled(*(-part for part in place.pulled(points, parameters)))
    by_cosine = 2 * (left.T @ jacobian @ right).ravel()
    return _two_of_four(Singularity(found.ravel(), gradient, by_cosine, size, left, right))


def _two_of_four(four: Singularity) -> Singularity:
    """The two combinations of G's entries that change most: at a solution the rank is two.

    (A is a polynomial in J, and where a pair is critical J has two dimensions left to change in.)
    """
    rows = np.column_stack([four.gradient.first, four.gradient.parameters, four.by_cosine])
    if not np.all(np.isfinite(rows)):
        return four._replace(
            values=np.full(2, np.nan),
            gradient=Pulled(*(part[:2] for part in four.gradient)),
            by_cosine=four.by_cosine[:2],
        )
    chosen = np.linalg.svd(rows, full_matrices=False)[0][:, :2].T
    gradient = Pulled(*(chosen @ part for part in four.gradient))
    return four._replace(
        values=chosen @ four.values, gradient=gradient, by_cosine=chosen @ four.by_cosine
    )


def _orthonormal(columns: Float[np.ndarray, "n count"]) -> Float[np.ndarray, "n count"]:
    """Of the same span, facing as before."""
    basis, triangle = np.linalg.qr(columns)
    return basis * np.sign(np.diag(triangle))


def _slopes(
    map_: Map, place: Place, lefts: Rows, rights: Rows
) -> tuple[Float[np.ndarray, "rows period n"], Float[np.ndarray, "rows 2"]]:
    """Derivatives of left · J right in all points and in the parameters, for each pair."""
    points, parameters = jnp.asarray(place.points), jnp.asarray(place.parameters)
    found = _derivatives(map_, points, parameters, jnp.asarray(lefts), jnp.asarray(rights))
    return np.asarray(found[0]), np.asarray(found[1])


@jax.jit
def _derivatives(
    map_: Map, points: Array, parameters: Array, lefts: Array, rights: Array
) -> tuple[Array, Array]:
    def product(points: Array, parameters: Array, left: Array, right: Array) -> Array:
        def advance(vector: Array, point: Array) -> tuple[Array, None]:
            step = lambda x: map_(x, parameters).astype(x.dtype)  # noqa: E731
            return jax.jvp(step, (point,), (vector,))[1], None

        return left @ jax.lax.scan(advance, right, points)[0]

    slope = jax.grad(product, argnums=(0, 1))
    return jax.lax.map(lambda pair: slope(points, parameters, *pair), (lefts, rights))


@jax.jit
def _linearise(map_: Map, points: Array, parameters: Array) -> tuple[Array, Array, Array]:
    def at(point: Array) -> tuple[Array, Array, Array]:
        step = lambda x, p: map_(x, p).astype(point.dtype)  # noqa: E731
        rate = jax.jacfwd(step, argnums=1)(point, parameters)
        return step(point, parameters), map_.jacobian(point, parameters), rate

    return jax.lax.map(at, points)
