"""The settings of analyses: frozen dataclasses like those of a run; `config` has all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dlf_dynamics.errors import ConfigError, shown
from dlf_dynamics.memory import bytes_of
from dlf_dynamics.ranges import check_counts, check_fractions
from dlf_dynamics.spans import plane_of, require_whole, span_of

EngineName = Literal["own", "neural-tangents"]

_SPREAD = ("alignment_checkpoints", "density_checkpoints")


@dataclass(frozen=True)
class SpectrumConfig:
    """What to compute, and where along the run."""

    every: int = 1
    """Take each n-th checkpoint."""
    steps: str = ":"
    """Steps a:b to analyse, from a up to but not including b; either may be left out."""
    k: int = 1
    """Number of Hessian eigenvalues. The search for the largest one also bounds it from above; for
    more, a random chain looks for missed ones."""
    which: Literal["largest", "smallest", "both"] = "largest"
    """End of the spectrum; both takes k from each."""
    above: float | None = None
    """Take more than k if needed, 64 at most, so that all eigenvalues above this fraction of the
    optimizer's threshold are included; if they are not, the summary says so."""
    operator: Literal["hessian", "ggn", "remainder"] = "hessian"
    """Hessian, generalized Gauss-Newton matrix, or their difference."""
    static: bool = False
    """Take the static loss instead of the weighted loss of each step."""
    class_label: int | None = None
    """Take one class's part of the loss."""
    block: str = ""
    """Take a block of the parameters: 0 is the first layer, 0/1 its biases."""
    ntk_examples: int = 50
    """Examples for the NTK, the first ones of the data; 0 leaves the NTK out."""
    ntk_full: bool = False
    """Keep the outputs apart in the NTK instead of averaging over them."""
    alignment_checkpoints: int = 200
    """Checkpoints, evenly spaced, at which the NTK's alignment with the labels is computed, on as
    many examples drawn evenly from the classes; all checkpoints if these are the first examples."""
    ntk_engine: EngineName = "own"
    """What computes the NTK: this program, or the package neural-tangents, which is installed
    separately. The kernels agree to rounding."""
    infinite_width: bool = False
    """Compare the NTK with the kernels of infinitely wide networks (needs neural-tangents)."""
    density: bool = False
    """Compute spectral densities too, of Hessian, GGN and NTK, by stochastic Lanczos quadrature."""
    density_checkpoints: int = 40
    """Checkpoints at which densities are computed, evenly spaced."""
    tol: float | None = None
    """Residual that counts as converged, relative to the norm of the operator; none means 1e-6, or
    1e-3 in float32."""
    max_matvecs: int = 200
    """Largest number of products per checkpoint and point."""
    failure_probability: float = 1e-6
    """Failure probability of each upper bound, at each checkpoint and point."""
    rank_tolerance: float = 0.03
    """How far above the computed eigenvalues a missed one may be, relative to the spread of the
    spectrum."""
    unranked: bool = False
    """Do not look for missed eigenvalues if k is more than 1. Such values decide nothing."""
    tracked: bool = False
    """Start each checkpoint from the eigenvectors of the one before, without looking for missed
    ones: fewer products, for large networks, but values that decide nothing."""
    certificate: Literal["float64", "float32"] = "float64"
    """Precision in which eigenvalues and residuals of a float32 run are computed, at the recorded
    parameters; float32 for devices without fast float64."""
    batch_size: int | None = None
    """Examples that go through the network at a time; none takes as many as fit into memory."""
    max_memory: str | None = None
    """Memory that products and their vectors may use on a device, such as 4GB, from which
    batch_size is chosen; none means three quarters of the device's memory."""
    seed: int = 0
    """Seed of the random start vectors."""

    def __post_init__(self) -> None:
        if self.max_memory is not None:
            bytes_of(self.max_memory)
        counts = {"every": 1, "k": 1, "ntk_examples": 0, "batch_size": 1}
        check_counts(self, counts | dict.fromkeys(_SPREAD, 1) | {"max_matvecs": 1})
        span_of(self.steps, "steps")
        if self.above is not None and not self.above > 0:
            raise ConfigError(f"above is {self.above}; expected a fraction above 0, or none")
        if self.above is not None and self.which != "largest":
            raise ConfigError(f"which is {self.which!r}; expected 'largest' where above is given")
        if self.infinite_width and not self.ntk_examples:
            raise ConfigError("ntk_examples is 0; expected at least 1 where infinite_width is true")
        check_fractions(self, "tol", "failure_probability")
        if not self.rank_tolerance > 0:
            raise ConfigError(
                f"rank_tolerance is {self.rank_tolerance}; expected a number above 0 (--unranked "
                "leaves out what it is for)"
            )
        ends = 2 if self.which == "both" else 1
        if self.max_matvecs < 2 * ends * self.k + 2:
            raise ConfigError(
                f"max_matvecs is {self.max_matvecs}; expected at least "
                f"{2 * ends * self.k + 2} for k = {self.k}"
            )


@dataclass(frozen=True)
class BifurcationConfig:
    """How to find the instabilities of a run."""

    every: int = 25
    """Compute the curvature at every n-th step, whatever checkpoints there are, and at the first
    and last step with a centre; crossings are then located to the step. Crossings that return in
    between are missed; 1 computes it at each step."""
    steps: str = ":"
    """Steps a:b to analyse, from a up to but not including b; either may be left out."""
    tol: float | None = None
    """Residual that counts as converged, relative to the norm of the operator; none means 1e-6, or
    1e-3 in float32."""
    max_matvecs: int = 200
    """Largest number of products per eigenvalue."""
    horizon: int = 100
    """Steps after which the response of the other parameters to an oscillation is measured, for the
    flip coefficient."""
    diagrams: str = "auto"
    """Steps, separated by commas, at which the loss is frozen for orbit diagrams; auto takes one
    step inside the longest oscillation, none leaves the diagrams out."""
    pulses: str = "none"
    """Pulses a:b, counted from 0 and without b, whose maps are computed: the growth of
    perturbations over each pulse, and Floquet multipliers if the orbit closes. auto takes all whole
    pulses within steps, none leaves them out: they take about 100 times as long as the steps took
    in training."""
    cycles: str = "none"
    """The same for cycles, which go once through all classes; with more than one class, only the
    orbit of a cycle can close."""
    pulse_modes: int = 3
    """Number of singular values and multipliers of each of these maps."""
    plane: str = "none"
    """Two parameters in whose plane curves of bifurcations are followed, with the loss frozen as
    for the diagrams: learning_rate, amplitude, period, momentum or class_weight, each optionally
    with a range, such as learning_rate:0.1:2,amplitude. The minimum of the loss must be isolated,
    as it is for a squared error with loss.l2, and the network small and smooth."""
    seed: int = 0
    """Seed of the random start vectors."""

    def __post_init__(self) -> None:
        span_of(self.steps, "steps")
        counts = {"every": 1, "max_matvecs": 4, "horizon": 20, "pulse_modes": 1}
        check_counts(self, counts)
        for key in ("pulses", "cycles"):
            if getattr(self, key) not in ("auto", "none"):
                require_whole(getattr(self, key), key)
        if self.plane != "none":
            plane_of(self.plane)
        check_fractions(self, "tol")
        if self.diagrams not in ("auto", "none") and not re.fullmatch(_STEPS, self.diagrams):
            raise ConfigError(
                f"diagrams is {shown(self.diagrams)}; expected auto, none, or steps such as "
                "9700,14000"
            )


@dataclass(frozen=True)
class ExplainConfig:
    """The step to explain, and how."""

    step: int | None = None
    """The step; none takes the last one that has a step before and after it."""
    window: int = 200
    """Steps before and after it that the figure shows."""
    reach: int = 1000
    """Steps before and after it in which to look for crossings and oscillations, if there is no
    RUN.bifurcations.h5 that contains them."""
    every: int = 25
    """Compute the curvature at every n-th of these steps; then locate crossings to the step."""
    k: int = 3
    """Eigenvalues at the iterate and at the centre, to count those above the threshold."""
    tol: float | None = None
    """Residual that counts as converged, relative to the norm of the operator; none means 1e-6, or
    1e-3 in float32."""
    max_matvecs: int = 200
    """Largest number of products per step and point."""
    seed: int = 0
    """Seed of the random start vectors."""

    def __post_init__(self) -> None:
        check_counts(self, {"step": 0, "window": 1, "reach": 1, "every": 1, "k": 1})
        check_counts(self, {"max_matvecs": 2 * self.k + 2})
        check_fractions(self, "tol")


@dataclass(frozen=True)
class EdgeConfig:
    """Where along a run to determine mean-square stability, and for which batches."""

    checkpoints: int = 20
    """Checkpoints to analyse, evenly spaced, the last one among them."""
    steps: str = ":"
    """Steps a:b to analyse, from a up to but not including b; either may be left out."""
    batch_size: int | None = None
    """Examples per batch, to see what batches of another size would do; none takes the run's own. A
    recorded run with mini-batches does not contain their size: give it here."""
    epochs: bool = False
    """Also determine the threshold of shuffled epochs, from all possible orders of an epoch: for a
    few examples and plain SGD."""
    tol: float = 1e-3
    """Target width of the interval of the threshold, relative."""
    max_rank: int = 2000
    """Largest number of eigenvectors of the curvature on which second moments are computed; fewer
    take less time and may leave a wider interval."""
    max_matvecs: int = 200
    """Largest number of products per eigenvalue."""
    seed: int = 0
    """Seed of the random start vectors, and of the batches drawn for measurements."""

    def __post_init__(self) -> None:
        span_of(self.steps, "steps")
        counts = {"checkpoints": 1, "batch_size": 1, "max_rank": 1, "max_matvecs": 4}
        check_counts(self, counts)
        if not 1e-9 <= self.tol < 1:
            raise ConfigError(f"tol is {self.tol}; expected at least 1e-9 and less than 1")


@dataclass(frozen=True)
class FlowConfig:
    """The steps of a run to compare with the central flow, and how to integrate it."""

    steps: str = "auto"
    """Steps a:b, from a up to but not including b; auto takes 1000 steps: from 100 before the run
    begins to oscillate, or the last ones if it does not."""
    restart_every: int | None = None
    """Also restart the theories at the run's own centre after this many steps, which shows how far
    ahead they predict; none restarts them only after a break, once they may be applied again."""
    every: int = 10
    """Steps between those at which run and theories are compared."""
    substeps: int = 4
    """Steps of Euler's method for each update of the run, at least 2; momentum moves further and
    takes more: (1 + β)/(1 - β) times as many for heavy ball."""
    modes: int = 8
    """Largest number of directions that may oscillate at once; with more, the flow ends."""
    fraction: float = 0.9
    """Eigenvalues above this fraction of the threshold are followed."""
    theories: bool = True
    """Also compute the predictions of other theories for the same steps; --no-theories leaves them
    out, which takes less time."""
    max_matvecs: int = 200
    """Largest number of products per eigenvalue."""
    seed: int = 0
    """Seed of the random start vectors."""

    def __post_init__(self) -> None:
        if self.steps != "auto":
            span_of(self.steps, "steps")
        check_counts(self, {"every": 1, "substeps": 1, "modes": 1, "max_matvecs": 4})
        if self.restart_every is not None:
            check_counts(self, {"restart_every": 1})
            if self.restart_every % self.every:
                given = f"restart_every is {self.restart_every}"
                raise ConfigError(f"{given}; expected a multiple of every, {self.every}")
        check_fractions(self, "fraction")


_STEPS = r"[0-9]{1,18}(,[0-9]{1,18})*"
