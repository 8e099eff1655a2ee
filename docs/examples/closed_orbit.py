"""A regression whose orbit closes over a cycle of pulses, and loses stability by a flip.

python docs/examples/closed_orbit.py closed-orbit.png
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from dlf_dynamics import DataConfig, Problem, Recorder, open_run
from dlf_dynamics.analysis import pulse_map
from dlf_dynamics.analysis.bifurcation import Map, find_cycle
from dlf_dynamics.datasets import load_dataset
from dlf_dynamics.losses import ClassWeights, squared_error
from dlf_dynamics.schedules import Triangle

jax.config.update("jax_enable_x64", True)

PULSE, CLASSES = 3, 3
CYCLE = PULSE * CLASSES
RATES = (0.6, 0.62, 0.64, 0.65, 0.66, 0.67, 0.68, 0.69, 0.7)
BEFORE, AFTER = 0.65, 0.7


def apply(params, inputs):
    """One layer of tanh."""
    return jnp.tanh(inputs @ params["w"] + params["b"])


def setup(rate=BEFORE, amplitude=5.0):
    """Overlapping points, so that the loss has a minimum for any class weights."""
    data = load_dataset(DataConfig("blobs", points_per_class=10, noise=1.0))
    weights = ClassWeights(Triangle(CLASSES, amplitude, PULSE))
    inputs, labels = jnp.asarray(data.inputs, float), jnp.asarray(data.labels)
    problem = Problem(apply, squared_error, inputs, labels, example_weights=weights)
    params = {"w": jnp.zeros((2, CLASSES)), "b": jnp.zeros(CLASSES)}
    return problem, optax.sgd(rate), params


def cycle_map(amplitude=5.0):
    """Gradient descent over one cycle of pulses, as a map whose parameter is the learning rate."""
    problem, _, params = setup(amplitude=amplitude)
    unravel = ravel_pytree(params)[1]

    def cycle(vector, rate):
        def update(step, vector):
            loss = lambda vector: problem.objective(unravel(vector), step)  # noqa: E731
            return vector - rate * jax.grad(loss)(vector)

        for step in range(CYCLE):
            vector = update(step, vector)
        return vector

    return Map(cycle)


def record(path, start, rate, steps=CYCLE):
    """A recorded run of plain gradient descent from given parameters, as returned by `open_run`."""
    problem, optimizer, params = setup(rate)
    params = ravel_pytree(params)[1](jnp.asarray(start))
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, step):
        changes, state = optimizer.update(jax.grad(problem.objective)(params, step), state)
        return optax.apply_updates(params, changes), state

    with Recorder(path, problem, optimizer=optimizer, overwrite=True) as run:
        for step in range(steps + 1):
            run.record(step, params, state)
            params, state = update(params, state, step)
    return open_run(path, (problem, optimizer, params))


def distances(map_, orbit, rate, size, cycles=8):
    """Distance from the orbit after each cycle, for a start close to it."""
    after = jax.jit(map_)
    point = orbit + size * np.ones(len(orbit)) / np.sqrt(len(orbit))
    found = [point]
    for _ in range(cycles):
        found.append(np.asarray(after(found[-1], rate)))
    return np.linalg.norm(np.array(found) - orbit, axis=1)


def orbits(map_, rates=RATES):
    """The orbit that closes over one cycle, at each learning rate, found by Newton's method."""
    guess = np.asarray(map_.iterate(jnp.zeros(3 * CLASSES), rates[0], 300))
    found = []
    for rate in rates:
        cycle = find_cycle(map_, guess, rate, 1)
        assert cycle.converged, cycle.message
        guess = np.asarray(cycle.points)[0]
        found.append(guess)
    return found


def main(figure=None, rates=RATES):
    """Learning rate, the map of the cycle, and the distances of iterated perturbations."""
    map_, rows = cycle_map(), []
    with tempfile.TemporaryDirectory() as folder:
        for rate, orbit in zip(rates, orbits(map_, rates), strict=True):
            found = pulse_map(record(Path(folder) / "run.h5", orbit, rate), cycle=0)
            size = distances(map_, orbit, rate, 1e-7)
            rows.append((rate, found, size))
    if figure is not None:
        draw(rows, figure)
    return rows


def draw(rows, path):
    """Multipliers against the learning rate; perturbations after each cycle."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for rate, found, size in rows:
        colour = {"stable": "#0072B2", "unstable": "#D55E00"}.get(found.stability, "#999999")
        left.plot(np.full(3, rate), found.multipliers.real, "o", ms=4, color=colour)
        if rate in (BEFORE, AFTER):
            cycles, growth = np.arange(len(size)), abs(found.multipliers[0])
            right.semilogy(cycles, size, "o", ms=4, color=colour, label=f"learning rate {rate}")
            line = size[2] * growth ** (cycles - 2.0)
            right.semilogy(cycles, line, lw=0.8, color=colour)
    left.axhline(-1, color="0.6", lw=0.8)
    left.set(xlabel="learning rate", ylabel="multipliers of the cycle")
    right.set(xlabel="cycles", ylabel="distance from the orbit")
    right.legend(frameon=False)
    figure.savefig(path, dpi=200)


if __name__ == "__main__":
    for rate, found, size in main(*sys.argv[1:2]):
        print(
            f"{rate:.2f}  multiplier {found.multipliers[0]:.5f}  {found.stability} "
            f"{found.crossing}  iteration {size[4] / size[3]:.5f}  closes to {found.distance:.0e}"
        )
