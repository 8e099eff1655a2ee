"""The central flow: how gradient descent moves on average while it oscillates at the edge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.bifurcation.flip import Objective
from dlf_dynamics.analysis.theories.blended import Vector, blended
from dlf_dynamics.analysis.theories.complementarity import solve_complementarity
from dlf_dynamics.analysis.theories.condition import condition, foreseen, weights
from dlf_dynamics.analysis.theories.critical_modes import CriticalModes
from dlf_dynamics.analysis.theories.metric import State, filled, scaled
from dlf_dynamics.analysis.theories.rules import Averaged, RMSProp
from dlf_dynamics.analysis.theories.substep import Local, moved
from dlf_dynamics.reprs import brief

MODES = 8
"""Default for the largest number of critical modes."""

FRACTION = 0.9
"""Default fraction of the threshold above which an eigenvalue is followed."""

SUBSTEPS = 4
"""Default number of substeps of a step of gradient descent."""

_MISMATCH = 0.02
"""Largest error of the curvature predicted by a substep for which it counts as short enough."""

CERTIFY_EVERY = 10
"""Default number of steps between two certified solves."""


@dataclass(frozen=True)
class FlowPoint:
    """The central flow at a step t, and the oscillation about it.

    Attributes:
        step: t.
        params: the centre w.
        mean_squares: ν of RMSProp; empty for a rule without it.
        loss: F(w, t).
        predicted_loss: F + ½ ⟨Λ, X⟩, the time average of the loss of the iterates.
        threshold: critical eigenvalue of the optimizer.
        sharpness: largest eigenvalue of the Hessian H of F(·, t) at w, or of RMSProp's P⁻¹ H.
        eigenvalues: the followed eigenvalues, largest first.
        modes: their eigenvectors, one per row. Where eigenvalues are equal, as for two critical
            modes, these are just some basis of their space. Modes of P⁻¹ H are orthonormal in P.
        covariance: X of the oscillation in this basis, averaged over the substeps from t to t + 1;
            in parameter space it is Σ = modesᵀ X modes.
        violation: largest violation of X ⪰ 0, S ⪰ 0 and ⟨X, S⟩ = 0 in these substeps, relative.
        mismatch: largest difference between the k × k Hessian at the end of a substep and its
            prediction, relative to the largest eigenvalue, over the substeps that end from t on
            and before t + 1. It falls with the square of the substep.
        converged: whether all eigenpairs and all complementarity problems of these substeps
            converged, and the mismatch is at most 0.02.
        looked_at: whether a certified solve was made at t.
        complete: whether it showed that no eigenvalue above the threshold is left out; false
            between two such solves, where nothing is claimed.
        num_products: number of Hessian products since the point before.
        message: problems, in words.
        stopped: why the flow ends here; empty where it does not, or where all steps were made.
    """

    step: int
    params: Float[np.ndarray, " params"]
    mean_squares: Float[np.ndarray, " params"]
    loss: float
    predicted_loss: float
    threshold: float
    sharpness: float
    eigenvalues: Float[np.ndarray, " k"]
    modes: Float[np.ndarray, "k params"]
    covariance: Float[np.ndarray, "k k"]
    violation: float
    mismatch: float
    converged: bool
    looked_at: bool
    complete: bool
    num_products: int
    message: str
    stopped: str
    __repr__ = brief

    @property
    def energy(self) -> float:
        """Trace of Σ: the mean square of the oscillation."""
        if not self.mean_squares.size:
            return float(np.trace(self.covariance))
        return float(np.sum(self.covariance * (self.modes @ self.modes.T)))


@dataclass(frozen=True)
class CentralFlow:
    """A central flow at each step; see `FlowPoint` for what is known about one.

    Attributes:
        points: points at the first step and at each one after it.
        stopped: why the flow ended early; empty where all steps were made.
    """

    points: list[FlowPoint]
    stopped: str
    __repr__ = brief

    def column(self, name: str) -> np.ndarray:
        """A quantity at all points, by its name in `FlowPoint`."""
        return np.array([getattr(point, name) for point in self.points])

    @property
    def steps(self) -> Int[np.ndarray, " points"]:
        """Steps of the points."""
        return self.column("step")

    @property
    def states(self) -> Float[np.ndarray, "points params"]:
        """The centres."""
        return self.column("params")

    @property
    def loss(self) -> Float[np.ndarray, " points"]:
        """Loss at the centres."""
        return self.column("loss")

    @property
    def predicted_loss(self) -> Float[np.ndarray, " points"]:
        """The time average of the loss of the iterates."""
        return self.column("predicted_loss")

    @property
    def sharpness(self) -> Float[np.ndarray, " points"]:
        """Largest eigenvalue at the centres."""
        return self.column("sharpness")

    @property
    def threshold(self) -> Float[np.ndarray, " points"]:
        """Critical eigenvalue of the optimizer."""
        return self.column("threshold")

    @property
    def energy(self) -> Float[np.ndarray, " points"]:
        """Mean square of the oscillation."""
        return self.column("energy")

    @property
    def converged(self) -> Bool[np.ndarray, " points"]:
        """Whether all eigenpairs and complementarity problems converged."""
        return self.column("converged")

    @property
    def eigenvalues(self) -> Float[np.ndarray, "points k"]:
        """The followed eigenvalues; NaN where there are fewer."""
        return self._filled("eigenvalues", 1)

    @property
    def modes(self) -> Float[np.ndarray, "points k params"]:
        """Their eigenvectors; NaN where there are fewer."""
        return self._filled("modes", 1)

    @property
    def covariance(self) -> Float[np.ndarray, "points k k"]:
        """X in the basis of the modes; NaN where there are fewer."""
        return self._filled("covariance", 2)

    def _filled(self, name: str, axes: int) -> np.ndarray:
        parts = [getattr(point, name) for point in self.points]
        largest = max((len(part) for part in parts), default=0)
        tail = parts[0].shape[axes:] if parts else ()
        whole = np.full((len(parts), *[largest] * axes, *tail), np.nan)
        for row, part in zip(whole, parts, strict=True):
            row[tuple(slice(size) for size in part.shape[:axes])] = part
        return whole


def central_flow(
    objective: Objective,
    params: Vector | Float[np.ndarray, " params"],
    learning_rate: float | Averaged | RMSProp,
    steps: int,
    *,
    start: int = 0,
    modes: int = MODES,
    fraction: float = FRACTION,
    substeps: int = SUBSTEPS,
    certify_every: int = CERTIFY_EVERY,
    tol: float | None = None,
    seed: int = 0,
) -> CentralFlow:
    """The time average of gradient descent at the edge of stability, as a differential equation.

    w' = -η [∇F + ½ Σ_ij X_ij D³F[u_i, u_j, ·]] over the modes u_i near the threshold 2/η (Cohen,
    Damian, Talwalkar, Kolter and Lee 2024, arXiv 2410.24206). The covariance X ⪰ 0 of the
    oscillation is whatever keeps their eigenvalues at or below the threshold: it has no memory and
    responds immediately. Below the threshold this is gradient flow. For RMSProp the mean squares ν
    of the gradients also move, by what the oscillation adds to them (see `rules.RMSProp`).

    The equation is integrated in Euler substeps, each of which satisfies the linearised condition
    at its end; the error falls like the length of a substep. A loss that depends on the step is
    interpolated linearly between two steps.

    It does not apply while an oscillation grows from rounding (the lag), where the loss has kinks
    that the oscillation crosses, beyond the second period doubling, and where the oscillation is
    not small.

    Args:
        objective: a problem of flat parameters, or a function of them.
        params: w at the first step.
        learning_rate: learning rate of gradient descent, the average of another optimizer
            (`rules.averaged`), or `rules.RMSProp` with its mean squares at the first step.
        steps: number of steps.
        start: the first step, for losses and rules that depend on it.
        modes: largest number of critical modes.
        fraction: fraction of the threshold above which an eigenvalue is followed.
        substeps: substeps per step of gradient descent, at least 2; momentum takes more, by the
            factor by which it moves faster at the same threshold: (1 + β)/(1 - β) for heavy ball.
        certify_every: steps between two certified solves for eigenvalues that are not followed.
        tol: largest residual of an eigenpair, relative to the eigenvalue; none means 1e-4, or
            what the type of the parameters allows.
        seed: seed for the random vectors of the eigensolver.

    Raises:
        ValueError: when a number is out of range, or the parameters are not a flat vector.

    >>> flow = central_flow(lambda x: (x[0] ** 2 - 1) ** 2 / 4, jnp.array([0.95]), 1.2, 60)
    >>> round(float(flow.states[-1, 0] ** 2), 6), round(float(flow.energy[-1]), 6)
    (0.888889, 0.037037)
    """
    points = list(
        flow_points(
            objective,
            params,
            learning_rate,
            steps,
            start=start,
            modes=modes,
            fraction=fraction,
            substeps=substeps,
            certify_every=certify_every,
            tol=tol,
            seed=seed,
        )
    )
    return CentralFlow(points, points[-1].stopped)


def flow_points(
    objective: Objective,
    params: Vector | Float[np.ndarray, " params"],
    learning_rate: float | Averaged | RMSProp,
    steps: int,
    *,
    start: int = 0,
    modes: int = MODES,
    fraction: float = FRACTION,
    substeps: int = SUBSTEPS,
    certify_every: int = CERTIFY_EVERY,
    tol: float | None = None,
    seed: int = 0,
) -> Iterator[FlowPoint]:
    """The points of a central flow, one after the other; see `central_flow`.

    Where the flow ends early, the last point says why.

    Raises:
        ValueError: when a number is out of range, or the parameters are not a flat vector.
    """
    params = jnp.asarray(params)
    if params.ndim != 1 or params.dtype not in (jnp.float32, jnp.float64) or not params.size:
        raise ValueError(
            f"params have shape {params.shape} and type {params.dtype}; expected a flat vector of "
            "type float32 or float64"
        )
    if min(substeps, modes, certify_every) < 1 or steps < 0 or not 0 < fraction < 1:
        raise ValueError(
            f"steps is {steps}, substeps {substeps}, modes {modes}, certify_every {certify_every} "
            f"and fraction {fraction}; expected steps of 0 or more, a fraction between 0 and 1, "
            "and 1 or more of the others"
        )
    rule = learning_rate
    if not isinstance(rule, Averaged | RMSProp):
        rule = Averaged.constant(rule)
    accuracy = max(1e-4, 100 * float(jnp.finfo(params.dtype).eps)) if tol is None else tol
    followed = CriticalModes(blended(objective), fraction, modes, accuracy, seed)
    return _points(
        followed, rule.begin(params), rule, range(start, start + steps + 1), substeps, certify_every
    )


def _points(
    followed: CriticalModes,
    state: State,
    rule: Averaged | RMSProp,
    steps: range,
    substeps: int,
    certify_every: int,
) -> Iterator[FlowPoint]:
    settled = True
    for step in steps:
        certifies = (step - steps.start) % certify_every == 0 or not settled
        current = _Step(followed, rule, step, _enough(substeps, rule.speed(step)))
        state, point = current.advanced(state, certifies=certifies)
        yield point
        if point.stopped:
            return
        settled = current.settled


def _enough(substeps: int, speed: float) -> int:
    """Number of substeps of one step, from the number for gradient descent.

    Euler's method is stable up to a curvature of 2 over drift and substep: with a single substep
    modes at the edge would not decay, and where momentum makes the drift larger than the threshold
    corresponds to, modes below the edge would grow.
    """
    substeps = max(substeps, 2)
    return max(substeps, int(np.ceil(substeps * speed * (1 - 1e-9))))


class _Step:
    """One step of the flow, in substeps."""

    def __init__(
        self, followed: CriticalModes, rule: Averaged | RMSProp, step: int, substeps: int
    ) -> None:
        self.followed, self.rule, self.step, self.substeps = followed, rule, step, substeps
        self.covariances: list[np.ndarray] = []
        self.violation = 0.0
        self.settled, self.messages, self.stopped = True, [], ""

    def advanced(self, state: State, *, certifies: bool) -> tuple[State, FlowPoint]:
        """The state a step later, and the point."""
        begin, before = state, self.followed.num_products
        self.followed.metric = metric = self.rule.metric(state.mean_squares)
        threshold = self.rule.at(self.step)[1]
        lowest = self.rule.lowest(self.step)
        complete = certifies and self._look(state.params, lowest)
        first = derivatives = self.followed.begin(state.params, self.step, lowest)
        directions = np.asarray(scaled(derivatives.vectors, metric))
        if self.followed.leaves_out(derivatives, threshold):
            self.stopped = (
                f"more modes reach the threshold than are followed (modes = {self.followed.most})"
            )
        for substep in range(self.substeps):
            if self.stopped:
                break
            if substep:
                self.followed.metric = self.rule.metric(state.mean_squares)
                derivatives = self.followed.at(state.params, self.step, substep / self.substeps)
            state = self._substep(state, derivatives, substep)
        products = self.followed.num_products - before
        point = self._point(begin, first, directions, threshold, (certifies, complete), products)
        return state, point

    def _look(self, params: Array, lowest: float) -> bool:
        complete = self.followed.look(params, self.step, lowest)
        if self.followed.missed:
            self.settled = False
            self.messages.append("an eigenvalue above the threshold had not been followed")
        return complete

    def _point(
        self,
        state: State,
        derivatives: Local,
        directions: Float[np.ndarray, "rows params"],
        threshold: float,
        certificate: tuple[bool, bool],
        num_products: int,
    ) -> FlowPoint:
        """What is known about the step, from the derivatives at its start and its substeps."""
        ascending, vectors = np.linalg.eigh(derivatives.hessian.astype(float))
        eigenvalues, rotation = ascending[::-1], vectors.T[::-1]
        covariance, mismatch = self._mean(rotation), self.followed.mismatch
        self.followed.mismatch = 0.0
        if mismatch > _MISMATCH:
            self.messages.append(f"the curvature is {mismatch:.1%} off its prediction by a substep")
        loss = float(derivatives.loss)
        return FlowPoint(
            step=self.step,
            params=np.asarray(state.params),
            mean_squares=np.asarray(state.mean_squares),
            loss=loss,
            predicted_loss=loss + float(eigenvalues @ np.diagonal(covariance)) / 2,
            threshold=threshold,
            sharpness=float(derivatives.values[0]),
            eigenvalues=eigenvalues,
            modes=rotation.astype(directions.dtype) @ directions[: len(rotation)],
            covariance=covariance,
            violation=self.violation,
            mismatch=mismatch,
            converged=self.settled and mismatch <= _MISMATCH and not self.stopped,
            looked_at=certificate[0],
            complete=certificate[1],
            num_products=num_products,
            message="; ".join(dict.fromkeys(self.messages)),
            stopped=self.stopped,
        )

    def _mean(self, rotation: np.ndarray) -> np.ndarray:
        """Mean covariance of the substeps in the basis of the eigenvectors."""
        if self.stopped or not self.covariances:
            return np.full(rotation.shape, np.nan)
        return rotation @ np.mean(self.covariances, axis=0) @ rotation.T

    def _substep(self, state: State, derivatives: Local, substep: int) -> State:
        """The state after a substep; the flow stops where there is no solution."""
        length = 1 / self.substeps
        drift, _ = self.rule.at(self.step, substep * length)
        _, threshold = self.rule.at(self.step, (substep + 1) * length)
        if not derivatives.finite:
            self.stopped = "the loss or its gradient is not finite"
            return state
        if not self.followed.is_converged(derivatives):
            self.settled = False
            self.messages.append("eigenpairs have not converged")
        count = self.followed.count
        counts = np.zeros(0) if count == 0 else self._weights(derivatives, length, drift, threshold)
        if self.stopped:
            return state
        metric, mean_squares = self.followed.metric, state.mean_squares
        if metric is not None and derivatives.stiffening is not None:
            squares = derivatives.stiffening.squares
            mean_squares = filled(metric, derivatives.gradient, squares, counts, length)
        step = length * drift
        params = moved(state.params, derivatives.gradient, derivatives.thirds, counts, step, metric)
        return State(params, mean_squares)

    def _weights(
        self, derivatives: Local, length: float, drift: float, threshold: float
    ) -> Float[np.ndarray, " pairs"]:
        """Weight of each G_ij with i ≤ j in the motion."""
        solved = solve_complementarity(*condition(derivatives, length, drift, threshold))
        if not solved.converged:
            self.stopped = f"no oscillation holds the curvature at the threshold: {solved.message}"
            return np.zeros(0)
        if solved.message:
            self.messages.append(solved.message)
        self.violation = max(self.violation, solved.residual)
        self.covariances.append(solved.covariance)
        self.followed.expected = foreseen(derivatives, length, threshold, solved)
        return weights(solved.covariance)
