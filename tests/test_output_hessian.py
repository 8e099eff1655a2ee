"""Hessians of the losses in the outputs, and Gauss-Newton matrices, against dense ones."""

import itertools
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import operators
from dlf_dynamics.checks import check_problem
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import (
    CRITERIA,
    ClassWeights,
    MeanOverPositions,
    cross_entropy,
    output_hessian,
    squared_error,
    squared_error_per_output,
)
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(8)
SUMMED = {"cross-entropy", "squared-error", "optax labels", "optax one-hot"}
OPTAX = {
    "optax labels": optax.softmax_cross_entropy_with_integer_labels,
    "optax one-hot": optax.softmax_cross_entropy,
    "optax squared error": optax.squared_error,
    "optax l2": optax.l2_loss,
}
KINDS = {
    **dict.fromkeys(CRITERIA, ("labels", "one-hot", "numbers")),
    "optax labels": ("labels",),
    **dict.fromkeys(["optax one-hot", "optax squared error", "optax l2"], ("one-hot", "numbers")),
}
CASES = [(name, kind) for name, kinds in KINDS.items() for kind in kinds]


def targets_of(kind, shape):
    labels = RNG.integers(3, size=shape)
    if kind == "labels":
        return jnp.asarray(labels)
    return jnp.asarray(np.eye(3)[labels] if kind == "one-hot" else RNG.uniform(size=(*shape, 3)))


def dense(loss, outputs):
    """The matrix by JAX, rows and columns in the order of the flattened outputs."""
    return jax.hessian(lambda f: loss(f.reshape(outputs.shape)))(outputs.reshape(-1))


def weighted_sum(criterion, targets, weights, outputs):
    return jnp.sum(weights * criterion(outputs, targets))


def assembled(product, outputs):
    identity = jnp.eye(outputs.size).reshape(-1, *outputs.shape)
    return jax.vmap(product)(identity).reshape(outputs.size, -1).T


@pytest.fixture(scope="module")
def output_hessians():
    """Found and expected ones of all cases, of weighted losses and of their means over positions.

    One program for all is compiled in the time of two.
    """
    rng, data = np.random.default_rng(9), {}
    for name, kind in CASES:
        outputs, targets = jnp.asarray(2 * rng.normal(size=(2, 2, 3))), targets_of(kind, (2, 2))
        shape = (2, 2, 3) if name not in SUMMED else (2, 2)
        data[f"{name}, {kind}"] = outputs, targets, jnp.asarray(rng.normal(size=shape))

    @jax.jit
    def both(data):
        pairs = {}
        for key, (outputs, targets, weights) in data.items():
            criterion = (CRITERIA | OPTAX)[key.split(", ")[0]]
            for which, losses, w in (
                ("losses", criterion, weights),
                ("means", MeanOverPositions(criterion), weights.reshape(2, -1)[:, 0]),
            ):
                found = assembled(output_hessian(losses, outputs, targets, w), outputs)
                total = partial(weighted_sum, losses, targets, w)
                pairs[f"{key}, {which}"] = found, dense(total, outputs)
        return pairs

    return both(data)


@pytest.mark.parametrize("which", ["losses", "means"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_closed_forms_are_the_hessians_of_the_losses(name, kind, which, output_hessians):
    found, expected = output_hessians[f"{name}, {kind}, {which}"]
    assert np.max(np.abs(expected)) > 1e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", CRITERIA)
def test_labels_and_their_one_hot_rows_have_the_same_losses(name):
    outputs, labels = jnp.asarray(RNG.normal(size=(3, 2, 3))), targets_of("labels", (3, 2))
    losses = CRITERIA[name](outputs, labels)
    assert losses.shape == ((3, 2, 3) if name.endswith("per-output") else (3, 2))
    again = CRITERIA[name](outputs, jnp.asarray(np.eye(3)[labels]))
    np.testing.assert_allclose(again, losses, rtol=1e-14)
    of_one = CRITERIA[name](outputs[1], labels[1])
    np.testing.assert_allclose(of_one, losses[1], rtol=1e-14)
    mean = MeanOverPositions(CRITERIA[name])(outputs, labels)
    np.testing.assert_allclose(mean, losses.reshape(3, -1).mean(axis=1), rtol=1e-14)


def test_a_criterion_of_ones_own_is_derived_or_says_itself():
    outputs, targets = jnp.asarray(RNG.normal(size=(4, 3))), jnp.zeros((4, 3))
    derived = output_hessian(lambda f, y: jnp.sum(f**4, axis=1), outputs, targets, jnp.ones(4))
    expected = np.diag(12 * np.asarray(outputs).ravel() ** 2)
    np.testing.assert_allclose(assembled(derived, outputs), expected, rtol=1e-14)

    @dataclass(frozen=True)
    class Own:
        def __call__(self, outputs, targets):
            return jnp.sum(outputs, axis=1)

        def output_hessian(self, outputs, targets, weights):
            return lambda vector: 7 * vector

    problem = Problem(lambda w, x: x * w, Own(), jnp.ones((4, 3)), targets)
    found = operators.ggn(problem, jnp.ones(3), 0)(jnp.array([1.0, 0.0, 0.0]))
    assert found.tolist() == [28.0, 0.0, 0.0]


def test_a_saturated_softmax_keeps_its_digits_in_float32():
    outputs = np.array([[30.0, 0.0, 1.0], [0.0, 1e3, -1e3], [20.0, 2.0, -5.0]])
    vector, weights = RNG.normal(size=(3, 3)), jnp.ones(3)
    labels = jnp.array([0, 1, 0])
    product = output_hessian(cross_entropy, jnp.float32(outputs), labels, jnp.float32(weights))
    found = np.asarray(product(jnp.float32(vector)))
    assert np.all(np.isfinite(found))
    assert found[1].tolist() == [0, 0, 0]
    p = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for row in (0, 2):
        # Σ_j p_i p_j (v_i - v_j), in which nothing cancels.
        pairs = np.outer(p[row], p[row]) * (vector[row][:, None] - vector[row])
        expected = pairs.sum(axis=1)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)  # of exp


def test_outputs_that_are_not_finite_are_not_hidden():
    outputs = jnp.array([[jnp.nan, 0.0], [0.0, 0.0]])
    found = output_hessian(cross_entropy, outputs, jnp.array([0, 1]), jnp.ones(2))(jnp.ones((2, 2)))
    assert np.isnan(found).tolist() == [[True, True], [False, False]]


# A language model in small: outputs (examples, positions, letters).
TOKENS = RNG.integers(3, size=(5, 5))
SCHEDULE = Triangle(3, 20.0, 12)


def language_model(params, tokens):
    hidden = jnp.tanh(params["embed"][tokens] + jnp.cumsum(params["embed"][tokens], axis=1))
    return hidden @ params["out"]


PARAMS = {
    "embed": jnp.asarray(RNG.normal(size=(3, 2))),
    "out": jnp.asarray(RNG.normal(size=(2, 3))),
}


def make(criterion, **changes):
    problem = Problem(language_model, criterion, jnp.asarray(TOKENS), jnp.asarray(TOKENS[::-1]))
    return replace(problem, **changes)


def by_example(step, targets):
    """A weight of each example at a step."""
    return 1.0 + step * targets[:, 0]


def decay(params, step):
    return 0.3 * jnp.sum(params["out"] ** 2)


PROBLEMS = {
    "sum over positions": make(cross_entropy),
    "mean over positions": make(MeanOverPositions(cross_entropy)),
    "class weights": make(cross_entropy, example_weights=ClassWeights(SCHEDULE)),
    "weights of the outputs": make(
        squared_error_per_output, example_weights=ClassWeights(SCHEDULE, per_output=True)
    ),
    "one letter's part": make(squared_error, example_weights=ClassWeights(SCHEDULE)).of_class(1),
    "one letter's part, optax": make(OPTAX["optax labels"]).of_class(2),
    "weights of examples at each step": make(
        MeanOverPositions(cross_entropy), example_weights=by_example
    ),
    "decay in the loss": make(MeanOverPositions(squared_error), parameter_loss=decay),
    "one-hot": make(cross_entropy, targets=jnp.asarray(np.eye(3)[TOKENS[::-1]])),
}


def ggn_by_definition(problem, params, step):
    outputs = problem.outputs(params)
    jacobian = jax.jacfwd(problem.outputs)(params).reshape(outputs.size, -1)
    middle = dense(lambda f: problem.loss(f, step), outputs)
    penalty = jax.hessian(problem.penalty)(params, step)
    return jacobian.T @ middle @ jacobian + penalty


@pytest.fixture(scope="module")
def ggns():
    """By definition, by products with all examples, and in batches that leave one over."""

    @jax.jit
    def all_three(problems, params, step):
        return {
            name: (
                ggn_by_definition(problem, params, step),
                *(
                    jax.vmap(operators.ggn(problem, params, step, batch_size=size))(
                        jnp.eye(len(params))
                    ).T
                    for size in (None, 2)
                ),
            )
            for name, problem in problems.items()
        }

    flat = {name: problem.ravel(PARAMS) for name, problem in PROBLEMS.items()}
    problems = {name: problem for name, (problem, _) in flat.items()}
    params = next(iter(flat.values()))[1]
    return {step: all_three(problems, params, step) for step in (0, 4)}


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gauss_newton_matrix_of_a_language_model(name, step, ggns):
    expected, *found = ggns[step][name]
    assert np.max(np.abs(expected)) > 1e-2
    for matrix in found:
        np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_a_language_model_goes_through_the_whole_problem():
    problem = make(cross_entropy, example_weights=ClassWeights(SCHEDULE))
    check_problem(problem, PARAMS, independent=True)  # as many positions as examples
    outputs = np.asarray(problem.outputs(PARAMS))
    loss, evaluation = problem.evaluate(PARAMS, 4)
    hits = np.argmax(outputs, axis=-1) == TOKENS[::-1]
    assert float(evaluation.accuracy) == pytest.approx(hits.mean())
    log_p = outputs - np.log(np.exp(outputs).sum(axis=-1, keepdims=True))
    losses = -np.take_along_axis(log_p, TOKENS[::-1][..., None], axis=-1)[..., 0]
    assert float(evaluation.static_loss) == pytest.approx(losses.sum() / 5, rel=1e-13)
    weighted = (losses * np.asarray(SCHEDULE(4))[TOKENS[::-1]]).sum() / 5
    assert float(loss) == pytest.approx(weighted, rel=1e-13)
    parts = [float(problem.of_class(c).objective(PARAMS, 4)) for c in range(3)]
    assert sum(parts) == pytest.approx(weighted, rel=1e-13)


def test_a_class_needs_a_label_for_each_loss():
    for problem in (make(MeanOverPositions(cross_entropy)), PROBLEMS["one-hot"]):
        with pytest.raises(
            ConfigError, match=r"^the targets have shape .* one label for each loss"
        ):
            problem.of_class(1).objective(PARAMS, 0)


def test_a_class_may_have_its_labels_in_a_column():
    labels = jnp.array([[0], [1], [1]])
    problem = Problem(lambda w, x: x * w, lambda f, y: f**2, jnp.arange(3.0), labels)
    assert float(problem.of_class(1).objective(2.0, 0)) == pytest.approx((4 + 16) / 3)


def test_criteria_that_are_equal_share_compilations():
    assert MeanOverPositions(cross_entropy) == MeanOverPositions(cross_entropy)
    assert (
        len({MeanOverPositions(c) for c in itertools.chain(CRITERIA.values(), [cross_entropy])})
        == 3
    )
