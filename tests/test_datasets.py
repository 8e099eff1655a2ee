import hashlib
import math
import struct
from dataclasses import replace

import numpy as np
import pytest

from dlf_dynamics.config import DataConfig
from dlf_dynamics.datasets import Dataset, check_dataset, load_dataset
from dlf_dynamics.errors import DataError


def test_the_published_spiral_comes_out_to_the_last_digit():
    spiral = load_dataset(DataConfig())
    assert spiral.inputs.shape == (300, 2)
    assert float(spiral.inputs.sum()) == pytest.approx(-2.144918265397747, abs=1e-12)
    assert np.bincount(spiral.labels).tolist() == [100, 100, 100]


def test_the_three_arms_share_the_origin():
    spiral = load_dataset(DataConfig())
    assert np.all(spiral.inputs[[0, 100, 200]] == 0)
    assert spiral.labels[[0, 100, 200]].tolist() == [0, 1, 2]


def test_the_spiral_is_the_papers_formula_point_by_point():
    config = DataConfig(points_per_class=7, num_classes=4, noise=0.3, seed=5)
    spiral = load_dataset(config)
    normal = np.random.RandomState(5).randn(28)
    for n in range(28):
        arm, k = divmod(n, 7)
        angle = 2 * math.pi * arm / 4 + 4 * math.pi * k / 6 + 0.3 * normal[n]
        point = (k / 6 * math.cos(angle), k / 6 * math.sin(angle))
        assert spiral.inputs[n] == pytest.approx(point, abs=1e-14)
        assert spiral.labels[n] == arm


def test_a_swiss_roll_without_noise_lies_on_its_sheet():
    config = DataConfig(name="swiss-roll", points_per_class=200, num_classes=3, noise=0.0)
    roll = load_dataset(config)
    x, height, z = roll.inputs.T
    # The radius grows in proportion to the angle: 1/3 to 1 in one turn and a half.
    radius = np.hypot(x, z)
    angle = 4.5 * math.pi * radius
    np.testing.assert_allclose(x, radius * np.cos(angle), atol=1e-12)
    np.testing.assert_allclose(z, radius * np.sin(angle), atol=1e-12)
    assert 1 / 3 <= radius.min() < 0.34
    assert 0.99 < radius.max() < 1
    assert np.abs(height).max() <= 1
    # Cut along its length: no class overlaps the next in radius.
    assert radius[roll.labels == 0].max() < radius[roll.labels == 1].min()
    assert radius[roll.labels == 1].max() < radius[roll.labels == 2].min()


def test_blobs_are_normal_about_the_corners_of_a_polygon():
    blobs = load_dataset(DataConfig(name="blobs", points_per_class=5000, num_classes=4, noise=0.3))
    corners = [(1, 0), (0, 1), (-1, 0), (0, -1)]
    for label, corner in enumerate(corners):
        points = blobs.inputs[blobs.labels == label]
        # Five standard errors.
        assert points.mean(axis=0) == pytest.approx(corner, abs=5 * 0.3 / math.sqrt(5000))
        assert points.std(axis=0) == pytest.approx((0.3, 0.3), rel=5 / math.sqrt(2 * 5000))


def test_the_digits_are_those_of_the_uci_test_set():
    digits = load_dataset(DataConfig(name="digits"))
    assert digits.inputs.shape == (1797, 64)
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 1)
    assert digits.num_classes == 10
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(digits.labels).tolist() == counts
    # The first image, a 0, as it is printed everywhere.
    assert (digits.inputs[0, :16] * 16).tolist() == [
        *(0, 0, 5, 13, 9, 1, 0, 0),
        *(0, 0, 13, 15, 10, 15, 5, 0),
    ]


@pytest.mark.parametrize("name", ["spiral", "swiss-roll", "blobs"])
def test_a_seed_gives_the_same_points_and_another_seed_others(name):
    config = DataConfig(name=name, points_per_class=10)
    assert np.array_equal(load_dataset(config).inputs, load_dataset(config).inputs)
    assert not np.array_equal(
        load_dataset(config).inputs, load_dataset(replace(config, seed=1)).inputs
    )


def test_a_limit_keeps_the_first_examples():
    whole = load_dataset(DataConfig(name="digits"))
    part = load_dataset(DataConfig(name="digits", limit=17))
    assert np.array_equal(part.inputs, whole.inputs[:17])
    assert np.array_equal(part.labels, whole.labels[:17])


def test_the_digest_is_that_of_shape_inputs_and_labels():
    dataset = Dataset(np.array([[1.0, 2.0]], np.float32), np.array([3], np.int8))
    data = b"(1, 2)" + struct.pack("<ddq", 1.0, 2.0, 3)
    assert dataset.sha256() == hashlib.sha256(data).hexdigest()


def test_an_npz_file_is_read_in_double_precision(tmp_path):
    path = tmp_path / "data.npz"
    inputs = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    np.savez(path, inputs=inputs, labels=np.array([0, 1, 1, 2], np.uint8))
    dataset = load_dataset(DataConfig(name="npz", path=str(path)))
    assert (dataset.inputs.dtype, dataset.labels.dtype) == (np.float64, np.int64)
    assert np.array_equal(dataset.inputs, inputs)
    assert dataset.num_classes == 3


INPUTS, LABELS = np.ones((2, 3)), np.array([0, 1])


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.ones(2), LABELS, r"inputs have shape \(2,\)"),
        (np.ones((3, 3)), LABELS, r"shape \(3, 3\) and labels \(2,\)"),
        (INPUTS, np.zeros((2, 1), int), r"labels \(2, 1\)"),
        (np.ones((0, 3)), np.zeros(0, int), r"shape \(0, 3\)"),
        (INPUTS.astype(str), LABELS, "inputs are of type <U32; expected real numbers"),
        (INPUTS + 1j, LABELS, "inputs are of type complex128; expected real numbers"),
        (INPUTS, np.array([0.0, 1.0]), "labels must be whole numbers 0, 1, .*float64"),
        (INPUTS, np.array([-1, 0]), "labels must be whole numbers.* from -1"),
        (np.array([[0, 1], [np.nan, np.inf]]), LABELS, r"inputs\[1, 0\] is nan \(2 values"),
    ],
)
def test_unusable_arrays_are_refused_by_their_origin(inputs, labels, message):
    with pytest.raises(DataError, match=f"^there: .*{message}"):
        check_dataset(inputs, labels, "there")


def test_an_npz_file_is_checked_too(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.ones(3), labels=LABELS)
    with pytest.raises(DataError, match=r"data\.npz: inputs have shape"):
        load_dataset(DataConfig(name="npz", path=str(path)))


def test_a_missing_or_malformed_npz_file_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    config = DataConfig(name="npz", path=str(path))
    with pytest.raises(DataError, match=r"data file .* does not exist"):
        load_dataset(config)
    np.savez(path, inputs=INPUTS)
    with pytest.raises(DataError, match=r"has no array labels.*; expected inputs, labels"):
        load_dataset(config)
    np.savez(path, inputs=np.array([[object()]]), labels=np.array([0]))
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(config)
    path.write_text("no archive")
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(config)
    np.save(tmp_path / "data.npy", INPUTS)
    single = DataConfig(name="npz", path=str(tmp_path / "data.npy"))
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(single)
