"""What a study costs: a run of it against the bare updates, and two processes against one.

The runs are those of the headline network with amplitudes of their own; compiling is left out of
the first ratio; in the second it is counted, as is the start of the processes.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import jax
import numpy as np

from dlf_dynamics import PRESETS
from dlf_dynamics.analysis.studies.histories import measure
from dlf_dynamics.analysis.studies.study import Measures, Study
from dlf_dynamics.analysis.studies.sweep import sweep
from dlf_dynamics.assembly import build, initial_parameters
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.dynamics import advance
from dlf_dynamics.layout import Layout

STEPS, ROUNDS = 20_000, 5
LARGEST_RATIO = 1.2
SMALLEST_GAIN = 1.7
RUNS = 40

CONFIG = replace(PRESETS["published"], steps=STEPS)


def bare(config) -> float:
    """Seconds of all updates, as `train` makes them, with nothing written."""
    dataset = load_dataset(config.data)
    tree = initial_parameters(config, dataset)
    dynamics = build(config, dataset)
    state = dynamics.initial_state(Layout.of(tree).flatten(tree))
    counts = np.full(40, config.checkpoint_every, np.int32)
    start = time.perf_counter()
    for _ in range(config.steps // counts.sum()):
        state, snapshots, rows = advance(dynamics, state, counts, capacity=config.checkpoint_every)
        jax.device_get((snapshots, rows))
    return time.perf_counter() - start


def test_a_run_of_a_study(benchmark):
    def amplitude(number):
        return replace(CONFIG, schedule=replace(CONFIG.schedule, amplitude=60.0 + number))

    measure([amplitude(0)], Measures())
    bare(CONFIG)
    pairs = []

    def both():
        start = time.perf_counter()
        measure([amplitude(len(pairs) + 1)], Measures())
        pairs.append((time.perf_counter() - start, bare(CONFIG)))

    benchmark.pedantic(both, rounds=ROUNDS)
    ratio = statistics.median(one / other for one, other in pairs)
    print(f"\na run of a study: {ratio:.2f} x its updates, {pairs[0][0]:.2f} s")
    assert ratio <= LARGEST_RATIO


def test_two_processes(benchmark, tmp_path):
    amplitudes = tuple(60.0 + number for number in range(RUNS))
    study = Study(CONFIG, (("schedule.amplitude", amplitudes),))
    times = []

    def both():
        for processes in (1, 2):
            jax.clear_caches()
            start = time.perf_counter()
            sweep(study, tmp_path / "study.h5", processes=processes, overwrite=True)
            times.append(time.perf_counter() - start)

    benchmark.pedantic(both, rounds=1)
    gain = times[0] / times[1]
    print(f"\ntwo processes: {gain:.2f} x as fast, {RUNS} runs in {times[1]:.1f} s")
    assert gain >= SMALLEST_GAIN
