"""The training map: one optimizer update as a deterministic function of a flat state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Float, Int

from dlf_dynamics.flatstate import FlatState
from dlf_dynamics.layout import Layout
from dlf_dynamics.optimizers import FlatUpdate, has_mean_squares, is_adaptive
from dlf_dynamics.precision import InPrecision, rounded
from dlf_dynamics.problem import Problem
from dlf_dynamics.realized import Edge, realized
from dlf_dynamics.reprs import brief
from dlf_dynamics.schedules import Schedule

SCALARS = (
    "loss",
    "static_loss",
    "accuracy",
    "learning_rate",
    "gradient_norm",
    "update_cosine",
    "realized_edge",
    "realized_edge_error",
)
"""What each step records, in the order of the columns of `Dynamics.step`; class weights follow."""

EDGE = ("realized_edge", "realized_edge_error")
"""The scalars that are evaluated at some steps only, or at none."""

Row = Float[Array, " scalars"]


def scalar_columns(rows: Float[np.ndarray, "steps scalars"]) -> dict[str, np.ndarray]:
    """The recorded scalars of steps, by name."""
    columns = {name: rows[:, column] for column, name in enumerate(SCALARS)}
    return columns | {"class_weights": rows[:, len(SCALARS) :]}


class State(NamedTuple):
    """Everything that the next update depends on.

    Attributes:
        params: θ_t, flat.
        previous_update: θ_t - θ_(t-1); 0 at the first step.
        optimizer_state: state of the optax transformation, for flat parameters.
        step: t, the number of updates made.
    """

    params: Float[Array, " params"]
    previous_update: Float[Array, " params"]
    optimizer_state: Any
    step: Int[Array, ""]
    __repr__ = brief


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["problem", "validation"],
    meta_fields=[
        "optimizer",
        "learning_rate",
        "schedule",
        "batch_size",
        "batch_seed",
        "batch_sampling",
        "layout",
        "precision",
        "edge_every",
    ],
)
@dataclass(frozen=True)
class Dynamics:
    """A problem in flat parameters with the rule that updates them.

    Attributes:
        problem: problem as a function of flat parameters.
        optimizer: an optax transformation.
        learning_rate: learning rate of each step, to be recorded; the optimizer has its own.
        schedule: class weights of each step.
        batch_size: examples per update, or None for the full batch.
        batch_seed: seed of the mini-batches.
        batch_sampling: whether mini-batches go through the examples in `epochs`, or are
            `independent` of each other; see `problem_at`.
        layout: layout of the parameters, for an optimizer that sees them as a pytree; None gives it
            the flat vector.
        validation: the problem on examples held out, in flat parameters; or None.
        precision: `bfloat16` or `float16` if parameters are rounded to it after each update and the
            network computes in it during training and validation; else None. `problem` is the same
            function in the precision of its arrays, which analyses use.
        edge_every: steps between evaluations of the realized edge; 0 evaluates none. Only training
            uses it: analyses make steps without it.
    """

    problem: Problem
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[Any], Any]
    schedule: Schedule
    batch_size: int | None = None
    batch_seed: int = 0
    batch_sampling: Literal["epochs", "independent"] = "epochs"
    layout: Layout | None = None
    validation: Problem | None = None
    precision: str | None = None
    edge_every: int = 0

    def initial_state(self, params: Float[Array, " params"]) -> State:
        """The state before the first update."""
        tree = params if self.layout is None else self.layout.unflatten(params)
        return State(params, jnp.zeros_like(params), self.optimizer.init(tree), jnp.int32(0))

    @property
    def adaptive(self) -> bool:
        """Whether the optimizer divides by a root mean square of the gradients."""
        if self.layout is None:
            return is_adaptive(self.optimizer)
        blank = self.layout.unflatten(jnp.zeros(self.layout.size))
        return has_mean_squares(jax.eval_shape(self.optimizer.init, blank))

    def state_layout(self, params: Float[Array, " params"]) -> Layout:
        """The form of the optimizer's state."""
        return Layout.of(jax.eval_shape(self.initial_state, params).optimizer_state)

    def flat(self, state: State) -> FlatState:
        """A state as vectors; `restored` is the inverse."""
        return FlatState(
            int(state.step),
            np.asarray(state.params),
            np.asarray(state.previous_update),
            np.asarray(Layout.of(state.optimizer_state).flatten(state.optimizer_state)),
        )

    def restored(self, flat: FlatState) -> State:
        """The state whose vectors are given, from which updates continue."""
        params = jnp.asarray(flat.params)
        layout = self.state_layout(params)
        optimizer_state = layout.unflatten(jnp.asarray(flat.optimizer))
        update = jnp.asarray(flat.previous_update)
        return State(params, update, optimizer_state, jnp.int32(flat.step))

    def restored_all(self, flats: Sequence[FlatState]) -> State:
        """Several states stacked as one state of NumPy arrays, for `jax.lax.map` over them."""
        names = ("params", "previous_update", "optimizer")
        columns: list[Any] = [np.stack([getattr(flat, name) for flat in flats]) for name in names]
        params, updates, optimizer = columns
        steps: Any = np.array([flat.step for flat in flats], np.int32)
        return State(params, updates, self.state_layout(params[0]).unflatten(optimizer), steps)

    def update(
        self, gradient: Float[Array, " params"], state: Any, params: Float[Array, " params"]
    ) -> tuple[Float[Array, " params"], Any]:
        """θ_(t+1) - θ_t, and the optimizer's next state."""
        if self.layout is None:
            change, state = self.optimizer.update(gradient, state, params)
            return cast(Array, change), state
        return FlatUpdate(self.optimizer, self.layout)(gradient, state, params)

    def step(self, state: State) -> tuple[State, Row]:
        """θ_t to θ_(t+1), with the scalars of step t.

        Loss, accuracy and gradient belong to θ_t under the weights of step t, on the batch that the
        update uses; the cosine is between this update and the previous one.
        """
        problem = self.problem_at(state.step)
        evaluate = self.computed(problem).evaluate
        (loss, evaluation), gradient = jax.value_and_grad(evaluate, has_aux=True)(
            state.params, state.step
        )
        update, optimizer_state = self.update(gradient, state.optimizer_state, state.params)
        params = state.params + update
        if self.precision is not None:
            params = rounded(params, self.precision)
            update = params - state.params
        edge = self._edge(problem, state, params, gradient, evaluation.outputs)
        next_state = State(params, update, optimizer_state, state.step + 1)
        scalars = [
            loss,
            evaluation.static_loss,
            evaluation.accuracy,
            self.learning_rate(state.step),
            jnp.linalg.norm(gradient),
            _cosine(update, state.previous_update),
            *edge,
            *self.schedule(state.step),
        ]
        return next_state, jnp.stack([jnp.asarray(s, loss.dtype) for s in scalars])

    def _edge(
        self, problem: Problem, state: State, after: Array, gradient: Array, outputs: Any
    ) -> Edge:
        """The realized edge of the update of this step, if it is due at this step.

        In reduced precision both losses are those of the float32 function: the errors of the
        network's own outputs would hide the effect of a single update.
        """
        unknown = Edge(*(jnp.full((), jnp.nan, after.dtype) for _ in Edge._fields))
        if self.edge_every == 0:
            return unknown
        outputs = outputs if self.precision is None else None

        def evaluated() -> Edge:
            at = problem, state.step, state.params, after, gradient
            return realized(*at, outputs=outputs, precision=self.precision)

        return jax.lax.cond(state.step % self.edge_every == 0, evaluated, lambda: unknown)

    def validate(self, params: Float[Array, " params"]) -> Float[Array, " measures"]:
        """Static loss and accuracy on the examples held out; empty where there are none."""
        if self.validation is None:
            return jnp.zeros(0, params.dtype)
        _, evaluation = self.computed(self.validation).evaluate(params, 0)
        return jnp.stack([evaluation.static_loss, evaluation.accuracy])

    def computed(self, problem: Problem) -> Problem:
        """The problem as training computes it, in `precision`."""
        if self.precision is None:
            return problem
        return replace(problem, apply=InPrecision(problem.apply, self.precision))

    def problem_at(self, step: Int[Array, ""]) -> Problem:
        """The problem on the examples that the update at this step uses.

        Each epoch goes through a fresh random order in whole batches; examples left over are not
        used in that epoch. Independent batches are the first examples of a fresh order at each
        step: all subsets of that size are equally likely. The batch is a function of seed and step
        alone, whatever random stream JAX is set to, so that any step can be replayed.
        """
        if self.batch_size is None:
            return self.problem
        num_examples = len(self.problem.targets)
        shared = 1  # updates that share an order
        if self.batch_sampling == "epochs":
            shared = epoch_steps(num_examples, self.batch_size)
        order_number, batch = jnp.divmod(step, shared)
        key = jnp.stack([jnp.uint32(self.batch_seed), order_number.astype(jnp.uint32)])
        order = jnp.argsort(threefry_2x32(key, jnp.arange(num_examples, dtype=jnp.uint32)))
        start = batch * self.batch_size
        return self.problem.take(jax.lax.dynamic_slice_in_dim(order, start, self.batch_size))


def epoch_steps(num_examples: int, batch_size: int | None) -> int:
    """Number of updates in one pass through the examples, in whole batches."""
    return 1 if batch_size is None else num_examples // batch_size


def _cosine(a: Array, b: Array) -> Array:
    """Cosine of the angle between two vectors; NaN if one of them is 0."""
    return jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))


class Snapshots(NamedTuple):
    """States before each interval as vectors, one row per interval; see `State`.

    `validation` is the result of `Dynamics.validate`.
    """

    params: Float[Array, "intervals params"]
    previous_update: Float[Array, "intervals params"]
    optimizer: Float[Array, "intervals state"]
    validation: Float[Array, "intervals measures"]


def stretch(
    dynamics: Dynamics,
    state: State,
    counts: Int[Array, " intervals"],
    due: Bool[Array, " intervals"] | None = None,
    *,
    capacity: int,
) -> tuple[State, Snapshots, Float[Array, "intervals capacity scalars"]]:
    """Makes `counts[j]` <= `capacity` updates in each interval j, one interval after the other.

    The counts are traced: every stretch of a run, long or short, goes through the same compiled
    program (`advance`), so that the bits of a run do not depend on where it is cut.

    Args:
        dynamics: dynamics of the run.
        state: state before the first update.
        counts: number of updates in each interval.
        due: intervals before which the examples held out are evaluated; None means all intervals
            that have updates.
        capacity: largest number of updates in an interval.

    Returns:
        The state after all updates; the states before each interval, with the validation there (0
        where it is not due); and the scalars of each update, 0 beyond each interval's count.
    """
    row = jax.eval_shape(dynamics.step, state)[1]
    measures = jax.eval_shape(dynamics.validate, state.params)
    layout = Layout.of(state.optimizer_state)

    def not_validated(_: Array) -> Array:
        return jnp.zeros(measures.shape, measures.dtype)

    def interval(
        state: State, planned: tuple
    ) -> tuple[State, tuple[Snapshots, Float[Array, "capacity scalars"]]]:
        count, validated = planned
        before = Snapshots(
            state.params,
            state.previous_update,
            layout.flatten(state.optimizer_state),
            jax.lax.cond(validated, dynamics.validate, not_validated, state.params),
        )

        def one(state: State, index: Int[Array, ""]) -> tuple[State, Row]:
            idle = jnp.zeros(row.shape, row.dtype)
            return jax.lax.cond(index < count, dynamics.step, lambda state: (state, idle), state)

        state, rows = jax.lax.scan(one, state, jnp.arange(capacity))
        return state, (before, rows)

    due = counts > 0 if due is None else due
    state, (snapshots, rows) = jax.lax.scan(interval, state, (counts, due))
    return state, snapshots, rows


advance = partial(jax.jit, static_argnames="capacity")(stretch)
"""`stretch`, compiled."""
