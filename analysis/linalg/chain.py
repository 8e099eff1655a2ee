"""`Chain`: a random Krylov chain without a basis, to bound eigenvalues outside some vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.linalg.bounds import INDEPENDENT, share_limit
from dlf_dynamics.analysis.linalg.ritz import Ends, Matvec
from dlf_dynamics.analysis.linalg.vectors import Form, Rows, Vector, rounding

FAILURE_PROBABILITY = 1e-6
"""Probability with which each bound may fail."""

RANK_TOLERANCE = 0.03
"""How far beyond the known eigenvalues a missed one may be, relative to the spread."""

TIGHTER = 1e-3
"""Factor by which tolerances shrink where an interval does not clear the threshold."""


class Goal(NamedTuple):
    """What a solver is to compute, hashable for `jax.jit`.

    Attributes:
        ends: how many eigenvalues.
        tol: largest residual to aim at, relative to the operator's norm.
        failure_probability: how often each upper bound may fail.
        rank_tolerance: how far beyond the known eigenvalues a missed one may be, relative to the
            spread of the spectrum.
        ranked: whether to search for missed eigenvalues.
        threshold: critical value; the search continues until it is clear whether the largest
            eigenvalue is above it, with tolerances down to a thousandth if necessary; infinite for
            none.
    """

    ends: Ends
    tol: float
    failure_probability: float = FAILURE_PROBABILITY
    rank_tolerance: float = RANK_TOLERANCE
    ranked: bool = True
    threshold: Any = float("inf")

    def within(self, rank_tolerance: float | None) -> Goal:
        """The goal with another rank tolerance; none keeps it, infinity leaves the chain out."""
        if rank_tolerance is None:
            return self
        if rank_tolerance == float("inf"):
            return self._replace(ranked=False)
        return self._replace(rank_tolerance=rank_tolerance)

    @property
    def tolerances(self) -> tuple[Any, Any, Any]:
        """Three numbers that no compiled program depends on."""
        return self.tol, self.rank_tolerance, self.threshold

    @property
    def form(self) -> Goal:
        """The goal without these numbers, for `jax.jit`."""
        return self.having((0.0, 0.0, 0.0))

    def having(self, tolerances: tuple[Any, Any, Any]) -> Goal:
        """The goal with other tolerances."""
        tol, rank_tolerance, threshold = tolerances
        return self._replace(tol=tol, rank_tolerance=rank_tolerance, threshold=threshold)

    def tightened(self, dtype: Any) -> Goal:
        """The goal with tighter tolerances, where an interval does not clear the threshold."""
        tol = TIGHTER * self.tol + 100 * float(jnp.finfo(dtype).eps)
        return self._replace(tol=tol, rank_tolerance=TIGHTER * self.rank_tolerance)

    @property
    def alone(self) -> bool:
        """Whether one value per end is wanted, which a search from a random start bounds itself."""
        return max(self.ends) <= 1

    def room(self, extent: Float[Array | np.ndarray, " 2"], norm: Array | float) -> Any:
        """How far outside a missed eigenvalue may be; above 0 even for the operator 0."""
        least = jnp.finfo(jnp.result_type(norm)).tiny
        return self.rank_tolerance * (extent[1] - extent[0]) + 0.9 * self.tol * norm + least


class Growth(NamedTuple):
    """log |p(t)| of the polynomials of chains, at points t for A or -A; see `bounds`.

    Attributes:
        t: the points.
        signs: 1 for points of A, -1 for points of -A.
        usual: log of the growth above which it says anything.
        ratio: p of the last step over p of the one before.
        log: log |p(t)| of the last step.
        best: largest log of all steps of the chain.
        earlier: certainty from the chains before it.
        chains: number of chains begun.
        above: whether t is above all Ritz values.
    """

    t: Float[Array, " places"]
    signs: Float[Array, " places"]
    usual: Float[Array, ""]
    ratio: Float[Array, " places"]
    log: Float[Array, " places"]
    best: Float[Array, " places"]
    earlier: Float[Array, " places"]
    chains: Int[Array, ""]
    above: Bool[Array, " places"]

    @classmethod
    def at(
        cls, t: Float[Array, " places"], num_params: int, signs: tuple[int, ...] = (1, -1)
    ) -> Growth:
        """The growth before the first step, in a space of so many dimensions."""
        zero, signed = jnp.zeros_like(t), jnp.asarray(signs, t.dtype)
        usual = jnp.asarray(share_limit(num_params), t.dtype)
        return cls(t, signed, usual, zero, zero, zero, zero, jnp.int32(0), jnp.ones_like(t, bool))

    @property
    def certainty(self) -> Float[Array, " places"]:
        """-log of the probability that an eigenvalue beyond t was missed."""
        counts = self.chains <= INDEPENDENT
        return self.earlier + jnp.where(counts, jnp.maximum(self.best - self.usual, 0), 0)

    def stepped(self, alpha: Array, beta: Array, before: Array, started: Array) -> Growth:
        """The growth after one more step; `before` is β of the step before."""
        earlier = jnp.where(started, self.certainty, self.earlier)
        log, best = (jnp.where(started, 0, part) for part in (self.log, self.best))
        taken = jnp.where(started, 0, before / jnp.where(started | ~self.above, 1, self.ratio))
        ratio = (self.t - self.signs * alpha - taken) / beta
        above = self.above & (ratio > 0)
        log = log + jnp.log(jnp.where(above, ratio, 1))
        best, chains = jnp.maximum(best, log), self.chains + started
        return Growth(self.t, self.signs, self.usual, ratio, log, best, earlier, chains, above)

    def free(self, goal: Goal) -> Bool[Array, " places"]:
        """Whether no eigenvalue is beyond t, except with the failure probability."""
        return self.above & (self.certainty >= -np.log(goal.failure_probability))

    def reached(self, goal: Goal) -> Bool[Array, ""]:
        """The same for the wanted ends, outside of which the first two points lie."""
        return jnp.all(~_wanted(goal) | self.free(goal)[:2])

    def missed(self, goal: Goal) -> Bool[Array, ""]:
        """Whether a Ritz value, and so an eigenvalue, is beyond one of these points."""
        return jnp.any(_wanted(goal) & ~self.above[:2])


def _wanted(goal: Goal) -> Bool[Array, " 2"]:
    return jnp.array([goal.ends.top > 0, goal.ends.bottom > 0])


class Chain(NamedTuple):
    """State of a chain, whose vectors are orthogonal to some given ones.

    Attributes:
        spare: another random vector, used when the chain is exhausted.
        before: the vector before the last.
        last: the last vector, to be multiplied next.
        alphas: q·A q of each step.
        betas: norm of the remainder of A q, at least its rounding; NaN where there was no step.
        started: where a chain begins; another follows one that is exhausted.
        length: number of steps.
        growth: growth of its polynomial at the points that no eigenvalue may exceed.
        norm: largest ‖A q‖ so far.
        done: whether the bound is reached or cannot be reached, or both vectors are exhausted.
    """

    spare: Vector
    before: Vector
    last: Vector
    alphas: Float[Array, " most"]
    betas: Float[Array, " most"]
    started: Bool[Array, " most_plus_1"]
    length: Int[Array, ""]
    growth: Growth
    norm: Float[Array, ""]
    done: Bool[Array, ""]


def begin_chain(
    form: Form,
    vectors: Rows,
    values: Float[Array, " count"],
    extent: Float[Array, " 2"],
    norm: Float[Array, ""],
    goal: Goal,
    max_steps: int,
    key: PRNGKeyArray,
) -> Chain:
    """Begins a chain with a random vector orthogonal to some vectors.

    Args:
        form: shape, type and location of the vectors.
        vectors: orthonormal, one per row.
        values: their Ritz values, largest first, those at the bottom last.
        extent: smallest and largest Ritz value.
        norm: norm of the operator, as far as it is known.
        goal: what is wanted.
        max_steps: largest number of steps.
        key: PRNG key, independent of the operator and of how the vectors were computed.
    """
    dtype, count = form.dtype, goal.ends.total
    drawn = form.random(key, 2)
    first, spare = (form.unit_outside(form.row(drawn, row), vectors) for row in range(2))
    room, top = goal.room(extent, norm), goal.ends.top
    upper = values[top - 1] if top else jnp.inf
    lower = values[top] if goal.ends.bottom else -jnp.inf
    blank = jnp.full(max_steps, jnp.nan, dtype)
    at = jnp.stack([jnp.asarray(upper + room, float), jnp.asarray(room - lower, float)])
    finite = jnp.all(jnp.isfinite(form.inner(vectors, vectors)))
    done = ~finite | (form.norm(first) == 0)
    zero = jax.tree.map(jnp.zeros_like, first)
    norm = jnp.asarray(norm, dtype)
    growth = Growth.at(at, form.num_params - count)
    started = jnp.zeros(max_steps + 1, bool).at[0].set(True)
    return Chain(spare, zero, first, blank, blank, started, jnp.int32(0), growth, norm, done)


def follow_chain(
    form: Form, matvec: Matvec, vectors: Rows, chain: Chain, goal: Goal, steps: Any
) -> Chain:
    """The chain after so many more steps, or fewer if it is done."""
    stop = jnp.minimum(chain.length + steps, len(chain.alphas))
    floor = rounding(form.num_params, form.dtype)

    def step(chain: Chain) -> Chain:
        index = chain.length
        begins = chain.started[index]
        product = matvec(chain.last)
        norm = jnp.maximum(chain.norm, form.norm(product))
        rest, _ = form.swept(product, vectors)
        beta_before = jnp.where(begins, 0, chain.betas[index - 1])
        alpha = form.inner(chain.last, rest)
        rest = form.less(form.less(rest, alpha, chain.last), beta_before, chain.before)
        # Once more, as the remainder may be much smaller than what was subtracted.
        again = form.inner(chain.last, rest)
        rest = form.less(form.swept(rest, vectors)[0], again, chain.last)
        remaining = form.norm(rest)
        exhausted = remaining <= floor * norm
        beta = jnp.maximum(remaining, floor * norm)
        growth = chain.growth.stepped(alpha, beta, beta_before, begins)
        following = form.scaled(rest, 1 / jnp.where(remaining > 0, remaining, 1))
        last = jax.tree.map(lambda *pair: jnp.where(exhausted, *pair), chain.spare, following)
        ended = growth.reached(goal) | growth.missed(goal) | (exhausted & (growth.chains > 1))
        return Chain(
            spare=chain.spare,
            before=chain.last,
            last=form.placed(last),
            alphas=chain.alphas.at[index].set(alpha),
            betas=chain.betas.at[index].set(beta),
            started=chain.started.at[index + 1].set(exhausted),
            length=index + 1,
            growth=growth,
            norm=norm,
            done=ended | ~jnp.isfinite(norm),
        )

    return jax.lax.while_loop(lambda chain: ~chain.done & (chain.length < stop), step, chain)
