"""Rows R_i with H_i = R_iᵀ R_i for the GGN of each example, in the eigenbasis of their mean."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float, PyTree

from dlf_dynamics.checks import check_parameters
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.memory import require_memory
from dlf_dynamics.operators import jacobian
from dlf_dynamics.precision import widened
from dlf_dynamics.problem import Problem, Step
from dlf_dynamics.reprs import brief

MAX_RANK = 2_000
"""Largest number of eigenvectors of the mean curvature in which second moments are represented: 10
applications of their operator take about a minute with 10,000 rows on two cores."""

_MAX_ORDER = 12_000
"""Largest order of a matrix that is diagonalised: 1.2 GB, and it takes minutes."""

_BLOCK_NUMBERS = 2**26
"""Largest count of numbers in a block of the Jacobian: 512 MiB."""

_KEPT_BLOCKS = 4
"""Blocks up to which all are kept; with more, each pair is computed again."""

_EPS = float(np.finfo(float).eps)

_CONVEX = 1e-9
"""Negative part of the curvature in the outputs that passes for rounding, relative to the rest."""


@dataclass(frozen=True)
class CurvatureFactors:
    """Curvatures of the examples, H_i = R_iᵀ R_i + shift, in the eigenbasis of their mean.

    Examples without curvature are left out of the rows but count in `num_examples`.

    Attributes:
        rows: R_i in the first eigenvectors of the mean.
        eigenvalues: eigenvalues of the mean of the R_iᵀ R_i, descending, as many.
        rest: largest eigenvalue of the part of R_i R_iᵀ in the other eigenvectors, with rounding.
        num_examples: n, which the mean divides by.
        shift: curvature that is the same for all examples and in all directions.
        kept: share of the trace of the mean in these eigenvectors.
    """

    rows: Float[np.ndarray, "curved outputs rank"]
    eigenvalues: Float[np.ndarray, " rank"]
    rest: Float[np.ndarray, " curved"]
    num_examples: int
    shift: float = 0.0
    kept: float = 1.0
    __repr__ = brief

    @property
    def rank(self) -> int:
        """Number of eigenvectors."""
        return len(self.eigenvalues)


def factors_of(
    problem: Problem,
    params: PyTree,
    step: Step,
    *,
    scale: Float[np.ndarray, " params"] | None = None,
    max_rank: int = MAX_RANK,
) -> CurvatureFactors:
    """The GGN of each example, for the loss weighted as at a step, in float64.

    Args:
        problem: problem with a model and data, whose outputs do not mix examples.
        params: any pytree of floating-point arrays.
        step: t, for the weights.
        scale: P^-1/2 for a diagonal preconditioner P; the curvatures are then P^-1/2 H_i P^-1/2.
        max_rank: largest number of eigenvectors.

    Raises:
        ConfigError: when the problem mixes examples, is not convex in its outputs, has a parameter
            loss that is no multiple of ‖θ‖², or is too large.
        DataError: when the parameters are not arrays of float32 or float64.
    """
    check_parameters(params)
    with jax.enable_x64(True):
        # A layout restores the types of the parameters, so all is widened before.
        flat, vector = Problem.ravel(*widened((problem, jax.tree.map(jnp.asarray, params))))
        shift = _shift(flat, vector, step)
        if shift and scale is not None:
            raise ConfigError(
                "a part of the loss depends on the parameters alone, and a preconditioner makes "
                "its curvature different in each direction; expected decoupled weight decay, or no "
                "preconditioner"
            )
        roots, curved = _output_roots(flat, vector, step)
        rows = _Rows(flat.take(curved), vector, roots[curved], scale)
        return _reduced(rows, flat.num_examples, shift, max_rank)


def require_batches(problem: Problem, batch_size: int) -> None:
    """Refuses a problem without examples, and batches of more than there are.

    Args:
        problem: problem whose examples are drawn.
        batch_size: B.

    Raises:
        ConfigError: when there are no such batches.
    """
    number = problem.num_examples
    if not problem.has_outputs or number == 0:
        raise ConfigError(
            "the problem has no examples, and mini-batches are drawn of them; expected "
            "Problem(apply, criterion, inputs, targets)"
        )
    if not 1 <= batch_size <= number:
        raise ConfigError(f"batch_size is {batch_size}; expected 1 to {number}, the examples")


def _shift(problem: Problem, vector: Array, step: Step) -> float:
    """The number c such that c·1 is the Hessian of the parameter loss."""
    if problem.parameter_loss is None:
        return 0.0
    # A random vector is, with probability 1, an eigenvector of no other matrix.
    drawn = jnp.asarray(np.random.default_rng(0).standard_normal(vector.size))
    gradient = jax.grad(lambda vector: problem.penalty(vector, step))
    product = np.asarray(jax.jvp(gradient, (vector,), (drawn,))[1])
    number = float(product @ np.asarray(drawn) / float(drawn @ drawn))
    if np.linalg.norm(product - number * np.asarray(drawn)) > 1e-10 * np.linalg.norm(product):
        raise ConfigError(
            "the part of the loss that depends on the parameters alone has a different curvature "
            "in each direction; expected a multiple of ‖θ‖², such as losses.WeightDecay, or none"
        )
    if number < 0:
        raise ConfigError(
            "the part of the loss that depends on the parameters alone has the curvature "
            f"{number:g}; expected at least 0, as mean-square stability is a property of minima"
        )
    return number


def _output_roots(
    problem: Problem, vector: Array, step: Step
) -> tuple[Float[np.ndarray, "examples kept outputs"], np.ndarray]:
    """F_i with F_iᵀ F_i the Hessian of an example's loss in its outputs; which are nonzero."""
    outputs, alone, curvatures = map(np.asarray, _of_outputs(problem, vector, jnp.asarray(step)))
    if not all(np.all(np.isfinite(part)) for part in (outputs, curvatures)):
        raise ConfigError(
            "outputs, or the Hessian of the losses in them, are not finite; expected finite "
            "parameters, inputs and weights"
        )
    if not np.allclose(outputs, alone, rtol=1e-6, atol=1e-6 * np.max(np.abs(outputs), initial=0)):
        raise ConfigError(
            "outputs of an example change with the other examples, as under batch norm in training "
            "mode; expected running statistics, as curvatures of single examples are needed"
        )
    values, vectors = np.linalg.eigh((curvatures + curvatures.swapaxes(1, 2)) / 2)
    largest = np.max(np.abs(values), initial=0.0)
    if np.min(values, initial=0.0) < -_CONVEX * largest:
        raise ConfigError(
            f"the losses are not convex in the outputs: their Hessian has the eigenvalue "
            f"{np.min(values):.3g} (largest: {largest:.3g}); expected a convex criterion and "
            "weights of at least 0, as mean-square stability is a property of minima"
        )
    # Directions of the outputs without curvature in any example, as cross entropy has one.
    most = values[:, -1:]
    kept = np.any(values > 4 * values.shape[1] * _EPS * most, axis=0)
    roots = np.sqrt(np.maximum(values, 0))[:, :, None] * vectors.swapaxes(1, 2)
    return roots[:, kept], np.flatnonzero(most[:, 0] > 0)


@jax.jit
def _of_outputs(problem: Problem, vector: Array, step: Array) -> tuple[Array, Array, Array]:
    """Outputs, outputs of each example by itself, and the Hessian of each loss in its outputs."""
    outputs = problem.outputs(vector)
    curve = problem.output_hessian(outputs, step)
    number, size = len(outputs), prod(outputs.shape[1:])

    def column(unit: Array) -> Array:
        units = jnp.broadcast_to(unit.reshape(outputs.shape[1:]), outputs.shape)
        return curve(units).reshape(number, size)

    columns = jax.vmap(column, out_axes=2)(jnp.eye(size, dtype=outputs.dtype))
    alone = jax.lax.map(lambda example: problem.predict(vector, example[None])[0], problem.inputs)
    return outputs, alone, number * columns


class _Rows:
    """The rows R_i = F_i J_i P^-1/2 of examples, in blocks that fit into memory."""

    def __init__(
        self,
        problem: Problem,
        vector: Array,
        roots: Float[np.ndarray, "examples kept outputs"],
        scale: np.ndarray | None,
    ) -> None:
        self.problem, self.vector, self.roots, self.scale = problem, vector, roots, scale
        self.number, self.width, outputs = roots.shape
        size = max(1, _BLOCK_NUMBERS // max(1, outputs * vector.size))
        self.starts = range(0, self.number, size)
        self.held: dict[int, np.ndarray] = {}

    @property
    def are_held(self) -> bool:
        """Whether all blocks are kept, and not computed again."""
        return len(self.starts) <= _KEPT_BLOCKS

    def __call__(self, start: int) -> Float[np.ndarray, "rows params"]:
        """Rows of the block that starts with an example, one below the other.

        Raises:
            ConfigError: when they are not finite.
        """
        if start in self.held:
            return self.held[start]
        block = np.arange(start, min(start + self.starts.step, self.number))
        jacobians = np.asarray(_jacobian(self.problem.take(block), self.vector), float)
        rows = np.matmul(self.roots[block], jacobians)
        rows = rows if self.scale is None else rows * self.scale
        rows = rows.reshape(-1, self.vector.size)
        if not np.all(np.isfinite(rows)):
            raise ConfigError(
                "the derivatives of the outputs are not finite; expected a model that is "
                "differentiable here: look for square roots, norms and divisions by 0"
            )
        if self.are_held:
            self.held[start] = rows
        return rows

    def gram(self) -> Float[np.ndarray, "rows rows"]:
        """R Rᵀ of all rows."""
        size = self.width * self.starts.step
        gram = np.zeros((self.number * self.width,) * 2)
        for i, start in enumerate(self.starts):
            left = self(start)
            at = slice(i * size, i * size + len(left))
            for j, other in enumerate(self.starts[: i + 1]):
                right = left if i == j else self(other)
                across = slice(j * size, j * size + len(right))
                gram[at, across] = left @ right.T
                gram[across, at] = gram[at, across].T
        return gram


_jacobian = jax.jit(jacobian)


def _reduced(rows: _Rows, num_examples: int, shift: float, max_rank: int) -> CurvatureFactors:
    """The factors in the eigenbasis, by the smaller Gram matrix of rows or columns."""
    number, width, params = rows.number, rows.width, rows.vector.size
    _require_size(rows)
    if number * width == 0:
        none = np.zeros((number, width, 0))
        return CurvatureFactors(none, np.zeros(0), np.zeros(number), num_examples, shift)
    if params <= number * width:
        gram = np.zeros((params, params))
        for start in rows.starts:
            gram += rows(start).T @ rows(start)
        values, vectors = _largest_pairs(gram / num_examples, max_rank)
        factors = np.concatenate([rows(start) @ vectors for start in rows.starts])
        each = (rows(start).reshape(-1, width, params) for start in rows.starts)
        diagonal = np.concatenate([np.matmul(r, r.swapaxes(1, 2)) for r in each])
    else:
        gram = rows.gram()
        indices = np.arange(number * width).reshape(number, width)
        diagonal = gram[indices[:, :, None], indices[:, None, :]]
        values, vectors = _largest_pairs(gram / num_examples, max_rank)
        factors = vectors * np.sqrt(num_examples * values)
    factors = factors.reshape(number, width, -1)
    rest = diagonal - np.matmul(factors, factors.swapaxes(1, 2))
    traces = np.trace(diagonal, axis1=1, axis2=2)
    bound = np.maximum(np.linalg.eigvalsh(rest)[:, -1], 0) + 32 * _EPS * len(gram) * traces
    total = float(np.sum(traces))
    kept = min(float(np.sum(values)) * num_examples / total, 1.0) if total else 1.0
    return CurvatureFactors(factors, values, bound, num_examples, shift, kept)


def _require_size(rows: _Rows) -> None:
    """Refuses problems that would take too long or too much memory."""
    total, params = rows.number * rows.width, rows.vector.size
    order = min(total, params)
    advice = "take fewer examples (problem.take)"
    if order > _MAX_ORDER:
        raise ConfigError(
            f"the curvature has {total:,} rows (examples times outputs) and {params:,} parameters; "
            f"expected at most {_MAX_ORDER:,} of one of them, as a matrix of their products is "
            f"formed: {advice}"
        )
    numbers = total * params if rows.are_held else 2 * _BLOCK_NUMBERS
    require_memory(8 * (4 * order**2 + numbers), "the curvature of the examples", advice)


def _largest_pairs(
    matrix: Float[np.ndarray, "n n"], max_rank: int
) -> tuple[Float[np.ndarray, " rank"], Float[np.ndarray, "n rank"]]:
    """The largest eigenvalues above rounding, descending, and their eigenvectors."""
    order = len(matrix)
    wanted = None if max_rank >= order else [order - max_rank, order - 1]
    # Divide and conquer is several times as fast, but always computes all eigenvectors.
    driver = "evd" if wanted is None else "evr"
    values, vectors = scipy.linalg.eigh(
        matrix, subset_by_index=wanted, check_finite=False, driver=driver
    )
    kept = values > order * _EPS * values[-1]
    return values[kept][::-1], vectors[:, kept][:, ::-1]
