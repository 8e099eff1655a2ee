"""Maps with kinks: what is to be said of them, and whether a cycle lies on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.newton import Points
from dlf_dynamics.smoothness import kinks

_PIECED = ("select_n", "cond[", "floor", "ceil", "round", "rem ")
"""Operations that smooth maps have as well, but that may put pieces together."""

_BESIDE = 1e-9
"""Distance from the points, relative to the largest of them, at which both sides are compared."""

_JUMP = 1e-5
"""Relative difference of both sides that no smooth map shows at that distance."""

_ON_KINK = (
    "; a point lies on a kink or a jump of the map: the cycle has no multipliers there, and "
    "whether it is stable is not known"
)


class _Place(Protocol):
    """Points with their images and Jacobians, as `Linearisation` has them."""

    @property
    def points(self) -> Points: ...

    @property
    def parameter(self) -> float: ...

    @property
    def images(self) -> Points: ...

    @property
    def jacobians(self) -> Float[np.ndarray, "period n n"]: ...


def kinks_told(
    map_: Map, point: Float[np.ndarray, " n"], parameter: float, *, on_one: bool = False
) -> str:
    """What to say of a map with kinks, and of a cycle that is on one."""
    told = _ON_KINK if on_one else ""
    found = _kinks(map_, point, parameter)
    if not found:
        return told
    return (
        f"; the map has kinks ({', '.join(found)}): multipliers tell nothing of a finite "
        f"neighbourhood, and where they jump it is a border collision, without a normal form{told}"
    )


def on_kink(
    map_: Map, place: _Place, evaluate: Callable[[Points, float], _Place], floor: float
) -> bool:
    """Whether derivatives, or values, jump at a point of a cycle, up to its rounding.

    Both are compared on two opposite sides, in a direction that is no kink's own.

    Args:
        map_: the map.
        place: the cycle.
        evaluate: images and Jacobians at other points.
        floor: least size of the points.
    """
    point, parameter = place.points[0], place.parameter
    if not _kinks(map_, point, parameter):
        program = str(jax.make_jaxpr(_image)(jnp.asarray(point), map_, jnp.float64(parameter)))
        if not any(name in program for name in _PIECED):
            return False
    size = max(float(np.max(np.abs(place.points))), floor)
    size = size if size > 1e-8 else 1.0  # rounding is no size
    aside = _BESIDE * size * np.random.default_rng(0).standard_normal(place.points.shape)
    one, other = (evaluate(place.points + sign * aside, parameter) for sign in (1, -1))
    bend = np.max(np.abs(one.jacobians - other.jacobians))
    steepest = np.max(np.abs([one.jacobians, other.jacobians]))
    rise = np.einsum("pij,pj->pi", one.jacobians + other.jacobians, aside)
    jump = np.max(np.abs(one.images - other.images - rise))
    return not (bend <= _JUMP * steepest and jump <= _JUMP * size)


def _kinks(map_: Map, point: Float[np.ndarray, " n"], parameter: float) -> list[str]:
    return kinks(_image, jnp.asarray(point), map_, jnp.float64(parameter))


@jax.jit
def _image(point: Array, map_: Map, parameter: Array) -> Array:
    """One step; compiled functions are traced once."""
    return map_(point, parameter)
