"""Eigenvalues along a run, by the way of small and of large networks, against dense matrices."""

import itertools
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import microbatches
from dlf_dynamics.analysis.linalg.certificate import TRACKED, UNRANKED, Evidence, certify
from dlf_dynamics.analysis.linalg.chain import Goal
from dlf_dynamics.analysis.linalg.ritz import Ends, RitzPairs
from dlf_dynamics.analysis.spectra import segments, solver
from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum
from dlf_dynamics.analysis.workers import beside
from dlf_dynamics.assembly import build
from dlf_dynamics.config import ModelConfig, ScheduleConfig, SpectrumConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts

NAMES = ("eigenvalues", "intervals", "status", "upper_bound", "rank_bounds", "num_matvecs", "modes")


@pytest.fixture
def large(monkeypatch):
    """No network is small."""
    monkeypatch.setattr(solver, "PASS_SIZE", 0)


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


@pytest.mark.parametrize("k", [1, 3])
def test_a_large_network_has_the_eigenvalues_of_the_dense_hessian(k, large, dense):
    run, exact = dense
    told = []
    spectrum = hessian_spectrum(run, config=SpectrumConfig(tol=1e-3, k=k), watch=told.append)
    found = spectrum.iterate
    assert found.converged.all()
    # Each solve begins anew, and tells of its products but for the fresh ones at the end.
    ends = [a for a, b in itertools.pairwise([*told, 0]) if b < a]
    assert len(ends) == np.sum(found.num_matvecs > 0) + np.sum(spectrum.centre.num_matvecs > 0)
    assert max(ends) <= max(found.num_matvecs.max(), spectrum.centre.num_matvecs.max())
    assert_within(found, exact, k)
    np.testing.assert_allclose(found.eigenvalues, exact[:, :k], rtol=1e-3)
    assert np.all(exact[:, 0] <= found.upper_bound + 1e-12)
    if k > 1:
        assert np.all(exact[:, k] <= found.rank_bounds[:, 0] + 1e-12)
        spread = exact[:, 0] - exact[:, -1]
        assert np.all(found.rank_bounds[:, 0] - found.eigenvalues[:, -1] <= 0.04 * spread)


@pytest.mark.parametrize(("dtype", "certificate"), [("float64", 1), ("float32", 2)])
def test_memory_chooses_the_batches_of_a_run(dtype, certificate, small, trained, monkeypatch):
    run = trained(replace(small, dtype=dtype))
    count, itemsize = run.problem.num_examples, np.dtype(dtype).itemsize
    monkeypatch.setattr(
        microbatches, "_bytes_of_products", lambda *given: 1000 * (given[-1] or count)
    )
    microbatches._chosen.cache_clear()
    vectors = microbatches.kept_vectors(1) * run.num_params * itemsize
    limit = vectors + certificate * 1000 * count // 3 + 10
    asked = SpectrumConfig(max_memory=f"{limit}B")
    batch_size = Curvature.from_config(run, asked).batch_size
    assert batch_size is not None
    assert count / 5 < batch_size <= count / 3
    assert Curvature.from_config(run, replace(asked, batch_size=7)).batch_size == 7
    assert Curvature.from_config(run, SpectrumConfig()).batch_size is None
    with pytest.raises(ConfigError, match=r"^max_memory is .*; expected at least .* one example"):
        Curvature.from_config(run, SpectrumConfig(max_memory=f"{vectors}B"))
    microbatches._chosen.cache_clear()


def test_a_tracked_value_takes_few_products_and_is_not_certified(large, dense):
    run, exact = dense
    config = SpectrumConfig(tol=1e-3, k=3)
    cold = hessian_spectrum(run, config=config).iterate
    found = hessian_spectrum(run, config=replace(config, tracked=True)).iterate
    np.testing.assert_allclose(found.eigenvalues, exact[:, :3], rtol=1e-3)
    assert np.mean(found.num_matvecs[1:]) < 0.6 * np.mean(cold.num_matvecs)
    # The first one starts at random, and bounds its largest value by itself.
    assert np.all(found.status[1:] == TRACKED)
    assert np.all(np.isinf(found.upper_bound[1:]))


def test_another_seed_or_step_compiles_nothing_anew(small, trained):
    run, config = trained(small), SpectrumConfig()
    first = hessian_spectrum(run, config=config).iterate
    solver.key_at(jax.random.key(0), 3, 1)
    compiled = segments._analyse._cache_size(), solver.key_at._cache_size()
    other = hessian_spectrum(run, config=replace(config, seed=5)).iterate
    solver.key_at(jax.random.key(7), 4, 0)
    assert (segments._analyse._cache_size(), solver.key_at._cache_size()) == compiled
    # The seed counts all the same.
    assert not np.array_equal(first.upper_bound, other.upper_bound)
    np.testing.assert_allclose(first.eigenvalues, other.eigenvalues, rtol=1e-5)


def test_unranked_values_are_told_apart(dense):
    run, exact = dense
    found = hessian_spectrum(run, config=SpectrumConfig(k=3, unranked=True)).iterate
    np.testing.assert_allclose(found.eigenvalues, exact[:, :3], rtol=1e-5)
    assert np.all(found.status[:, 1:] == UNRANKED)
    assert np.all(exact[:, 3] <= found.rank_bounds[:, 0])
    # By its own search the largest is certified all the same.
    assert np.all(found.converged[:, 0])
    assert np.all(exact[:, 0] <= found.upper_bound + 1e-12)


@pytest.mark.parametrize(
    ("path", "operator"),
    [
        *(("one pass", operator) for operator in ("hessian", "ggn", "remainder")),
        ("large", "hessian"),
        *(pytest.param("large", each, marks=pytest.mark.slow) for each in ("ggn", "remainder")),
    ],
)
def test_a_float32_run_has_the_eigenvalues_of_float64(path, operator, small, trained, monkeypatch):
    if path == "large":
        monkeypatch.setattr(solver, "PASS_SIZE", 0)
    config = replace(
        small,
        dtype="float32",
        steps=400,
        checkpoint_every=50,
        schedule=ScheduleConfig("static"),
        optimizer=replace(small.optimizer, learning_rate=3.0),
    )
    settings = SpectrumConfig(k=2, tol=1e-3, operator=operator, max_matvecs=300)
    with jax.enable_x64(False):
        run = trained(config)
        found = hessian_spectrum(run, config=settings).iterate
        vectors = run.parameters().astype(float)
    # It saturates: in float32, what is left of softmax - one-hot is rounding and little else.
    assert run.scalars["loss"][-1] < 1e-2
    dataset = replace(run.dataset, inputs=np.asarray(run.dataset.inputs, np.float32))
    problem = build(replace(config, dtype="float64"), dataset).problem
    for row, (step, vector) in enumerate(zip(run.checkpoint_steps, vectors, strict=True)):
        whole, ggn = dense_matrices(problem, vector, int(step))
        matrix = {"hessian": whole, "ggn": ggn, "remainder": whole - ggn}[operator]
        exact = np.linalg.eigvalsh(matrix)[::-1][:2]
        slack = 1e-13 * np.max(np.abs(np.linalg.eigvalsh(whole)))
        inside = found.intervals[row, :, 0] - slack <= exact
        inside &= exact <= found.intervals[row, :, 1] + slack
        assert np.all(inside[found.converged[row]])
        assert exact[0] <= found.upper_bound[row] + slack
    assert np.mean(found.converged) > 0.9


@pytest.mark.parametrize("path", ["one pass", "large"])
def test_interrupted_and_resumed_it_has_the_same_content(path, dense, tmp_path, monkeypatch):
    if path == "large":
        monkeypatch.setattr(solver, "PASS_SIZE", 0)
    run, _ = dense
    config = SpectrumConfig(tol=1e-3, k=2)
    monkeypatch.setattr(solver, "_SEGMENTS", (4, 4))
    whole = hessian_spectrum(run, config=config)

    def stop_at(done):
        if done >= 12:
            raise KeyboardInterrupt

    make = partial(Parts, tmp_path / "parts", "spectrum", run, {"k": 2})
    with pytest.raises(KeyboardInterrupt):
        hessian_spectrum(run, config=config, parts=make(), progress=stop_at)
    finished = sorted(file.name for file in (tmp_path / "parts").iterdir())
    assert 2 <= len(finished) < 8
    again = hessian_spectrum(run, config=config, parts=make())
    for at in ("iterate", "centre"):
        for name in NAMES:
            one, other = (getattr(getattr(found, at), name) for found in (whole, again))
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("path", ["one pass", "large"])
def test_the_order_of_the_checkpoints_does_not_matter(path, dense, monkeypatch):
    if path == "large":
        monkeypatch.setattr(solver, "PASS_SIZE", 0)
    run, exact = dense
    config = SpectrumConfig(tol=1e-3, k=3)
    chosen = np.array([9, 2, 20, 2, 5])
    found = hessian_spectrum(run, chosen, config=config)
    ordered = hessian_spectrum(run, [2, 5, 9, 20], config=config)
    place = [2, 0, 3, 0, 1]
    for name in ("eigenvalues", "intervals", "status"):
        expected = getattr(ordered.iterate, name)[place]
        np.testing.assert_array_equal(getattr(found.iterate, name), expected)
    assert_within(found.iterate, exact[chosen], 3)


@pytest.mark.parametrize("path", ["one pass", "large"])
def test_a_checkpoint_that_is_not_finite_fails_and_the_others_do_not(path, dense, monkeypatch):
    if path == "large":
        monkeypatch.setattr(solver, "PASS_SIZE", 0)
    run, exact = dense
    points = run.points

    def broken(indices, chunk):
        for some in points(indices, chunk):
            yield [
                replace(p, params=np.full_like(p.params, np.nan)) if p.step in (0, 10) else p
                for p in some
            ]

    monkeypatch.setattr(run, "points", broken)
    found = hessian_spectrum(run, config=SpectrumConfig(tol=1e-3, k=3))
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


@pytest.mark.parametrize("path", ["one pass", "large"])
def test_k_grows_until_all_above_the_fraction_of_the_threshold_are_there(path, dense, monkeypatch):
    if path == "large":
        monkeypatch.setattr(solver, "PASS_SIZE", 0)
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

    monkeypatch.setattr(segments, "_product", product)
    with pytest.raises(ConfigError, match=r"Hessian .* cannot be .*products are not deterministic"):
        hessian_spectrum(run)


@pytest.mark.parametrize(("dtype", "products"), [("float64", 13), ("float32", 14)])
def test_the_pass_is_compiled_once_beside_other_work(
    dtype, products, small, trained, caplog, monkeypatch
):
    run = trained(replace(small, dtype=dtype))
    config = SpectrumConfig(max_matvecs=products)  # of no other test
    monkeypatch.setattr(segments, "beside", caught := _Beside())
    caplog.set_level("DEBUG", "jax._src.dispatch")
    hessian_spectrum(run, config=config, meanwhile=caught.meanwhile)
    compiled = "Finished XLA compilation of jit(_analyse)"
    assert caught.told == ["begun", "meanwhile", "ended"]
    assert sum(record.getMessage().startswith(compiled) for record in caplog.records) == 1


class _Beside:
    """As `workers.beside`, and tells when."""

    def __init__(self):
        self.told = []

    def meanwhile(self):
        self.told.append("meanwhile")

    @contextmanager
    def __call__(self, work):
        self.told.append("begun")
        with beside(work):
            yield
        self.told.append("ended")


def test_where_all_is_kept_nothing_is_compiled(dense, tmp_path, monkeypatch):
    run, _ = dense
    config = SpectrumConfig(tol=1e-3, k=2)
    parts = Parts(tmp_path / "parts", "spectrum", run, {})
    monkeypatch.setattr(solver, "_SEGMENTS", (4, 4))
    first = hessian_spectrum(run, config=config, parts=parts)
    monkeypatch.setattr(segments, "_given", pytest.fail)
    again = hessian_spectrum(run, config=config, parts=parts)
    np.testing.assert_array_equal(again.iterate.eigenvalues, first.iterate.eigenvalues)


def test_what_goes_wrong_beside_is_raised_at_the_end_of_the_block():
    def fails():
        raise ConfigError("beside")

    with pytest.raises(ConfigError, match="beside"), beside(fails):
        pass


def test_a_block_that_is_interrupted_does_not_wait_for_what_goes_on_beside():
    end, ended = Event(), []

    def work():
        end.wait(60)
        ended.append(True)

    with pytest.raises(KeyboardInterrupt), beside(work):
        raise KeyboardInterrupt
    assert not ended
    end.set()


def test_products_that_are_not_symmetric_prove_nothing():
    pairs = RitzPairs(
        values=np.ones((1, 2, 1)),
        vectors=np.ones((1, 2, 1, 4)) / 2,
        residual_gram=np.zeros((1, 2, 1, 1)),
        orthogonality=np.zeros((1, 2)),
        asymmetry=np.array([[0.0, 1e-3]]),
        norm=np.ones((1, 2)),
    )
    blank = np.zeros((1, 2))
    extent = np.ones((1, 2, 2))
    one, made = np.ones((1, 2)), np.ones((1, 2), int)
    dtype, whole = np.dtype(float), np.ones((1, 2), bool)
    evidence = Evidence(pairs, 4, None, None, extent, one, blank, whole, made, None, dtype, dtype)
    found = certify(evidence, Goal(Ends(1, 0), 1e-6))
    assert found.converged.tolist() == [[[True], [False]]]
    # Of a random unit vector in 4 dimensions, ‖A q‖ = 1 bounds |λ| by 20, but for bad luck.
    np.testing.assert_allclose(found.intervals[0], [[[1, 1]], [[-19, 21]]], rtol=1e-12)
