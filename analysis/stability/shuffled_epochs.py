"""Second moments over an epoch of batches in shuffled order, by enumeration of all orders."""

from __future__ import annotations

from contextlib import suppress
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import ArpackError, LinearOperator, cg, eigsh

from dlf_dynamics.analysis.stability.mean_square_bounds import symmetric_operator
from dlf_dynamics.analysis.stability.mean_square_factors import CurvatureFactors
from dlf_dynamics.errors import ConfigError

_MOST_PRODUCTS = 20_000
"""Largest number of matrix products for one epoch."""

_MOST_RANK = 64
"""Largest order of these matrices."""

_EPS = float(np.finfo(float).eps)

_MOST_DENSE = 50_000
"""Products of an epoch times entries of a moment, up to which its map is computed as a matrix."""

_SCANNED = 64
"""Learning rates scanned for the first instability before it is bisected."""

Moment = Float[np.ndarray, "rank rank"]


class EpochMap:
    """How an epoch changes second moments, averaged over all orders of its examples.

    An epoch takes whole batches without replacement; the examples left over wait for another epoch.
    The map is symmetric and takes positive matrices to positive ones.

    Args:
        factors: curvatures of the examples.
        batch_size: B.

    Raises:
        ConfigError: when there are too many orders.
    """

    def __init__(self, factors: CurvatureFactors, batch_size: int) -> None:
        number, rows = factors.num_examples, factors.rows
        self.batches = number // batch_size
        products = sum(
            comb(number, k * batch_size) * comb(k * batch_size, batch_size)
            for k in range(1, self.batches + 1)
        )
        if products > _MOST_PRODUCTS or factors.rank > _MOST_RANK:
            raise ConfigError(
                f"{number} examples in batches of {batch_size} and rank {factors.rank} take "
                f"{products:,} products of matrices; expected at most {_MOST_PRODUCTS:,} and rank "
                f"{_MOST_RANK}, as all orders of an epoch are enumerated: take fewer examples, or "
                "sampling='independent' as a reference"
            )
        # Examples without curvature have no rows.
        curved = np.matmul(rows.swapaxes(1, 2), rows)
        empty = np.zeros((number - len(curved), factors.rank, factors.rank))
        one = np.eye(factors.rank)
        self.curvatures = np.concatenate([curved, empty]) + factors.shift * one
        self.one, self.batch_size, self.products = one, batch_size, products
        self.rounding = 16 * _EPS * (products + 2 * self.batches * len(one))
        self.applications = 0

    def __call__(self, rate: float, moment: Moment) -> Moment:
        """The second moment after an epoch at a learning rate."""
        self.applications += 1
        # Sets of examples that were seen, with the mean over the orders in which they were.
        seen: dict[tuple[int, ...], tuple[Moment, int]] = {(): (moment, 1)}
        everyone = set(range(len(self.curvatures)))
        for _ in range(self.batches):
            later: dict[tuple[int, ...], tuple[Moment, int]] = {}
            for before, (so_far, orders) in seen.items():
                for batch in combinations(
                    [i for i in everyone if i not in before], self.batch_size
                ):
                    update = self.one - rate * np.mean(self.curvatures[list(batch)], axis=0)
                    after = tuple(sorted((*before, *batch)))
                    total, count = later.get(after, (np.zeros_like(moment), 0))
                    later[after] = total + update @ so_far @ update, count + orders
            seen = later
        totals, counts = zip(*seen.values(), strict=True)
        return np.sum(totals, axis=0) / sum(counts)

    def growth(self, rate: float) -> float:
        """A lower bound of the largest eigenvalue: how second moments grow in an epoch."""
        if self.one.size * self.products <= _MOST_DENSE:
            units = np.eye(self.one.size).reshape(-1, *self.one.shape)
            images = self(rate, (units + units.swapaxes(1, 2)) / 2)
            dense = images.reshape(self.one.size, self.one.size)
            return float(np.linalg.eigvalsh((dense + dense.T) / 2)[-1])
        start = (self.one + 0.1 * np.ones_like(self.one)).reshape(-1)
        operator = self._operator(rate)
        image = np.asarray(operator.matvec(start))
        largest = float(start @ image / (start @ start))  # any vector gives a bound
        with suppress(ArpackError):
            tol: Any = 1e-8  # SciPy's type annotation is an integer
            largest = float(
                eigsh(
                    operator,
                    1,
                    which="LA",
                    v0=start,
                    tol=tol,
                    maxiter=15,
                    return_eigenvectors=False,
                )[0]
            )
        return largest

    def grows(self, rate: float) -> bool:
        """Whether some second moment grows by more than rounding."""
        return self.growth(rate) > 1 + self.rounding

    def contracts(self, rate: float) -> bool:
        """Whether some Y > 0 with P[Y] < Y was found, which proves that second moments decay."""
        operator = self._operator(rate)
        less = symmetric_operator(self.one.size, lambda v: v - operator @ v)
        # In directions of little curvature hardly anything decays, and Y is large.
        mean = np.diag(np.mean(self.curvatures, axis=0))
        size = 1 / np.maximum(mean[:, None] + mean, _EPS * np.max(mean)).reshape(-1)
        scale = symmetric_operator(self.one.size, lambda v: size * v)
        solved, _ = cg(less, self.one.reshape(-1), rtol=1e-3, maxiter=200, M=scale)
        moment = solved.reshape(self.one.shape)
        moment = (moment + moment.T) / 2
        left = moment - self(rate, moment)
        margin = self.rounding * np.sum(np.abs(np.diag(moment)))
        return bool(min(np.linalg.eigvalsh(moment)[0], np.linalg.eigvalsh(left)[0]) > margin)

    def _flat(self, rate: float, flat: np.ndarray) -> np.ndarray:
        moment = flat.reshape(self.one.shape)
        return self(rate, (moment + moment.T) / 2).reshape(-1)

    def _operator(self, rate: float) -> LinearOperator:
        return symmetric_operator(self.one.size, lambda v: self._flat(rate, v))


def epoch_rate_bounds(epoch: EpochMap, tol: float) -> tuple[float, float, str]:
    """Learning rates at which epochs are stable and unstable, and what remains open.

    The smallest unstable learning rate is searched for. Each end holds only at its own rate.

    Args:
        epoch: the map.
        tol: relative width.
    """
    largest = float(np.max(np.linalg.norm(epoch.curvatures, axis=(1, 2)), initial=0.0))
    if largest == 0:
        return np.inf, np.inf, ""
    step = 4 / largest / _SCANNED
    low, high = 0.0, step
    while not epoch.grows(high):
        low, high = high, high + step
        # Growth is a power of a large rate, so this ends.
        step *= 1.0 if high < 8 / largest else 1.1
    while high - low > tol / 2 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if epoch.grows(middle) else (middle, high)
    reason = "each end holds at its own learning rate; those below were tried at some points only"
    # Next to the threshold growth may hide in rounding; a certificate then lies further away.
    margin = 0.0
    while margin < 1:
        if epoch.contracts(low * (1 - margin)):
            return low * (1 - margin), high, reason
        margin = 2 * margin or tol / 2
    return np.nan, high, "no certificate of stability was found"
