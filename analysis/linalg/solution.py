"""Eigenvalues of an operator of any order: a search, fresh products, a chain in the complement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dlf_dynamics.analysis.linalg.bounds import Recurrence
from dlf_dynamics.analysis.linalg.certificate import Evidence
from dlf_dynamics.analysis.linalg.chain import Chain, Goal, begin_chain, follow_chain
from dlf_dynamics.analysis.linalg.krylov import Space, combined, search
from dlf_dynamics.analysis.linalg.lanczos import CHAIN_STREAM
from dlf_dynamics.analysis.linalg.ritz import Algebra, Ends, Matvec, RitzPairs, rayleigh_ritz
from dlf_dynamics.analysis.linalg.vectors import Form, Operator, Rows, Vector

CHAIN_STEPS = 400
"""Largest number of steps of a chain."""

_PIECE = 8
"""Steps of a chain in one call, after which progress is reported."""

_CertificateMatvec = Callable[[Float[np.ndarray, " n"]], Any]
"""Product in float64 with a float64 vector."""


def solve(
    operator: Operator,
    form: Form,
    goal: Goal,
    *,
    max_matvecs: int,
    key: PRNGKeyArray,
    spent: int = 0,
    initial_vectors: Rows | None = None,
    certificate_matvec: _CertificateMatvec | None = None,
    tracked: bool = False,
    progress: Callable[[int], None] = lambda matvecs: None,
) -> Evidence:
    """Extreme eigenvalues of a symmetric operator, in bounded memory.

    Where the chain in the complement of the Ritz vectors meets something further out, a search in
    that complement finds it, and the best of both are kept.

    Args:
        operator: makes the matvec.
        form: shape, type and location of the vectors.
        goal: what is wanted.
        max_matvecs: largest number of products, including the fresh ones and those of the chain.
        key: PRNG key for the random vectors.
        spent: number of products made before.
        initial_vectors: eigenvectors of a nearby operator, to start from.
        certificate_matvec: see `top_eigenpairs`.
        tracked: whether a warm start leaves the chain out.
        progress: called with the number of products so far.
    """
    report = lambda made: progress(spent + made)  # noqa: E731
    work = _Work(operator, form, goal, max_matvecs - spent, key, certificate_matvec, report)
    start = None if initial_vectors is None else _sum(form.received(initial_vectors), form=form)
    space = work.search(operator, start, work.fresh)
    own = space.recurrence if start is None else None
    evidence = work.judged(space.vectors, space, own, space.values)
    bounded = goal.alone and start is None
    chained = space.done and not space.whole and goal.ranked
    while chained and not (bounded or tracked) and work.left > 0:
        chain = work.chain(evidence)
        evidence = work.with_chain(evidence, chain)
        if not bool(chain.growth.missed(goal)) or work.left <= 3 * work.fresh + 4:
            break
        evidence = work.widened(evidence)
    pairs = evidence.pairs
    if form.is_flat:
        pairs = pairs._replace(vectors=form.on_host(pairs.vectors))
    return evidence._replace(pairs=pairs, num_matvecs=np.asarray(spent + work.made))


class _Work:
    """An operator, and the products that were spent on it."""

    def __init__(
        self,
        operator: Operator,
        form: Form,
        goal: Goal,
        budget: int,
        key: PRNGKeyArray,
        certificate_matvec: _CertificateMatvec | None,
        progress: Callable[[int], None],
    ) -> None:
        self.operator, self.form, self.goal, self.budget = operator, form, goal, budget
        self.key, self.certificate_matvec, self.progress = key, certificate_matvec, progress
        self.made = self.tries = 0

    @property
    def left(self) -> int:
        """Products that may still be made."""
        return self.budget - self.made

    @property
    def fresh(self) -> int:
        """Products needed to judge the vectors."""
        return self.goal.ends.total * (1 if self.certificate_matvec is None else 2)

    def search(self, operator: Operator, start: Vector | None, reserved: int) -> Space:
        """Ritz vectors of the operator, or of a part of it, leaving so many products."""
        space = search(
            operator,
            self.form,
            self.goal,
            max_matvecs=self.left - reserved,
            key=jax.random.fold_in(self.key, 2 * self.tries),
            start=start,
            progress=lambda made, before=self.made: self.progress(before + made),
        )
        self.made += space.num_matvecs
        return space

    def judged(
        self,
        vectors: Rows,
        space: Space,
        own: Recurrence | None,
        values: Float[np.ndarray, " count"] | None = None,
    ) -> Evidence:
        """Evidence from fresh products of the vectors, compared with their Ritz values if known."""
        form, count = self.form, len(jax.tree.leaves(vectors)[0])
        rough, coupling = _products(self.operator, vectors, form=form)
        if self.certificate_matvec is None:
            self.made += count
            noise, fresh = None, form.dtype
            pairs = rayleigh_ritz(vectors, rough, _algebra(form))
        else:
            self.made += 2 * count
            precise, rough = (form.on_host(rows).astype(float) for rows in (vectors, rough))
            products = np.stack([np.asarray(self.certificate_matvec(row)) for row in precise])
            noise = np.asarray(np.max(np.linalg.norm(rough - products, axis=-1)))
            pairs, fresh = rayleigh_ritz(precise, products), float
        asymmetry = space.asymmetry
        if values is not None and len(values) == count:
            # In a basis of Ritz vectors, a symmetric operator is the diagonal that it was before.
            changed = np.abs(np.asarray(coupling, float) - np.diag(values))
            asymmetry = np.fmax(asymmetry, np.max(changed))
        elif values is not None:  # products ran out before there were as many Ritz values
            pairs = pairs._replace(values=pairs.values * np.nan)
        return Evidence(
            pairs,
            form.num_params,
            own,
            None,
            np.array(space.extent),
            np.asarray(space.norm),
            np.asarray(asymmetry),
            np.asarray(space.whole),
            np.asarray(self.made),
            noise,
            np.dtype(form.dtype),
            np.dtype(fresh),
        )

    def chain(self, evidence: Evidence) -> Chain:
        """A random chain outside the Ritz vectors, up to the bound or the end of the budget."""
        form = self.form
        vectors = form.received(evidence.pairs.vectors)
        max_steps = min(form.num_params - self.goal.ends.total, CHAIN_STEPS)
        key = jax.random.fold_in(jax.random.fold_in(self.key, CHAIN_STREAM), self.tries)
        known = map(jnp.asarray, (evidence.pairs.values, evidence.extent, evidence.norm))
        plan: dict[str, Any] = {"form": form, "goal": self.goal.form}
        chain = _begun(vectors, *known, key, self.goal.tolerances, **plan, max_steps=max_steps)
        measured = self.certificate_matvec is not None
        while not bool(chain.done) and chain.length < max_steps and self.left > 2 * measured:
            steps = min(_PIECE, self.left - 2 * measured)
            before = int(chain.length)
            chain = _followed(self.operator, vectors, chain, steps, **plan)
            self.made += int(chain.length) - before
            self.progress(self.made)
        return chain

    def with_chain(self, evidence: Evidence, chain: Chain) -> Evidence:
        """The evidence with a chain added."""
        steps = int(chain.length)
        columns = (chain.alphas, chain.betas, chain.started)
        alphas, betas, started = (np.asarray(column[:steps]) for column in columns)
        evidence = evidence._replace(
            chain=Recurrence(alphas.astype(float), betas.astype(float), started),
            norm=np.fmax(evidence.norm, float(chain.norm)),
        )
        if self.certificate_matvec is not None and np.isfinite(float(chain.norm)):
            # Rounding is largest on vectors that products have made, not on random ones.
            last = chain.last[None]
            pair = last, _products(self.operator, last, form=self.form)[0]
            last, rough = (self.form.on_host(rows)[0].astype(float) for rows in pair)
            error = np.linalg.norm(rough - np.asarray(self.certificate_matvec(last), float))
            before = 0.0 if evidence.noise is None else evidence.noise
            evidence = evidence._replace(noise=np.asarray(np.fmax(before, error)))
            self.made += 2
        return evidence

    def widened(self, evidence: Evidence) -> Evidence:
        """The evidence with the results of a search in the complement of the vectors added."""
        self.tries += 1
        form = self.form
        known = form.received(evidence.pairs.vectors)
        space = self.search(_Deflated(self.operator, known, form), None, 2 * self.fresh)
        both, lengths = _side_by_side(known, space.vectors, form=form)
        known_count = len(evidence.pairs.values)
        lengths = np.concatenate([np.ones(known_count), np.asarray(lengths)])
        rows = np.diag(1 / np.fmax(lengths, 0.5))[lengths > 0.5]
        judged = self.judged(
            combined(both, jnp.asarray(rows, form.dtype), form=form), space, evidence.own
        )
        extents = np.stack([evidence.extent, judged.extent])
        return judged._replace(
            pairs=_chosen(judged.pairs, self.goal.ends),
            extent=np.array([np.min(extents[:, 0]), np.max(extents[:, 1])]),
            norm=np.fmax(evidence.norm, judged.norm),
            asymmetry=np.fmax(evidence.asymmetry, judged.asymmetry),
        )


def _chosen(pairs: RitzPairs, ends: Ends) -> RitzPairs:
    """The outermost of more pairs than are wanted."""
    count = len(pairs.values)
    rows = np.r_[: ends.top, count - ends.bottom : count]
    return pairs._replace(
        values=pairs.values[rows],
        vectors=jax.tree.map(lambda leaf: leaf[rows], pairs.vectors),
        residual_gram=pairs.residual_gram[np.ix_(rows, rows)],
    )


@partial(
    jax.tree_util.register_dataclass, data_fields=["operator", "vectors"], meta_fields=["form"]
)
@dataclass(frozen=True)
class _Deflated:
    """An operator in the complement of some vectors."""

    operator: Operator
    vectors: Rows
    form: Form

    def __call__(self) -> Matvec:
        matvec, outside = self.form.matvec(self.operator), self.form.outside
        return lambda vector: outside(matvec(outside(vector, self.vectors)[0]), self.vectors)[0]


def _algebra(form: Form) -> Algebra:
    """Operations on rows on the devices."""

    def inner(some: Rows, others: Rows) -> np.ndarray:
        return np.asarray(_inner(some, others, form=form), float)

    def combinations(coefficients: np.ndarray, rows: Rows) -> Rows:
        return combined(rows, jnp.asarray(coefficients, form.dtype), form=form)

    def residuals(products: Rows, values: np.ndarray, vectors: Rows) -> Rows:
        return _residuals(products, jnp.asarray(values, form.dtype), vectors, form=form)

    return Algebra(inner, combinations, residuals, lambda rows: np.asarray(_finite(rows)))


@partial(jax.jit, static_argnames="form")
def _inner(some: Rows, others: Rows, *, form: Form) -> Float[Array, "count others"]:
    return form.inner(some, others)


@partial(jax.jit, static_argnames="form", donate_argnames="products")
def _residuals(
    products: Rows, values: Float[Array, " count"], vectors: Rows, *, form: Form
) -> Rows:
    def of_leaf(product: Array, vector: Array) -> Array:
        return product - values.reshape(-1, *[1] * (vector.ndim - 1)) * vector

    return form.placed(jax.tree.map(of_leaf, products, vectors))


@jax.jit
def _finite(rows: Rows) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(rows)]))


@partial(jax.jit, static_argnames="form")
def _sum(rows: Rows, *, form: Form) -> Vector:
    return form.placed(jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), rows))


@partial(jax.jit, static_argnames="form")
def _side_by_side(known: Rows, new: Rows, *, form: Form) -> tuple[Rows, Float[Array, " new"]]:
    """The rows of both, the new ones without their part in the others, and their lengths."""
    inside = form.inner(new, known)
    new = jax.tree.map(jnp.subtract, new, form.combined(inside, known))
    lengths = jnp.sqrt(jnp.diagonal(form.inner(new, new)))
    return jax.tree.map(lambda *pair: jnp.concatenate(pair), known, new), lengths


@partial(jax.jit, static_argnames="form")
def _products(
    operator: Operator, vectors: Rows, *, form: Form
) -> tuple[Rows, Float[Array, "count count"]]:
    """Products with each row, and their inner products with the rows."""
    products = form.placed(jax.lax.map(form.matvec(operator), vectors))
    return products, form.inner(vectors, products)


@partial(jax.jit, static_argnames=("form", "goal", "max_steps"))
def _begun(
    vectors: Rows,
    values: Array,
    extent: Array,
    norm: Array,
    key: PRNGKeyArray,
    tolerances: tuple[Array, Array, Array],
    *,
    form: Form,
    goal: Goal,
    max_steps: int,
) -> Chain:
    return begin_chain(form, vectors, values, extent, norm, goal.having(tolerances), max_steps, key)


@partial(jax.jit, static_argnames=("form", "goal"))
def _followed(
    operator: Operator, vectors: Rows, chain: Chain, steps: Array, *, form: Form, goal: Goal
) -> Chain:
    return follow_chain(form, form.matvec(operator), vectors, chain, goal, steps)
