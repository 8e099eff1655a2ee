"""Crossings and oscillations of made-up series whose events are known."""

import numpy as np
import pytest

from dlf_dynamics.analysis.spectra.events import (
    Crossing,
    find_crossings,
    find_oscillations,
    sides,
    why_unwatched,
)


def crossings(values, *, residuals=0.0, converged=True, thresholds=2.0):
    values = np.asarray(values, float)
    residuals, converged, thresholds = (
        np.broadcast_to(x, values.shape) for x in (residuals, converged, thresholds)
    )
    intervals = np.stack([values - residuals, values + residuals], axis=1)
    side = sides(intervals, converged, thresholds)
    return find_crossings(25 * np.arange(len(values)), values, side, thresholds, "centre")


def test_a_crossing_up_and_one_down_tell_their_brackets_values_and_threshold():
    assert crossings([1.0, 1.9, 2.5, 2.2, 1.0]) == [
        Crossing("up", 25, 50, 1.9, 2.5, 2.0, "centre"),
        Crossing("down", 75, 100, 2.2, 1.0, 2.0, "centre"),
    ]


@pytest.mark.parametrize("values", [[], [3.0], [1.0, 1.5, 1.9], [5.0, 3.0, 2.1]])
def test_values_on_one_side_have_no_crossing(values):
    assert crossings(values) == []


def test_a_value_whose_interval_does_not_clear_the_threshold_is_not_used():
    found = crossings([1.0, 2.1, 1.95, 3.0], residuals=[0, 0.2, 0.1, 0])
    assert [(c.direction, c.step_before, c.step_after) for c in found] == [("up", 0, 75)]
    assert found[0].state == "unresolved"


def test_a_value_that_did_not_converge_is_not_used():
    found = crossings([1.0, 5.0, 1.0, 3.0], converged=[True, False, True, True])
    assert [(c.direction, c.step_before, c.step_after) for c in found] == [("up", 50, 75)]


def test_nan_and_values_exactly_at_the_threshold_are_on_no_side():
    found = crossings([np.nan, 1.0, np.nan, 2.0, 3.0, np.nan])
    assert [(c.step_before, c.step_after) for c in found] == [(25, 100)]


def test_a_moving_threshold_is_crossed_by_a_constant_value():
    found = crossings([2.0, 2.0, 2.0], thresholds=[3.0, 1.0, np.inf])
    assert [(c.direction, c.threshold) for c in found] == [("up", 1.0), ("down", np.inf)]


def test_nothing_crosses_thresholds_that_are_nan():
    assert crossings([1.0, 3.0], thresholds=np.nan) == []


def oscillations(cosine, loss=None, **options):
    cosine = np.asarray(cosine, float)
    loss = np.ones(len(cosine)) if loss is None else loss
    return find_oscillations(100 + np.arange(len(cosine)), loss, cosine, **options)


def quiet_then_oscillating(start, end, length=400):
    """Cosine 1, but -1 from `start` to `end`."""
    steps = np.arange(length)
    return np.where((steps >= start) & (steps <= end), -1.0, 1.0)


def test_a_smooth_run_has_no_oscillation():
    assert oscillations(np.ones(300)) == []
    assert oscillations(np.full(300, -0.5)) == []


def test_a_period_2_orbit_that_is_seen_in_the_loss_is_a_burst():
    cosine = quiet_then_oscillating(150, 250)
    steps = np.arange(400)
    seen = (steps >= 180) & (steps <= 220)
    loss = 1 + 0.015 * seen * (-1.0) ** steps
    (found,) = oscillations(cosine, loss)
    assert (found.onset, found.end, found.burst) == (250, 350, True)
    # The second difference reaches one step beyond the oscillation of the loss.
    assert (found.burst_start, found.burst_end) == (279, 321)
    np.testing.assert_allclose(found.max_change, 0.03, rtol=1e-12)
    assert found.crossed == -1


def test_in_a_symmetric_valley_the_oscillation_is_found_though_the_loss_is_constant():
    """Gradient descent on log cosh at η = 2.1 ends on x = ±0.3892410192, where F is constant."""
    x, visited = 0.3, []
    for _ in range(500):
        visited.append(x)
        x = x - 2.1 * np.tanh(x)
    visited = np.array(visited)
    np.testing.assert_allclose(np.abs(visited[-1]), 0.3892410192, rtol=1e-9)
    updates = np.diff(visited)
    cosine = np.sign(updates[1:] * updates[:-1])
    (found,) = oscillations(cosine, np.log(np.cosh(visited[1:-1])))
    assert (found.onset, found.end) == (100, 100 + len(cosine) - 1)
    assert not found.burst
    assert (found.burst_start, found.burst_end) == (-1, -1)


def test_nan_cosines_do_not_count_as_oscillating():
    cosine = np.full(300, np.nan)
    assert oscillations(cosine) == []
    cosine[100:150] = -1.0
    (found,) = oscillations(cosine)
    assert (found.onset, found.end) == (200, 249)


def test_a_loss_that_is_not_finite_does_not_hide_the_oscillation():
    loss = np.ones(400)
    loss[-1] = np.inf
    (found,) = oscillations(quiet_then_oscillating(300, 390), loss)
    assert (found.onset, found.end) == (400, 490)


@pytest.mark.parametrize(("gap", "windows"), [(50, 1), (51, 2)])
def test_windows_are_merged_over_gaps_of_up_to_50_steps(gap, windows):
    cosine = quiet_then_oscillating(20, 60)
    cosine[60 + gap : 60 + gap + 30] = -1
    assert len(oscillations(cosine)) == windows


@pytest.mark.parametrize(("length", "windows"), [(15, 0), (16, 1)])
def test_windows_of_fewer_than_16_steps_are_left_out(length, windows):
    assert len(oscillations(quiet_then_oscillating(30, 30 + length - 1))) == windows


def test_the_loss_from_which_a_window_is_a_burst_can_be_chosen():
    cosine = quiet_then_oscillating(100, 200)
    loss = 1 + 1e-4 * (cosine < 0) * (-1.0) ** np.arange(400)
    assert not oscillations(cosine, loss)[0].burst
    assert oscillations(cosine, loss, burst_loss=1e-4)[0].burst


def test_a_jump_of_the_loss_without_oscillation_is_no_burst():
    loss = np.ones(300)
    loss[150:] = 2.0
    assert oscillations(np.ones(300), loss) == []


@pytest.mark.parametrize("replayed", [True, False])
def test_a_run_whose_steps_cannot_be_made_again_is_sent_to_no_command(replayed):
    told = why_unwatched(None, np.full(3, np.nan), replayed=replayed)
    assert told.startswith("no update cosines were recorded")
    assert ("dlf-dynamics bifurcations" in told) == replayed
