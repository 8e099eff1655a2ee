"""Neural-tangent-kernel spectra along a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlf_dynamics.operators import jacobian
from dlf_dynamics.problem import Problem
from dlf_dynamics.run import Checkpoints, Run

_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True)
class NTKSpectrum:
    """Eigenvalues of the empirical NTK along a run.

    Attributes:
        steps: of the checkpoints.
        eigenvalues: descending, shape (checkpoints, size of the kernel).
        num_examples: the kernel is taken on the first examples, this many.
        trace_outputs: whether the kernel is averaged over the outputs; else it is the full one on
            examples and outputs.
    """

    steps: Int[np.ndarray, " checkpoints"]
    eigenvalues: Float[np.ndarray, "checkpoints size"]
    num_examples: int
    trace_outputs: bool


def ntk_spectrum(
    run: Run,
    checkpoints: Checkpoints | None = None,
    *,
    num_examples: int = 50,
    trace_outputs: bool = True,
    progress: Callable[[int], None] = lambda done: None,
) -> NTKSpectrum:
    """All eigenvalues of the NTK of the first examples, by a dense eigensolver.

    Args:
        run: a recorded run.
        checkpoints: increasing indices into `run.checkpoint_steps`; none means all.
        num_examples: size of the kernel; published is 50.
        trace_outputs: whether to average the kernel over the outputs, as neural-tangents'
            `trace_axes=(-1,)` does.
        progress: told how many checkpoints are done.
    """
    indices = np.arange(len(run.checkpoint_steps)) if checkpoints is None else checkpoints
    problem = run.problem.take(jnp.arange(min(num_examples, len(run.problem.targets))))
    chunk = _chunk(problem, run.num_params)
    found = []
    for points in run.points(indices, chunk):
        params = np.stack(
            [*(p.params for p in points), *[points[-1].params] * (chunk - len(points))]
        )
        kernels = np.asarray(_grams(problem, params, trace_outputs=trace_outputs))
        # XLA's dense eigensolver is several times slower than LAPACK through NumPy.
        found.append(_eigenvalues(kernels[: len(points)]))
        progress(sum(map(len, found)))
    return NTKSpectrum(
        run.checkpoint_steps[np.asarray(indices)],
        np.concatenate(found),
        len(problem.targets),
        trace_outputs,
    )


def gram_matrix(
    problem: Problem, params: Float[Array, " params"], *, trace_outputs: bool = True
) -> Float[Array, "size size"]:
    """The NTK of the problem's examples, Θ = J Jᵀ (Jacot, Gabriel and Hongler, 2018, Eq. 4).

    Traced: Σ_i J_ni · J_mi / C, shape (examples, examples). Full: rows and columns run over the
    outputs of the first example, then of the second, and so on.
    """
    jac = jacobian(problem, params)
    num_outputs = jac.shape[1]
    if trace_outputs:
        flat = jac.reshape(len(jac), -1)
        return flat @ flat.T / num_outputs
    flat = jac.reshape(len(jac) * num_outputs, -1)
    return flat @ flat.T


@partial(jax.jit, static_argnames="trace_outputs")
def _grams(
    problem: Problem, params: Float[Array, "checkpoints params"], *, trace_outputs: bool
) -> Float[Array, "checkpoints size size"]:
    return jax.lax.map(
        lambda vector: gram_matrix(problem, vector, trace_outputs=trace_outputs), params
    )


def _eigenvalues(kernels: Float[np.ndarray, "n size size"]) -> Float[np.ndarray, "n size"]:
    """Descending eigenvalues; NaN where a kernel is not finite."""
    finite = np.all(np.isfinite(kernels), axis=(1, 2))
    values = np.full(kernels.shape[:2], np.nan)
    values[finite] = np.linalg.eigvalsh(kernels[finite])[:, ::-1]
    return values


def _chunk(problem: Problem, num_params: int) -> int:
    """Checkpoints per call such that parameters and kernels stay small."""
    size = jax.eval_shape(problem.outputs, jax.ShapeDtypeStruct((num_params,), float)).size
    return int(np.clip(_CHUNK_NUMBERS // (num_params + size**2), 1, 100))
