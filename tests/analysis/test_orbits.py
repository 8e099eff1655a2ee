"""Orbit diagrams against closed forms of the maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.orbits import orbit_diagram
from dlf_dynamics.analysis.instabilities.training_map import training_map, training_state

LOGISTIC = Map(lambda x, r: r * x * (1 - x))
DOUBLE_WELL = Map(lambda x, rate: x - rate * x * (x**2 - 1))
QUADRATIC = Map(lambda x, rate: x - rate * x)
# Subcritical: the unstable orbit of period 2 turns back at p = -1/16, where it becomes stable.
QUINTIC = Map(lambda x, p: -((1 + p) * x + x**3 / 2 - x**5))


def first(state):
    return state[0]


def test_the_two_states_of_gradient_descent_in_a_double_well():
    rates = np.array([1.05, 1.1, 1.15, 1.2])
    found = orbit_diagram(DOUBLE_WELL, jnp.array([0.9]), rates, first, transient=1000, recorded=10)
    mean, half = np.sqrt(1 + 3 / rates) / 2, np.sqrt(1 - 1 / rates) / 2
    states = np.stack([mean - half, mean + half], axis=1)
    assert found.down is not None
    for sweep in (found.up, found.down):
        np.testing.assert_allclose(np.sort(sweep, axis=1)[:, ::5], states, rtol=0, atol=1e-8)
        np.testing.assert_allclose(sweep[:, :2].sum(axis=1), states.sum(axis=1), atol=1e-8)
    assert not np.any(found.hysteresis())


def test_the_attractor_leaves_one_well_at_its_crisis():
    crisis = 3 * np.sqrt(3) / 2 - 1
    found = orbit_diagram(
        DOUBLE_WELL,
        jnp.array([0.9]),
        crisis + np.array([-1e-6, 1e-4]),
        first,
        transient=1000,
        recorded=50_000,
        both_ways=False,
    )
    lowest = np.min(found.up, axis=1)
    assert lowest[0] > 0 > lowest[1]
    assert found.down is None


def test_a_sweep_goes_on_after_a_divergence():
    found = orbit_diagram(
        DOUBLE_WELL,
        jnp.array([0.9]),
        np.array([1.1, 2.1, 1.9, 2.001, 1.1]),
        first,
        transient=10_000,
        recorded=100,
    )
    assert found.diverged_down is not None
    assert found.diverged_up.tolist() == [False, True, False, True, False]
    assert found.diverged_down.tolist() == [False, True, False, True, False]
    assert np.all(np.isnan(found.up[1]))
    assert np.all(np.isfinite(found.up[[0, 2, 4]]))
    # The wells differ by sign, and chaos at 1.9 visits both.
    np.testing.assert_allclose(
        np.sort(np.abs(found.up[4]))[[0, -1]],
        np.sqrt(1 + 3 / 1.1) / 2 + np.array([-0.5, 0.5]) * np.sqrt(1 - 1 / 1.1),
        atol=1e-8,
    )


def test_a_quadratic_is_at_rest_below_the_threshold_and_diverges_above():
    rates = np.array([0.5, 1.9, 1.99, 2.01, 2.5])
    found = orbit_diagram(
        QUADRATIC, jnp.ones(2), rates, lambda x: x, transient=5000, recorded=3, follow=False
    )
    assert found.up.shape == (5, 3, 2)
    assert found.diverged_up.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(found.up[:3], 0, atol=1e-20)
    slow = orbit_diagram(
        QUADRATIC, jnp.ones(1), [2.01], first, transient=100, recorded=1, bound=2.0
    )
    assert slow.diverged_up.tolist() == [True]
    assert not orbit_diagram(
        QUADRATIC, jnp.ones(1), [2.01], first, transient=100, recorded=1
    ).diverged_up


def test_hysteresis_is_seen_where_two_attractors_coexist():
    edge = -1 / 16
    values = np.array([-0.1, edge - 5e-3, edge + 5e-3, -0.04, -0.02, -0.005, 0.02, 0.1])
    found = orbit_diagram(
        QUINTIC, jnp.zeros(1), values, first, transient=5000, recorded=20, kick=1e-6
    )
    assert found.down is not None
    assert found.hysteresis().tolist() == [False] * 2 + [True] * 4 + [False] * 2
    there = values > edge
    large = np.sqrt((0.5 + np.sqrt(0.25 + 4 * values[there])) / 2)
    np.testing.assert_allclose(np.abs(found.down[there, 0]), large, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.down[there, 1:], -found.down[there, :-1], atol=1e-8)
    np.testing.assert_allclose(found.up[values < 0], 0, atol=1e-3)
    np.testing.assert_allclose(np.abs(found.up[values > 0, 0]), large[-2:], rtol=0, atol=1e-8)


def test_two_samples_of_one_chaotic_attractor_are_no_hysteresis():
    # In two bands and in one.
    found = orbit_diagram(
        LOGISTIC,
        jnp.array([0.3]),
        np.array([3.65, 3.7, 3.9, 4.0]),
        first,
        transient=200,
        recorded=100,
    )
    assert not np.any(found.hysteresis(0.0))


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_independent_orbits_start_from_one_state(batch_size):
    rates, start = [2.8, 3.2, 3.5, 3.9], 0.3
    found = orbit_diagram(
        LOGISTIC,
        jnp.array([start]),
        rates,
        first,
        transient=15,
        recorded=5,
        follow=False,
        batch_size=batch_size,
    )
    for rate, values in zip(rates, found.up, strict=True):
        orbit = [start]
        for _ in range(20):
            orbit.append(rate * orbit[-1] * (1 - orbit[-1]))
        np.testing.assert_allclose(values, orbit[-5:], rtol=0, atol=1e-10)
    assert found.down is None
    with pytest.raises(ValueError, match="there was no sweep back; expected a diagram with both"):
        found.hysteresis()


def test_a_training_map_is_followed_from_rate_to_rate(small, trained):
    run = trained(small)
    ((point,),) = run.points([3], 1)
    state = training_state(run.state(point))
    map_, rates = training_map(run, int(point.step)), np.array([0.1, 0.3, 0.5])
    advance = jax.jit(lambda x, rate: map_(x, rate))
    found = orbit_diagram(map_, state, rates, lambda x: x[:2], transient=2, recorded=3)
    expected = []
    for rate in (*rates, *rates[::-1]):
        orbit = [state]
        for _ in range(5):
            orbit.append(advance(orbit[-1], rate))
        state = orbit[-1]
        expected.append(np.stack(orbit[3:])[:, :2])
    assert found.down is not None
    np.testing.assert_allclose(found.up, expected[:3], rtol=0, atol=1e-13)
    np.testing.assert_allclose(found.down[::-1], expected[3:], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": []}, r"parameters have shape \(0,\); expected a list of at least one"),
        ({"parameters": np.ones((2, 2))}, r"parameters have shape \(2, 2\)"),
        ({"recorded": 0}, "transient is 3 and recorded 0; expected at least 0 and 1"),
        ({"transient": -1}, "transient is -1 and recorded 2; expected at least 0 and 1"),
        ({"state": jnp.array([jnp.nan])}, "the start is not finite"),
    ],
)
def test_what_makes_no_diagram_is_refused(changes, message):
    state = changes.pop("state", jnp.array([0.3]))
    arguments = {"parameters": [3.0], "transient": 3, "recorded": 2, **changes}
    with pytest.raises(ValueError, match=message):
        orbit_diagram(LOGISTIC, state, arguments.pop("parameters"), first, **arguments)
