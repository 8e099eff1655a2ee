"""Labelled data sets: generated, bundled, or from a local file."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dlf_dynamics.config import DataConfig
from dlf_dynamics.errors import DataError


@dataclass(frozen=True)
class Dataset:
    """Inputs and integer class labels."""

    inputs: Float[np.ndarray, "examples *features"]
    labels: Int[np.ndarray, " examples"]

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    def sha256(self) -> str:
        """Digest of shape, inputs (as float64) and labels (as int64)."""
        return digest(self.inputs, self.labels)


def digest(inputs: np.ndarray, targets: np.ndarray) -> str:
    """SHA-256 of the shape of the inputs, their values (as float64) and the targets.

    Whole-number targets are taken as int64, others as float64.
    """
    whole = np.issubdtype(np.asarray(targets).dtype, np.integer)
    found = hashlib.sha256(repr(np.shape(inputs)).encode())
    found.update(np.ascontiguousarray(inputs, dtype="<f8").tobytes())
    found.update(np.ascontiguousarray(targets, dtype="<i8" if whole else "<f8").tobytes())
    return found.hexdigest()


def load_dataset(config: DataConfig) -> Dataset:
    """Generates or reads the data set that the configuration names.

    Raises:
        DataError: when a file is missing or malformed, or holds values that are not finite.
    """
    if config.name == "npz":
        dataset = _read_npz(Path(str(config.path)))
    else:
        generators = {
            "spiral": spiral,
            "swiss-roll": swiss_roll,
            "blobs": blobs,
            "digits": lambda config: digits(),
        }
        dataset = generators[config.name](config)
    if config.limit is not None:
        dataset = replace(
            dataset, inputs=dataset.inputs[: config.limit], labels=dataset.labels[: config.limit]
        )
    return dataset


def spiral(config: DataConfig) -> Dataset:
    """Spiral arms of two turns in the plane, one per class (arXiv 2102.03793, Fig. 4).

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
    return Dataset(np.concatenate(arms), _labels(config))


def swiss_roll(config: DataConfig) -> Dataset:
    """A sheet rolled up in three dimensions, cut along its length into the classes."""
    generator = np.random.RandomState(config.seed)
    num_points = config.points_per_class * config.num_classes
    length = (np.arange(num_points) + generator.rand(num_points)) / num_points
    angle = 1.5 * np.pi * (1 + 2 * length)
    height = generator.rand(num_points)
    radius = angle / (4.5 * np.pi)
    points = np.stack([radius * np.cos(angle), 2 * height - 1, radius * np.sin(angle)], axis=1)
    # The sheets are 0.44 apart; the same number as for the spiral's angle would mix them.
    points = points + 0.1 * config.noise * generator.randn(num_points, 3)
    return Dataset(points, _labels(config))


def blobs(config: DataConfig) -> Dataset:
    """Isotropic Gaussian blobs in the plane, centres evenly on the unit circle."""
    generator = np.random.RandomState(config.seed)
    labels = _labels(config)
    angle = 2 * np.pi * labels / config.num_classes
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return Dataset(centres + config.noise * generator.randn(*centres.shape), labels)


def digits() -> Dataset:
    """1,797 handwritten digits of 8x8 pixels, scaled to [0, 1] (UCI; see data/README.md)."""
    with (
        resources.files("dlf_dynamics.data").joinpath("digits.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return Dataset(arrays["inputs"] / 16.0, arrays["labels"].astype(np.int64))


def _labels(config: DataConfig) -> Int[np.ndarray, " examples"]:
    return np.repeat(np.arange(config.num_classes), config.points_per_class)


def _read_npz(path: Path) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, labels = arrays["inputs"], arrays["labels"]
    except FileNotFoundError as error:
        raise DataError(f"data file {path} does not exist") from error
    except KeyError as error:
        raise DataError(f"{path} has no array {error.args[0]}; expected inputs, labels") from error
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, TypeError) as error:
        raise DataError(f"{path} is not a readable .npz of numbers ({error})") from error
    return check_dataset(inputs, labels, str(path))


def check_dataset(inputs: np.ndarray, labels: np.ndarray, origin: str) -> Dataset:
    """A data set from arrays, inputs in any numeric type, labels whole numbers from 0.

    Raises:
        DataError: naming `origin`, when the arrays do not fit together or are not finite.
    """
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.ndim < 2 or labels.ndim != 1 or len(inputs) != len(labels) or len(labels) == 0:
        raise DataError(
            f"{origin}: inputs have shape {inputs.shape} and labels {labels.shape}; "
            "expected (examples, features) and (examples,)"
        )
    if not np.issubdtype(inputs.dtype, np.number) or np.iscomplexobj(inputs):
        raise DataError(f"{origin}: inputs are of type {inputs.dtype}; expected real numbers")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(
            f"{origin}: labels must be whole numbers 0, 1, ..., found {labels.dtype} "
            f"from {labels.min()}"
        )
    bad = np.argwhere(~np.isfinite(inputs))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise DataError(
            f"{origin}: inputs{list(place)} is {inputs[place]} ({len(bad)} values not finite); "
            "remove or replace those examples"
        )
    return Dataset(inputs.astype(np.float64), labels.astype(np.int64))
