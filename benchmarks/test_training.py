"""What recording a run costs, against nothing but the updates.

The recorded run goes through `train`, into a file, with every scalar of every step and a
checkpoint every 25 steps. Its pace is taken between the first and the last call of `progress`,
each of which follows a write: what happens once per run (compilation, opening the file) is left
out, all that happens per step, per checkpoint and per write is counted. The bare run is one
compiled scan of the same update of the same problem, warmed up, that keeps no scalar and writes
nothing. The two take turns, so that a slow minute of the machine hits both, and the ratio is the
median of the ratios of neighbours.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dlf_dynamics import PRESETS, train
from dlf_dynamics.assembly import build, initial_parameters, random_stream
from dlf_dynamics.datasets import load_dataset

STEPS = 20_000
ROUNDS = 5
LARGEST_RATIO = 1.5


@jax.jit
def bare_scan(dynamics, params):
    """Parameters after STEPS updates."""

    def update(carry, step):
        params, state = carry
        gradient = jax.grad(dynamics.problem.objective)(params, step)
        change, state = dynamics.optimizer.update(gradient, state, params)
        return (params + change, state), None

    start = (params, dynamics.optimizer.init(params))
    return jax.lax.scan(update, start, jnp.arange(STEPS))[0][0]


def bare_pace(dynamics, params) -> float:
    """Seconds per update of the bare scan."""
    start = time.perf_counter()
    bare_scan(dynamics, params).block_until_ready()
    return (time.perf_counter() - start) / STEPS


def recorded_pace(config, path) -> float:
    """Seconds per update of a recorded run, once it is under way."""
    calls = []
    run = train(
        config,
        path,
        overwrite=True,
        progress=lambda step: calls.append((step, time.perf_counter())),
    )
    assert run.status == "complete"
    (first_step, first_time), (last_step, last_time) = calls[0], calls[-1]
    assert last_step - first_step > STEPS / 2
    return (last_time - first_time) / (last_step - first_step)


def test_recording_costs_at_most_half_as_much_as_the_updates(benchmark, tmp_path, capsys):
    config = replace(PRESETS["published"], steps=STEPS)
    with random_stream(config):
        dataset = load_dataset(config.data)
        dynamics = build(config, dataset)
        params, _ = ravel_pytree(initial_parameters(config, dataset))
        bare_pace(dynamics, params)
        bare, recorded = [], []
        benchmark.pedantic(
            lambda: recorded.append(recorded_pace(config, tmp_path / "run.h5")),
            setup=lambda: bare.append(bare_pace(dynamics, params)),
            rounds=ROUNDS,
        )
    ratio = statistics.median(r / b for r, b in zip(recorded, bare, strict=True))
    microseconds = [round(1e6 * statistics.median(paces), 1) for paces in (recorded, bare)]
    benchmark.extra_info.update(
        ratio=round(ratio, 3),
        recorded_us_per_step=microseconds[0],
        bare_us_per_step=microseconds[1],
    )
    with capsys.disabled():
        print(
            f"\ntraining, recorded / bare: {ratio:.2f} "
            f"({microseconds[0]} / {microseconds[1]} µs a step, {ROUNDS} rounds of {STEPS} steps)"
        )
    assert ratio <= LARGEST_RATIO


LARGEST_EDGE_RATIOS = {1: 1.5, 10: 1.06}


def test_realized_edges_cost_at_most_half_a_step_each(benchmark, tmp_path, capsys):
    """Whole recorded runs that evaluate the realized edge, against those that do not.

    They take turns; the ratio is the median of those of neighbours.
    """
    paces: dict[int, list[float]] = {every: [] for every in (0, *LARGEST_EDGE_RATIOS)}

    def in_turn() -> None:
        for every, found in paces.items():
            config = replace(PRESETS["published"], steps=STEPS, edge_every=every)
            found.append(recorded_pace(config, tmp_path / "run.h5"))

    with random_stream(PRESETS["published"]):
        benchmark.pedantic(in_turn, rounds=ROUNDS)
    ratios = {
        every: statistics.median(a / b for a, b in zip(paces[every], paces[0], strict=True))
        for every in LARGEST_EDGE_RATIOS
    }
    with capsys.disabled():
        for every, ratio in ratios.items():
            times = [round(1e6 * statistics.median(paces[e]), 1) for e in (every, 0)]
            print(
                f"\nrealized edge at every {every} steps, with / without: {ratio:.3f} "
                f"({times[0]} / {times[1]} µs a step, {ROUNDS} rounds of {STEPS} steps)"
            )
    assert all(ratios[every] <= limit for every, limit in LARGEST_EDGE_RATIOS.items())
