"""What recording costs a loop of one's own: 1,006,910 parameters, about 10 ms a step.

The loop is one compiled update after the other. With the recorder, `record` is called before each
step, and every tenth state goes to the file with the update before it; the time goes on until all
of it is written. Loops with and without it take turns, and the ratio is the median of neighbours'.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem
from dlf_dynamics.recorder import Recorder

STEPS, EVERY, ROUNDS = 400, 10, 7
LARGEST_RATIO = 1.03
WIDTHS = (784, 900, 330, 10)
EXAMPLES = 250


def apply(params, inputs):
    for weight, bias in params[:-1]:
        inputs = jnp.tanh(inputs @ weight + bias)
    weight, bias = params[-1]
    return inputs @ weight + bias


def make():
    keys = jax.random.split(jax.random.key(0), len(WIDTHS) + 1)
    sizes = zip(keys, WIDTHS[:-1], WIDTHS[1:], strict=False)
    params = [
        (jax.random.normal(key, (a, b), "float32") / a**0.5, jnp.zeros(b, "float32"))
        for key, a, b in sizes
    ]
    inputs = jax.random.normal(keys[-2], (EXAMPLES, WIDTHS[0]), "float32")
    labels = jax.random.randint(keys[-1], (EXAMPLES,), 0, WIDTHS[-1])
    criterion = optax.softmax_cross_entropy_with_integer_labels
    return Problem(apply, criterion, inputs, labels), optax.sgd(0.01, momentum=0.9), params


def pace(setup, update, path=None) -> float:
    """Seconds per step of the loop, recorded or not."""
    problem, optimizer, params = setup
    state = optimizer.init(params)
    if path is None:
        start = time.perf_counter()
        for _ in range(STEPS):
            params, state = update(params, state)
        jax.block_until_ready(params)
        return (time.perf_counter() - start) / STEPS
    with Recorder(path, problem, optimizer=optimizer, every=EVERY, overwrite=True) as run:
        run.record(0, params, state)  # the file is made, and the problem checked
        start = time.perf_counter()
        for step in range(1, STEPS + 1):
            params, state = update(params, state)
            run.record(step, params, state)
        jax.block_until_ready(params)
    return (time.perf_counter() - start) / STEPS


def test_recorder(benchmark, tmp_path):
    setup = make()
    problem, optimizer, _ = setup

    @jax.jit
    def update(params, state):
        change, state = optimizer.update(jax.grad(problem.objective)(params, 0), state, params)
        return optax.apply_updates(params, change), state

    pace(setup, update)
    pace(setup, update, tmp_path / "own.h5")
    pairs = []

    def both():
        pairs.append((pace(setup, update, tmp_path / "own.h5"), pace(setup, update)))

    benchmark.pedantic(both, rounds=ROUNDS)
    ratio = statistics.median(recorded / bare for recorded, bare in pairs)
    bare = statistics.median(bare for _, bare in pairs)
    print(f"\nrecording every {EVERY}th state: {ratio:.3f} x the loop, {1e3 * bare:.1f} ms a step")
    assert ratio <= LARGEST_RATIO
