"""How amplitude and period set the instabilities on the spiral (arXiv 2102.03793)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.reproduction.maps import ValueMap, draw_maps
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, titled
from dlf_dynamics.analysis.reproduction.published import PAPER
from dlf_dynamics.analysis.reproduction.spiral_phase_diagram import differs, facts, share
from dlf_dynamics.analysis.reproduction.spiral_study import SpiralRuns, swept
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task
from dlf_dynamics.analysis.spectra.events import OSCILLATING_COSINE
from dlf_dynamics.analysis.studies.ensemble import Ensemble, Stopped
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import to_json

NAME = "instability-onsets"


@dataclass(frozen=True)
class Quantity:
    """A number of each run about its instabilities.

    Attributes:
        what: name in words.
        values: number of each run; NaN where it has none.
        limits: ends of the colour scale of its map.
    """

    what: str
    values: Float[np.ndarray, " runs"]
    limits: tuple[float, float] | None = (0.0, 1.0)


def quantities(runs: SpiralRuns) -> list[Quantity]:
    """The quantities that the page shows."""
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


def shortest(runs: SpiralRuns, quantity: Quantity) -> int:
    """The shortest period at which at least half of the finished runs have the quantity."""
    done = np.asarray(runs.results.done)
    for period in runs.periods[:-1]:
        of_period = done & np.any([runs.cell(a, period) for a in runs.amplitudes], axis=0)
        if np.any(of_period) and np.mean(np.isfinite(quantity.values[of_period])) >= 0.5:
            return period
    return runs.periods[0]


def _effects(
    runs: SpiralRuns, quantity: Quantity
) -> tuple[dict[int, Interval], dict[float, Interval]]:
    """Difference between largest and smallest amplitude at each period, and the other way round.

    Runs are paired by their initial values; all intervals of both kinds hold together.
    """
    count = len(runs.periods) + len(runs.amplitudes)

    def difference(first: tuple[float, int], second: tuple[float, int]) -> Interval:
        values = quantity.values
        return mean_interval(
            values[runs.cell(*first)] - values[runs.cell(*second)], comparisons=count
        )

    low, high = runs.amplitudes[0], runs.amplitudes[-1]
    short, long = shortest(runs, quantity), runs.periods[-1]
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
    long = runs.periods[-1]
    for quantity in quantities(runs):
        short = shortest(runs, quantity)
        by_period, by_amplitude = _effects(runs, quantity)
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
    """The verdict by a rule: the direction of all effects that are significant, if it is one."""
    directions = [each.direction for each in intervals if each.direction != "too few runs"]
    if not directions:
        return "too few runs"
    up, down = directions.count("higher"), directions.count("lower")
    if up and down:
        return f"no one direction: up in {up}, down in {down} of {len(directions)}"
    if up or down:
        way = "up" if up else "down"
        return f"{way} in {up or down} of {len(directions)}, the others not told apart"
    return "not told apart"


def opposed(task: Task, runs: SpiralRuns) -> Float[np.ndarray, "amplitudes periods"]:
    """Fraction of the steps whose update opposes the one before, for the first seed of each cell.

    These runs are made again, as a study does not keep their steps.
    """
    shares = []
    for amplitude, period in runs.cells:
        config = runs.results.study.configs[int(np.argmax(runs.cell(amplitude, period)))]
        name = f"opposed-{amplitude:g}-{period}"
        if task.partial and not task.has(name):
            shares.append(np.nan)
            continue
        shares.append(task.kept(name, to_json(config), partial(_opposed, task, config)))
    return np.array(shares, float).reshape(len(runs.amplitudes), len(runs.periods))


def _opposed(task: Task, config: RunConfig) -> float:
    try:
        (history,) = Ensemble([config]).run(stop=task.stop)
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped
    cosine = history.columns["update_cosine"][: config.steps]
    return float(np.mean(cosine < OSCILLATING_COSINE))


def make(task: Task) -> Page:
    """Trains what is missing, draws, and compares."""
    results = swept(task)
    runs = SpiralRuns(results)
    each_step = opposed(task, runs)
    maps = [ValueMap(each.what, runs.means(each.values), each.limits) for each in quantities(runs)]
    maps.append(ValueMap("steps that oppose the one before, first seed", each_step))
    figure = draw_maps(maps, runs.amplitudes, runs.periods)
    return Page(
        name=NAME,
        title=titled("How amplitude and period set the instabilities", results),
        source=PAPER,
        published="The abstract says that the learning rate becomes too large as the landscape "
        "narrows, and that the network then becomes unstable. We know no published number on how "
        "that depends on A and T.",
        comparisons=(*compare(runs), *_of_first_seed(runs, each_step)),
        differs=(*_DIFFERS, *differs(results.complete)),
        pictures=(
            Picture(task.drawn(figure, NAME), "Means over the seeds, by amplitude and period"),
        ),
        made=task.made(NAME, results.provenance, facts(task.budget, runs), results),
    )


def _of_first_seed(
    runs: SpiralRuns, each_step: Float[np.ndarray, "amplitudes periods"]
) -> Iterator[Comparison]:
    for amplitude, row in zip(runs.amplitudes, each_step, strict=True):
        told = zip(runs.periods, row, strict=True)
        yield Comparison(
            f"steps whose own update opposes the one before, first seed, A = {amplitude:g}",
            None,
            "; ".join(f"T = {t}: {x:.2f}" if np.isfinite(x) else f"T = {t}: -" for t, x in told),
        )


_DIFFERS = (
    "A step oscillates where successive updates point against each other (cosine below −0.5); "
    "such steps less than 50 apart are one instability, those shorter than 16 steps are none. "
    "With pulses shorter than that one instability may last for the whole run: its *number* says "
    "little, and its part of the steps may be **too large**, as one opposed step in 50 is "
    "enough. The part of the steps that are opposed themselves stands beside it, for the first "
    "seed.",
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
