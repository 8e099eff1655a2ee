"""Which parts of a result on file are kept when a new one of the same run replaces it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap
from dlf_dynamics.errors import counted


class Kept(NamedTuple):
    """A result with the parts that were kept of the one before.

    Attributes:
        found: new and kept parts together.
        lines: what was kept, and what was not, and why.
    """

    found: Bifurcations
    lines: list[str]


def with_kept(before: Bifurcations | None, new: Bifurcations) -> Kept:
    """The new result, with pulse maps and plane of the old one where it was not to compute them.

    These depend on the run and on a few settings, which are kept with them; other settings, such as
    the steps to look at, do not matter.

    Args:
        before: the result on file; none if there is none.
        new: the result that replaces it.
    """
    if before is None or before.source != new.source:
        return Kept(new, [])
    kept, dropped, changes = list[str](), list[str](), dict[str, Any]()
    maps, settings = list[PulseMap](), dict[str, Any]()
    for kind in ("pulse", "cycle"):
        mine, old = _of_kind(new, kind), _of_kind(before, kind)
        if mine or getattr(new.config, f"{kind}s") != "none" or not old:
            maps += mine
        elif _alike(before, new):
            maps += old
            numbers = [one.number for one in old]
            settings |= {f"{kind}s": f"{min(numbers)}:{max(numbers) + 1}"}
            settings |= {"pulse_modes": before.config.pulse_modes}
            kept.append(counted(len(old), f"{kind} map"))
        else:
            dropped.append(counted(len(old), f"{kind} map"))
    if new.config.plane == "none" and before.plane is not None:
        changes, settings = {"plane": before.plane}, settings | {"plane": before.config.plane}
        kept.append("the plane")
    lines = [f"kept of the result on file: {', '.join(kept)}"] if kept else []
    if dropped:
        lines.append(
            f"left out, as seed or pulse_modes are others now: {', '.join(dropped)}; to keep them "
            "write elsewhere, with --output"
        )
    config = replace(new.config, **settings)
    return Kept(replace(new, config=config, pulse_maps=maps, **changes), lines)


def _of_kind(result: Bifurcations, kind: str) -> list[PulseMap]:
    return [one for one in result.pulse_maps if one.kind == kind]


def _alike(before: Bifurcations, after: Bifurcations) -> bool:
    """Whether one result can hold the maps of both: they need the same seed and number of modes."""
    old, new = before.config, after.config
    same = new.pulse_modes == old.pulse_modes or new.pulses == new.cycles == "none"
    return same and new.seed == old.seed
