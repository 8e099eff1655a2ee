"""What a person or a program reads of the instabilities of a run: table, lines, JSON, CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.bifurcation.bifurcations import Bifurcations
from dlf_dynamics.analysis.bifurcation.instabilities import NON_SMOOTH, Instability
from dlf_dynamics.analysis.events import sides
from dlf_dynamics.analysis.report import finite

COLUMNS = ("", "oscillation", "above", "lag", "period", "amplitude", "kind")

_SHORT = {"supercritical": "super", "subcritical": "sub", "": "-"}


def summary(found: Bifurcations) -> dict[str, Any]:
    """The events and what they rest on, JSON-ready; what is unknown becomes null."""
    answer, _ = verdict(found)
    content = {
        "run_id": found.run_id,
        "config": dataclasses.asdict(found.config),
        "threshold": found.label,
        "replay": found.note,
        "looked_at": len(found.motion.looked_at),
        "not_converged": found.not_converged,
        "verdict": answer,
        "crossings": [dataclasses.asdict(crossing) for crossing in found.crossings],
        "instabilities": [
            dataclasses.asdict(event) | {"lag": event.lag} for event in found.instabilities
        ],
    }
    return finite(content)


def csv_text(events: Sequence[Instability]) -> str:
    """One line for each instability; what is unknown is empty."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Instability)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for event in events:
        row = dataclasses.asdict(event)
        unknown = {name: "" for name, value in row.items() if value == -1 or value != value}
        writer.writerow(row | unknown)
    return text.getvalue()


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
        f"Sharpness at the centres of {len(motion.looked_at)} steps, every {found.config.every}; "
        f"{found.not_converged} not converged",
        _threshold(found),
        found.note,
        *verdict(found)[1],
        *_undecided_kinds(found),
    ]
    if any(event.criticality == NON_SMOOTH for event in found.instabilities):
        lines.append(
            "non-smooth: the activation has kinks, which the oscillation crosses; the flip "
            "coefficient does not see them"
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
        return f"no threshold: {found.label}"
    low, high = np.min(known), np.max(known)
    value = f"{low:.6g}" if low == high else f"{low:.6g} to {high:.6g}"
    return f"threshold {value}: {found.label}"


def verdict(found: Bifurcations) -> tuple[str, list[str]]:
    """Whether a run stayed below its threshold: `below`, `above` or `undecided`; and the words."""
    motion = found.motion
    where = f"steps {motion.steps[0]} to {motion.steps[-1]}"
    if not np.any(np.isfinite(found.thresholds)):
        return "undecided", [f"cannot be told: no threshold, {found.label}"]
    side = sides(motion.intervals, motion.converged, found.thresholds)
    known = motion.looked_at > 0  # the centre of step 0 has no step before it
    ups = [crossing for crossing in found.crossings if crossing.direction == "up"]
    above = motion.looked_at[known & (side > 0)]
    if len(above):
        lines = [
            f"above the threshold at {len(above)} of the {int(np.sum(known))} steps looked at "
            f"({where}), first seen at step {above[0]}; {len(ups)} crossings up"
        ]
        first = [f"{c.step_before}-{c.step_after}" for c in ups[:5]]
        if first:
            more = f" and {len(ups) - 5} more" if len(ups) > 5 else ""
            lines.append(f"crossed up between steps {', '.join(first)}{more}")
        return "above", lines
    undecided = motion.looked_at[known & (side == 0)]
    if len(undecided):
        return "undecided", [
            f"cannot be told: at {len(undecided)} of the {int(np.sum(known))} steps looked at the "
            f"eigenvalue did not converge or lies on neither side, first at step {undecided[0]}"
        ]
    return "below", [
        f"below the threshold at all {int(np.sum(known))} steps looked at ({where}, every "
        f"{found.config.every}); largest sharpness {np.max(motion.values[known]):.6g}"
    ]
