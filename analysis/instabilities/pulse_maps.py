"""The maps of several pulses and cycles of a run, as `dlf-dynamics bifurcations` computes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap, Pulses, pulse_map, pulses_of
from dlf_dynamics.codec import Arrays, decode, encode
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import ContentError
from dlf_dynamics.parts import Parts
from dlf_dynamics.run import Run
from dlf_dynamics.spans import span_of

Chosen = list[tuple[str, int]]
"""Kinds and numbers."""


def chosen_pulses(run: Run, config: BifurcationConfig) -> Chosen:
    """The pulses and cycles whose maps are asked for.

    Raises:
        ConfigError: when the run has no pulses, or not those that are asked for.
    """
    asked = {"pulse": config.pulses, "cycle": config.cycles}
    asked = {kind: numbers for kind, numbers in asked.items() if numbers != "none"}
    pulses = pulses_of(run) if asked else None
    found: Chosen = []
    for kind, numbers in asked.items():
        assert pulses is not None
        found += [(kind, number) for number in _numbers(run, config, pulses, kind, numbers)]
    return found


def _numbers(
    run: Run, config: BifurcationConfig, pulses: Pulses, kind: str, numbers: str
) -> list[int]:
    low, high = span_of(config.steps, "steps")
    if numbers == "auto":
        return pulses.whole(kind, low, high)
    there = pulses.whole(kind, 0, math.inf)
    low, high = span_of(numbers, f"{kind}s")
    found = [number for number in there if low <= number < high]
    if not found or found[0] != low or (high != math.inf and found[-1] != high - 1):
        known = f"{there[0]} to {there[-1]}" if there else "none"
        raise ConfigError(f"{kind}s is {numbers}; the whole ones of {run.path} are {known}")
    return found


def steps_of(run: Run, chosen: Chosen) -> int:
    """Number of the steps of some pulses and cycles."""
    if not chosen:
        return 0
    pulses = pulses_of(run)
    return sum(stop - first for first, stop in (pulses.span(*which) for which in chosen))


def pulse_maps(
    run: Run,
    config: BifurcationConfig,
    chosen: Chosen,
    parts: Parts,
    progress: Callable[[int], None],
) -> list[PulseMap]:
    """The maps of some pulses and cycles.

    Args:
        run: whose pulses they are.
        config: of the analysis.
        chosen: which ones.
        parts: where those that are finished are kept.
        progress: told how many steps are done.
    """
    found: list[PulseMap] = []
    for kind, number in chosen:
        make = partial(_made, run, config, kind, number)
        found.append(parts.get_or_make(f"{kind}-{number}", make, partial(_parsed, kind, number)))
        progress(sum(each.last_step - each.first_step for each in found))
    return found


def _made(run: Run, config: BifurcationConfig, kind: str, number: int) -> Arrays:
    which = {kind: number}
    return encode(pulse_map(run, **which, k=config.pulse_modes, seed=config.seed))


def _parsed(kind: str, number: int, arrays: Arrays) -> PulseMap:
    """The map of a pulse; raises where the arrays are not that."""
    found = decode(PulseMap, arrays)
    if (found.kind, found.number) != (kind, number):
        raise ContentError(f"it is of {found.kind} {found.number}")
    return found
