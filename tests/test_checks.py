"""`check_problem` names what is wrong with a problem, one thing at a time."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.checks import check_parameters, check_problem
from dlf_dynamics.errors import ConfigError, DataError
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(3)
INPUTS = jnp.asarray(RNG.normal(size=(6, 4)))
LABELS = jnp.array([0, 1, 2, 2, 1, 0])
PARAMS = {"layer": [jnp.asarray(RNG.normal(size=(4, 3))), jnp.asarray(RNG.normal(size=3))]}


def linear(params, inputs):
    weight, bias = params["layer"]
    return inputs @ weight + bias


def make(apply=linear, **changes):
    return replace(Problem(apply, cross_entropy, INPUTS, LABELS), **changes)


def with_leaf(leaf):
    return {"layer": [PARAMS["layer"][0], leaf]}


GOOD = {
    "static": make(),
    "class weights": make(example_weights=ClassWeights(Triangle(3, 6.0, 8))),
    "penalty": make(parameter_loss=lambda p, step: 0.1 * jnp.sum(p["layer"][0] ** 2)),
    "loss alone": Problem.from_loss(lambda p, step: jnp.sum(p["layer"][0] ** 4) + step),
    "losses per output": make(criterion=lambda f, y: (f - jax.nn.one_hot(y, 3)) ** 2),
    "weights per output": make(
        criterion=lambda f, y: f**2, example_weights=lambda step, y: jnp.ones((1, 3))
    ),
    "one example": make().take(jnp.array([2])),
    "NumPy data": make(inputs=np.asarray(INPUTS), targets=np.asarray(LABELS)),
    "masked outputs": make(
        lambda p, x: linear(p, x).at[:, 0].add(-jnp.inf), targets=1 + LABELS % 2
    ),
    "a jitted model": make(jax.jit(linear)),
}


@pytest.mark.parametrize("name", GOOD)
def test_good_problems_pass_at_any_step(name):
    for step in (0, 7, jnp.int32(7)):
        check_problem(GOOD[name], PARAMS, step)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_precisions_and_numpy_parameters_pass(dtype):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), PARAMS)
    check_problem(make(), params)
    check_problem(make(), jax.tree.map(jnp.asarray, params))


def test_a_loss_of_exactly_0_passes():
    """Compiled and not, it may be 0 but for rounding."""
    targets = linear(PARAMS, INPUTS)
    problem = make(criterion=lambda f, y: jnp.sum((f - y) ** 2, axis=1), targets=targets)
    check_problem(problem, PARAMS)


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        ("tanh", r"params\['layer'\]\[1\] is of type str; keep only .*equinox.partition"),
        (jnp.tanh, "is of type PjitFunction; keep only"),
        (0.5, "is of type float; keep only"),
        (jnp.arange(3), r"params\['layer'\]\[1\] is an array of int64; keep only"),
        (np.ones(3, bool), "is an array of bool; keep only"),
        (jnp.ones(3, complex), "is an array of complex128; keep only"),
        (jax.random.key(0), "is an array of key<fry>; keep only"),
        (
            jnp.ones(3, jnp.float32),
            r"params\['layer'\]\[0\] is an array of float64 and params\['layer'\]\[1\] one of "
            r"float32; expected one type: convert",
        ),
    ],
)
def test_leaves_that_are_no_parameters_are_named(leaf, found):
    with pytest.raises(DataError, match=found):
        check_problem(make(), with_leaf(leaf))


def test_parameters_without_leaves_and_of_few_digits_are_refused():
    with pytest.raises(DataError, match="params have no leaves; expected floating"):
        check_parameters({"layer": [None, ()]})
    few = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    with pytest.raises(DataError, match="params are arrays of bfloat16; expected float32 or"):
        check_parameters(few)


class Unhashable:
    """A model that is an object of arrays."""

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, params, inputs):
        return linear(params, inputs)


@pytest.mark.parametrize("name", ["apply", "criterion", "example_weights", "parameter_loss"])
def test_functions_that_cannot_be_hashed_are_refused(name):
    with pytest.raises(ConfigError, match=f"{name} is a Unhashable that cannot be hashed"):
        check_problem(make(**{name: Unhashable()}), PARAMS)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"apply": lambda p, x: (linear(p, x), {})},
            "apply gives a tuple; expected one array: return the outputs alone",
        ),
        (
            {"apply": lambda p, x: linear(p, x)[:5]},
            r"outputs of shape \(5, 3\) for 6 examples; expected \(6, ...\)",
        ),
        ({"apply": lambda p, x: jnp.sum(linear(p, x))}, r"outputs of shape \(\) for 6"),
        (
            {"targets": LABELS[:5]},
            r"outputs of shape \(6, 3\) for 5 examples; expected \(5, ...\)",
        ),
        (
            {"criterion": lambda f, y: jnp.mean(cross_entropy(f, y))},
            r"losses of shape \(\) for 6 examples; expected \(6,\): one loss for each",
        ),
        (
            {"apply": lambda p, x: linear(p, x)[:, :1], "criterion": lambda f, y: (f - y) ** 2},
            r"losses of shape \(6, 6\) for outputs of shape \(6, 1\); expected outputs and tar",
        ),
        (
            {"example_weights": lambda step, y: jnp.ones((6, 1))},
            r"weights of shape \(6, 1\) for losses of shape \(6,\); expected weights that broad",
        ),
        ({"example_weights": lambda step, y: jnp.ones(3)}, r"weights of shape \(3,\) for losses"),
        (
            {"parameter_loss": lambda p, step: p["layer"][1] ** 2},
            r"the loss has shape \(3,\); expected a scalar",
        ),
        (
            {"parameter_loss": lambda p, step: jnp.log(-1.0 - step)},
            "the loss at step 4 is nan; expected a finite number",
        ),
        (
            {"parameter_loss": lambda p, step: jnp.linalg.norm(0 * p["layer"][1])},
            r"the gradient with respect to params\['layer'\]\[1\] is not finite; expected a loss",
        ),
    ],
)
def test_wrong_shapes_and_values_are_named(changes, found):
    with pytest.raises(DataError, match=found):
        check_problem(make(**changes), PARAMS, 4)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (lambda p, step: p["layer"][1] ** 2, r"the loss has shape \(3,\); expected a scalar"),
        (lambda p, step: jnp.inf * jnp.sum(p["layer"][1] ** 2), "the loss at step 0 is inf"),
    ],
)
def test_a_loss_alone_is_a_finite_scalar(loss, found):
    with pytest.raises(DataError, match=found):
        check_problem(Problem.from_loss(loss), PARAMS)


GLOBAL = {"count": itertools.count(), "key": jax.random.key(1)}


def numpy_noise(shape):
    return np.random.default_rng().normal(size=shape)


def counted(shape):
    return jnp.full(shape, 0.1 * next(GLOBAL["count"]))


def global_key(shape):
    GLOBAL["key"], key = jax.random.split(GLOBAL["key"])
    return jax.random.normal(key, shape)


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("noise", [numpy_noise, counted, global_key])
def test_a_model_or_loss_that_changes_from_call_to_call_is_found_out(noise, size):
    def noisy(params, inputs):
        return linear(params, inputs) + size * noise((len(inputs), 3))

    with pytest.raises(ConfigError, match=r"two evaluations .* differ; expected a deterministic"):
        check_problem(make(noisy), PARAMS)
    problem = Problem.from_loss(lambda p, step: jnp.sum(p["layer"][1] ** 2 * (1 + size * noise(3))))
    with pytest.raises(ConfigError, match=r"two evaluations .* differ"):
        check_problem(problem, PARAMS)


def test_noise_in_few_of_many_examples_is_found_out():
    """Their mean hardly sees it."""

    def noisy(params, inputs):
        return linear(params, inputs).at[0, 0].add(1e-7 * np.random.default_rng().normal())

    with pytest.raises(ConfigError, match=r"two evaluations .* differ"):
        check_problem(make(noisy), PARAMS)


def test_noise_that_was_drawn_when_jax_traced_the_model_is_found_out():
    """Each shape of the inputs has noise of its own."""

    @jax.jit
    def noisy(params, inputs):
        return linear(params, inputs) + numpy_noise((1, 3))

    with pytest.raises(ConfigError, match="outputs of an example change with the other examples"):
        check_problem(make(noisy), PARAMS)


def test_a_model_that_is_another_once_it_is_compiled_is_found_out():
    def apply(params, inputs):
        traced = isinstance(params["layer"][0], jax.core.Tracer)
        return linear(params, inputs) * (1.01 if traced else 1)

    with pytest.raises(ConfigError, match="other values once it is compiled; expected a determin"):
        check_problem(make(apply), PARAMS)


@jax.custom_vjp
def mended(x):
    return x


mended.defvjp(lambda x: (x, None), lambda _, slope: (slope[:1],))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"apply": lambda p, x: x @ p["weight"]},
            r"^apply\(params, inputs\) fails: KeyError: 'weight'$",
        ),
        (
            {"criterion": lambda f, y: cross_entropy(f, y[:, None])},
            r"^criterion\(outputs, targets\) fails: ",
        ),
        (
            {"example_weights": lambda step: jnp.ones(6)},
            r"^example_weights\(step, targets\) fails: TypeError",
        ),
        ({"parameter_loss": lambda p, step: p["w"]}, "^the loss fails: KeyError: 'w'$"),
        (
            {"example_weights": lambda step, y: jnp.ones(6) if step > 3 else 2 * jnp.ones(6)},
            "^the loss, compiled by JAX, fails: TracerBoolConversionError: ",
        ),
        (
            {"apply": lambda p, x: jnp.asarray(np.asarray(x) @ np.asarray(p["layer"][0]))},
            "^the loss, compiled by JAX, fails: TracerArrayConversionError: ",
        ),
        (
            {"apply": lambda p, x: linear({"layer": jax.tree.map(mended, p["layer"])}, x)},
            "^the loss, compiled by JAX, fails: ",
        ),
        (
            {"apply": lambda p, x: linear(p, x.reshape(6, 4))},
            r"^apply\(params, inputs\) of one example fails: TypeError: ",
        ),
    ],
)
def test_a_function_that_fails_is_told_in_one_line(changes, found):
    with pytest.raises(ConfigError, match=found) as caught:
        check_problem(make(**changes), PARAMS)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None


def normalised(params, inputs):
    """Batch norm as in training: by the statistics of the examples at hand."""
    outputs = linear(params, inputs)
    return outputs / jnp.sqrt(jnp.var(outputs, axis=0) + 1e-3)


def test_outputs_that_depend_on_the_other_examples_are_allowed_when_asked_for():
    with pytest.raises(ConfigError, match="change with the other examples, as under batch norm"):
        check_problem(make(normalised), PARAMS)
    check_problem(make(normalised), PARAMS, independent=False)


def test_an_error_for_the_user_is_passed_on_as_it_is():
    def apply(params, inputs):
        raise ConfigError("switch dropout off")

    with pytest.raises(ConfigError, match=r"^switch dropout off$"):
        check_problem(make(apply), PARAMS)
