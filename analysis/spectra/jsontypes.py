"""Types of what `spectrum --json` prints; a float that is not finite is null there."""

from __future__ import annotations

from typing import TypedDict

from dlf_dynamics.analysis.spectra.events import Crossing, Oscillation
from dlf_dynamics.config import SpectrumConfig
from dlf_dynamics.source import State


class ThresholdDict(TypedDict):
    """The threshold.

    Attributes:
        label: what it is, or why there is none.
        first: at the first checkpoint.
        last: at the last one.
    """

    label: str
    first: float
    last: float


class AboveDict(TypedDict):
    """How far the values go that were to be all above a fraction of the threshold.

    Attributes:
        fraction: of the threshold.
        incomplete_steps: at which values above it may be missing.
        smallest_there: smallest value at these.
    """

    fraction: float
    incomplete_steps: list[int]
    smallest_there: float


class KernelDict(TypedDict):
    """The NTK, at each step.

    Attributes:
        steps: step of each checkpoint.
        trace: sum of all eigenvalues.
        captured: part of the trace that the eigenvalues which converged make up.
        effective_rank: participation ratio of all eigenvalues.
        alignment: with the labels, centred.
        class_examples: indices of the examples for the alignment.
    """

    steps: list[int]
    trace: list[float]
    captured: list[float]
    effective_rank: list[float]
    alignment: list[float]
    class_examples: list[int]


class LimitsDict(TypedDict):
    """The NTK beside kernels at infinite width.

    Attributes:
        steps: step of each checkpoint.
        distance: relative to the kernel at infinite width.
        alignment: with that kernel, at most 1.
        movement: away from the run's first kernel, relative to it.
        ntk: eigenvalues of the kernel at infinite width.
        nngp: eigenvalues of the NNGP kernel.
    """

    steps: list[int]
    distance: list[float]
    alignment: list[float]
    movement: list[float]
    ntk: list[float]
    nngp: list[float]


class DensityDict(TypedDict):
    """Moments of a spectral density, at each step.

    Attributes:
        steps: step of each checkpoint that it was computed at.
        trace: sum of the eigenvalues.
        trace_radius: half width of its interval of 95 %.
        frobenius: root of the sum of the squared eigenvalues.
        frobenius_radius: half width of its interval of 95 %.
        num_probes: random vectors per checkpoint.
        num_steps: products per probe.
    """

    steps: list[int]
    trace: list[float]
    trace_radius: list[float]
    frobenius: list[float]
    frobenius_radius: list[float]
    num_probes: int
    num_steps: int


class SpectrumDict(TypedDict):
    """All of it; what the keys are stands in `SpectrumAnalysis.keys`."""

    run_id: str
    run: State
    config: SpectrumConfig
    threshold: ThresholdDict
    reference: ThresholdDict | None
    checkpoints: int
    operator: str
    values: int
    values_not_converged: int
    not_converged: int
    centres: bool
    above: AboveDict | None
    failed: list[int]
    unresolved: int
    statuses: dict[str, int]
    failure_probability: float
    precision: str
    matvecs_per_checkpoint_and_point: float
    largest_sharpness_at_centres: float
    largest_ntk_eigenvalue: float | None
    ntk: KernelDict | None
    infinite_width: LimitsDict | None
    densities: dict[str, DensityDict]
    oscillations_known: bool
    bursts: int
    oscillations: list[Oscillation]
    crossings: list[Crossing]
