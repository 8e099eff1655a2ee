from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.spectra.events import Oscillation
from dlf_dynamics.analysis.spectra.infinite_width import InfiniteWidth
from dlf_dynamics.analysis.spectra.infinite_width_plots import kernel_figure


@pytest.fixture(scope="module")
def found():
    """Kernels of five examples at three steps, the last of them not finite."""
    values = np.array([[8.0, 4, 2, 1, 0.5], [9.0, 5, 3, 2, 1], [np.nan] * 5])
    return InfiniteWidth(
        steps=np.array([0, 7, 14]),
        eigenvalues=values,
        distance=np.array([0.25, 0.5, np.nan]),
        alignment=np.array([0.9, 0.8, np.nan]),
        movement=np.array([0.0, 0.4, np.nan]),
        ntk=np.array([7.0, 3, 2, 1, 0.25]),
        nngp=np.array([0.7, 0.3, 0.2, 0.1, 0.0]),
        num_examples=5,
        normal_weights=False,
    )


def spectrum_with(found):
    """What the figure needs of a spectrum: no run is analysed for it."""
    windows = [Oscillation(2, 9, True, 3, 5, 0.3)]
    return SimpleNamespace(infinite_width=found, oscillations=windows, bursts=windows)


def lines(ax):
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}


def test_it_is_whole_on_every_page(found, require_whole):
    require_whole(lambda: kernel_figure(spectrum_with(found)))


def test_the_panels_show_eigenvalues_distances_and_alignment(found, tmp_path):
    figure = kernel_figure(spectrum_with(found))
    along, ranks, distances, alignment, shares = figure.axes
    drawn = [np.asarray(line.get_ydata(), float) for line in along.get_lines()]
    for rank in range(5):
        assert any(np.array_equal(y, found.eigenvalues[:, rank], equal_nan=True) for y in drawn)
        assert any(np.all(y == found.ntk[rank]) for y in drawn)
    np.testing.assert_array_equal(lines(ranks)["infinite width, Θ"], found.ntk)
    np.testing.assert_array_equal(lines(ranks)["run, step 0"], found.eigenvalues[0])
    assert along.get_ylim() == ranks.get_ylim()
    from_limit, from_start, first, *_ = list(lines(distances).values())
    # The distance of K_0 from itself, which a logarithmic axis does not have, is told.
    assert [text.get_text() for text in distances.texts] == ["0"]
    np.testing.assert_array_equal(from_limit, found.distance)
    np.testing.assert_array_equal(from_start, found.movement)
    np.testing.assert_array_equal(first, 0.25)
    np.testing.assert_array_equal(next(iter(lines(alignment).values())), found.alignment)
    np.testing.assert_allclose(lines(shares)["NNGP"], found.nngp / 1.3)
    assert "of normal weights" in figure.get_suptitle()
    for path in style.save(figure, tmp_path / "kernels"):
        assert path.stat().st_size > 5000


def test_every_axis_that_is_seen_has_a_label(found):
    figure = kernel_figure(spectrum_with(found))
    along, _, distances, alignment, shares = figure.axes
    assert all(ax.get_ylabel() for ax in (along, distances, alignment, shares))
    assert all(ax.get_xlabel() for ax in (alignment, shares))


def test_a_spectrum_without_such_kernels_is_refused():
    with pytest.raises(ValueError, match="the spectrum has no kernels at infinite width"):
        kernel_figure(spectrum_with(None))


def test_a_run_that_is_nowhere_finite_is_drawn(found):
    nothing = {name: np.full(3, np.nan) for name in ("distance", "alignment", "movement")}
    broken = replace(found, eigenvalues=np.full((3, 5), np.nan), **nothing)
    kernel_figure(spectrum_with(broken)).draw_without_rendering()


def test_distances_that_are_rounding_errors_are_drawn_on_a_linear_axis(found):
    exact = replace(found, distance=np.full(3, 1e-15), movement=np.array([0, 1e-16, 2e-16]))
    axes = [kernel_figure(spectrum_with(each)).axes[2] for each in (found, exact)]
    assert [ax.get_yscale() for ax in axes] == ["log", "linear"]
