"""The headline run of arXiv 2102.03793 (Fig. 4), with both initialisations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from dlf_dynamics.analysis.reproduction.headline import (
    EXACT,
    bursts_beside,
    picture_beside,
    port_beside,
    program_beside,
)
from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture
from dlf_dynamics.analysis.reproduction.published import PAPER, published_figure
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task
from dlf_dynamics.analysis.spectra.plots import run_figure
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.run import Run

TINY_STEPS = 10_000

_NETWORK = (
    "for a network with one hidden layer of 100 ReLUs on the spiral, gradient descent with "
    "learning rate 1, A = 70, T = 5000"
)

_PUBLISHED = {
    "fig4": "Six panels, without a table: class weights, loss F, its change from step to step, "
    "training accuracy, the largest eigenvalue of the Hessian and that of the NTK, "
    f"{_NETWORK}. Initial values: weights N(0, 1/fan_in), biases 0. The authors published their "
    "program as well; what is marked *program* is its own output, in the first 6,000 updates.",
    "fig4-updated": "In July 2022 the authors replaced their program, since the first one no "
    "longer gave the results of the paper, and showed the figure again in **four panels**: class "
    f"weights, loss F, its change and training accuracy, {_NETWORK}. Initial values: Glorot-normal "
    "weights, biases N(0, 1e-4). The updated program computes **neither Hessian nor NTK**, so that "
    "there is nothing to compare ours with. Nor have we run it: what is exact below is of a port.",
}
"""What was published of each figure."""


def compare(
    run: Run, spectrum: Spectrum, name: Literal["fig4", "fig4-updated"]
) -> list[Comparison]:
    """All rows; those for which the run is too short say so."""
    figure = published_figure("fig4" if name == "fig4" else "fig4_updated")
    exact = program_beside(run, spectrum) if name == "fig4" else port_beside(run)
    return [*exact, *bursts_beside(run, spectrum, figure), *picture_beside(run, spectrum, figure)]


def make(task: Task, preset: str, name: Literal["fig4", "fig4-updated"]) -> Page:
    """Trains and analyses what is missing, draws, and compares."""
    config = PRESETS[preset]
    if task.budget == "tiny":
        config = replace(config, steps=TINY_STEPS)
    run = task.trained(config)
    spectrum = task.analysed(run, SpectrumConfig(k=1))
    picture = task.drawn(run_figure(run, spectrum), name)
    return Page(
        name=name,
        title="The headline run, Fig. 4"
        + (", updated initial values" if name == "fig4-updated" else ""),
        source=PAPER,
        published=_PUBLISHED[name],
        comparisons=tuple(compare(run, spectrum, name)),
        differs=_differs(name),
        pictures=(
            Picture(
                picture,
                "The headline run in the six published panels and the realized edge, and its "
                "second burst",
            ),
        ),
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


def _differs(name: str) -> tuple[str, ...]:
    of_spectra = (
        "Eigenvalues of the rows marked *program* and *digitised* are those at the iterate, as the "
        "authors' ten Lanczos steps are; ours are certified. The figure has those at the 1:2:1 "
        "centre of three iterates, too.",
        "The NTK was read from an axis that goes to 3,000. Where the program's own number is "
        "known, at indices 100 and 2,500, the reading is 26 and 24 above it; the error of all "
        "readings is taken to be that large.",
    )
    return (
        f"The bursts amplify rounding. After about {EXACT:,} updates the run depends on machine "
        "and versions; from the fourth burst on the differences are those of two runs which "
        "rounding has driven apart, see "
        "[what could not be reproduced](index.md#what-could-not-be-reproduced).",
        "A burst here is a window of oscillating steps in which the second difference of F exceeds "
        "0.01. Those of the picture were read by eye, and end and begin where they can be seen. "
        "The first burst does not depend on rounding: its differences are those of definition and "
        "reading, small changes being read worse than to 3 %.",
        "The authors' index i stands for the state *after* update i + 1 with the weights of the "
        "step that follows, which is step i + 1 here: step t is the state *before* update t + 1, "
        "with the weights that this update uses.",
        "Their program draws F(i) − F(i + 1), the negative of the change; so do the rows on it.",
        *(of_spectra if name == "fig4" else ()),
    )


def _reproduction(name: Literal["fig4", "fig4-updated"], preset: str, about: str) -> Reproduction:
    made: Callable[[Task], Page] = partial(make, preset=preset, name=name)
    return Reproduction(name, about, made, "about 2 min", sweeps=False)


REPRODUCTIONS = (
    _reproduction("fig4", "published", "the headline run and its spectra"),
    _reproduction(
        "fig4-updated", "published-updated", "the same with the initial values of July 2022"
    ),
)
