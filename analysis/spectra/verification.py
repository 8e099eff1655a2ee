"""Comparison of every reported number with a dense eigensolve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dlf_dynamics.analysis.spectra.curvature import Curvature
from dlf_dynamics.analysis.spectra.density import Density
from dlf_dynamics.analysis.spectra.eigenvalues import HessianSpectrum
from dlf_dynamics.analysis.spectra.ntk import NTKSpectrum
from dlf_dynamics.analysis.spectra.spectrum import Spectrum
from dlf_dynamics.dynamics import Dynamics, State
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.optimizers import preconditioner
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Run

_MAX_PARAMS = 2000
"""Largest order of the dense matrices."""


@dataclass(frozen=True)
class Verification:
    """The worst differences found, relative to the largest |eigenvalue| of the matrix.

    Attributes:
        hessian: worst difference over all converged values at iterates and centres.
        hessian_step: step of the checkpoint at which it occurs.
        outside: number of converged values that lie outside their intervals.
        ntk: worst difference over all converged NTK eigenvalues and the kernels' statistics, NaN
            when they were not computed.
        num_values: number of Hessian eigenvalues that were compared.
        not_converged: number of Hessian eigenvalues left out, being reported as not converged.
        densities: largest distance of trace or Frobenius norm from the exact one, in half widths of
            their intervals, by operator.
    """

    hessian: float
    hessian_step: int
    outside: int
    ntk: float
    num_values: int
    not_converged: int
    densities: dict[str, float]

    def lines(self) -> list[str]:
        """The differences in words."""
        lines = [
            f"dense check of {self.num_values} eigenvalues: worst difference {self.hessian:.2e} "
            f"of the largest, at step {self.hessian_step}; {self.outside} outside their intervals; "
            f"NTK {self.ntk:.2e}; {self.not_converged} values not converged and not compared"
        ]
        for name, distance in self.densities.items():
            lines.append(
                f"dense check of the {name} density: trace and Frobenius norm within "
                f"{distance:.1f} half widths of their 95 % intervals"
            )
        return lines


def verify_dense(
    run: Run, spectrum: Spectrum, progress: Callable[[int], None] = lambda done: None
) -> Verification:
    """Compares each reported value with LAPACK's eigenvalues of the dense matrix.

    The dense Hessian is formed by another order of differentiation, the GGN and the NTK from
    forward-mode Jacobians, the part of a class from its examples alone.

    Raises:
        ConfigError: when the network is too large for dense matrices.
        StaleError: when the run has changed since the spectrum was computed.
    """
    spectrum.source.require(run, "the spectrum", "compute it anew")
    if run.num_params > _MAX_PARAMS:
        raise ConfigError(
            f"--verify-dense needs dense matrices of order {run.num_params}; expected at most "
            f"{_MAX_PARAMS} parameters"
        )
    worst, worst_step, outside, worst_ntk, compared, left_out = 0.0, -1, 0, np.nan, 0, 0
    densities = dict.fromkeys(spectrum.densities, 0.0)
    indices = np.searchsorted(run.checkpoint_steps, spectrum.hessian.steps)
    for row, points in enumerate(run.points(indices, 1)):
        state = run.state(points[0])
        for at, params in _points(run.dynamics, state).items():
            fine = getattr(spectrum.hessian, at).converged[row]
            left_out += int(np.sum(~fine))
            compared += int(np.sum(fine))
            exact = _exact(run, spectrum.hessian.curvature, state, params)
            difference, missed = _difference(spectrum.hessian, at, row, exact)
            outside += missed
            if difference >= worst:
                worst, worst_step = difference, points[0].step
        if spectrum.ntk is not None:
            worst_ntk = np.fmax(worst_ntk, _ntk_difference(run, state, spectrum.ntk, row))
        for name, density in spectrum.densities.items():
            distance = _density_distance(run, spectrum, state, density)
            densities[name] = max(densities[name], distance)
        progress(row + 1)
    return Verification(worst, worst_step, outside, float(worst_ntk), compared, left_out, densities)


def _points(dynamics: Dynamics, state: State) -> dict[str, jax.Array]:
    """The points of the checkpoint, the centre from its definition."""
    points = {"iterate": state.params}
    if int(state.step) > 0:
        following, _ = dynamics.step(state)
        before = state.params - state.previous_update
        points["centre"] = before / 4 + state.params / 2 + following.params / 4
    return points


def _exact(
    run: Run, curvature: Curvature, state: State, params: jax.Array
) -> Float[np.ndarray, " n"] | None:
    """Descending eigenvalues of the dense operator; none where it is not finite."""
    problem = run.problem.static() if curvature.static else run.problem
    share = 1.0
    if curvature.class_label is not None:
        members = jnp.flatnonzero(problem.targets == curvature.class_label)
        share = len(members) / len(problem.targets)
        problem = problem.take(members)
    dense = share * _dense(problem, params, state, curvature.operator)
    if curvature.preconditioned:
        batch = run.dynamics.problem_at(state.step)
        grad = jax.grad(batch.objective)(state.params, state.step)
        scale = preconditioner(run.dynamics.update, state.optimizer_state, grad)
        root = 1 / np.sqrt(np.asarray(scale))
        dense = root[:, None] * dense * root[None, :]
    if curvature.span is not None:
        dense = dense[slice(*curvature.span), slice(*curvature.span)]
    return np.linalg.eigvalsh(dense)[::-1] if np.all(np.isfinite(dense)) else None


def _dense(problem: Problem, params: jax.Array, state: State, operator: str) -> np.ndarray:
    if operator == "hessian":
        return np.asarray(_dense_hessian(problem, params, state.step))
    dense_ggn = np.asarray(_dense_ggn(problem, params, state.step))
    if operator == "ggn":
        return dense_ggn
    return np.asarray(_dense_hessian(problem, params, state.step)) - dense_ggn


@jax.jit
def _dense_hessian(problem, params, step):
    return jax.jacrev(jax.jacrev(problem.objective))(params, step)


@jax.jit
def _dense_ggn(problem, params, step):
    """Σ_n J_nᵀ (∂²F/∂f_n²) J_n, as the loss couples no two examples."""
    jac = jax.jacfwd(problem.outputs)(params)
    outputs = problem.outputs(params)

    def of_example(output, index):
        replaced = lambda o: problem.loss(outputs.at[index].set(o), step)  # noqa: E731
        return jax.hessian(replaced)(output)

    inner = jax.lax.map(lambda pair: of_example(*pair), (outputs, jnp.arange(len(outputs))))
    return jnp.einsum("nip,nij,njq->pq", jac, inner, jac)


@jax.jit
def _dense_jacobian(problem, params):
    return jax.jacfwd(problem.outputs)(params)


def _difference(
    spectrum: HessianSpectrum, at: str, row: int, exact: np.ndarray | None
) -> tuple[float, int]:
    """Worst relative difference of a checkpoint's converged values, and how many are outside."""
    solved = getattr(spectrum, at)
    fine = solved.converged[row]
    if exact is None or not np.any(fine):
        return 0.0, 0
    top, bottom = spectrum.ends
    # Where k grew to find all above a fraction of the threshold, there are more from the top.
    top = max(top, int(np.sum(np.isfinite(solved.eigenvalues[row]))) - bottom)
    wanted = np.concatenate([exact[:top], exact[len(exact) - bottom :]])[: len(fine)]
    expected = np.full(len(fine), np.nan)
    expected[: len(wanted)] = wanted
    close = np.abs(solved.eigenvalues[row] - expected)[fine]
    lower, upper = solved.intervals[row, fine].T
    # Rounding of LAPACK's eigenvalues.
    slack = len(exact) * np.finfo(solved.eigenvalues.dtype).eps * np.max(np.abs(exact))
    missed = (expected[fine] < lower - slack) | (expected[fine] > upper + slack)
    return float(np.max(close) / np.max(np.abs(exact))), int(np.sum(missed))


def _dense_kernel(
    run: Run, state: State, examples: Sequence[int], *, trace_outputs: bool
) -> np.ndarray:
    problem = run.problem.take(jnp.asarray(np.asarray(examples)))
    jac = np.asarray(_dense_jacobian(problem, state.params))
    kernel = np.einsum("aip,bjp->aibj", jac, jac)
    if trace_outputs:
        return np.einsum("aibi->ab", kernel) / jac.shape[1]
    size = jac.shape[0] * jac.shape[1]
    return kernel.reshape(size, size)


def _ntk_difference(run: Run, state: State, ntk: NTKSpectrum, row: int) -> float:
    """Worst relative difference of the eigenvalues and of the kernel's statistics."""
    examples = range(ntk.num_examples)
    dense = _dense_kernel(run, state, examples, trace_outputs=ntk.trace_outputs)
    if not np.all(np.isfinite(dense)):
        return np.nan
    exact = np.linalg.eigvalsh(dense)[::-1]
    fine = ntk.converged[row]
    eigenvalues = ntk.eigenvalues[row]
    differences = np.abs(eigenvalues - exact[: len(eigenvalues)])[fine] / np.max(np.abs(exact))
    examples = ntk.class_examples or range(ntk.num_examples)
    traced = _dense_kernel(run, state, examples, trace_outputs=True)
    labels = np.asarray(run.problem.targets)[np.asarray(examples)]
    members = np.eye(ntk.class_blocks.shape[1])[labels]
    centring = np.eye(len(labels)) - 1 / len(labels)
    kernel, target = centring @ traced @ centring, centring @ members @ members.T @ centring
    counts = np.sum(members, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        alignment = np.sum(kernel * target) / (np.linalg.norm(kernel) * np.linalg.norm(target))
        blocks = (members.T @ traced @ members) / np.outer(counts, counts)
        pairs = [
            (ntk.trace[row], np.trace(dense)),
            (ntk.effective_rank[row], np.sum(exact) ** 2 / np.sum(exact**2)),
            (ntk.captured[row], np.sum(exact[: len(eigenvalues)][fine]) / np.sum(exact)),
        ]
        # At some checkpoints they are not computed.
        if _any(ntk.class_blocks[row]) or not ntk.class_examples:
            several = np.count_nonzero(counts) > 1
            pairs.append((ntk.alignment[row], alignment if several else np.nan))
            pairs.append((ntk.class_blocks[row], blocks))
        statistics = [np.nanmax(np.abs(a - b) / np.nanmax(np.abs(b))) for a, b in pairs if _any(b)]
    return float(max([*differences, *statistics]))


def _any(values: Any) -> bool:
    return bool(np.any(np.isfinite(values)))


def _density_distance(run: Run, spectrum: Spectrum, state: State, density: Density) -> float:
    """Distance of trace and Frobenius norm, in half widths; 0 where there is no density."""
    (indices,) = np.nonzero(density.steps == int(state.step))
    if len(indices) == 0:
        return 0.0
    if density.operator == "ntk":
        examples = range(min(spectrum.config.ntk_examples, len(run.problem.targets)))
        dense = _dense_kernel(run, state, examples, trace_outputs=False)
    else:
        problem = run.problem.static() if density.static else run.problem
        dense = _dense(problem, state.params, state, density.operator)
    if not np.all(np.isfinite(dense)):
        return 0.0
    row = indices[0]
    exact = np.array([np.trace(dense), np.linalg.norm(dense)])
    estimates = np.array([density.trace[row], density.frobenius[row]])
    errors = np.array([density.trace_radius[row], density.frobenius_radius[row]])
    rounding = 1e-6 * np.abs(exact)
    return float(np.max(np.maximum(np.abs(estimates - exact) - rounding, 0) / (errors + rounding)))
