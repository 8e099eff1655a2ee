"""Three runs of smooth networks that come to the edge of stability and stay there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from numpy.polynomial import chebyshev

from dlf_dynamics.analysis.reproduction.task import Task
from dlf_dynamics.config import DataConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.loop import Setup
from dlf_dynamics.models import FullyConnected
from dlf_dynamics.presets import PRESETS
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run

RATE = 0.1
"""Learning rate of the regressions."""

_DEGREE, _POINTS, _IMAGES, _WIDTHS = 4, 20, 200, (100, 100)
"""Degree and points of Chebyshev's polynomial, number of digits, hidden layers of the networks."""


@dataclass(frozen=True)
class EdgeRun:
    """A run, and how it is described.

    Attributes:
        name: name in tables and figures, and of the file.
        about: what was trained, as the beginning of a sentence.
        run: the run.
        rate: learning rate.
    """

    name: str
    about: str
    run: Run
    rate: float


def headline(task: Task, steps: int) -> EdgeRun:
    """The headline run with tanh in place of ReLU: a loss that moves, and has no kinks."""
    published = PRESETS["published"]
    model = replace(published.model, activation="tanh")
    config = replace(published, model=model, steps=steps)
    run = task.trained(config, "headline-tanh")
    about = _about("the spiral with dynamical cross entropy", model.widths, run)
    return EdgeRun("headline-tanh", about, run, config.optimizer.learning_rate)


def _about(what: str, widths: tuple[int, ...], run: Run) -> str:
    hidden = "-".join(map(str, widths))
    return f"{what}, tanh, hidden layers of {hidden}, {run.num_params:,} parameters"


def chebyshev_setup() -> Setup:
    """Chebyshev's polynomial of degree 4 at 20 points."""
    points = np.linspace(-1, 1, _POINTS)
    return _regression(points[:, None], chebyshev.Chebyshev.basis(_DEGREE)(points))


def parity_setup() -> Setup:
    """Images of digits, 1 for the odd ones and -1 for the even ones."""
    dataset = load_dataset(DataConfig("digits", limit=_IMAGES, validation=0))
    images = np.asarray(dataset.inputs).reshape(_IMAGES, -1)
    return _regression(images, np.where(np.asarray(dataset.labels) % 2, 1.0, -1.0))


def _regression(inputs: np.ndarray, targets: np.ndarray) -> Setup:
    """Gradient descent on half the mean squared error of a network with one output."""
    model = FullyConnected(_WIDTHS, "tanh", "lecun-normal")
    problem = Problem(
        apply=model.apply,
        criterion=_half_square,
        inputs=jnp.asarray(inputs),
        targets=jnp.asarray(targets),
    )
    params = model.init(jax.random.key(0), inputs.shape[1:], 1)
    return Setup(problem, optax.sgd(RATE), params)


def _half_square(outputs: Array, targets: Array) -> Array:
    return (outputs[:, 0] - targets) ** 2 / 2


def fitted(task: Task, steps: int) -> EdgeRun:
    """The regression of Cohen and others (2021), where two directions are at the edge."""
    what = f"Chebyshev's polynomial of degree {_DEGREE} at {_POINTS} points"
    return _recorded(task, chebyshev_setup(), steps, "chebyshev", what)


def parity(task: Task, steps: int) -> EdgeRun:
    """Odd digits against even ones, where one direction is at the edge."""
    what = f"odd digits against even ones by regression, {_IMAGES} images"
    return _recorded(task, parity_setup(), steps, "digits", what)


def _recorded(task: Task, setup: Setup, steps: int, name: str, what: str) -> EdgeRun:
    run = task.recorded(setup, steps, every=50, name=name)
    return EdgeRun(name, _about(f"{what}, half the mean squared error", _WIDTHS, run), run, RATE)


RUNS: Mapping[str, Callable[[Task, int], EdgeRun]] = MappingProxyType(
    {"headline-tanh": headline, "chebyshev": fitted, "digits": parity}
)
"""Functions that train the runs for a number of steps, by name."""
