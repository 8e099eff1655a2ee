"""The modes near the threshold, followed along a flow."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dlf_dynamics.analysis.linalg.eigensolver import Eigenpairs, top_eigenpairs
from dlf_dynamics.analysis.theories.blended import Moment, Vector
from dlf_dynamics.analysis.theories.metric import Metric, scaled
from dlf_dynamics.analysis.theories.substep import Local, local

_CRITICAL = 0.99
"""Fraction of the threshold from which on the next substeps hold an eigenvalue there."""

_SAME = 0.5
"""Squared length of the part of a vector within the followed ones that makes it one of them."""

_MOST_MATVECS = 400
"""Largest number of products of a certified solve."""


class CriticalModes:
    """Eigenvectors near the threshold, and one guard behind them that detects rising ones.

    Attributes:
        loss: loss made by `blended`.
        fraction: fraction of the threshold above which an eigenvalue is followed.
        most: largest number of modes.
        metric: P at the next point, where modes are those of P⁻¹ H; none means 1.
        tol: largest residual, relative to the largest eigenvalue.
        count: number of followed modes.
        num_products: number of Hessian products so far.
        expected: predicted uᵢᵀ H uⱼ at the next point, if there is a prediction.
        mismatch: largest difference from the prediction since it was last set to 0, relative to the
            largest eigenvalue.
        missed: whether the last certified solve found an eigenvalue above the threshold that had
            not been followed.
    """

    def __init__(self, loss: Partial, fraction: float, most: int, tol: float, seed: int) -> None:
        self.loss, self.fraction, self.most, self.tol = loss, fraction, most, tol
        self.key = jax.random.key(seed)
        self.metric: Metric | None = None
        self.count = self.num_products = self._drawn = 0
        self.expected: Float[np.ndarray, "k k"] | None = None
        self.mismatch, self.missed = 0.0, False
        self._vectors: Array | None = None
        self._before: Array | None = None
        self._basis: Array | None = None
        self._scale = 0.0

    def look(self, params: Vector, step: int, threshold: float) -> bool:
        """Restarts from a certified solve; whether it shows that nothing critical is left out.

        From there on, as many modes are followed as it found near the threshold.

        Args:
            params: θ.
            step: step of the loss.
            threshold: lowest critical eigenvalue until the next step.
        """
        size, wanted = params.size, min(max(self.count, 1) + 1, params.size)
        while True:
            pairs = self._solved(params, step, wanted)
            self.num_products += pairs.num_matvecs
            last = float(pairs.eigenvalues[-1])
            if not last > self.fraction * threshold or wanted >= min(self.most + 1, size):
                break
            wanted += 1
        vectors = jnp.asarray(pairs.eigenvectors, params.dtype)
        if self._vectors is not None:
            inside = np.sum(np.asarray(vectors @ self._vectors.T, float) ** 2, axis=1)
            self.missed = bool(np.any((inside < _SAME) & (pairs.intervals[:, 0] > threshold)))
        count = self._counted(pairs.eigenvalues, threshold)
        if count != self.count:
            if self.expected is not None:  # compare with the prediction of the last substep
                self.at(params, step, 0.0)
            self.count, self._basis = count, None
        self._vectors = self._before = vectors
        self._scale = float(np.max(np.abs(pairs.eigenvalues)))
        # Each interval contains the eigenvalue of its rank, which no later one exceeds.
        left_out = pairs.intervals[count:, 1]
        whole = wanted == size or len(left_out) > 0
        return bool(whole and np.all(pairs.converged) and np.all(left_out < threshold))

    def begin(self, params: Vector, step: int, threshold: float) -> Local:
        """The derivatives at a step, with as many modes as are near the threshold there."""
        derivatives = self.at(params, step, 0.0)
        for _ in range(self.most + 1):  # values near the limit could come and go forever
            count = self._counted(np.asarray(derivatives.values), threshold)
            if count == self.count:
                break
            self.count, self._basis = count, None
            derivatives = self.at(params, step, 0.0)
        return derivatives

    def at(self, params: Vector, step: int, fraction: float) -> Local:
        """The derivatives at a time between two steps."""
        known = self._vectors
        vectors = self._guarded(params[None][:0] if known is None else known)
        same = vectors is known and self._before is not None
        basis = vectors[: self.count] if self._basis is None else self._basis
        derivatives = local(
            self.loss,
            params,
            _moment(step, fraction),
            vectors,
            self._before if same else vectors,
            basis,
            np.asarray(self.tol * self._scale, params.dtype),
            self.metric,
            count=self.count,
        ).on_host()
        self.num_products += int(derivatives.num_products)
        self._before, self._vectors = vectors, derivatives.vectors
        self._basis = derivatives.vectors[: self.count]
        self._scale = float(np.max(np.abs(derivatives.values)))
        if self.expected is not None and len(self.expected):
            difference = np.linalg.norm(np.asarray(derivatives.hessian, float) - self.expected, 2)
            self.mismatch = max(self.mismatch, float(difference) / self._scale)
        self.expected = None
        return derivatives

    def leaves_out(self, derivatives: Local, threshold: float) -> bool:
        """Whether more modes reach the threshold than may be followed."""
        return bool(np.any(derivatives.values[self.most :] >= _CRITICAL * threshold))

    def is_converged(self, derivatives: Local) -> bool:
        """Whether the residuals of the modes are small."""
        allowed = 1.5 * self.tol * float(np.max(np.abs(derivatives.values)))
        return bool(np.all(np.asarray(derivatives.residuals[: max(self.count, 1)]) <= allowed))

    def _counted(self, values: Float[np.ndarray, " rows"], threshold: float) -> int:
        return min(int(np.sum(values > self.fraction * threshold)), self.most)

    def _guarded(self, vectors: Array) -> Array:
        """One row more than there are modes, where there is room, and at least two rows."""
        size = vectors.shape[1]
        wanted = min(max(self.count, 1) + 1, size)
        missing = wanted - len(vectors)
        if missing <= 0:
            return vectors[:wanted] if missing < 0 else vectors
        self._drawn += 1
        key = jax.random.fold_in(self.key, self._drawn)
        drawn = jax.random.normal(key, (missing, size), vectors.dtype) / size**0.5
        return jnp.concatenate([vectors, drawn])

    def _solved(self, params: Vector, step: int, wanted: int) -> Eigenpairs:
        self._drawn += 1
        return top_eigenpairs(
            Partial(_hessian_product, self.loss, params, _moment(step, 0.0), self.metric),
            params.size,
            wanted,
            tol=self.tol,
            max_matvecs=max(_MOST_MATVECS, 2 * wanted + 2),
            key=jax.random.fold_in(self.key, self._drawn),
            dtype=params.dtype,
        )


def _moment(step: int, fraction: float) -> Moment:
    return Moment(np.asarray(step, np.int32), np.asarray(fraction, float))


def _hessian_product(
    loss: Partial, params: Vector, moment: Moment, metric: Metric | None, vector: Vector
) -> Vector:
    gradient = jax.grad(lambda params: loss(params, moment))
    return scaled(jax.jvp(gradient, (params,), (scaled(vector, metric),))[1], metric)
