"""Maps with kinks: notes about them, and whether a cycle lies on one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.bifurcation.maps import Map, Parameter
from dlf_dynamics.analysis.bifurcation.newton import Points
from dlf_dynamics.smoothness import kinks

_PIECED = ("select_n", "cond[", "floor", "ceil", "round", "rem ")
"""Operations that may join pieces, although smooth maps also use them."""

_BESIDE = 1e-9
"""Distance from the points, relative to the largest one, at which both sides are compared."""

JUMP = 1e-5
"""Relative difference of both sides, at that distance, that no smooth map shows."""

_SMALL = 50
"""Number of components up to which a map is checked for jumps if its program may join pieces:
programs of most training maps do so without a kink."""

_HALVINGS = 40
"""Number of bisections of a line in the search for a jump."""

_SMOOTH = 8
"""Bisections after which a change as small as that of a smooth function counts as smooth."""

_ON_KINK = (
    "; a point lies on a kink or a jump of the map: the cycle has no multipliers there, and "
    "whether it is stable is not known"
)


class _Images(Protocol):
    """Images of some points, and Jacobians there."""

    @property
    def images(self) -> Points: ...

    @property
    def jacobians(self) -> Float[np.ndarray, "period n n"]: ...


class _Cycle(_Images, Protocol):
    """Images, Jacobians and the points themselves, as in `Linearisation`."""

    @property
    def points(self) -> Points: ...

    @property
    def parameter(self) -> float: ...


def kinks_note(
    map_: Map, point: Float[np.ndarray, " n"], parameter: Parameter, *, on_one: bool = False
) -> str:
    """Note about a map with kinks, and about a cycle on one; empty otherwise."""
    note = _ON_KINK if on_one else ""
    operations = _kinks(map_, point, parameter)
    if not operations:
        return note
    return (
        f"; the map has kinks ({', '.join(operations)}): multipliers say nothing about a finite "
        f"neighbourhood, and where they jump it is a border collision, without a normal form{note}"
    )


def on_kink(
    map_: Map, cycle: _Cycle, evaluate: Callable[[Points, float], _Cycle], floor: float
) -> bool:
    """Whether derivatives or values jump at a point of a cycle, up to its rounding.

    Both are compared on two opposite sides, in a random direction.

    Args:
        map_: the map.
        cycle: the cycle.
        evaluate: computes images and Jacobians at other points.
        floor: smallest size of the points.
    """
    point, parameter = cycle.points[0], cycle.parameter
    if not _kinks(map_, point, parameter) and not _pieced(map_, point, parameter):
        return False
    size = max(float(np.max(np.abs(cycle.points))), floor)
    size = size if size > 1e-8 else 1.0  # smaller points are rounding
    aside = _BESIDE * size * np.random.default_rng(0).standard_normal(cycle.points.shape)
    one, other = (evaluate(cycle.points + sign * aside, parameter) for sign in (1, -1))
    bend = np.max(np.abs(one.jacobians - other.jacobians))
    steepest = np.max(np.abs([one.jacobians, other.jacobians]))
    rise = np.einsum("pij,pj->pi", one.jacobians + other.jacobians, aside)
    jump = np.max(np.abs(one.images - other.images - rise))
    return not (bend <= JUMP * steepest and jump <= JUMP * size)


def may_jump(map_: Map, point: Float[np.ndarray, " n"], parameter: Parameter) -> bool:
    """Whether derivatives must be checked for jumps along a branch or a curve."""
    if _kinks(map_, point, parameter):
        return True
    return len(point) <= _SMALL and _pieced(map_, point, parameter)


def jumps_along(at: Callable[[float], _Images], predicted: Points) -> bool:
    """Whether Jacobians or images jump on a line, found by bisection.

    A jump of less than about a sixtieth of the change along the whole line may be missed.

    Args:
        at: computes images and Jacobians at a position on the line, from 0 to 1.
        predicted: change of the images along the line, from the derivatives at its ends.
    """
    if _jump(lambda part: at(part).jacobians):
        return True
    change = at(1.0).images - at(0.0).images
    strays = np.max(np.abs(change - predicted)) > 4 / 2**_SMOOTH * np.max(np.abs(change))
    return bool(strays) and _jump(lambda part: at(part).images)


def _jump(values: Callable[[float], np.ndarray]) -> bool:
    """Whether values jump, by bisection into the half of a line in which they change more."""
    low, high = 0.0, 1.0
    first, last = values(low), values(high)
    whole = bend = float(np.max(np.abs(last - first)))
    for halved in range(_HALVINGS):
        steepest = max(float(np.max(np.abs(first))), float(np.max(np.abs(last))))
        smooth = halved >= _SMOOTH and bend < 4 * whole / 2**_SMOOTH
        if not bend > JUMP * steepest or smooth:
            return False
        middle = values((low + high) / 2)
        changes = [float(np.max(np.abs(middle - end))) for end in (first, last)]
        if changes[0] >= changes[1]:
            high, last, bend = (low + high) / 2, middle, changes[0]
        else:
            low, first, bend = (low + high) / 2, middle, changes[1]
    return True


def _pieced(map_: Map, point: Float[np.ndarray, " n"], parameter: Parameter) -> bool:
    given = jnp.asarray(point), map_, jnp.asarray(parameter, float)
    program = str(jax.make_jaxpr(_image)(*given))
    return any(name in program for name in _PIECED)


def _kinks(map_: Map, point: Float[np.ndarray, " n"], parameter: Parameter) -> list[str]:
    return kinks(_image, jnp.asarray(point), map_, jnp.asarray(parameter, float))


@jax.jit
def _image(point: Array, map_: Map, parameter: Array) -> Array:
    """One step, compiled so that it is traced only once."""
    return map_(point, parameter)
