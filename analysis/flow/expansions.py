"""The linear and the quadratic model of a network about a start, trained as the run was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.run import Run

_CHUNK = 32
"""Looks that one compiled call makes."""


class Trained(NamedTuple):
    """A model about a start at some steps, averaged as the measured run is.

    Attributes:
        loss: (1, 2, 1) average over three steps of F(θ_t, t).
        energy: |d_t|², d_t being the deviation of the iterate from the centre.
        distance: distance of the centre from the given one.
    """

    loss: Float[np.ndarray, " looks"]
    energy: Float[np.ndarray, " looks"]
    distance: Float[np.ndarray, " looks"]


def no_expansion(run: Run) -> str:
    """Why a run's network has no expanded model; empty where it has one."""
    dynamics = run.dynamics
    if not dynamics.problem.has_outputs:
        return "only the loss is known, and no outputs of a network to be expanded"
    if dynamics.problem.origin is not None:
        return "the run is of an expanded network already"
    if dynamics.batch_size is not None:
        return "the run has mini-batches"
    if dynamics.precision is not None:
        return f"the run rounds to {dynamics.precision}, which is not to be expanded"
    return ""


def trained_expansion(
    run: Run,
    start: FlatState,
    order: int,
    steps: Int[np.ndarray, " looks"],
    centres: Float[np.ndarray, "looks params"],
    *,
    between: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains the network's Taylor expansion about a state of the run, from that state on.

    The optimizer is the run's own, with the state that it had.

    Args:
        run: run whose network is expanded; see `no_expansion`.
        start: state of the run, about whose parameters the network is expanded.
        order: 1 or 2.
        steps: steps to look at, increasing, none before that of the start.
        centres: c_t of the run at these.
        between: called between some looks and the next, so that it can raise an exception to stop.
    """
    dynamics = run.dynamics
    state = run.state(start)
    expanded = replace(dynamics, problem=dynamics.problem.expanded(state.params, order))
    gaps = np.diff(steps, prepend=start.step).astype(np.int32)
    chunks = []
    for first in range(0, len(steps), _CHUNK):
        between()
        some = slice(first, first + _CHUNK)
        missing = (0, _CHUNK - len(gaps[some]))
        waits = np.pad(gaps[some], missing)
        beside = np.pad(centres[some], (missing, (0, 0)), mode="edge")
        state, chunk = _looked_at(expanded, state, waits, jnp.asarray(beside, run.dtype))
        chunks.append(np.asarray(chunk, float)[: len(gaps[some])])
    return Trained(*np.concatenate(chunks).T)


@jax.jit
def _looked_at(
    dynamics: Dynamics,
    state: State,
    gaps: Int[Array, " looks"],
    centres: Float[Array, "looks params"],
) -> tuple[State, Float[Array, "looks 3"]]:
    """The columns of `Trained`, with so many steps before each look."""
    loss = dynamics.problem.objective

    def look(state: State, given: tuple[Array, Array]) -> tuple[State, Array]:
        gap, beside = given
        state = jax.lax.fori_loop(0, gap, lambda _, state: dynamics.step(state)[0], state)
        following, _ = dynamics.step(state)
        deviation = (state.previous_update - following.previous_update) / 4
        losses = [
            loss(state.params - state.previous_update, state.step - 1),
            loss(state.params, state.step),
            loss(following.params, following.step),
        ]
        distance = jnp.linalg.norm(state.params - deviation - beside)
        mean = losses[0] / 4 + losses[1] / 2 + losses[2] / 4
        return state, jnp.stack([mean, jnp.vdot(deviation, deviation), distance])

    return jax.lax.scan(look, state, (gaps, centres))
