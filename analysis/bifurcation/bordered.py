"""Cycles with a multiplier on the unit circle, as equations in two parameters.

The multiplier is where a bordered determinant vanishes (Kuznetsov 2004, §§10.2 and 10.3; Govaerts
2000, *Numerical Methods for Bifurcations of Dynamical Equilibria*, ch. 4). With borders W and V,

    [A W; Vᵀ 0] [Q; G] = [0; 1],   A = J - 1 (fold), J + 1 (flip), J² - 2κJ + 1 (Neimark-Sacker),

G vanishes with A's determinant, but its derivatives can be computed. J is the Jacobian of the
p-fold map, κ the cosine of the multipliers' angle, one more unknown.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import get_lapack_funcs

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.newton import relative_gap

CurveKind = Literal["fold", "flip", "neimark-sacker"]

Rows = Float[np.ndarray, "rows n"]


class _Pulled(NamedTuple):
    """Linear functions of all points, reduced to the first point and the parameters.

    The other points follow from the condition that gaps close.

    Attributes:
        first: coefficients of the change of the first point.
        parameters: coefficients of the changes of the parameters.
        constant: change from closing the gaps.
    """

    first: Rows
    parameters: Float[np.ndarray, "rows 2"]
    constant: Float[np.ndarray, " rows"]


class PlaneCycle(NamedTuple):
    """A cycle in the plane of two parameters, or a guess of one, with all derivatives.

    Attributes:
        points: points of the cycle.
        parameters: values of both parameters.
        cosine: κ, the cosine of the critical multipliers' angle; an unknown for pairs only.
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
        """The largest gap relative to the largest point, or to `floor` if that is larger."""
        return relative_gap(self.points, self.images, floor)

    def followed(
        self, change: Float[np.ndarray, "period n"], parameters: Float[np.ndarray, "2"]
    ) -> Float[np.ndarray, "period n"]:
        """Changes of the images with those of the points and of the parameters."""
        return np.einsum("pij,pj->pi", self.jacobians, change) + self.rates @ parameters

    def jacobian(self) -> Float[np.ndarray, "n n"]:
        """Jacobian of the p-fold map."""
        matrix = self.jacobians[0]
        for following in self.jacobians[1:]:
            matrix = following @ matrix
        return matrix

    def closing(self) -> _Pulled:
        """The last image minus the first point, with all other gaps closed."""
        first, parameters = self.jacobians[0], self.rates[0]
        offset = self.gaps[0]
        rest = zip(self.jacobians[1:], self.rates[1:], self.gaps[1:], strict=True)
        for jacobian, rate, gap in rest:
            first, parameters = jacobian @ first, jacobian @ parameters + rate
            offset = jacobian @ offset + gap
        return _Pulled(first - np.eye(len(first)), parameters, offset)

    def pulled(
        self, points: Float[np.ndarray, "rows period n"], parameters: Float[np.ndarray, "rows 2"]
    ) -> _Pulled:
        """Linear functions of all points and the parameters, reduced to the first point."""
        constant, row = np.zeros(len(points)), points[:, -1]
        for i in range(len(self.points) - 1, 0, -1):
            constant = constant + row @ self.gaps[i - 1]
            parameters = parameters + row @ self.rates[i - 1]
            row = row @ self.jacobians[i - 1] + points[:, i - 1]
        return _Pulled(row, parameters, constant)

    def moved(
        self, first: Float[np.ndarray, " n"], change: Float[np.ndarray, "2"], *, closing: bool
    ) -> Float[np.ndarray, "period n"]:
        """Changes of all points with those of the first and of the parameters.

        Args:
            first: change of the first point.
            change: change of the parameters.
            closing: whether they also close the gaps.
        """
        changes = [first]
        for i in range(len(self.points) - 1):
            following = self.jacobians[i] @ changes[-1] + self.rates[i] @ change
            changes.append(following + self.gaps[i] if closing else following)
        return np.stack(changes)


def plane_cycle(
    map_: Map,
    points: Float[np.ndarray, "period n"],
    parameters: Float[np.ndarray, "2"],
    cosine: float,
) -> PlaneCycle:
    """The map and its derivatives at all points."""
    derivatives = _linearise(map_, jnp.asarray(points), jnp.asarray(parameters))
    return PlaneCycle(points, parameters, cosine, *(np.asarray(part) for part in derivatives))


class Borders(NamedTuple):
    """W and V: one column each, or two for a pair of multipliers; orthonormal."""

    left: Float[np.ndarray, "n count"]
    right: Float[np.ndarray, "n count"]


class Singularity(NamedTuple):
    """Equations of the critical multiplier at a place, linearised.

    Attributes:
        values: numbers that vanish where there is such a multiplier.
        gradient: derivatives of the values in the first point and the parameters.
        by_cosine: derivative of the values in κ.
        size: largest entry of G, relative to A's norm or to 1 if that is less.
        left: null vectors of Aᵀ, once the values vanish.
        right: null vectors of A.
    """

    values: Float[np.ndarray, " rows"]
    gradient: _Pulled
    by_cosine: Float[np.ndarray, " rows"]
    size: float
    left: Float[np.ndarray, "n count"]
    right: Float[np.ndarray, "n count"]

    def borders(self) -> Borders:
        """The best borders here, oriented like the old ones."""
        return Borders(_orthonormal(self.left), _orthonormal(self.right))


def _critical_matrix(
    kind: CurveKind, jacobian: Float[np.ndarray, "n n"], cosine: float
) -> Float[np.ndarray, "n n"]:
    """A, which is singular at the bifurcation."""
    one = np.eye(len(jacobian))
    if kind == "neimark-sacker":
        return jacobian @ jacobian - 2 * cosine * jacobian + one
    return jacobian + one if kind == "flip" else jacobian - one


def first_borders(kind: CurveKind, cycle: PlaneCycle) -> Borders:
    """The singular vectors of the smallest singular values of A.

    The largest component of a right vector is positive, and so is its product with the left one.
    """
    count = 2 if kind == "neimark-sacker" else 1
    left, _, right = np.linalg.svd(_critical_matrix(kind, cycle.jacobian(), cycle.cosine))
    left, right = left[:, -count:], right[-count:].T
    right = right * np.sign(right[np.argmax(np.abs(right), axis=0), range(count)])
    towards = np.sign(np.sum(left * right, axis=0))
    return Borders(left * np.where(towards == 0, 1, towards), right)


def singularity(map_: Map, kind: CurveKind, cycle: PlaneCycle, borders: Borders) -> Singularity:
    """The equations of the critical multiplier; NaN where the bordered matrix is singular."""
    jacobian, count = cycle.jacobian(), borders.left.shape[1]
    matrix = _critical_matrix(kind, jacobian, cycle.cosine)
    corner = np.zeros((count, count))
    system = np.block([[matrix, borders.left], [borders.right.T, corner]])
    factor, back = get_lapack_funcs(("getrf", "getrs"), (system,))
    factors, pivots, _ = factor(system)
    one = np.vstack([np.zeros((len(matrix), count)), np.eye(count)])
    right, entries = np.split(back(factors, pivots, one)[0], [len(matrix)])
    left = back(factors, pivots, one, trans=1)[0][: len(matrix)]
    size = float(np.max(np.abs(entries))) / max(float(np.linalg.norm(matrix, 1)), 1.0)
    # dG_ij = -left_i · dA right_j; for a pair dA = dJ J + J dJ - 2κ dJ - 2 dκ J.
    lefts, rights = (part.T for part in (left, right))
    if kind != "neimark-sacker":
        gradient = cycle.pulled(*_gradients(map_, cycle, lefts, rights))
        negative = _Pulled(*(-part for part in gradient))
        return Singularity(entries.ravel(), negative, np.zeros(1), size, left, right)
    turned = (jacobian @ right - 2 * cycle.cosine * right).T
    pairs = np.repeat(lefts, count, axis=0), np.tile(turned, (count, 1))
    more = np.repeat((jacobian.T @ left).T, count, axis=0), np.tile(rights, (count, 1))
    points, parameters = (
        np.sum(part.reshape(2, count**2, *part.shape[1:]), axis=0)
        for part in _gradients(map_, cycle, *map(np.vstack, zip(pairs, more, strict=True)))
    )
    gradient = _Pulled(*(-part for part in cycle.pulled(points, parameters)))
    by_cosine = 2 * (left.T @ jacobian @ right).ravel()
    return _two_of_four(Singularity(entries.ravel(), gradient, by_cosine, size, left, right))


def _two_of_four(four: Singularity) -> Singularity:
    """The two combinations of G's entries that change most: at a solution their rank is two.

    A is a polynomial in J, which can change in two dimensions only where a pair is critical.
    """
    gradients = np.column_stack([four.gradient.first, four.gradient.parameters, four.by_cosine])
    if not np.all(np.isfinite(gradients)):
        return four._replace(
            values=np.full(2, np.nan),
            gradient=_Pulled(*(part[:2] for part in four.gradient)),
            by_cosine=four.by_cosine[:2],
        )
    chosen = np.linalg.svd(gradients, full_matrices=False)[0][:, :2].T
    gradient = _Pulled(*(chosen @ part for part in four.gradient))
    return four._replace(
        values=chosen @ four.values, gradient=gradient, by_cosine=chosen @ four.by_cosine
    )


def _orthonormal(columns: Float[np.ndarray, "n count"]) -> Float[np.ndarray, "n count"]:
    """Orthonormal columns with the same span and orientation."""
    basis, triangle = np.linalg.qr(columns)
    return basis * np.sign(np.diag(triangle))


def _gradients(
    map_: Map, cycle: PlaneCycle, lefts: Rows, rights: Rows
) -> tuple[Float[np.ndarray, "rows period n"], Float[np.ndarray, "rows 2"]]:
    """Derivatives of left · J right in all points and in the parameters, for each pair."""
    points, parameters = jnp.asarray(cycle.points), jnp.asarray(cycle.parameters)
    gradients = _derivatives(map_, points, parameters, jnp.asarray(lefts), jnp.asarray(rights))
    return np.asarray(gradients[0]), np.asarray(gradients[1])


@jax.jit
def _derivatives(
    map_: Map, points: Array, parameters: Array, lefts: Array, rights: Array
) -> tuple[Array, Array]:
    def product(points: Array, parameters: Array, left: Array, right: Array) -> Array:
        def advance(vector: Array, point: Array) -> tuple[Array, None]:
            step = lambda x: map_(x, parameters).astype(x.dtype)  # noqa: E731
            return jax.jvp(step, (point,), (vector,))[1], None

        return left @ jax.lax.scan(advance, right, points)[0]

    gradient = jax.grad(product, argnums=(0, 1))
    return jax.lax.map(lambda pair: gradient(points, parameters, *pair), (lefts, rights))


@jax.jit
def _linearise(map_: Map, points: Array, parameters: Array) -> tuple[Array, Array, Array]:
    def at(point: Array) -> tuple[Array, Array, Array]:
        step = lambda x, p: map_(x, p).astype(point.dtype)  # noqa: E731
        rate = jax.jacfwd(step, argnums=1)(point, parameters)
        return step(point, parameters), map_.jacobian(point, parameters), rate

    return jax.lax.map(at, points)
