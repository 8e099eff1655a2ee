"""Table, lines and JSON for the maps of pulses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from dlf_dynamics.analysis.bifurcation.multipliers import NEUTRAL
from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap
from dlf_dynamics.analysis.spectra.replay import FAITHFUL
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.errors import counted

_WORDS = {
    "stable": "stable",
    "none found": "no unstable found",
    "unstable": "unstable",
    "unknown": "not told",
}


def pulse_dict(pulse: PulseMap) -> dict[str, Any]:
    """A map as JSON values, without directions; multipliers as real and imaginary parts."""
    content = {
        field.name: getattr(pulse, field.name)
        for field in dataclasses.fields(pulse)
        if field.name not in ("directions", "multipliers")
    }
    pairs = [[float(value.real), float(value.imag)] for value in pulse.multipliers]
    arrays = {name: part.tolist() for name, part in content.items() if hasattr(part, "tolist")}
    return content | arrays | {"multipliers": pairs}


def pulses_table(maps: Sequence[PulseMap]) -> Table:
    """One line for each pulse and cycle."""
    table = Table(
        title="Growth of perturbations over pulses",
        caption="growth: largest singular values of the map of the whole state (?: not converged); "
        "closed: whether the orbit returns; multipliers: Floquet multipliers of closed orbits",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "steps", "class", "growth", "closed", "multipliers"):
        table.add_column(heading, justify="right", no_wrap=heading != "growth")
    for pulse in maps:
        table.add_row(
            f"{pulse.kind} {pulse.number}",
            f"{pulse.first_step}-{pulse.last_step - 1}",
            "-" if pulse.class_label < 0 else str(pulse.class_label),
            ", ".join(map(_growth, pulse.decades, pulse.converged)),
            "yes" if pulse.closed else "no",
            _multipliers(pulse) if pulse.closed else "-",
        )
    return table


def _growth(decades: float, converged: bool) -> str:
    if not np.isfinite(decades):
        return "0" if decades == -np.inf else "?"
    whole = int(np.floor(decades))
    text = (
        f"{10**decades:.3g}" if -3 <= decades < 4 else f"{10 ** (decades - whole):.2f}e{whole:+d}"
    )
    return text + "?" * (not converged)


def _multipliers(pulse: PulseMap) -> str:
    """The multiplier of largest modulus, and the stability."""
    words = _WORDS.get(pulse.stability, pulse.stability)
    words += f" ({pulse.crossing})" * bool(pulse.crossing)
    if not len(pulse.multipliers):
        return f"neutral only; {words}"
    value = pulse.multipliers[0]
    real = abs(value.imag) <= 1e-9 * abs(value)
    shown = f"{value.real:.4g}" if real else f"{value.real:.4g}{value.imag:+.4g}i"
    return f"{shown}; {words}"


def pulse_lines(maps: Sequence[PulseMap]) -> list[str]:
    """Products, convergence and caveats of the maps; empty without maps."""
    if not maps:
        return []
    values = [converged for pulse in maps for converged in pulse.converged]
    products = sum(pulse.products for pulse in maps)
    lines = [
        f"maps of {_of_kinds(maps)}: {counted(products, 'product')} along the replayed steps; "
        f"{len(values) - sum(values)} of {len(values)} singular values not converged"
    ]
    closed = [pulse for pulse in maps if pulse.closed]
    if len(closed) < len(maps):
        lines.append(
            f"{len(maps) - len(closed)} of {len(maps)} orbits do not close, and nothing is said of "
            f"multipliers: {_reasons(maps)}"
        )
    if closed:
        neutral = max(pulse.neutral for pulse in closed)
        lines.append(
            f"closed to {max(pulse.distance for pulse in closed):.1e} of their size at most; "
            f"multipliers within {NEUTRAL:g} of +1 are counted apart, up to {neutral} of them"
        )
    lost = [pulse for pulse in maps if np.any(np.isnan(pulse.decades))]
    if lost:
        lines.append(f"growth beyond the largest number in {_named(lost)}")
    if maps[0].kinks:
        lines.append(
            f"the loss has kinks ({maps[0].kinks}): the maps speak of perturbations so small that "
            "they flip no gate"
        )
    unfaithful = [pulse for pulse in maps if pulse.deviation > FAITHFUL]
    if unfaithful:
        lines.append(f"not surely of the run itself: {_named(unfaithful)}; {unfaithful[0].note}")
    return lines


def missing_lines(config: BifurcationConfig, maps: Sequence[PulseMap]) -> list[str]:
    """A line for each kind that was requested without one lying whole within the steps."""
    asked = {"pulse": config.pulses, "cycle": config.cycles}
    there = {pulse.kind for pulse in maps}
    return [
        f"no map of a {kind}: none lies whole within the steps {config.steps}"
        for kind, numbers in asked.items()
        if numbers != "none" and kind not in there
    ]


def _of_kinds(maps: Sequence[PulseMap]) -> str:
    counts = {kind: sum(pulse.kind == kind for pulse in maps) for kind in ("pulse", "cycle")}
    return " and ".join(counted(count, kind) for kind, count in counts.items() if count)


def _named(maps: Sequence[PulseMap]) -> str:
    return ", ".join(f"{pulse.kind} {pulse.number}" for pulse in maps)


def _reasons(maps: Sequence[PulseMap]) -> str:
    """Why the orbit that comes closest to closing does not close."""
    nearest = min(
        (pulse for pulse in maps if not pulse.closed),
        key=lambda pulse: np.nan_to_num(pulse.distance, nan=np.inf),
    )
    return f"of {nearest.kind} {nearest.number}, {nearest.reason}"
