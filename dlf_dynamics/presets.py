"""Configurations by name."""

from __future__ import annotations

from dataclasses import replace

from dlf_dynamics.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

PULSE_STEPS_PUBLISHED = 5001
"""The authors' counter runs through 0, 1, ..., 5000 before it is reset."""

_PUBLISHED = RunConfig(
    schedule=ScheduleConfig(counting="published", static_from=13 * PULSE_STEPS_PUBLISHED),
    prng="legacy",
)

PRESETS: dict[str, RunConfig] = {
    "published": _PUBLISHED,
    "published-updated": replace(_PUBLISHED, model=ModelConfig(init="published-updated")),
    "published-static": replace(_PUBLISHED, schedule=ScheduleConfig(name="static")),
    "digits": RunConfig(
        data=DataConfig(name="digits", validation=297),
        model=ModelConfig(widths=(32,), activation="tanh", init="glorot-normal"),
        schedule=ScheduleConfig(amplitude=10.0, period=200),
        optimizer=OptimizerConfig(learning_rate=0.5),
        steps=4000,
    ),
}
"""Configurations by name; `published` is what `dlf-dynamics train` runs without arguments.

`published` and `published-updated` are the headline run (Fig. 4) of Ruiz-Garcia, Zhang, Schoenholz
and Liu, ICML 2021 (arXiv 2102.03793), with the initialisation of the paper's code and of its
update of July 2022. `published-static` is the same run with the static loss.
"""
