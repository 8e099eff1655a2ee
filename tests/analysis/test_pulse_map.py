"""Maps of pulses against dense products, finite differences, closed forms and NumPy."""

import json
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlf_dynamics import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    open_run,
    resultfile,
    train,
)
from dlf_dynamics.analysis import pulse_map
from dlf_dynamics.analysis.instabilities import propagator
from dlf_dynamics.analysis.instabilities import pulse_map as pulse_maps_of
from dlf_dynamics.analysis.instabilities.bifurcations import (
    compute_bifurcations,
    load_bifurcations,
)
from dlf_dynamics.analysis.instabilities.kept import with_kept
from dlf_dynamics.analysis.instabilities.propagator import Propagator
from dlf_dynamics.analysis.instabilities.pulse_plots import pulse_figure
from dlf_dynamics.analysis.instabilities.pulse_summary import (
    missing_lines,
    pulse_lines,
    pulses_table,
)
from dlf_dynamics.analysis.instabilities.summary import as_dict
from dlf_dynamics.analysis.pipeline import analysis_named
from dlf_dynamics.analysis.spectra.replay import FAITHFUL, Replay
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.datasets import check_dataset
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts

RULES = {
    "gd": OptimizerConfig(learning_rate=0.3),
    "heavy-ball": OptimizerConfig("heavy-ball", learning_rate=0.1),
    "adam": OptimizerConfig("adam", learning_rate=0.01),
}


def moving(state):
    """Parameters, and the trees of the optimizer's state that have their shape."""
    leaves = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim == 1]
    return jnp.concatenate([state.params, *leaves])


def state_with(state, vector):
    parts = iter(jnp.split(vector, len(vector) // len(state.params)))
    params = next(parts)
    inner = jax.tree.map(
        lambda leaf: next(parts) if leaf.ndim == 1 else leaf, state.optimizer_state
    )
    return state._replace(params=params, optimizer_state=inner)


def made(run, first, count):
    """The state of a step by updates from the initial one, and the map of the steps after it."""
    ((point,),) = run.points([0], 1)
    step = jax.jit(lambda dynamics, state: dynamics.step(state)[0])
    state = run.state(point)
    for _ in range(first):
        state = step(run.dynamics, state)

    @jax.jit
    def after(dynamics, vector):
        start = state_with(state, vector)
        return moving(jax.lax.fori_loop(0, count, lambda _, s: dynamics.step(s)[0], start))

    return moving(state), partial(after, run.dynamics), state


def dense(run, first, count):
    """Product of the Jacobians of all updates, by differentiating each as a whole."""
    start, _, state = made(run, first, count)
    jacobian = jax.jit(
        jax.jacfwd(lambda vector, state: moving(run.dynamics.step(state_with(state, vector))[0]))
    )
    product, step = np.eye(len(start)), jax.jit(lambda state: run.dynamics.step(state)[0])
    for _ in range(count):
        product = np.asarray(jacobian(moving(state), state)) @ product
        state = step(state)
    return product


@pytest.mark.parametrize("rule", RULES)
def test_products_are_those_of_dense_jacobians(rule, small, trained):
    run = trained(replace(small, optimizer=RULES[rule]))
    expected = dense(run, 20, 20)
    chain = Propagator(Replay(run), 20, 40)
    assert chain.size == len(expected) == {"gd": 15, "heavy-ball": 30, "adam": 45}[rule]
    scale = np.max(np.abs(expected))
    forward, backward = chain.forward(np.eye(chain.size)), chain.backward(np.eye(chain.size))
    np.testing.assert_allclose(forward.T, expected, atol=1e-11 * scale)
    np.testing.assert_allclose(backward, expected, atol=1e-11 * scale)
    found = pulse_map(run, 1, 3)
    values = np.linalg.svd(expected, compute_uv=False)[:3]
    assert found.converged.all()
    np.testing.assert_allclose(found.singular_values, values, rtol=1e-6)
    np.testing.assert_allclose(10**found.decades, values, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(expected @ found.directions.T, axis=0), values, rtol=1e-6
    )
    np.testing.assert_allclose(
        found.parameter_share, np.sum(found.directions[:, :15] ** 2, axis=1), rtol=1e-12
    )
    assert (found.first_step, found.last_step, found.class_label) == (20, 40, 1)
    assert not found.closed
    assert len(found.multipliers) == 0
    assert found.stability == found.crossing == ""
    assert "end" in found.reason


@pytest.mark.parametrize("rule", ["gd", pytest.param("heavy-ball", marks=pytest.mark.slow)])
def test_growth_is_that_of_finite_differences_of_the_whole_replay(rule, small, trained):
    schedule = replace(small.schedule, period=200)
    run = trained(replace(small, optimizer=RULES[rule], schedule=schedule, steps=200))
    found = pulse_map(run, 0, 3)
    start, after, _ = made(run, 0, 200)
    assert found.singular_values[0] < 100

    def difference(size, direction):
        return (after(start + size * direction) - after(start - size * direction)) / (2 * size)

    for value, direction in zip(found.singular_values, found.directions, strict=True):
        # Richardson's rule: what is left goes with the fourth power of the size.
        central = (4 * difference(1e-4, direction) - difference(2e-4, direction)) / 3
        assert float(jnp.linalg.norm(central)) == pytest.approx(value, rel=1e-6)
    image = Propagator(Replay(run), 0, 200).forward(found.directions[:1])[0]
    central = (
        4 * difference(1e-4, found.directions[0]) - difference(2e-4, found.directions[0])
    ) / 3
    assert np.linalg.norm(central - image) < 1e-6 * found.singular_values[0]


def linear(rate=0.2, *, steps=300, **changes):
    """Linear regression on one-hot labels with pulses of 5 steps: a cycle has 15."""
    return RunConfig(
        data=DataConfig("blobs", points_per_class=10, noise=1.0),
        model=ModelConfig(widths=(), init="glorot-normal"),
        loss=LossConfig("squared-error"),
        schedule=ScheduleConfig(amplitude=5.0, period=5),
        optimizer=OptimizerConfig(learning_rate=rate),
        steps=steps,
        **changes,
    )


def closed_form(run, steps, rate):
    """Product of 1 - ηH of the regression for one output, the weights from their definition."""
    inputs = np.asarray(run.problem.inputs)
    inputs = np.hstack([inputs.reshape(len(inputs), -1), np.ones((len(inputs), 1))])
    labels = np.asarray(run.problem.targets)
    product = np.eye(inputs.shape[1])
    for step in steps:
        phase, emphasised = step % 5, step // 5 % 3
        weight = 1 + 8 * phase / 5 if phase < 2.5 else 9 - 8 * phase / 5
        weights = np.where(np.arange(3) == emphasised, weight, 1.0)
        weights = 3 * weights / np.sum(weights)
        hessian = 2 * (inputs.T * weights[labels]) @ inputs / len(inputs)
        product = (np.eye(len(product)) - rate * hessian) @ product
    return product


def test_a_linear_model_has_the_closed_form(trained):
    run = trained(linear())
    growth = pulse_map(run, 7, 9)
    one = np.linalg.svd(closed_form(run, range(35, 40), 0.2), compute_uv=False)
    np.testing.assert_allclose(growth.singular_values, np.repeat(one, 3), rtol=1e-9)
    found = pulse_map(run, cycle=18, k=9)
    assert found.closed
    assert found.distance < 1e-9
    expected = np.linalg.eigvals(closed_form(run, range(15), 0.2))
    np.testing.assert_allclose(
        np.sort_complex(found.multipliers),
        np.sort_complex(np.repeat(expected, 3)),
        rtol=1e-7,
        atol=1e-14,
    )
    assert found.stability == "stable"
    assert found.neutral == 0
    assert found.class_label == -1


@pytest.mark.slow
def test_with_momentum_multipliers_are_those_of_the_whole_state(trained):
    config = replace(linear(steps=900), optimizer=OptimizerConfig("heavy-ball", learning_rate=0.1))
    run = trained(config)
    found = pulse_map(run, cycle=58, k=4)
    assert found.closed
    expected = np.linalg.eigvals(dense(run, 0, 15))  # of a quadratic loss the same everywhere
    largest = np.sort(np.abs(expected))[::-1][:4]
    np.testing.assert_allclose(np.abs(found.multipliers), largest, rtol=1e-7)


CLOSING = {
    "heavy-ball": (OptimizerConfig("heavy-ball", learning_rate=0.1, momentum=0.5), 450),
    "adam": (OptimizerConfig("adam", learning_rate=0.3, beta2=0.9, epsilon=1.0), 600),
    "adam, little epsilon": (
        OptimizerConfig("adam", learning_rate=0.01, beta2=0.9, epsilon=1e-2),
        1500,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CLOSING)
def test_closed_orbits_of_a_whole_state_have_the_multipliers_of_finite_differences(case, trained):
    """Velocity, or both of Adam's means, return with the parameters once its bias is corrected."""
    optimizer, steps = CLOSING[case]
    run = trained(replace(linear(steps=steps), optimizer=optimizer))
    cycle = steps // 15 - 1
    found = pulse_map(run, cycle=cycle, k=6)
    assert found.closed, found.reason
    vector, after, _ = made(run, 15 * cycle, 15)
    columns = []
    for row in 1e-5 * np.eye(len(vector)):
        up, down = (after(vector + sign * row) for sign in (1, -1))
        columns.append((np.asarray(up) - np.asarray(down)) / 2e-5)
    expected = np.linalg.eigvals(np.array(columns).T)
    for value in found.multipliers:
        assert np.min(np.abs(expected - value)) < 1e-6
    np.testing.assert_allclose(
        np.abs(found.multipliers),
        np.sort(np.abs(expected))[: -len(found.multipliers) - 1 : -1],
        atol=1e-6,
    )
    assert found.stability == "stable"
    early = pulse_map(run, cycle=2, k=1)
    assert not early.closed
    assert early.stability == ""


@pytest.mark.slow
def test_published_counting_makes_pulses_a_step_longer(small, trained):
    run = trained(replace(small, schedule=replace(small.schedule, counting="published"), steps=70))
    found = pulse_map(run, 2, 2)
    assert (found.first_step, found.last_step) == (42, 63)
    values = np.linalg.svd(dense(run, 42, 21), compute_uv=False)[:2]
    np.testing.assert_allclose(found.singular_values, values, rtol=1e-6)


@pytest.mark.slow
def test_states_that_are_made_again_give_the_same(small, trained, monkeypatch):
    run = trained(small)
    expected = pulse_map(run, 1, 2)
    monkeypatch.setattr(propagator, "_HELD", 15 * 6)
    monkeypatch.setattr(propagator, "_LINK", 3)
    chain = Propagator(Replay(run), 20, 40)
    assert (len(chain), chain._together) == (7, 2)
    np.testing.assert_allclose(pulse_map(run, 1, 2).singular_values, expected.singular_values)


@pytest.mark.slow
def test_a_float32_run_has_its_products_in_float64(small, trained):
    run = trained(replace(small, dtype="float32"))
    chain = Propagator(Replay(run), 0, 20)
    both = chain.forward(np.eye(15)), chain.backward(np.eye(15))
    np.testing.assert_allclose(both[0].T, both[1], rtol=0, atol=1e-13)  # float32: 1e-6
    run = trained(linear(dtype="float32"))
    values = np.linalg.svd(closed_form(run, range(35, 40), 0.2), compute_uv=False)
    np.testing.assert_allclose(pulse_map(run, 7, 1).singular_values, values[0], rtol=1e-9)


def test_a_float32_orbit_closes_to_its_rounding(trained):
    run = trained(linear(dtype="float32"))
    found = pulse_map(run, cycle=18)
    assert found.closed
    assert found.distance <= found.tolerance < 1e-4
    assert found.tolerance > 1e-6
    expected = np.linalg.eigvals(closed_form(trained(linear()), range(15), 0.2))
    np.testing.assert_allclose(
        np.max(np.abs(found.multipliers)), np.max(np.abs(expected)), rtol=1e-5
    )


@pytest.mark.slow
def test_an_orbit_that_moves_less_than_its_rounding_is_not_said_to_close(trained):
    """Of pulses so low and slow that float32 sees a few units in the last place of motion."""
    slow = replace(linear(1e-7, dtype="float32"), schedule=ScheduleConfig(amplitude=5.0, period=5))
    found = pulse_map(trained(slow), cycle=3)
    assert not found.closed
    assert len(found.multipliers) == 0


@pytest.mark.slow
def test_a_slow_drift_is_not_closed(trained):
    found = pulse_map(trained(linear(1e-9)), cycle=10)
    assert not found.closed
    assert found.distance == pytest.approx(1, rel=1e-3)


def test_an_orbit_that_returns_in_its_parameters_alone_is_not_closed():
    """Half a turn more in the velocity."""

    class Chain:
        parts = MappingProxyType({"the parameters": slice(0, 1), "trace": slice(1, 2)})
        start, end = np.array([1.0, 1.0]), np.array([1.0, -1.0])

        def states(self):
            yield np.array([[1.0, 1.0], [3.0, 0.0], [2.0, -1.0]])

        def repeats(self):
            return np.zeros(2), 0.0

    class Exact:
        run = type("Run", (), {"dtype": "float64"})
        deviation, note = 0.0, ""

    pulses = pulse_maps_of.Pulses(3, 1, 0, 10, False)
    found = pulse_maps_of._closing(Chain(), pulses, "pulse", Exact(), 1e-6)
    assert found.reason.startswith("trace end 1 of the orbit's size")
    Chain.end = Chain.start
    assert pulse_maps_of._closing(Chain(), pulses, "pulse", Exact(), 1e-6).reason == ""
    Exact.deviation, Exact.note = 1e-3, "replayed steps miss the checkpoints"
    found = pulse_maps_of._closing(Chain(), pulses, "pulse", Exact(), 1e-6)
    assert found.reason == "not known, as replayed steps miss the checkpoints"


def test_a_replay_that_misses_its_checkpoints_tells_no_multipliers(trained, monkeypatch):
    """As of a run of another machine whose rounding grew."""
    closed = trained(linear())
    run = open_run(closed.path)
    points = run.points

    def elsewhere(checkpoints, chunk):
        for some in points(checkpoints, chunk):
            yield [
                replace(each, params=each.params * (1 + 1e-2 * each.step / 300)) for each in some
            ]

    monkeypatch.setattr(run, "points", elsewhere)
    found, exact = pulse_map(run, cycle=18), pulse_map(closed, cycle=18)
    assert exact.closed
    assert not found.closed
    assert found.deviation > FAITHFUL
    assert "miss the checkpoints" in found.reason
    assert len(found.multipliers) == 0
    # The loss is quadratic: growth does not depend on where the states are.
    np.testing.assert_allclose(found.singular_values, exact.singular_values, rtol=1e-9)


def interpolating(**changes):
    """Fewer examples than features: at rest at zero loss, whatever the weights."""
    rng = np.random.default_rng(0)
    dataset = check_dataset(rng.normal(size=(3, 5)), np.arange(3), "three")
    config = linear(steps=1500)
    optimizer = replace(config.optimizer, **changes)
    return replace(config, optimizer=optimizer), dataset


@pytest.mark.slow
def test_at_rest_a_pulse_returns_and_the_next_one_is_another(tmp_path):
    config, dataset = interpolating()
    run = train(config, tmp_path / "run.h5", dataset=dataset)
    pulse = pulse_map(run, 290)
    assert not pulse.closed
    assert pulse.distance <= pulse.tolerance
    assert "the next pulse is of another class" in pulse.reason
    cycle = pulse_map(run, cycle=98)
    assert cycle.closed
    assert cycle.neutral == 9  # six numbers of each output, three of which the data do not see
    assert cycle.stability == "none found"
    assert np.all(np.abs(cycle.multipliers) < 0.999)


@pytest.mark.slow
def test_updates_that_change_with_time_do_not_repeat(tmp_path):
    """The state rests; its derivative does not, as the learning rate falls."""
    config, dataset = interpolating(learning_rate_schedule="linear", final_learning_rate=0.05)
    run = train(config, tmp_path / "run.h5", dataset=dataset)
    found = pulse_map(run, cycle=98)
    assert not found.closed
    assert "the updates after it are others" in found.reason


REFUSED = {
    "mini-batches": ({"batch_size": 8}, "mini-batches"),
    "bfloat16": ({"dtype": "bfloat16"}, "rounded to bfloat16"),
    "static": ({"schedule": ScheduleConfig("static")}, "Static, which has no pulses"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_map_of_pulses_is_refused(case, small, trained):
    changes, expected = REFUSED[case]
    run = trained(replace(small, **changes))
    with pytest.raises(ConfigError, match=expected) as refused:
        pulse_map(run, 0)
    assert "\n" not in str(refused.value)


def test_pulses_that_are_not_whole_are_refused(small, trained):
    run = trained(replace(small, steps=50))
    assert pulse_map(run, 1, 1).last_step == 40
    with pytest.raises(ConfigError, match=r"pulse 2 .*the run ends there.* expected 0 to 1"):
        pulse_map(run, 2)
    with pytest.raises(ConfigError, match=r"cycle 0 .* expected none, as none is whole"):
        pulse_map(run, cycle=0)
    with pytest.raises(ConfigError, match="pulse -1"):
        pulse_map(run, -1)
    with pytest.raises(ConfigError, match="expected one of them"):
        pulse_map(run)
    run = trained(replace(small, schedule=replace(small.schedule, static_from=30)))
    assert pulse_map(run, 0, 1).last_step == 20
    with pytest.raises(ConfigError, match=r"pulse 1 .*all weights are 1 from there on"):
        pulse_map(run, 1)


def test_a_schedule_of_ones_own_is_refused(small, tmp_path):
    run = train(small, tmp_path / "run.h5", schedule=lambda step: jnp.ones(3))
    with pytest.raises(ConfigError, match="Tabulated, which has no pulses"):
        pulse_map(open_run(run.path), 0)


SETTINGS = BifurcationConfig(every=20, diagrams="none", pulses="auto", cycles="0:1", pulse_modes=2)


@pytest.fixture(scope="module")
def bifurcations(small, trained):
    return compute_bifurcations(trained(small), SETTINGS)


def test_bifurcations_have_the_maps_and_their_file_holds_them(
    bifurcations, small, trained, tmp_path
):
    maps = bifurcations.pulse_maps
    assert [(each.kind, each.number) for each in maps] == [
        *[("pulse", number) for number in range(3)],
        ("cycle", 0),
    ]
    one = pulse_map(trained(small), 1, 2)
    assert str(maps[1]) == str(one)
    np.testing.assert_array_equal(maps[1].directions, one.directions)
    resultfile.save(tmp_path / "found.h5", "bifurcations", bifurcations)
    loaded = load_bifurcations(tmp_path / "found.h5")
    np.testing.assert_array_equal(loaded.pulse_maps[3].directions, maps[3].directions)
    assert list(map(str, loaded.pulse_maps)) == list(map(str, maps))


def test_they_go_on_from_parts(bifurcations, small, trained, tmp_path, monkeypatch):
    run = trained(small)
    settings = {"every": 20}
    parts = Parts(tmp_path / "found.parts", "bifurcations", run, settings)
    compute_bifurcations(run, SETTINGS, parts=parts)

    def made_again(*_, **__):
        raise AssertionError("it was made again")

    monkeypatch.setattr("dlf_dynamics.analysis.instabilities.pulse_maps.pulse_map", made_again)
    parts = Parts(tmp_path / "found.parts", "bifurcations", run, settings)
    again = compute_bifurcations(run, SETTINGS, parts=parts)
    assert list(map(str, again.pulse_maps)) == list(map(str, bifurcations.pulse_maps))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pulses": "1:5"}, "pulses is 1:5; the whole ones of .* are 0 to 2"),
        ({"cycles": "1:"}, "cycles is 1:; the whole ones of .* are 0 to 0"),
    ],
)
def test_pulses_that_are_not_there_are_refused(settings, expected, small, trained):
    with pytest.raises(ConfigError, match=expected):
        compute_bifurcations(trained(small), replace(SETTINGS, **settings))


def console(*tables):
    """Tables as a terminal shows them, without breaks."""
    return "\n".join(
        " | ".join(str(cell) for cell in row)
        for table in tables
        for row in zip(*(column.cells for column in table.columns), strict=True)
    )


def test_what_is_told(bifurcations, require_schema):
    require_schema(as_dict(bifurcations), "bifurcations")
    told = as_dict(bifurcations)["pulse_maps"]
    assert [each["number"] for each in told] == [0, 1, 2, 0]
    assert told[0]["singular_values"] == bifurcations.pulse_maps[0].singular_values.tolist()
    assert "directions" not in told[0]
    lines = pulse_lines(bifurcations.pulse_maps)
    assert lines[0].startswith("maps of 3 pulses and 1 cycle: ")
    assert "4 of 4 orbits do not close, and nothing is said of multipliers: of " in lines[1]
    assert len(lines) == 2
    table = console(pulses_table(bifurcations.pulse_maps))
    assert "pulse 1 | 20-39 | 1 | " in table
    assert "cycle 0 | 0-59 | - | " in table
    assert table.count("| no | -") == 4


def test_pulses_that_do_not_lie_within_the_steps_are_said_to_be_missing(bifurcations):
    config = bifurcations.config
    assert missing_lines(config, bifurcations.pulse_maps) == []
    part = replace(config, pulses="auto", cycles="auto", steps="5:15")
    assert missing_lines(part, []) == [
        "no map of a pulse: none lies whole within the steps 5:15",
        "no map of a cycle: none lies whole within the steps 5:15",
    ]
    none = replace(config, pulses="none", cycles="none")
    assert missing_lines(none, []) == []
    lines = analysis_named("bifurcations").lines(
        None, replace(bifurcations, config=part, pulse_maps=[])
    )
    assert "no map of a cycle: none lies whole within the steps 5:15" in lines


def test_what_is_told_of_closed_orbits_and_of_what_did_not_converge(bifurcations, require_whole):
    one = bifurcations.pulse_maps[0]
    flip = replace(
        one,
        closed=True,
        multipliers=np.array([-1.25, 0.2 + 0.1j, 0.2 - 0.1j]),
        stability="unstable",
        crossing="flip",
        neutral=2,
        distance=3e-12,
        decades=np.array([450.0, 2.0]),
        singular_values=np.array([np.inf, 100.0]),
        converged=np.array([True, False]),
        kinks="relu",
        deviation=1e-2,
        note="replayed steps miss",
    )
    lost = replace(one, decades=np.array([np.nan, np.nan]), converged=np.zeros(2, bool))
    table = console(pulses_table([flip, lost]))
    assert "1.00e+450, 100? | yes | -1.25; unstable (flip)" in table
    assert "| ?, ? | no | -" in table
    text = "\n".join(pulse_lines([flip, lost]))
    for words in (
        "3 of 4 singular values not converged",
        "1 of 2 orbits do not close",
        "closed to 3.0e-12 of their size at most",
        "counted apart, up to 2 of them",
        "growth beyond the largest number in pulse 0",
        "the loss has kinks (relu)",
        "not surely of the run itself: pulse 0; replayed steps miss",
    ):
        assert words in text
    found = replace(bifurcations, pulse_maps=[*bifurcations.pulse_maps, flip, lost])
    require_whole(lambda: pulse_figure(found))
    json.dumps(as_dict(found), allow_nan=False)


def test_a_file_of_an_older_version_has_none(bifurcations, tmp_path):
    path = tmp_path / "found.h5"
    resultfile.save(path, "bifurcations", replace(bifurcations, pulse_maps=[]))
    result = resultfile.read(path, "bifurcations", None)
    old = {name: value for name, value in result.config.items() if name != "pulse_maps"}
    old["config"] = {name: value for name, value in old["config"].items() if "pulse" not in name}
    del old["config"]["cycles"]
    resultfile.write(path, replace(result, config=old))
    loaded = load_bifurcations(path)
    assert loaded.pulse_maps == []
    assert loaded.config == replace(SETTINGS, pulses="none", cycles="none", pulse_modes=3)


def test_maps_and_the_plane_on_file_stay_where_they_are_not_asked_for_anew(bifurcations):
    plain = replace(
        bifurcations,
        config=BifurcationConfig(every=5, diagrams="none"),
        pulse_maps=[],
    )
    kept, lines = with_kept(bifurcations, plain)
    assert lines == ["kept of the result on file: 3 pulse maps, 1 cycle map"]
    assert kept.pulse_maps == bifurcations.pulse_maps
    assert kept.config == replace(plain.config, pulses="0:3", cycles="0:1", pulse_modes=2)
    # Of the kind that is asked for, only those that were found now.
    one = replace(plain, config=replace(plain.config, pulses="1:2", pulse_modes=2))
    one = replace(one, pulse_maps=bifurcations.pulse_maps[1:2])
    kept, lines = with_kept(bifurcations, one)
    assert [(each.kind, each.number) for each in kept.pulse_maps] == [("pulse", 1), ("cycle", 0)]
    assert (kept.config.pulses, kept.config.cycles) == ("1:2", "0:1")
    assert lines == ["kept of the result on file: 1 cycle map"]
    others = replace(one, config=replace(one.config, pulse_modes=1))
    kept, lines = with_kept(bifurcations, others)
    assert (kept.pulse_maps, kept.config) == (others.pulse_maps, others.config)
    assert lines[0].startswith("left out, as seed or pulse_modes are others now: 1 cycle map")
    drawn = replace(
        bifurcations, plane=object(), config=replace(bifurcations.config, plane="amplitude,period")
    )
    kept, lines = with_kept(drawn, plain)
    assert kept.plane is drawn.plane
    assert kept.config.plane == "amplitude,period"
    assert lines[0].endswith("1 cycle map, the plane")
    assert with_kept(None, plain) == (plain, [])
    grown = replace(bifurcations, source=replace(bifurcations.source, last_step=61))
    assert with_kept(grown, plain) == (plain, [])


def test_the_command_keeps_what_is_on_file(bifurcations, small, trained, tmp_path, capsys):
    path, analysis = tmp_path / "found.h5", analysis_named("bifurcations")
    resultfile.save(path, "bifurcations", bifurcations)
    settings = BifurcationConfig(every=20, diagrams="none", steps="10:20")
    analysis.performed(trained(small), settings, path)
    assert "kept of the result on file: 3 pulse maps, 1 cycle map" in capsys.readouterr().err
    loaded = load_bifurcations(path)
    assert list(map(str, loaded.pulse_maps)) == list(map(str, bifurcations.pulse_maps))
    assert loaded.config.steps == "10:20"


def test_modes_without_maps_are_refused(small, trained):
    settings = BifurcationConfig(pulse_modes=5)
    with pytest.raises(ConfigError, match="pulse_modes is 5, but no maps are requested") as refused:
        analysis_named("bifurcations").implementation().total(trained(small), settings)
    assert "\n" not in str(refused.value)


def test_choices_of_pulses():
    for text in ("some", "3", "5:2"):
        with pytest.raises(ConfigError, match="expected auto, none, or a:b"):
            BifurcationConfig(pulses=text)
    with pytest.raises(ConfigError, match="pulse_modes is 0"):
        BifurcationConfig(pulse_modes=0)
