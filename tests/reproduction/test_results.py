"""Pages made of studies whose numbers are made up, so that what must be found is known."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.instabilities.periods import IRREGULAR
from dlf_dynamics.analysis.reproduction import (
    cascade,
    deeper_and_wider,
    instability_onsets,
    over_parameterised,
    spiral_phase_diagram,
    spiral_study,
    stochastic_edge,
    under_parameterised,
    width_learning_rate,
    width_study,
)
from dlf_dynamics.analysis.reproduction.bursts import Burst, bursts_of
from dlf_dynamics.analysis.reproduction.cascade import Cascade, Exponent
from dlf_dynamics.analysis.reproduction.deeper_and_wider import Point
from dlf_dynamics.analysis.reproduction.escapes import Escapes, minimum_of
from dlf_dynamics.analysis.reproduction.grids import Grid
from dlf_dynamics.analysis.reproduction.spiral_study import SpiralRuns
from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.analysis.reproduction.width_study import WidthRuns
from dlf_dynamics.analysis.studies.outcome import CURVES, Outcome
from dlf_dynamics.analysis.studies.statistics import Interval
from dlf_dynamics.analysis.studies.studyfile import create, read_study
from dlf_dynamics.errors import FileError
from dlf_dynamics.problem import Problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEEDS = 6
SPIRAL = spiral_study.Size(Grid((3.0, 30.0), (10, 1000), SEEDS), 2000)
WIDTHS = width_study.Size((20, 50, 100), (0.3, 1.0), SEEDS, 2000, 59)
# Seeds differ far more than the loss makes a difference: only pairs can tell it.
SPREAD = np.array([-0.3, -0.1, 0.0, 0.1, 0.15, 0.2])
NOISE = 0.001 * np.array([1, -1, 2, -2, 1, -1])


def made_up(path, study, number_of, done=lambda config: True):
    """A study file with the outcomes that a function gives for each configuration."""
    with create(path, study) as writer:
        for index, config in enumerate(study.configs):
            if done(config):
                writer.append(index, number_of(config))
    return read_study(path)


def spiral_outcome(config):
    """Held-out accuracy 0.5, and 0.05 more with A = 30 and T = 1000; Adam has 0.1 more."""
    seed = config.model.seed
    gain = 0.05 + NOISE[seed] if config.schedule.amplitude == 30 else NOISE[seed]
    gain = gain if config.schedule.period == 1000 else -NOISE[seed]
    if config.schedule.amplitude == 1:
        gain = 0.1 if config.optimizer.name == "adam" else 0.0
    accuracy = 0.5 + SPREAD[seed] + gain
    return Outcome(
        "complete",
        steps=2000,
        accuracy=accuracy,
        validation_accuracy=accuracy,
        oscillating_steps=200.0 + 10 * config.schedule.amplitude + seed,
        period_2_steps=100.0,
        period_4_steps=50.0,
        instabilities=2.0,
        onset_phase=0.75 if config.schedule.period == 1000 else np.nan,
        seconds=60.0,
        curves=np.zeros((spiral_study.CURVE_POINTS, len(CURVES))),
    )


@pytest.fixture(scope="module")
def spiral(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiral")
    return SpiralRuns(made_up(folder / "study.h5", spiral_study.study(SPIRAL), spiral_outcome))


def row(comparisons, what):
    (found,) = [each for each in comparisons if each.what.startswith(what)]
    return found


def test_pairs_tell_what_the_spread_of_the_seeds_would_hide(spiral):
    found = spiral_phase_diagram.gains(spiral, "accuracy", "gd")
    assert {cell: each.direction for cell, each in found.items()} == {
        (3.0, 10): "not told apart",
        (3.0, 1000): "not told apart",
        (30.0, 10): "not told apart",
        (30.0, 1000): "higher",
    }
    assert found[30.0, 1000].value == pytest.approx(0.05, abs=1e-9)


def test_the_best_cell_agrees_and_loses_against_adam(spiral):
    rows = list(spiral_phase_diagram.compare(spiral))
    best = row(rows, "held-out accuracy, best cell")
    assert best.what.endswith("A = 30, T = 1000")
    against = row(rows, "held-out accuracy of the 4 cells, against static gradient descent")
    assert against.measured == "not told apart in 3, higher in 1"
    assert against.difference.startswith("agrees: best cell +0.050 [")
    against = row(rows, "held-out accuracy of the 4 cells, against static adam")
    assert against.measured == "lower in 4"
    assert against.published is None


def test_onsets_go_with_the_amplitude_and_have_a_phase_where_there_is_one(spiral):
    rows = list(instability_onsets.compare(spiral))
    share = row(rows, "oscillating part of the steps: A = 30 less A = 3")
    assert "T = 10: +0.14 [" in share.measured  # (300 - 30)/2000, rounded to even
    assert share.difference == "up in 2 of 2, the others not told apart"
    phase = row(rows, "phase of the onset in the pulse: T = 1000 less T = 10")  # none has another
    assert phase.measured == "A = 3: no run has it; A = 30: no run has it"
    assert phase.difference == "too few runs"
    by_what = {each.what: each.values for each in instability_onsets.quantities(spiral)}
    here = spiral.cell(30.0, 10)
    expected = 1 - 150 / (500.0 + np.arange(SEEDS))
    np.testing.assert_allclose(by_what["part of the oscillation at neither"][here], expected)
    per_pulse = by_what["instabilities per pulse"]
    np.testing.assert_allclose(per_pulse[here], 2 / ((2000 - 2000 // 14) / 10))


def test_the_shortest_period_is_one_that_has_the_quantity(spiral):
    by_what = {each.what: each for each in instability_onsets.quantities(spiral)}
    share = by_what["oscillating part of the steps"]
    assert instability_onsets.shortest(spiral, share) == 10
    longer = replace(spiral_study.SIZES["full"], grid=Grid((10.0,), (10, 50, 1000), 2))
    study, done = spiral_study.study(longer), np.ones(12, bool)
    runs = SpiralRuns(replace(spiral.results, study=study, done=done))
    values = np.where(runs.results.study.values("schedule.period") == 10, np.nan, 1.0)
    assert instability_onsets.shortest(runs, replace(share, values=values)) == 50


def test_directions_that_disagree_are_no_direction():
    up, down, none = Interval(1, 0.5, 2, 9), Interval(-1, -2, -0.5, 9), Interval(0, -1, 1, 9)
    assert instability_onsets._direction([up, down]).startswith("no one direction: up in 1")
    assert instability_onsets._direction([down, none]).startswith("down in 1 of 2")
    assert instability_onsets._direction([none]) == "not told apart"


def test_a_part_of_a_study_makes_a_page_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(spiral_study, "SIZES", {"tiny": SPIRAL})
    monkeypatch.setattr(spiral_phase_diagram, "SIZES", {"tiny": SPIRAL})
    static = lambda config: config.schedule.amplitude == 1  # noqa: E731
    made_up(tmp_path / "study.h5", spiral_study.study(SPIRAL), spiral_outcome, static)
    text = spiral_phase_diagram.make(Task(tmp_path, "tiny", partial=True)).to_markdown()
    assert "**The study is not finished.**" in text
    assert text.startswith("# Accuracy on the spiral by amplitude and period: unfinished, 18 of 42")
    assert "42, 24 of which not done" in text
    assert "best cell" not in text
    assert "--partial" in text
    with pytest.raises(
        FileError, match="is not there, not finished, or of other settings; leave out --partial"
    ):
        spiral_phase_diagram.make(Task(tmp_path / "other", "tiny", partial=True))


def test_diverged_runs_count_as_accuracy_0_and_unfinished_ones_do_not_count(tmp_path):
    def number_of(config):
        lost = config.model.seed == 0
        return Outcome("diverged") if lost else spiral_outcome(config)

    done = lambda config: config.model.seed < 2  # noqa: E731
    results = made_up(tmp_path / "study.h5", spiral_study.study(SPIRAL), number_of, done)
    column = SpiralRuns(results).column("accuracy")[SpiralRuns(results).static("gd")]
    np.testing.assert_allclose(column[:2], [0, 0.4])
    assert np.isnan(column[2:]).all()


def width_outcome(config):
    """Cross entropy gains 0.2 at the higher rate and loses 0.1 at the lower one, width 20 alone."""
    seed, width = config.model.seed, config.model.widths[0]
    moving = config.schedule.amplitude > 1
    gain = 0.0
    if moving and width == 20:
        gain = 0.2 if config.optimizer.learning_rate == 1.0 else -0.1
    accuracy = 0.65 + SPREAD[seed] + gain + (NOISE[seed] if moving else 0)
    curves = np.full((WIDTHS.points, len(CURVES)), accuracy)
    if moving and width == 50:  # it is still learning
        curves[:, CURVES.index("validation_accuracy")] = np.linspace(0, 1, WIDTHS.points)
    return Outcome(
        "complete",
        steps=2000,
        accuracy=accuracy,
        validation_accuracy=accuracy,
        seconds=6.0,
        curves=curves,
    )


@pytest.fixture(scope="module")
def widths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widths")
    entropy = made_up(folder / "cross-entropy.h5", width_study.study(WIDTHS), width_outcome)
    study = width_learning_rate.study(WIDTHS)
    squared = made_up(folder / "squared-errors.h5", study, width_outcome)
    return folder, WidthRuns(entropy), WidthRuns(squared)


def test_rates_are_never_put_together(widths):
    losses = width_learning_rate.Losses(*widths[1:])
    low, high = (losses.gain("cross-entropy", 20, rate) for rate in (0.3, 1.0))
    assert (low.direction, high.direction) == ("lower", "higher")
    assert (low.size, high.size) == (SEEDS, SEEDS)
    assert losses.gain("cross-entropy", 100, 1.0).direction == "not told apart"
    # The static squared errors are the same runs for both definitions.
    names = ("squared-error", "squared-error-per-output")
    static = [losses.values("accuracy", name, 20, 0.2, 1.0) for name in names]
    np.testing.assert_array_equal(*static)


def test_without_a_plateau_nothing_is_said_of_the_end(widths):
    rows = list(width_learning_rate.compare(width_learning_rate.Losses(*widths[1:])))
    learning = row(rows, "cross-entropy, width 50, rate 1:")
    assert learning.difference.endswith("no statement on the end of learning")
    assert "static 100%, dynamical 0%" in learning.difference
    settled = row(rows, "cross-entropy, width 20, rate 1:")
    assert settled.difference == "higher; at a plateau: static 100%, dynamical 100%"
    most = row(rows, "cross-entropy, rate 1: width that improves most")
    assert (most.measured, most.difference) == ("20", "agrees")
    none = row(rows, "cross-entropy, rate 0.3: width that improves most")
    assert none.measured == "none is known to improve"


def test_a_width_improves_most_only_where_it_is_told_apart():
    def gains(*values):
        each = [Interval(v, v - 0.1, v + 0.1, 9) for v in values]
        return dict(zip((20, 50, 100), each, strict=True))

    assert width_learning_rate.most_improved(gains(0.3, 0.2, 0.0))[0].startswith("20, not told")
    assert width_learning_rate.most_improved(gains(0.0, 0.1, 0.5)) == ("100", "differs")
    lost = gains(0.3, 0.2, 0.0) | {50: Interval(np.nan, np.nan, np.nan, 0)}
    assert width_learning_rate.most_improved(lost) == ("too few runs", "")


def test_the_pages_of_the_widths_share_a_study(widths, tmp_path, monkeypatch):
    folder = tmp_path / "width-learning-rate"
    folder.mkdir()
    for name in ("cross-entropy.h5", "squared-errors.h5"):
        (folder / name).write_bytes((widths[0] / name).read_bytes())
    for module in (width_study, width_learning_rate, under_parameterised):
        monkeypatch.setattr(module, "SIZES", {"tiny": WIDTHS})
    page = width_learning_rate.make(Task(folder, "tiny"))
    assert "18 min" in page.made["cost"]  # 72 + 108 runs of 6 s
    beside = tmp_path / "under-parameterised"
    beside.mkdir()
    page = under_parameterised.make(Task(beside, "tiny"))
    assert not (beside / "cross-entropy.h5").exists()
    verdict = page.comparisons[0]
    assert verdict.measured == "1 of 2: width 20 at rate 1"  # widths 50 and 100 have 303 and 603
    assert verdict.difference.startswith("training accuracy higher in 1, lower in 1")


def test_learned_runs_are_counted_one_by_one(widths):
    accuracy = 0.85 + SPREAD + NOISE
    found = under_parameterised.learned(widths[1], 20, 1.0, 30.0)
    assert (found.value, found.size) == (np.mean(accuracy > 0.95), SEEDS)


def test_generalisation_is_told_of_pairs_that_have_fitted(tmp_path):
    size = over_parameterised._Size(20, Grid((3.0,), (10,), SEEDS), 500)

    def number_of(config):
        seed, moving = config.model.seed, config.schedule.amplitude > 1
        fitted = seed < 3 or not moving
        held_out = 0.9 + (0.03 + NOISE[seed] if fitted else -0.5) * moving
        accuracy = 0.99 if fitted else 0.5
        return Outcome("complete", accuracy=accuracy, validation_accuracy=held_out)

    results = made_up(tmp_path / "study.h5", over_parameterised.study(size), number_of)
    runs = SpiralRuns(results)
    both, every = (over_parameterised.gain(runs, (3.0, 10), fitted=f) for f in (True, False))
    assert (both.direction, both.size) == ("higher", 3)
    assert (every.direction, every.size) == ("not told apart", SEEDS)
    rows = list(over_parameterised.compare(runs))
    (cell,) = [each for each in rows if each.what == "A = 3, T = 10: held-out accuracy"]
    assert cell.difference.startswith("3 of 6 have fitted")


def point(loss, top, rest=0.005):
    return Point(100, loss, (rest, rest, top))


def test_deeper_and_wider_are_told_apart_from_their_opposites():
    def pair(seed):
        factor = 1 + 0.01 * seed
        return {
            "static": {"end": point(1.0, 2.0 * factor), "matched": point(1.0, 1.0 * factor)},
            "dynamical": {"end": point(0.1, 0.2), "matched": point(1.0, 3.0)},
        }

    rows = list(deeper_and_wider.compare([pair(seed) for seed in range(5)]))
    assert row(rows, "static loss at the end").difference.startswith("agrees; 5 pairs")
    assert row(rows, "static loss at the end").measured == "-1.00 [-1.00, -1.00]"
    assert row(rows, "largest eigenvalue at the end").difference.startswith("agrees")
    matched = row(rows, "largest eigenvalue at equal static loss")
    assert matched.difference.startswith("contradicts")
    assert (
        row(rows, "eigenvalues above 0.01 at the end").measured
        == "median 1 (static), 1 (dynamical)"
    )


def test_all_eigenvalues_are_those_of_the_dense_hessian():
    def loss(params, step):
        return jnp.sum(jnp.cosh(params[:3])) * params[3] ** 2 + params[0] * params[1]

    params = np.array([0.3, -0.2, 0.5, 1.5])
    found = deeper_and_wider._dense(Problem.from_loss(loss), jnp.asarray(params))
    x, y = params[:3], params[3]
    expected = np.diag([*np.cosh(x) * y**2, 2 * np.sum(np.cosh(x))])
    expected[3, :3] = expected[:3, 3] = 2 * y * np.sinh(x)
    expected[0, 1] = expected[1, 0] = 1
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def spans(periods):
    """All of them in one burst."""
    periods = np.concatenate([np.zeros(400, int), periods])
    return next(bursts_of(np.arange(len(periods)), periods, 800, 800))


@pytest.mark.parametrize(
    ("kinds", "doubles", "cascades"),
    [
        ((2, 4, 8), True, True),
        ((IRREGULAR, 2, 4, IRREGULAR), True, True),
        ((2, 4, 2), True, False),
        ((IRREGULAR, 2, 4, 2), True, False),
        ((4, 2, IRREGULAR), False, False),
        ((2, IRREGULAR), False, False),
    ],
)
def test_a_cascade_is_2_then_4_then_8_or_none(kinds, doubles, cascades):
    burst = spans(np.repeat(kinds, 100))
    assert (burst.doubles, burst.cascades) == (doubles, cascades)


def test_a_kind_is_reached_where_24_of_32_steps_are_of_it():
    mixed = np.tile([2, 2, 2, 4], 60)  # three quarters
    assert spans(mixed).stretches.keys() == {2}
    assert spans(np.tile([2, 2, 4], 80)).stretches == {}
    assert not spans(np.tile([2, 2, 4], 80)).oscillates
    short = spans(np.repeat([0, 4, 0], [40, 23, 40]))
    assert (short.counts[4], short.stretches) == (23, {})
    long = spans(np.repeat([0, 4, 0], [40, 60, 40]))
    # 24 of the first window are the first steps of the kind, 8 lie before them.
    assert long.stretches == {4: ((400 + 40 - 8, 400 + 40 + 60 - 1 + 8),)}
    assert long.middle(4) == 400 + 40 + 29


def exponent(value, error, overlap, kind=IRREGULAR):
    return Exponent(0, kind, 500, value, error, True, overlap)


def test_chaos_needs_an_exponent_along_the_oscillation():
    assert exponent(0.1, 0.01, 0.9).chaotic
    assert not exponent(0.1, 0.01, 0.1).chaotic
    assert not exponent(0.1, 0.06, 0.9).chaotic
    assert not exponent(-0.1, 0.01, 0.9).chaotic


def test_the_page_says_how_many_bursts_cascade_and_shows_no_chaos_that_is_none():
    whole, half = spans(np.repeat([2, 4, 8], 100)), spans(np.repeat([IRREGULAR], 100))
    quiet = Burst(0, 800, dict.fromkeys((2, 4, 8, IRREGULAR), 0), {})
    slow = Cascade(0, (whole, half, quiet), (exponent(0.01, 0.001, 0.0),))
    rows = list(cascade.compare([slow, replace(slow, seed=1)]))
    assert rows[0].measured == "most (4 of 6)"
    order = row(rows, "of these: period 2 first")
    assert (order.measured, order.difference) == ("some (2 of 4)", "without seed 0: some (1 of 2)")
    assert "no chaos is shown" in row(rows, "exponents where the run is irregular").difference
    fast = replace(slow, exponents=(exponent(0.1, 0.001, 0.9),))
    rows = list(cascade.compare([fast]))
    assert "no chaos" not in row(rows, "exponents where the run is irregular").difference
    assert cascade.draw([slow, fast]) is not None


class Neighbourhood(NamedTuple):
    """What a comparison reads of runs near a minimum."""

    groups: tuple
    quiet: bool
    name: str = "digits"

    @property
    def interpolates(self):
        return self.quiet

    def noiseless(self, group):
        return self.quiet


@pytest.mark.parametrize(
    ("below", "above", "told"),
    [
        ((0.9, 0.5), (7.0, 5.0), "agrees on both sides"),
        ((0.9, 0.5), (7.0, 0.2), "agrees below; above, some runs shrink while the moment grows"),
        ((0.9, 1.1), (7.0, np.inf), "contradicts: runs moved away below the line"),
    ],
)
def test_below_the_mean_square_threshold_no_run_may_move_away(below, above, told):
    rates, raised = np.array([0.8, 1.25]), np.full((2, 2), np.nan)
    found = Escapes(1, 0.1, 0.1001, rates, np.array([below, above]), raised)
    moved, steps = stochastic_edge.compare([Neighbourhood((found,), quiet=True)])
    share = np.mean(np.array(below) > 1)
    assert moved.measured.startswith(f"0.8: {share:.0%}; 1.25: ")
    assert moved.difference == told
    assert steps.measured == "0.8: none defined; 1.25: none defined"


def test_with_noise_at_the_minimum_no_line_is_expected():
    found = Escapes(1, 0.1, 0.1001, np.array([0.8]), np.array([[30.0, 50.0]]), np.ones((1, 2)))
    moved, steps = stochastic_edge.compare([Neighbourhood((found,), quiet=False)])
    assert moved.published is None
    assert moved.measured == "0.8: 40"
    assert steps.measured == "0.8: 100%"


def test_a_minimum_that_interpolates_is_found(tmp_path):
    size = stochastic_edge._SIZES["tiny"]
    config = stochastic_edge.networks(replace(size, examples=4))["digits"]
    minimum = minimum_of(Task(tmp_path), config, "minimum")
    outputs = np.asarray(minimum.problem.outputs(jnp.asarray(minimum.params)))
    np.testing.assert_allclose(outputs, np.eye(4)[minimum.problem.targets], atol=1e-9)
