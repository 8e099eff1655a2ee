"""That what is drawn is seen: sizes by the number of points, limits, titles, legends."""

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dlf_dynamics.analysis import headings, style

EARLY = np.concatenate([[655.0], 103 + 6 * np.sin(np.arange(120))])
"""One early value far above all others, as of 1,000 images at the edge of stability."""


def new_axes():
    return Figure(figsize=(7.2, 1.5)).subplots()


def drawn(ax):
    """The only points on the axes, after they were drawn."""
    ax.figure.draw_without_rendering()
    (line,) = ax.get_lines()
    return line.get_markersize(), line.get_linestyle()


def ink(draw):
    """Share of the pixels inside the frame that are not white."""
    ax = new_axes()
    draw(ax)
    ax.set_axis_off()
    ax.set_position((0, 0, 1, 1))
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    return np.mean(np.asarray(canvas.buffer_rgba())[..., :3].min(axis=2) < 200)


def legend(ax):
    found = ax.get_legend()
    assert found is not None
    return found


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize("count", [1, 2, 5, 20, 60, 400, 3000, 70_000])
def test_any_number_of_points_is_seen_and_leaves_room(count):
    random = np.random.default_rng(0)
    x, y = random.uniform(size=count), random.uniform(size=count)
    share = ink(lambda ax: style.draw_points(ax, x, y))
    assert 1e-4 < share < 0.8
    assert share / count > 1e-4 or count > 100


def test_few_points_are_joined_by_a_line_and_many_are_not():
    for count, joined in ((5, "-"), (2000, "None")):
        ax = new_axes()
        style.draw_points(ax, np.arange(count), np.ones(count))
        assert drawn(ax)[1] == joined


def test_points_become_larger_where_few_of_many_are_in_sight():
    sizes = []
    for last in (10_000, 20):
        ax = new_axes()
        style.draw_points(ax, np.arange(10_000), np.ones(10_000))
        style.set_span(ax, 0, last)
        sizes.append(drawn(ax)[0])
    assert sizes == [pytest.approx(0.6), 5]


def test_a_point_of_a_line_without_neighbours_is_seen():
    def draw(y):
        return ink(lambda ax: style.draw_curve(ax, np.arange(5), np.array(y), color="black"))

    nan = np.nan
    assert draw([nan] * 5) == 0
    assert draw([nan, nan, 1.0, nan, nan]) > 0
    assert draw([1.0, nan, 2.0, nan, nan]) > draw([nan, nan, 2.0, nan, nan])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 10, 11, 100])
def test_no_two_classes_have_the_same_colour(count):
    assert len({to_hex(colour) for colour in style.class_colours(count)}) == count


def test_a_legend_names_all_of_few_classes_and_some_of_many():
    assert style.named_classes(10) == list(range(10))
    named = style.named_classes(100)
    assert (named[0], named[-1], len(named)) == (0, 99, 6)


def test_one_early_value_does_not_squash_the_axis_and_is_told():
    ax = new_axes()
    style.draw_points(ax, np.arange(len(EARLY)), EARLY)
    style.draw_curve(ax, np.array([0, 120]), np.array([100.0, 100.0]), label="threshold")
    style.scale_height(ax, EARLY)
    style.set_span(ax, 0, 120)
    style.fit_height(ax, (0, 120), without_outliers=True)
    low, high = ax.get_ylim()
    assert 90 < low < 97
    assert 109 < high < 115
    style.mark_hidden(ax)
    assert texts(ax) == ["655"]
    (caret,) = [line for line in ax.lines if line.get_transform() != ax.transData]
    assert list(caret.get_xdata()) == [0]


def test_a_value_is_not_hidden_where_the_threshold_takes_the_room_anyway():
    values = np.concatenate([[0.7], np.linspace(1.1, 1.25, 30)])
    ax = new_axes()
    style.draw_points(ax, np.arange(31), values)
    style.draw_curve(ax, np.array([0, 30]), np.array([2.0, 2.0]), label="threshold")
    style.fit_height(ax, (0, 30), without_outliers=True)
    style.mark_hidden(ax)
    assert texts(ax) == []


def test_points_of_several_kinds_have_one_size():
    ax, few = new_axes(), np.arange(3)
    style.draw_points(ax, few, np.ones(3), among=np.arange(10_000))
    style.set_span(ax, 0, 10_000)
    assert drawn(ax)[0] == pytest.approx(0.6)


def test_values_that_are_all_in_sight_are_not_told():
    ax = new_axes()
    style.draw_points(ax, np.arange(120), EARLY[1:])
    style.fit_height(ax, (0, 119), without_outliers=True)
    style.mark_hidden(ax)
    assert texts(ax) == []


def test_many_hidden_values_are_counted_above_and_below():
    ax = new_axes()
    style.draw_points(ax, np.arange(5), np.array([0.0, 3.0, -2500.0, 40.0, np.nan]))
    ax.set_ylim(-1, 1)
    style.mark_hidden(ax)
    assert texts(ax) == ["2 above, up to 40", "−2,500"]


def test_hidden_are_values_in_the_span_that_is_shown_only():
    ax = new_axes()
    style.draw_points(ax, np.arange(4), np.array([9.0, 0.0, 0.0, 9.0]))
    ax.set_xlim(0.5, 2.5)
    ax.set_ylim(-1, 1)
    style.mark_hidden(ax)
    assert texts(ax) == []


def test_what_a_logarithmic_axis_cannot_show_is_told():
    values = np.concatenate([np.geomspace(1e-3, 1, 99), [0.0]])
    ax = new_axes()
    style.draw_points(ax, np.arange(100), values)
    style.scale_height(ax, values)
    assert ax.get_yscale() == "log"
    style.fit_height(ax, (0, 99))
    style.mark_hidden(ax)
    assert texts(ax) == ["0"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 9.0], "linear"),
        ([1.0, 11.0], "log"),
        ([-1.0, 1.0, 1e6], "linear"),
        ([-2.0, -1.0], "linear"),
        ([np.nan, np.nan], "linear"),
        ([], "linear"),
        (EARLY, "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_positive_values_span_a_decade(values, scale):
    ax = new_axes()
    style.scale_height(ax, np.array(values))
    assert ax.get_yscale() == scale


def test_the_core_is_the_whole_range_where_nothing_is_squashed():
    assert style.core_range(np.linspace(0, 5, 200)) == (0, 5)
    assert style.core_range(np.array([1.0, 1.0, 1.0, 50.0])) == (1, 50)  # too few to tell
    assert style.core_range(np.array([np.nan, np.inf])) == (0, 1)
    assert style.core_range(np.array([7.0])) == (7, 7)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=120))
def test_the_core_leaves_out_few_values_and_only_where_they_squash_the_rest(values):
    low, high = style.core_range(np.array(values))
    hidden = [value for value in values if not low <= value <= high]
    assert len(hidden) <= max(1, len(values) // 50)
    if hidden:
        assert max(values) - min(values) > 1.5 * (high - low)
        assert len(values) >= 10


@pytest.mark.parametrize("last", [0, 1, 3, 20, 70_000])
def test_steps_lie_off_the_frame_and_ticks_at_whole_numbers(last):
    ax = new_axes()
    style.label_steps(ax)
    style.set_span(ax, 0, last)
    left, right = ax.get_xlim()
    assert left < 0
    assert right > last
    ticks = [tick for tick in ax.get_xticks() if left <= tick <= right]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_heights_of_a_diverging_loss_are_finite(scale):
    ax, values = new_axes(), np.array([1.0, 1e150, 1e307])
    style.draw_points(ax, np.arange(3), values)
    if scale == "log":
        style.scale_height(ax, values)
    assert ax.get_yscale() == scale
    style.fit_height(ax, (0, 2))
    assert np.all(np.isfinite(ax.get_ylim()))
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize("width", [2.5, 7.2])
def test_a_long_title_fits_the_width_of_the_figure(width):
    figure = Figure(figsize=(width, 3), layout="constrained")
    figure.subplots()
    with mpl.rc_context(style.STYLE):
        headings.set_title(figure, "a threshold of some optimizer, WWW; " * 12 + "\n" + "100-" * 90)
    figure.draw_without_rendering()
    (title,) = figure.texts
    box = title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert figure.get_suptitle().replace("\n", "").endswith("100-100-")


def test_a_legend_has_what_is_drawn_once():
    ax = new_axes()
    ax.plot([0, 1], [np.nan, np.nan], label="nothing")
    style.draw_points(ax, np.arange(2), np.full(2, np.nan), label="no points")
    for _ in range(2):
        style.draw_points(ax, np.arange(2), np.ones(2), label="points")
    assert headings.legend_entries(ax)[1] == ["points"]
    headings.legend_above(ax)
    assert [text.get_text() for text in legend(ax).get_texts()] == ["points"]


def test_a_panel_with_nothing_drawn_has_no_legend():
    ax = new_axes()
    style.draw_points(ax, np.arange(2), np.full(2, np.nan), label="no points")
    headings.legend_above(ax)
    assert ax.get_legend() is None


def test_a_long_legend_is_not_wider_than_its_panel():
    ax = Figure(figsize=(7.2, 1.5), layout="constrained").subplots()
    for number in range(12):
        ax.plot([0, 1], [number, number], label=f"a rather long label {number}")
    headings.legend_above(ax)
    ax.figure.draw_without_rendering()
    assert legend(ax).get_window_extent().x1 <= ax.figure.bbox.width
    assert legend(ax).get_window_extent().width > ax.figure.bbox.width / 2
