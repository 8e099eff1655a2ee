"""What recording costs a custom training loop: 1,006,910 parameters, about 10 ms a step.

The loop is one compiled update after the other. Where it is recorded, `record` is called after each
step, and every tenth state goes to the file with the update before it. Stretches of a second with
and without that take turns, so that both see the same other load on the machine; the ratio is the
median of neighbours'. What the writer has still to do when a stretch ends, a few milliseconds, goes
on beside the next. The loop computes on one thread (`conftest`), so that the writer has a core;
NPROC=2 takes it away.
"""

from __future__ import annotations

import itertools
import statistics
import time

import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem
from dlf_dynamics.recorder import Recorder

STEPS, EVERY, ROUNDS = 100, 10, 60
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


def stretch(update, state, record=lambda *_: None):
    """The state after some updates, and the seconds that each took."""
    start = time.perf_counter()
    for _ in range(STEPS):
        state = update(*state)
        record(*state)
    jax.block_until_ready(state)
    return state, (time.perf_counter() - start) / STEPS


def test_recorder(benchmark, tmp_path):
    problem, optimizer, params = make()

    @jax.jit
    def update(params, state):
        change, state = optimizer.update(jax.grad(problem.objective)(params, 0), state, params)
        return optax.apply_updates(params, change), state

    state, pairs = (params, optimizer.init(params)), []
    with Recorder(tmp_path / "own.h5", problem, optimizer=optimizer, every=EVERY) as run:
        steps = itertools.count()

        def record(params, opt_state):
            run.record(next(steps), params, opt_state)

        def both():
            nonlocal state
            state, recorded = stretch(update, state, record)
            state, bare = stretch(update, state)
            next(steps)  # the state before was not seen
            pairs.append((recorded, bare))

        both()  # compiles, makes the file and checks the problem
        pairs.clear()
        benchmark.pedantic(both, rounds=ROUNDS)
    ratio = statistics.median(recorded / bare for recorded, bare in pairs)
    bare = statistics.median(bare for _, bare in pairs)
    print(f"\nrecording every {EVERY}th state: {ratio:.3f} x the loop, {1e3 * bare:.1f} ms a step")
    assert ratio <= LARGEST_RATIO
