"""The maps of several pulses and cycles of a run, for `dlf-dynamics bifurcations`."""

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
"""Kinds and numbers of pulses and cycles."""

_SMALL = 20_000
"""Parameters up to which processes on one machine do not slow each other down."""


def chosen_pulses(run: Run, config: BifurcationConfig) -> Chosen:
    """The pulses and cycles whose maps the settings request.

    Raises:
        ConfigError: when the run has no pulses, or not those requested; or when modes of maps are
            requested without maps.
    """
    asked = {"pulse": config.pulses, "cycle": config.cycles}
    asked = {kind: numbers for kind, numbers in asked.items() if numbers != "none"}
    if not asked and config.pulse_modes != BifurcationConfig.pulse_modes:
        raise ConfigError(
            f"pulse_modes is {config.pulse_modes}, but no maps are requested; expected --pulses or "
            "--cycles with it, such as --pulses auto"
        )
    pulses = pulses_of(run) if asked else None
    chosen: Chosen = []
    for kind, numbers in asked.items():
        assert pulses is not None
        chosen += [(kind, number) for number in _numbers(run, config, pulses, kind, numbers)]
    return chosen


def _numbers(
    run: Run, config: BifurcationConfig, pulses: Pulses, kind: str, numbers: str
) -> list[int]:
    low, high = span_of(config.steps, "steps")
    if numbers == "auto":
        return pulses.whole(kind, low, high)
    there = pulses.whole(kind, 0, math.inf)
    low, high = span_of(numbers, f"{kind}s")
    chosen = [number for number in there if low <= number < high]
    if not chosen or chosen[0] != low or (high != math.inf and chosen[-1] != high - 1):
        known = f"{there[0]} to {there[-1]}" if there else "none"
        raise ConfigError(f"{kind}s is {numbers}; the whole ones of {run.path} are {known}")
    return chosen


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
        run: run with pulses.
        config: settings of the analysis.
        chosen: pulses and cycles to compute.
        parts: storage for finished maps.
        progress: called with the number of steps done.
    """
    maps: list[PulseMap] = []
    with _makers(run, config, chosen) as maker:
        for kind, number in chosen:
            make, parse = partial(maker, kind, number), partial(_parsed, kind, number)
            maps.append(parts.get_or_make(f"{kind}-{number}", make, parse))
            progress(sum(each.last_step - each.first_step for each in maps))
    return maps


@contextmanager
def _makers(
    run: Run, config: BifurcationConfig, chosen: Chosen
) -> Iterator[Callable[[str, int], Arrays]]:
    """A function that computes a map: here, or in processes that also work on the following ones.

    Devices that are parts of a CPU share the threads of their process: for small networks two
    devices take as long as one, whereas two processes take half as long.
    """
    count = min(jax.local_device_count(), len(chosen))
    alone = (
        isinstance(run, TrainedRun) and jax.process_count() == 1
    )  # the file has all that the run needs
    if count < 2 or not alone or run.num_params > _SMALL or jax.default_backend() != "cpu":
        yield partial(_made, run, config)
        return
    futures: dict[tuple[str, int], Future[Arrays]] = {}
    with workers(count) as submit:

        def ahead(kind: str, number: int) -> Arrays:
            index = chosen.index((kind, number))
            try:
                for which in chosen[index : index + count]:
                    if which not in futures:
                        futures[which] = submit(_made_elsewhere, run.path, config, *which)
                return futures[kind, number].result()
            except BrokenProcessPool:  # a process was killed, for lack of memory perhaps
                return _made(run, config, kind, number)

        yield ahead


def _made(run: Run, config: BifurcationConfig, kind: str, number: int) -> Arrays:
    which = {kind: number}
    return encode(pulse_map(run, **which, k=config.pulse_modes, seed=config.seed))


def _made_elsewhere(path: Path, config: BifurcationConfig, kind: str, number: int) -> Arrays:
    """The same in another process, with one thread."""
    return _made(open_recorded(path, 1), config, kind, number)


def _parsed(kind: str, number: int, arrays: Arrays) -> PulseMap:
    """The map of a pulse; raises for any other arrays."""
    pulse = decode(PulseMap, arrays)
    if (pulse.kind, pulse.number) != (kind, number):
        raise ContentError(f"it is of {pulse.kind} {pulse.number}")
    return pulse
