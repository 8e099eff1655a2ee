"""What an orbit diagram costs over its steps alone, and a flip coefficient over a gradient.

The diagram is that of the published 603-parameter net, 2,000 steps at each of 200 learning rates.
It is compared with the same steps in a bare compiled scan, one learning rate after the other or all
at once, whichever is faster. The two take turns, 20 learning rates at a time, and the ratio is the
median of the ratios of neighbours.

The flip coefficient is that of a net with more than a million parameters, in float32, with the
response of 20 steps and the eigenvector given, without and with the search for a second direction
at its flip, which decides whether the sign means anything. They take turns with single gradients.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from benchmarks.test_eigensolver import recorded
from dlf_dynamics import PRESETS, train
from dlf_dynamics.analysis.bifurcation import flip
from dlf_dynamics.analysis.bifurcation.flip import flip_coefficient
from dlf_dynamics.analysis.bifurcation.orbits import orbit_diagram
from dlf_dynamics.analysis.instabilities.training_map import training_map, training_state

RATES = np.linspace(0.2, 1.0, 200)
PIECES = 10
STEPS = 2000
RECORDED = 100
LARGEST_RATIO = 1.2

HORIZON = 20
ROUNDS = 5
GRADIENTS = 20
MOST_GRADIENTS, MOST_WITH_SEARCH = 40, 160


@jax.jit
def one_by_one(map_, state, rates):
    def at_rate(state, rate):
        state = map_.iterate(state, rate, STEPS)
        return state, state[0]

    return jax.lax.scan(at_rate, state, rates)[1]


@jax.jit
def all_at_once(map_, state, rates):
    return jax.vmap(lambda rate: map_.iterate(state, rate, STEPS)[0])(rates)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def the_faster(map_, state, rates):
    """Of the two bare scans here, and how long each takes."""
    scans = {"one by one": one_by_one, "all at once": all_at_once}
    for scan in scans.values():
        scan.lower(map_, state, rates).compile()
    paces = {name: seconds(scan, map_, state, rates) for name, scan in scans.items()}
    return scans[min(paces, key=paces.__getitem__)], paces


def test_a_diagram_costs_at_most_a_fifth_more_than_its_steps(benchmark, tmp_path, capsys):
    run = train(replace(PRESETS["published"], steps=100), tmp_path / "run.h5")
    map_, ((point,),) = training_map(run, 50), run.points([0], 1)
    state = training_state(run.state(point))
    observable = Partial(jnp.vdot, jnp.ones(run.num_params) / run.num_params**0.5)

    def diagram(rates, transient=STEPS - RECORDED):
        settings = {"transient": transient, "recorded": RECORDED, "both_ways": False}
        found = orbit_diagram(map_, state, rates, observable, **settings)
        assert not np.any(found.diverged_up)

    pieces = np.split(RATES, PIECES)
    diagram(pieces[0], transient=0)  # compiles it
    bare, paces = the_faster(map_, state, pieces[0])
    left, alone, diagrams = iter(pieces), [], []

    def setup():
        piece = next(left)
        alone.append(seconds(bare, map_, state, piece))
        return (piece,), {}

    benchmark.pedantic(
        lambda rates: diagrams.append(seconds(diagram, rates)), setup=setup, rounds=PIECES
    )
    ratio = statistics.median(d / a for d, a in zip(diagrams, alone, strict=True))
    benchmark.extra_info.update(ratio=round(ratio, 3))
    with capsys.disabled():
        print(
            f"\ndiagram / its steps: {ratio:.2f} ({sum(diagrams):.1f} s for {len(RATES)} x {STEPS} "
            f"steps, {1e6 * sum(alone) / len(RATES) / STEPS:.0f} µs a step alone; for a tenth "
            + ", ".join(f"{name} {pace:.1f} s" for name, pace in paces.items())
            + ")"
        )
    assert ratio <= LARGEST_RATIO


@jax.jit
def gradient(problem, params, step):
    return jax.grad(problem.objective)(params, step)


def test_a_flip_coefficient_costs_at_most_forty_gradients_and_its_search(
    benchmark, tmp_path, capsys, monkeypatch
):
    run = recorded(tmp_path, (1020, 200), count=200, steps=20)
    assert run.num_params >= 1e6
    params, step = jnp.asarray(run.parameters([-1])[0]), jnp.int32(run.checkpoint_steps[-1])
    found = flip_coefficient(run.problem, params, 0.1, horizon=HORIZON, step=step)
    assert found.converged, found.message
    vector = jnp.asarray(found.eigenvector)
    jax.block_until_ready(gradient(run.problem, params, step))
    times = {"gradient": [], "coefficient": [], "whole": []}

    def timed(name, work, count=1):
        start = time.perf_counter()
        for _ in range(count):
            result = work()
        times[name].append((time.perf_counter() - start) / count)
        return result

    def coefficient():
        return flip_coefficient(
            run.problem, params, 0.1, eigenvector=vector, horizon=HORIZON, step=step
        )

    def alone():
        with monkeypatch.context() as patch:
            patch.setattr(flip, "second_eigenvalue", lambda *_: (-np.inf, (-np.inf, -np.inf)))
            timed("coefficient", coefficient)

    def turn():
        timed(
            "gradient", lambda: gradient(run.problem, params, step).block_until_ready(), GRADIENTS
        )
        alone()
        assert timed("whole", coefficient).criticality

    benchmark.pedantic(turn, rounds=ROUNDS)
    gradients = np.array(times["gradient"])
    ratio, with_search = (np.median(times[name] / gradients) for name in ("coefficient", "whole"))
    start = time.perf_counter()
    flip_coefficient(run.problem, params, 0.1, horizon=HORIZON, step=step)
    with_vector = (time.perf_counter() - start) / np.median(gradients)
    benchmark.extra_info.update(ratio=round(ratio, 2), with_search=round(with_search, 1))
    with capsys.disabled():
        print(
            f"\nflip coefficient / gradient: {ratio:.1f} ({1e3 * np.median(gradients):.0f} "
            f"ms a gradient, {run.num_params} parameters, {HORIZON} steps); {with_search:.0f} with "
            f"the search for a second direction, {with_vector:.0f} with the eigenvector's"
        )
    assert ratio <= MOST_GRADIENTS
    assert with_search <= MOST_WITH_SEARCH
