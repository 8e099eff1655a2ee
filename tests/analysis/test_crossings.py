"""Crossings whose intervals do not clear the threshold are refined, or said to be unresolved."""

from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics.analysis.spectra import crossings
from dlf_dynamics.analysis.spectra.crossings import resolve_crossings, states_between
from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.config import SpectrumConfig


@pytest.fixture(scope="module")
def found(eventful, trained):
    """A run, a spectrum at every tenth step, its thresholds and its solver."""
    run = trained(eventful)
    config = SpectrumConfig(k=2)
    chosen = np.arange(0, 1001, 10)
    thresholds = np.full(len(chosen), 2 / eventful.optimizer.learning_rate)
    solver = Solver.from_config(run, config)
    return run, hessian_spectrum(run, chosen, config=config), thresholds, solver


def widened(hessian, rows, radius=10.0):
    """The same spectrum with intervals at the centres that say nothing."""
    intervals, residuals = np.array(hessian.centre.intervals), np.array(hessian.centre.residuals)
    intervals[rows] = hessian.centre.eigenvalues[rows, :, None] + [-radius, radius]
    residuals[rows] = radius
    centre = hessian.centre._replace(intervals=intervals, residuals=residuals)
    return replace(hessian, centre=centre)


def at_centres(resolved):
    return [c for c in resolved.found if c.at == "centre"]


def test_intervals_that_clear_the_threshold_make_certain_crossings(found):
    run, hessian, thresholds, solver = found
    resolved = resolve_crossings(run, solver, hessian, thresholds)
    assert len(at_centres(resolved)) > 0
    assert {c.state for c in resolved.found} == {"certain"}
    assert resolved.hessian is hessian
    values = hessian.centre.eigenvalues[1:, 0]
    np.testing.assert_array_equal(resolved.sides[1:, 1], np.where(values > thresholds[1:], 1, -1))


def test_a_tighter_tolerance_refines_a_crossing_and_finds_the_same(found):
    run, hessian, thresholds, solver = found
    certain = at_centres(resolve_crossings(run, solver, hessian, thresholds))
    row = int(np.searchsorted(hessian.steps, certain[0].step_after))
    wide = widened(hessian, [row])
    resolved = resolve_crossings(run, solver, wide, thresholds)
    refined = at_centres(resolved)
    assert [c.state for c in refined] == ["refined"] + ["certain"] * (len(certain) - 1)
    assert [(c.step_before, c.step_after) for c in refined] == [
        (c.step_before, c.step_after) for c in certain
    ]
    assert resolved.hessian.centre.residuals[row, 0] < 1e-6
    assert wide.centre.residuals[row, 0] == 10.0
    np.testing.assert_allclose(
        resolved.hessian.centre.eigenvalues[row], hessian.centre.eigenvalues[row], rtol=1e-6
    )
    assert resolved.hessian.centre.num_matvecs[row] > hessian.centre.num_matvecs[row]


def test_finer_steps_refine_it_where_the_checkpoint_stays_undecided(found, monkeypatch):
    run, hessian, thresholds, solver = found
    certain = at_centres(resolve_crossings(run, solver, hessian, thresholds))[0]
    row = int(np.searchsorted(hessian.steps, certain.step_after))
    wide = widened(hessian, [row])
    monkeypatch.setattr(crossings, "_refined", lambda run, solver, hessian, rows: hessian)
    refined = at_centres(resolve_crossings(run, solver, wide, thresholds))[0]
    assert refined.state == "refined"
    assert certain.step_before <= refined.step_before
    assert refined.step_after <= certain.step_after + 10
    assert refined.step_after - refined.step_before < 10


def test_what_stays_undecided_is_unresolved(found, monkeypatch):
    run, hessian, thresholds, solver = found
    certain = at_centres(resolve_crossings(run, solver, hessian, thresholds))[0]
    row = int(np.searchsorted(hessian.steps, certain.step_after))
    wide = widened(hessian, [row])
    monkeypatch.setattr(crossings, "_refined", lambda run, solver, hessian, rows: hessian)
    blind = solver._replace(max_matvecs=6)
    monkeypatch.setattr(Solver, "tightened", lambda solver, run: blind)
    resolved = resolve_crossings(run, solver, wide, thresholds)
    first = at_centres(resolved)[0]
    assert first.state == "unresolved"
    assert (first.step_before, first.step_after) == (
        certain.step_before,
        int(hessian.steps[row + 1]),
    )
    assert resolved.sides[row, 1] == 0


def test_replayed_steps_are_the_recorded_ones(eventful, trained):
    run = trained(eventful)
    points = states_between(run, 500, 527)
    steps = [point.step for point in points]
    assert (steps[0], steps[-1]) == (500, 527)
    assert steps == sorted(set(steps))
    np.testing.assert_array_equal(np.stack([p.params for p in points]), run.parameters(steps))
