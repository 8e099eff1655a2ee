"""What a run recorded as labelled arrays, by the table of the run file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dlf_dynamics.labels import UPDATES, Axis, Field, Group
from dlf_dynamics.schema import SCHEMA, STEP_OF

if TYPE_CHECKING:
    from dlf_dynamics.run import Run

_ENTRIES = {entry.path: entry for entry in SCHEMA}


def groups_of_run(run: Run, *, parameters: bool = False) -> list[Group]:
    """Scalars along the steps, and what is known at the checkpoints.

    Args:
        run: a recorded run.
        parameters: whether to read the parameters of all checkpoints, too.
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


def _steps(axis: str, places: np.ndarray) -> Axis:
    return Axis(len(places), places, UPDATES, _ENTRIES[STEP_OF[axis]].description)


def _field(path: str, values: Any, axes: tuple[str, ...]) -> Field:
    entry = _ENTRIES.get(path)  # none for what the author of a loop recorded
    units, description = (
        ("", "the author's own") if entry is None else (entry.units, entry.description)
    )
    return Field(values, axes[: np.ndim(values)], units or "1", description)
