"""The published run (Ruiz-Garcia et al. 2021, Fig. 4) and what it must show.

Round-off is amplified by the bursts: from about step 5,700 on two machines agree in a statistical
sense only, so that later numbers have bounds instead of digits.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh

from dlf_dynamics import PRESETS, train
from dlf_dynamics.analysis import compute_spectrum, find_oscillations
from dlf_dynamics.analysis.instabilities.oscillation import follow, joined
from dlf_dynamics.analysis.instabilities.periods import periods_of_iterates, periods_of_loss
from dlf_dynamics.analysis.spectra.eigenvalues import hessian_spectrum
from dlf_dynamics.analysis.spectra.ntk import ntk_spectrum
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.config import SpectrumConfig

PULSE = 5001


@pytest.fixture(scope="module")
def two_pulses(tmp_path_factory):
    """The first 10,000 steps, by preset."""
    return {
        name: train(replace(PRESETS[name], steps=10_000), tmp_path_factory.mktemp("two") / "run.h5")
        for name in ("published", "published-updated")
    }


def largest_eigenvalue(run, parameters_of, weights_of):
    """Of the loss with the class weights of one step at the parameters of another, by ARPACK."""
    inputs, labels = run.problem.inputs, jax.nn.one_hot(run.problem.targets, run.num_classes)
    row = int(np.searchsorted(run.checkpoint_steps, parameters_of))
    assert run.checkpoint_steps[row] == parameters_of
    parameters = jnp.asarray(run.parameters([row])[0])
    weights = labels @ jnp.asarray(run.scalars["class_weights"][weights_of])

    def loss(parameters):
        logarithms = jax.nn.log_softmax(run.problem.apply(parameters, inputs))
        return -jnp.mean(weights * jnp.sum(labels * logarithms, axis=1))

    product = jax.jit(lambda v: jax.jvp(jax.grad(loss), (parameters,), (v,))[1])
    shape = (len(parameters), len(parameters))
    operator = LinearOperator(shape, lambda v: np.asarray(product(jnp.ravel(v))), dtype=float)
    return float(eigsh(operator, 1, which="LA", v0=np.ones(len(parameters)))[0][0])


def test_in_the_first_pulse_the_sharpness_rises_by_what_the_weights_do_to_the_parameters(
    two_pulses,
):
    """The table of "A burst in one dimension"."""
    run, middle, late = two_pulses["published"], 2500, 4000
    table = [[largest_eigenvalue(run, p, w) for w in (middle, late)] for p in (middle, late)]
    np.testing.assert_allclose(table, [[0.60, 0.64], [1.57, 1.62]], atol=0.0051)
    row = int(np.searchsorted(run.checkpoint_steps, middle))
    outputs = run.problem.apply(jnp.asarray(run.parameters([row])[0]), run.problem.inputs)
    own = np.asarray(jax.nn.softmax(outputs))[np.arange(100), 0]
    assert set(np.asarray(run.problem.targets)[:100]) == {0}
    assert round(float(np.mean(own)), 3) == 0.973


@pytest.fixture(scope="module")
def spectrum(two_pulses):
    return compute_spectrum(
        two_pulses["published"], SpectrumConfig(steps="3000:6000", every=4, k=2)
    )


def test_the_loss_in_the_middle_of_the_first_pulse_is_the_published_one(two_pulses):
    assert round(float(two_pulses["published"].scalars["loss"][2500]), 4) == 0.1326


def bursts_of(run):
    scalars = run.scalars
    windows = find_oscillations(run.steps, scalars["loss"], scalars["update_cosine"])
    return [window for window in windows if window.burst]


def test_the_published_run_has_its_first_two_bursts_where_the_authors_have_them(two_pulses):
    first, second = bursts_of(two_pulses["published"])
    assert abs(first.burst_start - 4202) <= 5
    assert abs(second.burst_start - 8941) <= 60
    np.testing.assert_allclose(first.max_change, 0.149, atol=0.002)


def test_the_updated_initialisation_has_its_own_two_bursts(two_pulses):
    changes = [burst.max_change for burst in bursts_of(two_pulses["published-updated"])]
    assert len(changes) == 2
    np.testing.assert_allclose(changes, [0.0347, 0.178], rtol=0.05)


def test_eigenvalues_are_the_published_ones_whose_index_counts_from_the_first_update(tmp_path):
    """The authors' index i is the state after update i, here step i + 1; 61 divides both steps."""
    config = replace(PRESETS["published"], steps=7501, checkpoint_every=61)
    run = train(config, tmp_path / "run.h5")
    chosen = np.flatnonzero(np.isin(run.checkpoint_steps, (2501, 7501)))
    sharpness = hessian_spectrum(run, chosen[:1])
    assert sharpness.iterate.converged.all()
    np.testing.assert_allclose(sharpness.iterate.eigenvalues[0, 0], 0.602, atol=5e-4)
    kernel = ntk_spectrum(run, chosen[1:])
    np.testing.assert_allclose(kernel.eigenvalues[0, 0], 488, atol=1.5)


def test_around_the_first_burst_every_value_converges_and_the_centre_crosses_the_threshold(
    spectrum,
):
    assert spectrum.not_converged == 0
    np.testing.assert_allclose(spectrum.thresholds, 2.0, rtol=1e-9)
    (burst,) = [window for window in spectrum.bursts if window.onset < 6000]
    inside = (spectrum.hessian.steps >= burst.burst_start) & (
        spectrum.hessian.steps <= burst.burst_end
    )
    centre = spectrum.hessian.centre.eigenvalues[:, 0]
    assert np.max(centre[inside]) > 2
    assert np.all(centre[spectrum.hessian.steps < 3500] < 2)
    assert np.all(centre[spectrum.hessian.steps > burst.end] < 2)


def test_the_first_burst_lowers_the_kernel(spectrum):
    burst, kernel = spectrum.bursts[0], spectrum.ntk
    largest = kernel.eigenvalues[:, 0]
    before = largest[kernel.steps < burst.burst_start][-1]
    inside = (kernel.steps >= burst.burst_start) & (kernel.steps <= burst.burst_end)
    assert np.min(largest[inside]) < 0.6 * before


@pytest.fixture(scope="module", params=["published", "published-updated"])
def whole(request, tmp_path_factory):
    """A whole run of 70,000 steps with its spectrum at every 100th."""
    run = train(PRESETS[request.param], tmp_path_factory.mktemp("whole") / "run.h5")
    return run, compute_spectrum(run, SpectrumConfig(every=4))


PUBLISHED_STARTS = {
    "published": [4203, 8964, 13919, 18744, 24084],
    "published-updated": [4386, 9178, 13820, 18869, 24153],
}
"""Of the first five bursts, digitised from Fig. 4 and from the updated notebook, to 20 steps."""


@pytest.mark.slow
def test_each_of_the_first_seven_pulses_has_a_burst_and_few_more_follow(whole):
    """Learning rates that differ by rounding (13 for each preset) gave 7 to 12 bursts."""
    starts = np.array([burst.burst_start for burst in whole[1].bursts])
    assert set(range(7)) <= set((starts // PULSE).tolist())
    assert 7 <= len(starts) <= 14


@pytest.mark.slow
def test_the_bursts_of_the_first_five_pulses_start_where_they_were_published(whole):
    """Learning rates that differ by rounding move the last of them by 110 steps."""
    run, spectrum = whole
    starts = np.array([burst.burst_start for burst in spectrum.bursts])
    first = [starts[starts // PULSE == pulse][0] for pulse in range(5)]
    (name,) = [name for name in PUBLISHED_STARTS if PRESETS[name] == run.config]
    apart = np.abs(np.subtract(first, PUBLISHED_STARTS[name]))
    assert np.all(apart <= [20, 60, 80, 250, 150])


@pytest.mark.slow
def test_the_bursts_are_narrow_from_the_seventh_pulse(whole):
    widths = [b.burst_end - b.burst_start for b in whole[1].bursts if b.burst_start > 6 * PULSE]
    assert all(width < 450 for width in widths)


@pytest.mark.slow
def test_loss_and_sharpness_in_the_middle_of_the_pulses_go_down(whole):
    run, spectrum = whole
    middle = ((np.arange(13) + 0.5) * PULSE).astype(int)
    loss = run.scalars["loss"][middle]
    assert np.mean(loss[-3:]) < np.mean(loss[:3]) / 5
    rows = np.searchsorted(spectrum.hessian.steps, middle)
    for found in (spectrum.hessian.iterate, spectrum.hessian.centre):
        largest = found.eigenvalues[rows, 0]
        assert np.mean(largest[-3:]) < 0.6 * np.mean(largest[:6])


@pytest.mark.slow
def test_the_sharpness_is_lowest_in_mid_pulse_and_early_bursts_end_behind_the_switch(whole):
    _, spectrum = whole
    steps, centre = spectrum.hessian.steps, spectrum.hessian.centre.eigenvalues[:, 0]
    lowest = []
    for pulse in range(13):
        inside = np.flatnonzero((steps >= pulse * PULSE) & (steps < (pulse + 1) * PULSE))
        lowest.append(steps[inside[np.nanargmin(centre[inside])]] / PULSE - pulse)
    assert np.sum(np.abs(np.subtract(lowest, 0.5)) < 0.02) >= 11
    ends = np.array([b.burst_end for b in spectrum.bursts if b.burst_start < 5 * PULSE])
    assert np.all(ends % PULSE < 0.1 * PULSE)


@pytest.mark.slow
def test_the_kernel_grows_from_120_to_thousands_and_dips_in_each_of_the_first_bursts(whole):
    """Narrow bursts, which begin in the sixth pulse, may fall between two checkpoints."""
    _, spectrum = whole
    steps, largest = spectrum.ntk.steps, spectrum.ntk.eigenvalues[:, 0]
    assert 50 < largest[0] < 250
    assert 2000 < np.max(largest) < 6000
    early = [burst for burst in spectrum.bursts if burst.burst_start < 5 * PULSE]
    assert len(early) >= 5
    for burst in early:
        before = largest[steps < burst.burst_start][-1]
        inside = (steps >= burst.burst_start) & (steps <= burst.burst_end)
        assert np.min(largest[inside]) < 0.8 * before


@pytest.mark.slow
def test_the_first_15000_steps_have_periods_2_and_4_as_published_and_a_little_8(whole):
    run, _ = whole
    replay, solver = Replay(run), Solver.from_config(run, SpectrumConfig(k=1))
    pieces = [
        follow(replay, solver, first, first + 1000, [first + 500])
        for first in range(0, 15_000, 1000)
    ]
    cosine = run.scalars["update_cosine"][:15_000]
    period = periods_of_iterates(cosine, joined(pieces).recurrence)
    assert replay.exact
    # Learning rates that differ by rounding gave the published run 0.064 to 0.075 of period 4, in
    # windows of 236 steps and more; the updated initialisation 0.038 to 0.044, in shorter ones.
    as_published = run.config == PRESETS["published"]
    assert np.mean(period == 2) == pytest.approx(0.15, abs=0.03)
    assert np.mean(period == 4) == pytest.approx(0.065 if as_published else 0.04, abs=0.015)
    assert 0 < np.mean(period == 8) < 0.02
    # Period 4 comes in windows, not as single steps, and most of it shows in the loss.
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], period == 4, [0]]))))[::2]
    assert np.max(runs) > (100 if as_published else 3)
    shown = periods_of_loss(run.scalars["loss"][:15_000])
    assert np.mean(shown[period == 4] > 0) > 0.7
    assert np.mean(shown[period == 2] > 0) > 0.8


@pytest.mark.slow
def test_the_run_ends_learned_and_never_above_what_three_equal_points_allow(whole):
    accuracy = whole[0].scalars["accuracy"]
    assert np.max(accuracy) <= 298 / 300 + 1e-12
    assert accuracy[-1] >= 0.98 or 0.91 <= accuracy[-1] <= 0.93


@pytest.mark.slow
def test_every_largest_eigenvalue_of_the_whole_run_converges(whole):
    assert whole[1].not_converged == 0
