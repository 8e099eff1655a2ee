"""Extreme eigenvalues of a symmetric operator, each with an interval that contains one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dlf_dynamics.analysis import subspace
from dlf_dynamics.analysis.lanczos import lanczos
from dlf_dynamics.analysis.ritz import (
    GUARD_GROWTH,
    Ends,
    Matvec,
    RitzPairs,
    is_lost,
    rounding,
)
from dlf_dynamics.operators import check_operator
from dlf_dynamics.reprs import brief

Which = Literal["largest", "smallest", "both"]

PASS_SIZE = 10_000
"""Orders up to which one compiled Lanczos pass is faster than a host loop over its products."""

PASS_MATVECS = 200
"""Products up to which it is; its whole basis is kept."""


class Certificate(NamedTuple):
    """What is certain of Ritz pairs; leading axes are those of the pairs, checkpoints for example.

    Attributes:
        residuals: ‖A v - λ v‖ from fresh products.
        intervals: lower and upper ends; in exact arithmetic each contains an eigenvalue, and
            pairs whose intervals meet contain as many as they are (Parlett, Theorems 4.5.1 and
            11.5.1). Rounding of a product is allowed for. Where products are rounding and little
            else, they contain 0 and, but for bad luck, all eigenvalues.
        gap_intervals: the sharper ones of Kato and Temple (Parlett, Theorem 4.6.1), which hold
            where nothing was missed; NaN where a neighbour is too near to tell.
        converged: residual at most `tol` times the norm of the operator, as far as it was seen,
            the guard left the value alone, and the products are those of a symmetric operator.
    """

    residuals: Float[np.ndarray, "*batch count"]
    intervals: Float[np.ndarray, "*batch count 2"]
    gap_intervals: Float[np.ndarray, "*batch count 2"]
    converged: Bool[np.ndarray, "*batch count"]


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues of one operator, largest first, and how far each can be trusted.

    That no eigenvalue further out was missed cannot be proven by products. A random vector, the
    guard, was followed until a missed one would have stood out, where `converged` says so.

    Attributes:
        eigenvalues: Rayleigh quotients, shape (k,), or (2k,) for both ends.
        eigenvectors: orthonormal, one per row.
        residuals: as in `Certificate`, like the next three.
        intervals: shape (k, 2).
        gap_intervals: shape (k, 2).
        converged: per value; the others are Ritz values.
        orthogonality: largest entry of |V Vᵀ - 1|.
        num_matvecs: products that were made, the fresh ones included.
        status: `converged`, `budget` (products spent before) or `not finite`.
        message: what was done and, where needed, what to try.
        method: `lanczos` (one compiled pass) or `block` (host loop with restarts).
        subspace: vectors to start from for a nearby operator.
    """

    eigenvalues: Float[np.ndarray, " k"]
    eigenvectors: Float[np.ndarray, "k n"]
    residuals: Float[np.ndarray, " k"]
    intervals: Float[np.ndarray, "k 2"]
    gap_intervals: Float[np.ndarray, "k 2"]
    converged: Bool[np.ndarray, " k"]
    orthogonality: float
    num_matvecs: int
    status: Literal["converged", "budget", "not finite"]
    message: str
    method: Literal["lanczos", "block"]
    subspace: Float[Array, "start n"]
    __repr__ = brief


def top_eigenpairs(
    matvec: Matvec,
    num_params: int,
    k: int,
    *,
    which: Which = "largest",
    tol: float,
    max_matvecs: int,
    key: PRNGKeyArray,
    initial_vectors: Float[Array, "start n"] | None = None,
    dtype: Any = float,
) -> Eigenpairs:
    """The k largest or smallest eigenvalues of a symmetric operator, or k from each end.

    Small operators go through one compiled Lanczos pass, large ones and warm starts through block
    Rayleigh-Ritz with restarts, whose memory is bounded.

    Args:
        matvec: product with the operator, traceable by JAX. A `jax.tree_util.Partial` is compiled
            once for all values of its arguments.
        num_params: order n of the operator.
        k: number of eigenvalues.
        which: end of the spectrum.
        tol: largest residual that counts as converged, relative to the norm of the operator.
        max_matvecs: products at most, the fresh ones included.
        key: of the random directions.
        initial_vectors: `subspace` of a nearby operator, to start from.
        dtype: of the vectors.

    Raises:
        ValueError: when k is not between 1 and n, the products are too few, or the operator is not
            linear, not symmetric or of another shape.

    >>> matrix = jnp.diag(jnp.arange(50.0))
    >>> found = top_eigenpairs(
    ...     lambda v: matrix @ v, 50, 2, tol=1e-3, max_matvecs=60, key=jax.random.key(0)
    ... )
    >>> found.eigenvalues.round(2).tolist(), found.converged.tolist()
    ([49.0, 48.0], [True, True])
    """
    matvec = matvec if isinstance(matvec, Partial) else Partial(matvec)
    ends = make_ends(k, num_params, which)
    least = 2 * ends.total + 2
    if max_matvecs < least:
        raise ValueError(f"max_matvecs is {max_matvecs}; expected at least {least} for k = {k}")
    _check_shape(matvec, num_params, dtype)
    one_pass = num_params <= PASS_SIZE and max_matvecs <= PASS_MATVECS and initial_vectors is None
    if one_pass:
        settings = _Settings(num_params, ends, tol, max_matvecs, jnp.dtype(dtype))
        pairs = _one_pass(matvec, key, settings=settings)
        start = pairs.vectors
    else:
        pairs, start = subspace.solve(
            Partial(_as_it_is, matvec),
            num_params,
            ends,
            tol=tol,
            max_matvecs=max_matvecs,
            key=key,
            initial_vectors=initial_vectors,
            dtype=dtype,
        )
    found = eigenpairs(jax.device_get(pairs), start, ends, tol, "lanczos" if one_pass else "block")
    if not is_symmetric(pairs, num_params):
        check_operator(matvec, num_params, key, dtype)
    return found


def make_ends(k: int, num_params: int, which: Which) -> Ends:
    """How many eigenvalues are wanted from each end.

    Raises:
        ValueError: when k is not between 1 and n, or `which` is unknown.
    """
    if not 1 <= k <= num_params:
        raise ValueError(f"k is {k}; expected 1 to {num_params}, the order of the operator")
    choices = {
        "largest": Ends(k, 0),
        "smallest": Ends(0, k),
        "both": Ends(k, min(k, num_params - k)),
    }
    if which not in choices:
        raise ValueError(f"which is {which!r}; expected one of {', '.join(choices)}")
    return choices[which]


class _Settings(NamedTuple):
    num_params: int
    ends: Ends
    tol: float
    max_matvecs: int
    dtype: Any


@partial(jax.jit, static_argnames="settings")
def _one_pass(matvec: Matvec, key: PRNGKeyArray, *, settings: _Settings) -> RitzPairs:
    n, ends, tol, max_matvecs, dtype = settings
    return lanczos(matvec, n, ends, tol=tol, max_matvecs=max_matvecs, key=key, dtype=dtype)


def _as_it_is(matvec: Matvec) -> Matvec:
    return matvec


def _multiply(matvec: Matvec, vector: Array) -> Array:
    """Of a function, not of a `Partial`, JAX remembers the trace."""
    return matvec(vector)


def _check_shape(matvec: Matvec, num_params: int, dtype: Any) -> None:
    vector = jax.ShapeDtypeStruct((num_params,), dtype)
    product = jax.eval_shape(_multiply, matvec, vector)
    found = (getattr(product, "shape", None), getattr(product, "dtype", None))
    if found != (vector.shape, vector.dtype):
        raise ValueError(
            f"the product has shape {found[0]} and type {found[1]}; expected those of the vector, "
            f"{vector.shape} and {vector.dtype}"
        )


def is_symmetric(pairs: RitzPairs, num_params: int) -> bool:
    """Whether what was seen of the operator is symmetric but for rounding."""
    allowed = 100 * rounding(num_params, pairs.values.dtype)
    return not bool(np.any(np.asarray(pairs.asymmetry) > allowed * np.asarray(pairs.norm)))


def eigenpairs(
    pairs: RitzPairs,
    start: Float[Array, "start n"],
    ends: Ends,
    tol: float,
    method: Literal["lanczos", "block"],
) -> Eigenpairs:
    """Ritz pairs with their certificate and a verdict in words."""
    certificate = certify(pairs, ends, tol)
    matvecs = int(pairs.num_matvecs)
    words = {"lanczos": "one Lanczos pass", "block": "block Rayleigh-Ritz with restarts"}[method]
    count, good = len(pairs.values), int(np.sum(certificate.converged))
    status, advice = "converged", ""
    if not np.all(np.isfinite(pairs.values)):
        status, advice = "not finite", "; the operator gives values that are not finite"
    elif good < count:
        status, advice = "budget", "; allow more products (max_matvecs) or a larger tol"
    return Eigenpairs(
        np.asarray(pairs.values),
        np.asarray(pairs.vectors),
        *certificate,
        orthogonality=float(pairs.orthogonality),
        num_matvecs=matvecs,
        status=status,
        message=f"{good} of {count} converged after {matvecs} products of {words}{advice}",
        method=method,
        subspace=start,
    )


def certify(pairs: RitzPairs, ends: Ends, tol: float) -> Certificate:
    """What is certain of Ritz pairs, also of many at once."""
    values = np.asarray(pairs.values, np.float64)
    gram = np.asarray(pairs.residual_gram, np.float64)
    residuals = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0))
    size, dtype = pairs.vectors.shape[-1], pairs.values.dtype
    norm = np.asarray(pairs.norm, np.float64)[..., None]
    lost = np.asarray(is_lost(pairs.asymmetry, pairs.norm))[..., None]
    with np.errstate(invalid="ignore"):
        converged = (residuals <= tol * norm) & np.asarray(pairs.guarded) & ~lost
    # Of a random unit vector ‖A q‖ is at least this part of every |λ|, but for bad luck.
    share = np.where(lost, GUARD_GROWTH * size**0.5, rounding(size, dtype))
    # Squares of smaller numbers leave the range, so that norms of them are 0.
    noise = share * norm + float(np.finfo(dtype).tiny) ** 0.5
    radius = _radius(values, residuals + noise, gram)
    intervals = np.stack([values - radius, values + radius], axis=-1)
    gaps = _gap_intervals(values, intervals, residuals, ends, noise)
    return Certificate(residuals, intervals, gaps, converged)


def _radius(values: np.ndarray, radius: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Half widths such that intervals that meet contain as many eigenvalues as they are."""
    lower, upper = values - radius, values + radius
    with np.errstate(invalid="ignore"):
        meet = np.any(lower[..., :-1] <= upper[..., 1:], axis=-1, keepdims=True)
    finite = np.nan_to_num(gram, nan=0.0, posinf=0.0, neginf=0.0)
    together = np.sqrt(np.maximum(np.linalg.eigvalsh(finite)[..., -1:], 0))
    return np.where(meet, radius + together, radius)


def _gap_intervals(
    values: np.ndarray,
    intervals: np.ndarray,
    residuals: np.ndarray,
    ends: Ends,
    noise: np.ndarray,
) -> np.ndarray:
    """Kato and Temple's intervals between the neighbours' intervals, where both are known."""
    outermost = np.full_like(values[..., :1], np.inf)
    above = np.concatenate([outermost, intervals[..., :-1, 0]], axis=-1)
    below = np.concatenate([intervals[..., 1:, 1], -outermost], axis=-1)
    # Next to the inner ends lie eigenvalues that were not asked for.
    if ends.bottom == 0:
        below[..., -1] = np.nan
    elif ends.top == 0:
        above[..., 0] = np.nan
    else:
        below[..., ends.top - 1] = above[..., ends.top] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        known = (below < values) & (values < above)
        lower = values - residuals**2 / (above - values) - noise
        upper = values + residuals**2 / (values - below) + noise
    # Where a gap is less than the residual, they are not sharper.
    lower = np.maximum(lower, intervals[..., 0])
    upper = np.minimum(upper, intervals[..., 1])
    return np.where(known[..., None], np.stack([lower, upper], axis=-1), np.nan)
