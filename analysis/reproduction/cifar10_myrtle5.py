"""Myrtle5 on CIFAR-10 by amplitude and period; the protocol is inferred from a script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dlf_dynamics.analysis.reproduction.grids import Grid, compare, diagrams_of, pictures_of
from dlf_dynamics.analysis.reproduction.page import Page
from dlf_dynamics.analysis.reproduction.published import PAPER
from dlf_dynamics.analysis.reproduction.task import Reproduction, Task, counted
from dlf_dynamics.analysis.studies.study import Study
from dlf_dynamics.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.errors import ConfigError

NAME = "cifar10-myrtle5"

EPOCHS, PEAK_EPOCH, STATIC_EPOCH = 700, 300, 600
"""Epochs of training, epochs of warm-up, and the epoch from which the loss is static."""

PEAK_RATE, FINAL_RATE, MOMENTUM = 0.02, 0.002, 0.9
CHANNELS, BATCH_SIZE = 64, 512

_AMPLITUDES = tuple(10.0 * k for k in range(1, 16))
_PERIODS = (20, 33, 54, 90, 148, 244, 404, 668, 1098, 1818, 3063)
"""Periods in mini-batch steps."""

SEEDS = 20


@dataclass(frozen=True)
class Size:
    """How much of the script's sweep is made.

    Attributes:
        grid: amplitudes, periods of the script and seeds.
        scale: factor by which epochs and periods are shortened, so that runs keep their number of
            pulses.
        channels: channels of each convolution.
        batch_size: examples per update.
        examples: number of training images, the first ones; none means all.
        validated: number of test images, the first ones; none means all.
    """

    grid: Grid
    scale: float = 1.0
    channels: int = CHANNELS
    batch_size: int = BATCH_SIZE
    examples: int | None = None
    validated: int | None = None


_SIZES = {
    "tiny": Size(Grid((10.0, 70.0), (404, 1098), 1), 1 / 70, 8, 100, 2000, 500),
    "small": Size(Grid((10.0, 30.0, 70.0, 150.0), (54, 148, 404, 1098, 3063), 3), 1 / 20),
    "full": Size(Grid(_AMPLITUDES, _PERIODS, SEEDS)),
}


def data_config(size: Size, path: Path | None) -> DataConfig:
    """Settings of the images: an .npz file, or else a folder.

    Raises:
        ConfigError: when no path is given.
    """
    if path is None:
        raise ConfigError(
            f"{NAME} needs --data: the folder with the binary version of CIFAR-10 "
            "(data_batch_1.bin to test_batch.bin), or an .npz with images and labels"
        )
    name = "npz" if path.suffix == ".npz" else "cifar10"
    return DataConfig(
        name=name, path=str(path.resolve()), limit=size.examples, validation=size.validated
    )


def study(size: Size, data: DataConfig, num_examples: int) -> Study:
    """The protocol of the script at a size.

    Args:
        size: size of the sweep.
        data: settings of the images.
        num_examples: number of training images.
    """
    batches = num_examples // size.batch_size
    steps = round(EPOCHS * batches * size.scale)
    grid = scaled(size)
    base = RunConfig(
        data=data,
        model=ModelConfig(name="myrtle5", widths=(size.channels,), init="glorot-normal"),
        schedule=ScheduleConfig(static_from=steps * STATIC_EPOCH // EPOCHS),
        optimizer=OptimizerConfig(
            name="nesterov",
            momentum=MOMENTUM,
            learning_rate=PEAK_RATE,
            learning_rate_schedule="linear",
            final_learning_rate=FINAL_RATE,
            warmup_steps=steps * PEAK_EPOCH // EPOCHS,
        ),
        steps=steps,
        checkpoint_every=max(steps // 10, 1),
        batch_size=size.batch_size,
        dtype="float32",
    )
    return Study(base, (("model.seed", tuple(range(grid.seeds))),), grid.cells())


def scaled(size: Size) -> Grid:
    """The grid with its periods shortened."""
    periods = tuple(max(round(period * size.scale), 2) for period in size.grid.periods)
    return Grid(size.grid.amplitudes, periods, size.grid.seeds)


def make(task: Task) -> Page:
    """Trains what is missing, draws, and compares."""
    size = _SIZES[task.budget]
    data = data_config(size, task.data)
    num_examples = len(load_dataset(data).labels)
    results = task.swept(study(size, data, num_examples))
    base = results.study.base
    diagrams = diagrams_of(results)
    return Page(
        name=NAME,
        title="Myrtle5 on CIFAR-10 by amplitude and period",
        source=PAPER,
        published="Training and test accuracy of a Myrtle5 network with 64 channels on CIFAR-10, "
        f"for A from 1 to 150 and T from {_PERIODS[0]} to {_PERIODS[-1]:,} mini-batch steps, 20 "
        "runs in each cell. Nesterov's momentum 0.9, batches of 512, 700 epochs, learning rate "
        "linear from 0 to 0.02 (epoch 300) and to 0.002 (epoch 700), oscillations until epoch 600. "
        "**This protocol is inferred from a script, not published**, and the script is not in the "
        "authors' repository; we had no access to the accuracies. The sweep has not been "
        "run in earnest.",
        comparisons=tuple(compare(diagrams)),
        differs=_differs(size, num_examples, task.budget),
        pictures=pictures_of(diagrams, task, NAME),
        made=task.made(
            NAME,
            results.provenance,
            {
                "grid": scaled(size).told,
                "runs": counted(results.statuses),
                "steps of each": f"{base.steps:,}, {base.schedule.static_from:,} of them dynamical",
                "data": f"{num_examples:,} images, {size.channels} channels, batches of "
                f"{size.batch_size}",
                "precision": base.dtype,
            },
            results,
        ),
    )


def _differs(size: Size, num_examples: int, budget: str) -> tuple[str, ...]:
    sentences = []
    if size.scale != 1:
        sentences.append(
            f"Epochs and periods are shortened alike, by a factor of {1 / size.scale:g}, so that "
            f"a run has as many pulses as one of the script; the grid has fewer cells and seeds."
        )
    if size.channels != CHANNELS or size.examples is not None:
        sentences.append(
            f"**This size ({budget}) shows that the protocol runs, and nothing else**: "
            f"{num_examples:,} images and {size.channels} channels do not learn CIFAR-10, and the "
            "differences between cells are noise."
        )
    return tuple(sentences)


REPRODUCTION = Reproduction(
    NAME,
    "a sweep on CIFAR-10, its protocol inferred from a script; needs --data",
    make,
    "needs a GPU, not measured",
    dtype="float32",
)
