"""The central flow of a run: what was measured and predicted, and how that is told and drawn.

The run is one of two parameters on ½ (y + x) x² - ε (x + y). At the edge y + 3x is 2/η, and
the oscillation of x that holds it there has the energy 2ε.
"""

import json
from dataclasses import fields, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import to_hex

from dlf_dynamics import Problem, Recorder, cli, open_run
from dlf_dynamics.analysis.flow import segments
from dlf_dynamics.analysis.flow.analysis import FlowAnalysis
from dlf_dynamics.analysis.flow.beside import FLIP, GRADIENT_FLOW, ROD
from dlf_dynamics.analysis.flow.errors import QUANTITIES, errors_of
from dlf_dynamics.analysis.flow.flow import compute_flow, starts_of
from dlf_dynamics.analysis.flow.observed import Observed, observe
from dlf_dynamics.analysis.flow.plots import GREY, ahead_figure, flow_figure
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW
from dlf_dynamics.analysis.flow.summary import as_dict, lines
from dlf_dynamics.analysis.flow.validity import REASONS, Look
from dlf_dynamics.analysis.flow.windows import LATER, rules_of, windows_of
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts

RATE, EPSILON, START = 0.3, 0.01, (0.141, 6.667)
LAST = 340
ALONE = FlowConfig(steps="160:301", every=20, restart_every=60, theories=False)


def loss(w, step):
    x, y = w
    return (y + x) * x**2 / 2 - EPSILON * (x + y)


PROBLEM, RULE = Problem.from_loss(loss), optax.sgd(RATE)


def setup():
    return PROBLEM, RULE, jnp.array(START)


def looked(reasons):
    """Looks of which only the verdict matters, one every ten steps from 100 on."""
    numbers = dict.fromkeys((field.name for field in fields(Look)), 0)
    looks = [
        Look(**numbers | {"step": 100 + 10 * place, "reason": reason})
        for place, reason in enumerate(reasons)
    ]
    steps = np.array([look.step for look in looks])
    return Observed(looks, steps, np.zeros(len(looks)), np.zeros(len(looks)))


def test_theories_start_anew_after_a_break_and_every_so_many_steps():
    lag, fine = ["lag"], [""]
    broken = looked(3 * lag + 6 * fine + lag + 4 * fine + lag + 5 * fine)
    assert starts_of(broken, None) == [0, 3, 15]
    assert starts_of(broken, 30) == [0, 3, 6, 9, 12, 15, 18]
    # None at the last look, from which nothing is predicted.
    assert starts_of(looked(5 * fine), None) == [0]
    assert starts_of(looked(5 * fine), 40) == [0]
    assert starts_of(looked(2 * lag + 2 * fine), None) == [0]


def record(path, last=LAST, dtype=float, **options):
    params = jnp.array(START, dtype)
    state, update = RULE.init(params), jax.jit(jax.value_and_grad(PROBLEM.objective))
    with Recorder(path, PROBLEM, optimizer=RULE, **options) as recorder:
        for step in range(last + 1):
            value, gradient = update(params, step)
            if step % 20 == 0:
                recorder.record(step, params, state, loss=value)
            change, state = RULE.update(gradient, state)
            params = optax.apply_updates(params, change)
    return open_run(path, (PROBLEM, RULE, jnp.array(START, dtype)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return record(tmp_path_factory.mktemp("flow") / "own.h5")


@pytest.fixture(scope="module")
def alone(run):
    return compute_flow(run, ALONE)


@pytest.fixture(scope="module")
def found(alone):
    """With other theories beside it, made up as they take long to compile."""
    segments = []
    for segment in alone.segments:
        flow, unknown = segment.predictions[0], np.full(len(segment.travelled), np.nan)
        nothing = replace(flow, **dict.fromkeys(QUANTITIES, unknown))
        beside = [
            replace(nothing, name=ROD, energy=0.9 * flow.energy),
            replace(nothing, name=FLIP),
            replace(flow, name=GRADIENT_FLOW, energy=0 * flow.energy, distance=segment.travelled),
            replace(nothing, name="linear model", message="only the loss is known"),
        ]
        segments.append(replace(segment, predictions=[flow, *beside]))
    return replace(alone, segments=segments, errors=errors_of(alone.observed, segments))


def judged(found, reasons):
    """The same with other verdicts, by place, and the errors that follow from them."""
    looks = [
        replace(look, reason=reasons.get(place, ""))
        for place, look in enumerate(found.observed.looks)
    ]
    observed = replace(found.observed, looks=looks)
    return replace(found, observed=observed, errors=errors_of(observed, found.segments))


@pytest.fixture(scope="module")
def nothing(found):
    return judged(found, dict.fromkeys(range(8), "kinks"))


@pytest.fixture(scope="module")
def partly(found):
    """The first two looks count, the third does not, nor what follows it until the next start."""
    return judged(found, {2: "not small", 7: "period"})


def text(results):
    return "\n".join(line for line in results if isinstance(line, str))


def tables(results):
    return [result for result in results if not isinstance(result, str)]


def test_what_was_measured_is_that_of_the_iterates_one_after_the_other(found):
    path = [np.array(START)]
    for _ in range(LAST):
        x, y = path[-1]
        path.append(path[-1] - RATE * np.array([x * y + 1.5 * x**2 - EPSILON, x**2 / 2 - EPSILON]))
    path = np.array(path)
    observed, steps = found.observed, found.observed.steps
    assert steps.tolist() == [*range(160, 300, 20), 300]
    before, at, after = path[steps - 1], path[steps], path[steps + 1]
    centres = before / 4 + at / 2 + after / 4
    np.testing.assert_allclose(observed.energy, np.sum((at - centres) ** 2, axis=1), rtol=1e-6)
    three = [np.array([loss(w, 0) for w in part]) for part in (before, at, after)]
    np.testing.assert_allclose(observed.loss, np.array([1, 2, 1]) @ three / 4, rtol=1e-9)
    for look, (x, y) in zip(observed.looks, centres, strict=True):
        top = np.linalg.eigvalsh([[3 * x + y, x], [x, 0]])[-1]
        assert look.sharpness == pytest.approx(top, rel=1e-9)
        assert look.threshold == pytest.approx(2 / RATE, rel=1e-9)
        assert look.oscillating
    assert [s.start for s in found.segments] == [160, 220, 280]
    for segment in found.segments:
        went = centres[segment.rows] - centres[segment.first]
        np.testing.assert_allclose(segment.travelled, np.linalg.norm(went, axis=1), atol=1e-9)
        distance = segment.column(CENTRAL_FLOW, "distance")
        assert distance[0] == pytest.approx(0, abs=1e-12)
        assert np.all(distance < 0.05)


def test_what_a_look_tells_does_not_depend_on_where_the_steps_asked_for_end(run, found):
    few = observe(Replay(run), ALONE, 220, 261)
    whole = {look.step: look for look in found.observed.looks}
    for look in few.looks:
        assert look.reason == whole[look.step].reason == ""
        assert look.swing == pytest.approx(whole[look.step].swing, rel=1e-9)
        assert look.bend == pytest.approx(whole[look.step].bend, rel=1e-9)


def test_the_central_flow_has_the_energy_in_closed_form_and_errors_follow_from_the_columns(found):
    assert np.all(found.observed.valid)
    ends = [s.column(CENTRAL_FLOW, "energy")[-1] for s in found.segments]
    assert ends == pytest.approx([2 * EPSILON] * 3, rel=0.01)
    assert np.mean(found.observed.energy) == pytest.approx(2 * EPSILON, rel=0.05)
    differences = []
    for segment in found.segments:
        predicted = segment.column(CENTRAL_FLOW, "loss")[1:]
        measured = found.observed.loss[segment.rows][1:]
        differences += (np.abs(predicted - measured) / np.abs(measured)).tolist()
    (error,) = [
        e
        for e in found.errors
        if (e.theory, e.quantity, e.ahead_from, e.ahead_to) == (CENTRAL_FLOW, "loss", 1, 60)
    ]
    assert (error.looks, error.missing) == (7, 0)
    assert error.median == pytest.approx(np.median(differences), rel=1e-12)
    assert error.largest == pytest.approx(max(differences), rel=1e-12)


def test_a_person_reads_what_counts_and_how_far_each_theory_is_off(found):
    told = lines(found)
    assert told[0] == "8 of 8 looks count, a look every 20 steps: steps 160-300"
    errors, ahead = tables(told)
    rows = list(zip(*(column.cells for column in errors.columns), strict=True))
    assert rows[0][:4] == (CENTRAL_FLOW, "loss", "7", "-")
    names = [row[0] for row in rows if row[0]]
    assert names == [CENTRAL_FLOW, ROD, GRADIENT_FLOW]
    assert "linear model: only the loss is known" in text(told)  # others say why they say nothing
    assert f"{FLIP}: predicts nothing here" in text(told)
    assert f"{ROD} and {FLIP} use the run's own centre at each look" in text(told)
    assert list(ahead.columns[0].cells) == ["1-20", "21-50", "51-60"]
    assert list(ahead.columns[1].cells) == ["3", "2", "2"]
    assert "1 directions followed" not in text(told)
    assert "1 direction followed; all equations solved up to 7 of 7 looks" in text(told)


def test_where_nothing_counts_that_is_said_first_and_no_error_is_told(nothing):
    told = lines(nothing)
    assert told[0].startswith("nothing counts: at none of 8 looks in steps 160-300 ")
    assert not tables(told)
    assert not nothing.errors
    assert "outside, kinks: 8 looks, steps 160-300: " in text(told)
    assert [ax.get_ylabel() for ax in flow_figure(nothing).axes if "%" in ax.get_ylabel()] == []
    part = FlowAnalysis().report(None, nothing)
    assert not any(series.name == CENTRAL_FLOW for p in part.panels for series in p.series)
    assert [row[2] for row in part.tables[-1].rows] == ["kinks"]


def test_looks_outside_are_told_by_the_rule_with_the_number_that_decides(found, partly):
    told = text(lines(partly))
    assert "6 of 8 looks count, a look every 20 steps: steps 160-180, 220-280" in told
    assert f"outside, {LATER}: " not in told  # 220 counts for the second start
    odd, even = (f"{getattr(found.observed.looks[2], name):.2g}" for name in ("odd", "even"))
    forces = f"of the odd force of the oscillation {odd}, of the even one {even} is beyond third"
    assert f"outside, not small: 1 look, steps 200: {forces}" in told
    assert "outside, period: 1 look, steps 300: period 2" in told
    looks = [replace(look, oscillating=False, rest=0.75) for look in partly.observed.looks]
    still = text(lines(replace(partly, observed=replace(partly.observed, looks=looks))))
    assert "of the force of a deviation that does not oscillate 0.75 is beyond" in still
    alone = replace(partly, segments=partly.segments[:1])
    assert f"outside, {LATER}: 4 looks, steps 220-280: fit" in text(lines(alone))
    assert list(rules_of(alone)) == ["period", "not small", LATER]
    assert as_dict(alone)["outside"] == {"period": 1, "not small": 1, LATER: 4}
    for reason in REASONS:
        other = judged(found, dict.fromkeys(range(8), reason))
        assert f"outside, {reason}: 8 looks, steps 160-300: " in text(lines(other))


def test_unknown_gates_are_told_to_be_unknown(nothing):
    looks = [replace(look, gate_flips=np.nan) for look in nothing.observed.looks]
    unknown = replace(nothing, observed=replace(nothing.observed, looks=looks))
    assert "which are crossed is not known of a recorded run" in text(lines(unknown))


def test_where_the_flow_ends_is_told_and_marked(found):
    first = found.segments[0]
    flow = first.predictions[0]
    ended = replace(flow, **{n: np.append(getattr(flow, n)[:2], [np.nan] * 2) for n in QUANTITIES})
    short = replace(first, stopped="no longer finite", predictions=[ended, *first.predictions[1:]])
    other = replace(found, segments=[short, *found.segments[1:]])
    other = replace(other, errors=errors_of(other.observed, other.segments))
    told = text(lines(other))
    assert f"the {CENTRAL_FLOW} that starts at step 160 ends: no longer finite" in told
    assert next(e for e in other.errors if e.theory == CENTRAL_FLOW).missing == 2
    (mark,) = [line for line in flow_figure(other).axes[0].get_lines() if line.get_marker() == "x"]
    assert mark.get_xdata().tolist() == [180]


def test_nothing_is_drawn_as_agreement_where_it_does_not_count(partly):
    figure = flow_figure(replace(partly, segments=partly.segments[:1]))
    measured, outside = (
        next(line for line in figure.axes[0].get_lines() if line.get_label() == name)
        for name in ("measured", "measured, outside")
    )
    steps = partly.observed.steps
    assert steps[np.isfinite(measured.get_ydata())].tolist() == [160, 180]
    assert steps[np.isfinite(outside.get_ydata())].tolist() == steps[2:].tolist()
    assert to_hex(outside.get_color()) == GREY
    colours = set()
    for ax in figure.axes[:-1]:
        for line in ax.get_lines():
            if line.get_label() in partly.theories:
                assert max(line.get_xdata()) <= 180
                colours.add(to_hex(line.get_color()))
    assert len(colours) > 1
    assert GREY not in colours
    spans = windows_of(partly, ~partly.observed.valid)
    assert spans == [(190.0, 210.0), (290.0, 300.0)]


def test_what_is_out_of_sight_is_marked(found):
    first = found.segments[0]
    flow = first.predictions[0]
    far = [flow, replace(flow, name=ROD, energy=1e6 * flow.energy)]
    other = replace(found, segments=[replace(first, predictions=far)])
    energy = next(ax for ax in flow_figure(other).axes if "oscillation" in ax.get_ylabel())
    assert energy.get_ylim()[1] < 1
    assert "4 above, up to " in " ".join(text.get_text() for text in energy.texts)


def drawn(figure, panel, name):
    """The values of a line of a panel at its steps, without those that are not known."""
    axes = next(ax for ax in figure.axes if panel in ax.get_ylabel())
    line = next(line for line in axes.get_lines() if line.get_label() == name)
    pairs = zip(line.get_xdata(), line.get_ydata(), strict=True)
    return {int(step): float(value) for step, value in pairs if np.isfinite(value)}


def test_the_square_of_a_curved_path_is_not_drawn_as_an_oscillation(found):
    looks = [replace(look, oscillating=look.step > 200) for look in found.observed.looks]
    other = replace(found, observed=replace(found.observed, looks=looks))
    assert list(drawn(flow_figure(other), "oscillation", "measured")) == [220, 240, 260, 280, 300]
    panel = next(p for p in FlowAnalysis().report(None, other).panels if "energy" in p.title)
    measured = next(series for series in panel.series if series.name == "measured")
    assert np.isfinite(measured.y).tolist() == [False] * 3 + [True] * 5


def test_a_threshold_that_goes_to_infinity_leaves_the_sharpness_in_sight(found):
    thresholds = [2 / RATE, 7, 8, 10, 20, 1e3, 1e9, np.inf]
    looks = [
        replace(look, threshold=threshold)
        for look, threshold in zip(found.observed.looks, thresholds, strict=True)
    ]
    other = replace(found, observed=replace(found.observed, looks=looks))
    figure = flow_figure(other)
    (panel,) = [ax for ax in figure.axes if "sharpness" in ax.get_ylabel()]
    sharpness, (low, high) = found.observed.column("sharpness"), panel.get_ylim()
    assert panel.get_yscale() == "linear"
    assert low < min(sharpness)
    assert 20 < high < 25
    panel = FlowAnalysis().report(None, other).panels[1]
    assert "the threshold only up to 3 times its least value" in panel.note
    assert np.nanmax(panel.series[0].y) == 20


def test_the_way_since_an_earlier_start_counts_only_where_that_one_does(partly):
    figure, (first, second, _) = flow_figure(partly), partly.segments
    way = "how far the run went since the start"
    counts = drawn(figure, "distance", way)
    outside = drawn(figure, "distance", f"{way}, outside")
    assert list(outside) == [200, 220, 300]
    # At the second start, which counts, it is the way since the first one, which does not.
    assert outside[220] == first.travelled[3]
    assert list(counts) == [180, 240, 260, 280]
    assert counts[240] == second.travelled[1]


def test_what_nearly_overflows_is_drawn(nothing):
    # As of a run that diverged: the limits themselves must not be infinite.
    huge = {name: np.logspace(0, 308, 8) for name in ("loss", "energy")}
    figure = flow_figure(replace(nothing, observed=replace(nothing.observed, **huge)))
    assert np.all(np.isfinite([ax.get_ylim() for ax in figure.axes]))


def test_the_figures_are_whole_on_a_page(found, partly, require_whole):
    require_whole(lambda: flow_figure(partly))
    require_whole(lambda: ahead_figure(found))


def test_errors_ahead_are_drawn_where_theories_start_anew(found):
    view = FlowAnalysis.view()
    assert [name for name, _ in FlowAnalysis().figures(None, found, view)] == ["flow", "flow-ahead"]
    once = replace(found, segments=found.segments[:1])
    assert [name for name, _ in FlowAnalysis().figures(None, once, view)] == ["flow"]
    panel = ahead_figure(found).axes[0]
    (drawn,) = [c for c in panel.collections if c.get_label() == CENTRAL_FLOW]
    segments = [segment[:, 0].tolist() for segment in drawn.get_segments()]
    assert segments == [[1, 20], [21, 50], [51, 60]]


def test_the_result_is_kept_and_printed(run, found, tmp_path, require_schema):
    analysis, path = FlowAnalysis(), tmp_path / "own.flow.h5"
    analysis.save(found, path)
    kept = analysis.load(path, run)
    assert as_dict(kept) == as_dict(found)
    require_schema(json.loads(json.dumps(as_dict(found), allow_nan=False)), "flow")
    assert list(as_dict(found)) == analysis.schema()["required"]
    part = analysis.report(run, found)
    titles = [panel.title for panel in part.panels]
    assert titles[:2] == ["loss, averaged over three steps", "sharpness at centres"]


def test_what_was_stopped_goes_on_from_its_starts(run, alone, tmp_path):
    folder, reached = tmp_path / "parts", []

    def stop(done):
        reached.append(done)
        if done > 141 + 60:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute_flow(run, ALONE, parts=Parts(folder, "flow", run, {}), progress=stop)
    assert sorted(path.name for path in folder.glob("*.h5")) == ["from-160.h5", "observed.h5"]
    resumed = compute_flow(run, ALONE, parts=Parts(folder, "flow", run, {}))
    assert as_dict(resumed) == as_dict(alone)
    assert reached == sorted(reached)


def test_a_wish_to_stop_is_heard_between_two_looks(run):
    calls = []

    def stop(step):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        observe(Replay(run), ALONE, 160, 301, stop)
    assert calls == [160] * 3


def test_a_wish_to_stop_is_heard_while_other_theories_are_at_work(run, monkeypatch):
    def beside(*arguments, between, **options):
        between()
        return []

    monkeypatch.setattr(segments, "predicted_beside", beside)
    config, reached = replace(ALONE, theories=True), []
    segments.segment_of(Replay(run), config, np.array([160, 180]), 0, reached.append)
    assert reached == [160, 180, 180]


def test_a_replay_that_missed_the_run_is_told_when_its_parts_are_used_again(run, alone):
    class Known(Parts):
        def get_or_make(self, name, make, parse):
            if name == "observed":
                return replace(alone.observed, deviation=1e-3)
            return next(s for s in alone.segments if name == f"from-{s.start}")

    resumed = compute_flow(run, ALONE, parts=Known(None))
    assert "replayed steps miss the checkpoints by up to 1.0e-03" in text(lines(resumed))


def test_a_run_whose_writer_was_killed_is_told_to_be_one(found):
    killed = replace(found, source=replace(found.source, status="running"))
    assert "its writer was killed: all of this is of steps 0 to" in text(lines(killed))


@pytest.fixture
def command(run, tmp_path, monkeypatch):
    """Its beginning, in a folder with the run and a program that gives its problem."""
    monkeypatch.chdir(tmp_path)
    Path("own.h5").write_bytes(run.path.read_bytes())
    Path("own.py").write_text(f"import sys\nsetup = sys.modules[{__name__!r}].setup\n")
    return ["flow", "own.h5", "--problem", "own.py:setup", "--no-theories", "--quiet"]


@pytest.mark.slow  # it compiles anew
def test_the_command_writes_and_prints(command, capsys):
    assert cli.main([*command, "--steps", "160:201", "--every", "20", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["looks"], printed["counted"], printed["steps"]) == (3, 3, [160, 200])
    assert {p.name for p in Path().glob("own.flow*")} == {
        "own.flow.h5",
        "own.flow.png",
        "own.flow.svg",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "900:999"], "holds no two steps with one before and one after them"),
        (["--steps", "20:10"], "steps is '20:10'; expected a:b with a < b"),
        (["--restart-every", "25"], "restart_every is 25; expected a multiple of every, 10"),
        (["--restart-every", "0"], "restart_every is 0"),
        (["--every", "0"], "every is 0"),
        (["--fraction", "1"], "fraction is 1.0; expected a number between 0 and 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_told_in_a_line(command, capsys, options, message):
    assert cli.main([*command, *options]) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not list(Path().glob("own.flow*"))


def test_runs_that_have_no_central_flow_are_refused(tmp_path):
    batches = record(tmp_path / "batches.h5", 40, full_batch=False)
    with pytest.raises(ConfigError, match="what makes its updates again"):
        compute_flow(batches, FlowConfig())


def test_a_run_that_does_not_oscillate_has_no_error_of_an_oscillation(found):
    looks = [replace(look, oscillating=False) for look in found.observed.looks]
    still = replace(found.observed, looks=looks, energy=2 * found.observed.energy)
    other = replace(found, observed=still, errors=errors_of(still, found.segments))
    assert len([ax for ax in flow_figure(other).axes if "%" in ax.get_ylabel()]) == 1
    assert "covariance in the directions followed" not in text(lines(other))
    assert not [e for e in other.errors if e.quantity == "energy"]
    quiet = replace(still, energy=0.1 * found.observed.energy)  # of which more was predicted
    told = [e for e in errors_of(quiet, found.segments) if e.quantity == "energy"]
    assert {e.theory for e in told} == {CENTRAL_FLOW, ROD}
    assert all(0.7 < e.median < 1 for e in told)


@pytest.mark.slow
def test_a_run_in_float32_is_compared_in_float64(tmp_path):
    run = record(tmp_path / "own.h5", dtype=jnp.float32)
    found = compute_flow(run, ALONE)
    assert found.segments[0].column(CENTRAL_FLOW, "energy")[-1] == pytest.approx(0.02, rel=0.02)


@pytest.mark.slow
def test_other_theories_stand_beside_it_at_the_same_looks(run):
    found = compute_flow(run, replace(ALONE, theories=True))
    assert found.theories[:2] == [CENTRAL_FLOW, ROD]
    assert len(found.theories) == 8
    for segment in found.segments:
        for predicted in segment.predictions:
            assert predicted.steps.tolist() == found.measured(segment, "step").tolist()
    assert {e.theory for e in found.errors} >= {CENTRAL_FLOW, GRADIENT_FLOW}


def test_a_central_flow_that_ends_at_once_is_missing_and_not_left_out(found):
    silent = [
        replace(
            segment,
            predictions=[
                replace(p, **{name: np.full(len(p.steps), np.nan) for name in QUANTITIES})
                for p in segment.predictions
                if p.name == CENTRAL_FLOW
            ],
        )
        for segment in found.segments
    ]
    errors = [e for e in errors_of(found.observed, silent) if e.quantity == "loss"]
    assert errors[0].looks == 0
    assert errors[0].missing == sum(np.sum(found.counts(s)[1:]) for s in found.segments) > 0
    assert np.isnan(errors[0].median)
