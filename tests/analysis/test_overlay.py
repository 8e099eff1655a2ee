"""Several runs on one figure."""

from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics.analysis.spectra.overlay import OVERLAID, Overlaid, overlay_figure
from dlf_dynamics.analysis.style import Points
from dlf_dynamics.cli import main
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError


@pytest.fixture(scope="module")
def runs(small, trained, analysed):
    longer = replace(small, steps=120)
    return [Overlaid(trained(c), analysed(c)) for c in (small, longer)]


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
