from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics.analysis import Spectrum
from dlf_dynamics.analysis.linalg.certificate import BUDGET
from dlf_dynamics.analysis.spectra.verification import verify_dense
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.errors import ConfigError


def tamper(spectrum: Spectrum, at: str, row: int, factor: float) -> Spectrum:
    """The same spectrum with one largest eigenvalue off by a factor."""
    found = getattr(spectrum.hessian, at)
    values = np.array(found.eigenvalues)
    values[row, 0] *= factor
    hessian = replace(spectrum.hessian, **{at: found._replace(eigenvalues=values)})
    return replace(spectrum, hessian=hessian)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("small", SpectrumConfig(k=3)),
        ("small", SpectrumConfig(k=3, static=True, ntk_full=True)),
        ("adaptive", SpectrumConfig(k=3)),
    ],
)
def test_good_spectra_agree_with_the_dense_matrices(name, settings, request, trained, analysed):
    config = request.getfixturevalue(name)
    told = []
    found = verify_dense(trained(config), analysed(config, settings), told.append)
    assert found.hessian < 1e-9
    assert found.ntk < 1e-9
    assert (found.num_values, found.not_converged) == (3 * (10 + 9), 0)
    assert told == list(range(1, 11))


@pytest.mark.parametrize(("at", "row"), [("iterate", 0), ("centre", 4)])
def test_a_value_that_is_off_is_found_and_its_step_told(at, row, small, trained, analysed):
    spectrum = tamper(analysed(small), at, row, 1.001)
    found = verify_dense(trained(small), spectrum)
    assert 1e-4 < found.hessian < 2e-3
    assert found.hessian_step == spectrum.hessian.steps[row]


def test_a_kernel_value_that_is_off_is_found(small, trained, analysed):
    spectrum = analysed(small)
    assert spectrum.ntk is not None
    values = np.array(spectrum.ntk.eigenvalues)
    values[3, 0] *= 1.01
    spectrum = replace(spectrum, ntk=replace(spectrum.ntk, eigenvalues=values))
    found = verify_dense(trained(small), spectrum)
    np.testing.assert_allclose(found.ntk, 0.01, rtol=1e-6)
    assert found.hessian < 1e-9


@pytest.mark.parametrize(
    "name", ["trace", "captured", "effective_rank", "alignment", "class_blocks"]
)
def test_a_statistic_of_the_kernel_that_is_off_is_found(name, small, trained, analysed):
    spectrum = analysed(small)
    assert spectrum.ntk is not None
    values = np.array(getattr(spectrum.ntk, name))
    values[3] *= 1.01
    spectrum = replace(spectrum, ntk=replace(spectrum.ntk, **{name: values}))
    np.testing.assert_allclose(verify_dense(trained(small), spectrum).ntk, 0.01, rtol=1e-6)


def test_the_static_spectrum_taken_for_the_weighted_one_is_found(small, trained, analysed):
    static = analysed(small, SpectrumConfig(static=True))
    hessian = replace(static.hessian, curvature=analysed(small).hessian.curvature)
    found = verify_dense(trained(small), replace(static, hessian=hessian))
    assert found.hessian > 0.05


def test_values_that_are_not_converged_are_left_out_and_counted(small, trained, analysed):
    spectrum = tamper(analysed(small, SpectrumConfig(k=3, ntk_examples=0)), "iterate", 2, 2.0)
    status = np.array(spectrum.hessian.iterate.status)
    status[2, 0] = BUDGET
    hessian = replace(spectrum.hessian, iterate=spectrum.hessian.iterate._replace(status=status))
    found = verify_dense(trained(small), replace(spectrum, hessian=hessian))
    assert found.hessian < 1e-9
    assert (found.num_values, found.not_converged) == (3 * (10 + 9) - 1, 1)
    assert np.isnan(found.ntk)


def test_networks_too_large_for_dense_matrices_are_refused(small, trained, analysed):
    config = replace(small, model=replace(small.model, widths=(400,)), steps=1)
    settings = SpectrumConfig(ntk_examples=0, max_matvecs=8)
    with pytest.raises(ConfigError, match="dense matrices of order 2403; expected at most 2000"):
        verify_dense(trained(config), analysed(config, settings))
