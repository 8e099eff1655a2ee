"""Segments of a run: eigenvalues of the curvature at neighbouring checkpoints.

Small networks go through one compiled Lanczos pass for many checkpoints. Large ones, and what a
pass left open, are solved one after another. Each has random vectors of its own, so that nothing
depends on what was found before; only a `tracked` run follows the eigenvectors of the checkpoint
before, and claims nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics.analysis.devices import filled, map_over_devices, one_ahead, shared_problem
from dlf_dynamics.analysis.linalg.certificate import Certificate, Evidence, certify
from dlf_dynamics.analysis.linalg.eigensolver import Plan, evidence_of, worth_going_on
from dlf_dynamics.analysis.linalg.lanczos import Pass
from dlf_dynamics.analysis.linalg.modes import overlaps
from dlf_dynamics.analysis.linalg.ritz import RitzPairs
from dlf_dynamics.analysis.linalg.solution import solve
from dlf_dynamics.analysis.linalg.vectors import Form, Operator
from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.analysis.spectra.points import POINTS, both_points, places_of
from dlf_dynamics.analysis.spectra.solver import Solver, key_at
from dlf_dynamics.codec import Arrays, typed
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.hdf5 import ContentError
from dlf_dynamics.operators import check_operator
from dlf_dynamics.run import Run

Watch = Callable[[int], None]
"""Told how many products a solve has made so far."""


def unwatched(matvecs: int) -> None:
    """Hears of products, and does nothing."""


Source = Callable[[int], Iterable[list[FlatState]]]
"""States of a run, in lists of at most so many."""


class _Solved(NamedTuple):
    """Eigenvalues at both points of one or more checkpoints, with the vectors of each."""

    certificate: Certificate
    values: Float[np.ndarray, "checkpoints points k"]
    num_matvecs: np.ndarray
    vectors: Float[np.ndarray, "checkpoints points k n"]


class Segment(NamedTuple):
    """The arrays that `solve_segment` gives; see `eigenvalues.Eigenvalues`.

    Attributes:
        overlaps: inner products with the eigenvectors of the checkpoint before.
        vectors: eigenvectors of the last checkpoint, to go on from.
    """

    eigenvalues: Float[np.ndarray, "checkpoints points k"]
    residuals: Float[np.ndarray, "checkpoints points k"]
    intervals: Float[np.ndarray, "checkpoints points k 2"]
    status: Int[np.ndarray, "checkpoints points k"]
    upper_bound: Float[np.ndarray, "checkpoints points"]
    lower_bound: Float[np.ndarray, "checkpoints points"]
    rank_bounds: Float[np.ndarray, "checkpoints points 2"]
    num_matvecs: Int[np.ndarray, "checkpoints points"]
    overlaps: Float[np.ndarray, "checkpoints points k k"]
    vectors: Float[np.ndarray, "points k n"]


def as_segment(arrays: Arrays, solver: Solver, checkpoints: int) -> Arrays:
    """The arrays, if they are a segment of so many checkpoints, with all values that are wanted.

    Raises:
        ContentError: when they are not.
    """
    lengths = {"checkpoints": checkpoints, "points": len(POINTS), "n": solver.size}
    found = typed(Segment, arrays, lengths)
    if found.eigenvalues.shape[-1] < solver.ends.total:
        raise ContentError(f"it has fewer eigenvalues than the {solver.ends.total} that are wanted")
    return found._asdict()


def solve_segment(
    run: Run,
    solver: Solver,
    source: Source,
    before: Arrays | None = None,
    *,
    points: tuple[str, ...] = POINTS,
    thresholds: Float[np.ndarray, " checkpoints"] | None = None,
    keep_vectors: bool = False,
    watch: Watch = unwatched,
) -> Arrays:
    """Eigenvalues at neighbouring checkpoints, at the iterates and at their centres.

    Args:
        run: that they belong to.
        solver: what to compute.
        source: of the checkpoints.
        before: of the segment before, whose last eigenvectors are followed.
        points: where at each checkpoint, of POINTS.
        thresholds: critical eigenvalue at each checkpoint, NaN for none; where one eigenvalue is
            wanted, its side is told, if tolerances a thousandth as large are enough for that.
        keep_vectors: whether to return the eigenvectors at all checkpoints.
        watch: told of the products of single solves; compiled passes say nothing.

    Returns:
        The arrays of `Segment`, and `eigenvectors` (checkpoints, points, k, n) if kept.
    """
    last = None if before is None else before["vectors"]
    if solver.one_pass:
        solved = _by_passes(run, solver, source, points, thresholds, watch)
    else:
        solved = _one_by_one(run, solver, source, last, points, thresholds, watch)
    parts = [
        {"eigenvalues": s.values, "num_matvecs": s.num_matvecs, **s.certificate._asdict()}
        for s in solved
    ]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["overlaps"] = _overlaps(solved, last)
    arrays["vectors"] = solved[-1].vectors[-1]
    if keep_vectors:
        arrays["eigenvectors"] = np.concatenate([s.vectors for s in solved])
    return arrays


def _rows_of(
    thresholds: Float[np.ndarray, " checkpoints"] | None, first: int, count: int
) -> Float[np.ndarray, " count"]:
    """Thresholds of some checkpoints; infinite where there are none."""
    some = np.full(count, np.inf)
    if thresholds is not None:
        known = thresholds[first : first + count]
        some[: len(known)] = np.where(np.isnan(known), np.inf, known)
    return some


def _overlaps(solved: list[_Solved], last: np.ndarray | None) -> np.ndarray:
    found = []
    for vectors in (v for s in solved for v in s.vectors):
        before = vectors[:, :0] if last is None else last
        found.append([overlaps(before[i], vectors[i]) for i in range(len(vectors))])
        last = vectors
    return np.array(found)


def _by_passes(
    run: Run,
    solver: Solver,
    source: Source,
    points: tuple[str, ...],
    thresholds: Float[np.ndarray, " checkpoints"] | None,
    watch: Watch,
) -> list[_Solved]:
    plan, recorded, passes = solver.plan(run), [], []
    for some, (places, found) in one_ahead(_passes(run, solver, source, points, thresholds, plan)):
        shape = len(some), len(points)
        recorded += some
        rows = jax.tree.map(partial(_first_rows, shape=shape), found)
        passes.append((np.asarray(places)[: len(some)], rows))
    # All of them at once: what NumPy does takes about as long for many checkpoints as for few.
    places, found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *passes)
    evidence = evidence_of(found, plan)
    certificate = certify(evidence, solver.goal)
    pairs = evidence.pairs
    result = _Solved(certificate, pairs.values, evidence.num_matvecs, pairs.vectors)
    again = worth_going_on(evidence, certificate, solver.max_matvecs)
    for row, place in np.argwhere(again).tolist():
        spent = int(evidence.num_matvecs[row, place])
        state, params = run.state(recorded[row]), places[row, place]
        (threshold,) = _rows_of(thresholds, row, 1)
        told = solver.telling(threshold)
        better = _solve(run, told, state, place, params, spent=spent, watch=watch)
        result = _replaced(result, row, place, better, solver)
    return [result]


def _passes(
    run: Run,
    solver: Solver,
    source: Source,
    points: tuple[str, ...],
    thresholds: Float[np.ndarray, " checkpoints"] | None,
    plan: Plan,
) -> Iterator[tuple[list[FlatState], tuple[Array, Pass]]]:
    """Chunks of checkpoints, with the points of each and what a pass brought from there."""
    wide, count, chunk = Wide(run, needed=solver.precise), len(points), solver.chunk(len(points))
    first = 0
    for some in source(chunk):
        states = run.dynamics.restored_all(filled(some, chunk))
        places = places_of(run.dynamics, states, points=points)
        each = jax.tree.map(lambda leaf: np.repeat(leaf, count, axis=0), states)
        wanted = np.arange(count * chunk) < count * len(some)
        numbers = np.where(wanted, np.tile(np.arange(count), chunk), _IDLE)
        with wide.enabled():
            found = _analyse(
                wide.dynamics,
                wide(each),
                wide(places.reshape(-1, places.shape[-1])),
                numbers,
                np.repeat(_rows_of(thresholds, first, chunk), count),
                solver.goal.tolerances,
                solver.root,
                curvature=solver.curvature,
                plan=plan,
            )
        yield some, (places, found)
        first += len(some)


def _replaced(solved: _Solved, row: int, place: int, evidence: Evidence, solver: Solver) -> _Solved:
    """With one checkpoint and point solved anew."""
    new = _of_one(evidence, solver)

    def put(old: np.ndarray, value: np.ndarray) -> np.ndarray:
        old = np.array(old)
        old[row, place] = value[0, 0]
        return old

    return jax.tree.map(put, solved, new)


def _of_one(evidence: Evidence, solver: Solver) -> _Solved:
    """Of one checkpoint and point."""
    certificate = certify(evidence, solver.goal, tracked=solver.tracked)
    pairs = evidence.pairs
    solved = _Solved(certificate, pairs.values, evidence.num_matvecs, pairs.vectors)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], solved)


def _first_rows(leaf: Array, *, shape: tuple[int, int]) -> np.ndarray:
    """Of what came back, without what filled up the call; axes (checkpoints, points, ...)."""
    return np.asarray(leaf)[: shape[0] * shape[1]].reshape(*shape, *leaf.shape[1:])


_IDLE = -1
"""In place of a point's number, where there is nothing to solve."""


@partial(jax.jit, static_argnames=("curvature", "plan"))
def _analyse(
    dynamics: Dynamics,
    states: State,
    places: Float[Array, "points params"],
    numbers: Int[Array, " points"],
    thresholds: Float[Array, " points"],
    tolerances: tuple[Array, Array, Array],
    root: PRNGKeyArray,
    *,
    curvature: Curvature,
    plan: Plan,
) -> Pass:
    """What Lanczos passes tell at some points, each with its state, its number and a threshold."""

    @jax.jit  # traced once, though its form is asked for first
    def solve(point: tuple[State, Array, Array, Array]) -> Pass:
        state, params, number, threshold = point
        operator = partial(curvature, dynamics, state, params)
        return plan.run(operator, key_at(root, state.step, number), (*tolerances[:2], threshold))

    def at_point(point: tuple[State, Array, Array, Array]) -> Pass:
        nothing = jax.tree.map(_missing, jax.eval_shape(solve, point))
        there = jnp.all(jnp.isfinite(point[1])) & (point[2] != _IDLE)
        return jax.lax.cond(there, solve, lambda _: nothing, point)

    # One loop over all points: a loop over those of each state would take longer to compile.
    return map_over_devices(at_point, (states, places, numbers, thresholds))


def _missing(leaf: jax.ShapeDtypeStruct) -> Array:
    """Of what was not computed: NaN, false or no products."""
    fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
    return jnp.full(leaf.shape, fill, leaf.dtype)


def _one_by_one(
    run: Run,
    solver: Solver,
    source: Source,
    last: np.ndarray | None,
    points: tuple[str, ...],
    thresholds: Float[np.ndarray, " checkpoints"] | None,
    watch: Watch,
) -> list[_Solved]:
    solved = []
    chosen = np.array([POINTS.index(point) for point in points])
    for row, (point,) in enumerate(source(1)):
        (threshold,) = _rows_of(thresholds, row, 1)
        told = solver.telling(threshold)
        state, found = run.state(point), []
        places = np.asarray(both_points(run.dynamics, state))[chosen]
        for place, params in enumerate(places):
            start = _usable(last[place]) if solver.tracked and last is not None else None
            evidence = _solve(run, told, state, place, params, start, watch=watch)
            found.append(_of_one(evidence, solver))
        solved.append(jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *found))
        last = solved[-1].vectors[0]
    return solved


def _usable(vectors: np.ndarray) -> np.ndarray | None:
    """Vectors to start from; there are none of a failed checkpoint or a centre that is missing."""
    return vectors if np.all(np.isfinite(vectors)) else None


def _solve(
    run: Run,
    solver: Solver,
    state: State,
    place: int,
    params: np.ndarray,
    start: np.ndarray | None = None,
    *,
    spent: int = 0,
    watch: Watch,
) -> Evidence:
    if not np.all(np.isfinite(params)):
        return _nothing(solver, solver.dtype(run))
    wide, key = Wide(run, needed=solver.precise), key_at(solver.root, int(state.step), place)
    settings: dict[str, Any] = {
        "max_matvecs": solver.max_matvecs,
        "key": key,
        "spent": spent,
        "initial_vectors": start,
        "tracked": solver.tracked,
        "progress": watch,
    }
    point, several = (state, jnp.asarray(params)), solver.mesh
    if wide.needed:
        with wide.enabled():
            shared = shared_problem(wide.dynamics.problem, several)
            precise = Partial(solver.curvature, wide.dynamics, *wide(point), shared)
            if solver.small:
                return solve(precise, Form.flat(solver.size, float), solver.goal, **settings)
        settings["certificate_matvec"] = partial(_product_in, wide, precise)
    shared = shared_problem(run.problem, several)
    operator = Partial(solver.curvature, run.dynamics, *point, shared)
    form = Form.flat(solver.size, params.dtype, several)
    return solve(operator, form, solver.goal, **settings)


def _product_in(wide: Wide, operator: Operator, vector: Float[np.ndarray, " n"]) -> np.ndarray:
    """A product in float64, from outside of its context."""
    with wide.enabled():
        return np.asarray(_product(operator, jnp.asarray(vector)))


def _nothing(solver: Solver, dtype: Any) -> Evidence:
    """Of a point that does not exist; no product is made."""
    count, nan = solver.ends.total, np.full((), np.nan)
    vectors = np.full((count, solver.size), nan)
    blank = RitzPairs(vectors[:, 0], vectors, np.full((count, count), nan), nan, nan, nan)
    none, dtype = np.full((), False), np.dtype(dtype)
    zero = np.full((), 0)
    known = (blank, solver.size, None, None, np.full(2, nan), nan, nan, none, zero, nan)
    return Evidence(*known, dtype, dtype)


def below_cut(
    arrays: Arrays, cuts: Float[np.ndarray, " checkpoints"], size: int
) -> Bool[np.ndarray, "checkpoints points"]:
    """Where the smallest of the largest eigenvalues is below a cut, or all of them are there."""
    values = arrays["eigenvalues"]
    with np.errstate(invalid="ignore"):
        return ~(values[..., -1] > cuts[:, None]) | (values.shape[-1] == size)


def check_deterministic(run: Run, solver: Solver) -> None:
    """Makes a few products at the first checkpoint, unless its parameters are not finite.

    There, and not where the analysis begins: of a network that has died or saturated since then,
    rounding may be all that is left of the products.

    Raises:
        ConfigError: when they are not those of a symmetric, linear, deterministic operator.
    """
    ((point,),) = run.points([0], 1)
    if not np.all(np.isfinite(point.params)):
        return
    state = run.state(point)
    operator = Partial(solver.curvature, run.dynamics, state, state.params)
    key, dtype = solver.root, state.params.dtype
    try:
        check_operator(lambda v: _product(operator, v), solver.size, key, dtype)
    except ValueError as error:
        raise ConfigError(
            f"the {solver.curvature} cannot be analysed, at step {point.step}: {error}"
        ) from error


@jax.jit
def _product(operator: Operator, vector: Float[Array, " n"]) -> Float[Array, " n"]:
    return operator()(vector)
