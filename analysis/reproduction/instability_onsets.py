"""How amplitude and period set the instabilities on the spiral (arXiv 2102.03793)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.reproduction.fig4 import PAPER
from dlf_dynamics.analysis.reproduction.maps import ValueMap, draw_maps
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture
from dlf_dynamics.analysis.reproduction.spiral_phase_diagram import differs, facts, share
from dlf_dynamics.analysis.reproduction.spiral_study import SpiralRuns, swept
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval

NAME = "instability-onsets"


@dataclass(frozen=True)
class Quantity:
    """A number of each run about its instabilities.

    Attributes:
        what: in words.
        values: of each run; NaN where it has none.
        limits: of the colours of its map.
    """

    what: str
    values: Float[np.ndarray, " runs"]
    limits: tuple[float, float] | None = (0.0, 1.0)


def quantities(runs: SpiralRuns) -> list[Quantity]:
    """What is told of each run."""
    oscillating = runs.column("oscillating_steps")
    static_from = runs.results.study.base.schedule.static_from or 0
    pulses = static_from / runs.results.study.values("schedule.period")
    with np.errstate(invalid="ignore", divide="ignore"):
        two, four = (runs.column(f"period_{k}_steps") / oscillating for k in (2, 4))
    return [
        Quantity("oscillating part of the steps", share(runs)),
        Quantity("phase of the onset in the pulse", runs.column("onset_phase")),
        Quantity("instabilities per pulse", runs.column("instabilities") / pulses, None),
        Quantity("part of the oscillation at period 2", two),
        Quantity("part of the oscillation at period 4", four),
        Quantity("part of the oscillation at neither", 1 - two - four),
    ]


def effects(
    runs: SpiralRuns, quantity: Quantity
) -> tuple[dict[int, Interval], dict[float, Interval]]:
    """Largest less smallest amplitude at each period, and longest less shortest period likewise.

    Paired by the initial values; the intervals of both together hold together.
    """
    count = len(runs.periods) + len(runs.amplitudes)

    def difference(first: tuple[float, int], second: tuple[float, int]) -> Interval:
        values = quantity.values
        return mean_interval(
            values[runs.cell(*first)] - values[runs.cell(*second)], comparisons=count
        )

    low, high = runs.amplitudes[0], runs.amplitudes[-1]
    short, long = runs.periods[0], runs.periods[-1]
    return (
        {period: difference((high, period), (low, period)) for period in runs.periods},
        {
            amplitude: difference((amplitude, long), (amplitude, short))
            for amplitude in runs.amplitudes
        },
    )


def compare(runs: SpiralRuns) -> Iterator[Comparison]:
    """The effect of the amplitude at each period, and of the period at each amplitude."""
    low, high = runs.amplitudes[0], runs.amplitudes[-1]
    short, long = runs.periods[0], runs.periods[-1]
    for quantity in quantities(runs):
        by_period, by_amplitude = effects(runs, quantity)
        yield Comparison(
            f"{quantity.what}: A = {high:g} less A = {low:g}",
            None,
            "; ".join(f"T = {period}: {_told(each)}" for period, each in by_period.items()),
            _direction(list(by_period.values())),
        )
        yield Comparison(
            f"{quantity.what}: T = {long} less T = {short}",
            None,
            "; ".join(f"A = {a:g}: {_told(each)}" for a, each in by_amplitude.items()),
            _direction(list(by_amplitude.values())),
        )


def _told(interval: Interval) -> str:
    return interval.told(2, sign=True) if interval.size else "no run has it"


def _direction(intervals: list[Interval]) -> str:
    """The rule: one direction for all that can be told, or none."""
    found = [each.direction for each in intervals if each.direction != "too few runs"]
    if not found:
        return "too few runs"
    up, down = found.count("higher"), found.count("lower")
    if up and down:
        return f"no one direction: up in {up}, down in {down} of {len(found)}"
    if up or down:
        return (
            f"{'up' if up else 'down'} in {up or down} of {len(found)}, the others not told apart"
        )
    return "not told apart"


def make(task: Task) -> Page:
    """Trains what is missing, draws, and compares."""
    results = swept(task)
    runs = SpiralRuns(results)
    shape = len(runs.amplitudes), len(runs.periods)
    maps = [
        ValueMap(
            each.what,
            np.array(
                [mean_interval(each.values[runs.cell(*cell)]).value for cell in runs.cells]
            ).reshape(shape),
            each.limits,
        )
        for each in quantities(runs)
    ]
    figure = draw_maps(maps, runs.amplitudes, runs.periods)
    return Page(
        name=NAME,
        title="How amplitude and period set the instabilities",
        source=PAPER,
        published="The abstract says that the learning rate becomes too large as the landscape "
        "narrows, and that the network then becomes unstable. We know no published number on how "
        "that depends on A and T.",
        comparisons=tuple(compare(runs)),
        differs=(*_DIFFERS, *differs(results.complete)),
        pictures=(
            Picture(task.drawn(figure, NAME), "Means over the seeds, by amplitude and period"),
        ),
        made=task.made(NAME, results.provenance, facts(task, runs)),
    )


_DIFFERS = (
    "A step oscillates where successive updates point against each other (cosine below −0.5); "
    "such steps less than 50 apart are one instability, those shorter than 16 steps are none. "
    "With pulses shorter than that one instability may last for the whole run: its *number* says "
    "little, its part of the steps does.",
    "The phase of the onset is the median over the instabilities that are shorter than a pulse, 0 "
    "the beginning of the pulse, ½ the peak of the weight, 1 its end. It is not defined, and left "
    "out, where all are longer.",
    "Periods are those that the loss shows in windows of 32 steps, not those of the iterates: a "
    "pulse of 10 or 50 steps moves the loss within such a window, and may hide a period or feign "
    "one. The page `cascade` has the periods of the iterates.",
)


REPRODUCTION = Reproduction(
    NAME,
    "onset, extent and periods of the instabilities by amplitude and period",
    make,
    "about 1 h; nothing beside spiral-phase-diagram",
)
