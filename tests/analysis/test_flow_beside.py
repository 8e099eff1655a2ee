"""Other theories of recorded runs, against closed forms and models trained in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem
from dlf_dynamics.analysis.flow.beside import (
    EXPANSIONS,
    FLIP,
    GRADIENT_FLOW,
    QUANTITIES,
    QUASI_STATIC,
    ROD,
    SELF_STABILIZATION,
    THEORIES,
    Predicted,
    predicted_beside,
)
from dlf_dynamics.codec import decode, encode
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.opening import open_run
from dlf_dynamics.recorder import Recorder

RATE, EPSILON = 0.3, 0.01
WELL_RATE = 1.2
WELL = Problem.from_loss(lambda x, step: jnp.sum((x**2 - 1) ** 2) / 4)


def recorded(path, problem, optimizer, params, steps):
    """A run, each of whose steps is recorded, as parameters of steps as well."""
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, step):
        slope = jax.grad(problem.objective)(params, step)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state

    with Recorder(path, problem, optimizer=optimizer) as run:
        for step in range(steps + 1):
            run.record(step, params, state)
            params, state = update(params, state, step)
    return open_run(path, (problem, optimizer, params))


def told(run, steps, **options):
    """All predictions by name; and centres, deviations and energies of the run."""
    steps = np.asarray(steps)
    params = run.parameters().astype(float)
    rows = steps - run.checkpoint_steps[0]
    centres = (params[rows - 1] + 2 * params[rows] + params[rows + 1]) / 4
    deviations = params[rows] - centres
    ((start,),) = run.points([rows[0]], 1)
    found = predicted_beside(run, start, steps, centres, deviations, **options)
    return {one.name: one for one in found}, centres, np.sum(deviations**2, axis=1)


@pytest.fixture(scope="module", params=["float64", "float32"])
def well(request, tmp_path_factory):
    """(x² - 1)²/4 with η = 1.2, whose orbit of period 2 has x² = 7/8 in its centre, d² = 1/24."""
    start = jnp.array([1.05], request.param)
    path = tmp_path_factory.mktemp("well") / "run.h5"
    return recorded(path, WELL, optax.sgd(WELL_RATE), start, 230)


def test_local_theories_of_an_orbit_of_period_2(well):
    found, centres, energy = told(well, [200, 203, 210])
    assert centres[0, 0] ** 2 == pytest.approx(7 / 8, abs=1e-6)
    assert energy == pytest.approx(1 / 24, abs=1e-6)
    ends = np.sqrt(7 / 8) + np.sqrt(1 / 24) * np.array([-1, 1])
    loss = np.mean((ends**2 - 1) ** 2) / 4
    for name in (ROD, FLIP):  # the flip is exact, as there are no terms beyond the quartic ones
        np.testing.assert_allclose(found[name].energy, 1 / 24, atol=1e-6)
        np.testing.assert_allclose(found[name].loss, loss, rtol=1e-5)
        assert np.all(np.isnan(found[name].sharpness))
        assert np.all(np.isnan(found[name].distance))
        assert found[name].message == ""


def test_local_theories_are_of_an_oscillation_that_is_there(well):
    oscillating = np.array([True, False, True])
    found, _, _ = told(well, [200, 203, 210], theories=[ROD, FLIP], oscillating=oscillating)
    for one in found.values():
        np.testing.assert_array_equal(np.isfinite(one.energy), oscillating)
        np.testing.assert_array_equal(np.isfinite(one.loss), oscillating)


def test_eigenvectors_at_some_looks_alone(well):
    """Gradient flow goes on between them."""
    whole, _, _ = told(well, [200, 203, 206, 210])
    found, _, _ = told(well, [200, 203, 206, 210], every=2)
    some = [True, False, True, False]
    columns = [(ROD, "energy"), (FLIP, "energy"), (GRADIENT_FLOW, "sharpness")]
    for name, column in columns:
        np.testing.assert_array_equal(np.isfinite(getattr(found[name], column)), some)
    for column in ("loss", "energy", "distance"):
        np.testing.assert_allclose(
            getattr(found[GRADIENT_FLOW], column), getattr(whole[GRADIENT_FLOW], column), rtol=1e-4
        )
    with pytest.raises(ValueError, match="every is 0"):
        told(well, [200], every=0)


def test_the_leading_order_is_told_near_the_flip_alone(tmp_path):
    """Near x = 1 with λ = 2 and L₄ = 6: x² = 2/η - 2, which is large where η is small."""
    for rate, known in ((0.8, False), (0.95, True)):
        run = recorded(tmp_path / f"{rate}.h5", WELL, optax.sgd(rate), jnp.array([1.001]), 4)
        found, _, _ = told(run, [2], theories=[FLIP])
        assert np.isfinite(found[FLIP].energy[0]) == known
        if known:
            assert found[FLIP].energy[0] == pytest.approx(2 / rate - 2, rel=1e-2)


def test_gradient_flow_and_the_flip_of_its_end(well):
    """It goes to x = 1, with λ = 2 and c = 8η, so that x² = (ηλ - 2)/c = (1 - 1/η)/4."""
    found, centres, _ = told(well, [200, 203, 215], horizon=40)
    flow = found[GRADIENT_FLOW]
    assert flow.distance[0] == 0
    assert flow.distance[-1] == pytest.approx(1 - centres[-1, 0], abs=1e-6)
    assert flow.sharpness[0] == pytest.approx(3 * 7 / 8 - 1, abs=1e-5)
    assert flow.sharpness[-1] == pytest.approx(2, abs=1e-6)
    assert flow.loss[-1] == pytest.approx(0, abs=1e-9)
    np.testing.assert_array_equal(flow.energy, 0)
    still = found[QUASI_STATIC]
    assert still.energy[-1] == pytest.approx((1 - 1 / WELL_RATE) / 4, abs=1e-6)
    assert np.all(np.isnan(still.loss) & np.isnan(still.sharpness) & np.isnan(still.distance))


@pytest.fixture(scope="module")
def valley(tmp_path_factory):
    """½ y x² - ε y, of which self-stabilization is exact."""
    problem = Problem.from_loss(lambda p, step: p[1] * p[0] ** 2 / 2 - EPSILON * p[1])
    path = tmp_path_factory.mktemp("valley") / "run.h5"
    return recorded(path, problem, optax.sgd(RATE), jnp.array([0.05, 6.6]), 330)


def test_self_stabilization_of_a_run(valley):
    steps = np.arange(20, 321, 20)
    found, centres, energy = told(valley, steps)
    theory = found[SELF_STABILIZATION]
    assert theory.message == ""
    # The deviation is x but for a change of some per cent in a step.
    np.testing.assert_allclose(theory.energy, energy, rtol=0.1)
    np.testing.assert_allclose(theory.sharpness, centres[:, 1], rtol=2e-3)
    assert np.std(centres[:, 1]) > 0.04
    np.testing.assert_allclose(theory.distance, 0, atol=0.02)
    params = valley.parameters()[steps]
    losses = params[:, 1] * params[:, 0] ** 2 / 2 - EPSILON * params[:, 1]
    np.testing.assert_allclose(theory.loss, losses, atol=0.1 * np.ptp(losses))


def test_what_other_theories_say_of_it(valley):
    steps, horizon = np.arange(20, 121, 20), 50
    found, centres, _ = told(valley, steps, horizon=horizon)
    # No force bends the oscillation where the centre is held.
    for name in (ROD, FLIP):
        assert np.all(np.isnan(found[name].energy)), name
    sharpness = centres[0, 1] + RATE * EPSILON * (steps - 20)
    np.testing.assert_allclose(found[GRADIENT_FLOW].sharpness, sharpness, rtol=1e-4)
    np.testing.assert_allclose(found[GRADIENT_FLOW].loss, -EPSILON * sharpness, rtol=1e-3)
    # n = (0, 1) in the null space: c_N = η² N / 2.
    excess = RATE * found[GRADIENT_FLOW].sharpness - 2
    expected = np.where(excess > 0, excess / (RATE**2 * horizon / 2), np.nan)
    assert np.isnan(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(found[QUASI_STATIC].energy, expected, rtol=1e-6)
    for name in EXPANSIONS:
        assert "only the loss is known" in found[name].message
        assert np.all(np.isnan(found[name].loss))


INPUTS = np.linspace(-1, 1, 6)
TARGETS = np.sin(3 * INPUTS)


def outputs(params, inputs):
    """A network of 7 parameters."""
    return jnp.tanh(jnp.outer(inputs, params[:3]) + params[6]) @ params[3:6]


def weights(step, targets):
    return 1 + 0.5 * jnp.sin(0.1 * step + targets)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    problem = Problem(
        outputs,
        lambda outputs, targets: (outputs - targets) ** 2,
        jnp.asarray(INPUTS),
        jnp.asarray(TARGETS),
        weights,
    )
    start = jnp.asarray(np.random.default_rng(1).standard_normal(7))
    path = tmp_path_factory.mktemp("network") / "run.h5"
    return recorded(path, problem, optax.sgd(0.1, momentum=0.8), start, 120)


def trained_by_hand(run, first, last, order):
    """Heavy ball on the expansion about the parameters of a step, in NumPy with dense matrices."""
    params = run.parameters()
    origin, before = params[first], params[first - 1]
    values = np.asarray(outputs(origin, INPUTS))
    slopes = np.asarray(jax.jacobian(outputs)(origin, INPUTS))
    bends = np.asarray(jax.hessian(outputs)(origin, INPUTS)) * (order - 1)
    told = {first - 1: before, first: origin}
    velocity, at = (before - origin) / 0.1, origin

    def loss(params, step):
        moved = params - origin
        found = values + slopes @ moved + np.einsum("kij,i,j->k", bends, moved, moved) / 2
        scale = np.asarray(weights(step, TARGETS)) / len(TARGETS)
        rest = found - TARGETS
        gradient = (slopes + bends @ moved).T @ (2 * scale * rest)
        return scale @ rest**2, gradient

    losses = {first - 1: loss(before, first - 1)[0]}
    for step in range(first, last + 2):
        losses[step], gradient = loss(at, step)
        velocity = 0.8 * velocity + gradient
        at = at - 0.1 * velocity
        told[step + 1] = at
    return told, losses


@pytest.mark.parametrize("order", [1, 2])
def test_models_about_the_start(network, order):
    """More looks than a compiled call makes, at irregular steps."""
    steps = np.append(np.arange(30, 66), [70, 71, 90, 118])
    name = EXPANSIONS[order - 1]
    found, centres, _ = told(network, steps, theories=[name])
    states, losses = trained_by_hand(network, 30, 118, order)
    mean = lambda of, t: (of[t - 1] + 2 * of[t] + of[t + 1]) / 4  # noqa: E731
    middle = np.array([mean(states, t) for t in steps])
    energy = [np.sum((states[t] - mean(states, t)) ** 2) for t in steps]
    theory = found[name]
    np.testing.assert_allclose(theory.loss, [mean(losses, t) for t in steps], rtol=1e-9)
    np.testing.assert_allclose(theory.energy, energy, rtol=1e-6, atol=1e-18)
    np.testing.assert_allclose(
        theory.distance, np.linalg.norm(middle - centres, axis=1), rtol=1e-7, atol=1e-12
    )
    assert theory.distance[-1] > 1e-3
    assert np.all(np.isnan(theory.sharpness))
    assert theory.message == ""


def test_a_model_that_diverges(tmp_path):
    """The curvature of the linear model stays 1, so that each update is one by a factor of -9."""
    problem = Problem(
        lambda w, x: jnp.tanh(w * x),
        lambda outputs, targets: (outputs - targets) ** 2 / 2,
        jnp.array([1.0]),
        jnp.array([0.0]),
    )
    run = recorded(tmp_path / "run.h5", problem, optax.sgd(10.0), jnp.array([1e-3]), 400)
    steps = [2, 100, 380, 390]
    found, _, _ = told(run, steps, theories=EXPANSIONS)
    linear = found["linear model"]
    assert np.all(np.isfinite(linear.loss[:2]))
    assert np.all(np.isnan(linear.loss[2:]))
    assert np.all(np.isnan(linear.energy[2:]))
    assert linear.message == "not finite at step 380"


def test_theories_of_gradient_descent_say_nothing_of_momentum(network):
    found, _, _ = told(network, [30, 40], theories=[QUASI_STATIC, SELF_STABILIZATION])
    assert list(found) == [QUASI_STATIC, SELF_STABILIZATION]
    for one in found.values():
        assert one.message == "the theory is of gradient descent, without momentum"
        assert np.all(np.isnan(one.energy))


def test_a_result_file_holds_them(valley):
    found, _, _ = told(valley, np.arange(20, 121, 20))
    assert tuple(found) == THEORIES
    for one in found.values():
        again = decode(Predicted, encode(one))
        assert again.name == one.name
        assert again.message == one.message
        for name in ("steps", *QUANTITIES):
            np.testing.assert_array_equal(getattr(again, name), getattr(one, name))


def test_kinks(small, trained):
    run = trained(replace(small, model=replace(small.model, activation="relu"), checkpoint_every=1))
    names = [FLIP, QUASI_STATIC, SELF_STABILIZATION]
    found, _, _ = told(run, [20, 30], theories=names)
    for name in names:
        assert "kinks" in found[name].message
        assert all(np.all(np.isnan(getattr(found[name], column))) for column in QUANTITIES)


def test_a_run_of_an_expansion_is_not_expanded_again(small, trained):
    run = trained(replace(small, linearize=1, checkpoint_every=1))
    found, _, _ = told(run, [20, 30], theories=EXPANSIONS)
    for name in EXPANSIONS:
        assert found[name].message == "the run is of an expanded network already"
        assert np.all(np.isnan(found[name].loss))


def test_a_rate_that_changes(scheduled, trained):
    run = trained(replace(scheduled, checkpoint_every=1))
    found, _, _ = told(run, [20, 30], theories=[SELF_STABILIZATION])
    assert found[SELF_STABILIZATION].message == "the theory is of a constant learning rate"
    assert np.all(np.isnan(found[SELF_STABILIZATION].energy))


def test_what_there_is_no_theory_of(adaptive, trained):
    run = trained(adaptive)
    ((start,),) = run.points([1], 1)
    blank = np.zeros((1, run.num_params))
    with pytest.raises(ConfigError, match="no central flow"):
        predicted_beside(run, start, np.array([start.step]), blank, blank)


def test_the_start_is_the_first_look(valley):
    ((start,),) = valley.points([20], 1)
    with pytest.raises(ValueError, match="the first look is not at step 20"):
        predicted_beside(valley, start, np.array([21]), np.zeros((1, 2)), np.zeros((1, 2)))


def test_where_nothing_oscillates_local_theories_say_nothing(valley):
    ((start,),) = valley.points([20], 1)
    centre = valley.parameters()[[20]].astype(float)
    for deviation in (0.0, np.nan):
        found = predicted_beside(valley, start, np.array([20]), centre, np.full((1, 2), deviation))
        assert np.isnan(found[0].energy[0])
        assert np.isnan(found[1].energy[0])


@pytest.mark.parametrize("theory", [ROD, FLIP, GRADIENT_FLOW])
def test_the_work_is_stopped_between_two_looks(well, theory):
    calls = []

    def between():
        calls.append(theory)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        told(well, [200, 203, 206, 210], theories=[theory], between=between)
    assert len(calls) == 3
