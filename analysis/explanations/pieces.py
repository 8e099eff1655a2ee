"""Linear pieces of a network with ReLU: gates that flip, and what they do to its derivatives.

With its gates held as they are at some parameters, a network with ReLU is smooth in all others, so
what the change of pieces does can be told apart from what happens within one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.layout import Layout
from dlf_dynamics.models import Convolutional, FullyConnected, make_model
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run
from dlf_dynamics.trained import TrainedRun

Model = FullyConnected | Convolutional


@dataclass(frozen=True)
class GateFlips:
    """Gates of a hidden layer that change: of hidden units times examples.

    Attributes:
        layer: number of the layer, from 1.
        gates: number of its gates.
        next_step: number of gates that differ between θ_t and θ_(t+1).
        over_period: number of gates that differ after the steps of the period.
    """

    layer: int
    gates: int
    next_step: int
    over_period: int


@dataclass(frozen=True)
class GradientChange:
    """The change of the gradient from θ_t to θ_(t+1) in parts, each a share of it; they sum to 1.

    The share of a part is its projection on the whole change, so one may be negative or above 1.
    The loss is that of step t at both; for gradient descent these are shares of the change of the
    update. The curvatures are the same along the step δ = θ_(t+1) - θ_t: each part times δ, over
    δᵀδ. They sum to that of the secant, by which the gradient changes along δ.

    Attributes:
        about: where the gradient is linearised, the `iterate` θ_t or the `centre`.
        linear: share of the linearised gradient, H (θ_(t+1) - θ_t), within the piece there.
        within: what the loss bends further within this piece.
        pieces: share of the gates that flip; NaN where the gates are not known, or there
            are none.
        left: norm of what the linearised gradient does not explain, as a part of the change.
        linear_curvature: curvature of the linear part along the step.
        within_curvature: likewise.
        pieces_curvature: likewise.
        secant: curvature along the step by the whole change, the sum of the three.
    """

    about: str
    linear: float
    within: float
    pieces: float
    left: float
    linear_curvature: float
    within_curvature: float
    pieces_curvature: float
    secant: float


class Pieces(NamedTuple):
    """What is known of the pieces between a step and those after it.

    Attributes:
        gates: flips by layer; empty where gates are not known, or there are none.
        changes: changes of the gradient, linearised at the iterate and at the centre.
        curvature_before: vᵀHv of the mode v at the centre, with the gates of θ_t.
        curvature_after: the same with those of θ_(t+1).
        phases: vᵀHv at θ_t, θ_(t+1), ..., over the steps of the period, and one after.
    """

    gates: list[GateFlips]
    changes: list[GradientChange]
    curvature_before: float
    curvature_after: float
    phases: Float[np.ndarray, " phases"]


NO_PIECES = Pieces([], [], float("nan"), float("nan"), np.zeros(0))
"""The record where pieces are not known."""


def gated_model(run: Run) -> Model | None:
    """The network whose gates can be held; none for smooth ones, and those of recorded runs."""
    if not (isinstance(run, TrainedRun) and run.kinks):
        return None
    return make_model(run.config.model)


def pieces_between(
    run: Run,
    step: int,
    iterates: Float[np.ndarray, "phases params"],
    centre: Float[np.ndarray, " params"],
    mode: Float[np.ndarray, " params"],
    *,
    precise: bool,
) -> Pieces:
    """What changes from an iterate to the next, and over the period.

    Args:
        run: the run, full batch.
        step: t, for the weights of the loss.
        iterates: θ_t, θ_(t+1), ..., over the steps of the period, and one after.
        centre: centre of the step.
        mode: direction v in the parameters, of the length for which vᵀHv is wanted.
        precise: whether to compute in float64, whatever the run's type.
    """
    model, wide = gated_model(run), Wide(run, needed=precise)
    layout = run.layout.widened() if wide.needed else run.layout
    with wide.enabled():
        problem = wide.dynamics.problem.steady()
        kind = run.dtype if not wide.needed else "float64"
        points = jnp.asarray(np.concatenate([iterates, centre[None]]), kind)
        way = jnp.asarray(mode, kind)
        held = jnp.zeros((len(points), 0, 0), bool)
        if model is not None:
            held = _gates(problem, points, model=model, layout=layout)
        derivatives = _derivatives(
            problem, points, held, way, jnp.int32(step), model=model, layout=layout
        )
        gradients, bent, curved, between = (np.asarray(part, float) for part in derivatives)
    flips = [] if model is None else _flips(run, model, np.asarray(held[:-1]))
    move = np.asarray(iterates[1], float) - np.asarray(iterates[0], float)
    changes = [_change(*part, move, known=model is not None) for part in _parts(gradients, bent)]
    before, after = between if model is not None else (float("nan"),) * 2
    return Pieces(flips, changes, float(before), float(after), curved)


@partial(jax.jit, static_argnames=("model", "layout"))
def _gates(
    problem: Problem, points: Float[Array, "points params"], *, model: Model, layout: Layout
) -> Bool[Array, "points examples units"]:
    of = lambda point: model.gates(layout.unflatten(point), problem.inputs)  # noqa: E731
    return jax.lax.map(of, points)


def _piece(model: Model, layout: Layout, gates: Array, vector: Array, inputs: Array) -> Array:
    """The outputs of the network with its gates held."""
    return model.apply_piece(layout.unflatten(vector), inputs, gates)


@partial(jax.jit, static_argnames=("model", "layout"))
def _derivatives(
    problem: Problem,
    points: Float[Array, "points params"],
    held: Bool[Array, "points examples units"],
    mode: Float[Array, " params"],
    step: Array,
    *,
    model: Model | None,
    layout: Layout,
) -> tuple[Array, Array, Array, Array]:
    """Gradients, products with Hessians and curvatures along the mode, each with some gates held.

    Point 0 is θ_t, 1 is θ_(t+1), the last one the centre.
    """

    def objective(params: Array, gates: Array) -> Array:
        if model is None:
            return problem.objective(params, step)
        piece = partial(_piece, model, layout, gates)
        return replace(problem, apply=piece).objective(params, step)

    gradient = jax.grad(objective)

    def gradient_at(pair: tuple[Array, Array]) -> Array:
        return gradient(points[pair[0]], held[pair[1]])

    def bent_at(given: tuple[Array, Array, Array]) -> Array:
        at, gates, way = given
        return jax.jvp(lambda p: gradient(p, held[gates]), (points[at],), (way,))[1]

    last = len(points) - 1
    # At θ_t and θ_(t+1) with their own gates, with those of θ_t, and with those of the centre.
    pairs = jnp.array([(0, 0), (1, 1), (1, 0), (0, last), (1, last)])
    gradients = jax.lax.map(gradient_at, (pairs[:, 0], pairs[:, 1]))
    move = points[1] - points[0]
    own = jnp.arange(last)
    at = jnp.concatenate([jnp.array([0, last, last, last]), own])
    gates = jnp.concatenate([jnp.array([0, last, 0, 1]), own])
    ways = jnp.stack([move, move, *[mode] * (2 + last)])
    bent = jax.lax.map(bent_at, (at, gates, ways))
    curved = bent[2:] @ mode
    return gradients, bent[:2], curved[2:], curved[:2]


def _parts(
    gradients: np.ndarray, bent: np.ndarray
) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """The whole change of the gradient, the linear part and that within, by linearisation."""
    before, after, after_there, before_centre, after_centre = gradients
    whole = after - before
    return [
        ("iterate", whole, bent[0], after_there - before - bent[0]),
        ("centre", whole, bent[1], after_centre - before_centre - bent[1]),
    ]


def _change(
    about: str,
    whole: np.ndarray,
    linear: np.ndarray,
    within: np.ndarray,
    move: np.ndarray,
    *,
    known: bool,
) -> GradientChange:
    with np.errstate(over="ignore"):  # in a run that diverges
        size, length = float(whole @ whole), float(move @ move)
    if not (0 < size < np.inf and 0 < length < np.inf):
        return GradientChange(about, *[float("nan")] * 8)
    left = float(np.linalg.norm(whole - linear)) / size**0.5
    shares, curvatures = [], []
    for part in (linear, within, whole - linear - within):
        shares.append(float(part @ whole) / size)
        curvatures.append(float(part @ move) / length)
    if not known:  # a smooth network has one piece; elsewhere the parts are not known separately
        shares[2] = curvatures[2] = float("nan")
    secant = float(whole @ move) / length
    return GradientChange(about, *(*shares, left, *curvatures, secant))


def _flips(
    run: Run, model: Model, held: Bool[np.ndarray, "phases examples units"]
) -> list[GateFlips]:
    """Gates that flip, by hidden layer, whose units follow each other."""
    shape = run.problem.inputs.shape[1:]
    sizes = model.layer_sizes(shape, 1)
    flips, start = [], 0
    for number, (_, units) in enumerate(sizes[:-1], start=1):
        mine = held[:, :, start : start + units]
        start += units
        changed = [int(np.sum(mine[0] != mine[phase])) for phase in (1, -1)]
        flips.append(GateFlips(number, mine[0].size, *changed))
    return flips
