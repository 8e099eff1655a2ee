from dataclasses import replace

import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.spectra.density_plots import density_figure
from dlf_dynamics.analysis.spectra.spectrum import load_spectrum, save_spectrum
from dlf_dynamics.config import SpectrumConfig


@pytest.fixture(scope="module")
def spectrum(small, analysed):
    return analysed(small, SpectrumConfig(density=True, density_checkpoints=3))


def test_each_operator_has_a_heat_map_and_curves_at_its_steps(spectrum, tmp_path):
    figure = density_figure(spectrum)
    maps = [c for ax in figure.axes for c in ax.collections if isinstance(c, QuadMesh)]
    assert len(maps) >= 3
    legends = [ax.get_legend() for ax in figure.axes]
    labels = [[t.get_text() for t in legend.get_texts()] for legend in legends if legend]
    assert labels == [["step 0", "step 28", "step 60"]] * 3
    for path in style.save(figure, tmp_path / "density"):
        assert path.stat().st_size > 5000


def test_it_is_whole_on_every_page(spectrum, require_whole):
    require_whole(lambda: density_figure(spectrum))


def test_the_curve_of_a_step_integrates_to_1(spectrum):
    figure = density_figure(spectrum)
    curves = [line for ax in figure.axes for line in ax.get_lines() if len(line.get_xdata()) > 10]
    assert len(curves) == 9
    for curve in curves:
        x, y = np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata())
        np.testing.assert_allclose(np.trapezoid(y, x), 1, atol=0.01)


def test_densities_come_back_from_the_file(spectrum, tmp_path):
    save_spectrum(spectrum, tmp_path / "s.h5")
    again = load_spectrum(tmp_path / "s.h5")
    assert list(again.densities) == ["hessian", "ggn", "ntk"]
    for name, density in spectrum.densities.items():
        for field, value in vars(density).items():
            np.testing.assert_array_equal(getattr(again.densities[name], field), value)


def test_a_density_with_a_step_that_failed_is_drawn_without_it(spectrum):
    density = spectrum.densities["hessian"]
    nodes = np.array(density.nodes)
    nodes[1] = np.nan
    broken = {"hessian": replace(density, nodes=nodes)}
    figure = density_figure(replace(spectrum, densities=broken))
    figure.draw_without_rendering()
