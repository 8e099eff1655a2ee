"""Small runs, trained once for all tests that ask for the same configuration."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest

from dlf_dynamics import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Run,
    RunConfig,
    ScheduleConfig,
    train,
)
from dlf_dynamics.analysis import Spectrum, compute_spectrum
from dlf_dynamics.config import SpectrumConfig


@pytest.fixture(scope="module", autouse=True)
def quick(quick_compilation) -> None:
    """All analyses are tested so."""


@pytest.fixture(scope="session")
def small() -> RunConfig:
    """15 parameters, three pulses of 20 steps, checkpoints at 0, 7, ..., 56 and 60."""
    return RunConfig(
        data=DataConfig(name="blobs", points_per_class=8),
        model=ModelConfig(widths=(2,), activation="tanh", init="glorot-normal"),
        schedule=ScheduleConfig(amplitude=10.0, period=20),
        optimizer=OptimizerConfig(learning_rate=0.3),
        steps=60,
        checkpoint_every=7,
    )


@pytest.fixture(scope="session")
def adaptive(small) -> RunConfig:
    """The same with Adam."""
    return replace(small, optimizer=OptimizerConfig("adam", learning_rate=0.01))


@pytest.fixture(scope="session")
def scheduled(small) -> RunConfig:
    """The same with a learning rate that rises from 0 to 0.4 in 5 steps and falls to 0.1."""
    optimizer = OptimizerConfig(
        learning_rate=0.4,
        learning_rate_schedule="linear",
        final_learning_rate=0.1,
        warmup_steps=5,
    )
    return replace(small, optimizer=optimizer)


@pytest.fixture(scope="session")
def eventful() -> RunConfig:
    """A smooth net that crosses the threshold five times and oscillates once, seen in the loss."""
    return RunConfig(
        data=DataConfig(points_per_class=20),
        model=ModelConfig(widths=(10,), activation="tanh", init="glorot-normal"),
        schedule=ScheduleConfig(amplitude=40.0, period=400),
        optimizer=OptimizerConfig(learning_rate=3.0),
        steps=1000,
        checkpoint_every=1,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Callable[[RunConfig], Run]:
    """Trains a configuration, the first time that it is asked for."""

    @functools.cache
    def run(config: RunConfig) -> Run:
        return train(config, tmp_path_factory.mktemp("trained") / "run.h5")

    return run


@pytest.fixture(scope="session")
def analysed(trained) -> Callable[..., Spectrum]:
    """Analyses a configuration's run, the first time that it is asked for."""

    @functools.cache
    def spectrum(config: RunConfig, settings: SpectrumConfig | None = None) -> Spectrum:
        return compute_spectrum(trained(config), settings)

    return spectrum


@pytest.fixture(scope="session")
def by_hand() -> Callable[[Run, int], np.ndarray]:
    """Parameters of the first steps of a run, one update after the other."""

    def made(run: Run, stop: int) -> np.ndarray:
        ((point,),) = run.points([0], 1)
        state, found = run.state(point), []
        step = jax.jit(lambda dynamics, state: dynamics.step(state)[0])
        for _ in range(stop):
            found.append(np.asarray(state.params))
            state = step(run.dynamics, state)
        return np.array(found)

    return made
