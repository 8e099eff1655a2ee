"""`Recorder`: records any custom training loop to a run file."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, PyTree

from dlf_dynamics import runfile
from dlf_dynamics.checks import check_problem, check_statistics
from dlf_dynamics.errors import ConfigError
from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.hyperparameters import require_state
from dlf_dynamics.layout import Layout
from dlf_dynamics.loop import NO_NAME, Recording, Setup
from dlf_dynamics.loop_edges import LoopEdges, require_edges
from dlf_dynamics.optimizers import NO_OPTIMIZER
from dlf_dynamics.outputs import hold
from dlf_dynamics.problem import Problem
from dlf_dynamics.provenance import provenance
from dlf_dynamics.runfile import Header, Sizes
from dlf_dynamics.runwriter import RunWriter

_WAITING = 4
"""Number of checkpoints waiting to be written at which the loop is held up."""


class Checkpoint(NamedTuple):
    """The argument of `on_record`: the state before the update of a step.

    Attributes:
        step: number of updates made.
        params: recorded parameters.
        opt_state: state of the optimizer.
        scalars: recorded numbers by name. If the recorder evaluates realized edges, they include
            `realized_edge` and `realized_edge_error` of the last update that it evaluated, and its
            step, `realized_edge_step`; NaN and -1 before the first one.
    """

    step: int
    params: PyTree
    opt_state: Any
    scalars: Mapping[str, Any]


class Recorder:
    """Records the states of a custom training loop into a run file, which all analyses read.

    Call `record` before each update, with the number of updates made so far. Parameters are copied
    to the host and written while the loop goes on; if the loop donates their memory to its update
    (`donate_argnums`), they are copied on the device first. The loop is not compiled again.

        with Recorder("run.h5", problem, optimizer=optimizer, every=10) as run:
            for step in range(1000):
                run.record(step, params, opt_state)
                params, opt_state = update(params, opt_state, step)

    After an exception in the loop, the run is `interrupted`, and what was recorded stays. Once
    parameters are not finite, no checkpoints are recorded, and the run is `diverged`.

    Attributes:
        path: path of the file, which appears at the first record.
    """

    def __init__(
        self,
        path: str | Path,
        problem: Problem,
        *,
        optimizer: optax.GradientTransformation | None,
        config: Mapping[str, Any] | None = None,
        every: int = 1,
        edge_every: int = 0,
        full_batch: bool = True,
        stateful: bool = True,
        replayed: bool = True,
        fixed_statistics: bool = False,
        name: str = "the loop's optimizer",
        overwrite: bool = False,
        on_record: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        """Prepares to record.

        Args:
            path: path of the run file to write.
            problem: problem that the loop minimises, as a function of its pytree of parameters.
            optimizer: optax transformation that makes the updates; None if it is unknown or not
                from optax: then only the parameters are recorded, and there is no threshold.
            config: configuration to store with the run; anything that JSON can hold.
            every: steps between checkpoints, if `record` is called at each step. The step before
                each checkpoint is used, too: the analyses need three consecutive iterates.
            edge_every: steps between evaluations of the realized edge, which need `record` at the
                next step, too; 0 evaluates none. An evaluation takes a gradient and a loss; its
                rounding error is unknown for `Problem.from_loss`. Use an odd number, which sees
                both halves of an oscillation of period 2. For mini-batches, which only the loop
                knows, record the results of `dlf_dynamics.realized_edge` as scalars.
            full_batch: whether each update uses the problem's whole loss, so that it can be
                replayed. Otherwise no threshold is drawn, and nothing is replayed.
            stateful: whether `record` is given the optimizer's state. Without it nothing is
                replayed, and an adaptive optimizer, whose preconditioner depends on its state, has
                no threshold.
            replayed: whether analyses may replay updates; otherwise they use recorded states only.
            fixed_statistics: whether the loop leaves running statistics (of batch norm) as they are
                in the problem's model; otherwise a model that was adapted with such is refused.
            name: name of the optimizer, for labels.
            overwrite: whether to replace an existing file.
            on_record: function called with each checkpoint while the loop waits, for example to log
                the sharpness by `stability`. Its exceptions end the loop.

        Raises:
            ConfigError: when `every` is less than 1; `edge_every` is less than 0, or not 0 although
                the updates may not use the whole loss; `config` cannot be stored as JSON; or the
                model has running statistics that are not recorded.
            FileError: when the file exists or cannot be written, or another process writes it.
        """
        self.path = Path(path)
        if every < 1:
            raise ConfigError(f"every is {every}; expected at least 1")
        require_edges(edge_every, full_batch=full_batch and optimizer is not None)
        self._remedy = None if overwrite else "pass overwrite=True, or record elsewhere"
        hold(self.path, self._remedy).release()  # fails now, not after the first update
        if not fixed_statistics:
            check_statistics(problem)
        self._config = _as_json(config)
        self._problem, self._every, self._on_record = problem, every, on_record
        if optimizer is None:
            optimizer, name, full_batch = NO_OPTIMIZER, NO_NAME, False
        self._optimizer = optimizer
        self._recording = Recording(name, full_batch, stateful, replayed)
        self._edges = LoopEdges(problem, edge_every)
        self._before: tuple[int, PyTree] | None = None
        self._watched: list[Any] = []
        self._donates = True
        self._form: _Form | None = None
        self._file: _Writing | None = None
        self._last = -1
        self._stored = 0

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            for row in self._edges.left():
                self._file.put(row)
            self._file.close("complete" if kind is None else "interrupted")

    def record(self, step: int, params: PyTree, opt_state: Any = (), **scalars: Any) -> None:
        """Records the state before the update of a step.

        Args:
            step: number of updates made.
            params: a pytree of floating-point arrays, always of the same form.
            opt_state: state of the optimizer.
            scalars: `loss`, `accuracy`, `learning_rate`, `gradient_norm`, `update_cosine`, or your
                own names, always the same ones; numbers, or arrays of one number.

        Raises:
            ConfigError: when the step does not increase, the form of parameters or optimizer state
                has changed, or they are not what can be recorded.
            FileError: when the file cannot be written.
        """
        _require_outside(step)
        step = int(step)
        if step <= self._last:
            raise ConfigError(f"step is {step}; expected more than {self._last}, the last recorded")
        if self._form is None:
            self._begin(step, params, opt_state, scalars)
        form, file = self._form, self._file
        assert form is not None
        assert file is not None
        form.require_scalars(scalars.keys())
        for row in self._edges.reached(step, params):
            file.put(row)
        state = None
        due, next_due = step % self._every == 0, (step + 1) % self._every == 0
        edge_due = self._edges.due(step)
        if due or next_due or edge_due:
            _require_outside((params, opt_state))
            self._watch(params, opt_state)
        kept = None
        if due:
            form.require(params, opt_state)
            kept, state = self._kept((params, opt_state))
            state = self._state(step, kept, state)
        elif next_due or edge_due:
            kept = self._kept(params)
            self._before = step, kept
        self._last = step
        if edge_due:
            self._edges.hold(_Row(step, scalars, state), kept)
        elif scalars or state is not None:
            file.put(_Row(step, scalars | self._edges.unknown, state))
        if state is not None and self._on_record is not None:
            self._on_record(Checkpoint(step, params, opt_state, scalars | self._edges.last))

    def _watch(self, params: PyTree, opt_state: Any) -> None:
        """Detects, by the arrays of the last call, whether the loop donates its arrays."""
        if self._watched:
            self._donates = _deleted(self._watched)
        self._watched = jax.tree.leaves((params, opt_state))

    def _kept(self, tree: PyTree) -> Any:
        """The tree itself if nobody will change it, else a copy."""
        leaves, structure = jax.tree.flatten(tree)
        leaves = [leaf if isinstance(leaf, Array) else np.array(leaf) for leaf in leaves]
        return jax.tree.unflatten(structure, _copied(leaves) if self._donates else leaves)

    def _state(self, step: int, params: PyTree, opt_state: Any) -> _State:
        objective = jnp.nan
        if self._stored & (self._stored - 1) == 0:  # at checkpoints 0, 1, 2, 4, 8, ...
            objective = _objective(self._problem, params, step)
        self._stored += 1
        before = self._seen_before(step)
        self._before = step, params
        return _State(params, before, opt_state, objective)

    def _seen_before(self, step: int) -> PyTree | None:
        """The parameters of the step before, if it was seen and updates can be replayed."""
        seen = self._before is not None and self._before[0] == step - 1
        return self._before[1] if seen and self._recording.own_updates else None  # type: ignore[index]

    def _begin(self, step: int, params: PyTree, opt_state: Any, scalars: Mapping[str, Any]) -> None:
        _require_outside((params, opt_state))
        check_problem(self._problem, params, step)
        setup = Setup(self._problem, self._optimizer, params)
        known = frozenset(self._edges.unknown)
        if twice := known & scalars.keys():
            raise ConfigError(
                f"{_listed(twice)} is given to record, and edge_every is set; expected one of them"
            )
        form = _Form(setup.layout, Layout.of(opt_state), frozenset(scalars), known)
        if self._recording.stateful:
            require_state(self._optimizer, params, opt_state, step)
        elif jax.tree.leaves(opt_state):
            raise ConfigError("opt_state is given to a recorder with stateful=False; leave it out")
        header = Header(
            config=self._config,
            data_kind="own",
            data_sha256=setup.data_sha256(),
            inputs=None,
            targets=None,
            dtype=form.params.dtypes[0],
            layout=form.params.describe(),
            provenance=provenance(),
            recording=self._recording.to_json(),
            scalars=tuple(sorted(form.scalars | form.edges)),
            updates=self._recording.own_updates,
        )
        sizes = Sizes(form.params.size, form.state.size, 0)
        writer = runfile.create(hold(self.path, self._remedy), header, sizes)
        self._file, self._form = _Writing(writer, form, updates=header.updates), form


class _Form(NamedTuple):
    """The form of parameters, state and scalars, which is the same in all records."""

    params: Layout
    state: Layout
    scalars: frozenset[str]
    edges: frozenset[str]

    def require(self, params: PyTree, opt_state: Any) -> None:
        """Raises ConfigError unless the state has the form of the first record."""
        for given, expected, what in (
            (Layout.of(params), self.params, "parameters"),
            (Layout.of(opt_state), self.state, "optimizer state"),
        ):
            if given != expected:
                raise ConfigError(
                    f"the {what} have changed their form: {given.size} numbers in "
                    f"{len(given.shapes)} leaves; the first record had {expected.size} in "
                    f"{len(expected.shapes)}"
                )

    def require_scalars(self, scalars: Set[str]) -> None:
        """Raises ConfigError unless the scalars are those of the first record."""
        if scalars != self.scalars:
            raise ConfigError(
                f"the scalars are {_listed(scalars)}; expected {_listed(self.scalars)}, as in the "
                "first record"
            )


def _as_json(config: Mapping[str, Any] | None) -> str:
    try:
        return json.dumps(dict(config or {}), indent=1)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config cannot be kept as JSON: {error}") from error


def _require_outside(tree: PyTree) -> None:
    """Raises ConfigError if recorded arrays are traced, or not all in this process."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
        raise ConfigError(
            "record was called inside a compiled function; expected it between calls: let "
            "lax.scan return the states to be recorded"
        )
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in jax.tree.leaves(tree)):
        raise ConfigError(
            "parts of the parameters or of the optimizer's state lie on devices of other "
            "processes; expected all of them here: gather them before record"
        )


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


class _State(NamedTuple):
    """A checkpoint on the device: pytrees, as the loop provided them."""

    params: PyTree
    before: PyTree | None
    optimizer: Any
    objective: Any


class _Row(NamedTuple):
    """What one call of `record` passes on to be written."""

    step: int
    scalars: Mapping[str, Any]
    state: _State | None = None


class _Writing:
    """A thread that takes rows from the device and appends them to the file."""

    def __init__(self, writer: RunWriter, form: _Form, *, updates: bool) -> None:
        self._writer, self._form, self._updates = writer, form, updates
        sizes = form.params.size, form.params.size, form.state.size
        self._vectors = [np.empty(size, form.params.dtypes[0]) for size in sizes]
        self._rows: queue.Queue[_Row | None] = queue.Queue()
        self._places = threading.Semaphore(_WAITING)
        self._error: BaseException | None = None
        self._diverged = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, row: _Row) -> None:
        """Passes a row on; waits if too many checkpoints are not yet written."""
        self._raise()
        if row.state is not None:
            self._places.acquire()
        self._rows.put(row)

    def close(self, status: str) -> None:
        """Writes the waiting rows and the status."""
        self._rows.put(None)
        self._thread.join()
        with self._writer as writer:
            if self._error is None:
                writer.set_status("diverged" if self._diverged else status)
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while True:
            rows = [self._rows.get()]
            while not self._rows.empty():
                rows.append(self._rows.get())
            try:
                if self._error is None:
                    self._write([row for row in rows if row is not None])
            except BaseException as error:  # raised in the loop at its next record
                self._error = error
            for row in rows:
                if row is not None and row.state is not None:
                    self._places.release()
            if None in rows:
                return

    def _write(self, rows: list[_Row]) -> None:
        if rows:
            columns = {
                name: np.array([float(row.scalars[name]) for row in rows])
                for name in self._form.scalars | self._form.edges
            }
            self._writer.append_scalars(np.array([row.step for row in rows]), columns)
        for step, _, state in rows:
            if state is None or self._diverged:
                continue
            point = self._point(step, state)
            self._diverged = not np.all(np.isfinite(point.params))
            if not self._diverged:
                self._writer.append_checkpoints([point], np.array([float(state.objective)]))

    def _point(self, step: int, state: _State) -> FlatState:
        """The vectors of a checkpoint, in memory that the next checkpoint reuses."""
        params, update, optimizer = self._vectors
        if _deleted(jax.tree.leaves((state.params, state.before, state.optimizer))):
            raise ConfigError(
                f"the arrays of step {step} were deleted before they were written, those of the "
                "step before were not; expected a loop that donates its arrays at each step, or "
                "at none"
            )
        for leaf in jax.tree.leaves(state):  # start all copies before waiting for the first
            getattr(leaf, "copy_to_host_async", lambda: None)()
        for part, leaf in _parts(params, state.params):
            part[...] = leaf
        for part, leaf in _parts(optimizer, state.optimizer):
            part[...] = leaf
        if not self._updates:
            update = update[:0]
        elif state.before is None:  # step 0 has no step before it
            update[:] = np.nan if step else 0.0
        else:
            now = _parts(params, state.params)
            for (part, before), (_, after) in zip(_parts(update, state.before), now, strict=True):
                np.subtract(after, before, out=part)
        return FlatState(step, params, update, optimizer)


def _parts(vector: np.ndarray, tree: PyTree) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The leaves of a tree, each with its part of the flat vector."""
    start = 0
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        yield vector[start : start + leaf.size].reshape(leaf.shape), leaf
        start += leaf.size


def _deleted(leaves: list[Any]) -> bool:
    """Whether the memory of some leaves was donated."""
    return any(isinstance(leaf, Array) and leaf.is_deleted() for leaf in leaves)


@jax.jit
def _copied(leaves: list[Array]) -> list[Array]:
    """The same numbers in memory that no update can reuse."""
    return [jnp.copy(leaf) for leaf in leaves]


@jax.jit
def _objective(problem: Problem, params: PyTree, step: Any) -> Array:
    return problem.objective(params, step)
