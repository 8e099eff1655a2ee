"""One good file of every kind that the program writes, for mutation."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np

TRAIN = [
    *("--data.points-per-class", "6", "--model.widths", "3", "--model.activation", "tanh"),
    *("--schedule.period", "15", "--schedule.amplitude", "20", "--steps", "60"),
    *("--checkpoint-every", "7", "--quiet"),
]
SPECTRUM = ["--no-figures", "--quiet", "--k", "1", "--every", "2", "--ntk-examples", "6"]
BIFURCATIONS = ["--no-figures", "--quiet", "--diagrams", "none", "--every", "10"]
STUDY = """\
preset = "published-updated"
steps = 20
checkpoint_every = 10

[data]
points_per_class = 6

[model]
widths = [3]

[grid]
schedule.amplitude = [1, 20]
model.seed = {from = 0, to = 1}

[measures]
curve_points = 3
"""
OWN = """\
import jax
import jax.numpy as jnp
import optax

from dlf_dynamics import Problem, Recorder


def setup():
    inputs = jnp.linspace(-1, 1, 8)[:, None]
    params = {"in": jax.random.normal(jax.random.key(0), (1, 4)), "out": jnp.ones(4)}
    problem = Problem(
        apply=lambda params, inputs: jnp.tanh(inputs @ params["in"]) @ params["out"],
        criterion=lambda outputs, targets: (outputs - targets) ** 2,
        inputs=inputs,
        targets=jnp.cos(4 * jnp.arccos(inputs[:, 0])),
    )
    return problem, optax.sgd(0.05, momentum=0.5), params


def main(path, steps=40, every=4):
    problem, optimizer, params = setup()
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, step):
        loss, gradient = jax.value_and_grad(problem.objective)(params, step)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, loss

    with Recorder(path, problem, optimizer=optimizer, every=every, overwrite=True) as run:
        for step in range(steps):
            after = update(params, state, step)
            run.record(step, params, state, loss=after[2])
            params, state, _ = after


if __name__ == "__main__":
    import sys

    jax.config.update("jax_enable_x64", True)
    main(sys.argv[1], *map(int, sys.argv[2:]))
"""
KINDS = {
    "run.h5": "run",
    "stopped.h5": "run",
    "own.h5": "recorded run",
    "run.spectrum.h5": "spectrum",
    "run.bifurcations.h5": "bifurcations",
    "study.h5": "study",
    "part.spectrum.parts/hessian-0.h5": "part",
}
"""Files that are mutated, and what they are."""


def make(folder: Path) -> None:
    """Writes the files, by the program itself; needs a process in which JAX has not started."""
    jax.config.update("jax_enable_x64", True)
    from dlf_dynamics import parts
    from dlf_dynamics.cli import main
    from dlf_dynamics.configfile import override
    from dlf_dynamics.presets import PRESETS
    from dlf_dynamics.training import train

    def execute(*arguments: str) -> None:
        code = main(arguments)
        assert code == 0, (arguments, code)

    run, stopped, study = folder / "run.h5", folder / "stopped.h5", folder / "study.toml"
    execute("train", "-o", str(run), *TRAIN)
    execute("spectrum", str(run), *SPECTRUM)
    execute("bifurcations", str(run), *BIFURCATIONS)
    study.write_text(STUDY)
    execute("sweep", str(study), "--processes", "1", "--quiet")
    (folder / "own.py").write_text(OWN)
    sys.path.insert(0, str(folder))
    import own  # type: ignore[import-not-found]

    own.main(folder / "own.h5")
    small = {
        "data": {"points_per_class": 6},
        "model": {"widths": [3]},
        "optimizer": {"name": "adam", "learning_rate": 0.01},
        "steps": 60,
        "checkpoint_every": 7,
    }
    told: list[int] = []
    train(
        override(PRESETS["published"], small),
        stopped,
        progress=told.append,
        stop=lambda: bool(told) and told[-1] > 20,
    )
    # The parts of an analysis that was killed at its very end.
    part = folder / "part.h5"
    part.write_bytes(run.read_bytes())
    clear, parts.Parts.clear = parts.Parts.clear, lambda self: None
    execute("spectrum", str(part), *SPECTRUM)
    parts.Parts.clear = clear
    np.savez(folder / "data.npz", inputs=np.eye(6), labels=np.arange(6) % 3)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
