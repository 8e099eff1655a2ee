"""Segments of a run: eigenvalues of the curvature at neighbouring checkpoints.

Small networks go through one compiled Lanczos pass for many checkpoints. Large ones, and what a
pass left open, are solved one after another. Each solve has its own random vectors, so that nothing
depends on earlier results; only a `tracked` analysis starts from the eigenvectors of the checkpoint
before, and certifies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
from dlf_dynamics.analysis.spectra.points import POINTS, both_points, points_of
from dlf_dynamics.analysis.spectra.solver import Solver, key_at
from dlf_dynamics.analysis.workers import beside
from dlf_dynamics.codec import Arrays, typed
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.hdf5 import ContentError
from dlf_dynamics.operators import check_operator
from dlf_dynamics.run import Run

Watch = Callable[[int], None]
"""Called with the number of products that a solve has made so far."""


def unwatched(matvecs: int) -> None:
    """Ignores the number of products."""


Source = Callable[[int], Iterable[list[FlatState]]]
"""States of a run, in lists of at most a given length."""


def as_source(states: list[FlatState]) -> Source:
    """A list of states as a source."""
    return lambda most: (states[i : i + most] for i in range(0, len(states), most))


class _Solved(NamedTuple):
    """Eigenvalues at both points of one or more checkpoints, with the vectors of each."""

    certificate: Certificate
    values: Float[np.ndarray, "checkpoints points k"]
    num_matvecs: np.ndarray
    vectors: Float[np.ndarray, "checkpoints points k n"]


class Segment(NamedTuple):
    """The arrays that `solve_segment` returns; see `eigenvalues.Eigenvalues`.

    Attributes:
        overlaps: inner products with the eigenvectors of the checkpoint before.
        vectors: eigenvectors of the last checkpoint, which the next segment follows.
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
    """The arrays, if they are a segment of this many checkpoints with all values that are wanted.

    Raises:
        ContentError: when they are not.
    """
    lengths = {"checkpoints": checkpoints, "points": len(POINTS), "n": solver.size}
    segment = typed(Segment, arrays, lengths)
    if segment.eigenvalues.shape[-1] < solver.ends.total:
        raise ContentError(f"it has fewer eigenvalues than the {solver.ends.total} that are wanted")
    return segment._asdict()


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
        run: run of the checkpoints.
        solver: what to compute, and how.
        source: states of the checkpoints.
        before: arrays of the segment before, whose last eigenvectors are followed.
        points: points at each checkpoint, out of POINTS.
        thresholds: critical eigenvalue at each checkpoint, NaN for none; where one eigenvalue is
            wanted, its side is decided if tolerances a thousandth as large suffice.
        keep_vectors: whether to return the eigenvectors at all checkpoints.
        watch: called with the products of single solves, not in compiled passes.

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
    products = []
    for vectors in (v for s in solved for v in s.vectors):
        before = vectors[:, :0] if last is None else last
        products.append([overlaps(before[i], vectors[i]) for i in range(len(vectors))])
        last = vectors
    return np.array(products)


def _by_passes(
    run: Run,
    solver: Solver,
    source: Source,
    points: tuple[str, ...],
    thresholds: Float[np.ndarray, " checkpoints"] | None,
    watch: Watch,
) -> list[_Solved]:
    plan, recorded, passes = solver.plan(run), [], []
    for some, (params_at, passed) in one_ahead(
        _passes(run, solver, source, points, thresholds, plan)
    ):
        shape = len(some), len(points)
        recorded += some
        outcome = jax.tree.map(partial(_first_rows, shape=shape), passed)
        passes.append((np.asarray(params_at)[: len(some)], outcome))
    # All at once, as NumPy takes about as long for many checkpoints as for few.
    params_at, passed = jax.tree.map(lambda *leaves: np.concatenate(leaves), *passes)
    evidence = evidence_of(passed, plan)
    certificate = certify(evidence, solver.goal)
    pairs = evidence.pairs
    result = _Solved(certificate, pairs.values, evidence.num_matvecs, pairs.vectors)
    again = worth_going_on(evidence, certificate, solver.max_matvecs)
    for row, point in np.argwhere(again).tolist():
        spent = int(evidence.num_matvecs[row, point])
        state, params = run.state(recorded[row]), params_at[row, point]
        (threshold,) = _rows_of(thresholds, row, 1)
        told = solver.telling(threshold)
        better = _solve(run, told, state, point, params, spent=spent, watch=watch)
        result = _replaced(result, row, point, better, solver)
    return [result]


def _passes(
    run: Run,
    solver: Solver,
    source: Source,
    points: tuple[str, ...],
    thresholds: Float[np.ndarray, " checkpoints"] | None,
    plan: Plan,
) -> Iterator[tuple[list[FlatState], tuple[Array, Pass]]]:
    """Chunks of checkpoints, with their points and the result of the pass at these."""
    wide, chunk, first = Wide(run, needed=solver.precise), solver.chunk(len(points)), 0
    for some in source(chunk):
        params_at, given = _given(
            run, solver, wide, some, points, _rows_of(thresholds, first, chunk)
        )
        with wide.enabled():
            passed = _analyse(*given, curvature=solver.curvature, plan=plan)
        yield some, (params_at, passed)
        first += len(some)


def _given(
    run: Run,
    solver: Solver,
    wide: Wide,
    some: list[FlatState],
    points: tuple[str, ...],
    thresholds: Float[np.ndarray, " chunk"],
) -> tuple[Array, tuple[Any, ...]]:
    """The points of a chunk of checkpoints, and the padded arguments of the pass there."""
    count, chunk = len(points), len(thresholds)
    states = run.dynamics.restored_all(filled(some, chunk))
    params_at = points_of(run.dynamics, states, points=points)
    each = jax.tree.map(lambda leaf: np.repeat(leaf, count, axis=0), states)
    wanted = np.arange(count * chunk) < count * len(some)
    numbers = np.where(wanted, np.tile(np.arange(count), chunk), _IDLE)
    return params_at, (
        wide.dynamics,
        wide(each),
        wide(params_at.reshape(-1, params_at.shape[-1])),
        numbers,
        np.repeat(thresholds, count),
        solver.goal.tolerances,
        solver.root,
    )


@contextmanager
def compiled_beside(run: Run, solver: Solver) -> Iterator[None]:
    """Compiles the pass for small networks while the block runs; JAX caches the program.

    XLA takes seconds for it, and leaves the interpreter alone.
    """
    if not solver.one_pass:
        yield
        return
    wide, chunk = Wide(run, needed=solver.precise), solver.chunk(len(POINTS))
    (point,) = run.points([0], 1)
    _, given = _given(run, solver, wide, point, POINTS, _rows_of(None, 0, chunk))
    with wide.enabled():
        lowered = _analyse.lower(*given, curvature=solver.curvature, plan=solver.plan(run))
    with beside(lowered.compile):
        yield


def _replaced(solved: _Solved, row: int, point: int, evidence: Evidence, solver: Solver) -> _Solved:
    """The result with one checkpoint and point solved anew."""
    new = _of_one(evidence, solver)

    def put(old: np.ndarray, value: np.ndarray) -> np.ndarray:
        old = np.array(old)
        old[row, point] = value[0, 0]
        return old

    return jax.tree.map(put, solved, new)


def _of_one(evidence: Evidence, solver: Solver) -> _Solved:
    """The result at one checkpoint and point."""
    certificate = certify(evidence, solver.goal, tracked=solver.tracked)
    pairs = evidence.pairs
    solved = _Solved(certificate, pairs.values, evidence.num_matvecs, pairs.vectors)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], solved)


def _first_rows(leaf: Array, *, shape: tuple[int, int]) -> np.ndarray:
    """A leaf of the result without padding; axes (checkpoints, points, ...)."""
    return np.asarray(leaf)[: shape[0] * shape[1]].reshape(*shape, *leaf.shape[1:])


_IDLE = -1
"""Stands for the number of a point where there is nothing to solve."""


@partial(jax.jit, static_argnames=("curvature", "plan"))
def _analyse(
    dynamics: Dynamics,
    states: State,
    params_at: Float[Array, "points params"],
    numbers: Int[Array, " points"],
    thresholds: Float[Array, " points"],
    tolerances: tuple[Array, Array, Array],
    root: PRNGKeyArray,
    *,
    curvature: Curvature,
    plan: Plan,
) -> Pass:
    """Lanczos passes at some points, each with its state, its number and a threshold."""

    @jax.jit  # so that it is traced once, by eval_shape
    def solve(point: tuple[State, Array, Array, Array]) -> Pass:
        state, params, number, threshold = point
        operator = partial(curvature, dynamics, state, params)
        return plan.run(operator, key_at(root, state.step, number), (*tolerances[:2], threshold))

    def at_point(point: tuple[State, Array, Array, Array]) -> Pass:
        nothing = jax.tree.map(_missing, jax.eval_shape(solve, point))
        there = jnp.all(jnp.isfinite(point[1])) & (point[2] != _IDLE)
        return jax.lax.cond(there, solve, lambda _: nothing, point)

    # One loop over all points: a loop over those of each state would take longer to compile.
    return map_over_devices(at_point, (states, params_at, numbers, thresholds))


def _missing(leaf: jax.ShapeDtypeStruct) -> Array:
    """A leaf where nothing was computed: NaN, false or 0 products."""
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
        state, at_points = run.state(point), []
        params_at = np.asarray(both_points(run.dynamics, state))[chosen]
        for index, params in enumerate(params_at):
            start = _usable(last[index]) if solver.tracked and last is not None else None
            evidence = _solve(run, told, state, index, params, start, watch=watch)
            at_points.append(_of_one(evidence, solver))
        solved.append(jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *at_points))
        last = solved[-1].vectors[0]
    return solved


def _usable(vectors: np.ndarray) -> np.ndarray | None:
    """Vectors to start from; none after a failed checkpoint or a missing centre."""
    return vectors if np.all(np.isfinite(vectors)) else None


def _solve(
    run: Run,
    solver: Solver,
    state: State,
    index: int,
    params: np.ndarray,
    start: np.ndarray | None = None,
    *,
    spent: int = 0,
    watch: Watch,
) -> Evidence:
    if not np.all(np.isfinite(params)):
        return _nothing(solver, solver.dtype(run))
    wide, key = Wide(run, needed=solver.precise), key_at(solver.root, int(state.step), index)
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
    """A product in float64, called from outside its context."""
    with wide.enabled():
        return np.asarray(_product(operator, jnp.asarray(vector)))


def _nothing(solver: Solver, dtype: Any) -> Evidence:
    """The evidence for a point that does not exist; no product is made."""
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

    It is the first checkpoint of the run, not of the analysis: in a network that has died or
    saturated since, products may consist of rounding alone.

    Raises:
        ConfigError: when the operator is not symmetric, linear and deterministic.
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
