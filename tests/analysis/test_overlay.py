"""Several runs on one figure."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.spectra.overlay import OVERLAID, Overlaid, overlay_figure
from dlf_dynamics.analysis.style import Points
from dlf_dynamics.cli import main
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError


@pytest.fixture(scope="module")
def runs(small, trained, analysed):
    longer = replace(small, steps=120)
    return [Overlaid(trained(c), analysed(c)) for c in (small, longer)]


@pytest.fixture(scope="module")
def make_run_like():
    """A run with scalars of its own: constant but for one step."""

    def made(run, count, spike=None, **values):
        steps = np.arange(count)
        scalars = {name: np.full(count, value) for name, value in values.items()}
        if spike is not None:
            scalars["loss"][count // 2], scalars["accuracy"][count // 2] = spike, 0.0
        return SimpleNamespace(path=run.path, steps=steps, scalars=scalars)

    return made


def points(ax):
    """Steps and finite values of each cloud, by colour."""
    found = {}
    for line in ax.get_lines():
        x, y = (np.asarray(v, float) for v in line.get_data())
        if isinstance(line, Points):
            found[line.get_color()] = x[np.isfinite(y)], y[np.isfinite(y)]
    return found


def test_each_run_has_its_numbers_in_a_colour_of_its_own(runs):
    axes = dict(zip(OVERLAID, overlay_figure(runs).axes, strict=True))
    loss, sharpness = points(axes["loss"]), points(axes["sharpness"])
    assert len(loss) == 2
    for one, colour in zip(runs, loss, strict=True):
        np.testing.assert_array_equal(loss[colour], (one.run.steps, one.run.scalars["loss"]))
        centre = one.spectrum.hessian.centre
        fine = centre.converged[:, 0]
        expected = one.spectrum.hessian.steps[fine], centre.eigenvalues[fine, 0]
        np.testing.assert_array_equal(sharpness[colour], expected)
    low, high = axes["ntk"].get_xlim()
    assert low < 0
    assert high > 120


def test_what_is_not_comparable_is_told_in_the_legend(small, trained, analysed, runs):
    other = Overlaid(trained(small), analysed(small, SpectrumConfig(operator="ggn")))
    (legend,) = overlay_figure([runs[1], other]).legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0].endswith(", Hessian of the weighted loss")
    assert labels[1].endswith(", GGN of the weighted loss")
    hessian = runs[0].spectrum.hessian
    doubtful = hessian.centre._replace(status=np.full_like(hessian.centre.status, 2))
    unsure = replace(runs[0].spectrum, hessian=replace(hessian, centre=doubtful))
    assert unsure.not_converged
    figure = overlay_figure([Overlaid(runs[0].run, unsure), runs[1]])
    assert "checkpoints not converged" in figure.legends[0].get_texts()[0].get_text()


def test_panels_and_steps_are_those_that_are_asked_for(runs):
    figure = overlay_figure(runs, zoom=(20, 40), panels=["sharpness"])
    (ax,) = figure.axes
    assert 18 < ax.get_xlim()[0] < 20
    without = [Overlaid(one.run, None) for one in runs]
    assert len(overlay_figure(without).axes) == 2
    with pytest.raises(ConfigError, match="panel 'ntk' has nothing to show; choices: loss, acc"):
        overlay_figure(without, panels=["ntk"])
    with pytest.raises(ConfigError, match="panel 'smallest' is unknown; choices: loss, accuracy"):
        overlay_figure(runs, panels=["smallest"])


def test_a_panel_is_asked_for_once(runs):
    with pytest.raises(ConfigError, match="panel 'loss' is named twice; expected each panel once"):
        overlay_figure(runs, panels=["loss", "accuracy", "loss"])


def test_no_run_is_out_of_sight_because_the_other_is_long(runs, make_run_like):
    """Nor is any accuracy: it has a scale of its own."""
    long = make_run_like(runs[0].run, 5000, loss=1.0, accuracy=0.3)
    brief = make_run_like(runs[0].run, 40, loss=50.0, accuracy=0.9)
    loss, accuracy = overlay_figure([Overlaid(long, None), Overlaid(brief, None)]).axes
    assert loss.get_ylim()[0] < 1 < 50 < loss.get_ylim()[1]
    assert accuracy.get_ylim()[0] < 0.3 < 0.9 < accuracy.get_ylim()[1]
    assert not loss.texts
    assert not accuracy.texts
    spiked = make_run_like(runs[0].run, 5000, loss=1.0, accuracy=0.3, spike=1e6)
    loss, accuracy = overlay_figure([Overlaid(spiked, None), Overlaid(brief, None)]).axes
    assert loss.get_ylim()[1] < 1e3
    (told,) = loss.texts
    assert told.get_text() == "1e+06"
    assert accuracy.get_ylim()[0] < 0.0
    assert not accuracy.texts


def test_it_is_whole_on_every_page(runs, require_whole):
    require_whole(lambda: overlay_figure(runs))


def test_the_command_wants_runs_and_a_name(runs, tmp_path, capsys):
    paths = [str(one.run.path) for one in runs]
    for arguments, complaint in (
        ([], "no file is given; expected run files, or one study file"),
        (paths, "output is none; expected -o, as the figure is of several runs"),
        ([*paths, "-o", "x.png", "--spectrum", "x.h5"], "spectrum is given for several runs"),
    ):
        assert main(["plot", *arguments]) == 2
        assert complaint in capsys.readouterr().err
    assert main(["plot", *paths, "-o", str(tmp_path / "both.svg")]) == 0
    assert "<svg" in (tmp_path / "both.svg").read_text("utf-8")


def test_a_spectrum_of_another_run_is_left_out_and_told(runs, tmp_path, capsys, monkeypatch):
    """As the report does: the other curves do not depend on it."""
    monkeypatch.chdir(tmp_path)
    for name, one in zip(("a", "b", "c"), (*runs, runs[0]), strict=True):
        shutil.copyfile(one.run.path, f"{name}.h5")
    spectrum = analysis_named("spectrum")
    for name in ("a", "b"):  # of b it is that of a
        spectrum.save(runs[0].spectrum, Path(f"{name}.spectrum.h5"))
    Path("c.spectrum.h5").write_text("no result")
    assert main(["plot", "b.h5", "a.h5", "c.h5", "-o", "x.svg"]) == 2
    told = capsys.readouterr().err
    assert "b.spectrum.h5 belongs to another run than b.h5" in told
    assert "c.spectrum.h5 is not a dlf-dynamics result file" in told
    drawn = Path("x.svg").read_text("utf-8")
    assert all(f">{name}<" in drawn for name in "abc")
    assert "threshold" in drawn


@pytest.mark.parametrize("command", ["plot", "report"])
def test_a_run_is_named_once(command, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(runs[0].run.path, "a.h5")
    shutil.copyfile(runs[1].run.path, "b.h5")
    Path("link.h5").symlink_to("a.h5")
    output = "x.html" if command == "report" else "x.png"
    for again, told in (
        ("a.h5", "a.h5 is named twice; expected each file once"),
        ("../" + tmp_path.name + "/a.h5", "/a.h5 is named twice, also as a.h5; expected each"),
        ("link.h5", "link.h5 is named twice, also as a.h5; expected each file once"),
    ):
        assert main([command, "a.h5", "b.h5", again, "-o", output]) == 2
        assert told in capsys.readouterr().err
        assert not Path(output).exists()
