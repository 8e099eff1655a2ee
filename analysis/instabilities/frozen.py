"""Orbit diagrams of a run's training map with the loss frozen at one step, with exponents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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

REST, APART = 1e-3, 2.0
"""Distances from the centre at which orbits begin, in units of the run's own oscillation there."""

_LEAST_APART = 5e-3
"""Least such unit, as a part of the norm of the parameters: that of a run which does not oscillate.
"""

EXPONENTS = 25
"""Values of the parameter at which the largest Lyapunov exponent is computed."""

_EXPONENT_STEPS = 300


class Orbits(NamedTuple):
    """Oscillations at each value of the parameter.

    Attributes:
        projections: θ_t - c_t, with c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1), along the top eigenvector
            at the centre of the step; NaN where the orbit diverged.
        diverged: whether it did.
    """

    projections: Float[np.ndarray, "values recorded"]
    diverged: Bool[np.ndarray, " values"]
    __repr__ = brief


@dataclass(frozen=True)
class FrozenDiagram:
    """What gradient descent would do on the loss of one step, were that frozen.

    Orbits start about the centre of the run at that step, close to it and apart from it: where they
    end differently, the calm state and the oscillation are both there, or one of them had not yet
    died out. A sweep, in which each orbit starts where the last one ended, could not tell that:
    cross entropy has no minimum on data that can be separated, so that orbits do not come to rest,
    and a sweep would come back to another place. What is shown is their oscillation about a centre
    that goes on moving. Exponents and branches start from the state of the run itself.

    Attributes:
        step: number of the update whose loss is frozen.
        parameter: `learning_rate`, or `rate_factor` where a recorded optimizer keeps that to
            itself; `time` inside the pulse.
        actual: the run's own value of it at that step.
        values: of the parameter, increasing, `actual` among them; of the time, whole steps.
        orbits: projections, as in `Orbits`, of those that start at the centre, but for a thousandth
            of the run's oscillation; in files of before version 4.2, at the state of the run.
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
        apart: orbits that start from the centre by twice the run's oscillation; none in files of
            before version 4.2.
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
    apart: Orbits | None = None
    __repr__ = brief

    @property
    def changes(self) -> list[Change]:
        """Bifurcations between neighbouring values of the parameter; see `changes_of`."""
        return changes_of(self)


class Change(NamedTuple):
    """A bifurcation between two values of the parameter.

    Attributes:
        label: PD of the centre or of the orbit of period 2, NS or LP/BP of that orbit.
        low: the smaller value.
        high: the larger one.
        height: where it is drawn: 0 of the centre, else the amplitude of the orbit.
    """

    label: str
    low: float
    high: float
    height: float


def changes_of(diagram: FrozenDiagram) -> list[Change]:
    """Bifurcations between neighbouring values of the parameter.

    The centre flips where its multiplier, 1 - Eλ, passes -1 and nothing oscillates: between two
    calm values, or between a calm one and an oscillation, in which the centre is another one, if
    extrapolated from the two nearest calm values it passes -1 between these. An oscillation that
    begins otherwise, as at kinks, is no flip. The orbit of period 2 loses or gains stability where
    `unstable` follows or precedes another verdict; what its multiplier passes is told by the one
    outside: -1, +1, or the circle as a pair.
    """
    values, found = diagram.exponent_values, list[Change]()
    calm = diagram.branch_opposed == 0
    unstable = diagram.branch_stability == b"unstable"
    quiet = np.isin(diagram.branch_stability, (b"stable", b"none found"))
    for here in range(len(values) - 1):
        span = float(values[here]), float(values[here + 1])
        for at, beyond, further in ((here, here + 1, here - 1), (here + 1, here, here + 2)):
            if calm[at] and _flips(diagram, at, beyond, further):
                found.append(Change("PD", *span, 0.0))
            if unstable[at] and quiet[beyond]:
                height = float(np.mean(diagram.branch_amplitude[here : here + 2]))
                found.append(Change(_passed(diagram.branch_multiplier[at]), *span, height))
    return found


def _flips(diagram: FrozenDiagram, at: int, beyond: int, further: int) -> bool:
    """Whether the multiplier of a calm centre passes -1 on the way to the value beyond."""
    values, centre, opposed = diagram.exponent_values, diagram.branch_centre, diagram.branch_opposed
    if not centre[at] >= -1:
        return False
    if opposed[beyond] == 0:
        return bool(centre[beyond] < -1)
    if not (0 <= further < len(values) and opposed[further] == 0 and opposed[beyond] > 0):
        return False
    slope = (centre[at] - centre[further]) / (values[at] - values[further])
    return bool(centre[at] + slope * (values[beyond] - values[at]) <= -1)


def _passed(multiplier: complex) -> str:
    """Name of the bifurcation by which a multiplier has left the unit circle."""
    if abs(multiplier.imag) > 1e-6 * abs(multiplier):
        return "NS"
    return "PD" if multiplier.real < 0 else "LP/BP"


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
    rest, apart = (_orbits(map_, state, centre, part, values) for part in (REST, APART))
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
        orbits=rest.projections,
        diverged=rest.diverged,
        exponent_values=some,
        exponents=np.array([spectrum.exponents[0] for spectrum in spectra]),
        overlap=np.array([spectrum.overlap[0] for spectrum in spectra]),
        converged=np.array([spectrum.converged[0] for spectrum in spectra]),
        **{f"branch_{name}": part for name, part in branches._asdict().items() if name != "values"},
        apart=apart,
    )


def _values(
    parameter: TrainingParameter, low: float, high: float, actual: float
) -> tuple[Float[np.ndarray, " values"], Float[np.ndarray, " exponents"]]:
    """Values for orbits, and for exponents and branches, the run's own among both."""
    evenly = np.linspace(low, high, VALUES)
    if parameter == "time":  # the weights of whole steps are those of the run
        evenly = np.round(evenly)
    return np.union1d(evenly, actual), np.union1d(evenly[:: VALUES // EXPONENTS], actual)


def _displaced(state: Array, centre: Centre, part: float) -> Array:
    """The state with parameters off the centre by a part of the oscillation, along its top mode.

    A velocity stays that of the state, which the direction does not know of.
    """
    least = _LEAST_APART * float(np.linalg.norm(centre.params))
    distance = part * max(abs(float(centre.vector @ centre.offset)), least)
    params = jnp.asarray(centre.params + distance * centre.vector, state.dtype)
    return state.at[: len(params)].set(params)


def _orbits(
    map_: Map, state: Array, centre: Centre, part: float, values: Float[np.ndarray, " values"]
) -> Orbits:
    """Orbits that start off the centre by a part of the oscillation, along its top mode."""
    direction = jnp.asarray(centre.vector)
    found = orbit_diagram(
        map_,
        _displaced(state, centre, part),
        values,
        Partial(_projection, direction),
        transient=TRANSIENT,
        recorded=RECORDED + 2,
        follow=False,
    )
    before, now, after = found.up[:, :-2], found.up[:, 1:-1], found.up[:, 2:]
    return Orbits((2 * now - before - after) / 4, found.diverged_up)


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
