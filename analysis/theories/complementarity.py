"""Linear complementarity of symmetric matrices: X ⪰ 0, S = α + β[X] ⪰ 0, ⟨X, S⟩ = 0."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "k k"]

_ACCURACY = 1e-10
"""Largest violation of the three conditions for which a solution counts as converged."""

_AIM = 1e-14
"""Violation at which the iteration ends."""

_MOST_ITERATIONS = 80

_PATIENCE = 5
"""Iterations without progress after which only rounding remains."""

_UNBOUNDED = 1e9
"""Size of X, for α and β of size 1, above which it counts as unbounded."""

_SINGULAR = 1e-9
"""Singular values of β, relative to the largest, below which a part of X is undetermined."""


@dataclass(frozen=True)
class Complementarity:
    """A solution, or why there is none.

    Attributes:
        covariance: X.
        slack: S = α + β[X].
        gap: ⟨X, S⟩.
        residual: the largest violation of the three conditions, relative to the sizes of α and X.
        unique: whether X is the only solution; otherwise it is one of several, for all of which
            β[X] is the same (where β is symmetric).
        converged: whether X is a solution.
        message: why it is not, or that it is not the only one; empty otherwise.
    """

    covariance: Matrix
    slack: Matrix
    gap: float
    residual: float
    unique: bool
    converged: bool
    message: str


def solve_complementarity(alpha: Matrix, beta: Float[np.ndarray, "k k k k"]) -> Complementarity:
    """X ⪰ 0 with S = α + β[X] ⪰ 0 and ⟨X, S⟩ = 0, where β[X]_ij = Σ_kl β_ijkl X_kl.

    A primal-dual interior point method with the direction of Nesterov and Todd and Mehrotra's
    predictor and corrector (Todd, Toh and Tütüncü, SIAM J. Optim. 8, 1998, 769). It needs
    ⟨Y, β[Y]⟩ ≥ 0 for all symmetric Y; β need not be symmetric. A single mode has a closed form.

    Args:
        alpha: α, of which only the symmetric part matters.
        beta: β, of which only the part that maps symmetric matrices to symmetric ones matters.

    >>> solution = solve_complementarity(np.array([[-1.0]]), np.array([[[[4.0]]]]))
    >>> float(solution.covariance[0, 0]), solution.converged
    (0.25, True)
    """
    size = len(alpha)
    alpha = (alpha + alpha.T) / 2
    basis = _basis(size)
    operator = basis.T @ np.asarray(beta, float).reshape(size**2, size**2) @ basis
    if not (np.all(np.isfinite(alpha)) and np.all(np.isfinite(operator))):
        return _failed(alpha, "α or β is not finite")
    with np.errstate(over="ignore", invalid="ignore"):
        return _solved(alpha, operator)


def _solved(alpha: Matrix, operator: np.ndarray) -> Complementarity:
    size = len(alpha)
    scale, steepness = np.linalg.norm(alpha), np.linalg.norm(operator)
    if size == 0 or np.linalg.eigvalsh(alpha)[0] >= -_AIM * scale:
        return _judged(alpha, operator, np.zeros((size, size)))
    if steepness == 0:
        return _failed(alpha, _UNSOLVABLE)
    if size == 1:
        if operator[0, 0] <= 0:
            return _failed(alpha, _UNSOLVABLE)
        return _judged(alpha, operator, -alpha / operator[0, 0])
    scaled = _interior_point(alpha / scale, operator / steepness)
    if scaled is None:
        return _failed(alpha, _UNSOLVABLE)
    return _judged(alpha, operator, scale / steepness * scaled)


_UNSOLVABLE = "no X ⪰ 0 makes α + β[X] ⪰ 0"


@lru_cache(maxsize=16)
def _basis(size: int) -> Float[np.ndarray, "entries pairs"]:
    """An orthonormal basis of the symmetric matrices, one per column."""
    columns = []
    for i in range(size):
        for j in range(i, size):
            matrix = np.zeros((size, size))
            matrix[i, j] = matrix[j, i] = 1 if i == j else 0.5**0.5
            columns.append(matrix.reshape(-1))
    return np.array(columns).reshape(len(columns), size**2).T


def _response(operator: np.ndarray, matrix: Matrix) -> Matrix:
    """β[X]."""
    basis = _basis(len(matrix))
    return (basis @ (operator @ (basis.T @ matrix.reshape(-1)))).reshape(matrix.shape)


def _judged(alpha: Matrix, operator: np.ndarray, covariance: Matrix) -> Complementarity:
    """How well a matrix solves the problem."""
    response = _response(operator, covariance)
    slack = alpha + response
    gap = float(np.sum(covariance * slack))
    spread = float(np.linalg.norm(covariance))
    force = max(float(np.linalg.norm(alpha)), float(np.linalg.norm(response)))
    violations = [
        -np.min(np.linalg.eigvalsh(covariance), initial=0.0) / (spread or 1),
        -np.min(np.linalg.eigvalsh(slack), initial=0.0) / (force or 1),
        abs(gap) / (spread * force or 1),
    ]
    residual = float(max(violations))
    converged = residual <= _ACCURACY
    unique = _is_unique(operator, covariance, slack / (force or 1))
    message = "" if converged else f"not solved: conditions are violated by {residual:.1e}"
    if converged and not unique:
        message = "the conditions leave a part of X undetermined"
    return Complementarity(covariance, slack, gap, residual, unique, converged, message)


def _failed(alpha: Matrix, message: str) -> Complementarity:
    nothing = np.full(alpha.shape, np.nan)
    return Complementarity(nothing, nothing, np.nan, np.inf, False, False, message)


def _is_unique(operator: np.ndarray, covariance: Matrix, slack: Matrix) -> bool:
    """Whether β is injective on the matrices within the null space of S, which is of size 1."""
    values, vectors = np.linalg.eigh(slack)
    if not np.any(covariance):
        return True
    free = vectors[:, values <= 1e-6]
    within = _basis(len(slack)).T @ np.kron(free, free) @ _basis(free.shape[1])
    singular = np.linalg.svd(operator @ within, compute_uv=False)
    return bool(np.min(singular, initial=np.inf) > _SINGULAR * np.linalg.norm(operator, 2))


class _Scaling(NamedTuple):
    """G with G⁻¹ X G⁻ᵀ = Gᵀ S G = diag(values).

    Attributes:
        factor: G.
        values: diagonal of both.
        lifted: Y ↦ G Y Gᵀ in the basis of symmetric matrices.
    """

    factor: Matrix
    values: Float[np.ndarray, " k"]
    lifted: np.ndarray

    @classmethod
    def of(cls, covariance: Matrix, slack: Matrix) -> _Scaling:
        lower, other = np.linalg.cholesky(covariance), np.linalg.cholesky(slack)
        _, values, right = np.linalg.svd(other.T @ lower)
        factor = lower @ right.T / np.sqrt(values)
        basis = _basis(len(values))
        return cls(factor, values, basis.T @ np.kron(factor, factor) @ basis)


def _interior_point(alpha: Matrix, operator: np.ndarray) -> Matrix | None:
    """X for α and β of size 1; none where there is no solution."""
    size = len(alpha)
    covariance, slack, best, least, since = np.eye(size), np.eye(size), None, np.inf, 0

    for _ in range(_MOST_ITERATIONS):
        missed = alpha + _response(operator, covariance) - slack
        spread = float(np.linalg.norm(covariance))
        gap = float(np.sum(covariance * slack))
        left = abs(gap) / spread + float(np.linalg.norm(missed))
        if spread > _UNBOUNDED:
            return None
        since += 1
        if left < least:
            best, least, since = covariance, left, 0
        if left <= _AIM or since == _PATIENCE:
            break
        try:
            length, step = _direction(covariance, slack, missed, operator)
        except np.linalg.LinAlgError:  # as close as rounding allows
            break
        # From the equation, not from the direction, so that rounding does not accumulate in S.
        covariance = covariance + length * step
        slack = slack + length * (missed + _response(operator, step))
    return best


def _direction(
    covariance: Matrix, slack: Matrix, missed: Matrix, operator: np.ndarray
) -> tuple[float, Matrix]:
    """Step length and direction of X."""
    size = len(covariance)
    basis, scaling = _basis(size), _Scaling.of(covariance, slack)
    values, lifted = scaling.values, scaling.lifted
    system = np.eye(len(operator)) + lifted.T @ operator @ lifted
    behind = lifted.T @ (basis.T @ missed.reshape(-1))
    mean = (values[:, None] + values[None, :]) / 2

    def solved(target: Matrix) -> tuple[Matrix, Matrix]:
        """Scaled steps of X and S to a symmetrised product equal to the target, to first order."""
        wanted = basis.T @ ((target - np.diag(values**2)) / mean).reshape(-1)
        step = np.linalg.solve(system, wanted - behind)
        first, second = ((basis @ part).reshape(size, size) for part in (step, wanted - step))
        return first, second

    first, second = solved(np.zeros((size, size)))
    length = min(_longest(values, first), _longest(values, second))
    gap = float(np.sum(values**2))
    ahead = float(np.sum((np.diag(values) + length * first) * (np.diag(values) + length * second)))
    centring = max(ahead / gap, 0.0) ** 3
    product = (first @ second + second @ first) / 2
    first, second = solved(centring * gap / size * np.eye(size) - product)
    length = 0.98 * min(_longest(values, first), _longest(values, second))
    return length, scaling.factor @ first @ scaling.factor.T


def _longest(values: Float[np.ndarray, " k"], step: Matrix) -> float:
    """Largest t ≤ 1/0.98 for which diag(values) + t step is positive semidefinite."""
    root = np.sqrt(values)
    least = np.linalg.eigvalsh(step / root[:, None] / root[None, :])[0]
    return min(1 / 0.98, -1 / least) if least < 0 else 1 / 0.98
