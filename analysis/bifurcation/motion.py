"""`Motion`: what the iterates of a run do from step to step, replayed from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.bifurcation.periods import LAGS, periods_of_iterates
from dlf_dynamics.analysis.replay import Replay, Stretch
from dlf_dynamics.analysis.trajectory import POINTS, Solver, solve_segment
from dlf_dynamics.layout import Layout
from dlf_dynamics.models import Convolutional, FullyConnected, make_model
from dlf_dynamics.run import Run

_AHEAD = LAGS[-1]


class Motion(NamedTuple):
    """The motion at consecutive steps, and the curvature at some of them.

    Attributes:
        steps: consecutive.
        recurrence: ‖θ_(t+k) - θ_t‖ / ‖θ_(t+1) - θ_t‖ for each k in LAGS; NaN where the run ends
            before.
        amplitude: ‖θ_t - c_t‖, c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1) being the centre; half the
            distance of successive iterates on an orbit of period 2.
        drift: ‖θ_(t+1) - θ_(t-1)‖ / 2, the step of the motion that does not alternate.
        projection: of θ_t - c_t on the top eigenvector at the last centre looked at; signed, the
            sign of the eigenvector being followed.
        gate_flips: hidden units times examples that change side from t to t+1, as a part of all;
            NaN for smooth activations, and for the networks of recorded runs.
        loss: F(θ_t, t), on the examples of the step.
        update_cosine: of the updates θ_(t+1) - θ_t and θ_t - θ_(t-1).
        looked_at: steps at which the curvature was computed.
        values: largest eigenvalue of the run's operator at the centres of these.
        intervals: of the values.
        converged: of the values.
        vectors: top eigenvectors there, unit, their signs followed; of joined pieces the first and
            the last.
    """

    steps: Int[np.ndarray, " steps"]
    recurrence: Float[np.ndarray, "steps lags"]
    amplitude: Float[np.ndarray, " steps"]
    drift: Float[np.ndarray, " steps"]
    projection: Float[np.ndarray, " steps"]
    gate_flips: Float[np.ndarray, " steps"]
    loss: Float[np.ndarray, " steps"]
    update_cosine: Float[np.ndarray, " steps"]
    looked_at: Int[np.ndarray, " looked"]
    values: Float[np.ndarray, " looked"]
    intervals: Float[np.ndarray, "looked 2"]
    converged: Bool[np.ndarray, " looked"]
    vectors: Float[np.ndarray, "kept params"]

    @property
    def periods(self) -> Int[np.ndarray, " steps"]:
        """Of the oscillation at each step, as `periods_of_iterates` tells them."""
        return periods_of_iterates(self.update_cosine, self.recurrence)


class Curvatures(NamedTuple):
    """Largest eigenvalues at the centres of some steps, with their eigenvectors."""

    values: Float[np.ndarray, " looked"]
    intervals: Float[np.ndarray, "looked 2"]
    converged: Bool[np.ndarray, " looked"]
    vectors: Float[np.ndarray, "looked params"]


def curvatures(run: Run, solver: Solver, stretch: Stretch, steps: list[int]) -> Curvatures:
    """At the centres of steps of a stretch."""
    points = [stretch.point(step) for step in steps]
    lists = lambda most: [points[i : i + most] for i in range(0, len(points), most)]  # noqa: E731
    found = solve_segment(run, solver, lists, np.full(len(steps), np.nan), keep_vectors=True)
    at = POINTS.index("centre")
    names = ("eigenvalues", "intervals", "converged", "eigenvectors")
    return Curvatures(*(found[name][:, at, 0] for name in names))


def follow(replay: Replay, solver: Solver, start: int, stop: int, every: int) -> Motion:
    """The motion at the steps `start` to `stop` - 1.

    Args:
        replay: of the run.
        solver: for the largest eigenvalue.
        start: first step, a multiple of `every`.
        stop: the step after the last.
        every: the curvature is computed at multiples of it, whatever checkpoints there are.
    """
    run = replay.run
    beyond = int(run.checkpoint_steps[-1]) + 1
    states = _joined(replay.stretches(start, min(stop + _AHEAD, beyond)))
    looked_at = list(range(start, stop, every))
    found = curvatures(run, solver, states, looked_at)
    vectors = _aligned(found.vectors)
    rows = stop - start
    params, updates = (_padded(part, rows + _AHEAD) for part in states[1:3])
    nearest = (np.arange(rows)) // every
    observed = _observe(params, updates, vectors, nearest, rows=rows)
    recurrence, amplitude, drift, projection = map(np.array, observed)
    if start == 0:
        amplitude[0] = drift[0] = projection[0] = np.nan  # there is no step before it
    flips = np.full(rows, np.nan)
    if run.recording is None and run.kinks:
        flips = _gate_flips(run, params[: rows + 1])
    return Motion(
        steps=np.arange(start, stop),
        recurrence=recurrence,
        amplitude=amplitude,
        drift=drift,
        projection=projection,
        gate_flips=flips,
        loss=states.loss[:rows],
        update_cosine=states.update_cosine[:rows],
        looked_at=np.array(looked_at),
        **found._replace(vectors=vectors)._asdict(),
    )


def joined(pieces: Sequence[Motion]) -> Motion:
    """Neighbouring pieces as one, the eigenvectors' signs followed from one to the next.

    Of the eigenvectors only the first and the last are kept.
    """
    sign, followed = 1.0, []
    for number, piece in enumerate(pieces):
        if number and pieces[number - 1].vectors[-1] @ piece.vectors[0] < 0:
            sign = -sign
        followed.append(piece._replace(projection=sign * piece.projection))
    columns = (np.concatenate(column) for column in zip(*followed, strict=True))
    whole = Motion(*columns)
    return whole._replace(vectors=whole.vectors[[0, -1]])


def _joined(stretches: Iterable[Stretch]) -> Stretch:
    parts = list(stretches)
    columns = zip(*(part[1:] for part in parts), strict=True)
    return Stretch(parts[0].first, *map(np.concatenate, columns))


def _padded(array: Float[np.ndarray, "some n"], rows: int) -> Float[np.ndarray, "rows n"]:
    """Rows of NaN after the end of the run, so that one compilation serves all pieces."""
    missing = max(rows - len(array), 0)
    return np.pad(array, ((0, missing), (0, 0)), constant_values=np.nan)[:rows]


def _aligned(vectors: Float[np.ndarray, "looked params"]) -> Float[np.ndarray, "looked params"]:
    """The eigenvectors with such signs that neighbours have positive overlap."""
    overlaps = np.einsum("ij,ij->i", vectors[1:], vectors[:-1])
    turns = np.where(overlaps < 0, -1, 1)
    return vectors * np.concatenate([[1], np.cumprod(turns)])[:, None]


@partial(jax.jit, static_argnames="rows")
def _observe(
    params: Float[Array, "more params"],
    updates: Float[Array, "more params"],
    vectors: Float[Array, "looked params"],
    nearest: Int[Array, " rows"],
    *,
    rows: int,
) -> tuple[Array, Array, Array, Array]:
    norm = partial(jnp.linalg.norm, axis=1)
    step = norm(updates[1 : rows + 1])
    recurrence = [norm(params[lag : rows + lag] - params[:rows]) / step for lag in LAGS]
    offset = (updates[:rows] - updates[1 : rows + 1]) / 4
    drift = (updates[:rows] + updates[1 : rows + 1]) / 2
    projection = jnp.sum(offset * vectors[nearest], axis=1)
    return jnp.stack(recurrence, axis=1), norm(offset), norm(drift), projection


def _gate_flips(run: Run, params: Float[np.ndarray, "more params"]) -> Float[np.ndarray, " rows"]:
    """Part of the gates that change from each row to the next."""
    model = make_model(run.config.model)
    gates = partial(_gates, model, run.layout)
    return np.array(_changes(Partial(gates), run.problem.inputs, params))


def _gates(
    model: FullyConnected | Convolutional, layout: Layout, inputs: Array, vector: Array
) -> Array:
    return model.gates(layout.unflatten(vector), inputs)


@jax.jit
def _changes(gates: Partial, inputs: Array, params: Float[Array, "more params"]) -> Array:
    def change(before: Array, vector: Array) -> tuple[Array, Array]:
        now = gates(inputs, vector)
        part = jnp.mean(now != before) if now.size else jnp.zeros(())
        return now, jnp.where(jnp.all(jnp.isfinite(vector)), part, jnp.nan)

    return jax.lax.scan(change, gates(inputs, params[0]), params[1:])[1]
