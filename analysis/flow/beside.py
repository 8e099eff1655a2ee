"""`Predicted`: what other theories say of the steps that the central flow is held against.

Edge flow (Marion 2026, arXiv 2606.18080) is not among them: its equations could not be checked
against their source.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.bifurcation.flip import (
    HORIZON,
    FlipCoefficient,
    as_function,
    flip_coefficient,
)
from dlf_dynamics.analysis.bifurcation.rod import rod_amplitude
from dlf_dynamics.analysis.flow.expansions import no_expansion, trained_expansion
from dlf_dynamics.analysis.flow.measured import require_measurable
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.spectra.float64 import Wide
from dlf_dynamics.analysis.theories.gradient_flow import gradient_flow
from dlf_dynamics.analysis.theories.rules import Averaged, averaged
from dlf_dynamics.analysis.theories.self_stabilization import self_stabilization
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.problem import Problem
from dlf_dynamics.reprs import brief
from dlf_dynamics.run import Run

ROD = "rod equation"
FLIP = "flip about the centre"
GRADIENT_FLOW = "gradient flow"
QUASI_STATIC = "quasi-static flip"
SELF_STABILIZATION = "self-stabilization"
EXPANSIONS = ("linear model", "quadratic model")

THEORIES = (ROD, FLIP, GRADIENT_FLOW, QUASI_STATIC, SELF_STABILIZATION, *EXPANSIONS)
"""Names of all of them, in the order of the tables."""

_NEAR = 0.25
"""Largest |ηλ - 2| at which the leading order of a flip is used."""

_KINKS = "the loss has kinks, which derivatives do not see"

QUANTITIES = ("loss", "sharpness", "energy", "distance")
"""Columns of a prediction."""


@dataclass(frozen=True)
class Predicted:
    """What a theory says at the steps that were looked at; NaN where it says nothing.

    Attributes:
        name: name of the theory.
        steps: steps that were looked at.
        loss: averaged over the oscillation.
        sharpness: largest eigenvalue at the centre.
        energy: size of the oscillation, |d|².
        distance: how far its centre is from the run's.
        message: why it predicts nothing, or where it ended; else empty.
    """

    name: str
    steps: Int[np.ndarray, " looks"]
    loss: Float[np.ndarray, " looks"]
    sharpness: Float[np.ndarray, " looks"]
    energy: Float[np.ndarray, " looks"]
    distance: Float[np.ndarray, " looks"]
    message: str = ""
    __repr__ = brief


def predicted_beside(
    run: Run,
    start: FlatState,
    steps: Int[np.ndarray, " looks"],
    centres: Float[np.ndarray, "looks params"],
    deviations: Float[np.ndarray, "looks params"],
    *,
    oscillating: Bool[np.ndarray, " looks"] | None = None,
    theories: Collection[str] = THEORIES,
    every: int = 1,
    horizon: int = HORIZON,
    between: Callable[[], None] = lambda: None,
) -> list[Predicted]:
    """Predictions of other theories for some steps.

    Two are local, of the run's own centre at each step, and of an oscillation that is there. The
    rod equation, solved from the measured deviation, is that of two states about the centre that
    change places; the flip about the centre is its leading order, x² = ε/c₀ with ε = ηλ - 2 and
    c₀ = -ηD⁴F[v, v, v, v]/6 (FlipCoefficient), where |ε| is at most 0.25. There the response of
    the other parameters is in the centre already, where it keeps the sharpness below the threshold;
    the coefficient with the response is for a centre without it.

    The others go on from the start, and use nothing else of the run. Gradient flow has no
    oscillation. The quasi-static flip adds to it the amplitude √(ε/c_N) of the orbit that a flip of
    its state would have, with the response of N steps. Self-stabilization, the linear and the
    quadratic model are as in `self_stabilization` and `trained_expansion`.

    At a look the rod equation takes some 15 products at two points, either flip two eigensolves,
    and the quasi-static one 50 products more; gradient flow takes 8 gradients a step. With 603
    parameters rod and flip together take 55 ms of a core, with 11,260 and 1,797 examples all of it
    some 6 s in float64: then `every` makes it cheaper.

    Args:
        run: a full-batch run with a threshold.
        start: its state at the first of the steps.
        steps: steps that were looked at, increasing.
        centres: c_t of the run there.
        deviations: d_t = θ_t - c_t.
        oscillating: whether the run does; the local theories say nothing where it does not. None
            means that it does wherever the deviation is not 0.
        theories: names of those to evaluate, from `THEORIES`.
        every: looks between those at which the local theories, the quasi-static flip and the
            sharpness of gradient flow are evaluated, counted from the first.
        horizon: N.
        between: called between looks, so that it can raise an exception to stop the work.

    Raises:
        ConfigError: when the run has mini-batches, or an optimizer without a theory here.
        ValueError: when the first step is not that of the start, or `every` is less than 1.
    """
    require_measurable(run)
    if every < 1:
        raise ValueError(f"every is {every}; expected at least 1")
    if len(steps) == 0 or steps[0] != start.step:
        raise ValueError(f"the first look is not at step {start.step}, that of the start")
    looks = _Looks(run, steps, centres, deviations, between)
    solved = np.arange(len(steps)) % every == 0
    chosen = solved if oscillating is None else solved & oscillating
    predictions: list[Predicted] = []
    if ROD in theories:
        predictions.append(looks.local(ROD, looks.rod, chosen))
    if FLIP in theories:
        predictions.append(looks.local(FLIP, looks.flip, chosen))
    predictions += _flowing(looks, theories, solved, horizon)
    if SELF_STABILIZATION in theories:
        predictions.append(_stabilized(looks))
    predictions += _expanded(looks, theories, start)
    return predictions


class _Looks:
    """The run at the steps that were looked at, in float64 whatever its type.

    Attributes:
        run: the run.
        wide: its dynamics in float64.
        steps: steps that were looked at.
        centres: c_t.
        deviations: d_t.
        rates: learning rates of gradient descent with the same orbits of period 2.
        between: called between looks.
    """

    def __init__(
        self,
        run: Run,
        steps: Int[np.ndarray, " looks"],
        centres: Float[np.ndarray, "looks params"],
        deviations: Float[np.ndarray, "looks params"],
        between: Callable[[], None],
    ) -> None:
        self.run, self.wide = run, Wide(run, needed=True)
        self.steps, self.centres, self.deviations = steps, centres, deviations
        self.rates, self.between = 2 / run_threshold(run).at(steps), between

    @property
    def problem(self) -> Problem:
        """The loss, in a form whose derivatives keep their digits."""
        return self.wide.dynamics.problem.steady()

    def rule(self) -> tuple[Averaged, str]:
        """How the average of the optimizer moves; or why that is not known."""
        threshold = run_threshold(self.run)
        steps = range(int(self.steps[0]), int(self.steps[-1]) + 2)
        told = threshold.hyperparameters
        try:
            return averaged(threshold.optimizer, steps, hyperparameters=told), ""
        except ValueError as error:
            return Averaged.constant(np.nan), str(error)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of a theory that predicts nothing."""
        return {name: np.full(len(self.steps), np.nan) for name in QUANTITIES}

    def predicted(self, name: str, columns: dict[str, np.ndarray], message: str = "") -> Predicted:
        """A theory's columns, finite or NaN."""
        told = {key: np.where(np.isfinite(c), c, np.nan) for key, c in columns.items()}
        return Predicted(name=name, steps=self.steps, **told, message=message)

    def local(
        self,
        name: str,
        theory: Callable[[int], dict[str, float]],
        chosen: Bool[np.ndarray, " looks"],
    ) -> Predicted:
        """A theory of each of some looks on its own."""
        columns = self.columns()
        if name == FLIP and self.run.kinks:
            return self.predicted(name, columns, _KINKS)
        with self.wide.enabled():
            for row in np.flatnonzero(chosen).tolist():
                self.between()
                size = np.linalg.norm(self.deviations[row])
                if not (0 < size < np.inf and 0 < self.rates[row] < np.inf):
                    continue
                for quantity, value in theory(row).items():
                    columns[quantity][row] = value
        return self.predicted(name, columns)

    def rod(self, row: int) -> dict[str, float]:
        """The rod equation about the centre of a look."""
        centre, step = jnp.asarray(self.centres[row]), int(self.steps[row])
        rod = rod_amplitude(
            self.problem, centre, float(self.rates[row]), self.deviations[row], step=step
        )
        if not rod.converged:
            return {}
        ends = _losses(as_function(self.problem, step), centre, jnp.asarray(rod.difference))
        return {"energy": rod.amplitude**2, "loss": float(ends[1] + ends[2]) / 2}

    def flip(self, row: int) -> dict[str, float]:
        """Its leading order."""
        centre, step = jnp.asarray(self.centres[row]), int(self.steps[row])
        flip = flip_coefficient(self.problem, centre, float(self.rates[row]), step=step, horizon=1)
        coefficient = float(flip.finite_time[0])
        if not _alone(flip) or abs(flip.excess) > _NEAR or abs(coefficient) <= flip.error:
            return {}
        energy = flip.excess / coefficient
        if not energy > 0:
            return {}
        at = _losses(as_function(self.problem, step), centre, jnp.zeros_like(centre))[0]
        # ½λx² + L₄x⁴/24, with L₄x² = 6 (2/η - λ).
        added = (flip.eigenvalue - flip.excess / (2 * flip.learning_rate)) * energy / 2
        return {"energy": energy, "loss": float(at) + added}


def _alone(flip: FlipCoefficient) -> bool:
    """Whether the motion is one along the eigenvector, as far as can be told."""
    return flip.converged and flip.second_interval[1] < 2 / flip.learning_rate


@jax.jit
def _losses(loss: Partial, centre: Array, difference: Array) -> Float[Array, " 3"]:
    """The loss at a centre, and on both sides of it."""
    return jnp.stack([loss(centre), loss(centre + difference), loss(centre - difference)])


def _flowing(
    looks: _Looks, theories: Collection[str], solved: Bool[np.ndarray, " looks"], horizon: int
) -> list[Predicted]:
    """Gradient flow, and the flip that its states would have."""
    flow, flip = looks.columns(), looks.columns()
    rule, ended = looks.rule()
    reason = ended or (_KINKS if looks.run.kinks else _no_momentum(rule))
    wanted = GRADIENT_FLOW in theories or (QUASI_STATIC in theories and not reason)
    if not ended and wanted:
        with looks.wide.enabled():
            ended = _flow(looks, rule, solved, horizon, flow, {} if reason else flip)
    predictions = (
        looks.predicted(GRADIENT_FLOW, flow, ended),
        looks.predicted(QUASI_STATIC, flip, reason or ended),
    )
    return [one for one in predictions if one.name in theories]


def _flow(
    looks: _Looks,
    rule: Averaged,
    solved: Bool[np.ndarray, " looks"],
    horizon: int,
    flow: dict[str, np.ndarray],
    flip: dict[str, np.ndarray],
) -> str:
    """Fills in the columns of gradient flow, and those of the flip unless these are empty."""
    params, sharpness = jnp.asarray(looks.centres[0], float), 0.0
    befores = np.append(looks.steps[:1], looks.steps[:-1]).tolist()
    for row, (before, step) in enumerate(zip(befores, looks.steps.tolist(), strict=True)):
        looks.between()
        params = gradient_flow(
            looks.problem, params, rule, step - before, start=before, sharpness=sharpness
        )
        if not bool(jnp.all(jnp.isfinite(params))):
            return f"not finite at step {step}"
        loss = _losses(as_function(looks.problem, step), params, jnp.zeros_like(params))[0]
        flow["loss"][row], flow["energy"][row] = float(loss), 0.0
        flow["distance"][row] = np.linalg.norm(np.asarray(params) - looks.centres[row])
        if not (solved[row] and 0 < looks.rates[row] < np.inf):
            continue
        rate, response = float(looks.rates[row]), horizon if flip else 1
        at = flip_coefficient(looks.problem, params, rate, step=step, horizon=response)
        if at.converged:
            flow["sharpness"][row] = sharpness = at.eigenvalue
        if flip:
            flip["energy"][row] = at.amplitude() ** 2
    return ""


def _no_momentum(rule: Averaged) -> str:
    """Why a theory of gradient descent does not apply; empty where it does."""
    plain = np.allclose(rule.critical_step, rule.drift, rtol=1e-9, atol=0)
    return "" if plain else "the theory is of gradient descent, without momentum"


def _stabilized(looks: _Looks) -> Predicted:
    """Self-stabilization from the first look on."""
    rule, reason = looks.rule()
    rate = float(rule.drift[0])
    reason = reason or (_KINKS if looks.run.kinks else _no_momentum(rule))
    if not reason and (rate == 0 or not np.allclose(rule.drift, rate, rtol=1e-9, atol=0)):
        reason = "the theory is of a constant learning rate"
    if reason:
        return looks.predicted(SELF_STABILIZATION, looks.columns(), reason)
    first, ahead = int(looks.steps[0]), looks.steps - looks.steps[0]
    with looks.wide.enabled():
        stabilized = self_stabilization(
            looks.problem,
            jnp.asarray(looks.centres[0], float),
            rate,
            int(ahead[-1]),
            step=first,
            displacement=looks.deviations[0],
        )
    columns = {
        "loss": stabilized.predicted_loss[ahead],
        "sharpness": stabilized.sharpness[ahead],
        "energy": stabilized.energy[ahead],
        "distance": np.linalg.norm(stabilized.centres(ahead) - looks.centres, axis=1),
    }
    ended = "" if stabilized.message == "to the end" else stabilized.message
    return looks.predicted(SELF_STABILIZATION, columns, ended)


def _expanded(looks: _Looks, theories: Collection[str], start: FlatState) -> Iterator[Predicted]:
    """The linear and the quadratic model about the start."""
    reason = no_expansion(looks.run)
    for order, name in enumerate(EXPANSIONS, start=1):
        if name not in theories:
            continue
        columns, message = looks.columns(), reason
        if not reason:
            at = looks.steps, looks.centres
            columns |= trained_expansion(
                looks.run, start, order, *at, between=looks.between
            )._asdict()
            if not np.isfinite(columns["loss"][-1]):
                first = np.argmin(np.isfinite(columns["loss"]))
                message = f"not finite at step {looks.steps[first]}"
        yield looks.predicted(name, columns, message)
