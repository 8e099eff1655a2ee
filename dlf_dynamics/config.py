"""The configuration of a run: frozen dataclasses that are also options, help and provenance."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from dlf_dynamics.errors import ConfigError, shown
from dlf_dynamics.memory import bytes_of
from dlf_dynamics.ranges import check_counts, violations
from dlf_dynamics.spans import plane_of, require_whole, span_of

DatasetName = Literal["spiral", "swiss-roll", "blobs", "digits", "mnist", "cifar10", "npz"]
ModelName = Literal["fully-connected", "convolutional", "myrtle5"]
ActivationName = Literal["relu", "tanh", "gelu", "softplus", "silu", "sigmoid", "elu", "identity"]
InitName = Literal[
    "published",
    "published-updated",
    "glorot-normal",
    "glorot-uniform",
    "he-normal",
    "he-uniform",
    "lecun-normal",
]
LossName = Literal["cross-entropy", "squared-error", "squared-error-per-output"]
EngineName = Literal["own", "neural-tangents"]
OptimizerName = Literal["gd", "heavy-ball", "nesterov", "rmsprop", "adam", "adamw"]


@dataclass(frozen=True)
class DataConfig:
    """The labelled examples to train on."""

    name: DatasetName = "spiral"
    """Two-dimensional spiral arms, three-dimensional swiss roll cut into classes, Gaussian blobs on
    a circle, the bundled 8x8 digits, or files of your own at data.path: those of MNIST or CIFAR-10
    as they are published, or an .npz file."""
    points_per_class: int = 100
    """Points per class of the generated data sets."""
    num_classes: int = 3
    """Classes of the generated data sets."""
    noise: float = 0.2
    """Standard deviation of the angle (spiral, in radians), of each coordinate (blobs), or ten
    times that of each coordinate (swiss-roll)."""
    seed: int = 0
    """Seed of the generated data sets (NumPy's legacy generator, as published), and of the choice
    of examples to hold out."""
    path: str | None = None
    """For npz, the file: with `inputs` (examples, ...) and `labels`, whole numbers from 0 without
    gaps (those with gaps need model.outputs), and if you like `validation_inputs` and
    `validation_labels`; or with the names `x_train`, `y_train`, `x_test` and `y_test`. Images
    (examples, height, width, channels) of type uint8 are divided by 255; other inputs are taken as
    they are. For mnist, the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
    t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is or as .gz. For cifar10, the
    folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version. Their
    images are divided by 255."""
    limit: int | None = None
    """Train on the first examples only, this many; what is held out is not counted."""
    validation: int | None = None
    """Examples held out for validation; 0 holds out none. Generated data sets: this many fresh
    points from the same distribution, none meaning as many as are generated to train on. mnist,
    cifar10, and an .npz with validation arrays: the first of the published test images or of these
    arrays, none meaning all. digits, and an .npz without: this many, chosen at random and taken out
    of the training data, none meaning 0."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: ModelName = "fully-connected"
    """`fully-connected`: dense layers; images are flattened. `convolutional`: for each width a 3x3
    convolution, the activation and 2x2 average pooling (left out where a side is 1), then a dense
    layer. `myrtle5`: four such convolutions, of one width, and a dense layer, with pooling after
    the second, the third and three times after the fourth; with width 64, the network of the
    published CIFAR-10 runs. Both take images (height, width, channels)."""
    widths: tuple[int, ...] = (100,)
    """Units of each hidden layer, or channels of each convolution; none of them gives a linear
    model. myrtle5 takes one number for all its convolutions."""
    activation: ActivationName = "relu"
    """Non-linearity after each hidden layer."""
    init: InitName = "published"
    """Initial parameters. `published`: weights N(0, 1/fan_in), biases 0. `published-updated`:
    Glorot-normal weights, biases N(0, 1e-4). The others: the usual weights, biases 0. The fan_in of
    a 3x3 convolution is nine times the channels that it is given."""
    outputs: int | None = None
    """Outputs of the network; none means one per class."""
    seed: int = 0
    """Seed of the initial parameters."""


@dataclass(frozen=True)
class LossConfig:
    """The loss of one example."""

    name: LossName = "cross-entropy"
    """`squared-error` weighs each example by its class's weight, `squared-error-per-output` weighs
    each output by its own class's weight."""
    l2: float = 0.0
    """Weight decay inside the loss: this number times half the squared length of all parameters is
    added to the loss of each step, static or not, whatever the class weights are."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How the class weights move."""

    name: Literal["triangle", "static"] = "triangle"
    """`triangle` emphasises one class after the other; `static` keeps all weights at 1."""
    amplitude: float = 70.0
    """Peak weight of the emphasised class before normalisation; 1 is the static loss."""
    period: int = 5000
    """Steps for which one class is emphasised."""
    counting: Literal["exact", "published"] = "exact"
    """`exact`: a pulse lasts `period` steps. `published`: `period` + 1, as in the authors' code."""
    static_from: int | None = None
    """First step from which all weights stay 1."""
    static_from_epoch: int | None = None
    """The same as an epoch, counted from 0: after so many passes through the training data, or as
    many updates where mini-batches are independent of each other."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule."""

    name: OptimizerName = "gd"
    """Gradient descent, heavy ball, Nesterov, RMSProp, Adam or AdamW (all from optax)."""
    learning_rate: float = 1.0
    """Learning rate (peak learning rate when it is scheduled)."""
    learning_rate_schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    """From `learning_rate`, after the warm-up, to `final_learning_rate` at the last step."""
    final_learning_rate: float = 0.0
    """Learning rate at the last step of a scheduled run."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    momentum: float = 0.9
    """Momentum of heavy ball and Nesterov."""
    decay: float = 0.9
    """RMSProp's decay of the mean square."""
    beta1: float = 0.9
    """Adam's decay of the mean."""
    beta2: float = 0.999
    """Adam's decay of the mean square."""
    epsilon: float = 1e-8
    """Added to the root mean square of the adaptive methods."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that a training run depends on."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 70_000
    """Number of updates."""
    checkpoint_every: int = 25
    """Steps between recorded parameters."""
    linearize: Literal[0, 1, 2] = 0
    """Train the network's Taylor expansion about its initial parameters, of order 1 (linearised) or
    2 (quadratic), instead of the network; 0 trains the network."""
    batch_size: int | None = None
    """Examples per update; none means the full batch."""
    batch_sampling: Literal["epochs", "independent"] = "epochs"
    """How mini-batches are drawn: `epochs` goes through a fresh random order of the examples in
    each epoch; `independent` takes a random subset at each step, whatever the others took."""
    batch_seed: int = 0
    """Seed of the mini-batches."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float64"
    """Precision of parameters, network, optimizer and recorded scalars. With bfloat16 or float16
    the parameters are rounded to it after each update and the network computes in it; the loss and
    the update are float32."""
    edge_every: int = 11
    """Steps between those whose realized edge is evaluated, which tells whether a step raised its
    own loss; 1 evaluates all (a step then takes about half as long again), 0 none. An oscillation
    of period 2 has the realized edge above 1 at every other step: an even number would see one half
    of it only, an odd number sees both. The last bits of adaptive optimizers depend on whether it
    is 0; those of the others do not."""
    prng: Literal["modern", "legacy"] = "modern"
    """Random stream of JAX: `legacy` is the one of JAX before 0.5, which the published run used."""

    def __post_init__(self) -> None:
        for found, key, expected in violations(self):
            raise ConfigError(f"{key} is {shown(found)}; expected {expected}")

    @property
    def vector_dtype(self) -> Literal["float64", "float32"]:
        """Of the vectors that hold parameters, also those that are rounded to fewer bits."""
        return "float64" if self.dtype == "float64" else "float32"


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
class ImportConfig:
    """What is to be taken from checkpoints, and how."""

    step_pattern: str | None = None
    """Regular expression whose group is the number of a checkpoint in its path, such as
    'step_(\\d+)'; none takes the `step` that a checkpoint itself tells, else the last number of its
    name or of the nearest folder that has one."""
    steps_per_number: int = 1
    """Updates for each count of the numbers in names, such as those of an epoch where epochs are
    counted."""
    prefix: str | None = None
    """Words that stand before the names of parameters in a checkpoint, such as 'ema_params'; none
    finds 'params', 'model', 'state_dict' and the like."""
    ignore: str | None = None
    """Regular expression that is found in those names of a checkpoint which the problem's model
    does not need."""
    full_batch: bool = False
    """Say that each update was that of the problem's whole loss: then there is a threshold."""
    fixed_statistics: bool = False
    """Say that training left running statistics (of batch norm) as they are in the problem's model.
    Where checkpoints hold them, they are compared, and this need not be said."""

    def __post_init__(self) -> None:
        check_counts(self, {"steps_per_number": 1})
        try:
            re.compile(self.ignore or "")
        except re.error as error:
            raise ConfigError(f"ignore is no regular expression: {error}") from error


_STEPS = r"[0-9]{1,18}(,[0-9]{1,18})*"
