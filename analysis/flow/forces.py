"""`Forces`: what an oscillation adds to the gradient at its centre, and what follows from that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.stability.linearised import Maps, spectral_radii
from dlf_dynamics.operators import gradient
from dlf_dynamics.problem import Problem


class Forces(NamedTuple):
    """Sizes and products of what the oscillation adds to the gradient at a centre.

    Attributes:
        size: |d|.
        along: dᵀ (odd force) / |d|.
        off: |odd force - threshold d|, 0 on an orbit of period 2.
        gradient: |∇F(c)|.
        linear: |Hd|.
        odd_rest: |odd force - Hd|.
        cubic: |½D³F[d, d]|.
        across: size of that part of ½D³F[d, d] which is orthogonal to d.
        even_rest: |even force - ½D³F[d, d]|.
        rest_across: size of that part of (even force - ½D³F[d, d]) which is orthogonal to d.
        rounding: what rounding can do to the odd and the even force.
    """

    size: float
    along: float
    off: float
    gradient: float
    linear: float
    odd_rest: float
    cubic: float
    across: float
    even_rest: float
    rest_across: float
    rounding: float


@partial(jax.jit, static_argnames="batch_size")
def forces(
    problem: Problem,
    centre: Float[Array, " params"],
    deviation: Float[Array, " params"],
    step: Int[Array, ""],
    threshold: Float[Array, ""],
    *,
    batch_size: int | None,
) -> Float[Array, " fields"]:
    """The fields of `Forces`, in one array that is fetched at once."""

    def force(s: Array) -> Array:
        return gradient(problem, centre + s * deviation, step, batch_size=batch_size)

    def derivative(s: Array) -> tuple[Array, Array]:
        return jax.jvp(force, (s,), (jnp.ones_like(s),))

    zero = jnp.zeros((), centre.dtype)
    (middle, linear), (_, second) = jax.jvp(derivative, (zero,), (jnp.ones_like(zero),))
    plus, minus = force(zero + 1), force(zero - 1)
    odd, even, cubic = (plus - minus) / 2, (plus + minus) / 2 - middle, second / 2
    norm = jnp.linalg.norm
    size = norm(deviation)
    unit = deviation / size
    across = lambda v: norm(v - jnp.vdot(unit, v) * unit)  # noqa: E731
    fields = {
        "size": size,
        "along": jnp.vdot(unit, odd),
        "off": norm(odd - threshold * deviation),
        "gradient": norm(middle),
        "linear": norm(linear),
        "odd_rest": norm(odd - linear),
        "cubic": norm(cubic),
        "across": across(cubic),
        "even_rest": norm(even - cubic),
        "rest_across": across(even - cubic),
        "rounding": 16 * jnp.finfo(centre.dtype).eps * (norm(plus) + norm(minus) + norm(middle)),
    }
    return jnp.stack([fields[name] for name in Forces._fields])


def numbers_of(
    measured: Sequence[Forces], maps: Maps, thresholds: Float[np.ndarray, " looks"]
) -> dict[str, Float[np.ndarray, " looks"]]:
    """What follows from the forces at some looks, by the names of the fields of `Look`.

    The response is the frequency of small cycles about a settled oscillation: with ‖d‖ = e^u and
    the sharpness λ = 2/E + y along one mode, u' = g E y and y' = -v·∇λ, where g is the gain of the
    growth and v = drift · ½D³F[d, d] what the force across moves (of gradient descent both steps
    are η: Damian, Nichani and Lee 2022, arXiv 2209.15594). Along one mode ½D³F[d, d] is ½‖d‖² ∇λ.

    Args:
        measured: forces at each look.
        maps: linear maps of the optimizer there.
        thresholds: critical eigenvalues there.
    """
    f: Any = Forces(*np.array(measured).T)  # of all looks together
    equivalent, radii = 2 / thresholds, partial(spectral_radii, maps)
    with np.errstate(all="ignore"):
        secant = f.along / f.size
        known = np.isfinite(secant)
        # 1 for gradient descent; how much faster an oscillation grows above the edge with momentum.
        gain = (radii(thresholds * (1 + _NEAR)) - 1) / (2 * _NEAR)
        even = (
            _part(f.even_rest, f.cubic, f.rounding),
            _part(f.rest_across, f.across, f.rounding),
        )
        numbers = {
            "secant": secant,
            "growth": np.where(known, radii(np.where(known, secant, 0.0)) - 1, np.nan),
            "change": gain * equivalent * f.off / f.size,
            "response": 2 * np.sqrt(gain * equivalent * _drift(maps)) * f.across / f.size,
            "odd": _part(f.odd_rest, f.linear, f.rounding),
            "even": np.fmax(*even),
            "rest": _part(f.odd_rest, np.fmax(f.linear, f.gradient), f.rounding),
        }
    # Where nothing moves at all, there is no oscillation, and all its numbers are known.
    return {name: np.where(f.size == 0, 0.0, column) for name, column in numbers.items()}


def _part(rest: np.ndarray, whole: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """The rest as a part of the whole; 0 where it is rounding only."""
    beyond = np.maximum(rest - rounding, 0)
    return np.where(beyond == 0, 0.0, beyond / whole)


_NEAR = 1e-6
"""Relative distance above the threshold at which the growth is evaluated."""


def _drift(maps: Maps) -> Float[np.ndarray, " looks"]:
    """Parameters' change per step under a constant gradient of -1, once the state has settled."""
    at_zero, per_curvature = maps
    state = np.eye(at_zero.shape[1] - 1) - at_zero[:, 1:, 1:]
    settled = (
        np.linalg.pinv(state) @ per_curvature[:, 1:, :1]
    )  # what never settles counts for nothing
    return -(at_zero[:, :1, 1:] @ settled + per_curvature[:, :1, :1])[:, 0, 0]
