"""`bifurcations` and `check` on the command line: files, exit codes, one-line errors."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dlf_dynamics.analysis.instabilities import bifurcations, frozen
from dlf_dynamics.analysis.instabilities.bifurcations import load_bifurcations, look_at_each_step
from dlf_dynamics.cli import main

pytestmark = pytest.mark.usefixtures("quick_compilation")

NET = ["--data.points-per-class", "20", "--model.widths", "10", "--model.activation", "tanh"]
RUN = [*NET, "--model.init", "glorot-normal", "--schedule.amplitude", "40", "--quiet"]


def train(path, *options):
    assert main(["train", *RUN, *options, "-o", str(path)]) == 0
    return str(path)


@pytest.fixture(scope="module")
def unstable(tmp_path_factory):
    """A run that crosses the threshold and oscillates."""
    path = tmp_path_factory.mktemp("unstable") / "run.h5"
    rate = ["--optimizer.learning-rate", "3", "--schedule.period", "400"]
    return train(path, *rate, "--steps", "600")


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    path = tmp_path_factory.mktemp("calm") / "run.h5"
    return train(path, "--optimizer.learning-rate", "0.05", "--steps", "60")


def test_bifurcations_writes_results_table_and_figure(unstable, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "VALUES", 40)
    monkeypatch.setattr(frozen, "EXPONENTS", 4)
    output = tmp_path / "out.h5"
    assert main(["bifurcations", unstable, "-o", str(output), "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "Instabilities" in captured.out
    assert "threshold 0.666667: critical eigenvalue of gd" in captured.out
    assert output.is_file()
    assert {path.name for path in tmp_path.glob("out*")} == {"out.h5"}
    assert main(["export", str(output), "-o", str(tmp_path / "table.csv")]) == 0
    capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(rows) >= 1
    for suffix in ("png", "svg"):
        for name in ("instabilities", "diagrams"):
            figure = (tmp_path / unstable).with_suffix(f".{name}.{suffix}")
            assert figure.stat().st_size > 5000
    assert not (tmp_path / "out.parts").exists()
    assert (
        main(["plot", unstable, "--bifurcations", str(output), "-o", str(tmp_path / "f.pdf")]) == 0
    )
    names = {path.name for path in tmp_path.glob("*.pdf")}
    assert names == {"f.pdf", "f.instabilities.pdf", "f.diagrams.pdf"}
    options = ["--json", "--no-figures", "--quiet", "--diagrams", "none", "-o", str(output)]
    assert main(["bifurcations", unstable, *options]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [event["onset"] for event in content["instabilities"]] == [
        int(row["onset"]) for row in rows
    ]
    assert content["verdict"] == "above"


@pytest.mark.slow
def test_maps_of_pulses_are_told_drawn_exported_and_reported(tmp_path, capsys, require_schema):
    path = train(tmp_path / "run.h5", "--steps", "70", "--schedule.period", "20")
    options = ["--every", "20", "--diagrams", "none", "--quiet", "--json"]
    assert main(["bifurcations", path, *options, "--pulses", "auto", "--cycles", ":"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    require_schema(content, "bifurcations")
    pulse = 21 if content["pulse_maps"][0]["last_step"] == 21 else 20  # the preset's counting
    assert [(each["kind"], each["first_step"]) for each in content["pulse_maps"]] == [
        *[("pulse", number * pulse) for number in range(3)],
        ("cycle", 0),
    ]
    for suffix in ("png", "svg"):
        assert (tmp_path / f"run.pulses.{suffix}").stat().st_size > 5000
    # What check needs is there, and what it adds leaves the maps as they are.
    assert main(["check", path, "--every", "20", "--quiet", "--fail-on-crossing"]) in (0, 1, 4)
    assert len(bifurcations.load_bifurcations(tmp_path / "run.bifurcations.h5").pulse_maps) == 4
    assert main(["report", path]) == 0
    page = (tmp_path / "run.report.html").read_text()
    assert "Growth of perturbations over pulses" in page
    assert "growth of perturbations over each cycle, log10" in page
    assert (
        main(["export", str(tmp_path / "run.bifurcations.h5"), "-o", str(tmp_path / "c.nc")]) == 0
    )
    assert main(["plot", path, "-o", str(tmp_path / "f.png")]) == 0
    assert (tmp_path / "f.pulses.png").exists()
    capsys.readouterr()
    assert main(["bifurcations", path, *options, "--pulses", "3:5"]) == 2
    told = capsys.readouterr().err
    assert "pulses is 3:5; the whole ones of" in told
    assert len(told.splitlines()) == 1


def test_plot_draws_a_run_although_the_bifurcations_are_of_another(
    unstable, calm, capsys, tmp_path
):
    output = tmp_path / "out.h5"
    options = ["--steps", "0:60", "--every", "20", "--diagrams", "none", "--no-figures", "--quiet"]
    assert main(["bifurcations", unstable, *options, "-o", str(output)]) == 0
    assert main(["plot", calm, "--bifurcations", str(output), "-o", str(tmp_path / "f.png")]) == 2
    assert "belongs to another run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.glob("*.png")] == ["f.png"]


def test_check_tells_where_a_run_was_above_and_by_its_exit_code(unstable, capsys):
    assert main(["check", unstable, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("above the threshold at ")
    # The second time it reads what the first one wrote.
    assert main(["check", unstable, "--quiet", "--fail-on-crossing"]) == 1
    captured = capsys.readouterr()
    assert "crossed up between steps" in captured.out
    assert "wrote" not in captured.err


def test_check_is_content_with_a_run_that_stayed_below_at_each_step(calm, capsys, require_schema):
    assert main(["check", calm, "--quiet", "--fail-on-crossing", "--coarse"]) == 4
    captured = capsys.readouterr()
    assert captured.out.startswith("cannot be told: not above at the 4 steps looked at (1 to 59)")
    assert main(["check", calm, "--quiet", "--fail-on-crossing"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("below the threshold at each of the 59 steps (1 to 59)")
    assert "now checking the other 55" in captured.err
    # The second time it reads what the first one wrote.
    assert main(["check", calm, "--quiet", "--fail-on-crossing"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["check", calm, "--quiet", "--fail-on-crossing", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    require_schema(told, "bifurcations")
    assert told["verdict"] == "below"


def test_check_finds_a_crossing_that_a_coarse_look_missed(unstable, capsys):
    options = ["--quiet", "--fail-on-crossing", "--every", "1000", "--steps", "200:500"]
    assert main(["check", unstable, *options, "--coarse"]) == 4
    assert capsys.readouterr().out.startswith("cannot be told: not above at the 2 steps looked at")
    assert main(["check", unstable, *options]) == 1
    assert "crossed up between steps 361-362" in capsys.readouterr().out


def test_check_leaves_a_result_of_other_settings_as_it_is(calm, capsys, tmp_path):
    path = tmp_path / "run.h5"
    shutil.copyfile(calm, path)
    options = ["--steps", "10:40", "--diagrams", "30", "--no-figures", "--quiet"]
    assert main(["bifurcations", str(path), *options]) == 0
    before = (tmp_path / "run.bifurcations.h5").read_bytes()
    capsys.readouterr()
    assert main(["check", str(path), "--quiet", "--fail-on-crossing"]) == 0
    captured = capsys.readouterr()
    assert "below the threshold at each of the 59 steps (1 to 59)" in captured.out
    assert f"wrote {tmp_path / 'run.check.h5'}" in captured.err
    assert (tmp_path / "run.bifurcations.h5").read_bytes() == before
    assert main(["check", str(path), "--quiet", "--fail-on-crossing"]) == 0
    assert capsys.readouterr() == (captured.out, "")
    # Of the steps that it was computed for, the user's result answers.
    assert main(["check", str(path), "--quiet", "--steps", "10:40", "--coarse"]) == 0
    assert capsys.readouterr().err == ""


def test_check_goes_on_where_it_was_interrupted(calm, capsys, monkeypatch):
    seen = []

    def interrupted(*arguments, **options):
        seen.append(options["parts"])
        if len(seen) == 1:
            raise KeyboardInterrupt
        return look_at_each_step(*arguments, **options)

    monkeypatch.setattr(bifurcations, "look_at_each_step", interrupted)
    options = ["--quiet", "--fail-on-crossing", "--steps", "20:"]
    assert main(["check", calm, *options]) == 130
    assert "continue with `dlf-dynamics check " in capsys.readouterr().err
    assert main(["check", calm, *options, "--resume"]) == 0
    assert "(20 to 59, a part of the run)" in capsys.readouterr().out


def test_check_says_when_it_cannot_tell(tmp_path, capsys):
    run = train(tmp_path / "run.h5", "--batch-size", "20", "--steps", "60")
    assert main(["check", run, "--quiet", "--fail-on-crossing"]) == 4
    told = capsys.readouterr().out
    assert "cannot be told: the run's batches go through the examples in shuffled epochs" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--every", "0"], "every is 0; expected at least 1"),
        (["--horizon", "5"], "horizon is 5; expected at least 20"),
        (["--diagrams", "100"], "diagrams has step 100; the run's are 0 to 60"),
        (["--tol", "2"], "tol is 2.0; expected a number between 0 and 1"),
        (["--steps", "70:"], "steps 70: holds no step with one before and one after it; the run's"),
        (["-o", "no/where.h5"], "directory no does not exist"),
    ],
)
def test_bad_options_are_one_line(options, message, calm, capsys):
    assert main(["bifurcations", calm, "--quiet", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_resume_without_parts_starts_anew(calm, capsys, tmp_path):
    output = tmp_path / "out.h5"
    options = ["--resume", "--no-figures", "--quiet", "-o", str(output)]
    assert main(["bifurcations", calm, *options]) == 0
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_pulses_are_computed_by_several_processes_with_the_same_bits(tmp_path):
    path = train(tmp_path / "run.h5", "--steps", "70", "--schedule.period", "20")
    program = [sys.executable, "-m", "dlf_dynamics.cli", "bifurcations", path, "--quiet"]
    options = ["--pulses", "auto", "--diagrams", "none"]
    found = []
    for number in ("1", "2"):
        output = tmp_path / f"{number}.h5"
        command = [*program, *options, "--devices", number, "-o", str(output)]
        subprocess.run(command, check=True, capture_output=True)
        found.append(load_bifurcations(output).pulse_maps)
    assert len(found[0]) == len(found[1]) > 2
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one.decades, two.decades)
        np.testing.assert_array_equal(one.directions, two.directions)
        assert (one.number, one.products) == (two.number, two.products)
