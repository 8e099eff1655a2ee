"""Orbit diagrams of a run's training map with the loss frozen at one step, with exponents."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from dlf_dynamics.analysis.bifurcation.branches import Branches, Frozen, follow_branches
from dlf_dynamics.analysis.bifurcation.diagrams import orbit_diagram
from dlf_dynamics.analysis.bifurcation.location import Centre, centre_of
from dlf_dynamics.analysis.bifurcation.lyapunov import LyapunovSpectrum, lyapunov_exponents
from dlf_dynamics.analysis.bifurcation.maps import (
    Map,
    TrainingParameter,
    rate_at,
    training_map,
    training_state,
)
from dlf_dynamics.analysis.replay import Replay
from dlf_dynamics.analysis.trajectory import Solver
from dlf_dynamics.dynamics import State
from dlf_dynamics.reprs import brief
from dlf_dynamics.schedules import Triangle

VALUES = 100
"""Values of the parameter."""

TRANSIENT, RECORDED = 200, 60
"""Updates at each value before the orbit is recorded, and while it is."""

EXPONENTS = 25
"""Values of the parameter at which the largest Lyapunov exponent is computed."""

EXPONENT_STEPS = 300


@dataclass(frozen=True)
class FrozenDiagram:
    """What gradient descent would do on the loss of one step, were that frozen.

    All orbits start from the state of the run at that step. Cross entropy has no minimum on data
    that can be separated, so they do not come to rest: what is shown is their oscillation about a
    centre that goes on moving.

    Attributes:
        step: at which the loss is frozen.
        parameter: `learning_rate`, or `time` inside the pulse.
        actual: the run's own value of it at that step.
        values: of the parameter, increasing.
        orbits: projections of θ_t - c_t, with c_t = ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1), on the top
            eigenvector at the centre of the step; NaN where the orbit diverged.
        diverged: whether it did.
        exponent_values: values of the parameter at which there are exponents.
        exponents: largest Lyapunov exponent per update.
        overlap: mean squared overlap of its tangent vector with the top eigenvector. A positive
            exponent of small overlap is a slow direction of negative curvature, not chaos.
        converged: of the exponents.
        branch_centre: see `Branches.centre`, at the values of the exponents; of gradient descent
            without momentum only, NaN else.
        branch_amplitude: see `Branches.amplitude`.
        branch_multiplier: see `Branches.multiplier`.
    """

    step: int
    parameter: str
    actual: float
    values: Float[np.ndarray, " values"]
    orbits: Float[np.ndarray, "values recorded"]
    diverged: Bool[np.ndarray, " values"]
    exponent_values: Float[np.ndarray, " exponents"]
    exponents: Float[np.ndarray, " exponents"]
    overlap: Float[np.ndarray, " exponents"]
    converged: Bool[np.ndarray, " exponents"]
    branch_centre: Float[np.ndarray, " exponents"]
    branch_amplitude: Float[np.ndarray, " exponents"]
    branch_multiplier: Float[np.ndarray, " exponents"]
    __repr__ = brief


def frozen_diagrams(replay: Replay, solver: Solver, step: int) -> list[FrozenDiagram]:
    """Against the learning rate, and against the time inside the pulse where there are pulses.

    Args:
        replay: of a run of full-batch gradient descent, with momentum or without.
        solver: for the top eigenvector.
        step: at which the loss is frozen.

    Raises:
        ValueError: for other runs, as `training_map`.
    """
    run = replay.run
    rate = rate_at(run, step)
    ranges: dict[TrainingParameter, tuple[float, float, float]] = {
        "learning_rate": (rate / 4, 3 * rate / 2, rate)
    }
    schedule = run.dynamics.schedule
    if isinstance(schedule, Triangle):
        begin = step - step % schedule.pulse_steps
        ranges["time"] = (begin, begin + schedule.pulse_steps - 1, step)
    centre = centre_of(replay, solver, step)
    return [_diagram(replay, centre, step, name, *span) for name, span in ranges.items()]


def _diagram(
    replay: Replay,
    centre: Centre,
    step: int,
    parameter: TrainingParameter,
    low: float,
    high: float,
    actual: float,
) -> FrozenDiagram:
    run = replay.run
    map_ = training_map(run, step, parameter)
    state = training_state(_state(replay, step))
    velocity = np.zeros(len(state) - run.num_params)
    direction = jnp.asarray(np.concatenate([centre.vector, velocity]))
    values = np.linspace(low, high, VALUES)
    orbits, diverged = _orbits(map_, state, values, direction)
    some = values[:: VALUES // EXPONENTS]
    spectra = [_exponent(map_, state, value, direction, step) for value in some]
    branches = _branches(replay, map_, state, direction, step, parameter, some)
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
        branch_centre=branches.centre,
        branch_amplitude=branches.amplitude,
        branch_multiplier=branches.multiplier,
    )


def _orbits(
    map_: Map, state: Array, values: Float[np.ndarray, " values"], direction: Array
) -> tuple[Float[np.ndarray, "values recorded"], Bool[np.ndarray, " values"]]:
    """Projections of θ_t - c_t on the direction, and which orbits diverged."""
    found = orbit_diagram(
        map_,
        state,
        values,
        Partial(jnp.dot, direction),
        transient=TRANSIENT,
        recorded=RECORDED + 2,
        follow=False,
    )
    before, now, after = found.up[:, :-2], found.up[:, 1:-1], found.up[:, 2:]
    return (2 * now - before - after) / 4, found.diverged_up


def _branches(
    replay: Replay,
    map_: Map,
    state: Array,
    direction: Array,
    step: int,
    parameter: TrainingParameter,
    values: Float[np.ndarray, " values"],
) -> Branches:
    run = replay.run
    if len(state) > run.num_params:
        nothing = np.full(len(values), np.nan)
        return Branches(values, nothing, nothing, nothing)
    rate = rate_at(run, step)
    places = [
        Frozen(float(value), float(value), step)
        if parameter == "learning_rate"
        # The weights of whole steps are those of the map.
        else Frozen(float(np.round(value)), rate, round(float(value)))
        for value in values
    ]
    return follow_branches(map_, run.problem, state, direction, places, TRANSIENT + RECORDED)


def _exponent(
    map_: Map, state: Array, value: float, direction: Array, step: int
) -> LyapunovSpectrum:
    return lyapunov_exponents(
        map_,
        state,
        value,
        1,
        EXPONENT_STEPS,
        transient=TRANSIENT,
        key=jax.random.key(step),
        basis=direction[None],
    )


def _state(replay: Replay, step: int) -> State:
    (stretch,) = replay.stretches(step, step + 1)
    return replay.run.state(stretch.point(step))
