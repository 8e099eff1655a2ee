"""The recorded arrays of a run with their labels, from the schema of the run file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlf_dynamics.labels import UPDATES, Axis, Field, Group
from dlf_dynamics.schema import SCHEMA, STEP_OF

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

_ENTRIES = {entry.path: entry for entry in SCHEMA}


def groups_of_run(run: Run, *, parameters: bool = False) -> list[Group]:
    """The scalars of all steps, and the values at the checkpoints.

    Args:
        run: a recorded run.
        parameters: whether to include the parameters of all checkpoints.
    """
    scalars = {
        name: _field(f"scalars/{name}/value", values, ("steps", "classes"))
        for name, values in run.scalars.items()
    }
    classes = Axis(run.scalars["class_weights"].shape[1])
    validation = {
        f"validation_{name}": _field(f"validation_{name}/value", values, ("checkpoints",))
        for name, values in run.validation.items()
    }
    axes = {"checkpoints": _steps("checkpoints", run.checkpoint_steps)}
    if parameters:
        axes["params"] = Axis(run.num_params)
        values = run.parameters()
        validation["parameters"] = _field("parameters/value", values, ("checkpoints", "params"))
    return [
        Group("", {}, {}, {"status": run.status, "config": dict(run.settings)}),
        Group("scalars/", {"steps": _steps("steps", run.steps), "classes": classes}, scalars, {}),
        Group("checkpoints/", axes, validation, {}),
    ]


def _steps(axis: str, steps: np.ndarray) -> Axis:
    return Axis(len(steps), steps, UPDATES, _ENTRIES[STEP_OF[axis]].description)


def _field(path: str, values: Any, axes: tuple[str, ...]) -> Field:
    entry = _ENTRIES.get(path)  # None for scalars of the author of a loop
    units, description = (
        ("", "the author's own") if entry is None else (entry.units, entry.description)
    )
    return Field(values, axes[: np.ndim(values)], units or "1", description)
