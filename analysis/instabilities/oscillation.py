"""`Motion`: what the iterates of a run do from step to step, replayed from its checkpoints."""

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
from dlf_dynamics.analysis.spectra.segments import solve_segment
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
        steps: consecutive ones of the run.
        recurrence: ‖θ_(t+k) - θ_t‖ / ‖θ_(t+1) - θ_t‖ for each k in LAGS; NaN where the run ends
            before.
        amplitude: ‖θ_t - c_t‖, c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1) being the centre; half the
            distance of successive iterates on an orbit of period 2.
        drift: ‖θ_(t+1) - θ_(t-1)‖ / 2, the step of the motion that does not alternate.
        projection: of θ_t - c_t on the top eigenvector at the nearest of the centres that `follow`
            looked at; signed, the sign of the eigenvector being followed.
        gate_flips: hidden units times examples that change side from t to t+1, as a part of all;
            NaN for smooth activations, and for the networks of recorded runs.
        loss: F(θ_t, t), on the examples of the step.
        update_cosine: of the updates θ_(t+1) - θ_t and θ_t - θ_(t-1).
        looked_at: steps at which the curvature was computed, increasing; never step 0, which has no
            centre.
        values: largest eigenvalue of the run's operator at the centres of these.
        intervals: lower and upper ends of the values.
        converged: whether the values are certified; the others decide nothing.
        iterate_intervals: of the largest eigenvalue at the iterates; NaN where that did not
            converge, or was not computed.
        vectors: top eigenvectors at the centres that `follow` looked at, unit, their signs
            followed; of joined pieces the first and the last.
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
        """Of the oscillation at each step, as `periods_of_iterates` tells them."""
        return periods_of_iterates(self.update_cosine, self.recurrence)

    @property
    def looks(self) -> dict[str, np.ndarray]:
        """What is known at the steps that were looked at, but for the eigenvectors, by name."""
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
    """At the centres of some states, and at the iterates if these are among the points."""
    lists = lambda most: [states[i : i + most] for i in range(0, len(states), most)]  # noqa: E731
    thresholds = run_threshold(run).at(np.array([state.step for state in states]))
    found = solve_segment(
        run, solver, lists, points=points, thresholds=thresholds, keep_vectors=True
    )
    at = points.index("centre")
    values, intervals, status, vectors = (
        found[name][:, at, 0] for name in ("eigenvalues", "intervals", "status", "eigenvectors")
    )
    of_iterates = np.full(intervals.shape, np.nan)
    if "iterate" in points:
        at = points.index("iterate")
        known = found["status"][:, at, 0] == CONVERGED
        of_iterates[known] = found["intervals"][known, at, 0]
    return Curvatures(values, intervals, status == CONVERGED, of_iterates, vectors)


def follow(
    replay: Replay, solver: Solver, start: int, stop: int, looked_at: Sequence[int]
) -> Motion:
    """The motion at the steps `start` to `stop` - 1.

    Args:
        replay: of the run.
        solver: for the largest eigenvalue.
        start: first step.
        stop: the step after the last.
        looked_at: at which of them the curvature is computed, at the centre and at the iterate;
            one at least, and not step 0.
    """
    run = replay.run
    states = _joined(replay.stretches(start, min(stop + _AHEAD, replay.last + 1)))
    found = curvatures(run, solver, list(map(states.point, looked_at)), points=POINTS)
    vectors = _aligned(found.vectors)
    rows, steps, looks = stop - start, np.arange(start, stop), np.array(looked_at)
    room = max(rows, replay.length)  # one compilation serves pieces of all lengths
    params, updates = (_padded(part, room + _AHEAD) for part in states[1:3])
    nearest = np.searchsorted((looks[1:] + looks[:-1]) / 2, steps)
    observed = _observe(params, updates, _padded(vectors[nearest], room))
    recurrence, amplitude, drift, projection = (np.array(part)[:rows] for part in observed)
    if start == 0:
        amplitude[0] = drift[0] = projection[0] = np.nan  # there is no step before it
    flips = np.full(rows, np.nan)
    if isinstance(run, TrainedRun) and run.kinks:
        flips = gate_flips(run, params[: room + 1])[:rows]
    return Motion(
        steps=steps,
        recurrence=recurrence,
        amplitude=amplitude,
        drift=drift,
        projection=projection,
        gate_flips=flips,
        loss=states.loss[:rows],
        update_cosine=states.update_cosine[:rows],
        looked_at=looks,
        **found._replace(vectors=vectors)._asdict(),
    )


def looked_further(motion: Motion, steps: Int[np.ndarray, " more"], found: Curvatures) -> Motion:
    """The motion with the curvature at the centres of more steps; eigenvectors are not kept."""
    new = ~np.isin(steps, motion.looked_at)
    order = np.argsort(np.concatenate([motion.looked_at, steps[new]]), kind="stable")
    more = {"looked_at": steps, **found._asdict()}
    whole = {
        name: np.concatenate([column, more[name][new]])[order]
        for name, column in motion.looks.items()
    }
    return motion._replace(**whole)


def looked_again(motion: Motion, steps: Int[np.ndarray, " some"], found: Curvatures) -> Motion:
    """The motion with other values at the centres of some steps that were looked at."""
    rows, looks = np.searchsorted(motion.looked_at, steps), {}
    for name in ("values", "intervals", "converged"):
        looks[name] = np.array(getattr(motion, name))
        looks[name][rows] = getattr(found, name)
    return motion._replace(**looks)


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
    """Rows of NaN after what is known of the run."""
    missing = max(rows - len(array), 0)
    return np.pad(array, ((0, missing), (0, 0)), constant_values=np.nan)[:rows]


def _aligned(vectors: Float[np.ndarray, "looked params"]) -> Float[np.ndarray, "looked params"]:
    """The eigenvectors with such signs that neighbours have positive overlap."""
    overlaps = np.einsum("ij,ij->i", vectors[1:], vectors[:-1])
    turns = np.where(overlaps < 0, -1, 1)
    return vectors * np.concatenate([[1], np.cumprod(turns)])[:, None]


@jax.jit
def _observe(
    params: Float[Array, "more params"],
    updates: Float[Array, "more params"],
    directions: Float[Array, "rows params"],
) -> tuple[Array, Array, Array, Array]:
    rows = len(directions)
    norm = partial(jnp.linalg.norm, axis=1)
    step = norm(updates[1 : rows + 1])
    recurrence = [norm(params[lag : rows + lag] - params[:rows]) / step for lag in LAGS]
    offset = (updates[:rows] - updates[1 : rows + 1]) / 4
    drift = (updates[:rows] + updates[1 : rows + 1]) / 2
    projection = jnp.sum(offset * directions, axis=1)
    return jnp.stack(recurrence, axis=1), norm(offset), norm(drift), projection


def gate_flips(
    run: TrainedRun, params: Float[np.ndarray, "more params"]
) -> Float[np.ndarray, " rows"]:
    """Part of the gates that change from each row to the next."""
    gates = _Gates(make_model(run.config.model), run.layout)
    return np.array(_changes(Partial(gates), run.problem.inputs, params))


@dataclass(frozen=True)
class _Gates:
    """Compares by value, so that all pieces of a run share one compilation."""

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
