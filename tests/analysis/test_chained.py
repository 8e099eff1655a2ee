"""Families of matrices and saturated networks on which warm starts and float32 went wrong once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.analysis.spectra import solver
from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum
from dlf_dynamics.analysis.spectra.summary import saturation_lines
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.opening import open_run
from dlf_dynamics.problem import Problem
from dlf_dynamics.recorder import Recorder

SIZE, POINTS = 200, 21


def crossing(t, seed, coupling):
    """Eigenvalues near 1 and 0.5 + t, uncoupled from each other or nearly so."""
    rest = np.random.default_rng(seed).uniform(0, 0.3, SIZE - 2)
    return np.concatenate([[1, 0.5 + t], rest]), coupling


def rising(t, seed, coupling):
    """A mode that rises out of the bulk, to above the largest eigenvalue, and sinks again."""
    rest = np.random.default_rng(seed).uniform(0, 0.3, SIZE - 2)
    return np.concatenate([[1, 0.2 + 1.2 * np.sin(np.pi * t)], rest]), coupling


def matrix_of(family, t, seed, coupling):
    values, coupling = family(t, seed, coupling)
    matrix = np.diag(values)
    matrix[0, 1] = matrix[1, 0] = coupling
    turn, _ = np.linalg.qr(np.random.default_rng(seed + 1000).standard_normal((SIZE, SIZE)))
    turned = turn @ matrix @ turn.T
    return (turned + turned.T) / 2


def product(matrix, vector):
    return matrix @ vector


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", [crossing, rising])
def test_chained_over_a_family_nothing_marked_converged_is_wrong(family, k):
    wrong = converged = 0
    for seed in range(20):
        coupling = (0, 1e-6, 1e-3)[seed % 3]
        start = None
        for t in np.linspace(0, 1, POINTS):
            matrix = matrix_of(family, t, seed, coupling)
            exact = np.linalg.eigvalsh(matrix)[::-1][:k]
            settings = {"tol": 1e-4, "max_matvecs": 90, "initial_vectors": start}
            operator, key = Partial(product, jnp.asarray(matrix)), jax.random.key(seed)
            found = top_eigenpairs(operator, SIZE, k, key=key, **settings)
            low, high = found.intervals.T
            outside = (exact < low - 1e-13) | (exact > high + 1e-13)
            wrong += np.sum(found.converged & outside)
            converged += np.sum(found.converged)
            followed = top_eigenpairs(operator, SIZE, k, key=key, tracked=True, **settings)
            assert start is None or not np.any(followed.converged)
            start = followed.eigenvectors
    assert wrong == 0
    assert converged >= 0.99 * 20 * POINTS * k


def saturated_run(folder):
    """A network recorded with ever larger outputs, so that its loss falls from 1e-2 to 1e-9."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((12, 3)).astype(np.float32)
    first = rng.standard_normal((3, 6)).astype(np.float32)
    hidden = np.tanh(inputs.astype(float) @ first)
    labels = rng.integers(0, 3, 12)
    # Outputs that fit the labels, from twelve examples by least squares on more features.
    last = np.linalg.lstsq(hidden, 4 * np.eye(3)[labels], rcond=None)[0].astype(np.float32)
    labels = np.argmax(hidden @ last, axis=1)
    problem = Problem(
        lambda p, x: jnp.tanh(x @ p[0]) @ p[1],
        optax.softmax_cross_entropy_with_integer_labels,
        jnp.asarray(inputs),
        jnp.asarray(labels),
    )

    def loss(scale):
        logits = scale * hidden @ last.astype(float)
        shifted = logits - logits[np.arange(12), labels][:, None]
        return np.mean(np.log1p(np.sum(np.exp(shifted), axis=1) - 1))

    setup = (problem, optax.sgd(0.1), [jnp.asarray(first), jnp.asarray(last)])
    losses = []
    with Recorder(folder / "run.h5", problem, optimizer=setup[1], full_batch=False) as run:
        for step, target in enumerate(10.0 ** -np.arange(2, 10)):
            low, high = 0.0, 1e6
            for _ in range(100):
                middle = (low + high) / 2
                low, high = (middle, high) if loss(middle) > target else (low, middle)
            losses.append(loss(high))
            larger = [jnp.asarray(first), jnp.asarray(high * last, jnp.float32)]
            run.record(step, larger, setup[1].init(larger), loss=losses[-1])
    return open_run(folder / "run.h5", setup), np.array(losses)


def dense(problem, params, operator):
    """A matrix from Jacobians and second derivatives of the outputs, nothing cancelling in it."""
    outputs = np.asarray(problem.outputs(params))
    odds = np.exp(outputs - outputs[np.arange(12), problem.targets][:, None])
    odds[np.arange(12), problem.targets] = 0
    rest = np.sum(odds, axis=1)
    slopes = odds / (1 + rest)[:, None]
    slopes[np.arange(12), problem.targets] = -rest / (1 + rest)
    jac = np.asarray(jax.jacfwd(problem.outputs)(params))
    # Σ_i<j p_i p_j (J_i - J_j)ᵀ(J_i - J_j) is Jᵀ (diag p - p pᵀ) J.
    shares = np.exp(outputs - np.max(outputs, axis=1, keepdims=True))
    shares /= np.sum(shares, axis=1, keepdims=True)
    apart = jac[:, :, None] - jac[:, None]
    weights = shares[:, :, None] * shares[:, None] / 2
    ggn = np.einsum("nij,nijp,nijq->pq", weights, apart, apart) / 12
    curved = np.asarray(jax.jacfwd(jax.jacrev(problem.outputs))(params))
    remainder = np.einsum("ni,nipq->pq", slopes, curved) / 12
    return {"hessian": ggn + remainder, "ggn": ggn, "remainder": remainder}[operator]


@pytest.fixture(scope="module")
def saturated(tmp_path_factory):
    return saturated_run(tmp_path_factory.mktemp("saturated"))


@pytest.mark.parametrize("operator", ["hessian", "ggn", "remainder"])
@pytest.mark.parametrize("path", ["pass", pytest.param("restarts", marks=pytest.mark.slow)])
def test_a_saturated_float32_run_has_the_eigenvalues_of_float64(
    path, operator, saturated, monkeypatch
):
    run, losses = saturated
    np.testing.assert_allclose(losses, 10.0 ** -np.arange(2, 10), rtol=1e-6)
    if path == "restarts":
        monkeypatch.setattr(solver, "PASS_SIZE", 0)
    settings = SpectrumConfig(k=2, operator=operator, max_matvecs=120)
    (line,) = saturation_lines(run, run.checkpoint_steps)
    assert line.startswith("saturated: the loss is below 1e-06 at 3 checkpoints")
    assert not saturation_lines(run, run.checkpoint_steps[:3])
    found = hessian_spectrum(run, config=settings).iterate
    problem = run.precise.problem
    for row, params in enumerate(run.parameters()):
        wide = jnp.asarray(params, float)
        values = np.linalg.eigvalsh(dense(problem, wide, operator))
        exact, slack = values[::-1][:2], 1e-12 * np.max(np.abs(values))
        low, high = found.intervals[row].T
        fine = found.converged[row]
        assert np.all((low[fine] - slack <= exact[fine]) & (exact[fine] <= high[fine] + slack))
        assert np.all(fine) or path == "restarts"
