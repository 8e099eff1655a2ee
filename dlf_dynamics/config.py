"""Configurations: frozen dataclasses that are also options, help and provenance."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from dlf_dynamics.errors import ConfigError, shown
from dlf_dynamics.ranges import check_counts, violations
from dlf_dynamics.settings import BifurcationConfig as BifurcationConfig
from dlf_dynamics.settings import EdgeConfig as EdgeConfig
from dlf_dynamics.settings import EngineName as EngineName
from dlf_dynamics.settings import ExplainConfig as ExplainConfig
from dlf_dynamics.settings import FlowConfig as FlowConfig
from dlf_dynamics.settings import SpectrumConfig as SpectrumConfig

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
OptimizerName = Literal["gd", "heavy-ball", "nesterov", "rmsprop", "adam", "adamw"]


@dataclass(frozen=True)
class DataConfig:
    """The labelled examples to train on."""

    name: DatasetName = "spiral"
    """Two-dimensional spiral arms, three-dimensional swiss roll cut into classes, Gaussian blobs on
    a circle, the bundled 8x8 digits, or your own files at data.path: those of MNIST or CIFAR-10 as
    they are published, or an .npz file."""
    points_per_class: int = 100
    """Points per class in the generated data sets."""
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
    gaps (labels with gaps need model.outputs), and optionally `validation_inputs` and
    `validation_labels`; or with the names `x_train`, `y_train`, `x_test` and `y_test`. Images
    (examples, height, width, channels) of type uint8 are divided by 255; other inputs are taken as
    they are. For mnist, the folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,
    t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each as it is or as .gz. For cifar10, the
    folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin, the binary version. Their
    images are divided by 255."""
    limit: int | None = None
    """Train on only this many examples, the first ones; examples held out do not count."""
    validation: int | None = None
    """Examples held out for validation; 0 holds out none. Generated data sets: this many fresh
    points from the same distribution; none means as many as are generated to train on. mnist,
    cifar10, and an .npz with validation arrays: the first of the published test images or of these
    arrays; none means all. digits, and an .npz without: this many, chosen at random and taken out
    of the training data; none means 0."""


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
    """How the class weights change."""

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
    """How the learning rate goes from `learning_rate`, after the warm-up, to `final_learning_rate`
    at the last step."""
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
    """Evaluate the realized edge, which says whether a step raised its own loss, at every n-th
    step; 1 evaluates it at all steps (a step then takes about half as long again), 0 at none. An
    oscillation of period 2 has the realized edge above 1 at every other step: an even number would
    see only one half of it, an odd number sees both. The last bits of adaptive optimizers depend on
    whether it is 0; those of the others do not."""
    prng: Literal["modern", "legacy"] = "modern"
    """Random stream of JAX: `legacy` is the one of JAX before 0.5, which the published run used."""

    def __post_init__(self) -> None:
        for value, key, expected in violations(self):
            raise ConfigError(f"{key} is {shown(value)}; expected {expected}")

    @property
    def vector_dtype(self) -> Literal["float64", "float32"]:
        """Type of the vectors that hold the parameters, also when these have fewer bits."""
        return "float64" if self.dtype == "float64" else "float32"


@dataclass(frozen=True)
class ImportConfig:
    """What to take from checkpoints, and how."""

    step_pattern: str | None = None
    """Regular expression whose group is the number of a checkpoint in its path, such as
    'step_(\\d+)'; none takes the `step` stored in the checkpoint, else the last number in its name
    or in the nearest folder that has one."""
    steps_per_number: int = 1
    """Updates per unit of the numbers in names, such as the updates of an epoch if the names count
    epochs."""
    prefix: str | None = None
    """Words before the names of parameters in a checkpoint, such as 'ema_params'; none finds
    'params', 'model', 'state_dict' and the like."""
    ignore: str | None = None
    """Regular expression that occurs in the names in a checkpoint that the problem's model does not
    need."""
    full_batch: bool = False
    """State that each update used the problem's whole loss; only then is there a threshold."""
    fixed_statistics: bool = False
    """State that training left running statistics (of batch norm) as they are in the problem's
    model. Statistics that the checkpoints hold are compared, and need no such statement."""

    def __post_init__(self) -> None:
        check_counts(self, {"steps_per_number": 1})
        try:
            re.compile(self.ignore or "")
        except re.error as error:
            raise ConfigError(f"ignore is no regular expression: {error}") from error
