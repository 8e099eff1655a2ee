"""`Propagator`: products with the linearised updates of consecutive steps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.devices import map_over_devices, rounded_up
from dlf_dynamics.analysis.instabilities.moving import (
    moving_forms,
    moving_numbers,
    num_moving,
    with_moving,
)
from dlf_dynamics.analysis.instabilities.training_map import training_state
from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.float64 import Wide, computes_in_float64
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.layout import Layout

_LINK = 16
"""Steps of a link, after which vectors are orthogonalised again: growth by 3 per step gives 4e7,
half of the digits of a number."""

_HELD = 2**27
"""Numbers of the states that are held, at most (1 GiB): on longer stretches each product replays
them, some links at a time."""

_BASES = 2**27 // 40
"""Numbers of vectors that are held for each direction of a search, at most (1 GiB for 40)."""


class States(NamedTuple):
    """States of the consecutive steps of a link, padded to the length that all links have.

    Attributes:
        first: step of the first row.
        filled: number of rows that count; the others repeat the last.
        params: θ_t.
        optimizer: the optimizer's state as a vector.
    """

    first: int
    filled: int
    params: Float[np.ndarray, "length params"]
    optimizer: Float[np.ndarray, "length state"]


class Propagator:
    """Products with M = J_(stop-1) ... J_first, and with Mᵀ.

    J_t is the derivative of update t of the whole state at the replayed state: of the parameters,
    and of the moving parts of the optimizer's state, such as a velocity or Adam's two means, in
    float64 where the model can. Counts and hyperparameters are not perturbed. Rounding to fewer
    digits after each update has no derivative and is left out.

    Args:
        replay: replay of a full-batch run.
        first: step of the first update.
        stop: step after the last update.

    Attributes:
        first: step of the first update.
        stop: step after the last update.
        start: the state before the first update.
        end: the state after the last update.
        size: order of M.
        products: number of products with single vectors that were made.
    """

    def __init__(self, replay: Replay, first: int, stop: int) -> None:
        self._replay, self.first, self.stop = replay, first, stop
        run = replay.run
        self._wide = Wide(run, needed=computes_in_float64(run, Curvature()))
        with self._wide.enabled():
            dtype = "float64" if self._wide.needed else run.dtype
            self._dynamics = replace(self._wide.dynamics, precision=None)
            self.layout = self._dynamics.state_layout(jnp.zeros(run.num_params, dtype))
        (self._before,) = replay.points(np.array([first]))
        (self._after,) = replay.points(np.array([stop]))
        self.start, self.end = self.vector(self._before), self.vector(self._after)
        self.size, self.products = len(self.start), 0
        most = max(_BASES // self.size, 1)
        count = min(-(-(stop - first) // _LINK), most)
        self._edges = np.linspace(first, stop, count + 1).round().astype(int)
        self._length = int(np.max(np.diff(self._edges)))
        held = _HELD // (run.num_params + self.layout.size) // self._length
        self._together = min(max(held, 1), count)
        self._group, self._links = -1, list[States]()

    def __len__(self) -> int:
        return len(self._edges) - 1

    @property
    def rounding(self) -> float:
        """Relative precision of a product."""
        return float(jnp.finfo(self._dtype).eps)

    @property
    def parts(self) -> dict[str, slice]:
        """Slices of a state's vector: the parameters, and each moving leaf of the optimizer."""
        slices = {"the parameters": slice(0, self._replay.run.num_params)}
        stop = self._replay.run.num_params
        for name, shape in moving_forms(self.layout):
            slices[name] = slice(stop, stop + prod(shape))
            stop += prod(shape)
        return slices

    def vector(self, point: FlatState) -> Float[np.ndarray, " n"]:
        """A state of the run as a vector of the components that are perturbed."""
        return np.asarray(_vectors(self.layout, *_rows(point)), float)[0]

    def states(self) -> Iterator[Float[np.ndarray, "some n"]]:
        """The states before each update, some at a time."""
        for link in map(self._link, range(len(self))):
            states = link.params[: link.filled], link.optimizer[: link.filled]
            yield np.asarray(_vectors(self.layout, *states), float)

    def through(self, link: int, vectors: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n"]:
        """Products of the rows with the updates of a link."""
        self.products += len(vectors) * (link == 0)
        return self._carried(link, vectors, transposed=False)

    def back(self, link: int, vectors: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n"]:
        """Products of the rows with the transpose of a link."""
        self.products += len(vectors) * (link == 0)
        return self._carried(link, vectors, transposed=True)

    def forward(self, vectors: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n"]:
        """Products with M."""
        for link in range(len(self)):
            vectors = self.through(link, vectors)
        return vectors

    def backward(self, vectors: Float[np.ndarray, "b n"]) -> Float[np.ndarray, "b n"]:
        """Products with Mᵀ."""
        for link in reversed(range(len(self))):
            vectors = self.back(link, vectors)
        return vectors

    def repeats(self, seed: int = 0) -> tuple[Float[np.ndarray, " n"], float]:
        """How much the updates differ from those one period later, at the same states.

        They differ where class weights, learning rate or bias corrections have changed.

        Args:
            seed: seed of a random direction.

        Returns:
            The largest difference of each component of the state after an update; and the largest
            difference between the derivatives of the updates in the direction, relative to the
            derivative less the identity.
        """
        later = np.asarray(self._after.optimizer, float) - np.asarray(self._before.optimizer, float)
        direction = np.random.default_rng(seed).standard_normal(self.size)
        moved, turned = np.zeros(self.size), 0.0
        for link in map(self._link, range(len(self))):
            with self._wide.enabled():
                given = self._given(link), later, self.stop - self.first, direction
                differences = _differences(self._dynamics, self.layout, *given)
                moved = np.maximum(moved, np.asarray(differences[0]))
                turned = float(np.maximum(turned, np.asarray(differences[1])))
        return moved, turned

    def _link(self, number: int) -> States:
        """The states of a link, replayed unless they are held."""
        group = number // self._together
        if group != self._group:
            edges = self._edges[group * self._together :][: self._together + 1]
            stretches = list(self._replay.stretches(int(edges[0]), int(edges[-1])))
            params = np.concatenate([stretch.params for stretch in stretches])
            optimizer = np.concatenate([stretch.optimizer for stretch in stretches])
            spans = pairwise((edges - edges[0]).tolist())
            self._group = group
            self._links = [
                self._filled(int(edges[0]) + a, params[a:b], optimizer[a:b]) for a, b in spans
            ]
        return self._links[number % self._together]

    def _filled(self, first: int, params: np.ndarray, optimizer: np.ndarray) -> States:
        short = (0, self._length - len(params)), (0, 0)
        parts = (np.pad(part, short, mode="edge") for part in (params, optimizer))
        return States(first, len(params), *parts)

    def _given(self, link: States) -> States:
        """A link in the types that compiled functions take."""
        wide = (np.asarray(part, self._dtype) for part in (link.params, link.optimizer))
        return States(np.int32(link.first), np.int32(link.filled), *wide)  # type: ignore[arg-type]

    @property
    def _dtype(self) -> str:
        return "float64" if self._wide.needed else self._replay.run.dtype

    def _carried(self, link: int, vectors: np.ndarray, *, transposed: bool) -> np.ndarray:
        blank = np.zeros((rounded_up(len(vectors)) - len(vectors), self.size))
        padded = np.concatenate([vectors, blank]).astype(self._dtype)
        shared = padded.reshape(jax.local_device_count(), -1, self.size)
        states, how = self._given(self._link(link)), {"transposed": transposed}
        with self._wide.enabled():
            carried = _carry(self._dynamics, states, shared, layout=self.layout, **how)
            return np.asarray(carried, float).reshape(-1, self.size)[: len(vectors)]


def _rows(point: FlatState) -> tuple[np.ndarray, np.ndarray]:
    return point.params[None], point.optimizer[None]


def _vectors(layout: Layout, params: np.ndarray, optimizer: np.ndarray) -> np.ndarray:
    """States as vectors of the components that are perturbed, a row for each state."""
    return np.concatenate([params, optimizer[:, moving_numbers(layout)]], axis=1)


def _update(dynamics: Dynamics, layout: Layout, row: Array, step: Array, vector: Array) -> Array:
    """One update of the perturbed components; the rest of the optimizer's state is the row's.

    Args:
        dynamics: dynamics of the run.
        layout: layout of the optimizer's state.
        row: optimizer's state as a vector.
        step: number of updates made before.
        vector: parameters, and the moving parts of the optimizer's state.
    """
    params, moving = jnp.split(vector, [len(vector) - num_moving(layout)])
    state = with_moving(layout.unflatten(row), moving)
    return training_state(dynamics.step(State(params, jnp.zeros_like(params), state, step))[0])


@partial(jax.jit, static_argnames=("layout", "transposed"))
def _carry(
    dynamics: Dynamics,
    link: States,
    shared: Float[Array, "devices vectors n"],
    *,
    layout: Layout,
    transposed: bool,
) -> Float[Array, "devices vectors n"]:
    """Vectors after the updates of a link, or after their transposes; each device takes some.

    They go one after the other, as a batch takes twice as long (600 parameters).
    """

    def carry(vectors: Float[Array, "vectors n"]) -> Float[Array, "vectors n"]:
        def through(vectors: Array, state: tuple[Array, ...]) -> Array:
            index, params, row = state
            start = _as_vector(layout, params, row)
            update = partial(_update, dynamics, layout, row, link.first + index)
            if transposed:
                back = jax.vjp(update, start)[1]
                return jax.lax.map(lambda vector: back(vector)[0], vectors)
            return jax.lax.map(jax.linearize(update, start)[1], vectors)

        def one(vectors: Array, state: tuple[Array, ...]) -> tuple[Array, None]:
            kept = lambda vectors, _: vectors  # noqa: E731
            return jax.lax.cond(state[0] < link.filled, through, kept, vectors, state), None

        states: Any = (jnp.arange(len(link.params)), link.params, link.optimizer)
        return jax.lax.scan(one, vectors, states, reverse=transposed)[0]

    return map_over_devices(carry, shared)


def _as_vector(layout: Layout, params: Array, row: Array) -> Array:
    blank = jnp.zeros_like(params)
    return training_state(State(params, blank, layout.unflatten(row), jnp.int32(0)))


@partial(jax.jit, static_argnames="layout")
def _differences(
    dynamics: Dynamics,
    layout: Layout,
    link: States,
    later: Float[Array, " state"],
    period: Int[Array, ""],
    direction: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """See `Propagator.repeats`; counts are advanced by their change over the period."""
    forms = zip(layout.shapes, layout.dtypes, strict=True)
    whole = jnp.concatenate(
        [jnp.zeros(0), *[jnp.full(prod(shape), "int" in dtype, float) for shape, dtype in forms]]
    )

    def one(state: tuple[Array, ...]) -> tuple[Array, Array]:
        index, params, row = state
        start, step = _as_vector(layout, params, row), link.first + index
        now = partial(_update, dynamics, layout, row, step)
        then = partial(_update, dynamics, layout, row + whole * later, step + period)
        (value, turned), (other, other_turned) = (
            jax.jvp(update, (start,), (direction,)) for update in (now, then)
        )
        own, apart = jnp.linalg.norm(turned - direction), jnp.linalg.norm(other_turned - turned)
        relative = jnp.where(apart > 0, apart / jnp.where(own > 0, own, 1e-300), 0.0)
        counts = index < link.filled
        return jnp.where(counts, jnp.abs(other - value), 0.0), jnp.where(counts, relative, 0.0)

    states: Any = (jnp.arange(len(link.params)), link.params, link.optimizer)
    moved, turned = jax.lax.map(one, states)
    return jnp.max(moved, axis=0), jnp.max(turned)
