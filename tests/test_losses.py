import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.config import LossConfig
from dlf_dynamics.losses import (
    CRITERIA,
    ClassWeights,
    cross_entropy,
    make_criterion,
    make_weights,
    squared_error,
    squared_error_per_output,
    steady,
)
from dlf_dynamics.schedules import Tabulated

pytestmark = pytest.mark.usefixtures("quick_compilation")

OUTPUTS = [[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]]
LABELS = [2, 1]


def test_cross_entropy_is_minus_the_log_of_the_softmax():
    losses = cross_entropy(jnp.array(OUTPUTS), jnp.array(LABELS))
    expected = [
        -math.log(math.exp(row[label]) / sum(math.exp(value) for value in row))
        for row, label in zip(OUTPUTS, LABELS, strict=True)
    ]
    assert losses.tolist() == pytest.approx(expected, rel=1e-14)


def test_cross_entropy_stays_finite_for_large_outputs():
    losses = cross_entropy(jnp.array([[1e4, 0.0], [0.0, 1e4]]), jnp.array([0, 0]))
    assert losses.tolist() == [0.0, 1e4]


def test_equal_outputs_cost_the_log_of_the_number_of_classes():
    losses = cross_entropy(jnp.zeros((1, 3)), jnp.array([1]))
    assert losses.tolist() == pytest.approx([math.log(3)], rel=1e-15)


def test_squared_errors_are_distances_to_the_one_hot_label():
    parts = squared_error_per_output(jnp.array(OUTPUTS), jnp.array(LABELS))
    assert parts.tolist() == [[1.0, 4.0, 0.25], [0.0, 4.0, 9.0]]
    assert squared_error(jnp.array(OUTPUTS), jnp.array(LABELS)).tolist() == [5.25, 13.0]


def test_weights_follow_the_label_or_the_output():
    schedule = Tabulated(jnp.array([[1.0, 1.0, 1.0], [0.5, 2.0, 0.25]]))
    labels = jnp.array([2, 1, 2, 0])
    assert ClassWeights(schedule)(1, labels).tolist() == [0.25, 2.0, 0.25, 0.5]
    per_output = ClassWeights(schedule, per_output=True)(1, labels)
    assert np.broadcast_to(per_output, (4, 3)).tolist() == [[0.5, 2.0, 0.25]] * 4


@pytest.mark.parametrize("name", CRITERIA)
def test_the_configuration_chooses_the_loss_and_its_weights(name):
    config = LossConfig(name)
    schedule = Tabulated(jnp.ones((1, 3)))
    assert make_criterion(config) is CRITERIA[name]
    assert make_weights(config, schedule).per_output == (name == "squared-error-per-output")
    assert make_weights(config, schedule).schedule is schedule


def forms(targets):
    """Cross entropy and its steady form as functions of the outputs."""
    return [lambda f, c=c: jnp.sum(c(f, targets)) for c in (cross_entropy, steady(cross_entropy))]


@pytest.mark.parametrize("labels", [[0, 2, 1], [-1, 2, -3]])
def test_the_steady_form_is_the_same_loss(labels):
    outputs = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)))
    usual, other = forms(jnp.array(labels))
    for derive in (lambda f: f, jax.grad, jax.hessian):
        np.testing.assert_allclose(derive(other)(outputs), derive(usual)(outputs), atol=1e-14)


def test_the_steady_form_keeps_the_digits_of_a_saturated_softmax():
    outputs = jnp.array([[50.0, 0.0, -3.0]])
    _, other = forms(jnp.array([0]))
    others = np.exp([-50.0, -53.0])
    exact = np.array([[-np.sum(others), *others]])
    np.testing.assert_allclose(jax.grad(other)(outputs), exact, rtol=1e-14)


def test_classes_that_a_model_excludes_have_no_part_in_the_steady_form():
    outputs = jnp.array([[1.0, -jnp.inf, 2.0], [1.0, -jnp.inf, -jnp.inf]])
    _, other = forms(jnp.array([0, 0]))
    share = 1 / (1 + np.exp(-1.0))
    exact = [[-share, 0, share], [0, 0, 0]]
    np.testing.assert_allclose(jax.grad(other)(outputs), exact, atol=1e-15)
    assert np.all(np.isfinite(jax.hessian(other)(outputs)))
