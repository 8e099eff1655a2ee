"""Allowed values of configurations, and the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dlf_dynamics.errors import ConfigError, shown

if TYPE_CHECKING:
    from dlf_dynamics.config import OptimizerConfig, RunConfig

Violation = tuple[Any, str, str]
"""A value, its key, and what is expected instead."""

MOST_STEPS = 2**31 - 2
"""Steps are counted in 32 bits, and there is one more than updates."""

_MOST_SEED = 2**32 - 1

_MOST_AMPLITUDE = 1e30
"""Twice this number is still far below the largest float32, in which weights may be computed."""

_PATHS = {
    "npz": "the .npz file to train on",
    "mnist": "the folder with MNIST's files",
    "cifar10": "the folder with the binary version of CIFAR-10",
}


def violations(config: RunConfig) -> Iterator[Violation]:
    """The values that are out of range."""
    data, schedule, optimizer = config.data, config.schedule, config.optimizer
    yield from _whole_numbers(config)
    if not (math.isfinite(data.noise) and data.noise >= 0):
        yield data.noise, "data.noise", "a number of at least 0"
    if data.num_classes < 2:
        yield data.num_classes, "data.num_classes", "at least 2"
    if any(not 1 <= width <= MOST_STEPS for width in config.model.widths):
        expected = f"whole numbers of at least 1 and at most {MOST_STEPS:,}"
        yield config.model.widths, "model.widths", expected
    if config.model.name == "myrtle5" and len(config.model.widths) != 1:
        yield config.model.widths, "model.widths", "one number, as model.name is 'myrtle5'"
    if not 1 <= schedule.amplitude <= _MOST_AMPLITUDE:
        expected = f"a number of at least 1 (1 is static) and at most {_MOST_AMPLITUDE:g}"
        yield schedule.amplitude, "schedule.amplitude", expected
    if (epoch := schedule.static_from_epoch) is not None and schedule.static_from is not None:
        given = f"schedule.static_from_epoch is {epoch}"
        expected = f"none, as {given}: give one of them (a preset may have one)"
        yield schedule.static_from, "schedule.static_from", expected
    if not (math.isfinite(optimizer.learning_rate) and optimizer.learning_rate > 0):
        yield optimizer.learning_rate, "optimizer.learning_rate", "a number above 0"
    if not (math.isfinite(config.loss.l2) and config.loss.l2 >= 0):
        yield config.loss.l2, "loss.l2", "a number of at least 0"
    yield from _fractions(optimizer)
    yield from _path(config)


def _path(config: RunConfig) -> Iterator[Violation]:
    data = config.data
    if data.name in _PATHS and data.path is None:
        yield data.path, "data.path", f"{_PATHS[data.name]}, as data.name is {data.name!r}"
    if data.name not in _PATHS and data.path is not None:
        names = ", ".join(_PATHS)
        yield data.path, "data.path", f"none, as data.name is {data.name!r} (not one of {names})"
    if data.path is not None and "\0" in data.path:
        yield data.path, "data.path", "a name without the character 0"


def _whole_numbers(config: RunConfig) -> Iterator[Violation]:
    """Violations by counts and seeds; numbers of steps must fit into 32 bits."""
    data, model, schedule = config.data, config.model, config.schedule
    steps = {
        "schedule.period": (schedule.period, 1),
        "checkpoint_every": (config.checkpoint_every, 1),
        "edge_every": (config.edge_every, 0),
        "steps": (config.steps, 1),
        "schedule.static_from": (schedule.static_from, 0),
        "schedule.static_from_epoch": (schedule.static_from_epoch, 0),
        "optimizer.warmup_steps": (config.optimizer.warmup_steps, 0),
    }
    counts = {
        "data.points_per_class": (data.points_per_class, 1),
        "data.limit": (data.limit, 1),
        "data.validation": (data.validation, 0),
        "model.outputs": (model.outputs, 1),
        "batch_size": (config.batch_size, 1),
    }
    for key, (value, least) in (steps | counts).items():
        or_none = ", or none" if key in _OPTIONAL else ""
        if value is not None and value < least:
            yield value, key, f"a whole number of at least {least}{or_none}"
        if value is not None and value > MOST_STEPS:
            reason = "steps are counted" if key in steps else "examples and outputs are numbered"
            yield value, key, f"at most {MOST_STEPS:,}{or_none}, as {reason} in 32 bits"
    seeds = {"data.seed": data.seed, "model.seed": model.seed, "batch_seed": config.batch_seed}
    for key, value in seeds.items():
        if not 0 <= value <= _MOST_SEED:
            yield value, key, f"a whole number from 0 to {_MOST_SEED}"


_OPTIONAL = {
    "data.limit",
    "data.validation",
    "model.outputs",
    "batch_size",
    "schedule.static_from",
    "schedule.static_from_epoch",
}


def _fractions(optimizer: OptimizerConfig) -> Iterator[Violation]:
    for key in ("momentum", "decay", "beta1", "beta2"):
        value = getattr(optimizer, key)
        if not 0 <= value < 1:
            yield value, f"optimizer.{key}", "a number of at least 0 and below 1"
    for key in ("final_learning_rate", "weight_decay", "epsilon"):
        value = getattr(optimizer, key)
        if not (math.isfinite(value) and value >= 0):
            yield value, f"optimizer.{key}", "a number of at least 0"
    decaying = optimizer.learning_rate_schedule == "exponential"
    if decaying and optimizer.final_learning_rate <= 0:
        yield optimizer.final_learning_rate, "optimizer.final_learning_rate", "a number above 0"


def check_fractions(config: Any, *keys: str) -> None:
    """Refuses settings of an analysis that do not lie between 0 and 1.

    Raises:
        ConfigError: when one is neither such a number nor none.
    """
    for key in keys:
        value = getattr(config, key)
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{key} is {value}; expected a number between 0 and 1")


def check_counts(config: Any, least: dict[str, int]) -> None:
    """Refuses counts, and a seed, in the settings of an analysis that are out of range.

    Raises:
        ConfigError: when one is.
    """
    for key, low in least.items():
        value = getattr(config, key)
        if value is not None and value < low:
            raise ConfigError(f"{key} is {shown(value)}; expected at least {low}")
        if value is not None and value > MOST_STEPS:
            raise ConfigError(f"{key} is {shown(value)}; expected at most {MOST_STEPS:,}")
    seed = getattr(config, "seed", 0)
    if not 0 <= seed <= _MOST_SEED:
        raise ConfigError(f"seed is {shown(seed)}; expected 0 to {_MOST_SEED}")
