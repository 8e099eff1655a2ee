"""What a person or a program reads of the edge of a run: table, lines, verdict, JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.edge.batches import EPOCHS
from dlf_dynamics.analysis.edge.edge import EVENT, Edge
from dlf_dynamics.analysis.edge.points import SIDES
from dlf_dynamics.analysis.spectra.checkpoints import evenly
from dlf_dynamics.errors import counted
from dlf_dynamics.jsontypes import finite

COLUMNS = ("step", "η", "η_ms", "η/η_ms", "side", "λ(GGN)", "λ(H)", "full", "batch")

_BY_GGN = ", with the GGN of each example for its Hessian"

_MOST_ROWS = 30
"""Checkpoints that the table shows."""


def as_dict(edge: Edge) -> dict[str, Any]:
    """The checkpoints and what they rest on, JSON-ready; what is unknown becomes null."""
    answer, because = verdict(edge)
    return finite(
        {
            "run_id": edge.source.run_id,
            "run": edge.source.state,
            "config": dataclasses.asdict(edge.config),
            "batches": dataclasses.asdict(edge.batches),
            "is_threshold": edge.batches.is_threshold,
            "reference": edge.batches.why_reference,
            "preconditioned": edge.preconditioned,
            "full_batch": edge.label,
            "realized_edge": dataclasses.asdict(edge.realized),
            "verdict": answer,
            "because": because,
            "points": [dataclasses.asdict(point) for point in edge.points],
            "crossings": [dataclasses.asdict(crossing) for crossing in edge.crossings],
        }
    )


def lines(edge: Edge) -> list[str | Table]:
    """The checkpoints as a table, and what it rests on."""
    return [points_table(edge), *closing_lines(edge)]


def points_table(edge: Edge) -> Table:
    """One line for each checkpoint, or for some that are evenly spaced."""
    indices = evenly(np.arange(len(edge.points)), _MOST_ROWS)
    some = (
        "" if len(indices) == len(edge.points) else f"; {len(indices)} of {len(edge.points)} shown"
    )
    operator = "P⁻¹" if edge.preconditioned else ""
    told = "threshold" if edge.batches.is_threshold else "reference"
    table = Table(
        title=f"Mean-square {told}, {edge.batches}",
        caption="η_ms: the two ends of its certified interval; side: of η; λ: largest eigenvalue "
        f"of {operator}GGN and {operator}H of all examples (*: not converged); full: "
        "critical eigenvalue of the full-batch update; batch: batch sharpness, a measurement"
        f"{some}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in COLUMNS:
        table.add_column(heading, justify="right", overflow="fold")  # no digit is hidden
    for index in indices:
        point = edge.points[int(index)]
        table.add_row(
            str(point.step),
            _number(point.learning_rate),
            _interval(point.threshold_low, point.threshold_high),
            _interval(point.ratio_low, point.ratio_high),
            SIDES[point.side],
            _number(point.ggn) + "*" * _unsure(point.ggn, point.ggn_low),
            _number(point.sharpness) + "*" * _unsure(point.sharpness, point.sharpness_low),
            _number(point.full_batch),
            _number(point.batch_sharpness),
        )
    return table


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "∞" if value == np.inf else "-"


def _interval(low: float, high: float) -> str:
    """Both ends, or one number where they agree to the digits that are shown."""
    first, last = _number(low), _number(high)
    return first if first == last else f"{first}-{last}"


def _unsure(value: float, low: float) -> bool:
    return bool(np.isfinite(value) and np.isnan(low))


def closing_lines(edge: Edge) -> list[str]:
    """What the table rests on, a line each."""
    return [
        *_what(edge),
        *_reasons(edge),
        *_crossing_lines(edge),
        *_epoch_lines(edge),
        *_contradicted(edge),
        f"full batch: {edge.label}",
        _realized_line(edge),
        *edge.source.caution,
    ]


def _realized_line(edge: Edge) -> str:
    """How many steps raised their own loss."""
    return str(edge.realized) or "realized edge: none was recorded in this run"


def _what(edge: Edge) -> list[str]:
    curvature = "GGN of each example" + (", P frozen" if edge.preconditioned else "")
    told = (
        "η_ms: learning rate at which second moments of a small deviation cease to decay; "
        f"curvature: {curvature}, which is its Hessian where the data are fitted"
    )
    why = edge.batches.why_reference
    return [told, f"a reference, not this run's threshold: {why}"] if why else [told]


def _reasons(edge: Edge) -> list[str]:
    """Why something is not known, a line for each reason."""
    steps: dict[tuple[str, str], list[int]] = {}
    for point in edge.points:
        if point.reason:
            missing = "no interval of η_ms" if point.side else "η_ms is not known"
            steps.setdefault((missing, point.reason), []).append(point.step)
    return [f"{missing} {_at(some, edge)}: {why}" for (missing, why), some in steps.items()]


def _contradicted(edge: Edge) -> list[str]:
    """Checkpoints that the GGN calls stable and the Hessian, which governs the mean, does not."""
    column = edge.column
    sides = np.minimum(column("side"), column("epochs_side"))
    grows = (sides < 0) & ~(column("sharpness_high") < column("full_batch"))
    if not np.any(grows):
        return []
    steps = edge.steps[grows]
    where = f"{counted(len(steps), 'checkpoint')}, first at step {steps[0]}"
    return [
        "λ(H) is not certified to be below the full-batch threshold where the GGN tells of "
        f"stability, at {where}: there the GGN may not stand for the Hessian"
    ]


def _at(steps: list[int], edge: Edge) -> str:
    if len(steps) == len(edge.points):
        return "at any checkpoint"
    shown = ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")
    return f"at {counted(len(steps), 'checkpoint')} ({shown})"


def _crossing_lines(edge: Edge) -> list[str]:
    """Crossings of 1 by η over the threshold."""
    sides = edge.column("side")
    undecided = int(np.sum(sides == 0))
    told = [
        f"{counted(len(edge.crossings), 'crossing')}, {EVENT}; η / η_ms certified below 1 at "
        f"{np.sum(sides < 0)}, above at {np.sum(sides > 0)} of "
        f"{counted(len(sides), 'checkpoint')}, {undecided} undecided"
    ]
    for crossing in edge.crossings:
        unsure = ", with checkpoints on neither side in between" * (crossing.state != "certain")
        told.append(
            f"{crossing.direction} between steps {crossing.step_before} and {crossing.step_after}: "
            f"η / η_ms {_number(crossing.ratio_before)} to {_number(crossing.ratio_after)}{unsure}"
        )
    return told


def _epoch_lines(edge: Edge) -> list[str]:
    """What is known of shuffled epochs, if their orders were enumerated."""
    if not edge.config.epochs:
        return [
            "shuffled epochs: not told; --epochs enumerates their orders where these are few"
        ] * (edge.batches.sampling == EPOCHS and not edge.batches.whole)
    reasons = list(dict.fromkeys(point.epochs_reason for point in edge.points))
    lines = [f"shuffled epochs: not told: {reason}" for reason in reasons if reason]
    known = [point for point in edge.points if np.isfinite(point.epochs_high)]
    return lines + [
        f"shuffled epochs, by enumeration, loss and η held at step {point.step}: stable at "
        f"{_number(point.epochs_low)}, unstable at {_number(point.epochs_high)} (below, rates were "
        f"tried, not proved), {SIDES[point.epochs_side]} at its {_number(point.learning_rate)}"
        for point in known
    ]


def verdict(edge: Edge) -> tuple[str, list[str]]:
    """Whether a run stayed below the mean-square threshold of its own batches, and why.

    `above`: certified at one checkpoint at least. `below`: certified at each step, all of them
    being checkpoints that were looked at, of a run that did not diverge. `undecided` otherwise, and
    of each reason a line. Of shuffled epochs nothing but their enumeration decides.
    """
    sides = edge.deciding_sides
    told = [_realized_line(edge), *_ratio_lines(edge)]
    flips = "flips and cycles are not told: each update is that of other examples"
    if np.any(sides > 0):
        first = edge.steps[sides > 0][0]
        above = (
            f"unstable in mean square at {np.sum(sides > 0)} of "
            f"{counted(len(sides), 'checkpoint')}, first at step {first}{_BY_GGN}"
        )
        return "above", [above, *told, flips]
    reasons = list(_undecided(edge, sides))
    if reasons:
        lines = [f"cannot be told: {reason}" for reason in reasons]
        return "undecided", [*lines, *told, flips]
    below = f"stable in mean square at each of {counted(len(sides), 'step')}{_BY_GGN}"
    return "below", [below, *told, flips]


def _ratio_lines(edge: Edge) -> list[str]:
    """The range of η over its threshold, at the checkpoints at which it is known."""
    low, high = edge.ratio.T
    known = np.isfinite(low) & np.isfinite(high)
    if not np.any(known):
        return _reasons(edge)[:1]
    least, most = np.argmin(np.where(known, low, np.inf)), np.argmax(np.where(known, high, -np.inf))
    name = "η / η_ms" if edge.batches.is_threshold else "η / η_ms (a reference)"
    return [
        f"{name} from {_interval(low[least], high[least])} at step {edge.steps[least]} to "
        f"{_interval(low[most], high[most])} at step {edge.steps[most]}, at "
        f"{counted(int(np.sum(known)), 'checkpoint')}; {edge.batches}"
    ]


def _undecided(edge: Edge, sides: np.ndarray) -> Iterable[str]:
    """Why a run that was not seen to be unstable cannot be called stable."""
    epochs = edge.batches.own and edge.batches.sampling == EPOCHS
    if not edge.batches.is_threshold and not (epochs and np.any(sides)):
        yield edge.batches.why_reference
        return
    if edge.source.status == "diverged":
        yield "the run diverged, though it was not seen to be unstable at these checkpoints"
    elif edge.source.status == "running":
        yield "the run is still being written, or its writer was killed"
    if np.any(sides == 0):
        steps = edge.steps[sides == 0]
        yield (f"on neither side at {counted(len(steps), 'checkpoint')}, first at step {steps[0]}")
    yield from _contradicted(edge)
    missing = edge.span[1] - edge.span[0] + 1 - len(edge.points)
    if missing > 0:
        yield (
            f"nothing is known of the {counted(missing, 'step')} that are no checkpoints, or were "
            "not looked at (--checkpoints)"
        )
