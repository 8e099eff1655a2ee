"""Where SGD leaves a minimum, against its certified mean-square threshold; ζ along real runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlf_dynamics.analysis.reproduction.escapes import Escapes, Minimum, escapes, minimum_of
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture
from dlf_dynamics.analysis.reproduction.published import Published
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task
from dlf_dynamics.analysis.style import COLOURS, styled
from dlf_dynamics.config import (
    DataConfig,
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

INTERPOLATES = 1e-12
"""Loss below which a minimum interpolates its data."""


@dataclass(frozen=True)
class _Size:
    """How much is computed.

    Attributes:
        rates: learning rates in units of the certified ones, on both sides of 1.
        seeds: of the batches, for each rate.
        steps: of the runs from near a minimum.
        divisors: batch sizes are the number of examples divided by these, and 1.
        examples: of the digits; the spiral has a third as many points per class, less a tenth.
    """

    rates: tuple[float, ...]
    seeds: int
    steps: int
    divisors: tuple[int, ...]
    examples: int


_SIZES: dict[Budget, _Size] = {
    "tiny": _Size((0.8, 1.5), 2, 100, (1,), 20),
    "small": _Size((0.5, 0.8, 0.95, 1.05, 1.25, 2.0), 8, 1000, (1, 2, 10), 100),
    "full": _Size(
        (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0), 32, 5000, (1, 2, 10), 100
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
    spiral = DataConfig("spiral", points_per_class=size.examples * 3 // 10, noise=0.05, validation=0)
    return {
        "digits": replace(base, data=digits, model=ModelConfig(widths=(30,), activation="tanh")),
        "spiral": replace(base, data=spiral, model=ModelConfig(widths=(40, 40), activation="tanh")),
    }


def batch_sizes(examples: int, size: _Size) -> list[int]:
    """1, and parts of the whole batch."""
    return sorted({1, *(examples // divisor for divisor in size.divisors)})


@dataclass(frozen=True)
class Neighbourhood:
    """What became of runs that started near one minimum.

    Attributes:
        minimum: near which.
        found: by batch size.
    """

    minimum: Minimum
    found: tuple[Escapes, ...]

    @property
    def name(self) -> str:
        """Of the data."""
        return self.minimum.config.data.name

    @property
    def interpolates(self) -> bool:
        """Whether the network fits its data at the minimum, so that batches have no noise there."""
        return self.minimum.loss < INTERPOLATES


def compare(places: Sequence[Neighbourhood]) -> Iterator[Comparison]:
    """Of each minimum and batch size the share of runs that moved away, by learning rate."""
    for place in places:
        fits = "interpolates" if place.interpolates else "does not interpolate"
        for each in place.found:
            below, above = (each.moved_away[side] for side in (each.rates < 1, each.rates > 1))
            yield Comparison(
                f"{place.name} ({fits}), B = {each.batch_size}: runs that moved away, by η/η_ms",
                CLAIM if place.interpolates else None,
                "; ".join(
                    f"{rate:g}: {share:.0%}"
                    for rate, share in zip(each.rates, each.moved_away, strict=True)
                ),
                _verdict(place, below, above),
            )
            yield Comparison(
                f"{place.name}, B = {each.batch_size}: steps with ζ > 1, by η/η_ms",
                None,
                "; ".join(
                    f"{rate:g}: {_percent(np.nanmean(shares))}"
                    for rate, shares in zip(each.rates, _known(each.raised), strict=True)
                ),
                f"η_ms in [{each.stable:.6g}, {each.unstable:.6g}]",
            )


def _known(raised: np.ndarray) -> list[np.ndarray]:
    return [row if np.any(np.isfinite(row)) else np.full(1, np.nan) for row in raised]


def _percent(share: float) -> str:
    return f"{share:.0%}" if np.isfinite(share) else "none defined"


def _verdict(place: Neighbourhood, below: np.ndarray, above: np.ndarray) -> str:
    """The rule: below the line no run may move away, where the minimum interpolates."""
    if not place.interpolates:
        return "the noise of the batches moves runs at every rate; no line is expected"
    if np.any(below > 0):
        return "contradicts: runs moved away below the line"
    if np.all(above == 1):
        return "agrees on both sides"
    return (
        "agrees below; above, some runs shrink while the moment grows"
    )


def draw(places: Sequence[Neighbourhood]) -> Figure:
    """Distances at the end over those at the start, by learning rate: a panel for each minimum."""
    with styled():
        figure = Figure(figsize=(6.8, 3.0), layout="constrained")
        panels = figure.subplots(1, len(places), squeeze=False)[0]
        for ax, place in zip(panels, places, strict=True):
            _draw(ax, place)
        panels[0].set_ylabel("distance from the minimum, end over start")
        panels[0].legend(fontsize="small")
        return figure


_FAR = 1e9
"""Distances beyond, and runs that were not finite any more, are drawn here."""


def _draw(ax: Axes, place: Neighbourhood) -> None:
    count = len(place.found)
    for index, each in enumerate(place.found):
        shift = 1.02 ** (index - (count - 1) / 2)
        rates = np.repeat(each.rates * shift, each.distances.shape[1])
        far = np.minimum(each.distances, _FAR)
        colour, label = COLOURS[index % len(COLOURS)], f"B = {each.batch_size}"
        ax.plot(rates, far.ravel(), "o", ms=3, mfc="none", color=colour)
        ax.plot(each.rates * shift, np.median(far, axis=1), lw=1, color=colour, label=label)
    ax.axvline(1, color="black", lw=0.8)
    ax.axhline(1, color="black", lw=0.5, ls=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    fits = "interpolates" if place.interpolates else "does not interpolate"
    ax.set_title(f"{place.name}: the minimum {fits}")
    ax.set_xlabel("η/η_ms")
