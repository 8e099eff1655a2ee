import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import operators
from dlf_dynamics.losses import CRITERIA, ClassWeights, cross_entropy, squared_error
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

SCHEDULE = Triangle(3, 20.0, 12)
PHASES = [0, 1, 3, 6, 7, 12, 17, 30]


def columns(matvec, size):
    """The matrix of an operator, one product per column."""
    return np.asarray(jax.lax.map(matvec, jnp.eye(size))).T


@jax.jit
def hessian_matrix(problem, params, step):
    """The matrix that the products with the columns of the identity assemble."""
    return jax.lax.map(operators.hessian(problem, params, step), jnp.eye(len(params))).T


@jax.jit
def dense_hessian(problem, params, step):
    """The matrix as JAX computes it by itself."""
    return jax.hessian(problem.objective)(params, step)


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


@pytest.mark.parametrize("step", PHASES)
def test_softmax_regression_has_the_closed_form_hessian_at_every_phase(step):
    rng = np.random.default_rng(1)
    inputs, labels = rng.normal(size=(20, 4)), rng.integers(3, size=20)
    weight = rng.normal(size=(4, 3))
    problem = Problem(
        lambda w, x: x @ w.reshape(4, 3),
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
    found = hessian_matrix(problem, jnp.asarray(weight.ravel()), step)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    gradient = sum(
        gamma[y] * np.outer(x, np.exp(x @ weight) / np.exp(x @ weight).sum() - np.eye(3)[y]) / 20
        for x, y in zip(inputs, labels, strict=True)
    )
    found = operators.gradient(problem, jnp.asarray(weight.ravel()), step)
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
    problem, params = network((6,), "tanh", "cross-entropy")
    whole = np.asarray(hessian_matrix(problem, params, 4))
    of_class = jax.jit(jax.hessian(problem.class_objective))
    parts = sum(np.asarray(of_class(params, 4, label)) for label in range(3))
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


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


def test_operators_compile_once_for_all_parameters_and_steps():
    problem, params = network((5,), "tanh", "cross-entropy")

    @jax.jit
    def product(problem, params, step, vector):
        return operators.hessian(problem, params, step)(vector)

    for step in range(5):
        product(problem, params + step, step, jnp.ones_like(params))
    assert product._cache_size() == 1
