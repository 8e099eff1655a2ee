"""Training: stretches of updates, recorded to a run file as they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dlf_dynamics import runfile
from dlf_dynamics.assembly import build, initial_parameters
from dlf_dynamics.config import RunConfig
from dlf_dynamics.configfile import to_json
from dlf_dynamics.datasets import Dataset, load_dataset, require_trainable
from dlf_dynamics.dynamics import EDGE, SCALARS, Dynamics, State, advance, scalar_columns
from dlf_dynamics.errors import ConfigError, FileError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.layout import Layout
from dlf_dynamics.opening import open_trained
from dlf_dynamics.outputs import EXISTS, Output, hold
from dlf_dynamics.pace import MAX_BYTES, Made, Pace
from dlf_dynamics.provenance import provenance
from dlf_dynamics.runfile import Header, Sizes
from dlf_dynamics.runwriter import RunWriter, require_space
from dlf_dynamics.schedules import Schedule
from dlf_dynamics.trained import TrainedRun

_RECORD_SECONDS = 0.5

_EDGES = [SCALARS.index(name) for name in EDGE]

Watch = Callable[[Mapping[str, float]], None]


class _Listeners(NamedTuple):
    """Functions that are called with the progress of a training, or may stop it; see `train`."""

    progress: Callable[[int], None]
    stop: Callable[[], bool]
    watch: Watch

    def tell(self, step: int, row: np.ndarray, edge: np.ndarray) -> None:
        """Passes on the number of updates made, the last scalars and the last realized edge."""
        scalars: dict[str, float] = dict(zip(SCALARS, row.tolist(), strict=False))
        scalars.update(zip(EDGE, edge.tolist(), strict=True))
        self.watch(scalars)
        self.progress(step)


def train(
    config: RunConfig,
    path: str | Path,
    *,
    dataset: Dataset | None = None,
    schedule: Schedule | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = lambda scalars: None,
) -> TrainedRun:
    """Trains and records a run; see `resume` to continue one.

    Args:
        config: configuration of the run.
        path: path of the run file to write.
        dataset: data to train on instead of the configuration's.
        schedule: class weights of each step instead of the configuration's; any hashable callable
            that JAX can trace.
        overwrite: whether to replace an existing file.
        progress: called with the number of updates made.
        stop: called between stretches; if it returns true, the run stops and can be resumed.
        watch: called with the scalars of the last update by name, such as `loss` and `accuracy`;
            the realized edge is the last one that was evaluated.

    Returns:
        The recorded run; its `status` is `complete`, `interrupted` or `diverged`.

    Raises:
        ConfigError: when the configuration and the data do not fit together.
        FileError: when the file exists or cannot be written, or another process writes it.
    """
    with hold(Path(path), None if overwrite else EXISTS) as output:
        return _train(output, config, dataset, schedule, _Listeners(progress, stop, watch))


def _train(
    output: Output,
    config: RunConfig,
    dataset: Dataset | None,
    schedule: Schedule | None,
    listeners: _Listeners,
) -> TrainedRun:
    dataset = load_dataset(config.data) if dataset is None else dataset
    require_trainable(dataset, config.model.outputs, config.dtype)
    tree = initial_parameters(config, dataset)
    layout = Layout.of(tree)
    params = layout.flatten(tree)
    dynamics = build(config, dataset, schedule, params)
    state = dynamics.initial_state(params)
    sizes = Sizes(
        params=params.size,
        state=Layout.of(state.optimizer_state).size,
        classes=len(jax.eval_shape(dynamics.schedule, state.step)),
    )
    _require_space(output.target, config, sizes, params.dtype.itemsize)
    header = _header(config, dataset, layout, own_schedule=schedule is not None)
    writer = runfile.create(output, header, sizes)
    return _run(output.path, config, dynamics, state, writer, listeners)


def _require_space(path: Path, config: RunConfig, sizes: Sizes, itemsize: int) -> None:
    """Refuses a run whose vectors and class weights alone would not fit on the disk.

    A run that diverges or is interrupted takes less, which cannot be foreseen.
    """
    checkpoints = config.steps // config.checkpoint_every + 1
    vectors = (2 * sizes.params + sizes.state) * itemsize
    weights = (config.steps + 1) * sizes.classes * itemsize
    advice = "; make fewer --steps, record with a larger --checkpoint-every, or write elsewhere"
    present = path.stat().st_size if path.is_file() else 0  # it is replaced or continued
    require_space(path, checkpoints * vectors + weights - present, advice)


def _header(config: RunConfig, dataset: Dataset, layout: Layout, *, own_schedule: bool) -> Header:
    held_out = dataset.validation
    return Header(
        config=to_json(config),
        data_kind=config.data.name,
        data_sha256=dataset.sha256(),
        inputs=dataset.inputs,
        targets=dataset.labels.astype(np.int64),
        dtype=config.vector_dtype,
        layout=layout.describe(),
        provenance=provenance(),
        validation=None if held_out is None else (held_out.inputs, held_out.labels),
        own_schedule=own_schedule,
        edges=config.edge_every > 0,
    )


def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    schedule: Schedule | None = None,
    progress: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch = lambda scalars: None,
) -> TrainedRun:
    """Continues a run that was interrupted or killed, bit for bit as if it had not been.

    Args:
        path: path of the run file.
        steps: new total number of updates; None keeps the configured one.
        schedule: the user's own schedule, if the run was trained with one.
        progress: called with the number of updates made.
        stop: called between stretches, as in `train`.
        watch: called with the scalars of the last update, as in `train`.

    Raises:
        ConfigError: when the new number of steps does not fit the run.
        FileError: when the file is missing or damaged, or the run diverged, or another process
            writes it.
    """
    with hold(Path(path)) as output:  # held before reading, so that nobody changes it meanwhile
        return _resume(output, steps, schedule, _Listeners(progress, stop, watch))


def _resume(
    output: Output,
    steps: int | None,
    schedule: Schedule | None,
    listeners: _Listeners,
) -> TrainedRun:
    path = output.path
    run = open_trained(path)
    config = run.config if steps is None else _extended(run.config, steps)
    if run.status == "diverged":
        raise FileError(f"{path} diverged and cannot be continued; train anew")
    point = run.resume_point()
    if point.step > config.steps:
        raise ConfigError(f"steps is {config.steps}; expected at least {point.step}, already made")
    if run.own_schedule and schedule is None:
        raise ConfigError(f"{path} was trained with a custom schedule; pass it again")
    if run.status == "complete" and point.step == config.steps:
        return run
    dataset = replace(run.dataset, validation=run.held_out)
    dynamics = build(config, dataset, schedule, origin=run.origin)
    state = run.state(point)
    sizes = Sizes(state.params.size, len(point.optimizer), len(dynamics.schedule(state.step)))
    _require_space(output.target, config, sizes, state.params.dtype.itemsize)
    writer = runfile.reopen(output, config, upto=point.step)
    return _run(path, config, dynamics, state, writer, listeners)


def _extended(config: RunConfig, steps: int) -> RunConfig:
    if steps != config.steps and config.optimizer.learning_rate_schedule != "constant":
        raise ConfigError(
            f"steps is {steps}; expected {config.steps}, as the learning-rate schedule of the run "
            "ends there"
        )
    return replace(config, steps=steps)


@dataclass
class _Record:
    """Rows and checkpoints that wait to be written."""

    writer: RunWriter
    edges: bool
    steps: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    points: list[FlatState] = field(default_factory=list)
    written: float = field(default_factory=time.monotonic)
    edge: np.ndarray = field(default_factory=lambda: np.full(len(EDGE), np.nan))

    def add(self, first: int, rows: np.ndarray) -> bool:
        """Adds rows of consecutive steps; returns whether all their losses are finite.

        If a loss is not finite, rows up to and including it and checkpoints before it are kept.
        """
        finite = np.isfinite(rows[:, 0])
        if not np.all(finite):
            rows = rows[: int(np.argmin(finite)) + 1]
            diverged = first + len(rows) - 1
            rows = _no_update_after(rows)
            self.points = [point for point in self.points if point.step < diverged]
        edges = rows[:, _EDGES]
        evaluated = np.flatnonzero(~np.isnan(edges[:, -1]))
        self.edge = edges[evaluated[-1]] if len(evaluated) else self.edge
        self.steps.append(np.arange(first, first + len(rows)))
        self.rows.append(rows)
        return bool(np.all(finite))

    def due(self) -> bool:
        """Whether it is time to write."""
        waiting = sum(p.params.nbytes * 2 + p.optimizer.nbytes for p in self.points)
        return waiting > MAX_BYTES or time.monotonic() - self.written > _RECORD_SECONDS

    def write(self) -> None:
        """Writes everything; scalars first, so that no checkpoint precedes the rows before it."""
        if self.rows:
            columns = scalar_columns(np.concatenate(self.rows))
            if not self.edges:
                columns = {n: values for n, values in columns.items() if n not in EDGE}
            self.writer.append_scalars(np.concatenate(self.steps), columns)
        self.writer.append_checkpoints(self.points)
        self.steps, self.rows, self.points = [], [], []
        self.written = time.monotonic()


def _run(
    path: Path,
    config: RunConfig,
    dynamics: Dynamics,
    state: State,
    writer: RunWriter,
    listeners: _Listeners,
) -> TrainedRun:
    """Advances to the last step and records on the way."""
    with writer:
        dynamics = replace(dynamics, edge_every=config.edge_every)
        status = _loop(config, dynamics, state, _Record(writer, config.edge_every > 0), listeners)
        writer.set_status(status)
    return open_trained(path)


def _loop(
    config: RunConfig,
    dynamics: Dynamics,
    state: State,
    record: _Record,
    listeners: _Listeners,
) -> str:
    """Makes and records all updates; returns the final status."""

    def program(state: State, counts: np.ndarray, due: np.ndarray, capacity: int):
        return advance(dynamics, state, counts, due, capacity=capacity)

    step, pace = int(state.step), Pace(config, state)
    for made in pace.stretches(program, state, step, listeners.stop):
        snapshots = jax.device_get(made.snapshots)
        for index, count in enumerate(made.counts[made.counts > 0]):
            if step % config.checkpoint_every == 0:
                record.points.append(FlatState(step, *(vectors[index] for vectors in snapshots)))
            if not record.add(step, made.rows[index, :count]):
                record.write()
                return "diverged"
            step += int(count)
        state = made.state
        if record.due():
            record.write()
            listeners.tell(step, made.last_row, record.edge)
    return _finish(config, dynamics, pace.last(program, state, step), record, listeners)


def _no_update_after(rows: np.ndarray) -> np.ndarray:
    """The rows without the realized edge of the last one, whose update is not one of the run."""
    rows = rows.copy()
    rows[-1, _EDGES] = np.nan
    return rows


def _finish(
    config: RunConfig,
    dynamics: Dynamics,
    made: Made,
    record: _Record,
    listeners: _Listeners,
) -> str:
    """Records the last state with its row, so that each checkpoint has loss and class weights."""
    validation = np.asarray(made.snapshots.validation)[0]
    point = replace(dynamics.flat(made.state), validation=validation)
    if point.step % config.checkpoint_every == 0 or point.step == config.steps:
        record.points.append(point)
    finite = record.add(point.step, _no_update_after(made.rows[0, :1]))
    record.write()
    listeners.tell(point.step, made.rows[0, 0], record.edge)
    if not finite:
        return "diverged"
    if point.step == config.steps:
        return "complete"
    record.writer.set_resume(point)
    return "interrupted"
