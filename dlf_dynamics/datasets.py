"""Labelled data sets: generated, bundled, or from a local file."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from dlf_dynamics.binaryfiles import Images, read_cifar10, read_mnist, require_size
from dlf_dynamics.config import DataConfig
from dlf_dynamics.errors import DataError, UserError, counted, shortened, shown
from dlf_dynamics.memory import require_memory
from dlf_dynamics.reprs import brief

_LARGEST = {"float32": 3.4028e38, "bfloat16": 3.3895e38, "float16": 65504.0}
_MOST_LABEL = 2**31 - 2
"""Largest label: classes are counted in 32 bits."""


@dataclass(frozen=True)
class Dataset:
    """Inputs and integer class labels.

    Attributes:
        inputs: inputs to train on.
        labels: class labels, counted from 0.
        validation: examples held out, themselves without validation; or None.
    """

    inputs: Float[np.ndarray, "examples *features"]
    labels: Int[np.ndarray, " examples"]
    validation: Dataset | None = None
    __repr__ = brief

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    def sha256(self) -> str:
        """Digest of the training data: shape, inputs (as float64) and labels (as int64)."""
        return digest(self.inputs, self.labels)


def digest(inputs: np.ndarray, targets: np.ndarray) -> str:
    """SHA-256 of the shape of the inputs, their values (as float64) and the targets.

    Whole-number targets are taken as int64, others as float64.
    """
    whole = np.issubdtype(np.asarray(targets).dtype, np.integer)
    sha = hashlib.sha256(repr(np.shape(inputs)).encode())
    sha.update(np.ascontiguousarray(inputs, dtype="<f8").tobytes())
    sha.update(np.ascontiguousarray(targets, dtype="<i8" if whole else "<f8").tobytes())
    return sha.hexdigest()


def load_dataset(config: DataConfig) -> Dataset:
    """Generates or reads the data set that the configuration names.

    Raises:
        DataError: when a file is missing, malformed or holds values that are not finite, or there
            are fewer examples than `validation` requests.
    """
    generators = {"spiral": spiral, "swiss-roll": swiss_roll, "blobs": blobs}
    if config.name in generators:
        _require_room(config)
        dataset = generators[config.name](config)
        _require_finite(dataset.inputs, f"data.noise is {config.noise}, too large for numbers")
    else:
        readers = {
            "digits": lambda _: digits(),
            "mnist": partial(_published, read_mnist),
            "cifar10": partial(_published, read_cifar10),
            "npz": _npz,
        }
        dataset = _hold_out(readers[config.name](config), config)
    training = _prepared(_take(dataset, slice(config.limit)))
    held_out = dataset.validation
    if held_out is None:
        return training
    if config.name in generators and config.validation is None:
        # `limit` may have left out whole classes; these are not tested either.
        held_out = _take(held_out, held_out.labels < training.num_classes)
    return replace(training, validation=_prepared(held_out))


def _require_room(config: DataConfig) -> None:
    """Refuses more points (two coordinates and a label, at least) than memory can hold."""
    training = config.points_per_class * config.num_classes
    points = training + (training if config.validation is None else config.validation)
    advice = "make data.points_per_class, data.num_classes or data.validation smaller"
    require_memory(24 * points, f"a data set of {shown(points)} points", advice)


def spiral(config: DataConfig) -> Dataset:
    """Spiral arms of two turns in the plane, one per class (arXiv 2102.03793, Fig. 4).

    The training points are evenly spaced along each arm, apart from the noise in their angles.
    Each arm is cut into equal pieces with one random validation point in each.

    >>> print(round(float(spiral(DataConfig()).inputs.sum()), 12))
    -2.144918265398
    """
    generator = np.random.RandomState(config.seed)
    radius = np.linspace(0.0, 1.0, config.points_per_class)
    arms = []
    for label in range(config.num_classes):
        start = 2 * np.pi * label / config.num_classes
        angle = np.linspace(start, start + 4 * np.pi, config.points_per_class)
        angle = angle + config.noise * generator.randn(config.points_per_class)
        arms.append(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1))

    def fresh(labels: np.ndarray, fraction: np.ndarray, generator: np.random.RandomState):
        angle = 2 * np.pi * (labels / config.num_classes + 2 * fraction)
        angle += config.noise * generator.randn(len(labels))
        return np.stack([fraction * np.cos(angle), fraction * np.sin(angle)], axis=1)

    return Dataset(np.concatenate(arms), _labels(config), _fresh(config, fresh))


def swiss_roll(config: DataConfig) -> Dataset:
    """A sheet rolled up in three dimensions and cut along its length into classes."""

    def roll(length: np.ndarray, generator: np.random.RandomState):
        angle = 1.5 * np.pi * (1 + 2 * length)
        height = generator.rand(len(length))
        radius = angle / (4.5 * np.pi)
        points = np.stack([radius * np.cos(angle), 2 * height - 1, radius * np.sin(angle)], axis=1)
        # The sheets are 0.44 apart; the same number as for the spiral's angle would mix them.
        return points + 0.1 * config.noise * generator.randn(len(length), 3)

    def fresh(labels: np.ndarray, fraction: np.ndarray, generator: np.random.RandomState):
        return roll((labels + fraction) / config.num_classes, generator)

    generator = np.random.RandomState(config.seed)
    num_points = config.points_per_class * config.num_classes
    length = (np.arange(num_points) + generator.rand(num_points)) / num_points
    return Dataset(roll(length, generator), _labels(config), _fresh(config, fresh))


def blobs(config: DataConfig) -> Dataset:
    """Isotropic Gaussian blobs in the plane, their centres evenly spaced on the unit circle."""

    def points(labels: np.ndarray, _: np.ndarray | None, generator: np.random.RandomState):
        angle = 2 * np.pi * labels / config.num_classes
        centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return centres + config.noise * generator.randn(*centres.shape)

    labels = _labels(config)
    training = points(labels, None, np.random.RandomState(config.seed))
    return Dataset(training, labels, _fresh(config, points))


def _labels(config: DataConfig) -> Int[np.ndarray, " examples"]:
    return np.repeat(np.arange(config.num_classes), config.points_per_class)


def _fresh(config: DataConfig, points: Callable[..., np.ndarray]) -> Dataset | None:
    """Validation points: fresh samples from the same distribution, by other random numbers.

    Args:
        config: configuration of the data set.
        points: function that makes points from labels, the position of each within its class, in
            [0, 1), and a generator. [0, 1) is cut into as many equal pieces as there are points,
            with one random position in each.
    """
    classes, count = config.num_classes, config.validation
    count = classes * config.points_per_class if count is None else count
    if count == 0:
        return None
    sizes = count // classes + (np.arange(classes) < count % classes)
    labels = np.repeat(np.arange(classes), sizes)
    # `RandomState(seed)` fills its state by another rule, so that it never starts like this one.
    seeds = np.random.SeedSequence([config.seed, 1])
    generator = np.random.RandomState(np.random.MT19937(seeds))
    piece = np.concatenate([np.arange(size) for size in sizes])
    fraction = (piece + generator.rand(count)) / sizes[labels]
    return Dataset(points(labels, fraction, generator), labels)


def digits() -> Dataset:
    """1,797 handwritten digits of 8x8 pixels, scaled to [0, 1] (UCI; see data/README.md)."""
    with (
        resources.files("dlf_dynamics.data").joinpath("digits.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return Dataset(arrays["inputs"] / 16.0, arrays["labels"].astype(np.int64))


def _published(read: Callable[..., Images], config: DataConfig) -> Dataset:
    """Images as they are stored; test images are read only if they are needed."""
    folder = Path(str(config.path))
    training = read(folder)
    held_out = None
    if config.validation != 0:
        test = read(folder, test=True)
        held_out = Dataset(test.pixels, test.labels)
    return Dataset(training.pixels, training.labels, held_out)


_NPZ_NAMES: tuple[tuple[str, ...], ...] = (
    ("inputs", "labels", "validation_inputs", "validation_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
)


def _npz(config: DataConfig) -> Dataset:
    """The arrays of an .npz file, checked, in their stored types."""
    path = Path(str(config.path))
    try:
        exists = path.exists()
    except OSError as error:
        name = shortened(str(path), 200)
        raise DataError(f"data file {name} cannot be read: {error.strerror}") from error
    if not exists:
        raise DataError(f"data file {path} does not exist")
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected an .npz of numbers")
    try:
        with zipfile.ZipFile(path) as archive:
            names, (inputs, labels, *held_out) = _arrays(archive, path)
    except UserError:
        raise
    except Exception as error:  # a damaged file may fail in zipfile, NumPy or zlib
        raise DataError(f"{path} is not a readable .npz of numbers ({error})") from error
    training = _checked(inputs, labels, str(path))
    if not held_out:
        return training
    validation = _checked(held_out[0], held_out[1], f"{path}, {' and '.join(names[2:])}")
    if validation.inputs.shape[1:] != training.inputs.shape[1:]:
        raise DataError(
            f"{path}: inputs for validation have shape {validation.inputs.shape}, those to train "
            f"on {training.inputs.shape}; expected examples of one shape"
        )
    return replace(training, validation=validation)


def _arrays(archive: zipfile.ZipFile, path: Path) -> tuple[tuple[str, ...], list[np.ndarray]]:
    """Names and values of the arrays required of an .npz file, after checking their sizes."""
    stored = {name.removesuffix(".npy") for name in archive.namelist()}
    own, common = _NPZ_NAMES
    names = common if "x_train" in stored and "inputs" not in stored else own
    if not any(name in stored for name in names[2:]):
        names = names[:2]
    missing = ", ".join(name for name in names if name not in stored)
    if missing:
        raise DataError(f"{path} has no array {missing}; expected {', '.join(names)}")
    return names, [_array(archive, name, path) for name in names]


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray:
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, _, kind = read(file)
        header = file.tell()
    promised = math.prod(shape) * kind.itemsize
    if kind.hasobject:
        raise ValueError(f"{name} holds Python objects, which could run any code")
    if header + promised != entry.file_size:
        raise DataError(
            f"{path}: {name} of shape {shown(shape)} and type {kind} takes {shown(promised)} "
            f"bytes; the file has {entry.file_size - header:,}: save it again"
        )
    require_size(promised, entry.compress_size, f"{path}: {name}")
    values = math.prod(shape)
    advice = "take fewer examples"
    require_memory(promised + 8 * values, f"{path}: {name} of shape {shown(shape)}", advice)
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _hold_out(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data set with as many validation examples as the configuration requests."""
    count, own = config.validation, dataset.validation
    if count is None or (count == 0 and own is None):
        return dataset
    source = "examples" if own is None else "examples for validation"
    number = len((own or dataset).labels)
    most = number - 1 if own is None else number
    if count > most:
        raise DataError(
            f"data.validation is {count:,}; expected at most {most:,}, as the data set "
            f"{config.name} has {number:,} {source}"
        )
    if own is not None:
        return replace(dataset, validation=_take(own, slice(count)) if count else None)
    order = np.random.RandomState(config.seed).permutation(len(dataset.labels))
    kept, held_out = np.sort(order[count:]), np.sort(order[:count])
    return replace(_take(dataset, kept), validation=_take(dataset, held_out))


def _take(
    dataset: Dataset, chosen: slice | Int[np.ndarray, " chosen"] | Bool[np.ndarray, " examples"]
) -> Dataset:
    """Some of the examples, without validation."""
    return Dataset(dataset.inputs[chosen], dataset.labels[chosen])


def _prepared(dataset: Dataset) -> Dataset:
    """Converts inputs to float64, images of bytes scaled to [0, 1], and labels to int64."""
    inputs = dataset.inputs
    images = inputs.dtype == np.uint8 and inputs.ndim == 4
    inputs = inputs / 255.0 if images else inputs.astype(np.float64)
    return Dataset(inputs, dataset.labels.astype(np.int64))


def check_dataset(inputs: np.ndarray, labels: np.ndarray, origin: str) -> Dataset:
    """A data set from arrays, inputs in any numeric type, labels whole numbers from 0.

    Raises:
        DataError: naming `origin`, when the arrays do not fit together or are not finite.
    """
    checked = _checked(inputs, labels, origin)
    return Dataset(checked.inputs.astype(np.float64), checked.labels.astype(np.int64))


def _checked(inputs: np.ndarray, labels: np.ndarray, origin: str) -> Dataset:
    """Like `check_dataset`, but keeps the types of the arrays."""
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.ndim < 2 or labels.ndim != 1 or len(inputs) != len(labels) or inputs.size == 0:
        raise DataError(
            f"{origin}: inputs have shape {inputs.shape} and labels {labels.shape}; "
            "expected (examples, features) and (examples,), at least one of each"
        )
    if inputs.dtype.kind not in "uif":
        raise DataError(f"{origin}: inputs are of type {inputs.dtype}; expected real numbers")
    if labels.dtype.kind not in "ui":
        advice = "np.unique(labels, return_inverse=True)[1] gives them"
        raise DataError(
            f"{origin}: labels must be whole numbers 0, 1, ..., found {labels.dtype}; {advice}"
        )
    if labels.min() < 0 or labels.max() > _MOST_LABEL:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise DataError(
            f"{origin}: labels must be whole numbers from 0 to {_MOST_LABEL:,}, found {wrong}"
        )
    _require_finite(inputs, origin)
    return Dataset(inputs, labels)


def _require_finite(inputs: np.ndarray, origin: str) -> None:
    if inputs.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):  # types longer than float64 may overflow
        bad = np.argwhere(~np.isfinite(inputs.astype(np.float64, copy=False)))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        raise DataError(
            f"{origin}: inputs{list(index)} is {inputs[index]} ({counted(len(bad), 'value')} not "
            "finite); remove or replace those examples"
        )


def require_trainable(dataset: Dataset, outputs: int | None, dtype: str) -> None:
    """Refuses numbers beyond the range of the run's type, and classes without examples.

    A class without examples would get its own output and its own pulse; this is allowed only where
    the configured number of outputs shows that it is intended.

    Args:
        dataset: data to train on.
        outputs: configured outputs of the network; None means one per class.
        dtype: type in which the network computes.

    Raises:
        DataError: when an input is too large, or a label below the largest one is missing.
    """
    largest = float(np.max(np.abs(dataset.inputs)))
    if dtype != "float64" and largest > _LARGEST[dtype]:
        raise DataError(
            f"inputs go up to {largest:.3g}; expected at most {_LARGEST[dtype]:.3g} in {dtype}: "
            "scale them, or set dtype to float64"
        )
    labels = np.unique(dataset.labels)
    if outputs is not None or len(labels) == dataset.num_classes:
        return
    missing = int(np.argmax(labels != np.arange(len(labels))))
    raise DataError(
        f"no example has label {missing}, and {len(labels)} labels go from {labels[0]} to "
        f"{labels[-1]}; expected 0, 1, ..., which np.unique(labels, return_inverse=True)[1] gives; "
        f"or set model.outputs to {dataset.num_classes} to keep classes without examples"
    )
