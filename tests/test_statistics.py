"""Running statistics of batch norm in loops that are recorded; parameters in a model's own form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import Problem, Recorder, SpectrumConfig, open_run
from dlf_dynamics.adapters import from_equinox, from_haiku, from_linen, from_nnx, statistics_of
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import cross_entropy

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")
nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(2)
INPUTS = jnp.asarray(3 * RNG.normal(size=(12, 4)) + 1)
LABELS = jnp.asarray(RNG.integers(0, 3, size=12))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(3)(x))
        return nn.Dense(3)(jnp.tanh(x))


class NnxNet(nnx.Module):
    def __init__(self, norm):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(4, 3, param_dtype=float, rngs=rngs)
        self.norm = nnx.BatchNorm(3, param_dtype=float, rngs=rngs) if norm else jnp.tanh
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.first(x)))


def linen():
    variables = LinenNet().init(jax.random.key(0), INPUTS, train=False)
    return from_linen(LinenNet(), variables, train=False)


def haiku():
    transformed = hk.transform_with_state(lambda x, train: hk.BatchNorm(True, True, 0.9)(x, train))
    return from_haiku(transformed, *transformed.init(jax.random.key(0), INPUTS, True), train=False)


def equinox():
    norm = lambda: eqx.nn.BatchNorm(4, "batch", mode="batch")  # noqa: E731
    return from_equinox(*eqx.nn.make_with_state(norm)())


WITH_STATISTICS = {
    "linen": linen,
    "nnx": lambda: from_nnx(NnxNet(norm=True)),
    "haiku": haiku,
    "equinox": equinox,
}


def problem_of(apply):
    return Problem(apply, cross_entropy, INPUTS, LABELS)


@pytest.mark.parametrize("make", WITH_STATISTICS.values(), ids=WITH_STATISTICS)
def test_a_model_whose_statistics_would_not_be_recorded_is_refused_before_training(make, tmp_path):
    apply, _ = make()
    assert statistics_of(apply)
    words = "holds statistics that training changes and parameters do not tell"
    with pytest.raises(ConfigError, match=words):
        Recorder(tmp_path / "own.h5", problem_of(apply), optimizer=None)
    Recorder(tmp_path / "own.h5", problem_of(apply), optimizer=None, fixed_statistics=True)
    assert list(tmp_path.iterdir()) == []


def test_random_keys_are_no_statistics():
    apply, _ = from_nnx(NnxNet(norm=False))
    assert statistics_of(apply) == ()


def evaluated(both, inputs):
    """As docs/own/models.md has it: statistics are recorded, and not differentiated."""
    return LinenNet().apply(
        both | {"batch_stats": jax.lax.stop_gradient(both["batch_stats"])}, inputs, train=False
    )


def test_statistics_that_are_recorded_are_those_at_each_checkpoint(tmp_path):
    variables = jax.tree.map(
        lambda x: jnp.asarray(x, float), LinenNet().init(jax.random.key(0), INPUTS, train=False)
    )
    problem, first, visited = problem_of(evaluated), variables, []

    @jax.jit
    def update(both):
        def loss(params):
            outputs, moved = LinenNet().apply(
                {**both, "params": params}, INPUTS, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(cross_entropy(outputs, LABELS)), moved

        slope, moved = jax.grad(loss, has_aux=True)(both["params"])
        return {"params": jax.tree.map(lambda p, g: p - 0.1 * g, both["params"], slope), **moved}

    with Recorder(tmp_path / "own.h5", problem, optimizer=None, every=10) as run:
        for step in range(31):
            visited.append(variables)
            run.record(step, variables)
            variables = update(variables)
    run = open_run(tmp_path / "own.h5", (problem, None, first))
    found = compute_spectrum(run, SpectrumConfig(k=1, every=1, ntk_examples=0))
    for both, value in zip(visited[::10], found.hessian.iterate.eigenvalues[:, 0], strict=True):
        vector, unravel = jax.flatten_util.ravel_pytree(both["params"])

        def loss(vector, both=both, unravel=unravel):
            outputs = LinenNet().apply({**both, "params": unravel(vector)}, INPUTS, train=False)
            logs = jax.nn.log_softmax(outputs)
            return -jnp.mean(logs[jnp.arange(12), LABELS])

        dense = np.linalg.eigvalsh(jax.hessian(loss)(vector))
        assert value == pytest.approx(dense[-1], rel=1e-5)


def test_parameters_in_the_form_of_the_model_are_those_of_the_setup(tmp_path):
    model = NnxNet(norm=False)
    apply, params = from_nnx(model)
    problem, optimizer = problem_of(apply), optax.sgd(0.1, momentum=0.9)
    own = nnx.state(model, nnx.Param)
    with Recorder(tmp_path / "own.h5", problem, optimizer=optimizer) as run:
        run.record(0, own, optimizer.init(own))
    run = open_run(tmp_path / "own.h5", (problem, optimizer, params))
    found = compute_spectrum(run, SpectrumConfig(k=1, ntk_examples=0))
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    dense = jax.hessian(lambda vector: problem.objective(unravel(vector), 0))(vector)
    expected = np.linalg.eigvalsh(dense)[-1]
    assert found.hessian.iterate.eigenvalues[0, 0] == pytest.approx(expected, rel=1e-5)
