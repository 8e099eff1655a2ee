"""Gradient flow against closed forms."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics.analysis.theories.gradient_flow import gradient_flow
from dlf_dynamics.analysis.theories.rules import Averaged, averaged
from dlf_dynamics.problem import Problem

CURVATURES = np.array([0.1, 1.0, 4.0])


def test_a_quadratic_decays_exponentially():
    end = gradient_flow(lambda x: jnp.sum(jnp.asarray(CURVATURES) * x**2) / 2, jnp.ones(3), 0.2, 10)
    np.testing.assert_allclose(end, np.exp(-2 * CURVATURES), rtol=3e-3)  # of the stiffest


def test_short_steps_where_the_curvature_is_large():
    """η λ = 20: two substeps would be unstable."""
    loss = lambda x: 20 * jnp.sum((x - 1) ** 2) / 2  # noqa: E731
    fine = gradient_flow(loss, jnp.array([1.5]), 1.0, 5, sharpness=20.0)
    np.testing.assert_allclose(fine, 1, atol=1e-6)
    rough = gradient_flow(loss, jnp.array([1.5]), 1.0, 5)
    assert abs(float(rough[0]) - 1) > 1


@pytest.mark.parametrize("start", [0, 7])
def test_loss_and_drift_change_with_the_step(start):
    """θ' = -η(t) (t + 1)², linear in between: the integral over each step, by hand."""
    problem = Problem.from_loss(lambda x, step: jnp.sum(x) * (step + 1.0) ** 2)
    rates = 0.1 / (1 + np.arange(20.0))
    rule = Averaged(0, rates, rates)
    end = gradient_flow(problem, jnp.zeros(1), rule, 5, start=start)
    begins, ends = np.arange(start, start + 5), np.arange(start, start + 5) + 1
    slopes = [(at + 1.0) ** 2 for at in (begins, ends)]
    # ∫ (a + s(b - a)) (c + s(d - c)) ds
    (a, b), (c, d) = (rates[begins], rates[ends]), slopes
    whole = a * c + (a * (d - c) + c * (b - a)) / 2 + (b - a) * (d - c) / 3
    assert float(end[0]) == pytest.approx(-np.sum(whole), rel=1e-12)


def test_momentum_drifts_faster():
    rule = averaged(optax.sgd(0.05, momentum=0.9), range(10))
    end = gradient_flow(lambda x: jnp.sum(x**2) / 2, jnp.ones(1), rule, 4)
    assert float(end[0]) == pytest.approx(np.exp(-4 * 0.5), rel=1e-3)


def test_no_steps_change_nothing():
    start = jnp.arange(3.0)
    np.testing.assert_array_equal(gradient_flow(jnp.sum, start, 0.1, 0), start)
    with pytest.raises(ValueError, match="steps is -1"):
        gradient_flow(jnp.sum, start, 0.1, -1)
