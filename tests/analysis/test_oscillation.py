"""The motion at each step against NumPy on steps made one by one, periods on made-up orbits."""

from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest
from scipy.linalg import eigh

from dlf_dynamics import ModelConfig, SpectrumConfig
from dlf_dynamics.analysis.instabilities.location import look_at
from dlf_dynamics.analysis.instabilities.oscillation import follow, joined, looked_further
from dlf_dynamics.analysis.instabilities.periods import (
    IRREGULAR,
    LAGS,
    periods_of_iterates,
    periods_of_loss,
)
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver

LOOKED_AT = np.array([1, *range(5, 60, 5), 59])


@pytest.fixture(params=["tanh", "relu"])
def run(request, small, trained):
    model = ModelConfig(widths=(4, 3), activation=request.param, init="glorot-normal")
    return trained(replace(small, model=model))


@pytest.fixture
def motion(run):
    replay, solver = Replay(run), Solver.from_config(run, SpectrumConfig(k=1, tol=1e-9))
    pieces = []
    for first, last in pairwise((0, 18, 38, 60)):
        inside = [step for step in LOOKED_AT.tolist() if first <= step < last]
        pieces.append(follow(replay, solver, first, last, inside))
    return joined(pieces)


def test_recurrence_size_and_drift_are_those_of_the_iterates(run, motion, by_hand):
    theta = by_hand(run, 70)[:61]
    norm = np.linalg.norm
    for t in range(1, 60):
        step = norm(theta[t + 1] - theta[t])
        for column, lag in enumerate(LAGS):
            if t + lag <= 60:
                expected = norm(theta[t + lag] - theta[t]) / step
                assert motion.recurrence[t, column] == pytest.approx(expected, rel=1e-9)
            else:
                assert np.isnan(motion.recurrence[t, column])
        centre = theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4
        assert motion.amplitude[t] == pytest.approx(norm(theta[t] - centre), rel=1e-7, abs=1e-13)
        drift = norm(theta[t + 1] - theta[t - 1]) / 2
        assert motion.drift[t] == pytest.approx(drift, rel=1e-9)
    assert np.isnan(motion.amplitude[0])


def test_curvature_and_projection_are_those_of_the_dense_hessian_at_the_nearest_centre(
    run, motion, by_hand
):
    theta = by_hand(run, 62)
    hessian = jax.jit(jax.hessian(run.problem.objective))
    centre = lambda t: theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4  # noqa: E731
    assert motion.looked_at.tolist() == LOOKED_AT.tolist()
    followed = []
    for row, t in enumerate(LOOKED_AT):
        values, vectors = eigh(np.asarray(hessian(centre(t), t)))
        assert motion.converged[row]
        assert motion.values[row] == pytest.approx(values[-1], rel=1e-7)
        lower, upper = motion.intervals[row]
        assert lower <= values[-1] <= upper
        lower, upper = motion.iterate_intervals[row]
        assert lower <= eigh(np.asarray(hessian(theta[t], t)))[0][-1] <= upper
        turn = np.sign(followed[-1] @ vectors[:, -1]) if followed else 1
        followed.append(turn * vectors[:, -1])
    signs = set()
    for t in range(1, 60):
        nearest = int(np.argmin(np.abs(LOOKED_AT - t)))
        expected = followed[nearest] @ (theta[t] - centre(t))
        assert abs(motion.projection[t]) == pytest.approx(abs(expected), rel=1e-4, abs=1e-10)
        if abs(expected) > 1e-9:
            signs.add(np.sign(motion.projection[t] * expected))
    assert len(signs) == 1


def test_looking_at_more_steps_is_the_same_as_having_looked_at_them_before(run, motion, by_hand):
    replay, solver = Replay(run), Solver.from_config(run, SpectrumConfig(k=1, tol=1e-9))
    more = np.array([2, 5, 7, 8, 33, 58])
    closer = looked_further(motion, more, look_at(replay, solver, more))
    assert closer.looked_at.tolist() == np.union1d(LOOKED_AT, more).tolist()
    theta = by_hand(run, 62)
    for t, interval in zip(closer.looked_at, closer.intervals, strict=True):
        centre = theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4
        largest = eigh(np.asarray(jax.hessian(run.problem.objective)(centre, t)))[0][-1]
        assert interval[0] <= largest <= interval[1]
    at_iterate = np.isfinite(closer.iterate_intervals[:, 0])
    assert closer.looked_at[at_iterate].tolist() == LOOKED_AT.tolist()
    np.testing.assert_array_equal(closer.projection, motion.projection)


def test_gate_flips_are_those_of_the_network(run, motion, by_hand):
    if run.config.model.activation == "tanh":
        assert np.all(np.isnan(motion.gate_flips))
        return
    theta = by_hand(run, 62)

    def gates(vector):
        hidden, signs = np.asarray(run.dataset.inputs), []
        for weight, bias in run.unravel(vector)[:-1]:
            hidden = hidden @ np.asarray(weight) + np.asarray(bias)
            signs.append(hidden > 0)
            hidden = np.maximum(hidden, 0)
        return np.concatenate(signs, axis=1)

    flips = [np.mean(gates(theta[t]) != gates(theta[t + 1])) for t in range(60)]
    np.testing.assert_allclose(motion.gate_flips, flips, atol=1e-15)
    assert np.max(flips) > 0


def orbit(period, count=80):
    """Points on a circle, visited so that the orbit has this period and turns back each step."""
    angles = 2 * np.pi * np.arange(count) * (period // 2 - (period > 2)) / period
    if period == 2:
        angles = np.pi * np.arange(count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.mark.parametrize("period", [2, 8])
def test_the_period_of_an_orbit_is_found(period):
    points = orbit(period)
    updates = np.diff(points, axis=0)
    norms = np.linalg.norm(updates, axis=1)
    cosine = np.sum(updates[1:] * updates[:-1], axis=1) / (norms[1:] * norms[:-1])
    rows = np.arange(1, 60)
    recurrence = np.stack(
        [np.linalg.norm(points[rows + k] - points[rows], axis=1) / norms[rows] for k in LAGS], 1
    )
    assert set(periods_of_iterates(cosine[rows - 1], recurrence)) == {period}


def test_a_chaotic_orbit_has_no_period_and_a_slow_motion_does_not_oscillate():
    recurrence = np.array([[0.9, 0.8, 0.7], [2.0, 4.0, 8.0], [0.1, 0.1, 0.1]])
    found = periods_of_iterates(np.array([-0.9, 0.99, np.nan]), recurrence)
    assert found.tolist() == [IRREGULAR, 0, 0]


def test_the_period_is_seen_in_the_loss_on_a_trend():
    t = np.arange(400.0)
    trend = 1 + 1e-3 * t + 1e-6 * t**2
    rng = np.random.default_rng(0)
    two = trend + 0.01 * (-1.0) ** t
    four = trend + 0.01 * (-1.0) ** t + 0.01 * np.cos(np.pi * t / 2 + 0.3)
    assert set(periods_of_loss(two)) == {2}
    assert set(periods_of_loss(four)) == {4}
    assert set(periods_of_loss(trend)) == {0}
    assert np.mean(periods_of_loss(trend + 0.01 * rng.normal(size=400)) > 0) < 0.05
    assert periods_of_loss(two[:20]).tolist() == [0] * 20
    assert set(periods_of_loss(np.full(100, np.nan))) == {0}


def test_in_a_symmetric_valley_the_loss_shows_nothing_while_the_iterates_alternate():
    # Gradient descent on log cosh x at η = 2.1, on its orbit of period 2: F is constant.
    x = 0.3892410192 * (-1.0) ** np.arange(100)
    assert set(periods_of_loss(np.log(np.cosh(x)))) == {0}
    recurrence = np.tile([0.0, 0.0, 0.0], (100, 1))
    assert set(periods_of_iterates(np.full(100, -1.0), recurrence)) == {2}
