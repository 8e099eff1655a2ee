"""The models of the page "A burst in one dimension", and its figures: `python docs/burst.py`.

Each model has only a few numbers, so that its figure can be compared with a closed form. The
tests do that, and redraw the figures to check that the stored ones show these models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit

from dlf_dynamics.analysis import style
from dlf_dynamics.analysis.bifurcation import (
    Branch,
    Map,
    OrbitDiagram,
    continue_cycle,
    find_cycle,
    orbit_diagram,
    switch_branch,
)
from dlf_dynamics.analysis.instabilities.lag import predicted_onset
from dlf_dynamics.schedules import Triangle

HERE = Path(__file__).parent / "concepts"

BLUE, ORANGE, RED = style.COLOURS[0], style.COLOURS[1], style.COLOURS[5]

NOISE, VISIBLE = 1e-16, 0.01
"""For the ramp: noise of each step, as the rounding of a number near 1; visible size of x."""

RAMP = np.linspace(1.5, 2.5, 1000)
"""ηλ of each step of the ramp."""


def parabola() -> Map:
    """Gradient descent on ½λx² as a map with the parameter ηλ."""
    return Map(lambda x, step_size: (1 - step_size) * x)


def quartic(c: float) -> Map:
    """Gradient descent on ½λx² − (c/4η)x⁴ as a map with the parameter ηλ."""
    return Map(lambda x, step_size: (1 - step_size) * x + c * x**3)


class Diagram(NamedTuple):
    """Attractors and branches of the quartic as ηλ passes 2.

    Attributes:
        minimum: the branch of x = 0.
        doubled: the branch of the orbit of period 2 that begins at the flip.
        orbits: where iterates end up.
    """

    minimum: Branch
    doubled: Branch
    orbits: OrbitDiagram


@cache
def diagram(c: float) -> Diagram:
    """Branches of the quartic by continuation, and its orbits by iteration."""
    map_, until = quartic(c), (1.7, 2.5)
    minimum = continue_cycle(map_, find_cycle(map_, np.zeros(1), 1.8, 1), until=until)
    (flip,) = minimum.bifurcations
    doubled = continue_cycle(map_, switch_branch(map_, flip), until=until)
    parameters = np.linspace(*until, 32)
    settings: dict[str, Any] = {"transient": 2000, "recorded": 8, "follow": False, "bound": 10.0}
    orbits = orbit_diagram(map_, jnp.array([0.1]), parameters, lambda x: x[0], **settings)
    return Diagram(minimum, doubled, orbits)


def ramp(seed: int = 0) -> np.ndarray:
    """The states x while ηλ rises as `RAMP`, with c = 1, starting at 0, with noise of rounding."""
    noise = NOISE * np.random.default_rng(seed).normal(size=len(RAMP))
    x, found = 0.0, np.empty(len(RAMP))
    for step, (step_size, added) in enumerate(zip(RAMP, noise, strict=True)):
        found[step] = x
        x = (1 - step_size) * x + x**3 + added
    return found


def ramp_events() -> tuple[int, int]:
    """First step of the ramp above 2, and the step at which half of all runs are visible."""
    onset = predicted_onset(np.abs(1 - RAMP), NOISE, np.full(len(RAMP), VISIBLE))
    assert onset is not None
    return int(np.argmax(RAMP > 2)), onset


def valley(
    steps: int, force: float = 1e-3, start: float = 0.0, noise: float = NOISE
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent with η = 1 on ½yx² − (force)·y, from y = 2.

    Args:
        steps: number of steps.
        force: constant force that drives y, the curvature along x at the centre x = 0, upwards.
        start: x at the first step.
        noise: standard deviation of the noise that each step adds to x.

    Returns:
        x and y at each step.
    """
    added = noise * np.random.default_rng(0).normal(size=steps)
    x, y, found = start, 2.0, np.empty((steps, 2))
    for step in range(steps):
        found[step] = x, y
        x, y = x - y * x + float(added[step]), y + force - x**2 / 2
    return found[:, 0], found[:, 1]


class Pulse(NamedTuple):
    """A network of two weights on two indistinguishable classes.

    Attributes:
        weights: (steps, 2) Γ of either class.
        output: (steps,) f = wv.
        outer: (steps,) w.
        sharpness: (steps,) λ at the bottom, where the gradient of the loss of that step is 0.
        phase: (steps,) time since the beginning of the first pulse, in pulses.
    """

    weights: np.ndarray
    output: np.ndarray
    outer: np.ndarray
    sharpness: np.ndarray
    phase: np.ndarray


def pulse(
    rate: float = 1.0,
    amplitude: float = 70.0,
    period: int = 5000,
    outer: float = 7.5,
    *,
    trained: bool = True,
    pulses: float = 1.0,
) -> Pulse:
    """Gradient descent on ½[Γ₁ ln(1 + e^(−wv)) + Γ₂ ln(1 + e^(wv))], from the middle of a pulse.

    It starts at the bottom, where σ(wv) = Γ₁/2, except for the rounding of v.

    Args:
        rate: η.
        amplitude: A.
        period: T.
        outer: w at the start.
        trained: whether w is trained, or held.
        pulses: number of pulses after the start.
    """
    steps = period // 2 + np.arange(int(pulses * period))
    weights = np.asarray(jax.vmap(Triangle(2, amplitude, period))(jnp.asarray(steps)), float)
    bottoms = np.log(weights[:, 0] / weights[:, 1])
    w, v = outer, float(bottoms[0]) / outer + NOISE
    found = np.empty((len(steps), 2))
    for index, (first, second) in enumerate(weights.tolist()):
        found[index] = w, v
        slope = float(second * expit(w * v) - first * expit(-w * v)) / 2
        w, v = w - trained * rate * slope * v, v - rate * slope * w
    outer_at, inner_at = found.T
    squares = outer_at**2 + ((bottoms / outer_at) ** 2 if trained else 0.0)
    sharpness = squares * weights[:, 0] * weights[:, 1] / 4
    return Pulse(weights, outer_at * inner_at, outer_at, sharpness, steps / period)


def draw_cobweb() -> Figure:
    """Four values of ηλ: x against its previous value."""
    figure = style.new_figure(7.0, 2.3)
    map_, line = parabola(), np.array([-1.3, 1.3])
    panels: Any = figure.subplots(1, 4, sharey=True)
    told = ("one side", "from side to side", "for ever", "outwards")
    for ax, step_size, words in zip(panels, (0.5, 1.5, 2.0, 2.1), told, strict=True):
        start = 1.0 if step_size <= 2 else 0.5
        states = [float(map_.iterate(jnp.array([start]), step_size, n)[0]) for n in range(10)]
        path = np.repeat(states, 2)
        ax.plot(line, line, color="0.75", lw=0.8)
        ax.plot(line, (1 - step_size) * line, color=ORANGE, lw=1.2)
        ax.plot(path[:-1], np.append(0.0, path[2:]), color=BLUE, lw=0.8)
        ax.plot(start, 0.0, "o", color=BLUE, ms=3)
        ax.set(title=f"ηλ = {step_size:g}\n{words}", xlabel="x before a step")
        ax.set(xlim=line, ylim=line, aspect="equal")
    panels[0].set_ylabel("x after it")
    return figure


def _draw_branch(ax: Axes, branch: Branch, colour: str, name: str) -> None:
    """All points of a branch's cycles, solid where it is stable and dashed elsewhere."""
    for values in branch.points[:, :, 0].T:
        for stable, dash in ((True, "-"), (False, "--")):
            shown = np.where(branch.stable == stable, values, np.nan)
            ax.plot(branch.parameters, shown, dash, color=colour, lw=1.2)
    ax.plot([], [], color=colour, label=name)


def draw_quartic() -> Figure:
    """Bifurcation diagrams for both signs of c."""
    figure = style.new_figure(7.0, 2.6)
    panels: Any = figure.subplots(1, 2, sharey=True)
    for ax, c, name in zip(panels, (1.0, -1.0), ("super", "sub"), strict=True):
        found = diagram(c)
        _draw_branch(ax, found.minimum, "0.3", "x = 0")
        _draw_branch(ax, found.doubled, ORANGE, "period 2: ±√(ε/c)")
        parameters = np.repeat(found.orbits.parameters, found.orbits.up.shape[1])
        ax.plot(parameters, found.orbits.up.ravel(), ".", color=BLUE, ms=3, label="where x ends up")
        gone = found.orbits.parameters[found.orbits.diverged_up]
        if len(gone):
            ax.axvspan(gone[0], gone[-1], color=BLUE, alpha=0.1, lw=0)
            ax.text(gone.mean(), 0.4, "x leaves", ha="center", color=BLUE)
        ax.axvline(2, color="0.75", lw=0.8, zorder=0)
        ax.set(title=f"c = {c:+.0f}: {name}critical".replace("-", "−"), xlabel="ηλ")
        ax.set(xlim=(1.7, 2.5), ylim=(-0.8, 0.8))
    panels[0].set_ylabel("x")
    panels[0].legend(loc="upper left", fontsize=6.5, frameon=False)
    return figure


def _draw_sweep(
    panels: Any, step_sizes: np.ndarray, x: np.ndarray, first: int, seen: float
) -> None:
    """ηλ, the size of x, and x itself against the steps since the crossing."""
    steps = np.arange(len(x)) - first
    panels[0].plot(steps, step_sizes, color=BLUE, lw=1)
    panels[0].axhline(2, color=ORANGE, lw=1)
    panels[1].semilogy(steps, np.abs(x), color=BLUE, lw=0.7)
    panels[1].axhline(seen, color="0.6", lw=0.7, ls=":")
    panels[2].plot(steps, x, ".", color=BLUE, ms=1)
    panels[2].set_xlabel("steps since the crossing")
    for ax in panels:
        ax.axvline(0, color="0.75", lw=0.8, zorder=0)


def draw_sweep() -> Figure:
    """The external ramp, and the valley with feedback."""
    figure = style.new_figure(7.0, 4.2)
    panels: Any = figure.subplots(3, 2, sharex="col")
    crossing, onset = ramp_events()
    _draw_sweep(panels[:, 0], RAMP, ramp(), crossing, VISIBLE)
    for ax in panels[:, 0]:
        ax.axvline(onset - crossing, color=RED, lw=0.8, ls="--")
    above = np.maximum(RAMP - 2, 0)
    for sign in (-1, 1):
        branch = sign * np.sqrt(above)
        panels[2, 0].plot(np.arange(len(RAMP)) - crossing, branch, color=ORANGE, lw=0.8)
    x, y = valley(2000)
    _draw_sweep(panels[:, 1], y, x, 0, VISIBLE)
    panels[0, 0].set(title="λ driven from outside", ylabel="ηλ")
    panels[0, 1].set_title("λ answers the oscillation")
    panels[1, 0].set_ylabel("|x|")
    panels[2, 0].set_ylabel("x")
    return figure


def draw_pulse() -> Figure:
    """The second half of a pulse and the first half of the next: w held, and trained."""
    figure = style.new_figure(7.0, 4.2)
    panels: Any = figure.subplots(3, 2, sharex=True)
    held, trained = pulse(trained=False), pulse()
    for column, found in zip(panels.T, (held, trained), strict=True):
        column[0].plot(found.phase, found.weights[:, 0], color=style.COLOURS[2], lw=1)
        column[0].plot(found.phase, found.weights[:, 1], color=style.COLOURS[3], lw=1)
        column[1].semilogy(found.phase, found.sharpness, color=BLUE, lw=1)
        column[1].axhline(2, color=ORANGE, lw=1)
        column[1].set_ylim(0.1, 20)
        column[2].plot(found.phase, found.output, ".", color=BLUE, ms=0.6, rasterized=True)
        bottom = np.log(found.weights[:, 0] / found.weights[:, 1])
        column[2].plot(found.phase, bottom, color=ORANGE, lw=0.8)
        column[2].set(xlabel="time in pulses", xlim=(0.5, 1.5))
        for ax in column:
            ax.axvline(1, color="0.75", lw=0.8, zorder=0)
    panels[1, 1].plot(held.phase, held.sharpness, color="0.6", lw=0.7, ls="--")
    panels[0, 0].set(title="w held", ylabel="class weights")
    panels[0, 1].set_title("w trained")
    panels[1, 0].set_ylabel("λ at the bottom")
    panels[2, 0].set_ylabel("output f")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "burst-cobweb": draw_cobweb,
    "burst-quartic": draw_quartic,
    "burst-sweep": draw_sweep,
    "burst-pulse": draw_pulse,
}
"""Functions that draw the figures of the page, by name in docs/concepts."""


def main() -> None:
    """Replaces the figures."""
    jax.config.update("jax_enable_x64", True)
    for name, drawn in FIGURES.items():
        with style.styled():
            figure = drawn()
        style.save(figure, HERE / name, ["png"])


if __name__ == "__main__":
    main()
