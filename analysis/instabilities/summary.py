"""Table, lines, JSON and verdict for the instabilities of a run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.edge import summary as edge_summary
from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.instability import NON_SMOOTH, Instability
from dlf_dynamics.analysis.instabilities.location import not_looked_at
from dlf_dynamics.analysis.instabilities.plane_summary import plane_dict, plane_lines
from dlf_dynamics.analysis.instabilities.pulse_summary import (
    missing_lines,
    pulse_dict,
    pulse_lines,
    pulses_table,
)
from dlf_dynamics.analysis.spectra.replay import FAITHFUL
from dlf_dynamics.analysis.spectra.summary import threshold_line
from dlf_dynamics.errors import counted
from dlf_dynamics.jsontypes import finite

COLUMNS = ("", "oscillation", "above", "lag", "period", "amplitude", "kind")

_SHORT = {"supercritical": "super", "subcritical": "sub", "": "-"}


def as_dict(result: Bifurcations) -> dict[str, Any]:
    """The result as JSON values; what is unknown becomes null."""
    answer, lines = verdict(result)
    content = {
        "run_id": result.source.run_id,
        "run": result.source.state,
        "config": dataclasses.asdict(result.config),
        "threshold": result.label,
        "replay": result.note,
        "steps": [int(result.motion.steps[0]), int(result.motion.steps[-1])],
        "looked_at": len(result.motion.looked_at),
        "not_looked_at": len(not_looked_at(result.motion)),
        "not_converged": result.not_converged,
        "verdict": answer,
        "because": lines,
        "instabilities_known": not result.unwatched,
        "crossings": [dataclasses.asdict(crossing) for crossing in result.crossings],
        "instabilities": [
            dataclasses.asdict(event) | {"lag": event.lag} for event in result.instabilities
        ],
        "directions": [dataclasses.asdict(direction) for direction in result.directions],
        "pulse_maps": list(map(pulse_dict, result.pulse_maps)),
        "plane": plane_dict(result.plane),
        "edge": None if result.edge is None else edge_summary.as_dict(result.edge),
    }
    return finite(content)


def instabilities_table(result: Bifurcations) -> Table:
    """One line for each instability, with predictions in brackets."""
    table = Table(
        title="Instabilities; in brackets what was predicted",
        caption="above: first step above the threshold; lag: from there to the onset; period: "
        "that of most steps (?: irregular); amplitude: along the top eigenvector (flip "
        "coefficient; rod equation); kind: of the flip",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, event in enumerate(result.instabilities, start=1):
        table.add_row(
            str(number),
            f"{event.onset}-{event.end}",
            _known(event.crossed),
            "-" if event.lag is None else f"{event.lag:+d} ({_known(event.predicted_lag)})",
            _period(event),
            f"{_known(event.amplitude)} ({_known(event.flip_amplitude)}; "
            f"{_known(event.rod_amplitude)})",
            _SHORT.get(event.criticality, event.criticality) + " F const" * event.symmetric,
        )
    return table


def _known(value: float) -> str:
    if isinstance(value, int):
        return "-" if value < 0 else str(value)
    return f"{value:.2g}" if np.isfinite(value) else "-"


def _period(event: Instability) -> str:
    shares = {
        "2": event.period_2,
        "4": event.period_4,
        "8": event.period_8,
        "?": event.irregular,
    }
    name = max(shares, key=lambda name: shares[name])
    return f"{name} {100 * shares[name]:.0f}%"


def lines(result: Bifurcations) -> list[str | Table]:
    """The instabilities and the maps of pulses as tables, and what all rests on."""
    edge, maps = result.edge, result.pulse_maps
    return [
        instabilities_table(result) if edge is None else edge_summary.points_table(edge),
        *([pulses_table(maps)] if maps else []),
        *closing_lines(result),
        *pulse_lines(maps),
        *missing_lines(result.config, maps),
        *plane_lines(result.plane),
    ]


def closing_lines(result: Bifurcations) -> list[str]:
    """Sampling, threshold, replay, verdict and caveats, a line each."""
    motion = result.motion
    lines = [
        f"Sharpness at the centres of {counted(len(motion.looked_at), 'step')}, every "
        f"{result.config.every} and around crossings each; {result.not_converged} not converged",
        threshold_line(result.thresholds, result.label),
        result.note,
        *result.source.caution,
        *verdict(result)[1],
        *_undecided_kinds(result),
        *_several(result),
    ]
    if result.unwatched:
        lines.append(f"instabilities are not reported: {result.unwatched}")
    if any(event.criticality == NON_SMOOTH for event in result.instabilities):
        lines.append(
            "non-smooth: the activation has kinks, which the oscillation crosses; the flip "
            "coefficient does not see them"
        )
    return lines


def _several(result: Bifurcations) -> list[str]:
    """Onsets with several unstable directions, and the amplitude along each of them."""
    lines = []
    for number, event in enumerate(result.instabilities, start=1):
        above = [d for d in result.directions if d.onset == event.onset and d.above]
        if len(above) > 1:
            values = ", ".join(f"{d.sharpness:.4g}" for d in above)
            sizes = ", ".join(_known(d.amplitude) for d in above)
            lines.append(
                f"{len(above)} directions are above the threshold at the onset of {number}: "
                f"{values}; amplitudes along them {sizes}"
            )
    return lines


def _undecided_kinds(result: Bifurcations) -> list[str]:
    """Why the kind of some oscillations is not known, one line for each reason."""
    numbers: dict[str, list[str]] = {}
    for number, event in enumerate(result.instabilities, start=1):
        if event.criticality_reason:
            numbers.setdefault(event.criticality_reason, []).append(str(number))
    return [f"kind of {', '.join(some)} not known: {why}" for why, some in numbers.items()]


def verdict(result: Bifurcations) -> tuple[str, list[str]]:
    """Whether a run stayed below its threshold, with lines that say why.

    It concerns the sharpness at the centres: `above` if it is certainly above at one step at least;
    `below` if it is certainly below at every step, all of them sampled, and the run did not
    diverge; `undecided` otherwise, with a line for each reason. With mini-batches it concerns their
    stability in mean square.
    """
    if result.edge is not None:
        return edge_summary.verdict(result.edge)
    if not has_threshold(result):
        reason = result.label.removeprefix("no threshold: ")
        return "undecided", [f"cannot be told: no threshold, {reason}"]
    if np.any(result.sides > 0):
        return "above", _above(result)
    reasons = _reasons(result)
    if reasons:
        return "undecided", [f"cannot be told: {reason}" for reason in reasons] + _remarks(result)
    return "below", [
        f"below the threshold at each of the {counted(len(result.motion.looked_at), 'step')} "
        f"{_where(result)}; {_closest(result)}",
        *_remarks(result),
    ]


def has_threshold(result: Bifurcations) -> bool:
    """Whether there is a threshold at any sampled step."""
    return not np.all(np.isnan(result.thresholds))


def _above(result: Bifurcations) -> list[str]:
    above = result.motion.looked_at[result.sides > 0]
    ups = [crossing for crossing in result.crossings if crossing.direction == "up"]
    lines = [
        f"above the threshold at {len(above)} of the {len(result.motion.looked_at)} steps looked "
        f"at {_where(result)}, first at step {above[0]}; {counted(len(ups), 'crossing')} up"
    ]
    if above[0] == result.motion.looked_at[0]:
        lines.append("above from the first step looked at; it was not seen to cross up there")
    first = [f"{c.step_before}-{c.step_after}" for c in ups[:5]]
    if first:
        more = f" and {len(ups) - 5} more" if len(ups) > 5 else ""
        lines.append(f"crossed up between steps {', '.join(first)}{more}")
    return lines


def _reasons(result: Bifurcations) -> list[str]:
    """Why a run that was not seen above the threshold may not have stayed below it."""
    motion, reasons = result.motion, []
    if result.source.status == "diverged":
        reasons.append(
            "the run diverged, though it was not seen above the threshold at the "
            f"{len(motion.looked_at)} steps looked at {_where(result)}"
        )
    elif result.source.status == "running":
        reasons.append("the run is still being written, or its writer was killed")
    missing = len(not_looked_at(motion))
    if missing:
        reasons.append(
            f"not above at the {counted(len(motion.looked_at), 'step')} looked at {_where(result)}"
            f", {_closest(result)}; but {missing} in between were not looked at (`dlf-dynamics "
            f"check --fail-on-crossing`, or --every 1, looks at each)"
        )
    undecided = motion.looked_at[result.sides == 0]
    if len(undecided):
        reasons.append(
            f"at {len(undecided)} of the {len(motion.looked_at)} steps looked at the eigenvalue "
            "did not converge or lies on neither side of the threshold, first at step "
            f"{undecided[0]}"
        )
    if result.deviation > FAITHFUL:
        reasons.append(f"{result.note}; so it is not known what the run itself did in between")
    return reasons


def _remarks(result: Bifurcations) -> list[str]:
    """Iterates above the threshold, and oscillations, of a run whose centres were not above."""
    motion, lines = result.motion, []
    known = np.isfinite(motion.iterate_intervals[:, 0])
    with np.errstate(invalid="ignore"):
        above = motion.looked_at[motion.iterate_intervals[:, 0] > result.thresholds]
    if len(above):
        lines.append(
            f"at the iterates themselves it was above at {len(above)} of the {np.sum(known)} steps "
            f"looked at there, first at step {above[0]}, about centres that are below"
        )
    if result.instabilities:
        first = result.instabilities[0]
        lines.append(
            f"it oscillated all the same: {counted(len(result.instabilities), 'window')}, the "
            f"first from step {first.onset} to {first.end}"
        )
    return lines


def _where(result: Bifurcations) -> str:
    steps = result.motion.steps
    part = "" if result.config.steps == ":" else ", a part of the run"
    return f"({max(steps[0], 1)} to {steps[-1]}{part})"


def _closest(result: Bifurcations) -> str:
    """The sharpness where it came closest to its threshold."""
    values, limits = result.motion.values, result.thresholds
    ratio = np.where(np.isfinite(values), values, -np.inf) / limits
    index = int(np.argmax(ratio))
    return (
        f"closest to it at step {result.motion.looked_at[index]}: {values[index]:.6g} of "
        f"{limits[index]:.6g}"
    )
