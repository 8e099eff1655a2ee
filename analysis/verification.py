"""Every reported eigenvalue against a dense eigensolve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dlf_dynamics.analysis.spectrum import Spectrum
from dlf_dynamics.config import OptimizerConfig
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.optimizers import ADAPTIVE, preconditioner
from dlf_dynamics.run import Run

MAX_PARAMS = 2000
"""Dense matrices of this order at most."""


@dataclass(frozen=True)
class Verification:
    """The worst differences found, relative to the largest |eigenvalue| of the matrix.

    Attributes:
        hessian: over all converged values at iterates and centres.
        hessian_step: at which checkpoint that was.
        ntk: over all NTK eigenvalues, NaN when they were not computed.
        num_values: Hessian eigenvalues that were compared.
        not_converged: Hessian eigenvalues left out, as they are reported as not converged.
    """

    hessian: float
    hessian_step: int
    ntk: float
    num_values: int
    not_converged: int


def verify_dense(
    run: Run, spectrum: Spectrum, progress: Callable[[int], None] = lambda done: None
) -> Verification:
    """Compares each reported value with LAPACK's eigenvalues of the dense matrix.

    The dense Hessian is `jax.hessian` of the loss, formed by another order of differentiation on
    the network's own outputs; the dense NTK comes from forward-mode Jacobians.

    Raises:
        ConfigError: when the network is too large for it.
    """
    if run.num_params > MAX_PARAMS:
        raise ConfigError(
            f"--verify-dense needs dense matrices of order {run.num_params}; expected at most "
            f"{MAX_PARAMS} parameters"
        )
    worst, worst_step, worst_ntk, compared, left_out = 0.0, -1, np.nan, 0, 0
    indices = np.searchsorted(run.checkpoint_steps, spectrum.hessian.steps)
    for row, points in enumerate(run.points(indices, 1)):
        state = run.state(points[0])
        for at, params in _points(run.dynamics, state).items():
            found = getattr(spectrum.hessian, at)
            dense = _dense(run, state, params, static=spectrum.config.static)
            exact = np.linalg.eigvalsh(dense)[::-1] if np.all(np.isfinite(dense)) else None
            fine = np.asarray(found.converged[row])
            left_out += int(np.sum(~fine))
            compared += int(np.sum(fine))
            if exact is None or not np.any(fine):
                continue
            close = np.abs(found.eigenvalues[row] - exact[: len(fine)])[fine]
            difference = float(np.max(close) / np.max(np.abs(exact)))
            if difference >= worst:
                worst, worst_step = difference, points[0].step
        if spectrum.ntk is not None:
            worst_ntk = np.fmax(worst_ntk, _ntk_difference(run, state, spectrum, row))
        progress(row + 1)
    return Verification(worst, worst_step, float(worst_ntk), compared, left_out)


def _points(dynamics: Dynamics, state: State) -> dict[str, jax.Array]:
    """The points of the checkpoint, the centre from its definition."""
    points = {"iterate": state.params}
    if int(state.step) > 0:
        following, _ = dynamics.step(state)
        before = state.params - state.previous_update
        points["centre"] = before / 4 + state.params / 2 + following.params / 4
    return points


def _dense(run: Run, state: State, params: jax.Array, *, static: bool) -> np.ndarray:
    problem = run.problem.static() if static else run.problem
    dense = np.asarray(_dense_hessian(problem, params, state.step))
    optimizer: OptimizerConfig = run.config.optimizer
    if optimizer.name not in ADAPTIVE:
        return dense
    batch = run.dynamics.problem_at(state.step)
    slope = jax.grad(batch.objective)(state.params, state.step)
    scale = 1 / np.sqrt(np.asarray(preconditioner(optimizer, state.optimizer_state, slope)))
    return scale[:, None] * dense * scale[None, :]


@jax.jit
def _dense_hessian(problem, params, step):
    return jax.jacrev(jax.jacrev(problem.objective))(params, step)


@jax.jit
def _dense_jacobian(problem, params):
    return jax.jacfwd(problem.outputs)(params)


def _ntk_difference(run: Run, state: State, spectrum: Spectrum, row: int) -> float:
    ntk = spectrum.ntk
    assert ntk is not None
    problem = run.problem.take(jnp.arange(ntk.num_examples))
    jac = np.asarray(_dense_jacobian(problem, state.params))
    kernel = np.einsum("aip,bjp->aibj", jac, jac)
    size = jac.shape[0] * jac.shape[1]
    dense = (
        np.einsum("aibi->ab", kernel) / jac.shape[1]
        if ntk.trace_outputs
        else kernel.reshape(size, size)
    )
    exact = np.linalg.eigvalsh(dense)[::-1]
    return float(np.max(np.abs(ntk.eigenvalues[row] - exact)) / np.max(np.abs(exact)))
