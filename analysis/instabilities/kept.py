"""What of an earlier result of the same state of a run stays when another one takes its place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from dlf_dynamics.analysis.instabilities.bifurcations import Bifurcations
from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap
from dlf_dynamics.errors import counted


class Kept(NamedTuple):
    """A result with what was kept of the one before.

    Attributes:
        found: both together.
        lines: what was kept, and what was not and why.
    """

    found: Bifurcations
    lines: list[str]


def with_kept(before: Bifurcations | None, found: Bifurcations) -> Kept:
    """The maps of pulses and the plane of before, where they were not asked for anew.

    They are of the run and of settings of their own, which the result then has, too: of other
    settings, such as the steps looked at, they do not depend.

    Args:
        before: the result on file; none without one.
        found: what takes its place.
    """
    if before is None or before.source != found.source:
        return Kept(found, [])
    kept, dropped, changes = list[str](), list[str](), dict[str, Any]()
    maps, settings = list[PulseMap](), dict[str, Any]()
    for kind in ("pulse", "cycle"):
        mine, old = _of_kind(found, kind), _of_kind(before, kind)
        if mine or getattr(found.config, f"{kind}s") != "none" or not old:
            maps += mine
        elif _alike(before, found):
            maps += old
            numbers = [one.number for one in old]
            settings |= {f"{kind}s": f"{min(numbers)}:{max(numbers) + 1}"}
            settings |= {"pulse_modes": before.config.pulse_modes}
            kept.append(counted(len(old), f"{kind} map"))
        else:
            dropped.append(counted(len(old), f"{kind} map"))
    if found.config.plane == "none" and before.plane is not None:
        changes, settings = {"plane": before.plane}, settings | {"plane": before.config.plane}
        kept.append("the plane")
    lines = [f"kept of the result on file: {', '.join(kept)}"] if kept else []
    if dropped:
        lines.append(
            f"left out, as seed or pulse_modes are others now: {', '.join(dropped)}; to keep them "
            "write elsewhere, with --output"
        )
    config = replace(found.config, **settings)
    return Kept(replace(found, config=config, pulse_maps=maps, **changes), lines)


def _of_kind(found: Bifurcations, kind: str) -> list[PulseMap]:
    return [one for one in found.pulse_maps if one.kind == kind]


def _alike(before: Bifurcations, found: Bifurcations) -> bool:
    """Whether maps of both can stand in one result: of the same seed, and as many modes."""
    old, new = before.config, found.config
    same = new.pulse_modes == old.pulse_modes or new.pulses == new.cycles == "none"
    return same and new.seed == old.seed
