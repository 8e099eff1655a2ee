"""Measurements of a model at one point, and how far they can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PyTree

from dlf_dynamics.analysis.linalg.eigensolver import Eigenpairs
from dlf_dynamics.analysis.spectra.events import sides
from dlf_dynamics.labels import ENDS
from dlf_dynamics.layout import Layout
from dlf_dynamics.reprs import brief
from dlf_dynamics.shown import Shown

Verdict = Literal["stable", "unstable", "undecided"]


@dataclass(frozen=True)
class Measurement(Shown):
    """The largest eigenvalue of an operator, and how far it can be trusted.

    Attributes:
        value: the eigenvalue where `converged`; else a Ritz value, not to be relied on.
        interval: interval that contains an eigenvalue.
        residual: ‖Av - λv‖, from a fresh product.
        converged: whether the residual is at most `tol` times the norm of the operator, and a
            random vector that was followed showed no larger eigenvalue.
        num_matvecs: number of products that were made.
        message: what was done and, where needed, what to try.

    >>> print(Measurement(2.0, (1.9, 2.1), 0.1, False, 6, "0 of 1 converged"))
    Ritz value 2 ± 0.1, not converged: 0 of 1 converged
    """

    value: float
    interval: tuple[float, float]
    residual: float
    converged: bool
    num_matvecs: int
    message: str
    told_by = "measurement"

    def __str__(self) -> str:
        low, high = self.interval
        name, end = "eigenvalue", "converged"
        if not self.converged:
            name, end = "Ritz value", f"not converged: {self.message}"
        return f"{name} {self.value:g} ± {(high - low) / 2:.1g}, {end}"


@dataclass(frozen=True)
class ParameterEigenpairs(Eigenpairs, Shown):
    """Eigenvalues with eigenvectors in the form of the parameters.

    Attributes:
        layout: layout of the parameters.
    """

    layout: Layout
    told_by = "measurement"
    __repr__ = brief

    def direction(self, index: int = 0) -> PyTree:
        """An eigenvector as a pytree like the parameters, of norm 1 over all leaves."""
        if not isinstance(self.eigenvectors, np.ndarray):
            return jax.tree.map(lambda leaf: leaf[index], self.eigenvectors)
        return self.layout.unflatten(jnp.asarray(self.eigenvectors[index]))


@dataclass(frozen=True)
class Stability(Measurement):
    """The largest eigenvalue beside the threshold of the optimizer at that step.

    Directions of negative curvature, along which every optimizer moves away, are not counted.

    Attributes:
        threshold: critical eigenvalue; infinite where the learning rate is 0.
        label: the matrix of the eigenvalue, to which the threshold applies.
    """

    threshold: float
    label: str

    @property
    def margin(self) -> float:
        """How far below the threshold the value is; negative above it."""
        return self.threshold - self.value

    @property
    def relative_margin(self) -> float:
        """The margin as a fraction of the threshold; 1 where that is infinite."""
        return 1 - self.value / self.threshold

    @property
    def verdict(self) -> Verdict:
        """`undecided` where the threshold lies in the interval, or nothing has converged."""
        limits = np.array([self.threshold])
        (side,) = sides(np.array([self.interval]), np.array([self.converged]), limits)
        verdicts: tuple[Verdict, ...] = ("undecided", "unstable", "stable")
        return verdicts[side]

    def __str__(self) -> str:
        return f"{self.verdict}: {super().__str__()}, threshold {self.threshold:g}, {self.label}"


@dataclass(frozen=True)
class KernelSpectrum(Shown):
    """Eigenvalues of the empirical NTK on some examples.

    Attributes:
        eigenvalues: eigenvalues, in descending order.
        residuals: residuals from fresh products; 0 for a kernel that was formed.
        intervals: lower and upper ends; for a kernel that was formed, the range of rounding.
        converged: whether each value converged; the others are Ritz values, not to be relied on.
        num_examples: number of examples that the kernel is taken on, the first ones.
        trace_outputs: whether it is averaged over the outputs; else it has a row for each output of
            each example.
        trace: trace of the kernel, the sum of all eigenvalues.
        effective_rank: participation ratio (Σ λ)² / Σ λ² of all eigenvalues.
    """

    eigenvalues: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    intervals: Float[np.ndarray, "k ends=2"]
    converged: Bool[np.ndarray, " k"]
    num_examples: int
    trace_outputs: bool
    trace: float
    effective_rank: float
    told_by = "measurement"
    words = MappingProxyType({"ends": ENDS})
    __repr__ = brief
