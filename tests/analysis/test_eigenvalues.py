"""Spectra of small runs against dense matrices of losses that are written out here."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import LossConfig, ModelConfig, OptimizerConfig
from dlf_dynamics.analysis.spectra import segments
from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum
from dlf_dynamics.config import SpectrumConfig

NON_LINEARITIES = {
    "tanh": jnp.tanh,
    "softplus": lambda x: jnp.log1p(jnp.exp(x)),
    "relu": lambda x: jnp.maximum(x, 0),
}


def losses(name, outputs, labels, weights):
    """Per-example weighted losses, from the definitions."""
    targets = jnp.eye(outputs.shape[1])[labels]
    if name == "cross-entropy":
        probabilities = jnp.exp(outputs) / jnp.sum(jnp.exp(outputs), axis=1, keepdims=True)
        return -weights[labels] * jnp.log(jnp.sum(probabilities * targets, axis=1))
    if name == "squared-error":
        return weights[labels] * jnp.sum((outputs - targets) ** 2, axis=1)
    return jnp.sum(weights * (outputs - targets) ** 2, axis=1)


def make_loss(run):
    """F(vector, class weights) of a run with one hidden layer, from its data and settings only."""
    inputs, labels = run.dataset.inputs, run.dataset.labels
    num_inputs, num_outputs = inputs.shape[1], run.dataset.num_classes
    (width,) = run.config.model.widths
    sizes = np.cumsum([num_inputs * width, width, width * num_outputs])

    def loss(vector, weights):
        first, bias, second, shift = jnp.split(vector, sizes)
        hidden = NON_LINEARITIES[run.config.model.activation](
            inputs @ first.reshape(num_inputs, width) + bias
        )
        outputs = hidden @ second.reshape(width, num_outputs) + shift
        return jnp.mean(losses(run.config.loss.name, outputs, labels, weights))

    return loss


def descending(matrix):
    return np.linalg.eigvalsh(matrix)[::-1]


def dense_spectra(loss, points, weights):
    matrices = jax.lax.map(lambda pair: jax.hessian(loss)(*pair), (points, weights))
    return np.stack([descending(matrix) for matrix in np.asarray(matrices)])


@pytest.fixture(scope="module")
def thetas(trained):
    """θ at every step up to one after the last, by an independent run."""

    def parameters(config):
        return trained(replace(config, checkpoint_every=1, steps=config.steps + 1)).parameters()

    return parameters


@pytest.mark.parametrize(
    ("loss", "activation", "optimizer", "static"),
    [
        ("cross-entropy", "tanh", OptimizerConfig(learning_rate=0.3), False),
        ("cross-entropy", "tanh", OptimizerConfig(learning_rate=0.3), True),
        ("squared-error", "softplus", OptimizerConfig("heavy-ball", learning_rate=0.05), False),
        (
            "squared-error-per-output",
            "relu",
            OptimizerConfig("nesterov", learning_rate=0.02),
            False,
        ),
    ],
)
def test_values_at_iterates_and_centres_are_those_of_the_dense_hessian(
    loss, activation, optimizer, static, small, trained, thetas
):
    config = replace(
        small,
        loss=LossConfig(loss),
        model=replace(small.model, activation=activation),
        optimizer=optimizer,
    )
    run, theta = trained(config), thetas(config)
    found = hessian_spectrum(run, config=SpectrumConfig(static=static, k=3))
    steps = run.checkpoint_steps
    weights = run.scalars["class_weights"][steps]
    weights = np.ones_like(weights) if static else weights
    exact = dense_spectra(make_loss(run), theta[steps], weights)
    np.testing.assert_array_equal(found.steps, [0, 7, 14, 21, 28, 35, 42, 49, 56, 60])
    assert np.all(found.iterate.converged)
    assert found.curvature.static == static
    np.testing.assert_allclose(found.iterate.eigenvalues, exact[:, :3], atol=1e-10)
    centres = theta[steps[1:] - 1] / 4 + theta[steps[1:]] / 2 + theta[steps[1:] + 1] / 4
    exact = dense_spectra(make_loss(run), centres, weights[1:])
    assert np.all(found.centre.converged[1:])
    np.testing.assert_allclose(found.centre.eigenvalues[1:], exact[:, :3], atol=1e-10)


def test_the_centre_of_step_0_is_nan_and_not_converged(small, trained):
    centre = hessian_spectrum(trained(small), [0, 1]).centre
    assert np.all(np.isnan(centre.eigenvalues[0]))
    assert np.all(np.isnan(centre.residuals[0]))
    np.testing.assert_array_equal(centre.converged, [[False], [True]])


def preconditioners(config, gradients):
    """P of the update from each θ_t, from the recursions of the papers and of optax.

    RMSProp: update g / √(ν + ε). Adam: (m / b₁) / (√(ν / b₂) + ε), of which P leaves m.
    """
    decay = config.decay if config.name == "rmsprop" else config.beta2
    mean_square, found = np.zeros_like(gradients[0]), []
    for count, gradient in enumerate(gradients, start=1):
        mean_square = decay * mean_square + (1 - decay) * gradient**2
        if config.name == "rmsprop":
            found.append(np.sqrt(mean_square + config.epsilon))
        else:
            root = np.sqrt(mean_square / (1 - config.beta2**count)) + config.epsilon
            found.append((1 - config.beta1**count) * root)
    return np.stack(found)


@pytest.mark.parametrize("name", ["rmsprop", "adam", pytest.param("adamw", marks=pytest.mark.slow)])
def test_values_of_adaptive_optimizers_are_those_of_the_preconditioned_hessian(
    name, small, trained
):
    optimizer = OptimizerConfig(name, learning_rate=0.01, beta2=0.95)
    config = replace(small, optimizer=optimizer, checkpoint_every=1)
    run = trained(config)
    theta, chosen = run.parameters(), [1, 2, 10, 33, 59]
    found = hessian_spectrum(run, chosen, config=SpectrumConfig(k=3))
    assert found.curvature.preconditioned
    assert np.all(found.iterate.converged)
    loss, weights = make_loss(run), run.scalars["class_weights"]
    slopes = np.asarray(jax.lax.map(lambda p: jax.grad(loss)(*p), (theta, weights)))
    preconditioner = preconditioners(config.optimizer, slopes)
    curvature = jax.jit(jax.hessian(loss))
    for row, step in enumerate(chosen):
        centre = theta[step - 1] / 4 + theta[step] / 2 + theta[step + 1] / 4
        for values, point in ((found.iterate, theta[step]), (found.centre, centre)):
            dense = np.asarray(curvature(point, weights[step]))
            exact = np.linalg.eigvals(dense / preconditioner[step][:, None])
            exact = np.sort(exact.real)[::-1]
            np.testing.assert_allclose(
                values.eigenvalues[row], exact[:3], atol=1e-9 * np.max(np.abs(exact))
            )


def softmax_regression_hessian(run, params, weights):
    """(1/N) Σ_n Γ_(y_n) (diag p_n - p_n p_nᵀ) ⊗ x_n x_nᵀ with a 1 appended to x_n."""
    inputs, labels = run.dataset.inputs, run.dataset.labels
    extended = np.hstack([inputs, np.ones((len(inputs), 1))])
    outputs = extended @ params.reshape(extended.shape[1], -1)
    probabilities = np.exp(outputs) / np.sum(np.exp(outputs), axis=1, keepdims=True)
    terms = [
        weights[y] * np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x))
        for p, x, y in zip(probabilities, extended, labels, strict=True)
    ]
    return np.mean(terms, axis=0)


def test_weighted_softmax_regression_has_its_closed_form_at_every_phase_of_the_pulses(
    small, trained
):
    config = replace(small, model=ModelConfig(widths=()), checkpoint_every=3)
    run = trained(config)
    found = hessian_spectrum(run, config=SpectrumConfig(k=2))
    weights = run.scalars["class_weights"][run.checkpoint_steps]
    assert np.ptp(weights[:, 0]) > 1
    exact = [
        descending(softmax_regression_hessian(run, params, row))[:2]
        for params, row in zip(run.parameters(), weights, strict=True)
    ]
    np.testing.assert_allclose(found.iterate.eigenvalues, exact, rtol=1e-10)


def test_linear_regression_has_2_over_n_times_the_weighted_gram_matrix_of_the_features(
    small, trained
):
    config = replace(small, model=ModelConfig(widths=()), loss=LossConfig("squared-error"))
    run = trained(config)
    found = hessian_spectrum(run, config=SpectrumConfig(k=1))
    features = np.hstack([run.dataset.inputs, np.ones((len(run.dataset.inputs), 1))])
    for row, step in enumerate(run.checkpoint_steps):
        weights = run.scalars["class_weights"][step][run.dataset.labels]
        exact = descending(2 * features.T @ (weights[:, None] * features) / len(features))[0]
        np.testing.assert_allclose(found.iterate.eigenvalues[row], [exact], rtol=1e-12)
        if row > 0:
            np.testing.assert_allclose(found.centre.eigenvalues[row], [exact], rtol=1e-12)


def test_values_that_are_not_converged_within_the_budget_are_marked_and_the_others_are_right(
    small, trained
):
    config = replace(small, model=replace(small.model, widths=(20,)))
    run = trained(config)
    found = hessian_spectrum(run, config=SpectrumConfig(k=3, max_matvecs=30))
    weights = run.scalars["class_weights"][run.checkpoint_steps]
    exact = dense_spectra(make_loss(run), run.parameters(), weights)
    assert np.any(~found.iterate.converged)
    assert np.any(found.iterate.converged)
    assert np.all(found.iterate.num_matvecs <= 30)
    distance = np.min(np.abs(found.iterate.eigenvalues[:, :, None] - exact[:, None, :]), axis=2)
    largest = np.max(np.abs(exact), axis=1, keepdims=True)
    assert np.all(distance <= found.iterate.residuals + 1e-13 * largest)
    close = np.abs(found.iterate.eigenvalues - exact[:, :3]) <= 1e-6 * largest
    assert np.all(close[found.iterate.converged])


def test_all_checkpoints_and_chunks_go_through_one_compilation(small, trained):
    run = trained(replace(small, checkpoint_every=1))
    assert len(run.checkpoint_steps) == 61
    before = segments._analyse._cache_size()
    whole = hessian_spectrum(run)
    hessian_spectrum(run, [3])
    hessian_spectrum(run, range(0, 61, 2))
    assert segments._analyse._cache_size() <= before + 1
    assert whole.iterate.eigenvalues.shape == (61, 1)
    assert whole.centre.num_matvecs.shape == (61,)


def test_chosen_checkpoints_have_the_values_that_they_have_among_all(small, trained):
    run = trained(replace(small, checkpoint_every=1))
    whole, chosen = hessian_spectrum(run), [0, 2, 24, 25, 26, 59, 60]
    part = hessian_spectrum(run, chosen)
    np.testing.assert_array_equal(part.steps, whole.steps[chosen])
    for at in ("iterate", "centre"):
        for name in ("eigenvalues", "residuals", "intervals", "status", "num_matvecs"):
            np.testing.assert_array_equal(
                getattr(getattr(part, at), name), getattr(getattr(whole, at), name)[chosen]
            )


def test_progress_ends_at_the_number_of_checkpoints(small, trained):
    told, products = [], []
    run = trained(replace(small, checkpoint_every=1))
    hessian_spectrum(run, progress=told.append, watch=products.append)
    assert told == sorted(told)
    assert told[-1] == 61
    assert products == []  # of compiled passes nothing is told


def test_k_is_at_most_the_number_of_parameters(small, trained):
    run = trained(replace(small, model=ModelConfig(widths=())))
    found = hessian_spectrum(run, [1, 2], config=SpectrumConfig(k=50, max_matvecs=102))
    weights = run.scalars["class_weights"][run.checkpoint_steps[[1, 2]]]
    exact = [
        descending(softmax_regression_hessian(run, params, row))
        for params, row in zip(run.parameters([1, 2]), weights, strict=True)
    ]
    assert found.iterate.converged.all()
    np.testing.assert_allclose(found.iterate.eigenvalues, exact, atol=1e-14)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_a_run_of_fewer_bits_is_analysed_in_float64_at_its_numbers(small, trained, dtype):
    run = trained(replace(small, dtype=dtype))
    weights = run.scalars["class_weights"][run.checkpoint_steps].astype(float)
    exact = dense_spectra(make_loss(run), run.parameters().astype(float), weights)
    for certificate, rounding in (("float64", 1e-7), ("float32", 2e-5)):
        found = hessian_spectrum(run, config=SpectrumConfig(certificate=certificate))
        assert found.tol == 1e-3
        assert found.precision == certificate
        assert found.iterate.converged.all()
        # The weights of the classes are those of the run, in float32.
        low, high = np.moveaxis(found.iterate.intervals[:, 0], -1, 0)
        assert np.all(low <= exact[:, 0] * (1 + rounding))
        assert np.all(exact[:, 0] * (1 - rounding) <= high)
        np.testing.assert_allclose(found.iterate.eigenvalues[:, 0], exact[:, 0], rtol=1e-5)
