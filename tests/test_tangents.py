"""neural-tangents on the JAX of today, against closed forms and against our own kernels."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import tangents
from dlf_dynamics.analysis.spectra.gram import gram_matrix
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.problem import Problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

installed = pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is None, reason="neural-tangents is not installed"
)


@pytest.fixture
def package():
    return tangents.neural_tangents()


@pytest.fixture
def inputs():
    return jax.random.normal(jax.random.key(0), (6, 4))


own_kernel, their_kernel = (
    jax.jit(form, static_argnames="trace_outputs")
    for form in (gram_matrix, tangents.empirical_kernel)
)


def linear(params, inputs):
    return inputs @ params


def problem_of(apply, params, inputs):
    """The problem in flat parameters, and these."""
    targets = jnp.zeros(len(inputs), int)
    return Problem(apply, jnp.subtract, inputs, targets).ravel(params)


def perceptron(inputs):
    model = FullyConnected((5, 3), "gelu", "published-updated")
    params = jax.jit(lambda key: model.init(key, inputs.shape[1:], 2))(jax.random.key(1))
    return problem_of(model.apply, params, inputs)


def convolutional():
    """Two convolutions with strides, tanh, a mean over the pixels and a dense layer."""

    def apply(params, inputs):
        hidden = inputs
        for filters, bias in params["convolutions"]:
            hidden = jax.lax.conv_general_dilated(
                hidden, filters, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            hidden = jnp.tanh(hidden + bias)
        return jnp.mean(hidden, axis=(1, 2)) @ params["dense"]

    keys = jax.random.split(jax.random.key(2), 4)
    params = {
        "convolutions": [
            (jax.random.normal(keys[0], (3, 3, 2, 4)), jnp.full(4, 0.1)),
            (jax.random.normal(keys[1], (2, 2, 4, 3)), jnp.full(3, -0.2)),
        ],
        "dense": jax.random.normal(keys[2], (3, 2)),
    }
    return problem_of(apply, params, jax.random.normal(keys[3], (5, 6, 5, 2)))


def finite_differences(problem, params):
    """The full kernel from central differences, right to about 1e-9."""
    outputs = jax.jit(problem.outputs)
    columns = [
        np.ravel(outputs(params + shift) - outputs(params - shift)) / 2e-5
        for shift in 1e-5 * np.eye(len(params))
    ]
    jac = np.stack(columns, axis=1)
    return jac @ jac.T


def run_apart(code, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    ).stdout


def test_importing_the_module_imports_neither_jax_nor_neural_tangents():
    found = run_apart(
        "import sys, dlf_dynamics.tangents\nprint([n for n in ('jax', 'neural_tangents') "
        "if n in sys.modules])"
    )
    assert found == "[]\n"


@installed
def test_jax_is_left_as_it_was():
    code = """
import sys
import jax.core, jax.random, jax.extend.core
from jax.interpreters import ad
from dlf_dynamics.tangents import neural_tangents

before = [set(vars(module)) for module in (jax.core, jax.random, ad)]
assert "neural_tangents" not in sys.modules
package = neural_tangents()
assert neural_tangents() is package is sys.modules["neural_tangents"]
assert before == [set(vars(module)) for module in (jax.core, jax.random, ad)]
for name in ("jax.util", "neural_tangents.experimental", "tensorflow"):
    assert name not in sys.modules, name
assert not hasattr(jax, "util")
import jax.numpy as jnp
assert package._src.empirical.jnp is not jnp and jnp.size is not package._src.empirical.jnp.size
"""
    run_apart(code)


@installed
def test_the_package_may_have_been_imported_before(package, monkeypatch):
    tangents.neural_tangents.cache_clear()
    assert tangents.neural_tangents() is package


@installed
def test_stax_has_the_arc_cosine_kernel(package, inputs):
    """Cho and Saul (2009), Eq. 6 and 7 with n = 1 and 0, of weights of variance 2 / inputs."""
    stax = package.stax
    layers = stax.Dense(8, W_std=2**0.5), stax.Relu(), stax.Dense(3, W_std=2**0.5)
    kernel = stax.serial(*layers)[2]
    found = jax.jit(lambda inputs: kernel(inputs, None, ("nngp", "ntk")))(inputs)
    x = np.asarray(inputs)
    norms = np.linalg.norm(x, axis=1)
    products = np.outer(norms, norms)
    angles = np.arccos(np.clip(x @ x.T / products, -1, 1))
    nngp = 2 * products * (np.sin(angles) + (np.pi - angles) * np.cos(angles)) / np.pi / 4
    slopes = 2 * (np.pi - angles) / np.pi / 2
    np.testing.assert_allclose(found.nngp, nngp, rtol=1e-7)
    np.testing.assert_allclose(found.ntk, nngp + slopes * 2 * (x @ x.T) / 4, rtol=1e-7)


@installed
@pytest.mark.parametrize("implementation", [1, 2])
def test_empirical_kernels_of_a_linear_model_are_in_closed_form(implementation, package, inputs):
    for axes, shape in (((-1,), None), ((), 3)):
        kernel = package.empirical_ntk_fn(
            linear, trace_axes=axes, vmap_axes=0, implementation=implementation
        )
        exact = inputs @ inputs.T
        if shape:
            exact = np.einsum("nm,ij->nmij", exact, np.eye(shape))
        np.testing.assert_allclose(kernel(inputs, None, jnp.ones((4, 3))), exact, atol=1e-14)


@installed
def test_products_of_a_linear_model_are_in_closed_form(package, inputs):
    product = package.empirical_ntk_vp_fn(linear, inputs, None, jnp.ones((4, 3)))
    vectors = jax.random.normal(jax.random.key(1), (6, 3))
    np.testing.assert_allclose(product(vectors), inputs @ inputs.T @ vectors, atol=1e-13)


@installed
@pytest.mark.parametrize("trace_outputs", [True, False])
@pytest.mark.parametrize("network", ["perceptron", "convolutional"])
def test_kernels_are_those_of_finite_differences_and_our_own(network, trace_outputs, inputs):
    problem, params = perceptron(inputs) if network == "perceptron" else convolutional()
    found = their_kernel(problem, params, trace_outputs=trace_outputs)
    own = own_kernel(problem, params, trace_outputs=trace_outputs)
    np.testing.assert_allclose(found, own, rtol=0, atol=1e-14 * np.max(own))
    exact = finite_differences(problem, params)
    if trace_outputs:
        count = len(problem.targets)
        exact = np.einsum("aibi->ab", exact.reshape(count, 2, count, 2)) / 2
    np.testing.assert_allclose(found, exact, atol=1e-7)


@installed
@pytest.mark.parametrize("network", ["perceptron", "convolutional"])
def test_products_are_those_with_our_own_kernel(network, package, inputs):
    problem, params = perceptron(inputs) if network == "perceptron" else convolutional()
    vectors = jax.random.normal(jax.random.key(5), (len(problem.targets), 2))
    product = package.empirical_ntk_vp_fn(problem.apply, problem.inputs, None, params)
    own = own_kernel(problem, params, trace_outputs=False) @ vectors.reshape(-1)
    np.testing.assert_allclose(
        np.ravel(jax.jit(product)(vectors)), own, atol=1e-13 * np.max(np.abs(own))
    )


@installed
def test_kernels_are_formed_in_single_precision_too():
    with jax.enable_x64(False):
        inputs = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)
        found = their_kernel(*problem_of(linear, jnp.ones((3, 2)), inputs))
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, inputs @ inputs.T)


@pytest.fixture
def forgotten(monkeypatch):
    """As if neural-tangents had not been imported yet."""
    tangents.neural_tangents.cache_clear()
    for name in list(sys.modules):
        if name.partition(".")[0] == "neural_tangents":
            monkeypatch.delitem(sys.modules, name)
    yield monkeypatch
    tangents.neural_tangents.cache_clear()


@pytest.mark.parametrize("missing", ["neural_tangents", "frozendict"])
def test_a_package_that_is_missing_is_named_with_the_command(missing, forgotten):
    if missing == "frozendict" and importlib.util.find_spec("neural_tangents") is None:
        pytest.skip("neural-tangents is not installed")
    forgotten.setitem(sys.modules, missing, None)
    with pytest.raises(
        ConfigError,
        match=rf"^the package {missing} is not installed; .*: pip install --no-deps "
        r"neural-tangents==0\.6\.5 frozendict$",
    ):
        tangents.neural_tangents()
    assert "jax.util" not in sys.modules


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("from jax.core import Nothing", "cannot import name 'Nothing' from 'jax.core'"),
        ("import jax.nowhere", "No module named 'jax.nowhere'"),
        ("raise RuntimeError('one\\ntwo')", "one two"),
    ],
)
def test_a_version_that_does_not_import_is_refused_in_a_line(content, reason, forgotten, tmp_path):
    (tmp_path / "neural_tangents").mkdir()
    (tmp_path / "neural_tangents" / "__init__.py").write_text(content + "\n")
    described = tmp_path / "neural_tangents-0.6.4.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Name: neural-tangents\nVersion: 0.6.4\n")
    forgotten.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"expected 0\.6\.5 on JAX 0\.10: pip install") as raised:
        tangents.neural_tangents()
    message = str(raised.value)
    assert message.startswith("neural-tangents 0.6.4 does not import on JAX 0.")
    assert reason in message
    assert "\n" not in message
    assert "jax.util" not in sys.modules
    assert not hasattr(jax.core, "Literal")
