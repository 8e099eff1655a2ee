"""What the figures draw, not where they draw it."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from dlf_dynamics import LossConfig, OptimizerConfig, ScheduleConfig
from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.linalg.certificate import BUDGET, TRACKED, UNRANKED
from dlf_dynamics.analysis.report.content import Panel, Series
from dlf_dynamics.analysis.report.view import distinct, heights
from dlf_dynamics.analysis.spectra import plots
from dlf_dynamics.analysis.spectra.overlay import Overlaid, overlay_figure
from dlf_dynamics.analysis.spectra.spectrum import load_spectrum, save_spectrum
from dlf_dynamics.analysis.spectra.zoom import default_zoom
from dlf_dynamics.analysis.style import Points
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import FileError
from dlf_dynamics.paper import Paper, on_paper
from dlf_dynamics.streams import printable


def new_axes():
    return Figure().subplots()


def lines(ax):
    """Labelled lines by their label."""
    return {line.get_label(): line for line in ax.get_lines()}


def finite(line):
    """The points of a line that are drawn."""
    x, y = (np.asarray(values, float) for values in line.get_data())
    return x[np.isfinite(y)], y[np.isfinite(y)]


def shows(figure, span):
    """Whether a panel shows a span of steps, with a narrow margin."""
    margin = 0.02 * (span[1] - span[0])
    return any(
        span[0] - margin < left < span[0] and span[1] < right < span[1] + margin
        for left, right in (ax.get_xlim() for ax in figure.axes)
    )


CASES = {
    "triangle": ({}, {}),
    "static loss": ({"schedule": ScheduleConfig(name="static")}, {}),
    "static spectrum": ({}, {"static": True}),
    "no ntk": ({}, {"ntk_examples": 0}),
    "no threshold": ({"batch_size": 8}, {}),
    "single checkpoint": ({}, {"every": 100}),
    "adaptive": ({"optimizer": OptimizerConfig("adam", learning_rate=0.01)}, {}),
}


# Of these the spectrum differs and not the run.
ALIKE = {"static spectrum", "no ntk"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in ALIKE else c for c in CASES]
)
def test_both_figures_are_drawn_and_written_for_every_kind_of_run(
    case, small, trained, analysed, tmp_path
):
    changes, settings = CASES[case]
    config = replace(small, **changes)
    run, spectrum = trained(config), analysed(config, SpectrumConfig(**settings))
    for name, draw in (("run", plots.run_figure), ("bifurcation", plots.bifurcation_figure)):
        paths = style.save(draw(run, spectrum), tmp_path / name)
        assert [path.name for path in paths] == [f"{name}.png", f"{name}.svg"]
        assert paths[0].read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in paths[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", [r"sgd $\frac{$", "$x$ \x1b[31m\0", "x" * 10**6, "\\$ [/b]"])
def test_text_of_others_is_drawn_as_text(name, small, trained, analysed, tmp_path):
    run, spectrum = trained(small), replace(analysed(small), label=name)
    figure = plots.bifurcation_figure(run, spectrum)
    style.save(figure, tmp_path / "run", ["png"])
    title = figure.get_suptitle()
    # Lines are broken, between words or within them.
    assert "".join(printable(name[:20]).split()) in "".join(title.replace(r"\$", "$").split())
    assert len(title) < 1000


def test_a_run_with_a_burst_gets_a_zoom_around_it(eventful, trained, analysed):
    run, spectrum = trained(eventful), analysed(eventful)
    (burst,) = spectrum.bursts
    zoom = default_zoom(run, spectrum)
    assert zoom is not None
    assert 0 <= zoom[0] < burst.burst_start < burst.burst_end < zoom[1] <= 1000
    figure = plots.run_figure(run, spectrum)
    assert shows(figure, zoom)


def test_figures_are_whole_on_every_page(eventful, trained, analysed, require_whole):
    run, spectrum = trained(eventful), analysed(eventful)
    require_whole(lambda: plots.run_figure(run, spectrum))
    require_whole(lambda: plots.bifurcation_figure(run, spectrum))


def test_a_run_without_bursts_has_no_zoom(small, trained, analysed):
    assert default_zoom(trained(small), analysed(small)) is None


def test_a_chosen_zoom_is_shown(small, trained, analysed):
    figure = plots.run_figure(trained(small), analysed(small), zoom=(20, 40))
    assert shows(figure, (20, 40))


def test_the_sharpness_panel_draws_each_converged_value_and_the_threshold(small, trained, analysed):
    ax, spectrum = new_axes(), analysed(small)
    plots.draw_sharpness(ax, trained(small), spectrum)
    drawn = lines(ax)
    iterate, centre = spectrum.hessian.iterate, spectrum.hessian.centre
    for label, values, steps in (
        ("at the iterate", iterate.eigenvalues[:, 0], spectrum.hessian.steps),
        ("at the 1:2:1 centre", centre.eigenvalues[1:, 0], spectrum.hessian.steps[1:]),
    ):
        np.testing.assert_array_equal(finite(drawn[label]), (steps, values))
    np.testing.assert_allclose(drawn["threshold"].get_ydata(), 2 / 0.3)
    assert "not converged" not in drawn


def test_values_that_did_not_converge_are_drawn_as_such(small, trained, analysed):
    spectrum = analysed(small)
    status = np.array(spectrum.hessian.centre.status)
    status[[2, 5], 0] = BUDGET
    status[[3, 4], 0] = UNRANKED, TRACKED
    hessian = replace(spectrum.hessian, centre=spectrum.hessian.centre._replace(status=status))
    ax = new_axes()
    plots.draw_sharpness(ax, trained(small), replace(spectrum, hessian=hessian))
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["not converged"].get_xdata(), [14, 35])
    np.testing.assert_array_equal(drawn["unranked"].get_xdata(), [21])
    np.testing.assert_array_equal(drawn["tracked"].get_xdata(), [28])
    assert len(finite(drawn["at the 1:2:1 centre"])[0]) == 5


def test_without_a_threshold_none_is_drawn(small, trained, analysed):
    config, ax = replace(small, batch_size=8), new_axes()
    plots.draw_sharpness(ax, trained(config), analysed(config))
    assert "threshold" not in lines(ax)


@pytest.mark.parametrize(
    ("optimizer", "expected", "label"),
    [
        (OptimizerConfig(learning_rate=0.3), 2 / 0.3, "full batch"),
        (OptimizerConfig("heavy-ball", 0.3, momentum=0.5), 3 / 0.3, "full batch"),
        (OptimizerConfig("adam", 0.01), 38 / 0.01, "full batch, P frozen"),
    ],
    ids=["gd", "heavy-ball", "adam"],
)
def test_with_mini_batches_the_full_batch_threshold_is_a_dashed_line_from_step_0_on(
    optimizer, expected, label, small, trained, analysed, tmp_path
):
    config, ax = replace(small, batch_size=8, optimizer=optimizer), new_axes()
    run, spectrum = trained(config), analysed(config)
    plots.draw_sharpness(ax, run, spectrum)
    line = lines(ax)[label]
    assert line.get_linestyle() == "--"
    assert line.get_xdata()[0] == 0
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-9)
    bottom, top = ax.get_ylim()
    assert bottom < expected < top
    save_spectrum(spectrum, tmp_path / "run.spectrum.h5")
    kept = load_spectrum(tmp_path / "run.spectrum.h5", run)
    assert kept.crossings == []
    assert kept.reference is not None
    np.testing.assert_array_equal(kept.reference.values, line.get_ydata())


def test_the_sharpness_of_an_adaptive_optimizer_is_named_after_its_operator(
    small, trained, analysed
):
    config, ax = replace(small, optimizer=OptimizerConfig("adam", learning_rate=0.01)), new_axes()
    plots.draw_sharpness(ax, trained(config), analysed(config))
    assert "P^{-1}" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("draw", "name"), [(plots.draw_loss, "loss"), (plots.draw_accuracy, "accuracy")]
)
def test_scalars_are_drawn_at_every_step(draw, name, small, trained, analysed):
    run, ax = trained(small), new_axes()
    draw(ax, run, analysed(small))
    line, *held_out = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), np.arange(61))
    np.testing.assert_array_equal(line.get_ydata(), run.scalars[name])
    assert [extra.get_label() for extra in held_out] == ["held out"] * (name == "accuracy")
    assert line.get_label() == "training" or name == "loss"
    for extra in held_out:
        np.testing.assert_array_equal(extra.get_xdata(), run.checkpoint_steps)
        np.testing.assert_array_equal(extra.get_ydata(), run.validation["accuracy"])


def test_the_change_of_the_loss_stands_at_the_later_step(small, trained, analysed):
    run, ax = trained(small), new_axes()
    plots.draw_loss_change(ax, run, analysed(small))
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 61))
    loss = run.scalars["loss"]
    np.testing.assert_array_equal(line.get_ydata(), loss[1:] - loss[:-1])


def test_every_class_has_its_weight_drawn(small, trained, analysed):
    run, ax = trained(small), new_axes()
    plots.draw_class_weights(ax, run, analysed(small))
    drawn = np.stack([line.get_ydata() for line in ax.get_lines()], axis=1)
    np.testing.assert_array_equal(drawn, run.scalars["class_weights"])


def test_the_largest_ntk_eigenvalues_are_drawn_where_computed(small, trained, analysed):
    ax, spectrum = new_axes(), analysed(small)
    plots.draw_ntk(ax, trained(small), spectrum)
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_ydata(), spectrum.ntk.eigenvalues[:, 0])
    ax = new_axes()
    plots.draw_ntk(ax, trained(small), analysed(small, SpectrumConfig(ntk_examples=0)))
    assert not ax.get_lines()
    assert ax.texts[0].get_text() == "not computed"


def test_crossings_of_the_centres_are_marked_at_the_threshold(eventful, analysed):
    ax, spectrum = new_axes(), analysed(eventful)
    plots.mark_crossings(ax, spectrum)
    for direction in ("up", "down"):
        line = lines(ax)[f"crossing {direction}"]
        found = [c for c in spectrum.crossings if (c.at, c.direction) == ("centre", direction)]
        assert len(found) == len(line.get_xdata()) > 0
        for crossing, step in zip(found, np.asarray(line.get_xdata()), strict=True):
            assert crossing.step_before <= step <= crossing.step_after
        np.testing.assert_allclose(line.get_ydata(), 2 / 3)


def test_the_height_is_fitted_to_the_span_that_is_looked_at():
    ax = new_axes()
    ax.plot([0, 1, 2, 3], [100.0, 1.0, 2.0, np.nan])
    plots.fit_height(ax, (1, 3))
    low, high = ax.get_ylim()
    assert 0.5 < low < 1
    assert 2 < high < 2.5


def test_a_span_without_points_leaves_the_height_as_it_was():
    ax = new_axes()
    ax.plot([0, 1], [1.0, 2.0])
    before = ax.get_ylim()
    plots.fit_height(ax, (5, 6))
    assert ax.get_ylim() == before


def test_each_step_stands_once_in_the_bifurcation_figure_by_its_place_in_the_pulse(
    small, trained, analysed
):
    run = trained(small)
    figure = plots.bifurcation_figure(run, analysed(small))
    drawn = [
        pair
        for line in figure.axes[0].get_lines()
        if len(line.get_xdata()) > 1
        for pair in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    ]
    loss = run.scalars["loss"]
    expected = {(step % 20, loss[step]) for step in range(60)}
    assert expected <= set(drawn)
    assert {phase for phase, _ in drawn} == set(range(20))


def test_the_title_says_what_the_threshold_is_and_what_is_not_converged(small, trained, analysed):
    # Of the static loss, to which the threshold does not apply, nothing is refined.
    settings = SpectrumConfig(max_matvecs=8, ntk_examples=0, static=True)
    spectrum = analysed(small, settings)
    assert spectrum.not_converged > 0
    figure = plots.run_figure(trained(small), spectrum)
    title = " ".join(figure.get_suptitle().split())
    assert spectrum.label in title
    assert f"{spectrum.not_converged} checkpoints not converged" in title


def panels(figure):
    return [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]


def test_a_static_loss_has_no_panel_of_class_weights(small, trained, analysed):
    static = replace(small, schedule=ScheduleConfig(name="static"))
    gamma = r"$\Gamma_i$"
    assert gamma in panels(plots.run_figure(trained(small), analysed(small)))
    assert gamma not in panels(plots.run_figure(trained(static), analysed(static)))


def test_of_a_run_alone_the_run_file_is_drawn(small, trained):
    figure = plots.run_figure(trained(small), None)
    assert [label.split("(")[0] for label in panels(figure)] == [
        r"$\Gamma_i$",
        "$F$",
        "$F",
        "accuracy",
        r"realized $\zeta$",
    ]
    assert "threshold" not in figure.get_suptitle()


def test_both_ends_of_the_spectrum_are_drawn(small, trained, analysed):
    spectrum = analysed(small, SpectrumConfig(which="both", k=2, max_matvecs=200))
    figure = plots.run_figure(trained(small), spectrum)
    axes = {ax.get_ylabel(): ax for ax in figure.axes}
    for label, column in ((r"$\lambda_{\max}$", 0), (r"$\lambda_{\min}$", 3)):
        values = spectrum.hessian.iterate.eigenvalues[:, column]
        _, y = finite(lines(axes[label])["at the iterate"])
        np.testing.assert_array_equal(y, values)
    assert "threshold" not in lines(axes[r"$\lambda_{\min}$"])


def test_of_the_smallest_eigenvalues_the_smallest_is_drawn(small, trained, analysed):
    spectrum = analysed(small, SpectrumConfig(which="smallest", k=2, max_matvecs=200))
    figure = plots.run_figure(trained(small), spectrum)
    assert r"$\lambda_{\max}$" not in panels(figure)
    (ax,) = [ax for ax in figure.axes if ax.get_ylabel() == r"$\lambda_{\min}$"]
    _, y = finite(lines(ax)["at the iterate"])
    np.testing.assert_array_equal(y, spectrum.hessian.iterate.eigenvalues.min(axis=1))


def test_a_threshold_is_not_drawn_beside_what_it_does_not_apply_to(small, trained, analysed):
    ax, spectrum = new_axes(), analysed(small, SpectrumConfig(static=True))
    assert np.any(np.isfinite(spectrum.thresholds))
    plots.draw_sharpness(ax, trained(small), spectrum)
    assert "threshold" not in lines(ax)


def test_a_zoom_that_is_nearly_the_whole_run_is_left_out(eventful, trained, analysed):
    spectrum = analysed(eventful)
    wide = replace(spectrum.bursts[0], burst_start=100, burst_end=900)
    assert default_zoom(trained(eventful), replace(spectrum, oscillations=[wide])) is None


def test_a_run_that_diverges_is_drawn_and_named_so(small, trained):
    loss = LossConfig(name="squared-error")
    schedule = ScheduleConfig(name="static")
    config = replace(small, loss=loss, schedule=schedule, optimizer=OptimizerConfig("gd", 1e3))
    run = trained(config)
    assert run.status == "diverged"
    figure = plots.run_figure(run, None)
    figure.draw_without_rendering()
    assert f"diverged at step {run.steps[-1]}" in figure.get_suptitle()


def test_the_points_of_a_sparse_run_are_seen(small, trained, analysed):
    figure = plots.run_figure(trained(small), analysed(small))
    figure.draw_without_rendering()
    points = [line for ax in figure.axes for line in ax.get_lines() if isinstance(line, Points)]
    assert len(points) >= 6
    assert min(line.get_markersize() for line in points) > 3


def test_a_figure_without_points_on_the_frame(small, trained, analysed):
    figure = plots.run_figure(trained(small), analysed(small))
    for ax in figure.axes:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for line in (line for line in ax.get_lines() if isinstance(line, Points)):
            x, y = finite(line)
            assert left < x.min()
            assert x.max() < right
            told = len(ax.texts) > 0
            assert told or (low < y.min() and y.max() < high)


def test_changes_of_the_loss_out_of_sight_are_told(small, trained, analysed):
    run = trained(small)
    figure = plots.run_figure(run, None)
    (ax,) = [ax for ax in figure.axes if "t{-}1" in ax.get_ylabel()]
    change = np.diff(run.scalars["loss"])
    low, high = ax.get_ylim()
    assert low == -high
    hidden = np.sum(np.abs(change) > high)
    assert hidden <= max(1, 0.02 * len(change) + 1)
    told = [text.get_text().split()[0] for text in ax.texts]
    assert (hidden > 0) == (len(told) > 0)


def test_letters_stay_letters_in_vector_files(small, trained, tmp_path):
    svg, pdf = style.save(plots.run_figure(trained(small), None), tmp_path / "run", ["svg", "pdf"])
    assert "accuracy</text>" in svg.read_text()
    # Characters of private use, which only its own font has, are boxes elsewhere.
    assert not re.search("[\ue000-\uf8ff]", svg.read_text())
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes()


def test_into_a_missing_directory_nothing_is_written(tmp_path):
    with pytest.raises(FileError, match=r"cannot be written: directory .*none does not exist"):
        style.save(Figure(), tmp_path / "none" / "figure")
    assert list(tmp_path.iterdir()) == []


def test_only_the_formats_that_are_asked_for_are_written(tmp_path):
    figure = Figure()
    figure.subplots().plot([0, 1])
    assert style.save(figure, tmp_path / "one", ["svg"]) == [tmp_path / "one.svg"]
    assert [path.name for path in tmp_path.iterdir()] == ["one.svg"]


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_same_figure_gives_the_same_bytes(suffix, tmp_path):
    contents = []
    for name in ("one", "two"):
        figure = Figure()
        figure.subplots().plot([0, 1])
        contents.append(style.save(figure, tmp_path / name, [suffix])[0].read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("width", ["3.4in", None])
def test_bursts_are_as_wide_as_the_figure_and_nothing_lies_on_them(
    width, eventful, trained, analysed
):
    """Neither the colour bar beside the pulses nor the legend takes anything from them."""
    run, spectrum = trained(eventful), analysed(eventful)
    with on_paper(Paper(width)):
        figure = plots.bifurcation_figure(run, replace(spectrum, oscillations=spectrum.bursts * 6))
        figure.draw_without_rendering()  # which lays it out
    bursts = [ax for ax in figure.axes if ax.get_title().startswith("burst ")]
    assert len(bursts) == 6
    assert not any(ax.get_legend() for ax in figure.axes)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["crossing up"]
    boxes = [box for ax in bursts if (box := ax.get_tightbbox()) is not None]
    assert len(boxes) == 6
    assert legend.get_window_extent().y1 <= min(box.y0 for box in boxes)
    assert max(box.x1 for box in boxes) > 0.97 * figure.bbox.width


@pytest.mark.parametrize(
    "losses",
    [
        np.float32([1, 2e4, 3e38, np.inf]),
        np.float32([3e38, -3e38, 3e38, 1]),
        np.float64([1, 1.7e308, 1e300, np.nan, np.inf, np.inf]),
        np.float64([1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 1e308]),
    ],
    ids=["float32", "both-signs", "float64", "one"],
)
def test_losses_of_any_size_are_drawn_without_a_warning(losses, small, trained, tmp_path):
    """Warnings are errors here; what is finite and can be drawn is in sight."""
    run = trained(small)
    count = len(losses)
    steps, alone = np.arange(count), np.ones((count, 3))
    accuracy = np.full(count, 0.5, losses.dtype)
    scalars = {"loss": losses, "class_weights": alone, "accuracy": accuracy}
    like = SimpleNamespace(
        **{name: getattr(run, name) for name in ("path", "subject", "status", "dynamics")},
        steps=steps,
        scalars=scalars,
        validation={},
    )
    figure = plots.run_figure(like, None)
    style.save(figure, tmp_path / "x")
    (low, high) = figure.axes[0].get_ylim()
    assert low < 1 < high
    style.save(overlay_figure([Overlaid(like, None), Overlaid(run, None)]), tmp_path / "both")
    assert np.all(
        distinct(steps, losses, (0.5, 1.5), logarithmic=False) == np.flatnonzero(losses == 1)
    )
    panel = Panel("F", [Series("F", steps, losses, "#000000")])
    assert np.all(np.isfinite(heights(panel)[:2]))


def test_the_line_of_the_realized_edge_stays_in_sight_and_one_outlier_out_of_it(small, trained):
    run = trained(replace(small, edge_every=1))
    values = run.scalars["realized_edge"].copy()
    values[7] = 1e6
    run.__dict__["scalars"] = dict(run.scalars) | {"realized_edge": values}
    figure = plots.run_figure(run, None, panels=["realized-edge"])
    low, high = figure.axes[0].get_ylim()
    assert low < 1 < high < 100
    assert any("1e+06" in text.get_text() for text in figure.axes[0].texts)
