"""Branches of a frozen-loss diagram: the centre and the orbit of period 2, stable or not.

The loss of a training run mostly has no minimum to continue from, so these are not branches of
exact cycles. At each parameter value the training map is iterated until the oscillation has
settled; the centre then is that of the last three iterates, and the orbit of period 2 about it is
that of the rod equation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.rod import rod_amplitude
from dlf_dynamics.analysis.eigensolver import top_eigenpairs
from dlf_dynamics.operators import hessian
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

AT_REST = 1e-6
"""Oscillations smaller than this part of the parameters' norm are none."""


class Branches(NamedTuple):
    """The two branches at some parameter values; NaN where they are not known.

    Attributes:
        values: of the parameter.
        centre: 1 - ηλ of the largest eigenvalue λ at the centre: below -1 the centre is unstable.
        amplitude: of the orbit of period 2, along the top eigenvector of the diagram.
        multiplier: (1 - η u·H(w+d)u) (1 - η u·H(w-d)u) with u the direction of d: the part of the
            two-step multiplier that belongs to the oscillation; between -1 and 1 it is stable.
    """

    values: Float[np.ndarray, " values"]
    centre: Float[np.ndarray, " values"]
    amplitude: Float[np.ndarray, " values"]
    multiplier: Float[np.ndarray, " values"]
    __repr__ = brief


class Frozen(NamedTuple):
    """Gradient descent at one value of the parameter.

    Attributes:
        value: of the parameter.
        rate: learning rate.
        step: of the loss's weights.
    """

    value: float
    rate: float
    step: int


def follow_branches(
    map_: Map,
    problem: Problem,
    start: Float[Array, " params"],
    direction: Float[Array, " params"],
    places: list[Frozen],
    settle: int,
) -> Branches:
    """Both branches of gradient descent at each value, each from the same start.

    Args:
        map_: the training map.
        problem: whose loss it is.
        start: parameters.
        direction: unit, on which amplitudes are projected.
        places: values of the parameter, and what they mean for gradient descent.
        settle: updates before the oscillation counts as settled.
    """
    rows = [_at(map_, problem, start, direction, place, settle) for place in places]
    columns = np.array(rows).reshape(len(places), 3).T
    return Branches(np.array([place.value for place in places]), *columns)


def _at(
    map_: Map, problem: Problem, start: Array, direction: Array, place: Frozen, settle: int
) -> tuple[float, float, float]:
    nan = float("nan")
    centre, half = _settled(map_, start, place.value, settle)
    if not bool(jnp.all(jnp.isfinite(centre))):
        return nan, nan, nan
    found = top_eigenpairs(
        Partial(_product, problem, centre, jnp.int32(place.step)),
        len(centre),
        1,
        tol=float(jnp.finfo(centre.dtype).eps) ** 0.4,
        max_matvecs=60,
        key=jax.random.key(0),
        dtype=centre.dtype,
    )
    multiplier = 1 - place.rate * float(found.eigenvalues[0]) if found.converged[0] else nan
    if jnp.linalg.norm(half) <= AT_REST * jnp.linalg.norm(centre):
        return multiplier, nan, nan
    rod = rod_amplitude(problem, centre, place.rate, half, step=place.step)
    if not rod.converged:
        return multiplier, nan, nan
    difference = jnp.asarray(rod.difference)
    curvatures = [_curvature(problem, centre + s * difference, difference, place) for s in (1, -1)]
    of_orbit = float(np.prod([1 - place.rate * curvature for curvature in curvatures]))
    return multiplier, abs(float(direction @ difference)), of_orbit


@jax.jit
def _settled(map_: Map, start: Array, value: float, settle: int) -> tuple[Array, Array]:
    """Centre and half-difference of the three iterates after so many updates."""
    before = map_.iterate(start, value, settle)
    now = map_(before, value)
    after = map_(now, value)
    return (before + 2 * now + after) / 4, (before - 2 * now + after) / 4


def _curvature(problem: Problem, params: Array, direction: Array, place: Frozen) -> float:
    unit = direction / jnp.linalg.norm(direction)
    return float(unit @ _product(problem, params, place.step, unit))


@jax.jit
def _product(problem: Problem, params: Array, step: Step, vector: Array) -> Array:
    return hessian(problem, params, step)(vector)
