"""The central flow of three runs at the edge, held against their own steps, with other theories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.flow.errors import QUANTITIES, TheoryError, errors_of
from dlf_dynamics.analysis.flow.flow import Flow
from dlf_dynamics.analysis.flow.segments import CENTRAL_FLOW, Segment
from dlf_dynamics.analysis.headings import legend_below
from dlf_dynamics.analysis.reproduction.edge_runs import RUNS, EdgeRun
from dlf_dynamics.analysis.reproduction.flow_costs import FlowCost, cost_of
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture
from dlf_dynamics.analysis.reproduction.published import Published
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task
from dlf_dynamics.analysis.style import COLOURS, fit_height, label_steps, scale_height, styled
from dlf_dynamics.config import FlowConfig
from dlf_dynamics.provenance import provenance

NAME = "central-flow"

SOURCE = (
    "J. Cohen, A. Damian, A. Talwalkar, J. Z. Kolter, J. D. Lee, *Understanding optimization in "
    "deep learning with central flows*, ICLR 2025, "
    "[arXiv 2410.24206](https://arxiv.org/abs/2410.24206)."
)

CLAIM = Published("a high degree of numerical accuracy", "text")

_WITHIN = {"loss": 0.01, "energy": 0.1}
"""Largest error of a prediction that counts as correct, by quantity."""


class _Setting(NamedTuple):
    """How long a run is, and where its flow is compared with it.

    Attributes:
        steps: updates of the run.
        window: steps a:b of the flow.
        restart_every: steps from one start of the flow to the next.
        every: steps between two looks.
    """

    steps: int
    window: str
    restart_every: int
    every: int = 10


_SIZES: dict[Budget, dict[str, _Setting]] = {
    "tiny": {
        "headline-tanh": _Setting(200, "150:170", 10),
        "chebyshev": _Setting(100, "50:60", 10),
        "digits": _Setting(450, "400:420", 10),
    },
    "small": {
        "headline-tanh": _Setting(15_000, "9300:10500", 600, 20),
        "chebyshev": _Setting(15_000, "13000:14000", 500, 20),
        "digits": _Setting(2000, "500:900", 200, 20),
    },
    "full": {
        "headline-tanh": _Setting(15_000, "9000:10500", 100),
        "chebyshev": _Setting(15_000, "2000:14000", 1000),
        "digits": _Setting(3000, "200:2800", 200),
    },
}
"""The windows of `small` were chosen by the runs alone. They begin where the oscillation has
settled by the rule of validity, but for the first one of the headline run, which begins at a given
step."""


@dataclass(frozen=True)
class Held:
    """A run with the predictions of its central flow and of other theories.

    Attributes:
        subject: the run.
        flow: predictions and measurements.
        cost: cost of a substep of the central flow.
    """

    subject: EdgeRun
    flow: Flow
    cost: FlowCost


def compare(runs: Sequence[Held]) -> Iterator[Comparison]:
    """Errors of the central flow in each window and by steps ahead, then those of all theories."""
    for each in runs:
        for segment in each.flow.segments:
            yield from _window(each, segment)
        yield from _ahead(each)
    for each in runs:
        for theory in each.flow.theories:
            if theory != CENTRAL_FLOW:
                yield _beside(each, theory)


def _window(each: Held, segment: Segment) -> Iterator[Comparison]:
    """The central flow from one of its starts."""
    flow, what = each.flow, f"{each.subject.name}, from step {segment.start:,}"
    after = flow.ahead(segment) > 0
    counts = flow.counts(segment) & after
    told = f"{np.sum(counts)} of {np.sum(after)} looks count{_why(flow, segment)}"
    errors = whole(errors_of(flow.observed, [segment]), CENTRAL_FLOW)
    oscillates = bool(np.any(flow.measured(segment, "oscillating")[counts]))
    if not oscillates:  # there is no energy to be right about
        errors.pop("energy", None)
    if not errors:
        yield Comparison(f"{what}: central flow", CLAIM, "nothing to compare", told)
        return
    told = f"{_verdict(errors)}; {told}; {_followed(segment, counts)}"
    yield Comparison(f"{what}: central flow", CLAIM, _listed(errors), told)
    if oscillates:
        yield _mean_energy(flow, segment, what, counts)


def _followed(segment: Segment, counts: Bool[np.ndarray, " looks"]) -> str:
    """Number of directions, and whether all equations were solved and no direction left out."""
    numbers = segment.tracked[counts]
    few, many = int(np.min(numbers)), int(np.max(numbers))
    told = f"{few} to {many}" if few < many else f"{few}"
    solved = np.all(segment.converged[counts]) and np.all(segment.complete[counts])
    return f"directions followed: {told}" + ("" if solved else ", not all of it certified")


def _mean_energy(
    flow: Flow, segment: Segment, what: str, counts: Bool[np.ndarray, " looks"]
) -> Comparison:
    """Mean energies over the looks that count and at which the flow has one."""
    energies = segment.column(CENTRAL_FLOW, "energy"), flow.measured(segment, "energy")
    known = counts & np.isfinite(energies[0])
    predicted, measured = (float(np.mean(energy[known])) for energy in energies)
    return Comparison(
        f"{what}: mean energy of the oscillation",
        None,
        f"predicted {predicted:.3g}, measured {measured:.3g}",
        f"{predicted / measured - 1:+.1%}",
    )


def _why(flow: Flow, segment: Segment) -> str:
    """The first step from which looks do not count, and why."""
    stopped = f"; the flow ended: {segment.stopped}" if segment.stopped else ""
    lost = np.flatnonzero(~flow.counts(segment))
    if not len(lost):
        return stopped
    step, reason = (flow.measured(segment, name)[lost[0]] for name in ("step", "reason"))
    return f", none from step {step:,} on: {reason}{stopped}"


def whole(errors: Sequence[TheoryError], theory: str) -> dict[str, TheoryError]:
    """Errors of a theory over all looks that count, by quantity; not those over spans of steps."""
    by_quantity: dict[str, TheoryError] = {}
    for error in errors:
        if error.theory == theory and error.looks:
            by_quantity.setdefault(error.quantity, error)
    return by_quantity


def _listed(errors: dict[str, TheoryError]) -> str:
    return "; ".join(f"{name} {_spread(error)}" for name, error in errors.items())


def _spread(error: TheoryError) -> str:
    """The median and the largest error."""
    missing = f", says nothing at {error.missing}" if error.missing else ""
    return f"{error.median:.1%} (at most {error.largest:.1%}{missing})"


def _verdict(errors: dict[str, TheoryError]) -> str:
    """The rule: loss and energy within `_WITHIN`, at every look that counts or in the median."""
    limits = {name: limit for name, limit in _WITHIN.items() if name in errors}
    told = ", ".join(f"{name} within {limit:.0%}" for name, limit in limits.items())
    far = [name for name, limit in limits.items() if not errors[name].median <= limit]
    if far:
        return f"differs: not {' nor '.join(far)} ({told} asked for)"
    missed = [name for name, limit in limits.items() if not errors[name].largest <= limit]
    if missed:
        return f"agrees at the median, not at every look: {', '.join(missed)} ({told} asked for)"
    return f"agrees: {told}"


def _ahead(each: Held) -> Iterator[Comparison]:
    """How far ahead the central flow predicts, over all windows of the run."""
    for quantity in QUANTITIES:
        spans = [
            error
            for error in each.flow.errors
            if (error.theory, error.quantity) == (CENTRAL_FLOW, quantity) and error.looks
        ][1:]
        if len(spans) > 1:
            told = (f"{e.ahead_from} to {e.ahead_to}: {e.median:.1%}" for e in spans)
            what = f"{each.subject.name}: {quantity} by steps since the start, median error"
            yield Comparison(what, None, "; ".join(told))


def _beside(each: Held, theory: str) -> Comparison:
    """Another theory over all windows of a run."""
    errors = whole(each.flow.errors, theory)
    what = f"{each.subject.name}, all windows: {theory}"
    return Comparison(what, None, _listed(errors) or "says nothing where looks count")


def draw(runs: Sequence[Held]) -> Figure:
    """A column for each run: loss, sharpness and energy, measured and predicted."""
    with styled():
        figure = Figure(figsize=(6.8, 5.2), layout="constrained")
        panels = figure.subplots(len(_PANELS), len(runs), squeeze=False, sharex="col")
        for column, each in zip(panels.T, runs, strict=True):
            column[0].set_title(each.subject.name)
            for ax, quantity in zip(column, _PANELS, strict=True):
                _draw(ax, each.flow, quantity)
            label_steps(column[-1])
        for ax, label in zip(panels[:, 0], _PANELS.values(), strict=True):
            ax.set_ylabel(label)
        legend_below(figure, panels[1, -1])
        return figure


_PANELS = {"loss": "loss", "sharpness": "sharpness", "energy": "energy |d|²"}


def _draw(ax: Axes, flow: Flow, quantity: str) -> None:
    """A quantity of a run and of its flow: grey, and the flow thin, where looks do not count."""
    steps, measured = flow.observed.steps, flow.observed.column(quantity)
    ax.plot(steps, measured, color="black", lw=1.2, label="measured")
    if quantity == "sharpness":
        ax.plot(steps, flow.observed.column("threshold"), color=COLOURS[5], lw=0.8, label="2/η")
    astray = []
    for segment in flow.segments:
        here, counts = steps[segment.rows], flow.counts(segment)
        predicted = segment.column(CENTRAL_FLOW, quantity)
        predicted = np.where(
            flow.ahead(segment) > 0, predicted, np.nan
        )  # the start is no prediction
        agrees = np.where(counts, predicted, np.nan)
        label = None if astray else CENTRAL_FLOW
        ax.plot(here, agrees, color=COLOURS[0], lw=1, label=label)
        ax.axvline(segment.start, color=COLOURS[0], lw=0.5, ls=":")
        if not np.all(counts):
            ax.axvspan(here[np.argmin(counts)], here[-1], color="0.9", lw=0)
        astray.append((here, predicted))
    scale_height(ax, measured)
    fit_height(ax, (flow.span[0], flow.span[-1]))
    for here, predicted in astray:
        ax.plot(here, predicted, color=COLOURS[0], lw=0.4)


def make(task: Task) -> Page:
    """Trains the runs that are missing, integrates their flows, draws, and compares."""
    runs = []
    for name, setting in _SIZES[task.budget].items():
        subject = RUNS[name](task, setting.steps)
        config = FlowConfig(
            steps=setting.window, restart_every=setting.restart_every, every=setting.every
        )
        flow = task.analysed(subject.run, config, "flow")
        runs.append(Held(subject, flow, cost_of(task, subject, config)))
    return Page(
        name=NAME,
        title="The central flow of three runs",
        source=SOURCE,
        published="At the edge of stability the average of gradient descent over its oscillation "
        "follows a differential equation, the central flow, which predicts long trajectories of "
        "neural networks with a high degree of numerical accuracy. No run of the paper is made "
        "again here.",
        comparisons=tuple(compare(runs)),
        differs=_differs(runs),
        pictures=(
            Picture(
                task.drawn(draw(runs), NAME),
                "Black: measured. Blue: the central flow, started anew at the run's own centre at "
                "the dotted lines; thin where looks do not count, which is grey.",
            ),
        ),
        made=task.made(NAME, json.loads(provenance()), _facts(runs)),
    )


def _differs(runs: Sequence[Held]) -> tuple[str, ...]:
    return (
        *(
            f"{each.subject.name}: {each.subject.about}, η = {each.subject.rate:g}."
            for each in runs
        ),
        "Errors are medians over the looks that count, with the largest: "
        + "; ".join(f"{name} {meaning}" for name, meaning in QUANTITIES.items())
        + ".",
        "A look counts while the rule of validity holds at it and at all looks before it since the "
        "start. The rule reads the run alone, and is the same for all runs.",
        "The windows were chosen by that rule. So were the runs: with ten classes of digits and "
        "squared error three and more directions come to the edge, and the oscillation goes up and "
        "down for thousands of steps; hardly a look would have counted, and no flow was computed.",
        "The rod equation and the flip about the centre are told the run's own centre at each "
        "look; all other theories know the run at the start alone.",
        "The flow holds the critical eigenvalues at 2/η. At the centre of an oscillation that is "
        "not small they are off it by terms of its energy, which the flow does not have.",
        "The central flow is of the average over the oscillation. Where the energy itself goes up "
        "and down over hundreds of steps, its mean over a window is what may be compared; the "
        "errors at single looks hold that motion as well.",
    )


def _facts(runs: Sequence[Held]) -> dict[str, str]:
    costs = {f"a substep, {each.subject.name}": str(each.cost) for each in runs}
    return {**costs, "precision": "float64"}


REPRODUCTION = Reproduction(
    NAME,
    "the central flow of three runs, and other theories, against their steps",
    make,
    "about 10 min",
    sweeps=False,
)
"""`dlf-dynamics reproduce`."""
