"""`Motion`: the motion of a run's iterates from step to step, replayed from its checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.instabilities.periods import LAGS, periods_of_iterates
from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.points import CENTRE, POINTS
from dlf_dynamics.analysis.spectra.replay import Replay, Stretch
from dlf_dynamics.analysis.spectra.segments import as_source, solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.labels import ENDS
from dlf_dynamics.layout import Layout
from dlf_dynamics.models import Convolutional, FullyConnected, make_model
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.trained import TrainedRun

_AHEAD = LAGS[-1]


class Motion(NamedTuple):
    """The motion at consecutive steps, and the curvature at some of them.

    Attributes:
        steps: consecutive steps of the run.
        recurrence: ‖θ_(t+k) - θ_t‖ / ‖θ_(t+1) - θ_t‖ for each k in LAGS; NaN where the run ends
            before.
        amplitude: ‖θ_t - c_t‖, with the centre c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1); half the
            distance of successive iterates on an orbit of period 2.
        drift: ‖θ_(t+1) - θ_(t-1)‖ / 2, the step of the motion that does not alternate.
        projection: projection of θ_t - c_t on the top eigenvector at the nearest centre sampled by
            `follow`; the sign of the eigenvector is followed.
        gate_flips: fraction of hidden units times examples that change side from t to t+1; NaN for
            smooth activations, and for recorded runs.
        loss: F(θ_t, t), on the examples of the step.
        update_cosine: cosine between the updates θ_(t+1) - θ_t and θ_t - θ_(t-1).
        looked_at: steps at which the curvature was computed, increasing; never step 0, which has no
            centre.
        values: largest eigenvalue of the run's operator at the centres of these steps.
        intervals: lower and upper ends of the values.
        converged: whether each value is certified; the others decide nothing.
        iterate_intervals: ends of the largest eigenvalue at the iterates; NaN where it did not
            converge or was not computed.
        vectors: top eigenvectors, of unit length and with followed signs, at the centres sampled by
            `follow`; only the first and the last in joined pieces.
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
    intervals: Float[np.ndarray, "looked ends=2"]
    converged: Bool[np.ndarray, " looked"]
    iterate_intervals: Float[np.ndarray, "looked ends=2"]
    vectors: Float[np.ndarray, "followed params"]
    words = MappingProxyType({"lags": LAGS, "ends": ENDS})
    __repr__ = brief

    @property
    def periods(self) -> Int[np.ndarray, " steps"]:
        """Period at each step, see `periods_of_iterates`."""
        return periods_of_iterates(self.update_cosine, self.recurrence)

    @property
    def looks(self) -> dict[str, np.ndarray]:
        """The fields at the sampled steps by name, without the eigenvectors."""
        names = ("looked_at", "values", "intervals", "converged", "iterate_intervals")
        return {name: getattr(self, name) for name in names}


class Curvatures(NamedTuple):
    """Largest eigenvalues at the centres of some steps, with their eigenvectors; see `Motion`."""

    values: Float[np.ndarray, " looked"]
    intervals: Float[np.ndarray, "looked ends=2"]
    converged: Bool[np.ndarray, " looked"]
    iterate_intervals: Float[np.ndarray, "looked ends=2"]
    vectors: Float[np.ndarray, "looked params"]
    __repr__ = brief


def curvatures(
    run: Run, solver: Solver, states: list[FlatState], *, points: tuple[str, ...] = CENTRE
) -> Curvatures:
    """The curvature at the centres of some states, and at the iterates if these are points, too."""
    thresholds = run_threshold(run).at(np.array([state.step for state in states]))
    source = as_source(states)
    arrays = solve_segment(
        run, solver, source, points=points, thresholds=thresholds, keep_vectors=True
    )
    at = points.index("centre")
    values, intervals, status, vectors = (
        arrays[name][:, at, 0] for name in ("eigenvalues", "intervals", "status", "eigenvectors")
    )
    of_iterates = np.full(intervals.shape, np.nan)
    if "iterate" in points:
        at = points.index("iterate")
        known = arrays["status"][:, at, 0] == CONVERGED
        of_iterates[known] = arrays["intervals"][known, at, 0]
    return Curvatures(values, intervals, status == CONVERGED, of_iterates, vectors)


def follow(
    replay: Replay, solver: Solver, start: int, stop: int, sampled_steps: Sequence[int]
) -> Motion:
    """The motion at the steps `start` to `stop` - 1.

    Args:
        replay: replay of the run.
        solver: solver for the largest eigenvalue.
        start: first step.
        stop: the step after the last.
        sampled_steps: steps at which the curvature is computed, at the centre and at the iterate;
            at least one, and not step 0.
    """
    run = replay.run
    states = _joined(replay.stretches(start, min(stop + _AHEAD, replay.last + 1)))
    looks = curvatures(run, solver, list(map(states.point, sampled_steps)), points=POINTS)
    vectors = _aligned(looks.vectors)
    count, steps, sampled = stop - start, np.arange(start, stop), np.array(sampled_steps)
    room = max(count, replay.length)  # one compilation serves pieces of all lengths
    params, updates = (_padded(part, room + _AHEAD) for part in states[1:3])
    nearest = np.searchsorted((sampled[1:] + sampled[:-1]) / 2, steps)
    observed = _observe(params, updates, _padded(vectors[nearest], room))
    recurrence, amplitude, drift, projection = (np.array(part)[:count] for part in observed)
    if start == 0:
        amplitude[0] = drift[0] = projection[0] = np.nan  # there is no step before it
    flips = np.full(count, np.nan)
    if isinstance(run, TrainedRun) and run.kinks:
        flips = gate_flips(run, params[: room + 1])[:count]
    return Motion(
        steps=steps,
        recurrence=recurrence,
        amplitude=amplitude,
        drift=drift,
        projection=projection,
        gate_flips=flips,
        loss=states.loss[:count],
        update_cosine=states.update_cosine[:count],
        looked_at=sampled,
        **looks._replace(vectors=vectors)._asdict(),
    )


def looked_further(motion: Motion, steps: Int[np.ndarray, " more"], looks: Curvatures) -> Motion:
    """The motion with the curvature at the centres of more steps; eigenvectors are not kept."""
    new = ~np.isin(steps, motion.looked_at)
    order = np.argsort(np.concatenate([motion.looked_at, steps[new]]), kind="stable")
    more = {"looked_at": steps, **looks._asdict()}
    whole = {
        name: np.concatenate([column, more[name][new]])[order]
        for name, column in motion.looks.items()
    }
    return motion._replace(**whole)


def looked_again(motion: Motion, steps: Int[np.ndarray, " some"], other: Curvatures) -> Motion:
    """The motion with other values at the centres of some sampled steps."""
    indices, looks = np.searchsorted(motion.looked_at, steps), {}
    for name in ("values", "intervals", "converged"):
        looks[name] = np.array(getattr(motion, name))
        looks[name][indices] = getattr(other, name)
    return motion._replace(**looks)


def joined(pieces: Sequence[Motion]) -> Motion:
    """Neighbouring pieces as one, with the signs of the eigenvectors followed across them.

    Only the first and the last eigenvector are kept.
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


def _padded(array: Float[np.ndarray, "some n"], length: int) -> Float[np.ndarray, "rows n"]:
    """The rows, padded with NaN."""
    missing = max(length - len(array), 0)
    return np.pad(array, ((0, missing), (0, 0)), constant_values=np.nan)[:length]


def _aligned(vectors: Float[np.ndarray, "looked params"]) -> Float[np.ndarray, "looked params"]:
    """The eigenvectors, with signs such that neighbours have positive overlap."""
    overlaps = np.einsum("ij,ij->i", vectors[1:], vectors[:-1])
    turns = np.where(overlaps < 0, -1, 1)
    return vectors * np.concatenate([[1], np.cumprod(turns)])[:, None]


@jax.jit
def _observe(
    params: Float[Array, "more params"],
    updates: Float[Array, "more params"],
    directions: Float[Array, "rows params"],
) -> tuple[Array, Array, Array, Array]:
    count = len(directions)
    norm = partial(jnp.linalg.norm, axis=1)
    step = norm(updates[1 : count + 1])
    recurrence = [norm(params[lag : count + lag] - params[:count]) / step for lag in LAGS]
    offset = (updates[:count] - updates[1 : count + 1]) / 4
    drift = (updates[:count] + updates[1 : count + 1]) / 2
    projection = jnp.sum(offset * directions, axis=1)
    return jnp.stack(recurrence, axis=1), norm(offset), norm(drift), projection


def gate_flips(
    run: TrainedRun, params: Float[np.ndarray, "more params"]
) -> Float[np.ndarray, " rows"]:
    """Fraction of the gates that change from each row to the next."""
    gates = _Gates(make_model(run.config.model), run.layout)
    return np.array(_changes(Partial(gates), run.problem.inputs, params))


@dataclass(frozen=True)
class _Gates:
    """The gates of a network; compares by value, so that all pieces share one compilation."""

    model: FullyConnected | Convolutional
    layout: Layout

    def __call__(self, inputs: Array, vector: Array) -> Array:
        return self.model.gates(self.layout.unflatten(vector), inputs)


@jax.jit
def _changes(gates: Partial, inputs: Array, params: Float[Array, "more params"]) -> Array:
    def change(before: Array, vector: Array) -> tuple[Array, Array]:
        now = gates(inputs, vector)
        part = jnp.count_nonzero(now != before) / max(now.size, 1)
        return now, jnp.where(jnp.all(jnp.isfinite(vector)), part, jnp.nan)

    return jax.lax.scan(change, gates(inputs, params[0]), params[1:])[1]
