"""The maps of several pulses and cycles of a run, as `dlf-dynamics bifurcations` computes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax

from dlf_dynamics.analysis.instabilities.pulse_map import PulseMap, Pulses, pulse_map, pulses_of
from dlf_dynamics.analysis.workers import workers
from dlf_dynamics.codec import Arrays, decode, encode
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import ContentError
from dlf_dynamics.parts import Parts
from dlf_dynamics.run import Run
from dlf_dynamics.spans import span_of
from dlf_dynamics.startup import open_recorded
from dlf_dynamics.trained import TrainedRun

Chosen = list[tuple[str, int]]
"""Kinds and numbers."""

_SMALL = 20_000
"""Parameters up to which processes that share a machine do not stand in each other's way."""


def chosen_pulses(run: Run, config: BifurcationConfig) -> Chosen:
    """The pulses and cycles whose maps are asked for.

    Raises:
        ConfigError: when the run has no pulses, or not those that are asked for; or when modes of
            maps are asked for without maps.
    """
    asked = {"pulse": config.pulses, "cycle": config.cycles}
    asked = {kind: numbers for kind, numbers in asked.items() if numbers != "none"}
    if not asked and config.pulse_modes != BifurcationConfig.pulse_modes:
        raise ConfigError(
            f"pulse_modes is {config.pulse_modes}, but no maps are asked for; expected --pulses or "
            "--cycles with it, such as --pulses auto"
        )
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
        config: settings of the analysis.
        chosen: which ones.
        parts: where those that are finished are kept.
        progress: told how many steps are done.
    """
    found: list[PulseMap] = []
    with _makers(run, config, chosen) as maker:
        for kind, number in chosen:
            make, parse = partial(maker, kind, number), partial(_parsed, kind, number)
            found.append(parts.get_or_make(f"{kind}-{number}", make, parse))
            progress(sum(each.last_step - each.first_step for each in found))
    return found


@contextmanager
def _makers(
    run: Run, config: BifurcationConfig, chosen: Chosen
) -> Iterator[Callable[[str, int], Arrays]]:
    """A function that makes a map: here, or in processes that make the following ones meanwhile.

    Devices that are parts of a CPU share the threads of their process: for small networks two of
    them take as long as one, where two processes take half as long.
    """
    count = min(jax.local_device_count(), len(chosen))
    alone = isinstance(run, TrainedRun) and jax.process_count() == 1  # the file tells all
    if count < 2 or not alone or run.num_params > _SMALL or jax.default_backend() != "cpu":
        yield partial(_made, run, config)
        return
    futures: dict[tuple[str, int], Future[Arrays]] = {}
    with workers(count) as submit:

        def ahead(kind: str, number: int) -> Arrays:
            place = chosen.index((kind, number))
            try:
                for which in chosen[place : place + count]:
                    if which not in futures:
                        futures[which] = submit(_made_elsewhere, run.path, config, *which)
                return futures[kind, number].result()
            except BrokenProcessPool:  # one was killed, for want of memory say
                return _made(run, config, kind, number)

        yield ahead


def _made(run: Run, config: BifurcationConfig, kind: str, number: int) -> Arrays:
    which = {kind: number}
    return encode(pulse_map(run, **which, k=config.pulse_modes, seed=config.seed))


def _made_elsewhere(path: Path, config: BifurcationConfig, kind: str, number: int) -> Arrays:
    """The same in a process of its own, with one thread."""
    return _made(open_recorded(path, 1), config, kind, number)


def _parsed(kind: str, number: int, arrays: Arrays) -> PulseMap:
    """The map of a pulse; raises where the arrays are not that."""
    found = decode(PulseMap, arrays)
    if (found.kind, found.number) != (kind, number):
        raise ContentError(f"it is of {found.kind} {found.number}")
    return found
