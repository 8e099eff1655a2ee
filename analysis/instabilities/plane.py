"""Curves of bifurcations in a plane of two parameters of a run, its loss frozen at one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Complex, Float, Int

from dlf_dynamics.analysis.bifurcation.bordered import CurveKind
from dlf_dynamics.analysis.bifurcation.continuation import continue_cycle
from dlf_dynamics.analysis.bifurcation.curves import Curve, continue_curve
from dlf_dynamics.analysis.bifurcation.cycles import MAX_UNKNOWNS, Cycle, find_cycle
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.normal_forms import Bifurcation
from dlf_dynamics.analysis.instabilities.moving import num_moving
from dlf_dynamics.analysis.instabilities.training_map import (
    TrainingParameter,
    rate_at,
    training_map,
)
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.config import BifurcationConfig
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.problem import Problem
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle
from dlf_dynamics.spans import plane_of

_MOST_CURVES = 4
"""Number of curves that are followed at most, the closest to the run's own values first."""

_LINE_POINTS = 10
"""Points on each line through the run's own values on which bifurcations are searched."""

_SAME = 2e-3
"""Distance from a curve, relative to the ranges, within which a bifurcation lies on it."""

_ISOLATED = 1e-9
"""Least distance of all multipliers from +1 for a fixed point to be continued."""

_EVALUATIONS = 20_000
"""Evaluations of loss and gradient on the way to the minimum, at most."""


@dataclass(frozen=True)
class PlanePoint:
    """A point of codimension two; see `SpecialPoint`.

    Attributes:
        label: its short name.
        kind: its name.
        first: the first parameter.
        second: the second parameter.
        residual: its error, relative to the ranges.
        converged: whether it was located.
    """

    label: str
    kind: str
    first: float
    second: float
    residual: float
    converged: bool


@dataclass(frozen=True)
class PlaneCurve:
    """A curve of bifurcations: a `Curve` without its states.

    Attributes:
        kind: which bifurcation it is.
        parameters: both parameters at each point.
        critical: the multiplier on the unit circle, as an eigenvalue.
        angles: angles of the critical multiplier, in radians.
        coefficients: coefficients of the normal form; NaN where it has none.
        unstable: number of other multipliers outside the unit circle: where there are any,
            stability does not change.
        residuals: residuals of cycle and bordered determinant.
        special: points of codimension two.
        status: why the curve ends, in a word or two.
        message: the same in a sentence.
    """

    kind: str
    parameters: Float[np.ndarray, "curve_points plane=2"]
    critical: Complex[np.ndarray, " curve_points"]
    angles: Float[np.ndarray, " curve_points"]
    coefficients: Float[np.ndarray, " curve_points"]
    unstable: Int[np.ndarray, " curve_points"]
    residuals: Float[np.ndarray, " curve_points"]
    special: list[PlanePoint]
    status: str
    message: str
    __repr__ = brief


@dataclass(frozen=True)
class Plane:
    """Bifurcations of gradient descent on the frozen loss of one step, in two parameters.

    Attributes:
        step: number of the update whose loss is frozen.
        names: names of the two parameters.
        class_label: the class whose weight is a parameter, if `class_weight` is one.
        ranges: lowest and highest value of each.
        actual: the run's own values at that step.
        path_steps: steps of the run at which its own values change.
        path: the values from these steps on.
        reason: why there are no curves; empty where the fixed point was found.
        largest: largest modulus of the fixed point's multipliers at the run's own values; NaN
            without one.
        distance: distance of the fixed point from the run's parameters, relative to the latter.
        curves: the curves, those that start closest to the run's own values first.
        left_out: bifurcations whose curves were not followed.
    """

    step: int
    names: tuple[str, str]
    class_label: int
    ranges: Float[np.ndarray, "plane=2 ends=2"]
    actual: Float[np.ndarray, "plane=2"]
    path_steps: Int[np.ndarray, " path"]
    path: Float[np.ndarray, "path plane=2"]
    reason: str
    largest: float
    distance: float
    curves: list[PlaneCurve]
    left_out: int
    __repr__ = brief


class _Axes(NamedTuple):
    """Names, ranges and actual values of the two parameters."""

    names: tuple[TrainingParameter, TrainingParameter]
    label: int
    ranges: tuple[tuple[float, float], tuple[float, float]]
    actual: Float[np.ndarray, "2"]


def require_plane(run: Run, config: BifurcationConfig) -> None:
    """Raises for a plane that cannot be computed for a run, before anything else is computed.

    Raises:
        ConfigError: when the run has no such parameters, too many unknowns, or no float64.
    """
    if config.plane == "none":
        return
    names: tuple = tuple(name for name, _ in plane_of(config.plane))
    _map(run, 0, names, 0)
    if str(run.dtype) != "float64":
        raise ConfigError(f"plane: the run is of {run.dtype}; expected one of dtype float64")
    size = run.num_params + _num_moving(run)
    if size > MAX_UNKNOWNS:
        raise ConfigError(
            f"plane: the state has {size} components; Jacobians are formed up to {MAX_UNKNOWNS}: "
            "use a smaller model"
        )


def plane(replay: Replay, config: BifurcationConfig, step: int) -> Plane:
    """Curves of bifurcations of the fixed point that the loss of a step leads to.

    Args:
        replay: a run of full-batch gradient descent, with momentum or without.
        config: settings with the names and ranges of two parameters.
        step: number of the update whose loss is frozen.

    Raises:
        ConfigError: for parameters that the run does not have.
    """
    run = replay.run
    axes = _axes(run, config, step)
    map_ = _map(run, step, axes.names, axes.label)
    (stretch,) = replay.stretches(step, step + 1)
    params = np.asarray(stretch.point(step).params)
    path_steps, path = _path(run, axes)
    cycle, reason = _fixed_point(run, map_, axes, params, step)
    curves, left_out, largest, distance = list[Curve](), 0, float("nan"), float("nan")
    if cycle is not None:
        curves, left_out = _curves(map_, cycle, axes)
        largest = float(np.max(np.abs(cycle.multipliers)))
        apart = cycle.points[0, : len(params)] - params
        distance = float(np.linalg.norm(apart) / np.linalg.norm(params))
    return Plane(
        step=step,
        names=axes.names,
        class_label=axes.label,
        ranges=np.array(axes.ranges, float),
        actual=axes.actual,
        path_steps=path_steps,
        path=path,
        reason=reason,
        largest=largest,
        distance=distance,
        curves=[_recorded(curve) for curve in curves],
        left_out=left_out,
    )


def _axes(run: Run, config: BifurcationConfig, step: int) -> _Axes:
    """The parameters of the plane, checked against the run's own values."""
    (first, low_high), (second, other) = plane_of(config.plane)
    names: tuple = first, second
    weights = np.asarray(run.dynamics.schedule(jnp.int32(step)))
    label = int(np.argmax(weights))
    actual = np.array([_actual(run, name, step, label) for name in names])
    given = (low_high, other)
    ranges = tuple(
        span or _usual(run, name, value, step)
        for name, value, span in zip(names, actual, given, strict=True)
    )
    for name, value, (low, high) in zip(names, actual, ranges, strict=True):
        if not low <= value <= high or not low < high:
            raise ConfigError(
                f"plane: the run's own {name} at step {step} is {value:g}; expected a range with "
                f"it, not {low:g}:{high:g}"
            )
    return _Axes(names, label, ranges, actual)  # type: ignore[arg-type]


def _actual(run: Run, name: str, step: int, label: int) -> float:
    """The run's own value of a parameter at a step."""
    schedule = run.dynamics.schedule
    if name == "learning_rate":
        return rate_at(run, step) or float("nan")
    if name in ("amplitude", "period"):
        return float(getattr(schedule, name))
    if name == "class_weight":
        return float(schedule(jnp.int32(step))[label])
    if name == "momentum":
        return run.config.optimizer.momentum
    return 1.0


def _usual(run: Run, name: str, value: float, step: int) -> tuple[float, float]:
    """The default range of a parameter."""
    schedule = run.dynamics.schedule
    if name == "amplitude":
        return 1.0, 2 * max(value, 2.0)
    if name == "period" and isinstance(schedule, Triangle):
        # A shorter pulse is over by the frozen step, whose loss no longer depends on the period.
        since = step % schedule.pulse_steps
        return max(min(1.1 * since, (since + value) / 2), 1.0), 2 * value
    if name == "momentum":
        return 0.0, 0.99
    if name == "class_weight":
        return 0.0, float(len(schedule(jnp.int32(0))))
    return value / 4, 4 * value


def _map(
    run: Run, step: int, names: tuple[TrainingParameter, TrainingParameter], label: int
) -> Map:
    try:
        return training_map(run, step, names, class_label=label)
    except ValueError as error:
        raise ConfigError(f"plane: {error}") from error


def _path(run: Run, axes: _Axes) -> tuple[Int[np.ndarray, " path"], Float[np.ndarray, "path 2"]]:
    """The run's own values at the steps where they change."""
    steps = np.arange(run.source.last_step + 1)
    columns = []
    for name, value in zip(axes.names, axes.actual, strict=True):
        column = np.full(len(steps), value)
        if name == "learning_rate":
            rates = np.broadcast_to(
                jax.vmap(run.dynamics.learning_rate)(jnp.asarray(steps)), steps.shape
            )
            column = np.where(np.isfinite(rates), rates, column)
        if name == "class_weight":
            column = np.asarray(jax.vmap(run.dynamics.schedule)(jnp.asarray(steps)))[:, axes.label]
        columns.append(column)
    path = np.column_stack(columns)
    changed = np.append(True, np.any(path[1:] != path[:-1], axis=1))
    return steps[changed], path[changed]


@jax.jit
def _loss_and_gradient(problem: Problem, params: Array, step: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(problem.objective)(params, step)


def _fixed_point(
    run: Run, map_: Map, axes: _Axes, params: Float[np.ndarray, " params"], step: int
) -> tuple[Cycle | None, str]:
    """The minimum of the frozen loss that lies downhill of the run, or why there is none."""
    if run.kinks:
        return None, (
            "no curves: the training map of a network with kinks is smooth in pieces only, and its "
            "derivatives tell nothing beyond one; take a smooth activation such as tanh"
        )

    def value(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        loss, gradient = _loss_and_gradient(run.problem, jnp.asarray(point), jnp.int32(step))
        return np.asarray(loss), np.asarray(gradient)

    options = {"maxfun": _EVALUATIONS, "maxiter": _EVALUATIONS, "maxcor": 20, "gtol": 1e-10}
    options["ftol"] = 0.0
    lowest = scipy.optimize.minimize(value, params, jac=True, method="L-BFGS-B", options=options).x
    start = np.pad(lowest, (0, _num_moving(run)))  # at rest
    line, rate = map_.along(axes.actual, 0), float(axes.actual[0])
    cycle = find_cycle(line, start, rate, 1)
    why = ""
    if not cycle.converged:
        why = cycle.message
    elif np.min(np.abs(cycle.multipliers - 1)) < _ISOLATED:
        why = "it is not isolated: a multiplier is +1 to rounding"
    elif np.any((np.real(cycle.multipliers) > 1) & (np.abs(np.imag(cycle.multipliers)) == 0)):
        why = "what was found is a saddle of the loss"
    if not why:
        return cycle, ""
    advice = (
        "cross entropy has no minimum on data that can be separated; a squared error with loss.l2 "
        "has isolated ones"
    )
    return None, f"no fixed point to continue from: {why} ({advice})"


def _num_moving(run: Run) -> int:
    """Components of the optimizer's state that are part of the map's state."""
    return num_moving(run.dynamics.state_layout(jnp.zeros(run.num_params, run.dtype)))


def _curves(map_: Map, cycle: Cycle, axes: _Axes) -> tuple[list[Curve], int]:
    """Curves through the bifurcations on both lines through the run's own values."""
    spans = np.array([high - low for low, high in axes.ranges])
    starts: list[tuple[Float[np.ndarray, "2"], Bifurcation]] = []
    for index, until in enumerate(axes.ranges):
        line, parameter = map_.along(axes.actual, index), float(axes.actual[index])
        step = float(spans[index]) / _LINE_POINTS
        branch = continue_cycle(line, cycle.points, parameter, 1, until=until, step=step)
        for bifurcation in branch.bifurcations:
            at = axes.actual.copy()
            at[index] = bifurcation.parameter
            if bifurcation.converged and bifurcation.kind in get_args(CurveKind):
                starts.append((at, bifurcation))
    starts.sort(key=lambda start: float(np.linalg.norm((start[0] - axes.actual) / spans)))
    curves, left_out = list[Curve](), 0
    for at, bifurcation in starts:
        if any(_lies_on(at, bifurcation, curve, spans) for curve in curves):
            continue
        if len(curves) == _MOST_CURVES:
            left_out += 1
            continue
        curves.append(
            continue_curve(map_, bifurcation, at, until=axes.ranges, parameters=axes.names)
        )
    return curves, left_out


def _lies_on(
    at: Float[np.ndarray, "2"],
    bifurcation: Bifurcation,
    curve: Curve,
    spans: Float[np.ndarray, "2"],
) -> bool:
    """Whether a bifurcation lies on a curve of its kind, between two of its points."""
    if curve.kind != bifurcation.kind or len(curve.parameters) < 2:
        return False
    points = (curve.parameters - at) / spans
    sides = np.diff(points, axis=0)
    lengths = np.maximum(np.sum(sides**2, axis=1), np.finfo(float).tiny)
    part = np.clip(-np.sum(points[:-1] * sides, axis=1) / lengths, 0, 1)
    return bool(np.min(np.linalg.norm(points[:-1] + part[:, None] * sides, axis=1)) < _SAME)


def _recorded(curve: Curve) -> PlaneCurve:
    """The parts of a curve that are kept."""
    sizes = np.sort(np.abs(curve.multipliers), axis=1)
    apart = np.abs(sizes - 1) > 1e-7
    return PlaneCurve(
        kind=curve.kind,
        parameters=curve.parameters,
        critical=curve.critical,
        angles=curve.angles,
        coefficients=curve.coefficients,
        unstable=np.sum(apart & (sizes > 1), axis=1),
        residuals=curve.residuals,
        special=[
            PlanePoint(
                point.label,
                point.kind,
                *map(float, point.parameters),
                residual=point.residual,
                converged=point.converged,
            )
            for point in curve.special
        ],
        status=curve.status,
        message=curve.message,
    )
