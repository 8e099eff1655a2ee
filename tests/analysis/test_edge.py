"""Mean-square stability along a run, against recursions of second moments by hand."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlf_dynamics import OptimizerConfig, Problem, Recorder, open_run, resultfile
from dlf_dynamics.analysis.edge.analysis import EdgeAnalysis
from dlf_dynamics.analysis.edge.batches import Batches
from dlf_dynamics.analysis.edge.edge import (
    EVENT,
    EdgePoint,
    _crossings,
    compute_edge,
    load_edge,
    units,
)
from dlf_dynamics.analysis.edge.plots import edge_figure
from dlf_dynamics.analysis.edge.summary import as_dict, closing_lines, verdict
from dlf_dynamics.analysis.report.content import Part
from dlf_dynamics.analysis.stability.threshold import Threshold
from dlf_dynamics.commands.check import Check
from dlf_dynamics.config import BifurcationConfig, EdgeConfig
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.parts import Parts

FEW = EdgeConfig(checkpoints=3)


def example_curvatures(run, params, step):
    """H_i = J_iᵀ A_i J_i of cross entropy, from the network's Jacobian and softmax alone."""
    problem = run.problem
    weights = np.asarray(problem.example_weights(step, problem.targets)).reshape(-1)
    slopes = np.asarray(jax.jacrev(problem.outputs)(params))
    outputs = np.asarray(problem.outputs(params))
    shares = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    found = []
    for weight, slope, share in zip(weights, slopes, shares, strict=True):
        inner = np.diag(share) - np.outer(share, share)
        found.append(weight * slope.T @ inner @ slope)
    return np.array(found)


def growth(curvatures, batch_size, rate):
    """Largest eigenvalue of the map of second moments on the curvature's range: all batches."""
    values, vectors = np.linalg.eigh(curvatures.mean(axis=0))
    basis = vectors[:, values > 1e-10 * values[-1]]
    small = np.einsum("ia,nij,jb->nab", basis, curvatures, basis)
    one = np.eye(basis.shape[1])
    updates = [
        one - rate * small[list(batch)].mean(axis=0)
        for batch in combinations(range(len(small)), batch_size)
    ]
    return max(abs(np.linalg.eigvals(np.mean([np.kron(u, u) for u in updates], axis=0))))


@pytest.fixture(scope="module")
def tiny(small):
    """Six examples, so that all batches can be enumerated."""
    return replace(
        small,
        data=replace(small.data, points_per_class=2),
        batch_size=2,
        batch_sampling="independent",
        edge_every=1,
    )


@pytest.fixture(scope="module")
def found(tiny, trained):
    return compute_edge(trained(tiny), FEW)


def test_the_interval_is_where_second_moments_of_all_batches_cease_to_decay(tiny, trained, found):
    run = trained(tiny)
    assert found.steps.tolist() == [0, 28, 60]
    params = dict(zip(run.checkpoint_steps.tolist(), run.parameters(), strict=True))
    for point in found.points:
        curvatures = example_curvatures(run, params[point.step], point.step)
        assert (
            growth(curvatures, 2, point.threshold_low)
            < 1
            < growth(curvatures, 2, point.threshold_high * (1 + 1e-9))
        )
        assert point.threshold_high / point.threshold_low < 1 + 1.1e-3
        assert point.ratio_low == pytest.approx(0.3 / point.threshold_high, rel=1e-12)
        assert point.ratio_high == pytest.approx(0.3 / point.threshold_low, rel=1e-12)
        assert point.side == -1
        top = np.linalg.eigvalsh(curvatures.mean(axis=0))[-1]
        assert point.ggn == pytest.approx(top, rel=1e-9)
        assert point.ggn_low <= top * (1 + 1e-9) <= point.ggn_high * (1 + 2e-9)
        dense = np.linalg.eigvalsh(
            jax.hessian(run.problem.objective)(params[point.step], point.step)
        )
        assert point.sharpness == pytest.approx(dense[-1], rel=1e-6)
        assert point.full_batch == pytest.approx(2 / 0.3, rel=1e-9)
        assert point.batch_sharpness == pytest.approx(
            batch_sharpness(run, params[point.step], point.step), rel=1e-9
        )


def batch_sharpness(run, params, step):
    """E[gᵀHg] / E[gᵀg] over all batches of two, dense."""
    along = square = 0.0
    for batch in combinations(range(6), 2):
        part = run.problem.take(jnp.array(batch))
        slope = np.asarray(jax.grad(part.objective)(params, step))
        along += slope @ np.asarray(jax.hessian(part.objective)(params, step)) @ slope
        square += slope @ slope
    return along / square


def test_a_batch_of_all_examples_has_the_threshold_of_gradient_descent(small, trained):
    full = compute_edge(trained(small), EdgeConfig(checkpoints=1))
    (point,) = full.points
    assert full.batches == Batches(24, 24, "full batch", True)
    assert full.batches.is_threshold
    assert point.threshold_low == pytest.approx(2 / point.ggn, rel=1e-9)
    assert point.threshold_high == pytest.approx(2 / point.ggn, rel=1e-9)
    what_if = compute_edge(trained(small), EdgeConfig(checkpoints=1, batch_size=1))
    assert what_if.points[0].threshold_high < point.threshold_low
    assert not what_if.batches.is_threshold
    assert "the run has other batches" in "\n".join(closing_lines(what_if))
    assert verdict(what_if)[0] == "undecided"


def test_the_result_is_kept_and_printed_and_goes_on_from_its_parts(
    tiny, trained, found, tmp_path, require_schema
):
    run = trained(tiny)
    path = tmp_path / "run.edge.h5"
    resultfile.save(path, "edge", found)
    kept = load_edge(path, run)
    assert as_dict(kept) == as_dict(found)
    require_schema(json.loads(json.dumps(as_dict(found))), "edge")
    counts: list[int] = []
    parts = Parts(tmp_path / "parts", "edge", run, {})
    first = compute_edge(run, FEW, parts=parts, progress=counts.append)
    assert counts == [3, 6, 7, 8, 9]
    assert units(run, FEW) == 9
    made = sorted(path.name for path in (tmp_path / "parts").glob("*.h5"))
    assert made == ["ggn.h5", "hessian.h5", "point-0.h5", "point-28.h5", "point-60.h5"]
    again = compute_edge(run, FEW, parts=parts)
    assert as_dict(again) == as_dict(first) == as_dict(found)


def test_of_shuffled_epochs_it_is_a_reference_that_decides_nothing(tiny, trained):
    run = trained(replace(tiny, batch_sampling="epochs"))
    assert run.edges.evaluated == 60
    found = compute_edge(run, FEW)
    answer, lines = verdict(found)
    assert answer == "undecided"
    assert "shuffled epochs, which are more stable than independent draws" in lines[0]
    assert any("η / η_ms (a reference) from" in line for line in lines)
    assert str(run.edges) in lines
    assert any("flips and cycles are not told" in line for line in lines)
    figure = edge_figure(run, found)
    styles = {
        line.get_label(): line.get_linestyle() for ax in figure.axes for line in ax.get_lines()
    }
    assert styles["reference"] == styles["full batch"] == "--"
    assert "threshold" not in styles


@pytest.mark.slow
def test_enumerated_orders_of_epochs_are_those_of_dense_products(tiny, trained):
    run = trained(replace(tiny, batch_sampling="epochs"))
    exact = compute_edge(run, EdgeConfig(checkpoints=1, epochs=True))
    (point,) = exact.points
    curvatures = example_curvatures(run, run.parameters()[-1], 60)
    assert epoch_growth(curvatures, point.epochs_low * (1 - 1e-6)) < 1
    assert epoch_growth(curvatures, point.epochs_high * (1 + 1e-6)) > 1
    assert point.epochs_side == -1
    answer, (line, *_) = verdict(exact)
    assert answer == "undecided"
    assert line.endswith("are no checkpoints, or were not looked at (--checkpoints)")


def epoch_growth(curvatures, rate):
    """The same over an epoch of three batches of two, in all orders."""
    values, vectors = np.linalg.eigh(curvatures.mean(axis=0))
    basis = vectors[:, values > 1e-10 * values[-1]]
    small = np.einsum("ia,nij,jb->nab", basis, curvatures, basis)
    one, total, orders = np.eye(basis.shape[1]), 0.0, 0
    for first in combinations(range(6), 2):
        rest = sorted(set(range(6)) - set(first))
        for second in combinations(rest, 2):
            third = sorted(set(rest) - set(second))
            product = one
            for batch in (first, second, third):
                product = (one - rate * small[list(batch)].mean(axis=0)) @ product
            total, orders = total + np.kron(product, product), orders + 1
    return max(abs(np.linalg.eigvals(total / orders)))


def test_independent_draws_are_solid_and_decide(tiny, trained, found):
    run = trained(tiny)
    figure = edge_figure(run, found)
    styles = {
        line.get_label(): line.get_linestyle() for ax in figure.axes for line in ax.get_lines()
    }
    assert styles["threshold"] == "-"
    assert "reference" not in styles
    above = replace(found, points=[replace(p, side=1) for p in found.points])
    assert verdict(above)[0] == "above"
    every = [replace(found.points[0], step=step) for step in range(61)]
    assert verdict(replace(found, points=every))[0] == "below"
    assert verdict(replace(found, points=every[:60]))[0] == "undecided"
    source = replace(found.source, status="diverged")
    assert verdict(replace(found, points=every, source=source))[0] == "undecided"
    undecided = [*every[:3], replace(every[3], side=0), *every[4:]]
    answer, lines = verdict(replace(found, points=undecided))
    assert answer == "undecided"
    assert "on neither side at 1 checkpoint, first at step 3" in lines[0]


def test_where_the_hessian_is_above_what_the_ggn_calls_stable_is_not_below(found):
    every = [replace(found.points[0], step=step) for step in range(61)]
    answer, lines = verdict(replace(found, points=every))
    assert answer == "below"
    assert lines[0].endswith("with the GGN of each example for its Hessian")
    for high in (1.001 * every[7].full_batch, np.nan):
        steep = [*every[:7], replace(every[7], sharpness_high=high), *every[8:]]
        answer, lines = verdict(replace(found, points=steep))
        assert answer == "undecided"
        assert "at 1 checkpoint, first at step 7: there the GGN may not stand" in lines[0]
        assert any(
            "first at step 7" in line for line in closing_lines(replace(found, points=steep))
        )


def test_crossings_lie_between_certified_checkpoints_and_the_undecided_are_told():
    points = [
        EdgePoint(step=0, ratio_low=0.5, ratio_high=0.6, side=-1),
        EdgePoint(step=10, ratio_low=1.1, ratio_high=1.2, side=1),
        EdgePoint(step=20, ratio_low=0.9, ratio_high=1.1, side=0),
        EdgePoint(step=30, ratio_low=0.7, ratio_high=0.8, side=-1),
    ]
    up, down = _crossings(points)
    assert (up.name, up.direction, up.step_before, up.step_after) == (EVENT, "up", 0, 10)
    assert (up.ratio_before, up.ratio_after, up.state) == (0.6, 1.1, "certain")
    assert (down.direction, down.step_before, down.step_after) == ("down", 10, 30)
    assert (down.ratio_before, down.ratio_after, down.state) == (1.1, 0.8, "unresolved")


def test_a_schedule_counts_step_by_step_and_at_rest_nothing_is_unstable(scheduled, tiny, trained):
    batches = {"batch_size": 4, "batch_sampling": "independent"}
    run = trained(replace(scheduled, **batches))
    found = compute_edge(run, FEW)
    used = run.scalars["learning_rate"][found.steps]
    np.testing.assert_allclose(found.column("learning_rate"), used)
    first, second, _ = found.points
    assert (first.learning_rate, first.ratio_high, first.side) == (0.0, 0.0, -1)
    assert np.isnan(first.threshold_low)
    assert "the learning rate is 0" in first.reason
    assert second.ratio_low == pytest.approx(used[1] / second.threshold_high, rel=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (OptimizerConfig("adam", learning_rate=0.01), ""),
        pytest.param(
            OptimizerConfig("heavy-ball", learning_rate=0.1, momentum=0.5),
            "",
            marks=pytest.mark.slow,
        ),
        (OptimizerConfig("nesterov", learning_rate=0.1, momentum=0.5), "Nesterov's momentum"),
    ],
    ids=["adam", "heavy-ball", "nesterov"],
)
def test_of_other_optimizers_the_side_or_the_reason_and_all_else(optimizer, told, tiny, trained):
    run = trained(replace(tiny, optimizer=optimizer))
    found = compute_edge(run, EdgeConfig(checkpoints=2))
    for point in found.points:
        assert told in point.reason
        assert bool(told) == (point.side == 0)
        assert np.isfinite(point.ggn)
        assert np.isfinite(point.full_batch)
        assert np.isfinite(point.batch_sharpness) != (optimizer.name == "adam")
    if told:
        told_of = "η_ms is not known at any checkpoint: "
        assert any(line.startswith(told_of) for line in closing_lines(found))
        assert any(told in line for line in verdict(found)[1])


def test_recorded_batches_are_told_once_their_size_is(tmp_path):
    problem = Problem(
        lambda w, x: x[:, 0] * w,
        lambda outputs, targets: outputs**2 / 2,
        jnp.array([[1.0], [np.sqrt(3.0)]]),
        jnp.zeros(2),
    )
    rule = optax.sgd(0.75)
    with Recorder(tmp_path / "own.h5", problem, optimizer=rule, full_batch=False) as recorder:
        recorder.record(0, jnp.array(1.0), rule.init(jnp.array(1.0)))
    run = open_run(tmp_path / "own.h5", (problem, rule, jnp.array(1.0)))
    with pytest.raises(ConfigError, match="does not tell how many examples are in one; say it"):
        compute_edge(run)
    found = compute_edge(run, EdgeConfig(batch_size=1, epochs=True))
    (point,) = found.points
    # Two examples of curvatures 1 and 3: E(1 - ηh)² < 1 below η = 0.8, and 4/3 for epochs.
    assert point.learning_rate == 0.75
    assert point.threshold_low == pytest.approx(0.8, rel=1.1e-3)
    assert point.threshold_low < 0.8 <= point.threshold_high * (1 + 1e-12)
    assert point.ratio_low <= 0.75 / 0.8 * (1 + 1e-12) <= point.ratio_high * (1 + 2e-12)
    assert (point.side, point.epochs_side) == (-1, -1)
    assert point.epochs_low <= 4 / 3 <= point.epochs_high
    assert point.epochs_low == pytest.approx(4 / 3, rel=2e-3)
    assert (point.ggn, point.sharpness) == pytest.approx((2.0, 2.0), rel=1e-9)
    # 2.8 is above 2 / η where mean square shrinks: a measurement, no threshold.
    assert point.batch_sharpness == pytest.approx(2.8, rel=1e-9)
    assert verdict(found)[1][0].endswith("is not known; it holds if independently")
    assert found.realized == EdgeCounts(0, 0, 0, 0)
    assert "realized edge: none was recorded in this run" in closing_lines(found)
    with pytest.raises(ConfigError, match="batch_size is 3; expected at most the 2 examples"):
        compute_edge(run, EdgeConfig(batch_size=3))


def test_a_loss_alone_has_no_batches(tmp_path):
    problem, rule = Problem.from_loss(lambda w, step: w**2), optax.sgd(0.1)
    with Recorder(tmp_path / "own.h5", problem, optimizer=rule) as recorder:
        recorder.record(0, jnp.array(1.0), rule.init(jnp.array(1.0)))
    run = open_run(tmp_path / "own.h5", (problem, rule, jnp.array(1.0)))
    with pytest.raises(ConfigError, match="has no examples, and batches are drawn of them"):
        compute_edge(run)


@pytest.mark.slow
def test_a_run_that_diverged_and_weights_that_are_0_are_told(tiny, trained):
    wild = replace(tiny, optimizer=OptimizerConfig(learning_rate=1e6), checkpoint_every=1)
    run = trained(wild)
    found = compute_edge(run, replace(FEW, checkpoints=4))
    assert verdict(found)[0] in ("above", "undecided")
    one = replace(tiny, schedule=replace(tiny.schedule, amplitude=1e30))
    found = compute_edge(trained(one), FEW)
    assert np.all(found.column("side") != 0)


def test_the_report_shows_the_checkpoints(tiny, trained, found):
    part = EdgeAnalysis().report(trained(tiny), found)
    assert isinstance(part, Part)
    assert [panel.title for panel in part.panels] == [
        "η / η_ms, independent batches",
        "curvature of all examples",
    ]
    crossed = _crossings([found.points[0], replace(found.points[1], side=1)])
    part = EdgeAnalysis().report(trained(tiny), replace(found, crossings=crossed))
    assert part.tables[-1].rows[0][:2] == [EVENT, "up"]


def test_the_figure_is_whole_on_a_page(tiny, trained, found, require_whole):
    require_whole(lambda: edge_figure(trained(tiny), found))


def test_check_reads_and_writes_the_edge_of_a_run_with_mini_batches(
    tiny, trained, found, tmp_path, capsys
):
    path = tmp_path / "run.h5"
    path.write_bytes(trained(tiny).path.read_bytes())
    run = open_run(path)
    resultfile.save(tmp_path / "run.edge.h5", "edge", replace(found, config=EdgeConfig()))
    code = Check(path, fail_on_crossing=True, quiet=True).execute()
    assert code == 4
    told = capsys.readouterr().out
    assert "cannot be told: nothing is known of the 58 steps" in told
    assert str(run.edges) in told
    above = [replace(point, side=1) for point in found.points]
    resultfile.save(
        tmp_path / "run.edge.h5", "edge", replace(found, config=EdgeConfig(), points=above)
    )
    assert Check(path, fail_on_crossing=True, quiet=True).execute() == 1
    capsys.readouterr()
    assert Check(path, quiet=True, json=True).execute() == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "above"
    other = replace(
        found, config=EdgeConfig(batch_size=1), batches=Batches(1, 6, "independent", False)
    )
    resultfile.save(tmp_path / "run.edge.h5", "edge", other)
    settings = BifurcationConfig()
    capsys.readouterr()
    assert Check(path, settings=settings, quiet=True).execute() == 0
    # What was computed for other batches stays, and what answers is read again.
    assert load_edge(tmp_path / "run.edge.h5").batches.size == 1
    assert load_edge(tmp_path / "run.check.h5").batches.size == 2
    captured = capsys.readouterr()
    assert f"wrote {tmp_path / 'run.check.h5'}" in captured.err
    assert Check(path, settings=settings, quiet=True).execute() == 0
    assert capsys.readouterr() == (captured.out, "")


def test_the_reference_line_says_what_is_not_in_it():
    half = Threshold(optax.sgd(0.1), "gd", precision="bfloat16")
    assert half.full_batch_label(np.array([0])).endswith(
        "gd with full batches; the rounding to bfloat16 is not in it"
    )


def test_check_enumerates_epochs_again_if_what_is_on_file_did(found):
    known = replace(found, config=EdgeConfig(epochs=True))
    checked = Check(Path("run.h5"), fail_on_crossing=True)
    run = SimpleNamespace(checkpoint_steps=np.arange(61), steps=np.arange(61))
    assert checked._of_edge(run, known) == EdgeConfig(checkpoints=61, epochs=True)
    assert checked._of_edge(run, None) == EdgeConfig(checkpoints=61)
