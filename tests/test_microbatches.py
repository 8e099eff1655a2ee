"""The size of micro-batches follows from the memory there is."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import SpectrumConfig, memory, microbatches, sharpness, stability, top_hessian
from dlf_dynamics.analysis.spectra import oneshot
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import cross_entropy
from dlf_dynamics.memory import bytes_of, memory_limit
from dlf_dynamics.microbatches import choose_batch_size, kept_vectors
from dlf_dynamics.operators import ggn, hessian, remainder
from dlf_dynamics.problem import Problem

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(2)
COUNT, WIDTH = 1001, 40
MEASURE = microbatches._bytes_of_products


def model(params, inputs):
    return jnp.tanh(inputs @ params["in"]) @ params["out"]


def make(count=COUNT):
    inputs, labels = RNG.normal(size=(count, 6)), RNG.integers(3, size=count)
    params = {"in": RNG.normal(size=(6, WIDTH)) / 3, "out": RNG.normal(size=(WIDTH, 3)) / 6}
    problem = Problem(model, cross_entropy, jnp.asarray(inputs), jnp.asarray(labels))
    return problem, jax.tree.map(jnp.asarray, params)


PROBLEM, PARAMS = make()
FLAT, VECTOR = PROBLEM.ravel(PARAMS)
KEPT = kept_vectors(1) * VECTOR.nbytes
"""Bytes that the vectors of a solve are counted with."""


@pytest.fixture
def compiled(monkeypatch):
    """Sizes that were compiled to be measured, each as often as it was."""
    sizes = []

    def noted(make, problem, params, batch_size):
        sizes.append(batch_size)
        return MEASURE(make, problem, params, batch_size)

    monkeypatch.setattr(microbatches, "_bytes_of_products", noted)
    microbatches._chosen.cache_clear()
    yield sizes
    microbatches._chosen.cache_clear()


@cache
def needed(batch_size, make=hessian):
    params = jax.ShapeDtypeStruct(VECTOR.shape, VECTOR.dtype)
    return MEASURE(make, FLAT, params, batch_size)


def choose(limit, make=hessian, **options):
    return choose_batch_size(make, FLAT, VECTOR.size, VECTOR.dtype, limit, **options)


def test_small_problems_compile_nothing(compiled):
    assert choose(10**9) is None
    assert choose_batch_size(hessian, Problem.from_loss(jnp.sum), 10, float, 1) is None
    assert compiled == []


def test_what_fits_by_what_xla_says_takes_all_examples_at_once(compiled):
    assert choose(KEPT + needed(None)) is None
    assert compiled == [None]
    assert choose(KEPT + needed(None)) is None  # it is remembered
    assert compiled == [None]


def test_the_chosen_batch_fits_by_what_xla_says_and_a_far_larger_one_does_not(compiled):
    room = int(0.3 * needed(None))
    size = choose(KEPT + room)
    assert size is not None
    assert 1 <= size < COUNT
    assert needed(size) <= room < needed(4 * size)
    assert len(compiled) <= 4


@pytest.fixture
def pretended(monkeypatch):
    """A function that says what products need: so much, and so much for each example."""
    sizes = []

    def pretend(fixed, each):
        def measure(make, problem, params, batch_size):
            sizes.append(batch_size)
            return fixed + each * (2 * COUNT if batch_size is None else batch_size)

        sizes.clear()
        microbatches._chosen.cache_clear()
        monkeypatch.setattr(microbatches, "_bytes_of_products", measure)
        return sizes

    yield pretend
    microbatches._chosen.cache_clear()


@pytest.mark.parametrize("fixed", [0, 10**4, 10**6])
@pytest.mark.parametrize("each", [10, 500, 3000])
@pytest.mark.parametrize("most", [1, 7, 300, 499])
def test_the_largest_batch_is_met_in_a_few_tries_whatever_the_model_needs(
    fixed, each, most, pretended
):
    sizes = pretended(fixed, each)
    size = choose(KEPT + fixed + each * most + each // 2)
    assert len(sizes) <= 8
    if size is None:  # so little that it is not looked into
        assert 10 * each < 5000
    else:
        assert 0.4 * most <= size <= most


def test_numbers_of_twice_the_size_and_more_eigenvalues_leave_less_for_an_example(pretended):
    pretended(0, 3000)
    limit = KEPT + 350 * 3000
    sizes = [choose(limit), choose(limit, scale=2), choose(limit, count=40)]
    assert sizes[0] in range(250, 351)
    assert sizes[1] in range(125, 176)
    assert sizes[2] < sizes[0]
    # As many as the basis of the search holds, and four copies of the eigenvectors.
    assert [kept_vectors(count) for count in (1, 3, 20)] == [24, 32, 130]


def test_one_example_that_does_not_fit_is_told_in_one_line(compiled):
    found = r"^max_memory is .* GB; expected at least .* one example at a time, and .* for vectors"
    with pytest.raises(ConfigError, match=found) as caught:
        choose(KEPT + 100)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^max_memory is 1e-06 GB; expected at least"):
        sharpness(PROBLEM, PARAMS, max_memory="1kB")
    assert compiled[-1] == 1


@pytest.mark.parametrize(
    ("count", "most", "size"),
    [(1000, 300, 250), (1001, 300, 251), (7, 3, 3), (7, 1, 1), (64, 63, 32), (1001, 23, 23)],
)
def test_batches_are_of_equal_parts(count, most, size):
    assert microbatches._evenly(count, most) == size


def test_products_in_batches_give_the_same_eigenvalues(compiled):
    limit = f"{(KEPT + needed(None) // 5) / 1e6:.3f}MB"
    found = top_hessian(PROBLEM, PARAMS, 1, tol=1e-8, max_memory=limit)
    assert compiled.count(None) == 0
    assert len(compiled) >= 1
    assert found.converged.all()
    dense = np.linalg.eigvalsh(jax.jit(jax.hessian(FLAT.objective))(VECTOR, 0))[-1:]
    np.testing.assert_allclose(found.eigenvalues, dense, rtol=1e-10)


def test_a_batch_size_that_is_given_goes_first(compiled):
    solver = oneshot._Solver(None, 10, 500, 0, max_memory="1kB")
    assert solver.within(FLAT, VECTOR).batch_size == 500
    assert compiled == []


def deep(params, inputs):
    """With products that are kept for each of its steps."""
    for _ in range(8):
        inputs = jnp.sin(inputs * params["in"][0, :6])
    return inputs[:, :3] * params["out"][0]


def convolution(params, inputs):
    images = inputs[:, None, :, None] * jnp.ones((1, 6, 6, 1))
    kernel = params["in"][:3, :3].reshape(3, 3, 1, 1) * jnp.ones(4)
    layers = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jax.nn.relu(layers), axis=(1, 2))[:, :3] * params["out"][0]


@pytest.mark.parametrize("apply", [model, deep, convolution])
def test_the_count_without_compiling_is_no_less_than_what_xla_needs(apply):
    flat, vector = replace(PROBLEM, apply=apply).ravel(PARAMS)
    values = microbatches._bytes_of_values(jax.make_jaxpr(flat.outputs)(vector).jaxpr)
    assert values > COUNT * 3 * 8
    for make in (hessian, ggn, remainder):
        params = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
        assert MEASURE(make, flat, params, None) < microbatches._AT_MOST * (values + vector.nbytes)


def test_a_loop_counts_as_often_as_it_runs():
    def function(x):
        return jax.lax.scan(lambda y, _: (jnp.sin(y) + 1, None), x, length=7)[0]

    jaxpr = jax.make_jaxpr(function)(jnp.ones(5)).jaxpr
    assert microbatches._bytes_of_values(jaxpr) == 7 * 2 * 5 * 8


@pytest.mark.parametrize(
    ("text", "count"), [("4GB", 4 * 10**9), ("0.5 TB", 5 * 10**11), (" 20k ", 20_000), ("7B", 7)]
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert bytes_of(text) == count
    assert memory_limit(text) == count
    assert SpectrumConfig(max_memory=text).max_memory == text


@pytest.mark.parametrize("text", ["", "GB", "-4GB", "4GiB", "0GB", "1e9", "4 gb", "nan", "٤GB"])
def test_other_sizes_are_refused(text):
    found = r"^max_memory is '.*'; expected a size such as 4GB or 500MB$"
    with pytest.raises(ConfigError, match=found):
        bytes_of(text)
    with pytest.raises(ConfigError, match=found):
        SpectrumConfig(max_memory=text)


def test_a_gpu_has_its_own_memory_and_cores_share_that_of_the_machine(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 8 * 10**9)
    device = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device] * 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert memory.device_memory() == 2 * 10**9
    device.platform, device.memory_stats = "gpu", lambda: {"bytes_limit": 6 * 10**10}
    assert memory.device_memory() == 6 * 10**10
    assert memory_limit(None) == 45 * 10**9


@pytest.mark.slow
def test_a_preconditioned_hessian_takes_batches_too(compiled):
    optimizer = optax.adam(0.1)
    state = optimizer.init(PARAMS)
    limit = f"{(KEPT + needed(None) // 5) / 1e6:.3f}MB"
    whole = stability(PROBLEM, PARAMS, optimizer, opt_state=state, step=3)
    parts = stability(PROBLEM, PARAMS, optimizer, opt_state=state, step=3, max_memory=limit)
    assert parts.value == pytest.approx(whole.value, rel=1e-6)
    assert compiled


def test_keys_of_random_numbers_in_a_model_are_counted():
    """They are of a type that NumPy does not know."""

    def dropped(params, inputs):
        kept = jax.random.bernoulli(jax.random.key(3), 0.5, (WIDTH,))
        return (jnp.tanh(inputs @ params["in"]) * kept) @ params["out"]

    problem = replace(PROBLEM, apply=dropped)
    keys = jax.make_jaxpr(lambda: jax.random.split(jax.random.key(0), 3))()
    assert microbatches._bytes_of_values(keys.jaxpr) >= 3 * 8  # two words of 32 bits each
    flat, vector = problem.ravel(PARAMS)
    assert choose_batch_size(hessian, flat, vector.size, vector.dtype, 10**12) is None
