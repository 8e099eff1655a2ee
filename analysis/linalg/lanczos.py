"""The Lanczos method as one compiled pass, to be mapped over the operators of many checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.linalg.bounds import INDEPENDENT
from dlf_dynamics.analysis.linalg.chain import Goal, Growth, begin_chain, follow_chain
from dlf_dynamics.analysis.linalg.ritz import Matvec, is_lost
from dlf_dynamics.analysis.linalg.vectors import ALLOWANCE, Form, rounding

_DRAWS = INDEPENDENT
"""Random vectors drawn before the pass begins."""

_NEAR = 100
"""Residual bounds below this multiple of the tolerance are checked after every few steps."""

CHAIN_STREAM = 1
"""Folded into the key for the chain, which makes it independent of the pass."""


class Pass(NamedTuple):
    """Result of a pass.

    Attributes:
        vectors: Ritz vectors of the wanted values, orthonormal, one per row.
        products: fresh products of the operator with these.
        alphas: coefficients of the pass, as in `bounds.Recurrence`, like the next two.
        betas: NaN where there was no step.
        started: where a chain began with a random vector.
        extent: smallest and largest Ritz value.
        whole: whether the basis fills the space.
        asymmetry: largest difference of two entries that are equal for a symmetric operator.
        norm: largest ‖A q‖ of a unit vector seen so far.
        num_matvecs: number of products.
        chain_alphas: coefficients of the chain in the complement of the vectors, like the next two;
            empty without a chain.
        chain_betas: NaN where there was no step.
        chain_started: where it began with a random vector.
    """

    vectors: Float[Array, "count n"]
    products: Float[Array, "count n"]
    alphas: Float[Array, " capacity"]
    betas: Float[Array, " capacity"]
    started: Bool[Array, " capacity"]
    extent: Float[Array, " 2"]
    whole: Bool[Array, ""]
    asymmetry: Float[Array, ""]
    norm: Float[Array, ""]
    num_matvecs: Int[Array, ""]
    chain_alphas: Float[Array, " steps"]
    chain_betas: Float[Array, " steps"]
    chain_started: Bool[Array, " steps"]


class _Krylov(NamedTuple):
    """An orthonormal basis of one or more Krylov chains, and the operator in it.

    Attributes:
        basis: rows 0..size are orthonormal (row `size` is the next direction), the others 0.
        matrix: upper triangle of the operator in the basis, from its products.
        outside: norm of the part of each A q outside the span of the rows that were multiplied.
        betas: norm of the remainder of each A q when it was computed.
        started: where a chain begins.
        size: number of rows that were multiplied by the operator.
        asymmetry: largest difference of two entries that should be equal.
        norm: largest ‖A q‖ so far, the scale of the operator.
        draws: random vectors, to begin chains with.
        drawn: number of chains begun.
    """

    basis: Float[Array, "capacity_plus_1 n"]
    matrix: Float[Array, "capacity capacity"]
    outside: Float[Array, " capacity"]
    betas: Float[Array, " capacity"]
    started: Bool[Array, " capacity_plus_1"]
    size: Int[Array, ""]
    asymmetry: Float[Array, ""]
    norm: Float[Array, ""]
    draws: Float[Array, "draws n"]
    drawn: Int[Array, ""]

    @property
    def form(self) -> Form:
        """The form of the vectors."""
        return Form.flat(self.basis.shape[1], self.basis.dtype)

    @property
    def floor(self) -> Float[Array, ""]:
        """Norm of a remainder that is rounding of a product."""
        return rounding(self.basis.shape[1], self.basis.dtype) * self.norm

    def random_direction(self) -> Float[Array, " n"]:
        """The next random unit vector orthogonal to the basis; 0 when that fills the space."""
        # Drawing within the loop would take longer to compile than all the rest. A shifted vector
        # serves as a new one.
        vector = jnp.roll(self.draws[self.drawn % _DRAWS], self.drawn)
        return self.form.unit_outside(vector, self.basis)


class _Look(NamedTuple):
    """What follows from the small matrix.

    Attributes:
        values: the wanted Ritz values.
        coefficients: their vectors in the basis.
        extent: smallest and largest Ritz value.
        excess: residual bounds relative to the tolerance, 0 where they are small enough.
        radius: residual bound of the first value.
    """

    values: Float[Array, " count"]
    coefficients: Float[Array, "capacity count"]
    extent: Float[Array, " 2"]
    excess: Float[Array, " count"]
    radius: Float[Array, ""]


class _Progress(NamedTuple):
    """The loop's state.

    Attributes:
        krylov: the basis.
        look: the last look at the small matrix.
        wait: number of steps before it is worthwhile to look again.
        done: whether to stop.
    """

    krylov: _Krylov
    look: _Look
    wait: Int[Array, ""]
    done: Bool[Array, ""]


def lanczos(
    matvec: Matvec,
    num_params: int,
    goal: Goal,
    *,
    capacity: int,
    chain_length: int,
    key: PRNGKeyArray,
    dtype: Any = float,
) -> Pass:
    """Extreme eigenvalues of a symmetric operator, in one pass that JAX can trace.

    Every new direction is orthogonalised twice against the whole basis; where a Krylov chain is
    exhausted, a random direction begins another. The pass continues until the residuals are small
    enough and, by its own coefficients, no eigenvalue can be further out by more than the rank
    tolerance (`bounds`). With more than one wanted, a chain in the complement of their vectors
    follows, until it bounds the next one.

    Products that are not finite, or not those of a symmetric operator, end it immediately.

    Args:
        matvec: product with the operator.
        num_params: order n of the operator.
        goal: what is wanted.
        capacity: largest number of steps of the pass, all of whose vectors are kept.
        chain_length: largest number of steps of the chain; 0 leaves it out.
        key: PRNG key for the random directions.
        dtype: type of the vectors.
    """
    ends = goal.ends
    sizes = _look_sizes(ends.total, capacity)
    looks = [partial(_look, padded=size, goal=goal) for size in sizes]

    def extend(progress: _Progress) -> _Progress:
        size = progress.krylov.size
        steps = jnp.clip(progress.wait, 1, capacity - size)
        krylov = jax.lax.fori_loop(0, steps, lambda _, k: _expand(matvec, k), progress.krylov)
        look = jax.lax.switch(jnp.searchsorted(jnp.array(sizes), size + steps), looks, krylov)
        return _decide(krylov, look, _bounded(krylov, look, goal))

    krylov = _start(num_params, capacity, key, dtype)
    empty = jnp.zeros(ends.total, float)
    coefficients = jnp.zeros((capacity, ends.total), float)
    nothing = _Look(empty, coefficients, jnp.zeros(2, float), empty + jnp.inf, empty[0])
    start = _Progress(
        krylov, nothing, jnp.int32(min(2 * ends.total + 4, capacity)), jnp.array(False)
    )
    unfinished = lambda progress: (progress.krylov.size < capacity) & ~progress.done  # noqa: E731
    progress = jax.lax.while_loop(unfinished, extend, start)
    return _judged(matvec, progress, goal, chain_length, key)


def _look_sizes(count: int, capacity: int) -> list[int]:
    """Sizes to which the small matrix is padded when it is diagonalised.

    Each has its own eigensolve: one at full capacity would cost as much as several products, and
    one for every size would take long to compile.
    """
    sizes, size = [], 2 * count + 10
    while size < capacity:
        sizes.append(size)
        size += max(8, size // 2)
    return [*sizes, capacity]


def _start(num_params: int, capacity: int, key: PRNGKeyArray, dtype: Any) -> _Krylov:
    draws = jax.random.normal(key, (_DRAWS, num_params), dtype)
    basis = jnp.zeros((capacity + 1, num_params), dtype)
    return _Krylov(
        basis=basis.at[0].set(draws[0] / jnp.linalg.norm(draws[0])),
        matrix=jnp.zeros((capacity, capacity), dtype),
        outside=jnp.zeros(capacity, dtype),
        betas=jnp.full(capacity, jnp.nan, dtype),
        started=jnp.zeros(capacity + 1, bool).at[0].set(True),
        size=jnp.int32(0),
        asymmetry=jnp.zeros((), dtype),
        norm=jnp.zeros((), dtype),
        draws=draws,
        drawn=jnp.int32(1),
    )


def _expand(matvec: Matvec, krylov: _Krylov) -> _Krylov:
    """One Lanczos step: multiplies the next direction and computes the one after it."""
    basis, size = krylov.basis, krylov.size
    product = matvec(basis[size])
    norm = jnp.maximum(krylov.norm, jnp.linalg.norm(product))
    used = jnp.arange(len(basis)) <= size
    rest, overlaps, remaining = krylov.form.continued(product, basis, size, used)
    overlaps = overlaps[:-1]
    exhausted = remaining <= rounding(basis.shape[1], basis.dtype) * norm
    direction = jax.lax.cond(
        exhausted, krylov.random_direction, lambda: rest / jnp.where(exhausted, 1, remaining)
    )
    # The remainder of the row before lies along this one, if both belong to the same chain.
    continued = ~krylov.started[size]
    before = krylov.outside[size - 1]
    outside = krylov.outside.at[size - 1].set(jnp.where(continued, 0, before))
    return krylov._replace(
        basis=basis.at[size + 1].set(direction),
        matrix=krylov.matrix.at[:, size].set(overlaps),
        outside=outside.at[size].set(remaining),
        betas=krylov.betas.at[size].set(remaining),
        started=krylov.started.at[size + 1].set(exhausted),
        size=size + 1,
        asymmetry=jnp.maximum(
            krylov.asymmetry, _asymmetry(overlaps, outside, size, jnp.where(continued, before, 0))
        ),
        norm=norm,
        drawn=krylov.drawn + exhausted,
    )


def _asymmetry(overlaps: Array, outside: Array, size: Array, before: Array) -> Array:
    """Difference of a new column from the row that follows from the earlier products.

    Nothing is known about rows whose own product is partly outside the basis.
    """
    index = jnp.arange(len(overlaps))
    expected = jnp.where(index == size - 1, before, 0)
    known = (index < size) & (outside == 0)
    return jnp.max(jnp.where(known, jnp.abs(overlaps - expected), 0))


def _look(krylov: _Krylov, *, padded: int, goal: Goal) -> _Look:
    """Ritz pairs of the small matrix, computed in the best available precision.

    Rows beyond the basis get a value below all others, so that their pairs come first. The bounds
    from the recurrence decide when to stop, not what is reported.
    """
    ends, precise = goal.ends, jnp.result_type(float)
    upper = jnp.triu(krylov.matrix[:padded, :padded].astype(precise))
    filling = jnp.where(jnp.arange(padded) < krylov.size, 0, -3 * (krylov.norm + 1))
    matrix = upper + jnp.triu(upper, 1).T + jnp.diag(filling.astype(precise))
    ascending, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    first = padded - krylov.size
    radii = krylov.outside[:padded].astype(precise) @ jnp.abs(vectors)
    wanted = ends.indices(first, padded)
    values, radii = ascending[wanted], radii[wanted]
    extent = jnp.stack([ascending[first], ascending[-1]])
    # The fresh residuals should also be below the tolerance.
    allowed = 0.9 * goal.tol * krylov.norm
    return _Look(
        values=values,
        coefficients=jnp.pad(vectors[:, wanted], ((0, len(krylov.outside) - padded), (0, 0))),
        extent=extent,
        excess=jnp.where(radii <= allowed, 0, radii / allowed),
        radius=radii[0],
    )


def _bounded(krylov: _Krylov, look: _Look, goal: Goal) -> Bool[Array, ""]:
    """Whether no eigenvalue can be outside the extent by more than the rank tolerance.

    Also whether the largest one is on a known side of the threshold, or too close to it.
    """
    if not (goal.alone and goal.ranked):
        return jnp.array(True)
    extent, n = look.extent, krylov.basis.shape[1]
    room = goal.room(extent, krylov.norm)
    betas = jnp.maximum(krylov.betas, krylov.floor)
    alphas = jnp.diagonal(krylov.matrix)

    def step(carry: tuple, row: tuple) -> tuple[tuple, None]:
        growth, before = carry
        alpha, beta, started = row
        made = jnp.isfinite(beta)
        growth = growth.stepped(alpha, beta, before, started)
        kept = jax.tree.map(lambda new, old: jnp.where(made, new, old), growth, carry[0])
        return (kept, jnp.where(made, beta, before)), None

    coefficients = (alphas, betas, krylov.started[:-1])
    fine = goal.tightened(krylov.basis.dtype)
    margin = 2 * ALLOWANCE * krylov.floor
    beyond = [extent[1] + room, room - extent[0]]
    points = [*beyond, extent[1] + fine.room(extent, krylov.norm), goal.threshold - margin]
    begin = Growth.at(jnp.stack(jnp.broadcast_arrays(*points)), n, signs=(1, -1, 1, 1))
    (growth, _), _ = jax.lax.scan(step, (begin, jnp.ones((), betas.dtype)), coefficients)
    if not goal.ends.top:
        return growth.reached(goal)
    closed, below = growth.free(goal)[2:]
    closed &= look.radius <= 0.9 * fine.tol * krylov.norm
    above = extent[1] - margin > goal.threshold
    side_known = below | above | closed | ~jnp.isfinite(goal.threshold)
    return growth.reached(goal) & side_known


def _decide(krylov: _Krylov, look: _Look, bounded: Bool[Array, ""]) -> _Progress:
    """Continues or stops; `bounded` says that nothing was missed."""
    hopeless = ~jnp.isfinite(krylov.norm)
    hopeless |= is_lost(krylov.asymmetry, krylov.norm, krylov.basis.dtype)
    full = krylov.size == krylov.basis.shape[1]
    done = hopeless | full | (jnp.all(look.excess == 0) & bounded)
    near = jnp.max(look.excess) < _NEAR
    # In a large basis the eigensolve of a look costs as much as several products.
    wait = jnp.where(near, jnp.maximum(1, krylov.size // 24), jnp.maximum(2, krylov.size // 12))
    return _Progress(krylov, look, wait, done)


def _judged(
    matvec: Matvec, progress: _Progress, goal: Goal, chain_length: int, key: PRNGKeyArray
) -> Pass:
    """The Ritz vectors with fresh products, and the chain in their complement."""
    krylov, look = progress.krylov, progress.look
    basis = krylov.basis
    vectors = look.coefficients.T.astype(basis.dtype) @ basis[:-1]
    products = jax.lax.map(matvec, vectors)
    # In a basis of Ritz vectors, a symmetric operator is the diagonal that it was before.
    changed = jnp.max(jnp.abs(vectors @ products.T - jnp.diag(look.values.astype(basis.dtype))))
    whole = krylov.size == basis.shape[1]
    alphas = betas = jnp.zeros(0, basis.dtype)
    started = jnp.zeros(0, bool)
    if chain_length and goal.ranked:
        key = jax.random.fold_in(key, CHAIN_STREAM)
        known = (vectors, look.values, look.extent, krylov.norm)
        chain = begin_chain(krylov.form, *known, goal, chain_length, key)
        useless = whole | jnp.any(look.excess > 0) | ~progress.done
        chain = chain._replace(done=chain.done | useless)
        chain = follow_chain(krylov.form, matvec, vectors, chain, goal, chain_length)
        alphas, betas, started = chain.alphas, chain.betas, chain.started[:-1]
    return Pass(
        vectors,
        products,
        jnp.diagonal(krylov.matrix),
        jnp.maximum(krylov.betas, krylov.floor),
        krylov.started[:-1],
        look.extent,
        whole,
        jnp.maximum(krylov.asymmetry, changed),
        krylov.norm,
        krylov.size + len(vectors) + jnp.sum(jnp.isfinite(betas)),
        alphas,
        betas,
        started,
    )
