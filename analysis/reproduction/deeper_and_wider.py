"""The static loss where training ends, dynamical and static (arXiv 2102.03793)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from dlf_dynamics.analysis.reproduction.page import Comparison, Page, Picture, unfinished
from dlf_dynamics.analysis.reproduction.published import PAPER, Published
from dlf_dynamics.analysis.reproduction.task import Budget, Reproduction, Task
from dlf_dynamics.analysis.studies.statistics import Interval, mean_interval
from dlf_dynamics.analysis.style import COLOURS, styled
from dlf_dynamics.config import RunConfig
from dlf_dynamics.opening import open_run
from dlf_dynamics.operators import hessian
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run

NAME = "deeper-and-wider"

EVERY = 125

LARGE = 0.01
"""Eigenvalues of the static loss above this are counted as its steep directions."""

KINDS = ("static", "dynamical")
_POINTS = {"end": "at the end", "matched": "at equal static loss"}
"""Points of a run at which the Hessian is computed, in words."""

_QUANTITIES = {
    "loss": "static loss",
    "top": "largest eigenvalue",
    "trace": "trace",
}

CLAIM = Published("deeper and wider, decreasing eigenvalues of the Hessian", "text")


@dataclass(frozen=True)
class _Size:
    seeds: int
    steps: int


_SIZES: dict[Budget, _Size] = {
    "tiny": _Size(2, 1000),
    "small": _Size(10, 70_000),
    "full": _Size(50, 200_000),
}


def config_of(kind: str, seed: int, steps: int) -> RunConfig:
    """The headline run, or the same with the static loss, from the initial values of a seed."""
    base = PRESETS["published-updated"]
    amplitude = base.schedule.amplitude if kind == "dynamical" else 1.0
    static_from = (base.schedule.static_from or base.steps) * steps // base.steps
    return replace(
        base,
        model=replace(base.model, seed=seed),
        schedule=replace(base.schedule, amplitude=amplitude, static_from=static_from),
        steps=steps,
        checkpoint_every=EVERY,
    )


@dataclass(frozen=True)
class Point:
    """The static loss at one point of a run.

    Attributes:
        step: number of updates made.
        loss: static loss.
        eigenvalues: all eigenvalues of its Hessian, increasing.
    """

    step: int
    loss: float
    eigenvalues: tuple[float, ...]

    @property
    def top(self) -> float:
        """The largest eigenvalue."""
        return self.eigenvalues[-1]

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues."""
        return float(np.sum(self.eigenvalues))

    @property
    def steep(self) -> int:
        """Number of eigenvalues above LARGE."""
        return int(np.sum(np.array(self.eigenvalues) > LARGE))


Pair = dict[str, dict[str, Point]]
"""The points of one seed, by kind of run and by name in _POINTS."""


def _pair_of(task: Task, seed: int, steps: int) -> Pair:
    """Both runs of a seed, at the end and at equal loss; computes what is not on file."""
    runs = {k: task.trained(config_of(k, seed, steps), f"{k}-{seed}") for k in KINDS}
    sources = {kind: asdict(run.source) for kind, run in runs.items()}
    kept = task.kept(f"hessians-{seed}", sources, lambda: _measured(runs))
    return {
        kind: {
            point: Point(values["step"], values["loss"], tuple(values["eigenvalues"]))
            for point, values in points.items()
        }
        for kind, points in kept.items()
    }


def _measured(runs: dict[str, Run]) -> dict[str, dict[str, dict]]:
    losses = {kind: run.scalars["static_loss"][run.checkpoint_steps] for kind, run in runs.items()}
    matched = _first_at_most(losses)
    return {
        kind: {
            "end": _point(run, len(losses[kind]) - 1, losses[kind]),
            "matched": _point(run, matched[kind], losses[kind]),
        }
        for kind, run in runs.items()
    }


def _first_at_most(losses: dict[str, Float[np.ndarray, " checkpoints"]]) -> dict[str, int]:
    """The first checkpoint of each run at which its loss is at most what all runs reach.

    That is the largest of the smallest losses.

    >>> _first_at_most({"a": np.array([3.0, 2.0, 1.0]), "b": np.array([5.0, 1.5, 2.5])})
    {'a': 2, 'b': 1}
    """
    reached = max(float(np.min(each)) for each in losses.values())
    return {kind: int(np.argmax(each <= reached)) for kind, each in losses.items()}


def _point(run: Run, index: int, losses: np.ndarray) -> dict:
    (params,) = run.parameters([index])
    matrix = np.asarray(_dense(run.problem.static(), jnp.asarray(params)))
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    return {
        "step": int(run.checkpoint_steps[index]),
        "loss": float(losses[index]),
        "eigenvalues": eigenvalues.tolist(),
    }


@jax.jit
def _dense(problem: Problem, params: Array) -> Array:
    return jax.lax.map(hessian(problem, params, 0), jnp.eye(len(params), dtype=params.dtype))


def _log_ratio(pairs: Sequence[Pair], point: str, name: str) -> Interval:
    """Mean log₁₀ of dynamical over static, over the seeds; all intervals hold together."""
    values = [
        np.log10(getattr(pair["dynamical"][point], name) / getattr(pair["static"][point], name))
        for pair in pairs
    ]
    return mean_interval(np.array(values), comparisons=len(_COMPARED))


_COMPARED = tuple(
    (point, name)
    for point in _POINTS
    for name in _QUANTITIES
    if (point, name) != ("matched", "loss")
)


def compare(pairs: Sequence[Pair]) -> Iterator[Comparison]:
    """Loss, largest eigenvalue and trace at the end and at equal loss."""
    for point, name in _COMPARED:
        log_ratio = _log_ratio(pairs, point, name)
        medians = [
            float(np.median([getattr(pair[kind][point], name) for pair in pairs])) for kind in KINDS
        ]
        expected = "lower: " + ("deeper" if name == "loss" else "wider")
        verdict = {
            "lower": "agrees",
            "higher": "contradicts",
            "not told apart": "does not show it",
            "too few runs": "too few runs",
        }[log_ratio.direction]
        yield Comparison(
            f"{_QUANTITIES[name]} {_POINTS[point]}: log₁₀ of dynamical over static",
            Published(expected, "text"),
            log_ratio.told(2, sign=True),
            f"{verdict}; {log_ratio.size} pairs; medians {medians[0]:.3g} (static), "
            f"{medians[1]:.3g} (dynamical)",
        )
    for point, where in _POINTS.items():
        counts = {k: np.array([pair[k][point].steep for pair in pairs]) for k in KINDS}
        yield Comparison(
            f"eigenvalues above {LARGE:g} {where}",
            None,
            f"median {np.median(counts['static']):g} (static), "
            f"{np.median(counts['dynamical']):g} (dynamical)",
        )
    reached = [pair["static"]["matched"].loss for pair in pairs]
    yield Comparison(
        "equal static loss: the larger of the smallest losses of each pair",
        None,
        f"from {min(reached):.3g} to {max(reached):.3g}",
    )


def draw(pairs: Sequence[Pair]) -> Figure:
    """Densities of the eigenvalues over all seeds, and the largest ones against the loss."""
    with styled():
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axes = figure.subplots(1, 3)
        edges = np.geomspace(1e-8, 1e3, 56)
        for ax, (point, where) in zip(axes[:2], _POINTS.items(), strict=True):
            for kind, colour in zip(KINDS, (COLOURS[0], COLOURS[5]), strict=True):
                values = np.array([pair[kind][point].eigenvalues for pair in pairs])
                counts = np.histogram(values[values > 0], edges)[0] / len(pairs)
                ax.stairs(counts, edges, color=colour, lw=1, label=kind)
            ax.set(xscale="log", yscale="log", xlabel="eigenvalue", title=where)
        axes[0].set_ylabel("positive eigenvalues per bin and seed")
        axes[0].legend(frameon=False)
        for kind, colour in zip(KINDS, (COLOURS[0], COLOURS[5]), strict=True):
            for point, marker in zip(_POINTS, ("o", "x"), strict=True):
                points = [pair[kind][point] for pair in pairs]
                axes[2].plot(
                    [each.loss for each in points],
                    [each.top for each in points],
                    marker,
                    color=colour,
                    ms=4,
                    mfc="none",
                    label=f"{kind}, {point}",
                )
        axes[2].set(xscale="log", yscale="log", xlabel="static loss", title="largest eigenvalue")
        axes[2].legend(frameon=False, fontsize=6)
        return figure


def make(task: Task) -> Page:
    """Trains what is missing, computes the Hessians, draws, and compares."""
    size = _SIZES[task.budget]
    seeds = task.of_seeds(range(size.seeds), "hessians")
    pairs = [_pair_of(task, seed, size.steps) for seed in seeds]
    return Page(
        name=NAME,
        title="Deeper and wider",
        source=PAPER,
        published="The abstract says that the process *ultimately pushes the system into deeper "
        "and wider regions of the loss landscape and is characterized by decreasing eigenvalues of "
        "the Hessian*. We know no number of it.",
        comparisons=tuple(compare(pairs)),
        differs=(*unfinished(len(seeds) == size.seeds), *_DIFFERS),
        pictures=(
            Picture(
                task.drawn(draw(pairs), NAME),
                "Eigenvalues of the Hessian of the static loss, all of them, at the end and at "
                "equal static loss; right, the largest against the loss, a point for each run",
            ),
        ),
        made=task.made(
            NAME,
            open_run(task.folder / f"dynamical-{seeds[0]}.h5").provenance,
            {
                "runs": f"the preset `published-updated`, {size.steps:,} steps, static and "
                f"dynamical, from {len(seeds)} initial values of {size.seeds}",
                "what would need more": "`--budget full`: 50 seeds, 200,000 steps, about fourteen "
                "times this cost. Wider networks need the density by Lanczos quadrature in place "
                "of all eigenvalues, and from about width 1000 on a GPU (not measured).",
            },
        ),
    )


_DIFFERS = (
    "Both runs of a pair have the same initial values and data, and the same gradient descent. The "
    "Hessian is that of the *static* loss for both, computed whole, with all its eigenvalues.",
    "At equal loss: the smallest static loss of each run is looked for, the larger of the two is "
    "what both reach, and each run is taken at its first checkpoint at or below it (one in "
    f"{EVERY} steps). A dynamical run may be there in the middle of a pulse.",
    "Intervals are Student's, of the mean of log₁₀ of the ratio over the seeds, widened for "
    f"{len(_COMPARED)} comparisons (Bonferroni), so that all hold together with 95 %. Lower is "
    "called deeper and wider, and nothing else is: curvature depends on the scale of the weights, "
    "and a cross entropy that goes on falling flattens by itself. That is why equal loss is the "
    "fairer comparison.",
    "Gradient descent with the static loss at this rate stays where it does not learn from some "
    "initial values; for these the end of the run compares a network that learned with one that "
    "did not.",
)


REPRODUCTION = Reproduction(
    NAME,
    "Hessian of the static loss at the end and at equal loss, dynamical and static",
    make,
    "about 3 min",
    sweeps=False,
)
