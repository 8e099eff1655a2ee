import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from dlf_dynamics.analysis.spectra.summary import (
    as_dict,
    closing_lines,
    events_table,
    threshold_line,
)
from dlf_dynamics.config import SpectrumConfig


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"batch_size": 8}, {}),
        ({}, {"ntk_examples": 0, "every": 100}),
    ],
    ids=["plain", "no threshold", "only step 0"],
)
def test_the_summary_is_strictly_valid_json(changes, settings, small, analysed, require_schema):
    spectrum = analysed(replace(small, **changes), SpectrumConfig(**settings))
    content = as_dict(spectrum)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    require_schema(content, "spectrum")


def test_an_infinite_threshold_is_null(scheduled, analysed):
    content = as_dict(analysed(scheduled))
    assert json.loads(json.dumps(content, allow_nan=False))["threshold"]["first"] is None


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ([20.0, np.nan, 20.0], "threshold 20: of it"),
        ([20.0, np.inf, 25.0], "threshold 20 to 25 or infinite: of it"),
        ([np.inf, np.inf, np.nan], "threshold infinite: of it"),
        ([np.nan, np.nan, np.nan], "no threshold: of it"),
    ],
)
def test_the_line_of_the_threshold_names_its_values(thresholds, words):
    assert threshold_line(np.array(thresholds), "of it") == words


def test_the_summary_holds_the_events_and_what_they_rest_on(eventful, analysed, require_schema):
    spectrum = analysed(eventful)
    content = as_dict(spectrum)
    require_schema(content, "spectrum")
    assert content["run_id"] == spectrum.source.run_id
    assert content["checkpoints"] == 1001
    assert content["failed"] == []
    assert content["bursts"] == 1
    for name in ("oscillations", "crossings"):
        events = getattr(spectrum, name)
        assert [vars(event) for event in events] == content[name]
        assert len(events) > 0
    np.testing.assert_allclose(content["threshold"]["first"], 2 / 3)
    largest = max(spectrum.hessian.centre.eigenvalues[1:, 0])
    assert content["largest_sharpness_at_centres"] == largest


def test_what_is_not_there_is_null(small, analysed):
    spectrum = analysed(replace(small, batch_size=8), SpectrumConfig(ntk_examples=0, every=100))
    content = as_dict(spectrum)
    assert content["largest_ntk_eigenvalue"] is None
    assert content["threshold"]["first"] is None
    assert content["largest_sharpness_at_centres"] is None


def rendered(table) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_table_has_a_row_for_each_oscillation_with_its_numbers(eventful, analysed):
    spectrum = analysed(eventful)
    (window,) = spectrum.oscillations
    windows = [window, replace(window, onset=900, end=950, burst=False)]
    table = events_table(replace(spectrum, oscillations=windows))
    assert table.row_count == 2
    text = rendered(table)
    assert f"{window.burst_start}-{window.burst_end}" in text
    for number in (window.onset, window.end, 900, 950):
        assert str(number) in text


def test_without_oscillations_the_table_has_no_row(small, analysed):
    assert events_table(analysed(small)).row_count == 0


@pytest.mark.parametrize("static", [False, True])
def test_the_closing_lines_say_of_which_loss_and_with_which_threshold(static, small, analysed):
    spectrum = analysed(small, SpectrumConfig(static=static, k=3))
    text = "\n".join(closing_lines(spectrum))
    assert ("static loss" if static else "weighted loss") in text
    assert spectrum.label in text
    assert "6.66667" in text
    assert "0 of 57 eigenvalues not converged" in text
    crossings = "crossings are not known, as there is no threshold" if static else "0 crossings at"
    assert crossings in text


def test_every_value_that_is_not_converged_counts_whatever_its_rank(small, analysed):
    settings = SpectrumConfig(which="both", k=3, max_matvecs=16, ntk_examples=0)
    spectrum = analysed(replace(small, model=replace(small.model, widths=(12,))), settings)
    found = [spectrum.hessian.iterate, spectrum.hessian.centre]
    known = [np.isfinite(at.eigenvalues) for at in found]
    bad = np.array([there & ~at.converged for there, at in zip(known, found, strict=True)])
    assert np.sum(bad) > np.sum(bad[:, :, 0])
    rows = np.sum(np.any(bad, axis=(0, 2)))
    text = "\n".join(closing_lines(spectrum))
    counts = f"{np.sum(bad)} of {6 * (10 + 9)} eigenvalues not converged, at {rows} checkpoint"
    assert counts in text
    content = as_dict(spectrum)
    assert content["values"] == 6 * (10 + 9)
    assert content["values_not_converged"] == np.sum(bad)
    assert content["not_converged"] == rows


def test_one_event_is_not_several(eventful, analysed):
    text = "\n".join(closing_lines(analysed(eventful)))
    assert "1 burst, 1 oscillation; " in text


def test_the_closing_lines_name_the_preconditioned_hessian_and_the_reason_of_a_refusal(
    small, adaptive, analysed
):
    assert "preconditioned Hessian" in "\n".join(closing_lines(analysed(adaptive)))
    text = "\n".join(closing_lines(analysed(replace(small, batch_size=8))))
    assert "no threshold: mini-batches: " in text
    assert "stay below" not in text
