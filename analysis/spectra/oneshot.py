"""Curvature, tangent kernel and stability of a model at one point, without a run.

Parameters are any pytree. Data, parameters and step are arguments of compiled functions: along a
custom training loop each function is compiled once, as long as the problem is the same object or an
equal one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from dlf_dynamics.analysis.linalg.chain import RANK_TOLERANCE, TIGHTER
from dlf_dynamics.analysis.linalg.eigensolver import Eigenpairs, Which, top_eigenpairs
from dlf_dynamics.analysis.linalg.vectors import Form
from dlf_dynamics.analysis.spectra.gram import (
    DEFAULT_K,
    MAX_DENSE,
    KernelProduct,
    gram_matrix,
    output_shape,
    sums_by_blocks,
)
from dlf_dynamics.analysis.spectra.oneshot_results import (
    KernelSpectrum,
    Measurement,
    ParameterEigenpairs,
    Stability,
)
from dlf_dynamics.analysis.stability.changed import required_threshold
from dlf_dynamics.analysis.stability.preconditioner import next_preconditioner
from dlf_dynamics.checks import check_parameters
from dlf_dynamics.errors import ConfigError, DataError
from dlf_dynamics.layout import Layout
from dlf_dynamics.memory import memory_limit
from dlf_dynamics.microbatches import choose_batch_size
from dlf_dynamics.operators import ggn, hessian, preconditioned, remainder
from dlf_dynamics.optimizers import FlatUpdate, is_adaptive
from dlf_dynamics.problem import Problem, Step

Operator = Literal["hessian", "ggn", "remainder"]

_OPERATORS = {"hessian": hessian, "ggn": ggn, "remainder": remainder}


def sharpness(
    problem: Problem,
    params: PyTree,
    *,
    step: Step = 0,
    tol: float | None = None,
    max_matvecs: int = 200,
    batch_size: int | None = None,
    max_memory: str | None = None,
    seed: int = 0,
) -> Measurement:
    """The largest eigenvalue of the Hessian of the loss, as weighted at a step.

    Args:
        problem: problem with a model and data, or a loss alone.
        params: any pytree of floating-point arrays.
        step: t, for the weights.
        tol: residual that counts as converged, relative to the norm of the Hessian; none means
            1e-6, or 1e-3 in float32.
        max_matvecs: Hessian-vector products at most.
        batch_size: examples that go through the model at a time; none takes as many as memory
            holds.
        max_memory: memory for products and their vectors on a device, such as "4GB", by which
            `batch_size` is chosen; none means three quarters of the memory there is.
        seed: seed of the random start vectors.

    Raises:
        ConfigError: when not even one example fits into the memory.
        DataError: when the parameters are not arrays of float32 or float64.
        ValueError: when there are too few products, or the operator is not symmetric.

    >>> problem = Problem.from_loss(lambda p, step: 3 * p["a"] ** 2 + jnp.sum(p["b"] ** 2))
    >>> print(sharpness(problem, {"a": jnp.array(1.0), "b": jnp.ones(4)}))  # doctest: +ELLIPSIS
    eigenvalue 6 ± ..., converged
    """
    solver = _Solver(tol, max_matvecs, batch_size, seed, max_memory=max_memory)
    return Measurement(**_largest(solver.pairs(_Point.of(problem, params), step)))


def top_hessian(
    problem: Problem,
    params: PyTree,
    k: int = 1,
    *,
    which: Which = "largest",
    operator: Operator = "hessian",
    step: Step = 0,
    tol: float | None = None,
    max_matvecs: int = 200,
    batch_size: int | None = None,
    max_memory: str | None = None,
    seed: int = 0,
) -> ParameterEigenpairs:
    """Extreme eigenvalues of the Hessian, with eigenvectors flat and as pytrees.

    Args:
        problem: see `sharpness`, as for all that is not explained here.
        params: any pytree of floating-point arrays.
        k: number of eigenvalues.
        which: end of the spectrum; `both` gives k from each.
        operator: `hessian`, `ggn` (Gauss-Newton) or `remainder` (the Hessian minus the GGN).
        step: t, for the weights.
        tol: residual that counts as converged.
        max_matvecs: products at most.
        batch_size: examples at a time; none chooses, like the next one.
        max_memory: what it may take.
        seed: seed of the random start vectors.

    Raises:
        ConfigError: for a GGN or remainder of a problem without outputs, or when not even one
            example fits into the memory.
        DataError: when the parameters are not arrays of float32 or float64.
        ValueError: when k is too large or there are too few products for it.

    >>> problem = Problem.from_loss(lambda p, step: 3 * p["a"] ** 2 - jnp.sum(p["b"] ** 2))
    >>> found = top_hessian(problem, {"a": jnp.array(1.0), "b": jnp.ones(4)}, which="both")
    >>> found.eigenvalues.round(3).tolist(), found.converged.tolist()
    ([6.0, -2.0], [True, True])
    >>> abs(round(float(found.direction(0)["a"]), 3))
    1.0
    """
    solver = _Solver(tol, max_matvecs, batch_size, seed, max_memory=max_memory)
    point = _Point.of(problem, params)
    pairs = solver.pairs(point, step, k=k, which=which, operator=operator)
    return ParameterEigenpairs(**_attributes(pairs), layout=point.layout)


def ntk_spectrum(
    problem: Problem,
    params: PyTree,
    *,
    num_examples: int | None = 50,
    trace_outputs: bool = True,
    k: int | None = None,
    tol: float | None = None,
    max_matvecs: int = 200,
    batch_size: int | None = None,
    seed: int = 0,
) -> KernelSpectrum:
    """Eigenvalues of the empirical NTK on the first examples; see `spectra.gram`.

    A kernel of up to 1,000 rows is formed. The top eigenvalues of a larger one come from products;
    its trace and rank take as long as computing all its entries. Outputs may have any shape, and
    must not depend on other examples.

    Args:
        problem: problem with a model and data.
        params: any pytree of floating-point arrays.
        num_examples: number of examples; none means all.
        trace_outputs: whether to average the kernel over the outputs.
        k: number of eigenvalues; none means all of a kernel that is formed, and 10 of a larger one.
        tol: see `sharpness`, like the next three.
        max_matvecs: products at most.
        batch_size: examples at a time.
        seed: seed of the random start vectors.

    Raises:
        ConfigError: for a problem without outputs, or when `num_examples` or `k` is less than 1.
        DataError: when the parameters are not arrays of float32 or float64.

    >>> inputs = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> problem = Problem(lambda w, x: x @ w, jnp.subtract, inputs, jnp.zeros(2))
    >>> ntk_spectrum(problem, jnp.zeros(2)).eigenvalues.tolist()
    [9.0, 1.0]
    """
    for name, value in (("num_examples", num_examples), ("k", k)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    flat, vector, *_ = _Point.flat(problem, params)
    count = min(num_examples or problem.num_examples, problem.num_examples)
    part = replace(flat, apply=_Rows(flat.apply)).take(jnp.arange(count))
    num_outputs = output_shape(part, vector)[1]
    size = count if trace_outputs else count * num_outputs
    if size <= MAX_DENSE:
        facts = _dense_kernel(part, vector, trace_outputs, k or size)
    else:
        solver = _Solver(tol, max_matvecs, batch_size, seed)
        facts = _large_kernel(part, vector, size, trace_outputs, min(k or DEFAULT_K, size), solver)
    return KernelSpectrum(**facts, num_examples=count, trace_outputs=trace_outputs)


def stability(
    problem: Problem,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    opt_state: PyTree = None,
    step: Step = 0,
    tol: float | None = None,
    max_matvecs: int = 200,
    batch_size: int | None = None,
    max_memory: str | None = None,
    seed: int = 0,
) -> Stability:
    """Whether full-batch training is stable at a point: sharpness against the threshold.

    For an optimizer that divides by a root mean square of the gradients (RMSProp, Adam) both are
    those of P^-1/2 H P^-1/2, with the preconditioner P of the next update frozen (Cohen et al.
    2022, arXiv 2207.14484). With mini-batches the threshold is only a reference: each update is
    another map.

    Args:
        problem: problem whose loss the optimizer minimises.
        params: parameters before the update of this step.
        optimizer: an optax transformation, linear in the gradients but for a preconditioner, and
            the same for all parameters; make it only once, as each new one is tested (see
            `instability_threshold`).
        opt_state: its state before that update; needed if it holds a preconditioner, or
            hyperparameters that may change (`optax.inject_hyperparams`) and are then used.
        step: t, the number of updates made, for weights and for learning rates that change.
        tol: see `sharpness`, like the next three.
        max_matvecs: products at most; four times as many where an interval holds the threshold.
        batch_size: examples at a time; none chooses, like the next one.
        max_memory: what it may take.
        seed: seed of the random start vectors.

    Raises:
        ConfigError: when the optimizer has no such threshold, `opt_state` is missing, or not even
            one example fits into the memory.
        DataError: when the parameters are not arrays of float32 or float64.

    >>> problem = Problem.from_loss(lambda p, step: 3 * p["a"] ** 2 + jnp.sum(p["b"] ** 2))
    >>> params = {"a": jnp.array(1.0), "b": jnp.ones(4)}
    >>> found = stability(problem, params, optax.sgd(0.25))
    >>> found.verdict, round(found.threshold, 3), round(found.margin, 3)
    ('stable', 8.0, 2.0)
    >>> stability(problem, params, optax.sgd(0.5)).verdict
    'unstable'
    """
    point = _Point.of(problem, params)
    update = FlatUpdate(optimizer, point.layout)
    threshold = required_threshold(update, params, opt_state, int(step))
    solver = _Solver(tol, max_matvecs, batch_size, seed, max_memory=max_memory).within(point)
    scale, label = None, "Hessian of the weighted loss"
    if is_adaptive(optimizer):
        if opt_state is None:
            raise ConfigError(
                "opt_state is missing; expected the state of this adaptive optimizer before the "
                "update, as its preconditioner is in it (optimizer.init(params) at the start)"
            )
        flat, vector, layout, _ = _Point.flat(problem, params)
        scale = next_preconditioner(
            flat, vector, jnp.int32(step), opt_state, update=update, batch_size=solver.batch_size
        )
        scale = scale if point.is_flat else layout.unflatten(scale)
        label = "preconditioned Hessian of the weighted loss, frozen preconditioner"
    pairs = solver.pairs(point, step, scale=scale)
    judged = Stability(**_largest(pairs), threshold=threshold, label=label)
    if judged.converged and judged.verdict == "undecided":
        closer = solver._replace(
            rank_tolerance=TIGHTER * RANK_TOLERANCE, max_matvecs=4 * max_matvecs
        )
        pairs = closer.pairs(point, step, scale=scale)
        closer = Stability(**_largest(pairs), threshold=threshold, label=label)
        judged = closer if closer.converged else judged
    return judged


@dataclass(frozen=True)
class _Product:
    """Products with an operator, as a function of all it depends on; compares by value."""

    operator: Operator
    batch_size: int | None

    def __call__(
        self, problem: Problem, params: PyTree, step: Array, scale: PyTree | None, vector: PyTree
    ) -> PyTree:
        make = _OPERATORS[self.operator]
        matvec = make(problem, params, step, batch_size=self.batch_size)
        return (matvec if scale is None else preconditioned(matvec, scale))(vector)


@dataclass(frozen=True)
class _Rows:
    """A model with its outputs flattened to one row per example; compares by value."""

    apply: Any

    def __call__(self, params: Array, inputs: Array) -> Array:
        outputs = self.apply(params, inputs)
        return outputs.reshape(len(outputs), -1)


class _Solver(NamedTuple):
    """How eigenvalues are found."""

    tol: float | None
    max_matvecs: int
    batch_size: int | None
    seed: int
    rank_tolerance: float | None = None
    max_memory: str | None = None

    def within(self, point: _Point, operator: Operator = "hessian", count: int = 1) -> _Solver:
        """The same with as many examples at a time as memory holds, unless the number is given."""
        if self.batch_size is not None or not point.is_flat:
            return self
        limit, make = memory_limit(self.max_memory), _OPERATORS[operator]
        size, dtype = point.params.size, point.params.dtype
        batch = choose_batch_size(make, point.problem, size, dtype, limit, count=count)
        return self._replace(batch_size=batch)

    def pairs(
        self,
        point: _Point,
        step: Step,
        *,
        k: int = 1,
        which: Which = "largest",
        operator: Operator = "hessian",
        scale: PyTree | None = None,
    ) -> Eigenpairs:
        """Eigenpairs of an operator at a point."""
        if operator not in _OPERATORS:
            raise ConfigError(f"operator is {operator!r}; expected one of {', '.join(_OPERATORS)}")
        count = k * (2 if which == "both" else 1)
        product = _Product(operator, self.within(point, operator, count).batch_size)
        matvec = Partial(product, point.problem, point.params, jnp.int32(step), scale)
        size, dtype = point.layout.size, np.dtype(point.layout.dtypes[0])
        like = None if point.is_flat else point.params
        return self.solve(matvec, size, k, which, dtype, like)

    def solve(
        self,
        matvec: Partial,
        size: int,
        k: int,
        which: Which,
        dtype: Any,
        like: PyTree | None = None,
    ) -> Eigenpairs:
        """Eigenpairs of any symmetric operator."""
        usual = 1e-6 if dtype == np.float64 else 1e-3
        return top_eigenpairs(
            matvec,
            size,
            k,
            which=which,
            tol=usual if self.tol is None else self.tol,
            max_matvecs=self.max_matvecs,
            key=jax.random.key(self.seed),
            rank_tolerance=self.rank_tolerance,
            dtype=dtype,
            like=like,
        )


class _Point(NamedTuple):
    """A problem and its parameters: flat, or as they are laid out on several devices."""

    problem: Problem
    params: Any
    layout: Layout
    is_flat: bool

    @classmethod
    def of(cls, problem: Problem, params: PyTree) -> _Point:
        """The point, flat where all is on one device."""
        check_parameters(params)
        if Form.like(params).mesh is None:
            return cls.flat(problem, params)
        return cls(problem, params, Layout.of(params), is_flat=False)

    @classmethod
    def flat(cls, problem: Problem, params: PyTree) -> _Point:
        """The point as one vector."""
        check_parameters(params)
        layout = Layout.of(params)
        return cls(problem.flat(layout), layout.flatten(params), layout, is_flat=True)


def _attributes(pairs: Eigenpairs) -> dict[str, Any]:
    return {field.name: getattr(pairs, field.name) for field in fields(pairs)}


def _largest(pairs: Eigenpairs) -> dict[str, Any]:
    """The fields of `Measurement` for the first pair."""
    low, high = pairs.intervals[0].tolist()
    return {
        "value": float(pairs.eigenvalues[0]),
        "interval": (low, high),
        "residual": float(pairs.residuals[0]),
        "converged": bool(pairs.converged[0]),
        "num_matvecs": pairs.num_matvecs,
        "message": pairs.message,
    }


_gram = partial(jax.jit, static_argnames="trace_outputs")(gram_matrix)


def _dense_kernel(problem: Problem, params: Array, trace_outputs: bool, k: int) -> dict[str, Any]:
    kernel = np.asarray(_gram(problem, params, trace_outputs=trace_outputs))
    if not np.all(np.isfinite(kernel)):
        raise DataError(
            "the tangent kernel is not finite; expected finite derivatives: look at parameters and "
            "inputs"
        )
    values = np.linalg.eigvalsh(kernel.astype(np.float64))[::-1]
    # Entries are sums of as many products as there are parameters, all of one size at most.
    rounding = len(kernel) * np.finfo(kernel.dtype).eps * np.max(np.abs(values))
    return {
        "eigenvalues": values[:k],
        "residuals": np.zeros(len(values[:k])),
        "intervals": np.stack([values - rounding, values + rounding], axis=-1)[:k],
        "converged": np.ones(len(values[:k]), bool),
        "trace": float(np.sum(values)),
        "effective_rank": float(np.sum(values) ** 2 / np.sum(values**2)),
    }


def _large_kernel(
    problem: Problem,
    params: Array,
    size: int,
    trace_outputs: bool,
    k: int,
    solver: _Solver,
) -> dict[str, Any]:
    # The sums are also taken by class, which is not needed: all examples get one class.
    single = replace(problem, targets=jnp.zeros(problem.num_examples, jnp.int32))
    sums = sums_by_blocks(
        single,
        params,
        num_classes=1,
        trace_outputs=trace_outputs,
        batch_size=solver.batch_size,
    )
    product = KernelProduct(trace_outputs, solver.batch_size)
    pairs = solver.solve(Partial(product, problem, params), size, k, "largest", params.dtype)
    names = ("eigenvalues", "residuals", "intervals", "converged")
    return {name: getattr(pairs, name) for name in names} | {
        "trace": float(sums.trace),
        "effective_rank": float(sums.trace**2 / sums.square),
    }
