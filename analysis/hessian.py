"""Hessian eigenvalues along a run, at the iterates and at their centres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.analysis.eigensolver import top_eigenpairs
from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.operators import gradient, hessian, preconditioned
from dlf_dynamics.optimizers import ADAPTIVE, preconditioner
from dlf_dynamics.run import Checkpoints, Run, stack_points

_CHUNK_NUMBERS = 2**20
"""Parameters of the checkpoints that one call of the compiled program treats, at most."""


class Eigenvalues(NamedTuple):
    """The k largest eigenvalues at each checkpoint, descending, and how they were found.

    Attributes:
        eigenvalues: shape (checkpoints, k).
        residuals: from fresh products; an eigenvalue of the operator lies within.
        converged: per value; the others are Ritz values, not to be relied on.
        num_matvecs: Hessian products, shape (checkpoints,).
    """

    eigenvalues: Float[np.ndarray, "checkpoints k"]
    residuals: Float[np.ndarray, "checkpoints k"]
    converged: Bool[np.ndarray, "checkpoints k"]
    num_matvecs: Int[np.ndarray, " checkpoints"]


@dataclass(frozen=True)
class HessianSpectrum:
    """Top Hessian eigenvalues along a run.

    Attributes:
        steps: of the checkpoints.
        iterate: at θ_t.
        centre: at ¼ θ_(t-1) + ½ θ_t + ¼ θ_(t+1), where an oscillation of period 2 cancels; NaN and
            not converged at step 0, which has no step before it.
        static: whether the loss is the static one instead of that of the step.
        preconditioned: whether the operator is P^-1/2 H P^-1/2, P frozen at the next update.
        tol: relative residual that counts as converged.
    """

    steps: Int[np.ndarray, " checkpoints"]
    iterate: Eigenvalues
    centre: Eigenvalues
    static: bool
    preconditioned: bool
    tol: float


def hessian_spectrum(
    run: Run,
    checkpoints: Checkpoints | None = None,
    *,
    k: int = 3,
    static: bool = False,
    tol: float | None = None,
    max_matvecs: int = 40,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> HessianSpectrum:
    """The k largest Hessian eigenvalues of the loss at each checkpoint's step.

    For an adaptive optimizer they are those of the preconditioned Hessian P^-1 H, with the
    preconditioner of the next update, at which the optimizer's threshold applies.

    Args:
        run: a recorded run.
        checkpoints: increasing indices into `run.checkpoint_steps`; none means all.
        k: number of eigenvalues.
        static: whether to take the static loss.
        tol: relative residual that counts as converged; none means 1e-6, or 1e-3 in float32.
        max_matvecs: products per checkpoint and point at most.
        seed: of the random start vectors; each checkpoint's own start depends on its step.
        progress: told how many checkpoints are done.
    """
    indices = np.arange(len(run.checkpoint_steps)) if checkpoints is None else checkpoints
    k = min(k, run.num_params)
    if tol is None:
        tol = 1e-6 if run.config.dtype == "float64" else 1e-3
    solver = _Solver(k, tol, max(max_matvecs, 2 * k), static, run.config.optimizer)
    chunk = int(np.clip(_CHUNK_NUMBERS // run.num_params, 1, 25))
    found = []
    for points in run.points(indices, chunk):
        # The last chunk is filled up, so that one compilation serves all.
        states = stack_points(run, [*points, *[points[-1]] * (chunk - len(points))])
        found.append(jax.device_get(_analyse(run.dynamics, states, seed, solver=solver)))
        progress(min(len(found) * chunk, len(indices)))
    iterate, centre = jax.tree.map(lambda *parts: np.concatenate(parts)[: len(indices)], *found)
    steps = run.checkpoint_steps[np.asarray(indices)]
    first = steps == 0
    centre = centre._replace(
        eigenvalues=np.where(first[:, None], np.nan, centre.eigenvalues),
        residuals=np.where(first[:, None], np.nan, centre.residuals),
        converged=centre.converged & ~first[:, None],
    )
    adaptive = run.config.optimizer.name in ADAPTIVE
    return HessianSpectrum(steps, iterate, centre, static, adaptive, tol)


class _Solver(NamedTuple):
    """What is fixed for all checkpoints, hashable for `jax.jit`."""

    k: int
    tol: float
    max_matvecs: int
    static: bool
    optimizer: OptimizerConfig


@partial(jax.jit, static_argnames="solver")
def _analyse(
    dynamics: Dynamics, states: State, seed: Int[Array, ""] | int, *, solver: _Solver
) -> tuple[Eigenvalues, Eigenvalues]:
    """Eigenvalues at the iterates and at the centres of a chunk of states, one after another."""

    def at_state(state: State) -> Eigenvalues:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        following, _ = dynamics.step(state)
        centre = state.params + (following.previous_update - state.previous_update) / 4
        return jax.lax.map(
            lambda params: _eigenvalues(dynamics, state, params, key, solver),
            jnp.stack([state.params, centre]),
        )

    found = jax.lax.map(at_state, states)
    at_iterate, at_centre = (jax.tree.map(lambda a, i=i: a[:, i], found) for i in (0, 1))
    return at_iterate, at_centre


def _eigenvalues(
    dynamics: Dynamics, state: State, params: Float[Array, " params"], key: Array, solver: _Solver
) -> Eigenvalues:
    matvec = curvature(dynamics, state, params, solver.optimizer, static=solver.static)
    pairs = top_eigenpairs(
        matvec,
        params.size,
        solver.k,
        tol=solver.tol,
        max_matvecs=solver.max_matvecs,
        key=key,
        dtype=params.dtype,
    )
    found = (pairs.eigenvalues, pairs.residuals, pairs.converged, pairs.num_matvecs)
    return Eigenvalues(*cast(Any, found))


def curvature(
    dynamics: Dynamics,
    state: State,
    params: Float[Array, " params"],
    optimizer: OptimizerConfig,
    *,
    static: bool,
) -> Callable[[Float[Array, " params"]], Float[Array, " params"]]:
    """Products with the operator whose eigenvalues the optimizer's threshold bounds.

    That is the Hessian at `params` of the full-batch loss at the state's step, preconditioned as
    the update from `state` is where the optimizer is adaptive.
    """
    problem = dynamics.problem.static() if static else dynamics.problem
    matvec = hessian(problem, params, state.step)
    if optimizer.name not in ADAPTIVE:
        return matvec
    slope = gradient(dynamics.problem_at(state.step), state.params, state.step)
    return preconditioned(matvec, preconditioner(optimizer, state.optimizer_state, slope))
