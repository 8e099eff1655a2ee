"""Spectral densities against chosen spectra, dense matrices and the statistics of the probes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.analysis.spectra.density import (
    _analyse,
    _Settings,
    _summarise,
    default_grid,
    density,
    evaluate,
    slq,
)
from dlf_dynamics.errors import ConfigError


@partial(jax.jit, static_argnames=("num_steps", "num_probes"))
def solve(matrix, seed, *, num_steps, num_probes=4):
    return slq(
        lambda vector: matrix @ vector,
        len(matrix),
        num_steps=num_steps,
        num_probes=num_probes,
        key=jax.random.key(seed),
        dtype=matrix.dtype,
    )


def make_matrix(eigenvalues, seed=0, dtype=np.float64):
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    normal = np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2)
    vectors, _ = np.linalg.qr(normal)
    matrix = (vectors * eigenvalues @ vectors.T).astype(dtype)
    return (matrix + matrix.T) / 2


def bulk_and_outliers(n):
    """Most eigenvalues near 0, a few far out on either side."""
    bulk = np.random.default_rng(1).normal(0, 0.02, n - 4)
    return np.concatenate([bulk, [-0.4, 0.6, 0.9, 1]])


def check_rule(found, eigenvalues, num_nodes, dtype=np.float64):
    """All that holds for every operator; `num_nodes` is the least of rank and steps."""
    eps = np.finfo(dtype).eps
    nodes, weights = np.asarray(found.nodes), np.asarray(found.weights)
    assert nodes.dtype == weights.dtype == np.float64
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-13)
    assert np.all(np.diff(nodes, axis=1) >= 0)
    assert np.all(weights >= 0)
    assert np.all(weights[:, num_nodes:] == 0)
    assert np.all(nodes[:, num_nodes:] == nodes[:, num_nodes - 1 : num_nodes])
    slack = 100 * eps * np.max(np.abs(eigenvalues))
    assert np.min(eigenvalues) - slack <= np.min(nodes)
    assert np.max(nodes) <= np.max(eigenvalues) + slack


@pytest.mark.parametrize(("num_steps", "scale"), [(1, 1), (2, 1e8), (7, 1), (7, 1e-8)])
def test_moments_below_twice_the_steps_are_the_quadratic_forms_of_the_probes(num_steps, scale):
    n, num_probes, made = 40, 3, []
    matrix = make_matrix(np.linspace(-1, 0.7, n) ** 3)

    def product(vector):
        made.append(np.array(vector))
        return scale * matrix @ vector

    def matvec(vector):
        return jax.pure_callback(product, jax.ShapeDtypeStruct((n,), np.float64), vector)

    key = jax.random.key(3)
    found = slq(matvec, n, num_steps=num_steps, num_probes=num_probes, key=key)
    check_rule(found, [-scale, 0.343 * scale], num_steps)
    # One product of each probe outside of the first one's basis; there the first has nothing.
    assert len(made) == num_probes * (num_steps + 1)
    probes = np.array(made[:: num_steps + 1])
    np.testing.assert_allclose(np.linalg.norm(probes, axis=1), 1, rtol=1e-14)
    nodes, weights = np.asarray(found.nodes) / scale, np.asarray(found.weights)
    power = probes.T
    for degree in range(2 * num_steps):
        exact = np.sum(probes.T * power, axis=0)
        np.testing.assert_allclose(np.sum(weights * nodes**degree, axis=1), exact, atol=1e-14)
        power = matrix @ power
    outside = np.array(made[num_steps :: num_steps + 1])
    assert np.all(outside[0] == 0)
    basis = np.array(made[:num_steps])
    np.testing.assert_allclose(outside @ basis.T, 0, atol=1e-13)
    form = np.sum(outside * (outside @ matrix), axis=1)[1:]
    square = np.sum((outside @ matrix) ** 2, axis=1)[1:]
    left = n - num_steps
    expected = left * np.stack([scale * form, scale**2 * square], axis=1)
    np.testing.assert_allclose(found.outside, expected, rtol=1e-10)
    known = [scale * np.sum(basis * (basis @ matrix)), scale**2 * np.sum((basis @ matrix) ** 2)]
    np.testing.assert_allclose(found.inside, known, rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [1e-8, 1, 1e8])
@pytest.mark.parametrize("n", [8, 80])
def test_a_few_distinct_eigenvalues_are_the_nodes_and_no_other_node_has_weight(n, scale, dtype):
    for distinct in ([0.0, 3.0], [-2.0, 0.0, 1.0], [1.0]):
        eigenvalues = scale * np.resize(distinct, n)
        matrix = make_matrix(eigenvalues, n, dtype)
        for seed in range(2):
            found = solve(matrix, seed, num_steps=12)
            check_rule(found, eigenvalues, len(distinct), dtype)
            nodes = np.asarray(found.nodes)[:, : len(distinct)]
            np.testing.assert_allclose(
                nodes, scale * np.tile(distinct, (4, 1)), atol=200 * np.finfo(dtype).eps * scale
            )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n", [1, 5])
def test_more_steps_than_the_order_find_every_eigenvalue_once(n, dtype):
    eigenvalues = np.linspace(-1, 2, n)
    for seed in range(5):
        found = solve(make_matrix(eigenvalues, seed, dtype), seed, num_steps=9)
        check_rule(found, eigenvalues, n, dtype)
        np.testing.assert_allclose(found.nodes[:, :n], np.tile(eigenvalues, (4, 1)), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("value", [0.0, 5.0])
def test_of_zero_and_of_a_multiple_of_the_identity_all_is_exact(value, dtype):
    found = solve(value * np.eye(20, dtype=dtype), 0, num_steps=6)
    check_rule(found, [value], 1, dtype)
    close = partial(np.testing.assert_allclose, rtol=20 * np.finfo(dtype).eps)
    close(found.nodes, np.full((4, 6), value))
    close(found.inside + found.outside, np.tile([20 * value, 20 * value**2], (3, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_operator_that_is_not_finite_gives_nan(bad):
    matrix = np.eye(20)
    matrix[3, 4] = matrix[4, 3] = bad
    found = solve(matrix, 0, num_steps=6)
    for part in found[:2]:
        assert np.all(np.isnan(part))
    for part in found[2:]:
        assert not np.any(np.isfinite(part))


def test_what_lies_outside_the_first_basis_has_the_spread_that_theory_gives_it():
    """Var(m qᵀBq) = 2m/(m+2) Σ (μ - mean μ)² for q uniform on the sphere of m dimensions."""
    n, num_probes = 50, 2000
    eigenvalues = bulk_and_outliers(n) + 0.3
    matrix = make_matrix(eigenvalues)
    found = solve(matrix, 0, num_steps=2, num_probes=num_probes)
    normal = np.asarray(jax.random.normal(jax.random.split(jax.random.key(0), num_probes)[0], (n,)))
    basis, _ = np.linalg.qr(np.stack([normal, matrix @ normal], axis=1))
    outside = np.linalg.svd(basis, full_matrices=True)[0][:, 2:]
    for power, known, samples in zip((1, 2), found.inside, found.outside.T, strict=True):
        exact = np.linalg.matrix_power(matrix, power)
        np.testing.assert_allclose(known, np.trace(basis.T @ exact @ basis), rtol=1e-10)
        rest = np.linalg.eigvalsh(outside.T @ exact @ outside)
        size = np.sqrt(2 * (n - 2) / n * np.sum((rest - np.mean(rest)) ** 2))
        assert np.std(samples, ddof=1) == pytest.approx(size, rel=0.05)
        assert abs(np.mean(samples) - np.sum(rest)) < 3 * size / np.sqrt(num_probes)


OUTLIERS = {
    "one": [1.0],
    "three apart": [100.0, 60.0, 20.0],
    "both signs": [10.0, -10.0],
    "three equal": [1.0, 1.0, 1.0],
    "two pairs": [1.0, 1.0, -1.0, -1.0],
    "many": 10 * 0.8 ** np.arange(20),
    "none": [],
}


@pytest.mark.parametrize("bulk", [0.0, 0.3])
@pytest.mark.parametrize("outliers", OUTLIERS.values(), ids=OUTLIERS)
def test_intervals_hold_the_exact_values_as_often_as_they_say(outliers, bulk):
    """Two standard errors held 82 to 88 % where outliers dominate."""
    n = 60
    rest = bulk * np.linspace(-0.2, 1, n - len(outliers)) ** 3
    eigenvalues = np.concatenate([outliers, rest])
    rules = _many(jnp.asarray(eigenvalues), jnp.arange(300))
    settings = _Settings("hessian", n, 6, 10, "float64")
    found = _summarise(rules, np.arange(300), settings, static=False)
    for name, exact in (("trace", np.sum(eigenvalues)), ("frobenius", np.linalg.norm(eigenvalues))):
        distance = np.abs(getattr(found, name) - exact)
        assert np.mean(distance <= getattr(found, f"{name}_radius")) >= 0.92


@jax.jit
def _many(eigenvalues, seeds):
    """Rules of a diagonal matrix: their law knows no basis."""

    def one(seed):
        key = jax.random.key(seed)
        settings = {"num_steps": 6, "num_probes": 10, "key": key}
        return slq(lambda vector: eigenvalues * vector, len(eigenvalues), **settings)

    return jax.lax.map(one, seeds)


def test_it_maps_over_matrices_under_jit():
    matrices = jnp.stack([make_matrix(np.linspace(0, 1, 20), seed) for seed in range(3)])
    mapped = jax.lax.map(lambda matrix: solve(matrix, 7, num_steps=6), matrices)
    for row, matrix in enumerate(matrices):
        alone = solve(matrix, 7, num_steps=6)
        np.testing.assert_allclose(mapped.nodes[row], alone.nodes, atol=1e-12)


def test_too_few_steps_and_probes_are_refused():
    with pytest.raises(ValueError, match="num_steps is 0; expected at least 1"):
        solve(np.eye(5), 0, num_steps=0)
    with pytest.raises(ValueError, match="num_probes is 2; expected at least 3, for the error"):
        solve(np.eye(5), 0, num_steps=3, num_probes=2)


def weights_of(run, step, *, static):
    """Γ of each example."""
    labels = run.dataset.labels
    return np.ones(len(labels)) if static else run.scalars["class_weights"][step][labels]


def dense_hessian(run, params, weights):
    def loss(params):
        logs = jax.nn.log_softmax(run.problem.outputs(params))
        return -jnp.mean(weights * logs[np.arange(len(weights)), run.dataset.labels])

    return jax.jit(jax.hessian(loss))(params)


def dense_jacobian(run, params):
    return np.asarray(jax.jit(jax.jacfwd(run.problem.outputs))(params))


def dense_ggn(run, params, weights):
    """(1/N) Σ_n Γ_n J_nᵀ (diag p_n - p_n p_nᵀ) J_n."""
    jac = dense_jacobian(run, params)
    probabilities = np.asarray(jax.nn.softmax(run.problem.outputs(params)))
    terms = [
        weight * j.T @ (np.diag(p) - np.outer(p, p)) @ j
        for weight, p, j in zip(weights, probabilities, jac, strict=True)
    ]
    return np.mean(terms, axis=0)


def dense_ntk(run, params, num_examples):
    jac = dense_jacobian(run, params)[:num_examples]
    flat = jac.reshape(-1, jac.shape[2])
    return flat @ flat.T


def dense_eigenvalues(run, checkpoint, operator, *, static=False, num_examples=None):
    params, step = run.parameters([checkpoint])[0], run.checkpoint_steps[checkpoint]
    weights = weights_of(run, step, static=static)
    matrix = {
        "hessian": lambda: dense_hessian(run, params, weights),
        "ggn": lambda: dense_ggn(run, params, weights),
        "ntk": lambda: dense_ntk(run, params, num_examples),
    }[operator]()
    return np.linalg.eigvalsh(matrix)


@pytest.mark.parametrize(
    ("operator", "static", "num_examples", "size"),
    [
        ("hessian", False, None, 15),
        ("hessian", True, None, 15),
        ("ggn", False, None, 15),
        ("ntk", False, None, 72),
        ("ntk", False, 5, 15),
    ],
)
def test_curve_trace_and_norm_are_those_of_the_dense_matrix_within_their_errors(
    operator, static, num_examples, size, small, trained
):
    run, chosen = trained(small), [0, 4]
    settings = {"operator": operator, "static": static, "num_examples": num_examples}
    found = density(run, chosen, num_probes=100, **settings)
    assert (found.operator, found.static, found.size) == (operator, static, size)
    assert (found.num_probes, found.num_steps) == (100, min(size, 40))
    np.testing.assert_array_equal(found.steps, [0, 28])
    grid, width = default_grid(found)
    mean, error = evaluate(found.nodes, found.weights, grid, width)
    for row, checkpoint in enumerate(chosen):
        values = dense_eigenvalues(run, checkpoint, **settings)
        assert len(values) == size
        curves = np.exp(-(((grid[:, None] - values) / width) ** 2) / 2)
        exact = np.mean(curves, axis=1) / (np.sqrt(2 * np.pi) * width)
        distance, high = np.abs(mean[row] - exact), exact > 1e-3 * np.max(exact)
        # The share of one eigenvalue is skewed: from below, the error comes out too small.
        assert np.all(distance[high] <= 5 * error[row][high])
        assert np.trapezoid(distance, grid) <= 1.5 * np.trapezoid(error[row], grid) < 0.35
        assert abs(found.trace[row] - np.sum(values)) <= 2 * found.trace_radius[row]
        norm = np.linalg.norm(values)
        assert abs(found.frobenius[row] - norm) <= 2 * found.frobenius_radius[row]


def test_estimates_scatter_about_the_exact_values_as_their_intervals_say(small, trained):
    run = trained(small)
    found = [density(run, [4], seed=seed, num_steps=2, num_probes=30) for seed in range(150)]
    values = dense_eigenvalues(run, 4, "hessian")
    for name, exact in (("trace", np.sum(values)), ("frobenius", np.linalg.norm(values))):
        estimates = np.array([getattr(one, name)[0] for one in found])
        radii = np.array([getattr(one, f"{name}_radius")[0] for one in found])
        assert 0.9 <= np.mean(np.abs(estimates - exact) <= radii) <= 0.995


def test_all_checkpoints_go_through_one_compilation_and_any_choice_gives_the_same(small, trained):
    run, settings = trained(small), {"num_steps": 2, "num_probes": 30}
    before, told = _analyse._cache_size(), []
    whole = density(run, progress=told.append, **settings)
    assert told == list(range(1, 11))
    assert whole.nodes.shape == whole.weights.shape == (10, 30, 2)
    chosen = [9, 3, 6, 7]
    part = density(run, chosen, **settings)
    assert _analyse._cache_size() <= before + 1
    for name in ("steps", "nodes", "weights", "trace", "trace_radius", "frobenius"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[chosen])
    other = density(run, chosen, seed=1, **settings)
    assert _analyse._cache_size() <= before + 1
    assert np.all(other.trace != part.trace)


def test_batches_change_nothing_but_rounding(small, trained):
    run, settings = trained(small), {"num_steps": 4, "num_probes": 3}
    whole = density(run, [4], **settings)
    batches = density(run, [4], batch_size=7, **settings)
    np.testing.assert_allclose(batches.nodes, whole.nodes, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(batches.trace, whole.trace, rtol=1e-9)
    with pytest.raises(ConfigError, match=r"^max_memory is 1e-06 GB; expected at least"):
        density(run, [4], max_memory="1kB", **settings)


@pytest.mark.parametrize("operator", ["hessian", "ggn", "ntk"])
def test_parameters_that_are_not_finite_give_nan_and_spare_the_other_checkpoints(
    operator, small, trained, monkeypatch
):
    run, settings = trained(small), {"operator": operator, "num_probes": 100}
    expected = density(run, [1, 2], **settings)
    points = run.points

    def spoilt(checkpoints, chunk):
        for part in points(checkpoints, chunk):
            bad = [replace(p, params=np.full_like(p.params, np.nan)) for p in part]
            yield [b if p.step == 7 else p for p, b in zip(part, bad, strict=True)]

    monkeypatch.setattr(run, "points", spoilt)
    found = density(run, [1, 2], **settings)
    for name in ("nodes", "weights", "trace", "trace_radius", "frobenius", "frobenius_radius"):
        assert np.all(np.isnan(getattr(found, name)[0]))
        np.testing.assert_array_equal(getattr(found, name)[1], getattr(expected, name)[1])
    grid, width = default_grid(found)
    mean, error = evaluate(found.nodes, found.weights, grid, width)
    assert np.all(np.isnan(mean[0]) & np.isnan(error[0]))
    assert np.all(np.isfinite(mean[1]) & np.isfinite(error[1]))
    with pytest.raises(ValueError, match="no checkpoint has a finite spectrum"):
        default_grid(density(run, [1], **settings))


def test_a_float32_run_has_the_density_of_its_float64_parameters(small, trained):
    run = trained(replace(small, dtype="float32"))
    found = density(run, [4], num_probes=100)
    exact = dense_eigenvalues(run, 4, "hessian")
    assert abs(found.trace[0] - np.sum(exact)) <= 2 * found.trace_radius[0]
    assert np.max(found.nodes) == pytest.approx(exact[-1], rel=1e-5)
    np.testing.assert_allclose(np.sum(found.weights, axis=-1), 1, rtol=1e-13)


def test_what_is_not_there_is_refused(small, trained):
    with pytest.raises(ValueError, match="num_examples is 5; expected none, as ggn takes all"):
        density(trained(small), operator="ggn", num_examples=5)
    with pytest.raises(ValueError, match="operator is 'fisher'; expected one of"):
        density(trained(small), operator="fisher")


class Rules:
    """What `default_grid` and `evaluate` look at, of several rules of chosen spectra."""

    def __init__(self, *spectra, seed=0):
        self.nodes = np.array(spectra, float)[:, None].repeat(3, axis=1)
        weights = np.random.default_rng(seed).uniform(0, 1, self.nodes.shape)
        self.weights = weights / np.sum(weights, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(bulk_and_outliers(30), 2 * bulk_and_outliers(30)),
        Rules(np.linspace(2, 50, 10)),
        Rules(-np.geomspace(1e-6, 1, 10)),
        Rules(1e8 * np.geomspace(1e-6, 1, 10)),
        Rules(np.zeros(5)),
        Rules(np.full(5, -3.0)),
    ],
)
@pytest.mark.parametrize("linear", [np.inf, 0.1, 1e-3])
def test_every_density_integrates_to_1_over_the_default_grid(rules, linear):
    linear = linear * max(np.max(np.abs(rules.nodes)), 1e-3)
    grid, width = default_grid(rules, linear)
    assert np.all(np.diff(grid) > 0)
    assert len(grid) < 500
    mean, error = evaluate(rules.nodes, rules.weights, grid, width, linear)
    assert mean.shape == error.shape == (len(rules.nodes), len(grid))
    integrals = np.trapezoid(mean, grid, axis=-1)
    np.testing.assert_allclose(integrals, 1, atol=1e-6 if np.isinf(linear) else 1e-3)
    first = np.trapezoid(mean * grid, grid, axis=-1)
    exact = np.mean(np.sum(rules.nodes * rules.weights, axis=-1), axis=-1)
    np.testing.assert_allclose(first, exact, atol=2e-3 * max(np.max(np.abs(rules.nodes)), 1e-3))


def test_the_curve_is_a_sum_of_normal_densities_with_their_scatter():
    nodes = np.array([[0.0, 2.0], [1.0, 2.0]])
    weights = np.array([[0.25, 0.75], [0.5, 0.5]])
    mean, error = evaluate(nodes, weights, np.array([0.0, 2.0]), 1e-2)
    peak = 1e2 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(mean, [0.125 * peak, 0.625 * peak])
    np.testing.assert_allclose(error, [0.125 * peak, 0.125 * peak])
    mean, _ = evaluate(nodes, weights, np.array([0.0, 2.0]), 1e-2, linear=0.1)
    np.testing.assert_allclose(mean, [0.125 * peak, 0.625 * peak / np.hypot(1, 20)])
