"""Orbit diagrams of a run's training map with the loss frozen at one step, with exponents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Complex, Float, Int, Shaped

from dlf_dynamics.analysis.bifurcation.lyapunov import LyapunovSpectrum, lyapunov_spectra
from dlf_dynamics.analysis.bifurcation.maps import Map
from dlf_dynamics.analysis.bifurcation.orbits import orbit_diagram
from dlf_dynamics.analysis.instabilities.branches import Frozen, follow_branches
from dlf_dynamics.analysis.instabilities.location import Centre, centre_of
from dlf_dynamics.analysis.instabilities.training_map import (
    TrainingParameter,
    equivalent_rate,
    rate_at,
    training_map,
    training_state,
)
from dlf_dynamics.analysis.linalg.certificate import CONVERGED
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.spectra.segments import solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle

VALUES = 100
"""Values of the parameter."""

TRANSIENT, RECORDED = 200, 60
"""Updates at each value before the orbit is recorded, and while it is."""

EXPONENTS = 25
"""Values of the parameter at which the largest Lyapunov exponent is computed."""

_EXPONENT_STEPS = 300


@dataclass(frozen=True)
class FrozenDiagram:
    """What gradient descent would do on the loss of one step, were that frozen.

    All orbits start from the state of the run at that step. Cross entropy has no minimum on data
    that can be separated, so they do not come to rest: what is shown is their oscillation about a
    centre that goes on moving.

    Attributes:
        step: number of the update whose loss is frozen.
        parameter: `learning_rate`, or `rate_factor` where a recorded optimizer keeps that to
            itself; `time` inside the pulse.
        actual: the run's own value of it at that step.
        values: of the parameter, increasing, `actual` among them; of the time, whole steps.
        orbits: projections of θ_t - c_t, with c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1), on the top
            eigenvector at the centre of the step; NaN where the orbit diverged.
        diverged: whether the orbit did.
        exponent_values: values of the parameter at which there are exponents and branches, `actual`
            among them.
        exponents: largest Lyapunov exponent per update.
        overlap: mean squared overlap of its tangent vector with the top eigenvector, with momentum
            in the parameters and in the velocity together. A positive
            exponent of small overlap is a slow direction of negative curvature, not chaos.
        converged: whether the exponents did.
        branch_centre: 1 - Eλ of the largest eigenvalue λ at the centre; below -1 it is beyond its
            flip.
        branch_opposed: part of the last updates that point against the one before: 1 on an orbit of
            period 2 or 4, less in irregular motion, 0 where nothing oscillates.
        branch_amplitude: amplitude of the orbit of period 2.
        branch_residual: residual of the rod equation.
        branch_multiplier: complex.
        branch_multiplier_residual: residual of its eigenvector.
        branch_neutral: multipliers that were counted near +1.
        branch_stability: what is known of them, as bytes.
    """

    step: int
    parameter: str
    actual: float
    values: Float[np.ndarray, " values"]
    orbits: Float[np.ndarray, "values recorded"]
    diverged: Bool[np.ndarray, " values"]
    exponent_values: Float[np.ndarray, " exponent_values"]
    exponents: Float[np.ndarray, " exponent_values"]
    overlap: Float[np.ndarray, " exponent_values"]
    converged: Bool[np.ndarray, " exponent_values"]
    branch_centre: Float[np.ndarray, " exponent_values"]
    branch_opposed: Float[np.ndarray, " exponent_values"]
    branch_amplitude: Float[np.ndarray, " exponent_values"]
    branch_residual: Float[np.ndarray, " exponent_values"]
    branch_multiplier: Complex[np.ndarray, " exponent_values"]
    branch_multiplier_residual: Float[np.ndarray, " exponent_values"]
    branch_neutral: Int[np.ndarray, " exponent_values"]
    branch_stability: Shaped[np.ndarray, " exponent_values"]
    __repr__ = brief


def frozen_diagrams(replay: Replay, solver: Solver, step: int) -> list[FrozenDiagram]:
    """Against the learning rate, and against the time inside the pulse where there are pulses.

    Where the learning rate is not known, against the factor by which it is multiplied.

    Args:
        replay: of a run of full-batch gradient descent, with momentum or without.
        solver: for the top eigenvector.
        step: number of the update whose loss is frozen.

    Raises:
        ValueError: for other runs, as `training_map`.
    """
    run = replay.run
    rate = rate_at(run, step)
    ranges: dict[TrainingParameter, tuple[float, float, float]] = {"rate_factor": (0.25, 1.5, 1.0)}
    if rate is not None:
        ranges = {"learning_rate": (rate / 4, 3 * rate / 2, rate)}
    schedule = run.dynamics.schedule
    if isinstance(schedule, Triangle):
        begin = step - step % schedule.pulse_steps
        ranges["time"] = (begin, begin + schedule.pulse_steps - 1, step)
    (stretch,) = replay.stretches(step, step + 1)
    known = run, solver, stretch.point(step), centre_of(replay, solver, step)
    return [_diagram(*known, name, *span) for name, span in ranges.items()]


def _diagram(
    run: Run,
    solver: Solver,
    point: FlatState,
    centre: Centre,
    parameter: TrainingParameter,
    low: float,
    high: float,
    actual: float,
) -> FrozenDiagram:
    step, map_ = point.step, training_map(run, point.step, parameter)
    state = training_state(run.state(point))
    direction = jnp.asarray(centre.vector)
    values, some = _values(parameter, low, high, actual)
    orbits, diverged = _orbits(map_, state, values, direction)
    spectra = _exponents(map_, state, some, _basis(direction, len(state)), step)
    branches = follow_branches(
        map_,
        run.problem,
        state,
        direction,
        _places(run, step, parameter, some, actual),
        TRANSIENT,  # and a few more, into the steps that are recorded
        partial(_sharpness, run, solver, point),
        smooth=not run.kinks,
    )
    return FrozenDiagram(
        step=step,
        parameter=parameter,
        actual=float(actual),
        values=values,
        orbits=orbits,
        diverged=diverged,
        exponent_values=some,
        exponents=np.array([spectrum.exponents[0] for spectrum in spectra]),
        overlap=np.array([spectrum.overlap[0] for spectrum in spectra]),
        converged=np.array([spectrum.converged[0] for spectrum in spectra]),
        **{f"branch_{name}": part for name, part in branches._asdict().items() if name != "values"},
    )


def _values(
    parameter: TrainingParameter, low: float, high: float, actual: float
) -> tuple[Float[np.ndarray, " values"], Float[np.ndarray, " exponents"]]:
    """Values for orbits, and for exponents and branches, the run's own among both."""
    evenly = np.linspace(low, high, VALUES)
    if parameter == "time":  # the weights of whole steps are those of the run
        evenly = np.round(evenly)
    return np.union1d(evenly, actual), np.union1d(evenly[:: VALUES // EXPONENTS], actual)


def _orbits(
    map_: Map, state: Array, values: Float[np.ndarray, " values"], direction: Array
) -> tuple[Float[np.ndarray, "values recorded"], Bool[np.ndarray, " values"]]:
    """Projections of θ_t - c_t on the direction, and which orbits diverged."""
    found = orbit_diagram(
        map_,
        state,
        values,
        Partial(_projection, direction),
        transient=TRANSIENT,
        recorded=RECORDED + 2,
        follow=False,
    )
    before, now, after = found.up[:, :-2], found.up[:, 1:-1], found.up[:, 2:]
    return (2 * now - before - after) / 4, found.diverged_up


def _basis(direction: Array, size: int) -> Float[Array, "parts n"]:
    """The direction in the parameters and in the velocity: with momentum deviations are in both."""
    basis = jnp.kron(jnp.eye(size // len(direction)), direction)
    return jnp.pad(basis, ((0, 0), (0, size - basis.shape[1])))


def _projection(direction: Array, state: Array) -> Array:
    return direction @ state[: len(direction)]


def _places(
    run: Run,
    step: int,
    parameter: TrainingParameter,
    values: Float[np.ndarray, " values"],
    actual: float,
) -> list[Frozen]:
    """What values of the parameter mean for gradient descent."""
    if parameter == "time":
        rate = equivalent_rate(run, step)
        return [Frozen(float(value), rate, round(float(value))) for value in values]
    # The critical eigenvalue 2/E is a number plus one over the factor: plain, or with decay.
    whole, half = (2 / equivalent_rate(run, step, factor) for factor in (1.0, 0.5))
    limits = 2 * whole - half + (half - whole) * actual / values
    return [
        Frozen(float(v), float(2 / limit), step) for v, limit in zip(values, limits, strict=True)
    ]


def _exponents(
    map_: Map, state: Array, values: Float[np.ndarray, " exponents"], basis: Array, step: int
) -> list[LyapunovSpectrum]:
    return lyapunov_spectra(
        map_,
        state,
        values,
        1,
        _EXPONENT_STEPS,
        transient=TRANSIENT,
        key=jax.random.key(step),
        basis=basis,
    )


def _sharpness(
    run: Run,
    solver: Solver,
    point: FlatState,
    centres: Float[np.ndarray, "places params"],
    places: list[Frozen],
) -> Float[np.ndarray, " places"]:
    """See `branches.Sharpness`; found as at iterates of the run, by the same compiled program."""
    tol = float(jnp.finfo(run.dtype).eps) ** 0.4
    solver = solver._replace(goal=solver.goal._replace(tol=tol))
    points = [
        dataclasses.replace(point, step=place.step, params=centre)
        for place, centre in zip(places, centres, strict=True)
    ]
    lists = lambda most: [points[i : i + most] for i in range(0, len(points), most)]  # noqa: E731
    found = solve_segment(run, solver, lists, points=("iterate",))
    values, status = (found[name][:, 0, 0] for name in ("eigenvalues", "status"))
    return np.where(status == CONVERGED, values, np.nan)
