"""`sweep` and `plot` on the command line: what is refused before anything starts, and figures."""

import pytest

from dlf_dynamics.analysis.studies.outcome import Outcome
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.analysis.studies.studyfile import create
from dlf_dynamics.cli import main
from dlf_dynamics.config import DataConfig, RunConfig

STUDY = Study(
    RunConfig(steps=9),
    (
        ("schedule.amplitude", (1.0, 10.0, 70.0)),
        ("schedule.period", (50, 500)),
        ("optimizer.learning_rate", (0.1, 1.0)),
        ("model.seed", (0, 1)),
    ),
)


def refused(capsys, *arguments):
    """The one line on stderr of a command that must end with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dlf-dynamics: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def study_path(tmp_path_factory):
    """A study whose outcomes are made up: accuracy 0.5 + run / 1000."""
    path = tmp_path_factory.mktemp("study") / "study.h5"
    with create(path, STUDY) as writer:
        for index in range(len(STUDY)):
            made = Outcome("complete", accuracy=0.5 + index / 1000, instabilities=float(index))
            writer.append(index, made)
    return path


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[grid]\nschedule.amplitud = [1]", "schedule.amplitud is not a key; did you mean"),
        ("[grid]\nschedule.amplitude = []", "grid.schedule.amplitude is empty; expected at least"),
        ("steps = 5", "expected"),
        ("[grid]\nmodel.seed = {from = 0, to = 1000}", "expected at most 1,000 without --yes"),
        ("[grid]\ndata.name = ['npz']\ndata.path = ['none.npz']", "none.npz does not exist"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line_and_no_file_is_begun(toml, line, tmp_path, capsys):
    (tmp_path / "study.toml").write_text(toml)
    assert line in refused(capsys, "sweep", tmp_path / "study.toml", "--quiet")
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_a_study_file_is_not_replaced_unasked(study_path, tmp_path, capsys):
    (tmp_path / "study.toml").write_text("[grid]\nmodel.seed = [0, 1]")
    line = refused(capsys, "sweep", tmp_path / "study.toml", "-o", study_path)
    assert "exists" in line
    line = refused(capsys, "sweep", tmp_path / "study.toml", "-o", study_path, "--resume")
    assert "another study" in line


def test_plot_draws_the_phase_diagrams_of_a_study(study_path, tmp_path):
    assert main(["plot", str(study_path), "-o", str(tmp_path / "all")]) == 0
    rate = "optimizer.learning_rate"
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {
        f"all.{quantity}.{rate}-{value}.png"
        for quantity in ("accuracy", "instabilities")
        for value in ("0.1", "1")
    }


def test_names_that_look_like_formulas_are_drawn_as_they_are(tmp_path):
    paths = (r"a$\frac{$", "b$x$", "c[/b]\x1b", "d" * 10**5)
    axes = (("schedule.amplitude", (1.0, 10.0)), ("data.path", paths))
    study = Study(RunConfig(data=DataConfig(name="npz", path="x"), steps=9), axes)
    with create(tmp_path / "study.h5", study) as writer:
        for index in range(len(study)):
            writer.append(index, Outcome("complete", accuracy=0.5))
    assert main(["plot", str(tmp_path / "study.h5"), "--quantity", "accuracy"]) == 0
    assert (tmp_path / "study.accuracy.png").stat().st_size > 1000


def test_plot_takes_axes_and_values_of_further_keys(study_path, tmp_path):
    options = ["--x", "optimizer.learning_rate", "--fix", "schedule.period=50"]
    command = ["plot", str(study_path), *options, "--quantity", "loss", "accuracy"]
    assert main([*command, "-o", str(tmp_path / "one")]) == 0
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {"one.loss.png", "one.accuracy.png"}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--quantity", "los"], "quantity 'los' is unknown; did you mean loss"),
        (["--x", "schedule.period"], "optimizer.learning_rate"),
        (["--fix", "steps=3"], "fix is 'steps=3'; expected KEY=VALUE with a key of schedule."),
        (["--fix", "schedule.period"], "fix is 'schedule.period'; expected KEY=VALUE"),
        (["--fix", "schedule.period=x"], "expected a number for schedule.period"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(options, line, study_path, capsys):
    assert line in refused(capsys, "plot", study_path, *options)
