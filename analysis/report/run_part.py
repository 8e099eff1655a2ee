"""What a run file alone has to show: what was trained, and its scalars at every step."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_hex

from dlf_dynamics.analysis.report.content import Panel, Part, Series, flat
from dlf_dynamics.analysis.style import COLOURS, changes, class_colours, spans_decades
from dlf_dynamics.dynamics import EDGE, SCALARS
from dlf_dynamics.errors import counted
from dlf_dynamics.run import Run

_MOST_CLASSES = 10
"""Class weights that are drawn one by one."""


def run_part(run: Run) -> Part:
    """The panels of a run, and how far it came, in words."""
    panels = [_class_weights(run), _loss(run), _loss_change(run), _accuracy(run), _cosine(run)]
    panels.append(_edge(run))
    panels += _own(run)
    return Part(
        title="The run",
        lines=_lines(run),
        panels=[panel for panel in panels if panel is not None],
        facts=flat({"run id": run.run_id, "data (sha256)": run.data_sha256, **run.settings}),
    )


def _lines(run: Run) -> list[str]:
    last = {name: run.scalars[name][-1] for name in ("loss", "accuracy")}
    held_out = {f"validation {name}": v[-1] for name, v in run.validation.items() if len(v)}
    values = [f"{name} {value:.6g}" for name, value in (last | held_out).items() if value == value]
    told = f"; at the last step {', '.join(values)}" if values else ""  # none of an import
    return [
        f"trained: {run.subject}",
        f"{run.status}: {counted(int(run.steps[-1]), 'update')}, "
        f"{counted(len(run.checkpoint_steps), 'checkpoint')} of "
        f"{counted(run.num_params, 'parameter')}{told}",
        *([str(run.edges)] if run.edges.evaluated else []),
        *run.source.caution,
    ]


def _known(values: np.ndarray) -> bool:
    return bool(np.any(np.isfinite(values)))


def _class_weights(run: Run) -> Panel | None:
    """Γ_i of each class; of many classes the largest and the smallest at each step."""
    weights = run.scalars["class_weights"]
    if weights.size == 0 or np.all(weights == 1):  # static
        return None
    count = weights.shape[1]
    if count <= _MOST_CLASSES:
        lines = [
            Series(f"class {label}", run.steps, weights[:, label], to_hex(colour).upper(), "line")
            for label, colour in enumerate(class_colours(count))
        ]
        return Panel("class weights Γ", lines)
    ends = {"largest": np.argmax(weights, axis=1), "smallest": np.argmin(weights, axis=1)}
    lines = [
        Series(
            name,
            run.steps,
            np.take_along_axis(weights, labels[:, None], axis=1)[:, 0],
            colour,
            "line",
            beside={f"class of the {name}": labels},
        )
        for (name, labels), colour in zip(ends.items(), (COLOURS[5], COLOURS[0]), strict=True)
    ]
    note = f"of {count} classes the largest and the smallest weight at each step"
    return Panel("class weights Γ", lines, note=note)


def _loss(run: Run) -> Panel | None:
    loss = run.scalars["loss"]
    if not _known(loss):
        return None
    return Panel("loss F", [Series("loss", run.steps, loss, COLOURS[0])], spans_decades(loss))


def _loss_change(run: Run) -> Panel | None:
    """The change of the loss between successive steps, which shows an alternation."""
    change = np.where(np.diff(run.steps) == 1, changes(run.scalars["loss"]), np.nan)
    if not _known(change):
        return None
    return Panel("change of the loss, F(t) − F(t−1)", [_series("ΔF", run.steps[1:], change)])


def _accuracy(run: Run) -> Panel | None:
    accuracy = run.scalars["accuracy"]
    series = [_series("training", run.steps, accuracy)] if _known(accuracy) else []
    held_out = run.validation.get("accuracy", np.zeros(0))
    if _known(held_out):
        series.append(Series("held out", run.checkpoint_steps, held_out, COLOURS[1]))
    return Panel("accuracy", series) if series else None


def _cosine(run: Run) -> Panel | None:
    cosine = run.scalars["update_cosine"]
    if not _known(cosine):
        return None
    return Panel("cosine of successive updates", [_series("cosine", run.steps, cosine)])


def _edge(run: Run) -> Panel | None:
    """ζ of the evaluated steps, with what rounding can do to it."""
    value, error = (np.asarray(run.scalars[name], float) for name in EDGE)
    known = np.isfinite(value)
    if not np.any(known):
        return None
    steps, value, error = run.steps[known], value[known], np.nan_to_num(error[known], nan=0.0)
    sure = np.where(np.isfinite(error), error, np.nan)
    ends = np.stack([value - sure, value + sure], axis=-1)
    one = Series("1", steps, np.ones(len(steps)), COLOURS[5], "line")
    series = [Series("ζ", steps, value, COLOURS[0], intervals=ends), one]
    note = "above 1, a step raised the loss that it was made for; it says nothing of stability"
    return Panel("realized edge ζ", series, note=note)


def _own(run: Run) -> list[Panel]:
    """Further values that a custom training loop recorded."""
    own = {name: v for name, v in run.scalars.items() if name not in (*SCALARS, "class_weights")}
    return [
        Panel(name, [_series(name, run.steps, values)], spans_decades(values))
        for name, values in own.items()
        if values.ndim == 1 and _known(values)
    ]


def _series(name: str, steps: np.ndarray, values: np.ndarray) -> Series:
    return Series(name, steps, values, COLOURS[0])
