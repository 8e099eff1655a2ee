from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle

from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.studies.diagram_plots import (
    AXES,
    QUANTITIES,
    axis_scale,
    cell_edges,
    draw_phase_diagram,
    setting,
)
from dlf_dynamics.analysis.studies.outcome import CURVES, NUMBERS
from dlf_dynamics.analysis.studies.phase_diagram import phase_diagram
from dlf_dynamics.analysis.studies.study_plots import draw_curves, draw_study
from dlf_dynamics.config import RunConfig
from dlf_dynamics.errors import ConfigError

A, T, SEED, RATE = "schedule.amplitude", "schedule.period", "model.seed", "optimizer.learning_rate"


def study_over(axes, points=0):
    """Results of the full grid, with numbers that differ from run to run."""
    grid = np.meshgrid(*axes.values(), indexing="ij")
    table = {key: values.ravel() for key, values in zip(axes, grid, strict=True)}
    count = grid[0].size
    columns = {name: np.full(count, np.nan) for name in NUMBERS}
    columns["accuracy"] = np.random.default_rng(0).uniform(0.3, 1.0, count)
    columns["instabilities"] = np.arange(count, dtype=float)
    columns["steps"] = np.full(count, 400.0)
    rng = np.random.default_rng(1)
    curves = rng.uniform(0.1, 1, (count, points, len(CURVES))) if points else None
    return SimpleNamespace(
        study=SimpleNamespace(keys=tuple(axes), values=table.__getitem__),
        done=np.ones(count, bool),
        statuses=["complete"] * count,
        columns=columns,
        curves=curves,
    )


def plane(quantity="accuracy"):
    return study_over({A: [1.0, 10.0, 30.0, 70.0], T: [20, 60, 180, 540], SEED: [0, 1, 2]})


def meshes(figure):
    """The maps, those of the cells and of the strips, without the colour bars."""
    found = [(ax, c) for ax in figure.axes for c in ax.collections if isinstance(c, QuadMesh)]
    return [(ax, mesh) for ax, mesh in found if ax.get_label() != "<colorbar>"]


def shown(mesh):
    return np.ma.filled(np.ma.asarray(mesh.get_array(), float), np.nan)


def hatched(ax):
    return [p for p in ax.patches if isinstance(p, Rectangle) and p.get_hatch()]


def texts(labels):
    return [label.get_text() for label in labels]


def test_figures_are_whole_on_every_page(require_whole):
    row = study_over({T: [20, 60, 180, 540], SEED: [0, 1, 2]})
    for results in (plane(), row):
        diagram = phase_diagram(results, "accuracy")
        require_whole(lambda diagram=diagram: draw_phase_diagram(diagram))
    several = study_over({A: [1.0, 10.0], T: [20, 60, 180]}, points=20)
    require_whole(lambda: draw_curves(several, list(CURVES), by=(T, A)))


def test_cells_of_even_values_end_half_way():
    values = np.array([10.0, 20, 30, 40])
    assert axis_scale(values) == "linear"
    np.testing.assert_allclose(cell_edges(values, "linear"), [5, 15, 25, 35, 45])
    uneven = np.array([1.0, 2, 5, 7])
    assert axis_scale(uneven) == "linear"
    np.testing.assert_allclose(cell_edges(uneven, "linear"), [0.5, 1.5, 3.5, 6, 8])


def test_cells_of_geometric_values_end_at_geometric_means():
    values = np.array([1.0, 4, 16])
    assert axis_scale(values) == "log"
    np.testing.assert_allclose(cell_edges(values, "log"), [0.5, 2, 8, 32])


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([20, 33, 54, 90, 148, 244, 404, 668, 1098, 1818, 3063], "log"),  # rounded
        ([1, 2, 5, 10, 20, 50], "log"),
        ([1, 3, 70], "log"),  # of large span
        ([0.01, 1], "log"),
        ([1, 2], "linear"),
        ([0, 1, 100], "linear"),
        ([1, 51, 101], "linear"),
        ([-1, 1, 100], "linear"),
        ([5], "category"),
        ([32, np.nan], "category"),
        (["20", "100-50"], "category"),
    ],
)
def test_the_spacing_of_an_axis_is_told_from_its_values(values, scale):
    assert axis_scale(np.array(values)) == scale


def test_categories_are_evenly_spaced():
    np.testing.assert_array_equal(
        cell_edges(np.array(["a", "b", "c"]), "category"), [-0.5, 0.5, 1.5, 2.5]
    )


def test_the_panels_show_mean_difference_and_error_with_the_static_runs_underneath(tmp_path):
    diagram = phase_diagram(plane(), "accuracy")
    figure = draw_phase_diagram(diagram)
    axes, maps = zip(*meshes(figure), strict=True)
    expected = [diagram.mean, diagram.static[None], diagram.difference, np.zeros((1, 4))]
    expected += [diagram.standard_error, diagram.static_error[None]]
    for mesh, values in zip(maps, expected, strict=True):
        np.testing.assert_array_equal(shown(mesh), values)
    assert texts(axes[0].get_yticklabels()) == ["10", "30", "70"]
    assert texts(axes[1].get_yticklabels()) == ["static (A = 1)"]
    assert texts(axes[1].get_xticklabels()) == ["20", "60", "180", "540"]
    assert (axes[0].get_xscale(), axes[0].get_yscale()) == ("log", "log")
    assert axes[0].get_ylabel() == "amplitude A"
    assert axes[1].get_xlabel() == "period T (steps)"
    assert axes[0].get_xlim() == axes[1].get_xlim() == pytest.approx((20 / 3**0.5, 540 * 3**0.5))
    assert "training accuracy; 3 runs in each cell" in figure.get_suptitle()
    for path in style.save(figure, tmp_path / "diagram"):
        assert path.stat().st_size > 5000


def test_colours_of_both_maps_agree_and_differences_are_centred():
    diagram = phase_diagram(plane(), "accuracy")
    maps = [mesh for _, mesh in meshes(draw_phase_diagram(diagram))]
    everything = np.append(diagram.mean, diagram.static)
    assert maps[0].get_clim() == maps[1].get_clim() == (everything.min(), everything.max())
    largest = np.max(np.abs(diagram.difference))
    assert maps[2].get_clim() == (-largest, largest)
    assert maps[4].get_clim()[0] == 0
    assert [mesh.get_cmap().name for mesh in maps[::2]] == ["viridis", "RdBu_r", "viridis"]


def test_values_are_printed_in_few_cells_only():
    few = draw_phase_diagram(phase_diagram(plane(), "accuracy"))
    diagram = phase_diagram(plane(), "accuracy")
    assert texts(meshes(few)[0][0].texts) == [f"{value:.3f}" for value in diagram.mean.ravel()]
    assert texts(meshes(few)[2][0].texts) == [f"{v:+.2f}" for v in diagram.difference.ravel()]
    many = study_over({A: np.arange(1.0, 9.0), T: np.arange(10, 90, 10), SEED: [0, 1]})
    assert all(
        not ax.texts for ax, _ in meshes(draw_phase_diagram(phase_diagram(many, "accuracy")))
    )


def test_incomplete_cells_are_hatched_and_cells_without_a_run_blank():
    results = plane()
    is_cell = (results.study.values(A) == 30) & (results.study.values(T) == 60)
    results.statuses[int(np.flatnonzero(is_cell)[0])] = "diverged"
    for place in np.flatnonzero((results.study.values(A) == 70) & (results.study.values(T) == 540)):
        results.statuses[place] = "failed"
    static = (results.study.values(A) == 1) & (results.study.values(T) == 20)
    results.statuses[int(np.flatnonzero(static)[1])] = "diverged"
    figure = draw_phase_diagram(phase_diagram(results, "accuracy"))
    (cells, mesh), (strip, _) = meshes(figure)[:2]
    assert np.argwhere(np.isnan(shown(mesh))).tolist() == [[2, 3]]
    root = 3**0.5
    boxes = [(*patch.get_xy(), patch.get_width(), patch.get_height()) for patch in hatched(cells)]
    low, middle, high = 300**0.5, 2100**0.5, 70 * (70 / 30) ** 0.5
    np.testing.assert_allclose(boxes[0], (60 / root, low, 60 * root - 60 / root, middle - low))
    np.testing.assert_allclose(boxes[1], (180 * root, middle, 360 * root, high - middle))
    assert [patch.get_x() for patch in hatched(strip)] == [pytest.approx(20 / root)]
    assert "diverged" in texts(figure.legends[0].get_texts())[0]
    assert "2 to 3 runs in a cell" in figure.get_suptitle()
    assert not draw_phase_diagram(phase_diagram(plane(), "accuracy")).legends


def test_cells_that_are_not_planned_are_blank_and_not_hatched():
    results = study_over({A: [10.0, 20.0], T: [20, 60], SEED: [0, 1]})
    keep = ~((results.study.values(A) == 20) & (results.study.values(T) == 60))
    table = {key: results.study.values(key)[keep] for key in results.study.keys}
    listed = SimpleNamespace(
        study=SimpleNamespace(keys=results.study.keys, values=table.__getitem__),
        done=np.ones(6, bool),
        statuses=["complete"] * 6,
        columns={name: values[keep] for name, values in results.columns.items()},
        curves=None,
    )
    ax, mesh = meshes(draw_phase_diagram(phase_diagram(listed, "accuracy")))[0]
    assert np.isnan(shown(mesh)).tolist() == [[False, False], [False, True]]
    assert not hatched(ax)


def test_panels_of_which_nothing_is_known_are_left_out():
    one_seed = study_over({A: [10.0, 20.0], T: [20, 60]})
    assert len(meshes(draw_phase_diagram(phase_diagram(one_seed, "accuracy")))) == 1
    nothing = study_over({A: [10.0, 20.0], T: [20, 60], SEED: [0, 1]})
    nothing.columns["accuracy"][:] = np.nan
    figure = draw_phase_diagram(phase_diagram(nothing, "accuracy"))
    assert "no run has it yet" in figure.get_suptitle()
    figure.draw_without_rendering()


def test_numbers_of_large_span_have_logarithmic_colours():
    results = plane()
    results.columns["sharpness"] = np.geomspace(1, 5000, len(results.done))
    figure = draw_phase_diagram(phase_diagram(results, "sharpness"))
    assert isinstance(meshes(figure)[0][1].norm, LogNorm)
    assert "1e" not in "".join(text for ax, _ in meshes(figure) for text in texts(ax.texts))
    figure.draw_without_rendering()


def test_equal_numbers_are_drawn():
    results = plane()
    results.columns["accuracy"][:] = 0.5
    figure = draw_phase_diagram(phase_diagram(results, "accuracy"))
    assert set(texts(meshes(figure)[0][0].texts)) == {"0.500"}


def test_widths_are_labelled_in_full():
    widths = ["20", "100", "100-50", "200-100-50-20"]
    results = study_over({"model.widths": widths, RATE: [0.1, 0.2, 0.4], SEED: [0, 1]})
    ax = meshes(draw_phase_diagram(phase_diagram(results, "accuracy")))[0][0]
    assert texts(ax.get_xticklabels()) == widths
    assert ax.get_xlabel() == "widths of the hidden layers"
    assert (ax.get_ylabel(), ax.get_yscale()) == ("learning rate η", "log")


def test_one_row_is_drawn_as_points_with_error_bars_and_the_static_band():
    results = study_over({A: [1.0, 3.0, 10.0, 30.0], SEED: [0, 1, 2]})
    results.statuses[4] = "diverged"
    results.statuses[9:] = ["failed"] * 3
    diagram = phase_diagram(results, "accuracy")
    figure = draw_phase_diagram(diagram)
    (ax,) = figure.axes
    full, hollow = ax.containers
    np.testing.assert_array_equal(full.lines[0].get_xydata(), [[10, diagram.mean[0, 1]]])
    np.testing.assert_array_equal(hollow.lines[0].get_xydata()[0], [3, diagram.mean[0, 0]])
    assert hollow.lines[0].get_markerfacecolor() == "white"
    bar = full.lines[2][0].get_segments()[0]
    spread = diagram.standard_error[0, 1]
    np.testing.assert_allclose(bar[:, 1], diagram.mean[0, 1] + np.array([-spread, spread]))
    assert ax.get_xscale() == "log"
    labels = texts(figure.legends[0].get_texts())
    assert {"static (A = 1)", "no complete run", "mean ± standard error"} < set(labels)
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["no complete run"].get_xdata(), [30])
    np.testing.assert_array_equal(lines["static (A = 1)"].get_ydata(), diagram.static[0])


def test_static_runs_that_differ_along_the_row_are_a_line():
    results = study_over({A: [1.0, 70.0], RATE: [0.1, 0.2, 0.3], SEED: [0, 1]})
    diagram = phase_diagram(results, "accuracy")
    assert diagram.y_key is None
    (ax,) = draw_phase_diagram(diagram).axes
    lines = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["static (A = 1)"].get_ydata(), diagram.static)


def test_every_number_has_words_and_every_named_axis_is_a_key():
    assert set(QUANTITIES) == set(NUMBERS)
    for key in AXES:
        found = RunConfig()
        for name in key.split("."):
            found = getattr(found, name)


def test_settings_are_written_with_their_symbols():
    assert setting(RATE, 0.05) == "η = 0.05"
    assert setting("model.widths", "100-50") == "widths = 100-50"
    assert setting("optimizer.warmup_steps", 10) == "warmup steps = 10"


def lines_of(ax):
    return {line.get_label(): np.asarray(line.get_ydata(), float) for line in ax.get_lines()}


def test_curves_are_means_over_the_seeds_with_bands_of_a_standard_error():
    results = study_over({A: [1.0, 10.0, 30.0], SEED: [0, 1, 2]}, points=5)
    results.statuses[4] = "diverged"
    figure = draw_curves(results, ["accuracy", "loss"], by=[A])
    accuracy, loss = figure.axes
    values = results.curves.reshape(3, 3, 5, 6)
    found = lines_of(accuracy)
    assert list(found) == ["static (A = 1)", "A = 10 (2 of 3 runs)", "A = 30"]
    np.testing.assert_allclose(found["static (A = 1)"], values[0, :, :, 2].mean(axis=0))
    np.testing.assert_allclose(found["A = 10 (2 of 3 runs)"], values[1, ::2, :, 2].mean(axis=0))
    np.testing.assert_allclose(lines_of(loss)["A = 30"], values[2, :, :, 0].mean(axis=0))
    band = next(c for c in reversed(accuracy.collections) if isinstance(c, PolyCollection))
    error = values[2, :, :, 2].std(axis=0, ddof=1) / 3**0.5
    middle = values[2, :, :, 2].mean(axis=0)
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(np.max(middle + error))
    assert heights.min() == pytest.approx(np.min(middle - error))
    assert [ax.get_yscale() for ax in figure.axes] == ["linear", "log"]
    assert accuracy.get_xlabel() == "step"
    assert accuracy.get_lines()[0].get_xdata().tolist() == [0, 100, 200, 300, 400]
    assert figure.get_suptitle() == "mean of 2 to 3 runs, band: ± 1 standard error"


def test_runs_of_different_length_are_drawn_by_the_fraction():
    results = study_over({"steps": [100, 200], SEED: [0, 1]}, points=3)
    results.columns["steps"] = results.study.values("steps").astype(float)
    (ax,) = draw_curves(results, ["accuracy"], by=["steps"]).axes
    assert ax.get_xlabel() == "fraction of the run"
    assert ax.get_lines()[0].get_xdata().tolist() == [0, 0.5, 1]


def test_values_that_were_not_measured_are_left_out_of_the_curves():
    results = study_over({RATE: [0.1, 0.2], SEED: [0, 1]}, points=5)
    place = CURVES.index("sharpness")
    results.curves[:, ::2, place] = np.nan
    results.curves[0, 1, place] = np.nan
    results.curves[:, :, CURVES.index("validation_loss")] = np.nan
    sharpness, validation = draw_curves(results, ["sharpness", "validation_loss"], by=[RATE]).axes
    line = sharpness.get_lines()[0]
    assert line.get_xdata().tolist() == [100, 300]
    expected = [results.curves[1, 1, place], results.curves[:2, 3, place].mean()]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert texts(validation.texts) == ["not measured"]


def test_static_runs_with_several_periods_are_one_curve_of_each_seed():
    results = study_over({A: [1.0, 10.0], T: [20, 60], SEED: [0, 1]}, points=4)
    results.curves[2:4] = results.curves[:2]  # the period has no effect on them
    figure = draw_curves(results, ["loss"], by=[A, T])
    found = lines_of(figure.axes[0])
    assert list(found) == ["static (A = 1)", "A = 10, T = 20", "A = 10, T = 60"]
    np.testing.assert_allclose(found["static (A = 1)"], results.curves[:2, :, 0].mean(axis=0))
    assert figure.get_suptitle().startswith("mean of 2 runs")


def test_curves_that_cannot_be_drawn_are_refused():
    results = study_over({A: [5.0, 10.0], RATE: [0.1, 0.2], SEED: [0, 1]}, points=4)
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate varies, only seeds"):
        draw_curves(results, ["loss"], by=[A])
    with pytest.raises(ConfigError, match=r"curve 'ntk' is unknown; choices: loss, "):
        draw_curves(results, ["ntk"], by=[A, RATE])
    with pytest.raises(ConfigError, match=r"schedule.period does not vary; choices: schedule.amp"):
        draw_curves(results, ["loss"], by=[T])
    with pytest.raises(
        ConfigError, match=r"the study has no curves; expected measures.curve_point"
    ):
        draw_curves(plane(), ["loss"], by=[A, T])
    assert draw_curves(results, ["loss"], by=[A], fixed={RATE: 0.1}).axes


def test_a_study_is_drawn_with_what_was_measured():
    results = plane()
    assert list(draw_study(results)) == ["accuracy", "instabilities"]
    results.columns["ntk"] = np.ones(len(results.done))
    results.columns["validation_accuracy"] = np.ones(len(results.done))
    names = ["validation_accuracy", "accuracy", "instabilities", "ntk"]
    assert list(draw_study(results)) == names
    assert list(draw_study(results, ["loss"])) == ["loss"]
    with pytest.raises(ConfigError, match=r"quantity 'los' is unknown; did you mean loss"):
        draw_study(results, ["los"])


def test_further_keys_give_a_figure_for_each_of_their_values():
    results = study_over(
        {A: [1.0, 9.0, 10.0], T: [20, 60], RATE: [0.1, 1.0], SEED: [0, 1]}, points=3
    )
    figures = draw_study(results, ["accuracy"])
    rates = [f"optimizer.learning_rate {rate}" for rate in ("0.1", "1")]
    assert list(figures) == [f"{name}, {rate}" for rate in rates for name in ("accuracy", "curves")]
    assert "η = 0.1" in figures[f"accuracy, {rates[0]}"].get_suptitle()
    mean = shown(meshes(figures[f"accuracy, {rates[1]}"])[0][1])
    expected = results.columns["accuracy"].reshape(3, 2, 2, 2)[1:, :, 1].mean(axis=-1)
    np.testing.assert_allclose(mean, expected)


def test_too_many_combinations_are_refused():
    rates = np.arange(1, 15) / 10
    results = study_over({A: [5.0, 9.0], T: [20, 60], RATE: rates})
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate varies, .* 0.1, 0.2, .*, 1.4$"):
        draw_study(results)


def test_curves_of_many_cells_are_those_of_the_middle_column():
    results = study_over({A: np.arange(1.0, 9), T: [20, 60, 180], SEED: [0, 1]}, points=3)
    figures = draw_study(results, [])
    assert list(figures) == ["curves"]
    assert figures["curves"].get_suptitle().endswith("T = 60")
    labels = [f"A = {amplitude}" for amplitude in range(2, 9)]
    assert list(lines_of(figures["curves"].axes[0])) == ["static (A = 1)", *labels]
    colours = {
        line.get_color() if isinstance(line.get_color(), str) else tuple(line.get_color())
        for line in figures["curves"].axes[0].get_lines()
    }
    assert len(colours) == 8


def test_a_study_over_seeds_only_has_curves_only():
    results = study_over({SEED: [0, 1, 2]}, points=3)
    figures = draw_study(results)
    assert list(figures) == ["curves"]
    assert list(lines_of(figures["curves"].axes[0])) == ["mean"]
    with pytest.raises(ConfigError, match=r"nothing but seeds varies"):
        draw_study(study_over({SEED: [0, 1, 2]}))
