"""Options, TOML files and data that nobody should give, and somebody will."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from originals import STUDY, TRAIN
from worker import Worker

from dlf_dynamics.config import BifurcationConfig, RunConfig, SpectrumConfig

LARGEST = 64 * 2**20
"""Bytes that a refused or tiny run may leave on disk."""

HOSTILE = (
    "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", str(2**31), str(2**63),
    str(10**23), "9" * 10_000, "", " ", "banana", "none", "true", "[1,2]", "1,2", "3:2", ":", "a:b",
    "[/b]", "[link=x]y", "$\\frac{$", "\x1b[31mred", "\u202egnp.exe", "\ud800", "../" * 40,
    "a" * 300, "a" * 5000, ".", "pipe", "--steps", "-o", "run.h5",
)  # fmt: skip
TOML = (
    "-1", "0", "1.5", "nan", "inf", "-inf", "1e400", str(2**31), str(10**23), "9" * 10_000, "''",
    "'banana'", "'[/b] $\\frac{$'", "true", "[]", "[1]", "[[1]]", "{}", "{a = 1}", "1979-05-27",
    "[" * 5000 + "]" * 5000, "'" + "a" * 100_000 + "'", "[1, 'a']", "[1000000000]",
    "\"\\u001b[31m\"",
)  # fmt: skip
LONG = {
    ("steps", str(2**31)),
    ("steps", str(2**63)),
    ("steps", str(10**23)),
    ("steps", "9" * 10_000),
}
"""Legal, and without an end within a test."""


def _keys(kind: type, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for field in dataclasses.fields(kind):
        value = field.default_factory() if callable(field.default_factory) else field.default
        if dataclasses.is_dataclass(value):
            keys += _keys(type(value), f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


RUN_KEYS = _keys(RunConfig)
ANALYSES = {"spectrum": _keys(SpectrumConfig), "bifurcations": _keys(BifurcationConfig)}


def check_case(seed: int, originals: Path, folder: Path, worker: Worker) -> tuple[str, list[str]]:
    """Executes one odd command line.

    Args:
        seed: decides on which.
        originals: good files, for commands that need one.
        folder: of its own; it is made and removed.
        worker: executes the command.

    Returns:
        The command line, and the faults, a line each.
    """
    rng = np.random.default_rng([seed, 1])
    family = FAMILIES[seed % len(FAMILIES)]
    shutil.copytree(originals, folder)
    os.mkfifo(folder / "pipe")
    arguments = family(folder, rng)
    outcome = worker.run(arguments, folder)
    told = " ".join(
        argument if len(argument) < 60 else argument[:60] + "..." for argument in arguments
    )
    fault = outcome.fault((0, 1, 2, 3, 4) if arguments[:1] == ["check"] else (0, 2, 3))
    faults = [fault] if fault else []
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if left > LARGEST:
        faults.append(f"{left} bytes are on disk")
    shutil.rmtree(folder)
    return f"{family.__name__.strip('_')}: {told!r}", faults


def _choice(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _small() -> list[str]:
    """A tiny run of three steps."""
    options = list(TRAIN)
    options[options.index("--steps") + 1] = "3"
    return options


def _option(folder: Path, rng: np.random.Generator) -> list[str]:
    key, value = _choice(rng, RUN_KEYS), _choice(rng, HOSTILE)
    if (key, value) in LONG:
        value = "-1"
    flag = "--" + key.replace("_", "-")
    options = _small()
    if flag in options:
        at = options.index(flag)
        del options[at : at + 2]
    joined = [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
    return ["train", "-o", "new.h5", *options, *joined]


def _analysis(folder: Path, rng: np.random.Generator) -> list[str]:
    command = _choice(rng, sorted(ANALYSES))
    flag = "--" + _choice(rng, ANALYSES[command]).replace("_", "-")
    quick = ["--every", "10"] if flag != "--every" else []
    return [command, "run.h5", "--no-figures", "--quiet", *quick, f"{flag}={_choice(rng, HOSTILE)}"]


def _other_option(folder: Path, rng: np.random.Generator) -> list[str]:
    """Options of commands beside their configuration: files, threads, names."""
    value = _choice(rng, HOSTILE)
    lines = (
        ["train", *_small(), "-o", value],
        ["train", *_small(), "-o", "new.h5", "--threads", value],
        ["train", *_small(), "-o", "new.h5", "--preset", value],
        ["train", value, *_small(), "-o", "new.h5"],
        ["train", "--resume", "-o", value],
        ["info", value],
        ["validate", value],
        ["repair", value],
        ["spectrum", "run.h5", "--no-figures", "--quiet", "--every", "10", "-o", value],
        ["spectrum", "run.h5", "--no-figures", "--quiet", "--every", "10", "--problem", value],
        ["spectrum", "own.h5", "--no-figures", "--quiet", "--problem", f"own.py:{value}"],
        ["plot", "run.h5", "--zoom", value],
        ["plot", "run.h5", "--spectrum", value],
        ["plot", "study.h5", "--quantity", value],
        ["plot", "study.h5", "--x", value],
        ["plot", "study.h5", "--fix", f"schedule.amplitude={value}"],
        ["check", "run.h5", "--quiet", "--every", value],
        ["sweep", value],
        ["sweep", "study.toml", "--quiet", "-o", value, "--processes", "1"],
        ["sweep", "study.toml", "--quiet", "-o", "new.h5", "--processes", "1", "--batch", value],
        ["reproduce", value],
        [value],
        [value, "--help"],
        ["train", "--" + value],
    )
    return _choice(rng, lines)


def _toml(folder: Path, rng: np.random.Generator) -> list[str]:
    key, value = _choice(rng, [*RUN_KEYS, "nothing", "data", "model.nothing"]), _choice(rng, TOML)
    if (key, value) in LONG:
        value = "-1"
    (folder / "my.toml").write_text(f"{key} = {value}\n")
    options = _small()
    flag = "--" + key.replace("_", "-")
    if flag in options:
        at = options.index(flag)
        del options[at : at + 2]
    return ["train", "my.toml", "-o", "new.h5", *options]


def _broken_toml(folder: Path, rng: np.random.Generator) -> list[str]:
    contents = (
        b"", b"\x00", b"\xff\xfe", b"steps", b"steps = ", b"[data", b"steps = 3\nsteps = 4",
        b"\x89HDF\r\n\x1a\n", b"[data]\n[data]\n", b"a" * 10**6, b"[grid]\n", b"preset = 3",
        b"preset = 'nothing'", b"steps = 3 # " + b"x" * 10**6, b"\xef\xbb\xbfsteps = 3",
    )  # fmt: skip
    command, name = _choice(rng, (("train", "my.toml"), ("sweep", "my.toml"), ("train", "my.cfg")))
    (folder / name).write_bytes(_choice(rng, contents))
    options = _small() if command == "train" else ["--quiet", "--processes", "1"]
    return [command, name, "-o", "new.h5", *options]


def _study(folder: Path, rng: np.random.Generator) -> list[str]:
    key = _choice(rng, [*RUN_KEYS, "nothing", "model"])
    grids = (
        f"{key} = {_choice(rng, TOML)}",
        f"{key} = [{_choice(rng, TOML)}]",
        f"{key} = {{logspace = [1, {_choice(rng, TOML)}, 2]}}",
        f"{key} = {{linspace = [1, 2, {_choice(rng, TOML)}]}}",
        f"{key} = {{from = 0, to = {_choice(rng, TOML)}}}",
        f"{key} = {{from = 0, nothing = 1}}",
    )
    text = STUDY.replace("model.seed = {from = 0, to = 1}", _choice(rng, grids))
    if rng.random() < 0.3:
        measures = ("curve_points", "sharpness", "ntk", "nothing")
        measure = f"{_choice(rng, measures)} = {_choice(rng, TOML)}"
        text = STUDY.replace("curve_points = 3", measure)
    (folder / "my.toml").write_text(text)
    return ["sweep", "my.toml", "--quiet", "--processes", "1"]


def _data(folder: Path, rng: np.random.Generator) -> list[str]:
    arrays = {"inputs": np.eye(6), "labels": np.arange(6) % 3}
    changes: tuple[Callable[[], object], ...] = (
        lambda: arrays.update(labels=np.array([0, 1, 2, 0, 1, 2**40])),
        lambda: arrays.update(labels=np.array([0, 1, 2, 0, 1, 10**6])),
        lambda: arrays.update(labels=np.array([0, 1, 2, 0, 1, -1])),
        lambda: arrays.update(labels=np.arange(6) % 3 + 1),
        lambda: arrays.update(labels=np.array(["a", "b", "c"] * 2)),
        lambda: arrays.update(labels=np.array(["a", "b", "c"] * 2, object)),
        lambda: arrays.update(labels=np.linspace(0, 1, 6)),
        lambda: arrays.update(labels=np.full(6, np.nan)),
        lambda: arrays.update(labels=np.zeros(6, int)),
        lambda: arrays.update(labels=np.zeros((6, 2), int)),
        lambda: arrays.update(labels=np.int64(3)),
        lambda: arrays.update(labels=np.zeros(5, int)),
        lambda: arrays.update(labels=np.zeros(0, int), inputs=np.zeros((0, 6))),
        lambda: arrays.update(labels=(np.arange(6) % 3).astype(np.uint64) + 2**63),
        lambda: arrays.update(labels=(np.arange(6) % 2).astype(bool)),
        lambda: arrays.update(labels=np.arange(6).astype("M8[s]")),
        lambda: arrays.update(inputs=np.zeros((6, 0))),
        lambda: arrays.update(inputs=np.zeros(6)),
        lambda: arrays.update(inputs=np.float64(3)),
        lambda: arrays.update(inputs=np.full((6, 2), np.nan)),
        lambda: arrays.update(inputs=np.full((6, 2), np.inf)),
        lambda: arrays.update(inputs=np.full((6, 2), 1e300)),
        lambda: arrays.update(inputs=np.ones((6, 2), complex)),
        lambda: arrays.update(inputs=np.ones((6, 2), "S3")),
        lambda: arrays.update(inputs=np.array([[{}]] * 6, object)),
        lambda: arrays.update(inputs=np.ones((6, 2, 2, 2, 2, 2))),
        lambda: arrays.update(inputs=np.ones((6, 2), np.float16)),
        lambda: arrays.update(inputs=np.ones((6, 4, 4, 3), np.uint8)),
        lambda: arrays.pop("labels"),
        lambda: arrays.clear(),
        lambda: arrays.update(
            validation_inputs=np.zeros((2, 5)), validation_labels=np.zeros(2, int)
        ),
        lambda: arrays.update(
            validation_inputs=np.zeros((2, 6)), validation_labels=np.array([7, 8])
        ),
        lambda: arrays.update(x_train=np.eye(6)),
    )
    _choice(rng, changes)()
    np.savez(folder / "my.npz", **arrays)
    if rng.random() < 0.35:
        _break_archive(folder / "my.npz", rng)
    more = ["--model.name", "convolutional"] if rng.random() < 0.2 else []
    return [
        "train",
        "--data.name",
        "npz",
        "--data.path",
        "my.npz",
        "-o",
        "new.h5",
        *_small(),
        *more,
    ]


def _break_archive(path: Path, rng: np.random.Generator) -> None:
    content = path.read_bytes()

    def header(shape: str) -> bytes:
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text

    def archive(inputs: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("inputs.npy", inputs)
            labels = io.BytesIO()
            np.save(labels, np.arange(6) % 3)
            file.writestr("labels.npy", labels.getvalue())
        return stream.getvalue()

    flipped = bytearray(content)
    flipped[int(rng.integers(len(content)))] ^= 255
    bomb = header("(6, 2000000)") + bytes(96_000_000)
    broken = (
        b"",
        b"PK\x03\x04",
        content[: int(rng.integers(1, len(content)))],
        bytes(flipped),
        archive(header("(6, 1000000000000)")),
        archive(header("(-1, 2)")),
        archive(header("(6, 'a')")),
        archive(b"\x93NUMPY\x09\x00"),
        archive(b"not an array"),
        archive(bomb) if rng.random() < 0.3 else archive(bomb[:1000]),
    )
    path.write_bytes(_choice(rng, broken))


def _images(folder: Path, rng: np.random.Generator) -> list[str]:
    """Files that claim to be MNIST or CIFAR-10."""
    name = _choice(rng, ("mnist", "cifar10"))
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
        "data_batch_1.bin",
        "test_batch.bin",
    )
    contents = (
        b"",
        struct.pack(">IIII", 2051, 2**31, 2**31, 2**31),
        struct.pack(">IIII", 2051, 6, 2, 2) + bytes(24),
        struct.pack(">II", 2049, 6) + bytes(6),
        struct.pack(">II", 2049, 2**32 - 1) + bytes(6),
        rng.bytes(3073),
        rng.bytes(3000),
        b"\x1f\x8b broken gzip",
    )
    for file in files:
        suffix = ".gz" if rng.random() < 0.1 else ""
        (folder / (file + suffix)).write_bytes(_choice(rng, contents))
    path = _choice(rng, (".", "nowhere", "run.h5", "data.npz"))
    return ["train", "--data.name", name, "--data.path", path, "-o", "new.h5", *_small()]


def _together(folder: Path, rng: np.random.Generator) -> list[str]:
    """Several options that are fine alone."""
    sets = (
        ["--batch-size", "1000000"],
        ["--batch-size", "1", "--schedule.static-from-epoch", "1"],
        ["--linearize", "1", "--dtype", "float16"],
        ["--linearize", "2", "--model.name", "convolutional"],
        ["--model.name", "myrtle5"],
        ["--model.name", "convolutional", "--data.name", "digits"],
        ["--loss.name", "squared-error-per-output", "--model.outputs", "2"],
        ["--model.outputs", "1"],
        ["--data.limit", "1"],
        ["--data.limit", "1000000"],
        ["--data.validation", "1000000"],
        ["--data.name", "digits", "--data.validation", "1797"],
        ["--dtype", "bfloat16", "--optimizer.name", "adam"],
        ["--optimizer.learning-rate", "1e30"],
        ["--optimizer.learning-rate", "1e-320"],
        ["--schedule.amplitude", "1e300"],
        ["--optimizer.epsilon", "0", "--optimizer.name", "rmsprop"],
        ["--optimizer.warmup-steps", "1000000"],
        ["--optimizer.learning-rate-schedule", "exponential"],
        ["--checkpoint-every", "1000000"],
        ["--data.noise", "1e300"],
        ["--threads", "1000"],
        ["--prng", "legacy", "--model.init", "published"],
        ["--overwrite", "--resume"],
        ["--steps", "2", "--steps", "3"],
    )
    chosen = [_choice(rng, sets) for _ in range(int(rng.integers(1, 4)))]
    return ["train", "-o", "new.h5", *_small(), *(word for words in chosen for word in words)]


FAMILIES = (
    _option,
    _option,
    _toml,
    _data,
    _analysis,
    _other_option,
    _study,
    _toml,
    _data,
    _together,
    _other_option,
    _broken_toml,
    _images,
)
