"""Images and labels from the published binary files of MNIST and CIFAR-10."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from jaxtyping import UInt8

from dlf_dynamics.errors import DataError
from dlf_dynamics.reprs import brief

_MNIST_SIDES = (28, 28)
_CIFAR_PLANES = (3, 32, 32)
_MOST_DEFLATED = 1032
"""Largest number of bytes that one byte of a gzip file can expand to (zlib's documentation)."""
_CHUNK = 1 << 20
_LARGE = 2**30
_MOST_SHRUNK = 200
"""Largest factor by which real data are compressed; zeros alone reach a thousand."""


class Images(NamedTuple):
    """Images as they are stored, with their labels.

    Attributes:
        pixels: pixel values from 0 to 255.
        labels: labels from 0 to 9.
    """

    pixels: UInt8[np.ndarray, "images height width channels"]
    labels: UInt8[np.ndarray, " images"]
    __repr__ = brief


def read_mnist(folder: Path, *, test: bool = False) -> Images:
    """The images of MNIST, or of a data set in its format, such as Fashion-MNIST.

    The format is described by LeCun, Cortes and Burges, The MNIST database of handwritten digits.

    Args:
        folder: folder with the published files, each as published or compressed as .gz.
        test: whether to read the test images instead of the training images.

    Raises:
        DataError: when a file is missing, damaged or in another format.
    """
    _check_folder(folder, "MNIST's files")
    stem = "t10k" if test else "train"
    images_path, pixels = _read_idx(folder, f"{stem}-images-idx3-ubyte", _MNIST_SIDES)
    labels_path, labels = _read_idx(folder, f"{stem}-labels-idx1-ubyte", ())
    if len(pixels) != len(labels):
        raise DataError(
            f"{images_path} has {len(pixels):,} images and {labels_path} {len(labels):,} labels; "
            "expected as many of both"
        )
    _check_labels(labels, labels_path)
    return Images(pixels[..., None], labels)


def read_cifar10(folder: Path, *, test: bool = False) -> Images:
    """The images of CIFAR-10, from its binary version.

    The format is described by Krizhevsky, Learning multiple layers of features from tiny images,
    2009.

    Args:
        folder: folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin.
        test: whether to read the test images instead of the training images.

    Raises:
        DataError: when a file is missing, damaged or in another format.
    """
    _check_folder(folder, "the binary version of CIFAR-10")
    names = ["test_batch.bin"] if test else [f"data_batch_{n}.bin" for n in range(1, 6)]
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if any(os.path.isfile(folder / Path(name).stem) for name in missing):
        raise DataError(
            f"{folder} holds the python version of CIFAR-10, which is pickled and could run any "
            f"code; expected the binary version, with {', '.join(names)}"
        )
    if missing:
        raise DataError(
            f"{folder} has no {', '.join(missing)}; expected the binary version of CIFAR-10, with "
            f"{', '.join(names)}"
        )
    batches = [_read_batch(folder / name) for name in names]
    return Images(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def _check_folder(folder: Path, content: str) -> None:
    if not os.path.isdir(folder):
        fault = "is a file" if os.path.exists(folder) else "does not exist"
        raise DataError(f"data.path {folder} {fault}; expected the folder with {content}")


def _read_idx(
    folder: Path, name: str, sides: tuple[int, ...]
) -> tuple[Path, UInt8[np.ndarray, "items *sides"]]:
    """The path of a file in IDX format, and the bytes in it.

    Args:
        folder: folder that holds the file.
        name: name of the file, without .gz.
        sides: shape of each item.

    Raises:
        DataError: when the file is missing, or does not hold what its header promises.
    """  # noqa: DOC501
    path = next((p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)), None)
    if path is None:
        raise DataError(f"{folder} has neither {name} nor {name}.gz; expected one of them")
    with _reading(path) as file:
        count = _read_header(file, path, sides)
        shape = (count, *sides)
        size, stored = math.prod(shape), os.fstat(file.fileno()).st_size
        compressed = path.suffix == ".gz"
        most = stored * _MOST_DEFLATED if compressed else stored - file.tell()
        if size > most:  # checked before memory is allocated for data that are not there
            raise _wrong_size(path, f"at most {most:,}" if compressed else f"{most:,}", size)
        require_size(size, stored, str(path))
        content = _read_exactly(file, path, size)
    return path, np.frombuffer(content, np.uint8).reshape(shape)


def _read_header(file: BinaryIO, path: Path, sides: Sequence[int]) -> int:
    """Reads the header of a file in IDX format; returns the number of items in the file."""
    form = f">{2 + len(sides)}I"
    header = file.read(struct.calcsize(form))
    if len(header) < struct.calcsize(form):
        raise DataError(
            f"{path} ends after {len(header)} bytes, in its header of {struct.calcsize(form)}; "
            "download it again"
        )
    magic, count, *stored = struct.unpack(form, header)
    expected = 0x0801 + len(sides)  # an array of unsigned bytes with 1 + len(sides) axes
    if magic != expected:
        raise DataError(
            f"{path} begins with the number {magic}; expected {expected}, with which a file of "
            f"{'images' if sides else 'labels'} in MNIST's format begins"
        )
    if count == 0 or tuple(stored) != tuple(sides):
        shapes = ["x".join(map(str, shape)) for shape in ((count, *stored), ("n", *sides))]
        raise DataError(f"{path} declares {shapes[0]} bytes; expected {shapes[1]}, n at least 1")
    return count


def _read_batch(path: Path) -> Images:
    """Reads one file of CIFAR-10: for each image its label, then its red, green and blue planes."""
    record = 1 + math.prod(_CIFAR_PLANES)
    with _reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0 or size % record:
            raise DataError(
                f"{path} has {size:,} bytes; expected images of {record:,} bytes each: "
                "download it again"
            )
        content = _read_exactly(file, path, size)
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    _check_labels(rows[:, 0], path)
    planes = rows[:, 1:].reshape(-1, *_CIFAR_PLANES)
    return Images(np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), rows[:, 0])


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """Opens the file, decompressed if its name ends in .gz; errors become one line."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} cannot be read ({reason}); download it again") from error


def _read_exactly(file: BinaryIO, path: Path, size: int) -> bytearray:
    """The rest of the file, which must have exactly `size` bytes.

    At most one byte more is read, and memory is allocated as bytes arrive, since a compressed file
    may end long before the size that its header promises.

    Raises:
        DataError: when the file has more or fewer bytes.
    """  # noqa: DOC501
    content = bytearray()
    while chunk := file.read(min(_CHUNK, size + 1 - len(content))):
        content += chunk
    if len(content) != size:
        raise _wrong_size(path, "more" if len(content) > size else f"{len(content):,}", size)
    return content


def require_size(size: int, stored: int, what: str) -> None:
    """Refuses gigabytes that are stored in megabytes, as only data made to fill the memory are.

    Raises:
        DataError: when more than a gigabyte is stored in less than a 200th of its size.
    """
    if size > _LARGE and size > _MOST_SHRUNK * stored:
        raise DataError(
            f"{what} would be {size:,} bytes, out of {stored:,} on file; expected at most "
            f"{_MOST_SHRUNK} times as much of more than a gigabyte"
        )


def _wrong_size(path: Path, size: str, expected: int) -> DataError:
    return DataError(
        f"{path} holds {size} bytes of data; expected {expected:,}, as its header promises: "
        "download it again"
    )


def _check_labels(labels: UInt8[np.ndarray, " images"], path: Path) -> None:
    wrong = np.flatnonzero(labels > 9)
    if len(wrong):
        raise DataError(
            f"{path}: the label of image {wrong[0]} is {labels[wrong[0]]} ({len(wrong)} labels "
            "above 9); expected 0 to 9"
        )
