"""The way of large networks, forced on a small one: warm starts, audits, and what fails."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis import subspace, trajectory
from dlf_dynamics.analysis.eigensolver import certify
from dlf_dynamics.analysis.hessian import hessian_spectrum
from dlf_dynamics.analysis.ritz import Ends, RitzPairs
from dlf_dynamics.config import ModelConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.resultfile import Parts

NAMES = ("eigenvalues", "residuals", "intervals", "converged", "num_matvecs", "modes")


@pytest.fixture
def warm(monkeypatch):
    """No network is small."""
    monkeypatch.setattr(trajectory, "PASS_SIZE", 0)


@pytest.fixture
def dense(small, trained):
    """Descending eigenvalues of the dense Hessian at each checkpoint's iterate."""
    run = trained(replace(small, model=replace(small.model, widths=(12,)), checkpoint_every=2))
    curvature = jax.jit(jax.hessian(run.problem.objective))
    pairs = zip(run.parameters(), run.checkpoint_steps, strict=True)
    return run, np.array([np.linalg.eigvalsh(curvature(p, t))[::-1] for p, t in pairs])


@jax.jit
def dense_matrices(problem, params, step):
    """Hessian and GGN."""
    outputs = problem.outputs(params)
    jac = jax.jacrev(problem.outputs)(params).reshape(outputs.size, -1)
    inner = jax.hessian(lambda outputs: problem.loss(outputs, step))(outputs)
    ggn = jac.T @ inner.reshape(outputs.size, -1) @ jac
    return jax.jacfwd(jax.grad(problem.objective))(params, step), ggn


def assert_within(found, exact, count):
    """Converged values lie in their intervals, the i-th one about the i-th eigenvalue."""
    fine = found.converged
    slack = 1e-12
    lower, upper = found.intervals[..., 0] - slack, found.intervals[..., 1] + slack
    inside = (lower <= exact[:, :count]) & (exact[:, :count] <= upper)
    assert np.all(inside[fine])


def test_warm_starts_give_the_eigenvalues_of_the_dense_hessian_with_fewer_products(warm, dense):
    run, exact = dense
    config = SpectrumConfig(tol=1e-3, audit_every=8)
    found = hessian_spectrum(run, config=config)
    assert found.iterate.converged.all()
    assert_within(found.iterate, exact, 3)
    np.testing.assert_allclose(found.iterate.eigenvalues, exact[:, :3], rtol=1e-3)
    warm_ones = np.ones(len(found.steps), bool)
    warm_ones[:: config.audit_every] = warm_ones[config.audit_every - 1 :: config.audit_every] = 0
    cold = found.iterate.num_matvecs[0]
    assert np.mean(found.iterate.num_matvecs[warm_ones]) < 0.75 * cold
    assert {audit.agreed for audit in found.audits} == {True}
    steps = {audit.step for audit in found.audits}
    assert set(found.steps[config.audit_every - 1 :: config.audit_every].tolist()) <= steps


def test_a_warm_start_that_lost_the_largest_is_found_by_its_audit_and_solved_anew(
    warm, dense, monkeypatch
):
    run, exact = dense
    honest = subspace.solve

    def blind(*arguments, initial_vectors=None, **settings):
        """From a warm start the largest one is never told."""
        found = honest(*arguments, initial_vectors=initial_vectors, **settings)
        if initial_vectors is None:
            return found
        values = found.pairs.values.at[0].set(found.pairs.values[1] * 0.9)
        return found._replace(pairs=found.pairs._replace(values=values))

    monkeypatch.setattr(subspace, "solve", blind)
    found = hessian_spectrum(run, config=SpectrumConfig(tol=1e-3, audit_every=5))
    disagreed = [audit for audit in found.audits if not audit.agreed]
    assert disagreed
    assert min(audit.difference for audit in disagreed) > 0.1
    np.testing.assert_allclose(found.iterate.eigenvalues, exact[:, :3], rtol=1e-3)
    assert found.iterate.converged.all()


def test_a_crossing_of_the_threshold_is_audited(warm, dense):
    run, exact = dense
    # Between two of them.
    middle = float(np.mean(np.sort(exact[:, 0])[15:17]))
    thresholds = np.full(len(exact), middle)
    config = SpectrumConfig(tol=1e-4, audit_every=1000)
    found = hessian_spectrum(run, config=config, thresholds=thresholds)
    audited = {audit.step for audit in found.audits if audit.at == "iterate"}
    above = exact[:, 0] > middle
    turns = found.steps[1:][np.diff(above)].tolist()
    assert len(turns) > 0
    assert set(turns) <= audited


@pytest.mark.parametrize("path", ["one pass", "warm"])
def test_interrupted_and_resumed_it_has_the_same_content(path, dense, tmp_path, monkeypatch):
    if path == "warm":
        monkeypatch.setattr(trajectory, "PASS_SIZE", 0)
    else:
        monkeypatch.setattr(trajectory, "_SEGMENTS", (4, 4))
    run, _ = dense
    config = SpectrumConfig(audit_every=4, tol=1e-3)
    whole = hessian_spectrum(run, config=config)

    def stop_at(done):
        if done >= 12:
            raise KeyboardInterrupt

    make = partial(Parts, tmp_path / "parts", "spectrum", run, {"k": 3})
    with pytest.raises(KeyboardInterrupt):
        hessian_spectrum(run, config=config, parts=make(), progress=stop_at)
    finished = sorted(file.name for file in (tmp_path / "parts").iterdir())
    assert 2 <= len(finished) < 8
    again = hessian_spectrum(run, config=config, parts=make())
    for at in ("iterate", "centre"):
        for name in NAMES:
            one, other = (getattr(getattr(found, at), name) for found in (whole, again))
            np.testing.assert_array_equal(one, other)
    assert again.audits == whole.audits


@pytest.mark.parametrize("path", ["one pass", "warm"])
def test_the_order_of_the_checkpoints_does_not_matter(path, dense, monkeypatch):
    if path == "warm":
        monkeypatch.setattr(trajectory, "PASS_SIZE", 0)
    run, exact = dense
    config = SpectrumConfig(tol=1e-3)
    chosen = np.array([9, 2, 20, 2, 5])
    found = hessian_spectrum(run, chosen, config=config)
    ordered = hessian_spectrum(run, [2, 5, 9, 20], config=config)
    place = [2, 0, 3, 0, 1]
    for name in ("eigenvalues", "intervals", "converged"):
        expected = getattr(ordered.iterate, name)[place]
        np.testing.assert_array_equal(getattr(found.iterate, name), expected)
    assert_within(found.iterate, exact[chosen], 3)


@pytest.mark.parametrize("path", ["one pass", "warm"])
def test_a_checkpoint_that_is_not_finite_fails_and_the_others_do_not(path, dense, monkeypatch):
    if path == "warm":
        monkeypatch.setattr(trajectory, "PASS_SIZE", 0)
    run, exact = dense
    points = run.points

    def broken(indices, chunk):
        for some in points(indices, chunk):
            yield [
                replace(p, params=np.full_like(p.params, np.nan)) if p.step in (0, 10) else p
                for p in some
            ]

    monkeypatch.setattr(run, "points", broken)
    found = hessian_spectrum(run, config=SpectrumConfig(tol=1e-3))
    bad = np.isin(found.steps, [0, 10])
    assert np.all(np.isnan(found.iterate.eigenvalues[bad]))
    assert not np.any(found.iterate.converged[bad])
    assert np.all(found.iterate.converged[~bad])
    np.testing.assert_allclose(found.iterate.eigenvalues[~bad], exact[~bad, :3], rtol=1e-3)


@pytest.mark.parametrize("which", ["smallest", "both"])
def test_both_ends_of_the_spectrum(which, dense):
    run, exact = dense
    found = hessian_spectrum(run, config=SpectrumConfig(k=2, which=which, max_matvecs=160)).iterate
    ends = {"smallest": exact[:, -2:], "both": np.hstack([exact[:, :2], exact[:, -2:]])}
    assert found.converged.all()
    np.testing.assert_allclose(found.eigenvalues, ends[which], atol=1e-9)


@pytest.mark.parametrize("path", ["one pass", "warm"])
def test_k_grows_until_all_above_the_fraction_of_the_threshold_are_there(path, dense, monkeypatch):
    if path == "warm":
        monkeypatch.setattr(trajectory, "PASS_SIZE", 0)
    run, exact = dense
    threshold = float(np.max(exact[:, 1]) * 0.9)
    thresholds = np.full(len(exact), 2 * threshold)
    config = SpectrumConfig(k=1, above=0.5, tol=1e-5, max_matvecs=40)
    found = hessian_spectrum(run, config=config, thresholds=thresholds).iterate
    wanted = np.sum(exact > threshold, axis=1)
    assert wanted.max() >= 2
    for row, count in enumerate(wanted):
        values = found.eigenvalues[row]
        assert np.sum(values > threshold) == count
        np.testing.assert_allclose(values[:count], exact[row, :count], rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"operator": "ggn"},
        {"operator": "remainder", "which": "both"},
        {"class_label": 1},
        {"block": "0"},
        {"block": "1/0", "operator": "ggn", "static": True},
        {"batch_size": 7},
    ],
    ids=str,
)
def test_other_operators_have_the_eigenvalues_of_their_dense_matrices(changes, dense):
    run, _ = dense
    chosen = [0, 7]
    found = hessian_spectrum(run, chosen, config=SpectrumConfig(k=2, max_matvecs=160, **changes))
    problem = run.problem.static() if changes.get("static") else run.problem
    share = 1.0
    if "class_label" in changes:
        members = np.flatnonzero(np.asarray(problem.targets) == changes["class_label"])
        share = len(members) / len(problem.targets)
        problem = problem.take(jnp.asarray(members))
    sizes = [leaf.size for leaf in jax.tree.leaves(run.unravel(run.parameters([0])[0]))]
    spans = {"0": (0, sizes[0] + sizes[1]), "1/0": (sum(sizes[:2]), sum(sizes[:3]))}
    span = slice(*spans.get(changes.get("block", ""), (None, None)))
    for row, index in enumerate(chosen):
        params, step = run.parameters([index])[0], int(run.checkpoint_steps[index])
        whole, ggn = (np.asarray(matrix) for matrix in dense_matrices(problem, params, step))
        matrix = {"hessian": whole, "ggn": ggn, "remainder": whole - ggn}[
            changes.get("operator", "hessian")
        ]
        exact = np.linalg.eigvalsh(share * matrix[span, span])[::-1]
        ends = exact[[0, 1, -2, -1]] if changes.get("which") == "both" else exact[:2]
        assert found.iterate.converged[row].all()
        np.testing.assert_allclose(found.iterate.eigenvalues[row], ends, atol=1e-8)


def test_a_class_or_a_block_that_is_not_there_is_refused(small, trained):
    run = trained(small)
    with pytest.raises(ConfigError, match="class_label is 7; expected 0 to 2, or none"):
        hessian_spectrum(run, config=SpectrumConfig(class_label=7))
    with pytest.raises(ConfigError, match="no parameters at path '9'; expected one of"):
        hessian_spectrum(run, config=SpectrumConfig(block="9"))


def test_a_loss_that_is_not_deterministic_is_refused(small, trained, monkeypatch):
    run = trained(replace(small, model=ModelConfig(widths=(3,), activation="tanh")))
    noise = iter(np.linspace(1, 2, 1000))

    def product(operator, vector):
        return next(noise) * operator()(vector)

    monkeypatch.setattr(trajectory, "_product", product)
    with pytest.raises(ConfigError, match=r"Hessian .* cannot be .*products are not deterministic"):
        hessian_spectrum(run)


def test_products_that_are_not_symmetric_prove_nothing():
    pairs = RitzPairs(
        values=np.ones((1, 2, 1)),
        vectors=np.ones((1, 2, 1, 4)) / 2,
        residual_gram=np.zeros((1, 2, 1, 1)),
        guarded=np.ones((1, 2, 1), bool),
        orthogonality=np.zeros((1, 2)),
        asymmetry=np.array([[0.0, 1e-3]]),
        norm=np.ones((1, 2)),
        num_matvecs=np.ones((1, 2), int),
    )
    found = certify(pairs, Ends(1, 0), 1e-6)
    assert found.converged.tolist() == [[[True], [False]]]
    # Of a random unit vector in 4 dimensions, ‖A q‖ = 1 bounds |λ| by 20, but for bad luck.
    np.testing.assert_allclose(found.intervals[0], [[[1, 1]], [[-19, 21]]], rtol=1e-12)
