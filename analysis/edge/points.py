"""`EdgePoint`: what is known of the stability of mini-batches at one checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from dlf_dynamics.analysis.edge.batches import Batches
from dlf_dynamics.analysis.spectra.curvature import run_threshold
from dlf_dynamics.analysis.stability.batch_sharpness import batch_sharpness
from dlf_dynamics.analysis.stability.mean_square_bounds import Noise, judged, noise_share
from dlf_dynamics.analysis.stability.mean_square_factors import CurvatureFactors, factors_of
from dlf_dynamics.analysis.stability.recursion import Recursion
from dlf_dynamics.analysis.stability.second_order import recursion_of
from dlf_dynamics.analysis.stability.shuffled_epochs import EpochMap, epoch_rate_bounds
from dlf_dynamics.config import EdgeConfig
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.operators import gradient
from dlf_dynamics.optimizers import preconditioner
from dlf_dynamics.run import Run

_SAMPLES = 200
"""Batches that are drawn to measure their sharpness, where it is not computed exactly."""

_NAN = float("nan")

SIDES = MappingProxyType({-1: "stable", 0: "not told", 1: "unstable"})
"""What sides of a threshold are called."""


@dataclass(frozen=True)
class EdgePoint:
    """One checkpoint; NaN stands for what is not known.

    Attributes:
        step: step of the checkpoint.
        learning_rate: η of the step.
        threshold_low: learning rate below which independent batches are certified to be stable in
            mean square.
        threshold_high: learning rate from which on they are certified to be unstable.
        ratio_low: η over the threshold, at least.
        ratio_high: η over the threshold, at most.
        side: verdict on the update at its own learning rate: 1 certified to be unstable in mean
            square with independent batches, -1 certified to be stable, 0 neither.
        sharpness: largest eigenvalue of the Hessian of all examples; of P^-1 H where the optimizer
            has a preconditioner P, which is frozen, here as elsewhere.
        sharpness_low: lower end of its interval, NaN where it did not converge.
        sharpness_high: upper end of its interval.
        ggn: largest eigenvalue of the generalized Gauss-Newton matrix of all examples.
        ggn_low: lower end of its interval, NaN where it did not converge.
        ggn_high: upper end of its interval.
        full_batch: critical eigenvalue of the full-batch update, 2/η for gradient descent.
        batch_sharpness: measured, E[gᵀHg] / E[gᵀg] over batches; no threshold.
        batch_sharpness_error: standard error of it, 0 where it is exact.
        epochs_low: learning rate at which shuffled epochs are certified to be stable.
        epochs_high: learning rate at which they are unstable.
        epochs_side: side of shuffled epochs at the step's learning rate, as `side`.
        rank: order of the matrices on which second moments were taken.
        kept: share of the trace of the curvature that these have.
        reason: why something about the mean-square threshold is not known; empty where all is.
        epochs_reason: why nothing is known of shuffled epochs; empty where something is.
    """

    step: int
    learning_rate: float = _NAN
    threshold_low: float = _NAN
    threshold_high: float = _NAN
    ratio_low: float = _NAN
    ratio_high: float = _NAN
    side: int = 0
    sharpness: float = _NAN
    sharpness_low: float = _NAN
    sharpness_high: float = _NAN
    ggn: float = _NAN
    ggn_low: float = _NAN
    ggn_high: float = _NAN
    full_batch: float = _NAN
    batch_sharpness: float = _NAN
    batch_sharpness_error: float = _NAN
    epochs_low: float = _NAN
    epochs_high: float = _NAN
    epochs_side: int = 0
    rank: int = 0
    kept: float = _NAN
    reason: str = ""
    epochs_reason: str = ""
    words = MappingProxyType({"side": SIDES, "epochs_side": SIDES})


class Rule(NamedTuple):
    """The update of a run as far as the mean-square threshold needs it.

    Attributes:
        optimizer: an optax transformation.
        preconditioned: whether it has a preconditioner.
        reason: why it has no such threshold; empty where it has one.
    """

    optimizer: optax.GradientTransformation
    preconditioned: bool
    reason: str

    @classmethod
    def of(cls, run: Run) -> Rule:
        """The rule of a run, whether its batches hold all examples or some."""
        threshold = run_threshold(run)
        reason = "" if threshold.of_full_batch else threshold.reason
        return cls(threshold.optimizer, threshold.preconditioned, reason)

    def recursion(self, step: int) -> Recursion:
        """The update at a step as a recursion of second order.

        Raises:
            ConfigError: when it is none.
        """
        if self.reason:
            raise ConfigError(self.reason)
        return recursion_of(self.optimizer, step)


def mean_square_at(
    run: Run, rule: Rule, batches: Batches, point: FlatState, config: EdgeConfig
) -> dict[str, Any]:
    """The fields of an `EdgePoint` that depend on the batches, by name.

    Args:
        run: run with the point.
        rule: rule of its updates.
        batches: batches whose stability is analysed.
        point: a checkpoint.
        config: how to look.
    """
    state = run.state(point)
    rate = float(run.dynamics.learning_rate(state.step))
    told: dict[str, Any] = {"learning_rate": rate}
    try:
        recursion = rule.recursion(point.step)
        told["learning_rate"] = rate = _rate(rate, rule, recursion)
        factors = _factors(run, rule, state, config)
        told |= {"rank": factors.rank, "kept": factors.kept}
        told |= _sides(factors, recursion, batches, rate, config)
        if config.epochs:
            told |= _epochs(factors, rule, recursion, batches, config)
    except ConfigError as error:
        told["reason"] = str(error)
        if config.epochs:
            told["epochs_reason"] = str(error)
    if not rule.preconditioned:
        told |= _measured(run, batches, state, config)
    return told


def _rate(told: float, rule: Rule, recursion: Recursion) -> float:
    """The learning rate, taken from the update where the run does not give it."""
    return told if np.isfinite(told) or rule.preconditioned else recursion.rate


def _factors(run: Run, rule: Rule, state: State, config: EdgeConfig) -> CurvatureFactors:
    """Curvatures of the examples, in units of the preconditioner if there is one."""
    scale = None
    if rule.preconditioned:
        scale = 1 / np.sqrt(np.asarray(_preconditioner(run.dynamics, state), float))
    at = run.problem, state.params, int(state.step)
    return factors_of(*at, scale=scale, max_rank=config.max_rank)


@jax.jit
def _preconditioner(dynamics: Dynamics, state: State) -> Float[Array, " params"]:
    """P of the update that the run made next, on its own batch."""
    batch_gradient = gradient(dynamics.problem_at(state.step), state.params, state.step)
    return preconditioner(dynamics.update, state.optimizer_state, batch_gradient)


def _sides(
    factors: CurvatureFactors,
    recursion: Recursion,
    batches: Batches,
    rate: float,
    config: EdgeConfig,
) -> dict[str, Any]:
    """The threshold, η over it, and the side that η is on."""
    if recursion.rate == 0:  # nothing moves, and the form of the update cannot be seen
        still = "the learning rate is 0 at this step"
        return {"ratio_low": 0.0, "ratio_high": 0.0, "side": -1, "reason": still}
    noise = Noise(factors, noise_share(batches.num_examples, batches.size))
    verdict, (stable, unstable), reason = judged(noise, recursion, config.tol)
    return {
        "threshold_low": rate * stable,
        "threshold_high": rate * unstable,
        "ratio_low": 1 / unstable,
        "ratio_high": 1 / stable if stable else float("inf"),
        "side": {"stable": -1, "unstable": 1, "undecided": 0}[verdict],
        "reason": reason,
    }


def _epochs(
    factors: CurvatureFactors,
    rule: Rule,
    recursion: Recursion,
    batches: Batches,
    config: EdgeConfig,
) -> dict[str, Any]:
    """The same for shuffled epochs, by enumerating all their orders."""
    if rule.preconditioned or recursion.memory or recursion.position != 1:
        plain = "orders of an epoch are enumerated for plain SGD only, without momentum or decay"
        return {"epochs_reason": plain}
    try:
        epoch = EpochMap(factors, batches.size)
    except ConfigError as error:
        return {"epochs_reason": str(error)}
    stable, unstable, _ = epoch_rate_bounds(epoch, config.tol)
    side = 0
    if recursion.rate == 0 or epoch.contracts(recursion.rate):
        side = -1
    elif epoch.grows(recursion.rate):
        side = 1
    return {"epochs_low": stable, "epochs_high": unstable, "epochs_side": side}


def _measured(run: Run, batches: Batches, state: State, config: EdgeConfig) -> dict[str, float]:
    """Batch sharpness; nothing where it is undefined."""
    measure = partial(batch_sharpness, definition="ratio-of-means", samples=_SAMPLES)
    at = run.problem, state.params, batches.size
    try:
        measured = measure(*at, step=int(state.step), seed=config.seed)
    except ConfigError:
        return {}
    return {"batch_sharpness": measured.value, "batch_sharpness_error": measured.standard_error}
