"""Kernels at infinite width, against closed forms and against many wide networks of our own."""

import importlib.util
from dataclasses import fields, replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import quad
from scipy.special import expit

from dlf_dynamics import DataConfig, ModelConfig, tangents
from dlf_dynamics.analysis import ntk_spectrum
from dlf_dynamics.analysis.spectra.gram import gram_matrix
from dlf_dynamics.analysis.spectra.infinite_width import (
    BIAS_STD,
    WEIGHT_VARIANCES,
    InfiniteWidth,
    infinite_width,
    limit_kernels,
)
from dlf_dynamics.analysis.spectra.spectrum import compute_spectrum, load_spectrum, save_spectrum
from dlf_dynamics.analysis.spectra.summary import as_dict, closing_lines
from dlf_dynamics.config import InitName, SpectrumConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.models import ACTIVATIONS, FullyConnected
from dlf_dynamics.problem import Problem
from dlf_dynamics.recorded import RecordedRun

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed"
)

MODULE = "dlf_dynamics.analysis.spectra.infinite_width"
KEY = jax.random.key(1)
INPUTS = np.random.default_rng(0).normal(size=(5, 3))


def arc_cosine(inputs, width):
    """Θ and the NNGP kernel of one hidden layer of ReLUs, weights N(0, 1/fan_in), biases 0.

    Cho and Saul (2009), Eq. 6 and 7 with n = 1 and 0, halved, as E φφ and E φ'φ'.
    """
    norms = np.linalg.norm(inputs, axis=1)
    products = np.outer(norms, norms)
    angles = np.arccos(np.clip(inputs @ inputs.T / products, -1, 1))
    active = products * (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / (2 * np.pi)
    nngp = active / inputs.shape[1]
    slopes = (np.pi - angles) / (2 * np.pi)
    return width * nngp + 1 + slopes * (inputs @ inputs.T + 1), nngp


def networks(model, seeds, inputs=INPUTS, num_outputs=3):
    """Our own networks with random parameters: the problem in flat parameters, and these."""
    sizes = inputs.shape[1:], num_outputs
    blank = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(lambda: model.init(KEY, *sizes))
    )
    targets = jnp.zeros(len(inputs), int)
    problem = Problem(model.apply, jnp.subtract, jnp.asarray(inputs), targets).ravel(blank)[0]

    @jax.jit
    def drawn(keys):
        return jax.lax.map(lambda key: ravel_pytree(model.init(key, *sizes))[0], keys)

    return problem, drawn(jax.random.split(KEY, seeds))


def ntks(model, seeds, inputs=INPUTS):
    """Their empirical kernels."""
    problem, params = networks(model, seeds, inputs)
    return jax.jit(lambda params: jax.lax.map(partial(gram_matrix, problem), params))(params)


def relative(kernel, exact):
    return np.linalg.norm(kernel - exact) / np.linalg.norm(exact)


def spread(kernels, exact):
    """Root mean square of the relative distances."""
    return np.sqrt(np.mean([relative(kernel, exact) ** 2 for kernel in kernels]))


@pytest.fixture(scope="module")
def found(small, trained):
    return infinite_width(trained(small))


def test_a_linear_model_is_its_own_limit(small, trained):
    run = trained(replace(small, model=ModelConfig(widths=())))
    found = infinite_width(run, num_examples=9)
    features = np.hstack([run.dataset.inputs[:9], np.ones((9, 1))])
    kernel = features @ features.T
    np.testing.assert_allclose(found.ntk, np.linalg.eigvalsh(kernel)[::-1], atol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, [found.ntk] * 10, atol=1e-12)
    np.testing.assert_allclose(found.distance, 0, atol=1e-14)
    np.testing.assert_allclose(found.movement, 0, atol=1e-14)
    np.testing.assert_allclose(found.alignment, 1, rtol=1e-14)


@pytest.mark.parametrize("weights", ["published", "published-updated"])
def test_deep_linear_networks_have_a_closed_form(weights):
    """Q and Θ of a unit from those of the n units before it: v n Q + b² and n Q + 1 + v n Θ."""
    sums, exact, bias = INPUTS @ INPUTS.T, np.zeros((5, 5)), BIAS_STD.get(weights, 0)
    of_unit = sums
    for fan_in, fan_out in ((3, 7), (7, 4), (4, 2)):
        variance = 1 / fan_in if weights == "published" else 2 / (fan_in + fan_out)
        exact = sums + 1 + fan_in * variance * exact
        of_unit = variance * sums + bias**2
        sums = fan_out * of_unit
    ntk, nngp = limit_kernels(FullyConnected((7, 4), "identity", weights), INPUTS, 2)
    np.testing.assert_allclose(ntk, exact, rtol=1e-10)
    np.testing.assert_allclose(nngp, of_unit, rtol=1e-10, atol=1e-12)


def test_a_relu_network_has_the_arc_cosine_kernels():
    ntk, nngp = limit_kernels(FullyConnected((7,), "relu", "published"), INPUTS, 3)
    exact_ntk, exact_nngp = arc_cosine(INPUTS, 7)
    np.testing.assert_allclose(ntk, exact_ntk, rtol=1e-7)
    np.testing.assert_allclose(nngp, exact_nngp, rtol=1e-7)


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0), ("tanh", 1), ("gelu", 0.5)])
def test_an_example_that_is_zero_has_the_derivative_that_jax_takes_there(activation, slope):
    """φ(0) = 0: of its own entry are left both biases, the hidden one's through φ'(0)."""
    inputs = np.vstack([np.zeros(3), INPUTS])
    ntk, nngp = limit_kernels(FullyConnected((7,), activation, "published"), inputs, 3)
    np.testing.assert_allclose(nngp[0], 0, atol=1e-15)
    np.testing.assert_allclose(ntk[0, 0], 1 + slope**2, rtol=1e-12)
    assert np.all(np.isfinite(ntk))


def test_networks_have_the_limit_as_their_mean_where_an_example_is_zero():
    inputs = np.vstack([np.zeros(3), INPUTS])
    model = FullyConnected((1000,), "relu", "published")
    mean, limit = np.mean(ntks(model, 8, inputs), axis=0), limit_kernels(model, inputs, 3)[0]
    np.testing.assert_allclose(mean[0], 1, rtol=1e-12)
    np.testing.assert_allclose(limit[0], 1, rtol=1e-12)
    assert relative(mean, limit) < 0.03


FUNCTIONS = {
    "relu": lambda x: max(x, 0.0),
    "tanh": np.tanh,
    "gelu": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "softplus": lambda x: np.logaddexp(x, 0),
    "silu": lambda x: x * expit(x),
    "sigmoid": expit,
    "elu": lambda x: x if x > 0 else np.expm1(x),
    "identity": lambda x: x,
}


def expectation(function, cov, var1, var2):
    """E[φ(u) φ(v)] by adaptive quadrature over u and, given u, over v, in smooth pieces."""
    scale, slope, rest = np.sqrt(var1), cov / var1, np.sqrt(var2 - cov**2 / var1)

    def density(z):
        return np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    def given(z):
        middle = slope * scale * z
        corner = np.clip(-middle / rest, -9, 9)
        pieces = [(-9, corner), (corner, 9)]
        inner = sum(
            quad(lambda y: function(middle + rest * y) * density(y), *piece, epsabs=1e-12)[0]
            for piece in pieces
        )
        return function(scale * z) * density(z) * inner

    return sum(quad(given, *piece, epsabs=1e-11)[0] for piece in [(-9, 0), (0, 9)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_has_the_expectations_of_adaptive_quadrature(activation):
    """Of one hidden layer, Θ = n E φφ + 1 + E φ'φ' (x · x' + 1), and E φ'φ' = d/dc E φφ (Price)."""
    inputs, width = np.array([[0.4, 1.1], [-0.9, 0.6]]), 3
    ntk, nngp = limit_kernels(FullyConnected((width,), activation, "published"), inputs, 1)
    (var1, cov), (_, var2) = inputs @ inputs.T / 2
    function, shift = FUNCTIONS[activation], 1e-3
    values = [expectation(function, cov + s, var1, var2) for s in (0, shift, -shift)]
    np.testing.assert_allclose(nngp[0, 1], values[0], rtol=1e-9)
    slopes = (values[1] - values[2]) / (2 * shift)
    np.testing.assert_allclose(ntk[0, 1], width * values[0] + 1 + slopes * (2 * cov + 1), rtol=1e-6)


def test_errors_of_means_fall_as_the_root_of_width_and_of_the_number_of_networks():
    scaled, seeds = [], 400
    for width in (64, 256):
        model = FullyConnected((width,), "relu", "published")
        limit, _ = limit_kernels(model, INPUTS, 3)
        kernels = np.asarray(ntks(model, seeds))
        for together in (1, 10):
            means = np.mean(kernels.reshape(-1, together, 5, 5), axis=1)
            scaled.append(spread(means, limit) * np.sqrt(width * together))
        assert relative(np.mean(kernels, axis=0), limit) < 2 * scaled[-1] / np.sqrt(width * seeds)
    np.testing.assert_allclose(scaled, np.mean(scaled), rtol=0.15)


@pytest.mark.parametrize(
    ("weights", "activation"),
    [("published-updated", "tanh"), ("he-uniform", "softplus")],
)
def test_deep_networks_have_the_limits_as_their_means(weights, activation):
    """Two hidden layers, whose mean is off by O(1/width), and inputs enough for any weights."""
    inputs, some, seeds = np.random.default_rng(1).normal(size=(4, 30)), 80, 1500
    model = FullyConnected((64, 64), activation, weights)
    limit, process = limit_kernels(model, inputs, 3)
    problem, params = networks(model, seeds, inputs)
    form = partial(gram_matrix, problem)
    kernels = jax.jit(lambda params: jax.lax.map(form, params))(params[:some])
    mean = np.mean(kernels, axis=0)
    assert relative(mean, limit) < 2.5 * spread(kernels, limit) / np.sqrt(some) + 0.5 / 64
    outputs = jax.jit(lambda params: jax.lax.map(problem.outputs, params))(params)
    products = np.einsum("sni,smi->nm", outputs, outputs) / (3 * seeds)
    sampling = np.sqrt((np.sum(process**2) + np.trace(process) ** 2) / (3 * seeds))
    assert np.linalg.norm(products - process) < 2 * sampling + 0.02 * np.linalg.norm(process)


def test_weights_and_biases_have_the_variances_of_the_limit():
    assert set(WEIGHT_VARIANCES) == set(get_args(InitName))
    for name, variance in WEIGHT_VARIANCES.items():
        weight, bias = FullyConnected((), "relu", name).init(jax.random.key(0), (300,), 200)[0]
        np.testing.assert_allclose(np.mean(weight**2), variance(300, 200), rtol=0.02)
        np.testing.assert_allclose(np.mean(bias**2) ** 0.5, BIAS_STD.get(name, 0), rtol=0.1)


@pytest.mark.parametrize(
    ("weights", "bounds"), [("glorot-normal", (5e-4, 5e-3)), ("glorot-uniform", (5e-3, 2e-2))]
)
def test_two_inputs_are_too_few_for_weights_that_are_not_normal(weights, bounds):
    """By how much is what `limit_kernels` says: ReLU on the published spiral, exact but for grids.

    The limit for weights of any density is the mean over that of one unit's two weights.
    """
    inputs = load_dataset(DataConfig()).inputs[5::60]
    width, variance = 100, 2 / 102
    if weights == "glorot-uniform":
        grid = (np.arange(600) + 0.5) / 300 - 1
        nodes, density = grid * np.sqrt(3 * variance), np.full(600, 1 / 600)
    else:  # a normal density cut at two of its standard deviations
        grid = (np.arange(600) + 0.5) / 150 - 2
        density = np.exp(-(grid**2) / 2) / np.sum(np.exp(-(grid**2) / 2))
        nodes = grid * np.sqrt(variance / np.sum(density * grid**2))
    units = np.stack(np.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2) @ inputs.T
    share = np.outer(density, density).reshape(-1, 1)
    active, gate = np.maximum(units, 0), units > 0
    gates = (share * gate).T @ gate
    exact = width * (share * active).T @ active + 1
    exact += width * 2 / 103 * gates * (inputs @ inputs.T + 1)
    normal, _ = limit_kernels(FullyConnected((width,), "relu", weights), inputs, 3)
    assert bounds[0] < relative(normal, exact) < bounds[1]


def test_eigenvalues_distances_and_alignment_of_a_run_are_those_of_its_kernels(small, trained):
    run = trained(small)
    found = infinite_width(run, [2, 5, 9], num_examples=7)
    assert found.num_examples == 7
    np.testing.assert_array_equal(found.steps, [14, 35, 60])
    inputs = run.dataset.inputs[:7]
    limit, nngp = limit_kernels(FullyConnected((2,), "tanh", "glorot-normal"), inputs, 3)
    np.testing.assert_allclose(found.ntk, np.linalg.eigvalsh(limit)[::-1], rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.nngp, np.linalg.eigvalsh(nngp)[::-1], rtol=1e-12, atol=1e-13)
    form = jax.jit(partial(gram_matrix, run.problem.take(jnp.arange(7))))
    first, *kernels = (np.asarray(form(vector)) for vector in run.parameters([0, 2, 5, 9]))
    for place, kernel in enumerate(kernels):
        values = np.linalg.eigvalsh(kernel)[::-1]
        np.testing.assert_allclose(found.eigenvalues[place], values, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(found.distance[place], relative(kernel, limit), rtol=1e-12)
        np.testing.assert_allclose(found.movement[place], relative(kernel, first), rtol=1e-10)
        cosine = np.trace(kernel @ limit) / np.sqrt(np.trace(kernel @ kernel) * np.sum(limit**2))
        np.testing.assert_allclose(found.alignment[place], cosine, rtol=1e-12)


def test_all_checkpoints_are_taken_and_the_first_has_not_moved(found, small, trained):
    np.testing.assert_array_equal(found.steps, trained(small).checkpoint_steps)
    assert found.movement[0] == 0
    assert np.all(found.movement[1:] > 0)
    spectrum = ntk_spectrum(trained(small))
    np.testing.assert_array_equal(found.eigenvalues, spectrum.eigenvalues)


def test_limits_are_in_double_precision_whatever_that_of_jax_is():
    model = FullyConnected((7,), "relu", "published")
    before = limit_kernels(model, INPUTS, 3)
    with jax.enable_x64(False):
        found = limit_kernels(model, INPUTS, 3)
    for kernel, same in zip(found, before, strict=True):
        assert kernel.dtype == np.float64
        np.testing.assert_array_equal(kernel, same)


def test_parameters_that_are_not_finite_give_nan(small, trained, monkeypatch):
    run = trained(small)
    before, points = infinite_width(run, [0, 1]), run.points

    def spoilt(checkpoints, chunk):
        for part in points(checkpoints, chunk):
            yield [
                replace(p, params=np.full_like(p.params, np.nan)) if p.step == 7 else p
                for p in part
            ]

    monkeypatch.setattr(run, "points", spoilt)
    found = infinite_width(run, [0, 1])
    for name in ("eigenvalues", "distance", "alignment", "movement"):
        assert np.all(np.isnan(getattr(found, name)[1])), name
        np.testing.assert_array_equal(getattr(found, name)[0], getattr(before, name)[0])


def test_a_run_of_a_loop_of_ones_own_is_refused(small, trained, monkeypatch):
    run = object.__new__(RecordedRun)
    monkeypatch.setattr(run, "path", trained(small).path, raising=False)
    with pytest.raises(ConfigError, match=r"run\.h5 was recorded in a custom training loop; exp"):
        infinite_width(run)


def test_a_linearised_run_stays_at_the_kernel_that_it_began_with(found, small, trained):
    linearised = infinite_width(trained(replace(small, linearize=1)))
    np.testing.assert_allclose(linearised.distance, found.distance[0], rtol=1e-10)
    np.testing.assert_array_equal(linearised.ntk, found.ntk)
    np.testing.assert_allclose(linearised.movement, 0, atol=1e-12)


def test_more_examples_than_are_formed_are_refused(small, trained, monkeypatch):
    monkeypatch.setattr(f"{MODULE}.MAX_DENSE", 20)
    with pytest.raises(ConfigError, match="ntk_examples is 24; expected at most 20"):
        infinite_width(trained(small), num_examples=24)
    assert infinite_width(trained(small), [0], num_examples=20).num_examples == 20


def test_a_spectrum_stores_and_reports_it(found, small, trained, tmp_path, require_schema):
    run, config = trained(small), SpectrumConfig(k=1, infinite_width=True)
    told = []
    spectrum = compute_spectrum(run, config, progress=lambda what, done: told.append((what, done)))
    assert told[-1] == ("infinite-width", 10)
    save_spectrum(spectrum, tmp_path / "s.h5")
    again = load_spectrum(tmp_path / "s.h5", run)
    for kept in (spectrum.infinite_width, again.infinite_width):
        for field in fields(InfiniteWidth):
            np.testing.assert_array_equal(getattr(kept, field.name), getattr(found, field.name))
    (line,) = (line for line in closing_lines(spectrum) if line.startswith("infinite width"))
    assert f"goes {found.distance[0]:.3g} -> {found.distance[-1]:.3g} of" in line
    assert f"it is {found.movement[-1]:.3g} of" in line
    assert "of normal weights" in line
    require_schema(as_dict(spectrum), "spectrum")
    told = as_dict(spectrum)["infinite_width"]
    assert told["ntk"] == found.ntk.tolist()
    assert told["distance"] == found.distance.tolist()

    without = replace(spectrum, infinite_width=None)
    assert as_dict(without)["infinite_width"] is None
    assert closing_lines(without) == [each for each in closing_lines(spectrum) if each != line]
    save_spectrum(without, tmp_path / "s.h5")
    assert load_spectrum(tmp_path / "s.h5").infinite_width is None


@pytest.mark.parametrize("config", [{"infinite_width": True}, {"ntk_engine": "neural-tangents"}])
def test_a_package_that_is_missing_is_told_before_anything_is_computed(
    config, small, trained, monkeypatch
):
    def missing():
        raise ConfigError("it is missing")

    monkeypatch.setattr(f"{MODULE}.neural_tangents", missing)
    monkeypatch.setattr(tangents, "neural_tangents", missing)
    monkeypatch.setattr("dlf_dynamics.analysis.spectra.spectrum.hessian_spectrum", pytest.fail)
    with pytest.raises(ConfigError, match="it is missing"):
        compute_spectrum(trained(small), SpectrumConfig(**config))


def test_kernels_at_infinite_width_need_examples():
    with pytest.raises(ConfigError, match="ntk_examples is 0; expected at least 1"):
        SpectrumConfig(infinite_width=True, ntk_examples=0)


@pytest.mark.parametrize("trace_outputs", [True, False])
def test_kernels_of_a_run_by_neural_tangents_are_our_own(trace_outputs, small, trained):
    own, theirs = (
        ntk_spectrum(trained(small), num_examples=8, trace_outputs=trace_outputs, engine=engine)
        for engine in ("own", "neural-tangents")
    )
    for field in fields(own):
        mine, other = getattr(own, field.name), getattr(theirs, field.name)
        np.testing.assert_allclose(other, mine, rtol=1e-10, atol=1e-13, err_msg=field.name)


def test_neural_tangents_is_not_asked_for_kernels_that_are_not_formed(small, trained):
    run = trained(small)
    message = "'neural-tangents' for a kernel of 24 rows; expected at most 23"
    with pytest.raises(ConfigError, match=message):
        ntk_spectrum(
            run, num_examples=8, trace_outputs=False, max_dense=23, engine="neural-tangents"
        )
    engine = {"engine": "neural-tangents", "trace_outputs": False, "max_dense": 24}
    assert ntk_spectrum(run, [0], num_examples=8, **engine).eigenvalues.shape == (1, 24)
