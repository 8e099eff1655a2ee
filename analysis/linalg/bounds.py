"""How large an eigenvalue can be, told by a random vector's Krylov chain: an upper bound.

A Ritz value with its residual says that some eigenvalue is near it, never that none is larger. A
chain from a random vector v does: its vector number m is p_m(A) v of norm 1, with the polynomial
p_m of its coefficients, so that |γ p_m(λ)| ≤ 1 for an eigenvalue λ of which v holds the share γ. As
|γ| is less than d with a probability of δ = d √(2n/π) at most, the largest eigenvalue is below the
t from which on p_m(t) exceeds 1/d, but for that probability (van Dorsselaer, Hochstenbach and van
der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000, 837). One event covers all m, and p_m goes on
through restarts that lock nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

INDEPENDENT = 4
"""Chains that count at most, as so many random vectors are drawn apart from each other."""

_DOUBLINGS, _HALVINGS = 200, 48

_PARTS = 16
"""Of an interval, at whose ends the certainty is looked at together."""


@dataclass(frozen=True)
class Recurrence:
    """The coefficients of Krylov chains; leading axes are those of the operators.

    Attributes:
        alphas: q·A q of each step.
        betas: norm of what is left of A q, by which the next vector is divided; at least the
            rounding of a product. NaN where there was no step.
        started: where a chain begins: with a random vector, outside of the span of those before,
            which is invariant.
        restarts: Ritz values of the vectors that were kept before a step, by its number, and
            their couplings with its q.
    """

    alphas: Float[np.ndarray, "*batch steps"]
    betas: Float[np.ndarray, "*batch steps"]
    started: Bool[np.ndarray, "*batch steps"]
    restarts: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def reflected(self) -> Recurrence:
        """Of -A, whose largest eigenvalue is the smallest of A."""
        restarts = {
            step: (-values, couplings) for step, (values, couplings) in self.restarts.items()
        }
        return Recurrence(-self.alphas, self.betas, self.started, restarts)

    def trimmed(self) -> Recurrence:
        """Without the steps that nobody made, which come last."""
        made = np.any(np.isfinite(self.betas), axis=tuple(range(self.betas.ndim - 1)))
        steps = slice(int(np.max(np.flatnonzero(made), initial=-1)) + 1)
        alphas, betas, started = (c[..., steps] for c in (self.alphas, self.betas, self.started))
        return Recurrence(alphas, betas, started, self.restarts)

    def stretched(self) -> Recurrence:
        """For several places t of each operator, which are in a last axis."""
        alphas, betas, started = (c[..., None, :] for c in (self.alphas, self.betas, self.started))
        return Recurrence(alphas, betas, started, self.restarts)

    def certainty(
        self, t: Float[np.ndarray, "*batch"], num_params: int
    ) -> Float[np.ndarray, "*batch"]:
        """-log of the probability with which an eigenvalue above t was missed; see `share_limit`.

        That of several chains is multiplied, as their random vectors are independent. It is -inf
        where t is not above all Ritz values.
        """
        usual = share_limit(num_params)
        log, best, ratio = np.zeros_like(t), np.zeros_like(t), np.ones_like(t)
        above, before, told = np.ones_like(t, bool), np.zeros_like(t), np.zeros_like(t)
        everywhere = np.isfinite(self.betas)
        betas = np.maximum(self.betas, np.finfo(float).tiny)
        counts = np.cumsum(self.started, axis=-1) <= INDEPENDENT
        for step in range(self.alphas.shape[-1]):
            beta, started, made = (c[..., step] for c in (betas, self.started, everywhere))
            if step in self.restarts:
                values, couplings = self.restarts[step]
                apart = t[..., None] - values
                above &= np.all(apart > 0, axis=-1)
                taken = np.sum(couplings**2 / np.where(apart > 0, apart, 1), axis=-1)
            else:
                taken = np.where(started, 0.0, before / np.where(above & ~started, ratio, 1))
            begun, last = made & started, counts[..., step]
            told = np.where(begun, told + np.maximum(best - usual, 0), told)
            log, best = np.where(begun, 0.0, log), np.where(begun, 0.0, best)
            ratio = np.where(made, (t - self.alphas[..., step] - taken) / beta, ratio)
            above &= ~made | (ratio > 0)
            log = np.where(made, log + np.log(np.where(above, ratio, 1)), log)
            best = np.where(last, np.maximum(best, log), 0.0)
            before = np.where(made, beta, before)
        return np.where(above, told + np.maximum(best - usual, 0), -np.inf)


def share_limit(num_params: int) -> float:
    """C such that one vector's share in a random one is below e^(-x) with probability e^(c - x)."""
    return 0.5 * np.log(2 * num_params / np.pi)


def upper_bound(
    recurrence: Recurrence, num_params: int, failure_probability: float
) -> Float[np.ndarray, "*batch"]:
    """What no eigenvalue exceeds, in exact arithmetic, but for the failure probability.

    Args:
        recurrence: coefficients of chains whose first vectors are uniform on the sphere.
        num_params: dimension of the space that they are drawn from.
        failure_probability: δ.

    Returns:
        the bound; infinite where no step was made or one is not finite.

    >>> chain = Recurrence(np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([True, False]))
    >>> bool(upper_bound(chain, 2, 0.1) > 1.6)  # of [[1, 1], [1, 0]]: 1.618 is the largest
    True
    """
    limit = -np.log(failure_probability)
    recurrence = recurrence.trimmed()
    made = np.isfinite(recurrence.betas)
    usable = np.any(made, axis=-1) & np.all(np.isfinite(recurrence.alphas) | ~made, axis=-1)
    alphas = np.where(made & usable[..., None], recurrence.alphas, -np.inf)
    low = np.where(usable, np.max(alphas, axis=-1, initial=-np.inf), 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        widest = np.max(np.where(made, recurrence.betas, 0.0), axis=-1, initial=0.0)
        width = np.where(usable, np.maximum(widest, np.finfo(float).tiny), 1.0)
        high = low + width
        for _ in range(_DOUBLINGS):
            short = usable & (recurrence.certainty(high, num_params) < limit)
            if not np.any(short):
                break
            width = np.where(short, 2 * width, width)
            high = np.where(short, low + width, high)
        grid, steps = np.arange(_PARTS + 1) / _PARTS, recurrence.stretched()
        for _ in range(int(np.ceil(_HALVINGS / np.log2(_PARTS)))):
            width = high - low
            places = low[..., None] + width[..., None] * grid[1:-1]
            # From one place on, all are enough.
            short = np.sum(steps.certainty(places, num_params) < limit, axis=-1)
            low, high = low + width * grid[short], low + width * grid[short + 1]
    return np.where(usable, high, np.inf)
