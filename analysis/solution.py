"""Eigenvalues of an operator of any order: a search, fresh products, a chain in the complement."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, PRNGKeyArray

from dlf_dynamics.analysis.bounds import Recurrence
from dlf_dynamics.analysis.certificate import Evidence
from dlf_dynamics.analysis.chain import Chain, Goal, begin_chain, follow_chain
from dlf_dynamics.analysis.krylov import Operator, Space, search
from dlf_dynamics.analysis.lanczos import CHAIN_STREAM
from dlf_dynamics.analysis.ritz import Ends, Matvec, RitzPairs, rayleigh_ritz

CHAIN_STEPS = 400
"""Steps of a chain at most."""

_PIECE = 8
"""Steps of a chain in one call, so that it can be watched."""

CertificateMatvec = Callable[[Float[np.ndarray, " n"]], Any]
"""Product in float64 with a float64 vector."""


def solve(
    operator: Operator,
    num_params: int,
    goal: Goal,
    *,
    max_matvecs: int,
    key: PRNGKeyArray,
    spent: int = 0,
    initial_vectors: Float[Array | np.ndarray, "start n"] | None = None,
    certificate_matvec: CertificateMatvec | None = None,
    tracked: bool = False,
    dtype: Any = float,
    progress: Callable[[int], None] = lambda matvecs: None,
) -> Evidence:
    """Extreme eigenvalues of a symmetric operator, in bounded memory.

    Where the chain in the complement of what was found meets something further out, a search in
    that complement finds it, and the best of both are kept.

    Args:
        operator: makes the matvec.
        num_params: order n of the operator.
        goal: what is asked for.
        max_matvecs: products at most, the fresh ones and the chain's included.
        key: of the random vectors.
        spent: products that were made before.
        initial_vectors: eigenvectors of a nearby operator, to start from.
        certificate_matvec: see `top_eigenpairs`.
        tracked: whether a warm start goes without a chain.
        dtype: of the vectors.
        progress: told the number of products so far.
    """
    work = _Work(operator, num_params, goal, max_matvecs - spent, key, certificate_matvec, dtype)
    work.progress = lambda made: progress(spent + made)
    start = None
    if initial_vectors is not None:
        start = jnp.sum(jnp.asarray(initial_vectors, dtype), axis=0)
    space = work.search(operator, start, work.fresh)
    own = space.recurrence if start is None else None
    evidence = work.judged(space.vectors, space, own, space.values)
    told = goal.alone and start is None
    chained = space.done and not space.whole and goal.ranked
    while chained and not (told or tracked) and work.left > 0:
        chain = work.chain(evidence)
        evidence = work.with_chain(evidence, chain)
        if not bool(chain.growth.missed(goal)) or work.left <= 3 * work.fresh + 4:
            break
        evidence = work.widened(evidence)
    return evidence._replace(num_matvecs=np.asarray(spent + work.made))


class _Work:
    """An operator, and the products that were spent on it."""

    def __init__(
        self,
        operator: Operator,
        num_params: int,
        goal: Goal,
        budget: int,
        key: PRNGKeyArray,
        certificate_matvec: CertificateMatvec | None,
        dtype: Any,
    ) -> None:
        self.operator, self.num_params, self.goal, self.budget = operator, num_params, goal, budget
        self.key, self.certificate_matvec, self.dtype = key, certificate_matvec, dtype
        self.made = self.tries = 0
        self.progress: Callable[[int], None] = lambda made: None

    @property
    def left(self) -> int:
        """Products that may still be made."""
        return self.budget - self.made

    @property
    def fresh(self) -> int:
        """Products that judging the vectors takes."""
        return self.goal.ends.total * (1 if self.certificate_matvec is None else 2)

    def search(self, operator: Operator, start: Array | None, reserved: int) -> Space:
        """Ritz vectors of the operator, or of a part of it, with so many products left over."""
        space = search(
            operator,
            self.num_params,
            self.goal,
            max_matvecs=self.left - reserved,
            key=jax.random.fold_in(self.key, 2 * self.tries),
            start=start,
            dtype=self.dtype,
            progress=lambda made, before=self.made: self.progress(before + made),
        )
        self.made += space.num_matvecs
        return space

    def judged(
        self,
        vectors: Float[Array, "count n"],
        space: Space,
        own: Recurrence | None,
        values: Float[np.ndarray, " count"] | None = None,
    ) -> Evidence:
        """The vectors by fresh products; their Ritz values, where they are known, are compared."""
        precise = np.asarray(vectors, float)
        products = rough = np.asarray(_products(self.operator, vectors), float)
        noise = None
        if self.certificate_matvec is not None:
            products = np.stack([np.asarray(self.certificate_matvec(row)) for row in precise])
            noise = np.max(np.linalg.norm(rough - products, axis=-1))
        self.made += len(precise) * (1 if self.certificate_matvec is None else 2)
        pairs, asymmetry = rayleigh_ritz(precise, products), space.asymmetry
        if values is not None and len(values) == len(precise):
            # In a basis of Ritz vectors, a symmetric operator is the diagonal that it was before.
            asymmetry = np.fmax(asymmetry, np.max(np.abs(precise @ rough.T - np.diag(values))))
        elif values is not None:  # products were spent before there were as many Ritz values
            pairs = pairs._replace(values=pairs.values * np.nan)
        return Evidence(
            pairs,
            own,
            None,
            np.array(space.extent),
            np.asarray(space.norm),
            np.asarray(asymmetry),
            np.asarray(space.whole),
            np.asarray(self.made),
            noise,
            np.dtype(self.dtype),
            np.dtype(self.dtype if self.certificate_matvec is None else float),
        )

    def chain(self, evidence: Evidence) -> Chain:
        """From a random vector outside of what was found, to the bound or the end of the budget."""
        vectors = jnp.asarray(evidence.pairs.vectors, self.dtype)
        most = min(self.num_params - len(vectors), CHAIN_STEPS)
        key = jax.random.fold_in(jax.random.fold_in(self.key, CHAIN_STREAM), self.tries)
        known = (evidence.pairs.values, evidence.extent, evidence.norm)
        tolerances, form = self.goal.tolerances, self.goal.form
        chain = _begun(vectors, *map(jnp.asarray, known), key, tolerances, goal=form, most=most)
        measured = self.certificate_matvec is not None
        while not bool(chain.done) and chain.length < most and self.left > 2 * measured:
            steps = min(_PIECE, self.left - 2 * measured)
            before = int(chain.length)
            chain = _followed(self.operator, vectors, chain, steps, goal=form)
            self.made += int(chain.length) - before
            self.progress(self.made)
        return chain

    def with_chain(self, evidence: Evidence, chain: Chain) -> Evidence:
        """What is known, once a chain was followed."""
        steps = int(chain.length)
        columns = (chain.alphas, chain.betas, chain.started)
        alphas, betas, started = (np.asarray(column[:steps]) for column in columns)
        evidence = evidence._replace(
            chain=Recurrence(alphas.astype(float), betas.astype(float), started),
            norm=np.fmax(evidence.norm, float(chain.norm)),
        )
        if self.certificate_matvec is not None and np.all(np.isfinite(chain.last)):
            # Where rounding is largest: on what products have made, not on random vectors.
            last = np.asarray(chain.last, float)
            rough = np.asarray(_products(self.operator, chain.last[None])[0], float)
            error = np.linalg.norm(rough - np.asarray(self.certificate_matvec(last), float))
            before = 0.0 if evidence.noise is None else evidence.noise
            evidence = evidence._replace(noise=np.fmax(before, error))
            self.made += 2
        return evidence

    def widened(self, evidence: Evidence) -> Evidence:
        """With what a search in the complement of the vectors finds, the best of both."""
        self.tries += 1
        known = evidence.pairs.vectors
        vectors = jnp.asarray(known, self.dtype)
        deflated = Partial(_deflated, self.operator, vectors)
        space = self.search(deflated, None, 2 * self.fresh)
        found = np.asarray(space.vectors, float)
        found = found - (found @ known.T) @ known
        lengths = np.linalg.norm(found, axis=1)
        found = found[lengths > 0.5] / lengths[lengths > 0.5, None]
        both = jnp.asarray(np.concatenate([known, found]), self.dtype)
        judged = self.judged(both, space, evidence.own)
        extents = np.stack([evidence.extent, judged.extent])
        return judged._replace(
            pairs=_chosen(judged.pairs, self.goal.ends),
            extent=np.array([np.min(extents[:, 0]), np.max(extents[:, 1])]),
            norm=np.fmax(evidence.norm, judged.norm),
            asymmetry=np.fmax(evidence.asymmetry, judged.asymmetry),
        )


def _chosen(pairs: RitzPairs, ends: Ends) -> RitzPairs:
    """The outermost ones of more pairs than are wanted."""
    count = len(pairs.values)
    rows = np.r_[: ends.top, count - ends.bottom : count]
    return pairs._replace(
        values=pairs.values[rows],
        vectors=pairs.vectors[rows],
        residual_gram=pairs.residual_gram[np.ix_(rows, rows)],
    )


def _deflated(operator: Operator, vectors: Float[Array, "count n"]) -> Matvec:
    matvec = operator()

    def outside(vector: Array) -> Array:
        return vector - (vectors @ vector) @ vectors

    return lambda vector: outside(matvec(outside(vector)))


@jax.jit
def _products(operator: Operator, vectors: Float[Array, "count n"]) -> Float[Array, "count n"]:
    return jax.lax.map(operator(), vectors)


@partial(jax.jit, static_argnames=("goal", "most"))
def _begun(
    vectors: Array,
    values: Array,
    extent: Array,
    norm: Array,
    key: PRNGKeyArray,
    tolerances: tuple[Array, Array],
    *,
    goal: Goal,
    most: int,
) -> Chain:
    return begin_chain(vectors, values, extent, norm, goal.having(tolerances), most, key)


@partial(jax.jit, static_argnames="goal")
def _followed(
    operator: Operator, vectors: Array, chain: Chain, steps: Array, *, goal: Goal
) -> Chain:
    return follow_chain(operator(), vectors, chain, goal, steps)
