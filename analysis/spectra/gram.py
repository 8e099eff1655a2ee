"""The neural tangent kernel of some examples: its matrix, its products and sums of its entries.

The kernel is Θ = J Jᵀ, with the Jacobian J of all outputs (Jacot, Gabriel and Hongler, 2018, Eq.
4). The traced kernel is averaged over the outputs, K_nm = Σ_i J_ni · J_mi / C, one row per example.
The full kernel has rows for the outputs of the first example, then of the second, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.operators import jacobian, ntk
from dlf_dynamics.problem import Problem
from dlf_dynamics.reprs import brief

MAX_DENSE = 1_000
"""Rows up to which a kernel is formed and all its eigenvalues are found, in a second or two."""

DEFAULT_K = 10
"""Number of eigenvalues of a larger kernel, by default."""

_BLOCK_NUMBERS = 2**24
"""Numbers at most in each of the two blocks of the Jacobian that are held at once: 128 MiB in
float64. A block has one example at least."""

_Carry = TypeVar("_Carry")


def gram_matrix(
    problem: Problem,
    params: Float[Array, " params"],
    *,
    trace_outputs: bool = True,
    block_numbers: int = _BLOCK_NUMBERS,
) -> Float[Array, "size size"]:
    """The kernel as a matrix, by pairs of blocks of examples.

    Args:
        problem: problem with flat parameters; outputs must not depend on other examples.
        params: θ.
        trace_outputs: whether the kernel is averaged over the outputs.
        block_numbers: numbers at most in a block of the Jacobian.

    >>> inputs = jnp.array([[1.0, 0.0], [2.0, 1.0]])
    >>> problem = Problem(lambda w, x: (x @ w)[:, None], jnp.subtract, inputs, jnp.zeros(2))
    >>> gram_matrix(problem, jnp.zeros(2)).tolist()
    [[1.0, 2.0], [2.0, 5.0]]
    """
    blocks = _Blocks.of(problem, params, block_numbers)
    side = 1 if trace_outputs else blocks.num_outputs
    start = jnp.zeros((blocks.number * blocks.size * side,) * 2, params.dtype)

    def put(kernel: Array, block: Array, i: Array, j: Array) -> Array:
        if blocks.number == 1:
            return block
        at, across = i * len(block), j * len(block)
        kernel = jax.lax.dynamic_update_slice(kernel, block, (at, across))
        return jax.lax.dynamic_update_slice(kernel, block.T, (across, at))

    kernel = _over_pairs(put, start, blocks, problem, params, trace_outputs)
    size = blocks.num_examples * side
    return kernel[:size, :size]


@dataclass(frozen=True)
class KernelProduct:
    """Products with the kernel, which is not formed, as a function of problem, θ and vector.

    It compares by value, so that one compilation serves all problems of one shape and all θ.

    Attributes:
        trace_outputs: whether the kernel is averaged over the outputs.
        batch_size: largest number of examples in a pass; none means all.

    >>> inputs = jnp.array([[1.0, 0.0], [2.0, 1.0]])
    >>> problem = Problem(lambda w, x: (x @ w)[:, None], jnp.subtract, inputs, jnp.zeros(2))
    >>> KernelProduct(trace_outputs=True)(problem, jnp.zeros(2), jnp.array([1.0, 0.0])).tolist()
    [1.0, 2.0]
    """

    trace_outputs: bool
    batch_size: int | None = None

    def __call__(
        self, problem: Problem, params: Float[Array, " params"], vector: Float[Array, " size"]
    ) -> Float[Array, " size"]:
        """K v, or Θ v.

        Raises:
            ValueError: when `batch_size` is less than 1.
        """
        matvec = ntk(problem, params, batch_size=self.batch_size)
        if not self.trace_outputs:
            return matvec(vector)
        outputs = jnp.eye(output_shape(problem, params)[1], dtype=vector.dtype)

        # Of the full kernel only the blocks of equal outputs belong to the traced one.
        def add(total: Array, output: Array) -> tuple[Array, None]:
            product = matvec(jnp.outer(vector, output).reshape(-1))
            return total + product.reshape(len(vector), -1) @ output, None

        total, _ = jax.lax.scan(add, jnp.zeros_like(vector), outputs)
        return total / len(outputs)


class KernelSums(NamedTuple):
    """Sums over the entries of a kernel; leading axes are those of several kernels.

    Attributes:
        trace: trace of the kernel, the sum of its eigenvalues.
        square: squared Frobenius norm of the kernel, the sum of its squared eigenvalues.
        centred_square: squared Frobenius norm of the centred traced kernel, H K H, H = 1 - 11ᵀ/N.
        centred_within: sum of the entries of H K H between examples of the same class.
        class_sums: sums of the entries of the traced kernel between the examples of two classes.
    """

    trace: Float[Array | np.ndarray, "*kernels"]
    square: Float[Array | np.ndarray, "*kernels"]
    centred_square: Float[Array | np.ndarray, "*kernels"]
    centred_within: Float[Array | np.ndarray, "*kernels"]
    class_sums: Float[Array | np.ndarray, "*kernels classes classes"]


class KernelStatistics(NamedTuple):
    """Statistics of a kernel; leading axes are those of several kernels.

    Attributes:
        trace: trace of the kernel.
        effective_rank: participation ratio (Σ λ)² / Σ λ² of its eigenvalues, (tr K)² / ‖K‖_F²: r
            for r equal ones and zeros.
        alignment: ⟨HKH, YYᵀ⟩ / (‖HKH‖ ‖HYYᵀH‖), of the traced kernel with the labels, centred by
            H = 1 - 11ᵀ/N (Cortes, Mohri and Rostamizadeh, 2012; uncentred: Cristianini and others,
            2001), Y the labels one-hot; NaN when the examples are of one class.
        class_blocks: mean of the traced kernel between the examples of one class and those of
            another; NaN where a class has none.
    """

    trace: Float[np.ndarray, "*kernels"]
    effective_rank: Float[np.ndarray, "*kernels"]
    alignment: Float[np.ndarray, "*kernels"]
    class_blocks: Float[np.ndarray, "*kernels classes classes"]
    __repr__ = brief


def kernel_statistics(
    sums: KernelSums, labels: Int[np.ndarray, " examples"], num_classes: int
) -> KernelStatistics:
    """Statistics of kernels on examples with these labels."""
    counts = np.bincount(labels, minlength=num_classes)
    pairs = np.outer(counts, counts)
    trace, square, centred_square, within, class_sums = map(np.asarray, sums)
    several = np.count_nonzero(counts) > 1
    of_labels = np.linalg.norm(np.diag(counts) - pairs / len(labels)) if several else np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        return KernelStatistics(
            trace,
            trace**2 / square,
            within / (np.sqrt(centred_square) * of_labels),
            class_sums / np.where(pairs > 0, pairs, np.nan),
        )


def dense_eigenvalues(
    kernels: Float[np.ndarray, "kernels size size"],
) -> Float[np.ndarray, "kernels size"]:
    """All eigenvalues, in descending order; NaN where a kernel is not finite."""
    finite = np.all(np.isfinite(kernels), axis=(1, 2))
    values = np.full(kernels.shape[:2], np.nan)
    # XLA's dense eigensolver is several times slower than LAPACK through NumPy.
    values[finite] = np.linalg.eigvalsh(kernels[finite])[:, ::-1]
    return values


def drawn_evenly(labels: Int[np.ndarray, " examples"], count: int) -> Int[np.ndarray, " count"]:
    """Indices of the first examples of each class, as equal in number as possible.

    >>> drawn_evenly(np.array([0, 0, 0, 0, 1, 2, 2]), 5).tolist()
    [0, 1, 4, 5, 6]
    """
    order = np.argsort(labels, kind="stable")
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    # The first of every class, then the second of every class, and so on.
    return np.sort(np.argsort(rank, kind="stable")[:count])


def dense_sums(
    kernels: Float[np.ndarray, "kernels size size"],
    labels: Int[np.ndarray, " examples"],
    num_classes: int,
) -> KernelSums:
    """Sums over kernels that were formed, traced ones or full ones."""
    kernels = kernels.astype(np.float64, copy=False)
    traced, (count, size, _), num_examples = kernels, kernels.shape, len(labels)
    if size > num_examples:
        apart = kernels.reshape(count, *[num_examples, size // num_examples] * 2)
        traced = np.einsum("kaibi->kab", apart) * num_examples / size
    means = np.mean(traced, axis=2)
    centred = traced - means[:, None]
    centred -= (means - np.mean(means, axis=1, keepdims=True))[:, :, None]
    members = np.eye(num_classes)[labels]
    return KernelSums(
        np.trace(kernels, axis1=1, axis2=2),
        np.einsum("kab,kab->k", kernels, kernels),
        np.einsum("kab,kab->k", centred, centred),
        np.einsum("kab,ab->k", centred, members @ members.T),
        members.T @ traced @ members,
    )


@partial(jax.jit, static_argnames=("num_classes", "trace_outputs", "batch_size", "block_numbers"))
def sums_by_blocks(
    problem: Problem,
    params: Float[Array, " params"],
    *,
    num_classes: int,
    trace_outputs: bool,
    batch_size: int | None = None,
    block_numbers: int = _BLOCK_NUMBERS,
) -> KernelSums:
    """Sums over a kernel that is too large to be held, exact but for rounding.

    It takes as long as forming the kernel, as all entries are computed.

    Args:
        problem: problem with flat parameters and class labels; outputs must not depend on other
            examples.
        params: θ.
        num_classes: number of classes.
        trace_outputs: whether the kernel is averaged over the outputs.
        batch_size: largest number of examples in a pass; none means all.
        block_numbers: numbers at most in a block of the Jacobian.

    Raises:
        ValueError: when `batch_size` is less than 1.
    """
    blocks = _Blocks.of(problem, params, block_numbers)
    ones = jnp.ones(blocks.num_examples, params.dtype)
    means = KernelProduct(True, batch_size)(problem, params, ones) / blocks.num_examples
    members = jax.nn.one_hot(problem.targets.astype(jnp.int32), num_classes, dtype=params.dtype)

    def add(sums: KernelSums, block: Array, i: Array, j: Array) -> KernelSums:
        once = _sums_of_block(block, blocks, means, members, i, j)
        mirrored = once._replace(trace=0 * once.trace, class_sums=once.class_sums.T)
        both = jax.tree.map(lambda a, b: a + jnp.where(i == j, 0, b), once, mirrored)
        return jax.tree.map(jnp.add, sums, both)

    zero = jnp.zeros((), params.dtype)
    start = KernelSums(zero, zero, zero, zero, jnp.zeros((num_classes,) * 2, params.dtype))
    return _over_pairs(add, start, blocks, problem, params, trace_outputs)


def _sums_of_block(
    block: Array, blocks: _Blocks, means: Array, members: Array, i: Array, j: Array
) -> KernelSums:
    """Sums over the block (i, j), whose padding rows are zero."""
    (at, inside), (across, inside_too) = blocks.rows(i), blocks.rows(j)
    traced = block
    if len(block) > blocks.size:
        apart = block.reshape(*[blocks.size, blocks.num_outputs] * 2)
        traced = jnp.einsum("aibi->ab", apart) / blocks.num_outputs
    centred = traced - means[at, None] - means[across] + jnp.mean(means)
    centred = jnp.where(inside[:, None] & inside_too, centred, 0)
    return KernelSums(
        trace=jnp.where(i == j, jnp.trace(block), 0),
        square=jnp.sum(block**2),
        centred_square=jnp.sum(centred**2),
        centred_within=jnp.sum(centred * _matmul(members[at], members[across].T)),
        class_sums=_matmul(_matmul(members[at].T, traced), members[across]),
    )


def output_shape(problem: Problem, params: Array | jax.ShapeDtypeStruct) -> tuple[int, int]:
    """Numbers of examples and of outputs."""
    shape = jax.eval_shape(problem.outputs, params).shape
    return shape[0], prod(shape[1:])


class _Blocks(NamedTuple):
    """Examples in blocks of equal size, the last one padded."""

    num_examples: int
    num_outputs: int
    size: int
    number: int

    @classmethod
    def of(cls, problem: Problem, params: Array, block_numbers: int) -> _Blocks:
        num_examples, num_outputs = output_shape(problem, params)
        most = max(1, block_numbers // (num_outputs * params.size))
        number = -(-num_examples // most)
        return cls(num_examples, num_outputs, -(-num_examples // number), number)

    def rows(self, block: Array) -> tuple[Array, Array]:
        """Examples of a block, and which of them are not padding."""
        examples = block * self.size + jnp.arange(self.size)
        return jnp.minimum(examples, self.num_examples - 1), examples < self.num_examples


def _over_pairs(
    visit: Callable[[_Carry, Array, Array, Array], _Carry],
    start: _Carry,
    blocks: _Blocks,
    problem: Problem,
    params: Array,
    trace_outputs: bool,
) -> _Carry:
    """Passes the blocks (i, j) of the kernel, j up to i, to `visit`; zeros pad the last ones."""

    def jacobian_of(i: Array) -> Array:
        if blocks.number == 1:
            jac = jacobian(problem, params)
        else:
            examples, inside = blocks.rows(i)
            jac = jnp.where(inside[:, None, None], jacobian(problem.take(examples), params), 0)
        return jac.reshape(blocks.size if trace_outputs else blocks.size * blocks.num_outputs, -1)

    def entry(i: Array, j: Array, left: Array, right: Array, carry: _Carry) -> _Carry:
        block = _matmul(left, right.T)
        return visit(carry, block / blocks.num_outputs if trace_outputs else block, i, j)

    def row(i: Array, carry: _Carry) -> _Carry:
        left = jacobian_of(i)
        return jax.lax.fori_loop(
            0, i + 1, lambda j, carry: entry(i, j, left, jacobian_of(j), carry), carry
        )

    if blocks.number == 1:
        first, whole = jnp.int32(0), jacobian_of(jnp.int32(0))
        return entry(first, first, whole, whole, start)
    return jax.lax.fori_loop(0, blocks.number, row, start)


def _matmul(a: Array, b: Array) -> Array:
    """Matrix product in full precision; accelerators round float32 to fewer digits by default."""
    return jnp.matmul(a, b, precision="highest")
