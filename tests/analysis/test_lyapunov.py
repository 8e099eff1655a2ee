"""Lyapunov exponents against closed forms and the literature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.bifurcation.lyapunov import lyapunov_exponents
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.instabilities.training_map import training_map, training_state

KEY = jax.random.key(0)
LOGISTIC = Map(lambda x, r: r * x * (1 - x))
DOUBLE_WELL = Map(lambda x, rate: x - rate * x * (x**2 - 1))
HENON = Map(lambda x, a: jnp.array([1 - a * x[0] ** 2 + x[1], 0.3 * x[0]]))


@pytest.mark.parametrize(
    ("map_", "parameter", "exponent"),
    [(LOGISTIC, 4.0, np.log(2)), (DOUBLE_WELL, 2.0, np.log(3))],
    ids=["logistic", "cubic Chebyshev"],
)
def test_chebyshev_maps(map_, parameter, exponent):
    found = lyapunov_exponents(
        map_, jnp.array([0.3]), parameter, 1, 200_000, transient=100, key=KEY
    )
    assert found.exponents[0] == pytest.approx(exponent, abs=1e-3)
    assert found.converged.tolist() == [True]
    assert 0 < found.errors[0] < 1e-3
    assert np.abs(found.exponents[0] - exponent) < 5 * found.errors[0]
    assert found.running.shape == (20, 1)
    assert found.running[-1] == found.exponents
    assert np.isnan(found.overlap[0])


@pytest.mark.parametrize(
    ("rate", "exponent"),
    [(2.5, np.log(0.5)), (3.2, np.log(0.16) / 2), (3.4, np.log(0.76) / 2)],
)
def test_stable_cycles_have_negative_exponents(rate, exponent):
    # The multiplier of the cycle of two, 4 + 2r - r², is 0.16 and -0.76.
    found = lyapunov_exponents(LOGISTIC, jnp.array([0.3]), rate, 1, 400, transient=2000, key=KEY)
    np.testing.assert_allclose(found.exponents, exponent, rtol=0, atol=1e-10)
    assert found.converged.tolist() == [True]
    assert found.errors[0] < 1e-10


@pytest.mark.parametrize(("every", "steps"), [(1, 400_000), (4, 1_000_000)])
def test_henon(every, steps):
    found = lyapunov_exponents(
        HENON, jnp.zeros(2), 1.4, 2, steps, transient=1000, key=KEY, every=every
    )
    assert found.exponents[0] == pytest.approx(0.4192, abs=1e-3)
    assert found.exponents.sum() == pytest.approx(np.log(0.3), abs=1e-10)
    assert found.converged.tolist() == [True, True]
    assert found.steps == steps


def symmetric():
    """A linear map of known multipliers, and its eigenvectors as rows."""
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    multipliers = np.array([-0.9, 0.6, 0.4, -0.2, 0.1, 0.05])
    matrix = jnp.asarray(rows.T * multipliers @ rows)
    return Map(lambda x, p: p * (matrix @ x)), multipliers, rows


@pytest.mark.parametrize("every", [1, 3])
def test_a_symmetric_linear_map_has_its_eigenvectors_as_tangent_vectors(every):
    map_, multipliers, rows = symmetric()
    found = lyapunov_exponents(
        map_,
        jnp.ones(6),
        1.05,
        4,
        4000,
        transient=0,
        key=KEY,
        basis=jnp.asarray(rows[[0, 2]]),
        every=every,
    )
    np.testing.assert_allclose(
        found.exponents, np.log(1.05 * np.abs(multipliers[:4])), rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(found.overlap, [1, 0, 1, 0], rtol=0, atol=1e-10)
    assert np.all(found.converged)


def test_all_exponents_of_training_sum_to_the_volume_of_its_steps(small, trained):
    run = trained(small)
    ((point,),) = run.points([3], 1)
    map_, state, rate = training_map(run, 10), training_state(run.state(point)), 0.7
    hessian, advance = jax.jit(jax.hessian(run.problem.objective)), jax.jit(lambda x: map_(x, rate))
    volumes = []
    for _ in range(26):
        volumes.append(np.linalg.slogdet(np.eye(15) - rate * np.asarray(hessian(state, 10)))[1])
        state = advance(state)
    start = training_state(run.state(point))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(15, 2)))[0].T
    found = lyapunov_exponents(
        map_, start, rate, 15, 20, transient=5, key=KEY, basis=jnp.asarray(basis)
    )
    # After the transient, the vectors are turned for a block of one step.
    assert found.exponents.sum() == pytest.approx(np.mean(volumes[6:]), rel=1e-10)
    np.testing.assert_allclose(found.state, state, rtol=0, atol=1e-12)
    assert found.overlap.sum() == pytest.approx(2, rel=1e-12)


def test_what_diverges_has_no_exponents():
    for map_, start, rate in ((DOUBLE_WELL, 0.9, 2.1), (Map(lambda x, p: p * x), 1.0, -1.1)):
        found = lyapunov_exponents(
            map_, jnp.array([start]), rate, 1, 10_000, transient=100, key=KEY
        )
        assert found.diverged
        assert np.isnan(found.exponents[0])
        assert np.isnan(found.errors[0])
        assert found.converged.tolist() == [False]
        assert found.message == "the orbit diverged"


def test_what_has_not_converged_says_so():
    short = lyapunov_exponents(LOGISTIC, jnp.array([0.3]), 3.9, 1, 500, transient=100, key=KEY)
    assert short.errors[0] > 1e-3
    assert short.converged.tolist() == [False]
    assert "0 of 1 converged after 500 steps; allow more steps" in short.message
    # At the flip the approach is algebraic, and the exponent is still on its way to 0.
    slow = lyapunov_exponents(
        LOGISTIC, jnp.array([0.3]), 3.0, 1, 2000, transient=10, key=KEY, tol=1e-6
    )
    assert np.all(np.diff(slow.running[:, 0]) > 0)
    assert slow.converged.tolist() == [False]


def test_a_superstable_orbit_has_an_infinite_exponent():
    found = lyapunov_exponents(LOGISTIC, jnp.array([0.5]), 2.0, 1, 100, transient=10, key=KEY)
    assert found.exponents.tolist() == [-np.inf]
    assert found.converged.tolist() == [False]
    assert "a derivative vanishes or is not finite" in found.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 3}, "k is 3; expected 1 to 2, the size of the state"),
        ({"steps": 0}, "steps is 0, every 1 and transient 0; expected at least 1, 1 and 0"),
        ({"every": 0}, "steps is 10, every 0"),
        ({"transient": -1}, "every 1 and transient -1"),
        ({"basis": jnp.ones((1, 3))}, r"the basis has shape \(1, 3\); expected rows of length 2"),
        ({"basis": jnp.ones((1, 2))}, "the rows of the basis are not orthonormal"),
        ({"state": jnp.array([0.0, jnp.inf])}, "the start is not finite"),
    ],
)
def test_what_makes_no_spectrum_is_refused(changes, message):
    arguments = {"state": jnp.zeros(2), "k": 1, "steps": 10, "transient": 0, "key": KEY, **changes}
    with pytest.raises(ValueError, match=message):
        lyapunov_exponents(HENON, parameter=1.4, **arguments)
