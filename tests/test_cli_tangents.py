"""`spectrum --infinite-width` and `--ntk-engine` as a user meets them."""

import importlib.util
import json

import numpy as np
import pytest

from dlf_dynamics import tangents
from dlf_dynamics.analysis import load_spectrum
from dlf_dynamics.cli import main
from dlf_dynamics.errors import ConfigError

pytestmark = pytest.mark.usefixtures("quick_compilation")

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed"
)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run.h5"
    options = ["--model.widths", "5", "--checkpoint-every", "50", "--quiet"]
    assert main(["train", "--steps", "100", *options, "-o", str(path)]) == 0
    return path


@installed
def test_kernels_are_stored_printed_and_drawn(run_path, capsys):
    options = ["--ntk-examples", "6", "--ntk-engine", "neural-tangents", "--infinite-width"]
    options += ["--k", "1", "--json", "--no-figures", "--quiet"]
    assert main(["spectrum", str(run_path), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = load_spectrum(run_path.with_suffix(".spectrum.h5"))
    assert printed["config"]["ntk_engine"] == found.config.ntk_engine == "neural-tangents"
    assert found.infinite_width is not None
    assert found.ntk is not None
    assert found.infinite_width.normal_weights
    np.testing.assert_allclose(printed["infinite_width"]["ntk"], found.infinite_width.ntk)
    np.testing.assert_allclose(
        found.infinite_width.eigenvalues, found.ntk.eigenvalues, rtol=1e-10, atol=1e-12
    )
    assert main(["plot", str(run_path)]) == 0
    for suffix in (".kernels.png", ".kernels.svg"):
        assert run_path.with_suffix(suffix).exists()


@pytest.mark.parametrize("option", [["--infinite-width"], ["--ntk-engine", "neural-tangents"]])
def test_a_package_that_is_missing_is_told_in_a_line(option, run_path, capsys, monkeypatch):
    def missing():
        raise ConfigError(f"not installed: {tangents.INSTALL}")

    monkeypatch.setattr(tangents, "neural_tangents", missing)
    monkeypatch.setattr("dlf_dynamics.analysis.spectra.infinite_width.neural_tangents", missing)
    assert main(["spectrum", str(run_path), *option, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"dlf-dynamics: not installed: {tangents.INSTALL}\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ntk-engine", "theirs"], "Expected one of ('own', 'neural-tangents')"),
        (["--infinite-width", "--ntk-examples", "0"], "ntk_examples is 0; expected at least 1"),
    ],
)
def test_options_that_cannot_be_used_are_refused_in_a_line(options, expected, run_path, capsys):
    assert main(["spectrum", str(run_path), *options, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
