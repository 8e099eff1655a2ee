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
        first: value at the first checkpoint.
        last: value at the last checkpoint.
    """

    label: str
    first: float
    last: float


class AboveDict(TypedDict):
    """Whether all values above a fraction of the threshold were found.

    Attributes:
        fraction: fraction of the threshold.
        incomplete_steps: steps at which values above it may be missing.
        smallest_there: smallest value at these steps.
    """

    fraction: float
    incomplete_steps: list[int]
    smallest_there: float


class KernelDict(TypedDict):
    """The NTK, at each step.

    Attributes:
        steps: step of each checkpoint.
        trace: sum of all eigenvalues.
        captured: fraction of the trace in the converged eigenvalues.
        effective_rank: participation ratio of all eigenvalues.
        alignment: centred alignment with the labels.
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
        distance: distance from the kernel at infinite width, relative to that kernel.
        alignment: alignment with the kernel at infinite width, at most 1.
        movement: distance from the run's first kernel, relative to that kernel.
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
        steps: step of each checkpoint at which it was computed.
        trace: sum of the eigenvalues.
        trace_radius: half width of its 95 % interval.
        frobenius: root of the sum of the squared eigenvalues.
        frobenius_radius: half width of its 95 % interval.
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
    """What `spectrum --json` prints.

    Attributes:
        run_id: id of the run
        run: its status, last step and number of checkpoints when it was analysed
        config: settings, with the values of `k`, `tol` and `ntk_examples` that were used
        threshold: `label`, what it is or why there is none; `first` and `last` value
        reference: threshold of full-batch updates for a run with mini-batches, against which
            nothing is decided; null otherwise
        checkpoints: number of checkpoints that were analysed
        operator: the operator in words
        values: number of eigenvalues at iterates and centres
        values_not_converged: how many of them did not converge
        not_converged: number of checkpoints at which any value did not converge
        centres: whether there are centres; false for unknown mini-batches
        above: null without `above`; else the `fraction`, `incomplete_steps` at which values above
            it may be missing, and `smallest_there`, the smallest value at these
        failed: steps at which the loss or its curvature is not finite
        unresolved: number of checkpoints on neither side of the threshold
        statuses: number of values by status
        failure_probability: bound on the probability that any upper bound fails
        precision: type of numbers in which eigenvalues and residuals were computed
        matvecs_per_checkpoint_and_point: mean number of products
        largest_sharpness_at_centres: largest sharpness over all checkpoints
        largest_ntk_eigenvalue: largest value over all checkpoints; null without the kernel
        ntk: values at each of the `steps`: `trace`, `captured`, `effective_rank`, `alignment`; and
            `class_examples`; null without the kernel
        infinite_width: values at each of the `steps`: `distance`, `alignment`, `movement`; and the
            eigenvalues `ntk` and `nngp` of the limits; null without them
        densities: values by operator, at each of the `steps`: `trace` and `frobenius` norm with
            half widths of their 95 % intervals; `num_probes`, `num_steps`
        oscillations_known: false for mini-batches, whose noise alone alternates
        bursts: number of oscillations that are seen in the loss
        oscillations: a list of `Oscillation`, field by field
        crossings: a list of `Crossing`, field by field
    """

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
