"""The settings of analyses: frozen dataclasses like those of a run; `config` has all of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from dlf_dynamics.errors import ConfigError, shown
from dlf_dynamics.memory import bytes_of
from dlf_dynamics.ranges import check_counts
from dlf_dynamics.spans import plane_of, require_whole, span_of

EngineName = Literal["own", "neural-tangents"]

_SPREAD = ("alignment_checkpoints", "density_checkpoints")


@dataclass(frozen=True)
class SpectrumConfig:
    """What to compute, and where along the run."""

    every: int = 1
    """Take each n-th checkpoint."""
    steps: str = ":"
    """Steps a:b to look at, a included and b not; either may be left out."""
    k: int = 1
    """Number of Hessian eigenvalues. The largest is bounded from above by its own search; for more,
    a random chain looks for what was missed."""
    which: Literal["largest", "smallest", "both"] = "largest"
    """End of the spectrum; both takes k from each."""
    above: float | None = None
    """Take more than k where needed, 64 at most, until every eigenvalue above this fraction of the
    optimizer's threshold is there; where it is not, the summary says so."""
    operator: Literal["hessian", "ggn", "remainder"] = "hessian"
    """Hessian, generalized Gauss-Newton matrix, or what the Hessian has beyond it."""
    static: bool = False
    """Take the static loss instead of the weighted loss of each step."""
    class_label: int | None = None
    """Take one class's part of the loss."""
    block: str = ""
    """Take a block of the parameters: 0 is the first layer, 0/1 its biases."""
    ntk_examples: int = 50
    """Examples of the NTK, the first ones of the data; 0 leaves the NTK out."""
    ntk_full: bool = False
    """Keep the outputs apart in the NTK instead of averaging over them."""
    alignment_checkpoints: int = 200
    """Checkpoints, evenly spaced, at which the NTK's alignment with the labels is computed, on as
    many examples drawn evenly from the classes; at all of them where these are the first ones."""
    ntk_engine: EngineName = "own"
    """What forms the NTK: this program, or the package neural-tangents, which is installed apart.
    The kernels are equal to rounding."""
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
    """Products per checkpoint and point at most."""
    failure_probability: float = 1e-6
    """Of each upper bound on the largest eigenvalue, at each checkpoint and point."""
    rank_tolerance: float = 0.03
    """How far above what was found a missed eigenvalue may be, relative to the spread of the
    spectrum."""
    unranked: bool = False
    """Do not look for missed eigenvalues where k is more than 1. Such values decide nothing."""
    tracked: bool = False
    """Start each checkpoint from the eigenvectors of the one before and do not look for missed
    ones: fewer products, for large networks, and values that decide nothing."""
    certificate: Literal["float64", "float32"] = "float64"
    """Precision in which eigenvalues and residuals of a float32 run are computed, at the recorded
    parameters; float32 for a device that has no fast float64."""
    batch_size: int | None = None
    """Examples that go through the network at a time; none takes as many as memory holds."""
    max_memory: str | None = None
    """Memory that products and their vectors may take on a device, such as 4GB, from which
    batch_size is chosen; none means three quarters of what there is."""
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
        if self.tol is not None and not 0 < self.tol < 1:
            raise ConfigError(f"tol is {self.tol}; expected a number between 0 and 1")
        if not 0 < self.failure_probability < 1:
            raise ConfigError(
                f"failure_probability is {self.failure_probability}; expected a number between 0 "
                "and 1"
            )
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
    """How the instabilities of a run are looked for."""

    every: int = 25
    """The curvature is looked at every so many steps, whatever checkpoints there are, and at the
    first and the last that have a centre; crossings are then located to the step. What crosses and
    returns in between is not seen; 1 looks at each step."""
    steps: str = ":"
    """Steps a:b to look at, a included and b not; either may be left out."""
    tol: float | None = None
    """Residual that counts as converged, relative to the norm of the operator; none means 1e-6, or
    1e-3 in float32."""
    max_matvecs: int = 200
    """Products per eigenvalue at most."""
    horizon: int = 100
    """Steps after which the response of the other parameters to an oscillation is taken, for the
    flip coefficient."""
    diagrams: str = "auto"
    """Steps, separated by commas, at which the loss is frozen for orbit diagrams; auto takes one
    inside the longest oscillation, none leaves them out."""
    pulses: str = "none"
    """Pulses a:b, counted from 0 and b not among them, whose maps are computed: how perturbations
    grow over each, and Floquet multipliers where the orbit closes. auto takes all whole pulses
    within steps, none leaves them out: they take some 100 times as long as the steps did in
    training."""
    cycles: str = "none"
    """The same for cycles, which are once through all classes; where there is more than one class,
    only the orbit of a cycle can close."""
    pulse_modes: int = 3
    """Singular values and multipliers of each of these maps."""
    plane: str = "none"
    """Two parameters in whose plane curves of bifurcations are followed, the loss being frozen as
    for the diagrams: learning_rate, amplitude, period, momentum or class_weight, each with a range
    if you like, such as learning_rate:0.1:2,amplitude. The minimum of the loss must be isolated, as
    that of a squared error with loss.l2 is, and the network small and smooth."""
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
        if self.tol is not None and not 0 < self.tol < 1:
            raise ConfigError(f"tol is {self.tol}; expected a number between 0 and 1")
        if self.diagrams not in ("auto", "none") and not re.fullmatch(_STEPS, self.diagrams):
            raise ConfigError(
                f"diagrams is {shown(self.diagrams)}; expected auto, none, or steps such as "
                "9700,14000"
            )


@dataclass(frozen=True)
class ExplainConfig:
    """Which step is explained, and how."""

    step: int | None = None
    """The step; none takes the last one that has a step before it and one after it."""
    window: int = 200
    """Steps before and after it that the figure shows."""
    reach: int = 1000
    """Steps before and after it in which crossings and oscillations are looked for, where there is
    no RUN.bifurcations.h5 that knows them."""
    every: int = 25
    """In these the curvature is looked at every so many steps; crossings are then located to the
    step."""
    k: int = 3
    """Eigenvalues at the iterate and at the centre, to count those above the threshold."""
    tol: float | None = None
    """Residual that counts as converged, relative to the norm of the operator; none means 1e-6, or
    1e-3 in float32."""
    max_matvecs: int = 200
    """Products per step and point at most."""
    seed: int = 0
    """Seed of the random start vectors."""

    def __post_init__(self) -> None:
        check_counts(self, {"step": 0, "window": 1, "reach": 1, "every": 1, "k": 1})
        check_counts(self, {"max_matvecs": 2 * self.k + 2})
        if self.tol is not None and not 0 < self.tol < 1:
            raise ConfigError(f"tol is {self.tol}; expected a number between 0 and 1")


@dataclass(frozen=True)
class EdgeConfig:
    """Where along a run mean-square stability is told, and of which batches."""

    checkpoints: int = 20
    """Checkpoints that are looked at, evenly spaced, the last one among them."""
    steps: str = ":"
    """Steps a:b to look at, a included and b not; either may be left out."""
    batch_size: int | None = None
    """Examples per batch, to ask what batches of another size would do; none takes those of the
    run. A run that was recorded of mini-batches does not tell how large they were: say it here."""
    epochs: bool = False
    """Tell the threshold of shuffled epochs, too, from all orders that an epoch can have: of a few
    examples and plain SGD."""
    tol: float = 1e-3
    """Width of the interval of the threshold that is aimed at, relative."""
    max_rank: int = 2000
    """Eigenvectors of the curvature at most on which second moments are taken; fewer take less time
    and may leave a wider interval."""
    max_matvecs: int = 200
    """Products per eigenvalue at most."""
    seed: int = 0
    """Seed of the random start vectors, and of batches that are drawn to measure."""

    def __post_init__(self) -> None:
        span_of(self.steps, "steps")
        counts = {"checkpoints": 1, "batch_size": 1, "max_rank": 1, "max_matvecs": 4}
        check_counts(self, counts)
        if not 1e-9 <= self.tol < 1:
            raise ConfigError(f"tol is {self.tol}; expected at least 1e-9 and less than 1")


@dataclass(frozen=True)
class FlowConfig:
    """Which steps of a run the central flow is held against, and how it is integrated."""

    steps: str = "auto"
    """Steps a:b, a included and b not; auto takes 1000 of them: from 100 before the run begins to
    oscillate, or the last ones of a run that does not."""
    restart_every: int | None = None
    """Start the theories anew at the run's own centre every so many steps, too, which shows how far
    ahead they predict; none leaves it at the starts after each break, that is where the theories
    may be applied again."""
    every: int = 10
    """Steps between those at which run and theories are compared."""
    substeps: int = 4
    """Steps of Euler's method for each update of the run, 2 at least; with momentum there are more,
    as it goes further: (1 + β)/(1 - β) times as many of heavy ball."""
    modes: int = 8
    """Directions at most that may oscillate at once; the flow ends where there are more."""
    fraction: float = 0.9
    """Eigenvalues above this part of the threshold are followed."""
    theories: bool = True
    """Tell what other theories predict of the same steps, too; --no-theories leaves them out, which
    takes less time."""
    max_matvecs: int = 200
    """Products per eigenvalue at most."""
    seed: int = 0
    """Seed of the random start vectors."""

    def __post_init__(self) -> None:
        if self.steps != "auto":
            span_of(self.steps, "steps")
        check_counts(self, {"every": 1, "substeps": 1, "modes": 1, "max_matvecs": 4})
        if self.restart_every is not None:
            check_counts(self, {"restart_every": 1})
            if self.restart_every % self.every:
                told = f"restart_every is {self.restart_every}"
                raise ConfigError(f"{told}; expected a multiple of every, {self.every}")
        if not 0 < self.fraction < 1:
            raise ConfigError(f"fraction is {self.fraction}; expected a number between 0 and 1")


_STEPS = r"[0-9]{1,18}(,[0-9]{1,18})*"
