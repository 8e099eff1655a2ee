"""One-shot measurements against dense matrices, closed forms and optimizers by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.legend import Legend

from dlf_dynamics.analysis.linalg import eigensolver
from dlf_dynamics.analysis.linalg.eigensolver import Eigenpairs
from dlf_dynamics.analysis.spectra import oneshot
from dlf_dynamics.analysis.spectra.oneshot import ntk_spectrum, sharpness, stability, top_hessian
from dlf_dynamics.analysis.spectra.oneshot_results import Stability
from dlf_dynamics.errors import ConfigError, DataError
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Triangle

RNG = np.random.default_rng(7)
INPUTS = jnp.asarray(RNG.normal(size=(10, 3)))
LABELS = jnp.asarray(RNG.integers(0, 3, size=10))
SIZE = 3 * 4 + 4 + 4 * 3


def network(params, inputs):
    return jnp.tanh(inputs @ params["in"]["weight"] + params["in"]["bias"]) @ params["out"]


def make_params(seed, dtype=float):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {"in": {"weight": normal(3, 4), "bias": normal(4)}, "out": normal(4, 3)}


PROBLEM = Problem(network, cross_entropy, INPUTS, LABELS, ClassWeights(Triangle(3, 6.0, 8)))
PARAMS = make_params(0)
STEP = 5


@pytest.fixture(autouse=True)
def host_loop(monkeypatch):
    """The eigensolver that is compiled sooner."""
    monkeypatch.setattr(eigensolver, "PASS_SIZE", 0)


@jax.jit
def dense_hessian(problem, params, step):
    flat, vector = problem.ravel(params)
    return jax.hessian(flat.objective)(vector, step)


def exact(params=PARAMS, step=STEP):
    """All eigenvalues, largest first."""
    return np.linalg.eigvalsh(dense_hessian(PROBLEM, params, step))[::-1]


@pytest.mark.parametrize("pass_size", [0, 10_000])
def test_the_sharpness_is_the_largest_eigenvalue_at_that_step(pass_size, monkeypatch):
    monkeypatch.setattr(eigensolver, "PASS_SIZE", pass_size)
    for step in (0, STEP, jnp.int32(13)):
        found = sharpness(PROBLEM, PARAMS, step=step)
        largest = exact(step=step)[0]
        assert found.converged
        assert found.value == pytest.approx(largest, rel=1e-10)
        assert found.interval[0] <= largest <= found.interval[1]
        assert found.residual < 1e-6 * np.abs(exact(step=step)).max()
    assert exact(step=0)[0] != pytest.approx(exact(step=STEP)[0], rel=0.1)


def test_what_has_not_converged_is_not_called_an_eigenvalue():
    found = sharpness(PROBLEM, PARAMS, step=STEP, max_matvecs=4)
    assert not found.converged
    assert "products" in found.message
    assert str(found).startswith("Ritz value ")
    assert "not converged: 0 of 1 converged" in str(found)
    assert np.any((found.interval[0] <= exact()) & (exact() <= found.interval[1]))
    judged = stability(PROBLEM, PARAMS, optax.sgd(1e-6), step=STEP, max_matvecs=4)
    assert judged.verdict == "undecided"
    assert judged.interval[1] < judged.threshold


def test_a_loss_that_overflows_has_no_sharpness():
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    found = sharpness(PROBLEM, params)
    assert not found.converged
    assert np.isnan(found.value)
    assert stability(PROBLEM, params, optax.sgd(0.1)).verdict == "undecided"


def test_pairs_of_the_hessian_come_with_directions_like_the_parameters():
    found = top_hessian(PROBLEM, PARAMS, 2, which="both", step=STEP)
    assert isinstance(found, Eigenpairs)
    np.testing.assert_allclose(found.eigenvalues, exact()[[0, 1, -2, -1]], rtol=1e-9)
    matrix = np.asarray(dense_hessian(PROBLEM, PARAMS, STEP))
    for index, (value, vector) in enumerate(
        zip(found.eigenvalues, found.eigenvectors, strict=True)
    ):
        assert np.linalg.norm(matrix @ vector - value * vector) < 1e-5
        direction = found.direction(index)
        assert jax.tree.structure(direction) == jax.tree.structure(PARAMS)
        flat, _ = jax.flatten_util.ravel_pytree(direction)
        np.testing.assert_array_equal(flat, vector)


def test_a_direction_can_be_walked_along():
    """The second difference of the loss along the top eigenvector is the sharpness."""
    found = top_hessian(PROBLEM, PARAMS, step=STEP)
    direction, size = found.direction(), 1e-4

    def loss(move):
        moved = jax.tree.map(lambda leaf, d: leaf + move * d, PARAMS, direction)
        return float(PROBLEM.objective(moved, STEP))

    second = (loss(size) - 2 * loss(0.0) + loss(-size)) / size**2
    assert second == pytest.approx(found.eigenvalues[0], rel=1e-5)


def test_gauss_newton_and_remainder_are_the_parts_of_the_hessian_in_batches_too():
    flat, vector = PROBLEM.ravel(PARAMS)

    @jax.jit
    def gauss_newton(vector):
        jac = jax.jacrev(flat.outputs)(vector)
        curve = jax.hessian(flat.loss)(flat.outputs(vector), STEP)
        return jnp.einsum("aip,aibj,bjq->pq", jac, curve, jac)

    matrix = gauss_newton(vector)
    found = top_hessian(PROBLEM, PARAMS, operator="ggn", step=STEP, batch_size=4)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(matrix)[-1:], rtol=1e-10)
    rest = np.linalg.eigvalsh(dense_hessian(PROBLEM, PARAMS, STEP) - matrix)
    found = top_hessian(PROBLEM, PARAMS, operator="remainder", which="both", step=STEP)
    np.testing.assert_allclose(found.eigenvalues, rest[[-1, 0]], rtol=1e-9)


def test_a_loss_alone_has_a_hessian_and_nothing_more():
    scales = jnp.array([1.0, -3.0, 2.0])
    problem = Problem.from_loss(lambda p, step: (1 + step) * jnp.sum(scales * p["x"] ** 2) / 2)
    params = {"x": jnp.ones(3)}
    assert sharpness(problem, params, step=2).value == pytest.approx(6)
    found = top_hessian(problem, params, which="smallest", step=1)
    np.testing.assert_allclose(found.eigenvalues, [-6])
    assert stability(problem, params, optax.sgd(0.9)).verdict == "stable"
    for measure in (
        lambda: top_hessian(problem, params, operator="ggn"),
        lambda: ntk_spectrum(problem, params),
    ):
        with pytest.raises(ConfigError, match="has no outputs; GGN, NTK"):
            measure()


def test_float32_has_a_tolerance_of_its_own():
    problem = replace(PROBLEM, inputs=INPUTS.astype(jnp.float32))
    found = sharpness(problem, make_params(0, jnp.float32), step=STEP)
    assert found.converged
    assert found.value == pytest.approx(exact()[0], rel=1e-3)


@pytest.mark.parametrize(
    "measure",
    [sharpness, top_hessian, ntk_spectrum, lambda p, params: stability(p, params, optax.sgd(0.1))],
)
def test_parameters_that_are_none_are_named(measure):
    with pytest.raises(DataError, match=r"params\['out'\] is of type str; keep only floating"):
        measure(PROBLEM, {**PARAMS, "out": "tanh"})


def test_an_unknown_operator_is_named():
    with pytest.raises(ConfigError, match="operator is 'fisher'; expected one of hessian, ggn, re"):
        top_hessian(PROBLEM, PARAMS, operator="fisher")


def test_along_a_loop_nothing_is_compiled_again():
    gd, adam = optax.sgd(0.1), optax.adam(0.1)
    compilations = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(duration)

    def measure(seed):
        params = make_params(seed)
        # Another problem that is equal but for its data is no reason either.
        problem = replace(PROBLEM, inputs=INPUTS + seed)
        sharpness(problem, params, step=seed)
        stability(problem, params, gd, step=seed)
        ntk_spectrum(problem, params)
        stability(problem, params, adam, opt_state=adam.init(params), step=seed)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        measure(0)
        assert compilations
        measure(1)
        compilations.clear()
        measure(2)
        assert compilations == []
    finally:
        jax.monitoring.clear_event_listeners()


def kernel(params, num_examples, trace_outputs, problem=PROBLEM):
    jac = jax.jacfwd(lambda p: problem.apply(p, problem.inputs[:num_examples]))(params)
    leaves = [np.asarray(leaf).reshape(num_examples, 3, -1) for leaf in jax.tree.leaves(jac)]
    whole = np.concatenate(leaves, axis=2)
    if trace_outputs:
        return np.einsum("aip,bip->ab", whole, whole) / 3
    rows = whole.reshape(3 * num_examples, -1)
    return rows @ rows.T


@pytest.mark.parametrize(("trace_outputs", "large"), [(True, False), (False, False), (True, True)])
def test_the_kernel_is_that_of_the_dense_jacobian(trace_outputs, large, monkeypatch):
    if large:
        monkeypatch.setattr(oneshot, "MAX_DENSE", 0)
    found = ntk_spectrum(PROBLEM, PARAMS, num_examples=7, trace_outputs=trace_outputs, k=3)
    values = np.linalg.eigvalsh(kernel(PARAMS, 7, trace_outputs))[::-1]
    assert (found.num_examples, found.trace_outputs) == (7, trace_outputs)
    assert found.converged.all()
    np.testing.assert_allclose(found.eigenvalues, values[:3], rtol=1e-10)
    assert np.all(found.intervals[:, 0] <= values[:3])
    assert np.all(values[:3] <= found.intervals[:, 1])
    assert found.trace == pytest.approx(values.sum(), rel=1e-12)
    assert found.effective_rank == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-12)


def test_without_a_number_of_examples_there_are_50_and_none_means_all():
    many = replace(PROBLEM, inputs=jnp.tile(INPUTS, (6, 1)), targets=jnp.tile(LABELS, 6))
    assert len(ntk_spectrum(many, PARAMS).eigenvalues) == 50
    assert len(ntk_spectrum(many, PARAMS, num_examples=None).eigenvalues) == 60
    assert len(ntk_spectrum(PROBLEM, PARAMS).eigenvalues) == 10


@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
def test_outputs_may_have_any_shape(shape):
    """The kernel of a linear model is the Gram matrix of its inputs, whatever the outputs are."""
    weights = jnp.ones((3, *shape))
    problem = Problem(
        lambda w, x: jnp.tensordot(x, w, 1), lambda f, y: f.reshape(10, -1), INPUTS, LABELS
    )
    gram = np.linalg.eigvalsh(INPUTS @ INPUTS.T)[::-1]
    found = ntk_spectrum(problem, weights)
    np.testing.assert_allclose(found.eigenvalues, gram, atol=1e-13)


def test_kernels_that_are_not_there_are_refused():
    for name in ("num_examples", "k"):
        with pytest.raises(ConfigError, match=f"{name} is 0; expected at least 1"):
            ntk_spectrum(PROBLEM, PARAMS, **{name: 0})
    params = jax.tree.map(lambda leaf: leaf * jnp.inf, PARAMS)
    with pytest.raises(DataError, match="the tangent kernel is not finite; expected finite"):
        ntk_spectrum(PROBLEM, params)


@pytest.mark.parametrize("shrink", [0.99, 1.01])
@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (lambda rate: optax.sgd(rate), 2.0),
        (lambda rate: optax.sgd(rate, momentum=0.9), 3.8),
        (lambda rate: optax.chain(optax.trace(0.9), optax.scale(-rate)), 3.8),
    ],
)
def test_the_verdict_is_on_the_side_of_the_threshold(optimizer, factor, shrink):
    rate = shrink * factor / exact()[0]
    found = stability(PROBLEM, PARAMS, optimizer(rate), step=STEP)
    assert found.threshold == pytest.approx(factor / rate, rel=1e-9)
    assert found.value == pytest.approx(exact()[0], rel=1e-10)
    assert found.margin == pytest.approx(factor / rate - exact()[0], rel=1e-6)
    assert found.relative_margin == pytest.approx(1 - shrink, rel=1e-6)
    assert found.verdict == ("stable" if shrink < 1 else "unstable")
    assert str(found).startswith(f"{found.verdict}: eigenvalue ")
    assert "frozen" not in found.label


def test_it_is_undecided_where_the_interval_holds_the_threshold():
    found = stability(PROBLEM, PARAMS, optax.sgd(2 / exact()[0]), step=STEP)
    assert found.converged
    assert found.verdict == "undecided"


def test_the_edges_of_a_verdict():
    judged = Stability(2.0, (1.0, 3.0), 1.0, True, 9, "", threshold=3.5, label="")
    assert judged.verdict == "stable"
    for threshold, verdict in ((3.0, "undecided"), (1.0, "undecided"), (0.5, "unstable")):
        assert replace(judged, threshold=threshold).verdict == verdict
        assert replace(judged, threshold=threshold, converged=False).verdict == "undecided"
    assert "Ritz value" in str(replace(judged, converged=False))


def test_measurements_show_themselves():
    judged = Stability(2.0, (1.0, 3.0), 1.0, True, 9, "", threshold=3.5, label="<b>of gd</b>")
    assert judged.summary() == str(judged)
    assert "&lt;b&gt;of gd" in judged._repr_html_()
    assert "<b>" not in judged._repr_html_()
    (figure,) = judged.plot().values()
    assert figure.axes[0].get_title() == "stable: <b>of gd</b>"
    assert [line.get_label() for line in figure.axes[0].lines] == ["threshold"]
    unsure = replace(judged, converged=False)
    (figure,) = unsure.plot().values()
    (legend,) = figure.axes[0].findobj(Legend)
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["Ritz value, not converged", "threshold"]


def test_eigenpairs_and_kernels_show_each_value_with_its_certificate():
    pairs = top_hessian(PROBLEM, PARAMS, 2, which="both", step=STEP)
    gram = ntk_spectrum(PROBLEM, PARAMS, num_examples=7, trace_outputs=False)
    for found in (pairs, gram):
        lines = found.summary().splitlines()
        assert lines[0].startswith(f"eigenvalue {found.eigenvalues[0]:g} in [")
        assert len(lines) == min(len(found.eigenvalues), 11)
        (figure,) = found.plot().values()
        (points,) = (c for c in figure.axes[0].collections if c.get_label() == "eigenvalue")
        np.testing.assert_array_equal(points.get_offsets()[:, 1], found.eigenvalues)
    assert lines[-1] == f"and {len(gram.eigenvalues) - 10} more"
    pytest.importorskip("pandas")
    frame, tree = pairs.to_dataframe(), pairs.to_xarray()
    assert frame["value"].tolist() == pairs.eigenvalues.tolist()
    assert frame["interval_upper"].tolist() == pairs.intervals[:, 1].tolist()
    assert tree["eigenvalues"].values.tolist() == pairs.eigenvalues.tolist()
    assert "eigenvectors" not in tree.attrs
    judged = Stability(2.0, (1.0, 3.0), 1.0, True, 9, "", threshold=3.5, label="")
    (row,) = judged.to_dataframe().to_dict("records")
    assert (row["verdict"], row["interval_lower"], row["threshold"]) == ("stable", 1.0, 3.5)


def test_a_learning_rate_that_changes_is_that_of_the_step():
    optimizer = optax.sgd(optax.linear_schedule(0.0, 1.0, 10))
    thresholds = [stability(PROBLEM, PARAMS, optimizer, step=t).threshold for t in (0, 5, 10, 20)]
    np.testing.assert_allclose(thresholds, [np.inf, 4, 2, 2], rtol=1e-9)
    still = stability(PROBLEM, PARAMS, optimizer, step=0)
    assert (still.verdict, still.margin, still.relative_margin) == ("stable", np.inf, 1)


def roots_by_hand(gradients, name):
    """P of the update on the last of some gradients, by the optimizers' formulas."""
    mean_square, count = np.zeros(SIZE), len(gradients)
    for slope in gradients:
        decay = {"adam": 0.95, "rmsprop": 0.9}[name]
        mean_square = decay * mean_square + (1 - decay) * slope**2
    if name == "rmsprop":
        return np.sqrt(mean_square + 1e-6)
    corrected = np.sqrt(mean_square / (1 - 0.95**count)) + 1e-6
    return (1 - 0.8**count) * corrected


ADAPTIVE = {
    "adam": optax.adam(0.01, b1=0.8, b2=0.95, eps=1e-6),
    "rmsprop": optax.rmsprop(0.01, decay=0.9, eps=1e-6),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_of_an_adaptive_optimizer_it_is_the_preconditioned_hessian(name):
    optimizer = ADAPTIVE[name]
    slope = jax.jit(jax.grad(PROBLEM.objective))
    params, state, slopes = PARAMS, optimizer.init(PARAMS), []
    for step in range(STEP + 1):
        gradient = slope(params, step)
        slopes.append(np.asarray(jax.flatten_util.ravel_pytree(gradient)[0]))
        if step < STEP:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
    found = stability(PROBLEM, params, optimizer, opt_state=state, step=STEP)
    scale = 1 / np.sqrt(roots_by_hand(slopes, name))
    matrix = scale[:, None] * np.asarray(dense_hessian(PROBLEM, params, STEP)) * scale
    assert found.converged
    assert found.value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-6)
    expected = {"adam": 2 * 1.8 / 0.2 / 0.01, "rmsprop": 200}[name]
    assert found.threshold == pytest.approx(expected, rel=1e-6)
    assert found.label.endswith("frozen preconditioner")


def test_an_adaptive_optimizer_needs_its_state():
    with pytest.raises(ConfigError, match=r"opt_state is missing; expected .* \(optimizer.init"):
        stability(PROBLEM, PARAMS, optax.adam(0.1))


def test_a_little_decay_of_some_parameters_is_no_reason_to_refuse():
    def matrices(tree):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

    decayed = optax.adamw(0.1, weight_decay=1e-3, mask=matrices)
    found = stability(PROBLEM, PARAMS, decayed, opt_state=decayed.init(PARAMS), step=STEP)
    assert found.threshold == pytest.approx(380, rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), "depends on the others"),
        (optax.sign_sgd(0.1), "no threshold: "),
        (
            optax.multi_transform(
                {"fast": optax.sgd(0.1), "slow": optax.sgd(0.01)}, {"in": "slow", "out": "fast"}
            ),
            "not the same for all parameters; expected one learning rate and one rule",
        ),
        (
            optax.chain(optax.masked(optax.add_decayed_weights(0.1), {"in": True, "out": False})),
            "not the same for all parameters",
        ),
        (optax.chain(optax.centralize(), optax.sgd(0.1)), "depends on the others"),
        (optax.lars(0.1), "depends on the others"),
    ],
)
def test_optimizers_without_a_threshold_are_refused(optimizer, found):
    with pytest.raises(ConfigError, match=found):
        stability(PROBLEM, PARAMS, optimizer)
