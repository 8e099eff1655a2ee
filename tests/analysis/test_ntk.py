"""Spectra along a run against closed forms and Jacobians by finite differences."""

from dataclasses import fields, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import LossConfig, ModelConfig
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.analysis.spectra import ntk
from dlf_dynamics.analysis.spectra.ntk import balanced_examples, ntk_spectrum
from dlf_dynamics.analysis.spectra.summary import closing_lines
from dlf_dynamics.analysis.spectra.verification import verify_dense
from dlf_dynamics.config import SpectrumConfig


def full_jacobian(run, checkpoint, num_examples):
    """Central differences of all outputs, shape (examples * outputs, params)."""
    problem = run.problem.take(jnp.arange(num_examples))
    outputs = jax.jit(problem.outputs)
    params = run.parameters()[checkpoint]
    columns = [
        np.ravel(outputs(params + shift) - outputs(params - shift)) / 2e-5
        for shift in 1e-5 * np.eye(len(params))
    ]
    return np.stack(columns, axis=1)


def descending(matrix):
    return np.linalg.eigvalsh(matrix)[::-1]


def test_a_linear_run_has_the_same_closed_form_at_every_checkpoint(small, trained):
    run = trained(replace(small, model=ModelConfig(widths=())))
    found = ntk_spectrum(run, num_examples=9)
    features = np.hstack([run.dataset.inputs[:9], np.ones((9, 1))])
    exact = descending(features @ features.T)
    np.testing.assert_allclose(found.eigenvalues, [exact] * len(run.checkpoint_steps), atol=1e-13)


@pytest.mark.parametrize("trace_outputs", [True, False])
def test_values_along_a_run_are_those_of_finite_differences(trace_outputs, small, trained):
    run = trained(small)
    found = ntk_spectrum(run, [0, 4, 9], num_examples=6, trace_outputs=trace_outputs)
    np.testing.assert_array_equal(found.steps, [0, 28, 60])
    assert found.trace_outputs == trace_outputs
    for row, checkpoint in enumerate([0, 4, 9]):
        jac = full_jacobian(run, checkpoint, 6)
        kernel = jac @ jac.T
        if trace_outputs:
            kernel = np.einsum("aibi->ab", kernel.reshape(6, 3, 6, 3)) / 3
        # Central differences with steps of 1e-5 are right to about 1e-10.
        np.testing.assert_allclose(found.eigenvalues[row], descending(kernel), atol=1e-8)


def test_the_full_kernel_has_the_trace_and_the_eigenvalues_of_the_jacobian(small, trained):
    run = trained(small)
    found = ntk_spectrum(run, [9], num_examples=8, trace_outputs=False)
    jac = full_jacobian(run, 9, 8)
    values = found.eigenvalues[0]
    assert values.shape == (24,)
    np.testing.assert_allclose(np.sum(values), np.sum(jac**2), rtol=1e-9)
    np.testing.assert_allclose(values[:15], descending(jac.T @ jac), atol=1e-8)
    np.testing.assert_allclose(values[15:], 0, atol=1e-12)


def test_the_traced_kernel_has_the_full_ones_trace_over_the_number_of_outputs(small, trained):
    traced, full = (
        ntk_spectrum(trained(small), num_examples=8, trace_outputs=trace).eigenvalues
        for trace in (True, False)
    )
    np.testing.assert_allclose(3 * np.sum(traced, axis=1), np.sum(full, axis=1), rtol=1e-12)


def test_the_kernel_is_taken_on_all_examples_when_there_are_fewer_than_asked_for(small, trained):
    run = trained(small)
    told = []
    found = ntk_spectrum(run, num_examples=50, progress=told.append)
    assert found.num_examples == 24
    assert found.eigenvalues.shape == (10, 24)
    assert told[-1] == 10


def test_the_kernel_does_not_depend_on_the_loss(small, trained):
    run = trained(small)
    other = trained(replace(small, loss=LossConfig("squared-error")))
    np.testing.assert_allclose(
        ntk_spectrum(run, [0]).eigenvalues, ntk_spectrum(other, [0]).eigenvalues, rtol=1e-12
    )


@pytest.mark.parametrize("trace_outputs", [True, False])
def test_products_find_what_a_kernel_that_is_formed_has(trace_outputs, small, trained, monkeypatch):
    run = trained(small)
    monkeypatch.setattr(ntk, "DEFAULT_K", 4)
    told = []
    formed = ntk_spectrum(run, num_examples=22, trace_outputs=trace_outputs)
    found = ntk_spectrum(
        run,
        num_examples=22,
        trace_outputs=trace_outputs,
        max_dense=21,
        batch_size=5,
        progress=told.append,
    )
    assert told == list(range(1, 11))
    rows = 22 if trace_outputs else 66
    assert formed.eigenvalues.shape == (10, rows)
    assert found.eigenvalues.shape == found.residuals.shape == (10, 4)
    assert found.intervals.shape == (10, 4, 2)
    scale = formed.eigenvalues[:, :1]
    assert np.all(found.converged)
    assert np.all(found.residuals <= 1e-6 * scale)
    np.testing.assert_allclose(
        found.eigenvalues / scale, formed.eigenvalues[:, :4] / scale, atol=1e-11
    )
    lower, upper = np.moveaxis(found.intervals, -1, 0)
    assert np.all((lower <= formed.eigenvalues[:, :4]) & (formed.eigenvalues[:, :4] <= upper))
    top = np.sum(formed.eigenvalues[:, :4], axis=1) / np.sum(formed.eigenvalues, axis=1)
    np.testing.assert_allclose(found.captured, top, rtol=1e-10)
    for name in ("trace", "effective_rank", "alignment", "class_blocks"):
        np.testing.assert_allclose(getattr(found, name), getattr(formed, name), rtol=1e-10)


@pytest.mark.parametrize("trace_outputs", [True, False])
def test_a_kernel_that_is_formed_is_certain_but_for_rounding(trace_outputs, small, trained):
    found = ntk_spectrum(trained(small), [0, 9], trace_outputs=trace_outputs)
    np.testing.assert_array_equal(found.residuals, np.zeros_like(found.eigenvalues))
    assert np.all(found.converged)
    lower, upper = np.moveaxis(found.intervals, -1, 0)
    assert np.all((lower < found.eigenvalues) & (found.eigenvalues < upper))
    assert np.all(upper - lower < 1e-12 * found.eigenvalues[:, :1])
    np.testing.assert_allclose(found.captured, 1, rtol=1e-12)
    np.testing.assert_allclose(found.trace, np.sum(found.eigenvalues, axis=1), rtol=1e-12)
    squares = np.sum(found.eigenvalues**2, axis=1)
    np.testing.assert_allclose(found.effective_rank, found.trace**2 / squares, rtol=1e-12)


def test_statistics_are_those_of_finite_differences(small, trained):
    run = trained(small)
    found = ntk_spectrum(run, [9])
    jac = full_jacobian(run, 9, 24)
    kernel = np.einsum("aibi->ab", (jac @ jac.T).reshape(24, 3, 24, 3)) / 3
    members = np.eye(3)[run.dataset.labels]
    np.testing.assert_allclose(found.trace[0], np.sum(jac**2) / 3, rtol=1e-9)
    blocks = members.T @ kernel @ members / 8**2
    np.testing.assert_allclose(found.class_blocks[0], blocks, rtol=1e-8)
    centring = np.eye(24) - 1 / 24
    ours, labels = centring @ kernel @ centring, centring @ members @ members.T @ centring
    cosine = np.sum(ours * labels) / (np.linalg.norm(ours) * np.linalg.norm(labels))
    np.testing.assert_allclose(found.alignment[0], cosine, rtol=1e-8)


def test_class_blocks_and_alignment_are_of_the_traced_kernel_either_way(small, trained):
    run = trained(small)
    traced, full = (ntk_spectrum(run, [0, 9], trace_outputs=trace) for trace in (True, False))
    np.testing.assert_allclose(traced.alignment, full.alignment, rtol=1e-12)
    np.testing.assert_allclose(traced.class_blocks, full.class_blocks, rtol=1e-12)


def test_alignment_and_blocks_of_sorted_data_are_those_of_examples_of_every_class(small, trained):
    run = trained(small)
    found = ntk_spectrum(run, [0, 4, 9], num_examples=8, aligned=[0, 9])
    chosen = [0, 1, 2, 8, 9, 10, 16, 17]
    assert np.all(run.dataset.labels[:8] == 0)
    assert list(found.class_examples) == list(chosen)
    assert found.num_examples == 8
    jac = full_jacobian(run, 9, 24).reshape(24, 3, -1)
    np.testing.assert_allclose(found.trace[2], np.sum(jac[:8] ** 2) / 3, rtol=1e-8)
    kernel = np.einsum("aip,bip->ab", jac[chosen], jac[chosen]) / 3
    members = np.eye(3)[run.dataset.labels[chosen]]
    sizes = np.outer(members.sum(axis=0), members.sum(axis=0))
    blocks = members.T @ kernel @ members / sizes
    np.testing.assert_allclose(found.class_blocks[2], blocks, rtol=1e-8)
    centring = np.eye(8) - 1 / 8
    ours, labels = centring @ kernel @ centring, centring @ members @ members.T @ centring
    cosine = np.sum(ours * labels) / (np.linalg.norm(ours) * np.linalg.norm(labels))
    np.testing.assert_allclose(found.alignment[2], cosine, rtol=1e-8)
    assert np.isfinite(found.alignment).tolist() == [True, False, True]
    assert np.isfinite(found.class_blocks[:, 0, 0]).tolist() == [True, False, True]


def test_products_have_the_alignment_of_a_kernel_that_is_formed_also_of_sorted_data(small, trained):
    found = ntk_spectrum(trained(small), [0, 9], num_examples=8, max_dense=4, k=2)
    formed = ntk_spectrum(trained(small), [0, 9], num_examples=8)
    np.testing.assert_array_equal(found.alignment, formed.alignment)
    np.testing.assert_array_equal(found.class_blocks, formed.class_blocks)


@pytest.mark.parametrize(("count", "chosen"), [(3, [0, 1, 3]), (4, []), (9, [])])
def test_balanced_examples_are_the_first_of_each_class(count, chosen):
    """Of a class with too few the others take the place; the first ones need no second kernel."""
    labels = np.array([0, 1, 1, 2, 2])
    run = SimpleNamespace(num_classes=3, problem=SimpleNamespace(targets=labels))
    assert balanced_examples(run, count) == chosen


def test_the_last_checkpoint_always_has_its_alignment(small, trained):
    settings = SpectrumConfig(ntk_examples=8, alignment_checkpoints=2)
    spectrum = compute_spectrum(trained(small), settings)
    assert spectrum.ntk is not None
    known = np.isfinite(spectrum.ntk.alignment)
    assert known.tolist() == [True] + 8 * [False] + [True]
    assert verify_dense(trained(small), spectrum).ntk < 1e-9
    (line,) = [line for line in closing_lines(spectrum) if line.startswith("NTK")]
    value = spectrum.ntk.alignment[-1]
    assert f"alignment with the labels {value:.3g} on 8 examples drawn evenly from 3" in line


def test_k_eigenvalues_are_the_largest_of_a_kernel_that_is_formed(small, trained):
    run = trained(small)
    some, all_of_them = (ntk_spectrum(run, [0, 9], k=k) for k in (5, None))
    np.testing.assert_array_equal(some.eigenvalues, all_of_them.eigenvalues[:, :5])
    np.testing.assert_array_equal(some.trace, all_of_them.trace)
    captured = np.sum(some.eigenvalues, axis=1) / some.trace
    np.testing.assert_allclose(some.captured, captured, rtol=1e-14)
    assert ntk_spectrum(run, [0], k=99).eigenvalues.shape == (1, 24)


def test_what_has_not_converged_is_not_captured(small, trained):
    found = ntk_spectrum(
        trained(small), [3], num_examples=22, k=6, max_dense=0, tol=1e-12, max_matvecs=1
    )
    assert not np.all(found.converged)
    good = np.where(found.converged, found.eigenvalues, 0)
    np.testing.assert_allclose(found.captured, np.sum(good, axis=1) / found.trace, rtol=1e-14)


def test_products_of_a_run_in_single_precision(small, trained):
    with jax.enable_x64(False):
        run = trained(replace(small, dtype="float32"))
        formed = ntk_spectrum(run, [0, 9])
        found = ntk_spectrum(run, [0, 9], k=3, max_dense=0)
    assert np.all(found.converged)
    scale = formed.eigenvalues[:, :1]
    assert np.all(found.residuals <= 1e-3 * scale)
    np.testing.assert_allclose(
        found.eigenvalues / scale, formed.eigenvalues[:, :3] / scale, atol=1e-5
    )
    np.testing.assert_allclose(found.alignment, formed.alignment, rtol=1e-4)
    np.testing.assert_allclose(found.effective_rank, formed.effective_rank, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"max_dense": 0, "k": 2}])
def test_one_compilation_serves_all_checkpoints(options, small, trained):
    run = trained(small)
    events = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *rest, **more: events.append(name)
    )
    try:
        ntk_spectrum(run, [0], num_examples=11, **options)
        before = len([name for name in events if "backend_compile" in name])
        ntk_spectrum(run, [2, 5, 9], num_examples=11, **options)
        after = len([name for name in events if "backend_compile" in name])
    finally:
        jax.monitoring.clear_event_listeners()
    assert after == before > 0


@pytest.mark.parametrize("options", [{}, {"max_dense": 0, "k": 3}])
def test_parameters_that_are_not_finite_give_nan_and_spare_the_other_checkpoints(
    options, small, trained, monkeypatch
):
    run = trained(small)
    before = ntk_spectrum(run, [0, 1], **options)
    points = run.points

    def spoilt(checkpoints, chunk):
        for part in points(checkpoints, chunk):
            yield [
                replace(p, params=np.full_like(p.params, np.nan)) if p.step == 0 else p
                for p in part
            ]

    monkeypatch.setattr(run, "points", spoilt)
    found = ntk_spectrum(run, [0, 1], **options)
    assert not np.any(found.converged[0])
    for field in fields(found):
        values = getattr(found, field.name)
        if not isinstance(values, np.ndarray) or field.name in ("steps", "converged"):
            continue
        assert np.all(np.isnan(values[0])), field.name
        np.testing.assert_array_equal(values[1], getattr(before, field.name)[1])


@pytest.mark.parametrize("name", ["k", "batch_size"])
def test_counts_below_1_are_refused(name, small, trained):
    with pytest.raises(ValueError, match=f"{name} is 0; expected at least 1"):
        ntk_spectrum(trained(small), **{name: 0})
