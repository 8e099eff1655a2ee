"""The instabilities of whole runs: the same whatever was recorded, against dense eigenvalues."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.linalg import eigh

from dlf_dynamics import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    resultfile,
    train,
)
from dlf_dynamics.analysis.instabilities import frozen, instability
from dlf_dynamics.analysis.instabilities.bifurcations import (
    compute_bifurcations,
    load_bifurcations,
    look_at_each_step,
)
from dlf_dynamics.analysis.instabilities.periods import periods_of_iterates
from dlf_dynamics.analysis.instabilities.plots import diagram_figure, instability_figure
from dlf_dynamics.analysis.instabilities.summary import (
    as_dict,
    closing_lines,
    instabilities_table,
    verdict,
)
from dlf_dynamics.analysis.spectra import solver
from dlf_dynamics.analysis.spectra.events import find_oscillations
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.datasets import check_dataset
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.parts import Parts

CONFIG = BifurcationConfig(every=20, diagrams="none")


@pytest.fixture(scope="module")
def found(eventful, trained):
    return compute_bifurcations(trained(eventful), CONFIG)


def same(one, other):
    """Whether two lists of dataclasses are equal, NaN being equal to NaN."""
    return [str(event) for event in one] == [str(event) for event in other]


@pytest.mark.parametrize(
    "checkpoint_every", [25, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (50, 250))]
)
def test_the_events_do_not_depend_on_which_checkpoints_were_recorded(
    checkpoint_every, eventful, trained, found
):
    run = trained(replace(eventful, checkpoint_every=checkpoint_every))
    other = compute_bifurcations(run, CONFIG)
    assert other.note == "replayed steps meet the checkpoints bit for bit"
    assert same(other.crossings, found.crossings)
    assert same(other.instabilities, found.instabilities)
    assert len(found.crossings) >= 3
    assert len(found.instabilities) >= 1


def test_an_eigenvalue_that_rises_out_of_another_space_is_not_missed(tmp_path, monkeypatch):
    """Classes on features of their own take turns, so that the top eigenvectors are orthogonal."""
    rng = np.random.default_rng(0)
    inputs = np.zeros((24, 12))
    for label in range(2):
        features = rng.normal(size=(12, 6))
        inputs[12 * label :][:12, 6 * label :][:, :6] = features - features.mean(axis=0)
    labels = np.repeat([0, 1], 12)
    config = RunConfig(
        model=ModelConfig(widths=(), init="glorot-normal"),
        loss=LossConfig("squared-error"),
        schedule=ScheduleConfig(amplitude=9.0, period=20),
        optimizer=OptimizerConfig(learning_rate=0.02),
        steps=80,
    )
    dataset = check_dataset(inputs, labels, "disjoint")
    run = train(config, tmp_path / "run.h5", dataset=dataset)
    monkeypatch.setattr(solver, "PASS_SIZE", 0)  # as if it were a large network
    motion = compute_bifurcations(run, replace(CONFIG, every=4)).motion
    hessian = jax.jit(jax.hessian(run.problem.objective))
    params = run.parameters()[0]  # the loss is quadratic: its Hessian depends on the step alone
    top = [eigh(hessian(params, int(step)), eigvals_only=True)[-1] for step in motion.looked_at]
    np.testing.assert_allclose(motion.values, top, rtol=1e-6)
    assert len({int(step) // 20 for step in motion.looked_at}) == 4


def test_crossings_are_at_the_steps_at_which_the_dense_sharpness_crosses(
    eventful, trained, found, by_hand
):
    run = trained(eventful)
    theta = by_hand(run, 1002)
    hessian = jax.jit(jax.hessian(run.problem.objective))
    threshold = 2 / eventful.optimizer.learning_rate

    def sharpness(t):
        centre = theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4
        return float(np.linalg.eigvalsh(np.asarray(hessian(centre, t)))[-1])

    for crossing in found.crossings:
        assert crossing.state == "certain"
        assert crossing.step_after == crossing.step_before + 1
        above = crossing.direction == "up"
        assert (sharpness(crossing.step_before) > threshold) is not above
        assert (sharpness(crossing.step_after) > threshold) is above


def test_an_oscillation_behind_its_crossing_is_described(eventful, trained, found, by_hand):
    event = next(event for event in found.instabilities if event.crossed >= 0)
    run = trained(eventful)
    assert event.lag == event.onset - event.crossed
    cosine = run.scalars["update_cosine"]
    assert cosine[event.onset] < -0.5
    assert cosine[event.onset - 1] >= -0.5
    assert event.period_2 + event.period_4 + event.period_8 + event.irregular == pytest.approx(1)
    assert event.amplitude > 0
    assert 0 < event.alignment <= 1 + 1e-12
    assert np.isnan(event.gate_flips)
    assert not event.symmetric
    theta = by_hand(run, event.settled + 2)
    half = (theta[-1] - 2 * theta[-2] + theta[-3]) / 4
    assert event.amplitude <= np.linalg.norm(half) * (1 + 1e-9)


@pytest.fixture(scope="module")
def bursts(eventful, trained):
    """A run with short bursts, in which the eigenvector turns from one look to the next."""
    run = trained(
        replace(eventful, schedule=ScheduleConfig(amplitude=40.0, period=300), steps=1600)
    )
    return run, compute_bifurcations(run, replace(CONFIG, every=25))


def test_the_size_is_along_what_the_top_eigenvector_of_the_onset_has_become(bursts, by_hand):
    run, found = bursts
    theta, hessian = by_hand(run, 1602), jax.jit(jax.hessian(run.problem.objective))
    half = (2 * theta[1:-1] - theta[:-2] - theta[2:]) / 4
    sizes = np.concatenate([[0.0], np.linalg.norm(half, axis=1)])
    assert len(found.instabilities) >= 2

    def top(t):
        """Eigenvalues and vectors at the centre of a step, largest first."""
        values, vectors = eigh(np.asarray(hessian(theta[t] - half[t - 1], t)))
        return values[::-1], vectors.T[::-1]

    def same(vector, t):
        """The eigenvector of a step that is at least half a direction; NaN where none is."""
        following = top(t)[1][:6]
        match = (following @ vector) ** 2
        return following[np.argmax(match)] if np.max(match) > 0.5 else np.full(vector.size, np.nan)

    told = 0
    for event in found.instabilities:
        t, window = event.settled, slice(event.onset, event.end + 1)
        assert t == event.onset + np.argmax(sizes[window])
        values, vectors = top(event.onset)
        mine = [d for d in found.directions if d.onset == event.onset]
        above = max(int(np.sum(values > 2 / run.config.optimizer.learning_rate)), 1)
        assert [d.rank for d in mine] == list(range(1, above + 1))
        np.testing.assert_allclose([d.sharpness for d in mine], values[:above], rtol=1e-6)
        followed = vectors[0]
        for step in range(event.onset + 1, t + 1):
            followed = same(followed, step)
        # What has turned away and come back is the direction that it was.
        direct = same(vectors[0], t)
        vector = direct if np.any(np.isnan(followed)) else followed
        expected = abs(vector @ half[t - 1])
        assert mine[0].amplitude == pytest.approx(expected, rel=1e-4, nan_ok=True)
        assert event.amplitude == pytest.approx(
            np.fmax.reduce([expected, *(d.amplitude for d in mine[1:])]), rel=1e-4, nan_ok=True
        )
        if np.isfinite(expected):
            assert mine[0].alignment == pytest.approx(expected / sizes[t], rel=1e-4)
            told += 1
    assert told >= 1


def test_the_predicted_lag_ends_with_its_window_and_not_with_the_steps_looked_at(bursts):
    run, found = bursts
    whole = found.instabilities
    # When the bursts come depends on the last digits, and so on the version of JAX.
    steps = f"{whole[0].crossed - 137}:{whole[-1].end + 46}"
    part = compute_bifurcations(run, replace(found.config, steps=steps)).instabilities
    assert [event.predicted_lag for event in part] == [event.predicted_lag for event in whole]
    for event in whole:
        assert event.lag is not None
        assert event.predicted_lag == pytest.approx(event.lag, rel=0.25)
        assert event.crossed + event.predicted_lag <= min(event.end, event.returned)


def test_no_lag_is_predicted_of_a_network_with_kinks(bursts, monkeypatch):
    """The same motion, and a theory that does not apply to it."""
    run, found = bursts
    monkeypatch.setitem(vars(run), "kinks", ["max"])
    first = found.instabilities[0]
    steps = f"{first.crossed - 137}:{first.end + 46}"
    (event,) = compute_bifurcations(run, replace(found.config, steps=steps)).instabilities
    assert (event.onset, event.lag, event.criticality) == (first.onset, first.lag, "non-smooth")
    assert first.predicted_lag > 0
    assert event.predicted_lag == -1


def test_an_interrupted_analysis_goes_on_with_the_same_content(eventful, trained, found, tmp_path):
    run = trained(eventful)
    make = partial(Parts, tmp_path / "parts", "bifurcations", run, {"every": 20})

    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_bifurcations(run, CONFIG, parts=make(), progress=stop)
    assert len(list((tmp_path / "parts").iterdir())) == 1
    again = compute_bifurcations(run, CONFIG, parts=make())
    assert same(again.crossings, found.crossings)
    assert same(again.instabilities, found.instabilities)
    for one, other in zip(again.motion, found.motion, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_result_file_gives_back_what_was_written(eventful, trained, found, tmp_path, small):
    path = tmp_path / "run.bifurcations.h5"
    resultfile.save(path, "bifurcations", found)
    again = load_bifurcations(path, trained(eventful))
    assert same(again.crossings, found.crossings)
    assert same(again.instabilities, found.instabilities)
    assert again.config == CONFIG
    with pytest.raises(FileError, match="belongs to another run than"):
        load_bifurcations(path, trained(small))


def test_table_json_and_figure_tell_of_every_instability(
    eventful, trained, found, require_whole, require_schema
):
    content = as_dict(found)
    require_schema(content, "bifurcations")
    assert [event["onset"] for event in content["instabilities"]] == [
        event.onset for event in found.instabilities
    ]
    assert instabilities_table(found).row_count == len(found.instabilities)
    figure = instability_figure(found)
    assert len(figure.axes) == 3 * len(found.instabilities)
    assert all(ax.get_yscale() == "linear" for ax in figure.axes[2::3])
    growing = replace(found, thresholds=np.geomspace(10.0, 1e5, len(found.thresholds)))
    assert all(ax.get_yscale() == "log" for ax in instability_figure(growing).axes[2::3])
    twice = replace(found, instabilities=2 * found.instabilities)
    require_whole(lambda: instability_figure(twice))


@pytest.fixture(scope="module")
def calm(eventful, trained):
    config = replace(
        eventful, optimizer=OptimizerConfig(learning_rate=0.05), steps=200, checkpoint_every=50
    )
    run = trained(config)
    return run, compute_bifurcations(run, CONFIG)


def test_below_is_said_only_once_each_step_was_looked_at(calm, by_hand):
    run, found = calm
    assert found.instabilities == []
    assert found.crossings == []
    assert found.motion.looked_at.tolist() == [1, *range(20, 200, 20), 199]
    answer, (line,) = verdict(found)
    assert answer == "undecided"
    assert line.startswith(
        "cannot be told: not above at the 11 steps looked at (1 to 199), closest"
    )
    assert "but 188 in between were not looked at" in line
    each = look_at_each_step(run, found)
    assert each.motion.looked_at.tolist() == list(range(1, 200))
    answer, (line,) = verdict(each)
    assert answer == "below"
    assert line.startswith("below the threshold at each of the 199 steps (1 to 199); closest to it")
    theta, hessian = by_hand(run, 202), jax.jit(jax.hessian(run.problem.objective))
    for t in range(1, 200, 7):
        centre = theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4
        sharpness = float(np.linalg.eigvalsh(np.asarray(hessian(centre, t)))[-1])
        assert each.motion.values[t - 1] == pytest.approx(sharpness, rel=1e-6)
    part = compute_bifurcations(run, replace(CONFIG, steps="150:", every=1))
    assert verdict(part)[0] == "below"
    assert "(150 to 199, a part of the run)" in verdict(part)[1][0]


def test_what_else_is_known_keeps_a_run_from_being_called_below(calm):
    run, found = calm
    each = look_at_each_step(run, found)
    reason = lambda **changes: verdict(replace(each, **changes))  # noqa: E731
    answer, (line,) = reason(source=replace(each.source, status="diverged"))
    assert answer == "undecided"
    assert line.startswith("cannot be told: the run diverged, though it was not seen above")
    answer, (line,) = reason(source=replace(each.source, status="running"))
    assert answer == "undecided"
    assert "still being written, or its writer was killed" in line
    answer, (line,) = reason(deviation=1e-3, note="replayed steps miss the checkpoints")
    assert answer == "undecided"
    assert "not known what the run itself did" in line
    unsure = each.motion.converged.copy()
    unsure[50] = False
    answer, (line,) = reason(motion=each.motion._replace(converged=unsure))
    assert answer == "undecided"
    assert "did not converge or lies on neither side of the threshold, first at step 51" in line


def test_iterates_above_and_oscillations_about_centres_below_are_told(calm, found):
    run, coarse = calm
    each = look_at_each_step(run, coarse)
    intervals = each.motion.iterate_intervals.copy()
    intervals[each.motion.looked_at == 40] = 50.0, 51.0
    motion = each.motion._replace(iterate_intervals=intervals)
    answer, lines = verdict(replace(each, motion=motion, instabilities=found.instabilities[:1]))
    assert answer == "below"
    assert lines[1] == (
        "at the iterates themselves it was above at 1 of the 11 steps looked at there, first at "
        "step 40, about centres that are below"
    )
    assert lines[2].startswith("it oscillated all the same: 1 window, the first from step")


def test_a_crossing_between_two_looks_is_found_by_looking_at_each_step(eventful, trained, found):
    run = trained(eventful)
    coarse = compute_bifurcations(run, replace(CONFIG, every=1000, steps="10:700"))
    assert coarse.motion.looked_at.tolist() == [10, 699]
    assert coarse.crossings == []
    assert verdict(coarse)[0] == "undecided"
    each = look_at_each_step(run, coarse)
    answer, lines = verdict(each)
    assert answer == "above"
    inside = [c for c in found.crossings if 10 < c.step_before < 699]
    assert [c.direction for c in inside] == ["up", "down"]
    assert same(each.crossings, inside)
    assert f"first at step {inside[0].step_after}; 1 crossing up" in lines[0]


def test_a_run_that_is_above_from_its_first_centre_on_is_seen_to_be(eventful, trained):
    optimizer = OptimizerConfig(learning_rate=15.0)
    config = replace(eventful, schedule=ScheduleConfig("static"), optimizer=optimizer, steps=130)
    found = compute_bifurcations(trained(config), replace(CONFIG, every=25))
    answer, lines = verdict(found)
    assert answer == "above"
    assert "above from the first step looked at" in lines[1]
    above = found.motion.looked_at[found.sides > 0]
    assert above.tolist()[:3] == [1, 2, 3]


def test_steps_after_the_last_checkpoint_are_looked_at_too(eventful, tmp_path, found):
    # The loss fails at some step after the one checkpoint, at step 0, the rate having risen.
    optimizer = OptimizerConfig(
        learning_rate=500.0, learning_rate_schedule="linear", warmup_steps=1000
    )
    loss = LossConfig("squared-error")
    config = replace(eventful, loss=loss, optimizer=optimizer, checkpoint_every=2000)
    run = train(config, tmp_path / "run.h5")
    assert run.status == "diverged"
    assert run.checkpoint_steps.tolist() == [0]
    wild = compute_bifurcations(run, CONFIG)
    assert wild.motion.steps[-1] == run.steps[-1] - 1
    np.testing.assert_array_equal(wild.motion.loss, run.scalars["loss"][:-1])
    assert verdict(wild)[0] == "above"


def test_thresholds_that_change_are_compared_step_by_step(scheduled, trained, by_hand):
    run = trained(scheduled)
    each = look_at_each_step(run, compute_bifurcations(run, replace(CONFIG, every=40)))
    theta, hessian = by_hand(run, 62), jax.jit(jax.hessian(run.problem.objective))
    for row, t in enumerate(each.motion.looked_at):
        centre = theta[t - 1] / 4 + theta[t] / 2 + theta[t + 1] / 4
        sharpness = float(np.linalg.eigvalsh(np.asarray(hessian(centre, t)))[-1])
        threshold = 2 / run.scalars["learning_rate"][t]
        assert each.thresholds[row] == pytest.approx(threshold, rel=1e-6)
        assert each.sides[row] == (1 if sharpness > threshold else -1)


def test_what_did_not_converge_is_never_labelled(eventful, trained):
    found = compute_bifurcations(trained(eventful), replace(CONFIG, max_matvecs=4, tol=1e-17))
    assert found.not_converged > 0
    assert verdict(found)[0] == "undecided"
    assert all(event.criticality == "" and event.crossed == -1 for event in found.instabilities)
    assert all(np.isnan(event.flip_amplitude) for event in found.instabilities)
    # Why there is no kind is kept and printed.
    (line,) = (line for line in closing_lines(found) if line.startswith("kind of "))
    assert line == (
        "kind of 1 not known: the top eigenvector at the centre of the onset did not converge"
    )


def test_a_kind_or_the_reason_why_there_is_none(found):
    for event in found.instabilities:
        assert bool(event.criticality) != bool(event.criticality_reason)
    twice = replace(found.instabilities[0], criticality="", criticality_reason="a second one")
    some = replace(found, instabilities=[twice, replace(twice, criticality_reason=""), twice])
    assert "kind of 1, 3 not known: a second one" in closing_lines(some)


def test_a_mini_batch_run_gets_no_threshold_and_an_adaptive_one_the_words(
    small, trained, require_schema
):
    fast = OptimizerConfig(learning_rate=3.0)
    run = trained(replace(small, batch_size=4, optimizer=fast))
    batches = compute_bifurcations(run, CONFIG)
    assert find_oscillations(run.steps, run.scalars["loss"], run.scalars["update_cosine"])
    assert batches.instabilities == []
    assert "instabilities are not reported: with mini-batches" in "".join(closing_lines(batches))
    assert as_dict(batches)["instabilities_known"] is False
    assert "mini-batches" in batches.label
    assert np.all(np.isnan(batches.thresholds))
    assert batches.crossings == []
    assert verdict(batches)[0] == "undecided"
    assert batches.edge is not None
    assert np.all(batches.edge.column("side") != 0)
    text = "\n".join(closing_lines(batches))
    assert str(run.edges) in text
    assert "η / η_ms (a reference) from" in text
    require_schema(as_dict(batches), "bifurcations")
    adam = OptimizerConfig("adam", learning_rate=0.01)
    found = compute_bifurcations(trained(replace(small, optimizer=adam)), CONFIG)
    assert "frozen preconditioner" in found.label
    assert "frozen preconditioner" in as_dict(found)["threshold"]


def test_piecewise_linear_networks_are_called_non_smooth(eventful, trained):
    model = ModelConfig(widths=(10,), activation="relu", init="glorot-normal")
    run = trained(replace(eventful, model=model, steps=500))
    found = compute_bifurcations(run, CONFIG)
    assert len(found.instabilities) > 0
    for event in found.instabilities:
        assert event.criticality in ("", instability.NON_SMOOTH)
        assert np.isnan(event.flip_amplitude)
        assert np.isfinite(event.gate_flips)


def test_heavy_ball_runs_are_described_too(eventful, trained):
    run = trained(
        replace(
            eventful,
            data=DataConfig(name="blobs", points_per_class=10),
            optimizer=OptimizerConfig("heavy-ball", learning_rate=3.0, momentum=0.5),
            schedule=ScheduleConfig(amplitude=40.0, period=200),
            steps=300,
        )
    )
    found = compute_bifurcations(run, CONFIG)
    np.testing.assert_allclose(found.thresholds, (2 + 2 * 0.5) / 3.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("12", "steps is '12'; expected a:b"),
        (
            "900:",
            "steps 900: holds no step with one before and one after it; the run's are 0 to 60",
        ),
    ],
)
def test_steps_that_are_not_there_are_refused(steps, message, small, trained):
    with pytest.raises(ConfigError, match=message):
        compute_bifurcations(trained(small), replace(CONFIG, steps=steps))


def test_frozen_diagrams_show_where_the_flip_is(eventful, trained, monkeypatch, by_hand):
    monkeypatch.setattr(frozen, "VALUES", 40)
    monkeypatch.setattr(frozen, "EXPONENTS", 4)
    calm = replace(
        eventful,
        optimizer=OptimizerConfig(learning_rate=0.5),
        schedule=ScheduleConfig("static"),
        steps=400,
        checkpoint_every=100,
    )
    run = trained(calm)
    found = compute_bifurcations(run, replace(CONFIG, diagrams="390"))
    (diagram,) = found.diagrams  # a static schedule has no pulse
    assert (diagram.parameter, diagram.step, diagram.actual) == ("learning_rate", 390, 0.5)
    assert diagram.values[[0, -1]].tolist() == [0.125, 0.75]
    hessian = jax.hessian(run.problem.objective)(by_hand(run, 391)[-1], 390)
    sharpness = float(np.linalg.eigvalsh(np.asarray(hessian))[-1])
    assert 2 / sharpness > 0.75
    assert not np.any(diagram.diverged)
    assert np.max(np.abs(diagram.orbits)) < 1e-3 * np.linalg.norm(by_hand(run, 391)[-1])
    figure = diagram_figure(found)
    assert len(figure.axes) == 2


def test_frozen_diagrams_have_a_branch_on_each_side_above_the_flip(
    eventful, trained, monkeypatch, found
):
    monkeypatch.setattr(frozen, "VALUES", 30)
    monkeypatch.setattr(frozen, "EXPONENTS", 3)
    run = trained(eventful)
    event = max(found.instabilities, key=lambda event: event.period_2)
    step = (event.onset + event.end) // 2
    both = compute_bifurcations(run, replace(CONFIG, diagrams=str(step), steps="0:20")).diagrams
    assert [diagram.parameter for diagram in both] == ["learning_rate", "time"]
    rate, time = both
    assert time.values[[0, -1]].tolist() == [step - step % 400, step - step % 400 + 399]
    sizes = np.max(np.abs(rate.orbits), axis=1)
    assert sizes[-1] > 20 * sizes[0]
    above, below = np.max(rate.orbits[-1]), np.min(rate.orbits[-1])
    assert above > 0 > below
    assert np.all(rate.overlap <= 1 + 1e-12)
    for diagram in both:
        own = int(np.flatnonzero(diagram.exponent_values == diagram.actual)[0])
        assert diagram.actual in diagram.values
        assert diagram.branch_opposed[own] == 1
        assert diagram.branch_amplitude[own] > 0
        assert diagram.branch_stability[own] in (b"none found", b"unstable")
        assert np.isfinite(diagram.branch_multiplier[own])
    # Where nothing oscillates there is no orbit on the line at 0.
    assert rate.branch_opposed[0] == 0
    assert np.isnan(rate.branch_amplitude[0])
    assert rate.branch_stability[0] == b""


def test_the_legend_of_a_diagram_has_what_is_drawn_and_nothing_else():
    values, nan = np.arange(6.0), np.nan
    diagram = frozen.FrozenDiagram(
        step=7,
        parameter="rate_factor",
        actual=1.0,
        values=values,
        orbits=np.zeros((6, 2)),
        diverged=np.zeros(6, bool),
        exponent_values=values,
        exponents=np.array([-1.0, 0, 0, 0, 0, nan]),
        overlap=np.array([0.1, 0.9, 0.1, 0.1, 0.1, 0.9]),
        converged=np.array([True, True, False, True, True, False]),
        branch_centre=np.array([0.5, -1.2, 0.9, -1.1, -1.3, nan]),
        branch_opposed=np.array([0, 0, 1, 1, 0.5, nan]),
        branch_amplitude=np.array([nan, nan, 0.1, 0.2, 0.3, nan]),
        branch_residual=np.zeros(6),
        branch_multiplier=np.array([0, 0, 0.5, -0.5, 1.2, 0], complex),
        branch_multiplier_residual=np.zeros(6),
        branch_neutral=np.zeros(6, int),
        branch_stability=np.array([b"", b"", b"stable", b"none found", b"unstable", b""]),
        apart=frozen.Orbits(np.ones((6, 2)), np.zeros(6, bool)),
    )
    figure = diagram_figure(SimpleNamespace(diagrams=[diagram]))
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {
        "orbits from near the centre",
        "orbits from apart",
        "nothing oscillates",
        "nothing oscillates, beyond its flip",
        "centre of an oscillation",
        "centre of an oscillation, beyond its flip",
        "period 2, stable",
        "period 2, no multiplier beyond 1.02 found",
        "period 2, unstable",
        "exponent along the top eigenvector",
        "exponent of another direction",
        "exponent of another direction, not converged",
    }
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    (shown,) = np.nonzero(np.isfinite(lines["nothing oscillates"].get_ydata()))
    assert shown.tolist() == [0]  # and not on the other side of the flip, nor where it is irregular
    assert figure.axes[1].get_xlabel() == "learning rate / the run's own (dashed: of the run)"
    # The centre flips between 0 and 1, and the orbit of period 2 between 3 and 4.
    names = [text.get_text() for text in figure.axes[0].texts]
    assert names == ["PD 0 to 1", "LP/BP 3 to 4"]
    before = replace(diagram, apart=None)  # as files of before version 4.2 have it
    words = [
        text.get_text()
        for text in diagram_figure(SimpleNamespace(diagrams=[before])).legends[0].texts
    ]
    assert "orbits from apart" not in words
    calm = replace(diagram, branch_amplitude=np.full(6, nan), converged=np.ones(6, bool))
    (legend,) = diagram_figure(SimpleNamespace(diagrams=[calm])).legends
    words = " ".join(text.get_text() for text in legend.get_texts())
    assert "period 2" not in words
    assert "not converged" not in words


def diagram_of(**columns):
    """A diagram of four values of which only these columns matter."""
    some = np.full(4, np.nan)
    given = {
        "exponents": some,
        "overlap": some,
        "converged": np.ones(4, bool),
        "branch_centre": some,
        "branch_opposed": some,
        "branch_amplitude": some,
        "branch_residual": some,
        "branch_multiplier": some.astype(complex),
        "branch_multiplier_residual": some,
        "branch_neutral": np.zeros(4, int),
        "branch_stability": np.array([b""] * 4),
    }
    values = np.arange(4.0)
    shown = {"values": values, "orbits": np.zeros((4, 2)), "diverged": np.zeros(4, bool)}
    return frozen.FrozenDiagram(
        0, "learning_rate", 1.0, exponent_values=values, **shown, **(given | columns)
    )


@pytest.mark.parametrize(
    ("centre", "opposed", "expected"),
    [
        ([0.0, -0.6, 0.1, 0.2], [0, 0, 1, 1], [(1, 2)]),  # it would be -1.2 at 2
        ([0.0, -0.3, 0.1, 0.2], [0, 0, 1, 1], []),  # -0.6: what begins there is no flip
        ([0.1, 0.2, -0.6, 0.0], [1, 1, 0, 0], [(1, 2)]),  # the other way round
        ([0.0, -0.6, -1.1, 0.2], [0, 0, 0, 1], [(1, 2)]),  # calm beyond its flip: just begun
        ([0.1, -1.2, -1.1, 0.2], [1, 1, 1, 1], []),  # the centre of an oscillation is another
        ([0.0, -0.6, 0.1, 0.2], [np.nan, 0, 1, 1], []),  # one calm value tells no slope
    ],
)
def test_a_flip_of_the_centre_is_told_from_calm_values_alone(centre, opposed, expected):
    found = diagram_of(branch_centre=np.array(centre), branch_opposed=np.array(opposed, float))
    assert [(c.label, c.low, c.high, c.height) for c in found.changes] == [
        ("PD", *span, 0.0) for span in expected
    ]


@pytest.mark.parametrize(
    ("multiplier", "label"),
    [(-1.3, "PD"), (1.3, "LP/BP"), (0.6 + 1.1j, "NS"), (-1.2 + 1e-9j, "PD")],
)
def test_how_an_orbit_loses_its_stability_is_told_by_its_multiplier(multiplier, label):
    found = diagram_of(
        branch_multiplier=np.array([0.5, -0.6, multiplier, multiplier]),
        branch_amplitude=np.array([0.1, 0.2, 0.3, 0.4]),
        branch_stability=np.array([b"stable", b"none found", b"unstable", b"unknown"]),
    )
    (change,) = found.changes
    assert (change.label, change.low, change.high) == (label, 1, 2)
    assert change.height == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("diagrams", "message"),
    [
        ("soon", "diagrams is 'soon'; expected auto, none, or steps such as"),
        ("99", "diagrams has step 99; the run's are 0 to 60"),
    ],
)
def test_diagrams_at_steps_that_are_not_there_are_refused(diagrams, message, small, trained):
    with pytest.raises(ConfigError, match=message):
        compute_bifurcations(trained(small), replace(CONFIG, diagrams=diagrams))


def test_an_orbit_in_a_symmetric_valley_is_told_although_the_loss_shows_nothing():
    # Gradient descent on log cosh x at η = 2.1 alternates between ±0.3892410192: F is constant.
    count = 200
    steps = np.arange(count)
    loss = np.full(count, np.log(np.cosh(0.3892410192)))
    cosine, returned = np.full(count, -1.0), np.zeros((count, 3))
    periods = periods_of_iterates(cosine, returned)
    nothing = np.full(count, np.nan)
    motion = SimpleNamespace(steps=steps, periods=periods, gate_flips=nothing, loss=loss)
    (window,) = find_oscillations(steps, loss, cosine)
    found = instability._periods(motion, window)  # type: ignore[arg-type]
    assert found["symmetric"] is True
    assert (found["period_2"], found["seen_in_loss"]) == (1.0, 0.0)
    motion.loss = loss * (1 + 0.01 * (-1.0) ** steps)
    assert instability._periods(motion, window)["symmetric"] is False  # type: ignore[arg-type]
