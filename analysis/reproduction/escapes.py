"""SGD started near a minimum, at learning rates on both sides of its mean-square threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.analysis.stability.mean_square import MeanSquareThreshold, mean_square_threshold
from dlf_dynamics.analysis.studies.ensemble import Ensemble, History, Stopped
from dlf_dynamics.assembly import build, initial_parameters
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import to_json
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.dynamics import EDGE
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.layout import Layout
from dlf_dynamics.problem import Problem

FROM_MINIMUM = 1e-6
"""Distance from the minimum at which runs start."""


@dataclass(frozen=True)
class Minimum:
    """A minimum of a network with squared error.

    Attributes:
        config: settings of the network and its data.
        params: the minimum, flat.
        loss: loss at the minimum.
        gradient_norm: Euclidean norm of the gradient there.
    """

    config: RunConfig
    params: Float[np.ndarray, " params"]
    loss: float
    gradient_norm: float

    @property
    def problem(self) -> Problem:
        """The full-batch loss of flat parameters."""
        return build(self.config, load_dataset(self.config.data), None).problem

    def threshold(self, batch_size: int) -> MeanSquareThreshold:
        """The mean-square threshold for batches drawn independently."""
        return mean_square_threshold(self.problem, self.params, batch_size)


def minimum_of(task: Task, config: RunConfig, name: str) -> Minimum:
    """A minimum, by Levenberg-Marquardt steps from the configuration's initial parameters.

    Args:
        task: task that keeps it.
        config: settings of a network with squared error.
        name: name of the file in which it is kept.
    """
    kept = task.kept(name, to_json(config), partial(_minimised, config))
    return Minimum(config, np.array(kept["params"]), kept["loss"], kept["slope"])


def _minimised(config: RunConfig) -> dict[str, Any]:
    dataset = load_dataset(config.data)
    tree = initial_parameters(config, dataset)
    problem = build(config, dataset, None).problem
    outputs = jax.jit(lambda params: problem.outputs(params).ravel())
    jacobian = jax.jit(jax.jacrev(outputs))
    initial = np.asarray(Layout.of(tree).flatten(tree))
    wanted = np.eye(problem.outputs(initial).shape[1])[dataset.labels].ravel()
    solution = least_squares(
        lambda params: np.asarray(outputs(params)) - wanted,
        initial,
        lambda params: np.asarray(jacobian(params)),  # type: ignore[arg-type]  # SciPy says str
        method="trf",
        ftol=1e-15,
        xtol=1e-12,
        gtol=1e-12,
        max_nfev=500,
    )
    loss, gradient = jax.value_and_grad(problem.objective)(solution.x, 0)
    return {
        "params": solution.x.tolist(),
        "loss": float(loss),
        "slope": float(np.linalg.norm(gradient)),
    }


@dataclass(frozen=True)
class Escapes:
    """Runs of one batch size that started near a minimum, at several learning rates.

    Attributes:
        batch_size: examples per update, drawn independently.
        stable: certified learning rate below which second moments decay.
        unstable: certified learning rate from which they grow.
        rates: learning rates, in units of the nearer of the two.
        distances: distance from the minimum at the end, relative to the start; infinite where a
            run is no longer finite.
        raised: fraction of a run's steps that raised their own loss (ζ > 1), among those where
            rounding does not hide it; NaN where there are none.
    """

    batch_size: int
    stable: float
    unstable: float
    rates: Float[np.ndarray, " rates"]
    distances: Float[np.ndarray, "rates seeds"]
    raised: Float[np.ndarray, "rates seeds"]

    @property
    def moved_away(self) -> Float[np.ndarray, " rates"]:
        """Fraction of the runs that ended further from the minimum than they started."""
        return np.mean(self.distances > 1, axis=1)


def escapes(
    task: Task, minimum: Minimum, batch_size: int, rates: Sequence[float], seeds: int, steps: int
) -> Escapes:
    """Runs with batches drawn independently, at multiples of the certified learning rates.

    Args:
        task: task that keeps their results.
        minimum: minimum near which they start.
        batch_size: examples per update.
        rates: learning rates, below 1 in units of the certified stable one, above 1 in units of
            the certified unstable one.
        seeds: number of seeds of the batches, for each rate.
        steps: steps of each run.
    """
    config = replace(
        minimum.config,
        batch_size=batch_size,
        batch_sampling="independent",
        steps=steps,
        checkpoint_every=steps,
    )
    of = {"config": to_json(config), "rates": list(rates), "seeds": seeds}
    name = f"escapes-{config.data.name}-{batch_size}"
    kept = task.kept(name, of, partial(_escaped, task, minimum, config, rates, seeds))
    arrays = {name: np.array(kept[name]) for name in ("rates", "distances", "raised")}
    return Escapes(batch_size, kept["stable"], kept["unstable"], **arrays)


def _escaped(
    task: Task, minimum: Minimum, config: RunConfig, rates: Sequence[float], seeds: int
) -> dict[str, Any]:
    assert config.batch_size is not None
    threshold = minimum.threshold(config.batch_size)
    ends = threshold.certified_stable, threshold.certified_unstable
    away = np.random.default_rng(0).standard_normal(len(minimum.params))
    start = minimum.params + FROM_MINIMUM * away / np.linalg.norm(away)
    histories = [
        history
        for rate in rates
        for history in _trained(task, config, start, rate * ends[rate > 1], seeds)
    ]
    far = [np.linalg.norm(each.params - minimum.params) / FROM_MINIMUM for each in histories]
    raised = [_share_raised(each) for each in histories]
    shape = len(rates), seeds
    return {
        "stable": ends[0],
        "unstable": ends[1],
        "rates": list(rates),
        "distances": np.nan_to_num(far, nan=np.inf, posinf=np.inf).reshape(shape).tolist(),
        "raised": np.reshape(raised, shape).tolist(),
    }


def _trained(
    task: Task, config: RunConfig, start: np.ndarray, rate: float, seeds: int
) -> list[History]:
    optimizer = replace(config.optimizer, learning_rate=float(rate))
    configs = [replace(config, batch_seed=seed, optimizer=optimizer) for seed in range(seeds)]
    try:
        return Ensemble(configs, start).run(stop=task.stop)
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped


def _share_raised(history: History) -> float:
    """Fraction of the steps that raised their own loss, among those for which that is known."""
    # The last row belongs to the parameters after the last update, which no update follows.
    counts = EdgeCounts.of(*(history.columns[name][:-1] for name in EDGE))
    known = counts.evaluated - counts.undefined - counts.within_rounding
    return counts.above / known if known else float("nan")
