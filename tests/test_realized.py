"""The realized edge against closed forms, and against NumPy's own network in float64."""

import re
from dataclasses import replace
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import realized_edge
from dlf_dynamics.assembly import build, initial_parameters
from dlf_dynamics.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.dynamics import SCALARS, advance
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.losses import (
    MeanOverPositions,
    cross_entropy,
    squared_error,
    squared_error_per_output,
)
from dlf_dynamics.problem import Problem
from dlf_dynamics.realized import loss_change

pytestmark = pytest.mark.usefixtures("quick_compilation")

UNITS, CLASSES = 12, 3
CONFIG = RunConfig(
    data=DataConfig(points_per_class=20),
    model=ModelConfig(widths=(UNITS,), activation="tanh"),
    schedule=ScheduleConfig(amplitude=8.0, period=30),
    optimizer=OptimizerConfig(learning_rate=0.8),
    steps=90,
    edge_every=1,
)
DATASET = load_dataset(CONFIG.data)
COLUMNS = {name: place for place, name in enumerate(SCALARS)}


def made(config, optimizer=None, dataset=DATASET):
    """Parameters before each step, rows, and the examples that each step took."""
    tree = initial_parameters(config, dataset)
    layout = Layout.of(tree)
    dynamics = replace(build(config, dataset), edge_every=config.edge_every)
    if optimizer is not None:
        dynamics = replace(dynamics, optimizer=optimizer)
    state = dynamics.initial_state(layout.flatten(tree))
    counts = np.ones(config.steps, int)
    _, snapshots, rows = advance(dynamics, state, counts, counts < 0, capacity=1)
    numbered = replace(dynamics.problem, inputs=jnp.arange(dynamics.problem.num_examples))
    numbered = replace(dynamics, problem=numbered)
    taken = jax.vmap(lambda t: numbered.problem_at(t).inputs)(jnp.arange(config.steps))
    return layout, np.asarray(snapshots.params), np.asarray(rows)[:, 0], np.asarray(taken)


class Network:
    """Loss and gradient of the network in NumPy, in float64."""

    def __init__(self, layout, config, dataset=DATASET):
        self.layout, self.loss, self.dataset = layout, config.loss, dataset

    def __call__(self, vector, weights, taken):
        vector = np.asarray(vector, float)
        inputs = np.asarray(self.dataset.inputs, float)[taken]
        labels = np.asarray(self.dataset.labels)[taken]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.layout.unflatten(vector))]
        (b1, w1), (b2, w2) = [sorted(pair, key=np.ndim) for pair in (leaves[:2], leaves[2:])]
        hidden = np.tanh(inputs @ w1 + b1)
        outputs = hidden @ w2 + b2
        rows, count = np.arange(len(labels)), len(labels)
        one_hot = np.eye(CLASSES)[labels]
        if self.loss.name == "cross-entropy":
            ahead = outputs - outputs[rows, labels][:, None]
            top = ahead.max(axis=1)
            # log1p of the others' share: this is exact where the softmax saturates.
            others = np.where(one_hot > 0, 0, np.exp(ahead - top[:, None])).sum(axis=1)
            losses = np.where(top == 0, np.log1p(others), top + np.log(others + np.exp(-top)))
            odds = np.exp(ahead - top[:, None])
            shares = odds / odds.sum(axis=1, keepdims=True)
            slope = np.where(one_hot > 0, 0, shares)
            slope -= one_hot * slope.sum(axis=1, keepdims=True)
            slope, each = weights[labels][:, None] * slope, weights[labels] * losses
        elif self.loss.name == "squared-error":
            missed = outputs - one_hot
            each = weights[labels] * (missed**2).sum(axis=1)
            slope = weights[labels][:, None] * 2 * missed
        else:
            missed = outputs - one_hot
            each = ((missed**2) * weights).sum(axis=1)
            slope = 2 * missed * weights
        slope = slope / count
        back = (slope @ w2.T) * (1 - hidden**2)
        found = {"b1": back.sum(axis=0), "w1": inputs.T @ back}
        found |= {"b2": slope.sum(axis=0), "w2": hidden.T @ slope}
        gradient = self.flat(leaves, (b1, w1, b2, w2), found)
        return (
            float(np.sum(each) / count + self.loss.l2 / 2 * vector @ vector),
            gradient + self.loss.l2 * vector,
        )

    @staticmethod
    def flat(leaves, parts, found):
        """In the order of the leaves."""
        names = dict(zip(map(id, parts), ("b1", "w1", "b2", "w2"), strict=True))
        return np.concatenate([found[names[id(leaf)]].ravel() for leaf in leaves])


def expected(config, layout, params, rows, taken, dataset=DATASET):
    """ζ of all steps but the last from two losses in NumPy; NaN where it does not go downhill."""
    network, found = Network(layout, config, dataset), []
    for t in range(len(params) - 1):
        weights = np.asarray(rows[t, len(SCALARS) :], float)
        before, gradient = network(params[t], weights, taken[t])
        after, _ = network(params[t + 1], weights, taken[t])
        slope = gradient @ (np.asarray(params[t + 1], float) - np.asarray(params[t], float))
        found.append((1 + (after - before) / -slope if slope < 0 else np.nan, slope, before))
    return np.array(found)


CASES = {
    "full batch": (CONFIG, None),
    "mini-batches": (replace(CONFIG, batch_size=7), None),
    "heavy ball": (
        replace(CONFIG, optimizer=OptimizerConfig("heavy-ball", 0.2), batch_size=25),
        None,
    ),
    "adam": (replace(CONFIG, optimizer=OptimizerConfig("adam", 0.05)), None),
    "adamw on batches": (
        replace(CONFIG, optimizer=OptimizerConfig("adamw", 0.05, weight_decay=0.1), batch_size=10),
        None,
    ),
    "lion": (CONFIG, optax.lion(0.01)),
    "squared error with l2": (
        replace(
            CONFIG, loss=LossConfig("squared-error", 0.01), optimizer=OptimizerConfig("gd", 0.1)
        ),
        None,
    ),
    "squared error per output": (
        replace(
            CONFIG,
            loss=LossConfig("squared-error-per-output"),
            optimizer=OptimizerConfig("gd", 0.1),
        ),
        None,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_numpy_finds_from_the_iterates(case):
    config, optimizer = CASES[case]
    layout, params, rows, taken = made(config, optimizer)
    found = rows[:-1, COLUMNS["realized_edge"]]
    error = rows[:-1, COLUMNS["realized_edge_error"]]
    wanted = expected(config, layout, params, rows, taken)[:, 0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_array_equal(np.isposinf(error) & np.isnan(found), np.isnan(wanted))
    known = np.isfinite(wanted)
    assert known.sum() > 50
    assert np.nanstd(wanted) > 1e-3
    np.testing.assert_allclose(found[known], wanted[known], rtol=0, atol=1e-9)
    assert np.all(error[known] < 1e-8)


def test_in_float32_at_small_loss_the_true_value_lies_within_the_error():
    config = replace(
        CONFIG,
        dtype="float32",
        data=DataConfig("blobs", points_per_class=20, noise=0.1),
        optimizer=OptimizerConfig("adam", 0.05),
        steps=600,
    )
    dataset = load_dataset(config.data)
    with jax.enable_x64(False):
        layout, params, rows, taken = made(config, None, dataset)
    wanted, slope, loss = expected(config, layout, params, rows, taken, dataset).T
    found = rows[:-1, COLUMNS["realized_edge"]].astype(float)
    error = rows[:-1, COLUMNS["realized_edge_error"]].astype(float)
    known = np.isfinite(wanted) & np.isfinite(error)
    assert loss[-1] < 1e-3
    assert known.sum() > 400
    off = np.abs(found - wanted)[known]
    assert np.all(off <= error[known])
    naive = np.finfo(np.float32).eps * np.abs(loss / slope)[known]
    assert np.mean(off > naive) > 0.5
    assert np.median(error[known]) < 0.1  # and so it still tells something


def test_saturated_units_do_not_change_the_side():
    """In float32 derivatives of a saturated tanh have few digits; the losses decide alone."""
    config = replace(CONFIG, dtype="float32", optimizer=OptimizerConfig("gd", 5.0), steps=400)
    with jax.enable_x64(False):
        layout, params, rows, taken = made(config)
    wanted = expected(config, layout, params, rows, taken)[:, 0]
    found = rows[:-1, COLUMNS["realized_edge"]].astype(float)
    error = rows[:-1, COLUMNS["realized_edge_error"]].astype(float)
    sure = np.isfinite(wanted) & (np.abs(found - 1) > error)
    assert sure.sum() > 200
    assert np.any(wanted[sure] > 1)
    np.testing.assert_array_equal(found[sure] > 1, wanted[sure] > 1)


CURVATURES = jnp.array([3.0, 1.0, 0.2])
QUADRATIC = Problem.from_loss(lambda x, step: jnp.sum(CURVATURES * x**2) / 2)


def test_the_closed_form_of_a_quadratic():
    x = jnp.array([1.0, -2.0, 0.5])
    gradient = CURVATURES * x
    found = realized_edge(QUADRATIC, x, -0.5 * gradient)
    curved, length = float(jnp.sum(CURVATURES * gradient**2)), float(gradient @ gradient)
    for value in (
        found.value,
        found.quadratic,
        found.gradient_quadratic(0.5),
        0.5 * curved / (2 * length),
    ):
        assert value == pytest.approx(0.5957340507, abs=1e-10)
    assert found.update_sharpness == pytest.approx(curved / length, rel=1e-14)
    assert found.loss_after - found.loss_before == pytest.approx(
        (found.value - 1) * -found.slope, rel=1e-12
    )
    assert "lowered" in str(found)


def test_it_is_the_mean_curvature_on_the_way():
    """½ ΔᵀH̄Δ / (-gᵀΔ) with H̄ = ∫ 2(1 - t) H(θ + tΔ) dt, by Gauss-Legendre quadrature."""
    problem = Problem(
        lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"],
        cross_entropy,
        jnp.linspace(-1, 1, 24).reshape(8, 3),
        jnp.arange(8) % 3,
        lambda step, labels: jnp.array([0.5, 1.0, 1.5])[labels] + 0 * step,
        lambda p, step: 0.05 * jnp.sum(p["in"] ** 4),
    )
    keys = jax.random.split(jax.random.key(3), 4)
    params = {"in": jax.random.normal(keys[0], (3, 4)), "out": jax.random.normal(keys[1], (4, 3))}
    flat, vector = problem.ravel(params)
    gradient = jax.grad(flat.objective)(vector, 2)
    noise = jax.random.normal(keys[2], vector.shape)
    update = -2.0 * gradient + 0.1 * noise
    layout = Layout.of(params)
    found = realized_edge(problem, params, layout.unflatten(update), 2)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    at, second = (nodes + 1) / 2, jax.jit(jax.hessian(flat.objective))
    on_the_way = np.array([second(vector + t * update, 2) for t in at])
    mean = np.tensordot(weights * (1 - at), on_the_way, axes=1)
    slope = float(gradient @ update)
    assert found.slope == pytest.approx(slope, rel=1e-12)
    curved = float(update @ mean @ update)
    assert found.value == pytest.approx(curved / (-2 * slope), abs=1e-9)
    uniform = np.tensordot(weights / 2, on_the_way, axes=1)
    assert abs(float(update @ uniform @ update) / (-2 * slope) - found.value) > 1e-3
    here = np.asarray(second(vector, 2))
    assert found.update_sharpness == pytest.approx(
        float(update @ here @ update / (update @ update)), rel=1e-10
    )
    assert found.gradient_sharpness == pytest.approx(
        float(gradient @ here @ gradient / (gradient @ gradient)), rel=1e-10
    )
    taken = realized_edge(problem.take(np.array([1, 4])), params, layout.unflatten(update), 2)
    assert abs(taken.loss_before - found.loss_before) > 1e-3


def test_on_an_orbit_of_period_two_it_alternates_around_one():
    """(x² - 1)²/4: x → x - ηx(x² - 1) has a stable orbit of period 2 at η = 1.2.

    Its points solve η²u² - η(2 + η)u + ... as x² = u; they are taken from 2,000 steps of the map.
    """
    problem, eta = Problem.from_loss(lambda x, step: jnp.sum((x**2 - 1) ** 2) / 4), 1.2
    x, values = 1.05, []
    for _ in range(2000):
        x -= eta * x * (x**2 - 1)
    for _ in range(6):
        gradient = x * (x**2 - 1)
        found = realized_edge(problem, jnp.array([x]), jnp.array([-eta * gradient]))
        after = x - eta * gradient
        by_hand = 1 + ((after**2 - 1) ** 2 - (x**2 - 1) ** 2) / 4 / (eta * gradient**2)
        assert found.value == pytest.approx(by_hand, abs=1e-12)
        values.append(found.value)
        x = after
    above = np.array(values) > 1
    assert above.tolist() in ([True, False] * 3, [False, True] * 3)
    # Every other step sees one half of it, every third one both.
    assert len(set(above[::2])) == 1
    assert len(set(above[::3])) == 2


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ([0.0, 0.0, 0.0], "-gᵀΔ is -?0, and the update does not go downhill"),
        ([1.0, 0.0, 0.0], "-gᵀΔ is -3, and the update does not go downhill"),
        ([-1e200, 0.0, 0.0], "the losses are not finite"),
    ],
)
def test_where_it_is_undefined_there_is_no_number(update, reason):
    found = realized_edge(QUADRATIC, jnp.array([1.0, -2.0, 0.5]), jnp.array(update))
    assert np.isnan(found.value)
    assert np.isnan(found.quadratic)
    assert found.error == np.inf
    assert re.fullmatch(reason, found.reason)
    assert str(found) == f"realized edge undefined: {found.reason}"


def test_an_update_of_another_form_is_refused():
    with pytest.raises(ConfigError, match="2 numbers in 1 leaves; expected the form"):
        realized_edge(QUADRATIC, jnp.ones(3), jnp.ones(2))


@pytest.mark.parametrize(
    ("criterion", "targets"),
    [
        (cross_entropy, "labels"),
        (cross_entropy, "soft"),
        (optax.softmax_cross_entropy_with_integer_labels, "labels"),
        (squared_error, "labels"),
        (lambda f, y: squared_error_per_output(f, y), "labels"),
        (squared_error_per_output, "labels"),
        (MeanOverPositions(cross_entropy), "positions"),
        (optax.l2_loss, "soft"),
    ],
)
def test_each_loss_changes_as_its_values_do(criterion, targets):
    """Large and small steps of the outputs, far into where exponentials overflow in float32."""
    keys = jax.random.split(jax.random.key(1), 3)
    shape = (6, 5, 4) if targets == "positions" else (6, 4)
    labels = jax.random.randint(keys[2], shape[:-1], 0, 4, "int32")
    targets = jax.nn.softmax(jax.random.normal(keys[2], shape)) if targets == "soft" else labels
    inputs = jnp.zeros((6, 1))
    weights = jnp.linspace(0.2, 2.0, 6)
    sized = lambda step, y: weights.reshape(-1, *[1] * (losses.ndim - 1))  # noqa: E731
    for scale in (1.0, 400.0):
        for size in (1e-6, 1e3):
            before = scale * jax.random.normal(keys[0], shape)
            moved = size * jax.random.normal(keys[1], shape)
            losses = criterion(before, targets)
            problem = Problem(
                lambda p, x: p.reshape(shape), criterion, inputs, targets, example_weights=sized
            )
            vector, after = before.ravel(), (before + moved).ravel()
            change = loss_change(problem, 0, vector, after)
            wide = [
                np.asarray(criterion(f, targets), np.longdouble) for f in (before, before + moved)
            ]
            terms = np.asarray(weights).reshape(-1, *[1] * (losses.ndim - 1)) * (wide[1] - wide[0])
            rough = 1e-15 * (1 + np.abs(before).max() + np.abs(moved).max()) ** 2 * losses.size
            assert float(change.value) == pytest.approx(
                float(terms.sum()) / len(losses), rel=1e-12, abs=float(rough)
            )
            with jax.enable_x64(False):
                single = jax.tree.map(
                    lambda leaf: jnp.asarray(leaf, "float32") if leaf.dtype == "float64" else leaf,
                    (problem, vector, after),
                )
                short = loss_change(single[0], 0, single[1], single[2])
            assert short.value.dtype == jnp.float32
            exact = loss_change(problem, 0, *(v.astype("float64") for v in single[1:]))
            eps = np.finfo(np.float32).eps
            assert abs(float(short.value) - float(exact.value)) <= eps * float(short.error)


def test_of_a_loss_alone_no_rounding_is_claimed_to_be_known():
    """In float32, |x|²/2 with large terms that cancel inside has ζ on the wrong side of 1."""
    far = jnp.linspace(300, 900, 5, dtype=jnp.float32)
    problem = Problem.from_loss(
        lambda x, step: jnp.sum((x + far) ** 2) / 2 - jnp.sum(x * far) - jnp.sum(far**2) / 2
    )
    generator = np.random.default_rng(0)
    wrong, found = [], None
    for _ in range(30):
        x = np.float32(0.1 * generator.normal(size=5))
        update = np.float32(-generator.uniform(1.5, 2.5) * x)
        found = realized_edge(problem, jnp.asarray(x), jnp.asarray(update))
        start, change = np.float64(x), np.float64(x + update) - np.float64(x)
        wrong.append((found.value > 1) != (change @ change > -2 * start @ change))
        assert np.isnan(found.error)
        assert "not known" in str(found)
    assert any(wrong)
    assert found is not None
    counts = EdgeCounts.of(np.array([found.value]), np.array([found.error]))
    assert (counts.evaluated, counts.without_error) == (1, 1)
    assert "what rounding can do not known at 1" in str(counts)


def _edge_in_60_digits(before, after):
    """ζ of the cross entropy of one example of class 0, as a function of its logits."""
    with localcontext() as context:
        context.prec = 60
        logits = [[Decimal(float(logit)) for logit in end] for end in (before, after)]
        powers = [(logit - logits[0][0]).exp() for logit in logits[0]]
        following = [(logit - logits[1][0]).exp() for logit in logits[1]]
        slopes = [power / sum(powers) for power in powers]
        slopes[0] -= 1
        slope = sum(s * (b - a) for s, a, b in zip(slopes, *logits, strict=True))
        return float(1 + (sum(following).ln() - sum(powers).ln()) / -slope)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [5, 14, 20, 36, 45])
def test_a_large_loss_that_falls_much_keeps_its_digits(dtype, lead):
    before = np.array([0.3, lead, 0.1], dtype)
    update = np.array([lead / 2 + 1, lead / 2 - 2, 0.2], dtype) - before
    inputs, labels = jnp.zeros((1, 1), dtype), jnp.zeros(1, int)
    problem = Problem(lambda p, x: p[None] + 0 * x, cross_entropy, inputs, labels)
    found = realized_edge(problem, jnp.asarray(before), jnp.asarray(update))
    expected = _edge_in_60_digits(before, before + update)
    assert abs(found.value - expected) <= found.error
    assert found.error < 1000 * np.finfo(dtype).eps
