from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dlf_dynamics.analysis.studies.outcome import NUMBERS
from dlf_dynamics.analysis.studies.phase_diagram import phase_diagram
from dlf_dynamics.analysis.studies.selection import choose_axes, select
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import StudyResults
from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import ConfigError

A, T, SEED, RATE = "schedule.amplitude", "schedule.period", "model.seed", "optimizer.learning_rate"


def study_of(keys, rows, statuses=None):
    """Results of the runs with these values of the keys and this accuracy, the last in a row."""
    values = [np.array(column) for column in zip(*rows, strict=True)]
    columns = {name: np.full(len(rows), np.nan) for name in NUMBERS}
    columns["accuracy"] = values.pop().astype(float)
    statuses = ["complete"] * len(rows) if statuses is None else statuses
    table = dict(zip(keys, values, strict=True))
    return SimpleNamespace(
        study=SimpleNamespace(keys=tuple(keys), values=table.__getitem__),
        done=np.array([status is not None for status in statuses]),
        statuses=statuses,
        columns=columns,
        curves=None,
    )


def grid(amplitudes, periods, seeds, rng=None):
    rng = np.random.default_rng(0) if rng is None else rng
    return [(a, t, s, rng.uniform()) for a in amplitudes for t in periods for s in range(seeds)]


def test_means_errors_and_differences_are_those_of_the_direct_formulas():
    amplitudes, periods, seeds = [1.0, 10.0, 70.0], [20, 90], 4
    rows = grid(amplitudes, periods, seeds)
    found = phase_diagram(study_of((A, T, SEED), rows), "accuracy")
    table = np.array([row[3] for row in rows]).reshape(3, 2, 4)
    mean, error = table.mean(axis=2), table.std(axis=2, ddof=1) / 2
    assert (found.x_key, found.y_key) == (T, A)
    np.testing.assert_array_equal(found.x, periods)
    np.testing.assert_array_equal(found.y, [10, 70])
    np.testing.assert_allclose(found.mean, mean[1:], rtol=1e-14)
    np.testing.assert_allclose(found.standard_error, error[1:], rtol=1e-14)
    np.testing.assert_allclose(found.static, mean[0], rtol=1e-14)
    np.testing.assert_allclose(found.static_error, error[0], rtol=1e-14)
    np.testing.assert_allclose(found.difference, mean[1:] - mean[0], rtol=1e-13)
    both = np.sqrt(error[1:] ** 2 + error[0] ** 2)
    np.testing.assert_allclose(found.difference_error, both, rtol=1e-14)
    np.testing.assert_array_equal(found.count, 4)
    np.testing.assert_array_equal(found.missing, 0)
    np.testing.assert_array_equal(found.static_count, 4)


def test_runs_that_diverged_failed_are_not_made_or_have_no_number_are_missing():
    rows = [(10.0, 20, 0, 0.5), (10.0, 20, 1, 0.7), (10.0, 20, 2, 0.1), (10.0, 20, 3, 0.2)]
    rows += [(10.0, 90, 0, 0.25), (10.0, 90, 1, np.nan), (30.0, 90, 0, 0.9)]
    statuses = ["complete", "complete", "diverged", "failed", "complete", "complete", None]
    found = phase_diagram(study_of((A, T, SEED), rows, statuses), "accuracy")
    np.testing.assert_allclose(found.mean, [[0.6, 0.25], [np.nan, np.nan]])
    np.testing.assert_allclose(found.standard_error, [[0.1, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(found.count, [[2, 1], [0, 0]])
    np.testing.assert_array_equal(found.missing, [[2, 1], [0, 1]])
    assert np.all(np.isnan(found.static))
    assert np.all(np.isnan(found.difference))


def test_a_column_without_static_runs_is_compared_with_those_of_the_others_each_counted_once():
    rows = [(1.0, 20, 0, 0.4), (1.0, 20, 1, 0.6), (1.0, 90, 0, 0.4), (1.0, 90, 1, 0.6)]
    rows += [(10.0, t, s, 0.9) for t in (20, 90, 400) for s in (0, 1)]
    found = phase_diagram(study_of((A, T, SEED), rows), "accuracy")
    np.testing.assert_allclose(found.static, 0.5)
    np.testing.assert_allclose(found.static_error, 0.1)  # of two runs, not of four
    np.testing.assert_array_equal(found.static_count, 2)
    np.testing.assert_allclose(found.difference, 0.4)


def test_a_column_has_its_own_static_runs_if_there_are_usable_ones():
    rows = [(1.0, 20, 0, 0.4), (1.0, 90, 0, 0.6), (1.0, 400, 0, 0.8)]
    rows += [(10.0, t, 0, 0.9) for t in (20, 90, 400)]
    statuses = ["complete", "complete", "diverged", *["complete"] * 3]
    found = phase_diagram(study_of((A, T, SEED), rows, statuses), "accuracy")
    np.testing.assert_allclose(found.static, [0.4, 0.6, 0.5])
    one = phase_diagram(study_of((A, T, SEED), rows), "accuracy", fixed={T: 400})
    np.testing.assert_allclose(one.static, 0.8)


def test_static_runs_that_diverged_are_counted_as_missing():
    rows = [(1.0, 20, 0, 0.4), (1.0, 20, 1, np.nan), (10.0, 20, 0, 0.5), (10.0, 20, 1, 0.5)]
    statuses = ["complete", "diverged", "complete", "complete"]
    found = phase_diagram(
        study_of((A, T, SEED), [*rows, (10.0, 30, 0, 0.1)], [*statuses, None]), "accuracy"
    )
    np.testing.assert_array_equal(found.static_count, 1)
    np.testing.assert_array_equal(found.static_missing, 1)


def test_static_runs_are_told_by_the_name_of_the_schedule_too():
    rows = [("static", 20, 0.25), ("triangle", 20, 0.5), ("triangle", 90, 1.0)]
    found = phase_diagram(study_of(("schedule.name", T), rows), "accuracy")
    assert (found.x_key, found.y_key) == (T, None)
    np.testing.assert_allclose(found.mean, [[0.5, 1.0]])
    np.testing.assert_allclose(found.difference, [[0.25, 0.75]])


def test_static_runs_of_another_learning_rate_are_not_compared_with():
    rows = [(a, rate, 0, a * rate) for a in (1.0, 3.0, 5.0) for rate in (0.1, 0.2)]
    study = study_of((A, RATE, SEED), rows)
    upwards = phase_diagram(study, "accuracy")
    assert (upwards.x_key, upwards.y_key) == (RATE, A)
    np.testing.assert_allclose(upwards.static, [0.1, 0.2])
    across = phase_diagram(study, "accuracy", x=A, y=RATE)
    np.testing.assert_allclose(across.difference, [[0.2, 0.4], [0.4, 0.8]])
    np.testing.assert_allclose(across.reference, [[0.1, 0.1], [0.2, 0.2]])
    assert np.all(np.isnan(across.static))  # it differs from row to row
    one = phase_diagram(study, "accuracy", fixed={RATE: "0.20"})
    np.testing.assert_allclose(one.static, 0.2)
    np.testing.assert_allclose(one.mean, [[0.6, 1.0]])


def test_where_only_static_runs_are_left_they_are_the_cells():
    rows = [(a, rate, s, rate + s) for a in (1.0, 3.0) for rate in (0.1, 0.2) for s in (0, 1)]
    found = phase_diagram(study_of((A, RATE, SEED), rows), "accuracy", fixed={A: 1})
    np.testing.assert_allclose(found.mean, [[0.6, 0.7]])
    assert np.all(np.isnan(found.static))


def test_one_axis_makes_one_row():
    rows = [(rate, s, rate * (s + 1)) for rate in (0.4, 0.1, 0.2) for s in (0, 1)]
    found = phase_diagram(study_of((RATE, SEED), rows), "accuracy")
    assert (found.x_key, found.y_key, found.mean.shape) == (RATE, None, (1, 3))
    np.testing.assert_array_equal(found.x, [0.1, 0.2, 0.4])
    np.testing.assert_allclose(found.mean[0], [0.15, 0.3, 0.6])


def test_only_the_amplitude_is_enough_for_a_comparison():
    rows = [(a, s, a + s) for a in (1.0, 70.0) for s in (0, 1)]
    found = phase_diagram(study_of((A, SEED), rows), "accuracy")
    assert (found.x_key, found.x.tolist()) == (A, [70])
    np.testing.assert_allclose(found.difference, [[69]])
    np.testing.assert_allclose(found.difference_error, [[np.sqrt(0.5)]])


def test_a_seed_may_be_an_axis_or_fixed():
    rows = [(a, s, d, 100 * a + 10 * s + d) for a in (2.0, 3.0) for s in (0, 1) for d in (0, 1)]
    study = study_of((A, SEED, "data.seed"), rows)
    found = phase_diagram(study, "accuracy", x=SEED, y=A)
    np.testing.assert_allclose(found.mean, [[200.5, 210.5], [300.5, 310.5]])
    found = phase_diagram(study, "accuracy", fixed={"data.seed": 1})
    np.testing.assert_allclose(found.mean, [[206, 306]])
    rows += [(1.0, s, d, 10 * s + d) for s in (0, 1) for d in (0, 1)]
    study = study_of((A, SEED, "data.seed"), rows)
    np.testing.assert_allclose(phase_diagram(study, "accuracy", fixed={SEED: 1}).static, 10.5)


def test_widths_are_sorted_by_their_numbers():
    rows = [(w, s, len(w)) for w in ("100-50", "20", "100", "none") for s in (0, 1)]
    found = phase_diagram(study_of(("model.widths", SEED), rows), "accuracy")
    assert found.x.tolist() == ["20", "100", "100-50", "none"]
    np.testing.assert_array_equal(found.mean, [[2, 3, 6, 4]])
    with_rate = [(*row[:2], rate, row[2]) for row in rows for rate in (0.1, 0.2)]
    study = study_of(("model.widths", SEED, RATE), with_rate)
    assert phase_diagram(study, "accuracy", fixed={"model.widths": (100, 50)}).mean[0, 0] == 6


def test_missing_values_of_a_key_are_a_value():
    rows = [(b, s, 1.0 + s) for b in (np.nan, 32.0) for s in (0, 1)]
    study = study_of(("batch_size", SEED), rows)
    found = phase_diagram(study, "accuracy")
    np.testing.assert_array_equal(found.x, [32, np.nan])
    np.testing.assert_allclose(found.mean, [[1.5, 1.5]])
    only = phase_diagram(study, "accuracy", x=SEED, fixed={"batch_size": None})
    np.testing.assert_allclose(only.mean, [[1, 2]])


def test_a_key_that_follows_from_an_axis_needs_not_be_fixed():
    rows = [(a, t, 10 * t, s, a * t) for a in (1.0, 5.0, 7.0) for t in (20, 90) for s in (0, 1)]
    found = phase_diagram(study_of((A, T, "steps", SEED), rows), "accuracy")
    np.testing.assert_allclose(found.mean, [[100, 450], [140, 630]])
    np.testing.assert_allclose(found.static, [20, 90])


def test_copies_of_a_run_count_once():
    rows = [(rate, 0, 0.5) for rate in (0.1, 0.1, 0.2)]
    found = phase_diagram(study_of((RATE, SEED), rows), "accuracy")
    np.testing.assert_array_equal(found.count, [[1, 1]])


def test_rows_hold_every_cell_with_its_keys():
    rows = [(*row[:3], rate, row[3]) for row in grid([1.0, 10.0], [20, 90], 2) for rate in (0.1, 1)]
    found = phase_diagram(study_of((A, T, SEED, RATE), rows), "accuracy", fixed={RATE: 1})
    table = found.rows()
    assert [(row[A], row[T], row[RATE]) for row in table] == [(10.0, 20, 1.0), (10.0, 90, 1.0)]
    for column, row in enumerate(table):
        assert row["quantity"] == "accuracy"
        assert (row["runs"], row["missing"]) == (2, 0)
        assert row["mean"] == found.mean[0, column]
        assert row["standard_error"] == found.standard_error[0, column]
        assert row["static"] == found.static[column]
        assert row["static_error"] == found.static_error[column]
        assert row["difference"] == found.difference[0, column]
        assert row["difference_error"] == found.difference_error[0, column]
        assert all(isinstance(value, str | int | float) for value in row.values())


def test_nothing_but_seeds_is_averaged_over():
    rows = [
        (*row[:3], r, n, row[3])
        for row in grid([5.0, 9.0], [20, 90], 2)
        for r in (0.1, 1)
        for n in (0, 0.5)
    ]
    study = study_of((A, T, SEED, RATE, "data.noise"), rows)
    fixes = "fix optimizer.learning_rate to one of 0.1, 1; data.noise to one of 0, 0.5$"
    keys = "^optimizer.learning_rate and data.noise vary, only seeds are averaged over; "
    with pytest.raises(ConfigError, match=keys + fixes):
        phase_diagram(study, "accuracy")
    with pytest.raises(ConfigError, match=r"data.noise varies, only seeds"):
        phase_diagram(study, "accuracy", fixed={RATE: 0.1})
    with pytest.raises(
        ConfigError, match=r"schedule.period varies, .*fix schedule.period to one of 20, 90"
    ):
        phase_diagram(study, "accuracy", x=RATE, y=A, fixed={"data.noise": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantity": "acuracy"}, "'acuracy' is unknown; did you mean accuracy?"),
        ({"x": "model.widths"}, "axis model.widths does not vary; choices: schedule.amplitude, "),
        ({"x": T, "y": T}, "both axes are schedule.period; choose two of "),
        ({"x": T, "fixed": {T: 20}}, "schedule.period is an axis and fixed"),
        ({"fixed": {RATE: 1}}, "optimizer.learning_rate does not vary in the study; choices: "),
        ({"fixed": {T: 21}}, "no run has schedule.period 21; choices: 20, 90"),
        ({"fixed": {T: "long"}}, "no run has schedule.period long; choices: 20, 90"),
        ({"fixed": {T: 20, A: 5}}, "nothing but seeds varies"),
    ],
)
def test_what_is_not_in_the_study_is_refused_in_one_line(options, message):
    study = study_of((A, T, SEED), grid([5.0, 9.0], [20, 90], 2))
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as error:
        phase_diagram(study, **({"quantity": "accuracy"} | options))
    assert message in str(error.value)


def test_values_that_no_run_has_together_are_refused():
    study = study_of((A, T, RATE), [(5.0, 20, 0.1, 0), (5.0, 90, 0.2, 0), (9.0, 90, 0.2, 0)])
    with pytest.raises(ConfigError, match=r"no run of the study has schedule.period 20, .* 0.2"):
        phase_diagram(study, "accuracy", fixed={T: 20, RATE: 0.2})


def test_an_axis_that_is_given_is_joined_by_one_that_varies():
    rows = [(*row[:3], row[3]) for row in grid([5.0, 9.0], [20, 90], 1)]
    selection = select(study_of((A, T, SEED), rows))
    assert choose_axes(selection, x=A) == (A, T)
    assert choose_axes(selection, y=T) == (A, T)
    assert choose_axes(selection, x=SEED)[1] == A


def test_results_of_a_study_are_taken():
    study = Study(RunConfig(), ((A, (1, 70)), (T, (300, 900)), (SEED, (0, 1, 2))))
    columns = {name: np.full(12, np.nan) for name in NUMBERS}
    columns["accuracy"] = np.arange(12.0)
    statuses = ["complete"] * 11 + [None]
    done = np.array([status is not None for status in statuses])
    origin = (Path("none.study.h5"), study, {}, "", [])
    results = StudyResults(*origin, done, statuses, [""] * 12, columns, None)
    found = phase_diagram(results, "accuracy")
    np.testing.assert_allclose(found.mean, [[7, 9.5]])
    np.testing.assert_allclose(found.static, [1, 4])
    np.testing.assert_array_equal(found.missing, [[0, 1]])


def test_static_runs_that_differ_from_row_to_row_are_no_column():
    # The learning rate follows from the amplitude, so that each row has static runs of its own.
    rows = [(1.0, 20, 0.1, 5), (1.0, 20, 0.2, 6), (9.0, 20, 0.1, 7), (11.0, 20, 0.2, 9)]
    rows += [(9.0, 90, 0.1, 8)]
    found = phase_diagram(study_of((A, T, RATE), rows), "accuracy")
    np.testing.assert_allclose(found.difference, [[2, 3], [3, np.nan]])
    assert np.all(np.isnan(found.static))
    np.testing.assert_array_equal(found.static_count, 0)
