"""Kernels against closed forms and Jacobians of the whole output by finite differences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import LossConfig, ModelConfig, Problem
from dlf_dynamics.analysis.ntk import gram_matrix, ntk_spectrum


def full_jacobian(run, checkpoint, num_examples):
    """Central differences of all outputs, shape (examples * outputs, params)."""
    problem = run.problem.take(jnp.arange(num_examples))
    outputs = jax.jit(problem.outputs)
    params = run.parameters()[checkpoint]
    columns = [
        np.ravel(outputs(params + shift) - outputs(params - shift)) / 2e-5
        for shift in 1e-5 * np.eye(len(params))
    ]
    return np.stack(columns, axis=1)


def descending(matrix):
    return np.linalg.eigvalsh(matrix)[::-1]


def test_a_linear_model_has_the_gram_matrix_of_its_inputs():
    inputs = np.random.default_rng(0).standard_normal((7, 4))
    labels = jnp.zeros(7, int)
    problem, params = Problem(
        lambda weights, x: x @ weights, lambda o, t: jnp.sum(o, 1), jnp.asarray(inputs), labels
    ).ravel(jnp.ones((4, 3)))
    gram = inputs @ inputs.T
    np.testing.assert_allclose(gram_matrix(problem, params), gram, atol=1e-14)
    np.testing.assert_allclose(
        gram_matrix(problem, params, trace_outputs=False), np.kron(gram, np.eye(3)), atol=1e-14
    )


def test_a_linear_run_has_the_same_closed_form_at_every_checkpoint(small, trained):
    run = trained(replace(small, model=ModelConfig(widths=())))
    found = ntk_spectrum(run, num_examples=9)
    features = np.hstack([run.dataset.inputs[:9], np.ones((9, 1))])
    exact = descending(features @ features.T)
    np.testing.assert_allclose(found.eigenvalues, [exact] * len(run.checkpoint_steps), atol=1e-13)


@pytest.mark.parametrize("trace_outputs", [True, False])
def test_values_along_a_run_are_those_of_finite_differences(trace_outputs, small, trained):
    run = trained(small)
    found = ntk_spectrum(run, [0, 4, 9], num_examples=6, trace_outputs=trace_outputs)
    np.testing.assert_array_equal(found.steps, [0, 28, 60])
    assert found.trace_outputs == trace_outputs
    for row, checkpoint in enumerate([0, 4, 9]):
        jac = full_jacobian(run, checkpoint, 6)
        kernel = jac @ jac.T
        if trace_outputs:
            kernel = np.einsum("aibi->ab", kernel.reshape(6, 3, 6, 3)) / 3
        # Central differences with steps of 1e-5 are right to about 1e-10.
        np.testing.assert_allclose(found.eigenvalues[row], descending(kernel), atol=1e-8)


def test_the_full_kernel_has_the_trace_and_the_eigenvalues_of_the_jacobian(small, trained):
    run = trained(small)
    found = ntk_spectrum(run, [9], num_examples=8, trace_outputs=False)
    jac = full_jacobian(run, 9, 8)
    values = found.eigenvalues[0]
    assert values.shape == (24,)
    np.testing.assert_allclose(np.sum(values), np.sum(jac**2), rtol=1e-9)
    np.testing.assert_allclose(values[:15], descending(jac.T @ jac), atol=1e-8)
    np.testing.assert_allclose(values[15:], 0, atol=1e-12)


def test_the_traced_kernel_has_the_full_ones_trace_over_the_number_of_outputs(small, trained):
    traced, full = (
        ntk_spectrum(trained(small), num_examples=8, trace_outputs=trace).eigenvalues
        for trace in (True, False)
    )
    np.testing.assert_allclose(3 * np.sum(traced, axis=1), np.sum(full, axis=1), rtol=1e-12)


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
    hessian = np.asarray(jax.hessian(problem.objective)(vector, 0))
    kernel = np.asarray(gram_matrix(problem, vector, trace_outputs=False))
    np.testing.assert_allclose(descending(hessian)[:4], 2 / 4 * descending(kernel), rtol=1e-10)


def test_the_kernel_is_taken_on_all_examples_when_there_are_fewer_than_asked_for(small, trained):
    run = trained(small)
    told = []
    found = ntk_spectrum(run, num_examples=50, progress=told.append)
    assert found.num_examples == 24
    assert found.eigenvalues.shape == (10, 24)
    assert told[-1] == 10


def test_the_kernel_does_not_depend_on_the_loss(small, trained):
    run = trained(small)
    other = trained(replace(small, loss=LossConfig("squared-error")))
    np.testing.assert_allclose(
        ntk_spectrum(run, [0]).eigenvalues, ntk_spectrum(other, [0]).eigenvalues, rtol=1e-12
    )


def test_parameters_that_are_not_finite_give_nan_and_spare_the_other_checkpoints(
    small, trained, monkeypatch
):
    run = trained(small)
    before = ntk_spectrum(run, [0, 1]).eigenvalues
    points = run.points

    def spoilt(checkpoints, chunk):
        for part in points(checkpoints, chunk):
            yield [replace(part[0], params=np.full_like(part[0].params, np.nan)), *part[1:]]

    monkeypatch.setattr(run, "points", spoilt)
    found = ntk_spectrum(run, [0, 1]).eigenvalues
    assert np.all(np.isnan(found[0]))
    np.testing.assert_array_equal(found[1], before[1])
