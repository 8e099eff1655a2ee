"""`dlf-dynamics reproduce`, at sizes that take seconds; the real ones are slow."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

from dlf_dynamics import PRESETS
from dlf_dynamics.analysis.reproduction import (
    cifar10_myrtle5,
    fig4,
    initialisation_table,
    spiral_phase_diagram,
    spiral_study,
    task,
    width_study,
)
from dlf_dynamics.analysis.reproduction.catalogue import REPRODUCTIONS
from dlf_dynamics.analysis.reproduction.grids import Grid
from dlf_dynamics.analysis.reproduction.task import Task, counted
from dlf_dynamics.analysis.spectra.analysis import SpectrumAnalysis
from dlf_dynamics.analysis.spectra.spectrum import load_spectrum
from dlf_dynamics.analysis.studies import jobs
from dlf_dynamics.analysis.studies.histories import curve_steps
from dlf_dynamics.analysis.studies.study import Measures
from dlf_dynamics.analysis.studies.studyfile import read_study
from dlf_dynamics.cli import main
from dlf_dynamics.commands.reproduction import Reproduce
from dlf_dynamics.config import DataConfig
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.opening import open_run
from dlf_dynamics.parts import Parts

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10_10k.npz"
LARGEST_FIGURE = 400_000


def reproduce(name, folder, *options):
    arguments = ["reproduce", name, "--budget", "tiny", "-o", str(folder), "--processes", "1"]
    try:
        return main([*arguments, "--quiet", *map(str, options)])
    finally:  # a reproduction in float32 switches it off, for the whole process
        jax.config.update("jax_enable_x64", True)


def page_and_figures(folder):
    """The text of the page; its figures are looked for."""
    (page,) = folder.glob("*.md")
    text = page.read_text(encoding="utf-8")
    figures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert figures
    for figure in figures:
        assert 0 < (folder / figure).stat().st_size < LARGEST_FIGURE
    return text


def cell_of(text, what, column):
    """A cell of the comparison's table, by the first one of its row."""
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {what} |")]
    return row.strip("| ").split(" | ")[column]


def nothing(*_, **__):
    raise AssertionError("computed again")


def test_the_command_offers_every_reproduction_by_name_and_says_what_it_is():
    named, _ = get_args(get_type_hints(Reproduce, include_extras=False)["name"])
    choices = get_args(named)
    assert list(choices) == list(REPRODUCTIONS)
    told = [line.split()[0] for line in (Reproduce.__doc__ or "").splitlines() if "   " in line[6:]]
    assert told == list(choices)
    budget = next(field for field in fields(Reproduce) if field.name == "budget")
    assert budget.default in get_args(get_type_hints(Reproduce)["budget"])
    assert get_type_hints(Reproduce)["budget"] == task.Budget


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The table of the initialisations, of runs of 60 steps: folder, and folder of the page."""
    folders = tmp_path_factory.mktemp("table") / "data", tmp_path_factory.mktemp("pages") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialisation_table, "_SIZES", {"tiny": (2, 60), "full": (10, 70_000)})
        assert reproduce("initialisation-table", folders[0], "--pages", folders[1]) == 0
    return folders


LEARNING = "{}: seeds that learn (training accuracy above 0.95)"


def test_the_table_has_the_means_of_the_study_beside_the_reference(table):
    text, results = page_and_figures(table[0]), read_study(table[0] / "study.h5")
    init = results.study.values("model.init") == "published"
    amplitude = results.study.values("schedule.amplitude")
    accuracy = results.columns["accuracy"][init & (amplitude == 70)]
    assert len(accuracy) == 2
    mean, deviation = accuracy.mean(), abs(accuracy[0] - accuracy[1]) / 2**0.5
    what = "`published`, A = 70: training accuracy, mean ± standard deviation"
    assert cell_of(text, what, 2) == f"{mean:.3f} ± {deviation:.3f}"
    assert cell_of(text, what, 1) == "0.992 ± 0.004 (port)"
    assert "shorter" in cell_of(text, what, 3)
    assert cell_of(text, LEARNING.format("`published`, A = 70"), 2) == "0 of 2"


def test_every_number_of_the_reference_is_on_the_page(table):
    text = page_and_figures(table[0])
    for (init, amplitude), told in initialisation_table.REFERENCE.items():
        label = f"`{init}`, A = {amplitude:g}"
        row = f"{label}: training accuracy, mean ± standard deviation"
        assert cell_of(text, row, 1) == f"{told.accuracy:.3f} ± {told.spread:.3f} (port)"
        row = f"{label}: accuracy on 3,000 fresh points, mean ± standard deviation"
        assert cell_of(text, row, 1) == f"{told.validation:.3f} (port)"


def test_the_page_names_command_and_versions_and_no_path_of_the_machine(table):
    text = page_and_figures(table[0])
    assert "`dlf-dynamics reproduce initialisation-table --budget tiny`" in text
    assert re.search(r"dlf-dynamics \d.*jax \d", text)
    assert str(table[0]) not in text


def test_the_folder_of_pages_gets_the_page_and_its_figure_only(table):
    names = {"initialisation-table.md", "initialisation-table.png"}
    assert {path.name for path in table[1].iterdir()} == names
    for name in names:
        assert (table[1] / name).read_bytes() == (table[0] / name).read_bytes()


def test_what_is_finished_is_not_computed_again(table, monkeypatch):
    monkeypatch.setattr(initialisation_table, "_SIZES", {"tiny": (2, 60), "full": (10, 70_000)})
    monkeypatch.setattr(jobs, "work", nothing)
    before = (table[0] / "initialisation-table.md").read_text()
    assert reproduce("initialisation-table", table[0]) == 0
    assert (table[0] / "initialisation-table.md").read_text() == before


def test_a_study_of_another_size_is_not_taken_for_this_one(table, capsys):
    assert reproduce("initialisation-table", table[0]) == 2
    assert "replace it with --overwrite" in capsys.readouterr().err


def test_an_interrupted_study_goes_on_with_what_is_left(tmp_path, monkeypatch):
    done, work = [], jobs.work
    monkeypatch.setattr(initialisation_table, "_SIZES", {"tiny": (1, 20), "full": (10, 70_000)})
    monkeypatch.setattr(jobs, "work", lambda job, *rest: done.append(job) or work(job, *rest))
    with pytest.raises(KeyboardInterrupt):
        initialisation_table.make(Task(tmp_path, "tiny", processes=1, stop=lambda: len(done) >= 2))
    first = len(done)
    kept = int(read_study(tmp_path / "study.h5").done.sum())
    with pytest.warns(RuntimeWarning):  # one run has no standard deviation
        initialisation_table.make(Task(tmp_path, "tiny", processes=1))
    assert 0 < kept < 4
    assert len(done) - first == 4 - kept


def test_without_a_run_that_did_not_fail_there_is_no_page_until_one_does(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(initialisation_table, "_SIZES", {"tiny": (2, 20), "full": (10, 70_000)})
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "work", lambda job, *_: [jobs.failed("no memory")] * len(job.indices))
        assert reproduce("initialisation-table", tmp_path) == 2
    assert "all 8 runs failed, the first with: no memory; remove" in capsys.readouterr().err
    assert read_study(tmp_path / "study.h5").statuses == ["failed"] * 8
    assert not list(tmp_path.glob("*.md"))
    assert reproduce("initialisation-table", tmp_path, "--partial") == 2
    assert reproduce("initialisation-table", tmp_path) == 0
    assert cell_of(page_and_figures(tmp_path), "runs", 1) == "8"


def test_what_stands_after_the_sign_is_told_from_the_spread_of_the_runs():
    def cell(key, told, factor):
        values = told.accuracy + factor * told.spread * np.linspace(-1, 1, 10) / 0.6383
        return initialisation_table.Cell(*key, values, values)

    for factor, kind in ((1.0, "standard deviations"), (10**0.5, "standard errors")):
        cells = [cell(*item, factor) for item in initialisation_table.REFERENCE.items()]
        assert f"nearer to the {kind}" in initialisation_table.kind_of_spread(cells)


def test_a_mean_outside_the_combined_error_is_told():
    reference = initialisation_table.REFERENCE["published", 70.0]
    values = reference.accuracy - 0.02 + 0.004 * np.tile([-1, 1], 5)
    cell = initialisation_table.Cell("published", 70.0, values, values)
    row, learned, _ = initialisation_table.compare(cell, whole=True)
    combined = np.hypot(np.std(values, ddof=1), reference.spread) / 10**0.5
    assert row.difference == f"-0.020, not within the combined standard error, {combined:.3f}"
    assert learned.measured == "10 of 10"


@pytest.fixture(scope="module")
def headline(tmp_path_factory):
    """The first 300 steps of the headline run, interrupted in training and in analysis."""
    folder = tmp_path_factory.mktemp("fig4")
    config, wanted = replace(PRESETS["published"], steps=300), fig4.SpectrumConfig(k=1)
    with pytest.raises(KeyboardInterrupt):
        Task(folder, stop=lambda: True).trained(config)
    run = Task(folder).trained(config)
    assert (run.status, len(run.steps)) == ("complete", 301)
    with pytest.raises(KeyboardInterrupt):
        Task(folder, stop=lambda: True).analysed(run, wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig4, "TINY_STEPS", 300)
        patch.setattr(task, "train", nothing)
        assert reproduce("fig4", folder) == 0
    assert not list(folder.glob("*.parts"))
    return folder


def test_of_a_short_run_the_page_tells_what_is_not_reached(headline):
    text = page_and_figures(headline)
    start = "first burst: second difference of F above 0.01 from index"
    assert cell_of(text, start, 1) == "4,200 (program)"
    assert cell_of(text, start, 2) == "not reached at this size"
    second = "burst 2: first and last step"
    assert cell_of(text, second, 1) == "8,964; 10,165 ± 20 (digitised)"
    assert cell_of(text, second, 2) == "not reached at this size"
    assert "preset `published`, 300 steps" in text


def test_a_short_run_is_compared_with_the_authors_program_as_far_as_it_goes(headline):
    text = page_and_figures(headline)
    for what, points in (
        ("F after each of the first 300 updates", 300),
        ("NTK λ_max after every 25th of the first 300 updates", 12),
        ("Hessian λ_max at every 10th point of the program up to there", 2),
    ):
        told = re.fullmatch(r"at most (\S+), relative, at (\d+) points", cell_of(text, what, 3))
        assert told is not None
        assert float(told[1]) < 1e-8
        assert int(told[2]) == points
    what = "correctly classified examples after each of the first 300 updates"
    assert cell_of(text, what, 3) == "none at 300 points"


def test_a_finished_run_and_its_spectrum_are_found_again(headline, monkeypatch):
    monkeypatch.setattr(fig4, "TINY_STEPS", 300)
    monkeypatch.setattr(task, "train", nothing)
    monkeypatch.setattr(SpectrumAnalysis, "compute", nothing)
    assert reproduce("fig4", headline) == 0


def test_a_partial_page_of_a_single_run_computes_nothing(headline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fig4, "TINY_STEPS", 300)
    monkeypatch.setattr(task, "train", nothing)
    assert reproduce("fig4", tmp_path, "--partial") == 2
    told = capsys.readouterr().err
    assert f"{tmp_path / 'run.h5'} is not there, not finished, or of other settings; leave" in told
    assert not list(tmp_path.iterdir())
    (tmp_path / "run.h5").write_bytes((headline / "run.h5").read_bytes())
    monkeypatch.setattr(SpectrumAnalysis, "compute", nothing)
    assert reproduce("fig4", tmp_path, "--partial") == 2
    assert "run.spectrum.h5 is not there" in capsys.readouterr().err
    (tmp_path / "run.spectrum.h5").write_bytes((headline / "run.spectrum.h5").read_bytes())
    assert reproduce("fig4", tmp_path, "--partial") == 0
    assert "preset `published`, 300 steps" in page_and_figures(tmp_path)


def test_an_unfinished_run_makes_no_partial_page(tmp_path):
    config = replace(PRESETS["published"], steps=20)
    with pytest.raises(KeyboardInterrupt):
        Task(tmp_path, stop=lambda: True).trained(config)
    partial = Task(tmp_path, partial=True)
    with pytest.raises(FileError, match="leave out --partial"):
        partial.trained(config)
    with pytest.raises(FileError, match="leave out --partial"):
        partial.kept("value", 1, nothing)
    with pytest.raises(FileError, match="leave out --partial"):
        partial.of_seeds([0, 1], "value")
    assert Task(tmp_path).trained(config).status == "complete"
    assert partial.trained(config).status == "complete"


def test_a_spectrum_of_other_settings_is_not_taken_for_this_one(headline, monkeypatch):
    monkeypatch.setattr(fig4, "TINY_STEPS", 300)
    result = headline / "run.spectrum.h5"
    wanted = load_spectrum(result)
    options = ["--ntk-examples", "0", "--every", "40", "--k", "1", "--no-figures", "--quiet"]
    assert main(["spectrum", str(headline / "run.h5"), *options]) == 0
    assert load_spectrum(result).ntk is None
    run = open_run(headline / "run.h5")
    parts = Parts(headline / "run.spectrum.parts", "spectrum", run, {"k": 7})
    parts.get_or_make("hessian-0", lambda: {"of": np.ones(1)}, dict)
    assert reproduce("fig4", headline) == 0
    found = load_spectrum(result)
    assert (found.asked, found.config) == (wanted.asked, wanted.config)
    assert found.hessian.steps.tolist() == wanted.hessian.steps.tolist()
    assert not list(headline.glob("*.parts"))


def test_a_run_of_another_size_is_refused(headline, monkeypatch, capsys):
    monkeypatch.setattr(fig4, "TINY_STEPS", 200)
    assert reproduce("fig4", headline) == 2
    assert "is of another budget or version" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert reproduce("fig4", tmp_path / "taken") == 2
    assert "cannot be made" in capsys.readouterr().err


def test_cifar10_without_data_says_where_they_come_from(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"needs --data: the folder with the binary version"):
        cifar10_myrtle5.make(Task(tmp_path))


def test_a_refusal_leaves_no_folder_behind_but_the_users_own(tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    for place in (tmp_path / "new" / "one", mine):
        assert reproduce("cifar10-myrtle5", place, "--pages", str(tmp_path / "pages")) == 2
        assert "needs --data" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_cifar10_protocol_is_that_of_the_script():
    data = DataConfig(name="cifar10", path="anywhere")
    study = cifar10_myrtle5.study(cifar10_myrtle5._SIZES["full"], data, 50_000)
    base = study.base
    assert len(study) == 20 * (1 + 15 * 11)
    assert base.steps == 700 * 97
    assert base.optimizer.warmup_steps == 300 * 97
    assert base.schedule.static_from == 600 * 97
    assert (base.batch_size, base.dtype, base.model.widths) == (512, "float32", (64,))
    optimizer = base.optimizer
    assert (optimizer.name, optimizer.momentum) == ("nesterov", 0.9)
    assert (optimizer.learning_rate, optimizer.final_learning_rate) == (0.02, 0.002)


def test_a_scaled_copy_keeps_the_number_of_pulses():
    size = cifar10_myrtle5._SIZES["small"]
    study = cifar10_myrtle5.study(size, DataConfig(name="cifar10", path="anywhere"), 50_000)
    periods = cifar10_myrtle5.scaled(size).periods
    for period, published in zip(periods[1:], size.grid.periods[1:], strict=True):
        assert study.base.steps / period == pytest.approx(700 * 97 / published, rel=0.06)


def test_an_npz_and_a_folder_are_told_apart(tmp_path):
    size = cifar10_myrtle5._SIZES["tiny"]
    assert cifar10_myrtle5.data_config(size, tmp_path / "images.npz").name == "npz"
    assert cifar10_myrtle5.data_config(size, tmp_path).name == "cifar10"


def test_the_last_part_of_every_run_of_the_spiral_is_static():
    for size in spiral_study.SIZES.values():
        base = spiral_study.study(size).base
        assert base.schedule.static_from == base.steps - base.steps // 14


def test_the_curves_of_the_widths_alternate_between_odd_and_even_steps():
    for size in width_study.SIZES.values():
        study = width_study.study(size)
        steps = curve_steps(study.base, study.measures.curve_points)
        assert set(np.diff(steps).tolist()) == {size.every}
        assert size.every % 2 == 1
        parts = steps / size.steps  # both halves of the static part have points
        assert np.all(np.histogram(parts, [0.8, 0.9, 1.0])[0] > 0)


def test_the_phase_diagram_of_the_spiral_in_small(tmp_path, monkeypatch):
    size = spiral_study.Size(Grid((10.0,), (5, 10), 2), 40)
    monkeypatch.setattr(spiral_study, "SIZES", {"tiny": size})
    monkeypatch.setattr(spiral_phase_diagram, "SIZES", {"tiny": size})
    monkeypatch.setattr(spiral_study, "OTHERS", ())
    monkeypatch.setattr(spiral_phase_diagram, "OPTIMIZERS", {"gd": "gradient descent"})
    monkeypatch.setattr(spiral_study, "measures", Measures)
    assert reproduce("spiral-phase-diagram", tmp_path / "spiral-phase-diagram") == 0
    text = page_and_figures(tmp_path / "spiral-phase-diagram")
    results = read_study(tmp_path / "spiral-phase-diagram" / "study.h5")
    static = results.columns["validation_accuracy"][:2]
    found = cell_of(text, "held-out accuracy, static loss, gradient descent", 2)
    assert found.startswith(f"{static.mean():.3f} [")
    assert "of wall time" in cell_of(text, "cost", 1)
    # The page beside it reads the same file, and computes nothing.
    monkeypatch.setattr(jobs, "work", nothing)
    assert reproduce("instability-onsets", tmp_path / "instability-onsets") == 0
    assert not (tmp_path / "instability-onsets" / "study.h5").exists()
    text = page_and_figures(tmp_path / "instability-onsets")
    kept = json.loads((tmp_path / "instability-onsets" / "opposed-10-5.json").read_text())
    what = "steps whose own update opposes the one before, first seed, A = 10"
    assert cell_of(text, what, 2).startswith(f"T = 5: {kept['value']:.2f}; T = 10: ")


def test_without_a_name_all_are_listed_with_their_times(capsys):
    assert main(["reproduce"]) == 0
    text = capsys.readouterr().out
    for name, each in REPRODUCTIONS.items():
        assert name in text
        assert each.takes.split()[-1] in text


def test_runs_that_were_lost_are_counted():
    assert counted(["complete"] * 3) == "3"
    assert (
        counted(["failed", "complete", "diverged"]) == "3, 1 of which diverged, 1 of which failed"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REPRODUCTIONS if name != "cifar10-myrtle5"])
def test_each_reproduction_at_its_tiny_size(name, tmp_path):
    assert reproduce(name, tmp_path) == 0
    text = page_and_figures(tmp_path)
    if name.startswith("fig4"):  # only there is anything to compare with at this size
        assert cell_of(text, "first burst: second difference of F above 0.01 from index", 3) == "+0"
        assert "| burst 3: first and last step | 13," in text


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.exists(), reason="the images are not here")
def test_the_cifar10_sweep_at_its_tiny_size(tmp_path):
    assert reproduce("cifar10-myrtle5", tmp_path, "--data", CIFAR10) == 0
    text = page_and_figures(tmp_path)
    assert "nothing else" in text
    assert "inferred from a script, not published" in text
