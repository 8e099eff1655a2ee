"""Orbit diagrams: where a map ends up at each parameter, swept up, down or from one start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float
from scipy.spatial import KDTree

from dlf_dynamics.analysis.bifurcation.maps import Map, Parameter, Vector
from dlf_dynamics.analysis.devices import filled, map_over_devices, rounded_up
from dlf_dynamics.reprs import brief

Observable = Callable[[Vector], Array]

_ESCAPED = 1e8
"""Growth of the largest entry of a state, relative to the start or 1, that counts as divergence."""

_ONE_BY_ONE_SIZE = 50
"""Size of a state from which on a CPU is faster with parameters one after the other."""


@dataclass(frozen=True)
class OrbitDiagram:
    """Values of an observable of the orbit at each parameter, after transients.

    `down` has the order of `parameters`, like `up`: equal rows belong to equal parameters. Values
    after a divergence are NaN.

    Attributes:
        parameters: parameters in the order of the first sweep.
        up: recorded values of the first sweep, or of independent orbits.
        down: recorded values of the sweep back, if there was one.
        diverged_up: whether the orbit diverged, before or while it was recorded.
        diverged_down: whether it did in the sweep back.
    """

    parameters: Float[np.ndarray, " values"]
    up: Float[np.ndarray, "values recorded *observables"]
    down: Float[np.ndarray, "values recorded *observables"] | None
    diverged_up: Bool[np.ndarray, " values"]
    diverged_down: Bool[np.ndarray, " values"] | None
    __repr__ = brief

    def hysteresis(self, tol: float = 1e-2) -> Bool[np.ndarray, " values"]:
        """Where the two sweeps ended on different attractors.

        Two sets of recorded values differ when their Hausdorff distance exceeds `tol` times the
        extent of the whole diagram, and also twice that between the halves of either record, which
        is how much finite samples of one chaotic attractor differ. They also differ where one of
        the two orbits diverged. Transients that have not decayed, as usual at a bifurcation, look
        like hysteresis: make them longer to see what remains.

        Args:
            tol: tolerance relative to the extent of the diagram.

        Raises:
            ValueError: when there was no sweep back.
        """
        if self.down is None or self.diverged_down is None:
            raise ValueError("there was no sweep back; expected a diagram with both_ways=True")
        both = np.stack([self.up, self.down]).reshape(2, *self.up.shape[:2], -1)
        finite = both[:, ~(self.diverged_up | self.diverged_down)]
        extent = np.max(np.ptp(finite.reshape(-1, both.shape[-1]), axis=0)) if finite.size else 0
        pairs = zip(both[0], both[1], self.diverged_up, self.diverged_down, strict=True)
        return np.array([_differ(*pair, tol * extent) for pair in pairs], bool)


def orbit_diagram(
    map_: Map,
    state: Vector,
    parameters: Float[np.ndarray, " values"],
    observable: Observable,
    *,
    transient: int,
    recorded: int,
    both_ways: bool = True,
    follow: bool = True,
    kick: float = 0.0,
    bound: float | None = None,
    batch_size: int | None = None,
) -> OrbitDiagram:
    """An observable of the orbit at each parameter (Strogatz, Nonlinear Dynamics, Section 10.2).

    The orbit at each parameter starts where the one before it ended, up to the last parameter and
    then back, so that coexisting attractors show as hysteresis. After a divergence the sweep
    continues from the end of the last orbit that did not diverge. An orbit that settled on a fixed
    point or a cycle stays there after this has become unstable, except for rounding; a `kick` moves
    it away.

    Args:
        map_: x ↦ step(x, p).
        state: start of the first orbit.
        parameters: parameters in the order of the sweep.
        observable: function of the state, traceable by JAX, with a scalar or an array as its value.
            One that holds large arrays should be a `jax.tree_util.Partial` of them.
        transient: number of steps at each parameter before values are recorded.
        recorded: number of recorded steps.
        both_ways: whether to sweep back as well.
        follow: whether orbits start where the last one ended. If not, each starts from `state`,
            and there is no sweep back.
        kick: added to all entries of the state at each new parameter.
        bound: size of an entry of the state beyond which the orbit counts as diverged; none means
            1e8 times the largest entry of the start, or 1e8 where that is less than 1.
        batch_size: number of independent orbits computed at once; none chooses it automatically.

    Raises:
        ValueError: when there is no parameter, nothing is recorded, the transient is negative, or
            the start is not finite.

    >>> logistic = Map(lambda x, r: r * x * (1 - x))
    >>> diagram = orbit_diagram(
    ...     logistic,
    ...     jnp.array([0.3]),
    ...     np.array([2.5, 3.2]),
    ...     lambda x: x[0],
    ...     transient=500,
    ...     recorded=4,
    ... )
    >>> np.unique(diagram.up[0].round(6)).tolist(), np.unique(diagram.up[1].round(6)).tolist()
    ([0.6], [0.513045, 0.799455])
    >>> diagram.hysteresis().tolist()
    [False, False]
    """
    values = np.asarray(parameters, float)
    state = jnp.asarray(state)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"parameters have shape {values.shape}; expected a list of at least one")
    if transient < 0 or recorded < 1:
        raise ValueError(
            f"transient is {transient} and recorded {recorded}; expected at least 0 and 1"
        )
    bound = escape_bound(state) if bound is None else bound
    if not isinstance(observable, Partial):
        observable = Partial(observable)
    orbit = Partial(_orbit, map_, observable, jnp.int32(transient), jnp.asarray(bound), kick)
    sweep = values.astype(state.dtype)
    if not follow:
        record = _from_one_start(orbit, state, sweep, recorded, batch_size)
        return OrbitDiagram(values, *_columns(record, None))
    last, up = _follow(orbit, state, sweep, recorded=recorded)
    down = None
    if both_ways:
        _, down = _follow(orbit, last, sweep[::-1], recorded=recorded)
        down = jax.tree.map(lambda leaf: leaf[::-1], down)
    return OrbitDiagram(values, *_columns(up, down))


def escape_bound(state: Vector) -> float:
    """Size of an entry of the state beyond which an orbit from this start counts as diverged.

    Raises:
        ValueError: when the start is not finite.
    """
    largest = float(jnp.max(jnp.abs(state)))
    if not np.isfinite(largest):
        raise ValueError("the start is not finite")
    return _ESCAPED * max(1.0, largest)


def one_by_one(state: Vector) -> bool:
    """Whether vectors like this state are processed faster one by one than as a batch."""
    return jax.default_backend() == "cpu" and state.size >= _ONE_BY_ONE_SIZE


class _Record(NamedTuple):
    """Record of one orbit; leading axes are those of the parameters."""

    values: Float[Array, "*values recorded *observables"]
    diverged: Bool[Array, "*values"]


def _orbit(
    map_: Map,
    observable: Observable,
    transient: Array,
    bound: Array,
    kick: float,
    state: Vector,
    parameter: Parameter,
    recorded: int,
) -> tuple[Vector, _Record]:
    """The last state of an orbit, and its record."""

    def advance(_: Array, carry: tuple[Vector, Array]) -> tuple[Vector, Array]:
        state = map_(carry[0], parameter)
        # Comparisons with NaN are false.
        return state, carry[1] & jnp.all(jnp.abs(state) <= bound)

    def record(carry: tuple[Vector, Array], step: Array) -> tuple[tuple[Vector, Array], Array]:
        state, alive = advance(step, carry)
        return (state, alive), jnp.where(alive, observable(state), jnp.nan)

    carry = jax.lax.fori_loop(0, transient, advance, (state + kick, jnp.array(True)))
    (state, alive), values = jax.lax.scan(record, carry, jnp.arange(recorded))
    return state, _Record(values, ~alive)


@partial(jax.jit, static_argnames="recorded")
def _follow(
    orbit: Partial, state: Vector, parameters: Float[Array, " values"], *, recorded: int
) -> tuple[Vector, _Record]:
    """Orbits that each start where the last one that did not diverge ended."""

    def at_parameter(state: Vector, parameter: Array) -> tuple[Vector, _Record]:
        last, record = orbit(state, parameter, recorded)
        return jnp.where(record.diverged, state, last), record

    return jax.lax.scan(at_parameter, state, parameters)


def _from_one_start(
    orbit: Partial,
    state: Vector,
    values: Float[np.ndarray, " values"],
    recorded: int,
    batch_size: int | None,
) -> _Record:
    """Independent orbits, in batches of the given size or, without one, of a fast size."""
    if batch_size is None:
        batch_size = 1 if one_by_one(state) else len(values)
    # `jax.lax.map` would vectorise over a batch of one.
    batch_size = None if batch_size == 1 else min(batch_size, len(values))
    sweep = np.array(filled(list(values), rounded_up(len(values))))
    record = _independent(orbit, state, sweep, recorded=recorded, batch_size=batch_size)
    return jax.tree.map(lambda leaf: leaf[: len(values)], jax.device_get(record))


@partial(jax.jit, static_argnames=("recorded", "batch_size"))
def _independent(
    orbit: Partial,
    state: Vector,
    parameters: Float[Array, " values"],
    *,
    recorded: int,
    batch_size: int | None,
) -> _Record:
    """Orbits that all start from one state, distributed over the devices."""

    def at_parameter(parameter: Array) -> _Record:
        return orbit(state, parameter, recorded)[1]

    return map_over_devices(at_parameter, parameters, batch_size=batch_size)


def _columns(up: _Record, down: _Record | None) -> tuple:
    """Values and divergence of both sweeps, in the order of the fields of `OrbitDiagram`."""
    up, down = jax.device_get((up, down))
    return up.values, down and down.values, up.diverged, down and down.diverged


def _differ(
    up: np.ndarray, down: np.ndarray, diverged_up: bool, diverged_down: bool, least: float
) -> bool:
    """Whether two records, of shape (recorded, observables), show different attractors."""
    if diverged_up or diverged_down:
        return bool(diverged_up != diverged_down)
    half = len(up) // 2
    spread = max(_hausdorff(part[:half], part[half:]) for part in (up, down)) if half else 0.0
    return _hausdorff(up, down) > max(least, 2 * spread)


def _hausdorff(first: np.ndarray, second: np.ndarray) -> float:
    """Largest distance of a point of either set to the nearest one of the other."""
    there, back = KDTree(second).query(first)[0], KDTree(first).query(second)[0]
    return float(max(np.max(there), np.max(back)))
