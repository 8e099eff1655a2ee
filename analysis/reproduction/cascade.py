"""The cascade of periods in each burst of the headline run, and exponents (arXiv 2102.03793)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlf_dynamics.analysis.bifurcation.lyapunov import lyapunov_exponents
from dlf_dynamics.analysis.instabilities.location import centre_of
from dlf_dynamics.analysis.instabilities.periods import IRREGULAR
from dlf_dynamics.analysis.instabilities.training_map import (
    rate_at,
    training_map,
    training_state,
)
from dlf_dynamics.analysis.reproduction.bursts import KINDS, WINDOW, Burst, bursts_of
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, unfinished
from dlf_dynamics.analysis.reproduction.published import PAPER, Published
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.analysis.style import COLOURS, styled
from dlf_dynamics.config import BifurcationConfig, RunConfig, SpectrumConfig
from dlf_dynamics.opening import open_run
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle

NAME = "cascade"

EVERY = 501
"""Steps between computations of the curvature, which this page does not need."""

EXPONENT_STEPS, TRANSIENT = 300, 200
"""Updates over which an exponent is averaged, and updates made before that."""

_OVERLAP = 0.5
"""Mean squared overlap with the top eigenvector from which a tangent vector counts as one
of the oscillation."""

_ERRORS = 2.0
"""Standard errors by which an exponent must be above 0."""

_WORDS = {2: "period 2", 4: "period 4", 8: "period 8", IRREGULAR: "irregular"}

CLAIM = Published("bifurcation cascades", "text")


@dataclass(frozen=True)
class _Size:
    seeds: tuple[int, ...]
    steps: int


_SIZES: dict[Budget, _Size] = {
    "tiny": _Size((0,), 6000),
    "small": _Size((0, 1, 2), 70_000),
    "full": _Size(tuple(range(10)), 70_000),
}


def config_of(seed: int, steps: int) -> RunConfig:
    """The headline run from the initial values of a seed."""
    base = PRESETS["published"]
    return replace(base, model=replace(base.model, seed=seed), steps=steps)


class Exponent(NamedTuple):
    """The largest Lyapunov exponent of the training map with the loss frozen at a step.

    Attributes:
        burst: number of the burst.
        kind: what the iterates of the run itself do there, one of KINDS.
        step: number of the step whose loss is frozen, and from whose state the orbit starts.
        value: exponent per update.
        error: standard error of the exponent.
        converged: whether the exponent converged.
        overlap: mean squared overlap of the tangent vector with the top eigenvector at the centre.
    """

    burst: int
    kind: int
    step: int
    value: float
    error: float
    converged: bool
    overlap: float

    @property
    def chaotic(self) -> bool:
        """Whether it is above 0 by two standard errors, along the oscillation."""
        return self.value > _ERRORS * self.error and self.overlap >= _OVERLAP


@dataclass(frozen=True)
class Cascade:
    """The bursts of one run, with exponents.

    Attributes:
        seed: seed of the initial values.
        bursts: spans of the run, from peak to peak.
        exponents: exponents in the middle of each burst's longest stretch of period 2 and of its
            longest irregular one.
    """

    seed: int
    bursts: tuple[Burst, ...]
    exponents: tuple[Exponent, ...]


def _cascade_of(task: Task, seed: int, steps: int) -> Cascade:
    """The cascade of one seed; trains, replays and computes what is not on file."""
    run = task.trained(config_of(seed, steps), f"seed-{seed}")
    settings = BifurcationConfig(every=EVERY, diagrams="none")
    bifurcations = task.analysed(run, settings, "bifurcations")
    schedule = run.dynamics.schedule
    assert isinstance(schedule, Triangle)
    end = min(schedule.static_from or steps, steps)
    motion = bifurcations.motion
    bursts = tuple(bursts_of(motion.steps, motion.periods, schedule.pulse_steps, end))
    wanted = [
        (number, kind, burst.middle(kind))
        for number, burst in enumerate(bursts)
        for kind in (2, IRREGULAR)
        if kind in burst.stretches
    ]
    kept = task.kept(
        f"exponents-{seed}",
        {"run": asdict(run.source), "wanted": [list(each) for each in wanted]},
        lambda: [_exponent(run, *each) for each in wanted],
    )
    return Cascade(seed, bursts, tuple(Exponent(*each) for each in kept))


def _exponent(run: Run, burst: int, kind: int, step: int) -> Exponent:
    replay = Replay(run)
    (stretch,) = replay.stretches(step, step + 1)
    state = training_state(run.state(stretch.point(step)))
    centre = centre_of(replay, Solver.from_config(run, SpectrumConfig(k=1)), step)
    rate = rate_at(run, step)
    assert rate is not None
    spectrum = lyapunov_exponents(
        training_map(run, step),
        state,
        rate,
        1,
        EXPONENT_STEPS,
        transient=TRANSIENT,
        key=jax.random.key(step),
        basis=jnp.asarray(centre.vector)[None],
    )
    columns = spectrum.exponents, spectrum.errors, spectrum.converged, spectrum.overlap
    value, error, converged, overlap = (column[0].item() for column in columns)
    return Exponent(burst, kind, step, value, error, converged, overlap)


def _how_many(count: int, total: int) -> str:
    """A count in words, by a rule: all, most (more than half), some, or none.

    >>> [_how_many(count, 4) for count in (4, 3, 2, 0)]
    ['all (4 of 4)', 'most (3 of 4)', 'some (2 of 4)', 'none (0 of 4)']
    """
    words = "all" if count == total else "most" if 2 * count > total else "some"
    return f"{words if count else 'none'} ({count} of {total})"


def compare(cascades: Sequence[Cascade]) -> Iterator[Comparison]:
    """How many bursts double their period in order, and what the exponents say."""
    bursts = [burst for cascade in cascades for burst in cascade.bursts]
    seen = [burst for burst in bursts if burst.oscillates]
    yield Comparison(
        "changes of the emphasised class with oscillation, 24 of 32 successive steps at least",
        None,
        _how_many(len(seen), len(bursts)),
    )
    if not seen:
        return
    yield Comparison(
        "of these: period 2 first, then period 4, then period 8 or none",
        CLAIM,
        _how_many(sum(burst.cascades for burst in seen), len(seen)),
        _without_first(cascades),
    )
    for kind in KINDS:
        reached = sum(kind in burst.stretches for burst in seen)
        share = sum(b.counts[kind] for b in seen) / max(
            sum(sum(b.counts.values()) for b in seen), 1
        )
        yield Comparison(
            f"of these: {_WORDS[kind]} in 24 of 32 successive steps",
            None,
            _how_many(reached, len(seen)),
            f"{share:.0%} of the oscillating steps",
        )
    exponents = [each for cascade in cascades for each in cascade.exponents]
    for kind in (2, IRREGULAR):
        own = [each for each in exponents if each.kind == kind]
        if own:
            yield _about_exponents(kind, own)


def _without_first(cascades: Sequence[Cascade]) -> str:
    """How many bursts cascade, without the seed on which the rules were fixed."""
    seen = [burst for cascade in cascades[1:] for burst in cascade.bursts if burst.oscillates]
    if not seen:
        return ""
    return f"without seed {cascades[0].seed}: " + _how_many(
        sum(burst.cascades for burst in seen), len(seen)
    )


def _burst_by_burst(cascade: Cascade) -> Iterator[Comparison]:
    """Each burst of one run: steps of each kind, where each is reached, and exponents."""
    for number, burst in enumerate(cascade.bursts):
        kinds = [
            f"{_WORDS[kind]}: {burst.counts[kind]}"
            + (f" (reached at {burst.reached[kind]:,})" if kind in burst.stretches else "")
            for kind in KINDS
            if burst.counts[kind]
        ]
        exponents = [
            f"{_WORDS[each.kind]}: {each.value:+.1e} ± {each.error:.0e} per step, overlap "
            f"{each.overlap:.1e}" + ("" if each.converged else ", not converged")
            for each in cascade.exponents
            if each.burst == number
        ]
        yield Comparison(
            f"seed {cascade.seed}, steps {burst.first:,} to {burst.first + burst.length - 1:,}",
            None,
            "; ".join(kinds) or "no oscillation",
            "; ".join(exponents),
        )


def _about_exponents(kind: int, exponents: Sequence[Exponent]) -> Comparison:
    values = np.array([each.value for each in exponents])
    overlaps = np.array([each.overlap for each in exponents])
    converged = sum(each.converged for each in exponents)
    chaotic = sum(each.chaotic for each in exponents)
    remark = "" if chaotic or kind != IRREGULAR else "**no chaos is shown**; "
    return Comparison(
        f"exponents where the run is of {_WORDS[kind]}"
        if kind != IRREGULAR
        else "exponents where the run is irregular",
        None,
        f"positive along the oscillation: {_how_many(chaotic, len(values))}",
        f"{remark}median {np.nanmedian(values):+.4f} per step (overlap "
        f"{np.nanmedian(overlaps):.2f}), from {np.nanmin(values):+.4f} to "
        f"{np.nanmax(values):+.4f}; {converged} converged",
    )


def draw(cascades: Sequence[Cascade]) -> Figure:
    """The stretches of each kind by burst, and the exponents with their overlaps."""
    with styled():
        count = len(cascades)
        figure = Figure(figsize=(7.0, 1.0 + 1.7 * count), layout="constrained")
        axes = figure.subplots(count, 2, squeeze=False, width_ratios=(3, 2), sharex="col")
        for (left, right), cascade in zip(axes, cascades, strict=True):
            _draw_stretches(left, cascade)
            _draw_exponents(right, cascade)
        axes[-1, 0].set_xlabel("part of the span from peak to peak of the class weights")
        axes[-1, 1].set_xlabel("overlap with the top eigenvector")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4, frameon=False)
        return figure


def _draw_stretches(ax, cascade: Cascade) -> None:
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        ax.plot([], [], "s", color=colour, label=_WORDS[kind])
        for number, burst in enumerate(cascade.bursts):
            spans = [
                ((first - burst.first) / burst.length, (last - first + 1) / burst.length)
                for first, last in burst.stretches.get(kind, ())
            ]
            height = number + 0.2 * KINDS.index(kind) - 0.4
            ax.broken_barh(spans, (height, 0.2), color=colour, lw=0.3)
    ax.set(xlim=(0, 1), ylim=(-0.6, len(cascade.bursts) - 0.4), ylabel="burst")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.invert_yaxis()
    ax.set_title(f"seed {cascade.seed}")


def _draw_exponents(ax, cascade: Cascade) -> None:
    for kind, colour in ((2, COLOURS[0]), (IRREGULAR, COLOURS[KINDS.index(IRREGULAR)])):
        own = [each for each in cascade.exponents if each.kind == kind]
        ax.errorbar(
            [each.overlap for each in own],
            [each.value for each in own],
            [_ERRORS * each.error for each in own],
            fmt=".",
            color=colour,
            lw=0.7,
        )
    ax.axhline(0, color="black", lw=0.6)
    ax.axvline(_OVERLAP, color="black", lw=0.6, ls=":")
    ax.set(xlim=(-0.02, 1.02), ylabel="exponent per step")
    ax.set_yscale("symlog", linthresh=1e-3)


def make(task: Task) -> Page:
    """Trains what is missing, replays, draws, and compares."""
    size = _SIZES[task.budget]
    seeds = task.of_seeds(size.seeds, "exponents")
    cascades = [_cascade_of(task, seed, size.steps) for seed in seeds]
    first = task.folder / f"seed-{seeds[0]}.h5"
    picture = task.drawn(draw(cascades), NAME)
    return Page(
        name=NAME,
        title="The cascade of periods in each burst",
        source=PAPER,
        published="The abstract says that, as the loss oscillates, instabilities develop in the "
        "form of *bifurcation cascades*. We know no published number on which periods occur and in "
        "which order.",
        comparisons=(*compare(cascades), *_burst_by_burst(cascades[0])),
        differs=(*unfinished(len(seeds) == len(size.seeds)), *_DIFFERS),
        pictures=(
            Picture(
                picture,
                "Left: stretches of each period, a row for each change of the emphasised class. "
                "Right: exponents with two standard errors; right of the dotted line the growing "
                "direction is that of the oscillation",
            ),
        ),
        made=task.made(
            NAME,
            open_run(first).provenance,
            {
                "runs": f"the preset `published`, {size.steps:,} steps, seeds "
                + ", ".join(map(str, seeds)),
                "what would need more": "10 seeds, with `--budget full`: on the same core, in "
                "proportion. A GPU gains nothing for a network of 603 parameters.",
            },
        ),
    )


_DIFFERS = (
    "Every step is replayed from the checkpoints. The period of a step is the smallest k of 2, 4 "
    "and 8 with ‖θ_(t+k) − θ_t‖ below a quarter of one step, where successive updates point "
    "against each other (cosine below −0.5); without one the step is irregular.",
    f"A kind is reached where 24 of {WINDOW} successive steps are of it. The rules were fixed on "
    "the run of seed 0; the other seeds were made afterwards.",
    "Irregular is not chaotic. An exponent is that of the training map with the loss *frozen* at "
    f"one step, over {EXPONENT_STEPS} updates after {TRANSIENT}, in the middle of the longest "
    "stretch. It counts as one of the oscillation only where its tangent vector has a mean "
    f"squared overlap of {_OVERLAP:g} with the top eigenvector: slow directions of negative "
    "curvature grow as well.",
    "Of ReLU networks no step is a smooth map: the oscillation crosses kinks, and the order of "
    "periods is an observation, not the cascade of a theorem.",
)


REPRODUCTION = Reproduction(
    NAME,
    "periods 2, 4, 8 and irregular in each burst of the headline run, with exponents",
    make,
    "about 13 min",
    sweeps=False,
)
