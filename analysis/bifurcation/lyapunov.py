"""Lyapunov exponents of an orbit, with errors and the overlap of the tangent vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dlf_dynamics.analysis.bifurcation.maps import Map, Parameter, Vector
from dlf_dynamics.analysis.bifurcation.orbits import escape_bound, one_by_one
from dlf_dynamics.analysis.devices import in_groups, map_over_devices
from dlf_dynamics.reprs import brief

_BLOCKS = 20
"""Number of parts of an orbit whose averages give the standard errors."""


@dataclass(frozen=True)
class LyapunovSpectrum:
    """The largest Lyapunov exponents of an orbit, in units of 1 per step.

    They have the order of the tangent vectors, eventually largest first; after few steps close ones
    may be out of order. All are NaN where the orbit diverged. A derivative that vanishes gives an
    exponent of -inf.

    A positive exponent alone does not mean that the oscillation is chaotic: slow directions of
    negative curvature also grow. `overlap` shows which directions grow.

    Attributes:
        exponents: averages over `steps` steps.
        errors: standard errors from the averages over blocks, valid where the blocks are longer
            than the memory of the orbit.
        converged: whether the error is at most `tol`, and the averages over the two halves differ
            by at most six times it, which is three standard errors of their difference, or `tol`.
        running: averages up to the end of each block; the last row is `exponents`.
        overlap: mean of ‖B q‖² for the orthonormal tangent vectors q and the given basis B; NaN
            without one. The first q grows fastest; each other depends on those before.
        diverged: whether the orbit diverged.
        steps: number of steps in the averages.
        state: state at the end of the orbit.
        message: outcome, in words.
    """

    exponents: Float[np.ndarray, " k"]
    errors: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    running: Float[np.ndarray, "blocks k"]
    overlap: Float[np.ndarray, " k"]
    diverged: bool
    steps: int
    state: Float[np.ndarray, " n"]
    message: str
    __repr__ = brief


def lyapunov_exponents(
    map_: Map,
    state: Vector,
    parameter: Parameter,
    k: int,
    steps: int,
    *,
    transient: int,
    key: PRNGKeyArray,
    basis: Float[Array, "m n"] | None = None,
    every: int = 1,
    tol: float = 1e-3,
    bound: float | None = None,
) -> LyapunovSpectrum:
    """The k largest Lyapunov exponents, by tangent vectors and QR (Benettin et al., 1980).

    Derivatives are exact, by JAX. Tangent vectors start at random and are aligned for the length of
    a block before averages begin.

    Args:
        map_: x ↦ step(x, p).
        state: start of the orbit.
        parameter: p.
        k: number of exponents.
        steps: number of steps to average over, rounded up to 20 blocks of equal length.
        transient: number of steps before tangent vectors are followed.
        key: PRNG key for the tangent vectors.
        basis: orthonormal rows that span a subspace, such as the top eigenvectors of the Hessian.
        every: steps between two orthonormalisations; stretching in between must not exceed the
            precision of the numbers.
        tol: largest standard error of a converged exponent.
        bound: see `orbit_diagram`.

    Raises:
        ValueError: when k is not between 1 and n, `steps` or `every` is less than 1, the transient
            is negative, the start is not finite, or the rows of the basis are not orthonormal.

    >>> henon = Map(lambda x, a: jnp.array([1 - a * x[0] ** 2 + x[1], 0.3 * x[0]]))
    >>> spectrum = lyapunov_exponents(
    ...     henon, jnp.zeros(2), 1.4, 2, 20_000, transient=100, key=jax.random.key(0), tol=1e-2
    ... )
    >>> spectrum.exponents.round(1).tolist(), spectrum.converged.tolist()
    ([0.4, -1.6], [True, True])
    >>> bool(np.isclose(spectrum.exponents.sum(), np.log(0.3)))
    True
    """
    (spectrum,) = lyapunov_spectra(
        map_,
        state,
        np.array([parameter], float),
        k,
        steps,
        transient=transient,
        key=key,
        basis=basis,
        every=every,
        tol=tol,
        bound=bound,
    )
    return spectrum


def lyapunov_spectra(
    map_: Map,
    state: Vector,
    parameters: Float[np.ndarray, " values"],
    k: int,
    steps: int,
    *,
    transient: int,
    key: PRNGKeyArray,
    basis: Float[Array, "m n"] | None,
    every: int = 1,
    tol: float = 1e-3,
    bound: float | None = None,
) -> list[LyapunovSpectrum]:
    """Lyapunov exponents at several parameters, from one start, distributed over the devices."""
    state = jnp.asarray(state)
    _check(len(state), k, steps, transient, every, basis)
    bound = escape_bound(state) if bound is None else bound
    length = -(-steps // (_BLOCKS * every))
    space = jnp.zeros((0, len(state)), state.dtype) if basis is None else jnp.asarray(basis)
    directions = jnp.linalg.qr(jax.random.normal(key, (len(state), k), state.dtype))[0].T
    start = _Orbit(state, directions, jnp.array(True))
    spectra = []
    for some, count in in_groups(list(parameters.astype(state.dtype))):
        pair = _follow(map_, start, np.array(some), space, transient, length, bound, every=every)
        for index in range(count):
            orbit, blocks = jax.tree.map(lambda leaf, index=index: np.asarray(leaf)[index], pair)
            growth, overlap = blocks.growth / (length * every), blocks.overlap / length
            overlap = overlap if basis is not None else np.full_like(overlap, np.nan)
            means = _Block(growth, overlap)
            spectra.append(_summarise(orbit, means, _BLOCKS * length * every, tol))
    return spectra


def _check(
    n: int, k: int, steps: int, transient: int, every: int, basis: Float[Array, "m n"] | None
) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; expected 1 to {n}, the size of the state")
    if steps < 1 or every < 1 or transient < 0:
        raise ValueError(
            f"steps is {steps}, every {every} and transient {transient}; "
            "expected at least 1, 1 and 0"
        )
    if basis is None:
        return
    vectors = np.asarray(basis, float)
    if vectors.ndim != 2 or vectors.shape[1] != n:
        raise ValueError(f"the basis has shape {vectors.shape}; expected rows of length {n}")
    if not np.max(np.abs(vectors @ vectors.T - np.eye(len(vectors))), initial=0) <= 1e-3:
        raise ValueError("the rows of the basis are not orthonormal")


class _Orbit(NamedTuple):
    state: Vector
    directions: Float[Array, "k n"]
    alive: Bool[Array, ""]


class _Block(NamedTuple):
    """Sums over a block."""

    growth: Float[Array, "*blocks k"]
    overlap: Float[Array, "*blocks k"]


@partial(jax.jit, static_argnames="every")
def _follow(
    map_: Map,
    start: _Orbit,
    parameters: Float[Array, " devices"],
    space: Float[Array, "m n"],
    transient: Array | int,
    length: Array | int,
    bound: Array | float,
    *,
    every: int,
) -> tuple[_Orbit, _Block]:
    """An orbit on each device, with its tangent vectors."""

    def follow(parameter: Array) -> tuple[_Orbit, _Block]:
        return _followed(map_, start, parameter, space, transient, length, bound, every)

    return map_over_devices(follow, parameters)


def _followed(
    map_: Map,
    start: _Orbit,
    parameter: Array,
    space: Float[Array, "m n"],
    transient: Array | int,
    length: Array | int,
    bound: Array | float,
    every: int,
) -> tuple[_Orbit, _Block]:
    """The orbit and its tangent vectors, without the first block, in which they align."""
    each = jax.lax.map if one_by_one(start.state) else _as_batch

    def advance(orbit: _Orbit) -> _Orbit:
        state, push = jax.linearize(lambda x: map_(x, parameter), orbit.state)
        alive = orbit.alive & jnp.all(jnp.abs(state) <= bound)
        return _Orbit(state, each(push, orbit.directions), alive)

    def stretch(_: Array, carry: tuple[_Orbit, _Block]) -> tuple[_Orbit, _Block]:
        orbit, block = carry
        orbit = jax.lax.fori_loop(0, every, lambda _, orbit: advance(orbit), orbit)
        turned, triangle = jnp.linalg.qr(orbit.directions.T)
        growth = block.growth + jnp.log(jnp.abs(jnp.diagonal(triangle)))
        overlap = block.overlap + jnp.sum((space @ turned) ** 2, axis=0)
        return orbit._replace(directions=turned.T), _Block(growth, overlap)

    def follow_block(orbit: _Orbit, _: None) -> tuple[_Orbit, _Block]:
        zeros = jnp.zeros(len(orbit.directions), jnp.result_type(float))
        return jax.lax.fori_loop(0, length, stretch, (orbit, _Block(zeros, zeros)))

    def settle(_: Array, orbit: _Orbit) -> _Orbit:
        state = map_(orbit.state, parameter)
        return orbit._replace(state=state, alive=orbit.alive & jnp.all(jnp.abs(state) <= bound))

    orbit = jax.lax.fori_loop(0, transient, settle, start)
    orbit, blocks = jax.lax.scan(follow_block, orbit, length=_BLOCKS + 1)
    return orbit, jax.tree.map(lambda leaf: leaf[1:], blocks)


def _as_batch(function: Callable[[Array], Array], vectors: Array) -> Array:
    return jax.vmap(function)(vectors)


def _summarise(orbit: _Orbit, blocks: _Block, steps: int, tol: float) -> LyapunovSpectrum:
    """Averages, their errors and a verdict."""
    growth, overlap = (np.where(orbit.alive, leaf, np.nan) for leaf in blocks)
    with np.errstate(invalid="ignore"):
        running = np.cumsum(growth, axis=0) / np.arange(1, _BLOCKS + 1)[:, None]
        errors = np.std(growth, axis=0, ddof=1) / _BLOCKS**0.5
        halves = np.mean(growth[: _BLOCKS // 2], axis=0) - np.mean(growth[_BLOCKS // 2 :], axis=0)
        converged = (errors <= tol) & (np.abs(halves) <= np.maximum(6 * errors, tol))
    message = f"{np.sum(converged)} of {len(converged)} converged after {steps} steps"
    if not orbit.alive:
        message = "the orbit diverged"
    elif np.any(~np.isfinite(growth)):
        message += "; a derivative vanishes or is not finite"
    elif not np.all(converged):
        message += "; allow more steps, a longer transient or a larger tol"
    return LyapunovSpectrum(
        exponents=running[-1],
        errors=errors,
        converged=converged,
        running=running,
        overlap=np.mean(overlap, axis=0),
        diverged=not orbit.alive,
        steps=steps,
        state=np.asarray(orbit.state),
        message=message,
    )
