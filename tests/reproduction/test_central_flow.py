"""The page of the central flow, of flows whose errors are made up, so that they are known."""

from dataclasses import fields
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dlf_dynamics.analysis.flow.beside import Predicted
from dlf_dynamics.analysis.flow.errors import errors_of
from dlf_dynamics.analysis.flow.flow import Flow
from dlf_dynamics.analysis.flow.observed import Observed
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW, Segment
from dlf_dynamics.analysis.flow.validity import Look
from dlf_dynamics.analysis.reproduction import central_flow, flow_costs
from dlf_dynamics.analysis.reproduction.central_flow import Held, compare, draw
from dlf_dynamics.analysis.reproduction.edge_runs import RUNS, EdgeRun
from dlf_dynamics.analysis.reproduction.flow_costs import FlowCost, cost_of
from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.spans import span_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

EVERY, LENGTH = 10, 100
STEPS = np.arange(1000, 1000 + 2 * LENGTH + 1, EVERY)
COST = FlowCost(seconds=0.02, gradient=0.001, products=7.0, modes=1)


def look(step, reason, oscillating):
    """Numbers that the page does not read are 0."""
    numbers: dict[str, Any] = {field.name: 0 for field in fields(Look)}
    told = {"step": int(step), "reason": reason, "oscillating": oscillating}
    return Look(**(numbers | told | {"threshold": 20.0, "sharpness": 19.0}))


def held(loss=0.005, energy=0.05, lost=None, stopped="", oscillating=True, complete=True):
    """A run with two starts; the flow is off by these parts, and looks are lost from a step on."""
    reasons = ["" if lost is None or step < lost else "not small" for step in STEPS]
    true = {"loss": 2.0 * np.ones(len(STEPS)), "energy": 0.1 * np.ones(len(STEPS))}
    looks = [look(*each, oscillating) for each in zip(STEPS, reasons, strict=True)]
    observed = Observed(looks, STEPS, **true)
    segments = []
    for first in (0, LENGTH // EVERY):
        count = LENGTH // EVERY + 1
        here = {
            "loss": true["loss"][:count] * (1 + loss),
            "sharpness": np.full(count, 20.0),
            "energy": true["energy"][:count] * (1 - energy),
            "distance": np.linspace(0, 0.3, count),
        }
        steps = STEPS[first : first + count]
        silent = {name: np.full(count, np.nan) for name in here}
        predictions = [
            Predicted(CENTRAL_FLOW, steps, **here),
            Predicted("rod equation", steps, **(silent | {"energy": here["energy"] * 0.5})),
            Predicted("silent", steps, **silent),
        ]
        flags = np.ones(count, bool)
        segments.append(
            Segment(
                start=int(steps[0]),
                first=first,
                stopped=stopped,
                travelled=np.linspace(0, 3.0, count),
                centre_loss=here["loss"],
                tracked=np.ones(count, int),
                covariance_error=np.zeros(count),
                converged=flags,
                complete=flags & complete,
                num_products=np.ones(count, int),
                predictions=predictions,
            )
        )
    told: Any = {"source": None, "subject": "", "label": "", "replay": ""}
    errors = errors_of(observed, segments)
    span = (int(STEPS[0]), int(STEPS[-1]))
    config = FlowConfig(steps="1000:1201", restart_every=LENGTH)
    flow = Flow(
        config=config, span=span, observed=observed, segments=segments, errors=errors, **told
    )
    run: Any = None
    return Held(EdgeRun("made-up", "nothing", run, 0.1), flow, COST)


def row(each, what):
    (found,) = [one for one in compare([each]) if one.what == what]
    return found


def test_a_window_has_the_errors_of_its_looks_and_the_mean_of_their_energy():
    found = row(held(), "made-up, from step 1,000: central flow")
    assert found.measured == (
        "loss 0.5% (at most 0.5%); sharpness 5.0% (at most 5.0%); "
        "energy 5.0% (at most 5.0%); distance 10.0% (at most 10.0%)"
    )
    assert found.difference == (
        "agrees: loss within 1%, energy within 10%; 10 of 10 looks count; directions followed: 1"
    )
    mean = row(held(), "made-up, from step 1,100: mean energy of the oscillation")
    assert mean.measured == "predicted 0.095, measured 0.1"
    assert mean.difference == "-5.0%"


@pytest.mark.parametrize(
    ("off", "missed"),
    [({"loss": 0.011}, "loss"), ({"energy": 0.11}, "energy"), ({"energy": -0.12}, "energy")],
)
def test_one_quantity_that_is_off_is_enough_to_differ(off, missed):
    told = row(held(**off), "made-up, from step 1,000: central flow").difference
    assert told.startswith(f"differs: not {missed} (")


def test_a_look_that_is_off_is_told_from_a_median_that_is():
    energy = np.full(LENGTH // EVERY + 1, 0.05)
    energy[3] = 0.2
    told = row(held(energy=energy), "made-up, from step 1,000: central flow").difference
    assert told.startswith("agrees at the median, not at every look: energy (loss within 1%")
    energy[:7] = 0.2
    told = row(held(energy=energy), "made-up, from step 1,000: central flow").difference
    assert told.startswith("differs: not energy (")


def test_where_nothing_oscillates_no_energy_is_compared():
    each = held(energy=1.0, oscillating=False)
    found = row(each, "made-up, from step 1,000: central flow")
    assert "energy" not in found.measured
    assert found.difference.startswith("agrees: loss within 1%; 10 of 10 looks count; ")
    assert not [one for one in compare([each]) if "mean energy" in one.what]


def test_what_comes_after_a_look_that_does_not_count_is_no_agreement():
    each = held(lost=1040)
    first = row(each, "made-up, from step 1,000: central flow")
    assert "; 3 of 10 looks count, none from step 1,040 on: not small; " in first.difference
    second = row(each, "made-up, from step 1,100: central flow")
    assert second.measured == "nothing to compare"
    assert second.difference == "0 of 10 looks count, none from step 1,100 on: not small"
    assert not [
        one for one in compare([each]) if one.what.startswith("made-up, from step 1,100: m")
    ]


def test_a_flow_that_ended_says_why():
    told = row(held(stopped="more than 8 modes"), "made-up, from step 1,000: central flow")
    assert "; the flow ended: more than 8 modes; " in told.difference


def test_it_is_told_where_a_direction_may_have_been_left_out():
    told = row(held(complete=False), "made-up, from step 1,000: central flow").difference
    assert told.endswith("directions followed: 1, not all of it certified")


def test_errors_by_steps_since_the_start_and_those_of_other_theories():
    each = held()
    ahead = row(each, "made-up: loss by steps since the start, median error")
    assert ahead.measured == "1 to 20: 0.5%; 21 to 50: 0.5%; 51 to 100: 0.5%"
    rod = row(each, "made-up, all windows: rod equation")
    assert rod.measured == "energy 52.5% (at most 52.5%)"
    assert row(each, "made-up, all windows: silent").measured == "says nothing where looks count"


def test_the_figure_is_grey_where_looks_do_not_count():
    figure = draw([held(lost=1140), held()])
    grey = [len(ax.patches) for ax in figure.axes]
    assert grey == [1, 0] * 3
    plt.close(figure)


def test_the_windows_lie_within_their_runs_and_are_cut_into_whole_parts():
    assert {"tiny", "small", "full"} == central_flow._SIZES.keys()
    for asked in central_flow._SIZES.values():
        assert asked.keys() == RUNS.keys()
        for run in asked.values():
            start, stop = span_of(run.window, "steps")
            assert stop <= run.steps
            assert (stop - start) % run.restart_every == 0
            FlowConfig(steps=run.window, restart_every=run.restart_every, every=run.every)


@pytest.mark.slow
def test_a_substep_is_timed_where_the_flow_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(flow_costs, "CERTIFY_EVERY", 1)  # so few steps
    task = Task(tmp_path)
    subject = RUNS["headline-tanh"](task, 20)
    config = FlowConfig(steps="5:15", substeps=1)
    found = cost_of(task, subject, config)
    assert found.seconds > 0
    assert found.gradient > 0
    assert found == cost_of(task, subject, config)  # as it was kept
    assert "gradients; " in str(found)
    assert str(COST) == "20 ms, as long as 20 gradients; 1 direction, 7 Hessian products"
