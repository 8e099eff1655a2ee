"""Models of four frameworks, adapted: the same network everywhere, and models with state."""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import operators, torch_call
from dlf_dynamics.adapters import from_equinox, from_haiku, from_linen, from_nnx, from_torch
from dlf_dynamics.analysis.linalg import eigensolver
from dlf_dynamics.analysis.spectra.gram import gram_matrix
from dlf_dynamics.analysis.spectra.oneshot import sharpness
from dlf_dynamics.checks import check_problem
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

eqx = pytest.importorskip("equinox")
hk = pytest.importorskip("haiku")
nn = pytest.importorskip("flax.linen")
nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.usefixtures("quick_compilation", "host_loop")


@pytest.fixture(scope="module")
def host_loop():
    """The eigensolver that is compiled sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eigensolver, "PASS_SIZE", 0)
        yield


RNG = np.random.default_rng(5)
INPUTS = jnp.asarray(RNG.normal(size=(12, 4)))
LABELS = jnp.asarray(RNG.integers(0, 3, size=12))
WEIGHTS = ClassWeights(Triangle(3, 6.0, 8))
STEP = 3
W1, B1, W2, B2 = (jnp.asarray(RNG.normal(size=shape)) for shape in ((4, 5), 5, (5, 3), 3))


class Adapted(NamedTuple):
    """A model with the weights above, and its gradient as those of (W1, B1, W2, B2)."""

    apply: Any
    params: Any
    arrange: Any


def plain():
    def apply(params, inputs):
        w1, b1, w2, b2 = params
        return jnp.tanh(inputs @ w1 + b1) @ w2 + b2

    return Adapted(apply, (W1, B1, W2, B2), lambda tree: tree)


def equinox():
    model = eqx.nn.MLP(4, 3, 5, 1, activation=jnp.tanh, key=jax.random.key(0))
    arrays = lambda m: [part for layer in m.layers for part in (layer.weight, layer.bias)]  # noqa: E731
    model = eqx.tree_at(arrays, model, [W1.T, B1, W2.T, B2])

    def arrange(tree):
        w1, b1, w2, b2 = arrays(tree)
        return w1.T, b1, w2.T, b2

    return Adapted(*from_equinox(model), arrange)


def linen():
    module = nn.Sequential([nn.Dense(5), jnp.tanh, nn.Dense(3)])
    params = {
        "layers_0": {"kernel": W1, "bias": B1},
        "layers_2": {"kernel": W2, "bias": B2},
    }

    def arrange(tree):
        first, second = tree["layers_0"], tree["layers_2"]
        return first["kernel"], first["bias"], second["kernel"], second["bias"]

    return Adapted(*from_linen(module, {"params": params}), arrange)


def flax_nnx():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 5, rngs=rngs), jnp.tanh, nnx.Linear(5, 3, rngs=rngs))
    params = {0: {"kernel": W1, "bias": B1}, 2: {"kernel": W2, "bias": B2}}
    nnx.update(model, {"layers": params})

    def arrange(tree):
        first, second = tree["layers"][0], tree["layers"][2]
        return first["kernel"], first["bias"], second["kernel"], second["bias"]

    return Adapted(*from_nnx(model), arrange)


def haiku():
    transformed = hk.transform(lambda x: hk.nets.MLP([5, 3], activation=jnp.tanh)(x))
    params = {"mlp/~/linear_0": {"w": W1, "b": B1}, "mlp/~/linear_1": {"w": W2, "b": B2}}

    def arrange(tree):
        first, second = tree["mlp/~/linear_0"], tree["mlp/~/linear_1"]
        return first["w"], first["b"], second["w"], second["b"]

    return Adapted(*from_haiku(transformed, params), arrange)


MODELS = {"plain": plain, "equinox": equinox, "linen": linen, "nnx": flax_nnx, "haiku": haiku}


@pytest.fixture(scope="module", params=MODELS)
def adapted(request):
    return MODELS[request.param]()


def problem_of(apply):
    return Problem(apply, cross_entropy, INPUTS, LABELS, WEIGHTS)


class Dense(NamedTuple):
    """What the adapted models should give, from NumPy and dense matrices."""

    loss: float
    gradient: tuple[np.ndarray, ...]
    hessian: np.ndarray
    ggn: np.ndarray
    ntk: np.ndarray


@pytest.fixture(scope="module")
def dense():
    x, w1, b1, w2, b2 = map(np.asarray, (INPUTS, W1, B1, W2, B2))
    hidden = np.tanh(x @ w1 + b1)
    exponentials = np.exp(hidden @ w2 + b2)
    odds = exponentials / exponentials.sum(axis=1, keepdims=True)
    hot, gamma = np.eye(3)[LABELS], np.asarray(WEIGHTS.schedule(STEP))[LABELS] / len(x)
    loss = -np.sum(gamma * np.log(odds[np.arange(len(x)), LABELS]))
    slopes = gamma[:, None] * (odds - hot)
    back = slopes @ w2.T * (1 - hidden**2)
    gradient = (x.T @ back, back.sum(axis=0), hidden.T @ slopes, slopes.sum(axis=0))
    return Dense(loss, gradient, *dense_matrices(odds, gamma))


def dense_matrices(odds, gamma):
    """The matrices by JAX's own dense derivatives of the plain function."""
    apply, params, _ = plain()
    vector, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def derivatives(vector):
        jac = jax.jacrev(lambda vector: apply(unravel(vector), INPUTS))(vector)
        return jac, jax.hessian(loss)(vector)

    def loss(vector):
        logs = jax.nn.log_softmax(apply(unravel(vector), INPUTS))
        return -jnp.sum(gamma * logs[jnp.arange(len(INPUTS)), LABELS])

    jac, hessian = map(np.asarray, derivatives(vector))
    curvature = np.einsum("na,ab->nab", odds, np.eye(3)) - np.einsum("na,nb->nab", odds, odds)
    ggn = np.einsum("nap,n,nab,nbq->pq", jac, gamma, curvature, jac)
    return hessian, ggn, np.einsum("nap,map->nm", jac, jac) / 3


@jax.jit
def matrices(problem, vector):
    """GGN and traced NTK by this project's operators."""
    ggn = jax.vmap(operators.ggn(problem, vector, STEP))(jnp.eye(len(vector)))
    return ggn, gram_matrix(problem, vector)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.max(np.abs(expected)))


def test_loss_and_gradient_are_those_of_numpy(adapted, dense):
    problem = problem_of(adapted.apply)
    loss, gradient = jax.value_and_grad(problem.objective)(adapted.params, STEP)
    close(loss, dense.loss)
    for found, expected in zip(adapted.arrange(gradient), dense.gradient, strict=True):
        close(found, expected)


def test_curvature_and_kernel_are_those_of_dense_matrices(adapted, dense):
    problem = problem_of(adapted.apply)
    found = sharpness(problem, adapted.params, step=STEP, tol=1e-8)
    assert found.converged
    close(found.value, np.linalg.eigvalsh(dense.hessian)[-1])
    ggn, kernel = matrices(*problem.ravel(adapted.params))
    close(np.linalg.eigvalsh(ggn)[-1], np.linalg.eigvalsh(dense.ggn)[-1])
    close(np.linalg.eigvalsh(kernel), np.linalg.eigvalsh(dense.ntk))


IMAGES = jnp.asarray(RNG.normal(size=(4, 5, 5, 2)))
KEYS = (jax.random.key(n) for n in itertools.count())


class Noisy(NamedTuple):
    """A convolution with batch norm and dropout, adapted and as it trains."""

    adapted: tuple[Any, Any]
    training: Any
    expected: Any
    """Outputs of the framework's own evaluation."""


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(3, (3, 3))(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(3)(x.reshape(len(x), -1))


def noisy_linen():
    module = LinenNet()
    variables = module.init(next(KEYS), IMAGES, train=False)
    _, moved = module.apply(
        variables, IMAGES, train=True, rngs={"dropout": next(KEYS)}, mutable=["batch_stats"]
    )
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), {**variables, **moved})

    def training(params, inputs):
        return module.apply(
            {**variables, "params": params},
            inputs,
            train=True,
            rngs={"dropout": next(KEYS)},
            mutable=["batch_stats"],
        )[0]

    adapted = from_linen(module, variables, train=False)
    return Noisy(adapted, training, module.apply(variables, IMAGES, train=False))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), param_dtype=float, rngs=rngs)
        self.norm = nnx.BatchNorm(3, param_dtype=float, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(75, 3, param_dtype=float, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(jnp.tanh(self.norm(self.conv(x))))
        return self.dense(x.reshape(len(x), -1))


def noisy_nnx():
    model = NnxNet(nnx.Rngs(0))
    # They are float32 whatever `param_dtype` is.
    nnx.update(
        model, jax.tree.map(lambda leaf: leaf.astype(float), nnx.state(model, nnx.BatchStat))
    )
    model(IMAGES)
    adapted = from_nnx(model)
    before = nnx.clone(model)
    before.eval()
    expected = before(IMAGES)

    def training(params, inputs):
        nnx.update(model, params)
        return model(inputs)

    return Noisy(adapted, training, expected)


class EquinoxNet(eqx.Module):
    conv: Any
    norm: Any
    dropout: Any
    dense: Any

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 3, 3, padding=1, key=first)
        self.norm = eqx.nn.BatchNorm(3, "batch", mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)
        self.dense = eqx.nn.Linear(75, 3, key=second)

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(jnp.moveaxis(x, -1, 0)), state)
        return self.dense(self.dropout(jnp.tanh(x), key=key).ravel()), state


def noisy_equinox():
    model, state = eqx.nn.make_with_state(EquinoxNet)(next(KEYS))

    @eqx.filter_jit
    def train(model, inputs, state, key):
        batched = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
        return batched(inputs, state, jax.random.split(key, len(inputs)))

    _, state = train(model, IMAGES, state, next(KEYS))
    evaluated = eqx.filter_jit(eqx.nn.inference_mode(model))
    expected = jnp.stack([evaluated(image, state)[0] for image in IMAGES])

    def training(params, inputs):
        return train(eqx.combine(params, model), inputs, state, next(KEYS))[0]

    return Noisy(from_equinox(model, state), training, expected)


def haiku_net(x, train):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(3, 3)(x), train)
    x = jnp.tanh(x)
    if train:
        x = hk.dropout(hk.next_rng_key(), 0.5, x)
    return hk.Linear(3)(x.reshape(len(x), -1))


def noisy_haiku():
    transformed = hk.transform_with_state(haiku_net)
    params, state = transformed.init(next(KEYS), IMAGES, True)
    _, state = transformed.apply(params, state, next(KEYS), IMAGES, True)

    def training(params, inputs):
        return transformed.apply(params, state, next(KEYS), inputs, True)[0]

    expected, _ = transformed.apply(params, state, None, IMAGES, False)
    return Noisy(from_haiku(transformed, params, state, train=False), training, expected)


NOISY = {
    "linen": noisy_linen,
    "nnx": noisy_nnx,
    "equinox": noisy_equinox,
    "haiku": noisy_haiku,
}


@pytest.fixture(scope="module", params=NOISY)
def noisy(request):
    return NOISY[request.param]()


def image_problem(apply):
    return Problem(apply, cross_entropy, IMAGES, LABELS[:4])


def test_dropout_and_batch_norm_are_evaluated(noisy):
    apply, params = noisy.adapted
    np.testing.assert_allclose(apply(params, IMAGES), noisy.expected, rtol=1e-12, atol=1e-14)
    check_problem(image_problem(apply), params)


def test_as_they_train_the_check_finds_them_out(noisy):
    with pytest.raises(ConfigError, match="two evaluations at the same parameters differ"):
        check_problem(image_problem(noisy.training), noisy.adapted[1])


def test_the_sharpness_of_a_convolution_is_that_of_the_dense_hessian():
    apply, params = noisy_linen().adapted
    problem = image_problem(apply)
    flat, vector = problem.ravel(params)
    matrix = jax.jit(jax.hessian(lambda vector: flat.objective(vector, 0)))(vector)
    found = sharpness(problem, params, tol=1e-8)
    assert found.converged
    close(found.value, np.linalg.eigvalsh(matrix)[-1])


def test_adapting_leaves_the_model_as_it_is():
    model = NnxNet(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    apply, params = from_nnx(model)
    apply(jax.tree.map(jnp.zeros_like, params), jnp.ones((1, 5, 5, 2)))
    assert not model.dropout.deterministic
    assert not model.norm.use_running_average
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    net = eqx.nn.Dropout(0.5)
    from_equinox(net)
    assert not net.inference


def test_later_parameters_are_found_and_put_back_as_the_docstrings_say():
    model = NnxNet(nnx.Rngs(0))
    _, params = from_nnx(model)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    nnx.update(model, doubled)
    again = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, again, doubled)
    net = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    apply, params = from_equinox(net)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    trained = eqx.combine(doubled, net)
    expected = jax.vmap(trained)(INPUTS)
    np.testing.assert_array_equal(apply(doubled, INPUTS), expected)
    later = eqx.filter(trained, eqx.is_inexact_array)
    np.testing.assert_array_equal(apply(later, INPUTS), expected)


def test_an_equinox_model_may_take_all_examples_itself():
    net = eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0))
    apply, params = from_equinox(net)

    class Batched(eqx.Module):
        net: Any

        def __call__(self, inputs):
            return jax.vmap(self.net)(inputs)

    batched, same = from_equinox(Batched(net), batched=True)
    np.testing.assert_array_equal(batched(same, INPUTS), apply(params, INPUTS))


def test_batch_norm_in_training_mode_is_found_out_by_one_example():
    module = nn.BatchNorm(use_running_average=False)
    variables = module.init(next(KEYS), INPUTS)

    def training(params, inputs):
        return module.apply({**variables, "params": params}, inputs, mutable=["batch_stats"])[0]

    problem = Problem(training, lambda f, y: jnp.sum(f**3, axis=1), INPUTS, LABELS)
    with pytest.raises(ConfigError, match="outputs of an example change with the other examples"):
        check_problem(problem, variables["params"])


def test_a_linen_module_that_wants_to_change_its_state_is_told_in_one_line():
    module = nn.BatchNorm(use_running_average=False)
    apply, params = from_linen(module, module.init(next(KEYS), INPUTS))
    with pytest.raises(ConfigError, match="fails: ModifyScopeVariableError: Cannot update"):
        check_problem(problem_of(apply), params)


def test_variables_without_parameters_and_mutable_collections_are_refused():
    module = nn.Dense(3)
    variables = module.init(next(KEYS), INPUTS)
    with pytest.raises(ConfigError, match="have the collections 'kernel', 'bias'; expected 'par"):
        from_linen(module, variables["params"])
    with pytest.raises(ConfigError, match="have the collections none; expected 'params'"):
        from_linen(module, {})
    with pytest.raises(ConfigError, match="mutable is given; expected a module that changes"):
        from_linen(module, variables, mutable=["batch_stats"])


def test_a_haiku_function_that_draws_is_told_in_one_line():
    transformed = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(3)(x)))
    apply, params = from_haiku(transformed, transformed.init(next(KEYS), INPUTS))
    with pytest.raises(ConfigError, match=r"^the Haiku function draws random numbers; expected a"):
        check_problem(problem_of(apply), params)


def test_other_errors_of_a_haiku_function_stay_what_they_are():
    def wrong(x):
        raise ValueError("no such layer")

    apply, params = from_haiku(hk.transform(wrong), {})
    with pytest.raises(ValueError, match=r"^no such layer$"):
        apply(params, INPUTS)


def test_the_state_of_a_haiku_function_is_asked_for():
    net = lambda x: hk.Linear(3)(x)  # noqa: E731
    with pytest.raises(ConfigError, match="state is missing; expected the one that init returned"):
        from_haiku(hk.transform_with_state(net), {})
    with pytest.raises(ConfigError, match="state is given; expected none"):
        from_haiku(hk.transform(net), {}, {})


@pytest.fixture
def not_imported():
    """As if torchax had not been asked for yet."""
    torch_call.torchax.cache_clear()
    yield
    torch_call.torchax.cache_clear()


@pytest.mark.parametrize("missing", ["torch", "torchax"])
@pytest.mark.usefixtures("not_imported")
def test_without_the_extra_a_pytorch_module_is_told_what_to_install(missing, monkeypatch):
    def find(name):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return SimpleNamespace()

    monkeypatch.setattr(torch_call.importlib, "import_module", find)
    monkeypatch.setattr(torch_call, "_as_it_was", nullcontext)
    words = f"the package {missing} is not installed; .*: pip install 'torch>=2.9' torchax==0.0.13"
    with pytest.raises(ConfigError, match=words):
        from_torch(object())


@pytest.mark.usefixtures("not_imported")
def test_versions_that_do_not_go_together_are_named(monkeypatch):
    def find(name):
        raise AttributeError("no overload\nnamed so")

    monkeypatch.setattr(torch_call.importlib, "import_module", find)
    words = (
        r"torchax .* and torch .* cannot be imported together \(no overload named so\); expected"
    )
    with pytest.raises(ConfigError, match=words):
        from_torch(object())
