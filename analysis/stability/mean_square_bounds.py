"""Whether second moments under the noise of batches decay: bounds with certificates.

A batch of B of n examples has the curvature H_S, whose mean over batches is H and whose noise is
E[(H_S - H) Z (H_S - H)] = p [(1/n) Σ_i H_i Z H_i - H Z H], p = (n - B) / (B (n - 1)). Let a linear
update respond to white noise of covariance X in the gradient by the covariance Z_ab = X_ab / s_ab
of the parameters, in the eigenbasis of H with its eigenvalues k. It is stable in mean square
exactly where it is stable without noise and N[Z] = (p/n) Σ_i H_i Z H_i stays below c ∘ Z,
c_ab = s_ab + p k_a k_b: where the largest ratio ⟨Z, N[Z]⟩ / ⟨Z, c ∘ Z⟩ is less than 1. Both are
symmetric, so that any Z gives a lower bound of it, an *instability* certificate. That remains true
for a Z that lives in some of the eigenvectors of H alone.

The *stability* certificate is that of a cone. With H_i = R_iᵀ R_i and blocks T_i, one for each
example, let Z = ((p/n) Rᵀ T R) / c and Φ(T)_i = R_i Z R_iᵀ. Where positive definite blocks with
Φ(T)_i < T_i are found, the noise W = N[Z] - p H Z H + (p/n) Rᵀ (T - Φ(T)) R is positive definite on
the range of H, and leads to the moment Z, hence to the noise N[Z] - p H Z H < W in the next step.
The map from noise to noise is positive, so its spectral radius is below 1.

Let Q be the part of R = P + Q in the eigenvectors left out, with eigenvalues up to k_m: for s > 0,
RᵀTR ⪯ (1 + s) PᵀTP + (1 + 1/s) QᵀTQ, and division by c keeps the order (1/c is a positive
definite kernel). As QᵀTQ ⪯ t n diag(k), with t the largest eigenvalue of the T_i, they add at most
(1 + 1/s) p t max_a(k_a / c_aa) Q_i Q_iᵀ to Φ(T)_i, which is allowed for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

from dlf_dynamics.analysis.stability.mean_square_factors import CurvatureFactors
from dlf_dynamics.analysis.stability.recursion import HeavyBall, Recursion, Response
from dlf_dynamics.errors import ConfigError

_EPS = float(np.finfo(float).eps)

_BASIS = 12
"""Vectors that the search keeps; each is a matrix of the order of the rank."""

_MOST_ROUNDS = 12
"""Rounds at most of the search with momentum."""

_LITTLE = 1e-6
"""Relative growth of the ratio in a round below which the search ends."""

_MAX_SOLVES = 60
"""Steps of conjugate gradients at most for one certificate."""

_MOST_MARGIN = 200.0
"""Relative margin by which a certified learning rate may be too small, after a severe rank cut."""

_FLOOR = 0.01
"""Least part of the right-hand side of a certificate, relative to its largest part."""

Verdict = Literal["stable", "unstable", "undecided"]

_Blocks = Float[np.ndarray, "curved outputs outputs"]


def symmetric_operator(size: int, product: Callable[[np.ndarray], np.ndarray]) -> LinearOperator:
    """Products with a symmetric matrix, for SciPy."""
    return LinearOperator((size, size), matvec=product, dtype=float)  # type: ignore[call-arg]


def noise_share(num_examples: int, batch_size: int) -> float:
    """The share p = (n - B) / (B (n - 1)) for batches without replacement; 0 for the full batch.

    >>> noise_share(4, 1), noise_share(4, 2), noise_share(4, 4), noise_share(1, 1)
    (1.0, 0.3333333333333333, 0.0, 0.0)
    """
    if batch_size == num_examples:
        return 0.0
    return (num_examples - batch_size) / (batch_size * (num_examples - 1))


@dataclass
class Noise:
    """N[Z] = (p/n) Σ_i H_i Z H_i in the eigenbasis of the mean curvature.

    Attributes:
        factors: curvatures of the examples.
        share: p.
        applications: how often N was applied.
    """

    factors: CurvatureFactors
    share: float
    applications: int = field(default=0, init=False)

    @property
    def rounding(self) -> float:
        """Largest relative error of quotients from the rounding of factors and sums."""
        return 64 * _EPS * (self.factors.rank + self.factors.rows.shape[1])

    def blocks(self, moment: Float[np.ndarray, "rank rank"]) -> _Blocks:
        """R_i Z R_iᵀ."""
        self.applications += 1
        rows = self.factors.rows
        half = (rows.reshape(-1, rows.shape[2]) @ moment).reshape(rows.shape)
        products = np.matmul(half, rows.swapaxes(1, 2))
        return (products + products.swapaxes(1, 2)) / 2

    def spread(self, blocks: _Blocks) -> Float[np.ndarray, "rank rank"]:
        """(p/n) Σ_i R_iᵀ T_i R_i."""
        rows = self.factors.rows
        half = np.matmul(blocks, rows).reshape(-1, rows.shape[2])
        sum_ = half.T @ rows.reshape(-1, rows.shape[2])
        return (self.share / self.factors.num_examples) * (sum_ + sum_.T) / 2


def rate_bounds(noise: Noise, rule: HeavyBall, tol: float) -> tuple[float, float, str]:
    """Learning rates below which heavy ball is stable, from which on it is not; why one is NaN.

    The response of heavy ball is C/η - S, so that the threshold is 1 over the largest
    ⟨Z, N[Z] + S ∘ Z⟩ / ⟨Z, C ∘ Z⟩, and all learning rates below it are stable.

    Args:
        noise: noise of the batches.
        rule: the update.
        tol: relative width to aim at.
    """
    factors, rounding = noise.factors, noise.rounding
    curvatures = factors.eigenvalues
    if noise.share == 0 or factors.rank == 0:
        top = float(np.max(curvatures, initial=0.0)) + factors.shift
        if top == 0:
            return np.inf, np.inf, ""
        rate = 2 * (1 + rule.momentum) / top
        return rate * (1 - rounding), rate * (1 + rounding), ""
    below = rule.decay(factors.shift).on(curvatures)
    beside = rule.growth(noise.share, factors.shift).on(curvatures)
    if rule.momentum:
        ratio, start = _ratio_in_rounds(noise, below, beside)
    else:
        ratio, start = largest_ratio(noise, below, beside)
    unstable = (1 + rounding) / ratio
    margin = max(tol / 4, _margin_of_cut(noise, ratio))
    while margin < _MOST_MARGIN:
        stable = 1 / (ratio * (1 + margin))
        if is_contracting(noise, rule.response(stable, noise.share, factors.shift), start):
            return stable, unstable, ""
        margin *= 2
    return np.nan, unstable, "no certificate of stability was found"


def judged(
    noise: Noise, recursion: Recursion, tol: float
) -> tuple[Verdict, tuple[float, float], str]:
    """Whether an update is stable, which multiples of its rate are and are not, and what is open.

    Args:
        noise: noise of the batches.
        recursion: the update.
        tol: relative width of the multiples to aim at.

    Raises:
        ConfigError: when the learning rate is not above 0.
    """
    rate, rule = recursion.rate, HeavyBall(recursion.memory)
    if rate <= 0:
        raise ConfigError(
            f"the optimizer's learning rate is {abs(rate):g} here; expected one above 0, to "
            "give the threshold as a multiple of it"
        )
    decay = 0.0
    if recursion.memory == 0:
        decay = (1 - recursion.position) / rate
    elif recursion.position != 1 + recursion.memory:
        verdict = _verdict(noise, recursion)
        reason = "with momentum and weight decay nothing is known of other learning rates"
        return verdict, (np.nan, np.nan), reason
    shifted = Noise(replace(noise.factors, shift=noise.factors.shift + decay), noise.share)
    stable, unstable, reason = rate_bounds(shifted, rule, tol)
    noise.applications += shifted.applications
    verdict: Verdict = "undecided"
    if rate < stable:
        verdict = "stable"
    elif rate >= unstable:
        verdict = "unstable"
    return verdict, (stable / rate, unstable / rate), reason


def _verdict(noise: Noise, recursion: Recursion) -> Verdict:
    """Whether an update is stable at its own learning rate, momentum and decay."""
    factors = noise.factors
    # The curvatures that were left out lie between the others and 0, where it is as stable.
    if not recursion.is_stable_on(np.append(factors.eigenvalues, 0.0) + factors.shift):
        return "unstable"
    if noise.share == 0 or factors.rank == 0:
        return "stable"
    response = recursion.response(noise.share, factors.shift)
    kernel = response.on(factors.eigenvalues)
    ratio, start = largest_ratio(noise, kernel, np.zeros_like(kernel))
    if ratio * (1 - noise.rounding) >= 1:
        return "unstable"
    return "stable" if is_contracting(noise, response, start) else "undecided"


def _margin_of_cut(noise: Noise, ratio: float) -> float:
    """Approximate relative cost of leaving eigenvectors out."""
    return 2 * float(np.sqrt(noise.share * np.max(noise.factors.rest) / (2 * ratio)))


def largest_ratio(
    noise: Noise, below: Float[np.ndarray, "rank rank"], beside: Float[np.ndarray, "rank rank"]
) -> tuple[float, _Blocks]:
    """A close lower bound of the largest ⟨Z, N[Z] + d ∘ Z⟩ / ⟨Z, c ∘ Z⟩, and its R_i Z R_iᵀ.

    Args:
        noise: N.
        below: c > 0.
        beside: d, symmetric.
    """
    return _quotient(noise, below, beside, _steepest(noise, below, beside))


def _ratio_in_rounds(
    noise: Noise, below: Float[np.ndarray, "rank rank"], beside: Float[np.ndarray, "rank rank"]
) -> tuple[float, _Blocks]:
    """The same where d is far below 0 off the diagonal, as with momentum, which hides the largest.

    Each round takes the Z with the largest ⟨Z, N[Z]⟩ / ⟨Z, (r c - d) ∘ Z⟩, where r is the ratio of
    the round before. The first r is that of the best moment along one eigenvector, for which
    r c - d is positive.
    """
    factors = noise.factors
    squares = np.sum(factors.rows**2, axis=1) ** 2
    along = noise.share / factors.num_examples * np.sum(squares, axis=0)
    best = int(np.argmax((along + np.diag(beside)) / np.diag(below)))
    moment = np.zeros_like(below)
    moment[best, best] = 1.0
    quotient = _quotient(noise, below, beside, moment)
    for _ in range(_MOST_ROUNDS):
        kernel, none = quotient[0] * below - beside, np.zeros_like(below)
        if np.min(kernel) <= 0:  # by rounding
            break
        better = _quotient(noise, below, beside, _steepest(noise, kernel, none))
        if better[0] <= quotient[0]:
            break
        gain, quotient = better[0] / quotient[0] - 1, better
        if gain < _LITTLE:
            break
    return quotient


def _quotient(
    noise: Noise,
    below: Float[np.ndarray, "rank rank"],
    beside: Float[np.ndarray, "rank rank"],
    moment: Float[np.ndarray, "rank rank"],
) -> tuple[float, _Blocks]:
    """⟨Z, N[Z] + d ∘ Z⟩ / ⟨Z, c ∘ Z⟩ and R_i Z R_iᵀ."""
    blocks = noise.blocks(moment)
    per_block = noise.share / noise.factors.num_examples
    above = per_block * np.sum(blocks**2) + np.sum(beside * moment**2)
    return float(above / np.sum(below * moment**2)), blocks


def _steepest(
    noise: Noise, below: Float[np.ndarray, "rank rank"], beside: Float[np.ndarray, "rank rank"]
) -> Float[np.ndarray, "rank rank"]:
    """A moment Z near the largest ⟨Z, N[Z] + d ∘ Z⟩ / ⟨Z, c ∘ Z⟩."""
    rank = noise.factors.rank
    root = np.sqrt(below)

    def product(flat: np.ndarray) -> np.ndarray:
        moment = flat.reshape(rank, rank)
        moment = (moment + moment.T) / 2
        scaled = noise.spread(noise.blocks(moment / root)) / root
        return (scaled + beside / below * moment).reshape(-1)

    start = noise.spread(_identities(noise)) / root
    vector = _top_vector(product, start.reshape(-1)).reshape(rank, rank)
    return (vector + vector.T) / root


def _top_vector(product: Callable[[np.ndarray], np.ndarray], start: np.ndarray) -> np.ndarray:
    """A vector near the eigenvector of the largest eigenvalue."""
    size = len(start)
    if size <= 4:
        dense = np.stack([product(unit) for unit in np.eye(size)])
        return np.linalg.eigh((dense + dense.T) / 2)[1][:, -1]
    operator = symmetric_operator(size, product)
    try:
        _, vectors = eigsh(
            operator,
            1,
            which="LA",
            v0=start,
            ncv=min(_BASIS, size),
            tol=1e-5,  # type: ignore[arg-type]
            maxiter=20,
        )
    except ArpackError as error:
        vectors = getattr(error, "eigenvectors", np.zeros((size, 0)))
    if vectors.shape[1]:
        return vectors[:, 0]
    return product(start)  # any vector gives a bound


def is_contracting(noise: Noise, response: Response, start: _Blocks) -> bool:
    """Whether the cone's certificate of stability was found.

    Args:
        noise: N.
        response: response of the update, to white noise.
        start: blocks of about the moment that grows most; it only helps the search.
    """
    factors = noise.factors
    least_slope = response.least_slope(float(factors.eigenvalues[-1]))
    kernel = response.on(factors.eigenvalues)
    if least_slope <= 0 or response.constant < 0 or np.min(kernel) <= 0:
        return False
    image = noise.blocks(noise.spread(start) / kernel)
    # Half of the distance to instability is reserved for the eigenvectors that were left out.
    split = (1 - float(np.sum(start * image) / np.sum(start**2))) / 2
    if split <= 0:
        return False
    rest = (1 + 1 / split) * noise.share / least_slope * factors.rest

    def mapped(blocks: _Blocks) -> _Blocks:
        return (1 + split) * noise.blocks(noise.spread(blocks) / kernel)

    weights = rest / np.max(rest, initial=1e-300) + _FLOOR
    right = _identities(noise) * weights[:, None, None]
    solved = _conjugate_gradients(mapped, right, start)
    left = solved - mapped(solved)
    sizes = np.linalg.eigvalsh(solved)
    largest = float(np.max(sizes))
    error = noise.rounding * np.trace(factors.rows @ factors.rows.swapaxes(1, 2), axis1=1, axis2=2)
    error = (error * noise.share / least_slope + noise.rounding) * largest
    least = np.linalg.eigvalsh(left)[:, 0] - largest * rest - error
    return bool(np.min(sizes) > 0 and np.min(least) > 0)


def _identities(noise: Noise) -> _Blocks:
    number, width, _ = noise.factors.rows.shape
    return np.broadcast_to(np.eye(width), (number, width, width)).copy()


def _conjugate_gradients(
    mapped: Callable[[_Blocks], _Blocks], right: _Blocks, start: _Blocks
) -> _Blocks:
    """Solves T - Φ(T) = right until the residual of each block is far below its right-hand side."""
    # The solution is largest along the moment that grows most: begin there.
    image = start - mapped(start)
    curvature = float(np.sum(start * image))
    solution = start * (np.sum(start * right) / curvature if curvature > 0 else 0.0)
    residual = right - (solution - mapped(solution)) if curvature > 0 else right.copy()
    direction, square = residual.copy(), float(np.sum(residual**2))
    limit = 0.2 * np.min(right[:, 0, 0])
    for _ in range(_MAX_SOLVES):
        if np.max(np.linalg.norm(residual, axis=(1, 2))) <= limit:
            break
        image = direction - mapped(direction)
        curvature = float(np.sum(direction * image))
        if curvature <= 0:  # the largest ratio is above 1
            break
        step = square / curvature
        solution, residual = solution + step * direction, residual - step * image
        square, before = float(np.sum(residual**2)), square
        direction = residual + square / before * direction
    return solution
