import dataclasses
import math
import re
from dataclasses import replace
from typing import get_args

import pytest

from dlf_dynamics.config import (
    BifurcationConfig,
    DataConfig,
    DatasetName,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SpectrumConfig,
)
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.presets import PRESETS, PULSE_STEPS_PUBLISHED
from dlf_dynamics.spans import span_of

BASE = RunConfig()


@pytest.mark.parametrize(
    ("group", "key", "value", "expected"),
    [
        ("data", "points_per_class", 0, "at least 1"),
        ("data", "num_classes", 1, "at least 2"),
        ("data", "limit", 0, "at least 1, or none"),
        ("data", "validation", -1, "a whole number of at least 0, or none"),
        ("model", "outputs", 0, "at least 1, or none"),
        ("model", "widths", (3, 0), "whole numbers of at least 1"),
        ("schedule", "period", 0, "at least 1"),
        ("schedule", "period", 2**31 - 1, "2,147,483,646, as steps are counted in 32 bits"),
        ("schedule", "static_from", 2**31, "or none, as steps are counted in 32 bits"),
        ("schedule", "static_from_epoch", 10**23, "as steps are counted in 32 bits"),
        ("schedule", "amplitude", 1.1e30, "at most 1e+30"),
        ("optimizer", "warmup_steps", 2**31, "as steps are counted in 32 bits"),
        ("data", "limit", 10**23, "or none, as examples and outputs are numbered in 32 bits"),
        ("model", "widths", (10**10,), "at least 1 and at most 2,147,483,646"),
        ("data", "seed", 10**20, "a whole number from 0 to 4294967295"),
        ("schedule", "amplitude", 0.5, "1 is static"),
        ("schedule", "amplitude", math.nan, "1 is static"),
        ("schedule", "amplitude", math.inf, "1 is static"),
        ("schedule", "static_from", -1, "at least 0, or none"),
        ("schedule", "static_from_epoch", -1, "at least 0, or none"),
        ("optimizer", "learning_rate", 0.0, "a number above 0"),
        ("optimizer", "learning_rate", -1.0, "a number above 0"),
        ("optimizer", "learning_rate", math.inf, "a number above 0"),
        ("optimizer", "momentum", 1.0, "below 1"),
        ("optimizer", "decay", -0.1, "below 1"),
        ("optimizer", "beta1", 1.5, "below 1"),
        ("optimizer", "beta2", math.nan, "below 1"),
        ("optimizer", "final_learning_rate", -1.0, "at least 0"),
        ("optimizer", "warmup_steps", -1, "at least 0"),
        ("optimizer", "weight_decay", math.inf, "at least 0"),
        ("optimizer", "epsilon", -1e-8, "at least 0"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(group, key, value, expected):
    part = replace(getattr(BASE, group), **{key: value})
    message = rf"{group}\.{key} is {re.escape(repr(value))}; expected .*{re.escape(expected)}"
    with pytest.raises(ConfigError, match=message):
        replace(BASE, **{group: part})


def test_the_static_part_begins_at_a_step_or_at_an_epoch():
    message = r"schedule\.static_from is 7; expected none, as .*static_from_epoch is 2: give one"
    with pytest.raises(ConfigError, match=message):
        RunConfig(schedule=ScheduleConfig(static_from=7, static_from_epoch=2))


@pytest.mark.parametrize("key", ["steps", "checkpoint_every"])
def test_steps_are_counted_in_32_bits(key):
    assert getattr(RunConfig(**{key: 2**31 - 2}), key) == 2**31 - 2
    with pytest.raises(ConfigError, match=f"{key} is 2147483647; expected at most 2,147,483,646"):
        RunConfig(**{key: 2**31 - 1})


@pytest.mark.parametrize("kind", [SpectrumConfig, BifurcationConfig])
def test_counts_of_an_analysis_have_a_range(kind):
    for key, value, expected in (
        ("every", 0, "at least 1"),
        ("every", 10**23, "at most 2,147,483,646"),
        ("max_matvecs", 2**31, "at most 2,147,483,646"),
        ("seed", 2**32, "0 to 4294967295"),
        ("seed", -1, "0 to 4294967295"),
    ):
        with pytest.raises(ConfigError, match=f"{key} is {value}; expected {expected}"):
            kind(**{key: value})


@pytest.mark.parametrize("text", ["9" * 5000 + ":", ":" + "1" * 19, "\u0663:", "1:2:3"])
def test_a_span_of_steps_has_numbers_of_some_digits(text):
    with pytest.raises(ConfigError, match=r"^steps is '.{0,90}'; expected a:b with a < b"):
        span_of(text, "steps")


@pytest.mark.parametrize("text", ["9" * 5000, "1,,2", "\u0663"])
def test_steps_of_diagrams_have_some_digits(text):
    with pytest.raises(ConfigError, match=r"^diagrams is '.{0,90}'; expected auto, none, or steps"):
        BifurcationConfig(diagrams=text)


@pytest.mark.parametrize("key", ["steps", "checkpoint_every", "batch_size"])
def test_a_run_needs_at_least_one_of(key):
    with pytest.raises(ConfigError, match=f"{key} is 0; expected a whole number of at least 1"):
        RunConfig(**{key: 0})


def test_a_path_goes_with_data_from_files_and_with_nothing_else():
    kinds = {
        "npz": r"the \.npz file",
        "mnist": "the folder with MNIST's files",
        "cifar10": "the folder with the binary version",
    }
    for name, kind in kinds.items():
        with pytest.raises(ConfigError, match=rf"data\.path is None; expected {kind}.* '{name}'"):
            RunConfig(data=DataConfig(name=name))
        RunConfig(data=DataConfig(name=name, path="there"))
        with pytest.raises(ConfigError, match=r"'a\\x00'; expected a name without the character 0"):
            RunConfig(data=DataConfig(name=name, path="a\0"))
    for name in set(get_args(DatasetName)) - set(kinds):
        with pytest.raises(ConfigError, match=r"data\.path is 'a\.npz'; expected none.*of npz, mn"):
            RunConfig(data=DataConfig(name=name, path="a.npz"))


@pytest.mark.parametrize("widths", [(), (8, 8)])
def test_myrtle5_has_one_width(widths):
    message = rf"model\.widths is {re.escape(repr(widths))}; expected one number, as .*'myrtle5'"
    with pytest.raises(ConfigError, match=message):
        RunConfig(model=ModelConfig(name="myrtle5", widths=widths))
    RunConfig(model=ModelConfig(name="convolutional", widths=widths))
    RunConfig(model=ModelConfig(name="myrtle5", widths=(64,)))


def test_an_exponential_decay_cannot_end_at_zero():
    decaying = OptimizerConfig(learning_rate_schedule="exponential", final_learning_rate=0.0)
    with pytest.raises(ConfigError, match=r"optimizer\.final_learning_rate is 0\.0; .*above 0"):
        RunConfig(optimizer=decaying)


def test_the_published_preset_is_the_headline_run_of_the_paper():
    run = PRESETS["published"]
    assert run.schedule == ScheduleConfig("triangle", 70.0, 5000, "published", 65_013)
    assert run.model == ModelConfig("fully-connected", (100,), "relu", "published", None, 0)
    assert run.data == DataConfig("spiral", 100, 3, 0.2, 0)
    assert (run.optimizer.name, run.optimizer.learning_rate) == ("gd", 1.0)
    assert (run.loss.name, run.steps, run.batch_size) == ("cross-entropy", 70_000, None)
    assert (run.dtype, run.prng) == ("float64", "legacy")
    # 13 pulses, and a static end of 4,987 steps.
    assert run.steps - 13 * PULSE_STEPS_PUBLISHED == 4987


def test_the_other_published_presets_differ_in_one_thing():
    published = PRESETS["published"]
    assert PRESETS["published-updated"] == replace(
        published, model=replace(published.model, init="published-updated")
    )
    assert PRESETS["published-static"] == replace(published, schedule=ScheduleConfig("static"))


def test_a_configuration_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign"):
        BASE.steps = 1  # type: ignore[misc]
