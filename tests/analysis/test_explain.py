"""Explained steps, against dense Hessians, gates and products of Jacobians that are made here."""

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import eigh

from dlf_dynamics import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Run,
    RunConfig,
    ScheduleConfig,
    cli,
    open_run,
    resultfile,
    train,
)
from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.explanations.explanation import (
    added,
    explain,
    load_explanations,
)
from dlf_dynamics.analysis.explanations.mode import LayerShare, count_above
from dlf_dynamics.analysis.explanations.plots import explanation_figure
from dlf_dynamics.analysis.explanations.surroundings import Event
from dlf_dynamics.analysis.explanations.words import paragraph
from dlf_dynamics.analysis.instabilities.bifurcations import (
    compute_bifurcations,
)
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.report.report import run_parts
from dlf_dynamics.config import BifurcationConfig, ExplainConfig
from dlf_dynamics.errors import ConfigError, StaleError
from dlf_dynamics.labels import CURVATURE, groups_of
from dlf_dynamics.parts import Parts

KINKED = RunConfig(
    data=DataConfig(points_per_class=10),
    model=ModelConfig(widths=(6, 5), activation="relu", init="he-normal"),
    schedule=ScheduleConfig(amplitude=30.0, period=150),
    optimizer=OptimizerConfig(learning_rate=1.0),
    steps=300,
    checkpoint_every=50,
)
"""71 parameters. It oscillates from step 45 on, and the centre crosses the threshold at 295."""

BELOW, ABOVE = 135, 295

SHORT = ExplainConfig(window=20, reach=60, every=20)


class Dense:
    """A fully connected network with its loss and gradient, written out; nothing is shared."""

    def __init__(self, run, activation):
        self.inputs = np.asarray(run.dataset.inputs)
        self.labels = np.asarray(run.dataset.labels)
        self.weights = run.scalars["class_weights"]
        self.shapes = [
            leaf.shape for leaf in jax.tree.leaves(run.unravel(np.zeros(run.num_params)))
        ]
        self.activation = activation

    def layers(self, theta):
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes)])
        parts = [
            theta[a:b].reshape(s) for a, b, s in zip(ends, ends[1:], self.shapes, strict=False)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def hidden(self, theta, masks=None):
        """What goes into each hidden layer, and the outputs."""
        values, into = self.inputs, []
        *first, (weight, bias) = self.layers(theta)
        for number, (w, b) in enumerate(first):
            into.append(values @ w + b)
            passed = masks[number] * into[-1] if masks is not None else self.activation(into[-1])
            values = passed
        return into, values @ weight + bias

    def gates(self, theta):
        return [np.asarray(layer) > 0 for layer in self.hidden(np.asarray(theta))[0]]

    def losses(self, theta, step, masks=None):
        """Γ_y(t) (-ln p_y) / N of each example."""
        outputs = self.hidden(theta, masks)[1]
        each = (
            jnp.log(jnp.sum(jnp.exp(outputs), axis=1))
            - outputs[np.arange(len(self.labels)), self.labels]
        )
        return self.weights[step][self.labels] * each / len(outputs)

    def hessian(self, theta, step, masks=None, label=None):
        part = slice(None) if label is None else self.labels == label
        loss = lambda theta: jnp.sum(self.losses(theta, step, masks)[part])  # noqa: E731
        return np.asarray(jax.hessian(loss)(theta))

    def gradient(self, theta, step, masks=None):
        return np.asarray(jax.grad(lambda theta: jnp.sum(self.losses(theta, step, masks)))(theta))


@pytest.fixture(scope="module")
def kinked(trained, by_hand):
    """The network with kinks: run, dense network, iterates."""
    run = trained(KINKED)
    return run, Dense(run, lambda x: jnp.where(x > 0, x, 0)), by_hand(run, 301)


@pytest.fixture(scope="module")
def smooth(eventful, trained, by_hand):
    run = trained(eventful)
    return run, Dense(run, jnp.tanh), by_hand(run, 1001)


@pytest.fixture(scope="module")
def made(kinked):
    """What is found of both steps of the network with kinks."""
    return {t: explain(kinked[0], replace(SHORT, step=t)) for t in (BELOW, ABOVE)}


@pytest.fixture(scope="module")
def told(made):
    return {t: found.of_step(t) for t, found in made.items()}


@pytest.fixture(scope="module")
def known(smooth):
    run = smooth[0]
    return compute_bifurcations(run, BifurcationConfig(every=25, diagrams="none"))


@pytest.fixture(scope="module")
def moments(known):
    """Steps of the smooth run: behind a crossing and not oscillating yet; oscillating."""
    event = next(e for e in known.instabilities if e.crossed >= 0 and e.lag > 10)
    return (event.crossed + event.onset) // 2, event.onset + 20, event


@pytest.fixture(scope="module")
def told_smooth(smooth, moments):
    return {
        t: explain(smooth[0], replace(SHORT, step=t, reach=700)).of_step(t) for t in moments[:2]
    }


def centre_of(theta, t):
    return theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4


@pytest.mark.parametrize("step", [BELOW, ABOVE])
def test_eigenvalues_and_shares_are_those_of_dense_hessians(step, kinked, told):
    _, dense, theta = kinked
    require_mode(told[step], dense, theta, rtol=1e-6)
    above, more = count_above(told[step].mode.directions)
    values = np.linalg.eigvalsh(dense.hessian(centre_of(theta, step), step))
    assert (above, more) == (int(np.sum(values > 2)), False)


@pytest.mark.slow
def test_the_same_of_a_smooth_network(smooth, told_smooth):
    _, dense, theta = smooth
    for one in told_smooth.values():
        require_mode(one, dense, theta, rtol=1e-6)


def require_mode(one, dense, theta, rtol):
    t, mode = one.step, one.mode
    for at, point in (("iterate", theta[t]), ("centre", centre_of(theta, t))):
        values, vectors = eigh(dense.hessian(point, t))
        rows = [row for row in mode.directions if row.at == at]
        np.testing.assert_allclose([row.value for row in rows], values[::-1][:3], rtol=rtol)
        assert all(row.side == np.sign(row.value - one.threshold) for row in rows)
    top, offset = vectors[:, -1], theta[t] - point
    assert abs(top @ mode.vector) == pytest.approx(1, abs=1e-8)
    assert one.projection == pytest.approx(abs(top @ offset), rel=1e-5)
    assert one.amplitude == pytest.approx(np.linalg.norm(offset), rel=1e-9)
    for row, vector in zip(rows, vectors.T[::-1], strict=False):
        assert row.projection == pytest.approx(abs(vector @ offset), rel=1e-4, abs=1e-12)
    parts = [top @ dense.hessian(point, t, label=label) @ top for label in range(3)]
    np.testing.assert_allclose([c.curvature for c in mode.classes], parts, rtol=1e-5, atol=1e-9)
    assert sum(c.share for c in mode.classes) == pytest.approx(1)
    assert mode.curvature == pytest.approx(values[-1], rel=rtol)
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in dense.shapes)])
    shares = [np.sum(top[a:b] ** 2) for a, b in pairwise(ends)]
    np.testing.assert_allclose([layer.share for layer in mode.layers], shares, atol=1e-8)
    assert mode.layers[0].name == "weights of layer 1"
    assert one.growth == pytest.approx(abs(1 - 2 / one.threshold * values[-1]), rel=1e-5)


@pytest.mark.parametrize("step", [BELOW, ABOVE])
def test_flips_and_what_they_do_are_those_of_gates_held_by_hand(step, kinked, told):
    _, dense, theta = kinked
    one, centre = told[step], centre_of(theta, step)
    pieces, t, n = one.pieces, step, one.multipliers.steps
    before, after, there, later = map(dense.gates, (theta[t], theta[t + 1], centre, theta[t + n]))
    count = lambda one, other: [int(np.sum(a != b)) for a, b in zip(one, other, strict=True)]  # noqa: E731
    assert [row.next_step for row in pieces.gates] == count(before, after)
    assert [row.over_period for row in pieces.gates] == count(before, later)
    assert [row.gates for row in pieces.gates] == [30 * 6, 30 * 5]
    assert sum(count(before, after)) > 0
    top = eigh(dense.hessian(centre, t))[1][:, -1]
    jump = [top @ dense.hessian(centre, t, gates) @ top for gates in (before, after)]
    np.testing.assert_allclose([pieces.curvature_before, pieces.curvature_after], jump, rtol=1e-5)
    phases = [top @ dense.hessian(theta[s], t) @ top for s in range(t, t + n + 1)]
    np.testing.assert_allclose(pieces.phases, phases, rtol=1e-5)
    whole = dense.gradient(theta[t + 1], t) - dense.gradient(theta[t], t)
    move = theta[t + 1] - theta[t]
    for row, gates, point in zip(pieces.changes, (before, there), (theta[t], centre), strict=True):
        linear = dense.hessian(point, t, gates) @ move
        held = dense.gradient(theta[t + 1], t, gates) - dense.gradient(theta[t], t, gates)
        parts = [linear, held - linear, whole - held]
        shares = [part @ whole / (whole @ whole) for part in parts]
        np.testing.assert_allclose([row.linear, row.within, row.pieces], shares, atol=1e-8)
        curvatures = [part @ move / (move @ move) for part in parts]
        found = [row.linear_curvature, row.within_curvature, row.pieces_curvature]
        np.testing.assert_allclose(found, curvatures, atol=1e-8)
        assert row.secant == pytest.approx(sum(curvatures))
        left = np.linalg.norm(whole - linear) / np.linalg.norm(whole)
        assert row.left == pytest.approx(left)


def require_multipliers(found, product, mode):
    """The largest eigenvalues of a matrix, apart from those near +1, and what it does to a mode."""
    values = np.linalg.eigvals(product)
    apart = values[(np.abs(values - 1) > 0.02 * found.steps) & (values.imag >= -1e-12)]
    largest = apart[np.argsort(-np.abs(apart))][: min(3, len(found.found))]
    mine = np.array([complex(one.real, one.imaginary) for one in found.found])
    np.testing.assert_allclose(np.abs(mine[: len(largest)]), np.abs(largest), rtol=1e-6)
    for value, one in zip(mine, found.found, strict=True):
        assert np.min(np.abs(values - value)) < 1e-6
        assert one.residual < 1e-5
    image, num_params = product @ mode, np.count_nonzero(mode)
    vectors = np.linalg.eig(product)[1]
    for value, one in zip(mine, found.found, strict=True):
        mine_of = vectors[:, np.argmin(np.abs(values - value))][:num_params]
        overlap = abs(mode[:num_params] @ mine_of) / np.linalg.norm(mine_of)
        assert one.overlap == pytest.approx(overlap, abs=1e-5)
    assert found.along == pytest.approx(mode @ image, rel=1e-6)
    assert found.stretch == pytest.approx(np.linalg.norm(image[:num_params]), rel=1e-6)


@pytest.mark.parametrize("step", [BELOW, ABOVE])
def test_multipliers_are_those_of_the_product_of_jacobians(step, kinked, told):
    _, dense, theta = kinked
    one, product = told[step], np.eye(71)
    assert one.multipliers.steps == 2  # the motion is irregular
    for s in (step, step + 1):
        product = (np.eye(71) - dense.hessian(theta[s], s)) @ product
    require_multipliers(one.multipliers, product, one.mode.vector)


@pytest.mark.slow
def test_multipliers_with_momentum_are_those_of_parameters_and_velocity(small, trained, by_hand):
    rule = OptimizerConfig("heavy-ball", learning_rate=0.3, momentum=0.5)
    run = trained(replace(small, optimizer=rule))
    dense, theta, step = Dense(run, jnp.tanh), by_hand(run, 61), 30
    one = explain(run, replace(SHORT, step=step)).of_step(step)
    assert one.multipliers.steps == 1
    eye, bend = np.eye(15), dense.hessian(theta[step], step)
    # v' = g + β v, θ' = θ - η v'
    product = np.block([[eye - 0.3 * bend, -0.15 * eye], [bend, 0.5 * eye]])
    require_multipliers(one.multipliers, product, np.pad(one.mode.vector, (0, 15)))
    values = np.linalg.eigvalsh(dense.hessian(centre_of(theta, step), step))
    assert one.mode.first().value == pytest.approx(values[-1], rel=1e-6)
    assert one.threshold == pytest.approx(2 * 1.5 / 0.3)


@pytest.mark.slow
def test_with_adam_the_mode_is_a_direction_of_the_parameters(adaptive, trained, by_hand):
    run, step = trained(adaptive), 30
    dense, theta = Dense(run, jnp.tanh), by_hand(run, 61)
    one = explain(run, replace(SHORT, step=step)).of_step(step)
    square = np.zeros(15)
    for t in range(step + 1):  # the next update takes in the gradient of this step
        square = 0.999 * square + 0.001 * dense.gradient(theta[t], t) ** 2
    scale = (1 - 0.9 ** (step + 1)) * (np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8)
    values, vectors = eigh(dense.hessian(centre_of(theta, step), step), np.diag(scale))
    assert one.mode.first().value == pytest.approx(values[-1], rel=1e-5)
    assert one.mode.curvature == pytest.approx(values[-1], rel=1e-5)
    cosine = vectors[:, -1] @ one.mode.vector
    cosine /= np.linalg.norm(vectors[:, -1]) * np.linalg.norm(one.mode.vector)
    assert abs(cosine) == pytest.approx(1, abs=1e-6)
    assert "the preconditioned sharpness is" in one.paragraph
    assert np.isnan(one.mode.first().projection)


@pytest.mark.slow
def test_a_step_behind_its_crossing_is_said_to_be_hidden_by_the_drift(told_smooth, moments):
    step, _, event = moments
    words = told_smooth[step].paragraph
    assert f"At the centre of step {step:,} the sharpness is" in words
    assert "surely above the threshold" in words
    assert "The step lies in no oscillation" in words
    assert f"the next one begins at step {event.onset:,}, {event.onset - step} steps later" in words
    assert f"begins {event.lag} steps after the centres crossed the threshold" in words
    assert f"(step {event.crossed:,}); a prediction could not be made." in words
    assert "So the centre is unstable, but the deviation is still hidden by the drift." in words
    assert "gates" not in words


@pytest.mark.slow
def test_a_step_in_the_oscillation_is_said_to_oscillate(told_smooth, moments):
    _, step, event = moments
    one = told_smooth[step]
    assert one.period == 2
    assert f"an oscillation that began at step {event.onset:,}" in one.paragraph
    assert "its period here is 2" in one.paragraph
    assert f"It began {event.lag} steps after the centres crossed" in one.paragraph
    assert one.multipliers.steps == 2


def test_an_oscillation_below_the_threshold_is_said_to_be_one(told):
    words = told[BELOW].paragraph
    assert (
        "surely below (but for a probability of 1e-06) the threshold 2 (critical eigenvalue"
        in words
    )
    assert "the motion is irregular here" in words
    assert "So the iterates oscillate about a centre that is stable by its linearised" in words
    assert "gates flip (" in words
    assert " in layer 1, " in words
    assert "bends of the loss within the linear piece" in words


def test_a_kinked_step_above_says_so(told):
    words = told[ABOVE].paragraph
    assert "surely above the threshold 2" in words
    assert "So the centre is unstable, " in words


def changed(one, at="centre", **changes):
    """The explanation with the largest eigenvalue at a point changed."""
    place = next(i for i, row in enumerate(one.mode.directions) if row.at == at)
    rows = list(one.mode.directions)
    rows[place] = replace(rows[place], **changes)
    return replace(one, mode=one.mode._replace(directions=rows))


def test_what_is_not_decided_or_not_converged_is_said(told):
    one = told[ABOVE]
    words = paragraph(changed(one, side=0, lower=1.9, upper=2.1))
    assert "is between 1.9 and 2.1, so it is not decided on which side of the threshold" in words
    assert "So it is not decided whether the centre is unstable." in words
    assert "surely above the threshold 2" not in words
    words = paragraph(changed(one, side=0, converged=False))
    assert "did not converge" in words
    assert "which did not converge, lies" in words
    assert "So it is not decided" in words
    words = paragraph(changed(one, "iterate", side=0))
    assert "side not decided" in words
    words = paragraph(changed(one, value=float("nan"), side=0, converged=False))
    assert "the sharpness is not finite" in words


def test_several_directions_are_counted(told):
    one = told[ABOVE]
    centre = [replace(row, side=1, projection=0.1) for row in one.mode.directions[3:]]
    mode = one.mode._replace(directions=[*one.mode.directions[:3], *centre])
    words = paragraph(replace(one, mode=mode))
    assert "Three directions are surely above the threshold there; there may be more." in words
    assert "Along them the iterate is 0.1, 0.1, 0.1 away from its centre" in words
    two = mode._replace(directions=[*mode.directions[:5], replace(centre[2], side=-1)])
    words = paragraph(replace(one, mode=two))
    assert "Two directions are surely above the threshold there; all others are surely" in words
    open_ = mode._replace(directions=[*mode.directions[:5], replace(centre[2], side=0)])
    assert "Two directions are surely above the threshold there; there may be more." in paragraph(
        replace(one, mode=open_)
    )


def test_of_one_parameter_there_is_no_other_direction(told):
    one = told[ABOVE]
    (row,) = [row for row in one.mode.directions if row.at == "centre"][:1]
    assert row.side > 0
    mode = one.mode._replace(directions=[row, replace(row, at="iterate")])
    alone = mode._replace(vector=np.ones(1), centre=np.zeros(1))
    assert count_above(mode.directions, size=71) == (1, True)
    assert count_above(alone.directions, size=1) == (1, False)
    assert "whether more are is not decided" in paragraph(replace(one, mode=mode))
    assert "It is the only direction there is." in paragraph(replace(one, mode=alone))


def test_parameters_of_other_networks_are_called_by_their_own_names(told):
    one = told[BELOW]
    mode = one.mode._replace(layers=[LayerShare("out", 0.9), LayerShare("in/kernel", 0.1)])
    assert "lies 90 % in out and 10 % in in/kernel;" in paragraph(replace(one, mode=mode))
    assert " in the weights of layer " in one.paragraph


def test_runs_whose_steps_cannot_be_made_again_are_refused_in_one_line():
    run = SimpleNamespace(own_updates=False, path="own.h5")
    with pytest.raises(ConfigError, match=r"^own.h5 was recorded of mini-batches.*be explained$"):
        explain(cast(Run, run), ExplainConfig(step=3))


def test_calm_steps_and_steps_without_their_own_oscillation_are_said_to_be_so(told):
    one = replace(told[BELOW], period=0, events=[])
    words = paragraph(one)
    assert "The step lies in no oscillation: none was seen in steps 75 to 195" in words
    assert "So neither is the centre unstable nor do the iterates oscillate at this step." in words
    away = replace(told[ABOVE], projection=0.01 * told[ABOVE].amplitude)
    assert "but the iterates oscillate mostly in other directions." in paragraph(away)
    quiet = replace(told[ABOVE], period=0, projection=10 * told[ABOVE].drift)
    assert "So the centre is unstable, but no oscillation is seen." in paragraph(quiet)


def test_a_size_beyond_the_largest_number_is_not_compared_with_anything(told):
    one = told[ABOVE]
    assert one.mode.first().side > 0
    for part in ({"amplitude": np.inf}, {"drift": np.inf}, {"amplitude": np.inf, "drift": np.inf}):
        for period in (0, 2):
            words = paragraph(replace(one, projection=1e154, period=period, **part))
            assert "from its centre is beyond the largest number" in words
            assert words.rstrip(".").endswith("So the centre is unstable")
            assert "inf " not in words
            assert "nan" not in words


def test_the_lag_is_told_with_what_it_rests_on(told):
    one = replace(told[ABOVE], step=250, first_looked=100, last_looked=400)
    event = Event(200, 300, begin_seen=True, crossed=150)
    say = lambda **changes: paragraph(replace(one, events=[replace(event, **changes)]))  # noqa: E731
    behind = "It began 50 steps after the centres crossed the threshold (step 150); "
    assert behind + "for a network with kinks none are predicted." in say()
    assert behind + "from the growth of rounding errors 47 are predicted." in say(predicted_lag=47)
    assert "It began while the centres were not seen above the threshold: they cross it up at " in (
        say(crossed=230)
    )
    assert "at step 230, 30 steps after the onset." in say(crossed=230)
    assert "No crossing of the threshold belongs to it in the steps looked at (100 to 400)." in (
        say(crossed=-1)
    )
    unseen = say(begin_seen=False, onset_known=False, end_known=False)
    assert "began before step 200 and goes on beyond step 300" in unseen
    assert "Crossings before it are not known, but from the steps looked at (100 to 400), in" in (
        unseen
    )
    smooth = replace(one, kinks=(), events=[event])
    assert behind + "a prediction could not be made." in paragraph(smooth)
    early = paragraph(replace(one, step=180, period=0, events=[event]))
    assert "the next one begins at step 200, 20 steps later" in early
    assert "That one begins 50 steps after the centres crossed the threshold (step 150);" in early
    late = paragraph(replace(one, step=320, period=0, events=[event]))
    assert "the last one ended at step 300, 20 steps before" in late
    assert "It began" not in late
    sized = say(amplitude=0.26, settled=280, flip_amplitude=0.11, rod_amplitude=0.33)
    assert "measured at step 280: 0.26 along the top eigenvector there; predicted are 0.11 by" in (
        sized
    )


def test_what_lies_beyond_the_steps_looked_at_is_said_not_to_be_known(kinked, told):
    """The oscillation begins at 45, before the steps that were looked at around 135."""
    run = kinked[0]
    (event,) = told[BELOW].events
    oscillating = np.flatnonzero(run.scalars["update_cosine"] < -0.5)
    assert event.onset == oscillating[0] < told[BELOW].first_looked
    assert not event.begin_seen
    words = told[BELOW].paragraph
    assert f"began at step {event.onset}" in words
    assert "Crossings before it are not known, but from the steps looked at (75 to 195)." in words
    assert "No crossing" not in words


@pytest.mark.slow
def test_the_facts_are_the_same_from_the_file_of_bifurcations(
    smooth, moments, known, told_smooth, tmp_path
):
    run, step = smooth[0], moments[1]
    copy = tmp_path / "run.h5"
    shutil.copyfile(run.path, copy)
    resultfile.save(tmp_path / "run.bifurcations.h5", "bifurcations", known)
    one = explain(open_run(copy), replace(SHORT, step=step)).of_step(step)
    (event,) = one.events
    (replayed,) = told_smooth[step].events
    mine, other = asdict(event), asdict(replayed)
    assert mine == pytest.approx(other, rel=1e-6, nan_ok=True)
    assert mine["crossed"] > 0
    assert one.origin == "run.bifurcations.h5"
    assert told_smooth[step].origin.endswith("replayed, beyond them recorded rows")
    np.testing.assert_array_equal(one.around.projection, told_smooth[step].around.projection)
    np.testing.assert_array_equal(one.around.loss, told_smooth[step].around.loss)


@pytest.mark.slow
def test_a_file_of_an_earlier_state_or_of_other_steps_is_not_used(
    smooth, moments, known, small, trained, tmp_path
):
    run, step = smooth[0], moments[1]
    copy = tmp_path / "run.h5"
    shutil.copyfile(run.path, copy)
    other = replace(known, source=trained(small).source)
    resultfile.save(tmp_path / "run.bifurcations.h5", "bifurcations", other)
    assert "replayed" in explain(open_run(copy), replace(SHORT, step=step)).of_step(step).origin
    part = compute_bifurcations(run, BifurcationConfig(steps=f"{step + 5}:", diagrams="none"))
    resultfile.save(tmp_path / "run.bifurcations.h5", "bifurcations", part)
    assert "replayed" in explain(open_run(copy), replace(SHORT, step=step)).of_step(step).origin


def test_the_projection_is_on_the_mode_of_the_step(kinked, told):
    _, _, theta = kinked
    one = told[BELOW]
    steps = one.around.steps
    assert steps.tolist() == list(range(BELOW - 20, BELOW + 21))
    offsets = np.stack([theta[t] - centre_of(theta, t) for t in steps])
    np.testing.assert_allclose(one.around.projection, offsets @ one.mode.vector, atol=1e-12)


@pytest.fixture
def copied(kinked, tmp_path):
    path = tmp_path / "run.h5"
    shutil.copyfile(kinked[0].path, path)
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Only the names of figures are told, as drawing takes long; of `plot` they are kept."""
    names = []

    def save(figure, stem, formats):
        names.append(stem.name)
        return [stem.with_name(f"{stem.name}.{suffix}") for suffix in formats]

    monkeypatch.setattr(style, "save", save)
    return names


def command(capsys, *words):
    code = cli.main(["explain", *map(str, words), "--window", "20", "--reach", "60", "--quiet"])
    return code, capsys.readouterr()


@pytest.mark.slow
def test_another_step_is_added_to_the_file_and_draws_its_own_figure(
    copied, capsys, require_schema, undrawn
):
    code, printed = command(capsys, copied, "--step", BELOW, "--json")
    assert code == 0
    answer = json.loads(printed.out)
    require_schema(answer, "explain")
    assert [one["step"] for one in answer["explanations"]] == [BELOW]
    assert f"run.explain-{BELOW}.png" in printed.err
    code, printed = command(capsys, copied, "--step", ABOVE)
    assert f"At the centre of step {ABOVE} the" in printed.out
    assert f"step {BELOW} the" not in printed.out
    assert f"run.explain-{ABOVE}.png" in printed.err
    assert f"run.explain-{BELOW}.png" not in printed.err
    before = load_explanations(copied.with_name("run.explain.h5"), open_run(copied))
    assert [one.step for one in before.explanations] == [BELOW, ABOVE]
    # The same step with other settings takes the place of the old one, and of no other.
    code, printed = command(capsys, copied, "--step", BELOW, "--every", "10", "--no-figures")
    found = load_explanations(copied.with_name("run.explain.h5"), open_run(copied))
    assert [(one.step, one.config.every) for one in found.explanations] == [
        (BELOW, 10),
        (ABOVE, 25),
    ]
    assert str(found.of_step(ABOVE)) == str(before.of_step(ABOVE))
    undrawn.clear()
    assert cli.main(["plot", str(copied)]) == 0
    assert {f"run.explain-{BELOW}", f"run.explain-{ABOVE}"} <= set(undrawn)
    assert cli.main(["validate", str(copied.with_name("run.explain.h5"))]) == 0
    (part,) = [part for part in run_parts(open_run(copied))[0] if part.title == "Explained steps"]
    assert [row[0] for row in part.tables[0].rows] == [str(BELOW), str(ABOVE)]
    with pytest.raises(ConfigError, match="step 7 is not explained; expected one of 135, 295"):
        found.of_step(7)


def test_steps_of_an_earlier_state_of_the_run_are_not_kept(made, kinked, small, trained, tmp_path):
    run, one = kinked[0], made[BELOW]
    other = replace(one, source=trained(small).source)
    assert added(other, one) == one
    resultfile.save(tmp_path / "run.explain.h5", "explain", other)
    with pytest.raises(StaleError, match="belongs to another run than"):
        load_explanations(tmp_path / "run.explain.h5", run)


def test_the_file_gives_back_what_was_written(told, made, kinked, tmp_path):
    run, found = kinked[0], made[ABOVE]
    resultfile.save(tmp_path / "run.explain.h5", "explain", found)
    (again,) = load_explanations(tmp_path / "run.explain.h5", run).explanations
    assert again.paragraph == told[ABOVE].paragraph
    assert json.dumps(analysis_named("explain").as_dict(replace(found, explanations=[again]))) == (
        json.dumps(analysis_named("explain").as_dict(found))
    )
    np.testing.assert_array_equal(again.mode.vector, told[ABOVE].mode.vector)


def test_an_interrupted_explanation_goes_on(kinked, tmp_path, told, monkeypatch):
    run = kinked[0]
    make = partial(Parts, tmp_path / "parts", "explain", run, {"step": BELOW})

    def stop(done):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(run, replace(SHORT, step=BELOW), parts=make(), progress=stop)
    names = {path.stem for path in (tmp_path / "parts").iterdir()}
    assert {"mode-135", "around-135-75", "around-135-located", "pieces-135"} <= names
    module = "dlf_dynamics.analysis.explanations.explanation"
    monkeypatch.setattr(f"{module}.mode_of", None)  # it is not computed again
    again = explain(run, replace(SHORT, step=BELOW), parts=make()).of_step(BELOW)
    assert again.paragraph == told[BELOW].paragraph


@pytest.mark.parametrize("step", [0, 300, 10**6])
def test_steps_without_a_centre_are_refused(step, kinked):
    with pytest.raises(ConfigError, match=rf"step is {step}; expected 1 to 299, which have"):
        explain(kinked[0], ExplainConfig(step=step))


@pytest.mark.parametrize(
    ("key", "value"), [("step", -1), ("window", 0), ("reach", 0), ("every", 0), ("k", 0)]
)
def test_settings_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value}; expected at least"):
        ExplainConfig(**{key: value})


def test_other_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="tol is 2; expected a number between 0 and 1"):
        ExplainConfig(tol=2)
    with pytest.raises(ConfigError, match="max_matvecs is 10; expected at least 22"):
        ExplainConfig(k=10, max_matvecs=10)


def test_without_a_step_it_is_the_last_one_that_has_a_centre(kinked):
    (one,) = explain(kinked[0], SHORT).explanations
    assert one.step == 299
    assert one.multipliers.steps == 1
    assert one.around.steps[-1] == 299


@pytest.mark.slow
def test_of_mini_batches_no_oscillation_is_told(small, trained):
    run = trained(replace(small, batch_size=6))
    (one,) = explain(run, replace(SHORT, step=30)).explanations
    assert one.period == 0
    assert not one.events
    assert "no side of a threshold is told: mini-batches" in one.paragraph
    assert "Oscillations are not told: with mini-batches" in one.paragraph
    assert "each update is that of other examples" in one.paragraph
    assert "So " not in one.paragraph
    assert one.mode.classes
    assert explanation_figure(one).axes


@pytest.mark.slow
def test_an_oscillation_of_a_smooth_network_is_described_from_replayed_steps(small, trained):
    config = replace(
        small,
        schedule=ScheduleConfig("static"),
        loss=replace(small.loss, name="squared-error"),
        optimizer=OptimizerConfig(learning_rate=4.0),
    )
    (one,) = explain(trained(config), replace(SHORT, step=40, every=60)).explanations
    assert "replayed" in one.origin
    (event,) = one.events
    assert event.onset <= 40 <= event.end
    assert event.onset <= event.settled <= event.end
    assert event.amplitude > 0


@pytest.mark.slow
def test_a_run_that_diverged_is_told_as_far_as_it_went(small, tmp_path):
    config = replace(
        small,
        loss=replace(small.loss, name="squared-error"),
        optimizer=OptimizerConfig(learning_rate=30.0),
        model=replace(small.model, activation="relu"),
    )
    run = train(config, tmp_path / "run.h5")
    assert run.status == "diverged"
    (one,) = explain(run, SHORT).explanations
    assert "surely above the threshold" in one.paragraph or "not " in one.paragraph
    assert explanation_figure(one).axes


@pytest.mark.slow
def test_float32_runs_are_explained_in_float64(small, trained, by_hand):
    run = trained(replace(small, dtype="float32"))
    dense, theta, step = Dense(run, jnp.tanh), by_hand(run, 61).astype(float), 30
    (one,) = explain(run, replace(SHORT, step=step)).explanations
    values = np.linalg.eigvalsh(dense.hessian(centre_of(theta, step), step))
    assert one.mode.first().value == pytest.approx(values[-1], rel=1e-5)
    product = np.eye(15) - 0.3 * dense.hessian(theta[step], step)
    require_multipliers(one.multipliers, product, one.mode.vector)


def test_the_figure_marks_the_step_and_has_a_panel_of_gates_only_with_gates(told, require_whole):
    assert len(explanation_figure(told[BELOW]).axes) == 4
    one = told[BELOW]
    around = replace(one.around, gate_flips=np.full(len(one.around.steps), np.nan))
    assert len(explanation_figure(replace(one, around=around)).axes) == 3
    for ax in explanation_figure(told[ABOVE]).axes:
        marks = [line.get_xdata()[0] for line in ax.get_lines() if line.get_label() == "step 295"]
        assert marks == [ABOVE]
    require_whole(lambda: explanation_figure(told[BELOW]))


def test_the_figure_of_a_run_that_diverged_has_ticks_that_are_numbers(told):
    one = told[BELOW]
    loss, projection = (np.array(part) for part in (one.around.loss, one.around.projection))
    loss[-3:], projection[-3:] = (1e80, 1e200, 4e300), (1e40, -1e152, 1e160)
    around = replace(one.around, loss=loss, projection=projection)
    figure = explanation_figure(replace(one, around=around))
    figure.canvas.draw()
    top, middle = (ax.get_ylim() for ax in figure.axes[:2])
    assert max(*top, *middle) <= 1e150
    assert any("2 above, up to 4" in text.get_text() for text in figure.axes[0].texts)


def test_what_is_told_has_units(made):
    groups = {group.path: group.fields for group in groups_of(made[BELOW])}
    units = {
        path.partition("/")[2] + name: field.units
        for path, fields in groups.items()
        for name, field in fields.items()
    }
    found = [name for name in units if name.endswith(("directions/value", "around/values"))]
    assert len(found) == 2
    assert all(units[name] == CURVATURE for name in found)
    assert units[next(name for name in units if name.endswith("classes/share"))] == "fraction"
