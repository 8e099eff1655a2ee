"""From the histories of runs to their outcomes, which a study keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.analysis.instabilities.periods import periods_of_loss
from dlf_dynamics.analysis.spectra.events import Oscillation, find_oscillations
from dlf_dynamics.analysis.spectra.oneshot import ntk_spectrum, sharpness, stability
from dlf_dynamics.analysis.spectra.oneshot_results import Measurement
from dlf_dynamics.analysis.stability.threshold import threshold_of
from dlf_dynamics.analysis.studies.ensemble import Ensemble, History
from dlf_dynamics.analysis.studies.outcome import CURVES, Outcome
from dlf_dynamics.analysis.studies.study import Measures
from dlf_dynamics.assembly import UpdateRule
from dlf_dynamics.config import RunConfig
from dlf_dynamics.dynamics import EDGE, Dynamics
from dlf_dynamics.edge_counts import EdgeCounts
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.layout import Layout
from dlf_dynamics.optimizers import FlatUpdate, is_adaptive
from dlf_dynamics.problem import Problem
from dlf_dynamics.schedules import Schedule, Triangle


def measure(
    configs: Sequence[RunConfig],
    measures: Measures,
    stop: Callable[[], bool] = lambda: False,
) -> list[Outcome]:
    """Trains runs of one form together and measures each.

    Args:
        configs: configurations of the runs, equal but for what an `Ensemble` lets differ.
        measures: what to measure.
        stop: asked from time to time.

    Raises:
        ConfigError: when a configuration does not fit its data.
        DataError: when the data cannot be read.
        Stopped: when `stop` said so.
    """
    start = time.monotonic()
    ensemble = Ensemble(configs)
    steps = curve_steps(ensemble.config, measures.curve_points)
    histories = ensemble.run(steps.tolist(), stop)
    outcomes = [
        _outcome(config, dynamics, history, measures, steps)
        for config, dynamics, history in zip(configs, ensemble.dynamics, histories, strict=True)
    ]
    share = (time.monotonic() - start) / len(configs)
    return [replace(outcome, seconds=share) for outcome in outcomes]


def curve_steps(config: RunConfig, points: int) -> Int[np.ndarray, " points"]:
    """Steps of the points of a run's curves, as evenly spaced as checkpoints are.

    >>> curve_steps(RunConfig(steps=1000, checkpoint_every=30), 3).tolist()
    [0, 480, 990]
    """
    every = config.checkpoint_every
    last = (config.steps - 1) // every
    return every * np.round(np.linspace(0, last, points)).astype(int)


def _outcome(
    config: RunConfig,
    dynamics: Dynamics,
    history: History,
    measures: Measures,
    steps: Int[np.ndarray, " points"],
) -> Outcome:
    """Everything about one run but its time."""
    loss = history.columns["loss"]
    finite = np.isfinite(loss)
    end = len(loss) if np.all(finite) else int(np.argmin(finite))
    made = min(end, config.steps)  # the last row is that of the parameters after the last update
    accuracy, validation = history.columns["accuracy"][:end], history.validation
    seen = history.validation_steps < end
    # Successive mini-batches make updates point against each other without any instability.
    numbers: dict[str, Any] = {}
    if config.batch_size is None:
        numbers = _events(loss[:made], history, dynamics.schedule)
    numbers |= {"steps": made, "best_accuracy": _largest(accuracy)}
    edges = (np.asarray(history.columns[name][:made], float) for name in EDGE)
    numbers["realized_above"] = EdgeCounts.of(*edges).share_above
    if validation.shape[1]:
        numbers["best_validation_accuracy"] = _largest(validation[seen, 1])
    curves = _curves(dynamics, history, measures, steps, end)
    if end <= config.steps:
        return Outcome("diverged", curves=curves, **numbers)
    params = jnp.asarray(history.params)
    if config.batch_size is None:
        names = ("loss", "static_loss", "accuracy")
        numbers |= {name: float(history.columns[name][-1]) for name in names}
    else:
        numbers |= _of_all_examples(dynamics, params, config.steps, config.batch_size)
    if validation.shape[1]:
        numbers["validation_loss"], numbers["validation_accuracy"] = validation[-1].tolist()
    numbers |= _last(config, dynamics.problem, params, history.optimizer_state, measures)
    return Outcome("complete", curves=curves, **numbers)


def _of_all_examples(
    dynamics: Dynamics, params: Array, step: int, batch_size: int
) -> dict[str, float]:
    """Losses and accuracy on all training data, so many examples at a time."""
    static = dynamics.computed(dynamics.problem.static())
    weighted = dynamics.computed(_at_step(dynamics.problem, step))
    count = static.num_examples
    batches = np.split(np.arange(count), range(batch_size, count, batch_size))
    shares = [len(batch) / count for batch in batches]
    evaluated = [_of_batch(static, weighted, params, batch) for batch in batches]
    means = np.average(np.array(evaluated, float), axis=0, weights=shares)
    return dict(zip(("loss", "static_loss", "accuracy"), means.tolist(), strict=True))


@jax.jit
def _of_batch(
    static: Problem, weighted: Problem, params: Array, batch: Int[Array, " batch"]
) -> Float[Array, "3"]:
    _, evaluation = static.take(batch).evaluate(params, 0)
    loss = weighted.take(batch).objective(params, 0)
    return jnp.stack([loss, evaluation.static_loss, evaluation.accuracy])


def _largest(values: Float[np.ndarray, " values"]) -> float:
    return float(np.max(values)) if len(values) else np.nan


def _events(loss: np.ndarray, history: History, schedule: Schedule | None) -> dict[str, float]:
    """Numbers of the windows of oscillation, of all kinds, and of the steps within them."""
    cosine = history.columns["update_cosine"][: len(loss)]
    windows = find_oscillations(np.arange(len(loss)), loss, cosine)
    periods = periods_of_loss(loss)
    kinds = [_commonest(periods[w.onset : w.end + 1]) for w in windows]
    return {
        "instabilities": len(windows),
        "bursts": sum(window.burst for window in windows),
        "period_2": kinds.count(2),
        "period_4": kinds.count(4),
        "irregular": kinds.count(0),
        "oscillating_steps": sum(window.end - window.onset + 1 for window in windows),
        "period_2_steps": _count(periods, windows, 2),
        "period_4_steps": _count(periods, windows, 4),
        "onset_phase": _onset_phase(windows, schedule),
    }


def _count(periods: Int[np.ndarray, " steps"], windows: list[Oscillation], period: int) -> int:
    return sum(int(np.count_nonzero(periods[w.onset : w.end + 1] == period)) for w in windows)


def _onset_phase(windows: list[Oscillation], schedule: Schedule | None) -> float:
    """See `Outcome`. A window that lasts for a pulse or longer has no phase."""
    if not isinstance(schedule, Triangle) or schedule.amplitude == 1:
        return np.nan
    pulse, end = schedule.pulse_steps, schedule.static_from
    phases = [
        window.onset % pulse / pulse
        for window in windows
        if window.end - window.onset < pulse and (end is None or window.onset < end)
    ]
    return float(np.median(phases)) if phases else np.nan


def _commonest(periods: Int[np.ndarray, " steps"]) -> int:
    values, counts = np.unique(periods, return_counts=True)
    return int(values[np.argmax(counts)])


def _curves(
    dynamics: Dynamics,
    history: History,
    measures: Measures,
    steps: Int[np.ndarray, " points"],
    end: int,
) -> Float[np.ndarray, "points curves"]:
    """The curves; NaN from where the loss is not finite."""
    curves = np.full((len(steps), len(CURVES)), np.nan)
    kept = dict(zip(history.kept_steps.tolist(), history.kept, strict=True))
    validated = dict(zip(history.validation_steps.tolist(), history.validation, strict=True))
    for row, step in zip(curves, steps.tolist(), strict=True):
        if step >= end:
            break
        for name in ("loss", "static_loss", "accuracy"):
            row[CURVES.index(name)] = history.columns[name][step]
        column = CURVES.index("validation_loss")
        row[column : column + len(validated[step])] = validated[step]
        if measures.sharpness:
            frozen = _at_step(dynamics.problem, step)
            row[CURVES.index("sharpness")] = _value(sharpness(frozen, jnp.asarray(kept[step])))
    return curves


def _last(
    config: RunConfig, problem: Problem, params: Array, state: Any, measures: Measures
) -> dict[str, float]:
    """What is measured of the last parameters, and of the optimizer's state with them."""
    numbers: dict[str, float] = {}
    static = problem.static()
    if measures.sharpness:
        largest = sharpness(static, params)
        numbers["sharpness"] = _value(largest)
        numbers["sharpness_error"] = largest.residual if largest.converged else np.nan
        if config.batch_size is None:
            numbers |= _edge(config, static, params, state, numbers["sharpness"])
    if measures.ntk_examples:
        kernel = ntk_spectrum(static, params, num_examples=measures.ntk_examples, k=1)
        numbers["ntk"] = float(kernel.eigenvalues[0])
    return numbers


def _value(measurement: Measurement) -> float:
    """The value where it is certified, else NaN."""
    return measurement.value if measurement.converged else np.nan


def _edge(
    config: RunConfig, static: Problem, params: Array, state: Any, plain: float
) -> dict[str, float]:
    """The threshold at the last step and the eigenvalue that it bounds; nothing without one."""
    step = config.steps - 1
    optimizer = UpdateRule.of(config.optimizer, config.steps).optimizer
    try:
        if not is_adaptive(optimizer):
            update = FlatUpdate(optimizer, Layout.of(params))
            threshold = threshold_of(update, steps=(step,)).required_at(step)
            return {"threshold": threshold, "preconditioned_sharpness": plain}
        measured = stability(static, params, optimizer, opt_state=state, step=step)
    except ConfigError:
        return {}
    return {"threshold": measured.threshold, "preconditioned_sharpness": _value(measured)}


@dataclass(frozen=True)
class _Weighted:
    """A criterion whose targets hold the label and the weights; it compares by value."""

    criterion: Callable[[Array, Array], Array]

    def __call__(self, outputs: Array, targets: Array) -> Array:
        losses = self.criterion(outputs, targets[:, 0].astype(int))
        return losses * targets[:, 1:].reshape(len(targets), *losses.shape[1:]).astype(losses.dtype)


def _at_step(problem: Problem, step: int) -> Problem:
    """The problem with the weights of one step as part of the data.

    So one compilation serves all schedules.
    """
    if problem.example_weights is None:
        return problem
    weights = problem.example_weights(step, problem.targets)
    columns = weights.shape[1] if weights.ndim == 2 else 1
    each = jnp.broadcast_to(weights.reshape(-1, columns), (len(problem.targets), columns))
    labels = problem.targets[:, None].astype(each.dtype)
    targets = jnp.concatenate([labels, each], axis=1)
    return replace(
        problem, criterion=_Weighted(problem.criterion), targets=targets, example_weights=None
    )
