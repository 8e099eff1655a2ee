"""Against files that are put together byte by byte, as the formats are published."""

import gzip
import os
import struct
from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics import binaryfiles
from dlf_dynamics.binaryfiles import read_cifar10, read_mnist
from dlf_dynamics.config import DataConfig
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.errors import DataError

NAMES = {
    "images": "train-images-idx3-ubyte",
    "labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}


def idx_images(pixels):
    return struct.pack(">IIII", 2051, len(pixels), 28, 28) + pixels.tobytes()


def idx_labels(labels):
    return struct.pack(">II", 2049, len(labels)) + bytes(labels)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)


@pytest.fixture
def mnist(tmp_path, pixels):
    """A folder in MNIST's format: three images to train on, two to test."""
    (tmp_path / NAMES["images"]).write_bytes(idx_images(pixels[:3]))
    (tmp_path / NAMES["labels"]).write_bytes(idx_labels([7, 0, 9]))
    (tmp_path / NAMES["test images"]).write_bytes(idx_images(pixels[3:]))
    (tmp_path / NAMES["test labels"]).write_bytes(idx_labels([1, 2]))
    return tmp_path


def compress(path):
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


@pytest.mark.parametrize("compressed", [(), ("images", "test labels"), tuple(NAMES)])
def test_images_and_labels_of_mnist_come_out_as_they_went_in(mnist, pixels, compressed):
    for name in compressed:
        compress(mnist / NAMES[name])
    training, test = read_mnist(mnist), read_mnist(mnist, test=True)
    assert np.array_equal(training.pixels, pixels[:3, :, :, None])
    assert np.array_equal(test.pixels, pixels[3:, :, :, None])
    assert (training.labels.tolist(), test.labels.tolist()) == ([7, 0, 9], [1, 2])


def test_pixels_are_divided_by_255_and_the_test_images_are_for_validation(mnist, pixels):
    dataset = load_dataset(DataConfig(name="mnist", path=str(mnist)))
    assert dataset.inputs.shape == (3, 28, 28, 1)
    assert (dataset.inputs.dtype, dataset.labels.dtype) == (np.float64, np.int64)
    for (image, row, column, _), value in np.ndenumerate(dataset.inputs):
        assert value == int(pixels[image, row, column]) / 255
    held_out = dataset.validation
    assert held_out is not None
    assert np.array_equal(held_out.inputs[..., 0], pixels[3:] / 255)
    assert held_out.labels.tolist() == [1, 2]
    assert held_out.validation is None


def test_mnist_is_limited_and_its_test_images_are_counted(mnist):
    config = DataConfig(name="mnist", path=str(mnist), limit=2, validation=1)
    dataset = load_dataset(config)
    assert dataset.labels.tolist() == [7, 0]
    assert dataset.validation is not None
    assert dataset.validation.labels.tolist() == [1]
    message = r"data\.validation is 3; expected at most 2, as the data set mnist has 2 examples for"
    with pytest.raises(DataError, match=message):
        load_dataset(replace(config, validation=3))


def test_without_validation_the_test_files_may_be_missing(mnist):
    config = DataConfig(name="mnist", path=str(mnist), validation=0)
    for name in ("test images", "test labels"):
        (mnist / NAMES[name]).unlink()
    assert load_dataset(config).validation is None
    with pytest.raises(DataError, match=r"has neither t10k-images-idx3-ubyte nor .*\.gz; expected"):
        load_dataset(replace(config, validation=1))


HEADER = struct.pack(">IIII", 2051, 3, 28, 28)
PIXELS = bytes(3 * 784)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"ends after 0 bytes, in its header of 16; download"),
        (HEADER[:15], r"ends after 15 bytes, in its header of 16"),
        (
            struct.pack(">II", 2049, 3) + PIXELS,
            r"begins with the number 2049; expected 2051, with which a file of images in MNIST's",
        ),
        (HEADER + PIXELS[1:], r"holds 2,351 bytes of data; expected 2,352, as its header"),
        (HEADER + PIXELS + b"\0", r"holds more bytes of data; expected 2,352"),
        (
            struct.pack(">IIII", 2051, 2**32 - 1, 28, 28) + PIXELS,
            r"holds 2,352 bytes of data; expected 3,367,254,359,280",
        ),
        (
            struct.pack(">IIII", 2051, 2**31, 2**31, 2**31),
            r"declares 2147483648x2147483648x2147483648 bytes; expected nx28x28, n at least 1",
        ),
        (struct.pack(">IIII", 2051, 0, 28, 28), r"declares 0x28x28 bytes; expected nx28x28"),
        (struct.pack(">IIII", 2051, 3, 8, 98) + PIXELS, r"declares 3x8x98 bytes"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_images_of_mnist_are_refused_by_their_file(mnist, content, message, compressed):
    path = mnist / NAMES["images"]
    path.write_bytes(content)
    if compressed:
        compress(path)
        if "3,367,254" in message:  # more than so many compressed bytes can ever give
            message = r"holds at most .* bytes of data; expected 3,367,254,359,280"
    with pytest.raises(DataError, match=rf"{path}.* {message}"):
        read_mnist(mnist)


def test_damaged_labels_of_mnist_are_refused_by_their_file(mnist):
    path = mnist / NAMES["labels"]
    path.write_bytes(idx_labels([7, 0, 10]))
    with pytest.raises(
        DataError, match=rf"{path}: the label of image 2 is 10 \(1 labels above 9\)"
    ):
        read_mnist(mnist)
    path.write_bytes(idx_labels([7, 0]))
    with pytest.raises(DataError, match=r"has 3 images and .* 2 labels; expected as many of both"):
        read_mnist(mnist)
    path.write_bytes(HEADER + PIXELS)
    with pytest.raises(DataError, match=r"number 2051; expected 2049, with which a file of labels"):
        read_mnist(mnist)


@pytest.mark.parametrize("kept", [5, 100, -9, -1])
def test_a_compressed_file_that_was_cut_off_is_refused(mnist, kept):
    compress(mnist / NAMES["images"])
    path = mnist / f"{NAMES['images']}.gz"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{path} cannot be read \(Compressed file ended before"):
        read_mnist(mnist)


def test_a_compressed_file_with_wrong_bytes_is_refused(mnist):
    compress(mnist / NAMES["images"])
    path = mnist / f"{NAMES['images']}.gz"
    whole = path.read_bytes()
    for place in (0, 60, len(whole) - 6):  # in its header, its data and its check sum
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(DataError, match=rf"{path} (cannot be read \(.+\)|holds .+); download"):
            read_mnist(mnist)


def test_of_a_compressed_file_no_more_is_unpacked_than_its_header_promises(mnist, monkeypatch):
    path = mnist / f"{NAMES['images']}.gz"
    (mnist / NAMES["images"]).unlink()
    with gzip.open(path, "wb") as file:
        file.write(HEADER)
        file.write(bytes(50_000_000))
    chunks = []
    original = binaryfiles._read_exactly

    def watched(file, path, size):
        try:
            return original(file, path, size)
        finally:
            chunks.append(file.tell())

    monkeypatch.setattr(binaryfiles, "_read_exactly", watched)
    with pytest.raises(DataError, match=r"holds more bytes of data; expected 2,352"):
        read_mnist(mnist)
    assert chunks == [16 + 2352 + 1]


def test_a_folder_in_the_place_of_a_file_is_no_file(mnist):
    path = mnist / NAMES["labels"]
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=rf"{mnist} has neither {path.name} nor"):
        read_mnist(mnist)


@pytest.mark.parametrize("read", [read_mnist, read_cifar10])
def test_the_folder_must_be_one(tmp_path, read):
    with pytest.raises(DataError, match=r"data\.path .* does not exist; expected the folder with"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.path .* is a file; expected the folder with"):
        read(tmp_path / "file")


def record(label, red, green, blue):
    """An image of CIFAR-10: its label, then the planes of the three colours, row by row."""
    return bytes([label, *red.ravel(), *green.ravel(), *blue.ravel()])


@pytest.fixture
def colours():
    """Twelve images, (image, colour, row, column)."""
    return np.random.default_rng(1).integers(256, size=(12, 3, 32, 32), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path, colours):
    """A folder in the binary version of CIFAR-10: five times two images, and two to test."""
    for n in range(6):
        name = "test_batch.bin" if n == 5 else f"data_batch_{n + 1}.bin"
        records = [record(image % 10, *colours[image]) for image in (2 * n, 2 * n + 1)]
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


def test_the_colours_of_cifar10_come_last(cifar10, colours):
    dataset = load_dataset(DataConfig(name="cifar10", path=str(cifar10)))
    held_out = dataset.validation
    assert held_out is not None
    assert (dataset.inputs.shape, held_out.inputs.shape) == ((10, 32, 32, 3), (2, 32, 32, 3))
    assert (dataset.inputs.dtype, dataset.labels.dtype) == (np.float64, np.int64)
    for colour in range(3):
        assert np.array_equal(dataset.inputs[..., colour], colours[:10, colour] / 255)
        assert np.array_equal(held_out.inputs[..., colour], colours[10:, colour] / 255)
    assert dataset.labels.tolist() == list(range(10))
    assert held_out.labels.tolist() == [0, 1]


def test_cifar10_is_limited_and_does_without_test_images(cifar10, colours):
    (cifar10 / "test_batch.bin").unlink()
    config = DataConfig(name="cifar10", path=str(cifar10), limit=3, validation=0)
    dataset = load_dataset(config)
    assert np.array_equal(dataset.inputs[..., 0], colours[:3, 0] / 255)
    assert dataset.validation is None


def test_all_five_batches_of_cifar10_are_needed(cifar10):
    for n in (2, 4):
        (cifar10 / f"data_batch_{n}.bin").unlink()
    message = rf"{cifar10} has no data_batch_2\.bin, data_batch_4\.bin; expected the binary version"
    with pytest.raises(DataError, match=message):
        read_cifar10(cifar10)
    assert len(read_cifar10(cifar10, test=True).labels) == 2


def test_the_pickled_version_of_cifar10_is_not_opened(tmp_path):
    # Whoever opens it waits for ever.
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(b"cos\nabort\n(tR.")
    for test in (False, True):
        with pytest.raises(DataError, match=r"python version of CIFAR-10, .*pickled.*; expected"):
            read_cifar10(tmp_path, test=test)


@pytest.mark.parametrize("size", [0, 1, 3072, 3074, 2 * 3073 - 1])
def test_a_batch_of_cifar10_has_whole_images(cifar10, size):
    path = cifar10 / "data_batch_3.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(DataError, match=rf"{path} has {size:,} bytes; expected images of 3,073"):
        read_cifar10(cifar10)


def test_the_labels_of_cifar10_are_checked(cifar10):
    path = cifar10 / "test_batch.bin"
    path.write_bytes(bytes(3073) + bytes([200]) + bytes(3072))
    with pytest.raises(
        DataError, match=rf"{path}: the label of image 1 is 200 .*; expected 0 to 9"
    ):
        read_cifar10(cifar10, test=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_is_refused(cifar10):
    path = cifar10 / "data_batch_1.bin"
    path.chmod(0)
    with pytest.raises(DataError, match=rf"{path} cannot be read \(Permission denied\)"):
        read_cifar10(cifar10)
