"""Where SGD leaves a minimum, against its certified mean-square threshold; ζ along real runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dlf_dynamics.analysis.edge.edge import Edge
from dlf_dynamics.analysis.reproduction.escapes import (
    FROM_MINIMUM,
    Escapes,
    Minimum,
    escapes,
    minimum_of,
)
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture
from dlf_dynamics.analysis.reproduction.published import Published
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task
from dlf_dynamics.analysis.style import COLOURS, label_steps, styled
from dlf_dynamics.config import (
    DataConfig,
    EdgeConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.provenance import provenance

NAME = "stochastic-edge"

SOURCE = (
    "R. Mulayoff, T. Michaeli, *Exact mean square linear stability analysis for SGD*, COLT 2024, "
    "[arXiv 2306.07850](https://arxiv.org/abs/2306.07850)."
)

CLAIM = Published("stable in mean square exactly below η_ms", "theorem")

RATES = {"digits": 0.02, "spiral": 0.05}
"""Learning rates of the runs from initial values, by data."""

_INTERPOLATES = 1e-12
"""Loss below which a minimum interpolates its data."""


@dataclass(frozen=True)
class _Size:
    """How much is computed.

    Attributes:
        rates: learning rates in units of the certified ones, on both sides of 1.
        seeds: number of seeds of the batches, for each rate.
        steps: steps of the runs from near a minimum.
        divisors: the batch sizes are 1 and the number of examples divided by these.
        examples: number of digits; the spiral has nine tenths as many points.
        trained: updates of the runs from initial values.
        checkpoints: number of checkpoints at which their thresholds are computed.
    """

    rates: tuple[float, ...]
    seeds: int
    steps: int
    divisors: tuple[int, ...]
    examples: int
    trained: int
    checkpoints: int


_SIZES: dict[Budget, _Size] = {
    "tiny": _Size((0.8, 1.5), 2, 100, (1,), 20, 100, 2),
    "small": _Size((0.5, 0.8, 0.95, 1.05, 1.25, 2.0), 8, 1000, (1, 2, 10), 100, 4000, 16),
    "full": _Size(
        (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0),
        32,
        5000,
        (1, 2, 10),
        100,
        20_000,
        40,
    ),
}


def networks(size: _Size) -> dict[str, RunConfig]:
    """Networks with squared error, by the name of their data."""
    base = RunConfig(
        loss=LossConfig("squared-error"),
        schedule=ScheduleConfig("static"),
        optimizer=OptimizerConfig("gd"),
        edge_every=1,
    )
    digits = DataConfig("digits", limit=size.examples, validation=0)
    spiral = DataConfig(
        "spiral", points_per_class=size.examples * 3 // 10, noise=0.05, validation=0
    )
    return {
        "digits": replace(base, data=digits, model=ModelConfig(widths=(30,), activation="tanh")),
        "spiral": replace(base, data=spiral, model=ModelConfig(widths=(40, 40), activation="tanh")),
    }


def _batch_sizes(examples: int, size: _Size) -> list[int]:
    """1, and fractions of the full batch."""
    return sorted({1, *(examples // divisor for divisor in size.divisors)})


@dataclass(frozen=True)
class Neighbourhood:
    """Runs that started near one minimum.

    Attributes:
        minimum: the minimum.
        groups: runs of each batch size.
    """

    minimum: Minimum
    groups: tuple[Escapes, ...]

    @property
    def name(self) -> str:
        """Name of the data."""
        return self.minimum.config.data.name

    @property
    def interpolates(self) -> bool:
        """Whether the network fits its data at the minimum, so that batches have no noise there."""
        return self.minimum.loss < _INTERPOLATES

    def noiseless(self, group: Escapes) -> bool:
        """Whether the gradient of every batch is 0 at the minimum."""
        return self.interpolates or group.batch_size == len(self.minimum.problem.targets)


def compare(neighbourhoods: Sequence[Neighbourhood]) -> Iterator[Comparison]:
    """Outcomes of the runs by learning rate, for each minimum and batch size."""
    for neighbourhood in neighbourhoods:
        fits = "interpolates" if neighbourhood.interpolates else "does not interpolate"
        for group in neighbourhood.groups:
            what = f"{neighbourhood.name} ({fits}), B = {group.batch_size}"
            yield _of_runs(what, group, noiseless=neighbourhood.noiseless(group))
            yield Comparison(
                f"{neighbourhood.name}, B = {group.batch_size}: steps with ζ > 1, by η/η_ms",
                None,
                _by_rate(group, [_share(row) for row in group.raised]),
                f"η_ms in [{group.stable:.6g}, {group.unstable:.6g}]",
            )


def _of_runs(what: str, group: Escapes, *, noiseless: bool) -> Comparison:
    """Fraction of the runs that moved away; with noise all do, and the row says how far."""
    if not noiseless:
        return Comparison(
            f"{what}: median distance at the end over that at the start, by η/η_ms",
            None,
            _by_rate(group, [f"{far:.2g}" for far in np.median(group.distances, axis=1)]),
            "the noise of the batches moves runs at every rate; no line is expected",
        )
    return Comparison(
        f"{what}: runs that moved away, by η/η_ms",
        CLAIM,
        _by_rate(group, [f"{share:.0%}" for share in group.moved_away]),
        _verdict(group),
    )


def _by_rate(group: Escapes, told: Sequence[str]) -> str:
    return "; ".join(f"{rate:g}: {each}" for rate, each in zip(group.rates, told, strict=True))


def _share(raised: np.ndarray) -> str:
    """Mean fraction of steps, over the runs that have one."""
    known = raised[np.isfinite(raised)]
    return f"{np.mean(known):.0%}" if len(known) else "none defined"


def _verdict(group: Escapes) -> str:
    """The verdict by a rule: without noise no run moves away below the threshold."""
    if np.any(group.moved_away[group.rates < 1] > 0):
        return "contradicts: runs moved away below the line"
    if np.all(group.moved_away[group.rates > 1] == 1):
        return "agrees on both sides"
    return "agrees below; above, some runs shrink while the moment grows"


@dataclass(frozen=True)
class Trained:
    """A run from initial values with batches drawn independently, and its mean-square stability.

    Attributes:
        config: settings of the run.
        edge: stability along the run.
    """

    config: RunConfig
    edge: Edge

    @property
    def late(self) -> np.ndarray:
        """Which checkpoints are in the last half of the run."""
        return self.edge.steps >= self.config.steps // 2


def trained(task: Task, config: RunConfig, batch_size: int, size: _Size) -> Trained:
    """A run with its analysis; computes what is not on file."""
    config = replace(
        config,
        batch_size=batch_size,
        batch_sampling="independent",
        steps=size.trained,
        checkpoint_every=size.trained // size.checkpoints,
        optimizer=replace(config.optimizer, learning_rate=RATES[config.data.name]),
    )
    run = task.trained(config, f"trained-{config.data.name}-{batch_size}")
    return Trained(config, task.analysed(run, EdgeConfig(checkpoints=size.checkpoints), "edge"))


def _compare_trained(runs: Sequence[Trained]) -> Iterator[Comparison]:
    """η/η_ms of runs from initial values, and how many of their steps raised their loss."""
    for each in runs:
        low, high = each.edge.ratio[each.late].T
        above = int(np.sum(each.edge.column("side")[each.late] == 1))
        yield Comparison(
            f"{each.config.data.name}, B = {each.config.batch_size}, trained with "
            f"η = {each.config.optimizer.learning_rate:g}: η/η_ms in the last half",
            None,
            f"{np.nanmin(low):.2g} to {np.nanmax(high):.2g}, median {np.nanmedian(low):.2g}; "
            f"above 1 at {above} of {len(low)} checkpoints",
            str(each.edge.realized),
        )


def draw(neighbourhoods: Sequence[Neighbourhood], runs: Sequence[Trained]) -> Figure:
    """Above, distances at the end over those at the start, by learning rate; below, real runs."""
    with styled():
        figure = Figure(figsize=(6.8, 5.6), layout="constrained")
        panels = figure.subplots(2, len(neighbourhoods), squeeze=False)
        for (above, below), neighbourhood in zip(panels.T, neighbourhoods, strict=True):
            _draw(above, neighbourhood)
            above.legend(fontsize="small")
            name = neighbourhood.name
            _draw_trained(below, [run for run in runs if run.config.data.name == name])
        panels[0, 0].set_ylabel("distance from the minimum, end over start")
        panels[1, 0].set_ylabel("η/η_ms")
        return figure


def _draw_trained(ax: Axes, runs: Sequence[Trained]) -> None:
    for index, each in enumerate(runs):
        low, high = each.edge.ratio.T
        label = f"B = {each.config.batch_size}"
        ax.fill_between(each.edge.steps, low, high, color=COLOURS[index], lw=1, label=label)
    ax.axhline(1, color="black", lw=0.8)
    ax.set_yscale("log")
    ax.set_title(
        f"{runs[0].config.data.name}: trained with η = {RATES[runs[0].config.data.name]:g}"
    )
    label_steps(ax)


_FAR = 1e9
"""Larger distances, and runs that are no longer finite, are drawn here."""


def _draw(ax: Axes, neighbourhood: Neighbourhood) -> None:
    count = len(neighbourhood.groups)
    for index, group in enumerate(neighbourhood.groups):
        shift = 1.02 ** (index - (count - 1) / 2)
        rates = np.repeat(group.rates * shift, group.distances.shape[1])
        far = np.minimum(group.distances, _FAR)
        colour, label = COLOURS[index % len(COLOURS)], f"B = {group.batch_size}"
        ax.plot(rates, far.ravel(), "o", ms=3, mfc="none", color=colour)
        ax.plot(group.rates * shift, np.median(far, axis=1), lw=1, color=colour, label=label)
    ax.axvline(1, color="black", lw=0.8)
    ax.axhline(1, color="black", lw=0.5, ls=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = [0.5, 1.0, 2.0]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_formatter(NullFormatter())
    fits = "interpolates" if neighbourhood.interpolates else "does not interpolate"
    ax.set_title(f"{neighbourhood.name}: the minimum {fits}")
    ax.set_xlabel("η/η_ms")


def make(task: Task) -> Page:
    """Finds the minima, starts and trains what is missing, draws, and compares."""
    size = _SIZES[task.budget]
    neighbourhoods, runs = [], []
    for name, config in networks(size).items():
        minimum = minimum_of(task, config, f"minimum-{name}")
        batches = _batch_sizes(len(minimum.problem.targets), size)
        groups = [
            escapes(task, minimum, batch_size, size.rates, size.seeds, size.steps)
            for batch_size in batches
        ]
        neighbourhoods.append(Neighbourhood(minimum, tuple(groups)))
        runs += [trained(task, config, batch_size, size) for batch_size in batches]
    return Page(
        name=NAME,
        title="The edge for mini-batches",
        source=SOURCE,
        published="With batches drawn independently at each step, the second moment of a small "
        "deviation from a minimum that interpolates its data decays below one learning rate η_ms, "
        "and grows above it (Theorems 3 and 4). No run of the paper is made again here.",
        comparisons=(*compare(neighbourhoods), *_compare_trained(runs)),
        differs=_differs(neighbourhoods, size),
        pictures=(
            Picture(
                task.drawn(draw(neighbourhoods, runs), NAME),
                "Above: runs that start near a minimum, by learning rate; lines are medians over "
                f"the seeds, what is beyond {_FAR:g} is drawn there. Below: η/η_ms along runs from "
                "initial values.",
            ),
        ),
        made=task.made(NAME, json.loads(provenance()), _facts(neighbourhoods, size)),
    )


def _differs(neighbourhoods: Sequence[Neighbourhood], size: _Size) -> tuple[str, ...]:
    noisy = [each.name for each in neighbourhoods if not each.interpolates]
    return (
        "Minima are found by Levenberg-Marquardt steps, squared error, tanh, "
        + "; ".join(
            f"{each.name}: {len(each.minimum.params):,} parameters, "
            f"loss {each.minimum.loss:.3g}, gradient {each.minimum.gradient_norm:.1g}"
            for each in neighbourhoods
        )
        + ".",
        f"Runs start at a distance of {FROM_MINIMUM:g} in a random direction and make "
        f"{size.steps:,} updates. A run *moved away* where it ended further from the minimum. "
        "Rates below 1 are in units of the certified stable learning rate, those above 1 of the "
        "certified unstable one.",
        "The threshold is one of second moments. Just above it a single run may shrink for its "
        "whole length while rare ones grow: less than all of them move away there.",
        *(
            f"The minimum of the {name} does not interpolate (some points coincide and have "
            "different labels). Batches have noise there, which moves runs away from it at every "
            "learning rate; how far grows towards η_ms, and no jump is to be seen."
            for name in noisy
        ),
        "Where runs from initial values are at other learning rates was not looked at. ζ is of "
        "their own batches: it says which steps raised their own loss, not which were unstable.",
    )


def _facts(neighbourhoods: Sequence[Neighbourhood], size: _Size) -> dict[str, str]:
    count = sum(group.distances.size for each in neighbourhoods for group in each.groups)
    return {
        "runs near a minimum": f"{count}, {size.seeds} seeds of the batches each",
        "runs from initial values": f"{size.trained:,} updates each",
        "precision": neighbourhoods[0].minimum.config.dtype,
    }


REPRODUCTION = Reproduction(
    NAME,
    "where SGD leaves a minimum, against its mean-square threshold",
    make,
    "about 25 min",
    sweeps=False,
)
