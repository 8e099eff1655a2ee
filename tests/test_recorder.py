"""Runs that a custom training loop recorded, against the same runs made by `train`."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Problem,
    RunConfig,
    realized_edge,
    train,
)
from dlf_dynamics.analysis import compute_spectrum
from dlf_dynamics.analysis.bifurcation import (
    compute_bifurcations,
    training_map,
    training_state,
)
from dlf_dynamics.analysis.spectra.summary import closing_lines
from dlf_dynamics.assembly import initial_parameters
from dlf_dynamics.config import BifurcationConfig, ScheduleConfig, SpectrumConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.errors import ConfigError, DataError, FileError
from dlf_dynamics.loop import Setup
from dlf_dynamics.losses import ClassWeights, cross_entropy
from dlf_dynamics.opening import open_run
from dlf_dynamics.recorded import RecordedRun
from dlf_dynamics.recorder import Recorder
from dlf_dynamics.schedules import make_schedule
from dlf_dynamics.validation import problems

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = RunConfig(
    data=DataConfig(points_per_class=20),
    model=ModelConfig(widths=(10,), activation="tanh", init="glorot-normal"),
    schedule=ScheduleConfig(amplitude=40.0, period=400),
    optimizer=OptimizerConfig(learning_rate=3.0),
    steps=1000,
    checkpoint_every=10,
)


def apply(params, inputs):
    (weight, bias), (last_weight, last_bias) = params
    return jnp.tanh(inputs @ weight + bias) @ last_weight + last_bias


def test_realized_edges_of_a_loop_are_those_of_train(tmp_path):
    config = replace(CONFIG, steps=60, edge_every=7)
    trained = train(config, tmp_path / "train.h5")
    seen = []
    setup = own_setup(config, optax.sgd(3.0))
    loop(tmp_path / "own.h5", setup, 61, every=10, edge_every=7, on_record=seen.append)
    run = open_run(tmp_path / "own.h5", setup)
    assert problems(run.path) == []
    assert run.edges == trained.edges
    for name in ("realized_edge", "realized_edge_error"):
        np.testing.assert_allclose(run.scalars[name][:61], trained.scalars[name], rtol=1e-6)
    assert np.flatnonzero(np.isfinite(run.scalars["realized_edge"])).tolist() == [*range(0, 57, 7)]
    steps = [checkpoint.scalars["realized_edge_step"] for checkpoint in seen]
    assert steps == [-1, 7, 14, 28, 35, 49, 56]
    last = seen[-1].scalars
    assert float(last["realized_edge"]) == run.scalars["realized_edge"][56]


def test_no_realized_edge_is_told_of_updates_that_are_not_known(tmp_path):
    problem, optimizer, params = own_setup(CONFIG, optax.sgd(3.0))
    path = tmp_path / "run.h5"
    for options in ({"full_batch": False}, {"optimizer": None}):
        given = {"optimizer": optimizer, "edge_every": 5} | options
        with pytest.raises(ConfigError, match="the loss of the updates is not known"):
            Recorder(path, problem, **given)
    with pytest.raises(ConfigError, match="edge_every is -1; expected at least 0"):
        Recorder(path, problem, optimizer=optimizer, edge_every=-1)
    with Recorder(path, problem, optimizer=optimizer, edge_every=2) as run:
        with pytest.raises(ConfigError, match="realized_edge is given to record, and edge_every"):
            run.record(0, params, optimizer.init(params), realized_edge=1.0)
        for step in (0, 2, 3, 4):  # the update of step 0 is not seen
            run.record(step, params, optimizer.init(params))
    values = RecordedRun(path).scalars
    assert np.isnan(values["realized_edge"]).tolist() == [True] * 4
    assert np.isinf(values["realized_edge_error"]).tolist() == [False, True, False, False]


def test_realized_edges_of_mini_batches_are_given_as_scalars(tmp_path):
    problem, optimizer, params = own_setup(CONFIG, optax.sgd(0.5))
    state, path = optimizer.init(params), tmp_path / "run.h5"
    with Recorder(path, problem, optimizer=optimizer, full_batch=False) as run:
        for step in range(4):
            part = problem.take(np.arange(step, step + 8))
            change, state = optimizer.update(jax.grad(part.objective)(params, step), state, params)
            edge = realized_edge(part, params, change, step)
            told = {"realized_edge": edge.value, "realized_edge_error": edge.error}
            run.record(step, params, state, **told)
            params = optax.apply_updates(params, change)
    assert problems(path) == []
    assert open_run(path, (problem, optimizer, params)).edges.evaluated == 4


def own_setup(config, optimizer):
    """The run of a configuration, put together by hand."""
    dataset = load_dataset(config.data)
    weights = ClassWeights(make_schedule(config.schedule, dataset.num_classes))
    inputs, labels = jnp.asarray(dataset.inputs), jnp.asarray(dataset.labels)
    problem = Problem(apply, cross_entropy, inputs, labels, weights)
    return problem, optimizer, initial_parameters(config, dataset)


def loop(path, setup, steps, *, called_every=1, stop=None, **options):
    """A training loop as anybody would write it."""
    problem, optimizer, params = setup
    state = optimizer.init(params)
    visited = []

    @jax.jit
    def update(params, state, step):
        loss, slope = jax.value_and_grad(problem.objective)(params, step)
        change, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, change), state, loss

    with Recorder(path, problem, optimizer=optimizer, **options) as run:
        for step in range(steps + 1):
            after = update(params, state, step)
            visited.append(params)
            if step % called_every == 0:
                run.record(step, params, state, loss=after[2])
            if step == stop:
                raise InterruptedError
            params, state, _ = after
    assert update._cache_size() == 1
    return visited


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A run of `train` and the same one recorded in a loop, with its setup."""
    folder = tmp_path_factory.mktemp("recorded")
    setup = own_setup(CONFIG, optax.sgd(3.0))
    visited = loop(folder / "own.h5", setup, CONFIG.steps, every=10, config={"note": "by hand"})
    return train(CONFIG, folder / "run.h5"), open_run(folder / "own.h5", setup), setup, visited


def test_a_recording_holds_the_states_of_the_loop(recorded):
    _, own, _, visited = recorded
    assert problems(own.path) == []
    assert own.status == "complete"
    assert own.checkpoint_steps.tolist() == list(range(0, 1001, 10))
    assert own.settings == {"note": "by hand"}
    ((point,),) = own.points([7], 1)
    flat = [np.asarray(jnp.concatenate([x.ravel() for x in jax.tree.leaves(p)])) for p in visited]
    assert np.array_equal(point.params, flat[70])
    assert np.array_equal(point.previous_update, flat[70] - flat[69])
    assert np.array_equal(own.parameters([3, 5]), np.stack([flat[30], flat[50]]))
    assert own.unravel(point.params)[1][1].shape == (3,)


def test_a_recording_has_the_scalars_that_were_given_and_nan_for_the_others(recorded):
    run, own, _, _ = recorded
    assert own.steps.tolist() == list(range(1001))
    np.testing.assert_allclose(own.scalars["loss"], run.scalars["loss"], rtol=1e-9)
    assert np.all(np.isnan(own.scalars["accuracy"]))
    assert own.scalars["class_weights"].shape == (1001, 0)


def test_the_spectrum_of_a_recording_is_that_of_the_run_it_repeats(recorded):
    run, own, _, _ = recorded
    settings = SpectrumConfig(every=5)
    found, expected = compute_spectrum(own, settings), compute_spectrum(run, settings)
    assert found.ntk is not None
    assert expected.ntk is not None
    for at in ("iterate", "centre"):
        np.testing.assert_allclose(
            getattr(found.hessian, at).eigenvalues,
            getattr(expected.hessian, at).eigenvalues,
            rtol=1e-6,
        )
    np.testing.assert_allclose(found.thresholds, 2 / 3, rtol=1e-9)
    assert found.label == "critical eigenvalue of the loop's optimizer"
    np.testing.assert_allclose(found.ntk.trace, expected.ntk.trace, rtol=1e-8)
    np.testing.assert_allclose(found.ntk.alignment, expected.ntk.alignment, rtol=1e-8)
    sides = [(c.direction, c.step_before, c.at) for c in found.crossings]
    assert sides == [(c.direction, c.step_before, c.at) for c in expected.crossings]
    assert len(sides) > 0
    assert "no update cosines were recorded" in found.unwatched
    assert expected.unwatched == ""


def test_the_training_map_of_a_recording_has_the_class_weights_of_its_problem(recorded):
    run, own, _, _ = recorded
    ((point,),) = run.points([70], 1)
    found, expected = (
        training_map(each, 700)(training_state(each.state(point)), 2.5) for each in (own, run)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.max(np.abs(found - point.params)) > 1e-3


def test_the_instabilities_of_a_recording_are_those_of_the_run_it_repeats(recorded):
    run, own, _, _ = recorded
    settings = BifurcationConfig(diagrams="none")
    found, expected = compute_bifurcations(own, settings), compute_bifurcations(run, settings)
    assert len(found.instabilities) == len(expected.instabilities) == 1
    (event,), (same,) = found.instabilities, expected.instabilities
    assert (event.onset, event.crossed) == (same.onset, same.crossed)
    assert event.rod_amplitude == pytest.approx(same.rod_amplitude, rel=1e-4, nan_ok=True)
    assert event.coefficient == pytest.approx(same.coefficient, rel=1e-4)
    assert found.motion.loss[0] == pytest.approx(run.scalars["loss"][0])


@pytest.mark.parametrize("called_every", [1, 5])
def test_iterates_that_were_not_seen_are_made_again(recorded, tmp_path, called_every):
    _, _, setup, visited = recorded
    loop(tmp_path / "sparse.h5", setup, 30, called_every=called_every)
    run = open_run(tmp_path / "sparse.h5", setup)
    later = called_every != 1  # the update is known one step after the recorded one
    assert run.checkpoint_steps.tolist() == list(range(later, 31 + later, called_every))
    flat = [np.asarray(jnp.concatenate([x.ravel() for x in jax.tree.leaves(p)])) for p in visited]
    for (point,) in run.points(range(1, len(run.checkpoint_steps) - 1), 1):
        np.testing.assert_allclose(point.params, flat[point.step], rtol=1e-12)
        expected = flat[point.step] - flat[point.step - 1]
        np.testing.assert_allclose(point.previous_update, expected, rtol=1e-6, atol=1e-14)
    np.testing.assert_allclose(run.parameters([2])[0], flat[run.checkpoint_steps[2]], rtol=1e-12)


OPTIMIZERS = {
    "heavy ball": (optax.sgd(0.3, momentum=0.8), {"momentum": 0.8}, "heavy-ball", 0.3),
    "adam": (optax.adam(0.02), {}, "adam", 0.02),
    "adamw in a chain": (
        optax.chain(
            optax.scale_by_adam(),
            optax.add_decayed_weights(1e-4),
            optax.scale_by_learning_rate(0.02),
        ),
        {"weight_decay": 1e-4},
        "adamw",
        0.02,
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("heavy ball", "adam")),
        "adamw in a chain",
    ],
)
def test_an_optax_chain_of_ones_own_has_spectrum_and_threshold_of_the_optimizer_it_is(
    name, tmp_path
):
    optimizer, options, named, rate = OPTIMIZERS[name]
    config = replace(
        CONFIG, optimizer=OptimizerConfig(named, learning_rate=rate, **options), steps=60
    )
    setup = own_setup(config, optimizer)
    loop(tmp_path / "own.h5", setup, 60, every=20)
    settings = SpectrumConfig(every=1, ntk_examples=0)
    found = compute_spectrum(open_run(tmp_path / "own.h5", setup), settings)
    run = train(replace(config, checkpoint_every=20), tmp_path / "run.h5")
    expected = compute_spectrum(run, settings)
    np.testing.assert_allclose(
        found.hessian.centre.eigenvalues, expected.hessian.centre.eigenvalues, rtol=1e-5
    )
    np.testing.assert_allclose(found.thresholds, expected.thresholds, rtol=1e-9)
    assert found.hessian.curvature.preconditioned == ("adam" in name)
    assert ("frozen preconditioner" in found.label) == ("adam" in name)


def test_a_loss_alone_can_be_recorded_and_has_a_hessian(tmp_path):
    curvatures = jnp.array([1.0, 3.0, 5.0])
    loss = lambda params, step: jnp.sum(curvatures * params["x"] ** 2) / 2 + step * 0.0  # noqa: E731
    setup = (Problem.from_loss(loss), optax.sgd(0.1), {"x": jnp.ones(3)})
    loop(tmp_path / "own.h5", setup, 20, every=5)
    found = compute_spectrum(open_run(tmp_path / "own.h5", setup), SpectrumConfig(k=3))
    np.testing.assert_allclose(found.hessian.iterate.eigenvalues, [[5, 3, 1]] * 5, rtol=1e-12)
    assert found.ntk is None
    with pytest.raises(ConfigError, match=r"made by Problem\.from_loss and has no outputs"):
        compute_spectrum(open_run(tmp_path / "own.h5", setup), SpectrumConfig(operator="ggn"))


def test_mini_batches_get_eigenvalues_but_no_threshold_and_nothing_is_replayed(tmp_path):
    setup = own_setup(CONFIG, optax.sgd(0.1))
    loop(tmp_path / "own.h5", setup, 20, every=5, full_batch=False)
    run = open_run(tmp_path / "own.h5", setup)
    found = compute_spectrum(run, SpectrumConfig(ntk_examples=0))
    assert "mini-batches" in found.label
    assert np.all(np.isfinite(found.hessian.iterate.eigenvalues))
    assert np.all(np.isnan(found.hessian.centre.eigenvalues))
    assert np.all(found.hessian.centre.num_matvecs[1:] == 0)
    assert (found.not_converged, found.failed) == (0, [])
    text = "\n".join(closing_lines(found))
    assert "products each at the iterate alone" in text
    assert "bifurcations" not in text
    assert "crossings are not known, as there is no threshold" in text
    with pytest.raises(ConfigError, match="unknown mini-batches, or without its optimizer or"):
        compute_bifurcations(run)


@pytest.mark.parametrize(
    ("rule", "stateful", "label", "expected"),
    [
        (optax.sgd(0.1), True, "mini-batches", 20.0),
        (optax.adamw(0.01), True, "mini-batches", 38 / 0.01),
        (optax.adamw(0.01), False, "which was not recorded", None),
        (optax.lion(0.01), True, "takes the signs", None),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)), True, "clips large", None),
    ],
    ids=["sgd", "adamw", "without its state", "lion", "clipped"],
)
def test_recorded_mini_batches_have_the_full_batch_threshold_as_a_reference_or_the_reason(
    rule, stateful, label, expected, tmp_path
):
    setup = own_setup(CONFIG, rule)
    problem, _, params = setup
    options = {"optimizer": rule, "full_batch": False, "stateful": stateful}
    with Recorder(tmp_path / "own.h5", problem, **options) as recorder:
        recorder.record(0, params, rule.init(params) if stateful else ())
    found = compute_spectrum(
        open_run(tmp_path / "own.h5", setup), SpectrumConfig(ntk_examples=0, max_matvecs=100)
    )
    assert label in found.label
    assert np.all(np.isnan(found.thresholds))
    if expected is None:
        assert found.reference is None
        return
    assert found.reference is not None
    np.testing.assert_allclose(found.reference.values, expected, rtol=1e-3)
    text = "\n".join(closing_lines(found))
    assert "nothing is decided against it" in text
    assert ("weight decay is in it" in text) == (expected > 20)


def test_parameters_alone_have_eigenvalues_at_the_iterates_and_nothing_that_takes_updates(
    recorded, tmp_path
):
    _, own, (problem, optimizer, params), visited = recorded
    path = tmp_path / "alone.h5"
    with Recorder(path, problem, optimizer=None, every=100) as run:
        for step in range(0, 401, 100):
            run.record(step, visited[step])
    settings = SpectrumConfig(k=2, every=1, ntk_examples=0)
    expected = compute_spectrum(own, replace(settings, every=10)).hessian.iterate.eigenvalues[:5]
    for given in (None, optimizer):
        run = open_run(path, (problem, given, params))
        found = compute_spectrum(run, settings)
        np.testing.assert_allclose(found.hessian.iterate.eigenvalues, expected, rtol=1e-6)
        assert np.all(np.isnan(found.hessian.centre.eigenvalues))
        assert np.all(np.isnan(found.thresholds))
        assert found.label == "no threshold: the run was recorded without its optimizer"
    with pytest.raises(
        ConfigError,
        match="or the optimizer's state, or was imported, or its optimizer needs",
    ):
        compute_bifurcations(run, BifurcationConfig())


def test_an_optimizer_that_wants_the_loss_has_spectra_of_what_was_recorded(tmp_path):
    rule = optax.chain(optax.adam(0.01), optax.contrib.reduce_on_plateau(patience=2))
    problem = Problem.from_loss(lambda p, step: p["a"] ** 4 + jnp.sum(p["b"] ** 2))
    params = {"a": jnp.array(1.5), "b": jnp.ones(4)}
    setup, state, visited = (problem, rule, params), rule.init(params), []
    with Recorder(tmp_path / "own.h5", problem, optimizer=rule) as run:
        for step in range(2):
            run.record(step, params, state)
            visited.append(float(params["a"]))
            value, slope = jax.value_and_grad(problem.objective)(params, step)
            change, state = rule.update(slope, state, params, value=value)
            params = optax.apply_updates(params, change)
    run = open_run(tmp_path / "own.h5", setup)
    found = compute_spectrum(run, SpectrumConfig(ntk_examples=0, every=1))
    assert "no threshold: the optimizer's update cannot be made from gradients" in found.label
    assert "missing" in found.label
    assert np.all(np.isnan(found.hessian.centre.eigenvalues))
    assert not found.hessian.curvature.preconditioned
    expected = 12 * np.array(visited) ** 2
    np.testing.assert_allclose(found.hessian.iterate.eigenvalues[:, 0], expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="its optimizer needs more than gradients; its steps"):
        compute_bifurcations(run, BifurcationConfig())


@pytest.mark.parametrize(
    "rule",
    [
        optax.polyak_sgd(),
        optax.lbfgs(),
        optax.contrib.momo(0.1),
        optax.scale_by_backtracking_linesearch(3),
    ],
)
def test_updates_that_want_the_loss_are_known_before_one_is_made(rule):
    assert not Setup(*own_setup(CONFIG, rule)).makes_updates
    assert Setup(*own_setup(CONFIG, optax.adam(0.1))).makes_updates


@pytest.mark.parametrize("rule", ["two learning rates", "clipped"])
def test_a_run_of_an_optimizer_without_a_threshold_has_its_spectrum_and_the_reason(rule, tmp_path):
    slow, fast = optax.sgd(0.05), optax.adam(0.01)
    labels = ((0, 0), (1, 1))
    optimizer, reason = {
        "two learning rates": (
            optax.multi_transform({0: slow, 1: fast}, labels),
            "is not the same",
        ),
        "clipped": (optax.chain(optax.clip(0.1), slow), "clips large gradients"),
    }[rule]
    setup = own_setup(CONFIG, optimizer)
    loop(tmp_path / "own.h5", setup, 20, every=10)
    run = open_run(tmp_path / "own.h5", setup)
    found = compute_spectrum(run, SpectrumConfig(ntk_examples=0))
    assert re.search(f"no threshold: the optimizer's update {reason}", found.label)
    assert np.all(np.isnan(found.thresholds))
    assert np.all(found.hessian.iterate.converged)
    assert not found.hessian.curvature.preconditioned
    if rule == "clipped":
        assert compute_bifurcations(run, BifurcationConfig(every=10)).crossings == []


def test_the_recorder_compiles_nothing_twice(tmp_path):
    setup = own_setup(CONFIG, optax.adam(0.01))
    loop(tmp_path / "first.h5", setup, 10)
    from dlf_dynamics import recorder

    jitted = (recorder._copied, recorder._objective)
    before = [function._cache_size() for function in jitted]
    loop(tmp_path / "second.h5", setup, 25)
    assert [function._cache_size() for function in jitted] == before


def test_an_exception_leaves_an_interrupted_run(tmp_path):
    setup = own_setup(CONFIG, optax.sgd(3.0))
    with pytest.raises(InterruptedError):
        loop(tmp_path / "own.h5", setup, 30, every=5, stop=13)
    run = open_run(tmp_path / "own.h5", setup)
    assert run.status == "interrupted"
    assert run.checkpoint_steps.tolist() == [0, 5, 10]


def test_a_diverging_loop_keeps_its_finite_checkpoints(tmp_path):
    loss = lambda params, step: jnp.sum(params**4) + 0.0 * step  # noqa: E731
    setup = (Problem.from_loss(loss), optax.sgd(1.0), jnp.array([3.0, 3.0]))
    loop(tmp_path / "own.h5", setup, 20)
    run = open_run(tmp_path / "own.h5", setup)
    assert run.status == "diverged"
    assert 1 < len(run.checkpoint_steps) < 20
    assert np.all(np.isfinite(run.parameters()))


def recorder(path, **options):
    problem = Problem.from_loss(lambda params, step: jnp.sum(params["x"] ** 2))
    return Recorder(path, problem, **({"optimizer": optax.sgd(0.1)} | options))


X = {"x": jnp.ones(3)}


@pytest.mark.parametrize(
    ("calls", "error", "match"),
    [
        ([(0, X), (0, X)], ConfigError, "step is 0; expected more than 0, the last recorded"),
        ([(0, X), (1, {"x": jnp.ones(4)})], ConfigError, "parameters have changed their form: 4"),
        ([(0, X), (1, X, {"m": jnp.ones(3)})], ConfigError, "optimizer state have changed"),
        ([(0, {"x": jnp.arange(3)})], DataError, "array of int64; keep only floating-point"),
        ([(0, {"x": jnp.ones(3), "f": jax.nn.relu})], DataError, "'f'.*is of type"),
        ([(0, X, {"m": jnp.ones(3)})], ConfigError, "opt_state has 3 numbers in 1 leaves; the"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_line_and_the_file_stays(
    calls, error, match, tmp_path
):
    *fine, wrong = calls
    path = tmp_path / "own.h5"
    with recorder(path) as run:
        for call in fine:
            run.record(*call)
        with pytest.raises(error, match=match) as caught:
            run.record(*wrong)
    assert "\n" not in str(caught.value)
    assert path.exists() == bool(fine)
    if fine:
        assert problems(path) == []
        assert open_run(path).checkpoint_steps.tolist() == [fine[0][0]]


def test_scalars_keep_their_names(tmp_path):
    with recorder(tmp_path / "own.h5") as run:
        run.record(0, X, loss=1.0, temperature=300.0)
        with pytest.raises(ConfigError, match="scalars are loss; expected loss, temperature, as"):
            run.record(1, X, loss=1.0)
    assert open_run(tmp_path / "own.h5").scalars["temperature"].tolist() == [300.0]


def test_a_step_that_the_optimizer_has_not_counted_is_refused(tmp_path):
    optimizer = optax.adam(0.1)
    state = optimizer.init(X)
    _, state = optimizer.update(X, state, X)
    with (
        recorder(tmp_path / "own.h5", optimizer=optimizer) as run,
        pytest.raises(ConfigError, match="step is 0 but the optimizer has counted 1 updates"),
    ):
        run.record(0, X, state)


def test_a_record_inside_a_compiled_function_is_refused(tmp_path):
    with recorder(tmp_path / "own.h5") as run:
        with pytest.raises(ConfigError, match="called inside a compiled function; expected it"):
            jax.jit(lambda params: run.record(0, params))(X)
        run.record(0, X)


def test_parameters_that_other_processes_hold_are_refused(tmp_path):
    elsewhere = SimpleNamespace(is_fully_addressable=False)
    with (
        recorder(tmp_path / "own.h5") as run,
        pytest.raises(ConfigError, match="lie on devices of other processes; expected all of them"),
    ):
        run.record(0, {"x": elsewhere})


def test_a_loss_that_is_not_scalar_is_refused(tmp_path):
    problem = Problem.from_loss(lambda params, step: params["x"] ** 2)
    with (
        Recorder(tmp_path / "own.h5", problem, optimizer=optax.sgd(0.1)) as run,
        pytest.raises(DataError, match=r"loss has shape \(3,\); expected a scalar"),
    ):
        run.record(0, X)


def test_options_that_cannot_be_are_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "own.h5"
    with pytest.raises(ConfigError, match="every is 0; expected at least 1"):
        recorder(path, every=0)
    with pytest.raises(ConfigError, match="config cannot be kept as JSON"):
        recorder(path, config={"model": object()})
    path.write_text("something else")
    with pytest.raises(FileError, match="exists; pass overwrite=True"):
        recorder(path)
    with recorder(path, overwrite=True) as run:
        run.record(0, X)
    assert problems(path) == []


def test_an_error_of_writing_reaches_the_loop(tmp_path, monkeypatch):
    def full(self, *_):
        raise FileError("own.h5: no space left on the device")

    def loop():
        with recorder(tmp_path / "own.h5") as run:
            run.record(0, X)
            monkeypatch.setattr("dlf_dynamics.runwriter.RunWriter.append_scalars", full)
            for step in range(1, 100):
                run.record(step, X)

    with pytest.raises(FileError, match="no space left"):
        loop()


def changed(setup, **parts):
    problem, optimizer, params = setup
    problem = replace(problem, **{k: v for k, v in parts.items() if hasattr(problem, k)})
    return problem, parts.get("optimizer", optimizer), parts.get("params", params)


def test_a_problem_that_is_not_that_of_the_file_is_refused(recorded):
    _, own, setup, _ = recorded
    wide = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf], axis=-1), setup[2])
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), setup[2])
    for other, match in (
        (changed(setup, params=wide), r"\(2, 20\) where \[0\]\[0\] \(2, 10\) was recorded"),
        (changed(setup, params=single), "parameters are float32; recorded were float64"),
        (changed(setup, inputs=setup[0].inputs + 1e-12), "data are not those that were recorded"),
        (changed(setup, optimizer=optax.adam(0.1)), "state has 127 numbers; recorded were 0"),
        (changed(setup, example_weights=None), "at step 640 its loss is .* recorded was"),
        (changed(setup, optimizer=optax.sgd(1.0)), "10 updates of its optimizer from step 0 do"),
    ):
        with pytest.raises(ConfigError, match=match) as caught:
            open_run(own.path, other)
        assert "\n" not in str(caught.value)


def test_a_recording_says_what_it_lacks(recorded):
    run, own, setup, _ = recorded
    bare = open_run(own.path)
    assert bare.num_params == own.num_params
    with pytest.raises(ConfigError, match="recorded in a custom training loop, and does not hold"):
        _ = bare.dynamics
    with pytest.raises(ConfigError, match="only a run of `dlf-dynamics train` can do this"):
        _ = bare.config
    with pytest.raises(ConfigError, match="is a run of `dlf-dynamics train`; it needs no problem"):
        open_run(run.path, setup)
    assert json.loads(json.dumps(dict(bare.settings))) == {"note": "by hand"}
