"""Upper bounds on eigenvalues from the Krylov chain of a random vector.

A Ritz value with its residual shows that some eigenvalue is near it, never that none is larger. A
chain from a random vector v does: its m-th vector is p_m(A) v of norm 1, where the polynomial p_m
follows from its coefficients, so that |γ p_m(λ)| ≤ 1 for an eigenvalue λ whose eigenvector has the
share γ in v. As |γ| < d has at most the probability δ = d √(2n/π), the largest eigenvalue is below
the t from which on p_m(t) exceeds 1/d, except with that probability (van Dorsselaer, Hochstenbach
and van der Vorst, SIAM J. Matrix Anal. Appl. 22, 2000, 837). One event covers all m, and p_m
continues through restarts that lock nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float

INDEPENDENT = 4
"""Largest number of chains that count: so many random vectors are drawn independently."""

_DOUBLINGS, _HALVINGS = 200, 48

_PARTS = 16
"""Parts of an interval, at whose ends the certainty is evaluated together."""


@dataclass(frozen=True)
class Recurrence:
    """The coefficients of Krylov chains; leading axes are those of the operators.

    Attributes:
        alphas: q·A q of each step.
        betas: norm of the remainder of A q, by which the next vector is divided; at least the
            rounding of a product. NaN where there was no step.
        started: where a chain begins, with a random vector outside the span of the vectors before,
            which is invariant.
        restarts: Ritz values of the vectors kept before a step, and their couplings with its q, by
            the number of the step.
    """

    alphas: Float[np.ndarray, "*batch steps"]
    betas: Float[np.ndarray, "*batch steps"]
    started: Bool[np.ndarray, "*batch steps"]
    restarts: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def reflected(self) -> Recurrence:
        """The coefficients of -A, whose largest eigenvalue is minus the smallest of A."""
        restarts = {
            step: (-values, couplings) for step, (values, couplings) in self.restarts.items()
        }
        return replace(self, alphas=-self.alphas, restarts=restarts)

    def trimmed(self) -> Recurrence:
        """The coefficients without the last steps, which were not made."""
        made = np.any(np.isfinite(self.betas), axis=tuple(range(self.betas.ndim - 1)))
        steps = slice(int(np.max(np.flatnonzero(made), initial=-1)) + 1)
        alphas, betas, started = (c[..., steps] for c in (self.alphas, self.betas, self.started))
        return Recurrence(alphas, betas, started, self.restarts)

    def stretched(self) -> Recurrence:
        """The coefficients for several t of each operator, along a last axis."""
        alphas, betas, started = (c[..., None, :] for c in (self.alphas, self.betas, self.started))
        return Recurrence(alphas, betas, started, self.restarts)

    def certainty(
        self, t: Float[np.ndarray, "*batch"], num_params: int
    ) -> Float[np.ndarray, "*batch"]:
        """-log of the probability that an eigenvalue above t was missed; see `share_limit`.

        The probabilities of several chains multiply, as their random vectors are independent. The
        result is -inf where t is not above all Ritz values.
        """
        usual = share_limit(num_params)
        log, best, ratio = np.zeros_like(t), np.zeros_like(t), np.ones_like(t)
        above, before, earlier = np.ones_like(t, bool), np.zeros_like(t), np.zeros_like(t)
        everywhere = np.isfinite(self.betas)
        betas = np.maximum(self.betas, np.finfo(float).tiny)
        counts = np.cumsum(self.started, axis=-1) <= INDEPENDENT
        for step in range(self.alphas.shape[-1]):
            beta, started, made = (c[..., step] for c in (betas, self.started, everywhere))
            if step in self.restarts:
                values, couplings = self.restarts[step]
                distances = t[..., None] - values
                above &= np.all(distances > 0, axis=-1)
                taken = np.sum(couplings**2 / np.where(distances > 0, distances, 1), axis=-1)
            else:
                taken = np.where(started, 0.0, before / np.where(above & ~started, ratio, 1))
            begun, last = made & started, counts[..., step]
            earlier = np.where(begun, earlier + np.maximum(best - usual, 0), earlier)
            log, best = np.where(begun, 0.0, log), np.where(begun, 0.0, best)
            ratio = np.where(made, (t - self.alphas[..., step] - taken) / beta, ratio)
            above &= ~made | (ratio > 0)
            log = np.where(made, log + np.log(np.where(above, ratio, 1)), log)
            best = np.where(last, np.maximum(best, log), 0.0)
            before = np.where(made, beta, before)
        return np.where(above, earlier + np.maximum(best - usual, 0), -np.inf)


def share_limit(num_params: int) -> float:
    """The c such that a random vector's share in a given one is below e^-x with p ≤ e^(c - x)."""
    return 0.5 * np.log(2 * num_params / np.pi)


def upper_bound(
    recurrence: Recurrence, num_params: int, failure_probability: float
) -> Float[np.ndarray, "*batch"]:
    """A bound that no eigenvalue exceeds, in exact arithmetic, except with the failure probability.

    Args:
        recurrence: coefficients of chains whose first vectors are uniform on the sphere.
        num_params: dimension of the space from which they are drawn.
        failure_probability: δ.

    Returns:
        The bound; infinite where no step was made or one is not finite.

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
            points = low[..., None] + width[..., None] * grid[1:-1]
            # The certainty suffices at all points beyond the first that has enough.
            short = np.sum(steps.certainty(points, num_params) < limit, axis=-1)
            low, high = low + width * grid[short], low + width * grid[short + 1]
    return np.where(usable, high, np.inf)
