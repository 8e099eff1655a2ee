import dataclasses
import json
import re
from dataclasses import replace

import h5py
import jax
import numpy as np
import pytest

from dlf_dynamics import OptimizerConfig, resultfile, train
from dlf_dynamics.analysis import Crossing, Oscillation, compute_spectrum, load_spectrum
from dlf_dynamics.analysis.instabilities.bifurcations import compute_bifurcations
from dlf_dynamics.analysis.spectra import eigenvalues, solver, summary
from dlf_dynamics.analysis.spectra.events import find_oscillations, join_crossings
from dlf_dynamics.analysis.spectra.spectrum import save_spectrum, select_checkpoints
from dlf_dynamics.config import BifurcationConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError, FileError, shown


def assert_same(found, expected):
    """Equality field by field, arrays bit for bit and of the same type."""
    assert type(found) is type(expected)
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        for field in dataclasses.fields(found):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(found, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "settings",
    [SpectrumConfig(), SpectrumConfig(ntk_examples=0), SpectrumConfig(ntk_full=True, static=True)],
    ids=["default", "no ntk", "full and static"],
)
def test_a_spectrum_without_events_comes_back_from_its_file_exactly(
    settings, small, analysed, tmp_path
):
    spectrum = analysed(small, settings)
    assert spectrum.crossings == []
    save_spectrum(spectrum, tmp_path / "run.spectrum.h5")
    assert_same(load_spectrum(tmp_path / "run.spectrum.h5"), spectrum)


def test_events_and_labels_in_any_alphabet_come_back_from_the_file_exactly(
    eventful, analysed, tmp_path
):
    spectrum = replace(analysed(eventful), label="κρίσιμη τιμή: η λ ≥ 2")
    assert spectrum.crossings
    assert spectrum.oscillations
    save_spectrum(spectrum, tmp_path / "spectrum.h5")
    assert_same(load_spectrum(str(tmp_path / "spectrum.h5")), spectrum)


def test_the_settings_of_a_spectrum_are_those_that_were_used(small, analysed):
    spectrum = analysed(small, SpectrumConfig(k=20, max_matvecs=42))
    assert spectrum.config == SpectrumConfig(k=15, max_matvecs=42, tol=1e-6, ntk_examples=24)


def test_the_spectrum_of_another_run_is_refused(small, trained, analysed, tmp_path):
    save_spectrum(analysed(small), tmp_path / "spectrum.h5")
    assert load_spectrum(tmp_path / "spectrum.h5", trained(small)).source == trained(small).source
    other = trained(replace(small, checkpoint_every=1))
    with pytest.raises(FileError, match=r"belongs to another run than .*run\.h5; `dlf-dynamics sp"):
        load_spectrum(tmp_path / "spectrum.h5", other)


def test_missing_foreign_and_newer_files_are_refused(small, trained, analysed, tmp_path):
    with pytest.raises(FileError, match="does not exist; `dlf-dynamics spectrum` makes one"):
        load_spectrum(tmp_path / "none.h5")
    with pytest.raises(FileError, match="is not a dlf-dynamics result file"):
        load_spectrum(trained(small).path)
    path = tmp_path / "spectrum.h5"
    save_spectrum(analysed(small), path)
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = "5.1"
    with pytest.raises(FileError, match=r"has format version 5\.1"):
        load_spectrum(path)


def sign(file):
    """Makes the digest that of the content, so that all else is looked at."""
    file.attrs["sha256"] = resultfile._sha256(file)


def put(name, make):
    """Puts something made of a dataset in its place."""

    def spoil(file):
        content = file[name][()]
        del file[name]
        file[name] = make(content)

    return spoil


def with_settings(change, name="config"):
    def make(content):
        settings = json.loads(content)
        change(settings)
        return json.dumps(settings)

    return put(name, make)


FAULTS = {
    "no steps": (lambda f: f.__delitem__("hessian/steps"), "steps is None; expected Int of"),
    "no residuals": (lambda f: f.__delitem__("hessian/centre/residuals"), "residuals is None"),
    "no column": (lambda f: f.__delitem__("oscillations/burst"), "burst is object of shape"),
    "a group": (
        lambda f: (f.__delitem__("thresholds"), f.create_group("thresholds")),
        "thresholds is None; expected Float of",
    ),
    "fewer checkpoints": (put("hessian/steps", lambda v: v[:-1]), "of \\(10\\)"),
    "more axes": (put("sides", lambda v: v[None]), "sides is int64 of shape"),
    "another type": (put("hessian/steps", lambda v: v.astype("f8")), "steps is float64 of shape"),
    "longer column": (put("crossings/at", lambda v: np.zeros(3, "S4")), "not of one length"),
    "unknown setting": (
        with_settings(lambda s: s["config"].update(unknown=1)),
        "unknown is not a field of SpectrumConfig",
    ),
    "setting of a type": (
        with_settings(lambda s: s["config"].update(k="three")),
        "k is 'three'; expected a whole number",
    ),
    "no spectrum": (lambda f: f.__delitem__("hessian"), "hessian is missing"),
    "unknown group": (
        lambda f: f.create_dataset("other/x", data=1.0),
        "other/x is not of a field of Spectrum",
    ),
    "label": (with_settings(lambda s: s.update(label=[1])), "label is \\[1\\]; expected a string"),
    "operator": (
        with_settings(lambda s: s["curvature"].update(colour="red"), "hessian/settings"),
        "colour is not a field of Curvature",
    ),
    "ends": (
        with_settings(lambda s: s.update(ends={"top": 1, "bottom": "b"}), "hessian/settings"),
        "bottom is 'b'; expected a whole number",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_whose_content_is_not_that_of_a_spectrum_is_damaged(
    fault, small, analysed, tmp_path
):
    path, (spoil, line) = tmp_path / "spectrum.h5", FAULTS[fault]
    save_spectrum(analysed(small), path)
    with h5py.File(path, "a") as file:
        spoil(file)
        sign(file)
    with pytest.raises(FileError, match=f"is damaged: .*{line}.*; compute it anew"):
        load_spectrum(path)


def test_a_file_that_changed_after_it_was_written_is_damaged(small, analysed, tmp_path):
    path = tmp_path / "spectrum.h5"
    save_spectrum(analysed(small), path)
    with h5py.File(path, "a") as file:
        file["thresholds"][0] = 1.0
    with pytest.raises(FileError, match=r"is damaged: it is not what was written \(its digest"):
        load_spectrum(path)


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [
        (1, ":", [0, 7, 14, 21, 28, 35, 42, 49, 56, 60]),
        (3, ":", [0, 21, 42, 60]),
        (1, "14:35", [14, 21, 28]),
        (1, "15:36", [21, 28, 35]),
        (2, "30:", [35, 49, 60]),
        (4, ":50", [0, 28]),
        (100, ":", [0]),
    ],
)
def test_checkpoints_are_chosen_by_stride_and_span(every, steps, expected, small, trained):
    run = trained(small)
    chosen = select_checkpoints(run, SpectrumConfig(every=every, steps=steps))
    assert run.checkpoint_steps[np.asarray(chosen)].tolist() == expected


@pytest.mark.parametrize("kind", [SpectrumConfig, BifurcationConfig])
@pytest.mark.parametrize("steps", ["", "30", "a:b", "1:2:3", "1.5:9", "40:20", "9" * 5000 + ":", 7])
def test_a_span_that_is_not_a_colon_b_is_refused(kind, steps):
    with pytest.raises(ConfigError, match=re.escape(f"steps is {shown(steps)}; expected a:b")):
        kind(steps=steps)


@pytest.mark.parametrize("steps", ["8:14", "100:"])
def test_a_span_without_checkpoints_is_refused_and_told_where_they_are(steps, small, trained):
    with pytest.raises(ConfigError, match=f"steps {steps} holds no checkpoint.*are 0 to 60"):
        compute_spectrum(trained(small), SpectrumConfig(steps=steps))


def test_a_mini_batch_run_has_a_spectrum_but_no_threshold(small, analysed):
    spectrum = analysed(replace(small, batch_size=8))
    assert "mini-batches" in spectrum.label
    assert np.all(np.isnan(spectrum.thresholds))
    assert spectrum.crossings == []
    assert np.all(spectrum.hessian.iterate.converged)


def test_a_fraction_of_a_threshold_that_is_not_there_is_refused(small, trained):
    run = trained(replace(small, batch_size=8))
    with pytest.raises(
        ConfigError, match=r"above is 0.5, a fraction .* there is none: mini-batche"
    ):
        compute_spectrum(run, SpectrumConfig(above=0.5))


def test_where_the_limit_is_met_before_the_fraction_this_is_said_and_kept(
    small, trained, monkeypatch, tmp_path, require_schema
):
    """A cut that lies below the fourth eigenvalue at some checkpoints and above it at others."""
    for module in (solver, eigenvalues, summary):
        monkeypatch.setattr(module, "MOST", 4)
    run = trained(small)
    curvature = jax.jit(jax.hessian(run.problem.objective))
    pairs = zip(run.parameters(), run.checkpoint_steps, strict=True)
    exact = np.array([np.linalg.eigvalsh(curvature(p, t))[-4] for p, t in pairs])
    cut = np.median(exact)
    config = SpectrumConfig(k=3, above=float(cut * 0.3 / 2), ntk_examples=0)
    spectrum = compute_spectrum(run, config)
    values = spectrum.hessian.iterate.eigenvalues
    assert values.shape[1] == 4
    np.testing.assert_allclose(values[:, -1], exact, rtol=1e-5)
    missing = spectrum.hessian.incomplete
    assert 0 < np.sum(missing) < len(missing)
    np.testing.assert_array_equal(missing[exact > cut], True)
    require_schema(summary.as_dict(spectrum), "spectrum")
    content = summary.as_dict(spectrum)["above"]
    assert content["incomplete_steps"] == spectrum.hessian.steps[missing].tolist()
    smallest = np.nanmin([spectrum.hessian.centre.eigenvalues[missing], values[missing]])
    assert content["smallest_there"] == smallest
    (line,) = [line for line in summary.closing_lines(spectrum) if "may be missing" in line]
    assert f"at {np.sum(missing)} checkpoints: of at most 4 the smallest found there is" in line
    save_spectrum(spectrum, tmp_path / "run.spectrum.h5")
    assert_same(load_spectrum(tmp_path / "run.spectrum.h5"), spectrum)


def test_a_static_spectrum_has_no_crossings_of_the_weighted_loss(eventful, analysed):
    spectrum = analysed(eventful, SpectrumConfig(static=True, every=10, ntk_examples=0))
    assert spectrum.crossings == []
    assert "not to what is shown" in spectrum.label
    windows = [replace(window, crossed=-1) for window in analysed(eventful).oscillations]
    assert spectrum.oscillations == windows


def test_thresholds_follow_the_learning_rate_of_each_checkpoint(scheduled, trained, analysed):
    spectrum = analysed(scheduled)
    steps = spectrum.hessian.steps[1:]
    used = trained(scheduled).scalars["learning_rate"][steps]
    assert spectrum.thresholds[0] == np.inf
    np.testing.assert_allclose(spectrum.thresholds[1:], 2 / used, rtol=1e-12)
    # optax computes schedules of the step in float32.
    exact = 2 / (0.4 - 0.3 * (steps - 5) / 55)
    np.testing.assert_allclose(spectrum.thresholds[1:], exact, rtol=1e-6)


@pytest.mark.parametrize("at", ["iterate", "centre"])
def test_crossings_are_where_the_values_change_sides(at, eventful, analysed):
    spectrum = analysed(eventful)
    found = [c for c in spectrum.crossings if c.at == at]
    values = getattr(spectrum.hessian, at).eigenvalues[:, 0]
    known = ~np.isnan(values)
    above = values[known] > 2 / eventful.optimizer.learning_rate
    steps = spectrum.hessian.steps[known]
    assert np.all(getattr(spectrum.hessian, at).converged[known, 0])
    assert [c.step_after for c in found] == steps[1:][np.diff(above)].tolist()
    assert [c.direction == "up" for c in found] == above[1:][np.diff(above)].tolist()
    assert len(found) > 0


@pytest.mark.parametrize("every", [2, 3, 4, 5])
def test_even_and_odd_strides_see_the_same_crossings_of_the_centres(every, eventful, analysed):
    each = [c for c in analysed(eventful).crossings if c.at == "centre"]
    spectrum = analysed(eventful, SpectrumConfig(every=every, ntk_examples=0))
    some = [c for c in spectrum.crossings if c.at == "centre"]
    assert [c.direction for c in some] == [c.direction for c in each]
    for wide, narrow in zip(some, each, strict=True):
        assert wide.step_before <= narrow.step_before < narrow.step_after <= wide.step_after


def test_an_oscillation_knows_the_crossing_before_it(eventful, analysed, trained):
    spectrum = analysed(eventful)
    ups = [c.step_after for c in spectrum.crossings if c.at == "centre" and c.direction == "up"]
    (window,) = spectrum.oscillations
    assert window.burst
    assert window.crossed in ups
    assert window.crossed < window.onset
    # The same step, by the same name, as in the instabilities of the run.
    (event,) = compute_bifurcations(
        trained(eventful), BifurcationConfig(every=1, diagrams="none")
    ).instabilities
    assert event.crossed == window.crossed


def test_opposing_updates_of_mini_batches_are_no_oscillation(small, analysed, trained):
    config = replace(small, batch_size=4, optimizer=OptimizerConfig(learning_rate=3.0))
    run, spectrum = trained(config), analysed(config)
    assert find_oscillations(run.steps, run.scalars["loss"], run.scalars["update_cosine"])
    assert spectrum.oscillations == []
    assert spectrum.unwatched
    assert "oscillations are not reported: with mini-batches" in "".join(
        summary.closing_lines(spectrum)
    )


def test_an_interrupted_run_is_analysed_as_far_as_it_went(small, tmp_path):
    config = replace(small, steps=10**6, checkpoint_every=10)
    run = train(config, tmp_path / "run.h5", stop=iter([False, False, True]).__next__)
    assert run.status == "interrupted"
    spectrum = compute_spectrum(run, SpectrumConfig(ntk_examples=0, steps=":100"))
    kept = run.checkpoint_steps[run.checkpoint_steps < 100]
    np.testing.assert_array_equal(spectrum.hessian.steps, kept)
    assert len(kept) >= 1
    assert spectrum.not_converged == 0


def test_a_diverged_run_is_analysed_up_to_where_it_diverged(small, tmp_path):
    config = replace(
        small,
        model=replace(small.model, widths=()),
        loss=replace(small.loss, name="squared-error"),
        schedule=replace(small.schedule, name="static"),
        optimizer=OptimizerConfig(learning_rate=1e6),
    )
    run = train(config, tmp_path / "run.h5")
    assert run.status == "diverged"
    spectrum = compute_spectrum(run)
    assert 1 < len(spectrum.hessian.steps) < 10
    np.testing.assert_array_equal(spectrum.hessian.steps, run.checkpoint_steps)
    values = spectrum.hessian.iterate.eigenvalues[:, 0]
    np.testing.assert_allclose(values, values[0], rtol=1e-10)
    assert spectrum.ntk is not None
    assert len(spectrum.ntk.eigenvalues) == len(run.checkpoint_steps)


@pytest.mark.parametrize("steps", [":", "1:"])
def test_a_run_whose_curvature_is_lost_in_rounding_takes_few_products(steps, small, tmp_path):
    """Saturated softmax and dead units: Hessian entries of 1e-30, of terms that cancel."""
    config = replace(
        small,
        model=replace(small.model, widths=(8,), activation="relu"),
        schedule=replace(small.schedule, name="static"),
        optimizer=OptimizerConfig(learning_rate=300.0),
        steps=12,
        checkpoint_every=1,
    )
    run = train(config, tmp_path / "run.h5")
    spectrum = compute_spectrum(run, SpectrumConfig(ntk_examples=0, steps=steps))
    found = spectrum.hessian.iterate
    lost = ~found.converged[:, 0]
    assert np.sum(lost) >= 3
    assert np.all(found.num_matvecs[lost] <= 2 * 16)
    curvature = jax.jit(jax.hessian(run.problem.objective))
    for row in np.flatnonzero(lost):
        step = spectrum.hessian.steps[row]
        exact = np.linalg.eigvalsh(curvature(run.parameters([step])[0], step))[-1]
        low, high = found.intervals[row, 0]
        assert low <= exact <= high < 1e-6


def test_progress_tells_of_hessian_and_ntk(small, trained):
    told = []
    compute_spectrum(trained(small), progress=lambda what, done: told.append((what, done)))
    assert told == [("ntk", 10), ("hessian", 10)]


@pytest.mark.parametrize(
    ("ups", "downs", "onset", "expected"),
    [
        ([100], [], 150, 110),  # still above at the onset
        ([100, 300], [200], 350, 310),  # came back down before: not the one that matters
        ([100], [200], 350, -1),
        ([400], [], 350, 410),  # the oscillation began first
        ([100, 400], [200], 350, 410),
    ],
)
def test_an_oscillation_belongs_to_the_crossing_that_holds_at_its_onset(
    ups, downs, onset, expected
):
    crossings = [
        Crossing(direction, step, step + 10, 0.0, 0.0, 2.0, "centre")
        for direction, steps in (("up", ups), ("down", downs))
        for step in steps
    ]
    window = Oscillation(onset, 500, False, -1, -1, 0.0)
    assert join_crossings([window], crossings)[0].crossed == expected
