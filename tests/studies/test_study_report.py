"""The report of a study: cells, their numbers and runs, and that texts of files do no harm."""

import json
import re

import numpy as np
import pytest

from dlf_dynamics import cli
from dlf_dynamics.analysis.report.study import (
    _all_curves,
    _cells,
    _row,
    study_diagrams,
    write_study_report,
)
from dlf_dynamics.analysis.studies.diagram_plots import diagram_panels
from dlf_dynamics.analysis.studies.outcome import CURVES, Outcome
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.studyfile import create, read_study
from dlf_dynamics.config import DataConfig, RunConfig
from dlf_dynamics.configfile import from_json

A, T, SEED, RATE = "schedule.amplitude", "schedule.period", "model.seed", "optimizer.learning_rate"
HOSTILE = "<script>alert('x')</script>"


def study_file(path, *axes, base=None, skip=(), failed=(1,)):
    """A study whose accuracies are a hundredth of the run's number."""
    study = Study(RunConfig(steps=9) if base is None else base, axes)
    with create(path, study) as writer:
        for number in range(len(study)):
            if number in failed:
                writer.append(number, Outcome("failed", message=HOSTILE))
            elif number not in skip:
                numbers = {"accuracy": number / 100, "loss": np.nan, "instabilities": 1.0}
                writer.append(number, Outcome("complete", **numbers))
    return read_study(path)


def runs_of(page):
    (found,) = re.findall(r'id="study">(.*?)</script>', page, re.S)
    return json.loads(found)


@pytest.fixture
def results(tmp_path):
    axes = ((A, (1.0, 10.0, 70.0)), (T, (5, 10)), (SEED, (0, 1)))
    return study_file(tmp_path / "study.h5", *axes, skip=(11,))


def test_cells_have_the_runs_that_are_averaged_in_them(results):
    diagram = study_diagrams(results)["accuracy"]
    (mean, *_) = (_cells(results, diagram, panel) for panel in diagram_panels(diagram))
    configs = [from_json(config) for config in results.configs]
    assert mean.axes == ("period T (steps)", "amplitude A")
    assert mean.values == (["5", "10"], ["10", "70"])
    cells = [(a, t) for a in (10, 70) for t in (5, 10)]
    for (amplitude, period), runs, number in zip(
        cells, mean.runs, mean.numbers.ravel(), strict=True
    ):
        schedules = {
            (configs[run].schedule.amplitude, configs[run].schedule.period) for run in runs
        }
        assert schedules == {(amplitude, period)}
        assert len(runs) == 2
        done = [run for run in runs if run != 11]
        assert number == pytest.approx(np.mean(done) / 100)
    assert mean.missing.tolist() == [[0, 0], [0, 1]]


def test_the_page_has_the_configuration_and_the_numbers_of_each_run(results, tmp_path):
    assert cli.main(["report", str(tmp_path / "study.h5")]) == 0
    page = (tmp_path / "study.report.html").read_text(encoding="utf-8")
    found = runs_of(page)
    for number, (run, config) in enumerate(zip(found["runs"], results.configs, strict=True)):
        told = found["common"] | run["own"]
        assert told["schedule.amplitude"] == str(json.loads(config)["schedule"]["amplitude"])
        assert told["model.seed"] == str(json.loads(config)["model"]["seed"])
        assert run["without"] == []
        status = "failed" if number == 1 else "not done" if number == 11 else "complete"
        assert run["status"] == status
        accuracy = number / 100 if status == "complete" else None
        assert run["numbers"]["accuracy"] == accuracy
        assert run["numbers"]["loss"] is None
    assert "10 complete, 1 failed, 1 not done" in page
    assert "hatched: some runs missing, failed or diverged" in page


def test_texts_of_a_study_are_escaped(tmp_path):
    base = RunConfig(data=DataConfig(name="npz", path=f"</script>{HOSTILE}.npz"), steps=9)
    study_file(tmp_path / "study.h5", (A, (1.0, 10.0)), (T, (5, 10)), base=base)
    assert cli.main(["report", str(tmp_path / "study.h5")]) == 0
    page = (tmp_path / "study.report.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert f"</script>{HOSTILE}" in runs_of(page)["common"]["data.path"]
    assert runs_of(page)["runs"][1]["message"] == HOSTILE


def test_one_axis_gives_means_with_their_errors(tmp_path):
    results = study_file(tmp_path / "study.h5", (RATE, (0.01, 0.1, 1.0)), (SEED, (0, 2, 3)))
    output = tmp_path / "study.html"
    write_study_report(results, study_diagrams(results), output)
    page = output.read_text(encoding="utf-8")
    assert "training accuracy; 2 to 3 runs in a cell" in page
    panel = _row(results, study_diagrams(results)["accuracy"])
    assert panel.x_label == "learning rate η"
    (means,) = panel.series
    groups = [[0, 2], [3, 4, 5], [6, 7, 8]]  # run 1 failed
    np.testing.assert_allclose(means.y, [np.mean(some) / 100 for some in groups])
    errors = [np.std(some, ddof=1) / np.sqrt(len(some)) / 100 for some in groups]
    np.testing.assert_allclose(np.diff(means.intervals, axis=1)[:, 0] / 2, errors)
    assert means.runs == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_curves_are_means_over_the_seeds(tmp_path):
    axes = ((A, (10.0, 70.0)), (SEED, (0, 1, 2)))
    study = Study(RunConfig(steps=9), axes, measures=Measures(curve_points=4))
    curves = np.random.default_rng(0).uniform(0.1, 1, (6, 4, len(CURVES)))
    curves[..., CURVES.index("sharpness")] = np.nan
    with create(tmp_path / "study.h5", study) as writer:
        for number in range(6):
            writer.append(number, Outcome("complete", steps=9, accuracy=0.5, curves=curves[number]))
    results = read_study(tmp_path / "study.h5")
    panels = _all_curves(results)
    assert [panel.title for panel in panels][:3] == [
        "mean loss F",
        "mean static loss",
        "mean training accuracy",
    ]
    assert len(panels) == len(CURVES) - 1
    for place, panel in enumerate(panels):
        assert [series.name for series in panel.series] == ["A = 10", "A = 70"]
        for group, series in zip(([0, 1, 2], [3, 4, 5]), panel.series, strict=True):
            found = curves[group, :, place]
            np.testing.assert_allclose(series.y, found.mean(axis=0))
            np.testing.assert_array_equal(series.x, [0, 3, 6, 9])
            error = found.std(axis=0, ddof=1) / np.sqrt(3)
            assert series.intervals is not None
            np.testing.assert_allclose(series.intervals[:, 1] - series.y, error)
    assert cli.main(["report", str(tmp_path / "study.h5")]) == 0
    page = (tmp_path / "study.report.html").read_text(encoding="utf-8")
    assert page.count("mean static loss") == 1
    assert "<li>number of instabilities; no run has it yet</li>" in page


@pytest.mark.parametrize("axes", [((A, (1.0, 10.0, 70.0)), (T, (5, 10))), ((RATE, (0.1, 1.0)),)])
def test_a_study_that_has_just_begun_is_shown(tmp_path, axes):
    study_file(tmp_path / "study.h5", *axes, skip=range(2, 9))
    assert cli.main(["report", str(tmp_path / "study.h5")]) == 0
    study_file(tmp_path / "none.h5", *axes, skip=range(9), failed=())
    assert cli.main(["report", str(tmp_path / "none.h5")]) == 0
    assert "not done" in (tmp_path / "none.report.html").read_text(encoding="utf-8")


def test_a_study_of_seeds_alone_is_a_list_of_runs(tmp_path):
    results = study_file(tmp_path / "study.h5", (SEED, (0, 1, 2)))
    assert study_diagrams(results) == {}
    assert cli.main(["report", str(tmp_path / "study.h5")]) == 0
    page = (tmp_path / "study.report.html").read_text(encoding="utf-8")
    assert len(runs_of(page)["runs"]) == 3


def test_options_choose_the_diagrams(results, tmp_path, capsys):
    study = str(tmp_path / "study.h5")
    assert cli.main(["report", study, "--quantity", "accuracy", "--x", A, "--y", T]) == 0
    page = (tmp_path / "study.report.html").read_text(encoding="utf-8")
    assert "number of instabilities" not in page
    assert cli.main(["report", study, "--quantity", "acuracy"]) == 2
    assert "did you mean accuracy" in capsys.readouterr().err
    assert cli.main(["report", study, study]) == 2
    assert "is a study; expected it alone, or run files" in capsys.readouterr().err
