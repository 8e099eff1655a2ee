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
from dlf_dynamics.analysis.spectra.segments import as_source, solve_segment
from dlf_dynamics.analysis.spectra.solver import Solver
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle

VALUES = 100
"""Number of values of the parameter."""

TRANSIENT, RECORDED = 200, 60
"""Updates at each value before the orbit is recorded, and while it is recorded."""

REST, APART = 1e-3, 2.0
"""Distances from the centre at which orbits begin, in units of the run's own oscillation there."""

_LEAST_APART = 5e-3
"""Least such unit, as a fraction of the parameters' norm, for runs that do not oscillate."""

EXPONENTS = 25
"""Number of values of the parameter at which the largest Lyapunov exponent is computed."""

_EXPONENT_STEPS = 300


class Orbits(NamedTuple):
    """Oscillations at each value of the parameter.

    Attributes:
        projections: θ_t - c_t, with c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1), along the top eigenvector
            at the centre of the step; NaN where the orbit diverged.
        diverged: whether the orbit diverged.
    """

    projections: Float[np.ndarray, "values recorded"]
    diverged: Bool[np.ndarray, " values"]
    __repr__ = brief


@dataclass(frozen=True)
class FrozenDiagram:
    """Orbits of gradient descent on the frozen loss of one step.

    Orbits start about the centre of the run at that step, close to it and apart from it: where they
    end differently, the calm state and the oscillation coexist, or one of them has not yet died
    out. A sweep, in which each orbit starts where the last one ended, could not show that: cross
    entropy has no minimum on separable data, so that orbits do not come to rest and a sweep would
    return to a different point. The diagram shows the oscillation about a centre that keeps moving.
    Exponents and branches start from the state of the run itself.

    Attributes:
        step: number of the update whose loss is frozen.
        parameter: `learning_rate`, or `rate_factor` where the learning rate of a recorded optimizer
            is not known; `time` inside the pulse.
        actual: the run's own value of the parameter at that step.
        values: increasing values of the parameter, with `actual` among them; whole steps for the
            time.
        orbits: projections, as in `Orbits`, of the orbits that start at the centre, displaced by a
            thousandth of the run's oscillation; in files before version 4.2, at the run's state.
        diverged: whether the orbit diverged.
        exponent_values: values of the parameter at which there are exponents and branches, `actual`
            among them.
        exponents: largest Lyapunov exponent per update.
        overlap: mean squared overlap of its tangent vector with the top eigenvector, with momentum
            in the parameters and in the velocity together. A positive exponent of small overlap is
            a slow direction of negative curvature, not chaos.
        converged: whether the exponents converged.
        branch_centre: 1 - Eλ for the largest eigenvalue λ at the centre; below -1 it is beyond its
            flip.
        branch_opposed: fraction of the last updates that point against the one before: 1 on an
            orbit of period 2 or 4, less in irregular motion, 0 where nothing oscillates.
        branch_amplitude: amplitude of the orbit of period 2.
        branch_residual: residual of the rod equation.
        branch_multiplier: multiplier of that orbit, see `Branches`.
        branch_multiplier_residual: residual of its eigenvector.
        branch_neutral: number of multipliers near +1, or -1 where they were not counted.
        branch_stability: stability of that orbit, as bytes.
        apart: orbits that start at twice the run's oscillation from the centre; none in files
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
        """Bifurcations between neighbouring values of the parameter; see `_changes_of`."""
        return _changes_of(self)


class Change(NamedTuple):
    """A bifurcation between two values of the parameter.

    Attributes:
        label: PD of the centre or of the orbit of period 2; NS or LP/BP of that orbit.
        low: the smaller value.
        high: the larger value.
        height: where it is drawn: at 0 for the centre, else at the amplitude of the orbit.
    """

    label: str
    low: float
    high: float
    height: float


def _changes_of(diagram: FrozenDiagram) -> list[Change]:
    """Bifurcations between neighbouring values of the parameter.

    The centre flips where its multiplier, 1 - Eλ, passes -1: between two calm values, or between a
    calm value and an oscillation, which has another centre, if the extrapolation from the two
    nearest calm values passes -1. An oscillation that begins otherwise, as at kinks, is no flip.
    The orbit of period 2 loses or gains stability where `unstable` follows or precedes another
    verdict; the multiplier outside the unit circle shows where it was passed: at -1, at +1, or as a
    pair.
    """
    values, changes = diagram.exponent_values, list[Change]()
    calm = diagram.branch_opposed == 0
    unstable = diagram.branch_stability == b"unstable"
    quiet = np.isin(diagram.branch_stability, (b"stable", b"none found"))
    for here in range(len(values) - 1):
        span = float(values[here]), float(values[here + 1])
        for at, beyond, further in ((here, here + 1, here - 1), (here + 1, here, here + 2)):
            if calm[at] and _flips(diagram, at, beyond, further):
                changes.append(Change("PD", *span, 0.0))
            if unstable[at] and quiet[beyond]:
                height = float(np.mean(diagram.branch_amplitude[here : here + 2]))
                changes.append(Change(_passed(diagram.branch_multiplier[at]), *span, height))
    return changes


def _flips(diagram: FrozenDiagram, at: int, beyond: int, further: int) -> bool:
    """Whether the multiplier of a calm centre passes -1 on the way to the value beyond."""
    values, centre, opposed = diagram.exponent_values, diagram.branch_centre, diagram.branch_opposed
    if not centre[at] >= -1:
        return False
    if opposed[beyond] == 0:
        return bool(centre[beyond] < -1)
    if not (0 <= further < len(values) and opposed[further] == 0 and opposed[beyond] > 0):
        return False
    dcentre_dvalue = (centre[at] - centre[further]) / (values[at] - values[further])
    return bool(centre[at] + dcentre_dvalue * (values[beyond] - values[at]) <= -1)


def _passed(multiplier: complex) -> str:
    """Name of the bifurcation by which a multiplier has left the unit circle."""
    if abs(multiplier.imag) > 1e-6 * abs(multiplier):
        return "NS"
    return "PD" if multiplier.real < 0 else "LP/BP"


def frozen_diagrams(replay: Replay, solver: Solver, step: int) -> list[FrozenDiagram]:
    """Diagrams over the learning rate, and over the time inside the pulse where there are pulses.

    Where the learning rate is not known, the parameter is a factor that multiplies it.

    Args:
        replay: replay of a run of full-batch gradient descent, with momentum or without.
        solver: solver for the top eigenvector.
        step: number of the update whose loss is frozen.

    Raises:
        ValueError: for other runs, see `training_map`.
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
        _as_frozen(run, step, parameter, some, actual),
        TRANSIENT,  # and a few more, which are then recorded
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
    """Values for orbits, and for exponents and branches, with the run's own among both."""
    evenly = np.linspace(low, high, VALUES)
    if parameter == "time":  # only at whole steps the weights are those of the run
        evenly = np.round(evenly)
    return np.union1d(evenly, actual), np.union1d(evenly[:: VALUES // EXPONENTS], actual)


def _displaced(state: Array, centre: Centre, part: float) -> Array:
    """The state with parameters displaced from the centre along the top eigenvector.

    The displacement is a part of the oscillation. A velocity stays that of the state, as the
    eigenvector has no such components.
    """
    least = _LEAST_APART * float(np.linalg.norm(centre.params))
    distance = part * max(abs(float(centre.vector @ centre.offset)), least)
    params = jnp.asarray(centre.params + distance * centre.vector, state.dtype)
    return state.at[: len(params)].set(params)


def _orbits(
    map_: Map, state: Array, centre: Centre, part: float, values: Float[np.ndarray, " values"]
) -> Orbits:
    """Orbits that start displaced from the centre by a part of the oscillation."""
    direction = jnp.asarray(centre.vector)
    diagram = orbit_diagram(
        map_,
        _displaced(state, centre, part),
        values,
        Partial(_projection, direction),
        transient=TRANSIENT,
        recorded=RECORDED + 2,
        follow=False,
    )
    before, now, after = diagram.up[:, :-2], diagram.up[:, 1:-1], diagram.up[:, 2:]
    return Orbits((2 * now - before - after) / 4, diagram.diverged_up)


def _basis(direction: Array, size: int) -> Float[Array, "parts n"]:
    """The direction in the parameters and in the velocity, as with momentum both deviate."""
    basis = jnp.kron(jnp.eye(size // len(direction)), direction)
    return jnp.pad(basis, ((0, 0), (0, size - basis.shape[1])))


def _projection(direction: Array, state: Array) -> Array:
    return direction @ state[: len(direction)]


def _as_frozen(
    run: Run,
    step: int,
    parameter: TrainingParameter,
    values: Float[np.ndarray, " values"],
    actual: float,
) -> list[Frozen]:
    """The values of the parameter, with the learning rate and step that they stand for."""
    if parameter == "time":
        rate = equivalent_rate(run, step)
        return [Frozen(float(value), rate, round(float(value))) for value in values]
    # The critical eigenvalue is 2/E = a + b/factor, with a = 0 without weight decay.
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
    frozen: list[Frozen],
) -> Float[np.ndarray, " places"]:
    """See `branches.Sharpness`; uses the compiled program for iterates of the run."""
    tol = float(jnp.finfo(run.dtype).eps) ** 0.4
    solver = solver._replace(goal=solver.goal._replace(tol=tol))
    points = [
        dataclasses.replace(point, step=at.step, params=centre)
        for at, centre in zip(frozen, centres, strict=True)
    ]
    arrays = solve_segment(run, solver, as_source(points), points=("iterate",))
    values, status = (arrays[name][:, 0, 0] for name in ("eigenvalues", "status"))
    return np.where(status == CONVERGED, values, np.nan)
