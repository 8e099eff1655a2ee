"""Branches of a frozen-loss diagram: the centre and the orbit of period 2, with its multipliers.

The loss of a training run mostly has no minimum to continue from, so these are not branches of
exact cycles. At each parameter value the training map is iterated until the oscillation has
settled; the centre then is a mean of the last iterates in which the oscillation cancels.

The orbit of period 2 may be unstable, so that the iterates leave it: two steps f² of the map are
replaced by x ↦ (x + f²(x))/2, which has the same orbits and turns their multipliers μ into
(1 + μ)/2. From there the rod equation gives the orbit about the centre that is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Complex, Float, Int

from dlf_dynamics.analysis.bifurcation.cycles import MARGIN
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.multipliers import NEUTRAL, multipliers_of
from dlf_dynamics.analysis.bifurcation.rod import Rod, rod_amplitude
from dlf_dynamics.analysis.devices import in_groups, map_over_devices
from dlf_dynamics.analysis.linalg.arnoldi import KrylovSpace, random_start
from dlf_dynamics.analysis.spectra.events import OSCILLATING_COSINE
from dlf_dynamics.problem import Problem
from dlf_dynamics.reprs import brief

Stability = Literal["", "stable", "none found", "unstable", "unknown"]

_AT_REST = 1e-6
"""Oscillations smaller than this fraction of the parameters' norm, at the start or at the centre,
count as none."""

_NEARLY = 1e-3
"""Residual of the rod equation up to which a solution is drawn: where Newton's method ends at a
kink, the two states are exchanged up to this fraction of their distance."""

_ALONG = 0.5
"""Least overlap of an orbit with the direction of projection for it to be drawn."""

BEYOND = 1e-3
"""Distance from the unit circle beyond which a Ritz value counts as outside."""

_DENSE = 100
"""Order up to which all multipliers are computed."""

PRODUCTS = 40
"""Products of Arnoldi's method, where not all multipliers are computed."""

LOOKED_AT = 20
"""Updates whose directions are compared with the updates before."""

_DAMPED = 30
"""Steps of the averaged map."""

_WEIGHTS = (1, 6, 15, 20, 15, 6, 1)
"""Binomial weights of successive iterates: period 2 cancels in the mean and period 4 nearly does,
and the drift cancels in the alternating sum."""


class Branches(NamedTuple):
    """The two branches at some parameter values; NaN where they are not known.

    With momentum E is the learning rate of gradient descent with the same orbits of period 2.

    Attributes:
        values: values of the parameter.
        centre: 1 - Eλ for the largest eigenvalue λ at the centre: below -1 the centre is beyond its
            flip.
        opposed: fraction of the last updates that point against the one before, as where a run
            oscillates: 1 on an orbit of period 2 or 4, less in irregular motion, 0 where nothing
            oscillates by more than `_AT_REST`.
        amplitude: amplitude of the orbit of period 2 along the top eigenvector of the diagram; NaN
            where nothing oscillates, no orbit was found, or it lies across this direction.
        residual: relative residual of the rod equation.
        multiplier: multiplier of largest modulus of two steps on the orbit, among those that were
            found and are not neutral.
        multiplier_residual: ‖Jx - μx‖ for its eigenvector x of unit length, from fresh products;
            0 where all multipliers were computed.
        neutral: multipliers within `NEUTRAL` of +1; -1 where they were not counted.
        stability: `stable` (all multipliers are inside the unit circle, none is neutral), `none
            found` (none outside but for neutral ones; from Arnoldi's method, which may miss some),
            `unstable` (one is outside, and not neutral), `unknown`, or empty without an orbit.
    """

    values: Float[np.ndarray, " values"]
    centre: Float[np.ndarray, " values"]
    opposed: Float[np.ndarray, " values"]
    amplitude: Float[np.ndarray, " values"]
    residual: Float[np.ndarray, " values"]
    multiplier: Complex[np.ndarray, " values"]
    multiplier_residual: Float[np.ndarray, " values"]
    neutral: Int[np.ndarray, " values"]
    stability: np.ndarray
    __repr__ = brief


class Frozen(NamedTuple):
    """Training at one value of the parameter.

    Attributes:
        value: value of the parameter.
        rate: learning rate E of gradient descent with the same orbits of period 2.
        step: step whose class weights the loss has.
    """

    value: float
    rate: float
    step: int


Sharpness = Callable[
    [Float[np.ndarray, "values params"], list[Frozen]], Float[np.ndarray, " values"]
]
"""Largest Hessian eigenvalue at each row of parameters, of the loss of its `Frozen`; NaN where the
parameters are not finite, or it did not converge."""


class Multipliers(NamedTuple):
    """Multipliers of an orbit of period 2; see `Branches`."""

    multiplier: complex
    multiplier_residual: float
    neutral: int
    stability: Stability


def follow_branches(
    map_: Map,
    problem: Problem,
    start: Float[Array, " n"],
    direction: Float[Array, " params"],
    frozen: list[Frozen],
    settle: int,
    sharpness: Sharpness,
    *,
    smooth: bool = True,
) -> Branches:
    """Both branches of training at each value, each from the same start.

    Args:
        map_: the training map.
        problem: problem whose loss is frozen.
        start: parameters, followed by the velocity where there is one.
        direction: unit vector on which amplitudes are projected.
        frozen: values of the parameter, with the learning rate and step that they stand for.
        settle: updates before the oscillation counts as settled.
        sharpness: function that gives the largest Hessian eigenvalue at the centres.
        smooth: whether the loss has no kinks. With kinks multipliers say nothing about a finite
            neighbourhood, and the stability is `unknown`.
    """
    entries, centres = list[_Row](), []
    after = _settled(map_, start, frozen, settle, len(direction))
    for at, settled in zip(frozen, after, strict=True):
        centre, half = _averages(settled.states[:, : len(direction)], _WEIGHTS)
        entries.append(_at(map_, problem, start, direction, at, settled, (centre, half), smooth))
        centres.append(centre)
    columns = dict(zip(_Row._fields, map(np.array, zip(*entries, strict=True)), strict=True))
    rates = np.array([at.rate for at in frozen])
    columns["centre"] = 1 - rates * sharpness(np.stack(centres), frozen)
    columns["stability"] = columns["stability"].astype("S")
    return Branches(np.array([at.value for at in frozen]), **columns)


class _Row(NamedTuple):
    """One entry of each column of `Branches`, except values and centre."""

    opposed: float = float("nan")
    amplitude: float = float("nan")
    residual: float = float("nan")
    multiplier: complex = complex("nan")
    multiplier_residual: float = float("nan")
    neutral: int = -1
    stability: Stability = ""


def _at(
    map_: Map,
    problem: Problem,
    start: Array,
    direction: Array,
    at: Frozen,
    settled: _Settled,
    mean: tuple[np.ndarray, np.ndarray],
    smooth: bool,
) -> _Row:
    num_params = len(direction)
    cosines, states, damped = settled
    if not np.all(np.isfinite(states)):
        return _Row()
    centre, half = mean
    size = max(np.linalg.norm(centre), float(jnp.linalg.norm(start[:num_params])))
    visible = bool(np.linalg.norm(half) > _AT_REST * size)
    opposed = float(np.mean(cosines < OSCILLATING_COSINE)) if visible else 0.0
    row = _Row(opposed)
    if not opposed:
        return row
    means = _averages(damped[:, :num_params], (1, 2, 1)), mean
    orbit = _orbit(problem, means, at, float(_AT_REST * size))
    if orbit is None:
        return row
    centre, rod = orbit
    along = abs(float(np.asarray(direction) @ rod.difference))
    if along < _ALONG * rod.amplitude:
        return row
    row = row._replace(amplitude=along, residual=rod.residual, stability="unknown")
    if not smooth:
        return row
    # Updates are linear in the velocity, so that the Jacobian does not depend on it.
    ends = [states[-1].copy(), states[-1].copy()]
    for end, sign in zip(ends, (1, -1), strict=True):
        end[:num_params] = centre + sign * rod.difference
    twice = Partial(_two_steps, map_, *map(jnp.asarray, ends), jnp.asarray(at.value))
    return row._replace(**_multipliers(twice, states[0].dtype, len(start))._asdict())


class _Settled(NamedTuple):
    """Iterates at one value of the parameter, once the oscillation has settled.

    Attributes:
        cosines: cosines between successive updates from there on.
        states: iterates after these updates.
        damped: three iterates after steps of the averaged map.
    """

    cosines: Float[np.ndarray, " cosines"]
    states: Float[np.ndarray, "iterates n"]
    damped: Float[np.ndarray, "3 n"]


def _settled(
    map_: Map, start: Array, frozen: list[Frozen], settle: int, num_params: int
) -> Iterator[_Settled]:
    """The settled iterates at each value, computed on all devices."""
    for some, count in in_groups(frozen):
        values = np.array([at.value for at in some], start.dtype)
        leaves = jax.device_get(_settle(map_, start, values, settle, num_params))
        for index in range(count):
            yield _Settled(*(leaf[index] for leaf in leaves))


@partial(jax.jit, static_argnames="num_params")
def _settle(
    map_: Map, start: Array, values: Float[Array, " devices"], settle: int, num_params: int
) -> tuple[Array, Array, Array]:
    """The arrays of `_Settled`, for one value of the parameter on each device."""

    def at_value(value: Array) -> tuple[Array, Array, Array]:
        def move(carry: tuple[Array, Array], _: Any) -> tuple[tuple[Array, Array], Array]:
            state, before = carry
            following = map_(state, value)
            update = (following - state)[:num_params]
            lengths = jnp.linalg.norm(update) * jnp.linalg.norm(before)
            return (following, update), jnp.vdot(update, before) / lengths

        def advance(state: Array, _: None) -> tuple[Array, Array]:
            return map_(state, value), state

        def damp(_: Array, state: Array) -> Array:
            return (state + map_.iterate(state, value, 2)) / 2

        carry = start, jnp.zeros_like(start[:num_params])
        carry = jax.lax.fori_loop(0, settle + 1, lambda _, carry: move(carry, None)[0], carry)
        (state, _), cosines = jax.lax.scan(move, carry, length=LOOKED_AT)
        last, states = jax.lax.scan(advance, state, length=len(_WEIGHTS))
        damped = jax.lax.fori_loop(0, _DAMPED, damp, last)
        return cosines, states, jax.lax.scan(advance, damped, length=3)[1]

    return map_over_devices(at_value, values)


def _averages(iterates: np.ndarray, weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half-difference of the last iterates."""
    part, share = iterates[-len(weights) :], np.array(weights) / sum(weights)
    share = share.astype(iterates.dtype)
    return share @ part, (share * (-1.0) ** np.arange(len(share))).astype(share.dtype) @ part


def _orbit(
    problem: Problem, means: Sequence[tuple[np.ndarray, np.ndarray]], at: Frozen, least: float
) -> tuple[np.ndarray, Rod] | None:
    """The centre and the orbit of period 2 about it, from the first mean that leads to one."""
    for centre, half in means:
        size = np.linalg.norm(half)
        if not least < size < np.inf:
            continue
        start = jnp.asarray(half)
        rod = rod_amplitude(problem, jnp.asarray(centre), at.rate, start, step=at.step)
        if rod.converged or (rod.residual <= _NEARLY and rod.error <= _NEARLY**0.5):
            return centre, rod
    return None


@jax.jit
def _two_steps(map_: Map, first: Array, second: Array, value: Array, vector: Array) -> Array:
    """Product of a vector with the Jacobians of the map at these two states in turn."""
    for state in (first, second):
        vector = jax.jvp(lambda x: map_(x, value), (state,), (vector,))[1]
    return vector


@jax.jit
def _matrix(product: Partial, identity: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return jax.vmap(product)(identity).T


def _multipliers(product: Partial, dtype: np.dtype, size: int) -> Multipliers:
    """Eigenvalues of a matrix by its products: all of them, or those that Arnoldi's method finds.

    The product of the two Jacobians is not symmetric; its eigenvalues are no products of the two
    Rayleigh quotients.
    """
    eps = float(jnp.finfo(dtype).eps)
    if size <= _DENSE:
        matrix = np.asarray(_matrix(product, jnp.eye(size, dtype=dtype)), float)
        return _told(multipliers_of(matrix), np.zeros(size), max(MARGIN, eps**0.5), True)
    inner = lambda vector: np.asarray(product(jnp.asarray(vector, dtype)), float)  # noqa: E731
    # Neutral multipliers are clustered, so that Arnoldi finds those outside the cluster first.
    space = KrylovSpace(inner, random_start(size), PRODUCTS, 10 * eps)
    while not space.full:
        space.extend()
    if not space.finite:
        return Multipliers(complex("nan"), float("nan"), -1, "unknown")
    values, residuals, _, coefficients = space.ritz()
    # An unconverged Ritz value may be anywhere; one outside the unit circle decides nothing.
    residuals = np.where(residuals <= eps**0.4, residuals, np.inf)
    verdict = _told(values, residuals, BEYOND, False)
    if not np.isfinite(verdict.multiplier_residual):
        return verdict
    vector = coefficients[int(np.argmin(np.abs(values - verdict.multiplier)))] @ space.basis
    image = inner(np.real(vector)) + 1j * inner(np.imag(vector))
    fresh = float(np.linalg.norm(image - verdict.multiplier * vector))
    stability = verdict.stability if fresh <= 10 * eps**0.4 else "unknown"
    return verdict._replace(multiplier_residual=fresh, stability=stability)


def _told(
    values: Complex[np.ndarray, " some"],
    residuals: Float[np.ndarray, " some"],
    margin: float,
    all_of_them: bool,
) -> Multipliers:
    """The verdict on eigenvalues or Ritz values; the residual is infinite if not converged."""
    if not np.all(np.isfinite(values)):
        return Multipliers(complex("nan"), float("nan"), -1, "unknown")
    apart, sizes = np.abs(values - 1) > NEUTRAL, np.abs(values)
    beyond = apart & (sizes > 1 + margin) & np.isfinite(residuals)
    count = int(np.sum(~apart)) if all_of_them else -1
    stability: Stability = "none found"
    if np.any(beyond):
        stability = "unstable"
    elif np.any(apart & (sizes >= 1 - margin)):
        stability = "unknown"
    elif all_of_them and count == 0:
        stability = "stable"
    shown = beyond if np.any(beyond) else apart & np.isfinite(residuals)
    if not np.any(shown):
        return Multipliers(complex("nan"), float("nan"), count, stability)
    largest = int(np.argmax(np.where(shown, sizes, -1.0)))
    return Multipliers(complex(values[largest]), float(residuals[largest]), count, stability)
