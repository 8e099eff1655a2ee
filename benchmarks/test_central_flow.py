"""What a substep of the central flow costs, with two modes followed.

The small net is the published one, with tanh, at step 9,790, where a second mode comes to the edge;
the time is that of a substep on one thread. The large one has 101,770 parameters, in float32, and
its largest eigenvalue is at the edge where the flow starts; steps of the flow take turns with
gradients, and the ratio is that of a substep over a gradient. Certified solves, of every tenth
step, are in the mean, and the median has none.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.networks import hessian_product
from benchmarks.test_bifurcation import gradient
from benchmarks.test_eigensolver import recorded
from dlf_dynamics import PRESETS, train
from dlf_dynamics.analysis.linalg.eigensolver import top_eigenpairs
from dlf_dynamics.analysis.spectra.replay import Replay
from dlf_dynamics.analysis.theories.central_flow import SUBSTEPS, flow_points

STEPS, FIRST = 34, 3
GRADIENTS = 5
MOST_MILLISECONDS = 30
MOST_GRADIENTS = 40


def timed(points, between=lambda: None) -> list[float]:
    """Seconds of each step with two modes, but for the first steps, which compile."""
    found = []
    for number in range(STEPS):
        between()
        start = time.perf_counter()
        point = next(points)
        seconds = time.perf_counter() - start
        assert point.converged or number < FIRST, point.message
        found.append(seconds if number >= FIRST and len(point.eigenvalues) == 2 else math.nan)
    assert sum(map(math.isfinite, found)) >= 10
    return found


def test_a_substep_of_the_published_net(benchmark, tmp_path, capsys):
    config, start = PRESETS["published"], 9790
    config = replace(config, model=replace(config.model, activation="tanh"), steps=start + 10)
    run = train(replace(config, checkpoint_every=start // 2), tmp_path / "run.h5")
    ((stretch,),) = [list(Replay(run).stretches(start - 1, start + 2))]
    before, now, after = stretch.params
    points = flow_points(run.problem, (before + 2 * now + after) / 4, 1.0, STEPS, start=start)
    steps = benchmark.pedantic(timed, args=(points,), rounds=1)
    typical, mean = (1e3 * float(f(steps)) / SUBSTEPS for f in (np.nanmedian, np.nanmean))
    benchmark.extra_info.update(milliseconds=round(typical, 2))
    with capsys.disabled():
        print(f"\nsubstep: {typical:.1f} ms, with certified solves {mean:.1f} ms")
    assert typical <= MOST_MILLISECONDS


@jax.jit
def descended(problem, params):
    """After so many steps that the spectrum changes slowly."""

    def step(_, params):
        return params - 0.1 * jax.grad(problem.objective)(params, 0)

    return jax.lax.fori_loop(0, 500, step, params)


def top_three(problem, params) -> list[float]:
    found = top_eigenpairs(
        Partial(hessian_product, problem, params),
        params.size,
        3,
        tol=1e-3,
        max_matvecs=400,
        key=jax.random.key(0),
        dtype=params.dtype,
    )
    return list(map(float, found.eigenvalues))


def test_a_substep_of_a_large_net_in_gradients(benchmark, tmp_path, capsys):
    run = recorded(tmp_path, (128,), count=1000, steps=20)
    assert run.num_params >= 1e5
    problem = replace(run.problem, example_weights=None)
    params, gradients = descended(problem, jnp.asarray(run.parameters([-1])[0])), []
    jax.block_until_ready(gradient(problem, params, jnp.int32(0)))

    def pace():
        start = time.perf_counter()
        for _ in range(GRADIENTS):
            jax.block_until_ready(gradient(problem, params, jnp.int32(0)))
        gradients.append((time.perf_counter() - start) / GRADIENTS)

    first, second, third = top_three(problem, params)
    points = flow_points(
        problem,
        params,
        2 / first,
        STEPS,
        fraction=(second + third) / 2 / first,
    )
    steps = benchmark.pedantic(timed, args=(points, pace), rounds=1)
    ratios = np.array(steps) / SUBSTEPS / np.array(gradients)
    typical, mean = float(np.nanmedian(ratios)), float(np.nanmean(ratios))
    benchmark.extra_info.update(gradients=round(typical, 1))
    with capsys.disabled():
        print(
            f"\nsubstep / gradient: {typical:.1f}, with certified solves {mean:.1f} "
            f"({1e3 * np.median(gradients):.1f} ms a gradient)"
        )
    assert typical <= MOST_GRADIENTS
