"""Pages that figures are drawn for."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dlf_dynamics.analysis import headings, style
from dlf_dynamics.analysis.spectra import plots
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.paper import Paper, on_paper, this_paper


@pytest.mark.parametrize(
    ("width", "inches"),
    [("3.4in", 3.4), ("86mm", 3.385827), ("8.6 cm", 3.385827), ("246pt", 3.4039)],
)
def test_a_width_is_a_length_in_any_unit_of_papers(width, inches):
    assert Paper(width).inches == pytest.approx(inches, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"width": "wide"}, "width is 'wide'; expected a length such as 3.4in"),
        ({"width": "3.4"}, "width is '3.4'; expected a length"),
        ({"width": "-3in"}, "width is '-3in'; expected a length"),
        ({"width": "1in"}, "width is 1in; expected 3in to 40in"),
        ({"width": "9999mm"}, "width is 9999mm; expected 3in to 40in"),
        ({"font_size": 1.0}, "font_size is 1.0; expected 4 to 20 points"),
        ({"font_size": float("nan")}, "font_size is nan; expected 4 to 20 points"),
        ({"dpi": 5}, "dpi is 5; expected 30 to 2400"),
    ],
)
def test_what_is_no_page_is_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Paper(**settings)


def leave_by_an_error():
    with on_paper(Paper("3in")):
        assert this_paper().inches == 3
        raise KeyError


def test_a_page_ends_with_its_block_and_with_an_error_in_it():
    with pytest.raises(KeyError):
        leave_by_an_error()
    assert this_paper() == Paper()


def test_files_have_the_width_and_the_resolution_of_the_page(small, trained, tmp_path):
    with on_paper(Paper("3in", dpi=150)):
        figure = plots.run_figure(trained(small), None, panels=["loss"])
        png, pdf = style.save(figure, tmp_path / "run", ["png", "pdf"])
    with Image.open(png) as image:
        assert image.size[0] == 450
    assert b"/MediaBox [ 0 0 216 " in pdf.read_bytes()
    assert b"/Subtype /Type0" in pdf.read_bytes()  # TrueType, as journals want it, in CID form
    assert b"/Type3" not in pdf.read_bytes()


def test_letters_follow_the_font_size_of_the_page(small, trained, analysed):
    sizes = {}
    for size in (8.0, 12.0):
        with on_paper(Paper(font_size=size)):
            figure = plots.run_figure(trained(small), analysed(small))
        found = figure.axes[0].yaxis.label, figure._suptitle
        sizes[size] = np.array([text.get_fontsize() for text in found])
    np.testing.assert_allclose(sizes[12.0], 1.5 * sizes[8.0])


def test_panels_are_those_that_are_named(small, trained, analysed):
    run, spectrum = trained(small), analysed(small)
    figure = plots.run_figure(run, spectrum, panels=["sharpness", "loss"])
    assert [ax.get_ylabel() for ax in figure.axes] == [r"$\lambda_{\max}$", "$F$"]
    with pytest.raises(ConfigError, match="panel 'lost' is unknown; choices: class-weights, loss"):
        plots.run_figure(run, spectrum, panels=["lost"])
    with pytest.raises(ConfigError, match=r"panel 'ntk' has nothing to show in .*; choices: class"):
        plots.run_figure(run, None, panels=["ntk"])
    with pytest.raises(ConfigError, match="panel 'loss' is named twice; expected each panel once"):
        plots.run_figure(run, spectrum, panels=["loss", "sharpness", "loss"])


def test_a_narrow_page_has_one_column_of_panels_and_no_heading_where_none_is_wanted(
    eventful, trained, analysed
):
    run, spectrum = trained(eventful), analysed(eventful)
    wide = plots.run_figure(run, spectrum)
    with on_paper(Paper("3.4in", letters=True, no_title=True)):
        narrow = plots.run_figure(run, spectrum)
        zoomed = plots.run_figure(run, spectrum, zoom=(300, 400))
    assert len(wide.axes) == 2 * len(narrow.axes)
    assert narrow.get_suptitle() == ""
    written = [text.get_text() for ax in narrow.axes for text in ax.texts]
    assert [w for w in written if w.startswith("(")] == [f"({letter})" for letter in "abcdefg"]
    low, high = zoomed.axes[0].get_xlim()
    assert 290 < low < 300
    assert 400 < high < 410


def test_letters_stand_before_titles():
    with on_paper(Paper(letters=True)), style.styled():
        figure = style.new_figure(4, 2)
        axes = figure.subplots(1, 2)
        axes[0].set_title("burst 1")
        headings.letter_panels(axes)
    FigureCanvasAgg(figure)
    assert axes[0].get_title() == "(a) burst 1"
    assert [text.get_text() for text in axes[1].texts] == ["(b)"]
