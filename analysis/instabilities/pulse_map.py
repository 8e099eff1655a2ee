"""`pulse_map`: growth of perturbations over a pulse of a run, or over a cycle of pulses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Complex, Float

from dlf_dynamics.analysis.bifurcation.multipliers import (
    Leading,
    dense_multipliers,
    leading_multipliers,
)
from dlf_dynamics.analysis.instabilities.propagator import Propagator
from dlf_dynamics.analysis.linalg.graded import SingularTriplets, top_singular
from dlf_dynamics.analysis.spectra.replay import FAITHFUL, Replay
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run
from dlf_dynamics.schedules import Triangle

CLOSED = 1e-6
"""Distance by which an orbit may miss its start, relative to how far it gets from there."""

BEYOND = 1e-3
"""Distance from the unit circle beyond which a multiplier counts as off it, as an orbit closes to
some digits only."""

_DENSE = 200
"""Order up to which all multipliers are computed."""

_ROUNDING = 8
"""Units in the last place within which two states count as the same."""

_ROUGHLY = 1e-2
"""Fraction of its size by which an orbit may miss its start at most, where rounding decides."""


@dataclass(frozen=True)
class PulseMap:
    """The map M of perturbations over the steps of a pulse, or of a cycle: all classes once.

    M is the product of the linearised updates of the whole state along the replayed steps: of the
    parameters, and of a velocity or Adam's two means.

    Attributes:
        kind: `pulse` or `cycle`.
        number: which one, counted from 0.
        first_step: step of its first update.
        last_step: step of the state after its last update, and so the first of the next one.
        class_label: the class that is emphasised; -1 for a cycle.
        num_params: length of the parameter vector, with which a state begins.
        singular_values: σ, growth of a perturbation over these steps in the norm of the whole
            state, in decreasing order; infinite where it exceeds the largest number.
        decades: log10 of the singular values, also where these are infinite; NaN where products are
            not finite.
        residuals: ‖Mᵀu - σv‖/σ, from products made anew; see `graded.SingularTriplets`.
        converged: whether the residual is at most the tolerance of the search.
        directions: v, the perturbations that grow by these factors, of unit length.
        parameter_share: fraction of |v|² that lies in the parameters.
        closed: whether the orbit closes, in all of the state, and the updates repeat.
        reason: why it does not close, or why that is not known; empty where it closes.
        distance: how far the state misses its start, relative to how far it gets from there; that
            of the parameters or of a part of the optimizer's state, whichever misses it most.
        tolerance: largest distance that counts as closed; larger where rounding decides.
        multipliers: Floquet multipliers of largest modulus, without neutral ones; empty unless the
            orbit closes.
        multiplier_residuals: ‖Mx - μx‖, from products made anew.
        multiplier_errors: ten times the residual times the condition number of the multiplier.
        neutral: multipliers within 0.02 of +1 that were found and are not listed, being not surely
            outside the unit circle; -1 unless the orbit closes.
        stability: `stable`, `none found`, `unstable` or `unknown`; empty unless the orbit closes.
        crossing: where an unstable multiplier lies: `flip` (beyond -1), `+1`, or `Neimark-Sacker`
            (a pair); else empty.
        products: number of products of M and its transpose with single vectors that were made.
        note: how closely the replay met the checkpoints.
        deviation: largest relative distance by which it missed one.
        kinks: operations of the loss whose derivative jumps; where there are any, M holds for
            perturbations that flip no gate.
    """

    kind: str
    number: int
    first_step: int
    last_step: int
    class_label: int
    num_params: int
    singular_values: Float[np.ndarray, " modes"]
    decades: Float[np.ndarray, " modes"]
    residuals: Float[np.ndarray, " modes"]
    converged: Bool[np.ndarray, " modes"]
    directions: Float[np.ndarray, "modes state"]
    parameter_share: Float[np.ndarray, " modes"]
    closed: bool
    reason: str
    distance: float
    tolerance: float
    multipliers: Complex[np.ndarray, " multipliers"]
    multiplier_residuals: Float[np.ndarray, " multipliers"]
    multiplier_errors: Float[np.ndarray, " multipliers"]
    neutral: int
    stability: str
    crossing: str
    products: int
    note: str
    deviation: float
    kinks: str
    __repr__ = brief


class Pulses(NamedTuple):
    """Where the pulses of a run are.

    Attributes:
        steps: steps of a pulse.
        classes: pulses of a cycle.
        start: first step whose state is known.
        stop: step from which on there are no pulses, or no states.
        static: whether that is because all weights are 1 from there on.
    """

    steps: int
    classes: int
    start: int
    stop: int
    static: bool

    def span(self, kind: str, number: int) -> tuple[int, int]:
        """First step of a pulse or a cycle, and first step of the next one."""
        length = self.steps * (self.classes if kind == "cycle" else 1)
        return number * length, (number + 1) * length

    def whole(self, kind: str, start: float, stop: float) -> list[int]:
        """Numbers of the pulses or cycles that lie within some steps, and have all their states."""
        length = self.span(kind, 0)[1]
        first, last = max(int(start), self.start), int(min(stop, self.stop))
        return list(range(-(-first // length), last // length))


def pulses_of(run: Run) -> Pulses:
    """Where the pulses of a run are, if its steps can be replayed.

    Raises:
        ConfigError: when the run has no pulses, or its updates have no derivative.
    """
    if not run.own_updates or run.dynamics.batch_size is not None:
        raise ConfigError(
            f"{run.path} has mini-batches, or updates that cannot be replayed; expected a "
            "full-batch run of pulses with its optimizer"
        )
    precision = run.dynamics.precision
    if precision is not None:
        raise ConfigError(
            f"the parameters of {run.path} are rounded to {precision} at each step, which has no "
            "derivative; expected a run in float64 or float32"
        )
    schedule = run.dynamics.schedule
    if not isinstance(schedule, Triangle):
        schedule = getattr(run.problem.example_weights, "schedule", schedule)
    if not isinstance(schedule, Triangle):
        raise ConfigError(
            f"the schedule of {run.path} is {type(schedule).__name__}, which has no pulses that "
            "are known; expected triangular pulses (schedule.name triangle)"
        )
    start, stop = int(run.checkpoint_steps[0]), Replay(run).last
    ones = stop + 1 if schedule.static_from is None else schedule.static_from
    return Pulses(
        schedule.pulse_steps, schedule.num_classes, start, min(ones, stop), static=ones <= stop
    )


def pulse_map(
    run: Run,
    pulse: int | None = None,
    k: int = 3,
    *,
    cycle: int | None = None,
    tol: float | None = None,
    closing: float = CLOSED,
    max_products: int = 100,
    seed: int = 0,
) -> PulseMap:
    """The map of perturbations over a pulse of a run, or over a cycle of pulses.

    Where the orbit closes to a tolerance, in all of the state, and the updates repeat, the
    eigenvalues of the map are its Floquet multipliers. Where it does not close, only the growth is
    computed: singular values and directions.

    Args:
        run: a full-batch run with triangular pulses.
        pulse: number of the pulse, from 0.
        k: number of singular values, and of multipliers.
        cycle: number of a cycle, in place of a pulse.
        tol: residual that counts as converged, relative to each singular value; none means 1e-4.
        closing: distance by which a closed orbit may miss its start, relative to its size.
        max_products: products at most for the singular values.
        seed: seed of the random start.

    Raises:
        ConfigError: when there is no such pulse, or its steps cannot be replayed.
    """
    if (pulse is None) == (cycle is None):
        raise ConfigError("pulse and cycle are both given, or neither is; expected one of them")
    kind, number = ("pulse", pulse) if cycle is None else ("cycle", cycle)
    assert number is not None
    replay, pulses = Replay(run), pulses_of(run)
    first, stop = _span(run, pulses, kind, number)
    chain = Propagator(replay, first, stop)
    k = min(k, chain.size)
    triplets = top_singular(
        chain, k, tol=1e-4 if tol is None else tol, max_products=max_products, seed=seed
    )
    closed = _closing(chain, pulses, kind, replay, closing)
    multipliers = None if closed.reason else _multipliers(chain, k)
    return PulseMap(
        kind=kind,
        number=number,
        first_step=first,
        last_step=stop,
        class_label=-1 if kind == "cycle" else number % pulses.classes,
        num_params=run.num_params,
        **_of_growth(triplets, run.num_params),
        closed=not closed.reason,
        **closed._asdict(),
        **_of_multipliers(multipliers),
        products=chain.products,
        note=replay.note,
        deviation=replay.deviation,
        kinks=", ".join(run.kinks),
    )


def _of_growth(triplets: SingularTriplets, num_params: int) -> dict[str, Any]:
    """The fields of `PulseMap` on growth."""
    with np.errstate(over="ignore"):
        values = np.exp(triplets.logarithms)
    return {
        "singular_values": values,
        "decades": triplets.logarithms / np.log(10),
        "residuals": triplets.residuals,
        "converged": triplets.converged,
        "directions": triplets.right,
        "parameter_share": np.sum(triplets.right[:, :num_params] ** 2, axis=1),
    }


def _multipliers(chain: Propagator, k: int) -> Leading:
    """The Floquet multipliers of a closed orbit."""
    if chain.size <= _DENSE:
        return dense_multipliers(chain.forward(np.eye(chain.size)).T, k, margin=BEYOND)
    return leading_multipliers(
        lambda vector: chain.forward(vector[None])[0],
        chain.size,
        k,
        margin=BEYOND,
        rounding=10 * chain.rounding,
    )


def _of_multipliers(leading: Leading | None) -> dict[str, Any]:
    """The fields of `PulseMap` on multipliers; empty where the orbit does not close."""
    return {
        "multipliers": np.zeros(0, complex) if leading is None else leading.values,
        "multiplier_residuals": np.zeros(0) if leading is None else leading.residuals,
        "multiplier_errors": np.zeros(0) if leading is None else leading.errors,
        "neutral": -1 if leading is None else leading.neutral,
        "stability": "" if leading is None else leading.stability,
        "crossing": "" if leading is None else leading.crossing,
    }


def _span(run: Run, pulses: Pulses, kind: str, number: int) -> tuple[int, int]:
    """The steps of a pulse or a cycle.

    Raises:
        ConfigError: when the run does not have all of them.
    """
    first, stop = pulses.span(kind, number)
    there = pulses.whole(kind, 0, np.inf)
    if number in there:
        return first, stop
    known = f"{there[0]} to {there[-1]}" if there else "none, as none is whole"
    why = "all weights are 1 from there on" if pulses.static else "the run ends there"
    raise ConfigError(
        f"{kind} {number} of {run.path} is the steps {first} to {stop - 1}, but there are pulses "
        f"in the steps {pulses.start} to {pulses.stop - 1} only ({why}); expected {known}"
    )


class _Closing(NamedTuple):
    """See `PulseMap`."""

    reason: str
    distance: float
    tolerance: float


def _closing(chain: Propagator, pulses: Pulses, kind: str, replay: Replay, tol: float) -> _Closing:
    """Whether an orbit closes, each part of its state on its own scale, and its updates repeat."""
    far = dict.fromkeys(chain.parts, 0.0)
    for states in chain.states():
        for name, part in chain.parts.items():
            reach = np.linalg.norm(states[:, part] - chain.start[part], axis=1)
            far[name] = max(far[name], float(np.max(reach)))
    eps, misses = float(np.finfo(replay.run.dtype).eps), []
    rest: dict[str, float] = {}
    for name, part in chain.parts.items():
        gap = float(np.linalg.norm(chain.end[part] - chain.start[part]))
        size, floor = max(far[name], gap), _ROUNDING * eps * np.linalg.norm(chain.start[part])
        still = size <= floor  # rounding alone moves it
        allowed = max(tol, 0.0 if still else float(floor / size))
        misses.append((0.0 if still else gap / size, allowed, name))
        rest[name] = float(max(floor, allowed * size))
    distance, allowed, name = max(misses, key=lambda miss: miss[0] / miss[1])
    reason = ""
    if not np.isfinite(distance):
        reason = "the states are not finite"
    elif replay.deviation > FAITHFUL:
        reason = f"not known, as {replay.note}"
    elif distance > allowed:
        reason = f"{name} end {distance:.2g} of the orbit's size from where they began"
    elif allowed > max(tol, _ROUGHLY):
        reason = f"not known: rounding of {replay.run.dtype} hides whether {name} return"
    else:
        reason = _why_not_repeated(chain, pulses, kind, tol, rest)
    return _Closing(reason, distance, allowed)


def _why_not_repeated(
    chain: Propagator, pulses: Pulses, kind: str, tol: float, rest: dict[str, float]
) -> str:
    """Why the updates after a state that returns are others; empty where they repeat."""
    moved, turned = chain.repeats()
    same = all(np.linalg.norm(moved[part]) <= rest[name] for name, part in chain.parts.items())
    if same and turned <= tol:
        return ""
    if kind == "pulse" and pulses.classes > 1:
        return "the state returns, but the next pulse is of another class; a cycle can close"
    return (
        "the state returns, but the updates after it are others (learning rate, bias corrections "
        "or class weights)"
    )
