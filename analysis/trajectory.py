"""Segments of a run: eigenvalues of the curvature at neighbouring checkpoints.

Small networks go through one compiled Lanczos pass for many checkpoints, each from a random start.
Large ones are solved one after another, each from the eigenvectors of the one before, and audited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dlf_dynamics.analysis import subspace
from dlf_dynamics.analysis.basis import Operator
from dlf_dynamics.analysis.curvature import Curvature
from dlf_dynamics.analysis.devices import filled, map_over_devices, one_ahead, rounded_up
from dlf_dynamics.analysis.eigensolver import PASS_SIZE, Certificate, certify, make_ends
from dlf_dynamics.analysis.lanczos import lanczos
from dlf_dynamics.analysis.modes import overlaps
from dlf_dynamics.analysis.ritz import Ends, RitzPairs
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.operators import check_operator
from dlf_dynamics.resultfile import Arrays
from dlf_dynamics.run import Run, stack_points
from dlf_dynamics.runwriter import Point

POINTS = ("iterate", "centre")
"""Where the curvature is taken at each checkpoint, in the order of the arrays' second axis."""

CENTRE = ("centre",)
"""The centre alone, at half the price."""

MOST = 64
"""Eigenvalues to which k grows at most, to have all above a fraction of the threshold."""

_SEGMENT_WORK = 10**8
"""Checkpoints times examples times parameters in a segment, roughly: some seconds of work."""

_SEGMENTS = 10, 400
"""Checkpoints in a segment, at least and at most."""

_CHUNK = 25
"""Checkpoints that go through a device in one call of the compiled pass."""


class Solver(NamedTuple):
    """What is fixed for all checkpoints, hashable for `jax.jit`.

    Attributes:
        curvature: which operator.
        size: its order.
        ends: how many eigenvalues.
        tol: relative residual that counts as converged.
        max_matvecs: products per checkpoint and point at most.
        seed: of the random directions.
        segment_length: checkpoints in a segment, from one audit to the next where they are needed.
        cold: whether each checkpoint is solved from random starts alone, also of a large network:
            from the eigenvectors of another one, an eigenvalue that rose since may be missed.
    """

    curvature: Curvature
    size: int
    ends: Ends
    tol: float
    max_matvecs: int
    seed: int
    segment_length: int
    cold: bool = False

    @classmethod
    def from_config(cls, run: Run, config: SpectrumConfig) -> Solver:
        """As configured; `k`, `tol` and the number of products as they come out for the run."""
        curvature = Curvature.from_config(run, config)
        size = curvature.size(run.num_params)
        ends = make_ends(min(config.k, size), size, config.which)
        tol = config.tol or (1e-6 if run.dtype == "float64" else 1e-3)
        work = max(run.problem.num_examples, 1) * run.num_params
        length = int(np.clip(_SEGMENT_WORK // work, *_SEGMENTS))
        length = length if size <= PASS_SIZE else config.audit_every
        return cls(curvature, size, ends, tol, config.max_matvecs, config.seed, length)

    @property
    def one_pass(self) -> bool:
        """Whether many checkpoints go through one compiled pass."""
        return self.size <= PASS_SIZE

    @property
    def chunk(self) -> int:
        """Checkpoints that go through the compiled pass in one call."""
        return rounded_up(min(_CHUNK * jax.device_count(), self.segment_length))

    def doubled(self) -> Solver:
        """For twice as many of the largest eigenvalues, `MOST` at most; products in proportion."""
        k = min(2 * self.ends.top, MOST, self.size)
        products = -(-self.max_matvecs * k // self.ends.top)
        return self._replace(ends=Ends(k, 0), max_matvecs=products)

    def key(self, step: Any) -> PRNGKeyArray:
        """Of the random directions at a step."""
        return jax.random.fold_in(jax.random.key(self.seed), step)


Source = Callable[[int], Iterable[list[Point]]]
"""States of a run, in lists of at most so many."""


class _Solved(NamedTuple):
    """Eigenvalues at both points of one or more checkpoints, with the vectors of each."""

    certificate: Certificate
    values: Float[np.ndarray, "checkpoints points k"]
    num_matvecs: Array
    vectors: Float[np.ndarray, "checkpoints points rows n"]


def solve_segment(
    run: Run,
    solver: Solver,
    source: Source,
    thresholds: Float[np.ndarray, " checkpoints"],
    before: Arrays | None = None,
    *,
    points: tuple[str, ...] = POINTS,
    keep_vectors: bool = False,
) -> Arrays:
    """Eigenvalues at neighbouring checkpoints, at the iterates and at their centres.

    Args:
        run: that they belong to.
        solver: what to compute.
        source: of the checkpoints.
        thresholds: at each; NaN where there is none. Where one is crossed, a warm start is audited.
        before: of the segment before, whose last eigenvectors are followed and started from.
        points: where at each checkpoint, of POINTS.
        keep_vectors: whether to return the eigenvectors at all checkpoints.

    Returns:
        `eigenvalues`, `residuals`, `intervals`, `converged`, `num_matvecs`: axes (checkpoints,
        points, ...), see `hessian.Eigenvalues`; `overlaps` with the eigenvectors of the checkpoint
        before; `vectors`, those of the last one, to go on from; `audits`: index, point, whether
        it agreed, and relative difference; and `eigenvectors` (checkpoints, points, k, n) if kept.
    """
    last = None if before is None else before["vectors"]
    if solver.one_pass:
        solved = _by_passes(run, solver, source, points)
        return _segment(solved, [], last, solver, keep_vectors=keep_vectors)
    solved, audits = _one_by_one(run, solver, source, thresholds, last, points)
    if not all(audit[2] for audit in audits):
        anew = solver._replace(cold=True)
        solved, _ = _one_by_one(run, anew, source, thresholds, None, points)
    return _segment(solved, audits, last, solver, keep_vectors=keep_vectors)


def _segment(
    solved: list[_Solved],
    audits: list[tuple],
    last: np.ndarray | None,
    solver: Solver,
    *,
    keep_vectors: bool,
) -> Arrays:
    parts = [
        {"eigenvalues": s.values, "num_matvecs": s.num_matvecs, **_stored(s.certificate)}
        for s in solved
    ]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["overlaps"] = _overlaps(solved, last, solver.ends.total)
    arrays["vectors"] = solved[-1].vectors[-1]
    arrays["audits"] = np.array(audits, float).reshape(-1, 4)
    if keep_vectors:
        wanted = slice(solver.ends.total)
        arrays["eigenvectors"] = np.concatenate([s.vectors[:, :, wanted] for s in solved])
    return arrays


def _stored(certificate: Certificate) -> Arrays:
    names = ("residuals", "intervals", "converged")
    return {name: getattr(certificate, name) for name in names}


def _overlaps(solved: list[_Solved], last: np.ndarray | None, count: int) -> np.ndarray:
    found = []
    for vectors in (v for s in solved for v in s.vectors):
        before = vectors[:, :0] if last is None else last
        found.append([overlaps(before[i], vectors[i, :count]) for i in range(len(vectors))])
        last = vectors
    return np.array(found)


def _by_passes(run: Run, solver: Solver, source: Source, points: tuple[str, ...]) -> list[_Solved]:
    def begun() -> Iterator[tuple[int, RitzPairs]]:
        for some in source(solver.chunk):
            states = stack_points(run, filled(some, solver.chunk))
            yield len(some), _analyse(run.dynamics, states, solver=solver, points=points)

    solved = []
    for count, pairs in one_ahead(begun()):
        pairs = jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], pairs)
        solved.append(_certified(pairs, pairs.vectors, solver))
    return solved


@partial(jax.jit, static_argnames=("solver", "points"))
def _analyse(
    dynamics: Dynamics, states: State, *, solver: Solver, points: tuple[str, ...]
) -> RitzPairs:
    """Ritz pairs at the iterates and at the centres of a chunk of states, or at one of the two."""

    def at_state(state: State) -> RitzPairs:
        def solve(params: Float[Array, " params"]) -> RitzPairs:
            return lanczos(
                solver.curvature(dynamics, state, params),
                solver.size,
                solver.ends,
                tol=solver.tol,
                max_matvecs=solver.max_matvecs,
                key=solver.key(state.step),
                dtype=params.dtype,
            )

        def at_point(params: Float[Array, " params"]) -> RitzPairs:
            nothing = jax.tree.map(_missing, jax.eval_shape(solve, params))
            return jax.lax.cond(jnp.all(jnp.isfinite(params)), solve, lambda _: nothing, params)

        return jax.lax.map(at_point, _chosen(both_points(dynamics, state), points))

    return map_over_devices(at_state, states)


def _missing(leaf: jax.ShapeDtypeStruct) -> Array:
    """Of what was not computed: NaN, false or no products."""
    fill = jnp.nan if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
    return jnp.full(leaf.shape, fill, leaf.dtype)


@jax.jit
def both_points(dynamics: Dynamics, state: State) -> Float[Array, "points params"]:
    """The iterate, and the centre ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1).

    It is NaN where the update before is not known; at step 0 that is 0.
    """
    following, _ = dynamics.step(state)
    centre = state.params + (following.previous_update - state.previous_update) / 4
    return jnp.stack([state.params, centre])


def _chosen(both: Float[Array, "2 params"], points: tuple[str, ...]) -> Array:
    """Of what `both_points` gives, those that are asked for."""
    return both[np.array([POINTS.index(point) for point in points])]


def _one_by_one(
    run: Run,
    solver: Solver,
    source: Source,
    thresholds: Float[np.ndarray, " checkpoints"],
    last: np.ndarray | None,
    points: tuple[str, ...],
) -> tuple[list[_Solved], list[tuple]]:
    """One checkpoint after another, each from the one before unless the solver is cold.

    They are audited at the last one, and where a threshold is crossed.
    """
    solved, audits = [], []
    sides = [0] * len(points)
    for index, (point,) in enumerate(source(1)):
        state = run.state(point)
        pairs, vectors = [], []
        for place, params in enumerate(_chosen(both_points(run.dynamics, state), points)):
            start = None if solver.cold or last is None else _usable(last[place])
            found = _solve(run, solver, state, params, start)
            side = _side(found.pairs, solver, thresholds[index])
            due = index == len(thresholds) - 1 or side * sides[place] < 0
            if start is not None and due:
                warm, found = found, _solve(run, solver, state, params, None)
                audits.append((index, place, *_compared(warm.pairs, found.pairs, solver)))
                spent = warm.pairs.num_matvecs + found.pairs.num_matvecs
                found = found._replace(pairs=found.pairs._replace(num_matvecs=spent))
            sides[place] = side or sides[place]
            pairs.append(found.pairs)
            missing = solver.ends.total + 2 - len(found.subspace)
            vectors.append(np.pad(found.subspace, ((0, missing), (0, 0))))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves)[None], *pairs)
        last = np.stack(vectors)
        solved.append(_certified(stacked, last[None], solver))
    return solved, audits


def _usable(vectors: np.ndarray) -> np.ndarray | None:
    """Vectors to start from; there are none of a failed checkpoint or a centre that is missing."""
    return vectors if np.all(np.isfinite(vectors)) else None


def _solve(
    run: Run, solver: Solver, state: State, params: Array, start: np.ndarray | None
) -> subspace.Solution:
    if not np.all(np.isfinite(params)):
        return _nothing(solver, params.dtype)
    found = subspace.solve(
        Partial(solver.curvature, run.dynamics, state, params),
        solver.size,
        solver.ends,
        tol=solver.tol,
        max_matvecs=solver.max_matvecs,
        key=solver.key(state.step),
        initial_vectors=None if start is None else jnp.asarray(start),
        dtype=params.dtype,
    )
    return jax.device_get(found)


def _nothing(solver: Solver, dtype: Any) -> subspace.Solution:
    """Of a point that does not exist; no product is made."""
    count, nan = solver.ends.total, jnp.asarray(np.nan, dtype)
    vectors, gram = jnp.full((count, solver.size), nan), jnp.full((count, count), nan)
    guarded, none = jnp.zeros(count, bool), jnp.int32(0)
    pairs = RitzPairs(vectors[:, 0], vectors, gram, guarded, nan, nan, nan, none)
    return jax.device_get(subspace.Solution(pairs, vectors))


def _certified(pairs: RitzPairs, vectors: np.ndarray, solver: Solver) -> _Solved:
    certificate = certify(pairs, solver.ends, solver.tol)
    return _Solved(certificate, np.asarray(pairs.values), pairs.num_matvecs, vectors)


def _side(pairs: RitzPairs, solver: Solver, threshold: float) -> int:
    lower, upper = certify(pairs, solver.ends, solver.tol).intervals[0]
    return int(lower > threshold) - int(upper < threshold)


def _compared(warm: RitzPairs, cold: RitzPairs, solver: Solver) -> tuple[bool, float]:
    """Whether the intervals of each converged value meet, and the largest relative difference."""
    one, other = (certify(pairs, solver.ends, solver.tol) for pairs in (warm, cold))
    both = one.converged & other.converged
    apart = np.maximum(one.intervals[:, 0], other.intervals[:, 0]) > np.minimum(
        one.intervals[:, 1], other.intervals[:, 1]
    )
    difference = np.max(np.abs(warm.values - cold.values)[both], initial=0.0)
    largest = np.max(np.abs(cold.values))
    return not np.any(apart & both), float(difference / largest) if largest else 0.0


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
    dtype = state.params.dtype
    try:
        check_operator(lambda v: _product(operator, v), solver.size, solver.key(0), dtype)
    except ValueError as error:
        raise ConfigError(
            f"the {solver.curvature} cannot be analysed, at step {point.step}: {error}"
        ) from error


@jax.jit
def _product(operator: Operator, vector: Float[Array, " n"]) -> Float[Array, " n"]:
    return operator()(vector)
