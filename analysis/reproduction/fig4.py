"""The headline run of arXiv 2102.03793 (Fig. 4), with both initialisations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Array

from dlf_dynamics.analysis.reproduction.page import NOT_REACHED, Comparison, Page, Picture
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task
from dlf_dynamics.analysis.spectra.oneshot import ntk_spectrum, sharpness
from dlf_dynamics.analysis.spectra.plots import run_figure
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.presets import PRESETS, PULSE_STEPS_PUBLISHED
from dlf_dynamics.run import Run

PAPER = (
    "M. Ruiz-Garcia, G. Zhang, S. S. Schoenholz, A. J. Liu, *Tilting the playing field: Dynamical "
    "loss functions for machine learning*, ICML 2021, "
    "[arXiv 2102.03793](https://arxiv.org/abs/2102.03793)."
)

TINY_STEPS = 10_000

_EXACT_STEPS = 5700
"""Steps for which the loss is that of the authors' program to ten digits."""

_RECORDED_LATER = 1
"""The authors' index i stands for the state after update i, here step i + 1."""

_BURST_INDEX = _RECORDED_LATER + 1
"""A burst starts here at the middle one of the three losses of a second difference, there at the
first."""


@dataclass(frozen=True)
class PublishedBurst:
    """A burst of the authors' program.

    Attributes:
        start: index from which the second difference of the loss exceeds 0.01.
        change: largest |F(t) - F(t-1)|.
        tolerance: within which the change agrees.
        error: of the change, where it is known.
    """

    start: int
    change: float
    tolerance: float
    error: float | None = None

    @property
    def told(self) -> str:
        """The change, with its error where that is known."""
        return f"{self.change:g}" if self.error is None else f"{self.change:g} ± {self.error:g}"


_BURSTS = {
    "published": (PublishedBurst(4200, 0.149, 0.002, 0.002),),
    "published-updated": (PublishedBurst(4374, 0.0347, 0.0005), PublishedBurst(9149, 0.178, 0.02)),
}
"""The first ones, by preset. The second is beyond the exact steps, which its tolerance allows
for."""

LOSS, SHARPNESS, NTK = (2500, 0.1326), (2500, 0.602), (7500, 488.0)
"""Of the preset `published`: index in the authors' program, and what it has there."""

_NUMBER_OF_BURSTS = (8, 12)
LATE_BURSTS, LATE_PHASE = 5, 0.8
NARROW_FROM, NARROW = 7, 450
NTK_RANGE, NTK_TOLERANCE = (120.0, 3000.0), 0.25
LEARNED, CEILING = 0.98, 298 / 300


def _near(measured: float, reference: float, tolerance: float, told: str | None = None) -> str:
    """Whether two numbers agree.

    Args:
        measured: the one.
        reference: the other.
        tolerance: by which they may differ.
        told: the tolerance in words; none writes the number.
    """
    within = f"{tolerance:g}" if told is None else told
    agree = abs(measured - reference) <= tolerance
    return f"agrees within {within}" if agree else f"differs by more than {within}"


def _first_bursts(spectrum: Spectrum, preset: str, steps: int) -> Iterator[Comparison]:
    """Start and size of the bursts whose numbers are known."""
    for number, told in enumerate(_BURSTS[preset]):
        name = ("first", "second")[number]
        if number >= len(spectrum.bursts):
            yield Comparison(f"{name} burst: largest change of F", told.told, NOT_REACHED)
            continue
        found = spectrum.bursts[number]
        chaotic = "" if found.burst_end < _EXACT_STEPS else "; rounding has an effect here"
        size = _near(found.max_change, told.change, told.tolerance)
        if found.end >= steps - 1:
            size = "the run ends within the burst"
        yield Comparison(
            f"{name} burst: largest change of F",
            told.told,
            f"{found.max_change:.4g}",
            size + chaotic,
        )
        yield Comparison(
            f"{name} burst: second difference of F above 0.01 from",
            f"index {told.start:,}",
            f"index {found.burst_start - _BURST_INDEX:,} (step {found.burst_start:,})",
            _near(found.burst_start - _BURST_INDEX, told.start, 5) + chaotic,
        )


def _single_values(run: Run) -> Iterator[Comparison]:
    """Loss, curvature and kernel at one index of the authors' program each."""
    measured = (
        ("F", LOSS, _loss, 5e-5),
        ("λ_max", SHARPNESS, _sharpness, 5e-4),
        ("NTK λ_max", NTK, _ntk, 1.5),
    )
    for name, (index, told), measure, tolerance in measured:
        if index + _RECORDED_LATER > run.config.steps:
            yield Comparison(f"{name} at index {index:,}", f"{told:g}", NOT_REACHED)
            continue
        found = measure(run, index + _RECORDED_LATER)
        yield Comparison(
            f"{name} at index {index:,}",
            f"{told:g}",
            f"{found:.4g}",
            _near(found, told, tolerance),
        )


def _at(run: Run, step: int) -> Array:
    """The parameters one update after a checkpoint."""
    ((point,),) = run.points([int(np.searchsorted(run.checkpoint_steps, step - 1))], 1)
    assert point.step == step - 1
    return run.dynamics.step(run.state(point))[0].params


def _loss(run: Run, step: int) -> float:
    return float(run.scalars["loss"][step])


def _sharpness(run: Run, step: int) -> float:
    return sharpness(run.problem, _at(run, step), step=step).value


def _ntk(run: Run, step: int) -> float:
    return float(ntk_spectrum(run.problem, _at(run, step), k=1).eigenvalues[0])


def _whole_run(run: Run, spectrum: Spectrum) -> Iterator[Comparison]:
    """What the run must show up to its end; only statistics can be compared."""
    bursts, (least, most) = spectrum.bursts, _NUMBER_OF_BURSTS
    yield Comparison(
        "number of bursts",
        f"{least} to {most}",
        f"{len(bursts)}",
        "agrees" if least <= len(bursts) <= most else "differs",
    )
    early = [burst for burst in bursts if burst.burst_start < LATE_BURSTS * PULSE_STEPS_PUBLISHED]
    phases = [(b.burst_start % PULSE_STEPS_PUBLISHED) / PULSE_STEPS_PUBLISHED for b in early]
    late = sum(phase >= LATE_PHASE for phase in phases)
    yield Comparison(
        f"bursts of pulses 1 to {LATE_BURSTS} start at",
        f"{LATE_PHASE:g} of the pulse or later",
        ", ".join(f"{phase:.2f}" for phase in phases),
        f"{late} of {len(phases)} so late, all after {min(phases, default=np.nan):.2f}",
    )
    wide = [
        burst.burst_end - burst.burst_start
        for burst in bursts
        if burst.burst_start >= (NARROW_FROM - 1) * PULSE_STEPS_PUBLISHED
    ]
    yield Comparison(
        f"bursts from pulse {NARROW_FROM} on last",
        f"fewer than {NARROW} steps",
        f"{min(wide)} to {max(wide)} steps" if wide else "none",
        "agrees" if max(wide, default=0) < NARROW else "differs",
    )
    yield from _trends(run, spectrum)


def _trends(run: Run, spectrum: Spectrum) -> Iterator[Comparison]:
    """From the first pulses to the last, and what is reached at the end."""
    middle = ((np.arange(13) + 0.5) * PULSE_STEPS_PUBLISHED).astype(int)
    rows = np.searchsorted(spectrum.hessian.steps, middle)
    curvature = spectrum.hessian.centre.eigenvalues[rows, 0]
    for name, values in (("F", run.scalars["loss"][middle]), ("λ_max (at the centre)", curvature)):
        first, last = float(np.mean(values[:3])), float(np.mean(values[-3:]))
        yield Comparison(
            f"{name} in the middle of the pulses, first three and last three",
            "goes down",
            f"{first:.3g} to {last:.3g}",
            "agrees" if last < first else "differs",
        )
    assert spectrum.ntk is not None
    kernel = spectrum.ntk.eigenvalues[:, 0]
    for what, told, found in zip(
        ("at the start", "at most"), NTK_RANGE, (kernel[0], np.max(kernel)), strict=True
    ):
        yield Comparison(
            f"NTK λ_max {what}",
            f"about {told:,.0f}",
            f"{found:,.0f}",
            _near(float(found), told, NTK_TOLERANCE * told, f"{NTK_TOLERANCE:.0%}"),
        )
    accuracy = float(run.scalars["accuracy"][-1])
    yield Comparison(
        "training accuracy after the last update",
        f"at least {LEARNED} from most seeds, at most {CEILING:.5f}",
        f"{accuracy:.4f}",
        "agrees" if LEARNED <= accuracy <= CEILING + 1e-12 else "differs",
    )


def compare(run: Run, spectrum: Spectrum, preset: str) -> Iterator[Comparison]:
    """All rows; of those for which the run is too short, that they are not reached."""
    steps = len(run.steps)
    yield from _first_bursts(spectrum, preset, steps)
    if preset == "published":
        yield from _single_values(run)
    if run.config.steps < PRESETS[preset].steps:
        yield Comparison(
            "number and place of the bursts, trends, NTK, final accuracy",
            "see the full size",
            NOT_REACHED,
        )
        return
    yield from _whole_run(run, spectrum)


def make(task: Task, preset: str, name: str) -> Page:
    """Trains and analyses what is missing, draws, and compares."""
    config = PRESETS[preset]
    if task.budget == "tiny":
        config = replace(config, steps=TINY_STEPS)
    run = task.trained(config)
    spectrum = task.analysed(run, SpectrumConfig(k=1))
    picture = task.drawn(run_figure(run, spectrum), name)
    initial = {
        "published": "of the paper's program: weights N(0, 1/fan_in), biases 0",
        "published-updated": "of the update of July 2022: Glorot-normal weights, biases N(0, 1e-4)",
    }
    return Page(
        name=name,
        title="The headline run, Fig. 4"
        + (", updated initial values" if preset == "published-updated" else ""),
        source=PAPER,
        published="Six panels: class weights, loss F, its change from step to step, training "
        "accuracy, the largest eigenvalue of the Hessian and that of the NTK, for a network with "
        "one hidden layer of 100 ReLUs on the spiral, gradient descent with learning rate 1, "
        f"A = 70, T = 5000. Initial values {initial[preset]}. The figure has no table; the numbers "
        "are those of the authors' program. Its index i stands for the state *after* update i "
        "with the weights of the next step, which is step i + 1 here, where step t is the state "
        "*before* update t + 1 with the weights that this update uses.",
        comparisons=tuple(compare(run, spectrum, preset)),
        differs=_differs(),
        pictures=(Picture(picture, "The headline run in six panels, and its second burst"),),
        made=task.made(
            name,
            run.provenance,
            {
                "configuration": f"preset `{preset}`, {config.steps:,} steps",
                "precision": config.dtype,
                "eigenvalues": f"at {len(spectrum.hessian.steps):,} checkpoints, "
                f"{spectrum.not_converged} of them not converged",
            },
        ),
    )


def _differs() -> tuple[str, ...]:
    return (
        f"Up to step {_EXACT_STEPS:,} the loss is that of the authors' program to a relative "
        "1e-10, and up to step 8,900 to 1e-4. Then the bursts amplify rounding: two runs that "
        "differ by a relative 1e-14 differ by 0.1 at step 9,500. What comes later can be "
        "compared in its statistics only, and comes out differently on another machine.",
        "A burst is a window of oscillating steps in which the second difference of F exceeds "
        "0.01; with another definition, bursts start elsewhere.",
        "Eigenvalues are certified ones at the iterate and at the 1:2:1 centre of three iterates; "
        "the authors took ten Lanczos steps at the iterate.",
    )


def _reproduction(name: str, preset: str, about: str) -> Reproduction:
    made: Callable[[Task], Page] = partial(make, preset=preset, name=name)
    return Reproduction(name, about, made, sweeps=False)


REPRODUCTIONS = (
    _reproduction("fig4", "published", "the headline run and its spectra"),
    _reproduction(
        "fig4-updated", "published-updated", "the same with the initial values of July 2022"
    ),
)
