"""Against all batches, one by one: dense maps of second moments that share no code with it."""

from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from dlf_dynamics.analysis import mean_square_stability, mean_square_threshold
from dlf_dynamics.analysis.stability.mean_square_bounds import (
    Noise,
    is_contracting,
    largest_ratio,
    noise_share,
)
from dlf_dynamics.analysis.stability.mean_square_factors import factors_of
from dlf_dynamics.analysis.stability.recursion import HeavyBall
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.losses import (
    ClassWeights,
    MeanOverPositions,
    WeightDecay,
    cross_entropy,
    squared_error,
)
from dlf_dynamics.problem import Problem

TIGHT = 4e-6
"""Width at which the stable end is 1e-6 below the threshold, relative."""

pytestmark = pytest.mark.usefixtures("quick_compilation")


def half_square(outputs, targets):
    return jnp.sum((outputs - targets) ** 2, axis=-1) / 2


def linear(params, inputs):
    return inputs @ params


def linear_problem(rows):
    """Curvatures Σ_o r rᵀ of the rows of each example: shape (examples, outputs, params)."""
    rows = jnp.asarray(rows, float)
    return Problem(linear, half_square, rows, jnp.zeros(rows.shape[:2]))


def curvatures_of(rows):
    return np.einsum("eop,eoq->epq", rows, rows)


def scalar_problem(*curvatures):
    return linear_problem(np.sqrt(np.asarray(curvatures, float))[:, None, None])


def tanh_network(params, inputs):
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
    return hidden @ params["out"]


def network(seed, examples=5, classes=3, width=1):
    drawn = np.random.default_rng(seed)
    params = {
        "in": jnp.asarray(drawn.standard_normal((2, width))),
        "bias": jnp.asarray(drawn.standard_normal(width)),
        "out": jnp.asarray(drawn.standard_normal((width, classes))),
    }
    return params, jnp.asarray(drawn.standard_normal((examples, 2))), np.arange(examples) % classes


@jax.jit
def ggn_of_one(problem, params, step):
    vector, unravel = ravel_pytree(params)
    outputs = lambda v: problem.apply(unravel(v), problem.inputs)  # noqa: E731
    loss = lambda f: problem.weigh(problem.criterion(f, problem.targets), step)  # noqa: E731
    jacobian = jax.jacfwd(outputs)(vector).reshape(-1, vector.size)
    shape = outputs(vector).shape
    inner = jax.hessian(loss)(outputs(vector)).reshape(np.prod(shape), -1)
    whole = jacobian.T @ inner @ jacobian
    if problem.parameter_loss is not None:
        penalty = lambda v: problem.parameter_loss(unravel(v), step)  # noqa: E731
        whole += jax.hessian(penalty)(vector)
    return whole


def example_curvatures(problem, params, step=0):
    """GGN of each example, by dense derivatives of the loss of that example alone."""
    singles = (problem.take(np.array([index])) for index in range(problem.num_examples))
    return np.stack([np.asarray(ggn_of_one(one, params, step)) for one in singles])


def in_range(curvatures):
    """The same in the range of their mean."""
    values, vectors = np.linalg.eigh(np.mean(curvatures, axis=0))
    basis = vectors[:, values > 1e-12 * values[-1]]
    return basis.T @ curvatures @ basis


def mean_moment_map(curvatures, batch_size, update: Callable):
    """Mean over all batches of what the update on a curvature makes of second moments."""
    batches = list(combinations(range(len(curvatures)), batch_size))
    matrices = [update(np.mean(curvatures[list(batch)], axis=0)) for batch in batches]
    return sum(np.kron(matrix, matrix) for matrix in matrices) / len(batches)


def heavy_ball(rate, momentum, curvature):
    """(θ, v) ↦ (θ - η v', v'), v' = β v + H θ."""
    one = np.eye(len(curvature))
    if not momentum:
        return one - rate * curvature
    return np.block([[one - rate * curvature, -rate * momentum * one], [curvature, momentum * one]])


def spectral_radius(matrix):
    return np.max(np.abs(np.linalg.eigvals(matrix)))


def radius_at(curvatures, batch_size, rate, momentum=0.0):
    return spectral_radius(
        mean_moment_map(in_range(curvatures), batch_size, partial(heavy_ball, rate, momentum))
    )


def require_threshold(found, curvatures, width=1e-5, momentum=0.0):
    """Both ends are true, by the dense map, and as near to each other as they should be."""
    low, high, batch = found.certified_stable, found.certified_unstable, found.batch_size
    assert high * (1 - width) < low < high
    assert radius_at(curvatures, batch, low * (1 - 1e-9), momentum) < 1
    assert radius_at(curvatures, batch, high * (1 + 1e-9), momentum) > 1


@pytest.mark.parametrize(
    ("momentum", "threshold"),
    [(0.0, 0.8), (0.5, 0.857142857), (0.9, 0.330434783), (0.99, 0.0392118227)],
)
def test_scalar_threshold_in_closed_form(momentum, threshold):
    found = mean_square_threshold(
        scalar_problem(1, 3), jnp.ones(1), 1, momentum=momentum, tol=TIGHT
    )
    # The mean of the curvatures is 2, that of their squares 5.
    exact = 2 * (1 - momentum) * 2 / (5 - 2 * momentum * 4 / (1 + momentum))
    assert exact == pytest.approx(threshold, rel=2e-9)
    assert found.certified_unstable == pytest.approx(exact, rel=1e-11)
    assert found.certified_stable < exact < found.certified_unstable
    assert found.width < (1.1e-6 if momentum < 0.9 else 5e-6)  # rounding counts for more there
    assert (found.rank, found.kept, found.reason) == (1, 1.0, "")


@pytest.mark.parametrize(("batch_size", "threshold"), [(1, 0.25), (2, 0.5), (4, 1.0)])
def test_one_hot_samples_in_closed_form(batch_size, threshold):
    rows = np.diag(np.sqrt(4 * np.array([2, 1, 0.5, 0.25])))[:, None]
    found = mean_square_threshold(linear_problem(rows), jnp.ones(4), batch_size, tol=TIGHT)
    assert found.certified_unstable == pytest.approx(threshold, rel=1e-11)
    assert found.certified_stable == pytest.approx(threshold, rel=1.1e-6)


@pytest.mark.parametrize(
    ("criterion", "momentum"),
    [(cross_entropy, 0.0), (cross_entropy, 0.9), (squared_error, 0.5)],
)
def test_thresholds_are_those_of_all_batches(criterion, momentum):
    params, inputs, labels = network(0)
    problem = Problem(tanh_network, criterion, inputs, labels)
    curvatures = example_curvatures(problem, params)
    for batch_size in (1, 2, 4):
        found = mean_square_threshold(problem, params, batch_size, momentum=momentum, tol=TIGHT)
        require_threshold(found, curvatures, momentum=momentum)
        radius = radius_at(curvatures, batch_size, found.certified_unstable, momentum)
        assert radius == pytest.approx(1, abs=1e-10)


def test_the_full_batch_has_the_threshold_of_gradient_descent():
    params, inputs, labels = network(1, examples=6)
    problem = Problem(tanh_network, cross_entropy, inputs, labels)
    largest = np.linalg.eigvalsh(np.mean(example_curvatures(problem, params), axis=0))[-1]
    for momentum in (0.0, 0.9):
        found = mean_square_threshold(problem, params, 6, momentum=momentum)
        expected = 2 * (1 + momentum) / largest
        assert found.certified_stable == pytest.approx(expected, rel=1e-10)
        assert found.certified_unstable == pytest.approx(expected, rel=1e-10)
        assert found.certified_stable < expected < found.certified_unstable
        assert found.method == "eigenvalues"


def test_one_example_is_its_own_full_batch():
    found = mean_square_threshold(scalar_problem(4), jnp.ones(1), 1)
    assert found.certified_stable == pytest.approx(0.5, rel=1e-10)
    assert found.width < 1e-10


def test_certificates_of_random_problems():
    """True at 1 + 1e-6 of the largest ratio, false at 1 - 1e-4; none is wrong."""
    for seed in range(20):
        drawn = np.random.default_rng(seed)
        # Of a few shapes, so that few programs are compiled.
        shape = [(2, 1, 3), (4, 2, 3), (6, 1, 4), (6, 3, 2)][seed % 4]
        number, rows = shape[0], drawn.standard_normal(shape)
        rows *= np.exp(drawn.normal(size=(number, 1, 1)))
        batch_size, momentum = int(drawn.integers(1, number)), float(drawn.choice([0, 0.5, 0.9]))
        problem, curvatures = linear_problem(rows), curvatures_of(rows)
        params = jnp.zeros(rows.shape[2])
        found = mean_square_threshold(problem, params, batch_size, momentum=momentum, tol=TIGHT)
        require_threshold(found, curvatures, 1.1e-6, momentum)
        noise = Noise(factors_of(problem, params, 0), noise_share(number, batch_size))
        rule, share = HeavyBall(momentum), noise.share
        below = rule.decay().on(noise.factors.eigenvalues)
        _, start = largest_ratio(noise, below, rule.growth(share).on(noise.factors.eigenvalues))
        for factor in (1 - 1e-6, 1 + 1e-4):
            rate = factor * found.certified_unstable
            shown = is_contracting(noise, rule.response(rate, share), start)
            assert shown == (factor < 1)
            assert (radius_at(curvatures, batch_size, rate, momentum) < 1) == (factor < 1)


def test_rayleigh_quotients_of_pairs_would_prove_nothing():
    """The map of (θ, v) is no symmetric one: a quotient of 1.29 where it shrinks."""
    curvatures = np.array([[[1.0]], [[3.0]]])
    moments = mean_moment_map(curvatures, 1, partial(heavy_ball, 0.2, 0.9))
    assert np.linalg.eigvalsh((moments + moments.T) / 2)[-1] > 1.29
    assert spectral_radius(moments) == pytest.approx(0.955, abs=1e-3)
    found = mean_square_threshold(scalar_problem(1, 3), jnp.ones(1), 1, momentum=0.9)
    assert found.certified_stable > 0.2


class _Phases:
    """Class weights that change with the step, one of them to 0."""

    def __call__(self, step):
        return jnp.stack([1.0 + step, jnp.ones(()), jnp.where(step == 2, 0.0, 2.0)])


def test_weights_are_those_of_the_step():
    params, inputs, labels = network(2, examples=6)
    problem = Problem(tanh_network, cross_entropy, inputs, labels, ClassWeights(_Phases()))
    thresholds = []
    for step in (0, 2, 5):
        found = mean_square_threshold(problem, params, 2, step=step, tol=TIGHT)
        require_threshold(found, example_curvatures(problem, params, step))
        thresholds.append(found.certified_unstable)
    assert len(set(np.round(thresholds, 3))) == 3


class _Masked:
    """Weights of positions: sentences of different lengths."""

    def __call__(self, step, targets):
        lengths = jnp.array([3, 1, 2, 3])
        return (jnp.arange(3) < lengths[:, None]).astype(float)[: len(targets)]


def test_positions_of_one_example_are_drawn_together():
    """A batch has all positions of an example: sequences of several lengths."""
    drawn = np.random.default_rng(5)
    inputs = jnp.asarray(drawn.standard_normal((4, 3, 2)))
    mask = jnp.asarray(np.arange(3) < np.array([3, 1, 2, 3])[:, None], float)
    labels = jnp.asarray(drawn.integers(0, 2, (4, 3)))
    one_hot = jax.nn.one_hot(labels, 2) * mask[..., None]  # without a label there is no loss
    problem = Problem(linear, cross_entropy, inputs, one_hot)
    params = jnp.asarray(drawn.standard_normal((2, 2)))
    found = mean_square_threshold(problem, params, 2, tol=TIGHT)
    require_threshold(found, example_curvatures(problem, params))
    mean = Problem(linear, MeanOverPositions(cross_entropy), inputs, labels)
    found = mean_square_threshold(mean, params, 1, tol=TIGHT)
    require_threshold(found, example_curvatures(mean, params))


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_weight_decay_inside_the_loss_is_curvature_without_noise(momentum):
    params, inputs, labels = network(3, examples=4, classes=2)
    problem = Problem(tanh_network, cross_entropy, inputs, labels, parameter_loss=WeightDecay(0.03))
    curvatures = example_curvatures(problem, params)
    for batch_size in (1, 4):
        found = mean_square_threshold(problem, params, batch_size, momentum=momentum, tol=TIGHT)
        require_threshold(found, curvatures, momentum=momentum)


def require_ratio(found, curvatures):
    """The quotient of the map at the unstable end is 1, by the dense map: for larger scales."""
    small = in_range(curvatures)
    scale = np.linalg.eigvalsh(np.mean(small, axis=0))[-1]
    at = partial(radius_at, small / scale, found.batch_size)
    assert at(found.certified_unstable * scale * (1 + 1e-7)) > 1
    assert at(found.certified_stable * scale * (1 - 1e-7)) < 1
    assert found.width < 1e-3


def huge(rows):
    """One example whose curvature is a million times that of the others."""
    return rows * np.array([1e3, 1, 1, 1, 1])[:, None, None]


ADVERSARIES = {
    "rank 1": lambda rows: rows[:, :1] * 0 + np.array([1.0, 2, 0]),
    "no curvature in two examples": lambda rows: rows * np.array([0.0, 1, 1, 0, 1])[:, None, None],
    "one huge curvature": huge,
    "one huge in a direction of its own": lambda rows: np.where(
        np.arange(5)[:, None, None] == 0, np.array([0, 0, 1e3]), rows * np.array([1.0, 1, 0])
    ),
    "duplicates": lambda rows: rows[[0, 0, 0, 1, 1]],
    "tiny": lambda rows: 1e-9 * rows,
    "nearly singular": lambda rows: rows * np.array([1.0, 1e-2, 1e-4]),
    "a small curvature with all the noise": lambda rows: np.where(
        np.arange(5)[:, None, None] == 0, np.array([0, 0, 1e-3]), rows * np.array([1.0, 1, 0])
    ),
}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_difficult_curvatures(name):
    rows = ADVERSARIES[name](np.random.default_rng(1).standard_normal((5, 2, 3)))
    for batch_size in (1, 3):
        found = mean_square_threshold(linear_problem(rows), jnp.zeros(3), batch_size)
        require_ratio(found, curvatures_of(rows))


def test_without_curvature_every_learning_rate_is_stable():
    for sampling in ("independent", "epochs"):
        found = mean_square_threshold(
            linear_problem(np.zeros((3, 1, 2))), jnp.zeros(2), 1, sampling=sampling
        )
        assert (found.certified_stable, found.certified_unstable, found.rank) == (np.inf, np.inf, 0)
        assert found.width == 0


def test_saturated_cross_entropy_keeps_its_digits():
    """Curvatures of 1e-17: those of a softmax between 0 and 1, of float64's own digits."""
    inputs = jnp.array([[40.0, 1.0], [-1.0, 38.0], [39.0, -2.0]])
    problem = Problem(linear, cross_entropy, inputs, jnp.array([0, 1, 0]))
    params = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    found = mean_square_threshold(problem, params, 1)
    # In closed form: p (1 - p) (e_0 - e_1)(e_0 - e_1)ᵀ ⊗ x xᵀ.
    scores = np.abs(np.asarray(inputs @ params) @ np.array([1.0, -1.0]))
    inner = np.exp(-scores) / (1 + np.exp(-scores)) ** 2
    across = np.array([1.0, -1.0])
    rows = np.sqrt(inner)[:, None] * np.stack([np.kron(np.asarray(x), across) for x in inputs])
    require_ratio(found, curvatures_of(rows[:, None]))


def test_float32_parameters_are_computed_in_float64():
    params, inputs, labels = network(4)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, inputs))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), narrow)
    one, other = (
        mean_square_threshold(Problem(tanh_network, cross_entropy, x, labels), p, 2, tol=TIGHT)
        for p, x in (narrow, wide)
    )
    assert one == other


def test_a_rank_cut_keeps_both_certificates():
    rows = np.random.default_rng(2).standard_normal((6, 1, 5)) * np.array([1, 0.5, 0.1, 0.01, 1e-3])
    full = mean_square_threshold(linear_problem(rows), jnp.zeros(5), 2, tol=TIGHT)
    require_threshold(full, curvatures_of(rows))
    widths = []
    for rank in (4, 3, 2):
        cut = mean_square_threshold(linear_problem(rows), jnp.zeros(5), 2, max_rank=rank)
        assert cut.rank == rank
        assert cut.kept < 1
        assert cut.certified_stable <= full.certified_stable
        assert cut.certified_unstable >= full.certified_unstable * (1 - 1e-6)
        widths.append(cut.width)
    assert widths == sorted(widths)
    assert widths[0] < 0.01


def test_what_was_not_shown_is_said(monkeypatch):
    module = "dlf_dynamics.analysis.stability.mean_square_bounds"
    monkeypatch.setattr(f"{module}._MOST_MARGIN", 0.0)
    problem, params = scalar_problem(1, 3), jnp.ones(1)
    found = mean_square_threshold(problem, params, 1)
    assert np.isnan(found.certified_stable)
    assert found.reason == "no certificate of stability was found"
    assert mean_square_stability(problem, params, optax.sgd(0.1), 1).verdict == "undecided"


@pytest.mark.parametrize("held", [4, 0])
def test_large_curvature_by_blocks(monkeypatch, held):
    """By the kernel or by the parameters, in one block or several, kept or computed again."""
    module = "dlf_dynamics.analysis.stability.mean_square_factors"
    for shape in ((6, 2, 30), (6, 2, 5)):
        rows = np.random.default_rng(3).standard_normal(shape)
        once = mean_square_threshold(linear_problem(rows), jnp.zeros(shape[2]), 2)
        monkeypatch.setattr(f"{module}._BLOCK_NUMBERS", 4 * shape[1] * shape[2])
        monkeypatch.setattr(f"{module}._KEPT_BLOCKS", held)
        blocks = mean_square_threshold(linear_problem(rows), jnp.zeros(shape[2]), 2)
        assert blocks.certified_unstable == pytest.approx(once.certified_unstable, rel=1e-10)
        assert blocks.certified_stable == pytest.approx(once.certified_stable, rel=1e-9)
        monkeypatch.undo()


def test_second_moments_of_simulated_paths():
    """10⁴ paths of linear SGD agree with the recursion within sampling error for 5 steps."""
    rows = np.random.default_rng(4).standard_normal((4, 1, 2))
    curvatures, rate, paths = curvatures_of(rows), 0.3, 10_000
    drawn = np.random.default_rng(7)
    positions = np.tile([1.0, -1.0], (paths, 1))
    moments = mean_moment_map(curvatures, 2, partial(heavy_ball, rate, 0.0))
    expected = np.outer(positions[0], positions[0]).reshape(-1)
    pairs = np.array(list(combinations(range(4), 2)))
    for _ in range(5):
        batches = pairs[drawn.integers(len(pairs), size=paths)]
        means = np.mean(curvatures[batches], axis=1)
        positions = positions - rate * np.einsum("npq,nq->np", means, positions)
        expected = moments @ expected
        squares = positions[:, :, None] * positions[:, None]
        error = np.std(squares, axis=0) / np.sqrt(paths)
        assert np.all(np.abs(np.mean(squares, axis=0) - expected.reshape(2, 2)) < 5 * error + 1e-12)
    # The recursion of these paths is the one whose threshold is found.
    found = mean_square_threshold(linear_problem(rows), jnp.zeros(2), 2, tol=TIGHT)
    require_threshold(found, curvatures)


def epoch_map(curvatures, batch_size, rate):
    """Mean over all orders of the examples, in whole batches."""
    one, total = np.eye(curvatures.shape[1]), 0.0
    orders = list(permutations(range(len(curvatures))))
    for order in orders:
        product = one
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = list(order[start : start + batch_size])
            product = (one - rate * np.mean(curvatures[batch], axis=0)) @ product
        total = total + np.kron(product, product)
    return total / len(orders)


def test_shuffled_epochs_in_closed_form():
    found = mean_square_threshold(scalar_problem(1, 3), jnp.ones(1), 1, sampling="epochs", tol=1e-6)
    assert found.certified_stable < 4 / 3 < found.certified_unstable
    assert found.width < 2e-6
    assert "own learning rate" in found.reason


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_shuffled_epochs_are_those_of_all_orders(batch_size):
    """With 5 examples and batches of 2 one of them waits for another epoch."""
    rows = np.random.default_rng(6).standard_normal((5, 1, 2))
    rows[4] = 0
    found = mean_square_threshold(
        linear_problem(rows), jnp.zeros(2), batch_size, sampling="epochs", tol=1e-5
    )
    curvatures = curvatures_of(rows)
    assert found.width < 2e-5
    assert spectral_radius(epoch_map(curvatures, batch_size, found.certified_stable)) < 1
    assert spectral_radius(epoch_map(curvatures, batch_size, found.certified_unstable)) >= 1 - 1e-9
    below = np.linspace(0.02, 0.99, 30) * found.certified_stable
    assert all(spectral_radius(epoch_map(curvatures, batch_size, rate)) < 1 for rate in below)


@pytest.mark.parametrize("small", [1e-3, 1e-6, 3e-7])
def test_epochs_with_nearly_no_curvature_in_a_direction(small):
    """Its growth, about small², is near rounding; the threshold does not depend on it."""
    rows = np.array([[[1, 0]], [[0.5, small]], [[0.2, -small]]])
    found = mean_square_threshold(
        linear_problem(rows), jnp.zeros(2), 1, sampling="epochs", tol=1e-6
    )
    plain = curvatures_of(np.array([[[1, 0]], [[0.5, 1e-2]], [[0.2, -1e-2]]]))
    low, high = 4.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        grows = spectral_radius(epoch_map(plain, 1, middle)) > 1
        low, high = (low, middle) if grows else (middle, high)
    assert found.certified_stable < low * (1 + 1e-3)
    assert found.certified_unstable > low * (1 - 1e-5)
    assert found.width < 0.02


def test_epochs_of_a_wide_spectrum_take_few_applications_and_are_certified():
    """Moments that nearly do not decay lie close together; a search among them took minutes."""
    rows = np.random.default_rng(8).standard_normal((6, 1, 6)) * np.geomspace(1, 1e-3, 6)
    found = mean_square_threshold(linear_problem(rows), jnp.zeros(6), 3, sampling="epochs")
    assert found.width < 2e-3
    assert found.iterations < 1_000
    curvatures = curvatures_of(rows)
    assert spectral_radius(epoch_map(curvatures, 3, found.certified_unstable)) >= 1 - 1e-12
    assert spectral_radius(epoch_map(curvatures, 3, found.certified_stable)) < 1


@pytest.mark.parametrize("momentum", [0.99, 0.999])
def test_a_long_memory_hides_no_threshold(momentum):
    """Far below the ratio that decides there are others, of curvatures that differ."""
    drawn = np.random.default_rng(5).standard_normal((24, 2, 12))
    rows = drawn * np.geomspace(1, 1e-3, 12)
    found = mean_square_threshold(linear_problem(rows), jnp.zeros(12), 4, momentum=momentum)
    assert 0 < found.certified_stable < found.certified_unstable
    assert found.width < 2e-3
    # Along single eigenvectors already it is not stable above what these say.
    curvatures = curvatures_of(rows)
    values, vectors = np.linalg.eigh(curvatures.mean(axis=0))
    own = np.einsum("pa,npq,qa->na", vectors, curvatures, vectors)
    share = (24 - 4) / (4 * 23)
    noise = share * np.var(own, axis=0)
    factor = (1 - momentum) / (1 + momentum)
    alone = 2 * (1 - momentum) * values / (noise + factor * values**2)
    assert found.certified_stable < np.min(alone)


ADAPTIVE = {
    "Adam": (partial(optax.adam, b1=0.8, b2=0.9), 0.8, 0.0),
    "AdamW without momentum": (partial(optax.adamw, b1=0.0, b2=0.9, weight_decay=0.3), 0.0, 0.3),
    "AdamW": (partial(optax.adamw, b1=0.8, b2=0.9, weight_decay=0.3), 0.8, 0.3),
    "RMSProp": (partial(optax.rmsprop, decay=0.9), 0.0, 0.0),
}


def adaptive_state(problem, params, optimizer):
    """After three updates with the gradient; the preconditioner of the fourth, by hand."""
    vector, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda v: problem.objective(unravel(v), 0))(vector)
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(unravel(gradient), state, params)
    squares = np.asarray(gradient) ** 2
    return state, squares


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name == "AdamW" else [pytest.mark.slow]) for name in ADAPTIVE],
)
def test_adaptive_optimizers_with_the_preconditioner_frozen(name):
    make, beta, decay = ADAPTIVE[name]
    params, inputs, labels = network(3, examples=4, classes=2)
    problem = Problem(tanh_network, cross_entropy, inputs, labels)
    state, squares = adaptive_state(problem, params, make(0.01))
    if name == "RMSProp":
        scale = np.sqrt((1 - 0.9**4) * squares + 1e-8)
    else:  # the bias correction of a constant is exact
        scale = (1 - beta**4) * (np.sqrt(squares) + 1e-8)
    curvatures = example_curvatures(problem, params)

    def radius(rate):
        def update(curvature):
            one, inverse = np.eye(len(scale)), np.diag(1 / scale)
            gradient = (1 - beta) * curvature
            kept = one - rate * (decay * one + inverse @ gradient)
            return np.block([[kept, -rate * beta * inverse], [gradient, beta * one]])

        return spectral_radius(mean_moment_map(curvatures, 2, update))

    answer = partial(mean_square_stability, problem, params, batch_size=2, step=3, opt_state=state)
    found = answer(make(0.01), tol=TIGHT)
    assert found.verdict == "stable"
    assert "frozen preconditioner" in found.label
    # Directions without curvature stay where they are, but for the decay.
    if beta and decay:
        assert np.isnan([found.stable_below, found.unstable_from]).all()
        assert "nothing is known" in found.reason
        low, high = 0.01, 100.0
        for _ in range(30):
            middle = np.sqrt(low * high)
            low, high = (middle, high) if radius(middle) < 1 else (low, middle)
        verdicts = [answer(make(low * factor)).verdict for factor in (0.999, 1.001)]
        assert verdicts == ["stable", "unstable"]
    else:
        assert radius(0.01 * found.stable_below) < 1 + 1e-12
        assert radius(0.01 * found.unstable_from * (1 + 1e-6)) > 1 + 1e-8
        assert found.unstable_from < found.stable_below * (1 + 1e-5)
        assert answer(make(0.01 * found.unstable_from * 1.01)).verdict == "unstable"


def test_an_optimizer_is_judged_at_its_own_learning_rate():
    problem, params = scalar_problem(1, 3), jnp.ones(1)
    for optimizer, verdict in (
        (optax.sgd(0.79), "stable"),
        (optax.sgd(0.81), "unstable"),
        (optax.sgd(0.79995), "undecided"),
        (optax.sgd(0.33, momentum=0.9), "stable"),
        (optax.sgd(0.34, momentum=0.9), "unstable"),
    ):
        assert mean_square_stability(problem, params, optimizer, 1).verdict == verdict
    # 1.93 and 1 + 0.93 are two numbers of float64.
    found = mean_square_stability(problem, params, optax.sgd(0.1, momentum=0.93), 1)
    other = mean_square_threshold(problem, params, 1, momentum=0.93)
    assert 0.1 * found.stable_below == pytest.approx(other.certified_stable, rel=1e-9)
    found = mean_square_stability(problem, params, optax.sgd(0.4), 1)
    assert found.unstable_from == pytest.approx(2.0, rel=1e-10)


def test_decay_in_the_optimizer_is_decay_in_the_loss():
    params, inputs, labels = network(3, examples=4, classes=2)
    plain = Problem(tanh_network, cross_entropy, inputs, labels)
    inside = Problem(tanh_network, cross_entropy, inputs, labels, parameter_loss=WeightDecay(0.1))
    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.5))
    one = mean_square_stability(plain, params, decayed, 2)
    other = mean_square_threshold(inside, params, 2)
    assert 0.5 * one.stable_below == pytest.approx(other.certified_stable, rel=1e-9)
    assert 0.5 * one.unstable_from == pytest.approx(other.certified_unstable, rel=1e-9)


def mixing(params, inputs):
    return inputs @ params - jnp.mean(inputs @ params)


def concave(outputs, targets):
    return -half_square(outputs, targets)


def test_what_is_refused():
    problem, params = scalar_problem(1, 3), jnp.ones(1)
    threshold = partial(mean_square_threshold, problem, params)
    for batch_size in (0, 3):
        with pytest.raises(ConfigError, match=f"batch_size is {batch_size}; expected 1 to 2"):
            threshold(batch_size)
    with pytest.raises(ConfigError, match=r"momentum is 1\.0; expected at least 0"):
        threshold(1, momentum=1.0)
    with pytest.raises(ConfigError, match="sampling is 'random'; expected"):
        threshold(1, sampling="random")
    with pytest.raises(ConfigError, match="with sampling 'epochs'"):
        threshold(1, sampling="epochs", momentum=0.5)
    with pytest.raises(ConfigError, match="tol is 0; expected"):
        threshold(1, tol=0)
    with pytest.raises(ConfigError, match="max_rank is 0; expected"):
        threshold(1, max_rank=0)
    with pytest.raises(ConfigError, match="the problem has no examples"):
        mean_square_threshold(Problem.from_loss(lambda p, step: jnp.sum(p**2)), params, 1)


def test_problems_that_are_refused(monkeypatch):
    rows = jnp.ones((3, 1, 2))
    of = partial(Problem, inputs=rows, targets=jnp.zeros((3, 1)))
    refused = {
        "change with the other examples": of(
            mixing, half_square, inputs=jnp.arange(6.0).reshape(3, 1, 2)
        ),
        "not convex in the outputs": of(linear, concave),
        "a different curvature in each": of(
            linear, half_square, parameter_loss=lambda p, step: p[0] ** 2
        ),
        "expected at least 0": of(
            linear, half_square, parameter_loss=lambda p, step: -jnp.sum(p**2)
        ),
        "derivatives of the outputs": of(lambda p, x: jnp.sqrt(x @ (p - 1)), half_square),
        "are not finite": of(lambda p, x: x @ p * jnp.inf, lambda f, y: jnp.sum(f**4, axis=-1)),
    }
    for message, problem in refused.items():
        with pytest.raises(ConfigError, match=message):
            mean_square_threshold(problem, jnp.ones(2), 1)
    module = "dlf_dynamics.analysis.stability.mean_square_factors"
    monkeypatch.setattr(f"{module}._MAX_ORDER", 1)
    with pytest.raises(ConfigError, match="expected at most 1 of one of them"):
        mean_square_threshold(of(linear, half_square), jnp.ones(2), 1)


def test_epochs_of_many_examples_are_refused():
    problem = linear_problem(np.ones((20, 1, 1)))
    with pytest.raises(ConfigError, match="all orders of an epoch are enumerated"):
        mean_square_threshold(problem, jnp.ones(1), 1, sampling="epochs")


def test_optimizers_that_are_refused():
    problem, params = scalar_problem(1, 3), jnp.ones(1)
    stability = partial(mean_square_stability, problem, params, batch_size=1)
    with pytest.raises(ConfigError, match="Nesterov's momentum and NAdam"):
        stability(optax.sgd(0.1, momentum=0.9, nesterov=True))
    twice = optax.chain(optax.trace(0.5), optax.trace(0.5), optax.scale(-0.1))
    with pytest.raises(ConfigError, match="2 numbers of state for each parameter"):
        stability(twice)
    with pytest.raises(ConfigError, match="the optimizer has no threshold"):
        stability(optax.sign_sgd(0.1))
    with pytest.raises(ConfigError, match="opt_state is missing"):
        stability(optax.adam(0.1))
    with pytest.raises(ConfigError, match="learning rate is 0 here"):
        stability(optax.sgd(0.0))
    decayed = Problem(
        linear, half_square, problem.inputs, problem.targets, parameter_loss=WeightDecay(0.1)
    )
    adam = optax.adam(0.1)
    with pytest.raises(ConfigError, match="expected decoupled weight decay"):
        mean_square_stability(decayed, params, adam, 1, opt_state=adam.init(params))
