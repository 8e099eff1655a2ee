"""Multipliers of the updates that a run made over some steps: of the product of their Jacobians."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.instabilities.branches import NEUTRAL
from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.run import Run

_PRODUCTS = 60
"""Of Arnoldi's method."""

_SHOWN = 3
"""Multipliers that are told at most."""


@dataclass(frozen=True)
class Multiplier:
    """An eigenvalue of the product of the Jacobians.

    Attributes:
        real: its real part.
        imaginary: its imaginary part.
        modulus: its modulus.
        residual: ‖Jx - μx‖ of its unit eigenvector x, from a fresh product.
        overlap: of the parameters' part of x, as a unit vector, with the mode.
    """

    real: float
    imaginary: float
    modulus: float
    residual: float
    overlap: float


class Multipliers(NamedTuple):
    """Of the updates of some steps.

    Attributes:
        steps: number of updates.
        found: those that converged and are apart from +1 (by 0.02 for each update), the largest
            modulus first, and at last that whose eigenvector overlaps most with the mode.
            Arnoldi's method may miss some.
        along: vᵀJv of the mode v; of a map that is not normal no multiplier.
        stretch: ‖Jv‖, of its part in the parameters.
        reason: why there are none; empty where there are.
    """

    steps: int
    found: list[Multiplier]
    along: float
    stretch: float
    reason: str = ""


NO_MULTIPLIERS = Multipliers(0, [], float("nan"), float("nan"))
"""Where nothing is told of them."""


def multipliers_over(
    run: Run, points: list[FlatState], mode: Float[np.ndarray, " params"], *, precise: bool
) -> Multipliers:
    """Leading multipliers of the updates that were made from some consecutive states.

    J is the product of the Jacobians of the whole state: parameters and what the optimizer keeps
    for each of them.

    Args:
        run: the run.
        points: the states, in order.
        mode: unit direction in the parameters.
        precise: whether to compute in float64, whatever the run's type.
    """
    wide = Wide(run, needed=precise)
    states = run.dynamics.restored_all(points)
    with wide.enabled():
        dynamics = replace(wide.dynamics, precision=None)
        states = jax.tree.map(jnp.asarray, wide(states))
        size = len(mode) + sum(map(len, _moving(jax.tree.map(lambda leaf: leaf[0], states))))
        dtype = states.params.dtype

        def product(vector: np.ndarray) -> np.ndarray:
            return np.asarray(_product(dynamics, states, jnp.asarray(vector, dtype)), float)

        start = np.pad(mode, (0, size - len(mode)))
        image = product(start)
        if not np.all(np.isfinite(image)):
            reason = "the Jacobian of the update is not finite"
            return Multipliers(len(points), [], float("nan"), float("nan"), reason)
        # Slow directions move by as much at each update.
        neutral = len(points) * NEUTRAL
        found = _leading(product, mode, size, float(jnp.finfo(dtype).eps), neutral)
    along, stretch = float(start @ image), float(np.linalg.norm(image[: len(mode)]))
    reason = "" if found else "none apart from +1 converged"
    return Multipliers(len(points), found, along, stretch, reason)


def _leading(
    product: Any, mode: Float[np.ndarray, " params"], size: int, eps: float, neutral: float
) -> list[Multiplier]:
    """Converged multipliers apart from +1, by one Arnoldi pass; residuals from fresh products."""
    values, vectors = _ritz(product, np.pad(mode, (0, size - len(mode))), eps)
    # Of a conjugate pair one is enough.
    apart = (np.abs(values - 1) > neutral) & (np.imag(values) >= 0)
    order = [int(place) for place in np.argsort(-np.abs(values)) if apart[place]]
    overlaps = {place: _overlap(mode, vectors(place)) for place in order}
    closest = max(order, key=lambda place: overlaps[place], default=None)
    found: list[Multiplier] = []
    for place in [*order, *([] if closest is None else [closest])]:
        if len(found) >= _SHOWN and place != closest:
            continue
        value = complex(values[place])
        residual = _residual(product, value, vectors(place))
        if residual <= eps**0.4 * max(abs(value), 1.0):
            one = Multiplier(value.real, value.imag, abs(value), residual, overlaps[place])
            found += [] if one in found else [one]
    return found


def _overlap(mode: np.ndarray, vector: np.ndarray) -> float:
    """What of a vector's part in the parameters is along the mode."""
    mine = vector[: len(mode)]
    return float(abs(mode @ mine) / max(float(np.linalg.norm(mine)), np.finfo(float).tiny))


def _residual(product: Any, value: complex, vector: np.ndarray) -> float:
    """‖Jx - μx‖ from fresh products."""
    image = product(np.real(vector)) + 1j * product(np.imag(vector))
    return float(np.linalg.norm(image - value * vector))


def _ritz(product: Any, mode: Float[np.ndarray, " n"], eps: float) -> tuple[np.ndarray, Any]:
    """Ritz values of a Krylov space, and a function that gives their unit vectors.

    It begins at the mode with something random, so that nothing is left out by symmetry.
    """
    size = len(mode)
    count = min(_PRODUCTS, size)
    basis, matrix = np.zeros((count + 1, size)), np.zeros((count + 1, count))
    drawn = np.random.default_rng(0).standard_normal(size)
    start = mode / np.linalg.norm(mode) + drawn / np.linalg.norm(drawn)
    basis[0] = start / np.linalg.norm(start)
    for column in range(count):
        vector = product(basis[column])
        scale = np.linalg.norm(vector)
        for _ in range(2):  # the first sweep leaves rounding of what it subtracts
            overlaps = basis[: column + 1] @ vector
            vector = vector - overlaps @ basis[: column + 1]
            matrix[: column + 1, column] += overlaps
        left = matrix[column + 1, column] = np.linalg.norm(vector)
        if left <= 10 * eps * scale:  # the space is invariant
            count = column + 1
            break
        basis[column + 1] = vector / left
    values, vectors = np.linalg.eig(matrix[:count, :count])
    vectors = vectors.astype(complex) / np.linalg.norm(vectors, axis=0)
    return values.astype(complex), lambda place: vectors[:, place] @ basis[:count]


@jax.jit
def _product(dynamics: Dynamics, states: State, vector: Float[Array, " n"]) -> Float[Array, " n"]:
    """The Jacobians of the updates from these states, one after the other, times a vector."""

    def one(vector: Array, state: State) -> tuple[Array, None]:
        start = jnp.concatenate([state.params, *_moving(state)])
        update = lambda moved: _moved(dynamics, state, moved)  # noqa: E731
        return jax.jvp(update, (start,), (vector,))[1], None

    return jax.lax.scan(one, vector, states)[0]


def _moved(dynamics: Dynamics, state: State, moved: Float[Array, " n"]) -> Float[Array, " n"]:
    """Parameters and what moves of the optimizer's state, after an update from others."""
    params, place = moved[: state.params.size], state.params.size
    leaves, structure = jax.tree.flatten(state.optimizer_state)
    for number, leaf in enumerate(leaves):
        if _moves(leaf):
            mine = moved[place : place + prod(leaf.shape)]
            leaves[number], place = mine.reshape(leaf.shape).astype(leaf.dtype), place + leaf.size
    inner = jax.tree.unflatten(structure, leaves)
    problem = dynamics.problem_at(state.step).steady()
    slope = jax.grad(problem.objective)(params, state.step)
    change, inner = dynamics.update(slope, inner, params)
    after = state._replace(params=params + change, optimizer_state=inner)
    return jnp.concatenate([after.params, *_moving(after)])


def _moving(state: State) -> list[Array]:
    """What belongs to each parameter in the optimizer's state, flat."""
    return [jnp.ravel(leaf) for leaf in jax.tree.leaves(state.optimizer_state) if _moves(leaf)]


def _moves(leaf: Any) -> bool:
    """Counts and hyperparameters do not."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 0
