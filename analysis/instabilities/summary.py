"""What a person or a program reads of the instabilities of a run: table, lines, JSON."""

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
from dlf_dynamics.analysis.instabilities.plane_summary import plane_dict
from dlf_dynamics.analysis.instabilities.pulse_summary import pulse_dict
from dlf_dynamics.analysis.spectra.replay import FAITHFUL
from dlf_dynamics.errors import counted
from dlf_dynamics.jsontypes import finite

COLUMNS = ("", "oscillation", "above", "lag", "period", "amplitude", "kind")

_SHORT = {"supercritical": "super", "subcritical": "sub", "": "-"}


def as_dict(found: Bifurcations) -> dict[str, Any]:
    """The events and what they rest on, JSON-ready; what is unknown becomes null."""
    answer, lines = verdict(found)
    content = {
        "run_id": found.source.run_id,
        "run": found.source.state,
        "config": dataclasses.asdict(found.config),
        "threshold": found.label,
        "replay": found.note,
        "steps": [int(found.motion.steps[0]), int(found.motion.steps[-1])],
        "looked_at": len(found.motion.looked_at),
        "not_looked_at": len(not_looked_at(found.motion)),
        "not_converged": found.not_converged,
        "verdict": answer,
        "because": lines,
        "instabilities_known": not found.unwatched,
        "crossings": [dataclasses.asdict(crossing) for crossing in found.crossings],
        "instabilities": [
            dataclasses.asdict(event) | {"lag": event.lag} for event in found.instabilities
        ],
        "directions": [dataclasses.asdict(direction) for direction in found.directions],
        "pulse_maps": list(map(pulse_dict, found.pulse_maps)),
        "plane": plane_dict(found.plane),
        "edge": None if found.edge is None else edge_summary.as_dict(found.edge),
    }
    return finite(content)


def instabilities_table(found: Bifurcations) -> Table:
    """One line for each instability, what was predicted in brackets."""
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
    for number, event in enumerate(found.instabilities, start=1):
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


def closing_lines(found: Bifurcations) -> list[str]:
    """What the table rests on, a line each."""
    motion = found.motion
    lines = [
        f"Sharpness at the centres of {counted(len(motion.looked_at), 'step')}, every "
        f"{found.config.every} and around crossings each; {found.not_converged} not converged",
        _threshold(found),
        found.note,
        *found.source.caution,
        *verdict(found)[1],
        *_undecided_kinds(found),
        *_several(found),
    ]
    if found.unwatched:
        lines.append(f"instabilities are not told: {found.unwatched}")
    if any(event.criticality == NON_SMOOTH for event in found.instabilities):
        lines.append(
            "non-smooth: the activation has kinks, which the oscillation crosses; the flip "
            "coefficient does not see them"
        )
    return lines


def _several(found: Bifurcations) -> list[str]:
    """Where several directions were unstable at once, and how large each has become."""
    lines = []
    for number, event in enumerate(found.instabilities, start=1):
        above = [d for d in found.directions if d.onset == event.onset and d.above]
        if len(above) > 1:
            values = ", ".join(f"{d.sharpness:.4g}" for d in above)
            sizes = ", ".join(_known(d.amplitude) for d in above)
            lines.append(
                f"{len(above)} directions are above the threshold at the onset of {number}: "
                f"{values}; amplitudes along them {sizes}"
            )
    return lines


def _undecided_kinds(found: Bifurcations) -> list[str]:
    """Why the kind of some oscillations could not be told, one line for each reason."""
    numbers: dict[str, list[str]] = {}
    for number, event in enumerate(found.instabilities, start=1):
        if event.criticality_reason:
            numbers.setdefault(event.criticality_reason, []).append(str(number))
    return [f"kind of {', '.join(some)} not told: {why}" for why, some in numbers.items()]


def _threshold(found: Bifurcations) -> str:
    known = found.thresholds[np.isfinite(found.thresholds)]
    if len(known) == 0:
        return f"no threshold: {_why_none(found)}"
    low, high = np.min(known), np.max(known)
    value = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    return f"threshold {value}: {found.label}"


def _why_none(found: Bifurcations) -> str:
    """Why there is no threshold, without the words that say that there is none."""
    return found.label.removeprefix("no threshold: ")


def verdict(found: Bifurcations) -> tuple[str, list[str]]:
    """Whether a run stayed below its threshold, and the words.

    It is about the sharpness at the centres. `above`: surely so at one step at least. `below`:
    surely so at each step, all of them having been looked at, of a run that did not diverge.
    `undecided` otherwise, and of each reason a line. With mini-batches it is about their stability
    in mean square.
    """
    if found.edge is not None:
        return edge_summary.verdict(found.edge)
    if not has_threshold(found):
        return "undecided", [f"cannot be told: no threshold, {_why_none(found)}"]
    if np.any(found.sides > 0):
        return "above", _above(found)
    reasons = _reasons(found)
    if reasons:
        return "undecided", [f"cannot be told: {reason}" for reason in reasons] + _remarks(found)
    return "below", [
        f"below the threshold at each of the {counted(len(found.motion.looked_at), 'step')} "
        f"{_where(found)}; {_closest(found)}",
        *_remarks(found),
    ]


def has_threshold(found: Bifurcations) -> bool:
    """Whether there is one to be below or above."""
    return not np.all(np.isnan(found.thresholds))


def _above(found: Bifurcations) -> list[str]:
    above = found.motion.looked_at[found.sides > 0]
    ups = [crossing for crossing in found.crossings if crossing.direction == "up"]
    lines = [
        f"above the threshold at {len(above)} of the {len(found.motion.looked_at)} steps looked at "
        f"{_where(found)}, first at step {above[0]}; {counted(len(ups), 'crossing')} up"
    ]
    if above[0] == found.motion.looked_at[0]:
        lines.append("above from the first step looked at; it was not seen to cross up there")
    first = [f"{c.step_before}-{c.step_after}" for c in ups[:5]]
    if first:
        more = f" and {len(ups) - 5} more" if len(ups) > 5 else ""
        lines.append(f"crossed up between steps {', '.join(first)}{more}")
    return lines


def _reasons(found: Bifurcations) -> list[str]:
    """Why it cannot be told that a run stayed below which was not seen above."""
    motion, reasons = found.motion, []
    if found.source.status == "diverged":
        reasons.append(
            "the run diverged, though it was not seen above the threshold at the "
            f"{len(motion.looked_at)} steps looked at {_where(found)}"
        )
    elif found.source.status == "running":
        reasons.append("the run is still being written, or its writer was killed")
    missing = len(not_looked_at(motion))
    if missing:
        reasons.append(
            f"not above at the {counted(len(motion.looked_at), 'step')} looked at {_where(found)}, "
            f"{_closest(found)}; but {missing} in between were not looked at (`dlf-dynamics check "
            f"--fail-on-crossing`, or --every 1, looks at each)"
        )
    undecided = motion.looked_at[found.sides == 0]
    if len(undecided):
        reasons.append(
            f"at {len(undecided)} of the {len(motion.looked_at)} steps looked at the eigenvalue "
            "did not converge or lies on neither side of the threshold, first at step "
            f"{undecided[0]}"
        )
    if found.deviation > FAITHFUL:
        reasons.append(f"{found.note}; so it is not known what the run itself did in between")
    return reasons


def _remarks(found: Bifurcations) -> list[str]:
    """What is known beside the centres, of a run whose centres were not above."""
    motion, lines = found.motion, []
    known = np.isfinite(motion.iterate_intervals[:, 0])
    with np.errstate(invalid="ignore"):
        above = motion.looked_at[motion.iterate_intervals[:, 0] > found.thresholds]
    if len(above):
        lines.append(
            f"at the iterates themselves it was above at {len(above)} of the {np.sum(known)} steps "
            f"looked at there, first at step {above[0]}, about centres that are below"
        )
    if found.instabilities:
        first = found.instabilities[0]
        lines.append(
            f"it oscillated all the same: {counted(len(found.instabilities), 'window')}, the first "
            f"from step {first.onset} to {first.end}"
        )
    return lines


def _where(found: Bifurcations) -> str:
    steps = found.motion.steps
    part = "" if found.config.steps == ":" else ", a part of the run"
    return f"({max(steps[0], 1)} to {steps[-1]}{part})"


def _closest(found: Bifurcations) -> str:
    """The largest sharpness, and where it came closest to its threshold."""
    values, limits = found.motion.values, found.thresholds
    ratio = np.where(np.isfinite(values), values, -np.inf) / limits
    place = int(np.argmax(ratio))
    return (
        f"closest to it at step {found.motion.looked_at[place]}: {values[place]:.6g} of "
        f"{limits[place]:.6g}"
    )
