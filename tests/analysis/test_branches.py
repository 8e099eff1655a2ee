"""Branches of frozen-loss diagrams on losses whose orbits are known in closed form."""

import jax.numpy as jnp
import numpy as np

from dlf_dynamics.analysis.bifurcation.branches import Frozen, follow_branches
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.problem import Problem

# L = (x² - 1)² / 4 beside a stable direction y²/4.
PROBLEM = Problem(
    apply=lambda theta, inputs: inputs * theta,
    criterion=lambda outputs, targets: (
        (outputs[:, 0] ** 2 - 1) ** 2 / 4 + outputs[:, 1] ** 2 / 4 + 0 * targets
    ),
    inputs=jnp.ones((1, 2)),
    targets=jnp.zeros(1),
)
DESCENT = Map(lambda x, rate: x - rate * jnp.array([x[0] * (x[0] ** 2 - 1), x[1] / 2]))


def branches(rates):
    places = [Frozen(rate, rate, 0) for rate in rates]
    start, direction = jnp.array([0.9, 0.3]), jnp.array([1.0, 0.0])
    return follow_branches(DESCENT, PROBLEM, start, direction, places, 3000)


def test_the_centre_and_the_orbit_of_the_double_well_are_found_with_their_stability():
    rates = np.array([0.8, 1.1, 1.2, 1.23])
    found = branches(rates)
    np.testing.assert_array_equal(found.values, rates)
    # Below the flip at 1 the centre is the minimum, of curvature 2; above it is between the points.
    points = [np.sqrt(1 + 3 / rates[1:]) + s * np.sqrt(1 - 1 / rates[1:]) for s in (1, -1)]
    middle = (points[0] + points[1]) / 4
    np.testing.assert_allclose(found.centre[0], 1 - 0.8 * 2, atol=1e-9)
    np.testing.assert_allclose(found.centre[1:], 1 - rates[1:] * (3 * middle**2 - 1), atol=1e-6)
    assert np.isnan(found.amplitude[0])
    assert np.isnan(found.multiplier[0])
    np.testing.assert_allclose(found.amplitude[1:], np.sqrt(1 - 1 / rates[1:]) / 2, rtol=1e-7)
    np.testing.assert_allclose(found.multiplier[1:], 9 - 2 * (1 + rates[1:]) ** 2, atol=1e-6)
    assert np.all(np.abs(found.multiplier[1:]) < 1)


def test_an_orbit_that_escapes_has_no_branch():
    found = branches([2.5])
    assert np.all(np.isnan([found.centre[0], found.amplitude[0], found.multiplier[0]]))
