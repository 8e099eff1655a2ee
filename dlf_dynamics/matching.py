"""Checks that a problem is the one with which a recorded run was made."""

from __future__ import annotations

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dlf_dynamics.dynamics import advance
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.hdf5 import dataset_at
from dlf_dynamics.loop import Setup
from dlf_dynamics.run import Run
from dlf_dynamics.runfile import open_file

_LOSS = {"float64": 1e-6, "float32": 1e-3}
"""Relative difference of a loss that rounding on another machine may cause."""

_GAP = {"float64": 50, "float32": 20}
"""Largest number of replayed updates; over more, rounding errors could grow without bound."""

_MOVED = 1e-2
"""Difference, relative to the distance moved, that counts as another update."""


def require_match(run: Run, setup: Setup) -> None:
    """Requires that a recorded run can belong to this problem and optimizer.

    It compares the form of the parameters, the hash of the data, the size of the optimizer's state,
    the loss at two checkpoints, and the second checkpoint with updates replayed from the first.

    Raises:
        ConfigError: when one of them differs.
    """
    for complaint in _complaints(run, setup):
        raise ConfigError(f"the problem is not that of {run.path}: {complaint}")


def _complaints(run: Run, setup: Setup) -> Iterator[str]:
    with open_file(run.path) as file:
        layout = str(file["parameters"].attrs["layout"])
        stored = dataset_at(file, "optimizer/value").shape[1] if "optimizer/value" in file else 0
        objectives = dataset_at(file, "objective/value")[: len(run.checkpoint_steps)]
    if _form(setup.layout.describe()) != _form(layout):
        yield _differing(setup.layout.describe().splitlines(), layout.splitlines())
        return
    dtypes = set(setup.layout.dtypes)
    if dtypes != {run.dtype}:
        yield f"its parameters are {', '.join(sorted(dtypes))}; recorded were {run.dtype}"
        return
    if setup.data_sha256() != run.data_sha256:
        yield "its data are not those that were recorded (their hashes differ)"
    size = run.dynamics.state_layout(jnp.zeros(run.num_params, run.dtype)).size
    if size != stored:
        yield f"the optimizer's state has {size} numbers; recorded were {stored}"
        return
    yield from _losses(run, objectives)
    yield from _updates(run)


def _form(described: str) -> list[tuple[str, ...]]:
    """Name, shape and position of each array, whatever kind of container holds it.

    Containers of a framework, such as `nnx.State`, thus equal the dictionaries that replace them.
    """
    lines = [line.split(" ", 1) for line in described.splitlines()]
    return [(*re.findall(r"\w+", re.sub(r"\.value$", "", path)), rest) for path, rest in lines]


def _differing(given: list[str], recorded: list[str]) -> str:
    pairs = zip(given + [""] * len(recorded), recorded + [""] * len(given), strict=False)
    first = next(pair for pair in pairs if pair[0] != pair[1])
    words = [line.rsplit(" ", 1)[0] or "nothing" for line in first]
    return f"its parameters have {words[0]} where {words[1]} was recorded"


def _losses(run: Run, objectives: np.ndarray) -> Iterator[str]:
    known = np.flatnonzero(np.isfinite(objectives))
    for index in sorted({known[0], known[-1]}) if len(known) else []:
        (point,) = run.recorded(np.array([index]))
        loss = float(jax.jit(run.problem.objective)(point.params, point.step))
        if not np.isclose(loss, objectives[index], rtol=_LOSS[run.dtype], atol=0):
            yield (
                f"at step {point.step} its loss is {loss:.8g}; recorded was {objectives[index]:.8g}"
            )


def _updates(run: Run) -> Iterator[str]:
    if not run.own_updates or len(run.checkpoint_steps) < 2:
        return
    before, after = run.recorded(np.array([0, 1]))
    count = after.step - before.step
    if count > _GAP[run.dtype]:
        return
    counts = np.ones(count, np.int32)
    made = advance(run.dynamics, run.state(before), counts, capacity=1)[0]
    moved = np.linalg.norm(after.params - before.params)
    if not np.linalg.norm(made.params - after.params) <= _MOVED * moved:
        yield (
            f"{count} updates of its optimizer from step {before.step} do not lead to the "
            "parameters that were recorded; if the loop takes mini-batches, record it with "
            "full_batch=False"
        )
