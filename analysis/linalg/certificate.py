"""`Certificate`: what is certain about Ritz pairs, from below and from above."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.analysis.linalg.bounds import Recurrence, upper_bound
from dlf_dynamics.analysis.linalg.chain import Goal
from dlf_dynamics.analysis.linalg.ritz import Ends, RitzPairs, is_lost
from dlf_dynamics.analysis.linalg.vectors import ALLOWANCE, rounding

STATUSES = ("converged", "unranked", "tracked", "budget", "not finite")
"""Status of a value; its index is stored.

`converged`: its residual is small enough, and no eigenvalue further out was missed by more than the
rank tolerance, except with the failure probability. `unranked`: its residual is small enough, but
missed eigenvalues were deliberately not searched for. `tracked`: the same after a warm start.
`budget`: all products were spent, or more do not help. `not finite`: products are not finite.
"""

CONVERGED, UNRANKED, TRACKED, BUDGET, NOT_FINITE = range(len(STATUSES))


class Evidence(NamedTuple):
    """What is known about one or more operators; leading axes are those of the pairs.

    Attributes:
        pairs: Ritz pairs from fresh products.
        num_params: order n of the operator.
        own: coefficients of the search where it began at random, otherwise none.
        chain: coefficients of a chain in the complement of the vectors, if there was one.
        extent: smallest and largest Ritz value of the search.
        norm: largest ‖A q‖ of a unit vector seen so far.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        whole: whether the search filled the space.
        num_matvecs: number of products.
        noise: measured error of a product in the search and the chain; none where only rounding is
            known.
        dtype: type of the numbers in the search.
        fresh_dtype: type of the numbers in the fresh products.
    """

    pairs: RitzPairs
    num_params: int
    own: Recurrence | None
    chain: Recurrence | None
    extent: Float[np.ndarray, "*batch 2"]
    norm: Float[np.ndarray, "*batch"]
    asymmetry: Float[np.ndarray, "*batch"]
    whole: Bool[np.ndarray, "*batch"]
    num_matvecs: Int[np.ndarray, "*batch"]
    noise: Float[np.ndarray, "*batch"] | None
    dtype: Any
    fresh_dtype: Any


class Certificate(NamedTuple):
    """What is certain about Ritz pairs; leading axes are those of the pairs, such as checkpoints.

    Attributes:
        residuals: ‖A v - λ v‖ from fresh products.
        intervals: lower and upper ends. Where the value is `converged` they contain the eigenvalue
            of this rank, except with the failure probability: a Ritz value never lies beyond it
            (Cauchy; Parlett, Theorem 10.1.1), and the other end is the upper bound, or what the
            chain and the residuals allow. Otherwise they contain some eigenvalue (Theorem 4.5.1),
            and m intervals that overlap contain m of them (11.5.1). Rounding is allowed for.
        upper_bound: bound that no eigenvalue exceeds; infinite where there is none, and where none
            are wanted from the top.
        lower_bound: likewise, a bound that no eigenvalue falls below.
        rank_bounds: upper bound on the next eigenvalue beyond those at the top, and lower bound on
            the next beyond those at the bottom; infinite without a chain.
        status: what is certain about each value, an index into `STATUSES`.
    """

    residuals: Float[np.ndarray, "*batch count"]
    intervals: Float[np.ndarray, "*batch count 2"]
    upper_bound: Float[np.ndarray, "*batch"]
    lower_bound: Float[np.ndarray, "*batch"]
    rank_bounds: Float[np.ndarray, "*batch 2"]
    status: Int[np.ndarray, "*batch count"]

    @property
    def converged(self) -> Bool[np.ndarray, "*batch count"]:
        """Which values are certain enough to decide anything."""
        return self.status == CONVERGED


def certify(evidence: Evidence, goal: Goal, *, tracked: bool = False) -> Certificate:
    """Draws what is certain about Ritz pairs from the evidence, also for many operators at once.

    Args:
        evidence: what is known about them.
        goal: what was wanted.
        tracked: whether a warm start deliberately did without a chain.
    """
    pairs, ends = evidence.pairs, goal.ends
    residuals = np.sqrt(np.maximum(np.diagonal(pairs.residual_gram, axis1=-2, axis2=-1), 0))
    size, norm = evidence.num_params, np.fmax(evidence.norm, pairs.norm)
    asymmetry = np.fmax(evidence.asymmetry, pairs.asymmetry)
    lost = is_lost(asymmetry, norm, evidence.dtype)
    # For a random unit vector, ‖A q‖ is at least |λ|/√n for every λ, barring bad luck. Squares of
    # numbers below `least` underflow, so that their norms are 0.
    least = float(np.finfo(evidence.dtype).tiny) ** 0.5
    usual = ALLOWANCE * rounding(size, evidence.fresh_dtype)
    fresh = np.where(lost, 10 * size**0.5, usual) * norm + least
    top = np.arange(pairs.values.shape[-1]) < ends.top
    highest, above = _upper(evidence, goal, fresh)
    lowest, below = _upper(_reflected(evidence), goal._replace(ends=Ends(*ends[::-1])), fresh)
    outer = np.concatenate([highest, -lowest[..., ::-1]], axis=-1)
    spread = evidence.extent[..., 1] - evidence.extent[..., 0]
    column = lambda array: array[..., None]  # noqa: E731
    with np.errstate(invalid="ignore"):
        small = (residuals <= column(goal.tol * norm)) & ~column(lost)
        allowed = goal.rank_tolerance * spread + goal.tol * norm + 4 * fresh
        ranked = np.abs(outer - pairs.values) <= column(allowed) + residuals
    by_choice = tracked or not goal.ranked
    unproven = (TRACKED if tracked else UNRANKED) if by_choice else BUDGET
    status = np.where(small, np.where(ranked, CONVERGED, unproven), BUDGET)
    status = np.where(np.isfinite(pairs.values), status, NOT_FINITE)
    radius = _radius(pairs.values, residuals + column(fresh), pairs.residual_gram)
    inner = pairs.values + np.where(top, -1, 1) * column(fresh)
    certain = column(status == CONVERGED)
    intervals = np.where(
        certain,
        np.sort(np.stack([inner, outer], axis=-1), axis=-1),
        np.stack([pairs.values - radius, pairs.values + radius], axis=-1),
    )
    rank_bounds = np.stack([above[..., 1], -below[..., 1]], axis=-1)
    return Certificate(residuals, intervals, above[..., 0], -below[..., 0], rank_bounds, status)


def _reflected(evidence: Evidence) -> Evidence:
    """The evidence about -A."""
    pairs = evidence.pairs
    turned = pairs._replace(values=-pairs.values[..., ::-1])
    own, chain = (c if c is None else c.reflected() for c in (evidence.own, evidence.chain))
    return evidence._replace(pairs=turned, own=own, chain=chain)


def _upper(
    evidence: Evidence, goal: Goal, fresh: Float[np.ndarray, "*batch"]
) -> tuple[Float[np.ndarray, "*batch top"], Float[np.ndarray, "*batch 2"]]:
    """Upper bounds: on each value at the top; on all eigenvalues and on the next one."""
    values, count = evidence.pairs.values, goal.ends.total
    size = evidence.num_params
    noise = evidence.noise
    if noise is None:
        noise = ALLOWANCE * rounding(size, evidence.dtype) * evidence.norm
    noise = np.fmax(noise, fresh)
    nowhere = np.full(noise.shape, np.inf)
    highest = inside = nowhere
    if evidence.own is not None and goal.ends.top:
        highest = upper_bound(evidence.own, size, goal.failure_probability) + noise
    if evidence.chain is not None and goal.ends.top and size > count:
        inside = upper_bound(evidence.chain, size - count, goal.failure_probability) + noise
    # Where the search filled the space, nothing lies outside it.
    inside = np.where(evidence.whole & (size == count), -np.inf, inside)
    gram = np.nan_to_num(evidence.pairs.residual_gram, posinf=0.0)
    coupling = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[..., -1], 0)) + fresh
    each = _pushed(values[..., : goal.ends.top], inside[..., None], coupling[..., None])
    beyond = inside
    if goal.ends.bottom and count > goal.ends.top:
        beyond = _pushed(values[..., goal.ends.top], inside, coupling)
    exact = values[..., : goal.ends.top] + (coupling + noise)[..., None]
    each = np.minimum(each + fresh[..., None], highest[..., None])
    each = np.maximum(each, values[..., : goal.ends.top] + fresh[..., None])
    each = np.where(evidence.whole[..., None], exact, each)
    overall = each[..., 0] if goal.ends.top else np.where(evidence.whole, np.inf, highest)
    return each, np.stack([overall, np.minimum(beyond, overall)], axis=-1)


def _pushed(values: np.ndarray, bound: np.ndarray, coupling: np.ndarray) -> np.ndarray:
    """Largest eigenvalue that [[value, coupling], [coupling, bound]] can have."""
    with np.errstate(invalid="ignore"):
        middle, half = (values + bound) / 2, (values - bound) / 2
        pushed = middle + np.hypot(half, coupling)
    return np.where(np.isfinite(bound), pushed, np.where(bound > 0, np.inf, values + coupling))


def _radius(values: np.ndarray, radius: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Half widths such that m intervals that overlap contain m eigenvalues."""
    lower, upper = values - radius, values + radius
    with np.errstate(invalid="ignore"):
        meet = np.any(lower[..., :-1] <= upper[..., 1:], axis=-1, keepdims=True)
    finite = np.nan_to_num(gram, nan=0.0, posinf=0.0, neginf=0.0)
    together = np.sqrt(np.maximum(np.linalg.eigvalsh(finite)[..., -1:], 0))
    return np.where(meet, radius + together, radius)
