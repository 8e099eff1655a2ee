"""The mode of a step: its side of the threshold, its parameters and its classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.events import sides
from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.analysis.spectra.points import POINTS, both_points
from dlf_dynamics.analysis.spectra.segments import solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.operators import gradient
from dlf_dynamics.optimizers import preconditioner
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run
from dlf_dynamics.trained import TrainedRun

_KINDS = ("weights", "biases")
"""Leaves of each layer of a network of this package, in their order."""

_AT_ONCE = 2**26
"""Examples times parameters of one pass through the model, roughly."""


@dataclass(frozen=True)
class Direction:
    """An eigenvalue at a point of the step, the largest ones first.

    Attributes:
        at: `iterate` or `centre`.
        value: eigenvalue of the run's operator.
        lower: end of its interval.
        upper: end of its interval.
        residual: residual of its eigenvector, from a fresh product.
        converged: whether it is certified; else it decides nothing.
        side: 1 surely above the threshold, -1 surely below, 0 not decided, or without a threshold.
        projection: θ_t - c_t along its unit eigenvector, without a sign; NaN at the iterate, and
            where the operator is preconditioned, whose eigenvectors are no directions of this.
    """

    at: str
    value: float
    lower: float
    upper: float
    residual: float
    converged: bool
    side: int
    projection: float


@dataclass(frozen=True)
class LayerShare:
    """What of the mode lies in some parameters.

    Attributes:
        name: name of the parameters.
        share: sum of the squares of the unit mode's entries there.
    """

    name: str
    share: float


@dataclass(frozen=True)
class ClassShare:
    """What of the curvature along the mode comes from a part of the loss.

    Attributes:
        label: label of the class; -1 for the part of the parameters alone, such as weight decay.
        curvature: second derivative of that part of the loss along the mode.
        share: that as a part of the whole.
    """

    label: int
    curvature: float
    share: float


class Mode(NamedTuple):
    """The top eigenvector at the centre of a step, and the largest eigenvalues.

    Attributes:
        directions: directions at the iterate, then at the centre.
        centre: ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1).
        vector: direction in the parameters, of which the eigenvalue is the second derivative of the
            loss; a unit vector, but with a preconditioner.
        curvature: second derivative of the loss along the vector, by a separate pass; NaN without
            a vector.
        classes: parts of the curvature by class; none without labels of examples.
        layers: shares of the direction by parameters.
    """

    directions: list[Direction]
    centre: Float[np.ndarray, " params"]
    vector: Float[np.ndarray, " params"]
    curvature: float
    classes: list[ClassShare]
    layers: list[LayerShare]

    def first(self, at: str = "centre") -> Direction:
        """The largest eigenvalue at `iterate` or `centre`."""
        return next(row for row in self.directions if row.at == at)


def mode_of(run: Run, solver: Solver, point: FlatState) -> Mode:
    """The mode of a step.

    Args:
        run: the run.
        solver: how the largest eigenvalues are found.
        point: state of the step.
    """
    centre = np.asarray(both_points(run.dynamics, run.state(point))[1])
    directions, vectors = _solved(run, solver, point)
    if not solver.curvature.preconditioned:
        sizes = np.abs(vectors @ (point.params - centre).astype(float))
        projections = iter(sizes.tolist())
        directions = [
            replace(row, projection=next(projections)) if row.at == "centre" else row
            for row in directions
        ]
    if not 0 < np.linalg.norm(vectors[0]) < np.inf:  # of a loss that overflows
        return Mode(directions, centre, np.full_like(vectors[0], np.nan), float("nan"), [], [])
    wide = Wide(run, needed=solver.precise)
    with wide.enabled():
        state, at = wide((run.state(point), jnp.asarray(centre)))
        along = jnp.asarray(vectors[0], at.dtype)
        if solver.curvature.preconditioned:
            size = solver.curvature.batch_size
            along = _unscaled(wide.dynamics, state, along, batch_size=size)
        parts = _class_parts(wide.dynamics.problem, at, along, point.step, run.num_classes)
    along = np.asarray(along, float)
    whole = float(sum(parts.values()))
    # Without labels of examples there are no classes, and nothing has shares in nothing.
    known = parts.items() if run.num_classes and whole else ()
    classes = [ClassShare(label, value, value / whole) for label, value in known]
    return Mode(directions, centre, along, whole, classes, _layer_shares(run, along))


def _solved(
    run: Run, solver: Solver, point: FlatState
) -> tuple[list[Direction], Float[np.ndarray, "k params"]]:
    """The largest eigenvalues, looked at closer where the first one's side is not decided.

    With them come the eigenvectors at the centre.
    """
    limit = run_threshold(run).at(np.array([point.step]))

    def solved(how: Solver) -> tuple[list[Direction], np.ndarray]:
        arrays = solve_segment(
            run, how, lambda _: [[point]], points=POINTS, thresholds=limit, keep_vectors=True
        )
        vectors = arrays["eigenvectors"][0, POINTS.index("centre")]
        return _directions(arrays, limit[0]), vectors.astype(float)

    directions, vectors = solved(solver)
    if any(_open(row) for row in _first(directions)) and np.isfinite(limit[0]):
        closer, tight = solved(solver.tightened(run))
        better = {
            row.at
            for row, old in zip(_first(closer), _first(directions), strict=True)
            if row.converged
            and (not old.converged or row.upper - row.lower < old.upper - old.lower)
        }
        directions = [
            new if new.at in better else old for new, old in zip(closer, directions, strict=True)
        ]
        vectors = tight if "centre" in better else vectors
    return directions, vectors


def _first(directions: list[Direction]) -> list[Direction]:
    """The largest at each point."""
    return [next(row for row in directions if row.at == at) for at in POINTS]


def _open(row: Direction) -> bool:
    return row.side == 0 and np.isfinite(row.value)


def _directions(arrays: dict[str, Any], limit: float) -> list[Direction]:
    directions = []
    for point, at in enumerate(POINTS):
        fine = arrays["status"][0, point] == CONVERGED
        intervals = arrays["intervals"][0, point]
        side = sides(intervals, fine, np.full(len(fine), limit))
        columns = arrays["eigenvalues"][0, point], *intervals.T, arrays["residuals"][0, point]
        directions += [
            Direction(at, *map(float, row), bool(sure), int(where), float("nan"))  # type: ignore[reportCallIssue]
            for row, sure, where in zip(zip(*columns, strict=True), fine, side, strict=True)
        ]
    return directions


@partial(jax.jit, static_argnames="batch_size")
def _unscaled(dynamics: Dynamics, state: State, vector: Array, *, batch_size: int | None) -> Array:
    """P^-1/2 u: the direction in the parameters of an eigenvector of P^-1/2 H P^-1/2."""
    problem = dynamics.problem_at(state.step)
    batch_gradient = gradient(problem, state.params, state.step, batch_size=batch_size)
    return vector * jax.lax.rsqrt(
        preconditioner(dynamics.update, state.optimizer_state, batch_gradient)
    )


def _class_parts(
    problem: Problem, params: Array, vector: Array, step: int, num_classes: int
) -> dict[int, float]:
    """Second derivatives along a direction of the part of each class, and of the penalty."""
    parts = dict.fromkeys(range(num_classes), 0.0) or {0: 0.0}
    if problem.has_outputs:
        labels = np.asarray(problem.targets) if num_classes else np.zeros(problem.num_examples, int)
        size = max(1, min(problem.num_examples, _AT_ONCE // max(params.size, 1)))
        for start in range(0, problem.num_examples, size):
            some = np.arange(start, min(start + size, problem.num_examples))
            bends = np.asarray(_bends(problem.take(some), params, vector, jnp.int32(step)), float)
            # A batch is divided by its own number of examples.
            bends = bends * (len(some) / problem.num_examples)
            for label in parts:
                parts[label] += float(np.sum(bends[labels[some] == label]))
    if problem.parameter_loss is not None or not problem.has_outputs:
        parts[-1] = float(_bent_penalty(problem, params, vector, jnp.int32(step)))
    return parts


@jax.jit
def _bends(
    problem: Problem, params: Array, vector: Array, step: Array
) -> Float[Array, " examples"]:
    """d²/ds² of each example's part of the loss at θ + s v."""
    steady = problem.steady()

    def losses(params: Array) -> Array:
        each = steady.criterion(steady.outputs(params), steady.targets)
        if steady.example_weights is not None:
            each = each * steady.example_weights(step, steady.targets).astype(each.dtype)
        return jnp.sum(each.reshape(len(each), -1), axis=1) / len(each)

    return _second(losses, params, vector)


@jax.jit
def _bent_penalty(problem: Problem, params: Array, vector: Array, step: Array) -> Array:
    return _second(partial(_penalty, problem, step), params, vector)


def _penalty(problem: Problem, step: Array, params: Array) -> Array:
    return problem.penalty(params, step)


def _second(function: Any, params: Array, vector: Array) -> Array:
    """Second derivative along a direction, forward over forward."""
    first = lambda params: jax.jvp(function, (params,), (vector,))[1]  # noqa: E731
    return jax.jvp(first, (params,), (vector,))[1]


def _layer_shares(run: Run, vector: Float[np.ndarray, " params"]) -> list[LayerShare]:
    """Shares of a direction by leaf of the parameters, in their order; they sum to 1."""
    squares = vector**2 / np.sum(vector**2)
    leaves, _ = jax.tree_util.tree_flatten_with_path(run.unravel(np.zeros(run.num_params)))
    shares, start = [], 0
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(run, TrainedRun):
            layer, kind = name.split("/")
            name = f"{_KINDS[int(kind)]} of layer {int(layer) + 1}"
        shares.append(LayerShare(name or "parameters", float(np.sum(squares[start:][: leaf.size]))))
        start += leaf.size
    return shares


def count_above(directions: list[Direction], *, size: int | None = None) -> tuple[int, bool]:
    """How many directions at the centre are surely above the threshold, and whether more may be.

    There are no more than the size, the number of parameters.
    """
    mine = [row for row in directions if row.at == "centre"]
    above = next((number for number, row in enumerate(mine) if row.side <= 0), len(mine))
    if above == len(mine):
        return above, above != size
    return above, mine[above].side == 0


def unit(mode: Mode) -> Float[np.ndarray, " params"]:
    """The mode as a direction of length 1."""
    return mode.vector / np.linalg.norm(mode.vector)
