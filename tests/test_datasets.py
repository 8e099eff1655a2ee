import hashlib
import io
import math
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dlf_dynamics import binaryfiles, memory
from dlf_dynamics.config import DataConfig
from dlf_dynamics.datasets import Dataset, check_dataset, load_dataset, require_trainable
from dlf_dynamics.errors import ConfigError, DataError, UserError


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
        (np.ones((2, 0)), LABELS, r"shape \(2, 0\) .*at least one of each"),
        (np.ones((2, 3, 0)), LABELS, r"shape \(2, 3, 0\)"),
        (INPUTS > 0, LABELS, "inputs are of type bool"),
        (INPUTS.astype("m8[s]"), LABELS, "inputs are of type timedelta64"),
        (INPUTS.astype(object), LABELS, "inputs are of type object"),
        (INPUTS.astype([("a", float)]), LABELS, "inputs are of type .*; expected real numbers"),
        (INPUTS, np.array(["cat", "dog"]), "found <U3; np.unique.*gives them"),
        (INPUTS, np.array([2**40, 0]), "from 0 to 2,147,483,646, found 1099511627776"),
        (INPUTS, np.array([2**64 - 1, 0], np.uint64), "found 18446744073709551615"),
        (INPUTS, np.array([0, 2**31 - 1]), "from 0 to 2,147,483,646, found 2147483647"),
        (INPUTS.astype(str), LABELS, "inputs are of type <U32; expected real numbers"),
        (INPUTS + 1j, LABELS, "inputs are of type complex128; expected real numbers"),
        (INPUTS, np.array([0.0, 1.0]), "labels must be whole numbers 0, 1, .*float64"),
        (INPUTS, np.array([-1, 0]), "labels must be whole numbers from 0 .*found -1"),
        (np.array([[0, 1], [np.nan, np.inf]]), LABELS, r"inputs\[1, 0\] is nan \(2 values"),
    ],
)
def test_unusable_arrays_are_refused_by_their_origin(inputs, labels, message):
    with pytest.raises(DataError, match=f"^there: .*{message}"):
        check_dataset(inputs, labels, "there")


@pytest.mark.skipif(np.finfo(np.longdouble).max < 1e400, reason="no type longer than float64")
def test_numbers_too_large_for_float64_are_not_finite():
    inputs = np.array([[1, np.longdouble("1e400")]])
    with pytest.raises(DataError, match=r"inputs\[0, 1\] is 1e\+400 \(1 value not finite\)"):
        check_dataset(inputs, np.array([0]), "there")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 1], "no example has label 0, and 2 labels go from 1 to 2; .*model.outputs to 3"),
        ([0, 10**6, 0], "no example has label 1, and 2 labels go from 0 to 1000000"),
        ([0, 1, 3], "no example has label 2"),
    ],
)
def test_classes_without_examples_have_to_be_asked_for(labels, message):
    dataset = Dataset(np.ones((3, 2)), np.array(labels))
    with pytest.raises(DataError, match=message):
        require_trainable(dataset, None, "float64")
    require_trainable(dataset, max(labels) + 1, "float64")
    whole = Dataset(dataset.inputs, np.unique(labels, return_inverse=True)[1])
    require_trainable(whole, None, "float64")


@pytest.mark.parametrize(
    ("dtype", "most"), [("float32", 1e38), ("bfloat16", 1e38), ("float16", 6e4)]
)
def test_inputs_have_to_fit_into_the_type_of_the_run(dtype, most):
    labels = np.array([0, 1])
    require_trainable(Dataset(np.array([[1.0], [-most]]), labels), None, dtype)
    large = Dataset(np.array([[1.0], [-4 * most]]), labels)
    require_trainable(large, None, "float64")
    with pytest.raises(
        DataError, match=rf"inputs go up to [\d.e+]+; expected at most .* in {dtype}"
    ):
        require_trainable(large, None, dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": 1e308}, r"data.noise is 1e\+308, too large for numbers: inputs\[.* is"),
        ({"points_per_class": 10**15}, "points takes at least .* memory; make data.points_per"),
        ({"num_classes": 10**23}, "a data set of 2000.* points takes at least 480,000"),
        ({"validation": 10**13}, "a data set of 10000000000300 points takes at least 240,000 GB"),
    ],
)
def test_points_that_cannot_be_made_are_refused_at_once(changes, message):
    with np.errstate(all="ignore"), pytest.raises(UserError, match=message):
        load_dataset(DataConfig(**changes))


def written(path, **entries):
    """An .npz file of members as they are given, bytes for bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return DataConfig(name="npz", path=str(path))


def member(values, shape=None):
    """The bytes of an array, that may promise another shape than it has."""
    content = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(values)
    np.lib.format.write_array_header_1_0(content, header | {"shape": shape or values.shape})
    return content.getvalue() + values.tobytes()


def test_an_array_that_is_not_what_its_header_promises_is_refused_at_once(tmp_path):
    labels = member(LABELS)
    for shape in ((2, 2**60), (10**30, 3), (2, 4), (1, 3)):
        config = written(tmp_path / "data.npz", inputs=member(INPUTS, shape), labels=labels)
        with pytest.raises(DataError, match=r"inputs of shape .* takes .*; the file has 48: save"):
            load_dataset(config)
    config = written(tmp_path / "data.npz", inputs=member(INPUTS), labels=labels)
    assert np.array_equal(load_dataset(config).inputs, INPUTS)
    for content in (b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00", member(INPUTS)[:60], b"\x80\x04."):
        config = written(tmp_path / "data.npz", inputs=content, labels=labels)
        with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
            load_dataset(config)


def test_gigabytes_of_zeros_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(binaryfiles, "_LARGE", 2**20)
    config = written(tmp_path / "data.npz", inputs=member(np.zeros((2, 10**6))), labels=b"")
    with pytest.raises(DataError, match=r"inputs would be 16,000,000 bytes, out of 1\d,\d\d\d on"):
        load_dataset(
            written(tmp_path / "data.npz", inputs=member(np.zeros((2, 10**6))), labels=b"")
        )
    noise = np.random.default_rng(0).normal(size=(2, 10**6))
    config = written(tmp_path / "data.npz", inputs=member(noise), labels=member(LABELS))
    assert np.array_equal(load_dataset(config).inputs, noise)


def test_arrays_that_memory_cannot_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda: 50)
    config = written(tmp_path / "data.npz", inputs=member(INPUTS), labels=member(LABELS))
    with pytest.raises(ConfigError, match=r"inputs of shape \(2, 3\) takes at least .*fewer exam"):
        load_dataset(config)


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match=r"is not a file; expected an \.npz of numbers"):
            load_dataset(DataConfig(name="npz", path=str(path)))
    with pytest.raises(DataError, match=r"^data file x{97} \.\.\. x{97} cannot be read: File"):
        load_dataset(DataConfig(name="npz", path="x" * 5000))


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
    with pytest.raises(DataError, match=r"has no array labels; expected inputs, labels$"):
        load_dataset(config)
    np.savez(path, labels=LABELS)
    with pytest.raises(DataError, match=r"has no array inputs; expected inputs, labels$"):
        load_dataset(config)
    np.savez(path, inputs=np.array([[object()]]), labels=np.array([0]))
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(config)
    path.write_text("no archive")
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(config)
    np.savez_compressed(path, inputs=np.ones((400, 3)), labels=np.zeros(400, int))
    whole = path.read_bytes()
    path.write_bytes(whole[:60] + b"\xff" * 20 + whole[80:])
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(config)
    np.save(tmp_path / "data.npy", INPUTS)
    single = DataConfig(name="npz", path=str(tmp_path / "data.npy"))
    with pytest.raises(DataError, match=r"is not a readable \.npz of numbers"):
        load_dataset(single)


GENERATED = ["spiral", "swiss-roll", "blobs"]


def held_out(config):
    """The examples for validation, which must be there."""
    found = load_dataset(config).validation
    assert found is not None
    assert found.validation is None
    return found


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(
    ("validation", "sizes"), [(None, [7, 7, 7]), (11, [4, 4, 3]), (2, [1, 1]), (600, [200] * 3)]
)
def test_as_many_fresh_points_are_held_out_as_are_asked_for(name, validation, sizes):
    config = DataConfig(name=name, points_per_class=7, validation=validation)
    points = held_out(config)
    assert np.bincount(points.labels).tolist() == sizes
    assert points.inputs.shape == (sum(sizes), 3 if name == "swiss-roll" else 2)


@pytest.mark.parametrize("name", GENERATED)
def test_the_training_points_do_not_depend_on_those_held_out(name):
    config = DataConfig(name=name, points_per_class=7)
    none = load_dataset(replace(config, validation=0))
    assert none.validation is None
    for validation in (None, 1, 50):
        dataset = load_dataset(replace(config, validation=validation))
        assert np.array_equal(dataset.inputs, none.inputs)
        assert dataset.sha256() == none.sha256()


@pytest.mark.parametrize("name", GENERATED)
def test_points_held_out_are_fresh_and_follow_the_seed(name):
    config = DataConfig(name=name, points_per_class=50)
    dataset, again = load_dataset(config), held_out(config)
    first = held_out(config).inputs
    assert np.array_equal(first, again.inputs)
    assert not np.array_equal(first, held_out(replace(config, seed=1)).inputs)
    distances = np.linalg.norm(dataset.inputs[:, None] - first, axis=2)
    assert distances.min() > 0
    # Seed 1 trains on other points than those that seed 0 holds out.
    other = load_dataset(replace(config, seed=1)).inputs
    assert np.linalg.norm(other[:, None] - first, axis=2).min() > 0


def test_fresh_points_of_the_spiral_follow_its_law():
    config = DataConfig(validation=30_000, noise=0.1)
    points = held_out(config)
    for arm in range(3):
        x, y = points.inputs[points.labels == arm].T
        radius = np.hypot(x, y)
        # Evenly spread over the whole arm: one point in each ten-thousandth of it.
        assert np.array_equal(np.floor(np.sort(radius) * 10_000 + 1e-9), np.arange(10_000))
        expected = 2 * math.pi * arm / 3 + 4 * math.pi * radius
        noise = np.angle(np.exp(1j * (np.arctan2(y, x) - expected)))
        assert stats.kstest(noise / 0.1, "norm").pvalue > 1e-3


def test_fresh_points_of_a_swiss_roll_lie_on_its_sheet():
    config = DataConfig(name="swiss-roll", noise=0.0, validation=900)
    roll = held_out(config)
    x, height, z = roll.inputs.T
    radius = np.hypot(x, z)
    angle = 4.5 * math.pi * radius
    np.testing.assert_allclose(x, radius * np.cos(angle), atol=1e-12)
    np.testing.assert_allclose(z, radius * np.sin(angle), atol=1e-12)
    # The radius grows from 1/3 to 1 along the sheet, which is cut into three equal parts.
    length = (3 * radius - 1) / 2
    assert np.array_equal(np.floor(3 * length), roll.labels)
    assert np.array_equal(np.floor(900 * length + 1e-9), np.arange(900))
    assert stats.kstest(height, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    noisy = held_out(replace(config, noise=0.5)).inputs - roll.inputs
    assert stats.kstest(noisy.ravel() / 0.05, "norm").pvalue > 1e-3


def test_fresh_blobs_are_normal_about_the_same_centres():
    points = held_out(DataConfig(name="blobs", num_classes=4, noise=0.3, validation=8000))
    centres = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
    noise = (points.inputs - centres[points.labels]) / 0.3
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_a_limit_leaves_those_held_out_alone():
    config = DataConfig(points_per_class=10, limit=4, validation=12)
    dataset = load_dataset(config)
    assert len(dataset.labels) == 4
    assert np.array_equal(held_out(config).inputs, held_out(replace(config, limit=None)).inputs)
    assert len(held_out(config).labels) == 12


def test_digits_are_held_out_by_a_permutation_and_the_others_keep_their_order():
    whole = load_dataset(DataConfig(name="digits"))
    assert whole.validation is None
    assert load_dataset(DataConfig(name="digits", validation=0)).validation is None
    config = DataConfig(name="digits", validation=297, seed=3)
    dataset, points = load_dataset(config), held_out(config)
    chosen = np.random.RandomState(3).permutation(1797)[:297].tolist()
    left = [n for n in range(1797) if n not in chosen]
    assert np.array_equal(dataset.inputs, whole.inputs[left])
    assert np.array_equal(dataset.labels, whole.labels[left])
    assert np.array_equal(points.inputs, whole.inputs[sorted(chosen)])
    assert np.array_equal(points.labels, whole.labels[sorted(chosen)])


def test_at_least_one_example_is_left_to_train_on():
    config = DataConfig(name="digits", validation=1797)
    message = (
        r"data\.validation is 1,797; expected at most 1,796, as the data set digits has 1,797 exa"
    )
    with pytest.raises(DataError, match=message):
        load_dataset(config)
    assert len(load_dataset(replace(config, validation=1796)).labels) == 1


OWN = ("inputs", "labels", "validation_inputs", "validation_labels")


@pytest.mark.parametrize("names", [OWN, ("x_train", "y_train", "x_test", "y_test")])
def test_an_npz_file_may_bring_its_own_examples_for_validation(tmp_path, names):
    path = tmp_path / "data.npz"
    arrays = (np.eye(4), np.arange(4), 2 * np.eye(4), np.array([3, 2, 1, 0]))
    np.savez(path, **dict(zip(names, arrays, strict=True)))
    config = DataConfig(name="npz", path=str(path), limit=3)
    dataset, points = load_dataset(config), held_out(config)
    assert np.array_equal(dataset.inputs, np.eye(4)[:3])
    assert np.array_equal(points.inputs, 2 * np.eye(4))
    assert points.labels.tolist() == [3, 2, 1, 0]
    assert held_out(replace(config, validation=2)).labels.tolist() == [3, 2]
    assert load_dataset(replace(config, validation=0)).validation is None
    with pytest.raises(
        DataError, match=r"data\.validation is 5; expected at most 4, as .* npz has"
    ):
        load_dataset(replace(config, validation=5))


def test_an_npz_file_without_its_own_holds_out_what_is_asked_for(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, inputs=np.arange(12.0).reshape(6, 2), labels=np.arange(6))
    config = DataConfig(name="npz", path=str(path))
    assert load_dataset(config).validation is None
    points = held_out(replace(config, validation=2))
    left = load_dataset(replace(config, validation=2))
    assert sorted([*points.labels, *left.labels]) == list(range(6))
    for part in (points, left):
        assert np.array_equal(part.inputs[:, 0], 2 * part.labels)


def test_examples_for_validation_are_checked_like_the_others(tmp_path):
    path = tmp_path / "data.npz"
    config = DataConfig(name="npz", path=str(path))
    np.savez(path, inputs=INPUTS, labels=LABELS, validation_inputs=INPUTS)
    with pytest.raises(
        DataError, match=r"no array validation_labels; expected inputs, labels, val"
    ):
        load_dataset(config)
    np.savez(path, x_train=INPUTS, y_train=LABELS, x_test=INPUTS * np.nan, y_test=LABELS)
    with pytest.raises(DataError, match=r"data\.npz, x_test and y_test: inputs\[0, 0\] is nan"):
        load_dataset(config)
    np.savez(path, **dict(zip(OWN, (INPUTS, LABELS, np.ones((2, 4)), LABELS), strict=True)))
    message = r"inputs for validation have shape \(2, 4\), those to train on \(2, 3\); expected"
    with pytest.raises(DataError, match=message):
        load_dataset(config)
    np.savez(path, inputs=np.ones((5, 3)), labels=np.zeros(4, int))
    with pytest.raises(DataError, match=r"shape \(5, 3\) and labels \(4,\)"):
        load_dataset(replace(config, limit=2))


def test_images_of_bytes_are_divided_by_255_and_other_numbers_are_not(tmp_path):
    path = tmp_path / "data.npz"
    config = DataConfig(name="npz", path=str(path))
    images = np.arange(2 * 3 * 2 * 3, dtype=np.uint8).reshape(2, 3, 2, 3)
    for scale, inputs in (
        (255, images),
        (1, images.astype(np.int16)),
        (1, images.astype(np.float32)),
        (1, images.reshape(2, 18)),
    ):
        arrays = (inputs, LABELS, inputs + 1, LABELS)
        np.savez(path, **dict(zip(OWN, arrays, strict=True)))
        assert np.array_equal(load_dataset(config).inputs, inputs.astype(float) / scale)
        assert np.array_equal(held_out(config).inputs, (inputs + 1).astype(float) / scale)


CIFAR10 = Path(__file__).parents[2] / "shared" / "data" / "cifar10_10k.npz"


@pytest.mark.skipif(not CIFAR10.is_file(), reason="the images of CIFAR-10 are not at hand")
def test_images_of_cifar10_in_an_npz_file_are_read():
    config = DataConfig(name="npz", path=str(CIFAR10), limit=300, validation=200)
    dataset, points = load_dataset(config), held_out(config)
    assert dataset.inputs.shape == (300, 32, 32, 3)
    assert points.inputs.shape == (200, 32, 32, 3)
    assert (dataset.num_classes, points.num_classes) == (10, 10)
    # The first training images are a frog, two lorries, a deer and a car; of the test images, a
    # cat, two ships, an aeroplane and a frog.
    assert dataset.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert points.labels[:5].tolist() == [3, 8, 8, 0, 6]
    # Its first pixel, as it is printed everywhere.
    assert (dataset.inputs[0, 0, 0] * 255).round(9).tolist() == [59, 62, 63]
    # The channel means of CIFAR-10 are 0.4914, 0.4822 and 0.4465.
    np.testing.assert_allclose(dataset.inputs.mean(axis=(0, 1, 2)), [0.49, 0.48, 0.45], atol=0.03)
