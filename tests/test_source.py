"""A result says of which state of a run it is, and none is used for another one."""

import json
import shutil
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest

from dlf_dynamics import open_run
from dlf_dynamics.analysis.instabilities.bifurcations import compute_bifurcations, load_bifurcations
from dlf_dynamics.analysis.spectra.plots import bifurcation_figure, run_figure
from dlf_dynamics.analysis.spectra.spectrum import compute_spectrum, load_spectrum
from dlf_dynamics.analysis.spectra.verification import verify_dense
from dlf_dynamics.cli import main
from dlf_dynamics.config import BifurcationConfig, SpectrumConfig
from dlf_dynamics.errors import FileError, StaleError
from dlf_dynamics.parts import Parts
from dlf_dynamics.training import resume, train

pytestmark = pytest.mark.usefixtures("quick_compilation")

NET = ["--data.points-per-class", "20", "--model.widths", "10", "--model.activation", "tanh"]
RUN = [*NET, "--model.init", "glorot-normal", "--schedule.amplitude", "40", "--quiet"]
RUN += ["--optimizer.learning-rate", "2", "--schedule.period", "400", "--checkpoint-every", "7"]

SPECTRUM = ["--k", "1", "--ntk-examples", "0", "--quiet", "--no-figures"]
BIFURCATIONS = BifurcationConfig(diagrams="none")


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """One run after 100 steps, below its threshold, and after 400, when it was above."""
    folder = tmp_path_factory.mktemp("states")
    path = folder / "run.h5"
    assert main(["train", *RUN, "--steps", "100", "-o", str(path)]) == 0
    shutil.copyfile(path, folder / "short.h5")
    assert main(["train", "--resume", "--steps", "400", "--quiet", "-o", str(path)]) == 0
    return folder


@pytest.fixture
def run(states, tmp_path):
    """Path of a run that may be grown."""
    shutil.copyfile(states / "short.h5", tmp_path / "run.h5")
    return tmp_path / "run.h5"


def grow(run, states):
    """What `train --resume` makes of the run, bit for bit."""
    shutil.copyfile(states / "run.h5", run)


def test_a_run_that_is_continued_keeps_its_name_and_changes_its_state(states):
    short, long = (open_run(states / name) for name in ("short.h5", "run.h5"))
    assert short.run_id == long.run_id
    assert str(short.source) == "steps 0 to 100, 16 checkpoints, complete"
    assert str(long.source) == "steps 0 to 400, 59 checkpoints, complete"
    assert open_run(states / "run.h5").source == long.source


def test_check_looks_anew_at_a_run_that_has_grown(run, states, capsys):
    command = ["check", str(run), "--fail-on-crossing", "--quiet"]
    assert main(command) == 0
    grow(run, states)
    capsys.readouterr()
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == (
        f"{run.with_suffix('.bifurcations.h5')} is of {run} when it had steps 0 to 100, 16 "
        "checkpoints, complete; now it has steps 0 to 400, 59 checkpoints, complete; computing anew"
    )
    assert captured.out.startswith("above the threshold")
    # What was computed is of the run as it is, and is used the next time.
    assert main(command) == 1
    assert "wrote" not in capsys.readouterr().err


def test_plot_refuses_the_spectrum_of_a_run_that_has_grown(run, states, capsys):
    assert main(["spectrum", str(run), *SPECTRUM]) == 0
    grow(run, states)
    capsys.readouterr()
    assert main(["plot", str(run)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"complete; `dlf-dynamics spectrum {run}` computes it anew")
    assert not run.with_suffix(".png").exists()
    old, now = load_spectrum(run.with_suffix(".spectrum.h5")), open_run(run)
    for use in (run_figure, bifurcation_figure, verify_dense):
        with pytest.raises(StaleError, match=r"the spectrum is of .*; compute it anew"):
            use(now, old)


def test_resuming_does_not_use_parts_of_the_run_before_it_grew(run, states, capsys):
    before = open_run(run)
    settings = asdict(BIFURCATIONS)
    parts = Parts(run.with_suffix(".bifurcations.parts"), "bifurcations", before, settings)
    compute_bifurcations(before, BIFURCATIONS, parts=parts)
    settings = SpectrumConfig(k=1, ntk_examples=0)
    parts = Parts(run.with_suffix(".spectrum.parts"), "spectrum", before, asdict(settings))
    compute_spectrum(before, settings, parts=parts)
    grow(run, states)
    fresh = compute_bifurcations(open_run(run), BIFURCATIONS)
    assert len(fresh.crossings) > 0
    options = ["--resume", "--diagrams", "none", "--no-figures", "--quiet"]
    assert main(["bifurcations", str(run), *options]) == 0
    assert "now it has steps 0 to 400, 59 checkpoints, complete; starting anew" in (
        capsys.readouterr().err
    )
    found = load_bifurcations(run.with_suffix(".bifurcations.h5"), open_run(run))
    assert found.crossings == fresh.crossings
    assert main(["spectrum", str(run), *SPECTRUM, "--resume"]) == 0
    assert "starting anew" in capsys.readouterr().err
    found = load_spectrum(run.with_suffix(".spectrum.h5"), open_run(run))
    assert found.hessian.steps.tolist() == open_run(run).checkpoint_steps.tolist()


def test_a_run_with_other_numbers_in_the_same_place_is_another(run, states):
    """As when two computers continue copies of it."""
    before = open_run(run).source
    with h5py.File(run, "r+") as file:
        file["parameters/value"][-1, 0] += 1e-13
    after = open_run(run).source
    assert str(after) == str(before)
    assert after != before


def test_a_repaired_run_is_in_another_state(run):
    with h5py.File(run, "r+") as file:
        file["status"][()] = b"running"
    before = open_run(run).source
    assert before.caution == [
        "the run was still being written, or its writer was killed: all of this is of steps 0 to "
        "100"
    ]
    assert main(["repair", str(run)]) == 0
    after = open_run(run).source
    assert (before.status, after.status) == ("running", "interrupted")
    assert replace(after, status="running") == before
    assert after.caution == []


def test_what_a_result_of_a_run_in_training_is_of_is_said(run, capsys):
    with h5py.File(run, "r+") as file:
        file["status"][()] = b"running"
    line = "all of this is of steps 0 to 100"
    assert main(["spectrum", str(run), *SPECTRUM]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    assert main(["spectrum", str(run), *SPECTRUM, "--json"]) == 0
    state = {"status": "running", "last_step": 100, "checkpoints": 16}
    assert json.loads(capsys.readouterr().out)["run"] == state
    assert main(["plot", str(run)]) == 0
    assert line in capsys.readouterr().err
    assert main(["check", str(run), "--quiet"]) == 0
    assert line in " ".join(capsys.readouterr().out.split())


def test_a_run_that_takes_the_place_of_another_is_not_read_as_that_one(run, states, tmp_path):
    opened = open_run(run)
    grow(run, states)
    # Step 100 is no multiple of 7: its checkpoint has given way to that of step 105.
    with pytest.raises(FileError, match=r"run\.h5 was replaced or continued meanwhile; open it a"):
        opened.parameters()
    train(opened.config, run, overwrite=True)
    for read in (opened.parameters, lambda: opened.scalars, opened.resume_point):
        with pytest.raises(FileError, match="was replaced or continued meanwhile"):
            read()


def test_a_run_may_be_read_while_it_is_written(run, tmp_path):
    config = replace(open_run(run).config, steps=2000)
    path, seen = tmp_path / "new.h5", []

    def look(step):
        seen.append(open_run(path))

    train(config, path, progress=look)
    whole = open_run(path)
    assert len(seen) >= 1
    assert {each.source.status for each in seen} == {"running"}
    for each in seen:
        count = len(each.checkpoint_steps)
        np.testing.assert_array_equal(each.parameters(), whole.parameters()[:count])
        assert each.source != whole.source
    assert resume(path).source == whole.source


def test_an_output_that_is_not_a_result_is_not_replaced(run, capsys):
    before = run.read_bytes()
    assert main(["spectrum", str(run), *SPECTRUM, "-o", str(run)]) == 2
    assert "exists and is not a result of spectrum; write elsewhere" in capsys.readouterr().err
    assert run.read_bytes() == before
