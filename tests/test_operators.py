import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import operators
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import CRITERIA, ClassWeights, cross_entropy, squared_error
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCHEDULE = Triangle(3, 20.0, 12)
PHASES = [0, 1, 3, 6, 7, 12, 17, 30]


def columns(matvec, size):
    """The matrix of an operator, one product per column."""
    return np.asarray(jax.lax.map(matvec, jnp.eye(size))).T


@partial(jax.jit, static_argnames=("operator", "batch_size"))
def matrix(operator, problem, params, step, *, batch_size=None):
    """The matrix that the products with the columns of the identity assemble."""
    matvec = operator(problem, params, step, batch_size=batch_size)
    return jax.lax.map(matvec, jnp.eye(len(params))).T


hessian_matrix = partial(matrix, operators.hessian)
ggn_matrix = partial(matrix, operators.ggn)
remainder_matrix = partial(matrix, operators.remainder)


@partial(jax.jit, static_argnames="batch_size")
def kernel_matrix(problem, params, *, batch_size=None):
    size = problem.outputs(params).size
    return jax.lax.map(operators.ntk(problem, params, batch_size=batch_size), jnp.eye(size)).T


@jax.jit
def dense_hessian(problem, params, step):
    """The matrix as JAX computes it by itself."""
    return jax.hessian(problem.objective)(params, step)


@jax.jit
def dense_jacobian(problem, params):
    """All derivatives of the outputs by forward mode, one row per example and output."""
    return jax.jacfwd(problem.outputs)(params).reshape(-1, len(params))


def output_hessian(loss, outputs, labels, gamma):
    """∂²F/∂f_ni∂f_nj in closed form, a matrix for each example."""
    identity = np.eye(outputs.shape[1])
    if loss == "cross-entropy":
        p = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
        inner = p[:, :, None] * identity - p[:, :, None] * p[:, None, :]
        return gamma[labels][:, None, None] * inner / len(outputs)
    per_output = loss == "squared-error-per-output"
    weights = gamma[None, :, None] if per_output else gamma[labels][:, None, None]
    return 2 * np.broadcast_to(weights * identity, (*outputs.shape, 3)) / len(outputs)


def network(widths, activation, loss, seed=0):
    rng = np.random.default_rng(seed)
    sizes = itertools.pairwise((2, *widths, 3))
    params = tuple((rng.normal(size=(i, o)) / np.sqrt(i), rng.normal(size=o)) for i, o in sizes)
    model = FullyConnected(widths, activation, "published")
    problem = Problem(
        model.apply,
        CRITERIA[loss],
        jnp.asarray(rng.normal(size=(11, 2))),
        jnp.asarray(rng.integers(3, size=11)),
        ClassWeights(SCHEDULE, per_output=loss == "squared-error-per-output"),
    )
    return problem.ravel(params)


def softmax_regression(weight, inputs):
    return inputs @ weight.reshape(4, 3)


@pytest.mark.parametrize("step", PHASES)
def test_softmax_regression_has_the_closed_form_hessian_at_every_phase(step):
    rng = np.random.default_rng(1)
    inputs, labels = rng.normal(size=(20, 4)), rng.integers(3, size=20)
    weight = rng.normal(size=(4, 3))
    problem = Problem(
        softmax_regression,
        cross_entropy,
        jnp.asarray(inputs),
        jnp.asarray(labels),
        ClassWeights(SCHEDULE),
    )
    gamma = np.asarray(SCHEDULE(step))
    expected = np.zeros((12, 12))
    for x, label in zip(inputs, labels, strict=True):
        p = np.exp(x @ weight)
        p /= p.sum()
        # The weight's rows belong to the inputs, so inputs are the slow index here.
        expected += gamma[label] * np.kron(np.outer(x, x), np.diag(p) - np.outer(p, p)) / 20
    params = jnp.asarray(weight.ravel())
    for found in (hessian_matrix(problem, params, step), ggn_matrix(problem, params, step)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert not np.any(remainder_matrix(problem, params, step))
    gradient = sum(
        gamma[y] * np.outer(x, np.exp(x @ weight) / np.exp(x @ weight).sum() - np.eye(3)[y]) / 20
        for x, y in zip(inputs, labels, strict=True)
    )
    found = operators.gradient(problem, params, step)
    np.testing.assert_allclose(found, gradient.ravel(), rtol=0, atol=1e-14)


def test_linear_regression_has_the_hessian_of_its_normal_equations():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, 5))
    problem = Problem(
        lambda w, x: x @ w,
        lambda outputs, targets: (outputs - targets) ** 2,
        jnp.asarray(inputs),
        jnp.asarray(rng.normal(size=30)),
    )
    found = hessian_matrix(problem, jnp.asarray(rng.normal(size=5)), 0)
    np.testing.assert_allclose(found, 2 / 30 * inputs.T @ inputs, rtol=1e-13)


@pytest.mark.parametrize(
    ("widths", "activation", "loss"),
    [
        ((), "identity", "squared-error"),
        ((20,), "relu", "cross-entropy"),
        ((20,), "tanh", "squared-error-per-output"),
        ((7, 5), "softplus", "squared-error"),
        ((4, 5, 4), "gelu", "cross-entropy"),
    ],
)
def test_products_assemble_the_dense_hessian(widths, activation, loss):
    problem, params = network(widths, activation, loss)
    assert len(params) < 200
    for step in (0, 4, 17):
        dense = dense_hessian(problem, params, step)
        found = hessian_matrix(problem, params, step)
        scale = np.abs(dense).max()
        np.testing.assert_allclose(found, dense, rtol=0, atol=1e-13 * scale)
        np.testing.assert_allclose(found, found.T, rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared-error-per-output"])
def test_gradient_and_products_are_limits_of_finite_differences(loss):
    problem, params = network((6, 5), "tanh", loss)
    direction = np.random.default_rng(5).normal(size=len(params))
    direction /= np.linalg.norm(direction)
    h = 1e-4

    @jax.jit
    def along(s):
        return problem.objective(params + s * direction, 7)

    slope = float(along(h) - along(-h)) / (2 * h)
    gradient = jax.jit(operators.gradient)(problem, params, 7)
    assert float(gradient @ direction) == pytest.approx(slope, rel=1e-6)
    curvature = float(along(h) - 2 * along(0.0) + along(-h)) / h**2
    product = hessian_matrix(problem, params, 7) @ direction
    assert float(product @ direction) == pytest.approx(curvature, rel=1e-5, abs=1e-7)


def test_the_hessians_of_the_classes_sum_to_that_of_the_whole():
    problem, params = network((), "identity", "cross-entropy")
    whole = np.asarray(hessian_matrix(problem, params, 4))
    parts = sum(np.asarray(hessian_matrix(problem.of_class(c), params, 4)) for c in range(3))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


def test_the_hessian_of_a_class_is_that_of_its_examples():
    problem, params = network((), "identity", "squared-error-per-output")
    chosen = np.flatnonzero(np.asarray(problem.targets) == 1)
    alone = dense_hessian(problem.take(jnp.asarray(chosen)), params, 4) * len(chosen) / 11
    found = hessian_matrix(problem.of_class(1), params, 4, batch_size=3)
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("loss", "batch_size"),
    [("cross-entropy", 4), ("squared-error", None), ("squared-error-per-output", 4)],
)
def test_gauss_newton_matrix_and_remainder_are_the_two_parts_of_the_hessian(loss, batch_size):
    problem, params = network((4,), "tanh", loss)
    outputs = np.asarray(problem.outputs(params))
    labels, gamma = np.asarray(problem.targets), np.asarray(SCHEDULE(4))
    middle = output_hessian(loss, outputs, labels, gamma)
    jacobian = np.asarray(dense_jacobian(problem, params)).reshape(11, 3, -1)
    gauss_newton = np.einsum("nip,nij,njq->pq", jacobian, middle, jacobian)
    rest = dense_hessian(problem, params, 4) - gauss_newton
    for operator, expected in ((operators.ggn, gauss_newton), (operators.remainder, rest)):
        assert np.abs(expected).max() > 1e-2
        found = np.asarray(matrix(operator, problem, params, 4, batch_size=batch_size))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batches_give_the_hessian_of_all_data(batch_size):
    problem, params = network((), "identity", "cross-entropy")
    problem = problem.take(jnp.arange(10)) if batch_size == 5 else problem
    found = hessian_matrix(problem, params, 7, batch_size=batch_size)
    whole = np.asarray(dense_hessian(problem, params, 7))
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-14 * np.abs(whole).max())


def test_batches_give_the_gradient_of_all_data():
    problem, params = network((4,), "tanh", "cross-entropy")
    problem = replace(problem, parameter_loss=lambda params, step: step * jnp.sum(params**2))
    whole = np.asarray(jax.jit(jax.grad(problem.objective))(params, 7))
    for batch_size in (4, 11):
        found = jax.jit(partial(operators.gradient, batch_size=batch_size))(problem, params, 7)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(None, {11}), (1, {1}), (4, {4, 3}), (10, {10, 1}), (11, {11}), (1000, {11})],
)
def test_batches_hold_that_many_examples_at_most(batch_size, expected):
    problem, params = network((3,), "tanh", "cross-entropy")
    seen, apply = set(), problem.apply

    def counting(params, inputs):
        seen.add(len(inputs))
        return apply(params, inputs)

    problem = replace(problem, apply=counting)
    for operator in (operators.hessian, operators.ggn, operators.remainder):
        seen.clear()
        jax.eval_shape(lambda v, op=operator: op(problem, v, 0, batch_size=batch_size)(v), params)
        assert seen == expected
    seen.clear()
    jax.eval_shape(operators.ntk(problem, params, batch_size=batch_size), jnp.ones(33))
    assert seen == expected


@pytest.mark.parametrize("operator", [operators.hessian, operators.ggn, operators.remainder])
def test_batches_have_an_example(operator):
    problem, params = network((3,), "tanh", "cross-entropy")
    with pytest.raises(ValueError, match=r"^batch_size is 0; expected at least 1$"):
        operator(problem, params, 0, batch_size=0)
    with pytest.raises(ValueError, match=r"^batch_size is -2; expected at least 1$"):
        operators.ntk(problem, params, batch_size=-2)


def test_the_static_hessian_is_another_one_in_the_middle_of_a_pulse():
    problem, params = network((6,), "tanh", "cross-entropy")
    weighted = np.asarray(hessian_matrix(problem, params, 6))
    static = np.asarray(hessian_matrix(problem.static(), params, 6))
    at_rest = np.asarray(hessian_matrix(problem, params, 0))
    np.testing.assert_allclose(static, at_rest, rtol=0, atol=1e-15)
    assert np.abs(weighted - static).max() > 0.1 * np.abs(static).max()


def test_the_preconditioned_operator_has_the_eigenvalues_of_the_quotient():
    rng = np.random.default_rng(4)
    factor = rng.normal(size=(6, 6))
    matrix, diagonal = factor + factor.T, rng.uniform(0.1, 10, size=6)
    symmetric = columns(
        operators.preconditioned(lambda v: jnp.asarray(matrix) @ v, jnp.asarray(diagonal)), 6
    )
    np.testing.assert_allclose(
        symmetric, matrix / np.sqrt(np.outer(diagonal, diagonal)), rtol=1e-13
    )
    quotient = np.sort(np.linalg.eigvals(matrix / diagonal[:, None]).real)
    np.testing.assert_allclose(np.linalg.eigvalsh(symmetric), quotient, rtol=1e-11)


def test_the_kernel_of_a_linear_model_is_the_gram_matrix_of_its_inputs():
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(6, 4))
    problem = Problem(
        lambda w, x: x @ w.reshape(4, 3), squared_error, jnp.asarray(inputs), jnp.zeros(6, int)
    )
    jacobian = np.asarray(operators.jacobian(problem, jnp.asarray(rng.normal(size=12))))
    assert jacobian.shape == (6, 3, 12)
    rows = jacobian.reshape(18, 12)
    np.testing.assert_allclose(
        rows @ rows.T, np.kron(inputs @ inputs.T, np.eye(3)), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_jacobian_is_a_limit_of_finite_differences(activation):
    problem, params = network((5, 4), activation, "cross-entropy", seed=2)
    jacobian = np.asarray(jax.jit(operators.jacobian)(problem, params))
    h = 1e-6
    nudges = h * jnp.eye(len(params))
    outputs = jax.jit(jax.vmap(problem.outputs))
    differences = (outputs(params + nudges) - outputs(params - nudges)) / (2 * h)
    np.testing.assert_allclose(np.moveaxis(jacobian, 2, 0), differences, rtol=0, atol=1e-8)


def test_kernel_and_squared_error_curvature_share_their_spectrum():
    problem, params = network((5,), "tanh", "squared-error", seed=1)
    rows = np.asarray(jax.jit(operators.jacobian)(problem, params)).reshape(33, -1)
    num_params = len(params)
    kernel = np.linalg.eigvalsh(rows @ rows.T)
    gram = np.linalg.eigvalsh(rows.T @ rows)
    rank = min(33, num_params)
    np.testing.assert_allclose(kernel[-rank:], gram[-rank:], rtol=0, atol=1e-12 * kernel[-1])
    assert kernel.sum() == pytest.approx((rows**2).sum(), rel=1e-13)

    # For a model that is linearised at these parameters the Hessian is the Gauss-Newton matrix.
    outputs = problem.outputs(params)

    def linearised(vector, inputs):
        return outputs + jnp.asarray(rows.reshape(11, 3, -1)) @ (vector - params)

    linear = Problem(linearised, squared_error, problem.inputs, problem.targets)
    hessian = hessian_matrix(linear, params, 0)
    found = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(
        found[-rank:], 2 / 11 * kernel[-rank:], rtol=0, atol=1e-12 * kernel[-1]
    )


def test_products_with_the_kernel_are_those_of_the_jacobian():
    problem, params = network((5,), "tanh", "cross-entropy", seed=1)
    rows = np.asarray(dense_jacobian(problem, params))
    for batch_size in (None, 4):
        found = kernel_matrix(problem, params, batch_size=batch_size)
        np.testing.assert_allclose(found, rows @ rows.T, rtol=0, atol=1e-12)


def test_gauss_newton_matrix_of_the_squared_error_and_kernel_share_their_spectrum():
    problem, params = network((5,), "tanh", "squared-error", seed=1)
    curvature = np.linalg.eigvalsh(ggn_matrix(problem.static(), params, 6))
    kernel = np.linalg.eigvalsh(kernel_matrix(problem, params))
    rank = min(33, len(params))
    expected = 2 / 11 * kernel[-rank:]
    np.testing.assert_allclose(curvature[-rank:], expected, rtol=0, atol=1e-13 * kernel[-1])


@pytest.mark.parametrize("indices", [[5, 0, 3], [2], list(range(6))])
def test_a_block_is_a_submatrix(indices):
    whole = np.random.default_rng(0).normal(size=(6, 6))
    part = operators.block(lambda v: jnp.asarray(whole) @ v, jnp.array(indices), 6)
    found = columns(part, len(indices))
    np.testing.assert_allclose(found, whole[np.ix_(indices, indices)], rtol=1e-15)


PARAMS = {"layers": [{"weights": np.zeros((2, 3)), "bias": np.zeros(3)}], "scale": np.zeros(())}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("layers/0/bias", [0, 1, 2]),
        ("layers/0/weights", [3, 4, 5, 6, 7, 8]),
        ("layers/0", range(9)),
        ("layers", range(9)),
        ("scale", [9]),
        ("", range(10)),
    ],
)
def test_a_block_is_found_by_its_path(path, expected):
    assert operators.block_indices(PARAMS, path).tolist() == list(expected)


def network_shapes():
    model = FullyConnected((4,), "tanh", "published")
    return jax.eval_shape(lambda key: model.init(key, (2,), 3), jax.random.key(0))


def test_the_layers_of_a_network_are_numbered():
    params = network_shapes()
    problem = Problem(lambda params, x: x, cross_entropy, jnp.zeros((1, 3)), jnp.zeros(1, int))
    for layer, place in itertools.product(range(2), range(2)):
        marked = jax.tree.map(lambda leaf: np.zeros(leaf.shape), params)
        marked[layer][place][...] = 1
        _, vector = problem.ravel(marked)
        found = operators.block_indices(params, f"{layer}/{place}")
        assert found.tolist() == np.flatnonzero(vector).tolist()
    assert operators.block_indices(params, "0").tolist() == list(range(12))


@pytest.mark.parametrize("path", ["2", "0/", "00", "0/1/0"])
def test_a_path_to_nothing_is_told_with_those_that_there_are(path):
    valid = "'', '0', '0/0', '0/1', '1', '1/0', '1/1'"
    with pytest.raises(ConfigError, match=f"^no parameters at path '{path}'; expected .*{valid}$"):
        operators.block_indices(network_shapes(), path)


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        (operators.hessian, jnp.float64),
        (operators.ggn, jnp.float32),
        (operators.remainder, jnp.float32),
    ],
)
def test_the_operators_pass_their_check(operator, dtype):
    problem, params = network((5,), "tanh", "cross-entropy")
    problem = replace(problem, inputs=problem.inputs.astype(dtype))

    @jax.jit
    def matvec(vector):
        return operator(problem, params.astype(dtype), 4, batch_size=6)(vector)

    operators.check_operator(matvec, len(params), jax.random.key(0), dtype)


@pytest.mark.parametrize("scale", [0.0, 1e-250, 1.0, 1e250])
def test_the_check_does_not_depend_on_the_scale(scale):
    factor = np.random.default_rng(1).normal(size=(50, 50))
    symmetric, skew = factor + factor.T, factor - factor.T

    def check(matrix):
        operators.check_operator(lambda v: scale * (matrix @ np.asarray(v)), 50, jax.random.key(1))

    check(symmetric)
    check(np.outer(factor[0], factor[0]))
    if scale:
        with pytest.raises(ValueError, match=r"^products are not symmetric: .*difference"):
            check(symmetric + 1e-3 * skew)


@pytest.mark.parametrize(
    ("matvec", "message"),
    [
        (lambda v: v[:-1], r"^a product has shape \(19,\); expected \(20,\)$"),
        (lambda v: v.astype(jnp.float32), "^a product has dtype float32; expected float64$"),
        (lambda v: v / 0, "^a product is not finite"),
        (lambda v: v * jnp.nan, "^a product is not finite"),
        (lambda v: v + 1e-3, "^products are not linear"),
        (lambda v: jnp.maximum(v, 0), "^products are not linear"),
        (lambda v: jnp.roll(v, 1), "^products are not symmetric"),
        (jnp.cumsum, "^products are not symmetric"),
    ],
)
def test_an_operator_that_is_none_is_told(matvec, message):
    with pytest.raises(ValueError, match=message):
        operators.check_operator(matvec, 20, jax.random.key(0))


def test_dropout_is_found_out():
    problem, params = network((5,), "tanh", "cross-entropy")
    rng = np.random.default_rng(0)
    product = jax.jit(lambda problem, v: operators.hessian(problem, params, 0)(v))

    def dropping(vector):
        kept = problem.inputs * rng.integers(2, size=problem.inputs.shape)
        return product(replace(problem, inputs=kept), vector)

    message = "^products are not deterministic: .*dropout, batch-norm or random augmentation"
    with pytest.raises(ValueError, match=message):
        operators.check_operator(dropping, len(params), jax.random.key(0))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_operators_compile_once_for_all_parameters_and_steps(batch_size):
    problem, params = network((5,), "tanh", "cross-entropy")

    @jax.jit
    def product(problem, params, step, vector):
        return operators.hessian(problem, params, step, batch_size=batch_size)(vector)

    for step in range(5):
        product(problem, params + step, step, jnp.ones_like(params))
    assert product._cache_size() == 1
