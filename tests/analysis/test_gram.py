"""Kernels and their sums against closed forms and forward-mode Jacobians of all outputs at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dlf_dynamics import Problem
from dlf_dynamics.analysis.spectra.gram import (
    KernelProduct,
    KernelSums,
    dense_sums,
    gram_matrix,
    kernel_statistics,
    sums_by_blocks,
)

LABELS = np.array([0, 2, 1, 0, 2, 2, 0])
PARAMS = 4 * 5 + 5 + 5 * 3


def network(dtype=np.float64):
    """Seven examples, three outputs and 40 parameters."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(4, 5), (5,), (5, 3), (7, 4)]
    first, bias, second, inputs = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )

    def apply(params, x):
        return jnp.tanh(x @ params[0] + params[1]) @ params[2]

    problem = Problem(apply, lambda o, t: jnp.sum(o**2, 1), inputs, jnp.asarray(LABELS))
    return problem.ravel((first, bias, second))


def exact(problem, params, trace_outputs):
    """The kernel of the Jacobian in forward mode."""
    jac = np.asarray(jax.jacfwd(problem.outputs)(params))
    full = np.einsum("aip,bjp->aibj", jac, jac)
    if trace_outputs:
        return np.einsum("aibi->ab", full) / jac.shape[1]
    return full.reshape(jac.shape[0] * jac.shape[1], -1)


def linear_problem(inputs, num_outputs):
    problem = Problem(
        lambda weights, x: x @ weights,
        lambda o, t: jnp.sum(o, 1),
        jnp.asarray(inputs),
        jnp.zeros(len(inputs), int),
    )
    return problem.ravel(jnp.ones((inputs.shape[1], num_outputs)))


@pytest.mark.parametrize("block_numbers", [2**24, 36])
def test_a_linear_model_has_the_gram_matrix_of_its_inputs(block_numbers):
    inputs = np.random.default_rng(0).standard_normal((7, 4))
    problem, params = linear_problem(inputs, 3)
    gram = inputs @ inputs.T
    for trace_outputs, kernel in ((True, gram), (False, np.kron(gram, np.eye(3)))):
        found = gram_matrix(
            problem, params, trace_outputs=trace_outputs, block_numbers=block_numbers
        )
        np.testing.assert_allclose(found, kernel, atol=1e-14)
        vector = np.random.default_rng(1).standard_normal(len(kernel))
        product = KernelProduct(trace_outputs)(problem, params, jnp.asarray(vector))
        np.testing.assert_allclose(product, kernel @ vector, atol=1e-13)


# Blocks of one example, of two and three with some to fill up, of four, and of all.
@pytest.mark.parametrize("block_numbers", [1, *(n * 3 * PARAMS for n in (2, 3, 4, 7)), 2**24])
@pytest.mark.parametrize("trace_outputs", [True, False])
def test_blocks_give_the_kernel_of_the_whole_jacobian(trace_outputs, block_numbers):
    problem, params = network()
    found = gram_matrix(problem, params, trace_outputs=trace_outputs, block_numbers=block_numbers)
    np.testing.assert_allclose(found, exact(problem, params, trace_outputs), atol=1e-13)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("trace_outputs", [True, False])
def test_products_are_those_of_the_kernel(trace_outputs, batch_size):
    problem, params = network()
    kernel = exact(problem, params, trace_outputs)
    vector = np.random.default_rng(0).standard_normal(len(kernel))
    product = KernelProduct(trace_outputs, batch_size)(problem, params, jnp.asarray(vector))
    np.testing.assert_allclose(product, kernel @ vector, atol=1e-12)


def test_products_of_all_parameters_are_compiled_once():
    problem, params = network()
    traced = []

    @jax.jit
    def times(matvec, vector):
        traced.append(matvec)
        return matvec(vector)

    for shift in range(3):
        times(Partial(KernelProduct(True), problem, params + shift), jnp.ones(7))
    assert len(traced) == 1


@pytest.mark.parametrize("block_numbers", [1, 2 * 3 * PARAMS, 2**24])
@pytest.mark.parametrize("trace_outputs", [True, False])
def test_sums_by_blocks_are_those_of_the_matrix(trace_outputs, block_numbers):
    problem, params = network()
    found = sums_by_blocks(
        problem,
        params,
        num_classes=4,
        trace_outputs=trace_outputs,
        batch_size=3,
        block_numbers=block_numbers,
    )
    kernel = exact(problem, params, trace_outputs)
    traced = exact(problem, params, True)
    centring = np.eye(7) - 1 / 7
    centred = centring @ traced @ centring
    members = np.eye(4)[LABELS]
    expected = KernelSums(
        np.trace(kernel),
        np.linalg.norm(kernel) ** 2,
        np.linalg.norm(centred) ** 2,
        np.sum(centred[LABELS[:, None] == LABELS]),
        members.T @ traced @ members,
    )
    jac = np.asarray(jax.jacfwd(problem.outputs)(params))
    np.testing.assert_allclose(expected.trace * (3 if trace_outputs else 1), np.sum(jac**2))
    dense = jax.tree.map(lambda sums: sums[0], dense_sums(kernel[None], LABELS, 4))
    for name, value in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(getattr(dense, name), value, rtol=1e-12, atol=1e-12)


def test_single_precision_gives_its_digits():
    problem, params = network(np.float32)
    found = sums_by_blocks(
        problem, params, num_classes=3, trace_outputs=True, block_numbers=3 * 3 * PARAMS
    )
    kernel = exact(*network(np.float32), True)
    for value, other in zip(found, dense_sums(kernel[None], LABELS, 3), strict=True):
        assert value.dtype == np.float32
        assert other.dtype == np.float64
        np.testing.assert_allclose(value, other[0], rtol=2e-5, atol=1e-5)


def statistics(kernel, labels, num_classes=3):
    found = kernel_statistics(dense_sums(kernel[None], labels, num_classes), labels, num_classes)
    return jax.tree.map(lambda value: value[0], found)


@pytest.mark.parametrize("scale", [1.0, 1e-100, 1e100])
def test_the_kernel_of_the_labels_is_aligned_with_them(scale):
    members = np.eye(3)[LABELS]
    found = statistics(scale * members @ members.T, LABELS)
    np.testing.assert_allclose(found.alignment, 1, rtol=1e-14)
    np.testing.assert_allclose(found.class_blocks, scale * np.eye(3), rtol=1e-14)
    np.testing.assert_allclose(found.trace, 7 * scale, rtol=1e-14)
    # Its eigenvalues are the sizes of the classes, 3, 1 and 3.
    np.testing.assert_allclose(found.effective_rank, 49 / 19, rtol=1e-14)


def test_alignment_is_the_cosine_of_the_centred_matrices():
    kernel = np.random.default_rng(0).standard_normal((7, 9))
    kernel = kernel @ kernel.T
    centring = np.eye(7) - 1 / 7
    centred, members = centring @ kernel @ centring, np.eye(3)[LABELS]
    labels = centring @ members @ members.T @ centring
    cosine = np.sum(centred * labels) / (np.linalg.norm(centred) * np.linalg.norm(labels))
    assert 0 < cosine < 1
    for shift in (0, 100):  # A constant in all entries is nothing to a centred kernel.
        found = statistics(kernel + shift, LABELS)
        np.testing.assert_allclose(found.alignment, cosine, rtol=1e-12)


def test_alignment_with_one_of_two_balanced_labellings_is_nothing_to_the_other():
    one, other = np.tile([0, 0, 1, 1], 2), np.tile([0, 1], 4)
    members = np.eye(2)[one]
    np.testing.assert_allclose(statistics(members @ members.T, other, 2).alignment, 0, atol=1e-15)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_equal_eigenvalues_count_in_the_effective_rank(rank):
    basis, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))
    kernel = 5 * basis[:, :rank] @ basis[:, :rank].T
    np.testing.assert_allclose(statistics(kernel, LABELS).effective_rank, rank, rtol=1e-13)


def test_class_blocks_are_means_between_classes():
    kernel = np.arange(49.0).reshape(7, 7)
    kernel = kernel + kernel.T
    found = statistics(kernel, LABELS, 4).class_blocks
    for a in range(3):
        for b in range(3):
            mean = np.mean(kernel[a == LABELS][:, b == LABELS])
            np.testing.assert_allclose(found[a, b], mean, rtol=1e-14)
    assert np.all(np.isnan(found[3]))
    assert np.all(np.isnan(found[:, 3]))


def test_examples_of_one_class_have_no_alignment():
    found = statistics(np.eye(7) + 1, np.ones(7, int))
    assert np.isnan(found.alignment)
    np.testing.assert_allclose(found.class_blocks[1, 1], 8 / 7, rtol=1e-14)
    assert np.sum(np.isfinite(found.class_blocks)) == 1


def test_a_kernel_of_zeros_has_neither_rank_nor_alignment():
    found = statistics(np.zeros((7, 7)), LABELS)
    assert np.isnan(found.effective_rank)
    assert np.isnan(found.alignment)
    np.testing.assert_array_equal(found.class_blocks, np.zeros((3, 3)))


@pytest.mark.parametrize("trace_outputs", [True, False])
def test_no_examples_in_a_batch_are_refused(trace_outputs):
    problem, params = network()
    rows = 7 if trace_outputs else 21
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        KernelProduct(trace_outputs, 0)(problem, params, jnp.ones(rows))
    with pytest.raises(ValueError, match="batch_size is 0; expected at least 1"):
        sums_by_blocks(problem, params, num_classes=3, trace_outputs=trace_outputs, batch_size=0)


def test_of_squared_error_at_its_minimum_the_hessian_is_2_over_n_times_the_kernel():
    key = jax.random.key(0)
    inputs = jax.random.normal(key, (4, 2))

    def apply(params, x):
        first, second = params
        return jnp.tanh(x @ first) @ second

    params = (jax.random.normal(key, (2, 5)), jax.random.normal(key, (5, 1)))
    targets = apply(params, inputs)
    problem, vector = Problem(apply, lambda o, t: jnp.sum((o - t) ** 2, 1), inputs, targets).ravel(
        params
    )
    hessian = np.linalg.eigvalsh(jax.hessian(problem.objective)(vector, 0))[::-1]
    kernel = np.linalg.eigvalsh(gram_matrix(problem, vector, trace_outputs=False))[::-1]
    np.testing.assert_allclose(hessian[:4], 2 / 4 * kernel, rtol=1e-10)
