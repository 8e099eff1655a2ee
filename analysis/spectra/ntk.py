"""Neural-tangent-kernel spectra along a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dlf_dynamics import tangents
from dlf_dynamics.analysis.devices import filled, map_over_devices, one_ahead, rounded_up
from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.analysis.spectra.gram import (
    DEFAULT_K,
    MAX_DENSE,
    KernelProduct,
    KernelSums,
    dense_eigenvalues,
    dense_sums,
    drawn_evenly,
    gram_matrix,
    kernel_statistics,
    output_shape,
    sums_by_blocks,
)
from dlf_dynamics.config import EngineName
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.labels import ENDS
from dlf_dynamics.problem import Problem
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Checkpoints, Run

_CHUNK_NUMBERS = 2**24

_ENGINES: dict[EngineName, Callable[..., Array]] = {
    "own": gram_matrix,
    "neural-tangents": tangents.empirical_kernel,
}


@dataclass(frozen=True)
class NTKSpectrum:
    """Eigenvalues and statistics of the empirical NTK along a run.

    Where the network or its derivatives are not finite all values are NaN and none has converged.

    Attributes:
        steps: step of each checkpoint.
        eigenvalues: eigenvalues, in descending order.
        num_examples: number of examples that the kernel is taken on, the first ones.
        trace_outputs: whether the kernel is averaged over the outputs; else it is the full one on
            examples and outputs.
        residuals: residuals from fresh products; 0 for a kernel that was formed.
        intervals: lower and upper ends of the interval of each value; for a kernel that was formed,
            the range of rounding.
        converged: whether each value converged; the others are Ritz values, not to be relied on.
        trace: trace of the kernel, ‖J‖_F², divided by the number of outputs if it is traced.
        captured: fraction of the trace in the converged eigenvalues.
        effective_rank: participation ratio of all eigenvalues, as in `KernelStatistics`.
        alignment: centred alignment of the traced kernel on `class_examples` with the labels; NaN
            where all are of one class, and at checkpoints where it was not requested.
        class_blocks: mean of that kernel between classes; where targets are not labels, all
            examples are of one class.
        class_examples: indices of the examples for alignment and class blocks; empty where they are
            those of the eigenvalues.
    """

    steps: Int[np.ndarray, " checkpoints"]
    eigenvalues: Float[np.ndarray, "checkpoints k"]
    num_examples: int
    trace_outputs: bool
    residuals: Float[np.ndarray, "checkpoints k"]
    intervals: Float[np.ndarray, "checkpoints k ends=2"]
    converged: Bool[np.ndarray, "checkpoints k"]
    trace: Float[np.ndarray, " checkpoints"]
    captured: Float[np.ndarray, " checkpoints"]
    effective_rank: Float[np.ndarray, " checkpoints"]
    alignment: Float[np.ndarray, " checkpoints"]
    class_blocks: Float[np.ndarray, "checkpoints classes other_classes"]
    class_examples: tuple[int, ...] = ()
    words = MappingProxyType({"ends": ENDS})
    __repr__ = brief


def ntk_spectrum(
    run: Run,
    checkpoints: Checkpoints | None = None,
    *,
    num_examples: int = 50,
    trace_outputs: bool = True,
    k: int | None = None,
    max_dense: int = MAX_DENSE,
    tol: float | None = None,
    max_matvecs: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
    engine: EngineName = "own",
    aligned: Checkpoints | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> NTKSpectrum:
    """Eigenvalues of the NTK of the first examples, and its trace, rank, alignment and blocks.

    A kernel of at most `max_dense` rows is formed and solved by LAPACK. The top eigenvalues of a
    larger one come from products; its other statistics stay exact, and take as long as computing
    all its entries.

    Sorted data begin with examples of one class, with which no kernel can be aligned. Alignment and
    class blocks are therefore taken on as many drawn evenly; see `balanced_examples`.

    Args:
        run: a recorded run.
        checkpoints: increasing indices into `run.checkpoint_steps`; none means all.
        num_examples: number of examples; 50 in the published figures.
        trace_outputs: whether to average the kernel over the outputs, as neural-tangents'
            `trace_axes=(-1,)` does.
        k: number of eigenvalues; none means all of a kernel that is formed and 10 of a larger one.
        max_dense: number of rows up to which the kernel is formed.
        tol: relative residual that counts as converged; none means 1e-6, or 1e-3 in float32.
        max_matvecs: products per checkpoint at most.
        batch_size: largest number of examples in a pass of a product; none means all.
        seed: seed of the random start vectors; that of a checkpoint depends on its step, too.
        engine: program that forms the kernels.
        aligned: indices of the checkpoints at which alignment and class blocks are computed where
            they need a kernel of their own; none means all.
        progress: called with the number of checkpoints done.

    Raises:
        ConfigError: when neural-tangents is to form a kernel and is not installed, or when the
            kernel is too large to be formed.
        ValueError: when `k` or `batch_size` is less than 1.
    """
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    indices = np.arange(len(run.checkpoint_steps)) if checkpoints is None else checkpoints
    asked: dict[str, Any] = {"num_examples": num_examples, "trace_outputs": trace_outputs}
    check_engine(run, engine, **asked, max_dense=max_dense)
    problem = first_examples(run, num_examples)
    size = _num_rows(run, problem, trace_outputs)
    classes = max(run.num_classes, 1)
    task = _Task(run, np.asarray(indices), problem, classes, trace_outputs, size, engine)
    if size <= max_dense:
        parts = _dense(task, min(k or size, size))
    else:
        if tol is None:
            tol = 1e-6 if run.dtype == "float64" else 1e-3
        count = min(k or DEFAULT_K, size)
        solver = _Solver(count, tol, max(max_matvecs, 2 * count + 2), batch_size, seed)
        parts = _by_products(task, solver)
    done = []
    for part in parts:
        done.append(part)
        progress(sum(len(part.pairs.eigenvalues) for part in done))
    spectrum = _spectrum(task, jax.tree.map(lambda *arrays: np.concatenate(arrays), *done))
    return _with_classes(spectrum, task, balanced_examples(run, num_examples), aligned)


def balanced_examples(run: Run, num_examples: int) -> list[int]:
    """Indices of examples drawn evenly from the classes, at most `MAX_DENSE`.

    Empty if they would be the first `num_examples`, and if targets are not labels.
    """
    if not run.num_classes:
        return []
    labels = np.asarray(run.problem.targets)
    count = min(num_examples, len(labels))
    if np.array_equal(drawn_evenly(labels, count), np.arange(count)):
        return []
    return drawn_evenly(labels, min(count, MAX_DENSE)).tolist()


def _with_classes(
    spectrum: NTKSpectrum, task: _Task, examples: list[int], aligned: Checkpoints | None
) -> NTKSpectrum:
    """Alignment and class blocks on other examples, if any; NaN where not requested."""
    if not examples:
        return spectrum
    chosen = np.isin(task.indices, task.indices if aligned is None else aligned)
    problem = task.run.problem.take(np.array(examples))
    kernels = kernels_along(task.run, task.indices[chosen], problem, engine=task.engine)
    labels, classes = np.asarray(problem.targets), task.num_classes
    parts = [kernel_statistics(dense_sums(k, labels, classes), labels, classes) for k in kernels]
    names = ("alignment", "class_blocks")
    columns = {name: np.full_like(getattr(spectrum, name), np.nan) for name in names}
    for name, column in columns.items():
        column[chosen] = np.concatenate([column[:0], *(getattr(some, name) for some in parts)])
    return replace(spectrum, **columns, class_examples=tuple(examples))


def first_examples(run: Run, num_examples: int) -> Problem:
    """The run's problem on its first examples, or on all where there are fewer.

    Where targets are not class labels, all examples count as of one class.
    """
    problem = run.problem.take(np.arange(min(num_examples, run.problem.num_examples)))
    if run.num_classes:
        return problem
    return replace(problem, targets=jnp.zeros(problem.num_examples, int))


def check_engine(
    run: Run,
    engine: EngineName,
    *,
    num_examples: int,
    trace_outputs: bool = True,
    max_dense: int = MAX_DENSE,
) -> None:
    """Raises for kernels that the engine cannot form; for arguments see `ntk_spectrum`.

    Raises:
        ConfigError: when neural-tangents is to form kernels and is not installed, or they have more
            than `max_dense` rows.
    """
    if engine == "own":
        return
    size = _num_rows(run, first_examples(run, num_examples), trace_outputs)
    if size > max_dense:
        raise ConfigError(
            f"ntk_engine is {engine!r} for a kernel of {size:,} rows; expected at most "
            f"{max_dense:,}, as it forms them: take fewer ntk_examples, or ntk_engine own"
        )
    tangents.neural_tangents()


def _num_rows(run: Run, problem: Problem, trace_outputs: bool) -> int:
    examples, outputs = output_shape(problem, jax.ShapeDtypeStruct((run.num_params,), run.dtype))
    return examples if trace_outputs else examples * outputs


def kernels_along(
    run: Run,
    checkpoints: Checkpoints,
    problem: Problem,
    *,
    trace_outputs: bool = True,
    engine: EngineName = "own",
) -> Iterator[Float[np.ndarray, "kernels size size"]]:
    """The kernels of checkpoints in their order, formed a few at a time to limit memory.

    Args:
        run: a recorded run.
        checkpoints: increasing indices into `run.checkpoint_steps`.
        problem: problem of the run, on the examples of the kernel.
        trace_outputs: whether to average the kernel over the outputs.
        engine: program that forms the kernels.
    """
    size = _num_rows(run, problem, trace_outputs)
    chunk = rounded_up(int(np.clip(_CHUNK_NUMBERS // (run.num_params + size**2), 1, 100)))

    def begun() -> Iterator[tuple[int, Array]]:
        for points in run.points(checkpoints, chunk):
            params = np.stack([point.params for point in filled(points, chunk)])
            yield len(points), _grams(problem, params, trace_outputs=trace_outputs, engine=engine)

    for count, grams in one_ahead(begun()):
        yield np.asarray(grams)[:count]


class _Pairs(NamedTuple):
    """Eigenvalues with residuals and intervals, as in `NTKSpectrum`."""

    eigenvalues: Float[np.ndarray, "kernels k"]
    residuals: Float[np.ndarray, "kernels k"]
    intervals: Float[np.ndarray, "kernels k 2"]
    converged: Bool[np.ndarray, "kernels k"]


class _Part(NamedTuple):
    """Eigenvalues and sums of some kernels."""

    pairs: _Pairs
    sums: KernelSums


class _Task(NamedTuple):
    """The kernels to analyse, and their number of rows."""

    run: Run
    indices: Int[np.ndarray, " checkpoints"]
    problem: Problem
    num_classes: int
    trace_outputs: bool
    rows: int
    engine: EngineName


class _Solver(NamedTuple):
    """Settings of the search for eigenvalues by products."""

    k: int
    tol: float
    max_matvecs: int
    batch_size: int | None
    seed: int


def _dense(task: _Task, k: int) -> Iterator[_Part]:
    labels = np.asarray(task.problem.targets)
    for kernels in kernels_along(
        task.run,
        task.indices,
        task.problem,
        trace_outputs=task.trace_outputs,
        engine=task.engine,
    ):
        yield _Part(_dense_pairs(kernels, k), dense_sums(kernels, labels, task.num_classes))


@partial(jax.jit, static_argnames=("trace_outputs", "engine"))
def _grams(
    problem: Problem,
    params: Float[Array, "checkpoints params"],
    *,
    trace_outputs: bool,
    engine: EngineName,
) -> Float[Array, "checkpoints size size"]:
    formed = _ENGINES[engine]
    return map_over_devices(
        lambda vector: formed(problem, vector, trace_outputs=trace_outputs), params
    )


def _dense_pairs(kernels: Float[np.ndarray, "kernels size size"], k: int) -> _Pairs:
    """The top eigenvalues; NaN where a kernel is not finite."""
    values = dense_eigenvalues(kernels)
    # Backward errors of LAPACK's solvers: a modest multiple of eps times the norm.
    norms = np.max(np.abs(values), axis=1, keepdims=True)
    rounding = kernels.shape[1] * np.finfo(kernels.dtype).eps * norms
    values = values[:, :k]
    return _Pairs(
        values,
        np.where(np.isfinite(values), 0.0, np.nan),
        np.stack([values - rounding, values + rounding], axis=-1),
        np.isfinite(values),
    )


def _by_products(task: _Task, solver: _Solver) -> Iterator[_Part]:
    """One checkpoint after another, by programs that are compiled once for all of them."""
    product = KernelProduct(task.trace_outputs, solver.batch_size)
    for (point,) in task.run.points(task.indices, 1):
        params = jnp.asarray(point.params)
        sums = sums_by_blocks(
            task.problem,
            params,
            num_classes=task.num_classes,
            trace_outputs=task.trace_outputs,
            batch_size=solver.batch_size,
        )
        sums = jax.tree.map(lambda total: np.asarray(total, np.float64)[None], sums)
        pairs = _nothing(solver.k)
        if np.isfinite(sums.square):
            matvec = Partial(product, task.problem, params)
            key = jax.random.fold_in(jax.random.key(solver.seed), point.step)
            pairs = _top_pairs(matvec, task.rows, solver, key, params.dtype)
        yield _Part(pairs, sums)


def _top_pairs(
    matvec: Partial, size: int, solver: _Solver, key: PRNGKeyArray, dtype: Any
) -> _Pairs:
    pairs = top_eigenpairs(
        matvec,
        size,
        solver.k,
        tol=solver.tol,
        max_matvecs=solver.max_matvecs,
        key=key,
        dtype=dtype,
    )
    return _Pairs(*(np.asarray(getattr(pairs, name))[None] for name in _Pairs._fields))


def _nothing(k: int) -> _Pairs:
    nan = np.full((1, k), np.nan)
    return _Pairs(nan, nan, np.full((1, k, 2), np.nan), np.zeros((1, k), bool))


def _spectrum(task: _Task, part: _Part) -> NTKSpectrum:
    pairs = part.pairs
    labels = np.asarray(task.problem.targets)
    statistics = kernel_statistics(part.sums, labels, task.num_classes)
    good = np.sum(np.where(pairs.converged, pairs.eigenvalues, 0), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        captured = good / statistics.trace
    return NTKSpectrum(
        steps=task.run.checkpoint_steps[task.indices],
        num_examples=len(labels),
        trace_outputs=task.trace_outputs,
        captured=captured,
        **pairs._asdict(),
        **statistics._asdict(),
    )
