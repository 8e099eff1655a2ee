import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import CRITERIA, ClassWeights, cross_entropy
from dlf_dynamics.operators import ggn, hessian, remainder
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCHEDULE = Triangle(3, 6.0, 8)
RNG = np.random.default_rng(2)
INPUTS = RNG.normal(size=(9, 2))
LABELS = np.array([0, 1, 2, 2, 1, 0, 2, 2, 1])
PARAMS = {"weight": jnp.asarray(RNG.normal(size=(2, 3))), "bias": jnp.asarray(RNG.normal(size=3))}


def linear(params, inputs):
    return inputs @ params["weight"] + params["bias"]


def make(loss="cross-entropy"):
    return Problem(
        linear,
        CRITERIA[loss],
        jnp.asarray(INPUTS),
        jnp.asarray(LABELS),
        ClassWeights(SCHEDULE, per_output=loss == "squared-error-per-output"),
    )


def by_hand(loss, step, *, static=False):
    """The weighted loss as a loop over examples and outputs."""
    weight, bias = np.asarray(PARAMS["weight"]), np.asarray(PARAMS["bias"])
    gamma = [1.0] * 3 if static else [float(g) for g in SCHEDULE(step)]
    total = 0.0
    for x, label in zip(INPUTS, LABELS, strict=True):
        outputs = [x[0] * weight[0, i] + x[1] * weight[1, i] + bias[i] for i in range(3)]
        if loss == "cross-entropy":
            log_sum = math.log(sum(math.exp(value) for value in outputs))
            total += gamma[label] * (log_sum - outputs[label])
        else:
            errors = [(outputs[i] - (i == label)) ** 2 for i in range(3)]
            per_output = loss == "squared-error-per-output"
            total += sum(gamma[i if per_output else label] * errors[i] for i in range(3))
    return total / len(LABELS)


@pytest.mark.parametrize("step", [0, 3, 4, 9, 21])
@pytest.mark.parametrize("loss", CRITERIA)
def test_the_objective_is_the_weighted_mean_over_the_examples(loss, step):
    objective = make(loss).objective(PARAMS, step)
    assert float(objective) == pytest.approx(by_hand(loss, step), rel=1e-13)


@pytest.mark.parametrize("loss", CRITERIA)
def test_the_static_objective_has_all_weights_1(loss):
    problem = make(loss)
    expected = pytest.approx(by_hand(loss, 3, static=True), rel=1e-13)
    assert float(problem.static_objective(PARAMS, 3)) == expected
    assert float(problem.static().objective(PARAMS, 3)) == expected
    assert float(replace(problem, example_weights=None).objective(PARAMS, 3)) == expected
    assert float(problem.objective(PARAMS, 3)) != expected


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("loss", CRITERIA)
def test_the_parts_of_the_classes_sum_to_the_whole(loss, weighted):
    problem = make(loss) if weighted else make(loss).static()
    parts = [float(problem.of_class(label).objective(PARAMS, 3)) for label in range(3)]
    assert sum(parts) == pytest.approx(by_hand(loss, 3, static=not weighted), rel=1e-13)
    assert min(parts) > 0


@pytest.mark.parametrize("loss", CRITERIA)
def test_the_part_of_a_class_is_due_to_its_examples_alone(loss):
    problem = make(loss)
    ones = jnp.asarray(np.flatnonzero(LABELS == 1))
    alone = problem.take(ones).objective(PARAMS, 3) * len(ones) / len(LABELS)
    part = problem.of_class(1)
    assert float(part.objective(PARAMS, 3)) == pytest.approx(float(alone), rel=1e-13)
    assert float(problem.of_class(7).objective(PARAMS, 3)) == 0
    # It stays the part of the class when the weights are taken away afterwards.
    static = problem.static().of_class(1).objective(PARAMS, 3)
    assert float(part.static().objective(PARAMS, 3)) == float(static)
    assert float(part.static_objective(PARAMS)) == float(static)


def test_the_parts_of_a_class_share_one_compilation():
    objective = jax.jit(lambda problem, params: problem.objective(params, 3))
    problem = make()
    for label in (1, 2, 1, np.int64(2)):
        objective(problem.of_class(label), PARAMS)
    assert objective._cache_size() == 2
    criteria = {problem.of_class(label).criterion for label in (1, 2, 1)}
    assert len(criteria) == 2


def test_an_infinite_loss_of_another_class_leaves_the_part_finite():
    problem = replace(
        make(), criterion=lambda outputs, targets: jnp.where(targets == 0, jnp.inf, targets)
    )
    assert float(problem.static().of_class(2).objective(PARAMS, 0)) == pytest.approx(8 / 9)


@pytest.mark.parametrize("loss", CRITERIA)
def test_the_loss_of_the_outputs_is_the_objective(loss):
    problem = make(loss)
    found = float(problem.loss(problem.outputs(PARAMS), 3))
    assert found == pytest.approx(by_hand(loss, 3), rel=1e-13)


@pytest.mark.parametrize("loss", CRITERIA)
def test_one_pass_gives_loss_static_loss_and_accuracy(loss):
    value, evaluation = make(loss).evaluate(PARAMS, 5)
    assert float(value) == pytest.approx(by_hand(loss, 5), rel=1e-13)
    assert float(evaluation.static_loss) == pytest.approx(by_hand(loss, 5, static=True), rel=1e-13)
    outputs = INPUTS @ np.asarray(PARAMS["weight"]) + np.asarray(PARAMS["bias"])
    hits = sum(int(np.argmax(row)) == label for row, label in zip(outputs, LABELS, strict=True))
    assert float(evaluation.accuracy) == pytest.approx(hits / 9, rel=1e-15)
    assert 0 < hits < 9


def test_examples_can_be_taken():
    part = make().take(jnp.array([7, 0]))
    assert np.array_equal(part.inputs, INPUTS[[7, 0]])
    assert part.targets.tolist() == [2, 0]


def test_a_flat_problem_is_the_same_function():
    problem = make()
    flat, vector = problem.ravel(PARAMS)
    assert vector.shape == (9,)
    expected = float(problem.objective(PARAMS, 3))
    assert float(flat.objective(vector, 3)) == pytest.approx(expected, rel=1e-15)
    # Leaves of a dictionary are in the order of their names.
    nudged = {**PARAMS, "bias": PARAMS["bias"].at[1].add(0.5)}
    found = float(flat.objective(vector.at[1].add(0.5), 3))
    assert found == pytest.approx(float(problem.objective(nudged, 3)), rel=1e-14)
    assert found != expected


def test_data_are_arguments_of_a_compiled_function():
    traces = []

    def counting(outputs, targets):
        traces.append(outputs.shape)
        return cross_entropy(outputs, targets)

    problem = replace(make(), criterion=counting)
    other = replace(problem, inputs=2 * problem.inputs)
    compiled = jax.jit(lambda problem, params, step: problem.objective(params, step))
    values = [float(compiled(p, PARAMS, step)) for p in (problem, other) for step in (0, 3, 4)]
    assert len(traces) == 1
    eager = [float(p.objective(PARAMS, step)) for p in (problem, other) for step in (0, 3, 4)]
    assert values == pytest.approx(eager, rel=1e-13)
    assert len(set(eager)) == 6


def test_float32_parameters_give_a_float32_loss_under_float64_weights():
    problem = replace(make(), inputs=jnp.asarray(INPUTS, jnp.float32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), PARAMS)
    assert problem.objective(params, 3).dtype == jnp.float32


DECAY = 0.3


def decayed():
    """Softmax regression with weight decay inside the loss."""
    return replace(
        make(), parameter_loss=lambda params, step: DECAY / 2 * jnp.sum(params["weight"] ** 2)
    )


def test_a_loss_of_the_parameters_is_added_once_to_the_weighted_and_to_the_static_loss():
    penalty = DECAY / 2 * float(np.sum(np.asarray(PARAMS["weight"]) ** 2))
    problem, plain = decayed(), make()
    for found, expected in (
        (problem.objective(PARAMS, 3), plain.objective(PARAMS, 3)),
        (problem.static_objective(PARAMS, 3), plain.static_objective(PARAMS, 3)),
        (
            problem.take(jnp.arange(4)).objective(PARAMS, 3),
            plain.take(jnp.arange(4)).objective(PARAMS, 3),
        ),
        (problem.evaluate(PARAMS, 3)[0], plain.evaluate(PARAMS, 3)[0]),
        (problem.evaluate(PARAMS, 3)[1].static_loss, plain.evaluate(PARAMS, 3)[1].static_loss),
    ):
        assert float(found) == pytest.approx(float(expected) + penalty, rel=1e-13)
    assert float(problem.of_class(1).objective(PARAMS, 3)) == float(
        plain.of_class(1).objective(PARAMS, 3)
    )


@pytest.mark.parametrize("batch_size", [None, 4])
def test_hessian_and_ggn_have_the_curvature_of_a_loss_of_the_parameters_in_full(batch_size):
    flat, vector = decayed().ravel(PARAMS)
    dense = jax.hessian(lambda v: make().ravel(PARAMS)[0].objective(v, 3))(vector)
    is_weight = np.arange(len(vector)) >= 3  # the bias comes first
    expected = np.asarray(dense) + DECAY * np.diag(is_weight)
    # Softmax regression is linear in its parameters: Hessian and GGN are the same.
    for operator in (hessian, ggn):
        matvec = operator(flat, vector, 3, batch_size=batch_size)
        found = jax.lax.map(matvec, jnp.eye(len(vector)))
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_problem_of_a_loss_alone_has_no_outputs():
    problem = Problem.from_loss(lambda params, step: jnp.sum(params["weight"] ** 2) * step)
    assert not problem.has_outputs
    assert problem.num_examples == 0
    expected = 2 * float(np.sum(np.asarray(PARAMS["weight"]) ** 2))
    flat, vector = problem.ravel(PARAMS)
    assert float(flat.objective(vector, 2)) == pytest.approx(expected)
    loss, evaluation = flat.evaluate(vector, 2)
    assert float(loss) == float(evaluation.static_loss) == pytest.approx(expected)
    assert np.isnan(evaluation.accuracy)
    with pytest.raises(
        ConfigError, match=r"made by Problem\.from_loss and has no outputs; GGN, NTK"
    ):
        flat.outputs(vector)
    for operator in (ggn, remainder):
        with pytest.raises(ConfigError, match="has no outputs"):
            operator(flat, vector, 2)(vector)


def test_accuracy_is_told_of_labels_only():
    regression = replace(
        make().static(), criterion=lambda f, y: f[:, 0] - y, targets=jnp.asarray(LABELS, float)
    )
    assert np.isnan(regression.evaluate(PARAMS, 0)[1].accuracy)
    tokens = replace(
        make().static(),
        criterion=lambda f, y: f.sum((1, 2)),
        targets=jnp.zeros((9, 2), int),
        apply=lambda params, inputs: jnp.stack([linear(params, inputs)] * 2, axis=1),
    )
    hits = np.argmax(np.asarray(linear(PARAMS, INPUTS)), axis=1) == 0
    assert float(tokens.evaluate(PARAMS, 0)[1].accuracy) == pytest.approx(np.mean(hits))


def test_flat_problems_of_one_layout_are_equal_and_compile_once():
    traces = []

    @jax.jit
    def loss(problem, vector):
        traces.append(1)
        return problem.objective(vector, 0)

    problem = make()
    for scale in (1.0, 2.0, 3.0):
        flat, vector = problem.ravel(jax.tree.map(lambda leaf, s=scale: s * leaf, PARAMS))
        loss(flat, vector)
    assert len(traces) == 1


def network(params, inputs):
    return jnp.tanh(inputs @ params["weight"] + params["bias"]) @ jnp.array([1.0, -2.0, 0.5])


def nonlinear():
    targets = jnp.asarray(RNG.normal(size=9))
    return Problem(network, lambda f, y: (f - y) ** 2, jnp.asarray(INPUTS), targets)


@pytest.mark.parametrize("order", [1, 2])
def test_an_expansion_errs_by_the_next_power_of_the_distance(order):
    problem = nonlinear()
    expanded = problem.expanded(PARAMS, order)
    errors = []
    for size in (1e-2, 1e-3):
        moved = jax.tree.map(lambda leaf, s=size: leaf + s * jnp.sin(7 * leaf), PARAMS)
        difference = expanded.outputs(moved) - problem.outputs(moved)
        errors.append(float(jnp.max(jnp.abs(difference))))
    assert errors[0] / errors[1] == pytest.approx(10 ** (order + 1), rel=0.1)
    np.testing.assert_allclose(expanded.outputs(PARAMS), problem.outputs(PARAMS), rtol=1e-14)


def test_the_hessian_of_the_linearised_network_is_the_ggn_at_its_origin_everywhere():
    problem = nonlinear()
    flat, origin = problem.ravel(PARAMS)
    jac = jax.jacobian(flat.outputs)(origin)
    expected = 2 / 9 * np.asarray(jac).T @ np.asarray(jac)
    linear_flat, vector = problem.expanded(PARAMS, 1).ravel(PARAMS)
    for place in (vector, vector + 3.0):
        matvec = hessian(linear_flat, place, 0)
        found = np.stack([matvec(row) for row in jnp.eye(len(vector))])
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_quadratic_network_keeps_the_second_derivative_of_its_origin():
    problem = nonlinear()
    flat, origin = problem.expanded(PARAMS, 2).ravel(PARAMS)
    expected = jax.hessian(problem.ravel(PARAMS)[0].outputs)(origin)
    found = jax.hessian(flat.outputs)(origin + 0.7)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_expansion_of_another_order_is_refused():
    with pytest.raises(ValueError, match="order is 3; expected 1 or 2"):
        nonlinear().expanded(PARAMS, 3)
